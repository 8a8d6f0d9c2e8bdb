//! How a command has ended, and telling the queue so: in batches of what has ended while the last one was on its way.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;

use super::held::{Held, Registered};
use super::{Pool, contained};
use crate::clock::Clock;
use crate::distributed::{AckOutcome, CommandEnvelope, CommandResult, DeadReason, LeaseToken, Nack};
use crate::error::{DistributedError, LaneError, Result};
use crate::executor::sleep;

/// What the queue is told at a time.
const BATCH_MAX: usize = 128;
/// The longest rest before it is told again.
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// What a command's end means to the queue.
#[derive(Debug)]
pub(super) enum Ending {
    Ack(CommandResult),
    /// It was not run, or not to its end.
    Release,
    Dead(DeadReason),
}

/// An end that the queue is to be told of.
struct Told {
    envelope: CommandEnvelope,
    held: Arc<Held>,
    ending: Ending,
    /// It is extended until the queue knows.
    registered: Registered,
}

/// Ends that the queue is to be told of.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<VecDeque<Told>>,
    arrived: Event,
}

/// Waits for the end of a command, unless it has come to one already.
pub(super) async fn supervise(
    pool: Arc<Pool>,
    envelope: CommandEnvelope,
    held: Arc<Held>,
    registered: Registered,
    ending: Option<Ending>,
) {
    let clock = Clock::system();
    let begun = clock.now();
    let ending = match ending {
        Some(ending) => ending,
        None => {
            let ended = held.end().await;
            let took = clock.now().since(begun);
            let ending = pool.ending(&envelope, ended, took);
            if matches!(ending, Ending::Release) {
                // Nobody else is to have it while it still runs here.
                held.gone().await;
            }
            ending
        }
    };
    pool.rooms.tell();
    pool.outbox.put(Told { envelope, held, ending, registered });
}

impl Pool {
    fn ending(
        &self,
        envelope: &CommandEnvelope,
        ended: Result<Result<serde_json::Value>, crate::queue::TicketError>,
        took: Duration,
    ) -> Ending {
        let result = match ended {
            Ok(Ok(value)) => Ok(value),
            // Nobody but this process cancels it: when its queue or this pool stops.
            Ok(Err(LaneError::Cancelled { .. } | LaneError::Shed | LaneError::ShutdownInProgress)) | Err(_) => {
                return Ending::Release;
            }
            Ok(Err(error)) => Err(error.to_string()),
        };
        Ending::Ack(CommandResult {
            command_id: envelope.id.clone(),
            result,
            worker_id: self.queue.worker_id().clone(),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The queue knows of it, or never will from here.
    fn is_over(&self, told: Told, outcome: &Result<AckOutcome>) {
        let Told { envelope, held, ending, registered } = told;
        drop(registered);
        let count = match (outcome, &ending) {
            _ if held.is_lost() => &self.counts.lost,
            (
                Ok(AckOutcome::Applied | AckOutcome::AlreadyApplied),
                Ending::Ack(CommandResult { result: Ok(_), .. }),
            ) => &self.counts.completed,
            (Ok(AckOutcome::Applied | AckOutcome::AlreadyApplied), Ending::Release) => &self.counts.released,
            (Ok(AckOutcome::Applied | AckOutcome::AlreadyApplied), _) => &self.counts.failed,
            (Ok(AckOutcome::LeaseLost), _) => {
                tracing::warn!(command_id = %envelope.id, "a command has ended after its lease: others may have run it, too");
                &self.counts.lost
            }
            (Err(error), _) => {
                tracing::error!(command_id = %envelope.id, %error, "a queue can not be told how a command has ended");
                &self.counts.lost
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.counts.in_hand.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify(usize::MAX);
    }
}

impl Outbox {
    fn put(&self, told: Told) {
        self.lock().push_back(told);
        self.arrived.notify(usize::MAX);
    }

    fn take(&self) -> Vec<Told> {
        let mut waiting = self.lock();
        let many = waiting.len().min(BATCH_MAX);
        waiting.drain(..many).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Told>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the queue of all ends, until the pool has stopped and nothing is in hand.
pub(super) async fn tell(pool: Arc<Pool>) {
    let mut failures = 0;
    loop {
        let (arrived, changed) = (pool.outbox.arrived.listen(), pool.changed.listen());
        let group = pool.outbox.take();
        if group.is_empty() {
            let ended = pool.is_stopping()
                && pool.serving.load(Ordering::Acquire) == 0
                && pool.counts.in_hand.load(Ordering::Acquire) == 0;
            if ended {
                return;
            }
            arrived.or(changed).await;
            continue;
        }
        let again = tell_group(&pool, group).await;
        failures = if again.is_empty() { 0 } else { failures + 1 };
        if failures > 0 {
            for told in again {
                pool.outbox.put(told);
            }
            let rest = Duration::from_millis(10).saturating_mul(1 << failures.min(10)).min(AGAIN_MAX);
            sleep(rest).await;
        }
    }
}

/// What is to be told again.
async fn tell_group(pool: &Pool, group: Vec<Told>) -> Vec<Told> {
    let (mut again, mut acked) = (Vec::new(), Vec::new());
    for told in group {
        if told.held.is_lost() {
            pool.is_over(told, &Ok(AckOutcome::LeaseLost));
            continue;
        }
        let token = &told.held.token;
        let outcome = match &told.ending {
            Ending::Ack(_) => {
                acked.push(told);
                continue;
            }
            Ending::Release if told.held.is_leased() => contained(pool.queue.nack(token, Nack::Release)).await,
            // Nobody else will bring it back.
            Ending::Release => contained(pool.queue.enqueue(told.envelope.clone())).await.map(|()| AckOutcome::Applied),
            Ending::Dead(reason) => contained(dead_letter(pool, &told.envelope, token, reason)).await,
        };
        again.extend(settled(pool, told, outcome));
    }
    if !acked.is_empty() {
        let results = acked.iter().filter_map(|told| match &told.ending {
            Ending::Ack(result) => Some((told.held.token.clone(), result.clone())),
            Ending::Release | Ending::Dead(_) => None,
        });
        let asked = pool.queue.ack_batch(results.collect());
        let outcomes = contained(async { Ok(asked.await) }).await.unwrap_or_default();
        let missing = || Err(LaneError::QueueError("the queue gave no answer".to_owned()));
        let outcomes = outcomes.into_iter().chain(std::iter::repeat_with(missing));
        again.extend(acked.into_iter().zip(outcomes).filter_map(|(told, outcome)| settled(pool, told, outcome)));
    }
    again
}

/// A queue without dead letters has the command end with an error.
async fn dead_letter(
    pool: &Pool,
    envelope: &CommandEnvelope,
    token: &LeaseToken,
    reason: &DeadReason,
) -> Result<AckOutcome> {
    match pool.queue.dead_letter(token, reason.clone()).await {
        Err(LaneError::Distributed(DistributedError::Unsupported { .. })) => {
            let result = CommandResult {
                command_id: envelope.id.clone(),
                result: Err(reason.error().to_owned()),
                worker_id: pool.queue.worker_id().clone(),
                duration_ms: 0,
            };
            pool.queue.ack(token, result).await
        }
        told => told,
    }
}

/// Itself, if it is to be told again.
fn settled(pool: &Pool, told: Told, outcome: Result<AckOutcome>) -> Option<Told> {
    let is_transient = match &outcome {
        Err(LaneError::Distributed(error)) => error.is_transient(),
        Err(LaneError::Panicked(_) | LaneError::QueueError(_)) => true,
        _ => false,
    };
    // Until its lease is lost, which ends it.
    if is_transient && told.held.is_leased() {
        return Some(told);
    }
    pool.is_over(told, &outcome);
    None
}
