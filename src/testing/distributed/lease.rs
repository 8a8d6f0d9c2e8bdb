//! One valid token at a time; what has none changes nothing; what is left comes back; deliveries are counted.

use std::time::Duration;

use super::{
    SHORT, World, ack, checks, done, eventually, failed, fences, leases, number, put, put_with, refusal, release,
    retry_after,
};
use crate::distributed::{AckOutcome, Capabilities, DeadPage, DeadReason, EnqueueOptions, Leased, Nack, Support};
use crate::error::DistributedError;
use crate::executor::{now, sleep};

checks! {
    what_is_leased_is_not_there_for_others if leases,
    a_lease_says_how_long_it_is if leases,
    what_was_acknowledged_is_gone if leases,
    acknowledging_again_says_so if fences,
    a_lease_that_ends_brings_the_command_back if leases,
    a_lease_does_not_end_before_its_time if leases,
    extending_keeps_the_command if leases,
    extending_many_answers_for_each if fences,
    fences_grow if leases,
    a_stale_acknowledgement_changes_nothing if fences,
    a_stale_failure_changes_nothing if fences,
    a_stale_retry_changes_nothing if fences,
    a_stale_release_changes_nothing if fences,
    a_stale_dead_letter_changes_nothing if fences,
    a_stale_extension_is_refused if fences,
    an_acknowledgement_after_the_end_of_the_lease_says_so if fences,
    a_token_is_no_good_after_a_release if fences,
    a_token_is_no_good_after_a_retry if fences,
    a_token_of_no_command_is_refused if fences,
    an_old_token_does_not_end_the_command_again if fences,
    deliveries_are_counted if leases,
    a_lost_lease_costs_a_delivery if leases,
    a_release_costs_nothing if leases,
    a_retry_counts_an_attempt if leases,
    too_many_deliveries_give_it_up if gives_up,
    too_many_retries_give_it_up if gives_up,
    releases_never_give_it_up if gives_up,
    no_lease_of_no_time if leases,
    acknowledging_many_answers_for_each if fences,
    acknowledging_twice_in_one_batch_is_done_once if fences,
    what_is_released_is_there_at_once if leases,
    seven_hundred_leases_at_a_time if leases,
    a_token_of_another_command_of_the_same_id_is_no_good if forgets,
}

fn gives_up(can: &Capabilities) -> bool {
    can.leases && can.dead_letters
}

fn forgets(can: &Capabilities) -> bool {
    fences(can) && can.dead_letters
}

/// A command that two have taken: the first one's lease has ended.
async fn twice(world: &World, queue: &super::Queue) -> (Leased, Leased) {
    put(queue, 1).await;
    let first = world.take_one(queue).await;
    let second = world.take_one(queue).await;
    assert_eq!(first.envelope.id, second.envelope.id);
    (first, second)
}

/// The second one has the command nevertheless.
async fn still_has(world: &World, queue: &super::Queue, leased: &Leased) {
    queue.extend(&leased.token, world.lease).await.expect("it still has the command");
    assert_eq!(ack(queue, &leased.token).await, AckOutcome::Applied);
    world.nothing(queue, "what was acknowledged").await;
}

async fn what_is_leased_is_not_there_for_others(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    world.nothing(&other, "a leased command").await;
    world.nothing(&queue, "a leased command").await;
    ack(&queue, &leased.token).await;
}

async fn a_lease_says_how_long_it_is(world: World) {
    let queue = world.open().await;
    let id = put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    assert_eq!((leased.lease, leased.delivery), (Some(world.lease), 1));
    assert_eq!((leased.token.command_id(), leased.token.partition()), (id.as_str(), 0));
    assert!(leased.token.fence() > 0);
}

async fn what_was_acknowledged_is_gone(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    queue.close(Duration::from_secs(5)).await.unwrap();
    world.nothing(&world.open().await, "what was acknowledged").await;
}

async fn acknowledging_again_says_so(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::AlreadyApplied);
    assert_eq!(ack(&world.open().await, &leased.token).await, AckOutcome::AlreadyApplied, "by another handle");
}

async fn a_lease_that_ends_brings_the_command_back(world: World) {
    let world = world.short();
    let (queue, other) = (world.open().await, world.open().await);
    put(&queue, 1).await;
    let first = world.take_one(&queue).await;
    let second = world.take_one(&other).await;
    assert_eq!((number(&first), second.delivery), (number(&second), 2));
}

async fn a_lease_does_not_end_before_its_time(world: World) {
    let world = world.short();
    let queue = world.open().await;
    put(&queue, 1).await;
    let _first = world.take_one(&queue).await;
    let since = now();
    let _second = world.take_one(&queue).await;
    // It was taken some time before its first one was here.
    let held = now().since(since);
    assert!(held >= SHORT / 2, "the second one came after {held:?}");
}

async fn extending_keeps_the_command(world: World) {
    let world = world.short();
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    for _ in 0..10 {
        sleep(SHORT / 5).await;
        queue.extend(&leased.token, SHORT).await.expect("the lease has not ended");
        world.nothing(&queue, "what is extended").await;
    }
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
}

async fn extending_many_answers_for_each(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 3).await;
    let taken = world.take(&queue, 3).await;
    ack(&queue, &taken[1].token).await;
    let tokens: Vec<_> = taken.iter().map(|leased| leased.token.clone()).collect();
    let extended = queue.extend_batch(&tokens, world.lease).await;
    assert_eq!(extended.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

async fn fences_grow(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let mut last = 0;
    for _ in 0..5 {
        let leased = world.take_one(&queue).await;
        assert!(leased.token.fence() > last, "{} after {last}", leased.token.fence());
        last = leased.token.fence();
        release(&queue, &leased.token).await;
    }
    let leased = world.take_one(&queue).await;
    retry_after(&queue, &leased.token, Duration::ZERO).await;
    assert!(world.take_one(&queue).await.token.fence() > leased.token.fence());
}

async fn a_stale_acknowledgement_changes_nothing(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    assert_eq!(ack(&queue, &first.token).await, AckOutcome::LeaseLost);
    still_has(&world, &queue, &second).await;
}

async fn a_stale_failure_changes_nothing(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    let outcome = queue.ack(&first.token, failed(&first.token, "late")).await.unwrap();
    assert_eq!(outcome, AckOutcome::LeaseLost);
    still_has(&world, &queue, &second).await;
}

async fn a_stale_retry_changes_nothing(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    let nack = Nack::RetryAfter { delay: Duration::ZERO, error: "late".to_owned() };
    assert_eq!(queue.nack(&first.token, nack).await.unwrap(), AckOutcome::LeaseLost);
    still_has(&world, &queue, &second).await;
}

async fn a_stale_release_changes_nothing(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    assert_eq!(queue.nack(&first.token, Nack::Release).await.unwrap(), AckOutcome::LeaseLost);
    still_has(&world, &queue, &second).await;
}

async fn a_stale_dead_letter_changes_nothing(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    let outcome = queue.dead_letter(&first.token, DeadReason::Failed("late".to_owned())).await.unwrap();
    assert_eq!(outcome, AckOutcome::LeaseLost);
    assert!(queue.dead_letters(DeadPage::first(10)).await.unwrap().is_empty());
    still_has(&world, &queue, &second).await;
}

async fn a_stale_extension_is_refused(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    let lost = DistributedError::LeaseLost { command_id: first.envelope.id.clone() };
    assert_eq!(refusal(queue.extend(&first.token, SHORT).await), lost);
    still_has(&world, &queue, &second).await;
}

async fn an_acknowledgement_after_the_end_of_the_lease_says_so(world: World) {
    let world = world.short();
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    sleep(SHORT * 2).await;
    // Nobody else has asked since.
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::LeaseLost);
    assert_eq!(number(&world.take_one(&queue).await), "1");
}

async fn a_token_is_no_good_after_a_release(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    release(&queue, &leased.token).await;
    assert_ne!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    let again = world.take_one(&queue).await;
    assert_ne!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    still_has(&world, &queue, &again).await;
}

async fn a_token_is_no_good_after_a_retry(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    retry_after(&queue, &leased.token, Duration::ZERO).await;
    assert_ne!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    let again = world.take_one(&queue).await;
    assert_ne!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    still_has(&world, &queue, &again).await;
}

async fn a_token_of_no_command_is_refused(world: World) {
    let (queue, elsewhere) =
        (world.open().await, World { namespace: format!("{}-b", world.namespace), ..world.clone() });
    let elsewhere = elsewhere.open().await;
    put(&elsewhere, 1).await;
    let leased = world.take_one(&elsewhere).await;
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::LeaseLost);
    assert_eq!(ack(&elsewhere, &leased.token).await, AckOutcome::Applied);
}

async fn an_old_token_does_not_end_the_command_again(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    assert_eq!(ack(&queue, &second.token).await, AckOutcome::Applied);
    assert_eq!(ack(&queue, &first.token).await, AckOutcome::LeaseLost, "it was another lease that ended it");
}

async fn deliveries_are_counted(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    for delivery in 1..=3 {
        let leased = world.take_one(&queue).await;
        assert_eq!((leased.delivery, leased.envelope.retry_count), (delivery, delivery - 1));
        retry_after(&queue, &leased.token, Duration::ZERO).await;
    }
}

async fn a_lost_lease_costs_a_delivery(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let (first, second) = twice(&world, &queue).await;
    assert_eq!((first.delivery, second.delivery), (1, 2));
    assert_eq!(second.envelope.retry_count, 0, "no attempt has failed");
}

async fn a_release_costs_nothing(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    for _ in 0..3 {
        let leased = world.take_one(&queue).await;
        assert_eq!((leased.delivery, leased.envelope.retry_count), (1, 0));
        release(&queue, &leased.token).await;
    }
}

async fn a_retry_counts_an_attempt(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    retry_after(&queue, &leased.token, Duration::ZERO).await;
    assert_eq!(world.take_one(&queue).await.envelope.retry_count, 1);
}

async fn too_many_deliveries_give_it_up(world: World) {
    let world = world.short();
    let queue = world.open().await;
    let id = put_with(&queue, 1, EnqueueOptions::new().max_deliveries(2)).await;
    for delivery in 1..=2 {
        assert_eq!(world.take_one(&queue).await.delivery, delivery);
    }
    let (queue, world) = (&queue, &world);
    eventually("it is given up", || async {
        world.nothing(queue, "delivered too often").await;
        let letters = queue.dead_letters(DeadPage::first(10)).await.unwrap();
        letters.iter().any(|letter| letter.envelope.id == id && letter.reason == DeadReason::TooManyDeliveries)
    })
    .await;
}

async fn too_many_retries_give_it_up(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, EnqueueOptions::new().max_deliveries(2)).await;
    for _ in 0..2 {
        let leased = world.take_one(&queue).await;
        retry_after(&queue, &leased.token, Duration::ZERO).await;
    }
    world.nothing(&queue, "tried too often").await;
    let letters = queue.dead_letters(DeadPage::first(10)).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].reason.error(), letters[0].deliveries), ("try again", 2));
}

async fn releases_never_give_it_up(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, EnqueueOptions::new().max_deliveries(1)).await;
    for _ in 0..4 {
        let leased = world.take_one(&queue).await;
        release(&queue, &leased.token).await;
    }
    assert!(queue.dead_letters(DeadPage::first(10)).await.unwrap().is_empty());
}

async fn no_lease_of_no_time(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let claim = world.claim(1).lease(Duration::ZERO);
    assert!(matches!(refusal(queue.dequeue_leased(0, claim).await), DistributedError::InvalidLease { .. }));
    assert_eq!(number(&world.take_one(&queue).await), "1", "nothing was taken");
}

async fn acknowledging_many_answers_for_each(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 3).await;
    let taken = world.take(&queue, 3).await;
    release(&queue, &taken[1].token).await;
    let again = world.take_one(&queue).await;
    let results = taken.iter().map(|leased| (leased.token.clone(), done(&leased.token))).collect();
    let outcomes: Vec<_> = queue.ack_batch(results).await.into_iter().map(Result::unwrap).collect();
    assert_eq!((outcomes[0], outcomes[2]), (AckOutcome::Applied, AckOutcome::Applied));
    assert_ne!(outcomes[1], AckOutcome::Applied);
    still_has(&world, &queue, &again).await;
}

async fn acknowledging_twice_in_one_batch_is_done_once(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    let results = (0..2).map(|_| (leased.token.clone(), done(&leased.token))).collect();
    let outcomes: Vec<_> = queue.ack_batch(results).await.into_iter().map(Result::unwrap).collect();
    // In whatever order.
    assert!(outcomes.contains(&AckOutcome::Applied), "{outcomes:?}");
    assert!(outcomes.contains(&AckOutcome::AlreadyApplied), "{outcomes:?}");
    world.nothing(&queue, "what was acknowledged").await;
}

async fn what_is_released_is_there_at_once(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    release(&queue, &leased.token).await;
    if queue.capabilities().order == Support::Exact {
        assert_eq!(world.take(&queue, 1).await.len(), 1);
    } else {
        world.take_one(&queue).await;
    }
}

async fn seven_hundred_leases_at_a_time(world: World) {
    let queue = world.open().await;
    super::put_many(&queue, 700).await;
    let mut taken = Vec::new();
    while taken.len() < 700 {
        let more = world.take(&queue, 250).await;
        assert!(!more.is_empty(), "only {} came", taken.len());
        taken.extend(more);
    }
    let results = taken.iter().map(|leased| (leased.token.clone(), done(&leased.token))).collect();
    for outcome in queue.ack_batch(results).await {
        assert_eq!(outcome.unwrap(), AckOutcome::Applied);
    }
    world.nothing(&queue, "what was acknowledged").await;
}

/// What was discarded is forgotten, and its id may be used again: by a command that the old one's token does not lead to.
async fn a_token_of_another_command_of_the_same_id_is_no_good(world: World) {
    let queue = world.open().await;
    let sent = super::envelope(1);
    queue.enqueue(sent.clone()).await.unwrap();
    let first = world.take_one(&queue).await;
    queue.dead_letter(&first.token, DeadReason::Expired).await.unwrap();
    assert!(queue.discard(&sent.id).await.unwrap());
    queue.enqueue(sent).await.unwrap();
    let second = world.take_one(&queue).await;
    assert_eq!(first.envelope.id, second.envelope.id);
    assert!(second.token.fence() > first.token.fence(), "{} after {}", second.token.fence(), first.token.fence());
    assert_ne!(ack(&queue, &first.token).await, AckOutcome::Applied);
    still_has(&world, &queue, &second).await;
}
