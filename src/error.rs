//! Errors that more than one layer speaks of.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

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
    /// The command was cancelled before it finished.
    #[error("command was cancelled")]
    Cancelled,
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
    /// Anything else a command wants to report.
    #[error("{0}")]
    Other(String),
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
