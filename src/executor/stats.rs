//! What the workers have done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::shared::WorkerCounters;

/// A count with one writer, which therefore needs no read-modify-write.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Only ever called by the one writer.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl WorkerCounters {
    /// Called by the worker, as the next one.
    pub(super) fn falls_asleep(&self, now: u64) {
        self.asleep_since.store(now, Ordering::Relaxed);
    }

    pub(super) fn wakes_up(&self, now: u64) {
        self.slept.add(now.saturating_sub(self.asleep_since.swap(0, Ordering::Relaxed)));
    }

    /// `now` is a stamp.
    pub(super) fn stats(&self, now: u64) -> WorkerStats {
        let began = self.began.load(Ordering::Relaxed);
        let asleep = match self.asleep_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        };
        let lived = if began == 0 { 0 } else { now.saturating_sub(began) };
        WorkerStats {
            busy: Duration::from_nanos(lived.saturating_sub(self.slept.get() + asleep)),
            polls: self.polls.get(),
            steals: self.steals.get(),
            parks: self.parks.get(),
            wakes: self.wakes.get(),
            timers: self.timers.get(),
            stuck: self.stuck.get(),
        }
    }
}

/// What one worker has done since it started. Counts only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// How long it was awake: running tasks, or looking for some. Zero in a simulation.
    pub busy: Duration,
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
    /// Polls that lasted for longer than [`ExecutorBuilder::stuck_after`](super::ExecutorBuilder::stuck_after).
    pub stuck: u64,
}

/// What a spare thread has done since the executor was made; see
/// [`ExecutorBuilder::spare_threads`](super::ExecutorBuilder::spare_threads).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpareStats {
    /// Whether it runs tasks at present.
    pub on_duty: bool,
    /// Times it was put on duty.
    pub duties: u64,
    /// As for a worker.
    pub worker: WorkerStats,
}

/// What an executor was left with when it closed; see [`Executor::shutdown`](super::Executor::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Tasks that had not finished at the limit. They are cancelled, apart from those whose current poll finishes them.
    pub unfinished: u64,
    /// Workers and spares whose current poll had not returned; their threads end when it does.
    pub busy_workers: usize,
    /// How long the call waited.
    pub waited: Duration,
}
