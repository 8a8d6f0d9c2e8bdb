//! What the calls do, on the backend's thread: arguments for scripts, and what their answers mean.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{FromRedisValue, Value, from_redis_value};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock};
use tokio::time::timeout;

use super::connection::{Connection, Repeat};
use super::record::{QUEUE_VERSION, decode, decode_reason, encode_reason};
use super::scripts::{self, Script};
use crate::adapters::remote::{Backoff, Settings};
use crate::clock::Tick;
use crate::distributed::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, EnqueueOptions, GlobalLimits,
    LaneClaim, LeaseToken, Leased, Nack, Receipt, RemoteDeadLetter,
};
use crate::error::{DistributedError, Result};
use crate::executor::now;
use crate::limit::rate::RateAlgorithm;
use crate::queue::PartitionId;

/// The most that one script is given, or gives: so that no call keeps others waiting.
const BATCH_MAX: usize = 128;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How often it is looked whether something has come, where others are not heard.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_LAST: Duration = Duration::from_millis(100);

/// So many times less often where they are: a word may be lost.
const HEARING: u32 = 10;

/// Leases that are kept longer than they last, before they are looked for.
const HELD_MIN: usize = 1024;

/// A queue in a server, as one handle knows it.
pub(super) struct Queue {
    pub(super) settings: Settings,
    pub(super) connection: Connection,
    held: Mutex<Held>,
    /// Something was put in, or ended: by this handle, or by others as far as they are heard.
    stirred: Notify,
    listens: AtomicBool,
    hears: AtomicBool,
    closed: AtomicBool,
    /// Calls that are on their way share it; who closes waits for them: so that each hears what became of it, and what claims
    /// take is released as well.
    calls: Arc<RwLock<()>>,
}

/// The leases that this handle has.
#[derive(Default)]
struct Held {
    leases: HashMap<String, (LeaseToken, Tick)>,
    /// With more, those that have ended are dropped.
    look_at: usize,
}

/// A command that is to be put in.
pub(super) struct Incoming {
    pub(super) envelope: CommandEnvelope,
    pub(super) options: EnqueueOptions,
    pub(super) partition: PartitionId,
    pub(super) record: Vec<u8>,
}

/// How a lease is to be ended.
pub(super) struct Settlement {
    token: LeaseToken,
    what: &'static str,
    reason: Vec<u8>,
    result: Vec<u8>,
    delay: Duration,
}

impl Settlement {
    pub(super) fn ack(token: LeaseToken, result: CommandResult) -> Self {
        let result = CommandResult { command_id: token.command_id().to_owned(), ..result };
        let (what, reason) = match &result.result {
            Ok(_) => ("done", Vec::new()),
            Err(error) => ("failed", encode_reason(&DeadReason::Failed(error.clone()))),
        };
        // A value that is JSON already: that can not fail.
        let result = serde_json::to_vec(&result).unwrap_or_default();
        Self { token, what, reason, result, delay: Duration::ZERO }
    }

    pub(super) fn nack(token: LeaseToken, nack: Nack) -> Self {
        match nack {
            Nack::Release => {
                Self { token, what: "release", reason: Vec::new(), result: Vec::new(), delay: Duration::ZERO }
            }
            Nack::RetryAfter { delay, error } => {
                let reason = encode_reason(&DeadReason::Failed(error));
                Self { token, what: "retry", reason, result: Vec::new(), delay }
            }
        }
    }

    pub(super) fn dead(token: LeaseToken, reason: &DeadReason) -> Self {
        Self { token, what: "dead", reason: encode_reason(reason), result: Vec::new(), delay: Duration::ZERO }
    }
}

/// What a claim's script says of one command: id, fence, deliveries, retries, priority, lane, the command.
type Taken = (String, u64, u32, u32, u8, String, Vec<u8>);

impl Queue {
    pub(super) fn new(settings: Settings, connection: Connection) -> Self {
        Self {
            settings,
            connection,
            held: Mutex::default(),
            stirred: Notify::new(),
            listens: AtomicBool::new(false),
            hears: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            calls: Arc::default(),
        }
    }

    /// Whether calls are taken.
    pub(super) fn check_open(&self) -> Result<(), DistributedError> {
        // ORDERING: who was told that it is closed has been told by other means.
        if self.closed.load(Ordering::Relaxed) { Err(DistributedError::Closed) } else { Ok(()) }
    }

    /// A call begins, if calls are taken. It ends when what this gives is dropped.
    pub(super) fn begin(&self) -> Result<OwnedRwLockReadGuard<()>, DistributedError> {
        self.check_open()?;
        // Who closes has it, or waits for it.
        Arc::clone(&self.calls).try_read_owned().map_err(|_| DistributedError::Closed)
    }

    /// No calls are taken from now on. Whether any were before.
    pub(super) fn set_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_first_to_listen(&self) -> bool {
        !self.listens.swap(true, Ordering::Relaxed)
    }

    /// Whether others are heard.
    pub(super) fn set_hears(&self, hears: bool) {
        self.hears.store(hears, Ordering::Relaxed);
        self.stir();
    }

    /// Who waits is to look again.
    pub(super) fn stir(&self) {
        self.stirred.notify_waiters();
    }

    /// Waits for something to look at, at most so long.
    async fn pause(&self, stirred: impl Future<Output = ()>, poll: &mut Backoff, most: Duration) {
        let seldom = if self.hears.load(Ordering::Relaxed) { HEARING } else { 1 };
        // Either way, it is looked at again.
        let _ = timeout((poll.wait() * seldom).min(most), stirred).await;
    }

    /// The time that a call has from now on.
    fn deadline(&self) -> Tick {
        now().plus(self.settings.call_timeout)
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        args: &[Vec<u8>],
        deadline: Tick,
    ) -> Result<(T, bool), DistributedError> {
        let answer = self.connection.run(script, args, deadline, Repeat::Yes).await?;
        Ok((self.read(answer.value)?, answer.repeated))
    }

    /// As [`Queue::run`], of a script that puts something in: in its turn, and where the queue is there.
    async fn put<T: FromRedisValue>(
        &self,
        script: &Script,
        args: &[Vec<u8>],
        deadline: Tick,
    ) -> Result<(T, bool), DistributedError> {
        loop {
            let answer = self.connection.run(script, args, deadline, Repeat::Yes).await?;
            match &answer.value {
                // Nothing was put in yet: the server first does what is due.
                Value::BulkString(word) if word == b"more" => {}
                // The server was emptied.
                Value::BulkString(word) if word == b"open" => self.make(deadline).await?,
                _ => return Ok((self.read(answer.value)?, answer.repeated)),
            }
        }
    }

    fn read<T: FromRedisValue>(&self, value: Value) -> Result<T, DistributedError> {
        from_redis_value(value).map_err(|error| self.connection.strange(&error.to_string()))
    }

    /// Connects, and looks at what is there.
    pub(super) async fn open(&self) -> Result<(), DistributedError> {
        let deadline = now().plus(self.settings.connect_timeout);
        self.connection.get(deadline).await?;
        self.make(deadline).await
    }

    /// What the queue is made with.
    fn made_with(&self) -> [Vec<u8>; 2] {
        [text(QUEUE_VERSION), text(self.settings.partitions.num_partitions)]
    }

    /// Makes the queue where there is none. One that is there must have been made with the same.
    async fn make(&self, deadline: Tick) -> Result<(), DistributedError> {
        let given = self.settings.partitions.num_partitions;
        let args = self.made_with();
        let ((version, partitions), _): ((String, String), _) = self.run(&scripts::OPEN, &args, deadline).await?;
        if version != QUEUE_VERSION {
            let (found, supported) = (version, QUEUE_VERSION.to_owned());
            let hint = "use a version of the crate that reads it, or another namespace".to_owned();
            return Err(DistributedError::SchemaVersion { found, supported, hint });
        }
        let stored = partitions.parse().map_err(|_| self.connection.strange("no number of partitions"))?;
        if stored != given {
            return Err(DistributedError::PartitionMismatch { stored, given });
        }
        Ok(())
    }

    pub(super) async fn enqueue(&self, commands: Vec<Incoming>) -> Vec<Result<Receipt>> {
        let mut receipts = Vec::with_capacity(commands.len());
        for batch in batches(&commands, |incoming| incoming.record.len()) {
            match self.enqueue_batch(batch, self.deadline()).await {
                Ok(answers) => receipts.extend(answers),
                Err(error) => {
                    give_up(&mut receipts, batch.len(), commands.len(), &error);
                    break;
                }
            }
        }
        self.stir();
        receipts.into_iter().map(|receipt| receipt.map_err(Into::into)).collect()
    }

    async fn enqueue_batch(
        &self,
        batch: &[Incoming],
        deadline: Tick,
    ) -> Result<Vec<Result<Receipt, DistributedError>>, DistributedError> {
        let mut args = Vec::with_capacity(2 + 12 * batch.len());
        args.extend(self.made_with());
        for Incoming { envelope, options, partition, record } in batch {
            args.extend([
                text(&envelope.id),
                text(envelope.fingerprint()),
                text(partition),
                text(&envelope.lane_id),
                text(options.priority.unwrap_or(EnqueueOptions::DEFAULT_PRIORITY)),
                micros(options.delay.unwrap_or_default()),
                options.expires_after.map_or_else(|| text(-1), micros),
                text(options.max_deliveries.unwrap_or(crate::distributed::DEFAULT_MAX_DELIVERIES)),
                options.keep_result.map_or_else(|| text(-1), micros),
                text(options.idempotency_key.as_deref().unwrap_or_default()),
                text(envelope.retry_count),
                record.clone(),
            ]);
        }
        let (answers, repeated): (Vec<(String, String)>, _) = self.put(&scripts::ENQUEUE, &args, deadline).await?;
        if answers.len() != batch.len() {
            return Err(self.connection.strange("not as many receipts as commands"));
        }
        let receipt = |(incoming, (answer, command_id)): (&Incoming, (String, String))| match answer.as_str() {
            "accepted" => Ok(Receipt::new(command_id, false)),
            // Of what it has accepted at the first attempt, which nobody heard.
            "duplicate" if repeated && command_id == incoming.envelope.id => Ok(Receipt::new(command_id, false)),
            "duplicate" => Ok(Receipt::new(command_id, true)),
            "id" => Err(DistributedError::DuplicateId { command_id }),
            "key" => {
                let key = incoming.options.idempotency_key.clone().unwrap_or_default();
                Err(DistributedError::IdempotencyConflict { key, command_id })
            }
            other => Err(self.connection.strange(other)),
        };
        Ok(batch.iter().zip(answers).map(receipt).collect())
    }

    /// Takes what the claim says; where there is nothing, looks again until its time is over, or it is not wanted any more.
    pub(super) async fn claim(
        &self,
        partition: PartitionId,
        mut claim: Claim,
        wanted: impl Fn() -> bool,
    ) -> Result<Vec<Leased>, DistributedError> {
        let give_up = now().plus(claim.wait);
        let mut poll = Backoff::between(POLL_FIRST, POLL_LAST);
        let mut leased = Vec::new();
        if claim.max == 0 {
            return Ok(leased);
        }
        loop {
            // Listened before it is looked at: so what comes meanwhile is not missed.
            let stirred = self.stirred.notified();
            self.check_open()?;
            let claimed = self.claim_batch(partition, &mut claim, &mut leased).await;
            // Then all that was taken is released.
            self.check_open()?;
            let (more, again) = match claimed {
                Ok(answer) => answer,
                // What was taken is not given up for an error that comes again.
                Err(_) if !leased.is_empty() => return Ok(leased),
                Err(error) => return Err(error),
            };
            if claim.max == 0 {
                return Ok(leased);
            }
            if more {
                continue;
            }
            let left = give_up.since(now());
            if !leased.is_empty() || left.is_zero() || !wanted() {
                return Ok(leased);
            }
            self.pause(stirred, &mut poll, again.unwrap_or(Duration::MAX).min(left)).await;
        }
    }

    /// One step of a claim, which is less by what was taken. Whether there may be more at once; else when it is worth asking.
    async fn claim_batch(
        &self,
        partition: PartitionId,
        claim: &mut Claim,
        leased: &mut Vec<Leased>,
    ) -> Result<(bool, Option<Duration>), DistributedError> {
        let mut args =
            vec![text(partition), text(claim.max.min(BATCH_MAX)), micros(claim.lease), text(BATCH_BYTES_MAX)];
        for LaneClaim { lane_id, max } in &claim.lanes {
            args.extend([text(lane_id), text(max.min(&BATCH_MAX))]);
        }
        let asked = now();
        let answer = self.connection.run(&scripts::CLAIM, &args, self.deadline(), Repeat::No).await?;
        let (more, again, taken): (String, i64, Vec<Taken>) = self.read(answer.value)?;
        let mut unreadable = Vec::new();
        for taken in taken {
            let token = LeaseToken::new(taken.0.as_str(), partition, taken.1, "");
            claim.max = claim.max.saturating_sub(1);
            if let Some(lane) = claim.lanes.iter_mut().find(|lane| lane.lane_id == taken.5 && lane.max > 0) {
                lane.max -= 1;
            }
            match read_leased(taken, &token, claim.lease) {
                Ok(one) => {
                    self.hold(&token, asked.plus(claim.lease));
                    leased.push(one);
                }
                Err(problem) => {
                    claim.max += 1;
                    tracing::error!(
                        command_id = token.command_id(),
                        problem,
                        "a command can not be read: it is put aside"
                    );
                    unreadable.push(Settlement::dead(token, &DeadReason::Undecodable(problem)));
                }
            }
        }
        if !unreadable.is_empty() {
            // Not told, the server notices when the leases end.
            let _ = self.settle(unreadable, None).await;
        }
        let again = u64::try_from(again).ok().map(Duration::from_micros);
        Ok((more == "more", again))
    }

    fn hold(&self, token: &LeaseToken, until: Tick) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.leases.len() >= held.look_at.max(HELD_MIN) {
            let now = now();
            held.leases.retain(|_, (_, until)| *until > now);
            held.look_at = 2 * held.leases.len();
        }
        held.leases.insert(token.command_id().to_owned(), (token.clone(), until));
    }

    /// Another handle's lease stays that.
    fn hold_on(&self, token: &LeaseToken, until: Tick) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.leases.get_mut(token.command_id()).filter(|(held, _)| held == token) {
            held.1 = until;
        }
    }

    fn let_go(&self, token: &LeaseToken) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.leases.get(token.command_id()).is_some_and(|(held, _)| held == token) {
            held.leases.remove(token.command_id());
        }
    }

    /// The token under which this handle has the command.
    pub(super) fn token_of(&self, command_id: &str) -> Option<LeaseToken> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.leases.get(command_id).map(|(token, _)| token.clone())
    }

    /// Gives back what this handle has, once it is closed.
    pub(super) async fn release_all(&self, grace: Duration) -> Result<(), DistributedError> {
        let deadline = now().plus(grace);
        self.stir();
        // Waited for in vain, calls do not hear what became of them, and what a claim still takes comes back when its leases end.
        let _calls_are_over = timeout(grace, self.calls.write()).await;
        let held = std::mem::take(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner).leases);
        let settlements = held.into_values().map(|(token, _)| Settlement::nack(token, Nack::Release)).collect();
        self.settle(settlements, Some(deadline)).await.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// As [`Queue::release_all`], of these.
    pub(super) async fn release(&self, leased: Vec<Leased>) {
        let settlements = leased.into_iter().map(|leased| Settlement::nack(leased.token, Nack::Release)).collect();
        // Not told, the server notices when the leases end.
        let _ = self.settle(settlements, None).await;
    }

    pub(super) async fn settle_all(&self, settlements: Vec<Settlement>) -> Vec<Result<AckOutcome>> {
        let outcomes = self.settle(settlements, None).await;
        outcomes.into_iter().map(|outcome| outcome.map_err(Into::into)).collect()
    }

    /// Until that time, if one is given.
    async fn settle(
        &self,
        settlements: Vec<Settlement>,
        deadline: Option<Tick>,
    ) -> Vec<Result<AckOutcome, DistributedError>> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        for batch in batches(&settlements, |settlement| settlement.result.len() + settlement.reason.len()) {
            match self.settle_batch(batch, deadline.unwrap_or_else(|| self.deadline())).await {
                Ok(answers) => outcomes.extend(answers),
                Err(error) => {
                    give_up(&mut outcomes, batch.len(), settlements.len(), &error);
                    break;
                }
            }
        }
        self.stir();
        outcomes
    }

    async fn settle_batch(
        &self,
        batch: &[Settlement],
        deadline: Tick,
    ) -> Result<Vec<Result<AckOutcome, DistributedError>>, DistributedError> {
        let mut args = vec![micros(self.settings.idempotency_window)];
        for Settlement { token, what, reason, result, delay } in batch {
            args.extend([text(token.command_id()), text(token.fence()), text(what)]);
            args.extend([reason.clone(), result.clone(), micros(*delay)]);
        }
        let (answers, repeated): (Vec<String>, _) = self.run(&scripts::SETTLE, &args, deadline).await?;
        if answers.len() != batch.len() {
            return Err(self.connection.strange("not as many outcomes as leases"));
        }
        batch.iter().for_each(|settlement| self.let_go(&settlement.token));
        let outcome = |answer: &String| match answer.as_str() {
            "done" => Ok(AckOutcome::Applied),
            // At the first attempt, which nobody heard.
            "again" if repeated => Ok(AckOutcome::Applied),
            "again" | "before" => Ok(AckOutcome::AlreadyApplied),
            "lost" => Ok(AckOutcome::LeaseLost),
            other => Err(self.connection.strange(other)),
        };
        Ok(answers.iter().map(outcome).collect())
    }

    pub(super) async fn extend(&self, tokens: Vec<LeaseToken>, lease: Duration) -> Vec<Result<()>> {
        let mut extended = Vec::with_capacity(tokens.len());
        for batch in tokens.chunks(BATCH_MAX) {
            match self.extend_batch(batch, lease).await {
                Ok(answers) => extended.extend(answers),
                Err(error) => {
                    give_up(&mut extended, batch.len(), tokens.len(), &error);
                    break;
                }
            }
        }
        extended.into_iter().map(|answer| answer.map_err(Into::into)).collect()
    }

    async fn extend_batch(
        &self,
        batch: &[LeaseToken],
        lease: Duration,
    ) -> Result<Vec<Result<(), DistributedError>>, DistributedError> {
        let mut args = vec![micros(lease)];
        args.extend(batch.iter().flat_map(|token| [text(token.command_id()), text(token.fence())]));
        let until = now().plus(lease);
        let (answers, _): (Vec<bool>, _) = self.run(&scripts::EXTEND, &args, self.deadline()).await?;
        if answers.len() != batch.len() {
            return Err(self.connection.strange("not as many answers as leases"));
        }
        let answer = |(token, has): (&LeaseToken, bool)| {
            if has {
                self.hold_on(token, until);
                return Ok(());
            }
            self.let_go(token);
            Err(DistributedError::LeaseLost { command_id: token.command_id().to_owned() })
        };
        Ok(batch.iter().zip(answers).map(answer).collect())
    }

    pub(super) async fn letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>, DistributedError> {
        let deadline = self.deadline();
        let after = page.after.unwrap_or_default();
        // From then on by their numbers: these are in order also where letters go in between.
        let mut number = String::new();
        let mut letters = Vec::new();
        while letters.len() < page.limit {
            let many = (page.limit - letters.len()).min(BATCH_MAX);
            let args = [text(many), text(&after), text(&number), text(BATCH_BYTES_MAX)];
            let ((last, more), _): ((String, Vec<Letter>), _) = self.run(&scripts::LETTERS, &args, deadline).await?;
            letters.extend(more.into_iter().map(read_letter));
            if last.is_empty() {
                break;
            }
            number = last;
        }
        Ok(letters)
    }

    /// Whether there was a dead letter, of which this was done.
    async fn of_letter(&self, script: &Script, command_id: &str) -> Result<bool, DistributedError> {
        let (was_there, repeated): (bool, _) = self.put(script, &[text(command_id)], self.deadline()).await?;
        if repeated && !was_there {
            // Either it never was, or the attempt that nobody heard has done it.
            let cause = "the connection was lost, and there is no such dead letter now".to_owned();
            return Err(DistributedError::OutcomeUnknown { server: self.connection.server().to_owned(), cause });
        }
        Ok(was_there)
    }

    pub(super) async fn replay(&self, command_id: String) -> Result<bool, DistributedError> {
        let replayed = self.of_letter(&scripts::REPLAY, &command_id).await;
        self.stir();
        replayed
    }

    pub(super) async fn discard(&self, command_id: String) -> Result<bool, DistributedError> {
        self.of_letter(&scripts::DISCARD, &command_id).await
    }

    pub(super) async fn result(
        &self,
        command_id: String,
        wait: Duration,
    ) -> Result<Option<CommandResult>, DistributedError> {
        let give_up = now().plus(wait);
        let mut poll = Backoff::between(POLL_FIRST, POLL_LAST);
        loop {
            let stirred = self.stirred.notified();
            self.check_open()?;
            let args = [text(&command_id)];
            let (kept, _): (Option<Vec<u8>>, _) = self.run(&scripts::RESULT, &args, self.deadline()).await?;
            if let Some(kept) = kept {
                let damaged =
                    |error: serde_json::Error| DistributedError::Damaged { command_id, problem: error.to_string() };
                return serde_json::from_slice(&kept).map(Some).map_err(damaged);
            }
            let left = give_up.since(now());
            if left.is_zero() {
                return Ok(None);
            }
            self.pause(stirred, &mut poll, left).await;
        }
    }

    pub(super) async fn set_limits(&self, lane_id: String, limits: GlobalLimits) -> Result<(), DistributedError> {
        let mut args = self.made_with().to_vec();
        args.extend([text(lane_id), limits.max_leased.map_or_else(|| text(-1), text)]);
        match limits.rate.filter(|rate| !rate.is_unlimited()) {
            None => args.push(Vec::new()),
            Some(rate) if rate.algorithm == RateAlgorithm::SlidingWindow => {
                args.extend([text("window"), micros(rate.window), text(rate.max_commands)]);
            }
            Some(rate) => {
                let interval = rate.window.as_secs_f64() * 1e6 / rate.max_commands as f64;
                args.extend([text("bucket"), text(interval), text(rate.burst.unwrap_or(rate.max_commands))]);
            }
        }
        let _: (i64, _) = self.put(&scripts::LIMITS, &args, self.deadline()).await?;
        self.stir();
        Ok(())
    }

    pub(super) async fn depth(&self, partition: PartitionId) -> Result<Depth, DistributedError> {
        let args = [text(partition)];
        let (found, _): ((i64, i64, i64, i64, i64), _) = self.run(&scripts::DEPTH, &args, self.deadline()).await?;
        let many = |number: i64| usize::try_from(number).unwrap_or(0);
        Ok(Depth {
            ready: many(found.0),
            delayed: many(found.1),
            leased: many(found.2),
            dead: many(found.3),
            oldest_ready: u64::try_from(found.4).ok().map(Duration::from_micros),
        })
    }
}

/// What a script says of a dead letter: id, the command, lane, partition, priority, deliveries, retries, failed at, why.
type Letter = (String, Vec<u8>, String, usize, u8, u32, u32, i64, Vec<u8>);

fn read_leased(taken: Taken, token: &LeaseToken, lease: Duration) -> Result<Leased, String> {
    let (_, _, delivery, retries, priority, _, command) = taken;
    let record = decode(&command)?;
    let envelope = CommandEnvelope { retry_count: retries, ..record.envelope };
    let mut leased = Leased::new(envelope, token.clone(), Some(lease));
    leased.delivery = delivery;
    leased.priority = priority;
    leased.payload_version = record.payload_version;
    leased.headers = record.headers;
    Ok(leased)
}

/// Also of a command that can not be read: then it has what is there as its payload.
fn read_letter(letter: Letter) -> RemoteDeadLetter {
    let (id, command, lane_id, partition_id, priority, deliveries, retry_count, failed_at, reason) = letter;
    let failed_at = chrono::DateTime::from_timestamp_micros(failed_at).unwrap_or_default();
    let reason = decode_reason(&reason);
    let (envelope, payload_version, headers) = match decode(&command) {
        Ok(record) => (CommandEnvelope { retry_count, ..record.envelope }, record.payload_version, record.headers),
        Err(_) => {
            let payload = String::from_utf8_lossy(&command).into_owned().into();
            let command_type = "damaged".to_owned();
            let envelope = CommandEnvelope {
                id,
                command_type,
                lane_id,
                partition_id,
                payload,
                retry_count,
                created_at: failed_at,
            };
            (envelope, 1, std::collections::BTreeMap::new())
        }
    };
    let mut letter = RemoteDeadLetter::new(envelope, reason, deliveries, failed_at);
    letter.priority = priority;
    letter.payload_version = payload_version;
    letter.headers = headers;
    letter
}

/// Of a call of several parts, one has failed: so many get its error, and those behind it, up to all, were not sent.
fn give_up<T>(answers: &mut Vec<Result<T, DistributedError>>, failed: usize, all: usize, error: &DistributedError) {
    let rest = match error.clone() {
        DistributedError::OutcomeUnknown { server, cause } => DistributedError::Unavailable { server, cause },
        certain => certain,
    };
    answers.extend((0..failed).map(|_| Err(error.clone())));
    answers.extend((answers.len()..all).map(|_| Err(rest.clone())));
}

/// Parts that one script takes: at most so many, and about so many bytes.
fn batches<T>(mut items: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut batches = Vec::new();
    while !items.is_empty() {
        let mut bytes = 0;
        let fits = items.iter().take(BATCH_MAX).take_while(|item| {
            let begun = bytes > 0;
            bytes += size(item);
            !begun || bytes <= BATCH_BYTES_MAX
        });
        let (batch, rest) = items.split_at(fits.count().max(1));
        batches.push(batch);
        items = rest;
    }
    batches
}

fn text(value: impl ToString) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Rounded up: nothing comes before its time.
fn micros(time: Duration) -> Vec<u8> {
    text(time.as_nanos().div_ceil(1000))
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn batches_are_no_larger_than_a_script_takes() {
        assert!(batches(&[] as &[usize], |size| *size).is_empty());
        let many = vec![10; 300];
        let sizes: Vec<_> = batches(&many, |size| *size).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [128, 128, 44]);
        let large = [BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2, 1, BATCH_BYTES_MAX * 3, 1];
        let sizes: Vec<_> = batches(&large, |size| *size).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(micros(Duration::from_nanos(1)), b"1");
        assert_eq!(micros(Duration::from_millis(2)), b"2000");
    }
}
