//! How long the control lane waits while a low lane is full: an open loop, whose commands are due at times that do not depend
//! on how the earlier ones fare.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corelane::{Executor, LaneConfig};
use futures_lite::future::block_on;

use super::commands::A3s;
use super::spin;
use crate::cast::Cast;
use crate::measure::{Contender, Unit, Workload};
use crate::results::{Role, quantiles};
use crate::runtimes::{Runtime, Tokio};

/// Control commands, one after the other at random times, while low commands that compute for `length` are queued.
#[derive(Clone, Copy)]
pub struct Control {
    pub length: Duration,
    /// Low commands that are queued before the first starts.
    pub low: u64,
    /// The same for a3s-lane, which starts about 100,000 a second.
    pub a3s_low: u64,
    /// Control commands are submitted for this long, or until the low lane is nearly empty.
    pub window: Duration,
}

/// Between two control commands: times from an exponential distribution.
const MEAN_INTERVAL: Duration = Duration::from_micros(500);

/// The priority of the control lane.
const CONTROL: corelane::Priority = 1;

/// Before a command is due, its submitter stops sleeping and looks at the clock.
const AWAKE: Duration = Duration::from_micros(80);

/// To have a low lane that is never empty.
const ATTEMPTS: usize = 3;

/// Of the control lane, as by default; and of the low one.
const CONTROL_AT_ONCE: usize = 3;
const LOW_AT_ONCE: usize = 100;

pub const FROM_DUE_P99: &str = "p99 from due";
pub const FROM_SUBMIT_P99: &str = "p99 from submit";
pub const INVERSIONS: &str = "inversions";

const FIGURES: &[(&str, Unit)] = &[
    (FROM_DUE_P99, "us"),
    ("p50 from due", "us"),
    ("p99.9 from due", "us"),
    ("p50 from submit", "us"),
    (FROM_SUBMIT_P99, "us"),
    ("p99.9 from submit", "us"),
    ("p50 of submitting", "us"),
    (INVERSIONS, "mean"),
    ("inversions", "most"),
];

impl Workload for Control {
    fn name(&self) -> String {
        format!("control/{}us", self.length.as_micros())
    }

    fn what(&self) -> String {
        format!(
            "the time until a control command starts, while {} low commands of {} us are queued ({} for a3s-lane); they are due \
             at random times, {} us apart on average. Inversions: low commands, of all workers, that start after the control \
             command's submission has returned and before it starts. tokio has one queue for both",
            self.low,
            self.length.as_micros(),
            self.a3s_low,
            MEAN_INTERVAL.as_micros()
        )
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        FIGURES
    }

    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let Self { low, a3s_low, .. } = *self;
        let workers = cast.workers;
        // One worker more, of which the control lane is sure.
        let reserved = Executor::builder().workers(workers + 1).pin(false).reserve(1, CONTROL);
        let reserved = reserved.build().expect("threads can be started");
        vec![
            self.contender("corelane", Role::Ours, low, Lanes { executor: cast.corelane().0 }),
            self.contender("corelane, a reserved worker more", Role::Ours, low, Lanes { executor: reserved }),
            self.contender("tokio, one queue", Role::Peer, low, OneQueue { tokio: cast.tokio(), workers }),
            self.contender("a3s-lane 0.5.1", Role::Peer, a3s_low, A3sLanes { workers }),
        ]
    }
}

impl Control {
    fn contender<Q: Queues>(&self, name: &'static str, role: Role, low: u64, queues: Q) -> Contender {
        let Self { length, window, .. } = *self;
        // Commands refer to it without counting, which would cost them more than all else here.
        let load: &'static Load = Box::leak(Box::new(Load::new(length, window)));
        Contender::new(name, role, move || load.run(&queues, low, window))
    }
}

/// Who takes low and control commands. All of them run [`Load::low`] and [`Load::control`].
trait Queues: 'static {
    type Full;

    /// Queues so many low commands, none of which starts before [`Queues::release`].
    fn fill(&self, low: u64, load: &'static Load) -> Self::Full;

    fn release(full: &mut Self::Full);

    /// Submits a control command; nobody awaits it.
    fn submit(full: &Self::Full, load: &'static Load, number: usize);

    /// Called when all commands have started.
    fn end(full: Self::Full);
}

/// What the commands of a run share.
struct Load {
    length: Duration,
    epoch: Instant,
    low_started: AtomicU64,
    control_started: AtomicU64,
    /// Low commands then do nothing: the rest of them need not be waited for.
    over: AtomicBool,
    control: Box<[Started]>,
}

/// Of a control command.
#[derive(Default)]
struct Started {
    /// Nanoseconds since the epoch.
    at: AtomicU64,
    /// How many low commands had started.
    low: AtomicU64,
}

/// What the submitter knows of a control command.
struct Submitted {
    due: u64,
    at: u64,
    /// When the submission had returned.
    returned: u64,
    /// How many low commands had started then.
    low: u64,
}

impl Load {
    fn new(length: Duration, window: Duration) -> Self {
        let most = (window.as_nanos() / MEAN_INTERVAL.as_nanos() * 2).max(100) as usize;
        Self {
            length,
            epoch: Instant::now(),
            low_started: AtomicU64::new(0),
            control_started: AtomicU64::new(0),
            over: AtomicBool::new(false),
            control: (0..most).map(|_| Started::default()).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn low(&self) {
        self.low_started.fetch_add(1, Ordering::SeqCst);
        if !self.over.load(Ordering::Relaxed) {
            spin(self.length);
        }
    }

    fn control(&self, number: usize) {
        let started = &self.control[number];
        started.low.store(self.low_started.load(Ordering::SeqCst), Ordering::Relaxed);
        started.at.store(self.now(), Ordering::Relaxed);
        self.control_started.fetch_add(1, Ordering::Release);
    }

    /// Gives the figures of a run in which the low lane was never empty: a submitter that the system keeps waiting for long
    /// may find it so.
    fn run<Q: Queues>(&'static self, queues: &Q, low: u64, window: Duration) -> Vec<f64> {
        let figures = (0..ATTEMPTS).find_map(|_| self.attempt(queues, low, window));
        figures.expect("the low lane lasts longer than the control commands")
    }

    fn attempt<Q: Queues>(&'static self, queues: &Q, low: u64, window: Duration) -> Option<Vec<f64>> {
        self.low_started.store(0, Ordering::Relaxed);
        self.control_started.store(0, Ordering::Relaxed);
        self.over.store(false, Ordering::Relaxed);
        let mut full = queues.fill(low, self);
        assert_eq!(self.low_started.load(Ordering::SeqCst), 0, "no low command starts before all are queued");
        Q::release(&mut full);

        let submitted = self.submit::<Q>(&full, low, window);
        let left = low - self.low_started.load(Ordering::SeqCst);
        self.over.store(true, Ordering::Relaxed);
        let controls = submitted.len() as u64;
        while self.low_started.load(Ordering::SeqCst) < low || self.control_started.load(Ordering::Acquire) < controls {
            thread::sleep(Duration::from_millis(1));
        }
        Q::end(full);
        (left > 0).then(|| self.evaluate(&submitted))
    }

    fn submit<Q: Queues>(&'static self, full: &Q::Full, low: u64, window: Duration) -> Vec<Submitted> {
        let mut random = Exponential(0x9E37_79B9_7F4A_7C15);
        let mut submitted = Vec::with_capacity(self.control.len());
        let begun = self.now();
        let mut due = begun;
        while submitted.len() < self.control.len() {
            due += random.next(MEAN_INTERVAL);
            let nearly_empty = self.low_started.load(Ordering::Relaxed) > low - low / 10;
            if due - begun > window.as_nanos() as u64 || nearly_empty {
                break;
            }
            self.wait_until(due);
            let at = self.now();
            Q::submit(full, self, submitted.len());
            let low = self.low_started.load(Ordering::SeqCst);
            submitted.push(Submitted { due, at, returned: self.now(), low });
        }
        assert!(!submitted.is_empty(), "at least one control command is due while the low lane is full");
        submitted
    }

    fn wait_until(&self, due: u64) {
        let left = Duration::from_nanos(due.saturating_sub(self.now()));
        if left > AWAKE {
            thread::sleep(left - AWAKE);
        }
        while self.now() < due {
            std::hint::spin_loop();
        }
    }

    fn evaluate(&self, submitted: &[Submitted]) -> Vec<f64> {
        let started = || submitted.iter().zip(&self.control);
        let us_since = |from: fn(&Submitted) -> u64| -> Vec<f64> {
            let since = |(submitted, started): (&Submitted, &Started)| {
                started.at.load(Ordering::Relaxed).saturating_sub(from(submitted)) as f64 / 1e3
            };
            started().map(since).collect()
        };
        let (mut from_due, mut from_submit) = (us_since(|it| it.due), us_since(|it| it.at));
        let mut submitting: Vec<_> = submitted.iter().map(|it| (it.returned - it.at) as f64 / 1e3).collect();
        // None, if it has started before its submission has returned.
        let inversions = |(submitted, started): (&Submitted, &Started)| {
            started.low.load(Ordering::Relaxed).saturating_sub(submitted.low)
        };
        let inversions: Vec<u64> = started().map(inversions).collect();
        let submitting = quantiles(&mut submitting)(0.5);
        let (due, submit) = (quantiles(&mut from_due), quantiles(&mut from_submit));
        let mean = inversions.iter().sum::<u64>() as f64 / inversions.len() as f64;
        let most = inversions.iter().max().map_or(0.0, |&most| most as f64);
        vec![due(0.99), due(0.5), due(0.999), submit(0.5), submit(0.99), submit(0.999), submitting, mean, most]
    }
}

/// The same times for everyone and in every run.
struct Exponential(u64);

impl Exponential {
    fn next(&mut self, mean: Duration) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let uniform = ((self.0 >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        (-uniform.ln() * mean.as_nanos() as f64) as u64
    }
}

/// A queue of corelane, with its two lanes.
struct Lanes {
    executor: Executor,
}

struct FullLanes {
    manager: corelane::QueueManager,
    control: corelane::Lane,
}

impl Queues for Lanes {
    type Full = FullLanes;

    fn fill(&self, low: u64, load: &'static Load) -> FullLanes {
        let builder = corelane::QueueManagerBuilder::new(corelane::EventEmitter::new(100))
            .with_executor(self.executor.clone())
            .with_lane("control", LaneConfig::new(1, CONTROL_AT_ONCE), CONTROL)
            .with_lane("low", LaneConfig::new(1, LOW_AT_ONCE), 5);
        let manager = block_on(builder.build()).expect("the configuration is usable");
        let lane = manager.lane("low").expect("it was just given");
        for _ in 0..low {
            lane.submit_typed(Low(load)).expect("the lane is open").detach();
        }
        let control = manager.lane("control").expect("it was just given");
        FullLanes { manager, control }
    }

    fn release(full: &mut FullLanes) {
        block_on(full.manager.start()).expect("a new queue can be started");
    }

    fn submit(full: &FullLanes, load: &'static Load, number: usize) {
        full.control.submit_typed(High { load, number }).expect("the lane is open").detach();
    }

    fn end(full: FullLanes) {
        block_on(async {
            full.manager.shutdown().await;
            full.manager.drain(Duration::from_secs(60)).await.expect("all have started");
        });
    }
}

struct Low(&'static Load);

impl corelane::TypedCommand for Low {
    type Output = ();

    async fn execute(&self) -> corelane::Result<()> {
        self.0.low();
        Ok(())
    }

    fn command_type(&self) -> &str {
        "low"
    }
}

struct High {
    load: &'static Load,
    number: usize,
}

impl corelane::TypedCommand for High {
    type Output = ();

    async fn execute(&self) -> corelane::Result<()> {
        self.load.control(self.number);
        Ok(())
    }

    fn command_type(&self) -> &str {
        "control"
    }
}

/// tokio: first in, first out.
struct OneQueue {
    tokio: Tokio,
    workers: usize,
}

struct FullQueue {
    tokio: Tokio,
    /// The workers are held until this is dropped.
    hold: Option<std::sync::Arc<Hold>>,
}

#[derive(Default)]
struct Hold {
    held: AtomicU64,
    end: AtomicBool,
}

impl Queues for OneQueue {
    type Full = FullQueue;

    fn fill(&self, low: u64, load: &'static Load) -> FullQueue {
        let hold = std::sync::Arc::new(Hold::default());
        for _ in 0..self.workers {
            let hold = std::sync::Arc::clone(&hold);
            drop(self.tokio.0.spawn(async move {
                hold.held.fetch_add(1, Ordering::Relaxed);
                while !hold.end.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(100));
                }
            }));
        }
        while hold.held.load(Ordering::Relaxed) < self.workers as u64 {
            thread::yield_now();
        }
        for _ in 0..low {
            Tokio::detach(self.tokio.spawn(async move { load.low() }));
        }
        FullQueue { tokio: self.tokio.clone(), hold: Some(hold) }
    }

    fn release(full: &mut FullQueue) {
        if let Some(hold) = full.hold.take() {
            hold.end.store(true, Ordering::Relaxed);
        }
    }

    fn submit(full: &FullQueue, load: &'static Load, number: usize) {
        Tokio::detach(full.tokio.spawn(async move { load.control(number) }));
    }

    fn end(_: FullQueue) {}
}

struct A3sLanes {
    workers: usize,
}

impl Queues for A3sLanes {
    type Full = A3s;

    fn fill(&self, low: u64, load: &'static Load) -> A3s {
        let queue = A3s::queue(self.workers, &[("control", CONTROL_AT_ONCE, 1), ("low", LOW_AT_ONCE, 5)]);
        for _ in 0..low {
            drop(block_on(queue.manager.submit("low", Box::new(Low(load)))).expect("the lane is open"));
        }
        queue
    }

    fn release(full: &mut A3s) {
        full.start();
    }

    fn submit(full: &A3s, load: &'static Load, number: usize) {
        drop(block_on(full.manager.submit("control", Box::new(High { load, number }))).expect("the lane is open"));
    }

    fn end(full: A3s) {
        full.runtime.block_on(async {
            full.manager.shutdown().await;
            full.manager.drain(Duration::from_secs(60)).await.expect("all have started");
        });
    }
}

#[async_trait]
impl a3s_lane_05::Command for Low {
    async fn execute(&self) -> a3s_lane_05::Result<serde_json::Value> {
        self.0.low();
        Ok(serde_json::Value::Null)
    }

    fn command_type(&self) -> &str {
        "low"
    }
}

#[async_trait]
impl a3s_lane_05::Command for High {
    async fn execute(&self) -> a3s_lane_05::Result<serde_json::Value> {
        self.load.control(self.number);
        Ok(serde_json::Value::Null)
    }

    fn command_type(&self) -> &str {
        "control"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_the_mean_they_should() {
        let mut random = Exponential(0x9E37_79B9_7F4A_7C15);
        let mean = (0..100_000).map(|_| random.next(MEAN_INTERVAL) as f64).sum::<f64>() / 1e5;
        let expected = MEAN_INTERVAL.as_nanos() as f64;
        assert!((mean / expected - 1.0).abs() < 0.02, "{mean} ns, not {expected}");
    }
}
