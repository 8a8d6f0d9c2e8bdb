//! The flight recorder: the last events of each thread, which are kept anyway, copied when somebody asks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::{Serialize, Serializer};

use super::hub::{Hub, wall_at};
use super::lane_event::LaneEvent;
use super::log::{Item, Log, What};
use super::merge::{Names, duration};
use super::perfetto;

/// What was recorded: the last events of each thread, in order. From
/// [`EventEmitter::recording`](crate::EventEmitter::recording).
#[derive(Clone, Debug, Default)]
pub struct Recording {
    events: Vec<Recorded>,
}

/// A recorded event. As JSON, the event with one field more.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Recorded {
    /// The name of the thread that told it.
    #[serde(serialize_with = "as_text")]
    pub thread: Arc<str>,
    /// What it told.
    #[serde(flatten)]
    pub event: LaneEvent,
    /// The thread's log, from 0.
    #[serde(skip)]
    pub(super) track: usize,
    /// When, in nanoseconds since some time.
    #[serde(skip)]
    pub(super) stamp: u64,
}

impl Recording {
    /// The events.
    #[must_use]
    pub fn events(&self) -> &[Recorded] {
        &self.events
    }

    /// Each event as a line of JSON, with the fields `thread`, `key`, `payload` and `timestamp`.
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        // A payload that can not be JSON (a map with an infinite number, made by hand) is left out.
        let lines = self.events.iter().filter_map(|event| serde_json::to_string(event).ok());
        lines.map(|line| line + "\n").collect()
    }

    /// As JSON in the Trace Event Format, which <https://ui.perfetto.dev> and `chrome://tracing` open: a track for each thread,
    /// with the events that it told; and a group of tracks for each lane, with its commands as slices, each of which has its
    /// waits and its runs in it.
    #[must_use]
    pub fn to_perfetto(&self) -> String {
        perfetto::trace(&self.events)
    }
}

fn as_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

pub(super) fn copy(hub: &Hub) -> Recording {
    let horizon = hub.horizon();
    // ORDERING: as in `merge`.
    std::sync::atomic::fence(Ordering::SeqCst);
    let logs = hub.logs();
    let read = |log: &Log, number| log.read(number, |_| true);
    let items = logs.iter().map(|log| kept(log, horizon, read)).collect();
    // The names after the records that have their addresses.
    let names = Names::default();
    assemble(hub, &logs, items, names, |names, address| {
        Arc::clone(names.lanes.entry(address).or_insert_with(|| hub.lane(address).unwrap_or_default()))
    })
}

/// For a thread that may be in the middle of anything. None if it can not be had without waiting.
fn copy_at_once(hub: &Hub) -> Option<Recording> {
    let logs = hub.logs_at_once()?;
    let items = logs.iter().map(|log| kept(log, u64::MAX, Log::read_at_once)).collect();
    let mut names = Names::default();
    names.lanes = hub.lanes_at_once()?;
    let lane = |names: &mut Names, address| names.lanes.get(&address).cloned().unwrap_or_default();
    Some(assemble(hub, &logs, items, names, lane))
}

fn kept(log: &Log, horizon: u64, read: impl Fn(&Log, u64) -> Option<Item>) -> Vec<Item> {
    let head = log.head();
    let numbers = head.saturating_sub(log.kept)..head;
    numbers.filter_map(|number| read(log, number)).filter(|item| item.stamp() <= horizon).collect()
}

fn assemble(
    hub: &Hub,
    logs: &[Arc<Log>],
    items: Vec<Vec<Item>>,
    mut names: Names,
    lane: impl Fn(&mut Names, u64) -> Arc<str>,
) -> Recording {
    let clocks = hub.both_clocks();
    let mut events = Vec::with_capacity(items.iter().map(Vec::len).sum());
    for (track, (log, items)) in logs.iter().zip(items).enumerate() {
        // Those of one log stay in its order.
        let mut latest = 0;
        for item in items {
            latest = item.stamp().max(latest);
            let timed =
                |transition, nanos| LaneEvent::of(transition, duration(nanos), wall_at(item.stamp(), clocks), true);
            let event = match item.told.as_deref() {
                None => {
                    let lane = lane(&mut names, item.lane());
                    timed(names.known_transition(lane, &item), item.words[2])
                }
                Some(told) => match &told.what {
                    What::Custom(event) => event.clone(),
                    What::Transition(transition) => timed(transition.clone(), told.nanos),
                },
            };
            events.push((latest, Recorded { thread: log.thread(item.number), event, track, stamp: item.stamp() }));
        }
    }
    events.sort_by_key(|(latest, _)| *latest);
    Recording { events: events.into_iter().map(|(_, event)| event).collect() }
}

pub(super) fn dump_on_panic(hub: Weak<Hub>, path: PathBuf) {
    static SETTING: Mutex<()> = Mutex::new(());
    // A thread that panics may not change the hook.
    if std::thread::panicking() {
        return;
    }
    let _setting = SETTING.lock().unwrap_or_else(PoisonError::into_inner);
    let dumped = AtomicBool::new(false);
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        previous(info);
        if let Some(hub) = hub.upgrade()
            && !dumped.swap(true, Ordering::Relaxed)
        {
            dump(&hub, &path);
        }
    }));
}

/// Called while a thread panics: another panic would end the process, and a lock may be its own.
fn dump(hub: &Hub, path: &Path) {
    let Some(recording) = copy_at_once(hub) else { return };
    let is_trace = path.extension().is_some_and(|extension| extension == "json");
    let text = if is_trace { recording.to_perfetto() } else { recording.to_json_lines() };
    // There is nobody to tell that it failed.
    let _ = std::fs::write(path, text);
}
