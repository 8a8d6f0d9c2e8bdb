//! Events: what is told, to whom, and how lag is.

use std::collections::HashMap;
use std::time::Duration;

use corelane::{
    EventEmitter, EventPayload, EventsClosed, JsonCommand, LaneConfig, LaneError, LaneEvent, MonitorConfig,
    QueueManagerBuilder, QueueMonitor, Transition, events,
};
use futures::StreamExt;
use serde_json::json;

use crate::support::{Barrier, HANG, block_on, eventually, manager, on_workers};

#[test]
fn a_command_is_told_of_in_order_with_the_seeds_keys_and_fields() {
    on_workers(|executor| {
        let manager = manager(executor, &[("query", LaneConfig::default(), 2)]);
        let mut events = manager.subscribe();
        let mut ticket = manager.try_submit("query", Box::new(JsonCommand::new("echo", json!(1)))).unwrap();
        block_on(&mut ticket).unwrap().unwrap();
        for key in ["queue.command.submitted", "queue.command.started", "queue.command.completed"] {
            let event = block_on(events.recv()).unwrap();
            assert_eq!(event.key, key);
            let EventPayload::Map(fields) = &event.payload else { panic!("{event:?}") };
            assert_eq!(fields["lane_id"], "query");
            assert_eq!(fields["command_type"], "echo");
            assert_eq!(fields["command_id"], ticket.id().to_string());
            assert!(!event.timestamp.to_string().is_empty());
        }
    });
}

#[test]
fn every_way_to_end_is_told_by_its_own_event() {
    on_workers(|executor| {
        let hasty = LaneConfig::new(1, 1).with_timeout(Duration::from_millis(5));
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 1), 2), ("hasty", hasty, 2)]);
        let mut ends = manager.subscribe_filtered(|event| {
            // A panic that is printed with a backtrace lasts long enough to be told of as stuck.
            !["submitted", "started", "stuck"].iter().any(|other| event.key.ends_with(other))
                && event.key.starts_with("queue.command.")
        });
        let mut next = || block_on(ends.recv()).unwrap().transition().cloned().unwrap();

        let fails = || async { Err::<(), _>(LaneError::CommandError("broken".into())) };
        block_on(manager.submit_fn("lane", "fails", fails).unwrap()).unwrap().unwrap_err();
        assert!(matches!(next(), Transition::Failed { error, .. } if error.contains("broken")));

        let panics = || async { if true { panic!("on purpose") } else { Ok(()) } };
        block_on(manager.submit_fn("lane", "panics", panics).unwrap()).unwrap().unwrap_err();
        assert!(matches!(next(), Transition::Failed { error, .. } if error.contains("on purpose")));

        let waits = || async { Ok(std::future::pending::<()>().await) };
        block_on(manager.submit_fn("hasty", "waits", waits).unwrap()).unwrap().unwrap_err();
        assert!(matches!(next(), Transition::TimedOut { timeout, .. } if timeout == Duration::from_millis(5)));

        manager.pause("lane").unwrap();
        let mut cancelled = manager.submit_fn("lane", "cancelled", || async { Ok(()) }).unwrap();
        cancelled.cancel();
        manager.resume("lane").unwrap();
        assert!(matches!(next(), Transition::Cancelled { command, .. } if command.command_id == cancelled.id()));
    });
}

#[test]
fn pressure_is_told_once_and_relief_after_it() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 1).with_pressure_threshold(3), 0)]);
        let mut pressure = manager.subscribe_filtered(|event| event.key.starts_with("queue.lane."));
        let go = Barrier::default();
        let tickets: Vec<_> = (0..8)
            .map(|_| {
                let go = go.clone();
                manager.submit_fn("lane", "waits", move || async move { Ok(go.passed().await) }).unwrap()
            })
            .collect();
        go.open();
        tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
        let keys: Vec<_> = (0..2).map(|_| block_on(pressure.recv()).unwrap().key).collect();
        assert_eq!(keys, [events::QUEUE_LANE_PRESSURE, events::QUEUE_LANE_IDLE]);
        drop(manager);
        assert!(block_on(pressure.recv()).is_none());
    });
}

#[test]
fn shutdown_is_told_when_it_starts_and_when_all_has_settled() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 1), 0)]);
        let mut told = manager.subscribe_filtered(|event| event.key.starts_with("queue.shutdown."));
        let go = Barrier::default();
        let waiting = go.clone();
        let ticket = manager.submit_fn("lane", "waits", move || async move { Ok(waiting.passed().await) }).unwrap();
        block_on(manager.shutdown());
        block_on(manager.shutdown());
        assert_eq!(block_on(told.recv()).unwrap().key, events::QUEUE_SHUTDOWN_STARTED);
        go.open();
        block_on(ticket).unwrap().unwrap();
        // Also without a drain.
        assert_eq!(block_on(told.recv()).unwrap().key, events::QUEUE_SHUTDOWN_COMPLETE);
        block_on(manager.drain(HANG)).unwrap();
        drop(manager);
        assert!(block_on(told.recv()).is_none(), "told twice");
    });
}

#[test]
fn a_slow_subscriber_is_told_how_much_it_lost_and_goes_on() {
    let emitter = EventEmitter::new(10);
    let mut receiver = emitter.subscribe();
    let mut filtered = emitter.subscribe_filtered(|event| event.key == "event.24");
    (0..25).for_each(|i| emitter.emit(LaneEvent::empty(format!("event.{i}"))));
    let first = block_on(receiver.recv()).unwrap();
    assert_eq!(first.key, events::QUEUE_EVENTS_LAGGED);
    assert_eq!(first.transition(), Some(&Transition::Lagged(15)));
    assert_eq!(first.payload, EventPayload::Map(HashMap::from([("missed".to_owned(), json!(15))])));
    for i in 15..25 {
        assert_eq!(block_on(receiver.recv()).unwrap().key, format!("event.{i}"));
    }
    // Also past a filter.
    assert_eq!(block_on(filtered.next()).unwrap().key, events::QUEUE_EVENTS_LAGGED);
    assert_eq!(block_on(filtered.next()).unwrap().key, "event.24");
    drop(emitter);
    assert!(matches!(block_on(receiver.recv()), Err(EventsClosed)));
    assert!(block_on(filtered.next()).is_none());
}

#[test]
fn events_of_ones_own_reach_all_subscribers() {
    let emitter = EventEmitter::new(0);
    emitter.emit(LaneEvent::empty("nobody.listens"));
    let (mut one, mut two) = (emitter.subscribe(), emitter.clone().subscribe_stream());
    emitter.emit(LaneEvent::with_string("mine", "text"));
    assert_eq!(block_on(one.recv()).unwrap().payload, EventPayload::String("text".into()));
    assert_eq!(block_on(two.next()).unwrap().key, "mine");
}

#[test]
fn an_event_survives_json() {
    let event = LaneEvent::with_map("mine", HashMap::from([("n".to_owned(), json!(1))]));
    let text = serde_json::to_string(&event).unwrap();
    let back: LaneEvent = serde_json::from_str(&text).unwrap();
    assert_eq!((back.key, back.payload, back.timestamp), (event.key, event.payload, event.timestamp));
}

#[test]
fn a_monitor_sees_what_is_pending_and_active() {
    on_workers(|executor| {
        let manager = manager(executor, &[("lane", LaneConfig::new(1, 2), 0)]);
        let config =
            MonitorConfig { interval: Duration::ZERO, pending_warning_threshold: 1, active_warning_threshold: 1 };
        let monitor = std::sync::Arc::new(QueueMonitor::with_config(manager.queue(), config));
        block_on(monitor.clone().start());
        block_on(monitor.clone().start());
        let go = Barrier::default();
        let tickets: Vec<_> = (0..5)
            .map(|_| {
                let go = go.clone();
                manager.submit_fn("lane", "waits", move || async move { Ok(go.passed().await) }).unwrap()
            })
            .collect();
        let stats = block_on(monitor.stats());
        assert_eq!((stats.total_pending, stats.total_active, stats.dead_letter_count), (3, 2, 0));
        go.open();
        tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
        // Its task ends with it, and does not keep the queue.
        let queue = std::sync::Arc::downgrade(&manager.queue());
        drop((monitor, manager));
        eventually("the queue is gone", || queue.upgrade().is_none());
    });
    let defaults = MonitorConfig::default();
    assert_eq!((defaults.pending_warning_threshold, defaults.active_warning_threshold), (100, 50));
    assert_eq!(defaults.interval, Duration::from_secs(10));
}

#[test]
fn a_queue_without_subscribers_emits_nothing_and_works() {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_lane("a", LaneConfig::default(), 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    assert_eq!(block_on(manager.submit_fn("a", "t", || async { Ok(1) }).unwrap()).unwrap().unwrap(), 1);
}

#[test]
fn a_panicking_command_type_loses_an_event_and_nothing_else() {
    struct Nameless;
    #[async_trait::async_trait]
    impl corelane::Command for Nameless {
        async fn execute(&self) -> corelane::Result<serde_json::Value> {
            Ok(json!("done"))
        }
        fn command_type(&self) -> &str {
            panic!("no name on purpose")
        }
    }
    on_workers(|executor| {
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1), 0)]);
        let _subscriber = manager.subscribe();
        for _ in 0..3 {
            let ticket = manager.try_submit("one", Box::new(Nameless)).unwrap();
            assert_eq!(block_on(ticket).unwrap().unwrap(), "done");
        }
        assert_eq!(block_on(manager.stats()).unwrap().total_active, 0);
    });
}

#[test]
fn an_emitter_of_any_capacity_works() {
    for capacity in [0, 1, usize::MAX] {
        let emitter = EventEmitter::new(capacity);
        let mut receiver = emitter.subscribe();
        emitter.emit(LaneEvent::empty("mine"));
        assert_eq!(block_on(receiver.recv()).unwrap().key, "mine");
    }
}
