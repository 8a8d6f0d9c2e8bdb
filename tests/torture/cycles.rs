//! Kill cycles: a child works on a store until it is killed, and another one goes on with what is left, over and over.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use crate::check::{Checker, Counts};
use crate::child::Task;
use crate::process::{HANG, Place, Process};
use crate::programs::Signal;
use crate::random::Random;
use crate::report::Event;
use crate::store::{Lie, stored};

/// Cycles after which everything settles and is looked at.
const SETTLE_EVERY: u64 = 50;

/// Runs `cycles` of them, or until something is wrong whose text has `wanted` in it; what was wrong, and what was covered.
pub(crate) fn run(cycles: u64, seed: u64, lie: Lie, wanted: &str) -> (Vec<String>, Counts, Place) {
    let place = Place::new(&format!("cycles-{lie:?}").to_lowercase());
    let mut random = Random::new(seed);
    let mut checker = Checker::default();
    let mut starting = Duration::from_millis(50);
    let mut process = 0;
    // Lies that concern what was accepted are found when everything has settled.
    let settle_every = if lie == Lie::None { SETTLE_EVERY } else { SETTLE_EVERY / 10 };
    for cycle in 1..=cycles {
        process += 1;
        let task = Task { store: place.store(), process, seed, lie, settles: false };
        let begun = Instant::now();
        let mut child = Process::start("cycle", &task, &place.log());
        let stops = random.percent(8);
        let early = !stops && random.percent(20);
        let mut ready = false;
        if early {
            // Anywhere from the first instruction to the first commands.
            std::thread::sleep(random.micros(0..u64::try_from(starting.as_micros()).unwrap_or(u64::MAX) * 5 / 4));
        } else {
            ready = child.wait_for(HANG, |event| matches!(event, Event::Ready));
            starting = (starting * 7 + begun.elapsed()) / 8;
            std::thread::sleep(random.micros(1_000..160_000));
        }
        if stops {
            child.ask_to_stop();
        } else {
            if random.percent(20) {
                child.signal(Signal::Stop);
                std::thread::sleep(random.micros(1_000..30_000));
                // Killed while it is stopped, or soon after it goes on.
                if random.percent(70) {
                    child.signal(Signal::Continue);
                    std::thread::sleep(random.micros(0..10_000));
                }
            }
            child.signal(Signal::Kill);
        }
        let (status, events) = child.end();
        place.keep(process, &events);
        checker.process(process, events, !stops && status.signal() == Some(9) && (ready || early));
        let is_wrong = |checker: &Checker| checker.violations().iter().any(|text| text.contains(wanted));
        if !is_wrong(&checker) && (cycle % settle_every == 0 || cycle == cycles) {
            // Beyond every process in which something was to fail.
            process += 5;
            settle(&mut checker, process, seed, lie, &place);
        }
        if is_wrong(&checker) {
            break;
        }
    }
    (checker.violations().to_vec(), checker.counts, place)
}

fn settle(checker: &mut Checker, process: u64, seed: u64, lie: Lie, place: &Place) {
    let task = Task { store: place.store(), process, seed, lie, settles: true };
    let (_status, events) = Process::start("cycle", &task, &place.log()).end();
    place.keep(process, &events);
    checker.process(process, events, false);
    let (commands, letters) = stored(place);
    checker.settled(process, &commands, &letters);
}
