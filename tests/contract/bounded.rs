//! Bounds: how much may wait in a lane, and what happens to one more.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    Command, JsonCommand, Lane, LaneConfig, LaneError, Overflow, QueueManager, Rejected, Result, RetryPolicy,
    SubmitOptions, Task, Ticket, TypedCommand, sleep, yield_now,
};
use futures::FutureExt;
use serde_json::{Value, json};

use crate::support::{
    Do, HANG, Log, World, assert_idle, block_on, finish, lane_of, manager, on_workers, result, status,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A lane that runs one command at a time and lets so many wait.
fn lane(capacity: usize, overflow: Overflow) -> LaneConfig {
    LaneConfig::new(1, 1).with_capacity(capacity).with_overflow(overflow)
}

/// A command that writes its name.
fn named(log: &Log<u64>, name: u64) -> Box<dyn Command> {
    let log = log.clone();
    Box::new(Do(move || {
        log.push(name);
        async { Ok(Value::Null) }
    }))
}

/// Holds a lane's only permit for an hour.
fn block(world: &mut World, manager: &QueueManager) -> Ticket<()> {
    let blocker = manager.submit_fn("a", "blocks", || async { Ok(sleep(HOUR).await) }).unwrap();
    world.run_until_idle();
    blocker
}

/// Submits from a task of the simulation, since the submission may have to wait.
fn submit_later(
    world: &mut World,
    manager: &QueueManager,
    command: Box<dyn Command>,
    options: SubmitOptions,
) -> Task<Result<Ticket<Value>, LaneError>> {
    let queue = manager.queue();
    let task = world.executor().spawn(0, async move { queue.submit_with("a", command, options).await });
    world.run_until_idle();
    task
}

fn is_full(error: &LaneError) -> bool {
    matches!(error, LaneError::LaneFull { lane_id, .. } if lane_id == "a")
}

#[test]
fn a_full_lane_hands_the_same_command_back() {
    struct Mine(Arc<()>);
    impl TypedCommand for Mine {
        type Output = usize;
        async fn execute(&self) -> Result<usize> {
            Ok(Arc::strong_count(&self.0))
        }
        fn command_type(&self) -> &str {
            "mine"
        }
    }
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(2, Overflow::Reject), 0)]);
        let mut blocker = block(&mut world, &manager);
        let log = Log::default();
        let waiting: Vec<_> = (0..2).map(|name| manager.try_submit("a", named(&log, name)).unwrap()).collect();
        let mine = Arc::new(());
        let Rejected { error, command, .. } = manager.submit_typed("a", Mine(Arc::clone(&mine))).unwrap_err();
        assert!(is_full(&error), "{error}");
        assert!(error.to_string().contains('2'), "the limit is named: {error}");
        assert!(Arc::ptr_eq(&command.0, &mine), "another command came back");
        assert!(is_full(&block_on(manager.submit("a", named(&log, 9))).unwrap_err()));
        assert_eq!(status(&manager, "a").pending, 2);

        assert!(blocker.cancel());
        world.run_until_idle();
        assert!(waiting.iter().all(Ticket::is_finished));
        let mut accepted = manager.submit_typed("a", command).unwrap();
        world.run_until_idle();
        assert_eq!(result(&mut accepted).unwrap(), 2, "nothing else holds it");
        assert_eq!(log.entries(), [0, 1]);
        assert_idle(&manager);
    });
}

#[test]
fn a_free_permit_is_not_a_place_in_line() {
    World::each(|mut world| {
        let config = LaneConfig::new(1, 3).with_capacity(1);
        let manager = world.manager(&[("a", config, 0)]);
        let hour = || manager.submit_fn("a", "hour", || async { Ok(sleep(HOUR).await) });
        let running: Vec<_> = (0..3).map(|_| hour().unwrap()).collect();
        let _waits = hour().unwrap();
        assert!(is_full(&hour().unwrap_err()));
        world.run_until_idle();
        assert!(running.iter().all(Ticket::has_started));
        assert!(is_full(&hour().unwrap_err()));
    });
}

#[test]
fn waiting_commands_hold_no_more_memory_than_allowed() {
    World::each(|mut world| {
        let config = LaneConfig::new(1, 1).with_max_pending_bytes(10_000);
        let manager = world.manager(&[("a", config, 0)]);
        let mut blocker = block(&mut world, &manager);
        let lane = lane_of(&manager, "a");
        let big = |bytes: usize| {
            let command: Box<dyn Command> = Box::new(JsonCommand::new("big", json!(bytes)));
            lane.try_submit_with(command, SubmitOptions::new().bytes(bytes))
        };
        let mut accepted = Vec::new();
        while let Ok(ticket) = big(1000) {
            accepted.push(ticket);
            assert!(accepted.len() < 11);
        }
        assert!((7..=9).contains(&accepted.len()), "{}: a command has a size of its own as well", accepted.len());
        let Rejected { error, .. } = big(1000).unwrap_err();
        assert!(matches!(&error, LaneError::LaneFull { limit, .. } if limit.contains("10000 bytes")), "{error}");
        assert!(accepted.pop().unwrap().cancel());
        accepted.push(big(1000).expect("a cancelled command holds no memory"));

        assert!(blocker.cancel());
        world.run_until_idle();
        assert!(accepted.iter().all(Ticket::is_finished));
        let _blocker = block(&mut world, &manager);
        let huge = big(1_000_000).expect("one that is larger than the limit may wait alone");
        assert!(big(1).is_err(), "and nothing with it");
        drop(huge);
    });
}

#[test]
fn a_submission_waits_for_room_and_is_then_accepted() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1, Overflow::Wait), 0)]);
        let mut blocker = block(&mut world, &manager);
        let log = Log::default();
        let _waits = manager.try_submit("a", named(&log, 0)).unwrap();
        let Rejected { error, .. } = manager.try_submit("a", named(&log, 99)).unwrap_err();
        assert!(is_full(&error), "who can not wait gets it back");
        let tasks: Vec<_> =
            (1..=5).map(|name| submit_later(&mut world, &manager, named(&log, name), SubmitOptions::new())).collect();
        world.jump(HOUR / 2);
        assert!(tasks.iter().all(|task| !task.is_finished()));
        assert_eq!(status(&manager, "a").pending, 1);
        assert!(blocker.cancel());
        for task in tasks {
            let ticket = world.simulation().block_on(task).unwrap().unwrap();
            world.simulation().block_on(ticket).unwrap().unwrap();
        }
        assert_eq!(log.entries(), [0, 1, 2, 3, 4, 5], "first come, first served");
        assert_idle(&manager);
    });
}

#[test]
fn a_submission_waits_for_room_as_long_as_it_says() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1, Overflow::Wait), 0)]);
        let _blocker = block(&mut world, &manager);
        let log = Log::default();
        let _waits = manager.try_submit("a", named(&log, 0)).unwrap();
        let options = SubmitOptions::new().room_timeout(SECOND);
        let task = submit_later(&mut world, &manager, named(&log, 1), options);
        world.advance(995);
        assert!(!task.is_finished());
        world.advance(10);
        assert!(task.is_finished());
        let refused = world.simulation().block_on(task).unwrap().unwrap_err();
        assert!(is_full(&refused), "{refused}");
        assert_eq!(status(&manager, "a").pending, 1);
    });
}

#[test]
fn a_submission_that_waits_is_refused_when_the_queue_shuts_down() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1, Overflow::Wait), 0)]);
        let _blocker = block(&mut world, &manager);
        let log = Log::default();
        let _waits = manager.try_submit("a", named(&log, 0)).unwrap();
        let tasks: Vec<_> =
            (0..3).map(|_| submit_later(&mut world, &manager, named(&log, 1), SubmitOptions::new())).collect();
        world.simulation().block_on(manager.shutdown());
        world.run_until_idle();
        for task in tasks {
            assert!(task.is_finished());
            let refused = world.simulation().block_on(task).unwrap();
            assert!(matches!(refused, Err(LaneError::ShutdownInProgress)), "{refused:?}");
        }
    });
}

#[test]
fn a_submission_that_is_given_up_leaves_its_turn_to_the_next() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(1, Overflow::Wait), 0)]);
        let mut blocker = block(&mut world, &manager);
        let log = Log::default();
        let _waits = manager.try_submit("a", named(&log, 0)).unwrap();
        let queue = manager.queue();
        let mut given_up: Vec<_> = (10..13).map(|name| Box::pin(queue.submit("a", named(&log, name)))).collect();
        for submission in &mut given_up {
            assert!(submission.now_or_never().is_none());
        }
        let task = submit_later(&mut world, &manager, named(&log, 1), SubmitOptions::new());
        // One before room is made, one that is the first to hear of it, one with the rest.
        drop(given_up.remove(1));
        assert!(blocker.cancel());
        world.run_until_idle();
        drop(given_up);
        let ticket = world.simulation().block_on(task).unwrap().unwrap();
        world.simulation().block_on(ticket).unwrap().unwrap();
        assert_eq!(log.entries(), [0, 1]);
        assert_idle(&manager);
    });
}

#[test]
fn producers_that_wait_for_room_all_get_through_on_real_executors() {
    on_workers(|executor| {
        let config = LaneConfig::new(1, 2).with_capacity(3).with_overflow(Overflow::Wait);
        let manager = Arc::new(manager(executor, &[("a", config, 0)]));
        let log = Log::default();
        std::thread::scope(|scope| {
            for producer in 0..4u64 {
                let (manager, log) = (&manager, log.clone());
                scope.spawn(move || {
                    for i in 0..250 {
                        let submitted = manager.submit("a", named(&log, producer * 250 + i));
                        let ticket = finish("a submission that waits", submitted).unwrap();
                        assert!(status(manager, "a").pending <= 3, "more wait than may");
                        ticket.detach();
                    }
                });
            }
        });
        finish("drain", manager.drain(HANG)).unwrap();
        let mut ran = log.entries();
        ran.sort_unstable();
        assert!(ran.into_iter().eq(0..1000));
    });
}

#[test]
fn a_full_lane_may_drop_what_has_waited_longest() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(3, Overflow::DropOldest), 0)]);
        let mut blocker = block(&mut world, &manager);
        let log = Log::default();
        let mut tickets: Vec<_> = (0..10).map(|name| manager.try_submit("a", named(&log, name)).unwrap()).collect();
        assert_eq!(status(&manager, "a").pending, 3);
        for ticket in &mut tickets[..7] {
            assert!(ticket.is_finished(), "who was dropped is told at once");
            assert!(!ticket.has_started());
            assert!(matches!(result(ticket), Err(LaneError::Shed)));
        }
        assert!(blocker.cancel());
        world.run_until_idle();
        assert_eq!(log.entries(), [7, 8, 9]);
        assert!(tickets[7..].iter().all(Ticket::is_finished));
        assert_idle(&manager);
    });
}

#[test]
fn what_has_waited_longest_may_be_behind_a_key() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(3, Overflow::DropOldest).with_per_key(1), 0)]);
        let mut blocker = block(&mut world, &manager);
        let (log, lane) = (Log::default(), lane_of(&manager, "a"));
        let submit =
            |name: u64, key: u64| lane.try_submit_with(named(&log, name), SubmitOptions::new().key(key)).unwrap();
        let mut tickets: Vec<_> = (0..6).map(|name| submit(name, name % 2)).collect();
        assert_eq!(status(&manager, "a").pending, 3);
        let shed = tickets.iter_mut().filter(|ticket| ticket.is_finished()).map(result).collect::<Vec<_>>();
        assert_eq!(shed.len(), 3);
        assert!(shed.iter().all(|shed| matches!(shed, Err(LaneError::Shed))), "{shed:?}");
        assert!(blocker.cancel());
        world.run_until_idle();
        assert_eq!(log.entries().len(), 3);
        assert_idle(&manager);
    });
}

#[test]
fn a_full_lane_may_drop_the_worst_priority_for_a_better_one() {
    World::each(|mut world| {
        let config = lane(3, Overflow::DropLowest).with_priority_bounds(1, 9);
        let manager = world.manager(&[("a", config, 5)]);
        let mut blocker = block(&mut world, &manager);
        let (log, lane) = (Log::default(), lane_of(&manager, "a"));
        let submit = |priority: u8| {
            let options = SubmitOptions::new().priority(priority);
            lane.try_submit_with(named(&log, u64::from(priority)), options)
        };
        let [mut nine, mut seven, mut eight] = [9, 7, 8].map(|priority| submit(priority).unwrap());
        let refused = submit(9).unwrap_err();
        assert!(is_full(&refused.error), "one as bad as the worst is no better");
        let six = submit(6).unwrap();
        assert!(matches!(result(&mut nine), Err(LaneError::Shed)));
        let two = submit(2).unwrap();
        assert!(matches!(result(&mut eight), Err(LaneError::Shed)));
        let five = submit(5).unwrap();
        assert!(matches!(result(&mut seven), Err(LaneError::Shed)));
        assert_eq!(status(&manager, "a").pending, 3);
        assert!(blocker.cancel());
        world.run_until_idle();
        assert_eq!(log.entries(), [2, 5, 6]);
        assert!([six, two, five].iter().all(Ticket::is_finished));
        assert_idle(&manager);
    });
}

#[test]
fn a_priority_outside_of_the_bounds_is_refused() {
    let world = World::new(1, 1);
    let bounded = LaneConfig::new(1, 1).with_priority_bounds(3, 7);
    let manager = world.manager(&[("a", bounded, 5), ("b", LaneConfig::new(1, 1), 5)]);
    let submit = |lane: &str, priority: u8| {
        let command: Box<dyn Command> = Box::new(JsonCommand::new("t", json!(1)));
        lane_of(&manager, lane).try_submit_with(command, SubmitOptions::new().priority(priority))
    };
    for (lane, priority) in [("a", 2), ("a", 8), ("b", 4), ("b", 6)] {
        let error = submit(lane, priority).unwrap_err().error;
        assert!(matches!(error, LaneError::QueueError(_)), "{error:?}");
    }
    for (lane, priority) in [("a", 3), ("a", 5), ("a", 7), ("b", 5)] {
        submit(lane, priority).unwrap().detach();
    }
}

#[test]
fn one_lane_takes_commands_while_the_others_are_full() {
    World::each(|mut world| {
        let full = lane(2, Overflow::Reject);
        let lanes = [("control", LaneConfig::new(1, 1), 0), ("a", full.clone(), 1), ("b", full, 2)];
        let manager = world.manager(&lanes);
        for lane in ["a", "b"] {
            let fill = || manager.submit_fn(lane, "fill", || async { Ok(sleep(HOUR).await) });
            while let Ok(ticket) = fill() {
                ticket.detach();
            }
        }
        world.run_until_idle();
        let mut control = manager.submit_fn("control", "control", || async { Ok(7) }).unwrap();
        world.run_until_idle();
        assert_eq!(result(&mut control).unwrap(), 7);
    });
}

#[test]
fn what_has_ended_takes_no_room() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(3, Overflow::Reject).with_per_key(1), 0)]);
        let _blocker = block(&mut world, &manager);
        let lane = lane_of(&manager, "a");
        let nothing = || async { Ok(()) };
        let kinds: [fn() -> SubmitOptions; 4] = [
            SubmitOptions::new,
            || SubmitOptions::new().key("k"),
            || SubmitOptions::new().delay(HOUR),
            || SubmitOptions::new().queue_timeout(SECOND / 100),
        ];
        for options in kinds {
            for _ in 0..100 {
                let submit = || lane.submit_fn_with("short", options(), nothing);
                let mut tickets: Vec<_> = (0..3).map(|_| submit().expect("there is room")).collect();
                assert!(is_full(&submit().unwrap_err()));
                world.run_until_idle();
                if options().eq(&kinds[3]()) {
                    world.advance(11);
                } else {
                    assert!(tickets.iter_mut().all(Ticket::cancel));
                }
                world.run_until_idle();
                assert!(tickets.iter().all(Ticket::is_finished));
                assert_eq!(status(&manager, "a").pending, 0);
            }
        }
    });
}

#[test]
fn of_many_commands_those_that_fit_are_accepted_and_the_others_come_back() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", lane(3, Overflow::Reject), 0)]);
        let mut blocker = block(&mut world, &manager);
        let log = Log::default();
        let submitted = manager.submit_many("a", (0..5).map(|name| named(&log, name)));
        assert_eq!(submitted.len(), 5);
        assert!(submitted[..3].iter().all(Result::is_ok));
        let mut refused = Vec::new();
        let mut accepted = Vec::new();
        for outcome in submitted {
            match outcome {
                Ok(ticket) => accepted.push(ticket),
                Err(rejected) => {
                    assert!(is_full(&rejected.error));
                    refused.push(rejected.command);
                }
            }
        }
        assert!(blocker.cancel());
        world.run_until_idle();
        assert!(manager.submit_many("a", refused).iter().all(Result::is_ok));
        world.run_until_idle();
        assert_eq!(log.entries(), [0, 1, 2, 3, 4]);
        let nowhere = manager.submit_many("nowhere", [named(&log, 9)]);
        assert!(matches!(&nowhere[..], [Err(Rejected { error: LaneError::LaneNotFound(_), .. })]));
    });
}

#[test]
fn a_changed_capacity_counts_for_submissions_that_follow() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", lane(1, Overflow::Wait), 0)]);
    let _blocker = block(&mut world, &manager);
    let log = Log::default();
    let _waits = manager.try_submit("a", named(&log, 0)).unwrap();
    let task = submit_later(&mut world, &manager, named(&log, 1), SubmitOptions::new());
    manager.update_lane("a", |config| config.capacity = Some(3)).unwrap();
    world.run_until_idle();
    assert!(task.is_finished(), "who waits for room hears of it");
    assert!(manager.try_submit("a", named(&log, 2)).is_ok());
    assert!(manager.try_submit("a", named(&log, 3)).is_err());
    manager.update_lane("a", |config| config.capacity = Some(1)).unwrap();
    assert_eq!(status(&manager, "a").pending, 3, "what was accepted stays");
}

/// After a hundred thousand commands with all kinds of ends, everything is as it was in the beginning.
#[test]
fn churn_leaves_nothing_behind() {
    const COMMANDS: u64 = 100_000;
    let mut world = World::new(2, 11);
    let config = LaneConfig::new(1, 4)
        .with_capacity(120)
        .with_max_pending_bytes(50_000)
        .with_per_key(2)
        .with_retry_policy(RetryPolicy::fixed(1, Duration::from_millis(5)));
    let manager = world.manager(&[("a", config, 0)]);
    let lane: Lane = lane_of(&manager, "a");
    let held = Arc::new(());
    let mut tickets = Vec::new();
    let (mut accepted, mut refused) = (0u64, 0u64);
    for i in 0..COMMANDS {
        let holds = Arc::clone(&held);
        let command = move || async move {
            let _held = holds;
            match i % 4 {
                0 => yield_now().await,
                1 => sleep(Duration::from_millis(i % 3)).await,
                _ => {}
            }
            if i % 5 == 0 { Err(LaneError::Other("no".into())) } else { Ok(()) }
        };
        let mut options = SubmitOptions::new().bytes((i % 100) as usize);
        if i % 3 == 0 {
            options = options.key(i % 50);
        }
        if i % 7 == 0 {
            options = options.queue_timeout(Duration::from_millis(1 + i % 4));
        }
        if i % 11 == 0 {
            options = options.delay(Duration::from_millis(i % 9));
        }
        match lane.submit_fn_with("churn", options, command) {
            Ok(ticket) => {
                accepted += 1;
                tickets.push(ticket);
            }
            Err(LaneError::LaneFull { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if i % 150 == 149 {
            for ticket in tickets.iter_mut().step_by(3) {
                ticket.cancel();
            }
            tickets.clear();
            world.simulation().advance(Duration::from_millis(i % 4));
        }
    }
    drop(tickets);
    assert!(accepted > COMMANDS / 10 && refused > 0, "{accepted} accepted, {refused} refused");
    world.simulation().block_on(manager.drain(HOUR)).unwrap();
    world.run_until_idle();
    assert_idle(&manager);
    assert_eq!(Arc::strong_count(&held), 1, "a command was kept");
    // Room, memory and permits are all there again.
    let hour = |options| lane.submit_fn_with("hour", options, || async { Ok(sleep(HOUR).await) });
    let _running: Vec<_> = (0..4).map(|_| hour(SubmitOptions::new()).unwrap()).collect();
    world.run_until_idle();
    assert_eq!(status(&manager, "a").active, 4);
    let waiting: Vec<_> = (0..120).map(|_| hour(SubmitOptions::new().bytes(50)).unwrap()).collect();
    assert!(hour(SubmitOptions::new()).is_err());
    drop(waiting);
}
