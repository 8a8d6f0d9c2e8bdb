//! What a power cut leaves of a disk: crash images, made from its log.
//!
//! The medium has what was synced. Of what was not, each write is there, or not, or in part: sectors of 512 bytes are there
//! or not, each for itself. The length of a file is any of those it had since the last sync, whatever became of the writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::disk::{Op, set_len, write_at};
use super::random::Random;

/// What a device writes at once.
const SECTOR: usize = 512;

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Survival {
    /// All of it: the process was killed and the system goes on.
    All,
    /// None of it.
    None,
    /// The newest write only.
    Newest,
    /// All but the newest write.
    AllButNewest,
    /// All, and of the newest write every second sector: those with even numbers, or the others.
    NewestTorn { even: bool },
    /// By this seed: each write there, not there or torn; one of the lengths.
    Random(u64),
}

/// The medium while a log is replayed.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    files: BTreeMap<String, MediumFile>,
    /// Files whose creation is not durable.
    new: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct MediumFile {
    /// What is there in any case.
    content: Vec<u8>,
    /// What came later: what may be missing, and what is there but lies above such.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
struct Pending {
    change: Content,
    certain: bool,
    /// A sync of it has failed: no later sync makes it certain.
    dropped: bool,
}

#[derive(Clone, Debug)]
enum Content {
    Write { at: usize, data: Arc<[u8]> },
    SetLen(usize),
}

impl Medium {
    pub(super) fn new(base: BTreeMap<String, Vec<u8>>) -> Self {
        let files =
            base.into_iter().map(|(name, content)| (name, MediumFile { content, pending: Vec::new() })).collect();
        Self { files, new: BTreeSet::new() }
    }

    /// Does what was done next.
    pub(super) fn advance(&mut self, op: &Op) {
        match op {
            Op::Create { file } => {
                self.new.insert(file.clone());
                self.files.insert(file.clone(), MediumFile::default());
            }
            Op::Write { file, at, data } => self.push(file, Content::Write { at: *at, data: data.clone() }),
            Op::SetLen { file, len } => self.push(file, Content::SetLen(*len)),
            Op::Sync { file } => self.file(file).sync(),
            Op::FailedSync { file } => self.file(file).fail_sync(),
            Op::SyncFolder => self.new.clear(),
        }
    }

    fn file(&mut self, name: &str) -> &mut MediumFile {
        self.files.entry(name.to_owned()).or_default()
    }

    fn push(&mut self, file: &str, change: Content) {
        self.file(file).pending.push(Pending { change, certain: false, dropped: false });
    }

    /// What is on the medium after a power cut now.
    pub(super) fn image(&self, survival: Survival) -> BTreeMap<String, Vec<u8>> {
        let mut random = match survival {
            Survival::Random(seed) => Random::new(seed),
            _ => Random::new(0),
        };
        let mut image = BTreeMap::new();
        for (name, file) in &self.files {
            let lost = self.new.contains(name)
                && match survival {
                    Survival::All | Survival::AllButNewest | Survival::NewestTorn { .. } => false,
                    Survival::None | Survival::Newest => true,
                    Survival::Random(_) => random.below(2) == 0,
                };
            if !lost {
                image.insert(name.clone(), file.image(survival, &mut random));
            }
        }
        image
    }
}

impl MediumFile {
    fn sync(&mut self) {
        for pending in self.pending.iter_mut().filter(|pending| !pending.dropped) {
            pending.certain = true;
        }
        // What is certain and above nothing that may be missing is content.
        let uncertain = self.pending.iter().position(|pending| !pending.certain).unwrap_or(self.pending.len());
        for pending in self.pending.drain(..uncertain) {
            pending.change.make(&mut self.content, |_| true);
        }
    }

    fn fail_sync(&mut self) {
        for pending in self.pending.iter_mut().filter(|pending| !pending.certain) {
            // A length is not data: the next sync of the file system's own records has it.
            pending.dropped = matches!(pending.change, Content::Write { .. });
        }
    }

    fn image(&self, survival: Survival, random: &mut Random) -> Vec<u8> {
        let newest = self.pending.iter().rposition(|pending| !pending.certain);
        let mut content = self.content.clone();
        // The lengths that the file may have: each one since the last that is certain.
        let mut lengths = vec![content.len()];
        let mut length = content.len();
        for (index, pending) in self.pending.iter().enumerate() {
            length = match &pending.change {
                Content::Write { at, data } => length.max(at + data.len()),
                Content::SetLen(len) => *len,
            };
            if pending.certain {
                lengths.clear();
            }
            lengths.push(length);
            let is_newest = Some(index) == newest;
            match survival {
                _ if pending.certain => pending.change.make(&mut content, |_| true),
                Survival::All => pending.change.make(&mut content, |_| true),
                Survival::None => {}
                Survival::Newest if !is_newest => {}
                Survival::AllButNewest if is_newest => {}
                Survival::Newest | Survival::AllButNewest => pending.change.make(&mut content, |_| true),
                Survival::NewestTorn { even } if is_newest => {
                    pending.change.make(&mut content, |sector| (sector % 2 == 0) == even);
                }
                Survival::NewestTorn { .. } => pending.change.make(&mut content, |_| true),
                Survival::Random(_) => match random.below(4) {
                    0 => {}
                    1 => pending.change.make(&mut content, |_| random.below(2) == 0),
                    _ => pending.change.make(&mut content, |_| true),
                },
            }
        }
        let length = match survival {
            Survival::None => lengths[0],
            Survival::Random(_) => lengths[random.below(lengths.len() as u64) as usize],
            _ => length,
        };
        set_len(&mut content, length);
        content
    }
}

impl Content {
    /// Makes the change, as far as the sectors say that it is there.
    fn make(&self, content: &mut Vec<u8>, mut is_there: impl FnMut(usize) -> bool) {
        match self {
            Self::SetLen(len) => set_len(content, *len),
            Self::Write { at, data } => {
                let (mut from, end) = (*at, at + data.len());
                while from < end {
                    let to = end.min((from / SECTOR + 1) * SECTOR);
                    if is_there(from / SECTOR) {
                        write_at(content, from, &data[from - at..to - at]);
                    }
                    from = to;
                }
            }
        }
    }
}
