//! Edges to other runtimes and systems, each behind one feature. Uses the rest of the crate; nothing but `lib` uses it.

#[cfg(feature = "redb")]
pub(crate) mod redb;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
