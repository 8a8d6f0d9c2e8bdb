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

/// Watches a queue's depth. Warnings go to the log (`tracing`, level `warn`).
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
            loop {
                sleep(interval).await;
                let Some(monitor) = monitor.upgrade() else { return };
                monitor.check();
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

    fn check(&self) {
        let stats = self.queue.stats();
        for (lane, status) in &stats.lanes {
            tracing::debug!(lane, status.pending, status.active, status.max, "lane");
        }
        let MonitorConfig { pending_warning_threshold, active_warning_threshold, .. } = self.config;
        if stats.total_pending > pending_warning_threshold {
            tracing::warn!(
                pending = stats.total_pending,
                threshold = pending_warning_threshold,
                "many commands pending"
            );
        }
        if stats.total_active > active_warning_threshold {
            tracing::warn!(active = stats.total_active, threshold = active_warning_threshold, "many commands active");
        }
    }
}

impl Drop for QueueMonitor {
    fn drop(&mut self) {
        self.stop();
    }
}
