//! What watches a queue allocates nothing per command: metrics, the flight recorder, and events that nobody wants.
#![allow(clippy::unwrap_used)]

use corelane::{
    EventEmitter, EventKind, LaneConfig, MetricsLevel, QueueManager, QueueManagerBuilder, QueueMetrics, Result,
    Simulation, Subscription, TypedCommand, yield_now,
};

const COMMANDS: u64 = 1000;

/// Waits once, so that it is polled again.
struct Yields;

impl TypedCommand for Yields {
    type Output = ();

    async fn execute(&self) -> Result<()> {
        yield_now().await;
        Ok(())
    }

    fn command_type(&self) -> &str {
        "yields"
    }
}

/// In a simulation everything happens on the thread that counts.
fn run(simulation: &mut Simulation, manager: &QueueManager) {
    for _ in 0..COMMANDS {
        let ticket = manager.submit_typed("a", Yields).unwrap();
        simulation.block_on(ticket).unwrap().unwrap();
    }
}

/// Allocations of some commands in a queue that has run others before.
fn allocations(events: EventEmitter, metrics: Option<QueueMetrics>) -> u64 {
    let mut simulation = Simulation::new(1, 1);
    let mut builder = QueueManagerBuilder::new(events).with_executor(simulation.executor().clone());
    if let Some(metrics) = metrics {
        builder = builder.with_metrics(metrics);
    }
    let manager = simulation.block_on(builder.with_lane("a", LaneConfig::new(1, 10), 0).build()).unwrap();
    simulation.block_on(manager.start()).unwrap();
    run(&mut simulation, &manager);
    allocation_counter::measure(|| run(&mut simulation, &manager)).count_total
}

#[test]
fn metrics_add_no_allocation_to_a_command() {
    let without = allocations(EventEmitter::new(1), None);
    assert!(without >= COMMANDS, "nothing is counted: {without}");
    for level in [MetricsLevel::Off, MetricsLevel::Counters, MetricsLevel::Sampled(3), MetricsLevel::Full] {
        let with = allocations(EventEmitter::new(1), Some(QueueMetrics::local().with_level(level)));
        assert_eq!(with, without, "{level:?}, for {COMMANDS} commands");
    }
}

#[test]
fn events_add_no_allocation_to_a_command() {
    let without = allocations(EventEmitter::new(1), None);
    let recorded = allocations(EventEmitter::with_recorder(64), None);
    assert_eq!(recorded, without, "recorded, for {COMMANDS} commands");
    let events = EventEmitter::new(64);
    let _failures = events.subscribe_with(Subscription::new().kinds([EventKind::Failed]));
    assert_eq!(allocations(events, None), without, "with a subscriber to others, for {COMMANDS} commands");
}
