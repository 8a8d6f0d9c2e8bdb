//! What every [`DistributedQueue`] must do: one suite, for the queues of this crate and for yours.
//!
//! ```no_run
//! use std::sync::Arc;
//! use corelane::testing::distributed::{Opening, conformance};
//! use corelane::{DistributedQueue, LocalDistributedQueue};
//!
//! # use std::collections::HashMap;
//! # use std::sync::Mutex;
//! // A queue in memory is found again by its name; one with a server, by what that has.
//! let queues: Mutex<HashMap<String, LocalDistributedQueue>> = Mutex::default();
//! let open = move |opening: Opening| {
//!     let mut queues = queues.lock().unwrap();
//!     let queue = queues.entry(opening.namespace).or_insert_with(|| LocalDistributedQueue::new(opening.partitions));
//!     let worker: Arc<dyn DistributedQueue> = Arc::new(queue.worker());
//!     async { Ok(worker) }
//! };
//! # futures::executor::block_on(async {
//! let report = conformance(open).await;
//! println!("{} checks; left out: {:?}", report.run, report.left_out);
//! # });
//! ```
//!
//! The checks are grouped by what they are about:
//!
//! | group | promise |
//! |---|---|
//! | `seed` | the seed's five methods do what they did |
//! | `enqueue` | what is accepted is there, once; what is not, is refused with a word; partitions are kept apart |
//! | `order` | priorities, first in first out, delays, lanes |
//! | `lease` | one valid token at a time; what has none changes nothing; what is left comes back; deliveries are counted |
//! | `dead` | what is given up is kept, found, replayed |
//! | `outcome` | results, limits to all workers together, depth, closing |
//! | `together` | all of it with many workers at once |
//!
//! What the [`capabilities`](DistributedQueue::capabilities) do not claim is not asked for, and [named](Report::left_out).

#![allow(clippy::unwrap_used, reason = "checks fail by a panic that says what was found")]

mod dead;
mod enqueue;
mod lease;
mod order;
mod outcome;
mod seed;
mod together;

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt as _;
use serde_json::json;

use crate::distributed::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DistributedQueue, EnqueueOptions, LeaseToken,
    Leased, Nack, Support,
};
use crate::error::{DistributedError, LaneError, Result};
use crate::executor::{discard_panic, now, panic_message, sleep, timeout};
use crate::queue::PartitionConfig;

/// A handle of a queue.
pub type Queue = Arc<dyn DistributedQueue>;

/// A lease that does not end while a check runs.
const LONG: Duration = Duration::from_secs(60);
/// A lease that ends while a check waits for it.
const SHORT: Duration = Duration::from_millis(500);
/// Longer than anything takes that is to happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a whole check takes.
const HANG: Duration = Duration::from_secs(120);

/// Which queue is to be opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opening {
    /// Names the queue: the same name gives a further handle of the same queue, another name one that is empty. Letters, digits
    /// and `-`.
    pub namespace: String,
    /// As the queue is to be made.
    pub partitions: PartitionConfig,
    /// What leases will be asked for, for servers that have one length for all.
    pub lease: Duration,
}

/// What was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Checks that were run.
    pub run: usize,
    /// Checks of what the queue does not claim.
    pub left_out: Vec<&'static str>,
}

type Check = fn(World) -> Pin<Box<dyn Future<Output = ()> + Send>>;
type Needs = fn(&Capabilities) -> bool;

/// Runs every check, each on a queue of its own.
///
/// # Panics
///
/// If the queue breaks a promise: with the names of all checks that have failed, and what each has found.
pub async fn conformance<Open, Opened>(open: Open) -> Report
where
    Open: Fn(Opening) -> Opened + Send + Sync + 'static,
    Opened: Future<Output = Result<Queue>> + Send + 'static,
{
    conformance_of(open, "").await
}

/// As [`conformance`], of the checks with `part` in their names only.
///
/// # Panics
///
/// As [`conformance`].
pub async fn conformance_of<Open, Opened>(open: Open, part: &str) -> Report
where
    Open: Fn(Opening) -> Opened + Send + Sync + 'static,
    Opened: Future<Output = Result<Queue>> + Send + 'static,
{
    let open: Arc<Open> = Arc::new(open);
    let opener: Opener = Arc::new(move |opening| {
        let open = Arc::clone(&open);
        Box::pin(async move { open(opening).await })
    });
    let probe = World::new(Arc::clone(&opener), "probe");
    let can = probe.open().await.capabilities();
    let mut report = Report::default();
    let mut failures = Vec::new();
    let groups =
        [seed::CHECKS, enqueue::CHECKS, order::CHECKS, lease::CHECKS, dead::CHECKS, outcome::CHECKS, together::CHECKS];
    for (name, needs, check) in groups.concat() {
        if !name.contains(part) {
            continue;
        }
        if !needs(&can) {
            report.left_out.push(name);
            continue;
        }
        report.run += 1;
        let world = World::new(Arc::clone(&opener), name);
        match AssertUnwindSafe(timeout(HANG, check(world))).catch_unwind().await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => failures.push(format!("{name}: has not returned after {HANG:?}")),
            Err(panic) => {
                failures.push(format!("{name}: {}", panic_message(panic.as_ref())));
                discard_panic(panic);
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} checks have failed:\n{}", failures.len(), report.run, failures.join("\n"));
    report
}

type Opener = Arc<dyn Fn(Opening) -> Pin<Box<dyn Future<Output = Result<Queue>> + Send>> + Send + Sync>;

/// A check's own queue, and what checks do with it.
#[derive(Clone)]
struct World {
    open: Opener,
    namespace: String,
    partitions: PartitionConfig,
    lease: Duration,
}

impl World {
    fn new(open: Opener, name: &str) -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let name: String = name.rsplit("::").next().unwrap_or_default().replace('_', "-").chars().take(20).collect();
        let namespace = format!("{}-{}", name.trim_end_matches('-'), &id[16..]);
        Self { open, namespace, partitions: PartitionConfig::none(), lease: LONG }
    }

    /// The queue is to have these.
    fn partitions(mut self, partitions: PartitionConfig) -> Self {
        self.partitions = partitions;
        self
    }

    /// Leases are to end.
    fn short(mut self) -> Self {
        self.lease = SHORT;
        self
    }

    /// A further handle of the queue.
    async fn open(&self) -> Queue {
        self.try_open().await.unwrap_or_else(|error| panic!("it can not be opened: {error}"))
    }

    async fn try_open(&self) -> Result<Queue> {
        let Self { namespace, partitions, lease, .. } = self.clone();
        (self.open)(Opening { namespace, partitions, lease }).await
    }

    /// A claim of this check's leases.
    fn claim(&self, max: usize) -> Claim {
        Claim::new(max).lease(self.lease)
    }

    /// Takes up to so many commands of partition 0 that are there now.
    async fn take(&self, queue: &Queue, max: usize) -> Vec<Leased> {
        queue.dequeue_leased(0, self.claim(max)).await.expect("commands can be taken")
    }

    /// Takes one command of partition 0, when it comes.
    async fn take_one(&self, queue: &Queue) -> Leased {
        let give_up = now().plus(PATIENCE);
        loop {
            let claim = self.claim(1).wait(Duration::from_secs(1));
            let taken = queue.dequeue_leased(0, claim).await.expect("commands can be taken");
            if let Some(one) = taken.into_iter().next() {
                return one;
            }
            assert!(now() < give_up, "no command came within {PATIENCE:?}");
        }
    }

    /// Nothing is there to be taken.
    async fn nothing(&self, queue: &Queue, why: &str) {
        let taken = self.take(queue, 10).await;
        assert!(taken.is_empty(), "{why}: {} was there", numbers(&taken).join(", "));
    }
}

/// Waits until it is so.
async fn eventually<Asked: Future<Output = bool>>(what: &str, mut asked: impl FnMut() -> Asked) {
    let give_up = now().plus(PATIENCE);
    while !asked().await {
        assert!(now() < give_up, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A command that is known by its number.
fn envelope(number: impl fmt::Display) -> CommandEnvelope {
    envelope_in("query", number)
}

fn envelope_in(lane: &str, number: impl fmt::Display) -> CommandEnvelope {
    CommandEnvelope::new("sample", lane, json!({ "number": number.to_string() }))
}

/// Its number.
fn number(leased: &Leased) -> String {
    leased.envelope.payload["number"].as_str().unwrap_or("?").to_owned()
}

fn numbers(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(number).collect()
}

async fn put(queue: &Queue, number: impl fmt::Display) -> String {
    put_with(queue, number, EnqueueOptions::new()).await
}

async fn put_with(queue: &Queue, number: impl fmt::Display, options: EnqueueOptions) -> String {
    let receipt = queue.enqueue_with(envelope(number), options).await.expect("it is accepted");
    receipt.command_id
}

async fn put_many(queue: &Queue, many: usize) {
    let commands = (0..many).map(|number| (envelope(number), EnqueueOptions::new())).collect();
    for receipt in queue.enqueue_batch(commands).await {
        receipt.expect("it is accepted");
    }
}

fn done(token: &LeaseToken) -> CommandResult {
    result_of(token, Ok(json!("done")))
}

fn failed(token: &LeaseToken, error: &str) -> CommandResult {
    result_of(token, Err(error.to_owned()))
}

fn result_of(token: &LeaseToken, result: std::result::Result<serde_json::Value, String>) -> CommandResult {
    CommandResult {
        command_id: token.command_id().to_owned(),
        result,
        worker_id: "a worker".to_owned(),
        duration_ms: 7,
    }
}

async fn ack(queue: &Queue, token: &LeaseToken) -> AckOutcome {
    queue.ack(token, done(token)).await.expect("it can be acknowledged")
}

async fn release(queue: &Queue, token: &LeaseToken) {
    let outcome = queue.nack(token, Nack::Release).await.expect("it can be released");
    assert_eq!(outcome, AckOutcome::Applied, "releasing");
}

async fn retry_after(queue: &Queue, token: &LeaseToken, delay: Duration) {
    let nack = Nack::RetryAfter { delay, error: "try again".to_owned() };
    let outcome = queue.nack(token, nack).await.expect("it can be given back");
    assert_eq!(outcome, AckOutcome::Applied, "giving back");
}

/// What a distributed queue says that refuses.
#[track_caller]
fn refusal<T: fmt::Debug>(result: Result<T>) -> DistributedError {
    match result {
        Err(LaneError::Distributed(error)) => error,
        other => panic!("it was to be refused by the queue, and is {other:?}"),
    }
}

fn always(_: &Capabilities) -> bool {
    true
}

fn leases(can: &Capabilities) -> bool {
    can.leases
}

fn fences(can: &Capabilities) -> bool {
    can.leases && can.fencing == Support::Exact
}

/// The checks of a file, and what they need.
macro_rules! checks {
    ($($name:ident if $needs:expr),* $(,)?) => {
        pub(super) const CHECKS: &[(&str, super::Needs, super::Check)] = &[
            $((concat!(module_path!(), "::", stringify!($name)), $needs, |world| Box::pin($name(world)))),*
        ];
    };
}
use checks;
