//! How long to wait before a server is tried again: twice as long each time, up to a limit, by chance up to half of that less.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(5);

/// The waits between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
    chance: RandomState,
    attempts: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::between(FIRST, LAST)
    }

    /// Waits of other lengths: for what is asked again and again.
    pub(crate) fn between(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first, chance: RandomState::new(), attempts: 0 }
    }

    /// The next wait.
    pub(crate) fn wait(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(self.last);
        self.attempts += 1;
        // Many that lost the same server are not to come back at the same moment.
        let part = self.chance.hash_one(self.attempts) as f64 / u64::MAX as f64;
        longest.mul_f64(0.5 + part / 2.0)
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::new();
        let mut longest = FIRST;
        for _ in 0..12 {
            let wait = backoff.wait();
            assert!(wait >= longest / 2 && wait <= longest, "{wait:?} of {longest:?}");
            longest = (longest * 2).min(LAST);
        }
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
