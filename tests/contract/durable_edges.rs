//! Durable lanes where several things happen at once: each test is of a fault that a review has found.

use std::sync::Arc;
use std::time::Duration;

use crate::stores::*;
use crate::support::*;
use async_trait::async_trait;
use corelane::*;
use futures::FutureExt;
use serde_json::json;

fn plain() -> LaneConfig {
    LaneConfig::new(1, 1)
}
fn io() -> StorageError {
    StorageError::Io("eio".into())
}
fn removes(c: &Change) -> bool {
    matches!(c, Change::Remove { .. })
}
fn saves(c: &Change) -> bool {
    matches!(c, Change::Save(_))
}

fn put(storage: &MemoryStorage, steps: &Steps, sequence: u64, does: Does, change: impl FnOnce(&mut StoredCommand)) {
    let step = serde_json::to_value(steps.step(sequence as u32, does)).unwrap();
    let mut command = StoredCommand::new(format!("d{sequence}"), "step", "a", step);
    command.sequence = sequence;
    command.recoverable = true;
    change(&mut command);
    block_on(storage.save_command(command)).unwrap();
}

#[test]
fn a_recovered_command_holds_no_memory_that_it_would_give_back() {
    let steps = Steps("t01");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    put(&s, &steps, 1, Does::Returns, |c| c.terms.bytes = 100);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain().with_max_pending_bytes(10_000), 0)]);
    world.advance(5);
    assert_eq!(steps.numbers(), [1]);
    m.pause("a").unwrap();
    let _t = block_on(m.submit_durable("a", steps.step(2, Does::Returns))).unwrap();
}

#[test]
fn what_is_owed_is_paid_once_however_many_wait_for_it() {
    let steps = Steps("t02");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    let _t = block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
    s.fail_on(io(), removes);
    world.advance(5);
    assert_eq!(steps.numbers(), [1]);
    s.heal();
    let barrier = s.hold();
    let mut d = Box::pin(m.drain(Duration::from_secs(3600)));
    assert!((&mut d).now_or_never().is_none());
    world.jump(Duration::from_secs(3));
    barrier.open();
    world.advance(5);
    world.simulation().block_on(d).unwrap();
}

#[test]
fn a_result_is_not_handed_out_for_an_end_that_is_not_stored_where_the_lane_says_so() {
    let steps = Steps("t03");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain().with_completion(Durability::Synced), 0)]);
    let mut t = block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
    s.fail_on(io(), removes);
    world.advance(5);
    assert_eq!(stored(&s.inner).len(), 1);
    if t.is_finished() {
        let r = result(&mut t);
        assert!(r.is_err(), "its end is not stored, and: {r:?}");
    }
}

#[test]
fn a_store_that_is_full_and_then_fails_has_failed() {
    let steps = Steps("t04");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    m.pause("a").unwrap();
    let _t = block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap();
    s.fail_on(StorageError::StorageFull("full".into()), saves);
    block_on(m.submit_durable("a", steps.step(2, Does::Returns))).unwrap_err();
    s.fail_with(io());
    block_on(m.submit_durable("a", steps.step(2, Does::Returns))).unwrap_err();
    assert!(matches!(m.storage_health(), Some(StorageHealth::Failed(_))));
    m.resume("a").unwrap();
    world.advance(5);
    assert!(steps.numbers().is_empty(), "started although the store has failed");
}

#[test]
fn a_lane_that_degrades_refuses_when_the_store_is_merely_full() {
    let steps = Steps("t05");
    let world = World::new(1, 1);
    let s = Fragile::default();
    let config = plain().with_storage_failure(OnStorageFailure::DegradeToMemory);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", config, 0)]);
    s.fail_on(StorageError::StorageFull("full".into()), saves);
    let r = block_on(m.submit_durable("a", steps.step(2, Does::Returns)));
    assert!(r.is_err(), "documented: full refuses; {r:?}");
}

#[test]
fn a_lane_that_degrades_keeps_to_its_keys() {
    let steps = Steps("t06");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let config = plain().with_storage_failure(OnStorageFailure::DegradeToMemory);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", config, 0)]);
    s.fail_with(io());
    let key = || SubmitOptions::new().idempotency_key("k");
    let _a = block_on(m.submit_durable_with("a", steps.step(1, Does::Waits(50)), key()));
    let _b = block_on(m.submit_durable_with("a", steps.step(1, Does::Waits(50)), key()));
    world.advance(500);
    assert!(steps.numbers().len() <= 1, "ran {:?}", steps.numbers());
}

#[test]
fn a_command_that_has_run_before_does_not_expire_while_it_waits_to_run_again() {
    let steps = Steps("t07");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    put(&s, &steps, 1, Does::Returns, |c| {
        c.retry_count = 1;
        c.terms.start_by = Some(c.created_at - chrono::TimeDelta::seconds(5));
    });
    let config = plain().with_retry_policy(RetryPolicy::fixed(3, Duration::from_secs(1)));
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", config, 0)]);
    world.advance(5);
    assert_eq!(steps.numbers(), [1], "had started before: {:?}", m.dlq().unwrap().snapshot());
}

#[test]
fn a_stored_command_that_another_one_has_submitted_stays_stored_when_the_queue_stops() {
    let steps = Steps("t08");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let lanes = [("p", plain().with_durability(Durability::Memory), 0), ("a", plain(), 0)];
    let m = Arc::new(manager_on(world.executor(), Arc::new(s.clone()), &lanes));
    let (inner, step) = (m.queue(), steps.step(1, Does::Waits(3_600_000)));
    let _p = m
        .submit_fn("p", "parent", move || async move {
            let t = inner.submit_durable("a", step).await.map_err(LaneError::from)?;
            t.await.map_err(|e| LaneError::Other(e.to_string()))?
        })
        .unwrap();
    world.advance(5);
    assert_eq!(steps.numbers(), [1]);
    let report = world.simulation().block_on(m.stop(Stop::drain(Duration::from_millis(10))));
    assert_eq!(stored(&s).len(), 1, "cancelled since its queue stops; {report:?}");
}

#[test]
fn a_smaller_number_of_keys_loses_no_command_that_was_accepted() {
    let steps = Steps("t09");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    for n in 1..=3 {
        put(&s, &steps, n, Does::Returns, |c| c.terms.idempotency_key = Some(format!("k{n}")));
    }
    let b = builder_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    let m = block_on(b.with_idempotency_window(Duration::from_secs(3600), 1).build()).unwrap();
    block_on(m.start()).unwrap();
    world.advance(5);
    assert_eq!(steps.numbers(), [1, 2, 3]);
}

#[test]
fn a_parked_command_whose_key_other_work_has_got_is_not_lost() {
    let steps = Steps("t10");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    block_on(s.apply(
        vec![Change::Remove {
            id: "d1".into(),
            result: Some(Box::new(StoredResult::new("k", "other", "d1", json!(1)))),
        }],
        Durability::Synced,
    ))
    .unwrap();
    put(&s, &steps, 2, Does::Returns, |c| c.terms.idempotency_key = Some("k".into()));
    let _m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    world.advance(5);
    assert_eq!(steps.numbers(), [2]);
}

fn letter_on(world: &mut World, s: &Fragile, steps: &Steps) -> QueueManager {
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    block_on(m.submit_durable("a", steps.step(1, Does::FailsUntil(1)))).unwrap().detach();
    world.advance(5);
    assert_eq!(letters_in(&s.inner).len(), 1);
    s.pause_on(|change| matches!(change, Change::Replay(_) | Change::RemoveDeadLetters { .. }));
    m
}

#[test]
fn a_replay_is_stored_before_the_end_of_what_it_runs() {
    let steps = Steps("t11");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = letter_on(&mut world, &s, &steps);
    assert_eq!(m.requeue_dead_letters(|_| true).requeued, 1);
    world.advance(5);
    world.advance(100);
    let report = world.simulation().block_on(m.stop(Stop::drain(Duration::from_secs(5))));
    assert!(report.is_complete() && report.storage.is_none(), "{report:?}");
    assert_idle(&m);
    // both attempts have ended as letters
    assert_eq!((stored(&s.inner).len(), letters_in(&s.inner).len(), m.dlq().unwrap().snapshot().len()), (0, 1, 1));
}

#[test]
fn a_letter_that_is_put_back_is_stored() {
    let steps = Steps("t12");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = letter_on(&mut world, &s, &steps);
    for letter in m.dlq().unwrap().take_where(|_| true) {
        m.dlq().unwrap().put_back(letter);
    }
    world.advance(5);
    world.advance(100);
    assert_eq!((letters_in(&s.inner).len(), m.dlq().unwrap().snapshot().len()), (1, 1));
}

#[test]
fn stop_returns_when_removed_letters_are_removed() {
    let steps = Steps("t13");
    let executor = executor(1);
    let s = Fragile::default();
    let m = manager_on(&executor, Arc::new(s.clone()), &[("a", plain(), 0)]);
    let failed = block_on(m.submit_durable("a", steps.step(1, Does::Fails))).unwrap();
    assert!(block_on(failed).unwrap().is_err());
    block_on(m.drain(HANG)).unwrap();
    assert_eq!(letters_in(&s.inner).len(), 1);
    s.pause_on(|change| matches!(change, Change::Replay(_) | Change::RemoveDeadLetters { .. }));
    drop(m.dlq().unwrap().take_where(|_| true));
    let report = finish("stop", m.stop(Stop::drain(HANG)));
    assert!(report.storage.is_none());
    assert_eq!(letters_in(&s.inner).len(), 0, "taken, and stop has returned");
}

#[test]
fn a_store_that_panics_costs_a_lane_nothing() {
    let steps = Steps("t14");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    s.panic_on_unmark(true);
    block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
    world.advance(5);
    s.panic_on_unmark(false);
    block_on(m.submit_durable("a", steps.step(2, Does::Returns))).unwrap().detach();
    world.advance(5);
    assert_eq!(steps.numbers(), [1, 2], "{:?}", status(&m, "a"));
}

#[test]
fn a_result_that_is_too_large_keeps_no_other_end_from_being_stored() {
    let steps = Steps("t15");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    s.fail_on(StorageError::TooLarge { size: 9, limit: 1 }, |c| matches!(c, Change::Remove { result: Some(_), .. }));
    block_on(m.submit_durable_with("a", steps.step(1, Does::Returns), SubmitOptions::new().idempotency_key("k")))
        .unwrap()
        .detach();
    world.advance(5);
    block_on(m.submit_durable("a", steps.step(2, Does::Returns))).unwrap().detach();
    world.advance(5);
    world.jump(Duration::from_secs(10));
    let left: Vec<_> = stored(&s.inner).into_iter().map(|c| c.id).collect();
    assert!(
        left.is_empty(),
        "{left:?} never end; probes {}; health {:?}; drain {:?}",
        s.probes(),
        m.storage_health(),
        world.simulation().block_on(m.drain(Duration::from_secs(1)))
    );
}

fn suspects(s: &MemoryStorage, steps: &Steps, n: u64) {
    for i in 1..=n {
        put(s, steps, i, Does::Waits(3_600_000), |c| c.crashes = vec![c.created_at; 2]);
    }
}

#[test]
fn a_queue_that_was_never_started_lets_its_store_go() {
    let steps = Steps("t16");
    let world = World::new(1, 1);
    let s = MemoryStorage::new();
    suspects(&s, &steps, 1);
    let arc = Arc::new(s.clone());
    let m = unstarted_on(world.executor(), arc.clone(), &[("a", plain(), 0)]);
    drop(m);
    assert_eq!(Arc::strong_count(&arc), 1, "a queue that is gone holds its store");
}

#[test]
fn a_queue_that_stops_before_it_was_started_leaves_suspects_stored() {
    let steps = Steps("t17");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    suspects(&s, &steps, 2);
    let m = unstarted_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    let report = world.simulation().block_on(m.stop(Stop::drain(Duration::from_millis(10))));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.settled, report.still_stored, stored(&s).len()), (0, 2, 2), "{report:?}");
}

#[test]
fn a_stop_during_a_trial_counts_what_stays_stored() {
    let steps = Steps("t18");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    suspects(&s, &steps, 3);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    world.advance(5);
    let report = world.simulation().block_on(m.stop(Stop::drain(Duration::from_millis(10))));
    assert_eq!((report.settled, report.still_stored, report.cancelled), (0, 3, 3), "{report:?}");
}

#[test]
fn a_command_that_was_given_up_for_its_crashes_can_be_replayed_at_once() {
    let steps = Steps("t19");
    let world = World::new(1, 1);
    let s = MemoryStorage::new();
    put(&s, &steps, 1, Does::Returns, |c| c.crashes = vec![c.created_at; 3]);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    let report = m.requeue_dead_letters(|_| true);
    assert_eq!(report.requeued, 1, "{report:?}");
}

#[test]
fn a_command_that_is_late_in_its_trial_is_not_charged_for_the_next_one() {
    let steps = Steps("t20");
    let mut world = World::new(2, 1);
    let s = MemoryStorage::new();
    suspects(&s, &steps, 2);
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", LaneConfig::new(1, 9), 0)]);
    world.jump(Duration::from_secs(601));
    assert_eq!(steps.numbers(), [1, 2]);
    let next = s.after_crash(); // 2 has killed it
    std::mem::forget(m);
    let m = manager_on(world.executor(), Arc::new(next.clone()), &[("a", LaneConfig::new(1, 9), 0)]);
    assert_eq!(
        m.recovery().unwrap().dead_lettered,
        1,
        "{:?}",
        m.dlq().unwrap().snapshot().iter().map(|l| (l.command_id, l.error.clone())).collect::<Vec<_>>()
    );
}

#[test]
fn a_letter_of_another_store_touches_nothing_here() {
    let steps = Steps("t21");
    let mut world = World::new(1, 1);
    let (a, b) = (MemoryStorage::new(), MemoryStorage::new());
    let lanes = [("a", plain(), 0)];
    let (ma, mb) = (
        manager_on(world.executor(), Arc::new(a.clone()), &lanes),
        manager_on(world.executor(), Arc::new(b.clone()), &lanes),
    );
    for (m, n) in [(&ma, 1), (&mb, 2)] {
        block_on(m.submit_durable("a", steps.step(n, Does::Fails))).unwrap().detach();
    }
    world.advance(5);
    for l in ma.dlq().unwrap().take_where(|_| true) {
        mb.dlq().unwrap().put_back(l);
    }
    world.advance(5);
    assert_eq!((mb.dlq().unwrap().snapshot().len(), letters_in(&b).len()), (2, 1), "its own is still stored");
}

#[test]
fn an_executor_that_closes_while_an_end_is_stored_gives_the_permit_back() {
    let steps = Steps("t22");
    let executor = executor(1);
    let s = Fragile::default();
    let m = manager_on(&executor, Arc::new(s.clone()), &[("a", plain(), 0)]);
    m.pause("a").unwrap();
    block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
    let barrier = s.hold();
    m.resume("a").unwrap();
    eventually("its end is being stored", || s.waiting() == 1);
    let _report = block_on(executor.shutdown(Duration::ZERO));
    barrier.open();
    let d = block_on(m.drain(HANG));
    assert!(d.is_ok(), "{d:?} {:?}", status(&m, "a"));
}

#[test]
fn a_command_that_awaits_a_shared_result_lends_its_permit_to_it() {
    let steps = Steps("t23");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let m = unstarted_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    let key = || SubmitOptions::new().idempotency_key("k");
    let (inner, step) = (m.queue(), steps.step(1, Does::Returns));
    let parent = Do(move || {
        let (inner, step) = (inner.clone(), step.clone());
        async move {
            let t = inner
                .submit_durable_with("a", step, SubmitOptions::new().idempotency_key("k"))
                .await
                .map_err(LaneError::from)?;
            Ok(json!(t.await.map_err(|e| LaneError::Other(e.to_string()))??))
        }
    });
    let mut p = block_on(m.submit("a", Box::new(parent))).unwrap();
    let _c = block_on(m.submit_durable_with("a", steps.step(1, Does::Returns), key())).unwrap();
    block_on(m.start()).unwrap();
    world.jump(Duration::from_secs(60));
    assert!(p.is_finished(), "hangs; {:?}", status(&m, "a"));
    result(&mut p).unwrap();
}

#[test]
fn a_lane_that_is_told_to_degrade_while_the_store_fails_does() {
    let steps = Steps("t24");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    s.fail_with(io());
    block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap_err();
    m.update_lane("a", |c| c.storage_failure = OnStorageFailure::DegradeToMemory).unwrap();
    block_on(m.submit_durable("a", steps.step(1, Does::Returns))).unwrap().detach();
    world.jump(Duration::from_secs(5));
    assert_eq!(steps.numbers(), [1]);
}

struct Hostile(Arc<dyn Fn() + Send + Sync>);
#[async_trait]
impl Command for Hostile {
    async fn execute(&self) -> Result<serde_json::Value> {
        Err(LaneError::CommandError("no".into()))
    }
    fn command_type(&self) -> &str {
        "hostile"
    }
}
impl Drop for Hostile {
    fn drop(&mut self) {
        (self.0)()
    }
}

fn hostile_world(world: &World, s: &MemoryStorage) -> QueueManager {
    let lanes = [("a", plain(), 0), ("m", plain().with_durability(Durability::Memory), 0)];
    let m = block_on(builder_on(world.executor(), Arc::new(s.clone()), &lanes).with_dlq(1).build()).unwrap();
    block_on(m.start()).unwrap();
    m
}

#[test]
fn an_evicted_letter_that_panics_costs_no_other_letter() {
    let steps = Steps("t25");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let m = hostile_world(&world, &s);
    m.try_submit("m", Box::new(Hostile(Arc::new(|| panic!("destructor"))))).map_err(|e| e.error).unwrap().detach();
    world.advance(5);
    block_on(m.submit_durable("a", steps.step(1, Does::Fails))).unwrap().detach();
    world.advance(5);
    assert_eq!((m.dlq().unwrap().snapshot().len(), letters_in(&s).len()), (1, 1));
}

#[test]
fn a_letter_is_stored_before_it_is_seen() {
    let steps = Steps("t26");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let m = Arc::new(hostile_world(&world, &s));
    let queue = Arc::downgrade(&m.queue());
    let hook = move || {
        let Some(queue) = queue.upgrade() else { return };
        queue.pause("a").unwrap();
        assert_eq!(queue.requeue_dead_letters(|l| l.command_type == "step").requeued, 1);
    };
    m.try_submit("m", Box::new(Hostile(Arc::new(hook)))).map_err(|e| e.error).unwrap().detach();
    world.advance(5);
    block_on(m.submit_durable("a", steps.step(1, Does::Fails))).unwrap().detach();
    world.advance(5);
    assert_eq!(m.dlq().unwrap().snapshot().len(), 0);
    assert_eq!((stored(&s).len(), letters_in(&s).len()), (1, 0), "accepted again, and not a letter");
}

#[test]
fn an_unknown_outcome_leaves_one_letter() {
    let steps = Steps("t27");
    let mut world = World::new(1, 1);
    let s = Fragile::default();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    s.lose_sight_of(|change| matches!(change, Change::GiveUp(_)));
    block_on(m.submit_durable("a", steps.step(1, Does::Fails))).unwrap().detach();
    world.advance(5);
    world.jump(Duration::from_secs(5));
    world.simulation().block_on(m.stop(Stop::drain(Duration::from_secs(5))));
    let letters = letters_in(&s.inner).len();
    let next = s.inner.after_crash();
    let m = manager_on(world.executor(), Arc::new(next.clone()), &[("a", plain(), 0)]);
    let report = m.requeue_dead_letters(|_| true);
    world.advance(5);
    assert_eq!((letters, report.requeued), (1, 1), "{:?}", steps.ran());
}

#[test]
fn a_queue_that_could_not_be_built_lets_its_store_go() {
    let world = World::new(1, 1);
    let s = Fragile::default();
    s.fail_next_page(io());
    let arc = Arc::new(s.clone());
    assert!(block_on(builder_on(world.executor(), arc.clone(), &[("a", plain(), 0)]).build()).is_err());
    let again = block_on(builder_on(world.executor(), arc.clone(), &[("a", plain(), 0)]).build());
    assert!(again.is_ok(), "{:?}", again.err());
}
#[test]
fn an_executor_that_closes_gives_every_permit_back() {
    let steps = Steps("t29");
    let executor = executor(1);
    let s = Fragile::default();
    let m = manager_on(&executor, Arc::new(s.clone()), &[("a", plain(), 0)]);
    block_on(m.submit_durable("a", steps.step(1, Does::Waits(3_600_000)))).unwrap().detach();
    eventually("ran", || steps.numbers().len() == 1);
    let _report = block_on(executor.shutdown(Duration::ZERO));
    let d = block_on(m.drain(HANG));
    assert!(d.is_ok(), "{d:?} {:?}", status(&m, "a"));
}
#[test]
fn a_result_that_is_not_data_is_not_shared_as_a_cancelled_one() {
    // A result that is not data: its key and those who share it.
    let steps = Steps("t30");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let m = block_on(
        QueueManagerBuilder::new(EventEmitter::new(10))
            .with_executor(world.executor().clone())
            .with_storage(Arc::new(s.clone()))
            .with_durable::<Odd>()
            .with_lane("a", plain(), 0)
            .build(),
    )
    .unwrap();
    let key = || SubmitOptions::new().idempotency_key("k");
    let _one = block_on(m.submit_durable_with("a", Odd, key())).unwrap();
    let mut two = block_on(m.submit_durable_with("a", Odd, key())).unwrap();
    block_on(m.start()).unwrap();
    world.advance(5);
    let _ = steps;
    let heard = result(&mut two).map(|_| ());
    assert!(!matches!(heard, Err(LaneError::Cancelled { .. })), "it has completed: {heard:?}");
}
#[derive(serde::Serialize, serde::Deserialize)]
struct Odd;
impl DurableCommand for Odd {
    const TYPE: &'static str = "odd";
    type Output = std::collections::HashMap<Vec<u8>, u8>;
    async fn execute(&self) -> Result<Self::Output> {
        Ok([(vec![1u8], 2u8)].into_iter().collect())
    }
}
#[test]
fn a_suspect_of_a_paused_lane_waits_until_it_is_resumed() {
    let steps = Steps("t31");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    suspects(&s, &steps, 1);
    let m = unstarted_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    m.pause("a").unwrap();
    block_on(m.start()).unwrap();
    world.advance(5);
    assert!(steps.numbers().is_empty(), "{:?}", steps.numbers());
}
#[test]
fn a_queue_that_has_not_opened_its_store_does_not_finish_it() {
    let steps = Steps("t32");
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let m = manager_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]);
    block_on(m.submit_durable("a", steps.step(1, Does::Waits(3_600_000)))).unwrap().detach();
    world.advance(5);
    let other = CommandQueue::with_storage(EventEmitter::new(1), Arc::new(s.clone()));
    block_on(other.stop(Stop::drain(Duration::from_millis(10))));
    let next = s.after_crash();
    let _m = unstarted_on(world.executor(), Arc::new(next.clone()), &[("a", plain(), 0)]);
    assert_eq!(stored(&next)[0].crashes.len(), 1, "the process was killed while it ran");
}
#[derive(serde::Serialize, serde::Deserialize)]
struct Nests {
    n: u32,
}
static INNER: std::sync::Mutex<Option<std::sync::Weak<CommandQueue>>> = std::sync::Mutex::new(None);
impl DurableCommand for Nests {
    const TYPE: &'static str = "nests";
    type Output = u32;
    async fn execute(&self) -> Result<u32> {
        let queue = INNER.lock().unwrap().as_ref().and_then(|q| q.upgrade()).ok_or(LaneError::Other("gone".into()))?;
        let t = queue.submit_durable("a", Steps("t33").step(7, Does::Returns)).await.map_err(LaneError::from)?;
        t.await.map_err(|e| LaneError::Other(e.to_string()))?
    }
}
#[test]
fn a_suspect_that_waits_for_a_command_of_its_own_is_not_waited_for() {
    let mut world = World::new(1, 1);
    let s = MemoryStorage::new();
    let mut c = StoredCommand::new("d1", "nests", "a", json!({"n": 1}));
    c.sequence = 1;
    c.recoverable = true;
    c.crashes = vec![c.created_at; 2];
    block_on(s.save_command(c)).unwrap();
    let m = block_on(
        builder_on(world.executor(), Arc::new(s.clone()), &[("a", plain(), 0)]).with_durable::<Nests>().build(),
    )
    .unwrap();
    *INNER.lock().unwrap() = Some(Arc::downgrade(&m.queue()));
    block_on(m.start()).unwrap();
    world.jump(Duration::from_secs(20));
    assert_eq!(Steps("t33").numbers(), [7], "its trial ends when it waits for another command");
}

#[test]
fn a_queue_that_is_dropped_while_a_suspect_waits_for_its_lane_lets_its_store_go() {
    let steps = Steps("t34");
    let mut world = World::new(1, 1);
    let s = Arc::new(MemoryStorage::new());
    suspects(&s, &steps, 2);
    let m = unstarted_on(world.executor(), s.clone(), &[("a", plain(), 0)]);
    m.pause("a").unwrap();
    block_on(m.start()).unwrap();
    world.advance(5);
    assert!(steps.numbers().is_empty());
    drop(m);
    world.advance(5);
    assert!(steps.numbers().is_empty(), "nobody has resumed its lane");
    assert_eq!((stored(&s).len(), Arc::strong_count(&s)), (2, 1));
}
