//! Leases in hand, and the thread that extends them: not one that runs commands, so that no command can keep it from its work.
//!
//! A lease is extended every third of its time. If that has not worked for four fifths of it, counted from before the call that
//! gave it, the command is cancelled: what is left is for it to stop before somebody else has the lease. If the queue says that
//! the lease is lost, it is cancelled at once.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use event_listener::Event;
use serde_json::Value;

use super::contained;
use crate::clock::{Clock, Tick};
use crate::distributed::{DistributedQueue, LeaseToken};
use crate::error::{DistributedError, LaneError, Result};
use crate::queue::Ticket;

/// A lease, and the command that runs under it.
pub(super) struct Held {
    pub(super) token: LeaseToken,
    /// None: the queue has no leases.
    lease: Option<Duration>,
    /// Nobody else may have the command before this.
    since: Mutex<Tick>,
    lost: AtomicBool,
    ticket: Mutex<Option<Ticket<Value>>>,
    /// Who waits for the command's end: a ticket that is cancelled elsewhere wakes nobody.
    waits: AtomicWaker,
    /// The command is gone, and does nothing any more: later than its ticket says that it is cancelled.
    is_gone: AtomicBool,
    gone: Event,
    /// Its last attempt has itself returned what a command that is cancelled results in.
    returned_cancelled: AtomicBool,
}

/// Goes with the command, and sees what it returns.
pub(super) struct Guard(Arc<Held>);

impl Guard {
    pub(super) fn returns(&self, result: &Result<Value>) {
        let cancelled = result.as_ref().is_err_and(|error| is_cancelled(error.unmarked()));
        self.0.returned_cancelled.store(cancelled, Ordering::Release);
    }
}

/// What a command results in that its queue, or this pool, has cancelled.
pub(super) const fn is_cancelled(error: &LaneError) -> bool {
    matches!(error, LaneError::Cancelled { .. } | LaneError::Shed | LaneError::ShutdownInProgress)
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.is_gone.store(true, Ordering::Release);
        self.0.gone.notify(usize::MAX);
    }
}

impl Held {
    /// Of a lease that was given by a call that began then.
    pub(super) fn new(token: LeaseToken, lease: Option<Duration>, called: Tick) -> Arc<Self> {
        Arc::new(Self {
            token,
            lease,
            since: Mutex::new(called),
            lost: AtomicBool::new(false),
            ticket: Mutex::default(),
            waits: AtomicWaker::new(),
            is_gone: AtomicBool::new(false),
            gone: Event::new(),
            returned_cancelled: AtomicBool::new(false),
        })
    }

    /// Its lease was lost: there is nothing to tell the queue.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether the queue has leases at all.
    pub(super) fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// What says that the command is gone, once it is dropped.
    pub(super) fn guard(self: &Arc<Self>) -> Guard {
        Guard(Arc::clone(self))
    }

    /// Whether that the command is cancelled is its own word.
    pub(super) fn has_returned_cancelled(&self) -> bool {
        self.returned_cancelled.load(Ordering::Acquire)
    }

    /// Waits until the command is gone.
    pub(super) async fn gone(&self) {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.gone.listen();
            if self.is_gone.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }

    /// The command has begun its way.
    pub(super) fn set_ticket(&self, ticket: Ticket<Value>) {
        *lock(&self.ticket) = Some(ticket);
        if self.is_lost() {
            self.cancel(|_| true);
        }
    }

    /// Waits for its end. The ticket stays here, for who cancels it.
    pub(super) async fn end(&self) -> Result<Result<Value>, crate::queue::TicketError> {
        std::future::poll_fn(|cx| {
            // Before the look: so what is cancelled meanwhile is not missed.
            self.waits.register(cx.waker());
            match lock(&self.ticket).as_mut() {
                Some(ticket) => pin!(ticket).poll(cx),
                None => Poll::Ready(Err(crate::queue::TicketError)),
            }
        })
        .await
    }

    fn lose(&self, why: &str) {
        self.lost.store(true, Ordering::Release);
        tracing::warn!(command_id = self.token.command_id(), why, "a lease is lost: its command is cancelled");
        self.cancel(|_| true);
    }

    fn cancel(&self, wanted: impl Fn(&Ticket<Value>) -> bool) {
        if let Some(ticket) = lock(&self.ticket).as_mut().filter(|ticket| wanted(ticket)) {
            ticket.cancel();
        }
        self.waits.wake();
    }
}

/// All leases in hand.
pub(super) struct Leases {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<dyn DistributedQueue>,
    lease: Duration,
    held: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    leases: HashMap<u64, Entry>,
    next: u64,
    ended: bool,
}

struct Entry {
    held: Arc<Held>,
    /// When it is to be extended.
    due: Tick,
}

/// A lease among all: removed when this is dropped.
pub(super) struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Leases {
    pub(super) fn start(queue: Arc<dyn DistributedQueue>, lease: Duration) -> Result<Self> {
        let shared = Arc::new(Shared { queue, lease, held: Mutex::default(), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        thread::Builder::new().name("corelane-leases".to_owned()).spawn(move || own.run()).map_err(|error| {
            LaneError::QueueError(format!("the thread that extends leases can not be started: {error}"))
        })?;
        Ok(Self { shared })
    }

    /// Extends it from now on.
    pub(super) fn add(&self, held: &Arc<Held>) -> Registered {
        let mut state = self.shared.lock();
        let number = state.next;
        state.next += 1;
        let due = if held.is_leased() { lock(&held.since).plus(self.shared.lease / 3) } else { Tick::NEVER };
        state.leases.insert(number, Entry { held: Arc::clone(held), due });
        drop(state);
        self.shared.changed.notify_all();
        Registered { shared: Arc::clone(&self.shared), number }
    }

    /// Cancels these commands: they are given back.
    pub(super) fn cancel(&self, wanted: impl Fn(&Ticket<Value>) -> bool) {
        let held: Vec<_> = self.shared.lock().leases.values().map(|entry| Arc::clone(&entry.held)).collect();
        held.iter().for_each(|held| held.cancel(&wanted));
    }

    /// The thread ends; leases that are still here end by themselves.
    pub(super) fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.lock().leases.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.held)
    }

    fn run(&self) {
        let clock = Clock::system();
        let mut state = self.lock();
        while !state.ended {
            let now = clock.now();
            let next = state.leases.values().map(|entry| entry.due).min().unwrap_or(Tick::NEVER);
            if next > now {
                state = match next {
                    Tick::NEVER => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                    at => self.changed.wait_timeout(state, at.since(now)).unwrap_or_else(PoisonError::into_inner).0,
                };
                continue;
            }
            // Those that are soon due come along.
            let soon = now.plus(self.lease / 10);
            let due = state.leases.iter().filter(|(_, entry)| entry.due <= soon);
            let due: Vec<_> = due.map(|(number, entry)| (*number, Arc::clone(&entry.held))).collect();
            drop(state);
            self.extend(&due, &clock);
            state = self.lock();
        }
    }

    fn extend(&self, due: &[(u64, Arc<Held>)], clock: &Clock) {
        let called = clock.now();
        let give_up = |held: &Held| lock(&held.since).plus(self.lease * 4 / 5);
        let tokens: Vec<_> = due.iter().map(|(_, held)| held.token.clone()).collect();
        let first_end = due.iter().map(|(_, held)| give_up(held)).min().unwrap_or(called);
        let asked = contained(async { Ok(self.queue.extend_batch(&tokens, self.lease).await) });
        let extended = block_on_until(asked, first_end, clock);
        let now = clock.now();
        let mut results = extended.and_then(Result::ok).unwrap_or_default().into_iter();
        for (number, held) in due {
            let again = match results.next() {
                Some(Ok(())) => {
                    *lock(&held.since) = called;
                    called.plus(self.lease / 3)
                }
                Some(Err(LaneError::Distributed(DistributedError::LeaseLost { .. }))) => {
                    held.lose("the queue says so");
                    Tick::NEVER
                }
                _ if now >= give_up(held) => {
                    held.lose("it could not be extended in time");
                    Tick::NEVER
                }
                _ => now.plus(self.lease / 10).min(give_up(held)),
            };
            if let Some(entry) = self.lock().leases.get_mut(number) {
                entry.due = again;
            }
        }
    }
}

/// Runs a future on this thread until then; none if it is not ready by then. By the system's own means: the timers of an executor
/// stand still while commands block its workers.
fn block_on_until<F: Future>(future: F, deadline: Tick, clock: &Clock) -> Option<F::Output> {
    struct Unparks(Thread);
    impl Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unparks(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let now = clock.now();
        if now >= deadline {
            return None;
        }
        thread::park_timeout(deadline.since(now));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
