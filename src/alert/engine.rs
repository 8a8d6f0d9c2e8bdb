//! The alerts of all rules and lanes: judges readings and values checked by hand, and says what is to be told. No thread, no lock,
//! no clock: times are passed in.
//!
//! An alert may have several sources: queues that are measured apart but have a lane of the same name, and checks by hand. It
//! is as bad as the worst of them says.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use twox_hash::XxHash3_128;

use super::config::{LatencyAlertConfig, QueueDepthAlertConfig};
use super::evaluation::Past;
use super::notification::{Alert, AlertLevel, AlertStatus, Notification};
use super::rule::{AlertCondition, AlertRule, LATENCY, QUEUE_DEPTH};
use super::state::{Machine, Phase, Tell, Told};
use crate::clock::Tick;
use crate::error::ConfigErrors;
use crate::metrics::Reading;

/// Notifications kept to be looked at.
const HISTORY: usize = 256;

/// How long a value checked by hand counts beside those of readings.
const CHECK_COUNTS_FOR: Duration = Duration::from_secs(60);

/// Which alerts are meant: of a rule, of a lane, of both, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertMatcher {
    rule: Option<String>,
    lane: Option<String>,
}

impl AlertMatcher {
    /// All alerts.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Of these, the alerts of this rule.
    #[must_use]
    pub fn with_rule(mut self, rule: impl Into<String>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// Of these, the alerts of this lane.
    #[must_use]
    pub fn with_lane(mut self, lane: impl Into<String>) -> Self {
        self.lane = Some(lane.into());
        self
    }

    fn matches(&self, rule: &str, lane: &str) -> bool {
        self.rule.as_ref().is_none_or(|own| own == rule) && self.lane.as_ref().is_none_or(|own| own == lane)
    }
}

/// Names a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SilenceId(u64);

/// A time in which some alerts are not told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Silence {
    /// Names it.
    pub id: SilenceId,
    /// Whose alerts are not told.
    pub matcher: AlertMatcher,
    /// How long it still lasts.
    pub remaining: Duration,
}

/// Who says what a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Checks,
    Readings(u64),
}

/// What is checked by hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Check {
    QueueDepth(usize),
    LatencyMs(f64),
}

/// When something is judged: on the machine's clock and on the wall's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) tick: Tick,
    pub(super) wall: DateTime<Utc>,
}

/// The alerts' own time. It follows the readings (in a simulation they say how much has passed), and the clock between them.
#[derive(Debug)]
struct Timeline {
    now: Duration,
    tick: Tick,
}

impl Timeline {
    fn advance_to(&mut self, tick: Tick) -> Duration {
        self.now = self.now.saturating_add(tick.since(self.tick));
        self.tick = self.tick.max(tick);
        self.now
    }

    fn jump_to(&mut self, now: Duration, tick: Tick) -> Duration {
        self.now = self.now.max(now);
        self.tick = self.tick.max(tick);
        self.now
    }
}

/// Readings of one collector.
#[derive(Debug)]
struct Feed {
    past: Past,
    /// The alerts' time and the readings', at the first one.
    origin: Option<(Duration, Duration)>,
}

/// An alert that is pending or fires.
#[derive(Debug)]
struct Tracked {
    rule: Arc<AlertRule>,
    machine: Machine,
    told: Told,
    found: Vec<Found>,
    fingerprint: String,
    started_at: DateTime<Utc>,
    alert: Alert,
}

/// What a source says.
#[derive(Clone, Copy, Debug)]
struct Found {
    source: Source,
    value: f64,
    at: Duration,
}

#[derive(Debug)]
pub(super) struct Engine {
    rules: Arc<Vec<Arc<AlertRule>>>,
    depth: QueueDepthAlertConfig,
    latency: LatencyAlertConfig,
    instance: String,
    repeat: Duration,
    /// By rule and lane.
    alerts: BTreeMap<(String, String), Tracked>,
    feeds: HashMap<u64, Feed>,
    feeds_made: u64,
    timeline: Timeline,
    silences: Vec<(SilenceId, AlertMatcher, Duration)>,
    silences_made: u64,
    history: VecDeque<Notification>,
}

impl Engine {
    pub(super) fn new(instance: String, repeat: Duration, tick: Tick) -> Self {
        Self {
            rules: Arc::default(),
            depth: QueueDepthAlertConfig::default(),
            latency: LatencyAlertConfig::default(),
            instance,
            repeat,
            alerts: BTreeMap::new(),
            feeds: HashMap::new(),
            feeds_made: 0,
            timeline: Timeline { now: Duration::ZERO, tick },
            silences: Vec::new(),
            silences_made: 0,
            history: VecDeque::new(),
        }
    }

    pub(super) fn set_instance(&mut self, instance: String) {
        self.instance = instance;
    }

    pub(super) fn set_repeat(&mut self, repeat: Duration) {
        self.repeat = repeat;
    }

    pub(super) const fn queue_depth_config(&self) -> &QueueDepthAlertConfig {
        &self.depth
    }

    pub(super) const fn latency_config(&self) -> &LatencyAlertConfig {
        &self.latency
    }

    /// Adds rules; none if any of them is wrong.
    pub(super) fn add_rules(&mut self, rules: impl IntoIterator<Item = AlertRule>) -> Result<(), ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let mut all = (*self.rules).clone();
        for rule in rules {
            rule.check(&mut errors);
            if all.iter().any(|other| other.name() == rule.name()) {
                let path = format!("alerts[{:?}].name", rule.name());
                errors.push(path, rule.name(), "give each rule a name of its own: with_name(..)");
            }
            all.push(Arc::new(rule));
        }
        errors.into_result()?;
        self.rules = Arc::new(all);
        Ok(())
    }

    #[must_use]
    pub(super) fn set_queue_depth(&mut self, config: QueueDepthAlertConfig, moment: Moment) -> Vec<Notification> {
        let rule = config.enabled.then(|| AlertRule::of_queue_depth(&config));
        self.depth = config;
        self.replace(QUEUE_DEPTH, rule, moment)
    }

    #[must_use]
    pub(super) fn set_latency(&mut self, config: LatencyAlertConfig, moment: Moment) -> Vec<Notification> {
        let rule = config.enabled.then(|| AlertRule::of_latency(&config));
        self.latency = config;
        self.replace(LATENCY, rule, moment)
    }

    /// Puts a rule in the place of the one of this name. Its alerts go on under the new one, or are resolved if there is none.
    fn replace(&mut self, name: &str, rule: Option<AlertRule>, moment: Moment) -> Vec<Notification> {
        let rule = rule.map(Arc::new);
        let others = self.rules.iter().filter(|other| other.name() != name).cloned();
        self.rules = Arc::new(others.chain(rule.clone()).collect());
        self.timeline.advance_to(moment.tick);
        let keys: Vec<_> = self.alerts.keys().filter(|(rule, _)| rule == name).cloned().collect();
        let mut tell = Vec::new();
        for key in keys {
            match (&rule, self.alerts.get_mut(&key)) {
                (Some(rule), Some(tracked)) => tracked.rule = Arc::clone(rule),
                _ => tell.extend(self.end(&key, moment.wall)),
            }
        }
        tell
    }

    pub(super) fn add_feed(&mut self) -> u64 {
        self.feeds_made += 1;
        self.feeds.insert(self.feeds_made, Feed { past: Past::default(), origin: None });
        self.feeds_made
    }

    /// Whoever was measured is gone: what only its readings said does not hold any more.
    #[must_use]
    pub(super) fn end_feed(&mut self, feed: u64, moment: Moment) -> Vec<Notification> {
        self.feeds.remove(&feed);
        self.timeline.advance_to(moment.tick);
        self.forget(Source::Readings(feed), |_| true, moment.wall)
    }

    /// Judges a reading by all rules.
    #[must_use]
    pub(super) fn judge(&mut self, feed: u64, reading: &Arc<Reading>, tick: Tick) -> Vec<Notification> {
        let Some(mut state) = self.feeds.remove(&feed) else { return Vec::new() };
        let timeline = &mut self.timeline;
        let (origin, first) = *state.origin.get_or_insert_with(|| (timeline.advance_to(tick), reading.elapsed));
        let now = timeline.jump_to(origin.saturating_add(reading.elapsed.saturating_sub(first)), tick);
        let (rules, wall, source) = (Arc::clone(&self.rules), reading.at, Source::Readings(feed));
        let mut tell = Vec::new();
        state.past.advance(reading, &rules);
        for rule in rules.iter() {
            if rule.condition().is_global() {
                let value = state.past.evaluate_globally(rule, reading);
                tell.extend(self.observe(rule, "", Found { source, value, at: now }, wall));
                continue;
            }
            for lane in reading.lanes.iter().filter(|lane| rule.is_about(&lane.lane)) {
                let value = state.past.evaluate(rule, reading, lane);
                tell.extend(self.observe(rule, &lane.lane, Found { source, value, at: now }, wall));
            }
        }
        state.past.keep(reading);
        tell.extend(self.forget(source, |lane| !lane.is_empty() && reading.lane(lane).is_none(), wall));
        self.feeds.insert(feed, state);
        tell
    }

    /// Judges a value checked by hand.
    #[must_use]
    pub(super) fn check(&mut self, lane: &str, check: Check, moment: Moment) -> Vec<Notification> {
        let now = self.timeline.advance_to(moment.tick);
        let rules = Arc::clone(&self.rules);
        let mut tell = Vec::new();
        for rule in rules.iter().filter(|rule| rule.is_about(lane)) {
            let value = match check {
                Check::QueueDepth(depth) if *rule.condition() == AlertCondition::QueueDepth => depth as f64,
                Check::LatencyMs(latency) if rule.in_millis() && !latency.is_nan() => latency,
                _ => continue,
            };
            tell.extend(self.observe(rule, lane, Found { source: Source::Checks, value, at: now }, moment.wall));
        }
        tell
    }

    /// Ends what is over, where only checks by hand say so: no reading does it.
    #[must_use]
    pub(super) fn tick(&mut self, moment: Moment) -> Vec<Notification> {
        let now = self.timeline.advance_to(moment.tick);
        let due = |tracked: &Tracked| tracked.clears_unseen().is_some_and(|at| at <= now);
        let due: Vec<_> = self.alerts.iter().filter(|(_, tracked)| due(tracked)).map(|(key, _)| key.clone()).collect();
        due.into_iter().filter_map(|key| self.settle(&key, now, moment.wall)).collect()
    }

    /// When [`Engine::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Tick> {
        let next = self.alerts.values().filter_map(Tracked::clears_unseen).min()?;
        Some(self.timeline.tick.plus(next.saturating_sub(self.timeline.now)))
    }

    /// What fires now, as it would be told.
    pub(super) fn active(&self) -> Vec<Notification> {
        let firing = self.alerts.values().filter(|tracked| tracked.machine.phase().level().is_some());
        firing.map(|tracked| tracked.notification(AlertStatus::Firing, None, &self.instance)).collect()
    }

    /// What was told last, oldest first.
    pub(super) fn history(&self) -> Vec<Notification> {
        self.history.iter().cloned().collect()
    }

    pub(super) fn silence(&mut self, matcher: AlertMatcher, time: Duration, tick: Tick) -> SilenceId {
        let now = self.timeline.advance_to(tick);
        let until = now.saturating_add(time);
        self.silences.retain(|(.., until)| *until > now);
        self.silences_made += 1;
        let id = SilenceId(self.silences_made);
        self.silences.push((id, matcher, until));
        id
    }

    pub(super) fn unsilence(&mut self, id: SilenceId) -> bool {
        let before = self.silences.len();
        self.silences.retain(|(own, ..)| *own != id);
        self.silences.len() < before
    }

    pub(super) fn silences(&mut self, tick: Tick) -> Vec<Silence> {
        let now = self.timeline.advance_to(tick);
        self.silences.retain(|(.., until)| *until > now);
        let silences = self.silences.iter();
        silences
            .map(|(id, matcher, until)| Silence { id: *id, matcher: matcher.clone(), remaining: *until - now })
            .collect()
    }

    fn observe(
        &mut self,
        rule: &Arc<AlertRule>,
        lane: &str,
        found: Found,
        wall: DateTime<Utc>,
    ) -> Option<Notification> {
        let key = (rule.name().to_owned(), lane.to_owned());
        if let Some(tracked) = self.alerts.get_mut(&key) {
            tracked.found.retain(|other| other.source != found.source);
            tracked.found.push(found);
        } else {
            // Nearly all there is to see is no alert.
            if !rule.terms().reaches_any(found.value) {
                return None;
            }
            let tracked = Tracked {
                rule: Arc::clone(rule),
                machine: Machine::default(),
                told: Told::default(),
                found: vec![found],
                fingerprint: fingerprint(rule.name(), lane, &self.instance),
                started_at: wall,
                alert: Alert {
                    level: AlertLevel::Info,
                    lane_id: lane.to_owned(),
                    message: String::new(),
                    current_value: found.value,
                    threshold: f64::NAN,
                },
            };
            self.alerts.insert(key.clone(), tracked);
        }
        self.settle(&key, found.at, wall)
    }

    /// Draws the conclusion of what the sources say.
    fn settle(&mut self, key: &(String, String), now: Duration, wall: DateTime<Utc>) -> Option<Notification> {
        let mut silences = self.silences.iter();
        let silenced = silences.any(|(_, matcher, until)| *until > now && matcher.matches(&key.0, &key.1));
        let tracked = self.alerts.get_mut(key)?;
        let phase = tracked.judge(now, wall);
        let tell = tracked.told.next(phase, silenced, self.repeat, now);
        let notification = tell.map(|tell| match tell {
            Tell::Firing => tracked.notification(AlertStatus::Firing, None, &self.instance),
            Tell::Resolved => tracked.notification(AlertStatus::Resolved, Some(wall), &self.instance),
        });
        if phase == Phase::Inactive {
            self.alerts.remove(key);
        }
        notification.inspect(|notification| self.remember(notification))
    }

    /// Ends an alert for good.
    fn end(&mut self, key: &(String, String), wall: DateTime<Utc>) -> Option<Notification> {
        let mut tracked = self.alerts.remove(key)?;
        tracked.told.next(Phase::Inactive, false, Duration::MAX, Duration::ZERO)?;
        let notification = tracked.notification(AlertStatus::Resolved, Some(wall), &self.instance);
        self.remember(&notification);
        Some(notification)
    }

    /// Takes back what a source has said of some alerts.
    fn forget(&mut self, source: Source, of: impl Fn(&str) -> bool, wall: DateTime<Utc>) -> Vec<Notification> {
        let mut ended = Vec::new();
        for (key, tracked) in &mut self.alerts {
            if of(&key.1) && tracked.found.iter().any(|found| found.source == source) {
                tracked.found.retain(|found| found.source != source);
                if tracked.found.is_empty() {
                    ended.push(key.clone());
                }
            }
        }
        ended.into_iter().filter_map(|key| self.end(&key, wall)).collect()
    }

    fn remember(&mut self, notification: &Notification) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(notification.clone());
    }
}

impl Tracked {
    /// The phase that follows from what the sources say.
    fn judge(&mut self, now: Duration, wall: DateTime<Utc>) -> Phase {
        if self.found.iter().any(|found| found.source != Source::Checks) {
            self.found.retain(|found| found.source != Source::Checks || now - found.at < CHECK_COUNTS_FOR);
        }
        let Some(worst) = self.found.iter().copied().max_by(|a, b| a.value.total_cmp(&b.value)) else {
            return Phase::Inactive;
        };
        let terms = self.rule.terms();
        let hold = if worst.source == Source::Checks { Duration::ZERO } else { terms.hold };
        let before = self.machine.phase();
        let phase = self.machine.observe(&terms, worst.value, hold, now);
        if let Phase::Firing(level) = phase {
            if before.level().is_none() {
                self.started_at = wall;
            }
            self.alert.level = level;
            self.alert.current_value = worst.value;
            self.alert.threshold = terms.raise[level as usize].unwrap_or(f64::NAN);
            self.alert.message = self.rule.message(&self.alert.lane_id, worst.value, level);
        }
        phase
    }

    /// When it will be over, if no reading looks at it.
    fn clears_unseen(&self) -> Option<Duration> {
        let unseen = self.found.iter().all(|found| found.source == Source::Checks);
        self.machine.clears_at(&self.rule.terms()).filter(|_| unseen)
    }

    fn notification(&self, status: AlertStatus, ended_at: Option<DateTime<Utc>>, instance: &str) -> Notification {
        Notification {
            status,
            alert: self.alert.clone(),
            rule: self.rule.name().to_owned(),
            fingerprint: self.fingerprint.clone(),
            instance: instance.to_owned(),
            started_at: self.started_at,
            ended_at,
            sequence: self.told.sequence(),
        }
    }
}

/// The same for the same rule, lane and instance, in every process and version. Not the level: an alert that gets worse is the
/// same.
fn fingerprint(rule: &str, lane: &str, instance: &str) -> String {
    // A length in front of each part: no two lists of parts look the same.
    let parts = [rule, lane, instance].map(|part| format!("{}:{part}", part.len()));
    format!("{:032x}", XxHash3_128::oneshot(parts.concat().as_bytes()))
}
