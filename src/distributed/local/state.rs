//! What a local queue holds, and how that changes: without clocks, waiting or other handles.
//!
//! A command is in `commands` from its acceptance until it is gone; exactly one of `ready`, `times` (delayed, or leased) and
//! `dead` leads to it, as its [`Standing`] says. Every call says what time it is; what has become due by then (delays, ends of
//! leases, expiries, memories) is done first, in the order of its times.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::super::dead_letter::{DeadPage, DeadReason, RemoteDeadLetter};
use super::super::envelope::{CommandEnvelope, CommandResult, EnqueueOptions, Receipt, WorkerId};
use super::super::lease::{AckOutcome, Claim, GlobalLimits, LeaseToken, Leased, Nack};
use super::super::{DEFAULT_MAX_DELIVERIES, Depth, ID_MEMORY};
use crate::clock::{Tick, wall_now};
use crate::error::DistributedError;
use crate::limit::rate::RateLimiter;
use crate::queue::{LaneId, PartitionId, Priority};

/// Results that nobody has read, for [`ResultReceiver`](super::ResultReceiver): of more, the oldest are dropped.
pub(super) const UNREAD_MAX: usize = 1000;

/// The number of a command in this queue: ascending in the order of acceptance.
type Number = u64;

#[derive(Debug, Default)]
pub(super) struct State {
    commands: HashMap<Number, Entry>,
    /// Of commands that are here, dead ones included.
    ids: HashMap<String, Number>,
    partitions: Vec<Partition>,
    /// Everything that happens by itself, by its time.
    times: BTreeSet<(Tick, Number, Timed)>,
    dead: BTreeSet<Number>,
    keys: HashMap<String, Keyed>,
    /// Ids of commands that are gone, for who asks again: an enqueue, or the last acknowledgement.
    ended: HashMap<String, Ended>,
    /// With the times until which they are kept.
    results: HashMap<String, (CommandResult, Tick)>,
    /// What is to be forgotten.
    memories: BTreeSet<(Tick, Memory)>,
    limits: HashMap<LaneId, Limited>,
    unread: VecDeque<CommandResult>,
    /// Also the last lease's fence.
    next: Number,
    /// Commands that are neither dead nor gone.
    alive: usize,
    capacity: Option<usize>,
    window: Duration,
}

#[derive(Debug, Default)]
struct Partition {
    lanes: BTreeMap<LaneId, BTreeMap<(Priority, Number), Number>>,
    ready: usize,
    delayed: usize,
    leased: usize,
    dead: usize,
}

#[derive(Debug)]
struct Entry {
    envelope: CommandEnvelope,
    options: EnqueueOptions,
    partition: PartitionId,
    /// Its place among those of its priority.
    place: Number,
    ready_since: Tick,
    expires: Tick,
    /// Leases so far.
    fence: u64,
    /// The last lease that was ended by who had it; 0: none.
    settled: u64,
    deliveries: u32,
    standing: Standing,
}

#[derive(Clone, Debug, PartialEq)]
enum Standing {
    Ready,
    Delayed { until: Tick, error: Option<String> },
    Leased { until: Tick, worker: WorkerId },
    Dead(Box<RemoteDeadLetter>),
}

/// What happens to a command by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timed {
    Due,
    LeaseEnds,
    Expires,
}

#[derive(Debug)]
struct Keyed {
    command_id: String,
    fingerprint: String,
}

#[derive(Debug)]
struct Ended {
    fence: u64,
    fingerprint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Memory {
    Key(String),
    Ended(String),
    Result(String),
}

#[derive(Debug, Default)]
struct Limited {
    max_leased: Option<usize>,
    rate: Option<RateLimiter>,
    leased: usize,
}

impl State {
    pub(super) fn new(partitions: usize) -> Self {
        let partitions = std::iter::repeat_with(Partition::default).take(partitions).collect();
        Self { partitions, window: super::DEFAULT_WINDOW, ..Self::default() }
    }

    pub(super) fn set_capacity(&mut self, commands: usize) {
        self.capacity = Some(commands);
    }

    pub(super) fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Does what has become due. True if commands may be ready that were not.
    pub(super) fn advance(&mut self, now: Tick) -> bool {
        let mut readied = false;
        while let Some(&(at, number, timed)) = self.times.first()
            && at <= now
        {
            self.times.pop_first();
            let Some(entry) = self.commands.get_mut(&number) else { continue };
            match timed {
                Timed::Due => {
                    if let Standing::Delayed { error, .. } = &entry.standing {
                        // A new one gets its place now; one that comes back has it.
                        if error.is_none() {
                            entry.place = self.next;
                            self.next += 1;
                        }
                        self.partitions[entry.partition].delayed -= 1;
                        self.ready(number, at);
                        readied = true;
                    }
                }
                Timed::LeaseEnds => {
                    self.end_lease(number);
                    readied |= self.back(number, at);
                }
                Timed::Expires => match &entry.standing {
                    Standing::Ready => {
                        self.unready(number);
                        self.bury(number, DeadReason::Expired);
                    }
                    Standing::Delayed { until, .. } => {
                        let until = *until;
                        self.times.remove(&(until, number, Timed::Due));
                        self.partitions[entry.partition].delayed -= 1;
                        self.bury(number, DeadReason::Expired);
                    }
                    // It was taken in time; once it is given back, it was not.
                    Standing::Leased { .. } | Standing::Dead(_) => {}
                },
            }
        }
        while let Some((at, _)) = self.memories.first()
            && *at <= now
        {
            match self.memories.pop_first() {
                Some((_, Memory::Key(key))) => drop(self.keys.remove(&key)),
                Some((_, Memory::Ended(id))) => drop(self.ended.remove(&id)),
                // A later end may have brought a later one.
                Some((at, Memory::Result(id))) if self.results.get(&id).is_some_and(|(_, until)| *until <= at) => {
                    self.results.remove(&id);
                }
                Some((_, Memory::Result(_))) | None => {}
            }
        }
        readied
    }

    /// When something happens by itself that may make a command ready.
    pub(super) fn next_time(&self) -> Option<Tick> {
        self.times.first().map(|(at, ..)| *at)
    }

    pub(super) fn enqueue(
        &mut self,
        envelope: CommandEnvelope,
        options: EnqueueOptions,
        now: Tick,
    ) -> Result<Receipt, DistributedError> {
        let fingerprint = envelope.fingerprint();
        if let Some(receipt) = self.duplicate(&envelope, &options, &fingerprint)? {
            return Ok(receipt);
        }
        if self.capacity.is_some_and(|capacity| self.alive >= capacity) {
            return Err(DistributedError::Full(format!("it holds {} commands, as many as it may", self.alive)));
        }
        let partition = envelope.partition_id;
        let number = self.next;
        self.next += 1;
        self.alive += 1;
        self.ids.insert(envelope.id.clone(), number);
        if let Some(key) = &options.idempotency_key {
            self.keys.insert(key.clone(), Keyed { command_id: envelope.id.clone(), fingerprint });
        }
        let receipt = Receipt::new(envelope.id.as_str(), false);
        let expires = options.expires_after.map_or(Tick::NEVER, |after| now.plus(after));
        let delay = options.delay.filter(|delay| !delay.is_zero());
        let entry = Entry {
            envelope,
            options,
            partition,
            place: number,
            ready_since: now,
            expires,
            fence: 0,
            settled: 0,
            deliveries: 0,
            standing: Standing::Ready,
        };
        self.commands.insert(number, entry);
        if expires != Tick::NEVER {
            self.times.insert((expires, number, Timed::Expires));
        }
        match delay {
            Some(delay) => self.delay(number, now.plus(delay), None),
            None => self.ready(number, now),
        }
        Ok(receipt)
    }

    fn duplicate(
        &self,
        envelope: &CommandEnvelope,
        options: &EnqueueOptions,
        fingerprint: &str,
    ) -> Result<Option<Receipt>, DistributedError> {
        let id = &envelope.id;
        let known = match self.ids.get(id).and_then(|number| self.commands.get(number)) {
            Some(entry) => Some(entry.envelope.fingerprint()),
            None => self.ended.get(id).map(|ended| ended.fingerprint.clone()),
        };
        if let Some(known) = known {
            return if known == fingerprint {
                Ok(Some(Receipt::new(id.as_str(), true)))
            } else {
                Err(DistributedError::DuplicateId { command_id: id.clone() })
            };
        }
        let Some((key, keyed)) = options.idempotency_key.as_ref().and_then(|key| self.keys.get_key_value(key)) else {
            return Ok(None);
        };
        if keyed.fingerprint == fingerprint {
            return Ok(Some(Receipt::new(keyed.command_id.as_str(), true)));
        }
        Err(DistributedError::IdempotencyConflict { key: key.clone(), command_id: keyed.command_id.clone() })
    }

    /// Takes what the claim says, as far as it is there and the limits allow it. Also when it is worth asking again.
    pub(super) fn claim(
        &mut self,
        partition: PartitionId,
        claim: &Claim,
        worker: &WorkerId,
        now: Tick,
    ) -> (Vec<Leased>, Option<Tick>) {
        let mut taken = Vec::new();
        let mut again = None;
        if claim.lanes.is_empty() {
            let mut refused = Vec::new();
            while taken.len() < claim.max
                && let Some((lane, number)) = self.best(partition, &refused)
            {
                match self.admit(&lane, now) {
                    Ok(()) => taken.push(self.lease(number, claim.lease, worker, now)),
                    Err(at) => {
                        again = earliest(again, at);
                        refused.push(lane);
                    }
                }
            }
        }
        for lane in &claim.lanes {
            let mut left = lane.max;
            while left > 0
                && taken.len() < claim.max
                && let Some(number) = self.first(partition, &lane.lane_id)
            {
                match self.admit(&lane.lane_id, now) {
                    Ok(()) => taken.push(self.lease(number, claim.lease, worker, now)),
                    Err(at) => {
                        again = earliest(again, at);
                        break;
                    }
                }
                left -= 1;
            }
        }
        (taken, again)
    }

    fn first(&self, partition: PartitionId, lane: &str) -> Option<Number> {
        self.partitions[partition].lanes.get(lane)?.first_key_value().map(|(_, number)| *number)
    }

    /// Of all lanes but these.
    fn best(&self, partition: PartitionId, without: &[LaneId]) -> Option<(LaneId, Number)> {
        let lanes = self.partitions[partition].lanes.iter().filter(|(lane, _)| !without.contains(lane));
        let heads =
            lanes.filter_map(|(lane, ready)| ready.first_key_value().map(|(order, number)| (order, lane, number)));
        heads.min().map(|(_, lane, number)| (lane.clone(), *number))
    }

    /// Whether one more command of the lane may be taken; when to ask again, if that is known.
    fn admit(&mut self, lane: &str, now: Tick) -> Result<(), Option<Tick>> {
        let Some(limited) = self.limits.get(lane) else { return Ok(()) };
        if limited.max_leased.is_some_and(|max| limited.leased >= max) {
            return Err(None);
        }
        limited.rate.as_ref().map_or(Ok(()), |rate| rate.take(now, 1)).map_err(Some)
    }

    fn lease(&mut self, number: Number, lease: Duration, worker: &WorkerId, now: Tick) -> Leased {
        self.unready(number);
        let entry = self.commands.get_mut(&number).expect("what is ready is here");
        let until = now.plus(lease);
        // Higher than of any lease before, also of another command that had this id.
        entry.fence = self.next;
        self.next += 1;
        entry.deliveries += 1;
        entry.standing = Standing::Leased { until, worker: worker.clone() };
        let token = LeaseToken::new(entry.envelope.id.as_str(), entry.partition, entry.fence, "");
        let mut leased = Leased::new(entry.envelope.clone(), token, Some(lease));
        leased.delivery = entry.deliveries;
        leased.priority = entry.priority();
        leased.payload_version = entry.options.payload_version.unwrap_or(1);
        leased.headers = entry.options.headers.clone();
        self.partitions[entry.partition].leased += 1;
        self.limits.entry(entry.envelope.lane_id.clone()).or_default().leased += 1;
        self.times.insert((until, number, Timed::LeaseEnds));
        leased
    }

    /// The command of a lease that has not ended.
    fn leased(&self, token: &LeaseToken) -> Option<Number> {
        let number = *self.ids.get(token.command_id())?;
        let entry = self.commands.get(&number)?;
        (entry.fence == token.fence() && matches!(entry.standing, Standing::Leased { .. })).then_some(number)
    }

    /// Ends a lease in the name of who has it: then it stands nowhere.
    fn settle(&mut self, token: &LeaseToken) -> Option<Number> {
        let number = self.leased(token)?;
        self.end_lease(number);
        self.commands.get_mut(&number)?.settled = token.fence();
        Some(number)
    }

    /// The token under which this worker has the command.
    pub(super) fn token_of(&self, command_id: &str, of: &WorkerId) -> Option<LeaseToken> {
        let entry = self.commands.get(self.ids.get(command_id)?)?;
        let has = matches!(&entry.standing, Standing::Leased { worker, .. } if worker == of);
        has.then(|| LeaseToken::new(command_id, entry.partition, entry.fence, ""))
    }

    pub(super) fn extend(&mut self, token: &LeaseToken, lease: Duration, now: Tick) -> Result<(), DistributedError> {
        let lost = || DistributedError::LeaseLost { command_id: token.command_id().to_owned() };
        let number = self.leased(token).ok_or_else(lost)?;
        let Some(Standing::Leased { until, .. }) = self.commands.get_mut(&number).map(|entry| &mut entry.standing)
        else {
            return Err(lost());
        };
        self.times.remove(&(*until, number, Timed::LeaseEnds));
        *until = now.plus(lease);
        self.times.insert((*until, number, Timed::LeaseEnds));
        Ok(())
    }

    pub(super) fn ack(&mut self, token: &LeaseToken, result: CommandResult, now: Tick) -> AckOutcome {
        let Some(number) = self.settle(token) else { return self.stale(token) };
        let result = CommandResult { command_id: token.command_id().to_owned(), ..result };
        if let Some(time) = self.commands.get(&number).and_then(|entry| entry.options.keep_result) {
            let until = now.plus(time);
            self.results.insert(result.command_id.clone(), (result.clone(), until));
            self.memories.insert((until, Memory::Result(result.command_id.clone())));
        }
        match &result.result {
            Ok(_) => self.remove(number, now),
            Err(error) => self.bury(number, DeadReason::Failed(error.clone())),
        }
        self.tell(result);
        AckOutcome::Applied
    }

    /// For who reads results: of those that nobody reads, the oldest are dropped.
    pub(super) fn tell(&mut self, result: CommandResult) {
        if self.unread.len() >= UNREAD_MAX {
            self.unread.pop_front();
        }
        self.unread.push_back(result);
    }

    pub(super) fn unread(&mut self) -> Option<CommandResult> {
        self.unread.pop_front()
    }

    pub(super) fn result(&self, command_id: &str) -> Option<CommandResult> {
        self.results.get(command_id).map(|(result, _)| result.clone())
    }

    pub(super) fn nack(&mut self, token: &LeaseToken, nack: Nack, now: Tick) -> AckOutcome {
        let Some(number) = self.settle(token) else { return self.stale(token) };
        let entry = self.commands.get_mut(&number).expect("what is leased is here");
        match nack {
            Nack::Release => {
                entry.deliveries -= 1;
                self.give_back(number, now);
            }
            Nack::RetryAfter { delay, error } => {
                entry.envelope.retry_count = entry.envelope.retry_count.saturating_add(1);
                if entry.deliveries >= entry.max_deliveries() {
                    self.bury(number, DeadReason::Failed(error));
                } else if delay.is_zero() || entry.expires <= now {
                    self.give_back(number, now);
                } else {
                    self.delay(number, now.plus(delay), Some(error));
                }
            }
        }
        AckOutcome::Applied
    }

    pub(super) fn dead_letter(&mut self, token: &LeaseToken, reason: DeadReason) -> AckOutcome {
        let Some(number) = self.settle(token) else { return self.stale(token) };
        self.bury(number, reason);
        AckOutcome::Applied
    }

    /// What a token says that leads to no lease: whether it was what ended the command.
    fn stale(&self, token: &LeaseToken) -> AckOutcome {
        let id = token.command_id();
        let ended = match self.ids.get(id).and_then(|number| self.commands.get(number)) {
            Some(entry) => entry.settled == token.fence(),
            None => self.ended.get(id).is_some_and(|ended| ended.fence == token.fence()),
        };
        if ended { AckOutcome::AlreadyApplied } else { AckOutcome::LeaseLost }
    }

    /// The worker gives back all that it has.
    pub(super) fn release_all(&mut self, of: &WorkerId, now: Tick) {
        let has = |entry: &Entry| matches!(&entry.standing, Standing::Leased { worker, .. } if worker == of);
        let mut numbers: Vec<_> =
            self.commands.iter().filter(|(_, entry)| has(entry)).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        for number in numbers {
            self.end_lease(number);
            if let Some(entry) = self.commands.get_mut(&number) {
                entry.deliveries -= 1;
            }
            self.give_back(number, now);
        }
    }

    pub(super) fn letters(&self, page: &DeadPage) -> Vec<RemoteDeadLetter> {
        let after = page.after.as_ref().and_then(|id| self.ids.get(id));
        let from = after.map_or(0, |number| number + 1);
        let letters = self.dead.range(from..).filter_map(|number| match &self.commands.get(number)?.standing {
            Standing::Dead(letter) => Some((**letter).clone()),
            _ => None,
        });
        letters.take(page.limit).collect()
    }

    pub(super) fn replay(&mut self, command_id: &str, now: Tick) -> bool {
        let Some(mut entry) = self.take_dead(command_id) else { return false };
        // Anew, behind all that is there.
        let number = self.next;
        self.next += 1;
        self.alive += 1;
        entry.place = number;
        entry.deliveries = 0;
        entry.expires = Tick::NEVER;
        entry.envelope.retry_count = 0;
        entry.standing = Standing::Ready;
        if let Some(key) = &entry.options.idempotency_key {
            let keyed = Keyed { command_id: command_id.to_owned(), fingerprint: entry.envelope.fingerprint() };
            // Other work may have it since.
            self.keys.entry(key.clone()).or_insert(keyed);
        }
        self.ids.insert(command_id.to_owned(), number);
        self.commands.insert(number, entry);
        self.ready(number, now);
        true
    }

    pub(super) fn discard(&mut self, command_id: &str) -> bool {
        self.take_dead(command_id).is_some()
    }

    fn take_dead(&mut self, command_id: &str) -> Option<Entry> {
        let number = *self.ids.get(command_id)?;
        if !self.dead.remove(&number) {
            return None;
        }
        self.ids.remove(command_id);
        let entry = self.commands.remove(&number)?;
        self.partitions[entry.partition].dead -= 1;
        Some(entry)
    }

    pub(super) fn set_limits(&mut self, lane: &str, limits: &GlobalLimits, rate: Option<RateLimiter>) {
        let limited = self.limits.entry(lane.to_owned()).or_default();
        (limited.max_leased, limited.rate) = (limits.max_leased, rate);
    }

    pub(super) fn depth(&self, partition: PartitionId, now: Tick) -> Depth {
        let Partition { lanes, ready, delayed, leased, dead } = &self.partitions[partition];
        let numbers = lanes.values().flat_map(BTreeMap::values);
        let since = numbers.filter_map(|number| self.commands.get(number)).map(|entry| entry.ready_since).min();
        Depth {
            ready: *ready,
            delayed: *delayed,
            leased: *leased,
            dead: *dead,
            oldest_ready: since.map(|since| now.since(since)),
        }
    }

    fn ready(&mut self, number: Number, now: Tick) {
        let Some(entry) = self.commands.get_mut(&number) else { return };
        entry.standing = Standing::Ready;
        entry.ready_since = now;
        let order = (entry.priority(), entry.place);
        let partition = &mut self.partitions[entry.partition];
        partition.ready += 1;
        // The lane's name is only copied where it is new.
        match partition.lanes.get_mut(&entry.envelope.lane_id) {
            Some(lane) => lane.insert(order, number),
            None => partition.lanes.entry(entry.envelope.lane_id.clone()).or_default().insert(order, number),
        };
    }

    fn unready(&mut self, number: Number) {
        let Some(entry) = self.commands.get(&number) else { return };
        let partition = &mut self.partitions[entry.partition];
        partition.ready -= 1;
        if let Some(lane) = partition.lanes.get_mut(&entry.envelope.lane_id) {
            lane.remove(&(entry.priority(), entry.place));
            if lane.is_empty() {
                partition.lanes.remove(&entry.envelope.lane_id);
            }
        }
    }

    fn delay(&mut self, number: Number, until: Tick, error: Option<String>) {
        let Some(entry) = self.commands.get_mut(&number) else { return };
        entry.standing = Standing::Delayed { until, error };
        self.partitions[entry.partition].delayed += 1;
        self.times.insert((until, number, Timed::Due));
    }

    fn end_lease(&mut self, number: Number) {
        let Some(entry) = self.commands.get(&number) else { return };
        let Standing::Leased { until, .. } = entry.standing else { return };
        self.times.remove(&(until, number, Timed::LeaseEnds));
        self.partitions[entry.partition].leased -= 1;
        if let Some(limited) = self.limits.get_mut(&entry.envelope.lane_id) {
            limited.leased -= 1;
        }
    }

    /// Its lease has ended by itself. Whether it is ready again.
    fn back(&mut self, number: Number, now: Tick) -> bool {
        let Some(entry) = self.commands.get(&number) else { return false };
        if entry.deliveries >= entry.max_deliveries() {
            self.bury(number, DeadReason::TooManyDeliveries);
            return false;
        }
        self.give_back(number, now)
    }

    /// It is not leased any more: ready again, if there is time left. Whether it is.
    fn give_back(&mut self, number: Number, now: Tick) -> bool {
        if self.commands.get(&number).is_some_and(|entry| entry.expires <= now) {
            self.bury(number, DeadReason::Expired);
            return false;
        }
        self.ready(number, now);
        true
    }

    /// The command is a dead letter from now on. It stands nowhere.
    fn bury(&mut self, number: Number, reason: DeadReason) {
        let Some(mut entry) = self.commands.remove(&number) else { return };
        self.times.remove(&(entry.expires, number, Timed::Expires));
        self.alive -= 1;
        if let Some(key) = &entry.options.idempotency_key
            && self.keys.get(key).is_some_and(|keyed| keyed.command_id == entry.envelope.id)
        {
            self.keys.remove(key);
        }
        let mut letter = RemoteDeadLetter::new(entry.envelope.clone(), reason, entry.deliveries, wall_now());
        letter.priority = entry.priority();
        letter.payload_version = entry.options.payload_version.unwrap_or(1);
        letter.headers = entry.options.headers.clone();
        self.partitions[entry.partition].dead += 1;
        entry.standing = Standing::Dead(Box::new(letter));
        // In the order in which they have died.
        let number = self.next;
        self.next += 1;
        self.ids.insert(entry.envelope.id.clone(), number);
        self.dead.insert(number);
        self.commands.insert(number, entry);
    }

    /// The command has ended well.
    fn remove(&mut self, number: Number, now: Tick) {
        let Some(entry) = self.commands.remove(&number) else { return };
        self.times.remove(&(entry.expires, number, Timed::Expires));
        self.alive -= 1;
        let fingerprint = entry.envelope.fingerprint();
        let id = entry.envelope.id;
        self.ids.remove(&id);
        // Other work may have its key, if it was given up in between.
        if let Some(key) = entry.options.idempotency_key
            && self.keys.get(&key).is_some_and(|keyed| keyed.command_id == id)
        {
            self.memories.insert((now.plus(self.window), Memory::Key(key)));
        }
        self.memories.insert((now.plus(ID_MEMORY), Memory::Ended(id.clone())));
        self.ended.insert(id, Ended { fence: entry.fence, fingerprint });
    }
}

impl Entry {
    fn priority(&self) -> Priority {
        self.options.priority.unwrap_or(EnqueueOptions::DEFAULT_PRIORITY)
    }

    fn max_deliveries(&self) -> u32 {
        self.options.max_deliveries.unwrap_or(DEFAULT_MAX_DELIVERIES)
    }
}

fn earliest(one: Option<Tick>, other: Option<Tick>) -> Option<Tick> {
    one.into_iter().chain(other).min()
}
