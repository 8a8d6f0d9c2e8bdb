//! One partition: claims as many commands as there is room for, and puts them into their lanes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_lite::FutureExt as _;

use super::commands::{ByFunction, Delivered, Delivery};
use super::held::Held;
use super::settle::{self, Ending, Taken};
use super::{InHand, Pool, Target, contained};
use crate::clock::{Clock, Tick};
use crate::distributed::{DeadReason, Leased};
use crate::error::{LaneError, Result};
use crate::executor::{sleep, yield_now};
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
    let (mut in_vain, mut errors) = (0, 0);
    while pool.takes() {
        if pool.rooms.are_closed() {
            tracing::warn!(partition, "the queue of all lanes has stopped: no more commands are taken for it");
            return;
        }
        let claimed = match in_vain {
            0 => claim_all(&pool, partition).await,
            _ => wait_for_one(&pool, partition, in_vain).await,
        };
        match claimed {
            Ok(many) => {
                errors = 0;
                in_vain = if many == 0 { in_vain + 1 } else { 0 };
            }
            Err(error) => {
                if errors == 0 {
                    tracing::warn!(partition, %error, "no commands can be taken from a distributed queue: it is tried again");
                }
                errors += 1;
                pool.rest(Duration::from_millis(20), errors, TROUBLE_MAX).await;
            }
        }
        // Other partitions want room, too.
        yield_now().await;
    }
}

/// Claims as many commands as there is room for; how many came.
async fn claim_all(pool: &Arc<Pool>, partition: PartitionId) -> Result<usize> {
    let Some(mut room) = pool.rooms.wait(|| pool.takes()).await else { return Ok(0) };
    let called = Clock::system().now();
    let claim = room.claim(pool.takes_any_lane()).lease(pool.lease);
    let taken = contained(pool.queue.dequeue_leased(partition, claim)).await?;
    let many = taken.len();
    for leased in taken {
        let lane = room.enter(pool.lane_of(&leased));
        begin(pool, leased, lane, called);
    }
    Ok(many)
}

/// Waits for one command, without taking room meanwhile: other partitions may need it. Whether one came.
async fn wait_for_one(pool: &Arc<Pool>, partition: PartitionId, in_vain: u32) -> Result<usize> {
    let Some(claim) = pool.rooms.claim_one(pool.takes_any_lane()) else {
        drop(pool.rooms.wait(|| pool.takes()).await);
        return Ok(0);
    };
    let clock = Clock::system();
    let called = clock.now();
    let taken = contained(pool.queue.dequeue_leased(partition, claim.lease(pool.lease).wait(WAIT))).await?;
    let many = taken.len();
    for leased in taken {
        // Without room, since others were faster, it is given back, and keeps its place.
        let lane = pool.rooms.take_one(pool.lane_of(&leased)).and_then(|mut room| room.enter(pool.lane_of(&leased)));
        begin(pool, leased, lane, called);
    }
    // A queue that waits has done so.
    if many == 0 && clock.now().since(called) < WAIT / 2 {
        pool.rest(Duration::from_millis(1), in_vain, REST_MAX).await;
    }
    Ok(many)
}

/// A partition is served until this is dropped, whatever happens.
struct Served(Arc<Pool>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify(usize::MAX);
    }
}

/// Puts a command into its lane; without one, it is given back.
fn begin(pool: &Arc<Pool>, leased: Leased, lane: Option<Lane>, called: Tick) {
    let hand = InHand::new(pool);
    let held = Held::new(leased.token.clone(), leased.lease, called);
    let registered = pool.leases.add(&held);
    let ending = match lane {
        // A claim that waited may bring what this pool has just given back.
        Some(lane) if pool.takes() => match pool.make(&leased) {
            Ok(command) => submit(&lane, command, &leased, &held).err(),
            Err(problem) => Some(Ending::Dead(DeadReason::Undecodable(problem))),
        },
        _ => Some(Ending::Release),
    };
    let taken = Taken { envelope: leased.envelope, held, registered, hand };
    match ending {
        Some(ending) => pool.outbox.put(taken, ending),
        // Also when the executor has begun to drain since the command was submitted: it drains that, too.
        None => pool.executor.spawn_from_task(0, settle::supervise(Arc::clone(pool), taken)).detach(),
    }
}

fn submit(lane: &Lane, command: Box<dyn Command>, leased: &Leased, held: &Arc<Held>) -> Result<(), Ending> {
    let delivery = Arc::new(Delivery::of(leased));
    let mut options = SubmitOptions::new().detached();
    if let Some(parent) = leased.headers.get("traceparent").and_then(|parent| parent.parse().ok()) {
        options = options.trace_parent(parent);
    }
    let submitted = lane.try_submit_with(Box::new(Delivered { command, delivery, guard: held.guard() }), options);
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
    /// Whether it takes more commands.
    pub(super) fn takes(&self) -> bool {
        !self.is_stopping() && self.executor.is_open()
    }

    /// Whether lanes are not asked for: there is but one, or the queue can not choose.
    fn takes_any_lane(&self) -> bool {
        self.is_by_function() || !self.queue.capabilities().leases
    }

    fn is_by_function(&self) -> bool {
        matches!(self.target, Target::Function(_))
    }

    /// The lane that a command goes to; none: to the only one.
    fn lane_of<'a>(&self, leased: &'a Leased) -> Option<&'a str> {
        (!self.is_by_function()).then_some(leased.envelope.lane_id.as_str())
    }

    fn make(&self, leased: &Leased) -> Result<Box<dyn Command>, String> {
        match &self.target {
            Target::Lanes(commands) => commands.make(leased),
            Target::Function(run) => {
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
