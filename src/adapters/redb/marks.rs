//! Start marks: which commands run now, for the next process, should this one not live to say how they ended.
//!
//! The file `running` is a row of slots. A mark claims one, and writes into it the command's id and the epoch of this process;
//! when the attempt has ended, zeros are written. Nothing is synced: what was written survives this process, and commands kill
//! processes, not machines. A mark counts only if its epoch is the one that the database says began last, and was not ended:
//! so marks that were left by earlier processes need not be cleared, and a recovery that is killed half-way can begin anew.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_queue::SegQueue;
use twox_hash::XxHash3_128;

use super::disk::SmallFile;
use super::record::checksum;

const SLOT: usize = 64;
/// Commands that run at a time and are marked: 4 MiB of file.
const SLOTS_MAX: u32 = 65_536;
/// Bytes of an id that a slot has room for.
const ID_MAX: usize = SLOT - ID;

// A slot: checksum (8), epoch (8), kind (1), length (1), id.
const EPOCH: usize = 8;
const KIND: usize = 16;
const LENGTH: usize = 17;
const ID: usize = 18;

const WHOLE: u8 = 1;
const HASH: u8 = 2;

/// A command that was marked: its id, or a hash of it where it was long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Marked {
    Id(String),
    Hash(u128),
}

impl Marked {
    pub(super) fn hashed(id: &str) -> Self {
        Self::Hash(XxHash3_128::oneshot(id.as_bytes()))
    }

    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Id(id) => Some(id),
            Self::Hash(_) => None,
        }
    }
}

/// The slots of this process.
pub(super) struct Marks {
    file: Box<dyn SmallFile>,
    /// Slots that were used and are free.
    free: SegQueue<u32>,
    /// Slots below this were used.
    fresh: AtomicU32,
    /// Of this process; 0 before it has begun one, and once it has ended it.
    epoch: AtomicU64,
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Marks").field("fresh", &self.fresh).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Marks {
    pub(super) fn new(file: Box<dyn SmallFile>) -> Self {
        Self { file, free: SegQueue::new(), fresh: AtomicU32::new(0), epoch: AtomicU64::new(0) }
    }

    /// Marks count from now on, under an epoch that the database knows.
    pub(super) fn begin(&self, epoch: u64) {
        // ORDERING: nothing else is published with it; the file is the same for all.
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The slot that says so; none if all are taken, or it could not be written.
    pub(super) fn mark(&self, id: &str) -> Option<u32> {
        // ORDERING: as in `begin`.
        let epoch = self.epoch.load(Ordering::Relaxed);
        if epoch == 0 {
            return None;
        }
        let slot = self.claim()?;
        match self.file.write(offset(slot), &encode(slot, epoch, id)) {
            Ok(()) => Some(slot),
            Err(error) => {
                tracing::warn!(%error, "the start of a command could not be marked");
                self.free.push(slot);
                None
            }
        }
    }

    pub(super) fn unmark(&self, slot: u32) {
        if let Err(error) = self.file.write(offset(slot), &[0; SLOT]) {
            tracing::warn!(%error, "the mark of a command could not be taken away");
        }
        self.free.push(slot);
    }

    /// What the process of that epoch had marked when it ended. A slot that is damaged counts as free: nobody is charged for
    /// what can not be read.
    pub(super) fn of_epoch(&self, epoch: u64) -> io::Result<HashSet<Marked>> {
        let slots = (self.file.len()? / SLOT as u64).min(u64::from(SLOTS_MAX));
        let mut bytes = vec![0; usize::try_from(slots).unwrap_or_default() * SLOT];
        self.file.read(0, &mut bytes)?;
        let slots = (0..).zip(bytes.chunks_exact(SLOT));
        Ok(slots.filter_map(|(slot, bytes)| decode(slot, epoch, bytes)).collect())
    }

    fn claim(&self) -> Option<u32> {
        self.free.pop().or_else(|| {
            // ORDERING: a number that nobody else gets; what is done with the slot is between its owner and the file.
            self.fresh
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |fresh| (fresh < SLOTS_MAX).then_some(fresh + 1))
                .ok()
        })
    }
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * SLOT as u64
}

fn encode(slot: u32, epoch: u64, id: &str) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[EPOCH..KIND].copy_from_slice(&epoch.to_le_bytes());
    let hash;
    let (kind, named) = if id.len() <= ID_MAX {
        (WHOLE, id.as_bytes())
    } else {
        hash = XxHash3_128::oneshot(id.as_bytes()).to_le_bytes();
        (HASH, hash.as_slice())
    };
    bytes[KIND] = kind;
    bytes[LENGTH] = u8::try_from(named.len()).unwrap_or_default();
    bytes[ID..ID + named.len()].copy_from_slice(named);
    let sum = checksum(&[&slot.to_le_bytes(), &bytes[EPOCH..]]);
    bytes[..EPOCH].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(slot: u32, epoch: u64, bytes: &[u8]) -> Option<Marked> {
    if bytes[EPOCH..KIND] != epoch.to_le_bytes() {
        return None;
    }
    if bytes[..EPOCH] != checksum(&[&slot.to_le_bytes(), &bytes[EPOCH..]]).to_le_bytes() {
        tracing::warn!(slot, "a start mark is damaged: the command that it named is not charged");
        return None;
    }
    let named = bytes.get(ID..ID + usize::from(bytes[LENGTH]))?;
    match bytes[KIND] {
        WHOLE => String::from_utf8(named.to_vec()).ok().map(Marked::Id),
        HASH => Some(Marked::Hash(u128::from_le_bytes(named.try_into().ok()?))),
        _ => None,
    }
}
