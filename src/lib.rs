#![doc = include_str!("../README.md")]

#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

mod adapters;
mod clock;
mod error;
mod event;
mod executor;
mod id;
mod limit;
mod monitor;
mod policy;
mod queue;
mod simulation;
mod storage;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(all(test, corelane_loom))]
#[path = "../loom-tests/mod.rs"]
mod loom_tests;

#[cfg(feature = "redb")]
pub use adapters::redb::{LocalStorage, LocalStorageBuilder};
pub use error::{ConfigErrors, ConfigProblem, LaneError, Result, StorageError};
pub use event::{
    CommandInfo, EventEmitter, EventKey, EventPayload, EventReceiver, EventStream, EventsClosed, LaneEvent, Transition,
    events,
};
pub use executor::{
    Cancel, Elapsed, Executor, ExecutorBuilder, LOWEST_PRIORITY, ShutdownReport, Sleep, SpareStats, Task, TaskError,
    Timeout, WorkerStats, should_yield, sleep, timeout, yield_now,
};
pub use id::CommandId;
pub use limit::rate::{RateAlgorithm, RateLimitConfig, RateLimiter};
pub use limit::sliding_window::SlidingWindowLimiter;
pub use limit::token_bucket::TokenBucketLimiter;
pub use monitor::{MonitorConfig, QueueMonitor};
pub use policy::boost::{PriorityBoostConfig, PriorityBooster};
pub use policy::retry::{FailedAttempt, Jitter, Retry, RetryBudget, RetryPolicy, RetryStrategy};
pub use queue::{
    Acquire, AttemptError, CancelToken, Command, CommandContext, CommandQueue, DeadLetter, DeadLetterQueue,
    DeadLetterReason, DrainReport, DurableCommand, JsonCommand, JsonSubmission, Key, Lane, LaneConfig, LaneId,
    LaneStatus, OnStorageFailure, Overflow, ParkReason, Parked, Permit, Priority, PriorityItem, PriorityQueue,
    QueueManager, QueueManagerBuilder, QueueStats, RecoveryReport, Rejected, RequeueReport, Stop, StopReport,
    SubmitOptions, Ticket, TicketError, TypedCommand, is_cancelled, lane_ids, priorities,
};
pub use simulation::Simulation;
pub use storage::{
    Change, Durability, MemoryStorage, Recovery, StartMark, Storage, StorageCapabilities, StorageHealth, StoredCommand,
    StoredCommandId, StoredDeadLetter, StoredResult, StoredTerms,
};

/// What surrounds the polls of a queue made here and now: the one place that knows which adapters there are.
fn ambient() -> Option<std::sync::Arc<dyn executor::Ambient>> {
    #[cfg(feature = "tokio")]
    return Some(adapters::tokio::ambient());
    #[cfg(not(feature = "tokio"))]
    None
}
