//! The tables: one for each server and kind of work.

use std::fmt::Write as _;

use crate::measure::{Results, Row, Times};
use crate::plan::{BACKENDS, Backend, Contender, Kind};

const INTRODUCTION: &str = include_str!("report.md");

pub fn text(results: &Results) -> String {
    let Results { date, commit, machine, seconds, repeats, .. } = results;
    let load = |load: [f64; 3]| format!("{:.2}", load[0]);
    let mut text = String::from(INTRODUCTION);
    let _ = writeln!(
        text,
        "\n{date}, commit {commit}, {} CPUs ({}), Linux {}, stores on {}; {repeats} repeats; took {seconds} s; load average \
         {} before.",
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.stores_on,
        load(results.load_before),
    );
    for (server, version) in &results.servers {
        let _ = writeln!(text, "- {server} {version}");
    }
    for left_out in &results.left_out {
        let _ = writeln!(text, "- left out: {left_out}");
    }
    for backend in BACKENDS {
        for kind in Kind::ALL {
            table(&mut text, results, backend, kind);
        }
    }
    text
}

fn table(text: &mut String, results: &Results, backend: Backend, kind: Kind) {
    let rows: Vec<_> = results.rows.iter().filter(|row| row.work.backend == backend && row.work.kind == kind).collect();
    let Some(first) = rows.first() else { return };
    let peer = first.work.contenders().into_iter().find(|contender| *contender != Contender::Corelane);
    let _ = write!(text, "\n## {}: {}\n\n| batch | processes | corelane, commands/s |", backend.name(), kind.name());
    if kind == Kind::Workers {
        text.push_str(" enqueued, 1/s | worked off, 1/s |");
    }
    if let Some(peer) = peer {
        let _ = write!(text, " {}, commands/s |", peer.name());
        if kind == Kind::Workers {
            text.push_str(" enqueued, 1/s | worked off, 1/s |");
        }
        text.push_str(" corelane / it |");
    }
    text.push('\n');
    let columns = text.lines().last().map_or(0, |line| line.matches('|').count() - 1);
    let _ = writeln!(text, "|{}", "---:|".repeat(columns));
    for ours in rows.iter().filter(|row| row.contender == Contender::Corelane) {
        let is_theirs = |row: &&&Row| row.work == ours.work && row.contender != Contender::Corelane;
        let theirs = rows.iter().find(is_theirs).filter(|row| !row.times.is_empty());
        let _ = write!(text, "| {} | {} | {}", ours.work.batch, ours.work.processes, cells(ours));
        if let Some(theirs) = theirs {
            let ratio = median(ours, Times::total) / median(theirs, Times::total);
            let _ = write!(text, " | {} | {ratio:.2}", cells(theirs));
        }
        text.push_str(" |\n");
    }
}

fn cells(row: &Row) -> String {
    let (slowest, fastest) = (rate(row, Times::total, 0.1), rate(row, Times::total, 0.9));
    let mut cells = format!("{:.0} ({slowest:.0} .. {fastest:.0})", median(row, Times::total));
    if row.work.kind == Kind::Workers {
        let enqueued = median(row, |times| times.enqueue.unwrap_or(0.0));
        let _ = write!(cells, " | {enqueued:.0} | {:.0}", median(row, |times| times.complete));
    }
    cells
}

/// Commands a second.
fn median(row: &Row, seconds: impl Fn(&Times) -> f64) -> f64 {
    rate(row, seconds, 0.5)
}

fn rate(row: &Row, seconds: impl Fn(&Times) -> f64, part: f64) -> f64 {
    let mut rates: Vec<_> = row.times.iter().map(|times| row.commands as f64 / seconds(times)).collect();
    rates.sort_by(f64::total_cmp);
    rates[((rates.len() - 1) as f64 * part).round() as usize]
}
