//! Worker processes: this program again, which runs one test of its harness that is a worker.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::event::{Event, read};
use super::worker::{TASK, TEST, Task};

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(90);

/// A worker process, killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Event>,
    events: Vec<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Stop,
    Continue,
    Kill,
}

impl Process {
    /// Starts a worker; what it says on its standard error goes to `log`.
    pub(crate) fn start(task: &Task, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log of workers can be opened");
        let program = std::env::current_exe().expect("a program knows where it is");
        let mut child = Command::new(program)
            .args([TEST, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TASK, serde_json::to_string(task).expect("a task is data"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("this program can be started again");
        let stdout = BufReader::new(child.stdout.take().expect("it was piped"));
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        // Ends with the worker: it alone has the other end of the pipe.
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if read(&line).is_some_and(|event| sender.send(event).is_err()) {
                    return;
                }
            }
        });
        Self { child, stdin, lines, events: Vec::new() }
    }

    /// Waits until it says this; false if it has ended before, or does not say it within `limit`.
    pub(crate) fn says(&mut self, limit: Duration, wanted: impl Fn(&Event) -> bool) -> bool {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(limit.saturating_sub(begun.elapsed())) {
                Ok(event) => {
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
        if let Some(stdin) = &mut self.stdin {
            // One that is dead already does not read. It stays open: its end means that this process is gone.
            let _ = stdin.write_all(b"stop\n");
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if signal == Signal::Kill {
            self.child.kill().expect("a worker can be killed");
            return;
        }
        let name = if signal == Signal::Stop { "STOP" } else { "CONT" };
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status();
        assert!(sent.is_ok_and(|status| status.success()), "no signal {name} for a worker");
    }

    /// Waits for its end: everything that it has said.
    pub(crate) fn end(mut self) -> Vec<Event> {
        let begun = Instant::now();
        while self.says(HANG, |_| true) {
            assert!(begun.elapsed() < HANG, "a worker does not end");
        }
        let ended = self.child.try_wait().expect("a worker can be waited for");
        if ended.is_none() && begun.elapsed() >= HANG {
            panic!("a worker does not end");
        }
        std::mem::take(&mut self.events)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Most are gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
