//! What older versions have written stays readable: files of each format version, checked in. `just golden` writes those of
//! this version.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use corelane::{StoredCommand, StoredDeadLetter, StoredResult};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 120_000_000).unwrap()
}

fn plain(id: &str, sequence: u64) -> StoredCommand {
    let mut command = StoredCommand::new(id, "send", "mail", Value::Null);
    (command.sequence, command.created_at) = (sequence, at(0));
    command
}

/// With everything set.
fn full(id: &str, sequence: u64) -> StoredCommand {
    let mut command = StoredCommand::new(id, "send", "mail", json!({ "to": ["é", 1.5, u64::MAX, null], "": {} }));
    (command.sequence, command.created_at, command.last_attempt_at) = (sequence, at(1), Some(at(2)));
    (command.retry_count, command.payload_version, command.recoverable, command.replays) = (2, 3, true, 1);
    command.crashes = vec![at(3), at(4)];
    let terms = &mut command.terms;
    (terms.priority, terms.key, terms.cost, terms.bytes) = (Some(7), Some(json!("customer")), Some(2), 4096);
    (terms.not_before, terms.start_by, terms.end_by) = (Some(at(5)), Some(at(6)), Some(at(7)));
    (terms.timeout, terms.drain_timeout) = (Some(Duration::from_millis(1500)), Some(Duration::from_secs(2)));
    terms.tags = vec!["nightly".into(), "eu".into()];
    terms.idempotency_key = Some("order-17".into());
    command
}

fn letter(id: &str, details: Value) -> StoredDeadLetter {
    let mut letter = StoredDeadLetter::new(id, "send", "mail", "no such address");
    (letter.attempts, letter.failed_at, letter.details) = (3, at(8), details);
    letter
}

fn full_letter() -> StoredDeadLetter {
    letter("d3", json!({ "reason": "failed", "payload": { "to": "é" } }))
}

fn result() -> StoredResult {
    let mut result = StoredResult::new("order-16", "5f3759df", "d1", json!({ "sent": true }));
    result.completed_at = at(9);
    result
}

/// A record is read from a file as it is expected, and written as it is there.
#[track_caller]
fn stays<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, expected: &T) {
    let text = fs::read_to_string(golden(name)).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *expected, "{name} is read as something else");
    let written = serde_json::to_value(expected).unwrap();
    assert_eq!(written, serde_json::from_str::<Value>(&text).unwrap(), "{name} would be written otherwise");
}

#[test]
fn records_of_this_version_are_written_and_read_as_ever() {
    stays("v1/command.json", &full("d17", 17));
    stays("v1/plain_command.json", &plain("d18", 18));
    stays("v1/letter.json", &full_letter());
    stays("v1/plain_letter.json", &letter("d4", Value::Null));
    stays("v1/result.json", &result());
}

#[test]
fn records_of_the_seed_are_read() {
    let text = fs::read_to_string(golden("seed/command.json")).unwrap();
    let mut expected = StoredCommand::new("0192", "http_request", "query", json!({}));
    (expected.retry_count, expected.created_at, expected.last_attempt_at) = (1, at(0), Some(at(60)));
    assert_eq!(serde_json::from_str::<StoredCommand>(&text).unwrap(), expected);

    let text = fs::read_to_string(golden("seed/letter.json")).unwrap();
    let expected = letter("0192", Value::Null);
    assert_eq!(serde_json::from_str::<StoredDeadLetter>(&text).unwrap(), expected);
}

#[test]
fn what_a_newer_version_adds_is_ignored() {
    let mut newer = serde_json::to_value(full("d17", 17)).unwrap();
    newer["added"] = json!({ "later": 1 });
    newer["terms"]["added"] = json!(1);
    assert_eq!(serde_json::from_value::<StoredCommand>(newer).unwrap(), full("d17", 17));
}

#[cfg(feature = "redb")]
mod store {
    use corelane::{Change, Durability, LocalStorage, Storage};

    use super::*;
    use crate::support::{Place, block_on};

    /// What is in both stores.
    fn commands() -> Vec<StoredCommand> {
        let mut odd = StoredCommand::new("any/text \u{0}é", "send", "mail", json!("odd"));
        (odd.sequence, odd.created_at) = (19, at(0));
        vec![full("d17", 17), plain("d18", 18), odd]
    }

    /// The files that hold something. The others are made anew: who has the store, and room that is kept free.
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for file in ["store.redb", "watermark", "running"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }

    /// The store that was closed, and the one whose process was killed while `d18` ran.
    async fn write(closed: &Path, killed: &Path) {
        let place = Place::new("golden-write");
        let store = LocalStorage::new(place.path()).await.unwrap();
        store.recover().await.unwrap();
        let mut changes: Vec<_> = commands().into_iter().map(|command| Change::Save(Box::new(command))).collect();
        // Attempts that are noted besides the command, and one that ended.
        changes.push(Change::Save(Box::new(plain("d16", 16))));
        changes.push(Change::Attempted { id: "d16".into(), retry_count: 4, at: at(10) });
        changes.push(Change::Save(Box::new(plain("d40", 40))));
        changes.push(Change::Remove { id: "d40".into(), result: Some(Box::new(result())) });
        changes.push(Change::GiveUp(Box::new(full_letter())));
        changes.push(Change::SaveDeadLetter(Box::new(letter("d4", Value::Null))));
        store.apply(changes, Durability::Synced).await.unwrap();

        let mark = store.mark_started("d18").unwrap();
        copy(place.path(), killed);
        store.unmark(mark);
        store.close().await.unwrap();
        copy(place.path(), closed);
    }

    async fn check(name: &str, unclean: bool) {
        let place = Place::new(&format!("golden-{}", name.replace('/', "-")));
        copy(&golden(name), place.path());
        let store = LocalStorage::new(place.path()).await.unwrap();
        let recovery = store.recover().await.unwrap();
        assert_eq!((recovery.unclean, recovery.unclean_ends.len()), (unclean, usize::from(unclean)));
        assert_eq!(recovery.results, [result()]);
        // After an unclean end it leaves some out.
        let next = recovery.next_sequence;
        assert!(if unclean { next >= 41 } else { next == 41 }, "{next}");

        let mut found = store.load_page(None, 100).await.unwrap();
        let mut tried = plain("d16", 16);
        (tried.retry_count, tried.last_attempt_at) = (4, Some(at(10)));
        let mut expected = commands();
        expected.insert(0, tried);
        let charged: usize = expected[2].crashes.len() + found[2].crashes.drain(..).count();
        assert_eq!(charged, usize::from(unclean));
        assert_eq!(found, expected);
        assert_eq!(store.load_dead_letters().await.unwrap(), [full_letter(), letter("d4", Value::Null)]);

        // And it goes on.
        store.save_command(plain("d41", 41)).await.unwrap();
        store.remove_command("d16").await.unwrap();
        store.close().await.unwrap();
        drop(store);
        let store = LocalStorage::new(place.path()).await.unwrap();
        assert_eq!(store.load_commands().await.unwrap().len(), 4);
    }

    #[test]
    fn a_store_of_version_1_is_read() {
        block_on(check("v1/closed", false));
    }

    #[test]
    fn a_store_of_version_1_whose_process_was_killed_is_read() {
        block_on(check("v1/killed", true));
    }

    /// For `just golden`, once per format version.
    #[test]
    #[ignore = "writes into the source tree"]
    fn write_the_files_of_this_version() {
        let folder = golden("v1");
        _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        block_on(write(&folder.join("closed"), &folder.join("killed")));
        let write = |name: &str, record: Value| {
            fs::write(folder.join(name), serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
        };
        write("command.json", json!(full("d17", 17)));
        write("plain_command.json", json!(plain("d18", 18)));
        write("letter.json", json!(full_letter()));
        write("plain_letter.json", json!(letter("d4", Value::Null)));
        write("result.json", json!(result()));
    }
}
