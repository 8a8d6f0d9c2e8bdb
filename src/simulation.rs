//! The real scheduler on one thread, in virtual time, in an order that a seed decides: for tests.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::executor::{Executor, Local, Shape};

/// Runs an [`Executor`] without threads: the same queues, choices and timers, one step at a time.
///
/// Time stands still until [`Simulation::advance`], or until [`Simulation::block_on`] has nothing else to do, and then
/// jumps to the next timer. The same seed gives the same run, as long as the code under test asks nothing else for time,
/// order or chance.
///
/// ```
/// use std::time::Duration;
/// use corelane::{Simulation, sleep};
///
/// let mut simulation = Simulation::new(2, 7);
/// let task = simulation.executor().spawn(0, async {
///     sleep(Duration::from_secs(3600)).await;
///     "an hour later"
/// });
/// assert_eq!(simulation.block_on(task)?, "an hour later");
/// assert!(simulation.now() >= Duration::from_secs(3600));
/// # Ok::<(), corelane::TaskError>(())
/// ```
pub struct Simulation {
    executor: Executor,
    workers: Vec<Local>,
    random: u64,
    seed: u64,
}

impl Simulation {
    /// A simulation of `workers` workers (1 to 56; others are clamped).
    #[must_use]
    pub fn new(workers: usize, seed: u64) -> Self {
        let workers = workers.clamp(1, crate::executor::MAX_WORKERS);
        let executor = Executor::without_threads(Shape::plain(workers), Clock::virtual_time());
        let shared = executor.shared();
        let workers = (0..workers).map(|index| Local::new(shared, index, seed.wrapping_add(index as u64))).collect();
        Self { executor, workers, random: seed ^ 0x9E37_79B9_7F4A_7C15 | 1, seed }
    }

    /// The executor, for [`QueueManagerBuilder::with_executor`](crate::QueueManagerBuilder::with_executor) and
    /// [`Executor::spawn`].
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.executor.shared().clock.now().since(Tick::from_nanos(0))
    }

    /// Has one worker, chosen by the seed, poll one task. False if no worker has any.
    pub fn step(&mut self) -> bool {
        let first = self.next_random() as usize % self.workers.len();
        (0..self.workers.len()).any(|i| {
            let worker = &self.workers[(first + i) % self.workers.len()];
            let _entered = worker.enter();
            worker.fire_timers();
            worker.next_task().map(|task| worker.run(task)).is_some()
        })
    }

    /// Polls until nothing is due at this time; returns how many polls that took.
    pub fn run_until_idle(&mut self) -> usize {
        std::iter::from_fn(|| self.step().then_some(())).count()
    }

    /// Moves time on by `duration`, timer by timer, running what becomes due at each.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.executor.shared().clock.now().plus(duration);
        self.run_until_idle();
        while let Some(next) = self.next_timer().filter(|next| *next <= end) {
            self.executor.shared().clock.advance_to(next);
            self.run_until_idle();
        }
        self.executor.shared().clock.advance_to(end);
        self.run_until_idle();
    }

    /// Runs until `future` is ready, moving time on when nothing else is left to do.
    ///
    /// # Panics
    ///
    /// If it can never be ready: no task is due and no timer is set. The message has the seed.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker: Waker = Arc::clone(&woken).into();
        let mut future = pin!(future);
        loop {
            if woken.0.swap(false, Ordering::AcqRel) {
                // As a worker, so that what it sleeps and spawns is part of the simulation.
                let _entered = self.workers[0].enter();
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return output;
                }
            }
            // A step without a task may still have fired the timer that this waits for.
            if woken.0.load(Ordering::Acquire) || self.step() || woken.0.load(Ordering::Acquire) {
                continue;
            }
            let Some(next) = self.next_timer() else {
                panic!("simulation with seed {} is stuck: no task is due and no timer is set", self.seed);
            };
            self.executor.shared().clock.advance_to(next);
        }
    }

    /// The next deadline that is not due yet; none if none will ever come.
    fn next_timer(&self) -> Option<Tick> {
        let now = self.executor.shared().clock.now();
        self.executor
            .shared()
            .workers
            .iter()
            .filter_map(|worker| worker.timers.next_deadline())
            .filter(|next| *next > now)
            .min()
    }

    fn next_random(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        {
            // As a worker, so that what this wakes is queued, and not dropped under a lock of whoever wakes it.
            let _entered = self.workers[0].enter();
            self.executor.close();
        }
        for worker in &self.workers {
            let _entered = worker.enter();
            worker.drop_queued();
        }
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.seed).field("now", &self.now()).finish_non_exhaustive()
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
