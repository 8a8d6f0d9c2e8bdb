//! Whatever is done to the store, and whenever its process is killed: it holds what a store in memory would hold, but for the
//! newest of what was not synced.

use futures_lite::future::block_on;
use proptest::prelude::*;
use serde_json::json;

use super::disk::SimDisk;
use super::open;
use crate::adapters::redb::LocalStorage;
use crate::storage::{
    Change, Durability, MemoryStorage, Recovery, StartMark, Storage, StoredCommand, StoredDeadLetter, StoredResult,
};

#[derive(Clone, Debug)]
enum Step {
    Make(Vec<Change>, Durability),
    /// Commands 0 to 5, which may be there or not.
    Mark(u8),
    /// One of the marks that are there.
    Unmark(usize),
    Flush,
    ClearLetters,
    /// The queue finishes, and the next one takes the store.
    Finish,
    /// Closed, and opened again.
    Close,
    /// Killed so many times before a queue has it again.
    Kill(u8),
}

fn id(number: u8) -> String {
    // Of a queue's form, and of another.
    if number.is_multiple_of(2) { format!("d{number}") } else { format!("other {number}") }
}

fn command(number: u8, version: u8) -> StoredCommand {
    let mut command = StoredCommand::new(id(number), "send", "mail", json!({ "version": version }));
    // What it says of its place may differ from what its id says.
    command.sequence = if version.is_multiple_of(3) { u64::from(version) } else { number.into() };
    command.retry_count = u32::from(version % 2);
    command
}

fn letter(number: u8, version: u8) -> StoredDeadLetter {
    StoredDeadLetter::new(id(number), "send", "mail", format!("error {version}"))
}

fn any_change() -> impl Strategy<Value = Change> {
    (0..9_u8, 0..6_u8, any::<u8>()).prop_map(|(kind, number, version)| match kind {
        0..=2 => Change::Save(Box::new(command(number, version))),
        3 => Change::Attempted { id: id(number), retry_count: version.into(), at: crate::clock::wall_now() },
        4 => {
            let result = StoredResult::new(format!("key {}", version % 3), "print", id(number), json!(version));
            Change::Remove { id: id(number), result: version.is_multiple_of(2).then(|| Box::new(result)) }
        }
        5 => Change::GiveUp(Box::new(letter(number, version))),
        6 => Change::Replay(Box::new(command(number, version))),
        7 if version.is_multiple_of(2) => Change::SaveDeadLetter(Box::new(letter(number, version))),
        7 => Change::RemoveDeadLetters { command_id: id(number) },
        _ => Change::RemoveResult { key: format!("key {}", version % 3) },
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let changes = || proptest::collection::vec(any_change(), 1..5);
    prop_oneof![
        6 => changes().prop_map(|changes| Step::Make(changes, Durability::Relaxed)),
        6 => changes().prop_map(|changes| Step::Make(changes, Durability::Synced)),
        4 => (0..6_u8).prop_map(Step::Mark),
        2 => any::<usize>().prop_map(Step::Unmark),
        1 => Just(Step::Flush),
        1 => Just(Step::ClearLetters),
        1 => Just(Step::Finish),
        2 => Just(Step::Close),
        3 => (1..3_u8).prop_map(Step::Kill),
    ]
}

/// What a store holds, without the times at which something was noticed.
#[derive(Debug, PartialEq)]
struct Holds {
    commands: Vec<(StoredCommand, usize)>,
    letters: Vec<StoredDeadLetter>,
}

async fn holds(store: &impl Storage) -> Holds {
    let (mut commands, mut last) = (Vec::new(), None);
    loop {
        let page = store.load_page(last.as_ref(), 2).await.expect("a page");
        let Some(end) = page.last() else { break };
        last = Some(end.clone());
        commands.extend(page.into_iter().map(|mut command| {
            let crashes = std::mem::take(&mut command.crashes).len();
            (command, crashes)
        }));
    }
    Holds { commands, letters: store.load_dead_letters().await.expect("letters") }
}

/// What is known besides; the store under test leaves out places after a kill, the one in memory does not.
fn known(mut recovery: Recovery, least: u64) -> (bool, usize, Vec<StoredResult>, bool) {
    recovery.results.sort_by(|a, b| a.key.cmp(&b.key));
    (recovery.unclean, recovery.unclean_ends.len(), recovery.results, recovery.next_sequence >= least)
}

/// The store under test, and what is known of it.
struct Pair {
    disk: SimDisk,
    store: LocalStorage,
    /// Everything up to the last change that was synced; without marks.
    synced: MemoryStorage,
    /// What was acknowledged since.
    relaxed: Vec<Vec<Change>>,
    marks: Vec<(StartMark, String)>,
}

impl Pair {
    async fn new() -> Self {
        let disk = SimDisk::default();
        let store = open(&disk).expect("a healthy disk");
        let synced = MemoryStorage::new();
        assert_eq!(store.recover().await.expect("new"), synced.recover().await.expect("new"));
        Self { disk, store, synced, relaxed: Vec::new(), marks: Vec::new() }
    }

    /// Everything that was acknowledged is durable now.
    async fn catch_up(&mut self) {
        for changes in self.relaxed.drain(..) {
            self.synced.apply(changes, Durability::Synced).await.expect("memory");
        }
    }

    /// What a killed process may have left: with so many of the changes that were not synced.
    async fn left(&self, relaxed: usize) -> MemoryStorage {
        let left = self.synced.after_crash();
        for changes in &self.relaxed[..relaxed] {
            left.apply(changes.clone(), Durability::Synced).await.expect("memory");
        }
        for (_, id) in &self.marks {
            let _stays = left.mark_started(id);
        }
        left.after_crash()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Make(changes, durability) => {
                self.store.apply(changes.clone(), durability).await.expect("applied");
                self.relaxed.push(changes);
                if durability == Durability::Synced {
                    self.catch_up().await;
                }
            }
            Step::Mark(number) => {
                let id = id(number);
                self.marks.push((self.store.mark_started(&id).expect("there is room"), id));
            }
            Step::Unmark(index) if !self.marks.is_empty() => {
                let (mark, _) = self.marks.swap_remove(index % self.marks.len());
                self.store.unmark(mark);
            }
            Step::Unmark(_) => {}
            Step::Flush => {
                self.store.flush().await.expect("flushed");
                self.catch_up().await;
            }
            Step::ClearLetters => {
                self.store.clear_dead_letters().await.expect("cleared");
                self.catch_up().await;
                self.synced.clear_dead_letters().await.expect("memory");
            }
            Step::Finish => {
                self.store.finish().await.expect("finished");
                self.catch_up().await;
                self.marks.clear();
                self.synced.finish().await.expect("memory");
                self.taken_by_the_next().await;
            }
            Step::Close => {
                self.store.close().await.expect("closed");
                self.catch_up().await;
                self.marks.clear();
                self.synced.finish().await.expect("memory");
                self.synced = self.synced.after_crash();
                self.store = open(&self.disk).expect("a healthy disk");
                self.taken_by_the_next().await;
            }
            Step::Kill(times) => {
                for _ in 0..times {
                    self.disk = SimDisk::with(self.disk.files());
                    self.store = open(&self.disk).expect("a store that was killed opens");
                }
                self.find_what_was_left().await;
            }
        }
        let mut now = self.synced.clone();
        if !self.relaxed.is_empty() {
            now = self.synced.after_crash();
            for changes in &self.relaxed {
                now.apply(changes.clone(), Durability::Synced).await.expect("memory");
            }
        }
        assert_eq!(holds(&self.store).await, holds(&now).await, "what it was told is not what it holds");
    }

    async fn taken_by_the_next(&mut self) {
        let found = self.store.recover().await.expect("nobody has it");
        let expected = self.synced.recover().await.expect("nobody has it");
        let least = expected.next_sequence;
        assert_eq!(known(found, least), known(expected, least));
    }

    async fn find_what_was_left(&mut self) {
        let found = self.store.recover().await.expect("nobody has it");
        let holds_now = holds(&self.store).await;
        let mut possible = Vec::new();
        for relaxed in 0..=self.relaxed.len() {
            let left = self.left(relaxed).await;
            let expected = left.recover().await.expect("nobody has it");
            let least = expected.next_sequence;
            if known(found.clone(), least) == known(expected.clone(), least) && holds(&left).await == holds_now {
                (self.synced, self.relaxed, self.marks) = (left, Vec::new(), Vec::new());
                return;
            }
            possible.push((expected, holds(&left).await));
        }
        panic!("after a kill it holds {found:?} {holds_now:#?}, which it never held; it may hold one of {possible:#?}");
    }
}

fn run(steps: Vec<Step>) {
    block_on(async {
        let mut pair = Pair::new().await;
        for step in steps {
            pair.step(step).await;
        }
        pair.step(Step::Kill(1)).await;
    });
}

fn cases() -> u32 {
    // `PROPTEST_CASES` goes deeper.
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn it_holds_what_it_was_told_whenever_it_is_killed(steps in proptest::collection::vec(any_step(), 1..40)) {
        run(steps);
    }
}

/// What the model must notice: a synced change that a killed process has lost.
#[test]
fn a_lost_change_is_noticed() {
    block_on(async {
        let mut pair = Pair::new().await;
        pair.step(Step::Make(vec![Change::Save(Box::new(command(1, 1)))], Durability::Synced)).await;
        let before = pair.disk.files();
        pair.step(Step::Make(vec![Change::Remove { id: id(1), result: None }], Durability::Synced)).await;
        // It is opened as it was before the last commit.
        pair.disk = SimDisk::with(before);
        pair.store = open(&pair.disk).expect("a healthy disk");
        let noticed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(pair.find_what_was_left())));
        assert!(noticed.is_err(), "the model has not noticed");
    });
}
