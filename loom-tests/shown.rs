//! What a worker shows: the watch never looks at a record that is hidden, and names the poll that it means.
//!
//! A worker follows `Local::run` and `show_during` over the shipped [`Shown`], the watch follows `stuck.rs`. The record is a
//! loom cell, which the worker writes before it shows it and after it has hidden it: a look at any other time is a race,
//! which loom reports.

use std::ptr::NonNull;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::{check, refute};
use crate::executor::shown::Shown;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::sync::spin_loop;

const CLAIMED: usize = 1;

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `show` orders nothing.
    ShowRelaxed,
    /// `hide` does not wait for the watch.
    HideAtOnce,
    /// `hide` orders nothing.
    HideRelaxed,
    /// The watch reads without a claim.
    NoClaim,
    /// `claim` orders nothing.
    ClaimRelaxed,
    /// `give_back` orders nothing.
    GiveBackRelaxed,
    /// The watch does not read the count of polls once it has the claim.
    NoRecount,
}

/// What the model needs of the word.
trait Steps: Send + Sync + 'static {
    fn show(&self, record: NonNull<()>);
    fn hide(&self, record: NonNull<()>);
    fn claim(&self) -> Option<NonNull<()>>;
    fn give_back(&self, record: NonNull<()>);
}

impl Steps for Shown {
    fn show(&self, record: NonNull<()>) {
        self.show(record);
    }
    fn hide(&self, record: NonNull<()>) {
        self.hide(record);
    }
    fn claim(&self) -> Option<NonNull<()>> {
        self.claim()
    }
    fn give_back(&self, record: NonNull<()>) {
        self.give_back(record);
    }
}

/// The steps of [`Shown`], one of them wrong.
struct Mutant {
    word: AtomicPtr<()>,
    slip: Slip,
}

impl Mutant {
    fn order(&self, slip: Slip, right: Ordering) -> Ordering {
        if self.slip == slip { Ordering::Relaxed } else { right }
    }
}

impl Steps for Mutant {
    fn show(&self, record: NonNull<()>) {
        self.word.swap(record.as_ptr(), self.order(Slip::ShowRelaxed, Ordering::Release));
    }

    fn hide(&self, record: NonNull<()>) {
        let empty = std::ptr::null_mut();
        if self.slip == Slip::HideAtOnce {
            self.word.swap(empty, Ordering::AcqRel);
            return;
        }
        let order = self.order(Slip::HideRelaxed, Ordering::Acquire);
        while self.word.compare_exchange(record.as_ptr(), empty, order, Ordering::Relaxed).is_err() {
            spin_loop();
        }
    }

    fn claim(&self) -> Option<NonNull<()>> {
        if self.slip == Slip::NoClaim {
            return NonNull::new(self.word.load(Ordering::Acquire));
        }
        let record = NonNull::new(self.word.load(Ordering::Relaxed))?;
        let claimed = record.as_ptr().map_addr(|address| address | CLAIMED);
        let order = self.order(Slip::ClaimRelaxed, Ordering::Acquire);
        let claim = self.word.compare_exchange(record.as_ptr(), claimed, order, Ordering::Relaxed);
        claim.is_ok().then_some(record)
    }

    fn give_back(&self, record: NonNull<()>) {
        if self.slip != Slip::NoClaim {
            self.word.swap(record.as_ptr(), self.order(Slip::GiveBackRelaxed, Ordering::Release));
        }
    }
}

/// A worker's stack: the record of its present poll, always in the same place.
struct Worker<S> {
    shown: S,
    polls: AtomicU64,
    /// Names the poll that it belongs to.
    record: UnsafeCell<u64>,
    slip: Slip,
}

impl<S: Steps> Worker<S> {
    fn place(&self) -> NonNull<()> {
        NonNull::from(&self.record).cast()
    }

    /// One poll of a command.
    fn poll(&self, number: u64) {
        self.polls.store(number, Ordering::Relaxed);
        // SAFETY: loom checks that nobody reads it now.
        #[allow(unsafe_code)]
        self.record.with_mut(|record| unsafe { *record = number });
        self.shown.show(self.place());
        self.shown.hide(self.place());
        // SAFETY: as above.
        #[allow(unsafe_code)]
        self.record.with_mut(|record| unsafe { *record = 0 });
    }

    /// The watch finds a poll stuck, and asks what it is.
    fn look(&self, stuck: u64) {
        let Some(record) = self.shown.claim() else { return };
        if self.slip == Slip::NoRecount || self.polls.load(Ordering::Relaxed) == stuck {
            // SAFETY: loom checks that nobody writes it now.
            #[allow(unsafe_code)]
            let named = self.record.with(|record| unsafe { *record });
            assert_eq!(named, stuck, "another poll was named");
        }
        self.shown.give_back(record);
    }
}

/// A worker that polls twice, and a watch that looks at the first poll, and once more.
fn polls<S: Steps>(make: impl Fn() -> S + Send + Sync, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let record = UnsafeCell::new(0);
        let worker = Arc::new(Worker { shown: make(), polls: AtomicU64::new(0), record, slip });
        let there = Arc::clone(&worker);
        let watch = thread::spawn(move || {
            there.look(1);
            there.look(2);
        });
        worker.poll(1);
        worker.poll(2);
        watch.join().expect("the watch does not panic");
    }
}

fn mutant(slip: Slip) -> impl Fn() + Send + Sync {
    let make = move || Mutant { word: AtomicPtr::new(std::ptr::null_mut()), slip };
    polls(make, slip)
}

#[test]
fn a_record_is_never_looked_at_once_it_is_hidden() {
    // Rules out: the watch reads a record while its worker goes on, or names the poll after the one that it means.
    check(polls(Shown::new, Slip::None));
    check(mutant(Slip::None));
}

#[test]
fn mutants_whose_looks_are_not_ordered_race() {
    // The runs: the watch reads the record as it was before it was shown, or the worker writes it before the watch has read.
    for slip in [Slip::ShowRelaxed, Slip::HideRelaxed, Slip::ClaimRelaxed, Slip::GiveBackRelaxed] {
        refute("Causality violation", mutant(slip));
    }
}

#[test]
fn mutants_that_do_not_wait_for_each_other_race() {
    // The run: the watch has found the record, the worker hides it and writes.
    refute("Causality violation", mutant(Slip::NoClaim));
    refute("Causality violation", mutant(Slip::HideAtOnce));
}

#[test]
fn mutant_that_does_not_count_again_names_the_wrong_poll() {
    // The run: the first poll is found stuck, ends, and the second one is shown in its place.
    refute("another poll was named", mutant(Slip::NoRecount));
}
