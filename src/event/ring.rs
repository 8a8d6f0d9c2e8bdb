//! A ring of records that one thread writes and any number of threads read, whether or not they keep up.
//!
//! The writer never waits: it overwrites the oldest record. Two words tell readers what they may trust, both written by the
//! writer alone:
//!
//! ```text
//! writer, record n                      reader, record n
//! 1. writing = n + 1                    a. n < head?                   acquire
//!    fence(release)                     b. read the words of n's slot
//! 2. write the words of n's slot           fence(acquire)
//! 3. head = n + 1         release       c. writing <= n + slots?
//! ```
//!
//! That a. holds says that 2. is over: the words are there. What could be wrong is that the slot is written again, with record
//! n + slots. If b. reads a single word of that, then the fences order 1. of that record before c., which sees
//! `writing >= n + slots + 1`, and the reader knows that it has read nothing. So what is read is record n, whole.
//! A write costs no read-modify-write and no fence that x86-64 or an out-of-order core would have to wait for.
//!
//! The writer may be another thread later, if it has been handed the ring with acquire and release. `loom-tests/ring.rs` tries
//! to break all this.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// `W` words each.
pub(crate) struct Ring<const W: usize> {
    slots: Box<[Slot<W>]>,
    /// One more than the number of the record that is being written, or was last.
    writing: AtomicU64,
    /// The number of the next record: those before it are written.
    head: AtomicU64,
}

/// In a cache line of its own, if it has eight words.
#[repr(align(64))]
struct Slot<const W: usize>([AtomicU64; W]);

impl<const W: usize> Ring<W> {
    /// For at least `records` records.
    pub(crate) fn new(records: usize) -> Self {
        let slots = records.max(1).next_power_of_two();
        let slot = |_| Slot(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { slots: (0..slots).map(slot).collect(), writing: AtomicU64::new(0), head: AtomicU64::new(0) }
    }

    fn slot(&self, number: u64) -> &Slot<W> {
        // A power of two, so that the index is in bounds.
        &self.slots[number as usize & (self.slots.len() - 1)]
    }

    /// The number of the next record. Those before it are written, and what happened before they were is seen.
    #[inline]
    pub(crate) fn head(&self) -> u64 {
        // ORDERING: acquire, see `push`.
        self.head.load(Ordering::Acquire)
    }

    /// Writes the next record. Called by the writer only.
    #[inline]
    pub(crate) fn push(&self, words: [u64; W]) {
        let number = self.head.load(Ordering::Relaxed);
        self.writing.store(number + 1, Ordering::Relaxed);
        // ORDERING: with the fence in `read`: who reads a word written below sees that this is being written.
        // Model: ring.rs::what_is_read_is_whole.
        fence(Ordering::Release);
        for (word, value) in self.slot(number).0.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        // ORDERING: release, so that who sees the number sees the record. Model: as above.
        self.head.store(number + 1, Ordering::Release);
    }

    /// Record `number`, which is below what [`Ring::head`] gave; none if it is overwritten.
    pub(crate) fn read(&self, number: u64) -> Option<[u64; W]> {
        let slot = self.slot(number);
        let words = std::array::from_fn(|i| slot.0[i].load(Ordering::Relaxed));
        // ORDERING: see `push`.
        fence(Ordering::Acquire);
        let writing = self.writing.load(Ordering::Relaxed);
        (writing <= number + self.slots.len() as u64).then_some(words)
    }
}
