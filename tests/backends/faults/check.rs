//! The outside checker: knows only what the workers have said, some of them before they were killed, and what is left when
//! everything has settled.
//!
//! What it holds a backend to:
//!
//! - What was acknowledged ends exactly once: by an acknowledgement that was applied, or as a dead letter, which stays. Where the
//!   answer to an acknowledgement was not heard, it may have been applied; then nobody gets the command any more.
//! - What was refused for certain is not there. Where the answer was not heard, it may be.
//! - Fences grow, and none is given twice. While a lease is valid, nobody else gets the command: from before the call that got it,
//!   for as long as it says, unless it is given back.
//! - What has no valid lease changes nothing, and what has one is not refused.
//! - An idempotency key has one command.
//! - No command is delivered more often than it may be, and none is given up without a reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::event::{Act, Answer, Claim, Event, Moment, micros};

/// Servers count in whole milliseconds.
const GRAIN: u64 = 2_000;

#[derive(Default)]
pub(crate) struct Checker {
    commands: BTreeMap<String, Command>,
    /// Ids of the commands of a key.
    keys: BTreeMap<String, BTreeSet<String>>,
    /// When processes have begun to give back what they had.
    closings: HashMap<u64, Moment>,
    /// Ids of dead letters that were there when everything had settled.
    letters: BTreeMap<String, Letter>,
    violations: BTreeSet<String>,
    /// A lease may be valid so much longer than it says, where the backend knows its server's time no better.
    late: u64,
}

/// What a run has covered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: usize,
    /// Enqueues whose answer was not heard.
    pub(crate) enqueues_unheard: usize,
    /// Enqueues under the key of another command.
    pub(crate) duplicates: usize,
    pub(crate) claimed: usize,
    /// Commands that were handed out more than once.
    pub(crate) again: usize,
    /// Of what is done with leases: answers that were not heard.
    pub(crate) unheard: usize,
    /// Done when the lease had ended for certain, and refused.
    pub(crate) stale: usize,
    /// Of those: when somebody else had the command.
    pub(crate) overtaken: usize,
    /// Given up.
    pub(crate) letters: usize,
    /// Gone, by an acknowledgement whose answer was not heard.
    pub(crate) gone_unheard: usize,
}

#[derive(Default)]
struct Command {
    key: Option<String>,
    max_deliveries: u32,
    /// Enqueues that were begun, and of those, that were refused for certain.
    enqueues: u32,
    refusals: u32,
    /// Which commands receipts have named.
    receipts: BTreeSet<String>,
    /// By fences.
    leases: BTreeMap<u64, Lease>,
}

#[derive(Default)]
struct Lease {
    /// Who has got it, and how.
    claims: Vec<(u64, Claim)>,
    /// What was done with it, as it was begun.
    tries: Vec<Try>,
}

struct Try {
    what: Act,
    begun: Moment,
    /// None: its answer was not heard.
    answer: Option<(Moment, Answer)>,
}

struct Letter {
    failed: bool,
    deliveries: u32,
}

/// What is wrong, in words.
type Found = Vec<String>;

impl Checker {
    pub(crate) fn new(late: Duration) -> Self {
        Self { late: micros(late), ..Self::default() }
    }

    /// Takes what one process has said, whose end it was.
    pub(crate) fn process(&mut self, process: u64, events: Vec<Event>) {
        let mut letters: Option<BTreeMap<String, Letter>> = None;
        for event in events {
            match event {
                Event::Ready | Event::Stopped => {}
                Event::Enqueuing { id, key, max_deliveries } => {
                    let command = self.command(&id);
                    (command.key, command.max_deliveries) = (key, max_deliveries);
                    command.enqueues += 1;
                }
                Event::Enqueued { id, as_id } => {
                    let command = self.command(&id);
                    command.receipts.insert(as_id.clone());
                    if let Some(key) = command.key.clone() {
                        self.keys.entry(key).or_default().insert(as_id);
                    }
                }
                Event::NotEnqueued { id, certain } => self.command(&id).refusals += u32::from(certain),
                Event::Claimed { claim } => {
                    if let Some(key) = &claim.key {
                        self.keys.entry(key.clone()).or_default().insert(claim.id.clone());
                    }
                    let id = claim.id.clone();
                    self.lease(&id, claim.fence).claims.push((process, claim));
                }
                Event::Trying { id, fence, what, begun } => {
                    self.lease(&id, fence).tries.push(Try { what, begun, answer: None });
                }
                Event::Tried { id, fence, what, begun, ended, answer } => {
                    let mut tries = self.lease(&id, fence).tries.iter_mut();
                    let tried = tries.find(|tried| tried.what == what && tried.begun == begun);
                    tried.expect("what is answered was begun").answer = Some((ended, answer));
                }
                Event::Closing { begun } => _ = self.closings.insert(process, begun),
                Event::Letter { id, failed, deliveries } => {
                    let letters = letters.get_or_insert_default();
                    if letters.insert(id.clone(), Letter { failed, deliveries }).is_some() {
                        self.violations.insert(format!("{id} has two dead letters"));
                    }
                }
                Event::Settled { ready, delayed, leased, dead } => {
                    if ready + delayed + leased > 0 {
                        let left = format!("{ready} ready, {delayed} delayed and {leased} leased commands are left");
                        self.violations.insert(left);
                    }
                    self.settled(dead, letters.take().unwrap_or_default());
                }
                Event::Note { text } => _ = self.violations.insert(format!("process {process}: {text}")),
            }
        }
    }

    /// Everything has settled: of what was acknowledged, nothing is left, and these are given up.
    fn settled(&mut self, dead: usize, letters: BTreeMap<String, Letter>) {
        let mut found = Vec::new();
        if dead != letters.len() {
            found.push(format!("there are {} dead letters, and the queue counts {dead}", letters.len()));
        }
        for id in self.letters.keys().filter(|id| !letters.contains_key(*id)) {
            found.push(format!("{id} was given up, and its dead letter is lost"));
        }
        self.letters = letters;
        for (id, command) in &self.commands {
            let letter = self.letters.get(id);
            if let Some(letter) = letter {
                command.given_up(id, letter, &mut found);
            } else if command.ended_by().any(|(_, act)| act != Act::Ack) {
                found.push(format!("{id} was given up, and its dead letter is lost"));
            }
            let is_acknowledged = command.receipts.contains(id) || self.is_named_by_others(id, command);
            if letter.is_some() || command.may_be_gone() {
                continue;
            }
            if is_acknowledged {
                found.push(format!("{id} was acknowledged, {}, and is lost", command.last_seen()));
            } else if !command.leases.is_empty() {
                found.push(format!("{id} was there, {}, and is lost", command.last_seen()));
            }
        }
        for id in self.letters.keys().filter(|id| !self.commands.contains_key(*id)) {
            found.push(format!("{id} has a dead letter, and was never enqueued"));
        }
        self.violations.extend(found);
        self.look();
    }

    /// Whether a receipt for another enqueue under the same key names it.
    fn is_named_by_others(&self, id: &str, command: &Command) -> bool {
        let Some(key) = &command.key else { return false };
        self.keys.get(key).is_some_and(|ids| ids.contains(id))
    }

    /// Looks at all that was said so far: for when all processes have ended that have said it.
    fn look(&mut self) {
        let mut found = Vec::new();
        for (id, command) in &self.commands {
            command.look(id, self, &mut found);
        }
        for (key, ids) in self.keys.iter().filter(|(_, ids)| ids.len() > 1) {
            found.push(format!("idempotency key {key} has more than one command: {ids:?}"));
        }
        self.violations.extend(found);
    }

    pub(crate) fn violations(&self) -> impl Iterator<Item = &str> {
        self.violations.iter().map(String::as_str)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts { letters: self.letters.len(), ..Counts::default() };
        for (id, command) in &self.commands {
            counts.accepted += usize::from(command.receipts.contains(id));
            counts.enqueues_unheard += usize::from(command.receipts.is_empty() && !command.is_refused());
            counts.duplicates += usize::from(command.receipts.iter().any(|as_id| as_id != id));
            let claims = command.claims().count();
            counts.claimed += claims;
            counts.again += usize::from(claims > 1);
            let is_gone = !self.letters.contains_key(id) && command.ended_by().next().is_none();
            counts.gone_unheard += usize::from(is_gone && claims > 0 && command.may_be_gone());
            for (fence, lease) in &command.leases {
                for (at, tried) in lease.tries.iter().enumerate() {
                    counts.unheard += usize::from(tried.outcome() == Answer::Unknown);
                    let is_refused = tried.outcome() == Answer::LeaseLost;
                    let is_stale = lease.latest_end(at).is_some_and(|end| tried.begun > end);
                    counts.stale += usize::from(is_refused && is_stale);
                    counts.overtaken += usize::from(is_refused && command.overtakes(*fence, tried.begun).is_some());
                }
            }
        }
        counts
    }

    fn command(&mut self, id: &str) -> &mut Command {
        self.commands.entry(id.to_owned()).or_default()
    }

    fn lease(&mut self, id: &str, fence: u64) -> &mut Lease {
        self.command(id).leases.entry(fence).or_default()
    }
}

impl Command {
    fn look(&self, id: &str, checker: &Checker, found: &mut Found) {
        let Some((&last, _)) = self.leases.last_key_value() else { return };
        if self.enqueues == 0 {
            found.push(format!("{id} was handed out, and was never enqueued"));
        }
        if self.is_refused() {
            found.push(format!("{id} was refused for certain, and was handed out"));
        }
        if let Some(other) = self.receipts.iter().find(|as_id| *as_id != id) {
            found.push(format!("{id} is a duplicate of {other}, and was handed out"));
        }
        // What those before have, of the lower fences.
        let (mut latest_begin, mut valid_until, mut holder) = (0, 0, 0);
        for (&fence, lease) in &self.leases {
            let name = format!("{id} (fence {fence})");
            if lease.claims.len() != 1 {
                found.push(format!("{name} was handed out {} times under the same fence", lease.claims.len()));
            }
            let Some((process, claim)) = lease.claims.first() else { continue };
            if claim.ended < latest_begin {
                found.push(format!("{name} was handed out before a lower fence: fences do not grow"));
            }
            if claim.ended + GRAIN < valid_until {
                let early = valid_until - claim.ended;
                found.push(format!(
                    "{name} has two valid leases: it was handed out {early} us before fence {holder} was over"
                ));
            }
            if claim.delivery > self.max_deliveries.max(1) {
                let most = self.max_deliveries;
                found.push(format!("{name} was delivered {} times, and may be {most} times", claim.delivery));
            }
            latest_begin = latest_begin.max(claim.begun);
            let closing = checker.closings.get(process).copied();
            let until = lease.valid_until(closing);
            if until > valid_until {
                (valid_until, holder) = (until, fence);
            }
            self.look_at_tries(&name, fence, lease, closing, checker.late, found);
        }
        let ends: Vec<_> = self.ended_by().collect();
        if let [(first, _), .., (second, _)] = ends.as_slice() {
            found.push(format!("{id} has ended twice: under the fences {first} and {second}"));
        }
        if let Some((fence, _)) = ends.first().filter(|(fence, _)| *fence < last) {
            found.push(format!("{id} was handed out after it had ended: fence {last} after {fence}"));
        }
    }

    fn look_at_tries(
        &self,
        name: &str,
        fence: u64,
        lease: &Lease,
        closing: Option<Moment>,
        late: u64,
        found: &mut Found,
    ) {
        for (at, tried) in lease.tries.iter().enumerate() {
            let what = tried.what;
            let before = || lease.tries[..at].iter().filter(|before| before.what != Act::Extend);
            let is_first = before().next().is_none();
            match tried.answer {
                // It may have been done when it was tried before.
                Some((_, Answer::Applied)) if before().any(|before| before.outcome() == Answer::Unknown) => continue,
                Some((_, Answer::Applied)) => {}
                Some((_, Answer::AlreadyApplied)) if is_first => {}
                Some((ended, Answer::LeaseLost)) => {
                    // What else was done with it may have been the end of it.
                    let valid_until = lease.valid_until(closing);
                    if is_first && ended + GRAIN < valid_until {
                        let early = valid_until - ended;
                        found.push(format!("{name}: {what:?} was refused {early} us before the lease was over"));
                    }
                    continue;
                }
                _ => continue,
            }
            if let Some(before) = before().find(|before| before.outcome() == Answer::Applied) {
                found.push(format!("{name}: a stale {what:?} was applied, after {:?} was", before.what));
            }
            if let Some(other) = self.overtakes(fence, tried.begun) {
                found.push(format!("{name}: a stale {what:?} was applied, when fence {other} had been handed out"));
            }
            if let Some(end) = lease.latest_end(at).filter(|end| tried.begun > end + late + GRAIN) {
                let late = tried.begun - end;
                found.push(format!("{name}: a stale {what:?} was applied, {late} us after the lease had ended"));
            }
        }
    }

    /// Looks at the reason of a dead letter.
    fn given_up(&self, id: &str, letter: &Letter, found: &mut Found) {
        if self.is_refused() {
            found.push(format!("{id} was refused for certain, and has a dead letter"));
        }
        if self.ended_by().any(|(_, act)| act == Act::Ack) {
            found.push(format!("{id} has ended twice: well, and as a dead letter"));
        }
        let may_be_failed =
            |tried: &Try| matches!(tried.what, Act::AckError | Act::DeadLetter | Act::Retry) && tried.may_be_applied();
        let is_failed = self.leases.values().flat_map(|lease| &lease.tries).any(may_be_failed);
        if letter.failed && !is_failed {
            found.push(format!("{id} is given up as failed, and has not"));
        }
        if !letter.failed && letter.deliveries < self.max_deliveries {
            let (deliveries, most) = (letter.deliveries, self.max_deliveries);
            found.push(format!("{id} is given up after {deliveries} deliveries, and has {most}"));
        }
    }

    /// The fences under which it has ended for certain, and how.
    fn ended_by(&self) -> impl Iterator<Item = (u64, Act)> {
        self.leases.iter().filter_map(|(fence, lease)| {
            let is_given_back = lease.tries.iter().any(|tried| matches!(tried.what, Act::Release | Act::Retry));
            let ends = |tried: &&Try| match tried.outcome() {
                Answer::Applied => true,
                // By what of it was done before.
                Answer::AlreadyApplied => !is_given_back,
                _ => false,
            };
            let end = lease.tries.iter().filter(|tried| tried.what.is_final()).find(ends)?;
            Some((*fence, end.what))
        })
    }

    /// Whether an acknowledgement has ended it, or may have: one that somebody else got it after has not.
    fn may_be_gone(&self) -> bool {
        let may_end = |tried: &Try| tried.what == Act::Ack && tried.may_be_applied();
        self.leases.last_key_value().is_some_and(|(_, lease)| lease.tries.iter().any(may_end))
    }

    /// Whether it was refused for certain, each time.
    fn is_refused(&self) -> bool {
        self.receipts.is_empty() && self.enqueues > 0 && self.refusals == self.enqueues
    }

    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.leases.values().flat_map(|lease| &lease.claims).map(|(_, claim)| claim)
    }

    /// A higher fence that had been handed out by then.
    fn overtakes(&self, fence: u64, by: Moment) -> Option<u64> {
        self.leases.range(fence + 1..).find_map(|(other, lease)| {
            let is_earlier = lease.claims.iter().any(|(_, claim)| claim.ended < by);
            is_earlier.then_some(*other)
        })
    }

    fn last_seen(&self) -> String {
        let Some((fence, lease)) = self.leases.last_key_value() else { return "was never handed out".to_owned() };
        let done = lease.tries.last().map_or("nothing".to_owned(), |tried| format!("{:?}", tried.what));
        format!("was handed out last with fence {fence}, and {done} was done with it")
    }
}

impl Lease {
    /// Until when it is valid for certain.
    fn valid_until(&self, closing: Option<Moment>) -> Moment {
        let Some((_, claim)) = self.claims.first() else { return 0 };
        let extended = |tried: &&Try| tried.what == Act::Extend && tried.outcome() == Answer::Applied;
        let begins = self.tries.iter().filter(extended).map(|tried| tried.begun).chain([claim.begun]);
        let end = begins.max().unwrap_or_default() + claim.lease;
        let given_back = self.tries.iter().filter(|tried| tried.what != Act::Extend && tried.may_be_applied());
        given_back.map(|tried| tried.begun).chain(closing).fold(end, Moment::min)
    }

    /// When it has ended at the latest, by what was tried first; none if that is not known.
    fn latest_end(&self, tries: usize) -> Option<Moment> {
        let mut latest = self.claims.iter().map(|(_, claim)| claim.ended).max()?;
        for tried in self.tries[..tries].iter().filter(|tried| tried.what == Act::Extend) {
            match tried.answer? {
                (ended, Answer::Applied) => latest = latest.max(ended),
                // It may still be on its way.
                (_, Answer::Unknown) => return None,
                _ => {}
            }
        }
        Some(latest + self.claims.first()?.1.lease)
    }
}

impl Try {
    fn outcome(&self) -> Answer {
        self.answer.map_or(Answer::Unknown, |(_, answer)| answer)
    }

    fn may_be_applied(&self) -> bool {
        match self.outcome() {
            Answer::Applied | Answer::AlreadyApplied | Answer::Unknown => true,
            // A backend that has not heard the answer asks again, and by then somebody else may have what was given back.
            Answer::LeaseLost => matches!(self.what, Act::Release | Act::Retry),
            Answer::NotDone => false,
        }
    }
}
