//! Hands what queues have counted to a backend: the difference between two readings, as calls.
//!
//! One pusher at a time: who has the [`Turn`]. A backend of the user's own may take long, so a thread of its own pushes the
//! newest reading; what is kept in this process is pushed by who collects. Who asks for a snapshot pushes first.
//!
//! Each call is made at most once: it is taken out before it is made. What a pusher has not come to, because it was dropped on
//! the way, the next one does.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use event_listener::Event;
use futures_lite::FutureExt as _;
use futures_lite::future::block_on;

use super::backend::{MetricsBackend, metric_names as names};
use super::histogram::Histogram;
use super::reading::{LaneReading, Reading};
use super::{Consumer, LocalMetrics};

/// The name of a lane's own metric.
pub(super) fn of_lane(name: &str, lane: &str) -> String {
    format!("{name}.{lane}")
}

/// What is yet to be told to a backend, and what it knows already.
#[derive(Debug, Default)]
struct Push {
    last: Option<Arc<Reading>>,
    calls: VecDeque<Call>,
}

/// A call of a backend.
#[derive(Debug, PartialEq)]
enum Call {
    Increment(String, u64),
    Set(String, f64),
    Record(String, f64, u64),
}

impl Push {
    /// Tells `backend` what has come up to `reading`.
    async fn push(&mut self, reading: &Arc<Reading>, backend: &dyn MetricsBackend) {
        self.make_calls(backend).await;
        // Pushers may come in another order than their readings were made.
        if self.last.as_ref().is_some_and(|last| last.elapsed > reading.elapsed) {
            return;
        }
        self.calls = difference(self.last.as_deref(), reading);
        self.last = Some(Arc::clone(reading));
        self.make_calls(backend).await;
    }

    async fn make_calls(&mut self, backend: &dyn MetricsBackend) {
        let mut panics = 0;
        while let Some(call) = self.calls.pop_front() {
            let made = AssertUnwindSafe(async {
                match &call {
                    Call::Increment(name, by) => backend.increment_counter(name, *by).await,
                    Call::Set(name, to) => backend.set_gauge(name, *to).await,
                    Call::Record(name, value, count) => backend.record_histogram_many(name, *value, *count).await,
                }
            });
            if let Err(payload) = made.catch_unwind().await {
                // It may panic again when it is dropped. The panic hook has told what it says.
                std::mem::forget(payload);
                panics += 1;
            }
        }
        if panics > 0 {
            tracing::error!(panics, "a metrics backend has panicked: what those calls told it is lost");
        }
    }
}

fn difference(last: Option<&Reading>, now: &Reading) -> VecDeque<Call> {
    let earlier: HashMap<&str, &LaneReading> =
        last.iter().flat_map(|last| &last.lanes).map(|lane| (&*lane.lane, lane)).collect();
    let none = LaneReading::default();
    let since = |lane: &LaneReading| Since::of(earlier.get(&*lane.lane).copied().unwrap_or(&none), lane);
    let lanes: Vec<(&str, Since)> = now.lanes.iter().map(|lane| (&*lane.lane, since(lane))).collect();
    let mut calls = VecDeque::new();
    let total = lanes.iter().fold(Since::of(&none, &none), |total, (_, since)| total.plus(since));
    if !lanes.is_empty() {
        total.tell(&str::to_owned, &mut calls);
    }
    for (lane, since) in lanes {
        since.tell(&|name| of_lane(name, lane), &mut calls);
    }
    calls
}

/// What has come in a lane since an earlier reading, as far as a3s-lane has names for it.
struct Since {
    counters: [(&'static str, u64); 6],
    gauges: [(&'static str, u64); 2],
    times: [(&'static str, Histogram); 2],
}

impl Since {
    fn of(earlier: &LaneReading, now: &LaneReading) -> Self {
        let counters = |of: &LaneReading| {
            [
                (names::COMMANDS_SUBMITTED, of.submitted),
                (names::COMMANDS_COMPLETED, of.finished.ok),
                (names::COMMANDS_FAILED, of.finished.failed() - of.finished.timeout),
                (names::COMMANDS_TIMEOUT, of.finished.timeout),
                (names::COMMANDS_RETRIED, of.retries),
                (names::COMMANDS_DEAD_LETTERED, of.dead_lettered.total()),
            ]
        };
        let mut since = counters(now);
        for ((_, now), (_, earlier)) in since.iter_mut().zip(counters(earlier)) {
            *now = now.saturating_sub(earlier);
        }
        Self {
            counters: since,
            gauges: [(names::QUEUE_DEPTH, now.pending), (names::QUEUE_ACTIVE, now.active)],
            times: [
                (names::COMMAND_WAIT_TIME, now.wait.since(&earlier.wait)),
                (names::COMMAND_LATENCY, now.run.since(&earlier.run)),
            ],
        }
    }

    fn plus(mut self, lane: &Self) -> Self {
        for ((_, total), (_, lane)) in self.counters.iter_mut().zip(lane.counters) {
            *total += lane;
        }
        for ((_, total), (_, lane)) in self.gauges.iter_mut().zip(lane.gauges) {
            *total += lane;
        }
        for ((_, total), (_, lane)) in self.times.iter_mut().zip(&lane.times) {
            total.add(lane);
        }
        self
    }

    /// Counters and times that have not changed are not told.
    fn tell(self, named: &dyn Fn(&str) -> String, calls: &mut VecDeque<Call>) {
        let counters = self.counters.into_iter().filter(|(_, by)| *by > 0);
        calls.extend(counters.map(|(name, by)| Call::Increment(named(name), by)));
        calls.extend(self.gauges.into_iter().map(|(name, to)| Call::Set(named(name), to as f64)));
        for (name, times) in self.times.iter().filter(|(_, times)| !times.is_empty()) {
            calls.extend(values(times).map(|(value, count)| Call::Record(named(name), value, count)));
        }
    }
}

/// A distribution as values in milliseconds and how often: one of each bucket, all at the same place between its bounds,
/// which is where their sum is the true one.
fn values(times: &Histogram) -> impl Iterator<Item = (f64, u64)> + '_ {
    let sum_of = |bound: fn((u64, u64, u64)) -> u64| {
        times.ranges().map(|range| u128::from(bound(range)) * u128::from(range.2)).sum::<u128>() as f64
    };
    let (least, most) = (sum_of(|range| range.0), sum_of(|range| range.1));
    let width = most - least;
    let place = if width > 0.0 { (times.sum().as_nanos() as f64 - least) / width } else { 0.0 };
    // Outside if times were too long for the last bucket, or if a time was read in its bucket and not yet in the sum.
    let place = place.clamp(0.0, 1.0);
    times.ranges().map(move |(shortest, longest, count)| {
        let nanos = shortest as f64 + place * (longest - shortest) as f64;
        (nanos / 1e6, count)
    })
}

/// Feeds one backend with what one collector reads.
pub(super) struct Feed {
    fed: Arc<Fed>,
    /// The newest reading, for the thread; none without a thread: the backend takes no time.
    newest: Option<Arc<Newest>>,
}

struct Fed {
    backend: Arc<dyn MetricsBackend>,
    push: Turns<Push>,
}

impl Fed {
    async fn push(&self, reading: &Arc<Reading>) {
        self.push.take().await.push(reading, &*self.backend).await;
    }
}

impl Feed {
    /// Feeds a backend of the user's own, from a thread that begins with the first reading and ends with this.
    pub(super) fn new(backend: Arc<dyn MetricsBackend>) -> Self {
        Self { fed: Arc::new(Fed { backend, push: Turns::default() }), newest: Some(Arc::default()) }
    }

    /// Feeds a backend of this process.
    pub(super) fn local() -> Self {
        Self { fed: Arc::new(Fed { backend: Arc::new(LocalMetrics::new()), push: Turns::default() }), newest: None }
    }

    /// Feeds the same backend with what another collector reads.
    pub(super) fn anew(&self) -> Self {
        let fed = Fed { backend: Arc::clone(&self.fed.backend), push: Turns::default() };
        Self { fed: Arc::new(fed), newest: self.newest.is_some().then(Arc::default) }
    }

    pub(super) fn backend(&self) -> &Arc<dyn MetricsBackend> {
        &self.fed.backend
    }

    /// Tells the backend what has come up to `reading`, and returns when it knows.
    pub(super) async fn push(&self, reading: &Arc<Reading>) {
        self.fed.push(reading).await;
    }

    /// Has the backend forget everything, and be told what comes after `reading`.
    pub(super) async fn restart(&self, reading: &Arc<Reading>) {
        let mut push = self.fed.push.take().await;
        push.calls.clear();
        push.last = Some(Arc::clone(reading));
        self.fed.backend.reset().await;
    }
}

impl Consumer for Feed {
    fn consume(&self, reading: &Arc<Reading>) {
        match &self.newest {
            Some(newest) => newest.put(reading, &self.fed),
            // Who has the turn now pushes a reading of now; the backend's calls do not wait.
            None => {
                if let Some(mut push) = self.fed.push.try_take() {
                    block_on(push.push(reading, &*self.fed.backend));
                }
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(newest) = &self.newest {
            newest.end();
        }
    }
}

/// A place for the newest reading. The thread that takes it is not waited for: a call of the backend may take any time.
#[derive(Default)]
struct Newest {
    place: Mutex<Place>,
    changed: Condvar,
}

#[derive(Default)]
struct Place {
    reading: Option<Arc<Reading>>,
    is_served: bool,
    is_ended: bool,
}

impl Newest {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(self: &Arc<Self>, reading: &Arc<Reading>, fed: &Arc<Fed>) {
        let mut place = self.place();
        place.reading = Some(Arc::clone(reading));
        if !std::mem::replace(&mut place.is_served, true) {
            let (newest, fed) = (Arc::clone(self), Arc::clone(fed));
            let serve = move || {
                while let Some(reading) = newest.take() {
                    block_on(fed.push(&reading));
                }
            };
            if let Err(error) = std::thread::Builder::new().name("corelane-push".into()).spawn(serve) {
                tracing::error!(%error, "no thread for a metrics backend: it is told only when it is asked for a snapshot");
            }
        }
        drop(place);
        self.changed.notify_one();
    }

    /// Waits for a reading; none once there will be no more.
    fn take(&self) -> Option<Arc<Reading>> {
        let waits = |place: &mut Place| place.reading.is_none() && !place.is_ended;
        let place = self.changed.wait_while(self.place(), waits);
        place.unwrap_or_else(PoisonError::into_inner).reading.take()
    }

    fn end(&self) {
        self.place().is_ended = true;
        self.changed.notify_all();
    }
}

/// Something that one at a time has, for as long as it likes: a lock that futures wait for.
struct Turns<T> {
    /// None while somebody has it.
    value: Mutex<Option<T>>,
    free: Event,
}

impl<T: Default> Default for Turns<T> {
    fn default() -> Self {
        Self { value: Mutex::new(Some(T::default())), free: Event::new() }
    }
}

impl<T> Turns<T> {
    fn value(&self) -> MutexGuard<'_, Option<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self) -> Option<Turn<'_, T>> {
        let value = self.value().take();
        value.map(|value| Turn { turns: self, value: Some(value) })
    }

    async fn take(&self) -> Turn<'_, T> {
        loop {
            if let Some(turn) = self.try_take() {
                return turn;
            }
            let free = self.free.listen();
            // It may have come back before this listened.
            if let Some(turn) = self.try_take() {
                return turn;
            }
            free.await;
        }
    }
}

/// The turn of who has the value; dropping it lets the next one have it.
struct Turn<'a, T> {
    turns: &'a Turns<T>,
    value: Option<T>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is given back by drop")
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is given back by drop")
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        *self.turns.value() = self.value.take();
        self.turns.free.notify(1);
    }
}

#[cfg(all(test, not(corelane_loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use async_trait::async_trait;
    use futures_lite::future::poll_once;

    use super::super::{HistogramStats, MetricsSnapshot};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Writes calls down; does what `before` says before each.
    struct Written<F> {
        calls: Mutex<Vec<Call>>,
        before: F,
    }

    impl<F> Written<F> {
        fn new(before: F) -> Self {
            Self { calls: Mutex::default(), before }
        }

        fn take(&self) -> Vec<Call> {
            std::mem::take(&mut *self.calls.lock().unwrap())
        }
    }

    #[async_trait]
    impl<F: Fn(&str) + Send + Sync> MetricsBackend for Written<F> {
        async fn increment_counter(&self, name: &str, value: u64) {
            (self.before)(name);
            self.calls.lock().unwrap().push(Call::Increment(name.into(), value));
            // Where a pusher can be dropped.
            futures_lite::future::yield_now().await;
        }
        async fn set_gauge(&self, name: &str, value: f64) {
            (self.before)(name);
            self.calls.lock().unwrap().push(Call::Set(name.into(), value));
        }
        async fn record_histogram(&self, _: &str, _: f64) {
            panic!("many are recorded at once");
        }
        async fn record_histogram_many(&self, name: &str, value: f64, count: u64) {
            (self.before)(name);
            self.calls.lock().unwrap().push(Call::Record(name.into(), value, count));
        }
        async fn get_counter(&self, _: &str) -> Option<u64> {
            None
        }
        async fn get_gauge(&self, _: &str) -> Option<f64> {
            None
        }
        async fn get_histogram_stats(&self, _: &str) -> Option<HistogramStats> {
            None
        }
        async fn reset(&self) {
            self.take();
        }
        async fn snapshot(&self) -> MetricsSnapshot {
            MetricsSnapshot::default()
        }
    }

    fn reading(second: u64, lanes: Vec<LaneReading>) -> Arc<Reading> {
        let at = crate::clock::wall_now();
        let elapsed = Duration::from_secs(second);
        Arc::new(Reading { at, elapsed, lanes, workers: Vec::new(), storage_errors: 0, events_dropped: 0 })
    }

    fn lane(name: &str, submitted: u64) -> LaneReading {
        LaneReading { lane: name.into(), submitted, ..LaneReading::default() }
    }

    fn submitted(calls: &[Call], name: &str) -> u64 {
        let of_name = calls.iter().filter_map(|call| match call {
            Call::Increment(called, by) if called == name => Some(by),
            _ => None,
        });
        of_name.sum()
    }

    #[test]
    fn what_has_come_is_told_of_all_lanes_and_of_each_and_what_has_not_changed_is_not() {
        let backend = Written::new(|_: &str| ());
        let mut push = Push::default();
        let mut a = lane("a", 3);
        a.finished.ok = 1;
        a.pending = 2;
        a.run.record(10 * MS, 1);
        let mut b = lane("b", 4);
        b.active = 4;
        block_on(push.push(&reading(1, vec![a.clone(), b.clone()]), &backend));
        let increment = |name: &str, by| Call::Increment(name.to_owned(), by);
        let set = |name: &str, to| Call::Set(name.to_owned(), to);
        let record = |name: &str, value, count| Call::Record(name.to_owned(), value, count);
        let expected = [
            increment("lane.commands.submitted", 7),
            increment("lane.commands.completed", 1),
            set("lane.queue.depth", 2.0),
            set("lane.queue.active", 4.0),
            record("lane.command.latency_ms", 10.0, 1),
            increment("lane.commands.submitted.a", 3),
            increment("lane.commands.completed.a", 1),
            set("lane.queue.depth.a", 2.0),
            set("lane.queue.active.a", 0.0),
            record("lane.command.latency_ms.a", 10.0, 1),
            increment("lane.commands.submitted.b", 4),
            set("lane.queue.depth.b", 0.0),
            set("lane.queue.active.b", 4.0),
        ];
        assert_eq!(backend.take(), expected);

        a.pending = 0;
        a.finished.error = 5;
        a.finished.panic = 1;
        a.finished.expired = 1;
        a.finished.timeout = 2;
        a.finished.cancelled = 1;
        a.retries = 6;
        a.dead_lettered.failed = 1;
        a.dead_lettered.timed_out = 1;
        a.wait.record(3 * MS, 2);
        block_on(push.push(&reading(2, vec![a.clone(), b]), &backend));
        let expected = [
            increment("lane.commands.failed", 7),
            increment("lane.commands.timeout", 2),
            increment("lane.commands.retried", 6),
            increment("lane.commands.dead_lettered", 2),
            set("lane.queue.depth", 0.0),
            set("lane.queue.active", 4.0),
            record("lane.command.wait_time_ms", 3.0, 2),
        ];
        assert_eq!(backend.take()[..7], expected);
    }

    #[test]
    fn without_lanes_nothing_is_told() {
        let backend = Written::new(|_: &str| ());
        block_on(Push::default().push(&reading(1, Vec::new()), &backend));
        assert_eq!(backend.take(), []);
    }

    #[test]
    fn times_are_told_as_values_of_their_buckets_with_the_true_sum() {
        let mut times = Histogram::new();
        let mut exact = Vec::new();
        let mut state = 7u64;
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let nanos = (state >> 33) >> (state >> 40 & 31);
            times.record(Duration::from_nanos(nanos), 1);
            exact.push(nanos as f64 / 1e6);
        }
        exact.sort_by(f64::total_cmp);
        let mut told = Vec::new();
        for (value, count) in values(&times) {
            told.extend(std::iter::repeat_n(value, count as usize));
        }
        assert_eq!(told.len(), exact.len());
        for (told, exact) in told.iter().zip(&exact) {
            assert!((told - exact).abs() <= exact * Histogram::RELATIVE_ERROR + 1e-12, "{told}, exactly {exact}");
        }
        let (told, exact) = (told.iter().sum::<f64>(), exact.iter().sum::<f64>());
        assert!((told - exact).abs() < exact * 1e-9, "{told}, exactly {exact}");
    }

    #[test]
    fn a_reading_that_comes_after_a_later_one_is_passed_over() {
        let backend = Written::new(|_: &str| ());
        let mut push = Push::default();
        for (second, commands) in [(1, 1), (3, 30), (2, 20), (3, 30), (4, 31)] {
            block_on(push.push(&reading(second, vec![lane("a", commands)]), &backend));
        }
        assert_eq!(submitted(&backend.take(), "lane.commands.submitted.a"), 31);
    }

    #[test]
    fn a_call_that_panics_loses_what_it_was_to_tell_and_nothing_else() {
        let backend = Written::new(|name: &str| assert_ne!(name, "lane.commands.submitted.a", "on purpose"));
        let mut push = Push::default();
        block_on(push.push(&reading(1, vec![lane("a", 1), lane("b", 2)]), &backend));
        let calls = backend.take();
        assert_eq!(submitted(&calls, "lane.commands.submitted"), 3);
        assert_eq!(submitted(&calls, "lane.commands.submitted.a"), 0);
        assert_eq!(submitted(&calls, "lane.commands.submitted.b"), 2);
    }

    #[test]
    fn what_a_pusher_that_is_dropped_has_not_come_to_the_next_one_tells() {
        let backend = Written::new(|_: &str| ());
        let mut push = Push::default();
        let first = reading(1, vec![lane("a", 1)]);
        assert!(block_on(poll_once(push.push(&first, &backend))).is_none(), "it waits within its first call");
        block_on(push.push(&reading(2, vec![lane("a", 3)]), &backend));
        let calls = backend.take();
        assert_eq!(submitted(&calls, "lane.commands.submitted"), 3);
        assert_eq!(submitted(&calls, "lane.commands.submitted.a"), 3);
    }

    #[test]
    fn a_slow_backend_is_told_of_the_newest_reading_and_nobody_waits_for_it() {
        let (arrived, arrivals) = mpsc::channel();
        let (allow, allowed) = mpsc::channel::<()>();
        let allowed = Mutex::new(allowed);
        let backend = Arc::new(Written::new(move |name: &str| {
            if name == "lane.commands.submitted" {
                arrived.send(()).unwrap();
                allowed.lock().unwrap().recv().unwrap();
            }
        }));
        let feed = Feed::new(Arc::clone(&backend) as Arc<dyn MetricsBackend>);
        feed.consume(&reading(1, vec![lane("a", 1)]));
        arrivals.recv().unwrap();
        for n in 2..=100 {
            feed.consume(&reading(n, vec![lane("a", n)]));
        }
        allow.send(()).unwrap();
        // Of the readings that came meanwhile, one.
        arrivals.recv().unwrap();
        allow.send(()).unwrap();
        drop(feed);
        while Arc::strong_count(&backend) > 1 {
            std::thread::yield_now();
        }
        assert!(arrivals.try_recv().is_err(), "another reading was told");
        assert_eq!(submitted(&backend.take(), "lane.commands.submitted.a"), 100);
    }

    #[test]
    fn the_thread_tells_the_last_reading_and_ends_with_its_owner() {
        let backend = Arc::new(Written::new(|_: &str| ()));
        let feed = Feed::new(Arc::clone(&backend) as Arc<dyn MetricsBackend>);
        feed.consume(&reading(1, vec![lane("a", 5)]));
        drop(feed);
        while Arc::strong_count(&backend) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(submitted(&backend.take(), "lane.commands.submitted.a"), 5);
    }

    #[test]
    fn a_restart_counts_from_there() {
        let feed = Feed::local();
        feed.consume(&reading(1, vec![lane("a", 5)]));
        block_on(async {
            assert_eq!(feed.backend().get_counter("lane.commands.submitted.a").await, Some(5));
            feed.restart(&reading(2, vec![lane("a", 7)])).await;
            assert_eq!(feed.backend().get_counter("lane.commands.submitted.a").await, None);
            feed.push(&reading(3, vec![lane("a", 8)])).await;
            assert_eq!(feed.backend().get_counter("lane.commands.submitted.a").await, Some(1));
        });
    }

    #[test]
    fn turns_are_taken_one_at_a_time_and_come_back_from_who_is_dropped() {
        let turns = Turns::<u64>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let mut turn = block_on(turns.take());
                        let before = *turn;
                        std::hint::black_box(&turn);
                        *turn = before + 1;
                    }
                });
            }
        });
        let turn = block_on(turns.take());
        assert_eq!(*turn, 4_000);
        assert!(turns.try_take().is_none());
        let mut waits = Box::pin(turns.take());
        assert!(block_on(poll_once(&mut waits)).is_none());
        drop(turn);
        drop(waits);
        assert!(turns.try_take().is_some());
    }
}
