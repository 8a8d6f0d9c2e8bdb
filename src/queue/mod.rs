//! The life of a command: submit, admit, dispatch, attempt, settle.
//!
//! | file | stage |
//! |---|---|
//! | `manager`, `command_queue`, `lanes` | submit: find the lane |
//! | `lane`, `options`, `incoming`, `extra` | submit: what is asked, whether there is room, the command's task |
//! | `durable` | submit: the command is stored; and what becomes of it there |
//! | `admission` | admit: from the line to a run queue, when there is a permit and the rate allows it |
//! | `line`, `keys`, `nested`, `alarm` | who is next, behind whom, on whose permit, until when |
//! | (executor) | dispatch: by priority |
//! | `attempt`, `context` | one execution, with its deadline and panics, and what it sees of itself |
//! | `settle` | what the outcome means; retry, event, dead letter, permit, result |
//! | `ticket` | the submitter's side |
//!
//! Beside that way: `measured` says what the queue's metrics do not count themselves, `traced` keeps the times of a command,
//! `explain` says why one waits; `registry` makes commands of data, `partition` gives them homes; `dead_letter` keeps what was
//! given up, `stop` ends a queue in phases; `acquire`, `rate` and `priority_queue` are for hosts that run their work themselves.

mod acquire;
mod admission;
mod alarm;
mod attempt;
mod builder;
mod command;
mod command_queue;
mod config;
mod context;
mod dead_letter;
mod durable;
mod explain;
mod extra;
mod incoming;
pub(crate) mod keys;
mod lane;
mod lanes;
mod line;
mod manager;
mod measured;
pub(crate) mod nested;
mod options;
mod partition;
mod priority_queue;
mod rate;
mod registry;
mod settle;
mod stop;
mod ticket;
mod traced;
mod vacancy;

pub use acquire::{Acquire, Permit};
pub use builder::QueueManagerBuilder;
pub use command::{Command, JsonCommand, TypedCommand};
pub use command_queue::{CommandQueue, DrainReport, QueueStats, RequeueReport};
pub use config::{LaneConfig, OnStorageFailure, Overflow};
pub use context::{CancelToken, CommandContext, is_cancelled};
pub use dead_letter::{AttemptError, DeadLetter, DeadLetterQueue, DeadLetterReason};
pub use durable::{DurableCommand, ParkReason, Parked, RecoveryReport};
pub use explain::{Explanation, Standing, WaitCause};
pub use keys::Key;
pub use lane::{JsonSubmission, Lane, LaneStatus, Rejected};
pub use manager::QueueManager;
pub use options::SubmitOptions;
pub use partition::{
    CustomPartitioner, HashPartitioner, PartitionConfig, PartitionId, PartitionStrategy, Partitioner,
    RoundRobinPartitioner, stable_hash,
};
pub use priority_queue::{PriorityItem, PriorityQueue};
pub(crate) use registry::{Registry, Unmade};
pub use stop::{Stop, StopReport};
pub use ticket::{Ticket, TicketError};

/// Names a lane.
pub type LaneId = String;

/// 0 is the best, 63 the worst.
pub type Priority = u8;

/// The ids of the six default lanes.
pub mod lane_ids {
    /// System-level operations.
    pub const SYSTEM: &str = "system";
    /// Pause, resume, cancel.
    pub const CONTROL: &str = "control";
    /// Read-only queries.
    pub const QUERY: &str = "query";
    /// Session management.
    pub const SESSION: &str = "session";
    /// Skills and tools.
    pub const SKILL: &str = "skill";
    /// LLM prompts.
    pub const PROMPT: &str = "prompt";
}

/// The priorities of the six default lanes.
pub mod priorities {
    use super::Priority;

    /// Of lane `system`: the best.
    pub const SYSTEM: Priority = 0;
    /// Of lane `control`.
    pub const CONTROL: Priority = 1;
    /// Of lane `query`.
    pub const QUERY: Priority = 2;
    /// Of lane `session`.
    pub const SESSION: Priority = 3;
    /// Of lane `skill`.
    pub const SKILL: Priority = 4;
    /// Of lane `prompt`.
    pub const PROMPT: Priority = 5;
}
