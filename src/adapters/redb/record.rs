//! What a value looks like: one byte for the format, a checksum, and JSON.
//!
//! The checksum covers the table and the key, too, so that a record at another's place is found. redb has checksums of its
//! own, which are looked at when a store is opened; these are looked at whenever a record is read, and find what went wrong
//! on the way between redb and us.

use serde::Serialize;
use serde::de::DeserializeOwned;
use twox_hash::XxHash3_64;

use crate::error::StorageError;

/// The format of records and tables, and of the small files.
pub(super) const FORMAT: u32 = 1;

/// Bytes that one record may take.
pub(super) const RECORD_BYTES: usize = 64 << 20;

/// Bytes that most records fit into, so that they need one allocation.
const TYPICAL_BYTES: usize = 512;

const RECORD_FORMAT: u8 = 1;
const HEADER: usize = 1 + size_of::<u64>();

/// Of several parts, each with where it ends: the sum of one is the seed of the next.
pub(super) fn checksum(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(FORMAT.into(), |seed, part| XxHash3_64::oneshot_with_seed(seed, part))
}

/// A record's JSON behind room for its header, which [`seal`] fills. `named` says which record it is, to people.
pub(super) fn encode<T: Serialize>(value: &T, named: impl Fn() -> String) -> Result<Vec<u8>, StorageError> {
    let mut record = Vec::with_capacity(TYPICAL_BYTES);
    record.resize(HEADER, 0);
    serde_json::to_writer(&mut record, value)
        .map_err(|error| StorageError::NotData(format!("{}: {error}", named())))?;
    if record.len() > RECORD_BYTES {
        return Err(StorageError::TooLarge { size: record.len(), limit: RECORD_BYTES });
    }
    Ok(record)
}

/// Fills the header of what [`encode`] made, for its place.
pub(super) fn seal(table: &str, key: &[u8], record: &mut [u8]) {
    let sum = checksum(&[table.as_bytes(), key, &[RECORD_FORMAT], &record[HEADER..]]);
    record[0] = RECORD_FORMAT;
    record[1..HEADER].copy_from_slice(&sum.to_le_bytes());
}

/// What was sealed for that place; `named` says which record it is, to people.
pub(super) fn unseal<T: DeserializeOwned>(
    table: &str,
    key: &[u8],
    record: &[u8],
    named: impl Fn() -> String,
) -> Result<T, StorageError> {
    let damaged = |problem: &str| StorageError::Damaged { what: format!("{} in table {table:?} {problem}", named()) };
    let Some((header, body)) = record.split_at_checked(HEADER) else {
        return Err(damaged("is too short"));
    };
    // The sum covers the format: a flipped bit does not make a newer version of a record.
    let sum = checksum(&[table.as_bytes(), key, &header[..1], body]);
    if header[1..] != sum.to_le_bytes() {
        return Err(damaged("does not match its checksum"));
    }
    if header[0] > RECORD_FORMAT {
        return Err(StorageError::FormatTooNew { found: header[0].into(), supported: RECORD_FORMAT.into() });
    }
    serde_json::from_slice(body).map_err(|error| damaged(&format!("can not be read: {error}")))
}
