//! A worker: its own queues, the choice of what runs next, and the loop that a thread drives.
//!
//! Strict priority: before it starts a task of priority p, a worker looks whether any worker has a better one and takes
//! that. It looks at others only for strictly better work, or when it has none. Each call of [`Local::next_task`] is one
//! step without waiting, so a simulation can drive the same code on one thread. Sleeping follows `park`.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use crossbeam_deque::Worker as Deque;
use crossbeam_queue::SegQueue;

use super::ambient::Ambient;
use super::park::{Asleep, Idle};
use super::shared::{PRIORITIES, Phase, Shared};
use super::task::{Home, Runnable};
use crate::clock::{Tick, stamp};

/// Tasks that move from an inbox to the deque at a time.
pub(super) const BATCH: usize = 32;

/// Bounds of how long the last searcher looks before it sleeps; adapts between them. A wake-up costs its caller about
/// 7 us and arrives 18 us later on the machine of the design, which is what the search may cost to save one.
const SEARCH_MIN: Duration = Duration::from_micros(2);
const SEARCH_MAX: Duration = Duration::from_micros(50);

thread_local! {
    static CURRENT: Cell<*const Local> = const { Cell::new(std::ptr::null()) };
}

/// A worker's own side; never leaves its thread.
#[derive(Debug)]
pub(crate) struct Local {
    pub(super) shared: &'static Shared,
    pub(super) index: usize,
    /// That of its group.
    idle: &'static Idle,
    /// Bit p: it takes tasks of priority p.
    pub(super) allowed: u64,
    deques: Box<[OnceCell<Deque<Runnable>>]>,
    /// Bit p: deque p may hold something. Kept apart from the shared mask, which a thief may clear without seeing a push
    /// that has just happened.
    pub(super) nonempty: Cell<u64>,
    /// Priority of the task being polled.
    running: Cell<u8>,
    pub(super) random: Cell<u64>,
    /// By victim: how many polls it had done when its lone task was last left to it, and how often it was left since.
    pub(super) lone: Box<[Cell<(u64, u32)>]>,
    due: RefCell<Vec<Waker>>,
    /// Tasks admitted by those that ended here.
    admitted: Cell<u32>,
    /// The context that the last poll left behind; see `ambient`.
    within: RefCell<Option<Box<dyn Any>>>,
    _not_sync: PhantomData<*const ()>,
}

impl Local {
    pub(crate) fn new(shared: &'static Shared, index: usize, seed: u64) -> Self {
        Self {
            shared,
            index,
            idle: shared.groups.idle(index),
            allowed: shared.groups.allowed(index),
            deques: (0..PRIORITIES).map(|_| OnceCell::new()).collect(),
            nonempty: Cell::new(0),
            running: Cell::new(0),
            random: Cell::new(seed | 1),
            lone: shared.workers.iter().map(|_| Cell::new((0, 0))).collect(),
            due: RefCell::new(Vec::new()),
            admitted: Cell::new(0),
            within: RefCell::new(None),
            _not_sync: PhantomData,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Runs `f` with the calling thread's worker, if it is one.
    #[inline]
    pub(crate) fn with_any<T>(f: impl FnOnce(Option<&Self>) -> T) -> T {
        let local = CURRENT.with(Cell::get);
        // SAFETY: the pointer is set by `enter` for as long as the guard lives, which borrows the worker; it is thread
        // local, and only shared references are made from it.
        #[allow(unsafe_code)]
        let local = unsafe { local.as_ref() };
        f(local)
    }

    /// Runs `f` with the calling thread's worker, if it is one of `shared`.
    #[inline]
    pub(crate) fn with_current<T>(shared: &'static Shared, f: impl FnOnce(Option<&Self>) -> T) -> T {
        Self::with_any(|local| f(local.filter(|local| std::ptr::eq(local.shared, shared))))
    }

    /// Makes this the calling thread's worker until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered { before: CURRENT.with(|current| current.replace(self)), local: self }
    }

    /// Whether it takes tasks of this priority. Others that come up here go to other workers.
    pub(super) fn takes(&self, priority: u8) -> bool {
        self.allowed & 1 << priority != 0
    }

    /// Whether this is the worker of that number.
    pub(super) fn is_at(&self, home: Home) -> bool {
        self.index == home.worker()
    }

    pub(crate) fn shared(&self) -> &'static Shared {
        self.shared
    }

    /// Whether better work waits than the task being polled. Loads only.
    pub(crate) fn should_yield(&self) -> bool {
        self.visible() & ((1 << self.running.get()) - 1) != 0
    }

    /// Queues a new task of the one being polled. A sleeper is woken for it, since the current poll may be long.
    #[inline]
    pub(crate) fn push_new(&self, priority: u8, runnable: Runnable) {
        self.push(priority, runnable);
        self.show(priority);
        self.wake_for_local_work(1 << priority);
    }

    /// Queues a task woken by the one being polled. Alone in its queue, and no better than what runs, it most likely runs
    /// here next, where its data is: no sleeper is woken for it, and thieves leave it for a while (see `leave_lone`).
    #[inline]
    pub(crate) fn push_woken(&self, priority: u8, runnable: Runnable) {
        let queued = self.push(priority, runnable);
        self.show(priority);
        if queued > 1 || priority < self.running.get() {
            self.wake_for_local_work(1 << priority);
        }
    }

    /// The worker that the next admitted task goes to instead of this one; mostly none.
    #[inline]
    pub(super) fn worker_to_spread_to(&self) -> Option<usize> {
        /// A push to another worker costs more than one to the own deque, so not too often. With 8, lanes of two permits on four
        /// workers get the same within a twentieth over a thousand commands each (`tests/contract/concurrency.rs`).
        const STAY: u32 = 8;
        let admitted = self.admitted.get().wrapping_add(1);
        self.admitted.set(admitted);
        let workers = self.shared.groups.general().end;
        // Not from a reserved worker, nor from a spare: elsewhere it might wait behind what they do not run.
        let spreads = self.index < workers && workers > 1 && admitted.is_multiple_of(STAY);
        spreads.then(|| (self.index + 1 + self.random() as usize % (workers - 1)) % workers)
    }

    #[inline]
    pub(super) fn push(&self, priority: u8, runnable: Runnable) -> usize {
        let deque = self.deque(priority);
        deque.push(runnable);
        self.nonempty.set(self.nonempty.get() | 1 << priority);
        deque.len()
    }

    #[inline]
    fn show(&self, priority: u8) {
        if !self.alone() {
            self.shared.ready.announce_local(self.index, priority);
        }
    }

    /// The next task to poll: one that has starved, else the best there is. None if there is none at this moment.
    #[inline]
    pub(crate) fn next_task(&self) -> Option<Runnable> {
        let task = self.take_due().or_else(|| self.best_task())?;
        self.note_floor(task.metadata().priority());
        Some(task)
    }

    #[inline]
    fn best_task(&self) -> Option<Runnable> {
        let ready = &self.shared.ready;
        loop {
            let available = ready.available(self.index);
            let own = (self.nonempty.get() | available) & self.allowed;
            if !self.alone() {
                let better = match own.trailing_zeros() {
                    64 => u64::MAX,
                    best => (1 << best) - 1,
                };
                let better = ready.hot() & better & self.allowed;
                if better != 0
                    && let Some(task) = self.steal_best(better, own == 0)
                {
                    self.show_hidden();
                    return Some(task);
                }
            }
            if own == 0 {
                return None;
            }
            let priority = own.trailing_zeros() as u8;
            if let Some(task) = self.take_own(priority) {
                self.show_hidden();
                return Some(task);
            }
            self.nonempty.set(self.nonempty.get() & !(1 << priority));
            if ready.retract(self.index, priority, || self.remote().occupied(priority)) {
                self.wake(1 << priority);
            }
        }
    }

    /// A task of just this priority, from wherever it is.
    pub(super) fn take_of(&self, priority: u8) -> Option<Runnable> {
        self.take_own(priority).or_else(|| (!self.alone()).then(|| self.steal_best(1 << priority, false)).flatten())
    }

    /// Priorities that some worker may have work of, as far as this one can see. Alone, nobody clears the executor's bits.
    pub(super) fn visible(&self) -> u64 {
        let ready = &self.shared.ready;
        let own = self.nonempty.get() | ready.available(self.index);
        if self.alone() { own } else { own | ready.hot() }
    }

    /// Has the thread be within the context, and in no other.
    pub(super) fn stay_within(&self, ambient: Option<&dyn Ambient>) {
        let mut within = self.within.borrow_mut();
        let is_there = match (&*within, ambient) {
            (None, None) => true,
            (Some(entered), Some(ambient)) => ambient.is(&**entered),
            _ => false,
        };
        if !is_there {
            // Left before another one is entered.
            *within = None;
            *within = ambient.map(Ambient::enter);
        }
    }

    /// Polls a task.
    #[inline]
    pub(crate) fn run(&self, task: Runnable) {
        if !task.metadata().has_ambient() {
            self.stay_within(None);
        }
        self.running.set(task.metadata().priority());
        let counters = &self.remote().counters;
        counters.polls.add(1);
        task.run();
        counters.ended.add(1);
    }

    /// Fires the timers that are due.
    #[inline]
    pub(crate) fn fire_timers(&self) {
        let timers = &self.remote().timers;
        let next = timers.next_hint();
        if next == Tick::NEVER {
            return;
        }
        let now = self.shared.clock.now();
        if now >= next {
            self.fire_due(now);
        }
    }

    // Not inlined, nor is what empties an inbox: most polls have neither behind them.
    #[inline(never)]
    fn fire_due(&self, now: Tick) {
        let mut due = self.due.take();
        self.remote().timers.take_due(now, &mut due);
        self.remote().counters.timers.add(due.len() as u64);
        for waker in due.drain(..) {
            super::wake_contained(waker);
        }
        self.due.replace(due);
    }

    /// The loop of a worker's thread: runs until the executor is closed.
    pub(crate) fn drive(&self) {
        let entered = self.enter();
        self.work(|| self.shared.phase() != Phase::Closed);
        self.drop_queued();
        drop(entered);
    }

    /// Runs tasks, and sleeps while there are none, for as long as `goes_on` says.
    pub(super) fn work(&self, goes_on: impl Fn() -> bool) {
        let idle = self.idle;
        let mut search = Search::new();
        // Whether this worker is counted as searching in `idle`.
        let mut searching = false;
        // Whether it has run nothing since it last slept.
        let mut rested = true;
        while goes_on() {
            self.fire_timers();
            match self.next_task() {
                Some(task) => {
                    if searching {
                        searching = false;
                        search.found();
                        // Publishers relied on us while we searched: hand the search on if there is more.
                        if idle.end_search() {
                            self.hand_search_on();
                        }
                    } else {
                        self.wake_for_local_work_waiting();
                    }
                    if rested {
                        rested = false;
                        self.shared.have_polls_sampled();
                    }
                    // What was woken after the executor was closed is seen to be so here: popping it synchronised with the push.
                    if self.shared.phase() == Phase::Closed {
                        drop(task);
                    } else {
                        self.run(task);
                    }
                }
                None if !searching => {
                    // Not while counted as searching: others rely on who is.
                    search.probe(|| self.shared.clock.now());
                    idle.begin_search();
                    searching = true;
                    search.begin(self.shared.clock.now());
                }
                None if !self.alone() && search.goes_on(|| self.shared.clock.now()) => Search::pause(),
                None => {
                    self.remote().counters.falls_asleep(stamp());
                    self.sleep(&goes_on);
                    self.remote().counters.wakes_up(stamp());
                    rested = true;
                    search.begin(self.shared.clock.now());
                }
            }
        }
        // As if it had found something: a spare leaves others behind.
        if searching && idle.end_search() {
            self.hand_search_on();
        }
    }

    /// Sleeps until claimed by a notifier, until the next timer, or until `goes_on` says no. Called while searching, and leaves
    /// searching.
    fn sleep(&self, goes_on: &impl Fn() -> bool) {
        self.stay_within(None);
        let idle = self.idle;
        idle.begin_sleep(self.index);
        if self.work_for_me() {
            idle.cancel_sleep(self.index);
            return;
        }
        self.remote().counters.parks.add(1);
        let deadline = self.remote().timers.next_deadline();
        while idle.asleep(self.index) == Asleep::Park {
            if self.shared.phase() != Phase::Open {
                self.shared.notice_drained();
            }
            if !goes_on() {
                return idle.cancel_sleep(self.index);
            }
            match deadline.map(|deadline| deadline.since(self.shared.clock.now())) {
                None => std::thread::park(),
                Some(Duration::ZERO) => return idle.cancel_sleep(self.index),
                Some(left) => std::thread::park_timeout(left),
            }
        }
    }

    /// Whether there is anything this worker could run.
    fn work_for_me(&self) -> bool {
        self.shared.work_waits(self.allowed) || self.shared.phase() == Phase::Closed
    }

    /// Drops what is queued: the executor is closed.
    pub(crate) fn drop_queued(&self) {
        // Sleepers outside of this executor learn from their next poll that it is closed.
        self.remote().timers.take_all().into_iter().for_each(super::wake_contained);
        self.remote().waiting.wake_all();
        // A destructor may wake further tasks onto these queues.
        loop {
            self.shared.drop_inboxes();
            let Some(task) = self.deques.iter().filter_map(OnceCell::get).find_map(Deque::pop) else { break };
            drop(task);
        }
    }

    /// The next task of a priority, in the order in which they became due: what came from outside joins the deque first.
    #[inline]
    fn take_own(&self, priority: u8) -> Option<Runnable> {
        let deque = self.deque(priority);
        if let Some(inbox) = self.remote().inboxes[usize::from(priority)].get()
            && !inbox.is_empty()
        {
            self.empty_inbox(priority, inbox, deque);
        }
        deque.pop()
    }

    #[inline(never)]
    fn empty_inbox(&self, priority: u8, inbox: &SegQueue<Runnable>, deque: &Deque<Runnable>) {
        // Not all of it: what stays can be taken by others without touching the deque, which also stays small. But at
        // least one, so that tasks which keep coming back here do not keep out those that wait outside.
        let room = BATCH.saturating_sub(deque.len()).max(1);
        (0..room).map_while(|_| inbox.pop()).for_each(|task| deque.push(task));
        self.nonempty.set(self.nonempty.get() | 1 << priority);
    }

    /// Before a poll: shows the work that stays behind. A thief's clearing of a mask may have missed a push, since local
    /// pushes go without a fence.
    #[inline]
    fn show_hidden(&self) {
        if self.alone() {
            return;
        }
        let hidden = self.nonempty.get() & !self.shared.ready.available(self.index);
        for priority in priorities(hidden) {
            if self.deque(priority).is_empty() {
                self.nonempty.set(self.nonempty.get() & !(1 << priority));
            } else {
                self.show(priority);
            }
        }
    }

    #[inline]
    fn wake_for_local_work(&self, priorities: u64) {
        if !self.shared.groups.nobody_to_wake(priorities) {
            self.wake(priorities);
        }
    }

    /// At a dispatch: a sleeper that missed a local push (which goes without a fence) is woken if work is left over.
    #[inline]
    fn wake_for_local_work_waiting(&self) {
        let nonempty = self.nonempty.get();
        if !self.shared.groups.nobody_to_wake(nonempty) {
            let left = priorities(nonempty).filter(|p| !self.deque(*p).is_empty()).fold(0, with);
            self.wake(left);
        }
    }

    /// The last of its group to stop searching, because it found something or leaves, leaves to others what waits.
    fn hand_search_on(&self) {
        self.wake(self.shared.waiting(self.allowed));
    }

    /// As [`Shared::wake`].
    pub(super) fn wake(&self, priorities: u64) {
        self.shared.groups.notify(priorities, |worker| {
            self.remote().counters.wakes.add(1);
            self.shared.unpark(worker);
        });
    }

    #[inline]
    pub(super) fn deque(&self, priority: u8) -> &Deque<Runnable> {
        self.deques[usize::from(priority)].get_or_init(|| {
            let deque = Deque::new_fifo();
            // Set once, here, by the only owner.
            let _ = self.remote().stealers[usize::from(priority)].set(deque.stealer());
            deque
        })
    }

    #[inline]
    pub(super) fn remote(&self) -> &'static super::shared::Remote {
        &self.shared.workers[self.index]
    }

    /// One worker needs no masks, no thieves and no search, while no spare is on duty.
    #[inline]
    fn alone(&self) -> bool {
        self.shared.alone.load(Ordering::Relaxed)
    }

    /// Hands what is queued here to the workers: a spare leaves.
    pub(super) fn hand_over(&self) {
        self.nonempty.set(0);
        for priority in priorities(self.shared.queued_with(self.index)) {
            while let Some(task) = self.shared.take_from(self.index, priority) {
                self.shared.push_to(self.shared.outside_worker(), priority, task);
            }
        }
    }
}

/// The priorities of a mask, best first.
pub(super) fn priorities(mut mask: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let best = (mask != 0).then(|| mask.trailing_zeros() as u8);
        mask &= mask.wrapping_sub(1);
        best
    })
}

/// The mask with one more priority.
pub(super) fn with(mask: u64, priority: u8) -> u64 {
    mask | 1 << priority
}

/// See [`Local::enter`].
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    before: *const Local,
    local: &'a Local,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.local.stay_within(None);
        CURRENT.with(|current| current.set(self.before));
    }
}

/// How long to look for work before sleeping: long while that finds some, short while it does not.
#[derive(Debug)]
struct Search {
    budget: Duration,
    until: Tick,
    rounds: u32,
    /// Until when somebody else is taken to want the CPU.
    contended_until: Tick,
}

impl Search {
    fn new() -> Self {
        let long_ago = Tick::from_nanos(0);
        Self { budget: SEARCH_MIN, until: long_ago, rounds: 0, contended_until: long_ago }
    }

    /// Lets others have the CPU; if that took a while, somebody did, and for some time there is no search, which would keep
    /// the CPU from whoever submits the very work.
    fn probe(&mut self, clock: impl Fn() -> Tick) {
        /// Of a call that nobody takes up, some ten times over.
        const CONTENDED: Duration = Duration::from_micros(5);
        const FOR: Duration = Duration::from_millis(10);
        let before = clock();
        if before < self.contended_until {
            return;
        }
        std::thread::yield_now();
        let after = clock();
        if after.since(before) > CONTENDED {
            self.contended_until = after.plus(FOR);
        }
    }

    fn begin(&mut self, now: Tick) {
        self.until = if now < self.contended_until { now } else { now.plus(self.budget) };
        self.rounds = 0;
    }

    fn found(&mut self) {
        self.budget = (self.budget * 2).min(SEARCH_MAX);
    }

    /// Between two looks, which take lines that others work on.
    fn pause() {
        const PAUSES: u32 = 16;
        (0..PAUSES).for_each(|_| std::hint::spin_loop());
    }

    /// Whether to look once more; gives up, and looks for a shorter time next, when the budget is used up.
    fn goes_on(&mut self, now: impl FnOnce() -> Tick) -> bool {
        // Reading the clock costs as much as a look at the masks.
        const ROUNDS_PER_LOOK: u32 = 4;
        self.rounds = self.rounds.wrapping_add(1);
        if !self.rounds.is_multiple_of(ROUNDS_PER_LOOK) || now() < self.until {
            return true;
        }
        self.budget = (self.budget / 2).max(SEARCH_MIN);
        false
    }
}
