//! How a command is kept: as JSON, with a version. What changes of it is not in here; see `scripts/prelude.lua`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::distributed::{CommandEnvelope, DeadReason, EnqueueOptions};
use crate::error::DistributedError;

/// Of the queue as a whole: what keys there are, and what scripts make of them.
pub(super) const QUEUE_VERSION: &str = "1";

/// Of one command.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a> {
    v: u32,
    envelope: &'a CommandEnvelope,
    payload_version: u32,
    headers: &'a BTreeMap<String, String>,
}

/// What of a command does not change.
#[derive(Deserialize)]
pub(super) struct Record {
    pub(super) envelope: CommandEnvelope,
    pub(super) payload_version: u32,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

pub(super) fn encode(envelope: &CommandEnvelope, options: &EnqueueOptions) -> Result<Vec<u8>, DistributedError> {
    let payload_version = options.payload_version.unwrap_or(1);
    let record = Written { v: VERSION, envelope, payload_version, headers: &options.headers };
    serde_json::to_vec(&record).map_err(|error| DistributedError::InvalidEnvelope {
        field: "payload".to_owned(),
        problem: format!("can not be written: {error}"),
    })
}

/// The command; or what is wrong with it.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, String> {
    let Version { v } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if v != VERSION {
        return Err(format!("it is of version {v}, and this version of the crate reads {VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Why a command was given up.
pub(super) fn encode_reason(reason: &DeadReason) -> Vec<u8> {
    // Two texts at most: that can not fail.
    serde_json::to_vec(reason).unwrap_or_default()
}

pub(super) fn decode_reason(bytes: &[u8]) -> DeadReason {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| DeadReason::Undecodable(format!("why it was given up can not be read: {error}")))
}

#[cfg(all(test, not(corelane_loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let sent = CommandEnvelope::new("sample", "query", serde_json::json!({"a": [1, "ü"]}));
        let bytes = encode(&sent, &EnqueueOptions::new().payload_version(3).header("a", "b")).unwrap();
        let record = decode(&bytes).unwrap();
        assert_eq!((record.envelope, record.payload_version), (sent, 3));
        assert_eq!(record.headers["a"], "b");
    }

    #[test]
    fn a_record_of_another_version_is_not_guessed_at() {
        let sent = CommandEnvelope::new("sample", "query", serde_json::json!(1));
        let bytes = encode(&sent, &EnqueueOptions::new()).unwrap();
        let newer = String::from_utf8(bytes).unwrap().replacen("\"v\":1", "\"v\":2", 1);
        assert!(decode(newer.as_bytes()).err().expect("it is newer").contains("version 2"));
        assert!(decode(b"").is_err());
    }

    #[test]
    fn scripts_write_reasons_as_this_does() {
        assert_eq!(encode_reason(&DeadReason::Expired), br#"{"kind":"expired"}"#);
        assert_eq!(encode_reason(&DeadReason::TooManyDeliveries), br#"{"kind":"too_many_deliveries"}"#);
        let undecodable = br#"{"kind":"undecodable","error":"x"}"#;
        assert_eq!(decode_reason(undecodable), DeadReason::Undecodable("x".to_owned()));
    }
}
