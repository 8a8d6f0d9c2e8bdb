//! A queue in Redis, or Valkey: commands in hashes and sorted sets, changed by scripts.
//!
//! `connection` tells how the server is reached and what its errors mean, `probe` what it is and how well it keeps what it is
//! given, `keys` what lies where, `scripts` what is done there in one step, `record` how a command is kept, `listen` how one
//! handle hears of what others have put in, `queue` what the calls make of all that.

mod connection;
mod keys;
mod listen;
mod probe;
mod queue;
mod record;
mod scripts;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::connection::Connection;
use self::queue::{Incoming, Queue, Settlement};
use super::remote::{Gone, LEASE_MAX, RemoteOptions, Thread};
use crate::distributed::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedHealth,
    DistributedQueue, EnqueueOptions, GlobalLimits, LeaseToken, Leased, Nack, Receipt, RemoteDeadLetter, Support,
    WorkerId, check_lease, check_partition,
};
use crate::error::{DistributedError, Result};
use crate::queue::PartitionId;

/// Its URLs, and whether each means TLS.
const SCHEMES: &[(&str, bool)] = &[("redis", false), ("rediss", true)];

/// A [`DistributedQueue`] in Redis 7.0 or later, or in Valkey.
///
/// Every change is one script, which others see done or not at all; all times are the server's. Ids, idempotency keys and limits
/// are one in all partitions. A handle has one connection for its calls, which is made again when it is lost, another one to hear
/// of what others put in, once somebody waits for that, and a thread that uses both: no worker waits for the network.
///
/// # What the server has to be
///
/// A master with `maxmemory-policy noeviction`: anything else is [`Unsuitable`](DistributedError::Unsuitable). How much it keeps
/// depends on its log, and [`Capabilities::durability`] says what was found:
///
/// | `appendonly` | `appendfsync` | durability |
/// |---|---|---|
/// | yes | always | [`Synced`](crate::Durability::Synced): what was acknowledged is on the server's disk |
/// | yes | always, but `no-appendfsync-on-rewrite` is yes, or not known | `Relaxed`: not so while the log is rewritten |
/// | yes | everysec | [`Relaxed`](crate::Durability::Relaxed): a crash may lose the last second |
/// | yes | no | `Relaxed`: a power failure may lose what the system has not written yet |
/// | yes | not known: the user may not `CONFIG GET` | [`Memory`](crate::Durability::Memory), with a note |
/// | no | | `Memory`: a crash loses what came since the last snapshot |
///
/// Replicas get what was acknowledged a little later: a failover may lose the last of it. Fences grow nevertheless, as long as
/// the servers' clocks agree: they follow the clock.
///
/// The user needs `EVAL`, `EVALSHA`, `TIME`, `INFO`, `CONFIG GET`, the commands of hashes and sorted sets, and the keys
/// `corelane:{namespace}:*`; and, to hear of what others put in, `PUBLISH`, `SUBSCRIBE` and the channel
/// `corelane:{namespace}:stirred`.
///
/// # What it costs
///
/// A command takes about 1 KB of the server's memory besides its payload; after its end, and each
/// time that a worker gives it back or up, 200 bytes for [`ID_MEMORY`](crate::ID_MEMORY).
///
/// A script does at most 128 commands; larger batches are several, each with the time of a call. Where one of them fails, the
/// rest is not sent. Taking of all lanes looks at each lane that has something: name
/// lanes where there are many. Who waits looks at once when something was put in, and by itself every second, or ten times as often
/// where that can not be heard. A queue has one hash tag, its name: in a Redis Cluster it lies on one node, whichever the number of its partitions, since its
/// promises hold for all of them together. Connect to that node: redirections are not followed.
///
/// ```no_run
/// # async fn example() -> corelane::Result<()> {
/// use corelane::{CommandEnvelope, DistributedQueue, RedisDistributedQueue};
///
/// let queue = RedisDistributedQueue::connect("redis://localhost").await?;
/// queue.enqueue(CommandEnvelope::new("greet", "query", "you".into())).await?;
/// # Ok(())
/// # }
/// ```
pub struct RedisDistributedQueue {
    shared: Arc<Queue>,
    thread: Thread,
}

impl RedisDistributedQueue {
    /// Opens the queue; makes it, if the server has none of this name.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError): all that is wrong with the options.
    /// [`LaneError::Distributed`](crate::LaneError::Distributed): [`Unavailable`](DistributedError::Unavailable) if it does not
    /// answer within the options' time, [`Refused`](DistributedError::Refused), [`Unsuitable`](DistributedError::Unsuitable),
    /// [`PartitionMismatch`](DistributedError::PartitionMismatch), [`SchemaVersion`](DistributedError::SchemaVersion).
    pub async fn connect(options: impl Into<RemoteOptions>) -> Result<Self> {
        let settings = options.into().check("redis", SCHEMES)?;
        let connection = Connection::new(&settings)?;
        let server = settings.server.to_string();
        let thread = Thread::start("corelane-redis").map_err(|error| {
            let cause = format!("there is no thread for it: {error}");
            DistributedError::Unavailable { server, cause }
        })?;
        let shared = Arc::new(Queue::new(settings, connection));
        let queue = Self { shared, thread };
        queue.ask(|shared| async move { shared.open().await }).await?;
        Ok(queue)
    }

    /// Has the thread do this. Goes on if it is not waited for any more.
    async fn tell<T, Work>(&self, work: impl FnOnce(Arc<Queue>) -> Work) -> Result<T, DistributedError>
    where
        T: Send + 'static,
        Work: Future<Output = T> + Send + 'static,
    {
        let call = self.shared.begin()?;
        let work = work(Arc::clone(&self.shared));
        let done = self.thread.run(async move {
            let _closing_waits = call;
            work.await
        });
        done.await.map_err(|Gone| self.gone())
    }

    /// The thread has given a call up: the server may have heard of it.
    fn gone(&self) -> DistributedError {
        let cause =
            "it was given up: the handle was closed before the answer came, or something has panicked".to_owned();
        DistributedError::OutcomeUnknown { server: self.shared.connection.server().to_owned(), cause }
    }

    /// As [`RedisDistributedQueue::tell`], of what may fail.
    async fn ask<T, Work>(&self, work: impl FnOnce(Arc<Queue>) -> Work) -> Result<T>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, DistributedError>> + Send + 'static,
    {
        Ok(self.tell(work).await??)
    }

    /// Somebody waits: from the first time on, others are heard.
    fn listen_for(&self, wait: Duration) {
        if !wait.is_zero() && self.shared.is_first_to_listen() {
            self.thread.spawn(listen::listen(Arc::clone(&self.shared)));
        }
    }

    /// Looks at a command before it is sent.
    fn incoming(&self, mut envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Incoming, DistributedError> {
        envelope.route(&options, self.num_partitions(), &*self.shared.settings.partitioner)?;
        let record = record::encode(&envelope, &options)?;
        let (size, limit) = (record.len(), self.shared.settings.max_payload);
        if size > limit {
            return Err(DistributedError::PayloadTooLarge { size, limit });
        }
        let partition = envelope.partition_id;
        Ok(Incoming { envelope, options, partition, record })
    }

    async fn settle(&self, settlement: Settlement) -> Result<AckOutcome> {
        let mut outcomes = self.tell(|shared| async move { shared.settle_all(vec![settlement]).await }).await?;
        outcomes.pop().unwrap_or_else(|| Err(self.gone().into()))
    }
}

/// The same error for each.
fn all<T>(many: usize, error: &DistributedError) -> Vec<Result<T>> {
    (0..many).map(|_| Err(error.clone().into())).collect()
}

#[async_trait]
impl DistributedQueue for RedisDistributedQueue {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        let claim = Claim::new(1).lease(self.shared.settings.lease);
        let leased = self.dequeue_leased(partition_id, claim).await?;
        Ok(leased.into_iter().next().map(|leased| leased.envelope))
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        self.shared.check_open()?;
        let lost = || DistributedError::LeaseLost { command_id: result.command_id.clone() };
        let token = self.shared.token_of(&result.command_id).ok_or_else(lost)?;
        match self.ack(&token, result.clone()).await? {
            AckOutcome::LeaseLost => Err(lost().into()),
            AckOutcome::Applied | AckOutcome::AlreadyApplied => Ok(()),
        }
    }

    fn num_partitions(&self) -> usize {
        self.shared.settings.partitions.num_partitions
    }

    fn worker_id(&self) -> &WorkerId {
        &self.shared.settings.worker_id
    }

    fn capabilities(&self) -> Capabilities {
        let found = self.shared.connection.found();
        Capabilities {
            durability: found.durability,
            leases: true,
            fencing: Support::Exact,
            priority: Support::Exact,
            order: Support::Exact,
            delay: Support::Exact,
            idempotency: Support::Exact,
            idempotency_window: Some(self.shared.settings.idempotency_window),
            expiry: Support::Exact,
            dead_letters: true,
            results: true,
            global_concurrency: Support::Exact,
            global_rate: Support::Exact,
            max_payload: Some(self.shared.settings.max_payload),
            max_lease: Some(LEASE_MAX),
            notes: found.notes,
        }
    }

    async fn enqueue_with(&self, envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        let mut receipts = self.enqueue_batch(vec![(envelope, options)]).await;
        receipts.pop().unwrap_or_else(|| Err(self.gone().into()))
    }

    async fn enqueue_batch(&self, commands: Vec<(CommandEnvelope, EnqueueOptions)>) -> Vec<Result<Receipt>> {
        if let Err(closed) = self.shared.check_open() {
            return all(commands.len(), &closed);
        }
        let mut good = Vec::with_capacity(commands.len());
        let mut receipts: Vec<Option<Result<Receipt>>> = Vec::with_capacity(commands.len());
        for (envelope, options) in commands {
            match self.incoming(envelope, options) {
                Ok(incoming) => {
                    good.push(incoming);
                    receipts.push(None);
                }
                Err(error) => receipts.push(Some(Err(error.into()))),
            }
        }
        let many = good.len();
        let sent = self.tell(|shared| async move { shared.enqueue(good).await }).await;
        let mut sent = sent.unwrap_or_else(|closed| all(many, &closed)).into_iter();
        let next = |refused: Option<Result<Receipt>>| {
            refused.or_else(|| sent.next()).unwrap_or_else(|| Err(self.gone().into()))
        };
        receipts.into_iter().map(next).collect()
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        let call = self.shared.begin()?;
        check_partition(partition_id, self.num_partitions())?;
        check_lease(claim.lease, Some(LEASE_MAX))?;
        self.listen_for(claim.wait);
        let (answer, taken) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.thread.spawn(async move {
            let _closing_waits = call;
            let claimed = shared.claim(partition_id, claim, || !answer.is_closed()).await;
            // Nobody waits for it any more: others may have it.
            if let Err(Ok(unwanted)) = answer.send(claimed) {
                shared.release(unwanted).await;
            }
        });
        Ok(taken.await.map_err(|_| self.gone())??)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        let mut extended = self.extend_batch(std::slice::from_ref(token), lease).await;
        extended.pop().unwrap_or_else(|| Err(self.gone().into()))
    }

    async fn extend_batch(&self, tokens: &[LeaseToken], lease: Duration) -> Vec<Result<()>> {
        if let Err(refused) = self.shared.check_open().and_then(|()| check_lease(lease, Some(LEASE_MAX))) {
            return all(tokens.len(), &refused);
        }
        let sent = tokens.to_vec();
        let extended = self.tell(|shared| async move { shared.extend(sent, lease).await }).await;
        extended.unwrap_or_else(|closed| all(tokens.len(), &closed))
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        self.settle(Settlement::ack(token.clone(), result)).await
    }

    async fn ack_batch(&self, results: Vec<(LeaseToken, CommandResult)>) -> Vec<Result<AckOutcome>> {
        let many = results.len();
        let settlements = results.into_iter().map(|(token, result)| Settlement::ack(token, result)).collect();
        let outcomes = self.tell(|shared| async move { shared.settle_all(settlements).await }).await;
        outcomes.unwrap_or_else(|closed| all(many, &closed))
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        self.settle(Settlement::nack(token.clone(), nack)).await
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        self.settle(Settlement::dead(token.clone(), &reason)).await
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        self.ask(|shared| async move { shared.letters(page).await }).await
    }

    async fn replay(&self, command_id: &str) -> Result<bool> {
        let command_id = command_id.to_owned();
        self.ask(|shared| async move { shared.replay(command_id).await }).await
    }

    async fn discard(&self, command_id: &str) -> Result<bool> {
        let command_id = command_id.to_owned();
        self.ask(|shared| async move { shared.discard(command_id).await }).await
    }

    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        let call = self.shared.begin()?;
        self.listen_for(wait);
        let (shared, command_id) = (Arc::clone(&self.shared), command_id.to_owned());
        let found = self.thread.run_while_awaited(async move {
            let _closing_waits = call;
            shared.result(command_id, wait).await
        });
        // Nothing was to be changed.
        Ok(found.await.map_err(|Gone| DistributedError::Closed)??)
    }

    async fn set_limits(&self, lane_id: &str, limits: GlobalLimits) -> Result<()> {
        limits.check()?;
        let lane_id = lane_id.to_owned();
        self.ask(|shared| async move { shared.set_limits(lane_id, limits).await }).await
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        self.shared.check_open()?;
        check_partition(partition_id, self.num_partitions())?;
        self.ask(|shared| async move { shared.depth(partition_id).await }).await
    }

    fn health(&self) -> DistributedHealth {
        if self.shared.check_open().is_ok() { self.shared.connection.health() } else { DistributedHealth::Closed }
    }

    async fn close(&self, grace: Duration) -> Result<()> {
        if !self.shared.set_closed() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let released = self.thread.run(async move { shared.release_all(grace).await }).await;
        self.thread.end();
        Ok(released.map_err(|Gone| self.gone())??)
    }
}

impl fmt::Debug for RedisDistributedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisDistributedQueue")
            .field("server", &self.shared.connection.server())
            .field("namespace", &self.shared.settings.namespace)
            .field("partitions", &self.shared.settings.partitions)
            .field("worker_id", &self.worker_id())
            .finish_non_exhaustive()
    }
}
