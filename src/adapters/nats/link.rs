//! One question and its answer: everything that is asked of the server goes through here.
//!
//! A [`Call`] has a time by which it is over. Within it, what was not answered is asked again: each question is one that
//! changes nothing when it is asked twice. Writes are such by an id of their own, which the server remembers.

use std::fmt;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap, Message, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::DateTime;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::connect::{NO_JETSTREAM, Sight};
use crate::adapters::remote::Backoff;
use crate::clock::Tick;
use crate::error::DistributedError;
use crate::executor::now;

/// An answer that takes longer has been lost: the server may have been killed.
const ANSWER: Duration = Duration::from_secs(3);

/// After so long without a message it is asked why.
const SILENCE: Duration = Duration::from_millis(300);

/// The connection, shared by all calls of a handle.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    server: String,
    timeout: Duration,
    seen: watch::Receiver<Sight>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}

/// One call of the queue: with all its questions, it is over at some time.
#[derive(Clone, Debug)]
pub(super) struct Call {
    link: Link,
    begun: Tick,
    give_up: Tick,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is there, at this place of its stream.
    At(u64),
    /// The subject has changed since it was read: nothing was written.
    Changed,
}

/// What was written, and when by the server's clock: in nanoseconds since 1970.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) time: i64,
    pub(super) body: Vec<u8>,
}

/// What the server says when it does not do it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    code: u16,
    #[serde(default, rename = "err_code")]
    pub(super) number: u32,
    #[serde(default)]
    description: String,
}

/// Numbers of refusals, of the server's `errors.json`.
pub(super) mod number {
    pub(in super::super) const CONSUMER_NOT_FOUND: u32 = 10014;
    pub(in super::super) const NO_MESSAGE: u32 = 10037;
    pub(in super::super) const STREAM_EXISTS: u32 = 10058;
    /// With the subjects of another stream.
    pub(in super::super) const OVERLAP: u32 = 10065;
    /// More servers than there are, or not in a cluster.
    pub(in super::super) const TOO_FEW_SERVERS: [u32; 2] = [10005, 10074];
    pub(in super::super) const WRONG_LAST: [u32; 2] = [10071, 10164];
    /// Without an account for it, or without it at all.
    pub(in super::super) const NO_JETSTREAM: [u32; 2] = [10039, 10076];
    /// Of memory, of storage, of the account, of the stream.
    pub(in super::super) const FULL: [u32; 6] = [10002, 10023, 10028, 10047, 10077, 10122];
    /// Not now: there is no leader, or it is another one by now; the stream or the consumer is offline.
    pub(in super::super) const PASSING: [u32; 4] = [10008, 10009, 10118, 10119];
    /// Not now, and not later: of no cluster, without an account, without a feature.
    pub(in super::super) const LASTING: [u32; 3] = [10010, 10035, 10036];
    /// The sequence that is to be removed is not there.
    pub(in super::super) const NOT_REMOVED: [u32; 2] = [10043, 10057];
}

impl Link {
    pub(super) fn new(client: Client, server: String, timeout: Duration, seen: watch::Receiver<Sight>) -> Self {
        Self { client, server, timeout, seen }
    }

    pub(super) fn call(&self) -> Call {
        let begun = now();
        Call { link: self.clone(), begun, give_up: begun.plus(self.timeout) }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Why there is no connection, if there is none.
    pub(super) fn down(&self) -> Option<String> {
        self.seen.borrow().down.clone()
    }

    /// Returns when there is a connection again, after there was none.
    pub(super) async fn back(&self) -> bool {
        let mut seen = self.seen.clone();
        lost(&mut seen).await;
        seen.wait_for(|sight| sight.down.is_none()).await.is_ok()
    }

    /// Tells whoever listens. Nobody may, and nobody is waited for.
    pub(super) async fn tell(&self, subject: String) {
        // What is not told is found by looking.
        let _ = self.client.publish(subject, Bytes::new()).await;
    }
}

impl Call {
    /// Asks until there is an answer, or the time is over.
    pub(super) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Message, DistributedError> {
        let mut backoff = Backoff::new();
        let mut sent = false;
        let mut seen = self.link.seen.clone();
        let mut cause = String::new();
        loop {
            let left = self.give_up.since(now());
            if left.is_zero() {
                return Err(self.given_up(sent, cause));
            }
            // Without a connection the client would keep the question, and ask it whenever there is one again.
            let down = seen.borrow_and_update().down.clone();
            if let Some(why) = down {
                cause = why;
                if !matches!(tokio::time::timeout(left, seen.changed()).await, Ok(Ok(()))) {
                    return Err(self.given_up(sent, cause));
                }
                continue;
            }
            let mut request = Request::new().payload(body.clone()).timeout(Some(left.min(ANSWER)));
            if let Some(headers) = headers.clone() {
                request = request.headers(headers);
            }
            let answer = tokio::select! {
                answer = self.link.client.send_request(subject.to_owned(), request) => Some(answer),
                () = lost(&mut seen) => None,
            };
            match answer {
                Some(Ok(message)) => match passing(&message.payload) {
                    None => return Ok(message),
                    Some(why) => cause = why,
                },
                Some(Err(error)) => match error.kind() {
                    RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                        return Err(self.server_says(&error.to_string()));
                    }
                    // The server itself, or the part of it that is asked, is not there yet, or any more.
                    RequestErrorKind::NoResponders => "nobody answers there".clone_into(&mut cause),
                    _ => {
                        sent = true;
                        cause = error.to_string();
                    }
                },
                None => {
                    sent = true;
                    "the connection was lost".clone_into(&mut cause);
                }
            }
            tokio::time::sleep(backoff.wait().min(self.give_up.since(now()))).await;
        }
    }

    fn given_up(&self, sent: bool, cause: String) -> DistributedError {
        let server = self.link.server.clone();
        let cause = if cause.is_empty() { "it has not answered in time".to_owned() } else { cause };
        // Said beside the answers: which question it was about, it does not tell.
        let denied = self.link.seen.borrow().denied.clone();
        if let Some((_, cause)) = denied.filter(|(when, _)| *when >= self.begun) {
            return DistributedError::Refused { server, cause };
        }
        if sent {
            DistributedError::OutcomeUnknown { server, cause }
        } else {
            DistributedError::Unavailable { server, cause }
        }
    }

    pub(super) fn server_says(&self, cause: &str) -> DistributedError {
        DistributedError::Server { server: self.link.server.clone(), cause: cause.to_owned() }
    }

    /// What a refusal means that nothing was expected of.
    pub(super) fn refused(&self, refusal: &Refusal) -> DistributedError {
        let server = self.link.server.clone();
        if number::NO_JETSTREAM.contains(&refusal.number) {
            return DistributedError::Unsuitable { server, problem: NO_JETSTREAM.to_owned() };
        }
        if number::FULL.contains(&refusal.number) {
            return DistributedError::Full(format!("{server} says: {}", refusal.description));
        }
        if number::TOO_FEW_SERVERS.contains(&refusal.number) {
            let problem = format!("it has fewer servers than replicas are asked for: {}", refusal.description);
            return DistributedError::Unsuitable { server, problem };
        }
        let cause = format!("{} ({}, {})", refusal.description, refusal.code, refusal.number);
        DistributedError::Server { server, cause }
    }

    /// Asks JetStream, which answers in JSON.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        what: &str,
        question: &Value,
    ) -> Result<Result<T, Refusal>, DistributedError> {
        let body = if question.is_null() { Bytes::new() } else { question.to_string().into() };
        let message = self.ask(&format!("$JS.API.{what}"), None, body).await?;
        self.answer(&message)
    }

    fn answer<T: DeserializeOwned>(&self, message: &Message) -> Result<Result<T, Refusal>, DistributedError> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<Refusal>,
        }
        let strange = |error: serde_json::Error| self.server_says(&format!("its answer is not understood: {error}"));
        let Answer { error } = serde_json::from_slice(&message.payload).map_err(strange)?;
        match error {
            Some(refusal) => Ok(Err(refusal)),
            None => Ok(Ok(serde_json::from_slice(&message.payload).map_err(strange)?)),
        }
    }

    /// Writes, if the last record of the subject is the one that is expected: none by 0. Without an expectation, in any case.
    pub(super) async fn put(
        &self,
        subject: &str,
        expected: Option<u64>,
        body: Bytes,
    ) -> Result<Written, DistributedError> {
        self.put_as(&uuid::Uuid::now_v7().to_string(), subject, expected, body).await
    }

    /// As [`Call::put`], under an id: of two with the same one, within the stream's window for that, the second is not written, and
    /// answered as the first was.
    pub(super) async fn put_as(
        &self,
        id: &str,
        subject: &str,
        expected: Option<u64>,
        body: Bytes,
    ) -> Result<Written, DistributedError> {
        #[derive(Deserialize)]
        struct Done {
            seq: u64,
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
        }
        let message = self.ask(subject, Some(headers), body).await?;
        match self.answer::<Done>(&message)? {
            Ok(done) => Ok(Written::At(done.seq)),
            Err(refusal) if number::WRONG_LAST.contains(&refusal.number) => Ok(Written::Changed),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// The last record of a subject.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Record>, DistributedError> {
        self.record(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The record at a place.
    pub(super) async fn at(&self, stream: &str, sequence: u64) -> Result<Option<Record>, DistributedError> {
        self.record(stream, &json!({ "seq": sequence })).await
    }

    /// The first record of such a subject that is at this place or behind it.
    pub(super) async fn next(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<Record>, DistributedError> {
        self.record(stream, &json!({ "seq": from, "next_by_subj": subject })).await
    }

    async fn record(&self, stream: &str, question: &Value) -> Result<Option<Record>, DistributedError> {
        #[derive(Deserialize)]
        struct Found {
            message: Raw,
        }
        #[derive(Deserialize)]
        struct Raw {
            subject: String,
            seq: u64,
            #[serde(default)]
            data: String,
            time: String,
        }
        let found =
            self.api::<Found>(&format!("STREAM.MSG.GET.{stream}"), question).await.map_err(DistributedError::read)?;
        match found {
            Ok(Found { message: Raw { subject, seq, data, time } }) => {
                let body = STANDARD.decode(data).map_err(|error| self.server_says(&format!("a record: {error}")))?;
                let time = DateTime::parse_from_rfc3339(&time).ok().and_then(|time| time.timestamp_nanos_opt());
                let time = time.ok_or_else(|| self.server_says("a record without a time"))?;
                Ok(Some(Record { sequence: seq, subject, time, body }))
            }
            Err(refusal) if refusal.number == number::NO_MESSAGE => Ok(None),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// Removes the record at a place, if it is still there.
    pub(super) async fn remove(&self, stream: &str, sequence: u64) -> Result<(), DistributedError> {
        // Without overwriting what is on the disk: nobody asked for secrecy, and it costs two writes.
        let question = json!({ "seq": sequence, "no_erase": true });
        match self.api::<Value>(&format!("STREAM.MSG.DELETE.{stream}"), &question).await? {
            Ok(_) => Ok(()),
            Err(refusal) if number::NOT_REMOVED.contains(&refusal.number) => Ok(()),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// Says something of a delivery, and waits until the server has heard it.
    pub(super) async fn acknowledge(&self, delivery: &str, word: &str) -> Result<(), DistributedError> {
        self.ask(delivery, None, Bytes::copy_from_slice(word.as_bytes())).await.map(drop)
    }

    /// As [`Call::acknowledge`], of what does no harm when it is not heard: not waited for.
    pub(super) async fn say(&self, delivery: &str, word: String) {
        let _ = self.link.client.publish(delivery.to_owned(), word.into()).await;
    }

    /// Takes up to so many messages that are there now.
    ///
    /// Not asked again: the messages of an answer that was lost come back when their time is over.
    pub(super) async fn pull(&self, stream: &str, consumer: &str, max: usize) -> Result<Pulled, DistributedError> {
        let client = &self.link.client;
        let mut seen = self.link.seen.clone();
        let down = seen.borrow_and_update().down.clone();
        if let Some(cause) = down {
            return Err(self.given_up(false, cause));
        }
        let lost_now = |cause: &str| self.given_up(false, cause.to_owned());
        let inbox = client.new_inbox();
        let mut inbox_messages = client.subscribe(inbox.clone()).await.map_err(|error| lost_now(&error.to_string()))?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let question = json!({ "batch": max, "no_wait": true }).to_string();
        let published = client.publish_with_reply(subject, inbox, question.into()).await;
        published.map_err(|error| lost_now(&error.to_string()))?;
        let mut messages = Vec::new();
        let mut kept_waiting = false;
        let give_up = now().plus(ANSWER);
        while messages.len() < max {
            let message = tokio::select! {
                message = inbox_messages.next() => message,
                () = tokio::time::sleep(SILENCE) => {
                    if self.keeps_waiting(stream, consumer).await? {
                        kept_waiting = true;
                        break;
                    }
                    if now() < give_up {
                        continue;
                    }
                    None
                }
                () = lost(&mut seen) => None,
            };
            match message {
                Some(message) if message.status.is_none() => messages.push(message),
                // There are no more, or none to be had just now.
                Some(message) if [404, 408, 409].contains(&message.status.map_or(0, |status| status.as_u16())) => break,
                Some(message) if messages.is_empty() => {
                    let status = message.status.map_or(0, |status| status.as_u16());
                    let why = message.description.unwrap_or_default();
                    return match status {
                        503 => Err(lost_now("nobody answers there")),
                        _ => Err(self.server_says(&format!("{status} {why}"))),
                    };
                }
                None if messages.is_empty() => return Err(lost_now("the connection was lost")),
                _ => break,
            }
        }
        Ok(Pulled { messages, kept_waiting })
    }
}

/// What a consumer has given.
pub(super) struct Pulled {
    pub(super) messages: Vec<Message>,
    /// It has kept the question waiting, although nobody had asked it to.
    pub(super) kept_waiting: bool,
}

impl Call {
    /// Whether the consumer keeps a question waiting, although nobody asks it to: nats-server 2.9 counts messages that were removed
    /// before they were delivered, and waits for them. Then there are none.
    async fn keeps_waiting(&self, stream: &str, consumer: &str) -> Result<bool, DistributedError> {
        #[derive(Deserialize)]
        struct Info {
            num_waiting: usize,
        }
        let info = self.api::<Info>(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await;
        match info.map_err(DistributedError::read)? {
            Ok(info) => Ok(info.num_waiting > 0),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }
}

/// What the server says if it can not do it just now, and has not done it.
fn passing(answer: &[u8]) -> Option<String> {
    /// No refusal is longer.
    const LONGEST: usize = 4 << 10;
    #[derive(Deserialize)]
    struct Answer {
        error: Refusal,
    }
    let answer = (answer.len() <= LONGEST).then(|| serde_json::from_slice(answer).ok()).flatten();
    let Answer { error } = answer?;
    error.is_passing().then(|| format!("{} ({}, {})", error.description, error.code, error.number))
}

impl Refusal {
    /// Whether the same may be answered otherwise soon. What is full may be so for long: that is said at once.
    fn is_passing(&self) -> bool {
        let known = number::NO_JETSTREAM.contains(&self.number)
            || number::FULL.contains(&self.number)
            || number::LASTING.contains(&self.number);
        number::PASSING.contains(&self.number) || self.code == 503 && !known
    }
}

/// Returns when there is no connection.
async fn lost(seen: &mut watch::Receiver<Sight>) {
    // An error: the client is gone.
    let _ = seen.wait_for(|sight| sight.down.is_some()).await;
}

impl DistributedError {
    /// As an error of a question that changes nothing: whether it was heard does not matter.
    pub(super) fn read(self) -> Self {
        match self {
            Self::OutcomeUnknown { server, cause } => Self::Unavailable { server, cause },
            other => other,
        }
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_can_not_do_just_now_is_known() {
        let passing = |code: u16, number: u32| {
            let error = json!({ "code": code, "err_code": number, "description": "not now" });
            passing(json!({ "type": "x", "error": error }).to_string().as_bytes())
        };
        assert_eq!(passing(503, 10008).as_deref(), Some("not now (503, 10008)"));
        assert!(passing(500, 10009).is_some() && passing(503, 10004).is_some());
        for (code, number) in [(503, 10076), (503, 10023), (503, 10077), (503, 10035), (400, 10071), (404, 10037)] {
            assert_eq!(passing(code, number), None, "{number}");
        }
        assert_eq!(super::passing(br#"{"stream":"x","seq":7}"#), None);
        assert_eq!(super::passing(b""), None);
    }
}
