//! The command that runs on this thread, as its own code sees it, and the commands that it has submitted.
//!
//! Set for the duration of a poll by the attempt, which keeps it in between.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Priority;
use crate::clock::Tick;
use crate::executor::life::End;
use crate::executor::{Handle, TaskRef};
use crate::id::CommandId;

thread_local! {
    static CURRENT: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// An attempt that is being polled.
#[derive(Debug)]
pub(super) struct Running {
    task: TaskRef,
    id: CommandId,
    attempt: u32,
    /// By when the command must have settled.
    total_deadline: Tick,
    /// Its polls so far.
    polls: u32,
    /// Tickets of unfinished commands that its present or last poll has met and still has.
    waits: u32,
    family: Option<Box<Family>>,
}

/// What ends with an attempt that is given up. Most have none.
#[derive(Debug, Default)]
struct Family {
    /// Commands that it has submitted and not detached.
    children: Vec<Handle>,
    token: Option<Arc<AtomicBool>>,
}

/// What a command passes on to those that it submits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent {
    pub(super) total_deadline: Tick,
}

impl Running {
    pub(super) fn new(task: TaskRef, id: CommandId, attempt: u32, total_deadline: Tick) -> Self {
        Self { task, id, attempt, total_deadline, polls: 0, waits: 0, family: None }
    }

    pub(super) fn id(&self) -> CommandId {
        self.id
    }

    /// Runs a poll of the attempt as the thread's current command.
    pub(super) fn during<T>(slot: &mut Option<Self>, poll: impl FnOnce() -> T) -> T {
        struct Restore<'a> {
            slot: &'a mut Option<Running>,
            outer: Option<Running>,
        }
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.slot = CURRENT.replace(self.outer.take());
            }
        }
        if let Some(running) = slot {
            running.polls = running.polls.wrapping_add(1);
            running.waits = 0;
        }
        let outer = CURRENT.replace(slot.take());
        let _restore = Restore { slot, outer };
        poll()
    }

    /// Whether it can not go on before a command of its own ends. One that does something else besides, as in a join, counts as
    /// waiting, too.
    pub(super) fn waits(&self) -> bool {
        self.waits > 0
    }

    /// The attempt was given up: so is what it has submitted.
    pub(super) fn give_up(&mut self) {
        let Some(family) = self.family.take() else { return };
        if let Some(token) = family.token {
            token.store(true, Ordering::Release);
        }
        for child in family.children {
            cancel(&child, End::Cancelled);
        }
    }

    fn adopt(&mut self, child: Handle) {
        let children = &mut self.family.get_or_insert_default().children;
        // Those that have ended are swept when the list is about to grow.
        if children.len() == children.capacity() {
            children.retain(|child| child.meta().life.end().is_none());
        }
        children.push(child);
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

fn current<T>(look: impl FnOnce(&mut Running) -> T) -> Option<T> {
    // Not while the thread ends, nor from within itself.
    CURRENT.try_with(|current| current.try_borrow_mut().ok()?.as_mut().map(look)).ok().flatten()
}

/// What the command that runs here passes on.
pub(super) fn parent() -> Option<Parent> {
    current(|running| Parent { total_deadline: running.total_deadline })
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
            let (id, poll) = (running.id, running.polls);
            if wait.as_ref().is_none_or(|noted| (noted.id, noted.poll) != (id, poll)) {
                running.waits += 1;
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
            if (running.id, running.polls) == (self.id, self.poll) {
                running.waits = running.waits.saturating_sub(1);
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
            let limited = running.total_deadline != Tick::NEVER;
            let time_left = limited.then(|| running.total_deadline.since(now()));
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
        current(|running| {
            Self(Arc::clone(running.family.get_or_insert_default().token.get_or_insert_with(Arc::default)))
        })
    }

    /// Whether the attempt was given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
