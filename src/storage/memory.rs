//! A store in memory: what the trait means, in as little code as that takes. Tests compare others with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{
    CRASHES_KEPT, Change, Durability, LOST_MAX, Recovery, StartMark, Storage, StorageCapabilities, StoredCommand,
    StoredCommandId, StoredDeadLetter, StoredResult,
};
use crate::clock::wall_now;
use crate::error::{Result, StorageError};

/// Keeps commands for as long as it lives: for tests, and to see what a queue stores. Everything is as durable as it gets at
/// once. Clones share what is kept.
///
/// [`MemoryStorage::after_crash`] is what a process would find that opens the store after this one was killed.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    commands: HashMap<StoredCommandId, StoredCommand>,
    /// By their place.
    order: BTreeSet<(u64, StoredCommandId)>,
    letters: Vec<StoredDeadLetter>,
    results: BTreeMap<String, StoredResult>,
    marks: BTreeMap<u64, StoredCommandId>,
    last_mark: u64,
    next_sequence: u64,
    /// A queue has it.
    taken: bool,
    closed: bool,
    /// Nobody is to be charged.
    finished: bool,
    /// Its last process ended without closing it.
    unclean: bool,
    unclean_ends: Vec<DateTime<Utc>>,
}

impl MemoryStorage {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of what is kept now, as if the process had been killed now.
    #[must_use]
    pub fn after_crash(&self) -> Self {
        let mut kept = self.lock().clone();
        kept.unclean = !kept.finished;
        (kept.taken, kept.closed) = (false, false);
        Self { kept: Arc::new(Mutex::new(kept)) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing under this lock can panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, changes: impl IntoIterator<Item = Change>) -> Result<()> {
        let mut kept = self.lock();
        if kept.closed {
            return Err(StorageError::Closed.into());
        }
        changes.into_iter().for_each(|change| kept.make(change));
        Ok(())
    }
}

impl Kept {
    fn make(&mut self, change: Change) {
        match change {
            Change::Save(command) => self.save(*command),
            Change::Attempted { id, retry_count, at } => {
                if let Some(command) = self.commands.get_mut(&id) {
                    command.retry_count = retry_count;
                    command.last_attempt_at = Some(at);
                }
            }
            Change::Remove { id, result } => {
                self.remove(&id);
                if let Some(result) = result {
                    self.results.insert(result.key.clone(), *result);
                }
            }
            Change::GiveUp(letter) => {
                self.remove(&letter.command_id);
                self.letters.push(*letter);
            }
            Change::Replay(command) => {
                self.letters.retain(|letter| letter.command_id != command.id);
                self.save(*command);
            }
            Change::SaveDeadLetter(letter) => self.letters.push(*letter),
            Change::RemoveDeadLetters { command_id } => self.letters.retain(|letter| letter.command_id != command_id),
            Change::RemoveResult { key } => _ = self.results.remove(&key),
        }
    }

    fn save(&mut self, command: StoredCommand) {
        self.remove(&command.id);
        self.next_sequence = self.next_sequence.max(command.sequence.saturating_add(1));
        self.order.insert((command.sequence, command.id.clone()));
        self.commands.insert(command.id.clone(), command);
    }

    fn remove(&mut self, id: &str) {
        if let Some(command) = self.commands.remove(id) {
            self.order.remove(&(command.sequence, command.id));
        }
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.change([Change::Save(Box::new(command))])
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        Ok(self.lock().commands.values().cloned().collect())
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.change([Change::Remove { id: id.to_owned(), result: None }])
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        self.change([Change::SaveDeadLetter(Box::new(letter))])
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        Ok(self.lock().letters.clone())
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.lock().letters.clear();
        Ok(())
    }

    async fn clear_all(&self) -> Result<()> {
        let mut kept = self.lock();
        kept.commands.clear();
        kept.order.clear();
        kept.letters.clear();
        kept.results.clear();
        Ok(())
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { atomic: true, attempts: true, start_marks: true, results_and_letters: true }
    }

    async fn apply(&self, changes: Vec<Change>, _durability: Durability) -> Result<()> {
        self.change(changes)
    }

    async fn recover(&self) -> Result<Recovery> {
        let mut kept = self.lock();
        if std::mem::replace(&mut kept.taken, true) {
            return Err(StorageError::InUse.into());
        }
        kept.finished = false;
        let now = wall_now();
        let marked = std::mem::take(&mut kept.marks);
        let unclean = std::mem::take(&mut kept.unclean);
        if unclean {
            kept.next_sequence = kept.next_sequence.saturating_add(LOST_MAX);
            push_bounded(&mut kept.unclean_ends, now);
            // Once each, however many of its attempts were marked.
            for id in marked.into_values().collect::<BTreeSet<_>>() {
                if let Some(command) = kept.commands.get_mut(&id) {
                    push_bounded(&mut command.crashes, now);
                }
            }
        }
        Ok(Recovery {
            unclean,
            unclean_ends: kept.unclean_ends.clone(),
            results: kept.results.values().cloned().collect(),
            next_sequence: kept.next_sequence,
        })
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        let kept = self.lock();
        let place = |command: &StoredCommand| (command.sequence, command.id.clone());
        let behind = (after.map_or(Bound::Unbounded, |after| Bound::Excluded(place(after))), Bound::Unbounded);
        Ok(kept.order.range(behind).take(limit).filter_map(|(_, id)| kept.commands.get(id).cloned()).collect())
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        let mut kept = self.lock();
        kept.last_mark += 1;
        let mark = kept.last_mark;
        kept.marks.insert(mark, id.to_owned());
        Some(StartMark(mark))
    }

    fn unmark(&self, StartMark(mark): StartMark) {
        self.lock().marks.remove(&mark);
    }

    async fn finish(&self) -> Result<()> {
        let mut kept = self.lock();
        (kept.finished, kept.taken) = (true, false);
        kept.marks.clear();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.finish().await?;
        self.lock().closed = true;
        Ok(())
    }
}

fn push_bounded(history: &mut Vec<DateTime<Utc>>, at: DateTime<Utc>) {
    if history.len() == CRASHES_KEPT {
        history.remove(0);
    }
    history.push(at);
}
