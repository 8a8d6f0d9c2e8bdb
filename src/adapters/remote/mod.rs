//! What the backends have in common whose queue is in a server: how they are set, the thread that does their I/O, and how a
//! connection that was lost is made again.

mod backoff;
mod options;
mod thread;

pub(crate) use backoff::Backoff;
pub use options::RemoteOptions;
pub(crate) use options::Settings;
pub(crate) use thread::{Gone, Thread};
