//! Results, limits to all workers together, depth, closing.

use std::time::Duration;

use serde_json::json;

use super::{
    World, ack, always, checks, envelope_in, eventually, failed, leases, number, put, put_with, refusal, release,
    result_of,
};
use crate::distributed::{
    AckOutcome, Capabilities, DeadReason, DistributedHealth, EnqueueOptions, GlobalLimits, Support,
};
use crate::error::{DistributedError, LaneError};
use crate::executor::{now, sleep};
use crate::limit::rate::RateLimitConfig;

checks! {
    a_result_that_is_kept_is_found if results,
    a_failure_that_is_kept_is_found if results,
    a_result_that_is_not_kept_is_not_found if results,
    a_result_is_forgotten_after_its_time if results,
    waiting_for_a_result_ends_when_it_comes if results,
    waiting_for_a_result_ends_when_the_time_is_over if results,
    at_most_so_many_are_leased_by_all if limits_concurrency,
    room_under_a_limit_is_there_again if limits_concurrency,
    a_lost_lease_gives_its_room_back if limits_concurrency,
    a_limit_is_of_its_lane_only if limits_concurrency,
    a_limit_can_be_taken_away if limits_concurrency,
    a_limit_of_nothing_is_refused if limits_concurrency,
    a_rate_is_kept_by_all if limits_rate,
    depth_counts_what_is_there if leases,
    depth_knows_the_oldest if leases,
    closing_gives_back_what_was_taken if leases,
    closing_charges_nothing if leases,
    closing_leaves_others_alone if leases,
    a_closed_handle_says_so if leases,
    a_handle_that_waits_takes_nothing_once_it_is_closed if leases,
    closing_twice_is_closing_once if always,
    health_is_known if leases,
}

fn results(can: &Capabilities) -> bool {
    can.leases && can.results
}

fn limits_concurrency(can: &Capabilities) -> bool {
    can.leases && can.global_concurrency == Support::Exact
}

fn limits_rate(can: &Capabilities) -> bool {
    can.leases && can.global_rate == Support::Exact
}

fn kept() -> EnqueueOptions {
    EnqueueOptions::new().keep_result(Duration::from_secs(60))
}

async fn a_result_that_is_kept_is_found(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let id = put_with(&queue, 1, kept()).await;
    assert_eq!(other.result(&id, Duration::ZERO).await.unwrap(), None, "it has not ended");
    let leased = world.take_one(&queue).await;
    let sent = result_of(&leased.token, Ok(json!({ "answer": 42 })));
    queue.ack(&leased.token, sent.clone()).await.unwrap();
    assert_eq!(other.result(&id, Duration::ZERO).await.unwrap(), Some(sent.clone()));
    assert_eq!(queue.result(&id, Duration::ZERO).await.unwrap(), Some(sent), "reading does not take it away");
}

async fn a_failure_that_is_kept_is_found(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, kept()).await;
    let leased = world.take_one(&queue).await;
    queue.ack(&leased.token, failed(&leased.token, "no")).await.unwrap();
    let result = queue.result(&id, Duration::ZERO).await.unwrap().expect("it was kept");
    assert_eq!(result.result, Err("no".to_owned()));
}

async fn a_result_that_is_not_kept_is_not_found(world: World) {
    let queue = world.open().await;
    let id = put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    ack(&queue, &leased.token).await;
    assert_eq!(queue.result(&id, Duration::ZERO).await.unwrap(), None);
    assert_eq!(queue.result("nobody", Duration::ZERO).await.unwrap(), None);
}

async fn a_result_is_forgotten_after_its_time(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, EnqueueOptions::new().keep_result(Duration::from_secs(1))).await;
    let leased = world.take_one(&queue).await;
    ack(&queue, &leased.token).await;
    let queue = &queue;
    let id = &id;
    eventually("it is forgotten", || async { queue.result(id, Duration::ZERO).await.unwrap().is_none() }).await;
}

async fn waiting_for_a_result_ends_when_it_comes(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let id = put_with(&queue, 1, kept()).await;
    let before = now();
    let (result, ()) = futures_lite::future::zip(other.result(&id, Duration::from_secs(15)), async {
        sleep(Duration::from_millis(200)).await;
        let leased = world.take_one(&queue).await;
        ack(&queue, &leased.token).await;
    })
    .await;
    assert!(result.unwrap().is_some());
    assert!(now().since(before) < Duration::from_secs(10), "it waits longer than it has to");
}

async fn waiting_for_a_result_ends_when_the_time_is_over(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, kept()).await;
    let before = now();
    assert_eq!(queue.result(&id, Duration::from_millis(300)).await.unwrap(), None);
    assert!(now().since(before) >= Duration::from_millis(290));
}

async fn limit(queue: &super::Queue, max: usize) {
    queue.set_limits("query", GlobalLimits::none().max_leased(max)).await.expect("it can be limited");
}

async fn at_most_so_many_are_leased_by_all(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    limit(&queue, 3).await;
    super::put_many(&queue, 10).await;
    assert_eq!(world.take(&queue, 2).await.len(), 2);
    assert_eq!(world.take(&other, 10).await.len(), 1);
    world.nothing(&queue, "beyond the limit").await;
}

async fn room_under_a_limit_is_there_again(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    limit(&queue, 2).await;
    super::put_many(&queue, 10).await;
    let taken = world.take(&queue, 10).await;
    assert_eq!(taken.len(), 2);
    ack(&queue, &taken[0].token).await;
    assert_eq!(world.take(&other, 10).await.len(), 1, "after an acknowledgement");
    release(&queue, &taken[1].token).await;
    assert_eq!(world.take(&other, 10).await.len(), 1, "after a release");
    world.nothing(&other, "beyond the limit").await;
}

async fn a_lost_lease_gives_its_room_back(world: World) {
    let world = world.short();
    let queue = world.open().await;
    limit(&queue, 1).await;
    super::put_many(&queue, 2).await;
    let first = world.take_one(&queue).await;
    let second = world.take_one(&queue).await;
    assert!(second.token.fence() > 0 && first.token != second.token);
}

async fn a_limit_is_of_its_lane_only(world: World) {
    let queue = world.open().await;
    limit(&queue, 1).await;
    super::put_many(&queue, 3).await;
    for number in 0..3 {
        queue.enqueue(envelope_in("free", number)).await.unwrap();
    }
    let taken = world.take(&queue, 10).await;
    let limited = taken.iter().filter(|leased| leased.envelope.lane_id == "query").count();
    assert_eq!((limited, taken.len()), (1, 4));
}

async fn a_limit_can_be_taken_away(world: World) {
    let queue = world.open().await;
    limit(&queue, 1).await;
    super::put_many(&queue, 5).await;
    assert_eq!(world.take(&queue, 10).await.len(), 1);
    queue.set_limits("query", GlobalLimits::none()).await.unwrap();
    assert_eq!(world.take(&queue, 10).await.len(), 4);
}

async fn a_limit_of_nothing_is_refused(world: World) {
    let queue = world.open().await;
    let refused = queue.set_limits("query", GlobalLimits::none().max_leased(0)).await;
    assert!(matches!(refused, Err(LaneError::ConfigError(_))), "{refused:?}");
}

async fn a_rate_is_kept_by_all(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let rate = RateLimitConfig::new(2, Duration::from_secs(1)).with_burst(3);
    queue.set_limits("query", GlobalLimits::none().rate(rate)).await.unwrap();
    super::put_many(&queue, 20).await;
    let (begun, mut got) = (now(), 0);
    while got < 7 {
        let before = now().since(begun);
        let taken = world.take(&queue, 10).await.len() + world.take(&other, 10).await.len();
        got += taken;
        // A burst, and what has come since; what was taken may have come while it was on its way.
        let allowed = 3.0 + 2.0 * now().since(begun).as_secs_f64();
        assert!(got as f64 <= allowed, "{got} after {before:?}, of {allowed}");
        assert!(now().since(begun) < Duration::from_secs(15), "only {got} came");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn depth_counts_what_is_there(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 5).await;
    let mut delayed = 0;
    if queue.capabilities().delay == Support::Exact {
        put_with(&queue, 1, EnqueueOptions::new().delay(Duration::from_secs(50))).await;
        delayed = 1;
    }
    let taken = world.take(&queue, 2).await;
    let mut dead = 0;
    if queue.capabilities().dead_letters {
        queue.dead_letter(&taken[0].token, DeadReason::Expired).await.unwrap();
        dead = 1;
    } else {
        ack(&queue, &taken[0].token).await;
    }
    let queue = &queue;
    eventually("depth is right", || async move {
        let depth = queue.depth(0).await.unwrap();
        (depth.ready, depth.delayed, depth.leased, depth.dead) == (3, delayed, 1, dead)
    })
    .await;
}

async fn depth_knows_the_oldest(world: World) {
    let queue = world.open().await;
    assert_eq!(queue.depth(0).await.unwrap().oldest_ready, None);
    put(&queue, 1).await;
    sleep(Duration::from_millis(300)).await;
    put(&queue, 2).await;
    let oldest = queue.depth(0).await.unwrap().oldest_ready.expect("there is one");
    assert!((Duration::from_millis(250)..Duration::from_secs(15)).contains(&oldest), "{oldest:?}");
}

async fn closing_gives_back_what_was_taken(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    super::put_many(&queue, 3).await;
    assert_eq!(world.take(&queue, 2).await.len(), 2);
    queue.close(Duration::from_secs(5)).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..3 {
        got.push(number(&world.take_one(&other).await));
    }
    got.sort();
    assert_eq!(got, ["0", "1", "2"]);
}

async fn closing_charges_nothing(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    put(&queue, 1).await;
    assert_eq!(world.take(&queue, 1).await.len(), 1);
    queue.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(world.take_one(&other).await.delivery, 1);
}

async fn closing_leaves_others_alone(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    super::put_many(&queue, 2).await;
    let leased = world.take_one(&other).await;
    queue.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(ack(&other, &leased.token).await, AckOutcome::Applied);
    assert_eq!(number(&world.take_one(&other).await), "1");
}

async fn a_closed_handle_says_so(world: World) {
    let queue = world.open().await;
    queue.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(refusal(queue.enqueue(super::envelope(1)).await), DistributedError::Closed);
    assert_eq!(refusal(queue.dequeue(0).await), DistributedError::Closed);
    assert_eq!(refusal(queue.depth(0).await), DistributedError::Closed);
    assert_eq!(queue.health(), DistributedHealth::Closed);
}

async fn closing_twice_is_closing_once(world: World) {
    let queue = world.open().await;
    queue.close(Duration::from_secs(5)).await.unwrap();
    queue.close(Duration::from_secs(5)).await.unwrap();
}

async fn health_is_known(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    assert_eq!(queue.health(), DistributedHealth::Working);
}

async fn a_handle_that_waits_takes_nothing_once_it_is_closed(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let claim = world.claim(1).wait(Duration::from_secs(3));
    let (taken, leased) = futures_lite::future::zip(queue.dequeue_leased(0, claim), async {
        sleep(Duration::from_millis(300)).await;
        queue.close(Duration::from_secs(5)).await.unwrap();
        put(&other, 1).await;
        world.take_one(&other).await
    })
    .await;
    match taken {
        Ok(taken) => assert!(taken.is_empty(), "it was taken by a closed handle"),
        closed => assert_eq!(refusal(closed), DistributedError::Closed),
    }
    assert_eq!(leased.delivery, 1, "nobody had it before");
    assert_eq!(ack(&other, &leased.token).await, AckOutcome::Applied);
}
