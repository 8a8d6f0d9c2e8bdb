//! What a worker process says of itself: one line for each event, written by one plain write of its own before it goes on. What
//! the pipe has, a kill does not take away.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A moment, in microseconds, by the clock that all processes of this machine share: the checker compares what they say. It is the
/// wall clock, by which the servers count leases, too: a step of it moves both.
pub(crate) type Moment = u64;

pub(crate) fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    micros(since)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Something that has happened, or is about to, as it says. `begun` and `ended` are before and after a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The queue is open.
    Ready,
    /// An enqueue begins.
    Enqueuing { id: String, key: Option<String>, max_deliveries: u32 },
    /// It was acknowledged; `as_id` is the command that the receipt names.
    Enqueued { id: String, as_id: String },
    /// It was not; `certain` if it is certain that it was not accepted.
    NotEnqueued { id: String, certain: bool },
    /// A lease was got.
    Claimed { claim: Claim },
    /// Something is about to be done with a lease.
    Trying { id: String, fence: u64, what: Act, begun: Moment },
    /// It was answered.
    Tried { id: String, fence: u64, what: Act, begun: Moment, ended: Moment, answer: Answer },
    /// The handle is about to be closed: its leases are given back.
    Closing { begun: Moment },
    /// The process ends by itself.
    Stopped,
    /// A dead letter that is there.
    Letter { id: String, failed: bool, deliveries: u32 },
    /// What the queue says that there is when everything has settled.
    Settled { ready: usize, delayed: usize, leased: usize, dead: usize },
    /// An error that no fault explains.
    Note { text: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) id: String,
    pub(crate) key: Option<String>,
    pub(crate) fence: u64,
    pub(crate) delivery: u32,
    pub(crate) lease: u64,
    pub(crate) begun: Moment,
    pub(crate) ended: Moment,
}

/// What is done with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    Ack,
    /// An acknowledgement of an error: the command is given up.
    AckError,
    DeadLetter,
    Release,
    Retry,
    Extend,
}

impl Act {
    /// Whether the command does not come again after it.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Ack | Self::AckError | Self::DeadLetter)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Applied,
    AlreadyApplied,
    LeaseLost,
    /// It is certain that nothing was changed.
    NotDone,
    Unknown,
}

/// Says it; a process that nobody listens to has no reason to go on.
pub(crate) fn report(event: &Event) {
    static PIPE: OnceLock<File> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned();
        File::from(stdout.expect("a worker has a pipe to write to"))
    });
    // What the test harness says before ends in no line's end.
    let line = format!("\n{}\n", serde_json::to_string(event).expect("an event is data"));
    if (&*pipe).write_all(line.as_bytes()).is_err() {
        std::process::exit(3);
    }
}

/// Reads one line of a worker; none if it is the test harness's.
pub(crate) fn read(line: &str) -> Option<Event> {
    if !line.starts_with('{') && !line.starts_with('"') {
        return None;
    }
    Some(serde_json::from_str(line).unwrap_or_else(|error| panic!("a worker has said {line:?}: {error}")))
}
