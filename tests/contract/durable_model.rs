//! Durable lanes against a model: whatever is submitted, cancelled and waited for, and whenever the queue stops or its process
//! is killed. Every accepted command ends once or is still stored; nothing that has ended runs again; first starts are in the
//! order of acceptance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use corelane::{
    Change, Durability, LaneConfig, LaneError, MemoryStorage, QueueManager, Recovery, Result, RetryPolicy, StartMark,
    Stop, Storage, StorageCapabilities, StoredCommand, StoredDeadLetter, Ticket,
};
use proptest::prelude::*;

use crate::stores::{Does, Steps, letters_in, manager_on, stored};
use crate::support::{World, block_on, result};

const LANES: [&str; 2] = ["a", "b"];
/// Attempts of each command, unless its process ends meanwhile.
const ATTEMPTS: usize = 3;

#[derive(Clone, Debug)]
enum Move {
    Submit(usize, Does),
    /// One of the tickets of this life.
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    Wait(u64),
    /// Gives commands so many milliseconds.
    Stop(u64),
    Crash,
}

fn any_move() -> impl Strategy<Value = Move> {
    let does = prop_oneof![
        4 => Just(Does::Returns),
        2 => (1..3_u32).prop_map(Does::FailsUntil),
        1 => Just(Does::Fails),
        1 => Just(Does::Panics),
        2 => Just(Does::Waits(10)),
        // Longer than it may take.
        1 => Just(Does::Waits(50)),
    ];
    prop_oneof![
        8 => (0..2_usize, does).prop_map(|(lane, does)| Move::Submit(lane, does)),
        2 => any::<usize>().prop_map(Move::Cancel),
        1 => (0..2_usize).prop_map(Move::Pause),
        2 => (0..2_usize).prop_map(Move::Resume),
        5 => (0..60_u64).prop_map(Move::Wait),
        1 => (0..30_u64).prop_map(Move::Stop),
        2 => Just(Move::Crash),
    ]
}

/// What is wrong with the store, where the model must notice something.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    LosesCommands,
    KeepsCommands,
    TurnsTheOrder,
    ForgetsAttempts,
    DoublesLetters,
}

/// A store in memory with a flaw.
#[derive(Clone)]
struct Flawed {
    inner: MemoryStorage,
    flaw: Flaw,
}

impl Flawed {
    fn changed(&self, change: Change) -> Vec<Change> {
        match (self.flaw, change) {
            (Flaw::LosesCommands, Change::Save(_))
            | (Flaw::KeepsCommands, Change::Remove { .. })
            | (Flaw::ForgetsAttempts, Change::Attempted { .. }) => Vec::new(),
            (Flaw::TurnsTheOrder, Change::Save(mut command)) => {
                command.sequence = 1_000_000 - command.sequence;
                vec![Change::Save(command)]
            }
            (Flaw::DoublesLetters, Change::GiveUp(letter)) => {
                vec![Change::SaveDeadLetter(letter.clone()), Change::GiveUp(letter)]
            }
            (_, change) => vec![change],
        }
    }
}

#[async_trait]
impl Storage for Flawed {
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
        self.inner.save_dead_letter(letter).await
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
        let changes = changes.into_iter().flat_map(|change| self.changed(change)).collect();
        self.inner.apply(changes, durability).await
    }

    async fn recover(&self) -> Result<Recovery> {
        self.inner.recover().await
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        self.inner.load_page(after, limit).await
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        self.inner.mark_started(id)
    }

    fn unmark(&self, mark: StartMark) {
        self.inner.unmark(mark);
    }

    async fn finish(&self) -> Result<()> {
        self.inner.finish().await
    }
}

/// A command that was accepted.
struct Accepted {
    id: String,
    lane: usize,
    does: Does,
    /// How often it had run when it was known to have ended, and whether it was cancelled.
    ended: Option<(usize, bool)>,
}

struct Model {
    storage: Flawed,
    steps: Steps,
    accepted: Vec<Accepted>,
    restarts: usize,
    seed: u64,
}

/// One process.
struct Life {
    world: World,
    manager: QueueManager,
    tickets: Vec<(usize, Ticket<u32>)>,
}

impl Model {
    fn new(flaw: Flaw, seed: u64) -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        // What commands tell their test is kept by a name that lives as long as they might.
        let name = format!("model {}", LAST.fetch_add(1, Ordering::Relaxed)).leak();
        let storage = Flawed { inner: MemoryStorage::new(), flaw };
        Self { storage, steps: Steps(name), accepted: Vec::new(), restarts: 0, seed }
    }

    fn begin(&self) -> Life {
        let world = World::new(1, self.seed);
        let config = |max| {
            let retries = RetryPolicy::fixed(ATTEMPTS as u32 - 1, Duration::from_millis(20)).without_jitter();
            LaneConfig::new(1, max).with_timeout(Duration::from_millis(30)).with_retry_policy(retries)
        };
        let second = config(2).with_durability(Durability::Relaxed);
        let lanes = [(LANES[0], config(1), 1), (LANES[1], second, 2)];
        let manager = manager_on(world.executor(), Arc::new(self.storage.clone()), &lanes);
        // After so many unclean ends they start paused.
        LANES.iter().for_each(|lane| manager.resume(lane).unwrap());
        Life { world, manager, tickets: Vec::new() }
    }

    fn runs(&self, number: usize) -> usize {
        self.steps.numbers().iter().filter(|ran| **ran as usize == number).count()
    }

    /// Notes what has ended in this life.
    fn note(&mut self, life: &mut Life, stopped: bool) {
        for (number, ticket) in &mut life.tickets {
            if self.accepted[*number].ended.is_some() || !ticket.is_finished() {
                continue;
            }
            // What is cancelled because the queue stops has not ended.
            let cancelled = matches!(result(ticket), Err(LaneError::Cancelled { .. }));
            if !(stopped && cancelled) {
                self.accepted[*number].ended = Some((self.runs(*number), cancelled));
            }
        }
        life.tickets.retain(|(_, ticket)| !ticket.is_finished());
    }

    fn make(&mut self, life: &mut Life, step: Move) {
        match step {
            Move::Submit(lane, does) => {
                let number = self.accepted.len();
                let step = self.steps.step(number as u32, does);
                let ticket = block_on(life.manager.submit_durable(LANES[lane], step)).unwrap();
                self.accepted.push(Accepted { id: ticket.id().to_string(), lane, does, ended: None });
                life.tickets.push((number, ticket));
            }
            Move::Cancel(index) if !life.tickets.is_empty() => {
                let index = index % life.tickets.len();
                life.tickets[index].1.cancel();
            }
            Move::Cancel(_) => {}
            Move::Pause(lane) => life.manager.pause(LANES[lane]).unwrap(),
            Move::Resume(lane) => life.manager.resume(LANES[lane]).unwrap(),
            Move::Wait(milliseconds) => life.world.simulation().advance(Duration::from_millis(milliseconds)),
            Move::Stop(milliseconds) => {
                let stop = Stop::drain(Duration::from_millis(milliseconds));
                life.world.simulation().block_on(life.manager.stop(stop));
                life.world.run_until_idle();
                self.note(life, true);
                self.restarts += 1;
                *life = self.begin();
            }
            Move::Crash => {
                self.storage.inner = self.storage.inner.after_crash();
                self.restarts += 1;
                *life = self.begin();
            }
        }
        life.world.run_until_idle();
        self.note(life, false);
    }

    /// All has been waited for: what must be true then.
    fn check(&self) -> Result<(), String> {
        let left = stored(&self.storage.inner);
        if !left.is_empty() {
            return Err(format!("still stored, and not run: {left:?}"));
        }
        let mut letters = BTreeMap::<String, Vec<String>>::new();
        for letter in letters_in(&self.storage.inner) {
            letters.entry(letter.command_id).or_default().push(letter.error);
        }
        for (number, accepted) in self.accepted.iter().enumerate() {
            let runs = self.runs(number);
            let found = letters.get(&accepted.id).map_or(&[][..], Vec::as_slice);
            let what = format!("command {number}, which {:?}, ran {runs} times, letters {found:?}", accepted.does);
            if let Some((before, cancelled)) = accepted.ended {
                if runs != before {
                    return Err(format!("ended, and ran again: {what}"));
                }
                if cancelled {
                    continue;
                }
            }
            if runs > ATTEMPTS + self.restarts {
                return Err(format!("more attempts than it has: {what}"));
            }
            // It may have been there when its process died, too often.
            let condemned = found.iter().any(|error| error.contains("unclean ends"));
            let fails = match accepted.does {
                Does::Fails | Does::Panics => true,
                Does::Waits(milliseconds) => milliseconds > 30,
                Does::FailsUntil(_) | Does::Returns => false,
            };
            if found.len() != usize::from(fails || condemned) {
                return Err(format!("ends with one letter if it is given up, and with none if not: {what}"));
            }
            if runs == 0 {
                return Err(format!("was accepted, and never ran: {what}"));
            }
        }
        for lane in 0..LANES.len() {
            let mut firsts = Vec::new();
            for number in self.steps.numbers() {
                if self.accepted[number as usize].lane == lane && !firsts.contains(&number) {
                    firsts.push(number);
                }
            }
            if !firsts.is_sorted() {
                return Err(format!("lane {lane} began its commands in the order {firsts:?}"));
            }
        }
        Ok(())
    }
}

fn run(flaw: Flaw, seed: u64, moves: &[Move]) -> Result<(), String> {
    let mut model = Model::new(flaw, seed);
    let mut life = model.begin();
    for step in moves {
        model.make(&mut life, step.clone());
    }
    for lane in 0..LANES.len() {
        model.make(&mut life, Move::Resume(lane));
    }
    for _ in 0..100 {
        if stored(&model.storage.inner).is_empty() {
            break;
        }
        model.make(&mut life, Move::Wait(1000));
    }
    model.make(&mut life, Move::Wait(1000));
    model.check()
}

fn cases() -> u32 {
    // `PROPTEST_CASES` goes deeper.
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_ends_once_and_begins_in_its_order_whatever_happens(
        seed in any::<u64>(),
        moves in proptest::collection::vec(any_move(), 1..60),
    ) {
        if let Err(broken) = run(Flaw::None, seed, &moves) {
            prop_assert!(false, "{broken}");
        }
    }
}

#[test]
fn the_model_notices_a_store_that_breaks_it() {
    use Move::{Crash, Pause, Resume, Submit, Wait};
    let orders = vec![Pause(0), Submit(0, Does::Returns), Submit(0, Does::Returns), Crash, Wait(10)];
    let ended = vec![Submit(0, Does::Returns), Wait(10), Crash, Wait(10)];
    let failing = vec![Submit(0, Does::Fails), Wait(25), Crash, Wait(1000)];
    let scripts = [
        (Flaw::LosesCommands, &orders, "never ran"),
        (Flaw::KeepsCommands, &ended, "still stored"),
        (Flaw::TurnsTheOrder, &orders, "in the order"),
        (Flaw::ForgetsAttempts, &failing, "more attempts"),
        (Flaw::DoublesLetters, &failing, "one letter"),
    ];
    for (flaw, moves, expected) in scripts {
        let moves: Vec<_> = moves.iter().cloned().chain([Resume(0)]).collect();
        assert_eq!(run(Flaw::None, 1, &moves), Ok(()), "the script without {flaw:?}");
        let noticed = run(flaw, 1, &moves).expect_err("the model has not noticed");
        assert!(noticed.contains(expected), "{flaw:?}: {noticed}");
    }
}
