//! The task cell: one allocation for a future, then its value, which is also the way to wake and to await it.
//!
//! Who may touch what, by the bits of [`State`](super::state):
//!
//! | part | who |
//! |---|---|
//! | state, vtable | every reference |
//! | metadata | every reference, shared |
//! | future | who has the [`Runnable`], until it sets `DONE` |
//! | value | who sets `DONE`; from then on the join handle, and without one who set it |
//! | awaiter | the join handle while `AWAITED` is clear; who set `DONE` if `AWAITED` was set |
//!
//! Panics of polls become the value; those of destructors of futures do, too, and those of destructors of values and of
//! awaiters are reported. None of them leaves this file.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::memory;
use super::state::{Finish, Joined, State, Turn, Vain, Woken};
use super::task::report_panic;
use crate::sync::cell::UnsafeCell;

/// What a future left: its value, or what it panicked with.
pub(crate) type Value<T> = Result<T, Box<dyn Any + Send>>;

/// What every task of an executor has, and the executor's side of a task's life.
pub(crate) trait Metadata: Send + Sync + Sized + 'static {
    /// Puts a task that has become due on a run queue.
    fn schedule(runnable: Runnable<Self>);
    /// Before a poll, by who has the runnable.
    fn before_poll(&self) -> u64;
    /// After a poll in vain, with what `before_poll` gave.
    fn polled_in_vain(&self, before: u64, task: &Handle<Self>);
    /// The future is gone.
    fn finished(&self);
}

struct Header<M: 'static> {
    state: State,
    vtable: &'static VTable<M>,
    awaiter: UnsafeCell<Option<Waker>>,
    meta: M,
}

#[repr(C)]
struct Cell<F: Future, M: 'static> {
    header: Header<M>,
    stage: UnsafeCell<Stage<F>>,
}

/// Which one it is says the state.
union Stage<F: Future> {
    future: ManuallyDrop<F>,
    value: ManuallyDrop<Value<F::Output>>,
}

/// What depends on the future's type.
struct VTable<M: 'static> {
    run: unsafe fn(NonNull<Header<M>>),
    cancel: unsafe fn(NonNull<Header<M>>),
    take: unsafe fn(NonNull<Header<M>>, *mut ()),
    layout: Layout,
}

/// Makes a task that is due. `make` gets a reference to the metadata that lives as long as the future; it must not panic.
///
/// With `parked`, the task has the runnable in it.
pub(crate) fn new<F, M>(meta: M, make: impl FnOnce(MetaRef<M>) -> F) -> (Runnable<M>, Join<F::Output, M>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    M: Metadata,
{
    let header = allocate(meta, make, false);
    (Runnable(header), Join { header, taken: false, _value: PhantomData })
}

/// The same, parked.
pub(crate) fn new_parked<F, M>(meta: M, make: impl FnOnce(MetaRef<M>) -> F) -> (Handle<M>, Join<F::Output, M>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    M: Metadata,
{
    let header = allocate(meta, make, true);
    (Handle(header), Join { header, taken: false, _value: PhantomData })
}

#[inline]
fn allocate<F, M>(meta: M, make: impl FnOnce(MetaRef<M>) -> F, parked: bool) -> NonNull<Header<M>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    M: Metadata,
{
    let cell: NonNull<Cell<F, M>> = memory::allocate(Cell::<F, M>::LAYOUT).cast();
    let header: NonNull<Header<M>> = cell.cast();
    // SAFETY: the memory is of the cell's layout and ours alone. The header comes first (`repr(C)`), and the future is made
    // when the metadata it may refer to is in place.
    unsafe {
        header.write(Header {
            state: State::new(parked),
            vtable: &Cell::<F, M>::VTABLE,
            awaiter: UnsafeCell::new(None),
            meta,
        });
        let future = make(MetaRef(header));
        (&raw mut (*cell.as_ptr()).stage).write(UnsafeCell::new(Stage { future: ManuallyDrop::new(future) }));
    }
    header
}

impl<F, M> Cell<F, M>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    M: Metadata,
{
    const LAYOUT: Layout = Layout::new::<Self>();
    const VTABLE: VTable<M> = VTable { run: Self::run, cancel: Self::cancel, take: Self::take, layout: Self::LAYOUT };

    /// # Safety
    ///
    /// The caller has the runnable of this cell, and gives it up.
    #[inline]
    unsafe fn run(header: NonNull<Header<M>>) {
        // SAFETY: the runnable stands for the task's own reference, which is there until `finish`.
        let cell = unsafe { header.cast::<Self>().as_ref() };
        let Header { state, meta, .. } = &cell.header;
        let Turn::Poll(seen) = state.begin_turn() else {
            // SAFETY: as for this function.
            return unsafe { Self::cancel(header) };
        };
        let before = meta.before_poll();
        // SAFETY: the reference outlives the poll, and the waker is not dropped, so it needs no reference of its own.
        let waker = unsafe { ManuallyDrop::new(Waker::from_raw(raw_waker(header))) };
        let polled = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: who has the runnable alone uses the stage, which is the future until it is done. It is never moved.
            cell.stage.with_mut(|stage| unsafe {
                Pin::new_unchecked(&mut *(*stage).future).poll(&mut Context::from_waker(&waker))
            })
        }));
        let value = match polled {
            Ok(Poll::Pending) => {
                // As the waker: it needs no reference of its own.
                meta.polled_in_vain(before, &ManuallyDrop::new(Handle(header)));
                return match state.end_turn(seen) {
                    Vain::Waits => {}
                    Vain::Due => M::schedule(Runnable(header)),
                };
            }
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => Err(payload),
        };
        // SAFETY: as above; this is the one place where a polled future is dropped.
        let value = match (value, unsafe { cell.drop_future() }) {
            // Dropping the value may panic as well.
            (Ok(value), Err(payload)) => {
                contain(move || drop(value));
                Err(payload)
            }
            (value, Ok(())) => value,
            (Err(first), Err(second)) => {
                report_panic(second);
                Err(first)
            }
        };
        meta.finished();
        if state.is_joined() {
            // SAFETY: as above: there is neither a future nor a value in the stage.
            cell.stage.with_mut(|stage| unsafe { (*stage).value = ManuallyDrop::new(value) });
            // SAFETY: the value is there.
            unsafe { Self::finish(header, true) };
        } else {
            contain(move || drop(value));
            // SAFETY: as for this function; the future is gone.
            unsafe { Self::finish(header, false) };
        }
    }

    /// Drops the future instead of polling it.
    ///
    /// # Safety
    ///
    /// As for `run`.
    unsafe fn cancel(header: NonNull<Header<M>>) {
        // SAFETY: as in `run`.
        let cell = unsafe { header.cast::<Self>().as_ref() };
        // SAFETY: as in `run`: the future is there until now.
        if let Err(payload) = unsafe { cell.drop_future() } {
            report_panic(payload);
        }
        cell.header.meta.finished();
        // SAFETY: as for this function; the future is gone.
        unsafe { Self::finish(header, false) };
    }

    /// # Safety
    ///
    /// The caller has the runnable; the future is there, and is gone afterwards.
    unsafe fn drop_future(&self) -> Result<(), Box<dyn Any + Send>> {
        catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: as for this function.
            self.stage.with_mut(|stage| unsafe { ManuallyDrop::drop(&mut (*stage).future) });
        }))
    }

    /// Ends the task: nobody has the runnable from here on.
    ///
    /// # Safety
    ///
    /// The caller has the runnable; the future is gone; the stage is a value if `value` says so.
    unsafe fn finish(header: NonNull<Header<M>>, value: bool) {
        // SAFETY: the task's own reference is there until the state says that it is not.
        let cell = unsafe { header.cast::<Self>().as_ref() };
        let state = &cell.header.state;
        let last = match state.finish(value) {
            Finish::Left => false,
            Finish::Wake => {
                // SAFETY: the awaiter belongs to who has set `DONE`, which was us.
                let awaiter = cell.header.awaiter.with_mut(|awaiter| unsafe { (*awaiter).take() });
                contain(move || awaiter.map(Waker::wake));
                state.release()
            }
            Finish::Unwanted => {
                if value {
                    // SAFETY: the value is there, and without a handle it is ours.
                    contain(|| cell.stage.with_mut(|stage| unsafe { ManuallyDrop::drop(&mut (*stage).value) }));
                }
                state.finish_unwanted()
            }
        };
        if last {
            // SAFETY: the state says so.
            unsafe { destroy(header) };
        }
    }

    /// Moves the value out, to `to`.
    ///
    /// # Safety
    ///
    /// The value is there, the caller's, and not used again. `to` is valid for it.
    unsafe fn take(header: NonNull<Header<M>>, to: *mut ()) {
        // SAFETY: as for this function.
        unsafe {
            let cell = header.cast::<Self>().as_ref();
            let value = cell.stage.with_mut(|stage| ManuallyDrop::take(&mut (*stage).value));
            to.cast::<Value<F::Output>>().write(value);
        }
    }
}

/// # Safety
///
/// The state has said that no reference is left but the caller's. The stage is empty.
#[inline]
unsafe fn destroy<M: 'static>(header: NonNull<Header<M>>) {
    // SAFETY: as for this function.
    let layout = unsafe {
        let layout = header.as_ref().vtable.layout;
        // The metadata may have wakers in it, which are others' code.
        contain(|| header.drop_in_place());
        layout
    };
    // SAFETY: from `allocate`, with this layout.
    unsafe { memory::free(header.cast(), layout) };
}

/// Runs others' code; what it panics with is reported.
#[inline]
fn contain<T>(code: impl FnOnce() -> T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(code()))) {
        report_panic(payload);
    }
}

/// A task that is due for a poll, or parked. Dropping it cancels the task.
pub(crate) struct Runnable<M: Metadata>(NonNull<Header<M>>);

// SAFETY: a task's future and value are `Send`, the metadata and the state are shared.
unsafe impl<M: Metadata> Send for Runnable<M> {}
// SAFETY: gives shared access to the metadata only.
unsafe impl<M: Metadata> Sync for Runnable<M> {}

impl<M: Metadata> Runnable<M> {
    /// Polls the task.
    pub(crate) fn run(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: we have the runnable, and do not use it again.
        unsafe { (this.header().vtable.run)(this.0) };
    }

    #[inline]
    pub(crate) fn metadata(&self) -> &M {
        &self.header().meta
    }

    /// The task's own reference. Valid until its future is gone.
    #[inline]
    pub(crate) fn meta_ref(&self) -> MetaRef<M> {
        MetaRef(self.0)
    }

    #[inline]
    fn header(&self) -> &Header<M> {
        // SAFETY: a runnable stands for a reference.
        unsafe { self.0.as_ref() }
    }
}

impl<M: Metadata> Drop for Runnable<M> {
    fn drop(&mut self) {
        // SAFETY: we have the runnable, and do not use it again.
        unsafe { (self.header().vtable.cancel)(self.0) };
    }
}

impl<M: Metadata> fmt::Debug for Runnable<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Runnable").field(&self.header().state).finish()
    }
}

/// A task's metadata, as its own future and its join handle see it: for as long as that future lives or the handle is attached.
pub(crate) struct MetaRef<M: 'static>(NonNull<Header<M>>);

impl<M: 'static> Clone for MetaRef<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: 'static> Copy for MetaRef<M> {}

// SAFETY: it only gives shared access to metadata, which is `Sync`.
unsafe impl<M: Metadata> Send for MetaRef<M> {}
// SAFETY: as above.
unsafe impl<M: Metadata> Sync for MetaRef<M> {}

impl<M: Metadata> MetaRef<M> {
    /// The metadata.
    #[inline]
    pub(crate) fn meta(&self) -> &M {
        // SAFETY: `allocate` gives this to the cell's future, and `meta_ref` to who has the runnable: while they are there, so is
        // the task's own reference, and the cell with it. The watch borrows the future's, under a claim that the future waits
        // for before it goes on (`shown`); the waker of a deadline has a reference of its own beside it (`watch`). The metadata
        // is never borrowed mutably before the cell is destroyed, after all of them.
        unsafe { &self.0.as_ref().meta }
    }

    /// A handle of the task.
    #[inline]
    pub(crate) fn handle(&self) -> Handle<M> {
        // SAFETY: as above: the cell is there.
        unsafe { self.0.as_ref().state.refer() };
        Handle(self.0)
    }

    pub(crate) fn is(&self, handle: &Handle<M>) -> bool {
        self.0 == handle.0
    }
}

impl<M: Metadata> fmt::Debug for MetaRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetaRef").field(&self.0).finish()
    }
}

/// A way to a task from wherever it stands in a queue. Keeps its cell alive, not its future.
pub(crate) struct Handle<M: Metadata>(NonNull<Header<M>>);

// SAFETY: as of `Runnable`: it can become one.
unsafe impl<M: Metadata> Send for Handle<M> {}
// SAFETY: gives shared access to the state and the metadata only.
unsafe impl<M: Metadata> Sync for Handle<M> {}

impl<M: Metadata> Handle<M> {
    /// Parks a task in its own cell. It becomes due by [`Handle::unpark`] only, and is never dropped without it.
    pub(crate) fn park(runnable: Runnable<M>) -> Self {
        let header = ManuallyDrop::new(runnable).0;
        // SAFETY: the runnable stands for a reference, and is in the cell now.
        unsafe { header.as_ref().state.park() };
        Self(header)
    }

    /// Takes the task out, for the one caller that comes first.
    #[inline]
    pub(crate) fn unpark(&self) -> Option<Runnable<M>> {
        self.header().state.unpark().then(|| Runnable(self.0))
    }

    /// The same; a handle that finds nothing comes back.
    #[inline]
    pub(crate) fn into_unparked(self) -> Result<Runnable<M>, Self> {
        // It is about to be polled, for the first time and most likely on another CPU than it was made on.
        let cell = self.0.as_ptr().cast::<u8>();
        memory::prefetch(cell.wrapping_add(memory::LINE));
        memory::prefetch(cell.wrapping_add(2 * memory::LINE));
        if self.header().state.unpark_and_release() { Ok(Runnable(ManuallyDrop::new(self).0)) } else { Err(self) }
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.header().state.is_parked()
    }

    pub(crate) fn meta(&self) -> &M {
        &self.header().meta
    }

    /// Wakes a task that is not parked.
    #[inline]
    pub(crate) fn wake(&self) {
        if self.header().state.wake() == Woken::Due {
            M::schedule(Runnable(self.0));
        }
    }

    fn header(&self) -> &Header<M> {
        // SAFETY: a handle has a reference.
        unsafe { self.0.as_ref() }
    }
}

impl<M: Metadata> Clone for Handle<M> {
    fn clone(&self) -> Self {
        self.header().state.refer();
        Self(self.0)
    }
}

impl<M: Metadata> Drop for Handle<M> {
    fn drop(&mut self) {
        if self.header().state.release() {
            // SAFETY: ours was the last reference.
            unsafe { destroy(self.0) };
        }
    }
}

impl<M: Metadata> fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.header().state).finish()
    }
}

/// A waker is a handle in std's clothes.
fn raw_waker<M: Metadata>(header: NonNull<Header<M>>) -> RawWaker {
    /// # Safety
    ///
    /// For all four: the pointer is a waker's, which stands for a reference, given away by `wake` and `drop`.
    unsafe fn handle<M: Metadata>(data: *const ()) -> ManuallyDrop<Handle<M>> {
        // SAFETY: as for this function.
        ManuallyDrop::new(Handle(unsafe { NonNull::new_unchecked(data.cast_mut().cast()) }))
    }
    unsafe fn clone<M: Metadata>(data: *const ()) -> RawWaker {
        // SAFETY: see `handle`.
        raw_waker(ManuallyDrop::new((*unsafe { handle::<M>(data) }).clone()).0)
    }
    unsafe fn wake<M: Metadata>(data: *const ()) {
        // SAFETY: see `handle`.
        let handle = unsafe { handle::<M>(data) };
        match handle.header().state.wake_and_release() {
            Woken::Nothing => {}
            Woken::Due => M::schedule(Runnable(handle.0)),
            // SAFETY: ours was the last reference.
            Woken::Destroy => unsafe { destroy(handle.0) },
        }
    }
    unsafe fn wake_by_ref<M: Metadata>(data: *const ()) {
        // SAFETY: see `handle`.
        unsafe { handle::<M>(data) }.wake();
    }
    unsafe fn release<M: Metadata>(data: *const ()) {
        // SAFETY: see `handle`.
        drop(ManuallyDrop::into_inner(unsafe { handle::<M>(data) }));
    }
    let vtable = const { &RawWakerVTable::new(clone::<M>, wake::<M>, wake_by_ref::<M>, release::<M>) };
    RawWaker::new(header.as_ptr().cast_const().cast(), vtable)
}

/// The one handle that may await a task. Dropping it lets the task run on.
pub(crate) struct Join<T, M: Metadata> {
    header: NonNull<Header<M>>,
    /// The value was moved out.
    taken: bool,
    _value: PhantomData<T>,
}

// SAFETY: the value is given away by value only, and is `Send`; the metadata is shared.
unsafe impl<T: Send, M: Metadata> Send for Join<T, M> {}
// SAFETY: a shared join handle only looks at the state and the metadata.
unsafe impl<T: Send, M: Metadata> Sync for Join<T, M> {}

impl<T, M: Metadata> Unpin for Join<T, M> {}

impl<T, M: Metadata> Join<T, M> {
    /// Whether the future is gone.
    pub(crate) fn is_finished(&self) -> bool {
        self.header().state.is_done()
    }

    pub(crate) fn meta(&self) -> &M {
        &self.header().meta
    }

    pub(crate) fn handle(&self) -> Handle<M> {
        self.header().state.refer();
        Handle(self.header)
    }

    /// Has the future dropped at the task's next turn. At most once.
    pub(crate) fn close(&self) {
        if self.header().state.close() == Woken::Due {
            M::schedule(Runnable(self.header));
        }
    }

    /// What the future left; none if it was cancelled, or if this was given before.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Value<T>>> {
        let header = self.header();
        let mut joined = header.state.begin_await();
        if joined == Joined::NotYet {
            let waker = cx.waker().clone();
            // SAFETY: the awaiter's place is ours.
            let before = header.awaiter.with_mut(|awaiter| unsafe { (*awaiter).replace(waker) });
            contain(move || before);
            joined = header.state.end_await();
            if joined != Joined::NotYet {
                self.drop_awaiter();
            }
        }
        match joined {
            Joined::NotYet => Poll::Pending,
            Joined::Done { value } => Poll::Ready(if value { self.take() } else { None }),
        }
    }

    /// The awaiter's place is ours. An awaiter that stayed there would keep what it refers to for as long as anybody has a waker
    /// of this task; for ever, if that is itself what it refers to.
    fn drop_awaiter(&self) {
        // SAFETY: as for this function.
        let awaiter = self.header().awaiter.with_mut(|awaiter| unsafe { (*awaiter).take() });
        if awaiter.is_some() {
            contain(move || awaiter);
        }
    }

    /// The task is done, with a value.
    fn take(&mut self) -> Option<Value<T>> {
        if std::mem::replace(&mut self.taken, true) {
            return None;
        }
        let mut value = MaybeUninit::<Value<T>>::uninit();
        // SAFETY: the value is there and ours, and was not moved out before. `T` is the output of the future that this was made
        // with.
        Some(unsafe {
            (self.header().vtable.take)(self.header, value.as_mut_ptr().cast());
            value.assume_init()
        })
    }

    fn header(&self) -> &Header<M> {
        // SAFETY: a join handle has a reference.
        unsafe { self.header.as_ref() }
    }
}

impl<T, M: Metadata> Drop for Join<T, M> {
    fn drop(&mut self) {
        if self.header().state.begin_await() == Joined::NotYet {
            self.drop_awaiter();
        }
        let Joined::Done { value } = self.header().state.leave() else { return };
        if value {
            let value = self.take();
            contain(move || value);
        }
        if self.header().state.release() {
            // SAFETY: ours was the last reference.
            unsafe { destroy(self.header) };
        }
    }
}
