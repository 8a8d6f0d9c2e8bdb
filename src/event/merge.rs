//! Many logs, read as one.
//!
//! Each thread writes a log of its own, in which a record's stamp is taken before it is written. A reader goes in rounds:
//!
//! 1. it takes a stamp of its own, the horizon;
//! 2. it looks which logs there are, and how far each is written;
//! 3. it gives the records up to there whose stamps are not above the horizon, by stamp; those of one log in the log's order.
//!
//! **Causes come before their effects.** Let E be an event that some thread told after it had learnt of another event C: a start
//! after the submission. C was written, by 1. of `ring`, before that thread learnt of it, and E's stamp was taken after. So C has
//! the lower stamp, and where both are given in one round, C is first. Could a round give E and not C? E's stamp is not above
//! the horizon, so it was taken before (1); so C was written before (1); so (2) sees it, and its log, and (3) gives it, unless a
//! round before did, or it was overwritten. A record that is not given in its round (it was written late, after (2), or is above
//! the horizon) has no effects in that round for the same reason.
//!
//! What this rests on: stamps of two threads that learn from each other are in that order. The processor may take a stamp some
//! nanoseconds early, while it still waits for the message; the message itself takes longer than that. Fences after (1) keep the
//! reader's looks behind it. Where events have no such relation, their order is that of their stamps, as far as these go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use chrono::{DateTime, Utc};

use super::hub::{Hub, wall_at};
use super::kind::EventKind;
use super::lane_event::LaneEvent;
use super::log::{Item, Log, UNMEASURED, What, type_of};
use super::subscription::{OnOverflow, Subscription};
use super::transition::{CommandInfo, Transition};

/// Rounds that a record is waited for whose stamp is above the horizon: nanoseconds of difference between processors are passed
/// in one.
const ROUNDS: u32 = 10_000;

/// Command types that a reader remembers.
const TYPES: usize = 1024;

pub(super) struct Reader {
    hub: Arc<Hub>,
    asked: Subscription,
    cursors: Vec<Cursor>,
    horizon: u64,
    clocks: (u64, DateTime<Utc>),
    names: Names,
    /// What waits to be given, if it is conflated.
    conflated: Option<Conflated>,
}

struct Cursor {
    log: Arc<Log>,
    /// The next record to be read.
    next: u64,
    /// Up to where it may be read in this round.
    limit: u64,
    /// The record before `next`, if it has been read and not given.
    read: Option<Item>,
}

#[derive(Default)]
struct Conflated {
    /// By stamp, and by order of arrival.
    items: BTreeMap<(u64, u64), (Item, (u64, EventKind))>,
    places: HashMap<(u64, EventKind), (u64, u64)>,
    arrived: u64,
}

impl Reader {
    /// From now on.
    pub(super) fn new(hub: Arc<Hub>, asked: Subscription) -> Self {
        let conflated = (asked.on_overflow == OnOverflow::Conflate).then(Conflated::default);
        let (clocks, names) = (hub.both_clocks(), Names::default());
        let mut reader = Self { hub, asked, cursors: Vec::new(), horizon: 0, clocks, names, conflated };
        reader.find_logs(true);
        reader
    }

    fn find_logs(&mut self, from_now: bool) {
        let cursors = &mut self.cursors;
        self.hub.add_logs(cursors.len(), |log| {
            // What a log has that was not there before is new, all of it.
            let next = if from_now { log.head() } else { 0 };
            cursors.push(Cursor { log, next, limit: next, read: None });
        });
    }

    /// The next event, if there is one.
    pub(super) fn next(&mut self) -> Option<LaneEvent> {
        loop {
            let event = if self.conflated.is_some() { self.next_conflated() } else { self.next_read() };
            match event {
                Some(event) if self.passes(&event) => return Some(event),
                Some(_) => {}
                None => return None,
            }
        }
    }

    /// By lane. The kinds are chosen before.
    fn passes(&self, event: &LaneEvent) -> bool {
        let Some(lanes) = &self.asked.lanes else { return true };
        let Some(transition) = event.transition() else { return false };
        let named = || transition.lane_id().is_some_and(|lane| lanes.iter().any(|name| **name == **lane));
        matches!(transition, Transition::Lagged(_)) || named()
    }

    fn next_read(&mut self) -> Option<LaneEvent> {
        let mut rounds = 0;
        loop {
            if let Some(missed) = self.read_ahead() {
                self.hub.count_dropped(missed);
                let at = wall_at(self.hub.stamp(), self.clocks);
                return Some(LaneEvent::of(Transition::Lagged(missed), None, at, self.asked.payload));
            }
            let horizon = self.horizon;
            let read = self.cursors.iter_mut().filter(|cursor| cursor.read.is_some());
            let first = read.min_by_key(|cursor| cursor.read.as_ref().map_or(0, Item::stamp));
            if let Some(item) = first.and_then(|cursor| cursor.read.take_if(|item| item.stamp() <= horizon)) {
                return Some(self.event(item));
            }
            let left = self.cursors.iter().any(|cursor| cursor.read.is_some());
            if !self.begin_round() && !left {
                return None;
            }
            rounds += u32::from(left);
            // A stamp that stays in the future is none of this clock: the record is not held back for it.
            if rounds > ROUNDS {
                self.horizon = u64::MAX;
            }
        }
    }

    /// Whether there is anything new.
    fn begin_round(&mut self) -> bool {
        self.horizon = self.hub.horizon();
        // ORDERING: what follows is not looked at before the horizon is known. See the head of this file.
        fence(Ordering::SeqCst);
        self.find_logs(false);
        let mut new = false;
        for cursor in &mut self.cursors {
            cursor.limit = cursor.log.head();
            new |= cursor.next < cursor.limit;
        }
        if new {
            self.clocks = self.hub.both_clocks();
        }
        new
    }

    /// Sees to it that of each log the next record is read, if it has one in this round. How many were lost, if some were.
    fn read_ahead(&mut self) -> Option<u64> {
        let kinds = self.asked.kinds;
        let wants = |kind: EventKind| kind.bit() & kinds != 0;
        for cursor in &mut self.cursors {
            let kept = cursor.log.kept.min(self.hub.capacity as u64).min(self.asked.capacity as u64);
            let mut missed = 0;
            while cursor.read.is_none() && cursor.next < cursor.limit && missed == 0 {
                let oldest = cursor.log.head().saturating_sub(kept);
                if oldest > cursor.next {
                    missed = oldest - cursor.next;
                    cursor.next = oldest;
                } else if let Some(item) = cursor.log.read(cursor.next, wants) {
                    cursor.next += 1;
                    cursor.read = Some(item).filter(|item| wants(item.kind()));
                } else {
                    // Is being overwritten.
                    missed = 1;
                    cursor.next += 1;
                }
            }
            if missed > 0 {
                return Some(missed);
            }
        }
        None
    }

    fn next_conflated(&mut self) -> Option<LaneEvent> {
        self.begin_round();
        let mut conflated = self.conflated.take().unwrap_or_default();
        let kinds = self.asked.kinds;
        let wants = |kind: EventKind| kind.bit() & kinds != 0;
        for cursor in &mut self.cursors {
            while cursor.next < cursor.limit {
                let read = (cursor.log.oldest() <= cursor.next).then(|| cursor.log.read(cursor.next, wants)).flatten();
                let items = match read {
                    Some(item) => vec![item],
                    // All up to the last one of these is overwritten, and of each lane and kind the newest is among them.
                    None => cursor.log.newest_since(cursor.next),
                };
                let unsaved = cursor.log.oldest().max(cursor.next + 1);
                cursor.next = items.last().map_or(unsaved, |item| item.number + 1);
                for item in items.into_iter().filter(|item| wants(item.kind())) {
                    let lane = if item.told.is_some() { "".into() } else { self.names.lane(&self.hub, item.lane()) };
                    conflated.add(item.conflation(&lane), item);
                }
            }
        }
        let first = conflated.take();
        self.conflated = Some(conflated);
        first.map(|item| self.event(item))
    }

    fn event(&mut self, item: Item) -> LaneEvent {
        let (transition, nanos) = match item.told.as_deref() {
            None => (self.names.transition(&self.hub, &item), item.words[2]),
            Some(told) => match &told.what {
                What::Custom(event) => return event.clone(),
                What::Transition(transition) => (transition.clone(), told.nanos),
            },
        };
        LaneEvent::of(transition, duration(nanos), wall_at(item.stamp(), self.clocks), self.asked.payload)
    }

    /// The sum of what has been read, to be compared with [`Hub::heads`].
    pub(super) fn seen(&self) -> u64 {
        self.cursors.iter().fold(0, |sum, cursor| sum.wrapping_add(cursor.next))
    }

    /// What was not read is lost now.
    pub(super) fn count_left(&mut self) {
        // Also of threads that have told their first event since it was last looked.
        self.find_logs(false);
        let kept = |log: &Log| log.kept.min(self.hub.capacity as u64).min(self.asked.capacity as u64);
        let lost = |cursor: &Cursor| cursor.log.head().saturating_sub(kept(&cursor.log)).saturating_sub(cursor.next);
        if self.conflated.is_none() {
            self.hub.count_dropped(self.cursors.iter().map(lost).sum());
        }
    }
}

pub(super) fn duration(nanos: u64) -> Option<std::time::Duration> {
    (nanos != UNMEASURED).then(|| std::time::Duration::from_nanos(nanos))
}

impl Conflated {
    fn add(&mut self, key: (u64, EventKind), item: Item) {
        let place = (item.stamp(), self.arrived);
        self.arrived += 1;
        if let Some(before) = self.places.get(&key).copied() {
            if before.0 > place.0 {
                return;
            }
            self.items.remove(&before);
        }
        self.places.insert(key, place);
        self.items.insert(place, (item, key));
    }

    fn take(&mut self) -> Option<Item> {
        let (_, (item, key)) = self.items.pop_first()?;
        self.places.remove(&key);
        Some(item)
    }
}

/// The texts that records name.
#[derive(Default)]
pub(super) struct Names {
    pub(super) lanes: HashMap<u64, Arc<str>>,
    types: HashMap<[u64; 3], Arc<str>>,
}

impl Names {
    fn lane(&mut self, hub: &Hub, address: u64) -> Arc<str> {
        if let Some(lane) = self.lanes.get(&address) {
            return Arc::clone(lane);
        }
        // The hub keeps a name before the first record has its address.
        let lane = hub.lane(address).unwrap_or_default();
        self.lanes.insert(address, Arc::clone(&lane));
        lane
    }

    fn transition(&mut self, hub: &Hub, item: &Item) -> Transition {
        let lane = self.lane(hub, item.lane());
        self.known_transition(lane, item)
    }

    /// What a frequent event says.
    pub(super) fn known_transition(&mut self, lane: Arc<str>, item: &Item) -> Transition {
        let words = &item.words;
        if self.types.len() == TYPES {
            self.types.clear();
        }
        let key = [words[4], words[5], words[6] >> 8];
        let command_type = Arc::clone(self.types.entry(key).or_insert_with(|| type_of(words)));
        let command = CommandInfo::of(lane, crate::id::CommandId::from_u64(words[1]), command_type);
        match item.kind() {
            EventKind::Started => Transition::Started(command),
            EventKind::Completed => Transition::Completed(command),
            _ => Transition::Submitted(command),
        }
    }
}
