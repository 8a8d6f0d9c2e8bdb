//! Retries: a command that fails is tried again, when the policy of its lane says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    EventEmitter, FailedAttempt, LaneConfig, LaneError, QueueManager, QueueManagerBuilder, Result, Retry, RetryBudget,
    RetryPolicy, SubmitOptions, Ticket, Transition, events, sleep,
};

use crate::support::{
    Clock, HANG, Log, Work, World, assert_idle, attempt, block_on, drain_events, executor, finish, lane_of, manager,
    on_workers, result, status, transitions,
};

/// Attempts, by the millisecond in which they begin.
type Runs = Log<(u64, u32)>;

const HOUR: Duration = Duration::from_secs(3600);

/// A lane that runs one command at a time and retries like this.
fn lane(policy: RetryPolicy) -> LaneConfig {
    LaneConfig::new(1, 1).with_retry_policy(policy)
}

/// A command that fails so many times, then gives the number of its last attempt.
fn failing(manager: &QueueManager, fails: u32, clock: &Clock, runs: &Runs) -> Ticket<u32> {
    let (clock, runs) = (clock.clone(), runs.clone());
    let command = move || {
        runs.push((clock.now(), attempt()));
        let outcome = if attempt() > fails { Ok(attempt()) } else { Err(error(attempt())) };
        async move { outcome }
    };
    lane_of(manager, "a").submit_typed(Work(command)).unwrap()
}

fn error(attempt: u32) -> LaneError {
    LaneError::CommandError(format!("failure {attempt}"))
}

fn succeed(manager: &QueueManager) -> Ticket<()> {
    manager.submit_fn("a", "succeed", || async { Ok(()) }).unwrap()
}

#[test]
fn exponential_retries_come_after_the_waits_of_the_seed_and_count_attempts_from_one() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::exponential(5).without_jitter()), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, u32::MAX, &world.clock(), &runs);
        world.advance(4000);
        assert_eq!(runs.entries(), [(0, 1), (100, 2), (300, 3), (700, 4), (1500, 5), (3100, 6)]);
        let given_up = result(&mut ticket).unwrap_err();
        assert!(matches!(&given_up, LaneError::CommandError(text) if text == "failure 6"), "{given_up:?}");
        assert_idle(&manager);
    });
}

#[test]
fn exponential_waits_grow_to_thirty_seconds() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(RetryPolicy::exponential(11).without_jitter()), 0)]);
    let runs = Runs::default();
    let mut ticket = failing(&manager, u32::MAX, &world.clock(), &runs);
    world.advance(142_000);
    let times: Vec<_> = runs.entries().iter().map(|(at, _)| *at).collect();
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    assert!(result(&mut ticket).is_err());
}

#[test]
fn fixed_retries_come_after_the_same_wait_each_time() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(3, Duration::from_millis(50)).without_jitter();
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, 2, &world.clock(), &runs);
        world.advance(1000);
        assert_eq!(runs.entries(), [(0, 1), (50, 2), (100, 3)]);
        assert_eq!(result(&mut ticket).unwrap(), 3);
    });
}

#[test]
fn nothing_is_retried_without_a_policy() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::none()), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, 1, &world.clock(), &runs);
        world.advance(1000);
        assert_eq!(runs.entries(), [(0, 1)]);
        assert!(matches!(result(&mut ticket), Err(LaneError::CommandError(_))));
    });
}

#[test]
fn a_closure_that_runs_once_is_not_retried() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(RetryPolicy::fixed(5, Duration::ZERO)), 0)]);
    let mut ticket = manager.submit_fn("a", "once", || async { Err::<(), _>(error(1)) }).unwrap();
    world.advance(10);
    let given_up = result(&mut ticket).unwrap_err();
    assert!(matches!(&given_up, LaneError::CommandError(text) if text == "failure 1"), "{given_up:?}");
}

#[test]
fn panics_and_timeouts_are_retried_too() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(5, Duration::from_millis(10)).without_jitter();
        let config = lane(policy).with_timeout(Duration::from_millis(100));
        let manager = world.manager(&[("a", config, 0)]);
        let runs = Runs::default();
        let (clock, log) = (world.clock(), runs.clone());
        let command = Work(move || {
            log.push((clock.now(), attempt()));
            async {
                match attempt() {
                    1 => panic!("of an attempt"),
                    2 => Ok(sleep(HOUR).await),
                    _ => Ok(()),
                }
            }
        });
        let mut ticket = manager.submit_typed("a", command).unwrap();
        world.advance(1000);
        assert_eq!(runs.entries(), [(0, 1), (10, 2), (120, 3)]);
        result(&mut ticket).unwrap();
        assert_idle(&manager);
    });
}

#[test]
fn a_command_in_its_backoff_holds_no_permit_and_is_pending() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
        let runs = Runs::default();
        let ticket = failing(&manager, 1, &world.clock(), &runs);
        world.run_until_idle();
        let backing_off = status(&manager, "a");
        assert_eq!((backing_off.pending, backing_off.active), (1, 0));
        result(&mut {
            let other = succeed(&manager);
            world.run_until_idle();
            other
        })
        .unwrap();
        assert!(!ticket.is_finished());
        world.jump(HOUR);
        assert!(ticket.is_finished());
        assert_idle(&manager);
    });
}

#[test]
fn a_command_in_its_backoff_costs_a_timer_and_no_poll() {
    let mut world = World::new(2, 1);
    let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
    let runs = Runs::default();
    let tickets: Vec<_> = (0..100).map(|_| failing(&manager, 1, &world.clock(), &runs)).collect();
    world.run_until_idle();
    let polls = |world: &World| world.executor().worker_stats().iter().map(|worker| worker.polls).sum::<u64>();
    let timers = |world: &World| world.executor().worker_stats().iter().map(|worker| worker.timers).sum::<u64>();
    let (polls_before, timers_before) = (polls(&world), timers(&world));
    world.jump(HOUR - Duration::from_secs(1));
    assert_eq!(polls(&world), polls_before, "something runs while commands wait");
    assert_eq!(timers(&world), timers_before, "something ticks while commands wait");
    world.jump(Duration::from_secs(2));
    assert_eq!(timers(&world) - timers_before, 100, "one timer for each command");
    assert!(tickets.iter().all(Ticket::is_finished));
}

#[test]
fn a_retry_comes_back_to_its_place_before_later_commands() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(1, Duration::from_millis(10)).without_jitter();
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let order = Log::default();
        let named = |name: &'static str, fails: u32, takes: u64| {
            let order = order.clone();
            let command = move || {
                order.push((name, attempt()));
                let fails = attempt() <= fails;
                async move {
                    sleep(Duration::from_millis(takes)).await;
                    if fails { Err(error(1)) } else { Ok(()) }
                }
            };
            lane_of(&manager, "a").submit_typed(Work(command)).unwrap()
        };
        let tickets = [named("first", 1, 0), named("second", 0, 50), named("third", 0, 1), named("fourth", 0, 1)];
        world.advance(200);
        assert_eq!(order.entries(), [("first", 1), ("second", 1), ("first", 2), ("third", 1), ("fourth", 1)]);
        assert!(tickets.iter().all(Ticket::is_finished));
    });
}

#[test]
fn drain_waits_for_a_retry_that_waits_out_its_backoff() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, 1, &world.clock(), &runs);
        world.run_until_idle();
        let early = world.simulation().block_on(manager.drain(HOUR / 2)).unwrap_err();
        assert!(matches!(early, LaneError::DrainTimeout { pending: 1, active: 0, .. }), "{early:?}");
        let report = world.simulation().block_on(manager.drain(HOUR)).unwrap();
        assert_eq!(report.outstanding, 1);
        assert_eq!(result(&mut ticket).unwrap(), 2);
    });
}

#[test]
fn drain_waits_for_retries_of_real_executors_too() {
    on_workers(|executor| {
        let policy = RetryPolicy::fixed(3, Duration::from_millis(2));
        let manager = manager(executor, &[("a", LaneConfig::new(1, 4).with_retry_policy(policy), 0)]);
        let runs = Runs::default();
        let tickets: Vec<_> = (0..100).map(|i| failing(&manager, i % 4, &Clock::default(), &runs)).collect();
        block_on(manager.shutdown());
        finish("drain with retries", manager.drain(HANG)).unwrap();
        for (i, ticket) in (0..100).zip(tickets) {
            let attempts = finish("the ticket of a drained command", ticket).unwrap().unwrap();
            assert_eq!(attempts, i % 4 + 1, "shutdown lost a retry");
        }
        assert_eq!(runs.entries().len(), 250);
        assert_idle(&manager);
    });
}

#[test]
fn shutdown_does_not_lose_retries() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, 1, &world.clock(), &runs);
        world.run_until_idle();
        world.simulation().block_on(manager.shutdown());
        world.jump(HOUR);
        assert_eq!(result(&mut ticket).unwrap(), 2);
    });
}

#[test]
fn every_retry_is_told_with_its_attempt_its_error_and_its_wait() {
    let mut world = World::new(1, 1);
    let policy = RetryPolicy::fixed(2, Duration::from_millis(70)).without_jitter();
    let manager = world.manager(&[("a", lane(policy), 0)]);
    let mut events = manager.subscribe_filtered(|event| event.key == events::QUEUE_COMMAND_RETRY);
    let ticket = failing(&manager, 2, &world.clock(), &Runs::default());
    world.advance(500);
    let told = transitions(&mut events);
    assert_eq!(told.len(), 2);
    for (number, told) in (1..).zip(&told) {
        let Transition::Retrying { command, attempt, error, delay } = told else { panic!("{told:?}") };
        assert_eq!((command.command_id, *attempt, *delay), (ticket.id(), number, Duration::from_millis(70)));
        assert!(error.contains(&format!("failure {number}")), "{error}");
    }
}

#[test]
fn a_custom_strategy_sees_the_error_the_attempt_and_the_time() {
    World::each(|mut world| {
        let seen = Log::default();
        let log = seen.clone();
        let policy = RetryPolicy::custom(move |failed: &FailedAttempt<'_>| {
            log.push((failed.attempt, failed.error.to_string(), failed.elapsed, failed.previous_delay));
            match failed.attempt {
                1 => Retry::Now,
                2 => Retry::After(Duration::from_millis(40)),
                _ => Retry::Fail,
            }
        });
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, u32::MAX, &world.clock(), &runs);
        world.advance(100);
        assert_eq!(runs.entries(), [(0, 1), (0, 2), (40, 3)]);
        assert!(result(&mut ticket).is_err());
        let seen = seen.entries();
        assert_eq!(seen.iter().map(|seen| seen.0).collect::<Vec<_>>(), [1, 2, 3]);
        for (attempt, text, elapsed, previous) in seen {
            assert!(text.contains(&format!("failure {attempt}")), "{text}");
            let (waited, at) = if attempt == 3 { (40, 40) } else { (0, 0) };
            assert_eq!(previous, Duration::from_millis(waited), "attempt {attempt}");
            assert!(elapsed >= Duration::from_millis(at) && elapsed < Duration::from_millis(at + 1), "{elapsed:?}");
        }
    });
}

#[test]
fn a_panic_of_a_custom_strategy_is_the_commands_and_nobody_elses() {
    on_workers(|executor| {
        let policy = RetryPolicy::custom(|_: &FailedAttempt<'_>| panic!("of a strategy"));
        let manager = manager(executor, &[("a", lane(policy), 0)]);
        for _ in 0..3 {
            let ticket = failing(&manager, 1, &Clock::default(), &Runs::default());
            let failed = finish("a panicking strategy", ticket).unwrap().unwrap_err();
            assert!(matches!(&failed, LaneError::Panicked(text) if text == "of a strategy"), "{failed:?}");
        }
        finish("the lane after it", succeed(&manager)).unwrap().unwrap();
        block_on(manager.drain(HANG)).unwrap();
        assert_idle(&manager);
    });
}

#[test]
fn a_failure_that_is_permanent_is_not_retried() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(RetryPolicy::fixed(5, Duration::ZERO)), 0)]);
    let runs = Log::default();
    let log = runs.clone();
    let command = Work(move || {
        log.push(attempt());
        async { Err::<(), _>(error(1).permanent()) }
    });
    let mut ticket = manager.submit_typed("a", command).unwrap();
    world.advance(100);
    assert!(result(&mut ticket).unwrap_err().is_permanent());
    assert_eq!(runs.entries(), [1]);
}

#[test]
fn a_failure_that_says_when_to_try_again_is_heeded() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(5, Duration::from_millis(10)).without_jitter();
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let (runs, clock) = (Runs::default(), world.clock());
        let log = runs.clone();
        let command = Work(move || {
            log.push((clock.now(), attempt()));
            async {
                match attempt() {
                    1 => Err(error(1).retry_after(Duration::from_millis(500))),
                    2 => Err(error(2)),
                    _ => Ok(()),
                }
            }
        });
        let mut ticket = manager.submit_typed("a", command).unwrap();
        world.advance(1000);
        assert_eq!(runs.entries(), [(0, 1), (500, 2), (510, 3)]);
        result(&mut ticket).unwrap();
    });
}

#[test]
fn what_is_discarded_leaves_no_dead_letter_and_what_fails_does() {
    let mut world = World::new(1, 1);
    let policy = RetryPolicy::custom(|failed: &FailedAttempt<'_>| match failed.error {
        LaneError::Other(_) => Retry::Discard,
        _ => Retry::Fail,
    });
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(world.executor().clone());
    let manager = block_on(builder.with_dlq(10).with_lane("a", lane(policy), 0).build()).unwrap();
    block_on(manager.start()).unwrap();
    let mut events = manager.subscribe();
    let mut discarded =
        manager.submit_typed("a", Work(|| async { Err::<(), _>(LaneError::Other("of no interest".into())) })).unwrap();
    world.run_until_idle();
    assert!(matches!(result(&mut discarded), Err(LaneError::Other(_))), "the submitter is told all the same");
    assert_eq!(block_on(manager.stats()).unwrap().dead_letter_count, 0);
    let keys: Vec<_> = drain_events(&mut events).iter().map(|event| event.key.to_string()).collect();
    assert!(keys.contains(&events::QUEUE_COMMAND_FAILED.to_owned()), "{keys:?}");
    assert!(!keys.contains(&events::QUEUE_COMMAND_DEAD_LETTERED.to_owned()), "{keys:?}");

    let _failed = failing(&manager, 1, &world.clock(), &Runs::default());
    world.run_until_idle();
    assert_eq!(block_on(manager.stats()).unwrap().dead_letter_count, 1);
}

#[test]
fn a_budget_ends_a_storm_and_completed_commands_pay_for_more() {
    World::each(|mut world| {
        let budget = RetryBudget::new(0.5, 3);
        let policy = RetryPolicy::fixed(100, Duration::ZERO).without_jitter().with_budget(budget.clone());
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let runs = Runs::default();
        let tickets: Vec<_> = (0..50).map(|_| failing(&manager, u32::MAX, &world.clock(), &runs)).collect();
        world.advance(10);
        assert!(tickets.iter().all(Ticket::is_finished), "what can not pay fails at once");
        assert_eq!(runs.entries().len(), 50 + 3, "three retries were to be had");
        assert_eq!(budget.available(), 0);

        (0..4).for_each(|_| succeed(&manager).detach());
        world.advance(10);
        assert_eq!(budget.available(), 2, "half a retry for each completed command");
        let _again = failing(&manager, u32::MAX, &world.clock(), &runs);
        world.advance(10);
        assert_eq!(runs.entries().len(), 53 + 3);
    });
}

#[test]
fn a_command_can_be_cancelled_in_its_backoff() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
        let mut events = manager.subscribe();
        let runs = Runs::default();
        let mut ticket = failing(&manager, 1, &world.clock(), &runs);
        world.run_until_idle();
        assert!(ticket.cancel());
        assert!(matches!(result(&mut ticket), Err(LaneError::Cancelled { started: true })));
        world.run_until_idle();
        assert_idle(&manager);
        world.jump(2 * HOUR);
        assert_eq!(runs.entries().len(), 1, "it ran after it was cancelled");
        let cancelled = |told: &&Transition| matches!(told, Transition::Cancelled { started: true, .. });
        assert_eq!(transitions(&mut events).iter().filter(cancelled).count(), 1);
    });
}

#[test]
fn no_retry_begins_that_the_total_time_does_not_allow() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(10, Duration::from_millis(600)).without_jitter();
        let manager = world.manager(&[("a", lane(policy).with_total_timeout(Duration::from_secs(1)), 0)]);
        let runs = Runs::default();
        let mut ticket = failing(&manager, u32::MAX, &world.clock(), &runs);
        world.advance(600);
        assert!(ticket.is_finished(), "a wait that can only end too late is not begun");
        let failed = result(&mut ticket).unwrap_err();
        assert!(matches!(&failed, LaneError::CommandError(text) if text == "failure 2"), "{failed:?}");
        world.advance(1000);
        assert_eq!(runs.entries(), [(0, 1), (600, 2)]);
        assert_idle(&manager);
    });
}

#[test]
fn a_retry_that_waits_in_line_is_given_up_when_its_total_time_is_over() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(10, Duration::from_millis(100)).without_jitter();
        let manager = world.manager(&[("a", lane(policy), 0)]);
        let (runs, clock) = (Runs::default(), world.clock());
        let log = runs.clone();
        let command = Work(move || {
            log.push((clock.now(), attempt()));
            async { Err::<(), _>(error(attempt())) }
        });
        let options = SubmitOptions::new().total_timeout(Duration::from_secs(1));
        let mut ticket = lane_of(&manager, "a").submit_typed_with(command, options).unwrap();
        let mut blocker = manager.submit_fn("a", "long", || async { Ok(sleep(2 * HOUR).await) }).unwrap();
        world.advance(999);
        assert!(!ticket.is_finished());
        world.advance(2);
        assert!(ticket.is_finished(), "its total time is over, and nobody was told");
        assert!(matches!(result(&mut ticket), Err(LaneError::Timeout(limit)) if limit == Duration::from_secs(1)));
        let after = status(&manager, "a");
        assert_eq!((after.pending, after.active), (0, 1));
        assert!(blocker.cancel());
        world.advance(10);
        assert_eq!(runs.entries(), [(0, 1)]);
        assert_idle(&manager);
    });
}

/// Ten thousand commands fail in the same millisecond: their retries begin all over the window.
#[test]
fn retries_of_commands_that_failed_together_do_not_come_back_together() {
    const COMMANDS: usize = 10_000;
    let storm = |policy: RetryPolicy, from: u64, to: u64| {
        let mut world = World::new(2, 7);
        let manager = world.manager(&[("a", LaneConfig::new(1, COMMANDS).with_retry_policy(policy), 0)]);
        let starts: Arc<Vec<AtomicUsize>> = Arc::new((0..1000).map(|_| AtomicUsize::new(0)).collect());
        for _ in 0..COMMANDS {
            let (starts, clock) = (Arc::clone(&starts), world.clock());
            let command = Work(move || {
                let again = attempt() > 1;
                if again {
                    starts[clock.now() as usize].fetch_add(1, Ordering::Relaxed);
                }
                async move { if again { Ok(()) } else { Err(error(1)) } }
            });
            manager.submit_typed("a", command).unwrap().detach();
        }
        world.advance(to + 1);
        let starts: Vec<_> = starts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(starts.iter().sum::<usize>(), COMMANDS, "retries outside of {from} to {to} ms");
        assert_eq!(starts[..from as usize].iter().sum::<usize>(), 0, "retries before {from} ms");
        let fair = COMMANDS / 10;
        for (tenth, counts) in starts[from as usize..to as usize].chunks((to - from) as usize / 10).enumerate() {
            let count: usize = counts.iter().sum();
            assert!((fair / 2..fair * 2).contains(&count), "{count} of {COMMANDS} retries in tenth {tenth}");
        }
        assert_idle(&manager);
    };
    storm(RetryPolicy::exponential(3), 0, 100);
    storm(RetryPolicy::fixed(3, Duration::from_millis(200)), 200, 300);
}

#[test]
fn changed_retries_count_for_failures_that_follow() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(RetryPolicy::fixed(1, HOUR).without_jitter()), 0)]);
    let runs = Runs::default();
    let mut ticket = failing(&manager, u32::MAX, &world.clock(), &runs);
    world.run_until_idle();
    manager.update_lane("a", |config| config.retry_policy = RetryPolicy::none()).unwrap();
    world.jump(HOUR);
    let failed: Result<u32> = result(&mut ticket);
    assert!(matches!(&failed, Err(LaneError::CommandError(text)) if text == "failure 2"), "{failed:?}");
    assert_eq!(runs.entries().len(), 2);
}

#[test]
fn no_command_is_retried_more_often_than_its_policy_says_whatever_the_workers_do() {
    let executor = executor(4);
    let policy = RetryPolicy::fixed(2, Duration::from_micros(50));
    let manager = manager(&executor, &[("a", LaneConfig::new(1, 3).with_retry_policy(policy), 0)]);
    let runs = Runs::default();
    let tickets: Vec<_> = (0..300).map(|_| failing(&manager, u32::MAX, &Clock::default(), &runs)).collect();
    for ticket in tickets {
        let failed = finish("a command that fails for good", ticket).unwrap().unwrap_err();
        assert!(matches!(&failed, LaneError::CommandError(text) if text == "failure 3"), "{failed:?}");
    }
    assert_eq!(runs.entries().len(), 900);
}
