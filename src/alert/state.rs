//! When an alert fires, at which level, and when it is told. Times are passed in: no clock, no thread, no lock.
//!
//! ```text
//! Off --reached--> Pending --held for `hold`--> On --below the clear threshold--> Clearing --for `keep`--> Off
//!                     '--not reached--> Off      ^------- not below it -------------'
//! ```
//!
//! Each level that a rule has goes this way by itself; the alert's level is the worst that is `On` or `Clearing`. So an alert
//! that gets worse or better is one alert whose level changes, and one whose value flaps around a threshold changes nothing.

use std::time::Duration;

use super::notification::AlertLevel;

/// The levels, least first: an index of what has one entry per level.
pub(super) const LEVELS: [AlertLevel; 3] = [AlertLevel::Info, AlertLevel::Warning, AlertLevel::Critical];

/// What a rule asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Terms {
    /// From which value a level is reached; none: it has no such level.
    pub(super) raise: [Option<f64>; 3],
    /// A level is left below this share of its threshold.
    pub(super) clear_ratio: f64,
    /// How long a value has to hold before a level counts.
    pub(super) hold: Duration,
    /// How long a value has to stay away before a level is left.
    pub(super) keep: Duration,
}

impl Terms {
    pub(super) fn reaches_any(&self, value: f64) -> bool {
        self.raise.iter().flatten().any(|raise| value >= *raise)
    }
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Inactive,
    /// Reached, but not for long enough.
    Pending,
    Firing(AlertLevel),
    /// Fires, and is about to be resolved.
    Recovering(AlertLevel),
}

impl Phase {
    pub(super) const fn level(self) -> Option<AlertLevel> {
        match self {
            Self::Inactive | Self::Pending => None,
            Self::Firing(level) | Self::Recovering(level) => Some(level),
        }
    }
}

/// One level of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Latch {
    #[default]
    Off,
    Pending {
        since: Duration,
    },
    On,
    Clearing {
        since: Duration,
    },
}

impl Latch {
    fn step(self, reached: bool, cleared: bool, hold: Duration, keep: Duration, now: Duration) -> Self {
        let next = match self {
            Self::Off | Self::Pending { .. } if !reached => Self::Off,
            Self::Off => Self::Pending { since: now },
            Self::On | Self::Clearing { .. } if !cleared => Self::On,
            Self::On => Self::Clearing { since: now },
            waiting => waiting,
        };
        match next {
            Self::Pending { since } if now.saturating_sub(since) >= hold => Self::On,
            Self::Clearing { since } if now.saturating_sub(since) >= keep => Self::Off,
            next => next,
        }
    }
}

/// The state of one alert: of one rule, for one lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    latches: [Latch; 3],
}

impl Machine {
    /// Takes note of a value found at `now`, which has to hold for `hold`.
    pub(super) fn observe(&mut self, terms: &Terms, value: f64, hold: Duration, now: Duration) -> Phase {
        for (latch, raise) in self.latches.iter_mut().zip(terms.raise) {
            *latch = raise.map_or(Latch::Off, |raise| {
                latch.step(value >= raise, value < raise * terms.clear_ratio, hold, terms.keep, now)
            });
        }
        self.phase()
    }

    pub(super) fn phase(&self) -> Phase {
        let found = LEVELS.iter().zip(self.latches).rev().find_map(|(level, latch)| match latch {
            Latch::On => Some(Phase::Firing(*level)),
            Latch::Clearing { .. } => Some(Phase::Recovering(*level)),
            Latch::Off | Latch::Pending { .. } => None,
        });
        let pending = || self.latches.iter().any(|latch| matches!(latch, Latch::Pending { .. }));
        found.unwrap_or_else(|| if pending() { Phase::Pending } else { Phase::Inactive })
    }

    /// When the first level that is about to be left will be, if nothing comes between.
    pub(super) fn clears_at(&self, terms: &Terms) -> Option<Duration> {
        let clearing = self.latches.iter().filter_map(|latch| match latch {
            Latch::Clearing { since } => Some(since.saturating_add(terms.keep)),
            _ => None,
        });
        clearing.min()
    }
}

/// What is to be told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Firing,
    Resolved,
}

/// What has been told of an alert.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// The level told last; none: nothing, or that it is resolved.
    level: Option<AlertLevel>,
    at: Duration,
    sequence: u32,
}

impl Told {
    /// Whether there is anything to tell. While `silenced`, nothing is but the end of what was told before.
    pub(super) fn next(&mut self, phase: Phase, silenced: bool, repeat: Duration, now: Duration) -> Option<Tell> {
        match (self.level, phase) {
            (None, Phase::Inactive | Phase::Pending) => None,
            (Some(_), Phase::Inactive | Phase::Pending) => {
                self.level = None;
                self.sequence = self.sequence.saturating_add(1);
                Some(Tell::Resolved)
            }
            // It may be over soon: neither a change of level nor a repetition is worth telling.
            (_, Phase::Recovering(_)) => None,
            (_, Phase::Firing(_)) if silenced => None,
            (told, Phase::Firing(level)) => {
                if told == Some(level) && now.saturating_sub(self.at) < repeat {
                    return None;
                }
                self.sequence = if told.is_none() { 1 } else { self.sequence.saturating_add(1) };
                (self.level, self.at) = (Some(level), now);
                Some(Tell::Firing)
            }
        }
    }

    /// The number of the notification told last.
    pub(super) const fn sequence(&self) -> u32 {
        self.sequence
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WARNING: AlertLevel = AlertLevel::Warning;
    const CRITICAL: AlertLevel = AlertLevel::Critical;
    const NEVER: Duration = Duration::MAX;

    fn terms(hold: u64, keep: u64) -> Terms {
        Terms {
            raise: [None, Some(100.0), Some(200.0)],
            clear_ratio: 0.8,
            hold: Duration::from_secs(hold),
            keep: Duration::from_secs(keep),
        }
    }

    /// The phases, one value per second.
    fn phases(terms: &Terms, values: &[f64]) -> Vec<Phase> {
        let mut machine = Machine::default();
        let seconds = (0..).map(Duration::from_secs);
        values.iter().zip(seconds).map(|(value, now)| machine.observe(terms, *value, terms.hold, now)).collect()
    }

    /// What is told, with the second, of one value per second.
    fn told(terms: &Terms, values: &[f64], silenced: impl Fn(u64) -> bool, repeat: Duration) -> Vec<(u64, Tell, u32)> {
        let (mut machine, mut told) = (Machine::default(), Told::default());
        let mut all = Vec::new();
        for (second, value) in (0..).zip(values) {
            let now = Duration::from_secs(second);
            let phase = machine.observe(terms, *value, terms.hold, now);
            all.extend(told.next(phase, silenced(second), repeat, now).map(|tell| (second, tell, told.sequence())));
        }
        all
    }

    #[test]
    fn a_level_goes_its_way() {
        use Phase::{Firing, Inactive, Pending, Recovering};
        let (w, c) = (WARNING, CRITICAL);
        let cases: &[(&str, Terms, &[f64], &[Phase])] = &[
            ("at once", terms(0, 0), &[99.9, 100.0, 80.0, 79.9], &[Inactive, Firing(w), Firing(w), Inactive]),
            ("held", terms(2, 0), &[100.0, 100.0, 100.0], &[Pending, Pending, Firing(w)]),
            ("not held", terms(2, 0), &[100.0, 99.0, 100.0, 100.0], &[Pending, Inactive, Pending, Pending]),
            ("kept", terms(0, 2), &[100.0, 0.0, 0.0, 0.0], &[Firing(w), Recovering(w), Recovering(w), Inactive]),
            (
                "back in time",
                terms(0, 2),
                &[100.0, 0.0, 80.0, 0.0, 0.0],
                &[Firing(w), Recovering(w), Firing(w), Recovering(w), Recovering(w)],
            ),
            (
                "worse and better",
                terms(0, 0),
                &[100.0, 200.0, 160.0, 159.0],
                &[Firing(w), Firing(c), Firing(c), Firing(w)],
            ),
            ("down at once", terms(0, 0), &[200.0, 0.0], &[Firing(c), Inactive]),
            ("down into the band", terms(0, 0), &[200.0, 90.0, 79.0], &[Firing(c), Firing(w), Inactive]),
            (
                "each level is held by itself",
                terms(2, 0),
                &[100.0, 200.0, 200.0, 200.0],
                &[Pending, Pending, Firing(w), Firing(c)],
            ),
            (
                "each level is kept by itself",
                terms(0, 1),
                &[200.0, 150.0, 150.0, 0.0, 0.0],
                &[Firing(c), Recovering(c), Firing(w), Recovering(w), Inactive],
            ),
            ("no number", terms(0, 0), &[f64::NAN, 100.0, f64::NAN], &[Inactive, Firing(w), Firing(w)]),
        ];
        for (name, terms, values, expected) in cases {
            assert_eq!(phases(terms, values), *expected, "{name}");
        }
    }

    #[test]
    fn a_threshold_of_zero_is_always_reached_and_never_left() {
        let terms = Terms { raise: [None, Some(0.0), None], ..terms(0, 0) };
        assert_eq!(phases(&terms, &[0.0, 0.0]), [Phase::Firing(WARNING); 2]);
    }

    #[test]
    fn what_is_told_has_numbers_from_one() {
        let values = [100.0, 200.0, 100.0, 0.0, 100.0];
        let all = told(&terms(0, 0), &values, |_| false, NEVER);
        use Tell::{Firing, Resolved};
        assert_eq!(all, [(0, Firing, 1), (1, Firing, 2), (2, Firing, 3), (3, Resolved, 4), (4, Firing, 1)]);
    }

    #[test]
    fn a_value_around_the_threshold_is_told_once_and_resolved_once() {
        let flapping: Vec<f64> = (0..1000).map(|at| if at % 2 == 0 { 101.0 } else { 81.0 }).chain([79.0]).collect();
        assert_eq!(told(&terms(0, 0), &flapping, |_| false, NEVER), [(0, Tell::Firing, 1), (1000, Tell::Resolved, 2)]);
        let leaping: Vec<f64> = (0..1000).map(|at| if at % 2 == 0 { 500.0 } else { 0.0 }).chain([0.0; 9]).collect();
        assert_eq!(told(&terms(0, 5), &leaping, |_| false, NEVER), [(0, Tell::Firing, 1), (1004, Tell::Resolved, 2)]);
    }

    #[test]
    fn what_goes_on_is_repeated() {
        let all = told(&terms(0, 0), &[100.0; 10], |_| false, Duration::from_secs(4));
        assert_eq!(all, [(0, Tell::Firing, 1), (4, Tell::Firing, 2), (8, Tell::Firing, 3)]);
    }

    #[test]
    fn a_silence_holds_back_all_but_the_end_of_what_was_told() {
        let values = [100.0, 200.0, 200.0, 0.0, 100.0, 0.0, 100.0, 100.0];
        let all = told(&terms(0, 0), &values, |second| (1..7).contains(&second), NEVER);
        assert_eq!(all, [(0, Tell::Firing, 1), (3, Tell::Resolved, 2), (7, Tell::Firing, 1)]);
    }

    proptest! {
        /// Whatever the values: who is told hears of an alert's end only after its beginning, hears nothing twice, and in the
        /// end knows what is so.
        #[test]
        fn firing_and_resolved_alternate(
            values in prop::collection::vec(prop_oneof![0.0..300.0f64, Just(80.0), Just(100.0), Just(200.0)], 1..200),
            hold in 0u64..4,
            keep in 0u64..4,
        ) {
            let terms = terms(hold, keep);
            let (mut machine, mut told) = (Machine::default(), Told::default());
            let mut heard: Option<AlertLevel> = None;
            let mut phase = Phase::Inactive;
            for (second, value) in (0..).zip(&values) {
                let now = Duration::from_secs(second);
                phase = machine.observe(&terms, *value, terms.hold, now);
                match told.next(phase, false, NEVER, now) {
                    Some(Tell::Firing) => {
                        prop_assert!(phase.level().is_some() && heard != phase.level());
                        heard = phase.level();
                    }
                    Some(Tell::Resolved) => prop_assert!(heard.take().is_some()),
                    None => {}
                }
                prop_assert_eq!(phase.level().is_some(), heard.is_some());
            }
            if let Phase::Firing(level) = phase {
                prop_assert_eq!(heard, Some(level));
            }
        }
    }
}
