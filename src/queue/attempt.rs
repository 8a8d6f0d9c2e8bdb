//! One execution of a command: polls it in its context, catches its panics, gives it up at its deadline, and leaves its
//! permit to others while it waits for a command of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::admission::LaneCore;
use super::context::Running;
use super::extra::Span;
use super::traced::CommandTrace;
use crate::clock::Tick;
use crate::error::Result;
use crate::event::{CommandInfo, Transition};
use crate::executor::life::End;
use crate::executor::{
    About, Ambient, Record, Report, Sleep, discard_panic, expiring_waker, panic_message, show_during, within,
};
use crate::id::CommandId;

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// The command returned.
    Returned(Result<T>),
    /// It panicked, in a poll or when it was dropped.
    Panicked(String),
    /// It had not returned at its deadline.
    TimedOut,
    /// The command was ended from outside.
    Stopped,
}

/// What an attempt is held to. Most are held to nothing.
#[derive(Debug)]
pub(super) struct Limits {
    /// When it is given up; [`Tick::NEVER`] for no limit.
    deadline: Tick,
    /// By when the command must have settled.
    pub(super) total_deadline: Tick,
    /// Nothing comes after it: the command ends at the deadline, even if a poll is stuck then.
    is_last: bool,
    drain_timeout: Span,
    /// Set when the command first has to wait.
    timer: Option<Timer>,
}

impl Limits {
    /// `deadline` is no later than `total_deadline`.
    pub(super) fn of(deadline: Tick, total_deadline: Tick, is_last: bool, drain_timeout: Span) -> Option<Box<Self>> {
        let limited = deadline != Tick::NEVER || drain_timeout != Span::NONE;
        limited.then(|| Box::new(Self { deadline, total_deadline, is_last, drain_timeout, timer: None }))
    }

    /// When the command ends even if a poll of it is stuck.
    fn hard_deadline(&self) -> Option<Tick> {
        (self.is_last && self.deadline != Tick::NEVER).then_some(self.deadline)
    }
}

/// Where an attempt's permit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// With it.
    Held,
    /// With its lane, while it waits for another command.
    Parked,
    /// It wants it back.
    Returning,
}

/// Of the time limit that comes first.
#[derive(Debug)]
struct Timer {
    sleep: Sleep,
    /// Ends the command when the time is up, if that is the end of it.
    expiry: Option<Waker>,
}

pin_project! {
    /// Resolves once the command has really stopped: its future is dropped by then.
    pub(super) struct Attempt<'a, F, K> {
        // None for an attempt that is stopped from the beginning, and after its end.
        #[pin]
        future: Option<F>,
        // Says what type of command this is.
        kind: Option<K>,
        trace: Option<&'a CommandTrace>,
        running: &'a mut Running,
    }
    impl<F, K> PinnedDrop for Attempt<'_, F, K> {
        /// Given up: what the command holds may need its context to be dropped.
        fn drop(this: Pin<&mut Self>) {
            if this.future.is_some() && let Err(message) = this.give_up() {
                tracing::error!(panic = message, "a command panicked while it was dropped; contained");
            }
        }
    }
}

impl<'a, F, K> Attempt<'a, F, K> {
    /// The attempt of a task that has ended has no future, and is stopped from the beginning.
    pub(super) const fn new(
        future: Option<F>,
        kind: Option<K>,
        trace: Option<&'a CommandTrace>,
        running: &'a mut Running,
    ) -> Self {
        Self { future, kind, trace, running }
    }

    /// Drops the command and what it has submitted. The error is what its destructor panicked with.
    fn give_up(self: Pin<&mut Self>) -> Result<(), String> {
        let mut this = self.project();
        let running = this.running;
        let dropped = guard(running.lane.ambient(), || this.future.set(None));
        running.give_up();
        if std::mem::replace(&mut running.permit, Permit::Held) != Permit::Held {
            running.lane.leave_loans(running.task);
        }
        dropped
    }

    /// Has its permit, or gets it back; if not, it is woken when it has.
    fn has_permit(self: Pin<&mut Self>) -> bool {
        let running = self.project().running;
        let has = match running.permit {
            Permit::Held => return true,
            Permit::Parked => running.lane.come_back(running.task),
            Permit::Returning => running.task.meta().life.is_admitted(),
        };
        running.permit = if has { Permit::Held } else { Permit::Returning };
        has
    }

    /// Whether the time is up; if not, it is woken when it is.
    fn time_is_up(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let Running { task, lane, limits, .. } = &mut **self.project().running;
        let task = *task;
        let Some(limits) = limits else {
            // Not late, but out of time all the same.
            let cancelling = lane.is_cancelling();
            if cancelling {
                let _ended = task.meta().life.try_end(End::Stopped);
            }
            return cancelling;
        };
        let Limits { deadline, drain_timeout, .. } = **limits;
        // Looked at only while the queue stops.
        let drained = if lane.is_stopping() { lane.drain_deadline(drain_timeout.get()) } else { Tick::NEVER };
        let due = deadline.min(drained);
        if due == Tick::NEVER {
            return false;
        }
        let shared = task.meta().shared;
        let hard = limits.hard_deadline() == Some(due);
        if limits.timer.as_ref().is_none_or(|timer| timer.sleep.deadline() != due) {
            limits.timer = Some(Timer { sleep: Sleep::until(shared, due), expiry: None });
        }
        let Some(timer) = &mut limits.timer else { return false };
        let sleep = Pin::new(&mut timer.sleep);
        let up = if hard {
            let expiry = timer.expiry.get_or_insert_with(|| expiring_waker(task, due, cx.waker()));
            let up = sleep.poll(&mut Context::from_waker(expiry)).is_ready();
            if !up {
                shared.look_by_timer(due);
            }
            up
        } else {
            sleep.poll(cx).is_ready()
        };
        if up && drained < deadline {
            // Cancelled by the queue, not late.
            let _ended = task.meta().life.try_end(End::Stopped);
        }
        up
    }
}

impl<'a, F: Future<Output = Result<T>>, K: Fn() -> &'a str + Sync, T> Future for Attempt<'a, F, K> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let task = self.running.task;
        let life = &task.meta().life;
        if self.running.lane.is_cancelling() {
            let _ended = life.try_end(End::Stopped);
        }
        let mut ran = Ok(());
        if life.end().is_none() && self.as_mut().has_permit() {
            let this = self.as_mut().project();
            let (mut future, trace, running) = (this.future, *this.trace, &mut **this.running);
            let lane = &*running.lane;
            let mut polled = Poll::Pending;
            // A poll that blocks past the deadline never gets to see it; the watch does.
            let deadline = running.limits.as_ref().and_then(|limits| limits.hard_deadline()).unwrap_or(Tick::NEVER);
            let about = Polled { lane, id: running.id, kind: this.kind.as_ref() };
            ran = show_during(&Record { task, deadline, about: &about }, || {
                running.during(|| {
                    guard(lane.ambient(), || {
                        if let Some(future) = future.as_mut().as_pin_mut() {
                            match trace {
                                None => polled = future.poll(cx),
                                Some(trace) => polled = trace.during(|| future.poll(cx)),
                            }
                        }
                        if polled.is_ready() {
                            future.set(None);
                        }
                    })
                })
            });
            if let (Ok(()), Poll::Ready(result)) = (&ran, polled) {
                return Poll::Ready(Outcome::Returned(result));
            }
            if ran.is_ok() && running.waits() && running.lane.park(task) {
                running.permit = Permit::Parked;
                running.end_trial();
            }
        }
        let outcome = match ran {
            Err(message) => Outcome::Panicked(message),
            Ok(()) if life.end().is_some() => Outcome::Stopped,
            Ok(()) if self.as_mut().time_is_up(cx) => match life.end() {
                Some(End::Cancelled | End::Stopped) => Outcome::Stopped,
                _ => Outcome::TimedOut,
            },
            Ok(()) => {
                self.running.measure_wait();
                return Poll::Pending;
            }
        };
        // What the command holds may need its context to be dropped.
        Poll::Ready(match (self.give_up(), outcome) {
            (Err(message), Outcome::TimedOut | Outcome::Stopped) => Outcome::Panicked(message),
            (_, outcome) => outcome,
        })
    }
}

/// What the watch may ask of an attempt that is being polled.
struct Polled<'a, K> {
    lane: &'a LaneCore,
    id: CommandId,
    kind: Option<&'a K>,
}

impl<'a, K: Fn() -> &'a str + Sync> About for Polled<'_, K> {
    fn copy(&self) -> Option<Report> {
        let lane = self.lane.this()?;
        let command = CommandInfo::new(&lane.id, self.id, self.kind?());
        Some(Box::new(move |worker: usize, running_for: Duration| {
            let CommandInfo { lane_id, command_id, command_type } = &command;
            tracing::warn!(worker, ?running_for, %command_type, %command_id, %lane_id, "a poll of a command is stuck");
            lane.observe(|| Transition::StuckPoll { command, worker, running_for });
        }))
    }
}

/// Runs a command's own code in its context; the error is what it panicked with.
fn guard(ambient: Option<&dyn Ambient>, code: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| within(ambient, code))).map_err(|payload| {
        let message = panic_message(payload.as_ref()).to_owned();
        discard_panic(payload);
        message
    })
}
