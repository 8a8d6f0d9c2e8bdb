//! What a store said and when, and whether what is found after a crash agrees with it.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use super::disk::{Op, SimDisk};
use super::images::{Medium, Survival};
use super::random::Random;

/// The files of a disk.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The steps of a script, in the order in which the store got them, with what it is to contain after each.
#[derive(Clone, Debug)]
pub(super) struct History<C> {
    /// One more than there are steps.
    contents: Vec<C>,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// Where in the disk's log it was handed over.
    begun: usize,
    /// Where it was acknowledged as synced.
    acknowledged: Option<usize>,
}

/// What became of the images of one script.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) images: usize,
    /// Images of crashes while the store recovered from a crash.
    pub(super) second_images: usize,
    pub(super) wrong: Vec<String>,
}

/// Which images are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Random survivals at each position, besides the six fixed ones.
    pub(super) random: u64,
    /// At most about so many images: others are left out by the seed.
    pub(super) most: u64,
    /// One of so many images is crashed again while the store recovers from it.
    pub(super) second_of: u64,
    /// So many images of each such recovery.
    pub(super) second: u64,
}

const FIXED: [Survival; 6] = [
    Survival::All,
    Survival::None,
    Survival::Newest,
    Survival::AllButNewest,
    Survival::NewestTorn { even: true },
    Survival::NewestTorn { even: false },
];

impl<C: Clone + PartialEq + Debug> History<C> {
    pub(super) fn new(empty: C) -> Self {
        Self { contents: vec![empty], steps: Vec::new() }
    }

    /// The store gets the next step, after which it is to contain this. Its number.
    pub(super) fn begin(&mut self, disk: &SimDisk, content: C) -> usize {
        self.contents.push(content);
        self.steps.push(Step { begun: disk.position(), acknowledged: None });
        self.steps.len() - 1
    }

    /// The store says that the step is durable.
    pub(super) fn acknowledge(&mut self, disk: &SimDisk, step: usize) {
        self.steps[step].acknowledged = Some(disk.position());
    }

    /// Acknowledges each step as soon as it begins: what a store would do that answers before it commits.
    pub(super) fn premature(mut self) -> Self {
        for step in &mut self.steps {
            step.acknowledged = Some(step.begun);
        }
        self
    }

    /// What the store may contain if its system stopped at this position of the log.
    fn allowed(&self, position: usize) -> &[C] {
        let acknowledged = |step: &Step| step.acknowledged.is_some_and(|at| at <= position);
        let from = self.steps.iter().rposition(acknowledged).map_or(0, |step| step + 1);
        let to = self.steps.iter().take_while(|step| step.begun < position).count().max(from);
        &self.contents[from..=to]
    }

    /// Opens the store on crash images at every position of the disk's log, and compares.
    pub(super) fn check(&self, disk: &SimDisk, plan: Plan, read: impl Fn(&SimDisk) -> Result<C, String>) -> Verdict {
        let (base, log) = disk.history();
        let mut medium = Medium::new(base);
        let mut random = Random::new(plan.seed);
        let mut verdict = Verdict::default();
        let survivals = FIXED.len() as u64 + plan.random;
        let all = (log.len() as u64 + 1) * survivals;
        for position in 0..=log.len() {
            if position > 0 {
                medium.advance(&log[position - 1]);
            }
            let mut seen: Vec<Files> = Vec::new();
            for which in 0..survivals {
                let survival = FIXED.get(which as usize).copied().unwrap_or_else(|| Survival::Random(random.next()));
                if random.below(all) >= plan.most {
                    continue;
                }
                let image = medium.image(survival);
                // Where little is pending, many survivals are the same.
                if seen.contains(&image) {
                    continue;
                }
                seen.push(image.clone());
                verdict.images += 1;
                let where_it_is = || format!("seed {}, op {position} of {}, {survival:?}", plan.seed, log.len());
                let opened = SimDisk::with(image);
                let found = match read(&opened) {
                    Ok(found) => found,
                    Err(error) => {
                        verdict.wrong.push(format!("{}: {error}", where_it_is()));
                        continue;
                    }
                };
                if !self.allowed(position).contains(&found) {
                    let allowed = self.allowed(position);
                    verdict.wrong.push(format!(
                        "{}: {}",
                        where_it_is(),
                        self.difference(&found, allowed.len(), position)
                    ));
                } else if random.below(plan.second_of) == 0 {
                    verdict.second_images += crash_again(&opened, &found, plan, &mut random, &read, |problem| {
                        verdict.wrong.push(format!("{}, then {problem}", where_it_is()));
                    });
                }
            }
        }
        verdict
    }

    fn difference(&self, found: &C, allowed: usize, position: usize) -> String {
        let known = self.contents.iter().position(|content| content == found);
        let last = self.allowed(position).last();
        match known {
            Some(known) => format!("content after step {known} instead of one of {allowed} that are allowed"),
            None => format!("content that never was: {found:?}, not {last:?}"),
        }
    }
}

/// Crashes a store while it recovers from a crash. What it contains afterwards is what it contained then.
fn crash_again<C: PartialEq + Debug>(
    recovered: &SimDisk,
    content: &C,
    plan: Plan,
    random: &mut Random,
    read: &impl Fn(&SimDisk) -> Result<C, String>,
    mut wrong: impl FnMut(String),
) -> usize {
    let (base, log) = recovered.history();
    let wanted: Vec<(usize, u64)> =
        (0..plan.second).map(|_| (random.below(log.len() as u64 + 1) as usize, random.next())).collect();
    let mut medium = Medium::new(base);
    let mut images = 0;
    for position in 0..=log.len() {
        if position > 0 {
            medium.advance(&log[position - 1]);
        }
        for &(at, seed) in wanted.iter().filter(|(at, _)| *at == position) {
            images += 1;
            let survival = if seed % 4 == 0 { Survival::All } else { Survival::Random(seed) };
            let found = read(&SimDisk::with(medium.image(survival)));
            if found.as_ref() != Ok(content) {
                wrong(format!(
                    "op {at} of {} of its recovery, {survival:?}: {found:?} instead of {content:?}",
                    log.len()
                ));
            }
        }
    }
    images
}

/// Ops of each kind.
pub(super) struct Summary {
    ops: usize,
    writes: usize,
    lengths: usize,
    pub(super) syncs: usize,
}

pub(super) fn summary(log: &[Op]) -> Summary {
    let count = |is: fn(&Op) -> bool| log.iter().filter(|op| is(op)).count();
    Summary {
        ops: log.len(),
        writes: count(|op| matches!(op, Op::Write { .. })),
        lengths: count(|op| matches!(op, Op::SetLen { .. })),
        syncs: count(|op| matches!(op, Op::Sync { .. } | Op::FailedSync { .. } | Op::SyncFolder)),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ops, writes, lengths, syncs } = self;
        write!(f, "{ops} ops: {writes} writes, {lengths} changes of length, {syncs} syncs")
    }
}
