//! Tasks that yield, that wake each other, and that spawn each other.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

use super::tasks::{Job, everyone, rayon, timed_on_a_worker};
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::runtimes::Runtime;

/// Many tasks yield in turns, with the contender's own `yield_now`.
#[derive(Clone)]
pub struct Yield {
    pub tasks: u64,
    /// By each.
    pub yields: u64,
}

impl Workload for Yield {
    fn name(&self) -> String {
        format!("switch/yield-{}", self.tasks)
    }

    fn what(&self) -> String {
        format!("one of {} tasks yields; each does so {} times", self.tasks, self.yields)
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        everyone(cast, self)
    }
}

impl Job for Yield {
    fn operations(&self) -> u64 {
        self.tasks * self.yields
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let (inner, Self { tasks, yields }) = (on.clone(), self.clone());
        timed_on_a_worker(on, async move {
            let spawn = |_| {
                inner.spawn(async move {
                    let mut yielded = 0;
                    while yielded < yields {
                        R::yield_now().await;
                        yielded += 1;
                    }
                    yielded
                })
            };
            let spawned: Vec<_> = (0..tasks).map(spawn).collect();
            let mut yielded = 0;
            for task in spawned {
                yielded += task.await;
            }
            assert_eq!(yielded, tasks * yields);
        })
    }
}

/// Two tasks that only wait for each other: each message is a wake-up.
#[derive(Clone)]
pub struct PingPong {
    pub rounds: u64,
}

impl Workload for PingPong {
    fn name(&self) -> String {
        "switch/ping-pong".to_owned()
    }

    fn what(&self) -> String {
        "a message to another task and one back, over unbounded channels of `futures`".to_owned()
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        everyone(cast, self)
    }
}

impl Job for PingPong {
    fn operations(&self) -> u64 {
        self.rounds
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let (inner, rounds) = (on.clone(), self.rounds);
        timed_on_a_worker(on, async move {
            let (ping, mut pings) = mpsc::unbounded();
            let (pong, mut pongs) = mpsc::unbounded();
            let answering = inner.spawn(async move {
                let mut answered = 0;
                while let Some(n) = pings.next().await {
                    pong.unbounded_send(n).expect("the asking task is there");
                    answered += 1;
                }
                answered
            });
            let asking = inner.spawn(async move {
                for n in 0..rounds {
                    ping.unbounded_send(n).expect("the answering task is there");
                    assert_eq!(pongs.next().await, Some(n));
                }
            });
            asking.await;
            assert_eq!(answering.await, rounds);
        })
    }
}

/// Each task spawns the next.
#[derive(Clone)]
pub struct Chain {
    pub depth: u64,
}

impl Workload for Chain {
    fn name(&self) -> String {
        "switch/chain".to_owned()
    }

    fn what(&self) -> String {
        format!("a task spawns the next one and ends, {} deep", self.depth)
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let mut all = everyone(cast, self);
        let depth = self.depth;
        all.push(rayon(cast, depth, move |pool| rayon_chain(pool, depth)));
        all
    }
}

impl Job for Chain {
    fn operations(&self) -> u64 {
        self.depth
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        fn spawn_chain<R: Runtime>(on: R, at: u64, depth: u64, done: oneshot::Sender<u64>) {
            if at == depth {
                return done.send(at).expect("the end is awaited");
            }
            let inner = on.clone();
            R::detach(on.spawn(async move { spawn_chain(inner, at + 1, depth, done) }));
        }

        let (inner, depth) = (on.clone(), self.depth);
        timed_on_a_worker(on, async move {
            let (done, end) = oneshot::channel();
            spawn_chain(inner, 0, depth, done);
            assert_eq!(end.await, Ok(depth));
        })
    }
}

fn rayon_chain(pool: &rayon::ThreadPool, depth: u64) -> Duration {
    fn spawn_chain(at: u64, depth: u64, begun: Instant, done: std::sync::mpsc::Sender<(Duration, u64)>) {
        if at == depth {
            return done.send((begun.elapsed(), at)).expect("the end is awaited");
        }
        rayon::spawn(move || spawn_chain(at + 1, depth, begun, done));
    }

    let (done, end) = std::sync::mpsc::channel();
    pool.spawn(move || spawn_chain(0, depth, Instant::now(), done));
    let (took, reached) = end.recv().expect("the last job says so");
    assert_eq!(reached, depth);
    took
}
