//! Time: the only place that reads the system clock.
//!
//! Scheduling uses monotonic [`Tick`]s from a [`Clock`], which a simulation replaces by one that moves only when told.
//! The wall clock is for display and stored records, never for a decision.

mod stamp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

pub(crate) use stamp::stamp;

/// Where system clocks count from: one instant for all, so that what several executors share (a rate limiter) can compare
/// their ticks.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A point in monotonic time: nanoseconds since a clock's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tick(u64);

impl Tick {
    /// Later than every deadline: "never".
    pub(crate) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    #[inline]
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The tick `after` later; saturates to [`Tick::NEVER`], so a huge timeout means "never" and not "now".
    pub(crate) fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to here; zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where ticks come from.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The system's monotonic clock, counted from when the process first asked for one.
    System,
    /// Moves only by [`Clock::advance`].
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn system() -> Self {
        LazyLock::force(&ORIGIN);
        Self::System
    }

    pub(crate) fn virtual_time() -> Self {
        Self::Virtual(Arc::new(AtomicU64::new(0)))
    }

    #[inline]
    pub(crate) fn now(&self) -> Tick {
        match self {
            Self::System => Tick(u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            Self::Virtual(nanos) => Tick(nanos.load(Ordering::Acquire)),
        }
    }

    /// As [`stamp`], in virtual time where that is the clock's; that begins at 1, since 0 is no stamp.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        match self {
            Self::System => stamp(),
            Self::Virtual(_) => self.now().as_nanos() + 1,
        }
    }

    /// Moves a virtual clock; a system clock moves by itself and ignores this.
    pub(crate) fn advance_to(&self, to: Tick) {
        if let Self::Virtual(nanos) = self {
            nanos.fetch_max(to.0, Ordering::AcqRel);
        }
    }
}

/// Time from now until `at`; zero if that has passed.
pub(crate) fn until(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now())
}

/// Time from now until the wall clock shows `at`, as it goes now; zero if that has passed.
pub(crate) fn until_wall(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::now()).unwrap_or_default()
}

/// The wall clock, for timestamps that people read.
pub(crate) fn wall_now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}
