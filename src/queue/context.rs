//! The command that runs on this thread, as its own code sees it, and the commands that it has submitted.
//!
//! Set for the duration of a poll by the attempt, which keeps it in between.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scoped_tls::scoped_thread_local;

use super::Priority;
use super::admission::LaneCore;
use super::attempt::{Limits, Permit};
use super::durable::Verdict;
use super::settle::Whereabouts;
use crate::clock::Tick;
use crate::event::UNMEASURED;
use crate::executor::life::End;
use crate::executor::{Handle, TaskRef};
use crate::id::CommandId;
use crate::metrics::{Count, Since};

scoped_thread_local!(static CURRENT: Running);

/// A command that was accepted, as its attempts and its own code see it: part of the memory of every command, so small.
pub(super) struct Running {
    pub(super) task: TaskRef,
    pub(super) id: CommandId,
    pub(super) lane: Arc<LaneCore>,
    pub(super) submitted: Since,
    /// What its present attempt is held to.
    pub(super) limits: Option<Box<Limits>>,
    /// Which attempt this is, from 1; 0 before the first.
    pub(super) attempt: u32,
    pub(super) place: Whereabouts,
    pub(super) permit: Permit,
    /// Its polls so far.
    polls: Cell<u32>,
    /// Tickets of unfinished commands that its present or last poll has met and still has.
    waits: Cell<u32>,
    family: Cell<Option<Box<Family>>>,
}

/// What ends with an attempt that is given up. Most have none.
#[derive(Debug, Default)]
struct Family {
    /// Commands that it has submitted and not detached.
    children: Vec<Handle>,
    token: Option<Arc<AtomicBool>>,
    /// It runs alone.
    trial: Option<Arc<Verdict>>,
}

/// What a command passes on to those that it submits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent {
    pub(super) total_deadline: Tick,
}

impl Running {
    #[inline]
    pub(super) fn new(task: TaskRef, id: CommandId, lane: Arc<LaneCore>, place: Whereabouts) -> Self {
        let (polls, waits, family) = (Cell::new(0), Cell::new(0), Cell::new(None));
        let submitted = lane.meter().map_or(Since::UNKNOWN, |meter| meter.submitted(&task.meta().shared.clock));
        Self { task, id, lane, submitted, limits: None, attempt: 0, place, permit: Permit::Held, polls, waits, family }
    }

    /// The next attempt begins.
    pub(super) fn begin(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
        self.permit = Permit::Held;
    }

    /// When its present attempt began; unknown if none runs, or nobody measures it.
    pub(super) fn started(&self) -> Since {
        Since::from_word(self.task.meta().started.load(Ordering::Relaxed))
    }

    /// It waits from then on only: it was delayed when it was submitted.
    pub(super) fn due_after(&mut self, delay: Duration) {
        self.submitted = self.submitted.after(delay);
    }

    /// An attempt begins that is to be measured.
    #[inline]
    pub(super) fn measure_start(&self, is_first: bool) {
        if let Some(meter) = self.lane.meter() {
            let meta = self.task.meta();
            let started = meter.started(&meta.shared.clock, self.submitted, is_first);
            meta.started.store(started.word(), Ordering::Relaxed);
        }
    }

    /// How long it waited before its present attempt, in nanoseconds, if that is measured and is the first one.
    pub(super) fn wait(&self) -> u64 {
        let (submitted, started) = (self.submitted, self.started());
        let is_known = submitted.is_known() && started.is_known() && self.attempt == 1;
        if is_known { started.stamp().saturating_sub(submitted.stamp()) } else { UNMEASURED }
    }

    /// A poll of the attempt was in vain.
    #[inline]
    pub(super) fn measure_wait(&self) {
        if let Some(meter) = self.lane.meter()
            && self.started().is_known()
        {
            meter.waits();
        }
    }

    /// An attempt has ended, or the command has, or both. Gives how long the attempt ran, in nanoseconds, if that is measured.
    #[inline]
    pub(super) fn measure_end(&self, settled: Option<Count>, command_type: impl FnOnce() -> Arc<str>) -> u64 {
        let Some(meter) = self.lane.meter() else { return UNMEASURED };
        let meta = self.task.meta();
        let started = self.started();
        if started.is_known() {
            meta.started.store(0, Ordering::Relaxed);
        }
        let ran = meter.ended(&meta.shared.clock, started, settled, command_type);
        if started.is_known() { ran } else { UNMEASURED }
    }

    /// An attempt has ended, and another one may follow: what it has submitted goes on, and what it was held to is over.
    pub(super) fn rest(&mut self) {
        self.family.take();
        self.limits = None;
    }

    /// By when the command must have settled.
    fn total_deadline(&self) -> Tick {
        self.limits.as_ref().map_or(Tick::NEVER, |limits| limits.total_deadline)
    }

    /// Runs a poll of the attempt as the thread's current command.
    #[inline]
    pub(super) fn during<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.polls.set(self.polls.get().wrapping_add(1));
        self.waits.set(0);
        CURRENT.set(self, poll)
    }

    /// Whether it can not go on before a command of its own ends. One that does something else besides, as in a join, counts as
    /// waiting, too.
    pub(super) fn waits(&self) -> bool {
        self.waits.get() > 0
    }

    pub(super) fn on_trial(&self, trial: Option<Arc<Verdict>>) {
        if trial.is_some() {
            self.with_family(|family| family.trial = trial);
        }
    }

    /// It waits for another command, which could not run while this one runs alone.
    pub(super) fn end_trial(&self) {
        // Most are not on trial: nothing is made for that.
        let Some(mut family) = self.family.take() else { return };
        let trial = family.trial.take();
        self.family.set(Some(family));
        if let Some(trial) = trial {
            trial.end();
        }
    }

    /// The attempt was given up: so is what it has submitted. If its queue stops, that is why its children end, too.
    pub(super) fn give_up(&self) {
        let Some(family) = self.family.take() else { return };
        let stops = self.lane.is_cancelling() || self.task.meta().life.end() == Some(End::Stopped);
        let end = if stops { End::Stopped } else { End::Cancelled };
        if let Some(token) = family.token {
            token.store(true, Ordering::Release);
        }
        for child in family.children {
            cancel(&child, end);
        }
    }

    fn with_family<T>(&self, change: impl FnOnce(&mut Family) -> T) -> T {
        let mut family = self.family.take().unwrap_or_default();
        let changed = change(&mut family);
        self.family.set(Some(family));
        changed
    }

    fn adopt(&self, child: Handle) {
        let ended: Vec<_> = self.with_family(|Family { children, .. }| {
            // Those that have ended are swept when the list is about to grow.
            let sweeps = children.len() == children.capacity();
            let ended = if sweeps {
                children.extract_if(.., |child| child.meta().life.end().is_some()).collect()
            } else {
                vec![]
            };
            children.push(child);
            ended
        });
        // With a cell may go a waker, which is others' code.
        drop(ended);
    }
}

/// Ends a command that may be queued, waiting or running. False if it has ended already.
pub(super) fn cancel(handle: &Handle, end: End) -> bool {
    let ended = handle.meta().life.try_end(end);
    if let Ok(ended) = ended {
        stop(handle, ended.was_queued);
    }
    ended.is_ok()
}

/// Has a command that was ended stop: one that was queued is dropped here, another one sees at its next poll that it has
/// ended.
pub(super) fn stop(handle: &Handle, was_queued: bool) {
    // Only a queued one: what is parked otherwise has been admitted, and its turn to stop comes.
    match was_queued.then(|| handle.unpark()).flatten() {
        Some(runnable) => drop(runnable),
        None => handle.wake(),
    }
}

#[inline]
fn current<T>(look: impl FnOnce(&Running) -> T) -> Option<T> {
    CURRENT.is_set().then(|| CURRENT.with(look))
}

/// What the command that runs here passes on.
pub(super) fn parent() -> Option<Parent> {
    current(|running| Parent { total_deadline: running.total_deadline() })
}

/// Cancels `child` with the command that runs here.
pub(super) fn adopt(child: impl FnOnce() -> Handle) {
    current(|running| running.adopt(child()));
}

/// Says that the command that runs here waits for another one, until it is dropped within the same poll: who gives up
/// waiting and goes on does not wait.
#[derive(Debug)]
pub(super) struct Wait {
    id: CommandId,
    poll: u32,
}

impl Wait {
    /// Notes the wait, if it is not noted; says at which priority the waiting command is. None outside of one.
    pub(super) fn note(wait: &mut Option<Self>) -> Option<Priority> {
        current(|running| {
            let (id, poll) = (running.id, running.polls.get());
            if wait.as_ref().is_none_or(|noted| (noted.id, noted.poll) != (id, poll)) {
                running.waits.set(running.waits.get() + 1);
                // The one before is of another poll, or another command.
                std::mem::forget(wait.replace(Self { id, poll }));
            }
            running.task.meta().priority()
        })
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        current(|running| {
            if (running.id, running.polls.get()) == (self.id, self.poll) {
                running.waits.set(running.waits.get().saturating_sub(1));
            }
        });
    }
}

/// The command that runs on the calling thread, as seen by its own code. From [`CommandContext::current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandContext {
    /// Its id, as in its events and its ticket.
    pub id: CommandId,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How much of its total time was left when this was asked; none if it has no limit.
    pub time_left: Option<Duration>,
}

impl CommandContext {
    /// The command whose poll this is called from; none outside of one (also in a thread or task that it has started).
    #[must_use]
    pub fn current() -> Option<Self> {
        current(|running| {
            let now = || running.task.meta().shared.clock.now();
            let limited = running.total_deadline() != Tick::NEVER;
            let time_left = limited.then(|| running.total_deadline().since(now()));
            Self { id: running.id, attempt: running.attempt, time_left }
        })
    }
}

/// Whether the command that runs on the calling thread was cancelled or has run out of time: it is dropped at its next
/// await. For code that computes for long between two awaits. False outside of a command, and when the queue stops: that
/// ends commands at their next await, without a word before.
#[must_use]
pub fn is_cancelled() -> bool {
    current(|running| running.task.meta().life.end().is_some()).unwrap_or(false)
}

/// Says to threads and tasks that a command has started whether it was given up: cancelled, out of time, or dropped with its
/// executor. Set when the command's attempt is dropped.
#[derive(Clone, Debug)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// The token of the attempt whose poll this is called from; none outside of one.
    #[must_use]
    pub fn current() -> Option<Self> {
        current(|running| running.with_family(|family| Self(Arc::clone(family.token.get_or_insert_with(Arc::default)))))
    }

    /// Whether the attempt was given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
