//! What the backends have in common whose queue is in a server: how they are set, the thread that does their I/O, and how a
//! connection that was lost is made again.

mod backoff;
mod options;
mod thread;

use std::time::Duration;

pub(crate) use backoff::Backoff;
pub use options::RemoteOptions;
pub(crate) use options::Settings;
pub(crate) use thread::{Gone, Thread};

/// The longest lease of a server: what it can still add to its clock, and more than anybody waits.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
