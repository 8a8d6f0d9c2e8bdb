//! The thread that delivers to one receiver. Started by the first notification or alarm; ends when told to, or when the receiver is
//! gone, after what it is just delivering.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use event_listener::Event;
use twox_hash::XxHash3_64;

use super::AlertDeliveryStats;
use super::outbox::{Next, Outbox};
use crate::alert::notification::{Notification, SinkError};
use crate::clock::{Clock, Tick};
use crate::executor::{discard_panic, panic_message};

/// Who gets notifications: a sink, or the callbacks.
pub(in crate::alert) trait Receiver: Send + Sync {
    fn deliver(&self, notification: &Notification) -> Result<(), SinkError>;
}

/// What the thread does at a time that was [set](Target::set_alarm).
pub(in crate::alert) type Alarm = Box<dyn Fn() + Send + Sync>;

pub(in crate::alert) type TargetRef = Arc<Target>;

pub(in crate::alert) struct Target {
    name: String,
    thread_name: String,
    receiver: Box<dyn Receiver>,
    alarm: Option<Alarm>,
    clock: Clock,
    state: Mutex<State>,
    /// Something has come, or the end.
    wake: Condvar,
    /// Something was settled, or the thread has ended.
    settled: Event,
}

struct State {
    outbox: Outbox,
    alarm_at: Option<Tick>,
    /// The thread, while there is one.
    thread: Option<ThreadId>,
}

impl Target {
    pub(in crate::alert) fn new(
        name: String,
        thread_name: String,
        receiver: Box<dyn Receiver>,
        alarm: Option<Alarm>,
    ) -> TargetRef {
        let outbox = Outbox::new(name.clone());
        let state = State { outbox, alarm_at: None, thread: None };
        Arc::new(Self {
            name,
            thread_name,
            receiver,
            alarm,
            clock: Clock::system(),
            state: Mutex::new(state),
            wake: Condvar::new(),
            settled: Event::new(),
        })
    }

    /// Has it delivered. Its number, for [`Target::until_settled`].
    pub(in crate::alert) fn push(self: &Arc<Self>, notification: Arc<Notification>) -> u64 {
        let mut state = self.state();
        let id = state.outbox.push(notification, self.clock.now());
        self.start(&mut state);
        drop(state);
        self.wake.notify_all();
        id
    }

    /// Has the thread ring at this time, once; none takes an earlier wish back.
    pub(in crate::alert) fn set_alarm(self: &Arc<Self>, at: Option<Tick>) {
        let mut state = self.state();
        if state.alarm_at == at {
            return;
        }
        state.alarm_at = at;
        if at.is_some() {
            self.start(&mut state);
        }
        drop(state);
        self.wake.notify_all();
    }

    /// Gives up what waits, and ends the thread once it has delivered what it is delivering. Does not wait for that: it
    /// may be called by what is being delivered.
    pub(in crate::alert) fn close(&self) {
        let mut state = self.state();
        let dropped = state.outbox.close();
        drop(state);
        if dropped > 0 {
            tracing::warn!(sink = self.name, dropped, "alerts ended with notifications that were not delivered");
        }
        self.wake.notify_all();
        self.settled.notify(usize::MAX);
    }

    /// Whether this is called from what is being delivered.
    pub(in crate::alert) fn is_this_thread(&self) -> bool {
        self.state().thread == Some(std::thread::current().id())
    }

    pub(in crate::alert) fn last_id(&self) -> u64 {
        self.state().outbox.last_id()
    }

    pub(in crate::alert) fn stats(&self) -> AlertDeliveryStats {
        self.state().outbox.stats()
    }

    /// Waits until all up to this number is delivered or given up.
    pub(in crate::alert) async fn until_settled(&self, id: u64) {
        self.until(|state| !state.outbox.has_until(id)).await;
    }

    /// Waits until there is no thread.
    pub(in crate::alert) async fn until_ended(&self) {
        self.until(|state| state.thread.is_none()).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let listener = self.settled.listen();
            if holds(&self.state()) {
                return;
            }
            listener.await;
        }
    }

    fn start(self: &Arc<Self>, state: &mut State) {
        if state.thread.is_some() || state.outbox.is_closed() {
            return;
        }
        let target = Arc::clone(self);
        let thread = std::thread::Builder::new().name(self.thread_name.clone()).spawn(move || {
            // What receives is contained by itself; whoever is told of it, or what an alarm drops, may panic as well.
            while let Err(payload) = catch_unwind(AssertUnwindSafe(|| target.run())) {
                discard_panic(payload);
            }
        });
        match thread {
            Ok(thread) => state.thread = Some(thread.thread().id()),
            // What waits is delivered when the next one comes and there is a thread.
            Err(error) => tracing::error!(%error, sink = self.name, "no thread for alerts"),
        }
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.outbox.is_closed() {
            let now = self.clock.now();
            match state.outbox.next(now) {
                Next::Deliver(notification) => {
                    drop(state);
                    self.deliver(&notification);
                    state = self.state();
                }
                Next::GiveUp(notification) => {
                    drop(state);
                    self.settled.notify(usize::MAX);
                    let message = &notification.alert.message;
                    tracing::error!(sink = self.name, message, "an alert was not delivered for an hour: given up");
                    state = self.state();
                }
                Next::Wait(_) if state.alarm_at.is_some_and(|at| at <= now) => {
                    state.alarm_at = None;
                    drop(state);
                    if let Some(alarm) = &self.alarm {
                        alarm();
                    }
                    state = self.state();
                }
                Next::Wait(until) => {
                    let until = until.into_iter().chain(state.alarm_at).min();
                    state = self.wait(state, until.map(|until| until.since(now)));
                }
            }
        }
        state.thread = None;
        drop(state);
        self.settled.notify(usize::MAX);
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Option<Duration>) -> MutexGuard<'a, State> {
        match time {
            Some(time) => self.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn deliver(&self, notification: &Notification) {
        let delivered = catch_unwind(AssertUnwindSafe(|| self.receiver.deliver(notification)));
        let result = delivered.unwrap_or_else(|payload| {
            let message = format!("panicked: {}", panic_message(payload.as_ref()));
            discard_panic(payload);
            Err(SinkError::Refused(message))
        });
        let error = result.as_ref().err().map(ToString::to_string);
        let now = self.clock.now();
        // As random as it has to be: differs between alerts, instances and attempts.
        let random = XxHash3_64::oneshot_with_seed(now.as_nanos(), notification.fingerprint.as_bytes());
        let again = self.state().outbox.settle(result, now, random);
        self.settled.notify(usize::MAX);
        if let Some(error) = error {
            let (sink, alert) = (&self.name, &notification.alert.message);
            match again {
                Some(again) => tracing::warn!(sink, alert, error, ?again, "an alert was not delivered"),
                None => tracing::error!(sink, alert, error, "an alert was not delivered: given up"),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
