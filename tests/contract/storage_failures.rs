//! A store that fails: nothing is swallowed, nothing is lost, and the queue goes on by itself when the store does.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    Change, EventEmitter, LaneConfig, LaneError, OnStorageFailure, QueueManagerBuilder, StorageError, StorageHealth,
    SubmitOptions, Transition,
};

use crate::stores::{Does, Fragile, Step, Steps, manager_on, stored};
use crate::support::{World, assert_idle, block_on, result, status, transitions};

const SECOND: Duration = Duration::from_secs(1);

fn plain() -> LaneConfig {
    LaneConfig::new(1, 1)
}

fn full() -> StorageError {
    StorageError::StorageFull("no space left on device".into())
}

fn io() -> StorageError {
    StorageError::Io("input/output error".into())
}

fn saves(change: &Change) -> bool {
    matches!(change, Change::Save(_))
}

#[test]
fn a_full_store_refuses_submissions_and_lets_commands_end() {
    let steps = Steps("full");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let events = EventEmitter::new(100);
    let mut stream = events.subscribe_stream();
    let builder = QueueManagerBuilder::new(events)
        .with_executor(world.executor().clone())
        .with_storage(Arc::new(storage.clone()))
        .with_durable::<Step>()
        .with_lane("a", plain(), 0);
    let manager = block_on(builder.build()).unwrap();
    let mut ticket = block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
    storage.fail_on(full(), saves);
    for _ in 0..3 {
        let refused = block_on(manager.submit_durable("a", steps.step(2, Does::Returns))).unwrap_err();
        assert!(matches!(&refused.error, LaneError::Storage(StorageError::StorageFull(_))), "{}", refused.error);
        assert_eq!(refused.command.number, 2, "it comes back");
    }
    assert_eq!(manager.storage_health(), Some(StorageHealth::Full));
    assert_eq!(status(&manager, "a").pending, 1);
    block_on(manager.start()).unwrap();
    world.advance(5);
    assert_eq!(result(&mut ticket).unwrap(), 1);
    assert!(stored(&storage.inner).is_empty(), "its end was stored");
    storage.heal();
    world.jump(2 * SECOND);
    assert_eq!(manager.storage_health(), Some(StorageHealth::Working));
    assert!(block_on(manager.submit_durable("a", steps.step(3, Does::Returns))).is_ok());
    let told = transitions(&mut stream);
    assert_eq!(told.iter().filter(|told| matches!(told, Transition::StorageFailed { .. })).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|told| **told == Transition::StorageRecovered).count(), 1);
}

#[test]
fn while_its_store_fails_a_lane_refuses_and_starts_nothing_and_then_goes_on() {
    let steps = Steps("stops while it fails");
    let mut world = World::new(2, 1);
    let storage = Fragile::default();
    let memory = plain().with_durability(corelane::Durability::Memory);
    let lanes = [("a", plain(), 0), ("memory", memory, 1)];
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    let mut running = block_on(manager.submit_durable("a", steps.step(1, Does::Waits(100)))).unwrap();
    let mut waiting = block_on(manager.submit_durable("a", steps.step(2, Does::Returns))).unwrap();
    world.advance(5);
    storage.fail_with(io());
    let refused = block_on(manager.submit_durable("a", steps.step(3, Does::Returns))).unwrap_err();
    assert!(matches!(refused.error, LaneError::Storage(StorageError::Io(_))), "{}", refused.error);
    // The store is not asked for each: it has failed.
    let refused = block_on(manager.submit_durable("a", steps.step(3, Does::Returns))).unwrap_err();
    assert!(matches!(refused.error, LaneError::Storage(StorageError::Failed { .. })), "{}", refused.error);
    assert!(matches!(manager.storage_health(), Some(StorageHealth::Failed(_))));
    world.advance(500);
    assert_eq!(result(&mut running).unwrap(), 1, "what runs goes on");
    assert!(!waiting.has_started());
    assert_eq!(stored(&storage.inner).len(), 2, "an end is owed to the store");
    let mut other = manager.submit_fn("memory", "closure", || async { Ok(()) }).unwrap();
    world.advance(5);
    result(&mut other).unwrap();

    world.jump(10 * SECOND);
    assert!((9..=11).contains(&storage.probes()), "{} looks in ten seconds", storage.probes());
    storage.heal();
    world.jump(2 * SECOND);
    assert_eq!(result(&mut waiting).unwrap(), 2);
    assert!(stored(&storage.inner).is_empty(), "what was owed was paid");
    assert!(block_on(manager.submit_durable("a", steps.step(4, Does::Returns))).is_ok());
    world.advance(5);
    assert_eq!(steps.numbers(), [1, 2, 4]);
    assert_idle(&manager);
    let probes = storage.probes();
    world.jump(10 * SECOND);
    assert_eq!(storage.probes(), probes, "a store that works is not asked");
}

#[test]
fn a_letter_is_not_replayed_into_a_store_that_is_full() {
    let steps = Steps("replay into full");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let mut other = block_on(manager.submit_durable("a", steps.step(1, Does::Fails))).unwrap();
    world.advance(5);
    assert!(result(&mut other).is_err());
    storage.fail_on(full(), |change| matches!(change, Change::Save(_) | Change::Replay(_)));
    assert!(block_on(manager.submit_durable("a", steps.step(2, Does::Returns))).is_err());
    let report = manager.requeue_dead_letters(|_| true);
    assert!(matches!(&report.refused[..], [(_, LaneError::Storage(StorageError::StorageFull(_)))]), "{report:?}");
    assert_eq!(manager.dlq().unwrap().snapshot().len(), 1, "it stays a letter");
    assert_eq!(crate::stores::letters_in(&storage.inner).len(), 1);
    storage.heal();
    world.jump(2 * SECOND);
    assert_eq!(manager.requeue_dead_letters(|_| true).requeued, 1);
}

#[test]
fn a_lane_that_degrades_goes_on_in_memory_and_says_so() {
    let steps = Steps("degrades");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let lanes = [("a", plain().with_storage_failure(OnStorageFailure::DegradeToMemory), 0)];
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    storage.fail_with(io());
    for number in 0..3 {
        let mut ticket = block_on(manager.submit_durable("a", steps.step(number, Does::Returns))).unwrap();
        assert!(!ticket.id().is_stored(), "its id says that it is in memory");
        world.advance(5);
        assert_eq!(result(&mut ticket).unwrap(), number);
    }
    storage.heal();
    world.jump(2 * SECOND);
    let ticket = block_on(manager.submit_durable("a", steps.step(9, Does::Returns))).unwrap();
    assert!(ticket.id().is_stored());
}

#[test]
fn a_submission_with_an_unknown_outcome_is_not_run_twice_under_its_key() {
    let steps = Steps("unknown");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    storage.save_and_fail_with(StorageError::OutcomeUnknown("fsync failed".into()));
    let key = || SubmitOptions::new().idempotency_key("k");
    let step = || steps.step(1, Does::Returns);
    let unknown = block_on(manager.submit_durable_with("a", step(), key())).unwrap_err();
    assert!(matches!(unknown.error, LaneError::Storage(StorageError::OutcomeUnknown(_))));
    assert_eq!(stored(&storage.inner).len(), 1, "this one has it");
    let crashed = storage.inner.after_crash();
    storage.heal();
    world.jump(3 * SECOND);
    assert!(stored(&storage.inner).is_empty(), "it was not accepted, so it was taken back");
    let mut ticket = block_on(manager.submit_durable_with("a", step(), key())).unwrap();
    world.advance(5);
    assert_eq!(result(&mut ticket).unwrap(), 1);
    assert_eq!(steps.ran().len(), 1);

    // Had the process died in between, and the submission come again, both would be stored: the work is done once.
    let mut twin = stored(&crashed)[0].clone();
    (twin.id, twin.sequence) = ("d99".into(), 99);
    block_on(corelane::Storage::save_command(&crashed, twin)).unwrap();
    let manager = manager_on(world.executor(), Arc::new(crashed.clone()), &[("a", plain(), 0)]);
    assert_eq!(manager.recovery().unwrap().recovered, 1);
    world.advance(5);
    assert_eq!(steps.ran().len(), 2);
    assert!(stored(&crashed).is_empty());
}

#[test]
fn a_letter_that_is_too_large_for_the_store_is_kept_without_its_details() {
    let steps = Steps("large letter");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let ticket = block_on(manager.submit_durable("a", steps.step(1, Does::Fails))).unwrap();
    storage.fail_on(
        StorageError::TooLarge { size: 2, limit: 1 },
        |change| matches!(change, Change::GiveUp(letter) if !letter.details.is_null()),
    );
    world.advance(5);
    assert!(stored(&storage.inner).is_empty());
    let letters = crate::stores::letters_in(&storage.inner);
    assert_eq!((letters.len(), letters[0].command_id.clone()), (1, ticket.id().to_string()));
    assert_eq!(manager.storage_health(), Some(StorageHealth::Working), "one record is not the store");
}
