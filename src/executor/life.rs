//! The life of a task as its handle and its future both see it: one byte, one end.
//!
//! Several parties may end a command: its future (done), its handle (cancelled), or the watch at its deadline while a
//! poll is stuck (expired). Whoever sets the first terminal bit decides; the others learn that they came late. Nothing
//! else may settle a command. `loom-tests/life.rs` tries to break it.

use crate::sync::atomic::{AtomicU8, Ordering};

/// Allowed to run: set at birth or by the lane gate, never cleared. A future that is dropped without it holds no permit.
const ADMITTED: u8 = 1;
/// The first attempt has begun. Set by the future.
const STARTED: u8 = 1 << 1;
/// Terminal: the future ran to its end (value, error, timeout seen at an await, or panic). Set by the future.
const DONE: u8 = 1 << 2;
/// Terminal: cancelled through the handle. Set by the handle.
const CANCELLED: u8 = 1 << 3;
/// Terminal: the deadline passed while a poll was running. Set by the watch.
const EXPIRED: u8 = 1 << 4;

const TERMINAL: u8 = DONE | CANCELLED | EXPIRED;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Cancelled,
    Expired,
}

impl End {
    const fn bit(self) -> u8 {
        match self {
            Self::Done => DONE,
            Self::Cancelled => CANCELLED,
            Self::Expired => EXPIRED,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Life {
    state: AtomicU8,
}

impl Life {
    pub(crate) fn new(admitted: bool) -> Self {
        Self { state: AtomicU8::new(if admitted { ADMITTED } else { 0 }) }
    }

    /// The gate lets a queued task run. Happens before the task is pushed to a run queue.
    pub(crate) fn admit(&self) {
        self.state.fetch_or(ADMITTED, Ordering::AcqRel);
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.state.load(Ordering::Acquire) & ADMITTED != 0
    }

    pub(crate) fn start(&self) {
        self.state.fetch_or(STARTED, Ordering::AcqRel);
    }

    pub(crate) fn has_started(&self) -> bool {
        self.state.load(Ordering::Acquire) & STARTED != 0
    }

    /// How the task ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        ended(self.state.load(Ordering::Acquire))
    }

    /// Ends the task, unless it has ended already: then the error says how.
    pub(crate) fn try_end(&self, end: End) -> Result<(), End> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if let Some(earlier) = ended(state) {
                return Err(earlier);
            }
            // ORDERING: AcqRel, so that the loser sees what the winner wrote before ending the task.
            match self.state.compare_exchange_weak(state, state | end.bit(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => state = now,
            }
        }
    }
}

fn ended(state: u8) -> Option<End> {
    match state & TERMINAL {
        0 => None,
        DONE => Some(End::Done),
        CANCELLED => Some(End::Cancelled),
        _ => Some(End::Expired),
    }
}
