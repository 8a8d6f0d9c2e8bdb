//! The lane gate: how many commands wait, how many may run, and whether the lane is open, in one word.
//!
//! Everything that can let a waiting command start (a submission, a permit that comes back, a lane that is started or
//! resumed, a larger maximum, a rate limit that has time again) is one read-modify-write of that word, so whoever makes
//! "waiting > 0, running < max, not held" true sees it in the result and pumps. Nothing polls. Never: a command waits
//! while a permit is free, once every call has returned; more than the maximum run; a command is accepted after the gate
//! was closed. `loom-tests/gate.rs` tries to break it.
//!
//! The word counts a command before the command is in the queue (only so can counting and "closed" be one step), so a
//! pump may claim a command that is not there yet. It gives the claim back and looks at the queue again; the submitter
//! looks at the word again after its push. With a fence on both sides one of them sees the other. The same holds for the
//! maximum, which is a word of its own: who changes it fences and pumps, who changes the counts or ends a hold fences and
//! reads it.
//!
//! Two marks stop admission until somebody takes them away: *throttled*, set by the one refusal of the rate limit that
//! then arms the timer; *nested*, set while permits are lent (`queue/nested`), which sends whoever gives one back there.

use std::sync::{Arc, OnceLock};

use super::pool::Pool;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::fence_after_rmw;

/// Bits of each count.
const COUNT_BITS: u32 = 28;
/// Bits 0..28: permits that are held.
const RUNNING: u64 = 1;
/// Bits 28..56: commands that wait in the line, including the dead.
const WAITING: u64 = 1 << COUNT_BITS;
const COUNT_MASK: u64 = WAITING - 1;
/// No more submissions. Never cleared.
const CLOSED: u64 = 1 << 56;
/// The queue was not started yet: nothing is admitted.
const UNSTARTED: u64 = 1 << 57;
/// Paused by the user: nothing is admitted.
const PAUSED: u64 = 1 << 58;
/// The pressure event was sent and the idle event was not.
const PRESSURED: u64 = 1 << 59;
/// Somebody waits for the lane to be idle.
const IDLE_WANTED: u64 = 1 << 60;
/// The rate limit has refused a command; a timer will clear this and pump.
const THROTTLED: u64 = 1 << 61;
/// Permits are lent, or wanted by commands that others wait for.
const NESTED: u64 = 1 << 62;
/// Held by the store: it has failed, or a command is on trial. Nothing is admitted.
const STORE: u64 = 1 << 63;

const HELD: u64 = UNSTARTED | PAUSED | STORE;
/// With any of these, no waiting command is admitted.
const STOPPED: u64 = HELD | THROTTLED;

/// The largest maximum: 268,435,455.
pub(crate) const COUNT_MAX: usize = COUNT_MASK as usize;

/// The most commands that can wait in a lane: 268,369,919. Below what fits, since each pump that is under way may give
/// one claim back on top.
pub(crate) const WAITING_MAX: u64 = COUNT_MASK - (1 << 16);

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
    max: AtomicU64,
    /// Set if the lane shares a limit with others.
    seat: OnceLock<Seat>,
}

/// A lane's place at a limit that several share.
#[derive(Debug)]
struct Seat {
    pool: Arc<Pool>,
    lane: u32,
    /// Permits that need nothing from the pool: they are held back for this lane.
    min: u64,
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
    /// No more room in the line; nothing was counted.
    Full,
}

/// What became of a command that was taken out of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has taken the permit.
    Admitted,
    /// It needs none: somebody else has it.
    Dead,
    /// The rate limit refused it: it is back in the line.
    Refused,
}

/// A reason to hold commands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Unstarted,
    Paused,
    Store,
}

impl Hold {
    const fn bit(self) -> u64 {
        match self {
            Self::Unstarted => UNSTARTED,
            Self::Paused => PAUSED,
            Self::Store => STORE,
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
    pub(crate) unstarted: bool,
    pub(crate) paused: bool,
    pub(crate) closed: bool,
    pub(crate) throttled: bool,
}

/// A change that somebody outside wants to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Nothing runs and nothing can, and somebody asked, or the gate is closed.
    Idle,
    /// Nothing waits any more in a lane that was under pressure.
    Relieved,
    /// The caller has set the mark of a refusal: it arms the timer.
    Throttled,
}

impl Gate {
    /// A gate of `max` permits, held until started.
    pub(crate) fn new(max: usize) -> Self {
        Self { word: AtomicU64::new(UNSTARTED), max: AtomicU64::new(limit(max)), seat: OnceLock::new() }
    }

    /// Has the lane share a pool, of which `min` permits are its own. Before the first submission.
    pub(crate) fn join(&self, pool: Arc<Pool>, lane: u32, min: usize) {
        // Set once: a lane is registered once.
        let _ = self.seat.set(Seat { pool, lane, min: min as u64 });
    }

    /// Changes the maximum. The caller pumps. Commands that run above it run on.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(limit(max), Ordering::Release);
        // ORDERING: see the module's header.
        fence(Ordering::SeqCst);
    }

    /// Counts a new command: takes a permit for it if it can run at once (and `direct` allows it); else it waits, if fewer
    /// than `room` do.
    #[inline]
    pub(crate) fn submit(&self, direct: bool, room: u64) -> Submitted {
        self.enter(direct, |word| {
            if word & CLOSED != 0 {
                Some(Submitted::Closed)
            } else {
                (waiting(word) >= room.min(WAITING_MAX)).then_some(Submitted::Full)
            }
        })
    }

    /// Counts a command that was accepted before: also on a closed gate.
    pub(crate) fn reenter(&self, direct: bool) -> Submitted {
        self.enter(direct, |_| None)
    }

    #[inline]
    fn enter(&self, direct: bool, refuse: impl Fn(u64) -> Option<Submitted>) -> Submitted {
        let direct = direct && self.seat.get().is_none();
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            // Straight past the queue only if nobody waits: first come, first served.
            let clear = word & (STOPPED | NESTED) == 0 && waiting(word) == 0;
            let admitted = direct && clear && running(word) < self.max.load(Ordering::Relaxed);
            match refuse(word) {
                Some(Submitted::Full) if admitted => {}
                Some(refused) => return refused,
                None => {}
            }
            let new = word + if admitted { RUNNING } else { WAITING };
            // ORDERING: AcqRel, so that a permit's next holder sees what its last one did.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if admitted => return Submitted::Admitted,
                Ok(_) => return Submitted::Queued,
                Err(now) => word = now,
            }
        }
    }

    /// Puts a command that was counted as waiting into the queue, and admits what can be.
    #[inline]
    pub(crate) fn enqueue<T>(
        &self,
        item: T,
        queue: &impl Waiting<T>,
        admit: impl FnMut(T) -> Verdict,
        notice: impl FnMut(Notice),
    ) {
        queue.push(item);
        // ORDERING: pairs with the fence in `pump`: a pump that claimed this command before it was there either finds it
        // when it looks again, or gave its claim back before we read the word.
        fence(Ordering::SeqCst);
        if self.claimable(self.word.load(Ordering::Relaxed)) {
            self.pump_on(queue, admit, notice);
        }
    }

    /// Admits waiting commands while there are permits: after anything that may allow more than before.
    pub(crate) fn pump<T>(&self, queue: &impl Waiting<T>, admit: impl FnMut(T) -> Verdict, notice: impl FnMut(Notice)) {
        // ORDERING: who has ended a hold sees the maximum that was set meanwhile, or who set it sees that the hold is over.
        fence(Ordering::SeqCst);
        self.pump_on(queue, admit, notice);
    }

    /// As [`Gate::pump`], for who has fenced since it changed the word.
    #[inline]
    fn pump_on<T>(&self, queue: &impl Waiting<T>, mut admit: impl FnMut(T) -> Verdict, mut notice: impl FnMut(Notice)) {
        while let Some(relieved) = self.claim(Permit::Free) {
            if !self.admit_claimed(relieved, queue, &mut admit, &mut notice) {
                return;
            }
        }
    }

    /// A command ended and gives its permit back; admits what can be. False if permits are lent: then nothing was done, and
    /// the permit goes where it is owed.
    #[inline]
    pub(crate) fn release<T>(
        &self,
        queue: &impl Waiting<T>,
        admit: impl FnMut(T) -> Verdict,
        notice: impl FnMut(Notice),
    ) -> bool {
        self.give_back(NESTED, queue, admit, notice)
    }

    /// As [`Gate::release`], also while permits are lent.
    pub(crate) fn release_unlent<T>(
        &self,
        queue: &impl Waiting<T>,
        admit: impl FnMut(T) -> Verdict,
        notice: impl FnMut(Notice),
    ) {
        self.give_back(0, queue, admit, notice);
    }

    #[inline]
    fn give_back<T>(
        &self,
        unless: u64,
        queue: &impl Waiting<T>,
        mut admit: impl FnMut(T) -> Verdict,
        mut notice: impl FnMut(Notice),
    ) -> bool {
        // Straight to the next command if one waits: one write of a word that many write, instead of two.
        let goes_on = match self.claim_unless(unless, Permit::InHand) {
            Err(Unless) => return false,
            Ok(Some(relieved)) => self.admit_claimed(relieved, queue, &mut admit, &mut notice),
            Ok(None) => match self.put_back(unless, &mut notice) {
                Err(Unless) => return false,
                Ok(more) => more,
            },
        };
        if goes_on {
            self.pump_on(queue, admit, notice);
        }
        true
    }

    /// Admits the command that was claimed, if it is there. False if it is not, and neither is any other, or if the lane is
    /// throttled.
    #[inline]
    fn admit_claimed<T>(
        &self,
        relieved: bool,
        queue: &impl Waiting<T>,
        admit: &mut impl FnMut(T) -> Verdict,
        notice: &mut impl FnMut(Notice),
    ) -> bool {
        if relieved {
            // Even if the claim is given back: it has taken the mark of pressure away.
            notice(Notice::Relieved);
        }
        let Some(item) = queue.pop() else {
            // Its submitter has counted it and not pushed it yet.
            self.unclaim(0);
            // ORDERING: see `enqueue`.
            fence(Ordering::SeqCst);
            return !queue.is_empty();
        };
        match admit(item) {
            Verdict::Admitted => {}
            Verdict::Dead => _ = self.put_back(0, notice),
            Verdict::Refused => {
                if self.unclaim(THROTTLED) {
                    notice(Notice::Throttled);
                }
                return false;
            }
        }
        true
    }

    /// Gives a claim back and sets a mark; says whether the mark is new.
    fn unclaim(&self, mark: u64) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let pooled = self.seat.get().is_some_and(|seat| running(word) > seat.min);
            let new = (word + WAITING - RUNNING) | mark;
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.return_pooled(pooled);
                    return word & mark == 0;
                }
                Err(now) => word = now,
            }
        }
    }

    /// Returns a permit; says whether a pump has something to do.
    #[inline]
    fn put_back(&self, unless: u64, notice: &mut impl FnMut(Notice)) -> Result<bool, Unless> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & unless != 0 {
                return Err(Unless);
            }
            let pooled = self.seat.get().is_some_and(|seat| running(word) > seat.min);
            let wanted = word & (CLOSED | IDLE_WANTED) != 0;
            let idle = running(word) == 1 && (waiting(word) == 0 || word & STOPPED != 0);
            // Whoever asked is told once, and asks again if that was not it.
            let new = if idle { word & !IDLE_WANTED } else { word } - RUNNING;
            // ORDERING: AcqRel, see `enter`.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.return_pooled(pooled);
                    if idle && wanted {
                        notice(Notice::Idle);
                    }
                    // ORDERING: see `set_max`.
                    fence_after_rmw();
                    return Ok(self.claimable(new));
                }
                Err(now) => word = now,
            }
        }
    }

    fn return_pooled(&self, pooled: bool) {
        if pooled && let Some(seat) = self.seat.get() {
            seat.pool.put();
        }
    }

    fn claim(&self, permit: Permit) -> Option<bool> {
        self.claim_unless(0, permit).unwrap_or(None)
    }

    /// Takes the next waiting command out of the count, along with a permit for it; says whether that leaves a lane under
    /// pressure empty.
    #[inline]
    fn claim_unless(&self, unless: u64, permit: Permit) -> Result<Option<bool>, Unless> {
        let seat = self.seat.get();
        let mut from_pool = false;
        let mut word = self.word.load(Ordering::Relaxed);
        let claimed = loop {
            if word & unless != 0 {
                break Err(Unless);
            }
            // Above its own permits, a lane passes none on: a better one may wait for it.
            let own = seat.is_none_or(|seat| running(word) <= seat.min);
            let taken = match permit {
                Permit::Free if self.claimable(word) => WAITING - RUNNING,
                Permit::InHand if word & STOPPED == 0 && waiting(word) > 0 && own && self.within_max(word) => WAITING,
                _ => break Ok(None),
            };
            if let Some(seat) = seat
                && matches!(permit, Permit::Free)
                && running(word) >= seat.min
                && !from_pool
            {
                if !seat.pool.take(seat.lane) {
                    break Ok(None);
                }
                from_pool = true;
            }
            let relieved = word & PRESSURED != 0 && waiting(word) == 1;
            let new = if relieved { word & !PRESSURED } else { word } - taken;
            // ORDERING: AcqRel, see `enter`.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    if seat.is_some_and(|seat| running(word) >= seat.min) {
                        from_pool = false;
                    }
                    break Ok(Some(relieved));
                }
                Err(now) => word = now,
            }
        };
        // Taken for a claim that came to nothing, or needed none in the end.
        self.return_pooled(from_pool);
        claimed
    }

    /// Takes a permit for a command that is not in the line: one that others wait for. It may go above the shared limit by
    /// those who wait.
    pub(crate) fn take_permit(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & STOPPED != 0 || running(word) >= self.max.load(Ordering::Relaxed) {
                return false;
            }
            match self.word.compare_exchange_weak(word, word + RUNNING, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if let Some(seat) = self.seat.get()
            && running(word) >= seat.min
        {
            seat.pool.take_anyway();
        }
        true
    }

    /// Takes a permit whatever the gate says.
    pub(crate) fn take_anyway(&self) {
        let before = self.word.fetch_add(RUNNING, Ordering::AcqRel);
        if let Some(seat) = self.seat.get()
            && running(before) >= seat.min
        {
            seat.pool.take_anyway();
        }
    }

    /// Takes a permit if one is free and nobody waits for it. The caller pumps the lanes of a shared limit if not.
    pub(crate) fn try_take_unwaited(&self) -> bool {
        let seat = self.seat.get();
        let mut from_pool = false;
        let mut word = self.word.load(Ordering::Relaxed);
        let taken = loop {
            let free = word & (STOPPED | NESTED | CLOSED) == 0 && waiting(word) == 0;
            if !free || running(word) >= self.max.load(Ordering::Relaxed) {
                break false;
            }
            // As in `claim_unless`.
            let pooled = seat.filter(|seat| running(word) >= seat.min);
            if let Some(seat) = pooled
                && !from_pool
            {
                if !seat.pool.take(seat.lane) {
                    break false;
                }
                from_pool = true;
            }
            match self.word.compare_exchange_weak(word, word + RUNNING, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    from_pool &= pooled.is_none();
                    break true;
                }
                Err(now) => word = now,
            }
        };
        self.return_pooled(from_pool);
        taken
    }

    /// Marks that permits are lent, or not any more. Called under the lock of what keeps the loans.
    pub(crate) fn set_nested(&self, nested: bool) {
        if nested {
            self.word.fetch_or(NESTED, Ordering::AcqRel);
            // ORDERING: who asks for a permit now sees the maximum that was set meanwhile, or who set it sees the mark.
            fence_after_rmw();
        } else {
            self.word.fetch_and(!NESTED, Ordering::AcqRel);
        }
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.word.load(Ordering::Acquire) & NESTED != 0
    }

    /// Whether nothing may be admitted for now.
    pub(crate) fn is_stopped(&self) -> bool {
        self.word.load(Ordering::Acquire) & STOPPED != 0
    }

    /// Sets the mark of a refusal for a command that is not in the line; says whether it is new: then the caller arms the
    /// timer.
    pub(crate) fn throttle(&self) -> bool {
        self.word.fetch_or(THROTTLED, Ordering::AcqRel) & THROTTLED == 0
    }

    /// The rate limit has time again. The caller pumps.
    pub(crate) fn unthrottle(&self) {
        self.word.fetch_and(!THROTTLED, Ordering::AcqRel);
    }

    /// Takes the longest waiting command out without running it, dead or not; none if none waits.
    pub(crate) fn withdraw<T>(&self, queue: &impl Waiting<T>) -> Option<T> {
        // ORDERING: a submitter pushes, fences, and looks whether the lane was abandoned: it sees that, or we see its push.
        fence(Ordering::SeqCst);
        while self.uncount() {
            if let Some(item) = queue.pop() {
                return Some(item);
            }
            // As in `pump`.
            self.word.fetch_add(WAITING, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            if queue.is_empty() {
                break;
            }
        }
        None
    }

    /// Counts one waiting command less, that was taken out of the queue from elsewhere than its head.
    pub(crate) fn uncount_taken(&self) {
        // A pump may have claimed its count: it finds nothing to claim and gives the count back in a moment.
        while !self.uncount() {
            crate::sync::spin_loop();
        }
    }

    /// Counts one waiting command less, if there is one.
    fn uncount(&self) -> bool {
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

    /// Asks for a notice when nothing runs or can run any more.
    pub(crate) fn want_idle(&self) -> GateStatus {
        self.look(self.word.fetch_or(IDLE_WANTED, Ordering::AcqRel))
    }

    /// Whether somebody asked for a notice, or would want one because the gate is closed.
    pub(crate) fn idle_is_wanted(&self) -> bool {
        self.word.load(Ordering::Acquire) & (CLOSED | IDLE_WANTED) != 0
    }

    pub(crate) fn status(&self) -> GateStatus {
        self.look(self.word.load(Ordering::Acquire))
    }

    fn look(&self, word: u64) -> GateStatus {
        GateStatus {
            waiting: waiting(word) as usize,
            running: running(word) as usize,
            held: word & HELD != 0,
            unstarted: word & UNSTARTED != 0,
            paused: word & PAUSED != 0,
            closed: word & CLOSED != 0,
            throttled: word & THROTTLED != 0,
        }
    }

    #[inline]
    fn claimable(&self, word: u64) -> bool {
        word & STOPPED == 0 && waiting(word) > 0 && running(word) < self.max.load(Ordering::Relaxed)
    }

    /// Whether the permit that is given back is still one of the lane's: the maximum may have shrunk.
    #[inline]
    fn within_max(&self, word: u64) -> bool {
        running(word) <= self.max.load(Ordering::Relaxed)
    }
}

/// A mark was found that the caller wants to know of before anything is done.
struct Unless;

fn limit(max: usize) -> u64 {
    max.min(COUNT_MAX) as u64
}

#[inline]
const fn running(word: u64) -> u64 {
    word & COUNT_MASK
}

#[inline]
const fn waiting(word: u64) -> u64 {
    (word >> COUNT_BITS) & COUNT_MASK
}
