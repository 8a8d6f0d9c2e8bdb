//! The terms on which a command was accepted, where they differ from those of a plain one: its own options, and what its
//! lane's settings ask to be remembered. One allocation, of about two cache lines.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::Priority;
use super::admission::{LaneContext, LaneCore, Settings};
use super::dead_letter::ErrorHistory;
use super::durable::Stored;
use super::keys::Key;
use super::line::Place;
use super::options::SubmitOptions;
use super::traced::CommandTrace;
use crate::clock::Tick;

#[derive(Debug)]
pub(super) struct Extra {
    pub(super) key: Option<Key>,
    sequence: u64,
    pub(super) accepted_at: Tick,
    pub(super) start_at: Tick,
    /// When it is too late to start.
    pub(super) latest_start: Tick,
    /// When it is too late to go on.
    pub(super) total_deadline: Tick,
    timeout: Span,
    drain_timeout: Span,
    /// Memory that it counts for while it has not started.
    pub(super) bytes: usize,
    pub(super) cost: u32,
    pub(super) replays: u32,
    pub(super) priority: Option<Priority>,
    /// It lives on when the command that submitted it is given up.
    pub(super) detached: bool,
    /// Attempts that were made before it was accepted here.
    pub(super) attempts: u32,
    past: Option<Box<Past>>,
    /// What it has of the store.
    pub(super) stored: Option<Box<Stored>>,
    /// In queues that have a tracer.
    pub(super) trace: Option<Box<CommandTrace>>,
    /// Its lane knows why it waits.
    pub(super) explained: bool,
}

/// What has happened to a command, for its dead letter.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) previous_delay: Duration,
    pub(super) errors: ErrorHistory,
    pub(super) tags: Vec<Arc<str>>,
}

/// A duration or none, in a word. One that is longer than a clock runs is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span(Option<NonZeroU64>);

impl Span {
    pub(super) const NONE: Self = Self(None);

    pub(super) fn of(duration: Option<Duration>) -> Self {
        let nanos = duration.and_then(|duration| u64::try_from(duration.as_nanos()).ok());
        Self(nanos.and_then(|nanos| NonZeroU64::new(nanos.max(1))))
    }

    pub(super) fn get(self) -> Option<Duration> {
        self.0.map(|nanos| Duration::from_nanos(nanos.get()))
    }
}

impl Extra {
    /// The terms of a command; none for a plain one.
    pub(super) fn of(
        lane: &LaneCore,
        settings: &Settings,
        context: &LaneContext,
        options: Option<SubmitOptions>,
        parents_deadline: Tick,
    ) -> Option<Box<Self>> {
        let config = &settings.config;
        let detached = options.as_ref().is_some_and(|options| options.detached);
        let parents_deadline = if detached { Tick::NEVER } else { parents_deadline };
        let inherits = parents_deadline != Tick::NEVER;
        let is_common = !settings.uncommon && context.dead_letters.is_none() && context.tracer.is_none();
        if options.is_none() && is_common && !inherits {
            return None;
        }
        let options = options.unwrap_or_default();
        let accepted_at = lane.now();
        let start_at = options.delay.map_or(accepted_at, |delay| accepted_at.plus(delay));
        let after = |since: Tick, timeout: Option<Duration>| timeout.map_or(Tick::NEVER, |timeout| since.plus(timeout));
        let total = options.total_timeout.or(config.total_timeout);
        let total_deadline = after(accepted_at, total).min(parents_deadline);
        let latest_start = after(start_at, options.queue_timeout.or(config.queue_timeout)).min(total_deadline);
        // A number that all submissions share, so only where it is used.
        let is_ordered = options.delay.is_some() || options.priority.is_some() || !config.retry_policy.is_none();
        if options.drain_timeout.is_some() {
            lane.note_drain_timeout();
        }
        let past = (!options.tags.is_empty()).then(|| Box::new(Past { tags: options.tags, ..Past::default() }));
        Some(Box::new(Self {
            key: options.key,
            sequence: if is_ordered { lane.next_sequence() } else { 0 },
            accepted_at,
            start_at,
            latest_start,
            total_deadline,
            timeout: Span::of(options.timeout),
            drain_timeout: Span::of(options.drain_timeout),
            bytes: options.bytes,
            cost: options.cost.unwrap_or(1),
            replays: options.replays,
            priority: options.priority,
            detached: options.detached,
            attempts: 0,
            past,
            stored: None,
            trace: None,
            explained: config.explain,
        }))
    }

    /// Its own place in the line of its lane, for the attempt after `turn` others.
    pub(super) fn place(&self, lane: &LaneCore, turn: u32) -> Place {
        Place { priority: self.priority.unwrap_or(lane.priority), sequence: self.sequence, turn }
    }

    pub(super) fn is_delayed(&self) -> bool {
        self.start_at > self.accepted_at
    }

    /// How long after its acceptance it was due.
    pub(super) fn delay(&self) -> Duration {
        self.start_at.since(self.accepted_at)
    }

    /// Its own limit to an attempt.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout.get()
    }

    pub(super) fn drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout.get()
    }

    /// How long it may wait; none without a limit.
    pub(super) fn wait_limit(&self) -> Option<Duration> {
        (self.latest_start != Tick::NEVER).then(|| self.latest_start.since(self.start_at))
    }

    /// How long it may take in all; none without a limit.
    pub(super) fn total_limit(&self) -> Option<Duration> {
        (self.total_deadline != Tick::NEVER).then(|| self.total_deadline.since(self.accepted_at))
    }

    pub(super) fn previous_delay(&self) -> Duration {
        self.past.as_ref().map_or(Duration::ZERO, |past| past.previous_delay)
    }

    pub(super) fn past(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }
}
