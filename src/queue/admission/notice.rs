//! What a lane tells others: events, the timer of its rate limit, its numbers, and that it is idle.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};
use std::task::Wake;

use super::LaneCore;
use super::count::apart;
use super::settings::Settings;
use crate::clock::Tick;
use crate::error::LaneError;
use crate::event::Transition;
use crate::limit::gate::Notice;
use crate::metrics::Count;
use crate::queue::lane::LaneStatus;

impl LaneCore {
    pub(super) fn notice(&self, notice: Notice) {
        match notice {
            Notice::Relieved => self.observe(|| Transition::Idle { lane_id: Arc::clone(&self.id) }),
            Notice::Idle => {
                if let Some(queue) = self.context.get().and_then(|context| context.queue.upgrade()) {
                    queue.notice_idle();
                }
            }
            Notice::Throttled => self.arm_throttle(),
        }
    }

    /// Has the lane pumped when its rate limit has time again.
    pub(super) fn arm_throttle(&self) {
        let Some(context) = self.context() else { return };
        let Some(lane) = self.this() else { return };
        let shared = context.executor.shared();
        self.note_hold();
        if self.meter().is_some() {
            let now = shared.clock.stamp().max(1);
            let _since = self.throttled_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        // Only atomics and the timers' own lock under this one: the last to come sets the timer that stays, for the refusal
        // that was last.
        let mut timer = self.throttle_timer.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Tick::from_nanos(self.retry_at.load(Ordering::Acquire));
        let before = timer.replace(shared.set_timer(at, Arc::new(Unthrottle(lane)).into()));
        drop(timer);
        if let Some(before) = before {
            shared.cancel_timer(before);
        }
        // This worker may be about to block.
        shared.look_by_timer(at);
        // What was refused is back in the line, which may have been cleared meanwhile.
        self.end_late();
    }

    /// The rate limit holds nothing back any more.
    pub(super) fn end_throttled(&self) {
        if let (Some(meter), Some(context)) = (self.meter(), self.context()) {
            let now = context.executor.clock().stamp();
            meter.throttled_for(now, self.throttled_since.swap(0, Ordering::Relaxed));
        }
    }

    pub(in crate::queue) fn measure(&self, count: Count) {
        if let Some(meter) = self.meter() {
            meter.count(count);
        }
    }

    /// A submission was refused.
    pub(in crate::queue) fn count_refused(&self, error: &LaneError) {
        self.measure(match error {
            LaneError::LaneFull { .. } => Count::RejectedFull,
            LaneError::ShutdownInProgress => Count::RejectedShutdown,
            LaneError::Storage(_) => Count::RejectedStorage,
            _ => Count::RejectedInvalid,
        });
    }

    pub(in crate::queue) fn note_pressure(&self, settings: &Settings) {
        if settings.config.pressure_threshold.is_some_and(|threshold| self.gate.note_pressure(threshold)) {
            self.observe(|| Transition::Pressure { lane_id: Arc::clone(&self.id) });
        }
    }

    /// Commands accepted and not admitted.
    pub(super) fn pending(&self) -> usize {
        usize::try_from(self.gate.status().waiting as i64 + self.apart()).unwrap_or(0)
    }

    /// Of these, commands that wait for their time or behind others of their key; about, while commands move.
    pub(in crate::queue) fn delayed(&self) -> usize {
        usize::try_from(self.apart() + self.dead.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(in crate::queue) fn status(&self) -> LaneStatus {
        let settings = self.settings.load();
        LaneStatus {
            pending: self.pending(),
            active: self.gate.status().running,
            min: settings.config.min_concurrency,
            max: settings.config.max_concurrency,
        }
    }

    pub(in crate::queue) fn is_paused(&self) -> bool {
        self.gate.status().paused
    }

    /// Asks for [`QueueCore::notice_idle`] when nothing is left; true if it is so now.
    pub(in crate::queue) fn want_idle(&self) -> bool {
        loop {
            // Commands move between the gate's word and `apart`, and are counted in both meanwhile. Unchanged `apart` around a
            // look at the word makes that look one at both.
            let before = self.apart.load(Ordering::Acquire);
            let status = self.gate.want_idle();
            fence(Ordering::SeqCst);
            let after = self.apart.load(Ordering::Acquire);
            if status.running > 0 {
                return false;
            }
            if before == after {
                return status.waiting as i64 + apart(before) == 0;
            }
        }
    }
}

/// Wakes a lane whose rate limit has time again.
pub(super) struct Unthrottle(Arc<LaneCore>);

impl Wake for Unthrottle {
    fn wake(self: Arc<Self>) {
        let Self(lane) = &*self;
        lane.end_throttled();
        lane.gate.unthrottle();
        lane.note_hold();
        lane.pump();
    }
}
