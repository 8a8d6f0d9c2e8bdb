//! The system's allocator, with a count of what it gives out. Only the binary `compare-counting` uses it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// Allocations so far.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes given out and not yet given back, as asked for: what the allocator adds is not counted. Wraps below zero for a
/// moment when one thread frees what another has just got.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// Counts for the whole process.
pub struct Counting;

/// What was counted up to now.
#[derive(Clone, Copy)]
pub struct Count {
    allocations: u64,
    live: u64,
}

impl Count {
    pub fn now() -> Self {
        Self { allocations: ALLOCATIONS.load(Ordering::SeqCst), live: LIVE.load(Ordering::SeqCst) }
    }

    /// Allocations since `earlier`, for each of `n`.
    pub fn allocations_each(self, earlier: Self, n: u64) -> f64 {
        (self.allocations - earlier.allocations) as f64 / n as f64
    }

    /// Bytes that are live now and were not at `earlier`, for each of `n`.
    pub fn bytes_each(self, earlier: Self, n: u64) -> f64 {
        self.live.wrapping_sub(earlier.live) as i64 as f64 / n as f64
    }
}

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc`, which is the system's, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    // Counted as one allocation: the default would count a second one for the copy and lose `realloc`'s growing in place.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add((size as u64).wrapping_sub(layout.size() as u64), Ordering::Relaxed);
        // SAFETY: as `dealloc`, and the caller's promise about `size` is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
