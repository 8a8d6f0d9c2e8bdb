//! Priority scheduling: better lanes first, commands with priorities of their own, boosts, fair turns between keys.
//!
//! ```text
//! cargo run --example priority_scheduling
//! ```
//!
//! One worker, without a spare thread, makes the order visible. Every part checks what it shows.
#![allow(clippy::print_stdout)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use corelane::{
    EventEmitter, Executor, LaneConfig, PriorityBoostConfig, QueueManager, QueueManagerBuilder, Simulation,
    SubmitOptions, Ticket,
};

fn main() -> anyhow::Result<()> {
    let executor = Executor::builder().workers(1).spare_threads(0).build()?;
    executor.block_on(async {
        better_lanes_first(&executor).await?;
        better_commands_first(&executor).await?;
        keys_take_turns(&executor).await
    })?;
    old_work_gets_better()
}

/// What has run, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn submit(
        &self,
        manager: &QueueManager,
        lane: &str,
        name: &str,
        options: SubmitOptions,
    ) -> anyhow::Result<Ticket<()>> {
        let (log, name) = (self.clone(), name.to_owned());
        let lane = manager.lane(lane).expect("built with it");
        Ok(lane.submit_fn_with("log", options, move || async move {
            log.0.lock().unwrap_or_else(PoisonError::into_inner).push(name);
            Ok(())
        })?)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn better_lanes_first(executor: &Executor) -> anyhow::Result<()> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_default_lanes()
        .with_executor(executor.clone())
        .build()
        .await?;
    let log = Log::default();
    // Submitted worst first, before anything may run.
    for lane in ["prompt", "skill", "session", "query", "control", "system"] {
        log.submit(&manager, lane, lane, SubmitOptions::new())?.detach();
    }
    manager.start().await?;
    manager.drain(Duration::from_secs(10)).await?;
    let order = log.take();
    println!("lanes, by priority: {order:?}");
    ensure!(order == ["system", "control", "query", "session", "skill", "prompt"], "{order:?}");
    Ok(())
}

async fn better_commands_first(executor: &Executor) -> anyhow::Result<()> {
    let config = LaneConfig::new(1, 1).with_priority_bounds(2, 9);
    let manager = one_lane(executor, config, 5).await?;
    let log = Log::default();
    for (name, priority) in [("first", 5), ("patient", 9), ("second", 5), ("urgent", 2)] {
        log.submit(&manager, "lane", name, SubmitOptions::new().priority(priority))?.detach();
    }
    manager.start().await?;
    manager.drain(Duration::from_secs(10)).await?;
    let order = log.take();
    println!("commands of one lane, by their own priority: {order:?}");
    ensure!(order == ["urgent", "first", "second", "patient"], "{order:?}");
    Ok(())
}

async fn keys_take_turns(executor: &Executor) -> anyhow::Result<()> {
    let manager = one_lane(executor, LaneConfig::new(1, 1).with_per_key(1), 5).await?;
    let log = Log::default();
    for (name, key) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")] {
        log.submit(&manager, "lane", name, SubmitOptions::new().key(key))?.detach();
    }
    manager.start().await?;
    manager.drain(Duration::from_secs(10)).await?;
    let order = log.take();
    println!("keys of one lane, turn by turn: {order:?}");
    ensure!(order == ["a1", "b1", "c1", "a2", "b2", "a3"], "{order:?}");
    Ok(())
}

/// In virtual time: an hour passes at once.
fn old_work_gets_better() -> anyhow::Result<()> {
    let mut simulation = Simulation::new(1, 1);
    let boosted = LaneConfig::new(1, 1).with_priority_boost(PriorityBoostConfig::standard(Duration::from_secs(3600)));
    let builder = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("reports", boosted, 6)
        .with_lane("queries", LaneConfig::new(1, 1), 3)
        .with_executor(simulation.executor().clone());
    let manager = simulation.block_on(builder.build())?;
    let log = Log::default();
    log.submit(&manager, "reports", "report", SubmitOptions::new())?.detach();
    simulation.advance(Duration::from_secs(3500));
    log.submit(&manager, "queries", "query", SubmitOptions::new())?.detach();
    simulation.block_on(manager.start())?;
    simulation.run_until_idle();
    let order = log.take();
    println!("a report that is due soon goes before a query: {order:?}");
    ensure!(order == ["report", "query"], "{order:?}");
    Ok(())
}

async fn one_lane(executor: &Executor, config: LaneConfig, priority: u8) -> anyhow::Result<QueueManager> {
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_lane("lane", config, priority);
    Ok(builder.with_executor(executor.clone()).build().await?)
}
