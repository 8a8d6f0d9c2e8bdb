//! The queue in PostgreSQL: the suite, and what it has of its own.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, DistributedHealth,
    DistributedQueue, Durability, EnqueueOptions, GlobalLimits, LaneError, LeaseToken, Leased, Nack, PartitionConfig,
    PostgresDistributedQueue, RemoteOptions,
};
use futures::executor::block_on;
use serde_json::json;

use crate::conforms;
use crate::model::{PARTITIONS, agrees_with_the_reference};
use crate::servers::postgres::{PASSWORD, Postgres};
use crate::servers::{Server as _, free_port, started};

#[test]
fn conformance() {
    conforms::<Postgres, _>(|options| async move {
        Ok(Arc::new(PostgresDistributedQueue::connect(options).await?) as Queue)
    });
}

#[test]
fn the_queue_does_what_the_reference_does() {
    let Some(server) = started::<Postgres>() else { return };
    for seed in 0..20 {
        let options = RemoteOptions::new(server.url()).namespace(format!("seed-{seed}"));
        let queue = block_on(open(options.partitions(PartitionConfig::round_robin(PARTITIONS))));
        block_on(agrees_with_the_reference(Arc::new(queue), seed, 400));
    }
}

/// What the queue says that refuses.
#[track_caller]
fn refusal<T>(result: Result<T, LaneError>) -> DistributedError {
    match result {
        Err(LaneError::Distributed(error)) => error,
        Err(other) => panic!("it was to be refused by the queue, and is: {other}"),
        Ok(_) => panic!("it was to be refused"),
    }
}

async fn open(options: impl Into<RemoteOptions>) -> PostgresDistributedQueue {
    PostgresDistributedQueue::connect(options).await.expect("it can be opened")
}

fn envelope(number: usize) -> CommandEnvelope {
    CommandEnvelope::new("sample", "query", json!({ "number": number }))
}

fn done(token: &LeaseToken) -> CommandResult {
    CommandResult {
        command_id: token.command_id().to_owned(),
        result: Ok(json!("done")),
        worker_id: "a worker".to_owned(),
        duration_ms: 1,
    }
}

async fn take(queue: &PostgresDistributedQueue, max: usize) -> Vec<Leased> {
    queue.dequeue_leased(0, Claim::new(max)).await.expect("commands can be taken")
}

/// A runtime of the caller's own.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn client(server: &Postgres) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.expect("a client can connect");
    tokio::spawn(connection);
    client
}

#[test]
fn a_command_is_part_of_the_callers_transaction() {
    let Some(server) = started::<Postgres>() else { return };
    runtime().block_on(async {
        let queue = open(server.url()).await;
        let mut client = client(&server).await;
        client.batch_execute("create table orders (number int)").await.unwrap();
        let new = EnqueueOptions::new;
        for (number, commits) in [(1, true), (2, false), (3, true)] {
            let transaction = client.transaction().await.unwrap();
            transaction.execute("insert into orders values ($1)", &[&number]).await.unwrap();
            let options = new().idempotency_key(format!("order-{number}")).priority(number as u8);
            let receipt = queue.enqueue_in(&transaction, envelope(number as usize), options).await.unwrap();
            assert!(!receipt.duplicate);
            assert!(take(&queue, 10).await.is_empty(), "before the commit, nobody has it");
            if commits {
                transaction.commit().await.unwrap();
                let taken = take(&queue, 10).await;
                assert_eq!((taken.len(), &taken[0].token.command_id().to_owned()), (1, &receipt.command_id));
                queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
                assert!(take(&queue, 10).await.is_empty(), "it never was");
            }
        }
        let orders = client.query("select number from orders order by number", &[]).await.unwrap();
        assert_eq!(orders.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1, 3]);
        // The key of what was rolled back is free.
        assert!(!queue.enqueue_with(envelope(2), new().idempotency_key("order-2")).await.unwrap().duplicate);
        let bad = CommandEnvelope { lane_id: String::new(), ..envelope(4) };
        let transaction = client.transaction().await.unwrap();
        assert!(queue.enqueue_in(&transaction, bad, new()).await.is_err());
        queue.enqueue_in(&transaction, envelope(5), new()).await.expect("what was not sent breaks nothing");
        transaction.commit().await.unwrap();
    });
}

#[test]
fn an_open_transaction_holds_up_nobody_but_who_puts_the_same_in() {
    let Some(server) = started::<Postgres>() else { return };
    runtime().block_on(async {
        let queue = open(RemoteOptions::new(server.url()).call_timeout(Duration::from_secs(2))).await;
        queue.enqueue(envelope(1)).await.unwrap();
        let taken = take(&queue, 1).await;
        let mut client = client(&server).await;
        let transaction = client.transaction().await.unwrap();
        let keyed = || EnqueueOptions::new().idempotency_key("one");
        queue.enqueue_in(&transaction, envelope(2), keyed()).await.unwrap();
        let begun = Instant::now();
        let same = queue.enqueue_with(envelope(2), keyed());
        let others = async {
            queue.extend(&taken[0].token, Duration::from_secs(60)).await.unwrap();
            assert_eq!(queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap(), AckOutcome::Applied);
            assert!(take(&queue, 10).await.is_empty());
            queue.depth(0).await.unwrap();
            let ended = begun.elapsed();
            queue.enqueue(envelope(3)).await.unwrap();
            (ended, begun.elapsed())
        };
        let (same, (ended, put)) = futures::future::join(same, others).await;
        assert!(ended < Duration::from_secs(1), "they were held up for {ended:?}");
        assert!(put < Duration::from_millis(1500), "what is put in here was held up for {put:?}");
        let refused = refusal(same);
        assert!(matches!(refused, DistributedError::Unavailable { .. }), "{refused}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        transaction.commit().await.unwrap();
        assert!(queue.enqueue_with(envelope(2), keyed()).await.unwrap().duplicate);
        assert_eq!(take(&queue, 10).await.len(), 2);
    });
}

#[test]
fn many_may_make_the_queue_at_once() {
    let Some(server) = started::<Postgres>() else { return };
    let handles: Vec<_> = (0..8)
        .map(|_| {
            let url = server.url();
            std::thread::spawn(move || block_on(open(url)))
        })
        .collect();
    let queues: Vec<_> = handles.into_iter().map(|handle| handle.join().expect("it was opened")).collect();
    block_on(async {
        for (number, queue) in queues.iter().enumerate() {
            queue.enqueue(envelope(number)).await.unwrap();
        }
        assert_eq!(take(&queues[0], 100).await.len(), 8);
    });
    assert_eq!(server.sql("select version from corelane_corelane.meta"), "1");
}

#[test]
fn a_queue_of_a_newer_version_is_left_alone() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        open(server.url()).await.close(Duration::from_secs(5)).await.unwrap();
        server.sql("update corelane_corelane.meta set version = 1000");
        match refusal(PostgresDistributedQueue::connect(server.url()).await) {
            DistributedError::SchemaVersion { found, .. } => assert_eq!(found, "1000"),
            other => panic!("{other}"),
        }
        assert_eq!(server.sql("select version from corelane_corelane.meta"), "1000");
    });
}

#[test]
fn another_number_of_partitions_is_refused() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let with = |partitions| RemoteOptions::new(server.url()).partitions(PartitionConfig::hash(partitions));
        let _queue = open(with(4)).await;
        let refused = refusal(PostgresDistributedQueue::connect(with(5)).await);
        assert_eq!(refused, DistributedError::PartitionMismatch { stored: 4, given: 5 });
        let _other = open(with(5).namespace("other")).await;
    });
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let url = server.url().replace(PASSWORD, "wrong-canary");
        let begun = Instant::now();
        match refusal(PostgresDistributedQueue::connect(url).await) {
            DistributedError::Refused { server: name, cause } => {
                assert_eq!(name, format!("postgres://127.0.0.1:{}", server.port()));
                assert!(!cause.contains("canary"), "{cause}");
            }
            other => panic!("{other}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "trying again is of no use");
        let nobody = format!("postgres://127.0.0.1:{}/postgres", server.port());
        assert!(matches!(refusal(PostgresDistributedQueue::connect(nobody).await), DistributedError::Refused { .. }));
    });
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_so_in_time() {
    let port = free_port();
    let begun = Instant::now();
    let options = RemoteOptions::new(format!("postgres://u:{PASSWORD}@127.0.0.1:{port}/db"))
        .connect_timeout(Duration::from_secs(1));
    match refusal(block_on(PostgresDistributedQueue::connect(options))) {
        DistributedError::Unavailable { server, cause } => {
            assert_eq!(server, format!("postgres://127.0.0.1:{port}"));
            assert!(!cause.contains("canary"), "{cause}");
        }
        other => panic!("{other}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("it has one").port();
    let begun = Instant::now();
    let options =
        RemoteOptions::new(format!("postgres://u@127.0.0.1:{port}/db")).connect_timeout(Duration::from_secs(1));
    let refused = refusal(block_on(PostgresDistributedQueue::connect(options)));
    assert!(matches!(refused, DistributedError::Unavailable { .. }), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_killed_server_loses_nothing_that_it_has_acknowledged() {
    nothing_is_lost(|server| {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            server.kill();
            server.restart();
        }
    });
}

#[test]
fn connections_that_are_cut_lose_nothing_that_was_acknowledged() {
    nothing_is_lost(|server| {
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(70));
            server.sql(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'postgres-%'",
            );
        }
    });
}

/// Puts in and takes out while something happens to the server: what was accepted is ended, and once.
fn nothing_is_lost(disturb: impl FnOnce(&mut Postgres)) {
    let Some(mut server) = started::<Postgres>() else { return };
    let options = || RemoteOptions::new(server.url()).call_timeout(Duration::from_secs(20));
    let (accepted, ended) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(BTreeSet::new())));
    let stop = Arc::new(AtomicBool::new(false));
    let putting: Vec<_> = (0..2)
        .map(|_| {
            let (queue, accepted, stop) = (block_on(open(options())), Arc::clone(&accepted), Arc::clone(&stop));
            std::thread::spawn(move || {
                block_on(async {
                    while !stop.load(Ordering::Relaxed) {
                        // No faster than they are taken.
                        corelane::sleep(Duration::from_millis(5)).await;
                        if let Ok(receipt) = queue.enqueue_with(envelope(0), EnqueueOptions::new()).await {
                            accepted.lock().unwrap().insert(receipt.command_id);
                        }
                    }
                });
            })
        })
        .collect();
    let taking: Vec<_> = (0..2)
        .map(|_| {
            let (queue, accepted) = (block_on(open(options())), Arc::clone(&accepted));
            let (ended, stop) = (Arc::clone(&ended), Arc::clone(&stop));
            std::thread::spawn(move || {
                block_on(async {
                    let begun = Instant::now();
                    let all = || ended.lock().unwrap().is_superset(&accepted.lock().unwrap());
                    while !(stop.load(Ordering::Relaxed) && all()) {
                        assert!(begun.elapsed() < Duration::from_secs(60), "not all have come");
                        let claim = Claim::new(5).lease(Duration::from_secs(3)).wait(Duration::from_secs(1));
                        for leased in queue.dequeue_leased(0, claim).await.unwrap_or_default() {
                            match queue.ack(&leased.token, done(&leased.token)).await {
                                Ok(AckOutcome::Applied) => {
                                    let id = leased.token.command_id().to_owned();
                                    assert!(ended.lock().unwrap().insert(id), "it was ended twice");
                                }
                                Ok(AckOutcome::AlreadyApplied) => {
                                    ended.lock().unwrap().insert(leased.token.command_id().to_owned());
                                }
                                Ok(_) | Err(_) => {}
                            }
                        }
                    }
                });
            })
        })
        .collect();
    disturb(&mut server);
    std::thread::sleep(Duration::from_millis(700));
    stop.store(true, Ordering::Relaxed);
    for thread in putting.into_iter().chain(taking) {
        thread.join().expect("it has gone on");
    }
    assert!(accepted.lock().unwrap().len() > 5, "only {} were accepted", accepted.lock().unwrap().len());
}

#[test]
fn a_session_that_has_died_without_a_word_is_given_up_and_replaced() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(RemoteOptions::new(server.url()).call_timeout(Duration::from_secs(1))).await;
        queue.enqueue(envelope(1)).await.unwrap();
        let pids = "select string_agg(pid::text, ' ') from pg_stat_activity where application_name like 'postgres-%'";
        let pids = server.sql(pids);
        let tell = |signal: &str| {
            let told = Command::new("kill").arg(signal).args(pids.split(' ')).status();
            assert!(told.expect("kill can be started").success());
        };
        tell("-STOP");
        let begun = Instant::now();
        let sent = envelope(2);
        let unknown = refusal(queue.enqueue(sent.clone()).await);
        assert!(matches!(unknown, DistributedError::OutcomeUnknown { .. }), "{unknown}");
        assert!(!unknown.is_certain() && begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        queue.enqueue(sent).await.expect("another session does it");
        // What it was sent, it may do now: it is the same command.
        tell("-CONT");
        corelane::sleep(Duration::from_millis(300)).await;
        assert_eq!(queue.depth(0).await.unwrap().ready, 2);
    });
}

#[test]
fn health_says_when_the_server_is_gone_and_is_back() {
    let Some(mut server) = started::<Postgres>() else { return };
    let queue = block_on(open(RemoteOptions::new(server.url()).call_timeout(Duration::from_secs(1))));
    assert_eq!(queue.health(), DistributedHealth::Working);
    server.kill();
    let refused = refusal(block_on(queue.depth(0)));
    assert!(refused.is_transient(), "{refused}");
    assert!(matches!(queue.health(), DistributedHealth::Reconnecting { .. }));
    server.restart();
    let begun = Instant::now();
    while block_on(queue.depth(0)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not come back");
    }
    assert_eq!(queue.health(), DistributedHealth::Working);
}

#[test]
fn a_command_over_the_limit_is_not_sent() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(RemoteOptions::new(server.url()).max_payload(1000)).await;
        let of = |size| CommandEnvelope { payload: json!("x".repeat(size)), ..envelope(1) };
        queue.enqueue(of(700)).await.unwrap();
        let too_large = refusal(queue.enqueue(of(1001)).await);
        assert!(matches!(too_large, DistributedError::PayloadTooLarge { limit: 1000, .. }), "{too_large}");
        let headers = EnqueueOptions::new().header("x", "y".repeat(1000));
        assert!(matches!(refusal(queue.enqueue_with(of(10), headers).await), DistributedError::PayloadTooLarge { .. }));
        assert_eq!(queue.depth(0).await.unwrap().ready, 1);
    });
}

#[test]
fn a_damaged_command_is_put_aside_and_the_rest_goes_on() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        for number in 0..3 {
            queue.enqueue(envelope(number)).await.unwrap();
        }
        server.sql("update corelane_corelane.commands set body = '{\"pay' where place = (select min(place) from corelane_corelane.commands)");
        let first = take(&queue, 1).await;
        assert_eq!(first[0].envelope.payload["number"], 1);
        assert_eq!(take(&queue, 10).await.len(), 1);
        let letters = queue.dead_letters(DeadPage::first(10)).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert!(matches!(letters[0].reason, DeadReason::Undecodable(_)), "{:?}", letters[0]);
        assert_eq!(letters[0].envelope.payload, json!("{\"pay"), "it is kept as it is");
        // Put right, it can be run.
        server.sql("update corelane_corelane.commands set format = 7, body = '{}' where state = 3");
        assert!(queue.replay(&letters[0].envelope.id).await.unwrap());
        assert!(take(&queue, 1).await.is_empty(), "of a format that is not known");
        assert_eq!(queue.dead_letters(DeadPage::first(10)).await.unwrap().len(), 1);
    });
}

#[test]
fn a_server_that_acknowledges_early_is_told_of() {
    let Some(mut server) = started::<Postgres>() else { return };
    let queue = block_on(open(server.url()));
    let found = queue.capabilities();
    assert_eq!(found.durability, Durability::Synced);
    assert!(found.notes.iter().any(|note| note.starts_with("PostgreSQL 1")), "{:?}", found.notes);
    server.set("synchronous_commit = off");
    let queue = block_on(open(server.url()));
    let found = queue.capabilities();
    assert_eq!(found.durability, Durability::Relaxed);
    assert!(found.notes.iter().any(|note| note.contains("synchronous_commit")), "{:?}", found.notes);
}

#[test]
fn nothing_shows_the_password() {
    let Some(mut server) = started::<Postgres>() else { return };
    let options = RemoteOptions::new(server.url()).call_timeout(Duration::from_millis(300));
    let mut shown = format!("{options:?}");
    let queue = block_on(open(options));
    shown += &format!("{queue:?} {:?}", queue.capabilities());
    server.kill();
    for _ in 0..2 {
        shown += &format!("{:?}", block_on(queue.enqueue(envelope(1))));
        shown += &format!("{:?} {:?}", block_on(queue.depth(0)), queue.health());
    }
    shown += &format!("{:?}", block_on(queue.close(Duration::from_millis(100))));
    for url in ["postgres://u:canary@db.example.com/x", "postgres://u:canary@localhost/x?canary=canary", "canary"] {
        shown += &format!("{:?}", block_on(PostgresDistributedQueue::connect(url)).err());
    }
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn waiting_holds_up_nobody_and_sees_what_is_put_in_here_at_once() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        let claim = || Claim::new(1).wait(Duration::from_secs(10));
        let waiting = futures::future::join_all((0..20).map(|_| queue.dequeue_leased(0, claim())));
        let begun = Instant::now();
        let putting = async {
            corelane::sleep(Duration::from_secs(1)).await;
            let before = Instant::now();
            for number in 0..20 {
                queue.enqueue(envelope(number)).await.unwrap();
            }
            before.elapsed()
        };
        let (taken, put) = futures::future::join(waiting, putting).await;
        assert_eq!(taken.into_iter().flat_map(|taken| taken.unwrap()).count(), 20);
        assert!(put < Duration::from_secs(3), "putting in took {put:?}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    });
}

#[test]
fn what_nobody_waits_for_any_more_is_given_back() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        for number in 0..10 {
            queue.enqueue(envelope(number)).await.unwrap();
            let claim = queue.dequeue_leased(0, Claim::new(1));
            // Dropped at some moment of it.
            drop(
                corelane::timeout(Duration::from_micros(300 * number as u64), claim)
                    .await
                    .map(|taken| taken.map(|taken| assert!(taken.len() <= 1))),
            );
        }
        let begun = Instant::now();
        let seen = || async {
            let depth = queue.depth(0).await.unwrap();
            depth.ready + depth.leased
        };
        assert_eq!(seen().await, 10);
        while queue.depth(0).await.unwrap().ready == 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "nothing came back");
        }
    });
}

#[test]
fn extending_changes_no_index() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        queue.enqueue(envelope(1)).await.unwrap();
        let taken = take(&queue, 1).await;
        for _ in 0..50 {
            queue.extend(&taken[0].token, Duration::from_secs(60)).await.unwrap();
        }
        // Counted when its session ends.
        queue.close(Duration::from_secs(5)).await.unwrap();
        let hot = "select n_tup_hot_upd from pg_stat_user_tables where relname = 'commands'";
        let begun = Instant::now();
        while server.sql(hot).parse::<u32>().unwrap_or_default() < 50 {
            assert!(begun.elapsed() < Duration::from_secs(10), "only {} of 50", server.sql(hot));
        }
    });
}

#[test]
fn who_finds_the_queue_ready_needs_no_right_to_make_one() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        drop(open(server.url()).await);
        server.sql(
            "create role worker login password 'w'; \
             grant usage on schema corelane_corelane to worker; \
             grant select, insert, update, delete on all tables in schema corelane_corelane to worker; \
             grant usage on all sequences in schema corelane_corelane to worker",
        );
        let url = format!("postgres://worker:w@127.0.0.1:{}/postgres", server.port());
        let queue = open(url.clone()).await;
        queue.enqueue_with(envelope(1), EnqueueOptions::new().idempotency_key("k")).await.unwrap();
        let taken = take(&queue, 1).await;
        assert_eq!(queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap(), AckOutcome::Applied);
        let another = RemoteOptions::new(url).namespace("another");
        let refused = refusal(PostgresDistributedQueue::connect(another).await);
        assert!(matches!(refused, DistributedError::Refused { .. }), "{refused}");
    });
}

#[test]
fn many_of_them_are_one_statement() {
    let Some(mut server) = started::<Postgres>() else { return };
    server.set("log_statement = all");
    block_on(async {
        let queue = open(server.url()).await;
        let commands = (0..2000).map(|number| (envelope(number), EnqueueOptions::new())).collect();
        assert!(queue.enqueue_batch(commands).await.iter().all(Result::is_ok));
        let taken = take(&queue, 3000).await;
        assert_eq!(taken.len(), 2000);
        let tokens: Vec<_> = taken.iter().map(|leased| leased.token.clone()).collect();
        assert!(queue.extend_batch(&tokens, Duration::from_secs(60)).await.iter().all(Result::is_ok));
        let results = tokens.iter().map(|token| (token.clone(), done(token))).collect();
        for outcome in queue.ack_batch(results).await {
            assert_eq!(outcome.unwrap(), AckOutcome::Applied);
        }
    });
    let said = server.said();
    for name in ["enqueue", "claim", "extend", "settle"] {
        let sent = said.lines().filter(|line| line.contains("execute") && line.contains(&format!(".{name}($1")));
        assert_eq!(sent.count(), 1, "{name}");
    }
}

#[test]
fn acknowledgements_that_come_at_the_same_time_go_together() {
    let Some(mut server) = started::<Postgres>() else { return };
    server.set("log_statement = all");
    block_on(async {
        let queue = open(server.url()).await;
        let commands = (0..200).map(|number| (envelope(number), EnqueueOptions::new())).collect();
        assert!(queue.enqueue_batch(commands).await.iter().all(Result::is_ok));
        let taken = take(&queue, 200).await;
        let twice = taken.iter().chain(&taken[..50]);
        let acks = twice.map(|leased| queue.ack(&leased.token, done(&leased.token)));
        let outcomes = futures::future::join_all(acks).await;
        let applied = outcomes.into_iter().map(Result::unwrap).filter(|outcome| *outcome == AckOutcome::Applied);
        assert_eq!(applied.count(), 200, "each of them once");
    });
    let said = server.said();
    let sent = said.lines().filter(|line| line.contains("execute") && line.contains(".settle($1")).count();
    assert!(sent < 100, "{sent} statements");
}

/// Has the server do something, each time the row of this command is changed.
fn whenever_it_changes(server: &Postgres, id: &str, happens: &str) {
    server.sql(&format!(
        "create function happens() returns trigger language plpgsql as $$ begin {happens}; return coalesce(new, old); end $$; \
         create trigger happens before update or delete on corelane_corelane.commands for each row \
         when (old.id = '{id}') execute function happens()"
    ));
}

#[test]
fn a_lease_that_is_extended_while_others_are_swept_goes_on() {
    let Some(server) = started::<Postgres>() else { return };
    runtime().block_on(async {
        let (queue, other) = (open(server.url()).await, open(server.url()).await);
        let mut taken = Vec::new();
        for number in 0..2 {
            queue.enqueue(envelope(number)).await.unwrap();
            let claim = Claim::new(1).lease(Duration::from_secs(2));
            taken.extend(queue.dequeue_leased(0, claim).await.unwrap());
        }
        let [lapsed, kept] = [&taken[0].token, &taken[1].token];
        whenever_it_changes(&server, lapsed.command_id(), "perform pg_sleep(1)");
        // The sweep comes to the second one when this has been committed, and has begun before.
        let mut client = client(&server).await;
        let transaction = client.transaction().await.unwrap();
        let extend = "select count(*) from corelane_corelane.extend($1, $2, 60000000)";
        let (ids, fences) = (vec![kept.command_id()], vec![kept.fence() as i64]);
        let extended = transaction.query_one(extend, &[&ids, &fences]).await.unwrap();
        assert_eq!(extended.get::<_, i64>(0), 1);
        corelane::sleep(Duration::from_millis(2100)).await;
        let commit = async {
            corelane::sleep(Duration::from_millis(300)).await;
            transaction.commit().await.unwrap();
        };
        let (again, ()) = futures::future::join(take(&other, 10), commit).await;
        let ids: Vec<_> = again.iter().map(|leased| leased.token.command_id()).collect();
        assert_eq!(ids, [lapsed.command_id()]);
        assert_eq!(queue.ack(kept, done(kept)).await.unwrap(), AckOutcome::Applied);
    });
}

#[test]
fn a_delay_without_end_is_a_long_one() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        let commands = (0..2).map(|number| (envelope(number), EnqueueOptions::new())).collect();
        assert!(queue.enqueue_batch(commands).await.iter().all(Result::is_ok));
        let taken = take(&queue, 2).await;
        let never = Nack::RetryAfter { delay: Duration::MAX, error: "never".to_owned() };
        let nack = queue.nack(&taken[0].token, never);
        let (nack, ack) = futures::future::join(nack, queue.ack(&taken[1].token, done(&taken[1].token))).await;
        assert_eq!((nack.unwrap(), ack.unwrap()), (AckOutcome::Applied, AckOutcome::Applied));
        assert_eq!(queue.depth(0).await.unwrap().delayed, 1);
    });
}

#[test]
fn an_end_that_the_server_can_not_do_is_no_harm_to_the_others() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        let commands = (0..30).map(|number| (envelope(number), EnqueueOptions::new())).collect();
        assert!(queue.enqueue_batch(commands).await.iter().all(Result::is_ok));
        let taken = take(&queue, 30).await;
        whenever_it_changes(&server, taken[7].token.command_id(), "raise exception 'not this one'");
        let acks = taken.iter().map(|leased| (leased.token.clone(), done(&leased.token))).collect();
        for (number, outcome) in queue.ack_batch(acks).await.into_iter().enumerate() {
            if number == 7 {
                let refused = refusal(outcome);
                assert!(matches!(refused, DistributedError::Server { .. }), "{refused}");
            } else {
                assert_eq!(outcome.unwrap(), AckOutcome::Applied, "{number}");
            }
        }
    });
}

#[test]
fn a_lane_without_room_leaves_the_others_in_their_order() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        for (lane, max) in [("full", 1), ("half", 2), ("empty", 5)] {
            queue.set_limits(lane, GlobalLimits::none().max_leased(max)).await.unwrap();
        }
        let of = |lane: &str, number| CommandEnvelope { lane_id: lane.to_owned(), ..envelope(number) };
        queue.enqueue(of("full", 100)).await.unwrap();
        assert_eq!(take(&queue, 1).await.len(), 1);
        let mut number = 0;
        for _ in 0..4 {
            for lane in ["full", "half", "free", "last"] {
                let priority = if lane == "last" { 63 } else { 1 };
                queue.enqueue_with(of(lane, number), EnqueueOptions::new().priority(priority)).await.unwrap();
                number += 1;
            }
        }
        let numbers = |taken: Vec<Leased>| -> Vec<_> {
            taken.iter().map(|leased| leased.envelope.payload["number"].as_u64().unwrap()).collect()
        };
        assert_eq!(numbers(take(&queue, 3).await), [1, 2, 5]);
        assert_eq!(numbers(take(&queue, 100).await), [6, 10, 14, 3, 7, 11, 15]);
        assert!(take(&queue, 100).await.is_empty());
    });
}

#[test]
fn what_comes_back_by_any_way_after_its_time_expires() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let (queue, other) = (open(server.url()).await, open(server.url()).await);
        let options = || EnqueueOptions::new().expires_after(Duration::from_secs(2));
        let commands = (0..2).map(|number| (envelope(number), options())).collect();
        assert!(queue.enqueue_batch(commands).await.iter().all(Result::is_ok));
        let taken = take(&queue, 2).await;
        assert_eq!(taken.len(), 2);
        corelane::sleep(Duration::from_millis(2100)).await;
        let again = Nack::RetryAfter { delay: Duration::from_secs(60), error: "again".to_owned() };
        assert_eq!(queue.nack(&taken[0].token, again).await.unwrap(), AckOutcome::Applied);
        queue.close(Duration::from_secs(5)).await.unwrap();
        assert!(take(&other, 2).await.is_empty());
        let letters = other.dead_letters(DeadPage::first(10)).await.unwrap();
        assert_eq!(letters.len(), 2);
        assert!(letters.iter().all(|letter| letter.reason == DeadReason::Expired), "{letters:?}");
    });
}

#[test]
fn a_standby_is_said_to_be_unsuitable() {
    let Some(mut server) = started::<Postgres>() else { return };
    let standby = server.folder().join("data/standby.signal");
    fs::write(standby, "").unwrap();
    server.kill();
    server.restart();
    match refusal(block_on(PostgresDistributedQueue::connect(server.url()))) {
        DistributedError::Unsuitable { problem, .. } => assert!(problem.contains("standby"), "{problem}"),
        other => panic!("{other}"),
    }
}

#[test]
fn names_that_nothing_can_have_are_found_nowhere() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        let name = "a\0b";
        assert!(queue.dequeue_leased(0, Claim::new(1).lane(name, 1)).await.unwrap().is_empty());
        let token = LeaseToken::new(name, 0, 1, "");
        assert_eq!(queue.ack(&token, done(&token)).await.unwrap(), AckOutcome::LeaseLost);
        assert!(matches!(
            refusal(queue.extend(&token, Duration::from_secs(1)).await),
            DistributedError::LeaseLost { .. }
        ));
        assert_eq!(queue.result(name, Duration::ZERO).await.unwrap(), None);
        assert!(!queue.replay(name).await.unwrap() && !queue.discard(name).await.unwrap());
        assert!(queue.dead_letters(DeadPage::first(1).after(name)).await.unwrap().is_empty());
    });
}

#[test]
fn no_call_reads_more_than_it_needs() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(server.url()).await;
        // Plans are made while there is nothing, and kept.
        for _ in 0..10 {
            queue.enqueue(envelope(0)).await.unwrap();
            let taken = queue.dequeue_leased(0, Claim::new(1)).await.unwrap();
            queue.extend(&taken[0].token, Duration::from_secs(60)).await.unwrap();
            queue.nack(&taken[0].token, Nack::Release).await.unwrap();
            let taken = queue.dequeue_leased(0, Claim::new(1).lane("query", 1)).await.unwrap();
            queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap();
        }
        let many = 4000;
        for _ in 0..many / 500 {
            let commands = (0..500).map(|number| {
                let lane = if number % 100 == 0 { "rare" } else { "query" };
                (CommandEnvelope { lane_id: lane.to_owned(), ..envelope(number) }, EnqueueOptions::new())
            });
            assert!(queue.enqueue_batch(commands.collect()).await.iter().all(Result::is_ok));
        }
        // Before all others, and it has no room: it is looked at, and not through.
        queue.set_limits("full", GlobalLimits::none().max_leased(1)).await.unwrap();
        let first = || EnqueueOptions::new().priority(0);
        let in_full = |number| (CommandEnvelope { lane_id: "full".to_owned(), ..envelope(number) }, first());
        assert!(queue.enqueue_batch((0..2000).map(in_full).collect()).await.iter().all(Result::is_ok));
        let full = take(&queue, 1).await;
        assert_eq!(full[0].envelope.lane_id, "full");
        let mut tokens = Vec::new();
        for lane in ["rare", "query"] {
            for _ in 0..10 {
                let claim = Claim::new(100).lane(lane, if lane == "rare" { 4 } else { 100 });
                let taken = queue.dequeue_leased(0, claim).await.unwrap();
                tokens.extend(taken.into_iter().map(|leased| leased.token));
            }
        }
        for _ in 0..10 {
            tokens.extend(take(&queue, 100).await.into_iter().map(|leased| leased.token));
        }
        assert_eq!(tokens.len(), 2040);
        for tokens in tokens.chunks(10) {
            assert!(queue.extend_batch(tokens, Duration::from_secs(60)).await.iter().all(Result::is_ok));
            let results = tokens.iter().map(|token| (token.clone(), done(token))).collect();
            assert!(queue.ack_batch(results).await.iter().all(Result::is_ok));
        }
        // Counted when its sessions end.
        queue.close(Duration::from_secs(5)).await.unwrap();
    });
    gone(&server);
    let read = "select coalesce(sum(seq_tup_read), 0), (select sum(idx_tup_read) from pg_stat_user_indexes) \
                from pg_stat_user_tables where schemaname = 'corelane_corelane'";
    let read = server.sql(read);
    let (whole, by_index) = read.split_once('|').expect("two numbers");
    assert!(whole.parse::<u64>().unwrap() < 500, "{whole} rows were read by going through all");
    assert!(by_index.parse::<u64>().unwrap() < 40_000, "{by_index} rows were looked at");
}

/// Waits until no handle has a session there.
fn gone(server: &Postgres) {
    let begun = Instant::now();
    while server.sql("select count(*) from pg_stat_activity where application_name like 'postgres-%'") != "0" {
        assert!(begun.elapsed() < Duration::from_secs(10), "a session is left");
    }
}

#[test]
fn a_handle_that_is_gone_leaves_no_session() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let (closed, dropped) = (open(server.url()).await, open(server.url()).await);
        for queue in [&closed, &dropped] {
            queue.enqueue(envelope(1)).await.unwrap();
            let taken = take(queue, 1).await;
            queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap();
        }
        closed.close(Duration::from_secs(5)).await.unwrap();
        drop(dropped);
        gone(&server);
        assert!(matches!(refusal(closed.enqueue(envelope(1)).await), DistributedError::Closed));
    });
}

#[test]
fn what_is_remembered_is_forgotten_after_its_time() {
    let Some(server) = started::<Postgres>() else { return };
    block_on(async {
        let queue = open(RemoteOptions::new(server.url()).idempotency_window(Duration::from_millis(300))).await;
        let keyed = || EnqueueOptions::new().idempotency_key("one").keep_result(Duration::from_millis(300));
        queue.enqueue_with(envelope(1), keyed()).await.unwrap();
        let taken = take(&queue, 1).await;
        queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap();
        corelane::sleep(Duration::from_millis(400)).await;
        assert!(!queue.enqueue_with(envelope(2), keyed()).await.unwrap().duplicate, "the key is free");
        let taken = take(&queue, 1).await;
        queue.ack(&taken[0].token, done(&taken[0].token)).await.unwrap();
        server.sql("update corelane_corelane.ended set until = now()");
        let begun = Instant::now();
        for table in ["ended", "keys", "results"] {
            while server.sql(&format!("select count(*) from corelane_corelane.{table}")) != "0" {
                assert!(begun.elapsed() < Duration::from_secs(20), "{table} is not tidied");
            }
        }
    });
}

#[test]
fn a_database_that_can_not_have_all_texts_is_refused() {
    let Some(server) = started::<Postgres>() else { return };
    server.sql("create database latin encoding 'LATIN1' locale 'C' template template0");
    let url = format!("postgres://corelane:{PASSWORD}@127.0.0.1:{}/latin", server.port());
    match refusal(block_on(PostgresDistributedQueue::connect(url))) {
        DistributedError::Unsuitable { problem, .. } => assert!(problem.contains("LATIN1"), "{problem}"),
        other => panic!("{other}"),
    }
}

#[test]
fn batches_that_meet_do_not_stop_each_other() {
    let Some(server) = started::<Postgres>() else { return };
    let url = server.url();
    let batch: Vec<_> = (0..60)
        .map(|number| match number % 3 {
            // The same commands, and others with the same keys.
            0 => (envelope(number), EnqueueOptions::new()),
            _ => (envelope(number), EnqueueOptions::new().idempotency_key(format!("key-{number}"))),
        })
        .collect();
    let threads: Vec<_> = (0..4)
        .map(|turn| {
            let (url, mut batch) = (url.clone(), batch.clone());
            std::thread::spawn(move || {
                block_on(async {
                    let queue = open(url).await;
                    let mut new = 0;
                    for round in 0..10 {
                        batch.rotate_left(7 * turn + round);
                        if turn % 2 == 1 {
                            batch.reverse();
                        }
                        for (number, (envelope, options)) in batch.iter_mut().enumerate() {
                            // Another command of the same work and key.
                            if options.idempotency_key.is_some() && number % 2 == 0 {
                                envelope.id = format!("{turn}-{round}-{number}");
                            }
                        }
                        for receipt in queue.enqueue_batch(batch.clone()).await {
                            new += usize::from(!receipt.expect("it is accepted").duplicate);
                        }
                    }
                    new
                })
            })
        })
        .collect();
    let new: usize = threads.into_iter().map(|thread| thread.join().expect("it has gone on")).sum();
    assert_eq!(new, 60);
    block_on(async { assert_eq!(take(&open(url).await, 1000).await.len(), 60) });
}

/// Makes a key and a certificate with openssl.
fn openssl(folder: &std::path::Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let made = made.expect("openssl can be started");
    assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_server_is_reached_by_tls_if_its_certificate_is_trusted() {
    let Some(mut server) = started::<Postgres>() else { return };
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
        eprintln!("*** openssl is not installed: the test of TLS is LEFT OUT");
        return;
    }
    let folder = server.folder().to_owned();
    let plain = block_on(PostgresDistributedQueue::connect(format!("{}?sslmode=require", server.url())));
    assert!(matches!(refusal(plain), DistributedError::Refused { .. }), "the server has no TLS");
    openssl(&folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 9 -subj /CN=test-ca");
    openssl(&folder, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    openssl(
        &folder,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 9 -extfile names",
    );
    for file in ["server.key", "server.pem"] {
        // With the owner and the rights of what the server has made.
        let data = folder.join("data");
        let copied = Command::new("cp").arg("--no-preserve=mode").arg(folder.join(file)).arg(&data).status();
        assert!(copied.expect("cp can be started").success());
        let path = data.join(file);
        for (program, argument) in [("chown", format!("--reference={}", data.display())), ("chmod", "600".to_owned())] {
            assert!(Command::new(program).arg(argument).arg(&path).status().expect("it can be started").success());
        }
    }
    server.set("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'");
    let authority = fs::read(folder.join("ca.pem")).unwrap();
    for mode in ["require", "verify-full"] {
        let options = || RemoteOptions::new(format!("{}?sslmode={mode}", server.url()));
        let queue = block_on(open(options().root_certificates(authority.clone())));
        block_on(queue.enqueue(envelope(1))).unwrap();
        let encrypted = "select count(*) > 0 from pg_stat_ssl s join pg_stat_activity a using (pid) \
                         where s.ssl and a.application_name like 'postgres-%'";
        assert_eq!(server.sql(encrypted), "t");
        let refused = refusal(block_on(PostgresDistributedQueue::connect(options())));
        assert!(matches!(refused, DistributedError::Refused { .. }), "{refused}");
    }
}
