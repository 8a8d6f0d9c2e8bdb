//! Tasks that wait for something: known, so that closing the executor or stopping a queue can end them.
//!
//! A task that waits is on no queue; only its waker leads to it, and whoever holds that may never call it. Each worker
//! therefore keeps a handle of every task that it once polled in vain, until the task ends. A task that ends in its first
//! poll never comes here; for one that waits this costs two uncontended locks in its life.

use std::num::NonZeroU32;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::shared::Shared;
use super::task::{Handle, Meta};
use super::worker::Local;

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    tasks: Mutex<Slab<Handle>>,
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
        tasks.into_iter().for_each(|(_, task)| wake(&task));
    }

    /// Wakes every task, to look whether it is to end.
    fn wake_round(&self) {
        // Cloned and woken outside of the lock: a waking may end in a destructor of others.
        let tasks: Vec<_> = self.lock().iter().map(|(_, task)| task.clone()).collect();
        tasks.iter().for_each(wake);
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Handle>> {
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
    pub(crate) fn task_waits(&'static self, task: &Handle, rounds: u64) -> Option<WaitingKey> {
        let worker = Local::with_current(self, |local| local.map(Local::index))?;
        let index = self.workers[worker].waiting.lock().insert(task.clone());
        fence(Ordering::SeqCst);
        if self.rounds() != rounds {
            task.wake();
        }
        let index = u32::try_from(index + 1).ok().and_then(NonZeroU32::new).expect("under 2^32 waiting tasks");
        Some(WaitingKey { worker: worker as u16, index })
    }

    /// Looks at every task that waits, and has waited before. The look must be short and must not call others.
    pub(crate) fn look_at_waiting(&self, mut look: impl FnMut(&Meta)) {
        for worker in &self.workers {
            worker.waiting.lock().iter().for_each(|(_, task)| look(task.meta()));
        }
    }

    /// The task has ended.
    pub(crate) fn task_waits_no_more(&self, key: WaitingKey) {
        let waiting = &self.workers[usize::from(key.worker)].waiting;
        let task = waiting.lock().try_remove(key.index.get() as usize - 1);
        drop(task);
    }
}

/// What a waking ends in may be others' code.
fn wake(task: &Handle) {
    super::contained(|| task.wake());
}
