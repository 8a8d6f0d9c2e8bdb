//! The queue: from a submission to its result, for the three kinds of commands.
//!
//! Each iteration submits 10,000 commands that do nothing and then awaits their results. Building and starting the queue is
//! not timed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corelane::{
    Command, EventEmitter, EventReceiver, Executor, LaneConfig, QueueManager, QueueManagerBuilder, Result, Ticket,
    TypedCommand, lane_ids, priorities,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const COMMANDS: u64 = 10_000;

/// More than what runs at once, as in most queues: the rest waits in the lane.
const CONCURRENT: usize = 100;

const LANES: [&str; 6] =
    [lane_ids::SYSTEM, lane_ids::CONTROL, lane_ids::QUERY, lane_ids::SESSION, lane_ids::SKILL, lane_ids::PROMPT];

/// Returns its number.
struct Nothing(u64);

#[async_trait]
impl Command for Nothing {
    async fn execute(&self) -> Result<serde_json::Value> {
        Ok(black_box(self.0).into())
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

impl TypedCommand for Nothing {
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        Ok(black_box(self.0))
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

/// A queue with one lane of [`CONCURRENT`] permits and the six default lanes with theirs.
fn queue(executor: &Executor, events: EventEmitter) -> QueueManager {
    let build = async {
        let builder = QueueManagerBuilder::new(events).with_executor(executor.clone());
        let wide = LaneConfig::new(1, CONCURRENT);
        let queue = builder.with_lane("wide", wide, priorities::QUERY).with_default_lanes().build().await;
        let queue = queue.expect("the configuration is usable");
        queue.start().await.expect("a new queue can be started");
        queue
    };
    futures::executor::block_on(build)
}

/// Submits with `submit` and awaits each result, which `value` must find to be the command's number.
fn run<T>(
    queue: &QueueManager,
    iterations: u64,
    submit: impl Fn(&QueueManager, u64) -> Ticket<T>,
    value: impl Fn(T) -> u64,
) -> Duration {
    let begun = Instant::now();
    for _ in 0..iterations {
        let tickets: Vec<_> = (0..COMMANDS).map(|i| submit(queue, i)).collect();
        futures::executor::block_on(async {
            for (i, ticket) in tickets.into_iter().enumerate() {
                let result = ticket.await.expect("the executor is open").expect("the command succeeds");
                assert_eq!(value(result), i as u64);
            }
        });
    }
    begun.elapsed()
}

/// As a3s-lane's users do: a boxed command, an async submission.
fn submit_boxed(queue: &QueueManager, lane: &str, i: u64) -> Ticket<serde_json::Value> {
    futures::executor::block_on(queue.submit(lane, Box::new(Nothing(i)))).expect("the queue is open")
}

fn json_number(value: serde_json::Value) -> u64 {
    value.as_u64().expect("a number")
}

/// Reads events as they come, on a thread of its own, until the queue is gone.
fn read_all(mut events: EventReceiver) -> std::thread::JoinHandle<()> {
    let read = async move {
        while let Ok(event) = events.recv().await {
            black_box(event);
        }
    };
    std::thread::spawn(|| futures::executor::block_on(read))
}

fn submit_to_result(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit_to_result_10k");
    group.throughput(Throughput::Elements(COMMANDS));
    for workers in [1, 2] {
        let executor = Executor::builder().workers(workers).build().expect("threads can be started");
        let id = |condition: &str| BenchmarkId::from_parameter(format!("{condition}_{workers}w"));
        let unobserved = queue(&executor, EventEmitter::new(1_000));

        group.bench_function(id("boxed"), |b| {
            b.iter_custom(|n| run(&unobserved, n, |queue, i| submit_boxed(queue, "wide", i), json_number));
        });
        group.bench_function(id("typed"), |b| {
            let submit = |queue: &QueueManager, i| queue.submit_typed("wide", Nothing(i)).expect("the queue is open");
            b.iter_custom(|n| run(&unobserved, n, submit, |number| number));
        });
        group.bench_function(id("closure"), |b| {
            let submit = |queue: &QueueManager, i| {
                queue.submit_fn("wide", "nothing", move || async move { Ok(black_box(i)) }).expect("the queue is open")
            };
            b.iter_custom(|n| run(&unobserved, n, submit, |number| number));
        });
        group.bench_function(id("boxed_6_lanes"), |b| {
            let submit = |queue: &QueueManager, i| submit_boxed(queue, LANES[i as usize % LANES.len()], i);
            b.iter_custom(|n| run(&unobserved, n, submit, json_number));
        });

        let events = EventEmitter::new(1_000);
        let reader = read_all(events.subscribe());
        let observed = queue(&executor, events);
        group.bench_function(id("boxed_1_subscriber"), |b| {
            b.iter_custom(|n| run(&observed, n, |queue, i| submit_boxed(queue, "wide", i), json_number));
        });
        drop(observed);
        reader.join().expect("the reader does not panic");
    }
    group.finish();
}

criterion_group!(benches, submit_to_result);
criterion_main!(benches);
