//! How a queue is stopped, and what came of it.

use std::time::Duration;

use super::dead_letter::DeadLetter;
use crate::error::LaneError;

/// How long each phase of [`QueueManager::stop`](crate::QueueManager::stop) may take. The sum is the one deadline.
///
/// ```
/// use std::time::Duration;
/// use corelane::Stop;
///
/// let stop = Stop::drain(Duration::from_secs(30)).then_cancel(Duration::from_secs(5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Stop {
    pub(super) drain: Duration,
    pub(super) cancel: Duration,
}

impl Stop {
    /// Gives commands this long to end. Those that do not are cancelled, and have a second to stop unless
    /// [`Stop::then_cancel`] says otherwise.
    pub const fn drain(limit: Duration) -> Self {
        Self { drain: limit, cancel: Duration::from_secs(1) }
    }

    /// Waits this long for cancelled commands to stop.
    pub const fn then_cancel(mut self, limit: Duration) -> Self {
        self.cancel = limit;
        self
    }
}

/// What became of the commands that were accepted and not settled when [`QueueManager::stop`](crate::QueueManager::stop)
/// was called.
#[derive(Debug)]
#[non_exhaustive]
pub struct StopReport {
    /// They ended by themselves: completed, failed, timed out or expired.
    pub settled: usize,
    /// They were cancelled, in the queue or while they ran.
    pub cancelled: usize,
    /// They still wait: only if a worker is blocked.
    pub left_pending: usize,
    /// They still run: they block a worker and could not be stopped in time.
    pub left_active: usize,
    /// Of those cancelled, the ones that stay stored: they run when the queue is built again.
    pub still_stored: usize,
    /// Of those cancelled, the ones that never started and are not stored: with what they were to do, where they can say.
    pub given_back: Vec<DeadLetter>,
    /// What the store said at the end, if it did not end well: what was acknowledged without waiting for the store
    /// may run again.
    pub storage: Option<LaneError>,
    /// How long it took.
    pub waited: Duration,
}

impl StopReport {
    /// Whether nothing was left behind.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_pending == 0 && self.left_active == 0
    }
}
