//! What the calls do: everything here runs on the handle's thread.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_lite::FutureExt as _;
use tokio::sync::{Notify, RwLock, oneshot};
use tokio::time::{sleep, timeout};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Transaction};

use super::address::Address;
use super::connection::{Connection, Parameters, Repeat, Server};
use super::failure::{Failure, STANDBY, failure};
use super::record::{COLUMN_TYPES, Outgoing, columns, leased, letter, micros, sendable};
use super::schema::{self, in_schema};
use super::settle::{Settlement, Settling};
use super::sql::Query;
use crate::adapters::remote::{Backoff, Settings};
use crate::distributed::{
    AckOutcome, Claim, CommandResult, DeadPage, DeadReason, Depth, GlobalLimits, LeaseToken, Leased, Nack, Receipt,
    RemoteDeadLetter,
};
use crate::error::DistributedError;
use crate::executor::now;
use crate::limit::rate::{RateAlgorithm, RateLimitConfig};
use crate::queue::PartitionId;

/// How soon who waits asks again: the first time, and after a while.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LAST: Duration = Duration::from_millis(250);

/// How often what is remembered is looked through, at most.
const TIDY_EVERY: Duration = Duration::from_secs(2);
/// So much of it is forgotten at a time.
const TIDY_MAX: i64 = 1000;

/// Bytes that go in one message.
pub(super) const MESSAGE_MAX: usize = 16 << 20;

/// How often what was in a command's way may go just as it is looked at.
const AGAIN_MAX: usize = 8;

/// A handle's connections, and what its calls tell each other.
pub(super) struct Shared {
    pub(super) server: Arc<Server>,
    pub(super) settings: Settings,
    // Putting in may wait for somebody's transaction, and looking may take long: taking and ending are held up by neither.
    put: Connection,
    take: Connection,
    end: Connection,
    look: Connection,
    settling: Settling,
    /// Something was put in here, or given back.
    readied: Notify,
    /// Something has ended here.
    resulted: Notify,
    /// Held by who takes; who closes waits for that.
    taking: RwLock<()>,
    closed: AtomicBool,
}

impl Shared {
    /// Connects, and makes the queue if it is not there.
    pub(super) async fn open(settings: Settings, address: Address) -> Result<Self, DistributedError> {
        let Settings { namespace, connect_timeout, .. } = &settings;
        let schema = schema::schema(namespace);
        let server = Server::new(settings.server.to_string(), schema, address, settings.call_timeout);
        let end = now().plus(*connect_timeout);
        let mut backoff = Backoff::new();
        let mut last = None;
        let session = loop {
            let attempt = async {
                let mut session = server.connect().await?;
                let partitions = settings.partitions.num_partitions;
                schema::prepare(&mut session.client, &server.name, namespace, partitions).await?;
                Ok(session)
            };
            let Ok(attempted) = timeout(end.since(now()), attempt).await else {
                let late = || Failure::Unchanged(format!("no answer within {connect_timeout:?}"));
                // What was said before says more.
                return Err(last.unwrap_or_else(|| late().into_error(&server.name)));
            };
            let error = match attempted {
                Ok(session) => break session,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Standby) => {
                    DistributedError::Unsuitable { server: server.name.clone(), problem: STANDBY.to_owned() }
                }
                // Making a queue that is made changes nothing.
                Err(Failure::Unchanged(cause) | Failure::Unknown(cause)) => {
                    Failure::Unchanged(cause).into_error(&server.name)
                }
            };
            let wait = backoff.wait();
            if end.since(now()) <= wait {
                return Err(error);
            }
            last = Some(error);
            sleep(wait).await;
        };
        server.works();
        let server = Arc::new(server);
        let new = || Connection::new(Arc::clone(&server));
        Ok(Self {
            put: new(),
            take: new(),
            end: new(),
            look: Connection::of(Arc::clone(&server), session),
            server,
            settings,
            settling: Settling::default(),
            readied: Notify::new(),
            resulted: Notify::new(),
            taking: RwLock::new(()),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        // ORDERING: who was told that it is closed has been told by other means.
        self.closed.load(Ordering::Relaxed)
    }

    /// False if it was closed before.
    pub(super) fn begin_closing(&self) -> bool {
        !self.closed.swap(true, Ordering::Relaxed)
    }

    /// What to say of a call that the thread has not finished.
    pub(super) fn ended(&self) -> DistributedError {
        let cause = "the queue was closed before the answer came".to_owned();
        DistributedError::OutcomeUnknown { server: self.server.name.clone(), cause }
    }

    /// Puts commands in: one answer for each.
    pub(super) async fn put(&self, commands: Vec<Outgoing>) -> Vec<Result<Receipt, DistributedError>> {
        let mut receipts = Vec::with_capacity(commands.len());
        let mut rest = commands.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let many = rest.iter().take_while(|one| {
                bytes += one.size();
                bytes <= MESSAGE_MAX
            });
            let (message, later) = rest.split_at(many.count().max(1));
            rest = later;
            match self.put_message(message).await {
                Ok(answers) => receipts.extend(answers),
                Err(error) => receipts.extend(message.iter().map(|_| Err(error.clone()))),
            }
        }
        self.readied.notify_waiters();
        receipts
    }

    async fn put_message(
        &self,
        commands: &[Outgoing],
    ) -> Result<Vec<Result<Receipt, DistributedError>>, DistributedError> {
        let mut receipts: Vec<Option<Result<Receipt, DistributedError>>> = vec![None; commands.len()];
        let mut open: Vec<usize> = (0..commands.len()).collect();
        for _ in 0..AGAIN_MAX {
            let asked: Vec<_> = open.iter().map(|at| &commands[*at]).collect();
            let columns = columns(&asked, self.settings.idempotency_window);
            let rows = self.put.call(Query::Enqueue, &columns, Repeat::Yes).await?;
            for row in &rows {
                let at = *position(row).and_then(|at| open.get(at)).ok_or_else(|| self.server.strange())?;
                receipts[at] = receipt(row, &commands[at]);
            }
            open.retain(|at| receipts[*at].is_none());
            if open.is_empty() {
                break;
            }
        }
        Ok(receipts.into_iter().map(|receipt| receipt.unwrap_or_else(|| Err(self.crowded()))).collect())
    }

    /// Puts a command in, in somebody's transaction.
    pub(super) async fn put_in(
        &self,
        transaction: &Transaction<'_>,
        command: Outgoing,
    ) -> Result<Receipt, DistributedError> {
        let sql = in_schema(Query::Enqueue.sql(), &self.server.schema);
        for _ in 0..AGAIN_MAX {
            let columns = columns(&[&command], self.settings.idempotency_window);
            let given = columns.iter().map(|one| &**one as &(dyn ToSql + Sync)).zip(COLUMN_TYPES).collect::<Vec<_>>();
            let rows = transaction.query_typed(&sql, &given).await;
            let rows = rows.map_err(|error| failure(&self.server.name, &error).into_error(&self.server.name))?;
            let row = rows.first().ok_or_else(|| self.server.strange())?;
            if let Some(receipt) = receipt(row, &command) {
                return receipt;
            }
        }
        Err(self.crowded())
    }

    fn crowded(&self) -> DistributedError {
        let cause = "others have put the same in and ended it at the same time, again and again".to_owned();
        DistributedError::Unavailable { server: self.server.name.clone(), cause }
    }

    /// Takes commands, waiting for them, for who waits for the answer.
    pub(super) async fn claim(
        self: Arc<Self>,
        partition: PartitionId,
        claim: Claim,
        mut answer: oneshot::Sender<Result<Vec<Leased>, DistributedError>>,
    ) {
        let end = now().plus(claim.wait);
        let mut backoff = Backoff::between(ASK_FIRST, ASK_LAST);
        let taken = loop {
            // Before it is looked: so what is put in meanwhile is not missed.
            let readied = self.readied.notified();
            let left = match self.take(partition, &claim).await {
                Ok(taken) if taken.is_empty() && claim.max > 0 => end.since(now()),
                taken => break taken,
            };
            if left.is_zero() {
                break Ok(Vec::new());
            }
            let pause = backoff.wait().min(left);
            let unheard = async {
                answer.closed().await;
                Woken::NobodyWaits
            };
            let readied = async {
                readied.await;
                Woken::Readied
            };
            let paused = async {
                sleep(pause).await;
                Woken::Paused
            };
            match unheard.or(readied).or(paused).await {
                Woken::NobodyWaits => return,
                Woken::Readied => backoff.reset(),
                Woken::Paused => {}
            }
        };
        // Nobody waits any more: others may have them.
        if let Err(Ok(unheard)) = answer.send(taken)
            && !unheard.is_empty()
        {
            let back = unheard.into_iter().map(|leased| Settlement::back(leased.token, Nack::Release));
            // If not, they come back when the leases end.
            drop(self.settle(back.collect()).await);
        }
    }

    async fn take(&self, partition: PartitionId, claim: &Claim) -> Result<Vec<Leased>, DistributedError> {
        let long = |many: usize| i64::try_from(many).unwrap_or(i64::MAX);
        let parameters: Parameters<'_> = vec![
            Box::new(i32::try_from(partition).unwrap_or(i32::MAX)),
            Box::new(long(claim.max)),
            Box::new(claim.lanes.iter().map(|lane| sendable(&lane.lane_id)).collect::<Vec<_>>()),
            Box::new(claim.lanes.iter().map(|lane| long(lane.max)).collect::<Vec<_>>()),
            Box::new(micros(claim.lease)),
            Box::new(self.settings.worker_id.clone()),
        ];
        loop {
            let rows = {
                let _taking = self.taking.read().await;
                if self.is_closed() {
                    return Err(DistributedError::Closed);
                }
                // A lease is not to run down while the way to end it is made.
                let ending = (&self.end, [Query::Settle, Query::Extend].as_slice());
                self.take.call_after(ending, Query::Claim, &parameters, Repeat::No).await?
            };
            let mut damaged = Vec::new();
            let mut taken = Vec::with_capacity(rows.len());
            for row in &rows {
                match leased(row, partition, claim.lease) {
                    Ok(leased) => taken.push(leased),
                    Err(found) => {
                        let id = found.token.command_id();
                        tracing::error!(command = id, problem = found.problem, "a stored command can not be read");
                        damaged.push(Settlement::dead(found.token, &DeadReason::Undecodable(found.problem)));
                    }
                }
            }
            let none = damaged.is_empty();
            if !none {
                // If not, they are found again when their leases end.
                drop(self.settle(damaged).await);
            }
            if none || !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    /// The token under which this worker has the command.
    pub(super) async fn held(&self, id: String) -> Result<Option<LeaseToken>, DistributedError> {
        let parameters: Parameters<'_> = vec![Box::new(sendable(&id)), Box::new(self.settings.worker_id.clone())];
        let rows = self.end.call(Query::Held, &parameters, Repeat::Yes).await?;
        Ok(rows.first().map(|row| {
            let partition = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            LeaseToken::new(id, partition, u64::try_from(row.get::<_, i64>(1)).unwrap_or_default(), "")
        }))
    }

    /// Ends leases: one answer for each.
    pub(super) async fn settle(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Result<AckOutcome, DistributedError>>, DistributedError> {
        let readies = settlements.iter().any(Settlement::readies);
        let outcomes = self.settling.settle(&self.end, settlements).await;
        self.resulted.notify_waiters();
        if readies {
            self.readied.notify_waiters();
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(self.ended()))).collect())
    }

    /// Leases anew: one answer for each.
    pub(super) async fn extend(
        &self,
        tokens: Vec<LeaseToken>,
        lease: Duration,
    ) -> Result<Vec<Result<(), DistributedError>>, DistributedError> {
        let parameters: Parameters<'_> = vec![
            Box::new(tokens.iter().map(|token| sendable(token.command_id())).collect::<Vec<_>>()),
            Box::new(tokens.iter().map(|token| i64::try_from(token.fence()).unwrap_or(-1)).collect::<Vec<_>>()),
            Box::new(micros(lease)),
        ];
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.end.call(Query::Extend, &parameters, Repeat::Yes).await?;
        // A token that was given twice is named once.
        let extended: HashSet<_> = rows.iter().filter_map(|row| tokens.get(position(row)?)).collect();
        let lost = |token: &LeaseToken| DistributedError::LeaseLost { command_id: token.command_id().to_owned() };
        let answers = tokens.iter().map(|token| if extended.contains(token) { Ok(()) } else { Err(lost(token)) });
        Ok(answers.collect())
    }

    pub(super) async fn letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>, DistributedError> {
        let limit = i64::try_from(page.limit).unwrap_or(i64::MAX);
        let parameters: Parameters<'_> = vec![Box::new(page.after.as_deref().map(sendable)), Box::new(limit)];
        let rows = self.look.call(Query::Letters, &parameters, Repeat::Yes).await?;
        Ok(rows.iter().map(letter).collect())
    }

    pub(super) async fn replay(&self, id: String) -> Result<bool, DistributedError> {
        let replayed = self.was_done(Query::Replay, id).await?;
        self.readied.notify_waiters();
        Ok(replayed)
    }

    pub(super) async fn discard(&self, id: String) -> Result<bool, DistributedError> {
        self.was_done(Query::Discard, id).await
    }

    async fn was_done(&self, query: Query, id: String) -> Result<bool, DistributedError> {
        // Done again, it would say that there was nothing to do.
        let rows = self.look.call(query, &vec![Box::new(sendable(&id))], Repeat::No).await?;
        Ok(rows.first().ok_or_else(|| self.server.strange())?.get(0))
    }

    pub(super) async fn result(&self, id: String, wait: Duration) -> Result<Option<CommandResult>, DistributedError> {
        let end = now().plus(wait);
        let mut backoff = Backoff::between(ASK_FIRST, ASK_LAST);
        let parameters: Parameters<'_> = vec![Box::new(sendable(&id))];
        loop {
            let resulted = self.resulted.notified();
            let rows = self.look.call(Query::Result, &parameters, Repeat::Yes).await?;
            if let Some(row) = rows.first() {
                let result = serde_json::from_str(row.get(0));
                let damaged =
                    |error| DistributedError::Damaged { command_id: id, problem: format!("its result: {error}") };
                return result.map(Some).map_err(damaged);
            }
            let left = end.since(now());
            if left.is_zero() {
                return Ok(None);
            }
            resulted.or(sleep(backoff.wait().min(left))).await;
        }
    }

    pub(super) async fn set_limits(&self, lane: String, limits: GlobalLimits) -> Result<(), DistributedError> {
        let rate = limits.rate.filter(|rate| !rate.is_unlimited()).map(token_bucket).transpose()?;
        let parameters: Parameters<'_> = vec![
            Box::new(sendable(&lane)),
            Box::new(limits.max_leased.map(|max| i64::try_from(max).unwrap_or(i64::MAX))),
            Box::new(rate.map(|(token, _)| token)),
            Box::new(rate.map(|(_, bucket)| bucket)),
        ];
        self.look.call(Query::SetLimits, &parameters, Repeat::Yes).await?;
        self.readied.notify_waiters();
        Ok(())
    }

    pub(super) async fn depth(&self, partition: PartitionId) -> Result<Depth, DistributedError> {
        let parameters: Parameters<'_> = vec![Box::new(i32::try_from(partition).unwrap_or(i32::MAX))];
        let rows = self.look.call(Query::Depth, &parameters, Repeat::Yes).await?;
        let row = rows.first().ok_or_else(|| self.server.strange())?;
        let count = |column| usize::try_from(row.get::<_, i64>(column)).unwrap_or_default();
        let oldest: Option<f64> = row.get(4);
        Ok(Depth {
            ready: count(0),
            delayed: count(1),
            leased: count(2),
            dead: count(3),
            oldest_ready: oldest.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        })
    }

    /// Gives back all that was taken here.
    pub(super) async fn release_all(&self, grace: Duration) -> Result<(), DistributedError> {
        let release = async {
            let _nobody_takes = self.taking.write().await;
            let parameters: Parameters<'_> = vec![Box::new(self.settings.worker_id.clone())];
            self.take.call(Query::Release, &parameters, Repeat::Yes).await.map(drop)
        };
        let cause = format!("it was not told within {grace:?} what is given back: that comes back when its leases end");
        let late = DistributedError::OutcomeUnknown { server: self.server.name.clone(), cause };
        timeout(grace, release).await.unwrap_or(Err(late))
    }

    /// Forgets, from time to time, what is remembered for long enough. Also sees whether the server is there.
    pub(super) async fn tidy(self: Arc<Self>) {
        let mut pause = Backoff::between(TIDY_EVERY, TIDY_EVERY);
        loop {
            sleep(pause.wait()).await;
            let mut more = true;
            while more && !self.is_closed() {
                let rows = self.look.call(Query::Tidy, &vec![Box::new(TIDY_MAX)], Repeat::Yes).await;
                more = rows.is_ok_and(|rows| rows.first().is_some_and(|row| row.get(0)));
            }
        }
    }
}

/// Why a claim looks again.
enum Woken {
    NobodyWaits,
    Readied,
    Paused,
}

/// Which of those that were asked about, from 0 on.
pub(super) fn position(row: &Row) -> Option<usize> {
    usize::try_from(row.get::<_, i64>("ord")).ok()?.checked_sub(1)
}

/// What became of a command; none: it is to be put in again.
fn receipt(row: &Row, command: &Outgoing) -> Option<Result<Receipt, DistributedError>> {
    let command_id: String = row.get("command_id");
    match row.get::<_, i16>("outcome") {
        0 => Some(Ok(Receipt::new(command_id, false))),
        1 => Some(Ok(Receipt::new(command_id, true))),
        2 => Some(Err(DistributedError::DuplicateId { command_id })),
        3 => {
            let key = command.key.clone().unwrap_or_default();
            Some(Err(DistributedError::IdempotencyConflict { key, command_id }))
        }
        _ => None,
    }
}

/// Nanoseconds in which one token comes back, rounded up, and in which all do.
fn token_bucket(rate: RateLimitConfig) -> Result<(i64, i64), DistributedError> {
    if rate.algorithm != RateAlgorithm::TokenBucket {
        return Err(DistributedError::Unsupported { operation: "sliding windows for all workers together".to_owned() });
    }
    let token = rate.window.as_nanos().div_ceil(u128::from(rate.max_commands.max(1))).max(1);
    let bucket = token * u128::from(rate.burst.unwrap_or(rate.max_commands));
    let nanos = |time: u128| i64::try_from(time).unwrap_or(i64::MAX / 4);
    Ok((nanos(token), nanos(bucket)))
}
