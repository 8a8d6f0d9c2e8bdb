//! Cancelling: wherever a command is, and with it what it has submitted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    CancelToken, LaneConfig, LaneError, QueueManager, RetryPolicy, SubmitOptions, Ticket, Transition, is_cancelled,
    sleep, yield_now,
};

use crate::support::{
    Barrier, Gauge, HANG, Log, Work, World, assert_idle, block_on, eventually, executor, finish, lane_of, manager,
    on_workers, result, status, transitions,
};

const HOUR: Duration = Duration::from_secs(3600);

fn takes_an_hour(manager: &QueueManager, options: SubmitOptions, ran: &Gauge) -> Ticket<()> {
    let ran = ran.clone();
    let command = move || async move {
        let _inside = ran.enter();
        Ok(sleep(HOUR).await)
    };
    lane_of(manager, "a").submit_fn_with("hour", options, command).unwrap()
}

/// Cancels a command that was brought into a state, and checks that it is as if it had never been there.
fn cancels(config: LaneConfig, started: bool, bring: impl Fn(&mut World, &QueueManager, &Gauge) -> Ticket<()>) {
    World::each(|mut world| {
        let manager = world.manager(&[("a", config.clone(), 0)]);
        let mut events = manager.subscribe();
        let ran = Gauge::default();
        let mut ticket = bring(&mut world, &manager, &ran);
        let ran_before = ran.now();
        assert_eq!(ticket.has_started(), started);
        assert!(ticket.cancel());
        assert!(ticket.is_finished());
        assert!(!ticket.cancel(), "it was cancelled before");
        let told = result(&mut ticket).unwrap_err();
        assert!(matches!(told, LaneError::Cancelled { started: s } if s == started), "{told:?}");
        world.run_until_idle();
        assert_eq!(status(&manager, "a").pending, 0);
        assert!(ran.now() <= ran_before, "it ran on");
        world.jump(2 * HOUR);
        assert_idle(&manager);
        if !started {
            assert_eq!(ran.highest(), ran_before, "it ran after all");
        }
        let id = ticket.id();
        let ends: Vec<_> = transitions(&mut events).into_iter().filter(|told| ends(told) == Some(id)).collect();
        assert!(matches!(&ends[..], [Transition::Cancelled { started: s, .. }] if *s == started), "{ends:?}");
        let mut next = manager.submit_fn("a", "next", || async { Ok(7) }).unwrap();
        world.run_until_idle();
        assert_eq!(result(&mut next).unwrap(), 7);
    });
}

/// Of which command this tells the end.
fn ends(told: &Transition) -> Option<corelane::CommandId> {
    match told {
        Transition::Completed(command)
        | Transition::Shed(command)
        | Transition::Failed { command, .. }
        | Transition::TimedOut { command, .. }
        | Transition::Cancelled { command, .. }
        | Transition::Expired { command, .. } => Some(command.command_id),
        _ => None,
    }
}

#[test]
fn a_command_in_line_is_cancelled() {
    cancels(LaneConfig::new(1, 1), false, |world, manager, ran| {
        takes_an_hour(manager, SubmitOptions::new(), ran).detach();
        world.run_until_idle();
        takes_an_hour(manager, SubmitOptions::new(), ran)
    });
}

#[test]
fn a_command_that_was_admitted_and_not_yet_polled_is_cancelled() {
    cancels(LaneConfig::new(1, 1), false, |_, manager, ran| takes_an_hour(manager, SubmitOptions::new(), ran));
}

#[test]
fn a_command_that_runs_is_cancelled_at_its_await() {
    cancels(LaneConfig::new(1, 1), true, |world, manager, ran| {
        let ticket = takes_an_hour(manager, SubmitOptions::new(), ran);
        world.run_until_idle();
        ticket
    });
}

#[test]
fn a_delayed_command_is_cancelled() {
    cancels(LaneConfig::new(1, 1), false, |world, manager, ran| {
        let ticket = takes_an_hour(manager, SubmitOptions::new().delay(HOUR), ran);
        world.run_until_idle();
        ticket
    });
}

#[test]
fn a_command_behind_others_of_its_key_is_cancelled() {
    cancels(LaneConfig::new(1, 4).with_per_key(1), false, |world, manager, ran| {
        takes_an_hour(manager, SubmitOptions::new().key("k"), ran).detach();
        world.run_until_idle();
        takes_an_hour(manager, SubmitOptions::new().key("k"), ran)
    });
}

#[test]
fn a_command_in_its_backoff_is_cancelled() {
    let config = LaneConfig::new(1, 1).with_retry_policy(RetryPolicy::fixed(9, HOUR / 2));
    cancels(config, true, |world, manager, _| {
        let command = Work(|| async { Err::<(), _>(LaneError::Other("again".into())) });
        let ticket = manager.submit_typed("a", command).unwrap();
        world.run_until_idle();
        ticket
    });
}

#[test]
fn a_command_held_back_by_its_rate_is_cancelled() {
    let limit = corelane::RateLimitConfig::per_hour(1);
    cancels(LaneConfig::new(1, 4).with_rate_limit(limit), false, |world, manager, ran| {
        manager.submit_fn("a", "first", || async { Ok(()) }).unwrap().detach();
        world.run_until_idle();
        takes_an_hour(manager, SubmitOptions::new(), ran)
    });
}

#[test]
fn a_parent_that_waits_for_its_child_is_cancelled_and_the_child_with_it() {
    cancels(LaneConfig::new(1, 1), true, |world, manager, ran| {
        let (lane, ran) = (lane_of(manager, "a"), ran.clone());
        let parent = move || async move {
            let child = lane.submit_fn("child", move || async move {
                let _inside = ran.enter();
                Ok(sleep(HOUR).await)
            })?;
            child.await.unwrap()
        };
        let ticket = manager.submit_fn("a", "parent", parent).unwrap();
        world.run_until_idle();
        assert_eq!(status(manager, "a").active, 1, "the child runs on its parent's permit");
        ticket
    });
}

/// A parent in lane `a` with a child in `b`, that has one in `c`; the child detached or not.
fn family(manager: &QueueManager, detached: bool, alive: &Gauge) -> Ticket<()> {
    let (b, c) = (lane_of(manager, "b"), lane_of(manager, "c"));
    let [parent, child, grandchild] = [alive.clone(), alive.clone(), alive.clone()];
    let command = move || async move {
        let _inside = parent.enter();
        let options = if detached { SubmitOptions::new().detached() } else { SubmitOptions::new() };
        let child = b.submit_fn_with("child", options, move || async move {
            let _inside = child.enter();
            let grandchild = c.submit_fn("grandchild", move || async move {
                let _inside = grandchild.enter();
                Ok(sleep(HOUR).await)
            })?;
            grandchild.await.unwrap()
        })?;
        child.await.unwrap()
    };
    let options = SubmitOptions::new().timeout(2 * HOUR);
    lane_of(manager, "a").submit_fn_with("parent", options, command).unwrap()
}

#[test]
fn what_a_command_has_submitted_ends_with_it_unless_detached() {
    World::each(|mut world| {
        for detached in [false, true] {
            let lane = LaneConfig::new(1, 2);
            let manager = world.manager(&[("a", lane.clone(), 0), ("b", lane.clone(), 1), ("c", lane.clone(), 2)]);
            let alive = Gauge::default();
            let mut parent = family(&manager, detached, &alive);
            world.run_until_idle();
            assert_eq!(alive.now(), 3);
            assert!(parent.cancel());
            world.run_until_idle();
            assert_eq!(alive.now(), if detached { 2 } else { 0 });
            assert_eq!(status(&manager, "a").active, 0);
            world.jump(HOUR);
            assert_eq!(alive.now(), 0);
            assert_idle(&manager);
        }
    });
}

#[test]
fn what_a_command_has_submitted_ends_at_its_timeout_too() {
    World::each(|mut world| {
        let lane = LaneConfig::new(1, 2);
        let manager = world.manager(&[("a", lane.clone(), 0), ("b", lane, 1)]);
        let (alive, b) = (Gauge::default(), lane_of(&manager, "b"));
        let inside = alive.clone();
        let parent = move || async move {
            let _ours = inside.enter();
            let children: Vec<_> = (0..4)
                .map(|_| {
                    let alive = inside.clone();
                    b.submit_fn("child", move || async move {
                        let _ours = alive.enter();
                        Ok(sleep(HOUR).await)
                    })
                })
                .collect();
            for child in children {
                child?.await.unwrap()?;
            }
            Ok(())
        };
        let options = SubmitOptions::new().timeout(Duration::from_secs(1));
        let mut ticket = lane_of(&manager, "a").submit_fn_with("parent", options, parent).unwrap();
        world.advance(900);
        assert_eq!(alive.now(), 3);
        assert_eq!(status(&manager, "b").pending, 2);
        world.advance(101);
        assert!(matches!(result(&mut ticket), Err(LaneError::Timeout(_))));
        assert_eq!(alive.now(), 0);
        assert_idle(&manager);
    });
}

#[test]
fn a_child_outlives_a_parent_that_completed() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", LaneConfig::new(1, 2), 0)]);
    let (lane, children) = (lane_of(&manager, "a"), Log::default());
    let log = children.clone();
    let parent = move || async move {
        let child = lane.submit_fn("child", move || async move {
            sleep(HOUR).await;
            Ok(log.push("completed"))
        })?;
        Ok(child.detach())
    };
    let mut ticket = manager.submit_fn("a", "parent", parent).unwrap();
    world.run_until_idle();
    result(&mut ticket).unwrap();
    world.jump(HOUR);
    assert_eq!(children.entries(), ["completed"]);
}

#[test]
fn code_that_blocks_sees_that_its_command_was_cancelled() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 1), 0)]);
        assert!(!is_cancelled(), "outside of a command");
        let (running, seen) = (Barrier::default(), Arc::new(AtomicBool::new(false)));
        let (begun, saw) = (running.clone(), Arc::clone(&seen));
        let command = move || async move {
            assert!(!is_cancelled());
            begun.open();
            let began = std::time::Instant::now();
            while !is_cancelled() && began.elapsed() < HANG {
                std::thread::yield_now();
            }
            saw.store(is_cancelled(), Ordering::SeqCst);
            Ok(yield_now().await)
        };
        let mut ticket = manager.submit_fn("a", "blocks", command).unwrap();
        running.wait();
        assert!(ticket.cancel());
        assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::Cancelled { started: true })));
        block_on(manager.drain(HANG)).unwrap();
        assert!(seen.load(Ordering::SeqCst));
    });
}

#[test]
fn code_that_blocks_sees_that_its_time_is_over() {
    on_workers(|executor| {
        let config = LaneConfig::new(1, 1).with_timeout(Duration::from_millis(5));
        let manager = manager(executor, &[("a", config, 0)]);
        let seen = Arc::new(AtomicBool::new(false));
        let saw = Arc::clone(&seen);
        let command = move || async move {
            let began = std::time::Instant::now();
            while !is_cancelled() && began.elapsed() < HANG {
                std::thread::yield_now();
            }
            Ok(saw.store(is_cancelled(), Ordering::SeqCst))
        };
        let ticket = manager.submit_fn("a", "blocks", command).unwrap();
        assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::Timeout(_))));
        block_on(manager.drain(HANG)).unwrap();
        assert!(seen.load(Ordering::SeqCst));
    });
}

#[test]
fn a_token_tells_a_thread_that_the_attempt_was_given_up() {
    on_workers(|executor| {
        assert!(CancelToken::current().is_none(), "outside of a command");
        let manager = manager(executor, &[("a", LaneConfig::new(1, 2), 0)]);
        for give_up in [true, false] {
            let (go_on, tokens) = (Barrier::default(), Log::default());
            let (passed, log) = (go_on.clone(), tokens.clone());
            let command = move || async move {
                let token = CancelToken::current().unwrap();
                // What a thread sees that the command has started.
                log.push(std::thread::spawn(move || token).join().unwrap());
                Ok(passed.passed().await)
            };
            let mut ticket = manager.submit_fn("a", "token", command).unwrap();
            eventually("the command runs", || tokens.entries().len() == 1);
            let token = tokens.entries().pop().unwrap();
            assert!(!token.is_cancelled());
            if give_up {
                assert!(ticket.cancel());
            } else {
                go_on.open();
            }
            let _ = finish("the end of the command", ticket).unwrap();
            block_on(manager.drain(HANG)).unwrap();
            assert_eq!(token.is_cancelled(), give_up);
        }
    });
}

#[test]
fn who_cancels_and_who_completes_agree_on_one_end() {
    const ROUNDS: usize = 3000;
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let emitter = corelane::EventEmitter::new(4 * ROUNDS);
        let builder = corelane::QueueManagerBuilder::new(emitter).with_executor(executor.clone());
        let builder = builder.with_lane("a", LaneConfig::new(1, 8), 0).with_lane("b", LaneConfig::new(1, 8), 0);
        let manager = block_on(builder.build()).unwrap();
        block_on(manager.start()).unwrap();
        let mut events = manager.subscribe();
        let completed = Arc::new(AtomicUsize::new(0));
        let mut verdicts = HashMap::new();
        for round in 0..ROUNDS {
            let done = Arc::clone(&completed);
            let command = move || async move {
                for _ in 0..round % 4 {
                    yield_now().await;
                }
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            let lane = if round % 2 == 0 { "a" } else { "b" };
            let mut ticket = manager.submit_fn(lane, "race", command).unwrap();
            for _ in 0..round % 97 {
                std::hint::spin_loop();
            }
            let cancelled = ticket.cancel();
            let id = ticket.id();
            match finish("a raced command", ticket).unwrap() {
                Ok(()) => assert!(!cancelled, "it was cancelled and gave a result"),
                Err(LaneError::Cancelled { .. }) => assert!(cancelled, "it was not cancelled and says so"),
                Err(other) => panic!("{other:?}"),
            }
            verdicts.insert(id, cancelled);
        }
        block_on(manager.drain(HANG)).unwrap();
        let mut told: HashMap<_, Vec<_>> = HashMap::new();
        for transition in transitions(&mut events) {
            if let Some(id) = ends(&transition) {
                told.entry(id).or_default().push(matches!(transition, Transition::Cancelled { .. }));
            }
        }
        assert_eq!(told.len(), ROUNDS);
        for (id, ends) in told {
            assert_eq!(ends, [verdicts[&id]], "{id}: told otherwise than the ticket, or more than once");
        }
        let kept = verdicts.values().filter(|cancelled| !**cancelled).count();
        assert!(completed.load(Ordering::SeqCst) >= kept, "a result without a run");
        assert_idle(&manager);
    }
}

#[test]
fn a_cancelled_command_keeps_its_slot_until_it_has_stopped() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 1), 0)]);
        let (running, go_on) = (Barrier::default(), Barrier::default());
        let (begun, blocked) = (running.clone(), go_on.clone());
        let command = move || async move {
            begun.open();
            blocked.wait();
            Ok(())
        };
        let mut ticket = manager.submit_fn("a", "blocks", command).unwrap();
        running.wait();
        let next = manager.submit_fn("a", "next", || async { Ok(()) }).unwrap();
        assert!(ticket.cancel());
        assert!(ticket.is_finished(), "the submitter is told at once");
        let blocked = status(&manager, "a");
        assert_eq!((blocked.pending, blocked.active), (1, 1));
        assert!(!next.has_started());
        go_on.open();
        finish("the next command", next).unwrap().unwrap();
    });
}
