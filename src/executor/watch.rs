//! The watch: a thread that sees what workers which are stuck in a poll can not.
//!
//! A deadline is normally seen by the attempt itself, at an await. One that blocks its worker never gets there, so a worker
//! shows what it polls (`shown`), and the watch looks when the earliest deadline passes. It also fires timers whose owner is
//! stuck, looks after priorities that starve (`floor`) and samples the workers' polls (`stuck`). The thread is
//! started with the executor if stuck polls count, else when it is first needed, and sleeps without a timer while there is
//! nothing to look for.
//!
//! `next` is when the thread looks next. Whoever wants a look publishes what is to be looked at, fences, and reads `next`;
//! the thread writes `next`, fences, and looks: one of them sees the other.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use super::life::End;
use super::shared::{Phase, Shared};
use super::shown::Look;
use super::stuck::Sampler;
use super::task::TaskRef;
use crate::clock::{Clock, Tick};

/// How long after a timer's deadline its owner counts as stuck.
const TIMER_GRACE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Watch {
    next: AtomicU64,
    started: AtomicBool,
    thread: OnceLock<Thread>,
    /// Looks for stuck polls; see `stuck`.
    sampling: AtomicBool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(u64::MAX),
            started: AtomicBool::new(false),
            thread: OnceLock::new(),
            sampling: AtomicBool::new(false),
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn is_sampling(&self) -> bool {
        self.sampling.load(Ordering::Relaxed)
    }

    /// Says whether it was before.
    pub(super) fn set_sampling(&self, sampling: bool) -> bool {
        self.sampling.swap(sampling, Ordering::AcqRel)
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

    /// Starts the watch before it is needed. One that a worker starts is bound to that worker's CPU, and so would the spares be.
    pub(super) fn start_watch_ahead(&'static self) {
        if !self.watch.started.swap(true, Ordering::AcqRel) {
            self.start_watch();
        }
    }

    #[cold]
    fn start_watch(&'static self) {
        self.add_user();
        let thread = std::thread::Builder::new().name("corelane-watch".into()).spawn(move || {
            let _ = self.watch.thread.set(std::thread::current());
            fence(Ordering::SeqCst);
            let mut sampler = Sampler::new(self);
            while self.phase() != Phase::Closed {
                match self.watch_look(&mut sampler).since(self.clock.now()) {
                    Duration::ZERO => {}
                    until if until > Duration::from_secs(1 << 30) => std::thread::park(),
                    until => std::thread::park_timeout(until),
                }
            }
            self.release();
        });
        if let Err(error) = thread {
            self.release();
            tracing::error!(%error, "no thread for the watch: polls that block are not noticed, and end late");
        }
    }

    /// Ends what is overdue; returns when to look next.
    fn watch_look(&'static self, sampler: &mut Sampler) -> Tick {
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
        for remote in &self.workers {
            if let Some(look) = Look::at(remote) {
                let record = look.record();
                if record.deadline > now {
                    next = next.min(record.deadline);
                } else if record.task.meta().life.try_end(End::Expired).is_ok() {
                    woken.extend(record.task.meta().timed.as_ref().and_then(|timed| timed.early.take()));
                }
            }
            if remote.timers.next_hint().plus(TIMER_GRACE) <= now {
                remote.timers.take_due(now, &mut woken);
            }
            next = next.min(remote.timers.next_hint().plus(TIMER_GRACE));
        }
        woken.into_iter().for_each(super::wake_contained);
        let next = next.min(self.look_at_floor(now)).min(sampler.look(now));
        let next = self.watch.next.fetch_min(next.as_nanos(), Ordering::AcqRel).min(next.as_nanos());
        Tick::from_nanos(next)
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;
    use crate::executor::Executor;

    #[test]
    fn the_watch_sleeps_without_a_timer_once_all_workers_sleep() {
        for workers in [1, 2, 4] {
            let executor = Executor::builder().workers(workers).pin(false).build().expect("a valid configuration");
            let watch = &executor.shared().watch;
            for _ in 0..3 {
                let seen = executor.spawn(3, async { watch.is_sampling() });
                assert!(executor.block_on(seen).expect("it runs"), "a poll that nobody would have seen");
                let begun = executor.clock().now();
                while watch.is_sampling() || watch.next.load(Ordering::Acquire) != Tick::NEVER.as_nanos() {
                    assert!(executor.clock().now().since(begun) < Duration::from_secs(60), "it looks for ever");
                    std::thread::yield_now();
                }
            }
        }
    }
}
