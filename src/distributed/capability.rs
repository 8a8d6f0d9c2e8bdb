//! What a queue can do, how it does, and how much it holds.

use std::time::Duration;

use crate::storage::Durability;

/// How well something is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// Not at all: what asks for it is [refused](crate::DistributedError::Unsupported).
    #[default]
    None,
    /// As a rule. [`Capabilities::notes`] says when not.
    BestEffort,
    /// Always.
    Exact,
}

/// What a queue can do. With a server: of the version and the settings that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What an acknowledged command survives; see [`Durability`]. For a server, "the process" is the server's.
    pub durability: Durability,
    /// Commands are leased: what a worker leaves comes back.
    pub leases: bool,
    /// A token whose lease has ended changes nothing.
    pub fencing: Support,
    /// The order of [priorities](crate::EnqueueOptions::priority), within a partition and a lane.
    pub priority: Support,
    /// First in first out, within a partition, a lane and a priority.
    pub order: Support,
    /// [Delays](crate::EnqueueOptions::delay) and [retries after a time](crate::Nack::RetryAfter).
    pub delay: Support,
    /// [Idempotency keys](crate::EnqueueOptions::idempotency_key).
    pub idempotency: Support,
    /// How long keys are kept after their commands have ended; none where that is until something else takes their room.
    pub idempotency_window: Option<Duration>,
    /// [`expires_after`](crate::EnqueueOptions::expires_after).
    pub expiry: Support,
    /// Dead letters are kept, and can be looked at and replayed.
    pub dead_letters: bool,
    /// [Results](crate::EnqueueOptions::keep_result) are kept.
    pub results: bool,
    /// [Limits](crate::GlobalLimits::max_leased) to what all workers together have.
    pub global_concurrency: Support,
    /// [Limits](crate::GlobalLimits::rate) to what all workers together take per time.
    pub global_rate: Support,
    /// The largest command, in bytes of its JSON; none where there is no limit but memory.
    pub max_payload: Option<usize>,
    /// The longest lease; none where there is no limit.
    pub max_lease: Option<Duration>,
    /// What else there is to know: where a promise ends, and which setting or version it would take.
    pub notes: Vec<String>,
}

/// How much a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Depth {
    /// Commands that may be taken.
    pub ready: usize,
    /// Commands that are not due yet.
    pub delayed: usize,
    /// Commands that are leased. A lease that has ended may count until somebody asks for commands.
    pub leased: usize,
    /// Dead letters.
    pub dead: usize,
    /// How long the oldest ready one has waited.
    pub oldest_ready: Option<Duration>,
}

/// How a queue does, as far as its last calls have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DistributedHealth {
    /// It does not say.
    #[default]
    Unknown,
    /// It works.
    Working,
    /// The server does not answer, and is tried again.
    Reconnecting {
        /// What went wrong last.
        error: String,
    },
    /// It was closed.
    Closed,
}
