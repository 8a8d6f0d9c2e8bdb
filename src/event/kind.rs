//! What kinds of events there are, and the keys that name them.

use std::borrow::Cow;

/// Names an event, for example `queue.command.completed`.
pub type EventKey = Cow<'static, str>;

/// The keys of the events that queues emit.
pub mod events {
    /// A lane has as many commands waiting as its pressure threshold. Field: `lane_id`.
    pub const QUEUE_LANE_PRESSURE: &str = "queue.lane.pressure";
    /// Nothing waits any more in a lane that was under pressure. Field: `lane_id`.
    pub const QUEUE_LANE_IDLE: &str = "queue.lane.idle";
    /// A command was accepted. Fields: `lane_id`, `command_id`, `command_type`, as for all command events.
    pub const QUEUE_COMMAND_SUBMITTED: &str = "queue.command.submitted";
    /// A command began to run.
    pub const QUEUE_COMMAND_STARTED: &str = "queue.command.started";
    /// A command returned a value.
    pub const QUEUE_COMMAND_COMPLETED: &str = "queue.command.completed";
    /// A command returned an error or panicked. Also field `error`.
    pub const QUEUE_COMMAND_FAILED: &str = "queue.command.failed";
    /// A command was given up at its deadline and has stopped. Also fields `error`, `timeout_ms`.
    pub const QUEUE_COMMAND_TIMEOUT: &str = "queue.command.timeout";
    /// A command was cancelled and has stopped, or never starts. Also field `started`.
    pub const QUEUE_COMMAND_CANCELLED: &str = "queue.command.cancelled";
    /// An attempt failed and another one follows. Also fields `attempt`, `error`, `delay_ms`.
    pub const QUEUE_COMMAND_RETRY: &str = "queue.command.retry";
    /// A poll of a command has not returned for a while, and goes on. Also fields `worker`, `running_ms`.
    pub const QUEUE_COMMAND_STUCK: &str = "queue.command.stuck";
    /// A command waited for too long and never starts. Also fields `error`, `waited_ms`.
    pub const QUEUE_COMMAND_EXPIRED: &str = "queue.command.expired";
    /// A command was dropped from a full lane before it started.
    pub const QUEUE_COMMAND_SHED: &str = "queue.command.shed";
    /// A command was given up and is kept as a dead letter. Also field `attempts`.
    pub const QUEUE_COMMAND_DEAD_LETTERED: &str = "queue.command.dead_lettered";
    /// A stored command can not be made again, and stays stored. Also field `reason`.
    pub const QUEUE_COMMAND_PARKED: &str = "queue.command.parked";
    /// Stored commands were taken over from the process before. Fields: `recovered`, `parked`, `dead_lettered`, `suspects`.
    pub const QUEUE_RECOVERED: &str = "queue.recovered";
    /// The store has failed or is full. Field: `error`.
    pub const QUEUE_STORAGE_FAILED: &str = "queue.storage.failed";
    /// The store works again.
    pub const QUEUE_STORAGE_RECOVERED: &str = "queue.storage.recovered";
    /// A dead letter was dropped to make room for another one.
    pub const QUEUE_DEAD_LETTER_EVICTED: &str = "queue.dead_letter.evicted";
    /// The queue accepts no more commands.
    pub const QUEUE_SHUTDOWN_STARTED: &str = "queue.shutdown.started";
    /// After the above: every accepted command has settled.
    pub const QUEUE_SHUTDOWN_COMPLETE: &str = "queue.shutdown.complete";
    /// This subscriber was too slow and lost events. Field: `missed`.
    pub const QUEUE_EVENTS_LAGGED: &str = "queue.events.lagged";
}

/// A kind of event: what a [`Transition`](crate::Transition) is, without its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// [`events::QUEUE_COMMAND_SUBMITTED`].
    Submitted,
    /// [`events::QUEUE_COMMAND_STARTED`].
    Started,
    /// [`events::QUEUE_COMMAND_COMPLETED`].
    Completed,
    /// [`events::QUEUE_COMMAND_FAILED`].
    Failed,
    /// [`events::QUEUE_COMMAND_TIMEOUT`].
    TimedOut,
    /// [`events::QUEUE_COMMAND_CANCELLED`].
    Cancelled,
    /// [`events::QUEUE_COMMAND_RETRY`].
    Retrying,
    /// [`events::QUEUE_COMMAND_STUCK`].
    StuckPoll,
    /// [`events::QUEUE_COMMAND_EXPIRED`].
    Expired,
    /// [`events::QUEUE_COMMAND_SHED`].
    Shed,
    /// [`events::QUEUE_COMMAND_DEAD_LETTERED`].
    DeadLettered,
    /// [`events::QUEUE_DEAD_LETTER_EVICTED`].
    DeadLetterEvicted,
    /// [`events::QUEUE_LANE_PRESSURE`].
    Pressure,
    /// [`events::QUEUE_LANE_IDLE`].
    Idle,
    /// [`events::QUEUE_COMMAND_PARKED`].
    Parked,
    /// [`events::QUEUE_RECOVERED`].
    Recovered,
    /// [`events::QUEUE_STORAGE_FAILED`].
    StorageFailed,
    /// [`events::QUEUE_STORAGE_RECOVERED`].
    StorageRecovered,
    /// [`events::QUEUE_SHUTDOWN_STARTED`].
    ShutdownStarted,
    /// [`events::QUEUE_SHUTDOWN_COMPLETE`].
    ShutdownComplete,
    /// An event of one's own, from [`EventEmitter::emit`](crate::EventEmitter::emit).
    Custom,
    /// [`events::QUEUE_EVENTS_LAGGED`]. Told to whoever has lost events, whatever kinds were asked for.
    Lagged,
}

impl EventKind {
    /// All kinds that are emitted, by number.
    pub(super) const ALL: [Self; 21] = [
        Self::Submitted,
        Self::Started,
        Self::Completed,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Retrying,
        Self::StuckPoll,
        Self::Expired,
        Self::Shed,
        Self::DeadLettered,
        Self::DeadLetterEvicted,
        Self::Pressure,
        Self::Idle,
        Self::Parked,
        Self::Recovered,
        Self::StorageFailed,
        Self::StorageRecovered,
        Self::ShutdownStarted,
        Self::ShutdownComplete,
        Self::Custom,
    ];

    /// Its key; none of events of one's own, which have their own.
    #[must_use]
    pub const fn key(self) -> Option<&'static str> {
        Some(match self {
            Self::Submitted => events::QUEUE_COMMAND_SUBMITTED,
            Self::Started => events::QUEUE_COMMAND_STARTED,
            Self::Completed => events::QUEUE_COMMAND_COMPLETED,
            Self::Failed => events::QUEUE_COMMAND_FAILED,
            Self::TimedOut => events::QUEUE_COMMAND_TIMEOUT,
            Self::Cancelled => events::QUEUE_COMMAND_CANCELLED,
            Self::Retrying => events::QUEUE_COMMAND_RETRY,
            Self::StuckPoll => events::QUEUE_COMMAND_STUCK,
            Self::Expired => events::QUEUE_COMMAND_EXPIRED,
            Self::Shed => events::QUEUE_COMMAND_SHED,
            Self::DeadLettered => events::QUEUE_COMMAND_DEAD_LETTERED,
            Self::DeadLetterEvicted => events::QUEUE_DEAD_LETTER_EVICTED,
            Self::Pressure => events::QUEUE_LANE_PRESSURE,
            Self::Idle => events::QUEUE_LANE_IDLE,
            Self::Parked => events::QUEUE_COMMAND_PARKED,
            Self::Recovered => events::QUEUE_RECOVERED,
            Self::StorageFailed => events::QUEUE_STORAGE_FAILED,
            Self::StorageRecovered => events::QUEUE_STORAGE_RECOVERED,
            Self::ShutdownStarted => events::QUEUE_SHUTDOWN_STARTED,
            Self::ShutdownComplete => events::QUEUE_SHUTDOWN_COMPLETE,
            Self::Lagged => events::QUEUE_EVENTS_LAGGED,
            Self::Custom => return None,
        })
    }

    /// Its bit in an interest mask.
    #[inline]
    pub(crate) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// All kinds that are emitted.
pub(super) const EVERY_KIND: u32 = (1 << EventKind::ALL.len()) - 1;
