//! How notifications get to callbacks and sinks: a bounded queue and a thread for each, so that a slow one delays nobody else.
//!
//! `outbox` decides what is delivered next, what is tried again and what is given up; `target` is the thread that does it.

mod outbox;
mod target;

pub(super) use target::{Receiver, Target, TargetRef};

/// What has become of the notifications for one receiver: a sink, or `callbacks`, which are all callbacks together.
///
/// Counts are since the beginning. For a counter per receiver and result: [`AlertDeliveryStats::by_result`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlertDeliveryStats {
    /// The sink's name, or `callbacks`.
    pub sink: String,
    /// Notifications that wait, among them those that are tried again later.
    pub queued: u64,
    /// Delivered.
    pub delivered: u64,
    /// Attempts that failed and were followed by another one, or will be.
    pub retried: u64,
    /// Refused by the receiver, for good.
    pub refused: u64,
    /// Given up after an hour.
    pub expired: u64,
    /// Not delivered because 256 others waited, because the receiver is gone, or because the alerts were shut down.
    pub dropped: u64,
    /// Not worth delivering any more: an alert that was over before anybody was told of it.
    pub cancelled: u64,
    /// Whether the receiver wants no more notifications.
    pub gone: bool,
}

impl AlertDeliveryStats {
    /// Each count with its label.
    #[must_use]
    pub const fn by_result(&self) -> [(&'static str, u64); 6] {
        [
            ("delivered", self.delivered),
            ("retried", self.retried),
            ("refused", self.refused),
            ("expired", self.expired),
            ("dropped", self.dropped),
            ("cancelled", self.cancelled),
        ]
    }
}
