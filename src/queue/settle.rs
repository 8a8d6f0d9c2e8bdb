//! What becomes of a command after its attempt: decided in one pure function, applied in one place, exactly once.

use std::fmt;
use std::sync::Arc;

use super::attempt::{Attempt, Outcome};
use super::command::Job;
use super::lane::LaneCore;
use crate::error::{LaneError, Result};
use crate::event::{CommandInfo, Transition};
use crate::executor::TaskRef;
use crate::executor::life::End;
use crate::id::CommandId;

/// The fate of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Complete,
    Fail,
    Panic,
    TimeOut,
    Cancel,
}

/// How an attempt ended, without its value; `None` is a future that was dropped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Ok,
    Error,
    Panicked,
    TimedOut,
}

/// Decides. `earlier` is how the task had ended before its attempt did, as its handle or the watch said; what was said
/// first holds, whatever the attempt brought.
pub(super) const fn decide(attempt: Option<Ended>, earlier: Option<End>) -> Fate {
    match (earlier, attempt) {
        (Some(End::Cancelled), _) => Fate::Cancel,
        (Some(End::Expired), _) => Fate::TimeOut,
        (_, Some(Ended::Ok)) => Fate::Complete,
        (_, Some(Ended::Error)) => Fate::Fail,
        (_, Some(Ended::Panicked)) => Fate::Panic,
        (_, Some(Ended::TimedOut)) => Fate::TimeOut,
        (_, None) => Fate::Cancel,
    }
}

/// Runs a command from its first poll to its end.
pub(super) async fn run<J: Job>(mut command: Accepted<J>) -> Result<J::Output> {
    command.start();
    let Accepted { job, lane, task, .. } = &mut command;
    let outcome = Attempt::new(job.attempt(), *task, lane.ambient(), lane.config.default_timeout).await;
    command.settle(outcome)
}

/// A command that was accepted. Whatever happens to it (its end, a panic, or being dropped), it settles once.
pub(super) struct Accepted<J: Job> {
    job: J,
    id: CommandId,
    lane: Arc<LaneCore>,
    task: TaskRef,
    settled: bool,
}

impl<J: Job> Accepted<J> {
    pub(super) fn new(job: J, id: CommandId, lane: Arc<LaneCore>, task: TaskRef) -> Self {
        Self { job, id, lane, task, settled: false }
    }

    fn start(&self) {
        self.task.meta().life.start();
        self.lane.observe(|| Transition::Started(self.info()));
    }

    /// Applies what was decided: event, permit, result. The permit is back before the submitter sees the result.
    fn settle(&mut self, outcome: Outcome<J::Output>) -> Result<J::Output> {
        let (ended, result) = match outcome {
            Outcome::Returned(Ok(value)) => (Ended::Ok, Ok(value)),
            Outcome::Returned(Err(error)) => (Ended::Error, Err(error)),
            Outcome::Panicked(message) => (Ended::Panicked, Err(LaneError::Panicked(message))),
            Outcome::TimedOut => (Ended::TimedOut, Err(self.timed_out())),
        };
        let earlier = self.task.meta().life.try_end(End::Done).err();
        let fate = decide(Some(ended), earlier);
        let result = match fate {
            Fate::Complete | Fate::Fail | Fate::Panic => result,
            Fate::TimeOut => Err(self.timed_out()),
            Fate::Cancel => Err(LaneError::Cancelled),
        };
        self.apply(fate, result.as_ref().err());
        result
    }

    fn apply(&mut self, fate: Fate, error: Option<&LaneError>) {
        self.settled = true;
        self.lane.observe(|| {
            let command = self.info();
            match fate {
                Fate::Complete => Transition::Completed(command),
                Fate::Fail | Fate::Panic => {
                    let error = error.map(ToString::to_string).unwrap_or_default();
                    Transition::Failed { command, error: error.into() }
                }
                Fate::TimeOut => Transition::TimedOut { command, timeout: self.timeout() },
                Fate::Cancel => Transition::Cancelled(command),
            }
        });
        if self.task.meta().life.is_admitted() {
            self.lane.release();
        }
    }

    fn info(&self) -> CommandInfo {
        CommandInfo::new(&self.lane.id, self.id, self.job.command_type())
    }

    fn timeout(&self) -> std::time::Duration {
        self.lane.config.default_timeout.unwrap_or_default()
    }

    fn timed_out(&self) -> LaneError {
        LaneError::Timeout(self.timeout())
    }
}

impl<J: Job> Drop for Accepted<J> {
    /// Dropped before its end: cancelled, or its executor was closed.
    fn drop(&mut self) {
        if !self.settled {
            self.apply(decide(None, self.task.meta().life.end()), None);
        }
    }
}

impl<J: Job> fmt::Debug for Accepted<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_first_holds() {
        for attempt in [None, Some(Ended::Ok), Some(Ended::Error), Some(Ended::Panicked), Some(Ended::TimedOut)] {
            assert_eq!(decide(attempt, Some(End::Cancelled)), Fate::Cancel);
            assert_eq!(decide(attempt, Some(End::Expired)), Fate::TimeOut);
        }
    }

    #[test]
    fn an_attempt_that_nobody_preceded_decides() {
        let table = [
            (Some(Ended::Ok), Fate::Complete),
            (Some(Ended::Error), Fate::Fail),
            (Some(Ended::Panicked), Fate::Panic),
            (Some(Ended::TimedOut), Fate::TimeOut),
            (None, Fate::Cancel),
        ];
        for (attempt, fate) in table {
            assert_eq!(decide(attempt, None), fate);
        }
    }
}
