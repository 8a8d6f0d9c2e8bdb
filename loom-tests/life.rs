//! The life of a task: whoever ends it first decides, everybody else learns who that was; whoever takes a queued task has
//! it, everybody else leaves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64 as Unseen, Ordering::Relaxed as Now};

use loom::thread;

use super::{check, refute};
use crate::executor::life::{Birth, End, Ended, Life};
use crate::sync::atomic::{AtomicU8, Ordering};

const ENDS: [End; 3] = [End::Done, End::Cancelled, End::Expired];

/// What the parties to a task call.
trait Steps: Send + Sync + 'static {
    fn queue(&self) -> bool;
    fn admit(&self) -> bool;
    fn hold(&self);
    fn give_up_permit(&self) -> bool;
    fn is_admitted(&self) -> bool;
    fn start(&self) -> bool;
    fn has_started(&self) -> bool;
    fn end(&self) -> Option<End>;
    fn try_end(&self, end: End) -> Result<Ended, End>;
    fn end_queued(&self, end: End) -> Option<Ended>;
    fn end_unstarted(&self, end: End) -> Option<Ended>;
    fn is_queued(&self) -> bool;
    /// What whoever admits it does.
    fn is_queued_and_admitted(&self) -> bool {
        self.is_queued() && self.admit()
    }
}

impl Steps for Life {
    fn queue(&self) -> bool {
        self.queue()
    }
    fn admit(&self) -> bool {
        self.admit(false)
    }
    fn hold(&self) {
        self.hold(false);
    }
    fn give_up_permit(&self) -> bool {
        self.give_up_permit()
    }
    fn is_admitted(&self) -> bool {
        self.is_admitted()
    }
    fn start(&self) -> bool {
        self.start()
    }
    fn has_started(&self) -> bool {
        self.has_started()
    }
    fn end(&self) -> Option<End> {
        self.end()
    }
    fn try_end(&self, end: End) -> Result<Ended, End> {
        self.try_end(end)
    }
    fn end_queued(&self, end: End) -> Option<Ended> {
        self.end_queued(end)
    }
    fn end_unstarted(&self, end: End) -> Option<Ended> {
        self.end_unstarted(end)
    }
    fn is_queued(&self) -> bool {
        self.is_queued()
    }
}

/// The step that a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `try_end` looks and then sets its bit.
    EndInTwoSteps,
    /// `try_end` overwrites what was set since it looked.
    EndOverwrites,
    /// `start` overwrites what was set since it looked.
    StartOverwrites,
    /// `start` does not look whether the task has ended.
    StartBlindly,
    /// `try_end` orders nothing.
    EndRelaxed,
    /// `try_end` leaves the queued bit.
    EndLeavesQueued,
    /// `admit` looks and then takes the bit.
    AdmitInTwoSteps,
    /// `admit` does not look whether the task is queued.
    AdmitBlindly,
    /// `queue` does not look whether the task has ended.
    QueueBlindly,
    /// `end_queued` ends whatever has not ended.
    EndQueuedBlindly,
    /// `end_unstarted` looks whether the task has started, and ends it in a second step.
    EndUnstartedInTwoSteps,
}

/// The steps of [`Life`], one of them wrong.
struct Mutant {
    state: AtomicU8,
    slip: Slip,
}

const ADMITTED: u8 = 1;
const STARTED: u8 = 2;
const TERMINAL: u8 = 4 | 8 | 16 | 32;
const QUEUED: u8 = 64;

fn bit(end: End) -> u8 {
    match end {
        End::Done => 4,
        End::Cancelled => 8,
        End::Expired => 16,
        End::Shed => 32,
        End::Stopped => 8 | 32,
    }
}

fn ended(state: u8) -> Option<End> {
    let ends = [End::Done, End::Cancelled, End::Expired, End::Shed, End::Stopped];
    ends.into_iter().find(|end| state & TERMINAL == bit(*end))
}

fn looked(before: u8) -> Ended {
    Ended { was_queued: before & QUEUED != 0, had_started: before & STARTED != 0 }
}

impl Mutant {
    fn new(birth: Birth, slip: Slip) -> Self {
        let state = match birth {
            Birth::Admitted => ADMITTED,
            Birth::Queued => QUEUED,
            Birth::Apart => 0,
        };
        Self { state: AtomicU8::new(state), slip }
    }

    fn load(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    fn change(&self, next: impl Fn(u8) -> Option<u8>) -> Result<u8, u8> {
        let mut state = self.load();
        loop {
            let Some(new) = next(state) else { return Err(state) };
            match self.state.compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(state),
                Err(now) => state = now,
            }
        }
    }
}

impl Steps for Mutant {
    fn queue(&self) -> bool {
        let blindly = self.slip == Slip::QueueBlindly;
        self.change(|state| (blindly || state & TERMINAL == 0).then_some(state | QUEUED)).is_ok()
    }
    fn admit(&self) -> bool {
        match self.slip {
            Slip::AdmitInTwoSteps => {
                let queued = self.load() & QUEUED != 0;
                if queued {
                    self.state.fetch_and(!QUEUED, Ordering::AcqRel);
                    self.state.fetch_or(ADMITTED, Ordering::AcqRel);
                }
                queued
            }
            Slip::AdmitBlindly => self.change(|state| Some((state & !QUEUED) | ADMITTED)).is_ok(),
            _ => self.change(|state| (state & QUEUED != 0).then_some((state & !QUEUED) | ADMITTED)).is_ok(),
        }
    }
    fn hold(&self) {
        self.state.fetch_or(ADMITTED, Ordering::AcqRel);
    }
    fn give_up_permit(&self) -> bool {
        self.state.fetch_and(!ADMITTED, Ordering::AcqRel) & ADMITTED != 0
    }
    fn is_admitted(&self) -> bool {
        self.load() & ADMITTED != 0
    }
    fn start(&self) -> bool {
        match self.slip {
            Slip::StartOverwrites => {
                let state = self.load();
                self.state.swap(state | STARTED, Ordering::AcqRel);
                state & TERMINAL == 0
            }
            Slip::StartBlindly => self.change(|state| Some(state | STARTED)).is_ok(),
            _ => self.change(|state| (state & TERMINAL == 0).then_some(state | STARTED)).is_ok(),
        }
    }
    fn has_started(&self) -> bool {
        self.load() & STARTED != 0
    }
    fn end(&self) -> Option<End> {
        ended(self.load())
    }
    fn try_end(&self, end: End) -> Result<Ended, End> {
        let (success, failure) = match self.slip {
            Slip::EndRelaxed => (Ordering::Relaxed, Ordering::Relaxed),
            _ => (Ordering::AcqRel, Ordering::Acquire),
        };
        let cleared = if self.slip == Slip::EndLeavesQueued { 0 } else { QUEUED };
        let mut state = self.state.load(failure);
        loop {
            if let Some(earlier) = ended(state) {
                return Err(earlier);
            }
            let new = (state & !cleared) | bit(end);
            match self.slip {
                Slip::EndInTwoSteps => _ = self.state.fetch_or(new, success),
                Slip::EndOverwrites => _ = self.state.swap(new, success),
                _ => match self.state.compare_exchange(state, new, success, failure) {
                    Ok(_) => {}
                    Err(now) => {
                        state = now;
                        continue;
                    }
                },
            }
            return Ok(looked(state));
        }
    }
    fn end_queued(&self, end: End) -> Option<Ended> {
        let blindly = self.slip == Slip::EndQueuedBlindly;
        let ends = |state| if blindly { state & TERMINAL == 0 } else { state & QUEUED != 0 };
        self.change(|state| ends(state).then_some((state & !QUEUED) | bit(end))).ok().map(looked)
    }
    fn end_unstarted(&self, end: End) -> Option<Ended> {
        if self.slip == Slip::EndUnstartedInTwoSteps {
            return (!self.has_started()).then(|| self.try_end(end).ok()).flatten();
        }
        let ends = |state| state & (STARTED | TERMINAL) == 0;
        self.change(|state| ends(state).then_some((state & !QUEUED) | bit(end))).ok().map(looked)
    }
    fn is_queued(&self) -> bool {
        self.slip == Slip::AdmitBlindly || self.load() & QUEUED != 0
    }
}

/// A queued task that is admitted and started by one thread while others end it. Each writes why before it tries.
fn ending<L: Steps>(parties: usize, life: impl Fn() -> L + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let task = Arc::new((life(), [AtomicU8::new(0), AtomicU8::new(0), AtomicU8::new(0)]));
        let enders: Vec<_> = (0..parties)
            .map(|party| {
                let task = Arc::clone(&task);
                thread::spawn(move || {
                    let (life, reasons) = &*task;
                    reasons[party].store(1, Ordering::Relaxed);
                    let tried = life.try_end(ENDS[party]);
                    let winner = tried.err().unwrap_or(ENDS[party]);
                    let reason = ENDS.iter().position(|end| *end == winner).expect("one of them");
                    assert_eq!(
                        reasons[reason].load(Ordering::Relaxed),
                        1,
                        "the loser does not see the winner's reason"
                    );
                    tried
                })
            })
            .collect();
        let (life, _) = &*task;
        // As one that was held back for its time, so that the bits are set whatever happens meanwhile.
        life.hold();
        let started = life.start();
        let tried: Vec<_> = enders.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        assert_eq!(tried.iter().filter(|tried| tried.is_ok()).count(), 1, "not exactly one end");
        for (party, tried) in tried.into_iter().enumerate() {
            assert_eq!(life.end(), Some(tried.err().unwrap_or(ENDS[party])), "told of another end");
        }
        assert!(life.is_admitted() && life.has_started() == started, "a bit was lost");
    }
}

type Party<L> = fn(&Command<L>);

/// A command whose task waits in a line, as the parties to it see it.
struct Command<L> {
    life: L,
    /// Entries in the line, and what `queue/admission` calls apart.
    waiting: Unseen,
    apart: Unseen,
    settled: Unseen,
    /// Attempts that have begun.
    begun: Unseen,
    /// Permits that it has.
    permits: Unseen,
    /// Ends that were told that the command had not started.
    in_time: Unseen,
    ends: Unseen,
}

impl<L: Steps> Command<L> {
    fn new(life: L, waiting: i64, apart: i64) -> Self {
        Self {
            life,
            waiting: Unseen::new(waiting),
            apart: Unseen::new(apart),
            settled: Unseen::new(0),
            begun: Unseen::new(0),
            permits: Unseen::new(0),
            in_time: Unseen::new(0),
            ends: Unseen::new(0),
        }
    }

    /// Its entry is at the head of the line. Says whether it is to run.
    fn admit_from_line(&self) -> bool {
        self.waiting.fetch_sub(1, Now);
        let admitted = self.life.is_queued_and_admitted();
        if admitted {
            self.permits.fetch_add(1, Now);
        } else {
            self.apart.fetch_add(1, Now);
        }
        admitted
    }

    /// It is admitted from elsewhere, and leaves a dead entry in the line.
    fn admit_from_elsewhere(&self) -> bool {
        let admitted = self.life.is_queued_and_admitted();
        if admitted {
            self.permits.fetch_add(1, Now);
            self.apart.fetch_sub(1, Now);
        }
        admitted
    }

    /// What its future does once it is polled.
    fn run(&self) {
        if self.life.start() {
            assert_eq!(self.begun.fetch_add(1, Now), 0, "begun twice");
        }
        self.settle();
    }

    fn settle(&self) {
        if self.life.try_end(End::Done).is_ok() {
            self.ends.fetch_add(1, Now);
        }
        assert_eq!(self.settled.fetch_add(1, Now), 0, "settled twice");
        // Never admitted: what stands in the line is dead.
        if !self.life.is_admitted() {
            self.apart.fetch_sub(1, Now);
        }
        if self.life.give_up_permit() {
            self.permits.fetch_sub(1, Now);
        }
    }

    fn ended(&self, ended: Option<Ended>, has_it: impl FnOnce(Ended) -> bool) {
        let Some(ended) = ended else { return };
        self.ends.fetch_add(1, Now);
        self.in_time.fetch_add(i64::from(!ended.had_started), Now);
        if has_it(ended) {
            self.settle();
        }
    }

    fn cancel(&self) {
        self.ended(self.life.try_end(End::Cancelled).ok(), |ended| ended.was_queued);
    }

    /// Its time to start is over.
    fn expire(&self) {
        if !self.life.has_started() && self.life.end().is_none() {
            let ended = self.life.end_unstarted(End::Expired);
            assert!(ended.is_none_or(|ended| !ended.had_started), "expired after it had started");
            self.ended(ended, |ended| ended.was_queued);
        }
    }

    /// Its lane makes room.
    fn shed(&self) {
        self.ended(self.life.end_queued(End::Shed), |_| true);
    }

    fn assert_over(&self) {
        assert_eq!(self.settled.load(Now), 1, "not settled");
        assert_eq!(self.ends.load(Now), 1, "not exactly one end");
        assert_eq!(self.permits.load(Now), 0, "a permit is lost");
        assert_eq!(self.waiting.load(Now) + self.apart.load(Now), 0, "dead entries are counted wrong");
        let late = self.in_time.load(Now) == 1 && self.begun.load(Now) == 1;
        assert!(!late, "begun after it had ended");
    }
}

/// A queued task that is admitted from its entry at the head of the line, while two more parties come to it.
fn taken<L: Steps>(others: [Party<L>; 2], life: impl Fn() -> L + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let command = Arc::new(Command::new(life(), 1, 0));
        let others = others.map(|party| {
            let command = Arc::clone(&command);
            thread::spawn(move || party(&command))
        });
        if command.admit_from_line() {
            command.run();
        }
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        command.assert_over();
    }
}

/// Another entry of it comes to the head of where it stands.
fn admit_elsewhere<L: Steps>(command: &Command<L>) {
    if command.admit_from_elsewhere() {
        command.run();
    }
}

fn parties<L: Steps>() -> [[Party<L>; 2]; 3] {
    [[admit_elsewhere, Command::cancel], [Command::expire, Command::cancel], [Command::shed, admit_elsewhere]]
}

/// A task that was apart comes to its lane's line while it is cancelled.
fn requeued<L: Steps>(life: impl Fn() -> L + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let command = Arc::new(Command::new(life(), 0, 1));
        let canceller = {
            let command = Arc::clone(&command);
            // It is not queued for long: its future sees the end.
            thread::spawn(move || command.ended(command.life.try_end(End::Cancelled).ok(), |_| false))
        };
        let _alive = command.life.queue();
        command.waiting.fetch_add(1, Now);
        command.apart.fetch_sub(1, Now);
        let mut pump = Some({
            let command = Arc::clone(&command);
            thread::spawn(move || _ = command.admit_from_line())
        });
        let is_due = || command.life.is_admitted() || command.life.end().is_some();
        if !is_due() {
            pump.take().into_iter().for_each(|thread| thread.join().expect("no panic"));
            assert!(is_due(), "neither admitted nor ended");
        }
        command.run();
        pump.into_iter().chain([canceller]).for_each(|thread| thread.join().expect("no panic"));
        command.assert_over();
    }
}

fn mutant(birth: Birth, slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant::new(birth, slip)
}

#[test]
fn a_task_ends_once_and_everybody_learns_how() {
    // Rules out: two parties find the task running and both end it; one of them wipes out that it was admitted.
    check(ending(3, || Life::new(Birth::Apart)));
}

#[test]
fn a_queued_task_is_taken_once() {
    // Rules out: two entries both admit it; who ends it and who admits it both have it; its dead entry is not counted.
    for others in parties() {
        check(taken(others, || Life::new(Birth::Queued)));
    }
}

#[test]
fn a_task_that_comes_back_is_admitted_or_has_ended() {
    // Rules out: a task that has ended stands in the line as if alive, and is given a permit.
    check(requeued(|| Life::new(Birth::Apart)));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promises() {
    // The runs that the mutants fail are due to what they do wrong.
    check(ending(3, mutant(Birth::Apart, Slip::None)));
    for others in parties() {
        check(taken(others, mutant(Birth::Queued, Slip::None)));
    }
    check(requeued(mutant(Birth::Apart, Slip::None)));
}

#[test]
fn mutant_that_ends_in_two_steps_ends_twice() {
    // The run: both look before either sets its bit.
    refute("not exactly one end", ending(3, mutant(Birth::Apart, Slip::EndInTwoSteps)));
}

#[test]
fn mutant_that_overwrites_loses_a_bit() {
    // The runs: a bit is set between the look and the write, and the write does not know it.
    refute("told of another end", ending(1, mutant(Birth::Apart, Slip::StartOverwrites)));
    refute("a bit was lost", ending(1, mutant(Birth::Apart, Slip::EndOverwrites)));
}

#[test]
fn mutant_without_order_hides_the_winners_reason() {
    // The run: the loser reads the end and then an old reason.
    refute("the loser does not see", ending(3, mutant(Birth::Apart, Slip::EndRelaxed)));
}

#[test]
fn mutant_that_takes_a_task_without_care_runs_it_twice() {
    // The runs: both entries find it queued; it is admitted although somebody has it; who ended it leaves it to others, too.
    let with_canceller = [admit_elsewhere, Command::cancel];
    refute("twice", taken(with_canceller, mutant(Birth::Queued, Slip::AdmitInTwoSteps)));
    refute("twice", taken(with_canceller, mutant(Birth::Queued, Slip::AdmitBlindly)));
    refute("twice", taken(with_canceller, mutant(Birth::Queued, Slip::EndLeavesQueued)));
}

#[test]
fn mutant_that_ends_what_is_not_queued_takes_it_from_who_has_it() {
    // The run: admitted, shed, run.
    let others = [Command::shed, admit_elsewhere];
    refute("settled twice", taken(others, mutant(Birth::Queued, Slip::EndQueuedBlindly)));
}

#[test]
fn mutant_that_starts_or_expires_without_care_tells_a_lie() {
    // The runs: the task is ended, as not started, and starts; it starts between the look and the end.
    let others = [Command::expire, Command::cancel];
    refute("begun after it had ended", taken(others, mutant(Birth::Queued, Slip::StartBlindly)));
    refute("expired after it had started", taken(others, mutant(Birth::Queued, Slip::EndUnstartedInTwoSteps)));
}

#[test]
fn mutant_that_queues_what_has_ended_loses_a_permit() {
    // The run: cancelled, queued, settled, admitted.
    refute("a permit is lost", requeued(mutant(Birth::Apart, Slip::QueueBlindly)));
}
