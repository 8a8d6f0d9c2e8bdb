//! What is stored: data only, in serde's form, which only grows. What a version does not know it ignores; what an older one
//! did not write has a default.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::wall_now;

/// Names a stored command: the text of its [`CommandId`](crate::CommandId), where a queue has stored it.
pub type StoredCommandId = String;

/// A command that was accepted and has not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredCommand {
    /// Its id, the same in every attempt and after every restart.
    pub id: StoredCommandId,
    /// What [`Command::command_type`](crate::Command::command_type) said: finds the constructor at recovery.
    pub command_type: String,
    /// The lane it was submitted to.
    pub lane_id: String,
    /// What it is to do; null if it could not say.
    pub payload: Value,
    /// Attempts made.
    pub retry_count: u32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When its last attempt ended; none if there was none.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// Its place among all commands of the store: ascending in the order of acceptance.
    #[serde(default)]
    pub sequence: u64,
    /// The version of `payload`: [`DurableCommand::VERSION`](crate::DurableCommand::VERSION).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub payload_version: u32,
    /// Whether it can be made again from `payload`. If not, it is for inspection, and parked at recovery.
    #[serde(default)]
    pub recoverable: bool,
    /// How it was submitted.
    #[serde(default, skip_serializing_if = "StoredTerms::is_default")]
    pub terms: StoredTerms,
    /// Processes that ended uncleanly while it ran: when that was noticed, the oldest first. At most the last 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crashes: Vec<DateTime<Utc>>,
    /// How often it was replayed from a dead letter.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replays: u32,
}

impl StoredCommand {
    /// A command without attempts, accepted now, that is for inspection only until `recoverable` is set.
    #[must_use]
    pub fn new(
        id: impl Into<StoredCommandId>,
        command_type: impl Into<String>,
        lane_id: impl Into<String>,
        payload: Value,
    ) -> Self {
        Self {
            id: id.into(),
            command_type: command_type.into(),
            lane_id: lane_id.into(),
            payload,
            retry_count: 0,
            created_at: wall_now(),
            last_attempt_at: None,
            sequence: 0,
            payload_version: 1,
            recoverable: false,
            terms: StoredTerms::default(),
            crashes: Vec::new(),
            replays: 0,
        }
    }
}

/// How a command was submitted, where that differs from its lane's settings. Points in time are by the wall clock, so that
/// they mean the same after a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StoredTerms {
    /// [`SubmitOptions::priority`](crate::SubmitOptions::priority).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// [`SubmitOptions::key`](crate::SubmitOptions::key): a text, or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// [`SubmitOptions::cost`](crate::SubmitOptions::cost).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u32>,
    /// [`SubmitOptions::bytes`](crate::SubmitOptions::bytes).
    #[serde(skip_serializing_if = "is_none_of")]
    pub bytes: usize,
    /// It starts no earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    /// It starts no later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_by: Option<DateTime<Utc>>,
    /// It has ended by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_by: Option<DateTime<Utc>>,
    /// Of an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Once its queue stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<Duration>,
    /// Its tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// [`SubmitOptions::idempotency_key`](crate::SubmitOptions::idempotency_key).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

impl StoredTerms {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What is known of a command that has ended well, under its idempotency key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredResult {
    /// The key.
    pub key: String,
    /// Of type and payload: another one under the same key is a conflict.
    pub fingerprint: String,
    /// The command.
    pub command_id: StoredCommandId,
    /// What it returned.
    pub value: Value,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
}

impl StoredResult {
    /// The result of a command that ended now.
    #[must_use]
    pub fn new(
        key: impl Into<String>,
        fingerprint: impl Into<String>,
        command_id: impl Into<String>,
        value: Value,
    ) -> Self {
        Self {
            key: key.into(),
            fingerprint: fingerprint.into(),
            command_id: command_id.into(),
            value,
            completed_at: wall_now(),
        }
    }
}

/// What is kept of a command that was given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredDeadLetter {
    /// Which command.
    pub command_id: StoredCommandId,
    /// Its type.
    pub command_type: String,
    /// The lane it was submitted to.
    pub lane_id: String,
    /// Why it was given up.
    pub error: String,
    /// Attempts made.
    pub attempts: u32,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// The rest of a [`DeadLetter`](crate::DeadLetter) of this version, and the command to replay: null in a letter of the
    /// seed's fields.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

impl StoredDeadLetter {
    /// A letter about a command that was given up now, after one attempt.
    #[must_use]
    pub fn new(
        command_id: impl Into<StoredCommandId>,
        command_type: impl Into<String>,
        lane_id: impl Into<String>,
        error: impl Into<String>,
    ) -> Self {
        Self {
            command_id: command_id.into(),
            command_type: command_type.into(),
            lane_id: lane_id.into(),
            error: error.into(),
            attempts: 1,
            failed_at: wall_now(),
            details: Value::Null,
        }
    }
}

const fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_none_of(number: &usize) -> bool {
    *number == 0
}
