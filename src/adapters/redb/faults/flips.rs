//! Single bits of a store's files are flipped: it is refused, or contains exactly what it contained.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::disk::SimDisk;
use super::history::Files;
use super::random::Random;

/// What became of the flips.
#[derive(Debug, Default)]
pub(super) struct Flips {
    pub(super) flips: u64,
    /// The store contains what it contained.
    pub(super) harmless: u64,
    /// By what was said.
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) wrong: Vec<String>,
}

/// A bit of a file.
#[derive(Clone, Debug)]
pub(super) struct Bit {
    file: String,
    byte: usize,
    bit: u8,
}

/// All bits of what is written densely, and of the rest about as many as asked for: most of them of bytes that are not zero.
pub(super) fn choose(files: &Files, dense: impl Fn(&str, usize) -> bool, sample: u64, seed: u64) -> Vec<Bit> {
    let mut random = Random::new(seed);
    let mut chosen = Vec::new();
    let count = |zero: bool| {
        files
            .iter()
            .flat_map(|(name, content)| content.iter().enumerate().map(move |(at, byte)| (name, at, byte)))
            .filter(|&(name, at, &byte)| !dense(name, at) && (byte == 0) == zero)
            .count() as u64
            * 8
    };
    let (used, zeros) = (count(false).max(1), count(true).max(1));
    for (name, content) in files {
        for (byte, &value) in content.iter().enumerate() {
            for bit in 0..8 {
                // Four of five in bytes that are used.
                let (wanted, of) = if value == 0 { (sample / 5, zeros) } else { (sample - sample / 5, used) };
                if dense(name, byte) || random.below(of) < wanted {
                    chosen.push(Bit { file: name.clone(), byte, bit });
                }
            }
        }
    }
    chosen
}

/// Opens and reads the store after each flip. `read` says what a refusal is, by a short name.
pub(super) fn flip<C: PartialEq + std::fmt::Debug>(
    files: &Files,
    bits: &[Bit],
    content: &C,
    read: impl Fn(&SimDisk) -> Result<C, String>,
) -> Flips {
    let mut flips = Flips::default();
    for Bit { file, byte, bit } in bits {
        let mut flipped = files.clone();
        flipped.entry(file.clone()).or_default()[*byte] ^= 1 << bit;
        let disk = SimDisk::with(flipped.clone());
        flips.flips += 1;
        let which = format!("bit {bit} of byte {byte} of {file:?}");
        match catch_unwind(AssertUnwindSafe(|| read(&disk))) {
            Err(_) => flips.wrong.push(format!("{which}: panicked")),
            Ok(Ok(found)) if found == *content => flips.harmless += 1,
            Ok(Ok(found)) => flips.wrong.push(format!("{which}: {found:?} instead of {content:?}")),
            Ok(Err(refused)) => {
                *flips.refused.entry(refused).or_default() += 1;
                if disk.files() != flipped {
                    flips.wrong.push(format!("{which}: refused, and changed"));
                }
            }
        }
    }
    flips
}
