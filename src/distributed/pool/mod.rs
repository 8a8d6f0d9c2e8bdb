//! Workers of a distributed queue: what is claimed there runs in lanes here.
//!
//! | file | what |
//! |---|---|
//! | `rooms` | how many commands each lane can start now, less what is on its way there |
//! | `serve` | one task per partition: claims as many as there is room for, and puts them into their lanes |
//! | `commands` | a command of an envelope; what it knows of its delivery |
//! | `held` | leases, and the thread that extends them |
//! | `settle` | how a command has ended, and telling the queue so |
//!
//! A command's way: a partition's task takes room in a lane, claims, makes the command and submits it (with nothing to claim it
//! waits for one without taking room, and gives that back if there is none then); from then on the lane has it, with its limits,
//! retries, metrics and dead letters. Its ticket says how it ended, which goes to the queue in batches. Meanwhile the lease
//! thread extends its lease, and cancels it if that is lost.

mod commands;
mod held;
mod rooms;
mod serve;
mod settle;

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;
use serde_json::Value;

pub use commands::{Delivery, RemoteCommands};

use self::held::Leases;
use self::rooms::Rooms;
use self::settle::Outbox;
use super::{CommandEnvelope, DEFAULT_LEASE, DistributedQueue};
use crate::error::{ConfigErrors, LaneError, Result};
use crate::event::EventEmitter;
use crate::executor::{Executor, discard_panic, panic_message, timeout};
use crate::queue::{CommandQueue, Lane, LaneConfig, PartitionId, QueueManager};

/// Takes commands of a [`DistributedQueue`] and runs them here: [in the lanes](WorkerPool::start_in_lanes) of a queue, or by
/// [one function](WorkerPool::start).
///
/// Dropped, it takes no more; what it has runs on and is reported.
pub struct WorkerPool {
    queue: Arc<dyn DistributedQueue>,
    executor: Option<Executor>,
    lease: Duration,
    concurrency: usize,
    partitions: Option<Vec<PartitionId>>,
    running: Option<Arc<Pool>>,
}

/// What all parts of a pool that runs have.
struct Pool {
    queue: Arc<dyn DistributedQueue>,
    executor: Executor,
    lease: Duration,
    target: Target,
    rooms: Rooms,
    leases: Leases,
    outbox: Outbox,
    counts: Counts,
    /// Takes no more.
    stopping: AtomicBool,
    /// Told when it stops, and when something has ended.
    changed: Event,
    /// Partitions that are still served.
    serving: AtomicUsize,
    /// The queue is told of ends.
    telling: AtomicBool,
}

/// A command that was taken, and of which the queue is to be told. However it goes, it is counted out.
struct InHand(Arc<Pool>);

impl InHand {
    fn new(pool: &Arc<Pool>) -> Self {
        pool.counts.claimed.fetch_add(1, Ordering::Relaxed);
        pool.counts.in_hand.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pool))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.counts.in_hand.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify(usize::MAX);
    }
}

/// Where commands run.
enum Target {
    /// In the lanes that their envelopes name.
    Lanes(RemoteCommands),
    /// All of them in one lane of its own.
    Function(Function),
}

type Function =
    Arc<dyn Fn(CommandEnvelope) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> + Send + Sync>;

#[derive(Debug, Default)]
struct Counts {
    claimed: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    released: AtomicU64,
    lost: AtomicU64,
    in_hand: AtomicUsize,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerPoolStats {
    /// Commands that were taken.
    pub claimed: u64,
    /// Commands that have ended well, and the queue knows.
    pub completed: u64,
    /// Commands that were given up, and the queue knows.
    pub failed: u64,
    /// Commands that were given back before they had ended.
    pub released: u64,
    /// Commands whose lease was lost: others may have run them, too.
    pub lost: u64,
    /// Commands that were taken, and the queue does not know yet how they have ended.
    pub in_hand: usize,
}

impl WorkerPool {
    /// Workers of this queue, which are to be started.
    #[must_use]
    pub fn new(queue: Arc<dyn DistributedQueue>) -> Self {
        Self { queue, executor: None, lease: DEFAULT_LEASE, concurrency: 1, partitions: None, running: None }
    }

    /// How long commands are leased for. They are extended every third of it, as long as this process runs; a command of a process
    /// that is gone comes back after at most this time. Default: 30 s.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Runs commands of [`WorkerPool::start`] on this executor. Default: [`Executor::global`].
    #[must_use]
    pub fn with_executor(mut self, executor: Executor) -> Self {
        self.executor = Some(executor);
        self
    }

    /// How many commands [`WorkerPool::start`] runs at a time, for each partition; 0 counts as 1. Default: 1.
    #[must_use]
    pub fn with_concurrency(mut self, commands: usize) -> Self {
        self.concurrency = commands.max(1);
        self
    }

    /// Takes commands of these partitions only. Default: of all.
    #[must_use]
    pub fn with_partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Runs each command by `command_executor`: [`WorkerPool::with_concurrency`] at a time for each partition, whatever their lanes
    /// are. What it returns is the command's result; an error, or a panic, makes it a dead letter.
    ///
    /// Does nothing if the pool runs already, or with settings that can not be (a lease of no time, a partition that is not there):
    /// the log says so, and [`WorkerPool::is_running`].
    pub fn start<F, Fut>(&mut self, command_executor: F)
    where
        F: Fn(CommandEnvelope) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<Value, String>> + Send + 'static,
    {
        if self.is_running() {
            tracing::warn!("the workers of a distributed queue run already: they were not started again");
            return;
        }
        let executor = self.executor.clone().unwrap_or_else(|| Executor::global().clone());
        let max = self.concurrency.saturating_mul(self.queue.num_partitions());
        let lane = Lane::new("remote", LaneConfig::new(0, max), 0);
        let queue = match CommandQueue::of_one(executor.clone(), EventEmitter::new(1), lane.clone()) {
            Ok(queue) => Arc::new(queue),
            Err(error) => {
                tracing::error!(%error, "the workers of a distributed queue can not be started");
                return;
            }
        };
        let run: Function = Arc::new(move |envelope| Box::pin(command_executor(envelope)));
        if let Err(error) = self.begin(queue, Target::Function(run), vec![lane]) {
            tracing::error!(%error, "the workers of a distributed queue can not be started");
        }
    }

    /// Runs commands in the lanes of `manager`: a command in the lane that its envelope names, of which no more are taken than
    /// that can start. So priorities, limits, timeouts, retries, metrics and dead letters are those of the lane; lanes are asked
    /// for in the order of their priorities. `commands` says how commands are made of their envelopes: what it does not know,
    /// or can not make, is a dead letter.
    ///
    /// Commands of lanes that are not here are left to others. What has failed for good here is a dead letter there, too.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError): the pool runs already, a lane is durable (its commands are
    /// stored already: set [`Durability::Memory`](crate::Durability::Memory)), or there is no such partition.
    pub fn start_in_lanes(&mut self, manager: &QueueManager, commands: RemoteCommands) -> Result<()> {
        let mut errors = ConfigErrors::default();
        if self.is_running() {
            errors.push("pool", "running", "it runs already: shut it down first");
        }
        let queue = manager.queue();
        let lanes = queue.lanes_by_priority();
        for lane in lanes.iter().filter(|lane| lane.is_stored()) {
            let hint = "its commands are stored by their queue: set Durability::Memory, or they would be stored twice";
            errors.push(format!("lanes[{:?}].durability", lane.id()), "durable", hint);
        }
        for double in commands.doubles() {
            errors.push(format!("commands[{double:?}]"), double, "is given twice: give each type one constructor");
        }
        errors.into_result()?;
        self.begin(queue, Target::Lanes(commands), lanes)
    }

    fn begin(&mut self, queue: Arc<CommandQueue>, target: Target, lanes: Vec<Lane>) -> Result<()> {
        let executor = queue.executor().clone();
        let there = self.queue.num_partitions();
        let partitions = self.partitions.clone().unwrap_or_else(|| (0..there).collect());
        let mut errors = ConfigErrors::default();
        for partition in partitions.iter().filter(|partition| **partition >= there) {
            errors.push(
                "partitions",
                partition,
                format!("use 0 to {}: the queue has {there}", there.saturating_sub(1)),
            );
        }
        let longest = self.queue.capabilities().max_lease.unwrap_or(Duration::MAX);
        if self.lease < Duration::from_millis(1) || self.lease > longest {
            errors.push(
                "lease",
                self.lease,
                format!("use 1 ms to {longest:?}, which is the longest that the queue gives"),
            );
        }
        errors.into_result()?;
        let leases = Leases::start(Arc::clone(&self.queue), self.lease)?;
        let pool = Arc::new(Pool {
            queue: Arc::clone(&self.queue),
            executor: executor.clone(),
            lease: self.lease,
            target,
            rooms: Rooms::new(queue, lanes),
            leases,
            outbox: Outbox::default(),
            counts: Counts::default(),
            stopping: AtomicBool::new(false),
            changed: Event::new(),
            serving: AtomicUsize::new(partitions.len()),
            telling: AtomicBool::new(true),
        });
        for partition in partitions {
            executor.spawn(0, serve::serve(Arc::clone(&pool), partition)).detach();
        }
        executor.spawn(0, settle::tell(Arc::clone(&pool))).detach();
        self.running = Some(pool);
        Ok(())
    }

    /// Takes no more, gives back what has not begun, waits for what runs, and returns when the queue knows how it ended.
    pub async fn shutdown(&mut self) {
        self.stop(Duration::MAX).await;
    }

    /// As [`WorkerPool::shutdown`]; commands that run for longer than `grace` are cancelled and given back.
    /// Returns at most some seconds after that, also where a command can not be stopped or the queue can not be told: what is in
    /// hand then comes back by itself when its lease ends.
    pub async fn stop(&mut self, grace: Duration) -> WorkerPoolStats {
        /// For what was cancelled to end, and the queue to hear of it.
        const REST: Duration = Duration::from_secs(5);
        let Some(pool) = self.running.take() else { return WorkerPoolStats::default() };
        pool.stop();
        if timeout(grace, pool.ended()).await.is_err() {
            pool.leases.cancel(|_| true);
            let _left = timeout(REST, pool.ended()).await;
        }
        pool.leases.end();
        pool.counts.now()
    }

    /// Whether it takes commands.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What it has done since it was started.
    #[must_use]
    pub fn stats(&self) -> WorkerPoolStats {
        self.running.as_ref().map(|pool| pool.counts.now()).unwrap_or_default()
    }
}

/// What a queue says; its panic is an error.
async fn contained<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(asked).catch_unwind().await.unwrap_or_else(|panic| {
        let message = format!("the queue: {}", panic_message(panic.as_ref()));
        discard_panic(panic);
        Err(LaneError::Panicked(message))
    })
}

impl Pool {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.changed.notify(usize::MAX);
        self.rooms.tell();
        // What waits in a lane has not begun.
        self.leases.cancel(|ticket| !ticket.has_started());
    }

    /// Nothing is taken any more, and nothing is in hand; or nobody is there to tell the queue, since the executor is closed.
    async fn ended(&self) {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.changed.listen();
            let serving = self.serving.load(Ordering::Acquire);
            let is_done = serving == 0 && self.counts.in_hand.load(Ordering::Acquire) == 0;
            if is_done || !self.telling.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }
}

impl Counts {
    fn now(&self) -> WorkerPoolStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        WorkerPoolStats {
            claimed: read(&self.claimed),
            completed: read(&self.completed),
            failed: read(&self.failed),
            released: read(&self.released),
            lost: read(&self.lost),
            in_hand: self.in_hand.load(Ordering::Relaxed),
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        if let Some(pool) = self.running.take() {
            pool.stop();
        }
    }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool").field("lease", &self.lease).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
