//! What the server is: its version, and the settings that decide what an acknowledged command survives.

use tokio_postgres::Client;

use super::failure::{Failure, failure};
use crate::error::DistributedError;
use crate::storage::Durability;

/// The oldest version that the functions work with.
const OLDEST: i32 = 140_000;

/// A server as it was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    version: String,
    synchronous_commit: String,
    fsync: bool,
}

impl Found {
    /// What it says of itself.
    pub(super) async fn of(client: &Client, server: &str) -> Result<Self, Failure> {
        let asked = "select current_setting('server_version_num')::int, current_setting('server_version'), \
                     current_setting('synchronous_commit'), current_setting('fsync'), \
                     current_setting('server_encoding'), pg_is_in_recovery()";
        let row = client.query_one(asked, &[]).await.map_err(|error| failure(server, &error))?;
        let (number, version): (i32, String) = (row.get(0), row.get(1));
        let unsuitable =
            |problem: String| Err(Failure::Final(DistributedError::Unsuitable { server: server.to_owned(), problem }));
        if number < OLDEST {
            return unsuitable(format!("it is PostgreSQL {version}: use 14 or later"));
        }
        let encoding: String = row.get(4);
        if encoding != "UTF8" {
            return unsuitable(format!("its database is encoded as {encoding}: use one with UTF8"));
        }
        if row.get::<_, bool>(5) {
            return Err(Failure::Standby);
        }
        let fsync: String = row.get(3);
        Ok(Self { version, synchronous_commit: row.get(2), fsync: fsync == "on" })
    }

    pub(super) fn durability(&self) -> Durability {
        if self.fsync && self.synchronous_commit != "off" { Durability::Synced } else { Durability::Relaxed }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!("PostgreSQL {}", self.version)];
        if !self.fsync {
            notes.push("fsync is off: a loss of power may lose everything".to_owned());
        }
        match self.synchronous_commit.as_str() {
            "off" => notes.push(
                "synchronous_commit is off: a crash of the server loses what it has acknowledged in the last moments; \
                 set it to on"
                    .to_owned(),
            ),
            "local" => {
                notes.push("synchronous_commit is local: what a standby has not got is lost with the server".to_owned())
            }
            _ => {}
        }
        notes.push("of commands that come due between two claims, the first 1000 go by priority".to_owned());
        notes.push("rates of all workers together are token buckets: sliding windows are refused".to_owned());
        notes
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_synced_is_not_called_so() {
        let found = |synchronous_commit: &str, fsync| Found {
            version: "15".to_owned(),
            synchronous_commit: synchronous_commit.to_owned(),
            fsync,
        };
        for setting in ["on", "remote_apply", "remote_write", "local"] {
            assert_eq!(found(setting, true).durability(), Durability::Synced, "{setting}");
            assert_eq!(found(setting, false).durability(), Durability::Relaxed, "{setting}");
        }
        let off = found("off", true);
        assert_eq!(off.durability(), Durability::Relaxed);
        assert!(off.notes().iter().any(|note| note.contains("synchronous_commit")));
    }
}
