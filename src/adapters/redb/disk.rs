//! Where a store lies: a directory with its files. The one place that touches the file system.
//!
//! | file | what | written |
//! |---|---|---|
//! | `lock` | locked by the process that has the store; its pid | once per opening |
//! | `store.redb` | everything that is stored | by redb |
//! | `watermark` | what the store is, and the last commit that was acknowledged | after each commit, not synced |
//! | `running` | commands that run now | at each start and end of an attempt, not synced |
//! | `reserve` | room for what must go on when the disk is full | once |

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::error::StorageError;

/// A place for one store. Faults are injected here.
pub(super) trait Disk: Send + Sync + fmt::Debug {
    /// Where it is, for errors.
    fn path(&self) -> &Path;

    /// Opens the database file, which is made if it is not there. Called again after each failure, when the backend before it
    /// is gone.
    fn database(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens a small file, which is made if it is not there.
    fn small(&self, which: Small) -> io::Result<Box<dyn SmallFile>>;

    /// Makes durable that the files are there.
    fn sync_directory(&self) -> io::Result<()>;
}

/// Which small file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Small {
    Watermark,
    Running,
    Reserve,
}

impl Small {
    const fn name(self) -> &'static str {
        match self {
            Self::Watermark => "watermark",
            Self::Running => "running",
            Self::Reserve => "reserve",
        }
    }
}

/// A file of a few pages that is written in place, by several threads at once where they do not overlap.
pub(super) trait SmallFile: Send + Sync + fmt::Debug {
    fn len(&self) -> io::Result<u64>;
    /// All of `out`; an error behind the end.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    read_only: bool,
    lock: File,
}

impl Directory {
    /// Makes the directory, with its parents, unless it is there, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        let cannot = |error: &io::Error| problem(path, error);
        make_directory(path).map_err(|error| cannot(&error))?;
        let mut lock = open_file(&path.join("lock"), false).map_err(|error| cannot(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        // Who finds the lock taken reads who has it. What an earlier process has left here means nothing.
        lock.set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| write!(lock, "{}", std::process::id()))
            .map_err(|error| cannot(&error))?;
        Ok(Self { path: path.to_path_buf(), read_only: false, lock })
    }

    /// For looking only: the store must be there, and nobody may have it open for changes.
    pub(super) fn open_read_only(path: &Path) -> Result<Self, StorageError> {
        let missing = |error: &io::Error| match error.kind() {
            ErrorKind::NotFound => StorageError::Path { path: path.to_path_buf(), problem: "there is no store".into() },
            _ => problem(path, error),
        };
        let mut lock = open_file(&path.join("lock"), true).map_err(|error| missing(&error))?;
        match lock.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(problem(path, &error)),
        }
        fs::symlink_metadata(path.join(DATABASE)).map_err(|error| missing(&error))?;
        Ok(Self { path: path.to_path_buf(), read_only: true, lock })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Who finds the lock taken next is not to read that it was this process.
        if !self.read_only {
            _ = self.lock.set_len(0);
        }
    }
}

const DATABASE: &str = "store.redb";

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn database(&self) -> io::Result<Box<dyn StorageBackend>> {
        let file = open_file(&self.path.join(DATABASE), self.read_only)?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn small(&self, which: Small) -> io::Result<Box<dyn SmallFile>> {
        Ok(Box::new(open_file(&self.path.join(which.name()), self.read_only)?))
    }

    fn sync_directory(&self) -> io::Result<()> {
        sync_directory(&self.path)
    }
}

impl SmallFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, out, offset)
    }

    #[cfg(unix)]
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset)
    }

    #[cfg(windows)]
    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(self, out, offset)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => (offset, out) = (offset + read as u64, &mut out[read..]),
            }
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(self, data, offset)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => (offset, data) = (offset + written as u64, &data[written..]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Opens a file of a store, or makes one that only its owner can read. A link is refused: what it leads to is not this store's,
/// and may be somebody else's.
fn open_file(path: &Path, read_only: bool) -> io::Result<File> {
    let refuse = |before: &Metadata| {
        if before.is_file() { Ok(()) } else { Err(io::Error::other(format!("{} is no regular file", path.display()))) }
    };
    match fs::symlink_metadata(path) {
        Ok(before) => refuse(&before)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).create(!read_only);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    // What was opened is what lies there: nobody has put a link in between.
    let after = fs::symlink_metadata(path)?;
    refuse(&after)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let opened = file.metadata()?;
        if (opened.dev(), opened.ino()) != (after.dev(), after.ino()) {
            return Err(io::Error::other(format!("{} was replaced while it was opened", path.display())));
        }
    }
    Ok(file)
}

/// Makes a directory that only its owner can enter, with its parents, and makes durable that they are there.
fn make_directory(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => return Ok(()),
        Ok(_) => return Err(ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(parent)?;
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(parent)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    // Elsewhere a directory can not be opened as a file, and need not be synced.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn locked(path: &Path, lock: &mut File) -> StorageError {
    let mut text = String::new();
    let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
    StorageError::StoreLocked { path: path.to_path_buf(), pid }
}

/// What an error at opening says about the path.
pub(super) fn problem(path: &Path, error: &io::Error) -> StorageError {
    let problem = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => return StorageError::StorageFull(error.to_string()),
        ErrorKind::NotADirectory => "it, or a part of it, is not a directory".to_owned(),
        ErrorKind::PermissionDenied => "this process has no right to read and write there".to_owned(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        _ => error.to_string(),
    };
    StorageError::Path { path: path.to_path_buf(), problem }
}
