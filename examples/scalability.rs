//! Scalability: limits to rate, boosts, partitions of the workers, and a queue that several workers share.
//!
//! ```text
//! cargo run --example scalability
//! ```
//!
//! Every part checks what it shows, and the program fails if it is not so.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_trait::async_trait;
use corelane::{
    Command, CommandEnvelope, DistributedQueue, DurableCommand, EnqueueOptions, EventEmitter, Executor, LaneConfig,
    LocalDistributedQueue, PartitionConfig, PriorityBoostConfig, QueueManager, QueueManagerBuilder, RateLimitConfig,
    RemoteCommands, Result, SubmitOptions, WorkerPool, sleep,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    keep_to_a_rate().await?;
    hurry_what_is_nearly_late().await?;
    keep_keys_at_home().await?;
    share_a_queue().await
}

async fn queue_with(lane: &str, config: LaneConfig, priority: u8) -> Result<QueueManager> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100)).with_lane(lane, config, priority).build().await?;
    manager.start().await?;
    Ok(manager)
}

struct Work(u64);

#[async_trait]
impl Command for Work {
    async fn execute(&self) -> Result<serde_json::Value> {
        sleep(Duration::from_millis(2)).await;
        Ok(json!(self.0))
    }

    fn command_type(&self) -> &str {
        "work"
    }
}

async fn keep_to_a_rate() -> anyhow::Result<()> {
    let limit = RateLimitConfig::per_second(50).with_burst(5);
    println!("At most {} commands per second, 5 at once:", limit.max_commands);
    let manager = queue_with("limited", LaneConfig::new(1, 10).with_rate_limit(limit), 0).await?;
    let begun = Instant::now();
    let mut tickets = Vec::new();
    for number in 0..20 {
        tickets.push(manager.submit("limited", Box::new(Work(number))).await?);
    }
    for ticket in tickets {
        ticket.await??;
    }
    let took = begun.elapsed();
    println!("  20 commands took {took:.0?}");
    // The first 5 at once, and then one every 20 ms.
    ensure!(took >= Duration::from_millis(15 * 20));
    stop(manager).await
}

async fn hurry_what_is_nearly_late() -> anyhow::Result<()> {
    println!("A command is boosted as its deadline comes near:");
    let boost = PriorityBoostConfig::standard(Duration::from_secs(60));
    let manager = queue_with("boosted", LaneConfig::new(1, 5).with_priority_boost(boost), 5).await?;
    let value = manager.submit("boosted", Box::new(Work(1))).await?.await??;
    println!("  it resulted in {value}");
    ensure!(value == json!(1));
    stop(manager).await
}

/// Commands of one key begin on the same worker, where what they work on may still be in its caches. Another one takes them only
/// when it has nothing of its own to do.
async fn keep_keys_at_home() -> anyhow::Result<()> {
    let partitions = PartitionConfig::hash(Executor::global().workers());
    println!("{} workers, and a home among them for each of 64 keys:", partitions.num_partitions);
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("keyed", LaneConfig::new(0, 64), 0)
        .with_partitions(partitions)
        .build()
        .await?;
    manager.start().await?;
    let lane = manager.lane("keyed").expect("it was given");
    let ran: Arc<Mutex<BTreeMap<u64, BTreeMap<u64, u32>>>> = Arc::default();
    let mut tickets = Vec::new();
    for number in 0..20_000_u64 {
        let (key, ran) = (number % 64, Arc::clone(&ran));
        let command = move || async move {
            let thread = thread_number(std::thread::current().id());
            *ran.lock().expect("nobody panics").entry(key).or_default().entry(thread).or_default() += 1;
            // Some microseconds of work.
            Ok((0..2_000_u64).fold(key, |sum, value| std::hint::black_box(sum ^ value)))
        };
        tickets.push(lane.submit_fn_with("keyed", SubmitOptions::new().key(key), command)?);
    }
    for ticket in tickets {
        ticket.await??;
    }
    let ran = ran.lock().expect("nobody panics").clone();
    let all: u32 = ran.values().flat_map(BTreeMap::values).sum();
    let at_home: u32 = ran.values().filter_map(|threads| threads.values().max()).sum();
    println!("  {:.0} % began where most of their key did", f64::from(at_home) / f64::from(all) * 100.0);
    ensure!(all == 20_000);
    stop(manager).await
}

/// A small number for each thread.
fn thread_number(id: ThreadId) -> u64 {
    static NUMBERS: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());
    let mut numbers = NUMBERS.lock().expect("nobody panics");
    let number = numbers.iter().position(|other| *other == id).unwrap_or_else(|| {
        numbers.push(id);
        numbers.len() - 1
    });
    number as u64
}

/// As commands go from one process to another: data, of a type that both know.
#[derive(Serialize, Deserialize)]
struct Double {
    number: u64,
}

impl DurableCommand for Double {
    const TYPE: &'static str = "double";
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        Ok(self.number * 2)
    }
}

async fn share_a_queue() -> anyhow::Result<()> {
    // In one process; with a `RedisDistributedQueue`, `PostgresDistributedQueue` or `NatsDistributedQueue`, in many.
    let queue = Arc::new(LocalDistributedQueue::auto());
    println!("A queue of {} partitions, worker {}:", queue.num_partitions(), queue.worker_id());
    ensure!(queue.is_coordinator() && queue.is_worker());
    let mut ids = Vec::new();
    for number in 0..50 {
        let options = EnqueueOptions::new().keep_result(Duration::from_secs(60));
        let envelope = CommandEnvelope::of("parallel", &Double { number })?;
        ids.push(queue.enqueue_with(envelope, options).await?.command_id);
    }

    let manager = queue_with("parallel", LaneConfig::new(1, 20), 0).await?;
    let mut pool = WorkerPool::new(Arc::clone(&queue) as Arc<dyn DistributedQueue>);
    pool.start_in_lanes(&manager, RemoteCommands::new().with_durable::<Double>())?;
    let mut sum = 0;
    for id in &ids {
        let result = queue.result(id, Duration::from_secs(10)).await?.expect("it ends");
        sum += result.result.map_err(anyhow::Error::msg)?.as_u64().unwrap_or_default();
    }
    pool.shutdown().await;
    println!("  50 commands ran in the lane, and their results add up to {sum}");
    ensure!(sum == (0..50).map(|number| number * 2).sum::<u64>());
    stop(manager).await
}

async fn stop(manager: QueueManager) -> anyhow::Result<()> {
    manager.shutdown().await;
    manager.drain(Duration::from_secs(10)).await?;
    Ok(())
}
