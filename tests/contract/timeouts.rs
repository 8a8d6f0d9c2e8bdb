//! Timeouts: the submitter hears at the deadline, the slot is free when the attempt has stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corelane::{EventEmitter, LaneConfig, LaneError, QueueManagerBuilder, Simulation, SubmitOptions, sleep, yield_now};

use crate::support::{Barrier, Gauge, block_on, eventually, manager, on_workers};

const LIMIT: Duration = Duration::from_millis(50);

#[test]
fn a_command_that_waits_is_given_up_at_its_deadline() {
    for workers in [1, 2, 4] {
        let mut simulation = Simulation::new(workers, 5);
        let config = LaneConfig::new(1, 1).with_timeout(Duration::from_secs(30));
        let manager = manager(simulation.executor(), &[("api", config, 0)]);
        let waits = || async {
            sleep(Duration::from_secs(31)).await;
            Ok(())
        };
        let ticket = manager.submit_fn("api", "waits", waits).unwrap();
        let begun = simulation.now();
        let result = simulation.block_on(ticket).unwrap();
        assert!(matches!(result, Err(LaneError::Timeout(limit)) if limit == Duration::from_secs(30)), "{result:?}");
        let waited = simulation.now() - begun;
        assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(31), "{waited:?}");
        // Its slot is free.
        let next = manager.submit_fn("api", "next", || async { Ok(1) }).unwrap();
        assert_eq!(simulation.block_on(next).unwrap().unwrap(), 1);
    }
}

#[test]
fn a_command_in_time_is_not_given_up() {
    let mut simulation = Simulation::new(2, 5);
    let config = LaneConfig::new(1, 2).with_timeout(Duration::from_secs(30));
    let manager = manager(simulation.executor(), &[("api", config, 0)]);
    let quick = || async {
        sleep(Duration::from_secs(29)).await;
        Ok(7)
    };
    // Time in the queue does not count: the second batch starts after 29 s.
    let tickets: Vec<_> = (0..4).map(|_| manager.submit_fn("api", "quick", quick).unwrap()).collect();
    for ticket in tickets {
        assert_eq!(simulation.block_on(ticket).unwrap().unwrap(), 7);
    }
}

#[test]
fn a_command_that_blocks_its_worker_times_out_for_its_submitter_and_keeps_its_slot_until_it_stops() {
    on_workers(|executor| {
        let manager = manager(executor, &[("api", LaneConfig::new(1, 1).with_timeout(LIMIT), 0)]);
        let go = Barrier::default();
        let blocking = go.clone();
        let blocks = move || async move {
            blocking.wait();
            Ok(())
        };
        let begun = Instant::now();
        let ticket = manager.submit_fn("api", "blocks", blocks).unwrap();
        let result = block_on(ticket).unwrap();
        assert!(matches!(result, Err(LaneError::Timeout(limit)) if limit == LIMIT), "{result:?}");
        assert!(begun.elapsed() >= LIMIT);
        // It still runs, so the lane's one slot is taken.
        assert_eq!(block_on(manager.stats()).unwrap().total_active, 1);
        let next = manager.submit_fn("api", "next", || async { Ok(2) }).unwrap();
        assert_eq!(block_on(manager.stats()).unwrap().total_pending, 1);
        go.open();
        assert_eq!(block_on(next).unwrap().unwrap(), 2);
    });
}

#[test]
fn a_command_that_blocks_after_an_await_times_out_too() {
    on_workers(|executor| {
        let manager = manager(executor, &[("api", LaneConfig::new(1, 1).with_timeout(LIMIT), 0)]);
        let go = Barrier::default();
        let blocking = go.clone();
        let blocks = move || async move {
            yield_now().await;
            blocking.wait();
            Ok(())
        };
        let result = block_on(manager.submit_fn("api", "blocks", blocks).unwrap()).unwrap();
        assert!(matches!(result, Err(LaneError::Timeout(_))), "{result:?}");
        go.open();
    });
}

#[test]
fn a_waiting_command_times_out_while_others_block_every_worker() {
    on_workers(|executor| {
        let lanes = [("api", LaneConfig::new(1, 8).with_timeout(LIMIT), 0), ("cpu", LaneConfig::new(1, 8), 1)];
        let manager = manager(executor, &lanes);
        let go = Barrier::default();
        // Its timer is on some worker's wheel by the time that all workers are blocked.
        let armed = Arc::new(AtomicBool::new(false));
        let signal = Arc::clone(&armed);
        let waits = move || async move {
            signal.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
            Ok(())
        };
        let waiting = manager.submit_fn("api", "waits", waits).unwrap();
        eventually("it waits", || armed.load(Ordering::SeqCst));
        let blocked = Gauge::default();
        let blocking: Vec<_> = (0..executor.workers())
            .map(|_| {
                let (go, blocked) = (go.clone(), blocked.clone());
                let blocks = move || async move {
                    let _inside = blocked.enter();
                    Ok(go.wait())
                };
                manager.submit_fn("cpu", "blocks", blocks).unwrap()
            })
            .collect();
        eventually("all workers blocked", || blocked.now() == executor.workers());
        // Only now does anybody wait for it, and no worker is free to drop it.
        let result = block_on(waiting).unwrap();
        assert!(matches!(result, Err(LaneError::Timeout(_))), "{result:?}");
        assert_eq!(block_on(manager.stats()).unwrap().lanes["api"].active, 1, "it has not stopped yet");
        go.open();
        blocking.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
    });
}

#[test]
fn a_timeout_drops_what_the_command_holds() {
    on_workers(|executor| {
        let manager = manager(executor, &[("api", LaneConfig::new(1, 1).with_timeout(LIMIT), 0)]);
        let held = Arc::new(());
        let holding = Arc::clone(&held);
        let waits = move || async move {
            let _holding = holding;
            std::future::pending::<()>().await;
            Ok(())
        };
        assert!(block_on(manager.submit_fn("api", "waits", waits).unwrap()).unwrap().is_err());
        eventually("dropped", || Arc::strong_count(&held) == 1);
    });
}

#[test]
fn a_ticket_nobody_awaits_times_out_all_the_same() {
    on_workers(|executor| {
        let manager = manager(executor, &[("api", LaneConfig::new(1, 1).with_timeout(LIMIT), 0)]);
        let waits = || async { Ok(std::future::pending::<()>().await) };
        manager.submit_fn("api", "waits", waits).unwrap().detach();
        let next = manager.submit_fn("api", "next", || async { Ok(1) }).unwrap();
        assert_eq!(block_on(next).unwrap().unwrap(), 1);
    });
}

#[test]
fn a_timeout_beyond_all_time_means_none() {
    let mut simulation = Simulation::new(1, 1);
    let config = LaneConfig::new(1, 1).with_timeout(Duration::MAX);
    let manager = manager(simulation.executor(), &[("api", config, 0)]);
    let long = || async { Ok(sleep(Duration::from_secs(86_400 * 365)).await) };
    let ticket = manager.submit_fn("api", "long", long).unwrap();
    simulation.block_on(ticket).unwrap().unwrap();
}

#[test]
fn a_command_that_gives_up_waiting_for_another_one_leaves_its_share_of_the_limit_to_other_lanes() {
    let mut simulation = Simulation::new(1, 1);
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(simulation.executor().clone())
        .with_lane("outer", LaneConfig::new(0, 1).with_timeout(Duration::from_secs(1)), 0)
        .with_lane("inner", LaneConfig::new(0, 1), 1)
        .with_max_in_flight(1);
    let manager = Arc::new(block_on(builder.build()).unwrap());
    block_on(manager.start()).unwrap();
    let own = Arc::clone(&manager);
    let waits = move || async move {
        let later = SubmitOptions::new().delay(Duration::from_secs(3600));
        let inner = own.lane("inner").unwrap().submit_fn_with("later", later, || async { Ok(()) })?;
        inner.await.unwrap()
    };
    let outer = manager.submit_fn("outer", "waits", waits).unwrap();
    simulation.run_until_idle();
    let next = manager.submit_fn("inner", "next", || async { Ok(()) }).unwrap();
    simulation.run_until_idle();
    assert!(!next.is_finished(), "the limit is one");
    simulation.advance(Duration::from_secs(2));
    assert!(outer.is_finished());
    assert!(next.is_finished(), "nobody has told the other lane");
}
