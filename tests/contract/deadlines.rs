//! Deadlines: how long a command may wait, run, and take as a whole.

use std::time::{Duration, Instant, SystemTime};

use corelane::{
    CommandContext, EventEmitter, LaneConfig, LaneError, QueueManager, QueueManagerBuilder, RetryPolicy, Stop,
    SubmitOptions, Ticket, Transition, sleep,
};

use crate::support::{Log, Work, World, assert_idle, attempt, block_on, lane_of, result, status, transitions};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn one_at_a_time() -> LaneConfig {
    LaneConfig::new(1, 1)
}

/// A command that takes so long.
fn takes(manager: &QueueManager, lane: &str, options: SubmitOptions, time: Duration) -> Ticket<()> {
    lane_of(manager, lane).submit_fn_with("takes", options, move || async move { Ok(sleep(time).await) }).unwrap()
}

/// A command that must not run.
fn never_runs(manager: &QueueManager, lane: &str, options: SubmitOptions) -> Ticket<()> {
    let command = || async { panic!("it ran") };
    lane_of(manager, lane).submit_fn_with("never", options, command).unwrap()
}

#[test]
fn a_command_that_waited_too_long_never_starts_and_its_ticket_says_so_then() {
    World::each(|mut world| {
        for by_lane in [false, true] {
            let config = if by_lane { one_at_a_time().with_queue_timeout(SECOND) } else { one_at_a_time() };
            let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(world.executor().clone());
            let manager = block_on(builder.with_dlq(10).with_lane("a", config, 0).build()).unwrap();
            block_on(manager.start()).unwrap();
            let mut events = manager.subscribe();
            let blocker = takes(&manager, "a", SubmitOptions::new(), 5 * SECOND);
            let options = if by_lane { SubmitOptions::new() } else { SubmitOptions::new().queue_timeout(SECOND) };
            let mut late = never_runs(&manager, "a", options);
            world.advance(999);
            assert!(!late.is_finished());
            assert_eq!(status(&manager, "a").pending, 1);
            world.advance(1);
            let told = result(&mut late).unwrap_err();
            assert!(matches!(told, LaneError::Expired { waited } if waited == SECOND), "{told:?}");
            assert!(!late.has_started());
            let after = status(&manager, "a");
            assert_eq!((after.pending, after.active), (0, 1), "it took a permit, or waits on");
            let transitions = transitions(&mut events);
            let expired = |told: &&Transition| matches!(told, Transition::Expired { command, waited } if command.command_id == late.id() && *waited == SECOND);
            assert_eq!(transitions.iter().filter(expired).count(), 1, "{transitions:?}");
            let letters = manager.dlq().unwrap().snapshot();
            assert_eq!((letters.len(), letters[0].attempts), (1, 0));

            let next = takes(&manager, "a", SubmitOptions::new(), Duration::ZERO);
            world.advance(5000);
            assert!(blocker.is_finished() && next.is_finished());
            assert_idle(&manager);
        }
    });
}

#[test]
fn a_command_that_has_started_does_not_expire_while_it_waits_for_its_retry() {
    let mut world = World::new(1, 1);
    let policy = RetryPolicy::fixed(1, HOUR).without_jitter();
    let manager = world.manager(&[("a", one_at_a_time().with_retry_policy(policy).with_queue_timeout(SECOND), 0)]);
    let command =
        Work(|| async { if attempt() == 1 { Err(LaneError::CommandError("once".into())) } else { Ok(attempt()) } });
    let mut ticket = manager.submit_typed("a", command).unwrap();
    world.jump(2 * HOUR);
    assert_eq!(result(&mut ticket).unwrap(), 2);
}

#[test]
fn the_time_in_the_queue_begins_at_the_end_of_a_delay() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", one_at_a_time(), 0)]);
        let _blocker = takes(&manager, "a", SubmitOptions::new(), HOUR);
        let mut late = never_runs(&manager, "a", SubmitOptions::new().delay(2 * SECOND).queue_timeout(SECOND));
        world.advance(2990);
        assert!(!late.is_finished());
        world.advance(15);
        assert!(matches!(result(&mut late), Err(LaneError::Expired { waited }) if waited == SECOND));
        assert_eq!(status(&manager, "a").pending, 0);
    });
}

#[test]
fn a_command_behind_others_of_its_key_expires_too() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 4).with_per_key(1), 0)]);
        let of_key = || SubmitOptions::new().key("k");
        let first = takes(&manager, "a", of_key(), 2 * SECOND);
        let mut late = never_runs(&manager, "a", of_key().queue_timeout(SECOND));
        let third = takes(&manager, "a", of_key(), Duration::ZERO);
        world.advance(1001);
        assert!(matches!(result(&mut late), Err(LaneError::Expired { .. })));
        assert_eq!(status(&manager, "a").pending, 1);
        world.advance(1001);
        assert!(first.is_finished() && third.is_finished());
        assert_idle(&manager);
    });
}

#[test]
fn an_attempt_is_given_up_after_the_time_of_its_command_or_else_of_its_lane() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 4).with_timeout(SECOND), 0)]);
        let mut usual = takes(&manager, "a", SubmitOptions::new(), HOUR);
        let mut short = takes(&manager, "a", SubmitOptions::new().timeout(SECOND / 10), HOUR);
        let mut patient = takes(&manager, "a", SubmitOptions::new().timeout(HOUR), 3 * SECOND);
        world.advance(99);
        assert!(!short.is_finished());
        world.advance(1);
        assert!(matches!(result(&mut short), Err(LaneError::Timeout(limit)) if limit == SECOND / 10));
        world.advance(890);
        assert!(!usual.is_finished());
        world.advance(10);
        assert!(matches!(result(&mut usual), Err(LaneError::Timeout(limit)) if limit == SECOND));
        world.advance(2000);
        result(&mut patient).unwrap();
        assert_idle(&manager);
    });
}

#[test]
fn the_total_time_includes_waiting_and_all_attempts() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(100, Duration::from_millis(50)).without_jitter();
        let config = one_at_a_time().with_retry_policy(policy).with_timeout(Duration::from_millis(100));
        let manager = world.manager(&[("a", config.with_total_timeout(Duration::from_millis(500)), 0)]);
        let starts = Log::default();
        let (log, clock) = (starts.clone(), world.clock());
        let command = Work(move || {
            log.push(clock.now());
            async { Ok(sleep(HOUR).await) }
        });
        let mut ticket = manager.submit_typed("a", command).unwrap();
        world.advance(499);
        assert!(!ticket.is_finished());
        world.advance(1);
        assert!(matches!(result(&mut ticket), Err(LaneError::Timeout(_))));
        assert_eq!(starts.entries(), [0, 150, 300, 450]);
        assert_idle(&manager);
        world.advance(1000);
        assert_eq!(starts.entries().len(), 4);
    });
}

#[test]
fn a_command_that_never_started_in_its_total_time_expires() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", one_at_a_time(), 0)]);
        let _blocker = takes(&manager, "a", SubmitOptions::new(), HOUR);
        let mut late = never_runs(&manager, "a", SubmitOptions::new().total_timeout(SECOND));
        world.advance(1001);
        assert!(matches!(result(&mut late), Err(LaneError::Expired { waited }) if waited == SECOND));
    });
}

#[test]
fn children_have_no_more_time_than_their_parent_has_left() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", one_at_a_time(), 0), ("b", LaneConfig::new(1, 4), 1)]);
        let (lane, lefts) = (lane_of(&manager, "b"), Log::default());
        let log = lefts.clone();
        let parent = move || async move {
            log.push(CommandContext::current().unwrap().time_left);
            sleep(SECOND / 2).await;
            let child = lane.submit_fn("child", move || async move {
                log.push(CommandContext::current().unwrap().time_left);
                Ok(sleep(HOUR).await)
            });
            child?.await.unwrap()
        };
        let options = SubmitOptions::new().total_timeout(SECOND);
        let mut ticket = lane_of(&manager, "a").submit_fn_with("parent", options, parent).unwrap();
        world.advance(990);
        assert_eq!(status(&manager, "b").active, 1);
        world.advance(15);
        assert!(matches!(result(&mut ticket), Err(LaneError::Timeout(_))));
        assert_idle(&manager);
        let lefts = lefts.entries();
        assert_eq!(lefts[0], Some(SECOND));
        let left = lefts[1].unwrap();
        assert!(left <= SECOND / 2 && left > SECOND / 2 - Duration::from_millis(1), "{left:?}");
    });
}

#[test]
fn a_command_without_a_limit_has_no_time_left_to_tell() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", one_at_a_time(), 0)]);
    let command = || async { Ok(CommandContext::current().unwrap().time_left) };
    let mut ticket = manager.submit_fn("a", "ask", command).unwrap();
    world.run_until_idle();
    assert_eq!(result(&mut ticket).unwrap(), None);
    assert_eq!(CommandContext::current(), None);
}

#[test]
fn a_drain_timeout_cancels_its_commands_and_leaves_the_others_their_time() {
    World::each(|mut world| {
        let short = LaneConfig::new(1, 4).with_drain_timeout(SECOND);
        let manager = world.manager(&[("short", short, 0), ("long", LaneConfig::new(1, 4), 0)]);
        let mut cut = takes(&manager, "short", SubmitOptions::new(), 5 * SECOND);
        let mut own = takes(&manager, "short", SubmitOptions::new().drain_timeout(HOUR), 5 * SECOND);
        let mut whole = takes(&manager, "long", SubmitOptions::new(), 5 * SECOND);
        let mut option = takes(&manager, "long", SubmitOptions::new().drain_timeout(3 * SECOND), 5 * SECOND);
        world.advance(3000);
        assert!(!cut.is_finished(), "a drain timeout counts only once the queue stops");
        let report = world.simulation().block_on(manager.stop(Stop::drain(HOUR)));
        assert_eq!((report.settled, report.cancelled), (3, 1), "{report:?}");
        assert!(report.waited > SECOND && report.waited < 3 * SECOND, "{report:?}");
        assert!(matches!(result(&mut cut), Err(LaneError::Cancelled { started: true })));
        for ticket in [&mut own, &mut whole, &mut option] {
            result(ticket).unwrap();
        }
    });
}

#[test]
fn a_delayed_command_starts_when_its_time_has_come_and_waits_without_a_permit() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", one_at_a_time(), 0)]);
        let delayed = takes(&manager, "a", SubmitOptions::new().delay(SECOND), Duration::ZERO);
        let other = takes(&manager, "a", SubmitOptions::new(), Duration::ZERO);
        world.advance(999);
        assert!(other.is_finished());
        assert!(!delayed.has_started());
        let waiting = status(&manager, "a");
        assert_eq!((waiting.pending, waiting.active), (1, 0));
        let drained = world.simulation().block_on(manager.drain(HOUR)).unwrap();
        assert_eq!(drained.outstanding, 1, "drain does not wait for it");
        assert!(delayed.is_finished());
        assert_idle(&manager);
    });
}

#[test]
fn a_point_in_time_is_a_delay_and_one_in_the_past_is_none() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", one_at_a_time(), 0)]);
    let past = takes(&manager, "a", SubmitOptions::new().start_at(SystemTime::now() - HOUR), Duration::ZERO);
    let future = takes(&manager, "a", SubmitOptions::new().start_at(SystemTime::now() + HOUR), Duration::ZERO);
    world.advance(1);
    assert!(past.is_finished());
    world.jump(HOUR / 2);
    assert!(!future.has_started());
    world.jump(HOUR / 2);
    assert!(future.is_finished());
}

#[test]
fn a_deadline_that_has_passed_lets_nothing_start() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", one_at_a_time(), 0)]);
        let past = Instant::now().checked_sub(Duration::from_millis(1)).unwrap();
        let options = [SubmitOptions::new().deadline(past), SubmitOptions::new().queue_timeout(Duration::ZERO)];
        for options in options {
            let mut ticket = never_runs(&manager, "a", options);
            world.advance(1);
            assert!(matches!(result(&mut ticket), Err(LaneError::Expired { .. })));
            assert_idle(&manager);
        }
    });
}

#[test]
fn a_duration_beyond_all_time_means_never() {
    World::each(|mut world| {
        let max = Duration::MAX;
        let config = one_at_a_time()
            .with_timeout(max)
            .with_queue_timeout(max)
            .with_total_timeout(max)
            .with_drain_timeout(max)
            .with_retry_policy(RetryPolicy::fixed(1, max));
        let manager = world.manager(&[("a", config, 0)]);
        let all = || {
            let options = SubmitOptions::new().timeout(max).queue_timeout(max).total_timeout(max);
            options.drain_timeout(max).room_timeout(max)
        };
        let mut first = takes(&manager, "a", all(), 50 * YEAR);
        let mut second = takes(&manager, "a", all(), SECOND);
        let mut never = never_runs(&manager, "a", all().delay(max));
        let failed = manager.submit_typed("a", Work(|| async { Err::<(), _>(LaneError::Other("once".into())) }));
        let mut failed = failed.unwrap();
        world.jump(49 * YEAR);
        assert!(!first.is_finished() && !second.has_started());
        world.jump(2 * YEAR);
        result(&mut first).unwrap();
        result(&mut second).unwrap();
        assert!(matches!(result(&mut failed), Err(LaneError::Other(_))), "a retry that never comes is none");
        assert_eq!(status(&manager, "a").pending, 1);
        world.jump(100 * YEAR);
        assert!(!never.is_finished());
        assert!(never.cancel());
        world.advance(1);
        assert_idle(&manager);
    });
}

#[test]
fn a_lanes_time_of_zero_is_refused_with_all_its_problems() {
    let zero = Duration::ZERO;
    let config = one_at_a_time().with_timeout(zero).with_queue_timeout(zero).with_total_timeout(zero);
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_lane("a", config, 0);
    let Err(LaneError::ConfigError(errors)) = block_on(builder.build()) else { panic!("it was accepted") };
    let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
    let expected = ["default_timeout", "queue_timeout", "total_timeout"].map(|name| format!("lanes[\"a\"].{name}"));
    assert_eq!(paths, expected);
}

#[test]
fn a_commands_timeout_of_zero_is_refused_and_the_command_comes_back() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", one_at_a_time(), 0)]);
    let command = Work(|| async { Ok(attempt()) });
    let options = SubmitOptions::new().timeout(Duration::ZERO);
    let rejected = lane_of(&manager, "a").submit_typed_with(command, options).unwrap_err();
    assert!(matches!(&rejected.error, LaneError::QueueError(text) if text.contains("zero")), "{rejected}");
    assert_idle(&manager);
    let mut ticket = manager.submit_typed("a", rejected.command).unwrap();
    world.run_until_idle();
    assert_eq!(result(&mut ticket).unwrap(), 1);
}

#[test]
fn deadlines_do_not_change_what_runs_before_what() {
    World::each(|mut world| {
        let lanes = [("high", LaneConfig::new(1, 100), 0), ("low", LaneConfig::new(1, 100), 5)];
        let manager = world.manager(&lanes);
        let order = Log::default();
        for i in 0..50u64 {
            for lane in ["low", "high"] {
                let order = order.clone();
                let options = SubmitOptions::new()
                    .timeout(Duration::from_millis(1 + i))
                    .queue_timeout(Duration::from_millis(100 - i))
                    .total_timeout(Duration::from_millis(200 - i));
                let command = move || async move { Ok(order.push(lane)) };
                let lane = lane_of(&manager, lane);
                lane.submit_fn_with("ordered", options, command).unwrap().detach();
            }
        }
        world.run_until_idle();
        let order = order.entries();
        assert_eq!(order.len(), 100);
        assert!(order.is_sorted(), "{order:?}");
    });
}
