//! The timer wheel: many deadlines, O(1) to set and to cancel.
//!
//! Six levels of 64 slots over ticks of 2^16 ns (65.5 us); a slot of level n spans 64^n ticks. Entries live in a slab and
//! are linked by index, so setting a timer allocates nothing once the slab has grown. Pure: time is an argument, wakers
//! are handed back to the caller and woken outside. Never fires early; fires at most one tick late.

use std::task::Waker;

use crate::clock::Tick;

const LEVELS: usize = 6;
const SLOTS: usize = 64;
const TICK_BITS: u32 = 16;
/// The wheel's horizon in ticks (51 days): one slot short of a whole turn, so that the farthest slot is never the current
/// one. A later deadline waits there and is sorted again.
const HORIZON: u64 = (SLOTS as u64 - 1) << (6 * (LEVELS - 1));
const NONE: u32 = u32::MAX;

/// Names a set timer. A fired or cancelled timer's key is stale and harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WheelKey {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Entry {
    /// Deadline in wheel ticks, rounded up.
    due: u64,
    waker: Option<Waker>,
    generation: u32,
    level: u8,
    slot: u8,
    previous: u32,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    entries: Vec<Entry>,
    free: u32,
    /// First entry of each slot.
    heads: [[u32; SLOTS]; LEVELS],
    /// Bit s of level l: that slot holds an entry.
    occupied: [u64; LEVELS],
    /// Ticks the wheel has been turned to.
    now: u64,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), free: NONE, heads: [[NONE; SLOTS]; LEVELS], occupied: [0; LEVELS], now: 0 }
    }

    /// Sets a timer. A deadline in the past fires at the next [`Wheel::advance`].
    pub(crate) fn insert(&mut self, deadline: Tick, waker: Waker) -> WheelKey {
        let due = deadline.as_nanos().div_ceil(1 << TICK_BITS);
        let index = if self.free == NONE {
            let index = u32::try_from(self.entries.len()).ok().filter(|i| *i != NONE).expect("under 2^32 timers");
            self.entries.push(Entry {
                due,
                waker: Some(waker),
                generation: 0,
                level: 0,
                slot: 0,
                previous: NONE,
                next: NONE,
            });
            index
        } else {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            self.free = entry.next;
            entry.due = due;
            entry.waker = Some(waker);
            index
        };
        self.link(index);
        WheelKey { index, generation: self.entries[index as usize].generation }
    }

    /// The waker of a timer that has not fired.
    pub(crate) fn waker(&self, key: WheelKey) -> Option<&Waker> {
        self.entries.get(key.index as usize).filter(|entry| entry.generation == key.generation)?.waker.as_ref()
    }

    /// Replaces the waker of a timer, giving the old one back to be dropped outside of any lock. A timer that has fired
    /// gives the new one back as the error.
    pub(crate) fn replace_waker(&mut self, key: WheelKey, waker: Waker) -> Result<Option<Waker>, Waker> {
        match self.entries.get_mut(key.index as usize) {
            Some(entry) if entry.generation == key.generation => Ok(entry.waker.replace(waker)),
            _ => Err(waker),
        }
    }

    /// Cancels a timer, giving its waker back to be dropped outside of any lock. None if it has fired.
    pub(crate) fn cancel(&mut self, key: WheelKey) -> Option<Waker> {
        if self.entries.get(key.index as usize)?.generation != key.generation {
            return None;
        }
        self.unlink(key.index);
        self.release(key.index)
    }

    /// Cancels all timers, giving their wakers back.
    pub(crate) fn clear(&mut self) -> Vec<Waker> {
        let live = (0..self.entries.len() as u32).filter(|index| self.entries[*index as usize].waker.is_some());
        let live: Vec<u32> = live.collect();
        self.heads = [[NONE; SLOTS]; LEVELS];
        self.occupied = [0; LEVELS];
        live.into_iter().filter_map(|index| self.release(index)).collect()
    }

    /// The earliest moment at which [`Wheel::advance`] may have something to do: exact within the next 64 ticks,
    /// otherwise the start of the slot that holds the next deadline.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.next_slot().map(|(_, _, start)| Tick::from_nanos(start.saturating_mul(1 << TICK_BITS)))
    }

    /// Turns the wheel to `now` and moves the wakers of all timers that are due into `woken`.
    pub(crate) fn advance(&mut self, now: Tick, woken: &mut Vec<Waker>) {
        let now = now.as_nanos() >> TICK_BITS;
        while let Some((level, slot, start)) = self.next_slot().filter(|(_, _, start)| *start <= now) {
            self.now = self.now.max(start);
            let mut index = self.heads[level][slot];
            self.heads[level][slot] = NONE;
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let entry = &self.entries[index as usize];
                let (next, due) = (entry.next, entry.due);
                if due <= self.now {
                    woken.extend(self.release(index));
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
        self.now = self.now.max(now);
    }

    /// The first occupied slot in time order, and the tick at which it starts.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        // A lower level holds what is due before the current slot of the level above ends, so the first hit is the next.
        (0..LEVELS).find_map(|level| {
            let occupied = self.occupied[level];
            if occupied == 0 {
                return None;
            }
            let shift = 6 * level as u32;
            let current = (self.now >> shift) & 63;
            let ahead = u64::from(occupied.rotate_right(current as u32).trailing_zeros());
            let slot = ((current + ahead) & 63) as usize;
            let start = ((self.now >> shift) + ahead) << shift;
            Some((level, slot, start.max(self.now)))
        })
    }

    fn link(&mut self, index: u32) {
        let due = self.entries[index as usize].due.clamp(self.now, self.now.saturating_add(HORIZON));
        // The level is where the deadline first differs from now; within it, the slot is the deadline's six bits.
        let differs = (due ^ self.now) | (SLOTS as u64 - 1);
        let level = (((63 - differs.leading_zeros()) / 6) as usize).min(LEVELS - 1);
        let slot = ((due >> (6 * level as u32)) & 63) as usize;
        let head = self.heads[level][slot];
        let entry = &mut self.entries[index as usize];
        entry.level = level as u8;
        entry.slot = slot as u8;
        entry.previous = NONE;
        entry.next = head;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, level, slot, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[level as usize][slot as usize] = next;
            if next == NONE {
                self.occupied[level as usize] &= !(1 << slot);
            }
        }
    }

    fn release(&mut self, index: u32) -> Option<Waker> {
        let free = self.free;
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = free;
        self.free = index;
        entry.waker.take()
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(u64),
        Cancel(usize),
        Advance(u64),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let spread = prop_oneof![0..200_000u64, 0..50_000_000_000u64, 0..20_000_000_000_000_000u64];
        let operation = prop_oneof![
            spread.clone().prop_map(Operation::Insert),
            (0..64usize).prop_map(Operation::Cancel),
            spread.prop_map(Operation::Advance),
        ];
        prop::collection::vec(operation, 1..80)
    }

    proptest! {
        /// Against an ordered map: the same timers fire, never early, and at most one tick late.
        #[test]
        fn wheel_fires_what_an_ordered_map_would(operations in operations()) {
            let mut wheel = Wheel::new();
            let mut now = 0u64;
            let mut live: BTreeMap<usize, (u64, WheelKey, Arc<Count>)> = BTreeMap::new();
            let mut made = 0;
            for operation in operations {
                match operation {
                    Operation::Insert(after) => {
                        let count = Arc::new(Count(AtomicUsize::new(0)));
                        let key = wheel.insert(Tick::from_nanos(now + after), Arc::clone(&count).into());
                        live.insert(made, (now + after, key, count));
                        made += 1;
                    }
                    Operation::Cancel(which) => {
                        if let Some((_, key, _)) = live.remove(&which) {
                            prop_assert!(wheel.cancel(key).is_some());
                            prop_assert!(wheel.cancel(key).is_none());
                        }
                    }
                    Operation::Advance(by) => {
                        now += by;
                        let mut woken = Vec::new();
                        wheel.advance(Tick::from_nanos(now), &mut woken);
                        woken.into_iter().for_each(Waker::wake);
                        live.retain(|_, (due, _, count)| {
                            let fired = count.0.load(Ordering::Relaxed) == 1;
                            assert!(!fired || *due <= now, "fired early");
                            assert!(fired || *due + (1 << TICK_BITS) > now, "late: due {due} now {now}");
                            !fired
                        });
                        if let Some(next) = wheel.next_deadline() {
                            let earliest = live.values().map(|(due, ..)| *due).min().expect("a live timer");
                            prop_assert!(next.as_nanos() <= earliest + (1 << TICK_BITS));
                        } else {
                            prop_assert!(live.is_empty());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_timer_that_saturates_never_fires() {
        let mut wheel = Wheel::new();
        let waker: Waker = Arc::new(Count(AtomicUsize::new(0))).into();
        wheel.insert(Tick::NEVER, waker);
        let mut woken = Vec::new();
        wheel.advance(Tick::from_nanos(0).plus(Duration::from_secs(400 * 24 * 3600)), &mut woken);
        assert!(woken.is_empty());
    }
}
