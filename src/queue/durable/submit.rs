//! The way of a command into a durable lane: a place is reserved, the command is stored, and only then is it there.
//!
//! A submission that is given up while it waits for the store takes its place and its record back. One of which the store
//! does not know whether it has it is taken back, too, when the store knows again.

use std::sync::Arc;

use serde_json::Value;

use super::idempotency::{self, Found};
use super::store::Store;
use super::stored::{Stored, guarded};
use crate::clock::{Tick, wall_now};
use crate::error::{LaneError, Result, StorageError};
use crate::event::{FrequentKind, UNMEASURED};
use crate::executor::LOWEST_PRIORITY;
use crate::id::CommandId;
use crate::queue::admission::{LaneContext, Settings};
use crate::queue::command::Job;
use crate::queue::config::OnStorageFailure;
use crate::queue::extra::Extra;
use crate::queue::incoming::Incoming;
use crate::queue::lane::{Lane, Rejected};
use crate::queue::options::SubmitOptions;
use crate::queue::ticket::Ticket;
use crate::storage::{Change, StoredCommand, StoredTerms};

/// A record that is on its way: taken back unless the command comes.
struct OnItsWay {
    store: Arc<Store>,
    id: CommandId,
    /// It is not taken back.
    arrived: bool,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if !self.arrived {
            self.store.later_detached(Change::Remove { id: self.id.to_string(), result: None });
        }
    }
}

impl Lane {
    /// The way of every command into the queue that may have to wait for a store.
    pub(in crate::queue) async fn accept_durably<J: Job>(
        &self,
        job: J,
        options: Option<SubmitOptions>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        if !self.is_durable() {
            if J::IS_DATA {
                let hint = "it is in memory: give the queue a store, or submit a TypedCommand";
                return Err(Rejected { error: self.not_durable(hint), command: job });
            }
            return self.try_accept(job, options);
        }
        // In a box: it is larger than the rest, which has to be small.
        Box::pin(self.accept_stored(job, options.unwrap_or_default())).await
    }

    /// Whether the lane's commands are stored.
    pub(in crate::queue) fn is_durable(&self) -> bool {
        let core = self.core();
        !core.is_plain() && core.context().is_some_and(|context| context.durable(&core.settings.load()).is_some())
    }

    fn not_durable(&self, hint: &str) -> LaneError {
        LaneError::NotDurable { lane_id: self.id().to_owned(), hint: hint.to_owned() }
    }

    async fn accept_stored<J: Job>(&self, job: J, options: SubmitOptions) -> Result<Ticket<J::Output>, Rejected<J>> {
        let core = self.core();
        let settings = core.settings.load_full();
        let durable = core.context().and_then(|context| Some((context, context.durable(&settings)?)));
        let Some((context, (store, durability))) = durable else {
            // It was until just now.
            return self.try_accept(job, Some(options));
        };
        if !context.executor.is_open() {
            return Err(Rejected { error: LaneError::ShutdownInProgress, command: job });
        }
        let looked = core.check_options(&settings, &options, true).and_then(|()| self.look(&job, &settings, store));
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        if let Err(error) = store.open().await {
            return Err(Rejected { error, command: job });
        }
        let id = store.next_id();
        let claim = loop {
            match claim(store, &options, job.command_type(), looked.payload.as_ref(), id) {
                Ok(None) => break None,
                Ok(Some(Found::New(claim))) => break Some(claim),
                Ok(Some(Found::Running(id, shared))) => {
                    // Acknowledged when the first one is; if that is refused, this one is the first.
                    if shared.was_accepted().await {
                        return Ok(Ticket::shared(id, shared, J::from_json));
                    }
                }
                Ok(Some(Found::Ended(id, value))) => {
                    let unread = || LaneError::Other("the result under this key is not of this type".into());
                    return Ok(Ticket::ended(id, J::from_json(value).ok_or_else(unread)));
                }
                Err(error) => return Err(Rejected { error, command: job }),
            }
        };
        let version = looked.version;
        let mut record = self.record(id, id.sequence(), job.command_type(), looked, &options);
        let created_at = record.created_at;
        let mut incoming = Incoming::new(core, context, &settings, Some(options), job.size());
        let reservation = match incoming.reserve() {
            Ok(reservation) => reservation,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        if let Some(extra) = &incoming.extra {
            add_times(&mut record.terms, extra, core.now());
        }
        let mut on_its_way = OnItsWay { store: Arc::clone(store), id, arrived: false };
        let saved = store.save(Change::Save(Box::new(record)), durability).await;
        let id = match saved {
            Ok(()) => {
                on_its_way.arrived = true;
                if let Some(claim) = &claim {
                    claim.accepted();
                }
                incoming.set_stored(Stored::new(store, created_at, version, claim), 0);
                id
            }
            Err(error) => {
                on_its_way.arrived = matches!(&error, LaneError::Storage(error) if error.is_certain());
                let degrades = settings.config.storage_failure == OnStorageFailure::DegradeToMemory;
                if !degrades || !is_outage(&error) {
                    return Err(Rejected { error, command: job });
                }
                if let Some(claim) = claim {
                    // Its key is kept all the same, in memory.
                    claim.accepted();
                    incoming.set_stored(Stored::in_memory(store, created_at, claim), 0);
                }
                CommandId::next()
            }
        };
        let submitted = reservation.enter();
        context.tell(FrequentKind::Submitted, &core.id, id, || UNMEASURED, || job.command_type());
        Ok(incoming.place(job, id, submitted))
    }

    /// What a command is as data.
    fn look<J: Job>(&self, job: &J, settings: &Settings, store: &Store) -> Result<Looked> {
        let payload = guarded(|| job.encode())?;
        let is_known = store.registry.knows(job.command_type());
        let kind = job.command_type();
        let hint = match (&payload, is_known) {
            (Some(_), true) => None,
            (None, _) => Some(format!(
                "{kind} has no payload to make it again from: implement Command::payload, or DurableCommand"
            )),
            (Some(_), false) => {
                Some(format!("nothing makes {kind} again: add with_durable or with_constructor to the builder"))
            }
        };
        if let Some(hint) = &hint
            && (settings.config.recoverable_only || J::IS_DATA)
        {
            return Err(self.not_durable(hint));
        }
        let version = hint.is_none().then(|| job.payload_version());
        Ok(Looked { payload, version })
    }

    /// A command as it is stored.
    fn record(
        &self,
        id: CommandId,
        sequence: u64,
        command_type: &str,
        looked: Looked,
        options: &SubmitOptions,
    ) -> StoredCommand {
        let Looked { payload, version } = looked;
        let mut record = StoredCommand::new(id.to_string(), command_type, self.id(), payload.unwrap_or_default());
        record.sequence = sequence;
        record.payload_version = version.unwrap_or(1);
        record.recoverable = version.is_some();
        record.terms = terms_of(options);
        record.replays = options.replays;
        record
    }

    /// A command that does not wait for the store: refused, but for one that the store has already, in another form.
    pub(in crate::queue) fn accept_unstored<J: Job>(
        &self,
        job: J,
        options: Option<SubmitOptions>,
        context: &LaneContext,
        settings: &Settings,
        store: &Arc<Store>,
    ) -> Result<Ticket<J::Output>, Rejected<J>> {
        let core = self.core();
        let Some((origin, options)) = options.and_then(|options| Some((options.replay_of?, options))) else {
            let hint = "a submission that does not wait for the store can not be stored: use submit or submit_durable, or a lane \
                        with Durability::Memory";
            return Err(Rejected { error: self.not_durable(hint), command: job });
        };
        let looked = self.look(&job, settings, store);
        let looked = match store.refusal().map_or(looked, Err) {
            Ok(looked) => looked,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        let id = if origin.is_stored() && options.replays_stored { origin } else { store.next_id() };
        let version = looked.version;
        // Its place is at the end again.
        let record = self.record(id, store.next_sequence(), job.command_type(), looked, &options);
        let created_at = record.created_at;
        let mut incoming = Incoming::new(core, context, settings, Some(options), job.size());
        let submitted = match incoming.count() {
            Ok(submitted) => submitted,
            Err(error) => return Err(Rejected { error, command: job }),
        };
        // Until this is stored, the letter is: nothing is lost, and nothing is waited for.
        store.later_detached(Change::Replay(Box::new(record)));
        incoming.set_stored(Stored::new(store, created_at, version, None), 0);
        context.tell(FrequentKind::Submitted, &core.id, id, || UNMEASURED, || job.command_type());
        Ok(incoming.place(job, id, submitted))
    }
}

struct Looked {
    payload: Option<Value>,
    /// Of one that can be made again.
    version: Option<u32>,
}

/// Whether a store that says this does not work, so that a lane may go on without it.
fn is_outage(error: &LaneError) -> bool {
    use StorageError::{Damaged, Failed, Io, OutcomeUnknown};
    matches!(error, LaneError::Storage(Io(_) | Failed { .. } | OutcomeUnknown(_) | Damaged { .. }))
}

fn claim(
    store: &Arc<Store>,
    options: &SubmitOptions,
    command_type: &str,
    payload: Option<&Value>,
    id: CommandId,
) -> Result<Option<Found>> {
    let Some(key) = &options.idempotency_key else { return Ok(None) };
    idempotency::check(key)?;
    let fingerprint = idempotency::fingerprint(command_type, payload);
    let (found, forgotten) = store.keys.take(key, fingerprint, id, store.now());
    for key in forgotten {
        store.later_detached(Change::RemoveResult { key: key.to_string() });
    }
    found.map(Some)
}

fn terms_of(options: &SubmitOptions) -> StoredTerms {
    StoredTerms {
        priority: options.priority,
        key: options.key.as_ref().map(crate::queue::Key::to_json),
        cost: options.cost,
        bytes: options.bytes,
        timeout: options.timeout,
        drain_timeout: options.drain_timeout,
        tags: options.tags.iter().map(|tag| tag.to_string()).collect(),
        idempotency_key: options.idempotency_key.as_deref().map(str::to_owned),
        ..StoredTerms::default()
    }
}

/// What its options and its lane say of its time, by the wall clock.
fn add_times(terms: &mut StoredTerms, extra: &Extra, now: Tick) {
    let wall = wall_now();
    let at = |tick: Tick| {
        let after = (tick != Tick::NEVER).then(|| chrono::TimeDelta::from_std(tick.since(now)).ok()).flatten();
        after.and_then(|after| wall.checked_add_signed(after))
    };
    terms.not_before = extra.is_delayed().then(|| at(extra.start_at)).flatten();
    terms.end_by = at(extra.total_deadline);
    // What ends it in all ends its wait, too.
    terms.start_by = if extra.latest_start == extra.total_deadline { None } else { at(extra.latest_start) };
}

/// What a command was submitted with, as it is now.
pub(super) fn options_of(terms: &StoredTerms) -> SubmitOptions {
    let wall = wall_now();
    let mut options = SubmitOptions::new().detached();
    options.priority = terms.priority.map(|priority| priority.min(LOWEST_PRIORITY));
    options.key = terms.key.as_ref().and_then(crate::queue::Key::from_json);
    options.cost = terms.cost;
    options.bytes = terms.bytes;
    options.timeout = terms.timeout;
    options.drain_timeout = terms.drain_timeout;
    options.tags = terms.tags.iter().map(|tag| tag.as_str().into()).collect();
    options.idempotency_key = terms.idempotency_key.as_deref().map(Into::into);
    let until = |at: chrono::DateTime<chrono::Utc>| (at - wall).to_std().unwrap_or_default();
    options.delay = terms.not_before.map(until).filter(|delay| !delay.is_zero());
    let starts_in = options.delay.unwrap_or_default();
    options.queue_timeout = terms.start_by.map(|at| until(at).saturating_sub(starts_in));
    options.total_timeout = terms.end_by.map(until);
    options
}
