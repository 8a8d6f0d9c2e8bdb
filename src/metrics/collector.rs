//! Makes readings: adds the shards of all lanes up and asks the queues for the rest, for everybody who wants to know, once.
//!
//! A thread of its own does so once per interval: it must not depend on workers, whose standstill it is to notice. Queues in
//! virtual time do it by a task.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::meter::{LaneMeter, Level};
use super::reading::{DeadLettered, LaneReading, Reading, RejectedCounts, WorkerReading};
use super::shard::{Count, Time};
use super::{Consumer, MetricsLevel};
use crate::clock::{Clock, wall_now};

/// How old a reading may be that is given out again.
const FRESH: Duration = Duration::from_millis(250);

/// A queue, as far as the collector knows it.
pub(crate) trait Source: Send + Sync {
    /// Adds what the queue knows of the present.
    fn read(&self, into: &mut Present);
}

/// What queues say of the present.
#[derive(Debug, Default)]
pub(crate) struct Present {
    pub(crate) lanes: Vec<LanePresent>,
    /// Workers of executors, by the executor: several queues may have the same one.
    pub(crate) workers: BTreeMap<usize, Vec<WorkerReading>>,
    /// How many dead letters there are of each lane and how old the oldest is, by the queue of letters: several queues may have the
    /// same one.
    pub(crate) dead_letters: BTreeMap<usize, HashMap<Arc<str>, (usize, Duration)>>,
    /// Events that were lost, by the emitter: several queues may have the same one.
    pub(crate) events_dropped: BTreeMap<u64, u64>,
}

/// What a queue says of one of its lanes.
#[derive(Debug, Default)]
pub(crate) struct LanePresent {
    pub(crate) lane: Arc<str>,
    pub(crate) priority: u8,
    pub(crate) pending: usize,
    pub(crate) delayed: usize,
    pub(crate) active: usize,
    pub(crate) min_concurrency: usize,
    pub(crate) max_concurrency: usize,
    pub(crate) paused: bool,
    /// When the attempt that has run longest began, of those that wait for something.
    pub(crate) active_since: Option<u64>,
}

/// What the handles of one [`QueueMetrics`](super::QueueMetrics) share.
pub(super) struct Collector {
    level: Arc<Level>,
    interval: Duration,
    /// Command types that are told apart in each lane.
    types: usize,
    /// The clock of the first queue, and when that came.
    clock: OnceLock<(Clock, u64)>,
    storage_errors: AtomicU64,
    state: Mutex<State>,
    thread: Arc<Signal>,
}

#[derive(Default)]
struct State {
    meters: Vec<Arc<LaneMeter>>,
    sources: Vec<Weak<dyn Source>>,
    consumers: Vec<Weak<dyn Consumer>>,
    last: Option<Arc<Reading>>,
    marks: BTreeMap<Arc<str>, Marks>,
    dropped: Dropped,
    is_ticking: bool,
}

impl Collector {
    pub(super) fn new(interval: Duration, types: usize) -> Self {
        Self {
            level: Arc::new(Level::new()),
            interval,
            types,
            clock: OnceLock::new(),
            storage_errors: AtomicU64::new(0),
            state: Mutex::default(),
            thread: Arc::default(),
        }
    }

    pub(super) fn set_level(&self, level: MetricsLevel) {
        self.level.set(level);
    }

    pub(super) fn level(&self) -> MetricsLevel {
        self.level.get()
    }

    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) const fn types(&self) -> usize {
        self.types
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Consumers do not panic; what they might have left half-way is theirs.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The meter of the lanes of this name.
    pub(super) fn meter(&self, lane: &Arc<str>) -> Arc<LaneMeter> {
        let mut state = self.state();
        if let Some(meter) = state.meters.iter().find(|meter| meter.lane == *lane) {
            return Arc::clone(meter);
        }
        let meter = Arc::new(LaneMeter::new(Arc::clone(lane), Arc::clone(&self.level), self.types));
        state.meters.push(Arc::clone(&meter));
        meter
    }

    pub(super) fn count_storage_error(&self) {
        self.storage_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_consumer(&self, consumer: Weak<dyn Consumer>) {
        let mut state = self.state();
        state.consumers.retain(|other| other.strong_count() > 0);
        state.consumers.push(consumer);
    }

    /// Takes a queue in. Its clock counts if it is the first.
    pub(super) fn add_source(self: &Arc<Self>, source: Weak<dyn Source>, clock: &Clock) {
        self.clock.get_or_init(|| (clock.clone(), clock.stamp()));
        let mut state = self.state();
        state.sources.retain(|other| other.strong_count() > 0);
        state.sources.push(source);
        if matches!(clock, Clock::System) && !std::mem::replace(&mut state.is_ticking, true) {
            drop(state);
            self.start();
        }
    }

    fn start(self: &Arc<Self>) {
        let (collector, signal, interval) = (Arc::downgrade(self), Arc::clone(&self.thread), self.interval);
        let ticks = move || {
            while signal.wait(interval) {
                let Some(collector) = collector.upgrade() else { return };
                // Queues may end here, and with them what others have put into them.
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| collector.collect())) {
                    // It may panic again when it is dropped.
                    std::mem::forget(payload);
                    tracing::error!("a reading panicked; contained");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("corelane-metrics".into()).spawn(ticks) {
            tracing::error!(%error, "no thread for metrics: they are collected only when they are asked for");
        }
    }

    /// Microseconds and more since the first queue came.
    fn elapsed(&self) -> Duration {
        self.clock
            .get()
            .map_or(Duration::ZERO, |(clock, began)| Duration::from_nanos(clock.stamp().saturating_sub(*began)))
    }

    /// A reading that is hardly old.
    pub(super) fn recent(&self) -> Arc<Reading> {
        let now = self.elapsed();
        let last = self.state().last.clone();
        let fresh = last.filter(|last| now.saturating_sub(last.elapsed) < FRESH && !now.is_zero());
        fresh.unwrap_or_else(|| self.collect())
    }

    /// A reading of now, for all who want one.
    pub(super) fn collect(&self) -> Arc<Reading> {
        // Dropped after the lock: these may be the last references to a queue, whose end is others' code, too.
        let (sources, consumers): (Vec<_>, Vec<_>);
        let mut state = self.state();
        state.sources.retain(|source| source.strong_count() > 0);
        state.consumers.retain(|consumer| consumer.strong_count() > 0);
        sources = state.sources.iter().filter_map(Weak::upgrade).collect();
        consumers = state.consumers.iter().filter_map(Weak::upgrade).collect();
        let reading = Arc::new(self.read(&mut state, &sources));
        state.last = Some(Arc::clone(&reading));
        for consumer in &consumers {
            consumer.consume(&reading);
        }
        drop(state);
        reading
    }

    fn read(&self, state: &mut State, sources: &[Arc<dyn Source>]) -> Reading {
        let mut present = Present::default();
        let mut lanes: BTreeMap<Arc<str>, LaneReading> = BTreeMap::new();
        // Ends before beginnings: then nothing has ended that has not begun.
        for meter in &state.meters {
            let reading = lanes.entry(Arc::clone(&meter.lane)).or_default();
            count(meter, reading);
        }
        for source in sources {
            source.read(&mut present);
        }
        let elapsed = self.elapsed();
        let now = self.clock.get().map_or(0, |(clock, _)| clock.stamp());
        for lane in present.lanes {
            add(lanes.entry(Arc::clone(&lane.lane)).or_default(), &lane, now);
        }
        for (lane, (letters, oldest)) in present.dead_letters.into_values().flatten() {
            if let Some(reading) = lanes.get_mut(&lane) {
                reading.dead_letters += letters as u64;
                reading.oldest_dead_letter = reading.oldest_dead_letter.max(Some(oldest));
            }
        }
        for meter in &state.meters {
            let Some(reading) = lanes.get_mut(&meter.lane) else { continue };
            let polled = meter.shards.polled_since().map(|since| Duration::from_nanos(now.saturating_sub(since)));
            if reading.active > 0 {
                reading.oldest_active = reading.oldest_active.max(polled);
            }
            let left = meter.shards.sum(Count::Started) + meter.shards.sum(Count::Unstarted);
            let marks = state.marks.entry(Arc::clone(&meter.lane)).or_default();
            let is_idle = reading.pending == 0 && reading.active == 0;
            let oldest = marks.oldest(elapsed, reading.submitted, left, is_idle);
            reading.oldest_pending = oldest.filter(|_| reading.pending > 0);
        }
        let mut lanes: Vec<_> = lanes.into_iter().map(|(lane, reading)| LaneReading { lane, ..reading }).collect();
        lanes.sort_by(|a, b| (a.priority, &a.lane).cmp(&(b.priority, &b.lane)));
        let workers = present.workers.into_values().flatten().enumerate();
        Reading {
            at: wall_now(),
            elapsed,
            lanes,
            workers: workers.map(|(worker, reading)| WorkerReading { worker, ..reading }).collect(),
            storage_errors: self.storage_errors.load(Ordering::Relaxed),
            events_dropped: state.dropped.update(&present.events_dropped),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.thread.stop();
    }
}

fn count(meter: &LaneMeter, reading: &mut LaneReading) {
    let sum = |count| meter.shards.sum(count);
    reading.finished = meter.finished();
    reading.dead_lettered = DeadLettered {
        failed: sum(Count::DeadFailed),
        panicked: sum(Count::DeadPanicked),
        timed_out: sum(Count::DeadTimedOut),
        expired: sum(Count::DeadExpired),
        shed: sum(Count::DeadShed),
        other: sum(Count::DeadOther),
    };
    reading.retries = sum(Count::Retries);
    reading.run = meter.shards.distribution(Time::Run);
    reading.wait = meter.shards.distribution(Time::Wait);
    reading.command_types = meter.command_types();
    reading.started = sum(Count::Started) + sum(Count::Restarted);
    reading.submitted = sum(Count::Submitted);
    reading.rejected = RejectedCounts {
        full: sum(Count::RejectedFull),
        shutdown: sum(Count::RejectedShutdown),
        invalid: sum(Count::RejectedInvalid),
        storage: sum(Count::RejectedStorage),
    };
    reading.boosts = sum(Count::Boosts);
    reading.throttled = Duration::from_nanos(meter.throttled.load(Ordering::Relaxed));
}

/// Adds what a queue says of a lane; `now` is the stamp of now.
fn add(reading: &mut LaneReading, lane: &LanePresent, now: u64) {
    reading.priority = lane.priority;
    reading.pending += lane.pending as u64;
    reading.delayed += lane.delayed as u64;
    reading.active += lane.active as u64;
    reading.min_concurrency += lane.min_concurrency as u64;
    reading.max_concurrency += lane.max_concurrency as u64;
    reading.paused |= lane.paused;
    let active = lane.active_since.map(|since| Duration::from_nanos(now.saturating_sub(since)));
    reading.oldest_active = reading.oldest_active.max(active);
}

/// How many commands had been submitted at earlier readings: so the time at which the one was that is next to start is known
/// within an interval, without a word on the commands' way.
#[derive(Debug, Default)]
struct Marks {
    known: VecDeque<(Duration, u64)>,
    /// Commands that have left uncounted, less those that came so: nothing is counted while the level is off.
    uncounted: i64,
}

/// More marks are thinned out: then the age is known less exactly.
const MARKS: usize = 4096;

impl Marks {
    /// How long the command that is next to start has waited at least; `left` commands of `submitted` do not wait any more.
    /// Of a lane that is idle none does, whatever was counted.
    fn oldest(&mut self, now: Duration, submitted: u64, left: u64, is_idle: bool) -> Option<Duration> {
        if is_idle {
            self.uncounted = submitted as i64 - left as i64;
        }
        let left = left.saturating_add_signed(self.uncounted);
        if self.known.back().is_none_or(|(_, known)| *known < submitted) {
            self.known.push_back((now, submitted));
        }
        // What was submitted by then has left. The last one stays, to know what is new.
        while self.known.len() > 1 && self.known.front().is_some_and(|(_, submitted)| *submitted <= left) {
            self.known.pop_front();
        }
        if self.known.len() > MARKS {
            let mut index = 0;
            self.known.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        let (at, known) = self.known.front()?;
        (*known > left).then(|| now.saturating_sub(*at))
    }
}

/// Events lost, by emitter: of those that have lost some, since an emitter may go with a queue and come again with another.
#[derive(Debug, Default)]
struct Dropped(BTreeMap<u64, u64>);

impl Dropped {
    fn update(&mut self, now: &BTreeMap<u64, u64>) -> u64 {
        self.0.extend(now.iter().filter(|(_, dropped)| **dropped > 0));
        self.0.values().sum()
    }
}

/// Tells a thread to stop.
#[derive(Debug, Default)]
struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for this time; false if the thread is to stop.
    fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_is_as_old_as_the_reading_at_which_it_was_new() {
        let mut marks = Marks::default();
        assert_eq!(marks.oldest(at(1), 0, 0, true), None);
        assert_eq!(marks.oldest(at(2), 3, 0, false), Some(at(0)));
        assert_eq!(marks.oldest(at(5), 4, 2, false), Some(at(3)));
        assert_eq!(marks.oldest(at(6), 4, 3, false), Some(at(1)));
        assert_eq!(marks.oldest(at(7), 4, 4, false), None);
    }

    #[test]
    fn what_came_or_left_uncounted_makes_none_older_once_the_lane_was_idle() {
        // Ten left while the level was off, or came.
        for (submitted, left) in [(10, 0), (0, 10)] {
            let mut marks = Marks::default();
            marks.oldest(at(1), submitted, left, false);
            assert_eq!(marks.oldest(at(2), submitted, left, true), None);
            assert_eq!(marks.oldest(at(1000), submitted + 1, left, false), Some(at(0)));
            assert_eq!(marks.oldest(at(1004), submitted + 1, left, false), Some(at(4)));
            assert_eq!(marks.oldest(at(1005), submitted + 1, left + 1, false), None);
        }
    }
}
