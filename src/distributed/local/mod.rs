//! The queue within one process: for tests, for one machine, and as the reference that says what the trait means.
//!
//! All handles share one [`State`], under a lock that is held for one change of maps and never while anybody waits. It is not
//! on the way of commands that are submitted to a lane.

mod receiver;
mod state;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_listener::Event;
use futures_lite::FutureExt as _;

pub use receiver::{PartitionReceiver, ResultReceiver, ResultSender};

use self::state::State;
use super::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DEFAULT_LEASE, DeadPage, DeadReason, Depth,
    DistributedHealth, DistributedQueue, EnqueueOptions, GlobalLimits, LeaseToken, Leased, Nack, Receipt,
    RemoteDeadLetter, Support, WorkerId, check_lease, check_partition,
};
use crate::clock::Tick;
use crate::error::{ConfigErrors, DistributedError, LaneError, Result};
use crate::executor::{now, sleep_until};
use crate::limit::rate::RateLimiter;
use crate::queue::{PartitionConfig, PartitionId, Partitioner};
use crate::storage::Durability;

/// How long idempotency keys are kept after their commands have ended well, where nothing else is said.
const DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A [`DistributedQueue`] within this process: nothing is stored, and everything else is as it is with a server.
///
/// [`LocalDistributedQueue::worker`] gives further handles, for further workers.
///
/// ```
/// use corelane::{CommandEnvelope, CommandResult, DistributedQueue, LocalDistributedQueue, PartitionConfig};
///
/// # futures_lite::future::block_on(async {
/// let queue = LocalDistributedQueue::new(PartitionConfig::none());
/// queue.enqueue(CommandEnvelope::new("greet", "query", "you".into())).await?;
///
/// let envelope = queue.dequeue(0).await?.expect("there is one");
/// let result = CommandResult {
///     command_id: envelope.id,
///     result: Ok("hello".into()),
///     worker_id: queue.worker_id().clone(),
///     duration_ms: 1,
/// };
/// queue.complete(result).await?;
/// # Ok::<(), corelane::LaneError>(())
/// # }).unwrap();
/// ```
pub struct LocalDistributedQueue {
    shared: Arc<Shared>,
    worker_id: WorkerId,
    lease: Duration,
    closed: Arc<AtomicBool>,
}

struct Shared {
    config: PartitionConfig,
    partitioner: Arc<dyn Partitioner>,
    state: Mutex<State>,
    /// Commands are ready, or may be taken, that were not.
    readied: Event,
    /// There is a result.
    resulted: Event,
}

impl LocalDistributedQueue {
    /// An empty queue.
    ///
    /// # Panics
    ///
    /// If there can not be so many partitions; [`LocalDistributedQueue::try_new`] gives an error instead.
    #[must_use]
    pub fn new(config: PartitionConfig) -> Self {
        Self::try_new(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// An empty queue.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError) if there can not be so many partitions.
    pub fn try_new(config: PartitionConfig) -> Result<Self> {
        let partitioner = config.create_partitioner();
        Self::with_partitioner(config, partitioner)
    }

    /// An empty queue with as many partitions as this process has CPUs, which get commands in turns.
    #[must_use]
    pub fn auto() -> Self {
        Self::new(PartitionConfig::auto())
    }

    /// An empty queue whose partitions are chosen by `partitioner`, whatever the strategy of `config` is.
    ///
    /// # Errors
    ///
    /// As [`LocalDistributedQueue::try_new`].
    pub fn with_partitioner(config: PartitionConfig, partitioner: Arc<dyn Partitioner>) -> Result<Self> {
        config.check()?;
        let state = Mutex::new(State::new(config.num_partitions));
        let shared = Shared { config, partitioner, state, readied: Event::new(), resulted: Event::new() };
        Ok(Self::of(Arc::new(shared), DEFAULT_LEASE))
    }

    fn of(shared: Arc<Shared>, lease: Duration) -> Self {
        let worker_id = format!("local-{}", uuid::Uuid::now_v7());
        Self { shared, worker_id, lease, closed: Arc::default() }
    }

    /// Holds at most so many commands, dead letters not counted: more are refused as [`DistributedError::Full`]. Default: no limit.
    #[must_use]
    pub fn with_capacity(self, commands: usize) -> Self {
        self.shared.lock().set_capacity(commands);
        self
    }

    /// How long [idempotency keys](EnqueueOptions::idempotency_key) are kept after their commands have ended well. Default: 24
    /// hours.
    #[must_use]
    pub fn with_idempotency_window(self, time: Duration) -> Self {
        self.shared.lock().set_window(time);
        self
    }

    /// How long [`DistributedQueue::dequeue`] leases a command for. Default: 30 s.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The name of this handle among all of the queue. Default: one of its own.
    #[must_use]
    pub fn with_worker_id(mut self, worker_id: impl Into<WorkerId>) -> Self {
        self.worker_id = worker_id.into();
        self
    }

    /// A further handle of the same queue, with a name of its own.
    #[must_use]
    pub fn worker(&self) -> Self {
        Self::of(Arc::clone(&self.shared), self.lease)
    }

    /// What chooses partitions.
    #[must_use]
    pub fn partitioner(&self) -> &Arc<dyn Partitioner> {
        &self.shared.partitioner
    }

    /// As it was made.
    #[must_use]
    pub fn partition_config(&self) -> &PartitionConfig {
        &self.shared.config
    }

    /// Takes commands of a partition one by one, waiting for them; none if there is no such partition. What it takes is leased as by
    /// [`DistributedQueue::dequeue`].
    #[must_use]
    pub fn partition_receiver(&self, partition_id: PartitionId) -> Option<PartitionReceiver> {
        let there = partition_id < self.shared.config.num_partitions;
        there.then(|| PartitionReceiver::new(self.clone_handle(), partition_id))
    }

    /// Reads how commands have ended, of all workers; each is read once. Of those that nobody has read, the newest 1,000 are kept:
    /// completing never waits for a reader.
    #[must_use]
    pub fn result_receiver(&self) -> ResultReceiver {
        ResultReceiver::new(Arc::clone(&self.shared))
    }

    /// Puts results where [`LocalDistributedQueue::result_receiver`] reads them, without ending a command.
    #[must_use]
    pub fn result_sender(&self) -> ResultSender {
        ResultSender::new(Arc::clone(&self.shared))
    }

    /// This handle once more: with the same name, closed with it.
    fn clone_handle(&self) -> Self {
        let Self { shared, worker_id, lease, closed } = self;
        Self { shared: Arc::clone(shared), worker_id: worker_id.clone(), lease: *lease, closed: Arc::clone(closed) }
    }

    /// Waits for commands as the claim says; none once the handle is closed.
    async fn claim(&self, partition: PartitionId, claim: &Claim) -> Vec<Leased> {
        let shared = &self.shared;
        let give_up = now().plus(claim.wait);
        loop {
            // Listened before it is looked at: so what comes meanwhile is not missed.
            let listener = shared.readied.listen();
            let again = {
                let mut state = shared.lock();
                // Under the lock: what is taken before `close` has it is given back by that.
                if self.open().is_err() || claim.max == 0 {
                    return Vec::new();
                }
                let (taken, again) = state.claim(partition, claim, &self.worker_id, now());
                if !taken.is_empty() {
                    return taken;
                }
                again.into_iter().chain(state.next_time()).min().unwrap_or(Tick::NEVER)
            };
            if now() >= give_up {
                return Vec::new();
            }
            until(listener, again.min(give_up)).await;
        }
    }

    fn open(&self) -> Result<&Shared, DistributedError> {
        // ORDERING: who was told that it is closed has been told by other means.
        if self.closed.load(Ordering::Relaxed) { Err(DistributedError::Closed) } else { Ok(&self.shared) }
    }
}

impl Shared {
    /// What is there, once everything has happened that was due.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.advance(now()) {
            self.readied.notify(usize::MAX);
        }
        state
    }

    /// What the calls have in common that end a lease.
    fn settle(&self, settle: impl FnOnce(&mut State) -> AckOutcome) -> AckOutcome {
        let outcome = settle(&mut self.lock());
        if outcome == AckOutcome::Applied {
            // There may be something to take, or room under a limit.
            self.readied.notify(usize::MAX);
        }
        outcome
    }
}

/// Waits for something, or a point in time.
async fn until(event: impl Future<Output = ()>, at: Tick) {
    if at == Tick::NEVER {
        event.await;
    } else {
        event.or(async { sleep_until(at).await }).await;
    }
}

#[async_trait]
impl DistributedQueue for LocalDistributedQueue {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        let claim = Claim::new(1).lease(self.lease);
        let leased = self.dequeue_leased(partition_id, claim).await?;
        Ok(leased.into_iter().next().map(|leased| leased.envelope))
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        let shared = self.open()?;
        let lost = || DistributedError::LeaseLost { command_id: result.command_id.clone() };
        let token = shared.lock().token_of(&result.command_id, &self.worker_id).ok_or_else(lost)?;
        match self.ack(&token, result.clone()).await? {
            AckOutcome::LeaseLost => Err(lost().into()),
            AckOutcome::Applied | AckOutcome::AlreadyApplied => Ok(()),
        }
    }

    fn num_partitions(&self) -> usize {
        self.shared.config.num_partitions
    }

    fn worker_id(&self) -> &WorkerId {
        &self.worker_id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Memory,
            leases: true,
            fencing: Support::Exact,
            priority: Support::Exact,
            order: Support::Exact,
            delay: Support::Exact,
            idempotency: Support::Exact,
            idempotency_window: Some(self.shared.lock().window()),
            expiry: Support::Exact,
            dead_letters: true,
            results: true,
            global_concurrency: Support::Exact,
            global_rate: Support::Exact,
            max_payload: None,
            max_lease: None,
            notes: vec!["commands are lost with the process".to_owned()],
        }
    }

    async fn enqueue_with(&self, mut envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        let shared = self.open()?;
        envelope.route(&options, self.num_partitions(), &*shared.partitioner)?;
        let receipt = shared.lock().enqueue(envelope, options, now())?;
        shared.readied.notify(usize::MAX);
        Ok(receipt)
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        self.open()?;
        check_partition(partition_id, self.num_partitions())?;
        check_lease(claim.lease, None)?;
        Ok(self.claim(partition_id, &claim).await)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        check_lease(lease, None)?;
        Ok(self.open()?.lock().extend(token, lease, now())?)
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        let shared = self.open()?;
        let outcome = shared.settle(|state| state.ack(token, result, now()));
        shared.resulted.notify(usize::MAX);
        Ok(outcome)
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        Ok(self.open()?.settle(|state| state.nack(token, nack, now())))
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        Ok(self.open()?.settle(|state| state.dead_letter(token, reason)))
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        Ok(self.open()?.lock().letters(&page))
    }

    async fn replay(&self, command_id: &str) -> Result<bool> {
        let shared = self.open()?;
        let replayed = shared.lock().replay(command_id, now());
        shared.readied.notify(usize::MAX);
        Ok(replayed)
    }

    async fn discard(&self, command_id: &str) -> Result<bool> {
        Ok(self.open()?.lock().discard(command_id))
    }

    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        let shared = self.open()?;
        let give_up = now().plus(wait);
        loop {
            let listener = shared.resulted.listen();
            let result = shared.lock().result(command_id);
            if result.is_some() || now() >= give_up {
                return Ok(result);
            }
            until(listener, give_up).await;
        }
    }

    async fn set_limits(&self, lane_id: &str, limits: GlobalLimits) -> Result<()> {
        let shared = self.open()?;
        let rate = limits.check()?;
        shared.lock().set_limits(lane_id, &limits, rate);
        shared.readied.notify(usize::MAX);
        Ok(())
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        let shared = self.open()?;
        check_partition(partition_id, self.num_partitions())?;
        Ok(shared.lock().depth(partition_id, now()))
    }

    fn health(&self) -> DistributedHealth {
        if self.open().is_ok() { DistributedHealth::Working } else { DistributedHealth::Closed }
    }

    async fn close(&self, _grace: Duration) -> Result<()> {
        {
            let mut state = self.shared.lock();
            self.closed.store(true, Ordering::Relaxed);
            state.release_all(&self.worker_id, now());
        }
        self.shared.readied.notify(usize::MAX);
        Ok(())
    }
}

impl GlobalLimits {
    /// Whether they make sense; the limiter that they ask for.
    pub(crate) fn check(&self) -> Result<Option<RateLimiter>> {
        let mut errors = ConfigErrors::default();
        if self.max_leased == Some(0) {
            errors.push("limits.max_leased", 0, "use at least 1: with 0 nothing would ever run");
        }
        if let Some(rate) = &self.rate {
            rate.check("limits.rate", &mut errors);
        }
        errors.into_result().map_err(LaneError::from)?;
        Ok(self.rate.as_ref().map(RateLimiter::new).transpose()?)
    }
}

impl fmt::Debug for LocalDistributedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalDistributedQueue")
            .field("worker_id", &self.worker_id)
            .field("partitions", &self.shared.config)
            .finish_non_exhaustive()
    }
}
