//! The embedded store: commands in a directory, through redb.
//!
//! `thread` tells how changes are stored, `opening` what is looked at before a store is believed, `watermark` how a lost commit
//! is noticed, `tables` what lies where, `marks` how commands are found that kill their process.

mod backend;
mod disk;
#[cfg(test)]
mod faults;
mod marks;
mod opening;
mod queue;
mod record;
mod reply;
mod tables;
#[cfg(test)]
mod tests;
mod thread;
mod watermark;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Result, StorageError};
use crate::storage::{
    Change, Durability, Recovery, StartMark, Storage, StorageCapabilities, StorageHealth, StoredCommand,
    StoredDeadLetter,
};
use disk::{Directory, Disk};
use marks::Marks;
use queue::{Changes, Limits, Queue, Request};
use reply::{Answer, Reply, reply};
use tables::{Op, RawCommands, Saved};
use thread::Engine;

/// A store in a directory of its own, without a server: what was acknowledged as [`Durability::Synced`] is still there after the
/// process was killed, or the power was lost, if the device keeps its word.
///
/// One thread writes; what comes in while it waits for the device shares the next transaction, so that many submissions need
/// few syncs. The directory holds the database and some small files, which belong together: copy and move it as a whole, while
/// no process has it open.
///
/// Works from any runtime. All methods are cancel-safe, in that they leave open what was not answered (see [`Storage`]).
/// [`Storage::close`] ends it; dropping it does the same, waits for that, and logs what goes wrong.
///
/// ```no_run
/// # async fn example() -> corelane::Result<()> {
/// use std::sync::Arc;
/// use corelane::{LocalStorage, Storage};
///
/// let storage = Arc::new(LocalStorage::new("/var/lib/app/queue").await?);
/// println!("{} commands left", storage.load_commands().await?.len());
/// storage.close().await
/// # }
/// ```
pub struct LocalStorage {
    queue: Arc<Queue>,
    marks: Arc<OnceLock<Marks>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Fetched while the page before it is being read.
    ahead: Mutex<Option<Ahead>>,
    read_only: bool,
}

/// A page of commands that is likely to be asked for next.
#[derive(Debug)]
struct Ahead {
    after: Vec<u8>,
    limit: usize,
    /// Changes that it knows of: with more, it is out of date.
    changes: u64,
    page: Answer<RawCommands>,
}

/// Settings of a [`LocalStorage`]. From [`LocalStorage::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is opened without `open`"]
pub struct LocalStorageBuilder {
    limits: Limits,
    cache_bytes: usize,
}

impl LocalStorage {
    /// Opens the store in the directory `path`, which is made if it is not there, with its parents. Reads all of it once, to
    /// see that it is undamaged.
    ///
    /// # Errors
    ///
    /// [`LaneError::Storage`](crate::LaneError::Storage): [`StoreLocked`](StorageError::StoreLocked) if it is in use,
    /// [`Path`](StorageError::Path) if the path can not be used, [`FormatTooNew`](StorageError::FormatTooNew) and
    /// [`Damaged`](StorageError::Damaged) for what is there, [`StorageFull`](StorageError::StorageFull) if a new one has no room.
    pub async fn new(path: impl Into<PathBuf>) -> Result<Self> {
        Self::builder().open(path).await
    }

    /// Opens the store in the directory `path` to look at it: changes, and [`Storage::recover`], are
    /// [`ReadOnly`](StorageError::ReadOnly) errors, and no file is written. Several may look at the same time; a process that
    /// has the store open for changes excludes them. A store whose process was killed is shown as its next opening will find
    /// it.
    ///
    /// # Errors
    ///
    /// As [`LocalStorage::new`]; [`Path`](StorageError::Path) if there is no store.
    pub async fn open_read_only(path: impl Into<PathBuf>) -> Result<Self> {
        Self::builder().open_read_only(path).await
    }

    /// For settings other than the defaults.
    pub fn builder() -> LocalStorageBuilder {
        LocalStorageBuilder {
            limits: Limits { requests: 16_384, bytes: 64 << 20, linger: Duration::from_millis(2) },
            cache_bytes: 64 << 20,
        }
    }

    /// Opens a store on whatever `disk` makes, on the store's own thread.
    async fn start(
        disk: impl FnOnce() -> Result<Box<dyn Disk>, StorageError> + Send + 'static,
        LocalStorageBuilder { limits, cache_bytes }: LocalStorageBuilder,
        read_only: bool,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::new(limits));
        let marks = Arc::new(OnceLock::new());
        let (opened, opening) = reply();
        let run = {
            let (queue, marks) = (queue.clone(), marks.clone());
            move || {
                let open = if read_only { Engine::open_read_only } else { Engine::open };
                let engine = match disk().and_then(|disk| open(disk, cache_bytes, &queue)) {
                    Ok((engine, found)) => {
                        _ = marks.set(found);
                        opened.send(Ok(()));
                        engine
                    }
                    Err(error) => {
                        queue.end(&StorageError::Closed);
                        return opened.send(Err(error));
                    }
                };
                let Some(marks) = marks.get() else { return };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| engine.run(marks))) {
                    // A bug of this crate's: those who come are told, and nobody waits.
                    queue.end(&StorageError::Io(format!("the storage thread panicked: {}", opening::said(&*panic))));
                }
            }
        };
        let thread = std::thread::Builder::new().name("corelane-storage".into()).spawn(run);
        let thread = thread.map_err(|error| StorageError::Io(format!("no thread for the store: {error}")))?;
        let storage = Self { queue, marks, thread: Mutex::new(Some(thread)), ahead: Mutex::default(), read_only };
        // Dropped before it is open, it is closed when it is.
        opening.await?;
        Ok(storage)
    }

    async fn change(&self, ops: Vec<Op>, durability: Durability) -> Result<()> {
        if self.read_only {
            return Err(StorageError::ReadOnly.into());
        }
        let bytes = ops.iter().map(Op::bytes).sum();
        // While it is in trouble, nothing is acknowledged before it is made: who asks is to hear of it.
        if durability == Durability::Synced || !self.queue.is_working() {
            let (waiter, made) = reply();
            self.queue.put(Changes { ops, bytes, waiter: Some(waiter) }).await?;
            made.await?;
        } else {
            self.queue.put(Changes { ops, bytes, waiter: None }).await?;
        }
        Ok(())
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = reply();
        self.queue.ask(request(reply))?;
        Ok(answer.await?)
    }

    /// The page behind that place.
    async fn page(&self, after: Option<Vec<u8>>, limit: usize) -> Result<RawCommands> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ahead) = ahead
            && after.as_ref() == Some(&ahead.after)
            && (limit, self.queue.changes()) == (ahead.limit, ahead.changes)
            && let Ok(page) = ahead.page.await
        {
            return Ok(page);
        }
        self.ask(|reply| Request::Commands(after, limit, reply)).await
    }

    /// Fetches the page behind that one, which the caller is about to read.
    fn fetch_ahead(&self, page: &RawCommands, limit: usize) {
        let Some(after) = page.last().filter(|_| page.more).map(<[u8]>::to_vec) else { return };
        let (reply, answer) = reply();
        if let Ok(changes) = self.queue.ask(Request::Commands(Some(after.clone()), limit, reply)) {
            let ahead = Ahead { after, limit, changes, page: answer };
            *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
        }
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            _ = thread.join();
        }
    }
}

impl LocalStorageBuilder {
    /// How much may wait for the storage thread: so many calls of [`Storage::apply`], and about so many bytes. What comes then
    /// waits. Default: 16,384, and 64 MiB; at least 1.
    pub const fn with_queue(mut self, calls: usize, bytes: usize) -> Self {
        self.limits.requests = if calls == 0 { 1 } else { calls };
        self.limits.bytes = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// Memory for what was read from or is to be written to the database. Default: 64 MiB.
    pub const fn with_cache(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// How long [`Durability::Relaxed`] changes are held back, for [`Durability::Synced`] ones to share their sync. Default: 2
    /// ms.
    pub const fn with_linger(mut self, linger: Duration) -> Self {
        self.limits.linger = linger;
        self
    }

    /// As [`LocalStorage::new`].
    ///
    /// # Errors
    ///
    /// As [`LocalStorage::new`].
    pub async fn open(self, path: impl Into<PathBuf>) -> Result<LocalStorage> {
        let path = path.into();
        LocalStorage::start(move || Ok(Box::new(Directory::open(&path)?)), self, false).await
    }

    /// As [`LocalStorage::open_read_only`].
    ///
    /// # Errors
    ///
    /// As [`LocalStorage::open_read_only`].
    pub async fn open_read_only(self, path: impl Into<PathBuf>) -> Result<LocalStorage> {
        let path = path.into();
        LocalStorage::start(move || Ok(Box::new(Directory::open_read_only(&path)?)), self, true).await
    }
}

impl fmt::Debug for LocalStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStorage").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

impl Drop for LocalStorage {
    fn drop(&mut self) {
        let (reply, answer) = reply();
        if self.queue.ask(Request::Close(reply)).is_ok()
            && let Err(error) = futures_lite::future::block_on(answer)
        {
            tracing::error!(%error, "a store was dropped, and could not be closed as it should");
        }
        self.join();
    }
}

#[async_trait]
impl Storage for LocalStorage {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.change(vec![Op::Save(Saved::new(&command)?)], Durability::Synced).await
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        self.load_page(None, usize::MAX).await
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.change(vec![Op::Remove { id: id.to_owned(), result: None }], Durability::Synced).await
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        self.change(vec![Op::letter(&letter, false)?], Durability::Synced).await
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        self.ask(Request::Letters).await
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.change(vec![Op::ClearLetters], Durability::Synced).await
    }

    async fn clear_all(&self) -> Result<()> {
        self.change(vec![Op::ClearAll], Durability::Synced).await
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { atomic: true, attempts: true, start_marks: true, results_and_letters: true }
    }

    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<()> {
        let ops: Result<Vec<_>, StorageError> = changes.into_iter().map(Op::new).collect();
        self.change(ops?, durability).await
    }

    async fn recover(&self) -> Result<Recovery> {
        self.ask(Request::Recover).await
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        let after = after.map(|after| tables::place(after.sequence, &after.id));
        let page = self.page(after, limit).await?;
        self.fetch_ahead(&page, limit);
        // Here and not on the storage thread, which has others to serve, and now the next page to fetch.
        Ok(page.read()?)
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        self.marks.get()?.mark(id).map(|slot| StartMark(slot.into()))
    }

    fn unmark(&self, StartMark(slot): StartMark) {
        if let (Some(marks), Ok(slot)) = (self.marks.get(), u32::try_from(slot)) {
            marks.unmark(slot);
        }
    }

    fn health(&self) -> StorageHealth {
        self.queue.health()
    }

    async fn probe(&self) -> Result<()> {
        self.ask(Request::Probe).await
    }

    async fn flush(&self) -> Result<()> {
        self.ask(Request::Flush).await
    }

    async fn finish(&self) -> Result<()> {
        self.ask(Request::Finish).await
    }

    async fn close(&self) -> Result<()> {
        let closed = self.ask(Request::Close).await;
        self.join();
        match closed {
            // By an earlier call.
            Err(crate::error::LaneError::Storage(StorageError::Closed)) => Ok(()),
            other => other,
        }
    }
}
