//! The watch: ends attempts whose poll is stuck past their deadline.
//!
//! A deadline is normally seen by the attempt itself, at an await. One that blocks its worker never gets there, so a
//! worker shows what it polls in a slot of its own while the attempt has a deadline, and one thread looks at the slots
//! when the earliest deadline passes. The thread is started for the first such attempt and sleeps without a timer while
//! there is neither such an attempt nor any timer. It also fires timers whose owner is stuck.
//!
//! `next` is when the thread looks next. A worker shows its attempt, fences, and reads `next`; the thread writes `next`,
//! fences, and reads the slots: one of them sees the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use super::life::End;
use super::shared::{Phase, Shared};
use super::task::TaskRef;
use super::worker::Local;
use crate::clock::{Clock, Tick};

/// How long after a timer's deadline its owner counts as stuck.
const TIMER_GRACE: Duration = Duration::from_millis(5);

/// An attempt that is being polled, and its deadline.
type Shown = (Tick, TaskRef);

#[derive(Debug)]
pub(crate) struct Watch {
    /// What each worker polls, if it has a deadline. The lock keeps the attempt alive while the thread ends it.
    slots: Box<[Mutex<Option<Shown>>]>,
    next: AtomicU64,
    started: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Watch {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            slots: (0..workers).map(|_| Mutex::new(None)).collect(),
            next: AtomicU64::new(u64::MAX),
            started: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn slot(&self, worker: usize) -> MutexGuard<'_, Option<Shown>> {
        self.slots[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waker for the timer of an attempt's deadline: ends the task, then wakes it to notice.
///
/// The task's end must not wait for its poll, since every worker may be busy with something else.
pub(crate) fn expiring_waker(task: TaskRef, deadline: Tick, waker: &Waker) -> Waker {
    struct Expire {
        deadline: Tick,
        // Keeps the task's cell, and so `task`, alive.
        waker: Waker,
        task: TaskRef,
    }
    impl Wake for Expire {
        fn wake(self: Arc<Self>) {
            let meta = self.task.meta();
            // An executor that closes fires all its timers.
            let due = meta.shared.clock.now() >= self.deadline;
            let expired = due && meta.life.try_end(End::Expired).is_ok();
            self.waker.wake_by_ref();
            if expired {
                meta.tell_early();
            }
        }
    }
    Arc::new(Expire { deadline, waker: waker.clone(), task }).into()
}

/// While this lives, the watch ends the task at its deadline.
#[derive(Debug)]
pub(crate) struct Watched {
    slot: Option<(&'static Shared, usize)>,
}

impl Watched {
    /// Called by the attempt itself, on a worker, around a poll.
    pub(crate) fn new(task: TaskRef, deadline: Tick) -> Self {
        let shared = task.meta().shared;
        let Some(worker) = Local::with_current(shared, |local| local.map(Local::index)) else {
            return Self { slot: None };
        };
        *shared.watch.slot(worker) = Some((deadline, task));
        fence(Ordering::SeqCst);
        shared.look_by(deadline);
        Self { slot: Some((shared, worker)) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some((shared, worker)) = self.slot {
            *shared.watch.slot(worker) = None;
        }
    }
}

impl Shared {
    /// Has the watch look no later than `deadline`.
    pub(crate) fn look_by(&'static self, deadline: Tick) {
        if deadline.as_nanos() >= self.watch.next.load(Ordering::Relaxed) {
            return;
        }
        self.watch.next.fetch_min(deadline.as_nanos(), Ordering::AcqRel);
        // Pairs with the fence after the thread shows its handle: it sees `next`, or we see the handle.
        fence(Ordering::SeqCst);
        if self.watch.started.swap(true, Ordering::AcqRel) {
            self.watch.wake();
        } else if matches!(self.clock, Clock::System) {
            self.start_watch();
        }
    }

    /// The same for a timer: by when its owner should have fired it.
    pub(crate) fn look_by_timer(&'static self, deadline: Tick) {
        self.look_by(deadline.plus(TIMER_GRACE));
    }

    #[cold]
    fn start_watch(&'static self) {
        self.add_user();
        let thread = std::thread::Builder::new().name("corelane-watch".into()).spawn(move || {
            let _ = self.watch.thread.set(std::thread::current());
            fence(Ordering::SeqCst);
            while self.phase() != Phase::Closed {
                match self.watch_look().since(self.clock.now()) {
                    Duration::ZERO => {}
                    until if until > Duration::from_secs(1 << 30) => std::thread::park(),
                    until => std::thread::park_timeout(until),
                }
            }
            self.release();
        });
        if let Err(error) = thread {
            self.release();
            tracing::error!(%error, "no thread for the watch: attempts that block past their deadline are ended late");
        }
    }

    /// Ends what is overdue; returns when to look next.
    pub(crate) fn watch_look(&self) -> Tick {
        let now = self.clock.now();
        let planned = Tick::from_nanos(self.watch.next.load(Ordering::Acquire));
        if planned > now {
            return planned;
        }
        self.watch.next.store(u64::MAX, Ordering::Release);
        fence(Ordering::SeqCst);
        let mut next = Tick::NEVER;
        // Woken without a lock: it is others' code.
        let mut woken = Vec::new();
        for (worker, remote) in self.workers.iter().enumerate() {
            {
                let mut slot = self.watch.slot(worker);
                match *slot {
                    Some((deadline, task)) if deadline <= now => {
                        let meta = task.meta();
                        if meta.life.try_end(End::Expired).is_ok() {
                            woken.extend(meta.timed.as_ref().and_then(|timed| timed.early.take()));
                        }
                        *slot = None;
                    }
                    Some((deadline, _)) => next = next.min(deadline),
                    None => {}
                }
            }
            if remote.timers.next_hint().plus(TIMER_GRACE) <= now {
                remote.timers.take_due(now, &mut woken);
            }
            next = next.min(remote.timers.next_hint().plus(TIMER_GRACE));
        }
        woken.into_iter().for_each(super::wake_contained);
        let next = next.min(self.look_at_floor(now));
        let next = self.watch.next.fetch_min(next.as_nanos(), Ordering::AcqRel).min(next.as_nanos());
        Tick::from_nanos(next)
    }
}
