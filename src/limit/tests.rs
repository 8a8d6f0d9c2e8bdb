//! What both rate limiters promise, in virtual time: exact rates, exact bounds, honest refusals.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::rate::{RateAlgorithm, RateLimitConfig, RateLimiter};
use super::sliding_window::{CELLS_MAX, SlidingWindowLimiter};
use super::token_bucket::TokenBucketLimiter;
use crate::clock::Tick;
use crate::error::ConfigErrors;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const BOTH: [RateAlgorithm; 2] = [RateAlgorithm::TokenBucket, RateAlgorithm::SlidingWindow];

fn tick(nanos: u64) -> Tick {
    Tick::from_nanos(nanos)
}

fn limiter(config: &RateLimitConfig) -> RateLimiter {
    RateLimiter::new(config).unwrap()
}

/// Takes until refused; how many, and when to ask again.
fn take_all(limiter: &RateLimiter, now: u64) -> (u64, u64) {
    for taken in 0.. {
        if let Err(again) = limiter.take(tick(now), 1) {
            assert!(again > tick(now), "told to ask again at {again:?}, at {now}");
            return (taken, again.as_nanos());
        }
    }
    unreachable!("the limiter has a limit")
}

/// When a lane that always has work asks.
#[derive(Clone, Copy, Debug)]
enum Polls {
    Every(u64),
    /// Exactly when it was told to, as lanes do.
    WhenTold,
    /// Somewhat later than it was told to, as timers are.
    Late(u64),
}

/// Relative error of what a lane that always has work is admitted in `windows` windows.
fn rate_error(config: &RateLimitConfig, polls: Polls, windows: u64) -> f64 {
    let limiter = limiter(config);
    let end = windows * config.window.as_nanos() as u64;
    // A bucket gives its burst, and then the last token of a window at its end; which for a sliding window is the next one.
    let (last, expected) = match config.algorithm {
        RateAlgorithm::TokenBucket => (end, (windows + 1) * config.max_commands),
        RateAlgorithm::SlidingWindow => (end - 1, windows * config.max_commands),
    };
    let (mut now, mut taken) = (0, 0);
    while now <= last {
        let (more, again) = take_all(&limiter, now);
        taken += more;
        now = match polls {
            Polls::Every(nanos) => now + nanos,
            Polls::WhenTold => again,
            Polls::Late(nanos) => again + nanos,
        };
    }
    taken as f64 / expected as f64 - 1.0
}

#[test]
fn a_saturated_lane_gets_its_rate_whatever_the_rate_and_the_polls() {
    let rates = [
        RateLimitConfig::new(1, Duration::from_secs(10)),
        RateLimitConfig::new(3, Duration::from_secs(10)),
        RateLimitConfig::per_second(1),
        RateLimitConfig::per_minute(777),
        RateLimitConfig::per_second(7),
        RateLimitConfig::per_second(95),
        RateLimitConfig::per_second(190),
        RateLimitConfig::per_second(1_950),
        RateLimitConfig::per_second(33_333),
        RateLimitConfig::per_second(999_999),
        RateLimitConfig::per_second(1_000_000),
    ];
    for rate in rates {
        for algorithm in BOTH {
            let config = rate.clone().with_algorithm(algorithm);
            let windows = 2.max(200 / config.max_commands);
            let window = config.window.as_nanos() as f64;
            for polls in [Polls::WhenTold, Polls::Every(MS), Polls::Every(11 * MS), Polls::Late(65_000)] {
                let error = rate_error(&config, polls, windows);
                let delay = match polls {
                    Polls::Every(nanos) | Polls::Late(nanos) => nanos as f64 / window,
                    Polls::WhenTold => 0.0,
                };
                let allowed = match algorithm {
                    // No delay is lost but the last one.
                    RateAlgorithm::TokenBucket if config.max_commands > 1 => {
                        0.001 + delay / windows as f64 + 1.0 / (windows * config.max_commands) as f64
                    }
                    // Each place, and the token of a bucket of one, comes back a window after it was taken.
                    _ => 0.001 + delay + 1.0 / (windows * config.max_commands) as f64,
                };
                assert!(error <= 0.0 && -error < allowed, "{config:?}, {polls:?}: {:.4} %", error * 100.0);
            }
        }
    }
}

#[test]
fn asking_when_told_loses_less_than_a_thousandth_in_the_long_run() {
    for (max, window) in
        [(1, 10 * SECOND), (7, SECOND), (999_999, SECOND), (1_000_000, SECOND), (7_777, 3_600 * SECOND)]
    {
        for algorithm in BOTH {
            let config = RateLimitConfig::new(max, Duration::from_nanos(window)).with_algorithm(algorithm);
            let limiter = limiter(&config);
            let (burst, mut now) = take_all(&limiter, 0);
            assert_eq!(burst, max);
            let mut taken = 0;
            while taken < 2_000_000.min(5_000 * max) {
                let (more, again) = take_all(&limiter, now);
                assert!(more > 0, "{config:?}: refused at the time that it had named");
                (taken, now) = (taken + more, again);
            }
            // What is due at `now` comes on top.
            let due = if algorithm == RateAlgorithm::TokenBucket { 1 } else { max };
            let exact = (taken + due) as f64 * window as f64 / max as f64;
            let error = now as f64 / exact - 1.0;
            assert!((-1e-9..1e-3).contains(&error), "{config:?}: {:.5} %", error * 100.0);
        }
    }
}

#[test]
fn an_idle_limiter_keeps_its_burst_and_no_more() {
    for algorithm in BOTH {
        for polls in [MS, 11 * MS, 3 * SECOND] {
            let limiter = limiter(&RateLimitConfig::per_second(90).with_algorithm(algorithm));
            assert_eq!(take_all(&limiter, 0).0, 90);
            // Nobody takes anything; a look that finds nothing to run does not ask.
            let idle = 10 * SECOND + polls;
            assert_eq!(take_all(&limiter, idle).0, 90);
            assert_eq!(take_all(&limiter, idle).0, 0);
        }
    }
}

#[test]
fn refusals_cost_nothing() {
    for algorithm in BOTH {
        let limiter = limiter(&RateLimitConfig::per_second(10).with_algorithm(algorithm));
        assert_eq!(take_all(&limiter, 0).0, 10);
        for now in 1..100_000 {
            assert!(limiter.take(tick(now), 1).is_err());
        }
        assert_eq!(take_all(&limiter, 10 * SECOND).0, 10);
    }
}

#[test]
fn a_burst_of_its_own_smooths_or_catches_up() {
    let smooth = limiter(&RateLimitConfig::per_second(1_000).with_burst(1));
    assert_eq!(take_all(&smooth, 5 * SECOND), (1, 5 * SECOND + MS));
    let saving = limiter(&RateLimitConfig::per_second(10).with_burst(25));
    assert_eq!(take_all(&saving, 0).0, 25);
    assert_eq!(take_all(&saving, 2 * SECOND).0, 20);
    assert_eq!(take_all(&saving, 60 * SECOND).0, 25);
}

#[test]
fn costs_are_all_or_nothing() {
    for algorithm in BOTH {
        let limiter = limiter(&RateLimitConfig::per_second(10).with_algorithm(algorithm));
        assert_eq!(limiter.take(tick(0), 7), Ok(()));
        assert!(limiter.take(tick(0), 4).is_err());
        assert_eq!(limiter.take(tick(0), 3), Ok(()));
        assert_eq!(limiter.take(tick(0), 0), Ok(()), "what costs nothing is not limited");
        assert!(limiter.take(tick(0), 1).is_err());
    }
}

#[test]
fn a_cost_beyond_the_limit_is_refused_for_ever_and_says_so() {
    for algorithm in BOTH {
        let limiter = limiter(&RateLimitConfig::per_second(10).with_algorithm(algorithm));
        assert_eq!(limiter.largest_cost(), 10);
        assert_eq!(limiter.take(tick(0), 11), Err(Tick::NEVER));
        assert_eq!(limiter.take(tick(0), 10), Ok(()), "the refusal has cost nothing");
        assert_eq!(limiter.take(tick(0), 10), Err(tick(SECOND)));
    }
}

#[test]
fn a_refusal_names_the_time_at_which_enough_is_there() {
    let bucket = limiter(&RateLimitConfig::per_second(10));
    assert_eq!(bucket.take(tick(0), 10), Ok(()));
    assert_eq!(bucket.take(tick(5), 3), Err(tick(3 * SECOND / 10)));
    let window = limiter(&RateLimitConfig::per_second(2).sliding_window());
    assert_eq!(window.take(tick(0), 1), Ok(()));
    assert_eq!(window.take(tick(7), 1), Ok(()));
    assert_eq!(window.take(tick(9), 1), Err(tick(SECOND)));
    assert_eq!(window.take(tick(9), 2), Err(tick(SECOND + 7)));
}

#[test]
fn a_clock_that_is_behind_gets_nothing_extra() {
    for algorithm in BOTH {
        let limiter = limiter(&RateLimitConfig::per_second(5).with_algorithm(algorithm));
        assert_eq!(take_all(&limiter, 10 * SECOND).0, 5);
        let (taken, again) = take_all(&limiter, 10 * SECOND - 100);
        assert_eq!(taken, 0);
        assert!(again >= 10 * SECOND);
    }
}

#[test]
fn nothing_is_admitted_before_the_end_of_a_pause() {
    for config in [RateLimitConfig::per_second(5), RateLimitConfig::per_second(5).sliding_window()] {
        for limiter in [limiter(&config), RateLimiter::unlimited()] {
            limiter.pause_until(tick(3 * SECOND));
            limiter.pause_until(tick(SECOND));
            assert_eq!(limiter.take(tick(2 * SECOND), 1), Err(tick(3 * SECOND)), "a shorter pause shortens none");
            assert_eq!(limiter.clone().take(tick(3 * SECOND - 1), 1), Err(tick(3 * SECOND)), "clones share it");
            assert_eq!(limiter.take(tick(3 * SECOND), 1), Ok(()));
            limiter.pause_until(Tick::NEVER);
            assert_eq!(limiter.take(tick(4 * SECOND), 1), Err(Tick::NEVER));
            limiter.resume();
            assert_eq!(limiter.take(tick(4 * SECOND), 1), Ok(()));
        }
    }
}

#[test]
fn an_unlimited_config_makes_no_limiter() {
    let unlimited = RateLimitConfig::unlimited();
    for limiter in [
        limiter(&unlimited),
        limiter(&unlimited.clone().sliding_window()),
        RateLimiter::token_bucket(&unlimited),
        RateLimiter::sliding_window(&unlimited),
        RateLimiter::default(),
    ] {
        assert_eq!(limiter.largest_cost(), u64::MAX);
        assert!((0..10_000).all(|_| limiter.take(tick(0), u32::MAX).is_ok()));
    }
    // Nor does one made directly overflow.
    let bucket = TokenBucketLimiter::new(&unlimited);
    assert!((0..10_000).all(|now| bucket.take(tick(now), 1).is_ok()));
}

#[test]
fn huge_durations_saturate() {
    for algorithm in BOTH {
        for window in [Duration::MAX, Duration::from_nanos(u64::MAX), Duration::from_nanos(1 << 58)] {
            let config = RateLimitConfig::new(2, window).with_algorithm(algorithm);
            let made = match algorithm {
                RateAlgorithm::TokenBucket => RateLimiter::token_bucket(&config),
                RateAlgorithm::SlidingWindow => RateLimiter::sliding_window(&config),
            };
            let (taken, again) = take_all(&made, 7);
            assert_eq!(taken, 2);
            assert!(again > 1 << 56, "ask again in years, not {again}");
        }
        // Centuries from now nothing overflows, and nothing is stuck.
        let late = limiter(&RateLimitConfig::per_second(2).with_algorithm(algorithm));
        for now in [1 << 62, u64::MAX >> 1, (u64::MAX >> 1) + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(late.take(tick(now), 1), Ok(()));
        }
        let paused = limiter(&RateLimitConfig::per_second(2).with_algorithm(algorithm));
        paused.pause_until(tick(1).plus(Duration::MAX));
        assert_eq!(paused.take(tick(1 << 62), 1), Err(Tick::NEVER));
    }
}

#[test]
fn values_out_of_range_are_brought_into_it_or_refused() {
    let nothing = RateLimitConfig::new(0, Duration::ZERO).with_burst(0);
    assert_eq!(TokenBucketLimiter::new(&nothing).capacity(), 1);
    assert_eq!(SlidingWindowLimiter::new(&nothing).largest_cost(), 1);
    let problems = |config: RateLimitConfig| -> Vec<String> {
        let errors = RateLimiter::new(&config).expect_err("refused");
        errors.problems().iter().map(|problem| problem.path.clone()).collect()
    };
    let (max, window, burst) = ("rate_limit.max_commands", "rate_limit.window", "rate_limit.burst");
    assert_eq!(problems(nothing.clone()), [max, window, burst]);
    assert_eq!(problems(nothing.sliding_window()), [max, window, burst]);
    assert_eq!(problems(RateLimitConfig::new(5, Duration::MAX)), [window]);
    assert_eq!(problems(RateLimitConfig::per_second(100_000_001)), [max]);
    assert_eq!(problems(RateLimitConfig::per_hour(1).with_burst(100_000)), [burst]);
    assert_eq!(problems(RateLimitConfig::per_second(1).with_burst(u64::MAX)), [burst]);
    assert_eq!(problems(RateLimitConfig::per_second(5).with_burst(1).sliding_window()), [burst]);
    let mut errors = ConfigErrors::default();
    RateLimitConfig::per_second(0).check("lanes[\"api\"].rate_limit", &mut errors);
    let text = errors.to_string();
    assert!(text.contains("lanes[\"api\"].rate_limit.max_commands = 0: use at least 1"), "{text}");
    for usable in [
        RateLimitConfig::unlimited(),
        RateLimitConfig::per_second(100_000_000),
        RateLimitConfig::new(1, Duration::from_nanos(1 << 58)),
        RateLimitConfig::new(1, Duration::from_nanos(10)).with_burst(1 << 50),
    ] {
        limiter(&usable);
    }
}

#[test]
fn a_window_of_more_than_a_million_is_limited_in_parts() {
    let config = RateLimitConfig::per_hour(3 * CELLS_MAX + 1).sliding_window();
    let limiter = limiter(&config);
    let cells = limiter.largest_cost();
    assert!(4 * cells <= config.max_commands && cells > config.max_commands / 4 - 1);
    let (mut now, mut log) = (0, Vec::new());
    while now < 3 * 3_600 * SECOND {
        let (taken, again) = take_all(&limiter, now);
        log.push((now, taken));
        now = again;
    }
    for (first, &(begin, _)) in log.iter().enumerate() {
        let end = begin + 3_600 * SECOND;
        let sum: u64 = log[first..].iter().take_while(|(at, _)| *at < end).map(|(_, taken)| taken).sum();
        assert!(sum <= config.max_commands);
        assert!(end > now || sum > config.max_commands - 8, "no part of the limit is lost");
    }
}

#[test]
fn a_config_survives_serde_with_and_without_the_newer_fields() {
    for config in [
        RateLimitConfig::unlimited(),
        RateLimitConfig::new(5, Duration::from_nanos(1_234_567_891)).with_burst(3),
        RateLimitConfig::per_minute(7).sliding_window(),
    ] {
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RateLimitConfig>(&text).unwrap(), config, "{text}");
    }
    let short = r#"{ "max_commands": 5, "window": { "secs": 60, "nanos": 0 } }"#;
    assert_eq!(serde_json::from_str::<RateLimitConfig>(short).unwrap(), RateLimitConfig::per_minute(5));
    let named = r#"{ "max_commands": 5, "window": { "secs": 60, "nanos": 0 }, "algorithm": "sliding_window" }"#;
    assert_eq!(
        serde_json::from_str::<RateLimitConfig>(named).unwrap(),
        RateLimitConfig::per_minute(5).sliding_window()
    );
}

/// What was admitted: stamps and costs.
type Log = Vec<(u64, u64)>;

/// Looks at every window: from any stamp to any later one.
fn assert_bounded(log: &mut Log, allowed: impl Fn(u64) -> f64) {
    log.sort_unstable();
    for (first, &(begin, _)) in log.iter().enumerate() {
        let mut sum = 0;
        for &(end, cost) in &log[first..] {
            sum += cost;
            assert!(sum as f64 <= allowed(end - begin), "{sum} from {begin} to {end}");
        }
    }
}

fn bound(config: &RateLimitConfig) -> impl Fn(u64) -> f64 {
    let (max, window) = (config.max_commands as f64, config.window.as_nanos() as f64);
    let (algorithm, burst) = (config.algorithm, config.burst.unwrap_or(config.max_commands) as f64);
    move |length| match algorithm {
        RateAlgorithm::TokenBucket => burst + max * length as f64 / window,
        // A window contains its beginning and not its end.
        RateAlgorithm::SlidingWindow if (length as f64) < window => max,
        RateAlgorithm::SlidingWindow => f64::INFINITY,
    }
}

/// Gaps between arrivals around the scale of the window, at one time often, back a little at times as between threads.
fn arrivals() -> impl Strategy<Value = Vec<(i64, u32)>> {
    let gap = prop_oneof![3 => Just(0i64), 3 => 0..40i64, 1 => 0..400i64, 1 => -10..0i64];
    prop::collection::vec((gap, 0..5u32), 1..200)
}

proptest! {
    #[test]
    fn no_window_sees_more_than_its_limit(
        arrivals in arrivals(), max in 1..8u64, window in 1..200u64, burst in prop::option::of(1..10u64), sliding: bool,
    ) {
        let mut config = RateLimitConfig::new(max, Duration::from_nanos(window));
        config.burst = burst.filter(|_| !sliding);
        let config = if sliding { config.sliding_window() } else { config };
        // Rates that `check` refuses hold, too.
        let limiter = if sliding { RateLimiter::sliding_window(&config) } else { RateLimiter::token_bucket(&config) };
        let (mut now, mut log) = (1_000u64, Vec::new());
        for (gap, cost) in arrivals {
            now = now.saturating_add_signed(gap);
            match limiter.take(tick(now), cost) {
                Ok(()) => log.push((now, u64::from(cost))),
                Err(again) => {
                    prop_assert!(again > tick(now));
                    if u64::from(cost) <= limiter.largest_cost() {
                        prop_assert_ne!(again, Tick::NEVER);
                        // At once after the refusal, the time that it named is the first at which it goes.
                        if gap > 20 {
                            prop_assert!(limiter.take(tick(again.as_nanos() - 1), cost).is_err());
                            prop_assert_eq!(limiter.take(again, cost), Ok(()));
                            now = again.as_nanos();
                            log.push((now, u64::from(cost)));
                        }
                    } else {
                        prop_assert_eq!(again, Tick::NEVER);
                    }
                }
            }
        }
        assert_bounded(&mut log, bound(&config));
    }
}

#[test]
fn threads_together_never_exceed_the_bound() {
    const THREADS: u64 = 4;
    let configs = [
        RateLimitConfig::new(3, Duration::from_nanos(300)).with_burst(2),
        RateLimitConfig::new(50, Duration::from_nanos(2_000)),
        RateLimitConfig::new(1, Duration::from_nanos(50)).sliding_window(),
        RateLimitConfig::new(3, Duration::from_nanos(300)).sliding_window(),
        RateLimitConfig::new(50, Duration::from_nanos(2_000)).sliding_window(),
    ];
    for config in configs {
        let limiter = limiter(&config);
        // A clock that the threads move on, and that each reads with an error of its own.
        let (clock, log) = (AtomicU64::new(1_000), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (limiter, clock, log) = (&limiter, &clock, &log);
                scope.spawn(move || {
                    let mut admitted = Vec::new();
                    for round in 0..5_000u64 {
                        let now = clock.fetch_add(1 + thread, Ordering::Relaxed) - (round * thread) % 7;
                        let cost = (round % limiter.largest_cost().min(3)) as u32 + 1;
                        if limiter.take(tick(now), cost).is_ok() {
                            admitted.push((now, u64::from(cost)));
                        }
                    }
                    log.lock().unwrap().extend(admitted);
                });
            }
        });
        let mut log = log.into_inner().unwrap();
        let total: u64 = log.iter().map(|(_, cost)| cost).sum();
        assert_bounded(&mut log, bound(&config));
        let time = clock.into_inner() - 1_000;
        let fair = config.max_commands * time / config.window.as_nanos() as u64;
        assert!(total > fair / 4, "{config:?}: {total} admitted of {fair}");
        // Quiet again, nothing is lost.
        assert_eq!(take_all(&limiter, 1 << 40).0, limiter.largest_cost());
    }
}
