//! Changes in groups, as the queue makes them that has the store.

use std::sync::Arc;

use super::sample::{
    attempted, command, full_command, give_up, letter, moment, remove, remove_with, result, save, versioned,
};
use super::seven::{by_id, commands, letters};
use super::{abandoned, done, recovered, same, works};
use crate::storage::{Change, Durability, Storage, StoredCommand, StoredDeadLetter};

use Durability::{Relaxed, Synced};

pub(super) async fn made_in_their_order(store: Arc<dyn Storage>) {
    const PROMISE: &str = "the changes of a group are made in their order";
    recovered(&*store).await;
    let group = vec![
        save(versioned("a", 1, 1)),
        save(versioned("b", 2, 1)),
        remove("a"),
        remove("c"),
        save(versioned("b", 2, 2)),
        save(versioned("c", 3, 1)),
        save(versioned("a", 4, 2)),
        save(versioned("e", 5, 1)),
        remove("e"),
        give_up(letter("c", 1)),
        save(versioned("c", 6, 3)),
        give_up(letter("f", 2)),
        give_up(letter("d", 3)),
        save(versioned("d", 7, 1)),
    ];
    done(store.apply(group, Synced).await);
    let expected = vec![versioned("a", 4, 2), versioned("b", 2, 2), versioned("c", 6, 3), versioned("d", 7, 1)];
    same(PROMISE, &commands(&*store).await, &expected);
    same(PROMISE, &letters(&*store).await, &vec![letter("c", 1), letter("f", 2), letter("d", 3)]);
}

pub(super) async fn attempts(store: Arc<dyn Storage>) {
    const PROMISE: &str = "attempts are noted, if the store can, and nothing else is changed by it";
    recovered(&*store).await;
    let can = store.capabilities().attempts;
    let after = |before: StoredCommand, attempts| {
        let last_attempt_at = Some(moment(attempts));
        if can { StoredCommand { retry_count: attempts, last_attempt_at, ..before } } else { before }
    };
    done(store.apply(vec![save(full_command("a", 1)), save(command("b", 2)), save(command("c", 3))], Synced).await);
    works(PROMISE, store.apply(vec![attempted("b", 1), attempted("a", 5)], Synced).await);
    works(PROMISE, store.apply(vec![attempted("b", 2), attempted("d", 1)], Synced).await);
    let expected = vec![after(full_command("a", 1), 5), after(command("b", 2), 2), command("c", 3)];
    same(PROMISE, &commands(&*store).await, &expected);

    done(store.apply(vec![save(versioned("b", 2, 1)), remove("a")], Synced).await);
    done(store.apply(vec![save(command("a", 4))], Synced).await);
    let expected = vec![command("a", 4), versioned("b", 2, 1), command("c", 3)];
    same("the attempts of a command that is saved anew are those that it says", &commands(&*store).await, &expected);
}

pub(super) async fn giving_up(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a command that is given up is a dead letter, and no command";
    recovered(&*store).await;
    done(store.apply(vec![save(full_command("a", 1)), save(command("b", 2))], Synced).await);
    done(store.apply(vec![give_up(letter("a", 1))], Synced).await);
    same(PROMISE, &commands(&*store).await, &vec![command("b", 2)]);
    same(PROMISE, &letters(&*store).await, &vec![letter("a", 1)]);

    // Its command is not there any more; what is known of it is kept all the same.
    done(store.apply(vec![give_up(letter("a", 2)), give_up(letter("b", 3))], Synced).await);
    same(PROMISE, &commands(&*store).await, &Vec::new());
    let mut expected = vec![letter("a", 1), letter("a", 2), letter("b", 3)];
    same(PROMISE, &letters(&*store).await, &expected);

    const KEPT: &str = "a letter that is kept does nothing to its command, and nothing to other letters about it";
    done(store.apply(vec![save(command("a", 4))], Synced).await);
    let kept = |number| Change::SaveDeadLetter(Box::new(letter("a", number)));
    done(store.apply(vec![kept(4), kept(5)], Synced).await);
    expected.extend([letter("a", 4), letter("a", 5)]);
    same(KEPT, &letters(&*store).await, &expected);
    same(KEPT, &commands(&*store).await, &vec![command("a", 4)]);
}

pub(super) async fn replaying(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a command that is replayed is stored";
    recovered(&*store).await;
    let can = store.capabilities().results_and_letters;
    let after = |gone: &str, before: Vec<StoredDeadLetter>| -> Vec<StoredDeadLetter> {
        before.into_iter().filter(|letter| !can || letter.command_id != gone).collect()
    };
    let all = vec![letter("a", 1), letter("b", 2), letter("a", 3), letter("ab", 4), letter("c", 5)];
    done(store.apply(all.iter().cloned().map(give_up).collect(), Synced).await);
    done(store.apply(vec![Change::Replay(Box::new(full_command("a", 9)))], Synced).await);
    same(PROMISE, &commands(&*store).await, &vec![full_command("a", 9)]);
    let expected = after("a", all);
    same(
        "a replayed command takes the place of the letters about it, if the store can",
        &letters(&*store).await,
        &expected,
    );

    // There is no letter about this one, and a command.
    done(store.apply(vec![save(full_command("d", 10)), Change::Replay(Box::new(command("d", 11)))], Synced).await);
    same(PROMISE, &commands(&*store).await, &vec![full_command("a", 9), command("d", 11)]);

    const REMOVED: &str = "the letters about one command can be removed, if the store can";
    let gone = |command_id: &str| Change::RemoveDeadLetters { command_id: command_id.into() };
    works(REMOVED, store.apply(vec![gone("b"), gone("e")], Synced).await);
    same(REMOVED, &letters(&*store).await, &after("b", expected));
    same(REMOVED, &commands(&*store).await, &vec![full_command("a", 9), command("d", 11)]);

    const RESULTS: &str = "removing a result does nothing to commands and letters, and is no error";
    works(RESULTS, store.apply(vec![Change::RemoveResult { key: "a".into() }], Synced).await);
    works(RESULTS, store.apply(vec![remove_with("d", result("c", 1))], Synced).await);
    works(RESULTS, store.apply(vec![Change::RemoveResult { key: "c".into() }], Synced).await);
    same(RESULTS, &commands(&*store).await, &vec![full_command("a", 9)]);
}

pub(super) async fn of_any_number(store: Arc<dyn Storage>) {
    recovered(&*store).await;
    works("a group of no changes changes nothing", store.apply(Vec::new(), Synced).await);
    works("a group of no changes changes nothing", store.apply(Vec::new(), Relaxed).await);
    same("a group of no changes changes nothing", &commands(&*store).await, &Vec::new());

    const PROMISE: &str = "a group of a thousand changes is made";
    let saved = (0..1000).map(|number| command(&format!("d{number}"), number)).collect::<Vec<_>>();
    works(PROMISE, store.apply(saved.iter().cloned().map(save).collect(), Synced).await);
    same(PROMISE, &commands(&*store).await, &by_id(saved.clone()));
    let removed = saved.iter().filter(|command| command.sequence != 500).map(|command| remove(&command.id)).collect();
    works(PROMISE, store.apply(removed, Synced).await);
    same(PROMISE, &commands(&*store).await, &vec![command("d500", 500)]);
}

pub(super) async fn seen_at_once(store: Arc<dyn Storage>) {
    const PROMISE: &str = "what one call was told, the next one sees";
    recovered(&*store).await;
    for round in 0..20 {
        // What the previous round has left, and the two levels in turns.
        let (first, second) = if round % 2 == 0 { (Relaxed, Synced) } else { (Synced, Relaxed) };
        done(store.apply(vec![save(versioned("a", 1, round))], first).await);
        same(PROMISE, &commands(&*store).await, &vec![versioned("a", 1, round)]);
        done(store.apply(vec![save(full_command("b", 2)), save(versioned("a", 1, round + 100))], second).await);
        same(PROMISE, &commands(&*store).await, &vec![versioned("a", 1, round + 100), full_command("b", 2)]);
        done(store.apply(vec![remove("a")], first).await);
        same(PROMISE, &commands(&*store).await, &vec![full_command("b", 2)]);
        done(store.save_command(command("c", 3)).await);
        done(store.apply(vec![give_up(letter("b", round)), remove("c")], second).await);
        same(PROMISE, &commands(&*store).await, &Vec::new());
        same(PROMISE, &letters(&*store).await, &(0..=round).map(|number| letter("b", number)).collect());
    }
}

/// A store may be caught between two changes wherever its future waits.
pub(super) async fn all_or_none(store: Arc<dyn Storage>) {
    recovered(&*store).await;
    if !store.capabilities().atomic {
        return;
    }
    // More than a store would poll for one group.
    for polls in 0..20 {
        let ids = [format!("x{polls}"), format!("y{polls}")];
        done(store.apply(vec![save(command(&ids[1], 1))], Synced).await);
        let group = vec![save(versioned(&ids[0], 1, 1)), give_up(letter(&ids[1], 1)), save(versioned(&ids[0], 2, 2))];
        let ready = abandoned(store.apply(group, Synced), polls);
        // Whatever it has begun has now been decided.
        done(store.flush().await);
        let found: Vec<_> = commands(&*store).await.into_iter().filter(|command| ids.contains(&command.id)).collect();
        let letters = letters(&*store).await.iter().filter(|letter| letter.command_id == ids[1]).count();
        let (none, all) = ((vec![command(&ids[1], 1)], 0), (vec![versioned(&ids[0], 2, 2)], 1));
        let found = (found, letters);
        let expected = if found == none && !ready { none } else { all };
        same("a group is stored all or not at all, if the store is atomic", &found, &expected);
    }
}
