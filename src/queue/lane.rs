//! A lane: admits commands through its gate and hands them to the executor.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_queue::SegQueue;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ambient::Ambient;
use super::command::{Command, Job, Once, Typed, TypedCommand};
use super::command_queue::CommandQueue;
use super::config::LaneConfig;
use super::settle::{self, Accepted};
use super::ticket::Ticket;
use super::{LaneId, Priority};
use crate::error::{ConfigErrors, LaneError};
use crate::event::{CommandInfo, EventEmitter, Transition};
use crate::executor::{Executor, Runnable};
use crate::id::CommandId;
use crate::limit::gate::{Gate, Hold, Notice, Submitted, Waiting};

/// A priority class with a limit of its own. A cheap handle; commands keep what they need of it alive.
#[derive(Clone)]
pub struct Lane {
    core: Arc<LaneCore>,
}

pub(super) struct LaneCore {
    pub(super) id: Arc<str>,
    pub(super) config: LaneConfig,
    priority: Priority,
    gate: Gate,
    queue: LaneQueue,
    /// Set when the lane is registered.
    context: OnceLock<LaneContext>,
}

/// What a lane gets from the queue that it is registered with.
#[derive(Clone)]
pub(super) struct LaneContext {
    pub(super) executor: Executor,
    pub(super) events: EventEmitter,
    pub(super) ambient: Option<Arc<dyn Ambient>>,
    pub(super) queue: Weak<CommandQueue>,
}

/// One look at a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Commands accepted and not admitted yet.
    pub pending: usize,
    /// Commands admitted and not settled.
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

impl Lane {
    /// A lane that takes commands once it is registered with a queue, which also checks the settings.
    pub fn new(id: impl Into<LaneId>, config: LaneConfig, priority: Priority) -> Self {
        let id: LaneId = id.into();
        let gate = Gate::new(config.max_concurrency);
        let queue = LaneQueue::default();
        Self { core: Arc::new(LaneCore { id: id.into(), config, priority, gate, queue, context: OnceLock::new() }) }
    }

    /// The lane's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.core.id
    }

    /// The lane's priority: 0 is the best. Async as in a3s-lane; never waits.
    pub async fn priority(&self) -> Priority {
        self.core.priority
    }

    /// Accepts a command. One that is refused (the lane is not registered, or shutting down) says so through its ticket;
    /// [`Lane::try_submit`] hands it back instead. Async as in a3s-lane; never waits.
    pub async fn enqueue(&self, command: Box<dyn Command>) -> Ticket<serde_json::Value> {
        self.accept(command).unwrap_or_else(|rejected| Ticket::refused(rejected.error))
    }

    /// Accepts a command, or hands it back.
    ///
    /// # Errors
    ///
    /// [`LaneError::ShutdownInProgress`], or [`LaneError::QueueError`] if the lane is not registered or full.
    pub fn try_submit(
        &self,
        command: Box<dyn Command>,
    ) -> Result<Ticket<serde_json::Value>, Rejected<Box<dyn Command>>> {
        self.accept(command)
    }

    /// Accepts a typed command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`Lane::try_submit`].
    pub fn submit_typed<C: TypedCommand>(&self, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.accept(Typed(command)).map_err(|Rejected { error, command: Typed(command) }| Rejected { error, command })
    }

    /// Accepts a closure that makes a future, which runs once. `command_type` names it in events.
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
        Ok(self.accept(Once::new(command_type, make))?)
    }

    /// One consistent look at the lane. Async as in a3s-lane; never waits.
    pub async fn status(&self) -> LaneStatus {
        self.core.status()
    }

    /// Whether the lane is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.core.gate.status().paused
    }

    /// Admits no more commands until [`Lane::resume`]. Submitting goes on, as do commands already admitted. Nothing
    /// happens once the lane's queue is gone: its commands then run to their end.
    pub fn pause(&self) {
        let queue = self.core.context.get().map(|context| context.queue.upgrade());
        if !matches!(queue, Some(None)) {
            self.core.gate.hold(Hold::Paused);
        }
    }

    /// Admits commands again.
    pub fn resume(&self) {
        self.core.gate.unhold(Hold::Paused);
        self.core.pump();
    }

    /// The way of every command into the queue.
    pub(super) fn accept<J: Job>(&self, job: J) -> Result<Ticket<J::Output>, Rejected<J>> {
        let core = &self.core;
        let Some(context) = core.context.get() else {
            let error = LaneError::QueueError(format!("lane {:?} is not registered with a queue", core.id));
            return Err(Rejected { error, command: job });
        };
        if !context.executor.is_open() {
            return Err(Rejected { error: LaneError::ShutdownInProgress, command: job });
        }
        let submitted = core.gate.submit();
        let refuse = match submitted {
            Submitted::Admitted | Submitted::Queued => None,
            Submitted::Closed => Some(LaneError::ShutdownInProgress),
            Submitted::Full => Some(LaneError::QueueError(format!("lane {:?} is full", core.id))),
        };
        if let Some(error) = refuse {
            return Err(Rejected { error, command: job });
        }
        let id = CommandId::next();
        context.events.observe(|| Transition::Submitted(CommandInfo::new(&core.id, id, job.command_type())));
        let admitted = submitted == Submitted::Admitted;
        let lane = Arc::clone(core);
        let (runnable, task) =
            context.executor.prepare(core.priority, admitted, core.config.default_timeout.is_some(), |task| {
                settle::run(Accepted::new(job, id, lane, task))
            });
        if admitted {
            context.executor.schedule_new(runnable);
        } else {
            core.gate.enqueue(runnable, &core.queue, |runnable| core.admit(runnable), |notice| core.notice(notice));
            if core.config.pressure_threshold.is_some_and(|threshold| core.gate.note_pressure(threshold)) {
                core.observe(|| Transition::Pressure { lane_id: Arc::clone(&core.id) });
            }
        }
        if !admitted && (context.queue.strong_count() == 0 || !context.executor.is_open()) {
            // The queue was dropped or its executor closed while this was submitted: nobody else would cancel what a held
            // lane keeps.
            core.abandon();
        }
        Ok(Ticket::new(id, core.config.default_timeout, task))
    }

    pub(super) fn core(&self) -> &Arc<LaneCore> {
        &self.core
    }

    pub(super) fn check(&self, errors: &mut ConfigErrors) {
        super::config::check_lane(&self.core.id, &self.core.config, self.core.priority, errors);
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
    /// Binds the lane to its queue. False if it has one already.
    pub(super) fn register(&self, context: LaneContext) -> bool {
        self.context.set(context).is_ok()
    }

    pub(super) fn start(&self) {
        self.gate.unhold(Hold::Unstarted);
        self.pump();
    }

    /// Refuses commands from now on.
    pub(super) fn close(&self) {
        self.gate.close();
    }

    /// Asks for [`CommandQueue::notice_idle`] when the lane is idle; true if it is now.
    pub(super) fn want_idle(&self) -> bool {
        self.gate.want_idle()
    }

    pub(super) fn status(&self) -> LaneStatus {
        let status = self.gate.status();
        let LaneConfig { min_concurrency: min, max_concurrency: max, .. } = self.config;
        LaneStatus { pending: status.waiting, active: status.running, min, max }
    }

    /// The queue is gone: nobody can start or resume this lane any more. What it holds back is cancelled.
    pub(super) fn abandon(&self) {
        self.close();
        if self.gate.status().held {
            self.gate.abandon(&self.queue, drop);
        }
    }

    /// A command gives its permit back.
    pub(super) fn release(&self) {
        self.gate.release(&self.queue, |runnable| self.admit(runnable), |notice| self.notice(notice));
    }

    pub(super) fn ambient(&self) -> Option<&dyn Ambient> {
        self.context.get()?.ambient.as_deref()
    }

    pub(super) fn observe(&self, make: impl FnOnce() -> Transition) {
        if let Some(context) = self.context.get() {
            context.events.observe(make);
        }
    }

    fn pump(&self) {
        self.gate.pump(&self.queue, |runnable| self.admit(runnable), |notice| self.notice(notice));
    }

    /// Hands a command that has a permit to the executor. False if it was cancelled meanwhile: it needs none.
    fn admit(&self, runnable: Runnable) -> bool {
        let life = &runnable.metadata().life;
        if life.end().is_some() {
            drop(runnable);
            return false;
        }
        life.admit();
        runnable.schedule();
        true
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Relieved => self.observe(|| Transition::Idle { lane_id: Arc::clone(&self.id) }),
            Notice::Idle => {
                if let Some(queue) = self.context.get().and_then(|context| context.queue.upgrade()) {
                    queue.notice_idle();
                }
            }
        }
    }
}

/// The commands that wait. Made for the first one: a lane that never fills costs little, and there may be many lanes.
#[derive(Default)]
struct LaneQueue(OnceLock<Box<SegQueue<Runnable>>>);

impl Waiting<Runnable> for LaneQueue {
    fn push(&self, runnable: Runnable) {
        self.0.get_or_init(Box::default).push(runnable);
    }

    fn pop(&self) -> Option<Runnable> {
        self.0.get()?.pop()
    }

    fn is_empty(&self) -> bool {
        self.0.get().is_none_or(|queue| queue.is_empty())
    }
}
