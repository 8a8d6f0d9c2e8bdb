//! How commands end, and how they are given back.
//!
//! Each of these is one change of the command's state in the register, compared with the state that was seen: that alone decides.
//! What follows from it is done after that, in an order in which it may be done again by whoever finds it undone:
//!
//! - **ended well**: what remembers the command, its key and its result are written; its message is acknowledged; its key and its
//!   state are removed;
//! - **given up**: its key is free; its letter is written; its message is acknowledged. The state stays, as that of a dead one;
//! - **given back**: the stream is told when to deliver it again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::core::{Core, Held, Seen, json as encoded, read};
use super::delivery::{ACK, AGAIN, Delivery, again_after};
use super::link::{Call, Written};
use super::names::{of_command, of_key, token as word};
use super::record::{Entry, Kept, Keyed, Remembered, Standing, Stored};
use crate::clock::wall_now;
use crate::distributed::{AckOutcome, CommandEnvelope, CommandResult, DeadReason, LeaseToken, Nack, RemoteDeadLetter};
use crate::error::DistributedError;

/// Bytes of an error's text that are kept.
const ERROR_MAX: usize = 4 << 10;

/// What the ids of letters begin with whose messages could not be read.
pub(super) const DAMAGED: &str = "damaged-";

/// Their type, and their lane.
pub(super) const DAMAGED_TYPE: &str = "damaged";

impl Core {
    /// The state of a lease as this handle has left it: if it is that still.
    pub(super) fn known(&self, token: &LeaseToken) -> Option<Seen> {
        let held = self.held();
        let Held { entry, revision, .. } = held.get(token.command_id()).filter(|held| held.token == *token)?;
        Some(Seen { entry: entry.clone(), revision: *revision })
    }

    /// The lease goes on, in this state.
    pub(super) fn keep(&self, token: &LeaseToken, entry: Entry, revision: u64) {
        if let Some(held) = self.held().get_mut(token.command_id()).filter(|held| held.token == *token) {
            (held.entry, held.revision) = (entry, revision);
        }
    }

    fn let_go(&self, token: &LeaseToken) {
        let mut held = self.held();
        if held.get(token.command_id()).is_some_and(|held| held.token == *token) {
            held.remove(token.command_id());
        }
    }
}

/// How a lease is ended by who has it.
#[derive(Clone, Debug)]
pub(super) enum End {
    Well(CommandResult),
    Dead(DeadReason, Option<CommandResult>),
    Back(Nack),
}

pub(super) async fn end(core: &Arc<Core>, token: &LeaseToken, end: End) -> Result<AckOutcome, DistributedError> {
    let call = core.link.call();
    let mut known = core.known(token);
    loop {
        let (seen, fresh) = match known.take() {
            Some(seen) => (Some(seen), false),
            None => (core.entry(&call, token.command_id()).await?, true),
        };
        let Some(seen) = seen else {
            core.let_go(token);
            let remembered = core.remembered(&call, token.command_id()).await?;
            let ours = remembered.is_some_and(|remembered| remembered.fence == token.fence());
            return Ok(if ours { AckOutcome::AlreadyApplied } else { AckOutcome::LeaseLost });
        };
        if token.fence() > 0 && seen.entry.settled == token.fence() {
            // It may have been interrupted.
            follow(core, &call, token, &seen).await?;
            core.let_go(token);
            return Ok(AckOutcome::AlreadyApplied);
        }
        let held = match &seen.entry.standing {
            Standing::Leased { until, .. } if seen.entry.fence == token.fence() => {
                !core.now(&call).await?.is_past(*until)
            }
            _ => false,
        };
        if !held && !fresh {
            // Another handle may have extended it.
            continue;
        }
        if !held {
            core.let_go(token);
            return Ok(AckOutcome::LeaseLost);
        }
        let entry = ended(core, &call, &seen.entry, end.clone()).await?;
        let Some(revision) = core.change(&call, seen.revision, &entry).await? else { continue };
        core.let_go(token);
        follow(core, &call, token, &Seen { entry, revision }).await?;
        return Ok(AckOutcome::Applied);
    }
}

/// The state after the end of its lease.
async fn ended(core: &Core, call: &Call, entry: &Entry, end: End) -> Result<Entry, DistributedError> {
    let settled = entry.fence;
    Ok(match end {
        End::Well(result) => {
            let entry = Entry { settled, ..entry.now(Standing::Ended { result: None }) };
            let result = entry.options.keep_result.map(|_| Box::new(fitting(core, &entry, result)));
            entry.now(Standing::Ended { result })
        }
        End::Dead(reason, result) => {
            let result = result.map(|result| CommandResult { result: result.result.map_err(cut), ..result });
            let result = result.filter(|_| entry.options.keep_result.is_some()).map(Box::new);
            Entry { settled, ..entry.now(Standing::Dead { reason: shortened(reason), result }) }
        }
        End::Back(Nack::Release) => {
            Entry { settled, deliveries: entry.deliveries.saturating_sub(1), ..entry.now(Standing::Ready) }
        }
        End::Back(Nack::RetryAfter { error, .. }) if entry.deliveries >= entry.max_deliveries() => {
            let mut entry =
                Entry { settled, ..entry.now(Standing::Dead { reason: DeadReason::Failed(cut(error)), result: None }) };
            entry.head.retry_count = entry.head.retry_count.saturating_add(1);
            entry
        }
        End::Back(Nack::RetryAfter { delay, .. }) => {
            let until = core.now(call).await?.plus(delay);
            let mut entry = Entry { settled, ..entry.now(Standing::Waiting { until }) };
            entry.head.retry_count = entry.head.retry_count.saturating_add(1);
            entry
        }
    })
}

/// A result as it can be kept with this state. The command has ended in any case: it is not to be done again for a result that is
/// too large.
fn fitting(core: &Core, entry: &Entry, result: CommandResult) -> CommandResult {
    let (size, limit) = (encoded(&result).len(), (core.max_payload + ERROR_MAX).saturating_sub(encoded(entry).len()));
    if size <= limit {
        return result;
    }
    let text =
        format!("the command has ended well; its result had {size} bytes, and is not kept: the limit is {limit}");
    CommandResult { result: Err(text), ..result }
}

fn shortened(reason: DeadReason) -> DeadReason {
    match reason {
        DeadReason::Failed(error) => DeadReason::Failed(cut(error)),
        DeadReason::Undecodable(error) => DeadReason::Undecodable(cut(error)),
        other => other,
    }
}

fn cut(mut error: String) -> String {
    if error.len() > ERROR_MAX {
        let end = (0..=ERROR_MAX).rev().find(|end| error.is_char_boundary(*end));
        error.truncate(end.unwrap_or(0));
        error.push('…');
    }
    error
}

/// Does what follows from a state in which the lease of this token has ended.
async fn follow(core: &Core, call: &Call, token: &LeaseToken, seen: &Seen) -> Result<(), DistributedError> {
    match &seen.entry.standing {
        Standing::Ended { .. } => finish_ended(core, call, &seen.entry, seen.revision, Some(token.handle())).await,
        Standing::Dead { .. } => {
            let Some(delivery) = Delivery::of(token.handle()) else { return Ok(()) };
            let record = call.at(&delivery.stream, delivery.sequence).await?;
            // Without its message, the letter was written before that was removed.
            let Some(record) = record else { return Ok(()) };
            match read::<Stored>(&record.body) {
                Ok(stored) => finish_dead(core, call, &seen.entry, &delivery, stored.envelope.payload).await,
                Err(problem) => put_aside(core, call, &delivery, &record.body, &problem).await,
            }
        }
        Standing::Ready => {
            call.acknowledge(token.handle(), AGAIN).await?;
            core.wake(seen.entry.partition()).await;
            Ok(())
        }
        Standing::Waiting { until } => {
            // It may expire before.
            let expires = Delivery::of(token.handle()).and_then(|delivery| seen.entry.expires(delivery.published));
            let after = core.now(call).await?.until(expires.map_or(*until, |expires| expires.min(*until)));
            let word = if after.is_zero() { AGAIN.to_owned() } else { again_after(after) };
            call.acknowledge(token.handle(), &word).await?;
            core.wake(seen.entry.partition()).await;
            Ok(())
        }
        Standing::New | Standing::Leased { .. } | Standing::Gone => Ok(()),
    }
}

/// Finishes what has ended well: by this delivery of its message, or by whatever message there is.
pub(super) async fn finish_ended(
    core: &Core,
    call: &Call,
    entry: &Entry,
    revision: u64,
    delivery: Option<&str>,
) -> Result<(), DistributedError> {
    let bucket = core.names.ended();
    let remembered = Remembered { fence: entry.settled, fingerprint: entry.fingerprint.clone() };
    call.put(&bucket.subject(&of_command(entry.id())), None, encoded(&remembered)).await?;
    if let Standing::Ended { result: Some(result) } = &entry.standing {
        keep_result(core, call, entry, (**result).clone()).await?;
    }
    let key = match &entry.options.idempotency_key {
        Some(key) => key_of(core, call, entry, key).await?,
        None => None,
    };
    if let (Some((_, keyed)), Some(key)) = (&key, &entry.options.idempotency_key)
        && !core.window.is_zero()
    {
        call.put(&core.names.keys().subject(&of_key(key)), None, encoded(keyed)).await?;
    }
    match delivery {
        Some(delivery) => call.acknowledge(delivery, ACK).await?,
        None => {
            let stream = core.names.stream(entry.stream);
            let subject = core.names.command(entry.stream, entry.partition(), entry.id());
            if let Some(message) = call.last(&stream, &subject).await? {
                call.remove(&stream, message.sequence).await?;
            }
        }
    }
    if entry.replays > 0
        && let Some(letter) = call.last(&core.names.dead(), &core.names.letter(entry.id())).await?
    {
        // Who has replayed it has died before that was removed.
        call.remove(&core.names.dead(), letter.sequence).await?;
    }
    let state = core.names.state();
    if let Some((sequence, _)) = key {
        call.remove(&state.stream, sequence).await?;
    }
    call.remove(&state.stream, revision).await
}

/// Where the register has the key of this command, if it is this command's.
async fn key_of(core: &Core, call: &Call, entry: &Entry, key: &str) -> Result<Option<(u64, Keyed)>, DistributedError> {
    let bucket = core.names.state();
    let record = call.last(&bucket.stream, &bucket.subject(&of_key(key))).await?;
    Ok(record.and_then(|record| {
        let keyed: Keyed = read(&record.body).ok()?;
        (keyed.command_id == entry.id()).then_some((record.sequence, keyed))
    }))
}

async fn keep_result(core: &Core, call: &Call, entry: &Entry, result: CommandResult) -> Result<(), DistributedError> {
    let Some(time) = entry.options.keep_result else { return Ok(()) };
    let kept = Kept { until: core.now(call).await?.plus(time), result };
    call.put(&core.names.results().subject(&word(entry.id())), None, encoded(&kept)).await?;
    core.link.tell(core.names.wake("results")).await;
    Ok(())
}

/// Gives a command up whose lease has ended by itself, or that was never taken. False if its state is another by now.
pub(super) async fn bury(
    core: &Core,
    call: &Call,
    seen: &Seen,
    delivery: &Delivery,
    payload: Value,
    reason: DeadReason,
) -> Result<bool, DistributedError> {
    let entry = seen.entry.now(Standing::Dead { reason, result: None });
    if core.change(call, seen.revision, &entry).await?.is_none() {
        return Ok(false);
    }
    finish_dead(core, call, &entry, delivery, payload).await?;
    Ok(true)
}

/// Finishes what was given up.
pub(super) async fn finish_dead(
    core: &Core,
    call: &Call,
    entry: &Entry,
    delivery: &Delivery,
    payload: Value,
) -> Result<(), DistributedError> {
    let Standing::Dead { reason, result } = &entry.standing else { return Ok(()) };
    if let Some(result) = result {
        keep_result(core, call, entry, (**result).clone()).await?;
    }
    if let Some(key) = &entry.options.idempotency_key
        && let Some((sequence, _)) = key_of(core, call, entry, key).await?
    {
        call.remove(&core.names.state().stream, sequence).await?;
    }
    let envelope = CommandEnvelope { payload, ..entry.head.clone() };
    // When it was given up is the time of the record.
    let mut letter = RemoteDeadLetter::new(envelope, reason.clone(), entry.deliveries, wall_now());
    letter.priority = entry.priority();
    letter.payload_version = entry.options.payload_version.unwrap_or(1);
    letter.headers = entry.options.headers.clone();
    call.put(&core.names.letter(entry.id()), Some(0), encoded(&letter)).await?;
    call.acknowledge(&delivery.name, ACK).await
}

/// Keeps a message that can not be read as a dead letter, as it is, and goes on without it.
pub(super) async fn put_aside(
    core: &Core,
    call: &Call,
    delivery: &Delivery,
    body: &[u8],
    problem: &str,
) -> Result<(), DistributedError> {
    tracing::error!(stream = %delivery.stream, sequence = delivery.sequence, problem, "a command can not be read: it is put aside");
    // As it is, and once.
    let what = format!("{}-{}", delivery.stream, delivery.sequence);
    let subject = core.names.damaged(&what);
    let _: Written = call.put(&subject, Some(0), Bytes::copy_from_slice(body)).await?;
    let text = cut(String::from_utf8_lossy(body).into_owned());
    let payload = json!({ "stream": core.names.dead(), "subject": subject, "text": text });
    let envelope = CommandEnvelope {
        id: format!("{DAMAGED}{what}"),
        partition_id: 0,
        ..CommandEnvelope::new(DAMAGED_TYPE, DAMAGED_TYPE, payload)
    };
    let stored = Stored::new(envelope, Default::default());
    let reason = DeadReason::Undecodable(cut(problem.to_owned()));
    let entry = Entry::new(&stored, 0, "").now(Standing::Dead { reason, result: None });
    // Somebody else may have done it.
    let subject = core.names.state().subject(&of_command(entry.id()));
    let _: Written = call.put(&subject, Some(0), encoded(&entry)).await?;
    finish_dead(core, call, &entry, delivery, stored.envelope.payload).await
}

/// Gives back all that this handle has, as if it had not been taken.
pub(super) async fn release_all(core: &Arc<Core>, within: Duration) -> Result<(), DistributedError> {
    let tokens: Vec<_> = core.held().values().map(|held| held.token.clone()).collect();
    let release = |token: LeaseToken| async move { end(core, &token, End::Back(Nack::Release)).await };
    let released = tokio::time::timeout(within, futures_util::future::join_all(tokens.into_iter().map(release))).await;
    let late = || DistributedError::Unavailable {
        server: core.link.server().to_owned(),
        cause: "it did not answer in time".to_owned(),
    };
    let released = released.map_err(|_| late())?;
    released.into_iter().find_map(Result::err).map_or(Ok(()), Err)
}
