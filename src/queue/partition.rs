//! Which partition a command belongs to: of a queue's workers, or of a queue that several processes share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::command::Command;
use super::keys::Key;
use crate::error::{ConfigErrors, LaneError, Result};
use crate::executor::available_cpus;

/// Names a partition: from 0 on.
pub type PartitionId = usize;

/// The most partitions.
const PARTITIONS_MAX: usize = 4096;

/// Says which partition a command belongs to.
#[async_trait]
pub trait Partitioner: Send + Sync {
    /// The partition of `command`, below `num_partitions`; a larger one counts modulo that.
    async fn partition(&self, command: &dyn Command, num_partitions: usize) -> PartitionId;

    /// The same of a command that is known by its key, or by its type where it has none. Must not wait. Default:
    /// [`Partitioner::partition`] of a command of this type that can not be executed, and 0 where that waits.
    fn partition_of(&self, key: &str, num_partitions: usize) -> PartitionId {
        let stand_in = StandIn(key);
        let mut partition = self.partition(&stand_in, num_partitions);
        match partition.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(partition) => partition,
            Poll::Pending => 0,
        }
    }
}

/// What a partitioner that asks for a command gets where there is only its key.
struct StandIn<'a>(&'a str);

#[async_trait]
impl Command for StandIn<'_> {
    async fn execute(&self) -> Result<serde_json::Value> {
        Err(LaneError::CommandError("this command is here for its type only".into()))
    }

    fn command_type(&self) -> &str {
        self.0
    }
}

/// Commands go to the partitions in turns.
#[derive(Debug, Default)]
pub struct RoundRobinPartitioner {
    next: AtomicUsize,
}

impl RoundRobinPartitioner {
    /// Begins with partition 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Partitioner for RoundRobinPartitioner {
    async fn partition(&self, command: &dyn Command, num_partitions: usize) -> PartitionId {
        self.partition_of(command.command_type(), num_partitions)
    }

    fn partition_of(&self, _key: &str, num_partitions: usize) -> PartitionId {
        self.next.fetch_add(1, Ordering::Relaxed) % num_partitions.max(1)
    }
}

/// Commands of one key, or of one type where they have none, go to the same partition: by [`stable_hash`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HashPartitioner;

impl HashPartitioner {
    /// There is one.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Partitioner for HashPartitioner {
    async fn partition(&self, command: &dyn Command, num_partitions: usize) -> PartitionId {
        self.partition_of(command.command_type(), num_partitions)
    }

    fn partition_of(&self, key: &str, num_partitions: usize) -> PartitionId {
        partition_of_hash(stable_hash(key), num_partitions)
    }
}

/// A partitioner of your own: a function of a command's key, or of its type where it has none.
///
/// ```
/// use corelane::{CustomPartitioner, Partitioner};
///
/// let by_length = CustomPartitioner::new(|key: &str| key.len());
/// assert_eq!(by_length.partition_of("mail", 3), 1);
/// ```
#[derive(Clone, Copy)]
pub struct CustomPartitioner<F> {
    function: F,
}

impl<F: Fn(&str) -> usize + Send + Sync> CustomPartitioner<F> {
    /// What `function` gives counts modulo the number of partitions.
    #[must_use]
    pub const fn new(function: F) -> Self {
        Self { function }
    }
}

#[async_trait]
impl<F: Fn(&str) -> usize + Send + Sync> Partitioner for CustomPartitioner<F> {
    async fn partition(&self, command: &dyn Command, num_partitions: usize) -> PartitionId {
        self.partition_of(command.command_type(), num_partitions)
    }

    fn partition_of(&self, key: &str, num_partitions: usize) -> PartitionId {
        (self.function)(key) % num_partitions.max(1)
    }
}

impl<F> fmt::Debug for CustomPartitioner<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomPartitioner").finish_non_exhaustive()
    }
}

/// The hash by which [`PartitionConfig::hash`] spreads keys: XXH3, 64 bits, without a seed. The same in every version of this
/// crate, on every machine: what one process puts into a partition, another one finds there.
#[must_use]
pub fn stable_hash(key: &str) -> u64 {
    XxHash3_64::oneshot(key.as_bytes())
}

/// Its upper part, multiplied: as even as modulo, and without a division.
fn partition_of_hash(hash: u64, num_partitions: usize) -> PartitionId {
    let scaled = u128::from(hash) * num_partitions.max(1) as u128;
    // Below the number of partitions: it fits.
    (scaled >> 64) as usize
}

/// How commands are spread over partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionConfig {
    /// How many partitions there are. 1 to 4096.
    pub num_partitions: usize,
    /// By what.
    pub strategy: PartitionStrategy,
}

/// A queue's partitions.
#[derive(Clone)]
pub(super) struct Partitions {
    partitioner: Arc<dyn Partitioner>,
    count: usize,
}

impl Partitions {
    /// None where there is nothing to choose.
    pub(super) fn new(config: &PartitionConfig, partitioner: Option<Arc<dyn Partitioner>>) -> Option<Self> {
        let partitioner = match (partitioner, config.strategy) {
            (None, PartitionStrategy::None) => return None,
            (Some(partitioner), _) => partitioner,
            (None, _) => config.create_partitioner(),
        };
        Some(Self { partitioner, count: config.num_partitions })
    }

    /// Calls others' code, which may panic.
    pub(super) fn of(&self, key: Option<&Key>, command_type: &str) -> PartitionId {
        let partition = match key {
            Some(key) => self.partitioner.partition_of(&key.text(), self.count),
            None => self.partitioner.partition_of(command_type, self.count),
        };
        partition % self.count
    }
}

/// By what commands are spread over partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionStrategy {
    /// In turns.
    RoundRobin,
    /// By their keys, or by their types where they have none.
    Hash,
    /// There is one partition.
    None,
}

impl PartitionConfig {
    /// So many partitions, by this strategy.
    #[must_use]
    pub const fn new(num_partitions: usize, strategy: PartitionStrategy) -> Self {
        Self { num_partitions, strategy }
    }

    /// One partition for each CPU that this process may use, in turns.
    #[must_use]
    pub fn auto() -> Self {
        Self::round_robin(available_cpus())
    }

    /// So many partitions, in turns.
    #[must_use]
    pub const fn round_robin(num_partitions: usize) -> Self {
        Self::new(num_partitions, PartitionStrategy::RoundRobin)
    }

    /// So many partitions: commands of one key, or of one type where they have none, go to the same.
    #[must_use]
    pub const fn hash(num_partitions: usize) -> Self {
        Self::new(num_partitions, PartitionStrategy::Hash)
    }

    /// One partition.
    #[must_use]
    pub const fn none() -> Self {
        Self::new(1, PartitionStrategy::None)
    }

    /// What does it.
    #[must_use]
    pub fn create_partitioner(&self) -> Arc<dyn Partitioner> {
        match self.strategy {
            PartitionStrategy::RoundRobin | PartitionStrategy::None => Arc::new(RoundRobinPartitioner::new()),
            PartitionStrategy::Hash => Arc::new(HashPartitioner),
        }
    }

    /// Whether there can be so many.
    ///
    /// # Errors
    ///
    /// [`LaneError::ConfigError`](crate::LaneError::ConfigError), which says what to use.
    pub fn check(&self) -> Result<()> {
        let mut errors = ConfigErrors::default();
        self.check_into(&mut errors);
        Ok(errors.into_result()?)
    }

    pub(crate) fn check_into(&self, errors: &mut ConfigErrors) {
        let Self { num_partitions, strategy } = *self;
        if !(1..=PARTITIONS_MAX).contains(&num_partitions) {
            let hint = format!("use 1 to {PARTITIONS_MAX}");
            errors.push("partitions.num_partitions", num_partitions, hint);
        }
        if strategy == PartitionStrategy::None && num_partitions > 1 {
            let hint = "without a strategy there is one partition: use round_robin(n) or hash(n)";
            errors.push("partitions.num_partitions", num_partitions, hint);
        }
    }
}

impl Default for PartitionConfig {
    /// [`PartitionConfig::auto`].
    fn default() -> Self {
        Self::auto()
    }
}
