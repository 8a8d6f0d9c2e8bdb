//! Kills processes that use a store, and looks from outside at what is lost, or done twice. A program and not a harness's test,
//! since it starts itself as the child: `cargo test --test torture`, with a part of a name to choose.
//!
//! `CORELANE_TORTURE_CYCLES` says how often it kills (default: 200), `CORELANE_TORTURE_SEED` when: the seed of a run is printed.
//! It decides the moments, not what the system makes of them.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "torture/check.rs"]
mod check;
#[path = "torture/child.rs"]
mod child;
#[path = "torture/command.rs"]
mod command;
#[path = "torture/cycles.rs"]
mod cycles;
#[path = "torture/poison.rs"]
mod poison;
#[path = "torture/process.rs"]
mod process;
#[path = "programs/child.rs"]
mod programs;
#[path = "torture/random.rs"]
mod random;
#[path = "torture/report.rs"]
mod report;
#[path = "torture/store.rs"]
mod store;

use std::time::{Instant, SystemTime};

use store::Lie;

const TESTS: [(&str, fn()); 9] = [
    ("what_was_acknowledged_survives_a_kill", survives_kills),
    ("control_acknowledged_before_it_is_stored_is_lost", || {
        is_found_out(Lie::Accepted, "was acknowledged, and is lost")
    }),
    ("control_ended_before_that_is_stored_runs_again", || {
        is_found_out(Lie::Ended, "has started, and its end was stored")
    }),
    ("a_command_that_kills_its_process_is_given_up_and_nobody_else", poison::gives_up_the_culprit),
    ("control_without_start_marks_it_is_not_given_up", poison::control_without_marks),
    ("a_clean_end_charges_nobody", poison::clean_ends_charge_nobody),
    ("control_an_unclean_end_charges_who_runs", poison::control_unclean_ends_charge),
    ("a_restart_storm_starts_paused", poison::storm_starts_paused),
    ("five_unclean_ends_are_no_storm", poison::five_are_no_storm),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [kind, which, task] = arguments.as_slice()
        && kind == "child"
    {
        match which.as_str() {
            "cycle" => child::run(task),
            _ => poison::child(task),
        }
        return;
    }
    // Of the options of a harness, those that ask for something else than to run.
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let wanted: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        println!("{name} ...");
        // A panic is the end of this program, with its code.
        test();
        println!("{name} ok, {:.1} s", begun.elapsed().as_secs_f64());
    }
}

fn survives_kills() {
    let (cycles, seed) = (number("CORELANE_TORTURE_CYCLES").unwrap_or(200), seed());
    println!("  {cycles} cycles, CORELANE_TORTURE_SEED={seed}");
    let (violations, counts, place) = cycles::run(cycles, seed, Lie::None, "");
    println!("  {counts:?}");
    assert!(violations.is_empty(), "{}\n{}", violations.join("\n"), place.path.display());
    // It has seen what it is for, or it shows nothing.
    if cycles >= 100 {
        let seen = [counts.stopped, counts.run_again, counts.cancelled, counts.shared, counts.killed_early];
        assert!(seen.iter().all(|count| *count > 0) && counts.letters > 0, "{counts:?}");
    }
}

/// A store that lies is found out by what it is about.
fn is_found_out(lie: Lie, what: &str) {
    let seed = seed();
    println!("  CORELANE_TORTURE_SEED={seed}");
    let (violations, counts, _place) = cycles::run(60, seed, lie, what);
    let found = violations.iter().find(|violation| violation.contains(what));
    let found = found.unwrap_or_else(|| panic!("the checker has not found it: {counts:?}, {violations:?}"));
    println!("  found after {} kills: {found}", counts.killed);
}

fn seed() -> u64 {
    number("CORELANE_TORTURE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs() ^ u64::from(now.subsec_nanos()))
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is to be a number, and is {text:?}")))
}
