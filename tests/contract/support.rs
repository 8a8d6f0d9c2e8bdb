//! What the tests share.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use corelane::{Command, EventEmitter, Executor, LaneConfig, QueueManager, QueueManagerBuilder, Result};

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

pub(crate) fn executor(workers: usize) -> Executor {
    Executor::builder().workers(workers).pin(false).build().unwrap()
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
