//! The executor on its own.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corelane::{Executor, TaskError, should_yield, sleep, timeout, yield_now};

use crate::support::{Barrier, HANG, block_on, eventually, executor, on_workers};

#[test]
fn every_task_runs_once_and_returns_its_value() {
    on_workers(|executor| {
        let runs = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..5000u64)
            .map(|i| {
                let runs = Arc::clone(&runs);
                executor.spawn((i % 64) as u8, async move {
                    if i % 3 == 0 {
                        yield_now().await;
                    }
                    runs.fetch_add(1, Ordering::Relaxed);
                    i
                })
            })
            .collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(block_on(task).unwrap(), i as u64);
        }
        assert_eq!(runs.load(Ordering::Relaxed), 5000);
    });
}

#[test]
fn tasks_spawned_by_tasks_all_run() {
    on_workers(|executor| {
        let inner = executor.clone();
        let sum = executor.spawn(3, async move {
            let tasks: Vec<_> = (0..1000u64).map(|i| inner.spawn(3, async move { i })).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            sum
        });
        assert_eq!(block_on(sum).unwrap(), 999 * 1000 / 2);
    });
}

#[test]
fn a_panic_is_the_tasks_result_and_nobody_elses() {
    on_workers(|executor| {
        let panics = executor.spawn(0, async { panic!("on purpose") });
        let error: TaskError = block_on(panics).unwrap_err();
        let TaskError::Panicked(payload) = error else { panic!("{error:?}") };
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(block_on(executor.spawn(0, async { 1 })).unwrap(), 1);
    });
}

#[test]
fn a_panicking_destructor_is_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("destructor on purpose");
        }
    }
    on_workers(|executor| {
        // Of the future, after it is ready.
        let bomb = Bomb;
        let task = executor.spawn(0, async move {
            let _held = &bomb;
        });
        assert!(matches!(block_on(task), Err(TaskError::Panicked(_))));
        // Of a future that is cancelled.
        let bomb = Bomb;
        let task = executor.spawn(0, async move {
            let _held = &bomb;
            std::future::pending::<()>().await;
        });
        assert!(matches!(block_on(task.cancel()), Err(TaskError::Cancelled)));
        // Of an output that nobody takes.
        executor.spawn(0, async { std::mem::ManuallyDrop::into_inner(std::mem::ManuallyDrop::new(Bomb)) }).detach();
        assert_eq!(block_on(executor.spawn(63, async { 1 })).unwrap(), 1);
    });
}

#[test]
fn dropping_a_handle_detaches_and_the_task_runs() {
    on_workers(|executor| {
        let done = Barrier::default();
        let opener = done.clone();
        drop(executor.spawn(0, async move {
            yield_now().await;
            opener.open();
        }));
        done.wait();
    });
}

#[test]
fn cancel_drops_a_waiting_future_and_says_so() {
    on_workers(|executor| {
        let dropped = Arc::new(AtomicBool::new(false));
        struct OnDrop(Arc<AtomicBool>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let guard = OnDrop(Arc::clone(&dropped));
        let task = executor.spawn(0, async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        assert!(matches!(block_on(task.cancel()), Err(TaskError::Cancelled)));
        assert!(dropped.load(Ordering::SeqCst), "cancel returned before the future was dropped");
    });
}

#[test]
fn cancel_of_a_finished_task_gives_its_value() {
    on_workers(|executor| {
        let task = executor.spawn(0, async { 7 });
        eventually("finished", || task.is_finished());
        assert_eq!(block_on(task.cancel()).unwrap(), 7);
    });
}

#[test]
fn cancel_takes_effect_even_if_its_future_is_not_polled() {
    on_workers(|executor| {
        let guard = Arc::new(());
        let held = Arc::clone(&guard);
        let task = executor.spawn(0, async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(task.cancel());
        eventually("dropped", || Arc::strong_count(&guard) == 1);
    });
}

#[test]
fn sleep_never_ends_early() {
    on_workers(|executor| {
        let tasks: Vec<_> = (1..20u64)
            .map(|ms| {
                executor.spawn(0, async move {
                    let begun = Instant::now();
                    sleep(Duration::from_millis(ms)).await;
                    (begun.elapsed(), Duration::from_millis(ms))
                })
            })
            .collect();
        for task in tasks {
            let (slept, asked) = block_on(task).unwrap();
            assert!(slept >= asked, "slept {slept:?} of {asked:?}");
        }
    });
}

#[test]
fn sleep_works_outside_of_any_executor() {
    let begun = Instant::now();
    block_on(sleep(Duration::from_millis(5)));
    assert!(begun.elapsed() >= Duration::from_millis(5));
}

#[test]
fn timeout_gives_up_a_future_and_lets_a_ready_one_win() {
    on_workers(|executor| {
        let task = executor.spawn(0, async {
            let late = timeout(Duration::from_millis(2), std::future::pending::<()>()).await;
            let ready = timeout(Duration::ZERO, async { 5 }).await;
            (late.is_err(), ready)
        });
        assert_eq!(block_on(task).unwrap(), (true, Ok(5)));
    });
}

#[test]
fn a_huge_duration_means_never() {
    let executor = executor(1);
    let task = executor.spawn(0, async { timeout(Duration::MAX, yield_now()).await });
    assert_eq!(block_on(task).unwrap(), Ok(()));
}

#[test]
fn should_yield_is_true_when_better_work_waits() {
    on_workers(|executor| {
        let workers = executor.workers();
        let (running, go) = (Arc::new(AtomicUsize::new(0)), Barrier::default());
        // All workers are busy with lower work, so the better task has to wait.
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (running, go) = (Arc::clone(&running), go.clone());
                executor.spawn(9, async move {
                    let before = should_yield();
                    running.fetch_add(1, Ordering::SeqCst);
                    go.wait();
                    (before, should_yield())
                })
            })
            .collect();
        eventually("all workers busy", || running.load(Ordering::SeqCst) == workers);
        let better = executor.spawn(1, async {});
        go.open();
        let answers: Vec<_> = tasks.into_iter().map(|task| block_on(task).unwrap()).collect();
        assert!(answers.iter().any(|(_, after)| *after), "{answers:?}");
        block_on(better).unwrap();
    });
    assert!(!should_yield(), "outside of a worker");
}

#[test]
fn shutdown_waits_for_tasks_and_ends_the_threads() {
    on_workers(|executor| {
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let done = Arc::clone(&done);
            executor
                .spawn(5, async move {
                    sleep(Duration::from_millis(3)).await;
                    done.fetch_add(1, Ordering::SeqCst);
                })
                .detach();
        }
        let report = block_on(executor.shutdown(HANG));
        assert_eq!((report.unfinished, report.busy_workers), (0, 0));
        assert_eq!(done.load(Ordering::SeqCst), 100);
        // And again.
        let report = block_on(executor.shutdown(HANG));
        assert_eq!((report.unfinished, report.busy_workers), (0, 0));
    });
}

#[test]
fn shutdown_cancels_what_does_not_finish_in_time() {
    on_workers(|executor| {
        let stuck = executor.spawn(5, std::future::pending::<()>());
        let sleeping = executor.spawn(5, sleep(HANG));
        let report = block_on(executor.shutdown(Duration::from_millis(20)));
        assert_eq!(report.unfinished, 2);
        assert!(matches!(block_on(stuck), Err(TaskError::Cancelled)));
        assert!(matches!(block_on(sleeping), Err(TaskError::Cancelled)));
    });
}

#[test]
fn a_task_spawned_after_shutdown_is_cancelled() {
    on_workers(|executor| {
        block_on(executor.shutdown(HANG));
        assert!(matches!(block_on(executor.spawn(0, async {})), Err(TaskError::Cancelled)));
    });
}

#[test]
fn dropping_the_last_handle_cancels_tasks_and_wakers_stay_harmless() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let (waker, woken) = futures::channel::oneshot::channel::<()>();
        let waiting = executor.spawn(0, async move { woken.await.is_ok() });
        block_on(executor.spawn(63, async {})).unwrap();
        drop(executor);
        // The waker outlives the executor.
        let _ = waker.send(());
        assert!(matches!(block_on(waiting), Err(TaskError::Cancelled)));
    }
}

#[test]
fn an_idle_executor_does_not_wake_up() {
    on_workers(|executor| {
        for i in 0..100 {
            block_on(executor.spawn(i % 64, sleep(Duration::from_millis(1)))).unwrap();
        }
        eventually("all workers sleep", || {
            let before = executor.worker_stats();
            std::thread::sleep(Duration::from_millis(20));
            executor.worker_stats() == before
        });
        let parks = |executor: &Executor| executor.worker_stats().iter().map(|worker| worker.parks).sum::<u64>();
        let before = parks(executor);
        // Real time, since the absence of wake-ups is what is tested.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(parks(executor), before);
    });
}

#[test]
#[should_panic(expected = "block_on on a worker thread")]
fn block_on_refuses_to_block_a_worker() {
    let executor = executor(1);
    let inner = executor.clone();
    let task = executor.spawn(0, async move { inner.block_on(async {}) });
    match block_on(task) {
        Err(TaskError::Panicked(payload)) => std::panic::resume_unwind(payload),
        other => panic!("{other:?}"),
    }
}

#[test]
fn zero_and_too_many_workers_are_refused_with_a_hint() {
    for workers in [0, 57, usize::MAX] {
        let error = Executor::builder().workers(workers).build().unwrap_err().to_string();
        assert!(error.contains("workers") && error.contains("1 to 56"), "{error}");
    }
}

#[test]
fn a_timer_set_from_outside_wakes_a_sleeping_worker() {
    on_workers(|executor| {
        // Made on a worker, polled by this thread: set from outside.
        let made = |ms| async move { [sleep(Duration::from_millis(ms))] };
        let [far] = block_on(executor.spawn(0, made(30))).unwrap();
        let [near] = block_on(executor.spawn(0, made(5))).unwrap();
        block_on(async {
            futures::join!(far, near);
        });
    });
}

#[test]
fn many_threads_spawning_at_once_lose_nothing() {
    on_workers(|executor| {
        let ran = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for producer in 0..8u8 {
                let ran = Arc::clone(&ran);
                scope.spawn(move || {
                    for i in 0..500u32 {
                        let ran = Arc::clone(&ran);
                        let task = executor.spawn(producer * 8 + (i % 8) as u8, async move {
                            ran.fetch_add(1, Ordering::Relaxed);
                        });
                        if i % 2 == 0 { task.detach() } else { block_on(task).unwrap() }
                    }
                });
            }
        });
        eventually("all ran", || ran.load(Ordering::Relaxed) == 8 * 500);
    });
}

#[test]
fn a_cancelled_timer_does_not_hide_a_later_one() {
    on_workers(|executor| {
        let made = |ms| async move { [sleep(Duration::from_millis(ms))] };
        for _ in 0..5 {
            // Set and cancelled from outside, while the workers sleep.
            let [early] = block_on(executor.spawn(0, made(10))).unwrap();
            let [late] = block_on(executor.spawn(0, made(20))).unwrap();
            block_on(async {
                futures::pin_mut!(early);
                assert!(futures::poll!(early).is_pending());
            });
            block_on(late);
        }
    });
}

#[test]
fn a_task_that_sleeps_in_a_loop_ends_when_its_executor_closes() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let held = Arc::new(());
        let holding = Arc::clone(&held);
        let rounds = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&rounds);
        let looping = async move {
            let _holding = holding;
            loop {
                // Most of the time it is here, in a poll, when the executor closes.
                std::thread::sleep(Duration::from_millis(3));
                counting.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_micros(10)).await;
            }
        };
        executor.spawn::<_>(0, looping).detach();
        eventually("it runs", || rounds.load(Ordering::SeqCst) > 1);
        drop(executor);
        eventually("it ended", || Arc::strong_count(&held) == 1);
    }
}

#[test]
fn tasks_that_keep_yielding_do_not_keep_out_those_that_wait_outside() {
    on_workers(|executor| {
        let polled = Arc::new(AtomicUsize::new(0));
        let all = 40 * executor.workers();
        let tasks: Vec<_> = (0..all)
            .map(|_| {
                let polled = Arc::clone(&polled);
                executor.spawn(7, async move {
                    polled.fetch_add(1, Ordering::SeqCst);
                    while polled.load(Ordering::SeqCst) < all {
                        yield_now().await;
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
    });
}

#[test]
fn waking_a_task_of_a_closed_executor_under_a_lock_that_its_destructor_takes_does_not_deadlock() {
    struct TakesLock(Arc<std::sync::Mutex<Option<std::task::Waker>>>);
    impl Drop for TakesLock {
        fn drop(&mut self) {
            drop(self.0.lock());
        }
    }
    let executor = executor(1);
    let shared = Arc::new(std::sync::Mutex::new(None));
    let guard = TakesLock(Arc::clone(&shared));
    let waiting = executor.spawn(0, async move {
        let guard = guard;
        std::future::poll_fn(|cx| {
            *guard.0.lock().unwrap() = Some(cx.waker().clone());
            std::task::Poll::<()>::Pending
        })
        .await;
    });
    eventually("it waits", || shared.lock().unwrap().is_some());
    let (go, running) = (Barrier::default(), Barrier::default());
    let (blocking, signal) = (go.clone(), running.clone());
    let blocks = executor.spawn(0, async move {
        signal.open();
        blocking.wait();
    });
    running.wait();
    let report = block_on(executor.shutdown(Duration::from_millis(5)));
    assert_eq!(report.busy_workers, 1);
    let waker = shared.lock().unwrap();
    waker.as_ref().unwrap().wake_by_ref();
    drop(waker);
    go.open();
    assert!(block_on(waiting).is_err());
    block_on(blocks).unwrap();
}

#[test]
fn a_timers_waker_may_own_another_timer() {
    struct Owns {
        _timer: std::sync::Mutex<corelane::Sleep>,
    }
    impl std::task::Wake for Owns {
        fn wake(self: Arc<Self>) {}
    }
    let executor = executor(1);
    let made = || async { [sleep(HANG), sleep(HANG)] };
    let [mut outer, mut inner] = block_on(executor.spawn(0, made())).unwrap();
    let noop = std::task::Waker::noop();
    assert!(std::pin::Pin::new(&mut inner).poll(&mut std::task::Context::from_waker(noop)).is_pending());
    let owner: std::task::Waker = Arc::new(Owns { _timer: std::sync::Mutex::new(inner) }).into();
    assert!(std::pin::Pin::new(&mut outer).poll(&mut std::task::Context::from_waker(&owner)).is_pending());
    drop(owner);
    // Replaces the waker, which drops the other timer.
    assert!(std::pin::Pin::new(&mut outer).poll(&mut std::task::Context::from_waker(noop)).is_pending());
}
