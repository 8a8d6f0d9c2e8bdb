//! Rate limiters: one decision, admitted or refused, by one thread and by two at once. Each reads its clock, as in use.

use std::num::NonZeroU32;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use corelane::{RateLimitConfig, RateLimiter};
use futures::FutureExt;
use governor::clock::MonotonicClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter as Governor};

use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::results::Role;

/// Decides for one command.
trait Limiter: Send + Sync + 'static {
    fn admits(&self) -> bool;
}

impl Limiter for RateLimiter {
    fn admits(&self) -> bool {
        self.try_acquire().now_or_never().expect("never waits")
    }
}

impl Limiter for DefaultDirectRateLimiter {
    fn admits(&self) -> bool {
        self.check().is_ok()
    }
}

type MonotonicGovernor = Governor<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<Instant>>;

impl Limiter for MonotonicGovernor {
    fn admits(&self) -> bool {
        self.check().is_ok()
    }
}

/// Faster than anybody here decides, so that all is admitted.
const HIGH: u32 = 100_000_000;

/// Limiters that always admit, or always refuse.
pub struct Deciding {
    pub threads: u64,
    pub admitted: bool,
    /// By each thread.
    pub decisions: u64,
}

impl Workload for Deciding {
    fn name(&self) -> String {
        format!("limiter/{}-{}", if self.admitted { "admitted" } else { "refused" }, self.threads)
    }

    fn what(&self) -> String {
        let limit = if self.admitted { "100 million a second, which always admits" } else { "one an hour, used up" };
        let by = if self.threads == 1 { "one thread".to_owned() } else { format!("{} threads at once", self.threads) };
        format!("one decision of a rate limiter of {limit}, by {by}; {} decisions by each", self.decisions)
    }

    fn allocates(&self) -> bool {
        false
    }

    fn contenders(&self, _: &Cast) -> Vec<Contender> {
        let &Self { threads, admitted, decisions } = self;
        let corelane = |high: RateLimitConfig| {
            let config = if admitted { high } else { RateLimitConfig::per_hour(1).with_algorithm(high.algorithm) };
            RateLimiter::new(&config).expect("the limit makes sense")
        };
        let bucket = corelane(RateLimitConfig::per_second(HIGH.into()));
        // The same rate, in as many places as a window can have.
        let window = corelane(RateLimitConfig::new(1 << 20, Duration::from_nanos(10 << 20)).sliding_window());
        let hour = Duration::from_secs(3600);
        let quota = || match NonZeroU32::new(HIGH) {
            Some(high) if admitted => Quota::per_second(high),
            _ => Quota::with_period(hour).expect("more than zero"),
        };
        let clock_of_std = MonotonicGovernor::new(quota(), InMemoryState::default(), MonotonicClock);
        let run = Run { threads, decisions, admitted };
        let all = threads * decisions;
        vec![
            Contender::timed("corelane, token bucket", Role::Ours, all, run.on(bucket)),
            Contender::timed("corelane, sliding window", Role::Ours, all, run.on(window)),
            Contender::timed("governor", Role::Peer, all, run.on(DefaultDirectRateLimiter::direct(quota()))),
            Contender::timed("governor, clock of std", Role::Peer, all, run.on(clock_of_std)),
        ]
    }
}

/// What a run does.
#[derive(Clone, Copy)]
struct Run {
    threads: u64,
    /// By each thread.
    decisions: u64,
    /// What every decision is.
    admitted: bool,
}

impl Run {
    fn on(self, limiter: impl Limiter) -> impl FnMut() -> Duration {
        let limiter = Arc::new(limiter);
        if !self.admitted {
            limiter.admits();
        }
        move || {
            if self.threads == 1 {
                return self.decide(&*limiter);
            }
            let start = Arc::new(Barrier::new(self.threads as usize));
            let threads: Vec<_> = (0..self.threads)
                .map(|_| {
                    let (limiter, start) = (Arc::clone(&limiter), Arc::clone(&start));
                    thread::spawn(move || {
                        start.wait();
                        self.decide(&*limiter)
                    })
                })
                .collect();
            // From when all were ready to when the slowest was done.
            threads.into_iter().map(|thread| thread.join().expect("decides")).max().expect("there are threads")
        }
    }

    fn decide(self, limiter: &impl Limiter) -> Duration {
        let begun = Instant::now();
        let admitted = (0..self.decisions).filter(|_| limiter.admits()).count() as u64;
        let took = begun.elapsed();
        // A thread that the system interrupts has the others refused at times.
        let least = if self.admitted { self.decisions * 99 / 100 } else { 0 };
        let most = if self.admitted { self.decisions } else { 0 };
        assert!((least..=most).contains(&admitted), "{admitted} of {} admitted", self.decisions);
        took
    }
}
