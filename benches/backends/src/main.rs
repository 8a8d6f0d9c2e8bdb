//! Queues in servers: corelane beside a plain client of the same server, and beside apalis. See `README.md`.
//!
//! | file | what |
//! |---|---|
//! | `plan` | what is measured: servers, contenders, batches, processes |
//! | `measure` | starts the server and the processes, and takes the time |
//! | `process` | what one of the processes does |
//! | `contenders` | how each contender does it |
//! | `report` | the tables |
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contenders;
#[path = "../../compare/src/machine.rs"]
#[allow(dead_code, reason = "shared with the comparison, which needs more of it")]
mod machine;
mod measure;
mod plan;
mod process;
mod report;
#[path = "../../../tests/backends/servers/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod servers;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::plan::{Selection, Task};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut selection = Selection::default();
    let mut write = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "process" => {
                let task = arguments.next().context("a process needs a task")?;
                return process::run(&serde_json::from_str::<Task>(&task)?);
            }
            "--report" => write = true,
            "--quick" => selection.quick = true,
            option if option.starts_with('-') => bail!("unknown option {option}: there are --report and --quick"),
            part => selection.part = part.to_owned(),
        }
    }
    let results = measure::all(&selection)?;
    let report = report::text(&results);
    println!("{report}");
    if write && !selection.quick && selection.part.is_empty() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(&results)? + "\n")?;
        std::fs::write(folder.join("RESULTS.md"), report)?;
    } else if write {
        eprintln!("nothing was written: only a complete run is made a report of");
    }
    Ok(())
}
