//! Metrics: what queues have done and how long it took, at nearly no cost to them.
//!
//! | file | what it knows |
//! |---|---|
//! | `meter` | what a lane calls |
//! | `shard` | what one thread counts of one lane: words with one writer |
//! | `histogram` | distributions of durations |
//! | `collector` | adds the shards up, at most once per interval, for everybody |
//! | `reading` | what they add up to: typed |
//! | `backend` | the seed's form: names and values, for backends of your own |
//! | `push` | hands backends what has come since the last time |
//! | `manual` | what a program records by hand, and asks backends for |
//!
//! Nothing here is shared between threads that count. A reading is made by one collector and handed to all who want one:
//! exporters, alerts, backends.

mod backend;
mod collector;
mod histogram;
mod manual;
mod meter;
mod push;
mod reading;
mod shard;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::clock::Clock;
use collector::Collector;
use push::Feed;

pub use backend::{HistogramPercentiles, HistogramStats, LocalMetrics, MetricsBackend, MetricsSnapshot, metric_names};
pub(crate) use collector::{LanePresent, Present, Source};
pub use histogram::Histogram;
pub use meter::MetricsLevel;
pub(crate) use meter::{LaneMeter, Since};
pub use reading::{CommandTypeReading, DeadLettered, Finished, LaneReading, Reading, RejectedCounts, WorkerReading};
pub(crate) use shard::Count;

/// The name that command types beyond the cap have.
pub const OTHER_TYPES: &str = "__other__";

/// How often numbers are collected unless something else is said.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Somebody who is given every reading that the collector makes, on the collector's thread: must not wait.
pub(crate) trait Consumer: Send + Sync {
    fn consume(&self, reading: &Arc<Reading>);
}

/// Measures the queues that it is given to, by [`QueueManagerBuilder::with_metrics`](crate::QueueManagerBuilder::with_metrics).
/// Clones are the same; several queues may have one, whose lanes of the same name are then counted as one: give queues that
/// come and go, one for each connection, the same.
///
/// A queue with metrics counts in words that only one thread writes, and takes three times per command. A thread of its own
/// makes a [`Reading`] of that once per interval.
#[derive(Clone)]
pub struct QueueMetrics {
    collector: Arc<Collector>,
    feed: Arc<Feed>,
}

impl QueueMetrics {
    /// Keeps numbers in this process, for [`QueueMetrics::snapshot`] and [`QueueMetrics::reading`].
    #[must_use]
    pub fn local() -> Self {
        Self::fed_by(Collector::new(DEFAULT_INTERVAL, 0), Feed::local())
    }

    /// Hands numbers to `backend` as well: what has come since the last time, once per interval of collection.
    #[must_use]
    pub fn new(backend: Arc<dyn MetricsBackend>) -> Self {
        Self::fed_by(Collector::new(DEFAULT_INTERVAL, 0), Feed::new(backend))
    }

    fn fed_by(collector: Collector, feed: Feed) -> Self {
        let feed = Arc::new(feed);
        let consumer: Weak<dyn Consumer> = Arc::downgrade(&feed) as _;
        collector.add_consumer(consumer);
        Self { collector: Arc::new(collector), feed }
    }

    /// Measures as much as `level` says. Default: [`MetricsLevel::Full`].
    #[must_use]
    pub fn with_level(self, level: MetricsLevel) -> Self {
        self.set_level(level);
        self
    }

    /// Measures as much as `level` says from now on.
    pub fn set_level(&self, level: MetricsLevel) {
        self.collector.set_level(level);
    }

    /// How much is measured.
    #[must_use]
    pub fn level(&self) -> MetricsLevel {
        self.collector.level()
    }

    /// Collects once per `interval`: at least 10 ms. Default: 1 s. To be said before a queue is given this: it begins anew.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(10));
        self.with_collector(|collector| Collector::new(interval, collector.types()))
    }

    /// Also counts by command type: the first `cap` types of each lane, the others together as [`OTHER_TYPES`]. Costs each
    /// command a lock that is read. Default: 0, not. To be said before a queue is given this: it begins anew.
    #[must_use]
    pub fn with_command_types(self, cap: usize) -> Self {
        self.with_collector(|collector| Collector::new(collector.interval(), cap))
    }

    fn with_collector(self, change: impl FnOnce(&Collector) -> Collector) -> Self {
        let collector = change(&self.collector);
        collector.set_level(self.collector.level());
        Self::fed_by(collector, self.feed.anew())
    }

    /// The interval of collection.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.collector.interval()
    }

    /// The numbers, at most 250 ms old: one reading is shared by all who ask.
    #[must_use]
    pub fn reading(&self) -> Arc<Reading> {
        self.collector.recent()
    }

    /// The numbers as they are now.
    #[must_use]
    pub fn collect(&self) -> Arc<Reading> {
        self.collector.collect()
    }

    /// Has `consumer` given every reading from now on, until it is dropped.
    pub(crate) fn attach(&self, consumer: Weak<dyn Consumer>) {
        self.collector.add_consumer(consumer);
    }

    /// Tells it from others, as long as there is a clone.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.collector).addr()
    }

    pub(crate) fn meter(&self, lane: &Arc<str>) -> Arc<LaneMeter> {
        self.collector.meter(lane)
    }

    pub(crate) fn add_source(&self, source: Weak<dyn Source>, clock: &Clock) {
        self.collector.add_source(source, clock);
    }

    pub(crate) fn count_storage_error(&self) {
        self.collector.count_storage_error();
    }

    /// What collects in virtual time: gone with this.
    pub(crate) fn downgrade(&self) -> Ticks {
        Ticks(Arc::downgrade(&self.collector))
    }
}

/// Has readings made by somebody else than the collector's own thread.
pub(crate) struct Ticks(Weak<Collector>);

impl Ticks {
    /// Makes a reading; false once nobody wants one any more.
    pub(crate) fn tick(&self) -> bool {
        self.0.upgrade().map(|collector| collector.collect()).is_some()
    }
}

impl fmt::Debug for QueueMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueMetrics").field("level", &self.level()).finish_non_exhaustive()
    }
}
