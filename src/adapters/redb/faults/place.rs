//! The store on a simulated disk.

use std::io;
use std::path::Path;

use redb::StorageBackend;

use super::backend::DiskFile;
use super::disk::SimDisk;
use crate::adapters::redb::disk::{Disk, Small, SmallFile};

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn database(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.create("database")?;
        Ok(Box::new(DiskFile::new(self, "database")))
    }

    fn small(&self, which: Small) -> io::Result<Box<dyn SmallFile>> {
        let name = match which {
            Small::Watermark => "watermark",
            Small::Running => "running",
            Small::Reserve => "reserve",
        };
        self.create(name)?;
        Ok(Box::new(DiskFile::new(self, name)))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.sync_folder()
    }
}

impl SmallFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(self)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        StorageBackend::read(self, offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        StorageBackend::write(self, offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        StorageBackend::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
