//! The queue's tables and functions: versions of them, in this crate, and how a server gets from one to the next.
//!
//! A queue has a schema of its own: it can be granted, moved and dropped as a whole, and its names can not meet others. What a
//! version has added stays as it is in later ones, so that processes with the version before go on while others begin with
//! the next; `meta.version` says what is there.

use tokio_postgres::{Client, Error};

use super::connection::LOCK_TIMEOUT;
use super::failure::{Failure, failure};
use crate::error::DistributedError;

/// From no tables to version 1, from 1 to 2, and so on.
const MIGRATIONS: &[&str] = &[include_str!("schema_1.sql")];

/// The schema of a queue, as an identifier.
pub(super) fn schema(namespace: &str) -> String {
    // Namespaces have no quotes in them.
    format!("\"corelane_{namespace}\"")
}

/// Statements are written with `queue.` for the schema.
pub(super) fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("queue.", &format!("{schema}."))
}

/// Makes the tables, or brings them to this crate's version, and sees that the queue is the one that was asked for. Any number
/// of processes may do this at once.
pub(super) async fn prepare(
    client: &mut Client,
    server: &str,
    namespace: &str,
    partitions: usize,
) -> Result<(), Failure> {
    let schema = schema(namespace);
    let failed = |error: Error| failure(server, &error);
    // Most find it ready; then they need no right to make tables, and wait for nobody.
    if let Some(found) = found(client, &schema).await.map_err(failed)?
        && found.version == MIGRATIONS.len()
    {
        return found.is(partitions, &schema);
    }
    // Those who come at the same time wait here. Before the transaction, not in it: one that has begun may not see what others
    // have made since.
    let key = format!("corelane:{schema}");
    client.batch_execute("set lock_timeout = 0").await.map_err(failed)?;
    client.execute("select pg_advisory_lock(hashtextextended($1, 0))", &[&key]).await.map_err(failed)?;
    migrate(client, server, &schema, partitions).await?;
    // Where that has failed, the connection is closed, and the lock is gone with it.
    client.execute("select pg_advisory_unlock(hashtextextended($1, 0))", &[&key]).await.map_err(failed)?;
    client.batch_execute(&format!("set lock_timeout = {}", LOCK_TIMEOUT.as_millis())).await.map_err(failed)
}

/// From the version that is there to this crate's, all or nothing.
async fn migrate(client: &mut Client, server: &str, schema: &str, partitions: usize) -> Result<(), Failure> {
    let failed = |error: Error| failure(server, &error);
    let transaction = client.transaction().await.map_err(failed)?;
    let found = found(transaction.client(), schema).await.map_err(failed)?;
    let version = match found {
        Some(found) => {
            found.is(partitions, schema)?;
            found.version
        }
        None => {
            // Not `if not exists`, which asks for the right to make schemas also where there is one.
            let there = "select exists (select from pg_namespace where nspname = $1)";
            let row = transaction.query_one(there, &[&schema.trim_matches('"')]).await.map_err(failed)?;
            if !row.get::<_, bool>(0) {
                transaction.batch_execute(&format!("create schema {schema}")).await.map_err(failed)?;
            }
            0
        }
    };
    for migration in MIGRATIONS.get(version..).unwrap_or_default() {
        transaction.batch_execute(&in_schema(migration, schema)).await.map_err(failed)?;
    }
    let made = "insert into queue.meta (version, partitions) values ($1, $2) \
                on conflict (one) do update set version = excluded.version";
    let (version, partitions) = (MIGRATIONS.len() as i32, i32::try_from(partitions).unwrap_or(i32::MAX));
    transaction.execute(&in_schema(made, schema), &[&version, &partitions]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// The queue as it is stored.
struct Found {
    version: usize,
    partitions: usize,
}

impl Found {
    fn is(&self, partitions: usize, schema: &str) -> Result<(), Failure> {
        let error = if self.version > MIGRATIONS.len() {
            DistributedError::SchemaVersion {
                found: self.version.to_string(),
                supported: format!("up to {}", MIGRATIONS.len()),
                hint: format!("update the crate; the tables are in schema {schema}"),
            }
        } else if self.partitions != partitions {
            DistributedError::PartitionMismatch { stored: self.partitions, given: partitions }
        } else {
            return Ok(());
        };
        Err(Failure::Final(error))
    }
}

async fn found(client: &Client, schema: &str) -> Result<Option<Found>, Error> {
    let there = client.query_one("select to_regclass($1) is not null", &[&format!("{schema}.meta")]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_opt(&in_schema("select version, partitions from queue.meta", schema), &[]).await?;
    let number = |number: i32| usize::try_from(number).unwrap_or_default();
    Ok(row.map(|row| Found { version: number(row.get(0)), partitions: number(row.get(1)) }))
}
