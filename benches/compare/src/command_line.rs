//! What the binaries do.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cast::Cast;
use crate::machine::{self, Machine};
use crate::measure::{Plan, measure};
use crate::report;
use crate::results::{About, Allocator, Results, Row};
use crate::workloads;

const USAGE: &str = "\
usage: compare [--quick] [--workers N] [--json FILE] [--report] [--contender NAME] [PART OF A WORKLOAD'S NAME]
       compare report FILE

  --quick      a tenth of the work, three times: shows that everything runs
  --workers N  of every contender; 2 by default
  --json FILE  writes the results there
  --report     of a run that is neither quick nor of selected workloads: writes benches/compare/results.json, and does
               what `report` does with it
  --contender NAME
               this one only, as for a profile; the others are not measured
  report FILE  makes BENCHMARKS.md, its charts and the README's section from such a file";

/// What is to be measured.
struct Options {
    quick: bool,
    workers: usize,
    json: Option<PathBuf>,
    report: bool,
    only: Option<String>,
    contender: Option<String>,
    /// Prints rows as JSON, for the process that asked for them.
    rows: bool,
}

/// What one process measured.
#[derive(Serialize, Deserialize)]
struct Measured {
    workloads: Vec<About>,
    rows: Vec<Row>,
    left_out: Vec<String>,
}

/// Of the binary with this allocator.
pub fn main(allocator: Allocator) -> ExitCode {
    match run(allocator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(allocator: Allocator) -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, file] = &arguments[..]
        && command == "report"
    {
        return report::write(Path::new(file));
    }
    let options = Options::parse(arguments)?;
    if options.rows {
        let measured = options.measure(allocator, &mut io::stderr())?;
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    options.compare(allocator)
}

impl Options {
    fn parse(arguments: Vec<String>) -> Result<Self, String> {
        let mut options =
            Self { quick: false, workers: 2, json: None, report: false, only: None, contender: None, rows: false };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--report" => options.report = true,
                "--rows" => options.rows = true,
                "--contender" => options.contender = Some(value()?),
                "--json" => options.json = Some(value()?.into()),
                "--workers" => {
                    let workers = value()?.parse().ok().filter(|&workers| workers > 0);
                    options.workers = workers.ok_or(format!("--workers needs a number above 0\n{USAGE}"))?;
                }
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag}\n{USAGE}")),
                part => options.only = Some(part.to_owned()),
            }
        }
        Ok(options)
    }

    /// Measures with this and all other allocators.
    fn compare(&self, allocator: Allocator) -> Result<(), Box<dyn Error>> {
        let (begun, load_before, date) = (Instant::now(), machine::load(), chrono::Utc::now());
        let commit = machine::commit();
        let Measured { mut workloads, mut rows, mut left_out } = self.measure(allocator, &mut io::stdout())?;
        if allocator == Allocator::System {
            for other in ["compare-mimalloc", "compare-counting"] {
                let measured = self.ask(other)?;
                let unknown = |about: &About| workloads.iter().all(|known: &About| known.workload != about.workload);
                let more: Vec<_> = measured.workloads.into_iter().filter(unknown).collect();
                workloads.extend(more);
                rows.extend(measured.rows);
                left_out.extend(measured.left_out);
            }
        }
        if rows.is_empty() {
            return Err("no workload, or no contender of one, has such a name".into());
        }
        let results = Results {
            version: Results::VERSION,
            quick: self.quick,
            workers: self.workers,
            machine: Machine::this(),
            date: date.format("%Y-%m-%d %H:%M UTC").to_string(),
            seconds: begun.elapsed().as_secs(),
            commit,
            load_before,
            load_after: machine::load(),
            left_out,
            workloads,
            rows,
        };
        println!("{}", report::about(&results));
        if let Some(file) = &self.json {
            write(file, &results)?;
        }
        if self.report && (self.quick || self.only.is_some() || self.contender.is_some()) {
            println!("no report is made of a quick run or of selected workloads");
        } else if self.report {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("results.json");
            write(&file, &results)?;
            report::write(&file)?;
        }
        Ok(())
    }

    /// Measures in this process, and says what was found as soon as it is.
    fn measure(&self, allocator: Allocator, out: &mut dyn Write) -> io::Result<Measured> {
        let plan = if self.quick { Plan::QUICK } else { Plan::FULL };
        let cast = Cast::new(self.workers);
        let workloads::Workloads { all, left_out } = workloads::of(allocator, self.quick);
        let (mut about, mut rows) = (Vec::new(), Vec::new());
        for workload in all {
            let name = workload.name();
            if self.only.as_ref().is_some_and(|part| !name.contains(part.as_str())) {
                continue;
            }
            let measured = measure(&*workload, &cast, plan, allocator, self.contender.as_deref());
            if measured.is_empty() {
                continue;
            }
            writeln!(out, "{}", report::table(&workload.what(), &measured, &[]))?;
            about.push(About { workload: name, what: workload.what() });
            rows.extend(measured);
        }
        Ok(Measured { workloads: about, rows, left_out })
    }

    /// Has another binary of this package measure.
    fn ask(&self, binary: &str) -> Result<Measured, Box<dyn Error>> {
        let path = std::env::current_exe()?.with_file_name(binary);
        let mut command = Command::new(&path);
        command.arg("--rows").args(["--workers", &self.workers.to_string()]).stderr(Stdio::inherit());
        if self.quick {
            command.arg("--quick");
        }
        if let Some(contender) = &self.contender {
            command.args(["--contender", contender]);
        }
        command.args(&self.only);
        let output =
            command.output().map_err(|error| format!("{}: {error}; build all binaries first", path.display()))?;
        if !output.status.success() {
            return Err(format!("{binary} failed: {}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn write(file: &Path, results: &Results) -> Result<(), Box<dyn Error>> {
    std::fs::write(file, results.to_json()?).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_refused() {
        let parse = |line: &str| Options::parse(line.split(' ').map(str::to_owned).collect());
        let options = parse("--quick --workers 4 --json out.json spawn/").expect("all of them exist");
        assert!(options.quick && !options.rows);
        assert_eq!((options.workers, options.only.as_deref()), (4, Some("spawn/")));
        for wrong in ["--fast", "--workers", "--workers 0", "--workers two", "--json", "--contender"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
