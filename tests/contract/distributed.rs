//! The queue within one process, by the suite that is for all; and what it alone has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use corelane::testing::distributed::{Opening, conformance, conformance_of};
use corelane::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedQueue,
    EnqueueOptions, GlobalLimits, LeaseToken, Leased, LocalDistributedQueue, Nack, PartitionConfig, PartitionId,
    Receipt, RemoteDeadLetter, Result, WorkerId,
};
use futures::executor::block_on;

/// Queues in memory, found again by their names.
fn open() -> impl Fn(Opening) -> std::future::Ready<corelane::Result<Arc<dyn DistributedQueue>>> {
    let queues: Mutex<HashMap<String, LocalDistributedQueue>> = Mutex::default();
    move |opening| {
        let mut queues = queues.lock().unwrap();
        let queue = queues.entry(opening.namespace).or_insert_with(|| LocalDistributedQueue::new(opening.partitions));
        std::future::ready(Ok(Arc::new(queue.worker())))
    }
}

#[test]
fn the_local_queue_is_a_distributed_queue() {
    let report = block_on(conformance(open()));
    assert!(
        report.left_out == ["corelane::testing::distributed::enqueue::a_payload_over_the_limit_is_refused"],
        "{report:?}"
    );
    assert!(report.run >= 80, "{report:?}");
}

#[test]
fn a_replayed_command_leaves_a_key_alone_that_other_work_has_taken() {
    let queue = LocalDistributedQueue::new(PartitionConfig::none()).with_idempotency_window(Duration::ZERO);
    let work = |what: &str| CommandEnvelope::new("work", "query", what.into());
    let keyed = || EnqueueOptions::new().idempotency_key("key");
    let take = async || queue.dequeue_leased(0, Claim::new(1)).await.unwrap().pop().expect("there is one");
    block_on(async {
        let first = queue.enqueue_with(work("first"), keyed()).await.unwrap().command_id;
        queue.dead_letter(&take().await.token, DeadReason::Expired).await.unwrap();
        let second = queue.enqueue_with(work("second"), keyed()).await.unwrap().command_id;
        assert!(queue.replay(&first).await.unwrap());
        let held = take().await;
        assert_eq!(held.envelope.id, second);
        let replayed = take().await;
        let result = CommandResult {
            command_id: first,
            result: Ok(serde_json::Value::Null),
            worker_id: queue.worker_id().clone(),
            duration_ms: 0,
        };
        assert_eq!(queue.ack(&replayed.token, result).await.unwrap(), AckOutcome::Applied);
        let again = queue.enqueue_with(work("second"), keyed()).await.unwrap();
        assert_eq!((again.command_id, again.duplicate), (second, true));
    });
}

/// A queue that lies about one thing.
struct Liar {
    inner: LocalDistributedQueue,
    lie: Lie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    AcceptsWithoutStoring,
    IgnoresPriority,
    IgnoresDelay,
    IgnoresExpiry,
    ForgetsKeys,
    ForgetsHeaders,
    ForgetsResults,
    IgnoresPartitions,
    IgnoresLanes,
    LeasesTwiceAsLong,
    ExtendsNothing,
    AcksWhateverTheToken,
    AcksNothing,
    ReleaseCharges,
    ReleaseLoses,
    RetriesAtOnce,
    DropsDeadLetters,
    ReplaysNothing,
    IgnoresLimits,
    ClosesWithoutReleasing,
    CountsNothing,
    FencesStandStill,
}

/// Each lie, and the part of the suite that is to find it out.
const LIES: [(Lie, &str); 22] = [
    (Lie::AcceptsWithoutStoring, "seed::what_is_enqueued"),
    (Lie::IgnoresPriority, "order::better_priorities"),
    (Lie::IgnoresDelay, "order::what_is_delayed"),
    (Lie::IgnoresExpiry, "dead::what_nobody_took"),
    (Lie::ForgetsKeys, "enqueue::a_key_has"),
    (Lie::ForgetsHeaders, "enqueue::headers"),
    (Lie::ForgetsResults, "outcome::a_result_that_is_kept"),
    (Lie::IgnoresPartitions, "seed::a_named_partition"),
    (Lie::IgnoresLanes, "order::a_claim_of_lanes"),
    (Lie::LeasesTwiceAsLong, "lease::an_acknowledgement_after"),
    (Lie::ExtendsNothing, "lease::extending_keeps"),
    (Lie::AcksWhateverTheToken, "lease::a_stale_acknowledgement"),
    (Lie::AcksNothing, "lease::what_was_acknowledged"),
    (Lie::ReleaseCharges, "lease::a_release_costs"),
    (Lie::ReleaseLoses, "lease::what_is_released"),
    (Lie::RetriesAtOnce, "order::a_retry_is_not"),
    (Lie::DropsDeadLetters, "dead::what_is_given_up"),
    (Lie::ReplaysNothing, "dead::a_replayed_command_is"),
    (Lie::IgnoresLimits, "outcome::at_most_so_many"),
    (Lie::ClosesWithoutReleasing, "outcome::closing_gives_back"),
    (Lie::CountsNothing, "outcome::depth_counts"),
    (Lie::FencesStandStill, "lease::fences_grow"),
];

impl Liar {
    fn lies(&self, lie: Lie) -> bool {
        self.lie == lie
    }
}

#[async_trait]
impl DistributedQueue for Liar {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        self.inner.dequeue(if self.lies(Lie::IgnoresPartitions) { 0 } else { partition_id }).await
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

    async fn enqueue_with(&self, mut envelope: CommandEnvelope, mut options: EnqueueOptions) -> Result<Receipt> {
        match self.lie {
            Lie::AcceptsWithoutStoring => return Ok(Receipt::new(envelope.id, false)),
            Lie::IgnoresPriority => options.priority = None,
            Lie::IgnoresDelay => options.delay = None,
            Lie::IgnoresExpiry => options.expires_after = None,
            Lie::ForgetsKeys => options.idempotency_key = None,
            Lie::ForgetsHeaders => options.headers.clear(),
            Lie::ForgetsResults => options.keep_result = None,
            Lie::IgnoresPartitions => envelope.partition_id = 0,
            _ => {}
        }
        self.inner.enqueue_with(envelope, options).await
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, mut claim: Claim) -> Result<Vec<Leased>> {
        match self.lie {
            Lie::IgnoresLanes => claim.lanes.clear(),
            Lie::LeasesTwiceAsLong => claim.lease *= 4,
            _ => {}
        }
        let mut taken = self.inner.dequeue_leased(partition_id, claim).await?;
        if self.lies(Lie::FencesStandStill) {
            for leased in &mut taken {
                let (id, partition) = (leased.token.command_id().to_owned(), leased.token.partition());
                leased.token = LeaseToken::new(id, partition, 1, "");
            }
        }
        Ok(taken)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        if self.lies(Lie::ExtendsNothing) { Ok(()) } else { self.inner.extend(token, lease).await }
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        match self.lie {
            Lie::AcksNothing => return Ok(AckOutcome::Applied),
            Lie::AcksWhateverTheToken => {
                let current = LeaseToken::new(token.command_id(), token.partition(), token.fence() + 1, "");
                if self.inner.ack(&current, result.clone()).await? == AckOutcome::Applied {
                    return Ok(AckOutcome::Applied);
                }
            }
            _ => {}
        }
        self.inner.ack(token, result).await
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        let now = |error: String| Nack::RetryAfter { delay: Duration::ZERO, error };
        match (self.lie, nack) {
            (Lie::ReleaseCharges, Nack::Release) => self.inner.nack(token, now(String::new())).await,
            (Lie::ReleaseLoses, Nack::Release) => {
                let result = CommandResult {
                    command_id: token.command_id().to_owned(),
                    result: Ok(serde_json::Value::Null),
                    worker_id: String::new(),
                    duration_ms: 0,
                };
                self.inner.ack(token, result).await
            }
            (Lie::RetriesAtOnce, Nack::RetryAfter { error, .. }) => self.inner.nack(token, now(error)).await,
            (_, nack) => self.inner.nack(token, nack).await,
        }
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        let outcome = self.inner.dead_letter(token, reason).await;
        if self.lies(Lie::DropsDeadLetters) {
            self.inner.discard(token.command_id()).await?;
        }
        outcome
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        self.inner.dead_letters(page).await
    }

    async fn replay(&self, command_id: &str) -> Result<bool> {
        if self.lies(Lie::ReplaysNothing) {
            self.inner.discard(command_id).await
        } else {
            self.inner.replay(command_id).await
        }
    }

    async fn discard(&self, command_id: &str) -> Result<bool> {
        self.inner.discard(command_id).await
    }

    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        self.inner.result(command_id, wait).await
    }

    async fn set_limits(&self, lane_id: &str, limits: GlobalLimits) -> Result<()> {
        if self.lies(Lie::IgnoresLimits) { Ok(()) } else { self.inner.set_limits(lane_id, limits).await }
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        if self.lies(Lie::CountsNothing) { Ok(Depth::default()) } else { self.inner.depth(partition_id).await }
    }

    async fn close(&self, grace: Duration) -> Result<()> {
        if self.lies(Lie::ClosesWithoutReleasing) { Ok(()) } else { self.inner.close(grace).await }
    }
}

#[test]
fn every_lie_of_a_queue_is_found_out() {
    // One thread each: some wait for what does not come.
    let liars = LIES.map(|(lie, part)| {
        std::thread::spawn(move || {
            let queues: Mutex<HashMap<String, LocalDistributedQueue>> = Mutex::default();
            let open = move |opening: Opening| {
                let mut queues = queues.lock().unwrap();
                let queue =
                    queues.entry(opening.namespace).or_insert_with(|| LocalDistributedQueue::new(opening.partitions));
                let liar: Arc<dyn DistributedQueue> = Arc::new(Liar { inner: queue.worker(), lie });
                std::future::ready(Ok(liar))
            };
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(conformance_of(open, part))));
            found.err().map(|_| lie).ok_or_else(|| format!("{lie:?} was not found out by {part}"))
        })
    });
    let told: Vec<_> = liars.into_iter().map(|liar| liar.join().expect("it is caught")).collect();
    let unfound: Vec<_> = told.into_iter().filter_map(|found| found.err()).collect();
    assert!(unfound.is_empty(), "{}", unfound.join("\n"));
}
