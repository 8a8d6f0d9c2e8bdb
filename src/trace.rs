//! Traces: which larger operation a command belongs to, and who is told of its steps.
//!
//! A [`Tracer`] decides at submission whether a command is traced, makes its context current while it runs, and is told of its
//! times once it has settled: spans are made from those, so that a command that is not traced costs nothing, and one that
//! turns out slow or failed can be traced after the fact.

use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::id::CommandId;

/// A place in a distributed trace: the W3C trace context (level 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; not zero.
    pub trace_id: [u8; 16],
    /// Of the span that this is in; not zero.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// What tracing systems add: the header `tracestate`, as it is.
    pub state: Option<Arc<str>>,
}

/// A text that is not a `traceparent` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a traceparent header: write version, trace id, span id and flags, as in 00-<32 hex>-<16 hex>-01")]
pub struct InvalidTraceParent;

impl fmt::Display for TraceContext {
    /// The header `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace = u128::from_be_bytes(self.trace_id);
        let span = u64::from_be_bytes(self.span_id);
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let hex = |text: &str, digits: usize| {
            let is_hex = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().ok_or(InvalidTraceParent)
        };
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(InvalidTraceParent);
        let (version, trace, span, flags) = (hex(next()?, 2)?, hex(next()?, 32)?, hex(next()?, 16)?, hex(next()?, 2)?);
        // Later versions may have more parts.
        let more = parts.next().is_some();
        if version == 0xff || trace == 0 || span == 0 || more && version == 0 {
            return Err(InvalidTraceParent);
        }
        Ok(Self {
            trace_id: trace.to_be_bytes(),
            span_id: (span as u64).to_be_bytes(),
            sampled: flags & 1 == 1,
            state: None,
        })
    }
}

/// What a tracer keeps with a command that it traces: its own type.
pub type Traced = Box<dyn Any + Send + Sync>;

/// Traces commands; for [`QueueManagerBuilder::with_tracer`](crate::QueueManagerBuilder::with_tracer). All calls come from
/// who submits or from workers: they must not wait.
pub trait Tracer: Send + Sync + 'static {
    /// A command is being submitted to `lane`, with the parent that its options name, if any: what to keep with it if it is
    /// traced. The tracer may look for a context that is current on this thread.
    fn accept(&self, lane: &str, parent: Option<&TraceContext>) -> Option<Traced>;

    /// An attempt of a traced command begins, from 1.
    fn begin(&self, traced: &mut Traced, attempt: u32);

    /// Polls a traced command with its context current on this thread.
    fn during(&self, traced: &Traced, poll: &mut dyn FnMut());

    /// Whether a command that is not traced is to be told of all the same, now that it is known how it ended. `run` is the
    /// time of its last attempt.
    fn wants(&self, outcome: TraceOutcome, run: Duration) -> bool;

    /// A command has settled: one that is traced, or that is [wanted](Tracer::wants).
    fn ended(&self, traced: Option<Traced>, command: &EndedCommand<'_>);
}

/// How a traced command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceOutcome {
    /// It returned a value.
    Ok,
    /// It returned an error.
    Error,
    /// It panicked.
    Panic,
    /// It was given up at its deadline.
    Timeout,
    /// It was cancelled, or its queue stopped.
    Cancelled,
    /// It waited for too long, and never started.
    Expired,
    /// A full lane dropped it.
    Shed,
}

impl TraceOutcome {
    /// As in the metrics' label `outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Shed => "shed",
        }
    }
}

/// A command that has settled, as its tracer is told of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct EndedCommand<'a> {
    /// Its id.
    pub id: CommandId,
    /// The lane it was submitted to.
    pub lane: &'a str,
    /// Its type.
    pub command_type: &'a str,
    /// The lane's priority.
    pub priority: u8,
    /// When it was submitted.
    pub submitted: DateTime<Utc>,
    /// Its attempts, in order; of one that is told of only because it is wanted, the last one alone. Empty if it never began.
    pub attempts: &'a [TracedAttempt],
    /// When it settled.
    pub settled: DateTime<Utc>,
    /// How.
    pub outcome: TraceOutcome,
    /// What it said, if it failed.
    pub error: Option<&'a str>,
}

/// An attempt of a command that has settled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TracedAttempt {
    /// Which, from 1.
    pub attempt: u32,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// How.
    pub outcome: TraceOutcome,
    /// What it said, if it failed.
    pub error: Option<Arc<str>>,
}

/// Names of spans and of their attributes.
pub(crate) mod names {
    /// The span of a command's submission, until its first start.
    pub const SPAN_LANE_ENQUEUE: &str = "a3s.lane.enqueue";
    /// The span of an attempt.
    pub const SPAN_LANE_EXECUTE: &str = "a3s.lane.execute";
    /// The span from the end of the last attempt until the command has settled.
    pub const SPAN_LANE_COMPLETE: &str = "a3s.lane.complete";
    /// For submissions; a3s-lane's. Not made here: see [`SPAN_LANE_ENQUEUE`].
    pub const SPAN_LANE_SUBMIT: &str = "a3s.lane.submit";
    /// For retries; a3s-lane's. Not made here: each attempt has a [`SPAN_LANE_EXECUTE`].
    pub const SPAN_LANE_RETRY: &str = "a3s.lane.retry";
    /// For health checks; a3s-lane's. Not made here.
    pub const SPAN_LANE_HEALTH_CHECK: &str = "a3s.lane.health_check";

    /// The command's id.
    pub const ATTR_COMMAND_ID: &str = "a3s.lane.command_id";
    /// The lane's name.
    pub const ATTR_LANE_NAME: &str = "a3s.lane.lane_name";
    /// The command's type.
    pub const ATTR_COMMAND_TYPE: &str = "a3s.lane.command_type";
    /// Retries so far: 0 for the first attempt.
    pub const ATTR_RETRY_ATTEMPT: &str = "a3s.lane.retry_attempt";
    /// Whether it succeeded.
    pub const ATTR_SUCCESS: &str = "a3s.lane.success";
}
