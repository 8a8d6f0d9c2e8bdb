//! The counts: what is accepted and not settled, wherever it is, and whether there is room for more.
//!
//! The gate counts what waits in the line and what runs. The rest is here, in `apart`; see the header of `admission`.

use std::sync::atomic::{Ordering, fence};

use event_listener::IntoNotification as _;

use super::LaneCore;
use super::settings::Settings;
use crate::executor::Handle;
use crate::limit::gate::{Notice, Submitted, WAITING_MAX, Waiting as _};
use crate::queue::config::LaneConfig;
use crate::queue::keys::{Entrance, Key, Order, Queued};
use crate::queue::line::{Entry, Place, Waiter};

/// Fewer dead entries are left where they are.
pub(super) const SWEEP_FROM: i64 = 256;

pub(super) const BIAS: u64 = 1 << 39;
pub(super) const APART_BITS: u32 = 40;

impl LaneCore {
    /// Counts a new command of a plain lane.
    #[inline]
    pub(in crate::queue) fn count_direct(&self) -> Submitted {
        self.gate.submit(true, WAITING_MAX)
    }

    /// Counts a new command. `room` is for those that wait in the line.
    pub(in crate::queue) fn count_in(&self, settings: &Settings, plain: bool) -> Submitted {
        let direct = plain && settings.limiter.is_none();
        let room = match settings.config.capacity {
            None => WAITING_MAX,
            // Dead entries take no room, commands apart do.
            Some(capacity) => u64::try_from(capacity as i64 - self.apart() + self.leaving()).unwrap_or(0),
        };
        self.gate.submit(direct, room)
    }

    /// Counts a command that was accepted before.
    pub(in crate::queue) fn enter_again(&self, settings: &Settings, plain: bool) -> Submitted {
        self.gate.reenter(plain && settings.limiter.is_none())
    }

    /// Counts a command as running, whatever limits and holds say.
    pub(in crate::queue) fn run_anyway(&self) {
        self.gate.take_anyway();
    }

    /// Whether the lane accepts a command that is to wait apart; counts it if so.
    pub(in crate::queue) fn count_apart(&self, settings: &Settings) -> Submitted {
        if self.gate.status().closed {
            return Submitted::Closed;
        }
        let room = settings.config.capacity.map_or(i64::MAX, |capacity| capacity as i64);
        // Looked at and counted in one step: one that is refused must not take the room of another meanwhile.
        let counted = self.apart.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let pending = self.gate.status().waiting as i64 + apart(word) - self.leaving();
            (pending < room).then(|| word.wrapping_add((1 << APART_BITS) + 1))
        });
        if counted.is_err() {
            return Submitted::Full;
        }
        // ORDERING: counted, then looked: who closes the gate and then looks for idleness sees the count, or we see that it
        // is closed.
        fence(Ordering::SeqCst);
        if self.gate.status().closed {
            // Who looked meanwhile is told to look again.
            self.step_in();
            return Submitted::Closed;
        }
        Submitted::Queued
    }

    /// Puts a new command that was counted as waiting into the line.
    #[inline]
    pub(in crate::queue) fn enqueue(&self, entry: Entry) {
        self.gate.enqueue(entry, &self.line, |entry| self.admit(entry), |notice| self.notice(notice));
        self.pump_shared();
    }

    /// A new command of a key, counted as waiting, goes behind others of its key, or lists the key.
    pub(in crate::queue) fn enter_key(&self, key: &Key, queued: Queued) {
        if self.keys.enter(key, || self.per_key(), Order::New, |_| Some(queued)) {
            self.enqueue(Entry::key(key));
        } else {
            // Counted apart before it is not counted as waiting any more: never as neither.
            self.set_apart(1);
            self.gate.uncount_taken();
        }
    }

    /// How many of a key may run now.
    pub(in crate::queue) fn per_key(&self) -> usize {
        self.settings.load().config.per_key.unwrap_or(usize::MAX)
    }

    /// A command of a key gives its place up.
    pub(in crate::queue) fn leave_key(&self, key: &Key) {
        if self.keys.leave(key, || self.per_key()) {
            self.list_key(key);
        }
    }

    /// The next command of a key, which waited apart, joins the line.
    pub(super) fn list_key(&self, key: &Key) {
        // Counted as waiting before it is not counted apart any more: never as neither.
        let _queued = self.gate.reenter(false);
        self.set_apart(-1);
        self.enqueue(Entry::key(key));
    }

    /// A command that is counted apart comes to its place. True if it was admitted at once; if not, it is when its turn comes,
    /// unless it has ended.
    pub(in crate::queue) fn come_in(
        &self,
        handle: &Handle,
        key: Option<&Key>,
        place: Option<Place>,
        cost: u32,
    ) -> bool {
        let settings = self.settings.load();
        let life = &handle.meta().life;
        // It may have ended: then what stands in the line is dead from the beginning.
        let _alive = life.queue();
        let direct = settings.limiter.is_none() && place.is_none_or(|place| place.priority == self.priority);
        let admitted = match key {
            None => self.gate.reenter(direct) == Submitted::Admitted,
            Some(key) => {
                let mut admitted = false;
                let order = if life.has_started() { Order::Back } else { Order::New };
                let decide = |entrance| {
                    match entrance {
                        Entrance::Free => admitted = self.gate.reenter(direct) == Submitted::Admitted,
                        Entrance::Behind => self.set_apart(1),
                    }
                    (!admitted).then(|| Queued { handle: handle.clone(), cost })
                };
                let listed = self.keys.enter(key, || self.per_key(), order, decide);
                if listed {
                    self.enqueue(Entry::key(key));
                }
                admitted
            }
        };
        if admitted {
            let alive = life.admit(key.is_some());
            if !alive {
                // It will count an entry as dead that is none.
                self.exhume(1);
                if let Some(key) = key {
                    self.leave_key(key);
                }
                self.release();
            } else {
                self.note_admitted(handle.meta(), key.is_some());
            }
            self.step_in();
            self.make_room();
            return alive;
        }
        if key.is_none() {
            self.enqueue(Entry::new(Waiter::Command(handle.clone()), place, cost));
        }
        self.step_in();
        // ORDERING: queued, then looked whether it is awaited; `lift` the other way round.
        fence(Ordering::SeqCst);
        if let Some(priority) = handle.meta().awaited() {
            self.await_queued(&Queued { handle: handle.clone(), cost }, priority);
        }
        self.end_late();
        false
    }

    /// Ends what has joined the line after its lane was cancelled, abandoned or closed: nobody else would.
    #[inline]
    pub(in crate::queue) fn end_late(&self) {
        let Some(context) = self.context() else { return };
        if self.is_cancelling() {
            self.cancel_all();
        } else if context.executor.is_closed() {
            self.executor_closed();
        } else if context.queue.strong_count() == 0 || !context.executor.is_open() {
            self.abandon();
        }
    }

    pub(super) fn set_apart(&self, by: i64) {
        if by == 0 {
            return;
        }
        let step = (1u64 << APART_BITS).wrapping_add_signed(by);
        self.apart.fetch_add(step, Ordering::AcqRel);
    }

    pub(super) fn apart(&self) -> i64 {
        apart(self.apart.load(Ordering::Acquire))
    }

    /// One more command is accepted and not in the line.
    pub(in crate::queue) fn step_apart(&self) {
        self.set_apart(1);
    }

    /// Such a command is in the line again, or running, or has ended.
    pub(in crate::queue) fn step_in(&self) {
        self.set_apart(-1);
        self.notice_if_idle();
    }

    /// Entries have died in the line.
    pub(in crate::queue) fn bury(&self, entries: usize) {
        self.set_apart(-(entries as i64));
        self.room.notify(entries.additional());
        self.notice_if_idle();
        let dead = self.dead.fetch_add(entries as i64, Ordering::Relaxed) + entries as i64;
        if dead >= SWEEP_FROM && dead >= self.pending() as i64 {
            self.sweep();
        }
    }

    /// Takes dead entries out from among the live ones: in a lane that is blocked they would never come to the head. Done when
    /// there are as many of them, so that each costs O(1).
    #[cold]
    pub(super) fn sweep(&self) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        // The live ones are counted apart meanwhile; a permit that comes back waits for the pump below.
        let waiting = self.gate.status().waiting;
        let taken: Vec<_> = (0..waiting).map_while(|_| self.withdraw()).collect();
        let (mut live, dead): (Vec<_>, Vec<_>) = taken.into_iter().partition(Entry::is_alive);
        self.dead.fetch_sub(dead.len() as i64, Ordering::Relaxed);
        for entry in &mut live {
            self.line.place_first(entry);
        }
        for entry in live {
            let _queued = self.gate.reenter(false);
            self.set_apart(-1);
            self.line.push(entry);
        }
        let behind_keys = self.keys.sweep();
        self.dead.fetch_sub(behind_keys as i64, Ordering::Relaxed);
        self.with_loans(|nested| nested.retain_awaited(|queued| queued.handle.meta().life.end().is_none()));
        self.sweeping.store(false, Ordering::Release);
        self.pump();
        self.notice_if_idle();
    }

    /// Dead entries were taken out of the line.
    pub(super) fn exhume(&self, entries: usize) {
        self.set_apart(entries as i64);
        self.dead.fetch_sub(entries as i64, Ordering::Relaxed);
    }

    pub(super) fn notice_if_idle(&self) {
        // ORDERING: counted, then looked: who asks for a notice and then looks at the counts sees them, or we see the wish.
        fence(Ordering::SeqCst);
        if self.gate.idle_is_wanted() {
            self.notice(Notice::Idle);
        }
    }

    pub(in crate::queue) fn has_room(&self) -> bool {
        let settings = self.settings.load();
        let LaneConfig { capacity, max_pending_bytes, .. } = settings.config;
        capacity.is_none_or(|capacity| self.pending() < capacity)
            && max_pending_bytes.is_none_or(|limit| self.bytes.load(Ordering::Acquire) < limit)
    }

    /// Room for one more.
    pub(in crate::queue) fn make_room(&self) {
        // Each place is told to another one: who was told before and has not come yet takes that one.
        self.room.notify(1.additional());
    }

    pub(super) fn leaving(&self) -> i64 {
        self.leaving.load(Ordering::Acquire) as i64
    }

    /// A command that was shed has settled.
    pub(in crate::queue) fn has_left(&self) {
        self.leaving.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes memory for a command that waits; false if there is not that much left.
    pub(in crate::queue) fn take_bytes(&self, bytes: usize, limit: usize) -> bool {
        let taken = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| {
            let all = held.checked_add(bytes)?;
            // One that is larger than the limit may wait alone.
            (all <= limit || held == 0).then_some(all)
        });
        taken.is_ok()
    }

    pub(in crate::queue) fn give_bytes(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.make_room();
        }
    }
}

pub(super) fn apart(word: u64) -> i64 {
    (word & ((1 << APART_BITS) - 1)) as i64 - BIAS as i64
}
