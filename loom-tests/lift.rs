//! Lifting: a parked task that several ways lead to is taken once, and is seen as it was parked.
//!
//! [`Task`] calls the shipped [`Slot`] and [`Life`] as `executor/lift.rs`, `queue/admission` and `queue/context.rs` do.
//! Async-task's cell, which loom can not see, is a word that its taker reads.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};

use loom::thread;

use super::{check, refute};
use crate::executor::life::{Birth, End, Life};
use crate::executor::slot::Slot;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// What parks a task.
trait Steps: Send + Sync + 'static {
    fn put(&self, raw: NonNull<()>);
    fn take(&self) -> Option<NonNull<()>>;
    fn is_full(&self) -> bool;
}

impl Steps for Slot {
    fn put(&self, raw: NonNull<()>) {
        self.put(raw);
    }
    fn take(&self) -> Option<NonNull<()>> {
        self.take()
    }
    fn is_full(&self) -> bool {
        self.is_full()
    }
}

/// The step that a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `take` looks and then empties the slot.
    TakeInTwoSteps,
    /// `take` orders nothing.
    TakeRelaxed,
    /// `put` orders nothing.
    PutRelaxed,
    /// Who admits leaves the task to a way that it does not make.
    NoWay,
}

/// The steps of [`Slot`], one of them wrong.
struct Mutant {
    raw: AtomicPtr<()>,
    slip: Slip,
}

impl Steps for Mutant {
    fn put(&self, raw: NonNull<()>) {
        let order = if self.slip == Slip::PutRelaxed { Ordering::Relaxed } else { Ordering::Release };
        self.raw.swap(raw.as_ptr(), order);
    }
    fn take(&self) -> Option<NonNull<()>> {
        let empty = std::ptr::null_mut();
        match self.slip {
            Slip::TakeInTwoSteps => {
                let raw = self.raw.load(Ordering::Acquire);
                self.raw.swap(empty, Ordering::AcqRel);
                NonNull::new(raw)
            }
            Slip::TakeRelaxed => NonNull::new(self.raw.swap(empty, Ordering::Relaxed)),
            _ => NonNull::new(self.raw.swap(empty, Ordering::AcqRel)),
        }
    }
    fn is_full(&self) -> bool {
        !self.raw.load(Ordering::Acquire).is_null()
    }
}

struct Task<S> {
    slot: S,
    life: Life,
    /// What is in the cell: how often it was parked.
    cell: AtomicU64,
    parked: Unseen,
    /// Runs, and drops without a run.
    ended: Unseen,
    slip: Slip,
}

impl<S: Steps> Task<S> {
    fn park(&self) {
        let parked = self.parked.fetch_add(1, Now) + 1;
        self.cell.store(parked as u64, Ordering::Relaxed);
        self.slot.put(NonNull::dangling());
    }

    fn unpark(&self) -> bool {
        let taken = self.slot.take().is_some();
        if taken {
            let parked = self.parked.load(Now) as u64;
            assert_eq!(self.cell.load(Ordering::Relaxed), parked, "seen as it was before it was parked");
        }
        taken
    }

    /// One way to it is polled.
    fn way(&self) {
        if self.unpark() {
            self.end();
        }
    }

    fn end(&self) {
        assert_eq!(self.ended.fetch_add(1, Now), 0, "taken twice");
    }

    /// It comes to the head of its line, in a lane that boosts.
    fn admit(&self) {
        if self.life.is_queued() && self.life.admit(false) && self.unpark() {
            self.park();
            if self.slip != Slip::NoWay {
                self.way();
            }
        }
    }

    /// Its alarm gives it a better priority.
    fn boost(&self) {
        if self.slot.is_full() && self.life.is_admitted() {
            self.way();
        }
    }

    fn cancel(&self) {
        let ended = self.life.try_end(End::Cancelled).is_ok_and(|ended| ended.was_queued);
        if ended && self.unpark() {
            // Dropped, which ends a task just as well.
            self.end();
        }
    }
}

/// A parked task is admitted to a run queue, boosted to another one, and cancelled.
fn lifted<S: Steps>(slip: Slip, slot: impl Fn() -> S + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let task = Arc::new(Task {
            slot: slot(),
            life: Life::new(Birth::Queued),
            cell: AtomicU64::new(0),
            parked: Unseen::new(0),
            ended: Unseen::new(0),
            slip,
        });
        task.park();
        let others = [Task::boost, Task::cancel].map(|party: fn(&Task<S>)| {
            let task = Arc::clone(&task);
            thread::spawn(move || party(&task))
        });
        task.admit();
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(task.ended.load(Now), 1, "never taken");
        assert!(!task.slot.is_full(), "still there");
    }
}

/// A task that was admitted stands on two run queues and is taken from both.
fn twice<S: Steps>(slot: impl Fn() -> S + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let life = Life::new(Birth::Admitted);
        let [parked, ended] = std::array::from_fn(|_| Unseen::new(0));
        let task = Arc::new(Task { slot: slot(), life, cell: AtomicU64::new(0), parked, ended, slip: Slip::None });
        let other = {
            let task = Arc::clone(&task);
            // Its way is made before the task is parked: it may find nothing.
            thread::spawn(move || task.way())
        };
        task.park();
        task.way();
        other.join().expect("no panic");
        assert_eq!(task.ended.load(Now), 1, "never taken");
    }
}

fn mutant(slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant { raw: AtomicPtr::new(std::ptr::null_mut()), slip }
}

#[test]
fn a_parked_task_is_taken_once() {
    // Rules out: two ways both run it; who cancels it and who runs it both have it; nobody has it.
    check(lifted(Slip::None, Slot::new));
    check(twice(Slot::new));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promise() {
    // The runs that the mutants fail are due to what they do wrong.
    check(lifted(Slip::None, mutant(Slip::None)));
    check(twice(mutant(Slip::None)));
}

#[test]
fn mutant_that_takes_in_two_steps_runs_a_task_twice() {
    // The run: both ways look before either empties the slot.
    refute("taken twice", twice(mutant(Slip::TakeInTwoSteps)));
    refute("taken twice", lifted(Slip::None, mutant(Slip::TakeInTwoSteps)));
}

#[test]
fn mutant_without_order_sees_an_old_task() {
    refute("seen as it was before", twice(mutant(Slip::TakeRelaxed)));
    refute("seen as it was before", twice(mutant(Slip::PutRelaxed)));
}

#[test]
fn mutant_that_makes_no_way_loses_the_task() {
    refute("never taken", lifted(Slip::NoWay, Slot::new));
}
