//! Sinks of alerts: Slack, PagerDuty, signed webhooks, Alertmanager.
//!
//! `settings` is what is set on all of them, and checked; `http` makes the one attempt and judges its answer; each service has a
//! file that says what is sent to it. Retries and order are the alert engine's. `secret` and `endpoint` see to it that no
//! secret gets into a text.

mod alertmanager;
mod endpoint;
mod http;
mod pager_duty;
mod settings;
mod slack;
mod text;
mod webhook;

pub use alertmanager::AlertmanagerSink;
pub use pager_duty::PagerDutySink;
pub use settings::SinkBuilder;
pub use slack::SlackSink;
pub use webhook::WebhookSink;
