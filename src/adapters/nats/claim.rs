//! How commands are taken.
//!
//! The streams deliver; the register decides. Each message that comes is looked up: its command may be taken if it is ready, by
//! writing the lease over the state that was seen. If another has written since, it is looked at again. So a message that
//! comes too early, too often, or to two at once, does no harm: who finds that it is not its time says when that is, and drops it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::clock::{Now, plus};
use super::core::{Core, Held, Seen};
use super::delivery::{ACK, Delivered, Delivery, IN_PROGRESS, again_after};
use super::end::{End, bury, end, finish_dead, finish_ended, put_aside};
use super::link::{Call, Pulled};
use super::record::{Entry, Place, Remembered, Standing, Stored};
use super::streams::{consumer_of, places, remake_consumer};
use crate::distributed::{Claim, DeadReason, ID_MEMORY, LeaseToken, Leased, Nack};
use crate::error::DistributedError;
use crate::executor::now;
use crate::queue::PartitionId;

/// While somebody waits, it is looked so often for what nobody tells of: leases that end, delays that others have seen.
const LOOK: Duration = Duration::from_millis(250);

/// Messages that are asked for at a time.
const BATCH: usize = 128;

/// What one look has brought.
#[derive(Default)]
struct Look {
    taken: Vec<Leased>,
    /// When one that was seen may be taken.
    again: Option<Duration>,
}

/// Takes as the claim says, and gives that to `taker`. What is taken when nobody waits for it any more is given back.
pub(super) async fn claim(core: Arc<Core>, partition: PartitionId, claim: Claim, mut taker: Taker) {
    let give_up = now().plus(claim.wait);
    let result = loop {
        // Listened before it is looked at: so what comes meanwhile is not missed.
        let woken = core.wakes[partition].listen();
        if core.is_closed() {
            break Ok(Vec::new());
        }
        let Look { taken, again } = match look(&core, partition, &claim).await {
            Ok(look) => look,
            Err(error) => break Err(error),
        };
        if core.is_closed() {
            give_back(&core, taken).await;
            break Ok(Vec::new());
        }
        if !taken.is_empty() || claim.max == 0 || now() >= give_up {
            break Ok(taken);
        }
        let again = give_up.min(now().plus(again.unwrap_or(LOOK).min(LOOK)));
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(again.since(now())) => {}
            () = taker.closed() => return,
        }
    };
    if let Err(Ok(taken)) = taker.send(result) {
        give_back(&core, taken).await;
    }
}

async fn give_back(core: &Arc<Core>, taken: Vec<Leased>) {
    for leased in taken {
        // If this is not heard, it comes back when its lease ends.
        let _ = end(core, &leased.token, End::Back(Nack::Release)).await;
    }
}

type Taker = oneshot::Sender<Result<Vec<Leased>, DistributedError>>;

/// Takes what is there now. What was taken is not given up for an error that comes again.
async fn look(core: &Arc<Core>, partition: PartitionId, claim: &Claim) -> Result<Look, DistributedError> {
    let mut look = Look::default();
    if claim.max == 0 {
        return Ok(look);
    }
    let call = core.link.call();
    core.forget_lost(core.now(&call).await?);
    let mut places = places(core, &call).await?;
    // Those of one priority take turns to be the first.
    let (turn, many) = (core.turn.fetch_add(1, Ordering::Relaxed), places.len().max(1));
    places.sort_by_key(|(place, number)| (place.priority, (number + turn) % many));
    let result = if claim.lanes.is_empty() {
        take(core, &call, partition, claim, &places, claim.max, &mut look).await
    } else {
        let mut result = Ok(());
        for lane in &claim.lanes {
            let of_lane: Vec<_> = places.iter().filter(|(place, _)| place.lane == lane.lane_id).cloned().collect();
            let max = lane.max.min(claim.max - look.taken.len());
            result = take(core, &call, partition, claim, &of_lane, max, &mut look).await;
            if result.is_err() {
                break;
            }
        }
        result
    };
    match result {
        Err(error) if look.taken.is_empty() => Err(error),
        _ => Ok(look),
    }
}

/// Takes at most `max` of these, in their order.
async fn take(
    core: &Arc<Core>,
    call: &Call,
    partition: PartitionId,
    claim: &Claim,
    places: &[(Place, usize)],
    max: usize,
    look: &mut Look,
) -> Result<(), DistributedError> {
    let full = look.taken.len() + max;
    for (_, number) in places {
        while look.taken.len() < full {
            let (consumer, ack_wait) = consumer_of(core, call, *number, partition).await?;
            let batch = (full - look.taken.len()).min(BATCH);
            let Pulled { messages, kept_waiting } = call.pull(&core.names.stream(*number), &consumer, batch).await?;
            if kept_waiting {
                remake_consumer(core, call, *number, partition).await?;
            }
            let all = messages.len() == batch;
            let delivered = messages.into_iter().filter_map(Delivered::of);
            let tried = join_all(delivered.map(|delivered| one(core, call, claim, ack_wait, delivered))).await;
            let mut error = None;
            for tried in tried {
                match tried {
                    Ok(Tried::Taken(leased)) => look.taken.push(*leased),
                    Ok(Tried::Later(after)) => look.again = Some(look.again.map_or(after, |again| again.min(after))),
                    Ok(Tried::Done) => {}
                    Err(other) => error = Some(other),
                }
            }
            if let Some(error) = error {
                return Err(error);
            }
            if !all {
                break;
            }
        }
    }
    Ok(())
}

/// What became of one delivery.
enum Tried {
    Taken(Box<Leased>),
    /// It is not its time.
    Later(Duration),
    /// Its command has ended, or is with somebody else.
    Done,
}

/// What is to be done about a command that was delivered.
#[derive(Debug, PartialEq)]
enum Decision {
    Lease(Box<Entry>),
    Bury(DeadReason),
    Later(Duration),
    FinishDead,
    FinishEnded,
    /// Nothing is left of it but the message.
    Drop,
}

async fn one(
    core: &Arc<Core>,
    call: &Call,
    claim: &Claim,
    ack_wait: Duration,
    delivered: Delivered,
) -> Result<Tried, DistributedError> {
    let Delivered { delivery, stored, body } = delivered;
    let stored = match stored {
        Ok(stored) => stored,
        Err(problem) => {
            put_aside(core, call, &delivery, &body, &format!("its message {problem}")).await?;
            return Ok(Tried::Done);
        }
    };
    let id = stored.envelope.id.as_str();
    let mut tried: Option<Box<Entry>> = None;
    loop {
        let seen = match core.entry(call, id).await {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                if core.remembered(call, id).await?.is_some() {
                    call.acknowledge(&delivery.name, ACK).await?;
                    return Ok(Tried::Done);
                }
                lost(core, &delivery, &stored, core.now(call).await?)
            }
            Err(DistributedError::Damaged { problem, .. }) => {
                put_aside(core, call, &delivery, &body, &problem).await?;
                return Ok(Tried::Done);
            }
            Err(error) => return Err(error),
        };
        // Our own lease, of whose writing the answer was lost.
        if let Some(entry) = tried.take_if(|tried| **tried == seen.entry) {
            let leased = taken(core, stored, *entry, seen.revision, delivery.name, claim.lease);
            return Ok(Tried::Taken(Box::new(leased)));
        }
        if let Some(Remembered { fence, .. }) = core.has_come_back(call, &seen.entry).await? {
            let ended = Entry { settled: fence, ..seen.entry };
            finish_ended(core, call, &ended, seen.revision, Some(&delivery.name)).await?;
            return Ok(Tried::Done);
        }
        let now = core.now(call).await?;
        match decide(&seen, delivery.published, now, claim.lease, &core.worker_id) {
            Decision::Lease(entry) => {
                let Some(revision) = core.change(call, seen.revision, &entry).await? else {
                    tried = Some(entry);
                    continue;
                };
                if claim.lease != ack_wait {
                    // Not waited for: who gets it too early looks it up, and says when its time is.
                    call.say(&delivery.name, again_after(claim.lease)).await;
                }
                return Ok(Tried::Taken(Box::new(taken(core, stored, *entry, revision, delivery.name, claim.lease))));
            }
            Decision::Bury(reason) => {
                if bury(core, call, &seen, &delivery, stored.envelope.payload.clone(), reason).await? {
                    return Ok(Tried::Done);
                }
            }
            Decision::Later(after) => {
                call.say(&delivery.name, again_after(after)).await;
                return Ok(Tried::Later(after));
            }
            Decision::FinishDead => {
                if seen.revision == 0 && core.change(call, 0, &seen.entry).await?.is_none() {
                    continue;
                }
                finish_dead(core, call, &seen.entry, &delivery, stored.envelope.payload).await?;
                return Ok(Tried::Done);
            }
            Decision::FinishEnded => {
                finish_ended(core, call, &seen.entry, seen.revision, Some(&delivery.name)).await?;
                return Ok(Tried::Done);
            }
            Decision::Drop => {
                call.acknowledge(&delivery.name, ACK).await?;
                return Ok(Tried::Done);
            }
        }
    }
}

/// The state of a command of which there is only the message: the register has lost it. If it has ended, that is remembered for
/// a while: within that time it has not. Later nobody knows, and who asks for dead letters is to decide.
fn lost(core: &Core, delivery: &Delivery, stored: &Stored, now: Now) -> Seen {
    let mut entry = Entry::new(stored, core.names.number(&delivery.stream).unwrap_or_default(), "");
    // Higher than any before: which that was is lost.
    entry.fence = now.fence();
    if now.is_past(plus(delivery.published, ID_MEMORY)) {
        let problem = "its state is not in the register: it is not known whether it has ended before";
        entry.standing = Standing::Dead { reason: DeadReason::Failed(problem.to_owned()), result: None };
    }
    Seen { entry, revision: 0 }
}

fn decide(seen: &Seen, published: i64, now: Now, lease: Duration, worker: &str) -> Decision {
    let Seen { entry, revision } = seen;
    let expires = entry.expires(published);
    let due = match &entry.standing {
        Standing::New => entry.options.delay.map(|delay| plus(published, delay)),
        Standing::Waiting { until } => Some(*until),
        Standing::Ready => None,
        Standing::Leased { until, .. } if now.is_past(*until) => None,
        Standing::Leased { until, .. } => return Decision::Later(now.until(*until)),
        Standing::Dead { .. } => return Decision::FinishDead,
        Standing::Ended { .. } => return Decision::FinishEnded,
        Standing::Gone => return Decision::Drop,
    };
    let lost = matches!(entry.standing, Standing::Leased { .. });
    if lost && entry.deliveries >= entry.max_deliveries() {
        return Decision::Bury(DeadReason::TooManyDeliveries);
    }
    if expires.is_some_and(|expires| now.is_past(expires)) {
        return Decision::Bury(DeadReason::Expired);
    }
    if let Some(due) = due.filter(|due| !now.is_past(*due)) {
        return Decision::Later(now.until(expires.map_or(due, |expires| due.min(expires))));
    }
    let standing = Standing::Leased { until: now.plus(lease), worker: worker.to_owned() };
    let fence = entry.fence.max(*revision) + 1;
    Decision::Lease(Box::new(Entry { fence, deliveries: entry.deliveries + 1, ..entry.now(standing) }))
}

fn taken(core: &Core, stored: Stored, entry: Entry, revision: u64, delivery: String, lease: Duration) -> Leased {
    let mut envelope = stored.envelope;
    envelope.retry_count = entry.head.retry_count;
    let token = LeaseToken::new(envelope.id.as_str(), entry.partition(), entry.fence, delivery);
    let mut leased = Leased::new(envelope, token.clone(), Some(lease));
    leased.delivery = entry.deliveries;
    leased.priority = entry.priority();
    leased.payload_version = entry.options.payload_version.unwrap_or(1);
    leased.headers = entry.options.headers.clone();
    core.held().insert(entry.head.id.clone(), Held { token, entry, revision });
    leased
}

/// Leases a command anew: in the register first, then with the stream.
pub(super) async fn extend(core: &Arc<Core>, token: &LeaseToken, lease: Duration) -> Result<(), DistributedError> {
    let lost = || DistributedError::LeaseLost { command_id: token.command_id().to_owned() };
    let call = core.link.call();
    let mut known = core.known(token);
    loop {
        let (seen, fresh) = match known.take() {
            Some(seen) => (seen, false),
            None => (core.entry(&call, token.command_id()).await?.ok_or_else(lost)?, true),
        };
        let now = core.now(&call).await?;
        let held = match &seen.entry.standing {
            Standing::Leased { until, .. } => seen.entry.fence == token.fence() && !now.is_past(*until),
            _ => false,
        };
        if !held && fresh {
            return Err(lost());
        }
        if !held {
            // Another handle may have extended it.
            continue;
        }
        let standing = Standing::Leased { until: now.plus(lease), worker: core.worker_id.clone() };
        let entry = seen.entry.now(standing);
        let Some(revision) = core.change(&call, seen.revision, &entry).await? else { continue };
        let entry_stream = entry.stream;
        core.keep(token, entry, revision);
        let ack_wait = core.streams.ack_wait(entry_stream, token.partition());
        let word = if Some(lease) == ack_wait { IN_PROGRESS.to_owned() } else { again_after(lease) };
        call.say(token.handle(), word).await;
        return Ok(());
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::distributed::{CommandEnvelope, EnqueueOptions};

    /// It is 1000 ms, give or take one.
    const NOW: Now = Now { earliest: 999 * MS, latest: 1001 * MS };
    const MS: i64 = 1_000_000;

    fn of(options: EnqueueOptions, standing: Standing) -> Entry {
        let envelope = CommandEnvelope { partition_id: 0, ..CommandEnvelope::new("sample", "query", Value::Null) };
        Entry::new(&Stored::new(envelope, options), 0, "").now(standing)
    }

    /// Of a message of 500 ms, for a lease of 10 ms.
    fn decided(entry: &Entry) -> Decision {
        decided_at(0, entry)
    }

    /// As the register has it at this revision.
    fn decided_at(revision: u64, entry: &Entry) -> Decision {
        let seen = Seen { entry: entry.clone(), revision };
        decide(&seen, 500 * MS, NOW, Duration::from_millis(10), "me")
    }

    #[track_caller]
    fn is_leased(entry: &Entry) {
        let standing = Standing::Leased { until: 1011 * MS, worker: "me".to_owned() };
        let leased = Entry { fence: entry.fence + 1, deliveries: entry.deliveries + 1, ..entry.now(standing) };
        assert_eq!(decided(entry), Decision::Lease(Box::new(leased)));
    }

    #[test]
    fn what_is_ready_is_leased_with_the_next_fence() {
        is_leased(&of(EnqueueOptions::new(), Standing::New));
        is_leased(&of(EnqueueOptions::new(), Standing::Ready));
        is_leased(&of(EnqueueOptions::new(), Standing::Waiting { until: 999 * MS }));
        is_leased(&of(EnqueueOptions::new().delay(Duration::from_millis(499)), Standing::New));
    }

    #[test]
    fn fences_are_higher_than_those_of_a_command_before_that_had_the_id() {
        let fence = |revision, fence| {
            let entry = Entry { fence, ..of(EnqueueOptions::new(), Standing::Ready) };
            match decided_at(revision, &entry) {
                Decision::Lease(entry) => entry.fence,
                other => panic!("{other:?}"),
            }
        };
        // The lease of the first was written after revision 7, so the second's state has a higher one.
        assert!(fence(7, 0) < fence(9, 0));
        // As after a state that was lost.
        assert_eq!(fence(9, 2_000_000), 2_000_001);
    }

    #[test]
    fn what_is_given_back_after_its_time_expires() {
        let of = |standing| of(EnqueueOptions::new().expires_after(Duration::from_millis(499)), standing);
        for standing in [Standing::Ready, Standing::Waiting { until: 5000 * MS }] {
            assert_eq!(decided(&of(standing)), Decision::Bury(DeadReason::Expired));
        }
        let leased = |until| of(Standing::Leased { until, worker: "another".to_owned() });
        assert_eq!(decided(&leased(999 * MS)), Decision::Bury(DeadReason::Expired));
        assert_eq!(decided(&leased(1009 * MS)), Decision::Later(Duration::from_millis(10)));
    }

    #[test]
    fn what_is_not_due_for_certain_comes_later() {
        let later = |ms| Decision::Later(Duration::from_millis(ms));
        let delayed = |ms| EnqueueOptions::new().delay(Duration::from_millis(ms));
        assert_eq!(decided(&of(delayed(500), Standing::New)), later(1));
        assert_eq!(decided(&of(EnqueueOptions::new(), Standing::Waiting { until: 1003 * MS })), later(4));
        // It may expire before.
        let expiring = delayed(9000).expires_after(Duration::from_millis(600));
        assert_eq!(decided(&of(expiring, Standing::New)), later(101));
    }

    #[test]
    fn what_is_leased_is_left_alone_until_that_has_ended_for_certain() {
        let leased = |until| Standing::Leased { until, worker: "another".to_owned() };
        let entry = of(EnqueueOptions::new(), leased(1000 * MS));
        assert_eq!(decided(&entry), Decision::Later(Duration::from_millis(1)));
        is_leased(&Entry { deliveries: 1, ..entry.now(leased(999 * MS)) });
        let often = of(EnqueueOptions::new().max_deliveries(2), leased(999 * MS));
        is_leased(&Entry { deliveries: 1, ..often.clone() });
        assert_eq!(decided(&Entry { deliveries: 2, ..often }), Decision::Bury(DeadReason::TooManyDeliveries));
    }

    #[test]
    fn what_was_not_taken_in_time_expires_unless_it_was_replayed() {
        let expired = of(EnqueueOptions::new().expires_after(Duration::from_millis(499)), Standing::New);
        assert_eq!(decided(&expired), Decision::Bury(DeadReason::Expired));
        is_leased(&Entry { replays: 1, ..expired });
    }

    #[test]
    fn what_is_at_its_end_is_finished() {
        let of = |standing| decided(&of(EnqueueOptions::new(), standing));
        assert_eq!(of(Standing::Dead { reason: DeadReason::Expired, result: None }), Decision::FinishDead);
        assert_eq!(of(Standing::Ended { result: None }), Decision::FinishEnded);
        assert_eq!(of(Standing::Gone), Decision::Drop);
    }
}
