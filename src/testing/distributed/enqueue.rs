//! What is accepted is there, once. What is not, is refused with a word.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{World, ack, always, checks, envelope, leases, number, numbers, put, put_with, refusal};
use crate::distributed::{Capabilities, CommandEnvelope, DeadReason, EnqueueOptions, Support};
use crate::error::DistributedError;
use crate::queue::{HashPartitioner, PartitionConfig, Partitioner as _};

checks! {
    a_receipt_names_the_command if always,
    many_are_accepted_at_once if always,
    one_that_is_refused_does_not_take_others_along if always,
    an_empty_batch_is_nothing if always,
    the_same_command_again_is_a_duplicate if leases,
    the_same_command_again_is_a_duplicate_while_it_runs if leases,
    the_same_command_again_is_a_duplicate_after_its_end if leases,
    the_same_command_in_one_batch_is_a_duplicate if leases,
    another_command_of_the_same_id_is_refused if leases,
    a_key_has_one_command if keys,
    a_key_stays_after_its_command_has_ended if keys,
    a_key_with_other_work_is_refused if keys,
    a_key_is_free_when_its_command_is_given_up if keys,
    a_key_is_one_in_all_partitions if keys,
    keys_of_one_batch_are_seen if keys,
    an_empty_name_is_refused if always,
    a_name_that_is_too_long_is_refused if always,
    control_characters_in_a_name_are_refused if always,
    the_longest_names_are_kept if always,
    terms_that_make_no_sense_are_refused if always,
    a_payload_of_any_shape_is_kept if always,
    a_large_payload_is_kept if always,
    a_payload_over_the_limit_is_refused if limits_payloads,
    headers_and_version_come_along if leases,
    the_same_key_goes_to_the_same_partition if always,
    types_go_to_the_partitions_of_the_stable_hash if always,
    round_robin_reaches_all_partitions if always,
    what_is_enqueued_by_one_is_taken_by_another if always,
}

fn keys(can: &Capabilities) -> bool {
    can.leases && can.idempotency == Support::Exact
}

fn limits_payloads(can: &Capabilities) -> bool {
    can.max_payload.is_some()
}

async fn a_receipt_names_the_command(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    let receipt = queue.enqueue_with(sent.clone(), EnqueueOptions::new()).await.unwrap();
    assert_eq!((receipt.command_id, receipt.duplicate), (sent.id, false));
}

async fn many_are_accepted_at_once(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 300).await;
    let mut got = BTreeSet::new();
    loop {
        let taken = world.take(&queue, 100).await;
        if taken.is_empty() {
            break;
        }
        got.extend(numbers(&taken));
    }
    assert_eq!(got.len(), 300);
}

async fn one_that_is_refused_does_not_take_others_along(world: World) {
    let queue = world.open().await;
    let bad = CommandEnvelope { lane_id: String::new(), ..envelope(2) };
    let batch = [envelope(1), bad, envelope(3)].map(|envelope| (envelope, EnqueueOptions::new()));
    let receipts = queue.enqueue_batch(batch.into()).await;
    let accepted: Vec<_> = receipts.iter().map(Result::is_ok).collect();
    assert_eq!(accepted, [true, false, true]);
    let mut got = numbers(&world.take(&queue, 10).await);
    got.sort();
    assert_eq!(got, ["1", "3"]);
}

async fn an_empty_batch_is_nothing(world: World) {
    let queue = world.open().await;
    assert!(queue.enqueue_batch(Vec::new()).await.is_empty());
    world.nothing(&queue, "an empty batch").await;
}

async fn the_same_command_again_is_a_duplicate(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    queue.enqueue(sent.clone()).await.unwrap();
    let receipt = queue.enqueue_with(sent.clone(), EnqueueOptions::new()).await.unwrap();
    assert_eq!((receipt.command_id, receipt.duplicate), (sent.id, true));
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn the_same_command_in_one_batch_is_a_duplicate(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    let batch = (0..3).map(|_| (sent.clone(), EnqueueOptions::new())).collect();
    let receipts: Vec<_> = queue.enqueue_batch(batch).await.into_iter().map(Result::unwrap).collect();
    assert!(receipts.iter().all(|receipt| receipt.command_id == sent.id));
    assert_eq!(receipts.iter().filter(|receipt| receipt.duplicate).count(), 2);
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn the_same_command_again_is_a_duplicate_while_it_runs(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    queue.enqueue(sent.clone()).await.unwrap();
    let leased = world.take_one(&queue).await;
    assert!(queue.enqueue_with(sent, EnqueueOptions::new()).await.unwrap().duplicate);
    world.nothing(&queue, "the same command").await;
    ack(&queue, &leased.token).await;
}

async fn the_same_command_again_is_a_duplicate_after_its_end(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    queue.enqueue(sent.clone()).await.unwrap();
    let leased = world.take_one(&queue).await;
    ack(&queue, &leased.token).await;
    let other = world.open().await;
    assert!(other.enqueue_with(sent, EnqueueOptions::new()).await.unwrap().duplicate);
    world.nothing(&queue, "a command that has ended").await;
}

async fn another_command_of_the_same_id_is_refused(world: World) {
    let queue = world.open().await;
    let sent = envelope(1);
    queue.enqueue(sent.clone()).await.unwrap();
    let other = CommandEnvelope { payload: json!("something else"), ..sent.clone() };
    assert_eq!(refusal(queue.enqueue(other).await), DistributedError::DuplicateId { command_id: sent.id });
    assert_eq!(numbers(&world.take(&queue, 10).await), ["1"]);
}

fn keyed() -> EnqueueOptions {
    EnqueueOptions::new().idempotency_key("order 17/ä")
}

async fn a_key_has_one_command(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let id = put_with(&queue, 1, keyed()).await;
    let receipt = other.enqueue_with(envelope(1), keyed()).await.unwrap();
    assert_eq!((receipt.command_id, receipt.duplicate), (id, true));
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn a_key_stays_after_its_command_has_ended(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, keyed()).await;
    let leased = world.take_one(&queue).await;
    ack(&queue, &leased.token).await;
    let receipt = queue.enqueue_with(envelope(1), keyed()).await.unwrap();
    assert_eq!((receipt.command_id, receipt.duplicate), (id, true));
    world.nothing(&queue, "the work of a key that has ended").await;
}

async fn a_key_with_other_work_is_refused(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, keyed()).await;
    let conflict = refusal(queue.enqueue_with(envelope(2), keyed()).await);
    assert_eq!(conflict, DistributedError::IdempotencyConflict { key: "order 17/ä".to_owned(), command_id: id });
    assert_eq!(numbers(&world.take(&queue, 10).await), ["1"]);
}

async fn a_key_is_free_when_its_command_is_given_up(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, keyed()).await;
    let leased = world.take_one(&queue).await;
    queue.dead_letter(&leased.token, DeadReason::Failed("wrong".to_owned())).await.unwrap();
    let receipt = queue.enqueue_with(envelope(2), keyed()).await.unwrap();
    assert!(!receipt.duplicate);
    assert_eq!(number(&world.take_one(&queue).await), "2");
}

async fn a_key_is_one_in_all_partitions(world: World) {
    let world = world.partitions(PartitionConfig::round_robin(4));
    let queue = world.open().await;
    let mut duplicates = 0;
    for partition_id in 0..4 {
        let sent = CommandEnvelope { partition_id, ..envelope(1) };
        duplicates += usize::from(queue.enqueue_with(sent, keyed()).await.unwrap().duplicate);
    }
    assert_eq!(duplicates, 3);
}

async fn keys_of_one_batch_are_seen(world: World) {
    let queue = world.open().await;
    let batch = (0..3).map(|_| (envelope(1), keyed())).collect();
    let receipts: Vec<_> = queue.enqueue_batch(batch).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(receipts.iter().filter(|receipt| receipt.duplicate).count(), 2);
    assert!(receipts.iter().all(|receipt| receipt.command_id == receipts[0].command_id));
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

/// Refused, with a word about the field; nothing was stored.
async fn refused(world: &World, sent: CommandEnvelope, options: EnqueueOptions, wanted: &str) {
    let queue = world.open().await;
    match refusal(queue.enqueue_with(sent, options).await) {
        DistributedError::InvalidEnvelope { field, .. } => assert_eq!(field, wanted),
        other => panic!("{wanted}: {other}"),
    }
    world.nothing(&queue, wanted).await;
}

async fn an_empty_name_is_refused(world: World) {
    let new = EnqueueOptions::new;
    refused(&world, CommandEnvelope { id: String::new(), ..envelope(1) }, new(), "id").await;
    refused(&world, CommandEnvelope { lane_id: String::new(), ..envelope(1) }, new(), "lane_id").await;
    refused(&world, CommandEnvelope { command_type: String::new(), ..envelope(1) }, new(), "command_type").await;
    refused(&world, envelope(1), new().idempotency_key(""), "idempotency_key").await;
}

async fn a_name_that_is_too_long_is_refused(world: World) {
    let (new, long) = (EnqueueOptions::new, "x".repeat(257));
    refused(&world, CommandEnvelope { id: long.clone(), ..envelope(1) }, new(), "id").await;
    refused(&world, CommandEnvelope { lane_id: long.clone(), ..envelope(1) }, new(), "lane_id").await;
    refused(&world, CommandEnvelope { command_type: long.clone(), ..envelope(1) }, new(), "command_type").await;
    refused(&world, envelope(1), new().idempotency_key(long), "idempotency_key").await;
}

async fn control_characters_in_a_name_are_refused(world: World) {
    let new = EnqueueOptions::new;
    refused(&world, CommandEnvelope { id: "a\nb".to_owned(), ..envelope(1) }, new(), "id").await;
    refused(&world, CommandEnvelope { lane_id: "a\0b".to_owned(), ..envelope(1) }, new(), "lane_id").await;
}

async fn the_longest_names_are_kept(world: World) {
    let queue = world.open().await;
    let long = "ü".repeat(128);
    let sent = CommandEnvelope { id: long.clone(), lane_id: long.clone(), command_type: long.clone(), ..envelope(1) };
    queue.enqueue(sent.clone()).await.unwrap();
    let got = queue.dequeue(0).await.unwrap().expect("it is there");
    assert_eq!((got.id, got.lane_id, got.command_type), (long.clone(), long.clone(), long));
}

async fn terms_that_make_no_sense_are_refused(world: World) {
    let new = EnqueueOptions::new;
    refused(&world, envelope(1), new().priority(64), "priority").await;
    refused(&world, envelope(1), new().max_deliveries(0), "max_deliveries").await;
    refused(&world, envelope(1), new().delay(Duration::MAX), "delay").await;
    refused(&world, envelope(1), new().expires_after(Duration::MAX), "expires_after").await;
}

async fn a_payload_of_any_shape_is_kept(world: World) {
    let queue = world.open().await;
    let payloads = [json!(null), json!(false), json!(0), json!(""), json!([]), json!({}), json!("\u{0}\u{ffff}")];
    for payload in &payloads {
        queue.enqueue(CommandEnvelope { payload: payload.clone(), ..envelope(0) }).await.unwrap();
    }
    let mut got: Vec<_> = Vec::new();
    while let Some(envelope) = queue.dequeue(0).await.unwrap() {
        got.push(envelope.payload);
    }
    for payload in payloads {
        assert!(got.contains(&payload), "{payload} has not come back");
    }
}

async fn a_large_payload_is_kept(world: World) {
    let queue = world.open().await;
    let limit = queue.capabilities().max_payload.unwrap_or(usize::MAX);
    let payload = json!("x".repeat(limit.min(512 << 10) / 2));
    queue.enqueue(CommandEnvelope { payload: payload.clone(), ..envelope(1) }).await.unwrap();
    assert_eq!(queue.dequeue(0).await.unwrap().expect("it is there").payload, payload);
}

async fn a_payload_over_the_limit_is_refused(world: World) {
    let queue = world.open().await;
    let limit = queue.capabilities().max_payload.expect("there is one");
    let sent = CommandEnvelope { payload: json!("x".repeat(limit + 1)), ..envelope(1) };
    match refusal(queue.enqueue(sent).await) {
        DistributedError::PayloadTooLarge { size, limit: named } => assert!(size > named && named == limit),
        other => panic!("{other}"),
    }
    world.nothing(&queue, "a payload over the limit").await;
    put(&queue, 2).await;
    assert_eq!(number(&world.take_one(&queue).await), "2", "it goes on");
}

async fn headers_and_version_come_along(world: World) {
    let queue = world.open().await;
    let options = EnqueueOptions::new().payload_version(3).header("traceparent", "00-ab-cd-01").header("ü", "\n");
    put_with(&queue, 1, options.clone()).await;
    let leased = world.take_one(&queue).await;
    assert_eq!((leased.payload_version, leased.headers), (3, options.headers));
    ack(&queue, &leased.token).await;
}

/// Which partition has the command.
async fn partition_of(queue: &super::Queue, id: &str) -> usize {
    for partition in 0..queue.num_partitions() {
        while let Some(got) = queue.dequeue(partition).await.unwrap() {
            if got.id == id {
                return partition;
            }
        }
    }
    panic!("{id} is in no partition")
}

async fn the_same_key_goes_to_the_same_partition(world: World) {
    let world = world.partitions(PartitionConfig::hash(4));
    let (queue, other) = (world.open().await, world.open().await);
    for key in ["a", "b", "user-7", "ü"] {
        let expected = HashPartitioner.partition_of(key, 4);
        for queue in [&queue, &other] {
            let id = put_with(queue, 1, EnqueueOptions::new().key(key)).await;
            assert_eq!(partition_of(queue, &id).await, expected, "of key {key:?}");
        }
    }
}

async fn types_go_to_the_partitions_of_the_stable_hash(world: World) {
    let world = world.partitions(PartitionConfig::hash(8));
    let queue = world.open().await;
    for kind in ["resize", "send-mail", "index", "x"] {
        let sent = CommandEnvelope { command_type: kind.to_owned(), ..envelope(1) };
        queue.enqueue(sent.clone()).await.unwrap();
        assert_eq!(partition_of(&queue, &sent.id).await, HashPartitioner.partition_of(kind, 8), "of type {kind:?}");
    }
}

async fn round_robin_reaches_all_partitions(world: World) {
    let world = world.partitions(PartitionConfig::round_robin(4));
    let queue = world.open().await;
    super::put_many(&queue, 8).await;
    for partition in 0..4 {
        let mut got = 0;
        while queue.dequeue(partition).await.unwrap().is_some() {
            got += 1;
        }
        assert_eq!(got, 2, "partition {partition}");
    }
}

async fn what_is_enqueued_by_one_is_taken_by_another(world: World) {
    let (one, other) = (world.open().await, world.open().await);
    put(&one, 1).await;
    let got = other.dequeue(0).await.unwrap().expect("it is there");
    assert_eq!(got.payload["number"], "1");
}
