//! A file of the simulated disk as redb sees it.

use std::io;

use redb::StorageBackend;

use super::disk::SimDisk;

/// One file of a disk, for redb.
#[derive(Debug)]
pub(super) struct DiskFile {
    disk: SimDisk,
    name: &'static str,
}

impl DiskFile {
    pub(super) fn new(disk: &SimDisk, name: &'static str) -> Self {
        Self { disk: disk.clone(), name }
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.len(self.name)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(self.name, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(self.name, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync(self.name)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(self.name, offset, data)
    }
}
