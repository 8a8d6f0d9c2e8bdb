//! How exact rates are in real time: prints a table of rates and algorithms, measured with two threads that always want
//! more. Not a Criterion bench: what counts is commands, not time.
//!
//! A place in a sliding window that is taken late comes back late, so there each wake-up costs its delay in relation to the
//! window, which is short here. A token bucket catches up.
#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corelane::{RateAlgorithm, RateLimitConfig, RateLimiter};
use futures::FutureExt;

const THREADS: usize = 2;
const WINDOW: Duration = Duration::from_millis(100);
/// Five windows and a half: a sliding window admits at the beginning of each.
const TAKES: Duration = Duration::from_millis(550);

fn main() {
    println!("Error of the rate, {THREADS} threads, limits for each {WINDOW:?}, {TAKES:?} each\n");
    println!("| rate | how they ask | token bucket | sliding window |");
    println!("|---:|---|---:|---:|");
    for max_commands in [10, 100, 195, 1_000, 10_000, 100_000] {
        let rate = max_commands as f64 / WINDOW.as_secs_f64();
        for (how, asks) in [("all the time", all_the_time as Asks), ("`acquire`", patiently)] {
            let error = |algorithm| {
                let config = RateLimitConfig::new(max_commands, WINDOW).with_algorithm(algorithm);
                let limiter = RateLimiter::new(&config).expect("the limit makes sense");
                (measure(max_commands, algorithm, || asks(&limiter)) / rate - 1.0) * 100.0
            };
            let (bucket, window) = (error(RateAlgorithm::TokenBucket), error(RateAlgorithm::SlidingWindow));
            println!("| {rate}/s | {how} | {bucket:+.3} % | {window:+.3} % |");
        }
    }
}

/// True if admitted.
type Asks = fn(&RateLimiter) -> bool;

fn all_the_time(limiter: &RateLimiter) -> bool {
    limiter.try_acquire().now_or_never().expect("never waits")
}

fn patiently(limiter: &RateLimiter) -> bool {
    futures::executor::block_on(limiter.acquire());
    true
}

/// Commands a second after the first burst.
fn measure(burst: u64, algorithm: RateAlgorithm, admits: impl Fn() -> bool + Sync) -> f64 {
    let (admitted, burst_end, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let admits = admits();
                    let now = begun.elapsed();
                    if now >= TAKES {
                        return;
                    }
                    if admits {
                        let now = now.as_nanos() as u64;
                        if admitted.fetch_add(1, Ordering::Relaxed) + 1 == burst {
                            burst_end.store(now, Ordering::Relaxed);
                        }
                        last.fetch_max(now, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    // A bucket goes on filling during its burst. In a window, each round begins one window after that place's last.
    let from = if algorithm == RateAlgorithm::TokenBucket { 0 } else { burst_end.into_inner() };
    (admitted.into_inner() - burst) as f64 * 1e9 / (last.into_inner() - from) as f64
}
