//! What a lane is told, and whether that makes sense.

use std::time::Duration;

use crate::error::ConfigErrors;
use crate::executor::LOWEST_PRIORITY;
use crate::limit::gate::COUNT_MAX;

/// Settings of a lane. Default: min 1, max 4, no timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneConfig {
    /// Concurrent commands that the lane is meant to have at least. Reported in
    /// [`LaneStatus`](crate::LaneStatus); at most `max_concurrency`. Default: 1.
    pub min_concurrency: usize,
    /// The most commands of the lane that run at the same time: 1 to 536,870,911. Default: 4.
    pub max_concurrency: usize,
    /// How long an attempt may take before it is given up. Default: none.
    pub default_timeout: Option<Duration>,
    /// Commands waiting at which the lane emits `queue.lane.pressure`; `queue.lane.idle` follows when none waits any
    /// more. Default: none, no such events.
    pub pressure_threshold: Option<usize>,
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
        Self { min_concurrency: min, max_concurrency: max, default_timeout: None, pressure_threshold: None }
    }

    /// Gives attempts up after `timeout`: the submitter gets [`LaneError::Timeout`](crate::LaneError::Timeout) then, the
    /// command is dropped at its current await, and its slot is free when it has really stopped.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
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
pub(super) fn check_lane(id: &str, config: &LaneConfig, priority: u8, errors: &mut ConfigErrors) {
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
    let LaneConfig { min_concurrency: min, max_concurrency: max, default_timeout, pressure_threshold } = config;
    if *max == 0 {
        errors.push(format!("{lane}.max_concurrency"), max, "use at least 1: with 0 no command would ever run");
    }
    if *max > COUNT_MAX {
        errors.push(format!("{lane}.max_concurrency"), max, format!("use at most {COUNT_MAX}"));
    }
    if min > max {
        errors.push(format!("{lane}.min_concurrency"), min, format!("use at most max_concurrency, which is {max}"));
    }
    if *default_timeout == Some(Duration::ZERO) {
        errors.push(
            format!("{lane}.default_timeout"),
            Duration::ZERO,
            "use more than zero, or no timeout: every command would time out at once",
        );
    }
    if *pressure_threshold == Some(0) {
        errors.push(format!("{lane}.pressure_threshold"), 0, "use at least 1, or none for no pressure events");
    }
}
