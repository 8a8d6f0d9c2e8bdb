//! The notifications that one receiver has not got yet. Times are passed in: no clock, no thread, no lock.
//!
//! What holds:
//!
//! - Notifications of one alert are delivered in order; those of other alerts do not wait for one that is tried again.
//! - If an alert is resolved, what has not been delivered of it goes. If nothing of it was ever tried, the resolution goes, too:
//!   nobody needs to know. Once something was tried, the receiver may have got it, so the resolution is delivered.
//! - There are at most [`CAPACITY`]: when full, the oldest that is no resolution goes, since an alert that stays open for ever
//!   is worse than one that was not told of.
//! - Nothing is tried for longer than [`AGE_MAX`].

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::AlertDeliveryStats;
use crate::alert::notification::{AlertStatus, Notification, SinkError};
use crate::clock::Tick;

/// Notifications that wait.
pub(super) const CAPACITY: usize = 256;
/// How long a notification is tried.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// The first retry is at most so long after the first attempt; each further one at most twice as long as the one before.
const DELAY_FIRST: Duration = Duration::from_secs(1);
/// No retry is longer after the attempt before.
const DELAY_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct Outbox {
    entries: VecDeque<Entry>,
    entries_made: u64,
    in_flight: Option<u64>,
    closed: bool,
    /// The receiver wants to be left alone until then.
    closed_until: Option<Tick>,
    /// Alerts that the receiver may know to fire: a notification of it was tried, and no resolution was delivered or given up.
    tried: HashSet<String>,
    stats: AlertDeliveryStats,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    notification: Arc<Notification>,
    queued_at: Tick,
    not_before: Tick,
    attempts: u32,
}

impl Entry {
    fn is_resolution(&self) -> bool {
        self.notification.status == AlertStatus::Resolved
    }

    fn is_of(&self, fingerprint: &str) -> bool {
        self.notification.fingerprint == fingerprint
    }

    fn expires_at(&self) -> Tick {
        self.queued_at.plus(AGE_MAX)
    }
}

/// What the thread does now.
#[derive(Debug, PartialEq)]
#[must_use]
pub(super) enum Next {
    /// Delivers this, then calls [`Outbox::settle`].
    Deliver(Arc<Notification>),
    /// Has this logged: it was tried for too long.
    GiveUp(Arc<Notification>),
    /// Asks again at this time, or when something has come.
    Wait(Option<Tick>),
}

impl Outbox {
    pub(super) fn new(sink: String) -> Self {
        Self { stats: AlertDeliveryStats { sink, ..AlertDeliveryStats::default() }, ..Self::default() }
    }

    /// Takes a notification. Its number, or that of the last one before, for [`Outbox::has_until`].
    pub(super) fn push(&mut self, notification: Arc<Notification>, now: Tick) -> u64 {
        if self.closed {
            self.stats.dropped += 1;
            return self.entries_made;
        }
        if notification.status == AlertStatus::Resolved && !self.resolve(&notification.fingerprint) {
            self.stats.cancelled += 1;
            return self.entries_made;
        }
        self.entries_made += 1;
        let id = self.entries_made;
        self.entries.push_back(Entry { id, notification, queued_at: now, not_before: now, attempts: 0 });
        if self.entries.len() > CAPACITY {
            self.drop_oldest();
        }
        id
    }

    /// Takes out what has not been delivered of an alert. Whether its resolution is worth delivering.
    fn resolve(&mut self, fingerprint: &str) -> bool {
        let before = self.entries.len();
        let in_flight = self.in_flight;
        let stays = |entry: &Entry| !entry.is_of(fingerprint) || entry.is_resolution() || in_flight == Some(entry.id);
        self.entries.retain(stays);
        self.stats.cancelled += (before - self.entries.len()) as u64;
        // Of several episodes, one resolution is enough.
        match self.entries.iter().rev().find(|entry| entry.is_of(fingerprint)) {
            Some(last) => !last.is_resolution(),
            None => self.tried.contains(fingerprint),
        }
    }

    fn drop_oldest(&mut self) {
        let free = |entry: &Entry| self.in_flight != Some(entry.id);
        let firing = self.entries.iter().position(|entry| free(entry) && !entry.is_resolution());
        let oldest = firing.or_else(|| self.entries.iter().position(free));
        if oldest.and_then(|oldest| self.take(oldest)).is_some() {
            self.stats.dropped += 1;
        }
    }

    /// Takes an entry out for good: of a resolution, nothing comes after it.
    fn take(&mut self, at: usize) -> Option<Entry> {
        let entry = self.entries.remove(at)?;
        if entry.is_resolution() {
            self.tried.remove(&entry.notification.fingerprint);
        }
        Some(entry)
    }

    pub(super) fn next(&mut self, now: Tick) -> Next {
        let expired = self.entries.iter().position(|entry| entry.expires_at() <= now);
        if let Some(expired) = expired.and_then(|at| self.take(at)) {
            self.stats.expired += 1;
            return Next::GiveUp(expired.notification);
        }
        let mut wake: Option<Tick> = None;
        let mut seen = HashSet::new();
        for entry in &self.entries {
            // Behind another one of its alert.
            if !seen.insert(&*entry.notification.fingerprint) {
                continue;
            }
            let ready_at = self.closed_until.map_or(entry.not_before, |until| until.max(entry.not_before));
            if ready_at <= now {
                self.in_flight = Some(entry.id);
                if !entry.is_resolution() {
                    self.tried.insert(entry.notification.fingerprint.clone());
                }
                return Next::Deliver(Arc::clone(&entry.notification));
            }
            let at = ready_at.min(entry.expires_at());
            wake = Some(wake.map_or(at, |wake| wake.min(at)));
        }
        Next::Wait(wake)
    }

    /// Takes note of what became of what [`Outbox::next`] gave. When it is tried again, if it is.
    pub(super) fn settle(&mut self, result: Result<(), SinkError>, now: Tick, random: u64) -> Option<Duration> {
        let id = self.in_flight.take()?;
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        match result {
            Ok(()) => {
                let _delivered = self.take(at)?;
                self.closed_until = None;
                self.stats.delivered += 1;
                None
            }
            Err(SinkError::Retry { after, .. }) => self.retry(at, after, now, random),
            Err(SinkError::Refused(_)) => {
                let _refused = self.take(at)?;
                self.stats.refused += 1;
                None
            }
            Err(SinkError::Gone(_)) => {
                self.stats.gone = true;
                self.close();
                None
            }
        }
    }

    fn retry(&mut self, at: usize, after: Option<Duration>, now: Tick, random: u64) -> Option<Duration> {
        if self.closed {
            self.entries.remove(at);
            self.stats.dropped += 1;
            return None;
        }
        let after = after.map(|after| after.min(AGE_MAX));
        if let Some(after) = after {
            self.closed_until = Some(now.plus(after));
        }
        let fingerprint = &self.entries[at].notification.fingerprint;
        let firing = !self.entries[at].is_resolution();
        let superseded = |later: &Entry| later.is_resolution() && later.is_of(fingerprint);
        if firing && self.entries.iter().skip(at + 1).any(superseded) {
            self.entries.remove(at);
            self.stats.cancelled += 1;
            return None;
        }
        let entry = &mut self.entries[at];
        let delay = backoff(entry.attempts, random).max(after.unwrap_or_default());
        entry.attempts += 1;
        entry.not_before = now.plus(delay);
        self.stats.retried += 1;
        Some(delay)
    }

    /// Gives up all that waits, for good. How many.
    pub(super) fn close(&mut self) -> usize {
        let before = self.entries.len();
        let in_flight = self.in_flight;
        self.entries.retain(|entry| in_flight == Some(entry.id));
        let dropped = before - self.entries.len();
        self.stats.dropped += dropped as u64;
        self.closed = true;
        dropped
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether any notification up to this number waits or is being delivered.
    pub(super) fn has_until(&self, id: u64) -> bool {
        self.entries.front().is_some_and(|entry| entry.id <= id)
    }

    pub(super) const fn last_id(&self) -> u64 {
        self.entries_made
    }

    pub(super) fn stats(&self) -> AlertDeliveryStats {
        AlertDeliveryStats { queued: self.entries.len() as u64, ..self.stats.clone() }
    }
}

/// Full jitter: anywhere up to a limit that doubles, so that receivers that come back are not met by all at once.
fn backoff(attempts: u32, random: u64) -> Duration {
    let limit = DELAY_FIRST.saturating_mul(1u32.checked_shl(attempts).unwrap_or(u32::MAX)).min(DELAY_MAX);
    limit.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(all(test, not(corelane_loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::alert::notification::{Alert, AlertLevel};

    const MAX: u64 = u64::MAX;

    fn at(second: u64) -> Tick {
        Tick::from_nanos(second * 1_000_000_000)
    }

    fn notification(fingerprint: &str, sequence: u32, status: AlertStatus) -> Arc<Notification> {
        Arc::new(Notification {
            status,
            alert: Alert {
                level: AlertLevel::Warning,
                lane_id: "lane".into(),
                message: String::new(),
                current_value: 1.0,
                threshold: 1.0,
            },
            rule: "rule".into(),
            fingerprint: fingerprint.into(),
            instance: String::new(),
            started_at: chrono::DateTime::UNIX_EPOCH,
            ended_at: None,
            sequence,
        })
    }

    fn firing(fingerprint: &str, sequence: u32) -> Arc<Notification> {
        notification(fingerprint, sequence, AlertStatus::Firing)
    }

    fn resolved(fingerprint: &str, sequence: u32) -> Arc<Notification> {
        notification(fingerprint, sequence, AlertStatus::Resolved)
    }

    fn again(after: Option<u64>) -> Result<(), SinkError> {
        Err(SinkError::Retry { message: "busy".into(), after: after.map(Duration::from_secs) })
    }

    /// What is delivered, to a receiver that takes everything.
    fn delivered(outbox: &mut Outbox, now: Tick) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        while let Next::Deliver(notification) = outbox.next(now) {
            all.push((notification.fingerprint.clone(), notification.sequence));
            outbox.settle(Ok(()), now, 0);
        }
        all
    }

    #[test]
    fn what_comes_is_delivered_in_order() {
        let mut outbox = Outbox::default();
        for notification in [firing("a", 1), firing("b", 1), firing("a", 2)] {
            outbox.push(notification, at(0));
        }
        assert!(outbox.has_until(3));
        assert_eq!(delivered(&mut outbox, at(0)), [("a".into(), 1), ("b".into(), 1), ("a".into(), 2)]);
        assert!(!outbox.has_until(outbox.last_id()));
        assert_eq!(outbox.next(at(0)), Next::Wait(None));
        assert_eq!((outbox.stats().delivered, outbox.stats().queued), (3, 0));
    }

    #[test]
    fn an_alert_that_is_over_before_it_was_told_is_not_told() {
        let mut outbox = Outbox::default();
        for notification in [firing("a", 1), firing("b", 1), firing("a", 2), resolved("a", 3)] {
            outbox.push(notification, at(0));
        }
        assert_eq!(delivered(&mut outbox, at(0)), [("b".into(), 1)]);
        assert_eq!(outbox.stats().cancelled, 3);
    }

    #[test]
    fn an_alert_that_was_told_is_resolved() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        delivered(&mut outbox, at(0));
        // The change of level is out of date, the resolution is not.
        outbox.push(firing("a", 2), at(1));
        outbox.push(resolved("a", 3), at(1));
        assert_eq!(delivered(&mut outbox, at(1)), [("a".into(), 3)]);
        outbox.push(resolved("a", 4), at(2));
        assert_eq!(delivered(&mut outbox, at(2)), [], "resolved twice");
    }

    #[test]
    fn a_resolution_waits_for_what_is_being_delivered() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        outbox.push(resolved("a", 2), at(0));
        outbox.settle(Ok(()), at(1), 0);
        assert_eq!(delivered(&mut outbox, at(1)), [("a".into(), 2)]);
    }

    #[test]
    fn a_resolution_takes_the_place_of_what_was_tried_in_vain() {
        // While it is tried.
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        outbox.push(resolved("a", 2), at(0));
        assert_eq!(outbox.settle(again(None), at(1), MAX), None);
        assert_eq!(delivered(&mut outbox, at(1)), [("a".into(), 2)], "the receiver may have got the first");
        // While it waits to be tried again.
        outbox.push(firing("a", 1), at(2));
        assert!(matches!(outbox.next(at(2)), Next::Deliver(_)));
        assert!(outbox.settle(again(None), at(2), MAX).is_some());
        outbox.push(resolved("a", 2), at(2));
        assert_eq!(delivered(&mut outbox, at(2)), [("a".into(), 2)]);
    }

    #[test]
    fn episodes_that_nobody_heard_of_do_not_add_up() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        delivered(&mut outbox, at(0));
        for _ in 0..3 {
            outbox.push(resolved("a", 2), at(1));
            outbox.push(firing("a", 1), at(1));
        }
        outbox.push(resolved("a", 2), at(1));
        assert_eq!(delivered(&mut outbox, at(1)), [("a".into(), 2)]);
    }

    #[test]
    fn what_is_tried_again_holds_up_its_own_alert_only() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        outbox.push(firing("a", 2), at(0));
        outbox.push(firing("b", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        assert_eq!(outbox.settle(again(None), at(0), MAX), Some(DELAY_FIRST));
        assert_eq!(delivered(&mut outbox, at(0)), [("b".into(), 1)]);
        assert_eq!(outbox.next(at(0)), Next::Wait(Some(at(1))));
        assert_eq!(delivered(&mut outbox, at(1)), [("a".into(), 1), ("a".into(), 2)]);
    }

    #[test]
    fn delays_double_up_to_five_minutes_and_jitter_is_full() {
        let limits: Vec<u64> = (0..12).map(|attempts| backoff(attempts, MAX).as_secs()).collect();
        assert_eq!(limits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff(31, MAX), DELAY_MAX);
        assert_eq!(backoff(u32::MAX, MAX), DELAY_MAX);
        assert_eq!(backoff(3, 0), Duration::ZERO);
        assert!((3.9..4.1).contains(&backoff(3, MAX / 2).as_secs_f64()));
    }

    #[test]
    fn who_wants_to_be_left_alone_is() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        outbox.push(firing("b", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        assert_eq!(outbox.settle(again(Some(60)), at(0), 0), Some(Duration::from_secs(60)));
        assert_eq!(outbox.next(at(59)), Next::Wait(Some(at(60))), "nor is another alert told");
        assert_eq!(delivered(&mut outbox, at(60)), [("a".into(), 1), ("b".into(), 1)]);
    }

    #[test]
    fn after_an_hour_it_is_given_up() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        let mut now = at(0);
        let mut attempts = 0;
        let given_up = loop {
            match outbox.next(now) {
                Next::Deliver(_) => {
                    attempts += 1;
                    outbox.settle(again(None), now, MAX);
                }
                Next::Wait(until) => now = until.unwrap(),
                Next::GiveUp(notification) => break notification,
            }
        };
        assert_eq!((given_up.sequence, now), (1, at(3600)));
        // 0, 1, 3, 7, .. 511 s, then every 300 s.
        assert_eq!(attempts, 10 + (3600 - 511) / 300);
        assert_eq!((outbox.stats().expired, outbox.stats().queued), (1, 0));
        assert_eq!(outbox.stats().retried, attempts);
        // Some attempt may have come through all the same.
        outbox.push(resolved("a", 2), at(3600));
        assert_eq!(delivered(&mut outbox, at(3600)), [("a".into(), 2)]);
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        assert_eq!(outbox.settle(Err(SinkError::Refused("no".into())), at(0), 0), None);
        assert_eq!(outbox.next(at(0)), Next::Wait(None));
        assert_eq!(outbox.stats().refused, 1);
    }

    #[test]
    fn who_is_gone_gets_nothing() {
        let mut outbox = Outbox::default();
        outbox.push(firing("a", 1), at(0));
        outbox.push(firing("b", 1), at(0));
        assert!(matches!(outbox.next(at(0)), Next::Deliver(_)));
        outbox.settle(Err(SinkError::Gone("410".into())), at(0), 0);
        outbox.push(firing("c", 1), at(0));
        assert_eq!(outbox.next(at(0)), Next::Wait(None));
        assert_eq!((outbox.stats().dropped, outbox.stats().gone), (3, true));
    }

    #[test]
    fn when_full_the_oldest_that_is_no_resolution_goes() {
        let mut outbox = Outbox::default();
        outbox.push(firing("told", 1), at(0));
        delivered(&mut outbox, at(0));
        outbox.push(resolved("told", 2), at(0));
        for alert in 0..CAPACITY {
            outbox.push(firing(&alert.to_string(), 1), at(0));
        }
        assert_eq!((outbox.stats().queued, outbox.stats().dropped), (CAPACITY as u64, 1));
        let got = delivered(&mut outbox, at(0));
        assert_eq!(got[0], ("told".into(), 2));
        assert_eq!(got[1], ("1".into(), 1), "0 went");
        outbox.push(resolved("0", 2), at(0));
        assert_eq!(delivered(&mut outbox, at(0)), [], "nobody was told that it fired");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fire(u8),
        Resolve(u8),
        Deliver(u8),
        Pass(u16),
    }

    proptest! {
        /// Whatever happens: a receiver that hears of an alert hears of its end, in order, unless it refuses.
        #[test]
        fn nobody_is_left_with_an_alert_that_is_over(
            steps in prop::collection::vec(
                prop_oneof![
                    (0u8..3).prop_map(Step::Fire),
                    (0u8..3).prop_map(Step::Resolve),
                    (0u8..3).prop_map(Step::Deliver),
                    (0u16..60).prop_map(Step::Pass),
                ],
                1..120,
            ),
            random: u64,
        ) {
            let mut outbox = Outbox::default();
            let mut now = 0;
            let mut fires = [false; 3];
            let mut sequences = [0u32; 3];
            // What the receiver thinks; it may have got what it said that it had not.
            let mut thinks = [false; 3];
            let mut heard = [0u32; 3];
            let mut hear = |notification: &Notification, thinks: &mut [bool; 3]| {
                let alert: usize = notification.fingerprint.parse().unwrap();
                thinks[alert] = notification.status == AlertStatus::Firing;
                let in_order = heard[alert] <= notification.sequence;
                heard[alert] = notification.sequence;
                in_order
            };
            for step in steps {
                match step {
                    Step::Fire(alert) => {
                        fires[alert as usize] = true;
                        sequences[alert as usize] += 1;
                        outbox.push(firing(&alert.to_string(), sequences[alert as usize]), at(now));
                    }
                    Step::Resolve(alert) if fires[alert as usize] => {
                        fires[alert as usize] = false;
                        sequences[alert as usize] += 1;
                        outbox.push(resolved(&alert.to_string(), sequences[alert as usize]), at(now));
                    }
                    Step::Resolve(_) => {}
                    Step::Deliver(how) => {
                        if let Next::Deliver(notification) = outbox.next(at(now)) {
                            // Got it, did not, got it but the answer was lost.
                            if how != 1 {
                                prop_assert!(hear(&notification, &mut thinks));
                            }
                            let result = if how == 0 { Ok(()) } else { again(None) };
                            outbox.settle(result, at(now), random);
                        }
                    }
                    Step::Pass(seconds) => now += u64::from(seconds),
                }
                prop_assert!(outbox.entries.len() <= CAPACITY);
            }
            loop {
                match outbox.next(at(now)) {
                    Next::Deliver(notification) => {
                        prop_assert!(hear(&notification, &mut thinks));
                        outbox.settle(Ok(()), at(now), random);
                    }
                    Next::GiveUp(_) => return Ok(()),
                    Next::Wait(Some(_)) => now += 1,
                    Next::Wait(None) => break,
                }
            }
            prop_assert_eq!(thinks, fires);
        }
    }
}
