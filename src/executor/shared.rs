//! What all workers of an executor share, and how long it lives.
//!
//! Tasks reach this by reference without counting it: a count would be a line that every spawn and every completion on
//! every CPU writes. It lives until the handle, every thread and every task are gone; the last of the users that do
//! count (handle and threads) frees it if no task is left, else leaves it to a later sweep. Tasks are counted where they
//! are made and destroyed, each worker in words of its own.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_deque::{Steal, Stealer};
use crossbeam_queue::SegQueue;
use crossbeam_utils::CachePadded;
use event_listener::Event;

use super::floor::Floor;
use super::groups::Groups;
use super::ready::Ready;
use super::shown::Shown;
use super::spare::Spare;
use super::stats::Counter;
use super::task::{Home, Runnable};
use super::timers::Timers;
use super::waiting::Waiting;
use super::watch::Watch;
use super::worker::{Local, priorities, with};
use crate::clock::Clock;

/// Priorities 0 (best) to 63.
pub(crate) const PRIORITIES: usize = 64;

/// Threads outside that count tasks in words of their own: the first ones that do.
const COUNTED_APART: usize = 16;
/// Words that the others share for that: enough that a few seldom meet on one.
const SHARED_COUNTS: usize = 8;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) groups: Groups,
    pub(crate) ready: Ready,
    /// The workers, and after them the spares.
    pub(crate) workers: Box<[Remote]>,
    pub(crate) regular: usize,
    pub(super) spares: Box<[Spare]>,
    /// The one worker is the only one that runs tasks: it needs no masks, no thieves and no search.
    pub(super) alone: AtomicBool,
    /// How long a poll may last before it counts as stuck; none if nobody looks.
    pub(super) stuck_after: Option<Duration>,
    pub(crate) watch: Watch,
    /// Notified when a task count reaches zero while draining, and when a worker thread ends.
    pub(crate) changed: Event,
    phase: CachePadded<AtomicU8>,
    /// The handle and the threads.
    users: AtomicUsize,
    outside: Box<[CachePadded<TaskCount>]>,
    /// Worker threads that have not ended.
    pub(crate) threads: AtomicUsize,
    /// Used by a simulation only; see `outside_worker`.
    simulated_turn: AtomicUsize,
    homes: AtomicBool,
    closing: Mutex<Vec<Weak<dyn Closing>>>,
    /// See `waiting`.
    pub(super) rounds: AtomicU64,
    pub(super) floor: CachePadded<Floor>,
}

/// Something that holds tasks of its own back, and must let go of them when the executor is closed.
pub(crate) trait Closing: Send + Sync {
    fn executor_closed(&self);
}

impl fmt::Debug for dyn Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closing")
    }
}

/// What an executor is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) workers: usize,
    /// How many of these run tasks of the priorities `allowed` only.
    pub(crate) reserved: usize,
    pub(crate) allowed: u64,
    pub(crate) spares: usize,
    pub(crate) stuck_after: Option<Duration>,
}

impl Shape {
    /// Workers that nobody watches.
    pub(crate) const fn plain(workers: usize) -> Self {
        Self { workers, reserved: 0, allowed: 0, spares: 0, stuck_after: None }
    }
}

/// What others may touch of a worker.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) inboxes: Box<[OnceLock<Box<SegQueue<Runnable>>>]>,
    pub(crate) stealers: Box<[OnceLock<Stealer<Runnable>>]>,
    pub(crate) timers: Timers,
    pub(crate) waiting: Waiting,
    /// Set by the worker's thread; a simulated worker has none.
    pub(crate) thread: OnceLock<Thread>,
    /// Written by the worker, and for a moment by the watch.
    pub(crate) shown: CachePadded<Shown>,
    /// Written by the worker only.
    pub(crate) tasks: CachePadded<TaskCount>,
    pub(crate) counters: CachePadded<WorkerCounters>,
}

/// One writer for a worker's and for that of a thread which counts apart, several for the others. The counts only grow.
#[derive(Debug, Default)]
pub(crate) struct TaskCount {
    created: AtomicU64,
    /// Their future has ended; a handle may still hold the result.
    finished: AtomicU64,
    /// Their memory is gone.
    destroyed: AtomicU64,
    /// Uses by what is neither a task nor counted in `users`: a push from outside (once it is pushed, the task may end and
    /// the executor with it) and a `Sleep`.
    uses_begun: AtomicU64,
    uses_ended: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    /// Polls begun, and ended: a poll runs while the two differ.
    pub(crate) polls: Counter,
    pub(crate) ended: Counter,
    pub(crate) steals: Counter,
    pub(crate) parks: Counter,
    /// Stamp of the thread's beginning; 0 before.
    pub(crate) began: AtomicU64,
    /// Stamp of the beginning of the present sleep; 0 while awake.
    pub(crate) asleep_since: AtomicU64,
    /// Nanoseconds asleep before that.
    pub(crate) slept: Counter,
    pub(crate) wakes: Counter,
    pub(crate) timers: Counter,
    /// Written by the watch only.
    pub(crate) stuck: Counter,
}

/// Where an executor is in its life. Only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Open,
    /// No new tasks; those there are run on.
    Draining,
    /// Nothing runs any more; what is queued or woken is dropped.
    Closed,
}

impl Shared {
    pub(crate) fn new(shape: Shape, clock: Clock) -> Self {
        let Shape { workers, reserved, allowed, spares, stuck_after } = shape;
        let all = workers + spares;
        Self {
            clock,
            groups: Groups::new(workers, reserved, allowed),
            ready: Ready::new(all),
            workers: (0..all).map(|_| Remote::new()).collect(),
            regular: workers,
            spares: (0..spares).map(|_| Spare::default()).collect(),
            alone: AtomicBool::new(workers == 1),
            stuck_after,
            watch: Watch::new(),
            changed: Event::new(),
            phase: CachePadded::new(AtomicU8::new(Phase::Open as u8)),
            users: AtomicUsize::new(1),
            outside: (0..COUNTED_APART + SHARED_COUNTS).map(|_| CachePadded::default()).collect(),
            threads: AtomicUsize::new(0),
            simulated_turn: AtomicUsize::new(0),
            homes: AtomicBool::new(false),
            closing: Mutex::new(Vec::new()),
            rounds: AtomicU64::new(0),
            floor: CachePadded::default(),
        }
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Draining,
            _ => Phase::Closed,
        }
    }

    /// Moves on to `phase` and wakes every worker to notice.
    pub(crate) fn enter_phase(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
        // ORDERING: pairs with the fence of a thread that has just shown its handle: it sees the phase, or we the handle.
        fence(Ordering::SeqCst);
        for worker in 0..self.workers.len() {
            self.unpark(worker);
        }
        self.watch.wake();
        self.changed.notify(usize::MAX);
    }

    /// Tells `holder` when the executor is closed.
    pub(crate) fn tell_when_closed(&self, holder: Weak<dyn Closing>) {
        let mut closing = self.closing();
        // Those that are gone are swept when the list is about to grow, so that a registration costs O(1).
        if closing.len() == closing.capacity() {
            closing.retain(|holder| holder.strong_count() > 0);
        }
        closing.push(holder);
    }

    /// Closes the executor: nothing runs any more, and what waits or is held back is dropped.
    pub(crate) fn close(&self) {
        self.enter_phase(Phase::Closed);
        let holders = std::mem::take(&mut *self.closing());
        holders.iter().filter_map(Weak::upgrade).for_each(|holder| holder.executor_closed());
    }

    fn closing(&self) -> MutexGuard<'_, Vec<Weak<dyn Closing>>> {
        // Nothing under this lock can panic half-way.
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where chances begin: the same in every simulation.
    pub(crate) fn seed(&self) -> u64 {
        match self.clock {
            Clock::System => RandomState::new().hash_one(0),
            Clock::Virtual(_) => 0,
        }
    }

    /// Puts a task that became due on a run queue.
    #[inline]
    pub(crate) fn push(&'static self, priority: u8, runnable: Runnable) {
        Local::with_current(self, |local| match local.filter(|local| local.takes(priority)) {
            Some(local) => local.push_woken(priority, runnable),
            None => {
                // Once it is pushed, the task may end and the executor with it.
                self.begin_use();
                match runnable.metadata().home() {
                    Some(home) => self.push_home(home, priority, runnable),
                    None => self.push_outside(priority, runnable),
                }
                self.end_use();
            }
        });
    }

    /// As [`Shared::push`] for a task that was admitted because another one ended. Now and then it goes to another worker: those
    /// that follow each other would all run on one, and what is spread unevenly over the workers would stay so.
    #[inline]
    pub(crate) fn push_admitted(&'static self, priority: u8, runnable: Runnable) {
        let home = runnable.metadata().home();
        let taker = |local: &&Local| local.takes(priority);
        Local::with_current(self, |local| {
            // Only what has no home is spread.
            match (local.filter(taker), home) {
                (Some(local), Some(home)) if local.is_at(home) => local.push_woken(priority, runnable),
                (_, Some(home)) => {
                    // As in `push`.
                    self.begin_use();
                    self.push_home(home, priority, runnable);
                    self.end_use();
                }
                (Some(local), None) => match local.worker_to_spread_to() {
                    Some(other) => {
                        self.begin_use();
                        self.push_to(other, priority, runnable);
                        self.end_use();
                    }
                    None => local.push_woken(priority, runnable),
                },
                (None, None) => self.push(priority, runnable),
            }
        });
    }

    /// As [`Shared::push`] for a new task, for which a sleeping worker is woken even if it is alone in its queue. The caller
    /// holds a handle of the executor.
    #[inline]
    pub(crate) fn push_new(&'static self, priority: u8, runnable: Runnable) {
        if let Some(home) = runnable.metadata().home() {
            return self.push_new_home(home, priority, runnable);
        }
        Local::with_current(self, |local| match local.filter(|local| local.takes(priority)) {
            Some(local) => local.push_new(priority, runnable),
            None => self.push_outside(priority, runnable),
        });
    }

    // Not inlined: tasks without a home, which most are, do not pay for it.
    #[inline(never)]
    fn push_new_home(&'static self, home: Home, priority: u8, runnable: Runnable) {
        Local::with_current(self, |local| match local.filter(|local| local.is_at(home)) {
            Some(local) => local.push_new(priority, runnable),
            None => self.push_home(home, priority, runnable),
        });
    }

    fn push_outside(&'static self, priority: u8, runnable: Runnable) {
        // A sleeper's inbox saves the hop through a steal.
        let worker = self.groups.sleeper_hint(priority).unwrap_or_else(|| self.outside_worker());
        self.push_to(worker, priority, runnable);
    }

    /// The home of a partition's tasks. Reserved workers and spares are nobody's home.
    pub(crate) fn home_of(&self, partition: usize) -> Home {
        if !self.has_homes() {
            self.homes.store(true, Ordering::Relaxed);
        }
        Home::new(partition % self.groups.general().len())
    }

    /// Whether any task ever had a home: thieves then leave a few to their owners.
    #[inline]
    pub(super) fn has_homes(&self) -> bool {
        self.homes.load(Ordering::Relaxed)
    }

    /// Puts a task into the inbox of its home, and wakes that rather than another one.
    #[inline(never)]
    fn push_home(&'static self, home: Home, priority: u8, runnable: Runnable) {
        let worker = home.worker();
        self.put(worker, priority, runnable);
        // As for `push_to`; and a sleeper that is claimed by name searches for this item as one that `wake` would claim.
        let is_open = self.phase() != Phase::Closed;
        if is_open && self.groups.idle(worker).claim_sleeper(worker) {
            self.unpark(worker);
        } else {
            self.tell_of(priority, is_open);
        }
    }

    /// Puts a task into a worker's inbox. Only the watch may name a spare, while that is on duty.
    pub(super) fn push_to(&'static self, worker: usize, priority: u8, runnable: Runnable) {
        self.put(worker, priority, runnable);
        self.tell_of(priority, self.phase() != Phase::Closed);
    }

    #[inline(always)]
    fn put(&'static self, worker: usize, priority: u8, runnable: Runnable) {
        self.workers[worker].inbox(priority).push(runnable);
        self.ready.announce(worker, priority);
    }

    /// Has somebody look for what was put into an inbox.
    #[inline(always)]
    fn tell_of(&'static self, priority: u8, is_open: bool) {
        // ORDERING: `announce` fenced. The last thread to end counts itself off, fences, then empties the inboxes: either it
        // finds our task, or we see that no thread is left. While one is, the task is not dropped here: this may be a waker,
        // called under a lock that the task's destructor takes.
        if is_open {
            self.wake(1 << priority);
        } else if self.threads.load(Ordering::Relaxed) == 0 {
            self.drop_inboxes();
        }
    }

    /// The general worker that gets the next push or timer of the calling thread, which is none: the same for a while (its lines
    /// stay warm), then the next one, so that a lone producer feeds them all.
    pub(crate) fn outside_worker(&self) -> usize {
        const IN_A_ROW: usize = 32;
        thread_local! {
            static PUSHED: Cell<usize> = const { Cell::new(0) };
        }
        let turn = match self.clock {
            Clock::System => thread_number() + PUSHED.with(|n| n.replace(n.get().wrapping_add(1))) / IN_A_ROW,
            // Must not depend on what the thread did before.
            Clock::Virtual(_) => self.simulated_turn.fetch_add(1, Ordering::Relaxed),
        };
        turn % self.groups.general().end
    }

    /// Drops what is in the inboxes: the executor is closed. What that pushes back from this thread is dropped by the same
    /// call, one after the other: a lane's next command is pushed by the end of the one before, and there may be millions.
    pub(crate) fn drop_inboxes(&self) {
        thread_local! {
            /// The executors whose inboxes this thread is emptying.
            static DROPPING: RefCell<Vec<*const Shared>> = const { RefCell::new(Vec::new()) };
        }
        let this = std::ptr::from_ref(self);
        if DROPPING.with_borrow(|dropping| dropping.contains(&this)) {
            return;
        }
        DROPPING.with_borrow_mut(|dropping| dropping.push(this));
        while let Some(runnable) = self.workers.iter().find_map(Remote::pop_any) {
            drop(runnable);
        }
        DROPPING.with_borrow_mut(|dropping| dropping.retain(|other| *other != this));
    }

    /// Keeps this in memory until [`Shared::end_use`].
    #[inline]
    pub(crate) fn begin_use(&'static self) {
        self.count(|count| &count.uses_begun);
    }

    #[inline]
    pub(crate) fn end_use(&'static self) {
        self.count(|count| &count.uses_ended);
    }

    /// Wakes who may take work of these priorities, unless somebody searches already. Call after publishing it.
    pub(crate) fn wake(&self, priorities: u64) {
        self.groups.notify(priorities, |worker| self.unpark(worker));
    }

    pub(crate) fn unpark(&self, worker: usize) {
        if let Some(thread) = self.workers[worker].thread.get() {
            thread.unpark();
        }
    }

    /// The priorities of which a worker has tasks queued; whether they are announced or not.
    pub(super) fn queued_with(&self, worker: usize) -> u64 {
        (0..PRIORITIES as u8).filter(|priority| self.workers[worker].occupied(*priority)).fold(0, with)
    }

    /// Takes a task out of a worker's queues from outside.
    pub(super) fn take_from(&self, worker: usize, priority: u8) -> Option<Runnable> {
        let remote = &self.workers[worker];
        let stealer = remote.stealers[usize::from(priority)].get();
        let stolen = stealer.and_then(|stealer| {
            loop {
                match stealer.steal() {
                    Steal::Retry => std::hint::spin_loop(),
                    stolen => break stolen.success(),
                }
            }
        });
        stolen.or_else(|| remote.inboxes[usize::from(priority)].get()?.pop())
    }

    /// Of these priorities, those that any queue holds an item of: exact for what was published before.
    pub(crate) fn waiting(&self, priorities: u64) -> u64 {
        self::priorities(self.ready.hot() & priorities).filter(|priority| self.is_waiting(*priority)).fold(0, with)
    }

    /// Whether any queue holds an item of these priorities; exact in the same way.
    pub(crate) fn work_waits(&self, priorities: u64) -> bool {
        self::priorities(self.ready.hot() & priorities).any(|priority| self.is_waiting(priority))
    }

    fn is_waiting(&self, priority: u8) -> bool {
        self.workers.iter().any(|worker| worker.occupied(priority))
    }

    #[inline]
    pub(crate) fn task_created(&'static self) {
        self.count(|count| &count.created);
    }

    #[inline]
    pub(crate) fn task_finished(&'static self) {
        self.count(|count| &count.finished);
        self.notice_drained();
    }

    /// The last access that a task makes to this.
    #[inline]
    pub(crate) fn task_destroyed(&'static self) {
        self.count(|count| &count.destroyed);
    }

    #[inline]
    fn count(&'static self, which: impl Fn(&TaskCount) -> &AtomicU64) {
        // ORDERING: release, so that whoever frees this after reading the counts does so after the task's accesses.
        let alone = |count: &AtomicU64| count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
        Local::with_current(self, |local| match local {
            Some(local) => alone(which(&self.workers[local.index()].tasks)),
            None => match thread_number() {
                // Numbers are given once.
                number if number < COUNTED_APART => alone(which(&self.outside[number])),
                number => {
                    which(&self.outside[COUNTED_APART + number % SHARED_COUNTS]).fetch_add(1, Ordering::Release);
                }
            },
        });
    }

    /// Tasks whose future has not ended. Exact once nothing is created any more.
    pub(crate) fn unfinished_tasks(&self) -> u64 {
        self.difference(|count| &count.created, |count| &count.finished)
    }

    /// Whether no task can reach this any more, given that nothing is created any more.
    fn is_unreachable(&self) -> bool {
        self.difference(|count| &count.created, |count| &count.destroyed) == 0
            && self.difference(|count| &count.uses_begun, |count| &count.uses_ended) == 0
    }

    fn difference(&self, begun: impl Fn(&TaskCount) -> &AtomicU64, ended: impl Fn(&TaskCount) -> &AtomicU64) -> u64 {
        let counts =
            || self.workers.iter().map(|worker| &*worker.tasks).chain(self.outside.iter().map(|count| &**count));
        // Ended first: what is counted as ended had begun before, so the difference is never too small.
        let ended: u64 = counts().map(|count| ended(count).load(Ordering::Acquire)).sum();
        let begun: u64 = counts().map(|count| begun(count).load(Ordering::Acquire)).sum();
        begun.saturating_sub(ended)
    }

    /// While draining: tells the waiter if no task is left.
    #[inline]
    pub(crate) fn notice_drained(&self) {
        if self.phase() != Phase::Open {
            // ORDERING: of two threads that each end a task last, one sees the other's count.
            fence(Ordering::SeqCst);
            if self.unfinished_tasks() == 0 {
                self.changed.notify(usize::MAX);
            }
        }
    }

    pub(crate) fn add_user(&self) {
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    /// The handle or a thread is done with this. The caller must not touch it afterwards.
    pub(crate) fn release(&'static self) {
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            retire(Some(self));
        }
    }
}

/// Frees executors that have ended and whose last task is gone; `ended` has just ended.
///
/// A task survives its executor while something holds its waker; such an executor waits in the graveyard for a later
/// call, which every executor that is made or ends performs.
pub(crate) fn retire(ended: Option<&'static Shared>) {
    static GRAVEYARD: Mutex<Vec<&'static Shared>> = Mutex::new(Vec::new());
    let mut graveyard = GRAVEYARD.lock().unwrap_or_else(PoisonError::into_inner);
    graveyard.extend(ended);
    let (dead, waiting): (Vec<_>, Vec<_>) = graveyard.drain(..).partition(|shared| shared.is_unreachable());
    *graveyard = waiting;
    drop(graveyard);
    for shared in dead {
        // SAFETY: made by `Box::leak` in `Executor`. No user is left (only then is it in the graveyard), so no new task
        // can be made, and every task was destroyed; `task_destroyed` is a task's last access and its count was acquired
        // by `is_unreachable`, as are those of pushes from outside. Taken out of the graveyard under its lock, so this
        // happens once.
        #[allow(unsafe_code)]
        drop(unsafe { Box::from_raw(std::ptr::from_ref(shared).cast_mut()) });
    }
}

impl Remote {
    fn new() -> Self {
        Self {
            inboxes: (0..PRIORITIES).map(|_| OnceLock::new()).collect(),
            stealers: (0..PRIORITIES).map(|_| OnceLock::new()).collect(),
            timers: Timers::new(),
            waiting: Waiting::default(),
            thread: OnceLock::new(),
            shown: CachePadded::new(Shown::new()),
            tasks: CachePadded::default(),
            counters: CachePadded::default(),
        }
    }

    fn inbox(&self, priority: u8) -> &SegQueue<Runnable> {
        self.inboxes[usize::from(priority)].get_or_init(Box::default)
    }

    /// Whether this worker's deque or inbox of `priority` holds something.
    pub(crate) fn occupied(&self, priority: u8) -> bool {
        let priority = usize::from(priority);
        self.inboxes[priority].get().is_some_and(|inbox| !inbox.is_empty())
            || self.stealers[priority].get().is_some_and(|stealer| !stealer.is_empty())
    }

    fn pop_any(&self) -> Option<Runnable> {
        self.inboxes.iter().filter_map(OnceLock::get).find_map(|inbox| inbox.pop())
    }
}

/// A small number of its own for each thread.
#[inline]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}
