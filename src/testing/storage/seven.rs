//! The seven methods of the seed, as one that only looks at a store calls them: without [`Storage::recover`].

use std::sync::Arc;

use super::sample::{command, full_command, letter, moment, odd_payloads, odd_texts, versioned};
use super::{abandoned, done, holds, same, works};
use crate::storage::{Storage, StorageHealth, StoredCommand, StoredDeadLetter};

pub(super) async fn a_new_store_is_empty(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a new store is empty";
    same(PROMISE, &commands(&*store).await, &Vec::new());
    same(PROMISE, &letters(&*store).await, &Vec::new());
    same("a store that works says so", &store.health(), &StorageHealth::Working);
    works("a store that works can be probed", store.probe().await);
    works("a store that works can be flushed", store.flush().await);
}

pub(super) async fn commands_come_back_as_they_are(store: Arc<dyn Storage>) {
    let odd_times = [0, -1, 253_402_300_799].map(|seconds| chrono::DateTime::from_timestamp(seconds, 1));
    let mut expected = vec![full_command("full", 1), command("plain", 2)];
    expected.extend(odd_times.into_iter().zip(3..).map(|(at, sequence)| {
        let plain = command(&format!("at {sequence}"), sequence);
        StoredCommand { created_at: at.unwrap_or_default(), last_attempt_at: at, ..plain }
    }));
    expected.push(command("last", u64::MAX));
    for command in &expected {
        done(store.save_command(command.clone()).await);
    }
    same("a command comes back as it was saved", &commands(&*store).await, &by_id(expected));
}

pub(super) async fn any_text_is_an_id(store: Arc<dyn Storage>) {
    const PROMISE: &str = "any text is an id, and no two texts are the same one";
    let expected: Vec<_> = odd_texts().iter().zip(0..).map(|(id, sequence)| command(id, sequence)).collect();
    for command in &expected {
        works(PROMISE, store.save_command(command.clone()).await);
    }
    same(PROMISE, &commands(&*store).await, &by_id(expected.clone()));

    let (removed, kept): (Vec<_>, Vec<_>) = expected.into_iter().partition(|command| command.sequence % 2 == 0);
    for command in removed {
        works(PROMISE, store.remove_command(&command.id).await);
    }
    same(PROMISE, &commands(&*store).await, &by_id(kept));
}

pub(super) async fn any_data_is_a_payload(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a payload comes back as it was saved, whatever it is";
    let payloads = odd_payloads();
    let mut expected = Vec::new();
    for (payload, sequence) in payloads.into_iter().zip(0..) {
        let mut command = command(&format!("d{sequence}"), sequence);
        command.terms.key = Some(payload.clone()).filter(|key| !key.is_null());
        command.payload = payload;
        works(PROMISE, store.save_command(command.clone()).await);
        expected.push(command);
    }
    same(PROMISE, &commands(&*store).await, &by_id(expected));

    const BIG: &str = "a payload of a megabyte is kept";
    let text = "\u{2028}é\"\\ ".repeat(125_000);
    let big = StoredCommand { payload: text.into(), ..command("big", 100) };
    works(BIG, store.save_command(big.clone()).await);
    let found = commands(&*store).await.into_iter().find(|command| command.id == "big");
    holds(BIG, found.as_ref() == Some(&big), found.map(|command| command.payload.to_string().len()));

    let mut detailed = letter("d0", 0);
    detailed.details = odd_payloads().into();
    done(store.save_dead_letter(detailed.clone()).await);
    same("a letter comes back as it was saved", &letters(&*store).await, &vec![detailed]);
}

pub(super) async fn saving_replaces(store: Arc<dyn Storage>) {
    for command in [full_command("a", 1), command("b", 2), command("c", 3)] {
        done(store.save_command(command).await);
    }
    // With everything else than before, nothing of which may shine through.
    done(store.save_command(versioned("a", 5, 2)).await);
    done(store.save_command(full_command("b", 2)).await);
    done(store.save_command(command("c", 3)).await);
    let expected = vec![versioned("a", 5, 2), full_command("b", 2), command("c", 3)];
    same("a command is saved in place of one with the same id", &commands(&*store).await, &expected);
}

pub(super) async fn removing_removes_one(store: Arc<dyn Storage>) {
    const ABSENT: &str = "removing what is not there does nothing, and is no error";
    works(ABSENT, store.remove_command("b").await);
    for (id, sequence) in ["a", "b", "c"].into_iter().zip(1..) {
        done(store.save_command(command(id, sequence)).await);
    }
    works(ABSENT, store.remove_command("d").await);
    same(ABSENT, &commands(&*store).await, &vec![command("a", 1), command("b", 2), command("c", 3)]);

    done(store.remove_command("b").await);
    let expected = vec![command("a", 1), command("c", 3)];
    same("a command that is removed is gone, and no other one is", &commands(&*store).await, &expected);
    works(ABSENT, store.remove_command("b").await);
    same(ABSENT, &commands(&*store).await, &expected);

    done(store.save_command(versioned("b", 4, 2)).await);
    same(
        "a command that was removed can be saved again",
        &commands(&*store).await,
        &vec![command("a", 1), versioned("b", 4, 2), command("c", 3)],
    );
}

pub(super) async fn letters_keep_their_order(store: Arc<dyn Storage>) {
    const PROMISE: &str = "dead letters come back as they were saved, the oldest first";
    // Not in the order of their ids, nor of what they say of the time.
    let mut expected = Vec::new();
    for number in 0..40_u32 {
        let letter = letter(&format!("d{}", 39 - number), number);
        expected.push(StoredDeadLetter { failed_at: moment(number * 7 % 40), ..letter });
    }
    for letter in &expected {
        done(store.save_dead_letter(letter.clone()).await);
    }
    same(PROMISE, &letters(&*store).await, &expected);

    for number in [7, 9, 9] {
        done(store.save_dead_letter(letter("d3", number)).await);
        expected.push(letter("d3", number));
    }
    same("a dead letter is stored besides others about the same command", &letters(&*store).await, &expected);
}

pub(super) async fn commands_and_letters_are_apart(store: Arc<dyn Storage>) {
    done(store.save_command(command("a", 1)).await);
    done(store.save_dead_letter(letter("a", 1)).await);
    let kept = (commands(&*store).await, letters(&*store).await);
    same("storing a letter does nothing to its command", &kept, &(vec![command("a", 1)], vec![letter("a", 1)]));

    done(store.save_command(command("b", 2)).await);
    done(store.remove_command("a").await);
    let kept = (commands(&*store).await, letters(&*store).await);
    same("removing a command does nothing to its letters", &kept, &(vec![command("b", 2)], vec![letter("a", 1)]));
}

pub(super) async fn clearing(store: Arc<dyn Storage>) {
    for number in 0..3 {
        done(store.save_command(command(&format!("d{number}"), number.into())).await);
        done(store.save_dead_letter(letter("b", number)).await);
    }
    let before = commands(&*store).await;
    done(store.clear_dead_letters().await);
    same("clearing the dead letters removes all of them", &letters(&*store).await, &Vec::new());
    same("clearing the dead letters removes no command", &commands(&*store).await, &before);

    done(store.save_dead_letter(letter("b", 3)).await);
    done(store.clear_all().await);
    let kept = (commands(&*store).await, letters(&*store).await);
    same("clearing all removes everything", &kept, &(Vec::new(), Vec::new()));

    done(store.save_command(command("d1", 1)).await);
    done(store.save_dead_letter(letter("b", 4)).await);
    let kept = (commands(&*store).await, letters(&*store).await);
    same("a store that was cleared can be used", &kept, &(vec![command("d1", 1)], vec![letter("b", 4)]));
}

pub(super) async fn dropped_futures_change_nothing_later(store: Arc<dyn Storage>) {
    const ROUNDS: u64 = 60;
    const PROMISE: &str = "what a dropped future was to change is not changed later than by calls after it";
    for round in 0..ROUNDS {
        let (id, polls) = (format!("d{round}"), round as usize % 4);
        abandoned(store.save_command(versioned(&id, round, 1)), polls);
        done(store.save_command(versioned(&id, round, 2)).await);
        abandoned(store.remove_command(&id), polls);
        done(store.save_command(versioned(&id, round, 3)).await);
        abandoned(store.save_command(versioned("gone", round, 1)), polls);
        done(store.remove_command("gone").await);
    }
    done(store.flush().await);
    let expected: Vec<_> = (0..ROUNDS).map(|round| versioned(&format!("d{round}"), round, 3)).collect();
    same(PROMISE, &commands(&*store).await, &by_id(expected));
}

/// All commands, by their ids, each as often as the store gives it.
pub(super) async fn commands(store: &dyn Storage) -> Vec<StoredCommand> {
    by_id(done(store.load_commands().await))
}

pub(super) async fn letters(store: &dyn Storage) -> Vec<StoredDeadLetter> {
    done(store.load_dead_letters().await)
}

pub(super) fn by_id(mut commands: Vec<StoredCommand>) -> Vec<StoredCommand> {
    commands.sort_by(|a, b| a.id.cmp(&b.id));
    commands
}
