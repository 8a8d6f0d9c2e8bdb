//! The least that a queue in Redis is made of: a list, and a sorted set of what is leased until when. No priorities, delays,
//! fences, limits or dead letters; what is left behind has to be looked for.

use std::ops::Range;

use anyhow::{Result, ensure};
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, Script};

use super::{Calls, LEASE, Payload};
use crate::plan::Task;

const CLAIM: &str = "
    local jobs = redis.call('RPOP', KEYS[1], ARGV[1])
    if not jobs then return {} end
    local now = redis.call('TIME')
    local leases = {}
    for i, job in ipairs(jobs) do
        leases[2 * i - 1] = now[1] * 1000 + ARGV[2]
        leases[2 * i] = job
    end
    redis.call('ZADD', KEYS[2], unpack(leases))
    return jobs";

pub struct Queue {
    connection: MultiplexedConnection,
    claim: Script,
    ready: String,
    leased: String,
    process: u64,
}

impl Queue {
    pub async fn connect(task: &Task) -> Result<Self> {
        let connection = redis::Client::open(task.url.as_str())?.get_multiplexed_async_connection().await?;
        let key = |name: &str| format!("{}:{name}", task.namespace);
        let (ready, leased) = (key("ready"), key("leased"));
        Ok(Self { connection, claim: Script::new(CLAIM), ready, leased, process: task.process })
    }
}

impl Calls for Queue {
    type Claimed = String;

    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        let mut jobs = Vec::new();
        for number in numbers {
            // What is leased is known by its text, so that this has to be of one command.
            let id = format!("{}-{number}", self.process);
            jobs.push(serde_json::to_string(&(id, Payload::new(number)))?);
        }
        let _: u64 = self.connection.lpush(&self.ready, jobs).await?;
        Ok(())
    }

    async fn claim(&mut self, most: usize) -> Result<Vec<String>> {
        let mut claim = self.claim.key(&self.ready);
        let claim = claim.key(&self.leased).arg(most).arg(u64::try_from(LEASE.as_millis())?);
        Ok(claim.invoke_async(&mut self.connection).await?)
    }

    async fn ack(&mut self, claimed: Vec<String>) -> Result<()> {
        let ended: usize = self.connection.zrem(&self.leased, &claimed).await?;
        ensure!(ended == claimed.len(), "a lease was lost");
        Ok(())
    }
}
