//! Metrics allocate nothing per command.
#![allow(clippy::unwrap_used)]

use corelane::{
    EventEmitter, LaneConfig, MetricsLevel, QueueManager, QueueManagerBuilder, QueueMetrics, Result, Simulation,
    TypedCommand, yield_now,
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
fn allocations(metrics: Option<QueueMetrics>) -> u64 {
    let mut simulation = Simulation::new(1, 1);
    let mut builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(simulation.executor().clone());
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
    let without = allocations(None);
    assert!(without >= COMMANDS, "nothing is counted: {without}");
    for level in [MetricsLevel::Off, MetricsLevel::Counters, MetricsLevel::Sampled(3), MetricsLevel::Full] {
        let with = allocations(Some(QueueMetrics::local().with_level(level)));
        assert_eq!(with, without, "{level:?}, for {COMMANDS} commands");
    }
}
