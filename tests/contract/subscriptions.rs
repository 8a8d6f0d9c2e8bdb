//! Subscriptions: what is told, in which order, and what becomes of subscribers that are behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use corelane::{
    Command, CommandId, EventEmitter, EventKind, EventPayload, EventReceiver, EventsClosed, LaneConfig, LaneError,
    LaneEvent, OnOverflow, QueueManager, QueueManagerBuilder, QueueMetrics, Simulation, Subscription, Transition,
    events,
};
use futures::FutureExt;
use serde_json::{Value, json};

use crate::support::{HANG, block_on, executor, finish};

fn queue(simulation: &Simulation, events: &EventEmitter, lanes: &[&str]) -> QueueManager {
    let builder = QueueManagerBuilder::new(events.clone()).with_executor(simulation.executor().clone());
    let builder = lanes.iter().fold(builder, |builder, lane| builder.with_lane(*lane, LaneConfig::new(1, 4), 0));
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

/// Runs a command that returns its number, and gives its id.
fn run(simulation: &mut Simulation, manager: &QueueManager, lane: &str, command_type: &str) -> CommandId {
    let ticket = manager.submit_fn(lane, command_type.to_owned(), || async { Ok(1) }).unwrap();
    let id = ticket.id();
    assert_eq!(simulation.block_on(ticket).unwrap().unwrap(), 1);
    id
}

/// The events that are there.
fn received(receiver: &mut EventReceiver) -> Vec<LaneEvent> {
    std::iter::from_fn(|| receiver.recv().now_or_never()).map(|event| event.unwrap()).collect()
}

fn transitions(receiver: &mut EventReceiver) -> Vec<Transition> {
    received(receiver).iter().map(|event| event.transition().unwrap().clone()).collect()
}

#[test]
fn causes_are_told_before_their_effects_whichever_threads_tell_them() {
    const THREADS: usize = 3;
    const COMMANDS: usize = 4_000;
    let events = EventEmitter::new(1 << 15);
    let mut receiver = events.subscribe_with(Subscription::new().without_payload());
    let manager = {
        let builder = QueueManagerBuilder::new(events).with_executor(executor(3));
        Arc::new(block_on(builder.with_lane("a", LaneConfig::new(1, 4), 0).build()).unwrap())
    };
    block_on(manager.start()).unwrap();
    let submitters: Vec<_> = (0..THREADS)
        .map(|_| {
            let manager = Arc::clone(&manager);
            thread::spawn(move || {
                for i in 0..COMMANDS {
                    let ticket = manager.submit_fn("a", "work", || async { Ok(()) }).unwrap();
                    if i % 8 == 0 {
                        block_on(ticket).unwrap().unwrap();
                    }
                }
            })
        })
        .collect();
    let mut steps: HashMap<CommandId, usize> = HashMap::new();
    let mut ended = 0;
    while ended < THREADS * COMMANDS {
        let event = finish("an event", receiver.recv()).unwrap();
        let transition = event.transition().unwrap();
        let step = match transition {
            Transition::Submitted(_) => 0,
            Transition::Started(_) => 1,
            Transition::Completed(_) => 2,
            // The lane may come under pressure.
            Transition::Lagged(_) => panic!("there is room for all"),
            _ => continue,
        };
        let before = steps.entry(transition.command().unwrap().command_id).or_default();
        assert_eq!(*before, step, "{transition:?}");
        *before += 1;
        ended += usize::from(step == 2);
    }
    submitters.into_iter().for_each(|submitter| submitter.join().unwrap());
    assert_eq!(steps.len(), THREADS * COMMANDS);
}

/// Several threads that emit at the same time, each with a log of its own.
fn emit_from_threads(emitter: &EventEmitter, threads: usize, events: usize) {
    let together = Arc::new(std::sync::Barrier::new(threads));
    let emitting: Vec<_> = (0..threads)
        .map(|thread| {
            let (emitter, together) = (emitter.clone(), Arc::clone(&together));
            thread::spawn(move || {
                emitter.emit(LaneEvent::with_string(format!("{thread}"), "0"));
                // None ends, and leaves its log to another one, before all have one.
                together.wait();
                (1..events).for_each(|i| emitter.emit(LaneEvent::with_string(format!("{thread}"), i.to_string())));
            })
        })
        .collect();
    emitting.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn losses_are_counted_exactly_for_each_thread() {
    const THREADS: usize = 3;
    const EVENTS: usize = 1_000;
    for (capacity, asked) in [(100, usize::MAX), (64, usize::MAX), (1, usize::MAX), (100, 10), (100, 0)] {
        let emitter = EventEmitter::new(capacity);
        let mut receiver = emitter.subscribe_with(Subscription::new().capacity(asked));
        let never_reads = emitter.subscribe();
        emit_from_threads(&emitter, THREADS, EVENTS);
        let kept = capacity.min(asked.max(1));
        let (mut missed, mut got) = (0, HashMap::<String, Vec<usize>>::new());
        for event in received(&mut receiver) {
            match (event.transition(), &event.payload) {
                (Some(Transition::Lagged(lost)), _) => {
                    assert_eq!(*lost, (EVENTS - kept) as u64);
                    missed += lost;
                }
                (_, EventPayload::String(number)) => {
                    got.entry(event.key.to_string()).or_default().push(number.parse().unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(missed, (THREADS * (EVENTS - kept)) as u64);
        assert_eq!(got.len(), THREADS);
        assert!(got.values().all(|numbers| numbers.iter().copied().eq(EVENTS - kept..EVENTS)), "{got:?}");
        assert_eq!(emitter.dropped(), missed);
        drop(never_reads);
        assert_eq!(emitter.dropped(), missed + (THREADS * (EVENTS - capacity)) as u64);
    }
}

#[test]
fn what_is_lost_while_it_is_read_is_counted_too() {
    const EVENTS: u64 = 200_000;
    let emitter = EventEmitter::new(8);
    let mut receiver = emitter.subscribe();
    let telling = emitter.clone();
    let teller =
        thread::spawn(move || (0..EVENTS).for_each(|i| telling.emit(LaneEvent::with_string("n", i.to_string()))));
    let mut next = 0;
    while next < EVENTS {
        let event = finish("an event", receiver.recv()).unwrap();
        match (event.transition(), &event.payload) {
            (Some(Transition::Lagged(lost)), _) => next += lost,
            (_, EventPayload::String(number)) => {
                assert_eq!(*number, next.to_string());
                next += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(next, EVENTS);
    teller.join().unwrap();
}

#[test]
fn nothing_is_lost_when_others_come_and_go() {
    let emitter = EventEmitter::new(1 << 16);
    let (begun, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let teller = {
        let (emitter, begun, over) = (emitter.clone(), Arc::clone(&begun), Arc::clone(&over));
        thread::spawn(move || {
            for i in 1.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                begun.store(i, Ordering::SeqCst);
                emitter.emit(LaneEvent::with_string("n", i.to_string()));
                if i % 64 == 0 {
                    thread::yield_now();
                }
            }
        })
    };
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (emitter, begun) = (emitter.clone(), Arc::clone(&begun));
            thread::spawn(move || {
                for _ in 0..200 {
                    let mut receiver = emitter.subscribe();
                    let mut last = None;
                    let before = begun.load(Ordering::SeqCst);
                    for _ in 0..20 {
                        let event = finish("an event", receiver.recv()).unwrap();
                        let EventPayload::String(number) = &event.payload else { panic!("{event:?}") };
                        let number: u64 = number.parse().unwrap();
                        match last {
                            Some(last) => assert_eq!(number, last + 1),
                            None => assert!(number <= before + 1, "{number} is the first, {before} had begun"),
                        }
                        last = Some(number);
                    }
                }
            })
        })
        .collect();
    let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
    over.store(true, Ordering::SeqCst);
    teller.join().unwrap();
    ended.into_iter().for_each(|reader| reader.unwrap());
}

#[test]
fn who_conflates_gets_the_newest_of_each_lane_and_kind_however_far_behind() {
    for capacity in [1, 4, 5, 1_000] {
        let mut simulation = Simulation::new(1, 7);
        let events = EventEmitter::new(capacity);
        let mut receiver = events.subscribe_with(Subscription::new().on_overflow(OnOverflow::Conflate));
        let manager = queue(&simulation, &events, &["a", "b"]);
        // Twice, so that it is behind, catches up, and is behind again.
        for _ in 0..2 {
            let mut newest = HashMap::new();
            for (lane, commands) in [("a", 2), ("b", 50)] {
                for _ in 0..commands {
                    newest.insert(lane, run(&mut simulation, &manager, lane, "work"));
                }
            }
            let told = transitions(&mut receiver);
            assert_eq!(told.len(), 2 * 3, "{told:?}");
            for (lane, id) in newest {
                let of_lane: Vec<_> = told.iter().filter(|told| **told.lane_id().unwrap() == *lane).collect();
                assert!(of_lane.iter().all(|told| told.command().unwrap().command_id == id), "{of_lane:?}");
                let kinds: Vec<_> = of_lane.iter().map(|told| told.kind()).collect();
                assert_eq!(kinds, [EventKind::Submitted, EventKind::Started, EventKind::Completed]);
            }
        }
        drop(receiver);
        assert_eq!(events.dropped(), 0);
    }
}

#[test]
fn who_conflates_and_keeps_up_gets_everything() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(100);
    let mut receiver = events.subscribe_with(Subscription::new().on_overflow(OnOverflow::Conflate));
    let manager = queue(&simulation, &events, &["a"]);
    for _ in 0..10 {
        run(&mut simulation, &manager, "a", "work");
        assert_eq!(transitions(&mut receiver).len(), 3);
    }
}

#[test]
fn a_subscription_chooses_kinds_and_lanes_and_what_nobody_wants_is_not_built() {
    /// Counts who asks for its type.
    struct Asked(Arc<AtomicUsize>);
    #[async_trait::async_trait]
    impl Command for Asked {
        async fn execute(&self) -> corelane::Result<Value> {
            Ok(json!(1))
        }
        fn command_type(&self) -> &str {
            self.0.fetch_add(1, Ordering::SeqCst);
            "asked"
        }
    }
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(100);
    let manager = queue(&simulation, &events, &["a", "b"]);
    let asked = Arc::new(AtomicUsize::new(0));
    let go = |simulation: &mut Simulation| {
        for lane in ["a", "b"] {
            let ticket = manager.try_submit(lane, Box::new(Asked(Arc::clone(&asked)))).unwrap();
            assert_eq!(simulation.block_on(ticket).unwrap().unwrap(), 1);
        }
        asked.swap(0, Ordering::SeqCst)
    };
    assert_eq!(go(&mut simulation), 0, "nobody is subscribed");

    let mut failures = events.subscribe_with(Subscription::new().kinds([EventKind::Failed, EventKind::TimedOut]));
    assert_eq!(go(&mut simulation), 0, "nobody wants to know of success");
    let fails = || async { Err::<(), _>(LaneError::CommandError("broken".into())) };
    let ticket = manager.submit_fn("a", "fails", fails).unwrap();
    simulation.block_on(ticket).unwrap().unwrap_err();
    assert!(matches!(&transitions(&mut failures)[..], [Transition::Failed { .. }]));

    let mut ends = events.subscribe_with(Subscription::new().kinds([EventKind::Completed]).lanes(["b"]));
    assert_eq!(go(&mut simulation), 2);
    let ended = transitions(&mut ends);
    assert!(matches!(&ended[..], [Transition::Completed(command)] if &*command.lane_id == "b"), "{ended:?}");
    assert_eq!(transitions(&mut failures), []);
    drop((failures, ends));
    assert_eq!(go(&mut simulation), 0, "nobody is subscribed any more");
}

#[test]
fn a_payload_is_left_out_on_request() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(100);
    let manager = queue(&simulation, &events, &["a"]);
    let mut receiver = events.subscribe_with(Subscription::new().without_payload());
    run(&mut simulation, &manager, "a", "work");
    let told = received(&mut receiver);
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|event| event.payload == EventPayload::Empty && event.transition().is_some()));
    assert_eq!(told[0].key, events::QUEUE_COMMAND_SUBMITTED);
}

#[test]
fn events_tell_how_long_a_command_waited_and_ran() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(100);
    let mut receiver = events.subscribe();
    let builder = QueueManagerBuilder::new(events).with_executor(simulation.executor().clone());
    let builder = builder.with_metrics(QueueMetrics::local()).with_lane("a", LaneConfig::new(1, 1), 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    let tickets: Vec<_> = [Ok(()), Err(LaneError::CommandError("broken".into()))]
        .into_iter()
        .map(|result| {
            let command = || async {
                corelane::sleep(Duration::from_secs(3)).await;
                result
            };
            manager.submit_fn("a", "sleeps", command).unwrap()
        })
        .collect();
    for ticket in tickets {
        let _ = simulation.block_on(ticket).unwrap();
    }
    let told = received(&mut receiver);
    let measured = |key: &str, field: &str, number: usize, seconds: u64| {
        let event = told.iter().filter(|event| event.key == key).nth(number).unwrap();
        let EventPayload::Map(fields) = &event.payload else { panic!("{event:?}") };
        let (duration, shown) = (event.duration().unwrap(), fields[field].as_f64().unwrap());
        assert_eq!(duration.as_secs_f64().round(), seconds as f64, "{event:?}");
        assert!((shown - duration.as_secs_f64() * 1e3).abs() < 1e-3, "{event:?}");
    };
    measured(events::QUEUE_COMMAND_STARTED, "wait_ms", 0, 0);
    measured(events::QUEUE_COMMAND_COMPLETED, "duration_ms", 0, 3);
    measured(events::QUEUE_COMMAND_STARTED, "wait_ms", 1, 3);
    measured(events::QUEUE_COMMAND_FAILED, "duration_ms", 0, 3);
    assert!(
        told.iter()
            .filter(|event| event.key == events::QUEUE_COMMAND_SUBMITTED)
            .all(|event| event.duration().is_none())
    );
    // Timestamps are of virtual time, too.
    let span = told.last().unwrap().timestamp - told[0].timestamp;
    assert_eq!(span.as_seconds_f64().round(), 6.0);
}

#[test]
fn types_of_any_length_and_number_come_as_they_are() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(4);
    let manager = queue(&simulation, &events, &["a"]);
    let mut receiver = events.subscribe_with(Subscription::new().without_payload());
    // More long ones than there are numbers for, and some that are too long to have one.
    let many = (0..5_000).map(|i| format!("a long name of a type, number {i}"));
    let lengths = (0..40).chain([255, 256, 257, 5_000]).map(|length| "ü".repeat(length) + "x");
    for name in lengths.chain(many) {
        let id = run(&mut simulation, &manager, "a", &name);
        let told = transitions(&mut receiver);
        assert_eq!(told.len(), 3);
        for told in told {
            let command = told.command().unwrap();
            assert_eq!((&*command.command_type, command.command_id), (&*name, id));
        }
    }
}

#[test]
fn lanes_of_any_number_come_as_they_are() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::new(4);
    let mut receiver = events.subscribe_with(Subscription::new().without_payload());
    // Of many queues, each of which goes again: their names' addresses are given to others.
    for i in 0..2_500 {
        let lanes = [format!("lane {i} a"), format!("lane {i} b")];
        let manager = queue(&simulation, &events, &[&lanes[0], &lanes[1]]);
        for lane in &lanes {
            run(&mut simulation, &manager, lane, "work");
            let told = transitions(&mut receiver);
            assert_eq!(told.len(), 3);
            assert!(told.iter().all(|told| **told.lane_id().unwrap() == **lane), "{lane}: {told:?}");
        }
        drop(manager);
        while receiver.recv().now_or_never().is_some() {}
    }
}

#[test]
fn one_thread_tells_many_emitters() {
    let emitters: Vec<_> = (0..50).map(|_| EventEmitter::new(8)).collect();
    let mut receivers: Vec<_> = emitters.iter().map(EventEmitter::subscribe).collect();
    for round in 0..5 {
        for (i, emitter) in emitters.iter().enumerate() {
            emitter.emit(LaneEvent::with_string("n", format!("{round} {i}")));
        }
    }
    for (i, receiver) in receivers.iter_mut().enumerate() {
        let told: Vec<_> = received(receiver).into_iter().map(|event| event.payload).collect();
        let expected: Vec<_> = (0..5).map(|round| EventPayload::String(format!("{round} {i}"))).collect();
        assert_eq!(told, expected);
    }
}

#[test]
fn who_waits_is_woken_by_frequent_events_also_after_a_long_silence() {
    let events = EventEmitter::new(100);
    let builder = QueueManagerBuilder::new(events.clone()).with_executor(executor(2));
    let manager = block_on(builder.with_lane("a", LaneConfig::new(1, 1), 0).build()).unwrap();
    block_on(manager.start()).unwrap();
    let (told, hears) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut receiver = events.subscribe();
        drop(events);
        told.send(None).unwrap();
        while let Ok(event) = block_on(receiver.recv()) {
            told.send(Some(event)).unwrap();
        }
    });
    assert!(hears.recv_timeout(HANG).unwrap().is_none());
    // Around the silence after which the waking thread parks, and far beyond.
    for silence in [0, 1, 95, 99, 100, 101, 102, 103, 104, 105, 110, 300, 0, 100] {
        thread::sleep(Duration::from_millis(silence));
        let id = manager.submit_fn("a", "work", || async { Ok(()) }).unwrap().id();
        for kind in [EventKind::Submitted, EventKind::Started, EventKind::Completed] {
            let event = hears.recv_timeout(HANG).expect("the reader is woken").unwrap();
            let transition = event.transition().unwrap();
            assert_eq!((transition.kind(), transition.command().unwrap().command_id), (kind, id));
        }
    }
    // And by the end.
    drop(manager);
    assert!(matches!(hears.recv_timeout(HANG), Ok(Some(_)) | Err(mpsc::RecvTimeoutError::Disconnected)));
    reader.join().unwrap();
}

#[test]
fn who_waits_when_the_emitter_goes_is_told_so() {
    for _ in 0..50 {
        let emitter = EventEmitter::new(4);
        let mut receiver = emitter.subscribe();
        let mut stream = emitter.subscribe_filtered(|_| true);
        let waits = thread::spawn(move || finish("the end", receiver.recv()).map(|event| event.key));
        let streams = thread::spawn(move || finish("the end", stream.recv()).map(|event| event.key));
        thread::yield_now();
        drop(emitter);
        assert_eq!(waits.join().unwrap(), Err(EventsClosed));
        assert_eq!(streams.join().unwrap(), None);
    }
}

#[test]
fn what_was_told_before_the_end_is_received() {
    let emitter = EventEmitter::new(4);
    let mut receiver = emitter.subscribe();
    let emitting = emitter.clone();
    // By a thread that has ended since.
    thread::spawn(move || emitting.emit(LaneEvent::empty("last"))).join().unwrap();
    drop(emitter);
    assert_eq!(block_on(receiver.recv()).unwrap().key, "last");
    assert_eq!(block_on(receiver.recv()).map(|event| event.key), Err(EventsClosed));
}

#[test]
fn the_metrics_count_what_subscribers_have_lost_once() {
    let mut simulation = Simulation::new(1, 7);
    let (events, metrics) = (EventEmitter::new(4), QueueMetrics::local());
    let executor = simulation.executor().clone();
    let queue = || {
        let builder = QueueManagerBuilder::new(events.clone()).with_executor(executor.clone());
        let builder = builder.with_metrics(metrics.clone()).with_lane("a", LaneConfig::new(1, 1), 0);
        let manager = block_on(builder.build()).unwrap();
        block_on(manager.start()).unwrap();
        manager
    };
    // Both have the emitter.
    let managers = [queue(), queue()];
    let lost = || metrics.collect().events_dropped;
    let mut receiver = events.subscribe();
    for _ in 0..10 {
        run(&mut simulation, &managers[0], "a", "work");
    }
    assert_eq!(lost(), 0, "nobody knows yet");
    assert_eq!(transitions(&mut receiver)[0], Transition::Lagged(26));
    assert_eq!((lost(), events.dropped()), (26, 26));
    // What it has counted stays with the metrics when its queues go, and is not counted again when others have it.
    drop(managers);
    assert_eq!(lost(), 26);
    let again = queue();
    assert_eq!(lost(), 26);
    drop((receiver, again));
}
