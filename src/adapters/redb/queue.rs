//! What waits for the storage thread.
//!
//! Callers put their requests at the end of one list, under a mutex; the thread takes from the front as much as makes a good
//! transaction. A caller holds the mutex for a push (some ten nanoseconds), the thread for moving pointers, and records are
//! serialised before: next to a sync of the device, which takes tens of microseconds at best and is what the thread does the
//! rest of its time, there is nothing to gain by a lock-free list.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::{Event, IntoNotification};

use super::reply::Reply;
use super::tables::{Op, RawCommands};
use crate::error::StorageError;
use crate::storage::{Recovery, StorageHealth, StoredDeadLetter};

/// Bytes that one transaction carries, about: what comes behind a big record waits for few others.
const GROUP_BYTES: usize = 4 << 20;
/// Requests that one transaction carries.
const GROUP_REQUESTS: usize = 4096;

/// Changes that are made all or not at all.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) ops: Vec<Op>,
    pub(super) bytes: usize,
    /// Who waits for them to be durable; none: they were acknowledged, and must be made.
    pub(super) waiter: Option<Reply<()>>,
}

#[derive(Debug)]
pub(super) enum Request {
    Change(Changes),
    /// Commands behind a place, and how many.
    Commands(Option<Vec<u8>>, usize, Reply<RawCommands>),
    Letters(Reply<Vec<StoredDeadLetter>>),
    Recover(Reply<Recovery>),
    Flush(Reply<()>),
    Probe(Reply<()>),
    Finish(Reply<()>),
    Close(Reply<()>),
}

impl Changes {
    pub(super) fn answer(self, answer: Result<(), StorageError>) {
        if let Some(waiter) = self.waiter {
            waiter.send(answer);
        }
    }
}

impl Request {
    fn refuse(self, why: StorageError) {
        match self {
            Self::Change(changes) => changes.answer(Err(why)),
            Self::Commands(_, _, reply) => reply.send(Err(why)),
            Self::Letters(reply) => reply.send(Err(why)),
            Self::Recover(reply) => reply.send(Err(why)),
            Self::Flush(reply) | Self::Probe(reply) | Self::Finish(reply) | Self::Close(reply) => reply.send(Err(why)),
        }
    }

    /// Whether somebody waits for it.
    const fn is_urgent(&self) -> bool {
        !matches!(self, Self::Change(Changes { waiter: None, .. }))
    }
}

/// The requests, and what the callers are to know.
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// The thread waits for requests.
    arrived: Condvar,
    /// Callers wait for room.
    room: Event,
    limits: Limits,
}

/// Bounds of what may wait, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) requests: usize,
    pub(super) bytes: usize,
    /// How long changes that nobody waits for stay for others to join.
    pub(super) linger: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Request>,
    /// Of changes that wait or are being made.
    requests: usize,
    bytes: usize,
    /// That ever came.
    changes: u64,
    /// Requests in `waiting` that somebody waits for.
    urgent: usize,
    /// Nothing more is taken, and why.
    ended: Option<StorageError>,
    health: StorageHealth,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self { inner: Mutex::default(), arrived: Condvar::new(), room: Event::new(), limits }
    }

    /// Puts changes in when there is room. Cancel-safe: dropped before it is ready, they are not in.
    pub(super) async fn put(&self, changes: Changes) -> Result<(), StorageError> {
        let mut changes = Some(changes);
        loop {
            if self.try_put(&mut changes)? {
                return Ok(());
            }
            let listener = self.room.listen();
            // Between the look and the listening, the last one may have gone.
            if self.try_put(&mut changes)? {
                return Ok(());
            }
            listener.await;
        }
    }

    fn try_put(&self, changes: &mut Option<Changes>) -> Result<bool, StorageError> {
        let mut inner = self.lock();
        if let Some(error) = &inner.ended {
            return Err(error.clone());
        }
        // The last one may go beyond the bound: so one that is larger than all of it gets in, too.
        if inner.requests >= self.limits.requests || inner.bytes >= self.limits.bytes {
            return Ok(false);
        }
        if let Some(changes) = changes.take() {
            inner.requests += 1;
            inner.changes += 1;
            inner.bytes += changes.bytes;
            self.push(inner, Request::Change(changes));
        }
        Ok(true)
    }

    /// Puts in what is not a change: there are few of these at a time. Returns how many changes came before it.
    pub(super) fn ask(&self, request: Request) -> Result<u64, StorageError> {
        let inner = self.lock();
        match &inner.ended {
            Some(error) => Err(error.clone()),
            None => {
                let changes = inner.changes;
                self.push(inner, request);
                Ok(changes)
            }
        }
    }

    /// Changes that came so far.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    fn push(&self, mut inner: MutexGuard<'_, Inner>, request: Request) {
        let urgent = request.is_urgent();
        inner.urgent += usize::from(urgent);
        inner.waiting.push_back(request);
        // The thread sleeps without requests, or without urgent ones and few bytes: nothing else wakes it.
        let full = inner.urgent == 0 && inner.bytes >= GROUP_BYTES;
        if inner.waiting.len() == 1 || (urgent && inner.urgent == 1) || full {
            drop(inner);
            self.arrived.notify_one();
        }
    }

    /// What makes the next transaction, or one request of another kind; nothing if none came in `patience`.
    pub(super) fn next(&self, patience: Option<Duration>) -> Vec<Request> {
        let idle = |inner: &mut Inner| inner.waiting.is_empty();
        let mut inner = match patience {
            None => self.arrived.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.arrived.wait_timeout_while(self.lock(), patience, idle).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if inner.waiting.is_empty() {
            return Vec::new();
        }
        // Nobody waits for these: the next one that somebody waits for may share their sync.
        let relaxed = |inner: &mut Inner| inner.urgent == 0 && inner.bytes < GROUP_BYTES;
        if relaxed(&mut inner) {
            let waited = self.arrived.wait_timeout_while(inner, self.limits.linger, relaxed);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(request) = inner.waiting.front() {
            let size = if let Request::Change(changes) = request { Some(changes.bytes) } else { None };
            let fits = match size {
                Some(size) => group.is_empty() || (bytes + size <= GROUP_BYTES && group.len() < GROUP_REQUESTS),
                None => group.is_empty(),
            };
            if !fits {
                break;
            }
            bytes += size.unwrap_or_default();
            inner.urgent -= usize::from(request.is_urgent());
            group.extend(inner.waiting.pop_front());
            if size.is_none() {
                break;
            }
        }
        group
    }

    /// Changes that were taken are over: there is room for others.
    pub(super) fn release(&self, requests: usize, bytes: usize) {
        if requests > 0 {
            let mut inner = self.lock();
            // It may have ended meanwhile, and counts no more.
            inner.requests = inner.requests.saturating_sub(requests);
            inner.bytes = inner.bytes.saturating_sub(bytes);
            drop(inner);
            self.room.notify(requests.additional());
        }
    }

    /// Nothing more is taken, and what waits is refused.
    pub(super) fn end(&self, why: &StorageError) {
        let waiting = {
            let mut inner = self.lock();
            inner.ended.get_or_insert_with(|| why.clone());
            (inner.urgent, inner.requests, inner.bytes) = (0, 0, 0);
            std::mem::take(&mut inner.waiting)
        };
        waiting.into_iter().for_each(|request| request.refuse(why.clone()));
        self.room.notify(usize::MAX);
    }

    pub(super) fn health(&self) -> StorageHealth {
        let inner = self.lock();
        match &inner.ended {
            Some(error) => StorageHealth::Failed(error.clone()),
            None => inner.health.clone(),
        }
    }

    pub(super) fn set_health(&self, health: StorageHealth) {
        self.lock().health = health;
    }

    /// Whether changes may be acknowledged before they are made: not while the store is in trouble.
    pub(super) fn is_working(&self) -> bool {
        self.lock().health == StorageHealth::Working
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is guarded here is whole between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
