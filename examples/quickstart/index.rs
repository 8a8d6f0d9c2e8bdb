//! What the words of all files add up to.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::text::WordCounts;

#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<PathBuf, WordCounts>,
    words: HashMap<String, Occurrences>,
}

/// Where a word occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Occurrences {
    /// How often, in all files together.
    pub(crate) count: u64,
    /// In how many files.
    pub(crate) files: usize,
}

impl Index {
    pub(crate) fn add(&mut self, path: PathBuf, counts: WordCounts) {
        for (word, count) in &counts {
            // Most words are there already: a copy of the word is only made for those that are not.
            if let Some(known) = self.words.get_mut(word) {
                known.count += count;
                known.files += 1;
            } else {
                self.words.insert(word.clone(), Occurrences { count: *count, files: 1 });
            }
        }
        self.files.insert(path, counts);
    }

    /// How many words a file has.
    pub(crate) fn words_in(&self, path: &Path) -> u64 {
        self.files.get(path).map_or(0, |counts| counts.values().sum())
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    pub(crate) fn words(&self) -> &HashMap<String, Occurrences> {
        &self.words
    }

    pub(crate) fn count_of(&self, word: &str) -> u64 {
        self.words.get(word).map_or(0, |found| found.count)
    }

    pub(crate) fn total(&self) -> u64 {
        self.words.values().map(|word| word.count).sum()
    }

    /// The words that occur most often, of all files.
    pub(crate) fn top_words(&self, most: usize) -> Vec<(&str, u64)> {
        best(self.words.iter().map(|(word, found)| (word.as_str(), found.count)), most, Ord::cmp)
    }

    /// The words that set a file apart from the others: often here, in few files (tf-idf, smoothed).
    pub(crate) fn characteristic_words(&self, path: &Path, most: usize) -> Vec<String> {
        let Some(counts) = self.files.get(path) else { return Vec::new() };
        let all_files = self.files.len() as f64;
        let scored = counts.iter().map(|(word, count)| {
            let files = self.words.get(word).map_or(0, |found| found.files) as f64;
            let rarity = ((1.0 + all_files) / (1.0 + files)).ln() + 1.0;
            (word.as_str(), *count as f64 * rarity)
        });
        best(scored, most, f64::total_cmp).into_iter().map(|(word, _)| word.to_owned()).collect()
    }
}

/// The words with the highest scores; of equal ones the first in the alphabet, so that the result is always the same.
fn best<'a, S>(
    words: impl Iterator<Item = (&'a str, S)>,
    most: usize,
    compare: impl Fn(&S, &S) -> Ordering,
) -> Vec<(&'a str, S)> {
    let mut words: Vec<_> = words.collect();
    words.sort_unstable_by(|(word, score), (other, its_score)| compare(its_score, score).then(word.cmp(other)));
    words.truncate(most);
    words
}
