//! A lane as its users see it, and the way of every command into it.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::acquire::{Acquire, Permit};
use super::admission::{LaneContext, LaneCore, Settings};
use super::command::{Boxed, Command, Job, Once, Typed, TypedCommand};
use super::config::{LaneConfig, Overflow};
use super::context;
use super::durable::{Durable, DurableCommand};
use super::incoming::Incoming;
use super::line::{Entry, Waiter};
use super::options::SubmitOptions;
use super::settle::{self, Accepted, Whereabouts};
use super::ticket::{Limits, Ticket, Way};
use super::{LaneId, Priority};
use crate::clock::Tick;
use crate::error::{ConfigErrors, LaneError, Result};
use crate::event::{FrequentKind, UNMEASURED};
use crate::executor::life::Birth;
use crate::executor::{Making, Traits};
use crate::id::CommandId;
use crate::limit::gate::{GateStatus, Submitted};
use crate::limit::rate::RateLimiter;

/// A priority class with limits of its own. A cheap handle; commands keep what they need of it alive.
#[derive(Clone)]
pub struct Lane {
    core: Arc<LaneCore>,
}

/// One look at a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Commands accepted and not admitted: in line, delayed, waiting out their backoff, or behind others of their key.
    pub pending: usize,
    /// Commands admitted and not settled, and permits that hosts hold.
    pub active: usize,
    /// The lane's `min_concurrency`.
    pub min: usize,
    /// The lane's `max_concurrency`.
    pub max: usize,
}

/// A command that was not accepted, and why. Nothing was stored.
#[derive(Error)]
#[error("{error}")]
pub struct Rejected<C> {
    /// Why.
    #[source]
    pub error: LaneError,
    /// The command, back.
    pub command: C,
}

impl<C> fmt::Debug for Rejected<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<C> From<Rejected<C>> for LaneError {
    fn from(rejected: Rejected<C>) -> Self {
        rejected.error
    }
}

/// What a submission of a boxed command gives: its ticket, or the command back.
pub type JsonSubmission = Result<Ticket<serde_json::Value>, Rejected<Box<dyn Command>>>;

impl<C> Rejected<C> {
    fn map<D>(self, f: impl FnOnce(C) -> D) -> Rejected<D> {
        Rejected { error: self.error, command: f(self.command) }
    }
}

impl Lane {
    /// A lane that takes commands once it is registered with a queue, which also checks the settings.
    pub fn new(id: impl Into<LaneId>, config: LaneConfig, priority: Priority) -> Self {
        let id: LaneId = id.into();
        Self { core: LaneCore::new(id.into(), config, priority) }
    }

    /// The lane's name.
    #[must_use]
    #[inline]
    pub fn id(&self) -> &str {
        &self.core.id
    }

    /// The lane's priority: 0 is the best. Async as in a3s-lane; never waits.
    pub async fn priority(&self) -> Priority {
        self.core.priority
    }

    /// The lane's settings as they are now.
    #[must_use]
    pub fn config(&self) -> LaneConfig {
        self.core.settings.load().config.clone()
    }

    /// Changes the lane's settings while it runs. Limits on what may start count at once: a smaller maximum ends nothing and
    /// is reached as commands end. Timeouts and retries count for attempts that begin, what is asked of submissions (size,
    /// priorities, time in the queue) for those that follow. A rate limit that changes begins anew; one that does not goes on.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`] with every problem of the new settings; the lane is as before.
    pub fn update(&self, change: impl FnOnce(&mut LaneConfig)) -> Result<()> {
        self.core.update(change)
    }

    /// The limiter of the lane's rate, to pause it or to share it; none if the lane has no rate limit.
    #[must_use]
    pub fn rate_limiter(&self) -> Option<RateLimiter> {
        self.core.settings.load().limiter.clone()
    }

    /// Accepts a command. One that is refused (the lane is not registered, full, or shutting down) says so through its
    /// ticket; [`Lane::try_submit`] hands it back instead. Waits only in a full lane whose [`Overflow`] says so.
    pub async fn enqueue(&self, command: Box<dyn Command>) -> Ticket<serde_json::Value> {
        self.submit(command).await.unwrap_or_else(|rejected| Ticket::refused(rejected.error))
    }

    /// Accepts a command, or hands it back. Waits only in a full lane whose [`Overflow`] says so. Cancel-safe: a submission
    /// that is dropped while it waits has not happened, and its command is dropped.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub async fn submit(&self, command: Box<dyn Command>) -> JsonSubmission {
        self.submit_boxed(command, None).await
    }

    /// [`Lane::submit`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub async fn submit_with(&self, command: Box<dyn Command>, options: SubmitOptions) -> JsonSubmission {
        self.submit_boxed(command, Some(options)).await
    }

    /// Accepts a command that is data; see [`CommandQueue::submit_durable`](crate::CommandQueue::submit_durable).
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_durable`](crate::CommandQueue::submit_durable).
    pub async fn submit_durable<C: DurableCommand>(&self, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.submit_durable_with(command, SubmitOptions::new()).await
    }

    /// [`Lane::submit_durable`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_durable_with`](crate::CommandQueue::submit_durable_with).
    pub async fn submit_durable_with<C: DurableCommand>(
        &self,
        command: C,
        options: SubmitOptions,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        let submitted = self.accept_or_wait(Durable(Box::new(command)), Some(options)).await;
        submitted.map_err(|rejected| rejected.map(|Durable(command)| *command))
    }

    /// Accepts a command, or hands it back.
    ///
    /// # Errors
    ///
    /// [`LaneError::ShutdownInProgress`], [`LaneError::LaneFull`], or [`LaneError::QueueError`] if the lane is not registered
    /// or does not allow what the options ask for.
    pub fn try_submit(&self, command: Box<dyn Command>) -> JsonSubmission {
        self.accept_boxed(command, None)
    }

    /// [`Lane::try_submit`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn try_submit_with(&self, command: Box<dyn Command>, options: SubmitOptions) -> JsonSubmission {
        self.accept_boxed(command, Some(options))
    }

    /// Accepts commands in their order, each on its own: one that is refused does not keep the next from being accepted.
    pub fn submit_many(&self, commands: impl IntoIterator<Item = Box<dyn Command>>) -> Vec<JsonSubmission> {
        commands.into_iter().map(|command| self.accept_boxed(command, None)).collect()
    }

    /// Accepts a typed command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn submit_typed<C: TypedCommand>(&self, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.accept(Typed(command), None).map_err(|rejected| rejected.map(|Typed(command)| command))
    }

    /// [`Lane::submit_typed`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn submit_typed_with<C: TypedCommand>(
        &self,
        command: C,
        options: SubmitOptions,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        let accepted = self.accept(Typed(command), Some(options));
        accepted.map_err(|rejected| rejected.map(|Typed(command)| command))
    }

    /// Accepts a closure that makes a future, which runs once: it is not retried. `command_type` names it in events.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn submit_fn<F, Fut, T>(
        &self,
        command_type: impl Into<Cow<'static, str>>,
        make: F,
    ) -> Result<Ticket<T>, LaneError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, LaneError>> + Send,
        T: Send + 'static,
    {
        Ok(self.accept(Once::new(command_type, make), None)?)
    }

    /// [`Lane::submit_fn`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn submit_fn_with<F, Fut, T>(
        &self,
        command_type: impl Into<Cow<'static, str>>,
        options: SubmitOptions,
        make: F,
    ) -> Result<Ticket<T>, LaneError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, LaneError>> + Send,
        T: Send + 'static,
    {
        Ok(self.accept(Once::new(command_type, make), Some(options))?)
    }

    /// Takes one of the lane's permits, for work that the caller runs itself: in its turn among the lane's commands, and
    /// against its rate limit. Resolves to [`LaneError::ShutdownInProgress`] once the lane accepts nothing more, or to
    /// [`LaneError::LaneFull`], or to [`LaneError::Shed`] if the lane is full and its overflow drops it.
    ///
    /// Not for a command of this lane, which lends its permit to commands that it awaits and not to this: with all permits in
    /// the hands of such commands it waits for ever.
    pub fn acquire(&self) -> Acquire {
        self.core.acquire()
    }

    /// A permit if one is free now and nobody waits for it.
    #[must_use]
    pub fn try_acquire(&self) -> Option<Permit> {
        self.core.try_acquire()
    }

    /// One consistent look at the lane. Async as in a3s-lane; never waits.
    pub async fn status(&self) -> LaneStatus {
        self.core.status()
    }

    /// Whether the lane is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.core.is_paused()
    }

    /// Admits no more commands until [`Lane::resume`]. Submitting goes on, as do commands already admitted. Nothing
    /// happens once the lane's queue is gone: its commands then run to their end.
    pub fn pause(&self) {
        let queue = self.core.context().map(|context| context.queue.upgrade());
        if !matches!(queue, Some(None)) {
            self.core.pause();
        }
    }

    /// Admits commands again.
    pub fn resume(&self) {
        self.core.resume();
    }

    fn accept_boxed(&self, command: Box<dyn Command>, options: Option<SubmitOptions>) -> JsonSubmission {
        self.accept(Boxed(command), options).map_err(|rejected| rejected.map(|Boxed(command)| command))
    }

    async fn submit_boxed(&self, command: Box<dyn Command>, options: Option<SubmitOptions>) -> JsonSubmission {
        let submitted = self.accept_or_wait(Boxed(command), options).await;
        submitted.map_err(|rejected| rejected.map(|Boxed(command)| command))
    }

    /// Accepts, waiting for room where the lane says so, and for the store if it is durable.
    async fn accept_or_wait<J: Job>(
        &self,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        let accepted = self.try_accept_or_wait(job, options).await;
        accepted.inspect_err(|rejected| self.core.count_refused(&rejected.error))
    }

    async fn try_accept_or_wait<J: Job>(
        &self,
        mut job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        let limit = options.as_ref().and_then(|options| options.room_timeout);
        let mut until = None;
        loop {
            // Before the attempt, so that room that is made after it is heard of.
            // Not from within a command: it would hold its permit, for which those that it waits for may be waiting.
            let nested = context::parent().is_some();
            let waits = !nested && self.core.settings.load().config.overflow == Overflow::Wait;
            let listener = waits.then(|| self.core.room.listen());
            let rejected = match self.accept_durably(job, options.clone()).await {
                Ok(ticket) => {
                    // There may be room for more than who was told of it: one that is admitted at once takes none.
                    if until.is_some() && self.core.has_room() {
                        self.core.make_room();
                    }
                    return Ok(ticket);
                }
                Err(rejected) => rejected,
            };
            let (Some(listener), LaneError::LaneFull { .. }, Some(context)) =
                (listener, &rejected.error, self.core.context())
            else {
                return Err(rejected);
            };
            job = rejected.command;
            let now = context.executor.clock().now();
            let until = *until.get_or_insert_with(|| limit.map_or(Tick::NEVER, |limit| now.plus(limit)));
            let left = until.since(now);
            if context.executor.timeout(left, listener).await.is_err() {
                return Err(Rejected { error: rejected.error, command: job });
            }
        }
    }

    /// [`Lane::try_accept`], and counts a refusal.
    pub(super) fn accept<J: Job>(
        &self,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        self.try_accept(job, options).inspect_err(|rejected| self.core.count_refused(&rejected.error))
    }

    /// The way of every command into the queue.
    pub(super) fn try_accept<J: Job>(
        &self,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        let core = &self.core;
        let Some(context) = core.context() else {
            let error = LaneError::QueueError(format!("lane {:?} is not registered with a queue", core.id));
            return Err(Rejected { error, command: job });
        };
        if !context.executor.is_open() {
            return Err(Rejected { error: LaneError::ShutdownInProgress, command: job });
        }
        let parent = context::parent();
        let is_limited = parent.is_some_and(|parent| parent.total_deadline != Tick::NEVER);
        if options.is_none() && core.is_plain() && !is_limited {
            return self.accept_plain(job, context, parent.is_some());
        }
        let settings = core.settings.load();
        if let Some((store, _)) = context.durable(&settings) {
            return self.accept_unstored(job, options, context, &settings, store);
        }
        if let Some(options) = &options
            && let Err(error) = core.check_options(&settings, options, false)
        {
            return Err(Rejected { error, command: job });
        }
        let id = options.as_ref().and_then(|options| options.replay_of);
        let mut incoming = Incoming::new(core, context, &settings, options, job.size());
        let submitted = match incoming.count() {
            Ok(submitted) => submitted,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        let id = id.unwrap_or_else(CommandId::next);
        context.tell(FrequentKind::Submitted, &core.id, id, || UNMEASURED, || job.command_type());
        Ok(incoming.place(job, id, submitted))
    }

    /// The same for a command without options in a lane without settings that would ask more: the way of most commands.
    fn accept_plain<J: Job>(
        &self,
        job: J,
        context: &LaneContext,
        nested: bool,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        let core = &self.core;
        let birth = match core.count_plain() {
            Ok(birth) => birth,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        let id = CommandId::next();
        context.tell(FrequentKind::Submitted, &core.id, id, || UNMEASURED, || job.command_type());
        let lane = Arc::clone(core);
        let make = |task| settle::run(Accepted::new(job, id, lane, task, Whereabouts::Line, None));
        let making = Making {
            priority: core.priority,
            birth,
            timed: false,
            traits: Traits::new(true, None),
            owner: core.owner(),
        };
        if birth == Birth::Admitted {
            let (runnable, task) = context.executor.prepare(making, make);
            if nested {
                context::adopt(|| runnable.meta_ref().handle());
            }
            context.executor.schedule_new(runnable);
            return Ok(Ticket::new(id, Limits::NONE, task, None));
        }
        let (handle, task) = context.executor.prepare_parked(making, make);
        if nested {
            context::adopt(|| handle.clone());
        }
        core.enqueue(Entry::plain(Waiter::Command(handle)));
        // Cancelled, abandoned or closed while this was submitted?
        core.end_late();
        Ok(Ticket::new(id, Limits::NONE, task, Some(Way::new(core.number(), 1))))
    }

    /// How many commands would start at once if they came now.
    pub(crate) fn free_permits(&self) -> usize {
        let GateStatus { waiting, running, held, unstarted, paused, closed, throttled } = self.core.gate_status();
        if held || unstarted || paused || closed || throttled {
            return 0;
        }
        self.core.settings.load().config.max_concurrency.saturating_sub(running + waiting)
    }

    /// Whether it takes no more commands, ever: its queue stops.
    pub(crate) fn is_closed(&self) -> bool {
        self.core.gate_status().closed
    }

    /// Whether the lane's commands are stored by its queue.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_durable()
    }

    pub(super) fn core(&self) -> &Arc<LaneCore> {
        &self.core
    }

    pub(super) fn check(&self, has_store: bool, errors: &mut ConfigErrors) {
        let settings = self.core.settings.load();
        super::config::check_lane(&self.core.id, &settings.config, self.core.priority, Some(has_store), errors);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("id", &self.core.id)
            .field("priority", &self.core.priority)
            .field("status", &self.core.status())
            .finish_non_exhaustive()
    }
}

impl LaneCore {
    /// Counts a new command of a plain lane.
    #[inline]
    fn count_plain(&self) -> Result<Birth> {
        match self.count_direct() {
            Submitted::Admitted => Ok(Birth::Admitted),
            Submitted::Queued => Ok(Birth::Queued),
            Submitted::Closed => Err(LaneError::ShutdownInProgress),
            Submitted::Full => Err(self.full(format!("{} commands may wait", crate::limit::gate::WAITING_MAX))),
        }
    }

    pub(super) fn check_options(&self, settings: &Settings, options: &SubmitOptions, is_durable: bool) -> Result<()> {
        let refused = |what: String| Err(LaneError::QueueError(format!("lane {:?}: {what}", self.id)));
        let (best, worst) = settings.config.priority_bounds.unwrap_or((self.priority, self.priority));
        if let Some(priority) = options.priority
            && !(best..=worst).contains(&priority)
        {
            return refused(format!("priority {priority} is not allowed: use {best} to {worst}"));
        }
        if options.idempotency_key.is_some() && !is_durable {
            return refused("an idempotency key needs a durable lane: give the queue a store".into());
        }
        if options.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refused("a timeout of zero would end every attempt at once: use more, or none".into());
        }
        Ok(())
    }
}
