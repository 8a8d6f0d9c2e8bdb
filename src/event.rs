//! Events: what happened in a queue, told to whoever subscribed.
//!
//! An emitter without subscribers costs one load per transition; nothing is built. With subscribers, a transition is
//! stored as a small typed value and becomes a [`LaneEvent`], with the seed's keys and fields, in the subscriber.
//! A subscriber that falls behind loses the oldest events and is told how many, in their place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_broadcast::{InactiveReceiver, Receiver, RecvError, Sender};
use chrono::{DateTime, Utc};
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use crate::clock::wall_now;
use crate::id::CommandId;

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

/// What an event says, as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventPayload {
    /// Nothing but its key.
    Empty,
    /// A text.
    String(String),
    /// Fields by name.
    Map(HashMap<String, serde_json::Value>),
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaneEvent {
    /// What kind of thing; see [`events`].
    pub key: EventKey,
    /// Its fields.
    pub payload: EventPayload,
    /// When, by the wall clock.
    pub timestamp: DateTime<Utc>,
    #[serde(skip)]
    transition: Option<Transition>,
}

impl LaneEvent {
    /// An event that happens now.
    pub fn new(key: impl Into<EventKey>, payload: EventPayload) -> Self {
        Self { key: key.into(), payload, timestamp: wall_now(), transition: None }
    }

    /// An event without fields.
    pub fn empty(key: impl Into<EventKey>) -> Self {
        Self::new(key, EventPayload::Empty)
    }

    /// An event with a text.
    pub fn with_string(key: impl Into<EventKey>, message: impl Into<String>) -> Self {
        Self::new(key, EventPayload::String(message.into()))
    }

    /// An event with fields.
    pub fn with_map(key: impl Into<EventKey>, map: HashMap<String, serde_json::Value>) -> Self {
        Self::new(key, EventPayload::Map(map))
    }

    /// The typed form of an event that a queue emitted; none for one made by hand.
    #[must_use]
    pub fn transition(&self) -> Option<&Transition> {
        self.transition.as_ref()
    }
}

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
        Self { lane_id: Arc::clone(lane_id), command_id, command_type: command_type.into() }
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
    /// Its key in [`events`].
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Submitted(_) => events::QUEUE_COMMAND_SUBMITTED,
            Self::Started(_) => events::QUEUE_COMMAND_STARTED,
            Self::Completed(_) => events::QUEUE_COMMAND_COMPLETED,
            Self::Failed { .. } => events::QUEUE_COMMAND_FAILED,
            Self::TimedOut { .. } => events::QUEUE_COMMAND_TIMEOUT,
            Self::Cancelled { .. } => events::QUEUE_COMMAND_CANCELLED,
            Self::Retrying { .. } => events::QUEUE_COMMAND_RETRY,
            Self::StuckPoll { .. } => events::QUEUE_COMMAND_STUCK,
            Self::Expired { .. } => events::QUEUE_COMMAND_EXPIRED,
            Self::Shed(_) => events::QUEUE_COMMAND_SHED,
            Self::DeadLettered { .. } => events::QUEUE_COMMAND_DEAD_LETTERED,
            Self::DeadLetterEvicted { .. } => events::QUEUE_DEAD_LETTER_EVICTED,
            Self::Parked { .. } => events::QUEUE_COMMAND_PARKED,
            Self::Recovered { .. } => events::QUEUE_RECOVERED,
            Self::StorageFailed { .. } => events::QUEUE_STORAGE_FAILED,
            Self::StorageRecovered => events::QUEUE_STORAGE_RECOVERED,
            Self::Pressure { .. } => events::QUEUE_LANE_PRESSURE,
            Self::Idle { .. } => events::QUEUE_LANE_IDLE,
            Self::ShutdownStarted => events::QUEUE_SHUTDOWN_STARTED,
            Self::ShutdownComplete => events::QUEUE_SHUTDOWN_COMPLETE,
            Self::Lagged(_) => events::QUEUE_EVENTS_LAGGED,
        }
    }

    fn payload(&self) -> EventPayload {
        let command = |command: &CommandInfo| {
            vec![
                ("lane_id", json!(&*command.lane_id)),
                ("command_id", json!(command.command_id.to_string())),
                ("command_type", json!(&*command.command_type)),
            ]
        };
        let fields = match self {
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
        EventPayload::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn into_event(self, timestamp: DateTime<Utc>) -> LaneEvent {
        LaneEvent { key: self.key().into(), payload: self.payload(), timestamp, transition: Some(self) }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What travels from emitter to subscriber.
#[derive(Clone, Debug)]
enum Emitted {
    Transition(Transition, DateTime<Utc>),
    Custom(LaneEvent),
}

/// Tells subscribers what happens. Clones share the subscribers.
#[derive(Clone)]
pub struct EventEmitter {
    shared: Arc<Emitter>,
}

struct Emitter {
    capacity: usize,
    subscribers: AtomicUsize,
    /// Made for the first subscriber: most emitters never have one.
    channel: OnceLock<(Sender<Emitted>, InactiveReceiver<Emitted>)>,
}

impl EventEmitter {
    /// An emitter that keeps up to `capacity` events for a subscriber that is behind: 1 to 1,048,576, others count as the
    /// nearer of these. Room for them is taken when the first subscriber comes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 20);
        Self { shared: Arc::new(Emitter { capacity, subscribers: AtomicUsize::new(0), channel: OnceLock::new() }) }
    }

    /// Sends an event of your own to all subscribers. Never waits.
    pub fn emit(&self, event: LaneEvent) {
        if self.is_observed() {
            self.send(Emitted::Custom(event));
        }
    }

    /// Receives every event emitted from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        let (_, inactive) = self.shared.channel.get_or_init(|| {
            let (mut sender, receiver) = async_broadcast::broadcast(self.shared.capacity);
            sender.set_overflow(true);
            (sender, receiver.deactivate())
        });
        let receiver = inactive.activate_cloned();
        self.shared.subscribers.fetch_add(1, Ordering::AcqRel);
        EventReceiver { receiver: Box::pin(receiver), _subscription: Subscription(Arc::downgrade(&self.shared)) }
    }

    /// Receives the events that `filter` lets pass, and the notice of lost ones.
    pub fn subscribe_filtered(&self, filter: impl Fn(&LaneEvent) -> bool + Send + Sync + 'static) -> EventStream {
        EventStream { receiver: self.subscribe(), filter: Box::new(filter) }
    }

    /// Receives every event, as a stream.
    #[must_use]
    pub fn subscribe_stream(&self) -> EventStream {
        self.subscribe_filtered(|_| true)
    }

    /// Whether anyone subscribed: nothing is built if not.
    #[inline]
    pub(crate) fn is_observed(&self) -> bool {
        self.shared.subscribers.load(Ordering::Relaxed) > 0
    }

    /// Emits the transition that `make` gives, if anyone listens.
    ///
    /// What is told calls others' code (a command's type, a subscriber's waker), whose panic must not stop the teller half-way
    /// through a transition.
    #[inline]
    pub(crate) fn observe(&self, make: impl FnOnce() -> Transition) {
        if self.is_observed() {
            let told = catch_unwind(AssertUnwindSafe(|| self.send(Emitted::Transition(make(), wall_now()))));
            if told.is_err() {
                tracing::error!("an event was lost: a command's type or a subscriber's waker panicked");
            }
        }
    }

    #[cold]
    fn send(&self, event: Emitted) {
        if let Some((sender, _)) = self.shared.channel.get() {
            // Fails only if the last subscriber has just left.
            let _ = sender.try_broadcast(event);
        }
    }
}

impl fmt::Debug for EventEmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventEmitter").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

/// Counts a subscriber for as long as it lives. Does not keep the emitter alive, so that its end is seen.
struct Subscription(std::sync::Weak<Emitter>);

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(emitter) = self.0.upgrade() {
            emitter.subscribers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The emitter is gone: there will be no more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the event emitter is gone")]
pub struct EventsClosed;

/// Receives events; also a [`Stream`] of them. From [`EventEmitter::subscribe`].
pub struct EventReceiver {
    receiver: Pin<Box<Receiver<Emitted>>>,
    _subscription: Subscription,
}

impl EventReceiver {
    /// The next event. A subscriber that was too slow gets a [`Transition::Lagged`] in place of what it lost.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`EventsClosed`] once the emitter (and every queue that has a clone of it) is gone.
    pub async fn recv(&mut self) -> Result<LaneEvent, EventsClosed> {
        std::future::poll_fn(|cx| self.poll(cx)).await.ok_or(EventsClosed)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<LaneEvent>> {
        let event = match ready!(self.receiver.as_mut().poll_recv(cx)) {
            None | Some(Err(RecvError::Closed)) => return Poll::Ready(None),
            Some(Ok(Emitted::Custom(event))) => event,
            Some(Ok(Emitted::Transition(transition, at))) => transition.into_event(at),
            Some(Err(RecvError::Overflowed(missed))) => Transition::Lagged(missed).into_event(wall_now()),
        };
        Poll::Ready(Some(event))
    }
}

impl Stream for EventReceiver {
    type Item = LaneEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LaneEvent>> {
        self.poll(cx)
    }
}

impl fmt::Debug for EventReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventReceiver").finish_non_exhaustive()
    }
}

/// Receives the events that a filter lets pass; a [`Stream`]. From [`EventEmitter::subscribe_filtered`].
pub struct EventStream {
    receiver: EventReceiver,
    filter: Box<dyn Fn(&LaneEvent) -> bool + Send + Sync>,
}

impl EventStream {
    /// The next event that passes; none once the emitter is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<LaneEvent> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<LaneEvent>> {
        loop {
            match ready!(self.receiver.poll(cx)) {
                Some(event) if !is_lag(&event) && !(self.filter)(&event) => {}
                event => return Poll::Ready(event),
            }
        }
    }
}

fn is_lag(event: &LaneEvent) -> bool {
    matches!(event.transition, Some(Transition::Lagged(_)))
}

impl Stream for EventStream {
    type Item = LaneEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LaneEvent>> {
        self.poll(cx)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}
