//! What the workloads of tasks share: everyone who runs futures, and rayon.

use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;

use crate::cast::Cast;
use crate::measure::Contender;
use crate::results::Role;
use crate::runtimes::Runtime;

/// Work that every runtime does in the same way.
pub trait Job: Clone + 'static {
    /// How many operations a run does.
    fn operations(&self) -> u64;

    /// Does all of them once and checks that they were done. Work that starts on a worker is timed there, so that waking it
    /// from outside is no part of it.
    fn run<R: Runtime>(&self, on: &R) -> Duration;
}

fn contender<R: Runtime>(name: &'static str, role: Role, on: R, job: &impl Job) -> Contender {
    let job = job.clone();
    Contender::timed(name, role, job.operations(), move || job.run(&on))
}

/// corelane and tokio, which also have timers.
pub fn with_timers(cast: &Cast, job: &impl Job) -> Vec<Contender> {
    vec![
        contender("corelane", Role::Ours, cast.corelane(), job),
        contender("corelane, not pinned", Role::Ours, cast.corelane_unpinned(), job),
        contender("tokio", Role::Peer, cast.tokio(), job),
    ]
}

/// All that run futures.
pub fn everyone(cast: &Cast, job: &impl Job) -> Vec<Contender> {
    let mut all = with_timers(cast, job);
    all.push(contender("async-executor", Role::Peer, cast.smol(), job));
    all.push(contender("async-executor, static", Role::Reference, cast.smol_static(), job));
    all
}

/// Closures instead of futures, and nothing to await.
pub fn rayon(
    cast: &Cast,
    operations: u64,
    mut run: impl FnMut(&'static rayon::ThreadPool) -> Duration + 'static,
) -> Contender {
    let pool = cast.rayon();
    Contender::timed("rayon, no handles", Role::Reference, operations, move || run(pool))
}

/// Runs `work` as a task and says how long it took there.
pub fn timed_on_a_worker<R: Runtime>(on: &R, work: impl Future<Output = ()> + Send + 'static) -> Duration {
    block_on(on.spawn(async move {
        let begun = Instant::now();
        work.await;
        begun.elapsed()
    }))
}

/// Tasks that return their number.
pub fn spawn_all<R: Runtime>(on: &R, tasks: u64) -> Vec<R::Join<u64>> {
    (0..tasks).map(|i| on.spawn(async move { black_box(i) })).collect()
}

/// Awaits what [`spawn_all`] gave.
pub async fn join_all<J: Future<Output = u64>>(tasks: Vec<J>) {
    let count = tasks.len() as u64;
    let mut sum = 0;
    for task in tasks {
        sum += task.await;
    }
    assert_eq!(sum, sum_below(count));
}

pub fn sum_below(count: u64) -> u64 {
    count * (count - 1) / 2
}

/// Counts rayon's jobs: the last one says when it was done.
pub struct Latch {
    left: AtomicU64,
    sum: AtomicU64,
    done: std::sync::mpsc::Sender<(Instant, u64)>,
}

/// The other end of a [`Latch`].
pub struct Ended(std::sync::mpsc::Receiver<(Instant, u64)>);

impl Latch {
    pub fn new(jobs: u64) -> (Arc<Self>, Ended) {
        let (done, ended) = std::sync::mpsc::channel();
        (Arc::new(Self { left: AtomicU64::new(jobs), sum: AtomicU64::new(0), done }), Ended(ended))
    }

    /// A job that is counted.
    pub fn job(self: &Arc<Self>, i: u64) -> impl FnOnce() + Send + use<> {
        let latch = Arc::clone(self);
        move || latch.count(black_box(i))
    }

    fn count(&self, i: u64) {
        self.sum.fetch_add(i, Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.send((Instant::now(), self.sum.load(Ordering::Relaxed))).expect("the end is awaited");
        }
    }
}

impl Ended {
    /// When the last job was done. The jobs' numbers must add up to `sum`.
    pub fn wait(&self, sum: u64) -> Instant {
        let (ended, found) = self.0.recv().expect("the last job says so");
        assert_eq!(found, sum);
        ended
    }
}
