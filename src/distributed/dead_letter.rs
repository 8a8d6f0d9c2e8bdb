//! What was given up.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::envelope::CommandEnvelope;
use crate::queue::Priority;

/// Why a command was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "error")]
#[non_exhaustive]
pub enum DeadReason {
    /// It has failed, and was not to be tried again.
    Failed(String),
    /// Its worker can not make it again of its payload.
    Undecodable(String),
    /// Nobody has taken it in time.
    Expired,
    /// It was delivered as often as it may be, and never ended: its workers died, or lost it.
    TooManyDeliveries,
}

impl DeadReason {
    /// What to say of it.
    #[must_use]
    pub fn error(&self) -> &str {
        match self {
            Self::Failed(error) | Self::Undecodable(error) => error,
            Self::Expired => "nobody has taken it in time",
            Self::TooManyDeliveries => "it was delivered as often as it may be, and has not ended",
        }
    }
}

/// A command that was given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteDeadLetter {
    /// The command.
    pub envelope: CommandEnvelope,
    /// Why.
    pub reason: DeadReason,
    /// How often it was delivered.
    pub deliveries: u32,
    /// When, by the clock of the queue's server.
    pub failed_at: DateTime<Utc>,
    /// As it was enqueued.
    pub priority: Priority,
    /// As it was enqueued.
    pub payload_version: u32,
    /// As it was enqueued.
    pub headers: BTreeMap<String, String>,
}

impl RemoteDeadLetter {
    /// For queues of your own: with the default priority, version 1 and no headers.
    #[must_use]
    pub fn new(envelope: CommandEnvelope, reason: DeadReason, deliveries: u32, failed_at: DateTime<Utc>) -> Self {
        Self {
            envelope,
            reason,
            deliveries,
            failed_at,
            priority: super::EnqueueOptions::DEFAULT_PRIORITY,
            payload_version: 1,
            headers: BTreeMap::new(),
        }
    }
}

/// Which dead letters to give.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct DeadPage {
    /// Those behind the letter of this command; none: from the oldest on.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

impl DeadPage {
    /// The oldest ones.
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit }
    }

    /// Those behind the letter of this command.
    pub fn after(mut self, command_id: impl Into<String>) -> Self {
        self.after = Some(command_id.into());
        self
    }
}
