//! The flight recorder: the last events of each thread, without a subscriber, and the forms that they are written in.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    AlertManager, AlertStatus, EventEmitter, EventKind, LaneConfig, LaneError, LaneEvent, QueueManager,
    QueueManagerBuilder, RetryPolicy, Simulation, Transition,
};
use serde_json::Value;

use crate::support::{HANG, block_on, executor};

fn queue(simulation: &Simulation, events: EventEmitter) -> QueueManager {
    let builder = QueueManagerBuilder::new(events).with_executor(simulation.executor().clone());
    let retries = LaneConfig::new(1, 4).with_retry_policy(RetryPolicy::fixed(1, Duration::from_millis(100)));
    let builder = builder.with_lane("a", LaneConfig::new(1, 4), 0).with_lane("retries", retries, 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

#[test]
fn the_last_events_are_recorded_without_a_subscriber() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::with_recorder(10);
    let manager = queue(&simulation, events.clone());
    let ids: Vec<_> = (0..20)
        .map(|_| {
            let ticket = manager.submit_fn("a", "work", || async { Ok(()) }).unwrap();
            let id = ticket.id();
            simulation.block_on(ticket).unwrap().unwrap();
            id
        })
        .collect();
    let recording = events.recording();
    // The last one that is complete, and some of those before.
    assert_eq!(recording.events().len(), 10);
    let told: Vec<_> = recording.events().iter().map(|recorded| recorded.event.transition().unwrap()).collect();
    assert_eq!(told[0].kind(), EventKind::Completed);
    for (told, id) in told[1..].chunks(3).zip(&ids[17..]) {
        assert!(told.iter().all(|told| told.command().unwrap().command_id == *id));
        assert!(matches!(told, [Transition::Submitted(_), Transition::Started(_), Transition::Completed(_)]));
    }
    // What is recorded is not taken.
    assert_eq!(events.recording().events().len(), 10);
}

#[test]
fn an_emitter_records_from_when_it_is_told_to() {
    let emitter = EventEmitter::new(4);
    emitter.emit(LaneEvent::empty("before"));
    assert!(emitter.recording().events().is_empty());
    emitter.record(100);
    (0..150).for_each(|i| emitter.emit(LaneEvent::empty(format!("event.{i}"))));
    let recording = emitter.recording();
    let keys: Vec<_> = recording.events().iter().map(|recorded| recorded.event.key.to_string()).collect();
    assert_eq!(keys, (50..150).map(|i| format!("event.{i}")).collect::<Vec<_>>());
    // A subscriber may be behind by as much as the emitter was made for.
    let mut receiver = emitter.subscribe();
    (0..10).for_each(|_| emitter.emit(LaneEvent::empty("more")));
    assert_eq!(block_on(receiver.recv()).unwrap().transition(), Some(&Transition::Lagged(6)));
}

#[test]
fn a_recording_of_many_threads_is_in_order() {
    let events = EventEmitter::with_recorder(10_000);
    let builder = QueueManagerBuilder::new(events.clone()).with_executor(executor(2));
    let manager = block_on(builder.with_lane("a", LaneConfig::new(1, 4), 0).build()).unwrap();
    block_on(manager.start()).unwrap();
    let mut tickets = Vec::new();
    for i in 0..3_000 {
        tickets.push(manager.submit_fn("a", "work", || async { Ok(()) }).unwrap());
        if i % 1_000 == 500 {
            in_order(&events);
        }
    }
    tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
    let steps = in_order(&events);
    assert!(steps.len() == 3_000 && steps.values().all(|steps| *steps == 3));
}

/// How many steps are recorded of each command: none without those before.
fn in_order(events: &EventEmitter) -> HashMap<u64, usize> {
    let mut steps = HashMap::new();
    for recorded in events.recording().events() {
        let Some(transition) = recorded.event.transition() else { continue };
        let step = match transition.kind() {
            EventKind::Submitted => 0,
            EventKind::Started => 1,
            EventKind::Completed => 2,
            _ => continue,
        };
        let before: &mut usize = steps.entry(transition.command().unwrap().command_id.as_u64()).or_default();
        assert_eq!(*before, step, "{transition:?}");
        *before += 1;
    }
    steps
}

#[test]
fn lines_of_json_have_an_event_each() {
    let emitter = EventEmitter::with_recorder(10);
    let mut simulation = Simulation::new(1, 7);
    let manager = queue(&simulation, emitter.clone());
    let ticket = manager.submit_fn("a", "work", || async { Ok(()) }).unwrap();
    simulation.block_on(ticket).unwrap().unwrap();
    emitter.emit(LaneEvent::with_string("mine", "two\nlines"));
    let text = emitter.recording().to_json_lines();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["queue.command.submitted", "queue.command.started", "queue.command.completed", "mine"]);
    assert!(lines.iter().all(|line| line["thread"].is_string() && line["timestamp"].is_string()));
    assert_eq!((&lines[0]["payload"]["lane_id"], &lines[3]["payload"]), (&"a".into(), &"two\nlines".into()));
    // As an event, it comes back.
    let event: LaneEvent = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(event.key, "queue.command.submitted");
}

/// A slice of the trace, while it is open: its name and when it began.
type Open = Vec<(String, f64)>;

/// Checks the rules of the Trace Event Format, and gives the slices: name, process, duration in milliseconds.
fn slices(trace: &str) -> (Vec<(String, u64, f64)>, usize) {
    let trace: Value = serde_json::from_str(trace).unwrap();
    let mut named = BTreeMap::new();
    let mut open: HashMap<(u64, String, String), Open> = HashMap::new();
    let (mut slices, mut instants, mut last) = (Vec::new(), 0, 0.0);
    for event in trace["traceEvents"].as_array().unwrap() {
        let process = event["pid"].as_u64().unwrap();
        assert!(event["tid"].is_u64() && event["name"].is_string(), "{event}");
        if event["ph"] == "M" {
            assert!(event["args"]["name"].is_string(), "{event}");
            if event["name"] == "process_name" {
                assert!(named.insert(process, event["args"]["name"].as_str().unwrap().to_owned()).is_none());
            } else {
                assert_eq!(event["name"], "thread_name");
            }
            continue;
        }
        assert!(named.contains_key(&process), "a process without a name: {event}");
        let (ts, category) = (event["ts"].as_f64().unwrap(), event["cat"].as_str().unwrap());
        assert!(ts >= 0.0);
        let id = || (process, category.to_owned(), event["id"].as_str().unwrap().to_owned());
        let name = event["name"].as_str().unwrap().to_owned();
        match event["ph"].as_str().unwrap() {
            "i" => {
                assert!(["t", "p", "g"].contains(&event["s"].as_str().unwrap()), "{event}");
                assert!(ts >= last, "instants are in order");
                (instants, last) = (instants + 1, ts);
            }
            "b" => {
                let open = open.entry(id()).or_default();
                assert!(open.last().is_none_or(|(_, began)| *began <= ts), "{event} begins before what it is in");
                open.push((name, ts));
            }
            "e" => {
                let (opened, began) =
                    open.get_mut(&id()).and_then(Vec::pop).unwrap_or_else(|| panic!("not open: {event}"));
                assert!(opened == name && began <= ts, "{event} ends {opened}, begun at {began}");
                slices.push((name, process, (ts - began) / 1e3));
            }
            other => panic!("{other}"),
        }
    }
    let open = open.values().filter(|open| !open.is_empty()).count();
    assert!(instants > 0);
    (slices, open)
}

#[test]
fn a_trace_shows_each_command_with_its_waits_and_runs() {
    let mut simulation = Simulation::new(1, 7);
    let events = EventEmitter::with_recorder(100);
    let manager = queue(&simulation, events.clone());
    let sleeps = || async { Ok(corelane::sleep(Duration::from_millis(50)).await) };
    let ticket = manager.submit_fn("a", "sleeps", sleeps).unwrap();
    simulation.block_on(ticket).unwrap().unwrap();
    let fails = crate::support::Work(|| async {
        corelane::sleep(Duration::from_millis(10)).await;
        Err::<(), _>(LaneError::CommandError("broken".into()))
    });
    let ticket = manager.submit_typed("retries", fails).unwrap();
    simulation.block_on(ticket).unwrap().unwrap_err();
    let _runs = manager.submit_fn("a", "for ever", || async { Ok(std::future::pending::<()>().await) }).unwrap();
    simulation.run_until_idle();

    let (slices, open) = slices(&events.recording().to_perfetto());
    let shown: Vec<_> = slices.iter().map(|(name, lane, length)| (&**name, *lane, length.round())).collect();
    let expected = [
        ("wait", 2, 0.0),
        ("run", 2, 50.0),
        ("sleeps", 2, 50.0),
        ("wait", 3, 0.0),
        ("run", 3, 10.0),
        ("wait", 3, 100.0),
        ("run", 3, 10.0),
        ("work", 3, 120.0),
        ("wait", 2, 0.0),
    ];
    assert_eq!(shown, expected);
    assert_eq!(open, 1, "one command runs");
}

#[test]
fn a_trace_of_what_is_left_of_a_recording_is_well_formed() {
    for records in 1..40 {
        let mut simulation = Simulation::new(1, records);
        let events = EventEmitter::with_recorder(records as usize);
        let manager = queue(&simulation, events.clone());
        let tickets: Vec<_> = (0..12)
            .map(|i| {
                let command = move || async move {
                    corelane::yield_now().await;
                    if i % 3 == 0 { Err(LaneError::CommandError("broken".into())) } else { Ok(()) }
                };
                manager.submit_fn(if i % 2 == 0 { "a" } else { "retries" }, "work", command).unwrap()
            })
            .collect();
        for ticket in tickets {
            let _ = simulation.block_on(ticket).unwrap();
        }
        assert_eq!(slices(&events.recording().to_perfetto()).1, 0, "all have ended");
    }
}

/// Set for the process in which a test panics, to the folder that it writes to.
const FOLDER: &str = "CORELANE_TEST_RECORDER_FOLDER";

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("corelane-recorder-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_panic_has_the_recording_written_once() {
    // Panic hooks are the process's, and other tests panic.
    if let Some(folder) = std::env::var_os(FOLDER) {
        return panic_twice(&PathBuf::from(folder));
    }
    let folder = folder("panic");
    let test = std::env::current_exe().unwrap();
    let arguments = ["--exact", "recorder::a_panic_has_the_recording_written_once", "--nocapture"];
    let output = std::process::Command::new(test).args(arguments).env(FOLDER, &folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("1 passed"), "{stdout}");
    let (slices, _) = slices(&std::fs::read_to_string(folder.join("trace.json")).unwrap());
    assert!(slices.iter().any(|(name, ..)| name == "wait"), "{slices:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn panic_twice(folder: &Path) {
    let (trace, lines) = (folder.join("trace.json"), folder.join("events.jsonl"));
    let hooked = Arc::new(AtomicUsize::new(0));
    let before = Arc::clone(&hooked);
    std::panic::set_hook(Box::new(move |_| _ = before.fetch_add(1, Ordering::SeqCst)));
    let events = EventEmitter::with_recorder(100);
    events.dump_on_panic(&trace);
    events.dump_on_panic(&lines);
    // Nobody can write there.
    events.dump_on_panic(folder.join("missing/trace.json"));
    let gone = EventEmitter::with_recorder(100);
    gone.dump_on_panic(folder.join("gone.json"));
    drop(gone);
    let builder = QueueManagerBuilder::new(events.clone()).with_executor(executor(1));
    let manager = block_on(builder.with_lane("a", LaneConfig::new(1, 4), 0).build()).unwrap();
    block_on(manager.start()).unwrap();
    let panics = || manager.submit_fn("a", "panics", || async { if true { panic!("on purpose") } else { Ok(()) } });
    block_on(panics().unwrap()).unwrap().unwrap_err();
    assert_eq!(hooked.load(Ordering::SeqCst), 1, "the hook that was there is called");
    let written = std::fs::read_to_string(&lines).unwrap();
    assert!(written.lines().any(|line| line.contains("queue.command.started")), "{written}");
    block_on(panics().unwrap()).unwrap().unwrap_err();
    assert_eq!(hooked.load(Ordering::SeqCst), 2);
    assert_eq!(std::fs::read_to_string(&lines).unwrap(), written, "written twice");
    assert!(trace.exists() && !folder.join("gone.json").exists());
}

#[test]
fn an_alert_that_fires_can_have_what_came_before_it_written() {
    let folder = folder("alert");
    let events = EventEmitter::with_recorder(100);
    let mut simulation = Simulation::new(1, 7);
    let manager = queue(&simulation, events.clone());
    let alerts = AlertManager::with_queue_depth_alerts(10, 20);
    let dumps = folder.clone();
    alerts.add_notification_callback(move |notification| {
        if notification.status == AlertStatus::Firing && notification.sequence == 1 {
            let file = dumps.join(format!("{}.json", notification.fingerprint));
            std::fs::write(file, events.recording().to_perfetto()).unwrap();
        }
    });
    let ticket = manager.submit_fn("a", "work", || async { Ok(()) }).unwrap();
    simulation.block_on(ticket).unwrap().unwrap();
    let files = || std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    block_on(alerts.check_queue_depth("a", 9));
    block_on(alerts.flush(HANG));
    assert!(files().is_empty(), "nothing has fired");
    for depth in [10, 20] {
        block_on(alerts.check_queue_depth("a", depth));
    }
    block_on(alerts.flush(HANG));
    let files = files();
    assert_eq!(files.len(), 1);
    let (slices, open) = slices(&std::fs::read_to_string(&files[0]).unwrap());
    assert!(open == 0 && slices.iter().any(|(name, ..)| name == "work"), "{slices:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}
