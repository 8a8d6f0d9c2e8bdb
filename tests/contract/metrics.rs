//! Metrics: how much of what is measured at which level, and what becomes of it when the level changes.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    EventEmitter, LaneConfig, LaneReading, MetricsLevel, PriorityBoostConfig, QueueManager, QueueManagerBuilder,
    QueueMetrics, RateLimitConfig, Simulation, sleep,
};

use crate::support::block_on;

const SECOND: Duration = Duration::from_secs(1);

/// A queue in virtual time that runs one command at a time: on one worker, so that which commands are sampled is known.
struct World {
    simulation: Simulation,
    manager: QueueManager,
    metrics: QueueMetrics,
}

impl World {
    fn new(level: MetricsLevel) -> Self {
        Self::with(level, LaneConfig::new(1, 1))
    }

    fn with(level: MetricsLevel, config: LaneConfig) -> Self {
        let simulation = Simulation::new(1, 1);
        let metrics = QueueMetrics::local().with_interval(3600 * SECOND).with_level(level);
        let builder = QueueManagerBuilder::new(EventEmitter::new(1))
            .with_executor(simulation.executor().clone())
            .with_metrics(metrics.clone())
            .with_lane("a", config, 20);
        let manager = block_on(builder.build()).unwrap();
        block_on(manager.start()).unwrap();
        Self { simulation, manager, metrics }
    }

    /// Runs so many commands, a second each.
    fn run(&mut self, commands: u64) {
        for _ in 0..commands {
            let ticket = self.manager.submit_fn("a", "t", || async { Ok(sleep(SECOND).await) }).unwrap();
            self.simulation.block_on(ticket).unwrap().unwrap();
        }
    }

    fn lane(&self) -> LaneReading {
        self.metrics.collect().lane("a").unwrap().clone()
    }
}

/// Of commands that slept a second each: timers are late by less than a millisecond.
fn assert_is_seconds(time: Duration, seconds: u32) {
    let exact = seconds * SECOND;
    assert!((exact..exact + exact / 1000).contains(&time), "{time:?}");
}

/// Submitted, started, ended well; and how many waits and runs are known.
fn numbers(lane: &LaneReading) -> ([u64; 3], [u64; 2]) {
    ([lane.submitted, lane.started, lane.finished.ok], [lane.wait.count(), lane.run.count()])
}

#[test]
fn everything_is_measured_unless_something_else_is_said() {
    assert_eq!(MetricsLevel::default(), MetricsLevel::Full);
    assert_eq!(QueueMetrics::local().level(), MetricsLevel::Full);
}

#[test]
fn off_counts_nothing() {
    let mut world = World::new(MetricsLevel::Off);
    world.run(10);
    assert_eq!(numbers(&world.lane()), ([0; 3], [0; 2]));
}

#[test]
fn counters_take_no_times() {
    let mut world = World::new(MetricsLevel::Counters);
    world.run(10);
    assert_eq!(numbers(&world.lane()), ([10; 3], [0; 2]));
}

#[test]
fn full_takes_every_time() {
    let mut world = World::new(MetricsLevel::Full);
    world.run(10);
    let lane = world.lane();
    assert_eq!(numbers(&lane), ([10; 3], [10; 2]));
    assert_eq!(lane.wait.sum(), Duration::ZERO);
    assert_is_seconds(lane.run.sum(), 10);
}

#[test]
fn sampled_counts_all_and_lets_some_times_stand_for_the_others() {
    for power in [1, 2, 3, 6] {
        let mut world = World::new(MetricsLevel::Sampled(power));
        world.run(128);
        let lane = world.lane();
        assert_eq!(numbers(&lane), ([128; 3], [128; 2]), "{power}");
        assert_is_seconds(lane.run.sum(), 128);
    }
    // The first of 8 stands for all of them, those that follow for nothing: times come in eights.
    let mut world = World::new(MetricsLevel::Sampled(3));
    let mut known = Vec::new();
    for _ in 0..10 {
        world.run(1);
        known.push(world.lane().run.count());
    }
    assert_eq!(known, [8, 8, 8, 8, 8, 8, 8, 8, 16, 16]);
}

#[test]
fn one_in_two_to_the_zero_is_all_and_16_the_most() {
    let metrics = QueueMetrics::local();
    metrics.set_level(MetricsLevel::Sampled(0));
    assert_eq!(metrics.level(), MetricsLevel::Full);
    metrics.set_level(MetricsLevel::Sampled(u32::MAX));
    assert_eq!(metrics.level(), MetricsLevel::Sampled(16));
}

#[test]
fn clones_have_one_level() {
    let metrics = QueueMetrics::local().with_level(MetricsLevel::Counters);
    metrics.clone().set_level(MetricsLevel::Off);
    assert_eq!(metrics.level(), MetricsLevel::Off);
    assert_eq!(metrics.with_command_types(3).with_interval(SECOND).level(), MetricsLevel::Off);
}

#[test]
fn levels_change_between_commands() {
    let mut world = World::new(MetricsLevel::Full);
    world.run(10);
    for (level, expected) in [
        (MetricsLevel::Off, ([10; 3], [10; 2])),
        (MetricsLevel::Counters, ([20; 3], [10; 2])),
        (MetricsLevel::Full, ([30; 3], [20; 2])),
        (MetricsLevel::Off, ([30; 3], [20; 2])),
    ] {
        world.metrics.set_level(level);
        world.run(10);
        assert_eq!(numbers(&world.lane()), expected, "{level:?}");
    }
}

#[test]
fn levels_change_while_a_command_waits_or_runs() {
    use MetricsLevel::{Counters, Full, Off};

    // At its submission, at its start, at its end.
    for (levels, expected) in [
        ([Off, Full, Full], ([0, 1, 1], [0, 0])),
        ([Counters, Full, Full], ([1, 1, 1], [0, 0])),
        ([Full, Off, Full], ([1, 0, 1], [0, 0])),
        ([Full, Off, Off], ([1, 0, 0], [0, 0])),
        ([Full, Full, Off], ([1, 1, 0], [1, 0])),
        ([Full, Full, Full], ([1, 1, 1], [1, 1])),
    ] {
        let mut world = World::new(levels[0]);
        world.manager.pause("a").unwrap();
        let ticket = world.manager.submit_fn("a", "t", || async { Ok(sleep(SECOND).await) }).unwrap();
        world.simulation.advance(SECOND);
        world.metrics.set_level(levels[1]);
        world.manager.resume("a").unwrap();
        world.simulation.run_until_idle();
        world.metrics.set_level(levels[2]);
        world.simulation.block_on(ticket).unwrap().unwrap();
        world.metrics.set_level(Full);
        let lane = world.lane();
        assert_eq!(numbers(&lane), expected, "{levels:?}");
        assert_eq!((lane.pending, lane.active, lane.oldest_pending, lane.oldest_active), (0, 0, None, None));
        // And what comes is measured as if nothing had been.
        world.run(1);
        let (counts, times) = numbers(&world.lane());
        assert_eq!(counts, expected.0.map(|count| count + 1), "{levels:?}");
        assert_eq!(times, expected.1.map(|count| count + 1), "{levels:?}");
    }
}

#[test]
fn a_command_that_ends_while_nothing_is_measured_does_not_run_for_ever() {
    let mut world = World::new(MetricsLevel::Full);
    let metrics = world.metrics.clone();
    let ticket = world
        .manager
        .submit_fn("a", "t", || async move {
            metrics.set_level(MetricsLevel::Off);
            Ok(())
        })
        .unwrap();
    world.simulation.block_on(ticket).unwrap().unwrap();
    world.metrics.set_level(MetricsLevel::Full);
    world.simulation.advance(100 * SECOND);
    assert_eq!(world.lane().oldest_active, None);
    let _runs = world.manager.submit_fn("a", "t", || async { Ok(sleep(100 * SECOND).await) }).unwrap();
    world.simulation.advance(SECOND);
    assert_eq!(world.lane().oldest_active, Some(SECOND));
}

#[test]
fn a_queue_without_metrics_has_none() {
    let simulation = Simulation::new(1, 1);
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(simulation.executor().clone());
    let manager = block_on(builder.with_lane("a", LaneConfig::new(1, 1), 0).build()).unwrap();
    assert!(manager.metrics().is_none());
}

#[test]
fn a_reading_is_given_again_for_a_quarter_of_a_second() {
    let mut world = World::new(MetricsLevel::Full);
    world.run(1);
    let reading = world.metrics.reading();
    world.simulation.advance(SECOND / 4 - SECOND / 1000);
    assert!(Arc::ptr_eq(&reading, &world.metrics.reading()));
    world.simulation.advance(SECOND / 500);
    let next = world.metrics.reading();
    assert!(next.elapsed > reading.elapsed);
    assert!(Arc::ptr_eq(&next, &world.metrics.reading()));
}

#[test]
fn every_boost_is_counted() {
    // When ten seconds are left, and when none is.
    let boost = PriorityBoostConfig::new(60 * SECOND).with_boost(10 * SECOND, 5);
    let mut world = World::with(MetricsLevel::Counters, LaneConfig::new(1, 1).with_priority_boost(boost));
    let runs = world.manager.submit_fn("a", "t", || async { Ok(sleep(100 * SECOND).await) }).unwrap();
    let wait: Vec<_> = (0..3).map(|_| world.manager.submit_fn("a", "t", || async { Ok(()) }).unwrap()).collect();
    let mut boosts = Vec::new();
    for seconds in [49, 2, 8, 2] {
        world.simulation.advance(seconds * SECOND);
        boosts.push(world.lane().boosts);
    }
    assert_eq!(boosts, [0, 3, 3, 6]);
    for ticket in wait {
        world.simulation.block_on(ticket).unwrap().unwrap();
    }
    world.simulation.block_on(runs).unwrap().unwrap();
    assert_eq!(world.lane().boosts, 6);
}

#[test]
fn the_time_is_counted_in_which_the_rate_limit_holds_commands_back() {
    let limit = RateLimitConfig::per_second(1).with_burst(1);
    let mut world = World::with(MetricsLevel::Counters, LaneConfig::new(1, 1).with_rate_limit(limit));
    let tickets: Vec<_> = (0..3).map(|_| world.manager.submit_fn("a", "t", || async { Ok(()) }).unwrap()).collect();
    for ticket in tickets {
        world.simulation.block_on(ticket).unwrap().unwrap();
    }
    assert_is_seconds(world.lane().throttled, 2);
    // Held back for ten seconds, had it not been for the new limit.
    world.manager.update_lane("a", |config| config.rate_limit = Some(RateLimitConfig::per_minute(6))).unwrap();
    let tickets: Vec<_> = (0..20).map(|_| world.manager.submit_fn("a", "t", || async { Ok(()) }).unwrap()).collect();
    world.simulation.advance(SECOND);
    assert!(world.lane().pending > 0, "nothing is held back");
    world.manager.update_lane("a", |config| config.rate_limit = None).unwrap();
    world.simulation.advance(60 * SECOND);
    tickets.into_iter().for_each(|ticket| world.simulation.block_on(ticket).unwrap().unwrap());
    assert_is_seconds(world.lane().throttled, 3);
}
