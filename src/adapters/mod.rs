//! Edges to other runtimes and systems, each behind one feature. Uses the rest of the crate; nothing but `lib` uses it.

#[cfg(any(feature = "alert-sinks", feature = "otel"))]
mod http;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "otel")]
pub(crate) mod otel;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "prometheus")]
pub(crate) mod prometheus;
#[cfg(feature = "redb")]
pub(crate) mod redb;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
#[cfg_attr(
    not(all(feature = "nats", feature = "postgres", feature = "redis")),
    allow(dead_code, unused_imports, reason = "each of them uses a part of it")
)]
pub(crate) mod remote;
#[cfg(any(feature = "alert-sinks", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod secret;
#[cfg(feature = "alert-sinks")]
pub(crate) mod sinks;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
