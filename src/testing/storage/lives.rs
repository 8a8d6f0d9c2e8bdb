//! How a queue takes a store, notes what runs, and closes it.

use std::sync::Arc;

use super::sample::{command, remove, save};
use super::seven::commands;
use super::{done, holds, recovered, same, works};
use crate::error::{LaneError, StorageError};
use crate::storage::{Durability, Recovery, Storage};

pub(super) async fn a_new_store_has_no_past(store: Arc<dyn Storage>) {
    let found = recovered(&*store).await;
    let past = Recovery { next_sequence: 0, ..found.clone() };
    same("a new store knows of no process before, and of no result", &past, &Recovery::default());
    // Whatever it counts from, it leaves room to count.
    holds("a new store has places to give", found.next_sequence < 1 << 32, found.next_sequence);
}

pub(super) async fn one_queue_at_a_time(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a store that notes what runs has one queue at a time";
    recovered(&*store).await;
    done(store.save_command(command("a", 1)).await);
    let second = store.recover().await;
    if store.capabilities().start_marks {
        let refused = matches!(second, Err(LaneError::Storage(StorageError::InUse)));
        holds(PROMISE, refused, second);
    }
    same("a queue that asks for a store in vain does nothing to it", &commands(&*store).await, &vec![command("a", 1)]);
}

pub(super) async fn marks(store: Arc<dyn Storage>) {
    const PROMISE: &str = "a store that notes what runs gives a mark of its own to every attempt";
    recovered(&*store).await;
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2))], Durability::Synced).await);
    let can = store.capabilities().start_marks;
    for _ in 0..1000 {
        // The last one is of a command that is not stored: it may have ended just now.
        let marks = ["a", "b", "a", "c"].map(|id| store.mark_started(id));
        holds(PROMISE, !can || marks.iter().all(Option::is_some), marks);
        let mut numbers: Vec<_> = marks.iter().flatten().map(|mark| mark.0).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        holds(PROMISE, numbers.len() == count, marks);
        marks.into_iter().flatten().for_each(|mark| store.unmark(mark));
    }
    let both = vec![command("a", 1), command("b", 2)];
    same("a mark does nothing to a command as long as nobody is killed", &commands(&*store).await, &both);
}

pub(super) async fn finishing(store: Arc<dyn Storage>) {
    const GOES_ON: &str = "a store that a queue has finished with can be looked at and changed";
    recovered(&*store).await;
    done(store.apply(vec![save(command("a", 1)), save(command("b", 2))], Durability::Relaxed).await);
    let _still_runs = store.mark_started("a");
    done(store.finish().await);
    same(GOES_ON, &commands(&*store).await, &vec![command("a", 1), command("b", 2)]);
    works(GOES_ON, store.apply(vec![save(command("c", 3)), remove("b")], Durability::Synced).await);
    same(GOES_ON, &commands(&*store).await, &vec![command("a", 1), command("c", 3)]);

    let next = works("a store that one queue has finished with is there for another one", store.recover().await);
    let charged = (next.unclean, next.unclean_ends, commands(&*store).await);
    let expected = (false, Vec::new(), vec![command("a", 1), command("c", 3)]);
    same("what still runs when its queue has finished is charged to nobody", &charged, &expected);
}
