//! The lane gate: how many commands wait, how many may run, and whether the lane is open, in one word.
//!
//! Everything that can let a waiting command start (a submission, a permit that comes back, a lane that is started or
//! resumed) is one read-modify-write of that word, so whoever makes "waiting > 0, free > 0, not held" true sees it in the
//! result and pumps. Nothing polls. Never: a command waits while a permit is free, once every call has returned; more
//! than the maximum run; a command is accepted after the gate was closed. `loom-tests/gate.rs` tries to break it.
//!
//! The word counts a command before the command is in the queue (only so can counting and "closed" be one step), so a
//! pump may claim a command that is not there yet. It gives the claim back and looks at the queue again; the submitter
//! looks at the word again after its push. With a fence on both sides one of them sees the other.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Bits of each count.
const COUNT_BITS: u32 = 29;
/// Bits 0..29: permits that are free. The rest of the maximum is held by commands that run.
const FREE: u64 = 1;
/// Bits 29..58: commands that wait.
const WAITING: u64 = 1 << COUNT_BITS;
const COUNT_MASK: u64 = WAITING - 1;
/// No more submissions. Never cleared.
const CLOSED: u64 = 1 << 58;
/// The queue was not started yet: nothing is admitted.
const UNSTARTED: u64 = 1 << 59;
/// Paused by the user: nothing is admitted.
const PAUSED: u64 = 1 << 60;
/// The pressure event was sent and the idle event was not.
const PRESSURED: u64 = 1 << 61;
/// Somebody waits for the lane to be idle.
const IDLE_WANTED: u64 = 1 << 62;

const HELD: u64 = UNSTARTED | PAUSED;

/// The largest maximum: 536,870,911.
pub(crate) const COUNT_MAX: usize = COUNT_MASK as usize;

/// The most commands that can wait in a lane: 536,805,375. Below what fits, since each pump that is under way may give
/// one claim back on top.
const WAITING_MAX: u64 = COUNT_MASK - (1 << 16);

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
    max: u64,
}

/// The queue behind a gate: any number of threads push and pop. A pop may miss an item whose push has not returned.
pub(crate) trait Waiting<T> {
    fn push(&self, item: T);
    fn pop(&self) -> Option<T>;
    fn is_empty(&self) -> bool;
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Submitted {
    /// It holds a permit: schedule it.
    Admitted,
    /// It is counted as waiting: call [`Gate::enqueue`].
    Queued,
    /// The gate is closed; nothing was counted.
    Closed,
    /// [`WAITING_MAX`] commands wait; nothing was counted.
    Full,
}

/// A reason to hold commands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Unstarted,
    Paused,
}

impl Hold {
    const fn bit(self) -> u64 {
        match self {
            Self::Unstarted => UNSTARTED,
            Self::Paused => PAUSED,
        }
    }
}

/// Where the permit of a claim comes from.
#[derive(Clone, Copy, Debug)]
enum Permit {
    Free,
    /// The caller holds one and passes it on.
    InHand,
}

/// One consistent look at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GateStatus {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) held: bool,
    pub(crate) paused: bool,
}

/// A change that somebody outside wants to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Nothing waits and nothing runs, and somebody asked, or the gate is closed.
    Idle,
    /// Nothing waits any more in a lane that was under pressure.
    Relieved,
}

impl Gate {
    /// A gate of `max` permits, held until started.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.min(COUNT_MAX) as u64;
        Self { word: AtomicU64::new(UNSTARTED | (max * FREE)), max }
    }

    /// Counts a new command: takes a permit for it if it can run at once.
    pub(crate) fn submit(&self) -> Submitted {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 {
                return Submitted::Closed;
            }
            // Straight past the queue only if nobody waits: first come, first served.
            let admitted = word & HELD == 0 && waiting(word) == 0 && free(word) > 0;
            if !admitted && waiting(word) >= WAITING_MAX {
                return Submitted::Full;
            }
            let new = if admitted { word - FREE } else { word + WAITING };
            // ORDERING: AcqRel, so that a permit's next holder sees what its last one did.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if admitted => return Submitted::Admitted,
                Ok(_) => return Submitted::Queued,
                Err(now) => word = now,
            }
        }
    }

    /// Puts a command that was counted as waiting into the queue, and admits what can be.
    pub(crate) fn enqueue<T>(
        &self,
        item: T,
        queue: &impl Waiting<T>,
        admit: impl FnMut(T) -> bool,
        notice: impl FnMut(Notice),
    ) {
        queue.push(item);
        // ORDERING: pairs with the fence in `pump`: a pump that claimed this command before it was there either finds it
        // when it looks again, or gave its claim back before we read the word.
        fence(Ordering::SeqCst);
        if claimable(self.word.load(Ordering::Relaxed)) {
            self.pump(queue, admit, notice);
        }
    }

    /// Admits waiting commands while there are permits. `admit` says whether the command took its permit; a cancelled
    /// one does not.
    pub(crate) fn pump<T>(
        &self,
        queue: &impl Waiting<T>,
        mut admit: impl FnMut(T) -> bool,
        mut notice: impl FnMut(Notice),
    ) {
        while let Some(relieved) = self.claim(Permit::Free) {
            if !self.admit_claimed(relieved, queue, &mut admit, &mut notice) {
                return;
            }
        }
    }

    /// A command ended and gives its permit back; admits what can be.
    pub(crate) fn release<T>(
        &self,
        queue: &impl Waiting<T>,
        mut admit: impl FnMut(T) -> bool,
        mut notice: impl FnMut(Notice),
    ) {
        // Straight to the next command if one waits: one write of a word that many write, instead of two.
        let goes_on = match self.claim(Permit::InHand) {
            Some(relieved) => self.admit_claimed(relieved, queue, &mut admit, &mut notice),
            None => self.put_back(&mut notice),
        };
        if goes_on {
            self.pump(queue, admit, notice);
        }
    }

    /// Admits the command that was claimed, if it is there. False if it is not, and neither is any other.
    fn admit_claimed<T>(
        &self,
        relieved: bool,
        queue: &impl Waiting<T>,
        admit: &mut impl FnMut(T) -> bool,
        notice: &mut impl FnMut(Notice),
    ) -> bool {
        if relieved {
            // Even if the claim is given back: it has taken the mark of pressure away.
            notice(Notice::Relieved);
        }
        let Some(item) = queue.pop() else {
            // Its submitter has counted it and not pushed it yet.
            self.word.fetch_add(WAITING + FREE, Ordering::AcqRel);
            // ORDERING: see `enqueue`.
            fence(Ordering::SeqCst);
            return !queue.is_empty();
        };
        if !admit(item) {
            let _more = self.put_back(notice);
        }
        true
    }

    /// Returns a permit; says whether a pump has something to do.
    fn put_back(&self, notice: &mut impl FnMut(Notice)) -> bool {
        // ORDERING: AcqRel, see `submit`.
        let word = self.word.fetch_add(FREE, Ordering::AcqRel) + FREE;
        if self.is_idle(word) && word & (CLOSED | IDLE_WANTED) != 0 {
            notice(Notice::Idle);
        }
        claimable(word)
    }

    /// Takes the next waiting command out of the count, along with a permit for it; says whether that leaves a lane under
    /// pressure empty.
    fn claim(&self, permit: Permit) -> Option<bool> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let taken = match permit {
                Permit::Free if claimable(word) => WAITING + FREE,
                Permit::InHand if word & HELD == 0 && waiting(word) > 0 => WAITING,
                _ => return None,
            };
            let relieved = word & PRESSURED != 0 && waiting(word) == 1;
            let new = if relieved { word & !PRESSURED } else { word } - taken;
            // ORDERING: AcqRel, see `submit`.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(relieved),
                Err(now) => word = now,
            }
        }
    }

    /// Empties a lane that nobody can start any more: takes every waiting command out without running it.
    pub(crate) fn abandon<T>(&self, queue: &impl Waiting<T>, mut discard: impl FnMut(T)) {
        // ORDERING: a submitter pushes, fences, and looks whether the lane was abandoned: it sees that, or we see its push.
        fence(Ordering::SeqCst);
        while self.withdraw() {
            match queue.pop() {
                Some(item) => discard(item),
                None => {
                    // As in `pump`.
                    self.word.fetch_add(WAITING, Ordering::AcqRel);
                    fence(Ordering::SeqCst);
                    if queue.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Counts one waiting command less, if there is one.
    fn withdraw(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while waiting(word) > 0 {
            match self.word.compare_exchange_weak(word, word - WAITING, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// True for the one caller that finds `threshold` commands waiting in a lane not yet under pressure.
    pub(crate) fn note_pressure(&self, threshold: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        // One step: were the lane empty by the time the mark is set, no claim would take it away again.
        while word & PRESSURED == 0 && waiting(word) >= threshold as u64 {
            match self.word.compare_exchange_weak(word, word | PRESSURED, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Holds waiting commands back from now on; those admitted run on.
    pub(crate) fn hold(&self, hold: Hold) {
        self.word.fetch_or(hold.bit(), Ordering::AcqRel);
    }

    /// Ends a hold. The caller pumps.
    pub(crate) fn unhold(&self, hold: Hold) {
        self.word.fetch_and(!hold.bit(), Ordering::AcqRel);
    }

    /// Refuses submissions from now on. True for the caller that closed it.
    pub(crate) fn close(&self) -> bool {
        self.word.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Asks for a notice when the lane is idle; true if it is now.
    pub(crate) fn want_idle(&self) -> bool {
        self.is_idle(self.word.fetch_or(IDLE_WANTED, Ordering::AcqRel))
    }

    pub(crate) fn status(&self) -> GateStatus {
        let word = self.word.load(Ordering::Acquire);
        GateStatus {
            waiting: waiting(word) as usize,
            running: (self.max - free(word)) as usize,
            held: word & HELD != 0,
            paused: word & PAUSED != 0,
        }
    }

    fn is_idle(&self, word: u64) -> bool {
        waiting(word) == 0 && free(word) == self.max
    }
}

const fn free(word: u64) -> u64 {
    word & COUNT_MASK
}

const fn waiting(word: u64) -> u64 {
    (word >> COUNT_BITS) & COUNT_MASK
}

const fn claimable(word: u64) -> bool {
    word & HELD == 0 && waiting(word) > 0 && free(word) > 0
}
