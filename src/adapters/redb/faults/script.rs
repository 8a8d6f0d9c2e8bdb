//! What the store is told in these tests: a fixed script with everything that a queue does, and random ones.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::content::Content;
use super::disk::SimDisk;
use super::history::History;
use super::random::Random;
use crate::clock::wall_now;
use crate::error::LaneError;
use crate::storage::{Change, Durability, MemoryStorage, Storage, StoredCommand, StoredDeadLetter, StoredResult};

/// One thing that a store is told.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Apply(Vec<Change>, Durability),
    SaveLetter(StoredDeadLetter),
    ClearLetters,
    ClearAll,
    Flush,
}

impl Step {
    pub(super) async fn tell(&self, store: &dyn Storage) -> Result<(), LaneError> {
        match self.clone() {
            Self::Apply(changes, durability) => store.apply(changes, durability).await,
            Self::SaveLetter(letter) => store.save_dead_letter(letter).await,
            Self::ClearLetters => store.clear_dead_letters().await,
            Self::ClearAll => store.clear_all().await,
            Self::Flush => store.flush().await,
        }
    }

    /// Whether it is durable, with all before it, once it is acknowledged.
    pub(super) fn is_synced(&self) -> bool {
        !matches!(self, Self::Apply(_, Durability::Relaxed))
    }

    /// Whether it accepts a command: that waits while the disk is full.
    pub(super) fn accepts(&self) -> bool {
        let accepts = |change: &Change| matches!(change, Change::Save(_) | Change::Replay(_));
        matches!(self, Self::Apply(changes, _) if changes.iter().any(accepts)) || matches!(self, Self::Flush)
    }

    /// Whether all that it does is to end something: that goes on while the disk is full.
    pub(super) fn only_ends(&self) -> bool {
        let ends = |change: &Change| matches!(change, Change::Remove { .. } | Change::GiveUp(_));
        matches!(self, Self::Apply(changes, _) if changes.iter().all(ends))
    }
}

pub(super) fn command(sequence: u64, bytes: usize) -> StoredCommand {
    named(format!("d{sequence}"), sequence, bytes)
}

fn named(id: String, sequence: u64, bytes: usize) -> StoredCommand {
    let text: String = (0..bytes).map(|at| char::from(b'a' + ((at as u64 * 7 + sequence) % 26) as u8)).collect();
    let mut command = StoredCommand::new(id, "test", "lane", json!({ "number": sequence, "text": text }));
    command.sequence = sequence;
    command.recoverable = true;
    command
}

pub(super) fn save(command: StoredCommand) -> Change {
    Change::Save(Box::new(command))
}

fn result(key: &str, id: &str) -> Option<Box<StoredResult>> {
    Some(Box::new(StoredResult::new(key, "fingerprint", id, json!({ "of": id }))))
}

pub(super) fn letter(id: &str) -> StoredDeadLetter {
    let mut letter = StoredDeadLetter::new(id, "test", "lane", "it failed");
    letter.details = Value::from("x".repeat(100));
    letter
}

fn attempted(id: &str, retry_count: u32) -> Change {
    Change::Attempted { id: id.to_owned(), retry_count, at: wall_now() }
}

pub(super) fn remove(id: &str) -> Change {
    Change::Remove { id: id.to_owned(), result: None }
}

/// Everything once: accept, attempt, end, give up, replay, letters, results.
pub(super) fn everything() -> Vec<Step> {
    use Durability::{Relaxed, Synced};

    let one = |change, durability| Step::Apply(vec![change], durability);
    vec![
        one(save(command(0, 50)), Synced),
        Step::Apply(vec![save(command(1, 50)), save(command(2, 300))], Synced),
        one(attempted("d1", 1), Relaxed),
        one(Change::Remove { id: "d0".into(), result: result("key 0", "d0") }, Relaxed),
        one(save(named("by another name".into(), 3, 50)), Synced),
        one(Change::GiveUp(Box::new(letter("d1"))), Relaxed),
        one(save(command(4, 20_000)), Synced),
        one(Change::Replay(Box::new(command(1, 70))), Synced),
        Step::SaveLetter(letter("by another name")),
        one(attempted("by another name", 2), Synced),
        one(remove("d2"), Relaxed),
        one(save(command(5, 10)), Relaxed),
        one(save(command(6, 10)), Synced),
        one(Change::GiveUp(Box::new(letter("d6"))), Synced),
        one(Change::RemoveDeadLetters { command_id: "d6".into() }, Relaxed),
        one(Change::Remove { id: "d5".into(), result: result("key 5", "d5") }, Synced),
        one(Change::RemoveResult { key: "key 0".into() }, Synced),
        one(remove("by another name"), Relaxed),
        Step::Flush,
        Step::Apply(vec![save(command(7, 3_000)), remove("d4")], Synced),
        Step::ClearLetters,
        Step::ClearAll,
        one(save(command(8, 500)), Synced),
        one(save(command(9, 100)), Synced),
        one(Change::GiveUp(Box::new(letter("d8"))), Synced),
    ]
}

/// Steps by a seed: about as many accepted as ended.
pub(super) fn random(steps: usize, seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut alive: Vec<String> = Vec::new();
    let mut dead: Vec<String> = Vec::new();
    let mut sequence = 0;
    let mut script = Vec::new();
    for _ in 0..steps {
        let durability = if random.below(3) == 0 { Durability::Relaxed } else { Durability::Synced };
        let mut changes = Vec::new();
        for _ in 0..=random.below(3) {
            let change = match random.below(8) {
                0 | 1 => take_any(&mut alive, &mut random).map(|id| {
                    let key = format!("key {}", random.below(5));
                    Change::Remove { result: (random.below(2) == 0).then(|| result(&key, &id)).flatten(), id }
                }),
                2 => take_any(&mut alive, &mut random).map(|id| {
                    dead.push(id.clone());
                    Change::GiveUp(Box::new(letter(&id)))
                }),
                3 => take_any(&mut dead, &mut random).map(|id| {
                    alive.push(id.clone());
                    let number = id.strip_prefix('d').and_then(|number| number.parse().ok());
                    Change::Replay(Box::new(named(id, number.unwrap_or(sequence), 40)))
                }),
                4 => alive.last().map(|id| attempted(id, random.below(9) as u32)),
                5 => take_any(&mut dead, &mut random).map(|command_id| Change::RemoveDeadLetters { command_id }),
                _ => None,
            };
            changes.push(change.unwrap_or_else(|| {
                let bytes = if random.below(8) == 0 { 12_000 } else { random.below(400) as usize };
                let id = if random.below(5) == 0 { format!("job {sequence}") } else { format!("d{sequence}") };
                alive.push(id.clone());
                sequence += 1;
                save(named(id, sequence - 1, bytes))
            }));
        }
        script.push(Step::Apply(changes, durability));
    }
    script
}

fn take_any(of: &mut Vec<String>, random: &mut Random) -> Option<String> {
    (!of.is_empty()).then(|| of.swap_remove(random.below(of.len() as u64) as usize))
}

/// Tells a store a script, which works, one step after the other; what the store is to contain meanwhile.
pub(super) async fn run(store: &dyn Storage, disk: &SimDisk, script: &[Step]) -> History<Content> {
    run_in_bursts(store, disk, script, 1).await
}

/// So many steps at a time, so that they share transactions.
pub(super) async fn run_in_bursts(
    store: &dyn Storage,
    disk: &SimDisk,
    script: &[Step],
    at_a_time: usize,
) -> History<Content> {
    let model = MemoryStorage::new();
    let history = RefCell::new(History::new(contained(&model).await));
    for burst in script.chunks(at_a_time) {
        // They get to the store in the order in which they are first polled, which is this one.
        let told = burst.iter().map(|step| {
            let (model, history) = (&model, &history);
            async move {
                step.tell(model).await.unwrap();
                let content = contained(model).await;
                let number = history.borrow_mut().begin(disk, content);
                step.tell(store).await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
                if step.is_synced() {
                    history.borrow_mut().acknowledge(disk, number);
                }
            }
        });
        futures::future::join_all(told).await;
    }
    history.into_inner()
}

/// What a model contains now.
pub(super) async fn contained(model: &MemoryStorage) -> Content {
    Content::recover(&model.after_crash()).await.unwrap()
}
