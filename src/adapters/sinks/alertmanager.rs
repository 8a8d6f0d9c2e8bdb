//! Alertmanager: API v2.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::http::Client;
use super::settings::{self, MESSAGE_CHARS, NAME_BYTES, SinkBuilder};
use super::text;
use crate::adapters::secret::Secret;
use crate::alert::{AlertLevel, AlertSink, AlertStatus, Notification, SinkError};
use crate::clock;
use crate::error::ConfigErrors;

/// Alerts whose level is remembered: more at once are not expected, and forgotten ones end by themselves.
const REMEMBERED: usize = 10_000;

/// Tells a Prometheus Alertmanager, which then groups, routes and silences.
///
/// An alert has the labels `alertname` (the rule), `lane`, `instance`, `severity` and those of
/// [`label`](SinkBuilder::label); the annotations `summary`, `value`, `threshold`, `dashboard_url` and `runbook_url`. At another
/// level it is another alert, since `severity` is what routes go by: the one before is resolved with it.
///
/// Of a cluster, every member is told: one sink each, with a [`name`](SinkBuilder::name) of its own.
///
/// ```
/// use corelane::AlertmanagerSink;
///
/// # fn main() -> Result<(), corelane::ConfigErrors> {
/// let alertmanager = AlertmanagerSink::builder("http://alertmanager:9093")
///     .allow_plain_http() // within the cluster's network
///     .label("team", "payments")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AlertmanagerSink {
    settings: settings::Settings,
    client: Client,
    /// The level that each firing alert was last told at, by fingerprint.
    told: Mutex<HashMap<String, AlertLevel>>,
}

impl AlertmanagerSink {
    /// A sink for the Alertmanager at `url`: its address without `/api/v2`, with the path that it is served under, if any.
    pub fn builder(url: impl AsRef<str>) -> SinkBuilder<Self> {
        let url = format!("{}/api/v2/alerts", url.as_ref().trim_end_matches('/'));
        SinkBuilder::new("alertmanager", url.into())
    }

    fn alert(&self, notification: &Notification, level: AlertLevel, ends: DateTime<Utc>) -> Value {
        let alert = &notification.alert;
        let mut labels = json!(self.settings.labels);
        labels["alertname"] = text::name(&notification.rule, NAME_BYTES).into();
        labels["severity"] = level.to_string().into();
        let mut annotations = json!({
            "summary": text::cut(&text::line(&alert.message), MESSAGE_CHARS),
            "value": text::number(alert.current_value),
            "threshold": text::number(alert.threshold),
        });
        // Alertmanager has no empty values.
        if !alert.lane_id.is_empty() {
            labels["lane"] = settings::lane(notification).into();
        }
        if !notification.instance.is_empty() {
            labels["instance"] = text::name(&notification.instance, NAME_BYTES).into();
        }
        if let Some(url) = self.settings.runbook(notification) {
            annotations["runbook_url"] = url.into();
        }
        let starts = notification.started_at;
        let mut out = json!({
            "labels": labels,
            "annotations": annotations,
            "startsAt": text::time(starts),
            "endsAt": text::time(ends.max(starts)),
        });
        if let Some(url) = self.settings.dashboard(notification) {
            out["annotations"]["dashboard_url"] = url.clone().into();
            out["generatorURL"] = url.into();
        }
        out
    }
}

impl SinkBuilder<AlertmanagerSink> {
    /// Sends the header `Authorization`: its whole value, for example `Bearer abc`.
    pub fn authorization(mut self, value: impl Into<Secret>) -> Self {
        self.settings.authorization = Some(value.into());
        self
    }

    /// How long an alert is believed to fire after it was told, should this process be gone and never say that it is resolved.
    /// Must be longer than the alerts' repeat interval: else Alertmanager takes alerts that still fire for resolved. Default:
    /// 12 h; at least a minute, at most a year.
    pub fn expires_after(mut self, after: Duration) -> Self {
        self.settings.expires_after = after;
        self
    }

    /// Makes the sink.
    ///
    /// # Errors
    ///
    /// All that is wrong with the settings, without a secret in it.
    pub fn build(self) -> Result<AlertmanagerSink, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        self.settings.check(&mut errors);
        let after = self.settings.expires_after;
        if !(Duration::from_secs(60)..=Duration::from_secs(365 * 24 * 60 * 60)).contains(&after) {
            errors.push("expires_after", after, "must be at least a minute and at most a year");
        }
        errors.into_result()?;
        let client = Client::new(self.settings.timeout);
        Ok(AlertmanagerSink { client, settings: self.settings, told: Mutex::default() })
    }
}

impl AlertSink for AlertmanagerSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        let now = clock::wall_now();
        let (fingerprint, level) = (&notification.fingerprint, notification.alert.level);
        let ends = match notification.status {
            AlertStatus::Firing => now + TimeDelta::from_std(self.settings.expires_after).unwrap_or_default(),
            AlertStatus::Resolved => notification.ended_at.unwrap_or(now),
        };
        let mut alerts = vec![self.alert(notification, level, ends)];
        let before = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(fingerprint).copied();
        if let Some(before) = before.filter(|before| *before != level) {
            alerts.push(self.alert(notification, before, ends.min(now)));
        }
        self.settings.post(&self.client, Vec::new(), Value::from(alerts).to_string().as_bytes(), &[])?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if notification.status == AlertStatus::Resolved {
            told.remove(fingerprint);
        } else if told.len() < REMEMBERED || told.contains_key(fingerprint) {
            told.insert(fingerprint.clone(), level);
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }
}
