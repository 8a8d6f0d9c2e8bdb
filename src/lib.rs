#![doc = include_str!("../README.md")]

#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("../docs/observability.md")]
pub mod observability {}

#[doc = include_str!("../docs/distributed.md")]
pub mod distributed_queues {}

mod adapters;
mod alert;
mod clock;
mod distributed;
mod error;
mod event;
mod executor;
mod id;
mod limit;
mod metrics;
mod monitor;
mod policy;
mod queue;
mod simulation;
mod storage;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;

#[cfg(all(test, corelane_loom))]
#[path = "../loom-tests/mod.rs"]
mod loom_tests;

#[cfg(feature = "nats")]
pub use adapters::nats::{NatsDistributedQueue, NatsOptions};
#[cfg(feature = "otel")]
pub use adapters::otel::{
    OtelMetricsBackend, OtelTracer, OtlpEndpoint, OtlpError, OtlpExporter, OtlpExporterBuilder, OtlpHistograms,
    OtlpStats, TraceParent,
};
#[cfg(feature = "postgres")]
pub use adapters::postgres::PostgresDistributedQueue;
#[cfg(feature = "prometheus")]
pub use adapters::prometheus::{PrometheusEndpoint, PrometheusExporter};
#[cfg(feature = "redb")]
pub use adapters::redb::{LocalStorage, LocalStorageBuilder};
#[cfg(feature = "redis")]
pub use adapters::redis::RedisDistributedQueue;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
pub use adapters::remote::RemoteOptions;
#[cfg(any(feature = "alert-sinks", feature = "nats", feature = "postgres", feature = "redis"))]
pub use adapters::secret::Secret;
#[cfg(feature = "alert-sinks")]
pub use adapters::sinks::{AlertmanagerSink, PagerDutySink, SinkBuilder, SlackSink, WebhookSink};
pub use alert::{
    Alert, AlertCallback, AlertCondition, AlertDeliveryStats, AlertLevel, AlertManager, AlertMatcher, AlertRule,
    AlertSink, AlertStatus, AlertThreshold, LatencyAlertConfig, Notification, QueueDepthAlertConfig, Silence,
    SilenceId, SinkError,
};
pub use distributed::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DEFAULT_LEASE, DEFAULT_MAX_DELIVERIES, DeadPage,
    DeadReason, Delivery, Depth, DistributedHealth, DistributedQueue, EnqueueOptions, GlobalLimits, ID_MEMORY,
    LaneClaim, LeaseToken, Leased, LocalDistributedQueue, Nack, PartitionReceiver, Receipt, RemoteCommands,
    RemoteDeadLetter, ResultReceiver, ResultSender, Support, WorkerId, WorkerPool, WorkerPoolStats,
};
pub use error::{ConfigErrors, ConfigProblem, DistributedError, LaneError, Result, StorageError};
pub use event::{
    CommandInfo, EventEmitter, EventKey, EventKind, EventPayload, EventReceiver, EventStream, EventsClosed, LaneEvent,
    OnOverflow, Recorded, Recording, Subscription, Transition, events,
};
pub use executor::{
    Cancel, Elapsed, Executor, ExecutorBuilder, LOWEST_PRIORITY, ShutdownReport, Sleep, SpareStats, Task, TaskError,
    Timeout, WorkerStats, should_yield, sleep, timeout, yield_now,
};
pub use id::CommandId;
pub use limit::rate::{RateAlgorithm, RateLimitConfig, RateLimiter};
pub use limit::sliding_window::SlidingWindowLimiter;
pub use limit::token_bucket::TokenBucketLimiter;
pub use metrics::{
    CommandTypeReading, DeadLettered, Finished, Histogram, HistogramPercentiles, HistogramStats, LaneReading,
    LocalMetrics, MetricsBackend, MetricsLevel, MetricsSnapshot, OTHER_TYPES, QueueMetrics, Reading, RejectedCounts,
    WorkerReading, metric_names,
};
pub use monitor::{MonitorConfig, QueueMonitor};
pub use policy::boost::{PriorityBoostConfig, PriorityBooster};
pub use policy::retry::{FailedAttempt, Jitter, Retry, RetryBudget, RetryPolicy, RetryStrategy};
pub use queue::{
    Acquire, AttemptError, CancelToken, Command, CommandContext, CommandQueue, CustomPartitioner, DeadLetter,
    DeadLetterQueue, DeadLetterReason, DrainReport, DurableCommand, Explanation, HashPartitioner, JsonCommand,
    JsonSubmission, Key, Lane, LaneConfig, LaneId, LaneStatus, OnStorageFailure, Overflow, ParkReason, Parked,
    PartitionConfig, PartitionId, PartitionStrategy, Partitioner, Permit, Priority, PriorityItem, PriorityQueue,
    QueueManager, QueueManagerBuilder, QueueStats, RecoveryReport, Rejected, RequeueReport, RoundRobinPartitioner,
    Standing, Stop, StopReport, SubmitOptions, Ticket, TicketError, TypedCommand, WaitCause, is_cancelled, lane_ids,
    priorities, stable_hash,
};
pub use simulation::Simulation;
pub use storage::{
    Change, Durability, MemoryStorage, Recovery, StartMark, Storage, StorageCapabilities, StorageHealth, StoredCommand,
    StoredCommandId, StoredDeadLetter, StoredResult, StoredTerms,
};
pub use trace::{EndedCommand, InvalidTraceParent, TraceContext, TraceOutcome, Traced, TracedAttempt, Tracer};

/// Names of spans and attributes; with the feature `otel`, a3s-lane's recorder of four instruments.
pub mod telemetry {
    #[cfg(feature = "otel")]
    pub use crate::adapters::otel::{
        LaneMetricsRecorder, OtelMetricsBackend, init_lane_metrics, metrics, record_complete, record_failure,
        record_submit,
    };
    pub use crate::trace::names::*;
}

/// What surrounds the polls of a queue made here and now: the one place that knows which adapters there are.
fn ambient() -> Option<std::sync::Arc<dyn executor::Ambient>> {
    #[cfg(feature = "tokio")]
    return Some(adapters::tokio::ambient());
    #[cfg(not(feature = "tokio"))]
    None
}
