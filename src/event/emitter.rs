//! The side of those who tell.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::hub::{CALL, Hub};
use super::kind::{EVERY_KIND, EventKind};
use super::lane_event::LaneEvent;
use super::log::UNMEASURED;
use super::receiver::{EventReceiver, EventStream};
use super::recorder::{self, Recording};
use super::subscription::Subscription;
use super::transition::{CommandInfo, Transition};
use super::writers;
use crate::clock::Clock;
use crate::id::CommandId;

/// Tells subscribers what happens. Clones share the subscribers.
///
/// ```
/// use corelane::{EventEmitter, LaneEvent};
///
/// let emitter = EventEmitter::new(100);
/// let mut receiver = emitter.subscribe();
/// emitter.emit(LaneEvent::empty("mine"));
/// assert_eq!(futures_lite::future::block_on(receiver.recv())?.key, "mine");
/// # Ok::<(), corelane::EventsClosed>(())
/// ```
#[derive(Clone)]
pub struct EventEmitter {
    hub: Arc<Hub>,
    _alive: Arc<Alive>,
}

/// Dropped with the last emitter: the subscribers have the hub, too.
struct Alive(Arc<Hub>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A kind of event that every command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrequentKind {
    Submitted = EventKind::Submitted as isize,
    Started = EventKind::Started as isize,
    Completed = EventKind::Completed as isize,
}

impl FrequentKind {
    pub(crate) const fn kind(self) -> EventKind {
        match self {
            Self::Submitted => EventKind::Submitted,
            Self::Started => EventKind::Started,
            Self::Completed => EventKind::Completed,
        }
    }

    /// Its bit in [`EventEmitter::interest`].
    #[inline]
    pub(crate) const fn bit(self) -> u32 {
        self.kind().bit()
    }

    pub(super) fn transition(self, command: CommandInfo) -> Transition {
        match self {
            Self::Submitted => Transition::Submitted(command),
            Self::Started => Transition::Started(command),
            Self::Completed => Transition::Completed(command),
        }
    }
}

/// An event that every command has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frequent<'a> {
    pub(crate) kind: FrequentKind,
    pub(crate) id: CommandId,
    pub(crate) lane: &'a Arc<str>,
    pub(crate) command_type: &'a str,
    /// Taken once what caused it had been told, and before anybody can see it.
    pub(crate) stamp: u64,
    /// How long the command has waited, or run; [`UNMEASURED`] if that is not known.
    pub(crate) nanos: u64,
}

impl EventEmitter {
    /// An emitter that keeps up to `capacity` events of each thread for a subscriber that is behind: 1 to 1,048,576, others
    /// count as the nearer of these. Room for them, 64 bytes each, is taken when a thread tells its first event to a subscriber.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let hub = Arc::new(Hub::new(clamp(capacity)));
        Self { _alive: Arc::new(Alive(Arc::clone(&hub))), hub }
    }

    /// An emitter that [records](EventEmitter::record) the last `events` of each thread.
    #[must_use]
    pub fn with_recorder(events: usize) -> Self {
        let emitter = Self::new(events);
        emitter.record(events);
        emitter
    }

    /// Keeps the last `events` of each thread from now on, as a flight recorder does, whether or not anybody has subscribed:
    /// about 40 instructions for each event. For [`EventEmitter::recording`]. The number is bounded as that of
    /// [`EventEmitter::new`]; a thread that has told an event before keeps as many as it did.
    pub fn record(&self, events: usize) {
        self.hub.record(clamp(events));
    }

    /// A copy of what is recorded, in order. Empty if nothing is. Meanwhile the queues go on.
    #[must_use]
    pub fn recording(&self) -> Recording {
        recorder::copy(&self.hub)
    }

    /// Has the recording written to `path` at the first panic from now on, wherever it is, also in a command: what came before
    /// it. As [`Recording::to_perfetto`] if the path ends in `.json`, otherwise as [`Recording::to_json_lines`]. The panic hook
    /// that was set before is called first. Does nothing if the emitter is gone or the file can not be written.
    pub fn dump_on_panic(&self, path: impl Into<std::path::PathBuf>) {
        recorder::dump_on_panic(Arc::downgrade(&self.hub), path.into());
    }

    /// Sends an event of your own to all subscribers, and wakes them. Never waits for them.
    pub fn emit(&self, event: LaneEvent) {
        if self.hub.interest().load(Ordering::Relaxed) & EventKind::Custom.bit() != 0 {
            self.hub.tell_custom(event);
        }
    }

    /// Receives every event emitted from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        self.subscribe_with(Subscription::new())
    }

    /// Receives the events that `filter` lets pass, and the notice of lost ones. To choose by kind or lane, a
    /// [`Subscription`] is cheaper.
    pub fn subscribe_filtered(&self, filter: impl Fn(&LaneEvent) -> bool + Send + Sync + 'static) -> EventStream {
        EventStream::new(self.subscribe(), Box::new(filter))
    }

    /// Receives every event, as a stream.
    #[must_use]
    pub fn subscribe_stream(&self) -> EventStream {
        self.subscribe_filtered(|_| true)
    }

    /// Receives what the subscription asks for, from now on.
    #[must_use]
    pub fn subscribe_with(&self, subscription: Subscription) -> EventReceiver {
        EventReceiver::new(&self.hub, subscription)
    }

    /// How many events subscribers have lost, all together, as far as they have noticed it: when they receive
    /// [`Transition::Lagged`], or are dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.hub.dropped()
    }

    /// Tells emitters apart; never given again.
    pub(crate) fn number(&self) -> u64 {
        self.hub.number
    }

    /// A bit for each kind that somebody wants; 0 if nobody wants anything. May have other bits beside.
    #[inline]
    pub(crate) fn interest(&self) -> &AtomicU32 {
        self.hub.interest()
    }

    /// Whether somebody wants events of this kind.
    #[inline]
    pub(crate) fn wants(&self, kind: FrequentKind) -> bool {
        self.interest().load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Tells an event that somebody [wants](EventEmitter::wants). Wakes nobody.
    pub(crate) fn frequent(&self, frequent: Frequent<'_>) {
        let hub = &*self.hub;
        if !writers::with_last(hub.key(), |log| log.push_frequent(&frequent)) {
            hub.tell_frequent(&frequent);
        }
        if hub.interest().load(Ordering::Relaxed) & CALL != 0 {
            hub.called();
        }
    }

    /// Emits the transition that `make` gives, if anyone listens, and wakes them.
    ///
    /// What is told calls others' code (a command's type), whose panic must not stop the teller half-way through a transition.
    #[inline]
    pub(crate) fn observe(&self, make: impl FnOnce() -> Transition) {
        self.observe_timed(UNMEASURED, make);
    }

    /// As [`EventEmitter::observe`], of a command that has run for so many nanoseconds.
    #[inline]
    pub(crate) fn observe_timed(&self, nanos: u64, make: impl FnOnce() -> Transition) {
        if self.interest().load(Ordering::Relaxed) & EVERY_KIND != 0 {
            let told = catch_unwind(AssertUnwindSafe(|| self.hub.tell_transition(make(), nanos)));
            if told.is_err() {
                tracing::error!("an event was lost: a command's type panicked");
            }
        }
    }

    /// Events happen in this clock's time.
    pub(crate) fn runs_on(&self, clock: &Clock) {
        self.hub.runs_on(clock);
    }
}

fn clamp(capacity: usize) -> usize {
    capacity.clamp(1, 1 << 20)
}

impl fmt::Debug for EventEmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventEmitter").field("capacity", &self.hub.capacity).finish_non_exhaustive()
    }
}
