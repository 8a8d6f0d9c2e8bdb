//! One attempt over HTTP, and what its outcome means.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::text;
use crate::adapters::http;
use crate::adapters::secret::REDACTED;
use crate::alert::SinkError;

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
        Self { agent: http::agent(timeout, false), timeout }
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
                let after =
                    answer.headers().get("retry-after").and_then(|value| http::retry_after(value.to_str().ok()?));
                let after = after.map(|after| after.min(LONGEST_WAIT));
                let mut said = Vec::new();
                // What came until it broke off is good enough for a message.
                _ = answer.body_mut().as_reader().take(READ_BYTES).read_to_end(&mut said);
                Err(judge(status, after, |meaning| {
                    let said = text::line(String::from_utf8_lossy(&said).trim());
                    match said.as_str() {
                        "" => told(&format!("{status}{meaning}")),
                        said => told(&format!("{status}{meaning}: {said}")),
                    }
                }))
            }
            Err(error) => {
                let why = match error {
                    ureq::Error::Timeout(_) => format!("no answer within {:?}", self.timeout),
                    error => http::describe(&error),
                };
                Err(SinkError::Retry { message: told(&why), after: None })
            }
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
fn judge(status: u16, after: Option<Duration>, told: impl Fn(&str) -> String) -> SinkError {
    match status {
        // 300 to 399 with an address elsewhere: whoever gets to answer could send our alerts anywhere.
        300..400 => SinkError::Refused(told(" (redirects are not followed: give the address that it leads to)")),
        410 => SinkError::Gone(told("")),
        408 | 425 | 429 | 500.. => SinkError::Retry { message: told(""), after },
        _ => SinkError::Refused(told("")),
    }
}
