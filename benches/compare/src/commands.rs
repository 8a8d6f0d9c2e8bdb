//! Workloads of commands: boxed commands with JSON results, in the API that corelane and a3s-lane share.

use std::hint::black_box;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Runtime;

use crate::WORKERS;
use crate::measure::Comparison;

/// The lanes of a queue, used in turns.
#[derive(Clone, Copy)]
enum Lanes {
    /// One of this maximum concurrency.
    One(usize),
    /// The six default lanes.
    Default,
}

impl Lanes {
    fn ids(self) -> &'static [&'static str] {
        match self {
            Self::One(_) => &["lane"],
            Self::Default => &["system", "control", "query", "session", "skill", "prompt"],
        }
    }
}

/// The same program, compiled against either crate. `$builder` makes the builder of a queue from an event emitter.
macro_rules! contender {
    ($name:ident, $crate_name:ident) => {
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
                commands: u64,
            ) -> Duration {
                let builder = configure(QueueManagerBuilder::new(EventEmitter::new(100)));
                let builder = match lanes {
                    Lanes::One(max) => builder.with_lane("lane", LaneConfig::new(1, max), 2),
                    Lanes::Default => builder.with_default_lanes(),
                };
                let manager = builder.build().await.expect("the configuration is usable");
                manager.start().await.expect("a new queue can be started");

                let begun = Instant::now();
                let mut waiting = Vec::with_capacity(commands as usize);
                for (i, lane) in (0..commands).zip(lanes.ids().iter().cycle()) {
                    let command = Box::new(Nothing(i));
                    waiting.push(manager.submit(lane, command).await.expect("the queue is open"));
                }
                for (i, rx) in waiting.into_iter().enumerate() {
                    let result = rx.await.expect("the command settles").expect("the command succeeds");
                    assert_eq!(result, i);
                }
                let took = begun.elapsed();

                manager.shutdown().await;
                manager.drain(Duration::from_secs(60)).await.expect("all commands have settled");
                took
            }
        }
    };
}

contender!(ours, corelane);
contender!(a3s, a3s_lane);

/// All comparisons of commands; `size` scales the operations of a run.
pub fn comparisons(size: impl Fn(f64) -> u64) -> Vec<Comparison> {
    // Both submit from its `block_on`, as programs do from `#[tokio::main]`; a3s-lane also runs its commands there.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime: &'static Runtime = Box::leak(Box::new(runtime.expect("threads can be started")));
    let executor = corelane::Executor::builder().workers(WORKERS).build().expect("threads can be started");
    let compare = |name: &str, lanes: Lanes| {
        let (commands, executor) = (size(10_000.0), executor.clone());
        let name = format!("{commands} boxed commands, submission to JSON result, {name}");
        Comparison::new(name)
            .ours("corelane", commands, move || {
                let executor = executor.clone();
                runtime.block_on(ours::run(|builder| builder.with_executor(executor), lanes, commands))
            })
            .peer("a3s-lane 0.5.1", commands, move || runtime.block_on(a3s::run(|builder| builder, lanes, commands)))
    };
    vec![compare("one lane, 100 at once", Lanes::One(100)), compare("the 6 default lanes", Lanes::Default)]
}
