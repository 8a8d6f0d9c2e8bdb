//! Commands of one key on one worker: what that costs, and how far it is so.

use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use corelane::{EventEmitter, Executor, LaneConfig, PartitionConfig, QueueManagerBuilder, SubmitOptions, stable_hash};
use futures_lite::future::block_on;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::cast::Cast;
use crate::measure::{Contender, Unit, Workload};
use crate::results::Role;

pub struct Partitions {
    pub keys: u64,
    pub commands: u64,
}

/// Of a key: as much as a few hundred kilobytes for all of them, which a CPU would rather not fetch from another one.
struct State {
    numbers: Vec<u64>,
    /// How many of its commands began on which thread.
    seen: Vec<(ThreadId, u64)>,
}

type States = Arc<Vec<Mutex<State>>>;

impl State {
    fn touch(&mut self) -> u64 {
        let thread = std::thread::current().id();
        match self.seen.iter_mut().find(|(id, _)| *id == thread) {
            Some((_, count)) => *count += 1,
            None => self.seen.push((thread, 1)),
        }
        self.numbers.iter_mut().for_each(|number| *number += 1);
        self.numbers[0]
    }
}

fn new_states(keys: u64) -> States {
    let state = || Mutex::new(State { numbers: vec![0; 1024], seen: Vec::new() });
    Arc::new((0..keys).map(|_| state()).collect())
}

struct Touch {
    states: States,
    key: u64,
}

impl Touch {
    fn touch(&self) -> u64 {
        self.states[self.key as usize].lock().expect("nobody panics").touch()
    }
}

impl corelane::TypedCommand for Touch {
    type Output = u64;

    async fn execute(&self) -> corelane::Result<u64> {
        Ok(self.touch())
    }

    fn command_type(&self) -> &str {
        "touch"
    }
}

impl Workload for Partitions {
    fn name(&self) -> String {
        format!("partitions/{}-keys", self.keys)
    }

    fn what(&self) -> String {
        format!(
            "a thread submits {} commands of {} keys in turns, each of which changes the 8 KiB of its key, then awaits each; \
             *elsewhere* are those that did not begin on the thread where most of their key did. tokio: a runtime of one \
             thread for each part of the keys",
            self.commands, self.keys
        )
    }

    fn figures(&self) -> &'static [(&'static str, Unit)] {
        &[("time", "ns/op"), ("elsewhere", "%")]
    }

    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        let Self { keys, commands } = *self;
        let (workers, executor) = (cast.workers, cast.corelane().0);
        let ours = |name, partitions: PartitionConfig| {
            let executor = executor.clone();
            let run = move |states: &States| corelane(&executor, partitions.clone(), states, commands);
            Contender::new(name, Role::Ours, move || measured(keys, commands, &run))
        };
        let tokio = SingleThreads::start(workers);
        vec![
            ours("corelane", PartitionConfig::hash(workers)),
            ours("corelane, no partitions", PartitionConfig::none()),
            Contender::new("tokio, a runtime each", Role::Peer, move || {
                measured(keys, commands, &|states: &States| tokio.run(states, commands))
            }),
        ]
    }
}

/// The figures of one run, all of which it has done.
fn measured(keys: u64, commands: u64, run: &dyn Fn(&States) -> Duration) -> Vec<f64> {
    let states = new_states(keys);
    let took = run(&states);
    let (mut all, mut at_home) = (0, 0);
    for state in states.iter() {
        let state = state.lock().expect("nobody panics");
        let of_key: u64 = state.seen.iter().map(|(_, count)| count).sum();
        assert!(state.numbers.iter().all(|number| *number == of_key), "each command has changed all of it");
        all += of_key;
        at_home += state.seen.iter().map(|(_, count)| *count).max().unwrap_or(0);
    }
    assert_eq!(all, commands);
    vec![took.as_nanos() as f64 / commands as f64, (all - at_home) as f64 / all as f64 * 100.0]
}

fn corelane(executor: &Executor, partitions: PartitionConfig, states: &States, commands: u64) -> Duration {
    let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
    let builder = builder.with_partitions(partitions).with_lane("lane", LaneConfig::new(1, 100), 2);
    let manager = block_on(builder.build()).expect("the configuration is usable");
    block_on(manager.start()).expect("a new queue can be started");
    let lane = manager.lane("lane").expect("it was just given");

    let begun = Instant::now();
    let submit = |number: u64| {
        let key = number % states.len() as u64;
        let command = Touch { states: Arc::clone(states), key };
        lane.submit_typed_with(command, SubmitOptions::new().key(key)).expect("the lane is open")
    };
    let tickets: Vec<_> = (0..commands).map(submit).collect();
    for ticket in tickets {
        block_on(ticket).expect("the command settles").expect("the command succeeds");
    }
    begun.elapsed()
}

/// Runtimes that end with this.
struct SingleThreads(Vec<(Handle, oneshot::Sender<()>)>);

impl SingleThreads {
    fn start(threads: usize) -> Self {
        let one = || {
            let (ending, end) = oneshot::channel();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(end));
            (handle, ending)
        };
        Self((0..threads).map(|_| one()).collect())
    }

    fn run(&self, states: &States, commands: u64) -> Duration {
        let begun = Instant::now();
        let spawn = |number: u64| {
            let key = number % states.len() as u64;
            let home = stable_hash(&key.to_string()) as usize % self.0.len();
            let command = Touch { states: Arc::clone(states), key };
            self.0[home].0.spawn(async move { command.touch() })
        };
        let handles: Vec<_> = (0..commands).map(spawn).collect();
        for handle in handles {
            block_on(handle).expect("the task succeeds");
        }
        begun.elapsed()
    }
}
