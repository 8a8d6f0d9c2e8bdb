//! Lent permits: how commands that wait for commands of their own can not block each other.
//!
//! A command that waits for another one does not use its permit (one that does something else besides, as in a join, is
//! taken to wait). It leaves it here, for commands of the same lane that
//! others wait for, and takes one back before it goes on. So never do more than the maximum execute; commands that nobody
//! waits for get no permit that is owed; and lanes can not block each other, since whatever the commands that hold their
//! permits wait for may use what those have left. `loom-tests/nested.rs` tries to break it.
//!
//! ```text
//!             park                          come_back
//!   executing -----> waits, permit is spare ----------> executing
//!                                          \
//!                                           ---------> returning -> executing    (it was lent: when one comes back)
//! ```
//!
//! The lock is taken by nested commands, and by every command of a lane that ends while such ones wait there: the gate's
//! nested mark sends it here.

use std::collections::{BTreeMap, VecDeque};

use crate::limit::gate::{Gate, Verdict};

/// The loans of a lane; `T` is a way to a command. Permits that the gate counts = commands that execute + spare.
#[derive(Debug)]
pub(crate) struct Nested<T, P> {
    /// Commands that are owed a permit: those that wait, and those that want to go on.
    owed: usize,
    /// Permits that are here.
    spare: usize,
    /// Commands that want to go on and found none.
    returning: VecDeque<T>,
    /// Commands that others wait for, by the place of the best who does.
    awaited: BTreeMap<P, T>,
}

/// What is left to do once the lock is free.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Aftermath {
    /// Commands that were admitted here: what stands in the line of them is dead.
    pub(crate) left_behind: usize,
    /// Permits for the gate.
    pub(crate) surplus: usize,
    /// The rate limit has refused a command, which set the mark: the timer is to be armed.
    pub(crate) refused: bool,
}

impl<T, P: Ord> Default for Nested<T, P> {
    fn default() -> Self {
        Self { owed: 0, spare: 0, returning: VecDeque::new(), awaited: BTreeMap::new() }
    }
}

impl<T, P: Ord + Copy> Nested<T, P> {
    /// A command leaves its permit here.
    pub(crate) fn park(&mut self) {
        self.owed += 1;
        self.spare += 1;
    }

    /// A command takes a permit back to go on. If there is none, it is named by [`Nested::next_return`] later.
    pub(crate) fn come_back(&mut self, command: impl FnOnce() -> T) -> bool {
        let back = self.lend();
        if back {
            self.owed -= 1;
        } else {
            self.returning.push_back(command());
        }
        back
    }

    /// A command that waits or wants to go on ends instead.
    pub(crate) fn leave(&mut self, is: impl Fn(&T) -> bool) {
        self.returning.retain(|command| !is(command));
        self.owed -= 1;
    }

    /// A command of the lane gives its permit back.
    pub(crate) fn give(&mut self) {
        self.spare += 1;
    }

    /// The next command that wants to go on, if there is a permit for it: it has it.
    pub(crate) fn next_return(&mut self) -> Option<T> {
        if self.spare == 0 {
            return None;
        }
        let command = self.returning.pop_front()?;
        self.spare -= 1;
        self.owed -= 1;
        Some(command)
    }

    /// Takes a permit that is here; false if none is.
    pub(crate) fn lend(&mut self) -> bool {
        let lent = self.spare > 0;
        self.spare -= usize::from(lent);
        lent
    }

    /// Takes a permit that is owed to nobody, for the gate.
    pub(crate) fn take_surplus(&mut self) -> bool {
        self.spare > self.owed && self.lend()
    }

    pub(crate) fn await_at(&mut self, place: P, command: T) {
        self.awaited.insert(place, command);
    }

    /// Gives the permits that are there to those who want them: first to those that want to `go_on`, then to those that
    /// others wait for, as far as the lane may `admit` them. Called after every change, and whenever the gate may allow more.
    pub(crate) fn distribute(
        &mut self,
        gate: &Gate,
        mut go_on: impl FnMut(T),
        mut admit: impl FnMut(&T) -> Verdict,
    ) -> Aftermath {
        let mut after = Aftermath::default();
        // Set before the gate is asked for a permit: one that comes back afterwards comes here.
        gate.set_nested(true);
        while let Some(command) = self.next_return() {
            go_on(command);
        }
        while self.has_awaited() && !gate.is_stopped() {
            if !self.lend() && !gate.take_permit() {
                break;
            }
            let Some((place, command)) = self.pop_awaited() else { break };
            match admit(&command) {
                Verdict::Admitted => after.left_behind += 1,
                Verdict::Dead => self.give(),
                Verdict::Refused => {
                    self.await_at(place, command);
                    self.give();
                    after.refused |= gate.throttle();
                }
            }
        }
        after.surplus = std::iter::from_fn(|| self.take_surplus().then_some(())).count();
        gate.set_nested(self.is_busy());
        after
    }

    pub(crate) fn pop_awaited(&mut self) -> Option<(P, T)> {
        self.awaited.pop_first()
    }

    /// Forgets awaited commands of which `is_wanted` says no.
    pub(crate) fn retain_awaited(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.awaited.retain(|_, command| is_wanted(command));
    }

    pub(crate) fn has_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Whether the gate's mark is needed.
    pub(crate) fn is_busy(&self) -> bool {
        self.owed > 0 || self.spare > 0 || !self.awaited.is_empty()
    }
}
