//! Retry policies and priority boosts as settings: what they compute, and that they survive being stored.

use std::error::Error;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use corelane::{
    FailedAttempt, Jitter, LaneError, PriorityBoostConfig, PriorityBooster, Retry, RetryBudget, RetryPolicy,
    RetryStrategy,
};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

fn stored_and_read<T: Serialize + DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

#[test]
fn the_policies_of_a3s_lane_have_its_numbers() {
    let exponential = RetryPolicy::exponential(3);
    assert_eq!(exponential.max_retries, 3);
    assert_eq!((exponential.initial_delay, exponential.max_delay), (SECOND / 10, 30 * SECOND));
    assert_eq!(exponential.multiplier, 2.0);
    let delays: Vec<_> = [0, 1, 2, 3, 4, 100].map(|attempt| exponential.delay_for_attempt(attempt)).into();
    assert_eq!(delays, [0, 100, 200, 400, 800, 30_000].map(Duration::from_millis));
    assert!(exponential.should_retry(0) && exponential.should_retry(2) && !exponential.should_retry(3));

    let fixed = RetryPolicy::fixed(5, 2 * SECOND);
    assert_eq!((fixed.max_retries, fixed.initial_delay, fixed.max_delay), (5, 2 * SECOND, 2 * SECOND));
    assert_eq!([0, 1, 2, 3].map(|attempt| fixed.delay_for_attempt(attempt).as_secs()), [0, 2, 2, 2]);

    assert_eq!(RetryPolicy::default(), RetryPolicy::none());
    assert!(!RetryPolicy::none().should_retry(0));
    assert_eq!(RetryPolicy::none().delay_for_attempt(1), Duration::ZERO);
}

#[test]
fn delays_saturate_at_their_maximum() {
    let mut policy = RetryPolicy::exponential(u32::MAX);
    policy.multiplier = f64::MAX;
    assert_eq!(policy.delay_for_attempt(u32::MAX), 30 * SECOND);
    policy.max_delay = Duration::MAX;
    assert_eq!(policy.delay_for_attempt(2), Duration::MAX);
    policy.multiplier = 2.0;
    assert_eq!(policy.delay_for_attempt(u32::MAX), Duration::MAX);
    policy.initial_delay = Duration::from_nanos(3);
    assert_eq!(policy.delay_for_attempt(3), Duration::from_nanos(12));
}

#[test]
fn jitter_is_the_default_where_a_storm_could_arise() {
    assert_eq!(RetryPolicy::exponential(1).jitter, Jitter::Full);
    assert_eq!(RetryPolicy::fixed(1, SECOND).jitter, Jitter::Added);
    assert_eq!(RetryPolicy::exponential(1).without_jitter().jitter, Jitter::None);
    assert_eq!(Jitter::default(), Jitter::Full);
}

#[test]
fn a_strategy_can_be_tested_on_its_own() {
    let strategy = |failed: &FailedAttempt<'_>| match failed.error.requested_delay() {
        Some(delay) => Retry::After(delay),
        None => Retry::Discard,
    };
    let busy = LaneError::Other("busy".into()).retry_after(SECOND);
    assert_eq!(strategy.decide(&FailedAttempt::new(&busy, 1, SECOND, SECOND)), Retry::After(SECOND));
    let other = LaneError::Other("odd".into());
    assert_eq!(strategy.decide(&FailedAttempt::new(&other, 1, SECOND, SECOND)), Retry::Discard);
    let policy = RetryPolicy::custom(strategy);
    assert_eq!(policy, policy.clone());
    assert_ne!(policy, RetryPolicy::custom(|_| Retry::Discard));
    assert!(format!("{policy:?}").contains("custom: true"));
}

#[test]
fn marks_on_errors_keep_what_they_mark() {
    let inner = || LaneError::CommandError("429".into());
    let error = inner().retry_after(7 * SECOND).permanent();
    assert!(error.is_permanent() && !inner().is_permanent() && !inner().retry_after(SECOND).is_permanent());
    assert_eq!(error.requested_delay(), Some(7 * SECOND));
    assert_eq!(inner().requested_delay(), None);
    assert!(matches!(error.unmarked(), LaneError::CommandError(text) if text == "429"));
    assert!(error.to_string().contains("429") && error.to_string().contains("7s"), "{error}");

    let mut links = 0;
    let mut link: Option<&dyn Error> = error.source();
    while let Some(error) = link {
        assert!(error.to_string().contains("429"));
        links += 1;
        link = error.source();
    }
    assert_eq!(links, 2);
    assert!(anyhow::Error::from(error).root_cause().to_string().contains("429"));
}

#[test]
fn a_clone_of_a_policy_shares_its_budget_and_a_stored_one_begins_anew() {
    let budget = RetryBudget::new(0.5, 3);
    let policy = RetryPolicy::exponential(1).with_budget(budget.clone());
    assert_eq!((budget.available(), budget.ratio(), budget.reserve()), (3, 0.5, 3));
    assert_eq!(policy.clone(), policy);
    assert_ne!(policy, RetryPolicy::exponential(1));
    assert_eq!(stored_and_read(&policy).budget.unwrap().available(), 3);
}

#[test]
fn a_custom_strategy_is_not_silently_lost_when_it_is_stored() {
    let error = serde_json::to_string(&RetryPolicy::custom(|_| Retry::Fail)).unwrap_err();
    assert!(error.to_string().contains("custom retry strategy"), "{error}");
}

#[test]
fn a_number_that_can_not_be_stored_is_not_silently_lost() {
    let mut endless = RetryPolicy::exponential(1);
    endless.multiplier = f64::INFINITY;
    assert!(serde_json::to_string(&endless).unwrap_err().to_string().contains("inf is not a finite number"));
    let unclear = RetryPolicy::exponential(1).with_budget(RetryBudget::new(f64::NAN, 1));
    assert!(serde_json::to_string(&unclear).unwrap_err().to_string().contains("NaN is not a finite number"));
}

#[test]
fn settings_stored_by_a3s_lane_can_be_read_and_typos_can_not() {
    let stored = |multiplier: f64| {
        json!({
            "max_retries": 3, "initial_delay": {"secs": 1, "nanos": 0}, "max_delay": {"secs": 1, "nanos": 0},
            "multiplier": multiplier,
        })
    };
    let read = |value| serde_json::from_value::<RetryPolicy>(value);
    assert_eq!(read(stored(1.0)).unwrap(), RetryPolicy::fixed(3, SECOND));
    assert_eq!(read(stored(2.0)).unwrap().jitter, Jitter::Full);
    let mut typo = stored(1.0);
    typo["max_retires"] = json!(4);
    assert!(read(typo).unwrap_err().to_string().contains("max_retires"));
}

#[test]
fn the_boosts_of_a3s_lane_have_its_numbers() {
    let config = PriorityBoostConfig::standard(100 * SECOND);
    assert!(config.enabled && !PriorityBoostConfig::disabled().enabled);
    assert_eq!(config.boost_intervals, [(75, 1), (50, 2), (25, 3), (10, 4)].map(|(s, boost)| (s * SECOND, boost)));
    let config = PriorityBoostConfig::aggressive(100 * SECOND);
    assert_eq!(config.boost_intervals, [(80, 2), (60, 4), (40, 6), (20, 8)].map(|(s, boost)| (s * SECOND, boost)));
    assert_eq!(PriorityBoostConfig::default(), PriorityBoostConfig::disabled());

    let sorted = PriorityBoostConfig::new(60 * SECOND).with_boost(15 * SECOND, 2).with_boost(30 * SECOND, 1);
    assert_eq!(sorted.boost_intervals[0].0, 30 * SECOND);
    let booster = PriorityBooster::new(sorted);
    let ago = |seconds| Utc::now() - TimeDelta::seconds(seconds);
    assert_eq!(booster.calculate_priority(5, ago(0)), 5);
    assert_eq!(booster.calculate_priority(5, ago(40)), 4);
    assert_eq!(booster.calculate_priority(1, ago(50)), 0);
    assert_eq!(booster.calculate_priority(9, ago(70)), 0, "past the deadline");
    assert!(booster.is_past_deadline(ago(70)) && !booster.is_past_deadline(ago(50)));
    assert_eq!(booster.time_remaining(ago(120)), Some(Duration::ZERO));
    assert!(booster.time_remaining(ago(30)).is_some_and(|left| left > 25 * SECOND && left <= 30 * SECOND));

    let off = PriorityBooster::default();
    assert_eq!(off.calculate_priority(5, ago(3600)), 5);
    assert!(!off.is_past_deadline(ago(3600)) && off.time_remaining(ago(3600)).is_none());
}

#[test]
fn a_huge_deadline_is_never_past() {
    for deadline in [Duration::MAX, Duration::from_secs(u64::MAX / 1000), Duration::from_secs(10_000_000_000_000)] {
        let booster = PriorityBooster::new(PriorityBoostConfig::aggressive(deadline));
        let made = Utc::now() - TimeDelta::days(100_000);
        assert!(!booster.is_past_deadline(made));
        assert_eq!(booster.calculate_priority(5, made), 5);
        assert!(booster.time_remaining(made) > Some(deadline / 2));
    }
}

#[test]
fn a_protected_class_is_never_reached() {
    let late = Utc::now() - TimeDelta::hours(1);
    let config = PriorityBoostConfig::standard(SECOND).with_best_priority(2);
    let booster = PriorityBooster::new(config);
    assert_eq!([0, 1, 2, 3, 63].map(|base| booster.calculate_priority(base, late)), [0, 1, 2, 2, 2]);
}

fn any_duration() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

proptest! {
    #[test]
    fn a_policy_survives_being_stored(
        max_retries: u32,
        initial_delay in any_duration(),
        max_delay in any_duration(),
        multiplier in 1.0..1e6_f64,
        jitter in prop_oneof![Just(Jitter::Full), Just(Jitter::Decorrelated), Just(Jitter::Added), Just(Jitter::None)],
        budget in prop::option::of((0..1000_u32, any::<u32>())),
    ) {
        let mut policy = RetryPolicy::exponential(max_retries).with_jitter(jitter);
        (policy.initial_delay, policy.max_delay, policy.multiplier) = (initial_delay, max_delay, multiplier);
        if let Some((hundredths, reserve)) = budget {
            policy = policy.with_budget(RetryBudget::new(f64::from(hundredths) / 100.0, reserve));
        }
        prop_assert_eq!(stored_and_read(&policy), policy);
    }

    #[test]
    fn a_boost_survives_being_stored(
        enabled: bool,
        deadline in any_duration(),
        boost_intervals in prop::collection::vec((any_duration(), any::<u8>()), 0..5),
        best_priority: Option<u8>,
    ) {
        let config = PriorityBoostConfig { enabled, deadline, boost_intervals, best_priority };
        prop_assert_eq!(stored_and_read(&config), config);
    }
}
