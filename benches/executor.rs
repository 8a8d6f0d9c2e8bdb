//! The executor alone: spawning, joining, yielding and waking, with one worker and with two.
//!
//! Work that starts on a worker is timed there, so that waking it from outside is no part of it.

use std::future::Future;
use std::hint::black_box;
use std::time::{Duration, Instant};

use corelane::{Executor, Task, yield_now};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

/// A bulk priority, as that of the default lanes below `control`.
const PRIORITY: u8 = 2;

const WORKERS: [usize; 2] = [1, 2];

/// Times `work` on a worker.
fn on_a_worker<W, F>(executor: &Executor, iterations: u64, work: W) -> Duration
where
    W: Fn(Executor) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let inner = executor.clone();
    let timed = executor.spawn(PRIORITY, async move {
        let begun = Instant::now();
        for _ in 0..iterations {
            work(inner.clone()).await;
        }
        begun.elapsed()
    });
    executor.block_on(timed).expect("the work does not panic")
}

/// One group of benches, `elements` operations each: `operation/condition`, for each number of workers.
fn bench<F>(c: &mut Criterion, operation: &str, condition: &str, elements: u64, timed: F)
where
    F: Fn(&Executor, u64) -> Duration,
{
    let mut group = c.benchmark_group(operation);
    group.throughput(Throughput::Elements(elements));
    for workers in WORKERS {
        let executor = Executor::builder().workers(workers).build().expect("threads can be started");
        let id = BenchmarkId::from_parameter(format!("{condition}_{workers}w"));
        group.bench_function(id, |b| b.iter_custom(|iterations| timed(&executor, iterations)));
    }
    group.finish();
}

fn spawn_all(executor: &Executor, tasks: u64) -> Vec<Task<u64>> {
    (0..tasks).map(|i| executor.spawn(PRIORITY, async move { black_box(i) })).collect()
}

async fn join_all(tasks: Vec<Task<u64>>) {
    let expected = tasks.len() as u64 * (tasks.len() as u64 - 1) / 2;
    let mut sum = 0;
    for task in tasks {
        sum += task.await.expect("the task does not panic");
    }
    assert_eq!(sum, expected);
}

/// 10,000 tasks that do nothing, and a wait for each.
fn spawn_join(c: &mut Criterion) {
    const TASKS: u64 = 10_000;
    bench(c, "spawn_join_10k", "from_a_worker", TASKS, |executor, iterations| {
        on_a_worker(executor, iterations, |executor| async move { join_all(spawn_all(&executor, TASKS)).await })
    });
    bench(c, "spawn_join_10k", "from_outside", TASKS, |executor, iterations| {
        let begun = Instant::now();
        for _ in 0..iterations {
            executor.block_on(join_all(spawn_all(executor, TASKS)));
        }
        begun.elapsed()
    });
}

/// 200 tasks that give each other turns, 1,000 times each.
fn yields(c: &mut Criterion) {
    const TASKS: u64 = 200;
    const YIELDS: u64 = 1_000;
    bench(c, "yield", "200_tasks", TASKS * YIELDS, |executor, iterations| {
        on_a_worker(executor, iterations, |executor| async move {
            let spawn = |_| {
                executor.spawn(PRIORITY, async {
                    for _ in 0..YIELDS {
                        yield_now().await;
                    }
                })
            };
            let tasks: Vec<_> = (0..TASKS).map(spawn).collect();
            for task in tasks {
                task.await.expect("the task does not panic");
            }
        })
    });
}

/// 1,000 round trips between two tasks.
fn ping_pong(c: &mut Criterion) {
    const ROUNDS: u64 = 1_000;
    bench(c, "ping_pong", "2_tasks", ROUNDS, |executor, iterations| {
        on_a_worker(executor, iterations, |executor| async move {
            let (ping, mut pings) = mpsc::unbounded();
            let (pong, mut pongs) = mpsc::unbounded();
            let answering = executor.spawn(PRIORITY, async move {
                while let Some(n) = pings.next().await {
                    pong.unbounded_send(n).expect("the asking task is there");
                }
            });
            let asking = executor.spawn(PRIORITY, async move {
                for n in 0..ROUNDS {
                    ping.unbounded_send(n).expect("the answering task is there");
                    assert_eq!(pongs.next().await, Some(n));
                }
            });
            asking.await.expect("the task does not panic");
            answering.await.expect("the task does not panic");
        })
    });
}

/// 1,000 tasks of which each starts the next.
fn chained_spawn(c: &mut Criterion) {
    const DEPTH: u64 = 1_000;

    fn spawn_chain(executor: Executor, left: u64, done: oneshot::Sender<()>) {
        if left == 0 {
            return done.send(()).expect("the end is awaited");
        }
        let inner = executor.clone();
        executor.spawn(PRIORITY, async move { spawn_chain(inner, left - 1, done) }).detach();
    }

    bench(c, "chained_spawn", "1000_deep", DEPTH, |executor, iterations| {
        on_a_worker(executor, iterations, |executor| async move {
            let (done, end) = oneshot::channel();
            spawn_chain(executor, DEPTH, done);
            end.await.expect("the chain ends");
        })
    });
}

criterion_group!(benches, spawn_join, yields, ping_pong, chained_spawn);
criterion_main!(benches);
