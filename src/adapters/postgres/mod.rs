//! A queue in PostgreSQL.
//!
//! | file | what |
//! |---|---|
//! | `address` | where the server is, and whether the way there is encrypted |
//! | `connection` | a connection that is made again when it was lost, and calls that go on then |
//! | `failure` | what went wrong, and what follows from it |
//! | `found` | what the server is, and what an acknowledged command survives there |
//! | `schema`, `schema_1.sql` | tables and functions, in versions |
//! | `settle` | how leases are ended |
//! | `sql` | the statements |
//! | `record` | commands as they are stored, and back |
//! | `shared` | what the calls do, on the handle's thread |
//!
//! How commands are kept, and why no two workers have one, is said in `schema_1.sql`.

mod address;
mod connection;
mod failure;
mod found;
mod record;
mod schema;
mod settle;
mod shared;
mod sql;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Transaction;

use self::record::Outgoing;
use self::settle::Settlement;
use self::shared::Shared;
use crate::adapters::remote::{LEASE_MAX, RemoteOptions, Thread};
use crate::distributed::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedHealth,
    DistributedQueue, EnqueueOptions, GlobalLimits, LeaseToken, Leased, Nack, Receipt, RemoteDeadLetter, Support,
    WorkerId, check_lease, check_partition,
};
use crate::error::{DistributedError, Result};
use crate::queue::PartitionId;

/// A [`DistributedQueue`] in PostgreSQL 14 or later: any number of processes put commands in and take them out, and a command can
/// be part of a transaction of your own (see [`PostgresDistributedQueue::enqueue_in`]).
///
/// The URL is as everywhere with PostgreSQL: `postgres://user:password@host:5432/database?sslmode=require`. Without TLS
/// (`sslmode=require`, `verify-ca` or `verify-full`, which all verify in full) only this machine is connected to, unless
/// [`allow_plaintext`](RemoteOptions::allow_plaintext) is set.
///
/// The queue lies in a schema of its own, `corelane_` and the [namespace](RemoteOptions::namespace), which the first one who
/// connects makes. That takes the right to create schemas in the database; or make it beforehand, owned by the user. Who finds
/// it ready needs no more than `usage` of the schema, and to read and write what is in it.
///
/// A handle has a thread, which does all the I/O, and up to four connections: one each for putting in, taking out, ending, and
/// looking. Behind a pooler, use its session mode. What waits for commands asks again after 20 to 250 ms, and at once when
/// something is put in by the same handle.
///
/// Each call is one statement; none leaves a transaction open. Whether an acknowledged command survives a crash of the server
/// is its setting `synchronous_commit`: see [`Capabilities::durability`].
///
/// ```no_run
/// # async fn example() -> corelane::Result<()> {
/// use corelane::{CommandEnvelope, DistributedQueue, PostgresDistributedQueue, RemoteOptions, Secret};
///
/// let options = RemoteOptions::new(Secret::from_env("DATABASE_URL")).namespace("mail");
/// let queue = PostgresDistributedQueue::connect(options).await?;
/// queue.enqueue(CommandEnvelope::new("send", "query", "you".into())).await?;
/// # Ok(())
/// # }
/// ```
///
/// A call whose answer was lost is made again by itself, as long as its time limit allows it. So a command may be called a
/// [`duplicate`](Receipt::duplicate) of itself.
///
/// Dropping a handle ends its thread; what it has taken comes back when the leases end. [`DistributedQueue::close`] gives it
/// back at once.
pub struct PostgresDistributedQueue {
    shared: Arc<Shared>,
    thread: Thread,
}

impl PostgresDistributedQueue {
    /// Opens a queue, which is made if it is not there. Tries for as long as
    /// [`connect_timeout`](RemoteOptions::connect_timeout) says.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError) for all that is wrong with the options.
    /// [`LaneError::Distributed`](crate::LaneError::Distributed): [`Unavailable`](DistributedError::Unavailable) if the server
    /// does not answer, [`Refused`](DistributedError::Refused) for a wrong password,
    /// [`Unsuitable`](DistributedError::Unsuitable) for a server that is too old or a standby,
    /// [`PartitionMismatch`](DistributedError::PartitionMismatch) if the queue was made with another number of them,
    /// [`SchemaVersion`](DistributedError::SchemaVersion) if a newer version of this crate has made it.
    pub async fn connect(options: impl Into<RemoteOptions>) -> Result<Self> {
        let (settings, address) = address::resolve(options.into())?;
        let server = settings.server.to_string();
        let gone = |cause: String| DistributedError::Unavailable { server: server.clone(), cause };
        let thread = Thread::start("corelane-postgres").map_err(|error| gone(format!("no thread: {error}")))?;
        let shared = thread.run_while_awaited(Shared::open(settings, address)).await;
        let shared = Arc::new(shared.map_err(|_| gone("its thread has ended".to_owned()))??);
        thread.spawn(Arc::clone(&shared).tidy());
        Ok(Self { shared, thread })
    }

    /// Puts a command into the queue as a part of a transaction of your own, on a connection of your own: it is there when that
    /// commits, and never was if it does not. Both must be in the same database.
    ///
    /// Until then, who puts in the same command, or one with the same
    /// [idempotency key](EnqueueOptions::idempotency_key), waits: keep the transaction short. How durable the commit is, your
    /// connection's `synchronous_commit` says. With an isolation above `read committed`, a commit may fail as PostgreSQL says, and
    /// the transaction is to be repeated.
    ///
    /// Uses `tokio-postgres` 0.7, from whatever runtime your connection is on. Of workers that wait for commands, none is woken: they
    /// find it when they ask the next time, within a quarter of a second.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::enqueue_with`]. If PostgreSQL has said it, the transaction can only be rolled back.
    pub async fn enqueue_in(
        &self,
        transaction: &Transaction<'_>,
        envelope: CommandEnvelope,
        options: EnqueueOptions,
    ) -> Result<Receipt> {
        let command = self.outgoing(envelope, options)?;
        Ok(self.shared.put_in(transaction, command).await?)
    }

    /// What may be sent.
    fn outgoing(&self, mut envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Outgoing, DistributedError> {
        let settings = &self.open()?.settings;
        envelope.route(&options, settings.partitions.num_partitions, &*settings.partitioner)?;
        Outgoing::new(envelope, options, settings.max_payload)
    }

    fn open(&self) -> Result<&Arc<Shared>, DistributedError> {
        if self.shared.is_closed() { Err(DistributedError::Closed) } else { Ok(&self.shared) }
    }

    fn open_at(&self, partition: PartitionId) -> Result<&Arc<Shared>, DistributedError> {
        let shared = self.open()?;
        check_partition(partition, self.num_partitions())?;
        Ok(shared)
    }

    /// Has the thread do this, to its end.
    async fn on_thread<T, Work>(&self, work: impl FnOnce(Arc<Shared>) -> Work) -> Result<T, DistributedError>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, DistributedError>> + Send + 'static,
    {
        let work = work(Arc::clone(self.open()?));
        match self.thread.run(work).await {
            Ok(done) => done,
            Err(_) => Err(self.shared.ended()),
        }
    }

    /// As [`Self::on_thread`], one answer for each of `many`.
    async fn each_on_thread<T, Work>(&self, many: usize, work: impl FnOnce(Arc<Shared>) -> Work) -> Vec<Result<T>>
    where
        T: Send + 'static,
        Work: Future<Output = Result<Vec<Result<T, DistributedError>>, DistributedError>> + Send + 'static,
    {
        match self.on_thread(work).await {
            Ok(answers) => answers.into_iter().map(|answer| Ok(answer?)).collect(),
            Err(error) => (0..many).map(|_| Err(error.clone().into())).collect(),
        }
    }

    async fn settle(&self, settlement: Settlement) -> Result<AckOutcome> {
        let mut outcomes = self.settle_all(vec![settlement]).await;
        outcomes.pop().unwrap_or_else(|| Err(self.shared.ended().into()))
    }

    async fn settle_all(&self, settlements: Vec<Settlement>) -> Vec<Result<AckOutcome>> {
        self.each_on_thread(settlements.len(), |shared| async move { shared.settle(settlements).await }).await
    }
}

impl fmt::Debug for PostgresDistributedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { server, settings, .. } = &*self.shared;
        f.debug_struct("PostgresDistributedQueue")
            .field("server", &server.name)
            .field("namespace", &settings.namespace)
            .field("worker_id", &settings.worker_id)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DistributedQueue for PostgresDistributedQueue {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        let claim = Claim::new(1).lease(self.shared.settings.lease);
        let leased = self.dequeue_leased(partition_id, claim).await?;
        Ok(leased.into_iter().next().map(|leased| leased.envelope))
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        let lost = DistributedError::LeaseLost { command_id: result.command_id.clone() };
        let id = result.command_id.clone();
        let held = self.on_thread(|shared| async move { shared.held(id).await }).await?;
        let Some(token) = held else { return Err(lost.into()) };
        match self.ack(&token, result).await? {
            AckOutcome::LeaseLost => Err(lost.into()),
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
        let Shared { server, settings, .. } = &*self.shared;
        let found = server.found();
        Capabilities {
            durability: found.durability(),
            leases: true,
            fencing: Support::Exact,
            priority: Support::Exact,
            order: Support::Exact,
            delay: Support::Exact,
            idempotency: Support::Exact,
            idempotency_window: Some(settings.idempotency_window),
            expiry: Support::Exact,
            dead_letters: true,
            results: true,
            global_concurrency: Support::Exact,
            global_rate: Support::Exact,
            max_payload: Some(settings.max_payload),
            max_lease: Some(LEASE_MAX),
            notes: found.notes(),
        }
    }

    async fn enqueue_with(&self, envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        let mut receipts = self.enqueue_batch(vec![(envelope, options)]).await;
        receipts.pop().unwrap_or_else(|| Err(self.shared.ended().into()))
    }

    /// One round trip for each 16 MiB.
    async fn enqueue_batch(&self, commands: Vec<(CommandEnvelope, EnqueueOptions)>) -> Vec<Result<Receipt>> {
        let mut good = Vec::with_capacity(commands.len());
        let mut receipts: Vec<Option<Result<Receipt>>> = Vec::with_capacity(commands.len());
        for (envelope, options) in commands {
            let refused = match self.outgoing(envelope, options) {
                Ok(command) => {
                    good.push(command);
                    None
                }
                Err(error) => Some(Err(error.into())),
            };
            receipts.push(refused);
        }
        if good.is_empty() {
            return receipts.into_iter().flatten().collect();
        }
        let put = self.each_on_thread(good.len(), |shared| async move { Ok(shared.put(good).await) }).await;
        let mut put = put.into_iter();
        let answered = receipts.into_iter().map(|refused| refused.or_else(|| put.next()));
        answered.map(|receipt| receipt.unwrap_or_else(|| Err(self.shared.ended().into()))).collect()
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        let shared = Arc::clone(self.open_at(partition_id)?);
        check_lease(claim.lease, Some(LEASE_MAX))?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.thread.spawn(shared.claim(partition_id, claim, answer));
        // It ends without an answer when the queue is closed.
        Ok(answered.await.unwrap_or(Err(DistributedError::Closed))?)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        let mut extended = self.extend_batch(std::slice::from_ref(token), lease).await;
        extended.pop().unwrap_or_else(|| Err(self.shared.ended().into()))
    }

    async fn extend_batch(&self, tokens: &[LeaseToken], lease: Duration) -> Vec<Result<()>> {
        if let Err(error) = check_lease(lease, Some(LEASE_MAX)) {
            return tokens.iter().map(|_| Err(error.clone().into())).collect();
        }
        let tokens = tokens.to_vec();
        self.each_on_thread(tokens.len(), |shared| async move { shared.extend(tokens, lease).await }).await
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        self.settle(Settlement::ended(token.clone(), result)).await
    }

    async fn ack_batch(&self, results: Vec<(LeaseToken, CommandResult)>) -> Vec<Result<AckOutcome>> {
        self.settle_all(results.into_iter().map(|(token, result)| Settlement::ended(token, result)).collect()).await
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        self.settle(Settlement::back(token.clone(), nack)).await
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        self.settle(Settlement::dead(token.clone(), &reason)).await
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        Ok(self.on_thread(|shared| async move { shared.letters(page).await }).await?)
    }

    async fn replay(&self, command_id: &str) -> Result<bool> {
        let id = command_id.to_owned();
        Ok(self.on_thread(|shared| async move { shared.replay(id).await }).await?)
    }

    async fn discard(&self, command_id: &str) -> Result<bool> {
        let id = command_id.to_owned();
        Ok(self.on_thread(|shared| async move { shared.discard(id).await }).await?)
    }

    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        let (shared, id) = (Arc::clone(self.open()?), command_id.to_owned());
        let found = self.thread.run_while_awaited(async move { shared.result(id, wait).await }).await;
        Ok(found.unwrap_or(Err(DistributedError::Closed))?)
    }

    async fn set_limits(&self, lane_id: &str, limits: GlobalLimits) -> Result<()> {
        limits.check()?;
        let lane = lane_id.to_owned();
        Ok(self.on_thread(|shared| async move { shared.set_limits(lane, limits).await }).await?)
    }

    /// Counts what is there: takes longer the more that is.
    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        self.open_at(partition_id)?;
        Ok(self.on_thread(|shared| async move { shared.depth(partition_id).await }).await?)
    }

    fn health(&self) -> DistributedHealth {
        if self.shared.is_closed() { DistributedHealth::Closed } else { self.shared.server.health() }
    }

    async fn close(&self, grace: Duration) -> Result<()> {
        if !self.shared.begin_closing() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let released = self.thread.run(async move { shared.release_all(grace).await }).await;
        self.thread.end();
        Ok(released.unwrap_or_else(|_| Err(self.shared.ended()))?)
    }
}
