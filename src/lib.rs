#![doc = include_str!("../README.md")]

mod clock;
mod error;
mod executor;
mod id;
mod sync;

pub use error::{ConfigErrors, ConfigProblem, LaneError, Result};
pub use executor::{
    Cancel, Elapsed, Executor, ExecutorBuilder, LOWEST_PRIORITY, ShutdownReport, Sleep, Task, TaskError, Timeout,
    WorkerStats, should_yield, sleep, timeout, yield_now,
};
pub use id::CommandId;
