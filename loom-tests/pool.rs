//! A limit that lanes share: never more run than it says, nothing waits while a permit is free, each lane has its minimum.
//!
//! The lanes are those of `loom-tests/gate.rs`; [`Lanes`] asks for the next one as `queue/admission` does.

use std::sync::Arc;

use loom::thread;

use super::gate::{Admitted, Lane, Mutant, PoolCopy, Slip, Steps};
use super::{check, refute};
use crate::limit::gate::Gate;
use crate::limit::pool::Pool;
use crate::sync::atomic::AtomicU64;

/// Names the lanes that want what was put back.
trait Next: Send + Sync + 'static {
    fn next(&self) -> Option<u32>;
    /// Whether a lane that was refused asks, too.
    fn refused_asks(&self) -> bool {
        true
    }
}

impl Next for Pool {
    fn next(&self) -> Option<u32> {
        self.next()
    }
}

impl Next for PoolCopy {
    fn next(&self) -> Option<u32> {
        self.next()
    }
    fn refused_asks(&self) -> bool {
        self.slip != Slip::RefusedLook
    }
}

/// Two lanes, the better one first, whose commands run on the threads that admit them.
struct Lanes<G, P> {
    lanes: [Lane<G>; 2],
    pool: Arc<P>,
}

impl<G: Steps, P: Next> Lanes<G, P> {
    fn new(limit: u64, pool: P, gate: impl Fn(&Arc<P>, u32) -> G) -> Self {
        let pool = Arc::new(pool);
        let in_flight = Arc::new((AtomicU64::new(0), limit));
        let lanes = [0, 1].map(|place| {
            let mut lane = Lane::new(gate(&pool, place), 2);
            lane.in_flight = Some(Arc::clone(&in_flight));
            lane
        });
        lanes.iter().for_each(|lane| lane.gate.unhold());
        Self { lanes, pool }
    }

    fn submit(&self, lane: usize, command: usize) {
        let admitted = <[Admitted; 2]>::default();
        assert!(self.lanes[lane].accept(command, &admitted[lane]));
        if self.pool.refused_asks() {
            self.pump_shared(&admitted);
        }
        self.run(&admitted);
    }

    fn pump_shared(&self, admitted: &[Admitted; 2]) {
        while let Some(lane) = self.pool.next() {
            self.lanes[lane as usize].pump_to(&admitted[lane as usize]);
        }
    }

    fn run(&self, admitted: &[Admitted; 2]) {
        for lane in [0, 1, 0] {
            loop {
                let Some(command) = admitted[lane].borrow_mut().pop() else { break };
                self.lanes[lane].settle(command);
                if !self.lanes[lane].lasting.contains(&command) {
                    self.lanes[lane].release(&admitted[lane]);
                    self.pump_shared(admitted);
                    return self.run(admitted);
                }
            }
        }
    }

    fn finish(&self, lane: usize) {
        let admitted = <[Admitted; 2]>::default();
        self.lanes[lane].release(&admitted[lane]);
        self.pump_shared(&admitted);
        self.run(&admitted);
    }
}

/// One permit for both; a command is submitted to the better lane and two to the other.
fn sharing<G: Steps, P: Next>(
    pool: impl Fn() -> P + Send + Sync + 'static,
    gate: impl Fn(&Arc<P>, u32) -> G + Send + Sync + 'static,
) -> impl Fn() + Send + Sync {
    move || {
        let lanes = Arc::new(Lanes::new(1, pool(), &gate));
        let others = [(0, 0), (1, 1)].map(|(lane, command)| {
            let lanes = Arc::clone(&lanes);
            thread::spawn(move || lanes.submit(lane, command))
        });
        lanes.submit(1, 0);
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
        lanes.lanes[0].assert_quiet(1);
        lanes.lanes[1].assert_quiet(2);
    }
}

/// Two permits, of which one is the worse lane's own. Both lanes get two commands that last.
fn reserving<G: Steps, P: Next>(
    pool: impl Fn() -> P + Send + Sync + 'static,
    gate: impl Fn(&Arc<P>, u32) -> G + Send + Sync + 'static,
) -> impl Fn() + Send + Sync {
    move || {
        let mut lanes = Lanes::new(2, pool(), &gate);
        lanes.lanes.iter_mut().for_each(|lane| lane.lasting = vec![0, 1]);
        lanes.submit(0, 0);
        let lanes = Arc::new(lanes);
        let other = {
            let lanes = Arc::clone(&lanes);
            thread::spawn(move || {
                lanes.submit(1, 0);
                lanes.lanes[1].assert_settled(1);
                lanes.submit(1, 1);
            })
        };
        lanes.submit(0, 1);
        other.join().expect("no panic");
        lanes.lanes[0].assert_settled(1);
        lanes.lanes[1].assert_settled(1);
        // What the worse lane has is its own: it goes on there.
        lanes.finish(1);
        lanes.lanes[0].assert_settled(1);
        lanes.lanes[1].assert_settled(2);
        lanes.finish(1);
        lanes.lanes[0].assert_settled(1);
        lanes.finish(0);
        lanes.lanes[0].assert_settled(2);
        lanes.finish(0);
        lanes.lanes.iter().for_each(|lane| lane.assert_quiet(2));
    }
}

/// Two commands of the worse lane run; the better lane's goes first when one ends.
fn passing<G: Steps, P: Next>(
    pool: impl Fn() -> P + Send + Sync + 'static,
    gate: impl Fn(&Arc<P>, u32) -> G + Send + Sync + 'static,
) -> impl Fn() + Send + Sync {
    move || {
        let mut lanes = Lanes::new(1, pool(), &gate);
        lanes.lanes.iter_mut().for_each(|lane| lane.lasting = vec![0, 1]);
        lanes.submit(1, 0);
        lanes.submit(1, 1);
        lanes.submit(0, 0);
        lanes.finish(1);
        lanes.lanes[0].assert_settled(1);
        lanes.finish(0);
        lanes.finish(1);
        lanes.lanes[1].assert_quiet(2);
    }
}

fn shipped(mins: [usize; 2]) -> impl Fn(&Arc<Pool>, u32) -> Gate + Send + Sync {
    move |pool, place| {
        let gate = Gate::new(2);
        gate.join(Arc::clone(pool), place, mins[place as usize]);
        gate
    }
}

fn mutant(mins: [u64; 2], slip: Slip) -> impl Fn(&Arc<PoolCopy>, u32) -> Mutant + Send + Sync {
    move |pool, place| {
        let mut gate = Mutant::new(2, slip);
        gate.seat = Some((Arc::clone(pool), place, mins[place as usize]));
        gate
    }
}

fn copy(slip: Slip) -> impl Fn() -> PoolCopy + Send + Sync {
    move || PoolCopy::new(1, slip)
}

#[test]
fn a_shared_limit_is_kept_and_strands_nothing() {
    // Rules out: a lane is refused while the last permit comes back, and neither side sees the other.
    check(sharing(|| Pool::new(1), shipped([0, 0])));
}

#[test]
fn a_lanes_minimum_is_its_own() {
    // Rules out: a lane's minimum goes to others, or counts against what is shared.
    check(reserving(|| Pool::new(1), shipped([0, 1])));
}

#[test]
fn a_permit_goes_to_the_best_lane_that_wants_it() {
    check(passing(|| Pool::new(1), shipped([0, 0])));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promises() {
    // The runs that the mutants fail are due to what they leave out.
    check(sharing(copy(Slip::None), mutant([0, 0], Slip::None)));
    check(reserving(copy(Slip::None), mutant([0, 1], Slip::None)));
    check(passing(copy(Slip::None), mutant([0, 0], Slip::None)));
}

#[test]
fn mutant_that_does_not_look_again_after_it_was_refused_strands_a_command() {
    // The run: refused, the permit comes back and nobody wants it, the bit is set.
    refute("a command is stranded", sharing(copy(Slip::RefusedLook), mutant([0, 0], Slip::None)));
}

#[test]
fn mutant_that_puts_a_permit_back_without_a_fence_strands_a_command() {
    // The run: who is refused reads the old count, who puts the permit back the old bits.
    refute("a command is stranded", sharing(copy(Slip::NextFence), mutant([0, 0], Slip::None)));
}

#[test]
fn mutant_that_puts_a_permit_back_without_a_look_strands_a_command() {
    // The run: two lanes want the permit, one has it.
    refute("a command is stranded", sharing(copy(Slip::PutWithoutNext), mutant([0, 0], Slip::None)));
}

#[test]
fn mutant_that_keeps_a_permit_it_did_not_need_strands_a_command() {
    // The run: taken for a claim that another thread has made meanwhile.
    refute("a command is stranded", sharing(copy(Slip::None), mutant([0, 0], Slip::KeepsPooled)));
}

#[test]
fn mutant_that_passes_permits_on_lets_the_worse_lane_go_first() {
    refute("a command is stranded", passing(copy(Slip::None), mutant([0, 0], Slip::PassesPooledOn)));
}
