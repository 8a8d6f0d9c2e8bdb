//! The queue's side of a store: who gets which number, what is handed over, and what happens when it fails.
//!
//! A submission waits for its change and hears what became of it. The end of a command waits for nobody: it goes through the
//! `outbox`, which keeps what the store refuses. While the store fails it is asked once a second; lanes that stop meanwhile are
//! held. Full is no failure in that sense: commands end, and make room.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use event_listener::Event;
use futures_lite::FutureExt as _;

use super::idempotency::{Keys, Window};
use super::outbox::{Group, Outbox, Told};
use super::recover::{Recovered, RecoveryReport, Suspect};
use crate::clock::Tick;
use crate::error::{LaneError, Result, StorageError};
use crate::event::{EventEmitter, Transition};
use crate::executor::{Executor, LOWEST_PRIORITY, discard_panic, panic_message, sleep};
use crate::id::CommandId;
use crate::queue::command_queue::QueueCore;
use crate::queue::registry::Registry;
use crate::storage::{Change, Durability, StartMark, Storage, StorageHealth};

/// How often a store that has failed is asked again.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// What holds lanes back.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct StoreState {
    /// Commands run alone.
    pub(in crate::queue) trial: bool,
    /// The store has failed, and is not merely full.
    pub(in crate::queue) failed: bool,
}

/// A change on its way to the store.
pub(in crate::queue) type Storing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

pub(in crate::queue) struct Store {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) registry: Registry<dyn Recovered>,
    pub(super) keys: Arc<Keys>,
    executor: Executor,
    events: EventEmitter,
    queue: OnceLock<Weak<QueueCore>>,
    /// Of the next command that is stored.
    sequence: AtomicU64,
    trouble: Mutex<Trouble>,
    outbox: Arc<Outbox>,
    report: OnceLock<RecoveryReport>,
    /// A lane was resumed, or everything is cancelled.
    lanes_changed: Event,
    /// Whether it is known which number comes next.
    opened: AtomicU8,
    /// Somebody has found that out, or has given up.
    opening: Event,
    /// Commands that run alone when the queue starts. None once it has.
    suspects: Mutex<Option<VecDeque<Suspect>>>,
}

/// What is wrong, and what that leaves to do. Nothing under its lock calls the store or others' code.
#[derive(Default)]
struct Trouble {
    failure: Option<StorageError>,
    probing: bool,
    /// Commands are on trial: nothing else runs.
    trial: bool,
}

impl Store {
    pub(in crate::queue) fn new(
        storage: Arc<dyn Storage>,
        registry: Registry<dyn Recovered>,
        window: Window,
        executor: Executor,
        events: EventEmitter,
    ) -> Arc<Self> {
        Arc::new(Self {
            storage,
            registry,
            keys: Keys::new(window),
            executor,
            events,
            queue: OnceLock::new(),
            sequence: AtomicU64::new(1),
            trouble: Mutex::default(),
            outbox: Arc::default(),
            report: OnceLock::new(),
            lanes_changed: Event::new(),
            opened: AtomicU8::new(UNOPENED),
            opening: Event::new(),
            suspects: Mutex::new(Some(VecDeque::new())),
        })
    }

    /// Names the queue whose lanes are held while the store fails.
    pub(in crate::queue) fn belongs_to(&self, queue: Weak<QueueCore>) {
        // Set once, with the queue.
        let _ = self.queue.set(queue);
    }

    /// Opens the store for a queue that was not built from it: nothing is taken over but the number that comes next.
    pub(super) async fn open(&self) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        loop {
            let listener = self.opening.listen();
            // ORDERING: AcqRel and Acquire: who finds it open sees the number.
            match self.opened.compare_exchange(UNOPENED, OPENING, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(OPENED) => return Ok(()),
                Err(_) => listener.await,
            }
        }
        let mut opening = Opening { store: self, found: false };
        self.begin_at(self.storage.recover().await?.next_sequence);
        let mut page = self.storage.load_page(None, 1024).await?;
        while let Some(last) = page.last() {
            self.begin_at(page.iter().map(|command| command.sequence).max().unwrap_or(0).saturating_add(1));
            page = self.storage.load_page(Some(last), 1024).await?;
        }
        opening.found = true;
        Ok(())
    }

    /// The queue was built from the store.
    pub(super) fn is_open(&self) -> bool {
        self.opened.load(Ordering::Acquire) == OPENED
    }

    pub(super) fn set_open(&self) {
        self.opened.store(OPENED, Ordering::Release);
    }

    /// Told when a lane was resumed, or everything is cancelled.
    pub(super) const fn lanes_changed(&self) -> &Event {
        &self.lanes_changed
    }

    pub(in crate::queue) fn tell_lanes_changed(&self) {
        self.lanes_changed.notify(usize::MAX);
    }

    /// Why a submission that does not wait for the store is refused now.
    pub(super) fn refusal(&self) -> Option<LaneError> {
        let unopened = || LaneError::QueueError("the queue was not built from its store, which is not open yet".into());
        self.lock().failure.clone().map(LaneError::from).or_else(|| (!self.is_open()).then(unopened))
    }

    /// Later commands come after all that had a number below this.
    pub(super) fn begin_at(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn next_id(&self) -> CommandId {
        CommandId::stored(self.next_sequence())
    }

    pub(super) fn now(&self) -> Tick {
        self.executor.clock().now()
    }

    pub(in crate::queue) const fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub(in crate::queue) fn report(&self) -> Option<&RecoveryReport> {
        self.report.get()
    }

    pub(super) fn set_recovered(&self, report: RecoveryReport, suspects: VecDeque<Suspect>) {
        let _ = self.report.set(report);
        *self.suspects.lock().unwrap_or_else(PoisonError::into_inner) = Some(suspects);
    }

    /// For the one who starts the queue first, or ends it before it has started.
    pub(in crate::queue) fn take_suspects(&self) -> Option<VecDeque<Suspect>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How the store does, as far as the queue has heard.
    pub(in crate::queue) fn health(&self) -> StorageHealth {
        match &self.lock().failure {
            None => self.storage.health(),
            Some(StorageError::StorageFull(_)) => StorageHealth::Full,
            Some(error) => StorageHealth::Failed(error.clone()),
        }
    }

    /// Makes a change for a submission.
    pub(super) async fn save(self: &Arc<Self>, change: Change, durability: Durability) -> Result<()> {
        if let Some(cause) = self.lock().failure.clone().filter(|failure| !is_full(failure)) {
            return Err(StorageError::Failed { every: PROBE_EVERY, cause: cause.to_string() }.into());
        }
        Ok(self.call(vec![change], durability).await?)
    }

    /// Makes a change that nobody refuses any more, behind all others of that kind. None if that is settled at once.
    pub(super) fn later(self: &Arc<Self>, change: Change, durability: Durability) -> Option<Storing> {
        let (number, told) = self.outbox.tell(change, durability);
        if let Told::Alone(group) = told {
            let mut making: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(Arc::clone(self).make(group));
            // Most stores take it at once.
            if making.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.hand_over(Some(making));
            }
        }
        if self.outbox.is_left() {
            self.hand_over(None);
        }
        match self.outbox.outcome(number) {
            Some(Ok(())) => None,
            // It is owed, and whoever does not wait for it goes on.
            Some(Err(_)) if durability != Durability::Synced => None,
            _ => {
                let store = Arc::clone(self);
                Some(Box::pin(async move { store.outcome(number).await }))
            }
        }
    }

    /// As [`Store::later`], for who does not wait.
    pub(super) fn later_detached(self: &Arc<Self>, change: Change) {
        drop(self.later(change, Durability::Relaxed));
    }

    /// Has what waits handed over, behind what is on its way. At the best priority: commands wait for it with their permits.
    fn hand_over(self: &Arc<Self>, first: Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
        let store = Arc::clone(self);
        let handing = async move {
            if let Some(first) = first {
                first.await;
            }
            while let Some(group) = store.outbox.take(false) {
                Arc::clone(&store).make(group).await;
            }
        };
        self.executor.spawn(0, handing).detach();
    }

    async fn outcome(&self, number: u64) -> Result<()> {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.outbox.listen();
            match self.outbox.outcome(number) {
                Some(outcome) => return Ok(outcome?),
                None => listener.await,
            }
        }
    }

    /// Hands a group over, as far as the store takes it.
    async fn make(self: Arc<Self>, mut group: Group) {
        let error = match self.call(group.all(), group.durability()).await {
            Ok(()) => return group.made_all(),
            Err(error) => error,
        };
        if error.is_failure() {
            return self.refuse(group, error);
        }
        // One of them is no record for this store: the others are not to suffer for it.
        while let Some(changes) = group.first() {
            for change in changes {
                if let Err(error) = self.make_somehow(change, group.durability()).await {
                    return self.refuse(group, error);
                }
            }
            group.made_one();
        }
    }

    fn refuse(self: &Arc<Self>, group: Group, error: StorageError) {
        group.refused(error);
        self.begin_probing();
    }

    /// Makes a change with less, if the store does not take all of it. The error is of the store, not of the record.
    async fn make_somehow(self: &Arc<Self>, change: Change, durability: Durability) -> Result<(), StorageError> {
        let mut change = Some(change);
        while let Some(trying) = change.take() {
            let error = match self.call(vec![trying.clone()], durability).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_failure() => return Err(error),
                Err(error) => error,
            };
            change = with_less(trying);
            tracing::error!(%error, dropped = change.is_none(), "the store does not take a record");
        }
        Ok(())
    }

    /// Calls the store, which may be others' code, and takes note of how it does.
    async fn call(self: &Arc<Self>, changes: Vec<Change>, durability: Durability) -> Result<(), StorageError> {
        let error = match contained(async { self.storage.apply(changes, durability).await }).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        self.note(&error);
        Err(error)
    }

    fn note(self: &Arc<Self>, error: &StorageError) {
        if !error.is_failure() || *error == StorageError::Closed {
            return;
        }
        let changed = {
            let mut trouble = self.lock();
            let before = trouble.failure.as_ref().map(is_full);
            // One that is full may fail on top; one that has failed is not merely full.
            let worse = before.is_none() || before == Some(true) && !is_full(error);
            if worse {
                trouble.failure = Some(error.clone());
            }
            worse
        };
        if changed {
            tracing::error!(%error, "the store has failed");
            let queue = self.queue.get().and_then(Weak::upgrade);
            if let Some(metrics) = queue.as_ref().and_then(|queue| queue.context.metrics.as_ref()) {
                metrics.count_storage_error();
            }
            self.events.observe(|| Transition::StorageFailed { error: error.to_string().into() });
            self.hold_lanes();
        }
        self.begin_probing();
    }

    fn begin_probing(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().probing, true) {
            return;
        }
        let probing = Probing(Arc::downgrade(self));
        let probes = async move {
            loop {
                sleep(PROBE_EVERY).await;
                let Some(store) = probing.0.upgrade() else { return };
                if store.works_again().await {
                    return;
                }
            }
        };
        self.executor.spawn(LOWEST_PRIORITY, probes).detach();
    }

    /// Asks the store, and gives it what it is owed. True if there is nothing left to ask for.
    async fn works_again(self: &Arc<Self>) -> bool {
        let probed = contained(async { self.storage.probe().await }).await;
        if probed.is_err() || self.pay().await.is_err() || self.storage.health() != StorageHealth::Working {
            return false;
        }
        let failed = {
            let mut trouble = self.lock();
            if self.outbox.owes() {
                return false;
            }
            trouble.probing = false;
            trouble.failure.take().is_some()
        };
        if failed {
            tracing::info!("the store works again");
            self.events.observe(|| Transition::StorageRecovered);
            self.hold_lanes();
        }
        true
    }

    /// Returns when everything told so far is stored: hands it over itself, if nobody does.
    async fn pay(self: &Arc<Self>) -> Result<()> {
        let told = self.outbox.told();
        let mut again = true;
        loop {
            let listener = self.outbox.listen();
            if told == 0 || matches!(self.outbox.outcome(told - 1), Some(Ok(()))) {
                return Ok(());
            }
            match self.outbox.take(again) {
                Some(group) => Arc::clone(self).make(group).await,
                None => match self.outbox.outcome(told - 1) {
                    Some(outcome) => return Ok(outcome?),
                    None => listener.await,
                },
            }
            // Once: who asks again is who waits for the store.
            again = false;
        }
    }

    /// Begins or ends a time in which nothing runs but what is on trial.
    pub(super) fn set_trial(&self, trial: bool) {
        self.lock().trial = trial;
        self.hold_lanes();
    }

    /// Holds the lanes that are to be held, and no others.
    pub(in crate::queue) fn hold_lanes(&self) {
        let Some(queue) = self.queue.get().and_then(Weak::upgrade) else { return };
        queue.hold_for_store(|| {
            let trouble = self.lock();
            let failed = trouble.failure.as_ref().is_some_and(|failure| !is_full(failure));
            StoreState { trial: trouble.trial, failed }
        });
    }

    /// Everything that was acknowledged is durable once this returns, also what was owed.
    pub(in crate::queue) async fn flush(self: &Arc<Self>) -> Result<()> {
        self.pay().await?;
        Ok(contained(async { self.storage.flush().await }).await?)
    }

    /// The queue has done its work: what still runs is not charged for what comes.
    pub(in crate::queue) async fn finish(self: &Arc<Self>) -> Result<()> {
        if !self.is_open() {
            // Another queue may have it.
            return Ok(());
        }
        let paid = self.pay().await;
        contained(async { self.storage.finish().await }).await?;
        paid
    }

    /// Notes that a command runs.
    pub(super) fn mark(&self, id: &str) -> Option<StartMark> {
        catch_unwind(AssertUnwindSafe(|| self.storage.mark_started(id))).unwrap_or_else(|panic| {
            discard_panic(panic);
            None
        })
    }

    pub(super) fn unmark(&self, mark: StartMark) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.storage.unmark(mark))) {
            discard_panic(panic);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that takes less room; none if it can only be dropped.
fn with_less(change: Change) -> Option<Change> {
    /// Of an error, what any store takes.
    const ERROR_MAX: usize = 1024;
    match change {
        Change::Remove { id, result: Some(_) } => Some(Change::Remove { id, result: None }),
        Change::GiveUp(mut letter) if !letter.details.is_null() || letter.error.chars().count() > ERROR_MAX => {
            letter.details = serde_json::Value::Null;
            letter.error = letter.error.chars().take(ERROR_MAX).collect();
            Some(Change::GiveUp(letter))
        }
        Change::GiveUp(letter) => Some(Change::Remove { id: letter.command_id, result: None }),
        _ => None,
    }
}

fn is_full(error: &StorageError) -> bool {
    matches!(error, StorageError::StorageFull(_))
}

/// What a store says; its panic is an error.
async fn contained<T>(asked: impl Future<Output = Result<T>>) -> Result<T, StorageError> {
    match AssertUnwindSafe(asked).catch_unwind().await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(LaneError::Storage(error))) => Err(error),
        Ok(Err(error)) => Err(StorageError::Io(error.to_string())),
        Err(panic) => {
            let message = panic_message(panic.as_ref()).to_owned();
            discard_panic(panic);
            Err(StorageError::OutcomeUnknown(format!("the store panicked: {message}")))
        }
    }
}

/// Somebody asks the store every second. Dropped before the end, the next failure asks again.
struct Probing(Weak<Store>);

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(store) = self.0.upgrade() {
            store.lock().probing = false;
        }
    }
}

const UNOPENED: u8 = 0;
const OPENING: u8 = 1;
const OPENED: u8 = 2;

/// Somebody opens the store. Dropped before the end, the next one tries.
struct Opening<'a> {
    store: &'a Store,
    found: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.store.opened.store(if self.found { OPENED } else { UNOPENED }, Ordering::Release);
        self.store.opening.notify(usize::MAX);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("registry", &self.registry).finish_non_exhaustive()
    }
}
