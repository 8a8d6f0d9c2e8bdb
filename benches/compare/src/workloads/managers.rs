//! What idle queues cost. For the binary whose allocator counts.

use std::thread;
use std::time::Duration;

use corelane::{EventEmitter, Executor, QueueManagerBuilder};
use futures_lite::future::block_on;

use crate::cast::Cast;
use crate::counting::Count;
use crate::machine::Threads;
use crate::measure::{Contender, Unit, Workload};
use crate::results::Role;

pub struct Managers {
    pub ours: usize,
    /// Of a3s-lane, each of which polls.
    pub peers: usize,
    /// How long their idling is watched.
    pub watch: Duration,
}

pub const KIB: &str = "memory";
pub const THREADS: &str = "threads";
pub const WAKE_UPS: &str = "wake-ups";

const FIGURES: &[(&str, Unit)] =
    &[(KIB, "KiB each"), (THREADS, "more"), (WAKE_UPS, "per second"), ("CPU time", "ms per second")];

/// Until everything that starting caused is over.
const SETTLE: Duration = Duration::from_millis(300);

impl Workload for Managers {
    fn name(&self) -> String {
        "managers/idle".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "{} queue managers with the six default lanes, started, without work ({} of a3s-lane): the memory of each, the \
             threads they add, and how often the process's threads wake up and how long they compute, in all",
            self.ours, self.peers
        )
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        FIGURES
    }

    fn max_repeats(&self) -> usize {
        3
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let &Self { ours, peers, watch } = self;
        let workers = cast.workers;
        let executor = cast.corelane().0;
        vec![
            Contender::new("corelane", Role::Ours, move || measure(ours, watch, || manager(&executor))),
            Contender::new("a3s-lane 0.5.1", Role::Peer, move || {
                let runtime = runtime(workers);
                measure(peers, watch, || {
                    runtime.block_on(async {
                        let builder = a3s_lane_05::QueueManagerBuilder::new(a3s_lane_05::EventEmitter::new(100));
                        let manager = builder.with_default_lanes().build().await.expect("the lanes are usable");
                        manager.start().await.expect("a new queue can be started");
                        manager
                    })
                })
            }),
            Contender::new("a3s-lane 0.2.1", Role::Peer, move || {
                let runtime = runtime(workers);
                measure(peers, watch, || {
                    runtime.block_on(async {
                        let builder = a3s_lane_02::QueueManagerBuilder::new(a3s_lane_02::EventEmitter::new(100));
                        let manager = builder.with_default_lanes().build().await.expect("the lanes are usable");
                        manager.start().await.expect("a new queue can be started");
                        manager
                    })
                })
            }),
        ]
    }
}

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("threads can be started")
}

fn manager(executor: &Executor) -> corelane::QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
    block_on(async {
        let manager = builder.with_default_lanes().build().await.expect("the lanes are usable");
        manager.start().await.expect("a new queue can be started");
        manager
    })
}

fn measure<M>(count: usize, watch: Duration, make: impl Fn() -> M) -> Vec<f64> {
    let mut managers = Vec::with_capacity(count);
    let (threads, memory) = (Threads::now(), Count::now());
    managers.extend((0..count).map(|_| make()));
    thread::sleep(SETTLE);
    let kib = Count::now().bytes_each(memory, count as u64) / 1024.0;
    let idle = Threads::now();
    thread::sleep(watch);
    let later = Threads::now();
    drop(managers);
    let seconds = watch.as_secs_f64();
    let more = idle.count as f64 - threads.count as f64;
    let wake_ups = later.sleeps.saturating_sub(idle.sleeps) as f64 / seconds;
    let ms = later.cpu_ns.saturating_sub(idle.cpu_ns) as f64 / 1e6 / seconds;
    vec![kib, more, wake_ups, ms]
}
