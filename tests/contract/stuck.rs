//! Polls that do not end: told of while they last, and worked around. Where a test waits for what is behind a stuck poll,
//! that poll waits for the test: without help it would never end.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use corelane::{
    CommandId, EventPayload, EventStream, Executor, ExecutorBuilder, LaneConfig, QueueManager, Result, Stop, TaskError,
    Transition, TypedCommand, events, sleep, yield_now,
};
use serde_json::json;

use crate::support::{Barrier, Do, HANG, block_on, eventually, finish, manager, transitions};

fn builder(workers: usize) -> ExecutorBuilder {
    Executor::builder().workers(workers).pin(false)
}

/// With one spare, as it is by default.
fn executor(workers: usize) -> Executor {
    builder(workers).build().unwrap()
}

fn on_workers(test: impl Fn(&Executor)) {
    [1, 2, 4].into_iter().for_each(|workers| test(&executor(workers)));
}

/// A command that opens `running`, then blocks its thread until `go` is open.
fn blocks(manager: &QueueManager, lane: &str, running: &Barrier, go: &Barrier) -> corelane::Ticket<()> {
    let (running, go) = (running.clone(), go.clone());
    let command = move || async move {
        running.open();
        go.wait();
        Ok(())
    };
    manager.submit_fn(lane, "blocks", command).unwrap()
}

/// Blocks as many workers as there are, and says how to let them go.
fn block_all(executor: &Executor) -> (Barrier, Vec<corelane::Task<()>>) {
    let (go, blocked) = (Barrier::default(), Arc::new(AtomicUsize::new(0)));
    let task = |_| {
        let (go, blocked) = (go.clone(), Arc::clone(&blocked));
        executor.spawn(9, async move {
            blocked.fetch_add(1, Ordering::SeqCst);
            go.wait();
        })
    };
    let tasks = (0..executor.workers()).map(task).collect();
    eventually("all workers are blocked", || blocked.load(Ordering::SeqCst) == executor.workers());
    (go, tasks)
}

fn off_duty(executor: &Executor) {
    eventually("the spares are off duty", || executor.spare_stats().iter().all(|spare| !spare.on_duty));
}

/// The next command that is told to be stuck.
fn next_stuck(events: &mut EventStream) -> (CommandId, String) {
    loop {
        let event = finish("a stuck poll is told of", events.recv()).expect("the queue is there");
        if let Some(Transition::StuckPoll { command, running_for, .. }) = event.transition() {
            assert_eq!(event.key, events::QUEUE_COMMAND_STUCK);
            let EventPayload::Map(fields) = &event.payload else { panic!("{event:?}") };
            assert_eq!(fields["command_type"], json!(&*command.command_type));
            assert_eq!(fields["running_ms"], json!(running_for.as_millis() as u64));
            assert!(fields["worker"].is_u64() && *running_for >= Duration::from_millis(10), "{event:?}");
            return (command.command_id, command.command_type.to_string());
        }
    }
}

#[test]
fn a_control_command_runs_although_every_worker_is_stuck() {
    on_workers(|executor| {
        let manager = manager(executor, &[("control", LaneConfig::new(1, 1), 0), ("bulk", LaneConfig::new(1, 8), 9)]);
        let go = Barrier::default();
        let running: Vec<_> = (0..executor.workers()).map(|_| Barrier::default()).collect();
        let blocked: Vec<_> = running.iter().map(|running| blocks(&manager, "bulk", running, &go)).collect();
        running.iter().for_each(Barrier::wait);
        let control = manager.submit_fn("control", "release", move || async move { Ok(go.open()) }).unwrap();
        finish("the control command", control).unwrap().unwrap();
        blocked.into_iter().for_each(|ticket| finish("a bulk command", ticket).unwrap().unwrap());
        off_duty(executor);
        let duties: u64 = executor.spare_stats().iter().map(|spare| spare.duties).sum();
        assert!(duties > 0, "who ran it?");
        assert_eq!(executor.worker_stats().len(), executor.workers());
    });
}

#[test]
fn a_stuck_poll_is_told_once_while_it_lasts_with_the_type_of_its_command() {
    struct Blocks(Barrier);
    impl TypedCommand for Blocks {
        type Output = ();
        async fn execute(&self) -> Result<()> {
            Ok(self.0.wait())
        }
        fn command_type(&self) -> &str {
            "typed"
        }
    }
    let executor = executor(4);
    let manager = manager(&executor, &[("lane", LaneConfig::new(1, 4), 3)]);
    let mut events = manager.subscribe_filtered(|event| event.key == events::QUEUE_COMMAND_STUCK);
    let go = Barrier::default();
    // One after the other, so that each lasts for some looks more.
    let typed = manager.submit_typed("lane", Blocks(go.clone())).unwrap();
    assert_eq!(next_stuck(&mut events), (typed.id(), "typed".to_owned()));
    let blocking = go.clone();
    let command = move || {
        let go = blocking.clone();
        async move {
            // Not its first poll.
            yield_now().await;
            go.wait();
            Ok(json!(null))
        }
    };
    let boxed = manager.try_submit("lane", Box::new(Do(command))).unwrap();
    assert_eq!(next_stuck(&mut events), (boxed.id(), "do".to_owned()));
    let closure = blocks(&manager, "lane", &Barrier::default(), &go);
    assert_eq!(next_stuck(&mut events), (closure.id(), "blocks".to_owned()));
    go.open();
    finish("typed", typed).unwrap().unwrap();
    finish("boxed", boxed).unwrap().unwrap();
    finish("closure", closure).unwrap().unwrap();
    assert_eq!(transitions(&mut events), [], "told twice");
    assert_eq!(executor.worker_stats().iter().map(|worker| worker.stuck).sum::<u64>(), 3);
}

#[test]
fn the_next_stuck_poll_of_a_command_is_told_again() {
    let executor = executor(1);
    let manager = manager(&executor, &[("lane", LaneConfig::new(1, 1), 3)]);
    let mut events = manager.subscribe();
    let go = [Barrier::default(), Barrier::default()];
    let waits = go.clone();
    let command = move || async move {
        waits[0].wait();
        yield_now().await;
        Ok(waits[1].wait())
    };
    let ticket = manager.submit_fn("lane", "twice", command).unwrap();
    for go in go {
        assert_eq!(next_stuck(&mut events).0, ticket.id());
        go.open();
    }
    finish("the command", ticket).unwrap().unwrap();
}

#[test]
fn a_type_that_panics_costs_its_report_and_no_more() {
    struct Nameless(Barrier);
    #[async_trait::async_trait]
    impl corelane::Command for Nameless {
        async fn execute(&self) -> Result<serde_json::Value> {
            self.0.wait();
            Ok(json!("done"))
        }
        fn command_type(&self) -> &str {
            panic!("no name on purpose")
        }
    }
    let executor = executor(2);
    let manager = manager(&executor, &[("lane", LaneConfig::new(1, 4), 3)]);
    let mut events = manager.subscribe();
    let go = Barrier::default();
    let nameless = manager.try_submit("lane", Box::new(Nameless(go.clone()))).unwrap();
    eventually("it is counted", || executor.worker_stats().iter().any(|worker| worker.stuck == 1));
    let named = blocks(&manager, "lane", &Barrier::default(), &go);
    assert_eq!(next_stuck(&mut events).0, named.id());
    go.open();
    assert_eq!(finish("nameless", nameless).unwrap().unwrap(), "done");
    finish("named", named).unwrap().unwrap();
}

#[test]
fn a_stuck_task_that_is_no_command_is_counted() {
    on_workers(|executor| {
        let (go, tasks) = block_all(executor);
        eventually("all are counted", || executor.worker_stats().iter().all(|worker| worker.stuck == 1));
        go.open();
        tasks.into_iter().for_each(|task| finish("a task", task).unwrap());
    });
}

#[test]
fn what_a_stuck_poll_has_spawned_and_woken_itself_runs() {
    on_workers(|executor| {
        let inner = executor.clone();
        let spawns = executor.spawn(3, async move {
            let ran = Barrier::default();
            let opens = ran.clone();
            // Of a priority that nobody has seen before.
            inner.spawn(7, async move { opens.open() }).detach();
            ran.wait();
        });
        finish("what was spawned", spawns).unwrap();

        let (waker, ran) = (Arc::new(Mutex::new(None::<Waker>)), Barrier::default());
        let (set, opens) = (Arc::clone(&waker), ran.clone());
        let waits = executor.spawn(3, async move {
            poll_fn(|cx| match set.lock().unwrap().replace(cx.waker().clone()) {
                None => Poll::Pending,
                Some(_) => Poll::Ready(()),
            })
            .await;
            opens.open();
        });
        eventually("it waits", || waker.lock().unwrap().is_some());
        let wakes = executor.spawn(3, async move {
            waker.lock().unwrap().as_ref().unwrap().wake_by_ref();
            ran.wait();
        });
        finish("what was woken", waits).unwrap();
        finish("what woke it", wakes).unwrap();
    });
}

#[test]
fn what_waits_behind_a_stuck_poll_takes_turns_with_the_work_of_others() {
    for workers in [2, 4] {
        let executor = builder(workers).spare_threads(0).build().unwrap();
        let (stop, go, blocked) = (Arc::new(AtomicBool::new(false)), Barrier::default(), Barrier::default());
        let (begun, blocking) = (blocked.clone(), go.clone());
        let blocks = executor.spawn(3, async move {
            begun.open();
            blocking.wait();
        });
        blocked.wait();
        // Each worker gets some of these, the blocked one, too; and the others never run out of them.
        let started = Arc::new(AtomicUsize::new(0));
        let all = 100 * workers;
        let endless: Vec<_> = (0..all)
            .map(|_| {
                let (started, stop) = (Arc::clone(&started), Arc::clone(&stop));
                executor.spawn(5, async move {
                    started.fetch_add(1, Ordering::SeqCst);
                    while !stop.load(Ordering::SeqCst) {
                        yield_now().await;
                    }
                })
            })
            .collect();
        eventually("all have started", || started.load(Ordering::SeqCst) == all);
        stop.store(true, Ordering::SeqCst);
        go.open();
        endless.into_iter().chain([blocks]).for_each(|task| finish("a task", task).unwrap());
    }
}

#[test]
fn a_spare_runs_all_that_waits_and_its_tasks_have_timers() {
    on_workers(|executor| {
        let (go, blocked) = block_all(executor);
        let inner = executor.clone();
        let task = executor.spawn(5, async move {
            sleep(Duration::from_millis(3)).await;
            let tasks: Vec<_> = (0..200).map(|i| inner.spawn(5, async move { i })).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            (sum, std::thread::current().name().map(str::to_owned))
        });
        let (sum, thread) = finish("a task on a spare", task).unwrap();
        assert_eq!((sum, thread.as_deref()), (199 * 200 / 2, Some("corelane-spare-0")));
        go.open();
        blocked.into_iter().for_each(|task| finish("a blocked task", task).unwrap());
        off_duty(executor);
        let task = executor.spawn(5, async { std::thread::current().name().map(str::to_owned) });
        let thread = finish("a task on a worker", task).unwrap().unwrap();
        assert!(!thread.contains("spare"), "{thread}");
    });
}

#[test]
fn a_spare_that_leaves_hands_over_what_it_has() {
    on_workers(|executor| {
        let (go, blocked) = block_all(executor);
        let flag = || Arc::new(AtomicBool::new(false));
        let (left, stop) = (flag(), flag());
        let (started, polled) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let all = 100 * executor.workers();
        let tasks: Vec<_> = (0..all)
            .map(|_| {
                let (left, stop) = (Arc::clone(&left), Arc::clone(&stop));
                let (started, polled) = (Arc::clone(&started), Arc::clone(&polled));
                executor.spawn(5, async move {
                    started.fetch_add(1, Ordering::SeqCst);
                    while !left.load(Ordering::SeqCst) {
                        yield_now().await;
                    }
                    polled.fetch_add(1, Ordering::SeqCst);
                    while !stop.load(Ordering::SeqCst) {
                        yield_now().await;
                    }
                })
            })
            .collect();
        eventually("the spare has all of them", || started.load(Ordering::SeqCst) == all);
        go.open();
        blocked.into_iter().for_each(|task| finish("a blocked task", task).unwrap());
        off_duty(executor);
        left.store(true, Ordering::SeqCst);
        // They never end, so a worker that has one of them does not look for others.
        eventually("all go on elsewhere", || polled.load(Ordering::SeqCst) == all);
        stop.store(true, Ordering::SeqCst);
        tasks.into_iter().for_each(|task| finish("what was handed over", task).unwrap());
    });
}

#[test]
fn a_spare_that_gets_stuck_is_followed_by_the_next() {
    let executor = builder(1).spare_threads(2).build().unwrap();
    let go = Barrier::default();
    let blocks: Vec<_> = (0..2)
        .map(|_| {
            let go = go.clone();
            executor.spawn(3, async move { go.wait() })
        })
        .collect();
    eventually("the first spare is stuck, too", || executor.spare_stats()[0].worker.stuck == 1);
    let opens = executor.spawn(9, async move { go.open() });
    finish("on the second spare", opens).unwrap();
    blocks.into_iter().for_each(|task| finish("a blocked task", task).unwrap());
    off_duty(&executor);
}

#[test]
fn a_task_that_began_to_wait_on_a_spare_ends_with_its_executor() {
    struct OnDrop(Arc<AtomicBool>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let (go, blocked) = block_all(&executor);
        let (dropped, waits) = (Arc::new(AtomicBool::new(false)), Barrier::default());
        let (guard, waiting) = (OnDrop(Arc::clone(&dropped)), waits.clone());
        let task = executor.spawn(3, async move {
            let _guard = guard;
            poll_fn(|cx| {
                // Nobody else will ever wake it.
                std::mem::forget(cx.waker().clone());
                waiting.open();
                Poll::<()>::Pending
            })
            .await;
        });
        waits.wait();
        go.open();
        blocked.into_iter().for_each(|task| finish("a blocked task", task).unwrap());
        off_duty(&executor);
        drop(executor);
        assert!(matches!(finish("the task", task), Err(TaskError::Cancelled)));
        eventually("it was dropped", || dropped.load(Ordering::SeqCst));
    }
}

#[test]
fn a_queue_drains_and_stops_around_a_stuck_poll() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 8), 3)]);
        let (running, go) = (Barrier::default(), Barrier::default());
        let blocked = blocks(&manager, "lane", &running, &go);
        running.wait();
        let others: Vec<_> =
            (0..50).map(|_| manager.submit_fn("lane", "quick", || async { Ok(yield_now().await) }).unwrap()).collect();
        block_on(manager.drain(Duration::from_millis(20))).unwrap_err();
        others.into_iter().for_each(|ticket| finish("what waits behind it", ticket).unwrap().unwrap());
        // The rest is up to the poll.
        let report = block_on(manager.stop(Stop::drain(Duration::ZERO).then_cancel(Duration::from_millis(5))));
        assert!(!report.is_complete());
        go.open();
        drop(blocked);
        block_on(manager.drain(HANG)).unwrap();
    });
}

#[test]
fn an_executor_shuts_down_around_stuck_polls_on_workers_and_spares() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let (go, blocked) = block_all(&executor);
        let (on_spare, blocking) = (Barrier::default(), go.clone());
        let running = on_spare.clone();
        let spare = executor.spawn(3, async move {
            running.open();
            blocking.wait();
        });
        on_spare.wait();
        let report = block_on(executor.shutdown(Duration::from_millis(10)));
        assert_eq!(report.busy_workers, workers + 1);
        go.open();
        // Their polls finish them.
        blocked.into_iter().chain([spare]).for_each(|task| finish("a stuck task", task).unwrap());
        assert_eq!(block_on(executor.shutdown(HANG)).busy_workers, 0);
    }
}

#[test]
fn nobody_looks_if_told_so_and_no_spare_is_called_if_there_is_none() {
    let unwatched = builder(1).stuck_after(None).build().unwrap();
    let alone = builder(1).spare_threads(0).build().unwrap();
    assert_eq!((unwatched.spare_stats().len(), alone.spare_stats().len()), (1, 0));
    let blocked = [&unwatched, &alone].map(block_all);
    let waiting = [&unwatched, &alone].map(|executor| executor.spawn(0, async {}));
    eventually("it is counted", || alone.worker_stats()[0].stuck == 1);
    // Real time, since what is tested is that nothing happens.
    std::thread::sleep(Duration::from_millis(50));
    assert!(waiting.iter().all(|task| !task.is_finished()));
    assert_eq!((unwatched.worker_stats()[0].stuck, unwatched.spare_stats()[0].duties), (0, 0));
    for (go, tasks) in blocked {
        go.open();
        tasks.into_iter().for_each(|task| finish("a blocked task", task).unwrap());
    }
    waiting.into_iter().for_each(|task| finish("what waited", task).unwrap());
}

#[test]
fn settings_that_make_no_sense_are_refused_together() {
    let refused = builder(50).spare_threads(7).stuck_after(Duration::from_micros(10)).build().unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("spare_threads") && text.contains("at most 6"), "{text}");
    assert!(text.contains("stuck_after") && text.contains("1ms"), "{text}");
}
