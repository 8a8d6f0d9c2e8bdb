//! One of the processes that share a queue. It says a word for each thing that it has done, and is told when to go on.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::channel::oneshot;

use crate::contenders::{Calls, Workers, apalis, corelane, plain_nats, plain_postgres, plain_redis};
use crate::plan::{Backend, Contender, Kind, Task};

pub const READY: &str = "ready";
pub const GO: &str = "go";
pub const ENQUEUED: &str = "enqueued";
pub const WORK: &str = "work";
pub const STOP: &str = "stop";
pub const DONE: &str = "done";

pub fn run(task: &Task) -> Result<()> {
    use Backend::{Nats, Postgres, Redis};
    use Contender::{Apalis, Corelane, Plain};
    // What a client of the server needs; corelane's has a thread of its own, and its workers are no runtime's.
    let client = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let workers = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match (task.work.kind, task.contender, task.work.backend) {
        (Kind::Calls, Corelane, _) => {
            futures::executor::block_on(async { call(task, corelane::Queue::connect(task).await?).await })
        }
        (Kind::Workers, Corelane, _) => {
            futures::executor::block_on(async { work(task, corelane::Queue::connect(task).await?).await })
        }
        (_, Plain, Redis) => client()?.block_on(async { call(task, plain_redis::Queue::connect(task).await?).await }),
        (_, Plain, Postgres) => {
            client()?.block_on(async { call(task, plain_postgres::Queue::connect(task).await?).await })
        }
        (_, Plain, Nats) => client()?.block_on(async { call(task, plain_nats::Queue::connect(task).await?).await }),
        (_, Apalis, Redis) => workers()?.block_on(async { work(task, apalis::Redis::connect(task).await?).await }),
        (_, Apalis, Postgres) => {
            workers()?.block_on(async { work(task, apalis::Postgres::connect(task).await?).await })
        }
        (_, Apalis, Nats) => anyhow::bail!("apalis-nats needs a newer server"),
    }
}

async fn call(task: &Task, mut queue: impl Calls) -> Result<()> {
    println!("{READY}");
    hear(GO)?;
    let (batch, share) = (task.work.batch, task.share);
    let (mut enqueued, mut ended) = (0, 0);
    while ended < share {
        let more = batch.min(share - enqueued);
        if more > 0 {
            queue.enqueue(enqueued..enqueued + more).await?;
            enqueued += more;
        }
        let claimed = queue.claim(usize::try_from(batch.min(share - ended))?).await?;
        if claimed.is_empty() {
            // Another process has what this one has put there, and has not yet put there as much as that.
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        ended += claimed.len() as u64;
        queue.ack(claimed).await?;
    }
    println!("{DONE}");
    Ok(())
}

async fn work(task: &Task, mut queue: impl Workers) -> Result<()> {
    println!("{READY}");
    hear(GO)?;
    let mut enqueued = 0;
    while enqueued < task.share {
        let more = task.work.batch.min(task.share - enqueued);
        queue.enqueue(enqueued..enqueued + more).await?;
        enqueued += more;
    }
    println!("{ENQUEUED}");
    hear(WORK)?;
    let handled = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&handled);
    std::thread::spawn(move || {
        let mut said = 0;
        loop {
            std::thread::sleep(Duration::from_millis(2));
            let now = counted.load(Ordering::Relaxed);
            if now != said {
                println!("{now}");
                said = now;
            }
        }
    });
    let (stopping, stop) = oneshot::channel();
    std::thread::spawn(move || stopping.send(hear(STOP)));
    queue.work(handled, async { stop.await.context("nobody asks to stop")? }).await?;
    println!("{DONE}");
    Ok(())
}

/// Waits for this word.
fn hear(word: &str) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    ensure!(line.trim() == word, "{word} was expected, and {line:?} was heard");
    Ok(())
}
