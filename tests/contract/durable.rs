//! Durable lanes: what was accepted is stored before it is acknowledged, and leaves the store when it has ended.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    Command, Durability, EventEmitter, JsonCommand, LaneConfig, LaneError, MemoryStorage, QueueManagerBuilder,
    Rejected, RetryPolicy, Stop, Storage, StorageError, SubmitOptions,
};
use futures::FutureExt;
use serde_json::json;

use crate::stores::{Does, Fragile, Steps, letters_in, manager_on, stored, unstarted_on};
use crate::support::{Do, HANG, World, assert_idle, block_on, executor, finish, result, status};

fn plain() -> LaneConfig {
    LaneConfig::new(1, 1)
}

#[test]
fn a_submission_resolves_once_its_command_is_stored_and_not_before() {
    let steps = Steps("resolves");
    let mut world = World::new(2, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let barrier = storage.hold();
    let mut submission = Box::pin(manager.submit_durable("a", steps.step(1, Does::Returns)));
    assert!((&mut submission).now_or_never().is_none());
    world.advance(50);
    assert!((&mut submission).now_or_never().is_none(), "the store has not answered");
    assert!(steps.ran().is_empty(), "what is not stored does not run");
    assert_eq!(status(&manager, "a").pending, 1, "it has its place");
    barrier.open();
    let mut ticket = submission.now_or_never().expect("the store has answered").unwrap();
    assert!(ticket.id().is_stored());
    assert_eq!(stored(&storage.inner)[0].id, ticket.id().to_string());
    world.advance(1);
    assert_eq!(result(&mut ticket).unwrap(), 1);
    assert!(stored(&storage.inner).is_empty(), "what has ended is not stored any more");
    assert_idle(&manager);
}

#[test]
fn a_submission_that_is_dropped_while_it_waits_has_not_happened() {
    let steps = Steps("dropped");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let config = plain().with_capacity(1).with_max_pending_bytes(1 << 20);
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", config, 0)]);
    manager.pause("a").unwrap();
    let barrier = storage.hold();
    let mut submission = Box::pin(manager.submit_durable("a", steps.step(1, Does::Returns)));
    assert!((&mut submission).now_or_never().is_none());
    drop(submission);
    assert_idle(&manager);
    barrier.open();
    world.advance(10);
    assert!(stored(&storage.inner).is_empty());
    // Its place is free again.
    let mut next = block_on(manager.submit_durable("a", steps.step(2, Does::Returns))).unwrap();
    manager.resume("a").unwrap();
    world.advance(1);
    assert_eq!(result(&mut next).unwrap(), 2);
    assert_eq!(steps.numbers(), [2]);
}

#[test]
fn a_command_without_a_payload_is_stored_for_inspection_and_says_so() {
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let manager = unstarted_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let mut ticket = block_on(manager.submit("a", Box::new(Do(|| async { Ok(json!(7)) })))).unwrap();
    let [command] = &stored(&storage)[..] else { panic!("one is stored") };
    assert_eq!((command.command_type.as_str(), command.lane_id.as_str()), ("do", "a"));
    assert!(!command.recoverable && command.payload.is_null());
    block_on(manager.start()).unwrap();
    world.advance(1);
    assert_eq!(result(&mut ticket).unwrap(), json!(7));
    assert!(stored(&storage).is_empty());
}

#[test]
fn a_lane_that_wants_recoverable_commands_hands_others_back() {
    let world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let lanes = [("a", plain().with_recoverable_only(), 0)];
    let manager = unstarted_on(world.executor(), Arc::new(storage.clone()), &lanes);
    let lane = manager.lane("a").unwrap();
    let without_payload: Box<dyn Command> = Box::new(Do(|| async { Ok(json!(1)) }));
    let unregistered: Box<dyn Command> = Box::new(JsonCommand::new("unregistered", json!(1)));
    for (command, hint) in [(without_payload, "payload"), (unregistered, "with_constructor")] {
        let kind = command.command_type().to_owned();
        let Err(Rejected { error, command }) = block_on(lane.submit(command)) else { panic!("accepted") };
        assert!(matches!(&error, LaneError::NotDurable { lane_id, .. } if lane_id == "a"), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
        assert_eq!(command.command_type(), kind, "it comes back");
    }
    assert!(stored(&storage).is_empty());
    assert_idle(&manager);
    let steps = Steps("recoverable only");
    block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
    assert_eq!(stored(&storage).len(), 1);
}

#[test]
fn a_submission_that_does_not_wait_for_the_store_is_handed_back_by_a_durable_lane() {
    let world = World::new(1, 1);
    let lanes = [("a", plain(), 0), ("memory", plain().with_durability(Durability::Memory), 0)];
    let manager = unstarted_on(world.executor(), Arc::new(MemoryStorage::new()), &lanes);
    let rejected = manager.try_submit("a", Box::new(JsonCommand::new("mine", json!(1)))).unwrap_err();
    assert!(matches!(rejected.error, LaneError::NotDurable { .. }), "{}", rejected.error);
    assert_eq!(rejected.command.command_type(), "mine");
    let closure = manager.submit_fn("a", "closure", || async { Ok(1) });
    assert!(matches!(closure, Err(LaneError::NotDurable { .. })));
    manager.submit_fn("memory", "closure", || async { Ok(1) }).unwrap().detach();
    // And what is data is not put where it would be lost.
    let lost = block_on(manager.submit_durable("memory", Steps("lost").step(1, Does::Returns))).unwrap_err();
    assert!(matches!(lost.error, LaneError::NotDurable { .. }) && lost.command.number == 1);
}

#[test]
fn a_type_that_nothing_makes_again_is_refused_when_it_is_data() {
    let executor = executor(1);
    let storage = Arc::new(MemoryStorage::new());
    let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor).with_storage(storage);
    let manager = block_on(builder.with_lane("a", plain(), 0).build()).unwrap();
    let refused = block_on(manager.submit_durable("a", Steps("unregistered").step(1, Does::Returns))).unwrap_err();
    assert!(refused.error.to_string().contains("with_durable"), "{}", refused.error);
}

#[test]
fn a_retry_is_noted_and_a_cancelled_command_is_not_stored_any_more() {
    let steps = Steps("noted");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let retries = plain().with_retry_policy(RetryPolicy::fixed(5, Duration::from_millis(100)));
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", retries, 0)]);
    let mut ticket = block_on(manager.submit_durable("a", steps.step(1, Does::Fails))).unwrap();
    world.advance(250);
    let [command] = &stored(&storage)[..] else { panic!("it is still tried") };
    assert_eq!(command.retry_count, 3);
    assert!(command.last_attempt_at.is_some());
    assert!(ticket.cancel());
    world.advance(1);
    assert!(stored(&storage).is_empty(), "cancelled in its backoff");
    let mut running = block_on(manager.submit_durable("a", steps.step(2, Does::Waits(1000)))).unwrap();
    let mut waiting = block_on(manager.submit_durable("a", steps.step(3, Does::Returns))).unwrap();
    world.advance(1);
    assert!(running.has_started() && !waiting.has_started());
    assert_eq!(stored(&storage).len(), 2);
    assert!(waiting.cancel() && running.cancel());
    world.advance(1);
    assert!(stored(&storage).is_empty());
    assert!(letters_in(&storage).is_empty(), "to cancel is not to fail");
    assert_idle(&manager);
}

#[test]
fn what_a_queue_that_stops_has_not_done_stays_stored() {
    let steps = Steps("stops");
    let executor = executor(2);
    let storage = MemoryStorage::new();
    let manager = manager_on(&executor, Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let mut tickets = Vec::new();
    for number in 0..5 {
        let does = if number == 0 { Does::Waits(3_600_000) } else { Does::Returns };
        tickets.push(block_on(manager.submit_durable("a", steps.step(number, does))).unwrap());
    }
    crate::support::eventually("the first runs", || tickets[0].has_started());
    let report = finish("stop", manager.stop(Stop::drain(Duration::from_millis(10)).then_cancel(HANG)));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.cancelled, report.still_stored, report.given_back.len()), (5, 5, 0), "{report:?}");
    assert!(report.storage.is_none());
    for ticket in tickets {
        assert!(matches!(block_on(ticket), Ok(Err(LaneError::Cancelled { .. }))));
    }
    assert_eq!(stored(&storage).len(), 5);
    drop(manager);

    // The next process runs them, and charges nobody for the clean end.
    let next = storage.after_crash();
    let manager = manager_on(&executor, Arc::new(next.clone()), &[("a", LaneConfig::new(1, 2), 0)]);
    let recovery = manager.recovery().unwrap();
    assert_eq!((recovery.recovered, recovery.suspects, recovery.unclean), (5, 0, false));
    crate::support::eventually("four have ended", || stored(&next).len() == 1);
    assert!(stored(&next)[0].crashes.is_empty());
    let mut again = steps.numbers()[1..].to_vec();
    again.sort_unstable();
    assert_eq!(again, [0, 1, 2, 3, 4]);
}

#[test]
fn a_queue_that_is_gone_holds_nothing_of_its_store() {
    let steps = Steps("gone");
    let mut world = World::new(1, 1);
    let storage = Arc::new(Fragile::default());
    let retries = plain().with_retry_policy(RetryPolicy::fixed(1, Duration::ZERO));
    let manager = manager_on(world.executor(), storage.clone(), &[("a", retries, 0)]);
    for (number, does) in [(1, Does::Returns), (2, Does::Fails), (3, Does::Panics)] {
        let key = SubmitOptions::new().idempotency_key(format!("key {number}"));
        block_on(manager.submit_durable_with("a", steps.step(number, does), key)).unwrap().detach();
    }
    world.advance(5);
    manager.requeue_dead_letters(|letter| letter.payload.as_ref().is_some_and(|payload| payload["number"] == json!(2)));
    world.advance(5);
    storage.fail_with(StorageError::StorageFull("of a test".into()));
    assert!(block_on(manager.submit_durable("a", steps.step(4, Does::Returns))).is_err());
    storage.heal();
    world.jump(Duration::from_secs(2));
    manager.pause("a").unwrap();
    block_on(manager.submit_durable("a", steps.step(5, Does::Returns))).unwrap().detach();
    drop(manager);
    world.jump(Duration::from_secs(2));
    assert_eq!(Arc::strong_count(&storage), 1, "a store that is held can not be opened by the next process");
}

#[test]
fn a_drained_queue_has_stored_its_ends() {
    let steps = Steps("drained");
    let mut world = World::new(1, 1);
    let storage = Fragile::default();
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
    storage.fail_with(StorageError::Io("of a test".into()));
    let drained = world.simulation().block_on(manager.drain(HANG));
    assert!(matches!(drained, Err(LaneError::Storage(_))), "an end is owed: {drained:?}");
    storage.heal();
    world.simulation().block_on(manager.drain(HANG)).unwrap();
    assert!(stored(&storage.inner).is_empty());
    assert!(block_on(storage.inner.after_crash().recover()).unwrap().unclean);
    block_on(manager.shutdown());
    world.simulation().block_on(manager.drain(HANG)).unwrap();
    assert!(!block_on(storage.inner.after_crash().recover()).unwrap().unclean, "it has done its work");
}

#[test]
fn dropping_a_queue_leaves_what_it_held_back_in_the_store() {
    let steps = Steps("abandoned");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let manager = unstarted_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let ticket = block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
    drop(manager);
    world.advance(1);
    assert!(matches!(block_on(ticket), Ok(Err(LaneError::Cancelled { started: false }))));
    assert_eq!(stored(&storage).len(), 1);
    assert!(steps.ran().is_empty());
}

#[test]
fn a_result_is_handed_out_after_its_end_is_stored_where_the_lane_says_so() {
    for (completion, waits) in [(Durability::Relaxed, false), (Durability::Synced, true)] {
        let steps = Steps("completion");
        let mut world = World::new(1, 1);
        let storage = Fragile::default();
        let lanes = [("a", plain().with_completion(completion), 0)];
        let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
        let mut ticket = block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
        let barrier = storage.hold();
        world.advance(10);
        // This store takes an end when it has stored it, so both wait; what differs is what a failure means.
        assert!(!ticket.is_finished());
        assert_eq!(status(&manager, "a").active, 1, "it holds its permit: a slow store is a slow lane");
        storage.fail_with(StorageError::OutcomeUnknown("of a test".into()));
        barrier.open();
        world.advance(10);
        let result = result(&mut ticket);
        assert_eq!(result.is_err(), waits, "{result:?}");
        assert_eq!(status(&manager, "a").active, 0);
    }
}

#[test]
fn dead_letters_are_stored_with_the_end_of_their_command_and_replayed_by_the_next_process() {
    let steps = Steps("letters");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let lanes = [("a", plain().with_retry_policy(RetryPolicy::fixed(1, Duration::ZERO)), 0)];
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    let tagged = SubmitOptions::new().tag("red");
    let ticket = block_on(manager.submit_durable_with("a", steps.step(1, Does::FailsUntil(2)), tagged)).unwrap();
    let panics = block_on(manager.submit_durable("a", steps.step(2, Does::Panics))).unwrap();
    let (id, other) = (ticket.id(), panics.id());
    world.advance(5);
    assert!(stored(&storage).is_empty());
    let letters = letters_in(&storage);
    assert_eq!(
        letters.iter().map(|letter| letter.command_id.clone()).collect::<Vec<_>>(),
        [id, other].map(|id| id.to_string())
    );
    assert_eq!((letters[0].attempts, letters[0].error.as_str()), (2, "command execution error: attempt 2"));

    let next = storage.after_crash();
    let manager = manager_on(world.executor(), Arc::new(next.clone()), &lanes);
    let letter = manager.dlq().unwrap().get(id).expect("it was loaded");
    assert_eq!((letter.tags.as_slice(), letter.errors.len(), letter.attempts), (&["red".to_owned()][..], 2, 2));
    assert!(letter.is_replayable());
    let report = manager.requeue_dead_letters(|letter| letter.command_id == id);
    assert_eq!((report.requeued, report.refused.len()), (1, 0), "{report:?}");
    let [command] = &stored(&next)[..] else { panic!("it is a command again") };
    assert_eq!((command.id.clone(), command.replays), (id.to_string(), 1), "the same command");
    assert_eq!(letters_in(&next).len(), 1, "and no letter");
    world.advance(5);
    // It begins anew: its attempts 1 and 2 fail again.
    assert_eq!(manager.dlq().unwrap().get(id).expect("it failed again").replays, 1);
    assert_eq!(letters_in(&next).len(), 2);

    // What is removed from the queue's letters is removed from the store.
    assert!(manager.dlq().unwrap().remove(id).is_some());
    block_on(manager.dlq().unwrap().clear());
    assert!(letters_in(&next).is_empty());
}

#[test]
fn letters_that_a_full_queue_evicts_leave_the_store() {
    let steps = Steps("evicted");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(world.executor().clone())
        .with_storage(Arc::new(storage.clone()))
        .with_durable::<crate::stores::Step>()
        .with_dlq(2)
        .with_lane("a", plain(), 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    for number in 0..5 {
        block_on(manager.submit_durable("a", steps.step(number, Does::Fails))).unwrap().detach();
    }
    world.advance(5);
    let numbers: Vec<_> =
        letters_in(&storage).iter().map(|letter| letter.details["payload"]["number"].clone()).collect();
    assert_eq!(numbers, [json!(3), json!(4)]);
}
