//! What can go wrong with a store.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// What can go wrong with a [`Storage`](crate::Storage). Cheap to clone: one failed write may concern many commands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Another process, or another store of this one, has it open. Nothing was changed.
    #[error("the store at {} is in use{}: close it there, or use another path", path.display(), by(*.pid))]
    StoreLocked {
        /// Where.
        path: PathBuf,
        /// The process that has it, where that is known.
        pid: Option<u32>,
    },
    /// There is no room for what was to be stored; nothing of it was. Make room: the store goes on by itself.
    #[error("the store is full: {0}")]
    StorageFull(String),
    /// Whether it was stored is not known: the system failed while it was written. Submit it again with the same
    /// [idempotency key](crate::SubmitOptions::idempotency_key), or expect that it may run twice.
    #[error("it is not known whether this was stored: {0}")]
    OutcomeUnknown(String),
    /// What is stored is not what was written. It was left as it is.
    #[error("the store is damaged, and was left as it is: {what}")]
    Damaged {
        /// What is, and where.
        what: String,
    },
    /// The store was written by a newer version of this crate. It was left as it is.
    #[error("the store has format {found}, and this version reads formats up to {supported}: use a newer version")]
    FormatTooNew {
        /// Of the store.
        found: u32,
        /// The newest that this version reads.
        supported: u32,
    },
    /// The path can not be used for a store.
    #[error("{} can not hold a store: {problem}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// One record is larger than the store takes. Nothing was stored.
    #[error("{size} bytes are too many for one record: the limit is {limit}")]
    TooLarge {
        /// Bytes that it takes.
        size: usize,
        /// Bytes that it may take.
        limit: usize,
    },
    /// What was to be stored can not be written as data. Nothing was stored.
    #[error("{0} can not be stored as data")]
    NotData(String),
    /// A queue has the store already.
    #[error("the store belongs to another queue of this process: give each queue a store of its own")]
    InUse,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The store was opened to look at it. Nothing was changed.
    #[error("the store was opened for reading only")]
    ReadOnly,
    /// The store does not answer: it has failed, and is tried again by itself.
    #[error("the store has failed and is tried again every {every:?}: {cause}")]
    Failed {
        /// How often.
        every: Duration,
        /// What went wrong first.
        cause: String,
    },
    /// The system refused a read or a write. Nothing was stored.
    #[error("the store can not be read or written: {0}")]
    Io(String),
}

impl StorageError {
    /// Whether it is certain that nothing was stored.
    #[must_use]
    pub const fn is_certain(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown(_))
    }

    /// Whether it is the store that failed, and not one record that it refused.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::NotData(_))
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}
