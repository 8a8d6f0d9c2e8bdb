//! What is given up is kept, found, replayed.

use std::time::Duration;

use super::{World, ack, checks, eventually, failed, number, put, put_with, retry_after};
use crate::distributed::{
    AckOutcome, Capabilities, DeadPage, DeadReason, EnqueueOptions, Leased, RemoteDeadLetter, Support,
};

checks! {
    what_has_failed_is_a_dead_letter if keeps,
    what_is_given_up_is_a_dead_letter if keeps,
    giving_up_again_says_so if keeps,
    a_letter_is_what_was_enqueued if keeps,
    letters_come_oldest_first if keeps,
    letters_come_in_pages if keeps,
    a_replayed_command_is_there_again if keeps,
    a_replayed_command_has_all_its_deliveries if keeps,
    a_replayed_command_can_be_given_up_again if keeps,
    replaying_what_is_not_there_does_nothing if keeps,
    replaying_twice_does_it_once if keeps,
    a_discarded_letter_is_gone if keeps,
    discarding_what_is_not_there_does_nothing if keeps,
    an_old_token_does_not_end_a_replayed_command if keeps,
    what_nobody_took_in_time_expires if expires,
    what_was_taken_in_time_does_not_expire if expires,
    what_is_delayed_expires if expires,
    what_is_given_back_after_its_time_expires if expires,
}

fn keeps(can: &Capabilities) -> bool {
    can.leases && can.dead_letters
}

fn expires(can: &Capabilities) -> bool {
    keeps(can) && can.expiry == Support::Exact
}

async fn letters(queue: &super::Queue) -> Vec<RemoteDeadLetter> {
    queue.dead_letters(DeadPage::first(100)).await.expect("dead letters can be read")
}

async fn give_up(queue: &super::Queue, leased: &Leased, error: &str) {
    let reason = DeadReason::Failed(error.to_owned());
    let outcome = queue.dead_letter(&leased.token, reason).await.expect("it can be given up");
    assert_eq!(outcome, AckOutcome::Applied);
}

async fn what_has_failed_is_a_dead_letter(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    let outcome = queue.ack(&leased.token, failed(&leased.token, "it does not work")).await.unwrap();
    assert_eq!(outcome, AckOutcome::Applied);
    let letters = letters(&queue).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, DeadReason::Failed("it does not work".to_owned()));
    world.nothing(&queue, "what has failed").await;
}

async fn what_is_given_up_is_a_dead_letter(world: World) {
    let queue = world.open().await;
    let reasons = [DeadReason::Failed("ü \"x\"".into()), DeadReason::Undecodable("y".into()), DeadReason::Expired];
    for reason in &reasons {
        put(&queue, 1).await;
        let leased = world.take_one(&queue).await;
        queue.dead_letter(&leased.token, reason.clone()).await.unwrap();
    }
    let got: Vec<_> = letters(&queue).await.into_iter().map(|letter| letter.reason).collect();
    assert_eq!(got, reasons);
    world.nothing(&queue, "what was given up").await;
}

async fn giving_up_again_says_so(world: World) {
    let queue = world.open().await;
    put(&queue, 1).await;
    let leased = world.take_one(&queue).await;
    give_up(&queue, &leased, "x").await;
    let again = queue.dead_letter(&leased.token, DeadReason::Expired).await.unwrap();
    assert_eq!(again, AckOutcome::AlreadyApplied);
    assert_eq!(letters(&queue).await.len(), 1);
}

async fn a_letter_is_what_was_enqueued(world: World) {
    let queue = world.open().await;
    let options = EnqueueOptions::new().priority(7).payload_version(2).header("a", "b");
    let id = put_with(&queue, 1, options).await;
    let leased = world.take_one(&queue).await;
    retry_after(&queue, &leased.token, Duration::ZERO).await;
    let leased = world.take_one(&queue).await;
    give_up(&queue, &leased, "x").await;
    let letter = letters(&queue).await.pop().expect("there is one");
    assert_eq!(letter.envelope.id, id);
    assert_eq!(letter.envelope.payload, leased.envelope.payload);
    assert_eq!((letter.deliveries, letter.envelope.retry_count), (2, 1));
    assert_eq!((letter.priority, letter.payload_version, letter.headers), (7, 2, leased.headers));
    let age = crate::clock::wall_now() - letter.failed_at;
    assert!(age.num_seconds().abs() < 60, "it is {age} old");
}

/// So many, given up in their order.
async fn bury(world: &World, queue: &super::Queue, many: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..many {
        ids.push(put(queue, number).await);
        let leased = world.take_one(queue).await;
        give_up(queue, &leased, "x").await;
    }
    ids
}

async fn letters_come_oldest_first(world: World) {
    let queue = world.open().await;
    let ids = bury(&world, &queue, 5).await;
    let got: Vec<_> = letters(&world.open().await).await.into_iter().map(|letter| letter.envelope.id).collect();
    assert_eq!(got, ids);
}

async fn letters_come_in_pages(world: World) {
    let queue = world.open().await;
    let ids = bury(&world, &queue, 5).await;
    let mut got = Vec::new();
    let mut page = DeadPage::first(2);
    loop {
        let letters = queue.dead_letters(page).await.unwrap();
        assert!(letters.len() <= 2);
        let Some(last) = letters.last() else { break };
        page = DeadPage::first(2).after(last.envelope.id.as_str());
        got.extend(letters.into_iter().map(|letter| letter.envelope.id));
    }
    assert_eq!(got, ids);
}

async fn a_replayed_command_is_there_again(world: World) {
    let queue = world.open().await;
    let id = bury(&world, &queue, 1).await.remove(0);
    assert!(queue.replay(&id).await.unwrap());
    let leased = world.take_one(&queue).await;
    assert_eq!((leased.envelope.id.as_str(), number(&leased).as_str()), (id.as_str(), "0"));
    assert!(letters(&queue).await.is_empty());
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
}

async fn a_replayed_command_has_all_its_deliveries(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, EnqueueOptions::new().max_deliveries(1)).await;
    let leased = world.take_one(&queue).await;
    retry_after(&queue, &leased.token, Duration::ZERO).await;
    assert!(queue.replay(&id).await.unwrap());
    let again = world.take_one(&queue).await;
    assert_eq!((again.delivery, again.envelope.retry_count), (1, 0));
    assert!(again.token.fence() > leased.token.fence());
}

async fn a_replayed_command_can_be_given_up_again(world: World) {
    let queue = world.open().await;
    let id = bury(&world, &queue, 1).await.remove(0);
    for _ in 0..3 {
        assert!(queue.replay(&id).await.unwrap());
        let leased = world.take_one(&queue).await;
        give_up(&queue, &leased, "again").await;
        assert_eq!(letters(&queue).await.len(), 1);
    }
}

async fn replaying_what_is_not_there_does_nothing(world: World) {
    let queue = world.open().await;
    let id = put(&queue, 1).await;
    assert!(!queue.replay("nobody").await.unwrap());
    assert!(!queue.replay(&id).await.unwrap(), "a ready one is no letter");
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn replaying_twice_does_it_once(world: World) {
    let (queue, other) = (world.open().await, world.open().await);
    let id = bury(&world, &queue, 1).await.remove(0);
    assert!(queue.replay(&id).await.unwrap());
    assert!(!other.replay(&id).await.unwrap());
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn a_discarded_letter_is_gone(world: World) {
    let queue = world.open().await;
    let ids = bury(&world, &queue, 3).await;
    assert!(queue.discard(&ids[1]).await.unwrap());
    assert!(!queue.replay(&ids[1]).await.unwrap());
    let got: Vec<_> = letters(&queue).await.into_iter().map(|letter| letter.envelope.id).collect();
    assert_eq!(got, [ids[0].as_str(), ids[2].as_str()]);
}

async fn discarding_what_is_not_there_does_nothing(world: World) {
    let queue = world.open().await;
    let id = put(&queue, 1).await;
    assert!(!queue.discard("nobody").await.unwrap());
    assert!(!queue.discard(&id).await.unwrap(), "a ready one is no letter");
    assert_eq!(world.take(&queue, 10).await.len(), 1);
}

async fn an_old_token_does_not_end_a_replayed_command(world: World) {
    let queue = world.open().await;
    let id = put(&queue, 1).await;
    let old = world.take_one(&queue).await;
    give_up(&queue, &old, "x").await;
    assert!(queue.replay(&id).await.unwrap());
    let leased = world.take_one(&queue).await;
    assert_ne!(ack(&queue, &old.token).await, AckOutcome::Applied);
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
}

/// Until it is a letter, nobody gets it.
async fn expires_unseen(world: &World, queue: &super::Queue, id: &str) {
    eventually("it expires", || async {
        let letters = letters(queue).await;
        letters.iter().any(|letter| letter.envelope.id == id && letter.reason == DeadReason::Expired)
            || !world.take(queue, 1).await.is_empty()
    })
    .await;
    let letters = letters(queue).await;
    assert_eq!((letters.len(), &letters[0].reason), (1, &DeadReason::Expired));
}

async fn what_nobody_took_in_time_expires(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, EnqueueOptions::new().expires_after(Duration::from_millis(200))).await;
    super::sleep(Duration::from_millis(400)).await;
    expires_unseen(&world, &queue, &id).await;
}

async fn what_was_taken_in_time_does_not_expire(world: World) {
    let queue = world.open().await;
    put_with(&queue, 1, EnqueueOptions::new().expires_after(Duration::from_secs(2))).await;
    let leased = world.take_one(&queue).await;
    super::sleep(Duration::from_millis(2500)).await;
    world.nothing(&queue, "what is leased").await;
    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
    assert!(letters(&queue).await.is_empty());
}

async fn what_is_delayed_expires(world: World) {
    let queue = world.open().await;
    let options = EnqueueOptions::new().delay(Duration::from_secs(50)).expires_after(Duration::from_millis(200));
    let id = put_with(&queue, 1, options).await;
    super::sleep(Duration::from_millis(400)).await;
    expires_unseen(&world, &queue, &id).await;
}

async fn what_is_given_back_after_its_time_expires(world: World) {
    let queue = world.open().await;
    let id = put_with(&queue, 1, EnqueueOptions::new().expires_after(Duration::from_secs(1))).await;
    let leased = world.take_one(&queue).await;
    super::sleep(Duration::from_millis(1300)).await;
    // Has the queue look at what is over, where it does that when it is asked.
    queue.depth(0).await.unwrap();
    super::release(&queue, &leased.token).await;
    expires_unseen(&world, &queue, &id).await;
}
