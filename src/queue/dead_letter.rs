//! Dead letters: what is kept of commands that were given up, and where.
//!
//! Owns the letters and their order, oldest first. The queue stores a letter when it gives a command up; hosts look, edit,
//! remove and requeue. One mutex guards the lot: letters are rare, and under it nothing is done but moving pointers. Never
//! under the lock: a filter, the clone or the destructor of a letter, or anything else that may run code of a user. So a
//! panic there changes nothing and blocks nobody.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::LaneId;
use super::command_queue::CommandQueue;
use super::durable::{LetterStore, StoredAs};
use crate::clock::wall_now;
use crate::error::LaneError;
use crate::id::CommandId;

/// What is kept of a command that was given up.
///
/// As data (serde) it is its public fields: one that was read back can be looked at and stored, not replayed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The command, as [`Ticket::id`](crate::Ticket::id).
    pub command_id: CommandId,
    /// What [`Command::command_type`](crate::Command::command_type) said.
    pub command_type: String,
    /// The lane that it was submitted to.
    pub lane_id: LaneId,
    /// Why it was given up: the last error.
    pub error: String,
    /// Attempts made; 0 for one that never began to run.
    pub attempts: u32,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// What the command was to do, where it could say.
    pub payload: Option<serde_json::Value>,
    /// What went wrong, attempt by attempt: of many attempts the first 4 and the last 12.
    pub errors: Vec<AttemptError>,
    /// Errors between the first and the last ones that were not kept.
    pub errors_dropped: u32,
    /// When the command was accepted.
    pub accepted_at: DateTime<Utc>,
    /// How often the command was replayed from a dead letter before this one.
    pub replays: u32,
    /// In what way it was given up.
    pub reason: DeadLetterReason,
    /// The command's [tags](crate::SubmitOptions::tag).
    pub tags: Vec<String>,
    /// Runs the command again, if that can be done.
    #[serde(skip)]
    pub(super) replay: Option<Arc<dyn Replay>>,
    /// Its place among letters; 0 before it was first stored.
    #[serde(skip)]
    pub(super) slot: u64,
    /// How the store has it, if it does.
    #[serde(skip)]
    pub(super) stored: Option<StoredAs>,
}

/// What went wrong in one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptError {
    /// Which attempt; the first is 1.
    pub attempt: u32,
    /// What it returned, or panicked with.
    pub error: String,
    /// When it ended.
    pub at: DateTime<Utc>,
}

/// In what way a command was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// Its last attempt returned an error.
    Failed,
    /// Its last attempt was not done in time.
    TimedOut,
    /// Its last attempt panicked.
    Panicked,
    /// It was not started before it was too late.
    Expired,
    /// It had to make room for others.
    Shed,
    /// It was running at several unclean ends of its process, the last time alone.
    Crashed,
    /// It was stored, and can not be read.
    Undecodable,
    /// It had not started when its queue stopped: see [`StopReport`](crate::StopReport). Not kept among dead letters.
    GivenBack,
}

/// Submits the command of a dead letter again.
pub(super) trait Replay: Send + Sync {
    /// Accepted, or an error that says why not; the letter is then put back by the caller.
    fn submit(self: Arc<Self>, queue: &CommandQueue, letter: &DeadLetter) -> Result<(), LaneError>;
}

impl fmt::Debug for dyn Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replay")
    }
}

impl DeadLetter {
    /// A letter of the caller's own, about work that failed now, in one attempt. It has a new id, and all else is public
    /// to change.
    #[must_use]
    pub fn new(command_type: impl Into<String>, lane_id: impl Into<LaneId>, error: impl Into<String>) -> Self {
        let now = wall_now();
        let error = error.into();
        Self {
            command_id: CommandId::next(),
            command_type: command_type.into(),
            lane_id: lane_id.into(),
            errors: vec![AttemptError { attempt: 1, error: error.clone(), at: now }],
            error,
            attempts: 1,
            failed_at: now,
            payload: None,
            errors_dropped: 0,
            accepted_at: now,
            replays: 0,
            reason: DeadLetterReason::Failed,
            tags: Vec::new(),
            replay: None,
            slot: 0,
            stored: None,
        }
    }

    /// Whether the command can be run again: it is still there, and can be executed more than once. A closure that runs
    /// once can not, nor can a letter made by hand or read back from storage.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.replay.is_some()
    }
}

/// The errors of a command's attempts while it is still tried: the first and the last, in bounded space.
#[derive(Clone, Debug, Default)]
pub(super) struct ErrorHistory {
    errors: Vec<AttemptError>,
    dropped: u32,
}

impl ErrorHistory {
    const FIRST: usize = 4;
    const LAST: usize = 12;

    pub(super) fn record(&mut self, attempt: u32, error: &LaneError, at: DateTime<Utc>) {
        self.push(attempt, error.to_string(), at);
    }

    pub(super) fn push(&mut self, attempt: u32, error: String, at: DateTime<Utc>) {
        if self.errors.len() == Self::FIRST + Self::LAST {
            self.errors.remove(Self::FIRST);
            self.dropped = self.dropped.saturating_add(1);
        }
        self.errors.push(AttemptError { attempt, error, at });
    }

    /// The errors kept, and how many were not.
    pub(super) fn into_parts(self) -> (Vec<AttemptError>, u32) {
        (self.errors, self.dropped)
    }
}

/// Dead letters, the oldest first; a clone is another handle to the same letters.
///
/// It holds at most `max_size`: one more, and the oldest is dropped and counted as [evicted](Self::evicted). What is
/// documented as async is so as in a3s-lane, and never waits.
///
/// Filters run on a snapshot, without a lock: they may take their time, use this queue, and panic.
#[derive(Clone)]
pub struct DeadLetterQueue {
    shared: Arc<Mutex<Letters>>,
    max_size: usize,
}

#[derive(Default)]
struct Letters {
    /// By slot, ascending.
    stored: VecDeque<Arc<DeadLetter>>,
    evicted: u64,
    /// The store that has letters, too.
    store: Option<Arc<LetterStore>>,
}

impl DeadLetterQueue {
    /// Room for `max_size` letters, none of it allocated yet. With 0 nothing is kept, and every letter counts as evicted.
    #[must_use]
    pub fn new(max_size: usize) -> Self {
        Self { shared: Arc::default(), max_size }
    }

    /// Stores a letter as the newest. The oldest is evicted if there is no room. Never waits.
    pub async fn push(&self, letter: DeadLetter) {
        self.store(letter);
    }

    /// Takes the oldest letter. Never waits.
    pub async fn pop(&self) -> Option<DeadLetter> {
        let oldest = self.lock().stored.pop_front();
        oldest.map(Arc::unwrap_or_clone).inspect(|letter| self.gone([letter]))
    }

    /// Copies of all letters, the oldest first. Never waits.
    pub async fn list(&self) -> Vec<DeadLetter> {
        self.snapshot()
    }

    /// Drops all letters; they do not count as evicted. Never waits.
    pub async fn clear(&self) {
        let cleared = std::mem::take(&mut self.lock().stored);
        self.gone(cleared.iter().map(Arc::as_ref));
    }

    /// Letters stored. Never waits.
    pub async fn len(&self) -> usize {
        self.count()
    }

    /// Whether there is none. Never waits.
    pub async fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The most letters that are kept.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.max_size
    }

    /// Letters that were dropped to make room, since this queue was made.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.lock().evicted
    }

    /// Copies of all letters, the oldest first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<DeadLetter> {
        copies(&self.stored())
    }

    /// A copy of the letter about this command.
    #[must_use]
    pub fn get(&self, id: CommandId) -> Option<DeadLetter> {
        self.stored().iter().find(|letter| letter.command_id == id).map(|letter| DeadLetter::clone(letter))
    }

    /// Copies of the letters that `wanted` says yes to, the oldest first.
    #[must_use]
    pub fn filter(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        copies(&self.matching(wanted))
    }

    /// Takes the letter about this command.
    pub fn remove(&self, id: CommandId) -> Option<DeadLetter> {
        let mut first = true;
        self.take_where(|letter| letter.command_id == id && std::mem::take(&mut first)).pop()
    }

    /// Drops the letters that `unwanted` says yes to; returns how many. They do not count as evicted.
    pub fn purge(&self, unwanted: impl FnMut(&DeadLetter) -> bool) -> usize {
        let purged = self.take(self.matching(unwanted));
        self.gone(purged.iter().map(Arc::as_ref));
        purged.len()
    }

    /// Takes the letters that `wanted` says yes to, the oldest first. Each letter is given out once, however many callers
    /// want it at the same time. What can not be used after all goes back by [`DeadLetterQueue::put_back`].
    ///
    /// If `wanted` panics, nothing was taken.
    pub fn take_where(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        let taken = self.take_out(wanted);
        self.gone(&taken);
        taken
    }

    /// As [`DeadLetterQueue::take_where`], but for the store, which has them until they are replayed.
    pub(super) fn take_out(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        self.take(self.matching(wanted)).into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Puts a letter that was taken back to its place by age, changed or not. One that was never stored becomes the newest;
    /// one whose place is taken, since it is a copy or was put back before, replaces what is there. The oldest letter is
    /// evicted if there is no room: perhaps this one.
    pub fn put_back(&self, letter: DeadLetter) {
        if let Some(store) = self.store_of(&letter) {
            store.back(&letter);
        }
        self.put_in(letter);
    }

    /// As [`DeadLetterQueue::put_back`], of one that the store has.
    pub(super) fn put_in(&self, letter: DeadLetter) {
        let (evicted, _replaced) = self.insert(letter);
        self.gone(evicted.as_deref());
    }

    /// Keeps a letter of the store as the newest.
    pub(super) fn load(&self, letter: DeadLetter) {
        let evicted = self.store(letter);
        self.gone(&evicted);
    }

    /// Has a store know of stored letters that go.
    pub(super) fn keep_in(&self, store: LetterStore) {
        self.lock().store = Some(Arc::new(store));
    }

    fn store_of(&self, letter: &DeadLetter) -> Option<Arc<LetterStore>> {
        letter.stored.as_ref().and_then(|_| self.lock().store.clone())
    }

    /// Letters are gone for good: from the store, too.
    pub(super) fn gone<L: Borrow<DeadLetter>>(&self, letters: impl IntoIterator<Item = L>) {
        for letter in letters {
            if let Some(store) = self.store_of(letter.borrow()) {
                store.gone(letter.borrow());
            }
        }
    }

    /// [`DeadLetterQueue::push`]; returns the letter that was evicted, which is this one if nothing is kept.
    pub(crate) fn store(&self, mut letter: DeadLetter) -> Option<DeadLetter> {
        letter.slot = 0;
        self.insert(letter).0.map(Arc::unwrap_or_clone)
    }

    /// [`DeadLetterQueue::len`], for code that is not async.
    pub(crate) fn count(&self) -> usize {
        self.lock().stored.len()
    }

    /// How many letters there are of each lane, and the age of the oldest.
    pub(crate) fn by_lane(&self) -> HashMap<Arc<str>, (usize, Duration)> {
        let mut lanes: HashMap<Arc<str>, (usize, Duration)> = HashMap::new();
        let now = wall_now();
        // Under the lock, without references: what is evicted meanwhile is others' to drop.
        for letter in &self.lock().stored {
            let age = (now - letter.failed_at).to_std().unwrap_or_default();
            if let Some((count, oldest)) = lanes.get_mut(&*letter.lane_id) {
                *count += 1;
                *oldest = age.max(*oldest);
            } else {
                lanes.insert(letter.lane_id.as_str().into(), (1, age));
            }
        }
        lanes
    }

    /// Names the letters that clones share.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.shared) as *const () as usize
    }

    /// Returns what was evicted and what was replaced, to be dropped without the lock.
    fn insert(&self, mut letter: DeadLetter) -> (Option<Arc<DeadLetter>>, Option<Arc<DeadLetter>>) {
        /// Of all queues together, so that a letter keeps its age when it moves from one to another.
        static LAST_SLOT: AtomicU64 = AtomicU64::new(0);

        // Locked before the slot is taken, so that slots ascend in `stored`.
        let mut letters = self.lock();
        if letter.slot == 0 {
            letter.slot = LAST_SLOT.fetch_add(1, Ordering::Relaxed) + 1;
        }
        let slot = letter.slot;
        let letter = Arc::new(letter);
        match letters.stored.binary_search_by_key(&slot, |stored| stored.slot) {
            Ok(at) => (None, Some(std::mem::replace(&mut letters.stored[at], letter))),
            Err(at) => {
                letters.stored.insert(at, letter);
                let full = letters.stored.len() > self.max_size;
                let evicted = if full { letters.stored.pop_front() } else { None };
                letters.evicted += u64::from(evicted.is_some());
                (evicted, None)
            }
        }
    }

    /// The letters, as they are now.
    fn stored(&self) -> Vec<Arc<DeadLetter>> {
        self.lock().stored.iter().cloned().collect()
    }

    fn matching(&self, mut wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<Arc<DeadLetter>> {
        let mut letters = self.stored();
        letters.retain(|letter| wanted(letter));
        letters
    }

    /// Takes those of these letters that are still stored as they were seen: not taken or replaced by others since.
    fn take(&self, seen: Vec<Arc<DeadLetter>>) -> VecDeque<Arc<DeadLetter>> {
        if seen.is_empty() {
            return VecDeque::new();
        }
        // `seen` keeps its letters alive until the end: no other letter is at one of these addresses.
        let addresses: HashSet<*const DeadLetter> = seen.iter().map(Arc::as_ptr).collect();
        let mut letters = self.lock();
        let (taken, kept) = std::mem::take(&mut letters.stored)
            .into_iter()
            .partition(|letter| addresses.contains(&Arc::as_ptr(letter)));
        letters.stored = kept;
        drop(letters);
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        // Nothing panics under this lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue of this size: see [`DeadLetterQueue::new`].
impl From<usize> for DeadLetterQueue {
    fn from(max_size: usize) -> Self {
        Self::new(max_size)
    }
}

impl fmt::Debug for DeadLetterQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetterQueue")
            .field("len", &self.count())
            .field("capacity", &self.max_size)
            .field("evicted", &self.evicted())
            .finish()
    }
}

fn copies(letters: &[Arc<DeadLetter>]) -> Vec<DeadLetter> {
    letters.iter().map(|letter| DeadLetter::clone(letter)).collect()
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn of_many_errors_the_first_and_the_last_are_kept() {
        let mut history = ErrorHistory::default();
        for attempt in 1..=1000 {
            history.record(attempt, &LaneError::Other(format!("error {attempt}")), wall_now());
        }
        let (errors, dropped) = history.into_parts();
        let attempts: Vec<_> = errors.iter().map(|error| error.attempt).collect();
        assert_eq!(attempts, [1, 2, 3, 4, 989, 990, 991, 992, 993, 994, 995, 996, 997, 998, 999, 1000]);
        assert_eq!(dropped, 984);
        assert_eq!(errors[4].error, "error 989");
    }

    /// A command whose destructor uses the queue of dead letters, and panics.
    struct Hostile(DeadLetterQueue);

    impl Replay for Hostile {
        fn submit(self: Arc<Self>, _queue: &CommandQueue, _letter: &DeadLetter) -> Result<(), LaneError> {
            Ok(())
        }
    }

    impl Drop for Hostile {
        fn drop(&mut self) {
            let _ = self.0.store(DeadLetter::new("of a destructor", "lane", "error"));
            std::panic::panic_any("of a destructor");
        }
    }

    #[test]
    fn a_destructor_that_uses_the_queue_and_panics_blocks_nobody() {
        let ways: [fn(&DeadLetterQueue); 6] = [
            |letters| drop(futures_lite::future::block_on(letters.pop())),
            |letters| futures_lite::future::block_on(letters.clear()),
            |letters| assert_eq!(letters.purge(DeadLetter::is_replayable), 1),
            |letters| drop(letters.take_where(DeadLetter::is_replayable)),
            // Evicted:
            |letters| drop(letters.store(DeadLetter::new("new", "lane", "error"))),
            // Replaced:
            |letters| {
                let mut edited = letters.snapshot().remove(0);
                edited.replay = None;
                letters.put_back(edited);
            },
        ];
        for way in ways {
            let letters = DeadLetterQueue::new(1);
            let mut letter = DeadLetter::new("hostile", "lane", "error");
            letter.replay = Some(Arc::new(Hostile(letters.clone())));
            assert!(letter.is_replayable() && letters.store(letter).is_none());
            let panicked = catch_unwind(AssertUnwindSafe(|| way(&letters)));
            assert!(panicked.is_err());
            assert_eq!(letters.snapshot()[0].command_type, "of a destructor");
        }
    }

    #[test]
    fn storing_tells_what_was_evicted() {
        let letter = |name: &str| DeadLetter::new(name, "lane", "error");
        let letters = DeadLetterQueue::new(1);
        assert!(letters.store(letter("a")).is_none());
        assert_eq!(letters.store(letter("b")).map(|evicted| evicted.command_type), Some("a".into()));
        let nothing = DeadLetterQueue::new(0);
        assert_eq!(nothing.store(letter("c")).map(|evicted| evicted.command_type), Some("c".into()));
        assert_eq!((letters.evicted(), nothing.evicted(), nothing.count()), (1, 1, 0));
    }
}
