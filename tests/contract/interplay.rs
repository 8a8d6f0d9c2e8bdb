//! Promises that a mix of features must not break: keys, retries, delays, nesting, shedding and stopping together.

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use corelane::{
    EventEmitter, LaneConfig, LaneError, Overflow, QueueManager, QueueManagerBuilder, RateLimitConfig, RetryPolicy,
    Simulation, Stop, SubmitOptions, Ticket, sleep,
};
use serde_json::Value;

use crate::support::{Barrier, Do, Gauge, block_on, executor, finish, manager};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(1000);

fn simulated(lanes: &[(&str, LaneConfig)]) -> (Simulation, QueueManager) {
    simulated_with(lanes, |builder| builder)
}

fn simulated_with(
    lanes: &[(&str, LaneConfig)],
    more: impl FnOnce(QueueManagerBuilder) -> QueueManagerBuilder,
) -> (Simulation, QueueManager) {
    let simulation = Simulation::new(1, 1);
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(simulation.executor().clone());
    let builder = lanes.iter().fold(builder, |builder, (id, config)| builder.with_lane(*id, config.clone(), 2));
    let manager = block_on(more(builder).build()).unwrap();
    block_on(manager.start()).unwrap();
    (simulation, manager)
}

fn options() -> SubmitOptions {
    SubmitOptions::new()
}

/// Submits a command that takes a time.
fn takes(manager: &QueueManager, lane: &str, options: SubmitOptions, time: Duration) -> Ticket<()> {
    let lane = manager.lane(lane).unwrap();
    lane.submit_fn_with("takes", options, move || async move { Ok(sleep(time).await) }).unwrap()
}

/// Notes names in the order in which commands started.
#[derive(Clone, Default)]
struct Order(Arc<Mutex<Vec<String>>>);

impl Order {
    fn submit(&self, manager: &QueueManager, options: SubmitOptions, name: &str) -> Ticket<()> {
        let (order, name) = (self.clone(), name.to_owned());
        let lane = manager.lane("lane").unwrap();
        lane.submit_fn_with("note", options, move || async move { Ok(order.0.lock().unwrap().push(name)) }).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Submits a command that fails the first time.
fn fails_once(manager: &QueueManager, lane: &str, options: SubmitOptions) -> Ticket<Value> {
    let tries = Arc::new(AtomicUsize::new(0));
    let command = Do(move || {
        let first = tries.fetch_add(1, Ordering::SeqCst) == 0;
        ready(if first { Err(LaneError::CommandError("first".into())) } else { Ok(Value::Null) })
    });
    manager.lane(lane).unwrap().try_submit_with(Box::new(command), options).unwrap()
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn counts(manager: &QueueManager) -> (usize, usize) {
    let stats = block_on(manager.stats()).unwrap();
    (stats.total_pending, stats.total_active)
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

// --- Stopping and draining ---

#[test]
fn a_stop_that_cancels_keyed_commands_in_the_line_is_done_when_they_are() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4))]);
    manager.pause("lane").unwrap();
    let tickets: Vec<_> = (0..3).map(|_| takes(&manager, "lane", options().key("k"), SECOND)).collect();
    let report = simulation.block_on(manager.stop(Stop::drain(Duration::ZERO).then_cancel(100 * SECOND)));
    assert!(report.is_complete());
    assert_eq!(report.cancelled, 3);
    assert!(report.waited < SECOND, "{:?}", report.waited);
    drop(tickets);
}

#[test]
fn a_delayed_command_of_a_dropped_queue_whose_lane_is_paused_is_cancelled_when_it_is_due() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4))]);
    manager.pause("lane").unwrap();
    let mut ticket = takes(&manager, "lane", options().delay(SECOND), MS);
    drop(manager);
    simulation.advance(LONG);
    assert!(matches!(poll_once(&mut ticket), Poll::Ready(_)));
}

#[test]
fn a_command_that_a_rate_limit_holds_back_is_cancelled_when_its_executor_is_shut_down() {
    let executor = executor(2);
    let config = LaneConfig::new(1, 4).with_rate_limit(RateLimitConfig::per_hour(1));
    let manager = manager(&executor, &[("lane", config, 0)]);
    let first = takes(&manager, "lane", options(), Duration::ZERO);
    let second = takes(&manager, "lane", options(), Duration::ZERO);
    finish("the first", first).unwrap().unwrap();
    block_on(executor.shutdown(SECOND));
    assert!(!matches!(finish("the second", second), Ok(Ok(()))));
}

#[test]
fn a_keyed_command_behind_a_hosts_permit_ends_with_the_executor() {
    let executor = executor(1);
    let manager = manager(&executor, &[("lane", LaneConfig::new(1, 1), 0)]);
    let lane = manager.lane("lane").unwrap();
    let permit = lane.try_acquire().unwrap();
    let mut ticket = takes(&manager, "lane", options().key("k"), MS);
    block_on(executor.shutdown(SECOND));
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(permit);
        let _ = done.send(());
    });
    is_done.recv_timeout(5 * SECOND).expect("giving the permit back returns");
    assert!(matches!(poll_once(&mut ticket), Poll::Ready(_)));
}

#[test]
fn a_drain_does_not_miss_the_end_because_a_submission_was_refused_at_that_moment() {
    let executor = executor(2);
    for _ in 0..200 {
        let manager = Arc::new(manager(&executor, &[("lane", LaneConfig::new(1, 1), 0)]));
        let barrier = Barrier::default();
        let held = barrier.clone();
        let ticket = manager.submit_fn("lane", "held", move || async move { Ok(held.passed().await) }).unwrap();
        block_on(manager.shutdown());
        let over = Arc::new(AtomicBool::new(false));
        let hammer = {
            let (manager, over) = (Arc::clone(&manager), Arc::clone(&over));
            std::thread::spawn(move || {
                let lane = manager.lane("lane").unwrap();
                while !over.load(Ordering::Relaxed) {
                    let refused = lane.submit_fn_with("late", options().key(1), || async { Ok(()) });
                    assert!(refused.is_err());
                }
            })
        };
        let opener = std::thread::spawn(move || {
            std::thread::sleep(MS);
            barrier.open();
            let _ = block_on(ticket);
            std::thread::sleep(10 * MS);
            over.store(true, Ordering::Relaxed);
        });
        let report = block_on(manager.drain(2 * SECOND)).unwrap();
        hammer.join().unwrap();
        opener.join().unwrap();
        assert!(report.waited < SECOND, "{report:?}");
    }
}

#[test]
fn what_stops_before_its_start_because_of_its_drain_timeout_is_given_back() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4))]);
    let _ticket = takes(&manager, "lane", options().delay(LONG).drain_timeout(SECOND), MS);
    let report = simulation.block_on(manager.stop(Stop::drain(10 * SECOND)));
    assert_eq!((report.cancelled, report.given_back.len()), (1, 1));
}

// --- Nesting ---

#[test]
fn a_command_that_waits_for_one_that_is_retried_goes_on() {
    let config = LaneConfig::new(1, 1).with_retry_policy(RetryPolicy::fixed(3, SECOND));
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let manager = Arc::new(manager);
    let inner = Arc::clone(&manager);
    let mut ticket = manager
        .submit_fn("lane", "parent", move || async move {
            let _ = fails_once(&inner, "lane", options()).await;
            Ok(())
        })
        .unwrap();
    simulation.advance(LONG);
    assert!(matches!(poll_once(&mut ticket), Poll::Ready(_)), "{:?}", counts(&manager));
}

#[test]
fn a_command_that_waits_for_one_with_a_place_of_its_own_that_is_retried_goes_on() {
    let config = LaneConfig::new(1, 1).with_retry_policy(RetryPolicy::fixed(3, SECOND)).with_priority_bounds(0, 4);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let manager = Arc::new(manager);
    let inner = Arc::clone(&manager);
    let mut ticket = manager
        .submit_fn("lane", "parent", move || async move {
            let retried = fails_once(&inner, "lane", options().priority(4)).await;
            assert!(matches!(retried, Ok(Ok(_))), "{retried:?}");
            Ok(())
        })
        .unwrap();
    simulation.advance(LONG);
    let Poll::Ready(result) = poll_once(&mut ticket) else { panic!("{:?}", counts(&manager)) };
    result.unwrap().unwrap();
}

#[test]
fn a_command_that_waits_for_a_delayed_one_goes_on() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1))]);
    let manager = Arc::new(manager);
    let inner = Arc::clone(&manager);
    let mut ticket = manager
        .submit_fn("lane", "parent", move || async move {
            let _ = takes(&inner, "lane", options().delay(SECOND), MS).await;
            Ok(())
        })
        .unwrap();
    simulation.advance(LONG);
    assert!(matches!(poll_once(&mut ticket), Poll::Ready(_)), "{:?}", counts(&manager));
}

#[test]
fn a_command_that_waits_for_room_in_its_own_lane_does_not_block_it() {
    let config = LaneConfig::new(1, 1).with_capacity(1).with_overflow(Overflow::Wait);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let manager = Arc::new(manager);
    let inner = Arc::clone(&manager);
    let mut parent = manager
        .submit_fn("lane", "parent", move || async move {
            sleep(MS).await;
            let _ = inner.submit("lane", Box::new(Do(|| ready(Ok(Value::Null))))).await;
            Ok(())
        })
        .unwrap();
    let _other = takes(&manager, "lane", options(), MS);
    simulation.advance(LONG);
    assert!(matches!(poll_once(&mut parent), Poll::Ready(_)), "{:?}", counts(&manager));
}

#[test]
fn a_command_that_gives_up_waiting_keeps_its_permit_from_then_on() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1)), ("other", LaneConfig::new(1, 1))]);
    let manager = Arc::new(manager);
    let gauge = Gauge::default();
    let (inner, parents, childs) = (Arc::clone(&manager), gauge.clone(), gauge.clone());
    let _parent = manager
        .submit_fn("lane", "parent", move || async move {
            let delayed = takes(&inner, "lane", options().delay(LONG), MS);
            let _ = corelane::timeout(SECOND, delayed).await;
            let _inside = parents.enter();
            let lane = inner.lane("lane").unwrap();
            let child = move || async move {
                let _inside = childs.enter();
                Ok(sleep(SECOND).await)
            };
            let child = lane.submit_fn("child", child).unwrap();
            // Somebody else waits for it.
            inner.submit_fn("other", "waits", move || async move { Ok(drop(child.await)) }).unwrap().detach();
            Ok(sleep(10 * SECOND).await)
        })
        .unwrap();
    simulation.advance(LONG / 2);
    assert_eq!(gauge.highest(), 1);
}

#[test]
fn a_permit_that_a_waiting_command_leaves_goes_to_the_other_lanes_of_a_shared_limit() {
    let lanes = [("a", LaneConfig::new(0, 4)), ("b", LaneConfig::new(0, 4)), ("c", LaneConfig::new(0, 4))];
    let (mut simulation, manager) = simulated_with(&lanes, |builder| builder.with_max_in_flight(1));
    let manager = Arc::new(manager);
    manager.pause("c").unwrap();
    let inner = Arc::clone(&manager);
    let mut parent = manager
        .submit_fn("a", "parent", move || async move {
            let _ = takes(&inner, "c", options(), MS).await;
            Ok(())
        })
        .unwrap();
    simulation.advance(MS);
    let mut other = takes(&manager, "b", options(), MS);
    simulation.advance(MS);
    assert!(matches!(poll_once(&mut other), Poll::Pending));
    assert!(parent.cancel());
    simulation.advance(SECOND);
    assert!(matches!(poll_once(&mut other), Poll::Ready(_)), "{:?}", counts(&manager));
}

// --- Full lanes ---

#[test]
fn drop_oldest_drops_one_delayed_command_that_is_in_the_line_for_one_new_one() {
    let config = LaneConfig::new(1, 1).with_capacity(2).with_overflow(Overflow::DropOldest);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _running = takes(&manager, "lane", options(), LONG);
    simulation.advance(MS);
    let mut tickets: Vec<_> = (0..2).map(|_| takes(&manager, "lane", options().delay(SECOND), MS)).collect();
    simulation.advance(10 * SECOND);
    let new = manager.submit_fn("lane", "new", || async { Ok(()) });
    assert!(new.is_ok(), "{new:?}");
    simulation.advance(MS);
    let ended = tickets.iter_mut().filter(|ticket| ticket.is_finished()).count();
    assert_eq!(ended, 1);
    assert_eq!(counts(&manager), (2, 1));
}

#[test]
fn drop_oldest_looks_past_a_key_whose_commands_have_ended() {
    let config = LaneConfig::new(1, 1).with_capacity(2).with_overflow(Overflow::DropOldest);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _running = takes(&manager, "lane", options(), LONG);
    simulation.advance(MS);
    let mut keyed = takes(&manager, "lane", options().key("k"), MS);
    let _two: Vec<_> = (0..1).map(|_| takes(&manager, "lane", options(), MS)).collect();
    assert!(keyed.cancel());
    let _three = takes(&manager, "lane", options(), MS);
    let new = manager.submit_fn("lane", "new", || async { Ok(()) });
    assert!(new.is_ok(), "{new:?}");
    assert_eq!(counts(&manager), (2, 1));
}

#[test]
fn drop_lowest_drops_a_plain_command_for_one_of_a_better_priority() {
    let config = LaneConfig::new(1, 1).with_capacity(1).with_overflow(Overflow::DropLowest).with_priority_bounds(0, 4);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _running = takes(&manager, "lane", options(), LONG);
    simulation.advance(MS);
    let plain = takes(&manager, "lane", options(), MS);
    let new = manager.lane("lane").unwrap().submit_fn_with("new", options().priority(0), || async { Ok(()) });
    assert!(new.is_ok(), "{new:?}");
    simulation.advance(MS);
    assert!(plain.is_finished());
}

#[test]
fn each_place_that_becomes_free_is_told_to_a_submission_that_waits() {
    let config = LaneConfig::new(1, 2).with_capacity(2).with_overflow(Overflow::Wait);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _commands: Vec<_> = (0..4).map(|_| takes(&manager, "lane", options(), SECOND)).collect();
    simulation.advance(MS);
    let mut waiting: Vec<_> =
        (0..2).map(|_| Box::pin(manager.submit("lane", Box::new(Do(|| ready(Ok(Value::Null))))))).collect();
    let flags: Vec<_> = (0..2).map(|_| Arc::new(Flag(AtomicBool::new(false)))).collect();
    for (future, flag) in waiting.iter_mut().zip(&flags) {
        let waker = Arc::clone(flag).into();
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    simulation.advance(10 * SECOND);
    assert_eq!(counts(&manager), (0, 0));
    let told = flags.iter().filter(|flag| flag.0.load(Ordering::SeqCst)).count();
    assert_eq!(told, 2);
}

#[test]
fn a_delayed_command_that_starts_makes_room() {
    let config = LaneConfig::new(1, 2).with_capacity(1).with_overflow(Overflow::Wait);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _delayed = takes(&manager, "lane", options().delay(SECOND), MS);
    let mut waiting = pin!(manager.submit("lane", Box::new(Do(|| ready(Ok(Value::Null))))));
    // A keyed one waits in the same place as a plain one; plain ones start past the line.
    let mut keyed = pin!(manager.submit_with("lane", Box::new(Do(|| ready(Ok(Value::Null)))), options().key("k")));
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waker = Arc::clone(&flag).into();
    let _ = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(keyed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    simulation.advance(10 * SECOND);
    assert!(flag.0.load(Ordering::SeqCst));
}

#[test]
fn a_delayed_command_that_is_cancelled_makes_room() {
    let config = LaneConfig::new(1, 2).with_capacity(1).with_overflow(Overflow::Wait);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let mut delayed = takes(&manager, "lane", options().delay(SECOND), MS);
    let mut keyed = pin!(manager.submit_with("lane", Box::new(Do(|| ready(Ok(Value::Null)))), options().key("k")));
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waker = Arc::clone(&flag).into();
    assert!(keyed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(delayed.cancel());
    simulation.run_until_idle();
    assert!(flag.0.load(Ordering::SeqCst));
}

#[test]
fn a_simulation_that_ends_while_a_command_waits_for_room_does_not_block() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let config = LaneConfig::new(1, 1).with_capacity(1).with_overflow(Overflow::Wait);
        let (mut simulation, manager) = simulated(&[("lane", config), ("other", LaneConfig::new(1, 1))]);
        let manager = Arc::new(manager);
        let inner = Arc::clone(&manager);
        let _tickets = [takes(&manager, "lane", options(), LONG), takes(&manager, "lane", options(), LONG)];
        let waits = move || async move {
            let _ = inner.submit("lane", Box::new(Do(|| ready(Ok(Value::Null))))).await;
            Ok(())
        };
        let _waits = manager.submit_fn("other", "waits", waits).unwrap();
        simulation.advance(SECOND);
        drop(simulation);
        let _ = done.send(());
    });
    is_done.recv_timeout(5 * SECOND).expect("the simulation ends");
}

#[test]
fn a_detached_command_lives_on_when_the_total_time_of_its_parent_is_over() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4))]);
    let inner = manager.lane("lane").unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let parent = move || async move {
        let child = || async { Ok(sleep(5 * SECOND).await) };
        let _ = tell.send(inner.submit_fn_with("child", options().detached(), child).unwrap());
        Ok(sleep(10 * SECOND).await)
    };
    let lane = manager.lane("lane").unwrap();
    let _parent = lane.submit_fn_with("parent", options().total_timeout(SECOND), parent).unwrap();
    simulation.advance(LONG);
    let Poll::Ready(Ok(result)) = poll_once(&mut told.recv().unwrap()) else { panic!() };
    assert!(result.is_ok(), "{result:?}");
}

#[test]
fn a_host_that_was_dropped_from_a_full_lane_hears_that() {
    let config = LaneConfig::new(1, 1).with_capacity(1).with_overflow(Overflow::DropOldest);
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _running = takes(&manager, "lane", options(), LONG);
    simulation.advance(MS);
    let mut host = manager.lane("lane").unwrap().acquire();
    let _new = takes(&manager, "lane", options(), MS);
    let Poll::Ready(Err(error)) = poll_once(&mut host) else { panic!() };
    assert!(matches!(error, LaneError::Shed), "{error:?}");
}

// --- Order ---

#[test]
fn a_command_of_another_cost_waits_for_its_turn() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1))]);
    let _running = takes(&manager, "lane", options(), SECOND);
    let order = Order::default();
    let _tickets = [
        order.submit(&manager, options(), "first"),
        order.submit(&manager, options().cost(3), "second"),
        order.submit(&manager, options(), "third"),
    ];
    simulation.advance(10 * SECOND);
    assert_eq!(order.names(), ["first", "second", "third"]);
}

#[test]
fn a_retried_command_of_a_key_keeps_its_place_among_those_of_its_key() {
    let config = LaneConfig::new(1, 4).with_per_key(1).with_retry_policy(RetryPolicy::fixed(3, SECOND));
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let order = Order::default();
    let tries = Arc::new(AtomicUsize::new(0));
    let (noted, lane) = (order.clone(), manager.lane("lane").unwrap());
    let first = Do(move || {
        let first = tries.fetch_add(1, Ordering::SeqCst) == 0;
        noted.0.lock().unwrap().push("first".into());
        ready(if first { Err(LaneError::CommandError("first".into())) } else { Ok(Value::Null) })
    });
    let _first = lane.try_submit_with(Box::new(first), options().key("k")).unwrap();
    let _second = takes(&manager, "lane", options().key("k"), 10 * SECOND);
    let _third = order.submit(&manager, options().key("k"), "third");
    simulation.advance(LONG);
    assert_eq!(order.names(), ["first", "first", "third"]);
}

// --- Settings ---

#[test]
fn a_larger_limit_of_commands_of_a_key_counts_at_once() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4).with_per_key(1))]);
    let _tickets: Vec<_> = (0..3).map(|_| takes(&manager, "lane", options().key("k"), 10 * SECOND)).collect();
    simulation.advance(SECOND);
    assert_eq!(counts(&manager), (2, 1));
    manager.update_lane("lane", |config| config.per_key = Some(3)).unwrap();
    simulation.advance(SECOND);
    assert_eq!(counts(&manager), (0, 3));
}

#[test]
fn a_rate_limit_that_changes_often_leaves_one_timer() {
    let config = LaneConfig::new(1, 4).with_rate_limit(RateLimitConfig::new(1, SECOND));
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let _tickets: Vec<_> = (0..1000).map(|_| takes(&manager, "lane", options(), Duration::ZERO)).collect();
    simulation.run_until_idle();
    for i in 0..100 {
        let limit = RateLimitConfig::new(1, SECOND + i * MS);
        manager.update_lane("lane", |config| config.rate_limit = Some(limit)).unwrap();
        simulation.run_until_idle();
    }
    simulation.advance(5 * SECOND);
    let timers = || simulation.executor().worker_stats()[0].timers;
    let before = timers();
    simulation.advance(5 * SECOND);
    let fired = simulation.executor().worker_stats()[0].timers - before;
    assert!(fired <= 10, "{fired} timers for 5 commands");
}

#[test]
fn try_acquire_gives_a_permit_that_is_free_also_under_a_shared_limit() {
    let lanes = [("a", LaneConfig::new(0, 4)), ("b", LaneConfig::new(1, 4))];
    let (_simulation, manager) = simulated_with(&lanes, |builder| builder.with_max_in_flight(2));
    let permits = [manager.lane("a").unwrap().try_acquire(), manager.lane("b").unwrap().try_acquire()];
    assert!(permits.iter().all(Option::is_some));
    assert!(manager.lane("b").unwrap().try_acquire().is_none());
}

// --- Time ---

#[test]
fn a_total_timeout_that_is_shorter_than_the_delay_ends_the_command_in_time() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 4))]);
    let ticket = takes(&manager, "lane", options().delay(100 * SECOND).total_timeout(SECOND), MS);
    simulation.advance(10 * SECOND);
    assert!(ticket.is_finished());
    assert_eq!(counts(&manager), (0, 0));
}

#[test]
fn a_total_timeout_ends_a_command_that_waits_for_its_next_attempt() {
    let config = LaneConfig::new(1, 1).with_retry_policy(RetryPolicy::fixed(3, SECOND));
    let (mut simulation, manager) = simulated(&[("lane", config)]);
    let ticket = fails_once(&manager, "lane", options().total_timeout(10 * SECOND));
    let _other = takes(&manager, "lane", options(), LONG);
    simulation.advance(20 * SECOND);
    assert!(ticket.is_finished());
    assert_eq!(counts(&manager), (0, 1));
}

#[test]
fn a_closure_that_blocks_is_given_up_at_its_deadline_although_its_lane_retries() {
    let executor = executor(2);
    let config = LaneConfig::new(1, 4).with_timeout(50 * MS).with_retry_policy(RetryPolicy::fixed(3, SECOND));
    let manager = manager(&executor, &[("lane", config, 0)]);
    let blocked = Barrier::default();
    let blocks = blocked.clone();
    let command = move || async move {
        blocks.wait();
        Ok(())
    };
    let result = finish("the ticket, while its command blocks", manager.submit_fn("lane", "blocks", command).unwrap());
    assert!(matches!(result, Ok(Err(LaneError::Timeout(_)))), "{result:?}");
    blocked.open();
}

#[test]
fn a_command_that_expires_while_it_is_submitted_is_settled() {
    let executor = executor(2);
    let manager = Arc::new(manager(&executor, &[("lane", LaneConfig::new(1, 1), 0)]));
    manager.pause("lane").unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let lane = manager.lane("lane").unwrap();
            std::thread::spawn(move || {
                for _ in 0..50_000 {
                    let options = options().queue_timeout(Duration::from_nanos(1));
                    lane.submit_fn_with("late", options, || async { Ok(()) }).unwrap().detach();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    manager.resume("lane").unwrap();
    let drained = block_on(manager.drain(5 * SECOND));
    assert!(drained.is_ok(), "{drained:?}");
}

#[test]
fn a_throttled_lane_wakes_although_the_worker_that_was_refused_is_blocked() {
    let executor = executor(2);
    let config = LaneConfig::new(1, 4).with_rate_limit(RateLimitConfig::new(1, 100 * MS));
    let manager = Arc::new(manager(&executor, &[("lane", config, 0), ("other", LaneConfig::new(1, 4), 0)]));
    let inner = Arc::clone(&manager);
    // Its lane is refused on this command's worker, which then blocks.
    let (tell, told) = std::sync::mpsc::channel();
    let blocked = Barrier::default();
    let blocks = blocked.clone();
    let _blocking = manager
        .submit_fn("other", "blocks", move || async move {
            let _first = inner.submit_fn("lane", "first", || async { Ok(()) }).unwrap();
            let second = inner.submit_fn("lane", "second", || async { Ok(()) }).unwrap();
            let _ = tell.send(second);
            blocks.wait();
            Ok(())
        })
        .unwrap();
    finish("the second, while the worker blocks", told.recv().unwrap()).unwrap().unwrap();
    blocked.open();
}

// --- Panics and memory ---

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn a_closure_that_panics_when_it_is_dropped_for_a_dead_letter_leaks_nothing() {
    let (mut simulation, manager) = simulated_with(&[("lane", LaneConfig::new(1, 1))], |builder| builder.with_dlq(10));
    let _running = takes(&manager, "lane", options(), LONG);
    simulation.advance(MS);
    let held = PanicsWhenDropped;
    let lane = manager.lane("lane").unwrap();
    let _expired = lane
        .submit_fn_with("held", options().queue_timeout(SECOND), move || async move {
            drop(held);
            Ok(())
        })
        .unwrap();
    simulation.advance(10 * SECOND);
    assert_eq!(counts(&manager), (0, 1));
}

#[test]
fn a_command_whose_type_panics_leaks_nothing() {
    struct Nameless;
    #[async_trait::async_trait]
    impl corelane::Command for Nameless {
        async fn execute(&self) -> corelane::Result<Value> {
            Err(LaneError::CommandError("fails".into()))
        }
        fn command_type(&self) -> &str {
            panic!("no type")
        }
    }
    let (mut simulation, manager) = simulated_with(&[("lane", LaneConfig::new(1, 1))], |builder| builder.with_dlq(10));
    let mut ticket = manager.try_submit("lane", Box::new(Nameless)).unwrap();
    simulation.advance(SECOND);
    assert_eq!(counts(&manager), (0, 0));
    assert!(matches!(poll_once(&mut ticket), Poll::Ready(_)));
}

#[test]
fn commands_that_are_cancelled_in_a_blocked_lane_leave_no_memory_behind() {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
    let (_simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1))]);
    manager.pause("lane").unwrap();
    let before = resident();
    for _ in 0..200_000 {
        assert!(takes(&manager, "lane", options(), MS).cancel());
    }
    let grown = resident().saturating_sub(before);
    assert_eq!(counts(&manager), (0, 0));
    assert!(grown < 20 << 20, "{} MiB", grown >> 20);
}

#[test]
fn a_hundred_thousand_cancelled_commands_of_one_key_end() {
    let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1).with_per_key(1))]);
    let running = takes(&manager, "lane", options().key("k"), SECOND);
    let mut tickets: Vec<_> = (0..100_000).map(|_| takes(&manager, "lane", options().key("k"), MS)).collect();
    assert!(tickets.iter_mut().all(Ticket::cancel));
    simulation.advance(10 * SECOND);
    assert_eq!(counts(&manager), (0, 0));
    drop(running);
    let drained = simulation.block_on(manager.drain(SECOND));
    assert!(drained.is_ok(), "{drained:?}");
}

#[test]
fn a_thousand_commands_that_each_wait_for_the_next_end() {
    fn nest(manager: Arc<QueueManager>, depth: usize) -> Ticket<()> {
        let inner = Arc::clone(&manager);
        let make = move || async move {
            if depth > 0 {
                let _ = nest(inner, depth - 1).await;
            }
            Ok(())
        };
        manager.submit_fn("lane", "nest", make).unwrap()
    }
    for cancel in [false, true] {
        let (mut simulation, manager) = simulated(&[("lane", LaneConfig::new(1, 1))]);
        let manager = Arc::new(manager);
        let mut ticket = nest(Arc::clone(&manager), 1000);
        if cancel {
            for _ in 0..500 {
                simulation.step();
            }
            assert!(ticket.cancel());
        }
        simulation.advance(SECOND);
        assert_eq!(counts(&manager), (0, 0));
    }
}

// --- A mix of everything ---

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn mixed(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut simulation = Simulation::new(1 + dice.roll(3) as usize, seed);
    let overflows = [Overflow::Reject, Overflow::DropOldest, Overflow::DropLowest];
    let config = |dice: &mut Dice| {
        let mut config = LaneConfig::new(0, 1 + dice.roll(3) as usize).with_priority_bounds(0, 8);
        config.per_key = (dice.roll(2) == 0).then_some(1);
        config.capacity = (dice.roll(2) == 0).then(|| 1 + dice.roll(6) as usize);
        config.overflow = overflows[dice.roll(3) as usize];
        config.retry_policy = RetryPolicy::fixed(2, 3 * MS);
        config.rate_limit = (dice.roll(3) == 0).then(|| RateLimitConfig::new(2, 2 * MS));
        config.max_pending_bytes = (dice.roll(4) == 0).then_some(5000);
        config
    };
    let mut builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(simulation.executor().clone());
    for (name, priority) in [("a", 2), ("b", 4)] {
        builder = builder.with_lane(name, config(&mut dice), priority);
    }
    if dice.roll(2) == 0 {
        builder = builder.with_max_in_flight(1 + dice.roll(2) as usize);
    }
    let manager = Arc::new(block_on(builder.with_dlq(5).build()).unwrap());
    block_on(manager.start()).unwrap();
    let lanes = ["a", "b"].map(|name| manager.lane(name).unwrap());
    let some_options = |dice: &mut Dice| {
        let mut options = options();
        if dice.roll(3) == 0 {
            options = options.key(dice.roll(2));
        }
        if dice.roll(4) == 0 {
            options = options.delay(MS * dice.roll(5) as u32);
        }
        if dice.roll(4) == 0 {
            options = options.queue_timeout(MS * (1 + dice.roll(10) as u32));
        }
        if dice.roll(4) == 0 {
            options = options.total_timeout(MS * (1 + dice.roll(15) as u32));
        }
        if dice.roll(4) == 0 {
            options = options.timeout(MS * (1 + dice.roll(5) as u32));
        }
        if dice.roll(4) == 0 {
            options = options.priority(dice.roll(8) as u8);
        }
        if dice.roll(4) == 0 {
            options = options.cost(1 + dice.roll(3) as u32);
        }
        options
    };
    let mut tickets = Vec::new();
    let (mut hosts, mut permits) = (Vec::new(), Vec::new());
    for _ in 0..150 {
        let lane = &lanes[dice.roll(2) as usize];
        match dice.roll(16) {
            0..8 => {
                let (time, fails, nests) = (MS * dice.roll(6) as u32, dice.roll(4), dice.roll(3));
                let (other, inner) = (lanes[dice.roll(2) as usize].clone(), some_options(&mut dice));
                let command = Do(move || {
                    let (other, inner) = (other.clone(), inner.clone());
                    async move {
                        if nests == 0 {
                            let command = Do(move || async move {
                                sleep(time).await;
                                if fails == 1 { Err(LaneError::CommandError("inner".into())) } else { Ok(Value::Null) }
                            });
                            if let Ok(ticket) = other.try_submit_with(Box::new(command), inner) {
                                let _ = ticket.await;
                            }
                        }
                        sleep(time).await;
                        match fails {
                            0 => Err(LaneError::CommandError("fails".into())),
                            // Past the hook, which would print it.
                            1 => std::panic::resume_unwind(Box::new("on purpose")),
                            _ => Ok(Value::Null),
                        }
                    }
                });
                let options = some_options(&mut dice);
                tickets.extend(lane.try_submit_with(Box::new(command), options).ok());
            }
            8 | 9 if !tickets.is_empty() => {
                let at = dice.roll(tickets.len() as u64) as usize;
                let ticket: &mut Ticket<Value> = &mut tickets[at];
                let _late = ticket.cancel();
            }
            10 => lane.pause(),
            11 => lane.resume(),
            12 => {
                let new = config(&mut dice);
                lane.update(|config| {
                    let min = config.min_concurrency;
                    *config = new;
                    config.min_concurrency = min;
                })
                .unwrap();
            }
            13 => hosts.push(lane.acquire()),
            14 => {
                for mut host in std::mem::take(&mut hosts) {
                    match poll_once(&mut host) {
                        Poll::Ready(permit) => permits.extend(permit.ok()),
                        Poll::Pending if dice.roll(2) == 0 => hosts.push(host),
                        Poll::Pending => {}
                    }
                }
            }
            _ => permits.clear(),
        }
        if dice.roll(2) == 0 {
            simulation.advance(MS * dice.roll(3) as u32);
        }
    }
    hosts.clear();
    permits.clear();
    match dice.roll(3) {
        0 => {
            lanes.iter().for_each(corelane::Lane::resume);
            let drained = simulation.block_on(manager.drain(100 * SECOND));
            assert!(drained.is_ok(), "seed {seed}: {drained:?}");
        }
        1 => {
            let report = simulation.block_on(manager.stop(Stop::drain(5 * MS)));
            assert!(report.is_complete() && report.waited < 100 * MS, "seed {seed}: {report:?}");
        }
        _ => drop(simulation),
    }
    let left = tickets.iter_mut().filter_map(|ticket| poll_once(ticket).is_pending().then_some(ticket.id()));
    assert_eq!(left.count(), 0, "seed {seed}");
    assert_eq!(counts(&manager), (0, 0), "seed {seed}");
}

#[test]
fn whatever_mix_of_commands_ends_and_leaves_nothing_behind() {
    let number = |name, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (first, count): (u64, u64) = (number("MIX_FIRST", 0), number("MIX_COUNT", 300));
    let failed: Vec<_> =
        (first..first + count).filter(|seed| std::panic::catch_unwind(|| mixed(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "{} fail: {:?}", failed.len(), &failed[..failed.len().min(10)]);
}

#[test]
fn what_executes_stays_within_the_limits_of_its_lane_and_key() {
    for seed in 0..300 {
        let mut dice = Dice(seed * 7919 + 1);
        let max = 1 + dice.roll(3) as usize;
        let mut config = LaneConfig::new(0, max).with_per_key(1).with_priority_bounds(0, 8);
        config.retry_policy = RetryPolicy::fixed(2, 3 * MS);
        let (mut simulation, manager) = simulated(&[("lane", config)]);
        let manager = Arc::new(manager);
        let (all, keys) = (Gauge::default(), [Gauge::default(), Gauge::default()]);
        let mut tickets = Vec::new();
        for _ in 0..100 {
            let key = dice.roll(3);
            let (time, fails, nests) = (MS * dice.roll(6) as u32, dice.roll(4) == 0, dice.roll(3) == 0);
            let (all, own, lane) = (all.clone(), keys.get(key as usize).cloned(), manager.lane("lane").unwrap());
            let command = Do(move || {
                let (all, own, lane) = (all.clone(), own.clone(), lane.clone());
                async move {
                    let _own = own.as_ref().map(Gauge::enter);
                    let inside = all.enter();
                    sleep(time).await;
                    drop(inside);
                    if nests {
                        let inner = all.clone();
                        let child = move || async move {
                            let _inside = inner.enter();
                            Ok(sleep(time).await)
                        };
                        if let Ok(ticket) = lane.submit_fn("child", child) {
                            let _ = corelane::timeout(MS * 4, ticket).await;
                            // The poll that has met a ticket lends its permit, even if it went on past that.
                            corelane::yield_now().await;
                        }
                        let _inside = all.enter();
                        sleep(time).await;
                    }
                    if fails { Err(LaneError::CommandError("fails".into())) } else { Ok(Value::Null) }
                }
            });
            let mut options = options();
            if key < 2 {
                options = options.key(key);
            }
            if dice.roll(4) == 0 {
                options = options.delay(MS * dice.roll(4) as u32);
            }
            if dice.roll(4) == 0 {
                options = options.priority(dice.roll(8) as u8);
            }
            tickets.push(manager.lane("lane").unwrap().try_submit_with(Box::new(command), options).unwrap());
            if dice.roll(4) == 0 {
                let at = dice.roll(tickets.len() as u64) as usize;
                tickets[at].cancel();
            }
            simulation.advance(MS * dice.roll(2) as u32);
        }
        let drained = simulation.block_on(manager.drain(100 * SECOND));
        assert!(drained.is_ok(), "seed {seed}: {drained:?}");
        assert!(all.highest() <= max, "seed {seed}: {} of {max}", all.highest());
        assert!(keys.iter().all(|key| key.highest() <= 1), "seed {seed}");
        assert_eq!(counts(&manager), (0, 0));
    }
}
