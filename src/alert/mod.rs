//! Alerts: rules over the queues' numbers, and who is told when one begins or ceases to hold.
//!
//! | file | what it knows |
//! |---|---|
//! | `rule` | what is asked: conditions, thresholds, for how long |
//! | `evaluation` | what a rule finds in the readings of its window: a number |
//! | `state` | when an alert fires, changes its level and is resolved; when it is told. No clock, no thread |
//! | `engine` | the alerts of all rules and lanes, silences, history |
//! | `delivery` | queues and threads: one for callbacks, one per sink |
//! | `manager` | what users see |
//!
//! A reading is judged on the thread that made it, and nobody's code is called there: notifications go through queues.

mod config;
mod delivery;
mod engine;
mod evaluation;
mod manager;
mod notification;
mod rule;
mod state;

pub use config::{LatencyAlertConfig, QueueDepthAlertConfig};
pub use delivery::AlertDeliveryStats;
pub use engine::{AlertMatcher, Silence, SilenceId};
pub use manager::{AlertCallback, AlertManager};
pub use notification::{Alert, AlertLevel, AlertSink, AlertStatus, Notification, SinkError};
pub use rule::{AlertCondition, AlertRule, AlertThreshold};
