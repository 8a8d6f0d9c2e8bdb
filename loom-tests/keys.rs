//! Keys: never more of a key at a time than allowed, first in first out, and no key waits that may run.
//!
//! [`Lane`] calls the shipped [`Gate`] and [`Commands`] as `queue/admission` does, the commands of its one key behind
//! loom's lock. A command runs on the thread that admitted it, after the call that did.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, Mutex as UnseenMutex};

use loom::sync::{Mutex, MutexGuard};
use loom::thread;

use super::gate::Fifo;
use super::{check, refute};
use crate::limit::gate::{Gate, Hold, Submitted, Verdict, Waiting};
use crate::queue::keys::{Admit, Commands, Entrance, Order};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    /// A command that comes in looks for a permit after the lock is free.
    EnterInTwoSteps,
    /// A command that comes in takes a permit, whoever of its key is there.
    EntersBlindly,
    /// Who ends does not list its key.
    LeaveLists,
    /// The key is not listed again when one of its commands is admitted.
    Relists,
    /// Who lists the key again does not fence before it goes on.
    RelistFence,
    /// How many may run is read before the lock is taken.
    MostReadFirst,
    /// Who raises it does not list the key.
    RaiseLists,
    /// Who puts the key back when it has shed a command does not look whether there is a permit.
    ShedPumps,
}

type Admitted = RefCell<Vec<usize>>;

/// A lane with commands of one key.
struct Lane {
    gate: Gate,
    queue: Fifo,
    key: Mutex<Commands<usize>>,
    /// How many may run at a time, now and at most.
    at_most: AtomicU64,
    highest: u64,
    running: AtomicU64,
    settled: Unseen,
    /// In which order commands came in, and took permits.
    entered: UnseenMutex<Vec<usize>>,
    taken: UnseenMutex<Vec<usize>>,
    cancelled: Option<usize>,
    lasting: Option<usize>,
    slip: Slip,
}

impl Lane {
    fn new(max: usize, at_most: usize, slip: Slip) -> Self {
        Self {
            gate: Gate::new(max),
            queue: Fifo::new(),
            key: Mutex::default(),
            at_most: AtomicU64::new(at_most as u64),
            highest: at_most as u64,
            running: AtomicU64::new(0),
            settled: Unseen::new(0),
            entered: UnseenMutex::default(),
            taken: UnseenMutex::default(),
            cancelled: None,
            lasting: None,
            slip,
        }
    }

    /// Takes the key's lock; says how many may run.
    fn lock(&self) -> (usize, MutexGuard<'_, Commands<usize>>) {
        let first = (self.slip == Slip::MostReadFirst).then(|| self.at_most.load(Ordering::Acquire));
        let key = self.key.lock().expect("no panic");
        let at_most = first.unwrap_or_else(|| self.at_most.load(Ordering::Acquire));
        (at_most as usize, key)
    }

    /// Lets two of the key run.
    fn raise_key(&self) {
        self.at_most.store(2, Ordering::Release);
        let (at_most, mut key) = self.lock();
        let listed = key.list(at_most);
        drop(key);
        if listed && self.slip != Slip::RaiseLists {
            let _queued = self.gate.reenter(false);
            let admitted = Admitted::default();
            self.enqueue(&admitted);
            self.run(&admitted);
        }
        self.pump();
    }

    fn submit(&self, command: usize) {
        let admitted = Admitted::default();
        let mut direct = false;
        let (at_most, mut key) = self.lock();
        let listed = key.enter(at_most, Order::New, |entrance| {
            self.entered.lock().expect("no panic").push(command);
            let free = entrance == Entrance::Free || self.slip == Slip::EntersBlindly;
            if free && self.slip == Slip::EnterInTwoSteps {
                direct = true;
            } else if free && self.gate.reenter(true) == Submitted::Admitted {
                direct = true;
                self.take(command, &admitted);
            }
            (!direct).then_some(command)
        });
        drop(key);
        if direct && self.slip == Slip::EnterInTwoSteps {
            match self.gate.reenter(true) {
                Submitted::Admitted => self.take(command, &admitted),
                _ => {
                    // There was none: it stands behind its key after all.
                    let (at_most, mut key) = self.lock();
                    let listed = key.leave(at_most);
                    let again = key.enter(at_most, Order::New, |_| Some(command));
                    drop(key);
                    if listed || again {
                        self.enqueue(&admitted);
                    }
                }
            }
        }
        if listed {
            self.enqueue(&admitted);
        }
        self.run(&admitted);
    }

    /// The key joins the end of the line, where it is counted.
    fn enqueue(&self, admitted: &Admitted) {
        self.gate.enqueue(0, &self.queue, |_| self.admit(admitted), |_| {});
    }

    fn take(&self, command: usize, admitted: &Admitted) {
        assert!(self.running.fetch_add(1, Ordering::Relaxed) < self.highest, "more of a key run than allowed");
        self.taken.lock().expect("no panic").push(command);
        admitted.borrow_mut().push(command);
    }

    /// The key has come to the head of the line, with a permit.
    fn admit(&self, admitted: &Admitted) -> Verdict {
        let (at_most, mut key) = self.lock();
        let head = key.head(at_most, |command| {
            if self.cancelled == Some(*command) {
                self.settle(*command);
                return Admit::Dead;
            }
            self.take(*command, admitted);
            Admit::Taken
        });
        drop(key);
        if head.relisted && self.slip != Slip::Relists {
            let _queued = self.gate.reenter(false);
            self.queue.push(0);
            if self.slip != Slip::RelistFence {
                fence(Ordering::SeqCst);
            }
        }
        if head.outcome == Admit::Taken { Verdict::Admitted } else { Verdict::Dead }
    }

    fn settle(&self, command: usize) {
        assert!(command < 4, "a command");
        self.settled.fetch_add(1, Now);
    }

    fn run(&self, admitted: &Admitted) {
        loop {
            let Some(command) = admitted.borrow_mut().pop() else { return };
            self.settle(command);
            if self.lasting != Some(command) {
                self.end(admitted);
            }
        }
    }

    fn end(&self, admitted: &Admitted) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let (at_most, mut key) = self.lock();
        let listed = key.leave(at_most);
        drop(key);
        if listed && self.slip != Slip::LeaveLists {
            let _queued = self.gate.reenter(false);
            self.enqueue(admitted);
        }
        assert!(self.gate.release(&self.queue, |_| self.admit(admitted), |_| {}), "permits are lent");
    }

    fn finish(&self) {
        let admitted = Admitted::default();
        self.end(&admitted);
        self.run(&admitted);
    }

    fn pump(&self) {
        let admitted = Admitted::default();
        self.gate.pump(&self.queue, |_| self.admit(&admitted), |_| {});
        self.run(&admitted);
    }

    fn resume(&self) {
        self.gate.unhold(Hold::Unstarted);
        self.pump();
    }

    fn raise(&self) {
        self.gate.set_max(2);
        self.pump();
    }

    /// Takes the key out of the line, and puts it back.
    fn shed(&self) {
        if self.gate.withdraw(&self.queue).is_some() {
            let _queued = self.gate.reenter(false);
            self.queue.push(0);
            if self.slip != Slip::ShedPumps {
                self.pump();
            }
        }
    }

    fn assert_settled(&self, commands: usize) {
        assert_eq!(self.settled.load(Now), commands, "a command is stranded: {:?}", self.gate.status());
    }

    /// Once every call has returned.
    fn assert_quiet(&self, commands: usize) {
        self.assert_settled(commands);
        let status = self.gate.status();
        assert_eq!((status.waiting, status.running), (0, 0), "counted for ever");
        assert!(self.key.lock().expect("no panic").is_idle(), "kept for ever");
        let [taken, entered] = [&self.taken, &self.entered].map(|order| {
            let mut order = order.lock().expect("no panic").clone();
            order.retain(|command| self.cancelled != Some(*command));
            order
        });
        assert_eq!(taken, entered, "not first in, first out");
    }
}

fn spawn(lane: &Arc<Lane>, f: impl FnOnce(&Lane) + 'static) -> thread::JoinHandle<()> {
    let lane = Arc::clone(lane);
    thread::spawn(move || f(&lane))
}

/// Three submitters to a lane of `max` permits, of which one key may have `at_most`.
fn submitters(max: usize, at_most: usize, cancelled: Option<usize>, slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(max, at_most, slip);
        lane.cancelled = cancelled;
        lane.resume();
        let lane = Arc::new(lane);
        let others = [1, 2].map(|command| spawn(&lane, move |lane| lane.submit(command)));
        lane.submit(0);
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lane.assert_quiet(3);
    }
}

/// Two commands wait, of which the first one lasts; the lane is started, and something `else` allows more meanwhile.
fn relisted(max: usize, other: fn(&Lane), slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(max, 2, slip);
        lane.lasting = Some(0);
        (0..2).for_each(|command| lane.submit(command));
        let lane = Arc::new(lane);
        let other = spawn(&lane, other);
        lane.resume();
        other.join().expect("no panic");
        lane.assert_settled(2);
        lane.finish();
        lane.assert_quiet(2);
    }
}

/// Two commands of a key wait, of which the first one lasts and one may run; the lane is started, and two may run meanwhile.
fn key_raised(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(2, 1, slip);
        lane.highest = 2;
        lane.lasting = Some(0);
        (0..2).for_each(|command| lane.submit(command));
        let lane = Arc::new(lane);
        let other = spawn(&lane, Lane::raise_key);
        lane.resume();
        other.join().expect("no panic");
        lane.assert_settled(2);
        lane.finish();
        lane.assert_quiet(2);
    }
}

/// One command waits; who makes room takes its key out and puts it back while the only permit comes back.
fn shedding(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let mut lane = Lane::new(1, 2, slip);
        lane.lasting = Some(0);
        lane.resume();
        (0..2).for_each(|command| lane.submit(command));
        let lane = Arc::new(lane);
        let other = spawn(&lane, Lane::shed);
        lane.finish();
        other.join().expect("no panic");
        lane.assert_quiet(2);
    }
}

#[test]
fn a_key_runs_as_many_as_it_may_in_their_order() {
    // Rules out: two commands find their key free; a command waits for its key, and nobody lists that.
    check(submitters(2, 1, None, Slip::None));
    check(submitters(2, 2, None, Slip::None));
    check(submitters(1, 1, Some(1), Slip::None));
}

#[test]
fn a_key_that_is_listed_again_is_found() {
    // Rules out: a pump claims the key before it is in the line again, or the maximum is raised, and neither side sees it.
    check(relisted(2, Lane::pump, Slip::None));
    check(relisted(1, Lane::raise, Slip::None));
}

#[test]
fn a_key_that_may_run_more_is_listed() {
    // Rules out: the key is admitted by the smaller number, and whoever raises it has looked before.
    check(key_raised(Slip::None));
}

#[test]
fn a_key_that_is_put_back_is_found() {
    // Rules out: the permit comes back while the key is out of the line.
    check(shedding(Slip::None));
}

#[test]
fn mutant_that_enters_in_two_steps_overtakes() {
    // The run: the key is free, there is no permit, others come in between.
    refute("not first in, first out", submitters(1, 2, None, Slip::EnterInTwoSteps));
}

#[test]
fn mutant_that_does_not_list_its_key_strands_a_command() {
    refute("a command is stranded", submitters(2, 1, None, Slip::LeaveLists));
    refute("a command is stranded", relisted(2, Lane::pump, Slip::Relists));
}

#[test]
fn mutant_that_lists_its_key_again_without_order_strands_a_command() {
    // The runs: the pump that claimed the key reads the line as still empty, who listed it the word as still claimed; who
    // raises the maximum reads the old word, who listed the key the old maximum.
    refute("a command is stranded", relisted(2, Lane::pump, Slip::RelistFence));
    refute("a command is stranded", relisted(1, Lane::raise, Slip::RelistFence));
}

#[test]
fn mutant_that_does_not_heed_its_key_runs_too_many() {
    refute("more of a key run than allowed", submitters(2, 1, None, Slip::EntersBlindly));
}

#[test]
fn mutant_that_raises_a_keys_number_without_care_strands_a_command() {
    // The runs: the number is read, raised, and used under the lock; the key waits for one of its commands to end.
    refute("a command is stranded", key_raised(Slip::MostReadFirst));
    refute("a command is stranded", key_raised(Slip::RaiseLists));
}

#[test]
fn mutant_that_puts_a_key_back_without_a_look_strands_a_command() {
    // The run: out of the line, the permit comes back, in the line again.
    refute("a command is stranded", shedding(Slip::ShedPumps));
}
