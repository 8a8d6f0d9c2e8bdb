//! Batches of a given size: what a store adds to the database below it.

use std::ops::Range;
use std::time::{Duration, Instant};

use ::corelane::{Change, Durability, Storage};
use futures_lite::future::block_on;

use super::corelane::prepared;
use super::folder::Folder;
use super::group_commit::{Grouped, Redb, records, removal};
use super::record;
use super::store::{Setting, Store};
use super::{ALONE, REDB};
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

/// Each batch saves as many commands as it removes of those before.
pub struct Batch {
    pub saved: u64,
    pub batches: u64,
}

impl Workload for Batch {
    fn name(&self) -> String {
        format!("durable/batch-{}", self.saved)
    }

    fn what(&self) -> String {
        format!(
            "{} batches, one after the other is synced: each saves {} commands and removes those of the batch before. \
             corelane's store is given commands, by one `apply`, and writes them as bytes first; redb's thread is given bytes. An operation \
             is a command",
            self.batches, self.saved
        )
    }

    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let &Self { saved, batches } = self;
        let contender = |name, role, run: fn(&Setting<'_>, u64, u64) -> Duration| {
            let (workers, executor, folder) = (cast.workers, cast.corelane().0, Folder::new());
            Contender::timed(name, role, saved * batches, move || {
                let (folder, executor) = (folder.path(), &executor);
                let setting = Setting { folder, stored: 0, commands: 0, started: false, workers, executor };
                run(&setting, saved, batches)
            })
        };
        vec![contender(ALONE, Role::Ours, alone), contender(REDB, Role::Peer, redb)]
    }
}

/// The commands that each batch saves, and those that it removes.
fn of_batches(saved: u64, batches: u64) -> impl Iterator<Item = (Range<u64>, Range<u64>)> {
    (0..batches).map(move |batch| {
        let (first, before) = (batch * saved, batch.saturating_sub(1) * saved);
        (first..first + saved, before..first)
    })
}

fn alone(setting: &Setting<'_>, saved: u64, batches: u64) -> Duration {
    let changes = of_batches(saved, batches).map(|(saved, removed)| {
        let saved = saved.map(|number| Change::Save(Box::new(record(number))));
        saved.chain(removed.map(|number| Change::Remove { id: format!("d{number}"), result: None })).collect()
    });
    let changes: Vec<Vec<_>> = changes.collect();
    block_on(async {
        let storage = prepared(setting).await;
        let begun = Instant::now();
        for changes in changes {
            storage.apply(changes, Durability::Synced).await.expect("it can be written");
        }
        let took = begun.elapsed();
        assert_eq!(storage.load_commands().await.expect("it can be read").len() as u64, saved);
        storage.close().await.expect("it can be written");
        took
    })
}

fn redb(setting: &Setting<'_>, saved: u64, batches: u64) -> Duration {
    let entries =
        of_batches(saved, batches).map(|(saved, removed)| records(saved).chain(removed.map(removal)).collect());
    let entries: Vec<Vec<_>> = entries.collect();
    let store = Grouped::<Redb>::open(setting);
    let begun = Instant::now();
    for entries in entries {
        block_on(store.acknowledged(entries));
    }
    let took = begun.elapsed();
    assert_eq!(store.close(saved), Some(batches), "a commit for each batch");
    took
}
