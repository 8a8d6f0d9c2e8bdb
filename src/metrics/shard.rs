//! What one thread counts of one lane, and how it finds that.
//!
//! A thread has a number of its own while it lives, and in every lane the shard of that number: words that only it writes, by
//! a load and a store. Threads beyond [`OWN`] share one shard, by read-modify-writes. Who reads adds all shards up; a
//! shard is made when its thread first counts in the lane, and stays.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::histogram::{BUCKETS, Histogram, bucket_of};

/// Threads that have a shard of their own.
const OWN: usize = 256;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Count {
    /// Commands accepted.
    Submitted,
    /// First attempts.
    Started,
    /// Attempts after the first.
    Restarted,
    /// Commands that settled without a first attempt.
    Unstarted,
    // How commands settled.
    Ok,
    Error,
    Panic,
    Timeout,
    Cancelled,
    Expired,
    Shed,
    // Why submissions were refused.
    RejectedFull,
    RejectedShutdown,
    RejectedInvalid,
    RejectedStorage,
    Retries,
    // Why commands were given up.
    DeadFailed,
    DeadPanicked,
    DeadTimedOut,
    DeadExpired,
    DeadShed,
    DeadOther,
    Boosts,
}

const COUNTS: usize = Count::Boosts as usize + 1;

/// The words of one thread in one lane.
#[repr(align(128))]
pub(super) struct Shard {
    counts: [AtomicU64; COUNTS],
    /// When the attempt that this thread polls began; 0 if it polls none.
    polled_since: AtomicU64,
    /// Made by threads that run commands.
    times: OnceLock<Box<Times>>,
}

struct Times {
    wait: Distribution,
    run: Distribution,
}

struct Distribution {
    sum: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// Which of the two distributions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Time {
    Wait,
    Run,
}

const fn zeros<const N: usize>() -> [AtomicU64; N] {
    [const { AtomicU64::new(0) }; N]
}

impl Shard {
    const fn new() -> Self {
        Self { counts: zeros(), polled_since: AtomicU64::new(0), times: OnceLock::new() }
    }

    #[cold]
    #[inline(never)]
    fn make_times(&self) -> &Times {
        self.times.get_or_init(|| {
            let distribution = || Distribution { sum: AtomicU64::new(0), buckets: zeros() };
            Box::new(Times { wait: distribution(), run: distribution() })
        })
    }
}

/// A thread's way to write a shard.
#[derive(Clone, Copy)]
pub(super) struct Writer<'a> {
    shard: &'a Shard,
    is_own: bool,
}

impl Writer<'_> {
    #[inline]
    fn add(self, word: &AtomicU64, n: u64) {
        if self.is_own {
            word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
        } else {
            word.fetch_add(n, Ordering::Release);
        }
    }

    /// Counts, and says how many there were before, of this thread.
    #[inline]
    pub(super) fn count(self, count: Count) -> u64 {
        let word = &self.shard.counts[count as usize];
        if self.is_own {
            let before = word.load(Ordering::Relaxed);
            // ORDERING: release, and acquire where they are read: who sees an end counted sees the beginning counted.
            word.store(before + 1, Ordering::Release);
            before
        } else {
            word.fetch_add(1, Ordering::Release)
        }
    }

    /// Records a time, `weight` times.
    #[inline]
    pub(super) fn record(self, time: Time, nanos: u64, weight: u64) {
        let times = self.shard.times.get().map_or_else(|| self.shard.make_times(), |times| &**times);
        let distribution = match time {
            Time::Wait => &times.wait,
            Time::Run => &times.run,
        };
        self.add(&distribution.sum, nanos.wrapping_mul(weight));
        self.add(&distribution.buckets[bucket_of(nanos)], weight);
    }

    /// Says since when this thread polls an attempt; 0 for "not any more".
    #[inline]
    pub(super) fn set_polled_since(self, stamp: u64) {
        if self.is_own {
            self.shard.polled_since.store(stamp, Ordering::Relaxed);
        }
    }
}

/// The shards of one lane.
pub(super) struct Shards {
    own: [OnceLock<Box<Shard>>; OWN],
    shared: OnceLock<Box<Shard>>,
}

impl Shards {
    pub(super) const fn new() -> Self {
        Self { own: [const { OnceLock::new() }; OWN], shared: OnceLock::new() }
    }

    /// The calling thread's shard.
    #[inline]
    pub(super) fn own(&self) -> Writer<'_> {
        match self.own.get(SLOT.get()).and_then(OnceLock::get) {
            Some(shard) => Writer { shard, is_own: true },
            None => self.first(),
        }
    }

    /// The calling thread has not counted here yet, or has no shard of its own.
    #[cold]
    #[inline(never)]
    fn first(&self) -> Writer<'_> {
        let slot = slot();
        match self.own.get(slot) {
            Some(own) => Writer { shard: own.get_or_init(|| Box::new(Shard::new())), is_own: true },
            None => Writer { shard: self.shared.get_or_init(|| Box::new(Shard::new())), is_own: false },
        }
    }

    fn all(&self) -> impl Iterator<Item = &Shard> {
        self.own.iter().chain([&self.shared]).filter_map(OnceLock::get).map(|shard| &**shard)
    }

    /// What all threads have counted.
    pub(super) fn sum(&self, count: Count) -> u64 {
        self.all().map(|shard| shard.counts[count as usize].load(Ordering::Acquire)).sum()
    }

    pub(super) fn distribution(&self, time: Time) -> Histogram {
        let mut all = Histogram::new();
        for times in self.all().filter_map(|shard| shard.times.get()) {
            let distribution = match time {
                Time::Wait => &times.wait,
                Time::Run => &times.run,
            };
            for (bucket, count) in distribution.buckets.iter().enumerate() {
                all.add_bucket(bucket, count.load(Ordering::Relaxed));
            }
            all.add_sum(distribution.sum.load(Ordering::Relaxed));
        }
        all
    }

    /// Since when the attempt that has been polled longest, and that nobody else knows of, has been running.
    pub(super) fn polled_since(&self) -> Option<u64> {
        self.all().map(|shard| shard.polled_since.load(Ordering::Relaxed)).filter(|since| *since != 0).min()
    }
}

/// Numbers that threads which have ended gave back, and the next new one.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

/// A thread that is ending counts with those that share.
const SHARED: usize = usize::MAX;

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(SHARED - 1) };
    /// Gives the number back when the thread ends.
    static OWNED: Owned = Owned::take();
}

struct Owned(usize);

impl Owned {
    fn take() -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.0.pop().unwrap_or_else(|| {
            free.1 += 1;
            free.1 - 1
        });
        Self(slot)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Who still counts on this thread must not write to the shard of the next thread that has the number.
        SLOT.set(SHARED);
        // ORDERING: the lock hands what was written here over to that thread.
        FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0);
    }
}

fn slot() -> usize {
    if SLOT.get() == SHARED - 1 {
        SLOT.set(OWNED.try_with(|owned| owned.0).unwrap_or(SHARED));
    }
    SLOT.get()
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_count_apart_and_the_sum_is_exact() {
        let shards = Shards::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..1_000 {
                        let own = shards.own();
                        own.count(Count::Submitted);
                        own.record(Time::Run, n, 1);
                    }
                });
            }
        });
        assert_eq!(shards.sum(Count::Submitted), 8_000);
        let run = shards.distribution(Time::Run);
        assert_eq!(run.count(), 8_000);
        assert_eq!(run.sum().as_nanos(), 8 * 999 * 500);
    }

    #[test]
    fn a_thread_that_ends_leaves_its_number_to_another_one() {
        let shards = Shards::new();
        for _ in 0..2 * OWN {
            std::thread::scope(|scope| {
                scope.spawn(|| shards.own().count(Count::Ok));
            });
        }
        assert_eq!(shards.sum(Count::Ok), 2 * OWN as u64);
        assert!(shards.shared.get().is_none());
    }

    #[test]
    fn threads_beyond_those_with_shards_of_their_own_share_one_and_lose_nothing() {
        let shards = Shards::new();
        let writer = Writer { shard: shards.shared.get_or_init(|| Box::new(Shard::new())), is_own: false };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| _ = writer.count(Count::Ok)));
            }
        });
        assert_eq!(shards.sum(Count::Ok), 4_000);
    }
}
