//! What a store keeps from one process to the next, if each ends well.

use std::sync::Arc;

use super::sample::{
    attempted, command, full_command, give_up, letter, odd_payloads, odd_texts, remove, remove_with, result, save,
    versioned,
};
use super::seven::{commands, letters};
use super::{Stores, done, holds, recovered, same};
use crate::storage::{Change, Durability, Recovery, Storage, StoredCommand, StoredResult};

use Durability::{Relaxed, Synced};

/// Ends a process, and begins the next one.
async fn next(store: Arc<dyn Storage>, stores: &dyn Stores) -> (Arc<dyn Storage>, Recovery) {
    done(store.close().await);
    let store = stores.next(store).await;
    let recovery = recovered(&*store).await;
    (store, recovery)
}

pub(super) async fn everything_is_there(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "what is stored when a store is closed is there when it is opened again";
    recovered(&*store).await;
    let mut group = vec![save(full_command("full", 1)), save(command("plain", 2))];
    for (id, sequence) in odd_texts().iter().zip(10..) {
        group.push(save(command(&format!("odd {id}"), sequence)));
    }
    for (payload, sequence) in odd_payloads().into_iter().zip(1000..) {
        group.push(save(StoredCommand { payload, ..command(&format!("payload {sequence}"), sequence) }));
    }
    group.push(attempted("plain", 3));
    group.extend((0..20).map(|number| give_up(letter(&format!("dead {}", number % 7), number))));
    done(store.apply(group, Synced).await);
    done(store.apply(vec![save(versioned("relaxed", 5, 1))], Relaxed).await);
    let mut expected = (commands(&*store).await, letters(&*store).await);

    let mut store = store;
    for process in 0..3 {
        store = next(store, stores).await.0;
        same(PROMISE, &(commands(&*store).await, letters(&*store).await), &expected);
        let paged = done(store.load_page(None, usize::MAX).await);
        same("pages of a store that was opened again are in order", &paged, &in_order(&expected.0));
        let added = letter("later", 100 + process);
        done(store.apply(vec![give_up(added.clone())], Relaxed).await);
        expected.1.push(added);
    }
}

pub(super) async fn what_has_gone_stays_away(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "what is removed stays away when a store is opened again";
    recovered(&*store).await;
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2)), save(command("c", 3))], Synced).await);
    done(store.save_command(command("d", 4)).await);
    done(store.apply(vec![remove("a"), save(versioned("b", 5, 2))], Relaxed).await);
    done(store.remove_command("d").await);
    let store = next(store, stores).await.0;
    same(PROMISE, &commands(&*store).await, &vec![versioned("b", 5, 2), command("c", 3)]);

    done(store.apply(vec![give_up(letter("b", 1)), give_up(letter("e", 2))], Synced).await);
    done(store.apply(vec![Change::Replay(Box::new(command("b", 6))), remove("c")], Relaxed).await);
    let expected = (commands(&*store).await, letters(&*store).await);
    let store = next(store, stores).await.0;
    same(PROMISE, &(commands(&*store).await, letters(&*store).await), &expected);

    done(store.clear_dead_letters().await);
    let store = next(store, stores).await.0;
    same(PROMISE, &(commands(&*store).await, letters(&*store).await), &(expected.0, Vec::new()));

    done(store.apply(vec![give_up(letter("f", 3)), remove_with("g", result("key", 1))], Synced).await);
    done(store.clear_all().await);
    let (store, recovery) = next(store, stores).await;
    same(PROMISE, &(commands(&*store).await, letters(&*store).await), &(Vec::new(), Vec::new()));
    same("clearing all removes the results, too", &recovery.results, &Vec::new());
}

pub(super) async fn results(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "the last result under every key is there when a store is opened again, if the store can";
    recovered(&*store).await;
    let can = store.capabilities().results_and_letters;
    let mut expected = Vec::new();
    let keys: Vec<_> = odd_texts().into_iter().chain(["k".repeat(256)]).collect();
    for ((key, number), value) in keys.iter().zip(0..).zip(odd_payloads().iter().cycle()) {
        let result = StoredResult { value: value.clone(), ..result(key, number) };
        done(store.apply(vec![save(command("a", 1)), remove_with("a", result.clone())], Relaxed).await);
        expected.push(result);
    }
    let (store, recovery) = next(store, stores).await;
    if !can {
        return;
    }
    same(PROMISE, &by_key(recovery.results), &by_key(expected.clone()));

    // Another one under the same key; one that goes; one that was never there.
    expected[3] = result(&keys[3], 100);
    let gone = expected.remove(7).key;
    let changes = vec![
        remove_with("not there", expected[3].clone()),
        Change::RemoveResult { key: gone },
        Change::RemoveResult { key: "never".into() },
    ];
    done(store.apply(changes, Synced).await);
    let (store, recovery) = next(store, stores).await;
    same(PROMISE, &by_key(recovery.results), &by_key(expected.clone()));
    let (_store, recovery) = next(store, stores).await;
    same(PROMISE, &by_key(recovery.results), &by_key(expected));
}

pub(super) async fn places_are_not_given_twice(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "the next place is above that of every command that was ever stored, or not known";
    recovered(&*store).await;
    let mut store = store;
    let highest = 700;
    for sequence in [5, highest, 6] {
        done(store.apply(vec![save(command("a", sequence))], Synced).await);
        done(store.apply(vec![remove("a")], Relaxed).await);
        let (reopened, recovery) = next(store, stores).await;
        let above = if sequence == 5 { 5 } else { highest };
        let known = recovery.next_sequence;
        holds(PROMISE, known == 0 || known > above, (known, "though a command had the place", above));
        store = reopened;
    }
}

pub(super) async fn a_clean_end_is_charged_to_nobody(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "a process that closes its store ends cleanly, and is charged to nobody";
    recovered(&*store).await;
    let mut store = store;
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2))], Synced).await);
    for _ in 0..3 {
        let (marked, unmarked) = (store.mark_started("a"), store.mark_started("b"));
        let _still_running = marked;
        unmarked.into_iter().for_each(|mark| store.unmark(mark));
        let (reopened, recovery) = next(store, stores).await;
        same(PROMISE, &(recovery.unclean, recovery.unclean_ends), &(false, Vec::new()));
        same(PROMISE, &commands(&*reopened).await, &vec![command("a", 1), command("b", 2)]);
        store = reopened;
    }
}

/// It may have let go of everything: then it says so, and loses nothing in silence.
pub(super) async fn changes_that_come_too_late(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "a change of a closed store is an error, or is made";
    recovered(&*store).await;
    done(store.apply(vec![save(command("a", 1))], Relaxed).await);
    done(store.close().await);
    let changes = [
        ("b", store.save_command(command("b", 2)).await),
        ("c", store.apply(vec![save(command("c", 3))], Synced).await),
        ("d", store.apply(vec![save(command("d", 4))], Relaxed).await),
    ];
    let store = stores.next(store).await;
    let found = commands(&*store).await;
    same(PROMISE, &found.first(), &Some(&command("a", 1)));
    for (id, result) in changes {
        let is_there = found.iter().any(|command| command.id == id);
        holds(PROMISE, result.is_ok() == is_there, (id, result, "and it is there:", is_there));
    }
}

fn in_order(commands: &[StoredCommand]) -> Vec<StoredCommand> {
    let mut commands = commands.to_vec();
    commands.sort_by_key(|command| command.sequence);
    commands
}

pub(super) fn by_key(mut results: Vec<StoredResult>) -> Vec<StoredResult> {
    results.sort_by(|a, b| a.key.cmp(&b.key));
    results
}
