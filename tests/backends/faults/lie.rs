//! Queues with planted bugs: what the checker is to find. A fault test that can not fail shows nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Capabilities, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedError,
    DistributedQueue, EnqueueOptions, LeaseToken, Leased, Nack, PartitionId, Receipt, RemoteDeadLetter, Result,
    WorkerId,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lie {
    None,
    /// Says that a command is enqueued, and has not sent it.
    Enqueued,
    /// Says that a command is not enqueued, and has enqueued it.
    NotEnqueued,
    /// Does not send idempotency keys.
    NoKeys,
    /// Says that a command has ended, and has not sent it.
    Ended,
    /// Says of an acknowledgement that was refused that it was applied.
    AnyToken,
    /// Ends what it has taken, and says nothing of it.
    Drops,
    /// Hands out what it has handed out before.
    Twice,
    /// Leases for a shorter time than it says.
    ShortLeases,
    /// Ends a command that is given back.
    GivesUp,
}

impl Lie {
    /// Each one, and what the checker is to say of it.
    pub(crate) const ALL: [(Self, &str); 9] = [
        (Self::Enqueued, "was acknowledged, was never handed out, and is lost"),
        (Self::NotEnqueued, "was refused for certain, and was handed out"),
        (Self::NoKeys, "has more than one command"),
        (Self::Ended, "was handed out after it had ended"),
        (Self::AnyToken, "a stale Ack was applied"),
        (Self::Drops, "was acknowledged, was never handed out, and is lost"),
        (Self::Twice, "times under the same fence"),
        (Self::ShortLeases, "has two valid leases"),
        (Self::GivesUp, "Release was done with it, and is lost"),
    ];
}

pub(crate) struct Liar {
    queue: Queue,
    lie: Lie,
    calls: AtomicU64,
    last: Mutex<Option<Leased>>,
}

impl Liar {
    pub(crate) fn new(queue: Queue, lie: Lie) -> Self {
        Self { queue, lie, calls: AtomicU64::new(0), last: Mutex::new(None) }
    }

    /// Whether to lie now: one time in so many.
    fn lies(&self, lie: Lie, one_in: u64) -> bool {
        self.lie == lie && self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
    }
}

#[async_trait]
impl DistributedQueue for Liar {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.queue.enqueue(envelope).await
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        self.queue.dequeue(partition_id).await
    }

    async fn complete(&self, result: CommandResult) -> Result<()> {
        self.queue.complete(result).await
    }

    fn num_partitions(&self) -> usize {
        self.queue.num_partitions()
    }

    fn worker_id(&self) -> &WorkerId {
        self.queue.worker_id()
    }

    fn capabilities(&self) -> Capabilities {
        self.queue.capabilities()
    }

    async fn enqueue_with(&self, envelope: CommandEnvelope, mut options: EnqueueOptions) -> Result<Receipt> {
        if self.lies(Lie::Enqueued, 10) {
            return Ok(Receipt::new(envelope.id, false));
        }
        if self.lies(Lie::NoKeys, 1) {
            options.idempotency_key = None;
        }
        let receipt = self.queue.enqueue_with(envelope, options).await?;
        if self.lies(Lie::NotEnqueued, 10) {
            let (server, cause) = ("the server".to_owned(), "a lie".to_owned());
            return Err(DistributedError::Unavailable { server, cause }.into());
        }
        Ok(receipt)
    }

    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        if self.lies(Lie::Twice, 5) {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Ok(last.into_iter().collect());
        }
        let lease = claim.lease;
        let shorter = if self.lies(Lie::ShortLeases, 1) { lease / 4 } else { lease };
        let mut taken = self.queue.dequeue_leased(partition_id, claim.lease(shorter)).await?;
        taken.iter_mut().for_each(|leased| leased.lease = Some(lease));
        if self.lies(Lie::Drops, 5)
            && let Some(dropped) = taken.pop()
        {
            let result = CommandResult {
                command_id: dropped.envelope.id,
                result: Ok("dropped".into()),
                worker_id: self.worker_id().clone(),
                duration_ms: 0,
            };
            self.queue.ack(&dropped.token, result).await?;
        }
        if let Some(last) = taken.last() {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last.clone());
        }
        Ok(taken)
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        self.queue.extend(token, lease).await
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        if self.lies(Lie::Ended, 5) {
            return Ok(AckOutcome::Applied);
        }
        match self.queue.ack(token, result).await? {
            AckOutcome::LeaseLost if self.lies(Lie::AnyToken, 1) => Ok(AckOutcome::Applied),
            outcome => Ok(outcome),
        }
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        if nack == Nack::Release && self.lies(Lie::GivesUp, 3) {
            let result = CommandResult {
                command_id: token.command_id().to_owned(),
                result: Ok("given up".into()),
                worker_id: self.worker_id().clone(),
                duration_ms: 0,
            };
            return self.queue.ack(token, result).await;
        }
        self.queue.nack(token, nack).await
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        self.queue.dead_letter(token, reason).await
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        self.queue.dead_letters(page).await
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        self.queue.depth(partition_id).await
    }

    async fn close(&self, grace: Duration) -> Result<()> {
        self.queue.close(grace).await
    }
}
