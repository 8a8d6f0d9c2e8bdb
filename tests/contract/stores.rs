//! Stores and stored commands for tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use corelane::{
    Change, CommandContext, Durability, DurableCommand, EventEmitter, Executor, LaneConfig, LaneError, MemoryStorage,
    QueueManager, QueueManagerBuilder, Recovery, Result, StartMark, Storage, StorageCapabilities, StorageError,
    StoredCommand, StoredDeadLetter, sleep,
};
use serde::{Deserialize, Serialize};

use crate::support::{Barrier, block_on};

/// What a stored command does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Does {
    Returns,
    /// In each attempt up to this one.
    FailsUntil(u32),
    Fails,
    Panics,
    /// For this many milliseconds.
    Waits(u64),
}

/// A stored command that tells its test of each attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) test: String,
    pub(crate) number: u32,
    pub(crate) does: Does,
}

/// One attempt of a [`Step`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ran {
    pub(crate) number: u32,
    pub(crate) attempt: u32,
    pub(crate) id: String,
}

fn ran() -> &'static Mutex<HashMap<String, Vec<Ran>>> {
    static RAN: OnceLock<Mutex<HashMap<String, Vec<Ran>>>> = OnceLock::new();
    RAN.get_or_init(Mutex::default)
}

impl DurableCommand for Step {
    const TYPE: &'static str = "step";
    type Output = u32;

    async fn execute(&self) -> Result<u32> {
        let context = CommandContext::current().expect("it is a command");
        let (number, attempt) = (self.number, context.attempt);
        let entry = Ran { number, attempt, id: context.id.to_string() };
        ran().lock().unwrap_or_else(PoisonError::into_inner).entry(self.test.clone()).or_default().push(entry);
        match self.does {
            Does::Returns => {}
            Does::FailsUntil(last) if attempt > last => {}
            Does::FailsUntil(_) | Does::Fails => return Err(LaneError::CommandError(format!("attempt {attempt}"))),
            Does::Panics => panic!("as it was told to"),
            Does::Waits(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
        }
        Ok(number)
    }
}

/// The steps of one test.
pub(crate) struct Steps(pub(crate) &'static str);

impl Steps {
    pub(crate) fn step(&self, number: u32, does: Does) -> Step {
        Step { test: self.0.into(), number, does }
    }

    /// Every attempt so far.
    pub(crate) fn ran(&self) -> Vec<Ran> {
        ran().lock().unwrap_or_else(PoisonError::into_inner).get(self.0).cloned().unwrap_or_default()
    }

    /// The numbers of those that ran, in their order.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.ran().into_iter().map(|ran| ran.number).collect()
    }
}

/// A queue on a store, not started.
pub(crate) fn unstarted_on(
    executor: &Executor,
    storage: Arc<dyn Storage>,
    lanes: &[(&str, LaneConfig, u8)],
) -> QueueManager {
    block_on(builder_on(executor, storage, lanes).build()).unwrap()
}

pub(crate) fn builder_on(
    executor: &Executor,
    storage: Arc<dyn Storage>,
    lanes: &[(&str, LaneConfig, u8)],
) -> QueueManagerBuilder {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1000))
        .with_executor(executor.clone())
        .with_storage(storage)
        .with_dlq(100)
        .with_durable::<Step>();
    lanes.iter().fold(builder, |builder, (id, config, priority)| builder.with_lane(*id, config.clone(), *priority))
}

/// A started queue on a store.
pub(crate) fn manager_on(
    executor: &Executor,
    storage: Arc<dyn Storage>,
    lanes: &[(&str, LaneConfig, u8)],
) -> QueueManager {
    let manager = unstarted_on(executor, storage, lanes);
    block_on(manager.start()).unwrap();
    manager
}

pub(crate) fn stored(storage: &MemoryStorage) -> Vec<StoredCommand> {
    let mut commands = block_on(storage.load_commands()).unwrap();
    commands.sort_by_key(|command| command.sequence);
    commands
}

pub(crate) fn letters_in(storage: &MemoryStorage) -> Vec<StoredDeadLetter> {
    block_on(storage.load_dead_letters()).unwrap()
}

/// A store that fails when it is told to, and waits when it is told to.
#[derive(Clone, Default)]
pub(crate) struct Fragile {
    pub(crate) inner: MemoryStorage,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    fails_with: Option<StorageError>,
    /// Only changes of which this is true fail.
    only: Option<fn(&Change) -> bool>,
    held: Option<Barrier>,
    /// It saves and says that it does not know.
    makes_it_all_the_same: bool,
    /// These changes are not made at once.
    pauses_on: Option<fn(&Change) -> bool>,
    /// The next of these is made, and it says that it does not know.
    unknown: Option<fn(&Change) -> bool>,
    unmark_panics: bool,
    next_page: Option<StorageError>,
    probes: usize,
    /// Changes that are held.
    waiting: usize,
}

impl Fragile {
    pub(crate) fn fail_with(&self, error: StorageError) {
        self.state().fails_with = Some(error);
    }

    pub(crate) fn fail_on(&self, error: StorageError, only: fn(&Change) -> bool) {
        let mut state = self.state();
        (state.fails_with, state.only) = (Some(error), Some(only));
    }

    pub(crate) fn save_and_fail_with(&self, error: StorageError) {
        let mut state = self.state();
        (state.fails_with, state.makes_it_all_the_same) = (Some(error), true);
    }

    pub(crate) fn pause_on(&self, which: fn(&Change) -> bool) {
        self.state().pauses_on = Some(which);
    }

    pub(crate) fn lose_sight_of(&self, which: fn(&Change) -> bool) {
        self.state().unknown = Some(which);
    }

    pub(crate) fn panic_on_unmark(&self, panics: bool) {
        self.state().unmark_panics = panics;
    }

    pub(crate) fn fail_next_page(&self, error: StorageError) {
        self.state().next_page = Some(error);
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state();
        (state.fails_with, state.only, state.makes_it_all_the_same) = (None, None, false);
    }

    /// Changes wait until the barrier is opened.
    pub(crate) fn hold(&self) -> Barrier {
        let barrier = Barrier::default();
        self.state().held = Some(barrier.clone());
        barrier
    }

    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    pub(crate) fn probes(&self) -> usize {
        self.state().probes
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, changes: &[Change]) -> Option<StorageError> {
        let state = self.state();
        let concerned = |only: fn(&Change) -> bool| changes.iter().any(only);
        state.fails_with.clone().filter(|_| state.only.is_none_or(concerned))
    }
}

#[async_trait]
impl Storage for Fragile {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.apply(vec![Change::Save(Box::new(command))], Durability::Synced).await
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        self.inner.load_commands().await
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.apply(vec![Change::Remove { id: id.into(), result: None }], Durability::Synced).await
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        self.apply(vec![Change::SaveDeadLetter(Box::new(letter))], Durability::Synced).await
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        self.inner.load_dead_letters().await
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.inner.clear_dead_letters().await
    }

    async fn clear_all(&self) -> Result<()> {
        self.inner.clear_all().await
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<()> {
        let held = self.state().held.clone();
        if let Some(held) = held {
            self.state().waiting += 1;
            held.passed().await;
            self.state().waiting -= 1;
        }
        let pauses = self.state().pauses_on.is_some_and(|which| changes.iter().any(which));
        if pauses {
            pause(3).await;
        }
        let is_lost = |which: &mut fn(&Change) -> bool| changes.iter().any(*which);
        let lost = self.state().unknown.take_if(is_lost).is_some();
        let failure = self.failure(&changes);
        let saves = changes.iter().all(|change| matches!(change, Change::Save(_)));
        if failure.is_none() || saves && self.state().makes_it_all_the_same {
            self.inner.apply(changes, durability).await?;
        }
        let failure = failure.or_else(|| lost.then(|| StorageError::OutcomeUnknown("of a test".into())));
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn recover(&self) -> Result<Recovery> {
        self.inner.recover().await
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        let failure = self.state().next_page.take();
        match failure {
            Some(error) => Err(error.into()),
            None => self.inner.load_page(after, limit).await,
        }
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        self.inner.mark_started(id)
    }

    fn unmark(&self, mark: StartMark) {
        assert!(!self.state().unmark_panics, "of a test");
        self.inner.unmark(mark);
    }

    async fn probe(&self) -> Result<()> {
        self.state().probes += 1;
        self.failure(&[]).map_or(Ok(()), |error| Err(error.into()))
    }

    async fn finish(&self) -> Result<()> {
        self.inner.finish().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

/// Not ready the first `polls` times.
async fn pause(polls: usize) {
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
