//! The system stops at every write and every sync of a script, and while it recovers from that: the store opens, and contains
//! what it has acknowledged, whole.

use std::collections::{BTreeMap, BTreeSet};

use futures_lite::future::block_on;

use super::content::Content;
use super::disk::SimDisk;
use super::history::{History, Plan, Verdict, summary};
use super::images::{Medium, Survival};
use super::script::{Step, command, everything, random, run, run_in_bursts, save};
use super::{open, scale};
use crate::storage::{Change, Durability, Storage};

fn plan(seed: u64, most: u64) -> Plan {
    Plan { seed, random: 5, most, second_of: 12, second: 2 }
}

fn read(disk: &SimDisk) -> Result<Content, String> {
    let store = open(disk).map_err(|error| format!("not opened: {error}"))?;
    block_on(Content::recover(&store)).map_err(|error| format!("not read: {error}"))
}

/// Tells a new store a script; `disk` has everything that was done for it.
fn tell(disk: &SimDisk, script: &[Step]) -> History<Content> {
    let store = open(disk).unwrap();
    block_on(async {
        store.recover().await.unwrap();
        let history = run(&store, disk, script).await;
        store.close().await.unwrap();
        history
    })
}

fn check(name: &str, disk: &SimDisk, history: &History<Content>, plan: Plan) -> Verdict {
    let verdict = history.check(disk, plan, read);
    println!(
        "{name}, seed {}: {}; {} images, {} of a second crash; {} wrong",
        plan.seed,
        summary(&disk.history().1),
        verdict.images,
        verdict.second_images,
        verdict.wrong.len()
    );
    verdict
}

#[test]
fn a_crash_anywhere_leaves_what_was_acknowledged() {
    let disk = SimDisk::default();
    let history = tell(&disk, &everything());
    let verdict = check("everything", &disk, &history, plan(10, scale(800, 20_000)));
    assert!(verdict.wrong.is_empty(), "{}", verdict.wrong[0]);
}

#[test]
fn a_crash_anywhere_in_a_random_script_leaves_what_was_acknowledged() {
    for seed in 0..scale(2, 40) {
        let disk = SimDisk::default();
        let history = tell(&disk, &random(40, seed));
        let verdict = check("random", &disk, &history, plan(seed, scale(400, 3_000)));
        assert!(verdict.wrong.is_empty(), "{}", verdict.wrong[0]);
    }
}

#[test]
fn a_crash_anywhere_in_a_group_leaves_what_was_accepted_before() {
    for seed in 0..scale(1, 20) {
        let disk = SimDisk::default();
        let store = open(&disk).unwrap();
        let history = block_on(async {
            store.recover().await.unwrap();
            run_in_bursts(&store, &disk, &random(48, seed), 6).await
        });
        let verdict = check("bursts", &disk, &history, plan(seed, scale(400, 3_000)));
        assert!(verdict.wrong.is_empty(), "{}", verdict.wrong[0]);
        assert!(summary(&disk.history().1).syncs < 48, "nothing was grouped");
    }
}

#[test]
fn a_crash_while_a_store_is_made_leaves_one_that_opens() {
    let disk = SimDisk::default();
    let history = tell(&disk, &[]);
    let plan = Plan { random: scale(20, 400), ..plan(13, u64::MAX) };
    let verdict = check("new", &disk, &history, plan);
    assert!(verdict.wrong.is_empty(), "{}", verdict.wrong[0]);
}

#[test]
fn control_a_store_that_acknowledges_before_it_commits_is_found() {
    let disk = SimDisk::default();
    let history = tell(&disk, &everything()).premature();
    assert!(!check("premature", &disk, &history, plan(11, 300)).wrong.is_empty());
}

#[test]
fn control_a_device_that_lies_about_syncs_is_found() {
    let disk = SimDisk::default();
    disk.lie();
    let history = tell(&disk, &everything());
    assert!(!check("lies", &disk, &history, plan(12, 300)).wrong.is_empty());
}

/// Crashes that are charged to commands.
fn charged(disk: &SimDisk) -> BTreeMap<String, usize> {
    let store = open(disk).unwrap();
    let commands = block_on(async {
        store.recover().await.unwrap();
        store.load_commands().await.unwrap()
    });
    commands.into_iter().map(|command| (command.id, command.crashes.len())).collect()
}

/// A process is killed at any moment: those that were marked then are charged once, whatever happens while that is noted.
#[test]
fn a_kill_is_charged_once_and_to_those_that_were_marked() {
    let disk = SimDisk::default();
    let store = open(&disk).unwrap();
    block_on(store.recover()).unwrap();
    let ids: Vec<String> = (0..4).map(|number| format!("d{number}")).collect();
    let saves = (0..4).map(|number| save(command(number, 30))).collect();
    block_on(store.apply(saves, Durability::Synced)).unwrap();
    // What is marked from which position on.
    let mut marked = BTreeSet::new();
    let mut marks = BTreeMap::new();
    let mut timeline = vec![(disk.position(), marked.clone())];
    for (starts, number) in [(true, 0), (true, 1), (false, 0), (true, 2), (true, 0), (false, 2), (false, 1), (true, 3)]
    {
        let id = &ids[number];
        if starts {
            marks.insert(number, store.mark_started(id).unwrap());
            marked.insert(id.clone());
        } else if let Some(mark) = marks.remove(&number) {
            store.unmark(mark);
            marked.remove(id);
        }
        timeline.push((disk.position(), marked.clone()));
        let attempted = Change::Attempted { id: id.clone(), retry_count: 1, at: crate::clock::wall_now() };
        block_on(store.apply(vec![attempted], Durability::Synced)).unwrap();
    }
    let (base, log) = disk.history();
    let mut medium = Medium::new(base);
    let (mut kills, mut second) = (0, 0);
    for position in 0..=log.len() {
        if position > 0 {
            medium.advance(&log[position - 1]);
        }
        let Some((_, marked)) = timeline.iter().rev().find(|(from, _)| *from <= position) else { continue };
        let killed = SimDisk::with(medium.image(Survival::All));
        let expected: BTreeMap<String, usize> =
            ids.iter().map(|id| (id.clone(), usize::from(marked.contains(id)))).collect();
        assert_eq!(charged(&killed), expected, "killed at op {position} of {}", log.len());
        kills += 1;
        // Killed again while it recovers, or right behind.
        let (base, log) = killed.history();
        let mut medium = Medium::new(base);
        for (at, op) in log.iter().enumerate() {
            medium.advance(op);
            if (at + position) % scale(7, 1) as usize == 0 {
                let again = SimDisk::with(medium.image(Survival::All));
                assert_eq!(charged(&again), expected, "killed at op {position}, then at op {at} of the recovery");
                second += 1;
            }
        }
    }
    println!("{kills} kills, {second} of them followed by another in the recovery");
}

#[test]
fn a_clean_end_is_charged_to_nobody() {
    let disk = SimDisk::default();
    let store = open(&disk).unwrap();
    block_on(async {
        store.recover().await.unwrap();
        store.apply(vec![save(command(0, 30))], Durability::Synced).await.unwrap();
        let _running = store.mark_started("d0");
        store.close().await.unwrap();
    });
    assert_eq!(charged(&disk), BTreeMap::from([("d0".to_owned(), 0)]));
}
