//! Shutdown, drain, and dropping without either.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{Command, JsonCommand, Lane, LaneConfig, LaneError, Simulation, TicketError, sleep};
use serde_json::json;

use crate::support::{Barrier, HANG, block_on, eventually, executor, manager, on_workers, unstarted};

#[test]
fn shutdown_refuses_new_commands_and_hands_them_back() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0)]);
        assert!(!manager.is_shutting_down());
        block_on(manager.shutdown());
        block_on(manager.shutdown());
        assert!(manager.is_shutting_down());
        let command: Box<dyn Command> = Box::new(JsonCommand::new("mine", json!(1)));
        let rejected = manager.try_submit("a", command).unwrap_err();
        assert!(matches!(rejected.error, LaneError::ShutdownInProgress));
        assert_eq!(rejected.command.command_type(), "mine");
        let refused = block_on(manager.submit("a", rejected.command));
        assert!(matches!(refused, Err(LaneError::ShutdownInProgress)));
        let lane = manager.lane("a").unwrap();
        let ticket = block_on(lane.enqueue(Box::new(JsonCommand::new("t", json!(1)))));
        assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::ShutdownInProgress)));
        let late = block_on(manager.queue().register_lane(Lane::new("b", LaneConfig::default(), 0)));
        assert!(matches!(late, Err(LaneError::ShutdownInProgress)));
    });
}

#[test]
fn drain_waits_for_everything_accepted() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 2), 0), ("b", LaneConfig::new(1, 1), 9)]);
        let done = Arc::new(AtomicUsize::new(0));
        for i in 0..60 {
            let done = Arc::clone(&done);
            let command = move || async move {
                sleep(Duration::from_micros(200)).await;
                Ok(done.fetch_add(1, Ordering::SeqCst))
            };
            manager.submit_fn(if i % 3 == 0 { "b" } else { "a" }, "work", command).unwrap().detach();
        }
        block_on(manager.shutdown());
        let report = block_on(manager.drain(HANG)).unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 60);
        assert!(report.outstanding <= 60);
        // Idempotent.
        assert_eq!(block_on(manager.drain(HANG)).unwrap().outstanding, 0);
    });
}

#[test]
fn drain_at_its_limit_says_what_is_left_and_cancels_nothing() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 1), 0)]);
        let go = Barrier::default();
        let tickets: Vec<_> = (0..3)
            .map(|i| {
                let go = go.clone();
                let command = move || async move {
                    go.passed().await;
                    Ok(i)
                };
                manager.submit_fn("a", "waits", command).unwrap()
            })
            .collect();
        let error = block_on(manager.drain(Duration::from_millis(10))).unwrap_err();
        assert!(matches!(error, LaneError::DrainTimeout { pending: 2, active: 1, .. }), "{error}");
        go.open();
        block_on(manager.drain(HANG)).unwrap();
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(block_on(ticket).unwrap().unwrap(), i);
        }
    });
}

#[test]
fn drain_of_an_idle_queue_returns_at_once() {
    on_workers(|executor| {
        let manager = unstarted(executor, &[("a", LaneConfig::default(), 0)]);
        assert_eq!(block_on(manager.drain(Duration::ZERO)).unwrap().outstanding, 0);
    });
}

/// Submissions race with shutdown from many threads: each is either refused or settled when drain returns.
#[test]
fn nothing_is_accepted_after_shutdown_and_nothing_accepted_is_left_by_drain() {
    on_workers(|executor| {
        for _ in 0..20 {
            let manager = manager(executor, &[("a", LaneConfig::new(1, 2), 0)]);
            let (ran, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        loop {
                            let ran = Arc::clone(&ran);
                            let command = move || async move { Ok(ran.fetch_add(1, Ordering::SeqCst)) };
                            match manager.submit_fn("a", "racing", command) {
                                Ok(ticket) => {
                                    accepted.fetch_add(1, Ordering::SeqCst);
                                    ticket.detach();
                                }
                                Err(error) => {
                                    assert!(matches!(error, LaneError::ShutdownInProgress));
                                    return;
                                }
                            }
                        }
                    });
                }
                eventually("some accepted", || accepted.load(Ordering::SeqCst) > 20);
                block_on(manager.shutdown());
                block_on(manager.drain(HANG)).unwrap();
                let drained = ran.load(Ordering::SeqCst);
                let stats = block_on(manager.stats()).unwrap();
                assert_eq!((stats.total_pending, stats.total_active), (0, 0));
                // Nothing runs afterwards.
                std::thread::yield_now();
                assert_eq!(ran.load(Ordering::SeqCst), drained);
            });
            assert_eq!(ran.load(Ordering::SeqCst), accepted.load(Ordering::SeqCst));
        }
    });
}

#[test]
fn draining_one_manager_does_not_touch_another() {
    on_workers(|executor| {
        let one = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let other = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let go = Barrier::default();
        let waiting = go.clone();
        let ticket = other.submit_fn("a", "waits", move || async move { Ok(waiting.passed().await) }).unwrap();
        block_on(one.shutdown());
        block_on(one.drain(HANG)).unwrap();
        assert!(!ticket.is_finished() && !other.is_shutting_down());
        go.open();
        block_on(ticket).unwrap().unwrap();
        assert_eq!(block_on(other.submit_fn("a", "works", || async { Ok(1) }).unwrap()).unwrap().unwrap(), 1);
    });
}

#[test]
fn dropping_a_manager_lets_accepted_commands_run_to_their_end() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 1), 0)]);
        let tickets: Vec<_> = (0..50)
            .map(|i| {
                let command = move || async move {
                    sleep(Duration::from_micros(100)).await;
                    Ok(i)
                };
                manager.submit_fn("a", "runs", command).unwrap()
            })
            .collect();
        drop(manager);
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(block_on(ticket).unwrap().unwrap(), i);
        }
    });
}

#[test]
fn dropping_the_last_handles_of_manager_and_executor_still_runs_what_was_accepted() {
    let executor = executor(2);
    let manager = manager(&executor, &[("a", LaneConfig::new(1, 1), 0)]);
    drop(executor);
    let tickets: Vec<_> =
        (0..50).map(|i| manager.submit_fn("a", "runs", move || async move { Ok(i) }).unwrap()).collect();
    drop(manager);
    for (i, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(block_on(ticket).unwrap().unwrap(), i);
    }
}

#[test]
fn dropping_a_manager_cancels_what_can_never_start() {
    on_workers(|executor| {
        let never_started = unstarted(executor, &[("a", LaneConfig::default(), 0)]);
        let resource = Arc::new(());
        let held = Arc::clone(&resource);
        let waiting = never_started.submit_fn("a", "held", move || async move { Ok(drop(held)) }).unwrap();
        drop(never_started);
        assert!(matches!(block_on(waiting).unwrap(), Err(LaneError::Cancelled { started: false })));
        assert_eq!(Arc::strong_count(&resource), 1, "the command was leaked");

        let paused = manager(executor, &[("a", LaneConfig::default(), 0)]);
        paused.pause("a").unwrap();
        let waiting = paused.submit_fn("a", "held", || async { Ok(1) }).unwrap();
        let lane = paused.lane("a").unwrap();
        drop(paused);
        assert!(matches!(block_on(waiting).unwrap(), Err(LaneError::Cancelled { started: false })));
        let refused = lane.try_submit(Box::new(JsonCommand::new("late", json!(1)))).unwrap_err();
        assert!(matches!(refused.error, LaneError::ShutdownInProgress));
    });
}

#[test]
fn a_closed_executor_resolves_the_tickets_of_its_commands() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let manager = manager(&executor, &[("a", LaneConfig::new(1, 1), 0)]);
        let running = manager.submit_fn("a", "runs", || async { Ok(std::future::pending::<()>().await) }).unwrap();
        // Many: each ends the one before it, which must not nest.
        let waiting: Vec<_> =
            (0..100_000).map(|_| manager.submit_fn("a", "waits", || async { Ok(()) }).unwrap()).collect();
        let report = block_on(executor.shutdown(Duration::from_millis(5)));
        assert!(report.unfinished > 0);
        let after = manager.submit_fn("a", "after", || async { Ok(()) });
        assert!(matches!(after, Err(LaneError::ShutdownInProgress)));
        assert_eq!(block_on(running).unwrap_err(), TicketError);
        for ticket in waiting {
            assert_eq!(block_on(ticket).unwrap_err(), TicketError);
        }
    }
}

#[test]
fn a_simulated_queue_drains_in_virtual_time() {
    let mut simulation = Simulation::new(3, 9);
    let manager = manager(simulation.executor(), &[("a", LaneConfig::new(1, 2), 0)]);
    for _ in 0..10 {
        let nap = || async { Ok(sleep(Duration::from_secs(60)).await) };
        manager.submit_fn("a", "nap", nap).unwrap().detach();
    }
    simulation.block_on(manager.shutdown());
    let late = simulation.block_on(manager.drain(Duration::from_secs(100)));
    assert!(matches!(late, Err(LaneError::DrainTimeout { .. })), "{late:?}");
    simulation.block_on(manager.drain(Duration::from_secs(1000))).unwrap();
    assert!(simulation.now() >= Duration::from_secs(300));
}

#[test]
fn drain_keeps_its_limit_while_every_worker_is_blocked() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::new(1, 8), 0)]);
        let go = Barrier::default();
        let blocking: Vec<_> = (0..executor.workers())
            .map(|_| {
                let go = go.clone();
                manager.submit_fn("a", "blocks", move || async move { Ok(go.wait()) }).unwrap()
            })
            .collect();
        let error = block_on(manager.drain(Duration::from_millis(20))).unwrap_err();
        assert!(matches!(error, LaneError::DrainTimeout { .. }));
        go.open();
        blocking.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
    });
}

#[test]
fn closing_an_executor_is_no_timeout() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let hour = LaneConfig::new(1, 2).with_timeout(Duration::from_secs(3600));
        let manager = manager(&executor, &[("a", hour, 0)]);
        let mut events = manager.subscribe_filtered(|event| event.key == "queue.command.timeout");
        let go = Barrier::default();
        let blocking = go.clone();
        let waits = manager.submit_fn("a", "waits", || async { Ok(std::future::pending::<()>().await) }).unwrap();
        let blocks = async move {
            blocking.wait();
            Ok(std::future::pending::<()>().await)
        };
        let blocks = manager.submit_fn("a", "blocks", move || blocks).unwrap();
        eventually("both started", || waits.has_started() && blocks.has_started());
        block_on(executor.shutdown(Duration::from_millis(5)));
        go.open();
        assert_eq!(block_on(waits).unwrap_err(), TicketError);
        assert_eq!(block_on(blocks).unwrap_err(), TicketError);
        drop((manager, executor));
        assert!(block_on(events.recv()).is_none());
    }
}

#[test]
fn closing_an_executor_resolves_what_lanes_hold_back() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let never_started = unstarted(&executor, &[("a", LaneConfig::default(), 0)]);
        let paused = manager(&executor, &[("a", LaneConfig::default(), 0)]);
        paused.pause("a").unwrap();
        let held = [&never_started, &paused].map(|m| m.submit_fn("a", "held", || async { Ok(()) }).unwrap());
        block_on(executor.shutdown(Duration::from_millis(5)));
        for ticket in held {
            assert!(matches!(block_on(ticket).unwrap(), Err(LaneError::Cancelled { started: false })));
        }
        for manager in [never_started, paused] {
            let late = manager.submit_fn("a", "late", || async { Ok(()) });
            assert!(matches!(late, Err(LaneError::ShutdownInProgress)));
            block_on(manager.drain(HANG)).unwrap();
        }
    }
}

#[test]
fn a_simulated_drain_keeps_its_limit_without_any_other_timer() {
    let mut simulation = Simulation::new(2, 9);
    let manager = unstarted(simulation.executor(), &[("a", LaneConfig::default(), 0)]);
    manager.submit_fn("a", "held", || async { Ok(()) }).unwrap().detach();
    let error = simulation.block_on(manager.drain(Duration::from_secs(1))).unwrap_err();
    assert!(matches!(error, LaneError::DrainTimeout { pending: 1, .. }));
}
