//! What a lane's settings cost a command: the same typed command through lanes that differ in one of them.
//!
//! The plain lane stands for the peer, so that the last column is what is left of its rate.

use std::time::{Duration, Instant};

use corelane::{
    EventEmitter, Executor, LaneConfig, Overflow, PriorityBoostConfig, QueueManagerBuilder, RateLimitConfig,
    RetryPolicy, SubmitOptions,
};

use super::commands::Nothing;
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

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

pub struct Settings {
    pub commands: u64,
}

impl Workload for Settings {
    fn name(&self) -> String {
        "settings/typed".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "a thread submits {} typed commands to a lane, then awaits each result; the lanes differ in one setting, and the \
             plain one stands for the peer",
            self.commands
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let executor = cast.corelane().0;
        let commands = self.commands;
        let contender = |name, role, config: LaneConfig, in_flight, options: fn(u64) -> Option<SubmitOptions>| {
            let executor = executor.clone();
            let run = move || run(&executor, config.clone(), in_flight, options, commands);
            Contender::timed(name, role, commands, run)
        };
        let ours = |name, config| contender(name, Role::Ours, config, None, NO_OPTIONS);
        let hour = Duration::from_secs(3600);
        let lane = || LaneConfig::new(1, 100);
        let never_reached = RateLimitConfig::per_second(50_000_000);
        let sliding = RateLimitConfig::per_second(1 << 20).sliding_window();
        let unused = |_| Some(SubmitOptions::new());
        let keys = |i| Some(SubmitOptions::new().key(i % 1000));
        let own_key = |i| Some(SubmitOptions::new().key(i));
        vec![
            contender("plain lane", Role::Peer, lane(), None, NO_OPTIONS),
            ours("timeout", lane().with_timeout(hour)),
            ours("retry policy", lane().with_retry_policy(RetryPolicy::exponential(3))),
            ours("capacity", lane().with_capacity(1 << 20).with_overflow(Overflow::Wait)),
            ours("token bucket", lane().with_rate_limit(never_reached)),
            ours("sliding window", lane().with_rate_limit(sliding)),
            contender("limit to all lanes", Role::Ours, lane(), Some(100), NO_OPTIONS),
            ours("priority boost", lane().with_priority_boost(PriorityBoostConfig::standard(hour))),
            ours("time in the queue", lane().with_queue_timeout(hour)),
            contender("options, none used", Role::Ours, lane(), None, unused),
            contender("1,000 keys", Role::Ours, lane().with_per_key(1), None, keys),
            contender("a key each", Role::Ours, lane().with_per_key(1), None, own_key),
        ]
    }
}
