//! How a queue in a server is opened: the settings that all backends have, checked all at once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::secret::Secret;
use crate::distributed::{DEFAULT_LEASE, WorkerId};
use crate::error::ConfigErrors;
use crate::queue::{PartitionConfig, Partitioner};

/// How to open a queue in a server. An address alone is enough: `connect("redis://localhost")`.
///
/// ```
/// use std::time::Duration;
/// use corelane::{PartitionConfig, RemoteOptions, Secret};
///
/// let options = RemoteOptions::new(Secret::from_env("QUEUE_URL"))
///     .namespace("mail")
///     .partitions(PartitionConfig::hash(8))
///     .lease(Duration::from_secs(60));
/// # let _ = options;
/// ```
#[derive(Clone)]
#[must_use]
pub struct RemoteOptions {
    url: Secret,
    namespace: String,
    partitions: PartitionConfig,
    partitioner: Option<Arc<dyn Partitioner>>,
    worker_id: Option<WorkerId>,
    lease: Duration,
    idempotency_window: Duration,
    call_timeout: Duration,
    connect_timeout: Duration,
    max_payload: usize,
    allow_plaintext: bool,
    root_certificates: Option<Vec<u8>>,
}

/// The longest namespace, in bytes: it is part of the names of what the server keeps.
const NAMESPACE_BYTES_MAX: usize = 48;

/// Bytes of a command that a queue takes unless told otherwise.
const DEFAULT_MAX_PAYLOAD: usize = 1 << 20;

/// The most that may be asked for: what all servers can still take in one message.
const MAX_PAYLOAD_MAX: usize = 64 << 20;

impl RemoteOptions {
    /// The server's address, as a URL. With a password in it, better from the environment or a file: see [`Secret`].
    pub fn new(url: impl Into<Secret>) -> Self {
        Self {
            url: url.into(),
            namespace: "corelane".to_owned(),
            partitions: PartitionConfig::none(),
            partitioner: None,
            worker_id: None,
            lease: DEFAULT_LEASE,
            idempotency_window: Duration::from_secs(24 * 3600),
            call_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_payload: DEFAULT_MAX_PAYLOAD,
            allow_plaintext: false,
            root_certificates: None,
        }
    }

    /// The queue's name: several may share a server. 1 to 48 letters (`a` to `z`), digits, `-` or `_`, a letter first.
    /// Default: `corelane`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How many partitions the queue has, and by what they are chosen. Their number stays as the queue was made with: another one is
    /// refused. Default: one.
    pub fn partitions(mut self, partitions: PartitionConfig) -> Self {
        self.partitions = partitions;
        self
    }

    /// Chooses partitions instead of the strategy of [`RemoteOptions::partitions`]. All who enqueue are to have the same.
    pub fn partitioner(mut self, partitioner: Arc<dyn Partitioner>) -> Self {
        self.partitioner = Some(partitioner);
        self
    }

    /// The name of this handle among all that share the queue. Default: one of its own.
    pub fn worker_id(mut self, worker_id: impl Into<WorkerId>) -> Self {
        self.worker_id = Some(worker_id.into());
        self
    }

    /// How long [`DistributedQueue::dequeue`](crate::DistributedQueue::dequeue) leases a command for. Default: 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long [idempotency keys](crate::EnqueueOptions::idempotency_key) are kept after their commands have ended well. Default:
    /// 24 hours.
    pub fn idempotency_window(mut self, time: Duration) -> Self {
        self.idempotency_window = time;
        self
    }

    /// How long one call may take, with all its attempts. Waiting for commands or results is not counted. Default: 10 s.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// How long connecting may take, with all its attempts. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The largest command, in bytes of its JSON. Up to 64 MiB, and what the server takes. Default: 1 MiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Lets commands and passwords go unencrypted to another machine: for networks that nobody else is on. Default: refused. This
    /// machine's own addresses are always allowed.
    pub fn allow_plaintext(mut self) -> Self {
        self.allow_plaintext = true;
        self
    }

    /// Trusts servers with a certificate that leads to one of these (PEM), instead of those that the system trusts.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// The URL as it is now, with all that is secret; or what keeps it from being read.
    pub(crate) fn url(&self) -> Result<String, String> {
        self.url.read()
    }

    /// What a backend goes by. `kind` names it in names of workers; `schemes` are those of its URLs, and whether each means TLS.
    pub(crate) fn check(self, kind: &str, schemes: &[(&str, bool)]) -> Result<Settings, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let (server, url) = match self.url.read() {
            Ok(url) => (Server::of(&url, schemes), url),
            Err(problem) => {
                errors.push("url", format_args!("{}", self.url), problem);
                (Ok(Server::default()), String::new())
            }
        };
        let server = server.unwrap_or_else(|problem| {
            errors.push("url", format_args!("{}", self.url), problem);
            Server::default()
        });
        if !url.is_empty()
            && !server.host.is_empty()
            && !server.tls
            && !server.is_this_machine()
            && !self.allow_plaintext
        {
            let hint = "commands would go there unencrypted: use TLS, or allow_plaintext() on a network that nobody else is on";
            errors.push("url", server.to_string(), hint);
        }
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if self.namespace.len() > NAMESPACE_BYTES_MAX
            || !self.namespace.starts_with(|c: char| c.is_ascii_lowercase())
            || !self.namespace.chars().all(named)
        {
            let hint = format!("use 1 to {NAMESPACE_BYTES_MAX} of a-z, 0-9, - and _, a letter first");
            errors.push("namespace", &self.namespace, hint);
        }
        self.partitions.check_into(&mut errors);
        if self.worker_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 256 || id.chars().any(char::is_control))
        {
            errors.push("worker_id", &self.worker_id, "use 1 to 256 bytes without control characters");
        }
        for (path, time) in
            [("lease", self.lease), ("call_timeout", self.call_timeout), ("connect_timeout", self.connect_timeout)]
        {
            if time < Duration::from_millis(1) || time > Duration::from_secs(30 * 24 * 3600) {
                errors.push(path, time, "use 1 ms to 30 days");
            }
        }
        if self.idempotency_window > Duration::from_secs(366 * 24 * 3600) {
            errors.push("idempotency_window", self.idempotency_window, "use at most a year");
        }
        if !(1..=MAX_PAYLOAD_MAX).contains(&self.max_payload) {
            errors.push("max_payload", self.max_payload, format!("use 1 to {MAX_PAYLOAD_MAX} bytes"));
        }
        errors.into_result()?;
        let partitioner = self.partitioner.unwrap_or_else(|| self.partitions.create_partitioner());
        Ok(Settings {
            url,
            server,
            namespace: self.namespace,
            partitions: self.partitions,
            partitioner,
            worker_id: self.worker_id.unwrap_or_else(|| format!("{kind}-{}", uuid::Uuid::now_v7())),
            lease: self.lease,
            idempotency_window: self.idempotency_window,
            call_timeout: self.call_timeout,
            connect_timeout: self.connect_timeout,
            max_payload: self.max_payload,
            root_certificates: self.root_certificates,
        })
    }
}

impl From<&str> for RemoteOptions {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for RemoteOptions {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<Secret> for RemoteOptions {
    fn from(url: Secret) -> Self {
        Self::new(url)
    }
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("url", &self.url)
            .field("namespace", &self.namespace)
            .field("partitions", &self.partitions)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Options that make sense.
#[derive(Clone)]
pub(crate) struct Settings {
    /// With user and password: never shown.
    pub(crate) url: String,
    pub(crate) server: Server,
    pub(crate) namespace: String,
    pub(crate) partitions: PartitionConfig,
    pub(crate) partitioner: Arc<dyn Partitioner>,
    pub(crate) worker_id: WorkerId,
    pub(crate) lease: Duration,
    pub(crate) idempotency_window: Duration,
    pub(crate) call_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) root_certificates: Option<Vec<u8>>,
}

/// Whom a URL leads to, without user, password and all else that may be a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) tls: bool,
}

impl Server {
    fn of(url: &str, schemes: &[(&str, bool)]) -> Result<Self, String> {
        let known = || schemes.iter().map(|(scheme, _)| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(format!("is no URL: use {}host:port", known()));
        };
        let Some((_, tls)) = schemes.iter().find(|(known, _)| *known == scheme) else {
            return Err(format!("has another scheme: use {}", known()));
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match host.rsplit_once(':') {
            // An IPv6 address is in brackets.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        let port = port.map(|port| port.parse().map_err(|_| "has a port that is no number".to_owned())).transpose()?;
        if host.is_empty() {
            return Err("names no host".to_owned());
        }
        Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port, tls: *tls })
    }

    /// Whether what is sent there stays on this machine.
    pub(crate) fn is_this_machine(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']');
        match address.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => address.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    const SCHEMES: &[(&str, bool)] = &[("redis", false), ("rediss", true)];

    #[test]
    fn a_server_is_named_without_what_may_be_a_secret() {
        let server = Server::of("redis://user:s3cret@[::1]:6379/3?password=s3cret", SCHEMES).expect("it is one");
        assert_eq!(server.to_string(), "redis://[::1]:6379");
        assert!(server.is_this_machine());
        let server = Server::of("rediss://user:p@ss@db.example.com", SCHEMES).expect("it is one");
        assert_eq!((server.to_string().as_str(), server.tls), ("rediss://db.example.com", true));
        assert!(!server.is_this_machine());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let options = RemoteOptions::new("redis://10.0.0.7")
            .namespace("Über")
            .partitions(PartitionConfig::hash(0))
            .lease(Duration::ZERO)
            .max_payload(0);
        let errors = options.check("redis", SCHEMES).err().expect("it is wrong");
        let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["url", "namespace", "partitions.num_partitions", "lease", "max_payload"]);
    }

    #[test]
    fn plaintext_to_another_machine_is_refused_unless_it_is_allowed() {
        let options = RemoteOptions::new("redis://db.example.com");
        assert!(options.clone().check("redis", SCHEMES).is_err());
        assert!(options.allow_plaintext().check("redis", SCHEMES).is_ok());
        assert!(RemoteOptions::new("rediss://db.example.com").check("redis", SCHEMES).is_ok());
        assert!(RemoteOptions::new("redis://127.0.0.1").check("redis", SCHEMES).is_ok());
    }

    #[test]
    fn nothing_shows_a_password() {
        let options = RemoteOptions::new("nats://user:s3cret@db.example.com");
        let shown = format!("{options:?} {}", options.clone().check("redis", SCHEMES).err().expect("it is wrong"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
