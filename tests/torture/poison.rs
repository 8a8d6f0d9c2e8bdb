//! Commands that kill their process, beside eight that do not; and ends of the process that are nobody's fault.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{CommandContext, DurableCommand, Executor, LaneConfig, QueueManager, Result, Stop, sleep, yield_now};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};

use crate::child::build;
use crate::process::{HANG, Place, Process};
use crate::programs::Signal;
use crate::report::{Event, report};
use crate::store::{Lie, stored};

const LANE: &str = "lane";
const CULPRIT: &str = "culprit";
const INNOCENTS: usize = 8;
/// Address space of a child whose command takes what it can get.
const MEMORY_KIB: u64 = 3 << 20;

/// How a command kills its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    /// It does not.
    Not,
    Abort,
    StackOverflow,
    /// It takes memory until there is none.
    Memory,
    /// As the system's out-of-memory killer does it.
    Kill,
    /// It panics while it is dropped for a panic.
    DoublePanic,
}

#[derive(Serialize, Deserialize)]
struct Task {
    store: PathBuf,
    lie: Lie,
    way: Way,
    crash_limit: u32,
    /// The first process submits: this many innocents, and a culprit in their midst if there are any.
    submits: Option<usize>,
    /// Commands end at once.
    quick: bool,
}

/// Whether commands end at once: those that run alone, and all when that was asked for.
static QUICK: AtomicBool = AtomicBool::new(false);
/// Innocents that have started.
static BESIDE: AtomicUsize = AtomicUsize::new(0);

#[derive(Serialize, Deserialize)]
struct Suspicious {
    name: String,
    way: Way,
}

impl DurableCommand for Suspicious {
    const TYPE: &'static str = "suspicious";
    type Output = ();

    async fn execute(&self) -> Result<()> {
        let context = CommandContext::current().expect("a command runs in its context");
        let (name, id) = (self.name.clone(), context.id.to_string());
        report(&Event::Started { name, id: id.clone(), attempt: context.attempt, token: String::new() });
        let quick = QUICK.load(Ordering::SeqCst);
        if self.way == Way::Not {
            BESIDE.fetch_add(1, Ordering::SeqCst);
            // Longer than its process lives.
            sleep(if quick { Duration::from_millis(2) } else { HANG }).await;
        } else {
            while !quick && BESIDE.load(Ordering::SeqCst) < INNOCENTS {
                yield_now().await;
            }
            kill_this_process(self.way);
        }
        report(&Event::Ended { name: self.name.clone(), id, good: true });
        Ok(())
    }
}

fn kill_this_process(way: Way) {
    match way {
        Way::Not => {}
        Way::Abort => std::process::abort(),
        Way::StackOverflow => _ = overflow(1),
        Way::Memory => {
            let mut taken: Vec<Vec<u8>> = Vec::new();
            loop {
                taken.push(Vec::with_capacity(64 << 20));
            }
        }
        Way::Kill => {
            let pid = std::process::id();
            let sent = std::process::Command::new("sh").arg("-c").arg(format!("kill -KILL {pid}")).status();
            panic!("still there: {sent:?}");
        }
        Way::DoublePanic => {
            let _last = PanicsWhenDropped;
            panic!("the first");
        }
    }
}

#[allow(unconditional_recursion, reason = "that is what it is for")]
fn overflow(depth: u64) -> u64 {
    let filled = std::hint::black_box([depth; 128]);
    overflow(depth + 1) + filled[usize::try_from(depth % 128).unwrap_or_default()]
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("the second");
    }
}

/// Runs what is stored until that has ended, it is killed, or asked to stop.
pub(crate) fn child(task: &str) {
    let task: Task = serde_json::from_str(task).expect("a task is data");
    let executor = Executor::builder().workers(3).pin(false).build().expect("an executor of three workers");
    let manager = block_on(build(&task.store, task.lie, |builder| {
        builder
            .with_executor(executor)
            .with_durable::<Suspicious>()
            .with_crash_limit(task.crash_limit, Duration::from_secs(72 * 3600))
            .with_lane(LANE, LaneConfig::new(1, INNOCENTS + 1), 1)
    }))
    .expect("the store can be opened and taken over");
    let recovery = manager.recovery().expect("there is a store");
    QUICK.store(task.quick || recovery.suspects > 0, Ordering::SeqCst);
    if let Some(innocents) = task.submits {
        block_on(submit(&manager, innocents, task.way));
    }
    let paused = recovery.paused;
    assert_eq!(paused, manager.lane(LANE).expect("it was built with it").is_paused());
    block_on(manager.start()).expect("it can be started");
    report(&Event::Ready);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if paused {
                // Time to do what it must not.
                std::thread::sleep(Duration::from_millis(200));
                report(&Event::Note { text: "resumed".into() });
                manager.resume(LANE).expect("it was built with it");
            }
            let mut line = String::new();
            let read = std::io::stdin().read_line(&mut line);
            if !read.is_ok_and(|read| read > 0) {
                // Nobody is there any more.
                std::process::exit(3);
            }
            let stop = Stop::drain(Duration::from_millis(10)).then_cancel(HANG);
            end(block_on(manager.stop(stop)).storage.is_none());
        });
        let drained = block_on(manager.drain(HANG));
        if manager.is_shutting_down() {
            // The other thread ends this.
            return;
        }
        drained.expect("what was accepted ends");
        block_on(manager.shutdown());
        end(block_on(manager.drain(HANG)).is_ok());
    });
}

fn end(clean: bool) -> ! {
    if clean {
        report(&Event::Stopped);
    }
    std::process::exit(0)
}

async fn submit(manager: &QueueManager, innocents: usize, way: Way) {
    for number in 0..innocents {
        if number == innocents / 2 && way != Way::Not {
            submit_one(manager, CULPRIT.into(), way).await;
        }
        submit_one(manager, format!("innocent-{number}"), Way::Not).await;
    }
}

async fn submit_one(manager: &QueueManager, name: String, way: Way) {
    let submitted = manager.submit_durable(LANE, Suspicious { name, way }).await;
    submitted.map_err(|refused| refused.error).expect("it is accepted").detach();
}

/// What a series of processes with one store has done.
struct Series {
    place: Place,
    task: Task,
    processes: usize,
}

impl Series {
    fn new(name: &str, way: Way, crash_limit: u32, innocents: usize) -> Self {
        let place = Place::new(&format!("{name}-{way:?}-{crash_limit}").to_lowercase());
        let store = place.store();
        let task = Task { store, lie: Lie::None, way, crash_limit, submits: Some(innocents), quick: false };
        Self { place, task, processes: 0 }
    }

    fn start(&mut self) -> Process {
        let log = self.place.log();
        let process = match self.task.way {
            Way::Memory => Process::start_limited("poison", &self.task, &log, MEMORY_KIB),
            _ => Process::start("poison", &self.task, &log),
        };
        self.task.submits = None;
        self.processes += 1;
        process
    }

    /// Starts one, waits until `running` commands run, and then ends it.
    fn start_and_end(&mut self, running: usize, end: impl FnOnce(&mut Process)) -> Vec<Event> {
        let mut process = self.start();
        for _ in 0..running {
            assert!(
                process.wait_for(HANG, |event| matches!(event, Event::Started { .. })),
                "{}",
                self.place.path.display()
            );
        }
        end(&mut process);
        process.end().1
    }
}

fn started(events: &[Event]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for event in events {
        if let Event::Started { name, .. } = event {
            names.insert(name.as_str());
        }
    }
    names
}

fn ended(events: &[Event]) -> BTreeSet<String> {
    let name = |event: &Event| if let Event::Ended { name, .. } = event { Some(name.clone()) } else { None };
    events.iter().filter_map(name).collect()
}

fn built(events: &[Event]) -> (bool, bool, u64, u64) {
    let found = events.iter().find_map(|event| match event {
        Event::Built { unclean, paused, suspects, dead_lettered, .. } => {
            Some((*unclean, *paused, *suspects, *dead_lettered))
        }
        _ => None,
    });
    found.expect("it was built")
}

pub(crate) fn gives_up_the_culprit() {
    for way in [Way::Abort, Way::StackOverflow, Way::Memory, Way::Kill, Way::DoublePanic] {
        for crash_limit in [3, 2] {
            let mut series = Series::new("poison", way, crash_limit, INNOCENTS);
            let mut innocents_ended = BTreeSet::new();
            for end in 1..=crash_limit {
                let (status, events) = series.start().end();
                let what = format!("{way:?}, end {end} of {crash_limit}: {status}, {events:?}");
                assert!(!status.success() && !events.iter().any(|event| matches!(event, Event::Stopped)), "{what}");
                let (unclean, paused, suspects, dead_lettered) = built(&events);
                assert_eq!((unclean, paused, dead_lettered), (end > 1, false, 0), "{what}");
                let names = started(&events);
                if end < crash_limit {
                    // All of them were there.
                    assert_eq!((names.len(), suspects), (INNOCENTS + 1, 0), "{what}");
                } else {
                    // Alone, in the order of their acceptance: those before it are cleared.
                    assert_eq!(suspects, INNOCENTS as u64 + 1, "{what}");
                    assert_eq!(names.len(), INNOCENTS / 2 + 1, "{what}");
                    assert!(names.contains(CULPRIT), "{what}");
                }
                innocents_ended.extend(ended(&events));
            }
            let (status, events) = series.start().end();
            let what = format!("{way:?}, limit {crash_limit}: {status}, {events:?}");
            assert!(status.success() && matches!(events.last(), Some(Event::Stopped)), "{what}");
            assert_eq!(built(&events).3, 1, "{what}");
            assert!(!started(&events).contains(CULPRIT), "{what}");
            innocents_ended.extend(ended(&events));
            assert_eq!(innocents_ended.len(), INNOCENTS, "{what}");
            let (commands, letters) = stored(&series.place);
            assert!(commands.is_empty(), "{what}: {commands:?}");
            let [letter] = letters.as_slice() else { panic!("{what}: {letters:?}") };
            assert_eq!(letter.details["payload"]["name"], CULPRIT, "{what}: {letter:?}");
            assert_eq!(letter.details["reason"], "crashed", "{what}: {letter:?}");
        }
    }
}

pub(crate) fn control_without_marks() {
    let mut series = Series::new("unmarked", Way::Abort, 3, INNOCENTS);
    series.task.lie = Lie::Marked;
    for _ in 0..5 {
        let (status, events) = series.start().end();
        assert!(!status.success() && started(&events).len() == INNOCENTS + 1, "{events:?}");
    }
    let (commands, letters) = stored(&series.place);
    assert!(commands.len() == INNOCENTS + 1 && letters.is_empty(), "{letters:?}");
}

pub(crate) fn clean_ends_charge_nobody() {
    let mut series = Series::new("clean", Way::Not, 2, INNOCENTS);
    for _ in 0..4 {
        let events = series.start_and_end(INNOCENTS, Process::ask_to_stop);
        assert!(matches!(events.last(), Some(Event::Stopped)), "{events:?}");
        let (unclean, paused, suspects, dead_lettered) = built(&events);
        assert_eq!((unclean, paused, suspects, dead_lettered), (false, false, 0, 0));
        let (commands, letters) = stored(&series.place);
        assert!(letters.is_empty() && commands.len() == INNOCENTS, "{commands:?}, {letters:?}");
        assert!(commands.iter().all(|command| command.crashes.is_empty()), "{commands:?}");
    }
    series.task.quick = true;
    let (status, events) = series.start().end();
    assert!(status.success() && ended(&events).len() == INNOCENTS, "{events:?}");
    let (commands, letters) = stored(&series.place);
    assert!(commands.is_empty() && letters.is_empty(), "{commands:?}, {letters:?}");
}

/// The same with unclean ends, each of which is charged to all that ran.
pub(crate) fn control_unclean_ends_charge() {
    let mut series = Series::new("unclean", Way::Not, 3, INNOCENTS);
    for end in 0..3 {
        // From the third process on they run alone.
        let running = if end < 2 { INNOCENTS } else { 0 };
        let events = series.start_and_end(running, |process| {
            if running == 0 {
                process.wait_for(HANG, |event| matches!(event, Event::Built { .. }));
            }
            process.signal(Signal::Kill);
        });
        let expected = if end < 2 { 0 } else { INNOCENTS as u64 };
        assert_eq!(built(&events).2, expected, "{events:?}");
    }
}

pub(crate) fn storm_starts_paused() {
    let events = after_unclean_ends(6);
    assert!(built(&events).1, "{events:?}");
    let at = |wanted: fn(&Event) -> bool| events.iter().position(wanted).expect("it happens");
    let resumed = at(|event| matches!(event, Event::Note { .. }));
    assert!(resumed < at(|event| matches!(event, Event::Started { .. })), "{events:?}");
}

pub(crate) fn five_are_no_storm() {
    let events = after_unclean_ends(5);
    assert!(!built(&events).1, "{events:?}");
}

/// What the process says that comes after so many unclean ends, and ends well.
fn after_unclean_ends(ends: usize) -> Vec<Event> {
    // Far from the limit at which they would run alone.
    let mut series = Series::new(&format!("storm-{ends}"), Way::Not, 16, 1);
    for _ in 0..ends {
        series.start_and_end(1, |process| process.signal(Signal::Kill));
    }
    series.task.quick = true;
    let (status, events) = series.start().end();
    assert!(status.success() && ended(&events).len() == 1, "{status}: {events:?}");
    events
}
