//! Workloads of tasks. One function each for all contenders that run futures, one for rayon where it has an equivalent.
//!
//! Work that starts on a worker is timed there, so that waking it from outside is no part of it.

use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use futures_lite::future::block_on;

use crate::WORKERS;
use crate::measure::Comparison;
use crate::runtimes::{Corelane, Runtime, Smol, SmolStatic, Tokio};

#[derive(Clone)]
struct Contenders {
    pinned: Corelane,
    unpinned: Corelane,
    tokio: Tokio,
    smol: Smol,
    smol_static: SmolStatic,
    rayon: &'static rayon::ThreadPool,
}

impl Contenders {
    fn start() -> Self {
        let rayon = rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("threads can be started");
        Self {
            pinned: Corelane::start(true),
            unpinned: Corelane::start(false),
            tokio: Tokio::start(),
            smol: Smol::start(),
            smol_static: SmolStatic::start(),
            rayon: Box::leak(Box::new(rayon)),
        }
    }
}

/// Compares all that run futures; `$run` is a function generic over [`Runtime`].
macro_rules! compare {
    ($on:ident, $operations:expr, $run:ident, $name:expr) => {{
        let Contenders { pinned, unpinned, tokio, smol, smol_static, .. } = $on.clone();
        let operations = $operations;
        Comparison::new($name)
            .ours("corelane", operations, move || $run(&pinned, operations))
            .ours("corelane, workers not pinned", operations, move || $run(&unpinned, operations))
            .peer("tokio", operations, move || $run(&tokio, operations))
            .peer("async-executor", operations, move || $run(&smol, operations))
            .peer("async-executor, static", operations, move || $run(&smol_static, operations))
    }};
}

/// All comparisons of tasks; `size` scales the operations of a run.
pub fn comparisons(size: impl Fn(f64) -> u64) -> Vec<Comparison> {
    let on = Contenders::start();
    let rayon = on.rayon;
    let (many, rounds, yields) = (size(10_000.0), size(1_000.0), size(200_000.0));
    let without_handles = "rayon, no handles";
    vec![
        compare!(on, many, spawn_join_from_a_worker, format!("spawn and join {many} tasks, from a worker")).reference(
            without_handles,
            many,
            move || rayon_spawn_from_a_worker(rayon, many),
        ),
        compare!(on, many, spawn_join_from_outside, format!("spawn and join {many} tasks, from outside")).reference(
            without_handles,
            many,
            move || rayon_spawn_from_outside(rayon, many),
        ),
        compare!(on, rounds, ping_pong, format!("ping-pong of two tasks, {rounds} round trips")),
        compare!(on, yields, yield_many, format!("yield, {YIELDING} tasks, {yields} yields in all")),
        compare!(on, rounds, chained_spawn, format!("chained spawn, {rounds} deep")).reference(
            without_handles,
            rounds,
            move || rayon_chained_spawn(rayon, rounds),
        ),
    ]
}

/// Runs `work` as a task and says how long it took there.
fn timed_on_a_worker<R: Runtime>(runtime: &R, work: impl Future<Output = ()> + Send + 'static) -> Duration {
    block_on(runtime.spawn(async move {
        let begun = Instant::now();
        work.await;
        begun.elapsed()
    }))
}

fn spawn_all<R: Runtime>(runtime: &R, tasks: u64) -> Vec<R::Join<u64>> {
    (0..tasks).map(|i| runtime.spawn(async move { black_box(i) })).collect()
}

async fn join_all<J: Future<Output = u64>>(tasks: Vec<J>) {
    let count = tasks.len() as u64;
    let mut sum = 0;
    for task in tasks {
        sum += task.await;
    }
    assert_eq!(sum, sum_below(count));
}

fn sum_below(count: u64) -> u64 {
    count * (count - 1) / 2
}

fn spawn_join_from_a_worker<R: Runtime>(runtime: &R, tasks: u64) -> Duration {
    let inner = runtime.clone();
    timed_on_a_worker(runtime, async move { join_all(spawn_all(&inner, tasks)).await })
}

fn spawn_join_from_outside<R: Runtime>(runtime: &R, tasks: u64) -> Duration {
    let begun = Instant::now();
    block_on(join_all(spawn_all(runtime, tasks)));
    begun.elapsed()
}

/// Two tasks that only wait for each other: each message is a wake-up.
fn ping_pong<R: Runtime>(runtime: &R, rounds: u64) -> Duration {
    let inner = runtime.clone();
    timed_on_a_worker(runtime, async move {
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

const YIELDING: u64 = 200;

fn yield_many<R: Runtime>(runtime: &R, yields: u64) -> Duration {
    let inner = runtime.clone();
    timed_on_a_worker(runtime, async move {
        let spawn = |_| {
            inner.spawn(async move {
                for _ in 0..yields / YIELDING {
                    R::yield_now().await;
                }
                yields / YIELDING
            })
        };
        let tasks: Vec<_> = (0..YIELDING).map(spawn).collect();
        let mut yielded = 0;
        for task in tasks {
            yielded += task.await;
        }
        assert_eq!(yielded, yields);
    })
}

/// Each task starts the next.
fn chained_spawn<R: Runtime>(runtime: &R, depth: u64) -> Duration {
    fn spawn_chain<R: Runtime>(runtime: R, at: u64, depth: u64, done: oneshot::Sender<u64>) {
        if at == depth {
            return done.send(at).expect("the end is awaited");
        }
        let inner = runtime.clone();
        R::detach(runtime.spawn(async move { spawn_chain(inner, at + 1, depth, done) }));
    }

    let inner = runtime.clone();
    timed_on_a_worker(runtime, async move {
        let (done, end) = oneshot::channel();
        spawn_chain(inner, 0, depth, done);
        assert_eq!(end.await, Ok(depth));
    })
}

/// Counts rayon's jobs, which have no handles: the last one says when it was done, and the sum.
struct Latch {
    left: AtomicU64,
    sum: AtomicU64,
    done: std::sync::mpsc::Sender<(Instant, u64)>,
}

impl Latch {
    fn new(jobs: u64) -> (Arc<Self>, std::sync::mpsc::Receiver<(Instant, u64)>) {
        let (done, end) = std::sync::mpsc::channel();
        (Arc::new(Self { left: AtomicU64::new(jobs), sum: AtomicU64::new(0), done }), end)
    }

    /// A job that is counted.
    fn job(self: &Arc<Self>, i: u64) -> impl FnOnce() + Send + use<> {
        let latch = Arc::clone(self);
        move || latch.count(black_box(i))
    }

    fn count(&self, i: u64) {
        self.sum.fetch_add(i, Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.send((Instant::now(), self.sum.load(Ordering::Relaxed))).expect("the end is awaited");
        }
    }
}

fn rayon_spawn_from_a_worker(pool: &rayon::ThreadPool, jobs: u64) -> Duration {
    let (latch, end) = Latch::new(jobs);
    let begun = pool.install(|| {
        let begun = Instant::now();
        (0..jobs).for_each(|i| rayon::spawn(latch.job(i)));
        begun
    });
    let (ended, sum) = end.recv().expect("the last job says so");
    assert_eq!(sum, sum_below(jobs));
    ended - begun
}

fn rayon_spawn_from_outside(pool: &rayon::ThreadPool, jobs: u64) -> Duration {
    let (latch, end) = Latch::new(jobs);
    let begun = Instant::now();
    (0..jobs).for_each(|i| pool.spawn(latch.job(i)));
    let (_, sum) = end.recv().expect("the last job says so");
    assert_eq!(sum, sum_below(jobs));
    begun.elapsed()
}

fn rayon_chained_spawn(pool: &rayon::ThreadPool, depth: u64) -> Duration {
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
