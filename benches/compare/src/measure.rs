//! Runs contenders in turns. The one trait of all workloads is here.

use std::time::{Duration, Instant};

use crate::cast::Cast;
use crate::results::{Allocator, Figure, Role, Row};

/// One kind of work and everyone who does it.
pub trait Workload {
    /// Short and stable, as `spawn/inside`; what is before the slash is its group.
    fn name(&self) -> String;

    /// What one operation is, or what the figures mean. A sentence without its full stop.
    fn what(&self) -> String;

    /// What a run measures. Less is better for all of them; contenders are compared by the first.
    fn figures(&self) -> &'static [(&'static str, Unit)] {
        PER_OPERATION
    }

    /// Whether to repeat this with another allocator.
    fn allocates(&self) -> bool {
        true
    }

    /// The most repeats that are worth their time.
    fn max_repeats(&self) -> usize {
        usize::MAX
    }

    /// Everyone, ready to run. Called once, right before the runs.
    fn contenders(&self, cast: &Cast) -> Vec<Contender>;
}

pub type Unit = &'static str;

/// The figure of workloads that are only timed.
pub const PER_OPERATION: &[(&str, Unit)] = &[("time", "ns/op")];

/// Does a workload's work.
pub struct Contender {
    name: &'static str,
    role: Role,
    /// Does the work once, checks that all of it was done, and gives a value for each of the workload's figures.
    run: Box<dyn FnMut() -> Vec<f64>>,
}

impl Contender {
    /// Gives one value for each figure of its workload.
    pub fn new(name: &'static str, role: Role, run: impl FnMut() -> Vec<f64> + 'static) -> Self {
        Self { name, role, run: Box::new(run) }
    }

    /// Says how long `operations` took, without set-up and tear-down.
    pub fn timed(name: &'static str, role: Role, operations: u64, mut run: impl FnMut() -> Duration + 'static) -> Self {
        Self::new(name, role, move || vec![run().as_nanos() as f64 / operations as f64])
    }
}

/// How often and how much to run.
#[derive(Clone, Copy)]
pub struct Plan {
    pub warmups: usize,
    /// At least, unless a workload says that fewer are enough.
    pub min_repeats: usize,
    /// At most. More than `min_repeats` only while a workload has taken less than `enough`.
    pub max_repeats: usize,
    pub enough: Duration,
}

impl Plan {
    pub const FULL: Self = Self { warmups: 2, min_repeats: 15, max_repeats: 51, enough: Duration::from_secs(4) };
    pub const QUICK: Self = Self { warmups: 1, min_repeats: 3, max_repeats: 3, enough: Duration::ZERO };
}

/// Every contender once, then every contender again: whatever disturbs the machine for a while disturbs them all. A
/// different one begins each time. With `only`, the contender of that name, if there is one.
pub fn measure(workload: &dyn Workload, cast: &Cast, plan: Plan, allocator: Allocator, only: Option<&str>) -> Vec<Row> {
    let mut contenders = workload.contenders(cast);
    contenders.retain(|contender| only.is_none_or(|name| contender.name == name));
    let figures = workload.figures();
    let most = plan.max_repeats.min(workload.max_repeats());
    let least = plan.min_repeats.min(most);
    // Of each contender, of each figure.
    let mut samples = vec![vec![Vec::with_capacity(most); figures.len()]; contenders.len()];
    let begun = Instant::now();
    for repeat in 0..plan.warmups + most {
        if repeat >= plan.warmups + least && begun.elapsed() > plan.enough {
            break;
        }
        for turn in 0..contenders.len() {
            let index = (repeat + turn) % contenders.len();
            let values = (contenders[index].run)();
            assert_eq!(values.len(), figures.len(), "{}: a value for each figure", contenders[index].name);
            if repeat >= plan.warmups {
                samples[index].iter_mut().zip(values).for_each(|(samples, value)| samples.push(value));
            }
        }
    }
    let rows = contenders.iter().zip(samples).map(|(contender, samples)| Row {
        workload: workload.name(),
        contender: contender.name.to_owned(),
        role: contender.role,
        allocator,
        repeats: samples[0].len(),
        ratio: None,
        figures: figures.iter().zip(samples).map(|(&(name, unit), samples)| Figure::of(name, unit, samples)).collect(),
    });
    let mut rows: Vec<_> = rows.collect();
    compare(&mut rows);
    rows
}

/// Fills in how everyone does in comparison with the best peer.
fn compare(rows: &mut [Row]) {
    let peers = rows.iter().filter(|row| row.role == Role::Peer);
    let Some(best) = peers.map(|row| row.figures[0].median).min_by(f64::total_cmp) else { return };
    for row in rows {
        let median = row.figures[0].median;
        row.ratio = (median > 0.0).then(|| best / median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted;

    impl Workload for Counted {
        fn name(&self) -> String {
            "counted/calls".to_owned()
        }

        fn what(&self) -> String {
            "a call".to_owned()
        }

        fn contenders(&self, _: &Cast) -> Vec<Contender> {
            let of = |name, role, value: f64| Contender::new(name, role, move || vec![value]);
            vec![of("ours", Role::Ours, 10.0), of("slow", Role::Peer, 40.0), of("fast", Role::Peer, 20.0)]
        }
    }

    #[test]
    fn ratio_is_to_the_best_peer_and_warm_ups_are_not_counted() {
        let plan = Plan { warmups: 2, min_repeats: 3, max_repeats: 5, enough: Duration::ZERO };
        let rows = measure(&Counted, &Cast::new(1), plan, Allocator::System, None);
        let ratios: Vec<_> = rows.iter().map(|row| (row.contender.as_str(), row.ratio, row.repeats)).collect();
        assert_eq!(ratios, [("ours", Some(2.0), 3), ("slow", Some(0.5), 3), ("fast", Some(1.0), 3)]);
        let rows = measure(&Counted, &Cast::new(1), plan, Allocator::System, Some("slow"));
        assert_eq!(rows.iter().map(|row| row.contender.as_str()).collect::<Vec<_>>(), ["slow"]);
    }
}
