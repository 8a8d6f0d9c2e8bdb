//! Several threads at once.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use serde_json::json;

use super::sample::{attempted, command, give_up, letter, moment, remove, save};
use super::seven::{by_id, commands, letters};
use super::{done, holds, recovered, same, works};
use crate::executor::{Executor, within};
use crate::storage::{Durability, Storage, StoredCommand};

const THREADS: usize = 4;
const WRITERS: u64 = 8;
const ROUNDS: u64 = 12;

const READING: &str = "reading while others write is no error";

pub(super) async fn from_several_threads(store: Arc<dyn Storage>) {
    recovered(&*store).await;
    let built = Executor::builder().workers(THREADS).pin(false).build();
    let executor = built.unwrap_or_else(|error| panic!("no executor to call the store from: {error}"));
    let mut tasks: Vec<_> = (0..WRITERS).map(|writer| spawn(&executor, write(Arc::clone(&store), writer))).collect();
    tasks.extend((0..2).map(|_| spawn(&executor, read(Arc::clone(&store)))));
    for task in tasks {
        if let Err(error) = task.await {
            panic!("{error}");
        }
    }

    const PROMISE: &str = "of changes that several threads make at once, none is lost, made twice or half";
    let can = store.capabilities().attempts;
    let mut expected = Vec::new();
    for (writer, round) in (0..WRITERS).flat_map(|writer| (0..ROUNDS).map(move |round| (writer, round))) {
        match round % 4 {
            0 => expected.push(own(writer, round, 2)),
            1 if can => {
                let (retry_count, last_attempt_at) = (3, Some(moment(3)));
                expected.push(StoredCommand { retry_count, last_attempt_at, ..own(writer, round, 1) });
            }
            1 => expected.push(own(writer, round, 1)),
            _ => {}
        }
    }
    let (shared, found): (Vec<_>, Vec<_>) =
        commands(&*store).await.into_iter().partition(|command| command.id == "shared");
    same(PROMISE, &found, &by_id(expected));
    let [shared] = shared.as_slice() else { return holds("one command is stored under an id", false, shared) };
    let written = (0..WRITERS).any(|writer| *shared == common(writer, ROUNDS - 1));
    holds("of several who save one command, the last one has saved it whole", written, shared);

    let mut dead: Vec<_> = letters(&*store).await;
    for writer in 0..WRITERS {
        let own = dead.iter().filter(|letter| letter.attempts as u64 / ROUNDS == writer);
        holds("each thread's letters are in its order", own.is_sorted_by_key(|letter| letter.attempts), &dead);
    }
    dead.sort_by_key(|letter| letter.attempts);
    let expected =
        (0..WRITERS).flat_map(|writer| (0..ROUNDS).filter(|round| round % 4 == 3).map(move |round| (writer, round)));
    same(PROMISE, &dead, &expected.map(|(writer, round)| dead_letter(writer, round)).collect());
}

async fn write(store: Arc<dyn Storage>, writer: u64) {
    const PROMISE: &str = "a thread sees at once what it was told, whatever others do";
    for round in 0..ROUNDS {
        let durability = if round % 3 == 0 { Durability::Synced } else { Durability::Relaxed };
        let first = own(writer, round, 1);
        let id = first.id.clone();
        if round % 2 == 0 {
            done(store.save_command(first).await);
        } else {
            done(store.apply(vec![save(first)], durability).await);
        }
        let change = match round % 4 {
            0 => save(own(writer, round, 2)),
            1 => attempted(&id, 3),
            2 => remove(&id),
            _ => give_up(dead_letter(writer, round)),
        };
        done(store.apply(vec![change, save(common(writer, round))], durability).await);
        let found = works(READING, store.load_commands().await);
        let there = found.iter().any(|command| command.id == id);
        same(PROMISE, &there, &(round % 4 < 2));
    }
}

async fn read(store: Arc<dyn Storage>) {
    const WHOLE: &str = "what is read while others write is a command as somebody wrote it";
    for _ in 0..ROUNDS {
        let all = works(READING, store.load_commands().await);
        let pages = works(READING, store.load_page(None, 10).await);
        for found in all.iter().chain(&pages) {
            let [writer, round, version] =
                ["writer", "round", "version"].map(|key| found.payload[key].as_u64().unwrap_or(99));
            let plain = StoredCommand { retry_count: 0, last_attempt_at: None, ..found.clone() };
            holds(WHOLE, plain == own(writer, round, version) || plain == common(writer, round), found);
        }
        same("one command is stored under an id", &ids(&all).len(), &all.len());
        done(store.load_dead_letters().await);
        crate::executor::yield_now().await;
    }
}

fn ids(commands: &[StoredCommand]) -> Vec<&str> {
    let mut ids: Vec<_> = commands.iter().map(|command| command.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A command that one writer has for itself.
fn own(writer: u64, round: u64, version: u64) -> StoredCommand {
    let place = writer * ROUNDS + round;
    let payload =
        json!({ "writer": writer, "round": round, "version": version, "text": "x".repeat(round as usize * 50) });
    StoredCommand { payload, ..command(&format!("d{place}"), place) }
}

/// A command that all of them write.
fn common(writer: u64, round: u64) -> StoredCommand {
    let payload = json!({ "writer": writer, "round": round, "text": "y".repeat(writer as usize * 100) });
    StoredCommand { payload, ..command("shared", 1000) }
}

fn dead_letter(writer: u64, round: u64) -> crate::storage::StoredDeadLetter {
    let number = writer * ROUNDS + round;
    letter(&format!("d{number}"), number as u32)
}

/// A task in the surroundings that a queue's commands have that is made here.
fn spawn(executor: &Executor, future: impl Future<Output = ()> + Send + 'static) -> crate::executor::Task<()> {
    let ambient = crate::ambient();
    executor.spawn(0, async move {
        let mut future = pin!(future);
        poll_fn(|context| within(ambient.as_deref(), || future.as_mut().poll(context))).await;
    })
}
