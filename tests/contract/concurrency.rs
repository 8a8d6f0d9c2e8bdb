//! Concurrency: how many run at the same time, of a lane, of a queue and of a key, and who is next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    EventEmitter, Executor, Lane, LaneConfig, LaneError, QueueManager, QueueManagerBuilder, SubmitOptions, Ticket,
    sleep, yield_now,
};
use futures::FutureExt;

use crate::support::{
    Barrier, Gauge, HANG, Log, World, assert_idle, block_on, eventually, executor, finish, lane_of, manager,
    on_workers, result, status,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A started manager whose lanes share a limit.
fn pooled(executor: &Executor, limit: usize, lanes: &[(&str, LaneConfig, u8)]) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(executor.clone());
    let builder =
        lanes.iter().fold(builder, |builder, (id, config, priority)| builder.with_lane(*id, config.clone(), *priority));
    let manager = block_on(builder.with_max_in_flight(limit).build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

fn takes(manager: &QueueManager, lane: &str, time: Duration) -> Ticket<()> {
    manager.submit_fn(lane, "takes", move || async move { Ok(sleep(time).await) }).unwrap()
}

fn active(manager: &QueueManager, lane: &str) -> usize {
    status(manager, lane).active
}

#[test]
fn all_lanes_together_run_no_more_than_the_queue_allows() {
    on_workers(|executor| {
        let lanes = [("a", LaneConfig::new(0, 4), 0), ("b", LaneConfig::new(1, 4), 1), ("c", LaneConfig::new(0, 4), 1)];
        let manager = pooled(executor, 3, &lanes);
        let (gauge, of_lane) = (Gauge::default(), HashMap::from(["a", "b", "c"].map(|lane| (lane, Gauge::default()))));
        let tickets: Vec<_> = (0..600)
            .map(|i| {
                let lane = ["a", "b", "c"][i % 3];
                let (all, own) = (gauge.clone(), of_lane[lane].clone());
                let command = move || async move {
                    let _inside = (all.enter(), own.enter());
                    for _ in 0..i % 5 {
                        yield_now().await;
                    }
                    Ok(())
                };
                manager.submit_fn(lane, "counted", command).unwrap()
            })
            .collect();
        for ticket in tickets {
            finish("a command of a queue with a limit", ticket).unwrap().unwrap();
        }
        assert!(gauge.highest() <= 3, "{} ran at the same time", gauge.highest());
        finish("drain", manager.drain(HANG)).unwrap();
        assert_idle(&manager);
        // The whole limit is there again, for whichever lane wants it.
        let (go_on, inside) = (Barrier::default(), Gauge::default());
        let tickets: Vec<_> = (0..3)
            .map(|_| {
                let (passed, inside) = (go_on.clone(), inside.clone());
                let command = move || async move {
                    let _inside = inside.enter();
                    Ok(passed.passed().await)
                };
                manager.submit_fn("b", "meets", command).unwrap()
            })
            .collect();
        eventually("three run at the same time", || inside.now() == 3);
        go_on.open();
        tickets.into_iter().for_each(|ticket| finish("who met", ticket).unwrap().unwrap());
    });
}

#[test]
fn a_lanes_minimum_is_held_back_for_it() {
    World::each(|mut world| {
        let lanes = [("high", LaneConfig::new(0, 10), 0), ("low", LaneConfig::new(1, 4), 9)];
        let manager = pooled(world.executor(), 4, &lanes);
        let mut high: Vec<_> = (0..10).map(|_| takes(&manager, "high", HOUR)).collect();
        world.run_until_idle();
        assert_eq!(active(&manager, "high"), 3);
        let _low: Vec<_> = (0..4).map(|_| takes(&manager, "low", HOUR)).collect();
        world.run_until_idle();
        assert_eq!((active(&manager, "high"), active(&manager, "low")), (3, 1));
        // What becomes free goes to the best lane that wants it, and the minimum stays where it is.
        assert!(high[0].cancel());
        world.run_until_idle();
        assert_eq!((active(&manager, "high"), active(&manager, "low")), (3, 1));
        high.iter_mut().for_each(|ticket| _ = ticket.cancel());
        world.run_until_idle();
        assert_eq!((active(&manager, "high"), active(&manager, "low")), (0, 4), "the rest is for all");
    });
}

#[test]
fn what_becomes_free_goes_to_the_best_lane_first() {
    World::each(|mut world| {
        let lane = || LaneConfig::new(0, 8);
        let manager = pooled(world.executor(), 1, &[("low", lane(), 9), ("mid", lane(), 5), ("high", lane(), 1)]);
        let order = Log::default();
        let mut holder = takes(&manager, "low", HOUR);
        world.run_until_idle();
        for _ in 0..5 {
            for lane in ["low", "mid", "high"] {
                let order = order.clone();
                let command = move || async move {
                    yield_now().await;
                    Ok(order.push(lane))
                };
                manager.submit_fn(lane, "ordered", command).unwrap().detach();
            }
        }
        assert!(holder.cancel());
        world.run_until_idle();
        let expected: Vec<_> = ["high", "mid", "low"].into_iter().flat_map(|lane| [lane; 5]).collect();
        assert_eq!(order.entries(), expected);
        assert_idle(&manager);
    });
}

#[test]
fn a_limit_that_can_not_hold_all_minima_is_refused() {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_lane("a", LaneConfig::new(2, 4), 0).with_lane(
        "b",
        LaneConfig::new(2, 4),
        0,
    );
    let Err(LaneError::ConfigError(errors)) = block_on(builder.with_max_in_flight(3).build()) else { panic!("built") };
    assert_eq!(errors.problems()[0].path, "max_in_flight");
    let manager = pooled(&executor(1), 2, &[("a", LaneConfig::new(1, 1), 0)]);
    let late = block_on(manager.queue().register_lane(Lane::new("b", LaneConfig::new(0, 1), 0)));
    assert!(matches!(late, Err(LaneError::ConfigError(_))), "{late:?}");
    let changed = manager.update_lane("a", |config| config.min_concurrency = 0);
    assert!(matches!(changed, Err(LaneError::ConfigError(_))), "{changed:?}");
}

/// While a better lane never runs out of work, a lane with a minimum goes on and one without waits.
#[test]
fn a_lane_with_a_minimum_makes_progress_under_saturation_and_one_without_waits() {
    on_workers(|executor| {
        let spinners = 2 * executor.workers() + 2;
        let lanes = [
            ("better", LaneConfig::new(1, spinners), 0),
            ("floored", LaneConfig::new(1, 4), 40),
            ("waiting", LaneConfig::new(0, 4), 30),
        ];
        let manager = manager(executor, &lanes);
        let (stop, spinning) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tickets: Vec<_> = (0..spinners)
            .map(|_| {
                let (stop, spinning) = (Arc::clone(&stop), Arc::clone(&spinning));
                let command = move || async move {
                    spinning.fetch_add(1, Ordering::SeqCst);
                    while !stop.load(Ordering::SeqCst) {
                        yield_now().await;
                    }
                    Ok(())
                };
                manager.submit_fn("better", "spins", command).unwrap()
            })
            .collect();
        eventually("the better lane is saturated", || spinning.load(Ordering::SeqCst) == spinners);
        let waiting = manager.submit_fn("waiting", "waits", || async { Ok(()) }).unwrap();
        for _ in 0..5 {
            let floored = manager.submit_fn("floored", "goes on", || async { Ok(()) }).unwrap();
            finish("a lane with a minimum starves", floored).unwrap().unwrap();
        }
        assert!(!waiting.has_started(), "a lane without a minimum ran although there was better work");
        stop.store(true, Ordering::SeqCst);
        tickets.push(waiting);
        for ticket in tickets {
            finish("the rest", ticket).unwrap().unwrap();
        }
    });
}

#[test]
fn commands_of_a_key_run_in_order_and_as_many_at_a_time_as_their_lane_says() {
    for limit in [1, 2] {
        on_workers(|executor| {
            let manager = manager(executor, &[("a", LaneConfig::new(1, 8).with_per_key(limit), 0)]);
            let lane = lane_of(&manager, "a");
            let gauges: Vec<_> = (0..5).map(|_| Gauge::default()).collect();
            let order = Log::default();
            for i in 0..500u64 {
                let key = i % 5;
                let (gauge, order) = (gauges[key as usize].clone(), order.clone());
                let command = move || async move {
                    let _inside = gauge.enter();
                    order.push((key, i));
                    for _ in 0..i % 3 {
                        yield_now().await;
                    }
                    Ok(())
                };
                lane.submit_fn_with("keyed", SubmitOptions::new().key(key), command).unwrap().detach();
            }
            finish("drain", manager.drain(HANG)).unwrap();
            for (key, gauge) in (0u64..).zip(&gauges) {
                assert!(gauge.highest() <= limit, "{} of one key at a time", gauge.highest());
                let order: Vec<_> = order.entries().into_iter().filter(|entry| entry.0 == key).collect();
                assert_eq!(order.len(), 100);
                assert!(limit > 1 || order.is_sorted(), "key {key}: {order:?}");
            }
            assert_idle(&manager);
        });
    }
}

#[test]
fn keys_take_turns_however_many_commands_one_of_them_has() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1).with_per_key(1), 0)]);
        let lane = lane_of(&manager, "a");
        let mut blocker = takes(&manager, "a", HOUR);
        world.run_until_idle();
        let order = Log::default();
        let submit = |key: &'static str| {
            let order = order.clone();
            let command = move || async move { Ok(order.push(key)) };
            lane.submit_fn_with("keyed", SubmitOptions::new().key(key), command).unwrap().detach();
        };
        (0..100).for_each(|_| submit("greedy"));
        (0..3).for_each(|_| submit("b"));
        (0..3).for_each(|_| submit("c"));
        assert!(blocker.cancel());
        world.run_until_idle();
        let order = order.entries();
        assert_eq!(order.len(), 106);
        let expected: Vec<_> = ["greedy", "b", "c"].into_iter().cycle().take(9).collect();
        assert_eq!(order[..9], expected);
        assert_idle(&manager);
    });
}

#[test]
fn other_keys_go_on_while_one_is_stuck() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 2).with_per_key(1), 0)]);
        let lane = lane_of(&manager, "a");
        let submit = |key: u64, time: Duration| {
            let command = move || async move { Ok(sleep(time).await) };
            lane.submit_fn_with("keyed", SubmitOptions::new().key(key), command).unwrap()
        };
        let stuck: Vec<_> = (0..10).map(|_| submit(1, HOUR)).collect();
        let others: Vec<_> = (0..10).map(|i| submit(2 + i, Duration::ZERO)).collect();
        world.advance(1);
        assert!(others.iter().all(Ticket::is_finished));
        assert_eq!(stuck.iter().filter(|ticket| ticket.has_started()).count(), 1);
    });
}

#[test]
fn a_key_without_commands_is_forgotten() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 4).with_per_key(2), 0)]);
        let lane = lane_of(&manager, "a");
        let names: Vec<Arc<str>> = (0..200).map(|i| Arc::from(format!("key {i}"))).collect();
        for round in 0..5 {
            for name in &names {
                let command = move || async move {
                    yield_now().await;
                    if round == 3 { Err(LaneError::Other("no".into())) } else { Ok(()) }
                };
                let options = SubmitOptions::new().key(Arc::clone(name));
                let mut ticket = lane.submit_fn_with("keyed", options, command).unwrap();
                if round == 2 {
                    ticket.cancel();
                }
            }
        }
        finish("drain", manager.drain(HANG)).unwrap();
        eventually("no key is kept", || names.iter().all(|name| Arc::strong_count(name) == 1));
    });
}

#[test]
fn a_changed_limit_to_a_key_counts_for_what_starts_next() {
    let mut world = World::new(1, 1);
    let manager = world.manager(&[("a", LaneConfig::new(1, 10).with_per_key(1), 0)]);
    let lane = lane_of(&manager, "a");
    for _ in 0..6 {
        let command = || async { Ok(sleep(SECOND).await) };
        lane.submit_fn_with("keyed", SubmitOptions::new().key("k"), command).unwrap().detach();
    }
    world.run_until_idle();
    assert_eq!(active(&manager, "a"), 1);
    manager.update_lane("a", |config| config.per_key = Some(3)).unwrap();
    world.advance(1001);
    assert_eq!(active(&manager, "a"), 3, "the key may run more");
    world.jump(HOUR);
    assert_idle(&manager);
}

#[test]
fn lanes_of_one_priority_get_the_same_within_a_twentieth() {
    World::each(|mut world| {
        let lane = || LaneConfig::new(1, 2);
        let names = ["a", "b", "c"];
        let manager = world.manager(&names.map(|name| (name, lane(), 3)));
        let order = Log::default();
        for lane in names {
            for _ in 0..2000 {
                let order = order.clone();
                manager.submit_fn(lane, "turn", move || async move { Ok(order.push(lane)) }).unwrap().detach();
            }
        }
        world.run_until_idle();
        let order = order.entries();
        assert_eq!(order.len(), 6000);
        let window = &order[1500..4500];
        for lane in names {
            let share = window.iter().filter(|other| **other == lane).count();
            assert!((950..=1050).contains(&share), "{lane}: {share} of 3000");
        }
    });
}

#[test]
fn a_permit_is_one_of_the_lanes() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 2), 0)]);
        let lane = lane_of(&manager, "a");
        let first = lane.try_acquire().unwrap();
        assert_eq!(first.lane_id(), "a");
        let second = lane.acquire().now_or_never().unwrap().unwrap();
        assert!(lane.try_acquire().is_none());
        let mut ticket = takes(&manager, "a", Duration::ZERO);
        world.run_until_idle();
        assert_eq!((status(&manager, "a").pending, active(&manager, "a")), (1, 2));
        let drained = world.simulation().block_on(manager.drain(SECOND));
        assert!(matches!(drained, Err(LaneError::DrainTimeout { pending: 1, active: 2, .. })), "{drained:?}");
        drop(first);
        world.advance(1);
        result(&mut ticket).unwrap();
        drop(second);
        world.simulation().block_on(manager.drain(SECOND)).unwrap();
    });
}

#[test]
fn who_acquires_stands_in_line_between_commands() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0)]);
        let lane = lane_of(&manager, "a");
        let held = lane.try_acquire().unwrap();
        let before = takes(&manager, "a", SECOND);
        let mut acquire = lane.acquire();
        let given_up = lane.acquire();
        let after = takes(&manager, "a", SECOND);
        assert!(lane.try_acquire().is_none(), "others wait");
        drop(held);
        world.advance(500);
        assert!(before.has_started());
        assert!((&mut acquire).now_or_never().is_none());
        drop(given_up);
        world.advance(501);
        assert!(before.is_finished());
        assert!(!after.has_started(), "it overtook a host");
        let permit = (&mut acquire).now_or_never().unwrap().unwrap();
        world.advance(100);
        assert!(!after.has_started());
        drop(permit);
        world.advance(1001);
        assert!(after.is_finished());
        assert_idle(&manager);
    });
}

#[test]
fn permits_of_many_threads_never_exceed_the_maximum_and_all_come_back() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 3), 0)]);
        let (lane, gauge) = (lane_of(&manager, "a"), Gauge::default());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lane, gauge) = (&lane, gauge.clone());
                scope.spawn(move || {
                    for i in 0..300 {
                        let acquire = lane.acquire();
                        if (i + thread) % 5 == 0 {
                            drop(acquire);
                            continue;
                        }
                        let permit = finish("a permit", acquire).unwrap();
                        let inside = gauge.enter();
                        std::thread::yield_now();
                        drop(inside);
                        drop(permit);
                        drop(lane.try_acquire());
                    }
                });
            }
        });
        assert!(gauge.highest() <= 3);
        finish("drain", manager.drain(HANG)).unwrap();
        assert_idle(&manager);
        let permits: Vec<_> = std::iter::from_fn(|| lane.try_acquire()).take(10).collect();
        assert_eq!(permits.len(), 3);
    });
}

#[test]
fn who_waits_for_a_permit_is_refused_when_the_queue_stops() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0)]);
        let lane = lane_of(&manager, "a");
        let held = lane.try_acquire().unwrap();
        let mut waits = lane.acquire();
        let stop = corelane::Stop::drain(SECOND).then_cancel(SECOND);
        let report = world.simulation().block_on(manager.stop(stop));
        assert!(!report.is_complete(), "a host holds a permit: {report:?}");
        let refused = (&mut waits).now_or_never().expect("it is told");
        assert!(matches!(refused, Err(LaneError::ShutdownInProgress)), "{refused:?}");
        assert!(lane.try_acquire().is_none());
        drop(held);
        assert_idle(&manager);
    });
}

#[test]
fn a_changed_maximum_is_reached_as_commands_end() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 2), 0)]);
        let _tickets: Vec<_> = (0..40).map(|_| takes(&manager, "a", SECOND)).collect();
        world.advance(10);
        assert_eq!(active(&manager, "a"), 2);
        manager.update_lane("a", |config| config.max_concurrency = 5).unwrap();
        world.run_until_idle();
        assert_eq!(active(&manager, "a"), 5);
        assert_eq!(status(&manager, "a").max, 5);
        manager.update_lane("a", |config| config.max_concurrency = 1).unwrap();
        world.advance(10);
        assert_eq!(active(&manager, "a"), 5, "a smaller maximum ends nothing");
        world.advance(1500);
        assert_eq!(active(&manager, "a"), 1);
        world.jump(HOUR);
        assert_idle(&manager);
        let wrong = manager.update_lane("a", |config| config.max_concurrency = 0);
        assert!(matches!(wrong, Err(LaneError::ConfigError(_))));
        assert_eq!(lane_of(&manager, "a").config().max_concurrency, 1, "the lane is as before");
    });
}

#[test]
fn a_maximum_that_changes_all_the_time_is_never_exceeded_and_strands_nobody() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(0, 6), 0)]);
        let gauge = Gauge::default();
        let tickets: Vec<_> = (0..2000)
            .map(|i| {
                if i % 10 == 0 {
                    manager.update_lane("a", |config| config.max_concurrency = 1 + i / 10 % 6).unwrap();
                }
                let gauge = gauge.clone();
                let command = move || async move {
                    let _inside = gauge.enter();
                    Ok(yield_now().await)
                };
                manager.submit_fn("a", "counted", command).unwrap()
            })
            .collect();
        for ticket in tickets {
            finish("a command is stranded", ticket).unwrap().unwrap();
        }
        assert!(gauge.highest() <= 6);
        assert_idle(&manager);
    });
}
