//! How many commands each lane can start now. What is claimed for a lane takes its room until it stands in the lane itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;

use crate::distributed::Claim;
use crate::executor::sleep;
use crate::queue::{CommandQueue, Lane};

/// Commands that are claimed at a time.
const BATCH_MAX: usize = 128;

/// How often lanes are looked at that have no room: nobody tells that a lane goes on, or may run more.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) struct Rooms {
    /// Whose lanes they are.
    queue: Arc<CommandQueue>,
    /// The best priority first.
    lanes: Vec<Lane>,
    /// Of each lane: commands that may come.
    taken: Mutex<Vec<usize>>,
    changed: Event,
}

/// Room for some commands. Dropped, what is left of it is free again.
pub(super) struct Room<'a> {
    rooms: &'a Rooms,
    /// Of each lane.
    left: Vec<usize>,
}

impl Rooms {
    pub(super) fn new(queue: Arc<CommandQueue>, lanes: Vec<Lane>) -> Self {
        let taken = Mutex::new(vec![0; lanes.len()]);
        Self { queue, lanes, taken, changed: Event::new() }
    }

    /// Takes all the room that there is; none if there is none.
    fn take(&self) -> Option<Room<'_>> {
        let mut taken = self.lock();
        let left = self.free(&taken);
        taken.iter_mut().zip(&left).for_each(|(taken, left)| *taken += left);
        drop(taken);
        // Made only if there is some: dropped, it gives back.
        left.iter().any(|left| *left > 0).then(|| Room { rooms: self, left })
    }

    /// Of each lane: how many may be claimed for it.
    fn free(&self, taken: &[usize]) -> Vec<usize> {
        let free = |(lane, taken): (&Lane, &usize)| lane.free_permits().saturating_sub(*taken).min(BATCH_MAX);
        self.lanes.iter().zip(taken).map(free).collect()
    }

    /// Waits until there is some, or it is not wanted any more.
    pub(super) async fn wait(&self, wanted: impl Fn() -> bool) -> Option<Room<'_>> {
        while wanted() {
            // Listened before it is looked at: so what becomes free meanwhile is not missed.
            let (changed, vacancy) = (self.changed.listen(), self.queue.vacancy().listen());
            if let Some(room) = self.take() {
                return Some(room);
            }
            changed.or(vacancy).or(async { sleep(LOOK_EVERY).await }).await;
        }
        None
    }

    /// What a partition is to wait for that has nothing: one command, of a lane that has room now. That takes no room while it
    /// waits, which others may need: who gets it asks for room then.
    pub(super) fn claim_one(&self, of_any_lane: bool) -> Option<Claim> {
        let free = self.free(&self.lock());
        if free.iter().all(|free| *free == 0) {
            return None;
        }
        Some(self.claim(1, &free, of_any_lane))
    }

    fn claim(&self, max: usize, of_each: &[usize], of_any_lane: bool) -> Claim {
        let claim = Claim::new(max.min(BATCH_MAX));
        if of_any_lane {
            return claim;
        }
        let lanes = self.lanes.iter().zip(of_each).filter(|(_, left)| **left > 0);
        lanes.fold(claim, |claim, (lane, left)| claim.lane(lane.id(), *left))
    }

    /// Room for one command of this lane, if there is some; of the first one if there is but one, for all.
    pub(super) fn take_one(&self, lane_id: Option<&str>) -> Option<Room<'_>> {
        let at = self.position(lane_id)?;
        let mut taken = self.lock();
        if self.lanes[at].free_permits() <= taken[at] {
            return None;
        }
        taken[at] += 1;
        drop(taken);
        let mut left = vec![0; self.lanes.len()];
        left[at] = 1;
        Some(Room { rooms: self, left })
    }

    fn position(&self, lane_id: Option<&str>) -> Option<usize> {
        self.lanes.iter().position(|lane| lane_id.is_none_or(|id| lane.id() == id))
    }

    /// No lane will ever have room again: their queue is gone, or stops.
    pub(super) fn are_closed(&self) -> bool {
        self.lanes.iter().all(Lane::is_closed)
    }

    /// There may be more room than before.
    pub(super) fn tell(&self) {
        self.changed.notify(usize::MAX);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room<'_> {
    /// What to claim: in any lane if there is but one, and it is for all.
    pub(super) fn claim(&self, of_any_lane: bool) -> Claim {
        self.rooms.claim(self.left.iter().sum(), &self.left, of_any_lane)
    }

    /// The lane of a command that has come, which stands in it from now on; none if it is not here.
    pub(super) fn enter(&mut self, lane_id: Option<&str>) -> Option<Lane> {
        let at = self.rooms.position(lane_id)?;
        if self.left[at] > 0 {
            self.left[at] -= 1;
            self.rooms.lock()[at] -= 1;
        }
        Some(self.rooms.lanes[at].clone())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.left.iter().all(|left| *left == 0) {
            return;
        }
        let mut taken = self.rooms.lock();
        taken.iter_mut().zip(&self.left).for_each(|(taken, left)| *taken -= left);
        drop(taken);
        self.rooms.tell();
    }
}
