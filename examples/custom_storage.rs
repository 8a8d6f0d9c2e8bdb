//! A store of one's own in seven methods: a JSON file per command in a folder. The suite that all stores must pass runs on it,
//! then a queue: it stops with work left, and the next one finishes it.
//!
//! ```text
//! cargo run --example custom_storage
//! ```
#![allow(clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use corelane::testing::storage::conformance;
use corelane::{
    DurableCommand, EventEmitter, LaneConfig, QueueManager, QueueManagerBuilder, Result, Stop, Storage, StorageError,
    StoredCommand, StoredDeadLetter, sleep,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn main() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("corelane-custom-storage-{}", std::process::id()));
    let done = futures::executor::block_on(async {
        check(&folder.join("check")).await?;
        first_process(&folder.join("queue")).await?;
        second_process(&folder.join("queue")).await
    });
    fs::remove_dir_all(&folder)?;
    done
}

/// Commands and dead letters as files.
///
/// Each file is written under another name, synced, and renamed: it is there as a whole or not at all. What it does not do: it
/// has no lock, so that two processes must not use one folder; and each change waits for the device, where
/// [`LocalStorage`](corelane::LocalStorage) has many share one sync.
struct Folder {
    path: PathBuf,
    /// Of files: letters are in the order of their numbers.
    next: AtomicU64,
}

impl Folder {
    fn open(path: &Path) -> io::Result<Self> {
        for kind in [COMMANDS, LETTERS] {
            fs::create_dir_all(path.join(kind))?;
        }
        let folder = Self { path: path.to_owned(), next: AtomicU64::new(0) };
        let last = folder.files(LETTERS)?.iter().filter_map(|file| file.file_stem()?.to_str()?.parse().ok()).max();
        folder.next.store(last.map_or(0, |last: u64| last + 1), Ordering::Relaxed);
        Ok(folder)
    }

    /// Where a command is. Its id may be any text, the empty one, too; in hexadecimal digits it is a name for a file.
    fn place(&self, id: &str) -> PathBuf {
        let name: String = id.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.path.join(COMMANDS).join(format!("id-{name}.json"))
    }

    /// In the order of their names. A file that another thread removes meanwhile is not there.
    fn files(&self, kind: &str) -> io::Result<Vec<PathBuf>> {
        let files: io::Result<Vec<_>> = fs::read_dir(self.path.join(kind))?.map(|entry| Ok(entry?.path())).collect();
        let mut files = files?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort_unstable();
        Ok(files)
    }

    fn write(&self, file: &Path, record: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|error| StorageError::NotData(error.to_string()))?;
        let temporary = self.path.join(format!("{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)));
        stored(|| {
            let mut new = File::create(&temporary)?;
            new.write_all(&text)?;
            new.sync_all()?;
            fs::rename(&temporary, file)?;
            sync_folder(file)
        })
    }

    /// What is not there is removed already.
    fn remove(&self, file: &Path) -> Result<()> {
        stored(|| match fs::remove_file(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_folder(file)),
        })
    }

    fn read<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        let mut records = Vec::new();
        for file in stored(|| self.files(kind))? {
            let text = match fs::read(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                text => stored(|| text)?,
            };
            // Never skipped: a record that can not be read is an error that names it.
            let damaged = |error| StorageError::Damaged { what: format!("{}: {error}", file.display()) };
            records.push(serde_json::from_slice(&text).map_err(damaged)?);
        }
        Ok(records)
    }

    fn clear(&self, kind: &str) -> Result<()> {
        stored(|| self.files(kind))?.iter().try_for_each(|file| self.remove(file))
    }
}

const COMMANDS: &str = "commands";
const LETTERS: &str = "letters";

/// A name is durable once its folder is.
fn sync_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// What the file system refuses, as what a queue understands: a full store goes on when there is room again.
fn stored<T>(write: impl FnOnce() -> io::Result<T>) -> Result<T> {
    Ok(write().map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::StorageFull(error.to_string()),
        _ => StorageError::Io(error.to_string()),
    })?)
}

/// The calls block for as long as the device takes. With a slow one, hand them to a thread and await its answer.
#[async_trait]
impl Storage for Folder {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.write(&self.place(&command.id), &command)
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        self.read(COMMANDS)
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.remove(&self.place(id))
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.write(&self.path.join(LETTERS).join(format!("{number:020}.json")), &letter)
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        self.read(LETTERS)
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.clear(LETTERS)
    }

    async fn clear_all(&self) -> Result<()> {
        self.clear(COMMANDS)?;
        self.clear(LETTERS)
    }
}

/// In a project of yours this is a test, with corelane's feature `testing` as a development dependency.
async fn check(path: &Path) -> anyhow::Result<()> {
    let mut number = 0;
    let empty = || {
        number += 1;
        std::future::ready(Folder::open(&path.join(number.to_string())).expect("a folder for a store"))
    };
    conformance(empty).await;
    println!("the folder keeps every promise that seven methods can");
    Ok(())
}

/// What is stored, and made again by whoever opens the store later.
#[derive(Serialize, Deserialize)]
struct SendMail {
    to: String,
}

impl DurableCommand for SendMail {
    const TYPE: &'static str = "send_mail";
    type Output = String;

    async fn execute(&self) -> Result<String> {
        sleep(Duration::from_millis(30)).await;
        println!("  mail to {}", self.to);
        Ok(format!("sent to {}", self.to))
    }
}

async fn queue(path: &Path) -> anyhow::Result<QueueManager> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_storage(Arc::new(Folder::open(path)?))
        .with_durable::<SendMail>()
        .with_lane("mail", LaneConfig::new(1, 1), 0)
        .build()
        .await?;
    manager.start().await?;
    Ok(manager)
}

/// Accepts five mails, sends one, and stops.
async fn first_process(path: &Path) -> anyhow::Result<()> {
    println!("the first process:");
    let manager = queue(path).await?;
    let mut tickets = Vec::new();
    for to in ["ada", "barbara", "edsger", "grace", "tony"] {
        // Resolves when the file is there.
        tickets.push(manager.submit_durable("mail", SendMail { to: to.to_owned() }).await?);
    }
    println!("  {}", tickets.remove(0).await??);
    let report = manager.stop(Stop::drain(Duration::ZERO)).await;
    println!("  stopped: {} mails are still stored", report.still_stored);
    anyhow::ensure!(report.still_stored == 4, "the other four stay stored");
    Ok(())
}

/// Finds what was left, and sends it.
async fn second_process(path: &Path) -> anyhow::Result<()> {
    println!("the second process:");
    let manager = queue(path).await?;
    let found = manager.recovery().map_or(0, |report| report.recovered);
    println!("  found {found} mails");
    anyhow::ensure!(found == 4, "nothing is lost, and nothing comes twice");
    manager.shutdown().await;
    manager.drain(Duration::from_secs(10)).await?;

    let left = Folder::open(path)?.load_commands().await?;
    anyhow::ensure!(left.is_empty(), "what has ended is gone: {left:?}");
    println!("  nothing is left");
    Ok(())
}
