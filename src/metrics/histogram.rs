//! Distributions of durations: log-linear buckets, the same everywhere, so that those of several workers, queues and processes
//! can be added and subtracted exactly.
//!
//! Values below [`LINEAR`] nanoseconds have a bucket each; every power of two above has [`LINEAR`] buckets of equal width. So a
//! bucket is at most 1/32 (3.1 %) of its values wide. The geometry is that of the h2 histogram and of HDR histograms.

use std::fmt;
use std::time::Duration;

/// Buckets per power of two, as a power of two.
const PRECISION: u32 = 5;
/// Buckets per power of two.
const LINEAR: u64 = 1 << PRECISION;
/// Values are below 2 to this, in nanoseconds: 19.5 hours. Longer ones count as the longest.
const RANGE: u32 = 46;
/// Number of buckets.
pub(crate) const BUCKETS: usize = ((RANGE - PRECISION + 1) << PRECISION) as usize;

/// The bucket of a value.
#[inline]
pub(crate) const fn bucket_of(nanos: u64) -> usize {
    // The lowest bit of the linear part is set, so that small values have a leading one.
    let magnitude = 63 - (nanos | LINEAR).leading_zeros();
    let shift = magnitude - PRECISION;
    let bucket = ((shift as usize) << PRECISION) + (nanos >> shift) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The smallest and the largest value of a bucket, in nanoseconds.
const fn bounds(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    if bucket < 2 * LINEAR {
        return (bucket, bucket);
    }
    let shift = (bucket >> PRECISION) - 1;
    let lowest = (LINEAR + (bucket & (LINEAR - 1))) << shift;
    (lowest, lowest + (1 << shift) - 1)
}

/// A distribution of durations: how many there were of each length, within 3.1 %. Up to 19.5 hours; longer ones count as that.
///
/// The sum, and with it the mean, is exact. Distributions can be [added](Histogram::add) and
/// [subtracted](Histogram::since) exactly; quantiles can not: take them last.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Without the empty buckets at the end.
    counts: Vec<u64>,
    count: u64,
    sum_nanos: u128,
}

impl Histogram {
    /// The most by which a reported duration differs from the true one, as a share of it.
    pub const RELATIVE_ERROR: f64 = 1.0 / LINEAR as f64;

    /// Without any duration.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: Vec::new(), count: 0, sum_nanos: 0 }
    }

    /// Adds `count` durations of this length.
    pub fn record(&mut self, duration: Duration, count: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.add_bucket(bucket_of(nanos), count);
        self.sum_nanos += u128::from(nanos) * u128::from(count);
    }

    /// Adds what a shard has in one bucket; the sum is added by [`Histogram::add_sum`].
    pub(crate) fn add_bucket(&mut self, bucket: usize, count: u64) {
        if count == 0 {
            return;
        }
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += count;
        self.count += count;
    }

    pub(crate) fn add_sum(&mut self, nanos: u64) {
        self.sum_nanos += u128::from(nanos);
    }

    /// Adds all of another one's durations.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in other.counts.iter().enumerate() {
            self.add_bucket(bucket, *count);
        }
        self.sum_nanos += other.sum_nanos;
    }

    /// What has come since `earlier`, an earlier state of this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self::new();
        for (bucket, count) in self.counts.iter().enumerate() {
            since.add_bucket(bucket, count.saturating_sub(earlier.counts.get(bucket).copied().unwrap_or(0)));
        }
        since.sum_nanos = self.sum_nanos.saturating_sub(earlier.sum_nanos);
        since
    }

    /// How many durations there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them together: exact.
    #[must_use]
    pub fn sum(&self) -> Duration {
        duration(self.sum_nanos)
    }

    /// Their mean: exact. Zero if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        duration(self.sum_nanos.checked_div(u128::from(self.count)).unwrap_or(0))
    }

    /// The shortest, or a little less; zero if there are none.
    #[must_use]
    pub fn min(&self) -> Duration {
        let bucket = self.counts.iter().position(|count| *count > 0);
        Duration::from_nanos(bucket.map_or(0, |bucket| bounds(bucket).0))
    }

    /// The longest, or a little more; zero if there are none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.counts.len().checked_sub(1).map_or(0, |bucket| bounds(bucket).1))
    }

    /// The duration that a share `q` (0 to 1) of all does not exceed, by nearest rank, or a little more; none if there are
    /// no durations.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        self.buckets().find_map(|(upper, count)| {
            seen += count;
            (seen >= rank).then_some(upper)
        })
    }

    /// How many are at most this long, as far as the buckets tell: those of the bucket that `limit` lies in do not count, unless
    /// it is the last of that bucket.
    #[must_use]
    pub fn count_at_most(&self, limit: Duration) -> u64 {
        self.buckets().take_while(|(upper, _)| *upper <= limit).map(|(_, count)| count).sum()
    }

    /// The buckets that are not empty, shortest first: the longest duration that counts there, and how many do.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (Duration::from_nanos(bounds(bucket).1), *count))
    }

    /// The buckets that are not empty, shortest first: the shortest and the longest duration that count there, in nanoseconds,
    /// and how many do.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (bounds(bucket).0, bounds(bucket).1, *count))
    }
}

fn duration(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, (nanos % SECOND) as u32)
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_whose_bounds_hold_it() {
        let mut value = 0u64;
        while value < 1 << RANGE {
            for value in [value, value + 1, value.saturating_sub(1)] {
                let bucket = bucket_of(value.min((1 << RANGE) - 1));
                let (lowest, highest) = bounds(bucket);
                assert!((lowest..=highest).contains(&value.min((1 << RANGE) - 1)), "{value}: {bucket}");
                assert!((highest - lowest) as f64 <= lowest as f64 * Histogram::RELATIVE_ERROR);
            }
            value = value * 9 / 8 + 1;
        }
        assert_eq!(bucket_of((1 << RANGE) - 1), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 1..BUCKETS {
            assert_eq!(bounds(bucket - 1).1 + 1, bounds(bucket).0);
        }
    }
}
