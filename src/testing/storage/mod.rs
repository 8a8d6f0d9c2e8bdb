//! What every [`Storage`] must pass: one suite, for the stores of this crate and for yours.
//!
//! | function | for stores that | needs |
//! |---|---|---|
//! | [`conformance`] | are stores | how to open an empty one |
//! | [`persistence`] | outlive their handle | how to open a closed one again |
//! | [`crash_safety`] | outlive their process | how to open one again whose process was killed |
//!
//! What a store's [`capabilities`](Storage::capabilities) do not claim is not asked for, so that one of seven methods passes.
//! What they do claim is. Every function panics with the promise that is broken, and what was found instead.
//!
//! ```
//! use corelane::MemoryStorage;
//! use corelane::testing::storage::{conformance, crash_safety, persistence};
//!
//! futures::executor::block_on(async {
//!     conformance(|| async { MemoryStorage::new() }).await;
//!     persistence(|| async { MemoryStorage::new() }, |store| async move { store.after_crash() }).await;
//!     crash_safety(|| async { MemoryStorage::new() }, |store| async move { store.after_crash() }).await;
//! });
//! ```
//!
//! The suite runs on any runtime. What it calls from several threads it calls from workers of an
//! [`Executor`](crate::Executor), as a queue does, within the tokio runtime that is current where the suite runs, if any.

mod changes;
mod crashes;
mod lives;
mod paging;
mod reopened;
mod sample;
mod seven;
mod together;

use std::cell::RefCell;
use std::fmt::Debug;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::error::Result;
use crate::executor::timeout;
use crate::storage::{Recovery, Storage};

/// Longer than any check takes, on any disk.
const HANG: Duration = Duration::from_secs(300);

/// Checks all that can be seen through one handle: the seven methods, changes in groups, paging, several threads at once.
///
/// `open` gives a new, empty store, each time it is called.
///
/// # Panics
///
/// If the store breaks a promise of [`Storage`], or a call takes minutes. The message names the promise.
pub async fn conformance<S, Open, Opening>(open: Open)
where
    S: Storage + 'static,
    Open: FnMut() -> Opening,
    Opening: Future<Output = S>,
{
    let stores = &Opened::new(open, |store| async { store });
    returns(seven::a_new_store_is_empty(stores.open().await)).await;
    returns(seven::commands_come_back_as_they_are(stores.open().await)).await;
    returns(seven::saving_replaces(stores.open().await)).await;
    returns(seven::removing_removes_one(stores.open().await)).await;
    returns(seven::letters_keep_their_order(stores.open().await)).await;
    returns(seven::commands_and_letters_are_apart(stores.open().await)).await;
    returns(seven::clearing(stores.open().await)).await;
    returns(seven::any_text_is_an_id(stores.open().await)).await;
    returns(seven::any_data_is_a_payload(stores.open().await)).await;
    returns(seven::dropped_futures_change_nothing_later(stores.open().await)).await;

    returns(changes::made_in_their_order(stores.open().await)).await;
    returns(changes::attempts(stores.open().await)).await;
    returns(changes::giving_up(stores.open().await)).await;
    returns(changes::replaying(stores.open().await)).await;
    returns(changes::of_any_number(stores.open().await)).await;
    returns(changes::seen_at_once(stores.open().await)).await;
    returns(changes::all_or_none(stores.open().await)).await;

    returns(paging::every_command_once_in_order(stores.open().await)).await;
    returns(paging::equal_places(stores.open().await)).await;
    returns(paging::while_others_change_it(stores.open().await)).await;

    returns(lives::a_new_store_has_no_past(stores.open().await)).await;
    returns(lives::one_queue_at_a_time(stores.open().await)).await;
    returns(lives::marks(stores.open().await)).await;
    returns(lives::finishing(stores.open().await)).await;

    returns(together::from_several_threads(stores.open().await)).await;
}

/// Checks what a store keeps when it is closed and opened again.
///
/// `open` gives a new, empty store. `reopen` gets one that was [closed](Storage::close), and gives what a later process
/// would open in its place.
///
/// # Panics
///
/// As [`conformance`].
pub async fn persistence<S, Open, Opening, Reopen, Reopening>(open: Open, reopen: Reopen)
where
    S: Storage + 'static,
    Open: FnMut() -> Opening,
    Opening: Future<Output = S>,
    Reopen: FnMut(S) -> Reopening,
    Reopening: Future<Output = S>,
{
    let stores = &Opened::new(open, reopen);
    returns(reopened::everything_is_there(stores.open().await, stores)).await;
    returns(reopened::what_has_gone_stays_away(stores.open().await, stores)).await;
    returns(reopened::results(stores.open().await, stores)).await;
    returns(reopened::places_are_not_given_twice(stores.open().await, stores)).await;
    returns(reopened::a_clean_end_is_charged_to_nobody(stores.open().await, stores)).await;
    returns(reopened::changes_that_come_too_late(stores.open().await, stores)).await;
}

/// Checks what a store keeps when its process is killed.
///
/// `open` gives a new, empty store. `kill` gets one that was not closed, and gives what a later process would open in its
/// place if the one before had been killed at this moment: so it must not close the store, as dropping one may.
///
/// # Panics
///
/// As [`conformance`].
pub async fn crash_safety<S, Open, Opening, Kill, Killing>(open: Open, kill: Kill)
where
    S: Storage + 'static,
    Open: FnMut() -> Opening,
    Opening: Future<Output = S>,
    Kill: FnMut(S) -> Killing,
    Killing: Future<Output = S>,
{
    let stores = &Opened::new(open, kill);
    returns(crashes::what_was_synced_is_there(stores.open().await, stores)).await;
    returns(crashes::what_is_lost_is_the_newest(stores.open().await, stores)).await;
    returns(crashes::groups_are_whole(stores)).await;
    returns(crashes::charged_to_what_ran(stores.open().await, stores)).await;
    returns(crashes::charged_once(stores.open().await, stores)).await;
    returns(crashes::after_its_queue_has_finished(stores.open().await, stores)).await;
}

/// The stores under test. Without their type, so that the checks are compiled once.
trait Stores {
    /// A new one.
    fn open(&self) -> Pin<Box<dyn Future<Output = Arc<dyn Storage>> + '_>>;

    /// What comes after this one, which nobody else has.
    fn next(&self, store: Arc<dyn Storage>) -> Pin<Box<dyn Future<Output = Arc<dyn Storage>> + '_>>;
}

struct Opened<S, Open, Opening, Next, Following> {
    open: RefCell<Open>,
    next: RefCell<Next>,
    /// The one that was opened last.
    current: RefCell<Option<Arc<S>>>,
    _futures: PhantomData<(Opening, Following)>,
}

impl<S, Open, Opening, Next, Following> Opened<S, Open, Opening, Next, Following>
where
    S: Storage + 'static,
    Open: FnMut() -> Opening,
    Next: FnMut(S) -> Following,
{
    fn new(open: Open, next: Next) -> Self {
        Self { open: RefCell::new(open), next: RefCell::new(next), current: RefCell::new(None), _futures: PhantomData }
    }

    async fn begin(&self, opening: impl Future<Output = S>) -> Arc<dyn Storage> {
        let store = Arc::new(opening.await);
        self.current.replace(Some(Arc::clone(&store)));
        store
    }
}

impl<S, Open, Opening, Next, Following> Stores for Opened<S, Open, Opening, Next, Following>
where
    S: Storage + 'static,
    Open: FnMut() -> Opening,
    Opening: Future<Output = S>,
    Next: FnMut(S) -> Following,
    Following: Future<Output = S>,
{
    fn open(&self) -> Pin<Box<dyn Future<Output = Arc<dyn Storage>> + '_>> {
        // The one before goes first: it may lie where the new one will.
        drop(self.current.take());
        let opening = (self.open.borrow_mut())();
        Box::pin(self.begin(opening))
    }

    fn next(&self, store: Arc<dyn Storage>) -> Pin<Box<dyn Future<Output = Arc<dyn Storage>> + '_>> {
        drop(store);
        let last = self.current.take().and_then(Arc::into_inner);
        let following = last.map(|store| (self.next.borrow_mut())(store));
        Box::pin(self.begin(following.expect("a check has given back all that it has of a store")))
    }
}

/// Waits for a check, but not for ever.
async fn returns(check: impl Future<Output = ()>) {
    let returned = timeout(HANG, check).await.is_ok();
    holds("every call returns", returned, "one that does not");
}

/// Panics unless what was found is, down to the last digit, what was promised.
fn same<T: Debug + ?Sized>(promise: &str, found: &T, expected: &T) {
    let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
    assert!(
        found == expected,
        "a promise of Storage is broken: {promise}\n   found: {}\nexpected: {}",
        shortened(&found, &expected),
        shortened(&expected, &found)
    );
}

/// Panics unless a promise holds.
fn holds(promise: &str, kept: bool, found: impl Debug) {
    assert!(kept, "a promise of Storage is broken: {promise}\n   found: {}", shortened(&format!("{found:?}"), ""));
}

/// What a call returned, which must not be an error.
fn works<T>(promise: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("a promise of Storage is broken: {promise}\n   found: the error {error}"))
}

/// What a call on a store that works returns.
fn done<T>(result: Result<T>) -> T {
    works("what is asked of a store that works is done", result)
}

/// What the queue that gets the store hears first.
async fn recovered(store: &dyn Storage) -> Recovery {
    works("a queue gets a store that no other one has", store.recover().await)
}

/// Polls a future a few times and drops it, unless it is ready before. True if it was.
fn abandoned<F: Future>(future: F, polls: usize) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    let mut future = pin!(future);
    (0..polls).any(|_| future.as_mut().poll(&mut context).is_ready())
}

/// A text from shortly before it differs from another, cut where it gets too long to read.
fn shortened(text: &str, other: &str) -> String {
    const BEFORE: usize = 200;
    const LENGTH: usize = 1000;
    let common = text.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let skipped = if text.chars().count() <= LENGTH { 0 } else { common.saturating_sub(BEFORE) };
    let part = text.chars().skip(skipped).take(LENGTH).collect::<String>();
    let (before, after) = (skipped > 0, text.len() > part.len() + skipped);
    format!("{}{part}{}", if before { ".. " } else { "" }, if after { " .." } else { "" })
}
