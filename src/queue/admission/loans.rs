//! Commands that wait for commands: where their permits go meanwhile, and who is lifted. The protocol is `queue/nested`.

use std::sync::PoisonError;
use std::sync::atomic::{Ordering, fence};

use super::LaneCore;
use crate::executor::{Handle, TaskRef};
use crate::limit::gate::Notice;
use crate::queue::Priority;
use crate::queue::keys::Queued;
use crate::queue::line::Place;
use crate::queue::nested::{Aftermath, Nested};

impl LaneCore {
    /// A command that executes begins to wait for another one, and leaves its permit here. False if it has none.
    pub(in crate::queue) fn park(&self, task: TaskRef) -> bool {
        self.with_loans(|nested| {
            let had_one = task.meta().life.give_up_permit();
            if had_one {
                nested.park();
            }
            had_one
        })
    }

    /// A command that waited for another one wants to go on. If false, it is woken when it may.
    pub(in crate::queue) fn come_back(&self, task: TaskRef) -> bool {
        self.with_loans(|nested| {
            let back = nested.come_back(|| Queued { handle: task.handle(), cost: 1 });
            if back {
                task.meta().life.hold(false);
            }
            back
        })
    }

    /// A command ends while it waits for another one, or wants to go on.
    pub(in crate::queue) fn leave_loans(&self, task: TaskRef) {
        self.with_loans(|nested| {
            // It may have been given a permit meanwhile.
            if !task.meta().life.is_admitted() {
                nested.leave(|queued| task.is(&queued.handle));
            }
        });
    }

    /// Somebody at `priority` waits for a command of this lane: it goes there, too, and before all that nobody waits for.
    pub(in crate::queue) fn lift(&self, queued: &Queued, priority: Priority) {
        let meta = queued.handle.meta();
        if meta.raise(priority) {
            self.lift_admitted(&queued.handle);
        }
        // For when it comes to the line later: after a delay, or for its next attempt.
        meta.note_awaited(priority);
        // ORDERING: see `come_in`.
        fence(Ordering::SeqCst);
        if meta.life.is_queued() {
            self.await_queued(queued, priority);
        }
    }

    pub(super) fn await_queued(&self, queued: &Queued, priority: Priority) {
        let place = Place { priority, sequence: self.next_sequence(), turn: 0 };
        self.with_loans(|nested| nested.await_at(place, queued.clone()));
    }

    /// Has a command whose priority has become better run at that, if it stands on a run queue where it can be taken out.
    pub(in crate::queue) fn lift_admitted(&self, handle: &Handle) {
        if handle.is_parked() && handle.meta().life.is_admitted() {
            crate::executor::lift(handle);
        }
    }

    /// Changes the loans, and gives the permits that are there to those who want them.
    pub(super) fn with_loans<R>(&self, change: impl FnOnce(&mut Nested<Queued, Place>) -> R) -> R {
        let settings = self.settings.load();
        let mut nested = self.nested.get_or_init(Box::default).lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut nested);
        let Aftermath { left_behind, surplus, refused } = nested.distribute(
            &self.gate,
            |Queued { handle, .. }| {
                handle.meta().life.hold(false);
                handle.wake();
            },
            |queued| self.admit_command(&settings, &queued.handle, queued.cost, false),
        );
        drop(nested);
        // What may tell others comes after the lock.
        if refused {
            self.notice(Notice::Throttled);
        }
        if left_behind > 0 {
            // What they leave in the line.
            self.bury(left_behind);
        }
        for _ in 0..surplus {
            self.gate.release_unlent(&self.line, |entry| self.admit(entry), |notice| self.notice(notice));
        }
        if surplus > 0 {
            self.permit_is_back();
        }
        result
    }
}
