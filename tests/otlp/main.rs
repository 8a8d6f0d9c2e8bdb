//! OpenTelemetry, against receivers: one in this process, whose answers are scripted, and a real one.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod metrics;
#[allow(dead_code, reason = "the tests of sinks use the rest")]
#[path = "../programs/mod.rs"]
mod others;
mod receiver;
mod retries;
mod rotel;
mod traces;
mod tracing;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use corelane::{
    EventEmitter, Executor, LaneConfig, OtelTracer, QueueManager, QueueManagerBuilder, QueueMetrics, Ticket,
};

fn block_on<F: Future>(future: F) -> F::Output {
    futures::executor::block_on(future)
}

/// What a command resulted in.
fn done<T>(ticket: Ticket<T>) -> corelane::Result<T> {
    block_on(ticket).unwrap()
}

/// A started queue with a lane `work`.
fn queue(config: LaneConfig, tracer: Option<&Arc<OtelTracer>>, metrics: Option<&QueueMetrics>) -> QueueManager {
    let executor = Executor::builder().workers(2).pin(false).build().unwrap();
    let mut builder =
        QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor).with_lane("work", config, 3);
    if let Some(tracer) = tracer {
        builder = builder.with_tracer(Arc::clone(tracer) as Arc<dyn corelane::Tracer>);
    }
    if let Some(metrics) = metrics {
        builder = builder.with_metrics(metrics.clone());
    }
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

/// Until nothing is left: tracers have been told of every command then.
fn finish(manager: &QueueManager) {
    block_on(manager.drain(Duration::from_secs(60))).unwrap();
}
