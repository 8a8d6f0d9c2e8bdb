//! Stuck polls: noticed by the watch while they go on, told of once, and worked around.
//!
//! A worker pays nothing for this but two counts of its own, of polls begun and of polls ended: no clock, no lock, nothing
//! that others write. The watch samples them. If both are at two looks what they were, and differ, then one poll has
//! lasted from the first look to the second: had it ended in between, so would the second count have changed, and it
//! never goes back. (A count may be seen late, by much less than the time between two looks.)
//!
//! To name the poll's command, the watch claims what the worker shows and then reads the first count again. The worker
//! counts before it shows and waits for the claim before it goes on to another poll, so if the count is still the same,
//! that record belongs to that poll. `loom-tests/shown.rs` has the model.
//!
//! What waits behind a stuck poll is helped at each look while that lasts: its worker's tasks are announced, a sleeper is woken,
//! some are moved to workers that are free, and if no general worker is, a spare is called (`spare`).
//!
//! The watch samples while a worker is awake, and for [`LINGER`] longer. Then it says that it does not sample any more,
//! fences, and looks once more whether all sleep. A worker that has slept fences before its first poll and asks whether the
//! watch samples; its sleep bit was cleared before. Of the two, one sees the other: either the worker sees that the watch
//! has stopped, and has it look again, or the watch sees that the bit is clear, and goes on. A worker that sleeps and
//! wakes between two looks is like one that was awake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::shared::Shared;
use super::shown::{Look, Report};
use super::task::{discard_panic, panic_message};
use super::worker::priorities;
use crate::clock::Tick;

/// How long the watch goes on once all workers sleep: to be woken costs more than some looks, and would delay a task.
const LINGER: Duration = Duration::from_millis(100);

/// The watch's memory of what it has seen.
#[derive(Debug)]
pub(super) struct Sampler {
    shared: &'static Shared,
    /// By worker, then by spare.
    seen: Box<[Seen]>,
    /// When a worker was last seen awake; none while nothing is sampled.
    awake: Option<Tick>,
    /// Tasks moved so far: they go round.
    moved: usize,
}

/// A worker as it was when its counts last changed.
#[derive(Clone, Copy, Debug)]
struct Seen {
    begun: u64,
    ended: u64,
    since: Tick,
    /// Its poll was found to be stuck.
    stuck: bool,
}

/// A poll that has just been found to be stuck.
struct Found {
    worker: usize,
    running_for: Duration,
    report: Option<Report>,
}

impl Sampler {
    pub(super) fn new(shared: &'static Shared) -> Self {
        let seen = Seen { begun: 0, ended: 0, since: Tick::from_nanos(0), stuck: false };
        Self { shared, seen: shared.workers.iter().map(|_| seen).collect(), awake: None, moved: 0 }
    }

    /// Looks at all workers; says when to look next.
    pub(super) fn look(&mut self, now: Tick) -> Tick {
        let Some(limit) = self.shared.stuck_after else { return Tick::NEVER };
        if !self.shared.watch.is_sampling() {
            return Tick::NEVER;
        }
        let found: Vec<_> = (0..self.seen.len()).filter_map(|worker| self.judge(worker, now, limit)).collect();
        // What waits is helped before others' code is told.
        self.help();
        for Found { worker, running_for, report } in found {
            tell(worker, running_for, report);
        }
        self.next_look(now, limit)
    }

    fn judge(&mut self, worker: usize, now: Tick, limit: Duration) -> Option<Found> {
        let counters = &self.shared.workers[worker].counters;
        let (begun, ended) = (counters.polls.get(), counters.ended.get());
        let seen = &mut self.seen[worker];
        if (begun, ended) != (seen.begun, seen.ended) || begun == ended {
            *seen = Seen { begun, ended, since: now, stuck: false };
            return None;
        }
        let running_for = now.since(seen.since);
        if seen.stuck || running_for < limit {
            return None;
        }
        seen.stuck = true;
        counters.stuck.add(1);
        Some(Found { worker, running_for, report: self.copy_report(worker, begun) })
    }

    /// What tells of the command in this poll; none if it is over, or of something else.
    fn copy_report(&self, worker: usize, poll: u64) -> Option<Report> {
        let remote = &self.shared.workers[worker];
        let look = Look::at(remote)?;
        // ORDERING: the claim acquired what the worker did before it showed this, so a later poll's count is seen.
        if remote.counters.polls.get() != poll {
            return None;
        }
        // Asks a command for its type, which is others' code.
        contained(|| look.record().about.copy()).flatten()
    }

    /// Sees to what waits behind stuck polls.
    fn help(&mut self) {
        let (shared, groups) = (self.shared, &self.shared.groups);
        let seen = &self.seen;
        let stuck = |worker: &usize| seen[*worker].stuck;
        let blocked: Vec<_> = (0..seen.len()).filter(stuck).collect();
        for worker in &blocked {
            // A local push goes without a fence, for which its worker makes up at its next dispatch.
            priorities(shared.queued_with(*worker)).for_each(|priority| shared.ready.announce(*worker, priority));
        }
        let waiting = if blocked.is_empty() { 0 } else { shared.waiting(u64::MAX) };
        if waiting != 0 {
            // A task that is alone with its worker has woken nobody, for it was to run there next.
            shared.wake(waiting);
        }
        let free = groups.reserved().find(|worker| !stuck(worker));
        let served = free.map_or(0, |worker| groups.allowed(worker));
        if !groups.general().all(|worker| stuck(&worker)) {
            shared.relieve_spares();
        } else if waiting & !served != 0 && shared.spares_on_duty().all(|spare| stuck(&(shared.regular + spare))) {
            shared.call_spare();
        }
        shared.note_spares();
        for worker in blocked {
            self.move_work_of(worker);
        }
    }

    /// Moves some of what is queued with a worker to those that are free: one that always has work of the same priority would not
    /// look for it.
    fn move_work_of(&mut self, worker: usize) {
        /// Tasks of a priority at a look. All may be many; what is left is moved at the next one, unless others have stolen it.
        const AT_A_LOOK: usize = 256;
        let shared = self.shared;
        let spares = shared.spares_on_duty().map(|spare| shared.regular + spare);
        let takers: Vec<_> = (0..shared.regular).chain(spares).filter(|taker| !self.seen[*taker].stuck).collect();
        for priority in priorities(shared.queued_with(worker)) {
            let may = |taker: &&usize| shared.groups.allowed(**taker) & 1 << priority != 0;
            let takers: Vec<_> = takers.iter().filter(may).collect();
            if takers.is_empty() {
                continue;
            }
            for _ in 0..AT_A_LOOK {
                let Some(task) = shared.take_from(worker, priority) else { break };
                self.moved = self.moved.wrapping_add(1);
                shared.push_to(*takers[self.moved % takers.len()], priority, task);
            }
        }
    }

    fn next_look(&mut self, now: Tick, limit: Duration) -> Tick {
        let rests = || self.shared.groups.all_asleep() && !self.shared.has_spare_at_work();
        let awake = *self.awake.get_or_insert(now);
        if !rests() {
            self.awake = Some(now);
        } else if now.since(awake) >= LINGER {
            self.shared.watch.set_sampling(false);
            // ORDERING: pairs with the fence in `have_polls_sampled`, see the header.
            fence(Ordering::SeqCst);
            if rests() {
                self.awake = None;
                return Tick::NEVER;
            }
            self.shared.watch.set_sampling(true);
        }
        now.plus(limit / 2)
    }
}

impl Shared {
    /// Whether the watch is to know of a poll with this deadline.
    pub(super) fn watches(&self, deadline: Tick) -> bool {
        self.stuck_after.is_some() || deadline != Tick::NEVER
    }

    /// Called by a worker before its first poll since it slept.
    pub(super) fn have_polls_sampled(&'static self) {
        let Some(limit) = self.stuck_after else { return };
        // ORDERING: pairs with the fence in `next_look`, see the header.
        fence(Ordering::SeqCst);
        if !self.watch.is_sampling() && !self.watch.set_sampling(true) {
            self.look_by(self.clock.now().plus(limit / 2));
        }
    }
}

fn tell(worker: usize, running_for: Duration, report: Option<Report>) {
    let told = contained(|| match report {
        Some(report) => report(worker, running_for),
        None => tracing::warn!(worker, ?running_for, "a poll is stuck"),
    });
    if told.is_none() {
        tracing::error!(worker, "the report of a stuck poll was lost");
    }
}

/// What others' code gives; none if it panics.
fn contained<T>(code: impl FnOnce() -> T) -> Option<T> {
    let ran = catch_unwind(AssertUnwindSafe(code));
    ran.map_err(|payload| {
        tracing::error!(panic = panic_message(payload.as_ref()), "telling of a stuck poll panicked; contained");
        discard_panic(payload);
    })
    .ok()
}
