//! The child of the kill cycles: takes over what the one before has left, and submits until it is killed or asked to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corelane::{
    DeadLetterReason, Durability, EventEmitter, Executor, LaneConfig, LaneError, LocalStorage, QueueManager,
    QueueManagerBuilder, RetryPolicy, Stop, SubmitOptions, Ticket, sleep,
};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};

use crate::command::{Act, Job, PROCESS};
use crate::random::Random;
use crate::report::{Event, report};
use crate::store::{Lie, Watched};

/// One lane for each kind of promise. At most one at a time, without retries: in the order of acceptance.
pub(crate) const FIFO: &str = "fifo";
/// Retries, priorities, delays, cancels, dead letters.
pub(crate) const MIXED: &str = "mixed";
/// Results are handed out once the end is stored; idempotency keys.
pub(crate) const SURE: &str = "sure";
/// Acknowledged before it is stored.
pub(crate) const LOOSE: &str = "loose";

/// Attempts of a command, in the lanes that retry.
pub(crate) const ATTEMPTS: u32 = 3;

/// Unclean ends at which a command is given up.
pub(crate) const CRASH_LIMIT: u32 = 4;

/// Commands that wait at most, about: so that they end when no more come.
const BACKLOG: usize = 200;
const SUBMITTERS: u64 = 4;
/// Submissions of one submitter.
const SUBMISSIONS: u64 = 60;

#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) store: PathBuf,
    /// Which process of this store it is, from 1.
    pub(crate) process: u64,
    pub(crate) seed: u64,
    pub(crate) lie: Lie,
    /// Submits nothing, and ends when everything has.
    pub(crate) settles: bool,
}

/// Opens the store and builds the queue, as every child does.
pub(crate) async fn build(
    store: &PathBuf,
    lie: Lie,
    configure: impl FnOnce(QueueManagerBuilder) -> QueueManagerBuilder,
) -> corelane::Result<QueueManager> {
    let storage = Watched::new(LocalStorage::new(store).await?, lie);
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_storage(Arc::new(storage));
    let manager = configure(builder.with_dlq(1_000_000)).build().await?;
    let recovery = manager.recovery().expect("there is a store").clone();
    report(&Event::Built {
        unclean: recovery.unclean,
        paused: recovery.paused,
        suspects: recovery.suspects,
        parked: recovery.parked_count,
        dead_lettered: recovery.dead_lettered,
    });
    Ok(manager)
}

pub(crate) fn run(task: &str) {
    let task: Task = serde_json::from_str(task).expect("a task is data");
    PROCESS.store(task.process, Ordering::Relaxed);
    // Commands that panic do so on purpose.
    std::panic::set_hook(Box::new(|panic| {
        if !panic.to_string().contains("wanted") {
            report(&Event::Note { text: panic.to_string() });
        }
    }));
    let executor = Executor::builder().workers(3).pin(false).build().expect("an executor of three workers");
    let manager = block_on(build(&task.store, task.lie, |builder| {
        let retries = RetryPolicy::fixed(ATTEMPTS - 1, Duration::from_millis(4));
        builder
            .with_executor(executor.clone())
            .with_durable::<Job>()
            .with_crash_limit(CRASH_LIMIT, Duration::from_secs(72 * 3600))
            .with_lane(FIFO, LaneConfig::new(1, 1), 1)
            .with_lane(MIXED, LaneConfig::new(1, 4).with_retry_policy(retries).with_priority_bounds(0, 9), 2)
            .with_lane(SURE, LaneConfig::new(1, 3).with_completion(Durability::Synced), 2)
            .with_lane(LOOSE, LaneConfig::new(1, 2).with_durability(Durability::Relaxed), 3)
    }));
    let manager = Arc::new(manager.expect("the store can be opened and taken over"));
    // So many unclean ends are a restart storm.
    for lane in [FIFO, MIXED, SURE, LOOSE] {
        manager.resume(lane).expect("the lane is there");
    }
    block_on(manager.start()).expect("it can be started");
    report(&Event::Ready);
    if task.settles {
        return settle(&manager);
    }
    let mut random = Random::new(task.seed ^ task.process);
    if random.percent(30) {
        replay(&manager);
    }
    for submitter in 0..SUBMITTERS {
        let (manager, executor) = (Arc::clone(&manager), executor.clone());
        let random = Random::new(random.next());
        let submitter = Submitter { manager, executor, random, process: task.process, number: submitter };
        std::thread::spawn(move || block_on(submitter.submit()));
    }
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    if !read.is_ok_and(|read| read > 0) {
        // Nobody is there any more.
        std::process::exit(3);
    }
    let stop = Stop::drain(Duration::from_millis(20)).then_cancel(Duration::from_secs(60));
    let report_of = block_on(manager.stop(stop));
    if report_of.is_complete() && report_of.storage.is_none() {
        report(&Event::Stopped);
        // What would begin now would be seen.
        std::thread::sleep(Duration::from_millis(30));
    } else {
        report(&Event::Note { text: format!("{report_of:?}") });
    }
    std::process::exit(0);
}

/// Waits until everything has ended, and ends the queue.
fn settle(manager: &QueueManager) {
    let limit = Duration::from_secs(100);
    block_on(manager.drain(limit)).expect("what was accepted ends");
    replay(manager);
    block_on(async {
        manager.shutdown().await;
        manager.drain(limit).await
    })
    .expect("what was replayed ends, and the store is closed");
    report(&Event::Stopped);
}

/// Submits again what has failed and would not fail now.
fn replay(manager: &QueueManager) {
    let wanted = |letter: &corelane::DeadLetter| {
        let job = letter.payload.clone().and_then(|payload| serde_json::from_value::<Job>(payload).ok());
        letter.reason == DeadLetterReason::Failed && job.is_some_and(|job| matches!(job.act, Act::FailBefore(_)))
    };
    for letter in manager.dlq().expect("it was built with one").filter(wanted) {
        report(&Event::Replaying { id: letter.command_id.to_string() });
        let outcome = manager.requeue_dead_letters(|other| other.command_id == letter.command_id);
        if let [(id, error)] = outcome.refused.as_slice() {
            report(&Event::Note { text: format!("{id} was not replayed: {error}") });
        }
    }
}

struct Submitter {
    manager: Arc<QueueManager>,
    executor: Executor,
    random: Random,
    process: u64,
    number: u64,
}

impl Submitter {
    async fn submit(mut self) {
        for _ in 0..SUBMISSIONS {
            let pause = self.random.micros(0..4000);
            std::thread::sleep(pause);
            while self.manager.stats().await.is_ok_and(|stats| stats.total_pending > BACKLOG) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !self.submit_one().await {
                return;
            }
        }
    }

    /// One more submission; false if the queue takes no more.
    async fn submit_one(&mut self) -> bool {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = self.process * 1_000_000 + NUMBER.fetch_add(1, Ordering::Relaxed);
        // The first one alone submits to this lane: one after the other.
        let lane = match self.random.below(10) {
            0..=3 if self.number == 0 => FIFO,
            0..=5 => MIXED,
            6..=8 => SURE,
            _ => LOOSE,
        };
        let random = &mut self.random;
        let mut options = SubmitOptions::new();
        let mut name = format!("job-{number}");
        let mut act = Act::Succeed;
        let mut micros = random.below(1500);
        match lane {
            SURE if random.percent(50) => {
                // Others submit it, too, in this process and in the next ones.
                let key = self.process / 4 * 4 + random.below(24);
                name = format!("key-{key}");
                (act, micros) = (Act::FailSometimes, 700);
                options = options.idempotency_key(name.as_str());
            }
            MIXED => {
                act = match random.below(20) {
                    0..=3 => Act::FailFirst(1),
                    4 => Act::FailFirst(2),
                    5 => Act::Fail,
                    6 => Act::Panic,
                    7 => Act::FailBefore(self.process + 1 + random.below(3)),
                    _ => Act::Succeed,
                };
                if random.percent(30) {
                    options = options.priority(u8::try_from(random.below(10)).expect("a digit"));
                }
                if random.percent(20) {
                    options = options.delay(random.micros(0..100_000));
                }
                if random.percent(4) {
                    micros = 40_000 + random.below(40_000);
                }
            }
            _ => {}
        }
        let cancel_after = (lane == MIXED && random.percent(15)).then(|| random.micros(0..20_000));
        let fails = matches!(act, Act::Fail | Act::Panic);
        report(&Event::Submitting { number, name: name.clone(), lane: lane.to_owned(), fails });
        let submitted = self.manager.submit_durable_with(lane, Job { name, act, micros }, options).await;
        match submitted {
            Ok(ticket) => {
                report(&Event::Accepted { number, id: ticket.id().to_string() });
                self.executor.spawn(0, watch(number, ticket, cancel_after)).detach();
                true
            }
            Err(refused) => {
                let certain = !matches!(&refused.error, LaneError::Storage(error) if !error.is_certain());
                report(&Event::Refused { number, certain });
                let stops = matches!(refused.error, LaneError::ShutdownInProgress | LaneError::Storage(_));
                if !stops {
                    report(&Event::Note { text: format!("{number} was refused: {}", refused.error) });
                }
                !stops
            }
        }
    }
}

/// Says what becomes of a submission, if that is to be known.
async fn watch(number: u64, mut ticket: Ticket<String>, cancel_after: Option<Duration>) {
    if let Some(after) = cancel_after {
        sleep(after).await;
        report(&Event::Cancelling { number });
        if ticket.cancel() {
            let Ok(Err(LaneError::Cancelled { started })) = ticket.await else {
                return report(&Event::Note { text: format!("{number} was cancelled, and its ticket says otherwise") });
            };
            return report(&Event::Cancelled { number, started });
        }
    }
    match ticket.await {
        Ok(Ok(token)) => report(&Event::HandedOut { number, token: Some(token) }),
        Ok(Err(LaneError::CommandError(_) | LaneError::Panicked(_) | LaneError::Other(_))) => {
            report(&Event::HandedOut { number, token: None });
        }
        // The queue stops: it stays stored.
        Ok(Err(LaneError::Cancelled { .. })) | Err(_) => {}
        Ok(Err(error)) => report(&Event::Note { text: format!("{number} has failed: {error}") }),
    }
}
