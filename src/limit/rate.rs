//! Rate limits: what is asked for, whether that makes sense, and one limiter for whichever algorithm was chosen.
//!
//! Lanes call [`RateLimiter::take`] with a command in hand and the time; it answers at once, and a refusal says when to ask
//! again, so nobody polls. Never: a refusal costs anything; what was paused is admitted before the end of the pause. The
//! algorithms, with the proofs that they hold, are in `token_bucket` and `sliding_window`.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sliding_window::SlidingWindowLimiter;
use super::token_bucket::TokenBucketLimiter;
use crate::clock::Tick;
use crate::error::ConfigErrors;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The longest window and the longest time to fill a bucket, in nanoseconds: nine years. Leaves room for sums of them.
pub(super) const SPAN_MAX: u64 = 1 << 58;

/// The shortest mean time between commands, in nanoseconds. Below, reading the clock takes longer.
const INTERVAL_MIN: u64 = 10;

/// How many commands may start in which time. Default: [`RateLimitConfig::unlimited`].
///
/// With serde, `algorithm` and `burst` may be left out; `window` is `{ "secs": 60, "nanos": 0 }`.
///
/// ```
/// use corelane::RateLimitConfig;
///
/// let provider = RateLimitConfig::per_minute(600).with_burst(20);
/// let strict = RateLimitConfig::per_second(5).sliding_window();
/// # let _ = (provider, strict);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RateLimitConfig {
    /// Commands for each window: at least 1. `u64::MAX` means no limit.
    pub max_commands: u64,
    /// The time in which `max_commands` may start: more than zero, up to nine years.
    pub window: Duration,
    /// How commands are counted. Default: [`RateAlgorithm::TokenBucket`].
    #[serde(default)]
    pub algorithm: RateAlgorithm,
    /// Commands that may start at once after a pause, with [`RateAlgorithm::TokenBucket`]. Default: `max_commands`.
    #[serde(default)]
    pub burst: Option<u64>,
}

/// How commands are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RateAlgorithm {
    /// A burst, then a steady rate: smooth, and a few bytes whatever the rate. A window may see a burst and `max_commands`.
    #[default]
    TokenBucket,
    /// Never more than `max_commands` in any window: for limits that somebody else counts. 8 bytes for each command of
    /// the limit.
    SlidingWindow,
}

impl RateLimitConfig {
    /// At most `max_commands` for each `window`. Checked when a limiter or a lane is made of it.
    #[must_use]
    pub fn new(max_commands: u64, window: Duration) -> Self {
        Self { max_commands, window, algorithm: RateAlgorithm::default(), burst: None }
    }

    /// At most `max_commands` each second.
    #[must_use]
    pub fn per_second(max_commands: u64) -> Self {
        Self::new(max_commands, Duration::from_secs(1))
    }

    /// At most `max_commands` each minute.
    #[must_use]
    pub fn per_minute(max_commands: u64) -> Self {
        Self::new(max_commands, Duration::from_secs(60))
    }

    /// At most `max_commands` each hour.
    #[must_use]
    pub fn per_hour(max_commands: u64) -> Self {
        Self::new(max_commands, Duration::from_secs(3600))
    }

    /// No limit: no limiter is made of it.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::per_second(u64::MAX)
    }

    /// Counts by [`RateAlgorithm::SlidingWindow`].
    #[must_use]
    pub fn sliding_window(self) -> Self {
        self.with_algorithm(RateAlgorithm::SlidingWindow)
    }

    /// Counts by `algorithm`.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: RateAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Lets `burst` commands start at once after a pause: less than `max_commands` smooths, more allows to catch up.
    #[must_use]
    pub fn with_burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    pub(crate) fn is_unlimited(&self) -> bool {
        self.max_commands == u64::MAX
    }

    /// Adds what is wrong to `errors`; `path` is where the limit stands.
    pub(crate) fn check(&self, path: &str, errors: &mut ConfigErrors) {
        if self.is_unlimited() {
            return;
        }
        let Self { max_commands, window, algorithm, burst } = self;
        if *max_commands == 0 {
            let hint = "use at least 1: with 0 no command would ever run; to hold a lane back, pause it";
            errors.push(format!("{path}.max_commands"), max_commands, hint);
        }
        if window.is_zero() {
            errors.push(format!("{path}.window"), window, "use more than zero, or `RateLimitConfig::unlimited()`");
        }
        if nanos(*window) > SPAN_MAX {
            errors.push(format!("{path}.window"), window, "use at most nine years");
        } else if !window.is_zero() && *max_commands > nanos(*window) / INTERVAL_MIN {
            let hint = "use at most 100 commands for each microsecond of the window, or `RateLimitConfig::unlimited()`";
            errors.push(format!("{path}.max_commands"), max_commands, hint);
        }
        let Some(tokens) = *burst else { return };
        let path = format!("{path}.burst");
        if *algorithm != RateAlgorithm::TokenBucket {
            errors.push(path, tokens, "leave it out: only a token bucket has a burst besides its limit");
        } else if tokens == 0 {
            errors.push(path, tokens, "use at least 1: with 0 no command would ever run");
        } else if *max_commands > 0
            && u128::from(tokens) * window.as_nanos() > u128::from(SPAN_MAX) * u128::from(*max_commands)
        {
            errors.push(path, tokens, "use less: at this rate it would take more than nine years to come back");
        }
    }
}

/// Saturates: longer than the clock runs is for ever.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// Decides, command by command, whether one may start now.
///
/// A cheap handle: clones share the limit, and so may lanes and any number of threads. Lock-free: see
/// [`TokenBucketLimiter`] and [`SlidingWindowLimiter`].
///
/// ```
/// use corelane::{RateLimitConfig, RateLimiter};
///
/// # futures_lite::future::block_on(async {
/// let limiter = RateLimiter::new(&RateLimitConfig::per_hour(2))?;
/// assert!(limiter.try_acquire().await);
/// assert!(limiter.try_acquire().await);
/// assert!(!limiter.try_acquire().await);
/// # Ok::<(), corelane::ConfigErrors>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, Default)]
pub struct RateLimiter {
    shared: Arc<Shared>,
}

/// Equal are clones of each other, which share their limit.
impl PartialEq for RateLimiter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for RateLimiter {}

#[derive(Debug, Default)]
struct Shared {
    algorithm: Algorithm,
    /// Nothing is admitted before this, in nanoseconds. Zero, or in the past: not paused.
    paused_until: AtomicU64,
}

#[derive(Debug, Default)]
enum Algorithm {
    TokenBucket(TokenBucketLimiter),
    SlidingWindow(SlidingWindowLimiter),
    #[default]
    Unlimited,
}

impl RateLimiter {
    /// A limiter by the algorithm that `config` names, with its whole burst to give.
    ///
    /// # Errors
    ///
    /// All problems of `config` at once.
    pub fn new(config: &RateLimitConfig) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        config.check("rate_limit", &mut errors);
        errors.into_result()?;
        Ok(match config.algorithm {
            RateAlgorithm::TokenBucket => Self::token_bucket(config),
            RateAlgorithm::SlidingWindow => Self::sliding_window(config),
        })
    }

    /// A token bucket, whatever algorithm `config` names. Brings values into range that [`RateLimiter::new`] refuses.
    #[must_use]
    pub fn token_bucket(config: &RateLimitConfig) -> Self {
        Self::of(config, |config| Algorithm::TokenBucket(TokenBucketLimiter::new(config)))
    }

    /// A sliding window, whatever algorithm `config` names. Brings values into range that [`RateLimiter::new`] refuses.
    #[must_use]
    pub fn sliding_window(config: &RateLimitConfig) -> Self {
        Self::of(config, |config| Algorithm::SlidingWindow(SlidingWindowLimiter::new(config)))
    }

    /// Admits everything, unless paused. This is the default.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    fn of(config: &RateLimitConfig, algorithm: impl Fn(&RateLimitConfig) -> Algorithm) -> Self {
        let algorithm = if config.is_unlimited() { Algorithm::Unlimited } else { algorithm(config) };
        Self { shared: Arc::new(Shared { algorithm, paused_until: AtomicU64::new(0) }) }
    }

    /// Admits a command of `cost` and charges for it. Or refuses, charges nothing, and says when to ask again: later than
    /// `now`, and [`Tick::NEVER`] if `cost` is more than [`RateLimiter::largest_cost`].
    ///
    /// Who asks then is admitted unless others were first, or their clocks are ahead.
    pub(crate) fn take(&self, now: Tick, cost: u32) -> Result<(), Tick> {
        // Relaxed: who was told of the pause, by whatever means, sees it; for anybody else this was before it.
        let paused_until = Tick::from_nanos(self.shared.paused_until.load(Ordering::Relaxed));
        if now < paused_until {
            return Err(paused_until);
        }
        match &self.shared.algorithm {
            Algorithm::TokenBucket(limiter) => limiter.take(now, cost),
            Algorithm::SlidingWindow(limiter) => limiter.take(now, cost),
            Algorithm::Unlimited => Ok(()),
        }
    }

    /// The largest cost that one command can have: the whole burst, or the whole window. It could never start if it cost
    /// more.
    #[must_use]
    pub fn largest_cost(&self) -> u64 {
        match &self.shared.algorithm {
            Algorithm::TokenBucket(limiter) => limiter.capacity(),
            Algorithm::SlidingWindow(limiter) => limiter.largest_cost(),
            Algorithm::Unlimited => u64::MAX,
        }
    }

    /// Admits nothing before `until`; a pause that lasts longer goes on.
    pub(crate) fn pause_until(&self, until: Tick) {
        self.shared.paused_until.fetch_max(until.as_nanos(), Ordering::Relaxed);
    }

    /// Ends a pause. Who was told when it would end may still wait until then.
    pub fn resume(&self) {
        self.shared.paused_until.store(0, Ordering::Relaxed);
    }
}
