//! Rate limiters used directly. Their arithmetic is tested in virtual time, in `src/limit/tests.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corelane::{
    RateAlgorithm, RateLimitConfig, RateLimiter, Simulation, SlidingWindowLimiter, TokenBucketLimiter, timeout,
};

use crate::support::{HANG, block_on, on_workers};

const BOTH: [RateAlgorithm; 2] = [RateAlgorithm::TokenBucket, RateAlgorithm::SlidingWindow];

fn limiter(config: RateLimitConfig, algorithm: RateAlgorithm) -> RateLimiter {
    RateLimiter::new(&config.with_algorithm(algorithm)).unwrap()
}

#[test]
fn the_constructors_of_the_seed_say_what_they_say() {
    let second = Duration::from_secs(1);
    assert_eq!(RateLimitConfig::per_second(5), RateLimitConfig::new(5, second));
    assert_eq!(RateLimitConfig::per_minute(5), RateLimitConfig::new(5, 60 * second));
    assert_eq!(RateLimitConfig::per_hour(5), RateLimitConfig::new(5, 3600 * second));
    assert_eq!(RateLimitConfig::unlimited().max_commands, u64::MAX);
    assert_eq!(RateLimitConfig::default(), RateLimitConfig::unlimited());
}

#[test]
fn a_token_bucket_gives_its_burst_and_tells_what_is_left() {
    let bucket = TokenBucketLimiter::new(&RateLimitConfig::per_hour(10));
    assert_eq!((bucket.capacity(), bucket.available_tokens()), (10, 10));
    assert!((bucket.refill_rate() - 10.0 / 3600.0).abs() < 1e-9);
    let taken = (0..15).filter(|_| block_on(bucket.try_acquire())).count();
    assert_eq!((taken, bucket.available_tokens()), (10, 0));
}

#[test]
fn a_sliding_window_gives_its_limit_and_tells_what_is_left() {
    let window = SlidingWindowLimiter::new(&RateLimitConfig::per_hour(10));
    assert_eq!(block_on(window.remaining()), 10);
    assert!((0..4).all(|_| block_on(window.try_acquire())));
    assert_eq!((block_on(window.current_count()), block_on(window.remaining())), (4, 6));
    let taken = (0..15).filter(|_| block_on(window.try_acquire())).count();
    assert_eq!((taken, block_on(window.remaining())), (6, 0));
}

#[test]
fn acquire_waits_until_it_is_time_and_says_how_long() {
    for algorithm in BOTH {
        let mut simulation = Simulation::new(2, 11);
        let limiter = limiter(RateLimitConfig::new(1, Duration::from_secs(10)), algorithm);
        let task = simulation.executor().spawn(0, async move { [limiter.acquire().await, limiter.acquire().await] });
        let [first, second] = simulation.block_on(task).unwrap();
        assert_eq!(first, Duration::ZERO);
        let late = second.checked_sub(Duration::from_secs(10)).expect("not before it is time");
        assert!(late < Duration::from_millis(1), "{late:?} late: nobody polls");
    }
}

#[test]
fn acquire_works_outside_of_the_executor() {
    for algorithm in BOTH {
        let limiter = limiter(RateLimitConfig::new(1, Duration::from_millis(30)), algorithm);
        let begun = Instant::now();
        let waited = block_on(async { limiter.acquire().await + limiter.acquire().await });
        assert!(waited >= Duration::from_millis(29) && begun.elapsed() >= Duration::from_millis(29), "{waited:?}");
    }
}

#[test]
fn an_acquire_that_is_given_up_has_taken_nothing() {
    for algorithm in BOTH {
        let mut simulation = Simulation::new(1, 3);
        let limiter = limiter(RateLimitConfig::per_second(1), algorithm);
        let task = simulation.executor().spawn(0, async move {
            limiter.acquire().await;
            for _ in 0..10 {
                assert!(timeout(Duration::from_millis(50), limiter.acquire()).await.is_err());
            }
            limiter.acquire().await
        });
        let waited = simulation.block_on(task).unwrap();
        assert!(waited < Duration::from_millis(501), "{waited:?}");
    }
}

#[test]
fn all_who_wait_get_their_turn_at_the_rate() {
    on_workers(|executor| {
        for algorithm in BOTH {
            let limiter = limiter(RateLimitConfig::new(1, Duration::from_millis(5)), algorithm);
            let begun = Instant::now();
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let limiter = limiter.clone();
                    executor.spawn(0, async move { timeout(HANG, limiter.acquire()).await.is_ok() })
                })
                .collect();
            assert!(tasks.into_iter().all(|task| executor.block_on(task).unwrap()));
            assert!(begun.elapsed() >= Duration::from_millis(45), "{:?}", begun.elapsed());
        }
    });
}

#[test]
fn a_pause_holds_back_and_resume_ends_it() {
    for limiter in [RateLimiter::unlimited(), limiter(RateLimitConfig::per_hour(1_000), RateAlgorithm::SlidingWindow)] {
        assert!(block_on(limiter.try_acquire()));
        limiter.pause_for(HANG);
        limiter.pause_for(Duration::ZERO);
        assert!(!block_on(limiter.try_acquire()));
        limiter.resume();
        assert!(block_on(limiter.try_acquire()));
        limiter.pause_for(Duration::from_millis(20));
        assert!(block_on(limiter.acquire()) >= Duration::from_millis(15));
        limiter.pause_for(Duration::MAX);
        assert!(!block_on(limiter.try_acquire()));
    }
}

#[test]
fn threads_that_share_a_limit_never_exceed_it() {
    for algorithm in BOTH {
        let (max, window) = (1_000, Duration::from_millis(20));
        let limiter = limiter(RateLimitConfig::new(max, window), algorithm);
        let admitted = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (limiter, admitted) = (limiter.clone(), Arc::clone(&admitted));
                scope.spawn(move || {
                    while begun.elapsed() < Duration::from_millis(100) {
                        if block_on(limiter.try_acquire()) {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let windows = begun.elapsed().as_nanos().div_ceil(window.as_nanos()) as u64;
        let admitted = admitted.load(Ordering::Relaxed);
        assert!(admitted <= max * (windows + 1), "{admitted} in {windows} windows of {max}");
        assert!(admitted > max * 2, "{admitted}");
    }
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_with_all_its_problems() {
    let errors = RateLimiter::new(&RateLimitConfig::new(0, Duration::ZERO)).unwrap_err();
    assert_eq!(errors.problems().len(), 2, "{errors}");
}
