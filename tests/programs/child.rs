//! A program that a test starts, hears line by line, and signals. Killed when it is dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{self, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

pub(crate) struct Child {
    process: process::Child,
    /// Stays open: its end means that the test is gone.
    stdin: ChildStdin,
    lines: Receiver<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Stop,
    Continue,
    Kill,
}

impl Child {
    /// Starts it; what it says on its standard error goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log of a child can be opened");
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("this program can be started again");
        let stdout = BufReader::new(process.stdout.take().expect("it was piped"));
        let stdin = process.stdin.take().expect("it was piped");
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
        Self { process, stdin, lines }
    }

    /// The next line that it says; [`RecvTimeoutError::Disconnected`] once it has ended.
    pub(crate) fn line(&self, limit: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(limit)
    }

    /// Asks it to end by itself.
    pub(crate) fn ask_to_stop(&mut self) {
        // One that is dead already does not read.
        let _ = self.stdin.write_all(b"stop\n");
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if signal == Signal::Kill {
            self.process.kill().expect("a child can be killed");
            return;
        }
        let name = if signal == Signal::Stop { "STOP" } else { "CONT" };
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.process.id())).status();
        assert!(sent.is_ok_and(|status| status.success()), "no signal {name} for a child");
    }

    /// Waits for its end, which is near: it says nothing more.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("a child can be waited for")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Most are gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
