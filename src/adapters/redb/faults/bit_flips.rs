//! Single bits of a whole store are flipped, after a clean end and after a kill.

use futures_lite::future::block_on;

use super::content::Content;
use super::disk::SimDisk;
use super::flips::{Flips, choose, flip};
use super::history::Files;
use super::script::{Step, command, everything, random, run, save};
use super::{open, scale};
use crate::error::{LaneError, StorageError};
use crate::storage::{Durability, Storage};

/// The files of a store, after it was closed and at a moment before that; with what it contained.
fn store(script: &[Step]) -> (Files, Files, Content) {
    let disk = SimDisk::default();
    let store = open(&disk).unwrap();
    block_on(async {
        store.recover().await.unwrap();
        run(&store, &disk, script).await;
        // Synced, so that nothing is on its way.
        store.apply(vec![save(command(1_000, 200))], Durability::Synced).await.unwrap();
        let _running = store.mark_started("d1000");
        let killed = disk.files();
        store.close().await.unwrap();
        let content = read(&SimDisk::with(disk.files())).unwrap();
        (disk.files(), killed, content)
    })
}

fn read(disk: &SimDisk) -> Result<Content, String> {
    let named = |error: LaneError| match error {
        LaneError::Storage(StorageError::Damaged { .. }) => "damaged".to_owned(),
        other => format!("{other:?}"),
    };
    let store = open(disk).map_err(named)?;
    block_on(Content::recover(&store)).map_err(named)
}

fn flips(name: &str, files: &Files, content: &Content, seed: u64) -> Flips {
    // The heads of all files densely: redb's, and the whole of the small ones but what is empty in them.
    let dense = |file: &str, at: usize| match file {
        "database" => at < 320,
        "watermark" => matches!(at, 0..48 | 4096..4112 | 8192..8208),
        "running" => at < 64,
        _ => false,
    };
    let bits = choose(files, dense, scale(800, 200_000), seed);
    let flips = flip(files, &bits, content, read);
    let sizes: Vec<_> = files.iter().map(|(name, content)| format!("{name} {}", content.len())).collect();
    println!(
        "{name} ({} bytes), seed {seed}: {} flips, {} harmless, refused {:?}, {} wrong",
        sizes.join(", "),
        flips.flips,
        flips.harmless,
        flips.refused,
        flips.wrong.len()
    );
    flips
}

fn assert_found_or_harmless(flips: &Flips) {
    assert!(flips.wrong.is_empty(), "{} wrong, first {}", flips.wrong.len(), flips.wrong[0]);
    assert!(flips.refused.keys().all(|refused| refused == "damaged"), "{:?}", flips.refused);
    assert!(flips.refused.values().sum::<u64>() > 0, "nothing was found");
}

#[test]
fn a_flipped_bit_in_a_store_that_was_closed_is_found_or_harmless() {
    let (closed, _, content) = store(&everything());
    assert_found_or_harmless(&flips("closed", &closed, &content, 20));
}

#[test]
fn a_flipped_bit_in_a_store_that_was_killed_is_found_or_harmless() {
    let (_, killed, content) = store(&random(40, 21));
    assert_found_or_harmless(&flips("killed", &killed, &content, 21));
}
