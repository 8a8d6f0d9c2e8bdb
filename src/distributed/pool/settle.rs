//! How a command has ended, and telling the queue so: in batches of what has ended while the last one was on its way.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;

use super::held::{Held, Registered, is_cancelled};
use super::{InHand, Pool, contained};
use crate::clock::Clock;
use crate::distributed::{AckOutcome, CommandEnvelope, CommandResult, DeadReason, LeaseToken, Nack};
use crate::error::{DistributedError, LaneError, Result};
use crate::executor::sleep;

/// What the queue is told at a time.
const BATCH_MAX: usize = 128;
/// The longest rest before it is told again.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// How often a queue without leases is told.
const UNLEASED_TRIES: u32 = 20;

/// What a command's end means to the queue.
#[derive(Debug)]
pub(super) enum Ending {
    Ack(CommandResult),
    /// It was not run, or not to its end.
    Release,
    Dead(DeadReason),
}

/// A command that was taken.
pub(super) struct Taken {
    pub(super) envelope: CommandEnvelope,
    pub(super) held: Arc<Held>,
    /// It is extended until the queue knows of its end.
    pub(super) registered: Registered,
    pub(super) hand: InHand,
}

/// An end that the queue is to be told of.
struct Told {
    taken: Taken,
    ending: Ending,
    /// How often it was told in vain.
    failures: u32,
}

/// Ends that the queue is to be told of.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<VecDeque<Told>>,
    arrived: Event,
}

/// Waits for the end of a command.
pub(super) async fn supervise(pool: Arc<Pool>, taken: Taken) {
    let clock = Clock::system();
    let begun = clock.now();
    let ended = taken.held.end().await;
    let took = clock.now().since(begun);
    let ending = pool.ending(&taken, ended, took);
    if matches!(ending, Ending::Release) {
        // Nobody else is to have it while it still runs here.
        taken.held.gone().await;
    }
    pool.outbox.put(taken, ending);
}

impl Pool {
    fn ending(
        &self,
        taken: &Taken,
        ended: Result<Result<serde_json::Value>, crate::queue::TicketError>,
        took: Duration,
    ) -> Ending {
        let result = match ended {
            Ok(Ok(value)) => Ok(value),
            // Its queue or this pool stops, or its executor is closed.
            Err(_) => return Ending::Release,
            Ok(Err(error)) if is_cancelled(&error) && !taken.held.has_returned_cancelled() => return Ending::Release,
            Ok(Err(error)) => Err(error.to_string()),
        };
        Ending::Ack(CommandResult {
            command_id: taken.envelope.id.clone(),
            result,
            worker_id: self.queue.worker_id().clone(),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The queue knows of it, or never will from here.
    fn is_over(&self, told: Told, outcome: &Result<AckOutcome>) {
        let Told { taken: Taken { envelope, held, registered, hand }, ending, .. } = told;
        drop(registered);
        let is_applied = matches!(outcome, Ok(AckOutcome::Applied | AckOutcome::AlreadyApplied));
        let count = match &ending {
            _ if held.is_lost() || !is_applied => &self.counts.lost,
            Ending::Release => &self.counts.released,
            Ending::Ack(CommandResult { result: Ok(_), .. }) => &self.counts.completed,
            Ending::Ack(_) | Ending::Dead(_) => &self.counts.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(AckOutcome::LeaseLost) => {
                tracing::warn!(command_id = %envelope.id, "a command has ended after its lease: others may have run it, too");
            }
            Err(error) => {
                tracing::error!(command_id = %envelope.id, %error, "a queue can not be told how a command has ended");
            }
            Ok(_) => {}
        }
        drop(hand);
    }
}

impl Outbox {
    pub(super) fn put(&self, taken: Taken, ending: Ending) {
        self.put_again(Told { taken, ending, failures: 0 });
    }

    fn put_again(&self, told: Told) {
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

/// Tells the queue of all ends, until the pool takes no more and nothing is in hand.
pub(super) async fn tell(pool: Arc<Pool>) {
    struct Telling(Arc<Pool>);
    impl Drop for Telling {
        fn drop(&mut self) {
            self.0.telling.store(false, Ordering::Release);
            self.0.changed.notify(usize::MAX);
        }
    }
    let _telling = Telling(Arc::clone(&pool));
    let mut failures = 0_u32;
    loop {
        let (arrived, changed) = (pool.outbox.arrived.listen(), pool.changed.listen());
        let group = pool.outbox.take();
        if group.is_empty() {
            let is_last = pool.serving.load(Ordering::Acquire) == 0 && pool.counts.in_hand.load(Ordering::Acquire) == 0;
            if is_last && !pool.takes() {
                return;
            }
            arrived.or(changed).await;
            continue;
        }
        let again = tell_group(&pool, group).await;
        failures = if again.is_empty() { 0 } else { failures + 1 };
        again.into_iter().for_each(|told| pool.outbox.put_again(told));
        if failures > 0 {
            sleep(Duration::from_millis(10).saturating_mul(1 << failures.min(10)).min(AGAIN_MAX)).await;
        }
    }
}

/// What is to be told again.
async fn tell_group(pool: &Pool, group: Vec<Told>) -> Vec<Told> {
    let (mut again, mut acked) = (Vec::new(), Vec::new());
    for told in group {
        let Taken { envelope, held, .. } = &told.taken;
        if held.is_lost() {
            pool.is_over(told, &Ok(AckOutcome::LeaseLost));
            continue;
        }
        let outcome = match &told.ending {
            Ending::Ack(_) => {
                acked.push(told);
                continue;
            }
            Ending::Release if held.is_leased() => contained(pool.queue.nack(&held.token, Nack::Release)).await,
            // Nobody else will bring it back.
            Ending::Release => contained(pool.queue.enqueue(envelope.clone())).await.map(|()| AckOutcome::Applied),
            Ending::Dead(reason) => contained(dead_letter(pool, envelope, &held.token, reason)).await,
        };
        again.extend(settled(pool, told, outcome));
    }
    if !acked.is_empty() {
        let results = acked.iter().filter_map(|told| match &told.ending {
            Ending::Ack(result) => Some((told.taken.held.token.clone(), result.clone())),
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

/// Itself, if it is to be told again: until the queue has heard of it, or its lease is lost.
fn settled(pool: &Pool, mut told: Told, outcome: Result<AckOutcome>) -> Option<Told> {
    use DistributedError::{Closed, InvalidEnvelope, PayloadTooLarge, Unsupported};
    let Err(error) = &outcome else {
        pool.is_over(told, &outcome);
        return None;
    };
    told.failures += 1;
    match (error, &told.ending) {
        // It has ended all the same, and is not to run again for what it returned.
        (LaneError::Distributed(PayloadTooLarge { size, limit }), Ending::Ack(_)) => {
            let error = format!("its result has {size} bytes, and the queue takes {limit}");
            told.ending = Ending::Dead(DeadReason::Failed(error));
            Some(told)
        }
        (LaneError::Distributed(Closed | Unsupported { .. } | InvalidEnvelope { .. } | PayloadTooLarge { .. }), _) => {
            pool.is_over(told, &outcome);
            None
        }
        // Without a lease, nothing ends it.
        _ if !told.taken.held.is_leased() && told.failures >= UNLEASED_TRIES => {
            pool.is_over(told, &outcome);
            None
        }
        _ => {
            if told.failures == 1 {
                tracing::warn!(command_id = %told.taken.envelope.id, %error, "a queue can not be told yet how a command has ended");
            }
            Some(told)
        }
    }
}
