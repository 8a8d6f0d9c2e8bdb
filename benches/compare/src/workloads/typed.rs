//! Commands in corelane's own ways: with a result of their own type, and as closures; and the cost of having many queued.

use std::hint::black_box;
use std::time::{Duration, Instant};

use corelane::{Executor, LaneConfig};
use futures_lite::future::block_on;

use super::commands::{A3s, Nothing, queue, start};
use super::seed::CONCURRENT;
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;
use crate::runtimes::{Runtime, Tokio};

/// Commands through one lane.
pub struct Typed {
    pub commands: u64,
}

impl Workload for Typed {
    fn name(&self) -> String {
        "typed/1-lane".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "a thread submits {} commands to one lane that runs {CONCURRENT} at once, then awaits each result. The peer has \
             boxed commands only; tokio's tasks have no lane",
            self.commands
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let commands = self.commands;
        let (workers, executor, tokio) = (cast.workers, cast.corelane().0, cast.tokio());
        let own_type = move || queued(&executor, commands, true);
        let executor = cast.corelane().0;
        vec![
            Contender::timed("corelane", Role::Ours, commands, own_type),
            Contender::timed("corelane, closures", Role::Ours, commands, move || closures(&executor, commands)),
            Contender::timed("a3s-lane 0.5.1, boxed", Role::Peer, commands, move || a3s(workers, commands, true)),
            Contender::timed("tokio, tasks", Role::Reference, commands, move || tasks(&tokio, commands)),
        ]
    }
}

/// So many commands are in one lane before any of them starts.
pub struct Queued {
    pub commands: u64,
}

/// More than this the peer is not given: it does about 100,000 a second.
const A3S_MOST: u64 = 10_000;

impl Workload for Queued {
    fn name(&self) -> String {
        let name = match self.commands {
            n if n >= 1_000_000 => format!("{}M", n / 1_000_000),
            n => format!("{}k", n / 1000),
        };
        format!("queued/{name}")
    }

    fn what(&self) -> String {
        format!(
            "a thread submits {} typed commands to a lane that then starts, and awaits each result. Reference: a tokio task, \
             spawned and joined, which starts at once",
            self.commands
        )
    }

    fn allocates(&self) -> bool {
        self.commands <= 1_000_000
    }

    fn max_repeats(&self) -> usize {
        if self.commands > 1_000_000 { 3 } else { usize::MAX }
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let commands = self.commands;
        let (workers, executor, tokio) = (cast.workers, cast.corelane().0, cast.tokio());
        let ours = move || queued(&executor, commands, false);
        let mut all = vec![Contender::timed("corelane", Role::Ours, commands, ours)];
        if commands <= A3S_MOST {
            let peer = move || a3s(workers, commands, false);
            all.push(Contender::timed("a3s-lane 0.5.1, boxed", Role::Peer, commands, peer));
        }
        if commands <= 1_000_000 {
            let reference = move || tasks(&tokio, commands);
            all.push(Contender::timed("tokio, tasks", Role::Reference, commands, reference));
        }
        all
    }
}

/// From the first submission to the last result. The lane is started before or after the submissions.
fn queued(executor: &Executor, commands: u64, started: bool) -> Duration {
    let queue = queue(executor, LaneConfig::new(1, CONCURRENT));
    let lane = queue.lane("lane").expect("it was just given");
    if started {
        start(&queue);
    }
    let mut tickets = Vec::with_capacity(commands as usize);
    let begun = Instant::now();
    for i in 0..commands {
        tickets.push(lane.submit_typed(Nothing(i)).expect("the lane is open"));
    }
    if !started {
        start(&queue);
    }
    block_on(async {
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.expect("it settles").expect("it succeeds"), i as u64);
        }
    });
    begun.elapsed()
}

fn closures(executor: &Executor, commands: u64) -> Duration {
    let queue = queue(executor, LaneConfig::new(1, CONCURRENT));
    start(&queue);
    let lane = queue.lane("lane").expect("it was just given");
    let mut tickets = Vec::with_capacity(commands as usize);
    let begun = Instant::now();
    for i in 0..commands {
        let submitted = lane.submit_fn("nothing", move || async move { Ok(black_box(i)) });
        tickets.push(submitted.expect("the lane is open"));
    }
    block_on(async {
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.expect("it settles").expect("it succeeds"), i as u64);
        }
    });
    begun.elapsed()
}

fn a3s(workers: usize, commands: u64, started: bool) -> Duration {
    let queue = A3s::queue(workers, &[("lane", CONCURRENT, 2)]);
    if started {
        queue.start();
    }
    queue.runtime.block_on(async {
        let mut tickets = Vec::with_capacity(commands as usize);
        let begun = Instant::now();
        for i in 0..commands {
            tickets.push(queue.manager.submit("lane", Box::new(Nothing(i))).await.expect("the lane is open"));
        }
        if !started {
            queue.manager.start().await.expect("a new queue can be started");
        }
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.expect("it settles").expect("it succeeds"), i);
        }
        begun.elapsed()
    })
}

fn tasks(tokio: &Tokio, tasks: u64) -> Duration {
    let mut handles = Vec::with_capacity(tasks as usize);
    let begun = Instant::now();
    for i in 0..tasks {
        handles.push(tokio.spawn(async move { black_box(i) }));
    }
    block_on(async {
        for (i, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await, i as u64);
        }
    });
    begun.elapsed()
}
