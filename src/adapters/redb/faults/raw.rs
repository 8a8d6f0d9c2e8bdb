//! redb without anything around it on the simulated disk: what the disk itself is worth, and what redb promises.

use std::collections::BTreeMap;

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::backend::DiskFile;
use super::disk::{Fault, SimDisk};
use super::flips::{choose, flip};
use super::history::{Files, History, Plan, summary};
use super::random::Random;
use super::scale;

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const FILE: &str = "raw";

type Content = BTreeMap<u64, Vec<u8>>;

/// With an empty database: redb does not open a file that it was killed in while it made it.
fn disk_with_database() -> SimDisk {
    let disk = SimDisk::with(Files::from([(FILE.to_owned(), Vec::new())]));
    drop(open(&disk).unwrap());
    SimDisk::with(disk.files())
}

fn open(disk: &SimDisk) -> Result<Database, redb::Error> {
    let mut builder = Builder::new();
    builder.set_cache_size(1 << 20);
    Ok(builder.create_with_backend(DiskFile::new(disk, FILE))?)
}

fn read(disk: &SimDisk) -> Result<Content, String> {
    let database = open(disk).map_err(|error| format!("not opened: {error}"))?;
    content(&database).map_err(|error| format!("not read: {error}"))
}

/// redb takes a file for sound unless it was told to check it, and may panic if it is not.
fn read_or_panic(disk: &SimDisk) -> Result<Content, String> {
    std::panic::catch_unwind(|| read(disk)).unwrap_or_else(|_| Err("panicked".to_owned()))
}

fn content(database: &Database) -> Result<Content, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Content::new()),
        other => other?,
    };
    let mut content = Content::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        content.insert(key.value(), value.value().to_vec());
    }
    Ok(content)
}

fn change(database: &Database, key: u64, value: Option<&[u8]>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        match value {
            Some(value) => drop(table.insert(key, value)?),
            None => drop(table.remove(key)?),
        }
    }
    Ok(transaction.commit()?)
}

/// Steps that put and remove records of many sizes, the file growing meanwhile.
fn run(disk: &SimDisk, steps: u64, seed: u64) -> History<Content> {
    let mut random = Random::new(seed);
    let mut history = History::new(Content::new());
    let mut expected = Content::new();
    let database = open(disk).unwrap();
    for number in 0..steps {
        let removed = expected.keys().next().copied().filter(|_| random.below(3) == 0);
        let value = vec![number as u8; random.below(if number % 7 == 6 { 40_000 } else { 300 }) as usize];
        let (key, value) = match removed {
            Some(key) => (key, None),
            None => (number, Some(value)),
        };
        match &value {
            Some(value) => drop(expected.insert(key, value.clone())),
            None => drop(expected.remove(&key)),
        }
        let step = history.begin(disk, expected.clone());
        change(&database, key, value.as_deref()).unwrap();
        history.acknowledge(disk, step);
    }
    history
}

fn plan(seed: u64) -> Plan {
    Plan { seed, random: 6, most: scale(1_000, 30_000), second_of: 10, second: 3 }
}

#[test]
fn redb_keeps_what_it_has_committed_at_every_crash() {
    let seed = 1;
    let disk = disk_with_database();
    let history = run(&disk, 25, seed);
    let verdict = history.check(&disk, plan(seed), read);
    println!(
        "{}; {} images, {} of a second crash, seed {seed}",
        summary(&disk.history().1),
        verdict.images,
        verdict.second_images
    );
    assert!(verdict.wrong.is_empty(), "{} wrong: {:#?}", verdict.wrong.len(), verdict.wrong);
}

#[test]
fn control_an_acknowledgement_before_the_commit_is_found() {
    let disk = disk_with_database();
    let history = run(&disk, 10, 2).premature();
    assert!(!history.check(&disk, plan(2), read).wrong.is_empty());
}

#[test]
fn control_a_device_that_lies_about_syncs_is_found() {
    let disk = disk_with_database();
    disk.lie();
    let history = run(&disk, 10, 3);
    assert!(!history.check(&disk, plan(3), read_or_panic).wrong.is_empty());
}

#[test]
fn what_was_written_before_a_failed_sync_is_lost_though_later_syncs_succeed() {
    let disk = SimDisk::with(Files::from([("file".to_owned(), vec![0; 4])]));
    disk.arm(Fault::Sync, 0, false);
    disk.write("file", 0, &[1]).unwrap();
    disk.sync("file").unwrap_err();
    disk.write("file", 1, &[2]).unwrap();
    disk.sync("file").unwrap();
    let (base, log) = disk.history();
    let mut medium = super::images::Medium::new(base);
    log.iter().for_each(|op| medium.advance(op));
    assert_eq!(disk.files()["file"], [1, 2, 0, 0]);
    assert_eq!(medium.image(super::images::Survival::None)["file"], [0, 2, 0, 0]);
    assert_eq!(medium.image(super::images::Survival::All)["file"], [1, 2, 0, 0]);
}

#[test]
fn control_a_flipped_bit_in_a_file_that_redb_takes_for_sound_is_found() {
    let disk = disk_with_database();
    drop(run(&disk, 20, 4));
    let files = disk.files();
    let expected = read(&SimDisk::with(files.clone())).unwrap();
    let bits = choose(&files, |_, at| at < 320, 1_500, 4);
    // Without the check at opening: that is what the store adds.
    let flips = flip(&files, &bits, &expected, |disk| read(disk).map_err(|_| "refused".to_owned()));
    println!("{} flips, {} harmless, {:?}, {} wrong", flips.flips, flips.harmless, flips.refused, flips.wrong.len());
    assert!(!flips.wrong.is_empty());
}
