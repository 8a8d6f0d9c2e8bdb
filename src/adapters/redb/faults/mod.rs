//! What breaks the store: a simulated disk with faults, crash images and flipped bits.
//!
//! `CORELANE_DEEP=1` looks at many more of them (`just faults-deep`).
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation)]

mod backend;
mod bit_flips;
mod conformance;
mod content;
mod crash_images;
mod disk;
mod enumerate;
mod flips;
mod full_disk;
mod history;
mod images;
mod model;
mod place;
mod possible;
mod random;
mod raw;
mod script;

use std::time::Duration;

use disk::SimDisk;

use super::LocalStorage;
use crate::error::Result;

/// The store on a simulated disk.
fn open(disk: &SimDisk) -> Result<LocalStorage> {
    let disk = disk.clone();
    let builder = LocalStorage::builder().with_cache(1 << 20).with_linger(Duration::ZERO);
    futures_lite::future::block_on(LocalStorage::start(move || Ok(Box::new(disk)), builder, false))
}

/// How much is looked at: so much, or so much in a deep run.
fn scale(quick: u64, deep: u64) -> u64 {
    if std::env::var_os("CORELANE_DEEP").is_some() { deep } else { quick }
}
