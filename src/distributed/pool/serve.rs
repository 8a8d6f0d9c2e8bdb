//! One partition: claims as many commands as there is room for, and puts them into their lanes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_lite::FutureExt as _;

use super::commands::{ByFunction, Delivered, Delivery};
use super::held::Held;
use super::rooms::Room;
use super::settle::{self, Ending};
use super::{Pool, Target, contained};
use crate::clock::{Clock, Tick};
use crate::distributed::{DeadReason, Leased};
use crate::error::LaneError;
use crate::executor::sleep;
use crate::queue::{Command, Lane, PartitionId, SubmitOptions};

/// How long one claim waits for commands: a pool that stops waits for it. It can not be given up, since that may leave commands
/// leased that nobody knows of.
const WAIT: Duration = Duration::from_millis(500);
/// The longest rest between two claims in vain, of a queue that does not wait by itself.
const REST_MAX: Duration = Duration::from_millis(100);
/// The longest rest after an error.
const TROUBLE_MAX: Duration = Duration::from_secs(2);

pub(super) async fn serve(pool: Arc<Pool>, partition: PartitionId) {
    let _served = Served(Arc::clone(&pool));
    let clock = Clock::system();
    let mut in_vain = 0;
    let mut errors = 0;
    while !pool.is_stopping() {
        // Who waits for commands to come takes one place in each lane, and leaves the others to other partitions.
        let waits = in_vain > 0;
        let Some(mut room) = pool.rooms.wait(waits, || !pool.is_stopping()).await else { break };
        let called = clock.now();
        let claim = room.claim(pool.takes_any_lane()).lease(pool.lease);
        let claim = if waits { claim.wait(WAIT) } else { claim };
        match contained(pool.queue.dequeue_leased(partition, claim)).await {
            Ok(taken) => {
                errors = 0;
                in_vain = if taken.is_empty() { in_vain + 1 } else { 0 };
                for leased in taken {
                    begin(&pool, leased, &mut room, called);
                }
                drop(room);
                // A queue that waits has done so.
                if waits && in_vain > 0 && clock.now().since(called) < WAIT / 2 {
                    pool.rest(Duration::from_millis(1), in_vain, REST_MAX).await;
                }
            }
            Err(error) => {
                drop(room);
                if errors == 0 {
                    tracing::warn!(partition, %error, "no commands can be taken from a distributed queue: it is tried again");
                }
                errors += 1;
                pool.rest(Duration::from_millis(20), errors, TROUBLE_MAX).await;
            }
        }
    }
}

/// A partition is served until this is dropped, whatever happens.
struct Served(Arc<Pool>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify(usize::MAX);
    }
}

/// Puts a command into its lane.
fn begin(pool: &Arc<Pool>, leased: Leased, room: &mut Room<'_>, called: Tick) {
    pool.counts.claimed.fetch_add(1, Ordering::Relaxed);
    pool.counts.in_hand.fetch_add(1, Ordering::AcqRel);
    let held = Held::new(leased.token.clone(), leased.lease, called);
    let registered = pool.leases.add(&held);
    let lane_id = (!pool.takes_any_lane()).then_some(leased.envelope.lane_id.as_str());
    let ending = match (room.enter(lane_id), pool.make(&leased)) {
        // A claim that waited may bring what this pool has just given back.
        _ if pool.is_stopping() => Some(Ending::Release),
        (None, _) => Some(Ending::Release),
        (Some(_), Err(problem)) => Some(Ending::Dead(DeadReason::Undecodable(problem))),
        (Some(lane), Ok(command)) => submit(&lane, command, &leased, &held).err(),
    };
    let pool = Arc::clone(pool);
    let executor = pool.executor.clone();
    executor.spawn(0, settle::supervise(pool, leased.envelope, held, registered, ending)).detach();
}

fn submit(lane: &Lane, command: Box<dyn Command>, leased: &Leased, held: &Arc<Held>) -> Result<(), Ending> {
    let delivery = Arc::new(Delivery::of(leased));
    let mut options = SubmitOptions::new().detached();
    if let Some(parent) = leased.headers.get("traceparent").and_then(|parent| parent.parse().ok()) {
        options = options.trace_parent(parent);
    }
    let submitted = lane.try_submit_with(Box::new(Delivered { command, delivery, _gone: held.guard() }), options);
    match submitted.map_err(|rejected| rejected.error) {
        Ok(ticket) => {
            held.set_ticket(ticket);
            Ok(())
        }
        // There is no room, or no more: others may have it.
        Err(LaneError::LaneFull { .. } | LaneError::ShutdownInProgress | LaneError::Shed) => Err(Ending::Release),
        Err(error) => Err(Ending::Dead(DeadReason::Failed(error.to_string()))),
    }
}

impl Pool {
    pub(super) fn takes_any_lane(&self) -> bool {
        matches!(self.target, Target::Function { .. })
    }

    fn make(&self, leased: &Leased) -> Result<Box<dyn Command>, String> {
        match &self.target {
            Target::Lanes { commands } => commands.make(leased),
            Target::Function { run, .. } => {
                Ok(Box::new(ByFunction { run: Arc::clone(run), envelope: leased.envelope.clone() }))
            }
        }
    }

    /// Rests, longer each time, unless the pool stops.
    pub(super) async fn rest(&self, first: Duration, times: u32, most: Duration) {
        let rest = first.saturating_mul(1 << times.saturating_sub(1).min(16)).min(most);
        let listener = self.changed.listen();
        if !self.is_stopping() {
            listener.or(async { sleep(rest).await }).await;
        }
    }
}
