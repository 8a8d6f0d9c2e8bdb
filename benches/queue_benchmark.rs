//! The queue: a3s-lane's suites, and the kinds of commands beside each other.
//!
//! Timed are submissions until the last result. Queues are built before and shut down after, except in `lifecycle`, which is
//! about that. Commands return at once unless a suite says otherwise, so that what is left is the queue's own time.

use std::hint::black_box;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corelane::{
    Command, EventEmitter, EventReceiver, Executor, LaneConfig, QueueManager, QueueManagerBuilder, RateLimitConfig,
    Result, Ticket, TypedCommand, sleep,
};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;

/// Of every suite but `command`, which says how many it has.
const WORKERS: usize = 2;

/// The commands of a suite that shows a small difference in each of them.
const MANY: u64 = 10_000;

/// Commands that run at once in a lane of its own: fewer than are submitted, as in most queues. The rest waits in line.
const CONCURRENT: usize = 100;

/// Returns its number, at once or after having slept.
struct Numbered {
    number: u64,
    sleeps: Duration,
}

impl Numbered {
    async fn run(&self) -> u64 {
        if !self.sleeps.is_zero() {
            sleep(self.sleeps).await;
        }
        black_box(self.number)
    }
}

#[async_trait]
impl Command for Numbered {
    async fn execute(&self) -> Result<serde_json::Value> {
        Ok(self.run().await.into())
    }

    fn command_type(&self) -> &str {
        "numbered"
    }
}

impl TypedCommand for Numbered {
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        Ok(self.run().await)
    }

    fn command_type(&self) -> &str {
        "numbered"
    }
}

/// A started queue and the names of its lanes.
struct Lanes {
    queue: QueueManager,
    names: Vec<String>,
}

impl Lanes {
    /// The first lane has the best priority.
    fn start(executor: &Executor, events: EventEmitter, lanes: impl IntoIterator<Item = LaneConfig>) -> Self {
        let mut builder = QueueManagerBuilder::new(events).with_executor(executor.clone());
        let mut names = Vec::new();
        for (priority, config) in (0..).zip(lanes) {
            names.push(format!("lane {priority}"));
            builder = builder.with_lane(names[usize::from(priority)].as_str(), config, priority);
        }
        let queue = block_on(async {
            let queue = builder.build().await.expect("the configuration is usable");
            queue.start().await.expect("a new queue can be started");
            queue
        });
        Self { queue, names }
    }

    /// Without a subscriber to its events.
    fn unobserved(executor: &Executor, lanes: impl IntoIterator<Item = LaneConfig>) -> Self {
        Self::start(executor, EventEmitter::new(1), lanes)
    }

    /// Submits to the lanes in turn, as a3s-lane's users do, and awaits each result.
    fn run(&self, commands: u64, sleeps: Duration) {
        block_on(async {
            let mut tickets = Vec::with_capacity(commands as usize);
            for (number, name) in (0..commands).zip(self.names.iter().cycle()) {
                let ticket = self.queue.submit(name, Box::new(Numbered { number, sleeps })).await;
                tickets.push(ticket.expect("the queue is open"));
            }
            results(tickets, |value| value.as_u64().expect("a number")).await;
        });
    }

    /// So that nothing of it runs while something else is timed.
    fn end(self) {
        block_on(async {
            self.queue.shutdown().await;
            self.queue.drain(Duration::from_secs(60)).await.expect("all commands settle");
        });
    }
}

/// Awaits the results of commands 0, 1, and so on.
async fn results<T>(tickets: Vec<Ticket<T>>, number: impl Fn(T) -> u64) {
    for (expected, ticket) in (0..).zip(tickets) {
        let result = ticket.await.expect("the executor is open").expect("the command succeeds");
        assert_eq!(number(result), expected);
    }
}

fn executor(workers: usize) -> Executor {
    Executor::builder().workers(workers).build().expect("threads can be started")
}

fn time(iterations: u64, mut work: impl FnMut()) -> Duration {
    let begun = Instant::now();
    (0..iterations).for_each(|_| work());
    begun.elapsed()
}

/// Batches of growing size, in one lane.
fn throughput(c: &mut Criterion) {
    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("throughput");
    for commands in [10, 100, 1_000, 10_000, 100_000] {
        group.throughput(Throughput::Elements(commands));
        group.sample_size(if commands < 100_000 { 100 } else { 20 });
        group.bench_function(BenchmarkId::from_parameter(commands), |b| {
            let lanes = Lanes::unobserved(&executor, [LaneConfig::new(1, CONCURRENT)]);
            b.iter_custom(|n| time(n, || lanes.run(commands, Duration::ZERO)));
            lanes.end();
        });
    }
    group.finish();
}

/// From nothing to nothing: a queue is built, started, used, shut down and drained. Its executor is there already.
fn lifecycle(c: &mut Criterion) {
    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("lifecycle");
    for commands in [10, 100, 1_000] {
        group.throughput(Throughput::Elements(commands));
        group.bench_function(BenchmarkId::from_parameter(commands), |b| {
            b.iter(|| {
                let lanes = Lanes::unobserved(&executor, [LaneConfig::new(1, CONCURRENT)]);
                lanes.run(commands, Duration::ZERO);
                lanes.end();
            });
        });
    }
    group.finish();
}

/// 100 commands that sleep for 100 µs, of which more and more may do so at once: by the maximum of one lane, and by the number
/// of lanes with a maximum of one. Sleeping, they need no CPUs to run at once, so what keeps them from it is the queue.
fn concurrency_scaling(c: &mut Criterion) {
    const COMMANDS: u64 = 100;
    const SLEEPS: Duration = Duration::from_micros(100);

    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("concurrency_scaling");
    group.throughput(Throughput::Elements(COMMANDS));
    let wide = [1, 2, 4, 8, 16].map(|max| ("max_concurrency", max, vec![LaneConfig::new(1, max)]));
    let many = [1, 5, 10, 20].map(|lanes| ("lanes", lanes, vec![LaneConfig::new(1, 1); lanes]));
    for (what, size, lanes) in wide.into_iter().chain(many) {
        group.bench_function(BenchmarkId::new(what, size), |b| {
            let lanes = Lanes::unobserved(&executor, lanes.clone());
            b.iter_custom(|n| time(n, || lanes.run(COMMANDS, SLEEPS)));
            lanes.end();
        });
    }
    group.finish();
}

/// The same commands in three lanes and in one, where as many run at once.
fn priority_overhead(c: &mut Criterion) {
    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("priority_overhead");
    for commands in [30, 3_000] {
        group.throughput(Throughput::Elements(commands));
        for lanes in [1, 3] {
            group.bench_function(BenchmarkId::new(format!("{lanes}_lanes"), commands), |b| {
                let lanes = Lanes::unobserved(&executor, vec![LaneConfig::new(1, 30 / lanes); lanes]);
                b.iter_custom(|n| time(n, || lanes.run(commands, Duration::ZERO)));
                lanes.end();
            });
        }
    }
    group.finish();
}

/// Without a subscriber, and with one that reads everything on a thread of its own.
fn events_overhead(c: &mut Criterion) {
    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("events_overhead");
    group.throughput(Throughput::Elements(MANY));
    for subscribers in [0, 1] {
        group.bench_function(BenchmarkId::new("subscribers", subscribers), |b| {
            // Room for all events of a batch: what is lost would not be paid for.
            let events = EventEmitter::new(4 * MANY as usize);
            let readers: Vec<_> = (0..subscribers).map(|_| read_all(events.subscribe())).collect();
            let lanes = Lanes::start(&executor, events, [LaneConfig::new(1, CONCURRENT)]);
            b.iter_custom(|n| time(n, || lanes.run(MANY, Duration::ZERO)));
            lanes.end();
            for reader in readers {
                reader.join().expect("the reader does not panic");
            }
        });
    }
    group.finish();
}

/// Until the queue is gone.
fn read_all(mut events: EventReceiver) -> JoinHandle<()> {
    let read = async move {
        while let Ok(event) = events.recv().await {
            black_box(event);
        }
    };
    std::thread::spawn(|| block_on(read))
}

/// What limits cost that refuse nothing: 100 million commands a second. The window counts 1,048,576, which is the most.
fn rate_limit_overhead(c: &mut Criterion) {
    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("rate_limit_overhead");
    group.throughput(Throughput::Elements(MANY));
    let limits = [
        ("unlimited", RateLimitConfig::unlimited()),
        ("token_bucket", RateLimitConfig::per_second(100_000_000)),
        ("sliding_window", RateLimitConfig::new(1 << 20, Duration::from_nanos(10 << 20)).sliding_window()),
    ];
    for (name, limit) in limits {
        group.bench_function(name, |b| {
            let lane = LaneConfig::new(1, CONCURRENT).with_rate_limit(limit.clone());
            let lanes = Lanes::unobserved(&executor, [lane]);
            b.iter_custom(|n| time(n, || lanes.run(MANY, Duration::ZERO)));
            lanes.end();
        });
    }
    group.finish();
}

/// 100 commands at 50 a second: a burst of 50, and a second for the others. Each batch needs a full bucket, so a new queue.
fn rate_limiting(c: &mut Criterion) {
    const COMMANDS: u64 = 100;

    let executor = executor(WORKERS);
    let mut group = c.benchmark_group("rate_limiting");
    group.throughput(Throughput::Elements(COMMANDS));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(10));
    group.bench_function("50_per_second", |b| {
        b.iter_custom(|n| {
            let batch = |_| {
                let lane = LaneConfig::new(1, CONCURRENT).with_rate_limit(RateLimitConfig::per_second(50));
                let lanes = Lanes::unobserved(&executor, [lane]);
                let taken = time(1, || lanes.run(COMMANDS, Duration::ZERO));
                lanes.end();
                taken
            };
            (0..n).map(batch).sum()
        });
    });
    group.finish();
}

/// The three kinds of commands, with one worker and with two.
fn command(c: &mut Criterion) {
    let mut group = c.benchmark_group("command");
    group.throughput(Throughput::Elements(MANY));
    for workers in [1, 2] {
        let executor = executor(workers);
        let lanes = Lanes::unobserved(&executor, [LaneConfig::new(1, CONCURRENT)]);
        let (queue, lane) = (&lanes.queue, lanes.names[0].as_str());
        let id = |kind: &str| BenchmarkId::new(kind, format!("{workers}w"));

        group.bench_function(id("boxed"), |b| {
            b.iter_custom(|n| time(n, || lanes.run(MANY, Duration::ZERO)));
        });
        group.bench_function(id("typed"), |b| {
            let submit = |number| {
                queue.submit_typed(lane, Numbered { number, sleeps: Duration::ZERO }).expect("the queue is open")
            };
            b.iter_custom(|n| time(n, || block_on(results((0..MANY).map(submit).collect(), |number| number))));
        });
        group.bench_function(id("closure"), |b| {
            let submit = |number| {
                let run = move || async move { Ok(black_box(number)) };
                queue.submit_fn(lane, "numbered", run).expect("the queue is open")
            };
            b.iter_custom(|n| time(n, || block_on(results((0..MANY).map(submit).collect(), |number| number))));
        });
        lanes.end();
    }
    group.finish();
}

criterion_group!(
    benches,
    throughput,
    lifecycle,
    concurrency_scaling,
    priority_overhead,
    events_overhead,
    rate_limit_overhead,
    rate_limiting,
    command
);
criterion_main!(benches);
