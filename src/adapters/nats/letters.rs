//! Dead letters: looked at, replayed, discarded. A letter is a record of its stream, a state in the register says that it counts.

use std::sync::Arc;

use chrono::DateTime;

use super::core::{Core, Seen, json, read};
use super::end::DAMAGED;
use super::enqueue::publish_message;
use super::link::{Call, Record, Written};
use super::names::of_key;
use super::record::{Entry, Keyed, Standing};
use crate::distributed::{DeadPage, RemoteDeadLetter};
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
        let Some(record) = call.last(&core.names.dead(), &core.names.letter(id)).await? else { return Ok(false) };
        let Some(seen) = core.entry(&call, id).await? else {
            // Its command has ended since.
            call.remove(&core.names.dead(), record.sequence).await?;
            return Ok(false);
        };
        let letter =
            letter(&record).map_err(|problem| DistributedError::Damaged { command_id: id.to_owned(), problem })?;
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
    let record = call.last(&core.names.dead(), &core.names.letter(id)).await?;
    loop {
        let (Some(record), Some(seen)) = (&record, core.entry(&call, id).await?) else { return Ok(false) };
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
        if let Some(what) = id.strip_prefix(DAMAGED)
            && let Some(raw) = call.last(&core.names.dead(), &core.names.damaged(what)).await?
        {
            call.remove(&core.names.dead(), raw.sequence).await?;
        }
        call.remove(&core.names.dead(), record.sequence).await?;
        call.remove(&core.names.state().stream, revision).await?;
        return Ok(true);
    }
}
