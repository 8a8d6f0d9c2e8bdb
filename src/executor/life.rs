//! The life of a task as its handle, its future and its lane see it: one byte, one end.
//!
//! Several parties may end a command: its future (done), its handle (cancelled), a timer or the watch at its deadline
//! (expired), or a lane that has no room (shed). Whoever sets the first terminal bit decides; the others learn that they
//! came late. Nothing else may settle a command.
//!
//! A task that waits to be admitted is *queued*, and may be reached from several places: its lane's line, a second entry
//! in a better place, a timer, its handle. Whoever takes the queued bit away has the task; for the others it is dead.
//! `loom-tests/life.rs` tries to break it.

use crate::sync::atomic::{AtomicU8, Ordering};

/// Holds a permit of its lane. Set at birth or by who admits it; cleared by the future when it gives the permit away and
/// goes on: to wait out its backoff, or for a command of its own.
const ADMITTED: u8 = 1;
/// The first attempt has begun. Set by the future.
const STARTED: u8 = 1 << 1;
/// Terminal: the future ran to its end (value, error, timeout seen at an await, or panic). Set by the future.
const DONE: u8 = 1 << 2;
/// Terminal: cancelled through the handle, or with its parent.
const CANCELLED: u8 = 1 << 3;
/// Terminal: the deadline passed, while it was queued or in a poll.
const EXPIRED: u8 = 1 << 4;
/// Terminal: dropped by its lane, which is full.
const SHED: u8 = 1 << 5;
/// Terminal: ended because its queue stops, not because anybody wanted it to end. Set in one step.
const STOPPED: u8 = CANCELLED | SHED;
/// Waits to be admitted.
const QUEUED: u8 = 1 << 6;
/// Holds one of the places of its key. Set by who admits it.
const KEYED: u8 = 1 << 7;

const TERMINAL: u8 = DONE | CANCELLED | EXPIRED | SHED;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Cancelled,
    Expired,
    Shed,
    /// Its queue stops.
    Stopped,
}

impl End {
    #[inline]
    const fn bit(self) -> u8 {
        match self {
            Self::Done => DONE,
            Self::Cancelled => CANCELLED,
            Self::Expired => EXPIRED,
            Self::Shed => SHED,
            Self::Stopped => STOPPED,
        }
    }
}

/// What a task is when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// It may run at once.
    Admitted,
    /// It waits to be admitted.
    Queued,
    /// It runs without a permit, to wait for its time by itself.
    Apart,
}

/// A task was ended; what that leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// It was queued: who ended it has it, and its entry is dead.
    pub(crate) was_queued: bool,
    pub(crate) had_started: bool,
}

#[derive(Debug)]
pub(crate) struct Life {
    state: AtomicU8,
}

impl Life {
    #[inline]
    pub(crate) fn new(birth: Birth) -> Self {
        let state = match birth {
            Birth::Admitted => ADMITTED,
            Birth::Queued => QUEUED,
            Birth::Apart => 0,
        };
        Self { state: AtomicU8::new(state) }
    }

    /// The future waits to be admitted (again). False if it has ended: then it is not queued.
    #[inline]
    pub(crate) fn queue(&self) -> bool {
        self.change(|state| (state & TERMINAL == 0).then_some(state | QUEUED)).is_ok()
    }

    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        self.state.load(Ordering::Acquire) & QUEUED != 0
    }

    /// Takes a queued task and admits it, `keyed` with a place of its key. False if somebody else has taken it.
    #[inline]
    pub(crate) fn admit(&self, keyed: bool) -> bool {
        let set = if keyed { ADMITTED | KEYED } else { ADMITTED };
        self.change(|state| (state & QUEUED != 0).then_some((state & !QUEUED) | set)).is_ok()
    }

    /// A command that is past its line has a permit (again), and with `keyed` a place of its key: also one that has ended, which
    /// then gives them back.
    #[inline]
    pub(crate) fn hold(&self, keyed: bool) {
        self.state.fetch_or(if keyed { ADMITTED | KEYED } else { ADMITTED }, Ordering::AcqRel);
    }

    /// The future gives its permit away; says whether it had one.
    #[inline]
    pub(crate) fn give_up_permit(&self) -> bool {
        self.state.fetch_and(!ADMITTED, Ordering::AcqRel) & ADMITTED != 0
    }

    /// The future gives the place of its key away; says whether it had one.
    #[inline]
    pub(crate) fn give_up_key(&self) -> bool {
        // Nobody sets the bit of a task that runs.
        self.state.load(Ordering::Acquire) & KEYED != 0 && self.state.fetch_and(!KEYED, Ordering::AcqRel) & KEYED != 0
    }

    #[inline]
    pub(crate) fn is_admitted(&self) -> bool {
        self.state.load(Ordering::Acquire) & ADMITTED != 0
    }

    /// The future begins its first attempt, unless the task has ended.
    #[inline]
    pub(crate) fn start(&self) -> bool {
        self.change(|state| (state & TERMINAL == 0).then_some(state | STARTED)).is_ok()
    }

    #[inline]
    pub(crate) fn has_started(&self) -> bool {
        self.state.load(Ordering::Acquire) & STARTED != 0
    }

    /// How the task ended, if it has.
    #[inline]
    pub(crate) fn end(&self) -> Option<End> {
        ended(self.state.load(Ordering::Acquire))
    }

    /// Ends the task, unless it has ended already: then the error says how.
    #[inline]
    pub(crate) fn try_end(&self, end: End) -> Result<Ended, End> {
        let before = self.change(|state| (state & TERMINAL == 0).then_some((state & !QUEUED) | end.bit()));
        before.map(looked).map_err(|state| ended(state).unwrap_or(end))
    }

    /// Ends the task if it still waits to be admitted.
    #[inline]
    pub(crate) fn end_queued(&self, end: End) -> Option<Ended> {
        self.change(|state| (state & QUEUED != 0).then_some((state & !QUEUED) | end.bit())).ok().map(looked)
    }

    /// Ends the task if it has not started.
    #[inline]
    pub(crate) fn end_unstarted(&self, end: End) -> Option<Ended> {
        self.change(|state| (state & (STARTED | TERMINAL) == 0).then_some((state & !QUEUED) | end.bit()))
            .ok()
            .map(looked)
    }

    /// One step to what `next` says; the state before it, or the state of which `next` says that there is none.
    #[inline]
    fn change(&self, next: impl Fn(u8) -> Option<u8>) -> Result<u8, u8> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let Some(new) = next(state) else { return Err(state) };
            // ORDERING: AcqRel, so that the loser sees what the winner wrote before.
            match self.state.compare_exchange_weak(state, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(state),
                Err(now) => state = now,
            }
        }
    }
}

#[inline]
fn looked(before: u8) -> Ended {
    Ended { was_queued: before & QUEUED != 0, had_started: before & STARTED != 0 }
}

#[inline]
fn ended(state: u8) -> Option<End> {
    match state & TERMINAL {
        0 => None,
        DONE => Some(End::Done),
        CANCELLED => Some(End::Cancelled),
        EXPIRED => Some(End::Expired),
        STOPPED => Some(End::Stopped),
        _ => Some(End::Shed),
    }
}
