//! Runs the same work on corelane and on its peers, in turns, in one process, and prints what each took.
//!
//! `tasks`, `commands` and `limiters` list the comparisons; to add a workload or a contender, add it there. `README.md` says what is
//! compared with what.

mod commands;
mod conditions;
mod limiters;
mod measure;
mod runtimes;
mod tasks;

use measure::{Plan, System};

/// For every contender.
const WORKERS: usize = 2;

fn main() {
    let mut plan = Plan { warmups: 3, repeats: 51, scale: 1.0, only: None };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => plan = Plan { warmups: 1, repeats: 3, scale: 0.1, ..plan },
            flag if flag.starts_with('-') => {
                eprintln!("unknown option {flag}; usage: compare [--quick] [PART OF A WORKLOAD'S NAME]");
                std::process::exit(2);
            }
            part => plan.only = Some(part.to_owned()),
        }
    }
    println!("{}\n", System::now());
    println!("{} workers each, {} repeats in turns after {} warm-ups\n", WORKERS, plan.repeats, plan.warmups);
    let size = |operations: f64| (operations * plan.scale) as u64;
    let comparisons = tasks::comparisons(size)
        .into_iter()
        .chain(commands::comparisons(size))
        .chain(conditions::comparisons(size))
        .chain(limiters::comparisons(size));
    for comparison in comparisons.filter(|comparison| plan.includes(&comparison.name)) {
        println!("{}", comparison.run(&plan));
    }
    println!("{}", System::now());
}
