//! What decides whether a command may start: pure words of atomics, no clock, no wakers, no executor.

pub(crate) mod gate;
pub(crate) mod pool;
pub(crate) mod rate;
pub(crate) mod sliding_window;
#[cfg(all(test, not(corelane_loom)))]
mod tests;
pub(crate) mod token_bucket;
