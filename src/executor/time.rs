//! Sleeping and timing out, on any executor: the worker's own, or from outside the global one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use thiserror::Error;

use super::Executor;
use super::shared::{Phase, Shared};
use super::timers::TimerKey;
use super::worker::Local;
use crate::clock::{Clock, Tick};

/// Waits for `duration`, with a resolution of about 65 us, never less than asked.
///
/// The time runs from this call. On a worker, the timer is that worker's; elsewhere (any other runtime or plain
/// `block_on`) it belongs to [`Executor::global`]. It ends early if that executor is closed, since nobody would wake it.
/// Cancel-safe: dropping the future cancels the timer.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep::on(current(), duration)
}

/// As [`sleep`], until a tick of the clock that [`now`] reads.
pub(crate) fn sleep_until(deadline: Tick) -> Sleep {
    Sleep::until(current(), deadline)
}

/// The time of the worker's executor; elsewhere the system clock's, without starting [`Executor::global`].
pub(crate) fn now() -> Tick {
    Local::with_any(|local| local.map(|local| local.shared().clock.now())).unwrap_or_else(|| Clock::system().now())
}

fn current() -> &'static Shared {
    Local::with_any(|local| local.map(Local::shared)).unwrap_or_else(|| Executor::global().shared())
}

/// Runs `future` for at most `duration`, counted from this call; then drops it.
///
/// # Errors
///
/// [`Elapsed`] if the time ran out first. A future that is ready in the same poll wins.
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout::on(current(), duration, future)
}

/// Future of [`sleep`].
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    shared: &'static Shared,
    deadline: Tick,
    /// Set at the first poll that has to wait.
    timer: Option<TimerKey>,
}

impl Sleep {
    fn on(shared: &'static Shared, duration: Duration) -> Self {
        Self::until(shared, shared.clock.now().plus(duration))
    }

    pub(crate) fn until(shared: &'static Shared, deadline: Tick) -> Self {
        shared.begin_use();
        Self { shared, deadline, timer: None }
    }

    pub(crate) fn deadline(&self) -> Tick {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.clock.now() >= self.deadline {
            return Poll::Ready(());
        }
        if self.timer.is_none_or(|timer| !self.shared.rewake_timer(timer, cx.waker())) {
            self.timer = Some(self.shared.set_timer(self.deadline, cx.waker().clone()));
        }
        // Asked after the timer was set: a worker that closes fires what is set by then, and nobody fires what is set later.
        // The executor's own tasks are dropped instead; one that only ever sleeps must not go on.
        let own_task = || Local::with_current(self.shared, |local| local.is_some());
        if self.shared.phase() == Phase::Closed && !own_task() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.shared.cancel_timer(timer);
        }
        self.shared.end_use();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

pin_project! {
    /// Future of [`timeout`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        #[pin]
        sleep: Sleep,
        duration: Duration,
    }
}

impl<F> Timeout<F> {
    pub(super) fn on(shared: &'static Shared, duration: Duration, future: F) -> Self {
        Self { future, sleep: Sleep::on(shared, duration), duration }
    }
}

/// A [`timeout`] ran out; the future was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("timed out after {0:?}")]
pub struct Elapsed(pub Duration);

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(value) = this.future.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        this.sleep.poll(cx).map(|()| Err(Elapsed(*this.duration)))
    }
}
