//! What the process before has left comes back: at its place, with its attempts, and without those who kill.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corelane::{
    Command, CommandQueue, DeadLetterReason, DurableCommand, EventEmitter, LaneConfig, LaneError, MemoryStorage,
    ParkReason, QueueManager, QueueManagerBuilder, Result, RetryPolicy, Storage, StorageError, StoredCommand,
    SubmitOptions, Transition,
};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::stores::{Does, Step, Steps, builder_on, letters_in, manager_on, stored, unstarted_on};
use crate::support::{World, assert_idle, block_on, status, transitions};

fn plain() -> LaneConfig {
    LaneConfig::new(1, 1)
}

#[test]
fn what_was_accepted_runs_again_in_its_order_and_before_what_comes_after() {
    World::each(|mut world| {
        let steps = Steps(["order 0", "order 1", "order 2", "", "order 4"][world.executor().workers()]);
        let storage = MemoryStorage::new();
        let manager = unstarted_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
        for number in 0..100 {
            block_on(manager.submit_durable("a", steps.step(number, Does::Returns))).unwrap().detach();
        }
        let next = storage.after_crash();
        let manager = unstarted_on(world.executor(), Arc::new(next.clone()), &[("a", plain(), 0)]);
        assert_eq!(manager.recovery().unwrap().recovered, 100);
        assert_eq!(status(&manager, "a").pending, 100);
        for number in 100..120 {
            block_on(manager.submit_durable("a", steps.step(number, Does::Returns))).unwrap().detach();
        }
        block_on(manager.start()).unwrap();
        world.advance(10);
        assert_eq!(steps.numbers(), (0..120).collect::<Vec<_>>());
        assert!(stored(&next).is_empty());
        assert_idle(&manager);
    });
}

#[test]
fn a_command_comes_back_with_its_id_its_attempts_and_its_terms() {
    let steps = Steps("terms");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let config = || {
        LaneConfig::new(1, 1)
            .with_retry_policy(RetryPolicy::fixed(3, Duration::from_millis(50)))
            .with_priority_bounds(0, 9)
    };
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", config(), 5)]);
    let id = block_on(manager.submit_durable("a", steps.step(1, Does::Fails))).unwrap().id();
    world.advance(60);
    assert_eq!(steps.ran().len(), 2);
    manager.pause("a").unwrap();
    let low = SubmitOptions::new().priority(9).tag("low");
    block_on(manager.submit_durable_with("a", steps.step(2, Does::Fails), low)).unwrap().detach();
    let high = SubmitOptions::new().priority(0);
    block_on(manager.submit_durable_with("a", steps.step(3, Does::Returns), high)).unwrap().detach();
    let delayed = SubmitOptions::new().delay(Duration::from_secs(3600));
    block_on(manager.submit_durable_with("a", steps.step(4, Does::Returns), delayed)).unwrap().detach();

    let next = storage.after_crash();
    let manager = manager_on(world.executor(), Arc::new(next.clone()), &[("a", config(), 5)]);
    world.advance(10);
    let ran: Vec<_> = steps.ran().into_iter().skip(2).map(|ran| (ran.number, ran.attempt)).collect();
    assert_eq!(ran, [(3, 1), (1, 3), (2, 1)], "by priority; the one that was tried goes on with its third attempt");
    assert_eq!(steps.ran()[3].id, id.to_string());
    world.advance(1000);
    let letter = manager.dlq().unwrap().get(id).expect("its fourth attempt was the last");
    assert_eq!(letter.attempts, 4);
    assert!(manager.dlq().unwrap().snapshot().iter().any(|letter| letter.tags == ["low"]));
    // By the wall clock, which this world does not move.
    assert_eq!(status(&manager, "a").pending, 1, "not before its time");
    world.jump(Duration::from_secs(3601));
    assert_eq!(steps.numbers().last(), Some(&4));
}

#[test]
fn a_deadline_that_passed_while_no_process_ran_has_passed() {
    let steps = Steps("late");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let manager = unstarted_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    for (number, options) in [
        (1, SubmitOptions::new().queue_timeout(Duration::from_nanos(1))),
        (2, SubmitOptions::new().total_timeout(Duration::from_nanos(1))),
        (3, SubmitOptions::new().queue_timeout(Duration::from_secs(60)).total_timeout(Duration::from_secs(60))),
    ] {
        block_on(manager.submit_durable_with("a", steps.step(number, Does::Returns), options)).unwrap().detach();
    }
    let next = storage.after_crash();
    let manager = manager_on(world.executor(), Arc::new(next.clone()), &[("a", plain(), 0)]);
    world.advance(5);
    assert_eq!(steps.numbers(), [3]);
    assert!(stored(&next).is_empty());
    let reasons: Vec<_> = manager.dlq().unwrap().snapshot().iter().map(|letter| letter.reason).collect();
    assert_eq!(reasons, [DeadLetterReason::Expired; 2]);
}

#[derive(Serialize, Deserialize)]
struct Renamed(u32);

impl DurableCommand for Renamed {
    const TYPE: &'static str = "renamed";
    const VERSION: u32 = 2;
    type Output = u32;

    async fn execute(&self) -> Result<u32> {
        Ok(self.0)
    }

    fn decode(version: u32, payload: Value) -> Result<Self> {
        match (version, payload.as_u64()) {
            (1 | 2, Some(number)) => Ok(Self(number as u32)),
            (1 | 2, None) => panic!("others' code may panic"),
            _ => Err(LaneError::CommandError("unread".into())),
        }
    }
}

fn put(storage: &MemoryStorage, sequence: u64, kind: &str, change: impl FnOnce(&mut StoredCommand)) {
    let mut command = StoredCommand::new(format!("d{sequence}"), kind, "a", json!(sequence));
    command.sequence = sequence;
    command.recoverable = true;
    change(&mut command);
    block_on(storage.save_command(command)).unwrap();
}

#[test]
fn what_this_program_can_not_run_is_parked_and_told_of_and_what_it_can_not_read_is_given_up() {
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    put(&storage, 1, "renamed", |command| command.recoverable = false);
    put(&storage, 2, "unknown", |_| {});
    put(&storage, 3, "renamed", |command| command.payload_version = 3);
    put(&storage, 4, "renamed", |command| command.lane_id = "closed for good".into());
    put(&storage, 5, "renamed", |command| command.payload_version = 1);
    put(&storage, 6, "renamed", |command| command.payload = json!("not a number"));
    put(&storage, 7, "renamed", |command| command.id = "of somebody else".into());
    put(&storage, 8, "step", |_| {});
    let events = EventEmitter::new(100);
    let mut stream = events.subscribe_stream();
    let executor = world.executor().clone();
    let build = |storage: &MemoryStorage| {
        QueueManagerBuilder::new(events.clone())
            .with_executor(executor.clone())
            .with_storage(Arc::new(storage.clone()))
            .with_dlq(10)
            .with_durable::<Renamed>()
            .with_durable::<Step>()
            .with_lane("a", plain(), 0)
    };
    let manager = block_on(build(&storage).build()).unwrap();
    block_on(manager.start()).unwrap();
    let recovery = manager.recovery().unwrap();
    let parked: Vec<_> = recovery.parked.iter().map(|parked| (parked.command.sequence, parked.reason)).collect();
    let expected = [
        (1, ParkReason::NotRecoverable),
        (2, ParkReason::UnknownType),
        (3, ParkReason::NewerVersion),
        (4, ParkReason::UnknownLane),
        (7, ParkReason::NotRecoverable),
    ];
    assert_eq!(parked, expected);
    assert_eq!((recovery.recovered, recovery.parked_count, recovery.dead_lettered), (1, 5, 2));
    let told = transitions(&mut stream);
    assert_eq!(told.iter().filter(|told| matches!(told, Transition::Parked { .. })).count(), 5);
    assert_eq!(told.iter().filter(|told| matches!(told, Transition::DeadLettered { .. })).count(), 2);
    let summary = Transition::Recovered { recovered: 1, parked: 5, dead_lettered: 2, suspects: 0 };
    assert!(told.contains(&summary), "{told:?}");
    world.advance(5);
    assert_eq!(
        stored(&storage).iter().map(|command| command.sequence).collect::<Vec<_>>(),
        [1, 2, 3, 4, 7],
        "all of them stay"
    );
    let letters = letters_in(&storage);
    assert_eq!(letters.iter().map(|letter| letter.command_id.as_str()).collect::<Vec<_>>(), ["d6", "d8"]);
    assert!(manager.dlq().unwrap().snapshot().iter().all(|letter| letter.reason == DeadLetterReason::Undecodable));

    // The next version of the program knows the type.
    let next = storage.after_crash();
    let make =
        |_, payload| -> Result<Box<dyn Command>> { Ok(Box::new(corelane::JsonCommand::new("unknown", payload))) };
    let manager = block_on(build(&next).with_constructor("unknown", make).build()).unwrap();
    assert_eq!((manager.recovery().unwrap().recovered, manager.recovery().unwrap().parked_count), (1, 4));
}

#[test]
fn a_queue_built_without_recovery_runs_nothing_and_loses_nothing() {
    let steps = Steps("without recovery");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    put(&storage, 7, "step", |command| command.payload = serde_json::to_value(steps.step(7, Does::Returns)).unwrap());
    let builder = builder_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    let manager = block_on(builder.with_recovery(false).build()).unwrap();
    block_on(manager.start()).unwrap();
    let ticket = block_on(manager.submit_durable("a", steps.step(8, Does::Returns))).unwrap();
    assert_eq!(ticket.id().to_string(), "d8", "no number is given twice");
    world.advance(5);
    assert_eq!(steps.numbers(), [8]);
    assert_eq!(manager.recovery().unwrap().parked[0].reason, ParkReason::NotWanted);
    assert_eq!(stored(&storage).len(), 1);
}

#[test]
fn a_queue_that_is_not_built_from_its_store_overwrites_nothing_there() {
    let storage = Arc::new(MemoryStorage::new());
    put(&storage, 7, "step", |_| {});
    let queue = Arc::new(CommandQueue::with_dlq_and_storage(EventEmitter::new(10), 10, storage.clone()));
    block_on(queue.register_lane(corelane::Lane::new("a", plain(), 0))).unwrap();
    let mut submissions: Vec<_> = (0..3).map(|number| Box::pin(queue.submit("a", Box::new(Boxed(number))))).collect();
    let ids: Vec<_> = submissions.iter_mut().map(|submission| block_on(submission).unwrap().id().to_string()).collect();
    assert_eq!(ids, ["d8", "d9", "d10"]);
    assert_eq!(stored(&storage).len(), 4);
    assert!(stored(&storage)[1..].iter().all(|command| !command.recoverable), "nothing makes them again");
    block_on(queue.clone().start_scheduler());
    block_on(queue.drain(crate::support::HANG)).unwrap();
    assert_eq!(stored(&storage).len(), 1);
}

#[test]
fn a_store_belongs_to_one_queue() {
    let world = World::new(1, 1);
    let storage = Arc::new(MemoryStorage::new());
    let _first = unstarted_on(world.executor(), storage.clone(), &[("a", plain(), 0)]);
    let second = block_on(builder_on(world.executor(), storage, &[("a", plain(), 0)]).build());
    assert!(matches!(second, Err(LaneError::Storage(StorageError::InUse))));
}

/// A boxed command that can be made again.
struct Boxed(u64);

#[async_trait]
impl Command for Boxed {
    async fn execute(&self) -> Result<Value> {
        Ok(json!(self.0 + 1))
    }

    fn command_type(&self) -> &str {
        "boxed"
    }

    fn payload(&self) -> Option<Value> {
        Some(json!(self.0))
    }
}

#[test]
fn a_boxed_command_with_a_payload_and_a_constructor_comes_back_too() {
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    let executor = world.executor().clone();
    let build = |storage: &MemoryStorage| -> QueueManager {
        let builder = builder_on(&executor, Arc::new(storage.clone()), &[("a", plain().with_recoverable_only(), 0)]);
        let make = |_, payload: Value| -> Result<Box<dyn Command>> {
            let number = payload.as_u64().ok_or_else(|| LaneError::CommandError("a number was expected".into()))?;
            Ok(Box::new(Boxed(number)))
        };
        block_on(builder.with_constructor("boxed", make).build()).unwrap()
    };
    let manager = build(&storage);
    block_on(manager.submit("a", Box::new(Boxed(7)))).unwrap().detach();
    let next = storage.after_crash();
    let manager = build(&next);
    assert_eq!(manager.recovery().unwrap().recovered, 1);
    block_on(manager.start()).unwrap();
    world.advance(1);
    assert!(stored(&next).is_empty());
}

/// Lets the process die while `running` of the stored commands run; the store that the next one finds.
fn dies_while(world: &mut World, storage: &MemoryStorage, lanes: usize, running: usize) -> MemoryStorage {
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", LaneConfig::new(1, lanes), 0)]);
    world.advance(5);
    assert_eq!(status(&manager, "a").active, running);
    let next = storage.after_crash();
    // This process is dead: what its queue does from here on reaches no store that anybody looks at.
    std::mem::forget(manager);
    next
}

#[test]
fn a_command_that_kills_its_process_is_given_up_and_those_beside_it_are_not() {
    let steps = Steps("kills");
    let mut world = World::new(4, 1);
    let first = MemoryStorage::new();
    let manager = unstarted_on(world.executor(), Arc::new(first.clone()), &[("a", LaneConfig::new(1, 9), 0)]);
    let mut ids = Vec::new();
    for number in 0..9 {
        // The killer never ends; the others would in a while.
        let does = if number == 4 { Does::Waits(3_600_000) } else { Does::Waits(20) };
        ids.push(block_on(manager.submit_durable("a", steps.step(number, does))).unwrap().id());
    }
    drop(manager);
    let first = first.after_crash();
    let second = dies_while(&mut world, &first, 9, 9);
    assert!(stored(&second).iter().all(|command| command.crashes.is_empty()), "not charged yet");
    let third = dies_while(&mut world, &second, 9, 9);

    // Twice all nine were there: each of them may be the one. They run alone, one after the other.
    let before = steps.ran().len();
    let manager = manager_on(world.executor(), Arc::new(third.clone()), &[("a", LaneConfig::new(1, 9), 0)]);
    assert_eq!((manager.recovery().unwrap().suspects, manager.recovery().unwrap().recovered), (9, 9));
    let bystander = block_on(manager.submit_durable("a", steps.step(100, Does::Returns))).unwrap();
    world.advance(15);
    assert_eq!(steps.ran().len(), before + 1, "the first alone");
    assert_eq!(status(&manager, "a").pending, 9);
    world.advance(85);
    assert_eq!(steps.numbers()[before..], [0, 1, 2, 3, 4]);
    assert!(!bystander.has_started(), "nothing else runs meanwhile");
    let fourth = third.after_crash();
    std::mem::forget(manager);

    // Dead for the third time, with nobody beside it.
    let manager = manager_on(world.executor(), Arc::new(fourth.clone()), &[("a", LaneConfig::new(1, 9), 0)]);
    let recovery = manager.recovery().unwrap();
    assert_eq!((recovery.dead_lettered, recovery.suspects, recovery.recovered), (1, 4, 5), "{recovery:?}");
    let letter = manager.dlq().unwrap().get(ids[4]).expect("it was given up");
    assert_eq!(letter.reason, DeadLetterReason::Crashed);
    assert_eq!(letters_in(&fourth).len(), 1);
    world.advance(500);
    assert!(stored(&fourth).is_empty(), "the innocent have all ended");
    assert_eq!(manager.dlq().unwrap().snapshot().len(), 1);
    assert_idle(&manager);
}

#[test]
fn a_trial_ends_with_its_attempt_and_others_do_not_wait_for_it_for_ever() {
    let steps = Steps("trials");
    let mut world = World::new(2, 1);
    let storage = MemoryStorage::new();
    let crashes = |command: &mut StoredCommand, does| {
        let step = steps.step(command.sequence as u32, does);
        command.payload = serde_json::to_value(step).unwrap();
        command.crashes = vec![command.created_at; 2];
    };
    put(&storage, 1, "step", |command| crashes(command, Does::FailsUntil(1)));
    put(&storage, 2, "step", |command| crashes(command, Does::Waits(3_600_000)));
    put(&storage, 3, "step", |command| crashes(command, Does::Returns));
    let config = LaneConfig::new(1, 9).with_retry_policy(RetryPolicy::fixed(1, Duration::from_secs(1)));
    let lanes = [("a", config, 0), ("other", LaneConfig::new(1, 1).with_durability(corelane::Durability::Memory), 0)];
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    let mut other = manager.submit_fn("other", "closure", || async { Ok(()) }).unwrap();
    world.advance(500);
    assert_eq!(steps.numbers(), [1, 2], "the first waits out its backoff, and has been cleared");
    assert!(!other.has_started(), "a neighbour in memory could kill, too");
    world.jump(Duration::from_secs(599));
    assert_eq!(steps.numbers(), [1, 2]);
    world.jump(Duration::from_secs(2));
    assert_eq!(steps.numbers(), [1, 2, 3, 1]);
    assert!((&mut other).now_or_never().is_some());
    assert_eq!(stored(&storage).len(), 1);
}

#[test]
fn a_queue_that_stops_during_a_trial_leaves_the_others_on_trial_stored() {
    let steps = Steps("stopped trial");
    let mut world = World::new(1, 1);
    let storage = MemoryStorage::new();
    for sequence in 1..=3 {
        put(&storage, sequence, "step", |command| {
            command.payload = serde_json::to_value(steps.step(sequence as u32, Does::Waits(3_600_000))).unwrap();
            command.crashes = vec![command.created_at; 2];
        });
    }
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &[("a", plain(), 0)]);
    world.advance(5);
    let stop = corelane::Stop::drain(Duration::from_millis(10)).then_cancel(Duration::from_secs(5));
    let report = world.simulation().block_on(manager.stop(stop));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(steps.numbers(), [1]);
    assert_eq!(stored(&storage).len(), 3);
    let next = storage.after_crash();
    let manager = unstarted_on(world.executor(), Arc::new(next.clone()), &[("a", plain(), 0)]);
    assert_eq!(manager.recovery().unwrap().suspects, 3);
    assert!(stored(&next).iter().all(|command| command.crashes.len() == 2), "a clean end charges nobody");
    // And one that is never started has them all the same.
    drop(manager);
    assert_eq!(stored(&next).len(), 3);
}

#[test]
fn after_unclean_ends_in_quick_succession_durable_lanes_start_paused() {
    let steps = Steps("storm");
    let mut world = World::new(1, 1);
    let mut storage = MemoryStorage::new();
    let lanes = [("a", plain(), 0), ("memory", plain().with_durability(corelane::Durability::Memory), 0)];
    for end in 1..=6 {
        let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
        assert!(!manager.recovery().unwrap().paused, "after {} ends", end - 1);
        if end == 6 {
            manager.pause("a").unwrap();
            block_on(manager.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
        }
        storage = storage.after_crash();
        drop(manager);
    }
    let manager = manager_on(world.executor(), Arc::new(storage.clone()), &lanes);
    assert!(manager.recovery().unwrap().paused);
    assert!(manager.lane("a").unwrap().is_paused() && !manager.lane("memory").unwrap().is_paused());
    world.advance(5);
    assert!(steps.ran().is_empty());
    manager.resume("a").unwrap();
    world.advance(5);
    assert_eq!(steps.numbers(), [1]);
}

#[test]
fn settings_that_make_no_sense_with_or_without_a_store_are_refused_together() {
    let world = World::new(1, 1);
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(world.executor().clone())
        .with_durable::<Step>()
        .with_durable::<Step>()
        .with_crash_limit(1, Duration::ZERO)
        .with_idempotency_window(Duration::from_secs(1), 0)
        .with_lane("a", plain().with_durability(corelane::Durability::Synced).with_recoverable_only(), 0)
        .with_lane("b", plain().with_completion(corelane::Durability::Memory), 0);
    let Err(LaneError::ConfigError(errors)) = block_on(builder.build()) else { panic!("built") };
    let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
    let expected = [
        r#"commands["step"]"#,
        "storage",
        "crash_limit.crashes",
        "crash_limit.within",
        "idempotency_window.keys",
        r#"lanes["a"].durability"#,
        r#"lanes["a"].recoverable_only"#,
        r#"lanes["b"].completion"#,
    ];
    assert_eq!(paths, expected);
}
