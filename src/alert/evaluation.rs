//! What a rule finds in the readings: a number. Keeps the readings that the rules' windows begin with.
//!
//! A window keeps at most [`SAMPLES`] readings and two more, so it is up to a [`SAMPLES`]th longer than asked for, and what is kept does
//! not depend on how often readings come.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::rule::{AlertCondition, AlertRule};
use crate::metrics::{Histogram, LaneReading, Reading};

/// Readings kept per window.
const SAMPLES: u32 = 16;

/// What lanes had before they were.
static NOTHING: LazyLock<LaneReading> = LazyLock::new(LaneReading::default);

/// The readings of one source, as far as rules need them.
#[derive(Debug, Default)]
pub(super) struct Past {
    windows: HashMap<Duration, Window>,
    progress: HashMap<Arc<str>, Progress>,
}

/// Since when a lane has been seen to have commands that are due and neither to start nor to end any.
#[derive(Debug)]
struct Progress {
    count: u64,
    idle: bool,
    since: Duration,
}

impl Past {
    /// Takes note of a reading, before rules are evaluated on it.
    pub(super) fn advance(&mut self, reading: &Arc<Reading>, rules: &[Arc<AlertRule>]) {
        let lengths = || rules.iter().filter_map(|rule| rule.condition().window());
        self.windows.retain(|length, _| lengths().any(|used| used == *length));
        for length in lengths() {
            self.windows.entry(length).or_insert_with(|| Window::new(length)).drop_older_than(reading.elapsed);
        }
        self.progress.retain(|lane, _| reading.lane(lane).is_some());
        for lane in &reading.lanes {
            let count = lane.started + lane.finished.total();
            let idle = lane.paused || lane.pending <= lane.delayed;
            // From the first reading that shows something to do: since the one before, it may have come at any time.
            let new = Progress { count, idle, since: reading.elapsed };
            match self.progress.get_mut(&lane.lane) {
                Some(progress) if progress.count == count && !progress.idle && !idle => {}
                Some(progress) => *progress = new,
                None => drop(self.progress.insert(Arc::clone(&lane.lane), new)),
            }
        }
    }

    /// Keeps the reading as what later windows begin with, after rules were evaluated on it.
    pub(super) fn keep(&mut self, reading: &Arc<Reading>) {
        for window in self.windows.values_mut() {
            window.keep(reading);
        }
    }

    /// The value of a rule in a lane, in the rule's unit: 0 if there is nothing to find.
    pub(super) fn evaluate(&self, rule: &AlertRule, reading: &Reading, lane: &LaneReading) -> f64 {
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
        let due = lane.pending > lane.delayed;
        match *rule.condition() {
            AlertCondition::QueueDepth => lane.pending as f64,
            AlertCondition::OldestPendingAge => seconds(lane.oldest_pending),
            AlertCondition::OldestActiveAge => seconds(lane.oldest_active),
            AlertCondition::DeadLetters => lane.dead_letters as f64,
            AlertCondition::NoProgress => {
                let since = self.progress.get(&lane.lane).map_or(reading.elapsed, |progress| progress.since);
                reading.elapsed.saturating_sub(since).as_secs_f64()
            }
            AlertCondition::Saturated if due && lane.active >= lane.max_concurrency => seconds(lane.oldest_pending),
            AlertCondition::Saturated => 0.0,
            AlertCondition::WaitQuantile { q, .. } => {
                self.quantile(rule, reading, q, |reading| &lane_of(reading, lane).wait, &lane.wait)
            }
            AlertCondition::RunQuantile { q, .. } => {
                self.quantile(rule, reading, q, |reading| &lane_of(reading, lane).run, &lane.run)
            }
            AlertCondition::FailureRatio { .. } => {
                let Some((base, _)) = self.base(rule, reading) else { return 0.0 };
                let before = lane_of(base, lane).finished;
                let failed = lane.finished.failed().saturating_sub(before.failed());
                let all = failed + lane.finished.ok.saturating_sub(before.ok);
                if all < rule.min_count().max(1) { 0.0 } else { failed as f64 / all as f64 }
            }
            AlertCondition::DeadLetterGrowth { .. } => {
                let Some((base, _)) = self.base(rule, reading) else { return 0.0 };
                lane.dead_lettered.total().saturating_sub(lane_of(base, lane).dead_lettered.total()) as f64
            }
            AlertCondition::RejectRate { .. } => {
                let Some((base, span)) = self.base(rule, reading) else { return 0.0 };
                let refused = |lane: &LaneReading| lane.rejected.total() - lane.rejected.shutdown;
                refused(lane).saturating_sub(refused(lane_of(base, lane))) as f64 / span.as_secs_f64()
            }
            AlertCondition::EventsDropped { .. }
            | AlertCondition::StorageErrors { .. }
            | AlertCondition::StuckPolls { .. } => 0.0,
        }
    }

    /// The value of a rule that is about all lanes together.
    pub(super) fn evaluate_globally(&self, rule: &AlertRule, reading: &Reading) -> f64 {
        let Some((base, _)) = self.base(rule, reading) else { return 0.0 };
        let grown = |count: fn(&Reading) -> u64| count(reading).saturating_sub(base.map_or(0, count)) as f64;
        match rule.condition() {
            AlertCondition::EventsDropped { .. } => grown(|reading| reading.events_dropped),
            AlertCondition::StorageErrors { .. } => grown(|reading| reading.storage_errors),
            AlertCondition::StuckPolls { .. } => {
                grown(|reading| reading.workers.iter().map(|worker| worker.stuck).sum())
            }
            _ => 0.0,
        }
    }

    fn quantile<'a>(
        &'a self,
        rule: &AlertRule,
        reading: &'a Reading,
        q: f64,
        of: impl Fn(Option<&'a Reading>) -> &'a Histogram,
        now: &Histogram,
    ) -> f64 {
        let Some((base, _)) = self.base(rule, reading) else { return 0.0 };
        let before = of(base);
        if now.count().saturating_sub(before.count()) < rule.min_count().max(1) {
            return 0.0;
        }
        let seconds = now.since(before).quantile(q).unwrap_or_default().as_secs_f64();
        if rule.in_millis() { seconds * 1000.0 } else { seconds }
    }

    /// What the rule's window begins with, and how long it is; a base of none is the beginning of the measurement, where nothing
    /// had happened.
    fn base(&self, rule: &AlertRule, reading: &Reading) -> Option<(Option<&Reading>, Duration)> {
        let base = self.windows.get(&rule.condition().window()?)?.base(reading.elapsed)?;
        let span = reading.elapsed.saturating_sub(base.map_or(Duration::ZERO, |base| base.elapsed));
        (!span.is_zero()).then_some((base, span))
    }
}

fn lane_of<'a>(reading: Option<&'a Reading>, lane: &LaneReading) -> &'a LaneReading {
    reading.and_then(|reading| reading.lane(&lane.lane)).unwrap_or(&NOTHING)
}

/// Readings that a window of this length may begin with, oldest first.
#[derive(Debug)]
struct Window {
    length: Duration,
    samples: VecDeque<Arc<Reading>>,
}

impl Window {
    const fn new(length: Duration) -> Self {
        Self { length, samples: VecDeque::new() }
    }

    /// Leaves one sample at most that is as old as the window.
    fn drop_older_than(&mut self, now: Duration) {
        let old = |sample: &Arc<Reading>| sample.elapsed.saturating_add(self.length) <= now;
        while self.samples.get(1).is_some_and(old) {
            self.samples.pop_front();
        }
    }

    fn keep(&mut self, reading: &Arc<Reading>) {
        let next = self.samples.back().map(|sample| sample.elapsed.saturating_add(self.length / SAMPLES));
        if next.is_none_or(|next| next <= reading.elapsed) {
            self.samples.push_back(Arc::clone(reading));
        }
    }

    /// None if there is no earlier reading, and the measurement began before the window.
    fn base(&self, now: Duration) -> Option<Option<&Reading>> {
        if now <= self.length {
            return Some(None);
        }
        // While the window is not full yet, it is shorter.
        self.samples.front().map(|sample| Some(&**sample))
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;
    use crate::metrics::QueueMetrics;

    const SECOND: Duration = Duration::from_secs(1);

    fn reading(second: u64, lanes: Vec<LaneReading>) -> Arc<Reading> {
        let mut reading = (*QueueMetrics::local().collect()).clone();
        (reading.elapsed, reading.lanes) = (Duration::from_secs(second), lanes);
        (reading.storage_errors, reading.events_dropped) = (second, 2 * second);
        Arc::new(reading)
    }

    fn lane(change: impl FnOnce(&mut LaneReading)) -> LaneReading {
        let mut lane = LaneReading { lane: "a".into(), max_concurrency: 2, ..LaneReading::default() };
        change(&mut lane);
        lane
    }

    /// The values of a rule, one reading per second from `first`.
    fn values(rule: &AlertRule, first: u64, lanes: impl IntoIterator<Item = LaneReading>) -> Vec<f64> {
        let rules = [Arc::new(rule.clone())];
        let mut past = Past::default();
        let readings = (first..).zip(lanes).map(|(second, lane)| reading(second, vec![lane]));
        let values = readings.map(|reading| {
            past.advance(&reading, &rules);
            let value = match rule.condition().is_global() {
                true => past.evaluate_globally(rule, &reading),
                false => past.evaluate(rule, &reading, &reading.lanes[0]),
            };
            past.keep(&reading);
            value
        });
        values.collect()
    }

    #[test]
    fn ages_and_depths_are_those_of_the_reading() {
        let lane = lane(|lane| {
            (lane.pending, lane.active, lane.dead_letters) = (7, 2, 3);
            (lane.oldest_pending, lane.oldest_active) = (Some(4 * SECOND), Some(5 * SECOND));
        });
        let idle = LaneReading { active: 1, ..lane.clone() };
        let cases = [
            (AlertRule::queue_depth(1), 7.0, 7.0),
            (AlertRule::dead_letters(1), 3.0, 3.0),
            (AlertRule::oldest_pending_age(SECOND), 4.0, 4.0),
            (AlertRule::oldest_active_age(SECOND), 5.0, 5.0),
            (AlertRule::saturated(SECOND), 4.0, 0.0),
        ];
        for (rule, value, value_with_a_free_permit) in cases {
            assert_eq!(values(&rule, 0, [lane.clone()]), [value], "{}", rule.name());
            assert_eq!(values(&rule, 0, [idle.clone()]), [value_with_a_free_permit], "{}", rule.name());
        }
    }

    #[test]
    fn counts_are_those_of_the_window() {
        let dead = |count| lane(|lane| lane.dead_lettered.failed = count);
        let rule = AlertRule::dead_letter_growth(1, 3 * SECOND);
        // From the beginning of the measurement: all count.
        assert_eq!(values(&rule, 1, [5, 5, 6, 6, 6, 6].map(dead)), [5.0, 5.0, 6.0, 1.0, 1.0, 0.0]);
        // From later on: what was before the first reading does not.
        assert_eq!(values(&rule, 100, [5, 5, 6, 6, 6, 6].map(dead)), [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn what_is_about_no_lane_is_counted_as_well() {
        let lanes = || (0..5).map(|_| lane(|_| {}));
        assert_eq!(values(&AlertRule::storage_errors(1, 2 * SECOND), 100, lanes()), [0.0, 1.0, 2.0, 2.0, 2.0]);
        assert_eq!(values(&AlertRule::events_dropped(1, 2 * SECOND), 100, lanes()), [0.0, 2.0, 4.0, 4.0, 4.0]);
    }

    #[test]
    fn ratios_need_enough_commands() {
        let finished = |(ok, error)| lane(|lane| (lane.finished.ok, lane.finished.error) = (ok, error));
        let lanes = || [(100, 0), (100, 1), (107, 2), (107, 12)].map(finished);
        let rule = AlertRule::failure_ratio(0.1, 60 * SECOND).with_min_count(9);
        assert_eq!(values(&rule, 100, lanes()), [0.0, 0.0, 2.0 / 9.0, 12.0 / 19.0]);
        assert_eq!(values(&rule.with_min_count(0), 100, lanes()), [0.0, 1.0, 2.0 / 9.0, 12.0 / 19.0]);
    }

    #[test]
    fn cancelled_commands_do_not_fail() {
        let ended = lane(|lane| (lane.finished.cancelled, lane.finished.shed, lane.finished.timeout) = (50, 50, 1));
        assert_eq!(values(&AlertRule::failure_ratio(0.1, SECOND).with_min_count(1), 1, [ended]), [1.0]);
    }

    #[test]
    fn rates_are_per_second() {
        let refused = |count| lane(|lane| (lane.rejected.full, lane.rejected.shutdown) = (count, 7 * count));
        let rule = AlertRule::reject_rate(1.0, 4 * SECOND);
        assert_eq!(values(&rule, 100, [0, 8, 8, 8, 8, 8].map(refused)), [0.0, 8.0, 4.0, 8.0 / 3.0, 2.0, 0.0]);
    }

    #[test]
    fn quantiles_are_those_of_the_window() {
        let ran = |slow: u64| {
            lane(|lane| {
                lane.run.record(Duration::from_millis(1), 100);
                lane.run.record(SECOND, slow);
            })
        };
        let rule = AlertRule::new("r", AlertCondition::RunQuantile { q: 1.0, window: 2 * SECOND }).with_min_count(1);
        let found = values(&rule, 100, [0, 1, 1, 1, 1].map(ran));
        let slow = found.iter().map(|value| *value > 0.9 && *value < 1.1).collect::<Vec<_>>();
        assert_eq!(slow, [false, true, true, false, false]);
        let of_enough = rule.with_min_count(2);
        assert_eq!(values(&of_enough, 100, [0, 1, 1, 1, 1].map(ran)), [0.0; 5]);
    }

    #[test]
    fn no_progress_counts_from_when_there_was_something_to_do() {
        let at = |(pending, delayed, started, paused): (u64, u64, u64, bool)| {
            lane(|lane| (lane.pending, lane.delayed, lane.started, lane.paused) = (pending, delayed, started, paused))
        };
        let rule = AlertRule::no_progress(SECOND);
        let idle = [(0, 0, 5, false); 3].map(at);
        assert_eq!(values(&rule, 50, idle), [0.0; 3]);
        let stalls = [(0, 0, 5, false), (1, 0, 5, false), (2, 0, 5, false), (1, 0, 6, false), (1, 0, 6, false)].map(at);
        assert_eq!(values(&rule, 50, stalls), [0.0, 0.0, 1.0, 0.0, 1.0]);
        let paused = [false, false, true, true, false, false].map(|paused| at((1, 0, 5, paused)));
        assert_eq!(values(&rule, 50, paused), [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let delayed = [1, 1, 2, 2].map(|pending| at((pending, 1, 5, false)));
        assert_eq!(values(&rule, 50, delayed), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn few_readings_are_kept() {
        let rule = AlertRule::failure_ratio(0.1, 3600 * SECOND);
        let rules = [Arc::new(rule)];
        let mut past = Past::default();
        for second in 0..20_000 {
            let reading = reading(second, vec![]);
            past.advance(&reading, &rules);
            past.keep(&reading);
        }
        let kept = past.windows[&(3600 * SECOND)].samples.len();
        assert!(kept > 15 && kept <= SAMPLES as usize + 2, "{kept}");
        past.advance(&reading(20_000, vec![]), &[]);
        assert!(past.windows.is_empty());
    }
}
