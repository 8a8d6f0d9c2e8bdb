//! Many tasks are spawned and joined: by a task, by a thread while the workers sleep, by a thread while they are busy, and by
//! several threads at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;

use super::spin;
use super::tasks::{Job, Latch, everyone, join_all, rayon, spawn_all, sum_below, timed_on_a_worker};
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::runtimes::Runtime;

/// From where.
#[derive(Clone, Copy)]
pub enum From {
    Inside,
    /// While the workers have nothing to do.
    OutsideIdle,
    /// While each worker is in a task that computes and yields.
    OutsideBusy,
}

pub struct Spawn {
    pub from: From,
    pub tasks: u64,
}

impl Workload for Spawn {
    fn name(&self) -> String {
        let name = match self.from {
            From::Inside => "spawn/inside",
            From::OutsideIdle => "spawn/outside-idle",
            From::OutsideBusy => "spawn/outside-busy",
        };
        name.to_owned()
    }

    fn what(&self) -> String {
        let who = match self.from {
            From::Inside => "a task spawns",
            From::OutsideIdle => "a thread, while the workers have nothing to do, spawns",
            From::OutsideBusy => {
                "a thread, while each worker has a task that computes for 10 us, yields, and so on, spawns"
            }
        };
        format!("{who} {} tasks that return a number, then awaits each", self.tasks)
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let (tasks, workers) = (self.tasks, cast.workers);
        match self.from {
            From::Inside => {
                let mut all = everyone(cast, &Inside(tasks));
                all.push(rayon(cast, tasks, move |pool| rayon_inside(pool, tasks)));
                all
            }
            From::OutsideIdle => {
                let mut all = everyone(cast, &Outside(tasks));
                all.push(rayon(cast, tasks, move |pool| rayon_outside(pool, tasks)));
                all
            }
            From::OutsideBusy => {
                let mut all = everyone(cast, &Busy { tasks, workers });
                all.push(rayon(cast, tasks, move |pool| rayon_busy(pool, tasks, workers)));
                all
            }
        }
    }
}

#[derive(Clone)]
struct Inside(u64);

impl Job for Inside {
    fn operations(&self) -> u64 {
        self.0
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let (inner, tasks) = (on.clone(), self.0);
        timed_on_a_worker(on, async move { join_all(spawn_all(&inner, tasks)).await })
    }
}

#[derive(Clone)]
struct Outside(u64);

impl Job for Outside {
    fn operations(&self) -> u64 {
        self.0
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let begun = Instant::now();
        block_on(join_all(spawn_all(on, self.0)));
        begun.elapsed()
    }
}

#[derive(Clone)]
struct Busy {
    tasks: u64,
    workers: usize,
}

/// Between two yields of a busy task.
const BUSY: Duration = Duration::from_micros(10);

impl Job for Busy {
    fn operations(&self) -> u64 {
        self.tasks
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let load = Arc::new(Occupied::default());
        let busy = |_| {
            let load = Arc::clone(&load);
            on.spawn(async move {
                load.enter();
                while load.goes_on() {
                    R::yield_now().await;
                }
            })
        };
        let busy: Vec<_> = (0..self.workers).map(busy).collect();
        load.wait_for(self.workers);
        let took = Outside(self.tasks).run(on);
        load.end.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(block_on);
        took
    }
}

/// Occupies the workers.
#[derive(Default)]
struct Occupied {
    workers: AtomicUsize,
    end: AtomicBool,
}

impl Occupied {
    fn enter(&self) {
        self.workers.fetch_add(1, Ordering::Relaxed);
    }

    fn wait_for(&self, workers: usize) {
        while self.workers.load(Ordering::Relaxed) < workers {
            thread::yield_now();
        }
    }

    fn goes_on(&self) -> bool {
        spin(BUSY);
        !self.end.load(Ordering::Relaxed)
    }
}

fn rayon_inside(pool: &rayon::ThreadPool, jobs: u64) -> Duration {
    let (latch, ended) = Latch::new(jobs);
    let begun = pool.install(|| {
        let begun = Instant::now();
        (0..jobs).for_each(|i| rayon::spawn(latch.job(i)));
        begun
    });
    ended.wait(sum_below(jobs)) - begun
}

fn rayon_outside(pool: &rayon::ThreadPool, jobs: u64) -> Duration {
    let (latch, ended) = Latch::new(jobs);
    let begun = Instant::now();
    (0..jobs).for_each(|i| pool.spawn(latch.job(i)));
    ended.wait(sum_below(jobs));
    begun.elapsed()
}

fn rayon_busy(pool: &rayon::ThreadPool, jobs: u64, workers: usize) -> Duration {
    let load = Arc::new(Occupied::default());
    for _ in 0..workers {
        let load = Arc::clone(&load);
        pool.spawn(move || {
            load.enter();
            while load.goes_on() {
                rayon::yield_now();
            }
        });
    }
    load.wait_for(workers);
    let took = rayon_outside(pool, jobs);
    load.end.store(true, Ordering::Relaxed);
    took
}

/// Several threads spawn at once.
pub struct Producers {
    pub threads: usize,
    /// By all of them together.
    pub tasks: u64,
}

impl Workload for Producers {
    fn name(&self) -> String {
        format!("producers/{}", self.threads)
    }

    fn what(&self) -> String {
        let each = self.tasks / self.threads as u64;
        format!("{} threads at once each spawn {each} tasks that return a number, then await each", self.threads)
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let job = Producing { threads: self.threads, each: self.tasks / self.threads as u64 };
        let Producing { threads, each } = job;
        let mut all = everyone(cast, &job);
        all.push(rayon(cast, job.operations(), move |pool| {
            at_once(threads, || (), |()| _ = rayon_outside(pool, each))
        }));
        all
    }
}

#[derive(Clone)]
struct Producing {
    threads: usize,
    each: u64,
}

impl Job for Producing {
    fn operations(&self) -> u64 {
        self.threads as u64 * self.each
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        at_once(self.threads, || on.clone(), |on| _ = Outside(self.each).run(&on))
    }
}

/// Runs `work` on threads that begin together; from when the first begins to when the last ends.
pub fn at_once<T: Send>(threads: usize, make: impl Fn() -> T, work: impl Fn(T) + Sync) -> Duration {
    let start = Barrier::new(threads);
    let (start, work) = (&start, &work);
    let spans: Vec<_> = thread::scope(|scope| {
        let run = |_| {
            let made = make();
            scope.spawn(move || {
                start.wait();
                let begun = Instant::now();
                work(made);
                (begun, Instant::now())
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|thread| thread.join().expect("the work succeeds")).collect()
    });
    let begun = spans.iter().map(|span| span.0).min();
    let ended = spans.iter().map(|span| span.1).max();
    begun.zip(ended).map_or(Duration::ZERO, |(begun, ended)| ended - begun)
}
