//! Rates: how many commands of a lane start in what time.

use std::time::Duration;

use corelane::{
    CommandContext, LaneConfig, LaneError, QueueManager, RateAlgorithm, RateLimitConfig, RateLimiter, RetryPolicy,
    SubmitOptions, sleep,
};

use crate::support::{Log, Work, World, assert_idle, attempt, lane_of, status};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// What is left of it tells a command of when it was accepted how late it is.
const LONG: Duration = Duration::from_secs(1_000_000_000);
const ALGORITHMS: [RateAlgorithm; 2] = [RateAlgorithm::TokenBucket, RateAlgorithm::SlidingWindow];

fn limited(limit: RateLimitConfig) -> LaneConfig {
    LaneConfig::new(1, 1000).with_rate_limit(limit)
}

/// Submits a command that writes how long after its acceptance it started.
fn timed(manager: &QueueManager, lane: &str, starts: &Log<Duration>, options: SubmitOptions) {
    let starts = starts.clone();
    let command = move || async move {
        let left = CommandContext::current().unwrap().time_left.unwrap();
        Ok(starts.push(LONG - left))
    };
    lane_of(manager, lane).submit_fn_with("timed", options.total_timeout(LONG), command).unwrap().detach();
}

/// Submits a command that writes the millisecond in which it started.
fn stamped(world: &World, manager: &QueueManager, lane: &str, starts: &Log<u64>, options: SubmitOptions) {
    let (starts, clock) = (starts.clone(), world.clock());
    let command = move || async move { Ok(starts.push(clock.now())) };
    lane_of(manager, lane).submit_fn_with("stamped", options, command).unwrap().detach();
}

fn drain(world: &mut World, manager: &QueueManager) {
    world.simulation().block_on(manager.drain(LONG)).unwrap();
}

#[test]
fn in_the_long_run_a_lane_starts_as_many_as_its_rate_says() {
    for workers in [1, 2, 4] {
        for algorithm in ALGORITHMS {
            for (rate, window) in [
                (6, 60 * SECOND),
                (1, SECOND),
                (7, SECOND),
                (95, SECOND),
                (190, SECOND),
                (1950, SECOND),
                (2000, SECOND / 50),
                (1000, SECOND / 100),
            ] {
                let mut world = World::new(workers, rate);
                let bucket = algorithm == RateAlgorithm::TokenBucket;
                // Enough to catch up with what timers are late. (A burst of 1 is a least distance, and can not.)
                let burst = 2 + (rate as f64 * 0.01 / window.as_secs_f64()) as u64;
                let limit = RateLimitConfig::new(rate, window).with_algorithm(algorithm);
                let limit = RateLimitConfig { burst: bucket.then_some(burst), ..limit };
                let manager = world.manager(&[("a", limited(limit), 0)]);
                // What starts at once, and the windows after that.
                let first = if bucket { burst } else { rate };
                let commands = first + rate * (2000 / rate).max(if window < SECOND { 20 } else { 3 });
                for _ in 0..commands {
                    manager.submit_fn("a", "counted", || async { Ok(()) }).unwrap().detach();
                }
                let begun = world.simulation().now();
                drain(&mut world, &manager);
                let took = (world.simulation().now() - begun).as_secs_f64();
                let expected = (commands - first) as f64 / rate as f64 * window.as_secs_f64();
                // Timers may be late, once.
                let late = (took - expected - 0.000_2) / expected;
                assert!(
                    took >= expected * 0.9999 && late < 0.01,
                    "{algorithm:?}, {rate} in {window:?}, {workers} workers: {took} s instead of {expected} s"
                );
            }
        }
    }
}

#[test]
fn a_sliding_window_never_lets_more_than_its_limit_start_in_any_window() {
    World::each(|mut world| {
        let limit = RateLimitConfig::new(20, SECOND).sliding_window();
        let manager = world.manager(&[("a", limited(limit), 0)]);
        let starts = Log::default();
        for i in 0..400u64 {
            // Some at once, others whenever they come.
            let options =
                if i % 2 == 0 { SubmitOptions::new() } else { SubmitOptions::new().delay(i as u32 * SECOND / 37) };
            timed(&manager, "a", &starts, options);
        }
        drain(&mut world, &manager);
        let mut starts = starts.entries();
        starts.sort_unstable();
        assert_eq!(starts.len(), 400);
        for window in starts.windows(21) {
            assert!(window[20] - window[0] >= SECOND, "21 starts in {:?}", window[20] - window[0]);
        }
        assert!(starts[19] < SECOND / 1000, "the first window may be filled at once");
    });
}

#[test]
fn a_token_bucket_never_lets_more_than_its_burst_and_its_rate_start_in_any_window() {
    World::each(|mut world| {
        let limit = RateLimitConfig::new(20, SECOND).with_burst(5);
        let manager = world.manager(&[("a", limited(limit), 0)]);
        let starts = Log::default();
        for i in 0..400u64 {
            let options =
                if i % 2 == 0 { SubmitOptions::new() } else { SubmitOptions::new().delay(i as u32 * SECOND / 37) };
            timed(&manager, "a", &starts, options);
        }
        drain(&mut world, &manager);
        let mut starts = starts.entries();
        starts.sort_unstable();
        for count in [6, 10, 25, 100] {
            for window in starts.windows(count) {
                let least = SECOND * (count as u32 - 5) / 20;
                let took = window[count - 1] - window[0];
                assert!(took + Duration::from_nanos(10) >= least, "{count} starts in {took:?}");
            }
        }
        assert!(starts[4] < SECOND / 1000, "the burst starts at once");
    });
}

#[test]
fn a_lane_without_work_keeps_its_burst_whatever_other_lanes_do() {
    for algorithm in ALGORITHMS {
        World::each(|mut world| {
            let limit = RateLimitConfig::per_minute(60).with_algorithm(algorithm);
            let manager = world.manager(&[("a", limited(limit), 0), ("busy", LaneConfig::new(1, 2), 1)]);
            for _ in 0..3000 {
                manager.submit_fn("busy", "busy", || async { Ok(sleep(SECOND / 500).await) }).unwrap().detach();
            }
            world.advance(3500);
            let starts = Log::default();
            for _ in 0..60 {
                stamped(&world, &manager, "a", &starts, SubmitOptions::new());
            }
            world.advance(1);
            assert_eq!(starts.entries().len(), 60, "the burst was spent while the lane was idle");
        });
    }
}

#[test]
fn a_lane_without_a_permit_keeps_its_burst() {
    for algorithm in ALGORITHMS {
        World::each(|mut world| {
            let limit = RateLimitConfig::per_minute(10).with_algorithm(algorithm);
            let manager = world.manager(&[("a", LaneConfig::new(1, 1).with_rate_limit(limit), 0)]);
            manager.submit_fn("a", "blocks", || async { Ok(sleep(3 * SECOND).await) }).unwrap().detach();
            let starts = Log::default();
            for _ in 0..9 {
                stamped(&world, &manager, "a", &starts, SubmitOptions::new());
            }
            // Each of these asks the lane whether it can start something.
            for _ in 0..100 {
                world.advance(29);
                manager.update_lane("a", |_| {}).unwrap();
            }
            assert_eq!(starts.entries().len(), 0);
            world.advance(200);
            assert_eq!(starts.entries().len(), 9, "the burst was spent while the lane was full");
        });
    }
}

#[test]
fn cancelled_commands_take_nothing_of_the_rate() {
    World::each(|mut world| {
        let limit = RateLimitConfig::per_hour(2);
        let manager = world.manager(&[("a", limited(limit), 0)]);
        let submit = || manager.submit_fn("a", "command", || async { Ok(()) }).unwrap();
        manager.pause("a").unwrap();
        let mut cancelled: Vec<_> = (0..100).map(|_| submit()).collect();
        let kept = [submit(), submit()];
        for ticket in &mut cancelled {
            assert!(ticket.cancel());
        }
        manager.resume("a").unwrap();
        world.run_until_idle();
        assert!(kept.iter().all(corelane::Ticket::is_finished));
        assert_idle(&manager);
    });
}

#[test]
fn a_paused_limiter_holds_its_lane_and_lets_it_go_on() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", limited(RateLimitConfig::per_second(1000)), 0)]);
        let limiter = lane_of(&manager, "a").rate_limiter().unwrap();
        let starts = Log::default();
        stamped(&world, &manager, "a", &starts, SubmitOptions::new());
        world.advance(10);
        assert_eq!(starts.entries(), [0]);
        // As a worker, whose time is that of the simulation.
        let paused = limiter.clone();
        world.simulation().block_on(async move { paused.pause_for(SECOND) });
        (0..3).for_each(|_| stamped(&world, &manager, "a", &starts, SubmitOptions::new()));
        world.advance(990);
        assert_eq!(starts.entries(), [0]);
        assert_eq!(status(&manager, "a").pending, 3);
        world.advance(20);
        assert_eq!(starts.entries().len(), 4);
        assert!(starts.entries()[1..].iter().all(|at| *at >= 1010), "{:?}", starts.entries());
    });
}

#[test]
fn a_command_may_cost_more_than_one() {
    for algorithm in ALGORITHMS {
        World::each(|mut world| {
            let limit = RateLimitConfig::per_second(10).with_algorithm(algorithm);
            let manager = world.manager(&[("a", limited(limit), 0)]);
            let starts = Log::default();
            // 10 at once, then 5 for each half a second (token bucket) or 10 for each (window).
            for _ in 0..6 {
                stamped(&world, &manager, "a", &starts, SubmitOptions::new().cost(5));
            }
            world.advance(3000);
            let expected: &[u64] = match algorithm {
                RateAlgorithm::TokenBucket => &[0, 0, 500, 1000, 1500, 2000],
                _ => &[0, 0, 1000, 1000, 2000, 2000],
            };
            let starts = starts.entries();
            assert_eq!(starts.len(), expected.len());
            for (at, expected) in starts.iter().zip(expected) {
                assert!((*expected..expected + 3).contains(at), "{algorithm:?}: {starts:?}");
            }
        });
    }
}

#[test]
fn a_cost_above_the_burst_counts_as_the_burst() {
    let mut world = World::new(1, 1);
    let limit = RateLimitConfig::per_second(10).with_burst(3);
    let manager = world.manager(&[("a", limited(limit), 0)]);
    let starts = Log::default();
    for _ in 0..3 {
        stamped(&world, &manager, "a", &starts, SubmitOptions::new().cost(1_000_000));
    }
    world.advance(2000);
    let starts = starts.entries();
    assert_eq!(starts.len(), 3, "it would never start");
    assert!(starts[1] >= 300 && starts[2] >= 600, "{starts:?}");
}

#[test]
fn lanes_that_share_a_limiter_share_its_rate() {
    World::each(|mut world| {
        let limiter = RateLimiter::new(&RateLimitConfig::per_second(10).sliding_window()).unwrap();
        let shared = LaneConfig::new(1, 100).with_rate_limiter(limiter);
        let manager = world.manager(&[("a", shared.clone(), 0), ("b", shared, 1)]);
        let starts = Log::default();
        for _ in 0..50 {
            timed(&manager, "a", &starts, SubmitOptions::new());
            timed(&manager, "b", &starts, SubmitOptions::new());
        }
        drain(&mut world, &manager);
        let mut starts = starts.entries();
        starts.sort_unstable();
        assert_eq!(starts.len(), 100);
        assert!(starts.windows(11).all(|window| window[10] - window[0] >= SECOND), "{starts:?}");
        assert!(starts[99] < 10 * SECOND, "less than the rate was used: {:?}", starts[99]);
    });
}

#[test]
fn retries_take_their_share_of_the_rate() {
    World::each(|mut world| {
        let limit = RateLimitConfig::per_second(10).with_burst(1);
        let policy = RetryPolicy::fixed(4, Duration::ZERO).without_jitter();
        let manager = world.manager(&[("a", limited(limit).with_retry_policy(policy), 0)]);
        let starts = Log::default();
        let (log, clock) = (starts.clone(), world.clock());
        let command = Work(move || {
            log.push((attempt(), clock.now()));
            async { Err::<(), _>(LaneError::Other("again".into())) }
        });
        manager.submit_typed("a", command).unwrap().detach();
        world.advance(1000);
        let starts = starts.entries();
        assert_eq!(starts.iter().map(|start| start.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(starts.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 99), "{starts:?}");
        assert_idle(&manager);
    });
}

#[test]
fn waiting_for_the_rate_spends_no_attempt_and_starts_in_order() {
    let mut world = World::new(2, 1);
    let manager = world.manager(&[("a", limited(RateLimitConfig::per_second(100).with_burst(1)), 0)]);
    let order = Log::default();
    for name in 0..50 {
        let order = order.clone();
        let command = move || async move { Ok(order.push((name, attempt()))) };
        manager.submit_fn("a", "ordered", command).unwrap().detach();
    }
    drain(&mut world, &manager);
    assert!(order.entries().into_iter().eq((0..50).map(|name| (name, 1))));
}

#[test]
fn a_changed_rate_counts_at_once() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", limited(RateLimitConfig::per_hour(1)), 0)]);
        let starts = Log::default();
        (0..100).for_each(|_| stamped(&world, &manager, "a", &starts, SubmitOptions::new()));
        world.advance(100);
        assert_eq!(starts.entries().len(), 1);
        let faster = RateLimitConfig::per_second(100).with_burst(1);
        manager.update_lane("a", |config| config.rate_limit = Some(faster)).unwrap();
        world.advance(205);
        let started = starts.entries().len();
        assert!((20..=23).contains(&started), "{started}");
        manager.update_lane("a", |config| config.rate_limit = None).unwrap();
        world.advance(1);
        assert_eq!(starts.entries().len(), 100, "without a limit they all start");
        assert_idle(&manager);
    });
}

#[test]
fn a_rate_that_stays_goes_on_over_a_change_of_something_else() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", limited(RateLimitConfig::per_hour(1)), 0)]);
    let starts = Log::default();
    (0..5).for_each(|_| stamped(&world, &manager, "a", &starts, SubmitOptions::new()));
    for max in 1..20 {
        manager.update_lane("a", |config| config.max_concurrency = max).unwrap();
        world.advance(1);
    }
    assert_eq!(starts.entries().len(), 1, "a change of the maximum gave the rate anew");
    world.jump(HOUR);
    assert_eq!(starts.entries().len(), 2);
}

#[test]
fn without_a_limit_there_is_no_limiter() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", limited(RateLimitConfig::unlimited()), 0)]);
        assert!(lane_of(&manager, "a").rate_limiter().is_none());
        let starts = Log::default();
        (0..10_000).for_each(|_| stamped(&world, &manager, "a", &starts, SubmitOptions::new()));
        world.run_until_idle();
        assert_eq!(starts.entries().len(), 10_000);
    });
}

#[test]
fn permits_are_taken_at_the_rate_too() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", limited(RateLimitConfig::per_second(1).with_burst(2)), 0)]);
    let lane = lane_of(&manager, "a");
    let begun = world.simulation().now();
    let acquire = async {
        for _ in 0..4 {
            drop(lane.acquire().await.unwrap());
        }
    };
    world.simulation().block_on(acquire);
    let took = world.simulation().now() - begun;
    assert!(took >= 2 * SECOND && took < 2 * SECOND + SECOND / 100, "{took:?}");
    assert!(lane.try_acquire().is_none(), "a refusal of the rate");
    assert_idle(&manager);
    world.advance(1010);
    assert!(lane.try_acquire().is_some());
}
