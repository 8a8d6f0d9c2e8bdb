//! Slack: an incoming webhook, Block Kit.

use std::time::Duration;

use serde_json::{Value, json};

use super::http::Client;
use super::settings::{self, MESSAGE_CHARS, SinkBuilder};
use super::text;
use crate::adapters::secret::Secret;
use crate::alert::{AlertLevel, AlertSink, AlertStatus, Notification, SinkError};
use crate::error::ConfigErrors;

const HEADER_CHARS: usize = 150;
const FIELD_CHARS: usize = 2000;
const TEXT_CHARS: usize = 3000;

/// Tells a Slack channel, through an [incoming webhook](https://api.slack.com/messaging/webhooks) of it.
///
/// A notification is one message: level and text, lane, value, threshold, and links. What is shown of a lane or a label is
/// escaped: it can not mention anybody. Slack takes about one message a second and says when to come back.
///
/// ```no_run
/// use corelane::{Secret, SlackSink};
///
/// # fn main() -> Result<(), corelane::ConfigErrors> {
/// let webhook = Secret::from_env("SLACK_WEBHOOK_URL"); // the address is the secret
/// let slack = SlackSink::builder(webhook)
///     .dashboard_url("https://grafana.example.com/d/lanes?var-lane={lane}")
///     .runbook_url("https://wiki.example.com/lanes")
///     .label("service", "checkout")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SlackSink {
    settings: settings::Settings,
    client: Client,
}

impl SlackSink {
    /// A sink for the channel of the webhook at `url`, which is a secret.
    pub fn builder(url: impl Into<Secret>) -> SinkBuilder<Self> {
        SinkBuilder::new("slack", url.into())
    }

    fn message(&self, notification: &Notification) -> Value {
        let alert = &notification.alert;
        let title = format!("{}: {}", standing(notification), alert.message);
        let header = text::slack(&title, HEADER_CHARS);
        let mut section = json!({"type": "section", "fields": fields(notification)});
        if header.ends_with('…') && !title.ends_with('…') {
            section["text"] = mrkdwn(&text::slack(&alert.message, TEXT_CHARS));
        }
        let mut context: Vec<Value> = self
            .settings
            .links(notification)
            .into_iter()
            // What would end the address of a link in Slack's syntax.
            .map(|(name, url)| mrkdwn(&format!("<{}|{name}>", url.replace('&', "&amp;").replace('|', "%7C"))))
            .collect();
        if !self.settings.labels.is_empty() {
            let labels: Vec<_> = self.settings.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            context.push(mrkdwn(&text::slack(&labels.join(" · "), FIELD_CHARS)));
        }
        let mut blocks = vec![json!({"type": "header", "text": {"type": "plain_text", "text": header}}), section];
        if !context.is_empty() {
            blocks.push(json!({"type": "context", "elements": context}));
        }
        json!({"text": text::slack(&title, TEXT_CHARS), "blocks": blocks})
    }
}

impl SinkBuilder<SlackSink> {
    /// Makes the sink.
    ///
    /// # Errors
    ///
    /// All that is wrong with the settings, without a secret in it.
    pub fn build(self) -> Result<SlackSink, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        self.settings.check(&mut errors);
        errors.into_result()?;
        Ok(SlackSink { client: Client::new(self.settings.timeout), settings: self.settings })
    }
}

impl AlertSink for SlackSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        let body = self.message(notification).to_string();
        self.settings.post(&self.client, Vec::new(), body.as_bytes(), &[])
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }
}

fn standing(notification: &Notification) -> &'static str {
    match (notification.status, notification.alert.level) {
        (AlertStatus::Resolved, _) => "✅ Resolved",
        (AlertStatus::Firing, AlertLevel::Info) => "🔵 Info",
        (AlertStatus::Firing, AlertLevel::Warning) => "🟠 Warning",
        (AlertStatus::Firing, AlertLevel::Critical) => "🔴 Critical",
    }
}

fn fields(notification: &Notification) -> Vec<Value> {
    let alert = &notification.alert;
    let since = notification.started_at;
    let mut fields = Vec::new();
    if !alert.lane_id.is_empty() {
        fields.push(field("Lane", &alert.lane_id));
    }
    fields.push(field("Value", &text::number(alert.current_value)));
    fields.push(field("Threshold", &text::number(alert.threshold)));
    fields.push(field("Rule", &notification.rule));
    if !notification.instance.is_empty() {
        fields.push(field("Instance", &notification.instance));
    }
    // Slack shows it in the reader's time zone; what follows the bar is for clients that can not.
    fields.push(mrkdwn(&format!(
        "*Since*\n<!date^{}^{{date_short_pretty}} {{time_secs}}|{}>",
        since.timestamp(),
        text::time(since)
    )));
    if let Some(ended) = notification.ended_at {
        let lasted = (ended - since).num_seconds().max(0);
        fields.push(field("Lasted", &format!("{} h {} min {} s", lasted / 3600, lasted / 60 % 60, lasted % 60)));
    }
    fields
}

fn field(name: &str, value: &str) -> Value {
    mrkdwn(&format!("*{name}*\n{}", text::slack(value, MESSAGE_CHARS)))
}

/// Verbatim: a lane's name that looks like a channel's or a person's is no mention.
fn mrkdwn(text: &str) -> Value {
    json!({"type": "mrkdwn", "text": text, "verbatim": true})
}
