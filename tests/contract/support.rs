//! What the tests share.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use corelane::{
    Command, CommandContext, EventEmitter, EventStream, Executor, Lane, LaneConfig, LaneEvent, LaneStatus,
    QueueManager, QueueManagerBuilder, Result, Simulation, Ticket, Transition, TypedCommand,
};
use futures::FutureExt;

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    futures::executor::block_on(future)
}

/// Runs a test on executors of 1, 2 and 4 workers.
pub(crate) fn on_workers(test: impl Fn(&Executor)) {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        test(&executor);
    }
}

/// Without spares: a test that blocks the workers to hold work back wants it held back, however long that takes.
pub(crate) fn executor(workers: usize) -> Executor {
    Executor::builder().workers(workers).pin(false).spare_threads(0).build().unwrap()
}

/// A started manager with the given lanes.
pub(crate) fn manager(executor: &Executor, lanes: &[(&str, LaneConfig, u8)]) -> QueueManager {
    let manager = unstarted(executor, lanes);
    block_on(manager.start()).unwrap();
    manager
}

pub(crate) fn unstarted(executor: &Executor, lanes: &[(&str, LaneConfig, u8)]) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1000)).with_executor(executor.clone());
    let builder =
        lanes.iter().fold(builder, |builder, (id, config, priority)| builder.with_lane(*id, config.clone(), *priority));
    block_on(builder.build()).unwrap()
}

/// A command of the seed's kind around a closure.
pub(crate) struct Do<F>(pub(crate) F);

#[async_trait::async_trait]
impl<F, Fut> Command for Do<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = Result<serde_json::Value>> + Send,
{
    async fn execute(&self) -> Result<serde_json::Value> {
        (self.0)().await
    }

    fn command_type(&self) -> &str {
        "do"
    }
}

/// A typed command around a closure, which may run more than once.
pub(crate) struct Work<F>(pub(crate) F);

impl<F, Fut, T> TypedCommand for Work<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T>> + Send,
    T: Send + 'static,
{
    type Output = T;

    async fn execute(&self) -> Result<T> {
        (self.0)().await
    }

    fn command_type(&self) -> &str {
        "work"
    }
}

/// Lanes in virtual time, whose commands can ask what time it is.
pub(crate) struct World {
    simulation: Simulation,
    now: Clock,
}

impl World {
    pub(crate) fn new(workers: usize, seed: u64) -> Self {
        Self { simulation: Simulation::new(workers, seed), now: Clock::default() }
    }

    /// Runs a test on 1, 2 and 4 workers.
    pub(crate) fn each(test: impl Fn(Self)) {
        for workers in [1, 2, 4] {
            test(Self::new(workers, workers as u64));
        }
    }

    pub(crate) fn executor(&self) -> &Executor {
        self.simulation.executor()
    }

    pub(crate) fn simulation(&mut self) -> &mut Simulation {
        &mut self.simulation
    }

    pub(crate) fn clock(&self) -> Clock {
        self.now.clone()
    }

    pub(crate) fn manager(&self, lanes: &[(&str, LaneConfig, u8)]) -> QueueManager {
        manager(self.executor(), lanes)
    }

    /// Moves time on, a millisecond at a time, and so far beyond that what is due then has happened.
    pub(crate) fn advance(&mut self, milliseconds: u64) {
        let end = self.simulation.now() + Duration::from_millis(milliseconds) + TIMER_SLACK;
        self.simulation.run_until_idle();
        loop {
            let now = self.simulation.now();
            let next = Duration::from_millis(now.as_millis() as u64 + 1);
            if next > end {
                return self.simulation.advance(end - now);
            }
            // Up to the end of this millisecond, by the time that commands see, and into the next one.
            let instant = Duration::from_nanos(1);
            self.simulation.advance((next - now).saturating_sub(instant));
            self.now.0.store(next.as_millis() as u64, Ordering::SeqCst);
            self.simulation.advance(instant);
        }
    }

    /// Moves time on in one go: commands see what time it is afterwards.
    pub(crate) fn jump(&mut self, duration: Duration) {
        self.simulation.advance(duration + TIMER_SLACK);
        self.now.0.store(self.simulation.now().as_millis() as u64, Ordering::SeqCst);
    }

    pub(crate) fn run_until_idle(&mut self) {
        self.simulation.run_until_idle();
    }
}

/// Timers may be late by as much as their resolution.
const TIMER_SLACK: Duration = Duration::from_micros(70);

/// The time of a [`World`], in milliseconds.
#[derive(Clone, Default)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happened, and when.
#[derive(Clone)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn push(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    pub(crate) fn entries(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

/// Which attempt of the current command runs.
pub(crate) fn attempt() -> u32 {
    CommandContext::current().expect("called by a command").attempt
}

/// The result of a command that has settled.
pub(crate) fn result<T>(ticket: &mut Ticket<T>) -> Result<T> {
    assert!(ticket.is_finished(), "the command has not settled");
    ticket.now_or_never().expect("it is finished").expect("it was not dropped")
}

pub(crate) fn status(manager: &QueueManager, lane: &str) -> LaneStatus {
    block_on(lane_of(manager, lane).status())
}

pub(crate) fn lane_of(manager: &QueueManager, lane: &str) -> Lane {
    manager.lane(lane).expect("the lane is registered")
}

/// Asserts that nothing waits and nothing runs.
pub(crate) fn assert_idle(manager: &QueueManager) {
    let stats = manager.queue().stats();
    assert_eq!((stats.total_pending, stats.total_active), (0, 0), "{stats:?}");
}

/// The events that are there.
pub(crate) fn drain_events(events: &mut EventStream) -> Vec<LaneEvent> {
    std::iter::from_fn(|| events.recv().now_or_never().flatten()).collect()
}

/// The same in their typed form.
pub(crate) fn transitions(events: &mut EventStream) -> Vec<Transition> {
    drain_events(events).iter().filter_map(|event| event.transition().cloned()).collect()
}

/// Waits for something that only a hang keeps from happening.
pub(crate) fn finish<F: Future>(what: &str, future: F) -> F::Output {
    // On timers of another executor: those of the one under test may be what hangs.
    block_on(corelane::timeout(HANG, future)).unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// Holds threads or tasks back until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Barrier(Arc<(Mutex<bool>, Condvar, event_listener::Event)>);

impl Barrier {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
        self.0.2.notify(usize::MAX);
    }

    /// Blocks the thread.
    pub(crate) fn wait(&self) {
        let (open, opened, _) = &*self.0;
        let open = opened.wait_timeout_while(open.lock().unwrap(), HANG, |open| !*open).unwrap();
        assert!(*open.0, "the barrier was never opened");
    }

    /// Waits without blocking.
    pub(crate) async fn passed(&self) {
        loop {
            let listener = self.0.2.listen();
            if *self.0.0.lock().unwrap() {
                return;
            }
            listener.await;
        }
    }
}

/// Counts what runs at the same time.
#[derive(Clone, Default)]
pub(crate) struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);

impl Gauge {
    pub(crate) fn enter(&self) -> Inside {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
        Inside(self.clone())
    }

    pub(crate) fn highest(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    pub(crate) fn now(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }
}

pub(crate) struct Inside(Gauge);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for a condition that other threads bring about and nobody announces.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < HANG, "never: {what}");
        std::thread::yield_now();
    }
}

/// A folder that goes with its test.
#[cfg(feature = "redb")]
pub(crate) struct Place(std::path::PathBuf);

#[cfg(feature = "redb")]
impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("corelane-{name}-{}", std::process::id()));
        _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

#[cfg(feature = "redb")]
impl Drop for Place {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
