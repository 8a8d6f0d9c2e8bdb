//! Builds a queue from settings, checking all of them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::admission::SharedPool;
use super::command::Command;
use super::command_queue::{CommandQueue, Parts};
use super::config::LaneConfig;
use super::dead_letter::DeadLetterQueue;
use super::durable::{CrashLimit, DurableCommand, Recovered, Store, Window, recover};
use super::lane::Lane;
use super::manager::QueueManager;
use super::partition::{PartitionConfig, Partitioner, Partitions};
use super::registry::Registry;
use super::{LaneId, Priority, lane_ids, priorities};
use crate::alert::AlertManager;
use crate::error::{ConfigErrors, Result};
use crate::event::EventEmitter;
use crate::executor::Executor;
use crate::metrics::QueueMetrics;
use crate::storage::{CRASHES_KEPT, Storage};
use crate::trace::Tracer;

/// Configures a [`QueueManager`].
#[must_use]
pub struct QueueManagerBuilder {
    events: EventEmitter,
    lanes: Vec<(LaneId, LaneConfig, Priority)>,
    defaults: Vec<(&'static str, LaneConfig, Priority)>,
    executor: Option<Executor>,
    dead_letters: Option<DeadLetterQueue>,
    max_in_flight: Option<usize>,
    storage: Option<Arc<dyn Storage>>,
    registry: Registry<dyn Recovered>,
    recovers: bool,
    crash_limit: CrashLimit,
    window: Window,
    metrics: Option<QueueMetrics>,
    alerts: Option<Arc<AlertManager>>,
    tracer: Option<Arc<dyn Tracer>>,
    partitions: PartitionConfig,
    partitioner: Option<Arc<dyn Partitioner>>,
}

impl QueueManagerBuilder {
    /// A queue whose events go to `events`.
    pub fn new(events: EventEmitter) -> Self {
        Self {
            events,
            lanes: Vec::new(),
            defaults: Vec::new(),
            executor: None,
            dead_letters: None,
            max_in_flight: None,
            storage: None,
            registry: Registry::default(),
            recovers: true,
            crash_limit: CrashLimit::default(),
            window: Window::default(),
            metrics: None,
            alerts: None,
            tracer: None,
            partitions: PartitionConfig::none(),
            partitioner: None,
        }
    }

    /// Adds a lane. `priority` 0 is the best, 63 the worst; lanes of the same priority share fairly.
    pub fn with_lane(mut self, id: impl Into<LaneId>, config: LaneConfig, priority: Priority) -> Self {
        self.lanes.push((id.into(), config, priority));
        self
    }

    /// Adds the six default lanes: `system` (priority 0, max 5), `control` (1, 3), `query` (2, 10), `session` (3, 5),
    /// `skill` (4, 3) and `prompt` (5, 2), each with min 1. A lane given by [`QueueManagerBuilder::with_lane`] under one
    /// of these names, before or after, takes the place of the default one.
    pub fn with_default_lanes(mut self) -> Self {
        let defaults = [
            (lane_ids::SYSTEM, 5, priorities::SYSTEM),
            (lane_ids::CONTROL, 3, priorities::CONTROL),
            (lane_ids::QUERY, 10, priorities::QUERY),
            (lane_ids::SESSION, 5, priorities::SESSION),
            (lane_ids::SKILL, 3, priorities::SKILL),
            (lane_ids::PROMPT, 2, priorities::PROMPT),
        ];
        self.defaults =
            defaults.into_iter().map(|(id, max, priority)| (id, LaneConfig::new(1, max), priority)).collect();
        self
    }

    /// Runs commands on `executor` instead of [`Executor::global`].
    pub fn with_executor(mut self, executor: Executor) -> Self {
        self.executor = Some(executor);
        self
    }

    /// Keeps commands that are given up as dead letters: in `letters`, or in a queue of that size.
    pub fn with_dlq(mut self, letters: impl Into<DeadLetterQueue>) -> Self {
        self.dead_letters = Some(letters.into());
        self
    }

    /// Measures the queue. Several queues may have the same metrics: see [`QueueMetrics`].
    pub fn with_metrics(mut self, metrics: QueueMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Has the queue's numbers judged by the rules of `alerts`, at each reading: once a second, unless the queue's
    /// [metrics](QueueManagerBuilder::with_metrics) have another interval. A queue without metrics gets those that all such
    /// queues of `alerts` have together.
    pub fn with_alerts(mut self, alerts: Arc<AlertManager>) -> Self {
        self.alerts = Some(alerts);
        self
    }

    /// Traces commands: see [`Tracer`](crate::Tracer), and `OtelTracer` of the feature `otel`. Commands of such a queue each have a
    /// second allocation.
    pub fn with_tracer(mut self, tracer: Arc<dyn Tracer>) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Gives each command a home among the workers: partition `i` is that of worker `i`, modulo their number. With
    /// [`PartitionConfig::hash`], commands of one [key](crate::SubmitOptions::key), or of one type where they have none, begin on
    /// the same worker, where what they work on may still be in its caches; another worker only takes them when it has nothing of
    /// its own to do. Priorities go before homes. Default: [`PartitionConfig::none`], a command begins where it is cheapest.
    ///
    /// A partitioned queue's commands cost more than plain ones: see `benches/compare`.
    pub fn with_partitions(mut self, partitions: PartitionConfig) -> Self {
        self.partitions = partitions;
        self
    }

    /// As [`QueueManagerBuilder::with_partitions`], by a partitioner of your own. One that panics gives the command no home.
    pub fn with_partitioner(mut self, partitions: PartitionConfig, partitioner: Arc<dyn Partitioner>) -> Self {
        self.partitioner = Some(partitioner);
        self.with_partitions(partitions)
    }

    /// Runs at most `commands` of all lanes together at the same time. Each lane's `min_concurrency` is held back for it; the
    /// rest goes to the lanes that want it, the best first. A command that another one awaits is not held back, and one that
    /// has stopped waiting goes on at once: so more may run, by as many as have submitted and awaited others.
    pub fn with_max_in_flight(mut self, commands: usize) -> Self {
        self.max_in_flight = Some(commands);
        self
    }

    /// Stores commands: lanes are durable then, unless [their settings](LaneConfig::with_durability) say otherwise. What the
    /// store has from the process before is taken over by [`QueueManagerBuilder::build`].
    ///
    /// One queue to a store.
    pub fn with_storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Says how stored commands of type `C` are made again.
    pub fn with_durable<C: DurableCommand>(mut self) -> Self {
        self.registry.add_durable::<C>();
        self
    }

    /// Says how stored commands of a type are made again: boxed ones, from their [`Command::payload`]. The first argument is
    /// [`StoredCommand::payload_version`](crate::StoredCommand), which is 1 for these.
    ///
    /// An error sends the command to the dead letters.
    pub fn with_constructor(
        mut self,
        command_type: impl Into<String>,
        make: impl Fn(u32, serde_json::Value) -> Result<Box<dyn Command>> + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_boxed(command_type.into(), make);
        self
    }

    /// Whether stored commands run again. With false they stay stored and are [reported](QueueManager::recovery). Default:
    /// true.
    pub fn with_recovery(mut self, recovers: bool) -> Self {
        self.recovers = recovers;
        self
    }

    /// Gives a stored command up when it was running at `crashes` unclean ends of the process `within` this time. One end
    /// before that, it runs alone first, so that nobody else is given up for what it does. At least 2. Default: 3 within 72
    /// hours.
    pub fn with_crash_limit(mut self, crashes: u32, within: Duration) -> Self {
        self.crash_limit = CrashLimit { crashes, within };
        self
    }

    /// How long [idempotency keys](crate::SubmitOptions::idempotency_key) are remembered after their commands have ended well,
    /// and how many. When there are as many, submissions with new keys are refused: none is forgotten before its time. Default:
    /// 24 hours, 1,000,000 keys.
    pub fn with_idempotency_window(mut self, time: Duration, keys: usize) -> Self {
        self.window = Window { time, keys };
        self
    }

    /// Builds the queue. Commands may be submitted at once; they run after [`QueueManager::start`]. Waits only for
    /// [a store](QueueManagerBuilder::with_storage), of which it takes over what the process before has left: that stands in its
    /// lanes before anything new. Where the feature `tokio` is on, commands see the tokio runtime that is current here.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError) with every problem found;
    /// [`LaneError::Storage`](crate::LaneError::Storage) if the store can not be read.
    pub async fn build(self) -> Result<QueueManager> {
        let mut errors = ConfigErrors::default();
        check_store(&self, &mut errors);
        self.partitions.check_into(&mut errors);
        let partitions = Partitions::new(&self.partitions, self.partitioner);
        let executor = self.executor.unwrap_or_else(|| Executor::global().clone());
        let pool = self.max_in_flight.map(|limit| Arc::new(SharedPool::new(limit)));
        let (events, registry) = (self.events.clone(), self.registry);
        let store = self.storage.map(|storage| Store::new(storage, registry, self.window, executor.clone(), events));
        let queue = CommandQueue::of(Parts {
            executor,
            events: self.events,
            dead_letters: self.dead_letters,
            pool,
            store: store.clone(),
            metrics: self.metrics,
            alerts: self.alerts,
            tracer: self.tracer,
            partitions,
        });
        let given = self.lanes;
        let defaults = self.defaults.into_iter().filter(|(id, ..)| !given.iter().any(|(other, ..)| other == id));
        let defaults = defaults.map(|(id, config, priority)| Lane::new(id, config, priority)).collect::<Vec<_>>();
        let given = given.iter().map(|(id, config, priority)| Lane::new(id.as_str(), config.clone(), *priority));
        queue.register_checked(defaults.into_iter().chain(given).collect(), errors)?;
        if let Some(store) = store {
            recover(&queue, &store, self.crash_limit, self.recovers).await?;
        }
        Ok(QueueManager::new(Arc::new(queue)))
    }
}

/// What only makes sense with a store, and what does not.
fn check_store(builder: &QueueManagerBuilder, errors: &mut ConfigErrors) {
    for double in builder.registry.doubles() {
        let hint = "is registered twice: give each command type one constructor";
        errors.push(format!("commands[{double:?}]"), double, hint);
    }
    if builder.storage.is_none() && !builder.registry.is_empty() {
        let hint = "commands are made again from a store: give the builder one, with_storage(..)";
        errors.push("storage", "none", hint);
    }
    let CrashLimit { crashes, within } = builder.crash_limit;
    if crashes < 2 {
        let hint = "use at least 2: with 1, everything that runs when the process dies would be given up";
        errors.push("crash_limit.crashes", crashes, hint);
    }
    if crashes as usize > CRASHES_KEPT {
        errors.push("crash_limit.crashes", crashes, format!("use at most {CRASHES_KEPT}: that many are remembered"));
    }
    if within.is_zero() {
        errors.push("crash_limit.within", within, "use more than zero: nothing would ever count");
    }
    if builder.window.keys == 0 {
        errors.push("idempotency_window.keys", 0, "use at least 1: no submission with a key would be accepted");
    }
}

impl fmt::Debug for QueueManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManagerBuilder")
            .field("lanes", &self.lanes)
            .field("durable", &self.registry)
            .finish_non_exhaustive()
    }
}
