//! Commands as they are stored, and back.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::connection::Parameters;
use crate::distributed::{
    CommandEnvelope, DEFAULT_MAX_DELIVERIES, DeadReason, EnqueueOptions, LeaseToken, Leased, RemoteDeadLetter,
};
use crate::error::DistributedError;
use crate::queue::{PartitionId, Priority};

/// The version of what is in `body`.
pub(super) const FORMAT: i16 = 1;

/// What is in `body`, as JSON: all that the server need not know.
#[derive(Serialize)]
struct Body<'a> {
    payload: &'a Value,
    created_at: DateTime<Utc>,
    version: u32,
    headers: &'a BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct OwnedBody {
    payload: Value,
    created_at: DateTime<Utc>,
    version: u32,
    headers: BTreeMap<String, String>,
}

/// A command that may be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    id: String,
    partition: i32,
    lane: String,
    kind: String,
    priority: i16,
    delay: i64,
    expiry: Option<i64>,
    max_deliveries: i64,
    retry_count: i64,
    pub(super) key: Option<String>,
    keep: Option<i64>,
    fingerprint: String,
    body: String,
}

impl Outgoing {
    /// Of a command that has its partition.
    pub(super) fn new(
        envelope: CommandEnvelope,
        options: EnqueueOptions,
        max_payload: usize,
    ) -> Result<Self, DistributedError> {
        let version = options.payload_version.unwrap_or(1);
        let body =
            Body { payload: &envelope.payload, created_at: envelope.created_at, version, headers: &options.headers };
        let body = serde_json::to_string(&body).map_err(|error| DistributedError::InvalidEnvelope {
            field: "payload".to_owned(),
            problem: format!("can not be written as JSON: {error}"),
        })?;
        let size = body.len() + envelope.id.len() + envelope.lane_id.len() + envelope.command_type.len();
        if size > max_payload {
            return Err(DistributedError::PayloadTooLarge { size, limit: max_payload });
        }
        let fingerprint = envelope.fingerprint();
        Ok(Self {
            fingerprint,
            body,
            id: envelope.id,
            partition: i32::try_from(envelope.partition_id).unwrap_or(i32::MAX),
            lane: envelope.lane_id,
            kind: envelope.command_type,
            priority: i16::from(options.priority.unwrap_or(EnqueueOptions::DEFAULT_PRIORITY)),
            delay: options.delay.map_or(0, micros),
            expiry: options.expires_after.map(micros),
            max_deliveries: i64::from(options.max_deliveries.unwrap_or(DEFAULT_MAX_DELIVERIES)),
            retry_count: i64::from(envelope.retry_count),
            key: options.idempotency_key,
            keep: options.keep_result.map(micros),
        })
    }

    /// As JSON, about.
    pub(super) fn size(&self) -> usize {
        self.body.len() + self.lane.len() + self.kind.len()
    }
}

/// What [`Query::Enqueue`](super::sql::Query::Enqueue) is given: a column for each field.
pub(super) fn columns<'a>(commands: &[&'a Outgoing], window: Duration) -> Parameters<'a> {
    fn column<'a, T>(commands: &[&'a Outgoing], of: impl Fn(&'a Outgoing) -> T) -> Box<dyn ToSql + Send + Sync + 'a>
    where
        Vec<T>: ToSql + Send + Sync + 'a,
    {
        Box::new(commands.iter().map(|one| of(one)).collect::<Vec<_>>())
    }
    let window = micros(window);
    vec![
        column(commands, |one| one.id.as_str()),
        column(commands, |one| one.partition),
        column(commands, |one| one.lane.as_str()),
        column(commands, |one| one.kind.as_str()),
        column(commands, |one| one.priority),
        column(commands, |one| one.delay),
        column(commands, |one| one.expiry),
        column(commands, |one| one.max_deliveries),
        column(commands, |one| one.retry_count),
        column(commands, |one| one.key.as_deref()),
        column(commands, |one| one.key.as_ref().map(|_| window)),
        column(commands, |one| one.keep),
        column(commands, |one| one.fingerprint.as_str()),
        column(commands, |one| one.body.as_str()),
        Box::new(FORMAT),
    ]
}

/// Of what types they are.
pub(super) const COLUMN_TYPES: [Type; 15] = {
    const TEXTS: Type = Type::TEXT_ARRAY;
    const LONGS: Type = Type::INT8_ARRAY;
    let (ints, shorts, short) = (Type::INT4_ARRAY, Type::INT2_ARRAY, Type::INT2);
    [TEXTS, ints, TEXTS, TEXTS, shorts, LONGS, LONGS, LONGS, LONGS, TEXTS, LONGS, LONGS, TEXTS, TEXTS, short]
};

/// The longest time: later than that is never, and the server's clock can be that late.
const TIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Rounded up, and at most [`TIME_MAX`].
pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.min(TIME_MAX).as_nanos().div_ceil(1000)).unwrap_or(i64::MAX)
}

/// A name as it may be sent. No name that is stored has control characters, and PostgreSQL takes all of them but one: so what has
/// that is found as little as before.
pub(super) fn sendable(name: &str) -> String {
    name.replace('\0', "\u{1}")
}

/// The columns that claims and letters have in common.
struct Stored {
    envelope: CommandEnvelope,
    fence: u64,
    priority: Priority,
    deliveries: u32,
    version: u32,
    headers: BTreeMap<String, String>,
}

/// A command whose body can not be read, and why.
pub(super) struct Damaged {
    pub(super) token: LeaseToken,
    pub(super) problem: String,
}

fn number<T: TryFrom<i64> + Default>(row: &Row, column: &str) -> T {
    T::try_from(row.get::<_, i64>(column)).unwrap_or_default()
}

fn token(row: &Row, partition: PartitionId) -> LeaseToken {
    LeaseToken::new(row.get::<_, String>("id"), partition, number(row, "fence"), "")
}

fn body(row: &Row) -> Result<OwnedBody, String> {
    let format: i16 = row.get("format");
    if format != FORMAT {
        return Err(format!("it is of format {format}, and this version reads {FORMAT}"));
    }
    serde_json::from_str(row.get("body")).map_err(|error| error.to_string())
}

fn stored(row: &Row, partition: PartitionId, body: OwnedBody) -> Stored {
    let OwnedBody { payload, created_at, version, headers } = body;
    let envelope = CommandEnvelope {
        id: row.get("id"),
        command_type: row.get("kind"),
        lane_id: row.get("lane"),
        partition_id: partition,
        payload,
        retry_count: number(row, "retry_count"),
        created_at,
    };
    let priority = Priority::try_from(row.get::<_, i16>("priority")).unwrap_or_default();
    Stored { envelope, fence: number(row, "fence"), priority, deliveries: number(row, "deliveries"), version, headers }
}

/// A command that was taken.
pub(super) fn leased(row: &Row, partition: PartitionId, lease: Duration) -> Result<Leased, Damaged> {
    let body = body(row).map_err(|problem| Damaged { token: token(row, partition), problem })?;
    let Stored { envelope, fence, priority, deliveries, version, headers } = stored(row, partition, body);
    let token = LeaseToken::new(envelope.id.as_str(), partition, fence, "");
    let mut leased = Leased::new(envelope, token, Some(lease));
    leased.delivery = deliveries;
    leased.priority = priority;
    leased.payload_version = version;
    leased.headers = headers;
    Ok(leased)
}

/// A dead letter. What can not be read of it is shown as it is, as text.
pub(super) fn letter(row: &Row) -> RemoteDeadLetter {
    let partition = usize::try_from(row.get::<_, i32>("partition")).unwrap_or_default();
    let failed_at: DateTime<Utc> = row.get("at");
    let body = body(row).unwrap_or_else(|_| OwnedBody {
        payload: Value::String(row.get("body")),
        created_at: failed_at,
        version: 1,
        headers: BTreeMap::new(),
    });
    let Stored { envelope, priority, deliveries, version, headers, .. } = stored(row, partition, body);
    let reason: Option<&str> = row.get("reason");
    let reason = reason.unwrap_or("it is not known why");
    let reason = serde_json::from_str(reason).unwrap_or_else(|_| DeadReason::Failed(reason.to_owned()));
    let mut letter = RemoteDeadLetter::new(envelope, reason, deliveries, failed_at);
    letter.priority = priority;
    letter.payload_version = version;
    letter.headers = headers;
    letter
}
