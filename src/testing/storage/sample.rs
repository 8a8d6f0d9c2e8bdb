//! Commands, letters and results to store.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::storage::{Change, StoredCommand, StoredDeadLetter, StoredResult};

/// Some moment, told apart by a number: the same in every run, with all digits that there are.
pub(super) fn moment(number: u32) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + i64::from(number), 123_456_789).unwrap_or_default()
}

/// A command in which nothing is set that need not be.
pub(super) fn command(id: &str, sequence: u64) -> StoredCommand {
    let mut command = StoredCommand::new(id, "type", "lane", Value::Null);
    (command.sequence, command.created_at) = (sequence, moment(0));
    command
}

/// The same with a payload that tells it apart.
pub(super) fn versioned(id: &str, sequence: u64, version: u32) -> StoredCommand {
    StoredCommand { payload: json!({ "version": version }), ..command(id, sequence) }
}

/// A command in which everything is set.
pub(super) fn full_command(id: &str, sequence: u64) -> StoredCommand {
    let mut command = StoredCommand::new(id, "télé\u{0}type/\"", "a lane\n", json!({ "to": ["whom", 7, null] }));
    (command.sequence, command.created_at, command.last_attempt_at) = (sequence, moment(1), Some(moment(2)));
    (command.retry_count, command.payload_version, command.recoverable) = (u32::MAX, 3, true);
    command.crashes = (0..16).map(moment).collect();
    command.replays = 2;
    let terms = &mut command.terms;
    (terms.priority, terms.key, terms.cost, terms.bytes) = (Some(63), Some(json!("kéy")), Some(u32::MAX), usize::MAX);
    (terms.not_before, terms.start_by, terms.end_by) = (Some(moment(3)), Some(moment(4)), Some(moment(5)));
    (terms.timeout, terms.drain_timeout) = (Some(Duration::MAX), Some(Duration::from_nanos(1)));
    terms.tags = vec![String::new(), "tag".into(), "tag".into()];
    terms.idempotency_key = Some("order-17".into());
    command
}

/// A letter about a command, told apart by a number.
pub(super) fn letter(id: &str, number: u32) -> StoredDeadLetter {
    let mut letter = StoredDeadLetter::new(id, "type", "lane", format!("error {number}"));
    (letter.attempts, letter.failed_at) = (number, moment(number));
    if number % 2 == 1 {
        letter.details = json!({ "errors": ["a", "b"], "command": { "id": id } });
    }
    letter
}

/// A result under a key, told apart by a number.
pub(super) fn result(key: &str, number: u32) -> StoredResult {
    let mut result = StoredResult::new(key, format!("print {number}"), format!("d{number}"), json!({ "is": number }));
    result.completed_at = moment(number);
    result
}

pub(super) fn save(command: StoredCommand) -> Change {
    Change::Save(Box::new(command))
}

pub(super) fn remove(id: &str) -> Change {
    Change::Remove { id: id.into(), result: None }
}

pub(super) fn remove_with(id: &str, result: StoredResult) -> Change {
    Change::Remove { id: id.into(), result: Some(Box::new(result)) }
}

pub(super) fn give_up(letter: StoredDeadLetter) -> Change {
    Change::GiveUp(Box::new(letter))
}

pub(super) fn attempted(id: &str, retry_count: u32) -> Change {
    Change::Attempted { id: id.into(), retry_count, at: moment(retry_count) }
}

/// Texts that a store may take for one another, for nothing, or for something of its own.
pub(super) fn odd_texts() -> Vec<String> {
    let texts = [
        "",
        " ",
        "  ",
        "\t",
        "\n",
        "a",
        "A",
        "a ",
        " a",
        "aa",
        "d",
        "d0",
        "d00",
        "d1",
        "d01",
        "d10",
        "d1 ",
        "D1",
        "d-1",
        "d+1",
        "c1",
        "1",
        "0",
        "d18446744073709551615",
        "d18446744073709551616",
        ".",
        "..",
        "../d1",
        "/",
        "/d1",
        "a/b",
        "a\\b",
        "%",
        "%61",
        "_",
        "?",
        "*",
        "'",
        "\"",
        "null",
        "{}",
        "\u{0}",
        "a\u{0}",
        "a\u{0}b",
        "\u{1}",
        "\u{7f}",
        "é",
        "e\u{301}",
        "É",
        "ß",
        "ss",
        "\u{fffd}",
        "\u{feff}",
        "\u{2028}",
        "😀",
        "\u{10ffff}",
    ];
    let long = ["x".repeat(100), "x".repeat(99) + "y"];
    texts.into_iter().map(str::to_owned).chain(long).collect()
}

/// JSON that is easily changed by writing and reading it.
pub(super) fn odd_payloads() -> Vec<Value> {
    let nested = (0..30).fold(json!(1.5), |inside, _| json!({ "a": [inside] }));
    let by_odd_keys: Map<String, Value> = odd_texts().into_iter().map(|key| (key.clone(), key.into())).collect();
    vec![
        Value::Null,
        json!(false),
        json!(""),
        json!([]),
        json!({}),
        json!([[], {}, [null], { "": null }]),
        json!([0, -0.0, 0.0, 1, 1.0, -1, -1.0]),
        json!([u64::MAX, u64::MAX - 1, i64::MIN, i64::MIN + 1, i64::MAX, (1_u64 << 53) + 1]),
        json!([
            1e-7,
            0.1,
            1.0 / 3.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            f64::EPSILON,
            5e-324,
            1e300,
            9007199254740993.0
        ]),
        nested,
        by_odd_keys.into(),
        odd_texts().into(),
    ]
}
