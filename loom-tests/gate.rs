//! The lane gate: no command waits while a permit is free, never more run than the maximum, each runs once.
//!
//! [`Lane`] calls the shipped [`Gate`] as `queue/lane.rs` does; a command runs on the thread that admitted it, after the
//! call that did. `loom-tests/shutdown.rs` uses it, too.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};

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
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
        }
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
    fn pump(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice));
    fn release(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice));
    fn note_pressure(&self, threshold: usize) -> bool;
    fn hold(&self);
    fn unhold(&self);
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
    fn pump(&self, queue: &Fifo, admit: impl FnMut(usize) -> bool, notice: impl FnMut(Notice)) {
        self.pump(queue, admit, notice);
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
    fn unhold(&self) {
        self.unhold(Hold::Unstarted);
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
    /// `submit` reads "closed" before it counts.
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
    /// `unhold` is not followed by a pump.
    UnholdWithoutPump,
    /// `want_idle` looks at the word before it asks.
    IdleReadFirst,
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
        waiting(word) == 0 && free(word) == self.max
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
}

impl Steps for Mutant {
    fn submit(&self) -> Submitted {
        let mut word = self.load();
        loop {
            if word & CLOSED != 0 {
                return Submitted::Closed;
            }
            let admitted = word & HELD == 0 && waiting(word) == 0 && free(word) > 0;
            let submitted = if admitted { Submitted::Admitted } else { Submitted::Queued };
            let change = if admitted { FREE.wrapping_neg() } else { WAITING };
            match self.slip {
                Slip::SubmitInTwoSteps => {
                    self.word.fetch_add(change, Ordering::AcqRel);
                    return submitted;
                }
                Slip::ClosedReadFirst => word &= !CLOSED,
                _ => {}
            }
            let closed = if self.slip == Slip::ClosedReadFirst { self.load() & CLOSED } else { 0 };
            match self.exchange(word | closed, (word | closed).wrapping_add(change)) {
                Ok(_) => return submitted,
                Err(now) if self.slip == Slip::ClosedReadFirst => word = now & !CLOSED,
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

    fn unhold(&self) {
        self.word.fetch_and(!HELD, Ordering::AcqRel);
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
