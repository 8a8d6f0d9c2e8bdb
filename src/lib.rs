#![doc = include_str!("../README.md")]

mod adapters;
mod clock;
mod error;
mod event;
mod executor;
mod id;
mod limit;
mod monitor;
mod queue;
mod simulation;
mod sync;

#[cfg(all(test, corelane_loom))]
#[path = "../loom-tests/mod.rs"]
mod loom_tests;

pub use error::{ConfigErrors, ConfigProblem, LaneError, Result};
pub use event::{
    CommandInfo, EventEmitter, EventKey, EventPayload, EventReceiver, EventStream, EventsClosed, LaneEvent, Transition,
    events,
};
pub use executor::{
    Cancel, Elapsed, Executor, ExecutorBuilder, LOWEST_PRIORITY, ShutdownReport, Sleep, Task, TaskError, Timeout,
    WorkerStats, should_yield, sleep, timeout, yield_now,
};
pub use id::CommandId;
pub use monitor::{MonitorConfig, QueueMonitor};
pub use queue::{
    Command, CommandQueue, DrainReport, JsonCommand, Lane, LaneConfig, LaneId, LaneStatus, Priority, QueueManager,
    QueueManagerBuilder, QueueStats, Rejected, Ticket, TicketError, TypedCommand, lane_ids, priorities,
};
pub use simulation::Simulation;

/// What surrounds the polls of a queue made here and now: the one place that knows which adapters there are.
fn ambient() -> Option<std::sync::Arc<dyn queue::Ambient>> {
    #[cfg(feature = "tokio")]
    return Some(adapters::tokio::ambient());
    #[cfg(not(feature = "tokio"))]
    None
}
