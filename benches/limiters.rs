//! Rate limiters: one decision, admitted and refused, by one thread and by two at once. Reading the clock is part of it.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use corelane::{RateAlgorithm, RateLimitConfig, RateLimiter};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures::FutureExt;

fn limiter(config: &RateLimitConfig) -> RateLimiter {
    RateLimiter::new(config).expect("the limit makes sense")
}

fn decide(limiter: &RateLimiter, decisions: u64) -> Duration {
    let begun = Instant::now();
    for _ in 0..decisions {
        black_box(limiter.try_acquire().now_or_never());
    }
    begun.elapsed()
}

/// Of two threads, each making `decisions`, what the slower one takes.
fn decide_twice(limiter: &RateLimiter, decisions: u64) -> Duration {
    let start = Barrier::new(2);
    let run = || {
        start.wait();
        decide(limiter, decisions)
    };
    thread::scope(|scope| {
        let other = scope.spawn(run);
        run().max(other.join().expect("decides"))
    })
}

fn decisions(c: &mut Criterion) {
    // 100 million a second: more than is asked for. The window keeps 1,048,576 times, which is the most.
    let bucket = RateLimitConfig::per_second(100_000_000);
    let window = RateLimitConfig::new(1 << 20, Duration::from_nanos(10 << 20)).sliding_window();
    let used_up = |algorithm| {
        let limiter = limiter(&RateLimitConfig::per_hour(1).with_algorithm(algorithm));
        decide(&limiter, 1);
        limiter
    };
    let cases = [
        ("unlimited", RateLimiter::unlimited()),
        ("token_bucket/admitted", limiter(&bucket)),
        ("token_bucket/refused", used_up(RateAlgorithm::TokenBucket)),
        ("sliding_window/admitted", limiter(&window)),
        ("sliding_window/refused", used_up(RateAlgorithm::SlidingWindow)),
    ];
    let mut group = c.benchmark_group("rate_limit");
    for (name, limiter) in cases {
        group.bench_function(BenchmarkId::new(name, "1_thread"), |b| b.iter_custom(|n| decide(&limiter, n)));
        group.bench_function(BenchmarkId::new(name, "2_threads"), |b| b.iter_custom(|n| decide_twice(&limiter, n)));
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
