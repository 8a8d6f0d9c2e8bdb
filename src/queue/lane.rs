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
use super::extra::Extra;
use super::keys::Queued;
use super::line::{Entry, Waiter};
use super::options::SubmitOptions;
use super::settle::{self, Accepted, Whereabouts};
use super::ticket::{Limits, Ticket, Way};
use super::{LaneId, Priority};
use crate::clock::Tick;
use crate::error::{ConfigErrors, LaneError, Result};
use crate::event::{CommandInfo, Transition};
use crate::executor::Making;
use crate::executor::life::Birth;
use crate::id::CommandId;
use crate::limit::gate::Submitted;
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
        self.accept_or_wait(command, None).await
    }

    /// [`Lane::submit`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub async fn submit_with(&self, command: Box<dyn Command>, options: SubmitOptions) -> JsonSubmission {
        self.accept_or_wait(command, Some(options)).await
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

    /// Accepts, waiting for room where the lane says so.
    async fn accept_or_wait(&self, mut command: Box<dyn Command>, options: Option<SubmitOptions>) -> JsonSubmission {
        let limit = options.as_ref().and_then(|options| options.room_timeout);
        let mut until = None;
        loop {
            // Before the attempt, so that room that is made after it is heard of.
            // Not from within a command: it would hold its permit, for which those that it waits for may be waiting.
            let nested = context::parent().is_some();
            let waits = !nested && self.core.settings.load().config.overflow == Overflow::Wait;
            let listener = waits.then(|| self.core.room.listen());
            let rejected = match self.accept_boxed(command, options.clone()) {
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
            command = rejected.command;
            let now = context.executor.clock().now();
            let until = *until.get_or_insert_with(|| limit.map_or(Tick::NEVER, |limit| now.plus(limit)));
            let left = until.since(now);
            if context.executor.timeout(left, listener).await.is_err() {
                return Err(Rejected { error: rejected.error, command });
            }
        }
    }

    /// The way of every command into the queue.
    pub(super) fn accept<J: Job>(
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
        let parents_deadline = parent.map_or(Tick::NEVER, |parent| parent.total_deadline);
        if options.is_none() && core.is_plain() && parents_deadline == Tick::NEVER {
            return self.accept_plain(job, context, parent.is_some());
        }
        let settings = core.settings.load();
        if let Some(options) = &options
            && let Err(error) = core.check_options(&settings, options)
        {
            return Err(Rejected { error, command: job });
        }
        let mut extra = Extra::of(core, &settings, context, options, parents_deadline);
        let priority = extra.as_ref().and_then(|extra| extra.priority).unwrap_or(core.priority);
        let count = match &extra {
            Some(extra) if extra.is_delayed() => Count::Apart,
            Some(extra) if extra.key.is_some() => Count::Keyed,
            Some(_) if priority != core.priority => Count::Placed,
            _ => Count::Plain,
        };
        let bytes = settings.config.max_pending_bytes.map(|limit| {
            let own = extra.as_ref().map_or(0, |extra| extra.bytes);
            (job.size().saturating_add(own), limit)
        });
        let submitted = match core.count(&settings, count, bytes, priority) {
            Ok(submitted) => submitted,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        if let Some(extra) = &mut extra {
            extra.bytes = bytes.map_or(0, |(bytes, _)| bytes);
        }
        let id = CommandId::next();
        context.events.observe(|| Transition::Submitted(CommandInfo::new(&core.id, id, job.command_type())));
        let (birth, place) = match (submitted, &extra) {
            (Submitted::Admitted, _) => (Birth::Admitted, Whereabouts::Line),
            (_, Some(extra)) if extra.is_delayed() => (Birth::Apart, Whereabouts::Apart),
            _ => (Birth::Queued, Whereabouts::Line),
        };
        let limits = Limits::of(&settings, extra.as_deref());
        let alarm = extra.as_ref().and_then(|extra| core.alarm_of(&settings, extra));
        let key = extra.as_ref().and_then(|extra| extra.key.clone());
        let cost = extra.as_ref().map_or(1, |extra| extra.cost);
        let own_place = extra.as_ref().filter(|_| count == Count::Placed).map(|extra| extra.place(core, 0));
        let adopted = parent.is_some() && !extra.as_ref().is_some_and(|extra| extra.detached);
        let lane = Arc::clone(core);
        // Without it, a command waits in the line at its beginning or not at all.
        let may_wait_later = extra.is_some();
        let making = Making { priority, birth, timed: limits.any() || alarm.is_some(), has_ambient: true };
        let make = |task| settle::run(Accepted::new(job, id, lane, task, place, extra));
        let way = Way::new(core.number(), cost);
        if birth != Birth::Queued {
            let (runnable, task) = context.executor.prepare(making, make);
            if adopted {
                context::adopt(|| runnable.meta_ref().handle());
            }
            let way = (may_wait_later || birth == Birth::Apart).then_some(way);
            // One that is delayed sets its alarm when its time has come.
            if let Some(alarm) = alarm.filter(|_| birth == Birth::Admitted) {
                core.set_alarm(&runnable.meta_ref().handle(), alarm);
            }
            match birth {
                Birth::Apart => context.executor.schedule_new(runnable),
                _ => core.launch_new(&settings, context, runnable),
            }
            return Ok(Ticket::new(id, limits, task, way));
        }
        let (handle, task) = context.executor.prepare_parked(making, make);
        if adopted {
            context::adopt(|| handle.clone());
        }
        // Once it is parked: an alarm that comes at once has to find it there.
        if let Some(alarm) = alarm {
            core.set_alarm(&handle, alarm);
        }
        match key {
            Some(key) => core.enter_key(&key, Queued { handle, cost }),
            None => core.enqueue(Entry::new(Waiter::Command(handle), own_place, cost)),
        }
        core.note_pressure(&settings);
        // Cancelled, abandoned or closed while this was submitted?
        core.end_late();
        Ok(Ticket::new(id, limits, task, Some(way)))
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
        context.events.observe(|| Transition::Submitted(CommandInfo::new(&core.id, id, job.command_type())));
        let lane = Arc::clone(core);
        let make = |task| settle::run(Accepted::new(job, id, lane, task, Whereabouts::Line, None));
        let making = Making { priority: core.priority, birth, timed: false, has_ambient: true };
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

    pub(super) fn core(&self) -> &Arc<LaneCore> {
        &self.core
    }

    pub(super) fn check(&self, errors: &mut ConfigErrors) {
        let settings = self.core.settings.load();
        super::config::check_lane(&self.core.id, &settings.config, self.core.priority, errors);
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

/// How a new command is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// It may start at once if a permit is free, and stands in the line in the order of submission.
    Plain,
    /// It has a place of its own in the line.
    Placed,
    /// It may have to wait for others of its key.
    Keyed,
    /// It comes to its place by itself, later.
    Apart,
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

    fn full(&self, limit: String) -> LaneError {
        LaneError::LaneFull { lane_id: self.id.to_string(), limit }
    }

    /// Counts a new command, making room for it if the lane's overflow says so.
    fn count(
        &self,
        settings: &Settings,
        way: Count,
        bytes: Option<(usize, usize)>,
        priority: Priority,
    ) -> Result<Submitted> {
        loop {
            if let Some((bytes, limit)) = bytes
                && !self.take_bytes(bytes, limit)
            {
                if self.shed(settings.config.overflow, priority) {
                    continue;
                }
                return Err(self.full(format!("waiting commands may hold {limit} bytes")));
            }
            let submitted = match way {
                Count::Plain => self.count_in(settings, true),
                Count::Placed | Count::Keyed => self.count_in(settings, false),
                Count::Apart => self.count_apart(settings),
            };
            if let (Submitted::Closed | Submitted::Full, Some((bytes, _))) = (submitted, bytes) {
                self.give_bytes(bytes);
            }
            match submitted {
                Submitted::Admitted | Submitted::Queued => return Ok(submitted),
                Submitted::Closed => return Err(LaneError::ShutdownInProgress),
                Submitted::Full if self.shed(settings.config.overflow, priority) => {}
                Submitted::Full => {
                    let limit = settings.config.capacity.unwrap_or(crate::limit::gate::WAITING_MAX as usize);
                    return Err(self.full(format!("{limit} commands may wait")));
                }
            }
        }
    }

    fn check_options(&self, settings: &Settings, options: &SubmitOptions) -> Result<()> {
        let refused = |what: String| Err(LaneError::QueueError(format!("lane {:?}: {what}", self.id)));
        let (best, worst) = settings.config.priority_bounds.unwrap_or((self.priority, self.priority));
        if let Some(priority) = options.priority
            && !(best..=worst).contains(&priority)
        {
            return refused(format!("priority {priority} is not allowed: use {best} to {worst}"));
        }
        if options.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refused("a timeout of zero would end every attempt at once: use more, or none".into());
        }
        Ok(())
    }
}
