//! Stores that break one promise each, and stores that only look as if they did.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use corelane::{
    Change, Durability, LaneError, MemoryStorage, Recovery, Result, StartMark, Storage, StorageCapabilities,
    StorageHealth, StoredCommand, StoredDeadLetter, yield_now,
};
use futures::FutureExt;
use serde_json::{Value, json};

use Flaw::*;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    // Allowed.
    Right,
    GroupsAreNotKeptTogether,
    KnowsNoAttempts,
    KnowsNoResults,
    KnowsNoMarks,
    RelaxedIsLost,
    PlacesAreForgotten,
    MakesWhatWasDropped,
    // The seven methods.
    BeginsWithACommand,
    SaysThatItIsFull,
    CanNotBeProbed,
    CanNotBeFlushed,
    CutsTimes,
    KeepsTheFirst,
    MissesWhatItRemoves,
    RemovesTheNext,
    BuriesIds,
    SortsLetters,
    OneLetterPerCommand,
    LettersTakeCommands,
    CommandsTakeLetters,
    ClearsOneLetter,
    ClearsCommandsToo,
    ClearsCommandsOnly,
    ClearsForGood,
    TrimsIds,
    NumbersAreFloats,
    CutsPayloads,
    CutsDetails,
    ChangesLate,
    RefusesToClear,
    // Changes.
    Reverses,
    ForgetsAttempts,
    KeepsAttempts,
    GivesUpHalf,
    GroupsTakeNoLetters,
    ReplaysHalf,
    ReplaysBesideLetters,
    RemovesAllLetters,
    MissesResults,
    NeedsAChange,
    TakesHundreds,
    SeesRelaxedLate,
    StopsBetweenChanges,
    // Paging.
    MakesUpAPage,
    BeginsAgain,
    PagesById,
    PagesByPlaceOnly,
    NeedsTheOneBefore,
    // Its lives.
    RemembersTooMuch,
    HasNoPlaces,
    TakesSeveralQueues,
    ClearsForTheSecond,
    MarksAreOne,
    ChargesAtOnce,
    FinishesForGood,
    KeepsItsQueue,
    FinishesUncleanly,
    GoesToNobody,
    Hangs,
    // Several threads.
    ForgetsWhatOverlaps,
    DoublesLettersThatOverlap,
    ReadsOneTwice,
    FreezesTheCommon,
    ShufflesMany,
    CanNotReadMeanwhile,
    TearsWrites,
    // Opened again.
    ForgetsLetters,
    PagesBackwards,
    Resurrects,
    KeepsResults,
    FirstResultWins,
    GivesPlacesAgain,
    ChargesTheClean,
    TakesWhenClosed,
    // Killed.
    CommitsLate,
    LosesSome,
    FlushesNothing,
    KeepsHalfOfAGroup,
    ChargesAll,
    ChargesEveryMark,
    ChargesWithoutEnd,
    FeelsNoKill,
    CountsNoKills,
    ChargesBackwards,
    ChargesAttempts,
    PagesWithoutCharges,
    ChargesAgain,
    ChargesForEver,
    FinishesLate,
    ForgetsThatItFinished,
}

impl Flaw {
    pub(super) const ALLOWED: [Self; 8] = [
        Right,
        GroupsAreNotKeptTogether,
        KnowsNoAttempts,
        KnowsNoResults,
        KnowsNoMarks,
        RelaxedIsLost,
        PlacesAreForgotten,
        MakesWhatWasDropped,
    ];

    /// Each with the promise that it breaks.
    pub(super) const ALL: [(Self, &'static str); 83] = [
        (BeginsWithACommand, "a new store is empty"),
        (SaysThatItIsFull, "a store that works says so"),
        (CanNotBeProbed, "a store that works can be probed"),
        (CanNotBeFlushed, "a store that works can be flushed"),
        (CutsTimes, "a command comes back as it was saved"),
        (KeepsTheFirst, "a command is saved in place of one with the same id"),
        (MissesWhatItRemoves, "removing what is not there does nothing, and is no error"),
        (RemovesTheNext, "a command that is removed is gone, and no other one is"),
        (BuriesIds, "a command that was removed can be saved again"),
        (SortsLetters, "dead letters come back as they were saved, the oldest first"),
        (OneLetterPerCommand, "a dead letter is stored besides others about the same command"),
        (LettersTakeCommands, "storing a letter does nothing to its command"),
        (CommandsTakeLetters, "removing a command does nothing to its letters"),
        (ClearsOneLetter, "clearing the dead letters removes all of them"),
        (ClearsCommandsToo, "clearing the dead letters removes no command"),
        (ClearsCommandsOnly, "clearing all removes everything"),
        (ClearsForGood, "a store that was cleared can be used"),
        (TrimsIds, "any text is an id, and no two texts are the same one"),
        (NumbersAreFloats, "a payload comes back as it was saved, whatever it is"),
        (CutsPayloads, "a payload of a megabyte is kept"),
        (CutsDetails, "a letter comes back as it was saved"),
        (ChangesLate, "what a dropped future was to change is not changed later than by calls after it"),
        (RefusesToClear, "what is asked of a store that works is done"),
        (Reverses, "the changes of a group are made in their order"),
        (ForgetsAttempts, "attempts are noted, if the store can, and nothing else is changed by it"),
        (KeepsAttempts, "the attempts of a command that is saved anew are those that it says"),
        (GivesUpHalf, "a command that is given up is a dead letter, and no command"),
        (
            GroupsTakeNoLetters,
            "a letter that is kept does nothing to its command, and nothing to other letters about it",
        ),
        (ReplaysHalf, "a command that is replayed is stored"),
        (ReplaysBesideLetters, "a replayed command takes the place of the letters about it, if the store can"),
        (RemovesAllLetters, "the letters about one command can be removed, if the store can"),
        (MissesResults, "removing a result does nothing to commands and letters, and is no error"),
        (NeedsAChange, "a group of no changes changes nothing"),
        (TakesHundreds, "a group of a thousand changes is made"),
        (SeesRelaxedLate, "what one call was told, the next one sees"),
        (StopsBetweenChanges, "a group is stored all or not at all, if the store is atomic"),
        (MakesUpAPage, "an empty store has no page"),
        (BeginsAgain, "paging comes to an end"),
        (PagesById, "pages give every command once, in the order of its place"),
        (PagesByPlaceOnly, "of commands at the same place, pages give every one, once"),
        (NeedsTheOneBefore, "what is there while pages are read is on them once, whatever comes and goes meanwhile"),
        (RemembersTooMuch, "a new store knows of no process before, and of no result"),
        (HasNoPlaces, "a new store has places to give"),
        (TakesSeveralQueues, "a store that notes what runs has one queue at a time"),
        (ClearsForTheSecond, "a queue that asks for a store in vain does nothing to it"),
        (MarksAreOne, "a store that notes what runs gives a mark of its own to every attempt"),
        (ChargesAtOnce, "a mark does nothing to a command as long as nobody is killed"),
        (FinishesForGood, "a store that a queue has finished with can be looked at and changed"),
        (KeepsItsQueue, "a store that one queue has finished with is there for another one"),
        (FinishesUncleanly, "what still runs when its queue has finished is charged to nobody"),
        (GoesToNobody, "a queue gets a store that no other one has"),
        (Hangs, "every call returns"),
        (ForgetsWhatOverlaps, "a thread sees at once what it was told, whatever others do"),
        (DoublesLettersThatOverlap, "of changes that several threads make at once, none is lost, made twice or half"),
        (ReadsOneTwice, "one command is stored under an id"),
        (FreezesTheCommon, "of several who save one command, the last one has saved it whole"),
        (ShufflesMany, "each thread's letters are in its order"),
        (CanNotReadMeanwhile, "reading while others write is no error"),
        (TearsWrites, "what is read while others write is a command as somebody wrote it"),
        (ForgetsLetters, "what is stored when a store is closed is there when it is opened again"),
        (PagesBackwards, "pages of a store that was opened again are in order"),
        (Resurrects, "what is removed stays away when a store is opened again"),
        (KeepsResults, "clearing all removes the results, too"),
        (FirstResultWins, "the last result under every key is there when a store is opened again, if the store can"),
        (GivesPlacesAgain, "the next place is above that of every command that was ever stored, or not known"),
        (ChargesTheClean, "a process that closes its store ends cleanly, and is charged to nobody"),
        (TakesWhenClosed, "a change of a closed store is an error, or is made"),
        (CommitsLate, "what was acknowledged as synced is there when the process was killed"),
        (LosesSome, "what is lost of relaxed changes is the newest, and nothing before what was synced or flushed"),
        (
            FlushesNothing,
            "what is lost of relaxed changes is the newest, and nothing before what was synced or flushed",
        ),
        (KeepsHalfOfAGroup, "a group is stored all or not at all when the process is killed, if the store is atomic"),
        (ChargesAll, "a process that was killed is charged once to each command that ran in it, and to no other one"),
        (
            ChargesEveryMark,
            "a process that was killed is charged once to each command that ran in it, and to no other one",
        ),
        (
            ChargesWithoutEnd,
            "a process that was killed is charged once to each command that ran in it, and to no other one",
        ),
        (FeelsNoKill, "a store knows that the process before it was killed"),
        (CountsNoKills, "a store remembers when processes were killed, as far as it does"),
        (ChargesBackwards, "crashes are known by when they were noticed, the oldest first"),
        (ChargesAttempts, "being charged changes nothing else of a command"),
        (PagesWithoutCharges, "pages tell of crashes"),
        (ChargesAgain, "a command is charged once, also if processes are killed that ran nothing"),
        (ChargesForEver, "the crashes of a command that is saved anew are those that it says"),
        (FinishesLate, "what a queue was told is durable when it has finished"),
        (ForgetsThatItFinished, "a process that is killed after its queue has finished is charged to nobody"),
    ];
}

/// A store in memory with a flaw.
pub(super) struct Broken {
    inner: MemoryStorage,
    flaw: Flaw,
    calls: AtomicUsize,
    /// Somebody has read meanwhile.
    refused: AtomicBool,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    /// What a kill would find, where that is not what there is.
    committed: MemoryStorage,
    /// Changes that are made later than they ought to.
    late: Vec<Change>,
    removed: BTreeSet<String>,
    gone: HashMap<String, StoredCommand>,
    marked: Vec<(StartMark, String)>,
    recovered: u32,
    lives: u32,
    cleared: bool,
    closed: bool,
}

impl Broken {
    pub(super) fn new(flaw: Flaw) -> Self {
        let broken = Self {
            inner: MemoryStorage::new(),
            flaw,
            calls: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            state: Mutex::default(),
        };
        if flaw == BeginsWithACommand {
            broken.now(vec![Change::Save(Box::new(StoredCommand::new("a", "type", "lane", Value::Null)))]);
        }
        broken
    }

    /// What opens it after it was closed.
    pub(super) fn reopened(self) -> Self {
        if self.is(ForgetsLetters) {
            _ = self.inner.clear_dead_letters().now_or_never();
        }
        let inner = self.inner.after_crash();
        if self.is(Resurrects) {
            let gone = std::mem::take(&mut self.state.lock().unwrap().gone);
            let gone = gone.into_values().map(|command| Change::Save(Box::new(command))).collect();
            _ = inner.apply(gone, Durability::Synced).now_or_never();
        }
        self.next_life(inner)
    }

    /// What opens it after its process was killed.
    pub(super) fn killed(self) -> Self {
        let state = self.state.lock().unwrap().clone();
        match self.flaw {
            LosesSome => {
                let lost = state.late.iter().filter_map(|change| match change {
                    Change::Save(command) if command.sequence % 3 == 1 => Some(command.id.clone()),
                    _ => None,
                });
                self.now(lost.map(|id| Change::Remove { id, result: None }).collect());
            }
            KeepsHalfOfAGroup => self.now(state.late),
            _ => {}
        }
        let lossy =
            [CommitsLate, RelaxedIsLost, FlushesNothing, FinishesLate, ForgetsThatItFinished].contains(&self.flaw);
        if !lossy {
            let inner = self.inner.after_crash();
            return self.next_life(inner);
        }
        for (mark, id) in &mut self.state.lock().unwrap().marked {
            *mark = state.committed.mark_started(id).expect("a store in memory has marks");
        }
        self.next_life(state.committed.after_crash())
    }

    fn next_life(self, inner: MemoryStorage) -> Self {
        let mut state = self.state.into_inner().unwrap();
        (state.recovered, state.closed, state.lives) = (0, false, state.lives + 1);
        state.late.clear();
        let next = Self {
            inner,
            flaw: self.flaw,
            calls: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        next.commit();
        next
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// Changes that nobody may notice.
    fn now(&self, changes: Vec<Change>) {
        _ = self.inner.apply(changes, Durability::Synced).now_or_never();
    }

    fn there(&self) -> Vec<StoredCommand> {
        self.inner.load_commands().now_or_never().expect("memory is ready").unwrap()
    }

    fn letters(&self) -> Vec<StoredDeadLetter> {
        self.inner.load_dead_letters().now_or_never().expect("memory is ready").unwrap()
    }

    fn set_letters(&self, letters: Vec<StoredDeadLetter>) {
        self.inner.clear_dead_letters().now_or_never().expect("memory is ready").unwrap();
        for letter in letters {
            self.inner.save_dead_letter(letter).now_or_never().expect("memory is ready").unwrap();
        }
    }

    /// One change, with what is wrong with it.
    fn change(&self, mut change: Change) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let there = |id: &str| self.there().into_iter().find(|command| command.id == id);
        match &mut change {
            Change::Save(command) => match self.flaw {
                CutsTimes => command.created_at -= chrono::TimeDelta::nanoseconds(1),
                KeepsTheFirst if there(&command.id).is_some() => return Ok(()),
                BuriesIds if state.removed.contains(&command.id) => return Ok(()),
                ClearsForGood if state.cleared => return Ok(()),
                FreezesTheCommon if command.id == "shared" && there("shared").is_some() => return Ok(()),
                TrimsIds => command.id = command.id.trim().to_owned(),
                NumbersAreFloats => as_floats(&mut command.payload),
                CutsPayloads if command.payload.to_string().len() > 1_000_000 => command.payload = json!("big"),
                KeepsAttempts => {
                    if let Some(before) = there(&command.id).filter(|before| before.retry_count == 2) {
                        command.retry_count = before.retry_count;
                    }
                }
                ChargesForEver => {
                    if let Some(before) = there(&command.id).filter(|before| before.crashes.len() == 1) {
                        command.crashes = before.crashes;
                    }
                }
                _ => {}
            },
            Change::Remove { id, result } => match self.flaw {
                MissesWhatItRemoves if there(id).is_none() => return Err(no()),
                TrimsIds => *id = id.trim().to_owned(),
                RemovesTheNext if there(id).is_some() => {
                    let next = self.there().into_iter().map(|command| command.id).filter(|other| *other > *id).min();
                    let next = next.unwrap_or_else(|| id.clone());
                    self.now(vec![Change::Remove { id: next, result: None }]);
                }
                BuriesIds if there(id).is_some() => _ = state.removed.insert(id.clone()),
                CommandsTakeLetters => self.now(vec![Change::RemoveDeadLetters { command_id: id.clone() }]),
                Resurrects => _ = there(id).map(|command| state.gone.insert(id.clone(), command)),
                FirstResultWins => {
                    if let Some(key) = result.as_ref().map(|result| result.key.clone()) {
                        let known = !state.removed.insert(format!("result {key}"));
                        *result = result.take().filter(|_| !known);
                    }
                }
                _ => {}
            },
            Change::Attempted { .. } if self.is(ForgetsAttempts) || self.is(KnowsNoAttempts) => return Ok(()),
            Change::GiveUp(letter) => match self.flaw {
                GivesUpHalf => {
                    let letter = letter.as_ref().clone();
                    let others = self.letters().into_iter().chain([letter]).collect();
                    self.set_letters(others);
                    return Ok(());
                }
                ShufflesMany if self.letters().len() >= 20 => {
                    let letters = [letter.as_ref().clone()].into_iter().chain(self.letters()).collect();
                    self.set_letters(letters);
                    change = Change::Remove { id: letter.command_id.clone(), result: None };
                }
                DoublesLettersThatOverlap if self.calls.load(Ordering::SeqCst) > 1 => {
                    self.now(vec![change.clone()]);
                }
                _ => {}
            },
            Change::SaveDeadLetter(_) if self.is(GroupsTakeNoLetters) => return Ok(()),
            Change::Replay(command) if self.is(ReplaysHalf) => {
                change = Change::RemoveDeadLetters { command_id: command.id.clone() };
            }
            Change::Replay(command) if self.is(ReplaysBesideLetters) || self.is(KnowsNoResults) => {
                change = Change::Save(command.clone());
            }
            Change::RemoveDeadLetters { .. } if self.is(RemovesAllLetters) => self.set_letters(Vec::new()),
            Change::RemoveDeadLetters { .. } if self.is(KnowsNoResults) => return Ok(()),
            Change::RemoveResult { .. } if self.is(MissesResults) => return Err(no()),
            _ => {}
        }
        if let (Change::Remove { result, .. }, KnowsNoResults) = (&mut change, self.flaw) {
            *result = None;
        }
        drop(state);
        self.inner.apply(vec![change], Durability::Synced).now_or_never().expect("memory is ready")
    }

    /// Gives others the chance to do what the flaw needs: on a busy machine, one turn is not enough. In vain where nobody else calls.
    async fn until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..300 {
            if is_so() {
                return;
            }
            std::thread::yield_now();
            yield_now().await;
        }
    }

    /// A group, with what is wrong with groups.
    async fn group(&self, mut changes: Vec<Change>, durability: Durability) -> Result<()> {
        if self.is(TakesWhenClosed) && self.state.lock().unwrap().closed {
            return Ok(());
        }
        let _call = Call::begin(&self.calls);
        let group = &mut changes;
        match self.flaw {
            NeedsAChange if group.is_empty() => return Err(no()),
            Reverses => group.reverse(),
            TakesHundreds => group.truncate(500),
            ForgetsWhatOverlaps => {
                self.until(|| self.calls.load(Ordering::SeqCst) > 1).await;
                if self.calls.load(Ordering::SeqCst) > 1 {
                    return Ok(());
                }
            }
            DoublesLettersThatOverlap => self.until(|| self.calls.load(Ordering::SeqCst) > 1).await,
            CanNotReadMeanwhile => self.until(|| self.refused.load(Ordering::SeqCst)).await,
            TearsWrites => {
                for change in &*group {
                    if let Change::Save(command) = change {
                        let mut half = command.as_ref().clone();
                        half.payload = json!({ "half": true });
                        self.now(vec![Change::Save(Box::new(half))]);
                        yield_now().await;
                    }
                }
            }
            SeesRelaxedLate if durability == Durability::Relaxed => {
                self.state.lock().unwrap().late.append(group);
                return Ok(());
            }
            LosesSome if durability == Durability::Relaxed => self.state.lock().unwrap().late.extend(group.clone()),
            ChangesLate | KeepsHalfOfAGroup | MakesWhatWasDropped => self.unless_dropped(group).await,
            _ => {}
        }
        if self.is(SeesRelaxedLate) || (self.is(LosesSome) && durability == Durability::Synced) {
            self.catch_up();
        }
        for change in changes {
            self.change(change)?;
            if self.is(StopsBetweenChanges) || self.is(GroupsAreNotKeptTogether) {
                yield_now().await;
            }
        }
        let commits = match self.flaw {
            CommitsLate => false,
            _ => durability == Durability::Synced,
        };
        if commits {
            self.commit();
        }
        Ok(())
    }

    /// Waits once, and leaves the changes of a future that is dropped meanwhile to what comes.
    async fn unless_dropped(&self, changes: &[Change]) {
        struct Left<'a>(&'a Broken, Vec<Change>);
        impl Drop for Left<'_> {
            fn drop(&mut self) {
                let mut changes = std::mem::take(&mut self.1);
                match self.0.flaw {
                    MakesWhatWasDropped => {
                        self.0.now(changes);
                        self.0.commit();
                    }
                    KeepsHalfOfAGroup => {
                        changes.truncate(changes.len() / 2);
                        self.0.state.lock().unwrap().late.extend(changes);
                    }
                    _ => self.0.state.lock().unwrap().late.extend(changes),
                }
            }
        }
        let mut left = Left(self, changes.to_vec());
        yield_now().await;
        left.1.clear();
    }

    fn catch_up(&self) {
        let late = std::mem::take(&mut self.state.lock().unwrap().late);
        if !self.is(LosesSome) {
            self.now(late);
        }
    }

    /// From now on a kill finds what there is now.
    fn commit(&self) {
        let committed = self.inner.after_crash();
        let mut state = self.state.lock().unwrap();
        // Marks are not committed; they are there.
        state.marked.iter().for_each(|(mark, _)| committed.unmark(*mark));
        state.committed = committed;
    }
}

#[async_trait]
impl Storage for Broken {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.group(vec![Change::Save(Box::new(command))], Durability::Synced).await
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        if self.is(Hangs) {
            pending::<()>().await;
        }
        if self.is(CanNotReadMeanwhile) && self.calls.load(Ordering::SeqCst) > 0 {
            self.refused.store(true, Ordering::SeqCst);
            return Err(no());
        }
        let mut commands = self.there();
        if self.is(ReadsOneTwice) {
            commands.extend(commands.iter().find(|command| command.id == "shared").cloned());
        }
        Ok(commands)
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.group(vec![Change::Remove { id: id.to_owned(), result: None }], Durability::Synced).await
    }

    async fn save_dead_letter(&self, mut letter: StoredDeadLetter) -> Result<()> {
        match self.flaw {
            OneLetterPerCommand => self.now(vec![Change::RemoveDeadLetters { command_id: letter.command_id.clone() }]),
            LettersTakeCommands => self.now(vec![Change::Remove { id: letter.command_id.clone(), result: None }]),
            CutsDetails if letter.details.is_array() => letter.details = Value::Null,
            _ => {}
        }
        self.inner.save_dead_letter(letter).await?;
        self.commit();
        Ok(())
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        let mut letters = self.inner.load_dead_letters().await?;
        if self.is(SortsLetters) {
            letters.sort_by(|a, b| a.command_id.cmp(&b.command_id));
        }
        Ok(letters)
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        match self.flaw {
            ClearsOneLetter => {
                self.set_letters(self.letters().split_off(1));
                Ok(())
            }
            ClearsCommandsToo => self.inner.clear_all().await,
            RefusesToClear => Err(no()),
            _ => self.inner.clear_dead_letters().await,
        }
    }

    async fn clear_all(&self) -> Result<()> {
        self.state.lock().unwrap().cleared = true;
        let removed = |command: StoredCommand| Change::Remove { id: command.id, result: None };
        match self.flaw {
            ClearsCommandsOnly => self.now(self.there().into_iter().map(removed).collect()),
            KeepsResults => {
                self.now(self.there().into_iter().map(removed).collect());
                self.set_letters(Vec::new());
            }
            _ => self.inner.clear_all().await?,
        }
        self.commit();
        Ok(())
    }

    fn capabilities(&self) -> StorageCapabilities {
        let mut all = self.inner.capabilities();
        match self.flaw {
            GroupsAreNotKeptTogether | TearsWrites => all.atomic = false,
            KnowsNoAttempts => all.attempts = false,
            KnowsNoMarks => all.start_marks = false,
            KnowsNoResults => all.results_and_letters = false,
            _ => {}
        }
        all
    }

    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<()> {
        self.group(changes, durability).await
    }

    async fn recover(&self) -> Result<Recovery> {
        let (second, lives) = {
            let mut state = self.state.lock().unwrap();
            state.recovered += 1;
            (state.recovered > 1, state.lives)
        };
        match self.flaw {
            GoesToNobody => return Err(no()),
            TakesSeveralQueues | KnowsNoMarks if second => return Ok(Recovery::default()),
            ClearsForTheSecond if second => self.inner.clear_all().await?,
            _ => {}
        }
        let mut found = self.inner.recover().await?;
        let marked = std::mem::take(&mut self.state.lock().unwrap().marked);
        let marked: Vec<_> = marked.into_iter().map(|(_, id)| id).collect();
        let charge = |mut command: StoredCommand, times: usize| {
            command.crashes.extend(std::iter::repeat_n(chrono::Utc::now(), times));
            Change::Save(Box::new(command))
        };
        match self.flaw {
            RemembersTooMuch => found.unclean = true,
            HasNoPlaces => found.next_sequence = u64::MAX,
            PlacesAreForgotten => found.next_sequence = 0,
            KnowsNoResults => found.results.clear(),
            KnowsNoMarks => (found.unclean, found.unclean_ends) = (false, Vec::new()),
            GivesPlacesAgain => {
                found.next_sequence = self.there().iter().map(|command| command.sequence + 1).max().unwrap_or(1);
            }
            ChargesTheClean if !found.unclean && lives > 0 => {
                self.now(
                    self.there().into_iter().filter(|it| marked.contains(&it.id)).map(|it| charge(it, 1)).collect(),
                );
            }
            ChargesAll if found.unclean && !marked.is_empty() => {
                self.now(self.there().into_iter().map(|it| charge(it, 1)).collect())
            }
            ChargesEveryMark if found.unclean => {
                let times = |id: &str| marked.iter().filter(|marked| *marked == id).count();
                let several = self.there().into_iter().filter(|it| times(&it.id) > 1);
                self.now(several.map(|it| charge(it, 1)).collect());
            }
            ChargesWithoutEnd => {
                let full =
                    self.there().into_iter().filter(|command| command.id == "ran" && command.crashes.len() == 16);
                self.now(full.map(|it| charge(it, 1)).collect());
            }
            FinishesUncleanly if second => found.unclean = true,
            FeelsNoKill => found.unclean = false,
            CountsNoKills => found.unclean_ends.clear(),
            ChargesBackwards => {
                let mut commands = self.there();
                commands.retain(|command| command.id == "ran");
                commands.iter_mut().for_each(|command| command.crashes.sort_by(|a, b| b.cmp(a)));
                self.now(commands.into_iter().map(|command| Change::Save(Box::new(command))).collect());
            }
            ChargesAttempts if found.unclean => {
                let marked = self.there().into_iter().filter(|it| marked.contains(&it.id));
                let charged = marked.map(|mut it| {
                    it.retry_count += 1;
                    Change::Save(Box::new(it))
                });
                self.now(charged.collect());
            }
            ChargesAgain if lives == 3 => {
                let charged = self.there().into_iter().filter(|command| command.crashes.len() == 1);
                self.now(charged.map(|it| charge(it, 1)).collect());
            }
            _ => {}
        }
        self.commit();
        Ok(found)
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        if self.is(Hangs) {
            pending::<()>().await;
        }
        let mut all = self.there();
        let place = |command: &StoredCommand| (command.sequence, command.id.clone());
        all.sort_by_key(place);
        let behind = match (self.flaw, after) {
            (MakesUpAPage, None) if all.is_empty() => {
                return Ok(vec![StoredCommand::new("a", "type", "lane", Value::Null)]);
            }
            (BeginsAgain, _) => None,
            (PagesById, _) => {
                all.sort_by(|a, b| a.id.cmp(&b.id));
                all.retain(|command| after.is_none_or(|after| command.id > after.id));
                None
            }
            (PagesByPlaceOnly, Some(after)) => {
                all.retain(|command| command.sequence > after.sequence);
                None
            }
            (NeedsTheOneBefore, Some(after)) if !all.iter().any(|command| command.id == after.id) => {
                return Ok(Vec::new());
            }
            (_, after) => after,
        };
        all.retain(|command| behind.is_none_or(|behind| place(command) > place(behind)));
        all.truncate(limit);
        match self.flaw {
            PagesBackwards if self.state.lock().unwrap().lives > 0 => all.reverse(),
            PagesWithoutCharges => {
                all.iter_mut().filter(|command| command.id == "ran").for_each(|command| command.crashes.clear());
            }
            _ => {}
        }
        Ok(all)
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        let mark = self.inner.mark_started(id)?;
        self.state.lock().unwrap().marked.push((mark, id.to_owned()));
        match self.flaw {
            KnowsNoMarks => {
                self.unmark(mark);
                None
            }
            MarksAreOne => Some(StartMark(7)),
            ChargesAtOnce => {
                let marked = self.there().into_iter().filter(|command| command.id == id);
                let charged = marked.map(|mut it| {
                    it.crashes.push(it.created_at);
                    Change::Save(Box::new(it))
                });
                self.now(charged.collect());
                Some(mark)
            }
            _ => Some(mark),
        }
    }

    fn unmark(&self, mark: StartMark) {
        self.inner.unmark(mark);
        // That one is charged with what it has not done.
        if !self.is(ChargesTheClean) {
            self.state.lock().unwrap().marked.retain(|(other, _)| *other != mark);
        }
    }

    fn health(&self) -> StorageHealth {
        if self.is(SaysThatItIsFull) { StorageHealth::Full } else { self.inner.health() }
    }

    async fn probe(&self) -> Result<()> {
        if self.is(CanNotBeProbed) { Err(no()) } else { Ok(()) }
    }

    async fn flush(&self) -> Result<()> {
        match self.flaw {
            CanNotBeFlushed => return Err(no()),
            ChangesLate | SeesRelaxedLate | LosesSome => self.catch_up(),
            _ => {}
        }
        if !self.is(FlushesNothing) {
            self.commit();
        }
        Ok(())
    }

    async fn finish(&self) -> Result<()> {
        let finishes_late = self.is(FinishesLate);
        if !finishes_late {
            self.flush().await?;
        }
        match self.flaw {
            FinishesForGood => return self.inner.close().await,
            // The queue that has it, or that runs in it, stays.
            KeepsItsQueue => return Ok(()),
            ForgetsThatItFinished => {
                let next = self.inner.after_crash();
                self.state.lock().unwrap().committed = next;
            }
            _ => {}
        }
        self.inner.finish().await?;
        if !finishes_late && !self.is(ForgetsThatItFinished) {
            self.commit();
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.flush().await?;
        self.finish().await?;
        self.commit();
        self.state.lock().unwrap().closed = true;
        if self.is(TakesWhenClosed) { Ok(()) } else { self.inner.close().await }
    }
}

/// Counts the changes that are being made.
struct Call<'a>(&'a AtomicUsize);

impl<'a> Call<'a> {
    fn begin(calls: &'a AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::SeqCst);
        Self(calls)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn as_floats(value: &mut Value) {
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|number| number > 1 << 53) => {
            *value = number.as_f64().into()
        }
        Value::Array(values) => values.iter_mut().for_each(as_floats),
        Value::Object(members) => members.values_mut().for_each(as_floats),
        _ => {}
    }
}

fn no() -> LaneError {
    LaneError::Other("no".into())
}
