//! The worker process: enqueues, takes and ends commands until it is killed or asked to stop, and says each thing that it does.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, EnqueueOptions, LaneError,
    LeaseToken, Leased, Nack, PartitionConfig, RemoteOptions, Result,
};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::event::{Act, Answer, Claim, Event, micros, now, report};
use super::lie::{Liar, Lie};
use super::random::Random;

/// The test that is the worker, and the variable with its task.
pub(crate) const TEST: &str = "faults::worker::is_a_worker_process";
pub(crate) const TASK: &str = "CORELANE_FAULTS_TASK";

/// How long a call of the workers may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Leases of the workers.
pub(crate) const LEASE: Duration = Duration::from_millis(700);

pub(crate) const PARTITIONS: usize = 2;
/// Commands that a process works on at a time.
const RUNNING_MAX: usize = 32;
/// Commands that a process has put in more than it has ended, about.
const BACKLOG_MAX: u64 = 60;
/// Deliveries of a command that is not to be given up for them.
const MANY: u32 = 1000;
/// As often a call is tried whose answer was not heard.
const TRIES: u32 = 6;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) backend: String,
    pub(crate) url: String,
    pub(crate) namespace: String,
    /// Which process of the run it is.
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) lie: Lie,
    /// Enqueues nothing, ends all that is there, and says what is left.
    pub(crate) settles: bool,
}

#[test]
#[ignore = "is a worker of the fault tests: they start it"]
fn is_a_worker_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&task).expect("a task is data");
    std::panic::set_hook(Box::new(|panic| report(&Event::Note { text: panic.to_string() })));
    let queue = open(&task);
    report(&Event::Ready);
    if task.settles {
        settle(&queue);
    } else {
        work(&task, &queue);
    }
    report(&Event::Stopped);
    std::process::exit(0);
}

/// Opens the queue, as soon as there is a server.
fn open(task: &Task) -> Queue {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let options = RemoteOptions::new(task.url.as_str())
            .namespace(task.namespace.as_str())
            .partitions(PartitionConfig::hash(PARTITIONS))
            .lease(LEASE)
            .call_timeout(CALL_TIMEOUT)
            .connect_timeout(Duration::from_secs(3));
        match super::open(&task.backend, &task.url, options) {
            Ok(queue) if task.lie == Lie::None => return queue,
            Ok(queue) => return Arc::new(Liar::new(queue, task.lie)),
            Err(error) if is_transient(&error) && Instant::now() < give_up => {}
            Err(error) => panic!("the queue can not be opened: {error}"),
        }
    }
}

fn is_transient(error: &LaneError) -> bool {
    matches!(error, LaneError::Distributed(error) if error.is_transient())
}

/// What an error means for what was asked for; one that no fault explains is said.
fn meaning(error: &LaneError, call: &str) -> Answer {
    match error {
        LaneError::Distributed(DistributedError::OutcomeUnknown { .. }) => Answer::Unknown,
        LaneError::Distributed(DistributedError::LeaseLost { .. }) => Answer::LeaseLost,
        _ => {
            if !is_transient(error) {
                report(&Event::Note { text: format!("{call} says: {error}") });
            }
            Answer::NotDone
        }
    }
}

/// What the threads of a worker share.
struct Shared {
    queue: Queue,
    stops: AtomicBool,
    running: AtomicUsize,
    enqueued: AtomicU64,
    ended: AtomicU64,
}

fn work(task: &Task, queue: &Queue) {
    let shared = Arc::new(Shared {
        queue: Arc::clone(queue),
        stops: AtomicBool::new(false),
        running: AtomicUsize::new(0),
        enqueued: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    });
    let mut random = Random::new(task.seed ^ (task.number << 32));
    let threads = [Random::new(random.next()), Random::new(random.next())];
    let [puts, takes] = threads.map(|random| (Arc::clone(&shared), random));
    let number = task.number;
    let enqueuer = std::thread::spawn(move || enqueue_all(&puts.0, puts.1, number));
    let claimer = std::thread::spawn(move || claim_all(&takes.0, takes.1));
    let line = std::io::stdin().lock().lines().next();
    if !matches!(line, Some(Ok(_))) {
        // Nobody is there any more.
        std::process::exit(3);
    }
    shared.stops.store(true, Ordering::SeqCst);
    let ended = [enqueuer.join(), claimer.join()];
    assert!(ended.iter().all(std::result::Result::is_ok), "a thread has panicked");
    while shared.running.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    report(&Event::Closing { begun: now() });
    if let Err(error) = block_on(queue.close(Duration::from_secs(2))) {
        meaning(&error, "close");
    }
}

fn enqueue_all(shared: &Shared, mut random: Random, process: u64) {
    let mut number = 0;
    while !shared.stops.load(Ordering::SeqCst) {
        std::thread::sleep(random.micros(2_000..20_000));
        if shared.enqueued.load(Ordering::SeqCst) > shared.ended.load(Ordering::SeqCst) + BACKLOG_MAX {
            continue;
        }
        let many = if random.percent(10) { 3 } else { 1 };
        let mut commands: Vec<_> = (0..many)
            .map(|_| {
                number += 1;
                command(&mut random, process, number)
            })
            .collect();
        for _ in 0..TRIES {
            for (envelope, options) in &commands {
                report(&Event::Enqueuing {
                    id: envelope.id.clone(),
                    key: options.idempotency_key.clone(),
                    max_deliveries: options.max_deliveries.unwrap_or(u32::MAX),
                });
            }
            let receipts = match commands.as_slice() {
                [(envelope, options)] => vec![block_on(shared.queue.enqueue_with(envelope.clone(), options.clone()))],
                _ => block_on(shared.queue.enqueue_batch(commands.clone())),
            };
            let mut again = Vec::new();
            for (command, receipt) in commands.into_iter().zip(receipts) {
                let id = command.0.id.clone();
                match receipt {
                    Ok(receipt) => {
                        shared.enqueued.fetch_add(u64::from(!receipt.duplicate), Ordering::SeqCst);
                        report(&Event::Enqueued { id, as_id: receipt.command_id });
                    }
                    Err(error) => {
                        let certain = meaning(&error, "enqueue") == Answer::NotDone;
                        report(&Event::NotEnqueued { id, certain });
                        // Some are not tried again: whether they are there is not known.
                        if random.percent(80) {
                            again.push(command);
                        }
                    }
                }
            }
            commands = again;
            if commands.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn command(random: &mut Random, process: u64, number: u64) -> (CommandEnvelope, EnqueueOptions) {
    let id = format!("{process}-{number}");
    let mut options = EnqueueOptions::new();
    let mut payload = json!({});
    if random.percent(20) {
        // Others enqueue it, too, in this process and in others.
        let key = format!("key-{}", process / 4 * 4 * 1000 + number / 20 * 20 + random.below(10));
        payload = json!({ "key": key });
        options = options.key(key.as_str()).idempotency_key(key).max_deliveries(MANY);
    } else {
        options = options.key(id.as_str()).max_deliveries(if random.percent(12) { 2 } else { MANY });
        if random.percent(10) {
            options = options.delay(random.micros(0..150_000));
        }
    }
    if random.percent(10) {
        options = options.priority(u8::try_from(random.below(64)).unwrap_or_default());
    }
    let mut envelope = CommandEnvelope::new("fault", "faults", payload);
    envelope.id = id;
    (envelope, options)
}

fn claim_all(shared: &Arc<Shared>, mut random: Random) {
    while !shared.stops.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) >= RUNNING_MAX {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let partition = usize::try_from(random.below(PARTITIONS as u64)).unwrap_or_default();
        let most = usize::try_from(1 + random.below(4)).unwrap_or(1);
        let wait = if random.percent(50) { Duration::ZERO } else { random.micros(1_000..100_000) };
        let claim = corelane::Claim::new(most).lease(LEASE).wait(wait);
        for leased in take(&shared.queue, partition, claim) {
            shared.running.fetch_add(1, Ordering::SeqCst);
            let (shared, random) = (Arc::clone(shared), Random::new(random.next()));
            std::thread::spawn(move || {
                handle(&shared, &leased, random);
                shared.running.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }
}

/// Takes commands, and says so.
fn take(queue: &Queue, partition: usize, claim: corelane::Claim) -> Vec<Leased> {
    let begun = now();
    let taken = match block_on(queue.dequeue_leased(partition, claim)) {
        Ok(taken) => taken,
        Err(error) => {
            meaning(&error, "dequeue_leased");
            Vec::new()
        }
    };
    let ended = now();
    if taken.is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    for leased in &taken {
        let claim = Claim {
            id: leased.envelope.id.clone(),
            key: leased.envelope.payload["key"].as_str().map(str::to_owned),
            fence: leased.token.fence(),
            delivery: leased.delivery,
            lease: micros(leased.lease.expect("there are leases")),
            begun,
            ended,
        };
        report(&Event::Claimed { claim });
    }
    taken
}

/// Does with a command what chance says.
fn handle(shared: &Shared, leased: &Leased, mut random: Random) {
    let token = &leased.token;
    let is_keyed = !leased.envelope.payload["key"].is_null();
    let end = |what, tries| {
        let answer = settle_one(&shared.queue, token, what, tries);
        if what.is_final() && answer != Answer::LeaseLost {
            shared.ended.fetch_add(1, Ordering::SeqCst);
        }
        answer
    };
    match random.below(100) {
        0..58 => {
            std::thread::sleep(random.micros(0..15_000));
            end(Act::Ack, TRIES);
        }
        58..66 => {
            for _ in 0..3 {
                std::thread::sleep(LEASE / 2);
                if settle_one(&shared.queue, token, Act::Extend, TRIES) == Answer::LeaseLost {
                    return;
                }
            }
            end(Act::Ack, TRIES);
        }
        66..82 => {
            let what = if random.percent(50) { Act::Release } else { Act::Retry };
            // What is given back is another's.
            if end(what, TRIES) == Answer::Applied && random.percent(30) {
                end(if random.percent(70) { Act::Ack } else { Act::Extend }, 1);
            }
        }
        // The key of one that was given up is free: these are not.
        82..88 if !is_keyed => {
            end(if random.percent(50) { Act::AckError } else { Act::DeadLetter }, TRIES);
        }
        88..95 => {
            // It does not know that its lease has ended.
            std::thread::sleep(LEASE + random.micros(10_000..500_000));
            let what = match random.below(10) {
                0..6 => Act::Ack,
                6 => Act::Release,
                7 => Act::Retry,
                8 if !is_keyed => Act::DeadLetter,
                _ => Act::Extend,
            };
            end(what, 1);
        }
        // Left: it comes back.
        95..100 => {}
        _ => _ = end(Act::Ack, TRIES),
    }
}

/// Does this with a lease, until it is known whether it was done, and says so.
fn settle_one(queue: &Queue, token: &LeaseToken, what: Act, tries: u32) -> Answer {
    let (id, fence) = (token.command_id().to_owned(), token.fence());
    let mut answer = Answer::Unknown;
    for _ in 0..tries {
        let begun = now();
        report(&Event::Trying { id: id.clone(), fence, what, begun });
        let done = block_on(async {
            match what {
                Act::Ack => queue.ack(token, result(token, Ok(json!("done")))).await,
                Act::AckError => queue.ack(token, result(token, Err("has failed".to_owned()))).await,
                Act::DeadLetter => queue.dead_letter(token, DeadReason::Failed("is no good".to_owned())).await,
                Act::Release => queue.nack(token, Nack::Release).await,
                Act::Retry => {
                    let delay = Duration::from_millis(fence % 4 * 20);
                    queue.nack(token, Nack::RetryAfter { delay, error: "has failed".to_owned() }).await
                }
                Act::Extend => queue.extend(token, LEASE).await.map(|()| AckOutcome::Applied),
            }
        });
        answer = answer_of(done, what);
        report(&Event::Tried { id: id.clone(), fence, what, begun, ended: now(), answer });
        if !matches!(answer, Answer::NotDone | Answer::Unknown) {
            break;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    answer
}

fn answer_of(done: Result<AckOutcome>, what: Act) -> Answer {
    match done {
        Ok(AckOutcome::Applied) => Answer::Applied,
        Ok(AckOutcome::AlreadyApplied) => Answer::AlreadyApplied,
        Ok(_) => Answer::LeaseLost,
        Err(error) => meaning(&error, &format!("{what:?}")),
    }
}

fn result(token: &LeaseToken, result: std::result::Result<serde_json::Value, String>) -> CommandResult {
    let command_id = token.command_id().to_owned();
    CommandResult { command_id, result, worker_id: "a worker".to_owned(), duration_ms: 1 }
}

/// Asks until there is an answer: the machine may be busy, and calls of these tests have little time.
fn insist<T, Asked: Future<Output = corelane::Result<T>>>(what: &str, ask: impl Fn() -> Asked) -> T {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        match block_on(ask()) {
            Ok(answer) => return answer,
            Err(LaneError::Distributed(error)) if error.is_transient() && Instant::now() < give_up => {}
            Err(error) => panic!("{what} says: {error}"),
        }
    }
}

/// Ends all that is there, and says what is left then.
fn settle(queue: &Queue) {
    let give_up = Instant::now() + Duration::from_secs(30);
    let (mut ready, mut delayed, mut leased, mut dead) = (1, 0, 0, 0);
    while ready + delayed + leased > 0 && Instant::now() < give_up {
        (ready, delayed, leased, dead) = (0, 0, 0, 0);
        for partition in 0..PARTITIONS {
            let claim = corelane::Claim::new(32).lease(Duration::from_secs(10));
            let taken = take(queue, partition, claim);
            let results =
                taken.iter().map(|leased| (leased.token.clone(), result(&leased.token, Ok(json!("settled")))));
            let begun = now();
            let tried = |leased: &Leased| (leased.token.command_id().to_owned(), leased.token.fence());
            for leased in &taken {
                let (id, fence) = tried(leased);
                report(&Event::Trying { id, fence, what: Act::Ack, begun });
            }
            let outcomes = block_on(queue.ack_batch(results.collect()));
            let ended = now();
            for (leased, outcome) in taken.iter().zip(outcomes) {
                let ((id, fence), answer) = (tried(leased), answer_of(outcome, Act::Ack));
                report(&Event::Tried { id, fence, what: Act::Ack, begun, ended, answer });
            }
            let depth = insist("depth", || queue.depth(partition));
            ready += depth.ready;
            delayed += depth.delayed;
            leased += depth.leased;
            dead += depth.dead;
        }
    }
    let mut page = DeadPage::first(100);
    loop {
        let letters = insist("dead_letters", || queue.dead_letters(page.clone()));
        for letter in &letters {
            let failed = !matches!(letter.reason, DeadReason::TooManyDeliveries);
            report(&Event::Letter { id: letter.envelope.id.clone(), failed, deliveries: letter.deliveries });
        }
        match letters.last() {
            Some(last) if letters.len() >= 100 => page = page.after(last.envelope.id.as_str()),
            _ => break,
        }
    }
    report(&Event::Settled { ready, delayed, leased, dead });
}
