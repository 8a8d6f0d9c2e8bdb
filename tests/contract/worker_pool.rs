//! Workers of a distributed queue: what is claimed runs in lanes, is reported once, and comes back if it is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corelane::{
    AckOutcome, Capabilities, Claim, Command, CommandEnvelope, CommandResult, DeadPage, DeadReason, Delivery,
    DistributedError, DistributedQueue, DurableCommand, EnqueueOptions, EventEmitter, Executor, LaneConfig, LaneError,
    LeaseToken, Leased, LocalDistributedQueue, LocalMetrics, MemoryStorage, Nack, PartitionConfig, PartitionId,
    QueueManager, QueueManagerBuilder, QueueMetrics, RemoteCommands, Result, RetryPolicy, WorkerId, WorkerPool, sleep,
};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Longer than anything takes that is to happen.
const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn executor(workers: usize) -> Executor {
    Executor::builder().workers(workers).pin(false).build().unwrap()
}

fn local() -> Arc<LocalDistributedQueue> {
    Arc::new(LocalDistributedQueue::new(PartitionConfig::none()))
}

fn put(queue: &dyn DistributedQueue, lane: &str, what: Work) -> String {
    block_on(put_async(queue, lane, what))
}

async fn put_async(queue: &dyn DistributedQueue, lane: &str, what: Work) -> String {
    let envelope = CommandEnvelope::of(lane, &what).unwrap();
    let id = envelope.id.clone();
    queue.enqueue(envelope).await.unwrap();
    id
}

/// What a command of these tests does.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Work {
    Return(u64),
    /// Fails until its process has seen so many attempts.
    FailFirst(u32),
    Fail,
    /// Says what a command that is cancelled results in, of itself.
    SayCancelled,
    Panic,
    Sleep(Duration),
    /// Keeps its worker from everything else.
    Block(Duration),
}

static ATTEMPTS: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
static STARTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static ENDED_BLOCKS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static DROPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct NotesDrop(String);

impl Drop for NotesDrop {
    fn drop(&mut self) {
        DROPPED.lock().unwrap().push(self.0.clone());
    }
}

impl DurableCommand for Work {
    const TYPE: &'static str = "work";
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        let id = Delivery::current().expect("it was delivered").command_id.clone();
        STARTED.lock().unwrap().push(id.clone());
        let attempt = {
            let mut attempts = ATTEMPTS.lock().unwrap();
            let attempt = attempts.entry(id.clone()).or_default();
            *attempt += 1;
            *attempt
        };
        match self {
            Self::Return(value) => Ok(*value),
            Self::FailFirst(attempts) if attempt > *attempts => Ok(u64::from(attempt)),
            Self::FailFirst(_) | Self::Fail => Err(LaneError::CommandError("not now".into())),
            Self::SayCancelled => Err(LaneError::Cancelled { started: true }),
            Self::Panic => panic!("wanted"),
            Self::Sleep(time) => {
                let unless_done = NotesDrop(id);
                sleep(*time).await;
                std::mem::forget(unless_done);
                Ok(0)
            }
            Self::Block(time) => {
                thread::sleep(*time);
                ENDED_BLOCKS.lock().unwrap().push(id);
                Ok(0)
            }
        }
    }
}

fn attempts(id: &str) -> u32 {
    ATTEMPTS.lock().unwrap().get(id).copied().unwrap_or_default()
}

fn was_dropped(id: &str) -> bool {
    DROPPED.lock().unwrap().iter().any(|dropped| dropped == id)
}

fn manager_of(executor: &Executor, lanes: &[(&str, LaneConfig, u8)]) -> QueueManager {
    let mut builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone()).with_dlq(100);
    for (id, config, priority) in lanes {
        builder = builder.with_lane(*id, config.clone(), *priority);
    }
    block_on(async {
        let manager = builder.build().await.unwrap();
        manager.start().await.unwrap();
        manager
    })
}

fn commands() -> RemoteCommands {
    RemoteCommands::new().with_durable::<Work>()
}

/// One lane of so many permits, and a pool on it.
fn pool_on(queue: Arc<dyn DistributedQueue>, workers: usize, config: LaneConfig) -> (QueueManager, WorkerPool) {
    let manager = manager_of(&executor(workers), &[("query", config, 2)]);
    let mut pool = WorkerPool::new(queue);
    pool.start_in_lanes(&manager, commands()).unwrap();
    (manager, pool)
}

fn letters(queue: &dyn DistributedQueue) -> Vec<(String, DeadReason)> {
    let letters = block_on(queue.dead_letters(DeadPage::first(100))).unwrap();
    letters.into_iter().map(|letter| (letter.envelope.id, letter.reason)).collect()
}

#[test]
fn a_function_runs_the_commands_of_all_partitions_as_in_the_seed() {
    let queue = Arc::new(LocalDistributedQueue::new(PartitionConfig::round_robin(4)));
    for number in 0..40_u64 {
        block_on(queue.enqueue(CommandEnvelope::new("double", "any lane", json!(number)))).unwrap();
    }
    let shared: Arc<dyn DistributedQueue> = Arc::clone(&queue) as _;
    let mut pool = WorkerPool::new(shared).with_executor(executor(2));
    pool.start(|envelope| async move { Ok(json!(envelope.payload.as_u64().unwrap_or_default() * 2)) });
    assert!(pool.is_running());
    let mut results = block_on(async {
        let mut receiver = queue.result_receiver().lock().await;
        let mut results = Vec::new();
        while results.len() < 40 {
            let result = receiver.recv().await.unwrap();
            assert_eq!(&result.worker_id, queue.worker_id());
            results.push(result.result.unwrap().as_u64().unwrap());
        }
        results
    });
    results.sort_unstable();
    assert_eq!(results, (0..40).map(|number| number * 2).collect::<Vec<_>>());
    block_on(pool.shutdown());
    assert!(!pool.is_running());
}

#[test]
fn results_that_nobody_reads_do_not_hold_the_pool_up() {
    let queue = local();
    let commands = (0..5000).map(|number| (CommandEnvelope::new("x", "y", json!(number)), EnqueueOptions::new()));
    block_on(queue.enqueue_batch(commands.collect()));
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_executor(executor(2)).with_concurrency(8);
    pool.start(|_| async { Ok(json!(null)) });
    eventually("all have ended", || pool.stats().completed == 5000);
    block_on(pool.shutdown());
    assert_eq!(block_on(queue.depth(0)).unwrap(), corelane::Depth::default());
}

#[test]
fn a_function_that_fails_or_panics_makes_a_dead_letter_and_the_partition_goes_on() {
    let queue = local();
    for what in ["panic", "fail", "go on"] {
        block_on(queue.enqueue(CommandEnvelope::new("x", "y", json!(what)))).unwrap();
    }
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_executor(executor(1));
    pool.start(|envelope| async move {
        match envelope.payload.as_str() {
            Some("panic") => panic!("wanted"),
            Some("fail") => Err("no".to_owned()),
            _ => Ok(json!(1)),
        }
    });
    eventually("all have ended", || pool.stats().completed == 1 && pool.stats().failed == 2);
    let reasons: Vec<_> = letters(&*queue).into_iter().map(|(_, reason)| reason.error().to_owned()).collect();
    assert_eq!(reasons, ["command panicked: wanted", "no"]);
    block_on(pool.shutdown());
}

#[test]
fn what_is_claimed_runs_in_its_lane_and_its_result_is_reported() {
    let queue = local();
    let envelope = CommandEnvelope::of("query", &Work::Return(42)).unwrap();
    let options = EnqueueOptions::new().keep_result(PATIENCE);
    let id = block_on(queue.enqueue_with(envelope, options)).unwrap().command_id;
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 2, LaneConfig::new(0, 4));
    let result = block_on(queue.result(&id, PATIENCE)).unwrap().expect("it has ended");
    assert_eq!((result.result, &result.worker_id), (Ok(json!(42)), queue.worker_id()));
    block_on(pool.shutdown());
}

#[test]
fn lanes_are_asked_for_in_the_order_of_their_priorities() {
    let queue = local();
    let low: Vec<_> = (0..5).map(|_| put(&*queue, "low", Work::Return(1))).collect();
    let high: Vec<_> = (0..5).map(|_| put(&*queue, "high", Work::Return(1))).collect();
    let one = LaneConfig::new(0, 1);
    let executor = executor(1);
    let manager = manager_of(&executor, &[("low", one.clone(), 9), ("high", one, 1)]);
    let order = Arc::new(Mutex::new(Vec::new()));
    let queue = Arc::new(Watched { order: Arc::clone(&order), ..Watched::new(queue) });
    let mut pool = WorkerPool::new(queue);
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("all have ended", || pool.stats().completed == 10);
    block_on(pool.shutdown());
    let order = order.lock().unwrap();
    // Each claim may bring one of each; in it, the better lane's comes first, and all of those are gone before the last low ones.
    let place = |id: &String| order.iter().position(|other| other == id).unwrap();
    assert!(high.iter().zip(&low).all(|(high, low)| place(high) < place(low)), "{order:?}");
}

#[test]
fn no_more_is_claimed_than_its_lane_can_start() {
    let queue = local();
    for _ in 0..30 {
        put(&*queue, "query", Work::Sleep(Duration::from_millis(3)));
    }
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 2, LaneConfig::new(0, 2));
    let mut most = 0;
    eventually("all have ended", || {
        most = most.max(block_on(queue.depth(0)).unwrap().leased);
        pool.stats().completed == 30
    });
    // What has ended and is not acknowledged yet has given its permit back.
    assert!((1..=4).contains(&most), "{most} were leased");
    block_on(pool.shutdown());
}

#[test]
fn a_paused_lane_takes_nothing() {
    let queue = local();
    put(&*queue, "query", Work::Return(1));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    manager.pause("query").unwrap();
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    // Time for claims that are not to be made.
    thread::sleep(Duration::from_millis(100));
    assert_eq!((pool.stats().claimed, block_on(queue.depth(0)).unwrap().ready), (0, 1));
    manager.resume("query").unwrap();
    eventually("it goes on", || pool.stats().completed == 1);
    block_on(pool.shutdown());
}

#[test]
fn retries_timeouts_and_dead_letters_are_those_of_the_lane() {
    let queue = local();
    let config = LaneConfig::new(0, 4)
        .with_timeout(Duration::from_millis(80))
        .with_retry_policy(RetryPolicy::fixed(2, Duration::from_millis(5)));
    let good = put(&*queue, "query", Work::FailFirst(2));
    let bad = put(&*queue, "query", Work::Fail);
    let late = put(&*queue, "query", Work::Sleep(PATIENCE));
    let panics = put(&*queue, "query", Work::Panic);
    let (manager, mut pool) = pool_on(Arc::clone(&queue) as _, 2, config);
    eventually("all have ended", || pool.stats().completed == 1 && pool.stats().failed == 3);
    assert_eq!(
        [&good, &bad, &late, &panics].map(|id| attempts(id)),
        [3, 3, 3, 3],
        "attempts, of which the queue saw one delivery"
    );
    let mut letters = letters(&*queue);
    letters.sort_by_key(|(id, _)| [&bad, &late, &panics].iter().position(|other| *other == id));
    let errors: Vec<_> = letters.iter().map(|(_, reason)| reason.error()).collect();
    assert_eq!(errors[0], "command execution error: not now");
    assert!(errors[1].contains("timed out"), "{errors:?}");
    assert!(errors[2].contains("wanted"), "{errors:?}");
    assert_eq!(block_on(manager.dlq().unwrap().len()), 3, "they are dead letters here, too");
    block_on(pool.shutdown());
}

#[test]
fn metrics_count_what_came_from_elsewhere() {
    let queue = local();
    for _ in 0..7 {
        put(&*queue, "query", Work::Return(1));
    }
    let metrics = QueueMetrics::new(Arc::new(LocalMetrics::new()));
    let executor = executor(1);
    let manager = block_on(async {
        let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor.clone());
        let manager =
            builder.with_metrics(metrics.clone()).with_lane("query", LaneConfig::new(0, 2), 0).build().await.unwrap();
        manager.start().await.unwrap();
        manager
    });
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("all have ended", || pool.stats().completed == 7);
    let reading = metrics.reading();
    let lane = reading.lanes.iter().find(|lane| &*lane.lane == "query").expect("the lane is read");
    assert_eq!((lane.submitted, lane.finished.ok), (7, 7));
    block_on(pool.shutdown());
}

#[test]
fn a_command_that_can_not_be_made_is_a_dead_letter() {
    let queue = local();
    let unknown = CommandEnvelope::new("unknown", "query", json!(1));
    let panics = CommandEnvelope::new("panics", "query", json!(1));
    let wrong = CommandEnvelope::new("work", "query", json!("no such work"));
    for envelope in [&unknown, &panics, &wrong] {
        block_on(queue.enqueue(envelope.clone())).unwrap();
    }
    let newer = EnqueueOptions::new().payload_version(7);
    block_on(queue.enqueue_with(CommandEnvelope::of("query", &Work::Return(1)).unwrap(), newer)).unwrap();
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    let commands = commands().with_constructor("panics", |_, _| panic!("wanted"));
    pool.start_in_lanes(&manager, commands).unwrap();
    eventually("all have ended", || pool.stats().failed == 4);
    let letters = letters(&*queue);
    assert!(letters.iter().all(|(_, reason)| matches!(reason, DeadReason::Undecodable(_))), "{letters:?}");
    let texts = letters.iter().map(|(_, reason)| reason.error()).collect::<Vec<_>>().join("\n");
    for part in ["\"unknown\" is not known here", "panicked: wanted", "version 7", "work"] {
        assert!(texts.contains(part), "{part} is not in {texts}");
    }
    block_on(pool.shutdown());
}

#[test]
fn a_lane_that_is_not_here_is_left_to_others() {
    let queue = local();
    put(&*queue, "elsewhere", Work::Return(1));
    put(&*queue, "query", Work::Return(1));
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 4));
    eventually("the other one has ended", || pool.stats().completed == 1);
    block_on(pool.shutdown());
    assert_eq!(block_on(queue.depth(0)).unwrap().ready, 1);
}

#[test]
fn a_command_longer_than_its_lease_runs_once() {
    let queue = local();
    put(&*queue, "query", Work::Sleep(Duration::from_millis(900)));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_lease(Duration::from_millis(300));
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("it has ended", || pool.stats().completed == 1);
    assert_eq!((pool.stats().claimed, pool.stats().lost), (1, 0));
    block_on(pool.shutdown());
}

#[test]
fn leases_are_extended_while_a_command_blocks_the_only_worker() {
    let queue = local();
    let id = put(&*queue, "query", Work::Block(Duration::from_millis(1200)));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_lease(Duration::from_millis(400));
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("it has begun", || attempts(&id) == 1);
    let other = queue.worker();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1000) {
        assert_eq!(block_on(other.dequeue(0)).unwrap(), None, "another worker got it");
        thread::sleep(Duration::from_millis(10));
    }
    eventually("it has ended", || pool.stats().completed == 1);
    block_on(pool.shutdown());
}

/// How a queue behaves that is not well.
#[derive(Default)]
struct Trouble {
    extending_is_lost: AtomicBool,
    extending_hangs: AtomicBool,
    /// So many acknowledgements are not heard of.
    acks_that_fail: AtomicU32,
    claims_that_fail: AtomicU32,
    results_are_too_large: AtomicBool,
    panics: AtomicBool,
}

/// A local queue that is watched, and may be in trouble.
struct Watched {
    inner: Arc<LocalDistributedQueue>,
    trouble: Arc<Trouble>,
    order: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn new(inner: Arc<LocalDistributedQueue>) -> Self {
        Self { inner, trouble: Arc::default(), order: Arc::default() }
    }

    fn may_panic(&self) {
        assert!(!self.trouble.panics.load(Ordering::SeqCst), "wanted");
    }
}

fn unknown() -> LaneError {
    DistributedError::OutcomeUnknown { server: "the server".into(), cause: "the connection was lost".into() }.into()
}

fn takes_one(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl DistributedQueue for Watched {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.inner.enqueue(envelope).await
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        self.inner.dequeue(partition_id).await
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        self.inner.complete(result).await
    }

    fn num_partitions(&self) -> usize {
        self.inner.num_partitions()
    }

    fn worker_id(&self) -> &WorkerId {
        self.inner.worker_id()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        self.may_panic();
        if takes_one(&self.trouble.claims_that_fail) {
            return Err(unknown());
        }
        let taken = self.inner.dequeue_leased(partition_id, claim).await?;
        self.order.lock().unwrap().extend(taken.iter().map(|leased| leased.envelope.id.clone()));
        Ok(taken)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        self.may_panic();
        if self.trouble.extending_hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.trouble.extending_is_lost.load(Ordering::SeqCst) {
            return Err(DistributedError::LeaseLost { command_id: token.command_id().to_owned() }.into());
        }
        self.inner.extend(token, lease).await
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        self.may_panic();
        if self.trouble.results_are_too_large.load(Ordering::SeqCst) && result.result.is_ok() {
            return Err(DistributedError::PayloadTooLarge { size: 9, limit: 8 }.into());
        }
        let outcome = self.inner.ack(token, result).await;
        // It was done, and the answer is lost.
        if takes_one(&self.trouble.acks_that_fail) { Err(unknown()) } else { outcome }
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        self.inner.nack(token, nack).await
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        self.inner.dead_letter(token, reason).await
    }
}

fn troubled() -> (Arc<LocalDistributedQueue>, Arc<Trouble>, Arc<Watched>) {
    let inner = local();
    let watched = Watched::new(Arc::clone(&inner));
    (inner, Arc::clone(&watched.trouble), Arc::new(watched))
}

#[test]
fn a_lost_lease_cancels_its_command() {
    let (inner, trouble, queue) = troubled();
    trouble.extending_is_lost.store(true, Ordering::SeqCst);
    let id = put(&*inner, "query", Work::Sleep(PATIENCE * 2));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    let mut pool = WorkerPool::new(queue as _).with_lease(Duration::from_millis(600));
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("it is cancelled", || was_dropped(&id));
    eventually("it is counted", || pool.stats().lost >= 1);
    assert_eq!(pool.stats().completed, 0);
    trouble.extending_is_lost.store(false, Ordering::SeqCst);
    block_on(pool.stop(Duration::ZERO));
}

#[test]
fn a_command_whose_lease_can_not_be_extended_is_cancelled_before_that_ends() {
    let (inner, trouble, queue) = troubled();
    trouble.extending_hangs.store(true, Ordering::SeqCst);
    let id = put(&*inner, "query", Work::Sleep(PATIENCE * 2));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 1), 2)]);
    let lease = Duration::from_secs(3);
    let mut pool = WorkerPool::new(queue as _).with_lease(lease);
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("it has begun", || attempts(&id) == 1);
    let other = inner.worker();
    eventually("it is cancelled", || {
        let dropped = was_dropped(&id);
        if !dropped {
            assert_eq!(block_on(other.depth(0)).unwrap().leased, 1, "its lease has ended, and it still runs");
        }
        dropped
    });
    trouble.extending_hangs.store(false, Ordering::SeqCst);
    block_on(pool.stop(Duration::ZERO));
}

#[test]
fn an_acknowledgement_whose_outcome_is_unknown_is_made_again_and_counts_once() {
    let (inner, trouble, queue) = troubled();
    trouble.acks_that_fail.store(3, Ordering::SeqCst);
    let id = put(&*inner, "query", Work::Return(1));
    let (_manager, mut pool) = pool_on(queue as _, 1, LaneConfig::new(0, 4));
    eventually("the queue knows", || pool.stats().completed == 1);
    assert_eq!((attempts(&id), pool.stats().claimed), (1, 1));
    block_on(pool.shutdown());
}

#[test]
fn a_result_that_the_queue_does_not_take_is_not_brought_by_running_again() {
    let (inner, trouble, queue) = troubled();
    trouble.results_are_too_large.store(true, Ordering::SeqCst);
    let id = put(&*inner, "query", Work::Return(1));
    let (_manager, mut pool) = pool_on(queue as _, 1, LaneConfig::new(0, 4));
    eventually("the queue knows", || pool.stats().failed == 1);
    assert_eq!(attempts(&id), 1);
    assert_eq!(letters(&*inner)[0].1.error(), "its result has 9 bytes, and the queue takes 8");
    block_on(pool.shutdown());
}

#[test]
fn a_command_that_says_itself_that_it_was_cancelled_has_failed() {
    let queue = local();
    let id = put(&*queue, "query", Work::SayCancelled);
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 4));
    eventually("the queue knows", || pool.stats().failed == 1);
    assert_eq!((attempts(&id), letters(&*queue).len()), (1, 1));
    block_on(pool.shutdown());
}

#[test]
fn no_partition_is_left_out_where_a_lane_has_fewer_permits_than_there_are_partitions() {
    for workers in [1, 2] {
        for busy in 0..4 {
            let queue = Arc::new(LocalDistributedQueue::new(PartitionConfig::round_robin(4)));
            for number in 0..10 {
                let envelope = CommandEnvelope::of("query", &Work::Return(number)).unwrap();
                block_on(queue.enqueue(CommandEnvelope { partition_id: busy, ..envelope })).unwrap();
            }
            let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, workers, LaneConfig::new(0, 1));
            let begun = Instant::now();
            eventually("all have ended", || pool.stats().completed == 10);
            assert!(begun.elapsed() < PATIENCE / 3, "partition {busy} had to wait: {:?}", begun.elapsed());
            block_on(pool.shutdown());
        }
    }
}

#[test]
fn a_lane_with_much_room_leaves_room_to_those_behind_it() {
    let queue = local();
    for _ in 0..300 {
        put(&*queue, "behind", Work::Return(1));
    }
    let (wide, narrow) = (LaneConfig::new(0, 256), LaneConfig::new(0, 64));
    let manager = manager_of(&executor(1), &[("wide", wide, 0), ("behind", narrow, 5)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    let watched = Instant::now();
    eventually("all have ended", || pool.stats().completed == 300);
    assert!(watched.elapsed() < PATIENCE / 3, "{:?}", watched.elapsed());
    block_on(pool.shutdown());
}

#[test]
fn a_pool_whose_executor_is_shut_down_takes_no_more_and_can_be_shut_down() {
    let queue = local();
    let executor = executor(2);
    let manager = manager_of(&executor, &[("query", LaneConfig::new(0, 2), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    let runs = put(&*queue, "query", Work::Sleep(Duration::from_millis(200)));
    eventually("it has begun", || attempts(&runs) == 1);
    block_on(async {
        let shutdown = executor.shutdown(PATIENCE);
        let put_more = async {
            for _ in 0..50 {
                sleep(Duration::from_millis(1)).await;
                put_async(&*queue, "query", Work::Return(1)).await;
            }
        };
        futures::join!(shutdown, put_more);
    });
    let stats = block_on(pool.stop(PATIENCE));
    let depth = block_on(queue.depth(0)).unwrap();
    assert_eq!((depth.leased, depth.dead), (0, 0), "what it can not run is given back: {stats:?}, {depth:?}");
    assert_eq!(depth.ready + usize::try_from(stats.completed).unwrap(), 51, "{stats:?}, {depth:?}");
}

#[test]
fn a_queue_that_can_not_choose_lanes_fills_them_all_the_same() {
    let queue = Arc::new(Five::default());
    for number in 0..20 {
        let lane = if number % 2 == 0 { "query" } else { "other" };
        block_on(queue.enqueue(CommandEnvelope::of(lane, &Work::Return(number)).unwrap())).unwrap();
    }
    let lanes = [("query", LaneConfig::new(0, 2), 2), ("other", LaneConfig::new(0, 2), 3)];
    let manager = manager_of(&executor(1), &lanes);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("all have ended", || queue.completed.lock().unwrap().len() == 20);
    block_on(pool.shutdown());
}

#[test]
fn claims_go_on_after_errors() {
    let (inner, trouble, queue) = troubled();
    trouble.claims_that_fail.store(4, Ordering::SeqCst);
    put(&*inner, "query", Work::Return(1));
    let (_manager, mut pool) = pool_on(queue as _, 1, LaneConfig::new(0, 4));
    eventually("it goes on", || pool.stats().completed == 1);
    block_on(pool.shutdown());
}

#[test]
fn a_queue_that_panics_for_a_while_costs_nothing_but_that() {
    let (inner, trouble, queue) = troubled();
    let id = put(&*inner, "query", Work::Sleep(Duration::from_millis(200)));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 4), 2)]);
    let mut pool = WorkerPool::new(queue as _).with_lease(Duration::from_secs(3));
    pool.start_in_lanes(&manager, commands()).unwrap();
    eventually("it has begun", || attempts(&id) == 1);
    trouble.panics.store(true, Ordering::SeqCst);
    // Long enough for claims, an extension and the acknowledgement to be asked for.
    thread::sleep(Duration::from_millis(1500));
    trouble.panics.store(false, Ordering::SeqCst);
    eventually("the queue knows", || pool.stats().completed == 1);
    put(&*inner, "query", Work::Return(1));
    eventually("claims go on", || pool.stats().completed == 2);
    assert_eq!((attempts(&id), pool.stats().lost), (1, 0));
    block_on(pool.shutdown());
}

#[test]
fn shutting_down_gives_back_what_has_not_begun_and_waits_for_the_rest() {
    let queue = local();
    let runs = put(&*queue, "query", Work::Sleep(Duration::from_millis(300)));
    let (manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 3));
    eventually("it has begun", || attempts(&runs) == 1);
    manager.pause("query").unwrap();
    block_on(pool.shutdown());
    assert_eq!(block_on(queue.depth(0)).unwrap(), corelane::Depth::default(), "it was waited for");

    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 3), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    pool.start_in_lanes(&manager, commands()).unwrap();
    // All three places are claimed, and one worker runs one of them.
    let ids: Vec<_> = (0..3).map(|_| put(&*queue, "query", Work::Block(Duration::from_millis(400)))).collect();
    eventually("one has begun", || ids.iter().any(|id| attempts(id) == 1));
    eventually("all are claimed", || block_on(queue.depth(0)).unwrap().leased == 3);
    block_on(pool.shutdown());
    let begun = ids.iter().filter(|id| attempts(id) > 0).count();
    let depth = block_on(queue.depth(0)).unwrap();
    assert_eq!((depth.leased, depth.ready), (0, 3 - begun));
    while let Some(leased) = block_on(queue.dequeue_leased(0, Claim::new(1))).unwrap().pop() {
        assert_eq!(leased.delivery, 1, "it was given back uncharged");
    }
}

#[test]
fn stopping_cancels_what_takes_longer_and_gives_it_back() {
    let queue = local();
    let id = put(&*queue, "query", Work::Sleep(PATIENCE * 2));
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 3));
    eventually("it has begun", || attempts(&id) == 1);
    let stats = block_on(pool.stop(Duration::from_millis(50)));
    assert!(was_dropped(&id));
    // A claim that waits may have taken it once more, and given it back.
    assert!(stats.released >= 1 && stats.in_hand == 0, "{stats:?}");
    let again = block_on(queue.dequeue_leased(0, Claim::new(1))).unwrap().pop().expect("it is there again");
    assert_eq!((again.envelope.id, again.delivery), (id, 1));
}

#[test]
fn what_can_not_be_stopped_is_not_given_back_while_it_runs() {
    let queue = local();
    let id = put(&*queue, "query", Work::Block(Duration::from_millis(700)));
    let (_manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 1));
    eventually("it has begun", || attempts(&id) == 1);
    let other = queue.worker();
    let stopping = thread::spawn(move || block_on(pool.stop(Duration::from_millis(10))));
    while !stopping.is_finished() {
        let given_back = block_on(other.depth(0)).unwrap().ready > 0;
        assert!(!given_back || ENDED_BLOCKS.lock().unwrap().contains(&id), "it still runs");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stopping.join().unwrap().in_hand, 0);
}

#[test]
fn what_a_stopping_queue_cancels_is_given_back() {
    let queue = local();
    let id = put(&*queue, "query", Work::Sleep(PATIENCE * 2));
    let (manager, mut pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 3));
    eventually("it has begun", || attempts(&id) == 1);
    block_on(manager.stop(corelane::Stop::drain(Duration::from_millis(10))));
    eventually("it was given back", || block_on(queue.depth(0)).unwrap().ready == 1);
    assert_eq!(pool.stats().completed, 0);
    block_on(pool.shutdown());
    assert_eq!(block_on(queue.depth(0)).unwrap().ready, 1);
}

#[test]
fn a_command_knows_its_delivery() {
    struct Asks(Arc<Mutex<Option<Arc<Delivery>>>>);

    #[async_trait]
    impl Command for Asks {
        async fn execute(&self) -> Result<serde_json::Value> {
            sleep(Duration::from_millis(1)).await;
            *self.0.lock().unwrap() = Delivery::current();
            Ok(json!(null))
        }

        fn command_type(&self) -> &str {
            "asks"
        }
    }

    let queue = local();
    let envelope = CommandEnvelope::new("asks", "query", json!(null));
    let id = block_on(queue.enqueue_with(envelope, EnqueueOptions::new().header("a", "b"))).unwrap().command_id;
    let leased = block_on(queue.dequeue_leased(0, Claim::new(1))).unwrap().pop().unwrap();
    let back = Nack::RetryAfter { delay: Duration::ZERO, error: "once".into() };
    block_on(queue.nack(&leased.token, back)).unwrap();
    let seen = Arc::new(Mutex::new(None));
    let manager = manager_of(&executor(1), &[("query", LaneConfig::new(0, 1), 2)]);
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _);
    let own = Arc::clone(&seen);
    let commands = RemoteCommands::new().with_constructor("asks", move |_, _| Ok(Box::new(Asks(Arc::clone(&own)))));
    pool.start_in_lanes(&manager, commands).unwrap();
    eventually("it has ended", || pool.stats().completed == 1);
    let seen = seen.lock().unwrap().clone().expect("it has seen its delivery");
    assert_eq!((seen.command_id.as_str(), seen.delivery), (id.as_str(), 2));
    assert!(seen.fence > leased.token.fence());
    assert_eq!(seen.headers["a"], "b");
    assert!(Delivery::current().is_none());
    block_on(pool.shutdown());
}

/// The seed's five methods, and nothing else.
#[derive(Default)]
struct Five {
    waiting: Mutex<Vec<CommandEnvelope>>,
    completed: Mutex<Vec<CommandResult>>,
    asked: AtomicUsize,
    worker_id: WorkerId,
}

#[async_trait]
impl DistributedQueue for Five {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.waiting.lock().unwrap().push(envelope);
        Ok(())
    }

    async fn dequeue(&self, _partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(self.waiting.lock().unwrap().pop())
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        self.completed.lock().unwrap().push(result);
        Ok(())
    }

    fn num_partitions(&self) -> usize {
        1
    }

    fn worker_id(&self) -> &WorkerId {
        &self.worker_id
    }
}

#[test]
fn a_queue_of_the_seeds_five_methods_is_enough() {
    let queue = Arc::new(Five::default());
    for number in 0..20 {
        block_on(queue.enqueue(CommandEnvelope::new("x", "y", json!(number)))).unwrap();
    }
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_executor(executor(2)).with_concurrency(3);
    pool.start(|envelope| async move { if envelope.payload == json!(7) { Err("no".into()) } else { Ok(json!(1)) } });
    eventually("all have ended", || queue.completed.lock().unwrap().len() == 20);
    let failed = queue.completed.lock().unwrap().iter().filter(|result| result.result.is_err()).count();
    assert_eq!(failed, 1);
    // It is not asked without rest while it has nothing.
    let before = queue.asked.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(300));
    let asked = queue.asked.load(Ordering::Relaxed) - before;
    assert!(asked < 100, "asked {asked} times within 300 ms");
    block_on(pool.shutdown());
}

#[test]
fn what_a_queue_without_leases_has_handed_out_goes_back_into_it() {
    let queue = Arc::new(Five::default());
    block_on(queue.enqueue(CommandEnvelope::new("x", "y", json!(1)))).unwrap();
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_executor(executor(1));
    let begun = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&begun);
    pool.start(move |_| {
        own.store(true, Ordering::SeqCst);
        async {
            sleep(PATIENCE * 2).await;
            Ok(json!(1))
        }
    });
    eventually("it has begun", || begun.load(Ordering::SeqCst));
    block_on(pool.stop(Duration::from_millis(10)));
    assert_eq!(queue.waiting.lock().unwrap().len(), 1, "it is there again");
}

#[test]
fn partitions_can_be_chosen() {
    let queue = Arc::new(LocalDistributedQueue::new(PartitionConfig::round_robin(3)));
    for _ in 0..9 {
        block_on(queue.enqueue(CommandEnvelope::new("x", "y", json!(1)))).unwrap();
    }
    let mut pool = WorkerPool::new(Arc::clone(&queue) as _).with_executor(executor(1)).with_partitions([0, 2]);
    pool.start(|_| async { Ok(json!(1)) });
    eventually("two partitions are empty", || pool.stats().completed == 6);
    block_on(pool.shutdown());
    assert_eq!(block_on(queue.depth(1)).unwrap().ready, 3);
}

#[test]
fn wrong_settings_are_said_all_at_once() {
    let executor = executor(1);
    let manager = block_on(async {
        let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor.clone());
        builder
            .with_storage(Arc::new(MemoryStorage::new()))
            .with_lane("stored", LaneConfig::new(0, 2), 0)
            .build()
            .await
            .unwrap()
    });
    let mut pool = WorkerPool::new(local() as _);
    let commands = commands().with_durable::<Work>();
    let Err(LaneError::ConfigError(errors)) = pool.start_in_lanes(&manager, commands) else { panic!("it is wrong") };
    let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["lanes[\"stored\"].durability", "commands[\"work\"]"]);

    let manager = manager_of(&executor, &[("query", LaneConfig::new(0, 2), 0)]);
    let mut pool = WorkerPool::new(local() as _).with_partitions([0, 5]);
    let Err(LaneError::ConfigError(errors)) = pool.start_in_lanes(&manager, self::commands()) else {
        panic!("it is wrong")
    };
    assert_eq!(errors.problems()[0].path, "partitions");

    let mut pool = WorkerPool::new(local() as _).with_lease(Duration::ZERO);
    let Err(LaneError::ConfigError(errors)) = pool.start_in_lanes(&manager, self::commands()) else {
        panic!("it is wrong")
    };
    assert_eq!(errors.problems()[0].path, "lease");

    let mut pool = WorkerPool::new(local() as _);
    pool.start_in_lanes(&manager, self::commands()).unwrap();
    assert!(pool.start_in_lanes(&manager, self::commands()).is_err(), "it runs already");
    block_on(pool.shutdown());
}

#[test]
fn a_pool_that_is_dropped_takes_no_more_and_reports_what_it_has() {
    let queue = local();
    let id = put(&*queue, "query", Work::Sleep(Duration::from_millis(200)));
    let (_manager, pool) = pool_on(Arc::clone(&queue) as _, 1, LaneConfig::new(0, 1));
    eventually("it has begun", || attempts(&id) == 1);
    drop(pool);
    eventually("it was reported", || block_on(queue.depth(0)).unwrap() == corelane::Depth::default());
    put(&*queue, "query", Work::Return(1));
    // Time for a claim that is not to be made.
    thread::sleep(Duration::from_millis(50));
    assert_eq!(block_on(queue.depth(0)).unwrap().ready, 1);
}
