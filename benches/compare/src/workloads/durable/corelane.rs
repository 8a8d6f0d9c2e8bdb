//! corelane: its queue, and its store alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corelane::{
    Change, Durability, DurableCommand, EventEmitter, Executor, LaneConfig, LocalStorage, QueueManager,
    QueueManagerBuilder, Stop, Storage,
};
use futures_lite::future::block_on;
use serde::{Deserialize, Serialize};

use super::store::{Setting, Store};
use super::{SETTLING, TEXT, record};
use crate::workloads::seed::CONCURRENT;

/// What the records of this module say, as a type.
#[derive(Serialize, Deserialize)]
struct Work {
    number: u64,
    text: String,
}

impl Work {
    fn new(number: u64) -> Self {
        Self { number, text: TEXT.to_owned() }
    }
}

impl DurableCommand for Work {
    const TYPE: &'static str = "work";
    type Output = u64;

    async fn execute(&self) -> corelane::Result<u64> {
        Ok(self.number)
    }
}

/// A queue with one lane, durable by default.
pub struct Queue {
    manager: QueueManager,
    storage: Arc<LocalStorage>,
    commits: Commits,
}

/// A queue on that store, not started: what is stored stands in its lane.
pub async fn built(storage: Arc<LocalStorage>, executor: &Executor) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
    let builder = builder.with_storage(storage).with_durable::<Work>();
    builder.with_lane("lane", LaneConfig::new(1, CONCURRENT), 2).build().await.expect("the configuration is usable")
}

/// Ends a queue, whose commands stay stored, and its store.
pub async fn stop(manager: QueueManager, storage: &LocalStorage) {
    let report = manager.stop(Stop::drain(Duration::ZERO)).await;
    assert!(report.is_complete() && report.storage.is_none(), "{report:?}");
    drop(manager);
    storage.close().await.expect("it can be written");
}

impl Store for Queue {
    fn open(setting: &Setting<'_>) -> Self {
        block_on(async {
            let storage = Arc::new(prepared(setting).await);
            let manager = built(Arc::clone(&storage), setting.executor).await;
            if setting.started {
                manager.start().await.expect("a new queue can be started");
            }
            Self { manager, storage, commits: Commits::of(setting.folder) }
        })
    }

    async fn submit(&self, number: u64) {
        self.manager.submit_durable("lane", Work::new(number)).await.expect("the queue is open").detach();
    }

    async fn live(&self, number: u64) {
        let ticket = self.manager.submit_durable("lane", Work::new(number)).await.expect("the queue is open");
        assert_eq!(ticket.await.expect("it settles").expect("it succeeds"), number);
    }

    async fn flush(&self) {
        self.storage.flush().await.expect("it can be written");
    }

    fn close(self, left: u64) -> Option<u64> {
        let commits = self.commits.since();
        block_on(async {
            check(&self.storage, left).await;
            stop(self.manager, &self.storage).await;
        });
        Some(commits)
    }
}

/// The store without a queue: it is told what to store.
pub struct Alone {
    storage: LocalStorage,
    commits: Commits,
}

/// Commits of a store. Their number stands in its file `watermark`, in two places that alternate.
struct Commits {
    file: PathBuf,
    before: u64,
}

impl Commits {
    fn of(folder: &Path) -> Self {
        let mut commits = Self { file: folder.join("store/watermark"), before: 0 };
        commits.before = commits.since();
        commits
    }

    fn since(&self) -> u64 {
        let file = std::fs::read(&self.file).expect("the store has this file");
        let slot = |at: usize| u64::from_le_bytes(*file[at..].first_chunk().expect("the file has two pages more"));
        slot(4096).max(slot(8192)) - self.before
    }
}

pub async fn open(folder: &Path) -> LocalStorage {
    LocalStorage::new(folder.join("store")).await.expect("the folder can hold a store")
}

/// With so many commands and nothing else.
pub async fn prepared(setting: &Setting<'_>) -> LocalStorage {
    let storage = open(setting.folder).await;
    storage.clear_all().await.expect("it can be written");
    for _ in 0..SETTLING {
        fill(&storage, 1).await;
        storage.remove_command("d0").await.expect("it can be written");
    }
    fill(&storage, setting.stored).await;
    storage
}

pub async fn fill(storage: &LocalStorage, commands: u64) {
    let numbers: Vec<_> = (0..commands).collect();
    for numbers in numbers.chunks(1000) {
        let changes = numbers.iter().map(|&number| Change::Save(Box::new(record(number)))).collect();
        storage.apply(changes, Durability::Synced).await.expect("it can be written");
    }
}

async fn check(storage: &LocalStorage, left: u64) {
    let commands = storage.load_commands().await.expect("it can be read");
    assert_eq!(commands.len() as u64, left, "all is stored");
}

impl Store for Alone {
    fn open(setting: &Setting<'_>) -> Self {
        let storage = block_on(prepared(setting));
        Self { storage, commits: Commits::of(setting.folder) }
    }

    async fn submit(&self, number: u64) {
        let change = Change::Save(Box::new(record(number)));
        self.storage.apply(vec![change], Durability::Synced).await.expect("it can be written");
    }

    async fn live(&self, number: u64) {
        self.submit(number).await;
        let change = Change::Remove { id: format!("d{number}"), result: None };
        self.storage.apply(vec![change], Durability::Relaxed).await.expect("it can be written");
    }

    async fn flush(&self) {
        self.storage.flush().await.expect("it can be written");
    }

    fn close(self, left: u64) -> Option<u64> {
        let commits = self.commits.since();
        block_on(async {
            check(&self.storage, left).await;
            self.storage.close().await.expect("it can be written");
        });
        Some(commits)
    }
}
