//! Instructions for each operation, counted under callgrind and compared with the checked-in `instructions.baseline`.
//!
//! ```text
//! cargo bench --no-default-features --bench instructions              compare; fails above +3 %
//! cargo bench --no-default-features --bench instructions -- --save    replace the baseline
//! cargo bench --no-default-features --bench instructions -- --test    run every case once, uncounted
//! ```
//!
//! Needs `valgrind`. Instructions are not time: a cache miss counts as one, and so does a hit. But they are the same on a busy
//! machine, so a small regression is seen that a timing would lose in its noise.
//!
//! Each case runs twice, in processes of their own, with few rounds and with many. The difference is what the rounds take:
//! start-up, set-up and teardown cancel out. There is one thread ([`corelane::Simulation`]), which makes the order of what
//! happens the same in each run; its own cost, about 80 instructions for each poll, is part of the counts.
//! Without the tokio shim: a worker stays within a runtime's context from poll to poll, but a simulation leaves it each time.
//!
//! Why not gungraun: its baselines are callgrind's own output files, of which each has thousands of lines and the machine's
//! paths. Here a baseline is one line for each case, to be read in a review.
#![allow(clippy::print_stdout)]

mod cases;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::{env, fs};

use cases::{CASES, Case, OPERATIONS};

/// Rounds of a process that runs few. Enough that pools, deques and the allocator have their size.
const FEW: u64 = 16;
const MANY: u64 = 3 * FEW;

/// The change in percent above which the bench fails.
const LIMIT: f64 = 3.0;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.baseline");

/// The first argument of a process that is counted; the name of a case and a number of rounds follow.
const COUNTED: &str = "--counted";

/// So that the C library takes the same way whatever the CPU: of its copies and comparisons, those for any x86-64. Both
/// spellings: it was changed in version 2.33.
const ANY_CPU: &str = "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";

/// Instructions for one operation, by case.
type Counts = BTreeMap<String, f64>;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [COUNTED, name, rounds] => run_counted(name, rounds),
        ref others if others.contains(&"--test") => run_all_once(),
        ref others if others.contains(&"--save") => save(),
        _ => compare(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_counted(name: &str, rounds: &str) -> Result<ExitCode, Error> {
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    (case.run)(rounds.parse()?);
    Ok(ExitCode::SUCCESS)
}

fn run_all_once() -> Result<ExitCode, Error> {
    for case in CASES {
        (case.run)(1);
        println!("{}: ok", case.name);
    }
    Ok(ExitCode::SUCCESS)
}

fn save() -> Result<ExitCode, Error> {
    let counts = count_all()?;
    let width = width();
    let lines = counts.iter().map(|(name, count)| format!("{name:width$} {count:>9.1}\n"));
    let header = "# Instructions for each operation. Written by `cargo bench --no-default-features --bench instructions -- --save`.\n";
    fs::write(BASELINE, format!("{header}# {}\n{}", toolchain()?, lines.collect::<String>()))?;
    println!("saved:");
    counts.iter().for_each(|(name, count)| println!("{name:width$} {count:>9.1}"));
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode, Error> {
    let (made_with, baseline) =
        read_baseline(&fs::read_to_string(BASELINE).map_err(|error| format!("{BASELINE}: {error}"))?)?;
    let toolchain = toolchain()?;
    let counts = count_all()?;
    let width = width();
    let mut failed = Vec::new();
    println!("{:width$} {:>9} {:>9} {:>8}", "instructions per operation", "baseline", "now", "change");
    for (name, now) in &counts {
        let Some(before) = baseline.get(name) else {
            println!("{name:width$} {:>9} {now:>9.1} {:>8}", "-", "new");
            failed.push(format!("{name} is not in the baseline"));
            continue;
        };
        let change = (now / before - 1.0) * 100.0;
        println!("{name:width$} {before:>9.1} {now:>9.1} {change:>+6.1} %");
        if change > LIMIT {
            failed.push(format!("{name} takes {change:.1} % more instructions, the limit is {LIMIT} %"));
        } else if change < -LIMIT {
            println!("{name} has become better: keep that with `-- --save`");
        }
    }
    failed.extend(baseline.keys().filter(|name| !counts.contains_key(*name)).map(|name| format!("{name} is gone")));
    if made_with != toolchain {
        println!("not checked: the baseline is of {made_with}, this is {toolchain}");
        return Ok(ExitCode::SUCCESS);
    }
    failed.iter().for_each(|why| println!("failed: {why}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn width() -> usize {
    CASES.iter().map(|case| case.name.len()).max().unwrap_or(0)
}

/// What the baseline was made with, and the counts.
fn read_baseline(text: &str) -> Result<(String, Counts), Error> {
    let made_with = text.lines().filter_map(|line| line.strip_prefix("# ")).next_back();
    let made_with = made_with.ok_or("the baseline does not say what it was made with")?;
    let counts = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, count) = line.rsplit_once(' ').ok_or_else(|| format!("no count in `{line}`"))?;
        Ok((name.trim_end().to_owned(), count.parse()?))
    });
    Ok((made_with.to_owned(), counts.collect::<Result<_, Error>>()?))
}

fn count_all() -> Result<Counts, Error> {
    CASES.iter().map(|case| Ok((case.name.to_owned(), count(case)?))).collect()
}

fn count(case: &Case) -> Result<f64, Error> {
    let (few, many) = (instructions(case, FEW)?, instructions(case, MANY)?);
    let taken = many.checked_sub(few).ok_or_else(|| format!("{}: more rounds took less", case.name))?;
    Ok(taken as f64 / ((MANY - FEW) * OPERATIONS) as f64)
}

/// All instructions of a process that runs `rounds` rounds.
fn instructions(case: &Case, rounds: u64) -> Result<u64, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(env::current_exe()?).args([COUNTED, case.name, &rounds.to_string()]);
    // Nothing of this machine, not even the size of its environment.
    valgrind.env_clear().env("PATH", path).env("GLIBC_TUNABLES", ANY_CPU);
    let output = valgrind.output().map_err(|error| format!("valgrind can not be started: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    // ==123== Collected : 456
    let collected = report.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(instructions) if output.status.success() => Ok(instructions),
        _ => Err(format!("{} under valgrind: {}\n{report}", case.name, output.status).into()),
    }
}

/// What counts depend on besides the code: the compiler, the target, and the C library, which has the allocator.
fn toolchain() -> Result<String, Error> {
    let rustc = output_of(Command::new(env::var_os("RUSTC").unwrap_or("rustc".into())).arg("-vV"))?;
    let field = |name: &str| rustc.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (Some(release), Some(host)) = (field("release:"), field("host:")) else {
        return Err("`rustc -vV` names no release or no host".into());
    };
    // ldd (GNU libc) 2.36
    let ldd = output_of(Command::new("ldd").arg("--version"))?;
    let libc = ldd.lines().next().and_then(|line| line.split_whitespace().next_back()).ok_or("`ldd` has no version")?;
    Ok(format!("rustc {release}, {host}, libc {libc}"))
}

fn output_of(command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    Ok(String::from_utf8(output.stdout)?)
}
