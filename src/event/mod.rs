//! Events: what happened in a queue, told to whoever subscribed.
//!
//! | file | what it knows |
//! |---|---|
//! | `emitter` | who tells |
//! | `ring` | records that one thread writes and many read: the protocol |
//! | `log` | what one thread tells of one emitter: a ring, and what does not fit into it |
//! | `writers` | which log a thread writes |
//! | `types` | long names of command types, as numbers |
//! | `hub` | what emitter, logs and subscribers share: interest, names, who waits |
//! | `watch` | the thread that wakes who waits for frequent events |
//! | `merge` | many logs read as one, causes before effects |
//! | `receiver`, `subscription` | who is told, and of what |
//! | `recorder`, `perfetto` | the flight recorder, and its forms |
//! | `kind`, `transition`, `lane_event` | what is told |
//!
//! An emitter without subscribers costs one load per transition; nothing is built. With subscribers, what every command tells
//! (that it is submitted, starts, completes) is a record of seven words in a log that only its thread writes: no lock, no
//! read-modify-write, no allocation, and nobody is woken. It becomes a [`LaneEvent`], with the seed's keys and fields, in the
//! subscriber. A subscriber that falls behind loses the oldest events and is told how many, in their place.

mod emitter;
mod hub;
mod kind;
mod lane_event;
mod log;
mod merge;
mod perfetto;
mod receiver;
mod recorder;
pub(crate) mod ring;
mod subscription;
mod transition;
mod types;
mod watch;
mod writers;

pub use emitter::EventEmitter;
pub(crate) use emitter::{Frequent, FrequentKind};
pub use kind::{EventKey, EventKind, events};
pub use lane_event::{EventPayload, LaneEvent};
pub(crate) use log::UNMEASURED;
pub use receiver::{EventReceiver, EventStream, EventsClosed};
pub use recorder::{Recorded, Recording};
pub use subscription::{OnOverflow, Subscription};
pub use transition::{CommandInfo, Transition};
