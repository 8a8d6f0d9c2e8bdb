//! What decides whether a command may start: pure words of atomics, no clock, no wakers, no executor.

pub(crate) mod gate;
