//! What a store keeps of a process that was killed, and whom it charges for that.

use std::sync::Arc;

use super::sample::{command, full_command, give_up, letter, moment, remove, remove_with, result, save, versioned};
use super::seven::{commands, letters};
use super::{Stores, abandoned, done, holds, recovered, same};
use crate::storage::{Change, Durability, Recovery, Storage, StoredCommand};

use Durability::{Relaxed, Synced};

/// Kills a process, and begins the next one.
async fn next(store: Arc<dyn Storage>, stores: &dyn Stores) -> (Arc<dyn Storage>, Recovery) {
    let store = stores.next(store).await;
    let recovery = recovered(&*store).await;
    (store, recovery)
}

pub(super) async fn what_was_synced_is_there(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str = "what was acknowledged as synced is there when the process was killed";
    recovered(&*store).await;
    let mut store = store;
    let mut expected = Vec::new();
    for process in 0..5_u32 {
        let place = u64::from(process) * 10;
        let [kept, gone, dead] = ["kept", "gone", "dead"].map(|name| format!("{name} {process}"));
        done(store.apply(vec![save(full_command(&kept, place)), save(command(&gone, place + 1))], Synced).await);
        done(store.save_command(versioned(&dead, place + 2, 1)).await);
        done(store.apply(vec![remove(&gone), give_up(letter(&dead, process))], Synced).await);
        expected.push(full_command(&kept, place));
        store = next(store, stores).await.0;
        same(PROMISE, &commands(&*store).await, &expected);
        same(
            PROMISE,
            &letters(&*store).await,
            &(0..=process).map(|number| letter(&format!("dead {number}"), number)).collect(),
        );
    }

    // The rest of the changes, with what was relaxed before: a moment later is not an earlier one.
    done(store.apply(vec![save(command("relaxed", 70)), remove("kept 0")], Relaxed).await);
    let changes = vec![
        Change::RemoveDeadLetters { command_id: "dead 0".into() },
        Change::Replay(Box::new(command("dead 1", 71))),
        remove_with("kept 1", result("key", 1)),
        Change::RemoveResult { key: "another".into() },
        Change::Attempted { id: "kept 2".into(), retry_count: 7, at: moment(7) },
    ];
    done(store.apply(changes, Synced).await);
    let expected = (commands(&*store).await, letters(&*store).await);
    let can = store.capabilities().results_and_letters;
    let (store, recovery) = next(store, stores).await;
    same(PROMISE, &(commands(&*store).await, letters(&*store).await), &expected);
    same(PROMISE, &recovery.results, &if can { vec![result("key", 1)] } else { recovery.results.clone() });
}

pub(super) async fn what_is_lost_is_the_newest(store: Arc<dyn Storage>, stores: &dyn Stores) {
    const PROMISE: &str =
        "what is lost of relaxed changes is the newest, and nothing before what was synced or flushed";
    recovered(&*store).await;
    let mut store = store;
    let mut certain = 0;
    for (process, made) in [100_u64, 1, 7, 300].into_iter().enumerate() {
        let mut last = certain;
        for number in certain..certain + made {
            done(store.apply(vec![save(command(&format!("d{number:05}"), number))], Relaxed).await);
            last = number + 1;
        }
        match process {
            0 => done(store.flush().await),
            1 => done(store.apply(vec![give_up(letter("other", 1))], Synced).await),
            _ => {}
        }
        if process < 2 {
            certain = last;
        }
        store = next(store, stores).await.0;
        let found = commands(&*store).await;
        let expected: Vec<_> =
            (0..found.len() as u64).map(|number| command(&format!("d{number:05}"), number)).collect();
        same(PROMISE, &found, &expected);
        let kept = found.len() as u64;
        holds(PROMISE, (certain..=last).contains(&kept), (kept, "are kept, and at least", certain, "must be"));
        certain = kept;
    }
}

/// Kills while groups are made: behind calls that were not heard of.
pub(super) async fn groups_are_whole(stores: &dyn Stores) {
    const PROMISE: &str = "a group is stored all or not at all when the process is killed, if the store is atomic";
    const GROUPS: u64 = 8;
    for polls in 1..6 {
        let store = stores.open().await;
        recovered(&*store).await;
        if !store.capabilities().atomic {
            return;
        }
        let old = |group: u64| command(&format!("old {group}"), group);
        let new = |group: u64, version| versioned(&format!("new {group}"), 100 + group, version);
        done(store.apply((0..GROUPS).map(|group| save(old(group))).collect(), Synced).await);
        for group in 0..GROUPS {
            let id = format!("old {group}");
            let changes = vec![save(new(group, 1)), give_up(letter(&id, 1)), save(new(group, 2))];
            abandoned(store.apply(changes, Synced), polls);
        }
        let (store, _) = next(store, stores).await;
        let found = commands(&*store).await;
        let letters = letters(&*store).await;
        for group in 0..GROUPS {
            let is_there = |command: StoredCommand| found.contains(&command);
            let letter = letters.contains(&letter(&format!("old {group}"), 1));
            let state = [is_there(old(group)), is_there(new(group, 1)), is_there(new(group, 2)), letter];
            let whole = state == [true, false, false, false] || state == [false, false, true, true];
            holds(PROMISE, whole, ("old, half, new, letter", state));
        }
    }
}

pub(super) async fn charged_to_what_ran(store: Arc<dyn Storage>, stores: &dyn Stores) {
    recovered(&*store).await;
    if !store.capabilities().start_marks {
        return;
    }
    const PROMISE: &str =
        "a process that was killed is charged once to each command that ran in it, and to no other one";
    let ids = ["ran", "ran twice", "ended", "never ran"];
    done(store.apply(ids.iter().zip(0..).map(|(id, place)| save(command(id, place))).collect(), Synced).await);
    let crashes = |found: &[StoredCommand]| -> Vec<(String, usize)> {
        found.iter().map(|command| (command.id.clone(), command.crashes.len())).collect()
    };
    let mut store = store;
    for process in 1..=20 {
        let mut marks =
            ["ran", "ended", "ran twice", "ran twice", "ran twice", "is not stored"].map(|id| store.mark_started(id));
        // Of the three attempts, one has ended.
        [1, 2].into_iter().filter_map(|index: usize| marks[index].take()).for_each(|mark| store.unmark(mark));
        let (killed, recovery) = next(store, stores).await;
        store = killed;
        holds("a store knows that the process before it was killed", recovery.unclean, &recovery);
        let times = process.min(16);
        holds(
            "a store remembers when processes were killed, as far as it does",
            (1..=process).contains(&recovery.unclean_ends.len()) && recovery.unclean_ends.is_sorted(),
            &recovery.unclean_ends,
        );
        let found = commands(&*store).await;
        let expected = [("ended", 0), ("never ran", 0), ("ran", times), ("ran twice", times)];
        same(PROMISE, &crashes(&found), &expected.map(|(id, count)| (id.to_owned(), count)).to_vec());
        let ordered = found.iter().all(|command| command.crashes.is_sorted());
        holds("crashes are known by when they were noticed, the oldest first", ordered, &found);
    }
    // Nothing else of them has changed, and pages know it, too.
    let paged = done(store.load_page(None, usize::MAX).await);
    let plain = |commands: Vec<StoredCommand>| -> Vec<StoredCommand> {
        commands.into_iter().map(|command| StoredCommand { crashes: Vec::new(), ..command }).collect()
    };
    let by_place =
        ["ran", "ran twice", "ended", "never ran"].iter().zip(0..).map(|(id, place)| command(id, place)).collect();
    same("being charged changes nothing else of a command", &plain(paged.clone()), &by_place);
    let mut by_page = crashes(&paged);
    by_page.sort();
    same("pages tell of crashes", &by_page, &crashes(&commands(&*store).await));
}

pub(super) async fn charged_once(store: Arc<dyn Storage>, stores: &dyn Stores) {
    recovered(&*store).await;
    if !store.capabilities().start_marks {
        return;
    }
    const PROMISE: &str = "a command is charged once, also if processes are killed that ran nothing";
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2))], Synced).await);
    let _running = store.mark_started("a");
    // The next process is killed before a queue has the store, and the one after it before anything runs.
    let killed = stores.next(store).await;
    done(killed.load_commands().await);
    let (store, _) = next(killed, stores).await;
    let (store, recovery) = next(store, stores).await;
    holds("a store knows that the process before it was killed", recovery.unclean, &recovery);
    let charged = |found: &[StoredCommand]| found.iter().map(|command| command.crashes.len()).collect::<Vec<_>>();
    same(PROMISE, &charged(&commands(&*store).await), &vec![1, 0]);

    // What is saved anew, as a replay is, says itself what it is charged with.
    done(store.apply(vec![save(versioned("a", 1, 2))], Synced).await);
    same(
        "the crashes of a command that is saved anew are those that it says",
        &charged(&commands(&*store).await),
        &vec![0, 0],
    );
}

pub(super) async fn after_its_queue_has_finished(store: Arc<dyn Storage>, stores: &dyn Stores) {
    recovered(&*store).await;
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2))], Relaxed).await);
    done(store.apply(vec![remove("b"), give_up(letter("c", 1))], Relaxed).await);
    let _still_runs = store.mark_started("a");
    done(store.finish().await);
    let (store, recovery) = next(store, stores).await;
    let found: Vec<_> = commands(&*store).await.into_iter().map(|command| command.id).collect();
    let dead = letters(&*store).await.len();
    same("what a queue was told is durable when it has finished", &(found, dead), &(vec!["a".to_owned()], 1));
    let charged: usize = commands(&*store).await.iter().map(|command| command.crashes.len()).sum();
    let found = (recovery.unclean, recovery.unclean_ends.len(), charged);
    same("a process that is killed after its queue has finished is charged to nobody", &found, &(false, 0, 0));
}
