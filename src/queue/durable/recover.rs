//! What the process before has left: read once, when the queue is built, in the order in which it was accepted.
//!
//! Each command goes one of four ways. It stands in its lane again, before anything new. It runs alone first, since it was
//! there when its process died (`trial`). It is parked: stored, counted and told of, but not run, since this program does not
//! know how. Or it is given up: it has killed its process too often, or can not be read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::idempotency::{TakenAgain, fingerprint};
use super::letters::{LetterStore, from_stored, to_stored, unmade};
use super::store::Store;
use super::stored::Stored;
use super::submit::options_of;
use super::trial::{self, Trial};
use crate::clock::wall_now;
use crate::error::Result;
use crate::event::{CommandInfo, Transition};
use crate::id::CommandId;
use crate::queue::admission::LaneCore;
use crate::queue::command::Job;
use crate::queue::command_queue::{CommandQueue, QueueCore};
use crate::queue::dead_letter::{DeadLetter, DeadLetterReason};
use crate::queue::incoming::Incoming;
use crate::queue::lane::Lane;
use crate::queue::registry::Unmade;
use crate::storage::{Change, Durability, StoredCommand};

/// Commands that are read at a time.
const PAGE: usize = 4096;
/// Parked commands that a report names.
const NAMED: usize = 1000;
/// With more unclean ends than this...
const STORM: usize = 5;
/// ... within this time, durable lanes start paused.
const STORM_TIME: Duration = Duration::from_secs(60);

/// What a queue has taken over from the process before. From [`QueueManager::recovery`](crate::QueueManager::recovery).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Commands that stand in their lanes again, and run once the queue is started.
    pub recovered: u64,
    /// Of those: commands that were running at so many unclean ends that one more condemns them. They run alone first.
    pub suspects: u64,
    /// Commands that stay stored and do not run: the first 1,000 of them.
    pub parked: Vec<Parked>,
    /// How many commands stay stored and do not run.
    pub parked_count: u64,
    /// Commands that were given up: [`DeadLetterReason::Crashed`] and [`DeadLetterReason::Undecodable`].
    pub dead_lettered: u64,
    /// Whether the process before ended without closing the store.
    pub unclean: bool,
    /// Whether durable lanes start paused, after more than 5 unclean ends within 60 s. Look why, then resume them.
    pub paused: bool,
}

/// A stored command that is not run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Parked {
    /// As it is stored. [`Storage::remove_command`](crate::Storage::remove_command) removes it for good.
    pub command: StoredCommand,
    /// Why.
    pub reason: ParkReason,
}

/// Why a stored command is not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkReason {
    /// It had no payload, or nothing made its type again, when it was accepted.
    NotRecoverable,
    /// Nothing is registered that makes its type.
    UnknownType,
    /// Its payload is of a version that this program does not read.
    NewerVersion,
    /// The queue has no lane of this name.
    UnknownLane,
    /// The queue was built [without recovery](crate::QueueManagerBuilder::with_recovery).
    NotWanted,
}

impl ParkReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NotRecoverable => "it can not be made again from what is stored",
            Self::UnknownType => "its type is not registered",
            Self::NewerVersion => "its payload is of a newer version",
            Self::UnknownLane => "there is no lane of this name",
            Self::NotWanted => "the queue was built without recovery",
        }
    }
}

/// How often a command may be there when its process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct CrashLimit {
    pub(in crate::queue) crashes: u32,
    pub(in crate::queue) within: Duration,
}

impl Default for CrashLimit {
    fn default() -> Self {
        Self { crashes: 3, within: Duration::from_secs(72 * 60 * 60) }
    }
}

impl CrashLimit {
    fn recent(&self, command: &StoredCommand, now: DateTime<Utc>) -> u32 {
        // Also those that a clock which was set back has put into the future.
        let recent = |at: &&DateTime<Utc>| (now - **at).to_std().is_ok_and(|age| age <= self.within) || **at > now;
        u32::try_from(command.crashes.iter().filter(recent).count()).unwrap_or(u32::MAX)
    }
}

/// A command that was made again, whatever it results in.
pub(in crate::queue) trait Recovered: Send {
    /// Puts it into its lane, before anything that is submitted.
    fn admit(self: Box<Self>, lane: &Lane, terms: Again);
    /// Runs it whatever its lane says.
    fn run_alone(self: Box<Self>, lane: &Lane, terms: Again);
    /// Submits it as the replay of a letter.
    fn replay(self: Box<Self>, queue: &CommandQueue, letter: &DeadLetter) -> Result<()>;
}

/// On what terms a command comes back.
pub(in crate::queue) struct Again {
    id: CommandId,
    attempts: u32,
    /// It was running when a process died.
    has_run: bool,
    replays: u32,
    terms: crate::storage::StoredTerms,
    stored: Box<Stored>,
}

impl<J: Job> Recovered for J {
    fn admit(self: Box<Self>, lane: &Lane, again: Again) {
        enter(*self, lane, again, false);
    }

    fn run_alone(self: Box<Self>, lane: &Lane, again: Again) {
        enter(*self, lane, again, true);
    }

    fn replay(self: Box<Self>, queue: &CommandQueue, letter: &DeadLetter) -> Result<()> {
        queue.accept(&letter.lane_id, *self, Some(crate::queue::command::replay_options(letter, queue)))?.detach();
        Ok(())
    }
}

fn enter<J: Job>(job: J, lane: &Lane, again: Again, alone: bool) {
    let core = lane.core();
    let Some(context) = core.context() else { return };
    let Again { id, attempts, has_run, replays, terms, stored } = again;
    let settings = core.settings.load();
    let mut options = options_of(&terms);
    options.replays = replays;
    let mut incoming = Incoming::new(core, context, &settings, Some(options), 0);
    incoming.set_stored(stored, attempts);
    if attempts > 0 || has_run {
        incoming.has_started_before();
    }
    let submitted = if alone { incoming.run_anyway() } else { incoming.count_again() };
    incoming.place(job, id, submitted).detach();
}

/// A command that is to run alone. Until then it is counted in its lane, as one that waits elsewhere.
pub(in crate::queue) struct Suspect {
    command: Box<dyn Recovered>,
    lane: Lane,
    again: Again,
    counted: Counted,
}

struct Counted {
    lane: Arc<LaneCore>,
    /// It comes to its lane. If not, its queue stops, and it stays stored.
    comes: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.comes {
            self.lane.count_cancelled();
            self.lane.count_kept();
        }
        self.lane.step_in();
    }
}

impl Suspect {
    pub(super) fn run_alone(self, trial: Trial) {
        let Self { command, lane, mut again, mut counted } = self;
        if !is_given_up(&lane) {
            again.stored.on_trial(trial);
            counted.comes = true;
            command.run_alone(&lane, again);
        }
        drop(counted);
    }

    /// Returns when its lane is not paused, or it is given up.
    pub(super) fn may_run(&self, store: &Arc<Store>) -> impl Future<Output = ()> + Send + 'static {
        let (lane, store) = (self.lane.clone(), Arc::clone(store));
        async move {
            loop {
                // Listened before it is looked at: so it is not missed.
                let listener = store.lanes_changed().listen();
                if !lane.is_paused() || is_given_up(&lane) {
                    return;
                }
                listener.await;
            }
        }
    }
}

/// Whether what waits to run alone in a lane never will, and stays stored: its queue stops, or is gone while it is paused.
fn is_given_up(lane: &Lane) -> bool {
    let is_gone = || lane.core().context().is_none_or(|context| context.queue.strong_count() == 0);
    lane.core().is_cancelling() || lane.is_paused() && is_gone()
}

/// Takes over what is stored. Nothing runs before the queue is started.
pub(in crate::queue) async fn recover(
    queue: &CommandQueue,
    store: &Arc<Store>,
    limit: CrashLimit,
    wanted: bool,
) -> Result<()> {
    let found = store.storage.recover().await?;
    let recovered = take_over_all(queue, store, limit, wanted, found).await;
    if recovered.is_err() {
        // Who builds it again is to have the store.
        let _also_fails = store.storage.finish().await;
    }
    recovered
}

async fn take_over_all(
    queue: &CommandQueue,
    store: &Arc<Store>,
    limit: CrashLimit,
    wanted: bool,
    found: crate::storage::Recovery,
) -> Result<()> {
    let now = wall_now();
    store.begin_at(found.next_sequence);
    for result in found.results {
        let age = (now - result.completed_at).to_std().unwrap_or_default();
        let id = CommandId::parse(&result.command_id).unwrap_or_else(CommandId::next);
        if !store.keys.remember(&result.key, result.fingerprint, id, result.value, store.now(), age) {
            store.later_detached(Change::RemoveResult { key: result.key });
        }
    }
    let mut recovery =
        Recovery { queue, store, limit, now, report: RecoveryReport::default(), suspects: VecDeque::new() };
    recovery.letters().await?;
    let mut page = store.storage.load_page(None, PAGE).await?;
    while let Some(last) = page.last().cloned() {
        // The store reads on while this page is taken over.
        let mut next = store.storage.load_page(Some(&last), PAGE);
        let early = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for command in page {
            recovery.take_over(command, wanted).await;
        }
        page = match early {
            Poll::Ready(page) => page?,
            Poll::Pending => next.await?,
        };
    }
    let Recovery { mut report, suspects, .. } = recovery;
    report.unclean = found.unclean;
    let storm = |at: &&DateTime<Utc>| (now - **at).to_std().is_ok_and(|age| age <= STORM_TIME);
    report.paused = found.unclean_ends.iter().filter(storm).count() > STORM;
    if report.paused {
        tracing::error!("the process has ended uncleanly again and again: durable lanes start paused");
        queue.lanes().iter().filter(|lane| lane.is_durable()).for_each(Lane::pause);
    }
    store.set_open();
    store.set_recovered(report, suspects);
    Ok(())
}

struct Recovery<'a> {
    queue: &'a CommandQueue,
    store: &'a Arc<Store>,
    limit: CrashLimit,
    now: DateTime<Utc>,
    report: RecoveryReport,
    suspects: VecDeque<Suspect>,
}

impl Recovery<'_> {
    async fn letters(&self) -> Result<()> {
        let Some(letters) = self.queue.dlq() else { return Ok(()) };
        letters.keep_in(LetterStore::new(self.store));
        for letter in self.store.storage.load_dead_letters().await? {
            letters.load(from_stored(letter, self.store));
        }
        Ok(())
    }

    async fn take_over(&mut self, command: StoredCommand, wanted: bool) {
        self.store.begin_at(command.sequence.saturating_add(1));
        if !wanted {
            return self.park(command, ParkReason::NotWanted);
        }
        let crashes = self.limit.recent(&command, self.now);
        if crashes >= self.limit.crashes {
            let error = format!("it was running at {crashes} unclean ends of its process, the last time alone");
            return self.give_up(&command, DeadLetterReason::Crashed, error).await;
        }
        let Some(id) = CommandId::parse(&command.id).filter(|id| id.is_stored() && command.recoverable) else {
            return self.park(command, ParkReason::NotRecoverable);
        };
        let Some(lane) = self.queue.lane(&command.lane_id) else {
            return self.park(command, ParkReason::UnknownLane);
        };
        let payload = command.payload.clone();
        let made = match self.store.registry.make(&command.command_type, command.payload_version, payload) {
            Ok(made) => made,
            Err(Unmade::UnknownType) => return self.park(command, ParkReason::UnknownType),
            Err(Unmade::TooNew { .. }) => return self.park(command, ParkReason::NewerVersion),
            Err(unread @ Unmade::Undecodable(_)) => {
                return self.give_up(&command, DeadLetterReason::Undecodable, unread.to_string()).await;
            }
        };
        let claim = match &command.terms.idempotency_key {
            None => None,
            Some(key) => {
                let fingerprint = fingerprint(&command.command_type, Some(&command.payload));
                match self.store.keys.take_again(key, fingerprint, id) {
                    TakenAgain::Taken(claim) => Some(claim),
                    // Other work has the key since: this one was accepted all the same.
                    TakenAgain::ByOther => None,
                    // The same work was accepted twice, since the first time its outcome was unknown; or it has ended.
                    TakenAgain::ByTwin => {
                        tracing::info!(command_id = %command.id, "a stored command is the same work as another one under its key");
                        return self.make(Change::Remove { id: command.id, result: None }).await;
                    }
                }
            }
        };
        let stored = Stored::new(self.store, command.created_at, Some(command.payload_version), claim);
        let StoredCommand { retry_count, replays, terms, crashes: ran, .. } = command;
        let again = Again { id, attempts: retry_count, has_run: !ran.is_empty(), replays, terms, stored };
        self.report.recovered += 1;
        if crashes + 1 >= self.limit.crashes {
            self.report.suspects += 1;
            lane.core().step_apart();
            let counted = Counted { lane: Arc::clone(lane.core()), comes: false };
            self.suspects.push_back(Suspect { command: made, lane, again, counted });
        } else {
            made.admit(&lane, again);
        }
    }

    fn park(&mut self, command: StoredCommand, reason: ParkReason) {
        self.report.parked_count += 1;
        if self.report.parked.len() < NAMED {
            self.report.parked.push(Parked { command, reason });
        }
    }

    async fn give_up(&mut self, command: &StoredCommand, reason: DeadLetterReason, error: String) {
        self.report.dead_lettered += 1;
        let letter = unmade(command, reason, error, self.store);
        let stored = to_stored(&letter);
        self.make(Change::GiveUp(Box::new(stored.clone()))).await;
        let info = CommandInfo::new(&command.lane_id.as_str().into(), letter.command_id, &command.command_type);
        tracing::warn!(command_type = %command.command_type, command_id = %command.id, error = %stored.error, "a stored command was given up");
        if let Some(letters) = self.queue.dlq() {
            letters.load(from_stored(stored, self.store));
        }
        self.queue.events().observe(|| Transition::DeadLettered { command: info, attempts: command.retry_count });
    }

    /// Makes a change that nobody waits for; what the store refuses is owed to it.
    async fn make(&self, change: Change) {
        if let Some(storing) = self.store.later(change, Durability::Relaxed) {
            let _owed = storing.await;
        }
    }
}

impl Store {
    /// The queue starts: tells what was recovered, and has suspects run alone before the lanes go on.
    pub(in crate::queue) fn start(self: &Arc<Self>, queue: &QueueCore) {
        let Some(suspects) = self.take_suspects() else { return };
        if let Some(report) = self.report().filter(|report| **report != RecoveryReport::default()) {
            let RecoveryReport { recovered, suspects, parked_count: parked, dead_lettered, .. } = *report;
            queue.observe(|| Transition::Recovered { recovered, parked, dead_lettered, suspects });
            for Parked { command, reason } in &report.parked {
                queue.observe(|| {
                    let id = CommandId::parse(&command.id).unwrap_or_else(CommandId::next);
                    let command = CommandInfo::new(&command.lane_id.as_str().into(), id, &command.command_type);
                    Transition::Parked { command, reason: reason.as_str().into() }
                });
            }
            if parked > 0 {
                tracing::warn!(parked, "stored commands can not be run by this program, and stay stored");
            }
        }
        trial::begin(self, queue.executor(), suspects);
    }
}
