//! How a queue in NATS is opened: what all queues in servers have, and what only NATS has.

use super::super::remote::RemoteOptions;
use crate::adapters::secret::Secret;

/// How to open a [`NatsDistributedQueue`](crate::NatsDistributedQueue), where [`RemoteOptions`] do not say all.
///
/// ```
/// use corelane::{NatsOptions, RemoteOptions, Secret};
///
/// let options = NatsOptions::new(RemoteOptions::new(Secret::from_env("NATS_URL"))).replicas(3);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct NatsOptions {
    pub(super) remote: RemoteOptions,
    pub(super) replicas: usize,
    pub(super) sync_always: bool,
}

impl NatsOptions {
    /// With what all queues in servers have; an address alone is enough.
    pub fn new(remote: impl Into<RemoteOptions>) -> Self {
        Self { remote: remote.into(), replicas: 1, sync_always: false }
    }

    /// On how many servers of a cluster each of the queue's streams is kept: 1, 3 or 5. What there is already stays as it was made.
    /// Default: 1.
    pub fn replicas(mut self, servers: usize) -> Self {
        self.replicas = servers;
        self
    }

    /// Says that the server is set to write to the disk before it answers: `sync_interval: always` in its `jetstream` block, which
    /// nats-server has since 2.10. No client can ask for that, so the queue goes by this word:
    /// [`durability`](crate::Capabilities::durability) is then [`Synced`](crate::Durability::Synced). Default: it is not known, and
    /// [`Relaxed`](crate::Durability::Relaxed).
    pub fn sync_always(mut self) -> Self {
        self.sync_always = true;
        self
    }
}

impl From<RemoteOptions> for NatsOptions {
    fn from(remote: RemoteOptions) -> Self {
        Self::new(remote)
    }
}

impl From<&str> for NatsOptions {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for NatsOptions {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<Secret> for NatsOptions {
    fn from(url: Secret) -> Self {
        Self::new(url)
    }
}
