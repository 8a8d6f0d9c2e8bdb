//! From the line to a run queue: who is taken, and in which order the limits are asked.

use std::sync::atomic::{Ordering, fence};

use super::settings::Settings;
use super::{LaneContext, LaneCore};
use crate::error::LaneError;
use crate::executor::{Handle, Runnable};
use crate::limit::gate::{Hold, Submitted, Verdict, WAITING_MAX, Waiting as _};
use crate::queue::acquire::{Acquire, Permit};
use crate::queue::keys::{Admit, Key, Queued};
use crate::queue::line::{Entry, Waiter};
use crate::queue::nested::Nested;

impl LaneCore {
    pub(in crate::queue) fn start(&self) {
        self.gate.unhold(Hold::Unstarted);
        self.note_hold();
        self.pump();
    }

    pub(in crate::queue) fn pause(&self) {
        self.gate.hold(Hold::Paused);
        self.note_hold();
    }

    /// Holds commands back while the store says so.
    pub(in crate::queue) fn hold_for_store(&self, hold: bool) {
        if hold {
            self.gate.hold(Hold::Store);
            self.note_hold();
        } else {
            self.gate.unhold(Hold::Store);
            self.note_hold();
            self.pump();
        }
    }

    pub(in crate::queue) fn resume(&self) {
        self.gate.unhold(Hold::Paused);
        self.note_hold();
        self.pump();
        if let Some(store) = self.context().and_then(|context| context.store.as_ref()) {
            store.tell_lanes_changed();
        }
    }

    /// Admits what can be: after anything that allows more than before.
    pub(in crate::queue) fn pump(&self) {
        if self.gate.is_nested() {
            self.with_loans(|_| {});
        }
        self.pump_own();
        self.pump_shared();
    }

    pub(super) fn pump_own(&self) {
        self.gate.pump(&self.line, |entry| self.admit(entry), |notice| self.notice(notice));
    }

    #[inline]
    pub(super) fn pump_shared(&self) {
        if let Some(pool) = self.context().and_then(|context| context.pool.as_ref()) {
            pool.pump();
        }
    }

    /// A permit comes back.
    #[inline]
    pub(in crate::queue) fn release(&self) {
        let released = self.gate.release(&self.line, |entry| self.admit(entry), |notice| self.notice(notice));
        if !released {
            self.with_loans(Nested::give);
        }
        self.permit_is_back();
    }

    /// Tells those outside of the lane who may want it: other lanes of a shared limit, and worker pools.
    #[inline]
    pub(super) fn permit_is_back(&self) {
        if let Some(context) = self.context() {
            if let Some(pool) = &context.pool {
                pool.pump();
            }
            context.vacancy.tell();
        }
    }

    /// Somebody has come to the head of the line, with a permit.
    #[inline]
    pub(super) fn admit(&self, entry: Entry) -> Verdict {
        let entry = match entry {
            Entry { waiter: Waiter::Command(handle), .. } if self.is_plain() => return self.admit_plain(handle),
            entry => entry,
        };
        let settings = self.settings.load();
        let cost = entry.cost();
        let verdict = match &entry.waiter {
            Waiter::Command(handle) => self.admit_command(&settings, handle, cost, false),
            Waiter::Host(grant) if !grant.is_waiting() => Verdict::Dead,
            Waiter::Host(grant) => match self.take_rate(&settings, cost) {
                true if grant.grant() => Verdict::Admitted,
                true => Verdict::Dead,
                false => Verdict::Refused,
            },
            Waiter::Key(key) => return self.admit_key(&settings, Key::clone(key), entry),
        };
        match verdict {
            Verdict::Admitted if settings.config.capacity.is_some() => self.make_room(),
            Verdict::Admitted => {}
            Verdict::Dead => self.exhume(1),
            Verdict::Refused => self.line.put_back(entry),
        }
        verdict
    }

    #[inline]
    pub(super) fn admit_plain(&self, handle: Handle) -> Verdict {
        if !handle.meta().life.admit(false) {
            self.exhume(1);
            return Verdict::Dead;
        }
        // Some may have been accepted while the lane explained.
        self.note_admitted(handle.meta(), false);
        match handle.into_unparked() {
            Ok(runnable) => crate::executor::schedule_admitted(runnable),
            Err(handle) => handle.wake(),
        }
        Verdict::Admitted
    }

    pub(super) fn admit_key(&self, settings: &Settings, key: Key, entry: Entry) -> Verdict {
        let mut taken = None;
        let claim = |queued: &Queued| match self.claim_command(settings, &queued.handle, queued.cost, true) {
            Verdict::Admitted => {
                taken = Some(queued.handle.clone());
                Admit::Taken
            }
            Verdict::Dead => Admit::Dead,
            Verdict::Refused => Admit::Refused,
        };
        let head = self.keys.head(&key, || self.per_key(), claim);
        // Not under the lock of the key: this may wake a worker, which takes long.
        if let Some(handle) = taken {
            self.launch(settings, &handle);
        }
        // Relisted first: never is a command counted neither here nor there.
        if head.relisted {
            let _queued = self.gate.reenter(false);
        }
        self.set_apart(head.dead as i64 - head.fewer_apart as i64);
        self.dead.fetch_sub(head.dead as i64, Ordering::Relaxed);
        if head.relisted {
            self.line.push(Entry::key(&key));
            // ORDERING: the caller goes on pumping; as in `Gate::enqueue`, also for a maximum that is raised meanwhile.
            fence(Ordering::SeqCst);
        }
        if settings.config.capacity.is_some() && head.outcome == Admit::Taken {
            self.make_room();
        }
        match head.outcome {
            Admit::Taken => Verdict::Admitted,
            Admit::Dead => Verdict::Dead,
            Admit::Refused => {
                self.line.put_back(entry);
                Verdict::Refused
            }
        }
    }

    pub(super) fn admit_command(&self, settings: &Settings, handle: &Handle, cost: u32, keyed: bool) -> Verdict {
        let verdict = self.claim_command(settings, handle, cost, keyed);
        if verdict == Verdict::Admitted {
            self.launch(settings, handle);
        }
        verdict
    }

    /// Takes a waiting command, which is then to be launched.
    fn claim_command(&self, settings: &Settings, handle: &Handle, cost: u32, keyed: bool) -> Verdict {
        let life = &handle.meta().life;
        if !life.is_queued() {
            return Verdict::Dead;
        }
        if !self.take_rate(settings, cost) {
            return Verdict::Refused;
        }
        // Somebody may have come first in between; the rate is then charged for nothing, which errs on the right side.
        if !life.admit(keyed) {
            return Verdict::Dead;
        }
        self.note_admitted(handle.meta(), keyed);
        Verdict::Admitted
    }

    pub(super) fn take_rate(&self, settings: &Settings, cost: u32) -> bool {
        let Some(limiter) = &settings.limiter else { return true };
        let cost = u32::try_from(limiter.largest_cost()).map_or(cost, |largest| cost.min(largest));
        match limiter.take(self.now(), cost) {
            Ok(()) => true,
            Err(at) => {
                self.retry_at.store(at.as_nanos(), Ordering::Release);
                false
            }
        }
    }

    /// Puts an admitted command on a run queue.
    pub(super) fn launch(&self, settings: &Settings, handle: &Handle) {
        match handle.unpark() {
            // Its alarm may have to find it there.
            Some(runnable) if settings.booster.is_some() => crate::executor::schedule_liftable(runnable),
            Some(runnable) => crate::executor::schedule_admitted(runnable),
            // It came back: its future waits for this.
            None => handle.wake(),
        }
    }

    /// Puts a new command that was admitted at once on a run queue.
    pub(in crate::queue) fn launch_new(&self, settings: &Settings, context: &LaneContext, runnable: Runnable) {
        if settings.booster.is_some() {
            crate::executor::schedule_liftable(runnable);
        } else {
            context.executor.schedule_new(runnable);
        }
    }

    /// Stands in the line for a permit.
    pub(in crate::queue) fn acquire(&self) -> Acquire {
        let settings = self.settings.load();
        let (Some(lane), Some(context)) = (self.this(), self.context()) else {
            let error = LaneError::QueueError(format!("lane {:?} is not registered with a queue", self.id));
            return Acquire::ready(Err(error));
        };
        if !context.executor.is_open() {
            return Acquire::ready(Err(LaneError::ShutdownInProgress));
        }
        match self.count_in(&settings, true) {
            Submitted::Admitted => Acquire::ready(Ok(lane)),
            Submitted::Queued => {
                let (acquire, grant) = Acquire::waiting(lane);
                self.enqueue(Entry::plain(Waiter::Host(grant)));
                self.end_late();
                acquire
            }
            Submitted::Closed => Acquire::ready(Err(LaneError::ShutdownInProgress)),
            Submitted::Full => {
                let limit = format!("{} may wait", settings.config.capacity.unwrap_or(WAITING_MAX as usize));
                Acquire::ready(Err(LaneError::LaneFull { lane_id: self.id.to_string(), limit }))
            }
        }
    }

    /// Takes a permit if one is free and nobody waits.
    pub(in crate::queue) fn try_acquire(&self) -> Option<Permit> {
        let settings = self.settings.load();
        let (lane, context) = (self.this()?, self.context()?);
        let free = context.executor.is_open() && !self.gate.status().closed && self.gate.try_take_unwaited();
        if !free {
            // One of the shared limit may have been taken in vain.
            self.pump_shared();
            return None;
        }
        let permit = Permit::new(lane);
        self.take_rate(&settings, 1).then_some(permit)
    }
}
