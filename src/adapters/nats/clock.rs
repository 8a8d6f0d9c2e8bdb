//! The server's clock, which no client can ask for: it is known from the time that the server gave to a record, within as long as
//! it took to write and read that.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::link::{Call, Written};
use super::names::Bucket;
use crate::clock::Tick;
use crate::error::DistributedError;
use crate::executor::now;

/// After this it is asked again: clocks drift, and may be set.
const FRESH: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct ServerClock {
    sample: Mutex<Option<Sample>>,
}

/// The server's time was this at some moment between two of ours.
#[derive(Clone, Copy, Debug)]
struct Sample {
    server: i64,
    sent: Tick,
    heard: Tick,
}

/// The server's time is between these two. In nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) earliest: i64,
    pub(super) latest: i64,
}

impl Now {
    /// The time `after` from now: no earlier.
    pub(super) fn plus(self, after: Duration) -> i64 {
        plus(self.latest, after)
    }

    /// Whether this has certainly passed.
    pub(super) fn is_past(self, time: i64) -> bool {
        self.earliest >= time
    }

    /// A fence that is higher than any that was counted. The register's revisions do not come so far.
    pub(super) fn fence(self) -> u64 {
        u64::try_from(self.latest / 1_000).unwrap_or(0)
    }

    /// How long until it has certainly passed.
    pub(super) fn until(self, time: i64) -> Duration {
        Duration::from_nanos(u64::try_from(time.saturating_sub(self.earliest)).unwrap_or(0))
    }
}

pub(super) fn plus(time: i64, after: Duration) -> i64 {
    time.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX))
}

impl ServerClock {
    pub(super) async fn now(&self, call: &Call, state: &Bucket) -> Result<Now, DistributedError> {
        let known = *self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sample) = known
            && now().since(sample.heard) < FRESH
        {
            return Ok(sample.at(now()));
        }
        let subject = state.subject("clock");
        let sent = now();
        let Written::At(_) = call.put(&subject, None, b"".as_slice().into()).await? else {
            return Err(call.server_says("the clock's record can not be written"));
        };
        // Perhaps another handle's record, written since: then too its time lies between ours.
        let record = call.last(&state.stream, &subject).await?;
        let server = record.ok_or_else(|| call.server_says("the clock's record is not there"))?.time;
        let sample = Sample { server, sent, heard: now() };
        *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = Some(sample);
        Ok(sample.at(now()))
    }

    /// After a reconnection it may be another server, with another clock.
    pub(super) fn forget(&self) {
        *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Sample {
    fn at(self, tick: Tick) -> Now {
        Now { earliest: plus(self.server, tick.since(self.heard)), latest: plus(self.server, tick.since(self.sent)) }
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_servers_time_is_known_within_the_time_of_the_question() {
        let ms = 1_000_000;
        let sample = Sample { server: 5000 * ms, sent: Tick::from_nanos(0), heard: Tick::from_nanos(4 * ms as u64) };
        let now = sample.at(Tick::from_nanos(10 * ms as u64));
        assert_eq!(now, Now { earliest: 5006 * ms, latest: 5010 * ms });
        assert!(now.is_past(5006 * ms) && !now.is_past(5007 * ms));
        assert_eq!(now.until(5009 * ms), Duration::from_millis(3));
        assert_eq!(now.plus(Duration::from_millis(5)), 5015 * ms);
    }
}
