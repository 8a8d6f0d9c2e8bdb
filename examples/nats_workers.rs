//! Workers in several processes share one queue in NATS; one of them is killed in the middle of its work, and nothing is lost.
//!
//! ```text
//! cargo run --example nats_workers --features nats
//! ```
//!
//! It uses the server of `CORELANE_NATS_URL`; without that it starts a nats-server of its own, if one is installed. It starts
//! itself twice as a worker, kills the first one while that has commands, and waits for all results. With `--check` it fails if there
//! is no server, too.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DistributedQueue, EnqueueOptions, Executor, LaneError, Leased,
    NatsDistributedQueue, RemoteOptions, sleep,
};

const COMMANDS: usize = 40;
/// Short, so that what the killed worker had comes back soon. A heartbeat each third of it keeps what is worked on.
const LEASE: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["worker", namespace, name] => Executor::global().block_on(work(namespace, name)),
        [] => start(false),
        ["--check"] => start(true),
        _ => bail!("nothing, or --check"),
    }
}

fn options(namespace: &str) -> RemoteOptions {
    // Each worker finds the address in its environment: it may have a password in it, and what is in its arguments is seen by all.
    RemoteOptions::new(corelane::Secret::from_env("CORELANE_NATS_URL")).namespace(namespace).lease(LEASE)
}

/// A worker: takes, works, acknowledges, until it is killed.
async fn work(namespace: &str, name: &str) -> anyhow::Result<()> {
    let queue = NatsDistributedQueue::connect(options(namespace).worker_id(name)).await?;
    loop {
        let claim = Claim::new(3).lease(LEASE).wait(Duration::from_secs(5));
        for leased in queue.dequeue_leased(0, claim).await? {
            println!("{name} has {}", leased.envelope.payload);
            match work_on(&queue, name, &leased).await {
                Ok(AckOutcome::LeaseLost) | Err(LaneError::Distributed(_)) => {
                    println!("{name} has lost {}: another worker does it", leased.envelope.payload);
                }
                Ok(_) => println!("{name} has done {} (delivery {})", leased.envelope.payload, leased.delivery),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn work_on(queue: &NatsDistributedQueue, name: &str, leased: &Leased) -> corelane::Result<AckOutcome> {
    sleep(Duration::from_millis(50)).await;
    queue.extend(&leased.token, LEASE).await?;
    let result = CommandResult {
        command_id: leased.envelope.id.clone(),
        result: Ok(name.into()),
        worker_id: name.to_owned(),
        duration_ms: 50,
    };
    queue.ack(&leased.token, result).await
}

fn start(check: bool) -> anyhow::Result<()> {
    if std::env::var_os("CORELANE_NATS_URL").is_some() {
        return share(&std::env::var("CORELANE_NATS_URL")?);
    }
    match Server::start()? {
        Some(server) => share(&server.url),
        None if check => bail!("nats-server is not installed, and CORELANE_NATS_URL is not set"),
        None => {
            println!("Set CORELANE_NATS_URL, or install nats-server.");
            Ok(())
        }
    }
}

/// Enqueues, starts two workers, kills one, and waits for all results.
fn share(url: &str) -> anyhow::Result<()> {
    let namespace = format!("example-{}", std::process::id());
    let queue = RemoteOptions::new(url).namespace(namespace.as_str()).lease(LEASE);
    let queue = Executor::global().block_on(NatsDistributedQueue::connect(queue))?;
    let commands: Vec<_> = (0..COMMANDS)
        .map(|number| {
            let options = EnqueueOptions::new().keep_result(Duration::from_secs(60));
            (CommandEnvelope::new("count", "query", number.into()), options)
        })
        .collect();
    let ids: Vec<_> = commands.iter().map(|(envelope, _)| envelope.id.clone()).collect();
    for receipt in Executor::global().block_on(queue.enqueue_batch(commands)) {
        receipt?;
    }
    println!("{COMMANDS} commands are in the queue");

    let mut first = Worker::start(url, &namespace, "first")?;
    first.until(|line| line.contains("first has done"))?;
    first.until(|line| line.starts_with("first has ") && !line.contains("done"))?;
    first.0.kill().context("the first worker can not be killed")?;
    println!("the first worker is killed, with commands that it has not done");

    let mut second = Worker::start(url, &namespace, "second")?;
    second.show();
    let mut done = BTreeMap::<String, usize>::new();
    for id in &ids {
        let result = Executor::global().block_on(queue.result(id, Duration::from_secs(60)))?;
        let result = result.with_context(|| format!("command {id} is lost"))?;
        *done.entry(result.worker_id).or_default() += 1;
    }
    let depth = Executor::global().block_on(queue.depth(0))?;
    ensure!((depth.ready, depth.leased, depth.dead) == (0, 0, 0), "something is left: {depth:?}");
    println!("all {COMMANDS} are done: {done:?}");
    ensure!(done.len() == 2, "one of the workers has done nothing");
    Ok(())
}

/// A worker's process, killed when it is dropped.
struct Worker(Child);

impl Worker {
    fn start(url: &str, namespace: &str, name: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", namespace, name]).env("CORELANE_NATS_URL", url).stdout(Stdio::piped());
        Ok(Self(command.spawn().context("a worker can not be started")?))
    }

    /// Shows what it says, until it says this.
    fn until(&mut self, said: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let output = self.0.stdout.as_mut().context("its output is not read twice")?;
        // Not more than there is: what follows is read by the next call.
        let mut line = Vec::new();
        for byte in std::io::Read::bytes(output) {
            match byte? {
                b'\n' => {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    println!("  {text}");
                    if said(&text) {
                        return Ok(());
                    }
                    line.clear();
                }
                byte => line.push(byte),
            }
        }
        bail!("the worker has ended")
    }

    /// Shows what it says from now on.
    fn show(&mut self) {
        let Some(output) = self.0.stdout.take() else { return };
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                println!("  {line}");
            }
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error: it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of this program's own, on a free port, in a folder for temporary files.
struct Server {
    url: String,
    folder: PathBuf,
    child: Child,
}

impl Server {
    /// None if it is not installed.
    fn start() -> anyhow::Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian keeps it where programs for administrators are.
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let Some(program) = folders.map(|folder| folder.join("nats-server")).find(|path| path.is_file()) else {
            return Ok(None);
        };
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let folder = std::env::temp_dir().join(format!("corelane-nats-workers-{}", std::process::id()));
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&folder);
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("nats-server can not be started")?;
        let mut server = Self { url: format!("nats://127.0.0.1:{port}"), folder, child };
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(server.child.try_wait()?.is_none(), "nats-server has ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(server))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error: it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
