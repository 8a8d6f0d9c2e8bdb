//! What a worker polls, as the watch may see it: one word per worker.
//!
//! The worker shows a record that lies on its stack, polls, and hides it. The watch claims the word, looks at the record,
//! and gives it back; a worker that wants to hide a claimed record waits for that. So the record lives while it is looked
//! at, the worker never waits unless it is looked at just then, and to show costs a store and an uncontended exchange.
//!
//! ```text
//! empty --show--> record <--claim / give_back--> record | CLAIMED
//!   ^---hide---------'
//! ```
//!
//! Only the worker shows and hides, only the watch claims and gives back, and the watch is one thread. Never: the watch
//! looks at a record that is not shown any more. `loom-tests/shown.rs` tries to break it.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::fence;
use std::time::Duration;

use super::shared::Remote;
use super::task::TaskRef;
use super::worker::Local;
use crate::clock::Tick;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{spin_loop, store_pointer, yield_now};

/// Set in the word while the watch looks. Records are aligned, so that their addresses leave this bit free.
const CLAIMED: usize = 1;

/// A poll that the watch may ask about.
pub(crate) struct Record<'a> {
    pub(crate) task: TaskRef,
    /// When the task ends, even if the poll is stuck then; [`Tick::NEVER`] for no end.
    pub(crate) deadline: Tick,
    pub(crate) about: &'a dyn About,
}

/// Knows what is polled, so that it can be told of while the poll goes on.
pub(crate) trait About: Sync {
    /// Copies what is to be told. Called by the watch while the poll may wait for it to return: it must be short.
    fn copy(&self) -> Option<Report>;
}

/// Tells that a poll on this worker has lasted for so long. Called outside of any claim.
pub(crate) type Report = Box<dyn FnOnce(usize, Duration)>;

/// The word.
#[derive(Debug)]
pub(crate) struct Shown {
    word: AtomicPtr<()>,
}

impl Shown {
    pub(crate) fn new() -> Self {
        Self { word: AtomicPtr::new(null_mut()) }
    }

    /// Called by the worker.
    fn is_empty(&self) -> bool {
        self.word.load(Ordering::Relaxed).is_null()
    }

    /// Called by the worker while the word is empty: `record` stays valid until [`Shown::hide`] has returned.
    pub(crate) fn show(&self, record: NonNull<()>) {
        // ORDERING: release, so that the watch sees the record as it is here, and the count of polls as it is now.
        store_pointer(&self.word, record.as_ptr());
    }

    /// Called by the worker with what it showed. Afterwards nobody looks at it.
    pub(crate) fn hide(&self, record: NonNull<()>) {
        if !self.try_hide(record) {
            self.wait_to_hide(record);
        }
    }

    fn try_hide(&self, record: NonNull<()>) -> bool {
        // ORDERING: acquire, to come after the watch's look, which `give_back` has released.
        // Model: shown.rs::a_record_is_never_looked_at_once_it_is_hidden.
        self.word.compare_exchange(record.as_ptr(), null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn wait_to_hide(&self, record: NonNull<()>) {
        /// Tries before the watch gets the CPU: it may have been interrupted, which takes much longer than a look.
        const SPINS: u32 = 64;
        let mut tries = 0;
        while !self.try_hide(record) {
            tries += 1;
            if tries < SPINS { spin_loop() } else { yield_now() }
        }
    }

    /// Called by the watch: what is shown, which stays until it is given back.
    pub(crate) fn claim(&self) -> Option<NonNull<()>> {
        let record = NonNull::new(self.word.load(Ordering::Relaxed))?;
        let claimed = record.as_ptr().map_addr(|address| address | CLAIMED);
        // ORDERING: acquire, see `show`. The worker may have hidden it, and may even have shown another one at the same
        // place, which then is what was claimed.
        let claim = self.word.compare_exchange(record.as_ptr(), claimed, Ordering::Acquire, Ordering::Relaxed);
        claim.is_ok().then_some(record)
    }

    /// Called by the watch with what it claimed.
    pub(crate) fn give_back(&self, record: NonNull<()>) {
        // ORDERING: release, see `hide`. Nobody else writes a claimed word.
        store_pointer(&self.word, record.as_ptr());
    }
}

/// Polls something that the watch may ask about meanwhile.
pub(crate) fn show_during<T>(record: &Record<'_>, poll: impl FnOnce() -> T) -> T {
    let _showing = Showing::new(record);
    poll()
}

/// Hides the record when it is dropped, also by a panic.
struct Showing<'a> {
    /// None if nobody is to see it.
    shown: Option<&'static Shown>,
    record: NonNull<()>,
    _record: PhantomData<&'a ()>,
}

impl<'a> Showing<'a> {
    fn new(record: &'a Record<'_>) -> Self {
        let shared = record.task.meta().shared;
        let worker = || Local::with_current(shared, |local| local.map(|local| &*local.remote().shown));
        // Not empty for a poll within a poll, of which the outer one is shown.
        let shown = if shared.watches(record.deadline) { worker().filter(|shown| shown.is_empty()) } else { None };
        let place = NonNull::from(record).cast();
        if let Some(shown) = shown {
            shown.show(place);
            if record.deadline != Tick::NEVER {
                // ORDERING: we show, fence, and read when the watch looks next; it writes that, fences, and reads what is
                // shown: one of the two sees the other.
                fence(Ordering::SeqCst);
                shared.look_by(record.deadline);
            }
        }
        Self { shown, record: place, _record: PhantomData }
    }
}

impl Drop for Showing<'_> {
    fn drop(&mut self) {
        if let Some(shown) = self.shown {
            shown.hide(self.record);
        }
    }
}

/// A look of the watch at what a worker shows; the worker goes on with that poll, but not past its end.
pub(super) struct Look<'a> {
    shown: &'a Shown,
    record: NonNull<()>,
}

impl<'a> Look<'a> {
    /// Called by the watch's thread only.
    pub(super) fn at(remote: &'a Remote) -> Option<Self> {
        let shown = &remote.shown;
        shown.claim().map(|record| Self { shown, record })
    }

    pub(super) fn record(&self) -> &Record<'_> {
        // SAFETY: made from a record by `Showing`, which borrows it and does not end before its `hide` has returned, which
        // waits for the claim that this look has. `show` released the record to the claim, and it is only read; `task` and
        // `about` may be used from other threads (`TaskRef` and `About` are `Sync`), and what they borrow outlives the
        // record.
        unsafe { self.record.cast::<Record<'_>>().as_ref() }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.shown.give_back(self.record);
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
