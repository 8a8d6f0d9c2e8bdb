//! Dead letters as they are stored, and what keeps the store's letters those of the queue.

use std::sync::{Arc, Weak};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::Store;
use crate::clock::wall_now;
use crate::error::{LaneError, Result};
use crate::id::CommandId;
use crate::queue::command_queue::CommandQueue;
use crate::queue::dead_letter::{AttemptError, DeadLetter, DeadLetterReason, Replay};
use crate::storage::{Change, StoredDeadLetter};

/// [`StoredDeadLetter::details`]: what the seed's letters do not have.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_version: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<AttemptError>,
    #[serde(skip_serializing_if = "is_zero")]
    errors_dropped: u32,
    accepted_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "is_zero")]
    replays: u32,
    reason: Option<DeadLetterReason>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a letter is stored.
#[derive(Clone, Debug)]
pub(in crate::queue) struct StoredAs {
    pub(in crate::queue) id: Arc<str>,
    /// Of a command that can be made again.
    pub(in crate::queue) payload_version: Option<u32>,
    /// Where: a letter may move to the queue of another store.
    store: Weak<Store>,
}

impl StoredAs {
    pub(super) fn new(id: impl Into<Arc<str>>, payload_version: Option<u32>, store: &Arc<Store>) -> Self {
        Self { id: id.into(), payload_version, store: Arc::downgrade(store) }
    }

    /// Whether this store has it.
    pub(in crate::queue) fn is_in(&self, store: &Weak<Store>) -> bool {
        Weak::ptr_eq(&self.store, store)
    }
}

/// A letter for the store.
pub(super) fn to_stored(letter: &DeadLetter) -> StoredDeadLetter {
    let details = Details {
        payload: letter.payload.clone(),
        payload_version: letter.stored.as_ref().and_then(|stored| stored.payload_version),
        errors: letter.errors.clone(),
        errors_dropped: letter.errors_dropped,
        accepted_at: Some(letter.accepted_at),
        replays: letter.replays,
        reason: Some(letter.reason),
        tags: letter.tags.clone(),
    };
    let id = letter.stored.as_ref().map_or_else(|| letter.command_id.to_string(), |stored| stored.id.to_string());
    let mut stored = StoredDeadLetter::new(id, &*letter.command_type, &*letter.lane_id, &*letter.error);
    stored.attempts = letter.attempts;
    stored.failed_at = letter.failed_at;
    // Strings, numbers and times: they have a form.
    stored.details = serde_json::to_value(details).unwrap_or_default();
    stored
}

/// A letter of the store, as the queue keeps it.
pub(super) fn from_stored(stored: StoredDeadLetter, store: &Arc<Store>) -> DeadLetter {
    let StoredDeadLetter { command_id, command_type, lane_id, error, attempts, failed_at, details } = stored;
    // Of another version, or made by hand: what can not be read stays where it is, in the store.
    let details: Details = serde_json::from_value(details).unwrap_or_default();
    let can_be_made = store.registry.knows(&command_type);
    let replay = details
        .payload_version
        .filter(|_| can_be_made)
        .map(|version| -> Arc<dyn Replay> { Arc::new(FromStore { store: Arc::downgrade(store), version }) });
    let mut letter = DeadLetter::new(command_type, lane_id, error);
    letter.command_id = CommandId::parse(&command_id).unwrap_or(letter.command_id);
    letter.attempts = attempts;
    letter.failed_at = failed_at;
    letter.payload = details.payload;
    letter.errors = details.errors;
    letter.errors_dropped = details.errors_dropped;
    letter.accepted_at = details.accepted_at.unwrap_or(failed_at);
    letter.replays = details.replays;
    letter.reason = details.reason.unwrap_or(DeadLetterReason::Failed);
    letter.tags = details.tags;
    letter.replay = replay;
    letter.stored = Some(StoredAs::new(command_id, details.payload_version, store));
    letter
}

/// A letter about a command that the store has and that is given up without having been made.
pub(super) fn unmade(
    command: &crate::storage::StoredCommand,
    reason: DeadLetterReason,
    error: String,
    store: &Arc<Store>,
) -> DeadLetter {
    let mut letter = DeadLetter::new(&*command.command_type, &*command.lane_id, error);
    letter.command_id = CommandId::parse(&command.id).unwrap_or(letter.command_id);
    letter.attempts = command.retry_count;
    letter.failed_at = wall_now();
    letter.payload = Some(command.payload.clone()).filter(|payload| !payload.is_null());
    letter.errors = Vec::new();
    letter.accepted_at = command.created_at;
    letter.replays = command.replays;
    letter.reason = reason;
    letter.tags.clone_from(&command.terms.tags);
    let payload_version = command.recoverable.then_some(command.payload_version);
    letter.stored = Some(StoredAs::new(command.id.as_str(), payload_version, store));
    letter
}

/// Makes the command of a stored letter again.
struct FromStore {
    store: Weak<Store>,
    version: u32,
}

impl Replay for FromStore {
    fn submit(self: Arc<Self>, queue: &CommandQueue, letter: &DeadLetter) -> Result<()> {
        let gone = || LaneError::QueueError("the store of this letter is gone".into());
        let store = self.store.upgrade().ok_or_else(gone)?;
        let payload = letter.payload.clone().unwrap_or_default();
        let made = store.registry.make(&letter.command_type, self.version, payload);
        let command = made.map_err(|unmade| LaneError::QueueError(unmade.to_string()))?;
        command.replay(queue, letter)
    }
}

/// What of a queue of dead letters is stored: told of letters that go and that come back. Nothing is waited for.
pub(in crate::queue) struct LetterStore(Weak<Store>);

impl LetterStore {
    pub(super) fn new(store: &Arc<Store>) -> Self {
        Self(Arc::downgrade(store))
    }

    fn stored_here<'a>(&self, letter: &'a DeadLetter) -> Option<&'a StoredAs> {
        letter.stored.as_ref().filter(|stored| stored.is_in(&self.0))
    }

    pub(in crate::queue) fn gone(&self, letter: &DeadLetter) {
        if let (Some(store), Some(stored)) = (self.0.upgrade(), self.stored_here(letter)) {
            store.later_detached(Change::RemoveDeadLetters { command_id: stored.id.to_string() });
        }
    }

    pub(in crate::queue) fn back(&self, letter: &DeadLetter) {
        if let (Some(store), Some(stored)) = (self.0.upgrade(), self.stored_here(letter)) {
            store.later_detached(Change::RemoveDeadLetters { command_id: stored.id.to_string() });
            store.later_detached(Change::SaveDeadLetter(Box::new(to_stored(letter))));
        }
    }
}
