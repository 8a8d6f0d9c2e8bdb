//! A monitor: looks at a queue at intervals and warns in the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::executor::{Task, sleep};
use crate::queue::{CommandQueue, QueueStats};

/// The shortest interval: a shorter one counts as this.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// The monitor runs at the worst priority: it must not delay what it looks at.
const PRIORITY: u8 = crate::executor::LOWEST_PRIORITY;

/// Settings of a [`QueueMonitor`]. Default: every 10 s, warn above 100 pending or 50 active commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorConfig {
    /// Time between two looks; at least 1 ms.
    pub interval: Duration,
    /// Pending commands, of all lanes, above which it warns.
    pub pending_warning_threshold: usize,
    /// Active commands, of all lanes, above which it warns.
    pub active_warning_threshold: usize,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), pending_warning_threshold: 100, active_warning_threshold: 50 }
    }
}

/// Watches a queue's depth. Warnings go to the log (`tracing`, level `warn`): one when a number gets above its threshold, and
/// the next one only after it was below 0.8 of that, which is told, too (level `info`). For more, [`AlertManager`](crate::AlertManager).
#[derive(Debug)]
pub struct QueueMonitor {
    queue: Arc<CommandQueue>,
    config: MonitorConfig,
    watching: Mutex<Option<Task<()>>>,
}

impl QueueMonitor {
    /// A monitor with the default settings.
    #[must_use]
    pub fn new(queue: Arc<CommandQueue>) -> Self {
        Self::with_config(queue, MonitorConfig::default())
    }

    /// A monitor with these settings.
    #[must_use]
    pub fn with_config(queue: Arc<CommandQueue>, config: MonitorConfig) -> Self {
        Self { queue, config, watching: Mutex::new(None) }
    }

    /// Looks at the queue every interval, in the background, until [`QueueMonitor::stop`] or until the last reference to
    /// this monitor is dropped. Starting it again while it runs changes nothing. Async as in a3s-lane; never waits.
    pub async fn start(self: Arc<Self>) {
        let mut watching = self.watching();
        if watching.is_some() {
            return;
        }
        let interval = self.config.interval.max(INTERVAL_MIN);
        let monitor: Weak<Self> = Arc::downgrade(&self);
        let looks = async move {
            let (mut pending, mut active) = (Edge::default(), Edge::default());
            loop {
                sleep(interval).await;
                let Some(monitor) = monitor.upgrade() else { return };
                monitor.check(&mut pending, &mut active);
            }
        };
        *watching = Some(self.queue.executor().spawn(PRIORITY, looks));
    }

    /// Stops looking. It can be started again.
    pub fn stop(&self) {
        if let Some(task) = self.watching().take() {
            // Takes effect at once, awaited or not.
            drop(task.cancel());
        }
    }

    fn watching(&self) -> MutexGuard<'_, Option<Task<()>>> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue's numbers now. Async as in a3s-lane; never waits.
    pub async fn stats(&self) -> QueueStats {
        self.queue.stats()
    }

    fn check(&self, pending: &mut Edge, active: &mut Edge) {
        let stats = self.queue.stats();
        for (lane, status) in &stats.lanes {
            tracing::debug!(lane, status.pending, status.active, status.max, "lane");
        }
        let MonitorConfig { pending_warning_threshold, active_warning_threshold, .. } = self.config;
        let (now, threshold) = (stats.total_pending, pending_warning_threshold);
        match pending.look(now, threshold) {
            Some(Look::Above) => tracing::warn!(pending = now, threshold, "many commands pending"),
            Some(Look::Below) => tracing::info!(pending = now, threshold, "no longer many commands pending"),
            None => {}
        }
        let (now, threshold) = (stats.total_active, active_warning_threshold);
        match active.look(now, threshold) {
            Some(Look::Above) => tracing::warn!(active = now, threshold, "many commands active"),
            Some(Look::Below) => tracing::info!(active = now, threshold, "no longer many commands active"),
            None => {}
        }
    }
}

impl Drop for QueueMonitor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Above,
    Below,
}

/// Whether a number was above its threshold, so that a warning comes once and not at each look.
#[derive(Debug, Default)]
struct Edge {
    is_above: bool,
}

impl Edge {
    fn look(&mut self, value: usize, threshold: usize) -> Option<Look> {
        if !self.is_above && value > threshold {
            self.is_above = true;
            return Some(Look::Above);
        }
        // Below 0.8 of it; of a threshold of zero, at zero.
        if self.is_above && (value == 0 || value < threshold - threshold / 5) {
            self.is_above = false;
            return Some(Look::Below);
        }
        None
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_number_around_its_threshold_is_told_once() {
        let mut edge = Edge::default();
        let looks = |edge: &mut Edge, values: &[usize], threshold| -> Vec<_> {
            values.iter().filter_map(|value| edge.look(*value, threshold)).collect()
        };
        assert_eq!(looks(&mut edge, &[0, 99, 100, 101, 1000, 99, 101, 80], 100), [Look::Above]);
        assert_eq!(looks(&mut edge, &[79, 100, 0], 100), [Look::Below]);
        assert_eq!(looks(&mut edge, &[101, 0, 101], 100), [Look::Above, Look::Below, Look::Above]);
        let mut edge = Edge::default();
        assert_eq!(looks(&mut edge, &[0, 1, 2, 0, 0], 0), [Look::Above, Look::Below]);
        assert_eq!(looks(&mut edge, &[usize::MAX], usize::MAX), []);
    }
}
