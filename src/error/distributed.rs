//! What can go wrong with a queue that several processes share.

use std::time::Duration;

use thiserror::Error;

/// What can go wrong with a [`DistributedQueue`](crate::DistributedQueue). Cheap to clone: one lost connection may concern many
/// commands. Never has a password in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DistributedError {
    /// The server can not be reached. Nothing was changed.
    #[error("{server} can not be reached: {cause}")]
    Unavailable {
        /// Its address, without user and password.
        server: String,
        /// What went wrong.
        cause: String,
    },
    /// Whether it was done is not known: the connection was lost before the answer. Do it again: an enqueue with the same
    /// [idempotency key](crate::EnqueueOptions::idempotency_key), or under the same id; everything else as it was.
    #[error("it is not known whether {server} has done this: {cause}")]
    OutcomeUnknown {
        /// Its address, without user and password.
        server: String,
        /// What went wrong.
        cause: String,
    },
    /// The server knows neither the user nor the password, or does not let that user do this.
    #[error("{server} refuses: {cause}")]
    Refused {
        /// Its address, without user and password.
        server: String,
        /// What it says.
        cause: String,
    },
    /// The lease of the command has ended: nothing was changed. Another worker has it, or will have it.
    #[error("the lease of command {command_id} has ended: another worker may have it")]
    LeaseLost {
        /// Which command.
        command_id: String,
    },
    /// The queue can not do this. See [`DistributedQueue::capabilities`](crate::DistributedQueue::capabilities).
    #[error("this queue does not support {operation}")]
    Unsupported {
        /// What was asked for.
        operation: String,
    },
    /// There is no such partition.
    #[error("there is no partition {partition}: they are numbered from 0, and there are {partitions}")]
    NoSuchPartition {
        /// Which was asked for.
        partition: usize,
        /// How many there are.
        partitions: usize,
    },
    /// The queue was made with another number of partitions. Nothing was changed.
    #[error("the queue has {stored} partitions, and was opened with {given}: use {stored}, or a new queue")]
    PartitionMismatch {
        /// As it was made.
        stored: usize,
        /// As it was opened.
        given: usize,
    },
    /// What is stored is of a version that this version of the crate does not read. It was left as it is.
    #[error("the queue's data are of version {found}, and this version reads {supported}: {hint}")]
    SchemaVersion {
        /// Of the data.
        found: String,
        /// What can be read.
        supported: String,
        /// What to do.
        hint: String,
    },
    /// The command is not one that a queue takes. Nothing was stored.
    #[error("{field} {problem}")]
    InvalidEnvelope {
        /// What of it.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The command is too large. Nothing was stored.
    #[error("the command has {size} bytes, and the limit is {limit}: keep the data elsewhere, and send a reference")]
    PayloadTooLarge {
        /// Bytes of its JSON.
        size: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// Another command of this id is in the queue, or was given up there. Nothing was stored.
    #[error("there is another command of id {command_id}: give each command an id of its own")]
    DuplicateId {
        /// The id.
        command_id: String,
    },
    /// The idempotency key belongs to a command with another type, lane or payload. Nothing was stored.
    #[error("idempotency key {key:?} was used for another command, {command_id}: use a new key for new work")]
    IdempotencyConflict {
        /// The key.
        key: String,
        /// The command that has it.
        command_id: String,
    },
    /// A lease of this length is not given. Nothing was taken.
    #[error("a lease of {lease:?} is not given: {hint}")]
    InvalidLease {
        /// What was asked for.
        lease: Duration,
        /// What to ask for.
        hint: String,
    },
    /// The queue, or its server, has no room. Nothing was stored.
    #[error("the queue is full: {0}")]
    Full(String),
    /// The server is set up in a way that loses commands. Nothing was changed.
    #[error("{server} is not set up for a queue: {problem}")]
    Unsuitable {
        /// Its address, without user and password.
        server: String,
        /// What is wrong, and what to set.
        problem: String,
    },
    /// What is stored of a command can not be read. It was put aside as it is.
    #[error("command {command_id} can not be read: {problem}")]
    Damaged {
        /// Which, as far as that is known.
        command_id: String,
        /// What is wrong.
        problem: String,
    },
    /// The handle was closed.
    #[error("the queue is closed")]
    Closed,
    /// The server says something else. Nothing was changed, as far as it says.
    #[error("{server}: {cause}")]
    Server {
        /// Its address, without user and password.
        server: String,
        /// What it says.
        cause: String,
    },
}

impl DistributedError {
    /// Whether it is certain that nothing was changed.
    #[must_use]
    pub const fn is_certain(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown { .. })
    }

    /// Whether it makes sense to try the same again later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::OutcomeUnknown { .. } | Self::Full(_))
    }
}
