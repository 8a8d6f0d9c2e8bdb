//! Rate limiters used directly, outside of lanes: asking with the time of now, and waiting until it is time.
//!
//! Here and not in `limit`, which has neither a clock nor timers.

use std::time::Duration;

use crate::clock::Tick;
use crate::executor::{now, sleep_until, yield_now};
use crate::limit::rate::RateLimiter;
use crate::limit::sliding_window::SlidingWindowLimiter;
use crate::limit::token_bucket::TokenBucketLimiter;

impl RateLimiter {
    /// Takes one command's share if there is one now. Never waits. Lock-free.
    pub async fn try_acquire(&self) -> bool {
        self.take(now(), 1).is_ok()
    }

    /// Takes one command's share as soon as there is one; returns how long that took.
    ///
    /// Sleeps until exactly then ([`sleep`](crate::sleep) says on whose timer) and asks again, which may fail if others
    /// came first: those who wait have no order among them. Cancel-safe: dropping the future takes nothing.
    pub async fn acquire(&self) -> Duration {
        acquire(|now| self.take(now, 1)).await
    }

    /// Refuses everything for `duration` from now: what to do when a service answers "too many requests".
    ///
    /// A pause that lasts longer goes on; [`RateLimiter::resume`] ends any. Shares come back meanwhile as at any other
    /// time, so that a burst may follow. Lock-free.
    pub fn pause_for(&self, duration: Duration) {
        self.pause_until(now().plus(duration));
    }
}

impl TokenBucketLimiter {
    /// Takes a token if there is one now. Never waits. Lock-free.
    pub async fn try_acquire(&self) -> bool {
        self.take(now(), 1).is_ok()
    }

    /// Takes a token as soon as there is one; returns how long that took. As [`RateLimiter::acquire`].
    pub async fn acquire(&self) -> Duration {
        acquire(|now| self.take(now, 1)).await
    }

    /// Whole tokens in the bucket now: a snapshot. Wait-free, one load.
    #[must_use]
    pub fn available_tokens(&self) -> u64 {
        self.available_at(now())
    }
}

impl SlidingWindowLimiter {
    /// Takes a place in the window if there is one now. Never waits. Lock-free.
    pub async fn try_acquire(&self) -> bool {
        self.take(now(), 1).is_ok()
    }

    /// Takes a place in the window as soon as there is one; returns how long that took. As [`RateLimiter::acquire`].
    pub async fn acquire(&self) -> Duration {
        acquire(|now| self.take(now, 1)).await
    }

    /// Commands admitted during the last window: a snapshot. Never waits, but looks at every place.
    pub async fn current_count(&self) -> u64 {
        self.count_at(now())
    }

    /// Commands that can be admitted now: a snapshot, as [`SlidingWindowLimiter::current_count`].
    pub async fn remaining(&self) -> u64 {
        self.largest_cost() - self.count_at(now())
    }
}

async fn acquire(take: impl Fn(Tick) -> Result<(), Tick>) -> Duration {
    let begun = now();
    loop {
        let asked = now();
        let Err(again) = take(asked) else { return asked.since(begun) };
        sleep_until(again).await;
        // Sleep ends early when its executor closes; without a pause for others this would keep the thread.
        if now() < again {
            yield_now().await;
        }
    }
}
