//! The queue with its six default lanes, and a stop watch on every lane.

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use corelane::{
    CommandQueue, EventEmitter, Lane, LaneError, QueueManager, QueueManagerBuilder, Result, Ticket, TypedCommand,
    lane_ids,
};
use hdrhistogram::Histogram;

const LANES: [&str; 6] =
    [lane_ids::SYSTEM, lane_ids::CONTROL, lane_ids::QUERY, lane_ids::SESSION, lane_ids::SKILL, lane_ids::PROMPT];

/// Events that are kept for a subscriber that is behind; this example has none.
const EVENTS_KEPT: usize = 64;

/// The longest wait or run that the stop watches tell from a longer one.
const LONGEST: Duration = Duration::from_secs(3600);

pub(crate) struct Lanes {
    manager: QueueManager,
    watches: Vec<Arc<Watch>>,
}

impl Lanes {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let watches = LANES.into_iter().map(Watch::new).collect::<anyhow::Result<_>>()?;
        let manager = QueueManagerBuilder::new(EventEmitter::new(EVENTS_KEPT)).with_default_lanes().build().await?;
        manager.start().await?;
        Ok(Self { manager, watches })
    }

    /// Submits a command.
    pub(crate) fn submit<C: TypedCommand>(&self, lane_id: &str, command: C) -> Result<Ticket<C::Output>> {
        let watch = self.watch(lane_id)?;
        Ok(self.manager.submit_typed(lane_id, Timed { command, submitted: Instant::now(), watch })?)
    }

    /// Submits a closure that makes a future, which runs once.
    pub(crate) fn submit_once<F, Fut, T>(
        &self,
        lane_id: &str,
        command_type: impl Into<Cow<'static, str>>,
        make: F,
    ) -> Result<Ticket<T>>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send,
        T: Send + 'static,
    {
        let watch = self.watch(lane_id)?;
        let submitted = Instant::now();
        self.manager.submit_fn(lane_id, command_type, move || async move { watch.time(submitted, make()).await })
    }

    pub(crate) fn lane(&self, lane_id: &str) -> Result<Lane> {
        self.manager.lane(lane_id).ok_or_else(|| LaneError::LaneNotFound(lane_id.to_owned()))
    }

    pub(crate) fn queue(&self) -> Arc<CommandQueue> {
        self.manager.queue()
    }

    /// Accepts no more commands and waits for those there are; gives what the stop watches say, best lane first.
    pub(crate) async fn stop(self, limit: Duration) -> anyhow::Result<Vec<LaneTimes>> {
        self.manager.shutdown().await;
        self.manager.drain(limit).await.context("commands are still running at the end")?;
        Ok(self.watches.iter().map(|watch| watch.read()).collect())
    }

    fn watch(&self, lane_id: &str) -> Result<Arc<Watch>> {
        let watch = self.watches.iter().find(|watch| watch.lane_id == lane_id);
        watch.cloned().ok_or_else(|| LaneError::LaneNotFound(lane_id.to_owned()))
    }
}

/// How long the commands of a lane waited, and ran.
pub(crate) struct LaneTimes {
    pub(crate) lane_id: &'static str,
    pub(crate) commands: u64,
    pub(crate) wait: Percentiles,
    pub(crate) run: Percentiles,
}

pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// A command with a stop watch around it.
struct Timed<C> {
    command: C,
    submitted: Instant,
    watch: Arc<Watch>,
}

impl<C: TypedCommand> TypedCommand for Timed<C> {
    type Output = C::Output;

    async fn execute(&self) -> Result<C::Output> {
        self.watch.time(self.submitted, self.command.execute()).await
    }

    fn command_type(&self) -> &str {
        self.command.command_type()
    }
}

/// The stop watch of a lane.
struct Watch {
    lane_id: &'static str,
    times: Mutex<Times>,
}

/// In nanoseconds.
struct Times {
    wait: Histogram<u64>,
    run: Histogram<u64>,
}

impl Watch {
    fn new(lane_id: &'static str) -> anyhow::Result<Arc<Self>> {
        let histogram = || Histogram::new_with_bounds(1, nanos(LONGEST), 3).context("a histogram of times");
        Ok(Arc::new(Self { lane_id, times: Mutex::new(Times { wait: histogram()?, run: histogram()? }) }))
    }

    async fn time<T>(&self, submitted: Instant, attempt: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let output = attempt.await;
        let (wait, run) = (started - submitted, started.elapsed());
        let mut times = self.lock();
        times.wait.saturating_record(nanos(wait));
        times.run.saturating_record(nanos(run));
        output
    }

    fn read(&self) -> LaneTimes {
        let Times { wait, run } = &*self.lock();
        LaneTimes { lane_id: self.lane_id, commands: run.len(), wait: percentiles(wait), run: percentiles(run) }
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        // Nothing panics under this lock.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn percentiles(times: &Histogram<u64>) -> Percentiles {
    let at = |quantile| Duration::from_nanos(times.value_at_quantile(quantile));
    Percentiles { p50: at(0.5), p99: at(0.99) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
