//! The floor: priorities that must not starve, however much better work there is.
//!
//! Strict priority alone lets better work keep everything else out. For a priority with a floor, a worker that leaves such
//! work behind has the watch look every [`LOOK`]; what waits and was not served since the last look is marked as due, and
//! the next worker that dispatches takes one task of it first. So such work gets a start within two looks and one poll. While
//! nothing is left behind this costs a dispatch two loads of words that nobody writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::shared::Shared;
use super::task::Runnable;
use super::worker::{Local, priorities};
use crate::clock::{Clock, Tick};

/// How often the watch looks while work with a floor waits behind better work.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(crate) struct Floor {
    /// Priorities with a floor. Bits are only added: a lane that gave its floor up costs a look.
    floored: AtomicU64,
    /// Those served since the last look.
    served: AtomicU64,
    /// Those that are to be served next.
    due: AtomicU64,
    /// The watch looks.
    watched: AtomicBool,
}

impl Shared {
    /// Gives a priority a floor.
    pub(crate) fn floor(&self, priority: u8, floored: bool) {
        let bit = u64::from(floored) << priority;
        if self.floor.floored.load(Ordering::Relaxed) & bit != bit {
            self.floor.floored.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Called by the watch: marks what starves; says when to look next.
    pub(super) fn look_at_floor(&self, now: Tick) -> Tick {
        let floor = &self.floor;
        if !floor.watched.load(Ordering::Acquire) {
            return Tick::NEVER;
        }
        let waits = |priority: &u8| self.workers.iter().any(|worker| worker.occupied(*priority));
        let floored = floor.floored.load(Ordering::Relaxed);
        let waiting = priorities(floored).filter(waits).fold(0, |mask, priority| mask | 1 << priority);
        if waiting == 0 {
            // Whoever leaves work behind from now on says so again.
            floor.due.store(0, Ordering::Relaxed);
            floor.watched.store(false, Ordering::Release);
            return Tick::NEVER;
        }
        let served = floor.served.swap(0, Ordering::Relaxed);
        floor.due.fetch_or(waiting & !served, Ordering::Relaxed);
        now.plus(LOOK)
    }
}

impl Local {
    /// A task of a priority that has starved, if there is one.
    #[inline]
    pub(super) fn take_due(&self) -> Option<Runnable> {
        let floor = &self.shared.floor;
        let due = floor.due.load(Ordering::Relaxed) & self.allowed;
        priorities(due).find_map(|priority| {
            let mine = floor.due.fetch_and(!(1 << priority), Ordering::Relaxed) & 1 << priority != 0;
            mine.then(|| self.take_of(priority)).flatten()
        })
    }

    /// Before a poll at `priority`: notes that it is served, and has the watch look if work with a floor is left behind.
    #[inline]
    pub(super) fn note_floor(&self, priority: u8) {
        let floor = &self.shared.floor;
        let floored = floor.floored.load(Ordering::Relaxed);
        if floored == 0 {
            return;
        }
        let bit = floored & 1 << priority;
        if bit != 0 && floor.served.load(Ordering::Relaxed) & bit == 0 {
            floor.served.fetch_or(bit, Ordering::Relaxed);
        }
        let worse = !((1u64 << priority) | ((1u64 << priority) - 1));
        if floored & worse & self.visible() != 0 && !floor.watched.load(Ordering::Relaxed) {
            self.watch_floor();
        }
    }

    #[cold]
    fn watch_floor(&self) {
        let floor = &self.shared.floor;
        // In a simulation, polls take no time, and nothing starves.
        if matches!(self.shared.clock, Clock::System) && !floor.watched.swap(true, Ordering::AcqRel) {
            floor.served.store(0, Ordering::Relaxed);
            self.shared.look_by(self.shared.clock.now().plus(LOOK));
        }
    }
}
