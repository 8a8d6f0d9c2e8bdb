//! Many commands are stored when the process starts.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::corelane::{Executor, Storage, StoredCommand};
use futures_lite::future::block_on;

use super::a3s;
use super::corelane::{built, fill, open, stop};
use super::folder::Folder;
use super::group_commit::{Commit, HEADER, Redb, records};
use super::{ALONE, REDB};
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

/// From opening the store until all its commands stand in their lanes, ready to run.
pub struct Recovery {
    pub commands: u64,
}

impl Workload for Recovery {
    fn name(&self) -> String {
        match self.commands {
            n if n >= 1_000_000 => format!("durable/recovery-{}M", n / 1_000_000),
            n => format!("durable/recovery-{}k", n / 1000),
        }
    }

    fn what(&self) -> String {
        format!(
            "{} commands are pending in a store that was closed: it is opened, and they are read, \
             made again, and put into their lane; an operation is one of them. The store alone and redb: opened, and all \
             records read and decoded. a3s-lane only reads its file: it has stored no payloads, and admits nothing",
            self.commands
        )
    }

    fn allocates(&self) -> bool {
        false
    }

    fn max_repeats(&self) -> usize {
        3
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let (commands, workers) = (self.commands, cast.workers);
        let (ours, raw, json) = (Rc::new(Folder::new()), Folder::new(), Folder::new());
        let (executor, same) = (cast.corelane().0, Rc::clone(&ours));
        block_on(async {
            let storage = open(ours.path()).await;
            fill(&storage, commands).await;
            storage.close().await.expect("it can be written");
        });
        let mut database = Redb::open(raw.path());
        for first in (0..commands).step_by(10_000) {
            database.commit(records(first..commands.min(first + 10_000)));
        }
        drop(database);
        a3s::write_file(json.path(), commands);
        vec![
            Contender::timed("corelane", Role::Ours, commands, move || queue(same.path(), commands, &executor)),
            Contender::timed(ALONE, Role::Ours, commands, move || alone(ours.path(), commands)),
            Contender::timed(REDB, Role::Peer, commands, move || redb(raw.path(), commands)),
            Contender::timed("a3s-lane, admits none", Role::Reference, commands, move || {
                a3s(json.path(), commands, workers)
            }),
        ]
    }
}

fn queue(folder: &Path, commands: u64, executor: &Executor) -> Duration {
    block_on(async {
        let begun = Instant::now();
        let storage = Arc::new(open(folder).await);
        let manager = built(Arc::clone(&storage), executor).await;
        let took = begun.elapsed();
        let report = manager.recovery().expect("it has a store");
        assert_eq!((report.recovered, report.parked_count, report.unclean), (commands, 0, false));
        stop(manager, &storage).await;
        took
    })
}

fn alone(folder: &Path, commands: u64) -> Duration {
    block_on(async {
        let begun = Instant::now();
        let storage = open(folder).await;
        storage.recover().await.expect("no queue has it");
        let (mut last, mut count) = (None, 0);
        loop {
            let mut page = storage.load_page(last.as_ref(), PAGE).await.expect("it can be read");
            count += page.len() as u64;
            last = page.pop();
            if last.is_none() {
                break;
            }
        }
        let took = begun.elapsed();
        assert_eq!(count, commands);
        storage.close().await.expect("it can be written");
        took
    })
}

const PAGE: usize = 1000;

fn redb(folder: &Path, commands: u64) -> Duration {
    let begun = Instant::now();
    let database = Redb::open(folder);
    let mut all = Vec::with_capacity(commands as usize);
    database.for_each(|bytes| {
        all.push(serde_json::from_slice::<StoredCommand>(&bytes[HEADER..]).expect("it was written so"));
    });
    let took = begun.elapsed();
    assert_eq!(all.len() as u64, commands);
    took
}

fn a3s(folder: &Path, commands: u64, workers: usize) -> Duration {
    a3s::runtime(workers).block_on(async {
        let begun = Instant::now();
        let storage = a3s_lane_05::LocalStorage::new(folder.to_owned()).await.expect("the folder has a store");
        let all = a3s_lane_05::Storage::load_commands(&storage).await.expect("it can be read");
        let took = begun.elapsed();
        assert_eq!(all.len() as u64, commands);
        took
    })
}
