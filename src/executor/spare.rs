//! Spares: threads that run what waits while every worker is stuck in a poll.
//!
//! A spare is a worker with a number after the others': it has queues of its own, takes tasks from others by priority, and
//! sleeps by the same protocol, as long as it is on duty. The watch calls it and relieves it; it is started when first
//! called. Off duty it searches for nothing, does not count as a sleeper, and leaves nothing behind: what is queued with it
//! goes to the workers' inboxes. Only the watch puts tasks into its inbox, before it relieves it. Timers that its tasks set are
//! set from outside. The waiting tasks that it knows of stay known (`waiting`), since those who wake them ask all workers.
//!
//! Never: a spare takes tasks that a worker is free to take, for longer than its poll and a look of the watch.

use std::sync::atomic::{AtomicBool, Ordering};

use super::shared::{Phase, Shared};
use super::stats::{Counter, SpareStats, WorkerStats};
use super::worker::Local;

#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// Written by the watch.
    wanted: AtomicBool,
    /// Written by the spare.
    at_work: AtomicBool,
    /// Started by the watch.
    started: AtomicBool,
    /// Written by the watch.
    duties: Counter,
}

impl Spare {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// On duty, or has not left yet.
    fn is_at_work(&self) -> bool {
        self.is_wanted() || self.at_work.load(Ordering::Acquire)
    }

    pub(super) fn stats(&self, worker: WorkerStats) -> SpareStats {
        SpareStats { on_duty: self.is_at_work(), duties: self.duties.get(), worker }
    }
}

/// Called by the watch only.
impl Shared {
    /// The numbers of the spares on duty, counted from 0.
    pub(super) fn spares_on_duty(&self) -> impl Iterator<Item = usize> {
        (0..).zip(&self.spares).filter(|(_, spare)| spare.is_wanted()).map(|(number, _)| number)
    }

    pub(super) fn has_spare_at_work(&self) -> bool {
        self.spares.iter().any(Spare::is_at_work)
    }

    /// Puts one more spare on duty, if there is one.
    pub(super) fn call_spare(&'static self) {
        let Some((number, spare)) = (0..).zip(&self.spares).find(|(_, spare)| !spare.is_wanted()) else { return };
        // A lone worker shows its work again before the spare looks.
        self.alone.store(false, Ordering::Relaxed);
        spare.wanted.store(true, Ordering::Release);
        spare.duties.add(1);
        let index = self.regular + number;
        if spare.started.swap(true, Ordering::Relaxed) {
            self.unpark(index);
        } else if let Err(error) =
            super::start_thread(self, index, format!("corelane-spare-{number}"), |local| local.stand_by(spare))
        {
            spare.wanted.store(false, Ordering::Release);
            spare.started.store(false, Ordering::Relaxed);
            tracing::error!(%error, "no spare thread: what waits behind stuck polls waits for their end");
        }
    }

    /// Has all spares leave after their present polls.
    pub(super) fn relieve_spares(&self) {
        for (number, spare) in (0..).zip(&self.spares).filter(|(_, spare)| spare.is_wanted()) {
            spare.wanted.store(false, Ordering::Release);
            self.unpark(self.regular + number);
        }
    }

    /// Whether a lone worker has company, as of now. A spare that comes just when it is relieved may find none for a look: it runs
    /// nothing then.
    pub(super) fn note_spares(&self) {
        self.alone.store(self.regular == 1 && !self.has_spare_at_work(), Ordering::Relaxed);
    }
}

impl Local {
    /// The loop of a spare's thread: until the executor is closed.
    fn stand_by(&self, spare: &Spare) {
        let entered = self.enter();
        let open = || self.shared().phase() != Phase::Closed;
        while open() {
            if !spare.is_wanted() {
                // Called, given tasks, and relieved before it came: a lone worker does not look here.
                self.hand_over();
                std::thread::park();
                continue;
            }
            spare.at_work.store(true, Ordering::Release);
            self.work(|| spare.is_wanted() && open());
            if open() {
                self.hand_over();
            }
            spare.at_work.store(false, Ordering::Release);
        }
        self.drop_queued();
        drop(entered);
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::super::task::{self, Making};
    use crate::executor::Executor;

    #[test]
    fn what_was_put_with_a_spare_that_was_relieved_before_it_came_is_run() {
        // Without stuck polls to look for, the watch itself calls and relieves nobody meanwhile.
        let executor = Executor::builder().workers(1).pin(false).stuck_after(None).spare_threads(1);
        let executor = executor.build().expect("a valid configuration");
        let shared = executor.shared();
        for _ in 0..200 {
            // As the watch does, faster than a thread starts or wakes.
            shared.call_spare();
            let (runnable, task) = task::new(shared, Making::plain(3), |_| async {});
            shared.push_to(shared.regular, 3, runnable);
            shared.relieve_spares();
            shared.note_spares();
            executor.block_on(task).expect("it runs");
        }
    }
}
