//! What a lane is told, and whether that makes sense.

use std::time::Duration;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use super::Priority;
use crate::error::ConfigErrors;
use crate::executor::LOWEST_PRIORITY;
use crate::limit::gate::COUNT_MAX;
use crate::limit::rate::{RateLimitConfig, RateLimiter};
use crate::policy::boost::PriorityBoostConfig;
use crate::policy::retry::RetryPolicy;
use crate::storage::Durability;

/// Settings of a lane. Default: min 1, max 4, nothing else.
///
/// Deserialised from data, what is missing has its default and what is unknown is an error. Serialising says so if a
/// setting is not data: a custom retry strategy, a shared rate limiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaneConfig {
    /// Commands of the lane that can always run: under [`max_in_flight`](crate::QueueManagerBuilder::with_max_in_flight)
    /// they are held back for it, and a lane of which some are left gets a start every 10 ms however much better work there
    /// is. With 0 it waits for all better lanes. At most `max_concurrency`. Default: 1.
    pub min_concurrency: usize,
    /// The most commands of the lane that run at the same time: 1 to 268,435,455. Default: 4.
    pub max_concurrency: usize,
    /// How long an attempt may take before it is given up. Default: none.
    pub default_timeout: Option<Duration>,
    /// How long a command may wait for its first start; after that it never starts. Default: none.
    pub queue_timeout: Option<Duration>,
    /// How long a command may take from its acceptance to its end. Default: none.
    pub total_timeout: Option<Duration>,
    /// How long commands may go on once the queue stops, before they are cancelled. Default: as long as the queue's own
    /// limit.
    pub drain_timeout: Option<Duration>,
    /// When failed commands are tried again. Default: never.
    pub retry_policy: RetryPolicy,
    /// How many commands may start in what time. Default: no limit.
    pub rate_limit: Option<RateLimitConfig>,
    /// A rate limit that several lanes share, in place of `rate_limit`. Default: none.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none", serialize_with = "not_data")]
    pub rate_limiter: Option<RateLimiter>,
    /// How commands get better priorities while they wait. Default: not.
    pub priority_boost: PriorityBoostConfig,
    /// The most commands that wait. Default: no limit.
    pub capacity: Option<usize>,
    /// The most memory that waiting commands hold, in bytes: the size of their values and what
    /// [`SubmitOptions::bytes`](crate::SubmitOptions::bytes) says. Default: no limit.
    pub max_pending_bytes: Option<usize>,
    /// What happens to a submission when the lane is full. Default: [`Overflow::Reject`].
    pub overflow: Overflow,
    /// The most commands of one key that run at the same time. Default: no limit; keys take turns all the same.
    pub per_key: Option<usize>,
    /// The best and the worst priority that [`SubmitOptions::priority`](crate::SubmitOptions::priority) may ask for.
    /// Default: none but the lane's own.
    pub priority_bounds: Option<(Priority, Priority)>,
    /// Commands waiting at which the lane emits `queue.lane.pressure`; `queue.lane.idle` follows when none waits any
    /// more. Default: none, no such events.
    pub pressure_threshold: Option<usize>,
    /// What of the lane's commands survives what; see [`Durability`]. Default: [`Durability::Synced`] if the queue
    /// [has a store](crate::QueueManagerBuilder::with_storage), else [`Durability::Memory`].
    pub durability: Option<Durability>,
    /// How durable the end of a command is before its result is handed out: [`Durability::Relaxed`], or
    /// [`Durability::Synced`]. An end that a crash takes away lets the command run again. Default: `Relaxed`.
    pub completion: Durability,
    /// Refuses commands that could not be made again after a restart, with
    /// [`LaneError::NotDurable`](crate::LaneError::NotDurable). Default: false, they are stored for inspection.
    pub recoverable_only: bool,
    /// What happens when the store fails. Default: [`OnStorageFailure::Stop`].
    pub storage_failure: OnStorageFailure,
    /// Whether the lane can say why a command waits: see [`QueueManager::explain`](crate::QueueManager::explain). Costs each
    /// command a few hundred bytes and a lock of the lane several times. Holds for commands accepted from then on. Default:
    /// false.
    pub explain: bool,
}

/// What a durable lane does while its store fails (apart from being full, which refuses submissions and lets commands end).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnStorageFailure {
    /// It refuses submissions and starts nothing; what runs goes on. It goes on by itself when the store does.
    #[default]
    Stop,
    /// It goes on in memory: commands that are submitted meanwhile do not survive the process (their idempotency keys are kept
    /// in memory, too). Their
    /// [ids](crate::CommandId::is_stored) and the events of the store say so.
    DegradeToMemory,
}

fn not_data<S: Serializer>(_: &Option<RateLimiter>, _: S) -> Result<S::Ok, S::Error> {
    Err(S::Error::custom("rate_limiter is shared between lanes and is not data: set it in code, or use rate_limit"))
}

/// What a full lane does with one more command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Overflow {
    /// It hands the command back, with [`LaneError::LaneFull`](crate::LaneError::LaneFull).
    #[default]
    Reject,
    /// Async submissions wait for room, for at most [`SubmitOptions::room_timeout`](crate::SubmitOptions::room_timeout);
    /// those that can not wait (`try_submit` and the like) get the command back. So do commands that submit commands: while
    /// they waited, what fills the lane could wait for them.
    Wait,
    /// The command that has waited longest is dropped; its ticket gives [`LaneError::Shed`](crate::LaneError::Shed). Not one
    /// that waits behind others of its key, or is delayed.
    DropOldest,
    /// The waiting command of the worst priority is dropped, if the new one's is better; else the new one is handed back.
    DropLowest,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self::new(1, 4)
    }
}

impl LaneConfig {
    /// Between `min` and `max` commands at the same time. Checked when the lane is registered.
    #[must_use]
    pub fn new(min: usize, max: usize) -> Self {
        Self {
            min_concurrency: min,
            max_concurrency: max,
            default_timeout: None,
            queue_timeout: None,
            total_timeout: None,
            drain_timeout: None,
            retry_policy: RetryPolicy::none(),
            rate_limit: None,
            rate_limiter: None,
            priority_boost: PriorityBoostConfig::disabled(),
            capacity: None,
            max_pending_bytes: None,
            overflow: Overflow::Reject,
            per_key: None,
            priority_bounds: None,
            pressure_threshold: None,
            durability: None,
            completion: Durability::Relaxed,
            recoverable_only: false,
            storage_failure: OnStorageFailure::Stop,
            explain: false,
        }
    }

    /// Gives attempts up after `timeout`: the submitter gets [`LaneError::Timeout`](crate::LaneError::Timeout) then, the
    /// command is dropped at its current await, and its slot is free when it has really stopped. Where the attempt may be
    /// retried, it is given up at its next await.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
        self
    }

    /// Never starts a command that has waited for longer than `timeout`.
    #[must_use]
    pub fn with_queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = Some(timeout);
        self
    }

    /// Gives a command up `timeout` after its acceptance, wherever it is then.
    #[must_use]
    pub fn with_total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Cancels commands that go on for longer than `timeout` once the queue stops.
    #[must_use]
    pub fn with_drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = Some(timeout);
        self
    }

    /// Tries failed commands again as `policy` says.
    #[must_use]
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry_policy = policy;
        self
    }

    /// Lets commands start at this rate. A lane that was refused looks again at a timer, which has a resolution of 65 us, and
    /// starts at most a burst then: high rates with a small burst fall short (1,950 a second with a burst of 1 by 2 %). The
    /// default burst, all commands of a window, makes up for any delay.
    #[must_use]
    pub fn with_rate_limit(mut self, limit: RateLimitConfig) -> Self {
        self.rate_limit = Some(limit);
        self
    }

    /// Lets commands start as `limiter` allows, which other lanes may use as well.
    #[must_use]
    pub fn with_rate_limiter(mut self, limiter: RateLimiter) -> Self {
        self.rate_limiter = Some(limiter);
        self
    }

    /// Gives commands that wait a better priority as their deadline comes near.
    #[must_use]
    pub fn with_priority_boost(mut self, boost: PriorityBoostConfig) -> Self {
        self.priority_boost = boost;
        self
    }

    /// Lets at most `commands` wait.
    #[must_use]
    pub fn with_capacity(mut self, commands: usize) -> Self {
        self.capacity = Some(commands);
        self
    }

    /// Lets commands of at most this size together wait.
    #[must_use]
    pub fn with_max_pending_bytes(mut self, bytes: usize) -> Self {
        self.max_pending_bytes = Some(bytes);
        self
    }

    /// What to do when the lane is full.
    #[must_use]
    pub fn with_overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Runs at most `commands` of one key at the same time.
    #[must_use]
    pub fn with_per_key(mut self, commands: usize) -> Self {
        self.per_key = Some(commands);
        self
    }

    /// Lets commands ask for priorities from `best` to `worst` (a larger number is worse).
    #[must_use]
    pub fn with_priority_bounds(mut self, best: Priority, worst: Priority) -> Self {
        self.priority_bounds = Some((best, worst));
        self
    }

    /// Stores commands, or does not. Needs [a store](crate::QueueManagerBuilder::with_storage), unless it is
    /// [`Durability::Memory`].
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Hands a result out once the end of its command is as durable as this.
    #[must_use]
    pub fn with_completion(mut self, durability: Durability) -> Self {
        self.completion = durability;
        self
    }

    /// Accepts only commands that can be made again after a restart.
    #[must_use]
    pub fn with_recoverable_only(mut self) -> Self {
        self.recoverable_only = true;
        self
    }

    /// What to do while the store fails.
    #[must_use]
    pub fn with_storage_failure(mut self, policy: OnStorageFailure) -> Self {
        self.storage_failure = policy;
        self
    }

    /// Has the lane say why its commands wait: see [`QueueManager::explain`](crate::QueueManager::explain).
    #[must_use]
    pub fn with_explain(mut self) -> Self {
        self.explain = true;
        self
    }

    /// Emits pressure events when `threshold` commands wait.
    #[must_use]
    pub fn with_pressure_threshold(mut self, threshold: usize) -> Self {
        self.pressure_threshold = Some(threshold);
        self
    }
}

/// Checks a lane's settings; adds what is wrong to `errors`.
/// `store` says whether the queue has one; none if that is not known yet.
pub(super) fn check_lane(id: &str, config: &LaneConfig, priority: u8, store: Option<bool>, errors: &mut ConfigErrors) {
    let lane = format!("lanes[{id:?}]");
    if id.is_empty() {
        errors.push(format!("{lane}.id"), id, "give the lane a name");
    }
    if id.chars().any(char::is_control) {
        errors.push(
            format!("{lane}.id"),
            id,
            "leave control characters out of the name: it is a label in logs and metrics",
        );
    }
    if priority > LOWEST_PRIORITY {
        errors.push(format!("{lane}.priority"), priority, format!("use 0 (best) to {LOWEST_PRIORITY} (worst)"));
    }
    let LaneConfig { min_concurrency: min, max_concurrency: max, .. } = config;
    if *max == 0 {
        errors.push(format!("{lane}.max_concurrency"), max, "use at least 1: with 0 no command would ever run");
    }
    if *max > COUNT_MAX {
        errors.push(format!("{lane}.max_concurrency"), max, format!("use at most {COUNT_MAX}"));
    }
    if min > max {
        errors.push(format!("{lane}.min_concurrency"), min, format!("use at most max_concurrency, which is {max}"));
    }
    let timeouts = [
        ("default_timeout", config.default_timeout, "every command would time out at once"),
        ("queue_timeout", config.queue_timeout, "no command would ever start"),
        ("total_timeout", config.total_timeout, "no command would ever start"),
    ];
    for (name, timeout, why) in timeouts {
        if timeout == Some(Duration::ZERO) {
            errors.push(format!("{lane}.{name}"), Duration::ZERO, format!("use more than zero, or no timeout: {why}"));
        }
    }
    let counts = [
        ("capacity", config.capacity, "no command could wait; to accept none, shut the queue down"),
        ("max_pending_bytes", config.max_pending_bytes, "no command could wait"),
        ("per_key", config.per_key, "no command with a key would ever run"),
        ("pressure_threshold", config.pressure_threshold, "or none for no pressure events"),
    ];
    for (name, count, why) in counts {
        if count == Some(0) {
            errors.push(format!("{lane}.{name}"), 0, format!("use at least 1: {why}"));
        }
    }
    let durable = config.durability.is_some_and(|durability| durability != Durability::Memory);
    if durable && store == Some(false) {
        let hint = "give the builder a store: with_storage(..), or leave the durability out";
        errors.push(format!("{lane}.durability"), config.durability, hint);
    }
    let in_memory = store == Some(false) || config.durability == Some(Durability::Memory);
    if config.recoverable_only && in_memory && store.is_some() {
        let hint =
            "recoverable commands need a durable lane: with_storage(..) on the builder, and not Durability::Memory";
        errors.push(format!("{lane}.recoverable_only"), true, hint);
    }
    if config.completion == Durability::Memory {
        let hint = "use Relaxed or Synced: the end of a stored command is always stored";
        errors.push(format!("{lane}.completion"), config.completion, hint);
    }
    if let Some((best, worst)) = config.priority_bounds
        && (best > priority || worst < priority || worst > LOWEST_PRIORITY)
    {
        errors.push(
            format!("{lane}.priority_bounds"),
            (best, worst),
            format!("give the best and the worst, around the lane's own {priority}, from 0 to {LOWEST_PRIORITY}"),
        );
    }
    if config.rate_limit.is_some() && config.rate_limiter.is_some() {
        errors.push(
            format!("{lane}.rate_limiter"),
            "both rate_limit and rate_limiter",
            "use one of them: rate_limit for a limit of the lane's own, rate_limiter for a shared one",
        );
    }
    if let Some(limit) = &config.rate_limit {
        limit.check(&format!("{lane}.rate_limit"), errors);
    }
    config.retry_policy.check(&format!("{lane}.retry_policy"), errors);
    config.priority_boost.check(&format!("{lane}.priority_boost"), errors);
}
