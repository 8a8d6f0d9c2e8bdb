//! The token bucket: a burst at once, then one token each interval, in one word.
//!
//! The word says when the bucket is full again if nothing more is taken (the generic cell rate algorithm). Taking a token
//! moves that one interval on, and is refused if it would be more than a whole bucket away. So nothing refills, an idle
//! bucket stays full, and time that does not amount to a token yet is never lost. Called by `rate` with the time; knows
//! no clock. Never: commands with stamps from `t` to `t + d` cost more than the burst and `d` times the rate, whatever the
//! interleaving and even if threads read clocks that differ. `loom-tests/rate.rs` tries to break it.
//!
//! Why that holds: each admission leaves the word at most a bucket after its own stamp, and at least its price after both
//! its own stamp and the word before. Of the admissions in question, let `i` be the first and `j` the last that wrote the
//! word. All prices between are part of the way from `i`'s stamp to the word after `j`, which is at most `j`'s stamp and a
//! bucket.
//!
//! There is no refund. The word does not say whether the token would have been refilled meanwhile, in which case giving it
//! back would be one too many. A lane takes a token with the command in hand instead.

use std::fmt;

use super::rate::{RateLimitConfig, SPAN_MAX, nanos};
use crate::clock::Tick;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The most bits that a unit of time is finer than a nanosecond: leaves 36 years for ticks.
const FINENESS_MAX: u32 = 4;

/// The part of an interval that rounding may add to it, as one in so many.
const ROUNDING: u128 = 10_000;

/// Admits a burst at once and then commands at a steady rate.
///
/// A full bucket has [`RateLimitConfig::burst`] tokens, `max_commands` unless set otherwise; a command takes one, and
/// `max_commands` come back during each `window`, evenly. So an idle limiter lets a burst pass, and in the window after
/// it `max_commands` more; where no window may ever see more than `max_commands`, use a
/// [`SlidingWindowLimiter`](crate::SlidingWindowLimiter).
///
/// The rate is never exceeded. It is less than `max_commands` in a window by at most one part in 10,000 up to a million
/// commands a second, since the interval is rounded up to a sixteenth of a nanosecond where it is not a whole number.
///
/// Lock-free: nobody waits for a thread that was interrupted; a call repeats its one compare-exchange only if another
/// call was admitted meanwhile. A refusal writes nothing. One word of state, whatever the rate.
pub struct TokenBucketLimiter {
    /// When the bucket is full again, in units. In the past: it is full.
    full_at: AtomicU64,
    /// Units in which one token comes back.
    interval: u64,
    /// Units in which an empty bucket fills.
    bucket: u64,
    /// A unit is a nanosecond divided by two to this power.
    fineness: u32,
    capacity: u64,
    refill_rate: f64,
}

impl TokenBucketLimiter {
    /// A full bucket. Values that [`RateLimiter::new`](crate::RateLimiter::new) refuses are brought into range: at least
    /// one command, one token and one nanosecond, at most nine years.
    #[must_use]
    pub fn new(config: &RateLimitConfig) -> Self {
        let max_commands = config.max_commands.max(1);
        let window = nanos(config.window).clamp(1, SPAN_MAX);
        let interval_at = |fineness: u32| (u128::from(window) << fineness).div_ceil(u128::from(max_commands));
        // As coarse as the rate allows, so that ticks can go as far as possible.
        let exact_enough = |fineness: &u32| {
            let (window, rounded) = (u128::from(window) << fineness, interval_at(*fineness) * u128::from(max_commands));
            (rounded - window) * ROUNDING <= window
        };
        let fineness = (0..FINENESS_MAX).find(exact_enough).unwrap_or(FINENESS_MAX);
        // At most the window in units: fits.
        let interval = interval_at(fineness) as u64;
        let longest = SPAN_MAX << FINENESS_MAX;
        let capacity = config.burst.unwrap_or(max_commands).clamp(1, longest / interval);
        Self {
            full_at: AtomicU64::new(0),
            interval,
            bucket: interval * capacity,
            fineness,
            capacity,
            refill_rate: max_commands as f64 * 1e9 / window as f64,
        }
    }

    /// Takes `cost` tokens, or none and says when there will be enough: [`Tick::NEVER`] if the bucket is too small.
    pub(crate) fn take(&self, now: Tick, cost: u32) -> Result<(), Tick> {
        if u64::from(cost) > self.capacity {
            return Err(Tick::NEVER);
        }
        let price = self.interval * u64::from(cost);
        let now = self.units(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let after = full_at.max(now).saturating_add(price);
            if after > now.saturating_add(self.bucket) {
                return Err(self.tick(after - self.bucket));
            }
            // Relaxed: the word is all there is, and nobody learns from it what another thread wrote elsewhere.
            match self.full_at.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(found) => full_at = found,
            }
        }
    }

    /// Whole tokens that are there at `now`.
    pub(crate) fn available_at(&self, now: Tick) -> u64 {
        let missing = self.full_at.load(Ordering::Relaxed).saturating_sub(self.units(now));
        self.bucket.saturating_sub(missing) / self.interval
    }

    /// The most tokens that the bucket holds: the burst.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Tokens that come back in a second.
    #[must_use]
    pub fn refill_rate(&self) -> f64 {
        self.refill_rate
    }

    /// Saturates at the end of time, where everything is admitted: better than to refuse for ever.
    fn units(&self, tick: Tick) -> u64 {
        tick.as_nanos().min(u64::MAX >> self.fineness) << self.fineness
    }

    /// The first tick that is not before `units`.
    fn tick(&self, units: u64) -> Tick {
        let down = units >> self.fineness;
        Tick::from_nanos(down + u64::from(down << self.fineness < units))
    }
}

impl fmt::Debug for TokenBucketLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity, refill_rate, .. } = self;
        f.debug_struct("TokenBucketLimiter")
            .field("capacity", capacity)
            .field("refill_rate", refill_rate)
            .finish_non_exhaustive()
    }
}
