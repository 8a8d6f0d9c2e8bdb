//! What is asked without changing anything: results, and how much there is.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::clock::{Now, plus};
use super::core::{Core, read};
use super::end::finish_ended;
use super::names::token as word;
use super::record::{Entry, Kept, Remembered, Standing};
use super::sweep::SWEPT;
use crate::distributed::{CommandResult, Depth, ID_MEMORY};
use crate::error::DistributedError;
use crate::executor::now;
use crate::queue::PartitionId;

/// While somebody waits for a result, it is looked for so often: what tells of it may be lost.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn result(
    core: &Arc<Core>,
    id: &str,
    wait: Duration,
) -> Result<Option<CommandResult>, DistributedError> {
    let give_up = now().plus(wait);
    let bucket = core.names.results();
    loop {
        let told = core.resulted.listen();
        let call = core.link.call();
        let record = call.last(&bucket.stream, &bucket.subject(&word(id))).await?;
        if let Some(kept) = record.and_then(|record| read::<Kept>(&record.body).ok())
            && !core.now(&call).await?.is_past(kept.until)
        {
            return Ok(Some(kept.result));
        }
        if now() >= give_up || core.is_closed() {
            return Ok(None);
        }
        tokio::select! {
            () = told => {}
            () = tokio::time::sleep(give_up.since(now()).min(LOOK)) => {}
        }
    }
}

/// Commands whose state is read at a time.
const BATCH: usize = 500;

/// Longer than any enqueue goes on, as a rule: a state without a message that is older is one whose enqueue was given up.
const UNPUBLISHED: Duration = Duration::from_secs(10);

/// Reads the state of every command of the queue: nothing counts them.
pub(super) async fn depth(core: &Arc<Core>, partition: PartitionId) -> Result<Depth, DistributedError> {
    #[derive(Deserialize)]
    struct Made {
        name: String,
    }
    let call = core.link.call();
    let bucket = core.names.state();
    let time = core.now(&call).await?;
    let config = json!({
        "stream_name": bucket.stream,
        "config": {
            "deliver_policy": "all",
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": bucket.subject("c.*"),
            "mem_storage": true,
        },
    });
    let made = call.api::<Made>(&format!("CONSUMER.CREATE.{}", bucket.stream), &config).await?;
    let consumer = made.map_err(|refusal| call.refused(&refusal))?.name;
    let mut depth = Depth::default();
    let (mut unfinished, mut unpublished) = (Vec::new(), Vec::new());
    loop {
        let call = core.link.call();
        let messages = call.pull(&bucket.stream, &consumer, BATCH).await?.messages;
        let all = messages.len() == BATCH;
        for message in messages {
            let written = message.reply.as_deref().and_then(super::delivery::Delivery::of);
            let (Some(written), Ok(entry)) = (written, read::<Entry>(&message.payload)) else { continue };
            let old = plus(written.published, ID_MEMORY);
            if matches!(entry.standing, Standing::Ended { .. }) && time.is_past(old) && unfinished.len() < SWEPT {
                unfinished.push((entry, written.sequence));
            } else if entry.partition() == partition
                && !matches!(entry.standing, Standing::Dead { .. } | Standing::Ended { .. } | Standing::Gone)
                && time.is_past(plus(written.published, UNPUBLISHED))
                && unpublished.len() < SWEPT
            {
                unpublished.push((entry, written));
            } else if entry.partition() == partition {
                count(&mut depth, &entry, written.published, time);
            }
        }
        if !all {
            break;
        }
    }
    // If this is not heard, the server removes it by itself soon.
    let _ = call.api::<serde_json::Value>(&format!("CONSUMER.DELETE.{}.{consumer}", bucket.stream), &json!({})).await;
    let call = core.link.call();
    for (entry, written) in unpublished {
        // A server that was killed has brought it back, and perhaps its message, too.
        if let Some(Remembered { fence, .. }) = core.has_come_back(&call, &entry).await? {
            let ended = Entry { settled: fence, ..entry };
            finish_ended(core, &call, &ended, written.sequence, None).await?;
            continue;
        }
        let subject = core.names.command(entry.stream, entry.partition(), entry.id());
        let is_there = call.last(&core.names.stream(entry.stream), &subject).await?.is_some();
        // Nobody was told that a new one was accepted: if its message comes after all, it is as one whose state was lost. One that
        // is replayed has its letter still, and that is replayed again.
        let is_unaccepted = entry.standing == Standing::New && entry.replays == 0;
        if !is_there && is_unaccepted {
            call.remove(&bucket.stream, written.sequence).await?;
        } else {
            count(&mut depth, &entry, written.published, time);
        }
    }
    // Who ended them has died, or the server was killed and has brought them back.
    for (entry, revision) in unfinished {
        finish_ended(core, &core.link.call(), &entry, revision, None).await?;
    }
    Ok(depth)
}

/// Counts a command whose state was written at this time.
fn count(depth: &mut Depth, entry: &Entry, written: i64, time: Now) {
    let due = match &entry.standing {
        Standing::New => plus(written, entry.options.delay.unwrap_or_default()),
        Standing::Ready => written,
        Standing::Waiting { until } => *until,
        // It has ended, and nobody has taken it since.
        Standing::Leased { until, .. } if time.is_past(*until) => *until,
        Standing::Leased { .. } => {
            depth.leased += 1;
            return;
        }
        Standing::Dead { .. } => {
            depth.dead += 1;
            return;
        }
        Standing::Ended { .. } | Standing::Gone => return,
    };
    if due > time.latest && due != written {
        depth.delayed += 1;
        return;
    }
    depth.ready += 1;
    let waited = Duration::from_nanos(u64::try_from(time.latest.saturating_sub(due)).unwrap_or(0));
    depth.oldest_ready = depth.oldest_ready.max(Some(waited));
}
