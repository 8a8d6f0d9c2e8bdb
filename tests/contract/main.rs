//! The contract, promise by promise: each test is named as the sentence that it proves.
// `Ok(wait().await)` is how a command that only waits reads best.
#![allow(clippy::unwrap_used, clippy::unit_arg)]

mod architecture;
mod bad_input;
mod events;
mod executor;
mod lanes;
mod managers;
mod order;
mod shutdown;
mod support;
mod timeouts;
#[cfg(feature = "tokio")]
mod tokio_shim;
