//! The only place that names std or loom primitives for code that loom models.
//!
//! Under `cfg(all(test, corelane_loom))` the protocols in `executor/park`, `executor/ready`, `executor/life`,
//! `executor/state`, `executor/cell`, `executor/shown` and `limit` are compiled against loom, so that `loom-tests/` explores
//! the very code that ships.

pub(crate) mod cell;

pub(crate) mod atomic {
    #[cfg(all(test, corelane_loom))]
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
    #[cfg(not(all(test, corelane_loom)))]
    pub(crate) use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
}

/// Begins a cache line, so that who writes this and who reads its neighbours do not meet. Of one line: there are many lanes, and
/// [`crossbeam_utils::CachePadded`] takes two.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct OwnLine<T>(pub(crate) T);

impl<T> std::ops::Deref for OwnLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A sequentially consistent fence right after a read-modify-write; on x86-64 that is one already.
pub(crate) fn fence_after_rmw() {
    #[cfg(any(not(target_arch = "x86_64"), miri, all(test, corelane_loom)))]
    atomic::fence(atomic::Ordering::SeqCst);
    #[cfg(not(any(not(target_arch = "x86_64"), miri, all(test, corelane_loom))))]
    std::sync::atomic::compiler_fence(atomic::Ordering::SeqCst);
}

/// Stores to a word that is otherwise read by read-modify-writes. Loom takes those as free to come before an earlier store of
/// the same thread, which they are not: there, this is one itself.
pub(crate) fn store_pointer<T>(word: &atomic::AtomicPtr<T>, value: *mut T) {
    #[cfg(all(test, corelane_loom))]
    word.swap(value, atomic::Ordering::Release);
    #[cfg(not(all(test, corelane_loom)))]
    word.store(value, atomic::Ordering::Release);
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    #[cfg(all(test, corelane_loom))]
    loom::thread::yield_now();
    #[cfg(not(all(test, corelane_loom)))]
    std::thread::yield_now();
}

/// Waits a moment for another thread.
pub(crate) fn spin_loop() {
    #[cfg(all(test, corelane_loom))]
    loom::thread::yield_now();
    #[cfg(not(all(test, corelane_loom)))]
    std::hint::spin_loop();
}
