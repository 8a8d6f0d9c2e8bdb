//! Parking: published work never waits while every worker sleeps.
//!
//! Workers and publishers follow `executor/worker.rs` step by step over the shipped [`Idle`] and, where the masks matter,
//! the shipped [`Ready`]. A lost wake-up shows as a deadlock: every thread is parked and something has not run. The run
//! queues are single slots, weaker than the real queues: a look may miss what nothing ordered before it.

use std::sync::{Arc, OnceLock};
use std::sync::atomic::{AtomicBool as Unseen, Ordering::Relaxed as Now};

use loom::thread::{self, Thread};

use super::{check, refute};
use crate::executor::park::{Asleep, Idle};
use crate::executor::ready::Ready;
use crate::sync::atomic::{AtomicU8, Ordering};

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    /// A worker does not look again once its sleep bit is set.
    NoRecheck,
    /// A publisher reads who sleeps with a plain load.
    PlainLoad,
    /// The last searcher runs what it found without waking another.
    NoHandOff,
    /// A worker that was claimed counts itself as searching once more.
    CountedTwice,
    /// Who puts a mask's bit back wakes nobody.
    QuietPutBack,
    Quiet1, Quiet2,
    /// A worker reads its next deadline before its sleep bit is set.
    EarlyDeadline,
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

/// Threads that can be unparked by number.
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
        if let Some(worker) = self.idle.notify() {
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


/// Workers with an inbox each, which they find through the shipped masks. One priority; no local queues.
struct Masked {
    idle: Idle,
    ready: Ready,
    inboxes: [Slot; 2],
    beds: Beds,
    ran: [Unseen; 2],
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
            inboxes: [Slot::new(), Slot::new()],
            beds: Beds::new(),
            ran: [Unseen::new(false), Unseen::new(false)],
            slip,
        }
    }

    fn push_outside(&self, worker: usize) {
        self.inboxes[worker].push();
        self.ready.announce(worker, PRIORITY);
        self.wake_one();
    }

    fn wake_one(&self) {
        if let Some(worker) = self.idle.notify() {
            self.beds.unpark(worker);
        }
    }

    /// The next item, as the number of the inbox that it was in.
    fn next_item(&self, me: usize) -> Option<usize> {
        loop {
            let own = self.ready.available(me) & BIT != 0;
            if !own && self.ready.hot() & BIT != 0 {
                if let Some(item) = self.steal_best(me) {
                    return Some(item);
                }
            }
            if !own {
                return None;
            }
            if self.inboxes[me].pop() {
                return Some(me);
            }
            self.retract(me);
        }
    }

    fn steal_best(&self, me: usize) -> Option<usize> {
        let victim = 1 - me;
        if self.ready.available(victim) & BIT != 0 {
            if self.inboxes[victim].pop() {
                return Some(victim);
            }
            self.retract(victim);
        }
        if self.ready.retract_hot(PRIORITY) && self.slip != Slip::Quiet1 && self.slip != Slip::QuietPutBack {
            self.wake_one();
        }
        None
    }

    fn retract(&self, worker: usize) {
        if self.ready.retract(worker, PRIORITY, || self.inboxes[worker].occupied()) && self.slip != Slip::Quiet2 && self.slip != Slip::QuietPutBack {
            self.wake_one();
        }
    }

    fn work_waits(&self) -> bool {
        self.ready.hot() & BIT != 0 && self.inboxes.iter().any(Slot::occupied)
    }

    fn drive(&self, me: usize, mut searching: bool) {
        while !self.all_ran() {
            match self.next_item(me) {
                Some(item) => {
                    if searching {
                        searching = false;
                        self.end_search();
                    }
                    self.ran[item].store(true, Now);
                    self.beds.unpark_all();
                }
                None if !searching => {
                    self.idle.begin_search();
                    searching = true;
                }
                None => {
                    self.idle.begin_sleep(me);
                    // The shipped worker looks at its inboxes, too.
                    if self.slip != Slip::NoRecheck && self.work_waits() {
                        self.idle.cancel_sleep(me);
                        // It may have seen old values, which loom would show it for ever.
                        thread::yield_now();
                    } else {
                        self.lie_down(me);
                    }
                }
            }
        }
    }

    fn end_search(&self) {
        if self.idle.end_search() && self.slip != Slip::NoHandOff && self.work_waits() {
            self.wake_one();
        }
    }

    fn lie_down(&self, me: usize) {
        while self.idle.asleep(me) == Asleep::Park && !self.all_ran() {
            thread::park();
        }
    }

    fn all_ran(&self) -> bool {
        self.ran.iter().all(|ran| ran.load(Now))
    }

    /// A command that blocks its worker until everything has run.
    fn block(&self) {
        while !self.all_ran() {
            thread::park();
        }
    }
}

/// Two workers; one publisher with an item for each.
fn masked(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Masked::new(slip));
        for worker in 0..2 {
            let bed = Arc::clone(&world);
            thread::spawn(move || {
                bed.beds.enter(worker);
                bed.drive(worker, false);
            });
        }
        world.push_outside(0);
        world.push_outside(1);
    }
}

/// One worker sleeps. One ends its search with something that blocks; one has blocking work of its own, and before it
/// looks in vain for better. Meanwhile an item is pushed to the finder's inbox, so only the sleeper can run it.
fn window(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(Masked::new(slip));
        world.ran[0].store(true, Now);
        // What an earlier item left behind.
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
            finder.block();
        });
        start(2, |passer_by| {
            if let Some(item) = passer_by.steal_best(0) {
                passer_by.ran[item].store(true, Now);
                passer_by.beds.unpark_all();
            }
            passer_by.block();
        });
        world.push_outside(1);
    }
}

#[test]
fn published_work_never_waits_for_sleepers() {
    // Rules out: a publisher sees nobody asleep, the worker sees nothing published, and then it sleeps.
    check(board(2, false, Slip::None));
}

#[test]
fn what_the_last_searcher_leaves_is_handed_on() {
    // Rules out: both items published while one worker searches, which finds the first and blocks; the other sleeps on.
    check(board(1, true, Slip::None));
}

#[test]
fn mutant_without_recheck_deadlocks() {
    refute("deadlock", board(2, false, Slip::NoRecheck));
}

#[test]
fn mutant_with_a_plain_load_deadlocks() {
    refute("deadlock", board(2, false, Slip::PlainLoad));
}

#[test]
fn mutant_without_hand_off_deadlocks() {
    refute("deadlock", board(1, true, Slip::NoHandOff));
}

#[test]
fn mutant_that_counts_a_claimed_worker_twice_deadlocks() {
    refute("deadlock", board(1, true, Slip::CountedTwice));
}

#[test]
fn work_found_through_masks_never_waits_for_sleepers() {
    check(masked(Slip::None));
}

#[test]
fn who_puts_a_bit_back_hands_on_what_others_missed() {
    check(window(Slip::None));
}

#[test]
fn mutant_that_puts_a_bit_back_quietly_deadlocks() {
    refute("deadlock", window(Slip::QuietPutBack));
}

#[test]
fn q1() {
    refute("deadlock", window(Slip::Quiet1));
}
#[test]
fn q2() {
    refute("deadlock", window(Slip::Quiet2));
}
#[test]
fn q3() {
    refute("deadlock", masked(Slip::QuietPutBack));
}
#[test]
fn q4() {
    refute("deadlock", masked(Slip::NoRecheck));
}
