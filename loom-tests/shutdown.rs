//! Shutting a lane down: every command that was accepted runs, and a drain does not end before it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Unseen, Ordering::Relaxed as Now};

use super::gate::{Lane, Mutant, Slip, Steps, spawn};
use super::{check, refute};
use crate::limit::gate::Gate;
use crate::sync::atomic::{AtomicU8, Ordering};

/// What `shutdown` and then `drain` do, while two commands are submitted and the lane is started.
fn closing<G: Steps>(gate: impl Fn() -> G + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let lane = Arc::new(Lane::new(gate(), 1));
        let [closed, accepted, drained] = std::array::from_fn(|_| Arc::new(Unseen::new(0)));
        let submitters = [0, 1].map(|command| {
            let (closed, accepted) = (Arc::clone(&closed), Arc::clone(&accepted));
            spawn(&lane, move |lane| {
                let too_late = closed.load(Now) != 0;
                if lane.submit(command) {
                    assert!(!too_late, "accepted after the lane was closed");
                    accepted.fetch_add(1, Now);
                }
            })
        });
        let closer = {
            let drained = Arc::clone(&drained);
            spawn(&lane, move |lane| {
                lane.gate.close();
                closed.store(1, Now);
                lane.drain();
                drained.store(lane.settled.load(Now), Now);
            })
        };
        lane.resume();
        submitters.into_iter().for_each(|thread| thread.join().expect("no panic"));
        closer.join().expect("no panic");
        let accepted = accepted.load(Now);
        lane.assert_quiet(accepted);
        assert_eq!(drained.load(Now), accepted, "the drain ended before a command that was accepted");
    }
}

/// What `queue/admission` does when the lane's queue is dropped while the lane is held: nobody would ever start it.
struct Abandoned {
    lane: Lane<Gate>,
    /// The queue's last reference is gone. Then `abandon` is called.
    gone: AtomicU8,
    checks: bool,
}

impl Abandoned {
    fn submit(&self, command: usize) -> bool {
        if !self.lane.submit(command) {
            return false;
        }
        if self.checks && self.gone.load(Ordering::Relaxed) != 0 {
            self.abandon();
        }
        true
    }

    fn drop_queue(&self) {
        self.gone.swap(1, Ordering::AcqRel);
        self.abandon();
    }

    fn abandon(&self) {
        self.lane.gate.close();
        if self.lane.gate.status().held {
            while let Some(command) = self.lane.gate.withdraw(&self.lane.queue) {
                self.lane.settle(command);
            }
        }
    }
}

fn abandoned(checks: bool, resumed: bool) -> impl Fn() + Send + Sync {
    move || {
        let lane = Arc::new(Abandoned { lane: Lane::new(Gate::new(1), 1), gone: AtomicU8::new(0), checks });
        let accepted = Arc::new(Unseen::new(0));
        let submitters = [0, 1].map(|command| {
            let (lane, accepted) = (Arc::clone(&lane), Arc::clone(&accepted));
            loom::thread::spawn(move || _ = accepted.fetch_add(usize::from(lane.submit(command)), Now))
        });
        let resumer = resumed.then(|| {
            let lane = Arc::clone(&lane);
            loom::thread::spawn(move || lane.lane.resume())
        });
        lane.drop_queue();
        submitters.into_iter().chain(resumer).for_each(|thread| thread.join().expect("no panic"));
        lane.lane.assert_settled(accepted.load(Now));
    }
}

fn shipped() -> Gate {
    Gate::new(1)
}

fn mutant(slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant::new(1, slip)
}

#[test]
fn a_drain_waits_for_every_command_that_was_accepted() {
    // Rules out: a submitter reads "open", the lane is closed and found idle, the submitter counts its command.
    check(closing(shipped));
}

#[test]
fn an_abandoned_lane_keeps_no_command() {
    // Rules out: the queue is dropped and empties a held lane before a submitter that was accepted has pushed.
    check(abandoned(true, false));
}

#[test]
fn an_abandoned_lane_that_is_resumed_keeps_no_command() {
    // Rules out: a pump and the one that empties the lane each leave a command to the other.
    check(abandoned(true, true));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promise() {
    // The runs that the mutants fail are due to what they leave out.
    check(closing(mutant(Slip::None)));
}

#[test]
fn mutant_that_reads_closed_before_it_counts_is_drained_too_early() {
    // The run: open, closed, idle, counted.
    refute("the drain ended before", closing(mutant(Slip::ClosedReadFirst)));
}

#[test]
fn mutant_that_takes_a_held_lane_for_idle_is_drained_too_early() {
    // The run: a command waits for the lane to be started, and the drain ends.
    refute("the drain ended before", closing(mutant(Slip::IdleWhileWaiting)));
}

#[test]
fn mutant_that_does_not_look_whether_the_queue_is_gone_strands_a_command() {
    // The run: counted, queue dropped and lane emptied, pushed.
    refute("a command is stranded", abandoned(false, false));
}
