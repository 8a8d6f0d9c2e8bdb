//! What a program records by hand, and what it asks the backend for.

use std::sync::Arc;

use super::backend::{MetricsBackend, MetricsSnapshot, metric_names};
use super::{QueueMetrics, push};

/// The methods of a3s-lane.
///
/// A queue that is [given these metrics](crate::QueueManagerBuilder::with_metrics) records its commands itself, under the same
/// names: do not record those again. By hand is for work beside the queue, and for a queue whose
/// [level](QueueMetrics::with_level) is [`Off`](super::MetricsLevel::Off).
impl QueueMetrics {
    /// Where the numbers go.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn MetricsBackend> {
        self.feed.backend()
    }

    /// Records that a command was submitted to a lane.
    pub async fn record_submit(&self, lane_id: &str) {
        self.count(metric_names::COMMANDS_SUBMITTED, lane_id).await;
    }

    /// Records that a command has completed, and how long it took, in milliseconds.
    pub async fn record_complete(&self, lane_id: &str, latency_ms: f64) {
        self.count(metric_names::COMMANDS_COMPLETED, lane_id).await;
        self.record(metric_names::COMMAND_LATENCY, lane_id, latency_ms).await;
    }

    /// Records that a command has failed.
    pub async fn record_failure(&self, lane_id: &str) {
        self.count(metric_names::COMMANDS_FAILED, lane_id).await;
    }

    /// Records that a command was given up at its deadline.
    pub async fn record_timeout(&self, lane_id: &str) {
        self.count(metric_names::COMMANDS_TIMEOUT, lane_id).await;
    }

    /// Records that a command is tried again.
    pub async fn record_retry(&self, lane_id: &str) {
        self.count(metric_names::COMMANDS_RETRIED, lane_id).await;
    }

    /// Records that a command has become a dead letter.
    pub async fn record_dead_letter(&self, lane_id: &str) {
        self.count(metric_names::COMMANDS_DEAD_LETTERED, lane_id).await;
    }

    /// Sets how many commands wait in a lane. Of the lane only, as in a3s-lane: not of all lanes together.
    pub async fn set_queue_depth(&self, lane_id: &str, depth: usize) {
        self.set(metric_names::QUEUE_DEPTH, lane_id, depth).await;
    }

    /// Sets how many commands run in a lane. Of the lane only, as in a3s-lane: not of all lanes together.
    pub async fn set_active_commands(&self, lane_id: &str, active: usize) {
        self.set(metric_names::QUEUE_ACTIVE, lane_id, active).await;
    }

    /// Records how long a command has waited, in milliseconds.
    pub async fn record_wait_time(&self, lane_id: &str, wait_time_ms: f64) {
        self.record(metric_names::COMMAND_WAIT_TIME, lane_id, wait_time_ms).await;
    }

    /// What the backend has, once the queues have handed it everything up to now. Waits for the backend.
    pub async fn snapshot(&self) -> MetricsSnapshot {
        self.flush().await;
        self.backend().snapshot().await
    }

    /// Hands the backend everything up to now, and waits until it has it: before a program ends, for example.
    pub async fn flush(&self) {
        self.feed.push(&self.collect()).await;
    }

    /// Has the backend forget everything, and counts from zero what is handed to it from now on. A [`Reading`](super::Reading)
    /// goes on: others judge by how that grows.
    pub async fn reset(&self) {
        self.feed.restart(&self.collect()).await;
    }

    async fn count(&self, name: &str, lane: &str) {
        self.backend().increment_counter(name, 1).await;
        self.backend().increment_counter(&push::of_lane(name, lane), 1).await;
    }

    async fn record(&self, name: &str, lane: &str, value: f64) {
        self.backend().record_histogram(name, value).await;
        self.backend().record_histogram(&push::of_lane(name, lane), value).await;
    }

    async fn set(&self, name: &str, lane: &str, value: usize) {
        self.backend().set_gauge(&push::of_lane(name, lane), value as f64).await;
    }
}
