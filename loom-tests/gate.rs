//! The lane gate: no command waits while a permit is free, never more run than the maximum, each runs once.
//!
//! [`Lane`] calls the shipped [`Gate`] as `queue/lane.rs` does; a command runs on the thread that admitted it, after the
//! call that did. `loom-tests/shutdown.rs` uses it, too.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, OnceLock};

use loom::thread;

use super::{check, refute};
use crate::limit::gate::{Gate, GateStatus, Hold, Notice, Submitted, Waiting};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Most commands of a model.
pub(super) const COMMANDS: usize = 3;

/// A queue weaker than the real one: a pop finds nothing while the push in front has not returned.
pub(super) struct Fifo {
    slots: [AtomicU64; COMMANDS],
    head: AtomicU64,
    tail: AtomicU64,
}

impl Fifo {
    fn new() -> Self {
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
    fn submit(&self) -> Submitted;
    fn enqueue(&self, command: usize, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice));
    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice));
    fn note_pressure(&self, threshold: usize) -> bool;
    fn hold(&self);
    fn resume(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice));
    fn close(&self);
    fn want_idle(&self) -> bool;
    fn status(&self) -> GateStatus;
}

impl Steps for Gate {
    fn submit(&self) -> Submitted {
        self.submit()
    }
    fn enqueue(&self, command: usize, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        self.enqueue(command, queue, admit, notice);
    }
    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        self.release(queue, admit, notice);
    }
    fn note_pressure(&self, threshold: usize) -> bool {
        self.note_pressure(threshold)
    }
    fn hold(&self) {
        self.hold(Hold::Unstarted);
    }
    fn resume(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        self.unhold(Hold::Unstarted);
        self.pump(queue, admit, notice);
    }
    fn close(&self) {
        self.close();
    }
    fn want_idle(&self) -> bool {
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
    /// Who ends a hold does not pump.
    ResumeWithoutPump,
    /// `want_idle` looks at the word before it asks.
    IdleReadFirst,
    /// A lane counts as idle when nothing runs, whatever waits.
    IdleWhileWaiting,
    /// `note_pressure` looks at the word before it sets the bit.
    PressureInTwoSteps,
    /// `pump` sends the notice of relief only for a claim that finds a command.
    ReliefAfterPop,
}

/// The steps of [`Gate`], less one.
pub(super) struct Mutant {
    word: AtomicU64,
    max: u64,
    slip: Slip,
}

const FREE: u64 = 1;
const WAITING: u64 = 1 << 8;
const CLOSED: u64 = 1 << 16;
const HELD: u64 = 1 << 17;
const PRESSURED: u64 = 1 << 18;
const IDLE_WANTED: u64 = 1 << 19;

fn free(word: u64) -> u64 {
    word & (WAITING - 1)
}

fn waiting(word: u64) -> u64 {
    (word / WAITING) & (WAITING - 1)
}

fn claimable(word: u64) -> bool {
    word & HELD == 0 && waiting(word) > 0 && free(word) > 0
}

impl Mutant {
    pub(super) fn new(max: usize, slip: Slip) -> Self {
        Self { word: AtomicU64::new(HELD + max as u64 * FREE), max: max as u64, slip }
    }

    fn load(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    fn exchange(&self, word: u64, new: u64) -> Result<u64, u64> {
        self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed)
    }

    fn is_idle(&self, word: u64) -> bool {
        (waiting(word) == 0 || self.slip == Slip::IdleWhileWaiting) && free(word) == self.max
    }

    fn put_back(&self, notice: &mut impl FnMut(Notice)) -> bool {
        let before = self.load();
        let word = self.word.fetch_add(FREE, Ordering::AcqRel) + FREE;
        if self.is_idle(word) && word & (CLOSED | IDLE_WANTED) != 0 {
            notice(Notice::Idle);
        }
        claimable(if self.slip == Slip::ReleaseLooksFirst { before + FREE } else { word })
    }

    fn claim(&self) -> Option<bool> {
        let mut word = self.load();
        loop {
            if !claimable(word) {
                return None;
            }
            let relieved = word & PRESSURED != 0 && waiting(word) == 1;
            let new = if relieved { word & !PRESSURED } else { word } - WAITING - FREE;
            match self.exchange(word, new) {
                Ok(_) => return Some(relieved),
                Err(now) => word = now,
            }
        }
    }

    fn pump(&self, queue: &Fifo, mut admit: impl FnMut(usize) -> bool, mut notice: impl FnMut(Notice)) {
        while let Some(relieved) = self.claim() {
            if relieved && self.slip != Slip::ReliefAfterPop {
                notice(Notice::Relieved);
            }
            let Some(command) = queue.pop() else {
                if self.slip != Slip::GiveBack {
                    self.word.fetch_add(WAITING + FREE, Ordering::AcqRel);
                }
                if self.slip != Slip::PumpFence {
                    fence(Ordering::SeqCst);
                }
                if self.slip == Slip::PumpLook || queue.is_empty() {
                    return;
                }
                continue;
            };
            if relieved && self.slip == Slip::ReliefAfterPop {
                notice(Notice::Relieved);
            }
            if !admit(command) {
                let _more = self.put_back(&mut notice);
            }
        }
    }
}

impl Steps for Mutant {
    fn submit(&self) -> Submitted {
        let mut word = self.load();
        let mut looks = true;
        loop {
            if looks && word & CLOSED != 0 {
                return Submitted::Closed;
            }
            looks = self.slip != Slip::ClosedReadFirst;
            let admitted = word & HELD == 0 && waiting(word) == 0 && free(word) > 0;
            let submitted = if admitted { Submitted::Admitted } else { Submitted::Queued };
            let change = if admitted { FREE.wrapping_neg() } else { WAITING };
            if self.slip == Slip::SubmitInTwoSteps {
                self.word.fetch_add(change, Ordering::AcqRel);
                return submitted;
            }
            match self.exchange(word, word.wrapping_add(change)) {
                Ok(_) => return submitted,
                Err(now) => word = now,
            }
        }
    }

    fn enqueue(&self, command: usize, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        queue.push(command);
        if self.slip != Slip::EnqueueFence {
            fence(Ordering::SeqCst);
        }
        if self.slip != Slip::EnqueueLook && claimable(self.load()) {
            self.pump(queue, admit, notice);
        }
    }

    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, mut notice: impl FnMut(Notice)) {
        if self.put_back(&mut notice) {
            self.pump(queue, admit, notice);
        }
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

    fn hold(&self) {
        self.word.fetch_or(HELD, Ordering::AcqRel);
    }

    fn resume(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        self.word.fetch_and(!HELD, Ordering::AcqRel);
        if self.slip != Slip::ResumeWithoutPump {
            self.pump(queue, admit, notice);
        }
    }

    fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    fn want_idle(&self) -> bool {
        let before = self.load();
        let word = self.word.fetch_or(IDLE_WANTED, Ordering::AcqRel);
        self.is_idle(if self.slip == Slip::IdleReadFirst { before } else { word })
    }

    fn status(&self) -> GateStatus {
        let word = self.word.load(Ordering::Acquire);
        let (waiting, running) = (waiting(word) as usize, (self.max - free(word)) as usize);
        GateStatus { waiting, running, held: word & HELD != 0, paused: false }
    }
}

/// A lane whose commands run on the threads that admit them.
pub(super) struct Lane<G> {
    pub(super) gate: G,
    pub(super) queue: Fifo,
    max: u64,
    /// Commands with a permit.
    active: AtomicU64,
    /// Commands that had their turn, the cancelled one included.
    pub(super) settled: Unseen,
    had_turn: [Unseen; COMMANDS],
    /// A command that declines its permit.
    cancelled: Option<usize>,
    /// Pressure begun and ended.
    pressed: Unseen,
    relieved: Unseen,
    /// Who waits for the lane to be idle.
    drainer: OnceLock<thread::Thread>,
}

impl<G: Steps> Lane<G> {
    pub(super) fn new(gate: G, max: u64) -> Self {
        Self {
            gate,
            queue: Fifo::new(),
            max,
            active: AtomicU64::new(0),
            settled: Unseen::new(0),
            had_turn: [Unseen::new(0), Unseen::new(0), Unseen::new(0)],
            cancelled: None,
            pressed: Unseen::new(0),
            relieved: Unseen::new(0),
            drainer: OnceLock::new(),
        }
    }

    /// False if the lane is closed.
    pub(super) fn submit(&self, command: usize) -> bool {
        let admitted = RefCell::new(Vec::new());
        match self.gate.submit() {
            Submitted::Admitted => self.take_permit(command, &admitted),
            Submitted::Queued => {
                self.gate.enqueue(command, &self.queue, |c| self.admit(c, &admitted), |n| self.notice(n));
            }
            Submitted::Closed | Submitted::Full => return false,
        }
        self.run(admitted);
        true
    }

    /// Starts the lane, or lets it go on.
    pub(super) fn resume(&self) {
        let admitted = RefCell::new(Vec::new());
        self.gate.resume(&self.queue, |c| self.admit(c, &admitted), |n| self.notice(n));
        self.run(admitted);
    }

    /// Waits for a moment without work.
    pub(super) fn drain(&self) {
        let _first = self.drainer.set(thread::current());
        while !self.gate.want_idle() {
            thread::park();
        }
    }

    fn admit(&self, command: usize, admitted: &RefCell<Vec<usize>>) -> bool {
        if self.cancelled == Some(command) {
            self.settle(command);
            return false;
        }
        self.take_permit(command, admitted);
        true
    }

    fn take_permit(&self, command: usize, admitted: &RefCell<Vec<usize>>) {
        assert!(self.active.fetch_add(1, Ordering::Relaxed) < self.max, "more run than the maximum");
        admitted.borrow_mut().push(command);
    }

    fn run(&self, admitted: RefCell<Vec<usize>>) {
        loop {
            let Some(command) = admitted.borrow_mut().pop() else { return };
            self.settle(command);
            self.active.fetch_sub(1, Ordering::Relaxed);
            self.gate.release(&self.queue, |c| self.admit(c, &admitted), |n| self.notice(n));
        }
    }

    pub(super) fn settle(&self, command: usize) {
        assert_eq!(self.had_turn[command].fetch_add(1, Now), 0, "a command had two turns");
        self.settled.fetch_add(1, Now);
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Idle => self.drainer.get().into_iter().for_each(thread::Thread::unpark),
            Notice::Relieved => _ = self.relieved.fetch_add(1, Now),
        }
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
fn the_copy_that_mutants_are_made_of_keeps_the_promises() {
    // The runs that the mutants fail are due to what they leave out.
    check(submitters(1, mutant(1, Slip::None)));
    check(submitters(2, mutant(2, Slip::None)));
    check(held(mutant(1, Slip::None)));
    check(drained(mutant(1, Slip::None)));
    check(pressed(mutant(1, Slip::None)));
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
