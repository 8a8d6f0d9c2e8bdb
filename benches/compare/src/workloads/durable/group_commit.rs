//! Group commit as simple as can be: one thread commits all that has arrived, then acknowledges it.

use std::fs::File;
use std::io::Write;
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use futures::channel::oneshot;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};

use super::store::{Setting, Store};
use super::{SETTLING, record};

/// A key, and the bytes to be stored there; without bytes, those there are removed.
pub type Entry = (Vec<u8>, Option<Vec<u8>>);

/// Entries of one transaction.
struct Change {
    entries: Vec<Entry>,
    done: Option<oneshot::Sender<()>>,
}

/// Where changes go, durably.
pub trait Commit: Send + Sized + 'static {
    fn open(folder: &Path) -> Self;

    /// Returns when all of it is on the device.
    fn commit(&mut self, entries: impl Iterator<Item = Entry>);

    fn clear(&mut self);

    /// How many there are, if that can be told.
    fn count(&self) -> Option<u64>;
}

/// Does not know commands: it is given their bytes, which were made before.
pub struct Grouped<C> {
    changes: Sender<Change>,
    thread: JoinHandle<(C, u64)>,
    /// From the number `first` on.
    records: Vec<Vec<u8>>,
    first: u64,
}

impl<C: Commit> Store for Grouped<C> {
    fn open(setting: &Setting<'_>) -> Self {
        let mut committed = C::open(setting.folder);
        committed.clear();
        for _ in 0..SETTLING {
            committed.commit(records(0..1));
            committed.commit([removal(0)].into_iter());
        }
        committed.commit(records(0..setting.stored));
        let (changes, arrived) = channel();
        let thread = thread::spawn(move || run(committed, &arrived));
        let records = (setting.stored..setting.stored + setting.commands).map(bytes).collect();
        Self { changes, thread, records, first: setting.stored }
    }

    async fn submit(&self, number: u64) {
        let value = self.records[(number - self.first) as usize].clone();
        self.acknowledged(vec![(key(number), Some(value))]).await;
    }

    async fn live(&self, number: u64) {
        self.submit(number).await;
        self.send(Change { entries: vec![removal(number)], done: None });
    }

    async fn flush(&self) {
        // The removal of nothing, behind all others.
        self.acknowledged(vec![removal(u64::MAX)]).await;
    }

    fn close(self, left: u64) -> Option<u64> {
        drop(self.changes);
        let (committed, commits) = self.thread.join().expect("it does not panic");
        if let Some(count) = committed.count() {
            assert_eq!(count, left, "all is stored");
        }
        Some(commits)
    }
}

impl<C> Grouped<C> {
    /// In one transaction, perhaps with others.
    pub async fn acknowledged(&self, entries: Vec<Entry>) {
        let (done, acknowledged) = oneshot::channel();
        self.send(Change { entries, done: Some(done) });
        acknowledged.await.expect("the thread lives");
    }

    fn send(&self, change: Change) {
        self.changes.send(change).unwrap_or_else(|_| panic!("the thread lives"));
    }
}

/// Until nobody is left who could send a change. Gives how many commits it took.
fn run<C: Commit>(mut committed: C, arrived: &Receiver<Change>) -> (C, u64) {
    let mut commits = 0;
    while let Ok(first) = arrived.recv() {
        let mut batch = vec![first];
        batch.extend(arrived.try_iter());
        committed.commit(batch.iter_mut().flat_map(|change| mem::take(&mut change.entries)));
        commits += 1;
        for done in batch.into_iter().filter_map(|change| change.done) {
            done.send(()).expect("it is awaited");
        }
    }
    (committed, commits)
}

pub fn records(numbers: Range<u64>) -> impl Iterator<Item = Entry> {
    numbers.map(|number| (key(number), Some(bytes(number))))
}

pub fn removal(number: u64) -> Entry {
    (key(number), None)
}

/// As corelane's: its sequence, and its id.
fn key(number: u64) -> Vec<u8> {
    [&number.to_be_bytes()[..], format!("d{number}").as_bytes()].concat()
}

/// As corelane stores it: a byte for the format, eight for a checksum, and JSON.
fn bytes(number: u64) -> Vec<u8> {
    let mut bytes = vec![1; HEADER];
    serde_json::to_writer(&mut bytes, &record(number)).expect("it is data");
    bytes
}

/// Of a record, before its JSON.
pub const HEADER: usize = 9;

pub struct Redb(Database);

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("commands");

impl Commit for Redb {
    fn open(folder: &Path) -> Self {
        Self(Database::create(folder.join("raw.redb")).expect("the folder can hold a database"))
    }

    fn commit(&mut self, entries: impl Iterator<Item = Entry>) {
        self.write(|table| {
            for (key, value) in entries {
                match value {
                    Some(value) => _ = table.insert(&key[..], &value[..])?,
                    None => _ = table.remove(&key[..])?,
                }
            }
            Ok(())
        });
    }

    fn clear(&mut self) {
        self.write(|table| table.retain(|_, _| false));
    }

    fn count(&self) -> Option<u64> {
        let count = || Ok::<_, redb::Error>(self.0.begin_read()?.open_table(TABLE)?.len()?);
        Some(count().expect("it can be read"))
    }
}

impl Redb {
    fn write(
        &self,
        write: impl FnOnce(&mut Table<'_, &'static [u8], &'static [u8]>) -> Result<(), redb::StorageError>,
    ) {
        let run = || {
            let mut transaction = self.0.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            write(&mut transaction.open_table(TABLE)?)?;
            transaction.commit()?;
            Ok::<_, redb::Error>(())
        };
        run().expect("it can be written");
    }

    /// Everything that is stored, in order.
    pub fn for_each(&self, mut each: impl FnMut(&[u8])) {
        let mut run = || {
            for entry in self.0.begin_read()?.open_table(TABLE)?.iter()? {
                each(entry?.1.value());
            }
            Ok::<_, redb::Error>(())
        };
        run().expect("it can be read");
    }
}

/// A file that only grows: no index, nothing is ever found again. What the device and its file system need at least.
pub struct Appended {
    file: File,
    path: PathBuf,
}

impl Commit for Appended {
    fn open(folder: &Path) -> Self {
        let path = folder.join("log");
        Self { file: File::create(&path).expect("the folder can hold a file"), path }
    }

    fn commit(&mut self, entries: impl Iterator<Item = Entry>) {
        let mut group = Vec::new();
        for (key, value) in entries {
            group.extend(key);
            group.extend(value.unwrap_or_default());
        }
        self.file.write_all(&group).and_then(|()| self.file.sync_data()).expect("it can be written");
    }

    fn clear(&mut self) {
        self.file = File::create(&self.path).expect("the folder can hold a file");
    }

    fn count(&self) -> Option<u64> {
        None
    }
}
