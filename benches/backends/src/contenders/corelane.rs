//! corelane: a `DistributedQueue`, and a `WorkerPool` in a lane.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DistributedQueue, DurableCommand, EnqueueOptions, EventEmitter,
    Executor, LaneConfig, LeaseToken, NatsDistributedQueue, PostgresDistributedQueue, QueueManagerBuilder,
    RedisDistributedQueue, RemoteCommands, RemoteOptions, WorkerPool, sleep,
};
use futures::future::{Either, select};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Calls, LEASE, Payload, Workers};
use crate::plan::{Backend, Task};

const LANE: &str = "work";

pub struct Queue {
    queue: Arc<dyn DistributedQueue>,
    /// Of one process, at a time.
    concurrency: usize,
}

impl Queue {
    pub async fn connect(task: &Task) -> Result<Self> {
        let options = RemoteOptions::new(task.url.as_str()).namespace(task.namespace.as_str());
        let queue: Arc<dyn DistributedQueue> = match task.work.backend {
            Backend::Redis => Arc::new(RedisDistributedQueue::connect(options).await?),
            Backend::Postgres => Arc::new(PostgresDistributedQueue::connect(options).await?),
            Backend::Nats => Arc::new(NatsDistributedQueue::connect(options).await?),
        };
        Ok(Self { queue, concurrency: usize::try_from(task.work.batch)? })
    }

    async fn put(&self, numbers: Range<u64>) -> Result<()> {
        let mut commands = Vec::new();
        for number in numbers {
            commands.push((CommandEnvelope::of(LANE, &Noop(Payload::new(number)))?, EnqueueOptions::new()));
        }
        for receipt in self.queue.enqueue_batch(commands).await {
            receipt?;
        }
        Ok(())
    }
}

impl Calls for Queue {
    type Claimed = LeaseToken;

    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        self.put(numbers).await
    }

    async fn claim(&mut self, most: usize) -> Result<Vec<LeaseToken>> {
        let claim = Claim::new(most).lane(LANE, most).lease(LEASE);
        let leased = self.queue.dequeue_leased(0, claim).await?;
        Ok(leased.into_iter().map(|leased| leased.token).collect())
    }

    async fn ack(&mut self, claimed: Vec<LeaseToken>) -> Result<()> {
        let ended = |token: LeaseToken| {
            let command_id = token.command_id().to_owned();
            let worker_id = self.queue.worker_id().clone();
            (token, CommandResult { command_id, result: Ok(Value::Null), worker_id, duration_ms: 0 })
        };
        for outcome in self.queue.ack_batch(claimed.into_iter().map(ended).collect()).await {
            ensure!(outcome? == AckOutcome::Applied, "a lease was lost");
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Noop(Payload);

impl DurableCommand for Noop {
    const TYPE: &'static str = "noop";
    type Output = ();

    async fn execute(&self) -> corelane::Result<()> {
        Ok(())
    }
}

impl Workers for Queue {
    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        self.put(numbers).await
    }

    async fn work(self, handled: Arc<AtomicU64>, stop: impl Future<Output = Result<()>>) -> Result<()> {
        // The processes share the CPUs.
        let executor = Executor::builder().pin(false).build()?;
        let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor);
        let manager = builder.with_lane(LANE, LaneConfig::new(0, self.concurrency), 2).build().await?;
        manager.start().await?;
        let mut pool = WorkerPool::new(Arc::clone(&self.queue));
        pool.start_in_lanes(&manager, RemoteCommands::new().with_durable::<Noop>())?;
        // Counted when the queue has heard of their ends.
        let mut stop = pin!(stop);
        while let Either::Right(_) = select(stop.as_mut(), pin!(sleep(Duration::from_millis(1)))).await {
            handled.store(pool.stats().completed, Ordering::Relaxed);
        }
        pool.shutdown().await;
        Ok(())
    }
}
