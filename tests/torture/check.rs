//! The outside checker: knows only what the children have said before they died, and what is in the store at the end.
//!
//! What it holds the library to:
//!
//! - What was acknowledged ends: well, as a dead letter, or because it was cancelled. In a lane that acknowledges early, only
//!   the newest may be missing. A cancellation whose process died before it could say how that went may have been stored.
//! - An end that was stored is for good: the command does not run again. An end is stored for certain once its result was
//!   handed out, where the lane says so; elsewhere once something that was submitted later was acknowledged as stored, since
//!   changes are stored in their order; and at a clean stop. No time is involved.
//! - A command does not run twice at a time, and not after it was refused, or cancelled before it had started.
//! - First in first out, across all processes, in a lane with one command at a time and one submitter.
//! - An idempotency key has one result, and an id one command.
//! - A command that has failed for good has one dead letter.
//! - A command is given up as a poison only if it was running at so many unclean ends, and does not run after that.
//! - An end is taken for unclean if the process was killed, and for clean if it was not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use corelane::{StoredCommand, StoredDeadLetter};

use crate::child::{ATTEMPTS, CRASH_LIMIT, FIFO, LOOSE, MIXED, SURE};
use crate::command::{Act, Job};
use crate::report::Event;

#[derive(Default)]
pub(crate) struct Checker {
    submissions: BTreeMap<u64, Submission>,
    /// By the names of their commands.
    works: HashMap<String, Work>,
    /// Names by ids.
    names: HashMap<String, String>,
    /// By ids.
    crashes: HashMap<String, Crashes>,
    /// The last of its lane that has started, of all processes.
    last_of_fifo: u64,
    /// How the process before has ended, if that is certain.
    was_clean: Option<bool>,
    violations: Vec<String>,
    pub(crate) counts: Counts,
}

/// What a run has covered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) killed: u32,
    /// Before they had taken the store over.
    pub(crate) killed_early: u32,
    pub(crate) stopped: u32,
    pub(crate) accepted: u32,
    pub(crate) handed_out: u32,
    /// Commands that were begun again, by a later process.
    pub(crate) run_again: u32,
    pub(crate) cancelled: u32,
    /// Results that a submission got under the key of another one.
    pub(crate) shared: u32,
    /// Commands that ran alone, since they were there at too many unclean ends.
    pub(crate) suspects: u64,
    pub(crate) letters: usize,
    /// Of those: commands that were there at so many unclean ends.
    pub(crate) condemned: usize,
    /// Acknowledged early, and lost.
    pub(crate) lost_loose: usize,
    /// Gone, and about to be cancelled when their processes died.
    pub(crate) maybe_cancelled: usize,
}

struct Submission {
    name: String,
    lane: String,
    fails: bool,
    accepted: bool,
    /// It is certain that it is stored.
    stored: bool,
    /// It is certain that it was not accepted.
    refused: bool,
    cancelled: bool,
    /// It was about to be cancelled when its process died, and may have been: the store knows that before anybody can say it.
    cancelling: bool,
    /// Its command has come to its end since.
    ended: bool,
}

#[derive(Default)]
struct Work {
    lane: String,
    number: u64,
    /// Submissions since its last end.
    open: Vec<u64>,
    /// A run has ended well.
    good: bool,
    /// What is handed out under its key.
    token: Option<String>,
    over: Option<Over>,
    last_process: Option<u64>,
}

/// It has ended, and is not to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// In this process; the next one may not know.
    Here,
    ForGood,
}

/// Unclean ends of processes in which a command may have been running, and in which it was.
#[derive(Clone, Copy, Default)]
struct Crashes {
    possible: u32,
    certain: u32,
}

/// What becomes certain when something later is stored.
enum Soon {
    Over(String),
    Accepted(u64),
}

/// What is known of the process that is looked at.
#[derive(Default)]
struct Now {
    process: u64,
    built: bool,
    soon: VecDeque<(usize, Soon)>,
    submitted_at: HashMap<u64, usize>,
    /// Names of what runs.
    running: HashSet<String>,
    /// Ids of what the store was told that it runs.
    marked: BTreeSet<String>,
    /// Ids of what runs.
    started: BTreeSet<String>,
    /// Names.
    cancelled: HashSet<String>,
    cancelled_unstarted: HashSet<String>,
    last_of_fifo: u64,
    /// By ids.
    attempts: HashMap<String, u32>,
}

impl Checker {
    /// Looks at what one process has said, which was killed or has stopped.
    pub(crate) fn process(&mut self, process: u64, events: Vec<Event>, killed: bool) {
        // Who submits and waits may be late to say what was before that; what runs, and what is stored, may not.
        let stopped = events.iter().rev().find(|event| !event.is_of_submitter());
        let stopped = matches!(stopped, Some(Event::Stopped));
        let mut now = Now { process, ..Now::default() };
        for (at, event) in events.into_iter().enumerate() {
            self.event(at, event, &mut now);
        }
        if stopped {
            self.counts.stopped += 1;
            std::mem::take(&mut now.soon).into_iter().for_each(|(_, soon)| self.is_certain(soon));
            for name in now.cancelled {
                self.work(&name).over = Some(Over::ForGood);
            }
            self.was_clean = Some(true);
            return;
        }
        if !killed {
            self.violation(&now, "it has ended, and was neither killed nor stopped".into());
        }
        self.counts.killed += 1;
        self.counts.killed_early += u32::from(!now.built);
        self.was_clean = match self.was_clean {
            _ if now.built => Some(false),
            // It may or may not have come to the point from which on it counts.
            Some(true) => None,
            before => before,
        };
        for (_, soon) in now.soon {
            if let Soon::Over(name) = soon {
                self.work(&name).over = None;
            }
        }
        for id in now.marked {
            let crashes = self.crashes.entry(id.clone()).or_default();
            crashes.possible += 1;
            crashes.certain += u32::from(now.started.contains(&id));
        }
    }

    fn event(&mut self, at: usize, event: Event, now: &mut Now) {
        match event {
            Event::Built { unclean, parked, suspects, .. } => {
                now.built = true;
                self.counts.suspects += suspects;
                if self.was_clean == Some(unclean) {
                    self.violation(now, format!("it says of the process before that it ended uncleanly: {unclean}"));
                }
                if parked > 0 {
                    self.violation(now, format!("{parked} commands are parked"));
                }
            }
            Event::Submitting { number, name, lane, fails } => {
                now.submitted_at.insert(number, at);
                let work = self.work(&name);
                (work.lane, work.number) = (lane.clone(), number);
                work.open.push(number);
                let new = Submission {
                    name,
                    lane,
                    fails,
                    accepted: false,
                    stored: false,
                    refused: false,
                    cancelled: false,
                    cancelling: false,
                    ended: false,
                };
                self.submissions.insert(number, new);
            }
            Event::Accepted { number, id } => self.accepted(number, id, at, now),
            Event::Refused { number, certain } => self.submission(number).refused = certain,
            Event::Marking { id } => _ = now.marked.insert(id),
            Event::Unmarked { id } => _ = now.marked.remove(&id),
            Event::Started { name, id, attempt, .. } => self.started(name, id, attempt, now),
            Event::Ended { name, id, good } => {
                now.running.remove(&name);
                now.started.remove(&id);
                let work = self.work(&name);
                work.good |= good;
                for number in std::mem::take(&mut work.open) {
                    self.submission(number).ended = true;
                }
            }
            Event::Left { name, id } => {
                now.running.remove(&name);
                now.started.remove(&id);
            }
            Event::HandedOut { number, token } => self.handed_out(number, token, at, now),
            Event::Cancelled { number, started } => {
                self.counts.cancelled += 1;
                let submission = self.submission(number);
                (submission.cancelled, submission.cancelling) = (true, false);
                let name = submission.name.clone();
                now.cancelled.insert(name.clone());
                if !started {
                    now.cancelled_unstarted.insert(name);
                }
            }
            Event::Replaying { id } => {
                // It begins anew.
                now.attempts.remove(&id);
                self.crashes.remove(&id);
                if let Some(name) = self.names.get(&id).cloned() {
                    self.work(&name).over = None;
                }
            }
            Event::Cancelling { number } => self.submission(number).cancelling = true,
            Event::Ready | Event::Stopped => {}
            Event::Note { text } => self.violation(now, text),
        }
    }

    fn accepted(&mut self, number: u64, id: String, at: usize, now: &mut Now) {
        self.counts.accepted += 1;
        let submission = self.submission(number);
        submission.accepted = true;
        let (name, lane) = (submission.name.clone(), submission.lane.clone());
        let is_keyed = is_keyed(&name);
        self.belongs(id, &name, now);
        if lane == LOOSE {
            now.soon.push_back((at, Soon::Accepted(number)));
            return;
        }
        self.submission(number).stored = true;
        // Of one that another submission has brought, the store has heard nothing now.
        let submitted_at = if is_keyed { 0 } else { now.submitted_at[&number] };
        let certain = now.soon.partition_point(|(at, _)| *at < submitted_at);
        now.soon.drain(..certain).for_each(|(_, soon)| self.is_certain(soon));
    }

    fn started(&mut self, name: String, id: String, attempt: u32, now: &mut Now) {
        let crashes = self.crashes.get(&id).copied().unwrap_or_default();
        let is_suspect = crashes.possible + 1 >= CRASH_LIMIT;
        let work = self.work(&name);
        let (over, number, lane) = (work.over, work.number, work.lane.clone());
        let again = work.last_process.replace(now.process).is_some_and(|last| last != now.process);
        self.counts.run_again += u32::from(again);
        let refused = !is_keyed(&name) && self.submissions.get(&number).is_some_and(|submission| submission.refused);
        let attempts = if lane == MIXED { ATTEMPTS } else { 1 };
        let before = now.attempts.insert(id.clone(), attempt);
        let mut wrong = Vec::new();
        match over {
            Some(Over::Here) => wrong.push("its result was handed out"),
            Some(Over::ForGood) => wrong.push("its end was stored"),
            None => {}
        }
        let found = [
            (!now.running.insert(name.clone()), "it runs already"),
            (refused, "it was refused"),
            (now.cancelled_unstarted.contains(&name), "it was cancelled before it had started"),
            (crashes.certain >= CRASH_LIMIT, "it was there at too many unclean ends"),
            (attempt > attempts || before.is_some_and(|before| before >= attempt), "it has no such attempt"),
        ];
        wrong.extend(found.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)));
        // Suspects run alone, before everything else.
        if lane == FIFO && !is_suspect {
            if number <= now.last_of_fifo || (!again && number <= self.last_of_fifo) {
                wrong.push("a later one has run before");
            }
            now.last_of_fifo = now.last_of_fifo.max(number);
            self.last_of_fifo = self.last_of_fifo.max(number);
        }
        if !wrong.is_empty() {
            self.violation(now, format!("{name} ({id}, {lane}) has started, and {}", wrong.join(", ")));
        }
        self.belongs(id.clone(), &name, now);
        now.started.insert(id);
    }

    /// An id is of one command, for ever: what that does elsewhere is known by it.
    fn belongs(&mut self, id: String, name: &str, now: &Now) {
        let before = self.names.entry(id.clone()).or_insert_with(|| name.to_owned());
        if before != name {
            let text = format!("{id} is {name}, and was {before}");
            self.violation(now, text);
        }
    }

    fn handed_out(&mut self, number: u64, token: Option<String>, at: usize, now: &mut Now) {
        self.counts.handed_out += 1;
        let submission = self.submission(number);
        // Too late to be cancelled.
        submission.cancelling = false;
        let (name, lane) = (submission.name.clone(), submission.lane.clone());
        if is_keyed(&name) {
            // The key of one that has failed is free.
            let Some(token) = token else { return };
            let before = self.work(&name).token.replace(token.clone());
            self.counts.shared += u32::from(before.is_some());
            if let Some(before) = before.filter(|before| *before != token) {
                self.violation(now, format!("{name} has the results {before} and {token}"));
            }
        }
        let work = self.work(&name);
        if lane == SURE {
            work.over = Some(Over::ForGood);
        } else {
            work.over = Some(Over::Here);
            now.soon.push_back((at, Soon::Over(name)));
        }
    }

    fn is_certain(&mut self, soon: Soon) {
        match soon {
            Soon::Over(name) => self.work(&name).over = Some(Over::ForGood),
            Soon::Accepted(number) => self.submission(number).stored = true,
        }
    }

    /// Looks at what the store has when everything has settled, and the last process was stopped.
    pub(crate) fn settled(&mut self, process: u64, commands: &[StoredCommand], letters: &[StoredDeadLetter]) {
        let now = Now { process, ..Now::default() };
        for command in commands {
            self.violation(&now, format!("{} is still stored: {}", command.id, command.payload));
        }
        let mut with_letter = HashSet::new();
        let mut ids = HashSet::new();
        self.counts.condemned = 0;
        self.counts.letters = letters.len();
        for letter in letters {
            let job = serde_json::from_value::<Job>(letter.details["payload"].clone()).ok();
            let Some(job) = job.filter(|_| ids.insert(&letter.command_id)) else {
                self.violation(&now, format!("{} has two dead letters, or no payload", letter.command_id));
                continue;
            };
            let crashed = letter.details["reason"] == "crashed";
            self.counts.condemned += usize::from(crashed);
            let possible = self.crashes.get(&letter.command_id).map_or(0, |crashes| crashes.possible);
            if crashed && possible < CRASH_LIMIT {
                let text = format!("{} was given up after {possible} unclean ends", job.name);
                self.violation(&now, text);
            }
            let fails = matches!(job.act, Act::Fail | Act::Panic | Act::FailBefore(_) | Act::FailSometimes);
            if !crashed && !fails {
                self.violation(&now, format!("{} has a dead letter: {}", job.name, letter.error));
            }
            with_letter.insert(job.name);
        }
        let mut lost = Vec::new();
        (self.counts.lost_loose, self.counts.maybe_cancelled) = (0, 0);
        for (number, submission) in self.submissions.iter().filter(|(_, it)| it.accepted && !it.cancelled) {
            let Submission { name, lane, fails, stored, ended, cancelling, .. } = submission;
            let has_ended = *ended || self.works.get(name).is_some_and(|work| work.good);
            if with_letter.contains(name) || (has_ended && !*fails) {
                continue;
            }
            if *cancelling {
                self.counts.maybe_cancelled += 1;
            } else if has_ended {
                lost.push(format!("{name} ({lane}) has failed, and its dead letter is lost"));
            } else if *stored {
                lost.push(format!("{name} ({lane}), submission {number}, was acknowledged, and is lost"));
            } else {
                self.counts.lost_loose += 1;
            }
        }
        lost.into_iter().for_each(|text| self.violation(&now, text));
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    fn violation(&mut self, now: &Now, text: String) {
        self.violations.push(format!("process {}: {text}", now.process));
    }

    fn submission(&mut self, number: u64) -> &mut Submission {
        self.submissions.get_mut(&number).expect("what becomes of a submission comes after it")
    }

    fn work(&mut self, name: &str) -> &mut Work {
        self.works.entry(name.to_owned()).or_default()
    }
}

fn is_keyed(name: &str) -> bool {
    name.starts_with("key-")
}
