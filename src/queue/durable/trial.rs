//! Commands that may kill the process run alone, so that it shows whether they do and nobody else is blamed.
//!
//! While a trial lasts, the queue's lanes are held. A command on trial takes a permit all the same, once its lane is not paused.
//! Its trial ends when its attempt does, or when it waits for another command, which is held back. It also ends after a long
//! while: then, and while it waits for others, the command is not marked any more. So a command is only ever given up for an
//! end of the process at which it ran alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_listener::Event;

use super::recover::Suspect;
use super::store::Store;
use crate::executor::{Executor, LOWEST_PRIORITY, timeout};
use crate::storage::StartMark;

/// How long others wait for one command on trial.
const TRIAL_MAX: Duration = Duration::from_secs(600);

/// One command's trial: over when this is dropped.
pub(super) struct Trial(Arc<Verdict>);

pub(in crate::queue) struct Verdict {
    store: Arc<Store>,
    /// Says that it runs, for as long as it runs alone.
    mark: Mutex<Option<StartMark>>,
    over: AtomicBool,
    told: Event,
}

impl Trial {
    fn begin(store: &Arc<Store>) -> (Self, Arc<Verdict>) {
        let (store, mark) = (Arc::clone(store), Mutex::default());
        let verdict = Arc::new(Verdict { store, mark, over: AtomicBool::new(false), told: Event::new() });
        (Self(Arc::clone(&verdict)), verdict)
    }

    pub(super) fn verdict(&self) -> Arc<Verdict> {
        Arc::clone(&self.0)
    }

    pub(super) fn set_mark(&self, mark: StartMark) {
        *self.0.mark.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl std::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verdict").field("over", &self.over).finish_non_exhaustive()
    }
}

impl Verdict {
    /// The command has not killed the process by itself, as far as anybody waits for that.
    pub(in crate::queue) fn end(&self) {
        let mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mark) = mark {
            self.store.unmark(mark);
        }
        // ORDERING: Release and Acquire: who sees that it is over sees what the command did.
        self.over.store(true, Ordering::Release);
        self.told.notify(usize::MAX);
    }

    async fn wait(&self) {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.told.listen();
            if self.over.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }
}

/// Runs suspects one by one; then lets the lanes go on. They are held from before this returns.
pub(super) fn begin(store: &Arc<Store>, executor: &Executor, mut suspects: VecDeque<Suspect>) {
    if suspects.is_empty() {
        return;
    }
    store.set_trial(true);
    // Ends with the queue, and with the executor: both then have nothing left to hold.
    let trials = Trials(Arc::clone(store));
    let task = async move {
        while let Some(suspect) = suspects.pop_front() {
            suspect.may_run(&trials.0).await;
            let (trial, verdict) = Trial::begin(&trials.0);
            suspect.run_alone(trial);
            if timeout(TRIAL_MAX, verdict.wait()).await.is_err() {
                verdict.end();
            }
        }
        drop(trials);
    };
    executor.spawn(LOWEST_PRIORITY, task).detach();
}

struct Trials(Arc<Store>);

impl Drop for Trials {
    fn drop(&mut self) {
        self.0.set_trial(false);
    }
}
