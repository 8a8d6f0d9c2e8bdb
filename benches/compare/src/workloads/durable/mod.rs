//! Durable lanes: what it costs that a command survives the process, and how fast what survived comes back.

mod a3s;
mod batch;
mod corelane;
mod folder;
mod group_commit;
mod recovery;
mod store;

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::corelane::StoredCommand;
use futures::future::join_all;
use futures_lite::future::block_on;

use self::a3s::{A3s02, A3s05};
use self::corelane::{Alone, Queue};
use self::folder::Folder;
use self::group_commit::{Appended, Grouped, Redb};
use self::store::{Setting, Store};
use super::spawn::at_once;
use crate::cast::Cast;
use crate::measure::{Contender, Unit, Workload};
use crate::results::{Role, quantiles};

pub use self::batch::Batch;
pub use self::recovery::Recovery;

pub const ALONE: &str = "corelane, store alone";
pub const REDB: &str = "redb, group commit";
pub const A3S_05: &str = "a3s-lane 0.5.1, not synced";

/// What of a command is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From its submission until it is acknowledged. Nothing runs.
    Submit,
    /// From its submission until it has run; the time ends when all ends are stored.
    Life,
}

#[derive(Clone, Copy)]
pub struct Durable {
    pub part: Part,
    pub producers: usize,
    /// By each producer, one after the other.
    pub commands: u64,
    /// By each producer to those who rewrite a file for each change.
    pub rewritten: u64,
    /// In all, to a3s-lane 0.2.1 where commands run: it starts at most one in 10 ms.
    pub few: u64,
    /// Commands that are there before.
    pub stored: u64,
}

const FIGURES: &[(&str, Unit)] = &[("time", "ns/op"), ("p50", "us"), ("p99", "us"), ("batch", "changes a commit")];

impl Workload for Durable {
    fn name(&self) -> String {
        let Self { part, producers, stored, .. } = self;
        match (part, stored) {
            (Part::Life, _) => format!("durable/life-{producers}"),
            (Part::Submit, 0) => format!("durable/submit-{producers}"),
            (Part::Submit, stored) => format!("durable/submit-{producers}-beside-{stored}"),
        }
    }

    fn what(&self) -> String {
        let Self { part, producers, commands, rewritten, few, stored } = self;
        let who = match producers {
            1 => "a producer submits".to_owned(),
            _ => format!("{producers} producers at once, tasks of as many threads as there are workers, each submit"),
        };
        let beside = match stored {
            0 => String::new(),
            stored => format!(" to a store that has {stored} already"),
        };
        let until = match part {
            Part::Submit => "one after the other is acknowledged; nothing runs",
            Part::Life => "one after the other has run; the time ends when their ends are stored, too",
        };
        let fewer = match part {
            Part::Submit => format!("{rewritten} to a3s-lane"),
            Part::Life => format!("{rewritten} to a3s-lane 0.5.1, {few} in all to 0.2.1"),
        };
        format!("{who} {commands} commands{beside} ({fewer}): {until}. p50 and p99: of one command")
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        FIGURES
    }

    /// A commit costs far more than any allocation.
    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let a3s_02 = match self.part {
            Part::Submit => Self { commands: self.rewritten, ..*self },
            Part::Life => Self { producers: 1, commands: self.few, ..*self },
        };
        let a3s_05 = Self { commands: self.rewritten, ..*self };
        vec![
            self.contender::<Queue>("corelane", Role::Ours, cast),
            self.contender::<Alone>(ALONE, Role::Ours, cast),
            self.contender::<Grouped<Redb>>(REDB, Role::Peer, cast),
            self.contender::<Grouped<Appended>>("file, appended and synced", Role::Reference, cast),
            a3s_05.contender::<A3s05>(A3S_05, Role::Reference, cast),
            a3s_02.contender::<A3s02>("a3s-lane 0.2.1, not synced", Role::Reference, cast),
        ]
    }
}

impl Durable {
    fn contender<S: Store>(self, name: &'static str, role: Role, cast: &Cast) -> Contender {
        let (workers, executor, folder) = (cast.workers, cast.corelane().0, Folder::new());
        let commands = self.producers as u64 * self.commands;
        let Self { part, stored, .. } = self;
        Contender::new(name, role, move || {
            let started = part == Part::Life;
            let store =
                S::open(&Setting { folder: folder.path(), stored, commands, started, workers, executor: &executor });
            let (took, mut latencies) = self.run(&store, workers);
            let (left, changes) = match part {
                Part::Submit => (stored + commands, commands),
                Part::Life => (stored, 2 * commands),
            };
            let commits = store.close(left);
            let at = quantiles(&mut latencies);
            let time = took.as_nanos() as f64 / commands as f64;
            let batch = commits.map_or(1.0, |commits| changes as f64 / commits as f64);
            vec![time, at(0.5), at(0.99), batch]
        })
    }

    /// How long all of it took, and each command, in microseconds.
    fn run<S: Store>(&self, store: &S, workers: usize) -> (Duration, Vec<f64>) {
        let threads = self.producers.min(workers);
        let latencies = Mutex::new(Vec::new());
        let thread = Cell::new(0);
        let next = AtomicU64::new(self.stored);
        let took = at_once(
            threads,
            || thread.replace(thread.get() + 1),
            |thread| {
                let _entered = store.enter();
                let producers = (thread..self.producers).step_by(threads).map(|_| self.produce(store, &next));
                let of_thread = block_on(join_all(producers)).concat();
                latencies.lock().expect("no thread panics with it").extend(of_thread);
            },
        );
        let begun = Instant::now();
        if self.part == Part::Life {
            block_on(store.flush());
        }
        (took + begun.elapsed(), latencies.into_inner().expect("no thread panicked with it"))
    }

    /// Numbers are in the order of submission, as a queue's are: a tree that is written at its end has less to do.
    async fn produce<S: Store>(&self, store: &S, next: &AtomicU64) -> Vec<f64> {
        let mut latencies = Vec::with_capacity(self.commands as usize);
        for _ in 0..self.commands {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let begun = Instant::now();
            match self.part {
                Part::Submit => store.submit(number).await,
                Part::Life => store.live(number).await,
            }
            latencies.push(begun.elapsed().as_nanos() as f64 / 1e3);
        }
        latencies
    }
}

/// Pairs of commits between emptying a store and using it: redb frees pages in later commits than that which left them.
const SETTLING: usize = 2;

/// What a command is to do: some 200 bytes as JSON.
fn payload(number: u64) -> serde_json::Value {
    serde_json::json!({ "number": number, "text": TEXT })
}

const TEXT: &str = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. The quick brown fox \
                    jumps over the lazy dog. The quick brown fox jumps over it.";

/// As a queue would store it.
fn record(number: u64) -> StoredCommand {
    let mut command = StoredCommand::new(format!("d{number}"), "work", "lane", payload(number));
    (command.sequence, command.recoverable) = (number, true);
    command
}
