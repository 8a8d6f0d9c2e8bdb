//! Lent permits: never more execute than the maximum, and whoever waits for a command of a lane gets on.
//!
//! [`World`] calls the shipped [`Gate`], [`Nested`] and [`Life`] as `queue/admission` does, the loans behind loom's lock.
//! A command without children runs on the thread that admitted it, after the call that did; one with a child has a thread.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};
use std::sync::{Arc, OnceLock};

use loom::sync::Mutex;
use loom::thread;

use super::gate::Fifo;
use super::{check, refute};
use crate::executor::life::{Birth, Life};
use crate::limit::gate::{Gate, Hold, Submitted, Verdict, WAITING_MAX};
use crate::queue::nested::{Aftermath, Nested};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    /// The mark is set after the gate was asked for a permit.
    MarkLate,
    /// Who raises the maximum does not look at the mark.
    RaiseIgnores,
    /// Who ends does not look at the mark.
    ReleaseIgnores,
    /// Who comes back takes a permit and is still owed one.
    ComeBackKeepsOwed,
    /// Who comes back goes on although no permit is there.
    ComeBackWithout,
    /// Who leaves does not look whether it was given a permit meanwhile.
    LeaveBlindly,
    /// Who waits keeps its permit.
    WaitsWithPermit,
    /// Permits that are owed to nobody stay with the loans.
    KeepsSurplus,
}

type Loans = Nested<usize, usize>;
type Admitted = RefCell<Vec<usize>>;

struct Lane {
    gate: Gate,
    queue: Fifo,
    loans: Mutex<Loans>,
    max: u64,
    /// Commands that execute: with a permit, and not waiting for others.
    executing: AtomicU64,
}

struct Command {
    lane: usize,
    life: Life,
    settled: Unseen,
    /// Its own, or of who waits for it.
    thread: OnceLock<thread::Thread>,
}

impl Command {
    fn call(&self) {
        self.thread.get().into_iter().for_each(thread::Thread::unpark);
    }
}

struct World {
    lanes: Vec<Lane>,
    commands: Vec<Command>,
    slip: Slip,
}

impl World {
    /// Lanes of one permit each, and which lane each command belongs to.
    fn new(slip: Slip, commands: &[usize]) -> Self {
        let lanes = (0..=*commands.iter().max().expect("some")).map(|_| {
            let gate = Gate::new(1);
            gate.unhold(Hold::Unstarted);
            let loans = Mutex::new(Nested::default());
            Lane { gate, queue: Fifo::new(), loans, max: 1, executing: AtomicU64::new(0) }
        });
        let commands = commands.iter().map(|&lane| Command {
            lane,
            life: Life::new(Birth::Queued),
            settled: Unseen::new(0),
            thread: OnceLock::new(),
        });
        Self { lanes: lanes.collect(), commands: commands.collect(), slip }
    }

    fn lane_of(&self, command: usize) -> &Lane {
        &self.lanes[self.commands[command].lane]
    }

    fn submit_to(&self, command: usize, admitted: &Admitted) {
        let lane = self.lane_of(command);
        match lane.gate.submit(true, WAITING_MAX) {
            Submitted::Admitted => assert_eq!(self.admit(command, admitted), Verdict::Admitted),
            Submitted::Queued => lane.gate.enqueue(command, &lane.queue, |c| self.admit(c, admitted), |_| {}),
            refused => panic!("{refused:?}"),
        }
    }

    fn submit(&self, command: usize) {
        let admitted = Admitted::default();
        self.submit_to(command, &admitted);
        self.run(&admitted);
    }

    fn admit(&self, command: usize, admitted: &Admitted) -> Verdict {
        let life = &self.commands[command].life;
        if !life.is_queued() || !life.admit(false) {
            return Verdict::Dead;
        }
        self.executes(command);
        admitted.borrow_mut().push(command);
        Verdict::Admitted
    }

    fn executes(&self, command: usize) {
        let lane = self.lane_of(command);
        assert!(lane.executing.fetch_add(1, Ordering::Relaxed) < lane.max, "more execute than the maximum");
    }

    fn executes_not(&self, command: usize) {
        self.lane_of(command).executing.fetch_sub(1, Ordering::Relaxed);
    }

    fn run(&self, admitted: &Admitted) {
        loop {
            let Some(command) = admitted.borrow_mut().pop() else { return };
            self.end(command, admitted);
        }
    }

    /// A command ends that may hold a permit.
    fn end(&self, command: usize, admitted: &Admitted) {
        let own = &self.commands[command];
        if own.life.is_admitted() {
            self.executes_not(command);
        }
        if own.life.give_up_permit() {
            self.release(own.lane, admitted);
        }
        assert_eq!(own.settled.fetch_add(1, Now), 0, "settled twice");
        own.call();
    }

    fn release(&self, lane: usize, admitted: &Admitted) {
        let own = &self.lanes[lane];
        if self.slip == Slip::ReleaseIgnores {
            own.gate.release_unlent(&own.queue, |c| self.admit(c, admitted), |_| {});
        } else if !own.gate.release(&own.queue, |c| self.admit(c, admitted), |_| {}) {
            self.with_loans(lane, admitted, Nested::give);
        }
    }

    fn with_loans<R>(&self, lane: usize, admitted: &Admitted, change: impl FnOnce(&mut Loans) -> R) -> R {
        let own = &self.lanes[lane];
        let mut loans = own.loans.lock().expect("no panic");
        let result = change(&mut loans);
        let go_on = |command: usize| {
            self.executes(command);
            self.commands[command].life.hold(false);
            self.commands[command].call();
        };
        let admit = |command: &usize| self.admit(*command, admitted);
        let after = match self.slip {
            Slip::MarkLate => mark_late(&mut loans, &own.gate, go_on, admit),
            Slip::KeepsSurplus => Aftermath { surplus: 0, ..loans.distribute(&own.gate, go_on, admit) },
            _ => loans.distribute(&own.gate, go_on, admit),
        };
        drop(loans);
        for _ in 0..after.surplus {
            own.gate.release_unlent(&own.queue, |c| self.admit(c, admitted), |_| {});
        }
        result
    }

    /// The polled command waits for another one.
    fn lift(&self, command: usize) {
        let admitted = Admitted::default();
        let own = &self.commands[command];
        if own.life.is_queued() {
            self.with_loans(own.lane, &admitted, |loans| loans.await_at(command, command));
        }
        self.run(&admitted);
    }

    fn park(&self, command: usize, admitted: &Admitted) {
        if self.slip == Slip::WaitsWithPermit {
            return;
        }
        self.with_loans(self.commands[command].lane, admitted, |loans| {
            self.executes_not(command);
            assert!(self.commands[command].life.give_up_permit(), "it has one");
            loans.park();
        });
    }

    fn come_back(&self, command: usize) -> bool {
        if self.slip == Slip::WaitsWithPermit {
            return true;
        }
        let admitted = Admitted::default();
        let back = self.with_loans(self.commands[command].lane, &admitted, |loans| {
            let back = match self.slip {
                Slip::ComeBackKeepsOwed => loans.lend(),
                Slip::ComeBackWithout => {
                    let _back = loans.come_back(|| command);
                    true
                }
                _ => loans.come_back(|| command),
            };
            if back {
                self.executes(command);
                self.commands[command].life.hold(false);
            }
            back
        });
        self.run(&admitted);
        back
    }

    fn leave_loans(&self, command: usize, admitted: &Admitted) {
        self.with_loans(self.commands[command].lane, admitted, |loans| {
            if self.slip == Slip::LeaveBlindly || !self.commands[command].life.is_admitted() {
                loans.leave(|other| *other == command);
            }
        });
    }

    /// A command executes that submits another one and waits for it.
    fn parent(&self, command: usize, child: usize) {
        let _only = self.commands[command].thread.set(thread::current());
        self.submit(child);
        self.wait_for(child, |admitted| self.park(command, admitted));
        if !self.come_back(command) {
            while !self.commands[command].life.is_admitted() {
                thread::park();
            }
        }
        let admitted = Admitted::default();
        self.end(command, &admitted);
        self.run(&admitted);
    }

    fn wait_for(&self, child: usize, park: impl FnOnce(&Admitted)) {
        let _only = self.commands[child].thread.set(thread::current());
        self.lift(child);
        let admitted = Admitted::default();
        park(&admitted);
        self.run(&admitted);
        while self.commands[child].settled.load(Now) == 0 {
            thread::park();
        }
    }

    /// Once every call has returned.
    fn assert_quiet(&self) {
        for (number, command) in self.commands.iter().enumerate() {
            assert_eq!(command.settled.load(Now), 1, "command {number} is stranded");
        }
        for lane in &self.lanes {
            let status = lane.gate.status();
            assert_eq!((status.waiting, status.running), (0, 0), "counted for ever");
            assert!(!lane.gate.is_nested(), "marked for ever");
        }
    }
}

/// [`Nested::distribute`] with the gate's mark set last.
fn mark_late(
    loans: &mut Loans,
    gate: &Gate,
    mut go_on: impl FnMut(usize),
    mut admit: impl FnMut(&usize) -> Verdict,
) -> Aftermath {
    let mut after = Aftermath::default();
    while let Some(command) = loans.next_return() {
        go_on(command);
    }
    while loans.has_awaited() && !gate.is_stopped() && (loans.lend() || gate.take_permit()) {
        let Some((_, command)) = loans.pop_awaited() else { break };
        match admit(&command) {
            Verdict::Admitted => after.left_behind += 1,
            _ => loans.give(),
        }
    }
    after.surplus = std::iter::from_fn(|| loans.take_surplus().then_some(())).count();
    gate.set_nested(loans.is_busy());
    after
}

fn spawn(world: &Arc<World>, f: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || f(&world))
}

/// A command and its child in one lane of one permit, and a third that comes meanwhile.
fn same_lane(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(World::new(slip, &[0, 0, 0]));
        world.submit_to(0, &Admitted::default());
        let other = spawn(&world, |world| world.submit(2));
        world.parent(0, 1);
        other.join().expect("no panic");
        world.assert_quiet();
    }
}

/// Two lanes of one permit, each held by a command that waits for one of the other lane.
fn crossing(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(World::new(slip, &[0, 1, 1, 0]));
        (0..2).for_each(|parent| world.submit_to(parent, &Admitted::default()));
        let other = spawn(&world, |world| world.parent(1, 3));
        world.parent(0, 2);
        other.join().expect("no panic");
        world.assert_quiet();
    }
}

/// Somebody begins to wait for a command that is in no line (it waits for its key), while the only permit comes back.
fn arriving(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(World::new(slip, &[0, 0]));
        world.submit_to(0, &Admitted::default());
        let other = spawn(&world, |world| world.wait_for(1, |_| {}));
        let admitted = Admitted::default();
        world.end(0, &admitted);
        world.run(&admitted);
        other.join().expect("no panic");
        world.assert_quiet();
    }
}

/// A command waits for its child, wants to go on while the child has its permit, and ends instead; a third one comes.
fn leaving(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let world = Arc::new(World::new(slip, &[0, 0, 0]));
        world.submit_to(0, &Admitted::default());
        world.submit(1);
        world.lift(1);
        let lent = Admitted::default();
        world.park(0, &lent);
        let child = spawn(&world, move |world| world.run(&lent));
        let other = spawn(&world, |world| world.submit(2));
        let admitted = Admitted::default();
        if !world.come_back(0) {
            world.leave_loans(0, &admitted);
        }
        world.end(0, &admitted);
        world.run(&admitted);
        [child, other].into_iter().for_each(|thread| thread.join().expect("no panic"));
        world.assert_quiet();
    }
}

/// The same, while the maximum is raised; the command that runs lasts.
fn arriving_raised(slip: Slip) -> impl Fn() + Send + Sync {
    move || {
        let mut world = World::new(slip, &[0, 0]);
        world.lanes[0].max = 2;
        let world = Arc::new(world);
        world.submit_to(0, &Admitted::default());
        let other = spawn(&world, |world| world.wait_for(1, |_| {}));
        let own = &world.lanes[0];
        own.gate.set_max(2);
        let admitted = Admitted::default();
        if own.gate.is_nested() && slip != Slip::RaiseIgnores {
            world.with_loans(0, &admitted, |_| {});
        }
        own.gate.pump(&own.queue, |c| world.admit(c, &admitted), |_| {});
        world.run(&admitted);
        other.join().expect("no panic");
        world.end(0, &admitted);
        world.run(&admitted);
        world.assert_quiet();
    }
}

#[test]
fn a_command_that_waits_for_its_child_in_its_own_lane_gets_on() {
    // Rules out: the child waits for the permit of its parent, or the parent for one that has gone to somebody else.
    check(same_lane(Slip::None));
}

#[test]
fn lanes_that_wait_for_each_other_get_on() {
    check(crossing(Slip::None));
}

#[test]
fn a_permit_that_comes_back_meets_who_is_awaited() {
    // Rules out: the gate has no permit, one comes back and finds no mark, the mark is set.
    check(arriving(Slip::None));
    check(arriving_raised(Slip::None));
}

#[test]
fn a_command_that_ends_instead_of_going_on_takes_nothing_along() {
    // Rules out: it is given the permit while it leaves, and nobody has it.
    check(leaving(Slip::None));
}

#[test]
fn mutant_that_waits_with_its_permit_is_never_served() {
    refute("deadlock", same_lane(Slip::WaitsWithPermit));
    refute("deadlock", crossing(Slip::WaitsWithPermit));
}

#[test]
fn mutant_that_marks_late_strands_who_is_awaited() {
    refute("deadlock", arriving(Slip::MarkLate));
    refute("deadlock", arriving_raised(Slip::MarkLate));
}

#[test]
fn mutant_that_ignores_the_mark_strands_who_wants_to_go_on() {
    // The run: the child's permit is free, and nobody tells the parent.
    refute("deadlock", same_lane(Slip::ReleaseIgnores));
    refute("deadlock", arriving(Slip::ReleaseIgnores));
    refute("deadlock", arriving_raised(Slip::RaiseIgnores));
}

#[test]
fn mutant_that_comes_back_and_is_still_owed_keeps_a_permit() {
    refute("command 2 is stranded", same_lane(Slip::ComeBackKeepsOwed));
}

#[test]
fn mutant_that_comes_back_without_a_permit_is_one_too_many() {
    // The run: the child has it.
    refute("more execute than the maximum", leaving(Slip::ComeBackWithout));
}

#[test]
fn mutant_that_leaves_blindly_or_keeps_a_surplus_keeps_a_permit() {
    // The runs: it has left and was given a permit; nobody is owed what it leaves.
    refute("is stranded", leaving(Slip::LeaveBlindly));
    refute("is stranded", leaving(Slip::KeepsSurplus));
}
