//! Indexes a folder of text files through the six default lanes:
//!
//! ```text
//! cargo run --release --example quickstart [FOLDER]
//! ```
//!
//! | lane, best first | what runs there |
//! |---|---|
//! | `system` | statistics of the queue, while everything else goes on |
//! | `control` | pausing, resuming and cancelling what the lanes below do |
//! | `query` | "how often does this word occur so far?" |
//! | `session` | merging the counts of a file into the shared index |
//! | `skill` | reading a file and counting its words: one command per file, all submitted at once |
//! | `prompt` | the most characteristic words of each file, once all are counted |
//!
//! However many files wait in `skill`, a query is answered as soon as a worker has finished what it is doing: compare the
//! waits in the table at the end. `--check` counts again in a plain loop, to show that nothing was lost or doubled.
//!
//! | file | what it is about |
//! |---|---|
//! | `main` | from the command line to the exit code |
//! | `options` | the command line |
//! | `folder`, `text` | which files there are; the words of one |
//! | `index` | what the words add up to |
//! | `work` | the commands of the lanes `system`, `query`, `session`, `skill` and `prompt` |
//! | `control` | the commands of the lane `control` |
//! | `lanes` | the queue, with a stop watch on every lane |
//! | `report`, `check` | what came out, and whether it is right |
#![allow(clippy::print_stderr)]

mod check;
mod control;
mod folder;
mod index;
mod lanes;
mod options;
mod report;
mod text;
mod work;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use corelane::Executor;
use indicatif::{ProgressBar, ProgressStyle};

use crate::lanes::Lanes;
use crate::options::{Options, Request, USAGE, Unusable};
use crate::report::Report;

/// How long commands may take to finish at the end. All have been awaited by then, so this is never used up.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let done = match Request::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => print(USAGE),
        Ok(Request::Index(options)) => Executor::global().block_on(run(&options)),
        Err(error) => Err(error.into()),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("quickstart: {error:#}");
    ExitCode::from(if error.is::<Unusable>() { 2 } else { 1 })
}

async fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let listing = folder::list(&options.folder)?;
    let lanes = Lanes::start().await?;
    let outcome = work::index_files(&lanes, &options.folder, &listing, &options.word).await?;
    let stopped = lanes.stop(DRAIN_LIMIT).await?;
    let report = Report { options, outcome: &outcome, lanes: &stopped, elapsed: begun.elapsed() };
    if options.check {
        check::compare(&options.folder, &listing, &outcome)?;
    }
    print(&if options.json { report.json()? } else { report.text() })
}

/// Prints to standard output; that nobody reads it to its end, as in `quickstart | head -1`, is no error.
fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the result to standard output"),
    }
}

/// A progress bar for somebody who watches; elsewhere, nothing.
fn progress(what: &'static str, files: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} files  {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(files as u64).with_style(style).with_prefix(what)
}
