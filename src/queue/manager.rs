//! The queue as most programs use it.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, TypedCommand};
use super::command_queue::{CommandQueue, DrainReport, QueueStats, RequeueReport};
use super::config::LaneConfig;
use super::dead_letter::{DeadLetter, DeadLetterQueue};
use super::durable::{DurableCommand, RecoveryReport};
use super::explain::Explanation;
use super::lane::{JsonSubmission, Lane, Rejected};
use super::options::SubmitOptions;
use super::stop::{Stop, StopReport};
use super::ticket::Ticket;
use crate::alert::AlertManager;
use crate::error::Result;
use crate::event::{EventStream, LaneEvent};
use crate::id::CommandId;
use crate::metrics::QueueMetrics;
use crate::storage::StorageHealth;

/// A set of lanes on a shared executor. From [`QueueManagerBuilder`](crate::QueueManagerBuilder).
///
/// A manager has no thread of its own and costs nothing while idle: make one per session. Dropping it is dropping its
/// [`CommandQueue`]: admission closes, accepted commands run to their end, and those held back by a lane that was never
/// started or is paused are cancelled.
pub struct QueueManager {
    queue: Arc<CommandQueue>,
}

impl QueueManager {
    pub(super) fn new(queue: Arc<CommandQueue>) -> Self {
        Self { queue }
    }

    /// What measures the queue; none without [metrics](crate::QueueManagerBuilder::with_metrics) or
    /// [alerts](crate::QueueManagerBuilder::with_alerts).
    #[must_use]
    pub fn metrics(&self) -> Option<&QueueMetrics> {
        self.queue.metrics()
    }

    /// What judges the queue; none without [alerts](crate::QueueManagerBuilder::with_alerts).
    #[must_use]
    pub fn alerts(&self) -> Option<&Arc<AlertManager>> {
        self.queue.alerts()
    }

    /// Lets commands run. Idempotent. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// None at present.
    pub async fn start(&self) -> Result<()> {
        self.queue.start();
        Ok(())
    }

    /// Accepts a command; await the ticket for its result: `manager.submit(..).await?.await??`. Before
    /// [`QueueManager::start`] it waits. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub async fn submit(&self, lane_id: &str, command: Box<dyn Command>) -> Result<Ticket<serde_json::Value>> {
        self.queue.submit(lane_id, command).await
    }

    /// Accepts a command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn try_submit(&self, lane_id: &str, command: Box<dyn Command>) -> JsonSubmission {
        self.queue.try_submit(lane_id, command)
    }

    /// Accepts a typed command, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn submit_typed<C: TypedCommand>(&self, lane_id: &str, command: C) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.queue.submit_typed(lane_id, command)
    }

    /// Accepts a closure that makes a future, which runs once. `command_type` names it in events.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit`].
    pub fn submit_fn<F, Fut, T>(
        &self,
        lane_id: &str,
        command_type: impl Into<Cow<'static, str>>,
        make: F,
    ) -> Result<Ticket<T>>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send,
        T: Send + 'static,
    {
        self.queue.submit_fn(lane_id, command_type, make)
    }

    /// [`QueueManager::submit`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_with`].
    pub async fn submit_with(
        &self,
        lane_id: &str,
        command: Box<dyn Command>,
        options: SubmitOptions,
    ) -> Result<Ticket<serde_json::Value>> {
        self.queue.submit_with(lane_id, command, options).await
    }

    /// Accepts a command that is data into a durable lane, or hands it back; see [`CommandQueue::submit_durable`].
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_durable`].
    pub async fn submit_durable<C: DurableCommand>(
        &self,
        lane_id: &str,
        command: C,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.queue.submit_durable(lane_id, command).await
    }

    /// [`QueueManager::submit_durable`] with settings of the command's own.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::submit_durable_with`].
    pub async fn submit_durable_with<C: DurableCommand>(
        &self,
        lane_id: &str,
        command: C,
        options: SubmitOptions,
    ) -> Result<Ticket<C::Output>, Rejected<C>> {
        self.queue.submit_durable_with(lane_id, command, options).await
    }

    /// Accepts commands in their order, each on its own; see [`CommandQueue::submit_many`].
    pub fn submit_many(
        &self,
        lane_id: &str,
        commands: impl IntoIterator<Item = Box<dyn Command>>,
    ) -> Vec<JsonSubmission> {
        self.queue.submit_many(lane_id, commands)
    }

    /// The lane of this id.
    #[must_use]
    pub fn lane(&self, lane_id: &str) -> Option<Lane> {
        self.queue.lane(lane_id)
    }

    /// Why a command waits; see [`CommandQueue::explain`].
    #[must_use]
    pub fn explain(&self, id: CommandId) -> Option<Explanation> {
        self.queue.explain(id)
    }

    /// Holds a lane's commands back; see [`CommandQueue::pause`].
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`](crate::LaneError::LaneNotFound).
    pub fn pause(&self, lane_id: &str) -> Result<()> {
        self.queue.pause(lane_id)
    }

    /// Lets a paused lane go on.
    ///
    /// # Errors
    ///
    /// [`LaneError::LaneNotFound`](crate::LaneError::LaneNotFound).
    pub fn resume(&self, lane_id: &str) -> Result<()> {
        self.queue.resume(lane_id)
    }

    /// Changes a lane's settings while it runs; see [`Lane::update`].
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::update_lane`].
    pub fn update_lane(&self, lane_id: &str, change: impl FnOnce(&mut LaneConfig)) -> Result<()> {
        self.queue.update_lane(lane_id, change)
    }

    /// The queue's dead letters; none without a dead letter queue.
    #[must_use]
    pub fn dlq(&self) -> Option<&DeadLetterQueue> {
        self.queue.dlq()
    }

    /// Submits the commands of dead letters again; see [`CommandQueue::requeue_dead_letters`].
    pub fn requeue_dead_letters(&self, wanted: impl FnMut(&DeadLetter) -> bool) -> RequeueReport {
        self.queue.requeue_dead_letters(wanted)
    }

    /// What was taken over from the store when the queue was built; none without a store.
    #[must_use]
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.queue.recovery()
    }

    /// How the queue's store does; none without one.
    #[must_use]
    pub fn storage_health(&self) -> Option<StorageHealth> {
        self.queue.storage_health()
    }

    /// The queue's numbers. Async as in a3s-lane; never waits.
    ///
    /// # Errors
    ///
    /// None at present.
    pub async fn stats(&self) -> Result<QueueStats> {
        Ok(self.queue.stats())
    }

    /// The queue behind this manager.
    #[must_use]
    pub fn queue(&self) -> Arc<CommandQueue> {
        Arc::clone(&self.queue)
    }

    /// Every event of this queue, as a stream.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        self.queue.subscribe_stream()
    }

    /// The events of this queue that `filter` lets pass.
    pub fn subscribe_filtered(&self, filter: impl Fn(&LaneEvent) -> bool + Send + Sync + 'static) -> EventStream {
        self.queue.subscribe_filtered(filter)
    }

    /// Accepts no more commands; those accepted run on. Idempotent.
    pub async fn shutdown(&self) {
        self.queue.shutdown().await;
    }

    /// Waits until every accepted command has settled, for at most `limit`; see [`CommandQueue::drain`].
    ///
    /// # Errors
    ///
    /// [`LaneError::DrainTimeout`](crate::LaneError::DrainTimeout) with what is left;
    /// [`LaneError::Storage`](crate::LaneError::Storage) if the store does not have all ends.
    pub async fn drain(&self, limit: Duration) -> Result<DrainReport> {
        self.queue.drain(limit).await
    }

    /// Shuts down in phases: stop intake, drain, cancel, give back; see [`CommandQueue::stop`].
    pub async fn stop(&self, stop: Stop) -> StopReport {
        self.queue.stop(stop).await
    }

    /// Whether [`QueueManager::shutdown`] was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.queue.is_shutting_down()
    }
}

impl fmt::Debug for QueueManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManager").field("queue", &self.queue).finish()
    }
}
