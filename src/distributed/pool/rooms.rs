//! How many commands each lane can start now. What is claimed for a lane takes its room until it stands in the lane itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;

use crate::distributed::Claim;
use crate::executor::sleep;
use crate::queue::Lane;

/// Commands that are claimed at a time.
const BATCH_MAX: usize = 128;

/// How often lanes are looked at that others have filled: nobody tells of their ends here.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) struct Rooms {
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
    pub(super) fn new(lanes: Vec<Lane>) -> Self {
        let taken = Mutex::new(vec![0; lanes.len()]);
        Self { lanes, taken, changed: Event::new() }
    }

    /// The room that there is, or one place in each lane; none if there is none.
    fn take(&self, one_each: bool) -> Option<Room<'_>> {
        let mut taken = self.lock();
        let mut rest = BATCH_MAX;
        let left: Vec<_> = self
            .lanes
            .iter()
            .zip(taken.iter_mut())
            .map(|(lane, taken)| {
                let free = lane.free_permits().saturating_sub(*taken).min(rest);
                let free = if one_each { free.min(1) } else { free };
                *taken += free;
                rest -= free;
                free
            })
            .collect();
        drop(taken);
        // Made only if there is some: dropped, it gives back.
        (rest < BATCH_MAX).then(|| Room { rooms: self, left })
    }

    /// Waits until there is some, or it is not wanted any more.
    pub(super) async fn wait(&self, one_each: bool, wanted: impl Fn() -> bool) -> Option<Room<'_>> {
        while wanted() {
            // Listened before it is looked at: so what becomes free meanwhile is not missed.
            let listener = self.changed.listen();
            if let Some(room) = self.take(one_each) {
                return Some(room);
            }
            listener.or(async { sleep(LOOK_EVERY).await }).await;
        }
        None
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
        let claim = Claim::new(self.left.iter().sum());
        if of_any_lane {
            return claim;
        }
        let lanes = self.rooms.lanes.iter().zip(&self.left).filter(|(_, left)| **left > 0);
        lanes.fold(claim, |claim, (lane, left)| claim.lane(lane.id(), *left))
    }

    /// The lane of a command that has come, which stands in it from now on; none if it is not here.
    pub(super) fn enter(&mut self, lane_id: Option<&str>) -> Option<Lane> {
        let at = self.rooms.lanes.iter().position(|lane| lane_id.is_none_or(|id| lane.id() == id))?;
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
