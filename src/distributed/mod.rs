//! Queues that several processes share: who has which command, until when, and what becomes of it.
//!
//! | file | what |
//! |---|---|
//! | `envelope` | a command on its way between processes, and what is asked for it |
//! | `lease` | the right to run one: given for a time, known by its token |
//! | `capability` | what a queue can do, how it does, how much it holds |
//! | `dead_letter` | what was given up |
//! | `local` | the queue within one process: the reference for all others |
//! | `pool` | workers: what is claimed runs in lanes |
//!
//! The trait is the seed's, and what its five methods can not say. Adapters implement it for servers.

mod capability;
mod dead_letter;
mod envelope;
mod lease;
mod local;
mod pool;

use std::time::Duration;

use async_trait::async_trait;

pub use capability::{Capabilities, Depth, DistributedHealth, Support};
pub use dead_letter::{DeadPage, DeadReason, RemoteDeadLetter};
pub(crate) use envelope::check_partition;
pub use envelope::{CommandEnvelope, CommandResult, EnqueueOptions, Receipt, WorkerId};
pub(crate) use lease::check_lease;
pub use lease::{AckOutcome, Claim, GlobalLimits, LaneClaim, LeaseToken, Leased, Nack};
pub use local::{LocalDistributedQueue, PartitionReceiver, ResultReceiver, ResultSender};
pub use pool::{Delivery, RemoteCommands, WorkerPool, WorkerPoolStats};

use crate::error::{DistributedError, Result};
use crate::queue::PartitionId;

/// How long [`DistributedQueue::dequeue`] leases a command for, where a queue is not told otherwise.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// Deliveries after which a command that never came to an end is given up, where its submission does not say otherwise.
pub const DEFAULT_MAX_DELIVERIES: u32 = 20;

/// How long the id of a command is remembered at least, after it has ended: who has not heard the answer to an enqueue or an
/// acknowledgement asks again within this time, and nothing happens twice.
pub const ID_MEMORY: Duration = Duration::from_secs(300);

/// A queue of commands that several processes put into and take from.
///
/// The methods without a default are the seed's: a queue of these alone hands each command out once, and what its worker does
/// not finish is lost. All others have defaults that are built of these, or say [`DistributedError::Unsupported`];
/// [`DistributedQueue::capabilities`] says what a queue really can do. `corelane::testing::distributed` (feature `testing`)
/// checks that it does.
///
/// # What it means to have a command
///
/// A command is **ready**, **delayed**, **leased**, **dead**, or gone. Who takes it gets a [lease](Leased): the right to run it
/// until a time by the clock of the queue's server, and a token by which that is known. Each lease of a command has a higher
/// [`fence`](LeaseToken::fence) than the one before. When a lease ends by itself, the command is ready again, and its old
/// token changes nothing any more: it says [`LeaseLost`](AckOutcome::LeaseLost). So at most one token is valid at any time,
/// but two processes may *work* on a command: the one whose lease ended may not know yet. Give the fence to whatever must happen
/// once, and let that refuse lower ones than it has seen.
///
/// # Order
///
/// Within a partition and a lane, a better [priority](EnqueueOptions::priority) goes first, and in one priority what was enqueued
/// first. A command that comes back (retried, released, its lease ended) takes the place it had; a delayed one gets its place
/// when it is due.
#[async_trait]
pub trait DistributedQueue: Send + Sync {
    /// Puts a command into the queue. Once this returns, it is as durable as [`Capabilities::durability`] says.
    ///
    /// # Errors
    ///
    /// [`LaneError::Distributed`](crate::LaneError::Distributed): it was not accepted, unless it is
    /// [`DistributedError::OutcomeUnknown`].
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()>;

    /// Takes the next command of a partition, of any lane, leased for the queue's default time; none if there is none. It is
    /// ended by [`DistributedQueue::complete`].
    ///
    /// # Errors
    ///
    /// [`DistributedError::NoSuchPartition`], or the server can not be asked.
    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>>;

    /// Reports how a command has ended that this handle has [dequeued](DistributedQueue::dequeue): it is gone if well, and a dead
    /// letter if not.
    ///
    /// # Errors
    ///
    /// [`DistributedError::LeaseLost`] if another worker has it by now, or may: nothing was changed.
    async fn complete(&self, result: CommandResult) -> Result<()>;

    /// How many partitions there are.
    fn num_partitions(&self) -> usize;

    /// The name of this handle among all that share the queue.
    fn worker_id(&self) -> &WorkerId;

    /// Whether commands may be put in here. Default: true.
    fn is_coordinator(&self) -> bool {
        true
    }

    /// Whether commands may be taken out here. Default: true.
    fn is_worker(&self) -> bool {
        true
    }

    /// What it can do. Default: what the five methods can.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Puts a command into the queue on these terms. Default: [`DistributedQueue::enqueue`], if there are none.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::enqueue`]; [`DistributedError::Unsupported`] for terms that it can not keep;
    /// [`DistributedError::IdempotencyConflict`].
    async fn enqueue_with(&self, envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        if let Some(term) = options.first_term() {
            return Err(DistributedError::Unsupported { operation: term.to_owned() }.into());
        }
        let command_id = envelope.id.clone();
        self.enqueue(envelope).await?;
        Ok(Receipt { command_id, duplicate: false })
    }

    /// As [`DistributedQueue::enqueue_with`], many at a time: one answer for each, in their order. Not all or nothing. Default:
    /// one after the other.
    async fn enqueue_batch(&self, commands: Vec<(CommandEnvelope, EnqueueOptions)>) -> Vec<Result<Receipt>> {
        let mut receipts = Vec::with_capacity(commands.len());
        for (envelope, options) in commands {
            receipts.push(self.enqueue_with(envelope, options).await);
        }
        receipts
    }

    /// Takes commands of a partition as `claim` says, for as long as it says; fewer or none if there are not so many. Where
    /// there is none, waits for up to [`Claim::wait`]. A future that is dropped may leave commands leased until their time is over.
    ///
    /// A queue that has no leases (see [`Capabilities::leases`]) gives commands that [belong](Leased::lease) to who takes them,
    /// and can neither choose lanes nor wait: so does the default.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::dequeue`]; [`DistributedError::InvalidLease`] for a time that the queue does not lease for.
    async fn dequeue_leased(&self, partition_id: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        if !claim.lanes.is_empty() {
            return Err(DistributedError::Unsupported { operation: "choosing lanes".to_owned() }.into());
        }
        let mut taken = Vec::new();
        while taken.len() < claim.max {
            match self.dequeue(partition_id).await {
                Ok(Some(envelope)) => taken.push(Leased::unleased(envelope)),
                // What was taken is not given up for an error that comes again.
                Ok(None) => break,
                Err(error) if taken.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    /// Leases a command anew, for `lease` from now on. Default: unsupported.
    ///
    /// # Errors
    ///
    /// [`DistributedError::LeaseLost`]: stop working on it.
    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        let _ = (token, lease);
        Err(DistributedError::Unsupported { operation: "leases".to_owned() }.into())
    }

    /// As [`DistributedQueue::extend`], many at a time: one answer for each, in their order. Default: one after the other.
    async fn extend_batch(&self, tokens: &[LeaseToken], lease: Duration) -> Vec<Result<()>> {
        let mut extended = Vec::with_capacity(tokens.len());
        for token in tokens {
            extended.push(self.extend(token, lease).await);
        }
        extended
    }

    /// Ends a command: it is gone if its result is a value, and a dead letter if it is an error. Asked again with the same token,
    /// it says so. Default: [`DistributedQueue::complete`].
    ///
    /// # Errors
    ///
    /// The server can not be asked, or has not said what it did: ask again.
    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        let _ = token;
        AckOutcome::of(self.complete(result).await)
    }

    /// As [`DistributedQueue::ack`], many at a time: one answer for each, in their order. Default: one after the other.
    async fn ack_batch(&self, results: Vec<(LeaseToken, CommandResult)>) -> Vec<Result<AckOutcome>> {
        let mut outcomes = Vec::with_capacity(results.len());
        for (token, result) in results {
            outcomes.push(self.ack(&token, result).await);
        }
        outcomes
    }

    /// Gives a command back. Default: unsupported.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::ack`].
    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        let _ = (token, nack);
        Err(DistributedError::Unsupported { operation: "giving commands back".to_owned() }.into())
    }

    /// Gives a command up: it is a dead letter from now on. Default: unsupported.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::ack`].
    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        let _ = (token, reason);
        Err(DistributedError::Unsupported { operation: "dead letters".to_owned() }.into())
    }

    /// Dead letters of all partitions, the oldest first: at most as many as the page says, behind the one it names.
    /// Default: unsupported.
    ///
    /// # Errors
    ///
    /// The server can not be asked.
    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        let _ = page;
        Err(DistributedError::Unsupported { operation: "dead letters".to_owned() }.into())
    }

    /// Makes a dead letter's command ready again, at the end of its lane, with all its deliveries. False if there is none of this
    /// command. Default: unsupported.
    ///
    /// # Errors
    ///
    /// The server can not be asked.
    async fn replay(&self, command_id: &str) -> Result<bool> {
        let _ = command_id;
        Err(DistributedError::Unsupported { operation: "dead letters".to_owned() }.into())
    }

    /// Removes a dead letter for good. False if there is none of this command. Default: unsupported.
    ///
    /// # Errors
    ///
    /// The server can not be asked.
    async fn discard(&self, command_id: &str) -> Result<bool> {
        let _ = command_id;
        Err(DistributedError::Unsupported { operation: "dead letters".to_owned() }.into())
    }

    /// How a command has ended that was enqueued with [`EnqueueOptions::keep_result`]: waits for that for up to `wait`. None if
    /// it has not, or that is too long ago. Default: unsupported.
    ///
    /// # Errors
    ///
    /// The server can not be asked.
    async fn result(&self, command_id: &str, wait: Duration) -> Result<Option<CommandResult>> {
        let _ = (command_id, wait);
        Err(DistributedError::Unsupported { operation: "results".to_owned() }.into())
    }

    /// Limits what of a lane is taken, by all workers together, from now on. Kept by the queue's server: workers need not agree.
    /// Default: unsupported.
    ///
    /// # Errors
    ///
    /// [`DistributedError::Unsupported`] also for one of the two limits; the server can not be asked.
    async fn set_limits(&self, lane_id: &str, limits: GlobalLimits) -> Result<()> {
        let _ = (lane_id, limits);
        Err(DistributedError::Unsupported { operation: "limits to all workers together".to_owned() }.into())
    }

    /// How much a partition holds. Default: unsupported.
    ///
    /// # Errors
    ///
    /// As [`DistributedQueue::dequeue`].
    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        let _ = partition_id;
        Err(DistributedError::Unsupported { operation: "depth".to_owned() }.into())
    }

    /// How it does. Asks nobody. Default: it is not known.
    fn health(&self) -> DistributedHealth {
        DistributedHealth::Unknown
    }

    /// Gives back what this handle has taken and not ended, and closes it: commands are ready at once, uncharged. Later calls are
    /// [`DistributedError::Closed`]. Takes at most about `grace`; what the server was not told by then it notices by itself when the
    /// leases end. Default: nothing to do.
    ///
    /// # Errors
    ///
    /// The server could not be told.
    async fn close(&self, grace: Duration) -> Result<()> {
        let _ = grace;
        Ok(())
    }
}
