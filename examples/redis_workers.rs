//! A queue in Redis that several processes work on: one of them is killed, and nothing is lost.
//!
//! ```text
//! cargo run --features redis --example redis_workers             # with the server of CORELANE_REDIS_URL
//! cargo run --features redis --example redis_workers -- --check  # with one of its own, where that is not set
//! ```
//!
//! It puts reports to be written into the queue and starts itself twice more, as workers: Ada, who is killed in the middle of her
//! work, and Ben. What Ada had comes back when her leases end, and Ben does it. Fails if not every report was written. With
//! `--check`, and where neither is a server named nor `redis-server` installed, it says so and does nothing.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DistributedQueue, EnqueueOptions, Executor, Leased,
    RedisDistributedQueue, RemoteOptions, Result, Secret, sleep,
};
use serde_json::json;

const REPORTS: usize = 40;

/// What a worker does not end, or extend, within this time, others get.
const LEASE: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("worker") => {
            let name = arguments.next().context("which worker?")?;
            Executor::global().block_on(work(&name))
        }
        Some("--check") if std::env::var_os("CORELANE_REDIS_URL").is_none() => match OwnServer::start()? {
            Some(server) => server.run_on_it(),
            None => {
                println!("SKIPPED: redis-server is not installed, and CORELANE_REDIS_URL is not set");
                Ok(())
            }
        },
        None | Some("--check") => Executor::global().block_on(share_out()),
        Some(other) => bail!("unknown: {other}"),
    }
}

/// How all processes open the queue.
async fn open(name: &str) -> Result<RedisDistributedQueue> {
    let options = RemoteOptions::new(Secret::from_env("CORELANE_REDIS_URL")).namespace("example-reports");
    RedisDistributedQueue::connect(options.worker_id(name)).await
}

/// The first process: puts the work in, and waits for what becomes of it.
async fn share_out() -> anyhow::Result<()> {
    let queue = open("the office").await?;
    println!("the queue keeps what it accepts as {:?}", queue.capabilities().durability);
    // The result is kept for a while: that is how the end of a command is heard of in another process.
    let options = EnqueueOptions::new().keep_result(Duration::from_secs(600)).max_deliveries(5);
    let reports = (1..=REPORTS).map(|number| CommandEnvelope::new("write_report", "reports", json!(number)));
    let receipts = queue.enqueue_batch(reports.map(|report| (report, options.clone())).collect()).await;
    let mut ids = Vec::new();
    for receipt in receipts {
        ids.push(receipt?.command_id);
    }

    let mut ada = start_worker("Ada")?;
    let mut ben = start_worker("Ben")?;
    let mut written: BTreeMap<String, usize> = BTreeMap::new();
    for (number, id) in ids.iter().enumerate() {
        let result = queue.result(id, Duration::from_secs(60)).await?.context("a report was not written")?;
        ensure!(result.result.is_ok(), "{result:?}");
        *written.entry(result.worker_id).or_default() += 1;
        if number + 1 == REPORTS / 4 {
            ada.kill()?;
            println!("  ... and here Ada is killed, with what she has");
        }
    }
    ada.wait()?;
    ensure!(ben.wait()?.success(), "Ben has failed");
    for (worker, reports) in &written {
        println!("{worker} has written {reports}");
    }
    ensure!(written.values().sum::<usize>() == REPORTS && written.len() == 2, "{written:?}");
    println!("all {REPORTS} reports are written");
    queue.close(Duration::from_secs(5)).await?;
    Ok(())
}

fn start_worker(name: &str) -> anyhow::Result<Child> {
    Ok(Command::new(std::env::current_exe()?).args(["worker", name]).spawn()?)
}

/// A worker: takes what there is until nothing comes for longer than a lease.
async fn work(name: &str) -> anyhow::Result<()> {
    let queue = open(name).await?;
    loop {
        let claim = Claim::new(4).lane("reports", 4).lease(LEASE).wait(3 * LEASE);
        let mut taken = queue.dequeue_leased(0, claim).await?;
        if taken.is_empty() {
            queue.close(Duration::from_secs(5)).await?;
            return Ok(());
        }
        while !taken.is_empty() {
            let leased = taken.remove(0);
            let result = write(name, &leased).await;
            let result = CommandResult {
                command_id: leased.envelope.id.clone(),
                result: Ok(result),
                worker_id: name.to_owned(),
                duration_ms: 50,
            };
            if queue.ack(&leased.token, result).await? == AckOutcome::LeaseLost {
                println!("  {name} was too late with {}: somebody else has it", leased.envelope.payload);
            }
            // What waits here is not to be given to others meanwhile; what is lost nevertheless is theirs.
            let tokens: Vec<_> = taken.iter().map(|leased| leased.token.clone()).collect();
            let mut kept = queue.extend_batch(&tokens, LEASE).await.into_iter();
            taken.retain(|_| kept.next().is_some_and(|extended| extended.is_ok()));
        }
    }
}

/// May happen twice, where a worker is killed between this and the acknowledgement: the fence tells the later one.
async fn write(name: &str, leased: &Leased) -> serde_json::Value {
    sleep(Duration::from_millis(50)).await;
    let again = if leased.delivery > 1 { ", which was begun before" } else { "" };
    println!("  {name} writes report {}{again}", leased.envelope.payload);
    json!({ "pages": 3, "fence": leased.token.fence() })
}

/// A server of this example's own, in a folder of its own.
struct OwnServer {
    folder: PathBuf,
    child: Child,
    url: String,
}

impl OwnServer {
    /// None if it is not installed.
    fn start() -> anyhow::Result<Option<Self>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = std::env::temp_dir().join(format!("corelane-redis-workers-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(&folder);
        // What was acknowledged is on the disk, and nothing is evicted.
        server.args(["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]);
        let Ok(child) = server.stdout(Stdio::null()).spawn() else {
            fs::remove_dir_all(&folder)?;
            return Ok(None);
        };
        Ok(Some(Self { folder, child, url: format!("redis://127.0.0.1:{port}") }))
    }

    /// Starts this program again, with the server's address: connecting waits until it answers.
    fn run_on_it(self) -> anyhow::Result<()> {
        let status = Command::new(std::env::current_exe()?).env("CORELANE_REDIS_URL", &self.url).status()?;
        ensure!(status.success(), "it has failed: {status}");
        Ok(())
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // It may be gone already, and so may its folder.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
