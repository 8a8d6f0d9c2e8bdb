//! Webhooks: any receiver, signed by the Standard Webhooks specification, version 1.0.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac::{self, HMAC_SHA256, Key};
use serde_json::json;

use super::http::Client;
use super::settings::{self, MESSAGE_CHARS, NAME_BYTES, SinkBuilder};
use super::text;
use crate::adapters::secret::Secret;
use crate::alert::{AlertSink, AlertStatus, Notification, SinkError};
use crate::clock;
use crate::error::ConfigErrors;

/// Secrets come with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Tells any HTTP receiver, signed as [Standard Webhooks](https://www.standardwebhooks.com) says, for which there are libraries
/// in most languages.
///
/// The body is JSON: `type` (`corelane.alert.firing` or `corelane.alert.resolved`), `timestamp` (when the alert began to fire, or
/// was resolved), and `data` with `fingerprint`, `status`, `level`, `rule`, `lane`, `message`, `value`, `threshold`,
/// `instance`, `started_at`, `ended_at`, `sequence`, `labels`, `dashboard_url` and `runbook_url`. The header `webhook-id` names
/// the notification, whoever and however often it is delivered: a receiver that has seen it may ignore it.
///
/// ```no_run
/// use corelane::{Secret, WebhookSink};
///
/// # fn main() -> Result<(), corelane::ConfigErrors> {
/// let secret = Secret::from_env("ALERT_SECRET"); // whsec_ and the base64 of 24 to 64 random bytes
/// let old_secret = Secret::from_env("OLD_ALERT_SECRET");
/// let webhook = WebhookSink::builder("https://alerts.example.com/lanes", secret)
///     .also_sign_with(old_secret) // until the receiver knows the new one
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WebhookSink {
    settings: settings::Settings,
    client: Client,
}

impl WebhookSink {
    /// A sink for the receiver at `url`, which may be a secret itself, signing with `secret`: `whsec_` and the base64 of 24 to 64
    /// bytes.
    pub fn builder(url: impl Into<Secret>, secret: impl Into<Secret>) -> SinkBuilder<Self> {
        let mut builder = SinkBuilder::new("webhook", url.into());
        builder.settings.keys.push(secret.into());
        builder
    }

    fn body(&self, notification: &Notification) -> String {
        let alert = &notification.alert;
        let name = |name: &str| text::name(name, NAME_BYTES);
        let status = status(notification);
        let mut body = json!({
            "type": format!("corelane.alert.{status}"),
            "timestamp": text::time(notification.ended_at.unwrap_or(notification.started_at)),
            "data": {
                "fingerprint": name(&notification.fingerprint),
                "status": status,
                "level": alert.level,
                "rule": name(&notification.rule),
                "lane": name(&alert.lane_id),
                "message": text::cut(&text::line(&alert.message), MESSAGE_CHARS),
                "value": alert.current_value,
                "threshold": alert.threshold,
                "instance": name(&notification.instance),
                "started_at": text::time(notification.started_at),
                "ended_at": notification.ended_at.map(text::time),
                "sequence": notification.sequence,
                "labels": self.settings.labels,
            },
        });
        if let Some(url) = self.settings.dashboard(notification) {
            body["data"]["dashboard_url"] = url.into();
        }
        if let Some(url) = self.settings.runbook(notification) {
            body["data"]["runbook_url"] = url.into();
        }
        body.to_string()
    }
}

impl SinkBuilder<WebhookSink> {
    /// Signs with `secret` as well: while a secret is being replaced, receivers know one or the other.
    pub fn also_sign_with(mut self, secret: impl Into<Secret>) -> Self {
        self.settings.keys.push(secret.into());
        self
    }

    /// Sends the header `Authorization`, for a gateway before the receiver: its whole value, for example `Bearer abc`.
    pub fn authorization(mut self, value: impl Into<Secret>) -> Self {
        self.settings.authorization = Some(value.into());
        self
    }

    /// Makes the sink.
    ///
    /// # Errors
    ///
    /// All that is wrong with the settings, without a secret in it.
    pub fn build(self) -> Result<WebhookSink, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        self.settings.check(&mut errors);
        for secret in &self.settings.keys {
            if let Err(hint) = secret.read().and_then(|secret| Ok(signing_key(&secret).map(drop)?)) {
                errors.push("secret", secret, hint);
            }
        }
        errors.into_result()?;
        Ok(WebhookSink { client: Client::new(self.settings.timeout), settings: self.settings })
    }
}

impl AlertSink for WebhookSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        let secrets = self.settings.keys()?;
        let id = id(notification);
        let timestamp = clock::wall_now().timestamp();
        let body = self.body(notification);
        let signed = format!("{id}.{timestamp}.{body}");
        let mut signatures = Vec::new();
        for secret in &secrets {
            let key = signing_key(secret)
                .map_err(|hint| SinkError::Retry { message: format!("the signing secret {hint}"), after: None })?;
            signatures.push(format!("v1,{}", BASE64.encode(hmac::sign(&key, signed.as_bytes()))));
        }
        let headers = vec![
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ];
        self.settings.post(&self.client, headers, body.as_bytes(), &secrets)
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }
}

/// Names the notification. Its start is part of it: an alert that fires again has the same fingerprint and counts from 1.
fn id(notification: &Notification) -> String {
    let Notification { fingerprint, started_at, sequence, .. } = notification;
    let nanos = started_at.timestamp_nanos_opt().unwrap_or_else(|| started_at.timestamp());
    format!("msg_{}", text::hash(&format!("{fingerprint}\n{nanos}\n{sequence}\n{}", status(notification))))
}

fn status(notification: &Notification) -> &'static str {
    match notification.status {
        AlertStatus::Firing => "firing",
        AlertStatus::Resolved => "resolved",
    }
}

fn signing_key(secret: &str) -> Result<Key, &'static str> {
    let encoded = secret.strip_prefix("whsec_").ok_or("must begin with whsec_")?;
    let bytes = BASE64.decode(encoded).map_err(|_| "must be base64 after whsec_")?;
    if !(24..=64).contains(&bytes.len()) {
        return Err("must be the base64 of 24 to 64 bytes");
    }
    Ok(Key::new(HMAC_SHA256, &bytes))
}
