//! The streams: which there are, and how they are made when they are first used.
//!
//! The register's list gives each pair of lane and priority a number. Who uses a pair that has none adds it, by comparing, and makes
//! its stream; who finds one in the list makes sure that the stream is there, once. So it does not matter who dies between.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::core::{Core, read};
use super::link::{Call, Refusal, Written, number};
use super::record::{FORMAT, Place, Registry};
use super::sweep::sweep;
use crate::clock::Tick;
use crate::distributed::ID_MEMORY;
use crate::error::DistributedError;
use crate::executor::now;

/// Under what the register keeps the list.
const REGISTRY: &str = "queue";

/// How long the server knows the id of a write: longer than any call goes on asking, as a rule.
const WRITE_IDS: Duration = Duration::from_secs(60);

/// How long results may be kept: the server forgets them by age.
pub(super) const RESULTS_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The time after which the server delivers again what was delivered, where this is not told otherwise for one delivery. Not less:
/// it has to be told before.
const ACK_WAIT_MIN: Duration = Duration::from_secs(1);

/// What this handle knows of the streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    numbers: HashMap<Place, usize>,
    /// Streams that are there.
    made: HashSet<usize>,
    /// Consumers that are there.
    consumers: HashMap<(usize, usize), Consumer>,
}

/// What takes the commands of a partition out of a stream.
#[derive(Clone, Copy, Debug)]
struct Consumer {
    /// The time after which it delivers again.
    ack_wait: Duration,
    unswept: Option<Unswept>,
}

/// What is still to be looked after of what was delivered before this connection.
#[derive(Clone, Copy, Debug)]
struct Unswept {
    /// From here on.
    from: u64,
    /// To there all are acknowledged.
    floor: u64,
    /// The last that was delivered: up to that, those that are with somebody now are acknowledged later.
    delivered: u64,
    /// When to ask the consumer again how far that is.
    look_at: Tick,
}

impl Unswept {
    /// None, if that is all.
    fn some(self) -> Option<Self> {
        (self.from <= self.delivered).then_some(self)
    }
}

/// How often a consumer is asked for that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Streams {
    /// After which time a partition of a stream delivers again, if this handle has taken from there.
    pub(super) fn ack_wait(&self, number: usize, partition: usize) -> Option<Duration> {
        self.known().consumers.get(&(number, partition)).map(|consumer| consumer.ack_wait)
    }

    /// After a reconnection, the server may have lost or brought back some.
    pub(super) fn forget(&self) {
        *self.known() = Known::default();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes what the queue consists of, as far as it is not there. How long keys are remembered, as it was made with.
pub(super) async fn make_queue(core: &Core, call: &Call) -> Result<Duration, DistributedError> {
    let names = &core.names;
    let bucket = |bucket: &super::names::Bucket, age: Duration| {
        let ids = if age.is_zero() { WRITE_IDS } else { WRITE_IDS.min(age) };
        stream(core, &bucket.stream, &bucket.all(), json!({ "max_age": nanos(age), "duplicate_window": nanos(ids) }))
    };
    // The register forgets nothing by age.
    make_stream(call, &bucket(&names.state(), Duration::ZERO)).await?;
    make_stream(call, &bucket(&names.ended(), ID_MEMORY * 2)).await?;
    make_stream(call, &bucket(&names.results(), RESULTS_MAX)).await?;
    let window = make_stream(call, &bucket(&names.keys(), core.window.max(Duration::from_millis(100)))).await?;
    let subjects = json!([names.letters(), names.damaged("*")]);
    let more = json!({ "subjects": subjects, "duplicate_window": nanos(WRITE_IDS) });
    make_stream(call, &stream(core, &names.dead(), &names.letters(), more)).await?;
    check_registry(core, call).await?;
    Ok(window)
}

/// The queue is of this version, and has as many partitions as is asked for.
async fn check_registry(core: &Core, call: &Call) -> Result<(), DistributedError> {
    let new = Registry { format: FORMAT, partitions: core.partitions, streams: Vec::new() };
    let subject = core.names.state().subject(REGISTRY);
    if let Written::At(_) = call.put(&subject, Some(0), super::core::json(&new)).await? {
        return Ok(());
    }
    let (registry, _) = registry(core, call).await?;
    if registry.partitions != core.partitions {
        return Err(DistributedError::PartitionMismatch { stored: registry.partitions, given: core.partitions });
    }
    Ok(())
}

async fn registry(core: &Core, call: &Call) -> Result<(Registry, u64), DistributedError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bucket = core.names.state();
    let record = call.last(&bucket.stream, &bucket.subject(REGISTRY)).await?;
    let record = record.ok_or_else(|| call.server_says("the queue's list of streams is gone"))?;
    if let Ok(Format { format }) = serde_json::from_slice(&record.body)
        && format != FORMAT
    {
        return Err(DistributedError::SchemaVersion {
            found: format.to_string(),
            supported: FORMAT.to_string(),
            hint: "use the version of this crate that made it, or a namespace of its own".to_owned(),
        });
    }
    let registry =
        read(&record.body).map_err(|problem| call.server_says(&format!("the queue's list of streams {problem}")))?;
    Ok((registry, record.sequence))
}

/// All pairs of lane and priority that were ever used, with the numbers of their streams.
pub(super) async fn places(core: &Core, call: &Call) -> Result<Vec<(Place, usize)>, DistributedError> {
    let (registry, _) = registry(core, call).await?;
    Ok(registry.streams.into_iter().zip(0..).collect())
}

/// The stream of a pair, made if it is not there.
pub(super) async fn stream_of(core: &Core, call: &Call, place: &Place) -> Result<usize, DistributedError> {
    let known = core.streams.known().numbers.get(place).copied();
    let number = match known {
        Some(number) => number,
        None => register(core, call, place).await?,
    };
    make_commands(core, call, number).await?;
    core.streams.known().numbers.insert(place.clone(), number);
    Ok(number)
}

async fn register(core: &Core, call: &Call, place: &Place) -> Result<usize, DistributedError> {
    let subject = core.names.state().subject(REGISTRY);
    loop {
        let (mut registry, revision) = registry(core, call).await?;
        if let Some(number) = registry.streams.iter().position(|known| known == place) {
            return Ok(number);
        }
        registry.streams.push(place.clone());
        if let Written::At(_) = call.put(&subject, Some(revision), super::core::json(&registry)).await? {
            return Ok(registry.streams.len() - 1);
        }
    }
}

async fn make_commands(core: &Core, call: &Call, number: usize) -> Result<(), DistributedError> {
    if core.streams.known().made.contains(&number) {
        return Ok(());
    }
    let more = json!({ "retention": "workqueue", "duplicate_window": nanos(WRITE_IDS * 2) });
    make_stream(call, &stream(core, &core.names.stream(number), &core.names.commands(number), more)).await?;
    core.streams.known().made.insert(number);
    Ok(())
}

/// The consumer of a partition of a stream, made if it is not there: its name, and after which time it delivers again.
pub(super) async fn consumer_of(
    core: &Core,
    call: &Call,
    number: usize,
    partition: usize,
) -> Result<(String, Duration), DistributedError> {
    let name = format!("p{partition}");
    let known = core.streams.known().consumers.get(&(number, partition)).copied();
    if let Some(Consumer { ack_wait, unswept }) = known {
        if let Some(unswept) = unswept {
            let unswept = sweep_on(core, call, number, partition, unswept).await?;
            core.streams.known().consumers.insert((number, partition), Consumer { ack_wait, unswept });
        }
        return Ok((name, ack_wait));
    }
    make_commands(core, call, number).await?;
    let stream = core.names.stream(number);
    let info = call.api::<ConsumerInfo>(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await?;
    let info = match info {
        Err(refusal) if refusal.number == self::number::CONSUMER_NOT_FOUND => {
            let config = json!({
                "stream_name": stream,
                "config": {
                    "durable_name": name,
                    "deliver_policy": "all",
                    "ack_policy": "explicit",
                    "replay_policy": "instant",
                    "ack_wait": nanos(core.lease.max(ACK_WAIT_MIN)),
                    // Deliveries are counted in the register: there, a release costs none.
                    "max_deliver": -1,
                    // What is delayed or leased was delivered: there may be any number of these.
                    "max_ack_pending": -1,
                    "max_waiting": 4096,
                    "filter_subject": core.names.partition(number, partition),
                },
            });
            call.api::<ConsumerInfo>(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &config).await?
        }
        info => info,
    };
    let info = info.map_err(|refusal| call.refused(&refusal))?;
    let unswept = Unswept {
        from: 1,
        floor: info.ack_floor.stream_seq,
        delivered: info.delivered.stream_seq,
        look_at: now().plus(LOOK_EVERY),
    };
    let consumer = Consumer { ack_wait: Duration::from_nanos(info.config.ack_wait), unswept: unswept.some() };
    core.streams.known().consumers.insert((number, partition), consumer);
    Ok((name, consumer.ack_wait))
}

/// What a consumer says of itself.
#[derive(Deserialize)]
struct ConsumerInfo {
    config: ConsumerConfig,
    ack_floor: Position,
    delivered: Position,
}

#[derive(Deserialize)]
struct ConsumerConfig {
    ack_wait: u64,
}

#[derive(Deserialize)]
struct Position {
    stream_seq: u64,
}

/// Looks after some more of them. What is left then; none when all that was delivered before is acknowledged, and looked after.
async fn sweep_on(
    core: &Core,
    call: &Call,
    number: usize,
    partition: usize,
    mut unswept: Unswept,
) -> Result<Option<Unswept>, DistributedError> {
    if unswept.from <= unswept.floor {
        let left = sweep(core, call, number, partition, unswept.from, unswept.floor).await?;
        unswept.from = left.unwrap_or(unswept.floor + 1);
    } else if now() >= unswept.look_at {
        let what = format!("CONSUMER.INFO.{}.p{partition}", core.names.stream(number));
        let info = call.api::<ConsumerInfo>(&what, &Value::Null).await?;
        unswept.floor = unswept.floor.max(info.map_err(|refusal| call.refused(&refusal))?.ack_floor.stream_seq);
        unswept.look_at = now().plus(LOOK_EVERY);
    }
    Ok(unswept.some())
}

/// Makes a consumer anew that keeps questions waiting: it counts messages that are gone, and nats-server 2.9, once it was killed, may
/// never get past them. The new one delivers all that is there again, which does no harm: the register decides.
pub(super) async fn remake_consumer(
    core: &Core,
    call: &Call,
    number: usize,
    partition: usize,
) -> Result<(), DistributedError> {
    let what = format!("CONSUMER.DELETE.{}.p{partition}", core.names.stream(number));
    match call.api::<Value>(&what, &Value::Null).await? {
        Err(refusal) if refusal.number != self::number::CONSUMER_NOT_FOUND => return Err(call.refused(&refusal)),
        _ => {}
    }
    core.streams.known().consumers.remove(&(number, partition));
    consumer_of(core, call, number, partition).await.map(drop)
}

/// What a stream of the queue is made as.
fn stream(core: &Core, name: &str, subjects: &str, more: Value) -> Value {
    let bucket = name.starts_with("KV_");
    let mut config = json!({
        "name": name,
        "subjects": [subjects],
        "retention": "limits",
        "storage": "file",
        "num_replicas": core.replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": if bucket { 1 } else { -1 },
        // Full is an error: nothing that was accepted makes room.
        "discard": "new",
    });
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    config
}

/// How often, and after which time, it is looked again for a stream that somebody else is about to make.
const OVERLAP_TRIES: u32 = 25;
const OVERLAP_WAIT: Duration = Duration::from_millis(20);

/// Makes a stream, or finds it: how long its records are kept.
async fn make_stream(call: &Call, config: &Value) -> Result<Duration, DistributedError> {
    #[derive(Deserialize)]
    struct Info {
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        max_age: u64,
    }
    let name = config["name"].as_str().unwrap_or_default();
    let mut left = OVERLAP_TRIES;
    let info = loop {
        let made = call.api::<Info>(&format!("STREAM.CREATE.{name}"), config).await?;
        // As somebody has made it, with other settings.
        let is_there = |refusal: &Refusal| [number::STREAM_EXISTS, number::OVERLAP].contains(&refusal.number);
        let Err(refusal) = made.as_ref().map(drop) else { break made };
        if !is_there(refusal) {
            break made;
        }
        let overlaps = refusal.number == number::OVERLAP;
        let found = call.api::<Info>(&format!("STREAM.INFO.{name}"), &Value::Null).await?;
        if found.is_ok() || !overlaps {
            break found;
        }
        // Somebody else is about to make it: until then, it is another stream with the same subjects. Or it is another one.
        left -= 1;
        if left == 0 {
            break made;
        }
        tokio::time::sleep(OVERLAP_WAIT).await;
    };
    Ok(Duration::from_nanos(info.map_err(|refusal| call.refused(&refusal))?.config.max_age))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
