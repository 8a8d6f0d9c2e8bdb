//! A limit that several lanes share: permits, and which lanes want one.
//!
//! A lane that finds none free leaves its bit and looks again; who puts one back looks at the bits afterwards. With a
//! fence on both sides one of them sees the other: never is a permit free while a bit is set, once every call has
//! returned and whoever put the permit back has pumped the lanes that [`Pool::next`] names. `loom-tests/pool.rs` tries to
//! break it.

use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

/// Lanes that can share a pool.
pub(crate) const POOL_LANES: usize = 64;

#[derive(Debug)]
pub(crate) struct Pool {
    /// Below zero while commands that others wait for are above the limit.
    free: AtomicI64,
    /// Lanes that were refused, by their place: the best is the lowest bit.
    wanted: AtomicU64,
}

impl Pool {
    pub(crate) fn new(permits: usize) -> Self {
        Self { free: AtomicI64::new(i64::try_from(permits).unwrap_or(i64::MAX)), wanted: AtomicU64::new(0) }
    }

    /// Takes a permit for the lane; if there is none, or a better lane wants one, the lane will be named by [`Pool::next`].
    pub(crate) fn take(&self, lane: u32) -> bool {
        let better = (1 << lane) - 1;
        if self.wanted.load(Ordering::Relaxed) & better != 0 {
            // A bit may be out of date: asking for the next lane is what clears it, and the caller does so.
            self.wanted.fetch_or(1 << lane, Ordering::AcqRel);
            return false;
        }
        if self.try_take() {
            return true;
        }
        self.wanted.fetch_or(1 << lane, Ordering::AcqRel);
        // ORDERING: pairs with the fence in `next`.
        fence(Ordering::SeqCst);
        // The bit stays if this succeeds: at worst the lane is pumped for nothing.
        self.try_take()
    }

    fn try_take(&self) -> bool {
        let mut free = self.free.load(Ordering::Relaxed);
        while free > 0 {
            match self.free.compare_exchange_weak(free, free - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => free = now,
            }
        }
        false
    }

    /// Takes a permit even if there is none.
    pub(crate) fn take_anyway(&self) {
        self.free.fetch_sub(1, Ordering::AcqRel);
    }

    /// Puts a permit back. The caller pumps the lanes that [`Pool::next`] names.
    pub(crate) fn put(&self) {
        self.free.fetch_add(1, Ordering::AcqRel);
    }

    /// The best lane that wants a permit, if one is free. The caller pumps it and asks again.
    pub(crate) fn next(&self) -> Option<u32> {
        // ORDERING: pairs with the fence in `take`: that lane sees the permit that was put back, or we see its bit.
        fence(Ordering::SeqCst);
        let mut wanted = self.wanted.load(Ordering::Relaxed);
        while wanted != 0 && self.free.load(Ordering::Relaxed) > 0 {
            let lane = wanted.trailing_zeros();
            let new = wanted & (wanted - 1);
            match self.wanted.compare_exchange_weak(wanted, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(lane),
                Err(now) => wanted = now,
            }
        }
        None
    }
}
