//! Changes that nobody refuses any more (ends, letters, replays), on their way to the store: in the order in which they were
//! told, one group at a time.
//!
//! Alone, a change is handed over at once, where it was told. If the store does not take it at once, or others are before it, it
//! stands in line, and one task hands over all that has come. Whoever wants to know asks for its number: everything below
//! `made` is stored. What the store has refused goes back to the head of the line, is *owed*, and nothing passes it: it is
//! made again when the store works, and not before. A group whose maker was dropped goes back in the same way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

use crate::error::StorageError;
use crate::storage::{Change, Durability};

#[derive(Default)]
pub(super) struct Outbox {
    line: Mutex<Line>,
    changed: Event,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Item>,
    /// Changes told so far.
    told: u64,
    /// Of those, the first ones: stored.
    made: u64,
    /// Somebody hands a group over.
    busy: bool,
    /// Why the head of the line was refused.
    refused: Option<StorageError>,
}

struct Item {
    change: Change,
    durability: Durability,
    /// It may have been stored before.
    again: bool,
}

/// The right to hand over a group. Dropped, what was not made is at the head of the line again.
pub(super) struct Group {
    outbox: Arc<Outbox>,
    changes: Vec<Item>,
    made: usize,
    refused: Option<StorageError>,
}

/// What became of a change that was told.
pub(super) enum Told {
    /// It is alone: to be handed over here and now.
    Alone(Group),
    /// It stands in line, and somebody hands it over, or it is owed.
    Waits,
}

impl Outbox {
    /// Tells of a change; its number.
    pub(super) fn tell(self: &Arc<Self>, change: Change, durability: Durability) -> (u64, Told) {
        let mut line = self.lock();
        let number = line.told;
        line.told += 1;
        if line.busy || !line.waiting.is_empty() {
            line.waiting.push_back(Item { change, durability, again: false });
            return (number, Told::Waits);
        }
        line.busy = true;
        let changes = vec![Item { change, durability, again: false }];
        (number, Told::Alone(Group { outbox: Arc::clone(self), changes, made: 0, refused: None }))
    }

    /// All that waits, if there is something and nobody else has it. Also what is owed: `again`.
    pub(super) fn take(self: &Arc<Self>, again: bool) -> Option<Group> {
        let mut line = self.lock();
        if line.busy || line.waiting.is_empty() || line.refused.is_some() && !again {
            return None;
        }
        line.busy = true;
        let changes = line.waiting.drain(..).collect();
        Some(Group { outbox: Arc::clone(self), changes, made: 0, refused: None })
    }

    /// Whether something is to be handed over that nobody hands over.
    pub(super) fn is_left(&self) -> bool {
        let line = self.lock();
        !line.busy && !line.waiting.is_empty() && line.refused.is_none()
    }

    /// Whether something is owed.
    pub(super) fn owes(&self) -> bool {
        self.lock().refused.is_some()
    }

    /// Everything told before this was asked has a number below.
    pub(super) fn told(&self) -> u64 {
        self.lock().told
    }

    /// What became of the change of this number; none: it is on its way.
    pub(super) fn outcome(&self, number: u64) -> Option<Result<(), StorageError>> {
        let line = self.lock();
        if line.made > number {
            return Some(Ok(()));
        }
        line.refused.clone().map(Err)
    }

    /// Told when an outcome is known.
    pub(super) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // Nothing under this lock can panic half-way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// What is left of it.
    pub(super) fn all(&self) -> Vec<Change> {
        self.changes[self.made..].iter().flat_map(Item::changes).collect()
    }

    /// The first of what is left.
    pub(super) fn first(&self) -> Option<Vec<Change>> {
        self.changes.get(self.made).map(Item::changes)
    }

    pub(super) fn durability(&self) -> Durability {
        self.changes.iter().map(|item| item.durability).max().unwrap_or_default()
    }

    /// All of it is stored.
    pub(super) fn made_all(mut self) {
        self.made = self.changes.len();
    }

    /// The first of what is left is stored, or will never be.
    pub(super) fn made_one(&mut self) {
        self.made += 1;
    }

    /// The store refuses it: it is owed.
    pub(super) fn refused(mut self, why: StorageError) {
        self.refused = Some(why);
    }
}

impl Item {
    /// One that may have been made must not be there twice.
    fn changes(&self) -> Vec<Change> {
        let before = match &self.change {
            Change::GiveUp(letter) | Change::SaveDeadLetter(letter) if self.again => {
                Some(Change::RemoveDeadLetters { command_id: letter.command_id.clone() })
            }
            _ => None,
        };
        before.into_iter().chain([self.change.clone()]).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut line = self.outbox.lock();
        line.busy = false;
        line.made += self.made as u64;
        let left: Vec<_> = self.changes.drain(self.made..).collect();
        line.refused = if left.is_empty() { None } else { self.refused.take() };
        for mut item in left.into_iter().rev() {
            item.again = true;
            line.waiting.push_front(item);
        }
        drop(line);
        self.outbox.changed.notify(usize::MAX);
    }
}
