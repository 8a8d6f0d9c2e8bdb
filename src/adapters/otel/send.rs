//! Sends OTLP over HTTP: one request at a time, repeated as OTLP says.
//!
//! 429, 502, 503, 504 and failures of the network are repeated, after what `Retry-After` says or a wait that doubles, until
//! the caller's patience ends or the sender is closed. Everything else is an answer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use thiserror::Error;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::endpoint::Target;
use crate::adapters::http;
use crate::clock::Clock;
use crate::error::ConfigErrors;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Answers are a few bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why an exporter or a tracer was not started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OtlpError {
    /// Settings or variables of the environment are not usable; all problems are listed at once.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The system gave no thread.
    #[error("no thread for OTLP: {0}")]
    Thread(#[source] std::io::Error),
}

/// What has been sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtlpStats {
    /// Requests that the receiver took.
    pub sent: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Requests given up: of metrics, the next one says the same and more; of spans, they are lost.
    pub dropped: u64,
    /// Data points or spans that the receiver refused within requests that it took.
    pub rejected: u64,
    /// What went wrong last, without addresses and keys; none if the last request was taken whole.
    pub last_error: Option<String>,
}

pub(super) struct Sender {
    agent: ureq::Agent,
    url: Uri,
    /// Whether it is on this machine.
    local: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    closed: Mutex<bool>,
    closing: Condvar,
    sent: AtomicU64,
    retries: AtomicU64,
    dropped: AtomicU64,
    rejected: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A request was given up.
#[derive(Debug)]
pub(super) struct GivenUp(pub(super) String);

/// Reads from an answer how many items the receiver did not take, and why.
pub(super) type Rejected = fn(&[u8]) -> Option<(i64, String)>;

enum Answer {
    Taken(Vec<u8>),
    Again { after: Option<Duration>, why: String },
    Refused(String),
}

impl Sender {
    pub(super) fn new(target: Target) -> Self {
        let Target { url, headers, timeout } = target;
        let local = http::is_loopback(url.host().unwrap_or_default());
        Self {
            agent: http::agent(timeout, true),
            local,
            url,
            headers,
            closed: Mutex::new(false),
            closing: Condvar::new(),
            sent: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    /// Sends a message, repeatedly for `patience`. `rejected` reads from the answer how much the receiver did not take, and
    /// why. Blocks.
    pub(super) fn send(&self, message: &[u8], patience: Duration, rejected: Rejected) -> Result<(), GivenUp> {
        let clock = Clock::system();
        let until = clock.now().plus(patience);
        let mut backoff = FIRST_BACKOFF;
        loop {
            let (after, why) = match self.attempt(message) {
                Answer::Taken(body) => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    match rejected(&body) {
                        Some((items, why)) if items > 0 => {
                            self.rejected.fetch_add(items.unsigned_abs(), Ordering::Relaxed);
                            self.failed(format!("the receiver rejected {items} items: {why}"));
                        }
                        _ => self.recovered(),
                    }
                    return Ok(());
                }
                Answer::Refused(why) => return Err(self.give_up(why)),
                Answer::Again { after, why } => (after, why),
            };
            let wait = after.unwrap_or_else(|| jittered(backoff));
            backoff = (backoff * 2).min(MAX_BACKOFF);
            if clock.now().plus(wait) > until || self.is_closed_after(wait) {
                return Err(self.give_up(why));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn attempt(&self, message: &[u8]) -> Answer {
        let mut request = self.agent.post(&self.url).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        // A proxy is for what is elsewhere.
        let answer =
            if self.local { request.config().proxy(None).build().send(message) } else { request.send(message) };
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => return Answer::Again { after: None, why: http::describe(&error) },
        };
        let status = response.status().as_u16();
        if response.status().is_success() {
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
            // Taken is taken: the body only says more.
            return Answer::Taken(body.unwrap_or_default());
        }
        let why = format!("the receiver answered {}", response.status());
        if matches!(status, 429 | 502 | 503 | 504) {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| http::retry_after(value.to_str().ok()?));
            return Answer::Again { after, why };
        }
        Answer::Refused(why)
    }

    pub(super) fn stats(&self) -> OtlpStats {
        OtlpStats {
            sent: self.sent.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }

    /// Ends waits: from now on, each message has one attempt.
    pub(super) fn close(&self) {
        *lock(&self.closed) = true;
        self.closing.notify_all();
    }

    /// Waits; true, early, if the sender is closed.
    pub(super) fn is_closed_after(&self, wait: Duration) -> bool {
        let waited = self.closing.wait_timeout_while(lock(&self.closed), wait, |closed| !*closed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn give_up(&self, why: String) -> GivenUp {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.failed(why.clone());
        GivenUp(why)
    }

    /// Told once, not with every request.
    fn failed(&self, why: String) {
        let before = lock(&self.last_error).replace(why.clone());
        if before.is_none() {
            tracing::warn!(target: "corelane::otlp", host = self.url.host(), error = why, "OTLP is not taken");
        }
    }

    fn recovered(&self) {
        if lock(&self.last_error).take().is_some() {
            tracing::info!(target: "corelane::otlp", host = self.url.host(), "OTLP is taken again");
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("host", &self.url.host()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Half of it to all of it, so that those who failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let random = u64::from_be_bytes(RandomIdGenerator::default().new_span_id().to_bytes());
    wait.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64))
}
