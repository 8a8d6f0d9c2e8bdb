//! A command on its way between processes, and what is asked for it.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::clock::wall_now;
use crate::error::{DistributedError, Result};
use crate::executor::LOWEST_PRIORITY;
use crate::queue::{DurableCommand, PartitionId, Partitioner, Priority};

/// Names a handle of a queue among all that share it.
pub type WorkerId = String;

/// The longest id, lane or idempotency key, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The longest command type, in bytes.
const TYPE_BYTES_MAX: usize = 256;
/// The longest time that anything may be asked for: what servers can still add to their clocks.
const TIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A command as data, as it goes from who enqueues it to who runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandEnvelope {
    /// Names the command: unique in the queue, the same in every delivery. 1 to 256 bytes.
    pub id: String,
    /// What makes it again, at the worker. 1 to 256 bytes.
    pub command_type: String,
    /// The lane in which it runs. 1 to 256 bytes.
    pub lane_id: String,
    /// The partition it goes to; [`CommandEnvelope::UNROUTED`] where the queue decides.
    pub partition_id: PartitionId,
    /// What it is to do.
    pub payload: Value,
    /// Attempts that have failed.
    pub retry_count: u32,
    /// When it was made, by the clock of who made it. For display.
    pub created_at: DateTime<Utc>,
}

impl CommandEnvelope {
    /// The partition of a command that goes where the queue's [partitioner](crate::Partitioner) says.
    pub const UNROUTED: PartitionId = PartitionId::MAX;

    /// A command with an id of its own, made now, that goes where the queue says.
    #[must_use]
    pub fn new(command_type: impl Into<String>, lane_id: impl Into<String>, payload: Value) -> Self {
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            command_type: command_type.into(),
            lane_id: lane_id.into(),
            partition_id: Self::UNROUTED,
            payload,
            retry_count: 0,
            created_at: wall_now(),
        }
    }

    /// As [`CommandEnvelope::new`], of a command that knows how to be data. Enqueue it with
    /// [`EnqueueOptions::payload_version`] where its [`VERSION`](DurableCommand::VERSION) is not 1.
    ///
    /// # Errors
    ///
    /// It can not be written as JSON.
    pub fn of<C: DurableCommand>(lane_id: impl Into<String>, command: &C) -> Result<Self> {
        Ok(Self::new(C::TYPE, lane_id, command.encode()?))
    }

    /// Names what it is to do: type, lane and payload. Two that have the same are the same work.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let Self { command_type, lane_id, payload, .. } = self;
        let named = format!("{}:{command_type}{}:{lane_id}{payload}", command_type.len(), lane_id.len());
        format!("{:032x}", XxHash3_128::oneshot(named.as_bytes()))
    }

    /// Whether a queue may take it; `partitions` is how many there are.
    ///
    /// # Errors
    ///
    /// [`DistributedError::InvalidEnvelope`] or [`DistributedError::NoSuchPartition`].
    pub fn check(&self, partitions: usize) -> Result<(), DistributedError> {
        let fields = [
            ("id", &self.id, NAME_BYTES_MAX),
            ("command_type", &self.command_type, TYPE_BYTES_MAX),
            ("lane_id", &self.lane_id, NAME_BYTES_MAX),
        ];
        for (field, text, max) in fields {
            check_name(field, text, max)?;
        }
        if self.partition_id == Self::UNROUTED { Ok(()) } else { check_partition(self.partition_id, partitions) }
    }

    /// Gives it the partition that it goes to, if it and its terms may go into a queue of so many.
    pub(crate) fn route(
        &mut self,
        options: &EnqueueOptions,
        partitions: usize,
        partitioner: &dyn Partitioner,
    ) -> Result<(), DistributedError> {
        self.check(partitions)?;
        options.check()?;
        if self.partition_id == Self::UNROUTED {
            self.partition_id = partitioner.partition_of(options.partition_key(self), partitions) % partitions;
        }
        Ok(())
    }
}

/// Whether there is such a partition.
pub(crate) fn check_partition(partition: PartitionId, partitions: usize) -> Result<(), DistributedError> {
    if partition < partitions { Ok(()) } else { Err(DistributedError::NoSuchPartition { partition, partitions }) }
}

fn check_name(field: &str, text: &str, max: usize) -> Result<(), DistributedError> {
    let problem = match text.len() {
        0 => "is empty: give it a name".to_owned(),
        len if len > max => format!("has {len} bytes: use at most {max}"),
        _ if text.chars().any(char::is_control) => "has control characters: leave them out".to_owned(),
        _ => return Ok(()),
    };
    Err(DistributedError::InvalidEnvelope { field: field.to_owned(), problem })
}

/// How a command has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Which.
    pub command_id: String,
    /// What it has resulted in, or why it has failed.
    pub result: std::result::Result<Value, String>,
    /// Who ran it.
    pub worker_id: WorkerId,
    /// How long its last attempt took, in milliseconds.
    pub duration_ms: u64,
}

/// On what terms a command is enqueued. What is not set, the queue decides.
///
/// ```
/// use std::time::Duration;
/// use corelane::EnqueueOptions;
///
/// let options = EnqueueOptions::new().priority(0).delay(Duration::from_secs(5)).idempotency_key("order-17");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
#[must_use]
pub struct EnqueueOptions {
    /// See [`EnqueueOptions::priority`].
    pub priority: Option<Priority>,
    /// See [`EnqueueOptions::key`].
    pub key: Option<String>,
    /// See [`EnqueueOptions::delay`].
    pub delay: Option<Duration>,
    /// See [`EnqueueOptions::expires_after`].
    pub expires_after: Option<Duration>,
    /// See [`EnqueueOptions::idempotency_key`].
    pub idempotency_key: Option<String>,
    /// See [`EnqueueOptions::max_deliveries`].
    pub max_deliveries: Option<u32>,
    /// See [`EnqueueOptions::payload_version`].
    pub payload_version: Option<u32>,
    /// See [`EnqueueOptions::header`].
    pub headers: BTreeMap<String, String>,
    /// See [`EnqueueOptions::keep_result`].
    pub keep_result: Option<Duration>,
}

impl EnqueueOptions {
    /// The priority of commands that are given none: in the middle.
    pub const DEFAULT_PRIORITY: Priority = 32;

    /// No terms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes before commands of its lane and partition with a larger number. 0 is the best, 63 the worst. Default: 32.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// What the queue's partitioner goes by: commands of one key go to one partition, where it is that of
    /// [`PartitionConfig::hash`](crate::PartitionConfig::hash). Default: the command's type.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Is ready no earlier than after this time, by the clock of the queue's server, from when that has got it. Default: zero.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Is given up, as [`DeadReason::Expired`](crate::DeadReason::Expired), if it is not leased when this time is over, by the same
    /// clock, or is given back after that. Default: never.
    pub fn expires_after(mut self, after: Duration) -> Self {
        self.expires_after = Some(after);
        self
    }

    /// Says that this is the same work as any other command that was enqueued with this key: the second one is not, and its
    /// [receipt](Receipt) names the first. For as long as that is in the queue, and for the queue's window after it has ended. If
    /// it was given up, the key is free. 1 to 256 bytes. Default: none.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Is given up, as [`DeadReason::TooManyDeliveries`](crate::DeadReason::TooManyDeliveries), when it was delivered so often
    /// and would be again: it kills its workers. Released ones are not counted. At least 1. Default:
    /// [`DEFAULT_MAX_DELIVERIES`](crate::DEFAULT_MAX_DELIVERIES).
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        self.max_deliveries = Some(deliveries);
        self
    }

    /// The [version](DurableCommand::VERSION) of the payload. Default: 1.
    pub fn payload_version(mut self, version: u32) -> Self {
        self.payload_version = Some(version);
        self
    }

    /// A word that goes along with the command: `traceparent`, for one. Names and values count to the size of the command.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Keeps how the command ends for this time after that, for
    /// [`DistributedQueue::result`](crate::DistributedQueue::result). Default: not at all.
    pub fn keep_result(mut self, time: Duration) -> Self {
        self.keep_result = Some(time);
        self
    }

    /// What the queue's partitioner goes by.
    #[must_use]
    pub fn partition_key<'a>(&'a self, envelope: &'a CommandEnvelope) -> &'a str {
        self.key.as_deref().unwrap_or(&envelope.command_type)
    }

    /// The first term that is set, by its name; none if there is none that a queue has to keep.
    #[must_use]
    pub fn first_term(&self) -> Option<&'static str> {
        let terms = [
            ("priority", self.priority.is_some()),
            ("delay", self.delay.is_some_and(|delay| !delay.is_zero())),
            ("expires_after", self.expires_after.is_some()),
            ("idempotency_key", self.idempotency_key.is_some()),
            ("max_deliveries", self.max_deliveries.is_some()),
            ("payload_version", self.payload_version.is_some_and(|version| version != 1)),
            ("headers", !self.headers.is_empty()),
            ("keep_result", self.keep_result.is_some()),
        ];
        terms.into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    }

    /// Whether they make sense.
    ///
    /// # Errors
    ///
    /// [`DistributedError::InvalidEnvelope`], which names the term.
    pub fn check(&self) -> Result<(), DistributedError> {
        let invalid =
            |field: &str, problem: String| Err(DistributedError::InvalidEnvelope { field: field.to_owned(), problem });
        if let Some(priority) = self.priority.filter(|priority| *priority > LOWEST_PRIORITY) {
            return invalid("priority", format!("is {priority}: use 0 (best) to {LOWEST_PRIORITY}"));
        }
        if self.max_deliveries == Some(0) {
            return invalid("max_deliveries", "is 0: use at least 1".to_owned());
        }
        if let Some(key) = &self.idempotency_key {
            check_name("idempotency_key", key, NAME_BYTES_MAX)?;
        }
        let times = [("delay", self.delay), ("expires_after", self.expires_after), ("keep_result", self.keep_result)];
        for (field, time) in times {
            if let Some(time) = time.filter(|time| *time > TIME_MAX) {
                return invalid(field, format!("is {time:?}: use at most ten years"));
            }
        }
        Ok(())
    }
}

/// Says that a command was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The command's id; of a duplicate, that of the first one.
    pub command_id: String,
    /// It was enqueued before, under the same [idempotency key](EnqueueOptions::idempotency_key): nothing was added.
    pub duplicate: bool,
}

impl Receipt {
    /// For queues of your own.
    #[must_use]
    pub fn new(command_id: impl Into<String>, duplicate: bool) -> Self {
        Self { command_id: command_id.into(), duplicate }
    }
}
