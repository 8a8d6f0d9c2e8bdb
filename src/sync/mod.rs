//! The only place that names std or loom primitives for code that loom models.
//!
//! Under `cfg(all(test, corelane_loom))` the protocols in `executor/park`, `executor/ready`, `executor/life` and
//! `limit/gate` are compiled against loom, so that `loom-tests/` explores the very code that ships.

pub(crate) mod atomic {
    #[cfg(all(test, corelane_loom))]
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
    #[cfg(not(all(test, corelane_loom)))]
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
}

/// A sequentially consistent fence right after a read-modify-write; on x86-64 that is one already.
pub(crate) fn fence_after_rmw() {
    #[cfg(any(not(target_arch = "x86_64"), miri, all(test, corelane_loom)))]
    atomic::fence(atomic::Ordering::SeqCst);
    #[cfg(not(any(not(target_arch = "x86_64"), miri, all(test, corelane_loom))))]
    std::sync::atomic::compiler_fence(atomic::Ordering::SeqCst);
}
