//! The contract, promise by promise: each test is named as the sentence that it proves.
// `Ok(wait().await)` is how a command that only waits reads best.
#![allow(clippy::unwrap_used, clippy::unit_arg)]

mod architecture;
mod bad_input;
mod boost;
mod bounded;
mod cancellation;
mod concurrency;
mod dead_letters;
mod dead_letters_in_queue;
mod deadlines;
mod durable;
mod durable_edges;
mod durable_model;
mod events;
mod executor;
mod golden;
mod idempotency;
mod interplay;
mod lanes;
mod leaks;
mod limiters;
mod managers;
mod nested;
mod nested_retries;
mod order;
mod policies;
mod priority_queue;
mod rates;
mod recovery;
mod reserve;
mod retries;
mod shutdown;
mod storage;
mod storage_failures;
mod stores;
mod stuck;
mod support;
mod tasks;
mod timeouts;
#[cfg(feature = "tokio")]
mod tokio_shim;
