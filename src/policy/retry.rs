//! When a failed command is tried again: the policy of a lane, the budget that keeps retries from becoming a storm, and
//! the one function that decides.
//!
//! Owns no state but the budget's tokens. Called by the queue after each failed attempt, which passes the random number
//! in, counts attempts from 1 and withdraws from the budget before it waits. Never here: a clock, a sleep, a lock. A
//! custom strategy may panic; that is the queue's to contain.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use crate::error::{ConfigErrors, LaneError};

/// A wait that failures asked for is spread over at least one part in so many of it.
const REQUESTED_SPREAD: u32 = 10;

/// How a lane retries commands that fail. Default: [`RetryPolicy::none`].
///
/// Failures that were marked by [`LaneError::permanent`], and `Cancelled`, `ShutdownInProgress`, `LaneNotFound` and
/// `ConfigError`, are never retried; a [custom](RetryPolicy::custom) policy is asked about them, too.
///
/// A clone shares its original's [budget](RetryPolicy::with_budget). Two policies are equal if their settings are; what
/// is left in a budget is no setting. A custom strategy equals only its own clones.
///
/// As data (serde) a policy is its settings; those without a `jitter` get the default of [`RetryPolicy::fixed`] if the
/// multiplier is 1, else that of [`RetryPolicy::exponential`]. A custom strategy is code: serialising it is an error.
///
/// ```
/// use std::time::Duration;
/// use corelane::{RetryBudget, RetryPolicy};
///
/// let mut policy = RetryPolicy::exponential(5).with_budget(RetryBudget::new(0.1, 100));
/// policy.max_delay = Duration::from_secs(10);
/// ```
#[derive(Clone)]
pub struct RetryPolicy {
    /// The most retries of a command, after its first attempt. Default: 0. Of a custom policy: no limit.
    pub max_retries: u32,
    /// The wait before the first retry, before jitter.
    pub initial_delay: Duration,
    /// The longest wait, before jitter. At least `initial_delay`.
    pub max_delay: Duration,
    /// By how much the wait grows from one retry to the next. At least 1; 1 is the same wait each time.
    pub multiplier: f64,
    /// How waits are spread.
    pub jitter: Jitter,
    /// What retries are paid from. Default: none, every retry is free.
    pub budget: Option<RetryBudget>,
    strategy: Option<Arc<dyn RetryStrategy>>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::none()
    }
}

impl RetryPolicy {
    /// Waits 100 ms before the first retry and twice as long before each further one, at most 30 s, with
    /// [`Jitter::Full`].
    #[must_use]
    pub fn exponential(max_retries: u32) -> Self {
        Self {
            max_retries,
            initial_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            multiplier: 2.0,
            jitter: Jitter::Full,
            budget: None,
            strategy: None,
        }
    }

    /// Waits `delay` before each retry, with [`Jitter::Added`]: never less than `delay`, at most half of it more, so that
    /// commands that failed together do not come back together. [`RetryPolicy::without_jitter`] for exactly `delay`.
    #[must_use]
    pub fn fixed(max_retries: u32, delay: Duration) -> Self {
        Self {
            max_retries,
            initial_delay: delay,
            max_delay: delay,
            multiplier: 1.0,
            jitter: Jitter::Added,
            budget: None,
            strategy: None,
        }
    }

    /// No retries.
    #[must_use]
    pub fn none() -> Self {
        Self { jitter: Jitter::None, ..Self::fixed(0, Duration::ZERO) }
    }

    /// Asks `strategy` after each failed attempt. What it answers is done as it is: no jitter is added, and what
    /// [`LaneError::retry_after`] asked for is its to heed ([`LaneError::requested_delay`]). `max_retries` (no limit unless
    /// set) and the budget hold all the same. If it panics, the command fails as one that panicked.
    ///
    /// ```
    /// use std::time::Duration;
    /// use corelane::{LaneError, Retry, RetryPolicy};
    ///
    /// let patient_with_timeouts = RetryPolicy::custom(|failed| match failed.error.unmarked() {
    ///     LaneError::Timeout(limit) if failed.attempt < 10 => Retry::After(*limit),
    ///     LaneError::CommandError(_) if failed.elapsed < Duration::from_secs(60) => Retry::Now,
    ///     _ => Retry::Fail,
    /// });
    /// ```
    #[must_use]
    pub fn custom(strategy: impl Fn(&FailedAttempt<'_>) -> Retry + Send + Sync + 'static) -> Self {
        Self::from_strategy(strategy)
    }

    /// [`RetryPolicy::custom`] for a type of its own.
    #[must_use]
    pub fn from_strategy(strategy: impl RetryStrategy + 'static) -> Self {
        Self { max_retries: u32::MAX, strategy: Some(Arc::new(strategy)), ..Self::none() }
    }

    /// Spreads waits in this way.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Waits exactly what the settings say: [`Jitter::None`].
    #[must_use]
    pub fn without_jitter(self) -> Self {
        self.with_jitter(Jitter::None)
    }

    /// Pays retries from `budget`, which may be shared: by the clones of this policy, and by other policies that were
    /// given a clone of it.
    #[must_use]
    pub fn with_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The wait before retry `attempt`, counted from 1, before jitter. Zero for 0, and for a policy without retries or
    /// with a custom strategy.
    #[must_use]
    pub fn delay_for_attempt(&self, attempt: u32) -> Duration {
        if attempt == 0 || self.max_retries == 0 || self.initial_delay.is_zero() {
            return Duration::ZERO;
        }
        if attempt == 1 || self.multiplier == 1.0 {
            return self.initial_delay.min(self.max_delay);
        }
        let growth = self.multiplier.powi(i32::try_from(attempt - 1).unwrap_or(i32::MAX));
        let nanos = (self.initial_delay.as_nanos() as f64 * growth).round();
        // Infinity and NaN are not less than anything.
        if nanos < self.max_delay.as_nanos() as f64 { from_nanos(nanos as u128) } else { self.max_delay }
    }

    /// Whether another retry is allowed after `attempt` retries.
    #[must_use]
    pub fn should_retry(&self, attempt: u32) -> bool {
        attempt < self.max_retries
    }

    /// Whether nothing is ever retried.
    pub(crate) fn is_none(&self) -> bool {
        self.max_retries == 0
    }

    /// False if attempt `attempt`, counted from 1, surely is the last, whatever becomes of it.
    pub(crate) fn may_retry(&self, attempt: u32) -> bool {
        attempt <= self.max_retries
    }

    /// What to do after a failed attempt. Nothing is withdrawn from the budget: that is [`RetryPolicy::withdraw`].
    pub(crate) fn decide(&self, failed: &FailedAttempt<'_>, random: u64) -> Retry {
        let retry = match &self.strategy {
            Some(strategy) => strategy.decide(failed),
            None if !is_retryable(failed.error) => Retry::Fail,
            None => match self.wait(failed, random) {
                Duration::ZERO => Retry::Now,
                wait => Retry::After(wait),
            },
        };
        match retry {
            Retry::Now | Retry::After(_) if !self.may_retry(failed.attempt) => Retry::Fail,
            retry => retry,
        }
    }

    /// Pays for a retry; true without a budget. If false, the command fails now.
    #[must_use]
    pub(crate) fn withdraw(&self) -> bool {
        self.budget.as_ref().is_none_or(RetryBudget::try_withdraw)
    }

    /// A command of this policy completed.
    pub(crate) fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// The wait of a built-in policy: somewhere between the least and the most that its jitter gives.
    fn wait(&self, failed: &FailedAttempt<'_>, random: u64) -> Duration {
        let delay = self.delay_for_attempt(failed.attempt);
        let (least, most) = match self.jitter {
            Jitter::None => (delay, delay),
            Jitter::Full => (Duration::ZERO, delay),
            Jitter::Added => (delay, delay.saturating_add(delay / 2)),
            Jitter::Decorrelated => {
                let least = self.initial_delay.min(self.max_delay);
                (least, failed.previous_delay.max(least).saturating_mul(3).min(self.max_delay))
            }
        };
        let Some(requested) = failed.error.requested_delay() else { return between(least, most, random) };
        // The window moves up. It does not shrink, or all who were told the same would come back at once.
        let least_then = least.max(requested);
        let width = match self.jitter {
            Jitter::None => Duration::ZERO,
            _ => most.saturating_sub(least).max(requested / REQUESTED_SPREAD),
        };
        between(least_then, least_then.saturating_add(width), random)
    }

    /// Adds what is wrong to `errors`; `path` is where the policy stands.
    pub(crate) fn check(&self, path: &str, errors: &mut ConfigErrors) {
        if let Some(budget) = &self.budget {
            budget.check(&format!("{path}.budget"), errors);
        }
        if self.strategy.is_some() {
            return;
        }
        if !self.multiplier.is_finite() || self.multiplier < 1.0 {
            errors.push(
                format!("{path}.multiplier"),
                self.multiplier,
                "use 1 (the same delay each time) or more (it grows by that factor), and a finite number",
            );
        }
        if self.max_delay < self.initial_delay {
            errors.push(
                format!("{path}.max_delay"),
                self.max_delay,
                format!("use at least initial_delay, which is {:?}", self.initial_delay),
            );
        }
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("max_retries", &self.max_retries)
            .field("initial_delay", &self.initial_delay)
            .field("max_delay", &self.max_delay)
            .field("multiplier", &self.multiplier)
            .field("jitter", &self.jitter)
            .field("budget", &self.budget)
            .field("custom", &self.strategy.is_some())
            .finish()
    }
}

impl PartialEq for RetryPolicy {
    fn eq(&self, other: &Self) -> bool {
        let same_strategy = match (&self.strategy, &other.strategy) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_strategy
            && self.max_retries == other.max_retries
            && self.initial_delay == other.initial_delay
            && self.max_delay == other.max_delay
            && self.multiplier.to_bits() == other.multiplier.to_bits()
            && self.jitter == other.jitter
            && self.budget == other.budget
    }
}

/// Numbers are compared bit by bit, so each policy equals itself.
impl Eq for RetryPolicy {}

/// A policy as it is stored: its settings.
#[derive(Serialize, Deserialize)]
#[serde(rename = "RetryPolicy", deny_unknown_fields)]
struct Stored {
    max_retries: u32,
    initial_delay: Duration,
    max_delay: Duration,
    #[serde(serialize_with = "finite")]
    multiplier: f64,
    #[serde(default)]
    jitter: Option<Jitter>,
    #[serde(default)]
    budget: Option<RetryBudget>,
}

impl Serialize for RetryPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.strategy.is_some() {
            return Err(ser::Error::custom(
                "a custom retry strategy is code and can not be serialised: store a name for it and make the policy anew",
            ));
        }
        let Self { max_retries, initial_delay, max_delay, multiplier, jitter, budget, strategy: _ } = self.clone();
        Stored { max_retries, initial_delay, max_delay, multiplier, jitter: Some(jitter), budget }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RetryPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { max_retries, initial_delay, max_delay, multiplier, jitter, budget } =
            Stored::deserialize(deserializer)?;
        let usual = if multiplier == 1.0 { Jitter::Added } else { Jitter::Full };
        let jitter = jitter.unwrap_or(usual);
        Ok(Self { max_retries, initial_delay, max_delay, multiplier, jitter, budget, strategy: None })
    }
}

/// How the waits of commands that failed together are spread. Default: [`Jitter::Full`].
///
/// Where a failure asks for a wait ([`LaneError::retry_after`]), each of these only adds to it: at least a tenth of what
/// was asked for is the window in which the retries begin. [`Jitter::None`] adds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Jitter {
    /// Anywhere between zero and the delay: the least load at any moment, half the delay on average.
    #[default]
    Full,
    /// Anywhere between `initial_delay` and three times the previous wait, at most `max_delay`: grows at random, by
    /// itself, and needs a `max_delay` above `initial_delay` to do so; `multiplier` is not used.
    Decorrelated,
    /// The delay and up to half of it more: never less than was said.
    Added,
    /// The delay itself. Commands that fail together come back together.
    None,
}

/// A failed attempt, as a retry policy sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FailedAttempt<'a> {
    /// What went wrong.
    pub error: &'a LaneError,
    /// Which attempt it was; the first is 1.
    pub attempt: u32,
    /// How long ago the command was accepted: waits and attempts together.
    pub elapsed: Duration,
    /// The wait before this attempt; zero for the first.
    pub previous_delay: Duration,
}

impl<'a> FailedAttempt<'a> {
    /// A failed attempt, for the queue and for tests of a strategy.
    #[must_use]
    pub fn new(error: &'a LaneError, attempt: u32, elapsed: Duration, previous_delay: Duration) -> Self {
        Self { error, attempt, elapsed, previous_delay }
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Try again without a wait.
    Now,
    /// Try again after this wait.
    After(Duration),
    /// Give up: the command failed, and becomes a dead letter where there is a queue for these.
    Fail,
    /// Give up: the command failed, and nothing is kept of it.
    Discard,
}

/// Decides on retries by code. Every `Fn(&FailedAttempt<'_>) -> Retry` is one.
pub trait RetryStrategy: Send + Sync {
    /// What to do after this failed attempt. Must not block: it runs on a worker.
    fn decide(&self, failed: &FailedAttempt<'_>) -> Retry;
}

impl<F: Fn(&FailedAttempt<'_>) -> Retry + Send + Sync> RetryStrategy for F {
    fn decide(&self, failed: &FailedAttempt<'_>) -> Retry {
        self(failed)
    }
}

/// Keeps retries from multiplying the load when everything fails: a retry costs one token, a completed command brings
/// `ratio` tokens back, and at most `reserve` are kept. It begins full.
///
/// So a short trouble is bridged by up to `reserve` retries at once, and in a lasting one retries are at most `ratio` times
/// what completes. With no token left, a command that fails is not retried and fails at once; nothing waits for a token.
///
/// A clone shares the tokens of its original. Two budgets are equal if their settings are. As data (serde) it is its
/// settings, and begins full and unshared again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "BudgetSettings", into = "BudgetSettings")]
pub struct RetryBudget {
    settings: BudgetSettings,
    /// In [`UNITS`]; at most the reserve.
    units: Arc<AtomicU64>,
}

/// A token in the unit that a budget counts in: decimal, so that ten deposits of 0.1 are one token exactly.
const UNITS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename = "RetryBudget", deny_unknown_fields)]
struct BudgetSettings {
    #[serde(serialize_with = "finite")]
    ratio: f64,
    reserve: u32,
}

impl RetryBudget {
    /// `ratio`: tokens that a completed command brings, 0 to 1000, counted in millionths; 0.1 is one retry for ten
    /// completed commands. `reserve`: the most tokens kept, at least 1. Checked when the lane is registered.
    #[must_use]
    pub fn new(ratio: f64, reserve: u32) -> Self {
        BudgetSettings { ratio, reserve }.into()
    }

    /// Tokens that a completed command brings.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.settings.ratio
    }

    /// The most tokens that are kept.
    #[must_use]
    pub fn reserve(&self) -> u32 {
        self.settings.reserve
    }

    /// Retries that could be paid for now.
    #[must_use]
    pub fn available(&self) -> u32 {
        u32::try_from(self.units.load(Ordering::Relaxed) / UNITS).unwrap_or(u32::MAX)
    }

    // ORDERING: Relaxed throughout. The tokens are a count; nothing else is published by them.

    /// A command completed. While the budget is full this is one load.
    pub(crate) fn deposit(&self) {
        let full = self.settings.full();
        let earned = self.settings.earned();
        let add = |units: u64| (units < full).then(|| units.saturating_add(earned).min(full));
        // Err: it is full.
        let _ = self.units.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes a token for a retry; false if there is none.
    #[must_use]
    pub(crate) fn try_withdraw(&self) -> bool {
        let take = |units: u64| units.checked_sub(UNITS);
        self.units.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn check(&self, path: &str, errors: &mut ConfigErrors) {
        let BudgetSettings { ratio, reserve } = self.settings;
        if !(0.0..=1000.0).contains(&ratio) {
            errors.push(format!("{path}.ratio"), ratio, "use 0 to 1000: the retries that a completed command pays for");
        } else if ratio > 0.0 && self.settings.earned() == 0 {
            errors.push(
                format!("{path}.ratio"),
                ratio,
                "use at least 0.000001, or 0: tokens are counted in millionths",
            );
        }
        if reserve == 0 {
            errors.push(
                format!("{path}.reserve"),
                reserve,
                "use at least 1: with 0 nothing would ever be retried, which RetryPolicy::none says better",
            );
        }
    }
}

impl BudgetSettings {
    fn full(self) -> u64 {
        u64::from(self.reserve) * UNITS
    }

    /// Of a completed command. Saturates; NaN and what is negative bring nothing.
    fn earned(self) -> u64 {
        (self.ratio * UNITS as f64).round() as u64
    }
}

impl From<BudgetSettings> for RetryBudget {
    fn from(settings: BudgetSettings) -> Self {
        Self { settings, units: Arc::new(AtomicU64::new(settings.full())) }
    }
}

impl From<RetryBudget> for BudgetSettings {
    fn from(budget: RetryBudget) -> Self {
        budget.settings
    }
}

impl PartialEq for RetryBudget {
    fn eq(&self, other: &Self) -> bool {
        let settings = |budget: &Self| (budget.settings.ratio.to_bits(), budget.settings.reserve);
        settings(self) == settings(other)
    }
}

/// As for [`RetryPolicy`].
impl Eq for RetryBudget {}

/// Whether a failure is worth another attempt.
fn is_retryable(error: &LaneError) -> bool {
    let hopeless = matches!(
        error,
        LaneError::Cancelled { .. }
            | LaneError::ShutdownInProgress
            | LaneError::LaneNotFound(_)
            | LaneError::ConfigError(_)
    );
    !hopeless && !error.is_permanent()
}

/// Some formats, such as JSON, would store what is not finite as nothing.
fn finite<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.is_finite() {
        serializer.serialize_f64(*number)
    } else {
        Err(ser::Error::custom(format!("{number} is not a finite number: it can not be stored in a retry policy")))
    }
}

/// Uniform from `least` to `most`, both included, in nanoseconds. What is more than 584 years apart is cut to that.
fn between(least: Duration, most: Duration, random: u64) -> Duration {
    let width = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
    // The high half of a 128-bit product: below `width + 1`, which is at most 2^64.
    let offset = ((u128::from(width) + 1) * u128::from(random)) >> 64;
    least.saturating_add(from_nanos(offset))
}

/// Saturates.
fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    match (u64::try_from(nanos / SECOND), u32::try_from(nanos % SECOND)) {
        (Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
        _ => Duration::MAX,
    }
}

#[cfg(all(test, not(corelane_loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failure() -> LaneError {
        LaneError::CommandError("no".into())
    }

    fn decide(policy: &RetryPolicy, error: &LaneError, attempt: u32, random: u64) -> Retry {
        policy.decide(&FailedAttempt::new(error, attempt, SECOND, Duration::ZERO), random)
    }

    fn wait(retry: Retry) -> Duration {
        match retry {
            Retry::Now => Duration::ZERO,
            Retry::After(wait) => wait,
            other => panic!("{other:?} is no retry"),
        }
    }

    /// SplitMix64: random numbers that are the same each time.
    fn randoms(count: usize) -> impl Iterator<Item = u64> {
        (1..=count as u64).map(|index| {
            let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    /// The most retries that begin within one percent of the time from the least to the most wait.
    fn busiest_percent(waits: &[Duration], least: Duration, most: Duration) -> usize {
        let mut slots = [0_usize; 100];
        for wait in waits {
            assert!((least..=most).contains(wait), "{wait:?}");
            let at = (*wait - least).as_nanos() * 100 / (most - least).as_nanos();
            slots[usize::try_from(at).unwrap().min(99)] += 1;
        }
        slots.into_iter().max().unwrap()
    }

    #[test]
    fn ten_thousand_failures_at_once_come_back_spread_over_the_delay() {
        let exponential = RetryPolicy::exponential(10);
        let cases = [
            (exponential.clone(), Duration::ZERO, 800 * SECOND / 1000),
            (exponential.clone().with_jitter(Jitter::Decorrelated), SECOND / 10, 3 * SECOND / 10),
            (RetryPolicy::fixed(10, SECOND), SECOND, SECOND * 3 / 2),
        ];
        for (policy, least, most) in cases {
            let waits: Vec<_> = randoms(10_000).map(|random| wait(decide(&policy, &failure(), 4, random))).collect();
            let busiest = busiest_percent(&waits, least, most);
            assert!(busiest < 200, "{policy:?}: {busiest} of 10,000 within one percent of the window");
        }
    }

    #[test]
    fn ten_thousand_that_were_told_the_same_moment_come_back_after_it_and_spread() {
        let told = failure().retry_after(60 * SECOND);
        for policy in [
            RetryPolicy::exponential(3),
            RetryPolicy::exponential(3).with_jitter(Jitter::Decorrelated),
            RetryPolicy::fixed(3, SECOND),
        ] {
            let waits: Vec<_> = randoms(10_000).map(|random| wait(decide(&policy, &told, 1, random))).collect();
            assert!(busiest_percent(&waits, 60 * SECOND, 66 * SECOND) < 200, "{policy:?}");
        }
        let exact = RetryPolicy::exponential(3).without_jitter();
        assert_eq!(decide(&exact, &told, 1, u64::MAX), Retry::After(60 * SECOND));
    }

    #[test]
    fn delays_without_jitter_are_those_of_the_settings() {
        let policy = RetryPolicy::exponential(20).without_jitter();
        let waits = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000];
        for (attempt, millis) in (1..).zip(waits) {
            assert_eq!(decide(&policy, &failure(), attempt, 7), Retry::After(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn delays_below_a_millisecond_stay_exact() {
        let mut policy = RetryPolicy::exponential(5).without_jitter();
        policy.initial_delay = Duration::from_nanos(300);
        assert_eq!(decide(&policy, &failure(), 1, 0), Retry::After(Duration::from_nanos(300)));
        assert_eq!(decide(&policy, &failure(), 4, 0), Retry::After(Duration::from_nanos(2400)));
        let fixed = RetryPolicy::fixed(1, Duration::from_nanos(7)).without_jitter();
        assert_eq!(decide(&fixed, &failure(), 1, 0), Retry::After(Duration::from_nanos(7)));
    }

    #[test]
    fn retries_end_after_as_many_as_were_asked_for() {
        for policy in
            [RetryPolicy::exponential(2), RetryPolicy { max_retries: 2, ..RetryPolicy::custom(|_| Retry::Now) }]
        {
            assert!(matches!(decide(&policy, &failure(), 1, 9), Retry::Now | Retry::After(_)));
            assert!(matches!(decide(&policy, &failure(), 2, 9), Retry::Now | Retry::After(_)));
            assert_eq!(decide(&policy, &failure(), 3, 9), Retry::Fail);
            assert!(policy.may_retry(2) && !policy.may_retry(3) && !policy.is_none());
        }
        assert!(RetryPolicy::none().is_none() && !RetryPolicy::none().may_retry(1));
        assert_eq!(decide(&RetryPolicy::none(), &failure().retry_after(SECOND), 1, 9), Retry::Fail);
        let endless = RetryPolicy::custom(|_| Retry::Now);
        assert!(!endless.is_none() && endless.may_retry(u32::MAX));
        assert_eq!(decide(&endless, &failure(), u32::MAX, 0), Retry::Now);
    }

    #[test]
    fn what_can_not_get_better_is_never_retried() {
        let policy = RetryPolicy::exponential(9);
        let hopeless = [
            failure().permanent(),
            failure().permanent().retry_after(SECOND),
            failure().retry_after(SECOND).permanent(),
            LaneError::Cancelled { started: true },
            LaneError::ShutdownInProgress,
            LaneError::LaneNotFound("x".into()),
            LaneError::ConfigError("x".into()),
        ];
        for error in hopeless {
            assert_eq!(decide(&policy, &error, 1, 1), Retry::Fail, "{error:?}");
        }
        for error in
            [failure(), LaneError::Timeout(SECOND), LaneError::Panicked("x".into()), LaneError::Other("x".into())]
        {
            assert!(matches!(decide(&policy, &error, 1, 1 << 60), Retry::After(_)), "{error:?}");
        }
    }

    #[test]
    fn a_custom_strategy_sees_the_attempt_and_is_obeyed() {
        struct Patient(Duration);
        impl RetryStrategy for Patient {
            fn decide(&self, failed: &FailedAttempt<'_>) -> Retry {
                Retry::After(self.0 * failed.attempt + failed.previous_delay)
            }
        }
        let error = failure().permanent();
        let failed = FailedAttempt::new(&error, 3, 5 * SECOND, 2 * SECOND);
        let of_a_type = RetryPolicy::from_strategy(Patient(SECOND));
        assert_eq!(of_a_type.decide(&failed, 4), Retry::After(5 * SECOND));
        let discard = RetryPolicy::custom(|failed| match failed.error.is_permanent() {
            true => Retry::Discard,
            false => Retry::Now,
        });
        assert_eq!(discard.decide(&failed, 4), Retry::Discard);
        let waits_for_nothing = RetryPolicy::custom(|_| Retry::After(Duration::ZERO));
        assert_eq!(waits_for_nothing.decide(&failed, 4), Retry::After(Duration::ZERO));
    }

    #[test]
    fn a_panic_of_a_custom_strategy_reaches_the_caller() {
        let policy = RetryPolicy::custom(|_| panic!("of the strategy"));
        assert!(catch_unwind(AssertUnwindSafe(|| decide(&policy, &failure(), 1, 1))).is_err());
    }

    #[test]
    fn a_budget_refuses_a_storm() {
        let policy = RetryPolicy::exponential(5).with_budget(RetryBudget::new(0.1, 100));
        let lanes_clone = policy.clone();
        let paid = (0..10_000).filter(|_| lanes_clone.withdraw()).count();
        assert_eq!(paid, 100, "the reserve, and no more while nothing completes");
        (0..99).for_each(|_| policy.deposit());
        assert_eq!((0..100).filter(|_| policy.withdraw()).count(), 9);
        policy.deposit();
        assert!(policy.withdraw(), "a hundred completed commands pay for exactly ten retries");
        (0..1_000_000).for_each(|_| policy.deposit());
        assert_eq!(policy.budget.as_ref().unwrap().available(), 100, "no more than the reserve is saved up");
        let generous = RetryBudget::new(1000.0, 2);
        assert!(generous.try_withdraw());
        generous.deposit();
        assert_eq!(generous.available(), 2, "nor by one deposit that is larger than it");
        assert!(RetryPolicy::exponential(1).withdraw(), "without a budget retries are free");
    }

    #[test]
    fn a_budget_gives_each_token_once() {
        let budget = RetryBudget::new(1.0, 1000);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let budget = budget.clone();
                std::thread::spawn(move || (0..1000).filter(|_| budget.try_withdraw()).count())
            })
            .collect();
        let taken: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(taken, 1000);
    }

    #[test]
    fn settings_that_make_no_sense_are_found_with_a_hint() {
        let problems = |policy: &RetryPolicy| {
            let mut errors = ConfigErrors::default();
            policy.check("p", &mut errors);
            errors.problems().iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
        };
        let with = |change: fn(&mut RetryPolicy)| {
            let mut policy = RetryPolicy::exponential(3);
            change(&mut policy);
            problems(&policy)
        };
        for wrong in [0.99, -2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let policy = RetryPolicy { multiplier: wrong, ..RetryPolicy::exponential(3) };
            assert_eq!(problems(&policy), ["p.multiplier"], "{wrong}");
        }
        assert_eq!(with(|policy| policy.max_delay = Duration::from_millis(99)), ["p.max_delay"]);
        assert_eq!(with(|policy| (policy.max_delay, policy.multiplier) = (Duration::ZERO, 0.0)).len(), 2);
        for wrong in [-0.1, f64::NAN, f64::INFINITY, 1000.1, 1e-9] {
            let policy = RetryPolicy::exponential(3).with_budget(RetryBudget::new(wrong, 1));
            assert_eq!(problems(&policy), ["p.budget.ratio"], "{wrong}");
        }
        let nothing = RetryPolicy::custom(|_| Retry::Now).with_budget(RetryBudget::new(0.0, 0));
        assert_eq!(problems(&nothing), ["p.budget.reserve"]);
        let fine = [
            RetryPolicy::none(),
            RetryPolicy::exponential(u32::MAX).with_budget(RetryBudget::new(1000.0, u32::MAX)),
            RetryPolicy::fixed(1, Duration::MAX),
            RetryPolicy::custom(|_| Retry::Now),
        ];
        for policy in fine {
            assert!(problems(&policy).is_empty(), "{policy:?}");
        }
    }

    fn any_duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            any::<u64>().prop_map(Duration::from_nanos),
            (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos)),
        ]
    }

    fn any_jitter() -> impl Strategy<Value = Jitter> {
        prop_oneof![Just(Jitter::Full), Just(Jitter::Decorrelated), Just(Jitter::Added), Just(Jitter::None)]
    }

    proptest! {
        #[test]
        fn no_settings_and_no_luck_overflow(
            max_retries: u32,
            initial_delay in any_duration(),
            max_delay in any_duration(),
            multiplier in prop_oneof![any::<f64>(), Just(f64::MAX), Just(f64::NAN), Just(2.0)],
            jitter in any_jitter(),
            attempt: u32,
            previous in any_duration(),
            requested in prop::option::of(any_duration()),
            random in prop_oneof![any::<u64>(), Just(u64::MAX), Just(0)],
        ) {
            let policy =
                RetryPolicy { max_retries, initial_delay, max_delay, multiplier, jitter, ..RetryPolicy::default() };
            prop_assert!(policy.delay_for_attempt(attempt) <= max_delay);
            let error = match requested {
                Some(requested) => failure().retry_after(requested),
                None => failure(),
            };
            let retry = policy.decide(&FailedAttempt::new(&error, attempt, Duration::MAX, previous), random);
            prop_assert_eq!(retry == Retry::Fail, attempt > max_retries);
            if retry != Retry::Fail {
                let wait = wait(retry);
                prop_assert!(requested.is_none_or(|requested| wait >= requested), "{:?}", wait);
                let most = max_delay.saturating_add(max_delay / 2);
                prop_assert!(requested.is_some() || wait <= most, "{:?}", wait);
            }
        }

        #[test]
        fn a_wait_is_between_its_bounds_and_reaches_both(one in any_duration(), other in any_duration(), random: u64) {
            let (least, most) = (one.min(other), one.max(other));
            let drawn = between(least, most, random);
            prop_assert!(least <= drawn && drawn <= most);
            prop_assert_eq!(between(least, most, 0), least);
            if most - least < Duration::from_secs(1 << 33) {
                prop_assert_eq!(between(least, most, u64::MAX), most);
            }
        }

        #[test]
        fn the_delays_of_a_sensible_policy_never_shrink(
            initial in 1..10_000_000_u64, factor in 1.0..10.0_f64, cap in 1..1_000_000_000_000_u64, attempt in 1..u32::MAX,
        ) {
            let policy = RetryPolicy {
                initial_delay: Duration::from_nanos(initial),
                max_delay: Duration::from_nanos(cap.max(initial)),
                multiplier: factor,
                ..RetryPolicy::exponential(u32::MAX)
            };
            prop_assert!(policy.delay_for_attempt(attempt) <= policy.delay_for_attempt(attempt + 1));
        }
    }
}
