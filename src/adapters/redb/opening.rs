//! Opening a store, for the first time and after a failure: what is looked at before a word of it is believed.
//!
//! 1. What was written and not synced when the store failed is written and synced once more ([`Unsynced`]); all of the file, if
//!    that was another process.
//! 2. The whole file is verified by redb, every page of it against the checksum that its parent has, on top of an overlay
//!    ([`Overlay`]): redb verifies by repairing, and a damaged file stays as it is. This is done after a clean end, too: bits
//!    flip on disks that are idle, and redb trusts a file that was closed.
//! 3. The state that is found must belong to this store, and its number must not be below the watermark.
//! 4. Now redb opens the file itself, and repairs it if it was not closed.
//!
//! A new store begins with its watermark, at 0 and synced; then comes the database. So a database without a watermark is
//! damage, and one that nobody was told of may be made anew.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{Database, ReadableDatabase};

use super::backend::{Overlay, Through, Tracked, Unsynced};
use super::disk::{Disk, Small, problem};
use super::tables::{State, Tables, Trouble, read_state};
use super::watermark::{Watermark, WatermarkError};
use crate::error::StorageError;

/// A database that is open and verified.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) tracked: Arc<Tracked>,
    pub(super) state: State,
}

/// The watermark of the store there; a new one is made where there is no store, and may be.
pub(super) fn open_watermark(disk: &dyn Disk, read_only: bool) -> Result<Watermark, StorageError> {
    let cannot = |error: io::Error| problem(disk.path(), &error);
    let file = disk.small(Small::Watermark).map_err(cannot)?;
    let damage = match Watermark::read(file) {
        Ok(Some(watermark)) => {
            if !read_only {
                // The process that made it may have failed to, and what can be read is not what is durable.
                watermark.make_durable().map_err(cannot)?;
                disk.sync_directory().map_err(cannot)?;
            }
            return Ok(watermark);
        }
        Ok(None) => StorageError::Damaged { what: "there is a database, and the file \"watermark\" is empty".into() },
        Err(WatermarkError::Store(error @ StorageError::Damaged { .. })) => error,
        Err(WatermarkError::Store(error)) => return Err(error),
        Err(WatermarkError::Io(error)) => return Err(cannot(error)),
    };
    // Nothing, or the beginning of a store that was cut short: then there is no database yet.
    let database = disk.database().map_err(cannot)?;
    let len = database.len().map_err(cannot);
    _ = database.close();
    if len? > 0 {
        return Err(damage);
    }
    if read_only {
        return Err(StorageError::Path { path: disk.path().to_path_buf(), problem: "there is no store".into() });
    }
    let file = disk.small(Small::Watermark).map_err(cannot)?;
    let watermark = Watermark::create(file, new_name()).map_err(cannot)?;
    disk.sync_directory().map_err(cannot)?;
    Ok(watermark)
}

/// Verifies the database, and opens it.
pub(super) fn open(
    disk: &dyn Disk,
    unsynced: &Arc<Unsynced>,
    watermark: &mut Watermark,
    cache_bytes: usize,
) -> Result<Opened, StorageError> {
    let tracked = track(disk, unsynced)?;
    let opened = open_tracked(disk, &tracked, watermark, cache_bytes);
    match opened {
        // What was in doubt was written again, and synced.
        Ok(_) => watermark.set_doubt(false),
        Err(_) if tracked.sync_failed() => watermark.set_doubt(true),
        Err(_) => {}
    }
    let (database, state) = opened?;
    Ok(Opened { database, tracked, state })
}

fn open_tracked(
    disk: &dyn Disk,
    tracked: &Arc<Tracked>,
    watermark: &mut Watermark,
    cache_bytes: usize,
) -> Result<(Database, State), StorageError> {
    let found = if is_new(tracked, watermark)? {
        // What a creation has left that was cut short.
        tracked.file().set_len(0).map_err(|error| failed(&error))?;
        None
    } else {
        verify(tracked, watermark, cache_bytes)?.1
    };
    let database = guarded(|| {
        Ok(Database::builder().set_cache_size(cache_bytes).create_with_backend(Through(tracked.clone()))?)
    })?;
    let state = match found {
        Some(state) => state,
        None => {
            let state = begin(&database, watermark)?;
            disk.sync_directory().map_err(|error| failed(&error))?;
            state
        }
    };
    // What was found is durable by now: the database was synced when it was opened.
    watermark.raise(state.commits).and_then(|()| watermark.sync()).map_err(|error| failed(&error))?;
    Ok((database, state))
}

/// Verifies the database, and opens it as it would be after its repair, which stays in memory.
pub(super) fn open_read_only(
    disk: &dyn Disk,
    watermark: &Watermark,
    cache_bytes: usize,
) -> Result<Opened, StorageError> {
    let tracked = track(disk, &Arc::default())?;
    let none = || StorageError::Path { path: disk.path().to_path_buf(), problem: "there is no store".into() };
    if is_new(&tracked, watermark)? {
        return Err(none());
    }
    let (database, state) = verify(&tracked, watermark, cache_bytes)?;
    Ok(Opened { database, tracked, state: state.ok_or_else(none)? })
}

/// What the state of the database would be, were it opened now: none if nothing was ever committed.
pub(super) fn look(disk: &dyn Disk, unsynced: &Arc<Unsynced>, watermark: &Watermark) -> Result<State, StorageError> {
    let tracked = track(disk, unsynced)?;
    let state = verify(&tracked, watermark, SMALL_CACHE);
    _ = tracked.file().close();
    state?.1.ok_or_else(|| StorageError::Damaged { what: "the database is empty".into() })
}

const SMALL_CACHE: usize = 1 << 20;

fn track(disk: &dyn Disk, unsynced: &Arc<Unsynced>) -> Result<Arc<Tracked>, StorageError> {
    let file = disk.database().map_err(|error| problem(disk.path(), &error))?;
    unsynced.rewrite(&*file).map_err(|error| failed(&error))?;
    Ok(Arc::new(Tracked::new(file, unsynced.clone())))
}

/// Whether the database was never there, for anybody who was told.
fn is_new(tracked: &Tracked, watermark: &Watermark) -> Result<bool, StorageError> {
    let file = tracked.file();
    let len = file.len().map_err(|error| failed(&error))?;
    if watermark.number() > 0 {
        return if len > 0 { Ok(false) } else { Err(StorageError::Damaged { what: "the database is empty".into() }) };
    }
    // redb writes these last, when it has made a database.
    let mut begins = [0; 9];
    if len >= begins.len() as u64 {
        file.read(0, &mut begins).map_err(|error| failed(&error))?;
    }
    Ok(begins == [0; 9])
}

fn verify(
    tracked: &Arc<Tracked>,
    watermark: &Watermark,
    cache_bytes: usize,
) -> Result<(Database, Option<State>), StorageError> {
    let damaged = |what: String| Err(StorageError::Damaged { what });
    let overlay = Overlay::new(tracked.clone()).map_err(|error| failed(&error))?;
    let (database, state) = guarded(|| {
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(true)
            .create_with_backend(overlay)?;
        let state = read_state(&database.begin_read()?)?;
        Ok((database, state))
    })?;
    let acknowledged = watermark.number();
    match &state {
        None if acknowledged > 0 => return damaged("the database is empty".into()),
        Some(state) if state.store != watermark.store() => {
            return damaged("the database and the file \"watermark\" belong to different stores".into());
        }
        Some(state) if state.commits < acknowledged => {
            return damaged(format!(
                "the database holds commits up to {}, and {acknowledged} was acknowledged",
                state.commits
            ));
        }
        _ => {}
    }
    Ok((database, state))
}

fn begin(database: &Database, watermark: &Watermark) -> Result<State, StorageError> {
    guarded(|| {
        let mut state = State::new(watermark.store());
        state.commits = 1;
        let transaction = database.begin_write()?;
        Tables::open(&transaction)?.write_state(&state)?;
        transaction.commit()?;
        Ok(state)
    })
}

/// Does something with redb, which may panic where a file is damaged.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, Trouble>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(trouble)) => Err(explain(trouble)),
        Err(panic) => Err(StorageError::Damaged { what: format!("redb panicked: {}", said(&*panic)) }),
    }
}

/// What a panic said.
pub(super) fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

pub(super) fn explain(trouble: Trouble) -> StorageError {
    match trouble {
        Trouble::Record(error) => error,
        Trouble::Redb(redb::Error::Io(error)) => failed(&error),
        Trouble::Redb(redb::Error::Corrupted(what)) => StorageError::Damaged { what },
        // What this crate has not written.
        Trouble::Redb(
            error @ (redb::Error::UpgradeRequired(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }),
        ) => StorageError::Damaged { what: error.to_string() },
        Trouble::Redb(error) => StorageError::Io(error.to_string()),
    }
}

/// What an error of the file system means for what was asked.
pub(super) fn failed(error: &io::Error) -> StorageError {
    use io::ErrorKind::{FileTooLarge, InvalidData, QuotaExceeded, StorageFull, UnexpectedEof};

    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => StorageError::StorageFull(error.to_string()),
        // Of redb, about what it has read.
        InvalidData | UnexpectedEof => StorageError::Damaged { what: error.to_string() },
        _ => StorageError::Io(error.to_string()),
    }
}

/// 16 random bytes.
fn new_name() -> [u8; 16] {
    use std::hash::{BuildHasher, Hasher, RandomState};

    let random = || RandomState::new().build_hasher().finish();
    (u128::from(random()) << 64 | u128::from(random())).to_le_bytes()
}
