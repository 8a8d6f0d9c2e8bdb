//! Why a command waits, and how its wait divides among the causes. Only in lanes that ask for it.
//!
//! A lane that explains keeps, under one lock, its waiting and running commands and a clock per cause. At any moment one
//! cause holds the lane's line back; its clock runs. A command in the line is charged what the clocks have run since it came
//! there. While its key runs as many commands as it may, that time counts for the key instead: a key keeps what the lane's
//! clocks have run meanwhile. What holds one command alone (its delay, its backoff, the workers) is charged to it directly.
//! All are charged between the same stamps, so the parts add up.
//!
//! Taken after the lock of a key, and nothing is locked under it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::admission::LaneCore;
use super::extra::Extra;
use super::keys::Key;
use super::settle::Whereabouts;
use crate::executor::TaskRef;
use crate::id::CommandId;

/// What a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitCause {
    /// Its queue was not started.
    NotStarted,
    /// Its lane is paused.
    Paused,
    /// The store has failed, or the lane waits for a command that is on trial after a crash.
    Storage,
    /// The lane's rate limit.
    Rate,
    /// The lane runs as many commands as it may, or others of the lane come first.
    LaneFull,
    /// The lane may run more, but its queue may not, or lanes with better priorities come first: see
    /// [`with_max_in_flight`](crate::QueueManagerBuilder::with_max_in_flight).
    SharedLimit,
    /// As many commands of its key run as may.
    Key,
    /// Its [delay](crate::SubmitOptions::delay).
    Delay,
    /// The wait before its next attempt.
    Backoff,
    /// A worker: it may run, and all are busy or have better work.
    Workers,
}

use WaitCause::{Backoff, Delay, LaneFull, NotStarted, Paused, Rate, SharedLimit, Storage, Workers};

/// In the order of their numbers: first those that hold back a whole lane.
const CAUSES: [WaitCause; 10] =
    [NotStarted, Paused, Storage, Rate, LaneFull, SharedLimit, WaitCause::Key, Delay, Backoff, Workers];
const LANE_CAUSES: usize = 6;
/// The most commands that an explanation names.
const HOLDERS: usize = 8;

impl fmt::Display for WaitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotStarted => "queue not started",
            Paused => "lane paused",
            Storage => "storage",
            Rate => "rate limit",
            LaneFull => "lane full",
            SharedLimit => "shared limit",
            Self::Key => "key",
            Delay => "delay",
            Backoff => "backoff",
            Workers => "workers busy",
        })
    }
}

/// What a command does at present.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It waits.
    #[non_exhaustive]
    Waiting {
        /// For what.
        cause: WaitCause,
        /// How long that lasts, where it is known: for a delay, a backoff, the rate limit (which may then refuse it again).
        left: Option<Duration>,
        /// Commands of the lane in the line before it: by priority, then in the order of submission. About: keys take turns.
        ahead: usize,
        /// Commands that have what it waits for, the oldest first, at most 8: those of its key, or of its lane. Empty for other
        /// causes.
        holders: Vec<CommandId>,
    },
    /// It runs.
    #[non_exhaustive]
    Running {
        /// Which attempt, from 1.
        attempt: u32,
        /// How long that runs already.
        since: Duration,
    },
}

/// Why a command waits and has waited. From [`QueueManager::explain`](crate::QueueManager::explain).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The command.
    pub id: CommandId,
    /// Its lane.
    pub lane: Arc<str>,
    /// Its type.
    pub command_type: Arc<str>,
    /// What it does at present.
    pub standing: Standing,
    /// How long it has waited in all since it was accepted: all time in which no attempt ran.
    pub waited: Duration,
    /// How `waited` divides: they add up to it exactly. Causes that took no time are left out.
    pub parts: Vec<(WaitCause, Duration)>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command {} ({}) of lane {} ", self.id, self.command_type, self.lane)?;
        match &self.standing {
            Standing::Waiting { cause, left, ahead, holders } => {
                write!(f, "waits: {cause}")?;
                if let Some(left) = left {
                    write!(f, " for {left:?}")?;
                }
                if *ahead > 0 {
                    write!(f, ", behind {ahead}")?;
                }
                for (i, holder) in holders.iter().enumerate() {
                    write!(f, "{}{holder}", if i == 0 { ", held by " } else { ", " })?;
                }
            }
            Standing::Running { attempt, since } => write!(f, "runs: attempt {attempt} for {since:?}")?,
        }
        write!(f, "; waited {:?}", self.waited)?;
        for (i, (cause, time)) in self.parts.iter().enumerate() {
            write!(f, "{}{cause} {time:?}", if i == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

/// Nanoseconds for each cause that holds back a whole lane.
type Totals = [u64; LANE_CAUSES];

fn minus(a: Totals, b: Totals) -> Totals {
    std::array::from_fn(|i| a[i].saturating_sub(b[i]))
}

fn plus(a: Totals, b: Totals) -> Totals {
    std::array::from_fn(|i| a[i] + b[i])
}

/// What a lane knows of its commands' waits.
#[derive(Debug)]
pub(super) struct Waits {
    totals: Totals,
    cause: WaitCause,
    /// Up to when the totals are.
    at: u64,
    commands: HashMap<CommandId, Tracked>,
    /// By their tasks: who admits a command knows no more of it.
    tasks: HashMap<usize, CommandId>,
    keys: HashMap<Key, KeyClock>,
    accepted: u64,
}

#[derive(Debug)]
struct Tracked {
    task: usize,
    order: (u8, u64),
    command_type: Arc<str>,
    key: Option<Key>,
    /// Counted among those of its key that run.
    holds_key: bool,
    attempt: u32,
    phase: Phase,
    since: u64,
    /// What the clocks showed then.
    lane_then: Totals,
    key_then: Totals,
    /// Of phases that are over.
    parts: [u64; CAUSES.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Apart(WaitCause, u64),
    Line,
    Admitted,
    Running,
}

/// A key's share of its lane's clocks.
#[derive(Debug, Default)]
struct KeyClock {
    members: usize,
    running: usize,
    /// What the lane's clocks ran while it ran as many as it may.
    capped: Totals,
    /// What they showed when that began, while it lasts.
    since: Option<Totals>,
}

impl KeyClock {
    fn capped(&self, totals: Totals) -> Totals {
        self.since.map_or(self.capped, |since| plus(self.capped, minus(totals, since)))
    }

    fn look(&mut self, at_most: usize, totals: Totals) {
        self.capped = self.capped(totals);
        self.since = (self.running >= at_most).then_some(totals);
    }
}

impl Waits {
    fn new(cause: WaitCause, at: u64) -> Self {
        Self {
            totals: Totals::default(),
            cause,
            at,
            commands: HashMap::new(),
            tasks: HashMap::new(),
            keys: HashMap::new(),
            accepted: 0,
        }
    }

    fn run_to(&mut self, now: u64) {
        self.totals[self.cause as usize] += now.saturating_sub(self.at);
        self.at = now.max(self.at);
    }

    fn capped(&self, key: Option<&Key>) -> Totals {
        key.and_then(|key| self.keys.get(key)).map_or(Totals::default(), |key| key.capped(self.totals))
    }

    /// The parts of the wait up to now.
    fn parts(&self, command: &Tracked) -> [u64; CAUSES.len()] {
        let mut parts = command.parts;
        let time = self.at - command.since;
        match command.phase {
            Phase::Apart(cause, until) => {
                let own = until.min(self.at).saturating_sub(command.since);
                parts[cause as usize] += own;
                // It comes to the line by a poll of its own.
                parts[Workers as usize] += time - own;
            }
            Phase::Line => {
                let all = minus(self.totals, command.lane_then);
                let key = minus(self.capped(command.key.as_ref()), command.key_then);
                for (part, time) in parts.iter_mut().zip(minus(all, key)) {
                    *part += time;
                }
                parts[WaitCause::Key as usize] += key.iter().sum::<u64>();
            }
            Phase::Admitted => parts[Workers as usize] += time,
            Phase::Running => {}
        }
        parts
    }

    fn enter(&mut self, id: CommandId, phase: Phase) {
        let Some(command) = self.commands.get(&id) else { return };
        let (parts, key_then) = (self.parts(command), self.capped(command.key.as_ref()));
        let (lane_then, since) = (self.totals, self.at);
        if let Some(command) = self.commands.get_mut(&id) {
            (command.parts, command.key_then, command.lane_then) = (parts, key_then, lane_then);
            (command.since, command.phase) = (since, phase);
        }
    }

    fn change_key(&mut self, key: &Key, at_most: usize, change: impl FnOnce(&mut KeyClock)) {
        let clock = self.keys.entry(key.clone()).or_default();
        change(clock);
        clock.look(at_most, self.totals);
        if clock.members == 0 && clock.running == 0 {
            self.keys.remove(key);
        }
    }

    fn explain(&self, id: CommandId, lane: &Arc<str>, retry_at: u64) -> Option<Explanation> {
        let command = self.commands.get(&id)?;
        let parts = self.parts(command);
        let capped = command.key.as_ref().and_then(|key| self.keys.get(key)).is_some_and(|key| key.since.is_some());
        let left = |until: u64| Some(Duration::from_nanos(until.saturating_sub(self.at)));
        let (cause, left) = match command.phase {
            Phase::Apart(cause, until) if until > self.at => (cause, left(until)),
            Phase::Line if capped => (WaitCause::Key, None),
            Phase::Line if self.cause == Rate => (Rate, left(retry_at)),
            Phase::Line => (self.cause, None),
            Phase::Apart(..) | Phase::Admitted | Phase::Running => (Workers, None),
        };
        let standing = if command.phase == Phase::Running {
            Standing::Running { attempt: command.attempt, since: Duration::from_nanos(self.at - command.since) }
        } else {
            let in_line = |other: &&Tracked| other.phase == Phase::Line && other.order < command.order;
            let ahead = if command.phase == Phase::Line { self.commands.values().filter(in_line).count() } else { 0 };
            Standing::Waiting { cause, left, ahead, holders: self.holders(cause, command) }
        };
        let nanos = Duration::from_nanos;
        Some(Explanation {
            id,
            lane: Arc::clone(lane),
            command_type: Arc::clone(&command.command_type),
            standing,
            waited: nanos(parts.iter().sum()),
            parts: CAUSES.into_iter().zip(parts).filter(|(_, time)| *time > 0).map(|(c, t)| (c, nanos(t))).collect(),
        })
    }

    fn holders(&self, cause: WaitCause, command: &Tracked) -> Vec<CommandId> {
        if !matches!(cause, WaitCause::Key | LaneFull) {
            return Vec::new();
        }
        let holds = |other: &Tracked| {
            matches!(other.phase, Phase::Admitted | Phase::Running) && (cause == LaneFull || other.key == command.key)
        };
        let mut holders: Vec<_> =
            self.commands.iter().filter(|(_, other)| holds(other)).map(|(id, other)| (other.order.1, *id)).collect();
        holders.sort_unstable();
        holders.into_iter().take(HOLDERS).map(|(_, id)| id).collect()
    }
}

/// Tells tasks apart.
fn address<M>(meta: &M) -> usize {
    std::ptr::from_ref(meta) as usize
}

impl LaneCore {
    /// What holds the line back now.
    fn held_by(&self) -> WaitCause {
        let status = self.gate_status();
        if status.unstarted {
            NotStarted
        } else if status.paused {
            Paused
        } else if status.held {
            Storage
        } else if status.throttled {
            Rate
        } else if status.running < self.settings.load().config.max_concurrency
            && self.context().is_some_and(|context| context.pool.is_some())
        {
            SharedLimit
        } else {
            LaneFull
        }
    }

    /// Charges what has gone by, applies a change, and looks what holds the line back from now on. To be called after every
    /// change that matters to that.
    fn change_waits<R>(&self, change: impl FnOnce(&mut Waits) -> R) -> Option<R> {
        let mut waits = self.waits.get()?.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: stamps do not go back.
        waits.run_to(self.now().as_nanos());
        let result = change(&mut waits);
        waits.cause = self.held_by();
        Some(result)
    }

    /// Something has changed that may hold the lane's line back or not any more.
    #[inline]
    pub(super) fn note_hold(&self) {
        if self.waits.get().is_some() {
            self.change_waits(|_| ());
        }
    }

    /// The limit per key may have changed.
    pub(super) fn note_settings(&self) {
        let at_most = self.per_key();
        self.change_waits(|waits| {
            let totals = waits.totals;
            waits.keys.values_mut().for_each(|key| key.look(at_most, totals));
        });
    }

    /// A command is accepted.
    pub(super) fn note_accepted(
        &self,
        id: CommandId,
        task: TaskRef,
        place: Whereabouts,
        extra: &Extra,
        command_type: Arc<str>,
    ) {
        let make = || Box::new(Mutex::new(Waits::new(self.held_by(), self.now().as_nanos())));
        self.waits.get_or_init(make);
        let at_most = self.per_key();
        let meta = task.meta();
        let phase = match place {
            Whereabouts::Apart => Phase::Apart(Delay, extra.start_at.as_nanos()),
            _ if meta.life.is_admitted() => Phase::Admitted,
            _ => Phase::Line,
        };
        self.change_waits(|waits| {
            if let Some(key) = &extra.key {
                waits.change_key(key, at_most, |key| key.members += 1);
            }
            waits.accepted += 1;
            let command = Tracked {
                task: address(meta),
                order: (extra.priority.unwrap_or(self.priority), waits.accepted),
                command_type,
                key: extra.key.clone(),
                holds_key: false,
                attempt: extra.attempts,
                phase,
                since: waits.at,
                lane_then: waits.totals,
                key_then: waits.capped(extra.key.as_ref()),
                parts: Default::default(),
            };
            waits.tasks.insert(command.task, id);
            waits.commands.insert(id, command);
        });
    }

    /// A command has come to the line from elsewhere.
    pub(super) fn note_in_line(&self, id: CommandId) {
        self.change_waits(|waits| waits.enter(id, Phase::Line));
    }

    /// The command of this task has a permit, and a place of its key if it is `keyed`.
    #[inline]
    pub(super) fn note_admitted<M>(&self, meta: &M, keyed: bool) {
        if self.waits.get().is_none() {
            return;
        }
        let at_most = self.per_key();
        self.change_waits(|waits| {
            let Some(id) = waits.tasks.get(&address(meta)).copied() else { return };
            let Some(command) = waits.commands.get_mut(&id) else { return };
            let has_begun = command.phase == Phase::Running;
            let takes = if keyed && !command.holds_key { command.key.clone() } else { None };
            command.holds_key |= takes.is_some();
            // Once it may run, it may also be faster than this.
            if !has_begun {
                waits.enter(id, Phase::Admitted);
            }
            if let Some(key) = takes {
                waits.change_key(&key, at_most, |key| key.running += 1);
            }
        });
    }

    /// An attempt begins.
    pub(super) fn note_started(&self, id: CommandId, attempt: u32) {
        self.change_waits(|waits| {
            waits.enter(id, Phase::Running);
            if let Some(command) = waits.commands.get_mut(&id) {
                command.attempt = attempt;
            }
        });
    }

    /// A command waits for its next attempt.
    pub(super) fn note_backoff(&self, id: CommandId, until: u64) {
        self.change_waits(|waits| waits.enter(id, Phase::Apart(Backoff, until)));
    }

    /// A command that is explained gives up its place of its key.
    pub(super) fn note_key_left(&self, id: CommandId, key: &Key) {
        let at_most = self.per_key();
        self.change_waits(|waits| {
            let held = waits.commands.get_mut(&id).is_some_and(|command| std::mem::take(&mut command.holds_key));
            if held {
                waits.change_key(key, at_most, |key| key.running = key.running.saturating_sub(1));
            }
        });
    }

    /// A command has settled.
    pub(super) fn note_settled(&self, id: CommandId) {
        let at_most = self.per_key();
        self.change_waits(|waits| {
            let Some(command) = waits.commands.remove(&id) else { return };
            waits.tasks.remove(&command.task);
            if let Some(key) = &command.key {
                waits.change_key(key, at_most, |key| {
                    key.members -= 1;
                    key.running -= usize::from(command.holds_key);
                });
            }
        });
    }

    /// Why a command waits; none if it is not known here.
    pub(super) fn explain(&self, id: CommandId) -> Option<Explanation> {
        self.change_waits(|waits| {
            waits.cause = self.held_by();
            waits.explain(id, &self.id, self.retry_at())
        })?
    }
}
