//! Idempotency keys: which are taken, by what, and for how long. One lock, which only submissions with a key and the ends of
//! their commands take, next to a write to the store each.
//!
//! A key is taken by a submission ([`Claim`]), held by its command, and at the end either free or remembered with the result.
//! A claim that is dropped frees its key: so every way in which a command can end without a result does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use event_listener::{Event, EventListener};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::clock::Tick;
use crate::error::{LaneError, Result};
use crate::executor::Handle;
use crate::id::CommandId;
use crate::queue::ticket::Way;

/// The longest key, in bytes.
const KEY_MAX: usize = 256;

/// How long results are remembered, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Window {
    pub(in crate::queue) time: Duration,
    pub(in crate::queue) keys: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { time: Duration::from_secs(24 * 60 * 60), keys: 1_000_000 }
    }
}

/// Names type and payload of a command.
pub(super) fn fingerprint(command_type: &str, payload: Option<&Value>) -> String {
    let payload = payload.map(Value::to_string).unwrap_or_default();
    let named = format!("{}:{command_type}{payload}", command_type.len());
    format!("{:032x}", XxHash3_128::oneshot(named.as_bytes()))
}

pub(super) fn check(key: &str) -> Result<()> {
    match key.len() {
        0 => Err(LaneError::QueueError("an idempotency key is empty: leave it out, or name the work".into())),
        1..=KEY_MAX => Ok(()),
        length => {
            let hint = "use a hash of what it names";
            Err(LaneError::QueueError(format!("an idempotency key has {length} bytes, and may have {KEY_MAX}: {hint}")))
        }
    }
}

/// The keys of a queue.
pub(super) struct Keys {
    window: Window,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Arc<str>, Entry>,
    /// Those remembered, in the order in which they are forgotten.
    remembered: VecDeque<(Tick, Arc<str>)>,
}

struct Entry {
    fingerprint: String,
    id: CommandId,
    state: State,
}

enum State {
    /// Its command has not ended.
    Taken(Arc<Shared>),
    /// It has ended well.
    Remembered(Value),
}

/// What others that wait for a command hear.
#[derive(Default)]
pub(in crate::queue) struct Shared {
    accepted: AtomicBool,
    /// The command, for those that it is to go before others for.
    target: OnceLock<(Handle, Way)>,
    outcome: OnceLock<Result<Value, Failure>>,
    /// It was accepted, or has ended.
    changed: Event,
}

/// An error that many may have.
#[derive(Clone, Debug)]
enum Failure {
    Cancelled { started: bool },
    Expired { waited: Duration },
    Timeout(Duration),
    Panicked(String),
    Shed,
    Other(String),
}

/// What a submission with a key meets.
pub(super) enum Found {
    New(Claim),
    Running(CommandId, Arc<Shared>),
    Ended(CommandId, Value),
}

/// What a command meets that was stored with a key.
pub(super) enum TakenAgain {
    Taken(Claim),
    /// The same work has it, or has ended under it.
    ByTwin,
    ByOther,
}

/// A key that is taken. Dropped, it is free, and who waits for the result hears that there is none.
pub(in crate::queue) struct Claim {
    keys: Arc<Keys>,
    pub(super) key: Arc<str>,
    pub(super) fingerprint: String,
    shared: Arc<Shared>,
    /// The key is remembered.
    kept: bool,
}

impl Keys {
    pub(super) fn new(window: Window) -> Arc<Self> {
        Arc::new(Self { window, kept: Mutex::default() })
    }

    /// Takes a key for the command of this id. The keys whose time is over by `now` come back to be forgotten by the store, too.
    pub(super) fn take(
        self: &Arc<Self>,
        key: &Arc<str>,
        fingerprint: String,
        id: CommandId,
        now: Tick,
    ) -> (Result<Found>, Vec<Arc<str>>) {
        let mut kept = self.lock();
        let forgotten = kept.forget(now);
        (self.find(&mut kept, key, fingerprint, id), forgotten)
    }

    fn find(self: &Arc<Self>, kept: &mut Kept, key: &Arc<str>, fingerprint: String, id: CommandId) -> Result<Found> {
        if let Some(entry) = kept.entries.get(key) {
            if entry.fingerprint != fingerprint {
                return Err(LaneError::IdempotencyConflict { key: key.to_string(), command_id: entry.id });
            }
            return Ok(match &entry.state {
                State::Taken(shared) => Found::Running(entry.id, Arc::clone(shared)),
                State::Remembered(value) => Found::Ended(entry.id, value.clone()),
            });
        }
        if kept.entries.len() >= self.window.keys {
            let limit = self.window.keys;
            let hint = "none is forgotten before its time: raise with_idempotency_window, or submit without a key";
            return Err(LaneError::QueueError(format!("{limit} idempotency keys are remembered: {hint}")));
        }
        Ok(Found::New(self.insert(kept, key, fingerprint, id)))
    }

    /// Takes a key for a command that was stored with it; none if another one has it.
    pub(super) fn take_again(self: &Arc<Self>, key: &str, fingerprint: String, id: CommandId) -> TakenAgain {
        let mut kept = self.lock();
        match kept.entries.get(key) {
            Some(entry) if entry.fingerprint == fingerprint => TakenAgain::ByTwin,
            Some(_) => TakenAgain::ByOther,
            // It was accepted before: also beyond the number that is accepted now.
            None => {
                let claim = self.insert(&mut kept, &key.into(), fingerprint, id);
                claim.accepted();
                TakenAgain::Taken(claim)
            }
        }
    }

    fn insert(self: &Arc<Self>, kept: &mut Kept, key: &Arc<str>, fingerprint: String, id: CommandId) -> Claim {
        let shared = Arc::<Shared>::default();
        let state = State::Taken(Arc::clone(&shared));
        kept.entries.insert(Arc::clone(key), Entry { fingerprint: fingerprint.clone(), id, state });
        Claim { keys: Arc::clone(self), key: Arc::clone(key), fingerprint, shared, kept: false }
    }

    /// Remembers a result that was stored `age` ago; false if its time is over.
    pub(super) fn remember(
        &self,
        key: &str,
        fingerprint: String,
        id: CommandId,
        value: Value,
        now: Tick,
        age: Duration,
    ) -> bool {
        let Some(left) = self.window.time.checked_sub(age).filter(|left| !left.is_zero()) else { return false };
        let key: Arc<str> = key.into();
        let mut kept = self.lock();
        kept.entries.insert(Arc::clone(&key), Entry { fingerprint, id, state: State::Remembered(value) });
        let due = now.plus(left);
        let at = kept.remembered.partition_point(|(other, _)| *other <= due);
        kept.remembered.insert(at, (due, key));
        true
    }

    /// How long a result is remembered.
    pub(super) fn time(&self) -> Duration {
        self.window.time
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing under this lock can panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn forget(&mut self, now: Tick) -> Vec<Arc<str>> {
        let over = self.remembered.partition_point(|(due, _)| *due <= now);
        let forgotten: Vec<_> = self.remembered.drain(..over).map(|(_, key)| key).collect();
        for key in &forgotten {
            self.entries.remove(key);
        }
        forgotten
    }
}

impl Claim {
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The command was accepted: others that submit it are, too.
    pub(super) fn accepted(&self) {
        // ORDERING: with `is_accepted`: who sees it sees what the store was told before.
        self.shared.accepted.store(true, Ordering::Release);
        self.shared.changed.notify(usize::MAX);
    }

    /// The command has ended: with a value, or with an error. What others are to hear of it, once they may.
    pub(super) fn end(self, value: Option<Value>, error: Option<&LaneError>) -> Ending {
        let outcome = value.map(Ok).or_else(|| error.map(|error| Err(Failure::of(error))));
        Ending { claim: self, outcome }
    }

    fn remember(mut self, value: Value, now: Tick) {
        self.kept = true;
        let due = now.plus(self.keys.window.time);
        let mut kept = self.keys.lock();
        if due > now
            && let Some(entry) = kept.entries.get_mut(&self.key)
        {
            entry.state = State::Remembered(value.clone());
            // Ends come in the order of time, but for a clock that is read by several threads at once.
            let at = kept.remembered.partition_point(|(other, _)| *other <= due);
            kept.remembered.insert(at, (due, Arc::clone(&self.key)));
        } else {
            kept.entries.remove(&self.key);
        }
        drop(kept);
        self.tell(Ok(value));
    }

    fn tell(&self, outcome: Result<Value, Failure>) {
        // The first says how it ended.
        let _ = self.shared.outcome.set(outcome);
        self.shared.changed.notify(usize::MAX);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let freed = self.keys.lock().entries.remove(&self.key);
            drop(freed);
            self.tell(Err(Failure::Cancelled { started: false }));
        }
    }
}

/// How a command with a key has ended, for those who share it. Dropped, the key is free.
pub(super) struct Ending {
    claim: Claim,
    outcome: Option<Result<Value, Failure>>,
}

impl Ending {
    /// They hear of it. If it could not be stored and they were to wait for that, they hear that; a value is remembered all the
    /// same, as the end is made up for.
    pub(super) fn tell(self, unstored: Option<&LaneError>, now: Tick) {
        let Self { claim, outcome } = self;
        if let Some(error) = unstored {
            claim.tell(Err(Failure::of(error)));
        }
        match outcome {
            Some(Ok(value)) => claim.remember(value, now),
            Some(Err(failure)) => claim.tell(Err(failure)),
            None => {}
        }
    }
}

impl Shared {
    /// Waits until it is known whether the first submission was accepted; false if it was not.
    pub(super) async fn was_accepted(&self) -> bool {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.changed.listen();
            if self.accepted.load(Ordering::Acquire) {
                return true;
            }
            if self.outcome.get().is_some() {
                return false;
            }
            listener.await;
        }
    }

    /// Says which command it is.
    pub(in crate::queue) fn set_target(&self, handle: Handle, way: Way) {
        // Set once, when it is put into its lane.
        let _ = self.target.set((handle, way));
    }

    pub(in crate::queue) fn target(&self) -> Option<(Handle, Way)> {
        self.target.get().cloned()
    }

    /// What became of the command, once that is known.
    pub(in crate::queue) fn outcome(&self) -> Option<Result<Value>> {
        self.outcome.get().map(|outcome| outcome.clone().map_err(Failure::into_error))
    }

    pub(in crate::queue) fn listen(&self) -> EventListener {
        self.changed.listen()
    }
}

impl Failure {
    fn of(error: &LaneError) -> Self {
        match error {
            LaneError::Cancelled { started } => Self::Cancelled { started: *started },
            LaneError::Expired { waited } => Self::Expired { waited: *waited },
            LaneError::Timeout(after) => Self::Timeout(*after),
            LaneError::Panicked(message) => Self::Panicked(message.clone()),
            LaneError::Shed => Self::Shed,
            error => Self::Other(error.to_string()),
        }
    }

    fn into_error(self) -> LaneError {
        match self {
            Self::Cancelled { started } => LaneError::Cancelled { started },
            Self::Expired { waited } => LaneError::Expired { waited },
            Self::Timeout(after) => LaneError::Timeout(after),
            Self::Panicked(message) => LaneError::Panicked(message),
            Self::Shed => LaneError::Shed,
            Self::Other(message) => LaneError::Other(message),
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key itself may say what nobody is to read.
        f.debug_struct("Claim").finish_non_exhaustive()
    }
}
