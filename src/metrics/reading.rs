//! What the numbers were at one time: typed, for everybody who exports or judges them.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::histogram::Histogram;

/// All numbers of the queues that one [`QueueMetrics`](super::QueueMetrics) measures, at one time. Counts only grow.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reading {
    /// When, by the wall clock.
    pub at: DateTime<Utc>,
    /// When, on the clock of the queues: from the beginning of the measurement. What rates are computed with.
    pub elapsed: Duration,
    /// The lanes, by priority and then by name. Lanes of several queues that have the same name are one: their numbers are
    /// added, of ages there is the oldest.
    pub lanes: Vec<LaneReading>,
    /// The workers of the queues' executors.
    pub workers: Vec<WorkerReading>,
    /// Operations of stores that have failed.
    pub storage_errors: u64,
    /// Events that subscribers have lost because they were too slow.
    pub events_dropped: u64,
}

/// The numbers of a lane.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LaneReading {
    /// Its name.
    pub lane: Arc<str>,
    /// 0 is the best.
    pub priority: u8,
    /// Commands accepted and not admitted, those that are delayed among them.
    pub pending: u64,
    /// Of these: commands that wait for their time: delayed, in their backoff, or behind others of their key.
    pub delayed: u64,
    /// Commands admitted and not settled.
    pub active: u64,
    /// `min_concurrency`.
    pub min_concurrency: u64,
    /// `max_concurrency`.
    pub max_concurrency: u64,
    /// Whether it (or, of several of the same name, any) is paused.
    pub paused: bool,
    /// How long the command that has waited longest for its first start has waited; none if none waits. Within one interval of
    /// collection, and for commands that start in the order of submission.
    pub oldest_pending: Option<Duration>,
    /// How long the command that has run longest has been running, in its present attempt; none if none runs.
    pub oldest_active: Option<Duration>,
    /// Commands accepted.
    pub submitted: u64,
    /// Attempts begun.
    pub started: u64,
    /// Commands settled, by how.
    pub finished: Finished,
    /// Submissions refused, by why.
    pub rejected: RejectedCounts,
    /// Attempts that failed and were followed by another one.
    pub retries: u64,
    /// Commands given up and kept as dead letters, by why.
    pub dead_lettered: DeadLettered,
    /// Dead letters that are kept now.
    pub dead_letters: u64,
    /// The age of the oldest of them; none if there is none.
    pub oldest_dead_letter: Option<Duration>,
    /// Times that a command got a better priority while it waited.
    pub boosts: u64,
    /// How long the rate limit has held commands back.
    pub throttled: Duration,
    /// How long commands waited for their first start: from their submission, or from when they were due.
    pub wait: Histogram,
    /// How long attempts ran.
    pub run: Histogram,
    /// By command type, where that is [asked for](super::QueueMetrics::with_command_types).
    pub command_types: Vec<CommandTypeReading>,
}

/// The numbers of a command type in a lane.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CommandTypeReading {
    /// Its name; [`OTHER_TYPES`](super::OTHER_TYPES) for those beyond the cap.
    pub command_type: Arc<str>,
    /// Commands settled, by how.
    pub finished: Finished,
    /// How long attempts ran.
    pub run: Histogram,
}

/// Commands settled, by how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished {
    /// Returned a value.
    pub ok: u64,
    /// Returned an error.
    pub error: u64,
    /// Panicked.
    pub panic: u64,
    /// Were given up at their deadline.
    pub timeout: u64,
    /// Were cancelled, or their queue stopped.
    pub cancelled: u64,
    /// Waited for too long, and never started.
    pub expired: u64,
    /// Were dropped by a full lane.
    pub shed: u64,
}

impl Finished {
    /// Each count with its label.
    #[must_use]
    pub const fn by_outcome(&self) -> [(&'static str, u64); 7] {
        let Self { ok, error, panic, timeout, cancelled, expired, shed } = *self;
        [
            ("ok", ok),
            ("error", error),
            ("panic", panic),
            ("timeout", timeout),
            ("cancelled", cancelled),
            ("expired", expired),
            ("shed", shed),
        ]
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let Self { ok, error, panic, timeout, cancelled, expired, shed } = *self;
        ok + error + panic + timeout + cancelled + expired + shed
    }

    /// Those that failed: errors, panics, timeouts and expired ones.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.error + self.panic + self.timeout + self.expired
    }
}

/// Submissions refused, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedCounts {
    /// The lane was full.
    pub full: u64,
    /// The queue was shutting down.
    pub shutdown: u64,
    /// What was asked for is not possible in this lane, or not with this command.
    pub invalid: u64,
    /// The store refused it.
    pub storage: u64,
}

impl RejectedCounts {
    /// Each count with its label.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, u64); 4] {
        let Self { full, shutdown, invalid, storage } = *self;
        [("full", full), ("shutdown", shutdown), ("invalid", invalid), ("storage", storage)]
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.full + self.shutdown + self.invalid + self.storage
    }
}

/// Commands given up and kept as dead letters, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLettered {
    /// Returned an error.
    pub failed: u64,
    /// Panicked.
    pub panicked: u64,
    /// Were given up at their deadline.
    pub timed_out: u64,
    /// Waited for too long.
    pub expired: u64,
    /// Were dropped by a full lane.
    pub shed: u64,
    /// Other reasons: had killed their process too often, could not be read.
    pub other: u64,
}

impl DeadLettered {
    /// Each count with its label.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, u64); 6] {
        let Self { failed, panicked, timed_out, expired, shed, other } = *self;
        [
            ("failed", failed),
            ("panicked", panicked),
            ("timed_out", timed_out),
            ("expired", expired),
            ("shed", shed),
            ("other", other),
        ]
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let Self { failed, panicked, timed_out, expired, shed, other } = *self;
        failed + panicked + timed_out + expired + shed + other
    }
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReading {
    /// Its number: those of all executors in a row.
    pub worker: usize,
    /// How long it was awake.
    pub busy: Duration,
    /// Polls of tasks.
    pub polls: u64,
    /// Tasks taken from other workers' queues.
    pub steals: u64,
    /// Times that it went to sleep.
    pub parks: u64,
    /// Polls that lasted too long.
    pub stuck: u64,
}

impl Reading {
    /// The lane of this name.
    #[must_use]
    pub fn lane(&self, lane: &str) -> Option<&LaneReading> {
        self.lanes.iter().find(|reading| &*reading.lane == lane)
    }
}
