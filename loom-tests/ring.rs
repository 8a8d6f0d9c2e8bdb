//! A ring of events: what a reader takes for a record is one, whole, and the one that it means, however far it is behind.
//!
//! A ring of one slot, so that every record overwrites the one before.

use std::sync::Arc;

use loom::thread;

use super::{check, refute};
use crate::event::ring::Ring;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// The step that a mutant leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// The writer does not say what it writes before it writes.
    NoNotice,
    /// The writer's notice is not ordered before the words.
    NoReleaseFence,
    /// The reader does not look whether the slot is written again.
    NoLook,
    /// The reader's look is not ordered after the words.
    NoAcquireFence,
    /// The head says nothing of the words.
    HeadRelaxed,
}

/// What the model needs of a ring.
trait Steps: Send + Sync + 'static {
    fn push(&self, words: [u64; 2]);
    fn head(&self) -> u64;
    fn read(&self, number: u64) -> Option<[u64; 2]>;
}

impl Steps for Ring<2> {
    fn push(&self, words: [u64; 2]) {
        self.push(words);
    }
    fn head(&self) -> u64 {
        self.head()
    }
    fn read(&self, number: u64) -> Option<[u64; 2]> {
        self.read(number)
    }
}

/// The steps of [`Ring`] with one slot, one of them left out.
struct Mutant {
    words: [AtomicU64; 2],
    writing: AtomicU64,
    head: AtomicU64,
    slip: Slip,
}

impl Steps for Mutant {
    fn push(&self, words: [u64; 2]) {
        let number = self.head.load(Ordering::Relaxed);
        if self.slip != Slip::NoNotice {
            self.writing.store(number + 1, Ordering::Relaxed);
        }
        if self.slip != Slip::NoReleaseFence {
            fence(Ordering::Release);
        }
        self.words[0].store(words[0], Ordering::Relaxed);
        self.words[1].store(words[1], Ordering::Relaxed);
        if self.slip == Slip::NoNotice {
            self.writing.store(number + 1, Ordering::Relaxed);
        }
        let order = if self.slip == Slip::HeadRelaxed { Ordering::Relaxed } else { Ordering::Release };
        self.head.store(number + 1, order);
    }

    fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    fn read(&self, number: u64) -> Option<[u64; 2]> {
        let words = [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)];
        if self.slip != Slip::NoAcquireFence {
            fence(Ordering::Acquire);
        }
        let writing = self.writing.load(Ordering::Relaxed);
        (self.slip == Slip::NoLook || writing <= number + 1).then_some(words)
    }
}

/// A writer of three records, and a reader that takes what it can.
fn records<S: Steps>(make: impl Fn() -> S + Send + Sync) -> impl Fn() + Send + Sync {
    move || {
        let ring = Arc::new(make());
        let there = Arc::clone(&ring);
        // The reader is the thread that loom runs later, so that its loads choose among the stores: with the reader first, there
        // is one run, in which it sees none.
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let head = there.head();
                if head > 0
                    && let Some(words) = there.read(head - 1)
                {
                    assert_eq!(words, [9 + head, 19 + head], "not the record");
                }
            }
        });
        for number in 0..3 {
            ring.push([10 + number, 20 + number]);
        }
        reader.join().expect("the reader does not panic");
        assert_eq!(ring.read(ring.head() - 1), Some([12, 22]), "the last one stays");
    }
}

fn mutant(slip: Slip) -> impl Fn() + Send + Sync {
    records(move || Mutant {
        words: [AtomicU64::new(0), AtomicU64::new(0)],
        writing: AtomicU64::new(0),
        head: AtomicU64::new(0),
        slip,
    })
}

#[test]
fn what_is_read_is_whole() {
    // Rules out: a reader takes words of two records for one, or a newer record for the one that it means.
    check(records(|| Ring::new(1)));
    check(mutant(Slip::None));
}

#[test]
fn mutants_read_what_is_no_record() {
    // The runs: the reader has seen the head, the writer overwrites the slot, or has not written it yet.
    for slip in [Slip::NoNotice, Slip::NoReleaseFence, Slip::NoLook, Slip::NoAcquireFence, Slip::HeadRelaxed] {
        refute("not the record", mutant(slip));
    }
}
