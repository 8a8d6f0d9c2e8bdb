//! From idle to running: a task is given to workers that all sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;

use crate::cast::Cast;
use crate::measure::{Contender, Unit, Workload};
use crate::results::{Role, quantiles};
use crate::runtimes::Runtime;

pub struct Wake {
    pub rounds: usize,
}

/// After which a worker sleeps, whatever it does before.
const QUIET: Duration = Duration::from_millis(1);

pub const P50: &str = "p50";
pub const BARE: &str = "a bare thread";

const FIGURES: &[(&str, Unit)] = &[(P50, "us"), ("p90", "us"), ("p99", "us")];

impl Workload for Wake {
    fn name(&self) -> String {
        "wake/idle".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "from right before a thread spawns a task to the task's first instruction, when nothing has run for {} ms; {} times \
             in a run. A bare thread: from right before `unpark` to the first instruction after `park`",
            QUIET.as_millis(),
            self.rounds
        )
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        FIGURES
    }

    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let rounds = self.rounds;
        fn task<R: Runtime>(name: &'static str, role: Role, on: R, rounds: usize) -> Contender {
            Contender::new(name, role, move || measure(rounds, || block_on(on.spawn(async { Instant::now() }))))
        }
        let bare = BareThread::start();
        vec![
            task("corelane", Role::Ours, cast.corelane(), rounds),
            task("corelane, not pinned", Role::Ours, cast.corelane_unpinned(), rounds),
            task("tokio", Role::Peer, cast.tokio(), rounds),
            task("async-executor", Role::Peer, cast.smol(), rounds),
            Contender::new(BARE, Role::Reference, move || measure(rounds, || bare.wake())),
        ]
    }
}

/// `wake` says when what it woke ran.
fn measure(rounds: usize, wake: impl Fn() -> Instant) -> Vec<f64> {
    let round = |_| {
        thread::sleep(QUIET);
        let begun = Instant::now();
        (wake() - begun).as_nanos() as f64 / 1e3
    };
    let mut took: Vec<f64> = (0..rounds).map(round).collect();
    let at = quantiles(&mut took);
    vec![at(0.5), at(0.9), at(0.99)]
}

/// A thread that does nothing but be woken and say when.
struct BareThread {
    thread: thread::Thread,
    ring: Arc<AtomicBool>,
    answers: std::sync::mpsc::Receiver<Instant>,
}

impl BareThread {
    fn start() -> Self {
        let ring = Arc::new(AtomicBool::new(false));
        let (answer, answers) = std::sync::mpsc::channel();
        let rung = Arc::clone(&ring);
        let thread = thread::spawn(move || {
            loop {
                while !rung.swap(false, Ordering::Acquire) {
                    thread::park();
                }
                if answer.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Self { thread: thread.thread().clone(), ring, answers }
    }

    fn wake(&self) -> Instant {
        self.ring.store(true, Ordering::Release);
        self.thread.unpark();
        self.answers.recv().expect("the thread answers")
    }
}

impl Drop for BareThread {
    fn drop(&mut self) {
        // Its answer then finds nobody, and it ends.
        self.answers = std::sync::mpsc::channel().1;
        self.ring.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
