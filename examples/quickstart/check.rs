//! Whether the lanes counted what a plain loop on one thread counts.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use crate::folder::Listing;
use crate::progress;
use crate::text::{Lines, Reason, Skipped, WordCounts, count_line};
use crate::work::Outcome;

/// Words named in the message, if words differ.
const WORDS_NAMED: usize = 3;

/// Fails if anything differs.
pub(crate) fn compare(folder: &Path, listing: &Listing, outcome: &Outcome) -> Result<()> {
    let bar = progress("checking", listing.files.len());
    let mut plain = WordCounts::new();
    let mut skipped = listing.skipped.clone();
    for path in &listing.files {
        match count_words(&folder.join(path)) {
            Ok(counts) => counts.into_iter().for_each(|(word, count)| *plain.entry(word).or_default() += count),
            Err(reason) => skipped.push(Skipped { path: path.clone(), reason }),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    skipped.sort_by(|a, b| a.path.cmp(&b.path));

    let mut differences = differing_words(&plain, outcome);
    if skipped != outcome.skipped {
        differences.push(format!("{} files skipped, {} in a plain loop", outcome.skipped.len(), skipped.len()));
    }
    if !differences.is_empty() {
        bail!(
            "checked: NOT equal to a single-threaded count: {}; if a file changed meanwhile, run it again",
            differences.join("; ")
        );
    }
    Ok(())
}

fn count_words(path: &Path) -> Result<WordCounts, Reason> {
    let mut lines = Lines::open(path)?;
    let mut counts = WordCounts::new();
    while let Some(line) = lines.next()? {
        count_line(line, &mut counts);
    }
    Ok(counts)
}

fn differing_words(plain: &WordCounts, outcome: &Outcome) -> Vec<String> {
    let lanes = |word: &str| outcome.index.count_of(word);
    let plainly = |word: &str| plain.get(word).copied().unwrap_or(0);
    let words: BTreeSet<&String> = plain.keys().chain(outcome.index.words().keys()).collect();
    let differing = words.into_iter().filter(|word| lanes(word) != plainly(word));
    differing
        .take(WORDS_NAMED)
        .map(|word| format!("{word:?} occurs {} times, {} in a plain loop", lanes(word), plainly(word)))
        .collect()
}
