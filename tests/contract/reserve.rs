//! Workers that are reserved for the best priorities. Nobody watches them here: the watch would make up for a lost wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{Executor, ExecutorBuilder, LaneConfig, sleep, yield_now};

use crate::support::{Barrier, eventually, finish, manager};

fn builder(workers: usize, reserved: usize, priority: u8) -> ExecutorBuilder {
    Executor::builder().workers(workers).pin(false).reserve(reserved, priority).stuck_after(None)
}

/// Runs a test on executors whose last workers are reserved for priorities 0 and 1.
fn on_reserved(test: impl Fn(&Executor, usize)) {
    for (workers, reserved) in [(2, 1), (3, 1), (4, 2)] {
        test(&builder(workers, reserved, 1).build().unwrap(), reserved);
    }
}

/// The number of the worker that this runs on.
fn this_worker() -> usize {
    let name = std::thread::current().name().map(str::to_owned).unwrap_or_default();
    name.strip_prefix("corelane-").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name:?}"))
}

/// Blocks this many workers at once by tasks of a priority.
fn block(executor: &Executor, workers: usize, priority: u8) -> (Barrier, Vec<corelane::Task<()>>) {
    let (go, blocked) = (Barrier::default(), Arc::new(AtomicUsize::new(0)));
    let tasks = (0..workers)
        .map(|_| {
            let (go, blocked) = (go.clone(), Arc::clone(&blocked));
            executor.spawn(priority, async move {
                blocked.fetch_add(1, Ordering::SeqCst);
                go.wait();
            })
        })
        .collect();
    eventually("they are blocked", || blocked.load(Ordering::SeqCst) == workers);
    (go, tasks)
}

#[test]
fn a_top_command_starts_while_all_other_workers_are_in_long_polls() {
    on_reserved(|executor, reserved| {
        let manager = manager(executor, &[("control", LaneConfig::new(1, 4), 0), ("bulk", LaneConfig::new(1, 100), 9)]);
        for _ in 0..20 {
            let (go, tasks) = block(executor, executor.workers() - reserved, 9);
            // What else waits does not keep it out.
            let bulk: Vec<_> =
                (0..10).map(|_| manager.submit_fn("bulk", "bulk", || async { Ok(this_worker()) }).unwrap()).collect();
            let control = manager.submit_fn("control", "opens", move || async move {
                go.open();
                Ok(this_worker())
            });
            let worker = finish("the top command", control.unwrap()).unwrap().unwrap();
            assert!(worker >= executor.workers() - reserved);
            tasks.into_iter().for_each(|task| finish("a long poll", task).unwrap());
            for ticket in bulk {
                assert!(finish("bulk", ticket).unwrap().unwrap() < executor.workers() - reserved);
            }
        }
    });
}

#[test]
fn other_work_never_runs_on_a_reserved_worker() {
    on_reserved(|executor, reserved| {
        let first = executor.workers() - reserved;
        let on_reserved = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for producer in 0..4u8 {
                let on_reserved = &on_reserved;
                scope.spawn(move || {
                    for i in 0..150u8 {
                        let priority = (producer + i) % 5;
                        let (inner, on_reserved) = (executor.clone(), Arc::clone(on_reserved));
                        let check = move |priority: u8| {
                            if this_worker() >= first {
                                on_reserved.fetch_add(1, Ordering::Relaxed);
                                assert!(priority <= 1, "priority {priority} on a reserved worker");
                            }
                        };
                        let task = executor.spawn(priority, async move {
                            check(priority);
                            yield_now().await;
                            check(priority);
                            // Spawned, woken and awaited from wherever this runs.
                            for child in [0, 4, 1, 2] {
                                let checks = check.clone();
                                let child = inner.spawn(child, async move {
                                    checks(child);
                                    yield_now().await;
                                    checks(child);
                                });
                                child.await.unwrap();
                                check(priority);
                            }
                            sleep(Duration::from_micros(50)).await;
                            check(priority);
                        });
                        if i % 3 == 0 { task.detach() } else { finish("a task", task).unwrap() }
                    }
                });
            }
        });
        assert!(on_reserved.load(Ordering::Relaxed) > 0, "the reserved workers do nothing");
    });
}

#[test]
fn top_work_goes_to_the_others_when_the_reserved_workers_are_busy() {
    on_reserved(|executor, reserved| {
        for _ in 0..100 {
            // Of these, one at least is not on a reserved worker.
            let (go, tasks) = block(executor, reserved + 1, 0);
            go.open();
            tasks.into_iter().for_each(|task| finish("a top task", task).unwrap());
        }
    });
}

#[test]
fn work_that_comes_up_on_a_reserved_worker_takes_turns_with_the_rest() {
    on_reserved(|executor, reserved| {
        let first = executor.workers() - reserved;
        let stop = Arc::new(AtomicBool::new(false));
        // The others always have work of this priority themselves.
        let endless: Vec<_> = (0..2 * first)
            .map(|_| {
                let stop = Arc::clone(&stop);
                executor.spawn(9, async move {
                    while !stop.load(Ordering::SeqCst) {
                        yield_now().await;
                    }
                })
            })
            .collect();
        eventually("a reserved worker has spawned what ends them", || {
            let (inner, stop) = (executor.clone(), Arc::clone(&stop));
            let top = executor.spawn(0, async move {
                let here = this_worker() >= first;
                if here {
                    inner.spawn(9, async move { stop.store(true, Ordering::SeqCst) }).detach();
                }
                here
            });
            finish("a top task", top).unwrap()
        });
        endless.into_iter().for_each(|task| finish("the rest", task).unwrap());
    });
}

#[test]
fn no_wake_up_is_lost_between_the_groups() {
    on_reserved(|executor, _| {
        let ran = Arc::new(AtomicUsize::new(0));
        let (producers, rounds) = (4, 300);
        std::thread::scope(|scope| {
            for producer in 0..producers {
                let ran = &ran;
                scope.spawn(move || {
                    // Each waits for its own, so that the workers sleep and wake all the time.
                    for i in 0..rounds {
                        let (inner, counting) = (executor.clone(), Arc::clone(ran));
                        let (outer, child) = [(0, 9), (9, 0), (9, 9), (0, 0)][(producer + i) % 4];
                        let task = executor.spawn(outer, async move {
                            let counter = Arc::clone(&counting);
                            inner.spawn(child, async move { counter.fetch_add(1, Ordering::SeqCst) }).await.unwrap();
                            counting.fetch_add(1, Ordering::SeqCst);
                        });
                        finish("a task", task).unwrap();
                        if i % 50 == 0 {
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                });
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 2 * producers * rounds);
    });
}

#[test]
fn a_spare_runs_what_reserved_workers_may_not() {
    for (workers, reserved) in [(2, 1), (4, 2)] {
        let watched = builder(workers, reserved, 1).stuck_after(Duration::from_millis(5)).build().unwrap();
        let (go, tasks) = block(&watched, workers - reserved, 9);
        let opens = watched.spawn(9, async move {
            go.open();
            std::thread::current().name().map(str::to_owned)
        });
        assert_eq!(finish("bulk behind stuck polls", opens).unwrap().as_deref(), Some("corelane-spare-0"));
        tasks.into_iter().for_each(|task| finish("a stuck poll", task).unwrap());
    }
}

#[test]
fn a_reservation_must_leave_a_worker_and_name_a_priority() {
    for (workers, reserved) in [(1, 1), (2, 2), (2, 9)] {
        let text = builder(workers, reserved, 64).build().unwrap_err().to_string();
        assert!(text.contains("reserve.workers") && text.contains(&format!("at most {}", workers - 1)), "{text}");
        assert!(text.contains("reserve.priority") && text.contains("63"), "{text}");
    }
    assert_eq!(builder(2, 0, 0).build().unwrap().workers(), 2);
}
