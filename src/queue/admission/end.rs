//! Ending what waits: a lane that closes, stops or makes room.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LaneCore;
use crate::clock::Tick;
use crate::executor::Handle;
use crate::executor::life::End;
use crate::queue::Priority;
use crate::queue::config::Overflow;
use crate::queue::context;
use crate::queue::dead_letter::DeadLetter;
use crate::queue::keys::{Admit, Key};
use crate::queue::line::{Entry, Waiter};

/// The lane's queue runs as usual.
pub(super) const RUNNING: u8 = 0;
/// It drains: commands have the time that their drain timeout gives.
pub(super) const STOPPING: u8 = 1;
/// Everything is cancelled.
pub(super) const CANCELLING: u8 = 2;

impl LaneCore {
    /// Refuses commands from now on.
    pub(in crate::queue) fn close(&self) {
        self.gate.close();
        self.room.notify(usize::MAX);
    }

    /// The queue is gone: nobody can start or resume this lane any more. What it holds back is cancelled.
    pub(in crate::queue) fn abandon(&self) {
        self.close();
        if self.gate.status().held {
            self.clear(End::Stopped);
        }
    }

    /// Nothing runs any more: what waits ends, whatever it waits for. What was held back is cancelled; the rest is dropped as
    /// what runs is.
    pub(in crate::queue) fn executor_closed(&self) {
        self.close();
        self.clear(if self.gate.status().held { End::Stopped } else { End::Done });
    }

    /// Commands have as long from now as their drain timeout says.
    pub(in crate::queue) fn begin_stop(&self, now: Tick) {
        self.stop_began.fetch_min(now.as_nanos(), Ordering::AcqRel);
        self.stopping.fetch_max(STOPPING, Ordering::AcqRel);
    }

    /// Ends every command: those that wait here, the others see it at their next poll.
    pub(in crate::queue) fn cancel_all(&self) {
        self.stopping.store(CANCELLING, Ordering::SeqCst);
        self.clear(End::Stopped);
    }

    #[inline]
    pub(in crate::queue) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) != RUNNING
    }

    #[inline]
    pub(in crate::queue) fn is_cancelling(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) == CANCELLING
    }

    /// When a command with this drain timeout is to be cancelled, if its queue stops.
    pub(in crate::queue) fn drain_deadline(&self, timeout: Option<Duration>) -> Tick {
        if self.is_cancelling() {
            return Tick::from_nanos(0);
        }
        let began = Tick::from_nanos(self.stop_began.load(Ordering::Acquire));
        timeout.map_or(Tick::NEVER, |timeout| began.plus(timeout))
    }

    /// Commands cancelled so far.
    pub(in crate::queue) fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(in crate::queue) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::AcqRel);
    }

    /// Commands that were cancelled so far because their queue stops, and stay stored.
    pub(in crate::queue) fn kept(&self) -> usize {
        self.kept.load(Ordering::Acquire)
    }

    pub(in crate::queue) fn count_kept(&self) {
        self.kept.fetch_add(1, Ordering::AcqRel);
    }

    /// Some of its commands may have less time than the queue once that stops.
    pub(in crate::queue) fn has_drain_timeouts(&self) -> bool {
        self.drain_timeouts.load(Ordering::Acquire) || self.settings.load().config.drain_timeout.is_some()
    }

    pub(in crate::queue) fn note_drain_timeout(&self) {
        self.drain_timeouts.store(true, Ordering::Release);
    }

    /// Ends what waits in the line and behind keys.
    pub(super) fn clear(&self, end: End) {
        while let Some(entry) = self.withdraw() {
            self.end(&entry, end);
        }
        for handle in self.keys.waiting() {
            // Not one that has left its key in the meantime.
            self.end_queued(&handle, end);
        }
    }

    /// Takes the head of the line out, which is counted apart from then on.
    pub(super) fn withdraw(&self) -> Option<Entry> {
        // Counted before it is taken out: never as neither.
        self.set_apart(1);
        let entry = self.gate.withdraw(&self.line);
        if entry.is_none() {
            self.step_in();
        }
        entry
    }

    /// Ends an entry that was taken out of the line, and is counted apart: whoever ends what it stands for buries it.
    pub(super) fn end(&self, entry: &Entry, end: End) -> bool {
        if !matches!(entry.waiter, Waiter::Key(_)) {
            // Dead, or in a moment.
            self.dead.fetch_sub(1, Ordering::Relaxed);
        }
        match &entry.waiter {
            Waiter::Command(handle) => self.end_queued(handle, end),
            Waiter::Host(grant) => {
                let refused = if end == End::Shed { grant.shed() } else { grant.refuse() };
                if refused {
                    self.bury(1);
                }
                refused
            }
            // Its commands are ended one by one, the first, which was counted in the line, among them.
            Waiter::Key(_) => false,
        }
    }

    /// Hands a command that never started back to who stops the queue.
    pub(in crate::queue) fn give_back_unstarted(&self, letter: DeadLetter) {
        if let Some(queue) = self.context().and_then(|context| context.queue.upgrade()) {
            queue.take_back(letter);
        }
    }

    pub(super) fn end_queued(&self, handle: &Handle, end: End) -> bool {
        // One that came back settles by itself, later than this; its room is to be had at once.
        let leaves = end == End::Shed;
        if leaves {
            self.leaving.fetch_add(1, Ordering::AcqRel);
        }
        let ended = handle.meta().life.end_queued(end);
        if ended.is_some() {
            context::stop(handle, true);
        } else if leaves {
            self.has_left();
        }
        ended.is_some()
    }

    /// Sheds what was taken out of the line and is counted apart. False if nothing was to be shed there.
    pub(super) fn shed_entry(&self, mut entry: Entry) -> bool {
        let Waiter::Key(key) = &entry.waiter else { return self.end(&entry, End::Shed) };
        let key = Key::clone(key);
        let first = self.keys.first(&key);
        if first.is_none() {
            // All of its commands are dead, unless one comes in just now: the key is forgotten with them.
            let head = self.keys.head(
                &key,
                || self.per_key(),
                |queued| match queued.handle.meta().life.is_queued() {
                    true => Admit::Refused,
                    false => Admit::Dead,
                },
            );
            // As in `admit_key`, but for the one that was counted when the entry was taken out.
            self.set_apart(head.dead as i64 - head.fewer_apart as i64 - 1);
            self.dead.fetch_sub(head.dead as i64, Ordering::Relaxed);
            if head.outcome != Admit::Refused {
                return false;
            }
            self.set_apart(1);
        }
        let _queued = self.gate.reenter(false);
        self.step_in();
        self.line.place_first(&mut entry);
        self.enqueue(entry);
        first.is_some_and(|handle| self.end_queued(&handle, End::Shed))
    }

    /// Makes room in a full lane by dropping a command that waits, if its overflow says so.
    pub(in crate::queue) fn shed(&self, overflow: Overflow, for_priority: Priority) -> bool {
        match overflow {
            Overflow::DropOldest => {
                while let Some(entry) = self.withdraw() {
                    if self.shed_entry(entry) {
                        return true;
                    }
                }
                false
            }
            Overflow::DropLowest => loop {
                // See `withdraw`.
                self.set_apart(1);
                let Some(entry) = self.line.pop_worst(for_priority) else {
                    self.step_in();
                    return false;
                };
                self.gate.uncount_taken();
                if self.shed_entry(entry) {
                    return true;
                }
            },
            Overflow::Reject | Overflow::Wait => false,
        }
    }
}
