//! Edges to other runtimes and systems, each behind one feature. Uses the rest of the crate; nothing but `lib` uses it.

#[cfg(any(feature = "alert-sinks", feature = "otel"))]
mod http;
#[cfg(feature = "otel")]
pub(crate) mod otel;
#[cfg(feature = "prometheus")]
pub(crate) mod prometheus;
#[cfg(feature = "redb")]
pub(crate) mod redb;
#[cfg(feature = "alert-sinks")]
pub(crate) mod sinks;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
