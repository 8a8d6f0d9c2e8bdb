//! Which files there are to index.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ignore::{DirEntry, WalkBuilder};

use crate::options::Unusable;
use crate::text::{Reason, Skipped};

/// The files of a folder, relative to it and in order.
pub(crate) struct Listing {
    pub(crate) files: Vec<PathBuf>,
    /// What could not be listed.
    pub(crate) skipped: Vec<Skipped>,
}

/// Lists the files to index, at least one.
pub(crate) fn list(folder: &Path) -> Result<Listing, Unusable> {
    check(folder)?;
    let mut listing = Listing { files: Vec::new(), skipped: Vec::new() };
    // Only what lies in the folder decides: no settings of the user, no .gitignore further up.
    let mut walk = WalkBuilder::new(folder);
    walk.standard_filters(false).git_ignore(true).require_git(false);
    walk.filter_entry(is_wanted).sort_by_file_path(Path::cmp);
    for entry in walk.build() {
        match entry {
            Ok(entry) if entry.file_type().is_some_and(|kind| kind.is_file()) => {
                listing.files.push(relative(entry.path(), folder));
            }
            Ok(_folder_or_link) => {}
            Err(error) => listing.skipped.push(unlisted(error, folder)),
        }
    }
    if listing.files.is_empty() && listing.skipped.is_empty() {
        return Err(Unusable(format!(
            "there is no file to index in {folder:?}; give a folder with text files in it (those that its .gitignore \
             names do not count, nor does what is in a folder named target or .git)"
        )));
    }
    Ok(listing)
}

fn check(folder: &Path) -> Result<(), Unusable> {
    let Err(error) = std::fs::read_dir(folder) else { return Ok(()) };
    Err(Unusable(match error.kind() {
        ErrorKind::NotFound => {
            let here = std::env::current_dir().unwrap_or_default();
            format!("there is no folder {folder:?}, seen from {here:?}; give the path of one that exists")
        }
        ErrorKind::NotADirectory => format!("{folder:?} is not a folder; give the folder that it is in"),
        _ => format!("cannot look into {folder:?}: {error}; give a folder that you may read"),
    }))
}

fn is_wanted(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    // A folder that the user names is wanted, whatever its name.
    let is_build = name == "target" && entry.file_type().is_some_and(|kind| kind.is_dir());
    entry.depth() == 0 || !(is_build || name == ".git")
}

fn unlisted(error: ignore::Error, folder: &Path) -> Skipped {
    let mut inner = &error;
    let mut path = folder;
    loop {
        match inner {
            ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => inner = err,
            ignore::Error::WithPath { path: at, err } => (path, inner) = (at, err),
            _ => break,
        }
    }
    // The text of the error names the path again; its kind does not.
    let why = inner.io_error().map_or_else(|| inner.to_string(), |error| error.kind().to_string());
    Skipped { path: relative(path, folder), reason: Reason::Unreadable(why) }
}

fn relative(path: &Path, folder: &Path) -> PathBuf {
    path.strip_prefix(folder).unwrap_or(path).to_owned()
}
