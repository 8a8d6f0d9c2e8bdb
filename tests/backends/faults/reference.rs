//! The reference, reached over TCP: the suite and its checker are tried with it, whatever servers are installed. It never forgets
//! anything, and nothing is done well that has to do with connections: each call has one of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, Depth, DistributedError, DistributedQueue,
    EnqueueOptions, LaneError, LeaseToken, Leased, LocalDistributedQueue, Nack, PartitionConfig, PartitionId, Receipt,
    RemoteDeadLetter, Result, WorkerId,
};
use futures::executor::block_on;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::servers::Server;

/// A server within the test's process.
pub(crate) struct Reference {
    queue: Arc<LocalDistributedQueue>,
    port: u16,
    listens: Arc<AtomicBool>,
    /// To end them when it is killed.
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Reference {
    fn listen(&mut self) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).expect("the port is free");
        self.port = listener.local_addr().expect("a listener has an address").port();
        self.listens = Arc::new(AtomicBool::new(true));
        let (queue, listens) = (Arc::clone(&self.queue), Arc::clone(&self.listens));
        let connections = Arc::clone(&self.connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if !listens.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(other) = stream.try_clone() else { continue };
                connections.lock().unwrap_or_else(PoisonError::into_inner).push(other);
                let queue = Arc::clone(&queue);
                // Who asks may be gone.
                std::thread::spawn(move || _ = serve(&queue, stream));
            }
        });
    }
}

impl Server for Reference {
    const NAME: &'static str = "reference";
    const PROGRAM: &'static str = "";

    fn start() -> Self {
        let mut server = Self {
            queue: Arc::new(LocalDistributedQueue::new(PartitionConfig::hash(super::worker::PARTITIONS))),
            port: 0,
            listens: Arc::default(),
            connections: Arc::default(),
        };
        server.listen();
        server
    }

    fn url_at(&self, port: u16) -> String {
        port.to_string()
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn kill(&mut self) {
        self.listens.store(false, Ordering::SeqCst);
        // The listener sees it when it is asked.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Most have ended.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    fn restart(&mut self) {
        self.listen();
    }

    fn process(&self) -> Option<u32> {
        None
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Serialize, Deserialize)]
enum Call {
    Enqueue(CommandEnvelope, EnqueueOptions),
    Dequeue { partition: PartitionId, max: usize, lease: Duration, wait: Duration },
    Extend(LeaseToken, Duration),
    Ack(LeaseToken, CommandResult),
    Release(LeaseToken),
    Retry(LeaseToken, Duration, String),
    DeadLetter(LeaseToken, DeadReason),
    DeadLetters { after: Option<String>, limit: usize },
    Depth(PartitionId),
}

#[derive(Serialize, Deserialize)]
struct Taken {
    envelope: CommandEnvelope,
    token: LeaseToken,
    delivery: u32,
    lease: Option<Duration>,
}

/// Answers one call.
fn serve(queue: &LocalDistributedQueue, mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    // One that was cut is not done.
    let Ok(call) = serde_json::from_str(&line) else { return Ok(()) };
    let answer = block_on(answer(queue, call)).map_err(|error| match error {
        LaneError::Distributed(DistributedError::LeaseLost { .. }) => None,
        error => Some(error.to_string()),
    });
    let answer = serde_json::to_string(&answer).expect("an answer is data");
    stream.write_all(format!("{answer}\n").as_bytes())
}

async fn answer(queue: &LocalDistributedQueue, call: Call) -> Result<Value> {
    let value = match call {
        Call::Enqueue(envelope, options) => {
            let receipt = queue.enqueue_with(envelope, options).await?;
            json!([receipt.command_id, receipt.duplicate])
        }
        Call::Dequeue { partition, max, lease, wait } => {
            let taken = queue.dequeue_leased(partition, Claim::new(max).lease(lease).wait(wait)).await?;
            let taken = taken.into_iter().map(|leased| {
                let Leased { envelope, token, delivery, lease, .. } = leased;
                json!(Taken { envelope, token, delivery, lease })
            });
            taken.collect()
        }
        Call::Extend(token, lease) => json!(queue.extend(&token, lease).await?),
        Call::Ack(token, result) => named(queue.ack(&token, result).await?),
        Call::Release(token) => named(queue.nack(&token, Nack::Release).await?),
        Call::Retry(token, delay, error) => named(queue.nack(&token, Nack::RetryAfter { delay, error }).await?),
        Call::DeadLetter(token, reason) => named(queue.dead_letter(&token, reason).await?),
        Call::DeadLetters { after, limit } => {
            let mut page = DeadPage::first(limit);
            page.after = after;
            json!(queue.dead_letters(page).await?)
        }
        Call::Depth(partition) => {
            let depth = queue.depth(partition).await?;
            json!([depth.ready, depth.delayed, depth.leased, depth.dead])
        }
    };
    Ok(value)
}

fn named(outcome: AckOutcome) -> Value {
    json!(match outcome {
        AckOutcome::Applied => "applied",
        AckOutcome::AlreadyApplied => "already",
        _ => "lost",
    })
}

/// A handle of such a server's queue.
pub(crate) struct ReferenceQueue {
    port: u16,
    worker_id: WorkerId,
}

impl ReferenceQueue {
    pub(crate) fn connect(port: &str) -> Self {
        Self { port: port.parse().expect("a port is a number"), worker_id: "reference".to_owned() }
    }

    fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let server = || format!("port {}", self.port);
        let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let mut stream =
            connected.map_err(|error| DistributedError::Unavailable { server: server(), cause: error.to_string() })?;
        let unknown = |cause: String| DistributedError::OutcomeUnknown { server: server(), cause };
        let call = serde_json::to_string(call).expect("a call is data");
        let mut line = String::new();
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .and_then(|()| stream.write_all(format!("{call}\n").as_bytes()))
            .and_then(|()| BufReader::new(&stream).read_line(&mut line))
            .map_err(|error| unknown(error.to_string()))?;
        let answer: std::result::Result<T, Option<String>> =
            serde_json::from_str(&line).map_err(|_| unknown("half an answer".to_owned()))?;
        answer.map_err(|error| match error {
            Some(cause) => DistributedError::Server { server: server(), cause }.into(),
            None => DistributedError::LeaseLost { command_id: String::new() }.into(),
        })
    }

    fn settle(&self, call: &Call) -> Result<AckOutcome> {
        Ok(match self.call::<String>(call)?.as_str() {
            "applied" => AckOutcome::Applied,
            "already" => AckOutcome::AlreadyApplied,
            _ => AckOutcome::LeaseLost,
        })
    }
}

#[async_trait]
impl DistributedQueue for ReferenceQueue {
    async fn enqueue(&self, envelope: CommandEnvelope) -> Result<()> {
        self.enqueue_with(envelope, EnqueueOptions::new()).await.map(drop)
    }

    async fn dequeue(&self, partition_id: PartitionId) -> Result<Option<CommandEnvelope>> {
        let taken = self.dequeue_leased(partition_id, Claim::new(1)).await?;
        Ok(taken.into_iter().next().map(|leased| leased.envelope))
    }

    async fn complete(&self, _result: CommandResult) -> Result<()> {
        Err(DistributedError::Unsupported { operation: "completing".to_owned() }.into())
    }

    fn num_partitions(&self) -> usize {
        super::worker::PARTITIONS
    }

    fn worker_id(&self) -> &WorkerId {
        &self.worker_id
    }

    async fn enqueue_with(&self, envelope: CommandEnvelope, options: EnqueueOptions) -> Result<Receipt> {
        let (command_id, duplicate): (String, bool) = self.call(&Call::Enqueue(envelope, options))?;
        Ok(Receipt::new(command_id, duplicate))
    }

    async fn dequeue_leased(&self, partition: PartitionId, claim: Claim) -> Result<Vec<Leased>> {
        let Claim { max, lease, wait, .. } = claim;
        let taken: Vec<Taken> = self.call(&Call::Dequeue { partition, max, lease, wait })?;
        let leased = taken.into_iter().map(|taken| {
            let mut leased = Leased::new(taken.envelope, taken.token, taken.lease);
            leased.delivery = taken.delivery;
            leased
        });
        Ok(leased.collect())
    }

    async fn extend(&self, token: &LeaseToken, lease: Duration) -> Result<()> {
        self.call(&Call::Extend(token.clone(), lease))
    }

    async fn ack(&self, token: &LeaseToken, result: CommandResult) -> Result<AckOutcome> {
        self.settle(&Call::Ack(token.clone(), result))
    }

    async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<AckOutcome> {
        self.settle(&match nack {
            Nack::RetryAfter { delay, error } => Call::Retry(token.clone(), delay, error),
            _ => Call::Release(token.clone()),
        })
    }

    async fn dead_letter(&self, token: &LeaseToken, reason: DeadReason) -> Result<AckOutcome> {
        self.settle(&Call::DeadLetter(token.clone(), reason))
    }

    async fn dead_letters(&self, page: DeadPage) -> Result<Vec<RemoteDeadLetter>> {
        self.call(&Call::DeadLetters { after: page.after, limit: page.limit })
    }

    async fn depth(&self, partition_id: PartitionId) -> Result<Depth> {
        let [ready, delayed, leased, dead]: [usize; 4] = self.call(&Call::Depth(partition_id))?;
        let mut depth = Depth::default();
        (depth.ready, depth.delayed, depth.leased, depth.dead) = (ready, delayed, leased, dead);
        Ok(depth)
    }
}

#[test]
fn the_reference_passes_the_suite() {
    super::survives(Reference::start());
}
