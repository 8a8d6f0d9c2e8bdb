//! PagerDuty: Events API v2.

use std::time::Duration;

use serde_json::{Value, json};

use super::http::Client;
use super::settings::{self, MESSAGE_CHARS, NAME_BYTES, SinkBuilder};
use super::text;
use crate::adapters::secret::Secret;
use crate::alert::{AlertSink, AlertStatus, Notification, SinkError};
use crate::error::ConfigErrors;

const ENDPOINT: &str = "https://events.pagerduty.com/v2/enqueue";
const DEDUP_KEY_BYTES: usize = 255;
/// PagerDuty's keys have this length.
const ROUTING_KEY_BYTES: usize = 32;

/// Tells a PagerDuty service, through an integration for the Events API v2 of it.
///
/// An alert is one incident, however often and at whatever level it is told: its `dedup_key` is the alert's fingerprint, and its
/// end resolves it. Severities are `info`, `warning` and `critical`.
///
/// ```no_run
/// use corelane::{PagerDutySink, Secret};
///
/// # fn main() -> Result<(), corelane::ConfigErrors> {
/// let routing_key = Secret::from_file("/run/secrets/pagerduty");
/// let pager_duty = PagerDutySink::builder(routing_key)
///     .endpoint("https://events.eu.pagerduty.com/v2/enqueue") // accounts in the EU
///     .dashboard_url("https://grafana.example.com/d/lanes?var-lane={lane}")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PagerDutySink {
    settings: settings::Settings,
    client: Client,
}

impl PagerDutySink {
    /// A sink for the service of `routing_key`, which PagerDuty calls integration key: 32 characters.
    pub fn builder(routing_key: impl Into<Secret>) -> SinkBuilder<Self> {
        let mut builder = SinkBuilder::new("pagerduty", ENDPOINT.into());
        builder.settings.keys.push(routing_key.into());
        builder
    }

    fn event(&self, notification: &Notification, routing_key: &str) -> Value {
        let alert = &notification.alert;
        let source = match notification.instance.as_str() {
            "" => "corelane".to_owned(),
            instance => text::name(instance, NAME_BYTES),
        };
        let mut event = json!({
            "routing_key": routing_key,
            "event_action": match notification.status {
                AlertStatus::Firing => "trigger",
                AlertStatus::Resolved => "resolve",
            },
            "dedup_key": text::name(&format!("corelane:{}", notification.fingerprint), DEDUP_KEY_BYTES),
            "payload": {
                "summary": summary(notification),
                "source": source,
                "severity": alert.level.to_string(),
                "timestamp": text::time(notification.ended_at.unwrap_or(notification.started_at)),
                "group": "corelane",
                "class": text::name(&notification.rule, NAME_BYTES),
                "custom_details": {
                    "lane": settings::lane(notification),
                    "value": alert.current_value,
                    "threshold": alert.threshold,
                    "started_at": text::time(notification.started_at),
                    "notification": notification.sequence,
                    "labels": self.settings.labels,
                },
            },
            "client": "corelane",
        });
        if !alert.lane_id.is_empty() {
            event["payload"]["component"] = settings::lane(notification).into();
        }
        if let Some(url) = self.settings.dashboard(notification) {
            event["client_url"] = url.into();
        }
        let links = self.settings.links(notification);
        if !links.is_empty() {
            event["links"] = links.into_iter().map(|(text, href)| json!({"href": href, "text": text})).collect();
        }
        event
    }
}

impl SinkBuilder<PagerDutySink> {
    /// Where events go. Default: PagerDuty's address for accounts in the US.
    pub fn endpoint(mut self, url: impl Into<Secret>) -> Self {
        self.settings.endpoint = url.into();
        self
    }

    /// Makes the sink.
    ///
    /// # Errors
    ///
    /// All that is wrong with the settings, without a secret in it.
    pub fn build(self) -> Result<PagerDutySink, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        self.settings.check(&mut errors);
        for key in &self.settings.keys {
            match key.read() {
                Ok(value) if value.len() == ROUTING_KEY_BYTES => {}
                Ok(_) => errors.push("routing_key", key, "must have 32 characters"),
                Err(hint) => errors.push("routing_key", key, hint),
            }
        }
        errors.into_result()?;
        Ok(PagerDutySink { client: Client::new(self.settings.timeout), settings: self.settings })
    }
}

impl AlertSink for PagerDutySink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        let keys = self.settings.keys()?;
        let body = self.event(notification, keys.first().map_or("", String::as_str)).to_string();
        self.settings.post(&self.client, Vec::new(), body.as_bytes(), &keys)
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }
}

/// Not empty: PagerDuty refuses that.
fn summary(notification: &Notification) -> String {
    match text::line(&notification.alert.message).trim() {
        "" => text::name(&notification.rule, NAME_BYTES),
        message => text::cut(message, MESSAGE_CHARS),
    }
}
