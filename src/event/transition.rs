//! Changes of state, typed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::kind::EventKind;
use super::lane_event::EventPayload;
use crate::id::CommandId;

/// The command that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandInfo {
    /// The lane it was submitted to.
    pub lane_id: Arc<str>,
    /// Its id, as [`Ticket::id`](crate::Ticket::id).
    pub command_id: CommandId,
    /// What [`Command::command_type`](crate::Command::command_type) said.
    pub command_type: Arc<str>,
}

impl CommandInfo {
    pub(crate) fn new(lane_id: &Arc<str>, command_id: CommandId, command_type: &str) -> Self {
        Self::of(Arc::clone(lane_id), command_id, command_type.into())
    }

    pub(super) fn of(lane_id: Arc<str>, command_id: CommandId, command_type: Arc<str>) -> Self {
        Self { lane_id, command_id, command_type }
    }
}

/// A change of state of a command, a lane or a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transition {
    /// Accepted.
    Submitted(CommandInfo),
    /// Began to run.
    Started(CommandInfo),
    /// Returned a value.
    Completed(CommandInfo),
    /// Returned an error, or panicked.
    Failed {
        /// Which.
        command: CommandInfo,
        /// What it said.
        error: Arc<str>,
    },
    /// Given up at its deadline; the attempt has stopped.
    TimedOut {
        /// Which.
        command: CommandInfo,
        /// The time it had.
        timeout: Duration,
    },
    /// Cancelled; it has stopped, or never starts.
    Cancelled {
        /// Which.
        command: CommandInfo,
        /// Whether an attempt had begun.
        started: bool,
    },
    /// An attempt failed and another one follows. The command holds no permit until then.
    Retrying {
        /// Which.
        command: CommandInfo,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// What it said.
        error: Arc<str>,
        /// How long until it may start again.
        delay: Duration,
    },
    /// A poll of it has lasted for longer than [`ExecutorBuilder::stuck_after`](crate::ExecutorBuilder::stuck_after), and
    /// goes on: it blocks its worker. Told once for each such poll, while it runs; if it ends just then, maybe after that.
    StuckPoll {
        /// Which.
        command: CommandInfo,
        /// The number of the worker, or of the spare, counted after the workers.
        worker: usize,
        /// How long at least.
        running_for: Duration,
    },
    /// It waited for longer than it was allowed to, and never starts.
    Expired {
        /// Which.
        command: CommandInfo,
        /// How long it was allowed to wait.
        waited: Duration,
    },
    /// Dropped from a full lane before it started.
    Shed(CommandInfo),
    /// Given up and kept as a dead letter.
    DeadLettered {
        /// Which.
        command: CommandInfo,
        /// Attempts made.
        attempts: u32,
    },
    /// The oldest dead letter was dropped to make room for another.
    DeadLetterEvicted {
        /// Of which command.
        command: CommandInfo,
    },
    /// A lane came under pressure.
    Pressure {
        /// Which.
        lane_id: Arc<str>,
    },
    /// Nothing waits any more in a lane that was under pressure.
    Idle {
        /// Which.
        lane_id: Arc<str>,
    },
    /// A stored command can not be made again, and stays stored.
    Parked {
        /// Which.
        command: CommandInfo,
        /// Why.
        reason: Arc<str>,
    },
    /// Stored commands were taken over from the process before; told when the queue starts.
    Recovered {
        /// Commands that stand in their lanes again.
        recovered: u64,
        /// Commands that stay stored.
        parked: u64,
        /// Commands that were given up: they had killed their process too often, or could not be read.
        dead_lettered: u64,
        /// Of those recovered: commands that run alone first, since they may kill the process.
        suspects: u64,
    },
    /// The store has failed or is full.
    StorageFailed {
        /// What it said.
        error: Arc<str>,
    },
    /// The store works again.
    StorageRecovered,
    /// The queue accepts no more commands.
    ShutdownStarted,
    /// Every accepted command has settled after that.
    ShutdownComplete,
    /// The subscriber lost this many events.
    Lagged(u64),
}

impl Transition {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::Submitted(_) => EventKind::Submitted,
            Self::Started(_) => EventKind::Started,
            Self::Completed(_) => EventKind::Completed,
            Self::Shed(_) => EventKind::Shed,
            Self::StorageRecovered => EventKind::StorageRecovered,
            Self::ShutdownStarted => EventKind::ShutdownStarted,
            Self::ShutdownComplete => EventKind::ShutdownComplete,
            Self::Lagged(_) => EventKind::Lagged,
            Self::Failed { .. } => EventKind::Failed,
            Self::TimedOut { .. } => EventKind::TimedOut,
            Self::Cancelled { .. } => EventKind::Cancelled,
            Self::Retrying { .. } => EventKind::Retrying,
            Self::StuckPoll { .. } => EventKind::StuckPoll,
            Self::Expired { .. } => EventKind::Expired,
            Self::DeadLettered { .. } => EventKind::DeadLettered,
            Self::DeadLetterEvicted { .. } => EventKind::DeadLetterEvicted,
            Self::Parked { .. } => EventKind::Parked,
            Self::Recovered { .. } => EventKind::Recovered,
            Self::StorageFailed { .. } => EventKind::StorageFailed,
            Self::Pressure { .. } => EventKind::Pressure,
            Self::Idle { .. } => EventKind::Idle,
        }
    }

    /// Its key in [`events`](crate::events).
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self.kind().key() {
            Some(key) => key,
            None => "",
        }
    }

    /// The command that it is about; none if it is about a lane or a queue.
    #[must_use]
    pub const fn command(&self) -> Option<&CommandInfo> {
        match self {
            Self::Submitted(command) | Self::Started(command) | Self::Completed(command) | Self::Shed(command) => {
                Some(command)
            }
            Self::Failed { command, .. }
            | Self::TimedOut { command, .. }
            | Self::Cancelled { command, .. }
            | Self::Retrying { command, .. }
            | Self::StuckPoll { command, .. }
            | Self::Expired { command, .. }
            | Self::DeadLettered { command, .. }
            | Self::DeadLetterEvicted { command }
            | Self::Parked { command, .. } => Some(command),
            Self::Pressure { .. }
            | Self::Idle { .. }
            | Self::Recovered { .. }
            | Self::StorageFailed { .. }
            | Self::StorageRecovered
            | Self::ShutdownStarted
            | Self::ShutdownComplete
            | Self::Lagged(_) => None,
        }
    }

    /// The lane that it is about; none if it is about a queue.
    #[must_use]
    pub const fn lane_id(&self) -> Option<&Arc<str>> {
        match self {
            Self::Pressure { lane_id } | Self::Idle { lane_id } => Some(lane_id),
            _ => match self.command() {
                Some(command) => Some(&command.lane_id),
                None => None,
            },
        }
    }

    /// Its fields, with the time that was measured: the wait of one that started, the run of one that ended.
    pub(super) fn payload(&self, duration: Option<Duration>) -> EventPayload {
        let command = |command: &CommandInfo| {
            vec![
                ("lane_id", json!(&*command.lane_id)),
                ("command_id", json!(command.command_id.to_string())),
                ("command_type", json!(&*command.command_type)),
            ]
        };
        let mut fields = match self {
            Self::Submitted(info) | Self::Started(info) | Self::Completed(info) | Self::Shed(info) => command(info),
            Self::DeadLetterEvicted { command: info } => command(info),
            Self::Cancelled { command: info, started } => [command(info), vec![("started", json!(started))]].concat(),
            Self::Retrying { command: info, attempt, error, delay } => {
                let delay_ms = millis(*delay);
                let fields =
                    vec![("attempt", json!(attempt)), ("error", json!(&**error)), ("delay_ms", json!(delay_ms))];
                [command(info), fields].concat()
            }
            Self::StuckPoll { command: info, worker, running_for } => {
                let fields = vec![("worker", json!(worker)), ("running_ms", json!(millis(*running_for)))];
                [command(info), fields].concat()
            }
            Self::Expired { command: info, waited } => {
                let error = crate::error::LaneError::Expired { waited: *waited }.to_string();
                [command(info), vec![("error", json!(error)), ("waited_ms", json!(millis(*waited)))]].concat()
            }
            Self::DeadLettered { command: info, attempts } => {
                [command(info), vec![("attempts", json!(attempts))]].concat()
            }
            Self::Failed { command: info, error } => [command(info), vec![("error", json!(&**error))]].concat(),
            Self::TimedOut { command: info, timeout } => {
                let timeout_ms = millis(*timeout);
                let error = crate::error::LaneError::Timeout(*timeout).to_string();
                [command(info), vec![("error", json!(error)), ("timeout_ms", json!(timeout_ms))]].concat()
            }
            Self::Pressure { lane_id } | Self::Idle { lane_id } => vec![("lane_id", json!(&**lane_id))],
            Self::Parked { command: info, reason } => [command(info), vec![("reason", json!(&**reason))]].concat(),
            Self::Recovered { recovered, parked, dead_lettered, suspects } => vec![
                ("recovered", json!(recovered)),
                ("parked", json!(parked)),
                ("dead_lettered", json!(dead_lettered)),
                ("suspects", json!(suspects)),
            ],
            Self::StorageFailed { error } => vec![("error", json!(&**error))],
            Self::StorageRecovered | Self::ShutdownStarted | Self::ShutdownComplete => return EventPayload::Empty,
            Self::Lagged(missed) => vec![("missed", json!(missed))],
        };
        if let Some(duration) = duration {
            let name = if self.kind() == EventKind::Started { "wait_ms" } else { "duration_ms" };
            fields.push((name, json!(duration.as_secs_f64() * 1e3)));
        }
        EventPayload::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
