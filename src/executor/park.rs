//! Parking: how a worker with nothing to do sleeps without missing work.
//!
//! Owns one word that says who sleeps and how many search; knows nothing of tasks or threads. `worker` calls it to go to
//! sleep, everyone who publishes work calls [`Idle::notify`]. Never: published work waits while every worker sleeps.
//! `park.README.md` beside this file argues it; `loom-tests/park.rs` tries to break it.

use std::ops::Range;

use crossbeam_utils::CachePadded;

use crate::sync::atomic::{AtomicU64, Ordering};

/// Most workers one executor can have, spares included: one sleep bit each, and eight bits for the searcher count.
pub(crate) const MAX_WORKERS: usize = 56;

/// One searcher. The count sits above the sleep bits.
const SEARCHER: u64 = 1 << MAX_WORKERS;

/// Bits 0..56: worker i sleeps. Set by worker i, cleared by whoever claims it (a notifier, or the worker itself when its
/// re-check finds work). Bits 56..64: workers searching; a claimed sleeper counts from the moment it is claimed.
///
/// Every write is a read-modify-write, so each one continues the release sequence of all before it: that is what lets
/// the proof do without sequentially consistent accesses, and why a plain store must never be added.
#[derive(Debug)]
pub(crate) struct Idle {
    word: CachePadded<AtomicU64>,
}

/// What a worker that set its sleep bit may do.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asleep {
    /// Nobody has claimed this worker: it may park.
    Park,
    /// A notifier claimed this worker and already counted it as searching.
    Claimed,
}

/// Who looks after what was published.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notified {
    /// Somebody who searches.
    Covered,
    /// This worker, which slept: it counts as searching from now on.
    Claimed(usize),
    /// Nobody searches or sleeps: whoever stops running tasks looks first.
    Nobody,
}

impl Idle {
    pub(crate) fn new() -> Self {
        Self { word: CachePadded::new(AtomicU64::new(0)) }
    }

    /// Whether [`Idle::notify`] would claim nobody now: cheap, and possibly stale.
    pub(crate) fn nobody_to_wake(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        searching(word) > 0 || sleeping(word) == 0
    }

    /// What [`Idle::notify`] would say now: cheap, and possibly stale.
    pub(crate) fn outlook(&self) -> Notified {
        outlook(self.word.load(Ordering::Relaxed))
    }

    /// A sleeper among `workers`, if there is one: a hint for where to put an item. May be stale.
    pub(crate) fn sleeper_hint(&self, workers: Range<usize>) -> Option<usize> {
        let sleepers = sleeping(self.word.load(Ordering::Relaxed)) & bits(workers);
        (sleepers != 0).then(|| sleepers.trailing_zeros() as usize)
    }

    /// Whether each of `workers` sleeps.
    pub(crate) fn all_asleep(&self, workers: Range<usize>) -> bool {
        let bits = bits(workers);
        // ORDERING: acquire, so that what a worker did before it went to sleep is seen.
        self.word.load(Ordering::Acquire) & bits == bits
    }

    /// Called after publishing work: claims a sleeper unless a searcher will find the work. The caller unparks it.
    pub(crate) fn notify(&self) -> Notified {
        // ORDERING: the read-modify-write places this call in the word's modification order. A worker whose sleep bit
        // comes later reads from our release and its re-check finds the item; one whose bit comes earlier is seen here.
        // A plain load may see neither (store buffering). Model: park.rs::published_work_never_waits_for_sleepers.
        let mut word = self.word.fetch_add(0, Ordering::AcqRel);
        while let Notified::Claimed(worker) = outlook(word) {
            match self.claim(word, worker) {
                Ok(()) => return Notified::Claimed(worker),
                Err(now) => word = now,
            }
        }
        outlook(word)
    }

    /// Claims one particular worker if it sleeps, whoever searches: for a timer that only this worker will fire.
    #[must_use]
    pub(crate) fn claim_sleeper(&self, worker: usize) -> bool {
        let mut word = self.word.fetch_add(0, Ordering::AcqRel);
        while word & (1 << worker) != 0 {
            match self.claim(word, worker) {
                Ok(()) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn claim(&self, word: u64, worker: usize) -> Result<(), u64> {
        // ORDERING: AcqRel keeps the release sequence of everyone who published before us; see `notify`.
        self.word
            .compare_exchange_weak(word, (word & !(1 << worker)) + SEARCHER, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    /// The calling worker begins to search.
    pub(crate) fn begin_search(&self) {
        self.word.fetch_add(SEARCHER, Ordering::AcqRel);
    }

    /// The calling worker stops searching because it found work. True if it was the last searcher: it must then call
    /// [`Idle::notify`] before it runs what it found, since publishers relied on it.
    #[must_use]
    pub(crate) fn end_search(&self) -> bool {
        searching(self.word.fetch_sub(SEARCHER, Ordering::AcqRel)) == 1
    }

    /// The calling worker stops searching and sets its sleep bit. It must re-check every source of work before it parks.
    pub(crate) fn begin_sleep(&self, worker: usize) {
        // One step: between "not searching" and "sleeping" a publisher would see neither.
        self.word.fetch_add((1u64 << worker).wrapping_sub(SEARCHER), Ordering::AcqRel);
    }

    /// The re-check found work, or a deadline passed: the worker takes its sleep bit back and searches again.
    /// Whether it took the bit itself or a notifier did, it counts as searching afterwards.
    pub(crate) fn cancel_sleep(&self, worker: usize) {
        let bit = 1u64 << worker;
        if self.word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.word.fetch_add(SEARCHER, Ordering::AcqRel);
        }
    }

    /// Whether the worker may (still) park.
    pub(crate) fn asleep(&self, worker: usize) -> Asleep {
        if self.word.load(Ordering::Acquire) & (1 << worker) != 0 { Asleep::Park } else { Asleep::Claimed }
    }
}

fn outlook(word: u64) -> Notified {
    match sleeping(word) {
        _ if searching(word) > 0 => Notified::Covered,
        0 => Notified::Nobody,
        sleepers => Notified::Claimed(sleepers.trailing_zeros() as usize),
    }
}

/// Their sleep bits.
fn bits(workers: Range<usize>) -> u64 {
    (1 << workers.end) - (1 << workers.start)
}

fn sleeping(word: u64) -> u64 {
    word & (SEARCHER - 1)
}

fn searching(word: u64) -> u64 {
    word >> MAX_WORKERS
}
