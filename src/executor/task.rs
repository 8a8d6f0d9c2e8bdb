//! Tasks: a spawned future's metadata, its handle, and what became of it. The cell itself is in `cell`.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use atomic_waker::AtomicWaker;
use thiserror::Error;

use super::cell::{self, Join, MetaRef, Metadata, Value};
use super::life::{Birth, Life};
use super::shared::Shared;
use super::timers::TimerKey;
use super::waiting::WaitingKey;
use crate::clock::Tick;

/// A task that is due for a poll. Dropping it cancels the task.
pub(crate) type Runnable = cell::Runnable<Meta>;
/// A way to a task from wherever it stands in a queue.
pub(crate) type Handle = cell::Handle<Meta>;
/// A task's metadata as its own future sees it.
pub(crate) type TaskRef = MetaRef<Meta>;

/// The part of the cell that every task has.
pub(crate) struct Meta {
    pub(crate) shared: &'static Shared,
    /// Only gets better: by a boost, or because better work waits for this.
    priority: AtomicU8,
    pub(crate) life: Life,
    /// The best priority of those who wait for the task; [`NOBODY`] if nobody does.
    awaited: AtomicU8,
    /// See [`Making`]: both in a byte, since the cell has none to spare.
    traits: Traits,
    /// See [`Making`].
    pub(crate) owner: u32,
    /// For who measures: since when the task does what its owner counts; 0 if it does not. Written by its future.
    pub(crate) started: AtomicU64,
    pub(crate) timed: Option<Box<Timed>>,
    /// Where the task is known to wait. Written by who polls it.
    waiting: Cell<Option<WaitingKey>>,
}

// SAFETY: `waiting` is used in `Metadata`'s three methods around a poll only, which are called by who has the runnable.
unsafe impl Sync for Meta {}

/// Worse than every priority.
const NOBODY: u8 = u8::MAX;

/// What only tasks with a time limit have.
#[derive(Debug, Default)]
pub(crate) struct Timed {
    /// Woken when the task ends before its future stops; see [`Life`].
    pub(crate) early: AtomicWaker,
    alarm: Mutex<Alarm>,
}

/// A timer that runs until the task starts.
#[derive(Debug, Default)]
enum Alarm {
    #[default]
    Unset,
    Set(TimerKey),
    /// The task has started or ended: no more timers.
    Off,
}

impl Meta {
    #[inline]
    fn new(shared: &'static Shared, making: Making) -> Self {
        let Making { priority, birth, timed, traits, owner } = making;
        shared.task_created();
        Self {
            shared,
            priority: AtomicU8::new(priority),
            life: Life::new(birth),
            awaited: AtomicU8::new(NOBODY),
            traits,
            owner,
            started: AtomicU64::new(0),
            timed: timed.then(Box::default),
            waiting: Cell::new(None),
        }
    }

    #[inline]
    pub(crate) fn priority(&self) -> u8 {
        self.priority.load(Ordering::Relaxed)
    }

    /// The worker that it is put to, if it has one.
    #[inline]
    pub(crate) fn home(&self) -> Option<Home> {
        self.traits.home()
    }

    /// See [`Making`].
    #[inline]
    pub(super) fn has_ambient(&self) -> bool {
        self.traits.has_ambient()
    }

    /// Makes the priority at least this good from the next time that the task becomes due; says whether it was worse.
    pub(crate) fn raise(&self, priority: u8) -> bool {
        self.priority.fetch_min(priority, Ordering::Relaxed) > priority
    }

    /// Somebody at `priority` waits for the task.
    pub(crate) fn note_awaited(&self, priority: u8) {
        self.awaited.fetch_min(priority, Ordering::AcqRel);
    }

    /// The best priority of those who have waited for the task.
    pub(crate) fn awaited(&self) -> Option<u8> {
        Some(self.awaited.load(Ordering::Acquire)).filter(|priority| *priority != NOBODY)
    }

    /// Has `waker` woken at `deadline`, unless the task has started by then. Replaces the alarm set before.
    pub(crate) fn set_alarm(&self, deadline: Tick, waker: Waker) {
        let Some(timed) = &self.timed else { return };
        let mut alarm = timed.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*alarm, Alarm::Off) {
            let key = self.shared.set_timer(deadline, waker);
            let before = std::mem::replace(&mut *alarm, Alarm::Set(key));
            drop(alarm);
            self.cancel(&before);
        }
    }

    /// The task has started or ended.
    #[inline]
    pub(crate) fn alarm_off(&self) {
        if let Some(timed) = &self.timed {
            let before =
                std::mem::replace(&mut *timed.alarm.lock().unwrap_or_else(PoisonError::into_inner), Alarm::Off);
            self.cancel(&before);
        }
    }

    fn cancel(&self, alarm: &Alarm) {
        if let Alarm::Set(key) = *alarm {
            self.shared.cancel_timer(key);
        }
    }

    /// Tells whoever waits for the task that it has ended, although its future has not stopped yet.
    pub(crate) fn tell_early(&self) {
        if let Some(timed) = &self.timed {
            timed.early.wake();
        }
    }
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meta").field("priority", &self.priority).field("life", &self.life).finish_non_exhaustive()
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.shared.task_destroyed();
    }
}

impl Metadata for Meta {
    fn schedule(runnable: Runnable) {
        let Self { shared, .. } = *runnable.metadata();
        shared.push(runnable.metadata().priority(), runnable);
    }

    fn before_poll(&self) -> u64 {
        self.shared.rounds()
    }

    fn polled_in_vain(&self, rounds: u64, task: &Handle) {
        if self.waiting.get().is_none() {
            self.waiting.set(self.shared.task_waits(task, rounds));
        }
    }

    fn finished(&self) {
        if let Some(key) = self.waiting.take() {
            self.shared.task_waits_no_more(key);
        }
        self.shared.task_finished();
    }
}

/// Why a [`Task`] has no value.
#[derive(Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The future panicked in a poll or in its destructor; this is what it panicked with.
    #[error("task panicked: {}", panic_message(.0.as_ref()))]
    Panicked(Box<dyn Any + Send>),
    /// The task was cancelled: by [`Task::cancel`], or because its executor was closed.
    #[error("task was cancelled")]
    Cancelled,
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(payload) => f.debug_tuple("Panicked").field(&panic_message(payload.as_ref())).finish(),
            Self::Cancelled => f.write_str("Cancelled"),
        }
    }
}

/// The text of a panic, where it has one.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(not a text)"
    }
}

/// The handle of a spawned future: await it for the result.
///
/// Dropping the handle detaches the task, which then runs on unobserved. Awaiting is cancel-safe: a handle polled in one
/// place can be awaited in another.
#[must_use = "dropping a task detaches it; call `detach` to say so"]
pub struct Task<T> {
    /// None once detached, cancelled or finished.
    join: Option<Join<T, Meta>>,
}

impl<T> Task<T> {
    /// Lets the task run on without a handle.
    pub fn detach(self) {}

    /// Whether the result is there: the next await returns at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join.as_ref().is_none_or(Join::is_finished)
    }

    /// Cancels the task and waits until its future is dropped.
    ///
    /// The request takes effect at once, even if the returned future is never polled; a poll that is running ends first.
    ///
    /// # Errors
    ///
    /// [`TaskError::Cancelled`], or [`TaskError::Panicked`] if the task had already panicked. A task that had already
    /// finished gives its value.
    pub fn cancel(mut self) -> Cancel<T> {
        let join = self.join.take();
        if let Some(join) = &join {
            join.close();
        }
        Cancel { task: Self { join } }
    }

    /// Polls for the result, and stays attached: the metadata can still be read.
    #[inline]
    pub(crate) fn poll_attached(&mut self, cx: &Context<'_>) -> Poll<Result<T, TaskError>> {
        match &mut self.join {
            Some(join) => join.poll(cx).map(settle),
            None => Poll::Ready(Err(TaskError::Cancelled)),
        }
    }

    /// Cancels the task without waiting: its future is dropped by a worker at its next turn.
    pub(crate) fn abort(&mut self) {
        if let Some(join) = self.join.take() {
            join.close();
        }
    }

    /// Another way to the task, while this is attached.
    pub(crate) fn handle(&self) -> Option<Handle> {
        self.join.as_ref().map(Join::handle)
    }

    /// The metadata, while the handle is attached.
    #[inline]
    pub(crate) fn meta(&self) -> Option<&Meta> {
        self.join.as_ref().map(Join::meta)
    }
}

impl<T> Drop for Task<T> {
    // Takes along whom it has registered to hear of an early end, as the cell does with its own.
    fn drop(&mut self) {
        if let Some(timed) = self.meta().and_then(|meta| meta.timed.as_ref()) {
            drop(timed.early.take());
        }
    }
}

impl<T> Unpin for Task<T> {}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    /// A task polled again after it has finished is `Cancelled`: its value is gone.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.poll_attached(cx));
        self.join = None;
        Poll::Ready(result)
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

/// Waits for a cancelled task to stop; see [`Task::cancel`].
#[must_use = "the task is cancelled either way; await this to know that it has stopped"]
pub struct Cancel<T> {
    task: Task<T>,
}

impl<T> Unpin for Cancel<T> {}

impl<T> Future for Cancel<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(cx)
    }
}

impl<T> fmt::Debug for Cancel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").finish_non_exhaustive()
    }
}

#[inline]
fn settle<T>(value: Option<Value<T>>) -> Result<T, TaskError> {
    value.map_or(Err(TaskError::Cancelled), |value| value.map_err(TaskError::Panicked))
}

/// A worker, as a number below that of all workers that run everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home(u8);

impl Home {
    pub(super) const fn new(worker: usize) -> Self {
        assert!(worker < super::park::MAX_WORKERS);
        Self(worker as u8)
    }

    pub(super) const fn worker(self) -> usize {
        self.0 as usize
    }
}

/// Bit 7: its polls say by themselves what surrounds them. The others: the worker that it is put to when it is due, unless another
/// one already runs it; or [`Traits::HOMELESS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits(u8);

impl Traits {
    const HAS_AMBIENT: u8 = 1 << 7;
    const HOMELESS: u8 = Self::HAS_AMBIENT - 1;

    pub(crate) const fn new(has_ambient: bool, home: Option<Home>) -> Self {
        let home = match home {
            Some(home) => home.0,
            None => Self::HOMELESS,
        };
        Self(if has_ambient { Self::HAS_AMBIENT | home } else { home })
    }

    const fn has_ambient(self) -> bool {
        self.0 & Self::HAS_AMBIENT != 0
    }

    fn home(self) -> Option<Home> {
        let home = self.0 & !Self::HAS_AMBIENT;
        (home != Self::HOMELESS).then_some(Home(home))
    }
}

const _: () = assert!(super::park::MAX_WORKERS < Traits::HOMELESS as usize);
// It goes in a register.
const _: () = assert!(size_of::<Making>() == 8);

/// What a new task is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making {
    pub(crate) priority: u8,
    /// Whether it may be scheduled straight away.
    pub(crate) birth: Birth,
    /// Whether it may end before its future stops.
    pub(crate) timed: bool,
    pub(crate) traits: Traits,
    /// Who asked for it, as a number that the executor makes nothing of.
    pub(crate) owner: u32,
}

impl Making {
    pub(crate) const fn plain(priority: u8) -> Self {
        Self { priority, birth: Birth::Admitted, timed: false, traits: Traits::new(false, None), owner: 0 }
    }
}

/// Makes a task. The runnable is not scheduled yet. `make` gets the task's own reference, which must not leave the future.
#[inline]
pub(crate) fn new<F>(
    shared: &'static Shared,
    making: Making,
    make: impl FnOnce(TaskRef) -> F,
) -> (Runnable, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (runnable, join) = cell::new(Meta::new(shared, making), make);
    (runnable, Task { join: Some(join) })
}

/// The same, parked.
pub(crate) fn new_parked<F>(
    shared: &'static Shared,
    making: Making,
    make: impl FnOnce(TaskRef) -> F,
) -> (Handle, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (handle, join) = cell::new_parked(Meta::new(shared, making), make);
    (handle, Task { join: Some(join) })
}

/// Nobody is left to return this to.
#[cold]
pub(super) fn report_panic(payload: Box<dyn Any + Send>) {
    tracing::error!(panic = panic_message(payload.as_ref()), "a destructor or a waker panicked; contained");
    discard_panic(payload);
}

/// Drops what something panicked with. Its destructor may panic in turn; what that panics with is leaked.
pub(crate) fn discard_panic(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}
