//! The executor: runs futures by priority on one pinned worker per CPU. It knows nothing of commands and lanes.
//!
//! | file | protocol |
//! |---|---|
//! | `task` | spawned future, its handle and metadata |
//! | `cell`, `state` | a future, its value and who waits for it, in one allocation |
//! | `memory`, `slab` | cells for the next tasks |
//! | `life` | how a task may end before its future stops |
//! | `worker` | what runs next; the loop of a worker thread |
//! | `lift` | tasks that stand on several run queues |
//! | `floor` | priorities that must not starve |
//! | `steal` | taking tasks from other workers, by priority |
//! | `ready` | masks: which priorities have work, and where |
//! | `park` | sleeping without missing work |
//! | `ambient` | another runtime's context around polls |
//! | `groups` | workers that are reserved for the best priorities |
//! | `wheel`, `timers`, `time` | timers, per worker |
//! | `waiting` | tasks that wait, to be ended when the executor closes |
//! | `watch` | attempts that block past their deadline |
//! | `shown` | what a worker polls, as the watch may see it |
//! | `stuck` | polls that do not end |
//! | `spare` | threads that run what waits behind such polls |
//! | `shared` | what the workers share, and when it is freed |

mod ambient;
pub(crate) mod cell;
mod floor;
pub(crate) mod groups;
pub(crate) mod life;
mod lift;
mod memory;
pub(crate) mod park;
pub(crate) mod ready;
mod shared;
pub(crate) mod shown;
mod slab;
mod spare;
pub(crate) mod state;
mod stats;
mod steal;
mod stuck;
mod task;
mod time;
mod timers;
mod topology;
mod waiting;
mod watch;
mod wheel;
mod worker;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, LazyLock};
use std::task::{Poll, Waker};
use std::time::Duration;

pub(crate) use ambient::{Ambient, within};
pub(crate) use lift::{lift, schedule_liftable};
pub(crate) use park::MAX_WORKERS;
pub(crate) use shown::{About, Record, Report, show_during};
pub use stats::{ShutdownReport, SpareStats, WorkerStats};
pub use task::{Cancel, Task, TaskError};
pub(crate) use task::{Handle, Home, Making, Runnable, TaskRef, Traits, discard_panic, panic_message};
pub use time::{Elapsed, Sleep, Timeout, sleep, timeout};
pub(crate) use time::{now, sleep_until};
pub(crate) use timers::TimerKey;
pub(crate) use topology::available_cpus;
pub(crate) use watch::expiring_waker;
pub(crate) use worker::Local;

use event_listener::Event;

use crate::clock::Clock;
use crate::error::ConfigErrors;
pub(crate) use shared::{Closing, Shape, Shared};
use shared::{PRIORITIES, Phase};

/// The worst priority; 0 is the best.
pub const LOWEST_PRIORITY: u8 = PRIORITIES as u8 - 1;

/// Runs futures by priority on its own worker threads.
///
/// A cheap handle: clones share the executor. Strict priority: a worker starts a task only when no better one is
/// visible anywhere, and equal priorities take turns in the order they became due. A poll is never interrupted, so a
/// task waits for at most the polls that run; use [`should_yield`] or [`yield_now`] in long ones.
///
/// Dropping the last handle closes the executor: polls that run finish, every other task is cancelled and its handle
/// says so. [`Executor::shutdown`] waits for tasks to finish instead.
///
/// ```
/// use corelane::Executor;
///
/// let executor = Executor::builder().workers(2).build()?;
/// let task = executor.spawn(0, async { 6 * 7 });
/// assert_eq!(executor.block_on(task)?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Executor {
    core: Arc<Core>,
}

/// What the handles share; dropped with the last of them.
struct Core {
    shared: &'static Shared,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.release();
    }
}

/// Configures an [`Executor`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ExecutorBuilder {
    workers: Option<usize>,
    pin: bool,
    reserved: (usize, u8),
    stuck_after: Option<Duration>,
    spares: Option<usize>,
}

/// Shorter polls are what polls are like, and to look for them costs more than it helps.
const STUCK_AFTER_MIN: Duration = Duration::from_millis(1);
const STUCK_AFTER: Duration = Duration::from_millis(10);

impl ExecutorBuilder {
    /// How many worker threads to start: 1 to 56. Default: one for each CPU that the process may use (its affinity mask
    /// and cgroup quota).
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Whether each worker is bound to a CPU. Default: true. Where the system refuses, or where there are more workers
    /// than CPUs or less CPU time than CPUs, workers run unbound.
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// How many of the workers run only tasks of `priority` or a better one (0 is the best). Default: none. Asked again, it
    /// replaces what was said before. At least one worker is left for the rest.
    ///
    /// A poll is never interrupted, so when all workers are in long ones, the best work waits for the first of them to end.
    /// With reserved workers it does not, unless those are all in polls of such work; then it goes to the others, too. The
    /// price is that the rest has fewer workers. Reserved workers have the highest numbers.
    ///
    /// ```
    /// use corelane::Executor;
    ///
    /// // Three workers for everything, one for priorities 0 and 1.
    /// let executor = Executor::builder().workers(4).reserve(1, 1).build()?;
    /// assert_eq!(executor.workers(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(mut self, workers: usize, priority: u8) -> Self {
        self.reserved = (workers, priority);
        self
    }

    /// When a poll counts as stuck. Default: 10 ms; at least 1 ms; `None`: never.
    ///
    /// A thread looks at the workers twice in this time while any of them is awake, and notices such a poll while it runs: it
    /// counts it ([`WorkerStats::stuck`]), tells of it ([`Transition::StuckPoll`](crate::Transition::StuckPoll), and a warning
    /// by `tracing`), wakes others for what waits behind it, and calls a spare thread if all workers are stuck.
    pub fn stuck_after(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.stuck_after = limit.into();
        self
    }

    /// How many spare threads may run tasks while every worker is stuck in a poll. Default: 1, or none beside 56 workers; 0:
    /// none. Workers and spares together are at most 56.
    ///
    /// A spare is started when it is first needed. It runs what waits, by priority, as a worker does, until a worker is free
    /// again; meanwhile more polls run at a time than there are workers. It is not bound to a CPU. Without
    /// [`stuck_after`](Self::stuck_after) none is ever called.
    pub fn spare_threads(mut self, spares: usize) -> Self {
        self.spares = Some(spares);
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// All problems of the configuration at once, or the system's refusal to start a thread.
    pub fn build(self) -> Result<Executor, ConfigErrors> {
        let workers = self.workers.unwrap_or_else(topology::default_workers);
        let room = park::MAX_WORKERS.saturating_sub(workers);
        let spares = self.spares.unwrap_or(room.min(1));
        let mut errors = ConfigErrors::default();
        if workers == 0 || workers > park::MAX_WORKERS {
            errors.push("workers", workers, format!("use 1 to {}", park::MAX_WORKERS));
        }
        let (reserved, worst) = self.reserved;
        if reserved > 0 && reserved >= workers {
            let most = workers.saturating_sub(1);
            errors.push("reserve.workers", reserved, format!("use at most {most}, to leave a worker for the rest"));
        }
        if worst > LOWEST_PRIORITY {
            errors.push("reserve.priority", worst, format!("use 0 (the best) to {LOWEST_PRIORITY}"));
        }
        if spares > room {
            errors.push(
                "spare_threads",
                spares,
                format!("use at most {room}: with the workers, {}", park::MAX_WORKERS),
            );
        }
        if let Some(limit) = self.stuck_after.filter(|limit| *limit < STUCK_AFTER_MIN) {
            errors.push("stuck_after", format!("{limit:?}"), format!("use at least {STUCK_AFTER_MIN:?}, or None"));
        }
        errors.into_result()?;
        let allowed = u64::MAX >> (LOWEST_PRIORITY - worst);
        let shape = Shape { workers, reserved, allowed, spares, stuck_after: self.stuck_after };
        let executor = Executor::without_threads(shape, Clock::system());
        if shape.stuck_after.is_some() {
            executor.shared().start_watch_ahead();
        }
        let cores = if self.pin { topology::plan(workers) } else { vec![None; workers] };
        for (index, core) in cores.into_iter().enumerate() {
            if let Err(error) = executor.start_worker(index, core) {
                let mut errors = ConfigErrors::default();
                errors.push("workers", workers, format!("worker thread {index} could not be started: {error}"));
                return Err(errors);
            }
        }
        Ok(executor)
    }
}

impl Executor {
    /// Closes the executor: polls that run finish, everything else is cancelled.
    pub(crate) fn close(&self) {
        self.shared().close();
    }

    /// Whether new tasks are run.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.shared().phase() == Phase::Open
    }

    /// Whether nothing runs any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared().phase() == Phase::Closed
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.shared().clock
    }

    /// As the free [`timeout`], with a timer of this executor wherever it is called.
    pub(crate) fn timeout<F: Future>(&self, duration: Duration, future: F) -> Timeout<F> {
        Timeout::on(self.shared(), duration, future)
    }

    /// Configures an executor of its own. Most programs want [`Executor::global`].
    pub fn builder() -> ExecutorBuilder {
        ExecutorBuilder { workers: None, pin: true, reserved: (0, 0), stuck_after: Some(STUCK_AFTER), spares: None }
    }

    /// The executor that the process shares, started at the first call and never closed unless asked to.
    ///
    /// # Panics
    ///
    /// If the system refuses to start a single thread.
    pub fn global() -> &'static Self {
        static GLOBAL: LazyLock<Executor> = LazyLock::new(|| {
            let built = Executor::builder().build().or_else(|error| {
                tracing::warn!(%error, "starting the global executor with one worker");
                Executor::builder().workers(1).pin(false).build()
            });
            built.expect("the system starts at least one thread")
        });
        &GLOBAL
    }

    /// Starts a task. `priority` 0 is the best, [`LOWEST_PRIORITY`] (63) the worst; larger numbers count as 63.
    ///
    /// On a closed executor the task is cancelled at once, as its handle says.
    pub fn spawn<F>(&self, priority: u8, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let shared = self.shared();
        let priority = priority.min(LOWEST_PRIORITY);
        let (runnable, task) = task::new(shared, Making::plain(priority), |_| future);
        self.schedule_new(runnable);
        task
    }

    /// Starts a task for one that runs on this executor: also while that drains, which then waits for both.
    pub(crate) fn spawn_from_task<F>(&self, priority: u8, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let priority = priority.min(LOWEST_PRIORITY);
        let (runnable, task) = task::new(self.shared(), Making::plain(priority), |_| future);
        if !self.is_closed() {
            self.shared().push_new(priority, runnable);
        }
        task
    }

    /// Makes a task that waits to be admitted: the caller keeps the runnable until it may run.
    #[inline]
    pub(crate) fn prepare<F>(&self, making: Making, make: impl FnOnce(TaskRef) -> F) -> (Runnable, Task<F::Output>)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        task::new(self.shared(), making, make)
    }

    /// The same, parked in its own cell.
    #[inline]
    pub(crate) fn prepare_parked<F>(&self, making: Making, make: impl FnOnce(TaskRef) -> F) -> (Handle, Task<F::Output>)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        task::new_parked(self.shared(), making, make)
    }

    /// Puts a new task on a run queue.
    #[inline]
    pub(crate) fn schedule_new(&self, runnable: Runnable) {
        if self.is_open() {
            // The handle keeps what is shared in memory.
            self.shared().push_new(runnable.metadata().priority(), runnable);
        }
    }

    /// Runs a future to its end on the calling thread, while tasks run on the workers.
    ///
    /// # Panics
    ///
    /// On a worker thread, which must not wait: its tasks would wait with it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let on_worker = Local::with_any(|local| local.is_some());
        assert!(!on_worker, "block_on on a worker thread would block its tasks; await the future instead");
        futures_lite::future::block_on(future)
    }

    /// Shuts the executor down: no new tasks, `limit` for those there are to finish, then the rest is cancelled.
    ///
    /// Returns when all tasks have finished and the worker threads have ended, or at the limit. Idempotent; also for
    /// [`Executor::global`], which then stays closed. Awaited by a task of this executor, it can not see that task
    /// finish and waits for the limit.
    pub async fn shutdown(&self, limit: Duration) -> ShutdownReport {
        let shared = self.shared();
        let begun = shared.clock.now();
        shared.enter_phase(Phase::Draining);
        let limit = Limit::new(limit);
        let finished = wait_until(shared, || shared.unfinished_tasks() == 0, &limit).await;
        let unfinished = if finished { 0 } else { shared.unfinished_tasks() };
        shared.close();
        let threads = || shared.threads.load(Ordering::Acquire);
        wait_until(shared, || threads() == 0, &limit).await;
        ShutdownReport { unfinished, busy_workers: threads(), waited: shared.clock.now().since(begun) }
    }

    /// What each worker has done. Spares: see [`Executor::spare_stats`].
    #[must_use]
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        let shared = self.shared();
        let now = shared.clock.stamp();
        shared.workers[..shared.regular].iter().map(|worker| worker.counters.stats(now)).collect()
    }

    /// What each spare thread has done; also for those that were never needed.
    #[must_use]
    pub fn spare_stats(&self) -> Vec<SpareStats> {
        let shared = self.shared();
        let now = shared.clock.stamp();
        let workers = shared.workers[shared.regular..].iter().map(|worker| worker.counters.stats(now));
        shared.spares.iter().zip(workers).map(|(spare, worker)| spare.stats(worker)).collect()
    }

    /// How many workers there are, without the spares.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.shared().regular
    }

    #[inline]
    pub(crate) fn shared(&self) -> &'static Shared {
        self.core.shared
    }

    pub(crate) fn without_threads(shape: Shape, clock: Clock) -> Self {
        task_graveyard_sweep();
        Self { core: Arc::new(Core { shared: Box::leak(Box::new(Shared::new(shape, clock))) }) }
    }

    fn start_worker(&self, index: usize, core: Option<core_affinity::CoreId>) -> std::io::Result<()> {
        start_thread(self.shared(), index, format!("corelane-{index}"), move |local| {
            if let Some(core) = core {
                topology::pin(core);
            }
            local.drive();
        })
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("workers", &self.workers()).finish_non_exhaustive()
    }
}

/// Puts a task that was admitted because another one ended on a run queue.
#[inline]
pub(crate) fn schedule_admitted(runnable: Runnable) {
    let meta = runnable.metadata();
    let (shared, priority) = (meta.shared, meta.priority());
    shared.push_admitted(priority, runnable);
}

/// Starts the thread of a worker or a spare. The caller keeps what is shared in memory until it is started.
fn start_thread(
    shared: &'static Shared,
    index: usize,
    name: String,
    run: impl FnOnce(&Local) + Send + 'static,
) -> std::io::Result<()> {
    shared.add_user();
    shared.threads.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let _ = shared.workers[index].thread.set(std::thread::current());
        shared.workers[index].counters.began.store(crate::clock::stamp(), Ordering::Relaxed);
        // ORDERING: pairs with the fence in `Shared::enter_phase`.
        fence(Ordering::SeqCst);
        run(&Local::new(shared, index, 0x9E37_79B9_7F4A_7C15 ^ (index as u64 + 1)));
        end_thread(shared);
    });
    thread.map(drop).inspect_err(|_| end_thread(shared))
}

fn end_thread(shared: &'static Shared) {
    if shared.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
        // ORDERING: pairs with the fence in `Shared::push_to`, see there.
        fence(Ordering::SeqCst);
        shared.drop_inboxes();
    }
    shared.changed.notify(usize::MAX);
    shared.release();
}

fn task_graveyard_sweep() {
    shared::retire(None);
}

/// Waits for a condition whose changes are notified, or for the limit; says whether the condition holds.
async fn wait_until(shared: &Shared, holds: impl Fn() -> bool, limit: &Limit) -> bool {
    let changed = async {
        loop {
            let listener = shared.changed.listen();
            if holds() {
                return true;
            }
            listener.await;
        }
    };
    let late = async {
        limit.passed().await;
        false
    };
    futures_lite::future::or(changed, late).await || holds()
}

/// A limit in time that does not depend on the executor that is ending: a thread sleeps. Shutting down happens once.
struct Limit {
    passed: Arc<(AtomicBool, Event)>,
    /// None if the system has no thread for it: then there is no telling when the limit has passed, so it has.
    thread: Option<std::thread::Thread>,
}

impl Limit {
    fn new(limit: Duration) -> Self {
        let passed = Arc::new((AtomicBool::new(false), Event::new()));
        let passing = Arc::clone(&passed);
        let thread = std::thread::Builder::new().name("corelane-limit".into()).spawn(move || {
            std::thread::park_timeout(limit);
            passing.0.store(true, Ordering::Release);
            passing.1.notify(usize::MAX);
        });
        Self { passed, thread: thread.ok().map(|thread| thread.thread().clone()) }
    }

    async fn passed(&self) {
        while self.thread.is_some() {
            let listener = self.passed.1.listen();
            if self.passed.0.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }
}

impl Drop for Limit {
    /// Lets the thread go.
    fn drop(&mut self) {
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// Gives other tasks of the same or better priority a turn: reschedules the calling task behind those that are due.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether better work waits than the task that asks; then call [`yield_now`] soon. Costs two or three loads; always
/// false outside of a worker. A true may be out of date, a false is out of date for at most one dispatch.
#[must_use]
pub fn should_yield() -> bool {
    Local::with_any(|local| local.is_some_and(Local::should_yield))
}

/// Wakers are others' code, whose panic must not end a worker.
fn wake_contained(waker: Waker) {
    contained(|| waker.wake());
}

fn contained(waking: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(waking)) {
        tracing::error!(panic = panic_message(payload.as_ref()), "a waker panicked on a worker; contained");
        discard_panic(payload);
    }
}

#[cfg(all(test, not(corelane_loom), not(miri)))]
mod tests {
    use futures::channel::oneshot;
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn a_task_starts_another_one_while_the_executor_drains() {
        let executor = Executor::builder().workers(2).pin(false).build().expect("two workers");
        let (draining, drains) = oneshot::channel();
        let first = executor.spawn(0, {
            let executor = executor.clone();
            async move {
                drains.await.expect("it is told");
                assert!(!executor.is_open());
                let from_outside = executor.spawn(0, async {});
                let from_task = executor.spawn_from_task(0, yield_now());
                (from_outside.await.is_err(), from_task.await.is_ok())
            }
        });
        let shutdown = std::thread::spawn({
            let executor = executor.clone();
            move || block_on(executor.shutdown(Duration::from_secs(60)))
        });
        while executor.is_open() {
            std::thread::yield_now();
        }
        draining.send(()).expect("it waits");
        assert_eq!(block_on(first).expect("it runs to its end"), (true, true));
        assert_eq!(shutdown.join().expect("it returns").unfinished, 0);
        let late = executor.spawn_from_task(0, async {});
        assert!(block_on(late).is_err(), "on a closed executor nothing runs");
    }
}
