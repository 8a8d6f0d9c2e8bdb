//! Builds a queue from settings, checking all of them.

use std::sync::Arc;

use super::admission::SharedPool;
use super::command_queue::CommandQueue;
use super::config::LaneConfig;
use super::dead_letter::DeadLetterQueue;
use super::lane::Lane;
use super::manager::QueueManager;
use super::{LaneId, Priority, lane_ids, priorities};
use crate::error::Result;
use crate::event::EventEmitter;
use crate::executor::Executor;

/// Configures a [`QueueManager`].
#[derive(Debug)]
#[must_use]
pub struct QueueManagerBuilder {
    events: EventEmitter,
    lanes: Vec<(LaneId, LaneConfig, Priority)>,
    defaults: Vec<(&'static str, LaneConfig, Priority)>,
    executor: Option<Executor>,
    dead_letters: Option<DeadLetterQueue>,
    max_in_flight: Option<usize>,
}

impl QueueManagerBuilder {
    /// A queue whose events go to `events`.
    pub fn new(events: EventEmitter) -> Self {
        Self {
            events,
            lanes: Vec::new(),
            defaults: Vec::new(),
            executor: None,
            dead_letters: None,
            max_in_flight: None,
        }
    }

    /// Adds a lane. `priority` 0 is the best, 63 the worst; lanes of the same priority share fairly.
    pub fn with_lane(mut self, id: impl Into<LaneId>, config: LaneConfig, priority: Priority) -> Self {
        self.lanes.push((id.into(), config, priority));
        self
    }

    /// Adds the six default lanes: `system` (priority 0, max 5), `control` (1, 3), `query` (2, 10), `session` (3, 5),
    /// `skill` (4, 3) and `prompt` (5, 2), each with min 1. A lane given by [`QueueManagerBuilder::with_lane`] under one
    /// of these names, before or after, takes the place of the default one.
    pub fn with_default_lanes(mut self) -> Self {
        let defaults = [
            (lane_ids::SYSTEM, 5, priorities::SYSTEM),
            (lane_ids::CONTROL, 3, priorities::CONTROL),
            (lane_ids::QUERY, 10, priorities::QUERY),
            (lane_ids::SESSION, 5, priorities::SESSION),
            (lane_ids::SKILL, 3, priorities::SKILL),
            (lane_ids::PROMPT, 2, priorities::PROMPT),
        ];
        self.defaults =
            defaults.into_iter().map(|(id, max, priority)| (id, LaneConfig::new(1, max), priority)).collect();
        self
    }

    /// Runs commands on `executor` instead of [`Executor::global`].
    pub fn with_executor(mut self, executor: Executor) -> Self {
        self.executor = Some(executor);
        self
    }

    /// Keeps commands that are given up as dead letters: in `letters`, or in a queue of that size.
    pub fn with_dlq(mut self, letters: impl Into<DeadLetterQueue>) -> Self {
        self.dead_letters = Some(letters.into());
        self
    }

    /// Runs at most `commands` of all lanes together at the same time. Each lane's `min_concurrency` is held back for it; the
    /// rest goes to the lanes that want it, the best first. A command that another one awaits is not held back, and one that
    /// has stopped waiting goes on at once: so more may run, by as many as have submitted and awaited others.
    pub fn with_max_in_flight(mut self, commands: usize) -> Self {
        self.max_in_flight = Some(commands);
        self
    }

    /// Builds the queue. Commands may be submitted at once; they run after [`QueueManager::start`]. Async as in a3s-lane;
    /// never waits. Where the feature `tokio` is on, commands see the tokio runtime that is current here.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError) with every problem found.
    pub async fn build(self) -> Result<QueueManager> {
        let executor = self.executor.unwrap_or_else(|| Executor::global().clone());
        let pool = self.max_in_flight.map(|limit| Arc::new(SharedPool::new(limit)));
        let queue = CommandQueue::on(executor, self.events, self.dead_letters, pool);
        let given = self.lanes;
        let defaults = self.defaults.into_iter().filter(|(id, ..)| !given.iter().any(|(other, ..)| other == id));
        let defaults = defaults.map(|(id, config, priority)| Lane::new(id, config, priority)).collect::<Vec<_>>();
        let given = given.iter().map(|(id, config, priority)| Lane::new(id.as_str(), config.clone(), *priority));
        queue.register(defaults.into_iter().chain(given).collect())?;
        Ok(QueueManager::new(Arc::new(queue)))
    }
}
