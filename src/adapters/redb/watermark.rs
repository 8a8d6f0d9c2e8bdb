//! The watermark: what the store is, and the number of the last commit that somebody was told of.
//!
//! redb repairs a file whose last commit is damaged by going back to the one before, and does not say so: it can not tell
//! damage from a commit that was cut short by a power failure. The watermark can. It is written after each commit's sync and
//! before its waiters hear of it, in place and without a sync of its own. So, by the time anybody was told, it is with the
//! operating system, and survives this process; and it never says more than the database has. A database whose own number is
//! lower has lost what it had. A power failure may leave an older watermark, but not older than the last opening, when it is
//! synced: then a damaged last commit passes for one that was cut short, which is all that is lost.
//!
//! The numbers alternate between two slots on pages of their own, so that a write that is cut short damages one of them.
//!
//! A third place says that a sync of the database has failed, and that what can be read of it may not be durable, although
//! later syncs succeed. Like the numbers, it survives the process and not the power: as long as the system may show what the
//! device does not have.
//!
//! The file begins with the format of the whole store, so that what a newer version has written is known as such before
//! anything else is looked at; this head never changes its form.

use std::io;

use super::disk::SmallFile;
use super::record::{FORMAT, checksum};
use crate::error::StorageError;

const MAGIC: &[u8; 8] = b"corelane";
const HEAD: usize = 40;
const SLOT: usize = 16;
const SLOTS: [u64; 2] = [4096, 8192];
const LEN: u64 = 12288;
/// A byte that is not zero while the database is in doubt.
const DOUBT: u64 = 2048;

/// A store's own name: 16 bytes.
type Store = [u8; 16];

/// The watermark of a store that is open.
#[derive(Debug)]
pub(super) struct Watermark {
    file: Box<dyn SmallFile>,
    store: Store,
    number: u64,
    doubt: bool,
}

impl Watermark {
    /// Reads it; none if there is nothing, or what a creation has left that was cut short.
    pub(super) fn read(file: Box<dyn SmallFile>) -> Result<Option<Self>, WatermarkError> {
        let damaged = |what: &str| Err(StorageError::Damaged { what: format!("the file \"watermark\" {what}") }.into());
        let len = file.len()?;
        if len < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        file.read(0, &mut head)?;
        if head == [0; HEAD] {
            return Ok(None);
        }
        let (rest, sum) = head.split_at(HEAD - size_of::<u64>());
        if &rest[..8] != MAGIC || sum != checksum(&[rest]).to_le_bytes() {
            return damaged("does not begin as it should");
        }
        let found = u32::from_le_bytes([rest[8], rest[9], rest[10], rest[11]]);
        if found > FORMAT {
            return Err(StorageError::FormatTooNew { found, supported: FORMAT }.into());
        }
        let store: Store = rest[16..].try_into().unwrap_or_default();
        if len < LEN {
            return damaged("is too short");
        }
        let mut number = None;
        for at in SLOTS {
            let mut slot = [0; SLOT];
            file.read(at, &mut slot)?;
            let (found, sum) = slot.split_at(size_of::<u64>());
            if sum == slot_sum(store, at, found).to_le_bytes() {
                number = number.max(Some(u64::from_le_bytes(found.try_into().unwrap_or_default())));
            }
        }
        let mut doubt = [0];
        file.read(DOUBT, &mut doubt)?;
        match number {
            Some(number) => Ok(Some(Self { file, store, number, doubt: doubt != [0] })),
            None => damaged("has no valid number"),
        }
    }

    /// Begins one for a new store; durable, except that the file is there.
    pub(super) fn create(file: Box<dyn SmallFile>, store: Store) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(LEN).unwrap_or_default()];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..32].copy_from_slice(&store);
        let sum = checksum(&[&bytes[..HEAD - size_of::<u64>()]]);
        bytes[HEAD - size_of::<u64>()..HEAD].copy_from_slice(&sum.to_le_bytes());
        for at in SLOTS {
            let slot = usize::try_from(at).unwrap_or_default();
            bytes[slot..slot + SLOT].copy_from_slice(&slot_bytes(store, at, 0));
        }
        file.set_len(0)?;
        file.write(0, &bytes)?;
        file.sync()?;
        Ok(Self { file, store, number: 0, doubt: false })
    }

    /// Writes again what is there, and syncs it: after a sync that has failed, another one alone would not write it.
    pub(super) fn make_durable(&self) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(LEN).unwrap_or_default()];
        self.file.read(0, &mut bytes)?;
        self.file.write(0, &bytes)?;
        self.file.sync()
    }

    /// Whether what can be read of the database may not be durable, because a sync has failed.
    pub(super) const fn doubt(&self) -> bool {
        self.doubt
    }

    /// Notes that a sync of the database has failed, or that all of it was written again since.
    pub(super) fn set_doubt(&mut self, doubt: bool) {
        if doubt != self.doubt {
            self.doubt = doubt;
            if let Err(error) = self.file.write(DOUBT, &[doubt.into()]) {
                tracing::warn!(%error, "it could not be noted whether the database is durable");
            }
        }
    }

    /// Of the last commit that was acknowledged; 0 if none was.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The store's own name, as the database knows it.
    pub(super) fn store(&self) -> String {
        self.store.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Makes durable what it says. Not needed for what it is for, unless it says 0: that must mean that there was no commit.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Raises it. If that fails, it may be raised again.
    pub(super) fn raise(&mut self, number: u64) -> io::Result<()> {
        if number > self.number {
            let at = SLOTS[usize::from(number % 2 == 1)];
            self.file.write(at, &slot_bytes(self.store, at, number))?;
            self.number = number;
        }
        Ok(())
    }
}

/// Why there is no watermark.
#[derive(Debug)]
pub(super) enum WatermarkError {
    Io(io::Error),
    Store(StorageError),
}

impl From<io::Error> for WatermarkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<StorageError> for WatermarkError {
    fn from(error: StorageError) -> Self {
        Self::Store(error)
    }
}

fn slot_bytes(store: Store, at: u64, number: u64) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    let (value, sum) = bytes.split_at_mut(size_of::<u64>());
    value.copy_from_slice(&number.to_le_bytes());
    sum.copy_from_slice(&slot_sum(store, at, value).to_le_bytes());
    bytes
}

fn slot_sum(store: Store, at: u64, value: &[u8]) -> u64 {
    checksum(&[&store, &at.to_le_bytes(), value])
}
