//! Faults: servers and workers are killed and stopped, connections are cut, delayed and swallowed, while commands go through; and
//! a checker outside looks at what is lost, or done twice.
//!
//! The test starts the server, and worker processes that reach it through a proxy each. They say everything that they do, before
//! and after it; nothing else is known to the checker.
//!
//! | file | what |
//! |---|---|
//! | `check` | the checker, and what it holds a backend to |
//! | `rules` | the checker, held to that |
//! | `event` | what workers say |
//! | `worker` | what workers do |
//! | `process` | worker processes |
//! | `lie` | queues with planted bugs, each of which is found |
//! | `reference` | a queue to try all that with |
//!
//! `CORELANE_FAULTS_CYCLES` says how many faults there are (default: 30), `CORELANE_FAULTS_SEED` which: the seed of a run is
//! printed. It decides the faults, not what the system makes of them.

mod check;
mod event;
mod lie;
mod process;
#[path = "../../torture/random.rs"]
mod random;
mod reference;
mod rules;
mod worker;

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use corelane::testing::distributed::Queue;
use corelane::{NatsDistributedQueue, PostgresDistributedQueue, RedisDistributedQueue, RemoteOptions, Result};
use futures::executor::block_on;

use crate::proxy::{Cut, Fault, Proxy, Way};
use crate::servers::nats::Nats;
use crate::servers::postgres::Postgres;
use crate::servers::redis::Redis;
use crate::servers::{Place, Server, started};
use check::Checker;
use event::{Answer, Event, now};
use lie::Lie;
use process::{HANG, Process, Signal};
use random::Random;
use reference::{Reference, ReferenceQueue};
use worker::{CALL_TIMEOUT, LEASE, Task};

/// Worker processes at a time.
const WORKERS: usize = 3;
/// Cycles after which everything settles and is looked at.
const SETTLE_EVERY: u64 = 10;
/// Violations that are shown.
const SHOWN_MAX: usize = 40;
/// How long a worker may take until something works again, after a fault.
const RECOVERY: Duration = Duration::from_secs(20);

/// Opens a queue of a backend, by its name.
fn open(backend: &str, url: &str, options: RemoteOptions) -> Result<Queue> {
    let queue: Queue = match backend {
        Reference::NAME => Arc::new(ReferenceQueue::connect(url)),
        Nats::NAME => Arc::new(block_on(NatsDistributedQueue::connect(options))?),
        Postgres::NAME => Arc::new(block_on(PostgresDistributedQueue::connect(options))?),
        Redis::NAME => Arc::new(block_on(RedisDistributedQueue::connect(options))?),
        _ => panic!("there is no backend {backend:?}"),
    };
    Ok(queue)
}

#[test]
fn nats_survives_faults() {
    started::<Nats>().into_iter().for_each(survives);
}

#[test]
fn postgres_survives_faults() {
    started::<Postgres>().into_iter().for_each(survives);
}

#[test]
fn redis_survives_faults() {
    started::<Redis>().into_iter().for_each(survives);
}

/// What is done to the workers and their server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    KillServer,
    StopServer,
    KillWorker,
    StopWorker,
    CutConnections,
    CutMessages,
    LoseAnswers,
    Delay,
    Throttle,
    BlackHole,
}

/// All of them; the more frequent ones more often.
const TROUBLES: [Trouble; 14] = [
    Trouble::KillServer,
    Trouble::KillServer,
    Trouble::StopServer,
    Trouble::StopServer,
    Trouble::KillWorker,
    Trouble::StopWorker,
    Trouble::StopWorker,
    Trouble::CutConnections,
    Trouble::CutMessages,
    Trouble::LoseAnswers,
    Trouble::LoseAnswers,
    Trouble::Delay,
    Trouble::Throttle,
    Trouble::BlackHole,
];

/// A backend keeps its promises under faults.
pub(crate) fn survives<S: Server>(server: S) {
    let (cycles, seed) = (number("CORELANE_FAULTS_CYCLES").unwrap_or(30), seed());
    eprintln!("{}: {cycles} cycles, CORELANE_FAULTS_SEED={seed}", S::NAME);
    let mut run = Run::new(server, seed, Lie::None);
    let mut deck = Vec::new();
    for cycle in 1..=cycles {
        // Each kind comes once in so many cycles.
        if deck.is_empty() {
            deck = TROUBLES.to_vec();
        }
        let at = usize::try_from(run.random.below(deck.len() as u64)).unwrap_or_default();
        let trouble = deck.swap_remove(at);
        run.start_workers();
        std::thread::sleep(run.random.micros(50_000..300_000));
        run.cause(trouble);
        run.recover(cycle, trouble);
        if cycle % SETTLE_EVERY == 0 || cycle == cycles {
            run.settle();
        }
        if run.checker.violations().next().is_some() {
            break;
        }
    }
    let counts = run.checker.counts();
    eprintln!("  {counts:?}, slowest recovery {:?}", run.slowest_recovery);
    let violations: Vec<_> = run.checker.violations().collect();
    let (many, first) = (violations.len(), violations[..violations.len().min(SHOWN_MAX)].join("\n"));
    assert!(many == 0, "CORELANE_FAULTS_SEED={seed}, {}: {many} violations\n{first}", run.place.0.display());
    // It has seen what it is for, or it shows nothing.
    if cycles >= 30 {
        let unheard = counts.enqueues_unheard + counts.unheard;
        let seen = [unheard, counts.duplicates, counts.again, counts.stale, counts.overtaken, counts.letters];
        assert!(seen.iter().all(|count| *count > 0), "{counts:?}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for (lie, text) in Lie::ALL {
        eprintln!("{lie:?}:");
        is_found(Run::new(Reference::start(), seed(), lie), text, |_| {});
    }
}

#[test]
fn a_server_that_forgets_is_found() {
    let Some(safe) = started::<Redis>() else { return };
    drop(safe);
    let forgetful = Redis::with(&["--appendonly", "no", "--maxmemory-policy", "noeviction"]);
    is_found(Run::new(forgetful, seed(), Lie::None), "was acknowledged", |run| {
        run.end_workers();
        run.server.kill();
        run.server.restart();
    });
}

/// The checker finds what is wrong, by this text: in a few rounds of work, with this in the middle of it.
fn is_found<S: Server>(mut run: Run<S>, text: &str, cause: impl Fn(&mut Run<S>)) {
    for _ in 0..5 {
        run.start_workers();
        std::thread::sleep(LEASE * 3);
        cause(&mut run);
        run.settle();
        if let Some(found) = run.checker.violations().find(|violation| violation.contains(text)) {
            eprintln!("  found: {found}");
            return;
        }
    }
    let violations: Vec<_> = run.checker.violations().collect();
    panic!("CORELANE_FAULTS_SEED={}: {text:?} was not found: {violations:?}", run.seed);
}

/// One queue in a server, and who works on it.
struct Run<S> {
    server: S,
    place: Place,
    namespace: String,
    lie: Lie,
    seed: u64,
    random: Random,
    seats: Vec<Seat>,
    /// Processes so far.
    processes: u64,
    checker: Checker,
    slowest_recovery: Duration,
}

/// A way to the server, and who goes it.
struct Seat {
    proxy: Proxy,
    worker: Option<(u64, Process)>,
}

impl<S: Server> Run<S> {
    fn new(server: S, seed: u64, lie: Lie) -> Self {
        let seats = (0..WORKERS).map(|_| Seat { proxy: Proxy::start(server.port()), worker: None }).collect();
        Self {
            server,
            place: Place::new("faults"),
            namespace: format!("faults-{lie:?}").to_lowercase(),
            lie,
            seed,
            random: Random::new(seed),
            seats,
            processes: 0,
            // No client can ask nats-server for its time: it is known within as long as a call may take.
            checker: Checker::new(if S::NAME == Nats::NAME { CALL_TIMEOUT } else { Duration::ZERO }),
            slowest_recovery: Duration::ZERO,
        }
    }

    /// Starts the workers that are missing, and waits for them.
    fn start_workers(&mut self) {
        for seat in 0..WORKERS {
            if self.seats[seat].worker.is_none() {
                let url = self.server.url_at(self.seats[seat].proxy.port());
                let worker = self.start(url, self.lie, false);
                self.seats[seat].worker = Some(worker);
            }
        }
        for seat in &mut self.seats {
            if let Some((number, worker)) = &mut seat.worker
                && !worker.events().contains(&Event::Ready)
                && !worker.says(HANG, |event| matches!(event, Event::Ready))
            {
                panic!("worker {number} does not start: {:?}", worker.events());
            }
        }
    }

    fn start(&mut self, url: String, lie: Lie, settles: bool) -> (u64, Process) {
        self.processes += 1;
        let task = Task {
            backend: S::NAME.to_owned(),
            url,
            namespace: self.namespace.clone(),
            number: self.processes,
            seed: self.seed,
            lie,
            settles,
        };
        (self.processes, Process::start(&task, &self.place.0.join("log")))
    }

    fn cause(&mut self, trouble: Trouble) {
        let seat = usize::try_from(self.random.below(WORKERS as u64)).unwrap_or_default();
        let all = self.random.percent(30);
        // One worker, or all.
        let (from, to) = if all { (0, WORKERS) } else { (seat, seat + 1) };
        let random = &mut self.random;
        let hit = &mut self.seats[from..to];
        let any_cut = |random: &mut Random| if random.percent(50) { Cut::Reset } else { Cut::Close };
        match trouble {
            Trouble::KillServer => {
                self.server.kill();
                std::thread::sleep(random.micros(0..600_000));
                self.server.restart();
            }
            Trouble::StopServer => {
                self.server.hang();
                // Sometimes beyond leases, and beyond what a call waits for.
                std::thread::sleep(random.micros(100_000..2_500_000));
                self.server.go_on();
            }
            Trouble::KillWorker => {
                let mut killed = Vec::new();
                for seat in hit {
                    if let Some((number, mut worker)) = seat.worker.take() {
                        worker.signal(Signal::Kill);
                        killed.push((number, worker));
                    }
                }
                for (number, worker) in killed {
                    self.ended(number, worker);
                }
                self.start_workers();
            }
            Trouble::StopWorker => {
                let workers = hit.iter_mut().filter_map(|seat| seat.worker.as_mut());
                let mut workers: Vec<_> = workers.map(|(_, worker)| worker).collect();
                workers.iter_mut().for_each(|worker| worker.signal(Signal::Stop));
                // Beyond the leases that they have.
                std::thread::sleep(LEASE + random.micros(50_000..700_000));
                workers.iter_mut().for_each(|worker| worker.signal(Signal::Continue));
            }
            Trouble::CutConnections => {
                for _ in 0..5 {
                    let cut = any_cut(random);
                    hit.iter().for_each(|seat| seat.proxy.cut(cut));
                    std::thread::sleep(random.micros(10_000..200_000));
                }
            }
            Trouble::CutMessages => {
                for _ in 0..5 {
                    let (bytes, cut) = (usize::try_from(random.below(600)).unwrap_or_default(), any_cut(random));
                    let way = if random.percent(50) { Way::ToServer } else { Way::ToClient };
                    hit.iter().for_each(|seat| seat.proxy.set(Fault::CutAfter { bytes, way, cut }));
                    std::thread::sleep(random.micros(50_000..250_000));
                }
            }
            Trouble::LoseAnswers => {
                for _ in 0..8 {
                    let cut = any_cut(random);
                    hit.iter().for_each(|seat| seat.proxy.set(Fault::LoseAnswers { cut }));
                    std::thread::sleep(random.micros(30_000..200_000));
                }
            }
            Trouble::Delay => {
                let [to_server, to_client, jitter] = [(); 3].map(|()| random.micros(0..60_000));
                hit.iter().for_each(|seat| seat.proxy.set(Fault::Delay { to_server, to_client, jitter }));
                std::thread::sleep(random.micros(300_000..1_200_000));
            }
            Trouble::Throttle => {
                let bytes_per_second = 2_000 + u32::try_from(random.below(20_000)).unwrap_or_default();
                hit.iter().for_each(|seat| seat.proxy.set(Fault::Throttle { bytes_per_second }));
                std::thread::sleep(random.micros(300_000..1_000_000));
            }
            Trouble::BlackHole => {
                hit.iter().for_each(|seat| seat.proxy.set(Fault::BlackHole));
                std::thread::sleep(random.micros(200_000..3_000_000));
            }
        }
        self.seats.iter().for_each(|seat| seat.proxy.set(Fault::None));
    }

    /// Waits until each worker gets something done again.
    fn recover(&mut self, cycle: u64, trouble: Trouble) {
        let (healed, begun) = (now(), Instant::now());
        for seat in &mut self.seats {
            let Some((number, worker)) = &mut seat.worker else { continue };
            let works = |event: &Event| match event {
                Event::Tried { begun, answer, .. } => *begun > healed && *answer == Answer::Applied,
                _ => false,
            };
            if !worker.says(RECOVERY, works) {
                let text = format!("after {trouble:?}, nothing works within {RECOVERY:?}");
                self.checker.process(*number, vec![Event::Note { text }]);
            }
        }
        let recovery = begun.elapsed();
        eprintln!("  {cycle}: {trouble:?}, recovered within {recovery:?}");
        self.slowest_recovery = self.slowest_recovery.max(recovery);
    }

    /// Ends all workers, has a new one end everything that is there, and looks at what was said.
    fn settle(&mut self) {
        self.end_workers();
        let (number, settler) = self.start(self.server.url(), Lie::None, true);
        self.ended(number, settler);
    }

    fn end_workers(&mut self) {
        let mut ending = Vec::new();
        for seat in &mut self.seats {
            let Some((number, mut worker)) = seat.worker.take() else { continue };
            // Some end well.
            if self.random.percent(60) {
                worker.ask_to_stop();
            } else {
                worker.signal(Signal::Kill);
            }
            ending.push((number, worker));
        }
        for (number, worker) in ending {
            self.ended(number, worker);
        }
    }

    fn ended(&mut self, number: u64, worker: Process) {
        let events = worker.end();
        keep(&self.place, number, &events);
        self.checker.process(number, events);
    }
}

/// Keeps what a worker has said, for who looks for the cause of a failure.
fn keep(place: &Place, number: u64, events: &[Event]) {
    let events: String = events.iter().map(|event| format!("{number} {event:?}\n")).collect();
    let file = File::options().create(true).append(true).open(place.0.join("events"));
    file.and_then(|mut file| file.write_all(events.as_bytes())).expect("events can be kept");
}

fn seed() -> u64 {
    number("CORELANE_FAULTS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs() ^ u64::from(now.subsec_nanos()))
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is to be a number, and is {text:?}")))
}
