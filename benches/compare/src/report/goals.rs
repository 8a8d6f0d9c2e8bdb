//! What the design set out to reach, and what was measured. The goals are constants; so is what decides whether they are met.

use super::text::{number, quantity, time};
use crate::results::{Allocator, Figure, Results, Row};
use crate::workloads::{control, durable, managers, memory, observed, wake};

struct Goal {
    work: &'static str,
    goal: &'static str,
    measured: fn(&Results) -> Option<Measured>,
}

struct Measured {
    met: bool,
    text: String,
}

const GOALS: &[Goal] = &[
    Goal {
        work: "spawn and join from a worker",
        goal: ">= 2.5x the better of tokio and async-executor",
        measured: |results| faster(results, "spawn/inside", "corelane", &["tokio", "async-executor"], 2.5),
    },
    Goal {
        work: "spawn and join from a worker",
        goal: ">= 1x rayon's spawn, which has nothing to join",
        measured: |results| faster(results, "spawn/inside", "corelane", &["rayon, no handles"], 1.0),
    },
    Goal {
        work: "spawn from outside, 1 producer",
        goal: ">= 2x the better of tokio and async-executor",
        measured: |results| faster(results, "spawn/outside-idle", "corelane", &["tokio", "async-executor"], 2.0),
    },
    Goal {
        work: "seed-API command, from submission to JSON result, metrics on, six lanes",
        goal: ">= 20x a3s-lane 0.5.1",
        measured: |results| faster(results, "seed/6-lanes/on", "corelane", &["a3s-lane 0.5.1"], 20.0),
    },
    Goal {
        work: "seed-API command, from submission to JSON result, metrics on, six lanes",
        goal: ">= 10,000x a3s-lane 0.2.1",
        measured: |results| faster(results, "seed/6-lanes/on", "corelane", &["a3s-lane 0.2.1"], 10_000.0),
    },
    Goal {
        work: "control lane under 1 M queued low commands of 1 us, open loop",
        goal: "p99 < 5 us from submission to start",
        measured: |results| {
            let figure = system(results, "control/1us", "corelane")?.figure(control::FROM_SUBMIT_P99)?;
            Some(Measured { met: figure.median < 5.0, text: quantity(figure) })
        },
    },
    Goal {
        work: "low commands that a visible control command sees started before it",
        goal: "<= 1 for each worker",
        measured: |results| {
            let figure = system(results, "control/1us", "corelane")?.figure(control::INVERSIONS)?;
            let met = figure.median <= results.workers as f64;
            Some(Measured { met, text: format!("{} of all workers, on average", number(figure.median)) })
        },
    },
    Goal {
        work: "from idle to running, parked worker",
        goal: "a bare unpark + 2 us",
        measured: |results| {
            let ours = system(results, "wake/idle", "corelane")?.figure(wake::P50)?.median;
            let bare = system(results, "wake/idle", wake::BARE)?.figure(wake::P50)?.median;
            let text = format!("{}, a bare unpark {}", time(ours * 1e3), time(bare * 1e3));
            Some(Measured { met: ours <= bare + 2.0, text })
        },
    },
    Goal {
        work: "all metrics and the flight recorder, in comparison with neither",
        goal: "<= 5 % of a no-op command",
        measured: |results| {
            let of = |watched| Some(system(results, observed::NAME, watched)?.figures[0].median);
            let nobody = of(observed::NOBODY)?;
            let more = |time: f64| (time / nobody - 1.0) * 100.0;
            let (metrics, all) = (more(of(observed::FULL)?), more(of(observed::ALL)?));
            let text = format!("{} % more, of that {} for the metrics", number(all), number(metrics));
            Some(Measured { met: all <= 5.0, text })
        },
    },
    Goal {
        work: "metrics and a subscriber that reads all events, in comparison with neither",
        goal: "<= 5 % of a no-op command",
        measured: |results| {
            let of = |observed| Some(system(results, observed, "corelane")?.figures[0].median);
            let (off, subscribed) = (of("seed/1-lane/off")?, of("seed/1-lane/subscribed")?);
            let more = (subscribed / off - 1.0) * 100.0;
            Some(Measured { met: more <= 5.0, text: format!("{} % more", number(more)) })
        },
    },
    Goal {
        work: "10,000 idle managers",
        goal: "0 wake-ups a second",
        measured: |results| {
            let figure = counted(results, "managers/idle", "corelane", managers::WAKE_UPS)?;
            let threads = counted(results, "managers/idle", "corelane", managers::THREADS)?;
            let text = format!("{} a second, {} threads more", number(figure.median), number(threads.median));
            Some(Measured { met: figure.median == 0.0, text })
        },
    },
    Goal {
        work: "10,000 idle managers",
        goal: "< 4 KiB each",
        measured: |results| {
            let figure = counted(results, "managers/idle", "corelane", managers::KIB)?;
            Some(Measured { met: figure.median < 4.0, text: quantity(figure) })
        },
    },
    Goal {
        work: "memory of a queued command",
        goal: "<= 256 B beside its own",
        measured: |results| {
            let typed = counted(results, "memory/queued", "corelane, typed", memory::QUEUED)?.median;
            let boxed = counted(results, "memory/queued", "corelane, boxed", memory::QUEUED)?.median;
            let own = size_of::<u64>() as f64;
            let (typed, boxed) = (typed - own, boxed - own);
            let text = format!("{} B typed, {} B boxed", number(typed), number(boxed));
            Some(Measured { met: typed <= 256.0 && boxed <= 256.0, text })
        },
    },
    Goal {
        work: "allocations of a command",
        goal: "1 typed, 2 boxed",
        measured: |results| {
            let typed = counted(results, "memory/queued", "corelane, typed", memory::ALLOCATIONS)?.median;
            let boxed = counted(results, "memory/queued", "corelane, boxed", memory::ALLOCATIONS)?.median;
            let text = format!("{} typed, {} boxed", number(typed), number(boxed));
            // What many commands share, such as a block of the queue, is no allocation of a command.
            Some(Measured { met: typed < 1.5 && boxed < 2.5, text })
        },
    },
    Goal {
        work: "durable submission, acknowledged when synced, 1 to 64 producers",
        goal: ">= 0.8x redb alone with the same bytes and group commit",
        measured: |results| each_faster(results, "durable/submit-", &PRODUCERS, "corelane", durable::REDB, 0.8),
    },
    Goal {
        work: "durable batch of equal size: 1, 64 and 1,024 commands saved and removed",
        goal: ">= 0.8x redb alone with the same bytes",
        measured: |results| each_faster(results, "durable/batch-", &BATCHES, durable::ALONE, durable::REDB, 0.8),
    },
    Goal {
        work: "durable submission beside 1,000 stored commands, 64 producers",
        goal: ">= 100x a3s-lane 0.5.1, which does not sync",
        measured: |results| faster(results, "durable/submit-64-beside-1000", "corelane", &[durable::A3S_05], 100.0),
    },
    Goal {
        work: "recovery of 1 M pending commands",
        goal: ">= 300,000 a second",
        measured: |results| {
            let rate = 1e9 / system(results, "durable/recovery-1M", "corelane")?.figures[0].median;
            Some(Measured { met: rate >= 300_000.0, text: format!("{} a second", number(rate)) })
        },
    },
    Goal {
        work: "from 1 to 16 workers",
        goal: ">= 80 % efficiency at 16, where there are 16 CPUs",
        measured: |_| None,
    },
];

fn system<'a>(results: &'a Results, workload: &str, contender: &str) -> Option<&'a Row> {
    results.row(workload, contender, Allocator::System)
}

fn counted<'a>(results: &'a Results, workload: &str, contender: &str, figure: &str) -> Option<&'a Figure> {
    results.row(workload, contender, Allocator::Counting)?.figure(figure)
}

/// Against the best of these.
fn faster(results: &Results, workload: &str, ours: &str, peers: &[&str], times: f64) -> Option<Measured> {
    let median = |contender| Some(system(results, workload, contender)?.figures[0].median);
    let best = peers.iter().map(|peer| median(peer)).collect::<Option<Vec<_>>>()?.into_iter().min_by(f64::total_cmp)?;
    let ratio = best / median(ours)?;
    Some(Measured { met: ratio >= times, text: format!("{}x", number(ratio)) })
}

/// Several workloads with the same goal: all of them are to meet it.
fn each_faster(results: &Results, prefix: &str, sizes: &[u32], ours: &str, peer: &str, times: f64) -> Option<Measured> {
    let each = sizes.iter().map(|size| faster(results, &format!("{prefix}{size}"), ours, &[peer], times));
    let each = each.collect::<Option<Vec<_>>>()?;
    let texts: Vec<_> = each.iter().map(|measured| measured.text.as_str()).collect();
    Some(Measured { met: each.iter().all(|measured| measured.met), text: texts.join(", ") })
}

const PRODUCERS: [u32; 4] = [1, 4, 16, 64];
const BATCHES: [u32; 3] = [1, 64, 1024];

pub fn table(results: &Results) -> String {
    let mut table = "| work | goal | measured | |\n|---|---|---|---|\n".to_owned();
    for Goal { work, goal, measured } in GOALS {
        let (text, met) = match measured(results) {
            Some(Measured { met: true, text }) => (text, "met"),
            Some(Measured { met: false, text }) => (text, "**missed**"),
            None => ("not measured".to_owned(), ""),
        };
        table += &format!("| {work} | {goal} | {text} | {met} |\n");
    }
    table.trim_end().to_owned()
}

/// How many of them were met, in a sentence.
pub fn missed(results: &Results) -> String {
    let measured: Vec<_> = GOALS.iter().filter_map(|goal| (goal.measured)(results)).collect();
    let met = measured.iter().filter(|measured| measured.met).count();
    format!(
        "Of {} goals, {met} are met and {} missed; {} could not be measured here.",
        GOALS.len(),
        measured.len() - met,
        GOALS.len() - measured.len()
    )
}
