//! All workloads. To add one, implement [`Workload`] and name it here.

mod commands;
pub mod control;
pub mod durable;
mod gate;
mod limiters;
pub mod managers;
pub mod memory;
pub mod observed;
mod partitions;
mod seed;
mod settings;
mod spawn;
mod switching;
mod tasks;
mod timers;
mod typed;
pub mod wake;

use std::time::{Duration, Instant};

use crate::machine::available_memory;
use crate::measure::Workload;
use crate::results::Allocator;

/// What a binary measures.
pub struct Workloads {
    pub all: Vec<Box<dyn Workload>>,
    /// What this machine is too small for.
    pub left_out: Vec<String>,
}

/// Of the binary with this allocator. `quick` does a tenth of the work.
pub fn of(allocator: Allocator, quick: bool) -> Workloads {
    if allocator == Allocator::Counting {
        return Workloads { all: counted(quick), left_out: Vec::new() };
    }
    let mut workloads = timed(quick);
    if allocator == Allocator::Mimalloc {
        workloads.all.retain(|workload| workload.allocates());
        workloads.left_out.clear();
    }
    workloads
}

fn timed(quick: bool) -> Workloads {
    let scale = if quick { 10 } else { 1 };
    let mut all: Vec<Box<dyn Workload>> = Vec::new();
    for from in [spawn::From::Inside, spawn::From::OutsideIdle, spawn::From::OutsideBusy] {
        all.push(Box::new(spawn::Spawn { from, tasks: 10_000 / scale }));
    }
    for threads in [1, 2, 4, 8, 16] {
        all.push(Box::new(spawn::Producers { threads, tasks: 12_800 / scale }));
    }
    all.push(Box::new(switching::Yield { tasks: 200, yields: 1000 / scale }));
    all.push(Box::new(switching::PingPong { rounds: 1000 / scale }));
    all.push(Box::new(switching::Chain { depth: 1000 / scale }));
    all.push(Box::new(timers::Timeouts { tasks: 1000, each: 1000 / scale }));

    for lanes in [seed::Lanes::One, seed::Lanes::Six] {
        for observed in [seed::Observed::Off, seed::Observed::On, seed::Observed::Subscribed] {
            let (commands, few_commands) = (10_000 / scale, if quick { 6 } else { 18 });
            all.push(Box::new(seed::Seed { lanes, observed, commands, few_commands }));
        }
    }
    all.push(Box::new(typed::Typed { commands: 10_000 / scale }));
    for max in [1, 2, 4, 8] {
        all.push(Box::new(gate::Gate { max, producers: 16, commands: 800 / scale }));
    }
    let mut left_out = Vec::new();
    let most_queued = if quick { 1_000_000 } else { 10_000_000 };
    for commands in [1000, 10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|&n| n <= most_queued) {
        let needed = commands * BYTES_PER_QUEUED;
        if available_memory() < needed {
            left_out.push(format!("{commands} queued commands: needs {} GiB of memory", needed >> 30));
        } else {
            all.push(Box::new(typed::Queued { commands }));
        }
    }
    all.push(Box::new(settings::Settings { commands: 10_000 / scale }));
    all.push(Box::new(observed::Observed { commands: 10_000 / scale }));
    all.push(Box::new(partitions::Partitions { keys: 64, commands: 10_000 / scale }));
    for threads in [1, 2] {
        for admitted in [true, false] {
            all.push(Box::new(limiters::Deciding { threads, admitted, decisions: 200_000 / scale }));
        }
    }

    for (us, low) in [(1, 1_000_000), (10, 1_000_000), (100, 100_000)] {
        all.push(Box::new(control::Control {
            length: Duration::from_micros(us),
            low: low / scale,
            a3s_low: 60_000 / scale,
            window: Duration::from_millis(400 / scale),
        }));
    }
    all.push(Box::new(wake::Wake { rounds: 200 / scale as usize }));
    all.extend(durable(quick));
    Workloads { all, left_out }
}

fn durable(quick: bool) -> Vec<Box<dyn Workload>> {
    use durable::{Batch, Durable, Part, Recovery};
    let scale = if quick { 10 } else { 1 };
    let few = if quick { 6 } else { 18 };
    let mut all: Vec<Box<dyn Workload>> = Vec::new();
    for part in [Part::Submit, Part::Life] {
        for producers in [1, 4, 16, 64] {
            let (commands, rewritten) = (100 / scale, (64 / producers as u64).max(2));
            all.push(Box::new(Durable { part, producers, commands, rewritten, few, stored: 0 }));
        }
    }
    for producers in [1, 64] {
        let (part, commands, rewritten) = (Part::Submit, 100 / scale, (64 / producers as u64).max(2));
        all.push(Box::new(Durable { part, producers, commands, rewritten, few, stored: 1000 }));
    }
    for (saved, batches) in [(1, 100), (64, 50), (1024, 10)] {
        all.push(Box::new(Batch { saved, batches: (batches / scale).max(2) }));
    }
    all.push(Box::new(Recovery { commands: 1_000_000 / scale }));
    all
}

/// A generous estimate of what a command takes with its ticket, to have room for the rest of the machine.
const BYTES_PER_QUEUED: u64 = 800;

fn counted(quick: bool) -> Vec<Box<dyn Workload>> {
    let watch = if quick { Duration::from_millis(500) } else { Duration::from_secs(2) };
    vec![
        Box::new(memory::Memory { commands: 50_000 }),
        Box::new(managers::Managers { ours: 10_000, peers: 1000, watch }),
    ]
}

/// Computes for that long.
fn spin(length: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < length {
        std::hint::spin_loop();
    }
}
