//! The life of a task: whoever ends it first decides, everybody else learns who that was.

use std::sync::Arc;

use loom::thread;

use super::{check, refute};
use crate::executor::life::{End, Life};
use crate::sync::atomic::{AtomicU8, Ordering};

const ENDS: [End; 3] = [End::Done, End::Cancelled, End::Expired];

/// What the parties to a task call.
trait Steps: Send + Sync + 'static {
    fn admit(&self);
    fn is_admitted(&self) -> bool;
    fn start(&self);
    fn has_started(&self) -> bool;
    fn end(&self) -> Option<End>;
    fn try_end(&self, end: End) -> Result<(), End>;
}

impl Steps for Life {
    fn admit(&self) {
        self.admit();
    }
    fn is_admitted(&self) -> bool {
        self.is_admitted()
    }
    fn start(&self) {
        self.start();
    }
    fn has_started(&self) -> bool {
        self.has_started()
    }
    fn end(&self) -> Option<End> {
        self.end()
    }
    fn try_end(&self, end: End) -> Result<(), End> {
        self.try_end(end)
    }
}

/// The step that a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `try_end` looks and then sets its bit.
    EndInTwoSteps,
    /// `try_end` overwrites what was set since it looked.
    EndOverwrites,
    /// `start` overwrites what was set since it looked.
    StartOverwrites,
    /// `try_end` orders nothing.
    EndRelaxed,
}

/// The steps of [`Life`], one of them wrong.
struct Mutant {
    state: AtomicU8,
    slip: Slip,
}

const ADMITTED: u8 = 1;
const STARTED: u8 = 2;

fn bit(end: End) -> u8 {
    match end {
        End::Done => 4,
        End::Cancelled => 8,
        End::Expired => 16,
    }
}

fn ended(state: u8) -> Option<End> {
    ENDS.into_iter().find(|end| state & bit(*end) != 0)
}

impl Mutant {
    fn load(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

impl Steps for Mutant {
    fn admit(&self) {
        self.state.fetch_or(ADMITTED, Ordering::AcqRel);
    }
    fn is_admitted(&self) -> bool {
        self.load() & ADMITTED != 0
    }
    fn start(&self) {
        if self.slip == Slip::StartOverwrites {
            self.state.swap(self.load() | STARTED, Ordering::AcqRel);
        } else {
            self.state.fetch_or(STARTED, Ordering::AcqRel);
        }
    }
    fn has_started(&self) -> bool {
        self.load() & STARTED != 0
    }
    fn end(&self) -> Option<End> {
        ended(self.load())
    }
    fn try_end(&self, end: End) -> Result<(), End> {
        let (success, failure) = match self.slip {
            Slip::EndRelaxed => (Ordering::Relaxed, Ordering::Relaxed),
            _ => (Ordering::AcqRel, Ordering::Acquire),
        };
        let mut state = self.state.load(failure);
        loop {
            if let Some(earlier) = ended(state) {
                return Err(earlier);
            }
            let new = state | bit(end);
            match self.slip {
                Slip::EndInTwoSteps => _ = self.state.fetch_or(new, success),
                Slip::EndOverwrites => _ = self.state.swap(new, success),
                _ => match self.state.compare_exchange(state, new, success, failure) {
                    Ok(_) => {}
                    Err(now) => {
                        state = now;
                        continue;
                    }
                },
            }
            return Ok(());
        }
    }
}

/// A queued task that is admitted and started by one thread while others end it. Each writes why before it tries.
fn ending<L: Steps>(parties: usize, life: impl Fn() -> L + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let task = Arc::new((life(), [AtomicU8::new(0), AtomicU8::new(0), AtomicU8::new(0)]));
        let enders: Vec<_> = (0..parties)
            .map(|party| {
                let task = Arc::clone(&task);
                thread::spawn(move || {
                    let (life, reasons) = &*task;
                    reasons[party].store(1, Ordering::Relaxed);
                    let tried = life.try_end(ENDS[party]);
                    let winner = tried.err().unwrap_or(ENDS[party]);
                    let reason = ENDS.iter().position(|end| *end == winner).expect("one of them");
                    assert_eq!(
                        reasons[reason].load(Ordering::Relaxed),
                        1,
                        "the loser does not see the winner's reason"
                    );
                    tried
                })
            })
            .collect();
        let (life, _) = &*task;
        life.admit();
        life.start();
        let tried: Vec<_> = enders.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        assert_eq!(tried.iter().filter(|tried| tried.is_ok()).count(), 1, "not exactly one end");
        for (party, tried) in tried.into_iter().enumerate() {
            assert_eq!(life.end(), Some(tried.err().unwrap_or(ENDS[party])), "told of another end");
        }
        assert!(life.is_admitted() && life.has_started(), "a bit was lost");
    }
}

fn mutant(slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant { state: AtomicU8::new(0), slip }
}

#[test]
fn a_task_ends_once_and_everybody_learns_how() {
    // Rules out: two parties find the task running and both end it; one of them wipes out that it was admitted.
    check(ending(3, || Life::new(false)));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promise() {
    // The runs that the mutants fail are due to what they do wrong.
    check(ending(3, mutant(Slip::None)));
}

#[test]
fn mutant_that_ends_in_two_steps_ends_twice() {
    // The run: both look before either sets its bit.
    refute("not exactly one end", ending(3, mutant(Slip::EndInTwoSteps)));
}

#[test]
fn mutant_that_overwrites_loses_a_bit() {
    // The runs: a bit is set between the look and the write, and the write does not know it.
    refute("told of another end", ending(1, mutant(Slip::StartOverwrites)));
    refute("a bit was lost", ending(1, mutant(Slip::EndOverwrites)));
}

#[test]
fn mutant_without_order_hides_the_winners_reason() {
    // The run: the loser reads the end and then an old reason.
    refute("the loser does not see", ending(3, mutant(Slip::EndRelaxed)));
}
