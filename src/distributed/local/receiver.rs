//! Reading a local queue as the seed does: receivers and a sender. Each is a cheap handle; reading from several clones shares
//! what is there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{LocalDistributedQueue, Shared};
use crate::distributed::{Claim, CommandEnvelope, CommandResult};
use crate::queue::PartitionId;

/// Takes commands of one partition. From
/// [`LocalDistributedQueue::partition_receiver`](crate::LocalDistributedQueue::partition_receiver).
pub struct PartitionReceiver {
    queue: LocalDistributedQueue,
    partition: PartitionId,
}

impl PartitionReceiver {
    pub(super) fn new(queue: LocalDistributedQueue, partition: PartitionId) -> Self {
        Self { queue, partition }
    }

    /// Another handle: there is no lock, and so nothing to wait for. As the seed has it.
    #[allow(clippy::unused_async, reason = "the seed's receivers are behind an async mutex")]
    pub async fn lock(&self) -> Self {
        Self::new(self.queue.clone_handle(), self.partition)
    }

    /// Waits for the next command. Cancel-safe. None once its queue's handle is closed.
    pub async fn recv(&mut self) -> Option<CommandEnvelope> {
        let claim = Claim::new(1).lease(self.queue.lease).wait(Duration::MAX);
        self.queue.claim(self.partition, &claim).await.pop().map(|leased| leased.envelope)
    }
}

/// Reads how commands have ended. From
/// [`LocalDistributedQueue::result_receiver`](crate::LocalDistributedQueue::result_receiver).
#[derive(Clone)]
pub struct ResultReceiver {
    shared: Arc<Shared>,
}

impl ResultReceiver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// As [`PartitionReceiver::lock`].
    #[allow(clippy::unused_async, reason = "the seed's receivers are behind an async mutex")]
    pub async fn lock(&self) -> Self {
        self.clone()
    }

    /// Waits for the next result. Cancel-safe. Never none, as long as the queue is there.
    pub async fn recv(&mut self) -> Option<CommandResult> {
        loop {
            // Listened before it is looked at: so it is not missed.
            let listener = self.shared.resulted.listen();
            if let Some(result) = self.try_recv() {
                return Some(result);
            }
            listener.await;
        }
    }

    /// The next result, if there is one.
    pub fn try_recv(&mut self) -> Option<CommandResult> {
        self.shared.lock().unread()
    }
}

/// Puts results where a [`ResultReceiver`] reads them.
#[derive(Clone)]
pub struct ResultSender {
    shared: Arc<Shared>,
}

impl ResultSender {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Puts one there; of more than 1,000 that nobody reads, the oldest goes. Never waits, and never fails.
    ///
    /// # Errors
    ///
    /// None: as the seed has it.
    #[allow(clippy::unused_async, reason = "the seed's sender waits")]
    pub async fn send(&self, result: CommandResult) -> Result<(), std::convert::Infallible> {
        self.shared.lock().tell(result);
        self.shared.resulted.notify(usize::MAX);
        Ok(())
    }
}

impl fmt::Debug for PartitionReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionReceiver").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl fmt::Debug for ResultReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultReceiver").finish_non_exhaustive()
    }
}

impl fmt::Debug for ResultSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultSender").finish_non_exhaustive()
    }
}
