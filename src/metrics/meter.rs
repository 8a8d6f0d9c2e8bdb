//! What a lane calls: counts and times of its commands, as much of them as is asked for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::OTHER_TYPES;
use super::reading::{CommandTypeReading, Finished};
use super::shard::{Count, Shards, Time};
use crate::clock::Clock;

/// How much is measured. Can be changed while queues run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsLevel {
    /// Nothing. What happens meanwhile is missing from the counts for good.
    Off,
    /// Counts, no times.
    Counters,
    /// Counts, and the times of one command in 2 to this (at most 16), each counted as that many.
    Sampled(u32),
    /// Counts, and the times of every command.
    #[default]
    Full,
}

/// A level in a word: how many commands there are to one whose times are taken. Shared by the lanes of one
/// [`QueueMetrics`](super::QueueMetrics).
#[derive(Debug)]
pub(super) struct Level(AtomicU32);

const OFF: u32 = u32::MAX;
const COUNTERS: u32 = u32::MAX - 1;
const SAMPLED_MAX: u32 = 16;

impl Level {
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(super) fn set(&self, level: MetricsLevel) {
        let word = match level {
            MetricsLevel::Off => OFF,
            MetricsLevel::Counters => COUNTERS,
            MetricsLevel::Sampled(power) => power.min(SAMPLED_MAX),
            MetricsLevel::Full => 0,
        };
        self.0.store(word, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> MetricsLevel {
        match self.word() {
            OFF => MetricsLevel::Off,
            COUNTERS => MetricsLevel::Counters,
            0 => MetricsLevel::Full,
            power => MetricsLevel::Sampled(power),
        }
    }

    #[inline]
    fn word(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The measurements of the lanes of one name.
pub(crate) struct LaneMeter {
    pub(super) lane: Arc<str>,
    level: Arc<Level>,
    pub(super) shards: Shards,
    types: Option<Types>,
    /// How long the rate limit has held commands back, in nanoseconds.
    pub(super) throttled: AtomicU64,
}

/// When a command was due or an attempt began, and how often its times count; nothing for a command whose times are not
/// taken. In a word: every command has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since(u64);

/// Nanoseconds are below 2 to this: two years.
const STAMP_BITS: u32 = 56;

impl Since {
    pub(crate) const UNKNOWN: Self = Self(0);

    #[inline]
    const fn new(stamp: u64, power: u32) -> Self {
        Self(stamp & ((1 << STAMP_BITS) - 1) | (power as u64) << STAMP_BITS)
    }

    #[inline]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline]
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn stamp(self) -> u64 {
        self.0 & ((1 << STAMP_BITS) - 1)
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        if !self.is_known() || delay.is_zero() {
            return self;
        }
        let latest = (1 << STAMP_BITS) - 1;
        Self::new(self.stamp().saturating_add(nanos(delay)).min(latest), self.power())
    }

    const fn power(self) -> u32 {
        (self.0 >> STAMP_BITS) as u32
    }

    const fn weight(self) -> u64 {
        1 << self.power()
    }

    #[inline]
    pub(crate) const fn is_known(self) -> bool {
        self.0 != 0
    }
}

impl LaneMeter {
    pub(super) fn new(lane: Arc<str>, level: Arc<Level>, types: usize) -> Self {
        let types = (types > 0).then(|| Types { cap: types, known: RwLock::default() });
        Self { lane, level, shards: Shards::new(), types, throttled: AtomicU64::new(0) }
    }

    #[inline]
    pub(crate) fn is_off(&self) -> bool {
        self.level.word() == OFF
    }

    // Not inlined: in lanes that are not measured, the way of a command is to stay short.

    /// A command was accepted.
    #[inline(never)]
    pub(crate) fn submitted(&self, clock: &Clock) -> Since {
        let level = self.level.word();
        if level == OFF {
            return Since::UNKNOWN;
        }
        let before = self.shards.own().count(Count::Submitted);
        if level > SAMPLED_MAX || before & ((1 << level) - 1) != 0 {
            return Since::UNKNOWN;
        }
        Since::new(clock.stamp(), level)
    }

    /// An attempt begins of a command that was due at `due`.
    #[inline(never)]
    pub(crate) fn started(&self, clock: &Clock, due: Since, is_first: bool) -> Since {
        let level = self.level.word();
        if level == OFF {
            return Since::UNKNOWN;
        }
        let own = self.shards.own();
        own.count(if is_first { Count::Started } else { Count::Restarted });
        if !due.is_known() {
            return Since::UNKNOWN;
        }
        let now = clock.stamp();
        if is_first {
            own.record(Time::Wait, now.saturating_sub(due.stamp()), due.weight());
        }
        own.set_polled_since(now);
        Since::new(now, due.power())
    }

    /// A poll of an attempt has ended, and the attempt goes on.
    #[inline]
    pub(crate) fn waits(&self) {
        self.shards.own().set_polled_since(0);
    }

    /// An attempt has ended, and with it the command, if there is a `settled`. Gives how long it ran, if that is known.
    #[inline(never)]
    pub(crate) fn ended(
        &self,
        clock: &Clock,
        started: Since,
        settled: Option<Count>,
        command_type: impl FnOnce() -> Arc<str>,
    ) -> u64 {
        let level = self.level.word();
        if level == OFF {
            if started.is_known() {
                self.shards.own().set_polled_since(0);
            }
            return 0;
        }
        let own = self.shards.own();
        if let Some(settled) = settled {
            own.count(settled);
        }
        let mut run = 0;
        if started.is_known() {
            run = clock.stamp().saturating_sub(started.stamp());
            own.record(Time::Run, run, started.weight());
            own.set_polled_since(0);
        }
        if let Some(types) = &self.types {
            types.ended(command_type(), settled, started.is_known().then_some(run), started.weight());
        }
        run
    }

    pub(crate) fn count(&self, count: Count) {
        if !self.is_off() {
            self.shards.own().count(count);
        }
    }

    /// The rate limit has held commands back between two stamps; `since` is 0 if it has not.
    pub(crate) fn throttled_for(&self, now: u64, since: u64) {
        if since != 0 && !self.is_off() {
            self.throttled.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
    }

    pub(super) fn finished(&self) -> Finished {
        finished(&self.shards)
    }

    pub(super) fn command_types(&self) -> Vec<CommandTypeReading> {
        self.types.as_ref().map(Types::read).unwrap_or_default()
    }
}

fn finished(shards: &Shards) -> Finished {
    Finished {
        ok: shards.sum(Count::Ok),
        error: shards.sum(Count::Error),
        panic: shards.sum(Count::Panic),
        timeout: shards.sum(Count::Timeout),
        cancelled: shards.sum(Count::Cancelled),
        expired: shards.sum(Count::Expired),
        shed: shards.sum(Count::Shed),
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Command types that are told apart: the first `cap` ones. A lock that is read once per command; only where they are asked for.
struct Types {
    cap: usize,
    known: RwLock<HashMap<Arc<str>, Arc<Shards>>>,
}

impl Types {
    fn ended(&self, command_type: Arc<str>, settled: Option<Count>, run: Option<u64>, weight: u64) {
        let shards = self.shards(command_type);
        let own = shards.own();
        if let Some(settled) = settled {
            own.count(settled);
        }
        if let Some(run) = run {
            own.record(Time::Run, run, weight);
        }
    }

    fn shards(&self, command_type: Arc<str>) -> Arc<Shards> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let other = || known.get(OTHER_TYPES).filter(|_| known.len() > self.cap);
            if let Some(shards) = known.get(&command_type).or_else(other) {
                return Arc::clone(shards);
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = !known.contains_key(&command_type);
        let named = if is_new && known.len() >= self.cap { OTHER_TYPES.into() } else { command_type };
        Arc::clone(known.entry(named).or_insert_with(|| Arc::new(Shards::new())))
    }

    fn read(&self) -> Vec<CommandTypeReading> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut types: Vec<_> = known
            .iter()
            .map(|(command_type, shards)| CommandTypeReading {
                command_type: Arc::clone(command_type),
                finished: finished(shards),
                run: shards.distribution(Time::Run),
            })
            .collect();
        drop(known);
        types.sort_by(|a, b| a.command_type.cmp(&b.command_type));
        types
    }
}
