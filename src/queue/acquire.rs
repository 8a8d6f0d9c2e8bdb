//! Admission without running: a permit of a lane, for hosts that run the work themselves.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

use super::admission::LaneCore;
use crate::error::{LaneError, Result};

/// Waits.
const WAITING: u8 = 0;
/// Has a permit.
const GRANTED: u8 = 1;
/// Will not get one: its lane has stopped.
const REFUSED: u8 = 2;
/// Will not get one: it was dropped from its lane, which is full.
const SHED: u8 = 4;
/// Does not want one any more.
const GONE: u8 = 3;

/// A host's place in a line.
#[derive(Debug)]
pub(super) struct Grant {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Grant {
    pub(super) fn is_waiting(&self) -> bool {
        self.state.load(Ordering::Acquire) == WAITING
    }

    /// Gives a permit; false if the host does not want one any more.
    pub(super) fn grant(&self) -> bool {
        self.turn(GRANTED)
    }

    pub(super) fn refuse(&self) -> bool {
        self.turn(REFUSED)
    }

    pub(super) fn shed(&self) -> bool {
        self.turn(SHED)
    }

    fn turn(&self, to: u8) -> bool {
        // ORDERING: AcqRel: one of the line and the host decides, and the other sees what it did before.
        let turned = self.state.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if turned {
            self.waker.wake();
        }
        turned
    }
}

/// Waits for a [`Permit`]; from [`Lane::acquire`](crate::Lane::acquire). It stands in the lane's line, between commands,
/// from the call that made it. Cancel-safe: dropped, it leaves the line, and gives back a permit that it had got.
#[must_use = "a permit is there once this is awaited"]
pub struct Acquire {
    state: State,
}

enum State {
    /// Has its permit, or was refused.
    Ready(Result<Arc<LaneCore>>),
    Waiting(Arc<LaneCore>, Arc<Grant>),
    Done,
}

impl Acquire {
    pub(super) fn ready(lane: Result<Arc<LaneCore>>) -> Self {
        Self { state: State::Ready(lane) }
    }

    pub(super) fn waiting(lane: Arc<LaneCore>) -> (Self, Arc<Grant>) {
        let grant = Arc::new(Grant { state: AtomicU8::new(WAITING), waker: AtomicWaker::new() });
        (Self { state: State::Waiting(lane, Arc::clone(&grant)) }, grant)
    }
}

impl Future for Acquire {
    type Output = Result<Permit>;

    /// # Panics
    ///
    /// If it is polled again after it has given its permit.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Waiting(_, grant) = &self.state {
            grant.waker.register(cx.waker());
            if grant.is_waiting() {
                return Poll::Pending;
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.state, State::Done) {
            State::Ready(lane) => lane.map(|lane| Permit { lane }),
            State::Waiting(lane, grant) => match grant.state.load(Ordering::Acquire) {
                GRANTED => Ok(Permit { lane }),
                SHED => Err(LaneError::Shed),
                _ => Err(LaneError::ShutdownInProgress),
            },
            State::Done => panic!("an Acquire was polled after it had given its permit"),
        })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Ready(Ok(lane)) => lane.release(),
            State::Waiting(lane, grant) => match grant.state.swap(GONE, Ordering::AcqRel) {
                WAITING => lane.bury(1),
                GRANTED => lane.release(),
                _ => {}
            },
            State::Ready(Err(_)) | State::Done => {}
        }
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = matches!(self.state, State::Waiting(..));
        f.debug_struct("Acquire").field("waiting", &waiting).finish_non_exhaustive()
    }
}

/// One of a lane's permits: while it lives, the lane runs one command fewer. Dropping it gives it back. A drain waits for it.
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    lane: Arc<LaneCore>,
}

impl Permit {
    pub(super) fn new(lane: Arc<LaneCore>) -> Self {
        Self { lane }
    }

    /// The lane that it belongs to.
    #[must_use]
    pub fn lane_id(&self) -> &str {
        &self.lane.id
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.lane.release();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("lane", &self.lane.id).finish()
    }
}
