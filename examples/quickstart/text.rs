//! The words of a file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::{Path, PathBuf};

/// How much of a file is searched for a NUL byte, which no text has.
const HEAD_BYTES: u64 = 8 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// How often each word occurs.
pub(crate) type WordCounts = HashMap<String, u64>;

/// A file that is not in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) path: PathBuf,
    pub(crate) reason: Reason,
}

/// Why a file is not in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Unreadable(String),
    Binary,
    NotUtf8,
}

/// Counts the words of a line. A word is a run of letters and digits that starts with a letter and has at least two
/// characters; case does not matter.
pub(crate) fn count_line(line: &str, counts: &mut WordCounts) {
    let runs = line.split(|c: char| !c.is_alphanumeric());
    let words = runs.filter(|run| run.starts_with(char::is_alphabetic) && run.chars().nth(1).is_some());
    for word in words {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
}

/// The lines of a text file, one at a time: a large file needs no more memory than its longest line.
pub(crate) struct Lines {
    input: BufReader<Chain<Cursor<Vec<u8>>, File>>,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self, Reason> {
        let file = File::open(path)?;
        let mut head = Vec::new();
        (&file).take(HEAD_BYTES).read_to_end(&mut head)?;
        if head.contains(&0) {
            return Err(Reason::Binary);
        }
        Ok(Self { input: BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(file)), line: Vec::new() })
    }

    /// The next line; none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<&str>, Reason> {
        self.line.clear();
        // No character of UTF-8 but the line feed itself has its byte, so this does not cut characters.
        let length = self.input.read_until(b'\n', &mut self.line)?;
        let line = std::str::from_utf8(&self.line).map_err(|_| Reason::NotUtf8)?;
        Ok((length > 0).then_some(line))
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Self::Binary => f.write_str("binary: a NUL byte near its start"),
            Self::NotUtf8 => f.write_str("not UTF-8"),
        }
    }
}
