//! Durable lanes: what was accepted is stored before it is acknowledged, and comes back after a restart.
//!
//! | file | what it knows |
//! |---|---|
//! | `store` | the queue's side of a [`Storage`](crate::Storage): sequence, what it is owed, what happens when it fails |
//! | `outbox` | changes that nobody refuses any more, in their order |
//! | `command` | commands that are data |
//! | `submit` | a reservation in the lane, then the store, then the lane |
//! | `stored` | what a command has of the store while it lives: its mark, its key, its end |
//! | `idempotency` | which keys are taken, and by what |
//! | `letters` | dead letters as they are stored |
//! | `recover` | what the process before has left: who runs again, who is parked, who is given up |
//! | `trial` | commands that may kill the process run alone |
//!
//! A lane in memory meets none of this but a look at its settings.

mod command;
mod idempotency;
mod letters;
mod outbox;
mod recover;
mod store;
mod stored;
mod submit;
mod trial;

pub use command::DurableCommand;
pub use recover::{ParkReason, Parked, RecoveryReport};

pub(super) use command::Durable;
pub(super) use idempotency::{Shared, Window};
pub(super) use letters::{LetterStore, StoredAs};
pub(super) use recover::{CrashLimit, Recovered, recover};
pub(super) use store::{Store, StoreState};
pub(super) use stored::{Stored, guarded};
pub(super) use trial::Verdict;
