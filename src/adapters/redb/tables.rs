//! What the database holds.
//!
//! | table | key | value |
//! |---|---|---|
//! | `commands` | place: sequence (8 bytes, big-endian), id | [`StoredCommand`] |
//! | `places` | id | sequence; for commands whose id does not give it |
//! | `attempts` | place | what changed of a command since it was saved: [`Attempts`] |
//! | `letters` | command's id, number | [`StoredDeadLetter`]; numbers ascend |
//! | `results` | idempotency key | [`StoredResult`] |
//! | `meta` | name | `state`: [`State`]; `unclean_ends` |
//!
//! The order of keys in `commands` is that of acceptance. A queue names its commands `d{sequence}`, so that their place
//! follows from their id: they are removed by one look, at the front of the tree, while new ones come in at its end. Other
//! ids have their sequence noted in `places`.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::marks::Marked;
use super::record::{encode, seal, unseal};
use crate::error::StorageError;
use crate::storage::{Change, LOST_MAX, StoredCommand, StoredCommandId, StoredDeadLetter, StoredResult};

type Bytes = &'static [u8];

const COMMANDS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("commands");
const PLACES: TableDefinition<'_, &str, u64> = TableDefinition::new("places");
const ATTEMPTS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("attempts");
const LETTERS: TableDefinition<'_, (&str, u64), Bytes> = TableDefinition::new("letters");
const RESULTS: TableDefinition<'_, &str, Bytes> = TableDefinition::new("results");
const META: TableDefinition<'_, &str, Bytes> = TableDefinition::new("meta");

const STATE: &str = "state";
const UNCLEAN_ENDS: &str = "unclean_ends";

/// Crashes that are kept of a command, and unclean ends that are kept of a store.
const HISTORY: usize = 16;

/// What is known of the store itself. Written anew by every commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Which store this is: small files of another one do not belong here.
    pub(super) store: String,
    /// Commits so far. The number of the last one that was acknowledged is in the watermark.
    pub(super) commits: u64,
    /// Processes that had the store, by [`Op::Begin`].
    pub(super) epoch: u64,
    /// The last one of them has closed it.
    pub(super) clean: bool,
    /// Above that of every command ever.
    pub(super) next_sequence: u64,
    pub(super) next_letter: u64,
}

impl State {
    pub(super) fn new(store: String) -> Self {
        Self { store, commits: 0, epoch: 0, clean: true, next_sequence: 0, next_letter: 0 }
    }

    /// There was a command of that sequence.
    fn pass(&mut self, sequence: u64) {
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
    }
}

/// What has changed of a command since it was saved; none: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<(u32, DateTime<Utc>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crashes: Option<Vec<DateTime<Utc>>>,
}

/// One change, as far as it can be prepared where it was asked for.
#[derive(Debug)]
pub(super) enum Op {
    Save(Saved),
    Attempted {
        id: StoredCommandId,
        retry_count: u32,
        at: DateTime<Utc>,
    },
    Remove {
        id: StoredCommandId,
        result: Option<(String, Vec<u8>)>,
    },
    /// With the end of its command, or without.
    Letter {
        id: StoredCommandId,
        letter: Vec<u8>,
        ends: bool,
    },
    Replay(Saved),
    RemoveLetters {
        id: StoredCommandId,
    },
    /// A command of that sequence was accepted, and has ended before it was stored.
    Pass {
        sequence: u64,
    },
    RemoveResult {
        key: String,
    },
    ClearLetters,
    ClearAll,
    /// A queue has the store: charges the marked commands if the process before ended uncleanly, and begins an epoch.
    Begin {
        now: DateTime<Utc>,
        marked: HashSet<Marked>,
    },
    /// This process ends cleanly.
    End,
}

#[derive(Debug)]
pub(super) struct Saved {
    id: StoredCommandId,
    sequence: u64,
    record: Vec<u8>,
}

impl Saved {
    pub(super) fn new(command: &StoredCommand) -> Result<Self, StorageError> {
        let mut record = encode(command, || format!("command {:?}", command.id))?;
        seal("commands", &place(command.sequence, &command.id), &mut record);
        Ok(Self { id: command.id.clone(), sequence: command.sequence, record })
    }
}

impl Op {
    /// What does not fit, or is no data, is found here.
    pub(super) fn new(change: Change) -> Result<Self, StorageError> {
        Ok(match change {
            Change::Save(command) => Self::Save(Saved::new(&command)?),
            Change::Attempted { id, retry_count, at } => Self::Attempted { id, retry_count, at },
            Change::Remove { id, result } => {
                let result = result.map(|result| {
                    let mut record = encode(&*result, || format!("the result of command {id:?}"))?;
                    seal("results", result.key.as_bytes(), &mut record);
                    Ok((result.key, record))
                });
                Self::Remove { id, result: result.transpose()? }
            }
            Change::GiveUp(letter) => Self::letter(&letter, true)?,
            Change::SaveDeadLetter(letter) => Self::letter(&letter, false)?,
            Change::Replay(command) => Self::Replay(Saved::new(&command)?),
            Change::RemoveDeadLetters { command_id } => Self::RemoveLetters { id: command_id },
            Change::RemoveResult { key } => Self::RemoveResult { key },
        })
    }

    pub(super) fn letter(letter: &StoredDeadLetter, ends: bool) -> Result<Self, StorageError> {
        let record = encode(letter, || format!("the dead letter of command {:?}", letter.command_id))?;
        Ok(Self::Letter { id: letter.command_id.clone(), letter: record, ends })
    }

    /// Whether it accepts something: that waits while the disk is full. The rest makes room, or ends something.
    pub(super) const fn accepts(&self) -> bool {
        matches!(self, Self::Save(_) | Self::Replay(_))
    }

    /// The command that is over with this, if one is.
    pub(super) fn ended(&self) -> Option<&str> {
        match self {
            Self::Remove { id, .. } | Self::Letter { id, ends: true, .. } => Some(id),
            _ => None,
        }
    }

    /// This is made before `kept`, which was asked for earlier. What is to be made of that together with this, and before it;
    /// itself, if the one has nothing to do with the other.
    pub(super) fn overtake(&self, kept: Self) -> Result<Vec<Self>, Self> {
        let all = matches!(self, Self::ClearAll);
        let ends = |id: &str| all || self.ended() == Some(id);
        match kept {
            Self::Save(saved) if ends(&saved.id) => Ok(vec![Self::Pass { sequence: saved.sequence }]),
            Self::Replay(saved) if ends(&saved.id) => {
                Ok(vec![Self::Pass { sequence: saved.sequence }, Self::RemoveLetters { id: saved.id }])
            }
            Self::Attempted { id, .. } if ends(&id) => Ok(Vec::new()),
            _ if all => Ok(Vec::new()),
            other => Err(other),
        }
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        const REST: usize = 128;
        REST + match self {
            Self::Save(saved) | Self::Replay(saved) => saved.id.len() + saved.record.len(),
            Self::Attempted { id, .. } | Self::RemoveLetters { id } => id.len(),
            Self::Remove { id, result } => {
                id.len() + result.as_ref().map_or(0, |(key, record)| key.len() + record.len())
            }
            Self::Letter { id, letter, .. } => id.len() + letter.len(),
            Self::RemoveResult { key } => key.len(),
            Self::Pass { .. } | Self::ClearLetters | Self::ClearAll | Self::Begin { .. } | Self::End => 0,
        }
    }
}

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    commands: Table<'t, Bytes, Bytes>,
    places: Table<'t, &'static str, u64>,
    attempts: Table<'t, Bytes, Bytes>,
    letters: Table<'t, (&'static str, u64), Bytes>,
    results: Table<'t, &'static str, Bytes>,
    meta: Table<'t, &'static str, Bytes>,
}

/// What a transaction meets: an error of redb's, or a record that is not what was written.
#[derive(Debug)]
pub(super) enum Trouble {
    Redb(redb::Error),
    Record(StorageError),
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl<'t> Tables<'t> {
    /// Makes those that are not there.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Trouble> {
        Ok(Self {
            commands: transaction.open_table(COMMANDS)?,
            places: transaction.open_table(PLACES)?,
            attempts: transaction.open_table(ATTEMPTS)?,
            letters: transaction.open_table(LETTERS)?,
            results: transaction.open_table(RESULTS)?,
            meta: transaction.open_table(META)?,
        })
    }

    pub(super) fn apply(&mut self, op: &Op, state: &mut State) -> Result<(), Trouble> {
        match op {
            Op::Save(saved) => self.save(saved, state)?,
            Op::Attempted { id, retry_count, at } => {
                if let Some(place) = self.locate(id)? {
                    self.change_attempts(&place, id, |attempts| attempts.made = Some((*retry_count, *at)))?;
                }
            }
            Op::Remove { id, result } => {
                self.remove(id)?;
                if let Some((key, record)) = result {
                    self.results.insert(key.as_str(), record.as_slice())?;
                }
            }
            Op::Letter { id, letter, ends } => {
                if *ends {
                    self.remove(id)?;
                }
                let mut letter = letter.clone();
                seal("letters", &letter_key(id, state.next_letter), &mut letter);
                self.letters.insert((id.as_str(), state.next_letter), letter.as_slice())?;
                state.next_letter += 1;
            }
            Op::Replay(saved) => {
                self.remove_letters(&saved.id)?;
                self.save(saved, state)?;
            }
            Op::RemoveLetters { id } => self.remove_letters(id)?,
            Op::Pass { sequence } => state.pass(*sequence),
            Op::RemoveResult { key } => drop(self.results.remove(key.as_str())?),
            Op::ClearLetters => self.letters.retain(|_, _| false)?,
            Op::ClearAll => {
                self.commands.retain(|_, _| false)?;
                self.places.retain(|_, _| false)?;
                self.attempts.retain(|_, _| false)?;
                self.letters.retain(|_, _| false)?;
                self.results.retain(|_, _| false)?;
            }
            Op::Begin { now, marked } => self.begin(*now, marked, state)?,
            Op::End => state.clean = true,
        }
        Ok(())
    }

    pub(super) fn write_state(&mut self, state: &State) -> Result<(), Trouble> {
        self.write_meta(STATE, state)
    }

    fn write_meta<T: Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Trouble> {
        let mut record = encode(value, || name.to_owned()).map_err(Trouble::Record)?;
        seal("meta", name.as_bytes(), &mut record);
        self.meta.insert(name, record.as_slice())?;
        Ok(())
    }

    fn save(&mut self, Saved { id, sequence, record }: &Saved, state: &mut State) -> Result<(), Trouble> {
        state.pass(*sequence);
        let place = place(*sequence, id);
        // It may be there under another sequence.
        let told = told_by(id);
        if told == Some(*sequence) {
            if !self.places.is_empty()? {
                let other = self.places.remove(id.as_str())?.map(|other| other.value());
                self.remove_other(other, *sequence, id)?;
            }
        } else {
            let other = self.places.insert(id.as_str(), *sequence)?.map(|other| other.value());
            self.remove_other(other, *sequence, id)?;
            self.remove_other(told, *sequence, id)?;
        }
        self.commands.insert(place.as_slice(), record.as_slice())?;
        if !self.attempts.is_empty()? {
            self.attempts.remove(place.as_slice())?;
        }
        Ok(())
    }

    fn remove_other(&mut self, other: Option<u64>, sequence: u64, id: &str) -> Result<(), Trouble> {
        match other {
            Some(other) if other != sequence => self.remove_at(&place(other, id)).map(drop),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, id: &str) -> Result<(), Trouble> {
        if let Some(sequence) = told_by(id)
            && self.remove_at(&place(sequence, id))?
        {
            return Ok(());
        }
        if self.places.is_empty()? {
            return Ok(());
        }
        let noted = self.places.remove(id)?.map(|sequence| sequence.value());
        noted.map_or(Ok(()), |sequence| self.remove_at(&place(sequence, id)).map(drop))
    }

    /// Whether there was one.
    fn remove_at(&mut self, place: &[u8]) -> Result<bool, Trouble> {
        let there = self.commands.remove(place)?.is_some();
        if there && !self.attempts.is_empty()? {
            self.attempts.remove(place)?;
        }
        Ok(there)
    }

    fn locate(&self, id: &str) -> Result<Option<Vec<u8>>, Trouble> {
        let noted = match self.places.is_empty()? {
            true => None,
            false => self.places.get(id)?.map(|sequence| sequence.value()),
        };
        for sequence in told_by(id).into_iter().chain(noted) {
            let place = place(sequence, id);
            if self.commands.get(place.as_slice())?.is_some() {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn change_attempts(&mut self, place: &[u8], id: &str, change: impl FnOnce(&mut Attempts)) -> Result<(), Trouble> {
        let mut attempts = match self.attempts.get(place)? {
            Some(record) => read_attempts(place, record.value(), id).map_err(Trouble::Record)?,
            None => Attempts::default(),
        };
        change(&mut attempts);
        let mut record = encode(&attempts, || id.to_owned()).map_err(Trouble::Record)?;
        seal("attempts", place, &mut record);
        self.attempts.insert(place, record.as_slice())?;
        Ok(())
    }

    fn remove_letters(&mut self, id: &str) -> Result<(), Trouble> {
        if !self.letters.is_empty()? {
            self.letters.retain_in((id, 0)..=(id, u64::MAX), |_, _| false)?;
        }
        Ok(())
    }

    fn begin(&mut self, now: DateTime<Utc>, marked: &HashSet<Marked>, state: &mut State) -> Result<(), Trouble> {
        if !state.clean {
            let mut ends = self.unclean_ends()?;
            push_bounded(&mut ends, now);
            self.write_meta(UNCLEAN_ENDS, &ends)?;
            for id in self.resolve(marked)? {
                self.charge(&id, now)?;
            }
            state.next_sequence = state.next_sequence.saturating_add(LOST_MAX);
        }
        state.epoch += 1;
        state.clean = false;
        Ok(())
    }

    fn charge(&mut self, id: &str, now: DateTime<Utc>) -> Result<(), Trouble> {
        let Some(place) = self.locate(id)? else { return Ok(()) };
        let saved = match self.commands.get(place.as_slice())? {
            Some(record) => read_command(&place, record.value()).map_err(Trouble::Record)?.crashes,
            None => Vec::new(),
        };
        self.change_attempts(&place, id, |attempts| push_bounded(attempts.crashes.get_or_insert(saved), now))
    }

    fn unclean_ends(&self) -> Result<Vec<DateTime<Utc>>, Trouble> {
        match self.meta.get(UNCLEAN_ENDS)? {
            Some(record) => read_ends(record.value()).map_err(Trouble::Record),
            None => Ok(Vec::new()),
        }
    }

    /// The ids that were marked. Those that were too long for that are found by their hash.
    fn resolve(&self, marked: &HashSet<Marked>) -> Result<Vec<StoredCommandId>, Trouble> {
        let mut ids: Vec<_> = marked.iter().filter_map(Marked::id).map(str::to_owned).collect();
        if ids.len() < marked.len() {
            for entry in self.commands.iter()? {
                let (place, _) = entry?;
                let id = id_at(place.value());
                if marked.contains(&Marked::hashed(&id)) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }
}

/// Reads the state; none if nothing was ever committed.
pub(super) fn read_state(transaction: &ReadTransaction) -> Result<Option<State>, Trouble> {
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match ReadableTable::get(&meta, STATE)? {
        Some(record) => {
            unseal("meta", STATE.as_bytes(), record.value(), || STATE.to_owned()).map(Some).map_err(Trouble::Record)
        }
        None => Ok(None),
    }
}

pub(super) fn load_unclean_ends(transaction: &ReadTransaction) -> Result<Vec<DateTime<Utc>>, Trouble> {
    match ReadableTable::get(&transaction.open_table(META)?, UNCLEAN_ENDS)? {
        Some(record) => read_ends(record.value()).map_err(Trouble::Record),
        None => Ok(Vec::new()),
    }
}

/// Records as they are stored, one behind the other, to be read where they are asked for.
#[derive(Debug, Default)]
pub(super) struct RawCommands {
    bytes: Vec<u8>,
    entries: Vec<RawCommand>,
    /// There may be others behind these.
    pub(super) more: bool,
}

/// Where the parts of a command end.
#[derive(Debug)]
struct RawCommand {
    place: usize,
    record: usize,
    attempts: usize,
}

impl RawCommands {
    /// Up to `limit` commands behind that place, less if they take more than `bytes`.
    pub(super) fn load(
        transaction: &ReadTransaction,
        after: Option<&[u8]>,
        limit: usize,
        bytes: usize,
    ) -> Result<Self, Trouble> {
        use std::ops::Bound::{Excluded, Unbounded};

        let commands = transaction.open_table(COMMANDS)?;
        let attempts = transaction.open_table(ATTEMPTS)?;
        let attempts = (!attempts.is_empty()?).then_some(attempts);
        let mut raw = Self::default();
        let behind = (after.map_or(Unbounded, Excluded), Unbounded);
        for entry in ReadableTable::range::<&[u8]>(&commands, behind)? {
            if raw.entries.len() == limit || raw.bytes.len() >= bytes {
                raw.more = true;
                break;
            }
            let (place, record) = entry?;
            raw.bytes.extend_from_slice(place.value());
            let place_end = raw.bytes.len();
            raw.bytes.extend_from_slice(record.value());
            let record_end = raw.bytes.len();
            if let Some(attempts) = &attempts
                && let Some(attempts) = ReadableTable::get(attempts, place.value())?
            {
                raw.bytes.extend_from_slice(attempts.value());
            }
            raw.entries.push(RawCommand { place: place_end, record: record_end, attempts: raw.bytes.len() });
        }
        Ok(raw)
    }

    /// The place of the last one.
    pub(super) fn last(&self) -> Option<&[u8]> {
        let start = self.entries.len().checked_sub(2).map_or(0, |before| self.entries[before].attempts);
        self.entries.last().map(|last| &self.bytes[start..last.place])
    }

    pub(super) fn read(&self) -> Result<Vec<StoredCommand>, StorageError> {
        let mut start = 0;
        let read = |entry: &RawCommand| {
            let place = &self.bytes[start..entry.place];
            start = entry.attempts;
            let mut command = read_command(place, &self.bytes[entry.place..entry.record])?;
            let attempts = &self.bytes[entry.record..entry.attempts];
            if !attempts.is_empty() {
                let attempts = read_attempts(place, attempts, &command.id)?;
                if let Some((retry_count, at)) = attempts.made {
                    (command.retry_count, command.last_attempt_at) = (retry_count, Some(at));
                }
                command.crashes = attempts.crashes.unwrap_or(command.crashes);
            }
            Ok(command)
        };
        self.entries.iter().map(read).collect()
    }
}

/// All dead letters, the oldest first.
pub(super) fn load_letters(transaction: &ReadTransaction) -> Result<Vec<StoredDeadLetter>, Trouble> {
    let table = transaction.open_table(LETTERS)?;
    let mut letters: Vec<(u64, StoredDeadLetter)> = Vec::new();
    for entry in ReadableTable::iter(&table)? {
        let (key, record) = entry?;
        let (id, number) = key.value();
        let letter =
            unseal("letters", &letter_key(id, number), record.value(), || format!("the dead letter of {id:?}"));
        letters.push((number, letter.map_err(Trouble::Record)?));
    }
    letters.sort_unstable_by_key(|(number, _)| *number);
    Ok(letters.into_iter().map(|(_, letter)| letter).collect())
}

pub(super) fn load_results(transaction: &ReadTransaction) -> Result<Vec<StoredResult>, Trouble> {
    let table = transaction.open_table(RESULTS)?;
    let mut results = Vec::new();
    for entry in ReadableTable::iter(&table)? {
        let (key, record) = entry?;
        let key = key.value();
        let result = unseal("results", key.as_bytes(), record.value(), || format!("the result under key {key:?}"));
        results.push(result.map_err(Trouble::Record)?);
    }
    Ok(results)
}

/// Where a command lies.
pub(super) fn place(sequence: u64, id: &str) -> Vec<u8> {
    [&sequence.to_be_bytes(), id.as_bytes()].concat()
}

fn id_at(place: &[u8]) -> String {
    String::from_utf8_lossy(place.get(size_of::<u64>()..).unwrap_or_default()).into_owned()
}

/// The sequence that an id of a queue's commands tells: `d{sequence}`, as it is printed.
fn told_by(id: &str) -> Option<u64> {
    let digits = id.strip_prefix('d')?;
    let printed = digits == "0" || digits.starts_with(|first: char| matches!(first, '1'..='9'));
    if printed && digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn letter_key(id: &str, number: u64) -> Vec<u8> {
    [id.as_bytes(), &number.to_be_bytes()].concat()
}

fn read_command(place: &[u8], record: &[u8]) -> Result<StoredCommand, StorageError> {
    unseal("commands", place, record, || format!("command {:?}", id_at(place)))
}

fn read_attempts(place: &[u8], record: &[u8], id: &str) -> Result<Attempts, StorageError> {
    unseal("attempts", place, record, || format!("command {id:?}"))
}

fn read_ends(record: &[u8]) -> Result<Vec<DateTime<Utc>>, StorageError> {
    unseal("meta", UNCLEAN_ENDS.as_bytes(), record, || UNCLEAN_ENDS.to_owned())
}

fn push_bounded(history: &mut Vec<DateTime<Utc>>, at: DateTime<Utc>) {
    if history.len() >= HISTORY {
        history.drain(..=history.len() - HISTORY);
    }
    history.push(at);
}
