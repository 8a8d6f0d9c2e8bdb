//! A queue: a set of lanes that are started, shut down and drained together.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use event_listener::Event;

use super::LaneId;
use super::command::{Command, Job, Once, Typed, TypedCommand};
use super::lane::{Lane, LaneContext, LaneStatus, Rejected};
use super::ticket::Ticket;
use crate::error::{ConfigErrors, LaneError, Result};
use crate::event::{EventEmitter, EventStream, LaneEvent, Transition};
use crate::executor::{Closing, Executor};

const STARTED: u8 = 1;
const SHUTTING_DOWN: u8 = 1 << 1;
/// Every lane is closed, and the event that says so was sent.
const CLOSED: u8 = 1 << 2;
/// The event that everything has settled since was sent.
const SHUT_DOWN: u8 = 1 << 3;

/// Lanes by name, under one admission state. Most programs use it through [`QueueManager`](crate::QueueManager).
///
/// Dropping the last reference closes admission. Accepted commands run to their end all the same; those that a lane holds
/// back because it was never started or is paused can not, and are cancelled.
pub struct CommandQueue {
    /// Sorted by id. Read at every submission, replaced when a lane is registered.
    lanes: ArcSwap<Vec<Lane>>,
    registering: Mutex<()>,
    context: LaneContext,
    state: AtomicU8,
    idle: Event,
}

/// One look at a queue: each lane's numbers are consistent in themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Commands accepted and not admitted yet.
    pub total_pending: usize,
    /// Commands admitted and not settled.
    pub total_active: usize,
    /// Dead letters kept; 0 without a dead letter queue.
    pub dead_letter_count: usize,
    /// By lane.
    pub lanes: HashMap<LaneId, LaneStatus>,
}

/// What a drain waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Commands that were accepted and not settled when the drain began. All have settled.
    pub outstanding: usize,
    /// How long that took.
    pub waited: Duration,
}

impl CommandQueue {
    /// An empty queue on the global executor, and on the tokio runtime that is current (feature `tokio`). It comes in an
    /// `Arc`, unlike a3s-lane's, since its lanes refer to it.
    #[must_use]
    pub fn new(events: EventEmitter) -> Arc<Self> {
        Self::on(Executor::global().clone(), events)
    }

    pub(super) fn on(executor: Executor, events: EventEmitter) -> Arc<Self> {
        let queue = Arc::new_cyclic(|queue: &Weak<Self>| {
            let context = LaneContext { executor, events, ambient: crate::ambient(), queue: Weak::clone(queue) };
            Self {
                lanes: ArcSwap::default(),
                registering: Mutex::new(()),
                context,
                state: AtomicU8::new(0),
                idle: Event::new(),
            }
        });
        let holder: Weak<Self> = Arc::downgrade(&queue);
        queue.context.executor.shared().tell_when_closed(holder);
        queue
    }

    /// Adds a lane, also while the queue runs. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`] if its settings are not usable, its id is taken, or it belongs to a queue already;
    /// [`LaneError::ShutdownInProgress`] during and after shutdown. The queue is as before.
    pub async fn register_lane(&self, lane: impl Into<Arc<Lane>>) -> Result<()> {
        let lane: Arc<Lane> = lane.into();
        self.register(vec![Arc::unwrap_or_clone(lane)])
    }

    /// Adds all lanes or none.
    pub(super) fn register(&self, new: Vec<Lane>) -> Result<()> {
        // Nothing panics under this lock.
        let _one_at_a_time = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_shutting_down() {
            return Err(LaneError::ShutdownInProgress);
        }
        let mut lanes = Vec::clone(&self.lanes.load());
        let mut errors = ConfigErrors::default();
        for lane in &new {
            lane.check(&mut errors);
            let id = lane.id();
            match lanes.binary_search_by(|other| other.id().cmp(id)) {
                Ok(_) => errors.push(format!("lanes[{id:?}].id"), id, "is taken: give each lane a name of its own"),
                Err(at) => lanes.insert(at, lane.clone()),
            }
        }
        errors.clone().into_result()?;
        for lane in &new {
            if !lane.core().register(self.context.clone()) {
                errors.push(
                    format!("lanes[{:?}]", lane.id()),
                    lane.id(),
                    "belongs to a queue already: make a new lane",
                );
            }
        }
        errors.into_result()?;
        self.lanes.store(Arc::new(lanes));
        // ORDERING: `start` sets the state and then starts the lanes it sees; so either it sees these, or we see the state.
        if self.state.fetch_or(0, Ordering::SeqCst) & STARTED != 0 {
            new.iter().for_each(|lane| lane.core().start());
        }
        Ok(())
    }

    /// The lane of this id.
    #[must_use]
    pub fn lane(&self, lane_id: &str) -> Option<Lane> {
        self.with_lane(lane_id, Lane::clone).ok()
    }

    /// Lets commands run. Idempotent.
    pub async fn start_scheduler(self: Arc<Self>) {
        self.start();
    }

    pub(super) fn start(&self) {
        // ORDERING: see `register`.
        self.state.fetch_or(STARTED, Ordering::SeqCst);
        self.lanes.load().iter().for_each(|lane| lane.core().start());
    }

    /// Accepts a command. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`], [`LaneError::ShutdownInProgress`], or [`LaneError::QueueError`] for a full lane.
    /// [`CommandQueue::try_submit`] also hands the command back.
    pub async fn submit(&self, lane_id: &str, command: Box<dyn Command>) -> Result<Ticket<serde_json::Value>> {
        Ok(self.try_submit(lane_id, command)?)
    }

    /// Accepts a command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn try_submit(
        &self,
        lane_id: &str,
        command: Box<dyn Command>,
    ) -> Result<Ticket<serde_json::Value>, Rejected<Box<dyn Command>>> {
        self.accept(lane_id, command)
    }

    /// Accepts a typed command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn submit_typed<C: TypedCommand>(&self, lane_id: &str, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.accept(lane_id, Typed(command))
            .map_err(|Rejected { error, command: Typed(command) }| Rejected { error, command })
    }

    /// Accepts a closure that makes a future, which runs once. `command_type` names it in events.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn submit_fn<F, Fut, T>(
        &self,
        lane_id: &str,
        command_type: impl Into<Cow<'static, str>>,
        make: F,
    ) -> Result<Ticket<T>>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send,
        T: Send + 'static,
    {
        Ok(self.accept(lane_id, Once::new(command_type, make))?)
    }

    fn accept<J: Job>(&self, lane_id: &str, job: J) -> Result<Ticket<J::Output>, Rejected<J>> {
        let lanes = self.lanes.load();
        match find(&lanes, lane_id) {
            Some(lane) => lane.accept(job),
            None => Err(Rejected { error: LaneError::LaneNotFound(lane_id.to_owned()), command: job }),
        }
    }

    /// Holds a lane's commands back until [`CommandQueue::resume`]. Commands already admitted run on.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`].
    pub fn pause(&self, lane_id: &str) -> Result<()> {
        self.with_lane(lane_id, Lane::pause)
    }

    /// Lets a paused lane go on.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`].
    pub fn resume(&self, lane_id: &str) -> Result<()> {
        self.with_lane(lane_id, Lane::resume)
    }

    fn with_lane<T>(&self, lane_id: &str, f: impl FnOnce(&Lane) -> T) -> Result<T> {
        find(&self.lanes.load(), lane_id).map(f).ok_or_else(|| LaneError::LaneNotFound(lane_id.to_owned()))
    }

    /// Each lane's numbers. Async as in a3s-lane; never waits.
    pub async fn status(&self) -> HashMap<LaneId, LaneStatus> {
        self.stats().lanes
    }

    /// The queue's numbers.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        let lanes: HashMap<_, _> =
            self.lanes.load().iter().map(|lane| (lane.id().to_owned(), lane.core().status())).collect();
        QueueStats {
            total_pending: lanes.values().map(|lane| lane.pending).sum(),
            total_active: lanes.values().map(|lane| lane.active).sum(),
            dead_letter_count: 0,
            lanes,
        }
    }

    /// Accepts no more commands. Those accepted run on; [`CommandQueue::drain`] waits for them. Idempotent.
    pub async fn shutdown(&self) {
        let first = {
            let _no_lane_is_added = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
            self.state.fetch_or(SHUTTING_DOWN, Ordering::AcqRel) & SHUTTING_DOWN == 0
        };
        self.lanes.load().iter().for_each(|lane| lane.core().close());
        if first {
            self.context.events.observe(|| Transition::ShutdownStarted);
            self.state.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.notice_idle();
    }

    /// Whether [`CommandQueue::shutdown`] was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.state.load(Ordering::Acquire) & SHUTTING_DOWN != 0
    }

    /// Waits until every accepted command has settled, for at most `limit`. Does not stop admission: call
    /// [`CommandQueue::shutdown`] first, or it waits for a moment without work. May be called any number of times.
    ///
    /// # Errors
    ///
    /// [`LaneError::DrainTimeout`] with what is left, at the limit. Nothing was cancelled.
    pub async fn drain(&self, limit: Duration) -> Result<DrainReport> {
        let clock = self.context.executor.clock();
        let begun = clock.now();
        let stats = self.stats();
        let outstanding = stats.total_pending + stats.total_active;
        let mut timed = self.context.executor.timeout(limit, self.drained()).await;
        let waited = clock.now().since(begun);
        if timed.is_err() && waited < limit {
            // The executor was closed, and its timers with it. Polls that run still end.
            timed = Executor::global().timeout(limit - waited, self.drained()).await;
        }
        if timed.is_err() && !self.is_idle() {
            let QueueStats { total_pending: pending, total_active: active, .. } = self.stats();
            return Err(LaneError::DrainTimeout { waited: clock.now().since(begun), pending, active });
        }
        self.notice_idle();
        Ok(DrainReport { outstanding, waited: clock.now().since(begun) })
    }

    async fn drained(&self) {
        loop {
            let listener = self.idle.listen();
            if self.is_idle() {
                return;
            }
            listener.await;
        }
    }

    /// Whether nothing waits and nothing runs; asks each lane for a notice when that is so.
    fn is_idle(&self) -> bool {
        let mut idle = true;
        // No short cut: every lane that is busy must be asked.
        for lane in self.lanes.load().iter() {
            idle &= lane.core().want_idle();
        }
        idle
    }

    /// A lane became idle, or everything was.
    pub(super) fn notice_idle(&self) {
        self.idle.notify(usize::MAX);
        if self.state.load(Ordering::Acquire) & CLOSED != 0
            && self.is_idle()
            && self.state.fetch_or(SHUT_DOWN, Ordering::AcqRel) & SHUT_DOWN == 0
        {
            self.context.events.observe(|| Transition::ShutdownComplete);
        }
    }

    /// Every event of this queue, as a stream.
    #[must_use]
    pub fn subscribe_stream(&self) -> EventStream {
        self.context.events.subscribe_stream()
    }

    /// The events of this queue that `filter` lets pass.
    pub fn subscribe_filtered(&self, filter: impl Fn(&LaneEvent) -> bool + Send + Sync + 'static) -> EventStream {
        self.context.events.subscribe_filtered(filter)
    }

    /// The executor that runs this queue's commands.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.context.executor
    }
}

/// Lanes are sorted by id, and few.
fn find<'a>(lanes: &'a [Lane], lane_id: &str) -> Option<&'a Lane> {
    lanes.binary_search_by(|lane| lane.id().cmp(lane_id)).ok().map(|at| &lanes[at])
}

impl Closing for CommandQueue {
    fn executor_closed(&self) {
        self.lanes.load().iter().for_each(|lane| lane.core().abandon());
        self.idle.notify(usize::MAX);
    }
}

impl Drop for CommandQueue {
    fn drop(&mut self) {
        self.lanes.load().iter().for_each(|lane| lane.core().abandon());
    }
}

impl fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandQueue").field("lanes", &self.lanes.load()).finish_non_exhaustive()
    }
}
