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
