//! How each contender does what is measured. All give each command the same small payload.

pub mod apalis;
pub mod corelane;
pub mod plain_nats;
pub mod plain_postgres;
pub mod plain_redis;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How long a claimed command is this process's.
pub const LEASE: Duration = Duration::from_secs(30);

/// What a command is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payload {
    pub number: u64,
    pub text: String,
}

impl Payload {
    pub fn new(number: u64) -> Self {
        Self { number, text: "resize the image of the cat".into() }
    }
}

/// The calls of a queue, one after the other.
pub trait Calls {
    type Claimed;

    /// Returns when they are all stored.
    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()>;

    /// What there is, without waiting: at most so many.
    async fn claim(&mut self, most: usize) -> Result<Vec<Self::Claimed>>;

    /// Returns when it is stored that they have ended.
    async fn ack(&mut self, claimed: Vec<Self::Claimed>) -> Result<()>;
}

/// A queue with workers.
pub trait Workers {
    /// Returns when they are all stored.
    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()>;

    /// Works, and counts what has ended, until it is to stop.
    async fn work(self, handled: Arc<AtomicU64>, stop: impl Future<Output = Result<()>>) -> Result<()>;
}
