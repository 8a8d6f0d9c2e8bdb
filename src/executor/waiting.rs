//! Tasks that wait for something: known, so that closing the executor or stopping a queue can end them.
//!
//! A task that waits is on no queue; only its waker leads to it, and whoever holds that may never call it. Each worker
//! therefore keeps a waker of every task that it once polled in vain, until the task ends. A task that ends in its first
//! poll never comes here; for one that waits this costs two uncontended locks in its life.

use std::num::NonZeroU32;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use slab::Slab;

use super::shared::Shared;
use super::worker::Local;

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    tasks: Mutex<Slab<Waker>>,
}

/// Where a waiting task is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingKey {
    worker: u16,
    /// The index in the slab, plus one: part of every task, so small.
    index: NonZeroU32,
}

impl Waiting {
    /// Wakes every task: the executor is closed, so that ends them.
    pub(crate) fn wake_all(&self) {
        let tasks = std::mem::take(&mut *self.lock());
        tasks.into_iter().for_each(|(_, waker)| super::wake_contained(waker));
    }

    /// Wakes every task, to look whether it is to end.
    fn wake_round(&self) {
        // Cloned and woken outside of the lock: a waking may end in a destructor of others.
        let wakers: Vec<_> = self.lock().iter().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(super::wake_contained);
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Waker>> {
        // Nothing under this lock can panic half-way.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// How often all waiting tasks were woken.
    #[inline]
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Wakes every task that waits: each looks whether it is to end, as its queue has said before this call.
    pub(crate) fn wake_waiting(&self) {
        // ORDERING: pairs with the fence in `task_waits`: a task that registers meanwhile sees the new round and wakes
        // itself, or is seen here.
        self.rounds.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.workers.iter().for_each(|worker| worker.waiting.wake_round());
    }

    /// Called on a worker whose poll of a task was in vain; `rounds` as they were before that poll.
    pub(crate) fn task_waits(&'static self, waker: &Waker, rounds: u64) -> Option<WaitingKey> {
        let worker = Local::with_current(self, |local| local.map(Local::index))?;
        let index = self.workers[worker].waiting.lock().insert(waker.clone());
        fence(Ordering::SeqCst);
        if self.rounds() != rounds {
            waker.wake_by_ref();
        }
        let index = u32::try_from(index + 1).ok().and_then(NonZeroU32::new).expect("under 2^32 waiting tasks");
        Some(WaitingKey { worker: worker as u16, index })
    }

    /// The task has ended.
    pub(crate) fn task_waits_no_more(&self, key: WaitingKey) {
        let waiting = &self.workers[usize::from(key.worker)].waiting;
        let waker = waiting.lock().try_remove(key.index.get() as usize - 1);
        drop(waker);
    }
}
