//! Lanes: concurrency, results, permits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    JsonCommand, Lane, LaneConfig, LaneError, Result, Simulation, SubmitOptions, TypedCommand, lane_ids, priorities,
    sleep, yield_now,
};
use serde_json::json;

use crate::support::{Barrier, Do, Gauge, block_on, eventually, manager, on_workers, unstarted};

#[test]
fn a_command_gives_its_json_result() {
    on_workers(|executor| {
        let manager = manager(executor, &[("query", LaneConfig::default(), 2)]);
        let value = block_on(async {
            let ticket = manager.submit("query", Box::new(JsonCommand::new("echo", json!({"a": 1})))).await?;
            anyhow::Ok(ticket.await??)
        });
        assert_eq!(value.unwrap(), json!({"a": 1}));
    });
}

#[test]
fn a_command_error_reaches_the_submitter_unchanged() {
    on_workers(|executor| {
        let manager = manager(executor, &[("query", LaneConfig::default(), 2)]);
        let fails = Box::new(Do(|| async { Err(LaneError::CommandError("no such row".into())) }));
        let result = block_on(manager.try_submit("query", fails).unwrap()).unwrap();
        assert!(matches!(result, Err(LaneError::CommandError(text)) if text == "no such row"));
    });
}

#[test]
fn a_typed_command_gives_a_typed_result() {
    struct Length(String);
    impl TypedCommand for Length {
        type Output = usize;
        async fn execute(&self) -> Result<usize> {
            yield_now().await;
            Ok(self.0.len())
        }
        fn command_type(&self) -> &str {
            "length"
        }
    }
    on_workers(|executor| {
        let manager = manager(executor, &[("query", LaneConfig::default(), 2)]);
        let ticket = manager.submit_typed("query", Length("four".into())).unwrap();
        assert_eq!(block_on(ticket).unwrap().unwrap(), 4);
    });
}

#[test]
fn no_more_than_max_run_at_the_same_time() {
    on_workers(|executor| {
        for max in [1, 3] {
            let manager = unstarted(executor, &[("lane", LaneConfig::new(1, max), 0)]);
            let gauge = Gauge::default();
            let tickets: Vec<_> = (0..200)
                .map(|_| {
                    let gauge = gauge.clone();
                    let command = move || async move {
                        let _inside = gauge.enter();
                        yield_now().await;
                        yield_now().await;
                        Ok(())
                    };
                    manager.submit_fn("lane", "gauged", command).unwrap()
                })
                .collect();
            block_on(manager.start()).unwrap();
            tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
            assert!((1..=max).contains(&gauge.highest()), "{} of {max}", gauge.highest());
        }
    });
}

#[test]
fn all_of_max_run_at_the_same_time_without_a_tick() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 10), 0)]);
        let (gauge, go) = (Gauge::default(), Barrier::default());
        let tickets: Vec<_> = (0..30)
            .map(|_| {
                let (gauge, go) = (gauge.clone(), go.clone());
                let command = move || async move {
                    let _inside = gauge.enter();
                    go.passed().await;
                    Ok(())
                };
                manager.submit_fn("lane", "waiting", command).unwrap()
            })
            .collect();
        eventually("ten at once", || gauge.now() == 10);
        let stats = block_on(manager.stats()).unwrap();
        assert_eq!((stats.total_pending, stats.total_active), (20, 10));
        let lane = stats.lanes["lane"];
        assert_eq!((lane.pending, lane.active, lane.min, lane.max), (20, 10, 1, 10));
        go.open();
        tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
    });
}

/// After each way to end, the one permit of the lane is back.
#[test]
fn every_way_to_end_gives_the_permit_back() {
    on_workers(|executor| {
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1), 0)]);
        let works = || block_on(manager.submit_fn("one", "works", || async { Ok(1) }).unwrap()).unwrap().unwrap() == 1;
        assert!(works());
        let error = manager.submit_fn("one", "error", || async { Err::<(), _>(LaneError::CommandError("e".into())) });
        assert!(block_on(error.unwrap()).unwrap().is_err());
        assert!(works());
        for _ in 0..3 {
            let panics = Box::new(Do(|| async { panic!("on purpose") }));
            let result = block_on(manager.try_submit("one", panics).unwrap()).unwrap();
            assert!(matches!(result, Err(LaneError::Panicked(text)) if text == "on purpose"));
            assert!(works());
        }
        // Cancelled while it runs.
        let running = Barrier::default();
        let signal = running.clone();
        let waits = move || async move {
            signal.open();
            std::future::pending::<Result<()>>().await
        };
        let mut ticket = manager.submit_fn("one", "waits", waits).unwrap();
        running.wait();
        assert!(ticket.has_started());
        assert!(ticket.cancel());
        assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::Cancelled { .. })));
        assert!(works());
        // Detached.
        drop(manager.submit_fn("one", "detached", || async { Ok(()) }).unwrap());
        assert!(works());
        let stats = block_on(manager.stats()).unwrap();
        assert_eq!((stats.total_pending, stats.total_active), (0, 0));
    });
}

#[test]
fn a_panic_while_a_command_is_dropped_is_its_result() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("destructor on purpose");
        }
    }
    on_workers(|executor| {
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1), 0)]);
        let bomb = || async {
            let _bomb = Bomb;
            yield_now().await;
            Ok(())
        };
        let result = block_on(manager.submit_fn("one", "bomb", bomb).unwrap()).unwrap();
        assert!(matches!(result, Err(LaneError::Panicked(_))), "{result:?}");
        assert_eq!(block_on(manager.submit_fn("one", "next", || async { Ok(2) }).unwrap()).unwrap().unwrap(), 2);
    });
}

#[test]
fn a_cancelled_command_that_waits_never_starts() {
    on_workers(|executor| {
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1), 0)]);
        let (go, started) = (Barrier::default(), Arc::new(AtomicUsize::new(0)));
        let holding = go.clone();
        let holder = manager.submit_fn("one", "holder", move || async move { Ok(holding.passed().await) }).unwrap();
        let mut waiting: Vec<_> = (0..10)
            .map(|_| {
                let started = Arc::clone(&started);
                let command = move || async move { Ok(started.fetch_add(1, Ordering::SeqCst)) };
                manager.submit_fn("one", "waiting", command).unwrap()
            })
            .collect();
        for ticket in &mut waiting[2..] {
            assert!(!ticket.has_started());
            assert!(ticket.cancel());
            assert!(!ticket.cancel(), "only once");
        }
        // At once, though the lane is full.
        for ticket in waiting.drain(2..) {
            assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::Cancelled { .. })));
        }
        go.open();
        block_on(holder).unwrap().unwrap();
        waiting.into_iter().for_each(|ticket| _ = block_on(ticket).unwrap().unwrap());
        block_on(manager.drain(crate::support::HANG)).unwrap();
        assert_eq!(started.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_command_that_has_ended_can_not_be_cancelled() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::default(), 0)]);
        let mut ticket = manager.submit_fn("lane", "done", || async { Ok(3) }).unwrap();
        eventually("finished", || ticket.is_finished());
        assert!(!ticket.cancel());
        assert_eq!(block_on(&mut ticket).unwrap().unwrap(), 3);
        assert!(block_on(ticket).is_err(), "the result was taken");
    });
}

#[test]
fn commands_submitted_before_start_wait_and_then_run() {
    on_workers(|executor| {
        let manager = unstarted(executor, &[("lane", LaneConfig::default(), 0)]);
        let tickets: Vec<_> =
            (0..20).map(|i| manager.submit_fn("lane", "early", move || async move { Ok(i) }).unwrap()).collect();
        assert_eq!(block_on(manager.stats()).unwrap().total_pending, 20);
        assert!(tickets.iter().all(|ticket| !ticket.is_finished()));
        block_on(manager.start()).unwrap();
        block_on(manager.start()).unwrap();
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(block_on(ticket).unwrap().unwrap(), i);
        }
    });
}

#[test]
fn a_paused_lane_holds_its_commands_and_the_others_go_on() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0), ("b", LaneConfig::default(), 0)]);
        manager.pause("a").unwrap();
        let held = manager.submit_fn("a", "held", || async { Ok(1) }).unwrap();
        let other = manager.submit_fn("b", "other", || async { Ok(2) }).unwrap();
        assert_eq!(block_on(other).unwrap().unwrap(), 2);
        assert!(!held.is_finished() && manager.lane("a").unwrap().is_paused());
        assert_eq!(block_on(manager.stats()).unwrap().lanes["a"].pending, 1);
        manager.resume("a").unwrap();
        assert_eq!(block_on(held).unwrap().unwrap(), 1);
        assert!(matches!(manager.pause("none"), Err(LaneError::LaneNotFound(id)) if id == "none"));
    });
}

#[test]
fn the_six_default_lanes_are_as_the_seed_has_them() {
    on_workers(|executor| {
        let builder = corelane::QueueManagerBuilder::new(corelane::EventEmitter::new(1));
        let manager = block_on(builder.with_executor(executor.clone()).with_default_lanes().build()).unwrap();
        let expected = [
            (lane_ids::SYSTEM, priorities::SYSTEM, 0, 5),
            (lane_ids::CONTROL, priorities::CONTROL, 1, 3),
            (lane_ids::QUERY, priorities::QUERY, 2, 10),
            (lane_ids::SESSION, priorities::SESSION, 3, 5),
            (lane_ids::SKILL, priorities::SKILL, 4, 3),
            (lane_ids::PROMPT, priorities::PROMPT, 5, 2),
        ];
        let stats = block_on(manager.stats()).unwrap();
        assert_eq!(stats.lanes.len(), 6);
        for (id, constant, priority, max) in expected {
            assert_eq!(constant, priority);
            assert_eq!(block_on(manager.lane(id).unwrap().priority()), priority);
            assert_eq!((stats.lanes[id].min, stats.lanes[id].max), (1, max));
        }
    });
}

#[test]
fn a_custom_lane_takes_the_place_of_the_default_one() {
    let builder = corelane::QueueManagerBuilder::new(corelane::EventEmitter::new(1));
    let builder = builder.with_lane("query", LaneConfig::new(2, 50), 9).with_default_lanes();
    let manager = block_on(builder.with_lane("extra", LaneConfig::default(), 3).build()).unwrap();
    let stats = block_on(manager.stats()).unwrap();
    assert_eq!(stats.lanes.len(), 7);
    assert_eq!(stats.lanes["query"].max, 50);
    assert_eq!(block_on(manager.lane("query").unwrap().priority()), 9);
}

#[test]
fn a_lane_can_be_registered_while_the_queue_runs() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let lane = Lane::new("later", LaneConfig::default(), 4);
        block_on(manager.queue().register_lane(lane.clone())).unwrap();
        let ticket = manager.submit_fn("later", "works", || async { Ok(1) }).unwrap();
        assert_eq!(block_on(ticket).unwrap().unwrap(), 1);
        let direct = block_on(lane.enqueue(Box::new(JsonCommand::new("direct", json!(2)))));
        assert_eq!(block_on(direct).unwrap().unwrap(), json!(2));
    });
}

#[test]
fn registering_an_id_again_is_an_error_and_changes_nothing() {
    on_workers(|executor| {
        let manager = unstarted(executor, &[("a", LaneConfig::new(1, 2), 0)]);
        let pending = manager.submit_fn("a", "pending", || async { Ok(1) }).unwrap();
        let again = block_on(manager.queue().register_lane(Lane::new("a", LaneConfig::new(1, 9), 0)));
        assert!(
            matches!(&again, Err(LaneError::ConfigError(errors)) if errors.to_string().contains("taken")),
            "{again:?}"
        );
        assert_eq!(block_on(manager.stats()).unwrap().lanes["a"].max, 2);
        block_on(manager.start()).unwrap();
        assert_eq!(block_on(pending).unwrap().unwrap(), 1);
    });
}

#[test]
fn the_futures_of_a_submission_can_move_between_threads() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    fn unpin<T: Unpin>(value: T) -> T {
        value
    }
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let submit = send(manager.submit("a", Box::new(JsonCommand::new("t", json!(null)))));
        let ticket = send(unpin(block_on(submit).unwrap()));
        assert_eq!(block_on(ticket).unwrap().unwrap(), json!(null));
        block_on(send(manager.drain(crate::support::HANG))).unwrap();
    });
}

#[test]
fn results_arrive_from_many_producers_on_many_lanes() {
    on_workers(|executor| {
        let manager = manager(
            executor,
            &[("a", LaneConfig::new(1, 1), 0), ("b", LaneConfig::new(1, 2), 1), ("c", LaneConfig::new(1, 64), 2)],
        );
        std::thread::scope(|scope| {
            for producer in 0..6usize {
                let manager = &manager;
                scope.spawn(move || {
                    let tickets: Vec<_> = (0..500usize)
                        .map(|i| {
                            let lane = ["a", "b", "c"][(producer + i) % 3];
                            manager.submit_fn(lane, "sum", move || async move { Ok(producer * 1000 + i) }).unwrap()
                        })
                        .collect();
                    for (i, ticket) in tickets.into_iter().enumerate() {
                        assert_eq!(block_on(ticket).unwrap().unwrap(), producer * 1000 + i);
                    }
                });
            }
        });
        let stats = block_on(manager.stats()).unwrap();
        assert_eq!((stats.total_pending, stats.total_active), (0, 0));
    });
}

#[test]
fn a_key_that_may_run_more_does_so_at_once() {
    let mut simulation = Simulation::new(1, 1);
    let manager = manager(simulation.executor(), &[("query", LaneConfig::new(0, 4).with_per_key(1), 0)]);
    let lane = manager.lane("query").unwrap();
    let long = || async { Ok(sleep(Duration::from_secs(3600)).await) };
    let _first = lane.submit_fn_with("long", SubmitOptions::new().key("a"), long).unwrap();
    let second = lane.submit_fn_with("short", SubmitOptions::new().key("a"), || async { Ok(()) }).unwrap();
    simulation.run_until_idle();
    assert!(!second.is_finished(), "one at a time");
    lane.update(|config| config.per_key = Some(2)).unwrap();
    simulation.run_until_idle();
    assert!(second.is_finished(), "two at a time");
}

#[test]
fn a_queue_finds_each_of_many_lanes_and_no_other() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane 00", LaneConfig::default(), 2)]);
        let names: Vec<_> = (0..30).map(|i| format!("lane {i:02}")).collect();
        // Not in their order.
        let others = names[1..].iter().rev().chain(&names[..1]);
        for (i, name) in others.enumerate() {
            let registered =
                block_on(manager.queue().register_lane(Lane::new(name.as_str(), LaneConfig::default(), 3)));
            assert_eq!(registered.is_ok(), i < 29, "{name} is registered once");
        }
        for name in &names {
            let found = manager.lane(name).expect("it was registered");
            assert_eq!(found.id(), name);
            let of = name.clone();
            let ticket = manager.submit_fn(name, "name", move || async { Ok(of) }).unwrap();
            assert_eq!(&block_on(ticket).unwrap().unwrap(), name);
        }
        for unknown in ["lane 30", "lane", ""] {
            assert!(manager.lane(unknown).is_none());
        }
        assert_eq!(manager.queue().stats().lanes.len(), names.len());
    });
}
