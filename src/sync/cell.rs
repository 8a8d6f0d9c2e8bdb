//! A cell whose accesses loom can see.

#[cfg(all(test, corelane_loom))]
pub(crate) use loom::cell::UnsafeCell;

/// As std's, with the interface of loom's: the closure is the access.
#[cfg(not(all(test, corelane_loom)))]
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(all(test, corelane_loom)))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}
