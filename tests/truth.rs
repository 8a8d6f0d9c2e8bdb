//! The metrics are true: a million commands whose ends are known beforehand are counted exactly, by real workers and while
//! readings are taken; quantiles are within the stated error of those of the exact times; and alerts follow from that.
//!
//! `CORELANE_TRUTH_COMMANDS` says how many commands. Default: a million; unoptimised, 60,000.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corelane::{
    AlertManager, AlertRule, AlertStatus, CommandTypeReading, DeadLetterQueue, EventEmitter, Executor, Finished,
    Histogram, LaneConfig, LaneError, LaneReading, Overflow, QueueManager, QueueManagerBuilder, QueueMetrics, Reading,
    Rejected, Result, RetryPolicy, Simulation, SubmitOptions, TypedCommand, sleep,
};
use futures::executor::block_on;

const PRODUCERS: usize = 4;
/// How many commands the lanes that are full from the beginning hold.
const ROOM: u64 = 50;
const RETRIES: u32 = 3;
/// The lanes that run nothing until everything is submitted.
const PAUSED: [&str; 3] = ["is paused", "sheds", "rejects"];
const HANG: Duration = Duration::from_secs(60);

fn commands() -> usize {
    let default = if cfg!(debug_assertions) { 60_000 } else { 1_000_000 };
    std::env::var("CORELANE_TRUTH_COMMANDS").map_or(default, |number| number.parse().expect("a number"))
}

/// What a command will do.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Ok,
    Error,
    Panic,
    /// Fails so many times before it does not.
    Again(u32),
    /// Never ends by itself.
    Never,
}

struct Known {
    fate: Fate,
    attempts: AtomicU32,
}

impl Known {
    fn new(fate: Fate) -> Self {
        Self { fate, attempts: AtomicU32::new(0) }
    }
}

impl TypedCommand for Known {
    type Output = ();

    async fn execute(&self) -> Result<()> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let fails = || Err(LaneError::CommandError("known to fail".into()));
        match self.fate {
            Fate::Ok => Ok(()),
            Fate::Error => fails(),
            // Without the panic hook: thousands of these would be printed.
            Fate::Panic => std::panic::resume_unwind(Box::new("known to panic")),
            Fate::Again(times) if attempt < times => fails(),
            Fate::Again(_) => Ok(()),
            Fate::Never => std::future::pending().await,
        }
    }

    fn command_type(&self) -> &str {
        match self.fate {
            Fate::Ok => "ok",
            Fate::Error => "error",
            Fate::Panic => "panic",
            Fate::Again(_) => "again",
            Fate::Never => "never",
        }
    }
}

/// What will have been counted, by lane.
#[derive(Clone, Debug, Default)]
struct Expected(BTreeMap<&'static str, Counts>);

#[derive(Clone, Debug, Default)]
struct Counts {
    lane: LaneReading,
    /// Commands accepted by a full lane, which sheds all but those that it has room for.
    shedding: u64,
    /// Attempts begun by commands' first starts: those whose waits are known.
    firsts: u64,
    types: BTreeMap<&'static str, (Finished, u64)>,
}

impl Expected {
    fn lane(&mut self, lane: &'static str) -> &mut Counts {
        self.0.entry(lane).or_default()
    }

    fn add(&mut self, other: &Self) {
        for (lane, counts) in &other.0 {
            let (sum, more) = (self.lane(lane), &counts.lane);
            sum.lane.submitted += more.submitted;
            sum.lane.started += more.started;
            sum.lane.retries += more.retries;
            add_finished(&mut sum.lane.finished, &more.finished);
            let (letters, others) = (&mut sum.lane.dead_lettered, &more.dead_lettered);
            letters.failed += others.failed;
            letters.panicked += others.panicked;
            letters.timed_out += others.timed_out;
            letters.expired += others.expired;
            letters.shed += others.shed;
            sum.lane.rejected.full += more.rejected.full;
            sum.lane.rejected.shutdown += more.rejected.shutdown;
            sum.shedding += counts.shedding;
            sum.firsts += counts.firsts;
            for (command_type, (finished, attempts)) in &counts.types {
                let sum = sum.types.entry(command_type).or_default();
                add_finished(&mut sum.0, finished);
                sum.1 += attempts;
            }
        }
    }
}

fn add_finished(sum: &mut Finished, more: &Finished) {
    sum.ok += more.ok;
    sum.error += more.error;
    sum.panic += more.panic;
    sum.timeout += more.timeout;
    sum.cancelled += more.cancelled;
    sum.expired += more.expired;
    sum.shed += more.shed;
}

impl Counts {
    /// A command is accepted that will make so many attempts.
    fn accepted(&mut self, command_type: &'static str, attempts: u64) -> [&mut Finished; 2] {
        self.lane.submitted += 1;
        self.lane.started += attempts;
        self.lane.retries += attempts.saturating_sub(1);
        self.firsts += attempts.min(1);
        let of_type = self.types.entry(command_type).or_default();
        of_type.1 += attempts;
        [&mut self.lane.finished, &mut of_type.0]
    }
}

/// Numbers that a seed decides: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn queue(executor: &Executor, metrics: &QueueMetrics) -> QueueManager {
    let lane = || LaneConfig::new(1, 64);
    let full = |overflow| lane().with_capacity(ROOM as usize).with_overflow(overflow);
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(executor.clone())
        .with_metrics(metrics.clone())
        .with_dlq(DeadLetterQueue::new(500))
        .with_lane("works", lane(), 0)
        .with_lane("retries", lane().with_retry_policy(RetryPolicy::fixed(RETRIES, Duration::ZERO)), 1)
        .with_lane("times out", LaneConfig::new(1, 1000).with_timeout(Duration::from_millis(1)), 2)
        .with_lane("is paused", lane(), 3)
        .with_lane("sheds", full(Overflow::DropOldest), 4)
        .with_lane("rejects", full(Overflow::Reject), 5);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    for lane in PAUSED {
        manager.pause(lane).unwrap();
    }
    manager
}

/// Submits `commands` commands and says what is to be counted because of them. What becomes of those that a full lane accepts
/// depends on how producers meet: they are counted for the caller.
fn produce(managers: &[QueueManager; 2], commands: usize, seed: u64) -> Expected {
    let mut random = Random(seed);
    let mut expected = Expected::default();
    for number in 0..commands {
        let manager = &managers[random.below(2) as usize];
        let submit = |lane, fate| manager.submit_typed(lane, Known::new(fate));
        let submit_with =
            |lane: &str, options| manager.lane(lane).unwrap().submit_typed_with(Known::new(Fate::Ok), options);
        match random.below(1000) {
            0..5 => {
                let ticket = submit("works", Fate::Panic).unwrap();
                for finished in expected.lane("works").accepted("panic", 1) {
                    finished.panic += 1;
                }
                expected.lane("works").lane.dead_lettered.panicked += 1;
                ticket.detach();
            }
            5..55 => {
                submit("works", Fate::Error).unwrap().detach();
                for finished in expected.lane("works").accepted("error", 1) {
                    finished.error += 1;
                }
                expected.lane("works").lane.dead_lettered.failed += 1;
            }
            55..85 => {
                let failures = random.below(u64::from(RETRIES) + 2) as u32;
                submit("retries", Fate::Again(failures)).unwrap().detach();
                let attempts = failures.min(RETRIES) + 1;
                let is_ok = failures <= RETRIES;
                for finished in expected.lane("retries").accepted("again", attempts.into()) {
                    finished.ok += u64::from(is_ok);
                    finished.error += u64::from(!is_ok);
                }
                expected.lane("retries").lane.dead_lettered.failed += u64::from(!is_ok);
            }
            85..90 => {
                submit("times out", Fate::Never).unwrap().detach();
                for finished in expected.lane("times out").accepted("never", 1) {
                    finished.timeout += 1;
                }
                expected.lane("times out").lane.dead_lettered.timed_out += 1;
            }
            90..95 => {
                let mut ticket = submit("is paused", Fate::Ok).unwrap();
                assert!(ticket.cancel());
                for finished in expected.lane("is paused").accepted("ok", 0) {
                    finished.cancelled += 1;
                }
            }
            95..100 => {
                let options = SubmitOptions::new().queue_timeout(Duration::from_millis(1));
                submit_with("is paused", options).unwrap().detach();
                for finished in expected.lane("is paused").accepted("ok", 0) {
                    finished.expired += 1;
                }
                expected.lane("is paused").lane.dead_lettered.expired += 1;
            }
            100..103 => {
                submit("is paused", Fate::Ok).unwrap().detach();
                for finished in expected.lane("is paused").accepted("ok", 1) {
                    finished.ok += 1;
                }
            }
            103..106 => {
                submit("sheds", Fate::Ok).unwrap().detach();
                expected.lane("sheds").shedding += 1;
            }
            106..109 => match submit("rejects", Fate::Ok) {
                Ok(ticket) => {
                    ticket.detach();
                    for finished in expected.lane("rejects").accepted("ok", 1) {
                        finished.ok += 1;
                    }
                }
                Err(Rejected { error: LaneError::LaneFull { .. }, .. }) => {
                    expected.lane("rejects").lane.rejected.full += 1
                }
                Err(rejected) => panic!("{}", rejected.error),
            },
            _ => {
                let ticket = submit("works", Fate::Ok).unwrap();
                for finished in expected.lane("works").accepted("ok", 1) {
                    finished.ok += 1;
                }
                // So that not all of them are in memory at once.
                if number % 1000 == 0 {
                    block_on(ticket).unwrap().unwrap();
                }
            }
        }
    }
    expected
}

/// Every number of a reading that only grows, by name.
fn counts(reading: &Reading) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut count = |name: String, count: u64| assert!(counts.insert(name, count).is_none());
    for lane in &reading.lanes {
        let name = |what: &str| format!("{}: {what}", lane.lane);
        count(name("submitted"), lane.submitted);
        count(name("started"), lane.started);
        count(name("retries"), lane.retries);
        count(name("boosts"), lane.boosts);
        for (outcome, n) in lane.finished.by_outcome() {
            count(name(outcome), n);
        }
        for (reason, n) in lane.rejected.by_reason() {
            count(name(&format!("rejected {reason}")), n);
        }
        for (reason, n) in lane.dead_lettered.by_reason() {
            count(name(&format!("dead {reason}")), n);
        }
        for (what, times) in [("wait", &lane.wait), ("run", &lane.run)] {
            count(name(&format!("{what} sum")), times.sum().as_nanos() as u64);
            for (upper, n) in times.buckets() {
                count(name(&format!("{what} {upper:?}")), n);
            }
        }
        for CommandTypeReading { command_type, finished, run, .. } in &lane.command_types {
            for (outcome, n) in finished.by_outcome() {
                count(name(&format!("{command_type} {outcome}")), n);
            }
            count(name(&format!("{command_type} runs")), run.count());
        }
    }
    counts
}

/// Takes readings until it is told to stop: nothing goes back, and nothing has ended that has not begun.
fn watch(metrics: &QueueMetrics, is_stopped: &AtomicBool) -> usize {
    let mut last = BTreeMap::new();
    let mut readings = 0;
    while !is_stopped.load(Ordering::Acquire) {
        let reading = metrics.collect();
        let now = counts(&reading);
        for (name, before) in &last {
            assert!(now.get(name) >= Some(before), "{name}: {before} became {:?}", now.get(name));
        }
        for lane in &reading.lanes {
            assert!(lane.finished.total() <= lane.submitted, "{lane:?}");
            assert!(lane.run.count() <= lane.started && lane.wait.count() <= lane.started, "{lane:?}");
        }
        last = now;
        readings += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    readings
}

/// Stops the watch, also if the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn the_counts_are_the_ends_of_the_commands(workers: usize) {
    let executor = Executor::builder().workers(workers).pin(false).build().unwrap();
    let metrics = QueueMetrics::local().with_command_types(5);
    let managers = [queue(&executor, &metrics), queue(&executor, &metrics)];
    let is_stopped = AtomicBool::new(false);
    let mut expected = Expected::default();
    let readings = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&metrics, &is_stopped));
        let stop = Stop(&is_stopped);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                scope.spawn({
                    let managers = &managers;
                    move || produce(managers, commands() / PRODUCERS, producer as u64)
                })
            })
            .collect();
        for producer in producers {
            expected.add(&producer.join().unwrap());
        }
        // Full by now: what is in excess of the room of both queues was shed or rejected.
        let room = 2 * ROOM;
        for lane in ["sheds", "rejects"] {
            assert_eq!(metrics.collect().lane(lane).unwrap().pending, room, "too few commands to fill a lane");
        }
        assert_eq!(expected.lane("rejects").lane.submitted, room);
        let sheds = expected.lane("sheds");
        for number in 0..sheds.shedding {
            let runs = number < room;
            for finished in sheds.accepted("ok", runs.into()) {
                finished.ok += u64::from(runs);
                finished.shed += u64::from(!runs);
            }
            sheds.lane.dead_lettered.shed += u64::from(!runs);
        }

        // Those that expire do so while the lane is paused.
        let expiring = expected.lane("is paused").lane.finished.expired;
        let begun = Instant::now();
        while metrics.collect().lane("is paused").unwrap().finished.expired < expiring {
            assert!(begun.elapsed() < HANG, "fewer than {expiring} expire: {:?}", metrics.collect().lane("is paused"));
            std::thread::yield_now();
        }
        for manager in &managers {
            for lane in PAUSED {
                manager.resume(lane).unwrap();
            }
            block_on(manager.shutdown());
            assert!(manager.submit_typed("works", Known::new(Fate::Ok)).is_err());
            expected.lane("works").lane.rejected.shutdown += 1;
        }
        for manager in &managers {
            if let Err(error) = block_on(manager.drain(HANG)) {
                let left = metrics.collect();
                let left =
                    left.lanes.iter().map(|lane| (&lane.lane, lane.pending, lane.active, lane.delayed, lane.paused));
                panic!("{error}: of lanes, pending, active, delayed: {:?}", left.collect::<Vec<_>>());
            }
        }
        drop(stop);
        watch.join().unwrap()
    });
    assert!(readings > 10, "{readings}");

    let reading = metrics.collect();
    assert_eq!(reading.lanes.len(), expected.0.len());
    for (lane, Counts { lane: expected, firsts, types, .. }) in &expected.0 {
        let found = reading.lane(lane).unwrap();
        assert_eq!((found.pending, found.active, found.delayed), (0, 0, 0), "{lane}");
        assert_eq!(found.submitted, expected.submitted, "{lane}");
        assert_eq!(found.started, expected.started, "{lane}");
        assert_eq!(found.retries, expected.retries, "{lane}");
        assert_eq!(found.finished, expected.finished, "{lane}");
        assert_eq!(found.rejected, expected.rejected, "{lane}");
        assert_eq!(found.dead_lettered, expected.dead_lettered, "{lane}");
        assert_eq!(found.finished.total(), found.submitted, "{lane}");
        assert_eq!(found.run.count(), expected.started, "{lane}: attempts");
        assert_eq!(found.wait.count(), *firsts, "{lane}: first starts");
        let found_types: BTreeMap<_, _> = found
            .command_types
            .iter()
            .map(|found| (&*found.command_type, (found.finished, found.run.count())))
            .collect();
        assert_eq!(&found_types, types, "{lane}");
        let letters: usize =
            managers.iter().map(|manager| manager.dlq().unwrap().filter(|letter| letter.lane_id == *lane).len()).sum();
        assert_eq!(found.dead_letters, letters as u64, "{lane}");
    }
    // Several attempts may be made within one poll.
    let by_spares: u64 = executor.spare_stats().iter().map(|spare| spare.worker.polls).sum();
    let polls: u64 = by_spares + reading.workers.iter().map(|worker| worker.polls).sum::<u64>();
    let firsts: u64 = expected.0.values().map(|counts| counts.firsts).sum();
    assert!(polls >= firsts, "{polls} polls of {firsts} commands");
}

#[test]
fn every_command_is_counted_once_on_one_worker() {
    the_counts_are_the_ends_of_the_commands(1);
}

#[test]
fn every_command_is_counted_once_on_two_workers() {
    the_counts_are_the_ends_of_the_commands(2);
}

#[test]
fn every_command_is_counted_once_on_four_workers() {
    the_counts_are_the_ends_of_the_commands(4);
}

/// By nearest rank.
fn quantile(sorted: &[u64], q: f64) -> u64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn assert_is_distribution_of(what: &str, found: &Histogram, mut exact: Vec<u64>) {
    exact.sort_unstable();
    assert_eq!(found.count(), exact.len() as u64, "{what}");
    let sum: u128 = exact.iter().map(|nanos| u128::from(*nanos)).sum();
    assert_eq!(found.sum().as_nanos(), sum, "{what}");
    assert_eq!(found.mean().as_nanos(), sum / exact.len() as u128, "{what}");
    let within = |what: &str, found: Duration, exact: u64| {
        let error = (found.as_nanos() as f64 - exact as f64).abs();
        assert!(error <= exact as f64 * Histogram::RELATIVE_ERROR, "{what}: {found:?}, exactly {exact} ns");
    };
    within("min", found.min(), exact[0]);
    within("max", found.max(), exact[exact.len() - 1]);
    for percent in 0..=1000 {
        let q = f64::from(percent) / 1000.0;
        let found = found.quantile(q).unwrap();
        within(&format!("{what} p{}", q * 100.0), found, quantile(&exact, q));
        assert!(found.as_nanos() as u64 >= quantile(&exact, q), "{what}: never less than the true one");
    }
    for limit in [0, 100, 10_000, 1_000_000, 100_000_000, 10_000_000_000] {
        let least = found.count_at_most(Duration::from_nanos(limit)) as usize;
        let (at_most, bit_less) = (
            exact.partition_point(|nanos| *nanos <= limit),
            exact.partition_point(|nanos| *nanos as f64 <= limit as f64 * (1.0 - Histogram::RELATIVE_ERROR)),
        );
        assert!((bit_less..=at_most).contains(&least), "{what}: {least} at most {limit} ns, exactly {at_most}");
    }
}

/// Points in time up to twelve hours, dense at the beginning and sparse at the end.
fn times(number: usize, seed: u64) -> Vec<u64> {
    let mut random = Random(seed);
    let longest = (12.0 * 3600.0 * 1e9f64).log2();
    let mut times: Vec<u64> =
        (0..number).map(|_| (random.below(1 << 52) as f64 / (1u64 << 52) as f64 * longest).exp2() as u64).collect();
    times.sort_unstable();
    times
}

/// Commands that end in their order, each when it is told to.
type Ends = Arc<Mutex<Vec<futures::channel::oneshot::Sender<()>>>>;

fn world(workers: usize, metrics: &QueueMetrics) -> (Simulation, QueueManager) {
    let simulation = Simulation::new(workers, workers as u64);
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(simulation.executor().clone())
        .with_metrics(metrics.clone())
        .with_lane("a", LaneConfig::new(1, 10_000), 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    (simulation, manager)
}

fn go_to(simulation: &mut Simulation, time: Duration) {
    simulation.advance(time - simulation.now());
}

#[test]
fn quantiles_of_runs_are_within_the_stated_error_of_the_exact_ones() {
    for workers in [1, 2, 4] {
        let metrics = QueueMetrics::local().with_interval(Duration::from_secs(3600));
        let (mut simulation, manager) = world(workers, &metrics);
        let times = times(5_000, workers as u64);
        let ends = Ends::default();
        for _ in &times {
            let (end, ended) = futures::channel::oneshot::channel::<()>();
            ends.lock().unwrap().push(end);
            manager
                .submit_fn("a", "t", || async {
                    let _ = ended.await;
                    Ok(())
                })
                .unwrap()
                .detach();
        }
        simulation.run_until_idle();
        let begun = simulation.now();
        for (time, end) in times.iter().zip(ends.lock().unwrap().drain(..)) {
            go_to(&mut simulation, begun + Duration::from_nanos(*time));
            end.send(()).unwrap();
            simulation.run_until_idle();
        }
        let reading = metrics.collect();
        let lane = reading.lane("a").unwrap();
        assert_eq!(lane.finished.ok, times.len() as u64);
        assert_is_distribution_of("run", &lane.run, times);
    }
}

#[test]
fn quantiles_of_waits_are_within_the_stated_error_of_the_exact_ones() {
    for workers in [1, 2, 4] {
        let metrics = QueueMetrics::local().with_interval(Duration::from_secs(3600));
        let (mut simulation, manager) = world(workers, &metrics);
        manager.pause("a").unwrap();
        let begun = simulation.now();
        // Of waits: the longest is submitted first.
        let waits: Vec<u64> = times(5_000, workers as u64).into_iter().rev().collect();
        let end = begun + Duration::from_nanos(waits[0]);
        for wait in &waits {
            go_to(&mut simulation, end - Duration::from_nanos(*wait));
            manager.submit_fn("a", "t", || async { Ok(()) }).unwrap().detach();
        }
        go_to(&mut simulation, end);
        manager.resume("a").unwrap();
        simulation.run_until_idle();
        assert_eq!(simulation.now(), end);
        let reading = metrics.collect();
        let lane = reading.lane("a").unwrap();
        assert_eq!(lane.finished.ok, waits.len() as u64);
        assert_is_distribution_of("wait", &lane.wait, waits);
        assert_eq!(lane.run.sum(), Duration::ZERO, "no time passed while they ran");
    }
}

/// A lane that runs one command at a time, and the rules that look at it once a second.
fn watched(
    rules: impl IntoIterator<Item = AlertRule>,
    pending_first: bool,
) -> (Simulation, QueueManager, Arc<AlertManager>) {
    let mut simulation = Simulation::new(2, 5);
    let alerts = Arc::new(AlertManager::new().with_rules(rules).unwrap());
    let builder = QueueManagerBuilder::new(EventEmitter::new(10))
        .with_executor(simulation.executor().clone())
        .with_alerts(Arc::clone(&alerts))
        .with_lane("a", LaneConfig::new(1, 1), 0);
    let manager = simulation.block_on(builder.build()).unwrap();
    simulation.block_on(manager.start()).unwrap();
    if pending_first {
        manager.pause("a").unwrap();
    }
    (simulation, manager, alerts)
}

fn told(alerts: &AlertManager) -> Vec<(AlertStatus, String)> {
    alerts.history().into_iter().map(|told| (told.status, told.rule)).collect()
}

#[test]
fn a_depth_that_flaps_fires_once_and_is_resolved_once() {
    let second = Duration::from_secs(1);
    let rule = AlertRule::queue_depth(10).with_for(Duration::ZERO).with_keep_firing_for(5 * second);
    let (mut simulation, manager, alerts) = watched([rule], true);
    let submit = || manager.submit_fn("a", "t", || async { Ok(()) }).unwrap();
    let mut tickets: Vec<_> = (0..9).map(|_| submit()).collect();
    simulation.advance(10 * second);
    assert_eq!(told(&alerts), [], "9 are not 10");
    // Over and under the threshold, for two seconds each.
    for _ in 0..50 {
        tickets.push(submit());
        simulation.advance(2 * second);
        assert!(tickets.pop().unwrap().cancel());
        simulation.advance(2 * second);
    }
    let fired = (AlertStatus::Firing, "queue_depth".to_owned());
    assert_eq!(told(&alerts), std::slice::from_ref(&fired));
    manager.resume("a").unwrap();
    tickets.into_iter().for_each(|ticket| simulation.block_on(ticket).unwrap().unwrap());
    simulation.advance(20 * second);
    assert_eq!(told(&alerts), [fired, (AlertStatus::Resolved, "queue_depth".to_owned())]);
    assert_eq!(alerts.active(), []);
}

#[test]
fn a_lane_that_stalls_is_told_by_age_and_by_the_want_of_progress() {
    let second = Duration::from_secs(1);
    let keep = |rule: AlertRule| rule.with_keep_firing_for(5 * second);
    let rules = [
        keep(AlertRule::no_progress(30 * second)),
        keep(AlertRule::oldest_pending_age(40 * second)),
        keep(AlertRule::oldest_active_age(50 * second)),
    ];
    let (mut simulation, manager, alerts) = watched(rules, false);
    // Busy, and getting on: no alert, however long that lasts.
    for _ in 0..100 {
        let ticket = manager
            .submit_fn("a", "t", move || async move {
                sleep(second).await;
                Ok(())
            })
            .unwrap();
        simulation.block_on(ticket).unwrap().unwrap();
    }
    assert_eq!(told(&alerts), []);
    let hangs = manager
        .submit_fn("a", "t", move || async move {
            sleep(100 * second).await;
            Ok(())
        })
        .unwrap();
    let waits = manager.submit_fn("a", "t", || async { Ok(()) }).unwrap();
    simulation.advance(28 * second);
    assert_eq!(told(&alerts), []);
    simulation.advance(62 * second);
    let all = ["no_progress", "oldest_pending_age", "oldest_active_age"];
    let fired: Vec<_> = all.map(|rule| (AlertStatus::Firing, rule.to_owned())).into();
    assert_eq!(told(&alerts), fired);
    for ticket in [hangs, waits] {
        simulation.block_on(ticket).unwrap().unwrap();
    }
    simulation.advance(20 * second);
    let mut resolved: Vec<_> = told(&alerts).split_off(fired.len());
    resolved.sort_by(|a, b| a.1.cmp(&b.1));
    let mut expected: Vec<_> = all.map(|rule| (AlertStatus::Resolved, rule.to_owned())).into();
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(resolved, expected, "each once");
}
