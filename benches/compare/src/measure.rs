//! Runs contenders in turns, and says what each took.

use std::fmt;
use std::fs;
use std::time::Duration;

/// One workload and everyone who does it.
pub struct Comparison {
    pub name: String,
    pub contenders: Vec<Contender>,
}

pub struct Contender {
    name: &'static str,
    role: Role,
    /// How many operations a run does.
    operations: u64,
    /// Does the workload once, checks that all of it was done, and says how long it took without set-up and tear-down.
    run: Box<dyn FnMut() -> Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Ours,
    /// Does the same work: the others are measured against the best of these.
    Peer,
    /// Does less, as its name says.
    Reference,
}

/// How often, how much and what to run.
pub struct Plan {
    pub warmups: usize,
    pub repeats: usize,
    /// Of the operations of a run.
    pub scale: f64,
    /// Part of the names of the workloads to run.
    pub only: Option<String>,
}

/// Nanoseconds for an operation, over the repeats.
struct Spread {
    p10: f64,
    median: f64,
    p90: f64,
}

/// Of one comparison; displays as a table.
pub struct Results {
    name: String,
    rows: Vec<(Contender, Spread)>,
}

impl Plan {
    pub fn includes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }
}

impl Comparison {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), contenders: Vec::new() }
    }

    pub fn ours(self, name: &'static str, operations: u64, run: impl FnMut() -> Duration + 'static) -> Self {
        self.with(Contender { name, role: Role::Ours, operations, run: Box::new(run) })
    }

    pub fn peer(self, name: &'static str, operations: u64, run: impl FnMut() -> Duration + 'static) -> Self {
        self.with(Contender { name, role: Role::Peer, operations, run: Box::new(run) })
    }

    pub fn reference(self, name: &'static str, operations: u64, run: impl FnMut() -> Duration + 'static) -> Self {
        self.with(Contender { name, role: Role::Reference, operations, run: Box::new(run) })
    }

    fn with(mut self, contender: Contender) -> Self {
        self.contenders.push(contender);
        self
    }

    /// Every contender once, then every contender again: whatever disturbs the machine for a while disturbs them all. A
    /// different one begins each time.
    pub fn run(self, plan: &Plan) -> Results {
        let Self { name, mut contenders } = self;
        let mut samples = vec![Vec::with_capacity(plan.repeats); contenders.len()];
        for repeat in 0..plan.warmups + plan.repeats {
            for turn in 0..contenders.len() {
                let index = (repeat + turn) % contenders.len();
                let Contender { operations, run, .. } = &mut contenders[index];
                let took = run().as_nanos() as f64 / *operations as f64;
                if repeat >= plan.warmups {
                    samples[index].push(took);
                }
            }
        }
        Results { name, rows: contenders.into_iter().zip(samples.into_iter().map(Spread::of)).collect() }
    }
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |part: f64| samples[((samples.len() - 1) as f64 * part).round() as usize];
        Self { p10: at(0.1), median: at(0.5), p90: at(0.9) }
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.name)?;
        writeln!(f, "| contender | ns/op, median | p10 .. p90 | M op/s | times the best peer's rate |")?;
        writeln!(f, "|---|---:|---:|---:|---:|")?;
        let peers = self.rows.iter().filter(|(contender, _)| contender.role == Role::Peer);
        let best = peers.map(|(_, spread)| spread.median).fold(f64::INFINITY, f64::min);
        for (contender, Spread { p10, median, p90 }) in &self.rows {
            let (name, rate, ratio) = (contender.name, 1e3 / median, best / median);
            writeln!(f, "| {name} | {median:.1} | {p10:.1} .. {p90:.1} | {rate:.3} | {ratio:.2} |")?;
        }
        Ok(())
    }
}

/// What the numbers were taken on, and how busy it was.
pub struct System {
    cpus: usize,
    model: String,
    kernel: String,
    load: String,
}

impl System {
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let model = read("/proc/cpuinfo").lines().find(|line| line.starts_with("model name")).unwrap_or("").to_owned();
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            model: model.split(':').next_back().unwrap_or("").trim().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease"),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpus, model, kernel, load } = self;
        write!(f, "{cpus} CPUs ({model}), kernel {kernel}, load averages {load}")
    }
}
