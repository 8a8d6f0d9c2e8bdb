//! What came out, for people and for programs.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use corelane::Executor;
use serde_json::json;

use crate::lanes::LaneTimes;
use crate::options::Options;
use crate::work::Outcome;

const TOP_WORDS: usize = 10;
/// Files whose characteristic words the text shows, and files that it says were skipped; the JSON has all.
const FILES_SHOWN: usize = 8;

pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    pub(crate) outcome: &'a Outcome,
    pub(crate) lanes: &'a [LaneTimes],
    pub(crate) elapsed: Duration,
}

impl Report<'_> {
    /// For programs: the result and nothing that differs from run to run.
    pub(crate) fn json(&self) -> Result<String> {
        let Outcome { index, skipped, characteristic, .. } = self.outcome;
        let top = index.top_words(TOP_WORDS).into_iter().map(|(word, count)| json!({ "word": word, "count": count }));
        let skipped = skipped
            .iter()
            .map(|file| json!({ "path": file.path.to_string_lossy(), "reason": file.reason.to_string() }));
        let characteristic =
            characteristic.iter().map(|(path, words)| json!({ "path": path.to_string_lossy(), "words": words }));
        let result = json!({
            "files": self.outcome.characteristic.len(),
            "words": index.total(),
            "distinct": index.words().len(),
            "top_words": top.collect::<Vec<_>>(),
            "characteristic_words": characteristic.collect::<Vec<_>>(),
            "skipped": skipped.collect::<Vec<_>>(),
            "checked": self.options.check,
        });
        let text = serde_json::to_string_pretty(&result).context("cannot write the result as JSON")?;
        Ok(text + "\n")
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        self.write_summary(out)?;
        self.write_words(out)?;
        self.write_skipped(out)?;
        self.write_lanes(out)?;
        if self.options.check {
            writeln!(out, "\nchecked: equal to a single-threaded count")?;
        }
        Ok(())
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let Outcome { index, characteristic, skipped, .. } = self.outcome;
        let (files, seconds) = (characteristic.len(), self.elapsed.as_secs_f64());
        let workers = Executor::global().workers();
        writeln!(out, "folder   {}", self.options.folder.display())?;
        writeln!(out, "files    {files} indexed, {} skipped", skipped.len())?;
        writeln!(out, "words    {}, {} distinct", index.total(), index.words().len())?;
        writeln!(out, "time     {seconds:.2} s, {:.0} files per second, {workers} workers", files as f64 / seconds)
    }

    fn write_words(&self, out: &mut String) -> std::fmt::Result {
        let Outcome { index, characteristic, .. } = self.outcome;
        if characteristic.is_empty() {
            return Ok(());
        }
        writeln!(out, "\ntop {TOP_WORDS} words")?;
        for (word, count) in index.top_words(TOP_WORDS) {
            writeln!(out, "  {word:<24} {count:>9}")?;
        }
        let mut largest: Vec<_> = characteristic.iter().collect();
        largest.sort_by_key(|(path, _)| std::cmp::Reverse(index.words_in(path)));
        writeln!(out, "\nmost characteristic words, of the largest files")?;
        write_files(out, largest.into_iter().map(|(path, words)| (path, words.join(", "))))
    }

    fn write_skipped(&self, out: &mut String) -> std::fmt::Result {
        let skipped = &self.outcome.skipped;
        if skipped.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nskipped files")?;
        write_files(out, skipped.iter().map(|file| (&file.path, file.reason.to_string())))
    }

    fn write_lanes(&self, out: &mut String) -> std::fmt::Result {
        let Outcome { characteristic, answers, held_back, most_waiting, .. } = self.outcome;
        writeln!(
            out,
            "\n{:<8} {:>9} {:>10} {:>10} {:>10} {:>10}",
            "lane", "commands", "wait p50", "wait p99", "run p50", "run p99"
        )?;
        for LaneTimes { lane_id, commands, wait, run } in self.lanes {
            writeln!(
                out,
                "{lane_id:<8} {commands:>9} {:>10.1?} {:>10.1?} {:>10.1?} {:>10.1?}",
                wait.p50, wait.p99, run.p50, run.p99
            )?;
        }
        let cancelled = if characteristic.is_empty() { "" } else { "; cancelled 1 prompt before it ran" };
        writeln!(out, "\nsystem   saw at most {most_waiting} commands waiting")?;
        writeln!(out, "control  paused skill with {held_back} files waiting{cancelled}")?;
        writeln!(
            out,
            "query    looked up {:?} {} times meanwhile: from {} to {}",
            self.options.word, answers.count, answers.first, answers.last
        )
    }
}

/// Files and what there is to say of them, in two columns.
fn write_files(out: &mut String, files: impl Iterator<Item = (impl AsRef<Path>, String)>) -> std::fmt::Result {
    let mut files = files.map(|(path, text)| (path.as_ref().display().to_string(), text));
    let shown: Vec<_> = files.by_ref().take(FILES_SHOWN).collect();
    let width = shown.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    for (path, text) in &shown {
        writeln!(out, "  {path:<width$}  {text}")?;
    }
    match files.count() {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more; --json lists all"),
    }
}
