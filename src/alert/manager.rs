//! What users see of alerts.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_lite::future::poll_once;

use super::config::{LatencyAlertConfig, QueueDepthAlertConfig};
use super::delivery::{AlertDeliveryStats, Receiver, Target, TargetRef};
use super::engine::{AlertMatcher, Check, Engine, Moment, Silence, SilenceId};
use super::notification::{Alert, AlertLevel, AlertSink, AlertStatus, Notification, SinkError};
use super::rule::AlertRule;
use crate::clock::{Clock, wall_now};
use crate::error::ConfigErrors;
use crate::executor::{Ambient, discard_panic, panic_message, timeout};
use crate::metrics::{Consumer, QueueMetrics, Reading};

/// How long what goes on is not told again, unless said otherwise.
const REPEAT_INTERVAL: Duration = Duration::from_secs(4 * 3600);

/// How long a check by hand waits for slow callbacks.
const CALLBACKS_TAKE: Duration = Duration::from_secs(1);

/// What callbacks are together, in [`AlertDeliveryStats`].
const CALLBACKS: &str = "callbacks";

/// Somebody who is told of an alert that fires.
pub type AlertCallback = Arc<dyn Fn(Alert) + Send + Sync>;

type OnNotification = Arc<dyn Fn(&Notification) + Send + Sync>;

/// Judges queues by rules and tells who wants to know. Clones are the same.
///
/// Give it to a queue ([`QueueManagerBuilder::with_alerts`](crate::QueueManagerBuilder::with_alerts)), and its rules are looked at about once
/// a second. An alert fires when a value has reached a threshold for as long as its [`AlertRule`] asks; it is told once, again
/// when its level changes, again after [the repeat interval](AlertManager::with_repeat_interval), and once when it is over. If
/// what an alert is about is not measured any more, since its queue is gone, it is over.
///
/// Callbacks run one after the other on a thread of their own, each sink on another one; workers never wait for them. There are
/// at most 256 notifications waiting per sink and for callbacks; beyond that the oldest that is no resolution is dropped.
/// [`AlertSink`]s are tried again for up to an hour. The threads end with the last clone; what waits then is dropped:
/// [`AlertManager::flush`] or [`AlertManager::shutdown`] come before that.
///
/// ```
/// # futures::executor::block_on(async {
/// use corelane::AlertManager;
///
/// let alerts = AlertManager::with_queue_depth_alerts(100, 200);
/// alerts.add_callback(|alert| eprintln!("[{}] {}", alert.level, alert.message)).await;
///
/// alerts.check_queue_depth("api", 150).await; // [warning] lane api: queue depth 150 (warning from 100)
/// alerts.check_queue_depth("api", 160).await; // nothing new
/// alerts.check_queue_depth("api", 250).await; // [critical] lane api: queue depth 250 (critical from 200)
/// # });
/// ```
#[derive(Clone)]
pub struct AlertManager {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Mutex<Engine>,
    clock: Clock,
    callbacks: Arc<Callbacks>,
    /// The thread of callbacks, which also ends alerts that nobody looks at.
    callbacks_target: TargetRef,
    sinks: Mutex<Vec<TargetRef>>,
    /// What [`AlertManager::observe`] gives readings to.
    observed: OnceLock<u64>,
    /// By the metrics that they come from: queues that share metrics share one.
    feeds: Mutex<HashMap<usize, Weak<Feed>>>,
    /// For queues that have none.
    metrics: OnceLock<QueueMetrics>,
}

impl AlertManager {
    /// Without rules.
    #[must_use]
    pub fn new() -> Self {
        let clock = Clock::system();
        let engine = Engine::new(host_name(), REPEAT_INTERVAL, clock.now());
        let callbacks = Arc::new(Callbacks::default());
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = Weak::clone(shared);
            let alarm = move || shared.upgrade().into_iter().for_each(|shared| shared.tick());
            let receiver = Box::new(Arc::clone(&callbacks));
            Shared {
                engine: Mutex::new(engine),
                clock,
                callbacks_target: Target::new(
                    CALLBACKS.into(),
                    "corelane-alerts".into(),
                    receiver,
                    Some(Box::new(alarm)),
                ),
                callbacks,
                sinks: Mutex::default(),
                observed: OnceLock::new(),
                feeds: Mutex::default(),
                metrics: OnceLock::new(),
            }
        });
        Self { shared }
    }

    /// A warning from `warning_threshold` pending commands in a lane, critical from `critical_threshold`: see
    /// [`AlertManager::set_queue_depth_config`].
    #[must_use]
    pub fn with_queue_depth_alerts(warning_threshold: usize, critical_threshold: usize) -> Self {
        let manager = Self::new();
        manager.shared.set_queue_depth(QueueDepthAlertConfig::new(warning_threshold, critical_threshold));
        manager
    }

    /// A warning from `warning_threshold_ms` milliseconds, critical from `critical_threshold_ms`: see
    /// [`AlertManager::set_latency_config`].
    #[must_use]
    pub fn with_latency_alerts(warning_threshold_ms: f64, critical_threshold_ms: f64) -> Self {
        let manager = Self::new();
        manager.shared.set_latency(LatencyAlertConfig::new(warning_threshold_ms, critical_threshold_ms));
        manager
    }

    /// Adds a rule.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it: no threshold, one of the wrong kind, a critical one below that for warnings, a window
    /// of zero, a name that another rule has.
    pub fn with_rule(self, rule: AlertRule) -> Result<Self, ConfigErrors> {
        self.with_rules([rule])
    }

    /// Adds rules: all, or none if any is wrong.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them, as [`AlertManager::with_rule`].
    pub fn with_rules(self, rules: impl IntoIterator<Item = AlertRule>) -> Result<Self, ConfigErrors> {
        self.shared.engine().add_rules(rules)?;
        Ok(self)
    }

    /// Has notifications delivered to a sink as well: those that come from now on.
    #[must_use]
    pub fn with_sink(self, sink: Arc<dyn AlertSink>) -> Self {
        let name = sink.name().to_owned();
        let thread_name = format!("corelane-alerts-{name}").replace('\0', "");
        let target = Target::new(name, thread_name, Box::new(SinkReceiver(sink)), None);
        self.shared.sinks().push(target);
        self
    }

    /// Names this process in notifications and fingerprints, to tell it from others with the same lanes; to be given before there
    /// are alerts. Default: the name of the host, as far as the system tells it.
    #[must_use]
    pub fn with_instance(self, instance: impl Into<String>) -> Self {
        self.shared.engine().set_instance(instance.into());
        self
    }

    /// How long an alert that goes on at the same level is not told again. Default: 4 h. Zero: each time it is found to hold.
    #[must_use]
    pub fn with_repeat_interval(self, interval: Duration) -> Self {
        self.shared.engine().set_repeat(interval);
        self
    }

    /// Sets the rule `queue_depth`, in the place of any other rule of this name; disabled, there is none. It fires at once, and is over
    /// when the depth has been below 0.8 of the threshold for 10 s. Async as in a3s-lane; never waits.
    pub async fn set_queue_depth_config(&self, config: QueueDepthAlertConfig) {
        self.shared.set_queue_depth(config);
    }

    /// Sets the rule `latency`, in the place of any other rule of this name; disabled, there is none. It is about every single command,
    /// as a3s-lane's: what is compared is the longest run of an attempt within the last minute, within
    /// [`Histogram::RELATIVE_ERROR`](crate::Histogram::RELATIVE_ERROR), or what is [checked by hand](AlertManager::check_latency).
    /// It is over when nothing has been above 0.8 of the threshold for a minute. For a quantile, [`AlertRule::run_quantile`].
    /// Async as in a3s-lane; never waits.
    pub async fn set_latency_config(&self, config: LatencyAlertConfig) {
        self.shared.set_latency(config);
    }

    /// What [`AlertManager::set_queue_depth_config`] has set. Async as in a3s-lane; never waits.
    pub async fn queue_depth_config(&self) -> QueueDepthAlertConfig {
        self.shared.engine().queue_depth_config().clone()
    }

    /// What [`AlertManager::set_latency_config`] has set. Async as in a3s-lane; never waits.
    pub async fn latency_config(&self) -> LatencyAlertConfig {
        self.shared.engine().latency_config().clone()
    }

    /// Has `callback` called for each alert that fires, gets worse or better, or goes on after the repeat interval; if a lower
    /// level follows, as long as its threshold is reached. Not when it is over: see [`AlertManager::add_notification_callback`].
    ///
    /// Callbacks run on a thread of their own, within the tokio runtime that this was called in (with the feature `tokio`). They
    /// may panic, and may call anything here. One that owns a clone of this manager keeps it alive. Async as in a3s-lane; never
    /// waits.
    pub async fn add_callback<F>(&self, callback: F)
    where
        F: Fn(Alert) + Send + Sync + 'static,
    {
        self.add_notification_callback(move |notification| {
            let alert = &notification.alert;
            if notification.status == AlertStatus::Firing && alert.current_value >= alert.threshold {
                callback(alert.clone());
            }
        });
    }

    /// Has `callback` called for each notification: also when an alert is over. As [`AlertManager::add_callback`].
    ///
    /// What happened before an alert, from an emitter that records, in a file that <https://ui.perfetto.dev> opens:
    ///
    /// ```
    /// use corelane::{AlertManager, AlertStatus, EventEmitter};
    ///
    /// // The queue's emitter.
    /// let events = EventEmitter::with_recorder(10_000);
    /// let alerts = AlertManager::new();
    /// alerts.add_notification_callback(move |notification| {
    ///     // The first notification of an alert, not those of changes of its level.
    ///     if notification.status == AlertStatus::Firing && notification.sequence == 1 {
    ///         let file = format!("{}.json", notification.fingerprint);
    ///         if let Err(error) = std::fs::write(&file, events.recording().to_perfetto()) {
    ///             eprintln!("{file}: {error}");
    ///         }
    ///     }
    /// });
    /// ```
    pub fn add_notification_callback<F>(&self, callback: F)
    where
        F: Fn(&Notification) + Send + Sync + 'static,
    {
        self.shared.callbacks.add(Arc::new(callback));
    }

    /// Judges a lane's depth, as if it had been found in it: by all rules on queue depths, at once. Beside what a queue's numbers
    /// say, it counts for a minute, or until the next check.
    ///
    /// Waits for the callbacks that it causes, but no longer than a second, and not when called by a callback.
    pub async fn check_queue_depth(&self, lane_id: &str, depth: usize) {
        self.check(lane_id, Check::QueueDepth(depth)).await;
    }

    /// Judges a latency in milliseconds, as if a command had taken that long, by the rule of [`AlertManager::set_latency_config`].
    /// Otherwise as [`AlertManager::check_queue_depth`].
    pub async fn check_latency(&self, lane_id: &str, latency_ms: f64) {
        self.check(lane_id, Check::LatencyMs(latency_ms)).await;
    }

    /// Judges a reading, of queues whose alerts this is not, or a reading of your own. Those of queues that this was given to
    /// are judged by themselves. Their times go on from one call to the next.
    pub fn observe(&self, reading: &Arc<Reading>) {
        let feed = *self.shared.observed.get_or_init(|| self.shared.engine().add_feed());
        self.shared.judge(feed, reading);
    }

    /// The alerts that fire now, silenced ones as well, by rule and lane.
    #[must_use]
    pub fn active(&self) -> Vec<Notification> {
        self.shared.engine().active()
    }

    /// The last 256 notifications, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Notification> {
        self.shared.engine().history()
    }

    /// For `time`, nobody is told of these alerts. One that was told before is told when it is over; one that still holds
    /// afterwards is told then.
    pub fn silence(&self, matcher: AlertMatcher, time: Duration) -> SilenceId {
        self.shared.engine().silence(matcher, time, self.shared.clock.now())
    }

    /// Ends a silence. Whether there was one.
    pub fn unsilence(&self, silence: SilenceId) -> bool {
        self.shared.engine().unsilence(silence)
    }

    /// The silences that there are.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.shared.engine().silences(self.shared.clock.now())
    }

    /// What has become of notifications: of those for callbacks first, then for each sink.
    #[must_use]
    pub fn delivery_stats(&self) -> Vec<AlertDeliveryStats> {
        self.shared.targets().iter().map(|target| target.stats()).collect()
    }

    /// Waits until what has been told so far is delivered or given up, at most for `time`. Whether it is. From a callback it does
    /// not wait for callbacks, nor from a sink for that sink.
    pub async fn flush(&self, time: Duration) -> bool {
        let targets = self.shared.targets().into_iter().filter(|target| !target.is_this_thread());
        let waits: Vec<_> = targets.map(|target| (target.last_id(), target)).collect();
        let all = async {
            for (id, target) in &waits {
                target.until_settled(*id).await;
            }
        };
        within(time, all).await
    }

    /// Waits as [`AlertManager::flush`], then drops what is left, and ends the threads. Nothing is delivered afterwards. Whether
    /// all was delivered or given up by then and the threads have ended, both within `time`; as in a flush, what waits for the
    /// caller's own thread does not count.
    pub async fn shutdown(&self, time: Duration) -> bool {
        let deadline = self.shared.clock.now().plus(time);
        let flushed = self.flush(time).await;
        let targets = self.shared.targets();
        targets.iter().for_each(|target| target.close());
        let ended = async {
            for target in targets.iter().filter(|target| !target.is_this_thread()) {
                target.until_ended().await;
            }
        };
        let left = deadline.since(self.shared.clock.now());
        within(left, ended).await && flushed
    }

    /// What measures queues that have no metrics of their own: one for all, since they may be many.
    pub(crate) fn metrics(&self) -> &QueueMetrics {
        self.shared.metrics.get_or_init(QueueMetrics::local)
    }

    /// Judges all readings of `metrics`, as long as somebody has what this gives.
    pub(crate) fn judges(&self, metrics: &QueueMetrics) -> Arc<dyn Consumer> {
        let mut feeds = self.shared.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(&metrics.id()).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let feed = self.shared.engine().add_feed();
        let feed = Arc::new(Feed { feed, shared: Arc::clone(&self.shared), _metrics: metrics.clone() });
        feeds.insert(metrics.id(), Arc::downgrade(&feed));
        let consumer: Weak<Feed> = Arc::downgrade(&feed);
        metrics.attach(consumer);
        feed
    }

    async fn check(&self, lane: &str, check: Check) {
        let shared = &self.shared;
        let told = shared.with_engine(|engine, moment| engine.check(lane, check, moment));
        if let Some(id) = told.filter(|_| !shared.callbacks_target.is_this_thread()) {
            within(CALLBACKS_TAKE, shared.callbacks_target.until_settled(id)).await;
        }
    }
}

impl Default for AlertManager {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for AlertManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertManager")
            .field("active", &self.active())
            .field("delivery", &self.delivery_stats())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn set_queue_depth(self: &Arc<Self>, config: QueueDepthAlertConfig) {
        self.with_engine(|engine, moment| engine.set_queue_depth(config, moment));
    }

    fn set_latency(self: &Arc<Self>, config: LatencyAlertConfig) {
        self.with_engine(|engine, moment| engine.set_latency(config, moment));
    }

    fn judge(&self, feed: u64, reading: &Arc<Reading>) {
        self.with_engine(|engine, moment| engine.judge(feed, reading, moment.tick));
    }

    fn tick(&self) {
        self.with_engine(Engine::tick);
    }

    /// Has what the engine says told. The number of what is told to callbacks last, if anything is.
    fn with_engine(&self, change: impl FnOnce(&mut Engine, Moment) -> Vec<Notification>) -> Option<u64> {
        let moment = Moment { tick: self.clock.now(), wall: wall_now() };
        let mut engine = self.engine();
        let tell: Vec<_> = change(&mut engine, moment).into_iter().map(Arc::new).collect();
        self.callbacks_target.set_alarm(engine.due());
        // Under the engine's lock, so that what is told is told in the order in which it was found.
        let id = if tell.is_empty() { None } else { self.send(&tell) };
        drop(engine);
        tell.iter().for_each(|notification| log(notification));
        id
    }

    fn send(&self, tell: &[Arc<Notification>]) -> Option<u64> {
        for target in self.sinks().iter() {
            for notification in tell {
                target.push(Arc::clone(notification));
            }
        }
        if self.callbacks.is_empty() {
            return None;
        }
        tell.iter().map(|notification| self.callbacks_target.push(Arc::clone(notification))).last()
    }

    fn targets(&self) -> Vec<TargetRef> {
        std::iter::once(&self.callbacks_target).chain(self.sinks().iter()).cloned().collect()
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sinks(&self) -> MutexGuard<'_, Vec<TargetRef>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.targets().iter().for_each(|target| target.close());
    }
}

/// The readings of one collector.
struct Feed {
    feed: u64,
    shared: Arc<Shared>,
    /// So that no others come to be where they are.
    _metrics: QueueMetrics,
}

impl Consumer for Feed {
    fn consume(&self, reading: &Arc<Reading>) {
        self.shared.judge(self.feed, reading);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.with_engine(|engine, moment| engine.end_feed(self.feed, moment));
    }
}

/// The callbacks, all together a receiver.
#[derive(Default)]
struct Callbacks(Mutex<Vec<Callback>>);

#[derive(Clone)]
struct Callback {
    call: OnNotification,
    ambient: Option<Arc<dyn Ambient>>,
}

impl Callbacks {
    fn add(&self, call: OnNotification) {
        self.list().push(Callback { call, ambient: crate::ambient() });
    }

    fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Callback>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver for Arc<Callbacks> {
    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        // Not under the lock: a callback may add another one.
        let callbacks = self.list().clone();
        let mut result = Ok(());
        for Callback { call, ambient } in callbacks {
            let called = catch_unwind(AssertUnwindSafe(|| {
                let _entered = ambient.as_deref().map(Ambient::enter);
                call(notification);
            }));
            if let Err(payload) = called {
                result = Err(SinkError::Refused(format!("a callback panicked: {}", panic_message(payload.as_ref()))));
                discard_panic(payload);
            }
        }
        result
    }
}

struct SinkReceiver(Arc<dyn AlertSink>);

impl Receiver for SinkReceiver {
    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        self.0.deliver(notification)
    }
}

/// Whether it was ready in time.
async fn within(time: Duration, future: impl Future<Output = ()>) -> bool {
    let mut future = std::pin::pin!(future);
    // Outside of workers, a timer starts the global executor: not if it is not needed.
    if poll_once(&mut future).await.is_some() {
        return true;
    }
    timeout(time, future).await.is_ok()
}

fn log(notification: &Notification) {
    let Notification { rule, alert, .. } = notification;
    let Alert { level, lane_id: lane, message, .. } = alert;
    match (notification.status, level) {
        (AlertStatus::Firing, AlertLevel::Critical) => tracing::error!(rule, lane, %level, message, "alert"),
        (AlertStatus::Firing, AlertLevel::Warning) => tracing::warn!(rule, lane, %level, message, "alert"),
        (AlertStatus::Firing, AlertLevel::Info) => tracing::info!(rule, lane, %level, message, "alert"),
        (AlertStatus::Resolved, _) => tracing::info!(rule, lane, %level, message, "alert resolved"),
    }
}

/// Empty where the system does not tell it.
fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    let variables = ["HOSTNAME", "COMPUTERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    kernel.filter(|name| !name.is_empty()).or(variables).unwrap_or_default()
}
