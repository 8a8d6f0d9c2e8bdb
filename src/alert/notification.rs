//! What is told of an alert, and to whom.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertLevel {
    /// Worth knowing.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl fmt::Display for AlertLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// A rule that holds for a lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// How bad it is.
    pub level: AlertLevel,
    /// The lane; empty for an alert that is about no lane.
    pub lane_id: String,
    /// What it is, in one line: the lane, the value, the threshold and its unit.
    pub message: String,
    /// The value that was found.
    pub current_value: f64,
    /// The threshold that it has reached.
    pub threshold: f64,
}

/// Whether an alert holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertStatus {
    /// It does: since now, at another level than before, or still, after the repeat interval.
    Firing,
    /// It does not any more.
    Resolved,
}

/// What is told of an alert: that it fires, that it still does, or that it is resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Notification {
    /// Whether it holds.
    pub status: AlertStatus,
    /// The alert, as it is now; of one that is resolved, as it was last.
    pub alert: Alert,
    /// The rule's name, for example `queue_depth`.
    pub rule: String,
    /// Names the alert as long as it fires, whatever its level: from the rule, the lane and the instance. The same after a restart.
    pub fingerprint: String,
    /// The instance that tells it: of several processes with the same lanes.
    pub instance: String,
    /// When it began to fire.
    pub started_at: DateTime<Utc>,
    /// When it was resolved; none while it fires.
    pub ended_at: Option<DateTime<Utc>>,
    /// Counts the notifications of this alert since it began to fire, from 1.
    pub sequence: u32,
}

/// Where notifications are delivered to. Calls come from a thread of the alerts' own, one at a time: they may wait, and must end
/// by themselves.
pub trait AlertSink: Send + Sync + 'static {
    /// Names it in logs and metrics, for example `slack`.
    fn name(&self) -> &str;

    /// Delivers one notification.
    ///
    /// # Errors
    ///
    /// [`SinkError`] says whether it is to be tried again.
    fn deliver(&self, notification: &Notification) -> Result<(), SinkError>;

    /// How long one delivery takes at most, for who asks: nothing is stopped after that time. Default: 30 s.
    fn timeout(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// A notification was not delivered. Never has a secret in its text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SinkError {
    /// It may work later: the network, a server that is busy.
    #[error("not delivered, tried again: {message}")]
    Retry {
        /// What happened.
        message: String,
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
    },
    /// It will not work: what was sent is refused.
    #[error("refused: {0}")]
    Refused(String),
    /// The receiver wants no more notifications, ever.
    #[error("the receiver is gone: {0}")]
    Gone(String),
}
