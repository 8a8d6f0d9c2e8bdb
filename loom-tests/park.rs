//! Parking: published work never waits while every worker sleeps.
//!
//! Workers and publishers follow `executor/worker.rs` step by step over the shipped [`Idle`] and, where the masks matter,
//! the shipped [`Ready`]. A lost wake-up shows as a deadlock: every thread is parked and something has not run. The run
//! queues are slots, weaker than the real queues: a look may miss what nothing ordered before it.

use std::sync::atomic::{AtomicBool as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, OnceLock};

use loom::sync::Mutex;
use loom::thread::{self, Thread};

use super::{check, refute};
use crate::executor::groups::Groups;
use crate::executor::park::{Asleep, Idle, Notified};
use crate::executor::ready::Ready;
use crate::sync::atomic::{AtomicU8, Ordering};

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: the steps that ship.
    None,
    /// A worker does not look again once its sleep bit is set.
    NoRecheck,
    /// A publisher reads who sleeps with a plain load.
    PlainLoad,
    /// The last searcher runs what it found without waking another.
    NoHandOff,
    /// A worker that was claimed counts itself as searching once more.
    CountedTwice,
    /// Who puts a worker's bit back wakes nobody.
    QuietAvailable,
    /// Who puts the executor's bit back wakes nobody.
    QuietHot,
    /// A worker reads its next deadline before its sleep bit is set.
    EarlyDeadline,
    /// A reserved worker that searches counts for work that it may not take.
    ReservedCoversAll,
    /// Work for the reserved workers is left to them although all are busy.
    ReservedOnly,
    /// Who hands the search on does so for the best work only.
    HandOnBest,
}

/// A queue of one item.
struct Slot(AtomicU8);

impl Slot {
    const FULL: u8 = 1;
    const TAKEN: u8 = 2;

    fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    fn push(&self) {
        self.0.swap(Self::FULL, Ordering::Release);
    }

    fn occupied(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::FULL
    }

    fn pop(&self) -> bool {
        let taken = || self.0.compare_exchange(Self::FULL, Self::TAKEN, Ordering::Acquire, Ordering::Relaxed);
        self.occupied() && taken().is_ok()
    }
}

/// The handles that unpark a worker.
struct Beds([OnceLock<Thread>; 3]);

impl Beds {
    fn new() -> Self {
        Self([OnceLock::new(), OnceLock::new(), OnceLock::new()])
    }

    fn enter(&self, me: usize) {
        let _first = self.0[me].set(thread::current());
    }

    fn unpark(&self, worker: usize) {
        self.0[worker].get().expect("who sleeps has entered").unpark();
    }

    fn unpark_all(&self) {
        self.0.iter().filter_map(OnceLock::get).for_each(Thread::unpark);
    }
}

/// Two workers and two items, where everybody sees every queue.
struct Board {
    idle: Idle,
    slots: [Slot; 2],
    beds: Beds,
    ran: [Unseen; 2],
    /// Item 0 blocks its worker until item 1 has run.
    chained: bool,
    slip: Slip,
}

impl Board {
    fn new(chained: bool, slip: Slip) -> Self {
        Self {
            idle: Idle::new(),
            slots: [Slot::new(), Slot::new()],
            beds: Beds::new(),
            ran: [Unseen::new(false), Unseen::new(false)],
            chained,
            slip,
        }
    }

    fn publish(&self, item: usize) {
        self.slots[item].push();
        self.wake_one();
    }

    fn wake_one(&self) {
        if self.slip == Slip::PlainLoad && self.idle.nobody_to_wake() {
            return;
        }
        if let Notified::Claimed(worker) = self.idle.notify() {
            self.beds.unpark(worker);
        }
    }

    fn drive(&self, me: usize) {
        self.beds.enter(me);
        let mut searching = false;
        while !self.all_ran() {
            match self.slots.iter().position(Slot::pop) {
                Some(item) => {
                    if searching {
                        searching = false;
                        if self.idle.end_search() && self.slip != Slip::NoHandOff && self.work_waits() {
                            self.wake_one();
                        }
                    }
                    self.run(item);
                }
                None if !searching => {
                    self.idle.begin_search();
                    searching = true;
                }
                None => self.sleep(me),
            }
        }
    }

    fn sleep(&self, me: usize) {
        self.idle.begin_sleep(me);
        if self.slip != Slip::NoRecheck && self.work_waits() {
            return self.idle.cancel_sleep(me);
        }
        while self.idle.asleep(me) == Asleep::Park {
            if self.all_ran() {
                return;
            }
            thread::park();
        }
        if self.slip == Slip::CountedTwice {
            self.idle.begin_search();
        }
    }

    fn work_waits(&self) -> bool {
        self.slots.iter().any(Slot::occupied)
    }

    fn run(&self, item: usize) {
        while self.chained && item == 0 && !self.ran[1].load(Now) {
            thread::park();
        }
        self.ran[item].store(true, Now);
        // Lets a blocked worker go on, and the model end.
        self.beds.unpark_all();
    }

    fn all_ran(&self) -> bool {
        self.ran.iter().all(|ran| ran.load(Now))
    }
}

/// Two workers; two publishers, or one that publishes both items.
fn board(publishers: usize, chained: bool, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let board = Arc::new(Board::new(chained, slip));
        for worker in 0..2 {
            let board = Arc::clone(&board);
            thread::spawn(move || board.drive(worker));
        }
        if publishers == 2 {
            let board = Arc::clone(&board);
            thread::spawn(move || board.publish(1));
        }
        board.publish(0);
        if publishers == 1 {
            board.publish(1);
        }
    }
}

/// Two workers with an inbox each, which they find through the shipped masks; one priority, no local queues. Two items
/// that block until both run.
struct Masked {
    idle: Idle,
    ready: Ready,
    inboxes: [[Slot; 2]; 2],
    beds: Beds,
    running: [Unseen; 2],
    slip: Slip,
}

/// The one priority.
const PRIORITY: u8 = 0;
const BIT: u64 = 1 << PRIORITY;

impl Masked {
    fn new(slip: Slip) -> Self {
        Self {
            idle: Idle::new(),
            ready: Ready::new(2),
            inboxes: [[Slot::new(), Slot::new()], [Slot::new(), Slot::new()]],
            beds: Beds::new(),
            running: [Unseen::new(false), Unseen::new(false)],
            slip,
        }
    }

    fn push_outside(&self, worker: usize, item: usize) {
        self.inboxes[worker][item].push();
        self.ready.announce(worker, PRIORITY);
        self.wake_one();
    }

    fn wake_one(&self) {
        if let Notified::Claimed(worker) = self.idle.notify() {
            self.beds.unpark(worker);
        }
    }

    fn drive(&self, me: usize, mut searching: bool) {
        while !self.all_run() {
            match self.next_item(me) {
                Some(item) => {
                    if searching {
                        searching = false;
                        self.end_search();
                    }
                    self.run(item);
                }
                None if !searching => {
                    self.idle.begin_search();
                    searching = true;
                }
                None => self.sleep(me),
            }
        }
    }

    fn next_item(&self, me: usize) -> Option<usize> {
        loop {
            let own = self.ready.available(me) & BIT != 0;
            if !own {
                return if self.ready.hot() & BIT != 0 { self.steal_best(1 - me) } else { None };
            }
            if let Some(item) = self.pop(me) {
                return Some(item);
            }
            self.retract(me);
        }
    }

    fn steal_best(&self, victim: usize) -> Option<usize> {
        if self.ready.available(victim) & BIT != 0 {
            if let Some(item) = self.pop(victim) {
                return Some(item);
            }
            self.retract(victim);
        }
        if self.ready.retract_hot(PRIORITY) && self.slip != Slip::QuietHot {
            self.wake_one();
        }
        None
    }

    fn retract(&self, worker: usize) {
        let put_back = self.ready.retract(worker, PRIORITY, || self.occupied(worker));
        if put_back && self.slip != Slip::QuietAvailable {
            self.wake_one();
        }
    }

    fn end_search(&self) {
        if self.idle.end_search() && self.slip != Slip::NoHandOff && self.work_waits() {
            self.wake_one();
        }
    }

    fn sleep(&self, me: usize) {
        self.idle.begin_sleep(me);
        // The shipped worker looks at its own inboxes, too.
        if self.slip != Slip::NoRecheck && self.work_waits() {
            self.idle.cancel_sleep(me);
            // It may have seen an old value, which loom would show it again and again.
            thread::yield_now();
        } else {
            self.lie_down(me);
        }
    }

    fn lie_down(&self, me: usize) {
        while self.idle.asleep(me) == Asleep::Park && !self.all_run() {
            thread::park();
        }
    }

    fn run(&self, item: usize) {
        self.running[item].store(true, Now);
        self.beds.unpark_all();
        self.block();
    }

    fn block(&self) {
        while !self.all_run() {
            thread::park();
        }
    }

    fn work_waits(&self) -> bool {
        self.ready.hot() & BIT != 0 && (0..2).any(|worker| self.occupied(worker))
    }

    fn occupied(&self, worker: usize) -> bool {
        self.inboxes[worker].iter().any(Slot::occupied)
    }

    fn pop(&self, worker: usize) -> Option<usize> {
        self.inboxes[worker].iter().position(Slot::pop)
    }

    fn all_run(&self) -> bool {
        self.running.iter().all(|running| running.load(Now))
    }
}

/// A worker that searches, one that just ended a task, and a publisher of both items.
fn masked(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Masked::new(slip));
        // What an earlier item left behind.
        world.ready.announce_local(1, PRIORITY);
        world.idle.begin_search();
        for worker in 0..2 {
            let there = Arc::clone(&world);
            thread::spawn(move || {
                there.beds.enter(worker);
                there.drive(worker, worker == 0);
            });
        }
        world.push_outside(1, 0);
        world.push_outside(1, 1);
    }
}

/// One worker sleeps. One ends its search with an item. One has worse work of its own that blocks until both items run,
/// and first looks for better in vain. An item is pushed meanwhile to where only the sleeper can find it.
fn window(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Masked::new(slip));
        world.ready.announce_local(1, PRIORITY);
        world.idle.begin_search();
        world.idle.begin_sleep(0);
        world.idle.begin_search();
        let start = |bed: usize, f: fn(&Masked)| {
            let there = Arc::clone(&world);
            let thread = thread::spawn(move || f(&there));
            let _first = world.beds.0[bed].set(thread.thread().clone());
        };
        start(0, |sleeper| {
            sleeper.lie_down(0);
            sleeper.drive(0, true);
        });
        start(1, |finder| {
            finder.end_search();
            finder.run(0);
        });
        start(2, |passer_by| match passer_by.steal_best(1) {
            Some(item) => passer_by.run(item),
            None => passer_by.block(),
        });
        world.push_outside(1, 1);
    }
}

/// Two groups: general workers, and after them one that is reserved for priority 0. Everybody sees every queue.
struct Divided {
    groups: Groups,
    workers: usize,
    items: Vec<Item>,
    beds: Beds,
    slip: Slip,
}

struct Item {
    priority: u8,
    /// Blocks its worker until this one has run.
    after: Option<usize>,
    slot: Slot,
    ran: Unseen,
}

const TOP: u8 = 0;
const BULK: u8 = 1;

impl Divided {
    fn new(general: usize, items: &[(u8, Option<usize>)], slip: Slip) -> Self {
        let item = |&(priority, after)| Item { priority, after, slot: Slot::new(), ran: Unseen::new(false) };
        Self {
            groups: Groups::new(general + 1, 1, 1 << TOP),
            workers: general + 1,
            items: items.iter().map(item).collect(),
            beds: Beds::new(),
            slip,
        }
    }

    fn publish(&self, item: usize) {
        self.items[item].slot.push();
        self.wake(1 << self.items[item].priority);
    }

    fn wake(&self, priorities: u64) {
        let groups = &self.groups;
        let notified = match self.slip {
            Slip::ReservedCoversAll => match groups.idle(self.workers - 1).notify() {
                Notified::Nobody => groups.idle(0).notify(),
                notified => notified,
            },
            Slip::ReservedOnly if priorities & 1 << TOP != 0 => groups.idle(self.workers - 1).notify(),
            _ => return groups.notify(priorities, |worker| self.beds.unpark(worker)),
        };
        if let Notified::Claimed(worker) = notified {
            self.beds.unpark(worker);
        }
    }

    fn drive(&self, me: usize, mut searching: bool) {
        let (idle, allowed) = (self.groups.idle(me), self.groups.allowed(me));
        while !self.all_ran() {
            match self.visible(allowed).find(|item| item.slot.pop()) {
                Some(item) => {
                    if searching {
                        searching = false;
                        if idle.end_search() {
                            self.hand_on(allowed);
                        }
                    }
                    self.run(item);
                }
                None if !searching => {
                    idle.begin_search();
                    searching = true;
                }
                None => {
                    idle.begin_sleep(me);
                    if self.visible(allowed).any(|item| item.slot.occupied()) {
                        idle.cancel_sleep(me);
                        continue;
                    }
                    self.lie_down(me);
                }
            }
        }
    }

    fn lie_down(&self, me: usize) {
        while self.groups.idle(me).asleep(me) == Asleep::Park && !self.all_ran() {
            thread::park();
        }
    }

    fn hand_on(&self, allowed: u64) {
        let waiting = self.visible(allowed).filter(|item| item.slot.occupied());
        let waiting: u64 = waiting.fold(0, |mask, item| mask | 1 << item.priority);
        let best = waiting & waiting.wrapping_neg();
        let waiting = if self.slip == Slip::HandOnBest { best } else { waiting };
        if waiting != 0 {
            self.wake(waiting);
        }
    }

    fn visible(&self, allowed: u64) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| allowed & 1 << item.priority != 0)
    }

    fn run(&self, item: &Item) {
        while item.after.is_some_and(|after| !self.items[after].ran.load(Now)) {
            thread::park();
        }
        item.ran.store(true, Now);
        self.beds.unpark_all();
    }

    fn all_ran(&self) -> bool {
        self.items.iter().all(|item| item.ran.load(Now))
    }
}

/// A general worker, a reserved one, and somebody who publishes all items.
fn divided(items: &'static [(u8, Option<usize>)], slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Divided::new(1, items, slip));
        for worker in 0..2 {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.beds.enter(worker);
                world.drive(worker, false);
            });
        }
        (0..items.len()).for_each(|item| world.publish(item));
    }
}

/// A general worker and the reserved one search, the other general one sleeps. All items are published, then the first worker
/// finds the first, which needs the other to find the second.
fn relied_on(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Divided::new(2, &[(BULK, Some(1)), (BULK, None), (TOP, None)], slip));
        world.groups.idle(1).begin_search();
        world.groups.idle(1).begin_sleep(1);
        for worker in [0, 2] {
            world.groups.idle(worker).begin_search();
        }
        world.beds.enter(0);
        for worker in [1, 2] {
            let there = Arc::clone(&world);
            let thread = thread::spawn(move || {
                there.lie_down(worker);
                there.drive(worker, true);
            });
            let _first = world.beds.0[worker].set(thread.thread().clone());
        }
        (0..3).for_each(|item| world.publish(item));
        world.drive(0, true);
    }
}

/// A long poll of bulk work, that only the reserved worker can end.
const TOP_BESIDE_BULK: &[(u8, Option<usize>)] = &[(BULK, Some(1)), (TOP, None)];
/// Two of the best, one of which is more than the reserved worker can take.
const TWO_TOP: &[(u8, Option<usize>)] = &[(TOP, Some(1)), (TOP, None)];
/// One worker without work, and a timer that is set on its wheel from outside: only this worker will fire it.
struct Wheel {
    idle: Idle,
    deadline: Mutex<Option<()>>,
    beds: Beds,
    slip: Slip,
}

impl Wheel {
    fn set(&self) {
        *self.deadline.lock().expect("no panic") = Some(());
        if self.idle.claim_sleeper(0) {
            self.beds.unpark(0);
        }
    }

    fn next_deadline(&self) -> Option<()> {
        *self.deadline.lock().expect("no panic")
    }

    /// Sleeps until the worker knows of the timer: a deadline ends a sleep by itself.
    fn sleep(&self) {
        self.beds.enter(0);
        self.idle.begin_search();
        loop {
            let early = (self.slip == Slip::EarlyDeadline).then(|| self.next_deadline());
            self.idle.begin_sleep(0);
            let deadline = early.unwrap_or_else(|| self.next_deadline());
            while self.idle.asleep(0) == Asleep::Park {
                if deadline.is_some() {
                    return self.idle.cancel_sleep(0);
                }
                thread::park();
            }
        }
    }
}

/// The timer is set while the worker goes to sleep and somebody wakes it for something else.
fn timer(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let wheel = Wheel { idle: Idle::new(), deadline: Mutex::new(None), beds: Beds::new(), slip };
        let wheel = Arc::new(wheel);
        for role in [Wheel::sleep, Wheel::set] {
            let wheel = Arc::clone(&wheel);
            thread::spawn(move || role(&wheel));
        }
        if let Notified::Claimed(worker) = wheel.idle.notify() {
            wheel.beds.unpark(worker);
        }
    }
}

#[test]
fn published_work_never_waits_for_sleepers() {
    // Rules out: a publisher sees nobody asleep, the worker sees nothing published, and then it sleeps.
    check(board(2, false, Slip::None));
}

#[test]
fn what_the_last_searcher_leaves_is_handed_on() {
    // Rules out: two items published while one worker searches, which finds the first and blocks; the other sleeps on.
    check(board(1, true, Slip::None));
}

#[test]
fn a_worker_that_misses_an_item_behind_a_cleared_bit_is_woken_for_it() {
    // Rules out: the owner clears its bit, the searcher its publisher relied on looks and sleeps, the owner puts the bit
    // back and runs one item; the other waits.
    check(masked(Slip::None));
}

#[test]
fn a_hand_on_missed_behind_a_cleared_bit_is_made_up_for() {
    // Rules out: a worker clears the executor's bit, the last searcher sees nothing to hand on, the first puts the bit
    // back and runs work of its own; the item waits.
    check(window(Slip::None));
}

#[test]
fn a_worker_never_sleeps_past_a_timer_set_from_outside() {
    // Rules out: the worker reads its wheel, the timer is set and finds nobody asleep, the worker sleeps for ever.
    check(timer(Slip::None));
}

#[test]
fn published_work_never_waits_for_sleepers_of_a_group_that_may_take_it() {
    // Rules out: the best work waits for a poll of bulk work, a reserved worker is relied on for what it may not take, or
    // both groups rely on each other.
    check(divided(TOP_BESIDE_BULK, Slip::None));
    check(divided(TWO_TOP, Slip::None));
    check(relied_on(Slip::None));
}

#[test]
fn mutant_that_relies_on_a_reserved_searcher_for_bulk_work_deadlocks() {
    // The run: bulk work is published while only the reserved worker searches.
    refute("deadlock", divided(TOP_BESIDE_BULK, Slip::ReservedCoversAll));
}

#[test]
fn mutant_that_leaves_the_best_work_to_busy_reserved_workers_deadlocks() {
    // The run: the reserved worker blocks on the first item, the general one sleeps.
    refute("deadlock", divided(TWO_TOP, Slip::ReservedOnly));
}

#[test]
fn mutant_that_hands_on_for_the_best_work_only_deadlocks() {
    // The run: a general worker is relied on for all, blocks on the first, and hands on to the reserved worker only.
    refute("deadlock", relied_on(Slip::HandOnBest));
}

#[test]
fn mutant_without_recheck_deadlocks() {
    // The run: the publisher reads the word before the sleep bit is set, the worker looked before the push.
    refute("deadlock", board(2, false, Slip::NoRecheck));
    refute("deadlock", masked(Slip::NoRecheck));
}

#[test]
fn mutant_with_a_plain_load_deadlocks() {
    // The run: the publisher reads an old word, the worker an old slot.
    refute("deadlock", board(2, false, Slip::PlainLoad));
}

#[test]
fn mutant_without_hand_off_deadlocks() {
    // The run: both publishers rely on one searcher, which blocks on the first item.
    refute("deadlock", board(1, true, Slip::NoHandOff));
    refute("deadlock", masked(Slip::NoHandOff));
}

#[test]
fn mutant_that_counts_a_claimed_worker_twice_deadlocks() {
    // The run: publishers rely for ever on a searcher that does not exist.
    refute("deadlock", board(1, true, Slip::CountedTwice));
}

#[test]
fn mutant_that_puts_a_bit_back_quietly_deadlocks() {
    // The runs are those that the good models rule out.
    refute("deadlock", masked(Slip::QuietAvailable));
    refute("deadlock", window(Slip::QuietHot));
}

#[test]
fn mutant_that_reads_its_deadline_too_early_deadlocks() {
    // The run: deadline read, timer set, nobody asleep to claim, sleep bit set.
    refute("deadlock", timer(Slip::EarlyDeadline));
}
