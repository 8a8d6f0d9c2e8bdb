//! The command that the workloads of corelane's own kinds of commands run, and everyone's queues for them.

use std::hint::black_box;
use std::sync::Arc;

use async_trait::async_trait;
use corelane::{EventEmitter, Executor, LaneConfig, QueueManager, QueueManagerBuilder};
use futures_lite::future::block_on;
use tokio::runtime::Runtime;

/// Returns its number.
pub struct Nothing(pub u64);

impl corelane::TypedCommand for Nothing {
    type Output = u64;

    async fn execute(&self) -> corelane::Result<u64> {
        Ok(black_box(self.0))
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

#[async_trait]
impl corelane::Command for Nothing {
    async fn execute(&self) -> corelane::Result<serde_json::Value> {
        Ok(black_box(self.0).into())
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

#[async_trait]
impl a3s_lane_05::Command for Nothing {
    async fn execute(&self) -> a3s_lane_05::Result<serde_json::Value> {
        Ok(black_box(self.0).into())
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

/// A queue with one lane, `lane`, that has not been started: it keeps what is submitted.
pub fn queue(executor: &Executor, config: LaneConfig) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
    block_on(builder.with_lane("lane", config, 2).build()).expect("the configuration is usable")
}

pub fn start(queue: &QueueManager) {
    block_on(queue.start()).expect("a new queue can be started");
}

/// The same with a3s-lane 0.5.1, on a runtime of its own: its scheduler ends with that.
pub struct A3s {
    pub runtime: Runtime,
    pub manager: Arc<a3s_lane_05::QueueManager>,
}

impl A3s {
    pub fn queue(workers: usize, lanes: &[(&str, usize, u8)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let mut builder = a3s_lane_05::QueueManagerBuilder::new(a3s_lane_05::EventEmitter::new(100));
        for &(id, concurrent, priority) in lanes {
            builder = builder.with_lane(id, a3s_lane_05::LaneConfig::new(1, concurrent), priority);
        }
        let manager = runtime.block_on(builder.build()).expect("the configuration is usable");
        Self { runtime, manager: Arc::new(manager) }
    }

    pub fn start(&self) {
        self.runtime.block_on(self.manager.start()).expect("a new queue can be started");
    }
}
