//! What a command has of the store while it lives: the mark of its attempt, its idempotency key, its trial, and how its end is
//! stored. Most of it happens on the worker that runs the command, between its attempts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::idempotency::{Claim, Shared};
use super::letters::{StoredAs, to_stored};
use super::store::{Store, Storing};
use super::trial::{Trial, Verdict};
use crate::clock::wall_now;
use crate::error::{LaneError, Result};
use crate::executor::{discard_panic, panic_message};
use crate::id::CommandId;
use crate::queue::dead_letter::DeadLetter;
use crate::storage::{Change, Durability, StartMark, StoredResult};

pub(in crate::queue) struct Stored {
    store: Arc<Store>,
    pub(in crate::queue) created_at: DateTime<Utc>,
    /// Of a command that can be made again.
    pub(in crate::queue) payload_version: Option<u32>,
    /// The store has it. If not, only its key is known here.
    is_stored: bool,
    /// Says that it runs.
    mark: Option<StartMark>,
    claim: Option<Claim>,
    trial: Option<Trial>,
    /// What it returned, if that is to be remembered.
    value: Option<Value>,
    /// Its end, on its way to the store. The lock only makes it shareable: nobody waits for it.
    storing: Mutex<Option<Storing>>,
}

impl Stored {
    pub(super) fn new(
        store: &Arc<Store>,
        created_at: DateTime<Utc>,
        payload_version: Option<u32>,
        claim: Option<Claim>,
    ) -> Box<Self> {
        let store = Arc::clone(store);
        Box::new(Self {
            store,
            created_at,
            payload_version,
            is_stored: true,
            mark: None,
            claim,
            trial: None,
            value: None,
            storing: Mutex::default(),
        })
    }

    /// Of a command that the store does not have, with its key.
    pub(super) fn in_memory(store: &Arc<Store>, created_at: DateTime<Utc>, claim: Claim) -> Box<Self> {
        let mut stored = Self::new(store, created_at, None, Some(claim));
        stored.is_stored = false;
        stored
    }

    /// Those that have submitted it under its key, too.
    pub(in crate::queue) fn shared(&self) -> Option<Arc<Shared>> {
        self.claim.as_ref().map(Claim::shared)
    }

    /// How its dead letter is stored.
    pub(in crate::queue) fn stored_as(&self, id: CommandId) -> StoredAs {
        StoredAs::new(id.to_string(), self.payload_version, &self.store)
    }

    pub(in crate::queue) const fn is_stored(&self) -> bool {
        self.is_stored
    }

    pub(super) fn on_trial(&mut self, trial: Trial) {
        self.trial = Some(trial);
    }

    /// An attempt begins: if it kills the process, that is charged to it.
    pub(in crate::queue) fn begin(&mut self, id: CommandId) {
        if !self.is_stored {
            return;
        }
        let mark = self.store.mark(&id.to_string());
        match (&self.trial, mark) {
            (Some(trial), Some(mark)) => trial.set_mark(mark),
            (_, mark) => self.mark = mark,
        }
    }

    /// Its trial, to be ended when it waits for another command.
    pub(in crate::queue) fn verdict(&self) -> Option<Arc<Verdict>> {
        self.trial.as_ref().map(Trial::verdict)
    }

    fn end_attempt(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.store.unmark(mark);
        }
        self.trial = None;
    }

    /// An attempt has failed and another one follows.
    pub(in crate::queue) fn rest(&mut self, id: CommandId, attempts: u32) {
        self.end_attempt();
        if !self.is_stored {
            return;
        }
        self.store.later_detached(Change::Attempted { id: id.to_string(), retry_count: attempts, at: wall_now() });
    }

    /// Whether what the command returns is to be given to [`Stored::set_value`].
    pub(in crate::queue) fn wants_value(&self) -> bool {
        self.claim.is_some()
    }

    pub(in crate::queue) fn set_value(&mut self, value: Option<Value>) {
        self.value = value;
    }

    /// The command has ended: it is not to run again. With a letter, it is kept as that.
    pub(in crate::queue) fn end(
        &mut self,
        id: CommandId,
        letter: Option<&DeadLetter>,
        error: Option<&LaneError>,
        completion: Durability,
    ) {
        self.end_attempt();
        let claim = self.claim.take();
        let value = self.value.take().filter(|_| error.is_none());
        let change = match letter {
            Some(letter) => Change::GiveUp(Box::new(to_stored(letter))),
            None => {
                let result = claim.as_ref().zip(value.clone()).filter(|_| !self.store.keys.time().is_zero()).map(
                    |(claim, value)| {
                        Box::new(StoredResult::new(&*claim.key, &*claim.fingerprint, id.to_string(), value))
                    },
                );
                Change::Remove { id: id.to_string(), result }
            }
        };
        let storing = if self.is_stored { self.store.later(change, completion) } else { None };
        // After the change is on its way: who submits the key again comes behind it.
        let unwritten = LaneError::Other("the command has ended well, and its result is not data".into());
        let error = error.or_else(|| value.is_none().then_some(&unwritten));
        let ending = claim.map(|claim| claim.end(value, error));
        *self.storing() = match (storing, ending) {
            (Some(storing), Some(ending)) if completion == Durability::Synced => {
                // Who shares the result has it when the first one may.
                let store = Arc::clone(&self.store);
                Some(Box::pin(async move {
                    let stored = storing.await;
                    ending.tell(stored.as_ref().err(), store.now());
                    stored
                }))
            }
            (storing, ending) => {
                if let Some(ending) = ending {
                    ending.tell(None, self.store.now());
                }
                storing
            }
        };
    }

    /// The command does not run any more and stays stored: its queue stops.
    pub(in crate::queue) fn leave(&mut self) {
        self.end_attempt();
        self.claim = None;
    }

    /// Waits until its end is stored. In place: who gives up waiting still has to give its permit back.
    pub(in crate::queue) fn poll_storing(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let stored = match self.storing() {
            Some(storing) => ready!(storing.as_mut().poll(cx)),
            None => Ok(()),
        };
        *self.storing() = None;
        Poll::Ready(stored)
    }

    /// Nobody waits for it any more.
    pub(in crate::queue) fn let_go(&mut self) {
        *self.storing() = None;
    }

    pub(in crate::queue) fn is_storing(&mut self) -> bool {
        self.storing().is_some()
    }

    fn storing(&mut self) -> &mut Option<Storing> {
        self.storing.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.end_attempt();
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("created_at", &self.created_at).finish_non_exhaustive()
    }
}

/// What others' code gives; a panic is an error.
pub(in crate::queue) fn guarded<T>(code: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let message = panic_message(panic.as_ref()).to_owned();
        discard_panic(panic);
        Err(LaneError::Panicked(message))
    })
}
