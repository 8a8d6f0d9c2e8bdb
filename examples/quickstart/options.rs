//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
Indexes a folder of text files through the six default lanes.

Usage: quickstart [FOLDER] [--word WORD] [--check] [--json]

  FOLDER       the folder to index; default: the source of this example's crate
  --word WORD  the word to look up again and again while indexing goes on; default: the
  --check      count again in a plain loop afterwards; exit code 1 if the result is another
  --json       print the result as JSON
  --help       print this

Files that a .gitignore in the folder names are left out, and so are folders named target or .git.
Binary files, files that are not UTF-8 and unreadable files are skipped and reported.

Exit code: 0 done, 1 failed, 2 the command line or the folder is not usable.
";

/// What the command line asks for.
pub(crate) enum Request {
    Help,
    Index(Options),
}

pub(crate) struct Options {
    pub(crate) folder: PathBuf,
    /// Lowercase, as words are in the index.
    pub(crate) word: String,
    pub(crate) check: bool,
    pub(crate) json: bool,
}

/// The user gave something that can not be used: what, and what to give instead.
#[derive(Debug)]
pub(crate) struct Unusable(pub(crate) String);

impl Request {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, Unusable> {
        let mut folder = None;
        let mut options = Options { folder: PathBuf::new(), word: "the".to_owned(), check: false, json: false };
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--help" | "-h") => return Ok(Self::Help),
                Some("--check") => options.check = true,
                Some("--json") => options.json = true,
                Some("--word") => options.word = word(arguments.next())?,
                Some(flag) if flag.starts_with('-') => {
                    return Err(Unusable(format!("unknown flag {flag:?}; --help lists the flags there are")));
                }
                _ => {
                    let given = PathBuf::from(argument);
                    if let Some(first) = folder.replace(given.clone()) {
                        return Err(Unusable(format!(
                            "two folders given, {first:?} and {given:?}; give one, in quotes if its name has spaces"
                        )));
                    }
                }
            }
        }
        options.folder = folder.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Ok(Self::Index(options))
    }
}

fn word(given: Option<OsString>) -> Result<String, Unusable> {
    let word = given.ok_or_else(|| Unusable("--word needs a word after it, as in --word lane".to_owned()))?;
    Ok(word.to_string_lossy().to_lowercase())
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}
