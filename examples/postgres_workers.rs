//! Two processes that share a queue in PostgreSQL, one of which is killed in the middle of its work. Nothing is lost.
//!
//! ```text
//! CORELANE_POSTGRES_URL=postgres://user:password@localhost/database cargo run --features postgres --example postgres_workers
//! cargo run --features postgres --example postgres_workers -- --check
//! ```
//!
//! The program starts itself twice as a worker, puts commands in, kills one worker while it has some of them, and fails if not
//! every command was ended, once. With `--check` and without an address it starts a server of its own, if PostgreSQL is
//! installed.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "of the tests, which use the rest")]
#[path = "../tests/backends/servers/mod.rs"]
mod servers;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DistributedQueue, EnqueueOptions, Executor, LaneError,
    Leased, PostgresDistributedQueue, RemoteOptions, Secret, sleep,
};
use serde_json::json;

use servers::Server as _;
use servers::postgres::Postgres;

/// Where the server is.
const URL: &str = "CORELANE_POSTGRES_URL";
const COMMANDS: usize = 60;
/// Short, so that what the killed worker had is back soon.
const LEASE: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let argument = env::args().nth(1);
    match argument.as_deref() {
        Some("worker") => Executor::global().block_on(work()),
        _ if env::var_os(URL).is_some() => share(&env::var(URL)?),
        Some("--check") if Postgres::is_installed() => share(&Postgres::start().url()),
        _ => {
            println!("Set {URL} to the address of a PostgreSQL server: postgres://user:password@localhost/database");
            println!("or install PostgreSQL, and start this with --check.");
            Ok(())
        }
    }
}

/// A worker: takes commands and ends them, until there are none for a while.
async fn work() -> anyhow::Result<()> {
    let namespace = env::args().nth(2).context("the namespace is the second argument")?;
    let options = RemoteOptions::new(Secret::from_env(URL)).namespace(namespace);
    let queue = PostgresDistributedQueue::connect(options).await?;
    say("ready")?;
    let mut patience = Duration::from_secs(60);
    loop {
        let claim = Claim::new(4).lane("mail", 4).lease(LEASE).wait(patience);
        let taken = queue.dequeue_leased(0, claim).await?;
        // Longer than it takes until what another worker has lost comes back.
        patience = LEASE * 2;
        if taken.is_empty() {
            return Ok(queue.close(Duration::from_secs(5)).await?);
        }
        for leased in taken {
            send_mail(&queue, &leased).await?;
        }
    }
}

async fn send_mail(queue: &PostgresDistributedQueue, leased: &Leased) -> anyhow::Result<()> {
    // The lease may have run down while the commands before it were run: leased anew, or it is another one's by now.
    if let Err(error) = queue.extend(&leased.token, LEASE).await {
        return say(&format!("lost {}: {error}", leased.envelope.payload["to"]));
    }
    // Here something is done. What must happen once is given the fence, and refuses lower ones than it has seen.
    sleep(Duration::from_millis(30)).await;
    let result = CommandResult {
        command_id: leased.envelope.id.clone(),
        result: Ok(json!("sent")),
        worker_id: queue.worker_id().clone(),
        duration_ms: 30,
    };
    if queue.ack(&leased.token, result).await? == AckOutcome::Applied {
        say(&format!("ended {} in delivery {}", leased.envelope.payload["to"], leased.delivery))?;
    }
    Ok(())
}

/// At once: who is killed says nothing later.
fn say(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}

async fn put_in(queue: &PostgresDistributedQueue) -> Result<(), LaneError> {
    let commands = (0..COMMANDS).map(|number| {
        let mail = CommandEnvelope::new("send", "mail", json!({ "to": number }));
        (mail, EnqueueOptions::new())
    });
    for receipt in queue.enqueue_batch(commands.collect()).await {
        receipt?;
    }
    Ok(())
}

/// Puts commands in for two workers, and kills one of them.
fn share(url: &str) -> anyhow::Result<()> {
    // By its environment, since everybody can see what a process is started with.
    let namespace = format!("example-{}", std::process::id());
    let (said, heard) = mpsc::channel();
    let worker = |number: usize| -> anyhow::Result<Child> {
        let mut worker = Command::new(env::current_exe()?)
            .args(["worker", &namespace])
            .env(URL, url)
            .stdout(Stdio::piped())
            .spawn()
            .context("a worker can not be started")?;
        let (output, said) = (worker.stdout.take().context("its output is read")?, said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Who listens may have ended.
                drop(said.send((number, line)));
            }
        });
        Ok(worker)
    };
    let options = RemoteOptions::new(url).namespace(namespace.as_str());
    let queue = Executor::global().block_on(PostgresDistributedQueue::connect(options))?;
    let (mut first, mut second) = (worker(1)?, worker(2)?);
    drop(said);

    let mut ended: BTreeMap<String, usize> = BTreeMap::new();
    let (mut ready, mut by_first, mut killed) = (0, 0, false);
    for (number, line) in heard {
        println!("worker {number}: {line}");
        if line == "ready" {
            ready += 1;
            if ready == 2 {
                Executor::global().block_on(put_in(&queue))?;
            }
            continue;
        }
        if let Some(rest) = line.strip_prefix("ended ") {
            let (mail, _) = rest.split_once(' ').unwrap_or((rest, ""));
            *ended.entry(mail.to_owned()).or_default() += 1;
        }
        by_first += usize::from(number == 1);
        if by_first == 6 && !killed {
            println!("worker 1 is killed");
            first.kill()?;
            killed = true;
        }
    }
    first.wait()?;
    ensure!(second.wait()?.success(), "worker 2 has failed");
    ensure!(killed, "worker 1 was to be killed in the middle of its work");

    let (depth, letters) = Executor::global().block_on(async {
        let found = (queue.depth(0).await?, queue.dead_letters(DeadPage::first(10)).await?);
        queue.close(Duration::from_secs(5)).await?;
        Ok::<_, LaneError>(found)
    })?;
    ensure!(letters.is_empty(), "some were given up: {letters:?}");
    ensure!((depth.ready, depth.delayed, depth.leased) == (0, 0, 0), "some are left: {depth:?}");
    ensure!(ended.values().all(|times| *times == 1), "some were ended twice: {ended:?}");
    // One may have been ended whose worker was killed before it could say so.
    ensure!(ended.len() + 1 >= COMMANDS, "only {} of {COMMANDS} were ended", ended.len());
    println!("{COMMANDS} commands, one worker killed, nothing lost");
    Ok(())
}
