//! The seed's five methods.

use std::time::Duration;

use serde_json::json;

use super::{World, always, checks, done, envelope, envelope_in, leases, put, refusal};
use crate::distributed::{CommandEnvelope, CommandResult, LeaseToken};
use crate::error::DistributedError;
use crate::queue::PartitionConfig;

checks! {
    what_is_enqueued_is_dequeued if always,
    an_envelope_comes_as_it_was if always,
    a_command_is_dequeued_once if always,
    an_empty_partition_has_none if always,
    completing_ends_a_command if always,
    completing_with_an_error_ends_a_command if always,
    completing_what_was_not_taken_is_refused if leases,
    a_named_partition_is_kept if always,
    a_partition_that_is_not_there_is_refused if always,
    every_handle_has_a_name_of_its_own if always,
    there_are_as_many_partitions_as_asked_for if always,
    dequeue_takes_all_lanes if always,
}

async fn what_is_enqueued_is_dequeued(world: World) {
    let queue = world.open().await;
    let sent = CommandEnvelope { partition_id: 0, ..envelope(1) };
    queue.enqueue(sent.clone()).await.unwrap();
    let got = queue.dequeue(0).await.unwrap().expect("it is there");
    assert_eq!((got.id, got.payload), (sent.id, sent.payload));
}

async fn an_envelope_comes_as_it_was(world: World) {
    let queue = world.open().await;
    let payload = json!({
        "text": "naïve 漢字 \u{1F600} \"quoted\" \\ \n \u{0}",
        "numbers": [0, -1, i64::MIN, u64::MAX, 0.1, 1e300, f64::MIN_POSITIVE],
        "nested": { "null": null, "yes": true, "list": [[], {}, ""] },
    });
    let sent = CommandEnvelope {
        command_type: "über/type:1 {x}".to_owned(),
        lane_id: "lane with spaces: and {braces}.*>".to_owned(),
        partition_id: 0,
        retry_count: 3,
        payload,
        ..envelope(1)
    };
    queue.enqueue(sent.clone()).await.unwrap();
    let got = queue.dequeue(0).await.unwrap().expect("it is there");
    assert_eq!(got.created_at.timestamp_millis(), sent.created_at.timestamp_millis());
    assert_eq!(CommandEnvelope { created_at: sent.created_at, ..got }, sent);
}

async fn a_command_is_dequeued_once(world: World) {
    let (one, other) = (world.open().await, world.open().await);
    put(&one, 1).await;
    assert!(other.dequeue(0).await.unwrap().is_some());
    assert_eq!(one.dequeue(0).await.unwrap(), None);
    assert_eq!(other.dequeue(0).await.unwrap(), None);
}

async fn an_empty_partition_has_none(world: World) {
    let queue = world.open().await;
    assert_eq!(queue.dequeue(0).await.unwrap(), None);
}

async fn completing_ends_a_command(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let got = queue.dequeue(0).await.unwrap().expect("it is there");
    let token = LeaseToken::new(got.id, 0, 0, "");
    queue.complete(done(&token)).await.unwrap();
    queue.close(Duration::from_secs(5)).await.unwrap();
    world.nothing(&world.open().await, "a command that was completed").await;
}

async fn completing_with_an_error_ends_a_command(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let got = queue.dequeue(0).await.unwrap().expect("it is there");
    let result = CommandResult {
        command_id: got.id,
        result: Err("it has failed".to_owned()),
        worker_id: queue.worker_id().clone(),
        duration_ms: 1,
    };
    queue.complete(result).await.unwrap();
    queue.close(Duration::from_secs(5)).await.unwrap();
    world.nothing(&world.open().await, "a command that was completed").await;
}

async fn completing_what_was_not_taken_is_refused(world: World) {
    let (taker, other) = (world.open().await, world.open().await);
    let id = put(&taker, 1).await;
    let token = LeaseToken::new(id.as_str(), 0, 0, "");
    let lost = DistributedError::LeaseLost { command_id: id.clone() };
    assert_eq!(refusal(other.complete(done(&token)).await), lost, "of a ready one");
    taker.dequeue(0).await.unwrap().expect("it is there");
    assert_eq!(refusal(other.complete(done(&token)).await), lost, "of another worker's");
    taker.complete(done(&token)).await.unwrap();
}

async fn a_named_partition_is_kept(world: World) {
    let world = world.partitions(PartitionConfig::round_robin(3));
    let queue = world.open().await;
    queue.enqueue(CommandEnvelope { partition_id: 2, ..envelope(1) }).await.unwrap();
    assert_eq!(queue.dequeue(0).await.unwrap(), None);
    assert_eq!(queue.dequeue(1).await.unwrap(), None);
    assert_eq!(queue.dequeue(2).await.unwrap().expect("it is there").partition_id, 2);
}

async fn a_partition_that_is_not_there_is_refused(world: World) {
    let world = world.partitions(PartitionConfig::round_robin(3));
    let queue = world.open().await;
    let no_such = DistributedError::NoSuchPartition { partition: 3, partitions: 3 };
    assert_eq!(refusal(queue.dequeue(3).await), no_such);
    assert_eq!(refusal(queue.enqueue(CommandEnvelope { partition_id: 3, ..envelope(1) }).await), no_such);
}

async fn every_handle_has_a_name_of_its_own(world: World) {
    let (one, other) = (world.open().await, world.open().await);
    assert!(!one.worker_id().is_empty());
    assert_ne!(one.worker_id(), other.worker_id());
}

async fn there_are_as_many_partitions_as_asked_for(world: World) {
    let world = world.partitions(PartitionConfig::hash(5));
    assert_eq!(world.open().await.num_partitions(), 5);
}

async fn dequeue_takes_all_lanes(world: World) {
    let queue = world.open().await;
    for lane in ["a", "b", "c"] {
        queue.enqueue(envelope_in(lane, lane)).await.unwrap();
    }
    let mut lanes = Vec::new();
    while let Some(got) = queue.dequeue(0).await.unwrap() {
        lanes.push(got.lane_id);
    }
    lanes.sort();
    assert_eq!(lanes, ["a", "b", "c"]);
}
