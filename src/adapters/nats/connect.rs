//! How a connection is made: whom to trust, who we are, how often it is tried, and what an answer to that means.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::sync::watch;

use crate::adapters::remote::{Backoff, RemoteOptions, Settings};
use crate::clock::Tick;
use crate::error::{ConfigErrors, DistributedError, Result};
use crate::executor::now;

/// The oldest server that does what this needs.
const OLDEST: (u64, u64) = (2, 9);

/// What the client sees of the server beside answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    /// There is no connection, and why.
    pub(super) down: Option<String>,
    /// What the user may not do, as the server has said last, and when.
    pub(super) denied: Option<(Tick, String)>,
}

/// The options of the client, all but what changes with each attempt.
pub(super) fn tls(settings: &Settings) -> Result<Option<rustls::ClientConfig>> {
    if !settings.server.tls {
        return Ok(None);
    }
    let wrong = |problem: String| {
        let mut errors = ConfigErrors::default();
        errors.push("root_certificates", "[given]", problem);
        errors.into_result().err()
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unsuitable(settings, &error.to_string()))?;
    let builder = match &settings.root_certificates {
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            let mut problem = None;
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.map_err(|error| error.to_string());
                let added = added.and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
                problem = problem.or(added.err());
            }
            if problem.is_none() && roots.is_empty() {
                problem = Some("has no certificate in it: use PEM".to_owned());
            }
            if let Some(errors) = problem.and_then(wrong) {
                return Err(errors.into());
            }
            builder.with_root_certificates(roots)
        }
        None => builder.with_platform_verifier().map_err(|error| unsuitable(settings, &error.to_string()))?,
    };
    Ok(Some(builder.with_no_client_auth()))
}

fn unsuitable(settings: &Settings, problem: &str) -> DistributedError {
    DistributedError::Unsuitable { server: settings.server.to_string(), problem: problem.to_owned() }
}

/// Connects, trying again until the time for it is over. What the client sees later is told to `seen`. Who we are is read from the
/// address in `remote` at each attempt, also of later connections.
pub(super) async fn connect(
    settings: &Settings,
    remote: &RemoteOptions,
    tls: Option<rustls::ClientConfig>,
    seen: watch::Sender<Sight>,
) -> Result<Client, DistributedError> {
    let give_up = now().plus(settings.connect_timeout);
    let mut backoff = Backoff::new();
    let seen = Arc::new(seen);
    loop {
        let left = give_up.since(now());
        let connecting =
            options(settings, remote, tls.clone(), &seen).connection_timeout(left.max(Duration::from_millis(1)));
        // The address without user and password: those go by the options.
        let connected = tokio::time::timeout(left, connecting.connect(settings.server.to_string())).await;
        let cause = match connected {
            Ok(Ok(client)) => return suitable(settings, client),
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation => {
                    let cause = "it does not know this user and password, or this token".to_owned();
                    return Err(DistributedError::Refused { server: settings.server.to_string(), cause });
                }
                _ => error.to_string(),
            },
            Err(_) => "it does not answer".to_owned(),
        };
        let wait = backoff.wait();
        if give_up.since(now()) <= wait {
            return Err(DistributedError::Unavailable { server: settings.server.to_string(), cause });
        }
        tokio::time::sleep(wait).await;
    }
}

fn options(
    settings: &Settings,
    remote: &RemoteOptions,
    tls: Option<rustls::ClientConfig>,
    seen: &Arc<watch::Sender<Sight>>,
) -> ConnectOptions {
    let (seen, remote) = (Arc::clone(seen), remote.clone());
    let told = move |event: Event| {
        let seen = Arc::clone(&seen);
        async move {
            match event {
                Event::Connected => seen.send_modify(|sight| sight.down = None),
                Event::Disconnected | Event::Closed => {
                    seen.send_modify(|sight| sight.down = Some("the connection is lost".to_owned()));
                }
                Event::ServerError(error) => {
                    tracing::warn!(%error, "a NATS server reports an error");
                    let error = error.to_string();
                    if error.to_ascii_lowercase().contains("permissions violation") {
                        seen.send_modify(|sight| sight.denied = Some((now(), error)));
                    }
                }
                // It is connected as before, or tries to be.
                _ => {}
            }
        }
    };
    let credentials = move |_nonce| ready(remote.url().map(|url| credentials(&url)).map_err(AuthError::new));
    let mut options = ConnectOptions::with_auth_callback(credentials)
        .name(settings.worker_id.as_str())
        .event_callback(told)
        // A server that was killed while it had our answers is noticed by silence.
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(delay);
    match tls {
        Some(tls) => options = options.require_tls(true).tls_client_config(tls),
        // What a server on this machine names may be elsewhere: nothing goes there unencrypted.
        None if settings.server.is_this_machine() => options = options.ignore_discovered_servers(),
        None => {}
    }
    options
}

/// The wait before the `attempt`th try: at once, then longer, with some chance in it.
fn delay(attempt: usize) -> Duration {
    let mut backoff = Backoff::new();
    let mut wait = Duration::ZERO;
    for _ in 1..attempt.min(10) {
        wait = backoff.wait();
    }
    wait
}

/// What the address says about us.
fn credentials(url: &str) -> Auth {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let mut auth = Auth::new();
    if let Some((credentials, _)) = authority.rsplit_once('@') {
        match credentials.split_once(':') {
            Some((user, password)) => {
                auth.username = Some(decoded(user));
                auth.password = Some(decoded(password));
            }
            None => auth.token = Some(decoded(credentials)),
        }
    }
    auth
}

/// `%40` is `@`, and so on.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

/// The server is new enough, and has JetStream.
fn suitable(settings: &Settings, client: Client) -> Result<Client, DistributedError> {
    let found = client.server_info();
    let mut parts = found.version.split('.').map(|part| part.parse().unwrap_or(0));
    let version: (u64, u64) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version < OLDEST {
        let problem = format!("it is nats-server {}: use 2.9 or a later one", found.version);
        return Err(unsuitable(settings, &problem));
    }
    if !found.jetstream {
        return Err(unsuitable(settings, NO_JETSTREAM));
    }
    Ok(client)
}

pub(super) const NO_JETSTREAM: &str = "JetStream is not enabled: start it with -js, or with a jetstream block in its \
                                       configuration, and enable it for the account";

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_taken_from_the_address() {
        let said = |url| {
            let Auth { username, password, token, .. } = credentials(url);
            [username, password, token].map(Option::unwrap_or_default)
        };
        assert_eq!(said("nats://a:b%40%3Ac@host:4222"), ["a", "b@:c", ""]);
        assert_eq!(said("nats://tok%zz@host"), ["", "", "tok%zz"]);
        assert_eq!(said("nats://host/x@y"), ["", "", ""]);
    }

    #[test]
    fn the_first_attempt_is_made_at_once_and_later_ones_wait() {
        assert_eq!(delay(1), Duration::ZERO);
        assert!(delay(3) >= Duration::from_millis(25));
        assert!(delay(1000) <= Duration::from_secs(5));
    }
}
