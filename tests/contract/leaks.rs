//! Nothing leaks and nothing is told twice, whatever happens to commands and wherever it happens.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    CommandId, EventEmitter, Executor, Lane, LaneConfig, LaneError, Overflow, PriorityBoostConfig, QueueManager,
    QueueManagerBuilder, RateLimitConfig, Result, RetryPolicy, Simulation, Stop, SubmitOptions, Ticket, TicketError,
    Transition, sleep, yield_now,
};
use futures::FutureExt;

use crate::support::{
    Barrier, Gauge, HANG, Work, assert_idle, attempt, block_on, eventually, executor, finish, lane_of, transitions,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Commands of a run: an unoptimised build takes its time.
const COMMANDS: u64 = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
const LANES: [&str; 4] = ["a", "b", "c", "d"];
const MAX: usize = 4;

/// A source of choices.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn short(&mut self) -> Duration {
        Duration::from_micros(self.below(400))
    }
}

/// Panics without a message for each: there are thousands.
struct Injected;

fn silence_injected_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Injected>() {
                usual(info);
            }
        }));
    });
}

/// What a run of commands shares.
#[derive(Clone)]
struct Shared {
    lanes: Arc<Vec<Lane>>,
    /// Each command holds a clone for as long as it is kept anywhere.
    payload: Arc<()>,
    running: Arc<Vec<Gauge>>,
}

/// What a command of the chaos does: something at each of its awaits, and anything in the end.
fn chaos(
    shared: Shared,
    lane: usize,
    mut chance: Chance,
    depth: u32,
) -> Pin<Box<dyn Future<Output = Result<u64>> + Send>> {
    Box::pin(async move {
        let _payload = Arc::clone(&shared.payload);
        for _ in 0..chance.below(4) {
            {
                let _executing = shared.running[lane].enter();
                match chance.below(12) {
                    0 => std::panic::panic_any(Injected),
                    1 => return Err(LaneError::Other("injected".into())),
                    _ => {}
                }
            }
            match chance.below(5) {
                0 => sleep(chance.short()).await,
                1 if depth < 3 => {
                    let child = nested(&shared, &mut chance, depth + 1);
                    match child {
                        Ok(child) if chance.one_in(4) => child.detach(),
                        Ok(mut child) => {
                            if chance.one_in(8) {
                                child.cancel();
                            }
                            // Whatever came of it.
                            let _ = child.await;
                        }
                        Err(_) => {}
                    }
                }
                _ => yield_now().await,
            }
        }
        Ok(chance.next())
    })
}

fn nested(shared: &Shared, chance: &mut Chance, depth: u32) -> Result<Ticket<u64>> {
    let lane = chance.below(LANES.len() as u64) as usize;
    let (inner, own) = (shared.clone(), Chance(chance.next()));
    let options = options(chance);
    shared.lanes[lane].submit_fn_with("nested", options, move || chaos(inner, lane, own, depth))
}

fn options(chance: &mut Chance) -> SubmitOptions {
    let mut options = SubmitOptions::new();
    if chance.one_in(3) {
        options = options.key(chance.below(20));
    }
    if chance.one_in(10) {
        options = options.delay(chance.short());
    }
    if chance.one_in(10) {
        options = options.timeout(chance.short() + Duration::from_micros(1));
    }
    if chance.one_in(10) {
        options = options.queue_timeout(chance.short());
    }
    if chance.one_in(10) {
        options = options.total_timeout(2 * chance.short());
    }
    if chance.one_in(10) {
        options = options.priority(10 + chance.below(5) as u8);
    }
    if chance.one_in(10) {
        options = options.bytes(100).cost(2);
    }
    if chance.one_in(10) {
        options = options.detached();
    }
    options
}

fn submit(shared: &Shared, chance: &mut Chance) -> Result<Ticket<u64>> {
    let lane = chance.below(LANES.len() as u64) as usize;
    let (inner, own) = (shared.clone(), Chance(chance.next()));
    let options = options(chance);
    if chance.one_in(2) {
        return shared.lanes[lane].submit_fn_with("chaos", options, move || chaos(inner, lane, own, 0));
    }
    // One that can be retried, and does something else each time.
    let command = Work(move || chaos(inner.clone(), lane, Chance(own.0 ^ u64::from(attempt())), 0));
    Ok(shared.lanes[lane].submit_typed_with(command, options)?)
}

fn chaotic(executor: &Executor, events: usize) -> (QueueManager, Shared) {
    silence_injected_panics();
    let retry = RetryPolicy::fixed(2, Duration::from_micros(50));
    let lane = || LaneConfig::new(1, MAX).with_retry_policy(retry.clone()).with_priority_bounds(10, 15);
    let builder = QueueManagerBuilder::new(EventEmitter::new(events)).with_executor(executor.clone()).with_dlq(50);
    let builder = builder
        .with_lane("a", lane().with_per_key(1), 10)
        .with_lane("b", lane().with_capacity(50).with_overflow(Overflow::DropOldest).with_per_key(2), 12)
        .with_lane("c", lane().with_rate_limit(RateLimitConfig::per_second(50_000).with_burst(20)), 12)
        .with_lane("d", lane().with_priority_boost(PriorityBoostConfig::standard(Duration::from_micros(500))), 15);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    let lanes = Arc::new(LANES.map(|lane| lane_of(&manager, lane)).to_vec());
    let running = Arc::new(LANES.map(|_| Gauge::default()).to_vec());
    (manager, Shared { lanes, payload: Arc::new(()), running })
}

/// What a ticket gives is given once.
fn resolve(ticket: Ticket<u64>, wait: impl FnOnce(&mut Ticket<u64>) -> Result<Result<u64>, TicketError>) {
    let mut ticket = ticket;
    let told = wait(&mut ticket);
    assert!(told.is_ok(), "a ticket was dropped without a result");
    assert!(ticket.is_finished());
    assert_eq!((&mut ticket).now_or_never().map(|again| again.is_err()), Some(true), "a result was given twice");
    assert!(!ticket.cancel());
}

/// Everything is free again: each lane runs as many at the same time as it may, and no more.
fn assert_whole(manager: &QueueManager, shared: &Shared, advance: &mut dyn FnMut()) {
    assert_idle(manager);
    for (lane, gauge) in shared.lanes.iter().zip(shared.running.iter()) {
        assert_eq!(gauge.now(), 0, "a command is still in lane {:?}", lane.id());
        assert!(gauge.highest() <= MAX, "{} executed in lane {:?}", gauge.highest(), lane.id());
        // A share of the rate for each.
        let permits: Vec<_> = (0..MAX).map(|_| lane.try_acquire()).collect();
        assert!(permits.iter().all(Option::is_some), "lane {:?} has lost a permit", lane.id());
        assert!(lane.try_acquire().is_none(), "lane {:?} has won a permit", lane.id());
        drop(permits);
        advance();
    }
    block_on(manager.dlq().unwrap().clear());
    assert_idle(manager);
}

#[test]
fn chaos_in_a_simulation_leaves_nothing_behind_and_tells_each_end_once() {
    for workers in [1, 2, 4] {
        for seed in 0..2 {
            let mut simulation = Simulation::new(workers, seed);
            let (manager, shared) = chaotic(simulation.executor(), 1 << 18);
            let mut events = manager.subscribe();
            let mut chance = Chance(seed);
            let mut tickets = Vec::new();
            let (mut ends, mut submitted): (HashMap<CommandId, usize>, usize) = (HashMap::new(), 0);
            for _ in 0..COMMANDS / 10 {
                for _ in 0..chance.below(20) {
                    tickets.extend(submit(&shared, &mut chance));
                }
                for _ in 0..chance.below(60) {
                    simulation.step();
                }
                if chance.one_in(2) {
                    simulation.advance(chance.short());
                }
                for _ in 0..chance.below(tickets.len() as u64 + 1).min(8) {
                    let at = chance.below(tickets.len() as u64) as usize;
                    let mut ticket = tickets.swap_remove(at);
                    match chance.below(4) {
                        0 => drop(ticket),
                        1 => {
                            if ticket.cancel() {
                                resolve(ticket, |ticket| ticket.now_or_never().expect("it was cancelled"));
                            }
                        }
                        _ if tickets.len() > 100 => resolve(ticket, |ticket| simulation.block_on(ticket)),
                        _ => tickets.push(ticket),
                    }
                }
                count(&transitions(&mut events), &mut ends, &mut submitted);
            }
            for ticket in tickets {
                resolve(ticket, |ticket| simulation.block_on(ticket));
            }
            simulation.block_on(manager.drain(HOUR)).unwrap();
            simulation.run_until_idle();
            count(&transitions(&mut events), &mut ends, &mut submitted);
            assert_eq!(ends.len(), submitted, "seed {seed}, {workers} workers: an end was not told");
            assert!(ends.values().all(|count| *count == 1), "seed {seed}: an end was told twice");
            simulation.advance(HOUR);
            assert_whole(&manager, &shared, &mut || simulation.advance(HOUR));
            assert_eq!(Arc::strong_count(&shared.payload), 1, "seed {seed}: a command was kept");
        }
    }
}

/// Counts commands accepted, and how often each was told to have ended.
fn count(transitions: &[Transition], ends: &mut HashMap<CommandId, usize>, submitted: &mut usize) {
    for transition in transitions {
        match transition {
            Transition::Lagged(missed) => panic!("{missed} events were lost"),
            Transition::Submitted(_) => *submitted += 1,
            Transition::Completed(command)
            | Transition::Shed(command)
            | Transition::Failed { command, .. }
            | Transition::TimedOut { command, .. }
            | Transition::Cancelled { command, .. }
            | Transition::Expired { command, .. } => *ends.entry(command.command_id).or_default() += 1,
            _ => {}
        }
    }
}

#[test]
fn chaos_on_real_executors_leaves_nothing_behind() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let (manager, shared) = chaotic(&executor, 1);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let shared = &shared;
                scope.spawn(move || {
                    let mut chance = Chance(thread);
                    let mut tickets = Vec::new();
                    for _ in 0..COMMANDS / 2 {
                        tickets.extend(submit(shared, &mut chance));
                        if tickets.len() > 200 || chance.one_in(50) {
                            for mut ticket in tickets.drain(..) {
                                match chance.below(4) {
                                    0 => drop(ticket),
                                    1 => _ = ticket.cancel(),
                                    _ => resolve(ticket, |ticket| finish("a command of the chaos", ticket)),
                                }
                            }
                        }
                    }
                    for ticket in tickets {
                        resolve(ticket, |ticket| finish("a command of the chaos", ticket));
                    }
                });
            }
        });
        let drained = finish("drain after the chaos", manager.drain(HANG / 2));
        assert!(drained.is_ok(), "{workers} workers: {drained:?}, {:?}", manager.queue().stats());
        // The rate has its burst again after a while, a thousandth of this.
        std::thread::sleep(Duration::from_millis(10));
        assert_whole(&manager, &shared, &mut || {});
        eventually("every command is dropped", || Arc::strong_count(&shared.payload) == 1);
    }
}

#[test]
fn a_payload_of_every_fate_is_dropped_before_long() {
    let executor = executor(2);
    let (manager, shared) = chaotic(&executor, 1);
    let lane = &shared.lanes[0];
    for i in 0..1000u64 {
        let payload = Arc::clone(&shared.payload);
        let command = Work(move || {
            let held = Arc::clone(&payload);
            async move {
                let _held = held;
                match i % 4 {
                    0 => Ok(()),
                    1 => Err(LaneError::Other("injected".into())),
                    2 => std::panic::panic_any(Injected),
                    _ => Ok(sleep(HOUR).await),
                }
            }
        });
        let options = SubmitOptions::new().timeout(Duration::from_micros(100)).key(i % 3);
        let mut ticket = lane.submit_typed_with(command, options).unwrap();
        if i % 5 == 0 {
            ticket.cancel();
        }
    }
    finish("drain", manager.drain(HANG)).unwrap();
    block_on(manager.dlq().unwrap().clear());
    eventually("every payload is dropped", || Arc::strong_count(&shared.payload) == 1);
}

/// Commands in every state that there is, when their queue stops.
struct Everywhere {
    tickets: Vec<Ticket<()>>,
    /// Attempts that were begun, and those that go on.
    begun: Arc<AtomicUsize>,
    running: Gauge,
    blocked: Barrier,
}

fn everywhere(executor: &Executor) -> (QueueManager, Everywhere) {
    silence_injected_panics();
    let lane = || LaneConfig::new(0, 2);
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(executor.clone()).with_dlq(1000);
    let builder = builder
        .with_lane("plain", lane(), 1)
        .with_lane("retries", lane().with_retry_policy(RetryPolicy::fixed(u32::MAX, HOUR)), 1)
        .with_lane("again", lane().with_retry_policy(RetryPolicy::fixed(u32::MAX, Duration::from_micros(100))), 1)
        .with_lane("keyed", lane().with_per_key(1), 1)
        .with_lane("paused", lane(), 1)
        .with_lane("rated", lane().with_rate_limit(RateLimitConfig::per_hour(1)), 1)
        .with_lane("parents", lane(), 1)
        .with_lane("children", lane(), 1);
    let manager = block_on(builder.build()).unwrap();
    manager.pause("paused").unwrap();
    block_on(manager.start()).unwrap();
    let all = Everywhere {
        tickets: Vec::new(),
        begun: Arc::default(),
        running: Gauge::default(),
        blocked: Barrier::default(),
    };
    let (begun, running) = (Arc::clone(&all.begun), all.running.clone());
    let goes_on = move || {
        let (begun, running) = (Arc::clone(&begun), running.clone());
        async move {
            let _running = running.enter();
            begun.fetch_add(1, Ordering::SeqCst);
            Ok::<_, LaneError>(sleep(HOUR).await)
        }
    };
    let mut tickets = Vec::new();
    let lane = |name: &str| lane_of(&manager, name);
    for i in 0..5u64 {
        for name in ["plain", "paused", "rated"] {
            tickets.push(lane(name).submit_fn("goes on", goes_on.clone()).unwrap());
        }
        tickets
            .push(lane("plain").submit_fn_with("delayed", SubmitOptions::new().delay(HOUR), goes_on.clone()).unwrap());
        tickets.push(lane("keyed").submit_fn_with("keyed", SubmitOptions::new().key(i % 2), goes_on.clone()).unwrap());
        for name in ["retries", "again"] {
            let begun = Arc::clone(&all.begun);
            let command = Work(move || {
                begun.fetch_add(1, Ordering::SeqCst);
                async move {
                    if i == 0 { std::panic::panic_any(Injected) } else { Err::<(), _>(LaneError::Other("no".into())) }
                }
            });
            tickets.push(lane(name).submit_typed(command).unwrap());
        }
        let (children, goes_on) = (lane("children"), goes_on.clone());
        let parent = move || async move { children.submit_fn("child", goes_on)?.await.unwrap() };
        tickets.push(lane("parents").submit_fn("parent", parent).unwrap());
        tickets.push(lane("plain").submit_fn("quick", || async { Ok(()) }).unwrap());
    }
    (manager, Everywhere { tickets, ..all })
}

#[test]
fn stop_ends_everything_wherever_it_is_and_its_report_adds_up() {
    for workers in [1, 2, 4] {
        let mut simulation = Simulation::new(workers, 3);
        let (manager, Everywhere { tickets, begun, running, .. }) = everywhere(simulation.executor());
        simulation.advance(Duration::from_millis(5));
        let stats = manager.queue().stats();
        let outstanding = stats.total_pending + stats.total_active;
        assert!(stats.total_pending > 20 && stats.total_active > 5, "{stats:?}");
        let stop = Stop::drain(Duration::from_secs(1)).then_cancel(Duration::from_secs(1));
        let report = simulation.block_on(manager.stop(stop));
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.settled + report.cancelled, outstanding, "{report:?}");
        assert!(report.waited <= Duration::from_millis(1010), "{report:?}");
        assert!(report.given_back.len() < report.cancelled && report.given_back.len() > 10, "{report:?}");
        assert_idle(&manager);
        assert_eq!(running.now(), 0, "something runs after the return");
        for mut ticket in tickets {
            assert!(ticket.is_finished());
            (&mut ticket).now_or_never().expect("finished").expect("not dropped").ok();
        }
        let ran = begun.load(Ordering::SeqCst);
        simulation.advance(10 * HOUR);
        assert_eq!(begun.load(Ordering::SeqCst), ran, "something began after the return");
        assert!(manager.submit_fn("plain", "late", || async { Ok(()) }).is_err());
        let again = simulation.block_on(manager.stop(stop));
        assert_eq!((again.settled, again.cancelled, again.is_complete()), (0, 0, true));
    }
}

#[test]
fn stop_ends_everything_on_real_executors() {
    for workers in [1, 2, 4] {
        for round in 0..10 {
            let executor = executor(workers);
            let (manager, Everywhere { tickets, begun, running, .. }) = everywhere(&executor);
            if round % 2 == 0 {
                eventually("something runs", || running.now() > 4);
            }
            let stop = Stop::drain(Duration::from_millis(round)).then_cancel(HANG);
            let report = finish("stop", manager.stop(stop));
            assert!(report.is_complete(), "{workers} workers: {report:?}");
            assert_idle(&manager);
            assert_eq!(running.now(), 0, "something runs after the return");
            let ran = begun.load(Ordering::SeqCst);
            for ticket in tickets {
                finish("a ticket of a queue that has stopped", ticket).unwrap().ok();
            }
            let stats = manager.queue().stats();
            assert_eq!((stats.total_pending, stats.total_active), (0, 0));
            assert_eq!(begun.load(Ordering::SeqCst), ran, "something began after the return");
        }
    }
}

#[test]
fn stop_tells_of_a_command_that_blocks_and_does_not_wait_for_it() {
    let executor = executor(2);
    let (manager, Everywhere { tickets, blocked, .. }) = everywhere(&executor);
    let (running, waits) = (Barrier::default(), blocked.clone());
    let begun = running.clone();
    let command = move || async move {
        begun.open();
        waits.wait();
        Ok(())
    };
    let ticket = manager.submit_fn("children", "blocks", command).unwrap();
    // Its lane has two permits, which children hold: give it one.
    manager.update_lane("children", |config| config.max_concurrency = 50).unwrap();
    running.wait();
    let stop = Stop::drain(Duration::ZERO).then_cancel(Duration::from_millis(300));
    let report = finish("stop", manager.stop(stop));
    assert!(!report.is_complete());
    assert!(report.left_active >= 1, "{report:?}");
    blocked.open();
    // It has come to its end without another await.
    finish("who blocked", ticket).unwrap().unwrap();
    finish("drain", manager.drain(HANG)).unwrap();
    for ticket in tickets {
        finish("a ticket of a queue that has stopped", ticket).unwrap().ok();
    }
    assert_idle(&manager);
}

#[test]
fn a_stop_that_is_given_up_can_be_made_again() {
    let mut simulation = Simulation::new(2, 3);
    let (manager, Everywhere { tickets, .. }) = everywhere(simulation.executor());
    let stop = Stop::drain(HOUR / 2);
    assert!(manager.stop(stop).now_or_never().is_none());
    let second = Stop::drain(Duration::from_millis(1)).then_cancel(Duration::from_secs(1));
    let report = simulation.block_on(manager.stop(second));
    assert!(report.is_complete(), "{report:?}");
    assert!(tickets.iter().all(Ticket::is_finished));
    assert_idle(&manager);
}

#[test]
fn time_may_jump_by_years() {
    let year = 365 * 24 * HOUR;
    let mut simulation = Simulation::new(2, 9);
    let (manager, Everywhere { tickets, .. }) = everywhere(simulation.executor());
    manager.update_lane("retries", |config| config.retry_policy = RetryPolicy::fixed(3, year)).unwrap();
    manager.update_lane("again", |config| config.retry_policy = RetryPolicy::exponential(3)).unwrap();
    let never = SubmitOptions::new().delay(Duration::MAX).total_timeout(Duration::MAX).drain_timeout(Duration::MAX);
    let mut never = lane_of(&manager, "plain").submit_fn_with("never", never, || async { Ok(()) }).unwrap();
    for years in [1, 10, 100, 400] {
        simulation.advance(years * year);
    }
    manager.resume("paused").unwrap();
    simulation.advance(year);
    assert!(tickets.iter().all(Ticket::is_finished));
    assert!(!never.is_finished());
    // The clock ends after five centuries; nothing panics there.
    simulation.advance(Duration::MAX);
    never.cancel();
    simulation.run_until_idle();
    assert_idle(&manager);
}

#[test]
fn a_destructor_that_panics_costs_no_permit() {
    struct Hostile(Arc<AtomicBool>);
    impl Drop for Hostile {
        fn drop(&mut self) {
            if self.0.load(Ordering::SeqCst) && !std::thread::panicking() {
                std::panic::panic_any(Injected);
            }
        }
    }
    let mut simulation = Simulation::new(2, 5);
    let (manager, shared) = chaotic(simulation.executor(), 1);
    let hostile = Arc::new(AtomicBool::new(true));
    for i in 0..500u64 {
        let held = Hostile(Arc::clone(&hostile));
        let fate = move || async move {
            match i % 3 {
                0 => Ok(()),
                1 => Err(LaneError::Other("injected".into())),
                _ => Ok(sleep(HOUR).await),
            }
        };
        let options = SubmitOptions::new().timeout(Duration::from_millis(1));
        let lane = &shared.lanes[(i % 4) as usize];
        // Where it is dropped by whoever submits or cancels it, the panic is theirs.
        let submitted = catch_unwind(AssertUnwindSafe(|| {
            if i % 8 < 4 {
                let command = move || async move {
                    let _held = held;
                    fate().await
                };
                return lane.submit_fn_with("hostile", options, command);
            }
            // Kept in its dead letter, until that is evicted.
            let command = Work(move || {
                let _held = &held;
                fate()
            });
            Ok(lane.submit_typed_with(command, options)?)
        }));
        if let Ok(Ok(mut ticket)) = submitted
            && i % 7 == 0
        {
            let _ = catch_unwind(AssertUnwindSafe(|| ticket.cancel()));
        }
    }
    simulation.advance(HOUR);
    hostile.store(false, Ordering::SeqCst);
    let drained = simulation.block_on(manager.drain(HOUR));
    assert!(drained.is_ok(), "{drained:?}, {:?}", manager.queue().stats());
    assert_whole(&manager, &shared, &mut || simulation.advance(HOUR));
}
