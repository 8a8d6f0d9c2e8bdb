//! Queues in servers, each with a real server that the tests start themselves: on a free port, in a folder of its own. A server
//! that is not installed leaves its tests out, loudly; with `CI=true` it is a failure.
//!
//! `conformance` is the suite that all queues pass. What a backend has of its own is in a file with its name.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod faults;
mod model;
mod nats;
mod postgres;
#[path = "../programs/child.rs"]
mod programs;
mod proxy;
mod redis;
mod servers;
mod setup;

use std::future::Future;
use std::sync::Arc;

use corelane::testing::distributed::{Opening, Queue, conformance_of};
use corelane::{RemoteOptions, Result};
use futures::executor::block_on;

use servers::Server;

/// The options of a suite's queue.
pub(crate) fn options(url: String, opening: Opening) -> RemoteOptions {
    RemoteOptions::new(url).namespace(opening.namespace).partitions(opening.partitions).lease(opening.lease)
}

/// Runs the suite against a server; `CORELANE_CHECKS` chooses checks by a part of their names.
pub(crate) fn conforms<S: Server, Opened>(open: fn(RemoteOptions) -> Opened)
where
    Opened: Future<Output = Result<Queue>> + Send + 'static,
{
    let Some(server) = servers::started::<S>() else { return };
    let server = Arc::new(server);
    let part = std::env::var("CORELANE_CHECKS").unwrap_or_default();
    let report = block_on(conformance_of(move |opening| open(options(server.url(), opening)), &part));
    eprintln!("{}: {} checks; left out: {:?}", S::NAME, report.run, report.left_out);
    assert!(report.run >= 80 || !part.is_empty(), "{report:?}");
}
