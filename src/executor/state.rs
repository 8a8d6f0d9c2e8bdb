//! The state of a task: one word, of which each transition is one method.
//!
//! Bits 44..64 count *wakes* that no poll has answered. More than none means that the task is due: one [`Runnable`] exists,
//! on a queue, being polled, or parked. Who adds the first wake makes it; a poll takes off those that it saw when it began,
//! and what is left then makes the task due again. So there is no write before a poll, and a wake is one addition.
//!
//! Bits 8..44 count *references*: one of the task itself until its future is gone, one of its join handle, one of each waker
//! and [`Handle`]. Whoever takes the last one away destroys the cell. A task that nobody else refers to, which its only
//! reference can see, ends without a write.
//!
//! `loom-tests/cell.rs` and `loom-tests/lift.rs` try to break it.
//!
//! [`Runnable`]: super::cell::Runnable
//! [`Handle`]: super::cell::Handle

use crate::sync::atomic::{AtomicU64, Ordering};

/// The runnable lies in the cell, and whoever takes the bit away has it. Set at birth or by who has the runnable.
const PARKED: u64 = 1;
/// The task is to be dropped at its next turn. Set by the join handle, once, with a wake.
const CLOSED: u64 = 1 << 1;
/// The future is gone. Set by who has the runnable, once. Never cleared; wakes count for nothing from here on.
const DONE: u64 = 1 << 2;
/// With `DONE`: what the future returned, or panicked with, is in the cell, for the join handle.
const VALUE: u64 = 1 << 3;
/// A waker of who awaits the task is in its place. Until `DONE`, the join handle may take the bit away to have that place to
/// itself; from then on it belongs to who set `DONE`.
const AWAITED: u64 = 1 << 4;
/// There is a join handle. Never set again.
const JOINED: u64 = 1 << 5;
const REFERENCE: u64 = 1 << 8;
const REFERENCES: u64 = (WAKE - 1) & !(REFERENCE - 1);
const WAKE: u64 = 1 << 44;
const WAKES: u64 = !(WAKE - 1);

/// From here on wakes are not counted: they would overflow. The other half is for threads that have just seen less. Few
/// where loom looks, which so gets there.
const WAKES_MAX: u64 = if cfg!(all(test, corelane_loom)) { 3 * WAKE } else { 1 << 63 };
/// More references than any program has room for wakers.
const REFERENCES_MAX: u64 = 1 << 43;

#[derive(Debug)]
pub(crate) struct State {
    word: AtomicU64,
}

/// How a turn begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Turn {
    Poll(Seen),
    /// The task was closed: drop its future.
    Drop,
}

/// The wakes that a poll answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u64);

/// What a poll in vain leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Vain {
    /// The task waits. It may be anywhere by now, or gone.
    Waits,
    /// It was woken meanwhile: the caller still has the runnable, and schedules it.
    Due,
}

/// What a wake leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    Nothing,
    /// The task has become due: the caller has the runnable, and schedules it.
    Due,
    /// The caller's reference was the last one.
    Destroy,
}

/// What the end of a task leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Finish {
    /// Nothing; the caller's reference is gone.
    Left,
    /// The awaiter is the caller's: wake it, then release.
    Wake,
    /// Nobody wants the value: drop it, then [`State::finish_unwanted`].
    Unwanted,
}

/// What the join handle finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Joined {
    /// The task goes on; see the method for what that means for the handle.
    NotYet,
    /// It is done: with a value that is the handle's, or without one.
    Done { value: bool },
}

impl State {
    /// Of a task that is due, with a join handle; with `parked`, also with a [`Handle`](super::cell::Handle), and parked.
    #[inline]
    pub(crate) fn new(parked: bool) -> Self {
        let word = WAKE | JOINED | (2 * REFERENCE);
        Self { word: AtomicU64::new(if parked { (word | PARKED) + REFERENCE } else { word }) }
    }

    /// Called with the runnable, as are those below.
    #[inline]
    pub(crate) fn begin_turn(&self) -> Turn {
        // ORDERING: acquire, so that the poll sees what was written before each wake that it answers: all writes to the word
        // are read-modify-writes, so this reads from every one of those wakes.
        let word = self.word.load(Ordering::Acquire);
        // One stays if they are not all counted, for those which that leaves out during the poll.
        if word & CLOSED != 0 { Turn::Drop } else { Turn::Poll(Seen((word & WAKES).min(WAKES_MAX - WAKE))) }
    }

    /// The poll was in vain.
    #[inline]
    pub(crate) fn end_turn(&self, Seen(wakes): Seen) -> Vain {
        // ORDERING: release, so that the next poll, perhaps on another thread, sees what this one wrote; acquire, since the next
        // turn may be ours again.
        let before = self.word.fetch_sub(wakes, Ordering::AcqRel);
        if before & WAKES == wakes { Vain::Waits } else { Vain::Due }
    }

    /// Whether a value would be wanted.
    #[inline]
    pub(crate) fn is_joined(&self) -> bool {
        self.word.load(Ordering::Acquire) & JOINED != 0
    }

    /// The future is gone; with `value`, it has left one in the cell. Takes the task's own reference away, but for
    /// [`Finish::Wake`] and [`Finish::Unwanted`].
    #[inline]
    pub(crate) fn finish(&self, value: bool) -> Finish {
        let done = if value { DONE | VALUE } else { DONE };
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & JOINED == 0 {
                return Finish::Unwanted;
            }
            let awaited = word & AWAITED != 0;
            let new = if awaited { word | done } else { (word | done) - REFERENCE };
            // ORDERING: release, so that the handle sees the value; acquire, so that we see the awaiter.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if awaited => return Finish::Wake,
                Ok(_) => return Finish::Left,
                Err(now) => word = now,
            }
        }
    }

    /// The future is gone and nobody will ask. True if the cell is to be destroyed.
    #[must_use]
    #[inline]
    pub(crate) fn finish_unwanted(&self) -> bool {
        // ORDERING: acquire: the only reference left is ours, so nobody can add one, and what others did with theirs is done.
        if self.word.load(Ordering::Acquire) & REFERENCES == REFERENCE {
            return true;
        }
        let before = self.word.fetch_add(DONE.wrapping_sub(REFERENCE), Ordering::AcqRel);
        before & REFERENCES == REFERENCE
    }

    /// Parks the runnable, for a handle that this makes.
    #[inline]
    pub(crate) fn park(&self) {
        // ORDERING: release, so that who takes it out sees the task as it is here.
        let before = self.word.fetch_add(PARKED + REFERENCE, Ordering::Release);
        debug_assert!(before & PARKED == 0, "a task is parked once at a time");
    }

    /// Takes the runnable out, for the one caller that comes first.
    #[must_use]
    #[inline]
    pub(crate) fn unpark(&self) -> bool {
        self.word.fetch_and(!PARKED, Ordering::AcqRel) & PARKED != 0
    }

    /// Takes the runnable out along with the reference of the caller, who had it for that; if it is not there, the caller keeps
    /// the reference.
    #[must_use]
    #[inline]
    pub(crate) fn unpark_and_release(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & PARKED != 0 {
            // ORDERING: acquire, see `park`.
            let new = word - PARKED - REFERENCE;
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    #[inline]
    pub(crate) fn is_parked(&self) -> bool {
        self.word.load(Ordering::Acquire) & PARKED != 0
    }

    /// A wake that leaves the caller's reference alone: never [`Woken::Destroy`].
    #[inline]
    pub(crate) fn wake(&self) -> Woken {
        self.add_wake(0)
    }

    /// A wake that takes the caller's reference away.
    #[inline]
    pub(crate) fn wake_and_release(&self) -> Woken {
        self.add_wake(REFERENCE)
    }

    /// Has the task dropped at its next turn, which comes.
    #[inline]
    pub(crate) fn close(&self) -> Woken {
        // ORDERING: as in `add_wake`.
        let before = self.word.fetch_add(WAKE + CLOSED, Ordering::AcqRel);
        debug_assert!(before & CLOSED == 0, "a task is closed once");
        if before & (WAKES | DONE) == 0 { Woken::Due } else { Woken::Nothing }
    }

    #[inline]
    fn add_wake(&self, released: u64) -> Woken {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & DONE == 0 && word >= WAKES_MAX {
            match self.add_wake_uncounted(word, released) {
                Ok(()) => return Woken::Nothing,
                Err(now) => word = now,
            }
        }
        let done = word & DONE != 0;
        if done && released == 0 {
            return Woken::Nothing;
        }
        let wake = if done { 0 } else { WAKE };
        // ORDERING: release, so that the poll that answers sees what came before; acquire, for who runs it or destroys it. Also
        // for a task that is due: its poll may have begun, and has to see what this wake is about.
        let before = self.word.fetch_add(wake.wrapping_sub(released), Ordering::AcqRel);
        if released != 0 && before & REFERENCES == REFERENCE {
            return Woken::Destroy;
        }
        if !done && before & (WAKES | DONE) == 0 { Woken::Due } else { Woken::Nothing }
    }

    /// The task is due, and will still be when the poll that may have begun ends. In one step with the look: that poll could end
    /// in between.
    #[cold]
    fn add_wake_uncounted(&self, word: u64, released: u64) -> Result<(), u64> {
        // ORDERING: as in `add_wake`. The last reference is never released here: a task that is not done has its own.
        self.word.compare_exchange(word, word - released, Ordering::AcqRel, Ordering::Relaxed).map(drop)
    }

    /// One more reference.
    #[inline]
    pub(crate) fn refer(&self) {
        let before = self.word.fetch_add(REFERENCE, Ordering::Relaxed);
        if before & REFERENCES > REFERENCES_MAX {
            // As Arc does: a counter that wraps would free what is in use.
            std::process::abort();
        }
    }

    /// One reference less. True if the cell is to be destroyed.
    #[must_use]
    #[inline]
    pub(crate) fn release(&self) -> bool {
        // ORDERING: the last reference sees that it is: nobody can add one, and what the others did is done.
        self.word.load(Ordering::Acquire) & REFERENCES == REFERENCE
            || self.word.fetch_sub(REFERENCE, Ordering::AcqRel) & REFERENCES == REFERENCE
    }

    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.word.load(Ordering::Acquire) & DONE != 0
    }

    /// Called by the join handle, as are those below. [`Joined::NotYet`]: the awaiter's place is the handle's.
    #[inline]
    pub(crate) fn begin_await(&self) -> Joined {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & DONE != 0 {
                return done(word);
            }
            if word & AWAITED == 0 {
                return Joined::NotYet;
            }
            // ORDERING: acquire and release, as the handle may be on another thread than when it set the bit.
            match self.word.compare_exchange_weak(word, word & !AWAITED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Joined::NotYet,
                Err(now) => word = now,
            }
        }
    }

    /// The awaiter is in its place. [`Joined::NotYet`]: it will be woken. [`Joined::Done`]: it will not, and is the handle's.
    #[inline]
    pub(crate) fn end_await(&self) -> Joined {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & DONE != 0 {
                return done(word);
            }
            // ORDERING: release, so that who ends the task sees the awaiter.
            match self.word.compare_exchange_weak(word, word | AWAITED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Joined::NotYet,
                Err(now) => word = now,
            }
        }
    }

    /// The handle goes. [`Joined::NotYet`]: it is gone, and so is its reference. [`Joined::Done`]: it is to deal with the value
    /// and to release.
    #[inline]
    pub(crate) fn leave(&self) -> Joined {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & DONE != 0 {
                return done(word);
            }
            let new = word - JOINED - REFERENCE;
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Joined::NotYet,
                Err(now) => word = now,
            }
        }
    }
}

#[inline]
fn done(word: u64) -> Joined {
    Joined::Done { value: word & VALUE != 0 }
}
