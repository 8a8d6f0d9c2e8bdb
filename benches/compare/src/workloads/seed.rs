//! Boxed commands with JSON results, in the API that corelane shares with both versions of a3s-lane.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::error::RecvError;

use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

/// Commands through the lanes of one queue, in turns.
pub struct Seed {
    pub lanes: Lanes,
    pub observed: Observed,
    pub commands: u64,
    /// For the version that starts at most one command in 10 ms.
    pub few_commands: u64,
}

#[derive(Clone, Copy)]
pub enum Lanes {
    One,
    /// The default ones.
    Six,
}

/// By whom.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// No metrics, no subscriber.
    Off,
    /// Metrics.
    On,
    /// Metrics, and a subscriber that reads all events.
    Subscribed,
}

/// Most commands of the one lane that run at once: fewer than there are commands, so that the rest waits in the lane.
pub const CONCURRENT: usize = 100;

impl Lanes {
    fn ids(self) -> &'static [&'static str] {
        match self {
            Self::One => &["lane"],
            Self::Six => &["system", "control", "query", "session", "skill", "prompt"],
        }
    }
}

impl Workload for Seed {
    fn name(&self) -> String {
        let lanes = self.lanes.ids().len();
        let observed = match self.observed {
            Observed::Off => "off",
            Observed::On => "on",
            Observed::Subscribed => "subscribed",
        };
        format!("seed/{lanes}-lane{}/{observed}", if lanes == 1 { "" } else { "s" })
    }

    fn what(&self) -> String {
        let lanes = match self.lanes {
            Lanes::One => format!("one lane that runs {CONCURRENT} at once"),
            Lanes::Six => "the six default lanes in turns".to_owned(),
        };
        let observed = match self.observed {
            Observed::Off => "no metrics, nobody subscribed to events",
            Observed::On => "with metrics",
            Observed::Subscribed => "with metrics and a subscriber that reads the events",
        };
        let Self { commands, few_commands, .. } = self;
        format!(
            "`submit(lane, Box<dyn Command>)` to {lanes}, {observed}; a thread submits {commands} commands ({few_commands} to \
             a3s-lane 0.2.1, which starts about 90 a second), then awaits each JSON result"
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let &Self { lanes, observed, commands, few_commands } = self;
        let workers = cast.workers;
        let executor = cast.corelane().0;
        // Programs submit from a runtime's `block_on`, as with `#[tokio::main]`; corelane's commands then find it, too.
        let host = runtime(workers);
        vec![
            Contender::timed("corelane", Role::Ours, commands, move || {
                let executor = executor.clone();
                let configure = |builder: corelane::QueueManagerBuilder| {
                    let builder = builder.with_executor(executor);
                    match observed {
                        Observed::Off => builder,
                        _ => builder.with_metrics(corelane::QueueMetrics::local()),
                    }
                };
                host.block_on(ours::run(configure, lanes, observed, commands))
            }),
            // a3s-lane runs its commands on the runtime. Its schedulers go on polling when their queue is gone; they end with
            // the runtime.
            Contender::timed("a3s-lane 0.5.1", Role::Peer, commands, move || {
                let metrics = |builder: a3s_lane_05::QueueManagerBuilder| match observed {
                    Observed::Off => builder,
                    _ => builder.with_metrics(a3s_lane_05::QueueMetrics::local()),
                };
                runtime(workers).block_on(a3s_05::run(metrics, lanes, observed, commands))
            }),
            Contender::timed("a3s-lane 0.2.1", Role::Peer, few_commands, move || {
                let metrics = |builder: a3s_lane_02::QueueManagerBuilder| match observed {
                    Observed::Off => builder,
                    _ => builder.with_metrics(a3s_lane_02::QueueMetrics::local()),
                };
                runtime(workers).block_on(a3s_02::run(metrics, lanes, observed, few_commands))
            }),
        ]
    }
}

fn runtime(workers: usize) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("threads can be started")
}

/// The same program, compiled against each crate. `$closed` is what a receiver of events gives at the end, `$emits` is
/// whether there are events of commands at all.
macro_rules! contender {
    ($name:ident, $crate_name:ident, $closed:pat, emits: $emits:expr) => {
        mod $name {
            use super::*;
            use $crate_name::{Command, EventEmitter, LaneConfig, QueueManagerBuilder, Result};

            /// Returns its number.
            struct Nothing(u64);

            #[async_trait]
            impl Command for Nothing {
                async fn execute(&self) -> Result<serde_json::Value> {
                    Ok(black_box(self.0).into())
                }

                fn command_type(&self) -> &str {
                    "nothing"
                }
            }

            /// Submits all commands, then awaits all results. Building, starting and shutting down are not timed.
            pub(super) async fn run(
                configure: impl FnOnce(QueueManagerBuilder) -> QueueManagerBuilder,
                lanes: Lanes,
                observed: Observed,
                commands: u64,
            ) -> Duration {
                let emitter = EventEmitter::new(1024);
                let read = Arc::new(AtomicU64::new(0));
                if observed == Observed::Subscribed {
                    let (mut events, read) = (emitter.subscribe(), Arc::clone(&read));
                    tokio::spawn(async move {
                        loop {
                            match events.recv().await {
                                Ok(event) => {
                                    black_box(event);
                                    read.fetch_add(1, Ordering::Relaxed);
                                }
                                Err($closed) => break,
                                // Some were lost.
                                #[allow(unreachable_patterns)]
                                Err(_) => {}
                            }
                        }
                    });
                }
                let builder = configure(QueueManagerBuilder::new(emitter));
                let builder = match lanes {
                    Lanes::One => builder.with_lane("lane", LaneConfig::new(1, CONCURRENT), 2),
                    Lanes::Six => builder.with_default_lanes(),
                };
                let manager = builder.build().await.expect("the configuration is usable");
                manager.start().await.expect("a new queue can be started");

                let begun = Instant::now();
                let mut waiting = Vec::with_capacity(commands as usize);
                for (i, lane) in (0..commands).zip(lanes.ids().iter().cycle()) {
                    let command = Box::new(Nothing(i));
                    waiting.push(manager.submit(lane, command).await.expect("the queue is open"));
                }
                for (i, ticket) in waiting.into_iter().enumerate() {
                    let result = ticket.await.expect("the command settles").expect("the command succeeds");
                    assert_eq!(result, i);
                }
                let took = begun.elapsed();

                manager.shutdown().await;
                // a3s-lane marks a command as done after it has sent its result, and looks for that every 10 ms.
                _ = manager.drain(Duration::from_secs(60)).await.expect("all commands have settled");
                if observed == Observed::Subscribed && $emits {
                    let patience = Instant::now();
                    while read.load(Ordering::Relaxed) == 0 {
                        assert!(patience.elapsed() < Duration::from_secs(10), "the subscriber reads events");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                took
            }
        }
    };
}

contender!(ours, corelane, corelane::EventsClosed, emits: true);
contender!(a3s_05, a3s_lane_05, RecvError::Closed, emits: true);
contender!(a3s_02, a3s_lane_02, RecvError::Closed, emits: false);
