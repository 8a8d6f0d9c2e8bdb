//! The storage thread: the only one that writes to the database.
//!
//! # Group commit
//!
//! Actors: callers, who serialise what they want to change, put it at the end of a list ([`Queue`]), and wait; this thread.
//!
//! 1. The thread takes from the front of the list what makes a good transaction: what has come in while it was syncing. With
//!    nothing there it sleeps; with only changes that nobody waits for, it gives others a few milliseconds to join. There is no
//!    other timer: alone, a change is committed at once, and the more there are, the more share a sync.
//! 2. It makes the changes in their order in one redb transaction, with one more number in `state`, and commits: one sync.
//! 3. It raises the watermark to that number (see `watermark.rs`).
//! 4. It answers those who wait, in their order.
//!
//! So an answer means: synced, and its loss would be noticed. A change that nobody waits for ([`Durability::Relaxed`]) was
//! acknowledged at its place in the list. The list is what keeps order: what one caller asks for after an answer comes later in
//! it, reads included, which are requests as well. So a read sees what was acknowledged before, and what survives a kill is what
//! was acknowledged up to some moment.
//!
//! # When a transaction fails
//!
//! redb refuses everything after an error of the file, and does not know what became of the commit. Nor does anybody else, until
//! the file was looked at again: so the database is dropped, and opened as after a crash (see `opening.rs`). The number in
//! `state` then tells whether the transaction is in there.
//!
//! | failed | those who wait hear | those who do not |
//! |---|---|---|
//! | a sync | the outcome is unknown, at once | made again, unless the number says that they are in |
//! | a write | what the number says; if that can not be read, unknown | the same |
//! | a write, for lack of room | the same; ends of commands are tried again without the rest | the same |
//! | redb finds damage | damaged | kept, as long as this process lives |
//!
//! What was acknowledged and is not made yet is kept in `carry`, before everything else, and tried again each second.
//!
//! A sync that has failed may have lost what it was to make durable, although it can still be read, and although the next sync
//! succeeds. `Unsynced` knows what that was, and writes it again before the file is looked at.
//!
//! With the disk full, changes that accept something are refused, and those that end something go on: in the space that they
//! free, and in that of the file `reserve`, which is given up then, and filled again once there is room. That it can be filled
//! again is how the thread knows.
//!
//! While the database can not be opened, changes are refused at once; each second, one of them, or [`Storage::probe`], makes
//! another attempt.
//!
//! [`Storage::probe`]: crate::Storage::probe

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use redb::ReadableDatabase;

use super::backend::Unsynced;
use super::disk::{Disk, Small, SmallFile};
use super::marks::Marks;
use super::opening::{self, Opened, explain, failed, guarded, look, said};
use super::queue::{Changes, Queue, Request};
use super::reply::Reply;
use super::tables::{self, Op, RawCommands, State, Tables, Trouble};
use super::watermark::Watermark;
use crate::clock::{Clock, Tick, wall_now};
use crate::error::StorageError;
use crate::storage::{Recovery, StorageHealth};

/// How often what has failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Bytes that are kept for when the disk is full.
const RESERVE_BYTES: u64 = 1 << 20;

/// Bytes of commands that one page of them brings, about.
const PAGE_BYTES: usize = 32 << 20;

/// The store, as its thread has it.
#[derive(Debug)]
pub(super) struct Engine {
    /// None: it was closed, or has failed.
    opened: Option<Opened>,
    /// Why `opened` is none, and when that was last tried to change.
    failure: Option<(StorageError, Tick)>,
    /// The disk was full when last tried.
    full: Option<(String, Tick)>,
    /// Acknowledged, and to be made before everything else.
    carry: Vec<Changes>,
    /// As `carry`, if the commit of that number is not in the database.
    unknown: Option<(u64, Vec<Changes>)>,
    /// A queue has it, and its epoch has begun.
    taken: bool,
    read_only: bool,
    cache_bytes: usize,
    watermark: Watermark,
    reserve: Option<Box<dyn SmallFile>>,
    unsynced: Arc<Unsynced>,
    clock: Clock,
    queue: Arc<Queue>,
    /// Last: other processes may have the files once this is gone.
    disk: Box<dyn Disk>,
}

/// How a transaction ended.
enum Failed {
    /// The file has failed: nothing is known until it was opened again. Whether a sync did, and what the system said.
    File { sync: bool, error: StorageError },
    /// Before its commit: it is not stored.
    Before(StorageError),
    /// It is durable, and the watermark is not raised: the next one must not be acknowledged before that is.
    Watermark(StorageError),
}

impl Engine {
    pub(super) fn open(
        disk: Box<dyn Disk>,
        cache_bytes: usize,
        queue: &Arc<Queue>,
    ) -> Result<(Self, Marks), StorageError> {
        let mut watermark = opening::open_watermark(&*disk, false)?;
        let unsynced = Arc::new(Unsynced::default());
        if watermark.doubt() {
            unsynced.add_everything();
        }
        let opened = opening::open(&*disk, &unsynced, &mut watermark, cache_bytes)?;
        let at = |error| super::disk::problem(disk.path(), &error);
        let marks = Marks::new(disk.small(Small::Running).map_err(at)?);
        let reserve = disk.small(Small::Reserve).map_err(at)?;
        let mut engine = Self::new(disk, cache_bytes, watermark, opened, unsynced, queue);
        engine.reserve = Some(reserve);
        // Without it, the disk is full already; that is for those to hear who want to store something.
        if let Err(StorageError::StorageFull(text)) = engine.fill_reserve() {
            engine.set_full(&text);
        }
        Ok((engine, marks))
    }

    pub(super) fn open_read_only(
        disk: Box<dyn Disk>,
        cache_bytes: usize,
        queue: &Arc<Queue>,
    ) -> Result<(Self, Marks), StorageError> {
        let watermark = opening::open_watermark(&*disk, true)?;
        let opened = opening::open_read_only(&*disk, &watermark, cache_bytes)?;
        let running = disk.small(Small::Running).map_err(|error| super::disk::problem(disk.path(), &error))?;
        let mut engine = Self::new(disk, cache_bytes, watermark, opened, Arc::default(), queue);
        engine.read_only = true;
        Ok((engine, Marks::new(running)))
    }

    fn new(
        disk: Box<dyn Disk>,
        cache_bytes: usize,
        watermark: Watermark,
        opened: Opened,
        unsynced: Arc<Unsynced>,
        queue: &Arc<Queue>,
    ) -> Self {
        Self {
            opened: Some(opened),
            failure: None,
            full: None,
            carry: Vec::new(),
            unknown: None,
            taken: false,
            read_only: false,
            cache_bytes,
            watermark,
            reserve: None,
            unsynced,
            clock: Clock::system(),
            queue: queue.clone(),
            disk,
        }
    }

    /// Works until the store is closed.
    pub(super) fn run(mut self, marks: &Marks) {
        let queue = self.queue.clone();
        loop {
            let owes = !self.carry.is_empty() || self.unknown.is_some();
            let group = queue.next(owes.then_some(RETRY_EVERY));
            let (mut requests, mut bytes) = (0, 0);
            let mut changes = Vec::new();
            for request in group {
                match request {
                    Request::Change(change) => {
                        (requests, bytes) = (requests + 1, bytes + change.bytes);
                        changes.push(change);
                    }
                    Request::Commands(after, limit, reply) => reply.send(self.read(|transaction| {
                        RawCommands::load(transaction, after.as_deref(), limit, page_bytes(limit))
                    })),
                    Request::Letters(reply) => reply.send(self.read(tables::load_letters)),
                    Request::Recover(reply) => reply.send(self.recover(marks)),
                    Request::Flush(reply) => reply.send(self.flush()),
                    Request::Probe(reply) => reply.send(self.probe()),
                    Request::Finish(reply) => {
                        marks.begin(0);
                        reply.send(self.finish());
                    }
                    Request::Close(reply) => {
                        marks.begin(0);
                        return self.close(reply);
                    }
                }
            }
            if owes || !changes.is_empty() {
                self.change(changes, true);
            }
            queue.release(requests, bytes);
        }
    }

    /// Makes changes, in their order, behind those that are owed. `again`: what may be tried again after a failure is.
    fn change(&mut self, mut group: Vec<Changes>, again: bool) {
        if self.read_only {
            return refuse(group, &StorageError::ReadOnly);
        }
        if let Err(error) = self.ready(false) {
            return self.keep(group, |_| error.clone());
        }
        if let Some(full) = self.still_full() {
            group = self.refuse_acceptance(group, &full);
        }
        if self.full.is_none() {
            group.splice(0..0, std::mem::take(&mut self.carry));
        }
        if group.iter().all(|changes| changes.ops.is_empty()) {
            return group.into_iter().for_each(|changes| changes.answer(Ok(())));
        }
        let number = self.opened.as_ref().map_or(0, |opened| opened.state.commits) + 1;
        let ops: Vec<&Op> = group.iter().flat_map(|changes| &changes.ops).collect();
        match self.commit(&ops) {
            Ok(()) => group.into_iter().for_each(|changes| changes.answer(Ok(()))),
            Err(Failed::Watermark(error)) => {
                group.into_iter().for_each(|changes| changes.answer(Ok(())));
                self.fail(error);
            }
            Err(Failed::File { sync: true, error }) => {
                if let StorageError::StorageFull(text) = &error {
                    self.set_full(text);
                }
                self.fail(error.clone());
                let owed = owed(group, |_| StorageError::OutcomeUnknown(error.to_string()));
                self.unknown = Some((number, owed));
                if self.reopen().is_ok() && again && !self.carry.is_empty() {
                    self.change(Vec::new(), false);
                }
            }
            Err(Failed::File { sync: false, error }) => self.write_failed(group, Some(number), error, again),
            Err(Failed::Before(error)) => self.write_failed(group, None, error, again),
        }
    }

    /// A transaction has failed before its sync. With the number that it would have, it may be stored nevertheless.
    fn write_failed(&mut self, group: Vec<Changes>, number: Option<u64>, error: StorageError, again: bool) {
        let full = matches!(error, StorageError::StorageFull(_));
        if let StorageError::StorageFull(text) = &error {
            self.set_full(text);
        }
        self.fail(error.clone());
        let reopened = self.reopen().is_ok();
        let Some(number) = number else {
            return self.make_without(group, &error, full && reopened && again);
        };
        // No sync has failed: what can be read is what there is. If it can only be read, it is not synced.
        let commits = match &self.opened {
            Some(opened) => Some(opened.state.commits),
            None => look(&*self.disk, &self.unsynced, &self.watermark).ok().map(|state| state.commits),
        };
        match commits {
            Some(commits) if commits < number => self.make_without(group, &error, full && reopened && again),
            Some(_) if reopened => group.into_iter().for_each(|changes| changes.answer(Ok(()))),
            _ => {
                let owed = owed(group, |_| StorageError::OutcomeUnknown(error.to_string()));
                self.unknown = Some((number, owed));
            }
        }
    }

    /// Nothing of that was stored. What ends something may go on, in the room that was kept for it.
    fn make_without(&mut self, group: Vec<Changes>, error: &StorageError, again: bool) {
        if again {
            self.change(group, false);
        } else {
            self.keep(group, |_| error.clone());
        }
    }

    /// Those who wait hear why not; what was acknowledged is kept.
    fn keep(&mut self, group: Vec<Changes>, why: impl Fn(&Changes) -> StorageError) {
        let owed = owed(group, why);
        self.carry.extend(owed);
    }

    /// With the disk full: what accepts something is refused, or kept if it was acknowledged. The rest is returned.
    fn refuse_acceptance(&mut self, group: Vec<Changes>, full: &str) -> Vec<Changes> {
        let mut rest = Vec::new();
        for mut changes in group {
            if changes.ops.iter().any(Op::accepts) {
                self.keep(vec![changes], |_| StorageError::StorageFull(full.to_owned()));
                continue;
            }
            // What is kept comes after this, and must not bring back what this ends.
            let mut first = Vec::new();
            for op in &changes.ops {
                for kept in &mut self.carry {
                    for earlier in std::mem::take(&mut kept.ops) {
                        match op.overtake(earlier) {
                            Ok(now) => first.extend(now),
                            Err(earlier) => kept.ops.push(earlier),
                        }
                    }
                }
            }
            changes.ops.splice(0..0, first);
            rest.push(changes);
        }
        rest
    }

    /// One transaction.
    fn commit(&mut self, ops: &[&Op]) -> Result<(), Failed> {
        let Some(opened) = &mut self.opened else {
            return Err(Failed::Before(StorageError::Closed));
        };
        let mut state = opened.state.clone();
        state.commits += 1;
        let database = &opened.database;
        let mut committing = false;
        let made = catch_unwind(AssertUnwindSafe(|| -> Result<(), Trouble> {
            let transaction = database.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            for op in ops {
                tables.apply(op, &mut state)?;
            }
            tables.write_state(&state)?;
            drop(tables);
            committing = true;
            transaction.commit()?;
            Ok(())
        }));
        let error = match made {
            Ok(Ok(())) => {
                opened.state = state;
                let number = opened.state.commits;
                return self.watermark.raise(number).map_err(|error| Failed::Watermark(failed(&error)));
            }
            Ok(Err(trouble)) => explain(trouble),
            Err(panic) => StorageError::Io(format!("the storage thread panicked: {}", said(&*panic))),
        };
        // redb says that something has failed before; this is what.
        let (sync, error) = match opened.tracked.fault() {
            Some(fault) => (fault.sync, failed(&std::io::Error::new(fault.kind, fault.text))),
            None => (false, error),
        };
        if sync {
            self.watermark.set_doubt(true);
        }
        Err(if committing { Failed::File { sync, error } } else { Failed::Before(error) })
    }

    fn fail(&mut self, error: StorageError) {
        tracing::error!(%error, "the store has failed");
        self.drop_database();
        self.failure = Some((error, self.clock.now()));
        self.publish();
    }

    /// Before another one is opened: this one has the file locked.
    fn drop_database(&mut self) {
        let opened = self.opened.take();
        // One that has failed, or in which something has panicked, may panic once more.
        _ = catch_unwind(AssertUnwindSafe(|| drop(opened)));
    }

    /// Returns when the database is open, or says why it is not. Tries at most once per [`RETRY_EVERY`], unless `now`.
    fn ready(&mut self, now: bool) -> Result<(), StorageError> {
        match &self.failure {
            None => Ok(()),
            Some((error, tried)) if !now && self.clock.now().since(*tried) < RETRY_EVERY => Err(refusal(error)),
            Some(_) => self.reopen(),
        }
    }

    fn reopen(&mut self) -> Result<(), StorageError> {
        self.drop_database();
        match opening::open(&*self.disk, &self.unsynced, &mut self.watermark, self.cache_bytes) {
            Ok(opened) => {
                if let Some((number, changes)) = self.unknown.take()
                    && opened.state.commits < number
                {
                    self.carry.splice(0..0, changes);
                }
                self.opened = Some(opened);
                self.failure = None;
                self.publish();
                Ok(())
            }
            Err(error) => {
                if let StorageError::StorageFull(text) = &error {
                    self.set_full(text);
                }
                // Damage says more than what has failed before.
                let first = match self.failure.take() {
                    Some((first, _)) if !matches!(error, StorageError::Damaged { .. }) => first,
                    _ => error,
                };
                let refusal = refusal(&first);
                self.failure = Some((first, self.clock.now()));
                self.publish();
                Err(refusal)
            }
        }
    }

    fn set_full(&mut self, text: &str) {
        if self.full.is_none() {
            tracing::error!(error = text, "the disk is full: commands end, and none is accepted");
        }
        self.full = Some((text.to_owned(), self.clock.now()));
        self.publish();
        if let Some(reserve) = &self.reserve
            && let Err(error) = reserve.set_len(0)
        {
            tracing::error!(%error, "the room that was kept for a full disk could not be given up");
        }
    }

    /// Why the disk is full, if it still is. Tries at most once per [`RETRY_EVERY`].
    fn still_full(&mut self) -> Option<String> {
        let (text, tried) = self.full.as_ref()?;
        if self.clock.now().since(*tried) < RETRY_EVERY {
            return Some(text.clone());
        }
        self.try_room().err().map(|error| error.to_string())
    }

    fn try_room(&mut self) -> Result<(), StorageError> {
        match self.fill_reserve() {
            Ok(()) => {
                self.full = None;
                self.publish();
                Ok(())
            }
            Err(error) => {
                if let StorageError::StorageFull(text) = &error {
                    self.set_full(text);
                }
                Err(error)
            }
        }
    }

    /// An error is one for lack of room. With others, the store goes on without a reserve: it holds nothing.
    fn fill_reserve(&self) -> Result<(), StorageError> {
        let Some(reserve) = &self.reserve else { return Ok(()) };
        let fill = || {
            let mut len = reserve.len()?;
            let zeros = [0; 1 << 16];
            while len < RESERVE_BYTES {
                reserve.write(len, &zeros)?;
                len += zeros.len() as u64;
            }
            reserve.sync()
        };
        match fill().map_err(|error| failed(&error)) {
            Err(full @ StorageError::StorageFull(_)) => Err(full),
            Err(error) => {
                tracing::warn!(%error, "no room could be kept for a full disk");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn read<T>(&mut self, load: impl FnOnce(&redb::ReadTransaction) -> Result<T, Trouble>) -> Result<T, StorageError> {
        self.ready(false)?;
        self.settle()?;
        let Some(opened) = &self.opened else { return Err(StorageError::Closed) };
        guarded(|| load(&opened.database.begin_read()?))
    }

    /// Makes what is owed, so that it can be seen.
    fn settle(&mut self) -> Result<(), StorageError> {
        if !self.carry.is_empty() {
            self.change(Vec::new(), true);
        }
        if let Some((error, _)) = &self.failure {
            return Err(refusal(error));
        }
        match &self.full {
            _ if self.carry.is_empty() => Ok(()),
            Some((text, _)) => Err(StorageError::StorageFull(text.clone())),
            None => Err(refusal(&StorageError::Io("a change that was acknowledged could not be stored yet".into()))),
        }
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.ready(false)?;
        self.settle()
    }

    fn probe(&mut self) -> Result<(), StorageError> {
        self.ready(true)?;
        if self.full.is_some() {
            self.try_room()?;
        }
        self.settle()
    }

    fn recover(&mut self, marks: &Marks) -> Result<Recovery, StorageError> {
        if self.read_only {
            return Err(StorageError::ReadOnly);
        }
        if self.taken {
            return Err(StorageError::InUse);
        }
        self.flush()?;
        let Some(opened) = &self.opened else { return Err(StorageError::Closed) };
        let State { epoch, clean, .. } = opened.state;
        let marked = if clean { Ok(Default::default()) } else { marks.of_epoch(epoch) };
        let begin = Op::Begin { now: wall_now(), marked: marked.map_err(|error| failed(&error))? };
        self.make(begin)?;
        let recovery = self.read(|transaction| {
            Ok(Recovery {
                unclean: !clean,
                unclean_ends: tables::load_unclean_ends(transaction)?,
                results: tables::load_results(transaction)?,
                next_sequence: 0,
            })
        })?;
        self.taken = true;
        marks.begin(epoch + 1);
        let next_sequence = self.opened.as_ref().map_or(0, |opened| opened.state.next_sequence);
        Ok(Recovery { next_sequence, ..recovery })
    }

    /// Makes one change of the store itself.
    fn make(&mut self, op: Op) -> Result<(), StorageError> {
        match self.commit(&[&op]) {
            Ok(()) => Ok(()),
            Err(Failed::Watermark(error) | Failed::Before(error) | Failed::File { error, .. }) => {
                self.fail(error.clone());
                _ = self.reopen();
                Err(error)
            }
        }
    }

    /// A queue has done its work. Nobody is charged for what could not be stored.
    fn finish(&mut self) -> Result<(), StorageError> {
        if self.read_only {
            return Ok(());
        }
        let mut result = self.ready(true);
        if self.full.is_some() && !self.carry.is_empty() {
            _ = self.try_room();
        }
        result = result.and_then(|()| self.settle());
        if self.taken && self.opened.is_some() {
            result = result.and(self.make(Op::End));
            self.taken = false;
        }
        result
    }

    fn close(mut self, reply: Reply<()>) {
        let mut result = self.finish();
        if !self.read_only {
            if let Some(Opened { database, tracked, .. }) = self.opened.take() {
                result = result.and(guarded(|| Ok(database.close()?)));
                if tracked.sync_failed() {
                    self.watermark.set_doubt(true);
                }
            }
            // A store that lies closed is whole, whatever happens to the machine.
            result = result.and(self.watermark.sync().map_err(|error| failed(&error)));
        }
        let queue = self.queue.clone();
        // Who hears of it may open the store again.
        drop(self);
        queue.end(&StorageError::Closed);
        reply.send(result);
    }

    fn publish(&self) {
        self.queue.set_health(self.health());
    }

    fn health(&self) -> StorageHealth {
        match (&self.failure, &self.full) {
            (Some((error, _)), _) => StorageHealth::Failed(refusal(error)),
            (None, Some(_)) => StorageHealth::Full,
            (None, None) => StorageHealth::Working,
        }
    }
}

fn refuse(group: Vec<Changes>, why: &StorageError) {
    group.into_iter().for_each(|changes| changes.answer(Err(why.clone())));
}

/// Those who wait hear why not; the others are returned.
fn owed(group: Vec<Changes>, why: impl Fn(&Changes) -> StorageError) -> Vec<Changes> {
    let mut owed = Vec::new();
    for changes in group {
        match &changes.waiter {
            Some(_) => {
                let error = why(&changes);
                changes.answer(Err(error));
            }
            None => owed.push(changes),
        }
    }
    owed
}

/// What is said to those who come while the store has failed.
fn refusal(cause: &StorageError) -> StorageError {
    match cause {
        StorageError::Damaged { .. } | StorageError::FormatTooNew { .. } => cause.clone(),
        other => StorageError::Failed { every: RETRY_EVERY, cause: other.to_string() },
    }
}

const fn page_bytes(limit: usize) -> usize {
    if limit == usize::MAX { usize::MAX } else { PAGE_BYTES }
}
