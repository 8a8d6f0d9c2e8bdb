//! What the workers have done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count with one writer, which therefore needs no read-modify-write.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Only ever called by the one writer.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker has done since it started. Counts only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Polls of tasks.
    pub polls: u64,
    /// Tasks taken from other workers' queues.
    pub steals: u64,
    /// Times the worker went to sleep.
    pub parks: u64,
    /// Other workers that this one woke.
    pub wakes: u64,
    /// Timers that this worker fired.
    pub timers: u64,
}

/// What an executor was left with when it closed; see [`Executor::shutdown`](super::Executor::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Tasks that had not finished at the limit. They are cancelled, apart from those whose current poll finishes them.
    pub unfinished: u64,
    /// Workers whose current poll had not returned; their threads end when it does.
    pub busy_workers: usize,
    /// How long the call waited.
    pub waited: Duration,
}
