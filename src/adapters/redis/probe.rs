//! What a server is, and how well it keeps what it is given: asked at every new connection.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::storage::Durability;

/// Older servers have no scripts that go on when memory is short.
const OLDEST: (u32, u32) = (7, 0);

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) durability: Durability,
    /// For [`Capabilities::notes`](crate::Capabilities::notes).
    pub(super) notes: Vec<String>,
}

/// Why a server is not used.
pub(super) enum Unfit {
    /// It does not answer, or refuses.
    Error(RedisError),
    /// It is set up in a way that loses commands. It would have to be changed.
    Unsuitable(String),
    /// It only has a copy. That may change by itself.
    Replica,
}

impl From<RedisError> for Unfit {
    fn from(error: RedisError) -> Self {
        Self::Error(error)
    }
}

pub(super) async fn probe(connection: &mut MultiplexedConnection) -> Result<Found, Unfit> {
    let text = match redis::cmd("INFO").query_async::<String>(connection).await {
        Ok(text) => text,
        Err(error) if is_not_allowed(&error) => return Ok(unknown()),
        Err(error) => return Err(error.into()),
    };
    let info = Info::of(&text);
    if info.get("role").is_some_and(|role| role != "master") {
        return Err(Unfit::Replica);
    }
    if let Some(version) = info.get("redis_version").filter(|version| is_too_old(version)) {
        let (major, minor) = OLDEST;
        return Err(Unfit::Unsuitable(format!("it is version {version}: use {major}.{minor} or later, or Valkey")));
    }
    if let Some(policy) = info.get("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        return Err(Unfit::Unsuitable(format!(
            "maxmemory-policy is {policy}, which drops commands when memory is short: set it to noeviction"
        )));
    }
    let mut notes = vec![info.version()];
    let durability = if info.get("aof_enabled") == Some("1") {
        synced(connection, &mut notes).await?
    } else {
        notes.push(
            "appendonly is no: what came since the last snapshot is lost with the server; set it to yes".to_owned(),
        );
        Durability::Memory
    };
    if info.get("connected_slaves").is_some_and(|replicas| replicas != "0") {
        notes.push(
            "replicas get what was acknowledged a little later (WAITAOF, of Redis 7.2, is not used): a failover may lose the last \
             of it"
                .to_owned(),
        );
    }
    if info.get("cluster_enabled") == Some("1") {
        notes.push(
            "of a cluster, connect to the node that has the slot of the queue's name: redirections are not followed"
                .to_owned(),
        );
    }
    Ok(Found { durability, notes })
}

/// How often the log is synced.
async fn synced(connection: &mut MultiplexedConnection, notes: &mut Vec<String>) -> Result<Durability, Unfit> {
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("appendfsync").arg("no-appendfsync-on-rewrite");
    let asked = ask.query_async::<HashMap<String, String>>(connection).await;
    let settings = match asked {
        Ok(settings) => settings,
        Err(error) if is_not_allowed(&error) => HashMap::new(),
        Err(error) => return Err(error.into()),
    };
    let setting = |name: &str| settings.get(name).map(String::as_str);
    Ok(match setting("appendfsync") {
        Some("always") => match setting("no-appendfsync-on-rewrite") {
            Some("no") => Durability::Synced,
            other => {
                notes.push(format!(
                    "no-appendfsync-on-rewrite is {}: a power failure while the log is rewritten, or a snapshot made, loses what \
                     came since that began; set it to no",
                    other.unwrap_or("not known")
                ));
                Durability::Relaxed
            }
        },
        Some("everysec") => {
            notes.push("appendfsync is everysec: a crash loses the last second; set it to always".to_owned());
            Durability::Relaxed
        }
        Some(other) => {
            notes.push(format!(
                "appendfsync is {other}: a power failure loses what the system has not written yet; set it to always"
            ));
            Durability::Relaxed
        }
        None => {
            notes.push("the user may not CONFIG GET appendfsync: it is not known how much a crash loses".to_owned());
            Durability::Memory
        }
    })
}

fn unknown() -> Found {
    let note = "the user may not INFO: it is not known whether the server keeps, or drops, what it is given";
    Found { durability: Durability::Memory, notes: vec![note.to_owned()] }
}

/// Not for this user, or renamed away by the server's operator.
fn is_not_allowed(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.detail().is_some_and(|detail| detail.starts_with("unknown command"))
}

fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
    (parts.next().unwrap_or(u32::MAX), parts.next().unwrap_or(u32::MAX)) < OLDEST
}

/// The answer to `INFO`: lines of names and values.
struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    fn of(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once(':')).collect())
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn version(&self) -> String {
        match (self.get("valkey_version"), self.get("redis_version")) {
            (Some(version), _) => format!("the server is Valkey {version}"),
            (None, Some(version)) => format!("the server is Redis {version}"),
            (None, None) => "the server does not say what it is".to_owned(),
        }
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let too_old = ["6.2.14", "6.9"];
        let fine = ["7.0.15", "7.2.4", "10.0", "8.0-rc1", "255.255.255", "unstable"];
        assert!(too_old.into_iter().all(is_too_old) && !fine.into_iter().any(is_too_old));
    }

    #[test]
    fn the_servers_own_name_is_told() {
        let info = Info::of("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n");
        assert_eq!(info.version(), "the server is Valkey 8.1.0");
        assert_eq!(Info::of("redis_version:7.0.15\r\n").version(), "the server is Redis 7.0.15");
    }
}
