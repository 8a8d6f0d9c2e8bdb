//! The public suite's part on killed processes: what one leaves is what the simulated disk reads at that moment.

use std::cell::RefCell;
use std::future::ready;

use futures_lite::future::block_on;

use super::disk::SimDisk;
use super::open;
use crate::testing::storage::crash_safety;

#[test]
fn a_killed_process_leaves_what_it_promised() {
    let disk = RefCell::new(SimDisk::default());
    let opened = || open(&disk.borrow()).expect("a healthy disk");
    let on_a_new_disk = || {
        disk.replace(SimDisk::default());
        ready(opened())
    };
    let killed = |store| {
        let left = disk.borrow().files();
        disk.replace(SimDisk::with(left));
        // It is closed on the disk before, which nobody looks at any more.
        drop(store);
        ready(opened())
    };
    block_on(crash_safety(on_a_new_disk, killed));
}

/// The same with a store that acknowledges before it has written: the suite must notice.
#[test]
fn a_process_that_is_killed_early_is_noticed() {
    let disk = RefCell::new(SimDisk::default());
    let before = RefCell::new(std::collections::BTreeMap::new());
    let opened = || {
        let store = open(&disk.borrow()).expect("a healthy disk");
        before.replace(disk.borrow().files());
        store
    };
    let on_a_new_disk = || {
        disk.replace(SimDisk::default());
        ready(opened())
    };
    let killed = |store| {
        drop(store);
        disk.replace(SimDisk::with(before.take()));
        ready(opened())
    };
    let noticed =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(crash_safety(on_a_new_disk, killed))));
    let panic = noticed.expect_err("the suite has not noticed");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("what was acknowledged as synced is there when the process was killed"), "{message}");
}
