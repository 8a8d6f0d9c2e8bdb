//! The settings of a3s-lane's two alerts.

/// When a lane has too many pending commands. Default: disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepthAlertConfig {
    /// Pending commands from which it is a warning.
    pub warning_threshold: usize,
    /// Pending commands from which it is critical.
    pub critical_threshold: usize,
    /// Whether there are alerts at all.
    pub enabled: bool,
}

impl QueueDepthAlertConfig {
    /// Alerts from these numbers of pending commands.
    #[must_use]
    pub const fn new(warning_threshold: usize, critical_threshold: usize) -> Self {
        Self { warning_threshold, critical_threshold, enabled: true }
    }

    /// No alerts.
    #[must_use]
    pub const fn disabled() -> Self {
        Self { warning_threshold: usize::MAX, critical_threshold: usize::MAX, enabled: false }
    }
}

impl Default for QueueDepthAlertConfig {
    fn default() -> Self {
        Self::disabled()
    }
}

/// When a lane's commands take too long, in milliseconds. Default: disabled.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyAlertConfig {
    /// Milliseconds from which it is a warning.
    pub warning_threshold_ms: f64,
    /// Milliseconds from which it is critical.
    pub critical_threshold_ms: f64,
    /// Whether there are alerts at all.
    pub enabled: bool,
}

impl LatencyAlertConfig {
    /// Alerts from these latencies, in milliseconds.
    #[must_use]
    pub const fn new(warning_threshold_ms: f64, critical_threshold_ms: f64) -> Self {
        Self { warning_threshold_ms, critical_threshold_ms, enabled: true }
    }

    /// No alerts.
    #[must_use]
    pub const fn disabled() -> Self {
        Self { warning_threshold_ms: f64::MAX, critical_threshold_ms: f64::MAX, enabled: false }
    }
}

impl Default for LatencyAlertConfig {
    fn default() -> Self {
        Self::disabled()
    }
}
