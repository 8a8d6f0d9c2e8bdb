//! One execution of a command: polls it in its context, catches its panics, gives it up at its deadline.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::ambient::Ambient;
use crate::error::Result;
use crate::executor::life::End;
use crate::executor::{Sleep, TaskRef, Watched, discard_panic, expiring_waker, panic_message};

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// The command returned.
    Returned(Result<T>),
    /// It panicked, in a poll or when it was dropped.
    Panicked(String),
    /// It had not returned at its deadline.
    TimedOut,
}

pin_project! {
    /// Resolves once the command has really stopped: its future is dropped by then.
    pub(super) struct Attempt<'a, F> {
        #[pin]
        future: Option<F>,
        task: TaskRef,
        ambient: Option<&'a dyn Ambient>,
        #[pin]
        deadline: Option<Sleep>,
        // What its timer wakes. Both are set when the command first has to wait; one that does not costs neither.
        expiry: Option<Waker>,
    }
    impl<F> PinnedDrop for Attempt<'_, F> {
        /// Cancelled: what the command holds may need its context to be dropped.
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() && let Err(message) = guard(*this.ambient, || this.future.set(None)) {
                tracing::error!(panic = message, "a command panicked while it was dropped; contained");
            }
        }
    }
}

impl<'a, F> Attempt<'a, F> {
    /// Begins an attempt; `timeout` counts from now.
    pub(super) fn new(future: F, task: TaskRef, ambient: Option<&'a dyn Ambient>, timeout: Option<Duration>) -> Self {
        let shared = task.meta().shared;
        let deadline = timeout.map(|timeout| Sleep::until(shared, shared.clock.now().plus(timeout)));
        Self { future: Some(future), task, ambient, deadline, expiry: None }
    }
}

impl<F: Future<Output = Result<T>>, T> Future for Attempt<'_, F> {
    type Output = Outcome<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let mut this = self.project();
        let task = *this.task;
        let expired = || task.meta().life.end() == Some(End::Expired);
        let mut polled = Poll::Pending;
        let mut ran = Ok(());
        if !expired() {
            // A poll that blocks past the deadline never gets to see it; the watch does.
            let _watched = this.deadline.as_ref().as_pin_ref().map(|sleep| Watched::new(task, sleep.deadline()));
            ran = guard(*this.ambient, || {
                if let Some(future) = this.future.as_mut().as_pin_mut() {
                    polled = future.poll(cx);
                }
                if polled.is_ready() {
                    this.future.set(None);
                }
            });
        }
        let outcome = match (ran, polled) {
            (Err(message), _) => Outcome::Panicked(message),
            (Ok(()), Poll::Ready(result)) => return Poll::Ready(Outcome::Returned(result)),
            (Ok(()), Poll::Pending) => {
                let Some(sleep) = this.deadline.as_mut().as_pin_mut() else { return Poll::Pending };
                let due = sleep.deadline();
                let expiry = this.expiry.get_or_insert_with(|| expiring_waker(task, due, cx.waker()));
                if !expired() && sleep.poll(&mut Context::from_waker(expiry)).is_pending() {
                    task.meta().shared.look_by_timer(due);
                    return Poll::Pending;
                }
                Outcome::TimedOut
            }
        };
        // What is left of it may panic (again).
        Poll::Ready(match (guard(*this.ambient, || this.future.set(None)), outcome) {
            (Err(message), Outcome::TimedOut) => Outcome::Panicked(message),
            (_, outcome) => outcome,
        })
    }
}

/// Runs a command's own code in its context; the error is what it panicked with.
fn guard(ambient: Option<&dyn Ambient>, mut code: impl FnMut()) -> Result<(), String> {
    let ran = catch_unwind(AssertUnwindSafe(|| match ambient {
        Some(ambient) => ambient.surround(&mut code),
        None => code(),
    }));
    ran.map_err(|payload| {
        let message = panic_message(payload.as_ref()).to_owned();
        discard_panic(payload);
        message
    })
}
