//! The task cell: a wake is never lost, a task is never polled twice at once, and future, value, awaiter and memory are each
//! dropped once, by one who may.
//!
//! The models run with [`Shipped`], the cell as it is, and with [`Model`], which calls the steps of a state as
//! `executor/cell.rs` does, but owns no memory: so mutants of the state may do to it what would crash a real one.

use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::thread;

use super::{check, refute};
use crate::executor::cell::{self, Join, MetaRef, Metadata};
use crate::executor::state::{Finish, Joined, Seen, State, Turn, Vain, Woken};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Something that several may look at, or one may change. Loom sees who does.
struct Place(UnsafeCell<()>);

// SAFETY: nobody uses what is in it, which is nothing.
#[allow(unsafe_code)]
unsafe impl Sync for Place {}

impl Default for Place {
    fn default() -> Self {
        Self(UnsafeCell::new(()))
    }
}

impl Place {
    fn share(&self) {
        self.0.with(|_| ());
    }

    fn own<R>(&self, act: impl FnOnce() -> R) -> R {
        self.0.with_mut(|_| act())
    }
}

// What the models need of a cell.

trait Cell: Sized + Send + Sync + 'static {
    type Runnable: Send;
    type Waker: Send;
    type Handle: Send;
    type Join: Send;
    fn new(world: &Arc<World<Self>>) -> (Self::Runnable, Self::Join);
    fn new_parked(world: &Arc<World<Self>>) -> (Self::Handle, Self::Join);
    fn run(runnable: Self::Runnable);
    fn wake(waker: Self::Waker);
    fn wake_by_ref(waker: &Self::Waker);
    fn drop_waker(waker: Self::Waker);
    fn handle(join: &Self::Join) -> Self::Handle;
    fn park(runnable: Self::Runnable) -> Self::Handle;
    fn unpark(handle: &Self::Handle) -> Option<Self::Runnable>;
    fn into_unparked(handle: Self::Handle) -> Result<Self::Runnable, Self::Handle>;
    fn drop_handle(handle: Self::Handle);
    /// Whether there is a value.
    fn poll(join: &mut Self::Join, waker: &Waker) -> Poll<bool>;
    fn close(join: &Self::Join);
    fn leave(join: Self::Join);
}

/// What is around one task: what it waits for, the run queue, and what became of its parts.
struct World<C: Cell> {
    slip: Slip,
    /// The task's future ends when it sees more than none. Whether it does is up to the cell's orderings.
    ready: AtomicU64,
    /// Has room for the one runnable of the task.
    queue: Mutex<Option<C::Runnable>>,
    /// By this, who takes it sees what came before it was put there.
    published: AtomicU64,
    /// The next poll makes so many wakers.
    wakers_wanted: Unseen,
    wakers: Mutex<Vec<C::Waker>>,
    /// Written in every turn.
    turns: Place,
    polling: Unseen,
    futures_dropped: Unseen,
    values_made: Unseen,
    values_dropped: Unseen,
    destroyed: Unseen,
    /// What went wrong where the cell contains panics.
    violations: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Cell> World<C> {
    fn new(slip: Slip) -> Arc<Self> {
        Arc::new(Self {
            slip,
            ready: AtomicU64::new(0),
            queue: Mutex::default(),
            published: AtomicU64::new(0),
            wakers_wanted: Unseen::new(0),
            wakers: Mutex::default(),
            turns: Place::default(),
            polling: Unseen::new(0),
            futures_dropped: Unseen::new(0),
            values_made: Unseen::new(0),
            values_dropped: Unseen::new(0),
            destroyed: Unseen::new(0),
            violations: Mutex::default(),
        })
    }

    /// A task whose first poll was in vain, and wakers of it.
    fn waiting<const N: usize>(slip: Slip) -> (Arc<Self>, C::Join, [C::Waker; N]) {
        let world = Self::new(slip);
        let (runnable, join) = C::new(&world);
        world.wakers_wanted.store(N, Now);
        C::run(runnable);
        let wakers = std::mem::take(&mut *lock(&world.wakers)).try_into().ok();
        (world, join, wakers.expect("polled once"))
    }

    fn get_ready(&self) {
        self.ready.store(1, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) != 0
    }

    fn schedule(&self, runnable: C::Runnable) {
        self.published.swap(1, Ordering::Release);
        let before = lock(&self.queue).replace(runnable);
        assert!(before.is_none(), "due twice");
    }

    fn take(&self) -> Option<C::Runnable> {
        let runnable = lock(&self.queue).take()?;
        self.published.swap(0, Ordering::Acquire);
        Some(runnable)
    }

    /// Works as long as there is work. Whoever makes some does that afterwards, so that no thread waits for work.
    fn drain(&self) {
        while let Some(runnable) = self.take() {
            C::run(runnable);
        }
    }

    fn begin_poll(&self) {
        assert_eq!(self.polling.swap(1, Now), 0, "polled twice at once");
        self.turns.own(|| ());
    }

    fn end_poll(&self) {
        self.turns.own(|| ());
        self.polling.store(0, Now);
    }

    /// The threads are gone, and nobody refers to the task any more.
    fn assert_over(&self) {
        assert!(lock(&self.violations).is_empty(), "contained: {:?}", lock(&self.violations));
        assert!(lock(&self.queue).is_none(), "due when it is over");
        assert_eq!(self.futures_dropped.load(Now), 1, "times that the future is dropped");
        assert_eq!(self.values_dropped.load(Now), self.values_made.load(Now), "values dropped and made");
        assert_eq!(self.destroyed.load(Now), 1, "times that the cell is destroyed");
    }
}

/// Who awaits the task.
#[derive(Default)]
struct Awaiter {
    woken: Unseen,
}

impl Wake for Awaiter {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Now);
    }
}

// The cell that ships.

struct Shipped;

struct Meta {
    world: Arc<World<Shipped>>,
    /// Written by who destroys the cell, who must see all that others did with it.
    whole: Place,
}

impl Metadata for Meta {
    fn schedule(runnable: cell::Runnable<Self>) {
        let world = Arc::clone(&runnable.metadata().world);
        world.schedule(runnable);
    }
    fn before_poll(&self) -> u64 {
        self.whole.share();
        self.world.begin_poll();
        0
    }
    fn polled_in_vain(&self, _: u64, _: &cell::Handle<Self>) {
        self.world.end_poll();
    }
    fn finished(&self) {
        self.whole.share();
        self.world.end_poll();
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.world.destroyed.fetch_add(1, Now);
        if catch_unwind(AssertUnwindSafe(|| self.whole.own(|| ()))).is_err() {
            lock(&self.world.violations).push("destroyed while in use".to_owned());
        }
    }
}

struct Work(Arc<World<Shipped>>);

impl Future for Work {
    type Output = Counted;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Counted> {
        let world = &self.0;
        for _ in 0..world.wakers_wanted.swap(0, Now) {
            lock(&world.wakers).push(cx.waker().clone());
        }
        if world.is_ready() { Poll::Ready(Counted::new(world)) } else { Poll::Pending }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.futures_dropped.fetch_add(1, Now);
    }
}

struct Counted(Arc<World<Shipped>>);

impl Counted {
    fn new(world: &Arc<World<Shipped>>) -> Self {
        world.values_made.fetch_add(1, Now);
        Self(Arc::clone(world))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.values_dropped.fetch_add(1, Now);
    }
}

impl Shipped {
    fn parts(world: &Arc<World<Self>>) -> (Meta, impl FnOnce(MetaRef<Meta>) -> Work) {
        let meta = Meta { world: Arc::clone(world), whole: Place::default() };
        let work = Work(Arc::clone(world));
        (meta, |_| work)
    }
}

impl Cell for Shipped {
    type Runnable = cell::Runnable<Meta>;
    type Waker = Waker;
    type Handle = cell::Handle<Meta>;
    type Join = Join<Counted, Meta>;

    fn new(world: &Arc<World<Self>>) -> (Self::Runnable, Self::Join) {
        let (meta, make) = Self::parts(world);
        cell::new(meta, make)
    }
    fn new_parked(world: &Arc<World<Self>>) -> (Self::Handle, Self::Join) {
        let (meta, make) = Self::parts(world);
        cell::new_parked(meta, make)
    }
    fn run(runnable: Self::Runnable) {
        runnable.run();
    }
    fn wake(waker: Waker) {
        waker.wake();
    }
    fn wake_by_ref(waker: &Waker) {
        waker.wake_by_ref();
    }
    fn drop_waker(waker: Waker) {
        drop(waker);
    }
    fn handle(join: &Self::Join) -> Self::Handle {
        join.handle()
    }
    fn park(runnable: Self::Runnable) -> Self::Handle {
        cell::Handle::park(runnable)
    }
    fn unpark(handle: &Self::Handle) -> Option<Self::Runnable> {
        handle.unpark()
    }
    fn into_unparked(handle: Self::Handle) -> Result<Self::Runnable, Self::Handle> {
        handle.into_unparked()
    }
    fn drop_handle(handle: Self::Handle) {
        handle.meta().whole.share();
        drop(handle);
    }
    fn poll(join: &mut Self::Join, waker: &Waker) -> Poll<bool> {
        join.meta().whole.share();
        join.poll(&Context::from_waker(waker)).map(|value| {
            value.is_some_and(|value| {
                assert!(value.is_ok(), "a poll panicked");
                true
            })
        })
    }
    fn close(join: &Self::Join) {
        join.close();
    }
    fn leave(join: Self::Join) {
        join.meta().whole.share();
        drop(join);
    }
}

// The same with the steps of any state, and no memory of its own.

trait Steps: Send + Sync + 'static {
    type Seen;
    fn new(parked: bool, slip: Slip) -> Self;
    /// None: the task was closed.
    fn begin_turn(&self) -> Option<Self::Seen>;
    fn end_turn(&self, seen: Self::Seen) -> Vain;
    fn is_joined(&self) -> bool;
    fn finish(&self, value: bool) -> Finish;
    fn finish_unwanted(&self) -> bool;
    fn park(&self);
    fn unpark(&self) -> bool;
    fn unpark_and_release(&self) -> bool;
    fn wake(&self) -> Woken;
    fn wake_and_release(&self) -> Woken;
    fn close(&self) -> Woken;
    fn refer(&self);
    fn release(&self) -> bool;
    fn begin_await(&self) -> Joined;
    fn end_await(&self) -> Joined;
    fn leave(&self) -> Joined;
}

impl Steps for State {
    type Seen = Seen;
    fn new(parked: bool, _: Slip) -> Self {
        Self::new(parked)
    }
    fn begin_turn(&self) -> Option<Seen> {
        match self.begin_turn() {
            Turn::Poll(seen) => Some(seen),
            Turn::Drop => None,
        }
    }
    fn end_turn(&self, seen: Seen) -> Vain {
        self.end_turn(seen)
    }
    fn is_joined(&self) -> bool {
        self.is_joined()
    }
    fn finish(&self, value: bool) -> Finish {
        self.finish(value)
    }
    fn finish_unwanted(&self) -> bool {
        self.finish_unwanted()
    }
    fn park(&self) {
        self.park();
    }
    fn unpark(&self) -> bool {
        self.unpark()
    }
    fn unpark_and_release(&self) -> bool {
        self.unpark_and_release()
    }
    fn wake(&self) -> Woken {
        self.wake()
    }
    fn wake_and_release(&self) -> Woken {
        self.wake_and_release()
    }
    fn close(&self) -> Woken {
        self.close()
    }
    fn refer(&self) {
        self.refer();
    }
    fn release(&self) -> bool {
        self.release()
    }
    fn begin_await(&self) -> Joined {
        self.begin_await()
    }
    fn end_await(&self) -> Joined {
        self.end_await()
    }
    fn leave(&self) -> Joined {
        self.leave()
    }
}

struct Model<S>(PhantomData<S>);

struct Body<S: Steps> {
    state: S,
    whole: Place,
    stage: Place,
    awaiter: Place,
    registered: Mutex<Option<Waker>>,
    world: Arc<World<Model<S>>>,
}

struct Joining<S: Steps> {
    body: Arc<Body<S>>,
    taken: bool,
}

impl<S: Steps> Body<S> {
    fn new(world: &Arc<World<Model<S>>>, parked: bool) -> Arc<Self> {
        Arc::new(Self {
            state: S::new(parked, world.slip),
            whole: Place::default(),
            stage: Place::default(),
            awaiter: Place::default(),
            registered: Mutex::default(),
            world: Arc::clone(world),
        })
    }

    /// A step by one who has a reference, at least when it begins.
    fn step<R>(&self, step: impl FnOnce(&S) -> R) -> R {
        self.whole.share();
        let result = step(&self.state);
        assert_eq!(self.world.destroyed.load(Now), 0, "used after it was destroyed");
        result
    }

    fn drop_future(&self) {
        self.stage.own(|| self.world.futures_dropped.fetch_add(1, Now));
    }

    fn drop_value(&self) {
        self.stage.own(|| self.world.values_dropped.fetch_add(1, Now));
    }

    fn cancel(&self) {
        self.drop_future();
        self.world.end_poll();
        self.finish(false);
    }

    fn finish(&self, value: bool) {
        let last = match self.step(|state| state.finish(value)) {
            Finish::Left => false,
            Finish::Wake => {
                self.drop_awaiter(Waker::wake);
                self.step(S::release)
            }
            Finish::Unwanted => {
                if value {
                    self.drop_value();
                }
                self.step(S::finish_unwanted)
            }
        };
        self.destroy_if(last);
    }

    fn destroy_if(&self, last: bool) {
        if last {
            self.whole.own(|| ());
            self.stage.own(|| ());
            self.drop_awaiter(drop);
            self.world.destroyed.fetch_add(1, Now);
        }
    }

    fn drop_awaiter(&self, by: impl FnOnce(Waker)) {
        let awaiter = self.awaiter.own(|| lock(&self.registered).take());
        if let Some(awaiter) = awaiter {
            by(awaiter);
        }
    }
}

impl<S: Steps> Cell for Model<S> {
    type Runnable = Arc<Body<S>>;
    type Waker = Arc<Body<S>>;
    type Handle = Arc<Body<S>>;
    type Join = Joining<S>;

    fn new(world: &Arc<World<Self>>) -> (Self::Runnable, Self::Join) {
        let body = Body::new(world, false);
        (Arc::clone(&body), Joining { body, taken: false })
    }
    fn new_parked(world: &Arc<World<Self>>) -> (Self::Handle, Self::Join) {
        let body = Body::new(world, true);
        (Arc::clone(&body), Joining { body, taken: false })
    }
    fn run(body: Self::Runnable) {
        let world = &body.world;
        let Some(seen) = body.step(S::begin_turn) else {
            return body.cancel();
        };
        world.begin_poll();
        for _ in 0..world.wakers_wanted.swap(0, Now) {
            body.step(S::refer);
            lock(&world.wakers).push(Arc::clone(&body));
        }
        if !body.stage.own(|| world.is_ready()) {
            world.end_poll();
            if body.step(|state| state.end_turn(seen)) == Vain::Due {
                world.schedule(Arc::clone(&body));
            }
            return;
        }
        body.drop_future();
        world.end_poll();
        world.values_made.fetch_add(1, Now);
        if !body.step(S::is_joined) {
            body.drop_value();
            body.finish(false);
        } else if world.slip == Slip::PublishFirst {
            body.finish(true);
            body.stage.own(|| ());
        } else {
            body.stage.own(|| ());
            body.finish(true);
        }
    }
    fn wake(body: Self::Waker) {
        match body.step(S::wake_and_release) {
            Woken::Nothing => {}
            Woken::Due => body.world.schedule(Arc::clone(&body)),
            Woken::Destroy => body.destroy_if(true),
        }
    }
    fn wake_by_ref(body: &Self::Waker) {
        if body.step(S::wake) == Woken::Due {
            body.world.schedule(Arc::clone(body));
        }
    }
    fn drop_waker(body: Self::Waker) {
        let last = body.step(S::release);
        body.destroy_if(last);
    }
    fn handle(Joining { body, .. }: &Self::Join) -> Self::Handle {
        body.step(S::refer);
        Arc::clone(body)
    }
    fn park(body: Self::Runnable) -> Self::Handle {
        body.step(S::park);
        body
    }
    fn unpark(body: &Self::Handle) -> Option<Self::Runnable> {
        body.step(S::unpark).then(|| Arc::clone(body))
    }
    fn into_unparked(body: Self::Handle) -> Result<Self::Runnable, Self::Handle> {
        if body.step(S::unpark_and_release) { Ok(body) } else { Err(body) }
    }
    fn drop_handle(body: Self::Handle) {
        Self::drop_waker(body);
    }
    fn poll(Joining { body, taken }: &mut Self::Join, waker: &Waker) -> Poll<bool> {
        let mut joined = body.step(S::begin_await);
        if joined == Joined::NotYet {
            body.awaiter.own(|| *lock(&body.registered) = Some(waker.clone()));
            joined = body.step(S::end_await);
            if joined != Joined::NotYet {
                body.drop_awaiter(drop);
            }
        }
        match joined {
            Joined::NotYet => Poll::Pending,
            Joined::Done { value } => {
                let value = value && !std::mem::replace(taken, true);
                if value {
                    body.drop_value();
                }
                Poll::Ready(value)
            }
        }
    }
    fn close(Joining { body, .. }: &Self::Join) {
        if body.step(S::close) == Woken::Due {
            body.world.schedule(Arc::clone(body));
        }
    }
    fn leave(Joining { body, taken }: Self::Join) {
        if body.world.slip != Slip::LeaveAwaiter && body.step(S::begin_await) == Joined::NotYet {
            body.drop_awaiter(drop);
        }
        let Joined::Done { value } = body.step(S::leave) else { return };
        if value && !taken {
            body.drop_value();
        }
        Self::drop_waker(body);
    }
}

/// The step that a mutant does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `begin_turn` orders nothing.
    BeginTurnRelaxed,
    /// `end_turn` looks, and then takes off what the poll has answered.
    EndTurnInTwoSteps,
    /// `end_turn` orders nothing.
    EndTurnRelaxed,
    /// `end_turn` takes off all wakes.
    EndTurnForgets,
    /// The value is put in place after it was shown.
    PublishFirst,
    /// `finish` orders nothing.
    FinishRelaxed,
    /// `finish` looks for an awaiter, and then sets its bits.
    FinishInTwoSteps,
    /// `finish_unwanted` looks without order whether its reference is the only one.
    UnwantedRelaxed,
    /// So does `release`.
    UniqueRelaxed,
    /// `release` orders nothing.
    ReleaseRelaxed,
    /// `finish_unwanted` takes its reference away where it is not the last one, and then says whether it was.
    UnwantedInTwoSteps,
    /// A wake writes nothing if the task is due.
    WakeSkips,
    /// A wake orders nothing.
    WakeRelaxed,
    /// A wake that takes a reference away does so first.
    WakeAfterRelease,
    /// A wake that is not counted is seen not to be needed before it is made.
    SaturateInTwoSteps,
    /// A poll answers all wakes that are counted, also if some are not.
    SaturateBlindly,
    /// `close` is no wake.
    CloseQuietly,
    /// `unpark` looks and then takes the bit away.
    UnparkInTwoSteps,
    /// `begin_await` leaves the bit.
    AwaitInUse,
    /// `end_await` does not look whether the task is done.
    AwaitBlindly,
    /// `end_await` orders nothing.
    AwaitRelaxed,
    /// `leave` does not look whether the task is done.
    LeaveBlindly,
    /// The handle leaves its awaiter in the cell.
    LeaveAwaiter,
}

/// The steps of [`State`], one of them wrong.
struct Mutant {
    word: AtomicU64,
    slip: Slip,
}

const PARKED: u64 = 1;
const CLOSED: u64 = 1 << 1;
const DONE: u64 = 1 << 2;
const VALUE: u64 = 1 << 3;
const AWAITED: u64 = 1 << 4;
const JOINED: u64 = 1 << 5;
const REFERENCE: u64 = 1 << 8;
const REFERENCES: u64 = (WAKE - 1) & !(REFERENCE - 1);
const WAKE: u64 = 1 << 44;
const WAKES: u64 = !(WAKE - 1);
const WAKES_MAX: u64 = 3 * WAKE;

impl Mutant {
    fn has(&self, slip: Slip) -> bool {
        self.slip == slip
    }

    /// `order`, unless the slip is to have none.
    fn order(&self, order: Ordering, slip: Slip) -> Ordering {
        if self.has(slip) { Ordering::Relaxed } else { order }
    }

    fn load(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    /// One step to what `next` says; or none, and what the handle finds.
    fn change(&self, order: Ordering, next: impl Fn(u64) -> Option<u64>) -> Joined {
        let mut word = self.load();
        loop {
            let Some(new) = next(word) else { return Joined::Done { value: word & VALUE != 0 } };
            match self.word.compare_exchange(word, new, order, Ordering::Acquire) {
                Ok(_) => return Joined::NotYet,
                Err(now) => word = now,
            }
        }
    }

    fn add_wake(&self, released: u64) -> Woken {
        let order = self.order(Ordering::AcqRel, Slip::WakeRelaxed);
        let mut word = self.word.load(Ordering::Relaxed);
        let skips = self.has(Slip::WakeSkips) && word & WAKES != 0;
        let mut saturated = false;
        while word & DONE == 0 && word >= WAKES_MAX {
            if self.has(Slip::SaturateInTwoSteps) {
                saturated = true;
                break;
            }
            match self.word.compare_exchange(word, word - released, order, Ordering::Relaxed) {
                Ok(_) => return Woken::Nothing,
                Err(now) => word = now,
            }
        }
        let counts = word & DONE == 0 && !skips && !saturated;
        if !counts && released == 0 {
            return Woken::Nothing;
        }
        let wake = if counts { WAKE } else { 0 };
        let before = self.word.fetch_add(wake.wrapping_sub(released), order);
        if released != 0 && before & REFERENCES == REFERENCE {
            return Woken::Destroy;
        }
        if counts && before & (WAKES | DONE) == 0 { Woken::Due } else { Woken::Nothing }
    }
}

impl Steps for Mutant {
    type Seen = u64;
    fn new(parked: bool, slip: Slip) -> Self {
        let word = WAKE | JOINED | (2 * REFERENCE);
        Self { word: AtomicU64::new(if parked { (word | PARKED) + REFERENCE } else { word }), slip }
    }
    fn begin_turn(&self) -> Option<u64> {
        let word = self.word.load(self.order(Ordering::Acquire, Slip::BeginTurnRelaxed));
        let most = if self.has(Slip::SaturateBlindly) { WAKES } else { WAKES_MAX - WAKE };
        (word & CLOSED == 0).then_some((word & WAKES).min(most))
    }
    fn end_turn(&self, seen: u64) -> Vain {
        let before = match self.slip {
            Slip::EndTurnInTwoSteps => {
                let before = self.load();
                self.word.swap(before - seen, Ordering::AcqRel);
                before
            }
            Slip::EndTurnForgets => {
                self.word.fetch_and(!WAKES, Ordering::AcqRel);
                return Vain::Waits;
            }
            _ => self.word.fetch_sub(seen, self.order(Ordering::AcqRel, Slip::EndTurnRelaxed)),
        };
        if before & WAKES == seen { Vain::Waits } else { Vain::Due }
    }
    fn is_joined(&self) -> bool {
        self.load() & JOINED != 0
    }
    fn finish(&self, value: bool) -> Finish {
        let done = if value { DONE | VALUE } else { DONE };
        let order = self.order(Ordering::AcqRel, Slip::FinishRelaxed);
        let mut word = self.load();
        loop {
            if word & JOINED == 0 {
                return Finish::Unwanted;
            }
            let awaited = word & AWAITED != 0;
            let new = if awaited { word | done } else { (word | done) - REFERENCE };
            if self.has(Slip::FinishInTwoSteps) {
                self.word.fetch_add(new.wrapping_sub(word), order);
                return if awaited { Finish::Wake } else { Finish::Left };
            }
            match self.word.compare_exchange(word, new, order, Ordering::Acquire) {
                Ok(_) if awaited => return Finish::Wake,
                Ok(_) => return Finish::Left,
                Err(now) => word = now,
            }
        }
    }
    fn finish_unwanted(&self) -> bool {
        let look = self.order(Ordering::Acquire, Slip::UnwantedRelaxed);
        if self.word.load(look) & REFERENCES == REFERENCE {
            return true;
        }
        let before = self.word.fetch_add(DONE.wrapping_sub(REFERENCE), Ordering::AcqRel);
        if self.has(Slip::UnwantedInTwoSteps) {
            return self.load() & REFERENCES == 0;
        }
        before & REFERENCES == REFERENCE
    }
    fn park(&self) {
        self.word.fetch_add(PARKED + REFERENCE, Ordering::Release);
    }
    fn unpark(&self) -> bool {
        let looked = self.load() & PARKED != 0;
        let before = self.word.fetch_and(!PARKED, Ordering::AcqRel) & PARKED != 0;
        if self.has(Slip::UnparkInTwoSteps) { looked } else { before }
    }
    fn unpark_and_release(&self) -> bool {
        self.change(Ordering::AcqRel, |word| (word & PARKED != 0).then(|| word - PARKED - REFERENCE)) == Joined::NotYet
    }
    fn wake(&self) -> Woken {
        self.add_wake(0)
    }
    fn wake_and_release(&self) -> Woken {
        if self.has(Slip::WakeAfterRelease) {
            return if self.release() { Woken::Destroy } else { self.add_wake(0) };
        }
        self.add_wake(REFERENCE)
    }
    fn close(&self) -> Woken {
        let wake = if self.has(Slip::CloseQuietly) { 0 } else { WAKE };
        let before = self.word.fetch_add(wake + CLOSED, Ordering::AcqRel);
        if wake != 0 && before & (WAKES | DONE) == 0 { Woken::Due } else { Woken::Nothing }
    }
    fn refer(&self) {
        self.word.fetch_add(REFERENCE, Ordering::Relaxed);
    }
    fn release(&self) -> bool {
        let look = self.order(Ordering::Acquire, Slip::UniqueRelaxed);
        let order = self.order(Ordering::AcqRel, Slip::ReleaseRelaxed);
        self.word.load(look) & REFERENCES == REFERENCE
            || self.word.fetch_sub(REFERENCE, order) & REFERENCES == REFERENCE
    }
    fn begin_await(&self) -> Joined {
        let cleared = if self.has(Slip::AwaitInUse) { 0 } else { AWAITED };
        self.change(Ordering::AcqRel, |word| (word & DONE == 0).then_some(word & !cleared))
    }
    fn end_await(&self) -> Joined {
        if self.has(Slip::AwaitBlindly) {
            self.word.fetch_or(AWAITED, Ordering::AcqRel);
            return Joined::NotYet;
        }
        let order = self.order(Ordering::AcqRel, Slip::AwaitRelaxed);
        self.change(order, |word| (word & DONE == 0).then_some(word | AWAITED))
    }
    fn leave(&self) -> Joined {
        if self.has(Slip::LeaveBlindly) {
            self.word.fetch_sub(JOINED + REFERENCE, Ordering::AcqRel);
            return Joined::NotYet;
        }
        self.change(Ordering::AcqRel, |word| (word & DONE == 0).then(|| word - JOINED - REFERENCE))
    }
}

// The models.

/// Two wakers wake a task, one of them for what it waits for, while it is polled, due or waits. `before` wakes came earlier.
fn woken<C: Cell>(before: usize, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let (world, mut join, [first, second, third]) = World::<C>::waiting(slip);
        (0..before).for_each(|_| C::wake_by_ref(&first));
        let others = [None, Some(second)].map(|waker| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                if let Some(waker) = waker {
                    world.get_ready();
                    C::wake(waker);
                }
                world.drain();
            })
        });
        C::wake(third);
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        world.drain();
        assert_eq!(world.futures_dropped.load(Now), 1, "the wake is lost");
        assert_eq!(C::poll(&mut join, Waker::noop()), Poll::Ready(true), "the value is lost");
        C::leave(join);
        C::drop_waker(first);
        world.assert_over();
    }
}

/// What a party does with the join handle. If that then waits, it comes back, with the awaiter to be woken.
type Party<C> = fn(<C as Cell>::Join, &[Arc<Awaiter>; 2]) -> Option<(<C as Cell>::Join, usize)>;

fn polls_once<C: Cell>(join: C::Join, awaiters: &[Arc<Awaiter>; 2]) -> Option<(C::Join, usize)> {
    polls::<C>(join, awaiters, 1)
}

/// The second time with another awaiter.
fn polls_twice<C: Cell>(join: C::Join, awaiters: &[Arc<Awaiter>; 2]) -> Option<(C::Join, usize)> {
    polls::<C>(join, awaiters, 2)
}

fn polls<C: Cell>(mut join: C::Join, awaiters: &[Arc<Awaiter>; 2], times: usize) -> Option<(C::Join, usize)> {
    for awaiter in &awaiters[..times] {
        if let Poll::Ready(value) = C::poll(&mut join, &Waker::from(Arc::clone(awaiter))) {
            assert!(value, "the value is lost");
            C::leave(join);
            return None;
        }
    }
    Some((join, times - 1))
}

fn leaves<C: Cell>(join: C::Join, _: &[Arc<Awaiter>; 2]) -> Option<(C::Join, usize)> {
    C::leave(join);
    None
}

fn polls_and_leaves<C: Cell>(join: C::Join, awaiters: &[Arc<Awaiter>; 2]) -> Option<(C::Join, usize)> {
    if let Some((join, _)) = polls_once::<C>(join, awaiters) {
        C::leave(join);
    }
    None
}

/// A task ends while its handle awaits it or leaves, and one of its wakers is dropped or used.
fn awaited<C: Cell>(party: Party<C>, fate: fn(C::Waker), slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let (world, join, [first, second]) = World::<C>::waiting(slip);
        world.get_ready();
        C::wake_by_ref(&first);
        let worker = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.drain())
        };
        let awaiters = <[Arc<Awaiter>; 2]>::default();
        let joiner = {
            let awaiters = awaiters.clone();
            thread::spawn(move || party(join, &awaiters))
        };
        fate(second);
        worker.join().expect("no panic");
        let waits = joiner.join().expect("no panic");
        world.drain();
        if let Some((mut join, awaiter)) = waits {
            assert!(awaiters[awaiter].woken.load(Now) > 0, "the awaiter is not woken");
            assert_eq!(C::poll(&mut join, Waker::noop()), Poll::Ready(true), "the value is lost");
            assert_eq!(C::poll(&mut join, Waker::noop()), Poll::Ready(false), "the value comes twice");
            C::leave(join);
        }
        assert!(awaiters.iter().all(|awaiter| Arc::strong_count(awaiter) == 1), "an awaiter is kept");
        C::drop_waker(first);
        world.assert_over();
    }
}

/// A task is closed and awaited while it is woken and polled. With `ready`, it may as well end by itself.
fn closed<C: Cell>(ready: bool, due: bool, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let (world, mut join, [first, second]) = World::<C>::waiting(slip);
        if due {
            C::wake_by_ref(&first);
        }
        let others = [None, Some(second)].map(|waker| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                if let Some(waker) = waker {
                    if ready {
                        world.get_ready();
                    }
                    C::wake(waker);
                }
                world.drain();
            })
        });
        C::close(&join);
        let awaiter = Arc::new(Awaiter::default());
        let mut polled = C::poll(&mut join, &Waker::from(Arc::clone(&awaiter)));
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        world.drain();
        if polled.is_pending() {
            assert!(awaiter.woken.load(Now) > 0, "the awaiter is not woken");
            polled = C::poll(&mut join, Waker::noop());
        }
        let Poll::Ready(value) = polled else { panic!("woken for nothing") };
        assert_eq!(value, world.values_made.load(Now) == 1, "the value is lost");
        assert!(ready || !value, "a value from nowhere");
        C::leave(join);
        C::drop_waker(first);
        world.assert_over();
    }
}

/// A parked task is taken by two ways while it is woken, or closed if it is `new`.
fn parked<C: Cell>(new: bool, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let (world, join, handle, waker) = if new {
            let world = World::<C>::new(slip);
            let (handle, join) = C::new_parked(&world);
            (world, join, handle, None)
        } else {
            let (world, join, [waker]) = World::<C>::waiting(slip);
            C::wake_by_ref(&waker);
            let handle = C::park(world.take().expect("due"));
            (world, join, handle, Some(waker))
        };
        world.get_ready();
        let taken = Arc::new(Unseen::new(0));
        let one = {
            let taken = Arc::clone(&taken);
            thread::spawn(move || {
                if let Some(runnable) = C::unpark(&handle) {
                    assert_eq!(taken.fetch_add(1, Now), 0, "taken twice");
                    C::run(runnable);
                }
                C::drop_handle(handle);
            })
        };
        let two = {
            let (taken, handle) = (Arc::clone(&taken), C::handle(&join));
            thread::spawn(move || match C::into_unparked(handle) {
                Ok(runnable) => {
                    assert_eq!(taken.fetch_add(1, Now), 0, "taken twice");
                    C::run(runnable);
                }
                Err(handle) => C::drop_handle(handle),
            })
        };
        match waker {
            Some(waker) => C::wake(waker),
            None => C::close(&join),
        }
        C::leave(join);
        [one, two].into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(taken.load(Now), 1, "never taken");
        world.assert_over();
    }
}

/// A task that nobody awaits ends while its wakers are used and dropped.
fn unwanted<C: Cell>(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let (world, join, [first, second, third]) = World::<C>::waiting(slip);
        C::leave(join);
        world.get_ready();
        C::wake(first);
        let worker = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.drain())
        };
        let other = thread::spawn(move || C::wake(second));
        C::drop_waker(third);
        [worker, other].into_iter().for_each(|thread| thread.join().expect("no panic"));
        world.drain();
        world.assert_over();
    }
}

/// Runs the models with one cell.
fn check_all<C: Cell>() {
    check(woken::<C>(1, Slip::None));
    check(woken::<C>(0, Slip::None));
    check(woken::<C>(4, Slip::None));
    for party in [polls_once::<C>, polls_twice::<C>, leaves::<C>, polls_and_leaves::<C>] {
        check(awaited::<C>(party, C::wake, Slip::None));
        check(awaited::<C>(party, C::drop_waker, Slip::None));
    }
    for (ready, due) in [(false, false), (false, true), (true, false), (true, true)] {
        check(closed::<C>(ready, due, Slip::None));
    }
    check(parked::<C>(false, Slip::None));
    check(parked::<C>(true, Slip::None));
    check(unwanted::<C>(Slip::None));
}

type Mutated = Model<Mutant>;

#[test]
fn the_cell_that_ships_keeps_the_promises() {
    // Rules out: a wake is lost; two polls at once; a part is dropped twice, too early or never; nobody tells who awaits.
    check_all::<Shipped>();
}

#[test]
fn the_model_with_the_state_that_ships_keeps_them() {
    // Also sees who touches what: the cell contains the panics by which loom tells of a race.
    check_all::<Model<State>>();
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_them() {
    // The runs that the mutants fail are due to what they do wrong.
    check_all::<Mutated>();
}

#[test]
fn mutant_that_forgets_a_wake_loses_it() {
    // The runs: a wake comes between the look and the write, or while a poll has begun and is seen as due all the same.
    let lost = "the wake is lost";
    refute(lost, woken::<Mutated>(0, Slip::EndTurnInTwoSteps));
    refute(lost, woken::<Mutated>(1, Slip::EndTurnForgets));
    refute(lost, woken::<Mutated>(1, Slip::WakeSkips));
}

#[test]
fn mutant_without_order_does_not_see_what_a_wake_is_about() {
    // The run: the poll answers the wake, but has looked at what it waits for as if before.
    let lost = "the wake is lost";
    refute(lost, woken::<Mutated>(0, Slip::BeginTurnRelaxed));
    refute(lost, woken::<Mutated>(1, Slip::WakeRelaxed));
}

#[test]
fn mutant_without_order_does_not_see_the_poll_before() {
    refute("Concurrent write", woken::<Mutated>(1, Slip::EndTurnRelaxed));
}

#[test]
fn mutant_that_stops_counting_without_care_loses_a_wake() {
    // The runs: the poll that was to answer it ends before it is left out; the poll answers what it had not seen.
    let lost = "the wake is lost";
    refute(lost, woken::<Mutated>(4, Slip::SaturateInTwoSteps));
    refute(lost, woken::<Mutated>(4, Slip::SaturateBlindly));
}

#[test]
fn mutant_that_shows_a_value_too_early_races_for_it() {
    // The runs: the handle takes the value before it is there, or before it sees it.
    refute("Concurrent write", awaited::<Mutated>(polls_once::<Mutated>, Mutated::wake, Slip::PublishFirst));
    refute("Concurrent write", awaited::<Mutated>(polls_once::<Mutated>, Mutated::wake, Slip::FinishRelaxed));
}

#[test]
fn mutant_that_ends_or_awaits_in_two_steps_tells_nobody() {
    // The runs: the awaiter is registered between the look and the end, or after the end.
    let forgotten = "the awaiter is not woken";
    refute(forgotten, awaited::<Mutated>(polls_once::<Mutated>, Mutated::wake, Slip::FinishInTwoSteps));
    refute(forgotten, awaited::<Mutated>(polls_once::<Mutated>, Mutated::wake, Slip::AwaitBlindly));
    refute(forgotten, closed::<Mutated>(false, false, Slip::CloseQuietly));
}

#[test]
fn mutant_that_shares_the_awaiters_place_races_for_it() {
    // The runs: the end takes the awaiter while it is replaced, or before it sees it.
    refute("Concurrent write", awaited::<Mutated>(polls_twice::<Mutated>, Mutated::wake, Slip::AwaitInUse));
    refute("Concurrent write", awaited::<Mutated>(polls_once::<Mutated>, Mutated::wake, Slip::AwaitRelaxed));
}

#[test]
fn mutant_that_leaves_without_care_leaves_something_behind() {
    // The runs: the task ends between the look and the leave, and the value is nobody's; the awaiter stays.
    refute("values dropped and made", awaited::<Mutated>(leaves::<Mutated>, Mutated::wake, Slip::LeaveBlindly));
    refute("values dropped and made", awaited::<Mutated>(leaves::<Mutated>, Mutated::wake, Slip::FinishInTwoSteps));
    refute("an awaiter is kept", awaited::<Mutated>(polls_and_leaves::<Mutated>, Mutated::wake, Slip::LeaveAwaiter));
}

#[test]
fn mutant_that_takes_in_two_steps_runs_a_task_twice() {
    refute("taken twice", parked::<Mutated>(false, Slip::UnparkInTwoSteps));
    refute("taken twice", parked::<Mutated>(true, Slip::UnparkInTwoSteps));
}

#[test]
fn mutant_without_order_destroys_what_is_in_use() {
    // The runs: the last reference does not see what the others did with theirs.
    let in_use = "Concurrent read and write";
    refute(in_use, unwanted::<Mutated>(Slip::UnwantedRelaxed));
    refute(in_use, parked::<Mutated>(true, Slip::UniqueRelaxed));
    refute(in_use, unwanted::<Mutated>(Slip::ReleaseRelaxed));
}

#[test]
fn mutant_that_releases_too_early_uses_or_destroys_what_is_gone() {
    // The runs: the others release theirs after it has released its own.
    refute("used after it was destroyed", unwanted::<Mutated>(Slip::WakeAfterRelease));
    refute("used after it was destroyed", unwanted::<Mutated>(Slip::UnwantedInTwoSteps));
}
