//! Why a command waits: the cause now, and how the wait divides.

use std::time::Duration;

use corelane::{
    EventEmitter, Explanation, Key, LaneConfig, LaneError, Overflow, QueueManager, QueueManagerBuilder,
    RateLimitConfig, RetryPolicy, Standing, SubmitOptions, Ticket, WaitCause, sleep,
};

use crate::support::{Work, World, assert_idle, lane_of};

fn lane(max: usize) -> LaneConfig {
    LaneConfig::new(1, max).with_explain()
}

/// Submits a command that runs for so many milliseconds.
fn runs_for(manager: &QueueManager, lane: &str, milliseconds: u64, options: SubmitOptions) -> Ticket<()> {
    let command = move || async move {
        sleep(Duration::from_millis(milliseconds)).await;
        Ok(())
    };
    lane_of(manager, lane).submit_fn_with("work", options, command).unwrap()
}

fn none() -> SubmitOptions {
    SubmitOptions::new()
}

fn keyed(key: &str) -> SubmitOptions {
    SubmitOptions::new().key(Key::from(key))
}

/// The explanation of a command, whose parts are these, in milliseconds, but for what timers are late; they add up.
#[track_caller]
fn explained<T>(manager: &QueueManager, ticket: &Ticket<T>, parts: &[(WaitCause, u64)]) -> Explanation {
    let explanation = manager.explain(ticket.id()).unwrap();
    let sum: Duration = explanation.parts.iter().map(|(_, time)| *time).sum();
    assert_eq!(sum, explanation.waited, "{explanation}");
    let rounded: Vec<_> = explanation
        .parts
        .iter()
        .map(|(cause, time)| (*cause, (time.as_micros() as u64 + 500) / 1000))
        .filter(|(_, time)| *time > 0)
        .collect();
    assert_eq!(rounded, parts, "{explanation}");
    explanation
}

#[track_caller]
fn waits_for(explanation: &Explanation) -> WaitCause {
    let Standing::Waiting { cause, .. } = explanation.standing else { panic!("{explanation}") };
    cause
}

#[test]
fn a_full_lane_is_named_with_who_fills_it_and_how_many_come_first() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1), 0)]);
        let first = runs_for(&manager, "a", 100, none());
        let second = runs_for(&manager, "a", 100, none());
        let third = runs_for(&manager, "a", 100, none());
        world.advance(40);
        let running = explained(&manager, &first, &[]);
        assert!(matches!(running.standing, Standing::Running { attempt: 1, .. }), "{running}");
        let waiting = explained(&manager, &third, &[(WaitCause::LaneFull, 40)]);
        let Standing::Waiting { cause: WaitCause::LaneFull, ahead: 1, holders, .. } = &waiting.standing else {
            panic!("{waiting}")
        };
        assert_eq!(*holders, [first.id()]);
        let line = waiting.to_string();
        assert!(
            line.contains("(work) of lane a waits: lane full, behind 1, held by ") && !line.contains('\n'),
            "{line}"
        );
        world.advance(210 - 40);
        explained(&manager, &third, &[(WaitCause::LaneFull, 200)]);
        assert_eq!(manager.explain(second.id()), None, "it has settled");
        world.advance(100);
        assert_eq!(manager.explain(third.id()), None);
        assert_idle(&manager);
    });
}

#[test]
fn time_in_a_paused_lane_counts_for_the_pause() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1), 0)]);
        let first = runs_for(&manager, "a", 100, none());
        let second = runs_for(&manager, "a", 50, none());
        world.advance(30);
        manager.pause("a").unwrap();
        world.advance(200);
        let paused = explained(&manager, &second, &[(WaitCause::Paused, 200), (WaitCause::LaneFull, 30)]);
        assert_eq!(waits_for(&paused), WaitCause::Paused);
        manager.resume("a").unwrap();
        world.advance(10);
        explained(&manager, &second, &[(WaitCause::Paused, 200), (WaitCause::LaneFull, 30)]);
        world.advance(50);
        assert_eq!((manager.explain(first.id()), manager.explain(second.id())), (None, None));
    });
}

#[test]
fn a_queue_that_was_not_started_is_the_cause() {
    let mut world = World::new(1, 1);
    let builder = QueueManagerBuilder::new(EventEmitter::new(16)).with_executor(world.executor().clone());
    let builder = builder.with_lane("a", lane(1), 0);
    let manager = world.simulation().block_on(builder.build()).unwrap();
    let ticket = runs_for(&manager, "a", 10, none());
    world.advance(20);
    let waiting = explained(&manager, &ticket, &[(WaitCause::NotStarted, 20)]);
    assert_eq!(waits_for(&waiting), WaitCause::NotStarted);
    world.simulation().block_on(manager.start()).unwrap();
    world.advance(5);
    explained(&manager, &ticket, &[(WaitCause::NotStarted, 20)]);
    world.advance(10);
    assert_eq!(manager.explain(ticket.id()), None);
}

#[test]
fn a_rate_limit_is_named_with_the_time_that_is_left() {
    World::each(|mut world| {
        let limit = RateLimitConfig::new(1, Duration::from_secs(1)).sliding_window();
        let manager = world.manager(&[("a", lane(9).with_rate_limit(limit), 0)]);
        let _first = runs_for(&manager, "a", 3000, none());
        let second = runs_for(&manager, "a", 3000, none());
        world.advance(400);
        let waiting = explained(&manager, &second, &[(WaitCause::Rate, 400)]);
        let Standing::Waiting { cause: WaitCause::Rate, left: Some(left), .. } = waiting.standing else {
            panic!("{waiting}")
        };
        assert!((590..=601).contains(&left.as_millis()), "{left:?}");
        world.advance(1000);
        explained(&manager, &second, &[(WaitCause::Rate, 1000)]);
        world.advance(4000);
        assert_idle(&manager);
    });
}

#[test]
fn a_key_at_its_limit_is_the_cause_and_its_commands_are_named_even_in_a_paused_lane() {
    World::each(|mut world| {
        let config = LaneConfig { per_key: Some(1), ..lane(2) };
        let manager = world.manager(&[("a", config, 0)]);
        let mine = runs_for(&manager, "a", 100, keyed("k"));
        let _other = runs_for(&manager, "a", 300, keyed("other"));
        let ticket = runs_for(&manager, "a", 10, keyed("k"));
        world.advance(50);
        manager.pause("a").unwrap();
        world.advance(20);
        let waiting = explained(&manager, &ticket, &[(WaitCause::Key, 70)]);
        let Standing::Waiting { cause: WaitCause::Key, holders, .. } = &waiting.standing else { panic!("{waiting}") };
        assert_eq!(*holders, [mine.id()]);
        world.advance(80);
        let waiting = explained(&manager, &ticket, &[(WaitCause::Paused, 50), (WaitCause::Key, 100)]);
        assert_eq!(waits_for(&waiting), WaitCause::Paused);
        manager.resume("a").unwrap();
        world.advance(200);
        assert_eq!(manager.explain(ticket.id()), None);
        assert_idle(&manager);
    });
}

#[test]
fn a_delay_and_a_backoff_count_for_themselves_and_attempts_do_not_count() {
    World::each(|mut world| {
        let config = lane(1).with_retry_policy(RetryPolicy::fixed(1, Duration::from_millis(300)).without_jitter());
        let manager = world.manager(&[("a", config, 0)]);
        let options = none().delay(Duration::from_millis(100));
        let fails = Work(move || async move {
            sleep(Duration::from_millis(50)).await;
            Err::<(), _>(LaneError::CommandError("no".into()))
        });
        let ticket = lane_of(&manager, "a").submit_typed_with(fails, options).unwrap();
        world.advance(60);
        let delayed = explained(&manager, &ticket, &[(WaitCause::Delay, 60)]);
        assert_eq!(waits_for(&delayed), WaitCause::Delay);
        world.advance(140);
        let waiting = explained(&manager, &ticket, &[(WaitCause::Delay, 100), (WaitCause::Backoff, 50)]);
        let Standing::Waiting { cause: WaitCause::Backoff, left: Some(left), .. } = waiting.standing else {
            panic!("{waiting}")
        };
        assert!((249..=251).contains(&left.as_millis()), "{left:?}");
        world.advance(270);
        let running = explained(&manager, &ticket, &[(WaitCause::Delay, 100), (WaitCause::Backoff, 300)]);
        assert!(matches!(running.standing, Standing::Running { attempt: 2, .. }), "{running}");
        world.advance(100);
        assert_eq!(manager.explain(ticket.id()), None);
        assert_idle(&manager);
    });
}

#[test]
fn a_limit_that_lanes_share_is_the_cause_where_the_lane_itself_has_room() {
    World::each(|mut world| {
        let builder = QueueManagerBuilder::new(EventEmitter::new(16))
            .with_executor(world.executor().clone())
            .with_max_in_flight(1);
        let config = |max| LaneConfig { min_concurrency: 0, ..lane(max) };
        let builder = builder.with_lane("a", config(4), 0).with_lane("b", config(4), 1);
        let manager = world.simulation().block_on(builder.build()).unwrap();
        world.simulation().block_on(manager.start()).unwrap();
        let _first = runs_for(&manager, "a", 100, none());
        let second = runs_for(&manager, "b", 100, none());
        world.advance(60);
        let waiting = explained(&manager, &second, &[(WaitCause::SharedLimit, 60)]);
        assert_eq!(waits_for(&waiting), WaitCause::SharedLimit);
        world.advance(80);
        explained(&manager, &second, &[(WaitCause::SharedLimit, 100)]);
        world.advance(100);
        assert_idle(&manager);
    });
}

#[test]
fn a_command_that_may_run_and_has_no_worker_waits_for_workers() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(4), 0)]);
    let ticket = runs_for(&manager, "a", 10, none());
    let waiting = explained(&manager, &ticket, &[]);
    assert_eq!(waits_for(&waiting), WaitCause::Workers);
    world.advance(20);
    assert_eq!(manager.explain(ticket.id()), None);
}

#[test]
fn a_cancelled_command_and_one_of_a_lane_that_does_not_explain_are_not_known() {
    let mut world = World::new(2, 3);
    let manager = world.manager(&[("a", lane(1), 0), ("b", LaneConfig::new(1, 1), 1)]);
    let _first = runs_for(&manager, "a", 100, none());
    let mut second = runs_for(&manager, "a", 100, none());
    let elsewhere = runs_for(&manager, "b", 100, none());
    world.advance(10);
    assert_eq!(manager.explain(elsewhere.id()), None);
    assert!(manager.explain(second.id()).is_some());
    second.cancel();
    world.run_until_idle();
    assert_eq!(manager.explain(second.id()), None);
}

#[test]
fn commands_that_end_without_a_start_are_not_known_any_more() {
    World::each(|mut world| {
        let config = lane(1).with_capacity(2).with_overflow(Overflow::DropOldest);
        let manager = world.manager(&[("a", config, 0)]);
        let runs = runs_for(&manager, "a", 1_000, none());
        let shed = runs_for(&manager, "a", 1, none());
        let mut cancelled = runs_for(&manager, "a", 1, keyed("k"));
        let expires = runs_for(&manager, "a", 1, none().queue_timeout(Duration::from_millis(10)));
        assert_eq!(manager.explain(shed.id()), None);
        assert!(manager.explain(cancelled.id()).is_some() && manager.explain(expires.id()).is_some());
        assert!(cancelled.cancel());
        world.advance(20);
        for ended in [cancelled.id(), expires.id()] {
            assert_eq!(manager.explain(ended), None);
        }
        assert!(manager.explain(runs.id()).is_some());
    });
}
