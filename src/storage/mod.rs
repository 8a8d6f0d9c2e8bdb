//! Storage: what of a queue survives the process. The trait, what is stored, and the store in memory that defines what the
//! trait means.
//!
//! A queue speaks to its store in [`Change`]s, which it hands over in groups by [`Storage::apply`]; everything else is
//! opening and looking. A store of the seed's seven methods is enough: the rest has defaults, and
//! [`Storage::capabilities`] says what is better than these. Nothing here knows lanes, tasks or executors.

mod memory;
mod record;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use memory::MemoryStorage;
pub use record::{StoredCommand, StoredCommandId, StoredDeadLetter, StoredResult, StoredTerms};

use crate::error::{Result, StorageError};

/// Of a command, the last crashes that are kept; of a store, its last unclean ends.
pub(crate) const CRASHES_KEPT: usize = 16;

/// Sequences that are left out after an unclean end. Commands may have had them that were acknowledged early, ran, and were lost
/// before they were stored: their ids are not given to others. More than ever wait for a store at a time.
pub(crate) const LOST_MAX: u64 = 1 << 20;

/// What survives what.
///
/// | | acknowledged when | process killed | power lost |
/// |---|---|---|---|
/// | `Memory` | it is in memory | lost | lost |
/// | `Relaxed` | the store has it | the last commit interval may be lost | the same |
/// | `Synced` | the store has committed it and the device has said so | kept | kept, if the device keeps its word |
///
/// What `Relaxed` may lose is the newest: what survives is what was accepted up to some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Durability {
    /// Nothing is stored.
    #[default]
    Memory,
    /// Stored soon after it was acknowledged.
    Relaxed,
    /// Stored before it is acknowledged.
    Synced,
}

/// One change to what is stored.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// A command was accepted, or is stored anew in place of the one with its id.
    Save(Box<StoredCommand>),
    /// An attempt of a command has failed and another one follows.
    Attempted {
        /// Which.
        id: StoredCommandId,
        /// Attempts made so far: [`StoredCommand::retry_count`].
        retry_count: u32,
        /// When the last one ended.
        at: DateTime<Utc>,
    },
    /// A command has ended. Nothing happens if it is not there.
    Remove {
        /// Which.
        id: StoredCommandId,
        /// What is to be known of it when its idempotency key comes again.
        result: Option<Box<StoredResult>>,
    },
    /// A command has ended, and is kept as a dead letter: both or neither.
    GiveUp(Box<StoredDeadLetter>),
    /// A dead letter's command is accepted again, under its id: it replaces all letters about that command, both or neither.
    Replay(Box<StoredCommand>),
    /// A dead letter is kept, besides others about the same command.
    SaveDeadLetter(Box<StoredDeadLetter>),
    /// The letters about a command go.
    RemoveDeadLetters {
        /// Which command.
        command_id: StoredCommandId,
    },
    /// The result under an idempotency key goes.
    RemoveResult {
        /// Which key.
        key: String,
    },
}

/// What a store can do beyond the seed's seven methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageCapabilities {
    /// The changes of one [`Storage::apply`] are stored all or not at all. Default: false, one after the other.
    pub atomic: bool,
    /// [`Change::Attempted`] is stored. Default: false; commands begin with their first attempt after a restart.
    pub attempts: bool,
    /// [`Storage::mark_started`] works: commands that kill their process are found. Default: false.
    pub start_marks: bool,
    /// Results of commands with idempotency keys, and the end of single dead letters, are stored. Default: false; keys are
    /// forgotten at a restart, and letters stay until [`Storage::clear_dead_letters`].
    pub results_and_letters: bool,
}

/// Says to a store which of its marks to take away. From [`Storage::mark_started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a mark stays until Storage::unmark"]
pub struct StartMark(pub u64);

/// What a store found when it was opened, besides commands.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Recovery {
    /// Whether the process before this one ended without [`Storage::close`].
    pub unclean: bool,
    /// When processes with this store ended uncleanly, the oldest first, as far as the store remembers: at the time at which
    /// that was noticed.
    pub unclean_ends: Vec<DateTime<Utc>>,
    /// Results of commands with idempotency keys.
    pub results: Vec<StoredResult>,
    /// A number above the [`sequence`](StoredCommand::sequence) of every command that was ever stored, and of those that were
    /// acknowledged as [`Durability::Relaxed`] and lost with their process: they may have run. 0 if the store does not remember
    /// those that are gone; ids are then given again.
    pub next_sequence: u64,
}

/// How a store does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageHealth {
    /// It works.
    #[default]
    Working,
    /// It has no room: commands end, and none is accepted.
    Full,
    /// It does not work, and is tried again.
    Failed(StorageError),
}

/// Keeps commands and dead letters. Implement the seven methods without a default for a store of your own; run
/// `corelane::testing::storage` (feature `testing`) on it.
///
/// All methods may be called at the same time from several threads. What one call was told before it returned, the next one
/// sees. A future that is dropped before it is ready leaves open whether its change was made; it is not made later than those
/// of later calls.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Stores a command, in place of one with the same id.
    async fn save_command(&self, command: StoredCommand) -> Result<()>;

    /// All commands that are stored, in no particular order.
    async fn load_commands(&self) -> Result<Vec<StoredCommand>>;

    /// Removes a command that has ended. Nothing happens if it is not there.
    async fn remove_command(&self, id: &str) -> Result<()>;

    /// Stores a dead letter, besides others about the same command.
    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()>;

    /// All dead letters, the oldest first.
    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>>;

    /// Removes all dead letters.
    async fn clear_dead_letters(&self) -> Result<()>;

    /// Removes everything.
    async fn clear_all(&self) -> Result<()>;

    /// What it can do. Default: what the seven methods can.
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::default()
    }

    /// Makes changes in their order, and returns when they are as durable as asked: with [`Durability::Relaxed`] as soon as
    /// nothing but the end of the process keeps them from being stored. Changes of calls one after the other are stored in
    /// that order. Default: one after the other, through the seven methods.
    ///
    /// # Errors
    ///
    /// [`LaneError::Storage`](crate::LaneError::Storage): nothing was stored, unless it says that the outcome is unknown.
    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<()> {
        let _ = durability;
        for change in changes {
            match change {
                Change::Save(command) | Change::Replay(command) => self.save_command(*command).await?,
                Change::Remove { id, .. } => self.remove_command(&id).await?,
                // In this order: a crash in between leaves both, not neither.
                Change::GiveUp(letter) => {
                    let id = letter.command_id.clone();
                    self.save_dead_letter(*letter).await?;
                    self.remove_command(&id).await?;
                }
                Change::SaveDeadLetter(letter) => self.save_dead_letter(*letter).await?,
                Change::Attempted { .. } | Change::RemoveDeadLetters { .. } | Change::RemoveResult { .. } => {}
            }
        }
        Ok(())
    }

    /// Called once, by the queue that gets the store, before anything else: takes note of how the process before ended, and
    /// charges that to the commands that were [marked](Storage::mark_started) then, as one more of
    /// [`StoredCommand::crashes`]; if it ended cleanly, to nobody. Default: nothing is known.
    ///
    /// # Errors
    ///
    /// [`StorageError::InUse`] if another queue has it and has not [finished](Storage::finish); what reading brings.
    async fn recover(&self) -> Result<Recovery> {
        Ok(Recovery::default())
    }

    /// Up to about `limit` commands behind that of id `after` in the order of [`StoredCommand::sequence`], or from the first;
    /// none when there are no more. Default: all at once, by [`Storage::load_commands`].
    ///
    /// # Errors
    ///
    /// What reading brings: a record that is damaged is an error that names it.
    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        let _ = limit;
        if after.is_some() {
            return Ok(Vec::new());
        }
        let mut commands = self.load_commands().await?;
        commands.sort_by_key(|command| (command.sequence, command.created_at));
        Ok(commands)
    }

    /// Notes that a command is about to run, so that a process that it kills is charged to it: on a store that is
    /// opened again without [`Storage::finish`], the mark is there unless [`Storage::unmark`] was called. Called on the thread that then runs
    /// the command: a few microseconds at most. None where that can not be noted. Default: none.
    fn mark_started(&self, id: &str) -> Option<StartMark> {
        let _ = id;
        None
    }

    /// Takes a mark away: the attempt has ended. Default: nothing.
    fn unmark(&self, mark: StartMark) {
        let _ = mark;
    }

    /// How it does. Default: it works.
    fn health(&self) -> StorageHealth {
        StorageHealth::Working
    }

    /// Tries to work again after a failure. Called every second while it has failed. Default: [`Storage::flush`].
    ///
    /// # Errors
    ///
    /// It still fails.
    async fn probe(&self) -> Result<()> {
        self.flush().await
    }

    /// Returns when everything that was acknowledged before is durable. Default: it is.
    ///
    /// # Errors
    ///
    /// It may not be.
    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// The queue that has the store has done its work: makes everything durable and notes that this is a clean end, so that
    /// what still runs is not charged. Looking and changing go on, and another queue may have the store. Default:
    /// [`Storage::flush`].
    ///
    /// # Errors
    ///
    /// As [`Storage::flush`].
    async fn finish(&self) -> Result<()> {
        self.flush().await
    }

    /// [`Storage::finish`], and gives everything back that the store holds, so that another process may open it. Later calls
    /// may be errors. Default: [`Storage::flush`].
    ///
    /// # Errors
    ///
    /// As [`Storage::flush`].
    async fn close(&self) -> Result<()> {
        self.flush().await
    }
}
