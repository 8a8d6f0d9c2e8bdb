//! A queue: a set of lanes that are started, shut down and drained together.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use event_listener::Event;

use super::LaneId;
use super::admission::{LaneContext, SharedPool};
use super::command::{Boxed, Command, Job, Once, Typed, TypedCommand};
use super::config::{LaneConfig, OnStorageFailure};
use super::dead_letter::{DeadLetter, DeadLetterQueue};
use super::durable::{DurableCommand, RecoveryReport, Store, StoreState, Window};
use super::explain::Explanation;
use super::lane::{JsonSubmission, Lane, LaneStatus, Rejected};
use super::lanes::Lanes;
use super::measured;
use super::options::SubmitOptions;
use super::partition::Partitions;
use super::registry::Registry;
use super::stop::{Stop, StopReport};
use super::ticket::Ticket;
use super::vacancy::Vacancy;
use crate::alert::AlertManager;
use crate::error::{ConfigErrors, LaneError, Result};
use crate::event::{EventEmitter, EventStream, LaneEvent, Transition};
use crate::executor::{Closing, Executor};
use crate::id::CommandId;
use crate::metrics::{Consumer, QueueMetrics};
use crate::storage::{Storage, StorageHealth};
use crate::trace::Tracer;

const STARTED: u8 = 1;
const SHUTTING_DOWN: u8 = 1 << 1;
/// Every lane is closed, and the event that says so was sent.
const CLOSED: u8 = 1 << 2;
/// The event that everything has settled since was sent.
const SHUT_DOWN: u8 = 1 << 3;

/// Lanes by name, under one admission state. Most programs use it through [`QueueManager`](crate::QueueManager).
///
/// Dropping it closes admission. Accepted commands run to their end all the same; those that a lane holds back because it
/// was never started or is paused can not, and are cancelled.
pub struct CommandQueue {
    core: Arc<QueueCore>,
}

/// What lanes refer to.
pub(super) struct QueueCore {
    pub(super) lanes: Lanes,
    registering: Mutex<()>,
    holding: Mutex<()>,
    pub(super) context: Arc<LaneContext>,
    state: AtomicU8,
    idle: Event,
    /// Commands that never started because the queue stops.
    given_back: Mutex<Vec<DeadLetter>>,
    alerts: Option<Arc<AlertManager>>,
    /// Judges the queue's readings, as long as there is the queue.
    _judge: Option<Arc<dyn Consumer>>,
}

/// What a queue is made of.
pub(super) struct Parts {
    pub(super) executor: Executor,
    pub(super) events: EventEmitter,
    pub(super) dead_letters: Option<DeadLetterQueue>,
    pub(super) pool: Option<Arc<SharedPool>>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) metrics: Option<QueueMetrics>,
    pub(super) alerts: Option<Arc<AlertManager>>,
    pub(super) tracer: Option<Arc<dyn Tracer>>,
    pub(super) partitions: Option<Partitions>,
}

impl Parts {
    pub(super) fn new(executor: Executor, events: EventEmitter) -> Self {
        Self {
            executor,
            events,
            dead_letters: None,
            pool: None,
            store: None,
            metrics: None,
            alerts: None,
            tracer: None,
            partitions: None,
        }
    }
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
    /// An empty queue on the global executor, and on the tokio runtime that is current (feature `tokio`).
    #[must_use]
    pub fn new(events: EventEmitter) -> Self {
        Self::of(Parts::new(Executor::global().clone(), events))
    }

    /// As [`CommandQueue::new`], keeping commands that are given up as dead letters: in `letters`, or in a queue of that size.
    #[must_use]
    pub fn with_dlq(events: EventEmitter, letters: impl Into<DeadLetterQueue>) -> Self {
        let parts = Parts::new(Executor::global().clone(), events);
        Self::of(Parts { dead_letters: Some(letters.into()), ..parts })
    }

    /// A queue of one lane, started.
    pub(crate) fn of_one(executor: Executor, events: EventEmitter, lane: Lane) -> Result<Self> {
        let queue = Self::of(Parts::new(executor, events));
        queue.register_checked(vec![lane], ConfigErrors::default())?;
        queue.start();
        Ok(queue)
    }

    pub(super) fn of(parts: Parts) -> Self {
        let Parts { executor, events, dead_letters, pool, store, metrics, alerts, tracer, partitions } = parts;
        events.runs_on(executor.clock());
        let metrics = metrics.or_else(|| alerts.as_ref().map(|alerts| alerts.metrics().clone()));
        let judge = alerts.as_ref().zip(metrics.as_ref()).map(|(alerts, metrics)| alerts.judges(metrics));
        let core = Arc::new_cyclic(|queue: &Weak<QueueCore>| {
            let ambient = crate::ambient();
            let queue = Weak::clone(queue);
            let context = LaneContext {
                executor,
                events,
                ambient,
                dead_letters,
                pool,
                queue,
                store,
                metrics,
                tracer,
                partitions,
                vacancy: Vacancy::new(),
            };
            QueueCore {
                lanes: Lanes::default(),
                registering: Mutex::new(()),
                holding: Mutex::new(()),
                context: Arc::new(context),
                state: AtomicU8::new(0),
                idle: Event::new(),
                given_back: Mutex::default(),
                alerts,
                _judge: judge,
            }
        });
        let holder: Weak<QueueCore> = Arc::downgrade(&core);
        if let Some(store) = &core.context.store {
            store.belongs_to(Weak::clone(&holder));
        }
        core.context.executor.shared().tell_when_closed(holder);
        measured::begin(&core);
        Self { core }
    }

    /// Whether a lane has a permit again.
    pub(crate) fn vacancy(&self) -> &Vacancy {
        &self.core.context.vacancy
    }

    /// As [`CommandQueue::new`], with lanes that store their commands. What is in the store stays there: only
    /// [`QueueManagerBuilder`](crate::QueueManagerBuilder) takes it over.
    #[must_use]
    pub fn with_storage(events: EventEmitter, storage: Arc<dyn Storage>) -> Self {
        Self::stored(events, storage, None)
    }

    /// [`CommandQueue::with_dlq`] and [`CommandQueue::with_storage`].
    #[must_use]
    pub fn with_dlq_and_storage(
        events: EventEmitter,
        letters: impl Into<DeadLetterQueue>,
        storage: Arc<dyn Storage>,
    ) -> Self {
        Self::stored(events, storage, Some(letters.into()))
    }

    fn stored(events: EventEmitter, storage: Arc<dyn Storage>, letters: Option<DeadLetterQueue>) -> Self {
        let executor = Executor::global().clone();
        let store = Store::new(storage, Registry::default(), Window::default(), executor.clone(), events.clone());
        Self::of(Parts { dead_letters: letters, store: Some(store), ..Parts::new(executor, events) })
    }

    /// Adds a lane, also while the queue runs. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`] if its settings are not usable, its id is taken, it belongs to a queue already, or the queue
    /// was built with a limit to all lanes; [`LaneError::ShutdownInProgress`] during and after shutdown. The queue is as
    /// before.
    pub async fn register_lane(&self, lane: impl Into<Arc<Lane>>) -> Result<()> {
        let lane: Arc<Lane> = lane.into();
        if self.core.context.pool.is_some() {
            let mut errors = ConfigErrors::default();
            let hint = "give all lanes to the builder: with_max_in_flight divides its limit among them";
            errors.push(format!("lanes[{:?}]", lane.id()), lane.id(), hint);
            errors.into_result()?;
        }
        self.core.register(vec![Arc::unwrap_or_clone(lane)], ConfigErrors::default())
    }

    /// Adds all lanes or none; none if there are errors already, which are told with those of the lanes.
    pub(super) fn register_checked(&self, new: Vec<Lane>, errors: ConfigErrors) -> Result<()> {
        self.core.register(new, errors)
    }

    /// The lane of this id.
    #[must_use]
    pub fn lane(&self, lane_id: &str) -> Option<Lane> {
        self.core.with_lane(lane_id, Lane::clone).ok()
    }

    /// Why a command waits, what it has waited for and how long for each; or that it runs. None if the command has settled or
    /// is not of this queue, or was accepted while its lane's [`explain`](LaneConfig::explain) was off. Looks at all lanes'
    /// commands under the lanes' locks: for people and alarms, not for every command.
    #[must_use]
    pub fn explain(&self, id: CommandId) -> Option<Explanation> {
        self.core.lanes.all().iter().find_map(|lane| lane.core().explain(id))
    }

    /// Lets commands run. Idempotent.
    pub async fn start_scheduler(self: Arc<Self>) {
        self.start();
    }

    pub(super) fn start(&self) {
        self.core.start();
    }

    /// Accepts a command. Waits only in a full lane whose [`Overflow`](crate::Overflow) says so.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`], [`LaneError::ShutdownInProgress`], or [`LaneError::LaneFull`].
    /// [`CommandQueue::try_submit`] also hands the command back.
    pub async fn submit(&self, lane_id: &str, command: Box<dyn Command>) -> Result<Ticket<serde_json::Value>> {
        let (lane, command) = {
            let Some(lane) = self.core.lanes.find(lane_id) else {
                return Err(LaneError::LaneNotFound(lane_id.to_owned()));
            };
            let command = match lane.is_durable() {
                true => command,
                false => match lane.try_accept(Boxed(command), None) {
                    Ok(ticket) => return Ok(ticket),
                    // It may be a lane in which that means to wait.
                    Err(Rejected { error: LaneError::LaneFull { .. }, command: Boxed(command) }) => command,
                    Err(rejected) => {
                        lane.core().count_refused(&rejected.error);
                        return Err(rejected.error);
                    }
                },
            };
            (Lane::clone(&lane), command)
        };
        Ok(lane.submit(command).await?)
    }

    /// Accepts a command that is data into a durable lane: returns once it is as durable as the lane says, or hands it back.
    ///
    /// Dropped before that, the submission has not happened; a crash just then may let the command run all the same.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_with`], [`LaneError::NotDurable`] if its type is not
    /// [registered](crate::QueueManagerBuilder::with_durable) or the lane is in memory, and [`LaneError::Storage`].
    pub async fn submit_durable<C: DurableCommand>(
        &self,
        lane_id: &str,
        command: C,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.submit_durable_with(lane_id, command, SubmitOptions::new()).await
    }

    /// [`CommandQueue::submit_durable`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_durable`], and [`LaneError::IdempotencyConflict`].
    pub async fn submit_durable_with<C: DurableCommand>(
        &self,
        lane_id: &str,
        command: C,
        options: SubmitOptions,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        match self.core.with_lane(lane_id, Lane::clone) {
            Ok(lane) => lane.submit_durable_with(command, options).await,
            Err(error) => Err(Rejected { error, command }),
        }
    }

    /// [`CommandQueue::submit`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`], and [`LaneError::QueueError`] if the lane does not allow what the options ask for.
    pub async fn submit_with(
        &self,
        lane_id: &str,
        command: Box<dyn Command>,
        options: SubmitOptions,
    ) -> Result<Ticket<serde_json::Value>> {
        let lane = self.core.with_lane(lane_id, Lane::clone)?;
        Ok(lane.submit_with(command, options).await?)
    }

    /// Accepts a command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn try_submit(&self, lane_id: &str, command: Box<dyn Command>) -> JsonSubmission {
        self.accept(lane_id, Boxed(command), None)
            .map_err(|Rejected { error, command: Boxed(command) }| Rejected { error, command })
    }

    /// Accepts commands in their order, each on its own: one that is refused does not keep the next from being accepted.
    pub fn submit_many(
        &self,
        lane_id: &str,
        commands: impl IntoIterator<Item = Box<dyn Command>>,
    ) -> Vec<JsonSubmission> {
        commands.into_iter().map(|command| self.try_submit(lane_id, command)).collect()
    }

    /// Accepts a typed command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn submit_typed<C: TypedCommand>(&self, lane_id: &str, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.accept(lane_id, Typed(command), None)
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
        Ok(self.accept(lane_id, Once::new(command_type, make), None)?)
    }

    pub(super) fn accept<J: Job>(
        &self,
        lane_id: &str,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        self.core.accept(lane_id, job, options)
    }

    /// Holds a lane's commands back until [`CommandQueue::resume`]. Commands already admitted run on.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`].
    pub fn pause(&self, lane_id: &str) -> Result<()> {
        self.core.with_lane(lane_id, Lane::pause)
    }

    /// Lets a paused lane go on.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`].
    pub fn resume(&self, lane_id: &str) -> Result<()> {
        self.core.with_lane(lane_id, Lane::resume)
    }

    /// Changes a lane's settings while it runs; see [`Lane::update`].
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`], or [`LaneError::ConfigError`] with every problem of the new settings.
    pub fn update_lane(&self, lane_id: &str, change: impl FnOnce(&mut LaneConfig)) -> Result<()> {
        self.core.with_lane(lane_id, |lane| lane.update(change))?
    }

    /// Each lane's numbers. Async as in a3s-lane; never waits.
    pub async fn status(&self) -> HashMap<LaneId, LaneStatus> {
        self.stats().lanes
    }

    /// The queue's numbers.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.core.stats()
    }

    /// What measures the queue; none if nothing does.
    #[must_use]
    pub fn metrics(&self) -> Option<&QueueMetrics> {
        self.core.context.metrics.as_ref()
    }

    /// What judges the queue; none without [alerts](crate::QueueManagerBuilder::with_alerts).
    #[must_use]
    pub fn alerts(&self) -> Option<&Arc<AlertManager>> {
        self.core.alerts.as_ref()
    }

    /// The queue's dead letters; none without a dead letter queue.
    #[must_use]
    pub fn dlq(&self) -> Option<&DeadLetterQueue> {
        self.core.context.dead_letters.as_ref()
    }

    /// Submits the commands of all dead letters that `wanted` says yes to again, the oldest first, each to its lane. They
    /// begin anew, with a [replay count](DeadLetter::replays) of one more. Letters whose command can not be run again, or is
    /// not accepted, stay where they are.
    pub fn requeue_dead_letters(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> RequeueReport {
        let mut report = RequeueReport::default();
        let Some(letters) = self.dlq() else { return report };
        for letter in letters.take_out(wanted) {
            let id = letter.command_id;
            let submitted = match letter.replay.clone() {
                Some(replay) => replay.submit(self, &letter),
                None => Err(LaneError::QueueError(
                    "its command can not be run again: it ran once, or is not at hand".into(),
                )),
            };
            match submitted {
                Ok(()) => {
                    report.requeued += 1;
                    // Of one that a durable lane has now, the store knows that it is not a letter any more.
                    if !self.lane(&letter.lane_id).is_some_and(|lane| lane.is_durable()) {
                        letters.gone([&letter]);
                    }
                }
                Err(error) => {
                    letters.put_in(letter);
                    report.refused.push((id, error));
                }
            }
        }
        report
    }

    /// What was taken over from the store when the queue was built; none without a store.
    #[must_use]
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.core.context.store.as_ref()?.report()
    }

    /// The queue's store; none without one.
    #[must_use]
    pub fn storage(&self) -> Option<&Arc<dyn Storage>> {
        self.core.context.store.as_ref().map(|store| store.storage())
    }

    /// How the queue's store does; none without one.
    #[must_use]
    pub fn storage_health(&self) -> Option<StorageHealth> {
        self.core.context.store.as_ref().map(|store| store.health())
    }

    /// Whether a letter is in this queue's store.
    pub(super) fn has_stored(&self, letter: &DeadLetter) -> bool {
        let store = self.core.context.store.as_ref();
        letter.stored.as_ref().zip(store).is_some_and(|(stored, store)| stored.is_in(&Arc::downgrade(store)))
    }

    pub(super) fn lanes(&self) -> Vec<Lane> {
        self.core.lanes.all()
    }

    /// The best priority first.
    pub(crate) fn lanes_by_priority(&self) -> Vec<Lane> {
        self.core.lanes_by_priority()
    }

    pub(super) fn events(&self) -> &EventEmitter {
        &self.core.context.events
    }

    /// Accepts no more commands. Those accepted run on; [`CommandQueue::drain`] waits for them. Idempotent.
    pub async fn shutdown(&self) {
        self.core.shutdown();
    }

    /// Whether [`CommandQueue::shutdown`] was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.core.is_shutting_down()
    }

    /// Waits until every accepted command has settled, for at most `limit`: those that run, wait, are delayed or wait out
    /// their backoff. Does not stop admission: call [`CommandQueue::shutdown`] first, or it waits for a moment without work.
    /// May be called any number of times.
    ///
    /// # Errors
    ///
    /// [`LaneError::DrainTimeout`] with what is left, at the limit: nothing was cancelled. [`LaneError::Storage`] if the queue's
    /// store does not have all ends: what it lacks may run again.
    pub async fn drain(&self, limit: Duration) -> Result<DrainReport> {
        self.core.drain(limit).await
    }

    /// Shuts down in phases: accepts nothing more; lets commands end for as long as `stop` says; cancels the rest, for as
    /// long as it says; reports. After that no command of this queue runs, but those that block a worker (the report counts
    /// them as left; they end at their next await, and their tickets resolve then).
    ///
    /// Dropping the returned future leaves the queue at the phase that it has reached.
    pub async fn stop(&self, stop: Stop) -> StopReport {
        self.core.stop(stop).await
    }

    /// Every event of this queue, as a stream.
    #[must_use]
    pub fn subscribe_stream(&self) -> EventStream {
        self.core.context.events.subscribe_stream()
    }

    /// The events of this queue that `filter` lets pass.
    pub fn subscribe_filtered(&self, filter: impl Fn(&LaneEvent) -> bool + Send + Sync + 'static) -> EventStream {
        self.core.context.events.subscribe_filtered(filter)
    }

    /// The executor that runs this queue's commands.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.core.context.executor
    }
}

/// What became of dead letters that were to be run again.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RequeueReport {
    /// Commands accepted again.
    pub requeued: usize,
    /// Letters that stay, and why.
    pub refused: Vec<(CommandId, LaneError)>,
}

impl QueueCore {
    /// Adds all lanes or none.
    fn register(&self, new: Vec<Lane>, mut errors: ConfigErrors) -> Result<()> {
        // Nothing panics under this lock.
        let _one_at_a_time = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_shutting_down() {
            return Err(LaneError::ShutdownInProgress);
        }
        for (i, lane) in new.iter().enumerate() {
            lane.check(self.context.store.is_some(), &mut errors);
            let id = lane.id();
            if self.lanes.find(id).is_some() || new[..i].iter().any(|other| other.id() == id) {
                errors.push(format!("lanes[{id:?}].id"), id, "is taken: give each lane a name of its own");
            }
        }
        if let Some(pool) = &self.context.pool {
            pool.divide(&new, &mut errors);
        }
        errors.clone().into_result()?;
        for lane in &new {
            if !lane.core().register(Arc::clone(&self.context)) {
                errors.push(
                    format!("lanes[{:?}]", lane.id()),
                    lane.id(),
                    "belongs to a queue already: make a new lane",
                );
            }
        }
        errors.into_result()?;
        new.iter().cloned().for_each(|lane| self.lanes.add(lane));
        if let Some(store) = &self.context.store {
            store.hold_lanes();
        }
        // ORDERING: `start` sets the state and then starts the lanes it sees; so either it sees these, or we see the state.
        if self.state.fetch_or(0, Ordering::SeqCst) & STARTED != 0 {
            new.iter().for_each(|lane| lane.core().start());
        }
        Ok(())
    }

    fn start(&self) {
        // ORDERING: see `register`.
        self.state.fetch_or(STARTED, Ordering::SeqCst);
        if let Some(store) = &self.context.store {
            store.start(self);
        }
        // The best first: a worker takes what it sees.
        self.lanes_by_priority().iter().for_each(|lane| lane.core().start());
    }

    fn lanes_by_priority(&self) -> Vec<Lane> {
        let mut lanes = self.lanes.all();
        lanes.sort_by_key(|lane| lane.core().priority);
        lanes
    }

    fn accept<J: Job>(
        &self,
        lane_id: &str,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        match self.lanes.find(lane_id) {
            Some(lane) => lane.accept(job, options),
            None => Err(Rejected { error: LaneError::LaneNotFound(lane_id.to_owned()), command: job }),
        }
    }

    fn with_lane<T>(&self, lane_id: &str, f: impl FnOnce(&Lane) -> T) -> Result<T> {
        self.lanes.find(lane_id).map(|lane| f(&lane)).ok_or_else(|| LaneError::LaneNotFound(lane_id.to_owned()))
    }

    /// Holds the lanes that are to be held while the store is on trial, or has failed, and no others.
    pub(super) fn hold_for_store(&self, state: impl FnOnce() -> StoreState) {
        // One at a time: what was looked at last holds.
        let _one_at_a_time = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        let StoreState { trial, failed } = state();
        for lane in self.lanes.all() {
            let stops = || lane.config().storage_failure == OnStorageFailure::Stop && lane.is_durable();
            lane.core().hold_for_store(trial || failed && stops());
        }
    }

    pub(super) fn executor(&self) -> &Executor {
        &self.context.executor
    }

    pub(super) fn observe(&self, make: impl FnOnce() -> Transition) {
        self.context.events.observe(make);
    }

    fn stats(&self) -> QueueStats {
        let lanes: HashMap<_, _> =
            self.lanes.all().iter().map(|lane| (lane.id().to_owned(), lane.core().status())).collect();
        QueueStats {
            total_pending: lanes.values().map(|lane| lane.pending).sum(),
            total_active: lanes.values().map(|lane| lane.active).sum(),
            dead_letter_count: self.context.dead_letters.as_ref().map_or(0, DeadLetterQueue::count),
            lanes,
        }
    }

    fn shutdown(&self) {
        let first = {
            let _no_lane_is_added = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
            self.state.fetch_or(SHUTTING_DOWN, Ordering::AcqRel) & SHUTTING_DOWN == 0
        };
        self.lanes.all().iter().for_each(|lane| lane.core().close());
        if first {
            self.context.events.observe(|| Transition::ShutdownStarted);
            self.state.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.notice_idle();
    }

    fn is_shutting_down(&self) -> bool {
        self.state.load(Ordering::Acquire) & SHUTTING_DOWN != 0
    }

    async fn drain(&self, limit: Duration) -> Result<DrainReport> {
        let clock = self.context.executor.clock();
        let begun = clock.now();
        let outstanding = self.outstanding();
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
        if let Some(store) = &self.context.store {
            // Nothing comes after it: the queue has done its work.
            match self.is_shutting_down() {
                true => store.finish().await?,
                false => store.flush().await?,
            }
        }
        Ok(DrainReport { outstanding, waited: clock.now().since(begun) })
    }

    async fn stop(&self, stop: Stop) -> StopReport {
        let clock = self.context.executor.clock();
        let begun = clock.now();
        self.shutdown();
        let lanes = self.lanes.all();
        let cancelled_before: usize = lanes.iter().map(|lane| lane.core().cancelled()).sum();
        let kept_before: usize = lanes.iter().map(|lane| lane.core().kept()).sum();
        let outstanding = self.outstanding();
        lanes.iter().for_each(|lane| lane.core().begin_stop(begun));
        if lanes.iter().any(|lane| lane.core().has_drain_timeouts()) {
            self.context.executor.shared().wake_waiting();
        }
        let mut drained = self.drain(stop.drain).await.is_ok();
        if !drained {
            lanes.iter().for_each(|lane| lane.core().cancel_all());
            self.end_suspects();
            self.context.executor.shared().wake_waiting();
            drained = self.drain(stop.cancel).await.is_ok();
        }
        let QueueStats { total_pending, total_active, .. } = self.stats();
        let (left_pending, left_active) = if drained { (0, 0) } else { (total_pending, total_active) };
        let cancelled = lanes.iter().map(|lane| lane.core().cancelled()).sum::<usize>() - cancelled_before;
        let still_stored = lanes.iter().map(|lane| lane.core().kept()).sum::<usize>() - kept_before;
        // Also if something is left: what still runs is not charged for the end of the process.
        let storage = match &self.context.store {
            Some(store) => store.finish().await.err(),
            None => None,
        };
        let given_back = std::mem::take(&mut *self.given_back());
        let settled = outstanding.saturating_sub(cancelled + left_pending + left_active);
        let waited = clock.now().since(begun);
        StopReport { settled, cancelled, left_pending, left_active, still_stored, given_back, storage, waited }
    }

    /// Commands that would have run alone stay stored.
    fn end_suspects(&self) {
        if let Some(store) = &self.context.store {
            store.tell_lanes_changed();
            drop(store.take_suspects());
        }
    }

    /// Commands accepted and not settled.
    fn outstanding(&self) -> usize {
        let stats = self.stats();
        stats.total_pending + stats.total_active
    }

    /// A command that never started, of a queue that stops.
    pub(super) fn take_back(&self, letter: DeadLetter) {
        self.given_back().push(letter);
    }

    fn given_back(&self) -> MutexGuard<'_, Vec<DeadLetter>> {
        // Nothing under this lock can panic half-way.
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner)
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
        for lane in self.lanes.all().iter() {
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
}

impl Closing for QueueCore {
    fn executor_closed(&self) {
        self.lanes.all().iter().for_each(|lane| lane.core().executor_closed());
        self.idle.notify(usize::MAX);
    }
}

impl Drop for QueueCore {
    fn drop(&mut self) {
        self.lanes.all().iter().for_each(|lane| lane.core().abandon());
        self.end_suspects();
    }
}

impl fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandQueue").field("lanes", &self.core.lanes.all()).finish_non_exhaustive()
    }
}
