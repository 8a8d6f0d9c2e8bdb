//! Readiness masks: which priorities have work, and where.
//!
//! Two levels of hints over the run queues: a word per worker (`available`: this worker's deque or inbox of priority p
//! may hold work) and one for the executor (`hot`: some worker's may). Bit p stands for priority p, so the best priority
//! is the lowest set bit. Hints are set by whoever pushes and cleared by whoever looks and finds nothing, which then
//! looks once more. Never: a pushed item stays invisible once its pusher and every clearer have returned.
//! `loom-tests/ready.rs` tries to break it.

use crossbeam_utils::CachePadded;

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::fence_after_rmw;

#[derive(Debug)]
pub(crate) struct Ready {
    hot: CachePadded<AtomicU64>,
    available: Box<[CachePadded<AtomicU64>]>,
}

impl Ready {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            hot: CachePadded::new(AtomicU64::new(0)),
            available: (0..workers).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
        }
    }

    /// Priorities that some worker may have work of.
    pub(crate) fn hot(&self) -> u64 {
        self.hot.load(Ordering::Relaxed)
    }

    /// Priorities that `worker` may have work of.
    pub(crate) fn available(&self, worker: usize) -> u64 {
        self.available[worker].load(Ordering::Relaxed)
    }

    /// After a push from another thread than the owner's: makes the item visible to everyone.
    pub(crate) fn announce(&self, worker: usize, priority: u8) {
        // ORDERING: push, fence, read masks; a clearer writes masks, fences, reads queues. One of the two sees the
        // other. Without both fences each may read the old value and the item stays hidden.
        // Model: ready.rs::an_announced_item_is_visible_in_the_end.
        fence(Ordering::SeqCst);
        self.set(worker, priority);
    }

    /// After a push by the owner: as [`Ready::announce`] without the fence. A clearer may therefore miss the item, which
    /// the owner repairs: it remembers what it pushed and sets the bits again at its next dispatch.
    pub(crate) fn announce_local(&self, worker: usize, priority: u8) {
        self.set(worker, priority);
    }

    fn set(&self, worker: usize, priority: u8) {
        let bit = 1 << priority;
        // Load first: a read-modify-write that changes nothing would still take the line from its readers.
        // The worker's word comes first, since `retract_hot` trusts it.
        if self.available[worker].load(Ordering::Relaxed) & bit == 0 {
            self.available[worker].fetch_or(bit, Ordering::AcqRel);
            // ORDERING: pairs with the fence in `retract_hot`, which clears the executor's bit and then reads the
            // worker's. Without it we may read the executor's as still set and it the worker's as still clear.
            fence_after_rmw();
        }
        // ORDERING: release, so that who sees the hot bit sees the worker's bit.
        if self.hot.load(Ordering::Relaxed) & bit == 0 {
            self.hot.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// The caller found nothing of `priority` at `worker`: clears the worker's bit, then asks `occupied` once more. True
    /// if it put the bits back: whoever looked in between missed them, so the caller must then call `Idle::notify`.
    #[must_use]
    pub(crate) fn retract(&self, worker: usize, priority: u8, occupied: impl FnOnce() -> bool) -> bool {
        self.available[worker].fetch_and(!(1 << priority), Ordering::AcqRel);
        // ORDERING: pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        let missed = occupied();
        if missed {
            // Both levels: `hot` may have been cleared while the worker's bit was down.
            self.set(worker, priority);
        }
        missed
    }

    /// The caller found nothing of `priority` anywhere: clears the executor's bit, then looks at every worker's once more.
    /// True if it put the bit back, as for [`Ready::retract`].
    #[must_use]
    pub(crate) fn retract_hot(&self, priority: u8) -> bool {
        let bit = 1 << priority;
        self.hot.fetch_and(!bit, Ordering::AcqRel);
        // ORDERING: pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        let missed = self.available.iter().any(|word| word.load(Ordering::Relaxed) & bit != 0);
        if missed {
            self.hot.fetch_or(bit, Ordering::AcqRel);
        }
        missed
    }
}
