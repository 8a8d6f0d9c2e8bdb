//! What stands between redb and the database file.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// What was written and has not been synced since: outlives the backend that a failure closes.
///
/// After a failed sync, the system may show what was written although the device does not have it, and may say that the next
/// sync has succeeded. So what is here is written once more, and synced, before a word of the file is believed.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<Vec<Range<u64>>>);

impl Unsynced {
    /// Writes all of it again, in place.
    pub(super) fn rewrite(&self, file: &dyn StorageBackend) -> io::Result<()> {
        let ranges = lock(&self.0).clone();
        if ranges.is_empty() {
            return Ok(());
        }
        let len = file.len()?;
        let mut buffer = Vec::new();
        for Range { start, end } in ranges {
            // What was cut off since is gone.
            let end = end.min(len);
            let mut at = start;
            while at < end {
                let size = (end - at).min(1 << 20);
                buffer.resize(usize::try_from(size).unwrap_or_default(), 0);
                file.read(at, &mut buffer)?;
                file.write(at, &buffer)?;
                at += size;
            }
        }
        file.sync_data()?;
        lock(&self.0).clear();
        Ok(())
    }

    /// All of the file: another process knew what it was.
    pub(super) fn add_everything(&self) {
        self.add(0..u64::MAX);
    }

    fn add(&self, range: Range<u64>) {
        let mut ranges = lock(&self.0);
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
}

/// An operation that failed.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// It was a sync: what it was to make durable may be lost although it can be read.
    pub(super) sync: bool,
    pub(super) kind: io::ErrorKind,
    pub(super) text: String,
}

/// The database file, and what became of it. redb says that something failed, and not what: that is noted here.
#[derive(Debug)]
pub(super) struct Tracked {
    file: Box<dyn StorageBackend>,
    unsynced: Arc<Unsynced>,
    fault: Mutex<Option<Fault>>,
}

impl Tracked {
    pub(super) fn new(file: Box<dyn StorageBackend>, unsynced: Arc<Unsynced>) -> Self {
        Self { file, unsynced, fault: Mutex::new(None) }
    }

    /// The first operation that failed.
    pub(super) fn fault(&self) -> Option<Fault> {
        lock(&self.fault).clone()
    }

    /// Whether that was a sync.
    pub(super) fn sync_failed(&self) -> bool {
        self.fault().is_some_and(|fault| fault.sync)
    }

    pub(super) fn file(&self) -> &dyn StorageBackend {
        &*self.file
    }

    fn note<T>(&self, sync: bool, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let mut fault = lock(&self.fault);
            if fault.is_none() {
                *fault = Some(Fault { sync, kind: error.kind(), text: error.to_string() });
            }
        }
        result
    }
}

/// The database file as redb gets it.
#[derive(Debug)]
pub(super) struct Through(pub(super) Arc<Tracked>);

impl StorageBackend for Through {
    fn len(&self) -> io::Result<u64> {
        self.0.note(false, self.0.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.note(false, self.0.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.note(false, self.0.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.note(true, self.0.file.sync_data())?;
        lock(&self.0.unsynced.0).clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.note(false, self.0.file.write(offset, data))?;
        self.0.unsynced.add(offset..offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

const BLOCK: u64 = 4096;

/// The database file as it would be after what redb writes, which stays in memory: redb verifies a file by repairing it, and a
/// damaged one is not to be touched.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Arc<Tracked>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len: u64,
    /// Where the base ends, or was cut off: behind that, it reads as zeros.
    base_len: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    pub(super) fn new(base: Arc<Tracked>) -> io::Result<Self> {
        let len = base.file.len()?;
        Ok(Self { base, written: Mutex::new(Written { len, base_len: len, blocks: BTreeMap::new() }) })
    }

    fn read_base(&self, offset: u64, out: &mut [u8], base_len: u64) -> io::Result<()> {
        let there = usize::try_from(base_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (there, behind) = out.split_at_mut(there);
        behind.fill(0);
        if there.is_empty() { Ok(()) } else { self.base.note(false, self.base.file.read(offset, there)) }
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.written).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = lock(&self.written);
        let end = offset + out.len() as u64;
        if end > written.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_base(offset, out, written.base_len)?;
        for (at, block) in written.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let (from, to) = ((at * BLOCK).max(offset), ((at + 1) * BLOCK).min(end));
            out[index(from - offset)..index(to - offset)]
                .copy_from_slice(&block[index(from - at * BLOCK)..index(to - at * BLOCK)]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = lock(&self.written);
        if len < written.len {
            written.base_len = written.base_len.min(len);
            written.blocks.retain(|at, block| {
                let kept = index(len.saturating_sub(at * BLOCK).min(BLOCK));
                block[kept..].fill(0);
                kept > 0
            });
        }
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = lock(&self.written);
        let end = offset + data.len() as u64;
        for at in offset / BLOCK..end.div_ceil(BLOCK) {
            if !written.blocks.contains_key(&at) {
                let mut block = vec![0; index(BLOCK)].into_boxed_slice();
                self.read_base(at * BLOCK, &mut block, written.base_len)?;
                written.blocks.insert(at, block);
            }
            let (from, to) = ((at * BLOCK).max(offset), ((at + 1) * BLOCK).min(end));
            if let Some(block) = written.blocks.get_mut(&at) {
                block[index(from - at * BLOCK)..index(to - at * BLOCK)]
                    .copy_from_slice(&data[index(from - offset)..index(to - offset)]);
            }
        }
        written.len = written.len.max(end);
        Ok(())
    }
}

/// A distance within what is in memory.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded here is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
