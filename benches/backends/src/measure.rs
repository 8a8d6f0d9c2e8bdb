//! Starts servers and processes, and takes the time: contenders take turns, and each run begins with an empty server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::{Machine, commit, load};
use crate::plan::{Backend, Contender, Kind, Selection, Task, Work};
use crate::process::{DONE, ENQUEUED, GO, READY, STOP, WORK};
use crate::servers::nats::Nats;
use crate::servers::postgres::Postgres;
use crate::servers::redis::Redis;
use crate::servers::{Server, started};

/// Long enough that only a hang reaches it.
const HANG: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub date: String,
    pub commit: String,
    pub machine: Machine,
    pub load_before: [f64; 3],
    pub load_after: [f64; 3],
    pub seconds: u64,
    pub repeats: usize,
    pub servers: BTreeMap<String, String>,
    pub left_out: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub work: Work,
    pub contender: Contender,
    pub commands: u64,
    /// Of each repeat.
    pub times: Vec<Times>,
}

/// Seconds of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Times {
    /// Until everything was enqueued; with [`Kind::Calls`] that is not told apart.
    pub enqueue: Option<f64>,
    /// Until everything had ended, without what was enqueued before.
    pub complete: f64,
}

impl Times {
    pub fn total(&self) -> f64 {
        self.enqueue.unwrap_or(0.0) + self.complete
    }
}

pub fn all(selection: &Selection) -> Result<Results> {
    let begun = Instant::now();
    let mut results = Results {
        date: chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
        commit: commit(),
        machine: Machine::this(),
        load_before: load(),
        load_after: load(),
        seconds: 0,
        repeats: if selection.quick { 1 } else { 3 },
        servers: BTreeMap::new(),
        left_out: Vec::new(),
        rows: Vec::new(),
    };
    let works = Work::all(&selection.part);
    server::<Redis>(Backend::Redis, &works, selection, &mut results)?;
    server::<Postgres>(Backend::Postgres, &works, selection, &mut results)?;
    server::<Nats>(Backend::Nats, &works, selection, &mut results)?;
    results.seconds = begun.elapsed().as_secs();
    results.load_after = load();
    Ok(results)
}

/// A server that begins anew.
trait Empty: Server {
    fn empty(&mut self) -> Result<()>;

    fn version(&self) -> String;
}

impl Empty for Redis {
    fn empty(&mut self) -> Result<()> {
        self.say::<()>(&["FLUSHALL"]);
        Ok(())
    }

    fn version(&self) -> String {
        let info: String = self.say(&["INFO", "server"]);
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
        format!("{version}, appendonly yes, appendfsync always")
    }
}

impl Empty for Postgres {
    fn empty(&mut self) -> Result<()> {
        let schemas =
            self.sql("SELECT string_agg(nspname, ',') FROM pg_namespace WHERE nspname ~ '^((corelane_)?run_|apalis$)'");
        for schema in schemas.split(',').filter(|schema| !schema.is_empty()) {
            self.sql(&format!("DROP SCHEMA \"{schema}\" CASCADE"));
        }
        self.sql("DROP TABLE IF EXISTS public._sqlx_migrations");
        Ok(())
    }

    fn version(&self) -> String {
        format!("{}, its own settings (synchronous_commit on)", self.sql("SHOW server_version"))
    }
}

impl Empty for Nats {
    fn empty(&mut self) -> Result<()> {
        *self = Self::start();
        Ok(())
    }

    fn version(&self) -> String {
        let program = crate::servers::find(Self::PROGRAM).expect("it runs");
        let said = Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().replace("nats-server: v", "");
        format!("{said}, files, its own settings (synced every 2 minutes)")
    }
}

fn server<S: Empty>(backend: Backend, works: &[Work], selection: &Selection, results: &mut Results) -> Result<()> {
    let works: Vec<_> = works.iter().copied().filter(|work| work.backend == backend).collect();
    if works.is_empty() {
        return Ok(());
    }
    let Some(mut server) = started::<S>() else {
        results.left_out.push(format!("{}: its server is not installed", backend.name()));
        return Ok(());
    };
    results.servers.insert(backend.name().into(), server.version());
    for work in works {
        let commands = if selection.quick { work.commands() / 8 } else { work.commands() };
        let contenders = work.contenders();
        let mut rows: Vec<_> =
            contenders.iter().map(|&contender| Row { work, contender, commands, times: Vec::new() }).collect();
        // The first one warms up, and is not counted.
        for repeat in 0..=results.repeats {
            for turn in 0..rows.len() {
                let at = (turn + repeat) % contenders.len();
                server.empty()?;
                match run(&server.url(), work, contenders[at], commands) {
                    Ok(times) if repeat > 0 => rows[at].times.push(times),
                    Ok(_) => {}
                    // A peer's hang is the peer's: it is told of, and the run does not count.
                    Err(error) if contenders[at] == Contender::Apalis => {
                        results.left_out.push(format!("a run of {} by apalis: {error:#}", work.name()));
                    }
                    Err(error) => return Err(error.context(work.name())),
                }
            }
        }
        eprintln!("{}", work.name());
        results.rows.extend(rows);
    }
    Ok(())
}

/// One run, by processes that share the queue.
fn run(url: &str, work: Work, contender: Contender, commands: u64) -> Result<Times> {
    static RUN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let run = RUN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let share = commands / work.processes;
    let mut processes = Vec::new();
    let (said, heard) = channel();
    for process in 0..work.processes {
        let namespace = format!("run_{run}");
        let task = Task { work, contender, url: url.to_owned(), namespace, process, share };
        processes.push(Process::start(&task, usize::try_from(process)?, said.clone())?);
        // The first one makes what the others find.
        hear_all(&heard, 1, READY)?;
    }
    let all = processes.len();
    let begun = Instant::now();
    tell_all(&mut processes, GO)?;
    let (mut enqueue, mut enqueued) = (None, begun);
    if work.kind == Kind::Workers {
        hear_all(&heard, all, ENQUEUED)?;
        enqueue = Some(begun.elapsed().as_secs_f64());
        enqueued = Instant::now();
        tell_all(&mut processes, WORK)?;
        hear_counts(&heard, all, share * work.processes)?;
    } else {
        hear_all(&heard, all, DONE)?;
    }
    let times = Times { enqueue, complete: enqueued.elapsed().as_secs_f64() };
    if work.kind == Kind::Workers {
        tell_all(&mut processes, STOP)?;
        hear_all(&heard, all, DONE)?;
    }
    for process in &mut processes {
        ensure!(process.child.wait()?.success(), "a process has failed");
    }
    Ok(times)
}

struct Process {
    child: Child,
}

impl Process {
    fn start(task: &Task, number: usize, said: Sender<(usize, String)>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("process").arg(serde_json::to_string(task)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
        std::thread::spawn(move || pass_on(lines, number, &said));
        Ok(Self { child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(lines: Lines<BufReader<ChildStdout>>, number: usize, said: &Sender<(usize, String)>) {
    for line in lines.map_while(|line| line.ok()) {
        if said.send((number, line)).is_err() {
            return;
        }
    }
    // An error: nobody listens any more.
    let _ = said.send((number, String::new()));
}

fn tell_all(processes: &mut [Process], word: &str) -> Result<()> {
    for process in processes {
        let stdin = process.child.stdin.as_mut().context("it was piped")?;
        stdin.write_all(format!("{word}\n").as_bytes())?;
    }
    Ok(())
}

/// Waits until so many of them have said this, whatever they count meanwhile.
fn hear_all(heard: &Receiver<(usize, String)>, many: usize, word: &str) -> Result<()> {
    let mut said = BTreeSet::new();
    while said.len() < many {
        let (process, line) = heard.recv_timeout(HANG).with_context(|| format!("waiting for {word}"))?;
        if line == word {
            said.insert(process);
        } else if line.is_empty() && !said.contains(&process) {
            bail!("process {process} has ended before it said {word}");
        }
    }
    Ok(())
}

/// Waits until they have counted so many together.
fn hear_counts(heard: &Receiver<(usize, String)>, processes: usize, wanted: u64) -> Result<()> {
    let mut counts = vec![0; processes];
    while counts.iter().sum::<u64>() < wanted {
        let counted = || format!("{counts:?} of {wanted} are done");
        let (process, line) = heard.recv_timeout(HANG).with_context(counted)?;
        counts[process] = line.parse().with_context(|| format!("process {process} has said {line:?}"))?;
    }
    ensure!(counts.iter().sum::<u64>() == wanted, "more was done than there was: {counts:?} of {wanted}");
    Ok(())
}
