//! The form in which a3s-lane gives metrics: names and values.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

/// Where metrics go to, by name; the trait of a3s-lane.
///
/// A queue hands over what has come since the last time, once per
/// [interval](super::QueueMetrics::with_interval) and from one thread of its own: calls may take their time. While one
/// does, nothing waits for it but who [asks for a snapshot](super::QueueMetrics::snapshot). What has come meanwhile is
/// handed over afterwards, added up. If a call panics, what it was to hand over is lost, and the next one is made.
#[async_trait]
pub trait MetricsBackend: Send + Sync {
    /// Adds to a counter.
    async fn increment_counter(&self, name: &str, value: u64);

    /// Sets a gauge.
    async fn set_gauge(&self, name: &str, value: f64);

    /// Records a value of a distribution; of times, in milliseconds.
    async fn record_histogram(&self, name: &str, value: f64);

    /// Records a value `count` times: what the queue hands over is counted by buckets. Default: calls
    /// [`MetricsBackend::record_histogram`] as often. That is once for every command: a backend that can count should.
    async fn record_histogram_many(&self, name: &str, value: f64, count: u64) {
        for _ in 0..count {
            self.record_histogram(name, value).await;
        }
    }

    /// A counter's value; none if it is not known.
    async fn get_counter(&self, name: &str) -> Option<u64>;

    /// A gauge's value; none if it is not known.
    async fn get_gauge(&self, name: &str) -> Option<f64>;

    /// What is known of a distribution; none if it is not known.
    async fn get_histogram_stats(&self, name: &str) -> Option<HistogramStats>;

    /// Forgets everything.
    async fn reset(&self);

    /// Everything, now.
    async fn snapshot(&self) -> MetricsSnapshot;
}

/// What is known of a distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramStats {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The smallest; without any, [`f64::MAX`].
    pub min: f64,
    /// The largest; without any, [`f64::MIN`].
    pub max: f64,
    /// Their mean; without any, 0.
    pub mean: f64,
    /// Some quantiles.
    pub percentiles: HistogramPercentiles,
}

impl HistogramStats {
    /// Of no values.
    #[must_use]
    pub const fn new() -> Self {
        let percentiles = HistogramPercentiles { p50: 0.0, p90: 0.0, p95: 0.0, p99: 0.0 };
        Self { count: 0, sum: 0.0, min: f64::MAX, max: f64::MIN, mean: 0.0, percentiles }
    }
}

impl Default for HistogramStats {
    fn default() -> Self {
        Self::new()
    }
}

/// Quantiles of a distribution, by nearest rank; without any values, 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramPercentiles {
    /// The median: 50 % are at most this.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// 99 % are at most this.
    pub p99: f64,
}

/// All metrics at one time, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    /// Counters.
    pub counters: HashMap<String, u64>,
    /// Gauges.
    pub gauges: HashMap<String, f64>,
    /// Distributions.
    pub histograms: HashMap<String, HistogramStats>,
}

/// Keeps metrics in this process, by name, until they are reset: the memory it takes is bounded by the number of names.
///
/// Quantiles are values that were recorded: the one at that rank, or one that is larger by at most 0.8 %. As many commands as you
/// like take no more memory than [128 buckets](MetricsBackend::record_histogram) per power of two. All else is exact, as far as
/// an `f64` is. In distributions, values that are not finite are left out, as they would spoil the sum; negative ones
/// count like any other. Gauges may be anything.
#[derive(Debug, Default)]
pub struct LocalMetrics {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counters: HashMap<String, u64>,
    gauges: HashMap<String, f64>,
    distributions: HashMap<String, Distribution>,
}

impl LocalMetrics {
    /// Without any.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Held for one operation, none of which waits or calls anybody.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetricsBackend for LocalMetrics {
    async fn increment_counter(&self, name: &str, value: u64) {
        let mut state = self.state();
        let counter = entry(&mut state.counters, name);
        *counter = counter.saturating_add(value);
    }

    async fn set_gauge(&self, name: &str, value: f64) {
        *entry(&mut self.state().gauges, name) = value;
    }

    async fn record_histogram(&self, name: &str, value: f64) {
        self.record_histogram_many(name, value, 1).await;
    }

    async fn record_histogram_many(&self, name: &str, value: f64, count: u64) {
        if value.is_finite() && count > 0 {
            entry(&mut self.state().distributions, name).record(value, count);
        }
    }

    async fn get_counter(&self, name: &str) -> Option<u64> {
        self.state().counters.get(name).copied()
    }

    async fn get_gauge(&self, name: &str) -> Option<f64> {
        self.state().gauges.get(name).copied()
    }

    async fn get_histogram_stats(&self, name: &str) -> Option<HistogramStats> {
        self.state().distributions.get(name).map(Distribution::stats)
    }

    async fn reset(&self) {
        *self.state() = State::default();
    }

    async fn snapshot(&self) -> MetricsSnapshot {
        let state = self.state();
        let distributions = state.distributions.iter();
        MetricsSnapshot {
            counters: state.counters.clone(),
            gauges: state.gauges.clone(),
            histograms: distributions.map(|(name, distribution)| (name.clone(), distribution.stats())).collect(),
        }
    }
}

/// Allocates for a new name only.
fn entry<'a, V: Default>(map: &'a mut HashMap<String, V>, name: &str) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), V::default());
    }
    map.get_mut(name).expect("it is there or was put there")
}

/// Buckets per power of two, as a power of two.
const PRECISION: u32 = 7;

/// Finite values of any size and sign, in buckets that are at most 1/128 of their values wide.
#[derive(Debug, Default)]
struct Distribution {
    count: u64,
    sum: f64,
    buckets: BTreeMap<i32, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    count: u64,
    smallest: f64,
    largest: f64,
}

impl Distribution {
    fn record(&mut self, value: f64, count: u64) {
        self.count += count;
        self.sum += value * count as f64;
        let bucket =
            self.buckets.entry(bucket_of(value)).or_insert(Bucket { count: 0, smallest: value, largest: value });
        bucket.count += count;
        bucket.smallest = bucket.smallest.min(value);
        bucket.largest = bucket.largest.max(value);
    }

    fn stats(&self) -> HistogramStats {
        let (Some((_, first)), Some((_, last))) = (self.buckets.first_key_value(), self.buckets.last_key_value())
        else {
            return HistogramStats::new();
        };
        HistogramStats {
            count: self.count,
            sum: self.sum,
            min: first.smallest,
            max: last.largest,
            mean: self.sum / self.count as f64,
            percentiles: HistogramPercentiles {
                p50: self.at_percent(50),
                p90: self.at_percent(90),
                p95: self.at_percent(95),
                p99: self.at_percent(99),
            },
        }
    }

    /// By nearest rank; of the values in that bucket, the largest.
    fn at_percent(&self, percent: u128) -> f64 {
        let rank = (u128::from(self.count) * percent).div_ceil(100);
        let mut seen = 0;
        let found = self.buckets.values().find(|bucket| {
            seen += u128::from(bucket.count);
            seen >= rank
        });
        found.map_or(0.0, |bucket| bucket.largest)
    }
}

/// The bucket of a value: larger ones have larger numbers. The bits of a positive `f64` are its exponent, then its fraction: cut
/// off after the first bits of the fraction, they number log-linear buckets.
fn bucket_of(value: f64) -> i32 {
    let bucket = (value.abs().to_bits() >> (f64::MANTISSA_DIGITS - 1 - PRECISION)) as i32;
    if value < 0.0 { -1 - bucket } else { bucket }
}

/// The names of the metrics, as a3s-lane has them. Each is there for all lanes together, and for each lane: the name, a dot,
/// and the lane's name.
pub mod metric_names {
    /// Counter: commands accepted.
    pub const COMMANDS_SUBMITTED: &str = "lane.commands.submitted";
    /// Counter: commands that returned a value.
    pub const COMMANDS_COMPLETED: &str = "lane.commands.completed";
    /// Counter: commands that returned an error, panicked, or waited for too long, without another attempt.
    pub const COMMANDS_FAILED: &str = "lane.commands.failed";
    /// Counter: commands given up at their deadline, without another attempt. Not among those that failed.
    pub const COMMANDS_TIMEOUT: &str = "lane.commands.timeout";
    /// Counter: attempts that failed and were followed by another one.
    pub const COMMANDS_RETRIED: &str = "lane.commands.retried";
    /// Counter: commands given up and kept as dead letters.
    pub const COMMANDS_DEAD_LETTERED: &str = "lane.commands.dead_lettered";

    /// Gauge: commands accepted and not admitted.
    pub const QUEUE_DEPTH: &str = "lane.queue.depth";
    /// Gauge: commands admitted and not settled.
    pub const QUEUE_ACTIVE: &str = "lane.queue.active";

    /// Distribution: how long attempts ran, in milliseconds.
    pub const COMMAND_LATENCY: &str = "lane.command.latency_ms";
    /// Distribution: how long commands waited for their first start, in milliseconds.
    pub const COMMAND_WAIT_TIME: &str = "lane.command.wait_time_ms";
}

#[cfg(all(test, not(corelane_loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn stats(values: impl IntoIterator<Item = f64>) -> HistogramStats {
        let mut distribution = Distribution::default();
        values.into_iter().for_each(|value| distribution.record(value, 1));
        distribution.stats()
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        assert_eq!(stats([2.0, 1.0]).percentiles.p50, 1.0);
        assert_eq!(stats([7.5]).percentiles, HistogramPercentiles { p50: 7.5, p90: 7.5, p95: 7.5, p99: 7.5 });
        let hundred = stats((1..=100).map(f64::from));
        assert_eq!(hundred.percentiles, HistogramPercentiles { p50: 50.0, p90: 90.0, p95: 95.0, p99: 99.0 });
        assert_eq!((hundred.count, hundred.sum, hundred.mean), (100, 5050.0, 50.5));
        assert_eq!((hundred.min, hundred.max), (1.0, 100.0));
    }

    #[test]
    fn quantiles_are_recorded_values_within_the_stated_error_whatever_the_size_and_sign() {
        let mut state = 42u64;
        let mut values: Vec<f64> = (0..10_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let size = (state >> 40) as f64 / (1u64 << 24) as f64;
                let sign = if state & 1 << 33 == 0 { 1.0 } else { -1.0 };
                sign * 10f64.powf(size * 24.0 - 12.0)
            })
            .collect();
        let found = stats(values.iter().copied()).percentiles;
        values.sort_by(f64::total_cmp);
        for (percent, found) in [(50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)] {
            let exact = values[values.len() * percent / 100 - 1];
            assert!(found >= exact && found - exact <= exact.abs() / 128.0, "p{percent}: {found}, exactly {exact}");
            assert!(values.contains(&found));
        }
    }

    #[test]
    fn a_bucket_is_at_most_a_128th_of_its_values_wide_and_larger_values_are_in_later_ones() {
        let mut value = 1e-9;
        while value < 1e12 {
            assert_ne!(bucket_of(value), bucket_of(value * (1.0 + 1.0 / 127.0)));
            assert!(bucket_of(value) < bucket_of(value * 1.02) && bucket_of(-value) > bucket_of(-value * 1.02));
            assert!(bucket_of(-value) < bucket_of(0.0) && bucket_of(0.0) < bucket_of(value));
            value *= 1.003;
        }
        assert_eq!(bucket_of(-0.0), bucket_of(0.0));
    }

    #[test]
    fn what_is_kept_does_not_grow_with_what_is_recorded() {
        let mut distribution = Distribution::default();
        (0..1_000_000).for_each(|value| distribution.record(f64::from(value) / 1e3, 1));
        assert_eq!(distribution.count, 1_000_000);
        assert!(distribution.buckets.len() <= 21 * 128, "{}", distribution.buckets.len());
    }

    #[test]
    fn values_that_are_not_finite_are_left_out_of_distributions_and_kept_as_gauges() {
        let metrics = LocalMetrics::new();
        block_on(async {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                metrics.record_histogram("h", value).await;
                assert_eq!(metrics.get_histogram_stats("h").await, None);
                metrics.set_gauge("g", value).await;
                assert_eq!(metrics.get_gauge("g").await.map(f64::to_bits), Some(value.to_bits()));
            }
            metrics.record_histogram("h", -3.0).await;
            metrics.record_histogram_many("h", 1.0, 3).await;
            metrics.record_histogram_many("h", 9.0, 0).await;
            let stats = metrics.get_histogram_stats("h").await.unwrap();
            assert_eq!((stats.count, stats.sum, stats.min, stats.max, stats.mean), (4, 0.0, -3.0, 1.0, 0.0));
            metrics.increment_counter("c", u64::MAX).await;
            metrics.increment_counter("c", 1).await;
            assert_eq!(metrics.get_counter("c").await, Some(u64::MAX));
        });
    }

    #[test]
    fn a_snapshot_has_everything_and_a_reset_forgets_it() {
        let metrics = LocalMetrics::new();
        block_on(async {
            metrics.increment_counter("counter", 2).await;
            metrics.increment_counter("counter", 3).await;
            metrics.set_gauge("gauge", 42.0).await;
            metrics.record_histogram("histogram", 100.0).await;
            let snapshot = metrics.snapshot().await;
            assert_eq!(snapshot.counters, HashMap::from([("counter".to_owned(), 5)]));
            assert_eq!(snapshot.gauges, HashMap::from([("gauge".to_owned(), 42.0)]));
            assert_eq!(snapshot.histograms["histogram"], stats([100.0]));
            metrics.reset().await;
            assert_eq!(metrics.snapshot().await, MetricsSnapshot::default());
            assert_eq!(metrics.get_counter("counter").await, None);
        });
        assert_eq!(HistogramStats::default(), HistogramStats::new());
        assert_eq!(Distribution::default().stats(), HistogramStats::new());
    }
}
