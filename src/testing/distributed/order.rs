//! Priorities, first in first out, delays, lanes.

use std::time::Duration;

use super::{
    World, ack, checks, envelope_in, eventually, leases, number, numbers, put, put_with, release, retry_after,
};
use crate::distributed::{Capabilities, Claim, EnqueueOptions, Support};
use crate::executor::{now, sleep};

checks! {
    first_in_first_out if ordered,
    first_in_first_out_within_a_batch if ordered,
    better_priorities_go_first if priorities,
    priorities_hold_for_what_comes_later if priorities,
    in_one_priority_first_in_first_out if priorities,
    what_is_released_keeps_its_place if ordered,
    what_is_delayed_is_not_there_before if delays,
    what_is_delayed_comes if delays,
    a_delay_does_not_hold_others_up if delays,
    priorities_hold_for_what_is_due if delays_and_priorities,
    delayed_ones_come_in_the_order_of_their_times if delays,
    a_retry_is_not_there_before_its_time if delays,
    a_claim_takes_at_most_so_many if leases,
    a_claim_of_none_takes_none if leases,
    a_claim_of_lanes_takes_these_only if leases,
    a_claim_takes_its_lanes_in_their_order if leases,
    a_claim_takes_at_most_so_many_of_a_lane if leases,
    a_lane_that_is_not_there_has_nothing if leases,
    waiting_ends_when_a_command_comes if leases,
    waiting_ends_when_the_time_is_over if leases,
    waiting_sees_a_delayed_one_come if delays,
}

fn ordered(can: &Capabilities) -> bool {
    can.leases && can.order == Support::Exact
}

fn priorities(can: &Capabilities) -> bool {
    can.leases && can.priority == Support::Exact
}

fn delays(can: &Capabilities) -> bool {
    can.leases && can.delay == Support::Exact
}

fn delays_and_priorities(can: &Capabilities) -> bool {
    delays(can) && priorities(can)
}

fn at(priority: u8) -> EnqueueOptions {
    EnqueueOptions::new().priority(priority)
}

async fn first_in_first_out(world: World) {
    let queue = world.open().await;
    for number in 0..20 {
        put(&queue, number).await;
    }
    let mut got = Vec::new();
    for max in [1, 2, 3, 20] {
        got.extend(numbers(&world.take(&queue, max).await));
    }
    let expected: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(got, expected);
}

async fn first_in_first_out_within_a_batch(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 20).await;
    let expected: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(numbers(&world.take(&queue, 20).await), expected);
}

async fn better_priorities_go_first(world: World) {
    let queue = world.open().await;
    for priority in [40, 3, 63, 0, 31] {
        put_with(&queue, priority, at(priority)).await;
    }
    put(&queue, "default").await;
    assert_eq!(numbers(&world.take(&queue, 10).await), ["0", "3", "31", "default", "40", "63"]);
}

async fn priorities_hold_for_what_comes_later(world: World) {
    let queue = world.open().await;
    for priority in [9, 5] {
        put_with(&queue, priority, at(priority)).await;
    }
    assert_eq!(number(&world.take_one(&queue).await), "5");
    put_with(&queue, 1, at(1)).await;
    assert_eq!(numbers(&world.take(&queue, 10).await), ["1", "9"]);
}

async fn in_one_priority_first_in_first_out(world: World) {
    let queue = world.open().await;
    for number in 0..12 {
        put_with(&queue, number, at(number % 2)).await;
    }
    let got = numbers(&world.take(&queue, 12).await);
    assert_eq!(got, ["0", "2", "4", "6", "8", "10", "1", "3", "5", "7", "9", "11"]);
}

async fn what_is_released_keeps_its_place(world: World) {
    let queue = world.open().await;
    for number in 0..4 {
        put(&queue, number).await;
    }
    let taken = world.take(&queue, 2).await;
    for leased in taken.iter().rev() {
        release(&queue, &leased.token).await;
    }
    assert_eq!(numbers(&world.take(&queue, 4).await), ["0", "1", "2", "3"]);
}

async fn what_is_delayed_is_not_there_before(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, EnqueueOptions::new().delay(Duration::from_secs(50))).await;
    world.nothing(&queue, "before its time").await;
    sleep(Duration::from_millis(100)).await;
    world.nothing(&queue, "before its time").await;
}

async fn what_is_delayed_comes(world: World) {
    let queue = world.open().await;
    let before = now();
    put_with(&queue, 1, EnqueueOptions::new().delay(Duration::from_millis(400))).await;
    let leased = world.take_one(&queue).await;
    // Another clock measures the same time: within a millisecond, by its own word.
    assert!(now().since(before) >= Duration::from_millis(399), "after {:?}", now().since(before));
    ack(&queue, &leased.token).await;
}

async fn a_delay_does_not_hold_others_up(world: World) {
    let queue = world.open().await;
    put_with(&queue, "late", at(0).delay(Duration::from_secs(50))).await;
    put(&queue, "now").await;
    assert_eq!(numbers(&world.take(&queue, 10).await), ["now"]);
}

async fn priorities_hold_for_what_is_due(world: World) {
    let queue = world.open().await;
    put_with(&queue, "late", at(0).delay(Duration::from_millis(200))).await;
    put_with(&queue, "other", at(9)).await;
    sleep(Duration::from_millis(400)).await;
    assert_eq!(numbers(&world.take(&queue, 10).await), ["late", "other"]);
}

async fn delayed_ones_come_in_the_order_of_their_times(world: World) {
    let queue = world.open().await;
    for (name, delay) in [("third", 900), ("first", 300), ("second", 600)] {
        put_with(&queue, name, EnqueueOptions::new().delay(Duration::from_millis(delay))).await;
    }
    let mut got = Vec::new();
    for _ in 0..3 {
        got.push(number(&world.take_one(&queue).await));
    }
    assert_eq!(got, ["first", "second", "third"]);
}

async fn a_retry_is_not_there_before_its_time(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    let before = now();
    retry_after(&queue, &leased.token, Duration::from_millis(600)).await;
    world.nothing(&queue, "before its time").await;
    let again = world.take_one(&queue).await;
    assert!(now().since(before) >= Duration::from_millis(599), "after {:?}", now().since(before));
    assert_eq!(again.envelope.retry_count, 1);
}

async fn a_claim_takes_at_most_so_many(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 10).await;
    assert_eq!(world.take(&queue, 3).await.len(), 3);
    assert_eq!(world.take(&queue, 100).await.len(), 7);
}

async fn a_claim_of_none_takes_none(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    assert!(world.take(&queue, 0).await.is_empty());
    assert_eq!(world.take(&queue, 1).await.len(), 1);
}

async fn put_lanes(queue: &super::Queue) {
    for number in 0..3 {
        for lane in ["a", "b", "c"] {
            queue.enqueue(envelope_in(lane, format!("{lane}{number}"))).await.unwrap();
        }
    }
}

async fn lanes(queue: &super::Queue, claim: Claim) -> Vec<String> {
    numbers(&queue.dequeue_leased(0, claim).await.unwrap())
}

async fn a_claim_of_lanes_takes_these_only(world: World) {
    let queue = world.open().await;
    put_lanes(&queue).await;
    let claim = world.claim(10).lane("b", 10);
    assert_eq!(lanes(&queue, claim).await, ["b0", "b1", "b2"]);
}

async fn a_claim_takes_its_lanes_in_their_order(world: World) {
    let queue = world.open().await;
    put_lanes(&queue).await;
    let claim = world.claim(4).lane("c", 10).lane("a", 10);
    assert_eq!(lanes(&queue, claim).await, ["c0", "c1", "c2", "a0"]);
}

async fn a_claim_takes_at_most_so_many_of_a_lane(world: World) {
    let queue = world.open().await;
    put_lanes(&queue).await;
    let claim = world.claim(10).lane("a", 1).lane("b", 0).lane("c", 2);
    assert_eq!(lanes(&queue, claim).await, ["a0", "c0", "c1"]);
}

async fn a_lane_that_is_not_there_has_nothing(world: World) {
    let queue = world.open().await;
    put_lanes(&queue).await;
    let claim = world.claim(10).lane("none", 5);
    assert!(lanes(&queue, claim).await.is_empty());
}

async fn waiting_ends_when_a_command_comes(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let claim = world.claim(1).wait(Duration::from_secs(15));
    let before = now();
    let (taken, ()) = futures_lite::future::zip(queue.dequeue_leased(0, claim), async {
        sleep(Duration::from_millis(200)).await;
        put(&other, 1).await;
    })
    .await;
    assert_eq!(numbers(&taken.unwrap()), ["1"]);
    assert!(now().since(before) < Duration::from_secs(10), "it waits longer than it has to");
}

async fn waiting_ends_when_the_time_is_over(world: World) {
    let queue = world.open().await;
    let before = now();
    let claim = world.claim(1).wait(Duration::from_millis(300));
    assert!(queue.dequeue_leased(0, claim).await.unwrap().is_empty());
    let waited = now().since(before);
    assert!(waited >= Duration::from_millis(290) && waited < Duration::from_secs(10), "waited {waited:?}");
}

async fn waiting_sees_a_delayed_one_come(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, EnqueueOptions::new().delay(Duration::from_millis(300))).await;
    let claim = world.claim(1).wait(Duration::from_secs(15));
    let before = now();
    assert_eq!(queue.dequeue_leased(0, claim).await.unwrap().len(), 1);
    assert!(now().since(before) < Duration::from_secs(10), "it waits longer than it has to");
    eventually("nothing is left", || async { world.take(&queue, 1).await.is_empty() }).await;
}
