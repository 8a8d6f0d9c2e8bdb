//! Which log a thread writes: its own, of each emitter that it tells something.
//!
//! The last one is found by comparing the emitter's number, which is never given again. A thread that ends leaves its logs to
//! others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hub::Hub;
use super::log::Log;

/// A log that this thread writes.
struct Owned(Arc<Log>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.release();
    }
}

struct Writers {
    /// One of `all`, and dropped with it, so that nobody writes a log that is released.
    last: RefCell<Option<Arc<Log>>>,
    all: RefCell<BTreeMap<u64, Owned>>,
}

thread_local! {
    static WRITERS: Writers = const { Writers { last: RefCell::new(None), all: RefCell::new(BTreeMap::new()) } };
}

/// Calls `write` with this thread's log of the emitter with this number, if that is the last one it has used.
#[inline]
pub(super) fn with_last(key: u64, write: impl FnOnce(&Log) -> bool) -> bool {
    let written = WRITERS.try_with(|writers| {
        let Ok(last) = writers.last.try_borrow() else { return false };
        last.as_deref().is_some_and(|log| log.key == key && write(log))
    });
    written.unwrap_or(false)
}

/// Calls `write` with this thread's log of this emitter.
pub(super) fn with_own<T>(hub: &Hub, write: impl FnOnce(&Log) -> T) -> T {
    let own = WRITERS.try_with(|writers| {
        let mut last = writers.last.try_borrow_mut().ok()?;
        if let Some(log) = last.as_ref().filter(|log| log.key == hub.number) {
            return Some(Arc::clone(log));
        }
        let mut all = writers.all.try_borrow_mut().ok()?;
        if !all.contains_key(&hub.number) {
            // Now and then: this is not the way of an event, but of the first one.
            all.retain(|_, owned| !owned.0.closed.load(Ordering::Relaxed));
            all.insert(hub.number, Owned(hub.log()));
        }
        *last = all.get(&hub.number).map(|owned| Arc::clone(&owned.0));
        last.clone()
    });
    match own {
        Ok(Some(log)) => write(&log),
        // The thread ends, and this is told by a destructor of one of its values.
        _ => write(&Owned(hub.log()).0),
    }
}
