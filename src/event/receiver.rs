//! The side of subscribers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use thiserror::Error;

use super::hub::{Hub, Seat};
use super::lane_event::LaneEvent;
use super::merge::Reader;
use super::subscription::{OnOverflow, Subscription};
use super::transition::Transition;

/// The emitter is gone: there will be no more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the event emitter is gone")]
pub struct EventsClosed;

/// Receives events; also a [`Stream`] of them. From [`EventEmitter::subscribe`](crate::EventEmitter::subscribe).
///
/// Who waits is woken at once by most events, and within about a millisecond by the frequent ones: that a command was
/// submitted, has started, or has completed.
pub struct EventReceiver {
    reader: Reader,
    seat: Arc<Seat>,
    hub: Arc<Hub>,
}

impl EventReceiver {
    pub(super) fn new(hub: &Arc<Hub>, subscription: Subscription) -> Self {
        let conflates = subscription.on_overflow == OnOverflow::Conflate;
        let seat = Arc::new(Seat::new(subscription.kinds, conflates));
        // First said what is wanted, then looked how far the logs are: what is told after this is seen.
        hub.sit(&seat);
        Self { reader: Reader::new(Arc::clone(hub), subscription), seat, hub: Arc::clone(hub) }
    }

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
        // In this order: what was told before the end is received.
        let closed = self.hub.is_closed();
        if let Some(event) = self.reader.next() {
            return Poll::Ready(Some(event));
        }
        if closed {
            return Poll::Ready(None);
        }
        self.hub.waits(&self.seat, cx.waker(), self.reader.seen());
        let closed = self.hub.is_closed();
        let event = self.reader.next();
        if event.is_none() && !closed {
            return Poll::Pending;
        }
        self.hub.stops_waiting(&self.seat);
        Poll::Ready(event)
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.hub.leave(&self.seat);
        self.reader.count_left();
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

/// Receives the events that a filter lets pass; a [`Stream`]. From
/// [`EventEmitter::subscribe_filtered`](crate::EventEmitter::subscribe_filtered).
pub struct EventStream {
    receiver: EventReceiver,
    filter: Filter,
}

type Filter = Box<dyn Fn(&LaneEvent) -> bool + Send + Sync>;

impl EventStream {
    pub(super) fn new(receiver: EventReceiver, filter: Filter) -> Self {
        Self { receiver, filter }
    }

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
    matches!(event.transition(), Some(Transition::Lagged(_)))
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
