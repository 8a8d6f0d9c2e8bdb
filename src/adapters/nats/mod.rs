//! A queue in NATS JetStream: streams deliver, a register decides.
//!
//! | file | what |
//! |---|---|
//! | `options` | how it is opened |
//! | `connect` | how a connection is made |
//! | `link` | one question and its answer, asked again until the call's time is over |
//! | `names` | what streams, buckets and subjects are called |
//! | `record` | what is stored |
//! | `streams` | which streams there are, and how they are made |
//! | `clock` | the server's time |
//! | `core` | what all calls of a handle share |
//! | `enqueue` | how a command gets in, once |
//! | `delivery` | one delivery of a message |
//! | `claim` | how commands are taken, and kept |
//! | `end` | how they end, and are given back |
//! | `letters` | dead letters |
//! | `look` | results and depth |
//! | `sweep` | what was left undone is made good |
//!
//! JetStream's acknowledgements are not fenced: a late one, of a delivery whose time was over, acknowledges the message although
//! another has it by now. So no acknowledgement decides anything here. The truth about each command is one record of a key-value
//! bucket (the **register**), and every change of it names the revision that it was made from: of two, the server takes one. The
//! messages in the streams only say which commands to look at, in which order, and when again.

mod claim;
mod clock;
mod connect;
mod core;
mod delivery;
mod end;
mod enqueue;
mod letters;
mod link;
mod look;
mod names;
mod options;
mod record;
mod streams;
mod sweep;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

pub use self::options::NatsOptions;

use self::connect::Sight;
use self::core::{Core, Found};
use self::end::End;
use self::link::Link;
use super::remote::{Gone, LEASE_MAX, RemoteOptions, Settings, Thread};
use crate::distributed::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedHealth,
    DistributedQueue, EnqueueOptions, LeaseToken, Leased, Nack, Receipt, RemoteDeadLetter, Support, WorkerId,
    check_lease, check_partition,
};
use crate::error::{ConfigErrors, DistributedError, LaneError, Result};
use crate::queue::PartitionId;
use crate::storage::Durability;

/// A [`DistributedQueue`] in NATS JetStream: nats-server 2.9 or later, started with `-js`.
///
/// Each pair of lane and priority that is used has a stream, made at its first command. What else it keeps, and what it can not do
/// with the server that it found, is in [`capabilities`](DistributedQueue::capabilities) and its notes.
///
/// User, password and token are read from the [`Secret`](crate::Secret) again at each new connection; the host is the one that it was
/// opened with. With `tls://`, what is sent is encrypted; with `nats://`, only if the server asks for it.
///
/// What each call costs, in questions to the server that wait for each other: enqueueing three (five with an
/// idempotency key), taking four for a whole batch and one for each stream that is empty before it, extending one, acknowledging four.
/// Many at a time go side by side.
///
/// A user that may do only this needs to publish to `$JS.API.>`, `$JS.ACK.>`, `corelane.<queue>.>` and `$KV.<queue>-<bucket>.>`
/// for each of the buckets `state`, `ended`, `keys` and `results`, and to subscribe to `_INBOX.>` and `corelane.<queue>.wake.*`,
/// where `<queue>` is the [namespace](crate::RemoteOptions::namespace).
///
/// ```no_run
/// use corelane::{CommandEnvelope, DistributedQueue, NatsDistributedQueue};
///
/// # futures_lite::future::block_on(async {
/// let queue = NatsDistributedQueue::connect("nats://localhost:4222").await?;
/// queue.enqueue(CommandEnvelope::new("greet", "query", "you".into())).await?;
/// # Ok::<(), corelane::LaneError>(())
/// # }).unwrap();
/// ```
pub struct NatsDistributedQueue {
    core: Arc<Core>,
    thread: Thread,
    capabilities: Capabilities,
}

/// Bytes of a message that are not the command's: its terms, headers of the protocol, what is added to a letter.
const AROUND: usize = 64 << 10;

impl NatsDistributedQueue {
    /// Connects, and makes what the queue consists of where it is not there. With an address alone, [`RemoteOptions`](crate::RemoteOptions), or
    /// [`NatsOptions`].
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError) for options that make no sense;
    /// [`LaneError::Distributed`](crate::LaneError::Distributed): the server does not answer in time, refuses, is not one that a queue can
    /// be in, or has a queue of this name that is another one.
    pub async fn connect(options: impl Into<NatsOptions>) -> Result<Self> {
        let NatsOptions { remote, replicas, sync_always } = options.into();
        let settings = remote.clone().check("nats", &[("nats", false), ("tls", true)])?;
        let mut errors = ConfigErrors::default();
        if ![1, 3, 5].contains(&replicas) {
            errors.push("replicas", replicas, "use 1, 3 or 5");
        }
        if settings.root_certificates.is_some() && !settings.server.tls {
            errors.push("root_certificates", "[given]", "are for TLS: use tls:// instead of nats://");
        }
        errors.into_result()?;
        let tls = connect::tls(&settings)?;
        let server = settings.server.to_string();
        let thread = Thread::start("corelane-nats").map_err(|error| DistributedError::Unavailable {
            server: server.clone(),
            cause: format!("no thread for it: {error}"),
        })?;
        let opened = thread.run_while_awaited(open(settings, remote, tls, replicas)).await;
        let (core, version) = opened.map_err(|Gone| DistributedError::Closed)??;
        let core = Arc::new(core);
        thread.spawn(hear(Arc::clone(&core)));
        thread.spawn(begin_anew(Arc::clone(&core)));
        let capabilities = capabilities(&core, &version, sync_always);
        Ok(Self { core, thread, capabilities })
    }

    /// Has the thread do this. Goes on if it is not waited for any more: what was begun is finished.
    async fn run<T, Done>(&self, work: impl FnOnce(Arc<Core>) -> Done) -> Result<T>
    where
        T: Send + 'static,
        Done: Future<Output = Result<T, DistributedError>> + Send + 'static,
    {
        if self.core.is_closed() {
            return Err(DistributedError::Closed.into());
        }
        let done = self.thread.run(work(Arc::clone(&self.core))).await;
        Ok(done.map_err(|Gone| self.core.given_up())??)
    }
}

async fn open(
    settings: Settings,
    remote: RemoteOptions,
    tls: Option<rustls::ClientConfig>,
    replicas: usize,
) -> Result<(Core, String), DistributedError> {
    let (seen, connection) = watch::channel(Sight::default());
    let client = connect::connect(&settings, &remote, tls, seen).await?;
    let found = client.server_info();
    let max_payload = settings.max_payload.min(found.max_payload.saturating_sub(AROUND));
    let link = Link::new(client, settings.server.to_string(), settings.call_timeout, connection);
    let call = link.call();
    let mut core = Core::new(link, &settings, Found { window: settings.idempotency_window, max_payload, replicas });
    let window = streams::make_queue(&core, &call).await?;
    if !core.window.is_zero() {
        core.window = window;
    }
    Ok((core, found.version))
}

/// Hears what other handles tell, for as long as there is a connection or will be one again.
async fn hear(core: Arc<Core>) {
    let Ok(mut told) = core.link.client().subscribe(core.names.wake("*")).await else { return };
    while let Some(message) = told.next().await {
        let what = message.subject.rsplit('.').next().unwrap_or_default();
        match what.parse::<usize>() {
            Ok(partition) => _ = core.wakes.get(partition).map(|wake| wake.notify(usize::MAX)),
            Err(_) => _ = core.resulted.notify(usize::MAX),
        }
    }
}

/// After each reconnection: what was told meanwhile was not heard, and the clock may be another one.
async fn begin_anew(core: Arc<Core>) {
    while core.link.back().await {
        core.connected();
        core.clock.forget();
        core.streams.forget();
        core.wake_all();
    }
}

fn capabilities(core: &Core, version: &str, sync_always: bool) -> Capabilities {
    let durability = if sync_always {
        "durability: by the operator's word, the server syncs before it answers (sync_interval: always)"
    } else {
        "durability: no client can ask for sync_interval; by default nats-server syncs every 2 minutes: what was acknowledged \
         survives the kill of the server, not the loss of power. `sync_interval: always` (2.10) and NatsOptions::sync_always \
         raise it"
    };
    let notes = vec![
        format!("nats-server {version}; streams are files, on {} of its servers", core.replicas),
        durability.to_owned(),
        "order: first in first out, but what comes back (released, retried, due, its lease ended) comes before what was not \
         delivered yet"
            .to_owned(),
        "limits to all workers together: JetStream has none that are given back exactly".to_owned(),
        "expiry and ends of leases are seen when somebody asks for commands; while somebody waits, within a quarter second"
            .to_owned(),
        "delayed and leased commands are all in the memory of the server's consumers".to_owned(),
        "depth reads the state of every command".to_owned(),
        format!("results are kept for at most {:?}", streams::RESULTS_MAX),
        "one stream for each pair of lane and priority, one consumer for each partition of it".to_owned(),
    ];
    Capabilities {
        durability: if sync_always { Durability::Synced } else { Durability::Relaxed },
        leases: true,
        fencing: Support::Exact,
        priority: Support::Exact,
        order: Support::BestEffort,
        delay: Support::Exact,
        idempotency: Support::Exact,
        idempotency_window: Some(core.window),
        expiry: Support::Exact,
        dead_letters: true,
        results: true,
        global_concurrency: Support::None,
        global_rate: Support::None,
        max_payload: Some(core.max_payload),
        max_lease: Some(LEASE_MAX),
        notes,
    }
}

#[async_trait]
impl DistributedQueue for NatsDistributedQueue {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        let leased = self.dequeue_leased(partition_id, Claim::new(1).lease(self.core.lease)).await?;
        Ok(leased.into_iter().next().map(|leased| leased.envelope))
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        let lost = DistributedError::LeaseLost { command_id: result.command_id.clone() };
        if self.core.is_closed() {
            return Err(DistributedError::Closed.into());
        }
        let token = self.core.held().get(&result.command_id).map(|held| held.token.clone());
        match self.ack(&token.ok_or_else(|| lost.clone())?, result).await? {
            AckOutcome::LeaseLost => Err(lost.into()),
            AckOutcome::Applied | AckOutcome::AlreadyApplied => Ok(()),
        }
    }

    fn num_partitions(&self) -> usize {
        self.core.partitions
    }

    fn worker_id(&self) -> &WorkerId {
        &self.core.worker_id
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn enqueue_with(&self, envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        let mut receipts = self.enqueue_batch(vec![(envelope, options)]).await;
        receipts.pop().unwrap_or_else(|| Err(self.core.given_up().into()))
    }

    async fn enqueue_batch(&self, commands: Vec<(CommandEnvelope, EnqueueOptions)>) -> Vec<Result<Receipt>> {
        let many = commands.len();
        let receipts = self.run(|core| async move { Ok(enqueue::enqueue_all(&core, commands).await) }).await;
        match receipts {
            Ok(receipts) => receipts.into_iter().map(|receipt| receipt.map_err(Into::into)).collect(),
            Err(LaneError::Distributed(error)) => (0..many).map(|_| Err(error.clone().into())).collect(),
            Err(_) => (0..many).map(|_| Err(self.core.given_up().into())).collect(),
        }
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        if self.core.is_closed() {
            return Err(DistributedError::Closed.into());
        }
        check_partition(partition_id, self.core.partitions)?;
        check_lease(claim.lease, Some(LEASE_MAX))?;
        let (taken, take) = oneshot::channel();
        self.thread.spawn(claim::claim(Arc::clone(&self.core), partition_id, claim, taken));
        Ok(take.await.map_err(|_| DistributedError::Closed)??)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        check_lease(lease, Some(LEASE_MAX))?;
        let token = token.clone();
        self.run(|core| async move { claim::extend(&core, &token, lease).await }).await
    }

    async fn extend_batch(&self, tokens: &[LeaseToken], lease: Duration) -> Vec<Result<()>> {
        let mut extended = Vec::with_capacity(tokens.len());
        for some in tokens.chunks(AT_A_TIME) {
            extended.extend(join_all(some.iter().map(|token| self.extend(token, lease))).await);
        }
        extended
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        let token = token.clone();
        let end = match &result.result {
            Ok(_) => End::Well(result),
            Err(error) => End::Dead(DeadReason::Failed(error.clone()), Some(result)),
        };
        self.run(|core| async move { end::end(&core, &token, end).await }).await
    }

    async fn ack_batch(&self, results: Vec<(LeaseToken, CommandResult)>) -> Vec<Result<AckOutcome>> {
        let mut outcomes = Vec::with_capacity(results.len());
        for some in results.chunks(AT_A_TIME) {
            outcomes.extend(join_all(some.iter().map(|(token, result)| self.ack(token, result.clone()))).await);
        }
        outcomes
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        let token = token.clone();
        self.run(|core| async move { end::end(&core, &token, End::Back(nack)).await }).await
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        let token = token.clone();
        self.run(|core| async move { end::end(&core, &token, End::Dead(reason, None)).await }).await
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        self.run(|core| async move { letters::letters(&core, page).await }).await
    }

    async fn replay(&self, command_id: &str) -> Result<bool> {
        let id = command_id.to_owned();
        self.run(|core| async move { letters::replay(&core, &id).await }).await
    }

    async fn discard(&self, command_id: &str) -> Result<bool> {
        let id = command_id.to_owned();
        self.run(|core| async move { letters::discard(&core, &id).await }).await
    }

    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        let id = command_id.to_owned();
        self.run(|core| async move { look::result(&core, &id, wait).await }).await
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        if self.core.is_closed() {
            return Err(DistributedError::Closed.into());
        }
        check_partition(partition_id, self.core.partitions)?;
        self.run(|core| async move { look::depth(&core, partition_id).await }).await
    }

    fn health(&self) -> DistributedHealth {
        if self.core.is_closed() {
            return DistributedHealth::Closed;
        }
        match self.core.link.down() {
            None => DistributedHealth::Working,
            Some(error) => DistributedHealth::Reconnecting { error },
        }
    }

    async fn close(&self, grace: Duration) -> Result<()> {
        if self.core.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.core.wake_all();
        let core = Arc::clone(&self.core);
        let released = self.thread.run(async move {
            let released = end::release_all(&core, grace).await;
            // What was said and not waited for goes out before the connection does.
            let _ = tokio::time::timeout(grace.min(Duration::from_secs(1)), core.link.client().flush()).await;
            released
        });
        let released = released.await;
        self.thread.end();
        Ok(released.unwrap_or(Ok(()))?)
    }
}

/// So many leases are extended or ended at a time.
const AT_A_TIME: usize = 128;

impl fmt::Debug for NatsDistributedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsDistributedQueue")
            .field("worker_id", &self.core.worker_id)
            .field("server", &self.core.link.server())
            .field("partitions", &self.core.partitions)
            .finish_non_exhaustive()
    }
}
