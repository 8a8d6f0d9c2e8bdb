//! Where the server is, and whether the way there is encrypted: what its URL says.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::adapters::remote::{RemoteOptions, Settings};
use crate::error::ConfigErrors;

/// Whom to connect to, and how.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) config: Config,
    /// None: plaintext.
    pub(super) tls: Option<MakeRustlsConnect>,
}

/// What the options say, all problems at once.
pub(super) fn resolve(options: RemoteOptions) -> Result<(Settings, Address), ConfigErrors> {
    let mode = options.url().ok().and_then(|url| parameter(&url, "sslmode").map(str::to_owned));
    // A server is always verified in full: `require` and the stricter ones are the same.
    let tls = matches!(mode.as_deref(), Some("require" | "verify-ca" | "verify-full"));
    let settings = options.check("postgres", &[("postgres", tls), ("postgresql", tls)])?;
    let mut errors = ConfigErrors::default();
    let mut problem = |hint: &str| errors.push("url", settings.server.to_string(), hint);
    let url = match &mode {
        Some(mode) => {
            settings.url.replace(&format!("sslmode={mode}"), if tls { "sslmode=require" } else { "sslmode=prefer" })
        }
        None => settings.url.clone(),
    };
    let mut config = Config::new();
    match url.parse::<Config>() {
        // Whom the parser has found is whom the options were checked for.
        Ok(parsed) if !leads_to(&parsed, &settings.server.host) => {
            problem("names other servers: name one, before the path")
        }
        Ok(parsed) => config = parsed,
        // The parser's own words may have parts of the password in them.
        Err(_) => {
            problem("is not as PostgreSQL's URLs are: use postgres://user:password@host:port/database?sslmode=require")
        }
    }
    errors.into_result()?;
    config.ssl_mode(match mode.as_deref() {
        _ if tls => SslMode::Require,
        Some("prefer") => SslMode::Prefer,
        // On this machine nobody listens, and certificates for it are rarely trusted.
        None if !settings.server.is_this_machine() => SslMode::Prefer,
        _ => SslMode::Disable,
    });
    config.application_name(settings.worker_id.as_str());
    // A server that has gone without a word is noticed.
    config.connect_timeout(settings.connect_timeout).tcp_user_timeout(settings.call_timeout);
    config.keepalives_idle(std::time::Duration::from_secs(15));
    let tls = match config.get_ssl_mode() {
        SslMode::Disable => None,
        _ => Some(connector(settings.root_certificates.as_deref())?),
    };
    Ok((settings, Address { config, tls }))
}

fn leads_to(config: &Config, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    config.get_hosts() == [Host::Tcp(host.to_owned())]
        && config.get_hostaddrs().is_empty()
        && config.get_ports().len() == 1
}

fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    // What comes before may be a password.
    let (_, url) = url.rsplit_once('@').unwrap_or(("", url));
    let parameters = url.split_once('?')?.1.split('&');
    parameters.filter_map(|parameter| parameter.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The provider is named, because one that an application has installed for the process, or has not, is no business of ours.
fn connector(roots: Option<&[u8]>) -> Result<MakeRustlsConnect, ConfigErrors> {
    let problem = |path: &str, hint: String| {
        let mut errors = ConfigErrors::default();
        errors.push(path, "TLS", hint);
        errors
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| problem("url", error.to_string()))?;
    let config = match roots {
        None => builder
            .with_platform_verifier()
            .map_err(|error| problem("url", format!("the system's certificates can not be used: {error}")))?
            .with_no_client_auth(),
        Some(pem) => {
            let mut store = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.map_err(|error| error.to_string());
                let added = added.and_then(|one| store.add(one).map_err(|error| error.to_string()));
                added.map_err(|error| problem("root_certificates", error))?;
            }
            if store.is_empty() {
                return Err(problem("root_certificates", "has no certificate: use PEM".to_owned()));
            }
            builder.with_root_certificates(store).with_no_client_auth()
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    fn hint(url: &str) -> String {
        resolve(RemoteOptions::new(url)).err().expect("it is refused").problems()[0].hint.clone()
    }

    #[test]
    fn another_machine_is_reached_by_tls_alone() {
        assert!(hint("postgres://u:s3cret@db.example.com/app").contains("unencrypted"));
        assert!(hint("postgres://u:s3cret@db.example.com/app?sslmode=prefer").contains("unencrypted"));
        for mode in ["require", "verify-ca", "verify-full"] {
            let url = format!("postgres://u:s3cret@db.example.com/app?sslmode={mode}");
            let (_, address) = resolve(RemoteOptions::new(url)).unwrap_or_else(|error| panic!("{mode}: {error}"));
            assert!(address.tls.is_some() && address.config.get_ssl_mode() == SslMode::Require);
        }
        let plain = RemoteOptions::new("postgres://db.example.com?sslmode=disable").allow_plaintext();
        assert!(resolve(plain).unwrap_or_else(|error| panic!("{error}")).1.tls.is_none());
    }

    #[test]
    fn a_server_is_not_hidden_behind_this_machine() {
        for url in [
            "postgres://localhost/app?hostaddr=10.0.0.7",
            "postgres://localhost/app?host=db.example.com",
            "postgres://localhost?@db.example.com/app",
            "postgres://u@localhost,localhost/app?sslmode=require",
        ] {
            assert!(hint(url).contains("name one"), "{url}");
        }
    }

    #[test]
    fn a_url_that_is_wrong_is_not_shown() {
        for url in ["postgres://u:s3cret@localhost/app?s3cret=1", "postgres://u:s3cret@localhost/app?s3cret"] {
            let error = resolve(RemoteOptions::new(url)).err().expect("it is refused").to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
