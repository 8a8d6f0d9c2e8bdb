//! Tasks: a spawned future, its handle, and the containment of its panics.
//!
//! The cell is async-task's: one allocation that holds the future, then its output, and is its own wake-up handle. This
//! file is the only one that knows so. Added here: metadata (executor, priority, life), a schedule function without
//! captures, and a wrapper that catches panics of polls and destructors, since async-task aborts on the latter.
//!
//! A task that waits to be admitted is *parked*: its one [`Runnable`] lies in its own cell, and any number of [`Handle`]s
//! lead there. Taking it out is a swap, so it is taken once, whoever comes. So a task can stand in several queues at a time.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use atomic_waker::AtomicWaker;
use pin_project_lite::pin_project;
use thiserror::Error;

use super::life::{Birth, Life};
use super::shared::Shared;
use super::slot::Slot;
use super::timers::TimerKey;
use super::waiting::WaitingKey;
use crate::clock::Tick;

/// A task that is due for a poll. Dropping it cancels the task.
pub(crate) type Runnable = async_task::Runnable<Meta>;

/// The part of the cell that every task has.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) shared: &'static Shared,
    /// Only gets better: by a boost, or because better work waits for this.
    priority: AtomicU8,
    pub(crate) life: Life,
    /// The best priority of those who wait for the task; [`NOBODY`] if nobody does.
    awaited: AtomicU8,
    /// The task's runnable while it is parked.
    parked: Slot,
    pub(crate) timed: Option<Box<Timed>>,
}

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
    pub(crate) fn priority(&self) -> u8 {
        self.priority.load(Ordering::Relaxed)
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

impl Drop for Meta {
    fn drop(&mut self) {
        self.shared.task_destroyed();
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
    cell: Option<async_task::FallibleTask<Output<T>, Meta>>,
    /// Valid while `cell` is there.
    meta: TaskRef,
}

impl<T> Task<T> {
    /// Lets the task run on without a handle.
    pub fn detach(self) {}

    /// Whether the result is there: the next await returns at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.cell.as_ref().is_none_or(async_task::FallibleTask::is_finished)
    }

    /// Cancels the task and waits until its future is dropped.
    ///
    /// The request takes effect at once, even if the returned future is never polled; a poll that is running ends first.
    ///
    /// # Errors
    ///
    /// [`TaskError::Cancelled`], or [`TaskError::Panicked`] if the task had already panicked. A task that had already
    /// finished gives its value.
    pub fn cancel(mut self) -> Cancel<T>
    where
        T: Send + 'static,
    {
        let mut cancel = self.cell.take().map(|cell| {
            let cancel: Cancelling<T> = Box::pin(cell.cancel());
            cancel
        });
        // The first poll is what closes the task. Its answer is kept, if there is one already.
        let mut early = None;
        if let Some(future) = &mut cancel
            && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()))
        {
            early = Some(settle(output));
        }
        Cancel { cancel, early }
    }

    /// Polls for the result, and stays attached: the metadata can still be read.
    pub(crate) fn poll_attached(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, TaskError>> {
        match &mut self.cell {
            Some(cell) => Pin::new(cell).poll(cx).map(settle),
            None => Poll::Ready(Err(TaskError::Cancelled)),
        }
    }

    /// Cancels the task without waiting: its future is dropped by a worker at its next turn.
    pub(crate) fn abort(&mut self) {
        drop(self.cell.take());
    }

    /// The metadata, while the handle is attached.
    pub(crate) fn meta(&self) -> Option<&Meta> {
        self.cell.as_ref().map(|_| self.meta.meta())
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell.detach();
        }
    }
}

impl<T> Unpin for Task<T> {}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    /// A task polled again after it has finished is `Cancelled`: its value is gone.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(cell) = &mut self.cell else { return Poll::Ready(Err(TaskError::Cancelled)) };
        let output = ready!(Pin::new(cell).poll(cx));
        self.cell = None;
        Poll::Ready(settle(output))
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

type Cancelling<T> = Pin<Box<dyn Future<Output = Option<Output<T>>> + Send>>;

/// Waits for a cancelled task to stop; see [`Task::cancel`].
#[must_use = "the task is cancelled either way; await this to know that it has stopped"]
pub struct Cancel<T> {
    cancel: Option<Cancelling<T>>,
    early: Option<Result<T, TaskError>>,
}

impl<T> Unpin for Cancel<T> {}

impl<T> Future for Cancel<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.early.take() {
            self.cancel = None;
            return Poll::Ready(result);
        }
        let Some(cancel) = &mut self.cancel else { return Poll::Ready(Err(TaskError::Cancelled)) };
        let output = ready!(cancel.as_mut().poll(cx));
        self.cancel = None;
        Poll::Ready(settle(output))
    }
}

impl<T> fmt::Debug for Cancel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").finish_non_exhaustive()
    }
}

fn settle<T>(output: Option<Output<T>>) -> Result<T, TaskError> {
    match output.and_then(Output::into_inner) {
        Some(result) => result.map_err(TaskError::Panicked),
        None => Err(TaskError::Cancelled),
    }
}

/// A future's or a handle's view of the task's metadata, for as long as that future lives or the handle is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskRef(NonNull<Meta>);

// SAFETY: it only gives shared access to `Meta`, which is `Sync`.
unsafe impl Send for TaskRef {}
// SAFETY: as above.
unsafe impl Sync for TaskRef {}

impl TaskRef {
    /// The metadata.
    pub(crate) fn meta(&self) -> &Meta {
        // SAFETY: `new` made this from the metadata in the cell and gave it to the cell's future and to its handle only.
        // Both keep the cell alive and in place; the handle checks that it is attached (`Task::meta`). The watch borrows
        // the future's, under a claim that the future waits for before it goes on (`shown`); a `Handle` has a waker of the
        // task along with it, which keeps the cell, too. The metadata is never borrowed mutably before the cell is
        // destroyed, after all of them.
        unsafe { self.0.as_ref() }
    }
}

/// A way to a task from wherever it stands in a queue. Keeps its cell alive, not its future.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    task: TaskRef,
    waker: Waker,
}

impl Handle {
    /// Parks a task in its own cell. It becomes due by [`Handle::unpark`] only, and is never dropped without it.
    pub(crate) fn park(runnable: Runnable) -> Self {
        let handle = Self { task: TaskRef(NonNull::from(runnable.metadata())), waker: runnable.waker() };
        handle.meta().parked.put(runnable.into_raw());
        handle
    }

    /// A way to a task that is not parked.
    pub(crate) fn of(runnable: &Runnable) -> Self {
        Self { task: TaskRef(NonNull::from(runnable.metadata())), waker: runnable.waker() }
    }

    /// A way to the task that is being polled: `task` and its own waker.
    pub(crate) fn of_running(task: TaskRef, waker: &Waker) -> Self {
        Self { task, waker: waker.clone() }
    }

    /// Takes the task out, for the one caller that comes first.
    pub(crate) fn unpark(&self) -> Option<Runnable> {
        let raw = self.meta().parked.take()?;
        // SAFETY: `park` made this from the runnable of this very cell, whose type is this file's `Runnable`, and put it in
        // once; the slot gives it to one caller.
        Some(unsafe { Runnable::from_raw(raw) })
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.meta().parked.is_full()
    }

    pub(crate) fn meta(&self) -> &Meta {
        self.task.meta()
    }

    /// Wakes a task that is not parked.
    pub(crate) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    pub(crate) fn same(&self, other: TaskRef) -> bool {
        self.task.0 == other.0
    }
}

/// Makes a task. The runnable is not scheduled yet; `birth` says whether it may be scheduled straight away.
///
/// `timed` says whether the task may end before its future stops. `make` gets the task's own reference, which must not leave
/// the future.
pub(crate) fn new<F>(
    shared: &'static Shared,
    priority: u8,
    birth: Birth,
    timed: bool,
    make: impl FnOnce(TaskRef) -> F,
) -> (Runnable, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    shared.task_created();
    let meta = Meta {
        shared,
        priority: AtomicU8::new(priority),
        life: Life::new(birth),
        awaited: AtomicU8::new(NOBODY),
        parked: Slot::new(),
        timed: timed.then(Box::default),
    };
    // The metadata stays where it is from here on: in the cell.
    let (runnable, cell) = async_task::Builder::new().metadata(meta).spawn(
        move |meta: &Meta| {
            let task = TaskRef(NonNull::from(meta));
            Contain { future: Some(make(task)), task, waiting: None }
        },
        schedule,
    );
    let meta = TaskRef(NonNull::from(runnable.metadata()));
    (runnable, Task { cell: Some(cell.fallible()), meta })
}

/// Called by async-task when a task becomes due: no captures, so that a wake-up costs no reference count.
fn schedule(runnable: Runnable) {
    let meta = runnable.metadata();
    let (shared, priority) = (meta.shared, meta.priority());
    shared.push(priority, runnable);
}

pin_project! {
    /// Keeps a future's panics from its worker: in a poll, and in the destructor.
    struct Contain<F> {
        // None once it has ended.
        #[pin]
        future: Option<F>,
        task: TaskRef,
        waiting: Option<WaitingKey>,
    }
    impl<F> PinnedDrop for Contain<F> {
        fn drop(this: Pin<&mut Self>) {
            if this.future.is_some() && let Err(payload) = this.end() {
                report_destructor_panic(payload);
            }
        }
    }
}

impl<F> Contain<F> {
    /// Drops the future; the error is what its destructor panicked with.
    fn end(self: Pin<&mut Self>) -> Result<(), Box<dyn Any + Send>> {
        let this = self.project();
        let mut future = this.future;
        let dropped = catch_unwind(AssertUnwindSafe(|| future.set(None)));
        let shared = this.task.meta().shared;
        if let Some(key) = this.waiting.take() {
            shared.task_waits_no_more(key);
        }
        shared.task_finished();
        dropped
    }
}

impl<F: Future> Future for Contain<F> {
    type Output = Output<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let mut future = this.future;
        let shared = this.task.meta().shared;
        let rounds = this.waiting.is_none().then(|| shared.rounds());
        let polled = catch_unwind(AssertUnwindSafe(|| match future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        }));
        let result = match polled {
            Ok(Poll::Pending) => {
                let this = self.project();
                if let Some(rounds) = rounds {
                    *this.waiting = shared.task_waits(cx.waker(), rounds);
                }
                return Poll::Pending;
            }
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => Err(payload),
        };
        Poll::Ready(Output(Some(match (result, self.end()) {
            (Ok(_), Err(payload)) => Err(payload),
            (result, _) => result,
        })))
    }
}

/// What a future left: its value, or what it panicked with. Contains panics of the value's destructor.
struct Output<T>(Option<Result<T, Box<dyn Any + Send>>>);

impl<T> Output<T> {
    fn into_inner(mut self) -> Option<Result<T, Box<dyn Any + Send>>> {
        self.0.take()
    }
}

impl<T> Drop for Output<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take()
            && let Err(payload) = catch_unwind(AssertUnwindSafe(move || drop(value)))
        {
            report_destructor_panic(payload);
        }
    }
}

/// Nobody is left to return this to.
#[cold]
fn report_destructor_panic(payload: Box<dyn Any + Send>) {
    tracing::error!(panic = panic_message(payload.as_ref()), "a destructor panicked on a worker; contained");
    discard_panic(payload);
}

/// Drops what something panicked with. Its destructor may panic in turn; what that panics with is leaked.
pub(crate) fn discard_panic(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}
