//! Stores: every one passes the suite that is public for yours, and the suite notices every defect that it looks for.

mod broken;
mod seven_methods;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use corelane::MemoryStorage;
use corelane::testing::storage::{conformance, crash_safety, persistence};
#[cfg(feature = "redb")]
use futures::FutureExt;

use self::broken::{Broken, Flaw};
use self::seven_methods::SevenMethods;
use crate::support::block_on;

async fn passes_everything(flaw: Flaw) {
    let open = || async move { Broken::new(flaw) };
    conformance(open).await;
    persistence(open, |store| async move { store.reopened() }).await;
    crash_safety(open, |store| async move { store.killed() }).await;
}

#[test]
fn the_store_in_memory_keeps_every_promise() {
    let open = || async { MemoryStorage::new() };
    block_on(conformance(open));
    block_on(persistence(open, |store| async move { store.after_crash() }));
    block_on(crash_safety(open, |store| async move { store.after_crash() }));
}

#[test]
fn a_store_of_seven_methods_keeps_every_promise() {
    let open = || async { SevenMethods::default() };
    block_on(conformance(open));
    // What it has outlives its handle, as a table or a folder would.
    block_on(persistence(open, |store| async move { store }));
    block_on(crash_safety(open, |store| async move { store }));
}

/// What it keeps when its process is killed is tested where its disk can be stopped: `src/adapters/redb/faults/conformance.rs`.
#[cfg(feature = "redb")]
#[test]
fn the_embedded_store_keeps_every_promise() {
    use corelane::LocalStorage;

    let place = crate::support::Place::new("conformance");
    let count = std::cell::Cell::new(0);
    let open = || async {
        count.set(count.get() + 1);
        LocalStorage::new(place.path().join(count.get().to_string())).await.unwrap()
    };
    block_on(conformance(open));
    block_on(persistence(open, |store| {
        drop(store);
        LocalStorage::new(place.path().join(count.get().to_string())).map(Result::unwrap)
    }));
}

#[test]
fn a_store_may_do_what_the_promises_leave_open() {
    for flaw in Flaw::ALLOWED {
        let kept = catch_unwind(|| block_on(passes_everything(flaw)));
        assert!(kept.is_ok(), "the suite refuses a store that is right: {flaw:?}");
    }
}

/// Every promise by which the suite refuses a store: what it asks of one.
fn promises() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testing/storage");
    let mut found = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        // The first argument of these, or a constant that is one.
        for start in ["same(", "holds(", "works(", ": &str ="] {
            for rest in text.split(start).skip(1) {
                if let Some(promise) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                    found.insert(promise.to_owned());
                }
            }
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

#[test]
fn every_promise_is_broken_by_some_store_and_the_suite_says_which() {
    let mut unbroken = promises();
    let mut wrong = Vec::new();
    for (flaw, promise) in Flaw::ALL {
        assert!(promises().contains(promise), "no check speaks of: {promise}");
        let run = || {
            if flaw == Flaw::Hangs {
                // In virtual time, which does not wait.
                corelane::Simulation::new(1, 1).block_on(passes_everything(flaw));
            } else {
                block_on(passes_everything(flaw));
            }
        };
        // Some flaws only show where calls overlap, which is up to the machine: five runs of the suite are to find them.
        let Some(panic) = (0..5).find_map(|_| catch_unwind(run).err()) else {
            wrong.push(format!("{flaw:?} is not noticed"));
            continue;
        };
        let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        if message.contains(promise) {
            unbroken.remove(promise);
        } else {
            wrong.push(format!("{flaw:?} breaks another promise than {promise:?}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(unbroken.is_empty(), "no store breaks these promises: {unbroken:#?}");
}
