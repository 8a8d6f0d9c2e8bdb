//! How waiting work gets better as its deadline comes nearer.
//!
//! Owns no state: a priority is a function of the base priority and of the time that passed. The queue uses the monotonic
//! form ([`PriorityBooster::priority_at`] and [`PriorityBooster::next_step`], which says when to look again). The form with
//! timestamps is that of a3s-lane. Never: a deadline too large to be reached counts as passed; a boost makes a priority
//! worse.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::wall_now;
use crate::error::ConfigErrors;

/// The best priority that a queue boosts to unless told otherwise: class 0 is not shared with work that merely waited.
const BEST_BY_DEFAULT: u8 = 1;

/// How the commands of a lane get a better priority while they wait. Default: [`PriorityBoostConfig::disabled`].
///
/// A boost is subtracted from the command's priority (lower is better) when no more than some time is left until its
/// deadline, which counts from when it was accepted. Past the deadline a command has the best priority that boosting gives:
/// 1, or what [`with_best_priority`](Self::with_best_priority) says. A lane that is better than that stays as it is.
///
/// A deadline here gives nothing up; for that see [`LaneConfig::with_timeout`](crate::LaneConfig::with_timeout).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorityBoostConfig {
    /// Whether anything is boosted.
    pub enabled: bool,
    /// How long after it was accepted a command should have started. One too large to be reached means never.
    pub deadline: Duration,
    /// Time left until the deadline, and the boost from then on. In any order; of those that apply, the largest boost
    /// counts.
    pub boost_intervals: Vec<(Duration, u8)>,
    /// The best priority that boosting gives. Default: none, which is 1 in a queue, so that lanes of priority 0 are never
    /// overtaken or shared; and 0 in [`PriorityBooster::calculate_priority`], as in a3s-lane.
    #[serde(default)]
    pub best_priority: Option<u8>,
}

impl Default for PriorityBoostConfig {
    fn default() -> Self {
        Self::disabled()
    }
}

impl PriorityBoostConfig {
    /// No boost before `deadline`, the best priority after it.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self { enabled: true, deadline, boost_intervals: Vec::new(), best_priority: None }
    }

    /// No boost at all.
    #[must_use]
    pub fn disabled() -> Self {
        Self { enabled: false, ..Self::new(Duration::ZERO) }
    }

    /// Better by 1 when 75 % of `deadline` are left, by 2 at 50 %, by 3 at 25 %, by 4 at 10 %.
    #[must_use]
    pub fn standard(deadline: Duration) -> Self {
        Self::in_steps(deadline, [(75, 1), (50, 2), (25, 3), (10, 4)])
    }

    /// Better by 2 when 80 % of `deadline` are left, by 4 at 60 %, by 6 at 40 %, by 8 at 20 %.
    #[must_use]
    pub fn aggressive(deadline: Duration) -> Self {
        Self::in_steps(deadline, [(80, 2), (60, 4), (40, 6), (20, 8)])
    }

    fn in_steps(deadline: Duration, steps: [(u32, u8); 4]) -> Self {
        let share = |percent| {
            // Whole and part apart, so that nothing overflows and nothing is rounded but the last nanosecond.
            deadline / 100 * percent + (deadline - deadline / 100 * 100) * percent / 100
        };
        steps.into_iter().fold(Self::new(deadline), |config, (percent, boost)| config.with_boost(share(percent), boost))
    }

    /// Better by `boost` when no more than `time_before_deadline` is left. Keeps the intervals in the order in which they
    /// come into effect.
    #[must_use]
    pub fn with_boost(mut self, time_before_deadline: Duration, boost: u8) -> Self {
        self.boost_intervals.push((time_before_deadline, boost));
        self.boost_intervals.sort_by_key(|(left, _)| std::cmp::Reverse(*left));
        self
    }

    /// Boosts to `priority` at best, and so protects the classes that are better: with 2, boosted work never has priority 0
    /// or 1. With 0 it may be as good as any.
    #[must_use]
    pub fn with_best_priority(mut self, priority: u8) -> Self {
        self.best_priority = Some(priority);
        self
    }

    /// The priority of work that has `left` until its deadline.
    fn priority_with(&self, left: Duration, base: u8, best: u8) -> u8 {
        if !self.enabled {
            return base;
        }
        let boosted = if left.is_zero() { 0 } else { base.saturating_sub(self.boost_with(left)) };
        boosted.max(best).min(base)
    }

    fn boost_with(&self, left: Duration) -> u8 {
        let applying = self.boost_intervals.iter().filter(|(from, _)| left <= *from);
        applying.map(|(_, boost)| *boost).max().unwrap_or(0)
    }

    /// Adds what is wrong to `errors`; `path` is where the settings stand.
    pub(crate) fn check(&self, path: &str, errors: &mut ConfigErrors) {
        if !self.enabled {
            return;
        }
        if self.deadline.is_zero() {
            errors.push(
                format!("{path}.deadline"),
                self.deadline,
                "use more than zero, or PriorityBoostConfig::disabled(): every command would be late at once",
            );
        }
        for (index, (left, _)) in self.boost_intervals.iter().enumerate() {
            if *left > self.deadline {
                errors.push(
                    format!("{path}.boost_intervals[{index}]"),
                    left,
                    format!("use at most the deadline, which is {:?}: this is the time left until then", self.deadline),
                );
            }
        }
    }
}

/// Computes priorities from a [`PriorityBoostConfig`].
///
/// What takes a timestamp reads the wall clock, as in a3s-lane. A queue counts monotonic time instead, which no change of
/// the system's clock moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriorityBooster {
    config: PriorityBoostConfig,
}

impl PriorityBooster {
    /// A booster with these settings.
    #[must_use]
    pub fn new(config: PriorityBoostConfig) -> Self {
        Self { config }
    }

    /// The priority, now, of something of priority `base_priority` that was made at `created_at`. Past the deadline it is 0,
    /// or the best priority that the settings name.
    #[must_use]
    pub fn calculate_priority(&self, base_priority: u8, created_at: DateTime<Utc>) -> u8 {
        let left = self.left(created_at, wall_now());
        self.config.priority_with(left, base_priority, self.config.best_priority.unwrap_or(0))
    }

    /// Whether the deadline of something made at `created_at` is now or has passed. False if disabled.
    #[must_use]
    pub fn is_past_deadline(&self, created_at: DateTime<Utc>) -> bool {
        self.config.enabled && self.left(created_at, wall_now()).is_zero()
    }

    /// The time until the deadline of something made at `created_at`; zero if it has passed, none if disabled.
    #[must_use]
    pub fn time_remaining(&self, created_at: DateTime<Utc>) -> Option<Duration> {
        self.config.enabled.then(|| self.left(created_at, wall_now()))
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &PriorityBoostConfig {
        &self.config
    }

    /// The priority of a command that was accepted `waited` ago; never better than 1 unless the settings name another best
    /// priority, and never worse than `base`.
    pub(crate) fn priority_at(&self, base: u8, waited: Duration) -> u8 {
        let left = self.config.deadline.saturating_sub(waited);
        self.config.priority_with(left, base, self.config.best_priority.unwrap_or(BEST_BY_DEFAULT))
    }

    /// The time since acceptance, later than `waited`, at which a priority may change next; none if never again. How far
    /// the base priority lets it change is left out.
    pub(crate) fn next_step(&self, waited: Duration) -> Option<Duration> {
        let PriorityBoostConfig { enabled, deadline, boost_intervals, .. } = &self.config;
        if !enabled || waited >= *deadline {
            return None;
        }
        let now = self.config.boost_with(deadline.saturating_sub(waited));
        let better = boost_intervals.iter().filter(|(_, boost)| *boost > now);
        better.map(|(left, _)| deadline.saturating_sub(*left)).chain([*deadline]).min()
    }

    fn left(&self, created_at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
        let waited = now.signed_duration_since(created_at);
        match waited.to_std() {
            Ok(waited) => self.config.deadline.saturating_sub(waited),
            // Made in the future, by another clock.
            Err(_) => self.config.deadline.saturating_add(waited.abs().to_std().unwrap_or(Duration::MAX)),
        }
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn booster(config: PriorityBoostConfig) -> PriorityBooster {
        PriorityBooster::new(config)
    }

    #[test]
    fn priorities_get_better_at_the_shares_of_the_deadline_that_were_promised() {
        let second = |second: u64| Duration::from_secs(second);
        let standard = booster(PriorityBoostConfig::standard(second(100)));
        let aggressive = booster(PriorityBoostConfig::aggressive(second(100)));
        for (waited, calm, keen) in [(0, 20, 20), (19, 20, 20), (20, 20, 18), (25, 19, 18), (40, 19, 16), (50, 18, 16)]
        {
            assert_eq!(standard.priority_at(20, second(waited)), calm, "{waited}");
            assert_eq!(aggressive.priority_at(20, second(waited)), keen, "{waited}");
        }
        for (waited, calm, keen) in [(60, 18, 14), (75, 17, 14), (80, 17, 12), (90, 16, 12), (99, 16, 12), (100, 1, 1)]
        {
            assert_eq!(standard.priority_at(20, second(waited)), calm, "{waited}");
            assert_eq!(aggressive.priority_at(20, second(waited)), keen, "{waited}");
        }
    }

    #[test]
    fn boosted_work_of_a_queue_never_shares_class_0_unless_it_is_told_to() {
        let late = 2 * MINUTE;
        let config = PriorityBoostConfig::aggressive(MINUTE);
        assert_eq!(booster(config.clone()).priority_at(3, late), 1);
        assert_eq!(booster(config.clone()).priority_at(0, late), 0, "what is better already stays");
        assert_eq!(booster(config.clone().with_best_priority(2)).priority_at(5, late), 2);
        assert_eq!(booster(config.clone().with_best_priority(2)).priority_at(1, late), 1);
        assert_eq!(booster(config.with_best_priority(0)).priority_at(5, late), 0);
    }

    #[test]
    fn a_deadline_that_is_never_reached_never_boosts() {
        for deadline in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(1 << 50)] {
            for config in [PriorityBoostConfig::standard(deadline), PriorityBoostConfig::aggressive(deadline)] {
                let booster = booster(config);
                let ages = Duration::from_secs(3600 * 24 * 365 * 1000);
                assert_eq!(booster.priority_at(5, ages), 5);
                assert!(booster.next_step(ages) > Some(ages));
                let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
                assert!(booster.left(DateTime::<Utc>::MIN_UTC, now) > ages);
                assert!(booster.left(DateTime::<Utc>::MAX_UTC, now) >= deadline);
            }
        }
    }

    #[test]
    fn what_was_made_by_a_clock_ahead_is_not_late() {
        let now = DateTime::UNIX_EPOCH;
        let booster = booster(PriorityBoostConfig::standard(MINUTE));
        assert_eq!(booster.left(now + TimeDelta::seconds(30), now), MINUTE * 3 / 2);
        assert_eq!(booster.left(now - TimeDelta::seconds(60), now), Duration::ZERO);
        assert_eq!(booster.left(now - TimeDelta::nanoseconds(1), now), MINUTE - Duration::from_nanos(1));
    }

    #[test]
    fn settings_that_make_no_sense_are_found_with_a_hint() {
        let problems = |config: PriorityBoostConfig| {
            let mut errors = ConfigErrors::default();
            config.check("b", &mut errors);
            errors.problems().iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(problems(PriorityBoostConfig::new(Duration::ZERO)), ["b.deadline"]);
        assert_eq!(problems(PriorityBoostConfig::standard(MINUTE).with_boost(MINUTE * 2, 1)), ["b.boost_intervals[0]"]);
        for fine in [PriorityBoostConfig::disabled(), PriorityBoostConfig::aggressive(Duration::MAX)] {
            assert!(problems(fine).is_empty());
        }
    }

    fn any_config() -> impl Strategy<Value = PriorityBoostConfig> {
        let interval = (0..2000_u64, any::<u8>()).prop_map(|(millis, boost)| (Duration::from_millis(millis), boost));
        (any::<bool>(), 0..1000_u64, prop::collection::vec(interval, 0..6), prop::option::of(any::<u8>())).prop_map(
            |(enabled, deadline, boost_intervals, best_priority)| PriorityBoostConfig {
                enabled,
                deadline: Duration::from_millis(deadline),
                boost_intervals,
                best_priority,
            },
        )
    }

    proptest! {
        /// A timer armed for the next step misses no change, and priorities never get worse.
        #[test]
        fn between_two_steps_the_priority_stays(config in any_config(), base: u8) {
            let booster = booster(config);
            let mut step = Some(Duration::ZERO);
            let mut previous = base;
            for millis in 0..1100 {
                let waited = Duration::from_millis(millis);
                let priority = booster.priority_at(base, waited);
                if step.is_some_and(|at| at <= waited) {
                    step = booster.next_step(waited);
                    prop_assert!(step.is_none_or(|at| at > waited));
                } else {
                    prop_assert_eq!(priority, previous, "changed after {:?} without a step", waited);
                }
                prop_assert!(priority <= previous);
                previous = priority;
            }
            prop_assert_eq!(step, None);
        }

        #[test]
        fn settings_survive_being_stored(config in any_config()) {
            let stored = serde_json::to_string(&config).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(serde_json::from_str::<PriorityBoostConfig>(&stored).ok(), Some(config));
        }
    }
}
