//! What is counted. Each case checks its results, so that it can not become fast by doing nothing.

use std::hint::black_box;
use std::time::Duration;

use async_trait::async_trait;
use corelane::{
    Command, EventEmitter, EventReceiver, LaneConfig, LaneEvent, MetricsLevel, QueueManager, QueueManagerBuilder,
    QueueMetrics, RateAlgorithm, RateLimitConfig, RateLimiter, Result, Simulation, Task, Ticket, TypedCommand,
};
use futures::FutureExt;
use futures::executor::block_on;

/// Operations of a round.
pub(crate) const OPERATIONS: u64 = 64;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Runs so many rounds.
    pub(crate) run: fn(u64),
}

pub(crate) const CASES: &[Case] = &[
    // From the spawn to the output.
    Case { name: "task/spawn_from_a_worker", run: spawn_from_a_worker },
    Case { name: "task/spawn_from_outside", run: spawn_from_outside },
    // From the submission to the result, for a command that returns at once.
    Case { name: "command/typed", run: |rounds| commands::<u64>(rounds, WIDE, submit_typed) },
    Case { name: "command/boxed", run: |rounds| commands(rounds, WIDE, submit_boxed) },
    Case { name: "command/closure", run: |rounds| commands::<u64>(rounds, WIDE, submit_closure) },
    // Over `command/typed`: what metrics cost, by level. In virtual time: on the system's clock, each of the three times is
    // about 10 instructions more.
    Case { name: "command/typed_measured", run: |rounds| commands_measured(rounds, MetricsLevel::Full) },
    Case { name: "command/typed_sampled", run: |rounds| commands_measured(rounds, MetricsLevel::Sampled(5)) },
    Case { name: "command/typed_counted", run: |rounds| commands_measured(rounds, MetricsLevel::Counters) },
    // The same where another command of the lane runs first.
    Case { name: "command/typed_waiting", run: |rounds| commands::<u64>(rounds, NARROW, submit_typed) },
    Case { name: "command/boxed_waiting", run: |rounds| commands(rounds, NARROW, submit_boxed) },
    // Over `command/typed`: what a subscriber costs, for the three events of a command. One that never reads: the worker's
    // share. One that does: receiving is part of it.
    Case { name: "command/typed_subscriber_behind", run: commands_subscriber_behind },
    Case { name: "command/typed_subscribed", run: commands_subscribed },
    Case { name: "gate/try_acquire_release", run: acquire_release },
    Case { name: "limiter/token_bucket_admits", run: |rounds| admits(rounds, RateAlgorithm::TokenBucket) },
    Case { name: "limiter/token_bucket_refuses", run: |rounds| refuses(rounds, RateAlgorithm::TokenBucket) },
    Case { name: "limiter/sliding_window_admits", run: |rounds| admits(rounds, RateAlgorithm::SlidingWindow) },
    Case { name: "limiter/sliding_window_refuses", run: |rounds| refuses(rounds, RateAlgorithm::SlidingWindow) },
    // Of an event that is there already: cloned, given to the emitter, and dropped by it or received.
    Case { name: "event/unobserved", run: emit_unobserved },
    Case { name: "event/subscribed", run: emit_subscribed },
];

/// A lane for all of a round's commands at once, and one in which each waits for the one before.
const WIDE: usize = OPERATIONS as usize;
const NARROW: usize = 1;

const PRIORITY: u8 = 2;

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

fn simulation() -> Simulation {
    Simulation::new(1, 0)
}

fn spawn_from_a_worker(rounds: u64) {
    let mut simulation = simulation();
    let executor = simulation.executor().clone();
    for _ in 0..rounds {
        simulation.block_on(async {
            let tasks: Vec<_> =
                (0..OPERATIONS).map(|i| executor.spawn(PRIORITY, async move { black_box(i) })).collect();
            join(tasks).await;
        });
    }
}

fn spawn_from_outside(rounds: u64) {
    let mut simulation = simulation();
    for _ in 0..rounds {
        let executor = simulation.executor();
        let tasks: Vec<_> = (0..OPERATIONS).map(|i| executor.spawn(PRIORITY, async move { black_box(i) })).collect();
        simulation.run_until_idle();
        block_on(join(tasks));
    }
}

async fn join(tasks: Vec<Task<u64>>) {
    for (i, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.expect("the task does not panic"), i as u64);
    }
}

/// A queue with a lane named `lane`.
fn queue(
    simulation: &Simulation,
    events: EventEmitter,
    max_concurrency: usize,
    metrics: Option<QueueMetrics>,
) -> QueueManager {
    let build = async {
        let builder = QueueManagerBuilder::new(events).with_executor(simulation.executor().clone());
        let builder = match metrics {
            Some(metrics) => builder.with_metrics(metrics),
            None => builder,
        };
        let queue = builder.with_lane("lane", LaneConfig::new(1, max_concurrency), PRIORITY).build().await;
        let queue = queue.expect("the configuration is usable");
        queue.start().await.expect("a new queue can be started");
        queue
    };
    block_on(build)
}

fn submit_typed(queue: &QueueManager, i: u64) -> Ticket<u64> {
    queue.submit_typed("lane", Nothing(i)).expect("the queue is open")
}

fn submit_boxed(queue: &QueueManager, i: u64) -> Ticket<serde_json::Value> {
    queue.try_submit("lane", Box::new(Nothing(i))).expect("the queue is open")
}

fn submit_closure(queue: &QueueManager, i: u64) -> Ticket<u64> {
    queue.submit_fn("lane", "nothing", move || async move { Ok(black_box(i)) }).expect("the queue is open")
}

fn commands<T: Into<serde_json::Value>>(
    rounds: u64,
    max_concurrency: usize,
    submit: fn(&QueueManager, u64) -> Ticket<T>,
) {
    let mut simulation = simulation();
    let queue = queue(&simulation, EventEmitter::new(1), max_concurrency, None);
    for _ in 0..rounds {
        run_round(&mut simulation, &queue, submit);
    }
}

fn commands_subscriber_behind(rounds: u64) {
    let mut simulation = simulation();
    let events = EventEmitter::new(1);
    let mut receiver = events.subscribe();
    let queue = queue(&simulation, events, WIDE, None);
    for _ in 0..rounds {
        run_round(&mut simulation, &queue, submit_typed);
    }
    assert_eq!(receive_all(&mut receiver), 2, "the number of lost events, and the last one");
}

fn commands_subscribed(rounds: u64) {
    let mut simulation = simulation();
    let events = EventEmitter::new(1_000);
    let mut receiver = events.subscribe();
    let queue = queue(&simulation, events, WIDE, None);
    for _ in 0..rounds {
        run_round(&mut simulation, &queue, submit_typed);
        assert_eq!(receive_all(&mut receiver), 3 * OPERATIONS);
    }
}

fn commands_measured(rounds: u64, level: MetricsLevel) {
    let mut simulation = simulation();
    let metrics = QueueMetrics::local().with_level(level);
    let queue = queue(&simulation, EventEmitter::new(1), WIDE, Some(metrics.clone()));
    for _ in 0..rounds {
        run_round(&mut simulation, &queue, submit_typed);
    }
    assert_eq!(metrics.collect().lanes[0].finished.ok, rounds * OPERATIONS);
}

/// Submits from a worker and awaits the results.
fn run_round<T: Into<serde_json::Value>>(
    simulation: &mut Simulation,
    queue: &QueueManager,
    submit: fn(&QueueManager, u64) -> Ticket<T>,
) {
    simulation.block_on(async {
        let tickets: Vec<_> = (0..OPERATIONS).map(|i| submit(queue, i)).collect();
        for (i, ticket) in tickets.into_iter().enumerate() {
            let result = ticket.await.expect("the executor is open").expect("the command succeeds");
            assert_eq!(result.into(), i as u64);
        }
    });
}

fn receive_all(receiver: &mut EventReceiver) -> u64 {
    let received = std::iter::from_fn(|| receiver.recv().now_or_never());
    received.inspect(|event| assert!(black_box(event).is_ok(), "the emitter is there")).count() as u64
}

fn acquire_release(rounds: u64) {
    let simulation = simulation();
    let queue = queue(&simulation, EventEmitter::new(1), WIDE, None);
    let lane = queue.lane("lane").expect("the lane is there");
    for _ in 0..rounds * OPERATIONS {
        drop(black_box(lane.try_acquire().expect("a permit is free")));
    }
}

/// With room for more than all rounds.
fn admits(rounds: u64, algorithm: RateAlgorithm) {
    let config = RateLimitConfig::new(1 << 16, Duration::from_secs(3_600)).with_algorithm(algorithm);
    let limiter = RateLimiter::new(&config).expect("the limit makes sense");
    for _ in 0..rounds * OPERATIONS {
        assert_eq!(limiter.try_acquire().now_or_never(), Some(true));
    }
}

fn refuses(rounds: u64, algorithm: RateAlgorithm) {
    let config = RateLimitConfig::per_hour(1).with_algorithm(algorithm);
    let limiter = RateLimiter::new(&config).expect("the limit makes sense");
    assert_eq!(limiter.try_acquire().now_or_never(), Some(true));
    for _ in 0..rounds * OPERATIONS {
        assert_eq!(limiter.try_acquire().now_or_never(), Some(false));
    }
}

fn emit_unobserved(rounds: u64) {
    let events = EventEmitter::new(1);
    let event = LaneEvent::empty("custom");
    for _ in 0..rounds * OPERATIONS {
        black_box(&events).emit(black_box(&event).clone());
    }
}

fn emit_subscribed(rounds: u64) {
    let events = EventEmitter::new(1_000);
    let mut receiver = events.subscribe();
    let event = LaneEvent::empty("custom");
    // The rate of the processor's counter is measured over 50 ms, once; until it is known, a stamp takes more instructions.
    for _ in 0..2 {
        events.emit(event.clone());
        assert_eq!(receive_all(&mut receiver), 1);
        std::thread::sleep(Duration::from_millis(60));
    }
    for _ in 0..rounds {
        for _ in 0..OPERATIONS {
            black_box(&events).emit(black_box(&event).clone());
        }
        assert_eq!(receive_all(&mut receiver), OPERATIONS);
    }
}
