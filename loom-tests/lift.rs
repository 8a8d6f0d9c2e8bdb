//! Lifting: a parked task that several ways lead to is taken once, and is seen as it was parked.
//!
//! [`Task`] calls the shipped [`State`] and [`Life`] as `executor/lift.rs`, `queue/admission` and `queue/context.rs` do. What
//! is in the task's cell is a word that its taker reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};

use loom::thread;

use super::{check, refute};
use crate::executor::life::{Birth, End, Life};
use crate::executor::state::State;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What parks a task.
trait Steps: Send + Sync + 'static {
    fn park(&self);
    fn unpark(&self) -> bool;
    fn unpark_and_release(&self) -> bool;
    fn is_parked(&self) -> bool;
}

impl Steps for State {
    fn park(&self) {
        self.park();
    }
    fn unpark(&self) -> bool {
        self.unpark()
    }
    fn unpark_and_release(&self) -> bool {
        self.unpark_and_release()
    }
    fn is_parked(&self) -> bool {
        self.is_parked()
    }
}

/// The step that a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `unpark` looks and then takes the bit away.
    TakeInTwoSteps,
    /// So does `unpark_and_release`.
    ReleaseInTwoSteps,
    /// `unpark` orders nothing.
    TakeRelaxed,
    /// Nor does `unpark_and_release`.
    ReleaseRelaxed,
    /// `park` orders nothing.
    ParkRelaxed,
    /// Who admits leaves the task to a way that it does not make.
    NoWay,
}

/// The steps of [`State`] that park, one of them wrong.
struct Mutant {
    word: AtomicU64,
    slip: Slip,
}

const PARKED: u64 = 1;
const REFERENCE: u64 = 1 << 8;

impl Steps for Mutant {
    fn park(&self) {
        let order = if self.slip == Slip::ParkRelaxed { Ordering::Relaxed } else { Ordering::Release };
        self.word.fetch_add(PARKED + REFERENCE, order);
    }
    fn unpark(&self) -> bool {
        match self.slip {
            Slip::TakeInTwoSteps => {
                let parked = self.is_parked();
                self.word.fetch_and(!PARKED, Ordering::AcqRel);
                parked
            }
            Slip::TakeRelaxed => self.word.fetch_and(!PARKED, Ordering::Relaxed) & PARKED != 0,
            _ => self.word.fetch_and(!PARKED, Ordering::AcqRel) & PARKED != 0,
        }
    }
    fn unpark_and_release(&self) -> bool {
        let order = if self.slip == Slip::ReleaseRelaxed { Ordering::Relaxed } else { Ordering::AcqRel };
        let mut word = self.word.load(Ordering::Relaxed);
        while word & PARKED != 0 {
            if self.slip == Slip::ReleaseInTwoSteps {
                self.word.fetch_and(!PARKED, order);
                self.word.fetch_sub(REFERENCE, order);
                return true;
            }
            match self.word.compare_exchange(word, word - PARKED - REFERENCE, order, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }
    fn is_parked(&self) -> bool {
        self.word.load(Ordering::Acquire) & PARKED != 0
    }
}

struct Task<S> {
    state: S,
    life: Life,
    /// What is in the cell: how often it was parked.
    cell: AtomicU64,
    parked: Unseen,
    /// Runs, and drops without a run.
    ended: Unseen,
    slip: Slip,
}

impl<S: Steps> Task<S> {
    fn new(state: S, birth: Birth, slip: Slip) -> Arc<Self> {
        let [parked, ended] = std::array::from_fn(|_| Unseen::new(0));
        Arc::new(Self { state, life: Life::new(birth), cell: AtomicU64::new(0), parked, ended, slip })
    }

    fn park(&self) {
        let parked = self.parked.fetch_add(1, Now) + 1;
        self.cell.store(parked as u64, Ordering::Relaxed);
        self.state.park();
    }

    fn unpark(&self) -> bool {
        self.taken(self.state.unpark())
    }

    fn taken(&self, taken: bool) -> bool {
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

    /// A way that is used up by it.
    fn last_way(&self) {
        if self.taken(self.state.unpark_and_release()) {
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
        if self.state.is_parked() && self.life.is_admitted() {
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
fn lifted<S: Steps>(slip: Slip, state: impl Fn() -> S + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let task = Task::new(state(), Birth::Queued, slip);
        task.park();
        let others = [Task::boost, Task::cancel].map(|party: fn(&Task<S>)| {
            let task = Arc::clone(&task);
            thread::spawn(move || party(&task))
        });
        task.admit();
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(task.ended.load(Now), 1, "never taken");
        assert!(!task.state.is_parked(), "still there");
    }
}

/// A task that was admitted stands on two run queues and is taken from both, by ways of either kind.
fn twice<S: Steps>(ways: [fn(&Task<S>); 2], state: impl Fn() -> S + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let task = Task::new(state(), Birth::Admitted, Slip::None);
        let other = {
            let task = Arc::clone(&task);
            // Its way is made before the task is parked: it may find nothing.
            thread::spawn(move || ways[0](&task))
        };
        task.park();
        ways[1](&task);
        other.join().expect("no panic");
        assert_eq!(task.ended.load(Now), 1, "never taken");
    }
}

fn shipped() -> State {
    State::new(false)
}

fn mutant(slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant { word: AtomicU64::new(2 * REFERENCE), slip }
}

#[test]
fn a_parked_task_is_taken_once() {
    // Rules out: two ways both run it; who cancels it and who runs it both have it; nobody has it.
    check(lifted(Slip::None, shipped));
    check(twice([Task::way, Task::way], shipped));
    check(twice([Task::last_way, Task::way], shipped));
    check(twice([Task::last_way, Task::last_way], shipped));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promise() {
    // The runs that the mutants fail are due to what they do wrong.
    check(lifted(Slip::None, mutant(Slip::None)));
    check(twice([Task::way, Task::way], mutant(Slip::None)));
    check(twice([Task::last_way, Task::way], mutant(Slip::None)));
    check(twice([Task::last_way, Task::last_way], mutant(Slip::None)));
}

#[test]
fn mutant_that_takes_in_two_steps_runs_a_task_twice() {
    // The run: both ways look before either takes the bit away.
    refute("taken twice", twice([Task::way, Task::way], mutant(Slip::TakeInTwoSteps)));
    refute("taken twice", lifted(Slip::None, mutant(Slip::TakeInTwoSteps)));
    refute("taken twice", twice([Task::last_way, Task::last_way], mutant(Slip::ReleaseInTwoSteps)));
}

#[test]
fn mutant_without_order_sees_an_old_task() {
    refute("seen as it was before", twice([Task::way, Task::way], mutant(Slip::TakeRelaxed)));
    refute("seen as it was before", twice([Task::way, Task::way], mutant(Slip::ParkRelaxed)));
    refute("seen as it was before", twice([Task::last_way, Task::way], mutant(Slip::ReleaseRelaxed)));
}

#[test]
fn mutant_that_makes_no_way_loses_the_task() {
    refute("never taken", lifted(Slip::NoWay, shipped));
}
