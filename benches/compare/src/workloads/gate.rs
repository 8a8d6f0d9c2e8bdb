//! Many threads submit to one lane that runs few at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{Executor, LaneConfig};
use futures_lite::future::block_on;
use tokio::sync::Semaphore;

use super::commands::{A3s, queue, start};
use super::spawn::at_once;
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;
use crate::runtimes::Tokio;

#[derive(Clone, Copy)]
pub struct Gate {
    /// Most commands that run at once.
    pub max: usize,
    pub producers: usize,
    /// By each producer.
    pub commands: u64,
}

/// Counts the commands, and how many run at once.
#[derive(Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
    done: AtomicU64,
}

impl Inside {
    fn pass(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workload for Gate {
    fn name(&self) -> String {
        format!("gate/max-{}", self.max)
    }

    fn what(&self) -> String {
        format!(
            "{} threads each submit {} commands to one lane that runs {} at once, then await each; each command counts how \
             many run. tokio: tasks that hold a permit of its `Semaphore`; a3s-lane: boxed commands",
            self.producers, self.commands, self.max
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let gate = *self;
        let (workers, executor, tokio) = (cast.workers, cast.corelane().0, cast.tokio());
        let all = gate.producers as u64 * gate.commands;
        vec![
            Contender::timed("corelane", Role::Ours, all, move || gate.corelane(&executor)),
            Contender::timed("tokio, semaphore", Role::Peer, all, move || gate.tokio(&tokio)),
            Contender::timed("a3s-lane 0.5.1", Role::Peer, all, move || gate.a3s(workers)),
        ]
    }
}

struct Counted(Arc<Inside>);

impl corelane::TypedCommand for Counted {
    type Output = ();

    async fn execute(&self) -> corelane::Result<()> {
        self.0.pass();
        Ok(())
    }

    fn command_type(&self) -> &str {
        "counted"
    }
}

#[async_trait::async_trait]
impl a3s_lane_05::Command for Counted {
    async fn execute(&self) -> a3s_lane_05::Result<serde_json::Value> {
        self.0.pass();
        Ok(serde_json::Value::Null)
    }

    fn command_type(&self) -> &str {
        "counted"
    }
}

impl Gate {
    fn check(&self, inside: &Inside) {
        assert_eq!(inside.done.load(Ordering::Relaxed), self.producers as u64 * self.commands);
        assert!((1..=self.max).contains(&inside.most.load(Ordering::Relaxed)), "no more than {} at once", self.max);
    }

    fn corelane(&self, executor: &Executor) -> Duration {
        let inside = Arc::new(Inside::default());
        let queue = queue(executor, LaneConfig::new(1, self.max));
        start(&queue);
        let lane = queue.lane("lane").expect("it was just given");
        let took = at_once(
            self.producers,
            || (lane.clone(), Vec::with_capacity(self.commands as usize)),
            |(lane, mut tickets)| {
                for _ in 0..self.commands {
                    tickets.push(lane.submit_typed(Counted(Arc::clone(&inside))).expect("the lane is open"));
                }
                for ticket in tickets {
                    block_on(ticket).expect("it settles").expect("it succeeds");
                }
            },
        );
        self.check(&inside);
        took
    }

    fn tokio(&self, tokio: &Tokio) -> Duration {
        let inside = Arc::new(Inside::default());
        let semaphore = Arc::new(Semaphore::new(self.max));
        let took = at_once(
            self.producers,
            || Vec::with_capacity(self.commands as usize),
            |mut handles| {
                for _ in 0..self.commands {
                    let (inside, semaphore) = (Arc::clone(&inside), Arc::clone(&semaphore));
                    handles.push(tokio.0.spawn(async move {
                        let _permit = semaphore.acquire().await.expect("it is not closed");
                        inside.pass();
                    }));
                }
                for handle in handles {
                    block_on(handle).expect("it does not panic");
                }
            },
        );
        self.check(&inside);
        took
    }

    fn a3s(&self, workers: usize) -> Duration {
        let inside = Arc::new(Inside::default());
        let queue = A3s::queue(workers, &[("lane", self.max, 2)]);
        queue.start();
        let took = at_once(
            self.producers,
            || Vec::with_capacity(self.commands as usize),
            |mut tickets| {
                for _ in 0..self.commands {
                    let command = Box::new(Counted(Arc::clone(&inside)));
                    tickets.push(block_on(queue.manager.submit("lane", command)).expect("the lane is open"));
                }
                for ticket in tickets {
                    block_on(ticket).expect("it settles").expect("it succeeds");
                }
            },
        );
        self.check(&inside);
        took
    }
}
