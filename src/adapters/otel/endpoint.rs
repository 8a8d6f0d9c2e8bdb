//! Where OTLP goes to, and as whom: settings, and the environment for what is not set.

use std::fmt;
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::error::ConfigErrors;

const DEFAULT_URL: &str = "http://localhost:4318";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const BASE: &str = "OTEL_EXPORTER_OTLP";

/// Where OTLP goes to, by HTTP and protobuf, and as whom. What is not set comes from the environment, as OpenTelemetry says:
/// `OTEL_EXPORTER_OTLP_ENDPOINT`, `_HEADERS` and `_TIMEOUT` (milliseconds), each also with `TRACES_` or `METRICS_` before
/// its last word; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
///
/// ```
/// use corelane::OtlpEndpoint;
///
/// let endpoint = OtlpEndpoint::new("http://localhost:4318").service_name("mail").header("x-tenant", "a3s");
/// # let _ = endpoint;
/// ```
///
/// A text is an endpoint, too: `OtelTracer::otlp("http://localhost:4318")`.
#[derive(Clone, Default)]
pub struct OtlpEndpoint {
    url: Option<String>,
    headers: Vec<(String, String)>,
    timeout: Option<Duration>,
    service_name: Option<String>,
    attributes: Vec<(String, String)>,
}

/// What is sent: each kind has a path and variables of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Metrics,
    Traces,
}

impl Signal {
    const fn path(self) -> &'static str {
        match self {
            Self::Metrics => "/v1/metrics",
            Self::Traces => "/v1/traces",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Metrics => "METRICS",
            Self::Traces => "TRACES",
        }
    }
}

/// An endpoint with everything known.
pub(super) struct Target {
    pub(super) url: Uri,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
}

impl OtlpEndpoint {
    /// A receiver's base URL, to which `/v1/traces` and `/v1/metrics` are added. `http` or `https`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..Self::default() }
    }

    /// Everything from the environment; without it, `http://localhost:4318`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::default()
    }

    /// Sends this header with every request: a key of the receiver, for example. Values are never shown or logged. Replaces
    /// one of the same name from the environment.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// How long one request may take, the connection included. Default: 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The resource's `service.name`. Default: `unknown_service:` and the program's name.
    #[must_use]
    pub fn service_name(mut self, name: impl Into<String>) -> Self {
        self.service_name = Some(name.into());
        self
    }

    /// Another attribute of the resource. `service.instance.id` is random unless it is set.
    #[must_use]
    pub fn resource_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.push((key.into(), value.into()));
        self
    }

    pub(super) fn resource(&self) -> Resource {
        let attributes = self.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let mut builder = Resource::builder().with_attributes(attributes.collect::<Vec<_>>());
        if let Some(name) = &self.service_name {
            builder = builder.with_service_name(name.clone());
        }
        let resource = builder.build();
        let instance = Key::from_static_str("service.instance.id");
        if resource.get_ref(&instance).is_some() {
            return resource;
        }
        // Streams of two processes must differ, or the receiver takes them for one whose counts jump.
        let id = RandomIdGenerator::default().new_trace_id().to_string();
        let id = format!("{}-{}-4{}-8{}-{}", &id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..]);
        let known = resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let known = known.collect::<Vec<_>>();
        Resource::builder_empty().with_attributes(known).with_attribute(KeyValue::new(instance, id)).build()
    }

    pub(super) fn target(&self, signal: Signal) -> Result<Target, ConfigErrors> {
        self.target_in(signal, &|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// With the environment passed in.
    pub(super) fn target_in(
        &self,
        signal: Signal,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Target, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let of_signal = |word: &str| format!("{BASE}_{}_{word}", signal.variable());
        let of_all = |word: &str| format!("{BASE}_{word}");
        let either = |word: &str| {
            let names = [of_signal(word), of_all(word)];
            names.into_iter().find_map(|name| env(&name).map(|value| (name, value)))
        };

        let (place, url) = if let Some(url) = &self.url {
            ("endpoint".to_owned(), joined(url, signal))
        } else if let Some(url) = env(&of_signal("ENDPOINT")) {
            (of_signal("ENDPOINT"), url.trim().to_owned())
        } else if let Some(url) = env(&of_all("ENDPOINT")) {
            (of_all("ENDPOINT"), joined(&url, signal))
        } else {
            ("endpoint".to_owned(), joined(DEFAULT_URL, signal))
        };
        if self.url.is_none()
            && let Some((name, protocol)) = either("PROTOCOL")
            && protocol.trim() != "http/protobuf"
        {
            errors.push(name, &protocol, "only http/protobuf is spoken: set the endpoint of the receiver's HTTP port");
        }
        let parsed = url.parse::<Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
        });
        if parsed.is_none() {
            // The value may hold a password.
            errors.push(place, "…", "a URL like http://localhost:4318 is expected, with http or https");
        }

        let mut headers = Vec::new();
        let mut header = |place: &str, name: &str, value: &str, errors: &mut ConfigErrors| {
            let (Ok(key), Ok(content)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
                return errors.push(
                    place,
                    name,
                    "a header's name is letters, digits and hyphens, and its value has no control characters",
                );
            };
            headers.retain(|(known, _)| *known != key);
            headers.push((key, content));
        };
        for name in [of_all("HEADERS"), of_signal("HEADERS")] {
            for entry in env(&name).iter().flat_map(|list| list.split(',')).filter(|entry| !entry.trim().is_empty()) {
                match entry.split_once('=') {
                    Some((key, value)) => header(&name, key.trim(), &percent_decoded(value.trim()), &mut errors),
                    None => errors.push(&name, "…", "name=value, separated by commas, is expected"),
                }
            }
        }
        for (key, value) in &self.headers {
            header("header", key, value, &mut errors);
        }

        let timeout = self.timeout.unwrap_or_else(|| match either("TIMEOUT") {
            None => DEFAULT_TIMEOUT,
            Some((name, value)) => value.trim().parse().map(Duration::from_millis).unwrap_or_else(|_| {
                errors.push(name, &value, "a number of milliseconds is expected");
                DEFAULT_TIMEOUT
            }),
        });
        if timeout.is_zero() {
            errors.push("timeout", timeout, "must be more than zero");
        }
        match parsed {
            Some(url) if errors.problems().is_empty() => Ok(Target { url, headers, timeout }),
            _ => Err(errors),
        }
    }
}

impl From<&str> for OtlpEndpoint {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for OtlpEndpoint {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl fmt::Debug for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpEndpoint")
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("timeout", &self.timeout)
            .field("service_name", &self.service_name)
            .finish_non_exhaustive()
    }
}

fn joined(base: &str, signal: Signal) -> String {
    format!("{}{}", base.trim().trim_end_matches('/'), signal.path())
}

/// As in URLs; what is not an escape stays.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let escape = escape.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if let Some(byte) = escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
