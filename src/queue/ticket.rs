//! The submitter's side of a command.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use event_listener::EventListener;
use serde_json::Value;
use thiserror::Error;

use super::admission::Settings;
use super::context::Wait;
use super::durable::Shared;
use super::extra::{Extra, Span};
use super::keys::Queued;
use super::lanes::LaneNumber;
use super::{Priority, context, settle};
use crate::error::{LaneError, Result};
use crate::executor::life::End;
use crate::executor::{Handle, Task, TaskError, panic_message};
use crate::id::CommandId;

/// Awaits a command's result. `ticket.await??` gives the value.
///
/// Works on any runtime. Dropping it lets the command run on unobserved; use [`Ticket::cancel`] to stop it. Awaiting is
/// cancel-safe.
#[must_use = "dropping a ticket detaches the command; await it for the result"]
pub struct Ticket<T> {
    id: CommandId,
    limits: Limits,
    state: State<T>,
    /// Of a command that may have to wait in its lane.
    way: Option<Way>,
    /// The command that awaits this, if it is one.
    wait: Option<Wait>,
}

/// By when a command ends although its future does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    running: Span,
    waiting: Span,
}

impl Limits {
    pub(super) const NONE: Self = Self { running: Span::NONE, waiting: Span::NONE };

    pub(super) fn of(settings: &Settings, extra: Option<&Extra>) -> Self {
        let timeout = settings.config.default_timeout;
        let limit = settle::limit(extra, timeout);
        Self {
            running: Span::of((!limit.is_zero()).then_some(limit)),
            waiting: Span::of(extra.and_then(Extra::wait_limit)),
        }
    }

    pub(super) fn any(self) -> bool {
        self.running.get().is_some() || self.waiting.get().is_some()
    }
}

/// What it takes to have a command go before others: its task leads to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    lane: LaneNumber,
    cost: u32,
    /// The best priority of those who wait for it.
    lifted: Option<Priority>,
}

impl Way {
    pub(super) const fn new(lane: LaneNumber, cost: u32) -> Self {
        Self { lane, cost, lifted: None }
    }

    /// The command that is being polled waits for this one: it goes before all that nobody waits for.
    fn lift(&mut self, handle: Option<Handle>, priority: Priority) {
        if self.lifted.is_none_or(|lifted| priority < lifted)
            && let Some(handle) = handle
        {
            self.lifted = Some(priority);
            if let Some(lane) = self.lane.lane() {
                lane.lift(&Queued { handle, cost: self.cost }, priority);
            }
        }
    }
}

enum State<T> {
    Accepted(Task<Result<T>>),
    /// It has no task, or not any more. None once its result was given.
    Without(Option<Box<Without<T>>>),
}

/// What a ticket has instead of a task. In a box: few have.
enum Without<T> {
    Ended(Result<T>),
    /// Another submission has the command.
    Shared(Other<T>),
}

/// A command that was submitted under the same idempotency key before.
struct Other<T> {
    shared: Arc<Shared>,
    listener: Option<EventListener>,
    read: fn(Value) -> Option<T>,
}

impl<T> Other<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        loop {
            // Listened before it is looked at: so its end is not missed.
            let listener = self.listener.get_or_insert_with(|| self.shared.listen());
            if let Some(outcome) = self.shared.outcome() {
                let unread = || LaneError::Other("the result of the first submission is not of this type".into());
                return Poll::Ready(outcome.and_then(|value| (self.read)(value).ok_or_else(unread)));
            }
            ready!(Pin::new(listener).poll(cx));
            self.listener = None;
        }
    }
}

/// There is no result and never will be: the executor was closed before the command settled, or the ticket has already given
/// its result. (A command that its lane held back when its queue was dropped is [`LaneError::Cancelled`].)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no result: the command was dropped with its executor before it settled, or the result was taken before")]
pub struct TicketError;

impl<T> Ticket<T> {
    pub(super) fn new(id: CommandId, limits: Limits, task: Task<Result<T>>, way: Option<Way>) -> Self {
        Self { id, limits, state: State::Accepted(task), way, wait: None }
    }

    /// For a command that was refused by a call that can not say so otherwise.
    pub(super) fn refused(error: LaneError) -> Self {
        Self {
            id: CommandId::next(),
            limits: Limits::NONE,
            state: State::Without(Some(Box::new(Without::Ended(Err(error))))),
            way: None,
            wait: None,
        }
    }

    /// For a command that has ended before, under the same idempotency key.
    pub(super) fn ended(id: CommandId, result: Result<T>) -> Self {
        Self {
            id,
            limits: Limits::NONE,
            state: State::Without(Some(Box::new(Without::Ended(result)))),
            way: None,
            wait: None,
        }
    }

    /// For a command that another submission has.
    pub(super) fn shared(id: CommandId, shared: Arc<Shared>, read: fn(Value) -> Option<T>) -> Self {
        let other = Other { shared, listener: None, read };
        Self {
            id,
            limits: Limits::NONE,
            state: State::Without(Some(Box::new(Without::Shared(other)))),
            way: None,
            wait: None,
        }
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
            State::Without(without) => without.as_ref().is_none_or(|without| match &**without {
                Without::Ended(_) => true,
                Without::Shared(other) => other.shared.outcome().is_some(),
            }),
        }
    }

    /// Whether the command has begun to run. Also true once it has ended after that. False of a command that was submitted
    /// before, under the same idempotency key: its first ticket knows.
    #[must_use]
    pub fn has_started(&self) -> bool {
        match &self.state {
            State::Accepted(task) => task.meta().is_none_or(|meta| meta.life.has_started()),
            State::Without(_) => false,
        }
    }

    /// Cancels the command, and what it has submitted. One that waits never starts, and is dropped here; one that runs sees
    /// [`is_cancelled`](crate::is_cancelled) at once, is dropped at its current await, and keeps its slot until then. The
    /// ticket resolves to [`LaneError::Cancelled`] at once, which says whether the command had started.
    ///
    /// False if it is too late: the command has ended, and the ticket gives its result. Also false if the command was
    /// submitted before, under the same idempotency key: its first ticket cancels it.
    pub fn cancel(&mut self) -> bool {
        let State::Accepted(task) = &mut self.state else { return false };
        let ended = task.meta().and_then(|meta| meta.life.try_end(End::Cancelled).ok());
        let Some(ended) = ended else { return false };
        if let Some(handle) = task.handle().filter(|_| ended.was_queued) {
            context::stop(&handle, true);
        }
        task.abort();
        let cancelled = Without::Ended(Err(LaneError::Cancelled { started: ended.had_started }));
        self.state = State::Without(Some(Box::new(cancelled)));
        true
    }

    /// Its result was given.
    #[inline]
    fn end(&mut self) {
        self.state = State::Without(None);
        self.wait = None;
    }

    /// Lets the command run on without a ticket; the same as dropping it.
    pub fn detach(self) {}
}

impl<T> Unpin for Ticket<T> {}

impl<T> Future for Ticket<T> {
    type Output = Result<Result<T>, TicketError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let task = match &mut this.state {
            State::Accepted(task) => task,
            State::Without(without) => {
                let polled = poll_without(without, cx);
                if polled.is_ready() {
                    this.wait = None;
                } else if let Some(Without::Shared(other)) = without.as_deref()
                    && let Some(priority) = Wait::note(&mut this.wait)
                    && let Some((handle, way)) = other.shared.target()
                {
                    this.way.get_or_insert(way).lift(Some(handle), priority);
                }
                return polled;
            }
        };
        let polled = match task.poll_attached(cx) {
            // The way of most commands.
            Poll::Ready(Ok(result)) => {
                this.end();
                return Poll::Ready(Ok(result));
            }
            polled => polled,
        };
        this.poll_otherwise(polled, cx)
    }
}

impl<T> Ticket<T> {
    /// What is left of a poll in which the command did not just end.
    #[inline]
    fn poll_otherwise(
        &mut self,
        polled: Poll<Result<Result<T>, TaskError>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<T>, TicketError>> {
        let this = self;
        let State::Accepted(task) = &mut this.state else { return Poll::Ready(Err(TicketError)) };
        let meta = task.meta();
        let end = meta.and_then(|meta| meta.life.end());
        let started = meta.is_some_and(|meta| meta.life.has_started());
        let result = match polled {
            Poll::Ready(Ok(result)) => Ok(result),
            Poll::Ready(Err(TaskError::Panicked(payload))) => {
                Ok(Err(LaneError::Panicked(panic_message(payload.as_ref()).to_owned())))
            }
            // Dropped before its end: its life says why.
            Poll::Ready(Err(TaskError::Cancelled)) => this.limits.error(end, started).ok_or(TicketError),
            Poll::Pending => {
                if let Some(timed) = meta.and_then(|meta| meta.timed.as_ref()) {
                    timed.early.register(cx.waker());
                }
                let end = meta.and_then(|meta| meta.life.end());
                match this.limits.error(end.filter(|end| *end == End::Expired), started) {
                    Some(error) => Ok(error),
                    None => {
                        if let (Some(priority), Some(way)) = (Wait::note(&mut this.wait), &mut this.way) {
                            way.lift(task.handle(), priority);
                        }
                        return Poll::Pending;
                    }
                }
            }
        };
        this.end();
        Poll::Ready(result)
    }
}

#[cold]
fn poll_without<T>(
    without: &mut Option<Box<Without<T>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Result<T>, TicketError>> {
    if let Some(Without::Shared(other)) = without.as_deref_mut() {
        let result = ready!(other.poll(cx));
        *without = None;
        return Poll::Ready(Ok(result));
    }
    Poll::Ready(match without.take().map(|without| *without) {
        Some(Without::Ended(result)) => Ok(result),
        _ => Err(TicketError),
    })
}

impl Limits {
    /// The result of a command that ended in this way without giving one; none if it was dropped with its queue or executor.
    fn error<T>(self, end: Option<End>, started: bool) -> Option<Result<T>> {
        Some(Err(match end? {
            End::Done => return None,
            End::Cancelled | End::Stopped => LaneError::Cancelled { started },
            End::Expired if started => LaneError::Timeout(self.running.get().unwrap_or_default()),
            End::Expired => LaneError::Expired { waited: self.waiting.get().unwrap_or_default() },
            End::Shed => LaneError::Shed,
        }))
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("finished", &self.is_finished()).finish()
    }
}
