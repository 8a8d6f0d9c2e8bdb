//! A simulated disk: files as bytes, a log of everything that was done to them, and faults on demand.
//!
//! It knows two contents of each file: what the running system reads, and what a power cut leaves. The second is worked out
//! from the log by [`images`](super::images): an un-synced write may have reached the medium, or not, or in part.
//!
//! A failed sync is the worst that systems do (Linux, "fsyncgate"): what was to be synced stays readable, is taken for clean
//! from then on, and later syncs do not write it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Space is counted in blocks of this many bytes.
const BLOCK: usize = 4096;

/// What was done to the disk, in this order.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create {
        file: String,
    },
    Write {
        file: String,
        at: usize,
        data: Arc<[u8]>,
    },
    SetLen {
        file: String,
        len: usize,
    },
    Sync {
        file: String,
    },
    /// What was written before stays readable, and is lost or not at the next power cut, whatever is synced later.
    FailedSync {
        file: String,
    },
    SyncFolder,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No space: at a write, a change of length, a new file.
    NoSpace,
    /// Half of a write is there, then there is no space.
    ShortWrite,
    /// The device fails: at anything but a sync.
    Io,
    /// A sync fails, and what was to be synced may be lost.
    Sync,
}

impl Fault {
    fn hits(self, access: Access) -> bool {
        match self {
            Self::NoSpace => matches!(access, Access::Write | Access::Length | Access::Create),
            Self::ShortWrite => access == Access::Write,
            Self::Io => access != Access::Sync,
            Self::Sync => access == Access::Sync,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Length,
    Sync,
    Create,
}

/// A fault that waits for its turn.
#[derive(Clone, Copy, Debug)]
struct Armed {
    fault: Fault,
    /// Accesses that it can hit and that it lets pass.
    pass: u64,
    sticky: bool,
}

/// Files on a simulated disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<String, File>,
    /// What was on the medium when the log began.
    base: BTreeMap<String, Vec<u8>>,
    log: Vec<Op>,
    armed: Option<Armed>,
    /// The armed fault's turn came.
    turn_came: bool,
    /// Something failed by it.
    hit: bool,
    /// There is no space but in blocks that a file has or that were given back.
    full: bool,
    free_blocks: usize,
    /// Syncs are acknowledged and nothing is synced: a device that lies.
    lies: bool,
}

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    /// Which blocks have space: what was never written is a hole.
    allocated: Vec<bool>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("files", &self.files.keys()).field("log", &self.log.len()).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// A disk with these files, all of them synced.
    pub(super) fn with(base: BTreeMap<String, Vec<u8>>) -> Self {
        let files = base.iter().map(|(name, content)| (name.clone(), File::full(content.clone()))).collect();
        Self(Arc::new(Mutex::new(State { files, base, ..State::default() })))
    }

    /// A copy, with what is durable of it and what is not, and without faults: what a process finds that starts when the one
    /// that used the disk was killed.
    pub(super) fn fork(&self) -> Self {
        let copy = Self(Arc::new(Mutex::new(self.lock().clone())));
        copy.heal();
        copy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, the access after `pass` accesses that the fault can hit fails; all that follow, too, if it is sticky.
    pub(super) fn arm(&self, fault: Fault, pass: u64, sticky: bool) {
        let mut state = self.lock();
        state.armed = Some(Armed { fault, pass, sticky });
        (state.turn_came, state.hit) = (false, false);
    }

    /// The device works again, and has space.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        (state.armed, state.full) = (None, false);
    }

    /// Whether the turn of the armed fault came since it was armed.
    pub(super) fn turn_came(&self) -> bool {
        self.lock().turn_came
    }

    /// Whether something failed by it.
    pub(super) fn was_hit(&self) -> bool {
        self.lock().hit
    }

    /// Acknowledges syncs from now on without syncing anything.
    pub(super) fn lie(&self) {
        self.lock().lies = true;
    }

    /// How much was done so far: a position in the log.
    pub(super) fn position(&self) -> usize {
        self.lock().log.len()
    }

    /// What was on the medium at first, and what was done since.
    pub(super) fn history(&self) -> (BTreeMap<String, Vec<u8>>, Vec<Op>) {
        let state = self.lock();
        (state.base.clone(), state.log.clone())
    }

    /// What the running system reads.
    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().files.iter().map(|(name, file)| (name.clone(), file.content.clone())).collect()
    }

    /// Makes an empty file if there is none.
    pub(super) fn create(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.access(Access::Create)?;
        if !state.files.contains_key(name) {
            state.files.insert(name.to_owned(), File::default());
            state.log.push(Op::Create { file: name.to_owned() });
        }
        Ok(())
    }

    pub(super) fn len(&self, name: &str) -> io::Result<u64> {
        let mut state = self.lock();
        state.access(Access::Read)?;
        Ok(state.file(name)?.content.len() as u64)
    }

    pub(super) fn read(&self, name: &str, at: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.access(Access::Read)?;
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let content = &state.file(name)?.content;
        let range =
            at.checked_add(out.len()).and_then(|end| content.get(at..end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(range);
        Ok(())
    }

    pub(super) fn write(&self, name: &str, at: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let failed = state.access(Access::Write);
        let written = match &failed {
            Ok(()) => data,
            // A fault that leaves no space leaves a half.
            Err(Fault::ShortWrite) => &data[..data.len() / 2],
            Err(_) => &[],
        };
        if !written.is_empty() {
            state.allocate(name, at, written.len())?;
            write_at(&mut state.file(name)?.content, at, written);
            state.log.push(Op::Write { file: name.to_owned(), at, data: written.into() });
        }
        Ok(failed?)
    }

    pub(super) fn set_len(&self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.access(Access::Length)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let file = state.file(name)?;
        set_len(&mut file.content, len);
        let blocks = len.div_ceil(BLOCK);
        let freed = file.allocated.iter().skip(blocks).filter(|&&has| has).count();
        file.allocated.resize(blocks, false);
        state.free_blocks += freed;
        state.log.push(Op::SetLen { file: name.to_owned(), len });
        Ok(())
    }

    pub(super) fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if let Err(failed) = state.access(Access::Sync) {
            state.log.push(Op::FailedSync { file: name.to_owned() });
            return Err(failed.into());
        }
        state.file(name)?;
        if !state.lies {
            state.log.push(Op::Sync { file: name.to_owned() });
        }
        Ok(())
    }

    /// Makes it durable which files there are.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.access(Access::Sync)?;
        if !state.lies {
            state.log.push(Op::SyncFolder);
        }
        Ok(())
    }
}

impl State {
    fn access(&mut self, access: Access) -> Result<(), Fault> {
        let Some(armed) = &mut self.armed else { return Ok(()) };
        if !armed.fault.hits(access) {
            return Ok(());
        }
        if armed.pass > 0 {
            armed.pass -= 1;
            return Ok(());
        }
        let Armed { fault, sticky, .. } = *armed;
        self.turn_came = true;
        if sticky && fault == Fault::NoSpace {
            // A full disk refuses what needs space, and nothing else: see `allocate`.
            (self.armed, self.full, self.free_blocks) = (None, true, 0);
            return Ok(());
        }
        if !sticky {
            self.armed = None;
        }
        self.hit = true;
        Err(fault)
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Finds space for what is written there for the first time.
    fn allocate(&mut self, name: &str, at: usize, len: usize) -> io::Result<()> {
        let full = self.full;
        let free = self.free_blocks;
        let file = self.file(name)?;
        let blocks = at / BLOCK..(at + len).div_ceil(BLOCK);
        let end = blocks.end.max(file.allocated.len());
        let missing = blocks.clone().filter(|&block| !file.allocated.get(block).copied().unwrap_or(false)).count();
        if full && missing > free {
            self.hit = true;
            return Err(Fault::NoSpace.into());
        }
        file.allocated.resize(end, false);
        file.allocated[blocks].fill(true);
        self.free_blocks = free.saturating_sub(missing);
        Ok(())
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoSpace | Fault::ShortWrite => Self::from(io::ErrorKind::StorageFull),
            Fault::Io | Fault::Sync => Self::other("the simulated device failed"),
        }
    }
}

impl File {
    fn full(content: Vec<u8>) -> Self {
        let allocated = vec![true; content.len().div_ceil(BLOCK)];
        Self { content, allocated }
    }
}

/// Writes into a file's content, which grows as it must.
pub(super) fn write_at(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if content.len() < end {
        set_len(content, end);
    }
    content[at..end].copy_from_slice(data);
}

/// Cuts content off, or puts zeros behind it. Byte by byte, as `Vec::resize` does it without optimisation, this would be most
/// of what these tests do.
pub(super) fn set_len(content: &mut Vec<u8>, len: usize) {
    content.truncate(len);
    content.extend_from_slice(&vec![0; len - content.len()]);
}
