//! The slot in a task's cell that holds its runnable while it is parked: who comes first has it. No matter how many ways
//! lead here, it is taken once. `loom-tests/lift.rs` tries to break it.

use std::ptr::{NonNull, null_mut};

use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::store_pointer;

#[derive(Debug)]
pub(crate) struct Slot {
    /// The runnable, raw; null while it is not here.
    raw: AtomicPtr<()>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self { raw: AtomicPtr::new(null_mut()) }
    }

    /// Puts in what the caller alone has.
    pub(crate) fn put(&self, raw: NonNull<()>) {
        // ORDERING: release, so that who takes it out sees the task as it is here.
        store_pointer(&self.raw, raw.as_ptr());
    }

    /// Takes out what is here, for the one caller that comes first.
    pub(crate) fn take(&self) -> Option<NonNull<()>> {
        NonNull::new(self.raw.swap(null_mut(), Ordering::AcqRel))
    }

    pub(crate) fn is_full(&self) -> bool {
        !self.raw.load(Ordering::Acquire).is_null()
    }
}
