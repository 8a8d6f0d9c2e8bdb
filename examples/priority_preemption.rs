//! What a better lane does to worse ones: before they start, while it is full, and while they compute.
//!
//! ```text
//! cargo run --example priority_preemption
//! ```
//!
//! One worker, without a spare thread, makes the order visible. Every scenario checks what it shows.
#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use corelane::{
    EventEmitter, Executor, LaneConfig, LaneEvent, QueueManager, QueueManagerBuilder, Transition, events, should_yield,
    sleep, yield_now,
};

const LIMIT: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let executor = Executor::builder().workers(1).spare_threads(0).build()?;
    executor.block_on(async {
        an_empty_lane_holds_nobody_up(&executor).await?;
        a_full_lane_holds_nobody_up(&executor).await?;
        a_better_lane_goes_first(&executor).await?;
        a_long_computation_makes_way(&executor).await?;
        a_lane_with_a_floor_never_starves(&executor).await?;
        a_computation_that_never_asks_is_worked_around().await
    })
}

async fn two_lanes(executor: &Executor, system: LaneConfig, prompt: LaneConfig) -> anyhow::Result<QueueManager> {
    let builder =
        QueueManagerBuilder::new(EventEmitter::new(100)).with_lane("system", system, 0).with_lane("prompt", prompt, 5);
    Ok(builder.with_executor(executor.clone()).build().await?)
}

type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(log: &Log, what: &'static str) {
    log.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

fn take(log: &Log) -> Vec<&'static str> {
    std::mem::take(&mut log.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn an_empty_lane_holds_nobody_up(executor: &Executor) -> anyhow::Result<()> {
    let manager = two_lanes(executor, LaneConfig::new(1, 1), LaneConfig::new(1, 1)).await?;
    manager.start().await?;
    let value = manager.submit_fn("prompt", "answer", || async { Ok(42) })?.await??;
    ensure!(value == 42);
    println!("the better lane is empty: the prompt runs at once");
    Ok(())
}

async fn a_full_lane_holds_nobody_up(executor: &Executor) -> anyhow::Result<()> {
    let manager = two_lanes(executor, LaneConfig::new(1, 1), LaneConfig::new(1, 1)).await?;
    let log = Log::default();
    let waiting = |what| {
        let log = Arc::clone(&log);
        move || async move {
            note(&log, what);
            sleep(Duration::from_millis(30)).await;
            Ok(())
        }
    };
    manager.submit_fn("system", "first", waiting("system 1"))?.detach();
    manager.submit_fn("system", "second", waiting("system 2"))?.detach();
    manager.submit_fn("prompt", "prompt", waiting("prompt"))?.detach();
    manager.start().await?;
    manager.drain(LIMIT).await?;
    let order = take(&log);
    println!("the better lane is at its maximum: {order:?}");
    ensure!(order == ["system 1", "prompt", "system 2"], "{order:?}");
    Ok(())
}

async fn a_better_lane_goes_first(executor: &Executor) -> anyhow::Result<()> {
    let manager = two_lanes(executor, LaneConfig::new(1, 2), LaneConfig::new(1, 2)).await?;
    let log = Log::default();
    for (lane, what) in [("prompt", "prompt"), ("system", "system 1"), ("system", "system 2")] {
        let log = Arc::clone(&log);
        manager
            .submit_fn(lane, "note", move || async move {
                note(&log, what);
                Ok(())
            })?
            .detach();
    }
    manager.start().await?;
    manager.drain(LIMIT).await?;
    let order = take(&log);
    println!("the better lane has work and room: {order:?}");
    ensure!(order == ["system 1", "system 2", "prompt"], "{order:?}");
    Ok(())
}

/// A poll is never interrupted. One that asks now and then makes way within microseconds.
async fn a_long_computation_makes_way(executor: &Executor) -> anyhow::Result<()> {
    let manager = two_lanes(executor, LaneConfig::new(1, 1), LaneConfig::new(1, 1)).await?;
    manager.start().await?;
    let (started, stop, made_way) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (begun, enough, ways) = (Arc::clone(&started), Arc::clone(&stop), Arc::clone(&made_way));
    let computing = manager.submit_fn("prompt", "compute", move || async move {
        begun.store(true, Ordering::Release);
        while !enough.load(Ordering::Acquire) {
            std::hint::spin_loop();
            if should_yield() {
                ways.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        }
        Ok(())
    })?;
    while !started.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    // The only worker computes, and the control command runs all the same; it is what ends the computation.
    manager
        .submit_fn("system", "stop", move || async move {
            stop.store(true, Ordering::Release);
            Ok(())
        })?
        .await??;
    computing.await??;
    ensure!(made_way.load(Ordering::Relaxed) > 0);
    println!("a computation that asks `should_yield` made way for the better lane");
    Ok(())
}

async fn a_lane_with_a_floor_never_starves(executor: &Executor) -> anyhow::Result<()> {
    let manager = Arc::new(two_lanes(executor, LaneConfig::new(1, 1), LaneConfig::new(1, 1)).await?);
    manager.start().await?;
    let stop = Arc::new(AtomicBool::new(false));
    // Better work without end: it is due again as soon as it has run.
    let enough = Arc::clone(&stop);
    let flood = manager.submit_fn("system", "flood", move || async move {
        while !enough.load(Ordering::Acquire) {
            yield_now().await;
        }
        Ok(())
    })?;
    // With min_concurrency 1 a start is due every 10 ms all the same.
    manager
        .submit_fn("prompt", "modest", move || async move {
            stop.store(true, Ordering::Release);
            Ok(())
        })?
        .await??;
    flood.await??;
    println!("a lane with min_concurrency 1 got its start under a flood of better work");
    Ok(())
}

/// One that never asks blocks its worker. Its queue says so while it lasts, and a spare thread runs what waits.
async fn a_computation_that_never_asks_is_worked_around() -> anyhow::Result<()> {
    let executor = Executor::builder().workers(1).spare_threads(1).build()?;
    let manager = two_lanes(&executor, LaneConfig::new(1, 1), LaneConfig::new(1, 1)).await?;
    manager.start().await?;
    let mut stuck = manager.subscribe_filtered(|event| event.key == events::QUEUE_COMMAND_STUCK);
    let stop = Arc::new(AtomicBool::new(false));
    let enough = Arc::clone(&stop);
    let computing = manager.submit_fn("prompt", "compute", move || async move {
        while !enough.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        Ok(())
    })?;
    let told = stuck.recv().await;
    let Some(Transition::StuckPoll { command, .. }) = told.as_ref().and_then(LaneEvent::transition) else {
        anyhow::bail!("{told:?}");
    };
    ensure!(command.command_id == computing.id());
    // The only worker computes on, and the control command runs all the same; it is what ends the computation.
    let control = move || async move {
        stop.store(true, Ordering::Release);
        Ok(())
    };
    manager.submit_fn("system", "stop", control)?.await??;
    computing.await??;
    println!("a stuck {:?} was told of, and what waited behind it ran elsewhere", command.command_type);
    Ok(())
}
