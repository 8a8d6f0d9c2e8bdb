//! A full disk: what was acknowledged as relaxed before is kept in memory until there is room, and what ends something goes on
//! meanwhile. So the end of a command may be stored before its beginning.

use futures_lite::future::block_on;

use super::disk::{Fault, SimDisk};
use super::open;
use super::script::{command, letter, remove, save};
use crate::adapters::redb::LocalStorage;
use crate::error::{LaneError, StorageError};
use crate::storage::{Change, Durability, LOST_MAX, Storage, StorageHealth};

/// A store with command `d0`, on a disk that is full since; what is given was acknowledged as relaxed.
fn full(kept: Vec<Change>) -> (SimDisk, LocalStorage) {
    let disk = SimDisk::default();
    let store = open(&disk).unwrap();
    block_on(async {
        store.recover().await.unwrap();
        store.apply(vec![save(command(0, 50))], Durability::Synced).await.unwrap();
        disk.arm(Fault::NoSpace, 0, true);
        store.apply(kept, Durability::Relaxed).await.unwrap();
        let refused = store.flush().await;
        assert!(matches!(refused, Err(LaneError::Storage(StorageError::StorageFull(_)))), "{refused:?}");
        assert_eq!(store.health(), StorageHealth::Full);
    });
    (disk, store)
}

fn tell(store: &LocalStorage, change: Change) {
    block_on(store.apply(vec![change], Durability::Synced)).unwrap();
}

/// After a kill now, and after a recovery of the disk: what is read from a store.
fn both<T: PartialEq + std::fmt::Debug>(disk: &SimDisk, store: LocalStorage, read: impl Fn(&LocalStorage) -> T) -> T {
    let killed = open(&disk.fork()).unwrap();
    disk.heal();
    block_on(store.probe()).unwrap();
    block_on(store.close()).unwrap();
    drop(store);
    let closed = open(disk).unwrap();
    let found = read(&killed);
    assert_eq!(found, read(&closed), "killed, and closed");
    found
}

#[test]
fn the_number_of_a_command_that_ended_before_it_was_stored_is_not_given_again() {
    let (disk, store) = full(vec![save(command(5, 50))]);
    tell(&store, remove("d5"));
    assert_eq!(both(&disk, store, |store| block_on(store.recover()).unwrap().next_sequence % LOST_MAX), 6);
}

#[test]
fn a_letter_about_a_command_whose_replay_was_kept_stays() {
    let (disk, store) = full(vec![Change::Replay(Box::new(command(0, 50)))]);
    tell(&store, Change::GiveUp(Box::new(letter("d0"))));
    let letters = both(&disk, store, |store| {
        let letters = block_on(store.load_dead_letters()).unwrap();
        letters.into_iter().map(|letter| letter.command_id).collect::<Vec<_>>()
    });
    assert_eq!(letters, ["d0"]);
}

#[test]
fn what_was_kept_does_not_come_back_when_all_was_cleared() {
    let (disk, store) = full(vec![save(command(5, 50))]);
    block_on(store.clear_all()).unwrap();
    assert_eq!(both(&disk, store, |store| block_on(store.load_commands()).unwrap()), []);
}

#[test]
fn what_was_kept_is_stored_when_there_is_room() {
    let (disk, store) = full(vec![save(command(5, 50))]);
    tell(&store, remove("d0"));
    disk.heal();
    block_on(store.probe()).unwrap();
    let killed = open(&disk.fork()).unwrap();
    let ids: Vec<String> = block_on(killed.load_commands()).unwrap().into_iter().map(|command| command.id).collect();
    assert_eq!(ids, ["d5"]);
    assert_eq!(store.health(), StorageHealth::Working);
}

#[test]
fn nothing_is_accepted_and_commands_end_and_a_new_process_opens_the_store() {
    let (disk, store) = full(vec![save(command(5, 50))]);
    let refused = block_on(store.apply(vec![save(command(6, 50))], Durability::Relaxed));
    assert!(matches!(refused, Err(LaneError::Storage(StorageError::StorageFull(_)))), "{refused:?}");
    tell(&store, remove("d0"));
    // A process after this one, on a disk that is still full.
    let next = disk.fork();
    next.arm(Fault::NoSpace, 0, true);
    let store = open(&next).unwrap();
    block_on(store.recover()).unwrap();
    assert_eq!(block_on(store.load_commands()).unwrap(), []);
}
