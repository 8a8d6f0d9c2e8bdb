//! Dead letters: looked at, replayed, discarded. A letter is a record of its stream, a state in the register says that it counts.
//! A letter whose state the register has lost counts as well: its state is made anew of it.

use std::sync::Arc;

use chrono::DateTime;

use super::core::{Core, Seen, json, read};
use super::end::{DAMAGED, DAMAGED_TYPE};
use super::enqueue::publish_message;
use super::link::{Call, Record, Written};
use super::names::{of_command, of_key, token as word};
use super::record::{Entry, Keyed, Place, Standing, Stored};
use super::streams::stream_of;
use crate::distributed::{DeadPage, DeadReason, EnqueueOptions, RemoteDeadLetter};
use crate::error::DistributedError;

pub(super) async fn letters(core: &Arc<Core>, page: DeadPage) -> Result<Vec<RemoteDeadLetter>, DistributedError> {
    let call = core.link.call();
    let mut from = match &page.after {
        Some(id) => {
            call.last(&core.names.dead(), &core.names.letter(id)).await?.map_or(1, |record| record.sequence + 1)
        }
        None => 1,
    };
    let mut letters = Vec::new();
    while letters.len() < page.limit {
        let Some(record) = call.next(&core.names.dead(), &core.names.letters(), from).await? else { break };
        from = record.sequence + 1;
        match letter(&record) {
            Ok(letter) => letters.push(letter),
            Err(problem) => {
                tracing::error!(subject = record.subject, problem, "a dead letter can not be read: it is left as it is")
            }
        }
    }
    Ok(letters)
}

fn letter(record: &Record) -> Result<RemoteDeadLetter, String> {
    let mut letter: RemoteDeadLetter = read(&record.body)?;
    letter.failed_at = DateTime::from_timestamp_nanos(record.time);
    Ok(letter)
}

pub(super) async fn replay(core: &Arc<Core>, id: &str) -> Result<bool, DistributedError> {
    let call = core.link.call();
    loop {
        let Some((record, seen)) = dead(core, &call, id).await? else { return Ok(false) };
        let damaged = |problem| DistributedError::Damaged { command_id: id.to_owned(), problem };
        let letter = letter(&record).map_err(damaged)?;
        if is_stand_in(&letter) {
            return Err(damaged("only what lies there of it can be looked at, or discarded".to_owned()));
        }
        return match seen.entry.standing {
            Standing::Dead { .. } => {
                let Some(seen) = revive(core, &call, &seen).await? else { continue };
                again(core, &call, &seen, letter, &record).await
            }
            // Somebody has begun to replay it, and may have died.
            Standing::New if seen.entry.replays > 0 => again(core, &call, &seen, letter, &record).await,
            _ => {
                call.remove(&core.names.dead(), record.sequence).await?;
                Ok(false)
            }
        };
    }
}

/// The letter of a command, and the command's state. None if there is no letter that counts.
async fn dead(core: &Core, call: &Call, id: &str) -> Result<Option<(Record, Seen)>, DistributedError> {
    loop {
        let subject = core.names.letter(id);
        let Some(record) = call.last(&core.names.dead(), &subject).await? else { return Ok(None) };
        if let Some(seen) = core.entry(call, id).await? {
            return Ok(Some((record, seen)));
        }
        if core.remembered(call, id).await?.is_some() {
            // It was replayed, and has ended since.
            call.remove(&core.names.dead(), record.sequence).await?;
            return Ok(None);
        }
        let entry = made_anew(core, call, id, &record).await?;
        let bucket = core.names.state();
        if let Written::At(revision) = call.put(&bucket.subject(&of_command(id)), Some(0), json(&entry)).await? {
            let still = call.last(&core.names.dead(), &subject).await?;
            if still.is_none_or(|still| still.sequence != record.sequence) {
                // Who has discarded it removes the state after the letter: it was not lost.
                call.remove(&bucket.stream, revision).await?;
            }
        }
    }
}

/// The state of a dead command, made of its letter. Terms that letters do not name are lost.
async fn made_anew(core: &Core, call: &Call, id: &str, record: &Record) -> Result<Entry, DistributedError> {
    let letter = letter(record).map_err(|problem| DistributedError::Damaged { command_id: id.to_owned(), problem })?;
    let number = if is_stand_in(&letter) {
        0
    } else {
        let place = Place { lane: letter.envelope.lane_id.clone(), priority: letter.priority };
        stream_of(core, call, &place).await?
    };
    let options = EnqueueOptions {
        priority: Some(letter.priority),
        payload_version: Some(letter.payload_version),
        headers: letter.headers,
        ..EnqueueOptions::new()
    };
    let mut entry = Entry::new(&Stored::new(letter.envelope, options), number, "");
    entry.fence = core.now(call).await?.fence();
    entry.deliveries = letter.deliveries;
    Ok(entry.now(Standing::Dead { reason: letter.reason, result: None }))
}

/// Whether the letter stands for a message that could not be read, and not for a command.
fn is_stand_in(letter: &RemoteDeadLetter) -> bool {
    letter.envelope.id.starts_with(DAMAGED)
        && letter.envelope.command_type == DAMAGED_TYPE
        && matches!(letter.reason, DeadReason::Undecodable(_))
}

/// Makes it new, with all its deliveries. None: its state has changed since.
async fn revive(core: &Core, call: &Call, seen: &Seen) -> Result<Option<Seen>, DistributedError> {
    let mut entry = Entry { deliveries: 0, replays: seen.entry.replays + 1, ..seen.entry.now(Standing::New) };
    entry.head.retry_count = 0;
    entry.options.delay = None;
    Ok(core.change(call, seen.revision, &entry).await?.map(|revision| Seen { entry, revision }))
}

/// Publishes it again. False if somebody else has.
async fn again(
    core: &Core,
    call: &Call,
    seen: &Seen,
    letter: RemoteDeadLetter,
    record: &Record,
) -> Result<bool, DistributedError> {
    let entry = &seen.entry;
    if let Some(key) = &entry.options.idempotency_key {
        let keyed = Keyed { command_id: entry.id().to_owned(), fingerprint: entry.fingerprint.clone() };
        // Other work may have it since.
        let _: Written = call.put(&core.names.state().subject(&of_key(key)), Some(0), json(&keyed)).await?;
    }
    let published = publish_message(core, call, entry, seen.revision, letter.envelope.payload).await?;
    call.remove(&core.names.dead(), record.sequence).await?;
    core.wake(entry.partition()).await;
    Ok(published)
}

pub(super) async fn discard(core: &Arc<Core>, id: &str) -> Result<bool, DistributedError> {
    let call = core.link.call();
    loop {
        let Some((record, seen)) = dead(core, &call, id).await? else { return Ok(false) };
        let revision = match &seen.entry.standing {
            Standing::Dead { .. } => {
                let Some(revision) = core.change(&call, seen.revision, &seen.entry.now(Standing::Gone)).await? else {
                    continue;
                };
                revision
            }
            // Somebody has begun to discard it, and may have died.
            Standing::Gone => seen.revision,
            _ => return Ok(false),
        };
        // What it was named by is one word; the id of a command may be anything.
        if let Some(what) = id.strip_prefix(DAMAGED).filter(|what| word(what) == **what)
            && let Some(raw) = call.last(&core.names.dead(), &core.names.damaged(what)).await?
        {
            call.remove(&core.names.dead(), raw.sequence).await?;
        }
        call.remove(&core.names.dead(), record.sequence).await?;
        call.remove(&core.names.state().stream, revision).await?;
        return Ok(true);
    }
}
