//! What is asked of the queues' numbers: conditions, thresholds, and for how long.

use std::fmt;
use std::time::Duration;

use super::config::{LatencyAlertConfig, QueueDepthAlertConfig};
use super::notification::AlertLevel;
use super::state::{LEVELS, Terms};
use crate::error::ConfigErrors;

/// The name of the rule that [`QueueDepthAlertConfig`] sets.
pub(super) const QUEUE_DEPTH: &str = "queue_depth";
/// The name of the rule that [`LatencyAlertConfig`] sets.
pub(super) const LATENCY: &str = "latency";

/// An alert is over below this share of its threshold, unless said otherwise.
const CLEAR_RATIO: f64 = 0.8;
/// An alert goes on for so long after it is over, unless said otherwise.
const KEEP_FIRING_FOR: Duration = Duration::from_secs(30);
/// A queue is this deep for so long, unless said otherwise: a burst is no alert.
const DEPTH_FOR: Duration = Duration::from_secs(30);
/// Ratios and quantiles of fewer commands say nothing, unless said otherwise.
const MIN_COUNT: u64 = 20;

/// What a rule looks at. Numbers are of one lane, unless said otherwise. Windows end now.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum AlertCondition {
    /// Commands accepted and not admitted.
    QueueDepth,
    /// How long the command that has waited longest has waited. A paused lane's commands wait, too.
    OldestPendingAge,
    /// How long the command that has run longest has been running: a stuck command.
    OldestActiveAge,
    /// The time that a share `q` (0 to 1) of the commands started in the window have waited at most, within
    /// [`Histogram::RELATIVE_ERROR`](crate::Histogram::RELATIVE_ERROR).
    WaitQuantile {
        /// The share.
        q: f64,
        /// The window.
        window: Duration,
    },
    /// The time that a share `q` (0 to 1) of the attempts ended in the window have run at most, within
    /// [`Histogram::RELATIVE_ERROR`](crate::Histogram::RELATIVE_ERROR).
    RunQuantile {
        /// The share.
        q: f64,
        /// The window.
        window: Duration,
    },
    /// The share (0 to 1) of commands that failed, of those that succeeded or failed in the window. Cancelled and shed ones do
    /// not count.
    FailureRatio {
        /// The window.
        window: Duration,
    },
    /// Dead letters that are kept.
    DeadLetters,
    /// Dead letters that have come in the window.
    DeadLetterGrowth {
        /// The window.
        window: Duration,
    },
    /// How long commands have been due while none started and none ended. Not while the lane is paused, nor if all that wait are
    /// delayed.
    NoProgress,
    /// How long the oldest command has waited, in a lane that runs as many commands as it may; zero in another one.
    Saturated,
    /// Submissions refused per second, other than by a queue that shuts down.
    RejectRate {
        /// The window.
        window: Duration,
    },
    /// Events that subscribers have lost in the window. Of all queues.
    EventsDropped {
        /// The window.
        window: Duration,
    },
    /// Operations of stores that have failed in the window. Of all queues.
    StorageErrors {
        /// The window.
        window: Duration,
    },
    /// Polls in the window that lasted too long. Of all executors.
    StuckPolls {
        /// The window.
        window: Duration,
    },
}

impl AlertCondition {
    pub(super) const fn window(&self) -> Option<Duration> {
        match self {
            Self::WaitQuantile { window, .. }
            | Self::RunQuantile { window, .. }
            | Self::FailureRatio { window }
            | Self::DeadLetterGrowth { window }
            | Self::RejectRate { window }
            | Self::EventsDropped { window }
            | Self::StorageErrors { window }
            | Self::StuckPolls { window } => Some(*window),
            Self::QueueDepth
            | Self::OldestPendingAge
            | Self::OldestActiveAge
            | Self::DeadLetters
            | Self::NoProgress
            | Self::Saturated => None,
        }
    }

    /// Whether it is about all lanes together.
    pub(super) const fn is_global(&self) -> bool {
        matches!(self, Self::EventsDropped { .. } | Self::StorageErrors { .. } | Self::StuckPolls { .. })
    }

    const fn is_time(&self) -> bool {
        matches!(
            self,
            Self::OldestPendingAge
                | Self::OldestActiveAge
                | Self::WaitQuantile { .. }
                | Self::RunQuantile { .. }
                | Self::NoProgress
                | Self::Saturated
        )
    }

    const fn quantile(&self) -> Option<f64> {
        match self {
            Self::WaitQuantile { q, .. } | Self::RunQuantile { q, .. } => Some(*q),
            _ => None,
        }
    }
}

/// A threshold: a number, or a time for conditions that are about one. Made from either.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlertThreshold(Limit);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    Number(f64),
    Time(Duration),
}

impl AlertThreshold {
    /// Times in seconds.
    const fn value(self) -> f64 {
        match self.0 {
            Limit::Number(number) => number,
            Limit::Time(time) => time.as_secs_f64(),
        }
    }
}

impl From<Duration> for AlertThreshold {
    fn from(time: Duration) -> Self {
        Self(Limit::Time(time))
    }
}

impl From<f64> for AlertThreshold {
    fn from(number: f64) -> Self {
        Self(Limit::Number(number))
    }
}

impl From<i32> for AlertThreshold {
    fn from(number: i32) -> Self {
        Self(Limit::Number(f64::from(number)))
    }
}

impl From<u32> for AlertThreshold {
    fn from(number: u32) -> Self {
        Self(Limit::Number(f64::from(number)))
    }
}

impl From<u64> for AlertThreshold {
    fn from(number: u64) -> Self {
        Self(Limit::Number(number as f64))
    }
}

impl From<usize> for AlertThreshold {
    fn from(number: usize) -> Self {
        Self(Limit::Number(number as f64))
    }
}

/// When there is an alert: what is looked at, from which values, for how long, in which lanes.
///
/// A value that reaches a threshold (`>=`) for [as long as asked for](AlertRule::with_for) is an alert. It is over when the value
/// has been [below a share of the threshold](AlertRule::with_clear_ratio) for [as long as
/// that](AlertRule::with_keep_firing_for).
///
/// ```
/// use std::time::Duration;
/// use corelane::{AlertManager, AlertRule};
///
/// let alerts = AlertManager::new().with_rules([
///     AlertRule::no_progress(Duration::from_secs(30)).with_lanes(["payments"]),
///     AlertRule::failure_ratio(0.05, Duration::from_secs(300)).with_critical(0.5).with_min_count(50),
///     AlertRule::queue_depth(1000).with_for(Duration::from_secs(60)),
/// ])?;
/// # Ok::<(), corelane::ConfigErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRule {
    name: String,
    condition: AlertCondition,
    thresholds: [Option<AlertThreshold>; 3],
    hold: Duration,
    clear_ratio: f64,
    keep_firing_for: Duration,
    /// None: all.
    lanes: Option<Vec<String>>,
    min_count: u64,
    /// Values and thresholds are milliseconds, as those of a3s-lane's latency alerts.
    millis: bool,
}

impl AlertRule {
    /// A rule without thresholds. Default: at once, over below 0.8 of the threshold for 30 s, in all lanes; ratios and quantiles
    /// of at least 20 commands.
    #[must_use]
    pub fn new(name: impl Into<String>, condition: AlertCondition) -> Self {
        Self {
            name: name.into(),
            condition,
            thresholds: [None; 3],
            hold: Duration::ZERO,
            clear_ratio: CLEAR_RATIO,
            keep_firing_for: KEEP_FIRING_FOR,
            lanes: None,
            min_count: MIN_COUNT,
            millis: false,
        }
    }

    /// Warns from `depth` pending commands in a lane for 30 s. Name: `queue_depth`.
    #[must_use]
    pub fn queue_depth(depth: u64) -> Self {
        Self::new(QUEUE_DEPTH, AlertCondition::QueueDepth).with_warning(depth).with_for(DEPTH_FOR)
    }

    /// Warns when a command has waited for `age`. Name: `oldest_pending_age`.
    #[must_use]
    pub fn oldest_pending_age(age: Duration) -> Self {
        Self::new("oldest_pending_age", AlertCondition::OldestPendingAge).with_warning(age)
    }

    /// Warns when a command has been running for `age`: it may be stuck. Name: `oldest_active_age`.
    #[must_use]
    pub fn oldest_active_age(age: Duration) -> Self {
        Self::new("oldest_active_age", AlertCondition::OldestActiveAge).with_warning(age)
    }

    /// Warns when not even a share `q` of the commands started in the last 5 minutes have waited for less than `time`. Name:
    /// `wait_quantile`.
    #[must_use]
    pub fn wait_quantile(q: f64, time: Duration) -> Self {
        let window = Duration::from_secs(300);
        Self::new("wait_quantile", AlertCondition::WaitQuantile { q, window }).with_warning(time)
    }

    /// Warns when not even a share `q` of the attempts ended in the last 5 minutes have run for less than `time`. Name:
    /// `run_quantile`.
    #[must_use]
    pub fn run_quantile(q: f64, time: Duration) -> Self {
        let window = Duration::from_secs(300);
        Self::new("run_quantile", AlertCondition::RunQuantile { q, window }).with_warning(time)
    }

    /// Warns from this share (0 to 1) of failed commands. Name: `failure_ratio`.
    #[must_use]
    pub fn failure_ratio(ratio: f64, window: Duration) -> Self {
        Self::new("failure_ratio", AlertCondition::FailureRatio { window }).with_warning(ratio)
    }

    /// Warns from this number of dead letters kept. Name: `dead_letters`.
    #[must_use]
    pub fn dead_letters(count: u64) -> Self {
        Self::new("dead_letters", AlertCondition::DeadLetters).with_warning(count)
    }

    /// Warns from this number of dead letters within the window. Name: `dead_letter_growth`.
    #[must_use]
    pub fn dead_letter_growth(count: u64, window: Duration) -> Self {
        Self::new("dead_letter_growth", AlertCondition::DeadLetterGrowth { window }).with_warning(count)
    }

    /// Warns when commands are due and none has started or ended for `time`. Name: `no_progress`. Lanes whose commands take longer
    /// than that need a longer time, or a rule of their own.
    #[must_use]
    pub fn no_progress(time: Duration) -> Self {
        Self::new("no_progress", AlertCondition::NoProgress).with_warning(time)
    }

    /// Warns when a lane runs as many commands as it may, and another one has waited for `time`. Name: `saturated`.
    #[must_use]
    pub fn saturated(time: Duration) -> Self {
        Self::new("saturated", AlertCondition::Saturated).with_warning(time)
    }

    /// Warns from this number of refused submissions per second. Name: `reject_rate`.
    #[must_use]
    pub fn reject_rate(per_second: f64, window: Duration) -> Self {
        Self::new("reject_rate", AlertCondition::RejectRate { window }).with_warning(per_second)
    }

    /// Warns from this number of lost events within the window. Name: `events_dropped`.
    #[must_use]
    pub fn events_dropped(count: u64, window: Duration) -> Self {
        Self::new("events_dropped", AlertCondition::EventsDropped { window }).with_warning(count)
    }

    /// Warns from this number of failed operations of stores within the window. Name: `storage_errors`.
    #[must_use]
    pub fn storage_errors(count: u64, window: Duration) -> Self {
        Self::new("storage_errors", AlertCondition::StorageErrors { window }).with_warning(count)
    }

    /// Warns from this number of polls that lasted too long within the window. Name: `stuck_polls`.
    #[must_use]
    pub fn stuck_polls(count: u64, window: Duration) -> Self {
        Self::new("stuck_polls", AlertCondition::StuckPolls { window }).with_warning(count)
    }

    /// Rules that are of use to most: no progress for a minute (critical); a lane saturated, or its oldest command waiting, for
    /// minutes; a command that has been running for a quarter of an hour; failures from a tenth (critical: half) of at least 20
    /// commands in 5 minutes; dead letters that come; submissions refused; store operations that fail (critical); stuck polls.
    #[must_use]
    pub fn recommended() -> Vec<Self> {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        vec![
            Self::no_progress(minutes(1)).only_critical(),
            Self::saturated(minutes(2)),
            Self::oldest_pending_age(minutes(5)).with_critical(minutes(30)),
            Self::oldest_active_age(minutes(15)),
            Self::failure_ratio(0.1, minutes(5)).with_critical(0.5),
            Self::dead_letter_growth(1, minutes(10)),
            Self::reject_rate(1.0, minutes(1)),
            Self::storage_errors(1, minutes(5)).only_critical(),
            Self::stuck_polls(1, minutes(5)),
        ]
    }

    /// The rule of a3s-lane's queue depth alerts: at once.
    pub(super) fn of_queue_depth(config: &QueueDepthAlertConfig) -> Self {
        Self::new(QUEUE_DEPTH, AlertCondition::QueueDepth)
            .with_warning(config.warning_threshold)
            .with_critical(config.critical_threshold)
            .with_keep_firing_for(Duration::from_secs(10))
    }

    /// The rule of a3s-lane's latency alerts, which are about each command: the slowest of the last minute.
    pub(super) fn of_latency(config: &LatencyAlertConfig) -> Self {
        let window = Duration::from_secs(60);
        let rule = Self::new(LATENCY, AlertCondition::RunQuantile { q: 1.0, window })
            .with_warning(config.warning_threshold_ms)
            .with_critical(config.critical_threshold_ms)
            .with_keep_firing_for(window)
            .with_min_count(1);
        Self { millis: true, ..rule }
    }

    /// Names it: in notifications, in fingerprints, and for [`AlertMatcher`](super::AlertMatcher)s. Rules of one manager have
    /// different names.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// From which value it is a warning: a number, or a [`Duration`] where the condition is about one.
    #[must_use]
    pub fn with_warning(self, threshold: impl Into<AlertThreshold>) -> Self {
        self.with_threshold(AlertLevel::Warning, threshold)
    }

    /// From which value it is critical.
    #[must_use]
    pub fn with_critical(self, threshold: impl Into<AlertThreshold>) -> Self {
        self.with_threshold(AlertLevel::Critical, threshold)
    }

    /// From which value it is of this level.
    #[must_use]
    pub fn with_threshold(mut self, level: AlertLevel, threshold: impl Into<AlertThreshold>) -> Self {
        self.thresholds[level as usize] = Some(threshold.into());
        self
    }

    /// Critical, from the threshold that a lower level had: nothing else.
    #[must_use]
    pub fn only_critical(mut self) -> Self {
        let threshold = self.thresholds.iter().flatten().next().copied();
        self.thresholds = [None, None, threshold];
        self
    }

    /// How long a value has to hold. Default: zero, that is at once; of [`AlertRule::queue_depth`], 30 s. Values that are
    /// [checked by hand](super::AlertManager::check_queue_depth) count at once.
    #[must_use]
    pub fn with_for(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    /// An alert is over below this share of its threshold, so that a value close to it does not begin and end one all the time.
    /// Above 0, at most 1 (below the threshold itself). Default: 0.8.
    #[must_use]
    pub fn with_clear_ratio(mut self, ratio: f64) -> Self {
        self.clear_ratio = ratio;
        self
    }

    /// How long an alert goes on after it is over: if it comes back in the meantime, nobody hears of it. Default: 30 s.
    #[must_use]
    pub fn with_keep_firing_for(mut self, keep: Duration) -> Self {
        self.keep_firing_for = keep;
        self
    }

    /// The lanes that it is about. Default: all.
    #[must_use]
    pub fn with_lanes<L: Into<String>>(mut self, lanes: impl IntoIterator<Item = L>) -> Self {
        self.lanes = Some(lanes.into_iter().map(Into::into).collect());
        self
    }

    /// The least number of commands in the window for a ratio or a quantile to mean anything: fewer count as a value of 0.
    /// Default: 20.
    #[must_use]
    pub fn with_min_count(mut self, count: u64) -> Self {
        self.min_count = count;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it looks at.
    #[must_use]
    pub const fn condition(&self) -> &AlertCondition {
        &self.condition
    }

    pub(super) const fn min_count(&self) -> u64 {
        self.min_count
    }

    /// Whether values are given in milliseconds.
    pub(super) const fn in_millis(&self) -> bool {
        self.millis
    }

    pub(super) fn is_about(&self, lane: &str) -> bool {
        self.lanes.as_ref().is_none_or(|lanes| lanes.iter().any(|own| own == lane))
    }

    pub(super) fn terms(&self) -> Terms {
        Terms {
            raise: self.thresholds.map(|threshold| threshold.map(AlertThreshold::value)),
            clear_ratio: self.clear_ratio,
            hold: self.hold,
            keep: self.keep_firing_for,
        }
    }

    /// What is told of a value at a level: the lane, the value, the threshold and their unit.
    pub(super) fn message(&self, lane: &str, value: f64, level: AlertLevel) -> String {
        let threshold = self.thresholds[level as usize].map_or(f64::NAN, AlertThreshold::value);
        let place = if lane.is_empty() { String::new() } else { format!("lane {lane}: ") };
        let (value, threshold) = (self.shown(value), self.shown(threshold));
        format!("{place}{} {value} ({level} from {threshold})", Subject(&self.condition))
    }

    fn shown(&self, value: f64) -> String {
        if self.millis {
            return format!("{value:.2}ms");
        }
        if self.condition.is_time() {
            let time = Duration::try_from_secs_f64(value);
            return time.map_or_else(|_| format!("{value} s"), |time| format!("{time:.1?}"));
        }
        match self.condition {
            AlertCondition::FailureRatio { .. } => format!("{:.1} %", value * 100.0),
            AlertCondition::RejectRate { .. } => format!("{value:.1}/s"),
            _ => format!("{value}"),
        }
    }

    /// Adds what is wrong to `errors`.
    pub(super) fn check(&self, errors: &mut ConfigErrors) {
        let path = format!("alerts[{:?}]", self.name);
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            let hint = "give the rule a name without control characters: it is a label in logs and metrics";
            errors.push(format!("{path}.name"), &self.name, hint);
        }
        self.check_thresholds(&path, errors);
        if !(self.clear_ratio > 0.0 && self.clear_ratio <= 1.0) {
            let hint = "use more than 0, or the alert would never end, and at most 1: it ends below the threshold";
            errors.push(format!("{path}.clear_ratio"), self.clear_ratio, hint);
        }
        if self.condition.window() == Some(Duration::ZERO) {
            errors.push(format!("{path}.window"), Duration::ZERO, "use more than zero: nothing happens in no time");
        }
        if let Some(q) = self.condition.quantile().filter(|q| !(0.0..=1.0).contains(q)) {
            errors.push(format!("{path}.q"), q, "use 0 to 1, for example 0.99");
        }
        if self.lanes.as_ref().is_some_and(Vec::is_empty) {
            errors.push(format!("{path}.lanes"), &self.lanes, "name a lane, or leave them out for all");
        }
        if self.lanes.is_some() && self.condition.is_global() {
            errors.push(format!("{path}.lanes"), &self.lanes, "leave them out: the condition is about all together");
        }
    }

    fn check_thresholds(&self, path: &str, errors: &mut ConfigErrors) {
        let mut lower: Option<(AlertLevel, AlertThreshold)> = None;
        for (level, threshold) in LEVELS.into_iter().zip(self.thresholds) {
            let Some(threshold) = threshold else { continue };
            let place = format!("{path}.{level}");
            match (threshold.0, self.condition.is_time()) {
                (Limit::Number(number), true) => {
                    errors.push(&place, number, "use a Duration: the condition is about a time");
                }
                (Limit::Time(time), false) => {
                    errors.push(&place, time, "use a number: the condition is not about a time");
                }
                _ if !(threshold.value() > 0.0 && threshold.value().is_finite()) => {
                    let hint =
                        "use more than 0, and a finite number: 0 is always reached, and the alert would never end";
                    errors.push(&place, threshold.value(), hint);
                }
                _ => {}
            }
            if let Some((least, above)) = lower.filter(|(_, below)| threshold.value() < below.value()) {
                let hint = format!("use at least the threshold of {least}, which is {:?}", above.value());
                errors.push(&place, threshold.value(), hint);
            }
            lower = Some((level, threshold));
        }
        if lower.is_none() {
            errors.push(format!("{path}.warning"), None::<f64>, "give the rule a threshold: with_warning(..)");
        }
        let ratio = matches!(self.condition, AlertCondition::FailureRatio { .. });
        if let Some((level, above)) = lower.filter(|(_, threshold)| ratio && threshold.value() > 1.0) {
            errors.push(format!("{path}.{level}"), above.value(), "use at most 1: it is a share of all");
        }
    }
}

/// What a condition's value is, in a message.
struct Subject<'a>(&'a AlertCondition);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AlertCondition::QueueDepth => f.write_str("queue depth"),
            AlertCondition::OldestPendingAge => f.write_str("oldest pending command has waited"),
            AlertCondition::OldestActiveAge => f.write_str("oldest active command has run"),
            AlertCondition::WaitQuantile { q, .. } if *q == 1.0 => f.write_str("longest wait"),
            AlertCondition::WaitQuantile { q, .. } => write!(f, "p{} of the wait", q * 100.0),
            AlertCondition::RunQuantile { q, .. } if *q == 1.0 => f.write_str("latency"),
            AlertCondition::RunQuantile { q, .. } => write!(f, "p{} of the run time", q * 100.0),
            AlertCondition::FailureRatio { .. } => f.write_str("failed commands"),
            AlertCondition::DeadLetters => f.write_str("dead letters"),
            AlertCondition::DeadLetterGrowth { .. } => f.write_str("new dead letters"),
            AlertCondition::NoProgress => f.write_str("no command has started or ended for"),
            AlertCondition::Saturated => f.write_str("all permits taken, oldest pending command has waited"),
            AlertCondition::RejectRate { .. } => f.write_str("refused submissions"),
            AlertCondition::EventsDropped { .. } => f.write_str("lost events"),
            AlertCondition::StorageErrors { .. } => f.write_str("failed storage operations"),
            AlertCondition::StuckPolls { .. } => f.write_str("stuck polls"),
        }
    }
}
