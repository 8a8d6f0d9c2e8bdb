//! A worker's timers: the wheel behind a lock, and the next deadline where its owner can see it without one.
//!
//! The lock is nearly always the owner's and uncontended (about 10 ns). It is there so that a future which moved may
//! cancel its timer, outside threads may set one, and the watch may fire what a stuck owner can not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::shared::Shared;
use super::wheel::{Wheel, WheelKey};
use super::worker::Local;
use crate::clock::Tick;

#[derive(Debug)]
pub(crate) struct Timers {
    wheel: Mutex<Wheel>,
    /// The wheel's next deadline in ticks of the clock, `u64::MAX` if it is empty. Written under the lock.
    next: AtomicU64,
}

/// Names a set timer of an executor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimerKey {
    worker: u16,
    key: WheelKey,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self { wheel: Mutex::new(Wheel::new()), next: AtomicU64::new(u64::MAX) }
    }

    /// The next deadline. Takes the lock: for a worker about to sleep, which must see every timer set before its sleep
    /// bit was read.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.lock().next_deadline()
    }

    /// The next deadline as last published, [`Tick::NEVER`] if none is set: a load, for the dispatch loop. A timer that was
    /// cancelled may still show.
    #[inline]
    pub(crate) fn next_hint(&self) -> Tick {
        Tick::from_nanos(self.next.load(Ordering::Relaxed))
    }

    /// Takes out the wakers of all timers due at `now`.
    pub(crate) fn take_due(&self, now: Tick, due: &mut Vec<Waker>) {
        let mut wheel = self.lock();
        wheel.advance(now, due);
        self.publish(&wheel);
    }

    /// Takes out every waker: the executor is closed and fires no more timers.
    pub(crate) fn take_all(&self) -> Vec<Waker> {
        let mut wheel = self.lock();
        let wakers = wheel.clear();
        self.publish(&wheel);
        wakers
    }

    fn publish(&self, wheel: &Wheel) {
        let next = wheel.next_deadline().unwrap_or(Tick::NEVER).as_nanos();
        if next != self.next.load(Ordering::Relaxed) {
            self.next.store(next, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wheel> {
        // Nothing under this lock can panic half-way; should it have, the wheel is still consistent.
        self.wheel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Sets a timer on the calling worker's wheel, or from outside on some worker's. A spare is outside: it may be off duty
    /// by then.
    pub(crate) fn set_timer(&'static self, deadline: Tick, waker: Waker) -> TimerKey {
        let own = Local::with_current(self, |local| local.map(Local::index)).filter(|own| *own < self.regular);
        let worker = own.unwrap_or_else(|| self.outside_worker());
        let timers = &self.workers[worker].timers;
        let (key, first) = {
            let mut wheel = timers.lock();
            // Not the hint: a cancelled timer leaves that as it was.
            let before = wheel.next_deadline();
            let key = wheel.insert(deadline, waker);
            timers.publish(&wheel);
            (key, before.is_none_or(|before| wheel.next_deadline() < Some(before)))
        };
        // The owner reads its wheel under the lock after setting its sleep bit. If it read before our insertion, its bit
        // was set before our lock, and we see it here.
        if own.is_none() {
            if first && self.groups.idle(worker).claim_sleeper(worker) {
                self.unpark(worker);
            }
            // That worker may be blocked, and whoever waits outside is not to wait for it.
            self.look_by_timer(deadline);
        }
        TimerKey { worker: worker as u16, key }
    }

    /// Has a set timer wake another waker. False if it has fired.
    pub(crate) fn rewake_timer(&self, timer: TimerKey, waker: &Waker) -> bool {
        let timers = &self.workers[usize::from(timer.worker)].timers;
        match timers.lock().waker(timer.key) {
            None => return false,
            Some(set) if set.will_wake(waker) => return true,
            Some(_) => {}
        }
        // Cloning and dropping wakers is others' code, which must not run under the lock.
        let waker = waker.clone();
        let replaced = timers.lock().replace_waker(timer.key, waker);
        replaced.is_ok()
    }

    pub(crate) fn cancel_timer(&self, timer: TimerKey) {
        let timers = &self.workers[usize::from(timer.worker)].timers;
        // The published deadline stays: at worst the owner looks once for nothing.
        let waker = timers.lock().cancel(timer.key);
        drop(waker);
    }
}
