//! The connection to the server: made, lost, made again; and what its errors mean.
//!
//! One connection for all calls of a handle: they share it without waiting for each other, and none blocks it. Another one to
//! listen on, where somebody waits. Both live on the backend's thread.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo as _, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, Value,
};
use tokio::time::{sleep, timeout};

use super::keys::{channel, keys};
use super::probe::{Found, Unfit, probe};
use super::scripts::Script;
use crate::adapters::remote::{Backoff, Settings};
use crate::adapters::secret::REDACTED;
use crate::clock::Tick;
use crate::distributed::DistributedHealth;
use crate::error::{ConfigErrors, DistributedError};
use crate::executor::now;

/// The longest word of a server that is passed on.
const CAUSE_CHARS_MAX: usize = 300;

/// The way to a queue's server.
pub(super) struct Connection {
    client: Client,
    server: String,
    /// What no error may show.
    secret: Option<String>,
    keys: [String; 15],
    channel: String,
    patience: Duration,
    line: tokio::sync::Mutex<Line>,
    found: Mutex<Found>,
    health: Mutex<DistributedHealth>,
}

struct Line {
    up: Option<MultiplexedConnection>,
    /// Which one it is.
    number: u64,
    backoff: Backoff,
    /// Not tried again before.
    again: Tick,
}

/// Whether a call may be made a second time where nobody heard what became of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    Yes,
    No,
}

/// What a script says.
pub(super) struct Answer {
    pub(super) value: Value,
    /// It was made before, and nobody heard what became of that.
    pub(super) repeated: bool,
}

/// What an error means for the call.
enum Meaning {
    /// Nothing was done, nor will be: so says the server.
    Final(DistributedError),
    /// Nothing was done; it may be later.
    Later,
    /// Nothing was done; another connection may lead to who does it.
    Elsewhere,
    /// The server does not know the script.
    NoScript,
    /// Nobody knows.
    Lost,
}

impl Connection {
    pub(super) fn new(settings: &Settings) -> Result<Self, ConfigErrors> {
        let wrong = |path: &str, hint: &str| {
            let mut errors = ConfigErrors::default();
            errors.push(path, settings.server.to_string(), hint);
            errors
        };
        // After a `#`, the client takes words that switch the check of certificates off.
        if settings.url.contains('#') {
            return Err(wrong(
                "url",
                "has a fragment: leave out what begins with #, and write %23 for one in a password",
            ));
        }
        // What the parser says may quote the URL, with its password.
        let info = settings.url.as_str().into_connection_info();
        let info =
            info.map_err(|_| wrong("url", "is no URL of Redis: use redis://user:password@host:port/database"))?;
        let auth = info.redis_settings();
        let secret = auth.password().filter(|text| !text.is_empty()).map(str::to_owned);
        let client = if settings.server.tls {
            // A process has one provider for all of TLS: this one, unless it has chosen already.
            if rustls::crypto::CryptoProvider::get_default().is_none() {
                let _ = rustls::crypto::ring::default_provider().install_default();
            }
            let root_cert = settings.root_certificates.clone();
            if root_cert.as_ref().is_some_and(|pem| !pem.windows(17).any(|part| part == b"BEGIN CERTIFICATE")) {
                return Err(wrong("root_certificates", "has no certificate in it: use PEM"));
            }
            let client = Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert });
            client.map_err(|_| wrong("root_certificates", "can not be read: use PEM"))?
        } else {
            Client::open(info).map_err(|_| wrong("url", "is no URL of Redis"))?
        };
        let line = Line { up: None, number: 0, backoff: Backoff::new(), again: now() };
        Ok(Self {
            client,
            server: settings.server.to_string(),
            secret,
            keys: keys(&settings.namespace),
            channel: channel(&settings.namespace),
            patience: settings.connect_timeout,
            line: tokio::sync::Mutex::new(line),
            found: Mutex::default(),
            health: Mutex::default(),
        })
    }

    pub(super) fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn health(&self) -> DistributedHealth {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_health(&self, health: DistributedHealth) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Has the server run the script, within that time: however often the connection has to be made anew for it.
    pub(super) async fn run(
        &self,
        script: &Script,
        args: &[Vec<u8>],
        deadline: Tick,
        repeat: Repeat,
    ) -> Result<Answer, DistributedError> {
        let mut backoff = Backoff::new();
        let mut by_text = false;
        // Of a call that was made, and never answered.
        let mut unheard = None;
        loop {
            if now() >= deadline {
                return Err(self.given_up(unheard, self.unavailable("no time is left for it".to_owned())));
            }
            let (mut connection, number) = match self.get(deadline).await {
                Ok(got) => got,
                Err(error) => return Err(self.given_up(unheard, error)),
            };
            let call = if by_text { script.by_text(&self.keys, args) } else { script.by_hash(&self.keys, args) };
            // Half of the time is left for another connection: this one may lead nowhere.
            let left = deadline.since(now());
            let patience =
                if repeat == Repeat::Yes { left.div_f64(2.0).max(Duration::from_millis(100).min(left)) } else { left };
            let (meaning, cause) = match timeout(patience, call.query_async::<Value>(&mut connection)).await {
                Ok(Ok(value)) => {
                    self.set_health(DistributedHealth::Working);
                    return Ok(Answer { value, repeated: unheard.is_some() });
                }
                Ok(Err(error)) => (self.meaning(&error), self.cause(&error)),
                Err(_) => (Meaning::Lost, format!("no answer within {patience:?}")),
            };
            match meaning {
                Meaning::NoScript => {
                    by_text = true;
                    continue;
                }
                Meaning::Final(error) => return Err(self.given_up(unheard, error)),
                Meaning::Later => {}
                Meaning::Elsewhere => self.lost(number, &cause),
                Meaning::Lost => {
                    self.lost(number, &cause);
                    unheard = Some(cause.clone());
                    if repeat == Repeat::No {
                        return Err(self.given_up(unheard, self.unavailable(cause)));
                    }
                }
            }
            let wait = backoff.wait();
            if wait >= deadline.since(now()) {
                return Err(self.given_up(unheard, self.unavailable(cause)));
            }
            sleep(wait).await;
        }
    }

    /// What is known at the end of a call that has failed.
    fn given_up(&self, unheard: Option<String>, error: DistributedError) -> DistributedError {
        match unheard {
            Some(cause) => DistributedError::OutcomeUnknown { server: self.server.clone(), cause },
            None => error,
        }
    }

    fn unavailable(&self, cause: String) -> DistributedError {
        DistributedError::Unavailable { server: self.server.clone(), cause }
    }

    /// The connection; made, if there is none, until that time. Where the server refuses, or is not one for queues, that is the end.
    pub(super) async fn get(&self, deadline: Tick) -> Result<(MultiplexedConnection, u64), DistributedError> {
        let connected = timeout(deadline.since(now()), async {
            loop {
                // Held while it is made: who comes meanwhile waits for the same one.
                let mut line = self.line.lock().await;
                if let Some(up) = &line.up {
                    return Ok((up.clone(), line.number));
                }
                sleep(line.again.since(now())).await;
                match self.connect(line.number > 0).await {
                    Ok(up) => {
                        line.backoff.reset();
                        line.number += 1;
                        line.up = Some(up.clone());
                        self.set_health(DistributedHealth::Working);
                        return Ok((up, line.number));
                    }
                    Err(error) => {
                        line.again = now().plus(line.backoff.wait());
                        self.set_health(DistributedHealth::Reconnecting { error: error.to_string() });
                        if !error.is_transient() {
                            return Err(error);
                        }
                        tracing::debug!(server = self.server, %error, "a queue's server does not answer");
                    }
                }
            }
        });
        match connected.await {
            Ok(result) => result,
            Err(_) => Err(match self.health() {
                DistributedHealth::Reconnecting { error } => {
                    let named = format!("{} can not be reached: ", self.server);
                    self.unavailable(error.strip_prefix(&named).unwrap_or(&error).to_owned())
                }
                _ => self.unavailable("no answer in time".to_owned()),
            }),
        }
    }

    /// A connection to listen on.
    pub(super) async fn listener(&self) -> RedisResult<PubSub> {
        self.client.get_async_pubsub().await
    }

    /// Where it is told that something was put in.
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// That connection is no good any more.
    fn lost(&self, number: u64, cause: &str) {
        // Who has the lock makes a new one already.
        let Ok(mut line) = self.line.try_lock() else { return };
        if line.number == number && line.up.take().is_some() {
            tracing::warn!(server = self.server, cause, "the connection to a queue's server is lost, and made again");
            self.set_health(DistributedHealth::Reconnecting { error: cause.to_owned() });
        }
    }

    /// One attempt. A server that is `known` has been a master before, and may be again.
    async fn connect(&self, known: bool) -> Result<MultiplexedConnection, DistributedError> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connect = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let found = probe(&mut connection).await?;
            Ok((connection, found))
        };
        let server = self.server.clone();
        match timeout(self.patience, connect).await {
            Ok(Ok((connection, found))) => {
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
                Ok(connection)
            }
            Ok(Err(Unfit::Unsuitable(problem))) => Err(DistributedError::Unsuitable { server, problem }),
            Ok(Err(Unfit::Replica)) if known => {
                Err(self.unavailable("it is a replica now: its master has changed".to_owned()))
            }
            Ok(Err(Unfit::Replica)) => {
                let problem = "it is a replica: connect to its master".to_owned();
                Err(DistributedError::Unsuitable { server, problem })
            }
            Ok(Err(Unfit::Error(error))) => Err(match self.meaning(&error) {
                Meaning::Final(error) => error,
                _ => self.unavailable(self.cause(&error)),
            }),
            Err(_) => Err(self.unavailable(format!("no answer within {:?}", self.patience))),
        }
    }

    fn meaning(&self, error: &RedisError) -> Meaning {
        let (server, cause) = (self.server.clone(), self.cause(error));
        match error.kind() {
            ErrorKind::AuthenticationFailed => return Meaning::Final(DistributedError::Refused { server, cause }),
            ErrorKind::Server(ServerErrorKind::NoScript) => return Meaning::NoScript,
            ErrorKind::Io | ErrorKind::Parse => return Meaning::Lost,
            _ => {}
        }
        match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Meaning::Final(DistributedError::Refused { server, cause }),
            Some("OOM" | "MISCONF") => Meaning::Final(DistributedError::Full(format!("{server}: {cause}"))),
            Some("LOADING" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY" | "NOREPLICAS") => Meaning::Later,
            Some("READONLY" | "UNBLOCKED") => Meaning::Elsewhere,
            Some("MOVED" | "ASK" | "CROSSSLOT") => Meaning::Final(DistributedError::Unsuitable {
                server,
                problem: format!("the queue's keys are on another node of the cluster: connect to that ({cause})"),
            }),
            _ => Meaning::Final(DistributedError::Server { server, cause }),
        }
    }

    /// What the server says, or the network: without secrets, and not at any length.
    fn cause(&self, error: &RedisError) -> String {
        let mut text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            _ => error.to_string(),
        };
        if let Some(secret) = &self.secret {
            text = text.replace(secret, REDACTED);
        }
        text.chars().take(CAUSE_CHARS_MAX).collect()
    }

    /// An answer that no script gives.
    pub(super) fn strange(&self, what: &str) -> DistributedError {
        DistributedError::Server { server: self.server.clone(), cause: format!("the answer is strange: {what}") }
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }
}
