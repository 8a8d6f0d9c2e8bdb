//! The sliding window: never more than `n` in any window, exactly.
//!
//! A ring of `n` cells, one for each command that a window may see. Commands claim cells in turn; a cell says when it is
//! free again, one window after the stamp of the command that claimed it. Called by `rate` with the time; knows no clock.
//! Never: more than `n` commands have stamps in one window `[t, t + window)`, whatever the interleaving and even if
//! threads read clocks that differ. `loom-tests/rate.rs` tries to break it.
//!
//! Why that holds: a claim moves the head over cells whose last claim has been stamped, a window or more before the stamp of
//! the new one. So stamps of one cell are at least a window apart, a window holds at most one of each, and there are
//! `n`. A claim and its stamp are two steps. Between them the cell still shows its stamp of the round before, but also
//! that it is of that round: it counts as taken just now, for who comes round to it. No call waits for the stamp. Nobody can
//! stamp for the claimer, since nobody else knows how late its time is; a guess would let a window see too much.

use std::fmt;

use super::rate::{RateLimitConfig, SPAN_MAX, nanos};
use crate::clock::Tick;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Commands that a window counts one by one: 8 bytes each, 8 MiB at most. Of more, parts of the window are limited.
pub(crate) const CELLS_MAX: u64 = 1 << 20;

/// Bits 0..24 of the head: the next cell. The rest: the round, which is how often the ring was used up.
const INDEX_BITS: u32 = 24;

/// Bit 0 of a cell: set if it was stamped in an even round, so that the first one finds cells as if of the round before.
/// The rest: the tick from which it is free, zero at first.
const EVEN: u64 = 1;

/// The last tick that a cell can show.
const TICK_MAX: u64 = u64::MAX >> 1;

/// Admits at most `max_commands` in any window, wherever that begins.
///
/// A window contains its beginning and not its end, so a command may start exactly one `window` after the one whose
/// place it takes. An idle limiter lets `max_commands` pass at once, and then nothing for a whole window.
///
/// Counts up to 1,048,576 commands for a window one by one, in 8 bytes each, allocated when made. Of a larger limit, equal
/// parts of the window are limited each for itself: still never more than `max_commands` in any window, at the same rate to
/// one part in 100,000, but a burst is one part's.
///
/// Lock-free: no call waits, and one repeats its compare-exchange only if another call was admitted meanwhile. A refusal
/// writes nothing. An admission is a claim and, a few instructions later, a stamp: a thread interrupted just between for as
/// long as all other places take to be used again, a whole `window` at least, has others refused until it goes on.
pub struct SlidingWindowLimiter {
    head: AtomicU64,
    cells: Box<[AtomicU64]>,
    /// In nanoseconds; at most [`SPAN_MAX`].
    window: u64,
}

/// Whether claimed cells can be had.
enum Look {
    Free,
    /// Not before this.
    Taken(u64),
}

impl SlidingWindowLimiter {
    /// An empty window. Values that [`RateLimiter::new`](crate::RateLimiter::new) refuses are brought into range: at least
    /// one command and one nanosecond, at most nine years.
    #[must_use]
    pub fn new(config: &RateLimitConfig) -> Self {
        let max_commands = config.max_commands.max(1);
        // Rounded so that the parts of a window have room for no more than `max_commands` together.
        let parts = max_commands.div_ceil(CELLS_MAX);
        let cells = max_commands / parts;
        Self {
            head: AtomicU64::new(0),
            cells: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            window: nanos(config.window).clamp(1, SPAN_MAX).div_ceil(parts),
        }
    }

    /// Claims `cost` cells, or none and says when there will be enough: [`Tick::NEVER`] if the window has fewer.
    pub(crate) fn take(&self, now: Tick, cost: u32) -> Result<(), Tick> {
        if u64::from(cost) > self.largest_cost() {
            return Err(Tick::NEVER);
        }
        let now = now.as_nanos().min(TICK_MAX);
        let free_again = (now + self.window).min(TICK_MAX);
        // ORDERING: Acquire, pairs with the AcqRel below: who sees a claim sees the stamps that the claimer saw. So a cell is
        // one round old, or two if it is claimed and not stamped, and one bit tells which. Relaxed might show a stamp of
        // three rounds ago.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if let Look::Taken(until) = self.look(head, cost, now, free_again) {
                // ORDERING: Acquire here, on the cells, and Release when they are stamped: had this cell been claimed and
                // stamped since we read the head, we see the head moved, and do not take the new stamp for a full ring.
                let found = self.head.load(Ordering::Acquire);
                if found == head {
                    return Err(Tick::from_nanos(until));
                }
                head = found;
                continue;
            }
            let after = self.advance(head, cost);
            match self.head.compare_exchange_weak(head, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        for (round, index) in self.claim(head, cost) {
            self.cells[index].store(stamp(free_again, round), Ordering::Release);
        }
        Ok(())
    }

    fn look(&self, head: u64, cost: u32, now: u64, free_again: u64) -> Look {
        let mut until = 0;
        for (round, index) in self.claim(head, cost) {
            let cell = self.cells[index].load(Ordering::Acquire);
            let stamped = cell & EVEN == stamp(0, round.wrapping_sub(1));
            // Not stamped: claimed just now by all we know, so free again when we would be.
            until = until.max(if stamped { cell >> 1 } else { free_again });
        }
        if until > now { Look::Taken(until) } else { Look::Free }
    }

    /// Round and index of `cost` cells from `head` on.
    fn claim(&self, head: u64, cost: u32) -> impl Iterator<Item = (u64, usize)> {
        let (round, first) = split(head);
        let cells = self.cells.len();
        (first..first + cost as usize)
            .map(move |index| if index < cells { (round, index) } else { (round.wrapping_add(1), index - cells) })
    }

    fn advance(&self, head: u64, cost: u32) -> u64 {
        let (round, first) = split(head);
        let index = first + cost as usize;
        match index.checked_sub(self.cells.len()) {
            Some(index) => join(round.wrapping_add(1), index),
            None => join(round, index),
        }
    }

    /// The commands whose window is not over at `now`.
    pub(crate) fn count_at(&self, now: Tick) -> u64 {
        let now = now.as_nanos().min(TICK_MAX);
        // Relaxed: a snapshot, outdated when it is returned.
        self.cells.iter().filter(|cell| cell.load(Ordering::Relaxed) >> 1 > now).count() as u64
    }

    /// How much can be claimed at once: the limit, or a part's.
    pub(crate) fn largest_cost(&self) -> u64 {
        self.cells.len() as u64
    }
}

const fn split(head: u64) -> (u64, usize) {
    (head >> INDEX_BITS, (head & ((1 << INDEX_BITS) - 1)) as usize)
}

/// The round wraps after 2^40: its lowest bit stays true to the cells.
const fn join(round: u64, index: usize) -> u64 {
    round << INDEX_BITS | index as u64
}

const fn stamp(free_again: u64, round: u64) -> u64 {
    free_again << 1 | (round & 1 ^ EVEN)
}

const _: () = assert!(CELLS_MAX < 1 << INDEX_BITS);

impl fmt::Debug for SlidingWindowLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cells, window, .. } = self;
        f.debug_struct("SlidingWindowLimiter")
            .field("cells", &cells.len())
            .field("window_nanos", window)
            .finish_non_exhaustive()
    }
}
