//! What a command costs in memory while it is queued, and how often it allocates. For the binary whose allocator counts.

use std::hint::black_box;

use corelane::{Executor, LaneConfig, Ticket};
use futures_lite::future::block_on;

use super::commands::{A3s, Nothing, queue, start};
use super::seed::CONCURRENT;
use crate::cast::Cast;
use crate::counting::Count;
use crate::measure::{Contender, Unit, Workload};
use crate::results::Role;

pub struct Memory {
    pub commands: u64,
}

pub const QUEUED: &str = "queued";
pub const ALLOCATIONS: &str = "allocations";

const FIGURES: &[(&str, Unit)] =
    &[(QUEUED, "B"), ("ticket", "B"), ("allocations to queue", "per command"), (ALLOCATIONS, "per command")];

/// Commands that are run again and again, for the allocations of a queue that has been in use for a while.
const AGAIN: u64 = 1_000;
const ROUNDS: u64 = 20;

impl Workload for Memory {
    fn name(&self) -> String {
        "memory/queued".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "bytes that {} queued commands of 8 bytes hold on the heap, as asked for from the allocator, for each, behind as many \
             others, which have used up what anybody had kept; the size of what the submitter holds; allocations of such a \
             command until it is queued; and allocations from submission to result when {AGAIN} commands are run {ROUNDS} times. \
             tokio: tasks",
            self.commands
        )
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        FIGURES
    }

    fn max_repeats(&self) -> usize {
        5
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let commands = self.commands;
        let workers = cast.workers;
        let executor = cast.corelane().0;
        let typed =
            move || ours(&executor, commands, |lane, i| lane.submit_typed(Nothing(i)).expect("the lane is open"));
        let executor = cast.corelane().0;
        let boxed = move || {
            ours(&executor, commands, |lane, i| lane.try_submit(Box::new(Nothing(i))).expect("the lane is open"))
        };
        vec![
            Contender::new("corelane, typed", Role::Ours, typed),
            Contender::new("corelane, boxed", Role::Ours, boxed),
            Contender::new("a3s-lane 0.5.1, boxed", Role::Peer, move || a3s(workers, commands)),
            Contender::new("tokio, tasks", Role::Reference, move || tokio_tasks(commands)),
        ]
    }
}

/// Queues commands twice, the second time counted; has them run; then runs some again and again. `submit` queues one, `go` lets
/// them run, `finish` awaits one.
fn figures<T>(commands: u64, submit: impl Fn(u64) -> T, go: impl FnOnce(), finish: impl Fn(T)) -> Vec<f64> {
    let mut tickets = Vec::with_capacity(2 * commands as usize);
    tickets.extend((0..commands).map(&submit));
    let before = Count::now();
    tickets.extend((0..commands).map(&submit));
    let queued = Count::now();
    go();
    tickets.into_iter().for_each(&finish);
    let mut tickets = Vec::with_capacity(AGAIN as usize);
    let rested = Count::now();
    for _ in 0..ROUNDS {
        tickets.extend((0..AGAIN).map(&submit));
        tickets.drain(..).for_each(&finish);
    }
    let again = Count::now().allocations_each(rested, ROUNDS * AGAIN);
    let bytes = queued.bytes_each(before, commands);
    vec![bytes, size_of::<T>() as f64, queued.allocations_each(before, commands), again]
}

fn ours<T>(executor: &Executor, commands: u64, submit: impl Fn(&corelane::Lane, u64) -> Ticket<T>) -> Vec<f64> {
    let queue = queue(executor, LaneConfig::new(1, CONCURRENT));
    let lane = queue.lane("lane").expect("it was just given");
    let finish = |ticket: Ticket<T>| drop(block_on(ticket).expect("it settles").expect("it succeeds"));
    figures(commands, |i| submit(&lane, i), || start(&queue), finish)
}

fn a3s(workers: usize, commands: u64) -> Vec<f64> {
    type Ticket = tokio::sync::oneshot::Receiver<a3s_lane_05::Result<serde_json::Value>>;
    let queue = A3s::queue(workers, &[("lane", CONCURRENT, 2)]);
    let submit = |i| block_on(queue.manager.submit("lane", Box::new(Nothing(i)))).expect("the lane is open");
    let finish = |ticket: Ticket| drop(block_on(ticket).expect("it settles").expect("it succeeds"));
    figures(commands, submit, || queue.start(), finish)
}

/// On a runtime that runs only while it is waited for, so that tasks can be queued.
fn tokio_tasks(tasks: u64) -> Vec<f64> {
    type Handle = tokio::task::JoinHandle<u64>;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs no threads");
    let finish = |handle: Handle| _ = runtime.block_on(handle).expect("it does not panic");
    figures(tasks, |i| runtime.spawn(async move { black_box(i) }), || {}, finish)
}
