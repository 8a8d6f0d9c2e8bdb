//! apalis on Redis: its storage and its worker, without events and results, which nobody asks for here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow};
use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};

use super::{Payload, Workers};
use crate::plan::Task;

pub struct Queue {
    storage: RedisStorage<Payload>,
    name: String,
}

impl Queue {
    pub async fn connect(task: &Task) -> Result<Self> {
        let connection = apalis_redis::connect(task.url.as_str()).await?;
        let config = Config::default()
            .queue(&task.namespace)
            .batch_size(usize::try_from(task.work.batch)?)
            .persist_results(false)
            .emit_events(false);
        let storage = RedisStorage::new(connection).with_config(config);
        Ok(Self { storage, name: format!("worker-{}", task.process) })
    }
}

impl Workers for Queue {
    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        self.storage.push_bulk(numbers.map(Payload::new).collect()).await.map_err(|error| anyhow!("{error}"))
    }

    async fn work(self, handled: Arc<AtomicU64>, stop: impl Future<Output = Result<()>>) -> Result<()> {
        let context = WorkerContext::new(&self.name);
        let handle = move |_: Payload| {
            handled.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, BoxDynError>(()) }
        };
        let worker = WorkerBuilder::new(&context).backend(self.storage).build(handle);
        let running = tokio::spawn(worker.run());
        stop.await?;
        context.stop()?;
        Ok(running.await??)
    }
}
