//! apalis: its storages and its worker, without events and results, which nobody asks for here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::apalis::prelude::*;
use anyhow::{Result, anyhow};
use apalis_postgres::{PgPool, PostgresStorage};
use apalis_redis::RedisStorage;

use super::{Payload, Workers};
use crate::plan::Task;

pub struct Queue<Storage> {
    storage: Storage,
    name: String,
}

pub type Postgres = Queue<PostgresStorage<Payload>>;
pub type Redis = Queue<RedisStorage<Payload>>;

impl<Storage> Queue<Storage> {
    fn new(storage: Storage, task: &Task) -> Self {
        Self { storage, name: format!("worker-{}", task.process) }
    }
}

impl Postgres {
    pub async fn connect(task: &Task) -> Result<Self> {
        let pool = PgPool::connect(&task.url).await?;
        PostgresStorage::setup(&pool).await?;
        let config = apalis_postgres::Config::default().queue(&task.namespace).persist_results(false);
        let config = config.batch_size(usize::try_from(task.work.batch)?);
        Ok(Self::new(PostgresStorage::new(&pool).with_config(config), task))
    }
}

impl Redis {
    pub async fn connect(task: &Task) -> Result<Self> {
        let connection = apalis_redis::connect(task.url.as_str()).await?;
        let config = apalis_redis::Config::default().queue(&task.namespace).persist_results(false).emit_events(false);
        let config = config.batch_size(usize::try_from(task.work.batch)?);
        Ok(Self::new(RedisStorage::new(connection).with_config(config), task))
    }
}

/// The same for both: written out, what a worker asks of its storage is longer than this.
macro_rules! workers {
    ($queue:ty) => {
        impl Workers for $queue {
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
    };
}

workers!(Postgres);
workers!(Redis);
