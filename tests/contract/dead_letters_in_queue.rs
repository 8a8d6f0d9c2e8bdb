//! Dead letters of a queue: what is given up leaves one, and can be run again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    Command, CommandQueue, DeadLetter, DeadLetterQueue, DeadLetterReason, EventEmitter, Executor, Lane, LaneConfig,
    LaneError, Overflow, QueueManager, QueueManagerBuilder, Result, RetryPolicy, SubmitOptions, Ticket, Transition,
    events, sleep, yield_now,
};
use serde_json::{Value, json};

use crate::support::{
    Barrier, HANG, Work, World, assert_idle, block_on, eventually, executor, finish, lane_of, result, transitions,
};

const SECOND: Duration = Duration::from_secs(1);

fn with_letters(executor: &Executor, letters: impl Into<DeadLetterQueue>, config: LaneConfig) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(10_000)).with_executor(executor.clone());
    let manager = block_on(builder.with_dlq(letters).with_lane("a", config, 0).build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

fn letters(manager: &QueueManager) -> Vec<DeadLetter> {
    manager.dlq().unwrap().snapshot()
}

/// Fails until it has been run so many times, by whomever.
struct Flaky {
    number: u64,
    fails: u32,
    runs: Arc<AtomicU32>,
}

fn flaky(number: u64, fails: u32) -> (Box<dyn Command>, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    (Box::new(Flaky { number, fails, runs: Arc::clone(&runs) }), runs)
}

#[async_trait::async_trait]
impl Command for Flaky {
    async fn execute(&self) -> Result<Value> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        if run <= self.fails { Err(LaneError::CommandError(format!("run {run}"))) } else { Ok(json!(run)) }
    }

    fn command_type(&self) -> &str {
        "flaky"
    }

    fn payload(&self) -> Option<Value> {
        Some(json!({ "number": self.number }))
    }
}

#[test]
fn what_was_given_up_leaves_a_letter_and_nothing_else_does() {
    World::each(|mut world| {
        let config = LaneConfig::new(1, 1).with_timeout(SECOND).with_capacity(2).with_overflow(Overflow::DropOldest);
        let manager = with_letters(world.executor(), 10, config);
        let lane = lane_of(&manager, "a");
        let mut expected = Vec::new();
        let mut run = |world: &mut World, ticket: Ticket<()>, reason: Option<DeadLetterReason>| {
            world.advance(1001);
            assert!(ticket.is_finished());
            expected.extend(reason.map(|reason| (ticket.id(), reason)));
            let found: Vec<_> = letters(&manager).iter().map(|letter| (letter.command_id, letter.reason)).collect();
            assert_eq!(found, expected);
        };
        let failed = manager.submit_typed("a", Work(|| async { Err::<(), _>(LaneError::Other("no".into())) }));
        run(&mut world, failed.unwrap(), Some(DeadLetterReason::Failed));
        let panicked = manager.submit_fn::<_, _, ()>("a", "panics", || async { panic!("of a command") });
        run(&mut world, panicked.unwrap(), Some(DeadLetterReason::Panicked));
        let slow = manager.submit_fn("a", "slow", || async { Ok(sleep(2 * SECOND).await) }).unwrap();
        run(&mut world, slow, Some(DeadLetterReason::TimedOut));
        let completed = manager.submit_fn("a", "completes", || async { Ok(()) }).unwrap();
        run(&mut world, completed, None);

        let blocker = || lane.submit_fn("blocker", || async { Ok(sleep(SECOND * 9 / 10).await) }).unwrap();
        let _blocks = blocker();
        let options = SubmitOptions::new().queue_timeout(SECOND / 10);
        let late = lane.submit_fn_with("late", options, || async { Ok(()) }).unwrap();
        run(&mut world, late, Some(DeadLetterReason::Expired));

        let _blocks = blocker();
        let shed = lane.submit_fn("shed", || async { Ok(()) }).unwrap();
        let mut kept = lane.submit_fn("kept", || async { Ok(()) }).unwrap();
        let _newest = lane.submit_fn("newest", || async { Ok(()) }).unwrap();
        run(&mut world, shed, Some(DeadLetterReason::Shed));
        result(&mut kept).unwrap();

        let _blocks = blocker();
        let mut waits = lane.submit_fn("cancelled", || async { Ok(()) }).unwrap();
        assert!(waits.cancel());
        run(&mut world, waits, None);
        let mut runs = lane.submit_fn("cancelled", || async { Ok(sleep(SECOND).await) }).unwrap();
        world.run_until_idle();
        assert!(runs.cancel());
        run(&mut world, runs, None);
        assert_idle(&manager);
    });
}

#[test]
fn a_letter_says_what_the_command_was_and_what_went_wrong_attempt_by_attempt() {
    let mut world = World::new(2, 5);
    let policy = RetryPolicy::fixed(2, SECOND / 10).without_jitter();
    let manager = with_letters(world.executor(), 10, LaneConfig::new(1, 1).with_retry_policy(policy));
    let mut told = manager.subscribe();
    let (command, _) = flaky(42, u32::MAX);
    let options = SubmitOptions::new().tag("nightly").tag("tenant-7");
    let mut ticket = block_on(manager.submit_with("a", command, options)).unwrap();
    world.advance(500);
    assert!(result(&mut ticket).is_err());
    let [letter] = &letters(&manager)[..] else { panic!("not one letter") };
    assert_eq!(letter.command_id, ticket.id());
    assert_eq!((letter.command_type.as_str(), letter.lane_id.as_str()), ("flaky", "a"));
    assert_eq!(letter.payload, Some(json!({ "number": 42 })));
    assert_eq!((letter.attempts, letter.replays, letter.reason), (3, 0, DeadLetterReason::Failed));
    assert_eq!(letter.tags, ["nightly", "tenant-7"]);
    assert!(letter.error.contains("run 3"), "{}", letter.error);
    let errors: Vec<_> = letter.errors.iter().map(|error| (error.attempt, error.error.contains("run"))).collect();
    assert_eq!(errors, [(1, true), (2, true), (3, true)]);
    assert_eq!(letter.errors_dropped, 0);
    assert!(letter.accepted_at <= letter.failed_at);
    assert!(letter.is_replayable());
    let told = transitions(&mut told);
    let dead = |told: &&Transition| matches!(told, Transition::DeadLettered { command, attempts: 3 } if command.command_id == ticket.id());
    assert_eq!(told.iter().filter(dead).count(), 1, "{told:?}");
    assert_eq!(block_on(manager.stats()).unwrap().dead_letter_count, 1);
}

#[test]
fn a_requeued_command_runs_anew_and_its_replays_are_counted() {
    World::each(|mut world| {
        let policy = RetryPolicy::fixed(1, SECOND / 10).without_jitter();
        let manager = with_letters(world.executor(), 10, LaneConfig::new(1, 1).with_retry_policy(policy));
        let (command, runs) = flaky(1, 5);
        let options = SubmitOptions::new().tag("kept");
        block_on(manager.submit_with("a", command, options)).unwrap().detach();
        for replays in 0..2 {
            world.advance(200);
            let [letter] = &letters(&manager)[..] else { panic!("not one letter") };
            assert_eq!((letter.replays, letter.attempts), (replays, 2));
            assert_eq!(letter.tags, ["kept"]);
            assert_eq!(letter.payload, Some(json!({ "number": 1 })));
            let report = manager.requeue_dead_letters(|_| true);
            assert_eq!((report.requeued, report.refused.len()), (1, 0));
            assert_eq!(letters(&manager).len(), 0, "it is in the lane or a letter, not both");
        }
        world.advance(200);
        assert_eq!(runs.load(Ordering::SeqCst), 6, "the sixth run completes");
        assert_eq!(letters(&manager).len(), 0);
        assert_idle(&manager);
    });
}

#[test]
fn only_the_letters_that_are_wanted_are_requeued() {
    let mut world = World::new(2, 1);
    let manager = with_letters(world.executor(), 100, LaneConfig::new(1, 4));
    let runs: Vec<_> = (0..10)
        .map(|number| {
            let (command, runs) = flaky(number, 1);
            manager.try_submit("a", command).unwrap().detach();
            runs
        })
        .collect();
    world.advance(1);
    assert_eq!(letters(&manager).len(), 10);
    let number = |letter: &DeadLetter| letter.payload.as_ref().unwrap()["number"].as_u64().unwrap();
    assert_eq!(manager.requeue_dead_letters(|letter| number(letter) == 3).requeued, 1);
    world.advance(1);
    assert_eq!(letters(&manager).len(), 9);
    assert_eq!(manager.requeue_dead_letters(|letter| number(letter) % 2 == 0).requeued, 5);
    world.advance(1);
    let left: HashSet<_> = letters(&manager).iter().map(number).collect();
    assert_eq!(left, HashSet::from([1, 5, 7, 9]));
    let ran: Vec<_> = runs.iter().map(|runs| runs.load(Ordering::SeqCst)).collect();
    assert_eq!(ran, [2, 1, 2, 2, 2, 1, 2, 1, 2, 1]);
    assert_eq!(manager.requeue_dead_letters(|_| false).requeued, 0);
}

#[test]
fn a_letter_that_can_not_be_run_again_stays_and_is_named() {
    let mut world = World::new(1, 1);
    let manager = with_letters(world.executor(), 10, LaneConfig::new(1, 1));
    let once = manager.submit_fn("a", "once", || async { Err::<(), _>(LaneError::Other("no".into())) }).unwrap();
    let typed = manager.submit_typed("a", Work(|| async { Err::<(), _>(LaneError::Other("no".into())) })).unwrap();
    world.advance(1);
    let report = manager.requeue_dead_letters(|_| true);
    assert_eq!(report.requeued, 1, "the typed command can");
    assert!(matches!(&report.refused[..], [(id, LaneError::QueueError(_))] if *id == once.id()), "{report:?}");
    world.advance(1);
    let found = letters(&manager);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].command_id, once.id(), "it is where it was");
    assert!(!found[0].is_replayable());
    assert_eq!(found[1].command_id, typed.id(), "a replay keeps the id, and so leads to its origin");
    assert_eq!(found[1].replays, 1);
}

#[test]
fn a_letter_whose_lane_takes_nothing_stays() {
    let mut world = World::new(1, 1);
    let manager = with_letters(world.executor(), 10, LaneConfig::new(1, 1).with_capacity(1));
    let (command, runs) = flaky(1, 1);
    manager.try_submit("a", command).unwrap().detach();
    world.advance(1);
    let lane = lane_of(&manager, "a");
    let _blocker = lane.submit_fn("blocks", || async { Ok(sleep(SECOND).await) }).unwrap();
    let _waits = lane.submit_fn("waits", || async { Ok(()) }).unwrap();
    let report = manager.requeue_dead_letters(|_| true);
    assert!(matches!(&report.refused[..], [(_, LaneError::LaneFull { .. })]), "{report:?}");
    assert_eq!(letters(&manager)[0].replays, 0);
    world.advance(1001);
    assert_eq!(manager.requeue_dead_letters(|_| true).requeued, 1);
    world.advance(1);
    assert_eq!(runs.load(Ordering::SeqCst), 2);

    let (command, _) = flaky(2, 1);
    manager.try_submit("a", command).unwrap().detach();
    world.advance(1);
    block_on(manager.shutdown());
    let report = manager.requeue_dead_letters(|_| true);
    assert!(matches!(&report.refused[..], [(_, LaneError::ShutdownInProgress)]), "{report:?}");
    assert_eq!(letters(&manager).len(), 1);
}

#[test]
fn a_letter_that_had_to_go_is_counted_and_told() {
    let mut world = World::new(1, 1);
    let manager = with_letters(world.executor(), 2, LaneConfig::new(1, 1));
    let mut evictions = manager.subscribe_filtered(|event| event.key == events::QUEUE_DEAD_LETTER_EVICTED);
    let ids: Vec<_> = (0..5)
        .map(|number| {
            let ticket = manager.try_submit("a", flaky(number, 1).0).unwrap();
            world.advance(1);
            ticket.id()
        })
        .collect();
    let kept: Vec<_> = letters(&manager).iter().map(|letter| letter.command_id).collect();
    assert_eq!(kept, ids[3..]);
    assert_eq!(manager.dlq().unwrap().evicted(), 3);
    let told: Vec<_> = transitions(&mut evictions)
        .into_iter()
        .map(|told| match told {
            Transition::DeadLetterEvicted { command } => command.command_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, ids[..3]);
    assert_eq!(block_on(manager.stats()).unwrap().dead_letter_count, 2);
}

#[test]
fn a_queue_takes_a_size_or_a_queue_of_dead_letters() {
    let own = DeadLetterQueue::new(10);
    for queue in
        [CommandQueue::with_dlq(EventEmitter::new(10), 10), CommandQueue::with_dlq(EventEmitter::new(10), own.clone())]
    {
        let queue = Arc::new(queue);
        block_on(queue.register_lane(Lane::new("a", LaneConfig::new(1, 1), 0))).unwrap();
        block_on(Arc::clone(&queue).start_scheduler());
        let ticket = queue.try_submit("a", flaky(1, 1).0).unwrap();
        assert!(finish("a failing command", ticket).unwrap().is_err());
        block_on(queue.drain(HANG)).unwrap();
        assert_eq!(queue.stats().dead_letter_count, 1);
        let letter = block_on(queue.dlq().unwrap().pop()).unwrap();
        assert_eq!(letter.command_type, "flaky");
        assert_eq!(queue.stats().dead_letter_count, 0);
        assert_eq!(queue.dlq().unwrap().capacity(), 10);
    }
    assert_eq!(own.evicted(), 0);

    let without = CommandQueue::new(EventEmitter::new(1));
    assert!(without.dlq().is_none());
    assert_eq!(without.stats().dead_letter_count, 0);
    assert_eq!(without.requeue_dead_letters(|_| true).requeued, 0);
}

#[test]
fn letters_of_several_queues_may_be_kept_together() {
    let mut world = World::new(1, 1);
    let shared = DeadLetterQueue::new(10);
    let one = with_letters(world.executor(), shared.clone(), LaneConfig::new(1, 1));
    let two = with_letters(world.executor(), shared.clone(), LaneConfig::new(1, 1));
    one.try_submit("a", flaky(1, 1).0).unwrap().detach();
    two.try_submit("a", flaky(2, 1).0).unwrap().detach();
    world.advance(1);
    assert_eq!(block_on(shared.len()), 2);
}

#[test]
fn however_ends_race_a_command_leaves_one_letter_or_none_as_its_result_says() {
    const COMMANDS: u64 = 4000;
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let policy = RetryPolicy::fixed(1, Duration::from_micros(100));
        let config = LaneConfig::new(1, 8).with_retry_policy(policy).with_timeout(Duration::from_micros(300));
        let manager = with_letters(&executor, usize::MAX, config);
        let mut tickets = Vec::new();
        for number in 0..COMMANDS {
            let command = Work(move || async move {
                match number % 5 {
                    0 => {}
                    1 => sleep(Duration::from_micros(250 + number % 100)).await,
                    _ => yield_now().await,
                }
                match number % 32 {
                    7 => panic!("of a command"),
                    other if other % 2 == 0 => Ok(()),
                    _ => Err(LaneError::Other("no".into())),
                }
            });
            let options = SubmitOptions::new().queue_timeout(Duration::from_millis(1 + number % 50));
            let mut ticket = lane_of(&manager, "a").submit_typed_with(command, options).unwrap();
            if number % 7 == 0 {
                ticket.cancel();
            }
            tickets.push(ticket);
        }
        let mut expected = HashMap::new();
        for ticket in tickets {
            let id = ticket.id();
            match finish("a raced command", ticket).unwrap() {
                Ok(()) | Err(LaneError::Cancelled { .. }) => {}
                Err(LaneError::Expired { .. }) => _ = expected.insert(id, DeadLetterReason::Expired),
                Err(LaneError::Timeout(_)) => _ = expected.insert(id, DeadLetterReason::TimedOut),
                Err(LaneError::Panicked(_)) => _ = expected.insert(id, DeadLetterReason::Panicked),
                Err(_) => _ = expected.insert(id, DeadLetterReason::Failed),
            }
        }
        finish("drain", manager.drain(HANG)).unwrap();
        let mut found = HashMap::new();
        for letter in letters(&manager) {
            assert!(found.insert(letter.command_id, letter.reason).is_none(), "two letters of one command");
            assert!(letter.attempts <= 2);
        }
        assert_eq!(found, expected);
        assert!(expected.len() > 100, "too few were given up: the test shows nothing");
        assert_idle(&manager);
    }
}

#[test]
fn two_who_requeue_at_the_same_time_replay_each_letter_once() {
    const LETTERS: usize = 500;
    let executor = executor(2);
    let manager = Arc::new(with_letters(&executor, LETTERS, LaneConfig::new(1, 4)));
    let runs: Vec<_> = (0..LETTERS as u64)
        .map(|number| {
            let (command, runs) = flaky(number, 1);
            manager.try_submit("a", command).unwrap().detach();
            runs
        })
        .collect();
    eventually("all have failed", || letters(&manager).len() == LETTERS);
    let (start, requeued) = (Barrier::default(), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (manager, start, requeued) = (Arc::clone(&manager), start.clone(), Arc::clone(&requeued));
            std::thread::spawn(move || {
                start.wait();
                requeued.fetch_add(manager.requeue_dead_letters(|_| true).requeued, Ordering::SeqCst);
            })
        })
        .collect();
    start.open();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    finish("drain", manager.drain(HANG)).unwrap();
    assert_eq!(requeued.load(Ordering::SeqCst), LETTERS);
    assert!(runs.iter().all(|runs| runs.load(Ordering::SeqCst) == 2), "a letter was replayed twice or not at all");
    assert_eq!(letters(&manager).len(), 0);
}
