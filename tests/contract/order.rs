//! What runs before what.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use corelane::{LaneConfig, Simulation, yield_now};

use crate::support::{Barrier, block_on, eventually, manager, on_workers};

#[test]
fn the_best_priority_runs_next_whichever_worker_has_it() {
    for workers in [1, 2, 4] {
        for seed in 0..50 {
            let mut simulation = Simulation::new(workers, seed);
            let order = Arc::new(Mutex::new(Vec::new()));
            for i in 0..100u8 {
                let priority = i.wrapping_mul(37) % 64;
                let order = Arc::clone(&order);
                simulation.executor().spawn(priority, async move { order.lock().unwrap().push(priority) }).detach();
            }
            simulation.run_until_idle();
            let order = order.lock().unwrap();
            assert_eq!(order.len(), 100);
            assert!(order.is_sorted(), "seed {seed}, {workers} workers: {order:?}");
        }
    }
}

#[test]
fn better_work_of_a_running_task_comes_first_too() {
    for workers in [1, 2, 4] {
        for seed in 0..20 {
            let mut simulation = Simulation::new(workers, seed);
            let order = Arc::new(Mutex::new(Vec::new()));
            let (executor, log) = (simulation.executor().clone(), Arc::clone(&order));
            let submitter = simulation.executor().spawn(20, async move {
                for priority in [40, 30, 10, 0, 5] {
                    let log = Arc::clone(&log);
                    executor.spawn(priority, async move { log.lock().unwrap().push(priority) }).detach();
                }
            });
            simulation.block_on(submitter).unwrap();
            simulation.run_until_idle();
            assert_eq!(*order.lock().unwrap(), [0, 5, 10, 30, 40], "seed {seed}, {workers} workers");
        }
    }
}

#[test]
fn equal_priorities_take_turns() {
    let mut simulation = Simulation::new(1, 1);
    let order = Arc::new(Mutex::new(Vec::new()));
    for name in 0..3 {
        let order = Arc::clone(&order);
        let task = async move {
            for _ in 0..4 {
                order.lock().unwrap().push(name);
                yield_now().await;
            }
        };
        simulation.executor().spawn(7, task).detach();
    }
    simulation.run_until_idle();
    let order = order.lock().unwrap();
    for round in order.chunks(3) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2], "{order:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut simulation = Simulation::new(4, seed);
        let order = Arc::new(Mutex::new(Vec::new()));
        for name in 0..50 {
            let order = Arc::clone(&order);
            let task = async move {
                for _ in 0..3 {
                    order.lock().unwrap().push(name);
                    yield_now().await;
                }
            };
            simulation.executor().spawn(3, task).detach();
        }
        simulation.run_until_idle();
        std::mem::take(&mut *order.lock().unwrap())
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12), "the seed decides nothing");
}

/// The guarantee of strict priority, with one poll at a time: nothing lower starts once a better command is visible.
/// (With threads, each worker may have chosen one lower command before; `loom-tests/ready.rs` covers the visibility.)
#[test]
fn no_lower_command_starts_once_a_better_one_is_visible() {
    for workers in [1, 2, 4] {
        for seed in 0..20 {
            let mut simulation = Simulation::new(workers, seed);
            let lanes = [("control", LaneConfig::new(1, 4), 1), ("bulk", LaneConfig::new(1, 50), 5)];
            let manager = manager(simulation.executor(), &lanes);
            let starts = Arc::new(AtomicUsize::new(0));
            for _ in 0..500 {
                let starts = Arc::clone(&starts);
                let command = move || async move { Ok(starts.fetch_add(1, Ordering::SeqCst)) };
                manager.submit_fn("bulk", "low", command).unwrap().detach();
            }
            for between in 0..30 {
                (0..between).for_each(|_| assert!(simulation.step()));
                let (seen, before) = (Arc::clone(&starts), starts.load(Ordering::SeqCst));
                let high = manager.submit_fn("control", "high", move || async move { Ok(seen.load(Ordering::SeqCst)) });
                assert!(simulation.step());
                let high = high.unwrap();
                assert!(high.is_finished(), "seed {seed}, {workers} workers: something else ran first");
                assert_eq!(block_on(high).unwrap().unwrap(), before);
            }
        }
    }
}

#[test]
fn control_does_not_wait_for_the_queue_of_a_lower_lane() {
    on_workers(|executor| {
        let lanes = [("control", LaneConfig::new(1, 3), 1), ("prompt", LaneConfig::new(1, 2), 5)];
        let manager = manager(executor, &lanes);
        let go = Barrier::default();
        let running = Arc::new(AtomicUsize::new(0));
        // Prompts wait without blocking, as one for an answer from the network does.
        let prompts: Vec<_> = (0..100)
            .map(|_| {
                let (go, running) = (go.clone(), Arc::clone(&running));
                let prompt = move || async move {
                    running.fetch_add(1, Ordering::SeqCst);
                    go.passed().await;
                    Ok(())
                };
                manager.submit_fn("prompt", "prompt", prompt).unwrap()
            })
            .collect();
        eventually("prompts run", || running.load(Ordering::SeqCst) == 2);
        let pause = manager.submit_fn("control", "pause", || async { Ok("paused") }).unwrap();
        assert_eq!(block_on(pause).unwrap().unwrap(), "paused");
        assert_eq!(running.load(Ordering::SeqCst), 2);
        go.open();
        prompts.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
    });
}

#[test]
fn commands_of_a_lane_start_in_the_order_of_submission() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(1, seed);
        let manager = manager(simulation.executor(), &[("lane", LaneConfig::new(1, 3), 0)]);
        let order = Arc::new(Mutex::new(Vec::new()));
        for i in 0..50 {
            let order = Arc::clone(&order);
            let command = move || async move {
                order.lock().unwrap().push(i);
                yield_now().await;
                Ok(())
            };
            manager.submit_fn("lane", "ordered", command).unwrap().detach();
        }
        simulation.run_until_idle();
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn lanes_of_equal_priority_share_fairly() {
    let mut simulation = Simulation::new(2, 3);
    let lanes = [("a", LaneConfig::new(1, 2), 3), ("b", LaneConfig::new(1, 2), 3)];
    let manager = manager(simulation.executor(), &lanes);
    let order = Arc::new(Mutex::new(Vec::new()));
    for lane in ["a", "b"] {
        for _ in 0..100 {
            let order = Arc::clone(&order);
            let command = move || async move {
                order.lock().unwrap().push(lane);
                Ok(())
            };
            manager.submit_fn(lane, "turn", command).unwrap().detach();
        }
    }
    simulation.run_until_idle();
    let order = order.lock().unwrap();
    assert_eq!(order.len(), 200);
    for (i, window) in order.windows(20).take(180).enumerate() {
        let a = window.iter().filter(|lane| **lane == "a").count();
        assert!((5..=15).contains(&a), "at {i}: {window:?}");
    }
}

#[test]
fn sleep_in_a_simulations_root_future_takes_virtual_time() {
    let mut simulation = Simulation::new(2, 4);
    simulation.block_on(async { corelane::sleep(std::time::Duration::from_secs(86_400)).await });
    assert!(simulation.now() >= std::time::Duration::from_secs(86_400));
}

#[test]
#[should_panic(expected = "seed 4 is stuck")]
fn a_simulation_that_can_not_go_on_says_so_with_its_seed() {
    let mut simulation = Simulation::new(1, 4);
    let never = async { corelane::timeout(std::time::Duration::MAX, std::future::pending::<()>()).await };
    let never = simulation.executor().spawn(0, never);
    let _ = simulation.block_on(never);
}

#[test]
fn better_lone_tasks_of_blocked_workers_are_taken_by_a_busy_one() {
    let executor = crate::support::executor(4);
    for _ in 0..20 {
        let (go, blocked) = (Barrier::default(), crate::support::Gauge::default());
        let ran = Arc::new(AtomicUsize::new(0));
        // Three workers each leave a woken task behind and block; the fourth has to see to all three.
        let blocking: Vec<_> = (0..3)
            .map(|_| {
                let (go, blocked, ran, inner) = (go.clone(), blocked.clone(), Arc::clone(&ran), executor.clone());
                executor.spawn(5, async move {
                    let (wake, woken) = futures::channel::oneshot::channel::<()>();
                    let task = inner.spawn(5, async move {
                        woken.await.ok();
                        ran.fetch_add(1, Ordering::SeqCst);
                    });
                    yield_now().await;
                    let _inside = blocked.enter();
                    wake.send(()).ok();
                    go.wait();
                    task.await.unwrap();
                })
            })
            .collect();
        eventually("three blocked", || blocked.now() == 3);
        // A fourth worker that is awake, since a lone woken task does not wake a sleeper.
        let awake = executor.spawn(40, {
            let ran = Arc::clone(&ran);
            async move {
                while ran.load(Ordering::SeqCst) < 3 {
                    yield_now().await;
                }
            }
        });
        block_on(awake).unwrap();
        go.open();
        blocking.into_iter().for_each(|task| block_on(task).unwrap());
    }
}
