//! What it costs to be observed: the same typed command through queues that differ in who watches.
//!
//! The queue that nobody watches stands for the peer, so that the last column is what is left of its rate.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use corelane::{
    EventEmitter, Executor, LaneConfig, LocalMetrics, MetricsLevel, QueueManagerBuilder, QueueMetrics, Subscription,
};

use super::commands::Nothing;
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

pub struct Observed {
    pub commands: u64,
}

pub const NAME: &str = "observed/typed";
pub const NOBODY: &str = "nobody";
pub const FULL: &str = "metrics, full";
pub const ALL: &str = "metrics, full, and a recorder";

/// Who watches a queue.
#[derive(Clone, Copy, Default)]
struct Watch {
    metrics: Option<MetricsLevel>,
    /// The last events are kept.
    recorded: bool,
    /// Somebody reads all events.
    subscribed: bool,
}

impl Workload for Observed {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn what(&self) -> String {
        format!(
            "a thread submits {} typed commands to a lane, then awaits each result; the queues differ in who watches them, and \
             the one that nobody watches stands for the peer",
            self.commands
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let executor = cast.corelane().0;
        let commands = self.commands;
        let contender = |name, role, watch: Watch| {
            let executor = executor.clone();
            Contender::timed(name, role, commands, move || run(&executor, watch, commands))
        };
        let metrics = |level| Watch { metrics: Some(level), ..Watch::default() };
        let full = metrics(MetricsLevel::Full);
        vec![
            contender(NOBODY, Role::Peer, Watch::default()),
            contender("metrics, off", Role::Ours, metrics(MetricsLevel::Off)),
            contender("metrics, counts", Role::Ours, metrics(MetricsLevel::Counters)),
            contender("metrics, times of 1 in 16", Role::Ours, metrics(MetricsLevel::Sampled(4))),
            contender(FULL, Role::Ours, full),
            contender("a recorder", Role::Ours, Watch { recorded: true, ..Watch::default() }),
            contender(ALL, Role::Ours, Watch { recorded: true, ..full }),
            contender("a subscriber that reads all events", Role::Ours, Watch { subscribed: true, ..Watch::default() }),
        ]
    }
}

/// Submits all commands, then awaits all results.
fn run(executor: &Executor, watch: Watch, commands: u64) -> Duration {
    let events = EventEmitter::new(1024);
    if watch.recorded {
        events.record(1024);
    }
    let reader = watch.subscribed.then(|| {
        let mut events = events.subscribe_with(Subscription::new().without_payload());
        thread::spawn(move || futures::executor::block_on(async { while events.recv().await.is_ok() {} }))
    });
    let mut builder = QueueManagerBuilder::new(events).with_executor(executor.clone());
    if let Some(level) = watch.metrics {
        builder = builder.with_metrics(QueueMetrics::new(Arc::new(LocalMetrics::new())).with_level(level));
    }
    let took = futures::executor::block_on(async {
        let manager = builder.with_lane("lane", LaneConfig::new(1, 100), 2).build().await.expect("the lane is usable");
        manager.start().await.expect("a new queue can be started");
        let lane = manager.lane("lane").expect("it was just given");
        let begun = Instant::now();
        let tickets: Vec<_> =
            (0..commands).map(|i| lane.submit_typed(Nothing(i)).expect("the lane is open and has room")).collect();
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.expect("the command settles").expect("the command succeeds"), i as u64);
        }
        begun.elapsed()
    });
    if let Some(reader) = reader {
        reader.join().expect("the queue is gone, and with it the last emitter");
    }
    took
}
