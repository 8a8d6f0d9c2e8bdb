//! What was left undone, or was undone by a server that was killed, is made good by whoever comes across it.
//!
//! A server that is killed may bring back what was removed last. Records of the register that come back are as those of who has
//! died between two steps. Messages that come back were acknowledged: the server does not deliver them, and they would lie there for
//! ever. So what lies before a consumer's acknowledgement floor is looked up, once for each connection: of all that was delivered
//! before that, as the floor comes to it.

use super::core::{Core, read};
use super::end::finish_ended;
use super::link::{Call, Record};
use super::record::{Entry, Remembered, Standing, Stored};
use crate::error::DistributedError;

/// So many are made good at a time.
pub(super) const SWEPT: usize = 100;

/// Looks after messages of a partition of a stream that were all acknowledged: those from here to `floor`. From where on it is to go
/// on, if it is not done.
pub(super) async fn sweep(
    core: &Core,
    call: &Call,
    number: usize,
    partition: usize,
    mut from: u64,
    floor: u64,
) -> Result<Option<u64>, DistributedError> {
    let (stream, subjects) = (core.names.stream(number), core.names.partition(number, partition));
    for _ in 0..SWEPT {
        let Some(message) = call.next(&stream, &subjects, from).await? else { return Ok(None) };
        if message.sequence > floor {
            return Ok(None);
        }
        from = message.sequence + 1;
        message_again(core, call, &stream, message).await?;
    }
    Ok(Some(from))
}

/// A message that was acknowledged, and is there.
async fn message_again(core: &Core, call: &Call, stream: &str, message: Record) -> Result<(), DistributedError> {
    // What can not be read is left as it is: it was put aside before it was acknowledged.
    let Ok(stored) = read::<Stored>(&message.body) else { return Ok(()) };
    let seen = match core.entry(call, &stored.envelope.id).await {
        Err(DistributedError::Damaged { .. }) => return Ok(()),
        seen => seen?,
    };
    let Some(seen) = seen else { return call.remove(stream, message.sequence).await };
    if let Some(Remembered { fence, .. }) = core.has_come_back(call, &seen.entry).await? {
        let ended = Entry { settled: fence, ..seen.entry };
        return finish_ended(core, call, &ended, seen.revision, None).await;
    }
    match seen.entry.standing {
        Standing::Ended { .. } => return finish_ended(core, call, &seen.entry, seen.revision, None).await,
        Standing::Dead { .. } | Standing::Gone => {}
        // Its command is not at its end: the server has numbered messages anew, and takes it for another one. It is sent again,
        // unless that was done.
        Standing::New | Standing::Ready | Standing::Waiting { .. } | Standing::Leased { .. } => {
            call.put(&message.subject, Some(message.sequence), message.body.into()).await?;
        }
    }
    call.remove(stream, message.sequence).await
}
