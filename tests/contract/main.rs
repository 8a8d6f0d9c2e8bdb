//! The contract, promise by promise: each test is named as the sentence that it proves.
#![allow(clippy::unwrap_used)]

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
