//! The alarm of a command that has not started: expires it when it has waited for too long, and gives it a better priority
//! as its deadline comes near. One timer, set at a time, whatever it is for; none once the command has started.

use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use super::admission::{LaneCore, Settings};
use super::context;
use super::extra::Extra;
use crate::clock::Tick;
use crate::executor::Handle;
use crate::executor::life::End;
use crate::metrics::Count;

/// What an alarm is set for.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlarmTimes {
    /// The beginning of the wait.
    since: Tick,
    /// When the command expires.
    latest: Tick,
}

struct Alarm {
    lane: Arc<LaneCore>,
    handle: Handle,
    base: super::Priority,
    times: AlarmTimes,
}

impl LaneCore {
    /// What a command needs an alarm for, if for anything.
    pub(super) fn alarm_of(&self, settings: &Settings, extra: &Extra) -> Option<AlarmTimes> {
        let times = AlarmTimes { since: extra.start_at, latest: extra.latest_start };
        (settings.booster.is_some() || times.latest != Tick::NEVER).then_some(times)
    }

    /// Sets the alarm of a command that nobody can admit yet.
    pub(super) fn set_alarm(&self, handle: &Handle, times: AlarmTimes) {
        let Some(lane) = self.this() else { return };
        let alarm = Alarm { lane, handle: handle.clone(), base: handle.meta().priority(), times };
        Arc::new(alarm).set(Duration::ZERO);
    }
}

impl Alarm {
    /// Sets the timer for what comes next after the command has waited for `waited`.
    fn set(self: Arc<Self>, waited: Duration) {
        let settings = self.lane.settings.load();
        let step = settings.booster.as_ref().and_then(|booster| booster.next_step(waited));
        let next = step.map_or(Tick::NEVER, |step| self.times.since.plus(step)).min(self.times.latest);
        if next != Tick::NEVER {
            let handle = self.handle.clone();
            handle.meta().set_alarm(next, self.into());
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let meta = self.handle.meta();
        let now = self.lane.now();
        if meta.life.has_started() || meta.life.end().is_some() {
            return;
        }
        if now >= self.times.latest {
            if let Some(ended) = meta.life.end_unstarted(End::Expired) {
                context::stop(&self.handle, ended.was_queued);
                meta.tell_early();
            }
            return;
        }
        let waited = now.since(self.times.since);
        let settings = self.lane.settings.load();
        if let Some(booster) = &settings.booster
            && meta.raise(booster.priority_at(self.base, waited))
        {
            self.lane.measure(Count::Boosts);
            self.lane.lift_admitted(&self.handle);
        }
        self.set(waited);
    }
}
