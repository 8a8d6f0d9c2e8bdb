//! How a command gets into the queue, once.
//!
//! 1. Its state is written into the register, as [new](Standing::New): only if there is none of this id.
//! 2. Is the id one that has ended? Then the state is taken back. (In this order: who ends a command remembers it before the state is
//!    removed.)
//! 3. Its idempotency key, if there is one, is written into the register in the same way: only if nobody has it, nor had it.
//! 4. Its message is published: only if there is none yet.
//!
//! Who finds a state that is new goes on with step 3, as if it were its own: whoever wrote it may have died. So it is the same whether
//! a call is made again, or somebody else's is finished. A state without a message that nobody finishes is a few bytes that lie there.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;

use super::core::{Core, Seen, json, read};
use super::link::{Call, Written};
use super::names::{of_command, of_key};
use super::record::{Entry, Keyed, Place, Standing, Stored};
use super::streams::{RESULTS_MAX, stream_of};
use crate::distributed::{CommandEnvelope, EnqueueOptions, Receipt};
use crate::error::DistributedError;

/// So many are under way at a time.
const AT_A_TIME: usize = 128;

/// So many are published at a time: `join_all` polls no more than these in their order, and so the questions go out in it.
const IN_ORDER: usize = 30;

/// A command that is in the register, and may have no message yet.
struct Accepted {
    entry: Entry,
    revision: u64,
    payload: Value,
    receipt: Receipt,
}

/// What the register says about a command: go on, or it is there.
enum Registered {
    Accepted(Box<Accepted>),
    There(Receipt),
}

pub(super) async fn enqueue_all(
    core: &Arc<Core>,
    commands: Vec<(CommandEnvelope, EnqueueOptions)>,
) -> Vec<Result<Receipt, DistributedError>> {
    let mut receipts = Vec::with_capacity(commands.len());
    let mut commands = commands.into_iter().peekable();
    while commands.peek().is_some() {
        let call = core.link.call();
        let some: Vec<_> = commands.by_ref().take(AT_A_TIME).collect();
        let registered = join_all(some.into_iter().map(|(envelope, options)| register(core, &call, envelope, options)));
        let registered = registered.await;
        let mut registered = registered.into_iter().peekable();
        while registered.peek().is_some() {
            let some = registered.by_ref().take(IN_ORDER).map(|registered| async {
                match registered? {
                    Registered::Accepted(accepted) => publish(core, &call, *accepted).await,
                    Registered::There(receipt) => Ok(receipt),
                }
            });
            receipts.extend(join_all(some).await);
        }
    }
    receipts
}

async fn register(
    core: &Core,
    call: &Call,
    mut envelope: CommandEnvelope,
    options: EnqueueOptions,
) -> Result<Registered, DistributedError> {
    envelope.route(&options, core.partitions, &*core.partitioner)?;
    if options.keep_result.is_some_and(|time| time > RESULTS_MAX) {
        return Err(DistributedError::Unsupported { operation: format!("results kept for more than {RESULTS_MAX:?}") });
    }
    check_size(core, &envelope, &options)?;
    // It has done its work.
    let options = EnqueueOptions { key: None, ..options };
    let stored = Stored::new(envelope, options);
    let priority = stored.options.priority.unwrap_or(EnqueueOptions::DEFAULT_PRIORITY);
    let place = Place { lane: stored.envelope.lane_id.clone(), priority };
    let number = stream_of(core, call, &place).await?;
    let entry = Entry::new(&stored, number, &uuid::Uuid::now_v7().to_string());
    loop {
        let registered = try_register(core, call, &entry, &stored.envelope.payload).await?;
        if let Some(registered) = registered {
            return Ok(registered);
        }
    }
}

fn check_size(core: &Core, envelope: &CommandEnvelope, options: &EnqueueOptions) -> Result<(), DistributedError> {
    let size = json(envelope).len() + json(&options.headers).len();
    if size > core.max_payload {
        return Err(DistributedError::PayloadTooLarge { size, limit: core.max_payload });
    }
    Ok(())
}

/// None: what was found has changed since.
async fn try_register(
    core: &Core,
    call: &Call,
    new: &Entry,
    payload: &Value,
) -> Result<Option<Registered>, DistributedError> {
    let id = new.id();
    let subject = core.names.state().subject(&of_command(id));
    let (seen, ours) = match call.put(&subject, Some(0), json(new)).await? {
        Written::At(revision) => (Seen { entry: new.clone(), revision }, true),
        Written::Changed => {
            let Some(seen) = core.entry(call, id).await? else { return Ok(None) };
            if seen.entry.standing == Standing::Gone {
                // Whoever was to remove it may have died, or the server was killed and has brought it back.
                call.remove(&core.names.state().stream, seen.revision).await?;
                return Ok(None);
            }
            let ours = seen.entry.call == new.call;
            (seen, ours)
        }
    };
    if seen.entry.fingerprint != new.fingerprint {
        return Err(DistributedError::DuplicateId { command_id: id.to_owned() });
    }
    let receipt = Receipt::new(id, !ours);
    match seen.entry.standing {
        Standing::New => {}
        _ => return Ok(Some(Registered::There(receipt))),
    }
    if let Some(remembered) = core.remembered(call, id).await? {
        take_back(core, call, &seen).await?;
        return if remembered.fingerprint == new.fingerprint {
            Ok(Some(Registered::There(Receipt::new(id, true))))
        } else {
            Err(DistributedError::DuplicateId { command_id: id.to_owned() })
        };
    }
    if let Some(first) = with_key(core, call, &seen, payload).await? {
        return Ok(Some(first));
    }
    let Seen { entry, revision, .. } = seen;
    Ok(Some(Registered::Accepted(Box::new(Accepted { entry, revision, payload: payload.clone(), receipt }))))
}

/// Takes the command's key, if it has one. Somebody else has it: what is to be done instead.
async fn with_key(
    core: &Core,
    call: &Call,
    seen: &Seen,
    payload: &Value,
) -> Result<Option<Registered>, DistributedError> {
    let Some(key) = &seen.entry.options.idempotency_key else { return Ok(None) };
    let keyed = Keyed { command_id: seen.entry.id().to_owned(), fingerprint: seen.entry.fingerprint.clone() };
    let (living, ended) = (core.names.state(), core.names.keys());
    let subject = living.subject(&of_key(key));
    let mut expected = 0;
    let taken = loop {
        let Written::Changed = call.put(&subject, Some(expected), json(&keyed)).await? else { break None };
        let Some(record) = call.last(&living.stream, &subject).await? else {
            expected = 0;
            continue;
        };
        // A key that can not be read is as one that nobody has: its command is not known.
        let Ok(other) = read::<Keyed>(&record.body) else {
            expected = record.sequence;
            continue;
        };
        if other.command_id == keyed.command_id {
            break None;
        }
        match core.entry(call, &other.command_id).await? {
            // It was given up, and its key will be free.
            Some(Seen { entry: Entry { standing: Standing::Dead { .. } | Standing::Gone, .. }, .. }) => {
                expected = record.sequence;
            }
            Some(first) if first.entry.options.idempotency_key.as_ref() == Some(key) => {
                break Some((other, Some(first)));
            }
            // It was never accepted.
            _ if core.remembered(call, &other.command_id).await?.is_none() => expected = record.sequence,
            _ => break Some((other, None)),
        }
    };
    match taken {
        // It is there, or has ended.
        Some((other, first)) if first.as_ref().is_none_or(|first| first.entry.standing != Standing::New) => {
            take_back(core, call, seen).await?;
            return Ok(Some(Registered::There(had_key(key, &keyed, &other)?)));
        }
        _ if core.window.is_zero() => {}
        // Ours, or of one that is as new: who has the key may not have looked yet whether that was somebody's before.
        _ => {
            let before = call.last(&ended.stream, &ended.subject(&of_key(key))).await?;
            if let Some(before) = before.and_then(|record| read::<Keyed>(&record.body).ok()) {
                if before.command_id == keyed.command_id {
                    return Ok(Some(Registered::There(Receipt::new(before.command_id, true))));
                }
                take_back(core, call, seen).await?;
                if taken.is_none()
                    && let Some(record) = call.last(&living.stream, &subject).await?
                    && read::<Keyed>(&record.body).is_ok_and(|there| there == keyed)
                {
                    call.remove(&living.stream, record.sequence).await?;
                }
                return Ok(Some(Registered::There(had_key(key, &keyed, &before)?)));
            }
        }
    }
    let Some((other, Some(Seen { entry, revision }))) = taken else { return Ok(None) };
    // The same work: our payload is its payload.
    take_back(core, call, seen).await?;
    let receipt = had_key(key, &keyed, &other)?;
    Ok(Some(Registered::Accepted(Box::new(Accepted { entry, revision, payload: payload.clone(), receipt }))))
}

/// The key belongs to another command: of the same work, or not.
fn had_key(key: &str, keyed: &Keyed, other: &Keyed) -> Result<Receipt, DistributedError> {
    if other.fingerprint == keyed.fingerprint {
        return Ok(Receipt::new(other.command_id.as_str(), true));
    }
    Err(DistributedError::IdempotencyConflict { key: key.to_owned(), command_id: other.command_id.clone() })
}

/// The state was written too much: if somebody has changed it since, it stays. A server that is killed may bring back what was
/// removed; so it is said to be gone before.
async fn take_back(core: &Core, call: &Call, seen: &Seen) -> Result<(), DistributedError> {
    match core.change(call, seen.revision, &seen.entry.now(Standing::Gone)).await? {
        Some(revision) => call.remove(&core.names.state().stream, revision).await,
        None => Ok(()),
    }
}

async fn publish(core: &Core, call: &Call, accepted: Accepted) -> Result<Receipt, DistributedError> {
    let Accepted { entry, revision, payload, receipt } = accepted;
    publish_message(core, call, &entry, revision, payload).await?;
    core.wake(entry.partition()).await;
    Ok(receipt)
}

/// Publishes a command's message, unless it is there. False if it is.
///
/// A server that was killed may bring back messages that were acknowledged, and not deliver them: one that was published from
/// another revision of the state is such a one, and makes room.
pub(super) async fn publish_message(
    core: &Core,
    call: &Call,
    entry: &Entry,
    revision: u64,
    payload: Value,
) -> Result<bool, DistributedError> {
    let stored = Stored { revision, ..entry.stored(payload) };
    let subject = core.names.command(entry.stream, entry.partition(), entry.id());
    let stream = core.names.stream(entry.stream);
    let id = format!("{subject}.{revision}");
    while call.put_as(&id, &subject, Some(0), json(&stored)).await? == Written::Changed {
        let Some(there) = call.last(&stream, &subject).await? else { continue };
        if read::<Stored>(&there.body).is_ok_and(|there| there.revision == revision) {
            return Ok(false);
        }
        call.remove(&stream, there.sequence).await?;
    }
    Ok(true)
}
