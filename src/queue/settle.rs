//! What becomes of a command after its attempt: decided in one pure function, applied in one place, exactly once.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::TimeDelta;

use super::admission::LaneCore;
use super::attempt::{Attempt, Limits, Outcome};
use super::command::Job;
use super::context::Running;
use super::dead_letter::{DeadLetter, DeadLetterReason};
use super::durable::Stored;
use super::extra::{Extra, Past, Span};
use super::traced::{About, outcome_of, outcome_of_attempt};
use crate::clock::{Tick, wall_now};
use crate::error::{LaneError, Result};
use crate::event::{CommandInfo, FrequentKind, Transition};
use crate::executor::life::End;
use crate::executor::{Sleep, TaskRef, discard_panic, panic_message, within};
use crate::id::CommandId;
use crate::metrics::Count;
use crate::policy::retry::{FailedAttempt, Retry};
use crate::storage::Durability;

/// The fate of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Complete,
    /// Tried again after this time.
    Retry(Duration),
    Fail,
    Panic,
    TimeOut,
    Expire,
    Cancel,
    Shed,
}

/// How an attempt ended, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Ok,
    Error,
    Panicked,
    TimedOut,
    Stopped,
}

/// Decides. `attempt` is none for a command that was dropped. `earlier` is how the task had ended before its attempt did, as
/// its handle, a timer or its lane said; what was said first holds, whatever the attempt brought. `retry` is what the lane's
/// policy says of a failure.
pub(super) const fn decide(
    attempt: Option<Ended>,
    earlier: Option<End>,
    started: bool,
    retry: Option<Duration>,
) -> Fate {
    match (earlier, attempt) {
        (Some(End::Cancelled | End::Stopped), _) => Fate::Cancel,
        (Some(End::Expired), _) if started => Fate::TimeOut,
        (Some(End::Expired), _) => Fate::Expire,
        (Some(End::Shed), _) => Fate::Shed,
        (_, Some(Ended::Ok)) => Fate::Complete,
        (_, None | Some(Ended::Stopped)) => Fate::Cancel,
        (_, Some(failed)) => match (retry, failed) {
            (Some(after), _) => Fate::Retry(after),
            (None, Ended::Panicked) => Fate::Panic,
            (None, Ended::TimedOut) => Fate::TimeOut,
            (None, _) => Fate::Fail,
        },
    }
}

/// Runs a command from its first poll to its end.
///
/// This is the larger part of every command's memory. So what only some need is boxed, and the command is not moved: an
/// `async fn` would keep its argument twice.
#[allow(clippy::manual_async_fn, reason = "see above")]
pub(super) fn run<J: Job>(mut command: Accepted<J>) -> impl Future<Output = Result<J::Output>> + Send {
    async move {
        if command.running.place == Whereabouts::Apart {
            let start_at = command.extra.as_ref().map_or(Tick::NEVER, |extra| extra.start_at);
            Box::pin(command.return_at(start_at, true)).await;
        }
        loop {
            let due = {
                let outcome = command.attempt().await;
                match command.settle(outcome) {
                    Ok(result) => return result,
                    Err(Unsettled::Storing(result)) => return Box::pin(command.store_end(*result)).await,
                    Err(Unsettled::Again(due)) => due,
                }
            };
            Box::pin(command.return_at(due, false)).await;
        }
    }
}

/// What an attempt leaves to do, if anything. In a box: most have a result, which is then not moved about for this.
enum Unsettled<T> {
    /// Its end is on its way to the store.
    Storing(Box<Result<T>>),
    /// Another attempt, then.
    Again(Tick),
}

/// Where a command is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In its lane's line, or admitted from there and not running yet.
    Line,
    /// Past its line.
    Running,
    /// Waiting for its time, without a permit.
    Apart,
    /// Not any more: it has settled.
    Settled,
}

/// A command that was accepted. Whatever happens to it (its end, a panic, or being dropped), it settles once.
pub(super) struct Accepted<J: Job> {
    /// None once it was taken for a dead letter.
    job: Option<J>,
    running: Running,
    /// None for a plain command.
    extra: Option<Box<Extra>>,
}

impl<J: Job> Accepted<J> {
    #[inline]
    pub(super) fn new(
        job: J,
        id: CommandId,
        lane: Arc<LaneCore>,
        task: TaskRef,
        place: Whereabouts,
        extra: Option<Box<Extra>>,
    ) -> Self {
        let mut running = Running::new(task, id, lane, place);
        if let Some(extra) = &extra {
            if extra.explained {
                let command_type = contained(|| Some(job.command_type().into())).unwrap_or_default();
                running.lane.note_accepted(id, task, place, extra, command_type);
            }
            running.attempt = extra.attempts;
            running.due_after(extra.delay());
            running.on_trial(extra.stored.as_ref().and_then(|stored| stored.verdict()));
        }
        Self { job: Some(job), running, extra }
    }

    fn stored(&mut self) -> Option<&mut Stored> {
        self.extra.as_mut().and_then(|extra| extra.stored.as_deref_mut())
    }

    fn is_explained(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.explained)
    }

    /// Whether it has settled and its end is on its way to the store: it holds its permit until that is there.
    fn is_storing(&mut self) -> bool {
        self.stored().is_some_and(Stored::is_storing)
    }

    /// Waits until the end is stored.
    async fn store_end(&mut self, result: Result<J::Output>) -> Result<J::Output> {
        let completion = self.running.lane.settings.load().config.completion;
        let ended = std::future::poll_fn(|cx| match self.stored() {
            Some(stored) => stored.poll_storing(cx),
            None => Poll::Ready(Ok(())),
        })
        .await;
        self.give_back();
        match ended {
            Err(error) if completion == Durability::Synced => Err(error),
            _ => result,
        }
    }

    /// Waits for a time without a permit, then to be admitted; or until the command is ended.
    async fn return_at(&mut self, due: Tick, first: bool) {
        self.stay_apart(due).await;
        self.come_in(first).await;
    }

    /// Waits for a time without a permit, or until the command is ended.
    async fn stay_apart(&mut self, due: Tick) {
        let shared = self.running.task.meta().shared;
        let drain = self.extra.as_ref().and_then(|extra| extra.drain_timeout());
        let latest = self.total_deadline();
        let sleep = Sleep::until(shared, due.min(latest));
        Apart { sleep, task: self.running.task, lane: &self.running.lane, drain }.await;
        if latest <= due && shared.clock.now() >= latest {
            let _ended = self.running.task.meta().life.try_end(End::Expired);
        }
    }

    fn total_deadline(&self) -> Tick {
        self.extra.as_ref().map_or(Tick::NEVER, |extra| extra.total_deadline)
    }

    /// Comes to its place in the line and waits to be admitted, or until it is ended.
    async fn come_in(&mut self, first: bool) {
        let mut waits = false;
        // The first time there is an alarm for it.
        let latest = if first { Tick::NEVER } else { self.total_deadline() };
        let mut late = (latest != Tick::NEVER).then(|| Sleep::until(self.running.task.meta().shared, latest));
        std::future::poll_fn(|cx| {
            let life = &self.running.task.meta().life;
            if !waits {
                if life.end().is_some() {
                    return Poll::Ready(());
                }
                let handle = self.running.task.handle();
                waits = true;
                self.running.place = Whereabouts::Line;
                if self.is_explained() {
                    self.running.lane.note_in_line(self.running.id);
                }
                let (key, place, cost) = match &self.extra {
                    None => (None, None, 1),
                    Some(extra) => {
                        let settings = self.running.lane.settings.load();
                        if let Some(alarm) = self.running.lane.alarm_of(&settings, extra).filter(|_| first) {
                            self.running.lane.set_alarm(&handle, alarm);
                        }
                        (extra.key.as_ref(), Some(extra.place(&self.running.lane, self.running.attempt)), extra.cost)
                    }
                };
                if self.running.lane.come_in(&handle, key, place, cost) {
                    return Poll::Ready(());
                }
            }
            if life.is_admitted() {
                return Poll::Ready(());
            }
            if self.running.lane.is_cancelling() {
                // The line may have been cleared just before this joined it.
                let _ended = life.try_end(End::Stopped);
            }
            if late.as_mut().is_some_and(|late| Pin::new(late).poll(cx).is_ready()) {
                let _ended = life.try_end(End::Expired);
            }
            if life.end().is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The next attempt; if the command has ended, one that is stopped from the beginning.
    fn attempt<'a>(
        &'a mut self,
    ) -> Attempt<'a, impl Future<Output = Result<J::Output>> + Send, impl Fn() -> &'a str + Send + Sync> {
        let begins = self.begin();
        let Self { job, running, extra } = self;
        let trace = extra.as_ref().and_then(|extra| extra.trace.as_deref());
        // One that has ended is not asked for its future.
        let ambient = running.lane.ambient();
        let attempt = |job| within(ambient, || Job::attempt(job));
        let (future, kind) = if begins { job.as_mut().map(attempt) } else { None }.unzip();
        Attempt::new(future, kind, trace, running)
    }

    /// Begins the next attempt; false if the command has ended.
    fn begin(&mut self) -> bool {
        let meta = self.running.task.meta();
        if meta.life.is_admitted() {
            self.running.place = Whereabouts::Running;
        }
        if self.running.lane.is_cancelling() {
            let _ended = meta.life.try_end(End::Stopped);
        }
        let now = || meta.shared.clock.now();
        let is_first = self.extra.as_ref().is_none_or(|extra| extra.attempts == self.running.attempt);
        if let Some(extra) = self.extra.as_mut().filter(|_| is_first) {
            self.running.lane.give_bytes(std::mem::take(&mut extra.bytes));
            let latest = extra.latest_start;
            if latest != Tick::NEVER && now() >= latest {
                let _ended = meta.life.end_unstarted(End::Expired);
            }
        }
        if !meta.life.start() {
            return false;
        }
        if is_first {
            meta.alarm_off();
        }
        self.running.begin();
        if self.is_explained() {
            self.running.lane.note_started(self.running.id, self.running.attempt);
        }
        self.running.measure_start(is_first);
        if let Some(extra) = &mut self.extra
            && let Some(stored) = &mut extra.stored
        {
            stored.begin(self.running.id);
        }
        let attempt = self.running.attempt;
        if let Some(trace) = self.extra.as_mut().and_then(|extra| extra.trace.as_mut()) {
            trace.begin(attempt, self.running.lane.now());
        }
        let id = self.running.id;
        self.running.lane.tell(FrequentKind::Started, id, || self.running.wait(), || self.type_name());
        if self.extra.is_none() && self.running.lane.is_plain() {
            self.running.limits = None;
            return true;
        }
        let settings = self.running.lane.settings.load();
        let config = &settings.config;
        let extra = self.extra.as_ref();
        let timeout = extra.and_then(|extra| extra.timeout()).or(config.default_timeout);
        let total_deadline = extra.map_or(Tick::NEVER, |extra| extra.total_deadline);
        let deadline = timeout.map_or(Tick::NEVER, |timeout| now().plus(timeout)).min(total_deadline);
        let may_retry = self.can_run_again() && config.retry_policy.may_retry(self.running.attempt);
        let is_last = deadline == total_deadline || !may_retry;
        let drain_timeout = Span::of(extra.and_then(|extra| extra.drain_timeout()).or(config.drain_timeout));
        self.running.limits = Limits::of(deadline, total_deadline, is_last, drain_timeout);
        true
    }

    /// Applies what was decided: event, dead letter, permit, result. The permit is back before the submitter sees the result.
    fn settle(&mut self, outcome: Outcome<J::Output>) -> Result<Result<J::Output>, Unsettled<J::Output>> {
        match outcome {
            // The way of most commands; `decide` says the same.
            Outcome::Returned(Ok(value))
                if self.extra.is_none() && self.running.task.meta().life.try_end(End::Done).is_ok() =>
            {
                self.running.place = Whereabouts::Settled;
                let ran = self.running.measure_end(Some(Count::Ok), || self.command_type());
                let id = self.running.id;
                self.running.lane.tell(FrequentKind::Completed, id, || ran, || self.type_name());
                if self.running.task.meta().life.is_admitted() {
                    self.running.lane.release();
                }
                Ok(Ok(value))
            }
            outcome => self.settle_otherwise(outcome),
        }
    }

    fn settle_otherwise(&mut self, outcome: Outcome<J::Output>) -> Result<Result<J::Output>, Unsettled<J::Output>> {
        let (ended, mut result) = match outcome {
            Outcome::Returned(Ok(value)) => (Ended::Ok, Ok(value)),
            Outcome::Returned(Err(error)) => (Ended::Error, Err(error)),
            Outcome::Panicked(message) => (Ended::Panicked, Err(LaneError::Panicked(message))),
            Outcome::TimedOut => (Ended::TimedOut, Err(self.timed_out())),
            Outcome::Stopped => (Ended::Stopped, Err(LaneError::Cancelled { started: self.has_started() })),
        };
        let life = &self.running.task.meta().life;
        let mut discard = false;
        let mut retry = None;
        if let Err(error) = &result
            && !matches!(ended, Ended::Stopped)
            && life.end().is_none()
        {
            match self.ask_policy(error) {
                Ok(Retry::Now) => retry = Some(Duration::ZERO),
                Ok(Retry::After(after)) => retry = Some(after),
                Ok(Retry::Fail) => {}
                Ok(Retry::Discard) => discard = true,
                Err(message) => result = Err(LaneError::Panicked(message)),
            }
        }
        if let (Some(after), Err(error)) = (retry, &result)
            && let Fate::Retry(after) = decide(Some(ended), life.end(), true, Some(after))
            && let Some(due) = self.can_retry(after)
        {
            return Err(Unsettled::Again(self.back_off(due, after, error)));
        }
        let earlier = life.try_end(End::Done).err();
        let fate = decide(Some(ended), earlier, self.has_started(), None);
        if let (Fate::Complete, Ok(value)) = (fate, &result)
            && let Some(stored) = self.stored().filter(|stored| stored.wants_value())
        {
            stored.set_value(contained(|| J::to_json(value)));
        }
        let result = match fate {
            Fate::Complete | Fate::Fail | Fate::Panic | Fate::Retry(_) => result,
            Fate::TimeOut => Err(self.timed_out()),
            Fate::Expire => Err(self.expired()),
            Fate::Cancel => Err(LaneError::Cancelled { started: self.has_started() }),
            Fate::Shed => Err(LaneError::Shed),
        };
        self.apply(fate, result.as_ref().err(), discard);
        if self.is_storing() { Err(Unsettled::Storing(Box::new(result))) } else { Ok(result) }
    }

    /// What the lane's policy says of a failure; the error is what a custom strategy panicked with.
    fn ask_policy(&self, error: &LaneError) -> Result<Retry, String> {
        let settings = self.running.lane.settings.load();
        let policy = &settings.config.retry_policy;
        let (Some(extra), true) = (&self.extra, self.can_run_again() && !policy.is_none()) else {
            return Ok(Retry::Fail);
        };
        let elapsed = self.running.lane.now().since(extra.accepted_at);
        let failed = FailedAttempt::new(error, self.running.attempt, elapsed, extra.previous_delay());
        catch_unwind(AssertUnwindSafe(|| policy.decide(&failed, self.running.lane.next_random()))).map_err(|payload| {
            let message = panic_message(payload.as_ref()).to_owned();
            discard_panic(payload);
            message
        })
    }

    fn can_run_again(&self) -> bool {
        self.job.as_ref().is_some_and(Job::can_run_again)
    }

    /// When the next attempt may begin, if the command has the time and its lane the budget.
    fn can_retry(&self, after: Duration) -> Option<Tick> {
        let extra = self.extra.as_ref()?;
        let due = self.running.lane.now().plus(after);
        (due < extra.total_deadline && self.running.lane.settings.load().config.retry_policy.withdraw()).then_some(due)
    }

    /// Gives everything up that others may need meanwhile.
    fn back_off(&mut self, due: Tick, after: Duration, error: &LaneError) -> Tick {
        if let Some(extra) = &mut self.extra {
            let past = extra.past();
            past.previous_delay = after;
            past.errors.record(self.running.attempt, error, wall_now());
            if let Some(trace) = &mut extra.trace {
                trace.rest(self.running.attempt, self.running.lane.now(), outcome_of_attempt(error), Some(error));
            }
        }
        let attempt = self.running.attempt;
        let ran = self.running.measure_end(None, || self.command_type());
        self.running.lane.measure(Count::Retries);
        self.running.lane.observe_timed(ran, || Transition::Retrying {
            command: self.info(),
            attempt,
            error: error.to_string().into(),
            delay: after,
        });
        self.running.rest();
        let id = self.running.id;
        if let Some(stored) = self.stored() {
            stored.rest(id, attempt);
        }
        self.running.place = Whereabouts::Apart;
        if self.is_explained() {
            self.running.lane.note_backoff(self.running.id, due.as_nanos());
        }
        // Counted apart before its permit is back: never as neither.
        self.running.lane.step_apart();
        self.give_back();
        due
    }

    /// Gives back what it holds of its lane.
    fn give_back(&self) {
        let life = &self.running.task.meta().life;
        if life.give_up_key()
            && let Some(key) = self.extra.as_ref().and_then(|extra| extra.key.as_ref())
        {
            if self.is_explained() {
                self.running.lane.note_key_left(self.running.id, key);
            }
            self.running.lane.leave_key(key);
        }
        if life.give_up_permit() {
            self.running.lane.release();
            self.running.lane.note_hold();
        }
    }

    fn apply(&mut self, fate: Fate, error: Option<&LaneError>, discard: bool) {
        let place = std::mem::replace(&mut self.running.place, Whereabouts::Settled);
        self.running.task.meta().alarm_off();
        if self.is_explained() {
            self.running.lane.note_settled(self.running.id);
        }
        let ran = self.measure(fate);
        // A command's type and destructor are others' code: what it holds of its lane comes back all the same.
        let told = catch_unwind(AssertUnwindSafe(|| self.tell(fate, ran, error, discard)));
        let letter = told.unwrap_or_else(|payload| {
            tracing::error!(panic = panic_message(payload.as_ref()), "a dead letter was lost: its command panicked");
            discard_panic(payload);
            None
        });
        self.end_trace(fate, error);
        // The store first: who finds the letter may run its command again at once.
        self.end_stored(fate, letter.as_deref(), error);
        if let Some(letter) = letter {
            // Drops others' values: a letter that is evicted.
            let kept = catch_unwind(AssertUnwindSafe(|| self.keep_letter(*letter)));
            if let Err(payload) = kept {
                tracing::error!(panic = panic_message(payload.as_ref()), "a destructor panicked; contained");
                discard_panic(payload);
            }
        }
        match place {
            Whereabouts::Apart => {
                self.running.lane.step_in();
                self.running.lane.make_room();
            }
            // Never admitted: what stands in the line is dead.
            Whereabouts::Line if !self.running.task.meta().life.is_admitted() => {
                if self.running.task.meta().life.end() == Some(End::Shed) {
                    self.running.lane.has_left();
                }
                self.running.lane.bury(1);
            }
            Whereabouts::Line | Whereabouts::Running | Whereabouts::Settled => {}
        }
        if let Some(extra) = &mut self.extra {
            self.running.lane.give_bytes(std::mem::take(&mut extra.bytes));
        }
        if !self.is_storing() {
            self.give_back();
        }
    }

    /// Tells the tracer, if there is one.
    fn end_trace(&mut self, fate: Fate, error: Option<&LaneError>) {
        let Some(extra) = self.extra.as_mut() else { return };
        let Some(trace) = extra.trace.take() else { return };
        let accepted_at = extra.accepted_at;
        let command_type = self.command_type();
        let lane = &self.running.lane;
        let about = About {
            id: self.running.id,
            lane: &lane.id,
            command_type: &command_type,
            priority: lane.priority,
            attempt: self.running.attempt,
            accepted_at,
        };
        trace.end(&about, lane.now(), outcome_of(fate), error);
    }

    /// Counts the end of the command, and how long its last attempt ran: in nanoseconds, if that is measured.
    fn measure(&self, fate: Fate) -> u64 {
        let settled = match fate {
            Fate::Complete => Count::Ok,
            Fate::Fail | Fate::Retry(_) => Count::Error,
            Fate::Panic => Count::Panic,
            Fate::TimeOut => Count::Timeout,
            Fate::Expire => Count::Expired,
            Fate::Cancel => Count::Cancelled,
            Fate::Shed => Count::Shed,
        };
        if !self.has_started() {
            self.running.lane.measure(Count::Unstarted);
        }
        self.running.measure_end(Some(settled), || self.command_type())
    }

    fn observe_end(&self, fate: Fate, ran: u64, error: Option<&LaneError>) {
        let lane = &self.running.lane;
        let observe = |make: &dyn Fn(CommandInfo) -> Transition| lane.observe_timed(ran, || make(self.info()));
        match fate {
            Fate::Complete => lane.tell(FrequentKind::Completed, self.running.id, || ran, || self.type_name()),
            Fate::Fail | Fate::Panic | Fate::Retry(_) => observe(&|command| {
                let error = error.map(ToString::to_string).unwrap_or_default();
                Transition::Failed { command, error: error.into() }
            }),
            Fate::TimeOut => observe(&|command| Transition::TimedOut { command, timeout: self.limit() }),
            Fate::Expire => observe(&|command| Transition::Expired { command, waited: self.wait_limit() }),
            Fate::Cancel => observe(&|command| Transition::Cancelled { command, started: self.has_started() }),
            Fate::Shed => observe(&Transition::Shed),
        }
    }

    /// Has the store know what became of a command that it has: it is not to run again, unless it was only its queue that
    /// stopped, or its executor.
    fn end_stored(&mut self, fate: Fate, letter: Option<&DeadLetter>, error: Option<&LaneError>) {
        if self.stored().is_none() {
            return;
        }
        let (id, end) = (self.running.id, self.running.task.meta().life.end());
        let completion = self.running.lane.settings.load().config.completion;
        let stays = fate == Fate::Cancel && end != Some(End::Cancelled);
        let said = match (error, fate) {
            (None, Fate::TimeOut) => Some(self.timed_out()),
            (None, Fate::Expire) => Some(self.expired()),
            (None, Fate::Shed) => Some(LaneError::Shed),
            (None, Fate::Cancel) => Some(LaneError::Cancelled { started: self.has_started() }),
            _ => None,
        };
        let error = error.or(said.as_ref());
        let Some(stored) = self.stored() else { return };
        if stays {
            stored.leave();
            if stored.is_stored() {
                self.running.lane.count_kept();
            }
        } else {
            stored.end(id, letter, error, completion);
        }
    }

    /// Tells others what became of the command: event, dead letter, which is returned.
    fn tell(&mut self, fate: Fate, ran: u64, error: Option<&LaneError>, discard: bool) -> Option<Box<DeadLetter>> {
        let started = self.has_started();
        self.observe_end(fate, ran, error);
        let reason = match fate {
            Fate::Complete => {
                // Where there is a policy, no command is plain.
                if self.extra.is_some() {
                    self.running.lane.settings.load().config.retry_policy.deposit();
                }
                None
            }
            Fate::Fail | Fate::Retry(_) => Some(DeadLetterReason::Failed),
            Fate::Panic => Some(DeadLetterReason::Panicked),
            Fate::TimeOut => Some(DeadLetterReason::TimedOut),
            Fate::Expire => Some(DeadLetterReason::Expired),
            Fate::Shed => Some(DeadLetterReason::Shed),
            Fate::Cancel => (!started && self.running.lane.is_stopping()).then_some(DeadLetterReason::GivenBack),
        };
        if fate == Fate::Cancel {
            self.running.lane.count_cancelled();
        }
        if let Some(reason) = reason
            && !discard
        {
            // Drops others' values: of a command that can not be replayed, of a letter that is evicted.
            let written = catch_unwind(AssertUnwindSafe(|| self.write_letter(reason, error)));
            return written.unwrap_or_else(|payload| {
                tracing::error!(panic = panic_message(payload.as_ref()), "a destructor panicked; contained");
                discard_panic(payload);
                None
            });
        }
        None
    }

    /// Makes the command a letter, or hands it back to who stops the queue.
    fn write_letter(&mut self, reason: DeadLetterReason, error: Option<&LaneError>) -> Option<Box<DeadLetter>> {
        let given_back = reason == DeadLetterReason::GivenBack;
        let id = self.running.id;
        let stored = self.stored().map(|stored| (stored.created_at, stored.is_stored().then(|| stored.stored_as(id))));
        // A stored command that its queue gives back stays stored instead.
        let is_stored = stored.as_ref().is_some_and(|(_, stored_as)| stored_as.is_some());
        if given_back && is_stored || !given_back && self.running.lane.dead_letters().is_none() {
            return None;
        }
        let info = self.info();
        let job = self.job.take()?;
        // Others' code.
        let payload = contained(|| job.payload());
        let error = error.map_or_else(|| self.error_of(reason), ToString::to_string);
        let mut letter = DeadLetter::new(&*info.command_type, &*self.running.lane.id, error);
        letter.command_id = self.running.id;
        letter.attempts = self.running.attempt;
        letter.payload = payload;
        letter.reason = reason;
        letter.replay = contained(|| job.into_replay());
        letter.errors = Vec::new();
        if let Some(extra) = &mut self.extra {
            let Past { mut errors, tags, .. } = std::mem::take(extra.past());
            if self.running.attempt > 0 {
                errors.push(self.running.attempt, letter.error.clone(), letter.failed_at);
            }
            (letter.errors, letter.errors_dropped) = errors.into_parts();
            let age = self.running.lane.now().since(extra.accepted_at);
            letter.accepted_at = TimeDelta::from_std(age).map_or(letter.failed_at, |age| letter.failed_at - age);
            letter.replays = extra.replays;
            letter.tags = tags.iter().map(|tag| tag.to_string()).collect();
        }
        if given_back {
            self.running.lane.give_back_unstarted(letter);
            return None;
        }
        if let Some((created_at, stored_as)) = stored {
            letter.accepted_at = created_at;
            letter.stored = stored_as;
        }
        Some(Box::new(letter))
    }

    /// Keeps a letter among others.
    fn keep_letter(&self, letter: DeadLetter) {
        let Some(letters) = self.running.lane.dead_letters() else { return };
        self.running.lane.measure(match letter.reason {
            DeadLetterReason::Failed => Count::DeadFailed,
            DeadLetterReason::Panicked => Count::DeadPanicked,
            DeadLetterReason::TimedOut => Count::DeadTimedOut,
            DeadLetterReason::Expired => Count::DeadExpired,
            DeadLetterReason::Shed => Count::DeadShed,
            _ => Count::DeadOther,
        });
        let info = CommandInfo::new(&self.running.lane.id, letter.command_id, &letter.command_type);
        let evicted = letters.store(letter);
        letters.gone(&evicted);
        self.running.lane.observe(|| Transition::DeadLettered { command: info, attempts: self.running.attempt });
        if let Some(evicted) = evicted {
            self.running.lane.observe(|| Transition::DeadLetterEvicted {
                command: CommandInfo::new(&self.running.lane.id, evicted.command_id, &evicted.command_type),
            });
        }
    }

    fn error_of(&self, reason: DeadLetterReason) -> String {
        match reason {
            DeadLetterReason::Expired => self.expired(),
            DeadLetterReason::TimedOut => self.timed_out(),
            DeadLetterReason::Shed => LaneError::Shed,
            _ => LaneError::Cancelled { started: self.has_started() },
        }
        .to_string()
    }

    fn has_started(&self) -> bool {
        self.running.task.meta().life.has_started()
    }

    /// For who tells types apart: others' code, whose panic must not stop the count.
    fn command_type(&self) -> Arc<str> {
        contained(|| self.job.as_ref().map(|job| job.command_type().into())).unwrap_or_default()
    }

    /// Others' code.
    fn type_name(&self) -> &str {
        self.job.as_ref().map_or("", Job::command_type)
    }

    fn info(&self) -> CommandInfo {
        CommandInfo::new(&self.running.lane.id, self.running.id, self.type_name())
    }

    /// The time that the command had, to run.
    fn limit(&self) -> Duration {
        let settings = self.running.lane.settings.load();
        limit(self.extra.as_deref(), settings.config.default_timeout)
    }

    /// The time that it had to wait.
    fn wait_limit(&self) -> Duration {
        self.extra.as_deref().and_then(Extra::wait_limit).unwrap_or_default()
    }

    fn timed_out(&self) -> LaneError {
        LaneError::Timeout(self.limit())
    }

    fn expired(&self) -> LaneError {
        LaneError::Expired { waited: self.wait_limit() }
    }
}

/// What others' code gives; none if it panics.
pub(super) fn contained<T>(code: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        discard_panic(panic);
        None
    })
}

/// The shorter of the limits to one attempt and to the whole.
pub(super) fn limit(extra: Option<&Extra>, default_timeout: Option<Duration>) -> Duration {
    let attempt = extra.and_then(Extra::timeout).or(default_timeout);
    let total = extra.and_then(Extra::total_limit);
    [attempt, total].into_iter().flatten().min().unwrap_or_default()
}

/// Waits until a time; less if the command is ended.
struct Apart<'a> {
    sleep: Sleep,
    task: TaskRef,
    lane: &'a LaneCore,
    drain: Option<Duration>,
}

impl Future for Apart<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = self.task;
        let meta = task.meta();
        if self.lane.is_stopping() {
            let drain = self.drain.or(self.lane.settings.load().config.drain_timeout);
            let drained = self.lane.drain_deadline(drain);
            let shared = meta.shared;
            if shared.clock.now() >= drained {
                let _ended = meta.life.try_end(End::Stopped);
            } else if drained < self.sleep.deadline() {
                // Woken then, it finds that its time is up.
                self.sleep = Sleep::until(shared, drained);
            }
        }
        if meta.life.end().is_some() {
            return Poll::Ready(());
        }
        Pin::new(&mut self.sleep).poll(cx)
    }
}

impl<J: Job> Drop for Accepted<J> {
    #[inline]
    fn drop(&mut self) {
        if self.running.place != Whereabouts::Settled || self.extra.is_some() {
            self.drop_unsettled();
        }
    }
}

impl<J: Job> Accepted<J> {
    /// Dropped before its end: cancelled, expired, shed, or its executor was closed; or while its end is stored.
    fn drop_unsettled(&mut self) {
        if self.running.place != Whereabouts::Settled {
            // Ends it, so that whoever finds it in a line leaves it there.
            let earlier = self.running.task.meta().life.try_end(End::Done).err();
            self.apply(decide(None, earlier, self.has_started(), None), None, false);
        }
        if self.is_storing() {
            if let Some(stored) = self.stored() {
                stored.let_go();
            }
            self.give_back();
        }
    }
}

impl<J: Job> fmt::Debug for Accepted<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("id", &self.running.id).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    const ATTEMPTS: [Option<Ended>; 6] =
        [None, Some(Ended::Ok), Some(Ended::Error), Some(Ended::Panicked), Some(Ended::TimedOut), Some(Ended::Stopped)];

    #[test]
    fn what_was_said_first_holds() {
        let soon = Some(Duration::from_millis(1));
        for attempt in ATTEMPTS {
            for retry in [None, soon] {
                for end in [End::Cancelled, End::Stopped] {
                    assert_eq!(decide(attempt, Some(end), true, retry), Fate::Cancel);
                }
                assert_eq!(decide(attempt, Some(End::Expired), true, retry), Fate::TimeOut);
                assert_eq!(decide(attempt, Some(End::Expired), false, retry), Fate::Expire);
                assert_eq!(decide(attempt, Some(End::Shed), false, retry), Fate::Shed);
            }
        }
    }

    #[test]
    fn an_attempt_that_nobody_preceded_decides() {
        let fates = [Fate::Cancel, Fate::Complete, Fate::Fail, Fate::Panic, Fate::TimeOut, Fate::Cancel];
        for (attempt, fate) in ATTEMPTS.into_iter().zip(fates) {
            assert_eq!(decide(attempt, None, true, None), fate);
        }
    }

    #[test]
    fn only_a_failure_is_retried() {
        let soon = Duration::from_millis(1);
        for attempt in ATTEMPTS {
            let failed = matches!(attempt, Some(Ended::Error | Ended::Panicked | Ended::TimedOut));
            let retried = decide(attempt, None, true, Some(soon)) == Fate::Retry(soon);
            assert_eq!(retried, failed, "{attempt:?}");
        }
    }
}
