//! Commands in pages, in the order of their places.

use std::sync::Arc;

use super::sample::{command, remove, save};
use super::seven::by_id;
use super::{done, holds, recovered, same};
use crate::storage::{Durability, Storage, StoredCommand};

/// Commands with ids that are in no order, at places with gaps between them.
async fn filled(store: &dyn Storage, count: u64) -> Vec<StoredCommand> {
    let id = |number: u64| {
        if number.is_multiple_of(3) { format!("id {}", number * 7 % 11) } else { format!("d{}", 100 - number) }
    };
    let all: Vec<_> = (0..count).map(|number| command(&format!("{}/{number}", id(number)), number * number)).collect();
    let half = all.len() / 2;
    let (older, newer) = all.split_at(half);
    done(store.apply(newer.iter().cloned().map(save).collect(), Durability::Synced).await);
    done(store.apply(older.iter().cloned().map(save).collect(), Durability::Synced).await);
    all
}

/// All pages, each with what happens after it.
async fn pages(store: &dyn Storage, limit: usize, mut between: impl AsyncFnMut(&StoredCommand)) -> Vec<StoredCommand> {
    const MOST: usize = 10_000;
    let mut found = Vec::<StoredCommand>::new();
    for _ in 0..MOST {
        let page = done(store.load_page(found.last(), limit).await);
        let Some(last) = page.last().cloned() else { return found };
        found.extend(page);
        between(&last).await;
    }
    holds("paging comes to an end", false, found.len());
    found
}

pub(super) async fn every_command_once_in_order(store: Arc<dyn Storage>) {
    const PROMISE: &str = "pages give every command once, in the order of its place";
    recovered(&*store).await;
    for limit in [1, 2, usize::MAX] {
        same("an empty store has no page", &pages(&*store, limit, async |_| ()).await, &Vec::new());
    }
    let mut all = filled(&*store, 50).await;
    for limit in [1, 2, 3, 49, 50, 51, 1000, usize::MAX] {
        same(PROMISE, &pages(&*store, limit, async |_| ()).await, &all);
    }
    all.push(command("the last one", u64::MAX));
    done(store.save_command(all[50].clone()).await);
    // To another place: what was there is not.
    all[10].sequence = 100_000;
    all.sort_by_key(|command| command.sequence);
    done(store.save_command(all[49].clone()).await);
    same(PROMISE, &pages(&*store, 7, async |_| ()).await, &all);
}

pub(super) async fn equal_places(store: Arc<dyn Storage>) {
    const PROMISE: &str = "of commands at the same place, pages give every one, once";
    recovered(&*store).await;
    let place = |number: u64| [0, 5, 5, 5, 5, 5, 5, 9, 9, u64::MAX, u64::MAX][number as usize];
    let all = by_id((0..11).map(|number| command(&format!("d{}", number * 7 % 11), place(number))).collect());
    done(store.apply(all.iter().cloned().map(save).collect(), Durability::Synced).await);
    for limit in [1, 2, 3, 4, 100] {
        let found = pages(&*store, limit, async |_| ()).await;
        holds(PROMISE, found.is_sorted_by_key(|command| command.sequence), &found);
        same(PROMISE, &by_id(found), &all);
    }
}

pub(super) async fn while_others_change_it(store: Arc<dyn Storage>) {
    const PROMISE: &str = "what is there while pages are read is on them once, whatever comes and goes meanwhile";
    recovered(&*store).await;
    let all = filled(&*store, 60).await;
    let (mut gone, mut new) = (Vec::new(), 0);
    let found = pages(&*store, 4, async |last| {
        // The very command behind which the next page begins, and others in front of it and behind it.
        let at = all.iter().position(|command| command.id == last.id);
        if let Some(at) = at.filter(|at| at + 2 < all.len()) {
            let ids = [&all[at / 2].id, &all[at].id, &all[at + 2].id].map(String::clone);
            done(store.apply(ids.iter().map(|id| remove(id)).collect(), Durability::Relaxed).await);
            gone.extend(ids);
            new += 1;
            let added = [command(&format!("new {new}"), 0), command(&format!("newer {new}"), 100_000 + new)];
            done(store.apply(added.map(save).into(), Durability::Relaxed).await);
        }
    })
    .await;
    let steady = |commands: &[StoredCommand]| -> Vec<StoredCommand> {
        commands
            .iter()
            .filter(|command| !gone.contains(&command.id) && !command.id.starts_with("new"))
            .cloned()
            .collect()
    };
    same(PROMISE, &steady(&found), &steady(&all));
    holds(PROMISE, found.is_sorted_by_key(|command| command.sequence), &found);
    let mut ids: Vec<_> = found.iter().map(|command| command.id.as_str()).collect();
    ids.sort_unstable();
    holds(PROMISE, ids.windows(2).all(|pair| pair[0] != pair[1]), &ids);
}
