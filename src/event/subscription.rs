//! What a subscriber asks for.

use super::kind::{EVERY_KIND, EventKind};

/// What happens to events that a subscriber is too slow for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOverflow {
    /// The oldest ones are lost, and the subscriber is told how many, in their place. The default.
    #[default]
    DropOldest,
    /// While the subscriber is behind, only the newest event of each lane and kind is kept, and nothing is told of the others:
    /// for displays of the present state. A worker that overwrites an event saves it then, under a lock of its own: about a
    /// hundred instructions more for each event. Custom events are kept by their keys, all of them for as long as somebody
    /// conflates: let keys be few. Events that come while the subscription begins may be lost all the same.
    Conflate,
}

/// What a subscriber asks for: for [`EventEmitter::subscribe_with`](crate::EventEmitter::subscribe_with).
///
/// ```
/// use corelane::{EventEmitter, EventKind, Subscription};
///
/// let emitter = EventEmitter::new(1_000);
/// let failures = Subscription::new().kinds([EventKind::Failed, EventKind::TimedOut]).lanes(["query"]);
/// let receiver = emitter.subscribe_with(failures);
/// # drop(receiver);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Subscription {
    pub(super) kinds: u32,
    pub(super) lanes: Option<Vec<String>>,
    pub(super) capacity: usize,
    pub(super) on_overflow: OnOverflow,
    pub(super) payload: bool,
}

impl Default for Subscription {
    fn default() -> Self {
        Self::new()
    }
}

impl Subscription {
    /// Every event; the oldest are dropped.
    pub const fn new() -> Self {
        let on_overflow = OnOverflow::DropOldest;
        Self { kinds: EVERY_KIND, lanes: None, capacity: usize::MAX, on_overflow, payload: true }
    }

    /// Events of these kinds alone. What nobody asks for is not even told. Default: all.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = kinds.into_iter().fold(0, |kinds, kind| kinds | kind.bit()) & EVERY_KIND;
        self
    }

    /// Events of these lanes alone; none that are about no lane. Default: all.
    pub fn lanes<L: Into<String>>(mut self, lanes: impl IntoIterator<Item = L>) -> Self {
        self.lanes = Some(lanes.into_iter().map(Into::into).collect());
        self
    }

    /// How many events of each thread the subscriber may be behind: at least 1, and not more than its emitter keeps, which is
    /// the default. All events count, also those that it did not ask for. Without effect where events are conflated.
    pub const fn capacity(mut self, events: usize) -> Self {
        self.capacity = if events == 0 { 1 } else { events };
        self
    }

    /// What happens to events that the subscriber is too slow for. Default: the oldest are dropped.
    pub const fn on_overflow(mut self, on_overflow: OnOverflow) -> Self {
        self.on_overflow = on_overflow;
        self
    }

    /// Leaves the payload of queues' events empty: for who looks at
    /// [`LaneEvent::transition`](crate::LaneEvent::transition), which is much cheaper to make.
    pub const fn without_payload(mut self) -> Self {
        self.payload = false;
        self
    }
}
