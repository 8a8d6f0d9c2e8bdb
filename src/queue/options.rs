//! What a submission says about one command, besides what its lane says about all.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Priority;
use super::keys::Key;
use crate::id::CommandId;
use crate::trace::TraceContext;

/// Settings of one command. What is not set, the lane decides.
///
/// ```
/// use std::time::Duration;
/// use corelane::SubmitOptions;
///
/// let options = SubmitOptions::new().key("user-7").timeout(Duration::from_secs(2)).cost(3);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct SubmitOptions {
    pub(super) priority: Option<Priority>,
    pub(super) key: Option<Key>,
    pub(super) cost: Option<u32>,
    pub(super) bytes: usize,
    pub(super) delay: Option<Duration>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) total_timeout: Option<Duration>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) room_timeout: Option<Duration>,
    pub(super) tags: Vec<Arc<str>>,
    pub(super) detached: bool,
    pub(super) replays: u32,
    /// The command of the dead letter that this replays.
    pub(super) replay_of: Option<CommandId>,
    /// The letter is in the store of the queue that replays it.
    pub(super) replays_stored: bool,
    pub(super) idempotency_key: Option<Arc<str>>,
    pub(super) trace_parent: Option<Arc<TraceContext>>,
}

impl SubmitOptions {
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The command's priority, within the bounds of [`LaneConfig::with_priority_bounds`](crate::LaneConfig). It goes before
    /// commands of a worse priority that wait in its lane, and runs at this priority. With a [key](SubmitOptions::key) it only
    /// runs at this priority: keys take turns. Default: the lane's.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Commands of one key run first in first out, at most [`LaneConfig::per_key`](crate::LaneConfig) at a time, and the
    /// keys of a lane take turns. A command that another command awaits is not held back by its key, since that one may
    /// hold the place; a retry goes before the others of its key. Default: none.
    pub fn key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What the command takes of the lane's rate limit. Default: 1. At least 1; more than the limit's burst counts as the
    /// burst.
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = Some(cost.max(1));
        self
    }

    /// Memory that the command holds besides its own value, in bytes: for lanes with
    /// [`LaneConfig::max_pending_bytes`](crate::LaneConfig). Default: 0.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// The command belongs to this trace, for a queue with [a tracer](crate::QueueManagerBuilder::with_tracer). Default: what is
    /// current where it is submitted. Not kept in a store: a command that runs again after a restart begins a trace of its own.
    pub fn trace_parent(mut self, parent: TraceContext) -> Self {
        self.trace_parent = Some(Arc::new(parent));
        self
    }

    /// Accepts the command now and lets it start no earlier than after `delay`. Until then it holds no permit and is counted
    /// as pending. Default: zero.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// As [`SubmitOptions::delay`], until the wall clock shows `at`, as it goes at the time of this call: a clock that is
    /// set later changes nothing.
    pub fn start_at(self, at: SystemTime) -> Self {
        let delay = crate::clock::until_wall(at);
        self.delay(delay)
    }

    /// How long the command may wait, from its acceptance (or the end of its delay) to its first start. After that it never
    /// starts, and its ticket gives [`LaneError::Expired`](crate::LaneError::Expired) at that time. Default: the lane's.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = Some(timeout);
        self
    }

    /// How long each attempt may take. Default: the lane's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the command may take from its acceptance to its end, waiting and all attempts included. Commands that it
    /// submits have no more time than it has left. Default: the lane's.
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// As [`SubmitOptions::total_timeout`], until a point in time.
    pub fn deadline(self, at: Instant) -> Self {
        let timeout = crate::clock::until(at);
        self.total_timeout(timeout)
    }

    /// How long the command may go on once its queue stops ([`QueueManager::stop`](crate::QueueManager::stop)); then it is
    /// cancelled. Default: the lane's.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = Some(timeout);
        self
    }

    /// How long the submission waits for room in a full lane whose overflow says to wait. Default: without limit.
    pub fn room_timeout(mut self, timeout: Duration) -> Self {
        self.room_timeout = Some(timeout);
        self
    }

    /// A word that goes with the command into its dead letter. May be given several times.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Lets the command live on when the command that submits it is cancelled or times out, and have more time than that has
    /// left. Default: it is cancelled, too.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Says that this is the same work as any other submission with this key: in a durable lane, a second submission with the
    /// same type and payload runs nothing and gives the result of the first, while that waits or runs and for
    /// [a window](crate::QueueManagerBuilder::with_idempotency_window) after it has ended well. If it has not ended well (failed,
    /// timed out, cancelled), the key is free at once. 1 to 256 bytes. Default: none.
    ///
    /// The window begins when the command ends, is kept by the monotonic clock while the process runs, and goes on after a
    /// restart by the wall clock.
    pub fn idempotency_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    pub(super) fn replayed(mut self, of: CommandId, replays: u32, is_stored: bool) -> Self {
        self.replay_of = Some(of);
        self.replays_stored = is_stored;
        self.replays = replays;
        self
    }
}
