//! Groups of workers: the general ones, which run everything, and those that are reserved for the best priorities.
//!
//! Each group has an idle word of its own: that somebody searches is no help to work which it may not take. Whoever
//! publishes work asks the reserved group first, for what that may take; if all of it are at work, and for everything else,
//! the general group. So each published item is the duty of one group that may take it, within which `park` holds. Never:
//! published work waits while a worker that may take it sleeps and none that may take it searches.
//! `park.README.md` argues it; `loom-tests/park.rs` tries to break it.

use std::ops::Range;

use super::park::{Idle, Notified};

#[derive(Debug)]
pub(crate) struct Groups {
    general: Idle,
    reserved: Idle,
    /// Priorities that the reserved workers take; none if there are no such workers.
    allowed: u64,
    /// The reserved workers are the last ones; spares come after them, and are general.
    members: Range<usize>,
}

impl Groups {
    /// `reserved` of `workers` take only the priorities `allowed`.
    pub(crate) fn new(workers: usize, reserved: usize, allowed: u64) -> Self {
        let allowed = if reserved == 0 { 0 } else { allowed };
        Self { general: Idle::new(), reserved: Idle::new(), allowed, members: workers - reserved..workers }
    }

    /// The idle word of a worker's group.
    pub(crate) fn idle(&self, worker: usize) -> &Idle {
        if self.members.contains(&worker) { &self.reserved } else { &self.general }
    }

    /// The priorities that a worker takes.
    pub(crate) fn allowed(&self, worker: usize) -> u64 {
        if self.members.contains(&worker) { self.allowed } else { u64::MAX }
    }

    /// The general workers, without the spares.
    pub(crate) fn general(&self) -> Range<usize> {
        0..self.members.start
    }

    /// The reserved workers.
    pub(crate) fn reserved(&self) -> Range<usize> {
        self.members.clone()
    }

    /// Called after publishing work of these priorities: claims those who are to look for it, unless somebody searches who
    /// will find it. The caller unparks whom `claimed` gets, at most one of each group.
    pub(crate) fn notify(&self, priorities: u64, mut claimed: impl FnMut(usize)) {
        let mut rest = priorities;
        if rest & self.allowed != 0 {
            let notified = self.reserved.notify();
            if let Notified::Claimed(worker) = notified {
                claimed(worker);
            }
            if notified != Notified::Nobody {
                rest &= !self.allowed;
            }
        }
        if rest != 0
            && let Notified::Claimed(worker) = self.general.notify()
        {
            claimed(worker);
        }
    }

    /// Whether [`Groups::notify`] would wake nobody now: a cheap, possibly stale answer for the owner of local work, who asks
    /// again at each dispatch.
    pub(crate) fn nobody_to_wake(&self, priorities: u64) -> bool {
        let mut rest = priorities;
        if rest & self.allowed != 0 {
            match self.reserved.outlook() {
                Notified::Claimed(_) => return false,
                Notified::Covered => rest &= !self.allowed,
                Notified::Nobody => {}
            }
        }
        rest == 0 || self.general.nobody_to_wake()
    }

    /// A sleeper that may take work of this priority, if there is one: a hint for where to put an item. May be stale, and is
    /// never a spare.
    pub(crate) fn sleeper_hint(&self, priority: u8) -> Option<usize> {
        let may = self.allowed & 1 << priority != 0;
        let reserved = may.then(|| self.reserved.sleeper_hint(self.reserved())).flatten();
        reserved.or_else(|| self.general.sleeper_hint(self.general()))
    }

    /// Whether all workers sleep; spares do not count.
    pub(crate) fn all_asleep(&self) -> bool {
        self.general.all_asleep(self.general()) && self.reserved.all_asleep(self.reserved())
    }
}
