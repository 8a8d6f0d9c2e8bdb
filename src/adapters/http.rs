//! The HTTP client of those who send: how it is set, and what its errors and the answers' headers say.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::DateTime;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::clock;

/// Longer limits are none: the client adds them to the time of day.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A client that takes at most `timeout` for a request and its answer.
pub(super) fn agent(timeout: Duration, keeps_connections: bool) -> ureq::Agent {
    // The provider is named, because one that an application has installed for the process, or has not, is no business of
    // ours. The roots are the system's: an organisation's own are among them.
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(timeout.min(TIMEOUT_MAX)))
        .http_status_as_error(false)
        // Keys are for the receiver that was named.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("corelane/", env!("CARGO_PKG_VERSION")));
    let config = if keeps_connections { config } else { config.max_idle_connections(0) };
    config.build().new_agent()
}

/// Whether a host is this machine: a proxy is for what is elsewhere.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

/// What went wrong, without an address: those of the client's own words have it in full.
pub(super) fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
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

/// What `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    Some(clock::until_wall(SystemTime::from(DateTime::parse_from_rfc2822(value).ok()?)))
}
