//! Idempotency keys: the same work is done once, and no key is lost or kept for ever.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    Durability, EventEmitter, JsonCommand, LaneConfig, LaneError, MemoryStorage, QueueManager, QueueManagerBuilder,
    Stop, Storage, StorageError, SubmitOptions, Ticket,
};
use futures::FutureExt;
use serde_json::json;

use crate::stores::{Does, Fragile, Step, Steps, manager_on, stored};
use crate::support::{World, block_on, result};

const HOUR: Duration = Duration::from_secs(3600);

fn plain() -> LaneConfig {
    LaneConfig::new(1, 4)
}

fn key(key: &str) -> SubmitOptions {
    SubmitOptions::new().idempotency_key(key)
}

fn submit(manager: &QueueManager, name: &str, step: Step) -> Result<Ticket<u32>, LaneError> {
    Ok(block_on(manager.submit_durable_with("a", step, key(name)))?)
}

#[test]
fn a_second_submission_has_the_result_of_the_first_while_it_runs_and_after_it_has_ended() {
    let steps = Steps("twice");
    let mut world = World::new(2, 1);
    let storage = MemoryStorage::new();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let mut first = submit(&manager, "k", steps.step(7, Does::Waits(10))).unwrap();
    let mut second = submit(&manager, "k", steps.step(7, Does::Waits(10))).unwrap();
    assert_eq!(second.id(), first.id());
    world.advance(5);
    assert!(!second.is_finished() && !second.cancel(), "its first ticket cancels it");
    let mut waiting = Box::pin(async { (&mut second).await });
    assert!((&mut waiting).now_or_never().is_none());
    world.advance(10);
    assert_eq!(waiting.now_or_never().unwrap().unwrap().unwrap(), 7);
    assert_eq!(result(&mut first).unwrap(), 7);
    let mut third = submit(&manager, "k", steps.step(7, Does::Waits(10))).unwrap();
    assert_eq!(third.id(), first.id());
    assert_eq!(result(&mut third).unwrap(), 7);
    world.advance(20);
    assert_eq!(steps.ran().len(), 1);
    assert!(stored(&storage).is_empty());
}

#[test]
fn other_work_under_the_same_key_is_a_conflict() {
    let steps = Steps("conflict");
    let mut world = World::new(2, 1);
    let manager = manager_on(world.executor(), Arc::new(MemoryStorage::new()), &[("a", plain(), 0)]);
    let first = submit(&manager, "k", steps.step(1, Does::Returns)).unwrap();
    for ended in [false, true] {
        let other = submit(&manager, "k", steps.step(2, Does::Returns)).unwrap_err();
        assert!(
            matches!(&other, LaneError::IdempotencyConflict { key, command_id } if key == "k" && *command_id == first.id()),
            "{ended}: {other}"
        );
        let boxed = block_on(manager.submit_with("a", Box::new(JsonCommand::new("step", json!(1))), key("k")));
        assert!(matches!(boxed, Err(LaneError::IdempotencyConflict { .. })));
        world.advance(5);
    }
    assert_eq!(steps.numbers(), [1]);
}

#[test]
fn a_key_is_free_again_after_every_end_that_brought_no_result() {
    let steps = Steps("free");
    let mut world = World::new(2, 1);
    let storage = MemoryStorage::new();
    let lanes = [("a", plain().with_timeout(Duration::from_millis(50)), 0)];
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    for (name, does) in [("fails", Does::Fails), ("panics", Does::Panics), ("late", Does::Waits(1000))] {
        let mut first = submit(&manager, name, steps.step(1, does)).unwrap();
        let mut second = submit(&manager, name, steps.step(1, does)).unwrap();
        world.advance(100);
        let (first, second) = (result(&mut first).unwrap_err(), result(&mut second).unwrap_err());
        assert_eq!(first.to_string(), second.to_string(), "{name}");
        assert!(submit(&manager, name, steps.step(2, Does::Returns)).is_ok(), "{name}");
        world.advance(5);
    }
    let mut cancelled = submit(&manager, "cancelled", steps.step(3, Does::Waits(40))).unwrap();
    let mut shared = submit(&manager, "cancelled", steps.step(3, Does::Waits(40))).unwrap();
    world.advance(5);
    assert!(cancelled.cancel());
    world.advance(5);
    assert!(matches!(result(&mut shared), Err(LaneError::Cancelled { started: true })));
    assert!(submit(&manager, "cancelled", steps.step(4, Does::Returns)).is_ok());
    // A submission that was refused has never had it.
    block_on(manager.shutdown());
    assert!(submit(&manager, "refused", steps.step(5, Does::Returns)).is_err());
    assert!(matches!(submit(&manager, "refused", steps.step(6, Does::Returns)), Err(LaneError::ShutdownInProgress)));
}

#[test]
fn a_result_is_remembered_for_its_window_and_across_a_restart() {
    let steps = Steps("window");
    let mut world = World::new(2, 1);
    let storage = MemoryStorage::new();
    let build = |world: &World, storage: &MemoryStorage| {
        let builder = QueueManagerBuilder::new(EventEmitter::new(10))
            .with_executor(world.executor().clone())
            .with_storage(Arc::new(storage.clone()))
            .with_durable::<Step>()
            .with_idempotency_window(HOUR, 3)
            .with_lane("a", plain(), 0);
        let manager = block_on(builder.build()).unwrap();
        block_on(manager.start()).unwrap();
        manager
    };
    let manager = build(&world, &storage);
    let first = submit(&manager, "k", steps.step(1, Does::Returns)).unwrap();
    world.advance(5);
    let pending = submit(&manager, "pending", steps.step(2, Does::Waits(30_000_000))).unwrap();
    world.advance(5);

    let next = storage.after_crash();
    std::mem::forget(manager);
    let manager = build(&world, &next);
    let mut again = submit(&manager, "k", steps.step(1, Does::Returns)).unwrap();
    assert_eq!((again.id(), result(&mut again).unwrap()), (first.id(), 1));
    let twice = submit(&manager, "pending", steps.step(2, Does::Waits(30_000_000))).unwrap();
    assert_eq!(twice.id(), pending.id(), "the command that came back has its key");
    world.advance(5);
    assert_eq!(steps.numbers(), [1, 2, 2]);

    world.jump(HOUR - Duration::from_secs(10));
    assert_eq!(submit(&manager, "k", steps.step(1, Does::Returns)).unwrap().id(), first.id());
    world.jump(Duration::from_secs(11));
    let fresh = submit(&manager, "k", steps.step(1, Does::Returns)).unwrap();
    assert_ne!(fresh.id(), first.id(), "its time is over");
    world.advance(5);
    assert_eq!(steps.numbers(), [1, 2, 2, 1]);

    // None is forgotten to make room.
    submit(&manager, "third", steps.step(3, Does::Returns)).unwrap().detach();
    world.advance(5);
    let full = submit(&manager, "fourth", steps.step(4, Does::Returns)).unwrap_err();
    assert!(full.to_string().contains("3 idempotency keys"), "{full}");
    assert!(
        block_on(manager.submit_durable("a", steps.step(4, Does::Returns))).is_ok(),
        "without a key it is accepted"
    );
    let report = world.simulation().block_on(manager.stop(Stop::drain(Duration::from_millis(5))));
    assert!(report.storage.is_none());
    assert!(block_on(next.load_commands()).unwrap().len() <= 2);
}

#[test]
fn a_key_that_is_no_key_is_refused_and_so_is_one_in_a_lane_in_memory() {
    let world = World::new(1, 1);
    let lanes = [("a", plain(), 0), ("memory", plain().with_durability(corelane::Durability::Memory), 0)];
    let manager = manager_on(world.executor(), Arc::new(MemoryStorage::new()), &lanes);
    let steps = Steps("no key");
    for name in ["", &"k".repeat(257)] {
        let refused = submit(&manager, name, steps.step(1, Does::Returns)).unwrap_err();
        assert!(matches!(&refused, LaneError::QueueError(hint) if hint.contains("idempotency key")), "{refused}");
    }
    assert!(submit(&manager, &"k".repeat(256), steps.step(1, Does::Returns)).is_ok());
    let command = Box::new(JsonCommand::new("json", json!(1)));
    let refused = block_on(manager.submit_with("memory", command, key("k"))).unwrap_err();
    assert!(refused.to_string().contains("durable lane"), "{refused}");
}

#[test]
fn a_second_submission_is_acknowledged_once_the_first_is_stored() {
    let steps = Steps("acknowledged");
    let mut world = World::new(2, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let barrier = storage.hold();
    let submit = || Box::pin(manager.submit_durable_with("a", steps.step(1, Does::Returns), key("k")));
    let (mut first, mut second) = (submit(), submit());
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none(), "nothing of it is stored");
    barrier.open();
    let (mut first, mut second) = (block_on(first).unwrap(), block_on(second).unwrap());
    assert_eq!(first.id(), second.id());
    world.advance(5);
    assert_eq!((result(&mut first).unwrap(), result(&mut second).unwrap()), (1, 1));
    assert_eq!(steps.numbers(), [1]);
}

#[test]
fn a_second_submission_is_the_first_when_that_was_given_up_or_refused() {
    let steps = Steps("second");
    let mut world = World::new(2, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    for (number, refused) in [(1, false), (2, true)] {
        let barrier = storage.hold();
        let submit = || Box::pin(manager.submit_durable_with("a", steps.step(number, Does::Returns), key("k")));
        let (mut first, mut second) = (submit(), submit());
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        if refused {
            storage.fail_with(StorageError::StorageFull("as it was told to".into()));
            barrier.open();
            assert!(block_on(first).is_err());
            storage.heal();
        } else {
            drop(first);
            barrier.open();
        }
        let mut second = block_on(second).unwrap();
        world.advance(5);
        assert_eq!(result(&mut second).unwrap(), number);
        // For the next round.
        world.jump(2 * HOUR * 24);
    }
    assert_eq!(steps.numbers(), [1, 2]);
}

#[test]
fn a_shared_result_is_handed_out_once_the_end_is_stored_where_the_lane_says_so() {
    for completion in [Durability::Synced, Durability::Relaxed] {
        let steps = Steps("shared");
        let mut world = World::new(2, 1);
        let storage = Fragile::default();
        let lanes = [("a", plain().with_completion(completion), 0)];
        let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
        let mut first = submit(&manager, "k", steps.step(1, Does::Waits(10))).unwrap();
        let mut second = submit(&manager, "k", steps.step(1, Does::Waits(10))).unwrap();
        world.advance(5);
        let barrier = storage.hold();
        world.advance(50);
        let early = completion == Durability::Relaxed;
        assert_eq!(second.is_finished(), early);
        assert!(!first.is_finished());
        if !early {
            let third = submit(&manager, "k", steps.step(1, Does::Waits(10))).unwrap();
            assert!(!third.is_finished());
        }
        barrier.open();
        world.advance(5);
        assert_eq!((result(&mut first).unwrap(), result(&mut second).unwrap()), (1, 1));
    }
}
