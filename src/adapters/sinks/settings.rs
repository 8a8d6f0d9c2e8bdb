//! What is set on every sink: checked when it is built, shared by what is sent.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::http::{Client, Post};
use super::text;
use crate::adapters::secret::Secret;
use crate::alert::{Notification, SinkError};
use crate::error::ConfigErrors;

/// The limits that keep the smallest body that a service accepts, 20 KB, from being exceeded.
pub(super) const MESSAGE_CHARS: usize = 1024;
pub(super) const NAME_BYTES: usize = 200;
const URL_BYTES: usize = 1000;
const LABEL_BYTES: usize = 4096;

/// Labels that sinks set themselves.
const RESERVED: [&str; 4] = ["alertname", "instance", "lane", "severity"];

/// Settings of a sink. From [`SlackSink::builder`](crate::SlackSink::builder) and its like.
///
/// Proxies are taken from the environment: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`; not for addresses of this machine.
/// Certificates are checked against the system's roots.
#[must_use = "nothing is made without `build`"]
pub struct SinkBuilder<S> {
    pub(super) settings: Settings,
    sink: PhantomData<fn() -> S>,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) endpoint: Secret,
    /// Routing keys or signing secrets.
    pub(super) keys: Vec<Secret>,
    pub(super) authorization: Option<Secret>,
    dashboard_url: Option<String>,
    runbook_url: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) timeout: Duration,
    plain_http: bool,
    /// How long Alertmanager believes that an alert fires.
    pub(super) expires_after: Duration,
}

impl<S> SinkBuilder<S> {
    pub(super) fn new(name: &str, endpoint: Secret) -> Self {
        let settings = Settings {
            name: name.to_owned(),
            endpoint,
            keys: Vec::new(),
            authorization: None,
            dashboard_url: None,
            runbook_url: None,
            labels: BTreeMap::new(),
            timeout: Duration::from_secs(15),
            plain_http: false,
            expires_after: Duration::from_secs(12 * 60 * 60),
        };
        Self { settings, sink: PhantomData }
    }

    /// Names the sink in logs and metrics: of several of a kind, each should have its own. Default: the kind, for example
    /// `slack`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where people see more: `{lane}` in it becomes the alert's lane. An `http` or `https` address of at most 1,000 bytes.
    /// Default: none.
    pub fn dashboard_url(mut self, url: impl Into<String>) -> Self {
        self.settings.dashboard_url = Some(url.into());
        self
    }

    /// Where people read what to do: `{lane}` in it becomes the alert's lane. An `http` or `https` address of at most 1,000
    /// bytes. Default: none.
    pub fn runbook_url(mut self, url: impl Into<String>) -> Self {
        self.settings.runbook_url = Some(url.into());
        self
    }

    /// Goes with every notification, for example `team` = `payments`: receivers route by it. Names are letters, digits and
    /// `_`, not a digit first, and none of `alertname`, `instance`, `lane`, `severity`; all together at most 4 KiB. The last
    /// value of a name counts.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(name.into(), value.into());
        self
    }

    /// How long one attempt takes at most, from looking up the host to the end of the answer. Default: 15 s; at most 5
    /// minutes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Allows an `http` address that is not on this machine. Whoever is on the way then reads and changes what is sent,
    /// secrets included: for a network that is trusted, or a proxy that encrypts. Default: not allowed.
    pub fn allow_plain_http(mut self) -> Self {
        self.settings.plain_http = true;
        self
    }
}

impl<S> fmt::Debug for SinkBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Settings {
    /// Notes all that is wrong with what every sink has.
    pub(super) fn check(&self, errors: &mut ConfigErrors) {
        if self.name.is_empty() {
            errors.push("name", &self.name, "must not be empty");
        }
        if let Err(hint) = self.endpoint() {
            errors.push("endpoint", &self.endpoint, hint);
        }
        if let Some(authorization) = &self.authorization {
            match authorization.read() {
                Ok(value) if value.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {}
                Ok(_) => errors.push("authorization", authorization, "must be visible ASCII, for example `Bearer abc`"),
                Err(hint) => errors.push("authorization", authorization, hint),
            }
        }
        for (path, url) in [("dashboard_url", &self.dashboard_url), ("runbook_url", &self.runbook_url)] {
            let Some(url) = url else { continue };
            // A link is only shown: it may be plain HTTP.
            let checked = if url.len() > URL_BYTES { Err("must have at most 1000 bytes") } else { link(url, "lane") };
            if let Err(hint) = checked {
                errors.push(path, url, hint);
            }
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(300) {
            errors.push("timeout", self.timeout, "must be above zero and at most 300s");
        }
        for (name, value) in &self.labels {
            let path = format!("labels[{name:?}]");
            let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if name.is_empty() || !letters || name.as_bytes()[0].is_ascii_digit() {
                errors.push(path, value, "a name is letters, digits and _, not a digit first");
            } else if RESERVED.contains(&name.as_str()) {
                errors.push(path, value, "is set by the sink: use another name");
            } else if value.is_empty() {
                errors.push(path, value, "must not be empty");
            }
        }
        let bytes = serde_json::json!(self.labels).to_string().len();
        if bytes > LABEL_BYTES {
            errors.push("labels", format!("{bytes} bytes"), "must have at most 4096 bytes together, as JSON");
        }
    }

    fn endpoint(&self) -> Result<Endpoint, String> {
        Ok(Endpoint::new(&self.endpoint.read()?, self.plain_http)?)
    }

    /// What `keys` are now.
    pub(super) fn keys(&self) -> Result<Vec<String>, SinkError> {
        self.keys.iter().map(|key| key.read().map_err(not_readable)).collect()
    }

    /// Posts `body`. A secret that can not be read now may be readable at the next try: somebody is replacing it.
    pub(super) fn post(
        &self,
        client: &Client,
        mut headers: Vec<(&'static str, String)>,
        body: &[u8],
        keys: &[String],
    ) -> Result<(), SinkError> {
        let endpoint = self.endpoint().map_err(not_readable)?;
        let mut secrets = keys.to_vec();
        if let Some(authorization) = &self.authorization {
            let value = authorization.read().map_err(not_readable)?;
            // A receiver that complains names the token, not the scheme before it.
            secrets.extend(value.split(' ').next_back().filter(|token| !token.is_empty()).map(str::to_owned));
            headers.push(("authorization", value));
        }
        client.post(&Post { to: &endpoint, headers: &headers, body, secrets: &secrets })
    }

    /// Links of a notification: what they lead to, and where.
    pub(super) fn links(&self, notification: &Notification) -> Vec<(&'static str, String)> {
        let lane = lane(notification);
        [("Dashboard", &self.dashboard_url), ("Runbook", &self.runbook_url)]
            .into_iter()
            .filter_map(|(text, url)| Some((text, link(url.as_ref()?, &lane).ok()?)))
            .collect()
    }

    pub(super) fn dashboard(&self, notification: &Notification) -> Option<String> {
        link(self.dashboard_url.as_ref()?, &lane(notification)).ok()
    }

    pub(super) fn runbook(&self, notification: &Notification) -> Option<String> {
        link(self.runbook_url.as_ref()?, &lane(notification)).ok()
    }
}

/// The lane's name, short enough for every receiver.
pub(super) fn lane(notification: &Notification) -> String {
    text::name(&notification.alert.lane_id, NAME_BYTES)
}

fn link(url: &str, lane: &str) -> Result<String, &'static str> {
    let url = url.replace("{lane}", &text::percent_encoded(lane));
    Endpoint::new(&url, true)?;
    Ok(url)
}

fn not_readable(message: String) -> SinkError {
    SinkError::Retry { message, after: None }
}
