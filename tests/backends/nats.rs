//! The queue in NATS JetStream.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, DistributedHealth,
    DistributedQueue, Durability, EnqueueOptions, LaneError, LeaseToken, Leased, Nack, NatsDistributedQueue,
    NatsOptions, PartitionConfig, RemoteOptions, Result, Secret, Support,
};
use futures::executor::block_on;
use serde_json::{Value, json};

use crate::conforms;
use crate::proxy::{Fault, Proxy};
use crate::servers::nats::Nats;
use crate::servers::{Place, Server, find, free_port, started};

async fn open(options: RemoteOptions) -> Result<Queue> {
    Ok(Arc::new(NatsDistributedQueue::connect(options).await?))
}

#[test]
fn the_suite_is_passed() {
    conforms::<Nats, _>(open);
}

/// A queue of a server, with leases of a minute.
fn queue(server: &Nats) -> NatsDistributedQueue {
    connect(RemoteOptions::new(server.url()).lease(Duration::from_secs(60)))
}

fn connect(options: impl Into<NatsOptions>) -> NatsDistributedQueue {
    block_on(NatsDistributedQueue::connect(options)).unwrap_or_else(|error| panic!("it does not connect: {error}"))
}

#[track_caller]
fn refusal(options: impl Into<NatsOptions>) -> DistributedError {
    match block_on(NatsDistributedQueue::connect(options)) {
        Err(LaneError::Distributed(error)) => error,
        other => panic!("it was to be refused, and is {other:?}"),
    }
}

fn envelope(number: impl Into<Value>) -> CommandEnvelope {
    CommandEnvelope::new("sample", "query", number.into())
}

fn put(queue: &NatsDistributedQueue, number: impl Into<Value>) -> String {
    let sent = envelope(number);
    block_on(queue.enqueue(sent.clone())).expect("it is accepted");
    sent.id
}

fn take(queue: &NatsDistributedQueue, max: usize) -> Vec<Leased> {
    block_on(queue.dequeue_leased(0, Claim::new(max).lease(Duration::from_secs(60)))).expect("commands can be taken")
}

fn take_within(queue: &NatsDistributedQueue, lease: Duration, wait: Duration) -> Option<Leased> {
    let claim = Claim::new(1).lease(lease).wait(wait);
    block_on(queue.dequeue_leased(0, claim)).expect("commands can be taken").pop()
}

fn done(token: &LeaseToken) -> CommandResult {
    CommandResult {
        command_id: token.command_id().to_owned(),
        result: Ok(json!("done")),
        worker_id: "a worker".to_owned(),
        duration_ms: 7,
    }
}

fn ack(queue: &NatsDistributedQueue, token: &LeaseToken) -> AckOutcome {
    block_on(queue.ack(token, done(token))).expect("it can be acknowledged")
}

/// Does something with the server that no queue does.
fn with_client<T>(server: &Nats, work: impl AsyncFnOnce(async_nats::Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { work(async_nats::connect(server.url()).await.expect("it connects")).await })
}

/// What a stream has, by subject.
fn records(server: &Nats, stream: &str) -> Vec<(String, Vec<u8>)> {
    let stream = stream.to_owned();
    with_client(server, async move |client| {
        let jetstream = async_nats::jetstream::new(client);
        let mut stream = jetstream.get_stream(stream).await.expect("it is there");
        let state = stream.info().await.expect("it can be asked").state.clone();
        let mut records = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                records.push((message.subject.to_string(), message.payload.to_vec()));
            }
        }
        records
    })
}

/// Puts a record into a stream.
fn publish(server: &Nats, subject: &str, body: impl Into<Vec<u8>>) {
    let (subject, body) = (subject.to_owned(), body.into());
    with_client(server, async move |client| {
        let jetstream = async_nats::jetstream::new(client);
        let stored = jetstream.publish(subject, body.into()).await.expect("it can be sent");
        stored.await.expect("it is stored");
    });
}

/// Removes what a stream has of a subject.
fn purge(server: &Nats, stream: &str, subject: &str) {
    let (stream, subject) = (stream.to_owned(), subject.to_owned());
    with_client(server, async move |client| {
        let stream = async_nats::jetstream::new(client).get_stream(stream).await.expect("it is there");
        stream.purge().filter(subject).await.expect("it can be removed");
    });
}

/// Changes the state of a command, as the queue never would.
fn change_state(server: &Nats, id: &str, change: impl FnOnce(&mut Value)) {
    let subject = format!("$KV.corelane-state.c.{id}");
    let records = records(server, "KV_corelane-state");
    let (_, body) = records.into_iter().find(|(of, _)| *of == subject).expect("its state is there");
    let mut state = serde_json::from_slice(&body).expect("it is JSON");
    change(&mut state);
    publish(server, &subject, state.to_string());
}

/// Names of what the register has, but for the queue's own records.
fn states(server: &Nats) -> Vec<String> {
    let own = ["$KV.corelane-state.queue", "$KV.corelane-state.clock"];
    let subjects = records(server, "KV_corelane-state").into_iter().map(|(subject, _)| subject);
    subjects.filter(|subject| !own.contains(&subject.as_str())).collect()
}

#[test]
fn capabilities_say_what_the_installed_version_can_and_can_not() {
    let Some(server) = started::<Nats>() else { return };
    let can = queue(&server).capabilities();
    assert_eq!((can.durability, can.fencing, can.order), (Durability::Relaxed, Support::Exact, Support::BestEffort));
    assert_eq!((can.global_concurrency, can.global_rate), (Support::None, Support::None));
    let notes = can.notes.join("\n");
    for word in ["nats-server 2.", "sync_interval", "order:", "limits to all workers together:"] {
        assert!(notes.contains(word), "{word} is not in:\n{notes}");
    }
    let told = connect(NatsOptions::new(server.url()).sync_always());
    assert_eq!(told.capabilities().durability, Durability::Synced);
}

#[test]
fn a_server_that_is_not_there_is_unavailable_in_time() {
    let port = free_port();
    let begun = Instant::now();
    let options = RemoteOptions::new(format!("nats://u:canary-7f3a@127.0.0.1:{port}"));
    let error = refusal(options.connect_timeout(Duration::from_millis(700)));
    assert!(matches!(&error, DistributedError::Unavailable { server, .. } if server.contains(&port.to_string())));
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());
}

#[test]
fn wrong_credentials_are_refused_without_showing_them() {
    if started::<Nats>().is_none() {
        return;
    }
    let server = Nats::start_with(&["--user", "worker", "--pass", "right@1"], true);
    let at = |credentials: &str| RemoteOptions::new(server.url().replace("//", &format!("//{credentials}@")));
    for wrong in ["worker:canary-7f3a", "canary-7f3a"] {
        let error = refusal(at(wrong));
        assert!(matches!(error, DistributedError::Refused { .. }), "{error:?}");
        assert!(!format!("{error} {error:?} {:?}", at(wrong)).contains("canary"), "{error:?}");
    }
    assert!(matches!(refusal(server.url().as_str()), DistributedError::Refused { .. }), "without any");
    let queue = connect(at("worker:right%401"));
    put(&queue, 1);
    assert!(!format!("{queue:?}").contains("right"), "{queue:?}");
}

/// A configuration file in a folder of its own.
fn configured(text: &str) -> (Place, PathBuf) {
    let place = Place::new("nats-conf");
    let path = place.0.join("nats.conf");
    fs::write(&path, text).expect("a file can be written");
    (place, path)
}

#[test]
fn a_user_who_may_not_do_it_is_refused() {
    if started::<Nats>().is_none() {
        return;
    }
    let text =
        r#"authorization { users = [ { user: worker, password: canary-7f3a, permissions: { publish: "none" } } ] }"#;
    let (_place, path) = configured(text);
    let server = Nats::start_with(&["-c", path.to_str().expect("it is UTF-8")], true);
    let url = server.url().replace("//", "//worker:canary-7f3a@");
    let error = refusal(RemoteOptions::new(url).call_timeout(Duration::from_secs(1)));
    assert!(matches!(error, DistributedError::Refused { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}

#[test]
fn a_server_without_jetstream_is_unsuitable() {
    if started::<Nats>().is_none() {
        return;
    }
    let server = Nats::start_with(&[], false);
    let error = refusal(server.url().as_str());
    assert!(matches!(&error, DistributedError::Unsuitable { problem, .. } if problem.contains("-js")), "{error:?}");
}

#[test]
fn more_replicas_than_servers_are_unsuitable() {
    let Some(server) = started::<Nats>() else { return };
    let error = refusal(NatsOptions::new(server.url()).replicas(3));
    assert!(matches!(error, DistributedError::Unsuitable { .. }), "{error:?}");
}

#[test]
fn all_that_is_wrong_with_options_is_said_before_anything_is_sent() {
    let open = |options: NatsOptions| block_on(NatsDistributedQueue::connect(options));
    let plain = open("nats://user:canary-7f3a@queue.example.com".into());
    let Err(LaneError::ConfigError(errors)) = plain else { panic!("{plain:?}") };
    assert!(!errors.to_string().contains("canary"), "{errors}");
    let replicas = open(NatsOptions::new("nats://localhost:1").replicas(2));
    assert!(matches!(replicas, Err(LaneError::ConfigError(_))), "{replicas:?}");
    let roots = RemoteOptions::new("tls://localhost:1").root_certificates("no certificate");
    assert!(matches!(open(roots.into()), Err(LaneError::ConfigError(_))));
    let unused = RemoteOptions::new("nats://localhost:1").root_certificates("for TLS");
    let Err(LaneError::ConfigError(errors)) = open(NatsOptions::new(unused).replicas(2)) else { panic!("it is wrong") };
    let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["replicas", "root_certificates"]);
}

#[test]
fn another_number_of_partitions_is_refused() {
    let Some(server) = started::<Nats>() else { return };
    let of = |partitions| RemoteOptions::new(server.url()).partitions(PartitionConfig::hash(partitions));
    let queue = connect(of(3));
    assert_eq!(refusal(of(4)), DistributedError::PartitionMismatch { stored: 3, given: 4 });
    put(&queue, 1);
}

#[test]
fn another_version_of_the_data_is_refused_and_left_as_it_is() {
    let Some(server) = started::<Nats>() else { return };
    drop(queue(&server));
    let registry = r#"{"format":9,"things":[]}"#;
    publish(&server, "$KV.corelane-state.queue", registry);
    let error = refusal(server.url().as_str());
    assert!(matches!(&error, DistributedError::SchemaVersion { found, .. } if found == "9"), "{error:?}");
    let left = records(&server, "KV_corelane-state").into_iter().find(|(of, _)| of.ends_with(".queue"));
    assert_eq!(left.expect("it is there").1, registry.as_bytes());
}

#[test]
fn a_payload_over_the_servers_limit_is_refused_before_it_is_sent() {
    if started::<Nats>().is_none() {
        return;
    }
    let (_place, path) = configured("max_payload: 128KB");
    let server = Nats::start_with(&["-c", path.to_str().expect("it is UTF-8")], true);
    let queue = queue(&server);
    let limit = queue.capabilities().max_payload.expect("there is one");
    assert!(limit < 128 << 10, "{limit}");
    let send = |bytes: usize| block_on(queue.enqueue(envelope("x".repeat(bytes))));
    match send(limit) {
        Err(LaneError::Distributed(DistributedError::PayloadTooLarge { limit: named, .. })) => assert_eq!(named, limit),
        other => panic!("{other:?}"),
    }
    send(limit - 500).expect("it is not too large");
    // It also comes back, as a dead letter too.
    let leased = take(&queue, 1).pop().expect("it is there");
    let reason = DeadReason::Failed("\u{1}".repeat(100_000));
    block_on(queue.dead_letter(&leased.token, reason)).expect("it can be given up");
    let letters = block_on(queue.dead_letters(DeadPage::first(10))).expect("they can be read");
    assert_eq!(letters.len(), 1);
}

#[test]
fn what_is_delivered_for_the_first_time_is_first_in_first_out() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let commands = (0..300).map(|number| (envelope(number), EnqueueOptions::new())).collect();
    for receipt in block_on(queue.enqueue_batch(commands)) {
        receipt.expect("it is accepted");
    }
    for number in 300..310 {
        put(&queue, number);
    }
    let mut got = Vec::new();
    for max in [1, 2, 200, 1000] {
        got.extend(take(&queue, max).into_iter().map(|leased| leased.envelope.payload));
    }
    assert_eq!(got, (0..310).map(Value::from).collect::<Vec<_>>());
}

#[test]
fn a_late_acknowledgement_changes_nothing_and_the_new_one_counts() {
    let Some(server) = started::<Nats>() else { return };
    let (slow, other) = (queue(&server), queue(&server));
    let id = put(&slow, 1);
    let short = Duration::from_millis(400);
    let first = take_within(&slow, short, Duration::ZERO).expect("it is there");
    let second = take_within(&other, Duration::from_secs(60), Duration::from_secs(10)).expect("it comes back");
    assert_eq!((second.envelope.id.as_str(), second.delivery), (id.as_str(), 2));
    // To the server, this is an acknowledgement of the same message.
    assert_eq!(ack(&slow, &first.token), AckOutcome::LeaseLost);
    with_client(&server, {
        let delivery = first.token.handle().to_owned();
        async |client| {
            client.publish(delivery, "-NAK".into()).await.expect("it can be sent");
            client.flush().await.expect("it is sent");
        }
    });
    // For the message to be delivered again, if it were to be.
    thread::sleep(Duration::from_millis(300));
    assert!(take(&slow, 10).is_empty(), "the second one has it");
    assert_eq!(ack(&other, &second.token), AckOutcome::Applied);
    assert_eq!(ack(&slow, &first.token), AckOutcome::LeaseLost);
}

#[test]
fn a_late_failure_leaves_no_result() {
    let Some(server) = started::<Nats>() else { return };
    let (slow, other) = (queue(&server), queue(&server));
    let sent = envelope(1);
    let options = EnqueueOptions::new().keep_result(Duration::from_secs(60));
    block_on(slow.enqueue_with(sent.clone(), options)).expect("it is accepted");
    let first = take_within(&slow, Duration::from_millis(300), Duration::ZERO).expect("it is there");
    let second = take_within(&other, Duration::from_secs(60), Duration::from_secs(10)).expect("it comes back");
    let failed = CommandResult { result: Err("late".to_owned()), ..done(&first.token) };
    assert_eq!(block_on(slow.ack(&first.token, failed)).expect("it is answered"), AckOutcome::LeaseLost);
    assert_eq!(block_on(slow.result(&sent.id, Duration::ZERO)).expect("it can be asked"), None);
    assert_eq!(ack(&other, &second.token), AckOutcome::Applied);
    assert!(block_on(slow.result(&sent.id, Duration::ZERO)).expect("it can be asked").is_some());
}

#[test]
fn a_token_is_good_in_every_handle_and_what_one_extends_the_other_has() {
    let Some(server) = started::<Nats>() else { return };
    let (taker, other) = (queue(&server), queue(&server));
    let id = put(&taker, 1);
    assert_eq!(ack(&taker, &LeaseToken::new(id, 0, 0, "")), AckOutcome::LeaseLost, "one that was never given");
    let leased = take_within(&taker, Duration::from_millis(500), Duration::ZERO).expect("it is there");
    block_on(other.extend(&leased.token, Duration::from_secs(60))).expect("it has the lease");
    // Beyond the lease that was given.
    thread::sleep(Duration::from_millis(700));
    block_on(taker.extend(&leased.token, Duration::from_secs(60))).expect("it has it still");
    assert_eq!(ack(&other, &leased.token), AckOutcome::Applied);
    assert_eq!(ack(&taker, &leased.token), AckOutcome::AlreadyApplied);
}

#[test]
fn what_goes_encrypted_is_for_the_server_whose_root_was_given() {
    if started::<Nats>().is_none() {
        return;
    }
    let Some(openssl) = find("openssl") else {
        eprintln!("*** openssl is not installed: this test is LEFT OUT");
        return;
    };
    let place = Place::new("nats-tls");
    let (key, certificate) = (place.0.join("key.pem"), place.0.join("certificate.pem"));
    let made = Command::new(openssl)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (_conf, path) = configured(&format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}"));
    let server = Nats::start_with(&["-c", path.to_str().expect("it is UTF-8")], true);
    let options =
        || RemoteOptions::new(server.url().replace("nats://", "tls://")).connect_timeout(Duration::from_secs(1));
    let queue = connect(options().root_certificates(fs::read(&certificate).expect("it is there")));
    put(&queue, 1);
    assert_eq!(take(&queue, 1).len(), 1);
    let stranger = refusal(options());
    assert!(
        matches!(&stranger, DistributedError::Unavailable { cause, .. } if cause.contains("certificate")),
        "{stranger:?}"
    );
}

#[test]
fn leases_of_any_length_are_given_whatever_the_consumers_is() {
    let Some(server) = started::<Nats>() else { return };
    // Its consumers deliver again after a second.
    let quick = connect(RemoteOptions::new(server.url()).lease(Duration::from_millis(100)));
    let slow = queue(&server);
    put(&quick, 1);
    let short = take_within(&quick, Duration::from_millis(300), Duration::ZERO).expect("it is there");
    let begun = Instant::now();
    let long = take_within(&slow, Duration::from_secs(3), Duration::from_secs(10)).expect("it comes back");
    assert!(begun.elapsed() < Duration::from_millis(950), "after {:?}", begun.elapsed());
    let begun = Instant::now();
    block_on(slow.extend(&long.token, Duration::from_secs(4))).expect("it has the lease");
    let again = take_within(&quick, Duration::from_secs(1), Duration::from_secs(10)).expect("it comes back");
    assert!(begun.elapsed() >= Duration::from_millis(3990), "after {:?}", begun.elapsed());
    assert!(again.token.fence() > long.token.fence() && long.token.fence() > short.token.fence());
}

#[test]
fn what_is_empty_again_is_known_to_be_so_at_once() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    for number in 0..40 {
        put(&queue, number);
    }
    for leased in (0..40).flat_map(|_| take(&queue, 1)) {
        block_on(queue.extend(&leased.token, Duration::from_secs(60))).expect("it has the lease");
        assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
    }
    let begun = Instant::now();
    assert_eq!(block_on(queue.depth(0)).expect("it can be counted"), Default::default());
    assert!(take(&queue, 40).is_empty());
    assert!(take(&connect(server.url().as_str()), 40).is_empty());
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
}

#[test]
fn messages_that_were_removed_by_somebody_are_not_waited_for() {
    let Some(server) = started::<Nats>() else { return };
    let (queue, other) = (queue(&server), queue(&server));
    for number in 0..3 {
        put(&queue, number);
    }
    assert_eq!(take(&queue, 1).len(), 1);
    with_client(&server, async |client| {
        let stream = async_nats::jetstream::new(client).get_stream("corelane-q0").await.expect("it is there");
        for sequence in [2, 3] {
            stream.delete_message(sequence).await.expect("it can be removed");
        }
    });
    let begun = Instant::now();
    assert!(take(&queue, 10).is_empty() && take(&other, 10).is_empty());
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    put(&queue, 3);
    assert_eq!(take(&queue, 10).len(), 1);
}

#[test]
fn nothing_is_left_of_what_has_ended() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    for number in 0..10 {
        let options = EnqueueOptions::new().idempotency_key(format!("key {number}"));
        block_on(queue.enqueue_with(envelope(number), options)).expect("it is accepted");
    }
    for (number, leased) in take(&queue, 10).into_iter().enumerate() {
        if number % 2 == 0 {
            assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
        } else {
            block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).expect("it can be given up");
            assert!(block_on(queue.discard(leased.token.command_id())).expect("it can be discarded"));
        }
    }
    assert_eq!(states(&server), [""; 0]);
    assert_eq!(records(&server, "corelane-q0").len(), 0);
    assert_eq!(records(&server, "corelane-dead").len(), 0);
    assert_eq!(records(&server, "KV_corelane-ended").len(), 5);
    assert_eq!(records(&server, "KV_corelane-keys").len(), 5);
}

/// Copies the files of a folder into another one, in place of what it has.
fn copy(from: &Path, to: &Path) {
    let _absent = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("a folder can be made");
    for file in fs::read_dir(from).expect("it is there") {
        let file = file.expect("it can be read");
        fs::copy(file.path(), to.join(file.file_name())).expect("a file can be copied");
    }
}

#[test]
fn what_the_server_brings_back_is_removed_also_behind_what_is_still_leased() {
    let Some(mut server) = started::<Nats>() else { return };
    let brought_back = Place::new("nats-back");
    let first = {
        let queue = queue(&server);
        (put(&queue, 1), put(&queue, 2)).0
    };
    server.stop();
    copy(&server.messages_of("corelane-q0"), &brought_back.0);
    server.restart();
    let token = {
        let queue = queue(&server);
        let taken = block_on(queue.dequeue_leased(0, Claim::new(2).lease(Duration::from_secs(300)))).expect("both");
        let (one, other): (Vec<_>, Vec<_>) = taken.into_iter().partition(|leased| leased.envelope.id == first);
        assert_eq!(ack(&queue, &other[0].token), AckOutcome::Applied);
        one[0].token.clone()
    };
    server.stop();
    // As after a kill that came before the removal was on the disk, and after the acknowledgement was.
    copy(&brought_back.0, &server.messages_of("corelane-q0"));
    server.restart();
    if records(&server, "corelane-q0").len() < 2 {
        eprintln!("*** this nats-server removes by itself what was acknowledged: the test of that is LEFT OUT");
        return;
    }
    let queue = queue(&server);
    assert!(take(&queue, 2).is_empty(), "one has ended, and one is leased");
    assert_eq!(ack(&queue, &token), AckOutcome::Applied);
    let begun = Instant::now();
    while !records(&server, "corelane-q0").is_empty() {
        assert!(take(&queue, 2).is_empty(), "both have ended");
        assert!(begun.elapsed() < Duration::from_secs(60), "what has ended is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_was_accepted_half_is_finished_by_who_asks_again() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let options = || EnqueueOptions::new().idempotency_key("order-17");
    let sent = envelope(1);
    block_on(queue.enqueue_with(sent.clone(), options())).expect("it is accepted");
    // As if its worker had died before it was published.
    // The server knows the id of the message for a while: another process would come later, or to another server.
    purge(&server, "corelane-q0", ">");
    change_state(&server, &sent.id, |_| {});
    assert!(take(&queue, 10).is_empty());
    let receipt = block_on(queue.enqueue_with(envelope(1), options())).expect("it is known");
    assert_eq!((receipt.command_id.as_str(), receipt.duplicate), (sent.id.as_str(), true));
    assert_eq!(take(&queue, 10).len(), 1, "whoever has the key finishes it");
}

#[test]
fn what_has_ended_half_is_finished_by_who_finds_it() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = put(&queue, 1);
    let leased = take_within(&queue, Duration::from_millis(500), Duration::ZERO).expect("it is there");
    // As if its worker had died between the end and what follows from it.
    change_state(&server, &id, |state| {
        state["standing"] = json!({ "is": "ended", "result": null });
        state["settled"] = json!(leased.token.fence());
    });
    assert!(take_within(&queue, Duration::from_secs(60), Duration::from_secs(2)).is_none(), "it has ended");
    assert_eq!((states(&server).len(), records(&server, "corelane-q0").len()), (0, 0));
    assert_eq!(ack(&queue, &leased.token), AckOutcome::AlreadyApplied);
}

#[test]
fn a_damaged_message_is_put_aside_as_it_is_and_the_rest_goes_on() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    put(&queue, 1);
    let mut damaged = vec![0xff_u8; 700_000];
    damaged[0] = b'{';
    publish(&server, "corelane.corelane.q.0.0.someone", damaged.clone());
    publish(&server, "corelane.corelane.q.0.0.other", r#"{"format":2,"envelope":{}}"#);
    put(&queue, 2);
    let got: Vec<_> = take(&queue, 10).into_iter().map(|leased| leased.envelope.payload).collect();
    assert_eq!(got, [json!(1), json!(2)]);
    let letters = block_on(queue.dead_letters(DeadPage::first(10))).expect("they can be read");
    assert_eq!(letters.len(), 2);
    let mut problems = String::new();
    for letter in &letters {
        assert!(matches!(letter.reason, DeadReason::Undecodable(_)), "{letter:?}");
        write!(problems, "{} ", letter.reason.error()).expect("a string can be written to");
    }
    assert!(problems.contains("is damaged") && problems.contains("is of version 2"), "{problems}");
    let raw = records(&server, "corelane-dead");
    assert!(raw.iter().any(|(_, body)| *body == damaged), "it is kept as it is");
    for letter in letters {
        let id = letter.envelope.id;
        match block_on(queue.replay(&id)) {
            Err(LaneError::Distributed(DistributedError::Damaged { command_id, .. })) => assert_eq!(command_id, id),
            other => panic!("it is no command: {other:?}"),
        }
        // Also if the register has lost its state.
        purge(&server, "KV_corelane-state", &format!("$KV.corelane-state.c.{id}"));
        assert!(matches!(block_on(queue.replay(&id)), Err(LaneError::Distributed(DistributedError::Damaged { .. }))));
        assert!(take(&queue, 10).is_empty());
        assert!(block_on(queue.discard(&id)).expect("it can be discarded"));
    }
    assert_eq!(records(&server, "corelane-dead").len(), 0);
}

#[test]
fn a_damaged_state_is_put_aside_with_its_message() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = put(&queue, 1);
    publish(&server, &format!("$KV.corelane-state.c.{id}"), "{ not JSON");
    put(&queue, 2);
    let got: Vec<_> = take(&queue, 10).into_iter().map(|leased| leased.envelope.payload).collect();
    assert_eq!(got, [json!(2)]);
    let letters = block_on(queue.dead_letters(DeadPage::first(10))).expect("they can be read");
    assert_eq!(letters.len(), 1);
    assert!(letters[0].envelope.payload["text"].as_str().is_some_and(|text| text.contains(&id)), "{letters:?}");
}

#[test]
fn a_message_whose_state_is_lost_is_done_again_rather_than_not() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = put(&queue, 1);
    purge(&server, "KV_corelane-state", &format!("$KV.corelane-state.c.{id}"));
    let leased = take(&queue, 10).pop().expect("it is there");
    assert_eq!((leased.envelope.id.as_str(), leased.delivery), (id.as_str(), 1));
    assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
}

#[test]
fn a_claim_that_nobody_waits_for_any_more_takes_nothing() {
    let Some(server) = started::<Nats>() else { return };
    let (queue, other) = (queue(&server), queue(&server));
    put(&queue, 0);
    assert_eq!(take(&queue, 1).len(), 1);
    let claim = Claim::new(5).lease(Duration::from_secs(60)).wait(Duration::from_secs(60));
    block_on(async {
        let waiting = queue.dequeue_leased(0, claim);
        let given_up = corelane::timeout(Duration::from_millis(300), waiting).await;
        assert!(given_up.is_err(), "nothing was there");
    });
    // For the claim to be given up on its thread: if it is late, this test finds what it is for.
    thread::sleep(Duration::from_millis(100));
    put(&other, 1);
    assert!(take_within(&other, Duration::from_secs(60), Duration::from_secs(5)).is_some());
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_nothing_acknowledged() {
    let Some(mut server) = started::<Nats>() else { return };
    let options =
        || RemoteOptions::new(server.url()).lease(Duration::from_secs(2)).call_timeout(Duration::from_secs(20));
    let (submitter, worker) = (connect(options()), connect(options()));
    let submitting = thread::spawn(move || {
        let mut accepted = BTreeSet::new();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let sent = envelope(accepted.len());
            block_on(submitter.enqueue(sent.clone())).expect("it is accepted, before or after");
            accepted.insert(sent.id);
        }
        accepted
    });
    let working = thread::spawn(move || {
        let (mut seen, mut ended) = (BTreeSet::new(), BTreeSet::new());
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_secs(5) {
            let claim = Claim::new(8).lease(Duration::from_secs(2)).wait(Duration::from_millis(300));
            let Ok(taken) = block_on(worker.dequeue_leased(0, claim)) else { continue };
            for leased in taken {
                quiet = Instant::now();
                let id = leased.envelope.id.clone();
                assert!(!ended.contains(&id), "{id} was acknowledged, and comes again");
                seen.insert(id.clone());
                match block_on(worker.ack(&leased.token, done(&leased.token))).expect("it can be acknowledged") {
                    AckOutcome::Applied | AckOutcome::AlreadyApplied => _ = ended.insert(id),
                    // Its lease has ended while the server was away.
                    _ => {}
                }
            }
        }
        assert_eq!(worker.health(), DistributedHealth::Working);
        (seen, ended)
    });
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(900));
        server.kill();
        thread::sleep(Duration::from_millis(300));
        server.restart();
    }
    let accepted = submitting.join().expect("the submitter goes on");
    let (seen, ended) = working.join().expect("the worker goes on");
    assert!(accepted.len() > 20, "only {} were accepted", accepted.len());
    assert_eq!(seen, accepted, "all that was accepted, and nothing else");
    assert_eq!(ended, accepted);
    // What the server has brought back of what was acknowledged is not delivered, and goes.
    let later = connect(RemoteOptions::new(server.url()));
    for _ in 0..100 {
        assert!(take(&later, 100).is_empty());
    }
    assert_eq!(records(&server, "corelane-q0").len(), 0);
    let depth = block_on(later.depth(0)).expect("it can be counted");
    assert_eq!((depth.ready, depth.delayed, depth.leased, depth.dead), (0, 0, 0, 0));
}

#[test]
fn a_message_that_a_killed_server_brings_back_does_not_stand_in_the_way_of_a_replay() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = put(&queue, 1);
    let (subject, old) = records(&server, "corelane-q0").pop().expect("it is there");
    let leased = take(&queue, 1).pop().expect("it is there");
    block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).expect("it can be given up");
    publish(&server, &subject, old);
    assert!(block_on(queue.replay(&id)).expect("it can be replayed"));
    let again = take(&queue, 10);
    assert_eq!(again.iter().map(|leased| leased.envelope.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    assert_eq!(ack(&queue, &again[0].token), AckOutcome::Applied);
    assert_eq!((states(&server).len(), records(&server, "corelane-q0").len()), (0, 0));
}

#[test]
fn a_command_that_has_ended_and_that_a_killed_server_brings_back_is_not_handed_out() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = put(&queue, 1);
    let state = format!("$KV.corelane-state.c.{id}");
    let find = |stream: &str, wanted: &str| {
        records(&server, stream).into_iter().find(|(subject, _)| subject.contains(wanted)).expect("it is there")
    };
    let (before, (subject, message)) = (find("KV_corelane-state", &id), find("corelane-q0", "corelane"));
    let leased = take(&queue, 1).pop().expect("it is there");
    assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
    assert_eq!(before.0, state);
    // As it was before it was taken: message and state.
    publish(&server, &state, before.1);
    publish(&server, &subject, message);
    assert_eq!(take(&queue, 10).len(), 0, "it has ended");
    assert_eq!((states(&server).len(), records(&server, "corelane-q0").len()), (0, 0), "nothing is left of it");
    assert_eq!(ack(&queue, &leased.token), AckOutcome::AlreadyApplied, "by this token");
}

#[test]
fn a_call_that_is_not_waited_for_when_the_handle_closes_is_not_said_to_be_refused() {
    let Some(server) = started::<Nats>() else { return };
    let (plain, proxy) = (queue(&server), Proxy::start(server.port()));
    put(&plain, 0);
    let slow = connect(server.url_at(proxy.port()).as_str());
    let delay = Duration::from_millis(700);
    proxy.set(Fault::Delay { to_server: Duration::ZERO, to_client: delay, jitter: Duration::ZERO });
    thread::scope(|scope| {
        let putting = scope.spawn(|| block_on(slow.enqueue(envelope(1))));
        while states(&server).len() < 2 {
            thread::yield_now();
        }
        // The server has it, and its answer is on its way.
        let _not_told = block_on(slow.close(Duration::from_millis(10)));
        match putting.join().expect("it returns") {
            Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => {}
            other => panic!("{other:?}"),
        }
    });
}

/// A command that was given up.
fn dead(queue: &NatsDistributedQueue, number: impl Into<Value>) -> String {
    let id = put(queue, number);
    let leased = take(queue, 1).pop().expect("it is there");
    block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).expect("it can be given up");
    id
}

fn replays(queue: &NatsDistributedQueue, id: &str) -> bool {
    block_on(queue.replay(id)).unwrap_or_else(|error| panic!("it can be replayed: {error}"))
}

#[test]
fn a_replay_that_was_interrupted_is_finished_by_the_next_one() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = dead(&queue, 1);
    // As if who has replayed it had died before its message was published.
    change_state(&server, &id, |state| {
        state["standing"] = json!({ "is": "new" });
        state["replays"] = json!(1);
        state["deliveries"] = json!(0);
    });
    // An enqueue that was never accepted would be over by then.
    thread::sleep(Duration::from_millis(10_500));
    assert_eq!(block_on(queue.depth(0)).expect("it can be counted").ready, 1);
    assert!(take(&queue, 10).is_empty());
    assert!(replays(&queue, &id));
    let leased = take(&queue, 10).pop().expect("it is there");
    assert_eq!((leased.envelope.id.as_str(), &leased.envelope.payload), (id.as_str(), &json!(1)));
    assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
    assert_eq!((states(&server).len(), records(&server, "corelane-dead").len()), (0, 0));
}

#[test]
fn a_letter_whose_state_is_lost_can_be_replayed_and_discarded() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let ids = [dead(&queue, 1), dead(&queue, 2)];
    for id in &ids {
        purge(&server, "KV_corelane-state", &format!("$KV.corelane-state.c.{id}"));
    }
    assert!(replays(&queue, &ids[0]));
    assert!(block_on(queue.discard(&ids[1])).expect("it can be discarded"));
    let again = take(&queue, 10);
    assert_eq!(again.iter().map(|leased| &leased.envelope.payload).collect::<Vec<_>>(), [&json!(1)]);
    assert_eq!(ack(&queue, &again[0].token), AckOutcome::Applied);
    assert_eq!((states(&server).len(), records(&server, "corelane-dead").len()), (0, 0));
}

#[test]
fn a_letter_that_was_left_behind_by_a_replay_goes_when_its_command_has_ended() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let id = dead(&queue, 1);
    let (subject, letter) = records(&server, "corelane-dead").pop().expect("it is there");
    assert!(replays(&queue, &id));
    publish(&server, &subject, letter.clone());
    let leased = take(&queue, 1).pop().expect("it is there");
    assert_eq!(ack(&queue, &leased.token), AckOutcome::Applied);
    assert_eq!(records(&server, "corelane-dead").len(), 0);
    publish(&server, &subject, letter);
    assert!(!replays(&queue, &id), "it has ended");
    assert_eq!((take(&queue, 1).len(), records(&server, "corelane-dead").len()), (0, 0));
}

#[test]
fn a_command_may_be_called_as_if_it_were_damaged() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let sent = CommandEnvelope { id: "damaged-*".to_owned(), ..envelope(1) };
    block_on(queue.enqueue(sent.clone())).expect("it is accepted");
    let leased = take(&queue, 1).pop().expect("it is there");
    block_on(queue.dead_letter(&leased.token, DeadReason::Expired)).expect("it can be given up");
    assert!(replays(&queue, &sent.id));
    assert_eq!(take(&queue, 1).len(), 1);
}

#[test]
fn a_token_is_no_good_for_another_command_of_the_same_id() {
    let Some(server) = started::<Nats>() else { return };
    let (queue, other) = (queue(&server), queue(&server));
    let sent = envelope(1);
    let enqueue = || block_on(queue.enqueue_with(sent.clone(), EnqueueOptions::new().max_deliveries(1)));
    enqueue().expect("it is accepted");
    let old = take_within(&queue, Duration::from_millis(300), Duration::ZERO).expect("it is there");
    assert!(take_within(&other, Duration::from_secs(60), Duration::from_secs(2)).is_none(), "it is given up");
    assert!(block_on(other.discard(&sent.id)).expect("it can be discarded"));
    enqueue().expect("it is accepted again");
    let new = take(&other, 1).pop().expect("it is there");
    assert!(new.token.fence() > old.token.fence(), "{} after {}", new.token.fence(), old.token.fence());
    assert_eq!(ack(&queue, &old.token), AckOutcome::LeaseLost);
    assert!(block_on(queue.extend(&old.token, Duration::from_secs(1))).is_err());
    block_on(other.extend(&new.token, Duration::from_secs(60))).expect("it has the lease");
    assert_eq!(ack(&other, &new.token), AckOutcome::Applied);
}

#[test]
fn a_result_that_is_too_large_to_keep_does_not_keep_its_command_from_ending() {
    let Some(server) = started::<Nats>() else { return };
    let queue = connect(RemoteOptions::new(server.url()).max_payload(2000));
    let sent = envelope(1);
    let options = EnqueueOptions::new().keep_result(Duration::from_secs(60));
    block_on(queue.enqueue_with(sent.clone(), options)).expect("it is accepted");
    let leased = take(&queue, 1).pop().expect("it is there");
    let large = CommandResult { result: Ok("x".repeat(3 << 20).into()), ..done(&leased.token) };
    assert_eq!(block_on(queue.ack(&leased.token, large.clone())).expect("it ends"), AckOutcome::Applied);
    assert_eq!(block_on(queue.ack(&leased.token, large)).expect("it has ended"), AckOutcome::AlreadyApplied);
    let kept = block_on(queue.result(&sent.id, Duration::ZERO)).expect("it can be asked").expect("there is one");
    let text = kept.result.expect_err("it is not kept");
    assert!(text.contains("ended well") && text.contains("had 3145") && text.contains("limit is"), "{text}");
    assert!(block_on(queue.dead_letters(DeadPage::first(1))).expect("they can be read").is_empty());
    assert_eq!(states(&server), [""; 0]);
}

#[test]
fn what_waits_for_another_try_expires_in_time() {
    let Some(server) = started::<Nats>() else { return };
    let queue = queue(&server);
    let options = EnqueueOptions::new().expires_after(Duration::from_secs(1));
    block_on(queue.enqueue_with(envelope(1), options)).expect("it is accepted");
    let leased = take(&queue, 1).pop().expect("it is there");
    let later = Nack::RetryAfter { delay: Duration::from_secs(600), error: "not now".to_owned() };
    block_on(queue.nack(&leased.token, later)).expect("it can be given back");
    assert!(take_within(&queue, Duration::from_secs(60), Duration::from_secs(2)).is_none(), "it is not due");
    let letters = block_on(queue.dead_letters(DeadPage::first(1))).expect("they can be read");
    assert_eq!(letters.first().map(|letter| &letter.reason), Some(&DeadReason::Expired));
}

/// Answers all that is asked of it as a server of a cluster does that has no leader just now. Counts the questions.
fn leaderless() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("nats://{}", listener.local_addr().expect("it has an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(connection) = connection else { return };
            // An error: the client is gone.
            let _ = answer_not_now(&connection, &counted);
        }
    });
    (url, asked)
}

fn answer_not_now(mut connection: &TcpStream, asked: &AtomicUsize) -> io::Result<()> {
    let info = json!({
        "server_id": "x", "server_name": "x", "version": "2.10.0", "go": "", "host": "127.0.0.1", "port": 1, "proto": 1,
        "headers": true, "jetstream": true, "max_payload": 1 << 20, "client_id": 1,
    });
    write!(connection, "INFO {info}\r\n")?;
    let error = json!({ "code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable" });
    let refusal = json!({ "type": "x", "error": error }).to_string();
    let mut lines = io::BufReader::new(connection);
    // Of the last subscription: the client has one for all answers.
    let mut subscription = String::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["PING"] => write!(connection, "PONG\r\n")?,
            ["SUB", _, id] => id.clone_into(&mut subscription),
            ["PUB", _, inbox, size] | ["HPUB", _, inbox, _, size] => {
                let size: u64 = size.parse().map_err(io::Error::other)?;
                io::copy(&mut lines.by_ref().take(size + 2), &mut io::sink())?;
                asked.fetch_add(1, Ordering::Relaxed);
                write!(connection, "MSG {inbox} {subscription} {}\r\n{refusal}\r\n", refusal.len())?;
            }
            _ => {}
        }
    }
}

#[test]
fn a_cluster_without_a_leader_is_asked_again_and_then_unavailable() {
    let (url, asked) = leaderless();
    let begun = Instant::now();
    let error = refusal(RemoteOptions::new(url).call_timeout(Duration::from_millis(700)));
    assert!(
        matches!(&error, DistributedError::Unavailable { cause, .. } if cause.contains("temporarily unavailable")),
        "{error:?}"
    );
    assert!(error.is_transient());
    assert!(asked.load(Ordering::Relaxed) > 1, "it is asked again");
    assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());
}

#[test]
fn a_password_that_was_changed_is_read_again_when_it_is_connected_anew() {
    if started::<Nats>().is_none() {
        return;
    }
    let text = |password: &str| format!("authorization {{ user: worker, password: {password:?} }}");
    let (place, path) = configured(&text("first"));
    let mut server = Nats::start_with(&["-c", path.to_str().expect("it is UTF-8")], true);
    let secret = place.0.join("url");
    let rotate = |password: &str| {
        let url = server.url().replace("//", &format!("//worker:{password}@"));
        fs::write(&secret, url).expect("a file can be written");
    };
    rotate("first");
    let queue = connect(RemoteOptions::new(Secret::from_file(&secret)).call_timeout(Duration::from_secs(30)));
    put(&queue, 1);
    fs::write(&path, text("canary-7f3a")).expect("a file can be written");
    rotate("canary-7f3a");
    server.restart();
    put(&queue, 2);
    assert_eq!(take(&queue, 10).len(), 2);
    assert!(!format!("{queue:?}").contains("canary"), "{queue:?}");
}

#[test]
fn of_a_server_that_hangs_it_is_not_known_what_it_does_and_asking_again_does_it_once() {
    let Some(server) = started::<Nats>() else { return };
    let queue = connect(RemoteOptions::new(server.url()).call_timeout(Duration::from_millis(500)));
    put(&queue, 0);
    let leased = take(&queue, 1).pop().expect("it is there");
    let sent = envelope(1);
    server.hang();
    let unknown = |result: Result<()>| match result {
        Err(LaneError::Distributed(DistributedError::OutcomeUnknown { .. })) => {}
        other => panic!("{other:?}"),
    };
    unknown(block_on(queue.enqueue(sent.clone())));
    unknown(block_on(queue.ack(&leased.token, done(&leased.token))).map(drop));
    assert!(block_on(queue.dequeue(0)).is_err());
    server.go_on();
    let again = block_on(queue.ack(&leased.token, done(&leased.token))).expect("it answers");
    assert!(matches!(again, AckOutcome::Applied | AckOutcome::AlreadyApplied), "{again:?}");
    block_on(queue.enqueue(sent.clone())).expect("it answers");
    let taken = take_within(&queue, Duration::from_secs(60), Duration::from_secs(10)).expect("it is there");
    assert_eq!(taken.envelope.id, sent.id);
    assert_eq!(ack(&queue, &taken.token), AckOutcome::Applied);
    assert!(take(&queue, 10).is_empty(), "once");
}

#[test]
fn calls_to_a_server_that_is_gone_say_so_in_time() {
    let Some(mut server) = started::<Nats>() else { return };
    let url = server.url().replace("//", "//user:canary-7f3a@");
    let queue = connect(RemoteOptions::new(url).call_timeout(Duration::from_millis(600)));
    put(&queue, 1);
    let leased = take(&queue, 1).pop().expect("it is there");
    server.kill();
    let begun = Instant::now();
    let errors = [
        block_on(queue.enqueue(envelope(2))).expect_err("nobody answers"),
        block_on(queue.dequeue(0)).expect_err("nobody answers"),
        block_on(queue.ack(&leased.token, done(&leased.token))).expect_err("nobody answers"),
        block_on(queue.nack(&leased.token, Nack::Release)).expect_err("nobody answers"),
        block_on(queue.extend(&leased.token, Duration::from_secs(1))).expect_err("nobody answers"),
        block_on(queue.dead_letters(DeadPage::first(1))).expect_err("nobody answers"),
        block_on(queue.depth(0)).expect_err("nobody answers"),
    ];
    assert!(begun.elapsed() < Duration::from_secs(8), "after {:?}", begun.elapsed());
    for error in errors {
        let LaneError::Distributed(error) = error else { panic!("{error:?}") };
        assert!(error.is_transient(), "{error:?}");
        assert!(!format!("{error} {error:?} {queue:?}").contains("canary"), "{error:?}");
    }
    assert!(matches!(queue.health(), DistributedHealth::Reconnecting { .. }), "{:?}", queue.health());
    block_on(queue.close(Duration::from_millis(200))).expect_err("it can not be told");
    server.restart();
}
