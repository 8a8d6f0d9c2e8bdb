//! Worker processes: this program again, which runs one test of its harness that is a worker.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::event::{Event, read};
use super::worker::{TASK, TEST, Task};
use crate::programs::Child;
pub(crate) use crate::programs::Signal;

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(90);

/// A worker process, killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    events: Vec<Event>,
}

impl Process {
    /// Starts a worker; what it says on its standard error goes to `log`.
    pub(crate) fn start(task: &Task, log: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a program knows where it is"));
        command.args([TEST, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(TASK, serde_json::to_string(task).expect("a task is data"));
        Self { child: Child::start(&mut command, log), events: Vec::new() }
    }

    /// Waits until it says this; false if it has ended before, or does not say it within `limit`.
    pub(crate) fn says(&mut self, limit: Duration, wanted: impl Fn(&Event) -> bool) -> bool {
        let begun = Instant::now();
        loop {
            match self.child.line(limit.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    // The harness says something, too.
                    let Some(event) = read(&line) else { continue };
                    let is_found = wanted(&event);
                    self.events.push(event);
                    if is_found {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// What it was heard to say so far.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Asks it to end by itself.
    pub(crate) fn ask_to_stop(&mut self) {
        self.child.ask_to_stop();
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Waits for its end: everything that it has said.
    pub(crate) fn end(mut self) -> Vec<Event> {
        let begun = Instant::now();
        while self.says(HANG, |_| true) {
            assert!(begun.elapsed() < HANG, "a worker does not end");
        }
        assert!(begun.elapsed() < HANG, "a worker does not end");
        self.child.wait();
        self.events
    }
}
