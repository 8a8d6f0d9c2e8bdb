//! The life of a command: submit, admit, dispatch, attempt, settle.
//!
//! | file | stage |
//! |---|---|
//! | `manager`, `command_queue` | submit: find the lane |
//! | `lane` | admit: through the gate, now or when a permit comes back |
//! | (executor) | dispatch: by priority |
//! | `attempt` | one execution, with its deadline and panics |
//! | `settle` | what the outcome means; permit, event, result |
//! | `ticket` | the submitter's side |

mod ambient;
mod attempt;
mod builder;
mod command;
mod command_queue;
mod config;
mod lane;
mod manager;
mod settle;
mod ticket;

pub(crate) use ambient::Ambient;
pub use builder::QueueManagerBuilder;
pub use command::{Command, JsonCommand, TypedCommand};
pub use command_queue::{CommandQueue, DrainReport, QueueStats};
pub use config::LaneConfig;
pub use lane::{Lane, LaneStatus, Rejected};
pub use manager::QueueManager;
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
