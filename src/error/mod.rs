//! Errors that more than one layer speaks of.

mod distributed;
mod storage;

use std::fmt;
use std::time::Duration;

use thiserror::Error;

pub use distributed::DistributedError;
pub use storage::StorageError;

use crate::id::CommandId;

/// `std::result::Result` with [`LaneError`].
pub type Result<T, E = LaneError> = std::result::Result<T, E>;

/// What can go wrong with a lane, a queue or a command.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaneError {
    /// No lane of this id is registered. Nothing was stored; register the lane or correct the id.
    #[error("lane not found: {0:?}")]
    LaneNotFound(String),
    /// The queue could not take the command. Nothing was stored.
    #[error("queue error: {0}")]
    QueueError(String),
    /// The configuration is not usable; all problems are listed at once.
    #[error("{0}")]
    ConfigError(ConfigErrors),
    /// The command itself failed. Commands return this to say so.
    #[error("command execution error: {0}")]
    CommandError(String),
    /// The command was given up at its deadline. Its slot is free once the attempt has really stopped.
    #[error("command timed out after {0:?}")]
    Timeout(Duration),
    /// The command panicked; its slot is free and the lane goes on.
    #[error("command panicked: {0}")]
    Panicked(String),
    /// The command was cancelled before it finished: through its ticket, with the command that submitted it, or by a queue
    /// that stopped.
    #[error("command was cancelled {}", if *.started { "while it ran" } else { "before it started" })]
    Cancelled {
        /// Whether an attempt had begun: then it may have had effects.
        started: bool,
    },
    /// The command waited for longer than it was allowed to, and never starts.
    #[error("command expired after waiting {waited:?}: it was not started")]
    Expired {
        /// How long it was allowed to wait.
        waited: Duration,
    },
    /// The lane holds as much as it may. Nothing was stored: submit again later, or let the lane wait or drop others (see
    /// [`Overflow`](crate::Overflow)).
    #[error("lane {lane_id:?} is full: {limit}")]
    LaneFull {
        /// Which lane.
        lane_id: String,
        /// What limit was reached.
        limit: String,
    },
    /// The command was dropped before it started, to make room for others in a full lane.
    #[error("command was dropped from a full lane before it started")]
    Shed,
    /// [`QueueManager::drain`](crate::QueueManager::drain) ran out of time. Nothing was cancelled; drain may be called
    /// again.
    #[error("not drained after {waited:?}: {pending} commands pending, {active} active")]
    DrainTimeout {
        /// How long the call waited.
        waited: Duration,
        /// Commands accepted and not started.
        pending: usize,
        /// Commands started and not settled.
        active: usize,
    },
    /// The queue is shutting down and accepts no more commands. Nothing was stored.
    #[error("queue is shutting down, not accepting new commands")]
    ShutdownInProgress,
    /// The store could not do what was asked. Of a submission: the command was not accepted, unless the store says that the
    /// outcome is unknown.
    #[error("storage: {0}")]
    Storage(#[from] StorageError),
    /// A queue that several processes share could not do what was asked.
    #[error("distributed queue: {0}")]
    Distributed(#[from] DistributedError),
    /// The lane accepts only what survives a restart, and this would not. Nothing was stored.
    #[error("lane {lane_id:?} is durable: {hint}")]
    NotDurable {
        /// Which lane.
        lane_id: String,
        /// What is missing, and what to do.
        hint: String,
    },
    /// The idempotency key belongs to a command with another type or payload. Nothing was stored.
    #[error("idempotency key {key:?} was used for another command, {command_id}: use a new key for new work")]
    IdempotencyConflict {
        /// The key.
        key: String,
        /// The command that has it.
        command_id: CommandId,
    },
    /// A failure that trying again does not mend; see [`LaneError::permanent`]. Built-in retry policies give up at once.
    #[error("{0} (permanent)")]
    Permanent(#[source] Box<Self>),
    /// A failure with a word on when to try again; see [`LaneError::retry_after`].
    #[error("{error} (retry after {after:?})")]
    RetryAfter {
        /// The least wait before the next attempt.
        after: Duration,
        /// What went wrong.
        #[source]
        error: Box<Self>,
    },
    /// Anything else a command wants to report.
    #[error("{0}")]
    Other(String),
}

impl LaneError {
    /// Marks a failure that trying again does not mend: bad input, a missing permission. It is never retried by a
    /// built-in [`RetryPolicy`](crate::RetryPolicy); a custom one is asked and sees the mark.
    ///
    /// ```
    /// use corelane::LaneError;
    ///
    /// let error = LaneError::CommandError("no such table".into()).permanent();
    /// assert!(error.is_permanent());
    /// ```
    #[must_use]
    pub fn permanent(self) -> Self {
        Self::Permanent(Box::new(self))
    }

    /// Says when to try again at the earliest, as a `Retry-After` header does. A built-in
    /// [`RetryPolicy`](crate::RetryPolicy) waits at least `after`, also where that is more than its `max_delay`; jitter
    /// only adds. How often it retries stays its own decision: with [`RetryPolicy::none`](crate::RetryPolicy::none) never.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self::RetryAfter { after, error: Box::new(self) }
    }

    /// Whether the error was marked by [`LaneError::permanent`], on the outside or further in.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Permanent(_) => true,
            Self::RetryAfter { error, .. } => error.is_permanent(),
            _ => false,
        }
    }

    /// The least wait that [`LaneError::retry_after`] asked for; of several marks, the outermost.
    #[must_use]
    pub fn requested_delay(&self) -> Option<Duration> {
        match self {
            Self::RetryAfter { after, .. } => Some(*after),
            Self::Permanent(error) => error.requested_delay(),
            _ => None,
        }
    }

    /// The error without the marks of [`LaneError::permanent`] and [`LaneError::retry_after`]: what to match on.
    /// [`source`](std::error::Error::source) leads there, too, one mark at a time, in a `Box`.
    #[must_use]
    pub fn unmarked(&self) -> &Self {
        match self {
            Self::Permanent(error) | Self::RetryAfter { error, .. } => error.unmarked(),
            error => error,
        }
    }
}

/// Every problem that a builder found, not just the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigProblem>);

/// One problem of a configuration: what, where, and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigProblem {
    /// Where: for example `lanes["api"].max_concurrency`. Empty where no place applies.
    pub path: String,
    /// The value that was given.
    pub value: String,
    /// What is expected instead.
    pub hint: String,
}

impl ConfigErrors {
    /// The problems, in the order in which the settings were given.
    #[must_use]
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.0
    }

    pub(crate) fn push(&mut self, path: impl Into<String>, value: impl fmt::Debug, hint: impl Into<String>) {
        self.0.push(ConfigProblem { path: path.into(), value: format!("{value:?}"), hint: hint.into() });
    }

    pub(crate) fn into_result(self) -> std::result::Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("configuration error"),
            [problem] => write!(f, "configuration error: {problem}"),
            problems => {
                write!(f, "{} configuration errors:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
            }
        }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.hint);
        }
        write!(f, "{} = {}: {}", self.path, self.value, self.hint)
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigErrors> for LaneError {
    fn from(errors: ConfigErrors) -> Self {
        Self::ConfigError(errors)
    }
}

/// For commands and tools that report a configuration problem of their own.
impl From<String> for ConfigErrors {
    fn from(hint: String) -> Self {
        Self(vec![ConfigProblem { path: String::new(), value: String::new(), hint }])
    }
}

impl From<&str> for ConfigErrors {
    fn from(hint: &str) -> Self {
        hint.to_owned().into()
    }
}
