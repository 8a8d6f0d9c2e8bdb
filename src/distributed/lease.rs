//! The right to run a command: given for a time, known by its token.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::DEFAULT_LEASE;
use super::envelope::{CommandEnvelope, EnqueueOptions};
use crate::error::{DistributedError, LaneError, Result};
use crate::limit::rate::RateLimitConfig;
use crate::queue::{LaneId, PartitionId, Priority};

/// By what a lease is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseToken {
    command_id: String,
    partition: PartitionId,
    fence: u64,
    handle: String,
}

impl LeaseToken {
    /// For queues of your own. `handle` is what the queue itself needs to find the lease again.
    #[must_use]
    pub fn new(command_id: impl Into<String>, partition: PartitionId, fence: u64, handle: impl Into<String>) -> Self {
        Self { command_id: command_id.into(), partition, fence, handle: handle.into() }
    }

    /// The command that is leased.
    #[must_use]
    pub fn command_id(&self) -> &str {
        &self.command_id
    }

    /// Where it lies.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Higher than in every lease of this command before: let what must happen once refuse lower ones than it has seen. 0 where
    /// the queue has no leases.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// What the queue finds the lease by.
    #[must_use]
    pub fn handle(&self) -> &str {
        &self.handle
    }
}

/// Leases shorter than this end before their first extension.
const LEASE_MIN: Duration = Duration::from_millis(1);

/// Whether leases of this length are given by a queue whose longest are these.
pub(crate) fn check_lease(lease: Duration, longest: Option<Duration>) -> Result<(), DistributedError> {
    if lease >= LEASE_MIN && longest.is_none_or(|longest| lease <= longest) {
        return Ok(());
    }
    let limit = longest.map(|longest| format!(", at most {longest:?}")).unwrap_or_default();
    let hint = format!("use at least {LEASE_MIN:?}{limit}, and three times as long as the server takes to answer");
    Err(DistributedError::InvalidLease { lease, hint })
}

/// A command that was taken, and on what terms.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Leased {
    /// The command.
    pub envelope: CommandEnvelope,
    /// By what the lease is known.
    pub token: LeaseToken,
    /// How often it was delivered, this time included; without those that were released.
    pub delivery: u32,
    /// How long it is leased for, from some moment of the call on: count from before the call. None where the queue has no leases:
    /// then it is lost if it is not ended.
    pub lease: Option<Duration>,
    /// As it was enqueued.
    pub priority: Priority,
    /// As it was enqueued.
    pub payload_version: u32,
    /// As it was enqueued.
    pub headers: BTreeMap<String, String>,
}

impl Leased {
    /// For queues of your own: with the default priority, version 1 and no headers, delivered for the first time.
    #[must_use]
    pub fn new(envelope: CommandEnvelope, token: LeaseToken, lease: Option<Duration>) -> Self {
        Self {
            envelope,
            token,
            delivery: 1,
            lease,
            priority: EnqueueOptions::DEFAULT_PRIORITY,
            payload_version: 1,
            headers: BTreeMap::new(),
        }
    }

    /// Of a queue that has no leases.
    pub(super) fn unleased(envelope: CommandEnvelope) -> Self {
        let token = LeaseToken::new(envelope.id.as_str(), envelope.partition_id, 0, "");
        let delivery = envelope.retry_count.saturating_add(1);
        Self { delivery, ..Self::new(envelope, token, None) }
    }
}

/// What is to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Claim {
    /// At most so many.
    pub max: usize,
    /// Of these lanes only, the first one first. Empty: of all, the best priorities first.
    pub lanes: Vec<LaneClaim>,
    /// How long they are leased for.
    pub lease: Duration,
    /// How long to wait where there is none.
    pub wait: Duration,
}

/// Of one lane, at most so many.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneClaim {
    /// Which lane.
    pub lane_id: LaneId,
    /// At most so many.
    pub max: usize,
}

impl Claim {
    /// At most `max` commands of all lanes, for 30 s, without waiting.
    pub fn new(max: usize) -> Self {
        Self { max, lanes: Vec::new(), lease: DEFAULT_LEASE, wait: Duration::ZERO }
    }

    /// Also of this lane, behind those named before: at most `max`.
    pub fn lane(mut self, lane_id: impl Into<LaneId>, max: usize) -> Self {
        self.lanes.push(LaneClaim { lane_id: lane_id.into(), max });
        self
    }

    /// How long they are leased for. Default: 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long to wait where there is none. Default: not at all.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// What became of an [acknowledgement](crate::DistributedQueue::ack).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckOutcome {
    /// It was done.
    Applied,
    /// It was done before, with the same token: the answer was lost.
    AlreadyApplied,
    /// The lease had ended: nothing was changed. Another worker has the command, or will have it.
    LeaseLost,
}

impl AckOutcome {
    /// What a call means that says by an error that the lease is lost.
    pub(super) fn of(result: Result<()>) -> Result<Self> {
        match result {
            Ok(()) => Ok(Self::Applied),
            Err(LaneError::Distributed(DistributedError::LeaseLost { .. })) => Ok(Self::LeaseLost),
            Err(error) => Err(error),
        }
    }
}

/// How a command is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nack {
    /// An attempt has failed: it is ready again after this time, and has one failed attempt more.
    RetryAfter {
        /// How long it is not ready.
        delay: Duration,
        /// What went wrong.
        error: String,
    },
    /// It was not begun: it is ready at once, and this delivery does not count.
    Release,
}

/// What all workers together may take of a lane. Each partition's part counts: it is the same limit wherever they lie.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct GlobalLimits {
    /// At most so many are leased at any time. Default: no limit.
    pub max_leased: Option<usize>,
    /// At most so many are taken per time: a token bucket of that rate and burst. Default: no limit.
    pub rate: Option<RateLimitConfig>,
}

impl GlobalLimits {
    /// No limits: also takes away those that there were.
    pub fn none() -> Self {
        Self::default()
    }

    /// At most so many are leased at any time.
    pub fn max_leased(mut self, commands: usize) -> Self {
        self.max_leased = Some(commands);
        self
    }

    /// At most so many are taken per time.
    pub fn rate(mut self, rate: RateLimitConfig) -> Self {
        self.rate = Some(rate);
        self
    }
}
