//! What is stored, as JSON: with a version, so that another one is seen and left as it is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock::plus;
use crate::distributed::{
    CommandEnvelope, CommandResult, DEFAULT_MAX_DELIVERIES, DeadReason, EnqueueOptions, WorkerId,
};
use crate::queue::{LaneId, PartitionId, Priority};

/// The version of all that is stored.
pub(super) const FORMAT: u32 = 1;

/// What the queue is made of: one record, changed by comparing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Registry {
    pub(super) format: u32,
    pub(super) partitions: usize,
    /// Each stream of commands by its number.
    pub(super) streams: Vec<Place>,
}

/// A pair of lane and priority: each has a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) lane: LaneId,
    pub(super) priority: Priority,
}

/// A command as it lies in its stream: never changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) format: u32,
    /// Of the state from which it was published.
    pub(super) revision: u64,
    pub(super) envelope: CommandEnvelope,
    pub(super) options: EnqueueOptions,
}

impl Stored {
    pub(super) fn new(envelope: CommandEnvelope, options: EnqueueOptions) -> Self {
        Self { format: FORMAT, revision: 0, envelope, options }
    }
}

/// The state of a command: the truth about it. Changed by comparing alone: who has read another state than the last one changes
/// nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) format: u32,
    /// The command, without its payload.
    pub(super) head: CommandEnvelope,
    pub(super) options: EnqueueOptions,
    pub(super) fingerprint: String,
    /// Of the call that enqueued it: who finds its own has not enqueued it twice.
    pub(super) call: String,
    /// The number of its stream.
    pub(super) stream: usize,
    /// How often it was replayed.
    pub(super) replays: u32,
    /// Of the last lease; 0: none. Each is higher than the revision from which the lease was written: so it is also higher than
    /// those of any command before that had this id.
    pub(super) fence: u64,
    /// The last lease that was ended by who had it; 0: none.
    pub(super) settled: u64,
    pub(super) deliveries: u32,
    pub(super) standing: Standing,
}

/// Where a command stands. Times are the server's, in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub(super) enum Standing {
    /// Accepted, or about to be: its message may not be in its stream yet.
    New,
    Ready,
    /// Not ready before.
    Waiting {
        until: i64,
    },
    Leased {
        until: i64,
        worker: WorkerId,
    },
    /// Given up. Its letter may not be written yet.
    Dead {
        reason: DeadReason,
        result: Option<Box<CommandResult>>,
    },
    /// Ended well. What remembers it may not be written yet.
    Ended {
        result: Option<Box<CommandResult>>,
    },
    /// Its letter was discarded.
    Gone,
}

impl Entry {
    pub(super) fn new(stored: &Stored, stream: usize, call: &str) -> Self {
        let CommandEnvelope { id, command_type, lane_id, partition_id, retry_count, created_at, .. } = &stored.envelope;
        let head = CommandEnvelope {
            id: id.clone(),
            command_type: command_type.clone(),
            lane_id: lane_id.clone(),
            partition_id: *partition_id,
            payload: Value::Null,
            retry_count: *retry_count,
            created_at: *created_at,
        };
        Self {
            format: FORMAT,
            head,
            options: stored.options.clone(),
            fingerprint: stored.envelope.fingerprint(),
            call: call.to_owned(),
            stream,
            replays: 0,
            fence: 0,
            settled: 0,
            deliveries: 0,
            standing: Standing::New,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.head.id
    }

    pub(super) fn partition(&self) -> PartitionId {
        self.head.partition_id
    }

    pub(super) fn priority(&self) -> Priority {
        self.options.priority.unwrap_or(EnqueueOptions::DEFAULT_PRIORITY)
    }

    /// When it expires, if its message was published at this time.
    pub(super) fn expires(&self, published: i64) -> Option<i64> {
        // A replayed command has no such end any more.
        self.options.expires_after.filter(|_| self.replays == 0).map(|after| plus(published, after))
    }

    pub(super) fn max_deliveries(&self) -> u32 {
        self.options.max_deliveries.unwrap_or(DEFAULT_MAX_DELIVERIES)
    }

    /// Another state of it.
    pub(super) fn now(&self, standing: Standing) -> Self {
        Self { standing, ..self.clone() }
    }

    /// As it was enqueued, with this payload.
    pub(super) fn stored(&self, payload: Value) -> Stored {
        Stored::new(CommandEnvelope { payload, ..self.head.clone() }, self.options.clone())
    }
}

/// Who has an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyed {
    pub(super) command_id: String,
    pub(super) fingerprint: String,
}

/// A command that has ended, for who asks again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) fence: u64,
    pub(super) fingerprint: String,
}

/// A result that is kept until a time of the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) until: i64,
    pub(super) result: CommandResult,
}
