//! The line of a lane: what waits for a permit, in the order in which it is to be admitted.
//!
//! Plain commands go through a lock-free queue: first in, first out. What has an order of its own (a retry that comes
//! back to its place, a priority of its own, what the rate limit refused) stands in an ordered map behind a lock, which
//! nobody takes while the map is empty: a plain lane never does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_queue::SegQueue;

use super::Priority;
use super::acquire::Grant;
use super::keys::Key;
use crate::executor::Handle;
use crate::limit::gate::Waiting;

/// Somebody in a line. It may be dead: taken from elsewhere, or ended.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) waiter: Waiter,
    /// Boxed: most have none, and there may be millions of entries.
    terms: Option<Box<Terms>>,
}

/// How an entry differs from a plain one.
#[derive(Debug)]
struct Terms {
    place: Option<Place>,
    /// What it takes of the rate limit.
    cost: u32,
}

#[derive(Debug)]
pub(super) enum Waiter {
    Command(Handle),
    /// The next command of a key.
    Key(Box<Key>),
    /// A host that runs the work itself.
    Host(Arc<Grant>),
}

/// An order of its own: better priorities first, then in the order of acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: Priority,
    pub(super) sequence: u64,
    /// Tells entries of one command apart: of a turn before, a dead one may still be there.
    pub(super) turn: u32,
}

impl Entry {
    /// One that is admitted in the order of submission.
    pub(super) const fn plain(waiter: Waiter) -> Self {
        Self { waiter, terms: None }
    }

    pub(super) fn new(waiter: Waiter, place: Option<Place>, cost: u32) -> Self {
        let is_plain = place.is_none() && cost == 1;
        Self { waiter, terms: (!is_plain).then(|| Box::new(Terms { place, cost })) }
    }

    /// The next command of a key.
    pub(super) fn key(key: &Key) -> Self {
        Self::plain(Waiter::Key(Box::new(key.clone())))
    }

    /// What it takes of the rate limit.
    pub(super) fn cost(&self) -> u32 {
        self.terms.as_ref().map_or(1, |terms| terms.cost)
    }

    /// Whether it may still be admitted.
    pub(super) fn is_alive(&self) -> bool {
        match &self.waiter {
            Waiter::Command(handle) => handle.meta().life.is_queued(),
            Waiter::Host(grant) => grant.is_waiting(),
            Waiter::Key(_) => true,
        }
    }
}

/// Accepted commands are numbered from here; what the rate limit refused comes before all of them.
const FIRST_SEQUENCE: u64 = 1 << 48;

#[derive(Debug)]
pub(super) struct Line {
    priority: Priority,
    /// Made for the first entry: a lane that never fills costs little, and there may be many lanes.
    fifo: OnceLock<Box<SegQueue<Entry>>>,
    ordered: Mutex<BTreeMap<Place, Entry>>,
    /// Entries in `ordered`. Written under its lock.
    in_order: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Line {
    pub(super) fn new(priority: Priority) -> Self {
        Self {
            priority,
            fifo: OnceLock::new(),
            ordered: Mutex::default(),
            in_order: AtomicUsize::new(0),
            accepted: AtomicU64::new(FIRST_SEQUENCE),
            refused: AtomicU64::new(0),
        }
    }

    /// A number for a command that may need its order of acceptance later.
    pub(super) fn next_sequence(&self) -> u64 {
        self.accepted.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts what was refused at the head of its priority, or where it was.
    pub(super) fn put_back(&self, mut entry: Entry) {
        self.place_first(&mut entry);
        self.push(entry);
    }

    /// Gives an entry that was taken out its place at the head of its priority, or where it was.
    pub(super) fn place_first(&self, entry: &mut Entry) {
        let terms = entry.terms.get_or_insert_with(|| Box::new(Terms { place: None, cost: 1 }));
        terms.place.get_or_insert_with(|| {
            let sequence = self.refused.fetch_add(1, Ordering::Relaxed);
            Place { priority: self.priority, sequence, turn: 0 }
        });
    }

    /// Takes out an entry of the worst priority, if that is worse than `than`: the one that would be admitted last, but of
    /// those in the order of submission the first.
    pub(super) fn pop_worst(&self, than: Priority) -> Option<Entry> {
        let worse_than = |than| self.pop_last(than);
        worse_than(than.max(self.priority)).or_else(|| {
            let plain = (self.priority > than).then(|| self.fifo.get()?.pop()).flatten();
            plain.or_else(|| worse_than(than))
        })
    }

    fn pop_last(&self, than: Priority) -> Option<Entry> {
        let mut ordered = self.lock();
        let worst = ordered.last_entry().filter(|worst| worst.key().priority > than)?;
        let entry = worst.remove();
        self.in_order.store(ordered.len(), Ordering::Release);
        Some(entry)
    }

    fn pop_ordered(&self, at_most: Priority) -> Option<Entry> {
        if self.in_order.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut ordered = self.lock();
        let first = ordered.first_entry().filter(|first| first.key().priority <= at_most)?;
        let entry = first.remove();
        self.in_order.store(ordered.len(), Ordering::Release);
        Some(entry)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Entry>> {
        // Nothing under this lock can panic half-way.
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<Entry> for Line {
    fn push(&self, entry: Entry) {
        match entry.terms.as_ref().and_then(|terms| terms.place) {
            None => self.fifo.get_or_init(Box::default).push(entry),
            Some(place) => {
                let mut ordered = self.lock();
                let before = ordered.insert(place, entry);
                debug_assert!(before.is_none(), "two entries at {place:?}");
                self.in_order.store(ordered.len(), Ordering::Release);
            }
        }
    }

    fn pop(&self) -> Option<Entry> {
        self.pop_ordered(self.priority).or_else(|| self.fifo.get()?.pop()).or_else(|| self.pop_ordered(Priority::MAX))
    }

    fn is_empty(&self) -> bool {
        self.in_order.load(Ordering::Acquire) == 0 && self.fifo.get().is_none_or(|fifo| fifo.is_empty())
    }
}
