//! Addresses: which are allowed, and what of them may be shown.

use ureq::http::Uri;

use crate::adapters::http;
use crate::adapters::secret::REDACTED;

/// Parts of an address that are shorter are not secrets: `https`, `services`, `v2`.
const SECRET_FROM: usize = 8;

/// An address that notifications may be sent to.
pub(super) struct Endpoint {
    pub(super) url: String,
    /// On this machine: plain HTTP is as good, and a proxy has no part in it.
    pub(super) loopback: bool,
    /// Scheme, host and port: the rest may be a secret.
    shown: String,
}

impl Endpoint {
    /// The endpoint, or what is wrong with `url`, without saying what it is.
    pub(super) fn new(url: &str, plain_http: bool) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "must be an absolute URL, for example https://host/path")?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("must be an absolute URL, for example https://host/path");
        };
        let host = authority.host();
        if authority.as_str().contains('@') {
            return Err("must have no user or password: they belong into the header `Authorization`");
        }
        let port_is_good = authority.as_str().len() == host.len() || authority.port_u16().is_some_and(|port| port > 0);
        if host.is_empty() || !port_is_good {
            return Err("must name a host, and after a colon a port from 1 to 65535");
        }
        let loopback = http::is_loopback(host);
        match scheme {
            "https" => {}
            "http" if loopback || plain_http => {}
            "http" => return Err("must be https, or lead to this machine, or be allowed by `allow_plain_http`"),
            _ => return Err("must begin with https://"),
        }
        Ok(Self { url: url.to_owned(), loopback, shown: format!("{scheme}://{authority}") })
    }

    /// Says where, and no more.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// `text` without anything of the path and the query that may be a secret.
    pub(super) fn redact(&self, text: &str) -> String {
        let rest = self.url.get(self.shown.len()..).unwrap_or_default();
        let parts = rest.split(['/', '?', '&', '=', ';', '#']).filter(|part| part.len() >= SECRET_FROM);
        parts.fold(text.to_owned(), |text, part| text.replace(part, REDACTED))
    }
}
