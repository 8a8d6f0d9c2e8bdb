//! What needs no faults. Those are in tests of their own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, Utc};
use futures_lite::future::block_on;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::clock::wall_now;
use crate::error::LaneError;
use crate::storage::{MemoryStorage, StoredResult};

/// A directory that goes with its test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("corelane-redb-{}-{number}", std::process::id()));
        _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn open(&self) -> LocalStorage {
        block_on(LocalStorage::new(&self.0)).expect("open")
    }

    /// As a process finds it that opens the store when this one was killed now.
    fn after_crash(&self) -> Self {
        let copy = Self::new();
        fs::create_dir(&copy.0).expect("create");
        for entry in fs::read_dir(&self.0).expect("read") {
            let entry = entry.expect("read");
            fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("copy");
        }
        copy
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn refusal<T>(result: Result<T>) -> StorageError {
    match result {
        Err(LaneError::Storage(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

fn command(sequence: u64, id: &str) -> StoredCommand {
    let mut command = StoredCommand::new(id, "send", "mail", json!({ "to": id, "n": sequence }));
    command.sequence = sequence;
    command
}

fn queued(sequence: u64) -> StoredCommand {
    command(sequence, &format!("d{sequence}"))
}

fn letter(id: &str, error: &str) -> StoredDeadLetter {
    StoredDeadLetter::new(id, "send", "mail", error)
}

fn ids(commands: &[StoredCommand]) -> Vec<&str> {
    commands.iter().map(|command| command.id.as_str()).collect()
}

fn save(storage: &LocalStorage, sequence: u64) {
    block_on(storage.save_command(queued(sequence))).expect("save");
}

/// Commits that a store has made, by the number in its watermark.
fn commits(place: &Place) -> u64 {
    let file = Box::new(fs::File::open(place.file("watermark")).expect("open"));
    watermark::Watermark::read(file).expect("read").expect("there").number()
}

#[test]
fn what_was_stored_is_there_after_reopening() {
    let place = Place::new();
    let storage = place.open();
    block_on(async {
        for sequence in 0..10 {
            storage.save_command(queued(sequence)).await?;
        }
        storage.remove_command("d3").await?;
        storage.apply(vec![Change::GiveUp(Box::new(letter("d4", "first")))], Durability::Synced).await?;
        storage.close().await?;
        drop(storage);
        let storage = place.open();
        let commands = storage.load_page(None, 100).await?;
        assert_eq!(ids(&commands), ["d0", "d1", "d2", "d5", "d6", "d7", "d8", "d9"]);
        assert_eq!(commands[0].payload, json!({ "to": "d0", "n": 0 }));
        let letters = storage.load_dead_letters().await?;
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].error, "first");
        assert_eq!(storage.recover().await?.next_sequence, 10);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

/// One step of a model-based test.
#[derive(Clone, Debug)]
enum Step {
    Make(Vec<Change>, Durability),
    Letter(StoredDeadLetter),
    ClearLetters,
    ClearAll,
    Reopen,
}

fn any_id() -> impl Strategy<Value = String> {
    // Few, so that they meet: such as a queue gives, such as look like it, and others.
    prop_oneof![
        (0..4_u64).prop_map(|n| format!("d{n}")),
        Just("d01".to_owned()),
        Just("d+1".to_owned()),
        Just("d".to_owned()),
        Just(String::new()),
        Just("a".to_owned()),
        Just("ab".to_owned()),
        Just("long ".repeat(30)),
        Just("ü".to_owned()),
    ]
}

fn any_at() -> impl Strategy<Value = DateTime<Utc>> {
    (0..1_000_000_000_i64).prop_map(|nanos| DateTime::from_timestamp_nanos(1_700_000_000_000_000_000 + nanos))
}

fn any_command() -> impl Strategy<Value = StoredCommand> {
    (any_id(), 0..4_u64, any::<bool>(), proptest::collection::vec(any_at(), 0..3)).prop_map(|(id, n, told, crashes)| {
        let told = id.strip_prefix('d').and_then(|digits| digits.parse().ok()).filter(|_| told);
        let mut command = command(told.unwrap_or(n), &id);
        command.crashes = crashes;
        command
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let result = (0..3_u32, any_id())
        .prop_map(|(key, id)| Box::new(StoredResult::new(format!("key{key}"), "print", id, json!({ "at": key }))));
    prop_oneof![
        4 => any_command().prop_map(|command| Change::Save(Box::new(command))),
        2 => (any_id(), 0..9_u32, any_at()).prop_map(|(id, retry_count, at)| Change::Attempted { id, retry_count, at }),
        2 => (any_id(), proptest::option::of(result)).prop_map(|(id, result)| Change::Remove { id, result }),
        1 => any_id().prop_map(|id| Change::GiveUp(Box::new(letter(&id, "given up")))),
        1 => any_command().prop_map(|command| Change::Replay(Box::new(command))),
        1 => any_id().prop_map(|command_id| Change::RemoveDeadLetters { command_id }),
        1 => (0..3_u32).prop_map(|key| Change::RemoveResult { key: format!("key{key}") }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let durability = prop_oneof![Just(Durability::Relaxed), Just(Durability::Synced)];
    prop_oneof![
        20 => (proptest::collection::vec(any_change(), 0..4), durability).prop_map(|(changes, durability)| Step::Make(changes, durability)),
        2 => any_id().prop_map(|id| Step::Letter(letter(&id, "saved"))),
        1 => Just(Step::ClearLetters),
        1 => Just(Step::ClearAll),
        2 => Just(Step::Reopen),
    ]
}

async fn compare(storage: &LocalStorage, model: &MemoryStorage) -> Result<()> {
    let mut paged = Vec::new();
    loop {
        let page = storage.load_page(paged.last(), 3).await?;
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, model.load_page(None, usize::MAX).await?);
    assert_eq!(storage.load_commands().await?, paged);
    assert_eq!(storage.load_dead_letters().await?, model.load_dead_letters().await?);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is done to it, it holds what a store in memory holds.
    #[test]
    fn it_is_what_a_store_in_memory_is(steps in proptest::collection::vec(any_step(), 1..40)) {
        let place = Place::new();
        let (mut storage, model) = (place.open(), MemoryStorage::new());
        let done = block_on(async {
            for step in steps {
                match step {
                    Step::Make(changes, durability) => {
                        storage.apply(changes.clone(), durability).await?;
                        model.apply(changes, durability).await?;
                    }
                    Step::Letter(letter) => {
                        storage.save_dead_letter(letter.clone()).await?;
                        model.save_dead_letter(letter).await?;
                    }
                    Step::ClearLetters => {
                        storage.clear_dead_letters().await?;
                        model.clear_dead_letters().await?;
                    }
                    Step::ClearAll => {
                        storage.clear_all().await?;
                        model.clear_all().await?;
                    }
                    Step::Reopen => {
                        drop(storage);
                        storage = place.open();
                    }
                }
                compare(&storage, &model).await?;
            }
            let (found, expected) = (storage.recover().await?, model.recover().await?);
            assert_eq!(found, expected);
            Ok::<_, LaneError>(())
        });
        prop_assert!(done.is_ok(), "{done:?}");
    }
}

#[test]
fn the_order_is_that_of_sequences_and_not_of_ids() {
    let place = Place::new();
    let storage = place.open();
    block_on(async {
        for (sequence, id) in [(11, "d11"), (2, "zebra"), (9, "d9"), (100, "d100"), (10, "apple"), (2, "ant")] {
            storage.save_command(command(sequence, id)).await?;
        }
        let mut found = Vec::new();
        loop {
            let page = storage.load_page(found.last(), 2).await?;
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert_eq!(ids(&found), ["ant", "zebra", "d9", "apple", "d11", "d100"]);
        // Where the id does not tell the sequence, it is noted.
        storage.remove_command("apple").await?;
        storage.save_command(command(1, "zebra")).await?;
        assert_eq!(ids(&storage.load_page(None, 9).await?), ["zebra", "ant", "d9", "d11", "d100"]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn a_page_that_was_fetched_ahead_is_not_out_of_date() {
    let place = Place::new();
    let storage = place.open();
    block_on(async {
        for n in 0..6 {
            storage.save_command(queued(n)).await?;
        }
        let first = storage.load_page(None, 2).await?;
        // The next page is there by now; this is not in it.
        storage.flush().await?;
        storage.apply(vec![Change::Remove { id: "d2".into(), result: None }], Durability::Relaxed).await?;
        assert_eq!(ids(&storage.load_page(first.last(), 2).await?), ["d3", "d4"]);
        // Asked for otherwise, it is another page.
        assert_eq!(ids(&storage.load_page(first.last(), 3).await?), ["d3", "d4", "d5"]);
        assert_eq!(ids(&storage.load_page(None, 1).await?), ["d0"]);
        assert_eq!(ids(&storage.load_page(first.last(), 1).await?), ["d3"]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn a_store_has_one_owner_and_says_who() {
    let place = Place::new();
    let storage = place.open();
    let expected = StorageError::StoreLocked { path: place.0.clone(), pid: Some(std::process::id()) };
    assert_eq!(refusal(block_on(LocalStorage::new(&place.0))), expected);
    assert_eq!(refusal(block_on(LocalStorage::open_read_only(&place.0))), expected);
    save(&storage, 1);
    drop(storage);
    let reader = block_on(LocalStorage::open_read_only(&place.0)).expect("open");
    // Who looks has left no pid, and who had the store before is not blamed.
    assert_eq!(
        refusal(block_on(LocalStorage::new(&place.0))),
        StorageError::StoreLocked { path: place.0.clone(), pid: None }
    );
    drop(reader);
    assert_eq!(block_on(place.open().load_commands()).expect("load").len(), 1);
}

#[test]
fn a_second_process_is_refused() {
    // The same program, told by a variable to be the other process.
    const CHILD: &str = "CORELANE_REDB_SECOND_PROCESS";
    if let Some(path) = std::env::var_os(CHILD) {
        let error = refusal(block_on(LocalStorage::new(PathBuf::from(path))));
        let StorageError::StoreLocked { pid: Some(pid), .. } = error else { panic!("{error}") };
        assert_ne!(pid, std::process::id());
        return;
    }
    let place = Place::new();
    let child = |expected: bool| {
        let status = std::process::Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "adapters::redb::tests::a_second_process_is_refused"])
            .env(CHILD, &place.0)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        assert_eq!(status.expect("run").success(), expected);
    };
    let storage = place.open();
    child(true);
    // Control: with nobody there, it opens the store, which it does not expect.
    drop(storage);
    child(false);
}

#[test]
fn paths_that_can_not_be_used_are_named() {
    let place = Place::new();
    let problem = |path: PathBuf| match refusal(block_on(LocalStorage::new(path.clone()))) {
        StorageError::Path { path: named, problem } => {
            assert_eq!(named, path);
            problem
        }
        other => panic!("{other}"),
    };
    // Parents are made.
    drop(block_on(LocalStorage::new(place.file("a/b/c"))).expect("open"));
    assert!(place.file("a/b/c/store.redb").is_file());
    fs::write(place.file("file"), "").expect("write");
    assert!(problem(place.file("file")).contains("not a directory"));
    assert!(problem(place.file("file/below")).contains("not a directory"));
    assert!(matches!(
        refusal(block_on(LocalStorage::open_read_only(place.file("nothing")))),
        StorageError::Path { problem, .. } if problem.contains("no store")
    ));
    assert!(!place.file("nothing").exists());
    assert!(problem(PathBuf::from("/proc/corelane-store")).len() > 5);
}

#[cfg(unix)]
#[test]
fn only_the_owner_gets_in_and_links_are_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let place = Place::new();
    let storage = block_on(LocalStorage::new(place.file("a/store"))).expect("open");
    save(&storage, 1);
    drop(storage);
    let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for directory in ["a", "a/store"] {
        assert_eq!(mode(place.file(directory)), 0o700);
    }
    let files = ["lock", "store.redb", "watermark", "running", "reserve"];
    for file in files {
        assert_eq!(mode(place.file("a/store").join(file)), 0o600, "{file}");
    }
    for file in files {
        let (file, kept) = (place.file("a/store").join(file), place.file("kept"));
        fs::rename(&file, &kept).expect("rename");
        symlink(&kept, &file).expect("link");
        let before = fs::read(&kept).expect("read");
        let error = refusal(block_on(LocalStorage::new(place.file("a/store"))));
        assert!(matches!(&error, StorageError::Path { problem, .. } if problem.contains("regular")), "{error}");
        assert_eq!(fs::read(&kept).expect("read"), before);
        fs::remove_file(&file).expect("remove");
        // Control: without the link, it opens.
        fs::rename(&kept, &file).expect("rename");
        drop(block_on(LocalStorage::new(place.file("a/store"))).expect("open"));
    }
}

#[test]
fn what_comes_in_during_a_sync_shares_the_next_one() {
    const CALLS: u64 = 256;
    let place = Place::new();
    let storage = place.open();
    let before = commits(&place);
    // One after the other, each has a commit of its own.
    for sequence in 0..8 {
        save(&storage, sequence);
    }
    assert_eq!(commits(&place) - before, 8);
    // All at once: the first is committed alone, perhaps, and the others wait for it.
    let before = commits(&place);
    let saves = (0..CALLS).map(|n| storage.save_command(queued(100 + n)));
    for saved in block_on(futures::future::join_all(saves)) {
        saved.expect("save");
    }
    let made = commits(&place) - before;
    assert!(made * 8 <= CALLS, "{made} commits for {CALLS} calls");
    assert_eq!(block_on(storage.load_commands()).expect("load").len(), 8 + 256);
}

#[test]
fn a_big_record_does_not_hold_up_all_that_comes_behind_it() {
    let place = Place::new();
    let storage = place.open();
    let big = |n| {
        let mut big = queued(n);
        big.payload = "x".repeat(5 << 20).into();
        big
    };
    let before = commits(&place);
    let saves = [storage.save_command(big(1)), storage.save_command(big(2)), storage.save_command(big(3))];
    for saved in block_on(futures::future::join_all(saves)) {
        saved.expect("save");
    }
    // Each is more than a transaction carries.
    assert_eq!(commits(&place) - before, 3);
    let mut too_big = queued(4);
    too_big.payload = "x".repeat(65 << 20).into();
    let error = refusal(block_on(storage.save_command(too_big)));
    assert!(matches!(error, StorageError::TooLarge { size, limit } if size > limit), "{error}");
}

#[test]
fn relaxed_changes_wait_for_synced_ones_and_are_seen_at_once() {
    let place = Place::new();
    let storage =
        block_on(LocalStorage::builder().with_linger(Duration::from_secs(3600)).open(&place.0)).expect("open");
    save(&storage, 0);
    let before = commits(&place);
    block_on(async {
        for sequence in 1..=5 {
            storage.apply(vec![Change::Save(Box::new(queued(sequence)))], Durability::Relaxed).await?;
        }
        assert_eq!(commits(&place), before, "they are held back");
        storage.apply(vec![Change::Remove { id: "d0".into(), result: None }], Durability::Synced).await?;
        assert_eq!(commits(&place), before + 1, "all in one");
        storage.apply(vec![Change::Remove { id: "d1".into(), result: None }], Durability::Relaxed).await?;
        // A read sees what was acknowledged.
        assert_eq!(ids(&storage.load_page(None, 9).await?), ["d2", "d3", "d4", "d5"]);
        storage.apply(vec![Change::Remove { id: "d2".into(), result: None }], Durability::Relaxed).await?;
        storage.flush().await?;
        Ok::<_, LaneError>(())
    })
    .expect("works");
    let copy = place.after_crash();
    assert_eq!(ids(&block_on(copy.open().load_page(None, 9)).expect("load")), ["d3", "d4", "d5"]);
}

#[test]
fn without_room_callers_wait_and_may_go() {
    let place = Place::new();
    // Room for one call, and nothing is committed before somebody waits for it.
    let builder = LocalStorage::builder().with_queue(2, usize::MAX).with_linger(Duration::from_secs(3600));
    let storage = block_on(builder.open(&place.0)).expect("open");
    let relaxed = |n| storage.apply(vec![Change::Save(Box::new(queued(n)))], Durability::Relaxed);
    block_on(async {
        relaxed(1).await?;
        relaxed(2).await?;
        let mut third = relaxed(3);
        let mut fourth = relaxed(4);
        assert!(futures::poll!(&mut third).is_pending(), "no room");
        assert!(futures::poll!(&mut fourth).is_pending(), "no room");
        // One that goes leaves its turn to another, and nothing behind.
        drop(third);
        storage.flush().await?;
        fourth.await?;
        assert_eq!(ids(&storage.load_page(None, 9).await?), ["d1", "d2", "d4"]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
    // Room in bytes: one call that is larger than all of it gets in, alone.
    drop(storage);
    let storage = block_on(LocalStorage::builder().with_queue(100, 1).open(&place.0)).expect("open");
    let saves = (10..20).map(|n| storage.save_command(queued(n)));
    for saved in block_on(futures::future::join_all(saves)) {
        saved.expect("save");
    }
    assert_eq!(block_on(storage.load_commands()).expect("load").len(), 13);
}

#[test]
fn an_unclean_end_is_charged_to_what_ran_and_once() {
    let place = Place::new();
    let storage = place.open();
    let long = "x".repeat(200);
    let crashed = block_on(async {
        for command in [queued(1), queued(2), command(3, &long), queued(4)] {
            storage.save_command(command).await?;
        }
        assert!(storage.mark_started("d1").is_none(), "nobody has the store yet");
        assert_eq!(storage.recover().await?, Recovery { next_sequence: 5, ..Recovery::default() });
        assert_eq!(refusal(storage.recover().await), StorageError::InUse);
        storage
            .apply(vec![Change::Attempted { id: "d2".into(), retry_count: 2, at: wall_now() }], Durability::Synced)
            .await?;
        let first = storage.mark_started("d1").expect("a mark");
        _ = storage.mark_started("d2").expect("a mark");
        _ = storage.mark_started(&long).expect("a mark");
        storage.unmark(first);
        Ok::<_, LaneError>(place.after_crash())
    })
    .expect("works");
    drop(storage);
    let charged =
        |commands: &[StoredCommand]| -> Vec<usize> { commands.iter().map(|command| command.crashes.len()).collect() };
    let again = block_on(async {
        // Opened and not taken by a queue: nothing is charged, and nothing is forgotten.
        let looked = crashed.open();
        assert_eq!(charged(&looked.load_page(None, 9).await?), [0, 0, 0, 0]);
        drop(looked);
        let storage = crashed.open();
        let recovery = storage.recover().await?;
        assert!(recovery.unclean);
        assert_eq!(recovery.unclean_ends.len(), 1);
        // What was acknowledged early may have run under these, and is lost.
        assert_eq!(recovery.next_sequence, 5 + crate::storage::LOST_MAX);
        let commands = storage.load_page(None, 9).await?;
        assert_eq!(charged(&commands), [0, 1, 1, 0]);
        assert_eq!(commands[1].crashes, recovery.unclean_ends);
        assert_eq!(commands[1].retry_count, 2);
        _ = storage.mark_started("d4").expect("a mark");
        // Killed once more: the marks of before do not count again.
        Ok::<_, LaneError>(crashed.after_crash())
    })
    .expect("works");
    block_on(async {
        let storage = again.open();
        let recovery = storage.recover().await?;
        assert_eq!((recovery.unclean_ends.len(), recovery.next_sequence), (2, 5 + 2 * crate::storage::LOST_MAX));
        assert_eq!(charged(&storage.load_page(None, 9).await?), [0, 1, 1, 1]);
        // A clean end charges nobody, whatever runs.
        _ = storage.mark_started("d1").expect("a mark");
        storage.close().await?;
        assert!(storage.mark_started("d1").is_none(), "it is closed");
        drop(storage);
        let storage = again.open();
        let recovery = storage.recover().await?;
        assert!(!recovery.unclean);
        assert_eq!((recovery.unclean_ends.len(), recovery.next_sequence), (2, 5 + 2 * crate::storage::LOST_MAX));
        assert_eq!(charged(&storage.load_page(None, 9).await?), [0, 1, 1, 1]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn crashes_and_ends_are_bounded() {
    let mut place = Place::new();
    save(&place.open(), 1);
    for _ in 0..18 {
        let storage = place.open();
        block_on(storage.recover()).expect("recover");
        _ = storage.mark_started("d1").expect("a mark");
        let copy = place.after_crash();
        drop(storage);
        place = copy;
    }
    let storage = place.open();
    assert_eq!(block_on(storage.recover()).expect("recover").unclean_ends.len(), 16);
    assert_eq!(block_on(storage.load_commands()).expect("load")[0].crashes.len(), 16);
    // A command that is stored anew has what it is stored with.
    save(&storage, 1);
    assert!(block_on(storage.load_commands()).expect("load")[0].crashes.is_empty());
}

#[test]
fn marks_are_taken_and_given_back_by_many_threads() {
    let place = Place::new();
    let storage = place.open();
    block_on(storage.recover()).expect("recover");
    let ids: Vec<String> = (0..4).map(|n| format!("d{n}")).collect();
    for n in 0..4 {
        save(&storage, n);
    }
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mark = storage.mark_started(id).expect("a mark");
                    storage.unmark(mark);
                }
            });
        }
    });
    let len = fs::metadata(place.file("running")).expect("there").len();
    assert!(len <= 4 * 64, "{len} bytes of slots for 4 at a time");
    let kept = storage.mark_started("d2").expect("a mark");
    let crashed = place.after_crash();
    storage.unmark(kept);
    let storage = crashed.open();
    block_on(storage.recover()).expect("recover");
    let commands = block_on(storage.load_page(None, 9)).expect("load");
    let charged: Vec<_> = commands.iter().map(|command| command.crashes.len()).collect();
    assert_eq!(charged, [0, 0, 1, 0]);
}

#[test]
fn after_closing_everything_says_so() {
    let place = Place::new();
    let storage = place.open();
    block_on(async {
        storage.apply(vec![Change::Save(Box::new(queued(1)))], Durability::Relaxed).await?;
        storage.close().await?;
        storage.close().await?;
        assert_eq!(refusal(storage.save_command(queued(2)).await), StorageError::Closed);
        assert_eq!(refusal(storage.apply(Vec::new(), Durability::Relaxed).await), StorageError::Closed);
        assert_eq!(refusal(storage.load_commands().await), StorageError::Closed);
        assert_eq!(refusal(storage.probe().await), StorageError::Closed);
        // It is free, although `storage` is still there.
        assert_eq!(ids(&place.open().load_commands().await?), ["d1"]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn who_waits_when_it_is_closed_is_answered() {
    let place = Place::new();
    let builder = LocalStorage::builder().with_queue(1, usize::MAX).with_linger(Duration::from_secs(3600));
    let storage = block_on(builder.open(&place.0)).expect("open");
    block_on(async {
        let relaxed = |n| storage.apply(vec![Change::Save(Box::new(queued(n)))], Durability::Relaxed);
        relaxed(1).await?;
        let mut waits = relaxed(2);
        assert!(futures::poll!(&mut waits).is_pending(), "no room");
        storage.close().await?;
        assert_eq!(refusal(waits.await), StorageError::Closed);
        assert_eq!(ids(&place.open().load_commands().await?), ["d1"]);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn a_store_to_look_at_is_not_changed() {
    let place = Place::new();
    let storage = place.open();
    save(&storage, 1);
    let (killed, files) = (place.after_crash(), |place: &Place| {
        ["store.redb", "watermark", "running", "reserve"].map(|file| fs::read(place.file(file)).expect("read"))
    });
    drop(storage);
    for place in [place, killed] {
        let before = files(&place);
        let reader = block_on(LocalStorage::open_read_only(&place.0)).expect("open");
        let another = block_on(LocalStorage::open_read_only(&place.0)).expect("open");
        block_on(async {
            for reader in [&reader, &another] {
                assert_eq!(ids(&reader.load_commands().await?), ["d1"]);
                assert_eq!(refusal(reader.save_command(queued(2)).await), StorageError::ReadOnly);
                assert_eq!(
                    refusal(reader.apply(vec![Change::RemoveResult { key: "k".into() }], Durability::Relaxed).await),
                    StorageError::ReadOnly
                );
                assert_eq!(refusal(reader.recover().await), StorageError::ReadOnly);
                assert!(reader.mark_started("d1").is_none());
                reader.close().await?;
            }
            Ok::<_, LaneError>(())
        })
        .expect("works");
        assert!(files(&place) == before, "a file was changed");
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let place = Place::new();
    save(&place.open(), 1);
    let mut bytes = fs::read(place.file("watermark")).expect("read");
    // A flipped bit in the format is damage, and no newer version.
    bytes[8] ^= 2;
    fs::write(place.file("watermark"), &bytes).expect("write");
    assert!(matches!(refusal(block_on(LocalStorage::new(&place.0))), StorageError::Damaged { .. }));
    let sum = record::checksum(&[&bytes[..32]]);
    bytes[32..40].copy_from_slice(&sum.to_le_bytes());
    fs::write(place.file("watermark"), &bytes).expect("write");
    let before = fs::read(place.file("store.redb")).expect("read");
    assert_eq!(refusal(block_on(LocalStorage::new(&place.0))), StorageError::FormatTooNew { found: 3, supported: 1 });
    assert_eq!(
        refusal(block_on(LocalStorage::open_read_only(&place.0))),
        StorageError::FormatTooNew { found: 3, supported: 1 }
    );
    assert!(fs::read(place.file("store.redb")).expect("read") == before);
    assert!(fs::read(place.file("watermark")).expect("read") == bytes);
}

#[test]
fn a_store_that_lost_a_commit_or_its_files_is_damaged() {
    let place = Place::new();
    let storage = place.open();
    save(&storage, 1);
    let older = place.after_crash();
    save(&storage, 2);
    let newer = place.after_crash();
    drop(storage);
    let damaged = |place: &Place, expected: &str| {
        let before = fs::read(place.file("store.redb")).unwrap_or_default();
        for error in
            [refusal(block_on(LocalStorage::new(&place.0))), refusal(block_on(LocalStorage::open_read_only(&place.0)))]
        {
            assert!(matches!(&error, StorageError::Damaged { what } if what.contains(expected)), "{error}");
        }
        assert!(fs::read(place.file("store.redb")).unwrap_or_default() == before, "it was touched");
    };
    // The database of before, with the watermark of now.
    let lost = newer.after_crash();
    fs::copy(older.file("store.redb"), lost.file("store.redb")).expect("copy");
    damaged(&lost, "was acknowledged");
    // Control: the watermark of before is no reason to refuse the database of now.
    let behind = newer.after_crash();
    fs::copy(older.file("watermark"), behind.file("watermark")).expect("copy");
    assert_eq!(block_on(behind.open().load_commands()).expect("load").len(), 2);
    let emptied = newer.after_crash();
    fs::write(emptied.file("store.redb"), "").expect("write");
    damaged(&emptied, "empty");
    let cut = newer.after_crash();
    fs::write(cut.file("watermark"), "").expect("write");
    damaged(&cut, "watermark");
    let other = Place::new();
    save(&other.open(), 1);
    let mixed = newer.after_crash();
    fs::copy(other.file("store.redb"), mixed.file("store.redb")).expect("copy");
    damaged(&mixed, "different stores");
}

#[test]
fn a_creation_that_was_cut_short_begins_anew() {
    // Nobody was told of anything yet: the watermark is at 0.
    let place = Place::new();
    fs::create_dir(&place.0).expect("create");
    // How many pages of the watermark were written, and how long the database is.
    let cases = [
        (None, None),
        (None, Some(0)),
        (Some(0), None),
        (Some(1), Some(0)),
        (Some(3), None),
        (Some(3), Some(8)),
        (Some(3), Some(77_824)),
    ];
    for (pages, database) in cases {
        if let Some(pages) = pages {
            let file = Box::new(fs::File::create(place.file("watermark")).expect("create"));
            watermark::Watermark::create(file, [7; 16]).expect("create");
            let mut bytes = fs::read(place.file("watermark")).expect("read");
            bytes[pages * 4096..].fill(0);
            fs::write(place.file("watermark"), bytes).expect("write");
        }
        if let Some(len) = database {
            fs::write(place.file("store.redb"), vec![0; len]).expect("write");
        }
        save(&place.open(), 1);
        assert_eq!(block_on(place.open().load_commands()).expect("load").len(), 1);
        fs::remove_file(place.file("watermark")).expect("remove");
        fs::remove_file(place.file("store.redb")).expect("remove");
    }
}

/// A bit that flips in a file of the store is found, or does nothing: whether the store was closed, or its process killed.
#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let place = Place::new();
    let storage = place.open();
    block_on(storage.recover()).expect("recover");
    for n in 0..30 {
        save(&storage, n);
    }
    let changes = vec![
        Change::GiveUp(Box::new(letter("d3", "first"))),
        Change::Attempted { id: "d5".into(), retry_count: 2, at: wall_now() },
    ];
    block_on(storage.apply(changes, Durability::Synced)).expect("apply");
    let killed = place.after_crash();
    let expected = |storage: &LocalStorage| {
        block_on(async { Ok::<_, LaneError>((storage.load_page(None, 99).await?, storage.load_dead_letters().await?)) })
    };
    let before = expected(&storage).expect("load");
    drop(storage);
    let (mut found, mut harmless) = (0, 0);
    for original in [&place, &killed] {
        for file in ["store.redb", "watermark"] {
            let bytes = fs::read(original.file(file)).expect("read");
            let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            // Spread over what is written, and all of the heads.
            let step = (written.len() / 25).max(1);
            let spread = written.iter().copied().step_by(step);
            let heads = (0..36).chain(64..70).chain(160..184);
            for at in spread.chain(heads) {
                let copy = original.after_crash();
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                fs::write(copy.file(file), &damaged).expect("write");
                match block_on(LocalStorage::new(&copy.0)) {
                    Ok(storage) => {
                        assert!(
                            expected(&storage).is_ok_and(|now| now == before),
                            "{file} at {at}: changed in silence"
                        );
                        harmless += 1;
                    }
                    Err(error) => {
                        let error = refusal::<()>(Err(error));
                        assert!(matches!(error, StorageError::Damaged { .. }), "{file} at {at}: {error}");
                        let untouched = fs::read(copy.file(file)).is_ok_and(|now| now == damaged);
                        assert!(untouched, "{file} at {at}: a damaged store was changed");
                        found += 1;
                    }
                }
            }
        }
    }
    assert!(found > 30 && harmless > 30, "{found} found, {harmless} harmless");
}

/// A directory in which operations fail when they are told to.
#[derive(Debug)]
struct Failing {
    directory: Directory,
    faults: Arc<Faults>,
}

/// What fails from now on, with which error of the system; none: nothing.
#[derive(Debug, Default)]
struct Faults {
    write: Mutex<Option<std::io::ErrorKind>>,
    /// Once.
    sync: Mutex<Option<std::io::ErrorKind>>,
    /// Writes that are still let through.
    left: AtomicU32,
    panic: std::sync::atomic::AtomicBool,
    opening: std::sync::atomic::AtomicBool,
}

impl Faults {
    fn set(&self, write: Option<std::io::ErrorKind>) {
        *self.write.lock().expect("lock") = write;
    }

    fn check_write(&self) -> std::io::Result<()> {
        if self.panic.swap(false, Ordering::SeqCst) {
            panic!("as it was told");
        }
        let Some(kind) = *self.write.lock().expect("lock") else { return Ok(()) };
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| kind.into())
    }
}

impl Disk for Failing {
    fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn database(&self) -> std::io::Result<Box<dyn ::redb::StorageBackend>> {
        if self.faults.opening.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("not now"));
        }
        Ok(Box::new(FailingFile { file: self.directory.database()?, faults: self.faults.clone() }))
    }

    fn small(&self, which: disk::Small) -> std::io::Result<Box<dyn disk::SmallFile>> {
        let file = self.directory.small(which)?;
        Ok(if which == disk::Small::Reserve {
            Box::new(FailingReserve { file, faults: self.faults.clone() })
        } else {
            file
        })
    }

    fn sync_directory(&self) -> std::io::Result<()> {
        self.directory.sync_directory()
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Box<dyn ::redb::StorageBackend>,
    faults: Arc<Faults>,
}

impl ::redb::StorageBackend for FailingFile {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        match self.faults.sync.lock().expect("lock").take() {
            Some(kind) => Err(kind.into()),
            None => self.file.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.faults.check_write()?;
        self.file.write(offset, data)
    }
}

/// As full as the rest.
#[derive(Debug)]
struct FailingReserve {
    file: Box<dyn disk::SmallFile>,
    faults: Arc<Faults>,
}

impl disk::SmallFile for FailingReserve {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        match *self.faults.write.lock().expect("lock") {
            Some(kind) => Err(kind.into()),
            None => self.file.write(offset, data),
        }
    }

    /// Given up, it makes room.
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.faults.left.store(10_000, Ordering::SeqCst);
        self.file.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.file.sync()
    }
}

fn open_failing(place: &Place) -> (LocalStorage, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let (path, given) = (place.0.clone(), faults.clone());
    let disk = move || Ok(Box::new(Failing { directory: Directory::open(&path)?, faults: given }) as Box<dyn Disk>);
    (block_on(LocalStorage::start(disk, LocalStorage::builder(), false)).expect("open"), faults)
}

#[test]
fn with_a_full_disk_commands_end_and_none_is_accepted() {
    let place = Place::new();
    let (storage, faults) = open_failing(&place);
    for n in 0..4 {
        save(&storage, n);
    }
    faults.set(Some(std::io::ErrorKind::StorageFull));
    block_on(async {
        let both = futures::join!(
            storage.save_command(queued(10)),
            storage.apply(vec![Change::Remove { id: "d0".into(), result: None }], Durability::Synced)
        );
        assert!(matches!(refusal(both.0), StorageError::StorageFull(_)));
        both.1?;
        assert_eq!(storage.health(), StorageHealth::Full);
        storage.apply(vec![Change::GiveUp(Box::new(letter("d1", "full")))], Durability::Synced).await?;
        // Acknowledged only when it is made, while there is trouble.
        let relaxed = storage.apply(vec![Change::Save(Box::new(queued(11)))], Durability::Relaxed).await;
        assert!(matches!(refusal(relaxed), StorageError::StorageFull(_)));
        assert_eq!(ids(&storage.load_page(None, 9).await?), ["d2", "d3"]);
        assert!(matches!(refusal(storage.probe().await), StorageError::StorageFull(_)));
        faults.set(None);
        storage.probe().await?;
        assert_eq!(storage.health(), StorageHealth::Working);
        storage.save_command(queued(12)).await?;
        assert_eq!(fs::metadata(place.file("reserve")).expect("there").len(), 1 << 20);
        storage.close().await?;
        drop(storage);
        let storage = place.open();
        assert_eq!(ids(&storage.load_page(None, 9).await?), ["d2", "d3", "d12"]);
        assert_eq!(storage.load_dead_letters().await?.len(), 1);
        Ok::<_, LaneError>(())
    })
    .expect("works");
}

#[test]
fn after_a_failed_sync_the_outcome_is_unknown_and_the_store_goes_on() {
    let place = Place::new();
    let (storage, faults) = open_failing(&place);
    save(&storage, 1);
    block_on(async {
        storage.apply(vec![Change::Save(Box::new(queued(2)))], Durability::Relaxed).await?;
        *faults.sync.lock().expect("lock") = Some(std::io::ErrorKind::Other);
        let error = refusal(storage.save_command(queued(3)).await);
        assert!(matches!(error, StorageError::OutcomeUnknown(_)), "{error}");
        save_and_find(&storage, 4).await
    })
    .expect("works");
}

#[test]
fn after_a_failed_write_nothing_was_stored_and_the_store_goes_on() {
    let place = Place::new();
    let (storage, faults) = open_failing(&place);
    save(&storage, 1);
    block_on(async {
        storage.apply(vec![Change::Save(Box::new(queued(2)))], Durability::Relaxed).await?;
        faults.set(Some(std::io::ErrorKind::Other));
        let error = refusal(storage.save_command(queued(3)).await);
        assert!(matches!(error, StorageError::Io(_) | StorageError::OutcomeUnknown(_)), "{error}");
        // It can not even be opened: everybody hears so at once.
        let error = refusal(storage.save_command(queued(3)).await);
        assert!(matches!(error, StorageError::Failed { .. }), "{error}");
        assert!(matches!(storage.health(), StorageHealth::Failed(StorageError::Failed { .. })));
        faults.set(None);
        storage.probe().await?;
        assert_eq!(storage.health(), StorageHealth::Working);
        save_and_find(&storage, 4).await
    })
    .expect("works");
}

#[test]
fn a_panic_of_the_thread_is_a_failure_and_nobody_hangs() {
    let place = Place::new();
    let (storage, faults) = open_failing(&place);
    save(&storage, 1);
    block_on(async {
        storage.apply(vec![Change::Save(Box::new(queued(2)))], Durability::Relaxed).await?;
        faults.panic.store(true, Ordering::SeqCst);
        let error = refusal(storage.save_command(queued(3)).await);
        assert!(error.to_string().contains("as it was told"), "{error}");
        save_and_find(&storage, 4).await
    })
    .expect("works");
}

/// What was acknowledged before the failure is there: 1, and 2, which nobody waited for.
async fn save_and_find(storage: &LocalStorage, n: u64) -> Result<()> {
    storage.save_command(queued(n)).await?;
    let commands = storage.load_page(None, 9).await?;
    let mut found = ids(&commands);
    found.retain(|id| *id != "d3");
    assert_eq!(found, ["d1", "d2", &format!("d{n}")]);
    Ok(())
}

#[test]
fn any_runtime_will_do() {
    let place = Place::new();
    let storage = Arc::new(place.open());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let storage = storage.clone();
            std::thread::spawn(move || {
                for n in 0..25 {
                    save(&storage, thread * 100 + n);
                    block_on(storage.remove_command(&format!("d{}", thread * 100 + n))).expect("remove");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("join");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(async {
        assert!(storage.load_commands().await.expect("load").is_empty());
        assert_eq!(storage.health(), StorageHealth::Working);
    });
}
