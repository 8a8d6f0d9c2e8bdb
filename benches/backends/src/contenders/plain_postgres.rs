//! The least that a queue in PostgreSQL is made of: a table, `SKIP LOCKED`, and a time until which a row is leased. No
//! priorities, delays, fences, limits or dead letters; what is left behind has to be looked for.

use std::ops::Range;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio_postgres::types::Json;
use tokio_postgres::{Client, NoTls, Statement};

use super::{Calls, LEASE, Payload};
use crate::plan::Task;

pub struct Queue {
    client: Client,
    enqueue: Statement,
    claim: Statement,
    ack: Statement,
}

impl Queue {
    pub async fn connect(task: &Task) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(&task.url, NoTls).await?;
        tokio::spawn(connection);
        let schema = &task.namespace;
        if task.process == 0 {
            let table = format!(
                "CREATE SCHEMA {schema};
                 CREATE TABLE {schema}.jobs (
                     id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                     payload jsonb NOT NULL,
                     leased_until timestamptz
                 );
                 CREATE INDEX ON {schema}.jobs (id) WHERE leased_until IS NULL;"
            );
            client.batch_execute(&table).await?;
        }
        let enqueue = format!("INSERT INTO {schema}.jobs (payload) SELECT unnest($1::jsonb[])");
        let claim = format!(
            "UPDATE {schema}.jobs SET leased_until = clock_timestamp() + interval '{} s' WHERE id = ANY (ARRAY(
                 SELECT id FROM {schema}.jobs WHERE leased_until IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
             )) RETURNING id, payload",
            LEASE.as_secs(),
        );
        let ack = format!("DELETE FROM {schema}.jobs WHERE id = ANY ($1)");
        Ok(Self {
            enqueue: client.prepare(&enqueue).await?,
            claim: client.prepare(&claim).await?,
            ack: client.prepare(&ack).await?,
            client,
        })
    }
}

impl Calls for Queue {
    type Claimed = i64;

    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        let jobs: Vec<_> = numbers.map(|number| Json(Payload::new(number))).collect();
        self.client.execute(&self.enqueue, &[&jobs]).await?;
        Ok(())
    }

    async fn claim(&mut self, most: usize) -> Result<Vec<i64>> {
        let rows = self.client.query(&self.claim, &[&i64::try_from(most)?]).await?;
        let job = |row: &tokio_postgres::Row| {
            row.try_get::<_, Value>(1)?;
            Ok(row.try_get(0)?)
        };
        rows.iter().map(job).collect()
    }

    async fn ack(&mut self, claimed: Vec<i64>) -> Result<()> {
        let ended = self.client.execute(&self.ack, &[&claimed]).await?;
        ensure!(ended == claimed.len() as u64, "a lease was lost");
        Ok(())
    }
}
