//! A recording in the Trace Event Format.
//!
//! Process 1 has the threads, each with its events as instants (`i`). Each lane is a process of its own, from 2, with its
//! commands as asynchronous slices (`b` to `e`), which may overlap: the command, and nested in it, by the same id, its waits and
//! runs. Of a command whose beginning is not recorded any more, the times that its events have tell it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::lane_event::LaneEvent;
use super::recorder::Recorded;
use super::transition::{CommandInfo, Transition};

const THREADS: u64 = 1;

/// A command on its way.
struct Open {
    name: String,
    /// The slice within: a wait or a run.
    phase: Option<&'static str>,
}

pub(super) fn trace(events: &[Recorded]) -> String {
    let mut trace = Trace { begin: begin(events), out: vec![], lanes: BTreeMap::new(), open: BTreeMap::new() };
    trace.name("process_name", THREADS, 0, "threads");
    let threads: BTreeMap<usize, &str> = events.iter().map(|event| (event.track, &*event.thread)).collect();
    threads.iter().for_each(|(track, thread)| trace.name("thread_name", THREADS, *track as u64 + 1, thread));
    events.iter().for_each(|event| trace.add(event));
    json!({ "traceEvents": trace.out, "displayTimeUnit": "ns" }).to_string()
}

/// When the first thing began that is told of.
fn begin(events: &[Recorded]) -> u64 {
    events.iter().map(|recorded| began(recorded.stamp, &recorded.event)).min().unwrap_or(0)
}

/// When the wait or the run began of which an event tells the end.
fn began(stamp: u64, event: &LaneEvent) -> u64 {
    let nanos = event.duration().map_or(0, |duration| duration.as_nanos());
    stamp.saturating_sub(u64::try_from(nanos).unwrap_or(u64::MAX))
}

struct Trace {
    begin: u64,
    out: Vec<Value>,
    /// Processes by lane.
    lanes: BTreeMap<String, u64>,
    open: BTreeMap<(u64, u64), Open>,
}

impl Trace {
    /// Microseconds since the trace's beginning.
    fn micros(&self, stamp: u64) -> Value {
        json!(stamp.saturating_sub(self.begin) as f64 / 1e3)
    }

    fn name(&mut self, what: &str, process: u64, thread: u64, name: &str) {
        self.out.push(json!({ "ph": "M", "name": what, "pid": process, "tid": thread, "args": { "name": name } }));
    }

    fn lane(&mut self, lane: &str) -> u64 {
        if let Some(process) = self.lanes.get(lane) {
            return *process;
        }
        let process = THREADS + 1 + self.lanes.len() as u64;
        self.lanes.insert(lane.to_owned(), process);
        self.name("process_name", process, 0, &format!("lane {lane}"));
        process
    }

    fn add(&mut self, recorded: &Recorded) {
        let Recorded { event, stamp, .. } = recorded;
        let (ts, thread) = (self.micros(*stamp), recorded.track as u64 + 1);
        let instant = |process, thread, scope| {
            json!({
                "ph": "i", "s": scope, "name": event.key, "cat": "event", "ts": ts, "pid": process, "tid": thread,
                "args": event.payload,
            })
        };
        self.out.push(instant(THREADS, thread, "t"));
        let Some(transition) = event.transition() else { return };
        let Some(lane) = transition.lane_id() else { return };
        let lane = self.lane(lane);
        let command = transition.command().map(|command| Slice { lane, command });
        let is_frequent =
            matches!(transition, Transition::Submitted(_) | Transition::Started(_) | Transition::Completed(_));
        if !is_frequent {
            self.out.push(instant(lane, 0, "p"));
        }
        let Some(command) = command else { return };
        let began = began(*stamp, event);
        match transition {
            Transition::Submitted(_) => self.enter(&command, "wait", *stamp),
            Transition::Started(_) => {
                // Not if it is known to wait: then since the beginning of that.
                self.enter(&command, "wait", began);
                self.enter(&command, "run", *stamp);
            }
            Transition::Retrying { .. } => self.enter(&command, "wait", *stamp),
            Transition::Completed(_) | Transition::Failed { .. } | Transition::TimedOut { .. } => {
                self.enter(&command, "run", began);
                self.end(&command, *stamp);
            }
            Transition::Cancelled { .. } | Transition::Expired { .. } | Transition::Shed(_) => {
                self.enter(&command, "wait", began);
                self.end(&command, *stamp);
            }
            _ => {}
        }
    }

    /// A command waits, or runs. Nothing if it does already, or if it runs and is told to have waited.
    fn enter(&mut self, slice: &Slice<'_>, phase: &'static str, stamp: u64) {
        let name = &*slice.command.command_type;
        let mut is_new = false;
        let open = self.open.entry(slice.key()).or_insert_with(|| {
            is_new = true;
            Open { name: name.to_owned(), phase: None }
        });
        let before = open.phase.replace(phase);
        if is_new {
            self.slice("b", slice, name, stamp);
        }
        match before {
            Some(before) if before == phase => {}
            Some(before) => {
                self.slice("e", slice, before, stamp);
                self.slice("b", slice, phase, stamp);
            }
            None => self.slice("b", slice, phase, stamp),
        }
    }

    fn end(&mut self, slice: &Slice<'_>, stamp: u64) {
        let Some(open) = self.open.remove(&slice.key()) else { return };
        if let Some(phase) = open.phase {
            self.slice("e", slice, phase, stamp);
        }
        self.slice("e", slice, &open.name, stamp);
    }

    fn slice(&mut self, phase: &str, slice: &Slice<'_>, name: &str, stamp: u64) {
        let id = slice.command.command_id.to_string();
        self.out.push(json!({
            "ph": phase, "cat": "command", "name": name, "id": id, "ts": self.micros(stamp), "pid": slice.lane, "tid": 0,
        }));
    }
}

/// A command's place in the trace.
struct Slice<'a> {
    lane: u64,
    command: &'a CommandInfo,
}

impl Slice<'_> {
    const fn key(&self) -> (u64, u64) {
        (self.lane, self.command.command_id.as_u64())
    }
}
