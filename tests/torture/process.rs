//! Children: this program again, with a task as its argument.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde::Serialize;

use crate::programs::{Child, Signal};
use crate::report::{Event, read};

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// A child, killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    events: Vec<Event>,
}

impl Process {
    /// Starts a child; what it says on its standard error goes to `log`.
    pub(crate) fn start<T: Serialize>(kind: &str, task: &T, log: &Path) -> Self {
        Self::spawn(Command::new(this_program()), kind, task, log)
    }

    /// As [`Process::start`], with a limit to the child's memory.
    pub(crate) fn start_limited<T: Serialize>(kind: &str, task: &T, log: &Path, kib: u64) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -v {kib} && exec \"$0\" \"$@\"")).arg(this_program());
        Self::spawn(shell, kind, task, log)
    }

    fn spawn<T: Serialize>(mut command: Command, kind: &str, task: &T, log: &Path) -> Self {
        let task = serde_json::to_string(task).expect("a task is data");
        let child = Child::start(command.arg("child").arg(kind).arg(task), log);
        Self { child, events: Vec::new() }
    }

    /// Waits until it says this, for at most `limit`; false if it ended before.
    pub(crate) fn wait_for(&mut self, limit: Duration, wanted: impl Fn(&Event) -> bool) -> bool {
        loop {
            match self.child.line(limit) {
                Ok(line) => {
                    let event = read(&line);
                    let found = wanted(&event);
                    self.events.push(event);
                    if found {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("a child has said nothing for {limit:?}"),
            }
        }
    }

    /// Asks it to end by itself.
    pub(crate) fn ask_to_stop(&mut self) {
        self.child.ask_to_stop();
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Waits for its end: how it ended, and everything that it has said.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<Event>) {
        while self.wait_for(HANG, |_| false) {}
        (self.child.wait(), self.events)
    }
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("a program knows where it is")
}

/// A directory for a store and a log, removed with it; kept when the test fails.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory is made");
        Self { path }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Keeps what a process has said, for who looks for the cause of a failure.
    pub(crate) fn keep(&self, process: u64, events: &[Event]) {
        let events: String = events.iter().map(|event| format!("{process} {event:?}\n")).collect();
        let file = File::options().create(true).append(true).open(self.path.join("events"));
        file.and_then(|mut file| file.write_all(events.as_bytes())).expect("events can be kept");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What is left behind is in target/tmp.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
