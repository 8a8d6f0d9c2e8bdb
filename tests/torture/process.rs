//! Children: this program again, with a task as its argument.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;

use crate::report::{Event, read};

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// A child, killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    events: Vec<Event>,
}

/// Signals that stop, continue and kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Stop,
    Continue,
    Kill,
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
        let log = File::options().create(true).append(true).open(log).expect("the log of children can be opened");
        let task = serde_json::to_string(task).expect("a task is data");
        command.arg("child").arg(kind).arg(task);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("this program can be started again");
        let stdout = BufReader::new(child.stdout.take().expect("it was piped"));
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        // Ends with the child: it alone has the other end of the pipe.
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, events: Vec::new() }
    }

    /// Waits until it says this, for at most `limit`; false if it ended before.
    pub(crate) fn wait_for(&mut self, limit: Duration, wanted: impl Fn(&Event) -> bool) -> bool {
        loop {
            match self.lines.recv_timeout(limit) {
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
        if let Some(mut stdin) = self.stdin.take() {
            // One that is dead already does not read.
            let _ = stdin.write_all(b"stop\n");
            // Stays open: its end means that this process is gone.
            self.stdin = Some(stdin);
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if signal == Signal::Kill {
            self.child.kill().expect("a child can be killed");
            return;
        }
        let name = if signal == Signal::Stop { "STOP" } else { "CONT" };
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status();
        assert!(sent.is_ok_and(|status| status.success()), "no signal {name} for a child");
    }

    /// Waits for its end: how it ended, and everything that it has said.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<Event>) {
        while self.wait_for(HANG, |_| false) {}
        let status = self.child.wait().expect("a child can be waited for");
        (status, std::mem::take(&mut self.events))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Most are gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
