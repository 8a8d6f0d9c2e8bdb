//! A command on its way into a lane: what it asks for, how it is counted, and its place.
//!
//! Counting comes first and may refuse it. Then nothing can: its task is made and put where its turn finds it. Between the
//! two, a durable lane stores it, while it is counted apart.

use std::sync::Arc;

use super::Priority;
use super::admission::{LaneContext, LaneCore, Settings};
use super::command::Job;
use super::config::Overflow;
use super::context;
use super::durable::Stored;
use super::extra::Extra;
use super::keys::Queued;
use super::line::{Entry, Waiter};
use super::options::SubmitOptions;
use super::settle::{self, Accepted, Whereabouts};
use super::ticket::{Limits, Ticket, Way};
use super::traced::CommandTrace;
use crate::clock::Tick;
use crate::error::{LaneError, Result};
use crate::executor::life::Birth;
use crate::executor::{Making, Traits};
use crate::id::CommandId;
use crate::limit::gate::Submitted;
use crate::trace::TraceContext;

pub(super) struct Incoming<'a> {
    core: &'a Arc<LaneCore>,
    context: &'a LaneContext,
    settings: &'a Settings,
    /// None for a command that asks for nothing that is to be remembered.
    pub(super) extra: Option<Box<Extra>>,
    trace_parent: Option<Arc<TraceContext>>,
    count: Count,
    priority: Priority,
    /// Memory that it holds, and what the lane's commands may hold.
    bytes: Option<(usize, usize)>,
    /// It ends with the command that submits it.
    adopted: bool,
}

/// How a new command is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// It may start at once if a permit is free, and stands in the line in the order of submission.
    Plain,
    /// It has a place of its own in the line.
    Placed,
    /// It may have to wait for others of its key.
    Keyed,
    /// It comes to its place by itself, later.
    Apart,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(
        core: &'a Arc<LaneCore>,
        context: &'a LaneContext,
        settings: &'a Settings,
        options: Option<SubmitOptions>,
        size: usize,
    ) -> Self {
        let trace_parent = options.as_ref().and_then(|options| options.trace_parent.clone());
        let parent = context::parent();
        let parents_deadline = parent.map_or(Tick::NEVER, |parent| parent.total_deadline);
        let extra = Extra::of(core, settings, context, options, parents_deadline);
        let priority = extra.as_ref().and_then(|extra| extra.priority).unwrap_or(core.priority);
        let count = match &extra {
            Some(extra) if extra.is_delayed() => Count::Apart,
            Some(extra) if extra.key.is_some() => Count::Keyed,
            Some(_) if priority != core.priority => Count::Placed,
            _ => Count::Plain,
        };
        let bytes = settings.config.max_pending_bytes.map(|limit| {
            let own = extra.as_ref().map_or(0, |extra| extra.bytes);
            (size.saturating_add(own), limit)
        });
        let adopted = parent.is_some() && !extra.as_ref().is_some_and(|extra| extra.detached);
        Self { core, context, settings, extra, trace_parent, count, priority, bytes, adopted }
    }

    /// Counts it, if the lane has room.
    pub(super) fn count(&mut self) -> Result<Submitted> {
        let submitted = self.try_count(self.count)?;
        self.hold_bytes();
        Ok(submitted)
    }

    /// Counts it apart, if the lane has room, until [`Reservation::enter`].
    pub(super) fn reserve(&mut self) -> Result<Reservation<'a>> {
        let _apart = self.try_count(Count::Apart)?;
        self.hold_bytes();
        let bytes = self.bytes.map_or(0, |(bytes, _)| bytes);
        Ok(Reservation { core: self.core, settings: self.settings, bytes, count: self.count })
    }

    /// Counts it, whether the lane has room or not: it was accepted before.
    pub(super) fn count_again(&mut self) -> Submitted {
        self.hold_no_bytes();
        self.begin_trace();
        if self.count == Count::Apart {
            self.core.step_apart();
            return Submitted::Queued;
        }
        self.core.enter_again(self.settings, self.count == Count::Plain)
    }

    /// Counts it as running, whatever the lane's limits and holds say.
    pub(super) fn run_anyway(&mut self) -> Submitted {
        self.hold_no_bytes();
        self.begin_trace();
        self.core.run_anyway();
        Submitted::Admitted
    }

    /// Has it stored, with the attempts that were made before.
    pub(super) fn set_stored(&mut self, stored: Box<Stored>, attempts: u32) {
        if let Some(extra) = &mut self.extra {
            extra.stored = Some(stored);
            extra.attempts = attempts;
        }
    }

    /// It has begun to run before: what limits its wait for that is over.
    pub(super) fn has_started_before(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.latest_start = extra.total_deadline;
        }
    }

    fn try_count(&mut self, count: Count) -> Result<Submitted> {
        let counted = self.core.count(self.settings, count, self.bytes, self.priority);
        // Who waits for room comes again with the same command: that is traced once.
        let comes_again =
            self.settings.config.overflow == Overflow::Wait && matches!(counted, Err(LaneError::LaneFull { .. }));
        if !comes_again {
            self.begin_trace();
        }
        counted
    }

    fn begin_trace(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.trace = CommandTrace::of(self.context, &self.core.id, self.trace_parent.as_deref());
        }
    }

    fn hold_no_bytes(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.bytes = 0;
        }
    }

    fn hold_bytes(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.bytes = self.bytes.map_or(0, |(bytes, _)| bytes);
        }
    }

    /// Makes its task and puts it where its turn finds it.
    pub(super) fn place<J: Job>(self, job: J, id: CommandId, submitted: Submitted) -> Ticket<J::Output> {
        let Self { core, context, settings, extra, count, priority, adopted, .. } = self;
        let (birth, place) = match (submitted, &extra) {
            (Submitted::Admitted, _) => (Birth::Admitted, Whereabouts::Line),
            (_, Some(extra)) if extra.is_delayed() => (Birth::Apart, Whereabouts::Apart),
            _ => (Birth::Queued, Whereabouts::Line),
        };
        let limits = Limits::of(settings, extra.as_deref());
        let alarm = extra.as_ref().and_then(|extra| core.alarm_of(settings, extra));
        let key = extra.as_ref().and_then(|extra| extra.key.clone());
        let cost = extra.as_ref().map_or(1, |extra| extra.cost);
        let own_place = extra.as_ref().filter(|_| count == Count::Placed).map(|extra| extra.place(core, 0));
        let shared = extra.as_ref().and_then(|extra| extra.stored.as_ref()).and_then(|stored| stored.shared());
        let lane = Arc::clone(core);
        // Without it, a command waits in the line at its beginning or not at all.
        let may_wait_later = extra.is_some();
        let home = context.home_of(key.as_ref(), || job.command_type());
        let timed = limits.any() || alarm.is_some();
        let making = Making { priority, birth, timed, traits: Traits::new(true, home), owner: core.owner() };
        let make = |task| settle::run(Accepted::new(job, id, lane, task, place, extra));
        let way = Way::new(core.number(), cost);
        if birth != Birth::Queued {
            let (runnable, task) = context.executor.prepare(making, make);
            if adopted {
                context::adopt(|| runnable.meta_ref().handle());
            }
            if let Some(shared) = shared {
                shared.set_target(runnable.meta_ref().handle(), way);
            }
            let way = (may_wait_later || birth == Birth::Apart).then_some(way);
            // One that is delayed sets its alarm when its time has come.
            if let Some(alarm) = alarm.filter(|_| birth == Birth::Admitted) {
                core.set_alarm(&runnable.meta_ref().handle(), alarm);
            }
            match birth {
                Birth::Apart => context.executor.schedule_new(runnable),
                _ => core.launch_new(settings, context, runnable),
            }
            return Ticket::new(id, limits, task, way);
        }
        let (handle, task) = context.executor.prepare_parked(making, make);
        if adopted {
            context::adopt(|| handle.clone());
        }
        if let Some(shared) = shared {
            shared.set_target(handle.clone(), way);
        }
        // Once it is parked: an alarm that comes at once has to find it there.
        if let Some(alarm) = alarm {
            core.set_alarm(&handle, alarm);
        }
        match key {
            Some(key) => core.enter_key(&key, Queued { handle, cost }),
            None => core.enqueue(Entry::new(Waiter::Command(handle), own_place, cost)),
        }
        core.note_pressure(settings);
        // Cancelled, abandoned or closed while this was submitted?
        core.end_late();
        Ticket::new(id, limits, task, Some(way))
    }
}

/// A place in a lane for a command that is not there yet. Dropped, it is free again.
pub(super) struct Reservation<'a> {
    core: &'a Arc<LaneCore>,
    settings: &'a Settings,
    bytes: usize,
    count: Count,
}

impl Reservation<'_> {
    /// The command comes; the lane may have closed meanwhile.
    pub(super) fn enter(self) -> Submitted {
        let submitted = match self.count {
            // It stays apart until its time.
            Count::Apart => Submitted::Queued,
            count => {
                // Counted in before it is not counted apart any more: never as neither.
                let submitted = self.core.enter_again(self.settings, count == Count::Plain);
                self.core.step_in();
                if submitted == Submitted::Admitted {
                    self.core.make_room();
                }
                submitted
            }
        };
        std::mem::forget(self);
        submitted
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.step_in();
        self.core.give_bytes(self.bytes);
        self.core.make_room();
    }
}

impl LaneCore {
    /// Counts a new command, making room for it if the lane's overflow says so.
    fn count(
        &self,
        settings: &Settings,
        way: Count,
        bytes: Option<(usize, usize)>,
        priority: Priority,
    ) -> Result<Submitted> {
        loop {
            if let Some((bytes, limit)) = bytes
                && !self.take_bytes(bytes, limit)
            {
                if self.shed(settings.config.overflow, priority) {
                    continue;
                }
                return Err(self.full(format!("waiting commands may hold {limit} bytes")));
            }
            let submitted = match way {
                Count::Plain => self.count_in(settings, true),
                Count::Placed | Count::Keyed => self.count_in(settings, false),
                Count::Apart => self.count_apart(settings),
            };
            if let (Submitted::Closed | Submitted::Full, Some((bytes, _))) = (submitted, bytes) {
                self.give_bytes(bytes);
            }
            match submitted {
                Submitted::Admitted | Submitted::Queued => return Ok(submitted),
                Submitted::Closed => return Err(LaneError::ShutdownInProgress),
                Submitted::Full if self.shed(settings.config.overflow, priority) => {}
                Submitted::Full => {
                    let limit = settings.config.capacity.unwrap_or(crate::limit::gate::WAITING_MAX as usize);
                    return Err(self.full(format!("{limit} commands may wait")));
                }
            }
        }
    }

    pub(super) fn full(&self, limit: String) -> LaneError {
        LaneError::LaneFull { lane_id: self.id.to_string(), limit }
    }
}
