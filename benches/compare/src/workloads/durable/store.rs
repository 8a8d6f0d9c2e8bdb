//! What takes part, behind one trait.

use std::future::Future;
use std::path::Path;

use corelane::Executor;

/// For one run.
pub struct Setting<'a> {
    /// The contender's own, with what its last run has left.
    pub folder: &'a Path,
    /// Commands that are to be there at the start, numbered from 0; nothing else is to be there.
    pub stored: u64,
    /// Commands that come then, with the numbers that follow.
    pub commands: u64,
    /// Whether they are to run.
    pub started: bool,
    pub workers: usize,
    pub executor: &'a Executor,
}

/// Someone who stores commands, open for one run. Ends the process if anything goes wrong.
pub trait Store: Sync + Sized {
    /// Not timed.
    fn open(setting: &Setting<'_>) -> Self;

    /// What a thread needs that submits.
    fn enter(&self) -> Option<tokio::runtime::EnterGuard<'_>> {
        None
    }

    /// Returns when the command of this number is acknowledged.
    fn submit(&self, number: u64) -> impl Future<Output = ()>;

    /// Submits the command of this number, and returns when it has run.
    fn live(&self, number: u64) -> impl Future<Output = ()>;

    /// Returns when all ends are stored.
    fn flush(&self) -> impl Future<Output = ()>;

    /// Checks that so many commands are stored. Gives how many commits there were since the start of the run; none where
    /// each change is written by itself.
    fn close(self, left: u64) -> Option<u64>;
}
