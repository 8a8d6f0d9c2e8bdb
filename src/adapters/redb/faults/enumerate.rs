//! Every operation of a script fails in turn, for every kind of fault, once and for good.
//!
//! Whatever fails: nothing panics or hangs; what was acknowledged is there afterwards, what was refused for certain is not;
//! errors say what happened; and once the disk is well, the store works again without being opened anew.

use std::sync::mpsc;
use std::time::Duration;

use async_trait::async_trait;
use futures_lite::future::block_on;

use super::content::Content;
use super::disk::{Fault, SimDisk};
use super::history::Files;
use super::images::{Medium, Survival};
use super::possible::Possible;
use super::random::Random;
use super::script::{Step, command, everything, remove, save};
use super::{open, scale};
use crate::adapters::redb::LocalStorage;
use crate::error::{LaneError, StorageError};
use crate::storage::{
    Change, Durability, MemoryStorage, Recovery, Storage, StorageHealth, StoredCommand, StoredDeadLetter,
};

#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    sticky: bool,
    /// Operations that it lets pass.
    pass: u64,
}

/// What was seen over all cases.
#[derive(Debug, Default)]
pub(super) struct Seen {
    cases: u64,
    not_opened: u64,
    full: u64,
    unknown: u64,
    failed: u64,
    io: u64,
    /// Times that the power was lost, too.
    crashes: u64,
    /// Ends of commands on a full disk: made, and refused.
    ended: u64,
    not_ended: u64,
}

/// How a store under test is opened, on a disk.
type Open = fn(&SimDisk) -> Result<Box<dyn Storage>, LaneError>;

/// A store before a script: its files, what it contains, and the script.
#[derive(Clone)]
struct Start {
    files: Files,
    model: MemoryStorage,
    script: Vec<Step>,
}

impl Start {
    /// There is no store yet.
    fn new() -> Self {
        Self { files: Files::new(), model: MemoryStorage::new(), script: everything() }
    }

    /// A process with the store was killed; what matters is how it is opened.
    fn killed() -> Self {
        let disk = SimDisk::default();
        let store = open(&disk).unwrap();
        let model = MemoryStorage::new();
        block_on(async {
            store.recover().await.unwrap();
            for number in 500..505 {
                let step = Step::Apply(vec![save(command(number, 900))], Durability::Synced);
                step.tell(&model).await.unwrap();
                step.tell(&store).await.unwrap();
            }
            let _running = store.mark_started("d501");
            let script = everything().into_iter().take(2);
            let ends = Step::Apply(vec![remove("d500"), remove("d501")], Durability::Synced);
            Self { files: disk.files(), model, script: script.chain([ends]).collect() }
        })
    }
}

/// Runs a script with a failing operation. Whether its turn came.
async fn run(case: Case, start: Start, open: Open, seen: &mut Seen) -> Result<bool, String> {
    let disk = SimDisk::with(start.files);
    disk.arm(case.fault, case.pass, case.sticky);
    seen.cases += 1;
    let mut possible = Possible::new(start.model).await;
    let mut timeline = vec![(0, possible.clone())];
    let store = match open_and_recover(&disk, open).await {
        Ok(store) => store,
        Err(error) => {
            seen.not_opened += 1;
            expected(case.fault, &error, true)?;
            disk.heal();
            open_and_recover(&disk, open)
                .await
                .map_err(|error| format!("not opened on a disk that is well: {error}"))?
        }
    };
    for step in start.script {
        timeline.push((disk.position(), possible.during(&step).await));
        let mark = store.mark_started("d1");
        let answer = step.tell(&*store).await.map_err(storage_error);
        if let Err(error) = &answer {
            expected(case.fault, error, false)?;
            seen.count(error);
        }
        if case.fault == Fault::NoSpace && case.sticky && disk.was_hit() && step.only_ends() {
            if answer.is_ok() { seen.ended += 1 } else { seen.not_ended += 1 }
        }
        let full = matches!(case.fault, Fault::NoSpace | Fault::ShortWrite);
        possible.learn(&step, answer.as_ref().copied(), full).await;
        timeline.push((disk.position(), possible.clone()));
        if let Some(mark) = mark {
            store.unmark(mark);
        }
        if case.fault == Fault::Sync && answer.as_ref().is_err_and(|error| !error.is_certain()) {
            killed_after_failed_sync(&disk.fork(), possible.clone().killed(), case, open, seen).await?;
        }
        if store.health() != StorageHealth::Working {
            _ = store.probe().await;
        }
    }
    let turn_came = disk.turn_came();
    disk.heal();
    // Whatever its health: what failed last may not be published yet.
    store.probe().await.map_err(|error| format!("it does not come back: {error}"))?;
    if store.health() != StorageHealth::Working {
        return Err(format!("it does not come back: {:?}", store.health()));
    }
    let last = Step::Apply(vec![save(command(100, 100))], Durability::Synced);
    timeline.push((disk.position(), possible.during(&last).await));
    last.tell(&*store).await.map_err(|error| format!("refused on a disk that is well: {error}"))?;
    possible.learn(&last, Ok(()), false).await;
    timeline.push((disk.position(), possible.clone()));
    let mut loaded = possible.any().ok_or("what it said can not all be true")?;
    loaded.load(&*store).await.map_err(|error| format!("not read: {error}"))?;
    if !possible.allows_readable(&loaded) {
        possible.allows(&loaded, "as it is")?;
    }
    let mut random = Random::new(case.pass);
    let end = disk.position();
    let moments = (0..scale(2, 20)).map(|_| random.below(end as u64) as usize).chain([end; 2]).collect();
    crash(&disk, &timeline, moments, &mut random, open, seen).await?;
    store.close().await.map_err(|error| format!("not closed: {error}"))?;
    drop(store);
    let content = reopened(&disk, open).await.map_err(|error| format!("after it was closed: {error}"))?;
    possible.allows(&content, "after it was closed")?;
    Ok(turn_came)
}

/// The power is lost at these positions of the log.
async fn crash(
    disk: &SimDisk,
    timeline: &[(usize, Possible)],
    mut moments: Vec<usize>,
    random: &mut Random,
    open: Open,
    seen: &mut Seen,
) -> Result<(), String> {
    let (base, log) = disk.history();
    moments.sort_unstable();
    let mut medium = Medium::new(base);
    let mut done = 0;
    for moment in moments {
        while done < moment {
            medium.advance(&log[done]);
            done += 1;
        }
        let survival = match random.below(4) {
            0 => Survival::All,
            1 => Survival::None,
            _ => Survival::Random(random.next()),
        };
        let when = format!("the power lost at op {moment} of {}, {survival:?}", log.len());
        let content = reopened(&SimDisk::with(medium.image(survival)), open).await;
        let content = content.map_err(|error| format!("{when}: {error}"))?;
        let known = timeline.partition_point(|(from, _)| *from <= moment) - 1;
        timeline[known].1.allows(&content, &when)?;
        seen.crashes += 1;
    }
    Ok(())
}

/// The process is killed when a sync has failed. The next one reads what may not be durable; what it acknowledges must be.
async fn killed_after_failed_sync(
    disk: &SimDisk,
    mut possible: Possible,
    case: Case,
    open: Open,
    seen: &mut Seen,
) -> Result<(), String> {
    let when = |problem: String| format!("killed after a failed sync: {problem}");
    let store = open_and_recover(disk, open).await.map_err(|error| when(format!("not opened: {error}")))?;
    let step = Step::Apply(vec![save(command(200, 100))], Durability::Synced);
    step.tell(&*store).await.map_err(|error| when(error.to_string()))?;
    possible.learn(&step, Ok(()), false).await;
    let end = disk.position();
    // A copy: the store goes on when it is dropped.
    crash(&disk.fork(), &[(0, possible)], vec![end; 4], &mut Random::new(case.pass), open, seen).await.map_err(when)
}

async fn open_and_recover(disk: &SimDisk, open: Open) -> Result<Box<dyn Storage>, StorageError> {
    let store = open(disk).map_err(storage_error)?;
    store.recover().await.map_err(storage_error)?;
    Ok(store)
}

async fn reopened(disk: &SimDisk, open: Open) -> Result<Content, LaneError> {
    Content::recover(&*open(disk)?).await
}

fn storage_error(error: LaneError) -> StorageError {
    match error {
        LaneError::Storage(error) => error,
        other => panic!("{other} is no error of a store"),
    }
}

/// Whether an error says what happened.
fn expected(fault: Fault, error: &StorageError, opening: bool) -> Result<(), String> {
    use StorageError::{Failed, Io, OutcomeUnknown, Path, StorageFull};

    let fits = match (fault, error) {
        (Fault::NoSpace | Fault::ShortWrite, StorageFull(_) | Failed { .. }) => true,
        // Half of redb's header may be all of it that counts: then the commit is there, and may not stay.
        (Fault::ShortWrite, OutcomeUnknown(_)) => !opening,
        (Fault::Io, Io(_) | Failed { .. } | OutcomeUnknown(_)) => true,
        (Fault::Sync, OutcomeUnknown(_) | Failed { .. }) => true,
        (Fault::Io | Fault::Sync, Path { .. } | Io(_)) => opening,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{fault:?} is told as {error:?}")) }
}

/// All cases of one fault. The first that goes wrong, if one does.
fn enumerate(fault: Fault, sticky: bool, start: &Start, open: Open) -> (Seen, Result<(), String>) {
    let mut seen = Seen::default();
    // In a quick run, every third operation behind those of the opening: not the same ones once and for good.
    let every = |pass: &u64| *pass < 60 || pass % scale(3, 1) == u64::from(sticky) % scale(3, 1);
    for pass in (0..).filter(every) {
        let case = Case { fault, sticky, pass };
        let (done, wait) = mpsc::channel();
        let start = start.clone();
        // In a thread of its own, so that one that hangs is noticed.
        std::thread::spawn(move || {
            let mut seen = Seen::default();
            let came = block_on(run(case, start, open, &mut seen));
            _ = done.send((seen, came));
        });
        match wait.recv_timeout(Duration::from_secs(60)) {
            Err(hung) => return (seen, Err(format!("{case:?}: it panicked or hangs: {hung}"))),
            Ok((of_case, came)) => {
                seen.add(&of_case);
                match came {
                    Err(problem) => return (seen, Err(format!("{case:?}: {problem}"))),
                    Ok(false) => return (seen, Ok(())),
                    Ok(true) => {}
                }
            }
        }
    }
    unreachable!()
}

fn survives(fault: Fault, sticky: bool) {
    for (name, start) in [("new", Start::new()), ("killed", Start::killed())] {
        let (seen, outcome) = enumerate(fault, sticky, &start, local);
        println!("{fault:?}, {}, {name}: {seen:?}", if sticky { "for good" } else { "once" });
        if let Err(problem) = outcome {
            panic!("{name}: {problem}");
        }
        assert!(seen.cases > 5, "the fault hardly ever came: {seen:?}");
    }
}

/// The store itself.
fn local(disk: &SimDisk) -> Result<Box<dyn Storage>, LaneError> {
    Ok(Box::new(open(disk)?))
}

/// A store that does not say when something failed.
struct Silent(LocalStorage);

#[async_trait]
impl Storage for Silent {
    async fn save_command(&self, command: StoredCommand) -> Result<(), LaneError> {
        _ = self.0.save_command(command).await;
        Ok(())
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>, LaneError> {
        self.0.load_commands().await
    }

    async fn remove_command(&self, id: &str) -> Result<(), LaneError> {
        _ = self.0.remove_command(id).await;
        Ok(())
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<(), LaneError> {
        _ = self.0.save_dead_letter(letter).await;
        Ok(())
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>, LaneError> {
        self.0.load_dead_letters().await
    }

    async fn clear_dead_letters(&self) -> Result<(), LaneError> {
        self.0.clear_dead_letters().await
    }

    async fn clear_all(&self) -> Result<(), LaneError> {
        self.0.clear_all().await
    }

    async fn flush(&self) -> Result<(), LaneError> {
        _ = self.0.flush().await;
        Ok(())
    }

    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<(), LaneError> {
        _ = self.0.apply(changes, durability).await;
        Ok(())
    }

    async fn recover(&self) -> Result<Recovery, LaneError> {
        self.0.recover().await
    }

    async fn probe(&self) -> Result<(), LaneError> {
        self.0.probe().await
    }

    async fn close(&self) -> Result<(), LaneError> {
        self.0.close().await
    }
}

#[test]
fn control_a_store_that_does_not_say_what_failed_is_found() {
    for fault in [Fault::NoSpace, Fault::ShortWrite, Fault::Io, Fault::Sync] {
        let (seen, outcome) = enumerate(fault, true, &Start::new(), |disk| Ok(Box::new(Silent(open(disk)?))));
        println!("{fault:?} in silence, after {} cases: {outcome:?}", seen.cases);
        outcome.unwrap_err();
    }
}

#[test]
fn no_space_once() {
    survives(Fault::NoSpace, false);
}

#[test]
fn no_space_for_good() {
    survives(Fault::NoSpace, true);
}

#[test]
fn a_short_write_once() {
    survives(Fault::ShortWrite, false);
}

#[test]
fn short_writes_for_good() {
    survives(Fault::ShortWrite, true);
}

#[test]
fn a_failed_access_once() {
    survives(Fault::Io, false);
}

#[test]
fn failed_accesses_for_good() {
    survives(Fault::Io, true);
}

#[test]
fn a_failed_sync_once() {
    survives(Fault::Sync, false);
}

#[test]
fn failed_syncs_for_good() {
    survives(Fault::Sync, true);
}

impl Seen {
    fn count(&mut self, error: &StorageError) {
        match error {
            StorageError::StorageFull(_) => self.full += 1,
            StorageError::OutcomeUnknown(_) => self.unknown += 1,
            StorageError::Failed { .. } => self.failed += 1,
            _ => self.io += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.cases += other.cases;
        self.not_opened += other.not_opened;
        self.full += other.full;
        self.unknown += other.unknown;
        self.failed += other.failed;
        self.io += other.io;
        self.crashes += other.crashes;
        self.ended += other.ended;
        self.not_ended += other.not_ended;
    }
}
