//! The submitter's side of a command.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use crate::error::{LaneError, Result};
use crate::executor::life::End;
use crate::executor::{Task, TaskError, panic_message};
use crate::id::CommandId;

/// Awaits a command's result. `ticket.await??` gives the value.
///
/// Works on any runtime. Dropping it lets the command run on unobserved; use [`Ticket::cancel`] to stop it. Awaiting is
/// cancel-safe.
#[must_use = "dropping a ticket detaches the command; await it for the result"]
pub struct Ticket<T> {
    id: CommandId,
    timeout: Option<Duration>,
    state: State<T>,
}

enum State<T> {
    Accepted(Task<Result<T>>),
    /// It ended without its task, or never had one.
    Ended(Option<LaneError>),
}

/// There is no result and never will be: the command was dropped before it settled (its executor was closed, or its queue
/// was dropped while its lane was paused or not started), or the ticket has already given its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no result: the command was dropped with its queue or executor before it settled, or the result was taken before"
)]
pub struct TicketError;

impl<T> Ticket<T> {
    pub(super) fn new(id: CommandId, timeout: Option<Duration>, task: Task<Result<T>>) -> Self {
        Self { id, timeout, state: State::Accepted(task) }
    }

    /// For a command that was refused by a call that can not say so otherwise.
    pub(super) fn refused(error: LaneError) -> Self {
        Self { id: CommandId::next(), timeout: None, state: State::Ended(Some(error)) }
    }

    /// The command's id, as in its events.
    #[must_use]
    pub fn id(&self) -> CommandId {
        self.id
    }

    /// Whether the result is there: the next await returns at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.state {
            State::Accepted(task) => {
                task.is_finished() || task.meta().is_none_or(|meta| meta.life.end() == Some(End::Expired))
            }
            State::Ended(_) => true,
        }
    }

    /// Whether the command has begun to run. Also true once it has ended after that.
    #[must_use]
    pub fn has_started(&self) -> bool {
        match &self.state {
            State::Accepted(task) => task.meta().is_none_or(|meta| meta.life.has_started()),
            State::Ended(_) => false,
        }
    }

    /// Cancels the command. One that waits never starts; one that runs is dropped at its current await, and keeps its
    /// slot until then. The ticket resolves to [`LaneError::Cancelled`] at once. A command that waits is counted as pending,
    /// and its event is sent, when its turn comes.
    ///
    /// False if it is too late: the command has ended, and the ticket gives its result.
    pub fn cancel(&mut self) -> bool {
        let State::Accepted(task) = &mut self.state else { return false };
        let cancelled = task.meta().is_some_and(|meta| meta.life.try_end(End::Cancelled).is_ok());
        if cancelled {
            task.abort();
            self.state = State::Ended(Some(LaneError::Cancelled));
        }
        cancelled
    }

    /// Lets the command run on without a ticket; the same as dropping it.
    pub fn detach(self) {}
}

impl<T> Unpin for Ticket<T> {}

impl<T> Future for Ticket<T> {
    type Output = Result<Result<T>, TicketError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let task = match &mut self.state {
            State::Ended(error) => return Poll::Ready(error.take().map(Err).ok_or(TicketError)),
            State::Accepted(task) => task,
        };
        let result = match Pin::new(&mut *task).poll(cx) {
            Poll::Ready(Ok(result)) => Ok(result),
            Poll::Ready(Err(TaskError::Panicked(payload))) => {
                Ok(Err(LaneError::Panicked(panic_message(payload.as_ref()).to_owned())))
            }
            Poll::Ready(Err(TaskError::Cancelled)) => Err(TicketError),
            Poll::Pending => {
                // Only a deadline ends a command before its task.
                let Some(timeout) = self.timeout else { return Poll::Pending };
                let State::Accepted(task) = &self.state else { return Poll::Pending };
                let Some(meta) = task.meta() else { return Poll::Pending };
                if let Some(early) = &meta.early {
                    early.register(cx.waker());
                }
                if meta.life.end() != Some(End::Expired) {
                    return Poll::Pending;
                }
                Ok(Err(LaneError::Timeout(timeout)))
            }
        };
        self.state = State::Ended(None);
        Poll::Ready(result)
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("finished", &self.is_finished()).finish()
    }
}
