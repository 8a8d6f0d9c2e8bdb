//! What a lane's settings cost a command: the same typed command through lanes that differ in one of them.
//!
//! The plain lane stands for the peer, so that the last column is what is left of its rate.

use std::hint::black_box;
use std::time::{Duration, Instant};

use corelane::{
    EventEmitter, Executor, LaneConfig, Overflow, PriorityBoostConfig, QueueManagerBuilder, RateLimitConfig, Result,
    RetryPolicy, SubmitOptions, TypedCommand,
};

use crate::WORKERS;
use crate::measure::Comparison;

/// Returns its number.
struct Nothing(u64);

impl TypedCommand for Nothing {
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        Ok(black_box(self.0))
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

/// Submits all commands to a lane of `config`, with the options that `options` gives for each, then awaits all results.
fn run(
    executor: &Executor,
    config: LaneConfig,
    max_in_flight: Option<usize>,
    options: fn(u64) -> Option<SubmitOptions>,
    commands: u64,
) -> Duration {
    futures::executor::block_on(async {
        let mut builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
        if let Some(limit) = max_in_flight {
            builder = builder.with_max_in_flight(limit);
        }
        let manager = builder.with_lane("lane", config, 2).build().await.expect("the configuration is usable");
        manager.start().await.expect("a new queue can be started");
        let lane = manager.lane("lane").expect("it was just given");

        let begun = Instant::now();
        let mut tickets = Vec::with_capacity(commands as usize);
        for i in 0..commands {
            let submitted = match options(i) {
                None => lane.submit_typed(Nothing(i)),
                Some(options) => lane.submit_typed_with(Nothing(i), options),
            };
            tickets.push(submitted.expect("the lane is open and has room"));
        }
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.expect("the command settles").expect("the command succeeds"), i as u64);
        }
        begun.elapsed()
    })
}

const NO_OPTIONS: fn(u64) -> Option<SubmitOptions> = |_| None;

/// The comparison; `size` scales the operations of a run.
pub fn comparisons(size: impl Fn(f64) -> u64) -> Vec<Comparison> {
    let executor = Executor::builder().workers(WORKERS).build().expect("threads can be started");
    let commands = size(10_000.0);
    let hour = Duration::from_secs(3600);
    let lane = || LaneConfig::new(1, 100);
    let go = |config: LaneConfig, in_flight, options| {
        let executor = executor.clone();
        move || run(&executor, config.clone(), in_flight, options, commands)
    };
    let never_reached = RateLimitConfig::per_second(50_000_000);
    let by_key = |keys: u64| -> fn(u64) -> Option<SubmitOptions> {
        if keys == 1000 { |i| Some(SubmitOptions::new().key(i % 1000)) } else { |i| Some(SubmitOptions::new().key(i)) }
    };
    let table = Comparison::new(format!("{commands} typed commands, submission to result, by the lane's settings"))
        .peer("plain lane", commands, go(lane(), None, NO_OPTIONS))
        .ours("timeout", commands, go(lane().with_timeout(hour), None, NO_OPTIONS))
        .ours("retry policy", commands, go(lane().with_retry_policy(RetryPolicy::exponential(3)), None, NO_OPTIONS))
        .ours("capacity", commands, go(lane().with_capacity(1 << 20).with_overflow(Overflow::Wait), None, NO_OPTIONS))
        .ours("token bucket", commands, go(lane().with_rate_limit(never_reached.clone()), None, NO_OPTIONS))
        .ours(
            "sliding window",
            commands,
            go(lane().with_rate_limit(RateLimitConfig::per_second(1 << 20).sliding_window()), None, NO_OPTIONS),
        )
        .ours("limit to all lanes", commands, go(lane(), Some(100), NO_OPTIONS))
        .ours(
            "priority boost",
            commands,
            go(lane().with_priority_boost(PriorityBoostConfig::standard(hour)), None, NO_OPTIONS),
        )
        .ours("time in the queue", commands, go(lane().with_queue_timeout(hour), None, NO_OPTIONS))
        .ours("options, none used", commands, go(lane(), None, |_| Some(SubmitOptions::new())))
        .ours("1,000 keys", commands, go(lane().with_per_key(1), None, by_key(1000)))
        .ours("a key each", commands, go(lane().with_per_key(1), None, by_key(0)));
    vec![table]
}
