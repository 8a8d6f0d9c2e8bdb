//! The lane gate: no command waits while a permit is free, never more run than the maximum, each runs once.
//!
//! [`Lane`] calls the shipped [`Gate`] as `queue/admission` does; a command runs on the thread that admitted it, after
//! the call that did. `loom-tests/shutdown.rs` and `loom-tests/pool.rs` use it, too.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, OnceLock};

use loom::thread;

use super::{check, refute};
use crate::limit::gate::{Gate, GateStatus, Hold, Notice, Submitted, Verdict, WAITING_MAX, Waiting};
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

/// Most commands of a model.
pub(super) const COMMANDS: usize = 4;

/// Most pushes of a model: what a rate limit refuses is pushed again.
const PUSHES: usize = 6;

/// A queue weaker than the real one: a pop finds nothing while the push in front has not returned.
pub(super) struct Fifo {
    slots: [AtomicU64; PUSHES],
    head: AtomicU64,
    tail: AtomicU64,
}

impl Fifo {
    pub(super) fn new() -> Self {
        Self { slots: std::array::from_fn(|_| AtomicU64::new(0)), head: AtomicU64::new(0), tail: AtomicU64::new(0) }
    }

    /// Where the head is and what it holds.
    fn front(&self) -> Option<(u64, u64)> {
        let at = self.head.load(Ordering::Relaxed);
        let slot = self.slots.get(at as usize)?.load(Ordering::Acquire);
        (slot != 0).then_some((at, slot))
    }
}

impl Waiting<usize> for Fifo {
    fn push(&self, command: usize) {
        let at = self.tail.fetch_add(1, Ordering::Relaxed);
        self.slots[at as usize].store(command as u64 + 1, Ordering::Release);
    }

    fn pop(&self) -> Option<usize> {
        loop {
            let (at, slot) = self.front()?;
            if self.head.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some(slot as usize - 1);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.front().is_none()
    }
}

/// What a lane calls of its gate.
pub(super) trait Steps: Send + Sync + 'static {
    fn submit(&self, direct: bool) -> Submitted;
    fn enqueue(&self, command: usize, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice));
    fn pump(&self, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice));
    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice));
    fn withdraw(&self, queue: &Fifo) -> Option<usize>;
    fn note_pressure(&self, threshold: usize) -> bool;
    fn set_max(&self, max: usize);
    fn hold(&self);
    fn unhold(&self);
    fn unthrottle(&self);
    fn close(&self);
    fn want_idle(&self) -> GateStatus;
    fn status(&self) -> GateStatus;
    /// Whether the lane is to leave a step of its own out.
    fn slips(&self, _: Slip) -> bool {
        false
    }
}

impl Steps for Gate {
    fn submit(&self, direct: bool) -> Submitted {
        self.submit(direct, WAITING_MAX)
    }
    fn enqueue(&self, command: usize, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice)) {
        self.enqueue(command, queue, admit, notice);
    }
    fn pump(&self, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice)) {
        self.pump(queue, admit, notice);
    }
    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> Verdict, notice: impl FnMut(Notice)) {
        assert!(self.release(queue, admit, notice), "permits are lent");
    }
    fn withdraw(&self, queue: &Fifo) -> Option<usize> {
        self.withdraw(queue)
    }
    fn note_pressure(&self, threshold: usize) -> bool {
        self.note_pressure(threshold)
    }
    fn set_max(&self, max: usize) {
        self.set_max(max);
    }
    fn hold(&self) {
        self.hold(Hold::Unstarted);
    }
    fn unhold(&self) {
        self.unhold(Hold::Unstarted);
    }
    fn unthrottle(&self) {
        self.unthrottle();
    }
    fn close(&self) {
        self.close();
    }
    fn want_idle(&self) -> GateStatus {
        self.want_idle()
    }
    fn status(&self) -> GateStatus {
        self.status()
    }
}

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `submit` decides by one look at the word and counts by a second access.
    SubmitInTwoSteps,
    /// `submit` looks whether the gate is closed once, before it tries to count.
    ClosedReadFirst,
    /// `enqueue` does not fence.
    EnqueueFence,
    /// `enqueue` does not look at the word.
    EnqueueLook,
    /// `pump` keeps a claim for which it found no command.
    GiveBack,
    /// `pump` does not fence.
    PumpFence,
    /// `pump` does not look at the queue again.
    PumpLook,
    /// `release` looks at the word before it gives the permit back.
    ReleaseLooksFirst,
    /// `release` passes the permit on, although the maximum is smaller by now.
    ReleaseAboveMax,
    /// Who takes a command out and finds none does not fence.
    WithdrawFence,
    /// Nor look again.
    WithdrawLook,
    /// Who ends a hold does not pump.
    ResumeWithoutPump,
    /// Who ends a hold or changes the maximum does not fence before it pumps.
    LookFence,
    /// Who changes the maximum does not pump.
    MaxWithoutPump,
    /// Everybody whose command the rate limit refuses arms the timer.
    EverybodyArms,
    /// Nobody does.
    NobodyArms,
    /// The timer is armed before the claim is given back.
    ArmsFirst,
    /// What was refused is put back into the queue after its claim.
    PutBackLast,
    /// The timer does not pump.
    TimerWithoutPump,
    /// `want_idle` looks at the word before it asks.
    IdleReadFirst,
    /// A lane counts as idle when nothing runs, whatever waits.
    IdleWhileWaiting,
    /// `note_pressure` looks at the word before it sets the bit.
    PressureInTwoSteps,
    /// `pump` sends the notice of relief only for a claim that finds a command.
    ReliefAfterPop,
    /// A lane that is refused by the pool neither fences nor looks again, nor does its caller ask for the next lane.
    RefusedLook,
    /// Who puts a permit back into the pool does not fence before it looks who wants one.
    NextFence,
    /// Who puts a permit back into the pool does not look who wants one.
    PutWithoutNext,
    /// A lane passes permits on that are not its own.
    PassesPooledOn,
    /// A permit that was taken from the pool for a claim that came to nothing is kept.
    KeepsPooled,
}

/// The steps of [`Gate`], less one.
pub(super) struct Mutant {
    word: AtomicU64,
    max: AtomicU64,
    slip: Slip,
    /// The pool that it shares, its place there, and its minimum.
    pub(super) seat: Option<(Arc<PoolCopy>, u32, u64)>,
}

/// The steps of [`Pool`](crate::limit::pool::Pool), less one.
pub(super) struct PoolCopy {
    free: AtomicI64,
    wanted: AtomicU64,
    pub(super) slip: Slip,
}

impl PoolCopy {
    pub(super) fn new(permits: i64, slip: Slip) -> Self {
        Self { free: AtomicI64::new(permits), wanted: AtomicU64::new(0), slip }
    }

    fn take(&self, lane: u32) -> bool {
        if self.wanted.load(Ordering::Relaxed) & ((1 << lane) - 1) != 0 {
            self.wanted.fetch_or(1 << lane, Ordering::AcqRel);
            return false;
        }
        if self.try_take() {
            return true;
        }
        self.wanted.fetch_or(1 << lane, Ordering::AcqRel);
        if self.slip == Slip::RefusedLook {
            return false;
        }
        fence(Ordering::SeqCst);
        self.try_take()
    }

    fn try_take(&self) -> bool {
        let mut free = self.free.load(Ordering::Relaxed);
        while free > 0 {
            match self.free.compare_exchange(free, free - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => free = now,
            }
        }
        false
    }

    fn put(&self) {
        self.free.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn next(&self) -> Option<u32> {
        if self.slip == Slip::PutWithoutNext {
            return None;
        }
        if self.slip != Slip::NextFence {
            fence(Ordering::SeqCst);
        }
        let mut wanted = self.wanted.load(Ordering::Relaxed);
        while wanted != 0 && self.free.load(Ordering::Relaxed) > 0 {
            match self.wanted.compare_exchange(wanted, wanted & (wanted - 1), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(wanted.trailing_zeros()),
                Err(now) => wanted = now,
            }
        }
        None
    }
}

const RUNNING: u64 = 1;
const WAITING: u64 = 1 << 8;
const CLOSED: u64 = 1 << 16;
const HELD: u64 = 1 << 17;
const PRESSURED: u64 = 1 << 18;
const IDLE_WANTED: u64 = 1 << 19;
const THROTTLED: u64 = 1 << 20;
const STOPPED: u64 = HELD | THROTTLED;

fn running(word: u64) -> u64 {
    word & (WAITING - 1)
}

fn waiting(word: u64) -> u64 {
    (word / WAITING) & (WAITING - 1)
}

impl Mutant {
    pub(super) fn new(max: usize, slip: Slip) -> Self {
        Self { word: AtomicU64::new(HELD), max: AtomicU64::new(max as u64), slip, seat: None }
    }

    fn load(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    fn exchange(&self, word: u64, new: u64) -> Result<u64, u64> {
        self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed)
    }

    fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    fn claimable(&self, word: u64) -> bool {
        word & STOPPED == 0 && waiting(word) > 0 && running(word) < self.max()
    }

    fn put_back(&self, notice: &mut impl FnMut(Notice)) -> bool {
        let before = self.load();
        let mut word = before;
        loop {
            let pooled = self.is_pooled(word);
            let wanted = word & (CLOSED | IDLE_WANTED) != 0;
            let idle = running(word) == 1 && (waiting(word) == 0 || word & STOPPED != 0);
            let new = if idle { word & !IDLE_WANTED } else { word } - RUNNING;
            match self.exchange(word, new) {
                Ok(_) => {
                    self.return_pooled(pooled);
                    if idle && wanted {
                        notice(Notice::Idle);
                    }
                    fence(Ordering::SeqCst);
                    return self.claimable(if self.slip == Slip::ReleaseLooksFirst { before - RUNNING } else { new });
                }
                Err(now) => word = now,
            }
        }
    }

    fn is_pooled(&self, word: u64) -> bool {
        self.seat.as_ref().is_some_and(|(_, _, min)| running(word) > *min)
    }

    fn return_pooled(&self, pooled: bool) {
        if let Some((pool, ..)) = self.seat.as_ref().filter(|_| pooled) {
            pool.put();
        }
    }

    fn claim(&self, in_hand: bool) -> Option<bool> {
        let mut from_pool = false;
        let mut word = self.load();
        let claimed = loop {
            let within = self.slip == Slip::ReleaseAboveMax || running(word) <= self.max();
            let own = self.slip == Slip::PassesPooledOn || !self.is_pooled(word);
            let taken = match in_hand {
                true if word & STOPPED == 0 && waiting(word) > 0 && within && own => WAITING,
                false if self.claimable(word) => WAITING - RUNNING,
                _ => break None,
            };
            let above = self.seat.as_ref().filter(|(_, _, min)| !in_hand && running(word) >= *min);
            if let Some((pool, lane, _)) = above
                && !from_pool
            {
                if !pool.take(*lane) {
                    break None;
                }
                from_pool = true;
            }
            let relieved = word & PRESSURED != 0 && waiting(word) == 1;
            let new = if relieved { word & !PRESSURED } else { word } - taken;
            match self.exchange(word, new) {
                Ok(_) => {
                    from_pool &= above.is_none();
                    break Some(relieved);
                }
                Err(now) => word = now,
            }
        };
        self.return_pooled(from_pool && self.slip != Slip::KeepsPooled);
        claimed
    }

    fn unclaim(&self, mark: u64) -> u64 {
        let mut word = self.load();
        loop {
            let pooled = self.is_pooled(word);
            match self.exchange(word, (word + WAITING - RUNNING) | mark) {
                Ok(_) => {
                    self.return_pooled(pooled);
                    return word;
                }
                Err(now) => word = now,
            }
        }
    }

    fn admit_claimed(
        &self,
        relieved: bool,
        queue: &Fifo,
        admit: &mut impl FnMut(usize) -> Verdict,
        notice: &mut impl FnMut(Notice),
    ) -> bool {
        if relieved && self.slip != Slip::ReliefAfterPop {
            notice(Notice::Relieved);
        }
        let Some(command) = queue.pop() else {
            if self.slip != Slip::GiveBack {
                self.unclaim(0);
            }
            if self.slip != Slip::PumpFence {
                fence(Ordering::SeqCst);
            }
            return self.slip != Slip::PumpLook && !queue.is_empty();
        };
        if relieved && self.slip == Slip::ReliefAfterPop {
            notice(Notice::Relieved);
        }
        match admit(command) {
            Verdict::Admitted => {}
            Verdict::Dead => _ = self.put_back(notice),
            Verdict::Refused => {
                if self.slip == Slip::ArmsFirst {
                    if self.word.fetch_or(THROTTLED, Ordering::AcqRel) & THROTTLED == 0 {
                        notice(Notice::Throttled);
                    }
                    self.unclaim(0);
                    return false;
                }
                let word = self.unclaim(THROTTLED);
                let arms = match self.slip {
                    Slip::EverybodyArms => true,
                    Slip::NobodyArms => false,
                    _ => word & THROTTLED == 0,
                };
                if arms {
                    notice(Notice::Throttled);
                }
                return false;
            }
        }
        true
    }

    fn pump_on(&self, queue: &Fifo, admit: &mut impl FnMut(usize) -> Verdict, notice: &mut impl FnMut(Notice)) {
        while let Some(relieved) = self.claim(false) {
            if !self.admit_claimed(relieved, queue, admit, notice) {
                return;
            }
        }
    }
}

impl Steps for Mutant {
    fn submit(&self, direct: bool) -> Submitted {
        let mut word = self.load();
        let mut looks = true;
        loop {
            if looks && word & CLOSED != 0 {
                return Submitted::Closed;
            }
            looks = self.slip != Slip::ClosedReadFirst;
            let direct = direct && self.seat.is_none();
            let admitted = direct && word & STOPPED == 0 && waiting(word) == 0 && running(word) < self.max();
            let submitted = if admitted { Submitted::Admitted } else { Submitted::Queued };
            let change = if admitted { RUNNING } else { WAITING };
            if self.slip == Slip::SubmitInTwoSteps {
                self.word.fetch_add(change, Ordering::AcqRel);
                return submitted;
            }
            match self.exchange(word, word + change) {
                Ok(_) => return submitted,
                Err(now) => word = now,
            }
        }
    }

    fn enqueue(
        &self,
        command: usize,
        queue: &Fifo,
        mut admit: impl FnMut(usize) -> Verdict,
        mut notice: impl FnMut(Notice),
    ) {
        queue.push(command);
        if self.slip != Slip::EnqueueFence {
            fence(Ordering::SeqCst);
        }
        if self.slip != Slip::EnqueueLook && self.claimable(self.load()) {
            self.pump_on(queue, &mut admit, &mut notice);
        }
    }

    fn pump(&self, queue: &Fifo, mut admit: impl FnMut(usize) -> Verdict, mut notice: impl FnMut(Notice)) {
        if self.slip != Slip::LookFence {
            fence(Ordering::SeqCst);
        }
        self.pump_on(queue, &mut admit, &mut notice);
    }

    fn release(&self, queue: &Fifo, mut admit: impl FnMut(usize) -> Verdict, mut notice: impl FnMut(Notice)) {
        let goes_on = match self.claim(true) {
            Some(relieved) => self.admit_claimed(relieved, queue, &mut admit, &mut notice),
            None => self.put_back(&mut notice),
        };
        if goes_on {
            self.pump_on(queue, &mut admit, &mut notice);
        }
    }

    fn withdraw(&self, queue: &Fifo) -> Option<usize> {
        fence(Ordering::SeqCst);
        let mut word = self.load();
        while waiting(word) > 0 {
            if let Err(now) = self.exchange(word, word - WAITING) {
                word = now;
                continue;
            }
            if let Some(command) = queue.pop() {
                return Some(command);
            }
            word = self.word.fetch_add(WAITING, Ordering::AcqRel) + WAITING;
            if self.slip != Slip::WithdrawFence {
                fence(Ordering::SeqCst);
            }
            if self.slip == Slip::WithdrawLook || queue.is_empty() {
                break;
            }
        }
        None
    }

    fn note_pressure(&self, threshold: usize) -> bool {
        let mut word = self.load();
        while word & PRESSURED == 0 && waiting(word) >= threshold as u64 {
            if self.slip == Slip::PressureInTwoSteps {
                return self.word.fetch_or(PRESSURED, Ordering::AcqRel) & PRESSURED == 0;
            }
            match self.exchange(word, word | PRESSURED) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn set_max(&self, max: usize) {
        self.max.store(max as u64, Ordering::Release);
        if self.slip != Slip::LookFence {
            fence(Ordering::SeqCst);
        }
    }

    fn hold(&self) {
        self.word.fetch_or(HELD, Ordering::AcqRel);
    }

    fn unhold(&self) {
        self.word.fetch_and(!HELD, Ordering::AcqRel);
    }

    fn unthrottle(&self) {
        self.word.fetch_and(!THROTTLED, Ordering::AcqRel);
    }

    fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    fn want_idle(&self) -> GateStatus {
        let before = self.load();
        let word = self.word.fetch_or(IDLE_WANTED, Ordering::AcqRel);
        let mut status = look(if self.slip == Slip::IdleReadFirst { before } else { word });
        if self.slip == Slip::IdleWhileWaiting {
            status.waiting = 0;
        }
        status
    }

    fn status(&self) -> GateStatus {
        look(self.word.load(Ordering::Acquire))
    }

    fn slips(&self, slip: Slip) -> bool {
        self.slip == slip
    }
}

fn look(word: u64) -> GateStatus {
    GateStatus {
        waiting: waiting(word) as usize,
        running: running(word) as usize,
        held: word & HELD != 0,
        unstarted: false,
        paused: false,
        closed: word & CLOSED != 0,
        throttled: word & THROTTLED != 0,
    }
}

/// What a call has admitted, and its thread has not run yet.
pub(super) type Admitted = RefCell<Vec<usize>>;

/// A lane whose commands run on the threads that admit them.
pub(super) struct Lane<G> {
    pub(super) gate: G,
    pub(super) queue: Fifo,
    /// The largest maximum that it ever has.
    max: u64,
    /// Commands with a permit.
    active: AtomicU64,
    /// The same in all lanes that share a limit, and the limit.
    pub(super) in_flight: Option<Arc<(AtomicU64, u64)>>,
    /// Commands that had their turn, the cancelled one included.
    pub(super) settled: Unseen,
    had_turn: [Unseen; COMMANDS],
    /// A command that declines its permit.
    cancelled: Option<usize>,
    /// Commands that keep their permit until [`Lane::finish`].
    pub(super) lasting: Vec<usize>,
    /// What the rate limit has left, if there is one.
    tokens: Option<AtomicU64>,
    /// Timers that are armed.
    armed: Unseen,
    /// Pressure begun and ended.
    pressed: Unseen,
    relieved: Unseen,
    /// Who waits for the lane to be idle, or for its timer.
    watcher: OnceLock<thread::Thread>,
}

impl<G: Steps> Lane<G> {
    pub(super) fn new(gate: G, max: u64) -> Self {
        Self {
            gate,
            queue: Fifo::new(),
            max,
            active: AtomicU64::new(0),
            in_flight: None,
            settled: Unseen::new(0),
            had_turn: std::array::from_fn(|_| Unseen::new(0)),
            cancelled: None,
            lasting: Vec::new(),
            tokens: None,
            armed: Unseen::new(0),
            pressed: Unseen::new(0),
            relieved: Unseen::new(0),
            watcher: OnceLock::new(),
        }
    }

    /// False if the lane is closed.
    pub(super) fn submit(&self, command: usize) -> bool {
        let admitted = Admitted::default();
        let accepted = self.accept(command, &admitted);
        self.run(&admitted);
        accepted
    }

    pub(super) fn accept(&self, command: usize, admitted: &Admitted) -> bool {
        match self.gate.submit(self.tokens.is_none()) {
            Submitted::Admitted => self.take_permit(command, admitted),
            Submitted::Queued => {
                self.gate.enqueue(command, &self.queue, |c| self.admit(c, admitted), |n| self.notice(n));
                self.put_back_last(admitted);
            }
            Submitted::Closed | Submitted::Full => return false,
        }
        true
    }

    /// Starts the lane, or lets it go on.
    pub(super) fn resume(&self) {
        self.gate.unhold();
        if !self.gate.slips(Slip::ResumeWithoutPump) {
            self.pump();
        }
    }

    pub(super) fn pump(&self) {
        let admitted = Admitted::default();
        self.pump_to(&admitted);
        self.run(&admitted);
    }

    pub(super) fn pump_to(&self, admitted: &Admitted) {
        self.gate.pump(&self.queue, |c| self.admit(c, admitted), |n| self.notice(n));
        self.put_back_last(admitted);
    }

    fn set_max(&self, max: usize) {
        self.gate.set_max(max);
        if !self.gate.slips(Slip::MaxWithoutPump) {
            self.pump();
        }
    }

    /// Waits for a moment without work.
    pub(super) fn drain(&self) {
        let _first = self.watcher.set(thread::current());
        loop {
            let status = self.gate.want_idle();
            if status.running == 0 && status.waiting == 0 {
                return;
            }
            thread::park();
        }
    }

    /// Gives a token whenever the timer is due, until so many commands have settled.
    fn refill(&self, commands: usize) {
        let _first = self.watcher.set(thread::current());
        while self.settled.load(Now) < commands {
            if self.armed.swap(0, Now) == 0 {
                thread::park();
                continue;
            }
            if let Some(tokens) = &self.tokens {
                tokens.fetch_add(1, Ordering::AcqRel);
            }
            self.gate.unthrottle();
            if !self.gate.slips(Slip::TimerWithoutPump) {
                self.pump();
            }
        }
    }

    fn admit(&self, command: usize, admitted: &Admitted) -> Verdict {
        if self.cancelled == Some(command) {
            self.settle(command);
            return Verdict::Dead;
        }
        if !self.take_token() {
            if self.gate.slips(Slip::PutBackLast) {
                admitted.borrow_mut().push(command + COMMANDS);
            } else {
                self.queue.push(command);
            }
            return Verdict::Refused;
        }
        self.take_permit(command, admitted);
        Verdict::Admitted
    }

    fn put_back_last(&self, admitted: &Admitted) {
        admitted.borrow_mut().retain(|command| {
            if *command >= COMMANDS {
                self.queue.push(command - COMMANDS);
            }
            *command < COMMANDS
        });
    }

    fn take_token(&self) -> bool {
        let Some(tokens) = &self.tokens else { return true };
        let mut left = tokens.load(Ordering::Relaxed);
        while left > 0 {
            match tokens.compare_exchange(left, left - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => left = now,
            }
        }
        false
    }

    fn take_permit(&self, command: usize, admitted: &Admitted) {
        assert!(self.active.fetch_add(1, Ordering::Relaxed) < self.max, "more run than the maximum");
        if let Some(in_flight) = &self.in_flight {
            assert!(in_flight.0.fetch_add(1, Ordering::Relaxed) < in_flight.1, "more run than the shared limit");
        }
        admitted.borrow_mut().push(command);
    }

    pub(super) fn run(&self, admitted: &Admitted) {
        loop {
            let Some(command) = admitted.borrow_mut().pop() else { return };
            self.settle(command);
            if !self.lasting.contains(&command) {
                self.release(admitted);
            }
        }
    }

    pub(super) fn release(&self, admitted: &Admitted) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        if let Some(in_flight) = &self.in_flight {
            in_flight.0.fetch_sub(1, Ordering::Relaxed);
        }
        self.gate.release(&self.queue, |c| self.admit(c, admitted), |n| self.notice(n));
        self.put_back_last(admitted);
    }

    /// A command that lasts ends.
    fn finish(&self) {
        let admitted = Admitted::default();
        self.release(&admitted);
        self.run(&admitted);
    }

    pub(super) fn settle(&self, command: usize) {
        assert_eq!(self.had_turn[command].fetch_add(1, Now), 0, "a command had two turns");
        self.settled.fetch_add(1, Now);
        if self.tokens.is_some() {
            // The timer's thread may end.
            self.call_watcher();
        }
    }

    pub(super) fn notice(&self, notice: Notice) {
        match notice {
            Notice::Idle => self.call_watcher(),
            Notice::Relieved => _ = self.relieved.fetch_add(1, Now),
            Notice::Throttled => {
                assert_eq!(self.armed.fetch_add(1, Now), 0, "two timers are armed");
                self.call_watcher();
            }
        }
    }

    fn call_watcher(&self) {
        self.watcher.get().into_iter().for_each(thread::Thread::unpark);
    }

    /// Once every call has returned and nothing is held.
    pub(super) fn assert_quiet(&self, accepted: usize) {
        self.assert_settled(accepted);
        let status = self.gate.status();
        assert_eq!((status.waiting, status.running), (0, 0), "counted for ever");
    }

    pub(super) fn assert_settled(&self, accepted: usize) {
        assert_eq!(self.settled.load(Now), accepted, "a command is stranded: {:?}", self.gate.status());
    }
}

fn shipped(max: usize) -> impl Fn() -> Gate + Send + Sync {
    move || Gate::new(max)
}

fn mutant(max: usize, slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant::new(max, slip)
}

pub(super) fn spawn<G: Steps>(lane: &Arc<Lane<G>>, f: impl FnOnce(&Lane<G>) + 'static) -> thread::JoinHandle<()> {
    let lane = Arc::clone(lane);
    thread::spawn(move || f(&lane))
}

/// Three submitters to a lane that was started.
fn submitters<G: Steps>(max: u64, gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let lane = Arc::new(Lane::new(gate(), max));
        lane.resume();
        let others = [1, 2].map(|command| spawn(&lane, move |lane| assert!(lane.submit(command))));
        assert!(lane.submit(0));
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(3);
    }
}

/// Two submitters, one of whose commands is cancelled, to a lane that is paused and resumed meanwhile.
fn held<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 1);
        lane.cancelled = Some(0);
        lane.resume();
        let lane = Arc::new(lane);
        let others = [0, 1].map(|command| spawn(&lane, move |lane| assert!(lane.submit(command))));
        lane.gate.hold();
        lane.resume();
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(2);
    }
}

/// Two submitters, and somebody who waits for the lane to be idle.
fn drained<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let lane = Arc::new(Lane::new(gate(), 1));
        lane.resume();
        let others = [spawn(&lane, Lane::drain), spawn(&lane, |lane| assert!(lane.submit(1)))];
        assert!(lane.submit(0));
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(2);
    }
}

/// Three submitters to a lane that is under pressure as soon as a command waits.
fn pressed<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let lane = Arc::new(Lane::new(gate(), 1));
        lane.resume();
        let submit = |lane: &Lane<G>, command| {
            assert!(lane.submit(command));
            if lane.gate.note_pressure(1) {
                lane.pressed.fetch_add(1, Now);
            }
        };
        let others = [1, 2].map(|command| spawn(&lane, move |lane| submit(lane, command)));
        submit(&lane, 0);
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(3);
        assert_eq!(lane.relieved.load(Now), lane.pressed.load(Now), "pressure and relief do not alternate");
    }
}

/// Two submitters to a lane whose rate limit has `tokens`, and a timer that brings one each time. None are put back by those
/// who ran: a command takes one, whatever becomes of it.
fn refused<G: Steps>(tokens: u64, gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 2);
        lane.tokens = Some(AtomicU64::new(tokens));
        lane.resume();
        let lane = Arc::new(lane);
        let others = [spawn(&lane, |lane| lane.refill(2)), spawn(&lane, |lane| assert!(lane.submit(1)))];
        assert!(lane.submit(0));
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(2);
    }
}

/// A command comes while the only permit comes back, and somebody takes the longest waiting one out, to make room.
fn withdrawn<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 1);
        lane.lasting = vec![0];
        lane.resume();
        (0..2).for_each(|command| assert!(lane.submit(command)));
        let lane = Arc::new(lane);
        let others = [
            spawn(&lane, |lane| assert!(lane.submit(2))),
            spawn(&lane, |lane| {
                if let Some(command) = lane.gate.withdraw(&lane.queue) {
                    lane.settle(command);
                }
            }),
        ];
        lane.finish();
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(3);
    }
}

/// A lane of one permit gets a second one while commands are submitted; the first command lasts. What waits may start
/// although no permit comes back.
fn raised<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 2);
        lane.lasting = vec![0];
        lane.resume();
        assert!(lane.submit(0));
        let lane = Arc::new(lane);
        let others = [1, 2].map(|command| spawn(&lane, move |lane| assert!(lane.submit(command))));
        lane.set_max(2);
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_settled(3);
        lane.finish();
        lane.assert_quiet(3);
    }
}

/// The same, with the command waiting in a lane that is paused and resumed meanwhile.
fn raised_while_held<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 2);
        lane.lasting = vec![0];
        lane.resume();
        assert!(lane.submit(0));
        lane.gate.hold();
        assert!(lane.submit(1));
        let lane = Arc::new(lane);
        let resumer = spawn(&lane, Lane::resume);
        lane.set_max(2);
        resumer.join().expect("no panic");
        lane.assert_settled(2);
        lane.finish();
        lane.assert_quiet(2);
    }
}

/// A lane of one permit gets a second one while the only command that runs ends; two wait, of which the first one lasts.
fn raised_at_release<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 2);
        lane.lasting = vec![0, 1];
        lane.resume();
        (0..3).for_each(|command| assert!(lane.submit(command)));
        let lane = Arc::new(lane);
        let ended = spawn(&lane, Lane::finish);
        lane.set_max(2);
        ended.join().expect("no panic");
        lane.assert_settled(3);
        lane.finish();
        lane.assert_quiet(3);
    }
}

/// A lane of two permits loses one while one of the two commands that run ends; two wait. All last.
fn lowered<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(gate(), 2);
        lane.lasting = vec![0, 1, 2, 3];
        lane.resume();
        (0..4).for_each(|command| assert!(lane.submit(command)));
        let lane = Arc::new(lane);
        let ended = spawn(&lane, Lane::finish);
        lane.set_max(1);
        ended.join().expect("no panic");
        // Whatever came first, the second that ends brings the lane down to its maximum, unless it is there.
        let before = lane.gate.status().running;
        lane.finish();
        let after = lane.gate.status().running;
        assert_eq!(after, 1, "more run than the smaller maximum: {before}, then {after}");
        (0..2).for_each(|_| lane.finish());
        lane.assert_quiet(4);
    }
}

#[test]
fn three_submitters_to_one_permit() {
    // Rules out: a command is queued while the last permit comes back, and neither side sees the other.
    check(submitters(1, shipped(1)));
}

#[test]
fn three_submitters_to_two_permits() {
    // Rules out: a pump claims a command that is not there yet, and its submitter sees no permit.
    check(submitters(2, shipped(2)));
}

#[test]
fn a_hold_strands_nothing() {
    // Rules out: a command is queued because the lane is held, and whoever resumes it does not see it.
    check(held(shipped(1)));
}

#[test]
fn the_idle_notice_is_never_missed() {
    // Rules out: the last permit comes back between a look at the lane and the request for a notice.
    check(drained(shipped(1)));
}

#[test]
fn pressure_and_relief_alternate() {
    // Rules out: a lane is marked as under pressure when nothing waits any more; a claim takes the mark and says nothing.
    check(pressed(shipped(1)));
}

#[test]
fn what_the_rate_limit_refuses_is_not_stranded() {
    // Rules out: a command is refused, and the timer is not armed, or finds nothing to admit since the claim is not back.
    check(refused(0, shipped(2)));
    check(refused(1, shipped(2)));
}

#[test]
fn making_room_strands_nothing() {
    // Rules out: a permit comes back while the count of a command is taken away that is then not there.
    check(withdrawn(shipped(1)));
}

#[test]
fn a_raised_maximum_strands_nothing() {
    // Rules out: a command is queued by the smaller maximum, and whoever raises it does not see the command.
    check(raised(shipped(1)));
    check(raised_while_held(shipped(1)));
    check(raised_at_release(shipped(1)));
}

#[test]
fn a_lowered_maximum_is_kept_once_enough_have_ended() {
    // Rules out: permits above the maximum are passed on for as long as commands wait.
    check(lowered(shipped(2)));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promises() {
    // The runs that the mutants fail are due to what they leave out.
    check(submitters(1, mutant(1, Slip::None)));
    check(submitters(2, mutant(2, Slip::None)));
    check(held(mutant(1, Slip::None)));
    check(drained(mutant(1, Slip::None)));
    check(pressed(mutant(1, Slip::None)));
    check(refused(0, mutant(2, Slip::None)));
    check(withdrawn(mutant(1, Slip::None)));
    check(raised(mutant(1, Slip::None)));
    check(raised_while_held(mutant(1, Slip::None)));
    check(raised_at_release(mutant(1, Slip::None)));
    check(lowered(mutant(2, Slip::None)));
}

#[test]
fn mutant_that_submits_in_two_steps_runs_more_than_the_maximum() {
    // The run: two submitters see the last permit.
    refute("more run than the maximum", submitters(1, mutant(1, Slip::SubmitInTwoSteps)));
    refute("more run than the maximum", submitters(2, mutant(2, Slip::SubmitInTwoSteps)));
}

#[test]
fn mutant_that_enqueues_without_a_fence_strands_a_command() {
    // The run: the pump that claimed the command reads the queue as still empty, its submitter the word as still claimed.
    refute("a command is stranded", submitters(1, mutant(1, Slip::EnqueueFence)));
    refute("a command is stranded", submitters(2, mutant(2, Slip::EnqueueFence)));
}

#[test]
fn mutant_that_does_not_look_after_it_enqueued_strands_a_command() {
    // The run: the last permit comes back, its pump finds the command not there yet, then it is pushed.
    refute("a command is stranded", submitters(1, mutant(1, Slip::EnqueueLook)));
}

#[test]
fn mutant_that_pumps_without_giving_a_claim_back_strands_a_command() {
    // The run: a pump takes the count and the permit of a command that is pushed later.
    refute("a command is stranded", submitters(1, mutant(1, Slip::GiveBack)));
    refute("a command is stranded", submitters(2, mutant(2, Slip::GiveBack)));
}

#[test]
fn mutant_that_pumps_without_a_fence_strands_a_command() {
    // The run: as without the fence of `enqueue`; one side alone orders nothing.
    refute("a command is stranded", submitters(1, mutant(1, Slip::PumpFence)));
    refute("a command is stranded", submitters(2, mutant(2, Slip::PumpFence)));
}

#[test]
fn mutant_that_pumps_without_a_second_look_strands_a_command() {
    // The run: the command is pushed, and its submitter looks, between the pop and the return of the claim.
    refute("a command is stranded", submitters(1, mutant(1, Slip::PumpLook)));
    refute("a command is stranded", submitters(2, mutant(2, Slip::PumpLook)));
}

#[test]
fn mutant_that_looks_before_it_gives_a_permit_back_strands_a_command() {
    // The run: a command is queued between the look and the return; its submitter saw no permit.
    refute("a command is stranded", submitters(1, mutant(1, Slip::ReleaseLooksFirst)));
    refute("a command is stranded", submitters(2, mutant(2, Slip::ReleaseLooksFirst)));
}

#[test]
fn mutant_that_resumes_without_a_pump_strands_a_command() {
    // The run: the command is queued while the lane is held.
    refute("a command is stranded", held(mutant(1, Slip::ResumeWithoutPump)));
}

#[test]
fn mutant_that_looks_before_it_asks_for_a_notice_misses_it() {
    // The run: the last permit comes back between the two; the waiter parks for ever.
    refute("deadlock", drained(mutant(1, Slip::IdleReadFirst)));
}

#[test]
fn mutant_that_marks_or_unmarks_pressure_in_two_steps_loses_count() {
    // The runs: the lane empties before it is marked; the claim that takes the mark finds no command and says nothing.
    refute("do not alternate", pressed(mutant(1, Slip::PressureInTwoSteps)));
    refute("do not alternate", pressed(mutant(1, Slip::ReliefAfterPop)));
}

#[test]
fn mutant_whose_timer_is_not_one_arms_two_or_strands_a_command() {
    // The runs: two are refused; one is refused, and nobody comes.
    refute("two timers are armed", refused(0, mutant(2, Slip::EverybodyArms)));
    refute("deadlock", refused(0, mutant(2, Slip::NobodyArms)));
    refute("deadlock", refused(0, mutant(2, Slip::TimerWithoutPump)));
}

#[test]
fn mutant_that_arms_before_the_command_is_back_strands_it() {
    // The runs: the timer fires, and pumps in vain, before the claim is given back or the command is in the queue again.
    refute("deadlock", refused(0, mutant(2, Slip::ArmsFirst)));
    refute("deadlock", refused(0, mutant(2, Slip::PutBackLast)));
}

#[test]
fn mutant_that_makes_room_without_a_fence_or_a_second_look_strands_a_command() {
    // The runs: the command is pushed, and its submitter finds it counted nowhere, before the count is given back.
    refute("a command is stranded", withdrawn(mutant(1, Slip::WithdrawFence)));
    refute("a command is stranded", withdrawn(mutant(1, Slip::WithdrawLook)));
}

#[test]
fn mutant_that_raises_the_maximum_without_a_fence_or_a_pump_strands_a_command() {
    // The runs: who raises reads an old word, who queues an old maximum; nobody looks at the word.
    refute("a command is stranded", raised(mutant(1, Slip::LookFence)));
    refute("a command is stranded", raised(mutant(1, Slip::MaxWithoutPump)));
}

#[test]
fn mutant_that_resumes_without_a_fence_strands_a_command() {
    // The run: who raises the maximum sees the lane held, who resumes it the old maximum.
    refute("a command is stranded", raised_while_held(mutant(1, Slip::LookFence)));
}

#[test]
fn mutant_that_passes_permits_on_above_the_maximum_never_lowers_it() {
    // The run: as many wait as run.
    refute("more run than the smaller maximum", lowered(mutant(2, Slip::ReleaseAboveMax)));
}
