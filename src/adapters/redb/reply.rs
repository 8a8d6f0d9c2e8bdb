//! One answer from the storage thread to one caller.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::StorageError;

type Answered<T> = Result<T, StorageError>;

/// Gives the answer. Dropped without one, it answers that the outcome is unknown: nobody waits for a thread that is gone.
#[derive(Debug)]
pub(super) struct Reply<T>(Option<Arc<Slot<T>>>);

/// Waits for the answer. May be dropped at any time.
#[derive(Debug)]
#[must_use = "nothing waits unless this is polled"]
pub(super) struct Answer<T>(Arc<Slot<T>>);

#[derive(Debug)]
struct Slot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Open(Option<Waker>),
    Answered(Answered<T>),
    Taken,
}

pub(super) fn reply<T>() -> (Reply<T>, Answer<T>) {
    let slot = Arc::new(Slot(Mutex::new(State::Open(None))));
    (Reply(Some(slot.clone())), Answer(slot))
}

impl<T> Reply<T> {
    pub(super) fn send(mut self, answer: Answered<T>) {
        if let Some(slot) = self.0.take() {
            slot.answer(answer);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.answer(Err(StorageError::OutcomeUnknown("the storage thread has stopped".into())));
        }
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: Answered<T>) {
        let before = std::mem::replace(&mut *self.lock(), State::Answered(answer));
        // Outside of the lock: a waker runs code of another.
        if let State::Open(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Answered<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Open(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                return Poll::Pending;
            }
            State::Answered(_) | State::Taken => {}
        }
        match std::mem::replace(&mut *state, State::Taken) {
            State::Answered(answer) => Poll::Ready(answer),
            _ => panic!("polled after it was ready"),
        }
    }
}
