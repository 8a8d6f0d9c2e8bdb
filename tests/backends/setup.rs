//! What `docs/distributed.md` says about setting a server up: with those settings, and those rights, everything works, and in no
//! other queue than the one that they are for.

use std::sync::Arc;
use std::time::Duration;

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, DistributedQueue as _,
    Durability, EnqueueOptions, GlobalLimits, LaneError, LeaseToken, Leased, Nack, NatsDistributedQueue,
    PostgresDistributedQueue, RedisDistributedQueue, RemoteOptions, Support,
};
use futures::executor::block_on;
use serde_json::json;

use crate::servers::nats::Nats;
use crate::servers::postgres::Postgres;
use crate::servers::redis::Redis;
use crate::servers::{Place, Server as _, installed, started};

const QUEUE: &str = "mail";
const SECOND: Duration = Duration::from_secs(1);

/// The block of the documentation that begins so.
fn documented(beginning: &str) -> &'static str {
    let text = include_str!("../../docs/distributed.md");
    let blocks = text.split("```").skip(1).step_by(2);
    let mut blocks = blocks.filter_map(|block| block.split_once('\n')).map(|(_language, block)| block);
    blocks.find(|block| block.starts_with(beginning)).expect("the documentation says how")
}

async fn take(queue: &Queue) -> Leased {
    let taken = queue.dequeue_leased(0, Claim::new(1).lease(30 * SECOND).wait(10 * SECOND)).await;
    taken.expect("it may be taken").pop().expect("there is one")
}

fn result_of(token: &LeaseToken) -> CommandResult {
    let command_id = token.command_id().to_owned();
    CommandResult { command_id, result: Ok(json!(1)), worker_id: "worker".to_owned(), duration_ms: 1 }
}

/// Does all that a queue can do, by two who have it open.
fn everything_works(queue: &Queue, other: &Queue) {
    let can = queue.capabilities();
    let envelope = || CommandEnvelope::new("send", "letters", json!({ "to": "you" }));
    block_on(async {
        // Somebody who waits is woken.
        let waiting = Arc::clone(other);
        let waiting = std::thread::spawn(move || block_on(take(&waiting)));
        let options = EnqueueOptions::new().idempotency_key("once").keep_result(60 * SECOND);
        let receipt = queue.enqueue_with(envelope(), options.clone()).await.expect("it may be put in");
        assert!(queue.enqueue_with(envelope(), options).await.expect("it may be put in again").duplicate);
        let leased = waiting.join().expect("it is taken");
        other.extend(&leased.token, 30 * SECOND).await.expect("it may be extended");
        assert_eq!(other.ack(&leased.token, result_of(&leased.token)).await.unwrap(), AckOutcome::Applied);
        assert!(queue.result(&receipt.command_id, 10 * SECOND).await.unwrap().is_some());

        let delayed = EnqueueOptions::new().delay(Duration::from_millis(20));
        queue.enqueue_with(envelope(), delayed).await.expect("it may be delayed");
        let released = take(queue).await;
        assert_eq!(queue.nack(&released.token, Nack::Release).await.unwrap(), AckOutcome::Applied);
        let failed = take(queue).await;
        let again = Nack::RetryAfter { delay: Duration::from_millis(5), error: "not yet".to_owned() };
        assert_eq!(queue.nack(&failed.token, again).await.unwrap(), AckOutcome::Applied);
        let dead = take(queue).await;
        let reason = || DeadReason::Failed("no".to_owned());
        assert_eq!(queue.dead_letter(&dead.token, reason()).await.unwrap(), AckOutcome::Applied);
        assert_eq!(queue.dead_letters(DeadPage::first(10)).await.unwrap().len(), 1);
        assert!(queue.replay(dead.token.command_id()).await.unwrap());
        let dead = take(queue).await;
        assert_eq!(queue.dead_letter(&dead.token, reason()).await.unwrap(), AckOutcome::Applied);
        assert!(queue.discard(dead.token.command_id()).await.unwrap());

        if can.global_concurrency == Support::Exact {
            queue.set_limits("letters", GlobalLimits::none().max_leased(1)).await.expect("limits may be set");
        }
        let depth = queue.depth(0).await.expect("it may be looked at");
        assert_eq!((depth.ready, depth.delayed, depth.leased, depth.dead), (0, 0, 0, 0), "{depth:?}");
        queue.close(10 * SECOND).await.expect("it may be closed");
    });
}

fn is_refused<T>(opened: corelane::Result<T>) {
    match opened {
        Err(LaneError::Distributed(DistributedError::Refused { .. })) => {}
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn options(url: &str, queue: &str) -> RemoteOptions {
    RemoteOptions::new(url).namespace(queue).call_timeout(2 * SECOND)
}

#[test]
fn the_documented_setup_of_postgres_is_enough_for_its_queue_and_for_no_other() {
    let Some(server) = started::<Postgres>() else { return };
    server.sql(documented("create role mailer"));
    let url = format!("postgres://mailer:change%20me@127.0.0.1:{}/postgres", server.port());
    let open = || block_on(PostgresDistributedQueue::connect(options(&url, QUEUE))).expect("it may be opened");
    let (queue, other): (Queue, Queue) = (Arc::new(open()), Arc::new(open()));
    assert_eq!(queue.capabilities().durability, Durability::Synced);
    everything_works(&queue, &other);
    is_refused(block_on(PostgresDistributedQueue::connect(options(&url, "another"))));
}

#[test]
fn the_documented_setup_of_redis_is_enough_for_its_queue_and_for_no_other() {
    if !installed::<Redis>() {
        return;
    }
    let mut settings = Vec::new();
    for line in documented("appendonly yes").lines() {
        let (name, values) = line.split_once(' ').expect("a setting has a value");
        settings.push(format!("--{name}"));
        settings.extend(values.split(' ').map(str::to_owned));
    }
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let server = Redis::with(&settings);
    let url = format!("redis://mailer:change-me@127.0.0.1:{}", server.port());
    let open = || block_on(RedisDistributedQueue::connect(options(&url, QUEUE))).expect("it may be opened");
    let (queue, other): (Queue, Queue) = (Arc::new(open()), Arc::new(open()));
    assert_eq!(queue.capabilities().durability, Durability::Synced, "{:?}", queue.capabilities());
    everything_works(&queue, &other);
    is_refused(block_on(RedisDistributedQueue::connect(options(&url, "another"))));
}

#[test]
fn the_documented_setup_of_nats_is_enough_for_its_queue_and_for_no_other() {
    if !installed::<Nats>() {
        return;
    }
    let place = Place::new("nats-setup");
    let path = place.0.join("nats.conf");
    let folder = place.0.join("data").display().to_string();
    std::fs::write(&path, documented("jetstream {").replace("nats-data", &folder)).expect("a file can be written");
    let server = Nats::start_with(&["-c", path.to_str().expect("it is UTF-8")], false);
    let url = format!("nats://mailer:change-me@127.0.0.1:{}", server.port());
    let open = || block_on(NatsDistributedQueue::connect(options(&url, QUEUE))).expect("it may be opened");
    let (queue, other): (Queue, Queue) = (Arc::new(open()), Arc::new(open()));
    everything_works(&queue, &other);
    // JetStream's own subjects are one for all queues: what is refused is to change what is in another one.
    let another = block_on(async {
        let queue = NatsDistributedQueue::connect(options(&url, "another")).await?;
        queue.enqueue(CommandEnvelope::new("send", "letters", json!(1))).await
    });
    is_refused(another);
}
