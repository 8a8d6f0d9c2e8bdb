//! The lanes of a queue by name, and all lanes of the process by number.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use arc_swap::{ArcSwap, Guard};
use slab::Slab;

use super::admission::LaneCore;
use super::lane::Lane;

/// Lanes that are found without a lock, a count or a shared write: more than most queues have.
const FIRST: usize = 8;

/// Lanes by name. Only grows; who adds one holds the queue's lock for that.
#[derive(Default)]
pub(super) struct Lanes {
    first: [OnceLock<Lane>; FIRST],
    /// Sorted by name.
    more: ArcSwap<Vec<Lane>>,
}

impl Lanes {
    #[inline]
    pub(super) fn find(&self, id: &str) -> Option<Found<'_>> {
        if let Some(lane) = self.first().find(|lane| lane.id() == id) {
            return Some(Found::First(lane));
        }
        // Without a last one of these there are no more.
        self.first[FIRST - 1].get()?;
        let more = self.more.load();
        let at = more.binary_search_by(|lane| lane.id().cmp(id)).ok()?;
        Some(Found::More(more, at))
    }

    /// By name.
    pub(super) fn all(&self) -> Vec<Lane> {
        let mut lanes: Vec<_> = self.first().chain(self.more.load().iter()).cloned().collect();
        lanes.sort_by(|a, b| a.id().cmp(b.id()));
        lanes
    }

    pub(super) fn add(&self, lane: Lane) {
        // Each is set once, in this order, by who holds the lock.
        let mut lane = lane;
        for free in &self.first {
            match free.set(lane) {
                Ok(()) => return,
                Err(back) => lane = back,
            }
        }
        let mut more = Vec::clone(&self.more.load());
        let at = more.partition_point(|other| other.id() < lane.id());
        more.insert(at, lane);
        self.more.store(Arc::new(more));
    }

    #[inline]
    fn first(&self) -> impl Iterator<Item = &Lane> {
        self.first.iter().map_while(OnceLock::get)
    }
}

/// A lane that was found.
pub(super) enum Found<'a> {
    First(&'a Lane),
    More(Guard<Arc<Vec<Lane>>>, usize),
}

impl Deref for Found<'_> {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        match self {
            Self::First(lane) => lane,
            Self::More(lanes, at) => &lanes[*at],
        }
    }
}

/// Names a lane of the process without keeping it alive or counting: every ticket has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneNumber(u32);

/// Written when a lane's first command may have to wait, and when the lane is gone; read when a command first waits for another one.
static LANES: RwLock<Slab<Weak<LaneCore>>> = RwLock::new(Slab::new());

impl LaneNumber {
    pub(super) fn assign(lane: Weak<LaneCore>) -> Self {
        let number = LANES.write().unwrap_or_else(PoisonError::into_inner).insert(lane);
        Self(u32::try_from(number).expect("under 2^32 lanes"))
    }

    /// The lane, unless it is gone. A number is given again: then it names another one.
    pub(super) fn lane(self) -> Option<Arc<LaneCore>> {
        LANES.read().unwrap_or_else(PoisonError::into_inner).get(self.0 as usize)?.upgrade()
    }

    /// As a number that is never 0.
    #[inline]
    pub(super) const fn as_owner(self) -> u32 {
        self.0 + 1
    }

    pub(super) fn give_back(self) {
        let lane = LANES.write().unwrap_or_else(PoisonError::into_inner).try_remove(self.0 as usize);
        drop(lane);
    }
}
