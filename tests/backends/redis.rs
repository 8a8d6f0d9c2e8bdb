//! The queue in Redis: conformance, and what it has of its own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, DistributedHealth,
    DistributedQueue as _, Durability, EnqueueOptions, GlobalLimits, LaneError, LeaseToken, Leased, Nack,
    PartitionConfig, RateLimitConfig, RedisDistributedQueue, RemoteOptions, Result,
};
use futures::executor::block_on;
use serde_json::json;

use super::conforms;
use super::model::{PARTITIONS, agrees_with_the_reference};
use super::proxy::{Fault, Proxy};
use super::servers::redis::{Redis, SAFE};
use super::servers::{Place, Server as _, free_port, installed};

/// Leaves a test out where there is no server.
macro_rules! needs_redis {
    () => {
        if !installed::<Redis>() {
            return;
        }
    };
}

async fn open(options: RemoteOptions) -> Result<Queue> {
    Ok(Arc::new(RedisDistributedQueue::connect(options).await?))
}

#[test]
fn the_queue_conforms() {
    conforms::<Redis, _>(open);
}

#[test]
fn the_queue_does_what_the_reference_does() {
    needs_redis!();
    let server = Redis::with(SAFE);
    for seed in 0..20 {
        let options = RemoteOptions::new(server.url()).namespace(format!("seed-{seed}"));
        let queue = block_on(open(options.partitions(PartitionConfig::round_robin(PARTITIONS)))).unwrap();
        block_on(agrees_with_the_reference(queue, seed, 400));
    }
}

fn connect(options: impl Into<RemoteOptions>) -> RedisDistributedQueue {
    block_on(RedisDistributedQueue::connect(options)).expect("it can be opened")
}

/// Why it can not be opened.
fn refusal(options: impl Into<RemoteOptions>) -> DistributedError {
    match block_on(RedisDistributedQueue::connect(options)) {
        Err(LaneError::Distributed(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn envelope(number: usize) -> CommandEnvelope {
    CommandEnvelope::new("sample", "query", json!({ "number": number }))
}

fn put(queue: &RedisDistributedQueue, number: usize) -> String {
    let sent = envelope(number);
    block_on(queue.enqueue(sent.clone())).expect("it is accepted");
    sent.id
}

fn take(queue: &RedisDistributedQueue, max: usize) -> Vec<Leased> {
    block_on(queue.dequeue_leased(0, Claim::new(max))).expect("commands can be taken")
}

fn done(token: &LeaseToken) -> CommandResult {
    let command_id = token.command_id().to_owned();
    CommandResult { command_id, result: Ok(json!("done")), worker_id: "a worker".to_owned(), duration_ms: 1 }
}

fn ack(queue: &RedisDistributedQueue, token: &LeaseToken) -> AckOutcome {
    block_on(queue.ack(token, done(token))).expect("it can be acknowledged")
}

#[test]
fn durability_is_told_as_it_was_found() {
    needs_redis!();
    let found = |settings: &[&str]| {
        let server = Redis::with(settings);
        let can = connect(server.url()).capabilities();
        (can.durability, can.notes.join("; "))
    };
    let (durability, notes) = found(SAFE);
    assert_eq!(durability, Durability::Synced);
    assert!(notes.contains("Redis 7.") || notes.contains("Redis 8.") || notes.contains("Valkey"), "{notes}");
    let (durability, notes) = found(&[SAFE, &["--no-appendfsync-on-rewrite", "yes"]].concat());
    assert!(durability == Durability::Relaxed && notes.contains("no-appendfsync-on-rewrite is yes"), "{notes}");
    let (durability, notes) = found(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    assert_eq!(durability, Durability::Relaxed);
    assert!(notes.contains("everysec"), "{notes}");
    let (durability, notes) = found(&["--appendonly", "yes", "--appendfsync", "no"]);
    assert!(durability == Durability::Relaxed && notes.contains("appendfsync is no"), "{notes}");
    let (durability, notes) = found(&["--appendonly", "no"]);
    assert!(durability == Durability::Memory && notes.contains("appendonly is no"), "{notes}");
}

#[test]
fn what_a_user_may_not_ask_is_not_claimed() {
    needs_redis!();
    let server = Redis::with(SAFE);
    server.say::<()>(&["ACL", "SETUSER", "careful", "on", ">secret", "~corelane:*", "+@all", "-config"]);
    server.say::<()>(&["ACL", "SETUSER", "blind", "on", ">secret", "~corelane:*", "+@all", "-config", "-info"]);
    server.say::<()>(&["ACL", "SETUSER", "stranger", "on", ">secret", "~other:*", "+@all"]);
    let url = |user: &str| format!("redis://{user}:secret@127.0.0.1:{}", server.port());
    for (user, word) in [("careful", "CONFIG GET"), ("blind", "INFO")] {
        let queue = connect(url(user));
        let can = queue.capabilities();
        assert!(can.durability == Durability::Memory && can.notes.join("; ").contains(word), "{can:?}");
        put(&queue, 1);
        assert_eq!(ack(&queue, &take(&queue, 1)[0].token), AckOutcome::Applied);
    }
    let refused = refusal(url("stranger"));
    assert!(matches!(&refused, DistributedError::Refused { cause, .. } if cause.contains("NOPERM")), "{refused}");
}

#[test]
fn a_server_that_evicts_is_refused() {
    needs_redis!();
    let server = Redis::with(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = refusal(server.url());
    assert!(
        matches!(&refused, DistributedError::Unsuitable { problem, .. } if problem.contains("noeviction")),
        "{refused}"
    );
    assert_eq!(server.say::<i64>(&["DBSIZE"]), 0, "nothing was made");
}

#[test]
fn a_replica_is_refused() {
    needs_redis!();
    let master = Redis::with(SAFE);
    let replica = Redis::with(&[SAFE, &["--replicaof", "127.0.0.1", &master.port().to_string()]].concat());
    let refused = refusal(replica.url());
    assert!(
        matches!(&refused, DistributedError::Unsuitable { problem, .. } if problem.contains("replica")),
        "{refused}"
    );
}

#[test]
fn a_server_that_is_a_replica_for_a_while_is_waited_for() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    server.say::<()>(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| put(&queue, 1));
        std::thread::sleep(Duration::from_millis(500));
        assert!(matches!(queue.health(), DistributedHealth::Reconnecting { .. }), "{:?}", queue.health());
        server.say::<()>(&["REPLICAOF", "NO", "ONE"]);
        putting.join().unwrap();
    });
    assert_eq!((take(&queue, 1).len(), queue.health()), (1, DistributedHealth::Working));
}

const CANARY: &str = "canary-7b1fe02c";

#[test]
fn a_wrong_password_is_refused_and_shown_nowhere() {
    needs_redis!();
    let server = Redis::with(&[SAFE, &["--requirepass", "right"]].concat());
    for url in [format!("redis://:{CANARY}@127.0.0.1:{}", server.port()), server.url()] {
        let refused = refusal(url);
        assert!(matches!(refused, DistributedError::Refused { .. }), "{refused}");
        assert!(!format!("{refused} {refused:?}").contains(CANARY), "{refused}");
    }
}

#[test]
fn no_secret_is_shown() {
    needs_redis!();
    let server = Redis::with(&[SAFE, &["--requirepass", CANARY]].concat());
    let url = |port: u16| format!("redis://:{CANARY}@127.0.0.1:{port}/0?nonsense={CANARY}");
    let options = RemoteOptions::new(url(server.port()));
    let mut shown = vec![format!("{options:?}")];
    let queue = connect(options);
    shown.push(format!("{queue:?} {:?} {:?}", queue.capabilities(), queue.health()));
    let absent = RemoteOptions::new(url(free_port())).connect_timeout(Duration::from_millis(300));
    for options in
        [absent, format!("redis://:{CANARY}@[half:1").into(), format!("redis://:{CANARY}@127.0.0.1/x").into()]
    {
        let error = block_on(RedisDistributedQueue::connect(options)).expect_err("it can not be opened");
        shown.push(format!("{error} {error:?}"));
    }
    for text in shown {
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[test]
fn an_absent_server_is_said_to_be_absent_in_time() {
    needs_redis!();
    let port = free_port();
    let begun = Instant::now();
    let options = RemoteOptions::new(format!("redis://127.0.0.1:{port}")).connect_timeout(Duration::from_millis(700));
    match refusal(options) {
        DistributedError::Unavailable { server, cause } => {
            assert_eq!(server, format!("redis://127.0.0.1:{port}"));
            assert!(cause.contains("refused"), "{cause}");
        }
        other => panic!("{other}"),
    }
    let waited = begun.elapsed();
    assert!((Duration::from_millis(600)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
}

#[test]
fn a_server_that_comes_late_is_waited_for() {
    needs_redis!();
    let mut server = Redis::with(SAFE);
    server.kill();
    let url = server.url();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| connect(RemoteOptions::new(url).connect_timeout(Duration::from_secs(20))));
        std::thread::sleep(Duration::from_millis(300));
        server.restart();
        put(&opening.join().unwrap(), 1);
    });
}

#[test]
fn a_server_that_forgets_its_scripts_is_told_again() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    for number in 0..3 {
        put(&queue, number);
        server.say::<()>(&["SCRIPT", "FLUSH", "SYNC"]);
        let leased = take(&queue, 1);
        server.say::<()>(&["SCRIPT", "FLUSH", "SYNC"]);
        assert_eq!(ack(&queue, &leased[0].token), AckOutcome::Applied);
        server.say::<()>(&["SCRIPT", "FLUSH", "SYNC"]);
    }
}

#[test]
fn a_killed_server_loses_nothing_that_was_acknowledged() {
    needs_redis!();
    let mut server = Redis::with(SAFE);
    let (url, ends) = (server.url(), AtomicBool::new(false));
    let options = || RemoteOptions::new(url.as_str()).call_timeout(Duration::from_secs(20));
    let (accepted, ended) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    let work = |queue: &RedisDistributedQueue, wait: Duration| {
        let claim = Claim::new(5).lease(Duration::from_secs(2)).wait(wait);
        // What an unheard claim took comes back when its leases end.
        let taken = block_on(queue.dequeue_leased(0, claim)).unwrap_or_default();
        for leased in &taken {
            let id = leased.envelope.id.clone();
            match block_on(queue.ack(&leased.token, done(&leased.token))).expect("it goes on within the call's time") {
                AckOutcome::Applied => assert!(ended.lock().unwrap().insert(id), "it has ended twice"),
                AckOutcome::LeaseLost => {}
                other => panic!("{other:?} is no answer to the first acknowledgement"),
            }
        }
        taken.len()
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let queue = connect(options());
                for number in 0.. {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = put(&queue, number);
                    accepted.lock().unwrap().insert(id);
                }
            });
        }
        scope.spawn(|| {
            let queue = connect(options());
            while !ends.load(Ordering::Relaxed) {
                work(&queue, Duration::from_millis(50));
            }
        });
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(400));
            server.kill();
            std::thread::sleep(Duration::from_millis(100));
            server.restart();
        }
        std::thread::sleep(Duration::from_millis(300));
        ends.store(true, Ordering::Relaxed);
    });
    let queue = connect(options());
    while work(&queue, Duration::from_secs(3)) > 0 {}
    let (accepted, ended) = (accepted.into_inner().unwrap(), ended.into_inner().unwrap());
    assert!(accepted.len() > 5, "only {} were accepted", accepted.len());
    assert_eq!(accepted.difference(&ended).count(), 0, "some of {} are lost", accepted.len());
}

/// So that the server knows the scripts: an answer that is lost is then of one that was run.
fn warm_up(queue: &RedisDistributedQueue) {
    put(queue, 0);
    let leased = take(queue, 1);
    block_on(queue.extend(&leased[0].token, Duration::from_secs(60))).unwrap();
    assert_eq!(ack(queue, &leased[0].token), AckOutcome::Applied);
}

#[test]
fn a_lost_answer_does_nothing_twice() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let proxy = Proxy::start(server.port());
    let queue = connect(server.url_at(proxy.port()));
    warm_up(&queue);
    let sent = envelope(1);
    proxy.lose_next_answer();
    let receipt = block_on(queue.enqueue_with(sent.clone(), EnqueueOptions::new().idempotency_key("a"))).unwrap();
    assert_eq!((receipt.command_id, receipt.duplicate), (sent.id, false));
    let leased = take(&queue, 10);
    assert_eq!(leased.len(), 1);
    proxy.lose_next_answer();
    block_on(queue.extend(&leased[0].token, Duration::from_secs(60))).unwrap();
    proxy.lose_next_answer();
    let nack = Nack::RetryAfter { delay: Duration::ZERO, error: "again".to_owned() };
    assert_eq!(block_on(queue.nack(&leased[0].token, nack)).unwrap(), AckOutcome::Applied);
    let leased = take(&queue, 10);
    assert_eq!((leased.len(), leased[0].envelope.retry_count), (1, 1));
    proxy.lose_next_answer();
    assert_eq!(ack(&queue, &leased[0].token), AckOutcome::Applied);
    assert_eq!(ack(&queue, &leased[0].token), AckOutcome::AlreadyApplied);
    assert_eq!(proxy.lost(), 4);
}

#[test]
fn a_claim_that_nobody_heard_of_is_not_made_twice() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let proxy = Proxy::start(server.port());
    let queue = connect(server.url_at(proxy.port()));
    warm_up(&queue);
    put(&queue, 1);
    put(&queue, 2);
    proxy.lose_next_answer();
    let claim = || Claim::new(1).lease(Duration::from_millis(600));
    match block_on(queue.dequeue_leased(0, claim())) {
        Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(take(&queue, 10).len(), 1, "the other one");
    let back = block_on(queue.dequeue_leased(0, claim().wait(Duration::from_secs(10)))).unwrap();
    assert_eq!((back.len(), back[0].delivery), (1, 2), "it has come back");
}

#[test]
fn a_frozen_server_is_not_waited_for_longer_than_said() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(RemoteOptions::new(server.url()).call_timeout(Duration::from_secs(1)));
    put(&queue, 1);
    server.hang();
    let begun = Instant::now();
    match block_on(queue.enqueue(envelope(2))) {
        Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => {}
        other => panic!("{other:?}"),
    }
    let waited = begun.elapsed();
    server.go_on();
    assert!(waited < Duration::from_secs(3), "{waited:?}");
    let queue = connect(server.url());
    assert!((1..=2).contains(&take(&queue, 10).len()));
}

#[test]
fn a_full_server_says_so_and_loses_nothing() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    server.say::<()>(&["CONFIG", "SET", "maxmemory", "8mb"]);
    let text = "x".repeat(64 << 10);
    let mut accepted = BTreeSet::new();
    loop {
        let sent = CommandEnvelope::new("sample", "query", json!(text));
        match block_on(queue.enqueue(sent.clone())) {
            Ok(()) => assert!(accepted.insert(sent.id)),
            Err(LaneError::Distributed(DistributedError::Full(_))) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(accepted.len() < 1000, "it takes more than it may");
    }
    assert!(accepted.len() > 10, "only {} were accepted", accepted.len());
    let mut got = BTreeSet::new();
    loop {
        let taken = take(&queue, 10);
        if taken.is_empty() {
            break;
        }
        for leased in taken {
            assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied, "what makes room goes on");
            got.insert(leased.envelope.id);
        }
    }
    assert_eq!(got, accepted);
    put(&queue, 1);
}

#[test]
fn another_number_of_partitions_is_refused() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let of = |partitions| RemoteOptions::new(server.url()).partitions(PartitionConfig::hash(partitions));
    connect(of(4));
    connect(of(4));
    assert_eq!(refusal(of(3)), DistributedError::PartitionMismatch { stored: 4, given: 3 });
}

#[test]
fn a_newer_queue_is_left_alone() {
    needs_redis!();
    let server = Redis::with(SAFE);
    put(&connect(server.url()), 1);
    server.say::<()>(&["HSET", "corelane:{corelane}:meta", "version", "7"]);
    match refusal(server.url()) {
        DistributedError::SchemaVersion { found, supported, .. } => assert_eq!((&*found, &*supported), ("7", "1")),
        other => panic!("{other}"),
    }
    server.say::<()>(&["HSET", "corelane:{corelane}:meta", "version", "1"]);
    assert_eq!(take(&connect(server.url()), 10).len(), 1);
}

#[test]
fn what_is_damaged_is_put_aside_and_the_rest_goes_on() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let ids: Vec<_> = (0..6).map(|number| put(&queue, number)).collect();
    let commands = "corelane:{corelane}:commands";
    let states = "corelane:{corelane}:states";
    server.say::<()>(&["HSET", commands, &ids[0], "{\"v\":1,\"envelope\":"]);
    let newer: String = server.say::<String>(&["HGET", commands, &ids[1]]).replacen("\"v\":1", "\"v\":9", 1);
    server.say::<()>(&["HSET", commands, &ids[1], &newer]);
    server.say::<()>(&["HDEL", commands, &ids[2]]);
    server.say::<()>(&["HSET", states, &ids[3], "not a record"]);
    let keyed = EnqueueOptions::new().idempotency_key("a");
    block_on(queue.enqueue_with(CommandEnvelope { id: "keyed".to_owned(), ..envelope(9) }, keyed.clone())).unwrap();
    server.say::<()>(&["HSET", states, "keyed", "not a record"]);
    server.say::<()>(&["ZADD", "corelane:{corelane}:times", "1", "not an event"]);
    server.say::<()>(&["ZADD", "corelane:{corelane}:ready", "0", "0\nnot a place"]);
    server.say::<()>(&["ZADD", "corelane:{corelane}:since", "0", "0\nnot a time"]);
    let got: Vec<_> = take(&queue, 2).into_iter().map(|leased| leased.envelope.id).collect();
    assert_eq!(got, ids[4..]);
    assert!(take(&queue, 2).is_empty());
    assert!(!block_on(queue.enqueue_with(envelope(8), keyed)).unwrap().duplicate, "its key is free");
    assert_eq!(take(&queue, 1).len(), 1);
    let mut letters = block_on(queue.dead_letters(DeadPage::first(10))).unwrap();
    letters.retain(|letter| letter.envelope.id != "keyed");
    let dead: BTreeSet<_> = letters.iter().map(|letter| letter.envelope.id.clone()).collect();
    assert_eq!(dead, ids[..4].iter().cloned().collect());
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadReason::Undecodable(_))), "{letters:?}");
    let first = letters.iter().find(|letter| letter.envelope.id == ids[0]).unwrap();
    assert_eq!(first.envelope.payload, json!("{\"v\":1,\"envelope\":"), "as it is");
    assert_eq!(server.say::<String>(&["HGET", "corelane:{corelane}:damaged", &ids[3]]), "not a record");
    let depth = block_on(queue.depth(0)).unwrap();
    assert_eq!((depth.ready, depth.leased, depth.dead, depth.oldest_ready), (0, 3, 5, None));
}

#[test]
fn a_damaged_dead_letter_is_shown_and_can_be_discarded() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let ids = [put(&queue, 0), put(&queue, 1)];
    for leased in take(&queue, 2) {
        block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).unwrap();
    }
    server.say::<()>(&["HSET", "corelane:{corelane}:states", &ids[0], "not a record"]);
    let letters = block_on(queue.dead_letters(DeadPage::first(10))).unwrap();
    assert!(matches!(letters[0].reason, DeadReason::Undecodable(_)), "{letters:?}");
    assert_eq!((&letters[0].envelope.id, &letters[1].reason), (&ids[0], &DeadReason::Expired));
    assert!(!block_on(queue.replay(&ids[0])).unwrap());
    assert!(block_on(queue.discard(&ids[0])).unwrap());
    assert_eq!(block_on(queue.dead_letters(DeadPage::first(10))).unwrap().len(), 1);
    assert_eq!(block_on(queue.depth(0)).unwrap().dead, 1);
}

/// Any byte of any state: no call fails for that, and what is undamaged comes.
#[test]
fn whatever_byte_is_damaged_the_rest_goes_on() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let terms = EnqueueOptions::new().idempotency_key("a").keep_result(Duration::from_secs(60)).max_deliveries(3);
    let terms = terms.expires_after(Duration::from_secs(600));
    let sent = envelope(0);
    block_on(queue.enqueue_with(sent.clone(), terms)).unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let states = "corelane:{corelane}:states";
    let whole: Vec<u8> = redis::cmd("HGET").arg(states).arg(&sent.id).query(&mut connection).unwrap();
    for at in 0..whole.len() {
        for value in [whole[at] ^ 1, whole[at] ^ 0x80, 0xc0, 0xcb, 0xff] {
            damage_one(&mut connection, &queue, &sent, states, &whole, at, value);
        }
    }
}

/// A queue with this command alone, whose state has that byte.
fn damage_one(
    connection: &mut redis::Connection,
    queue: &RedisDistributedQueue,
    sent: &CommandEnvelope,
    states: &str,
    whole: &[u8],
    at: usize,
    value: u8,
) {
    redis::cmd("FLUSHALL").query::<()>(connection).unwrap();
    let terms = EnqueueOptions::new().idempotency_key("a").keep_result(Duration::from_secs(60)).max_deliveries(3);
    block_on(queue.enqueue_with(sent.clone(), terms.expires_after(Duration::from_secs(600)))).unwrap();
    let mut damaged = whole.to_vec();
    damaged[at] = value;
    redis::cmd("HSET").arg(states).arg(&sent.id).arg(&damaged).query::<()>(connection).unwrap();
    let other = put(queue, 1);
    let mut got = Vec::new();
    for _ in 0..2 {
        for leased in take(queue, 5) {
            let outcome = block_on(queue.ack(&leased.token, done(&leased.token))).unwrap();
            got.push((leased.envelope.id, outcome));
        }
    }
    assert!(got.contains(&(other, AckOutcome::Applied)), "byte {at} is {value}: {got:?}");
    block_on(queue.dead_letters(DeadPage::first(10))).unwrap();
    block_on(queue.depth(0)).unwrap();
}

#[test]
fn a_damaged_lease_gives_its_room_back() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    block_on(queue.set_limits("query", GlobalLimits::none().max_leased(1))).unwrap();
    let ids = [put(&queue, 0), put(&queue, 1)];
    let claim = || Claim::new(5).lease(Duration::from_millis(200)).wait(Duration::from_secs(10));
    assert_eq!(block_on(queue.dequeue_leased(0, claim())).unwrap().len(), 1);
    server.say::<()>(&["HSET", "corelane:{corelane}:states", &ids[0], "not a record"]);
    let taken = block_on(queue.dequeue_leased(0, claim())).unwrap();
    assert_eq!((taken.len(), &taken[0].envelope.id), (1, &ids[1]));
    assert_eq!(block_on(queue.depth(0)).unwrap().dead, 1);
}

#[test]
fn a_damaged_lease_whose_command_expires_first_gives_its_room_back() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    block_on(queue.set_limits("query", GlobalLimits::none().max_leased(1))).unwrap();
    let sent = envelope(0);
    let terms = EnqueueOptions::new().expires_after(Duration::from_secs(1));
    block_on(queue.enqueue_with(sent.clone(), terms.clone())).unwrap();
    let claim = || Claim::new(5).lease(Duration::from_secs(60)).wait(Duration::from_secs(10));
    assert_eq!(block_on(queue.dequeue_leased(0, claim())).unwrap().len(), 1);
    server.say::<()>(&["HSET", "corelane:{corelane}:states", &sent.id, "not a record"]);
    let other = put(&queue, 1);
    let taken = block_on(queue.dequeue_leased(0, claim())).unwrap();
    assert_eq!((taken.len(), &taken[0].envelope.id), (1, &other));
    let late = envelope(2);
    block_on(queue.enqueue_with(late.clone(), terms.delay(Duration::from_secs(60)))).unwrap();
    server.say::<()>(&["HSET", "corelane:{corelane}:states", &late.id, "not a record"]);
    std::thread::sleep(Duration::from_millis(1100));
    let depth = block_on(queue.depth(0)).unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.leased, depth.dead), (0, 0, 1, 2));
    assert_eq!(server.say::<i64>(&["ZCARD", "corelane:{corelane}:times"]), 1, "the end of the other's lease");
}

#[test]
fn what_is_not_leased_when_its_time_is_over_expires_however_it_comes_back() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let (queue, other) = (connect(server.url()), connect(server.url()));
    let terms = EnqueueOptions::new().expires_after(Duration::from_secs(1));
    for number in 0..5 {
        block_on(queue.enqueue_with(envelope(number), terms.clone())).unwrap();
    }
    let lease = |of: &RedisDistributedQueue, max: usize, lease: Duration| {
        block_on(of.dequeue_leased(0, Claim::new(max).lease(lease))).unwrap()
    };
    assert_eq!(lease(&queue, 1, Duration::from_millis(1200)).len(), 1);
    let given_back = lease(&queue, 3, Duration::from_secs(60));
    assert_eq!((given_back.len(), lease(&other, 1, Duration::from_secs(60)).len()), (3, 1));
    std::thread::sleep(Duration::from_millis(1500));
    // What was due is done: that they are leased is seen when their time is over.
    block_on(queue.depth(0)).unwrap();
    let retry = |delay| Nack::RetryAfter { delay, error: "again".to_owned() };
    let ways = [Nack::Release, retry(Duration::ZERO), retry(Duration::from_secs(60))];
    for (leased, nack) in given_back.iter().zip(ways) {
        assert_eq!(block_on(queue.nack(&leased.token, nack)).unwrap(), AckOutcome::Applied);
    }
    block_on(other.close(Duration::from_secs(5))).unwrap();
    assert!(take(&queue, 10).is_empty());
    let letters = block_on(queue.dead_letters(DeadPage::first(10))).unwrap();
    assert_eq!(letters.len(), 5);
    assert!(letters.iter().all(|letter| letter.reason == DeadReason::Expired), "{letters:?}");
}

#[test]
fn who_gives_back_again_hears_that_it_was_done_also_after_others_had_it() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let (queue, other) = (connect(server.url()), connect(server.url()));
    let retry = Nack::RetryAfter { delay: Duration::ZERO, error: "again".to_owned() };
    for nack in [Nack::Release, retry] {
        put(&queue, 1);
        let first = take(&queue, 1).remove(0).token;
        let give_back = || block_on(queue.nack(&first, nack.clone())).unwrap();
        assert_eq!(give_back(), AckOutcome::Applied);
        let second = take(&other, 1).remove(0).token;
        assert_eq!(give_back(), AckOutcome::AlreadyApplied);
        assert_eq!(block_on(other.nack(&second, Nack::Release)).unwrap(), AckOutcome::Applied);
        assert_eq!(give_back(), AckOutcome::AlreadyApplied, "another lease has ended since");
        let third = take(&other, 1).remove(0).token;
        assert_eq!(ack(&queue, &first), AckOutcome::LeaseLost, "that is something else");
        assert_eq!(ack(&other, &third), AckOutcome::Applied);
        assert_eq!(give_back(), AckOutcome::AlreadyApplied, "the command has ended since");
    }
}

#[test]
fn who_closes_waits_for_calls_on_their_way() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let proxy = Proxy::start(server.port());
    let queue = connect(server.url_at(proxy.port()));
    let slow = Duration::from_millis(600);
    proxy.set(Fault::Delay { to_server: Duration::ZERO, to_client: slow, jitter: Duration::ZERO });
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| block_on(queue.enqueue(envelope(1))));
        while server.say::<i64>(&["HLEN", "corelane:{corelane}:commands"]) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        // It is in, and the answer is on its way.
        block_on(queue.close(Duration::from_secs(20))).unwrap();
        putting.join().unwrap().expect("it was accepted, and who sent it hears so");
    });
    match block_on(queue.enqueue(envelope(2))) {
        Err(LaneError::Distributed(DistributedError::Closed)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(take(&connect(server.url()), 10).len(), 1);
}

#[test]
fn a_call_that_is_not_waited_for_when_the_handle_closes_is_not_said_to_be_refused() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    put(&queue, 1);
    server.hang();
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| block_on(queue.enqueue(envelope(2))));
        std::thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        // There is nothing that the server had to be told.
        block_on(queue.close(Duration::from_millis(300))).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        match putting.join().unwrap() {
            Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => {}
            other => panic!("{other:?}"),
        }
    });
    server.go_on();
}

#[test]
fn letters_are_given_once_also_where_some_go_in_between() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let proxy = Proxy::start(server.port());
    let (queue, slow) = (connect(server.url()), connect(server.url_at(proxy.port())));
    let ids: Vec<_> = (0..300).map(|number| put(&queue, number)).collect();
    for leased in take(&queue, 300) {
        block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).unwrap();
    }
    block_on(slow.dead_letters(DeadPage::first(1))).unwrap();
    let wait = Duration::from_millis(600);
    proxy.set(Fault::Delay { to_server: Duration::ZERO, to_client: wait, jitter: Duration::ZERO });
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| block_on(slow.dead_letters(DeadPage::first(1000))).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        // The last one of the first script's.
        assert!(block_on(queue.discard(&ids[127])).unwrap());
        let mut read: Vec<_> = reading.join().unwrap().into_iter().map(|letter| letter.envelope.id).collect();
        let mut expected = ids.clone();
        read.retain(|id| *id != ids[127]);
        expected.remove(127);
        assert_eq!(read, expected);
    });
}

#[test]
fn a_url_that_switches_checks_off_is_refused() {
    for url in ["rediss://127.0.0.1:1/#insecure", "redis://127.0.0.1:1#insecure"] {
        match block_on(RedisDistributedQueue::connect(url)) {
            Err(LaneError::ConfigError(errors)) => assert!(errors.to_string().contains("fragment"), "{errors}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_server_that_was_emptied_has_the_queue_again() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    put(&queue, 1);
    server.say::<()>(&["FLUSHALL"]);
    put(&queue, 2);
    assert_eq!(take(&connect(server.url()), 10).len(), 1, "another one can open it");
    server.say::<()>(&["FLUSHALL"]);
    block_on(queue.set_limits("query", GlobalLimits::none().max_leased(1))).unwrap();
    connect(server.url());
    server.say::<()>(&["FLUSHALL"]);
    connect(RemoteOptions::new(server.url()).partitions(PartitionConfig::hash(3)));
    match block_on(queue.enqueue(envelope(3))) {
        Err(LaneError::Distributed(DistributedError::PartitionMismatch { stored: 3, given: 1 })) => {}
        other => panic!("{other:?}"),
    }
}

/// Does something of everything.
fn use_all(queue: &RedisDistributedQueue) {
    let rate = RateLimitConfig::new(1000, Duration::from_secs(1)).sliding_window();
    block_on(queue.set_limits("query", GlobalLimits::none().max_leased(100).rate(rate))).unwrap();
    for partition_id in 0..queue.num_partitions() {
        let terms = EnqueueOptions::new()
            .idempotency_key(format!("key {partition_id}"))
            .keep_result(Duration::from_secs(60))
            .expires_after(Duration::from_secs(60));
        let commands = (0..4).map(|number| (CommandEnvelope { partition_id, ..envelope(number) }, terms.clone()));
        // Of one key there is one.
        assert!(block_on(queue.enqueue_batch(commands.collect())).into_iter().filter(Result::is_ok).count() == 1);
        let more = (0..4).map(|number| (CommandEnvelope { partition_id, ..envelope(number) }, EnqueueOptions::new()));
        assert!(block_on(queue.enqueue_batch(more.collect())).into_iter().all(|receipt| receipt.is_ok()));
        let late = EnqueueOptions::new().delay(Duration::from_secs(60));
        block_on(queue.enqueue_with(CommandEnvelope { partition_id, ..envelope(9) }, late)).unwrap();
        let leased = block_on(queue.dequeue_leased(partition_id, Claim::new(4))).unwrap();
        assert_eq!(leased.len(), 4);
        assert_eq!(ack(queue, &leased[0].token), AckOutcome::Applied);
        assert!(block_on(queue.result(&leased[0].envelope.id, Duration::ZERO)).unwrap().is_some());
        block_on(queue.dead_letter(&leased[1].token, DeadReason::Expired)).unwrap();
        block_on(queue.dead_letter(&leased[2].token, DeadReason::Expired)).unwrap();
        assert!(block_on(queue.replay(&leased[1].envelope.id)).unwrap());
        block_on(queue.extend(&leased[3].token, Duration::from_secs(9))).unwrap();
        let depth = block_on(queue.depth(partition_id)).unwrap();
        assert_eq!((depth.ready, depth.delayed, depth.leased, depth.dead), (2, 1, 1, 1));
    }
}

#[test]
fn all_keys_of_a_queue_have_one_hash_tag() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let of = |name: &str| RemoteOptions::new(server.url()).namespace(name).partitions(PartitionConfig::hash(3));
    use_all(&connect(of("mail")));
    use_all(&connect(of("mail-2")));
    let keys: Vec<String> = server.say(&["KEYS", "*"]);
    assert!((20..=30).contains(&keys.len()), "{keys:?}");
    let tagged = |key: &String| key.starts_with("corelane:{mail}:") || key.starts_with("corelane:{mail-2}:");
    assert!(keys.iter().all(tagged), "{keys:?}");
}

#[test]
fn a_node_of_a_cluster_has_a_queue() {
    needs_redis!();
    let server = Redis::with(&[SAFE, &["--cluster-enabled", "yes"]].concat());
    let options = || RemoteOptions::new(server.url()).connect_timeout(Duration::from_secs(1));
    let refused = refusal(options());
    assert!(
        matches!(&refused, DistributedError::Unavailable { cause, .. } if cause.contains("CLUSTERDOWN")),
        "{refused}"
    );
    server.say::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let queue = connect(options().connect_timeout(Duration::from_secs(20)).partitions(PartitionConfig::hash(3)));
    use_all(&queue);
    assert!(queue.capabilities().notes.join("; ").contains("cluster"));
}

#[test]
fn a_window_is_kept_by_all() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let (queue, other) = (connect(server.url()), connect(server.url()));
    let rate = RateLimitConfig::new(3, Duration::from_millis(800)).sliding_window();
    block_on(queue.set_limits("query", GlobalLimits::none().rate(rate))).unwrap();
    (0..10).for_each(|number| drop(put(&queue, number)));
    let begun = Instant::now();
    assert_eq!(take(&queue, 2).len() + take(&other, 5).len(), 3);
    assert!(take(&queue, 5).is_empty());
    let claim = Claim::new(5).wait(Duration::from_secs(10));
    assert!(!block_on(other.dequeue_leased(0, claim)).unwrap().is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(790), "{:?}", begun.elapsed());
}

#[test]
fn who_waits_does_not_keep_others_waiting() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(RemoteOptions::new(server.url()).partitions(PartitionConfig::round_robin(2)));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| block_on(queue.dequeue_leased(1, Claim::new(1).wait(Duration::from_secs(20)))).unwrap());
        let begun = Instant::now();
        for number in 0..20 {
            block_on(queue.enqueue(CommandEnvelope { partition_id: 0, ..envelope(number) })).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        block_on(queue.enqueue(CommandEnvelope { partition_id: 1, ..envelope(9) })).unwrap();
        assert_eq!(waiting.join().unwrap().len(), 1);
    });
}

#[test]
fn a_claim_that_is_not_waited_for_gives_back_what_it_takes() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    {
        let waiting = queue.dequeue_leased(0, Claim::new(1).wait(Duration::from_secs(20)));
        let waiting = futures::future::poll_immediate(waiting);
        assert!(block_on(waiting).is_none());
    }
    put(&queue, 1);
    let leased = block_on(queue.dequeue_leased(0, Claim::new(1).wait(Duration::from_secs(10)))).unwrap();
    assert_eq!((leased.len(), leased[0].delivery), (1, 1));
}

#[test]
fn what_is_due_at_once_keeps_its_order() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let late = EnqueueOptions::new().delay(Duration::from_millis(500));
    let commands = (0..300).map(|number| (envelope(number), late.clone())).collect();
    assert!(block_on(queue.enqueue_batch(commands)).into_iter().all(|receipt| receipt.is_ok()));
    let best = late.clone().priority(0);
    block_on(queue.enqueue_with(envelope(1000), best)).unwrap();
    std::thread::sleep(Duration::from_millis(900));
    let first = take(&queue, 1);
    assert_eq!(first[0].envelope.payload["number"], 1000, "all that is due has its place before one is taken");
    assert_eq!(take(&queue, 1000).len(), 300);
}

#[test]
fn what_comes_stands_behind_all_that_was_due() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let given_up = put(&queue, 0);
    block_on(queue.dead_letter(&take(&queue, 1)[0].token, DeadReason::Expired)).unwrap();
    let late = || {
        let terms = EnqueueOptions::new().delay(Duration::from_millis(500));
        let commands = (0..300).map(|number| (envelope(number), terms.clone())).collect();
        assert!(block_on(queue.enqueue_batch(commands)).into_iter().all(|receipt| receipt.is_ok()));
        std::thread::sleep(Duration::from_millis(900));
    };
    let last = || {
        let taken = take(&queue, 1000);
        taken.iter().for_each(|leased| assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied));
        (taken.len(), taken.last().map(|leased| leased.envelope.id.clone()))
    };
    late();
    let sent = put(&queue, 1);
    assert_eq!(last(), (301, Some(sent)));
    late();
    assert!(block_on(queue.replay(&given_up)).unwrap());
    assert_eq!(last(), (301, Some(given_up)));
}

#[test]
fn tls_goes_to_whom_the_given_roots_trust() {
    needs_redis!();
    if !Redis::has_tls() {
        return;
    }
    let place = Place::new("redis-tls");
    let openssl = |arguments: &str| {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(&place.0).output();
        made.is_ok_and(|made| made.status.success())
    };
    let made = openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca")
        && openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost")
        && {
            std::fs::write(place.0.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
            openssl(
                "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
            )
        };
    assert!(made, "openssl is needed");
    let pem = std::fs::read(place.0.join("ca.crt")).unwrap();
    let server = Redis::with_tls(place);
    let options = || RemoteOptions::new(server.url()).connect_timeout(Duration::from_secs(2));
    let queue = connect(options().root_certificates(pem));
    put(&queue, 1);
    assert_eq!(take(&queue, 1).len(), 1);
    let refused = refusal(options());
    assert!(
        matches!(&refused, DistributedError::Unavailable { cause, .. } if cause.contains("certificate")),
        "{refused}"
    );
    let wrong = block_on(RedisDistributedQueue::connect(options().root_certificates("nothing")));
    assert!(
        matches!(&wrong, Err(LaneError::ConfigError(errors)) if errors.to_string().contains("root_certificates")),
        "{wrong:?}"
    );
}

#[test]
fn a_claim_that_is_on_its_way_when_the_handle_closes_keeps_nothing() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let (queue, other) = (connect(server.url()), connect(server.url()));
    std::thread::scope(|scope| {
        let claim = Claim::new(1).wait(Duration::from_secs(20));
        let waiting = scope.spawn(|| block_on(queue.dequeue_leased(0, claim)));
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        let closing = scope.spawn(|| block_on(queue.close(Duration::from_secs(5))).unwrap());
        put(&other, 1);
        closing.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        match waiting.join().unwrap() {
            // It was faster.
            Ok(leased) => assert!(leased.len() <= 1),
            Err(LaneError::Distributed(DistributedError::Closed)) => {}
            Err(other) => panic!("{other}"),
        }
    });
    let leased = block_on(other.dequeue_leased(0, Claim::new(1).wait(Duration::from_secs(10)))).unwrap();
    assert_eq!((leased.len(), leased[0].delivery), (1, 1));
}

#[test]
fn lost_answers_lose_no_command_and_end_none_twice() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let proxy = Proxy::start(server.port());
    let url = server.url_at(proxy.port());
    let (accepted, ended) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    proxy.lose_one_of(23);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let queue = connect(url.as_str());
            for number in 0..150 {
                let id = put(&queue, number);
                assert!(accepted.lock().unwrap().insert(id));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let queue = connect(url.as_str());
                let begun = Instant::now();
                while ended.lock().unwrap().len() < 150 {
                    assert!(begun.elapsed() < Duration::from_secs(100), "not all have ended");
                    let claim = Claim::new(3).lease(Duration::from_secs(1)).wait(Duration::from_millis(100));
                    let taken = match block_on(queue.dequeue_leased(0, claim)) {
                        Ok(taken) => taken,
                        Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => continue,
                        Err(other) => panic!("{other}"),
                    };
                    for leased in taken {
                        match ack(&queue, &leased.token) {
                            AckOutcome::Applied => assert!(ended.lock().unwrap().insert(leased.envelope.id), "twice"),
                            AckOutcome::LeaseLost => {}
                            other => panic!("{other:?} is no answer to the first acknowledgement"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(*accepted.lock().unwrap(), *ended.lock().unwrap());
    assert!(proxy.lost() > 10, "only {} answers were lost", proxy.lost());
    assert!(take(&connect(server.url()), 10).is_empty());
}

#[test]
fn a_server_that_goes_is_said_to_be_gone_and_comes_back() {
    needs_redis!();
    let mut server = Redis::with(SAFE);
    let queue = connect(RemoteOptions::new(server.url()).call_timeout(Duration::from_millis(800)));
    put(&queue, 1);
    server.kill();
    let failed = |queue: &RedisDistributedQueue| match block_on(queue.enqueue(envelope(2))) {
        Err(LaneError::Distributed(error)) => error,
        other => panic!("{other:?}"),
    };
    // The first one to notice does not know whether it was heard.
    let first = failed(&queue);
    assert!(first.is_transient(), "{first}");
    match failed(&queue) {
        DistributedError::Unavailable { server: named, cause } => {
            assert!(named == server.url() && cause.contains("refused"), "{named}: {cause}");
        }
        other => panic!("{other}"),
    }
    assert!(matches!(queue.health(), DistributedHealth::Reconnecting { .. }), "{:?}", queue.health());
    // Of a batch of several scripts, the rest is not tried.
    let (begun, many) = (Instant::now(), (0..1000).map(|number| (envelope(number), EnqueueOptions::new())).collect());
    let receipts = block_on(queue.enqueue_batch(many));
    assert!(receipts.len() == 1000 && receipts.iter().all(Result::is_err));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    server.restart();
    let queue = connect(server.url());
    assert_eq!(take(&queue, 10).len(), 1);
}

#[test]
fn a_busy_server_is_waited_for() {
    needs_redis!();
    let server = Redis::with(&[SAFE, &["--busy-reply-threshold", "50"]].concat());
    let queue = connect(server.url());
    put(&queue, 1);
    std::thread::scope(|scope| {
        let client = redis::Client::open(server.url()).unwrap();
        let mut endless = client.get_connection().unwrap();
        scope.spawn(move || redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut endless));
        std::thread::sleep(Duration::from_millis(300));
        let putting = scope.spawn(|| put(&queue, 2));
        std::thread::sleep(Duration::from_millis(300));
        server.say::<()>(&["SCRIPT", "KILL"]);
        putting.join().unwrap();
    });
    assert_eq!(take(&queue, 10).len(), 2);
}

#[test]
fn fences_grow_also_where_the_server_has_lost_everything() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let queue = connect(server.url());
    let sent = envelope(1);
    block_on(queue.enqueue(sent.clone())).unwrap();
    let before = take(&queue, 1).remove(0).token;
    server.say::<()>(&["FLUSHALL"]);
    block_on(queue.enqueue(sent)).unwrap();
    let other = connect(server.url());
    let after = take(&other, 1).remove(0).token;
    assert!(after.fence() > before.fence(), "{after:?} after {before:?}");
    assert_eq!(ack(&queue, &before), AckOutcome::LeaseLost);
    assert_eq!(ack(&other, &after), AckOutcome::Applied);
}

#[test]
fn who_waits_hears_of_what_others_do() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let (queue, other) = (connect(server.url()), connect(server.url()));
    let hear = |what: &str, act: &dyn Fn()| {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let claim = Claim::new(1).wait(Duration::from_secs(20));
                let leased = block_on(queue.dequeue_leased(0, claim)).unwrap().remove(0);
                (leased.token, Instant::now())
            });
            // Until it looks but once a second.
            std::thread::sleep(Duration::from_millis(1500));
            let begun = Instant::now();
            act();
            let (token, taken) = waiting.join().unwrap();
            (token, what.to_owned(), taken.duration_since(begun))
        })
    };
    let mut waits = Vec::new();
    let (token, what, wait) = hear("enqueue", &|| drop(put(&other, 1)));
    waits.push((what, wait));
    let (token, what, wait) = hear("retry", &|| {
        let nack = Nack::RetryAfter { delay: Duration::ZERO, error: "again".to_owned() };
        block_on(other.nack(&token, nack)).unwrap();
    });
    waits.push((what, wait));
    block_on(other.set_limits("query", GlobalLimits::none().max_leased(1))).unwrap();
    put(&other, 2);
    let (_, what, wait) = hear("room under a limit", &|| assert_eq!(ack(&other, &token), AckOutcome::Applied));
    waits.push((what, wait));
    let waited: Duration = waits.iter().map(|(_, wait)| *wait).sum();
    // Without hearing of it, half a second each on average.
    assert!(waited < Duration::from_millis(700), "{waits:?}");
    let channels: Vec<String> = server.say(&["PUBSUB", "CHANNELS", "*"]);
    assert_eq!(channels, ["corelane:{corelane}:stirred"]);
}

#[test]
fn who_can_not_hear_looks_by_itself() {
    needs_redis!();
    let server = Redis::with(SAFE);
    let user = ["ACL", "SETUSER", "deaf", "on", ">secret", "~corelane:*", "resetchannels", "+@all"];
    server.say::<()>(&user);
    let url = format!("redis://deaf:secret@127.0.0.1:{}", server.port());
    let (queue, other) = (connect(url.as_str()), connect(url.as_str()));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| block_on(queue.dequeue_leased(0, Claim::new(1).wait(Duration::from_secs(20)))).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        put(&other, 1);
        assert_eq!(waiting.join().unwrap().len(), 1);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}
