//! The trace of a command: when its attempts ran, and who is told of it. Only in queues that have a tracer.
//!
//! A tracer is others' code: what it panics with is contained.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::Poll;

use chrono::{DateTime, TimeDelta, Utc};

use super::admission::LaneContext;
use super::settle::{Fate, contained};
use crate::clock::{Tick, wall_now};
use crate::error::LaneError;
use crate::id::CommandId;
use crate::trace::{EndedCommand, TraceContext, TraceOutcome, Traced, TracedAttempt, Tracer};

/// The trace of a command. Its times are taken in any case: it may turn out worth telling.
pub(super) struct CommandTrace {
    tracer: Arc<dyn Tracer>,
    /// What the tracer keeps; none for a command that is not traced.
    traced: Option<Traced>,
    /// When the present attempt began; [`Tick::NEVER`] if none runs.
    began: Tick,
    /// Those that have ended. Of a command that is not traced only the last one.
    attempts: Vec<TracedAttempt>,
}

/// What is told of the command besides.
pub(super) struct About<'a> {
    pub(super) id: CommandId,
    pub(super) lane: &'a str,
    pub(super) command_type: &'a str,
    pub(super) priority: u8,
    pub(super) attempt: u32,
    pub(super) accepted_at: Tick,
}

impl CommandTrace {
    /// Of a command that is being submitted here; none without a tracer.
    pub(super) fn of(context: &LaneContext, lane: &str, parent: Option<&TraceContext>) -> Option<Box<Self>> {
        let tracer = Arc::clone(context.tracer.as_ref()?);
        let traced = contained(|| tracer.accept(lane, parent));
        Some(Box::new(Self { tracer, traced, began: Tick::NEVER, attempts: Vec::new() }))
    }

    pub(super) fn begin(&mut self, attempt: u32, now: Tick) {
        self.began = now;
        if let Some(traced) = &mut self.traced {
            contained(|| {
                self.tracer.begin(traced, attempt);
                Some(())
            });
        }
    }

    /// Polls with the command's context, if it is traced.
    pub(super) fn during<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        let Some(traced) = &self.traced else { return poll() };
        let mut poll = Some(poll);
        let mut polled = None;
        // The command's own panic goes round the tracer, and is not taken for one of the tracer's.
        contained(|| {
            self.tracer.during(traced, &mut || {
                if let Some(poll) = poll.take() {
                    polled = Some(catch_unwind(AssertUnwindSafe(poll)));
                }
            });
            Some(())
        });
        match polled {
            Some(polled) => polled.unwrap_or_else(|panic| resume_unwind(panic)),
            // A tracer that did not poll must not make the command wait for ever.
            None => poll.map_or(Poll::Pending, |poll| poll()),
        }
    }

    /// The present attempt has ended, if one runs.
    pub(super) fn rest(&mut self, attempt: u32, now: Tick, outcome: TraceOutcome, error: Option<&LaneError>) {
        if self.began == Tick::NEVER {
            return;
        }
        if self.traced.is_none() {
            self.attempts.clear();
        }
        let (started, ended) = (wall(self.began, now), wall_now());
        let error = error.map(|error| error.to_string().into());
        self.attempts.push(TracedAttempt { attempt, started, ended, outcome, error });
        self.began = Tick::NEVER;
    }

    /// The command has settled.
    pub(super) fn end(mut self, about: &About<'_>, now: Tick, outcome: TraceOutcome, error: Option<&LaneError>) {
        self.rest(about.attempt, now, outcome, error);
        let run = self.attempts.last().map(|last| (last.ended - last.started).to_std().unwrap_or_default());
        let wanted = self.traced.is_some()
            || contained(|| Some(self.tracer.wants(outcome, run.unwrap_or_default()))).unwrap_or_default();
        if !wanted {
            return;
        }
        let error = error.map(ToString::to_string);
        let command = EndedCommand {
            id: about.id,
            lane: about.lane,
            command_type: about.command_type,
            priority: about.priority,
            submitted: wall(about.accepted_at, now),
            attempts: &self.attempts,
            settled: wall_now(),
            outcome,
            error: error.as_deref(),
        };
        contained(|| {
            self.tracer.ended(self.traced, &command);
            Some(())
        });
    }
}

impl std::fmt::Debug for CommandTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandTrace").field("traced", &self.traced.is_some()).finish_non_exhaustive()
    }
}

/// What the wall clock showed at `tick`.
fn wall(tick: Tick, now: Tick) -> DateTime<Utc> {
    wall_now() - TimeDelta::from_std(now.since(tick)).unwrap_or_default()
}

pub(super) const fn outcome_of(fate: Fate) -> TraceOutcome {
    match fate {
        Fate::Complete => TraceOutcome::Ok,
        Fate::Fail | Fate::Retry(_) => TraceOutcome::Error,
        Fate::Panic => TraceOutcome::Panic,
        Fate::TimeOut => TraceOutcome::Timeout,
        Fate::Expire => TraceOutcome::Expired,
        Fate::Cancel => TraceOutcome::Cancelled,
        Fate::Shed => TraceOutcome::Shed,
    }
}

/// How an attempt ended that may be followed by another one.
pub(super) const fn outcome_of_attempt(error: &LaneError) -> TraceOutcome {
    match error {
        LaneError::Panicked(_) => TraceOutcome::Panic,
        LaneError::Timeout(_) => TraceOutcome::Timeout,
        _ => TraceOutcome::Error,
    }
}
