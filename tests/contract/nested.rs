//! Commands that submit commands and wait for them: never do they block each other, and never do more than the maximum
//! execute.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use corelane::{
    EventEmitter, Lane, LaneConfig, LaneError, QueueManagerBuilder, RateLimitConfig, Result, RetryPolicy, Simulation,
    SubmitOptions, Ticket, sleep, yield_now,
};

use crate::support::{
    Barrier, Gauge, HANG, Log, Work, World, assert_idle, attempt, block_on, eventually, finish, lane_of, manager,
    on_workers, result, status,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Tree = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

/// A command with `width` commands below it, `depth` levels of them, each level in the next lane. Counts them all.
///
/// Each is in its lane's gauge while it executes: not while it waits for others.
fn tree(lanes: Vec<(Lane, Gauge)>, level: usize, depth: usize, width: usize) -> Tree {
    Box::pin(async move {
        let (_, gauge) = &lanes[level % lanes.len()];
        let executing = gauge.enter();
        yield_now().await;
        let mut children = Vec::new();
        if depth > 0 {
            let (lane, _) = &lanes[(level + 1) % lanes.len()];
            for _ in 0..width {
                let lanes = lanes.clone();
                children.push(lane.submit_fn("child", move || tree(lanes, level + 1, depth - 1, width))?);
            }
        }
        drop(executing);
        let mut below = 0;
        for child in children {
            below += child.await.unwrap()?;
            let _executing = gauge.enter();
            yield_now().await;
        }
        Ok(below + 1)
    })
}

fn size(depth: usize, width: usize) -> u64 {
    (0..=depth).map(|level| (width as u64).pow(level as u32)).sum()
}

fn with_gauges(lanes: impl IntoIterator<Item = Lane>) -> Vec<(Lane, Gauge)> {
    lanes.into_iter().map(|lane| (lane, Gauge::default())).collect()
}

#[test]
fn a_hundred_levels_in_a_lane_that_runs_one_command_at_a_time_do_not_block() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 1), 0)]);
        let lanes = with_gauges([lane_of(&manager, "a")]);
        let root = lanes.clone();
        let ticket = manager.submit_fn("a", "root", move || tree(root, 0, 100, 1)).unwrap();
        assert_eq!(finish("a hundred levels", ticket).unwrap().unwrap(), 101);
        assert_eq!(lanes[0].1.highest(), 1, "more than one executed");
        finish("drain", manager.drain(HANG)).unwrap();
        assert_idle(&manager);
    });
}

#[test]
fn trees_of_any_shape_complete_within_the_maximum() {
    on_workers(|executor| {
        for max in 1..=4 {
            for (depth, width) in [(1, 1), (1, 8), (2, 4), (3, 3), (5, 2), (20, 1)] {
                for crossing in [false, true] {
                    let config = || LaneConfig::new(0, max);
                    let manager = manager(executor, &[("a", config(), 3), ("b", config(), 1), ("c", config(), 3)]);
                    let names: &[&str] = if crossing { &["a", "b", "c"] } else { &["a"] };
                    let lanes = with_gauges(names.iter().map(|name| lane_of(&manager, name)));
                    // Several at a time, so that they want each other's permits.
                    let tickets: Vec<_> = (0..3)
                        .map(|_| {
                            let root = lanes.clone();
                            manager.submit_fn("a", "root", move || tree(root, 0, depth, width)).unwrap()
                        })
                        .collect();
                    let shape = format!("max {max}, depth {depth}, width {width}, crossing {crossing}");
                    for ticket in tickets {
                        assert_eq!(finish(&shape, ticket).unwrap().unwrap(), size(depth, width), "{shape}");
                    }
                    for (lane, gauge) in &lanes {
                        assert!(gauge.highest() <= max, "{shape}: {} executed in {}", gauge.highest(), lane.id());
                    }
                    finish(&shape, manager.drain(HANG)).unwrap();
                    assert_idle(&manager);
                }
            }
        }
    });
}

#[test]
fn trees_complete_in_every_order_that_a_simulation_finds() {
    for seed in 0..60 {
        for workers in [1, 2, 4] {
            let mut simulation = Simulation::new(workers, seed);
            let max = 1 + seed as usize % 3;
            let lane = || LaneConfig::new(0, max);
            let manager = manager(simulation.executor(), &[("a", lane(), 2), ("b", lane(), 1)]);
            let lanes = with_gauges(["a", "b"].map(|name| lane_of(&manager, name)));
            let tickets: Vec<_> = (0..4)
                .map(|_| {
                    let root = lanes.clone();
                    manager.submit_fn("a", "root", move || tree(root, 0, 3, 2)).unwrap()
                })
                .collect();
            for ticket in tickets {
                // Panics with its seed when nothing can go on.
                assert_eq!(simulation.block_on(ticket).unwrap().unwrap(), size(3, 2));
            }
            assert!(lanes.iter().all(|(_, gauge)| gauge.highest() <= max), "seed {seed}");
            simulation.run_until_idle();
            assert_idle(&manager);
        }
    }
}

#[test]
fn a_parent_may_wait_for_several_children_at_a_time() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 2), 0)]);
        let (lane, gauge) = (lane_of(&manager, "a"), Gauge::default());
        let inside = gauge.clone();
        let parent = move || async move {
            let children: Vec<_> = (0..6u64)
                .map(|i| {
                    let gauge = inside.clone();
                    lane.submit_fn("child", move || async move {
                        let _executing = gauge.enter();
                        sleep(SECOND).await;
                        Ok(i)
                    })
                })
                .collect::<Result<_>>()?;
            let children = futures::future::join_all(children).await;
            children.into_iter().map(Result::unwrap).sum::<Result<u64>>()
        };
        let mut ticket = manager.submit_fn("a", "parent", parent).unwrap();
        world.advance(2990);
        assert!(!ticket.is_finished());
        world.advance(20);
        assert_eq!(result(&mut ticket).unwrap(), 15);
        assert_eq!(gauge.highest(), 2, "the parent's permit is used, too, and no other");
        assert_idle(&manager);
    });
}

#[test]
fn two_lanes_that_wait_for_each_other_do_not_block() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0), ("b", LaneConfig::new(1, 1), 0)]);
        let lanes = ["a", "b"].map(|name| lane_of(&manager, name));
        let cross = |own: usize| {
            let other = lanes[1 - own].clone();
            let command = move || async move {
                // Both hold their permits by now.
                sleep(SECOND).await;
                other.submit_fn("child", || async { Ok(()) })?.await.unwrap()
            };
            lanes[own].submit_fn("parent", command).unwrap()
        };
        let tickets = [cross(0), cross(1)];
        world.advance(1010);
        assert!(tickets.iter().all(Ticket::is_finished), "they wait for each other");
        assert_idle(&manager);
    });
}

#[test]
fn a_child_that_a_parent_waits_for_goes_before_what_nobody_waits_for() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0)]);
        let (lane, order) = (lane_of(&manager, "a"), Log::default());
        let log = order.clone();
        let parent = move || async move {
            log.push("parent");
            let inner = log.clone();
            let child = lane.submit_fn("child", move || async move { Ok(inner.push("child")) })?;
            child.await.unwrap()?;
            Ok(log.push("parent again"))
        };
        manager.submit_fn("a", "parent", parent).unwrap().detach();
        for _ in 0..3 {
            let order = order.clone();
            manager.submit_fn("a", "other", move || async move { Ok(order.push("other")) }).unwrap().detach();
        }
        world.run_until_idle();
        assert_eq!(order.entries(), ["parent", "child", "parent again", "other", "other", "other"]);
        assert_idle(&manager);
    });
}

#[test]
fn a_child_that_is_waited_for_goes_before_the_others_of_its_key() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 2).with_per_key(2), 0)]);
        let lane = lane_of(&manager, "a");
        let inner = lane.clone();
        let parent = move || async move {
            let options = SubmitOptions::new().key("k");
            let child = inner.submit_fn_with("child", options, || async { Ok(attempt()) })?;
            child.await.unwrap()
        };
        let mut ticket = lane.submit_fn_with("parent", SubmitOptions::new().key("k"), parent).unwrap();
        let _others: Vec<_> = (0..50)
            .map(|_| {
                let command = || async { Ok(sleep(SECOND).await) };
                lane.submit_fn_with("other", SubmitOptions::new().key("k"), command).unwrap()
            })
            .collect();
        world.advance(1010);
        assert!(ticket.is_finished(), "the child waits for fifty others");
        assert_eq!(result(&mut ticket).unwrap(), 1);
        world.jump(HOUR);
        assert_idle(&manager);
    });
}

#[test]
fn a_child_of_its_parents_key_does_not_wait_for_its_parent() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 4).with_per_key(1), 0)]);
        let lane = lane_of(&manager, "a");
        let inner = lane.clone();
        let parent = move || async move {
            let options = SubmitOptions::new().key("k");
            let child = inner.submit_fn_with("child", options, || async { Ok(7) })?;
            child.await.unwrap()
        };
        let mut ticket = lane.submit_fn_with("parent", SubmitOptions::new().key("k"), parent).unwrap();
        world.jump(HOUR);
        assert!(ticket.is_finished(), "parent and child wait for each other");
        assert_eq!(result(&mut ticket).unwrap(), 7);
        assert_idle(&manager);
    });
}

#[test]
fn trees_of_one_key_complete_on_real_executors() {
    fn nest(lane: Lane, depth: u32) -> Pin<Box<dyn Future<Output = Result<u32>> + Send>> {
        Box::pin(async move {
            yield_now().await;
            if depth == 0 {
                return Ok(0);
            }
            let inner = lane.clone();
            let options = SubmitOptions::new().key(7);
            let child = lane.submit_fn_with("child", options, move || nest(inner, depth - 1))?;
            Ok(child.await.unwrap()? + 1)
        })
    }
    on_workers(|executor| {
        for per_key in [1, 2] {
            let manager = manager(executor, &[("a", LaneConfig::new(1, 2).with_per_key(per_key), 0)]);
            let lane = lane_of(&manager, "a");
            let tickets: Vec<_> = (0..10)
                .map(|_| {
                    let inner = lane.clone();
                    lane.submit_fn_with("root", SubmitOptions::new().key(7), move || nest(inner, 10)).unwrap()
                })
                .collect();
            for ticket in tickets {
                assert_eq!(finish("a tree of one key", ticket).unwrap().unwrap(), 10);
            }
            finish("drain", manager.drain(HANG)).unwrap();
            assert_idle(&manager);
        }
    });
}

#[test]
fn children_keep_to_the_rate_of_their_lane() {
    World::each(|mut world| {
        let config = LaneConfig::new(1, 1).with_rate_limit(RateLimitConfig::per_second(10).with_burst(1));
        let manager = world.manager(&[("a", config, 0)]);
        let (lane, starts, clock) = (lane_of(&manager, "a"), Log::default(), world.clock());
        let log = starts.clone();
        let parent = move || async move {
            for _ in 0..4 {
                let (log, clock) = (log.clone(), clock.clone());
                let child = lane.submit_fn("child", move || async move { Ok(log.push(clock.now())) })?;
                child.await.unwrap()?;
            }
            Ok(())
        };
        let ticket = manager.submit_fn("a", "parent", parent).unwrap();
        world.advance(1000);
        assert!(ticket.is_finished(), "{:?}", starts.entries());
        let starts = starts.entries();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 99), "{starts:?}");
        assert!(starts[0] >= 99, "the parent has taken its share: {starts:?}");
        assert_idle(&manager);
    });
}

#[test]
fn trees_complete_in_a_queue_whose_lanes_share_a_limit() {
    on_workers(|executor| {
        for limit in [1, 2, 5] {
            let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(executor.clone());
            let config = || LaneConfig::new(0, 2);
            let builder = builder.with_lane("a", config(), 1).with_lane("b", config(), 0).with_lane("c", config(), 2);
            let manager = block_on(builder.with_max_in_flight(limit).build()).unwrap();
            block_on(manager.start()).unwrap();
            let lanes = with_gauges(["a", "b", "c"].map(|name| lane_of(&manager, name)));
            let tickets: Vec<_> = (0..4)
                .map(|_| {
                    let root = lanes.clone();
                    manager.submit_fn("a", "root", move || tree(root, 0, 4, 2)).unwrap()
                })
                .collect();
            for ticket in tickets {
                let all = finish(&format!("a tree under a limit of {limit}"), ticket).unwrap().unwrap();
                assert_eq!(all, size(4, 2));
            }
            finish("drain", manager.drain(HANG)).unwrap();
            assert!(lanes.iter().all(|(_, gauge)| gauge.highest() <= 2));
            assert_idle(&manager);
        }
    });
}

#[test]
fn a_parent_that_times_out_or_is_cancelled_while_it_waits_leaves_its_permit_and_its_childs() {
    World::each(|mut world| {
        for cancel in [false, true] {
            let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0)]);
            let lane = lane_of(&manager, "a");
            let parent =
                move || async move { lane.submit_fn("child", || async { Ok(sleep(HOUR).await) })?.await.unwrap() };
            let options = SubmitOptions::new().timeout(SECOND);
            let mut ticket = lane_of(&manager, "a").submit_fn_with("parent", options, parent).unwrap();
            world.advance(500);
            assert_eq!(status(&manager, "a").active, 1);
            if cancel {
                assert!(ticket.cancel());
                world.run_until_idle();
            } else {
                world.advance(501);
                assert!(matches!(result(&mut ticket), Err(LaneError::Timeout(_))));
            }
            assert_idle(&manager);
            let next: Vec<_> = (0..3).map(|_| manager.submit_fn("a", "next", || async { Ok(()) }).unwrap()).collect();
            world.run_until_idle();
            assert!(next.iter().all(Ticket::is_finished), "a permit is gone");
        }
    });
}

#[test]
fn a_parent_whose_child_fails_is_retried_with_a_child_of_its_own() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(2, SECOND).without_jitter();
        let manager = world.manager(&[("a", LaneConfig::new(1, 1).with_retry_policy(policy), 0)]);
        let lane = lane_of(&manager, "a");
        let parent = Work(move || {
            let lane = lane.clone();
            async move {
                let own = attempt();
                let child = lane.submit_fn("child", move || async move {
                    if own < 3 { Err(LaneError::Other("no".into())) } else { Ok(own) }
                })?;
                child.await.unwrap()
            }
        });
        let mut ticket = manager.submit_typed("a", parent).unwrap();
        world.advance(2100);
        assert_eq!(result(&mut ticket).unwrap(), 3);
        assert_idle(&manager);
    });
}

#[test]
fn waiting_for_a_ticket_that_was_not_ones_own_submission_lends_the_permit_too() {
    World::each(|mut world| {
        let manager = world.manager(&[("a", LaneConfig::new(1, 1), 0)]);
        // Held back, so that the one that waits for it comes first.
        manager.pause("a").unwrap();
        let later = Log::default();
        let hold: std::sync::Arc<std::sync::Mutex<Option<Ticket<u32>>>> = std::sync::Arc::default();
        let (slot, log) = (hold.clone(), later.clone());
        let waits = move || async move {
            let ticket = slot.lock().unwrap().take().unwrap();
            let value = ticket.await.unwrap()?;
            Ok(log.push(value))
        };
        let ticket = manager.submit_fn("a", "waits", waits).unwrap();
        *hold.lock().unwrap() = Some(manager.submit_fn("a", "other", || async { Ok(9) }).unwrap());
        manager.resume("a").unwrap();
        world.run_until_idle();
        assert!(ticket.is_finished());
        assert_eq!(later.entries(), [9]);
        assert_idle(&manager);
    });
}

/// Ten thousand background commands are in line when an urgent command waits for one more.
#[test]
fn what_an_urgent_command_waits_for_overtakes_the_background() {
    const BACKGROUND: usize = 10_000;
    on_workers(|executor| {
        let lanes = [("urgent", LaneConfig::new(1, 2), 0), ("background", LaneConfig::new(1, 2), 30)];
        let manager = manager(executor, &lanes);
        let (go_on, ran) = (Barrier::default(), Gauge::default());
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // The lane's permits are held until all are in line.
        let holders: Vec<_> = (0..2)
            .map(|_| {
                let (passed, ran) = (go_on.clone(), ran.clone());
                let hold = move || async move {
                    let _inside = ran.enter();
                    Ok(passed.passed().await)
                };
                manager.submit_fn("background", "holds", hold).unwrap()
            })
            .collect();
        eventually("the background is held", || ran.now() == 2);
        for _ in 0..BACKGROUND {
            let count = count.clone();
            let command = move || async move {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Ok(())
            };
            manager.submit_fn("background", "background", command).unwrap().detach();
        }
        let (background, before) = (lane_of(&manager, "background"), count.clone());
        let urgent = move || async move {
            let mut child = background
                .submit_fn("awaited", move || async move { Ok(before.load(std::sync::atomic::Ordering::SeqCst)) })?;
            // Awaited before the background may go on: this thread may be interrupted in between.
            assert!(futures::poll!(&mut child).is_pending());
            go_on.open();
            child.await.unwrap()
        };
        let ticket = manager.submit_fn("urgent", "urgent", urgent).unwrap();
        let before = finish("the urgent command", ticket).unwrap().unwrap();
        assert!(before < BACKGROUND / 10, "{before} background commands ran before what was waited for");
        for holder in holders {
            finish("a holder", holder).unwrap().unwrap();
        }
        finish("drain", manager.drain(HANG)).unwrap();
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), BACKGROUND);
        assert_idle(&manager);
    });
}
