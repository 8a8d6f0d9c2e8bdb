//! One attempt over HTTP, and what its outcome means.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::DateTime;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::endpoint::Endpoint;
use super::secret::REDACTED;
use super::text;
use crate::alert::SinkError;
use crate::clock;

/// What is read of an answer, and what is told of it.
const READ_BYTES: u64 = 4096;
const TOLD_CHARS: usize = 200;

/// A receiver that wants to be left alone for longer has made a mistake.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// What is posted, as JSON.
pub(super) struct Post<'a> {
    pub(super) to: &'a Endpoint,
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) body: &'a [u8],
    /// What else the receiver knows and nobody else may.
    pub(super) secrets: &'a [String],
}

/// Makes attempts. Each has a connection of its own: notifications are rare, and one that was kept would mostly be dead.
pub(super) struct Client {
    agent: ureq::Agent,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(timeout: Duration) -> Self {
        // The provider is named, because one that an application has installed for the process, or has not, is no business of
        // ours. The roots are the system's: an organisation's own are among them.
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("corelane/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Self { agent: config.into(), timeout }
    }

    /// One attempt.
    pub(super) fn post(&self, post: &Post<'_>) -> Result<(), SinkError> {
        let mut request = self.agent.post(&post.to.url).header("content-type", "application/json");
        for (name, value) in post.headers {
            request = request.header(*name, value);
        }
        let answer = if post.to.loopback {
            request.config().proxy(None).build().send(post.body)
        } else {
            request.send(post.body)
        };
        let told = |what: &str| format!("{}: {}", post.to.shown(), post.without_secrets(what));
        match answer {
            Ok(mut answer) => {
                let status = answer.status().as_u16();
                if (200..300).contains(&status) {
                    return Ok(());
                }
                let after = answer.headers().get("retry-after").and_then(|value| wait(value.to_str().ok()?));
                let mut said = Vec::new();
                // What came until it broke off is good enough for a message.
                _ = answer.body_mut().as_reader().take(READ_BYTES).read_to_end(&mut said);
                judge(status, after, |meaning| {
                    let said = text::line(String::from_utf8_lossy(&said).trim());
                    match said.as_str() {
                        "" => told(&format!("{status}{meaning}")),
                        said => told(&format!("{status}{meaning}: {said}")),
                    }
                })
            }
            Err(error) => Err(SinkError::Retry { message: told(&self.describe(&error)), after: None }),
        }
    }

    /// What went wrong, without an address: those of the client's errors have it in full.
    fn describe(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::Timeout(_) => format!("no answer within {:?}", self.timeout),
            ureq::Error::HostNotFound => "host not found".to_owned(),
            ureq::Error::ConnectionFailed => "no connection".to_owned(),
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::Rustls(error) => format!("TLS: {error}"),
            ureq::Error::Tls(error) => format!("TLS: {error}"),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => "the answer is not HTTP".to_owned(),
            ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => "no way through the proxy".to_owned(),
            _ => "the request failed".to_owned(),
        }
    }
}

/// Without the agent: that knows the proxy's password.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Post<'_> {
    /// `text` without secrets, and short. Cut last: a part of a secret would not be found.
    fn without_secrets(&self, text: &str) -> String {
        let text = self.to.redact(text);
        let text = self.secrets.iter().fold(text, |text, secret| text.replace(secret, REDACTED));
        text::cut(&text, TOLD_CHARS)
    }
}

/// What a status other than success means.
fn judge(status: u16, after: Option<Duration>, told: impl Fn(&str) -> String) -> Result<(), SinkError> {
    Err(match status {
        // 300 to 399 with an address elsewhere: whoever gets to answer could send our alerts anywhere.
        300..400 => SinkError::Refused(told(" (redirects are not followed: give the address that it leads to)")),
        410 => SinkError::Gone(told("")),
        408 | 425 | 429 | 500.. => SinkError::Retry { message: told(""), after },
        _ => SinkError::Refused(told("")),
    })
}

/// What `Retry-After` asks for: seconds, or a date.
fn wait(value: &str) -> Option<Duration> {
    let value = value.trim();
    let wait = if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        value.parse().map_or(LONGEST_WAIT, Duration::from_secs)
    } else {
        clock::until_wall(SystemTime::from(DateTime::parse_from_rfc2822(value).ok()?))
    };
    Some(wait.min(LONGEST_WAIT))
}
