//! What a child says of itself: one line for each event, written by one plain write of its own before the child goes on. What
//! the pipe has, a kill does not take away.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Something that has happened, or is about to, as it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The queue has taken over what was stored.
    Built { unclean: bool, paused: bool, suspects: u64, parked: u64, dead_lettered: u64 },
    /// The queue is started.
    Ready,
    /// A submission begins, of a command that `fails` whatever happens or not.
    Submitting { number: u64, name: String, lane: String, fails: bool },
    /// It was acknowledged.
    Accepted { number: u64, id: String },
    /// It was refused; `certain` if it is certain that it was not accepted.
    Refused { number: u64, certain: bool },
    /// The store is about to be told that an attempt begins.
    Marking { id: String },
    /// The store was told that it has ended.
    Unmarked { id: String },
    /// An attempt runs. `token` is of this attempt only.
    Started { name: String, id: String, attempt: u32, token: String },
    /// It is about to return.
    Ended { name: String, id: String, good: bool },
    /// It was dropped before its end.
    Left { name: String, id: String },
    /// A submitter has the result of its submission: the token, or none if it has failed.
    HandedOut { number: u64, token: Option<String> },
    /// A submission is about to be cancelled, if it has not ended by then.
    Cancelling { number: u64 },
    /// A submission was cancelled before it had ended.
    Cancelled { number: u64, started: bool },
    /// A dead letter is about to be submitted again.
    Replaying { id: String },
    /// The queue was stopped, with nothing left and the store closed.
    Stopped,
    /// Text for who reads the log.
    Note { text: String },
}

impl Event {
    /// A submitter says it, of its submission: at a time of its own.
    pub(crate) fn is_of_submitter(&self) -> bool {
        match self {
            Self::Submitting { .. }
            | Self::Accepted { .. }
            | Self::Refused { .. }
            | Self::HandedOut { .. }
            | Self::Cancelling { .. }
            | Self::Cancelled { .. } => true,
            Self::Built { .. }
            | Self::Ready
            | Self::Marking { .. }
            | Self::Unmarked { .. }
            | Self::Started { .. }
            | Self::Ended { .. }
            | Self::Left { .. }
            | Self::Replaying { .. }
            | Self::Stopped
            | Self::Note { .. } => false,
        }
    }
}

/// Says it; a child that nobody listens to has no reason to go on.
pub(crate) fn report(event: &Event) {
    static PIPE: OnceLock<File> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        File::from(std::io::stdout().as_fd().try_clone_to_owned().expect("a child has a pipe to write to"))
    });
    let mut line = serde_json::to_string(event).expect("an event is data");
    line.push('\n');
    if (&*pipe).write_all(line.as_bytes()).is_err() {
        std::process::exit(3);
    }
}

/// Reads one line of a child.
pub(crate) fn read(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("a child has written {line:?}: {error}"))
}
