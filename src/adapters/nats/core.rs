//! What all calls of a handle share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use event_listener::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::{Now, ServerClock};
use super::link::{Call, Link, Record};
use super::names::{Names, of_command};
use super::record::{Entry, FORMAT, Remembered, Standing};
use super::streams::Streams;
use crate::clock::Tick;
use crate::distributed::{ID_MEMORY, LeaseToken, WorkerId};
use crate::error::DistributedError;
use crate::executor::now;
use crate::queue::Partitioner;

pub(super) struct Core {
    pub(super) link: Link,
    pub(super) names: Names,
    pub(super) partitions: usize,
    pub(super) partitioner: Arc<dyn Partitioner>,
    pub(super) worker_id: WorkerId,
    pub(super) lease: Duration,
    /// How long keys are remembered; as the queue was made with.
    pub(super) window: Duration,
    pub(super) max_payload: usize,
    pub(super) replicas: usize,
    pub(super) clock: ServerClock,
    pub(super) streams: Streams,
    /// Which of several streams of one priority goes first.
    pub(super) turn: AtomicUsize,
    /// What this handle has taken and not ended, by command.
    held: Mutex<HashMap<String, Held>>,
    /// For each partition: there may be something to take.
    pub(super) wakes: Vec<Event>,
    /// There may be a result.
    pub(super) resulted: Event,
    pub(super) closed: AtomicBool,
    /// When it was last connected, in nanoseconds of this process.
    connected: AtomicU64,
}

/// A lease of this handle, and the state as it has left it: what is changed next is compared with that, and need not be read.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) token: LeaseToken,
    pub(super) entry: Entry,
    pub(super) revision: u64,
}

/// A command's state, and the revision that another write of it has to name.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) entry: Entry,
    pub(super) revision: u64,
}

impl Core {
    pub(super) fn new(link: Link, settings: &crate::adapters::remote::Settings, found: Found) -> Self {
        let partitions = settings.partitions.num_partitions;
        Self {
            link,
            names: Names::new(&settings.namespace),
            partitions,
            partitioner: Arc::clone(&settings.partitioner),
            worker_id: settings.worker_id.clone(),
            lease: settings.lease,
            window: found.window,
            max_payload: found.max_payload,
            replicas: found.replicas,
            clock: ServerClock::default(),
            streams: Streams::default(),
            turn: AtomicUsize::new(0),
            held: Mutex::default(),
            wakes: std::iter::repeat_with(Event::new).take(partitions).collect(),
            resulted: Event::new(),
            closed: AtomicBool::new(false),
            connected: AtomicU64::new(now().as_nanos()),
        }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be said of a call that was given up with its thread: the server may have heard of it.
    pub(super) fn given_up(&self) -> DistributedError {
        let cause = "the handle was closed before the answer came".to_owned();
        DistributedError::OutcomeUnknown { server: self.link.server().to_owned(), cause }
    }

    pub(super) fn is_closed(&self) -> bool {
        // ORDERING: who was told that it is closed has been told by other means.
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) async fn now(&self, call: &Call) -> Result<Now, DistributedError> {
        self.clock.now(call, &self.names.state()).await
    }

    /// The state of a command as it is now.
    pub(super) async fn entry(&self, call: &Call, id: &str) -> Result<Option<Seen>, DistributedError> {
        let bucket = self.names.state();
        let record = call.last(&bucket.stream, &bucket.subject(&of_command(id))).await?;
        record.map(|record| seen(&record, id)).transpose()
    }

    /// Changes the state of a command from the revision that was seen: the new one, or none if it has another state by now.
    pub(super) async fn change(
        &self,
        call: &Call,
        revision: u64,
        entry: &Entry,
    ) -> Result<Option<u64>, DistributedError> {
        let subject = self.names.state().subject(&of_command(entry.id()));
        match call.put(&subject, Some(revision), json(entry)).await? {
            super::link::Written::At(revision) => Ok(Some(revision)),
            super::link::Written::Changed => Ok(None),
        }
    }

    /// What is remembered of a command that has ended.
    pub(super) async fn remembered(&self, call: &Call, id: &str) -> Result<Option<Remembered>, DistributedError> {
        let bucket = self.names.ended();
        let record = call.last(&bucket.stream, &bucket.subject(&of_command(id))).await?;
        Ok(record.and_then(|record| read(&record.body).ok()))
    }

    /// There is a new connection: the server may have been killed, and have brought back what was removed last.
    pub(super) fn connected(&self) {
        self.connected.store(now().as_nanos(), Ordering::Relaxed);
    }

    /// How a command has ended whose state says that it has not: a server that was killed may bring states back in an earlier
    /// form. What is remembered of ends is written before they are removed, and is asked for as long after a connection as
    /// anything is remembered.
    pub(super) async fn has_come_back(
        &self,
        call: &Call,
        entry: &Entry,
    ) -> Result<Option<Remembered>, DistributedError> {
        let connected = Tick::from_nanos(self.connected.load(Ordering::Relaxed));
        let looks_alive = !matches!(entry.standing, Standing::Dead { .. } | Standing::Ended { .. } | Standing::Gone);
        if looks_alive && now().since(connected) < ID_MEMORY * 2 {
            return self.remembered(call, entry.id()).await;
        }
        Ok(None)
    }

    /// Has all look again that wait in this handle.
    pub(super) fn wake_all(&self) {
        for wake in &self.wakes {
            wake.notify(usize::MAX);
        }
        self.resulted.notify(usize::MAX);
    }

    /// Forgets leases of this handle that have ended by themselves.
    pub(super) fn forget_lost(&self, now: Now) {
        let lost = |entry: &Entry| matches!(entry.standing, Standing::Leased { until, .. } if now.is_past(until));
        self.held().retain(|_, held| !lost(&held.entry));
    }

    /// Tells all handles that there may be something to take.
    pub(super) async fn wake(&self, partition: usize) {
        self.link.tell(self.names.wake(&partition.to_string())).await;
    }
}

/// What connecting has found out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) window: Duration,
    pub(super) max_payload: usize,
    pub(super) replicas: usize,
}

pub(super) fn seen(record: &Record, id: &str) -> Result<Seen, DistributedError> {
    let entry: Entry = read(&record.body).map_err(|problem| DistributedError::Damaged {
        command_id: id.to_owned(),
        problem: format!("its state {problem}"),
    })?;
    Ok(Seen { entry, revision: record.sequence })
}

/// What is to be stored.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    // Names and values of these types can always be written.
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// What was stored, or what is wrong with it.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    #[derive(serde::Deserialize)]
    struct Format {
        #[serde(default)]
        format: Option<u32>,
    }
    let found: Format = serde_json::from_slice(body).map_err(|error| format!("is damaged: {error}"))?;
    if let Some(format) = found.format.filter(|format| *format != FORMAT) {
        return Err(format!("is of version {format}, and this reads {FORMAT}"));
    }
    serde_json::from_slice(body).map_err(|error| format!("is damaged: {error}"))
}
