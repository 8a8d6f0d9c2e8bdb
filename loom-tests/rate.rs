//! Rate limits: no window sees more than its bound, whoever finds room is admitted, a refusal names a time that is true,
//! and a pause is seen by who was told of it.
//!
//! Threads take from the shipped limiters with stamps that the model gives them, as from clocks that differ.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use loom::thread;

use super::{check, refute};
use crate::clock::Tick;
use crate::limit::rate::{RateLimitConfig, RateLimiter};
use crate::limit::sliding_window::SlidingWindowLimiter;
use crate::limit::token_bucket::TokenBucketLimiter;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Of all models, in nanoseconds.
const WINDOW: u64 = 100;

/// What a lane calls of a limiter.
trait Limit: Send + Sync + 'static {
    fn take(&self, now: u64, cost: u32) -> Result<(), u64>;
}

impl Limit for TokenBucketLimiter {
    fn take(&self, now: u64, cost: u32) -> Result<(), u64> {
        self.take(Tick::from_nanos(now), cost).map_err(Tick::as_nanos)
    }
}

impl Limit for SlidingWindowLimiter {
    fn take(&self, now: u64, cost: u32) -> Result<(), u64> {
        self.take(Tick::from_nanos(now), cost).map_err(Tick::as_nanos)
    }
}

/// The step that a mutant leaves out or does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// A claim is a look and a write.
    ClaimInTwoSteps,
    /// The bucket goes on from the word, however long ago that was: it saves more than a burst.
    IdleCredit,
    /// A refusal names the time at which nothing would be missing for a command that costs nothing.
    NamesTooEarly,
    /// A cell that is claimed and not stamped counts as free since the round before.
    UnstampedIsFree,
    /// Of the cells that a command needs, the last one is looked at.
    LooksAtTheLast,
    /// Who finds a cell taken does not look whether the head is still there.
    NoSecondLook,
    /// The head is read and moved without ordering.
    RelaxedHead,
    /// Cells are read and stamped without ordering.
    RelaxedCells,
}

/// The steps of [`TokenBucketLimiter`], less one.
struct Bucket {
    full_at: AtomicU64,
    interval: u64,
    bucket: u64,
    slip: Slip,
}

impl Bucket {
    fn new(rate: u64, burst: u64, slip: Slip) -> Self {
        let interval = WINDOW / rate;
        Self { full_at: AtomicU64::new(0), interval, bucket: interval * burst, slip }
    }
}

impl Limit for Bucket {
    fn take(&self, now: u64, cost: u32) -> Result<(), u64> {
        let price = self.interval * u64::from(cost);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let from = if self.slip == Slip::IdleCredit { full_at } else { full_at.max(now) };
            if from + price > now + self.bucket {
                let missing = if self.slip == Slip::NamesTooEarly { 0 } else { price };
                return Err(from + missing - self.bucket);
            }
            if self.slip == Slip::ClaimInTwoSteps {
                self.full_at.store(from + price, Ordering::Relaxed);
                return Ok(());
            }
            match self.full_at.compare_exchange(full_at, from + price, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(found) => full_at = found,
            }
        }
    }
}

/// The steps of [`SlidingWindowLimiter`], less one.
struct Window {
    /// Cells claimed so far.
    head: AtomicU64,
    cells: Vec<AtomicU64>,
    slip: Slip,
}

impl Window {
    fn new(max: u64, slip: Slip) -> Self {
        Self { head: AtomicU64::new(0), cells: (0..max).map(|_| AtomicU64::new(0)).collect(), slip }
    }

    /// The cell of a claim, and its mark in the round of that claim.
    fn cell(&self, claim: u64) -> (&AtomicU64, u64) {
        let cells = self.cells.len() as u64;
        (&self.cells[(claim % cells) as usize], (claim / cells + 1) % 2)
    }

    fn look(&self, head: u64, cost: u64, free_again: u64) -> u64 {
        let ordering = if self.slip == Slip::RelaxedCells { Ordering::Relaxed } else { Ordering::Acquire };
        let first = if self.slip == Slip::LooksAtTheLast { head + cost - 1 } else { head };
        let until = |claim| {
            let (cell, mark) = self.cell(claim);
            let shown = cell.load(ordering);
            let stamped = shown % 2 != mark || self.slip == Slip::UnstampedIsFree;
            if stamped { shown / 2 } else { free_again }
        };
        (first..head + cost).map(until).max().unwrap_or(0)
    }
}

impl Limit for Window {
    fn take(&self, now: u64, cost: u32) -> Result<(), u64> {
        let (free_again, cost) = (now + WINDOW, u64::from(cost));
        let (read, moved) = match self.slip {
            Slip::RelaxedHead => (Ordering::Relaxed, Ordering::Relaxed),
            _ => (Ordering::Acquire, Ordering::AcqRel),
        };
        let mut head = self.head.load(read);
        loop {
            let until = self.look(head, cost, free_again);
            if until > now {
                let found = if self.slip == Slip::NoSecondLook { head } else { self.head.load(read) };
                if found == head {
                    return Err(if self.slip == Slip::NamesTooEarly { until - 1 } else { until });
                }
                head = found;
                continue;
            }
            if self.slip == Slip::ClaimInTwoSteps {
                self.head.store(head + cost, moved);
                break;
            }
            match self.head.compare_exchange(head, head + cost, moved, read) {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        let ordering = if self.slip == Slip::RelaxedCells { Ordering::Relaxed } else { Ordering::Release };
        for claim in head..head + cost {
            let (cell, mark) = self.cell(claim);
            cell.store(free_again * 2 + mark, ordering);
        }
        Ok(())
    }
}

/// Stamp and cost of what a thread asks for, one after the other.
type Asks = &'static [(u64, u32)];

/// The most that stamps at a distance may have together.
type Bound = fn(u64) -> u64;

/// One command a [`WINDOW`], and a burst of one.
fn bucket_of_one(distance: u64) -> u64 {
    1 + distance / WINDOW
}

/// Two commands a [`WINDOW`], and a burst of two.
fn bucket_of_two(distance: u64) -> u64 {
    2 + distance * 2 / WINDOW
}

fn window_of_one(distance: u64) -> u64 {
    if distance < WINDOW { 1 } else { u64::MAX }
}

fn window_of_two(distance: u64) -> u64 {
    if distance < WINDOW { 2 } else { u64::MAX }
}

fn bucket(max: u64) -> impl Fn() -> TokenBucketLimiter + Send + Sync {
    move || TokenBucketLimiter::new(&RateLimitConfig::new(max, Duration::from_nanos(WINDOW)))
}

fn window(max: u64) -> impl Fn() -> SlidingWindowLimiter + Send + Sync {
    move || SlidingWindowLimiter::new(&RateLimitConfig::new(max, Duration::from_nanos(WINDOW)))
}

fn mutant_bucket(max: u64, slip: Slip) -> impl Fn() -> Bucket + Send + Sync {
    move || Bucket::new(max, max, slip)
}

fn mutant_window(max: u64, slip: Slip) -> impl Fn() -> Window + Send + Sync {
    move || Window::new(max, slip)
}

/// What was admitted, stamp and cost; and how many were refused.
#[derive(Default)]
struct Answers {
    admitted: Vec<(u64, u32)>,
    refused: usize,
}

impl Answers {
    fn assert_within(&mut self, bound: Bound) {
        self.admitted.sort_unstable();
        for (first, &(begin, _)) in self.admitted.iter().enumerate() {
            let mut sum = 0;
            for &(end, cost) in &self.admitted[first..] {
                sum += u64::from(cost);
                assert!(sum <= bound(end - begin), "a window sees more than its bound: {:?}", self.admitted);
            }
        }
    }
}

/// Each list of asks on a thread of its own, the last on the model's.
fn ask<L: Limit>(limiter: &Arc<L>, asks: &'static [Asks]) -> Answers {
    let answers = Arc::new(Mutex::new(Answers::default()));
    let run = |limiter: &L, answers: &Mutex<Answers>, asks: Asks| {
        for &(now, cost) in asks {
            let answer = limiter.take(now, cost);
            let mut answers = answers.lock().expect("no panic");
            match answer {
                Ok(()) => answers.admitted.push((now, cost)),
                Err(_) => answers.refused += 1,
            }
        }
    };
    let (last, others) = asks.split_last().expect("somebody asks");
    let others: Vec<_> = others
        .iter()
        .map(|asks| {
            let (limiter, answers) = (Arc::clone(limiter), Arc::clone(&answers));
            thread::spawn(move || run(&limiter, &answers, asks))
        })
        .collect();
    run(limiter, &answers, last);
    others.into_iter().for_each(|thread| thread.join().expect("no panic"));
    std::mem::take(&mut *answers.lock().expect("no panic"))
}

/// Threads ask at once; then one asks alone, and again when it was told to.
fn crowd<L: Limit>(make: impl Fn() -> L + Send + Sync, asks: &'static [Asks], bound: Bound) -> impl Fn() + Send + Sync {
    move || {
        let limiter = Arc::new(make());
        let mut answers = ask(&limiter, asks);
        answers.assert_within(bound);
        if let Err(again) = limiter.take(1_000, 1) {
            assert_eq!(limiter.take(again, 1), Ok(()), "refused at the time that was named");
            answers.admitted.push((again, 1));
            answers.assert_within(bound);
        }
    }
}

/// Threads that ask for no more than there is are all admitted.
fn room_for_all<L: Limit>(make: impl Fn() -> L + Send + Sync, asks: &'static [Asks]) -> impl Fn() + Send + Sync {
    move || {
        let answers = ask(&Arc::new(make()), asks);
        assert_eq!(answers.refused, 0, "refused although there was room");
    }
}

/// Three threads ask again when told to, until they are admitted: at most once for each other one.
fn patient<L: Limit>(make: impl Fn() -> L + Send + Sync, bound: Bound) -> impl Fn() + Send + Sync {
    move || {
        let limiter = Arc::new(make());
        let patient = |limiter: &L, mut now: u64| {
            for _ in 0..3 {
                match limiter.take(now, 1) {
                    Ok(()) => return now,
                    Err(again) => now = again,
                }
            }
            panic!("refused too often");
        };
        let others = [1_000, 1_001].map(|now| {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || patient(&limiter, now))
        });
        let mut answers = Answers::default();
        answers.admitted.push((patient(&limiter, 1_000), 1));
        answers.admitted.extend(others.into_iter().map(|thread| (thread.join().expect("no panic"), 1)));
        answers.assert_within(bound);
    }
}

/// Three threads after a long idle time, one of them with a clock that is behind.
const AT_ONCE: &[Asks] = &[&[(1_000, 1)], &[(1_001, 1)], &[(999, 1)]];
/// One thread asks for several rounds, another comes in between.
const ROUNDS: &[Asks] = &[&[(1_000, 1), (1_100, 1), (1_200, 1)], &[(1_250, 1)]];
/// More than one place each.
const WEIGHTS: &[Asks] = &[&[(1_000, 1), (1_101, 2)], &[(1_005, 1)], &[(1_001, 2)]];

#[test]
fn a_token_bucket_keeps_its_bound() {
    // Rules out: two threads are admitted for one token; an old stamp sets the bucket back.
    check(crowd(bucket(1), AT_ONCE, bucket_of_one));
    check(crowd(bucket(2), WEIGHTS, bucket_of_two));
    check(crowd(bucket(1), ROUNDS, bucket_of_one));
}

#[test]
fn a_sliding_window_keeps_its_bound() {
    // Rules out: a place is given away that is claimed and not stamped, or that an older stamp is written over.
    check(crowd(window(1), AT_ONCE, window_of_one));
    check(crowd(window(2), WEIGHTS, window_of_two));
    check(crowd(window(1), ROUNDS, window_of_one));
}

#[test]
fn whoever_finds_room_is_admitted() {
    // Rules out: who is overtaken between two steps takes the other's share for a full limit.
    check(room_for_all(bucket(2), &[&[(1_000, 1)], &[(1_000, 1)]]));
    check(room_for_all(window(2), &[&[(1_000, 1)], &[(1_000, 1)]]));
}

#[test]
fn who_asks_a_bucket_when_told_is_admitted_once_the_others_were() {
    // Rules out: a refusal names a time at which there is nothing, or one that has passed. Of a sliding window that cannot
    // be said while another thread is between its claim and its stamp: model time would pass as often as it is not run.
    check(patient(bucket(1), bucket_of_one));
    check(patient(bucket(2), bucket_of_two));
}

/// Two threads pause; a third takes once it was told of the first pause.
fn paused(in_two_steps: bool) -> impl Fn() + Send + Sync {
    move || {
        let limiter = RateLimiter::unlimited();
        let pauses = AtomicU64::new(0);
        let shared = Arc::new((limiter, pauses, AtomicU64::new(0)));
        let pause = move |(limiter, mutant, _): &(RateLimiter, AtomicU64, AtomicU64), until: u64| {
            if !in_two_steps {
                limiter.pause_until(Tick::from_nanos(until));
            } else if mutant.load(Ordering::Relaxed) < until {
                mutant.store(until, Ordering::Relaxed);
            }
        };
        let longer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                pause(&shared, 300);
                shared.2.store(1, Ordering::Release);
            })
        };
        let shorter = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || pause(&shared, 200))
        };
        let admitted = |now: u64| {
            if in_two_steps {
                shared.1.load(Ordering::Relaxed) <= now
            } else {
                shared.0.take(Tick::from_nanos(now), 1).is_ok()
            }
        };
        if shared.2.load(Ordering::Acquire) == 1 {
            assert!(!admitted(250), "admitted during a pause");
        }
        longer.join().expect("no panic");
        shorter.join().expect("no panic");
        assert!(!admitted(250), "admitted during a pause");
        assert!(admitted(300), "paused for ever");
    }
}

#[test]
fn a_pause_is_never_shortened_by_another() {
    // Rules out: a shorter pause is written over a longer one.
    check(paused(false));
}

#[test]
fn mutant_that_pauses_in_two_steps_shortens_a_pause() {
    // The run: both look, the longer pause is written first.
    refute("admitted during a pause", paused(true));
}

#[test]
fn the_copies_that_mutants_are_made_of_keep_the_promises() {
    // The runs that the mutants fail are due to what they leave out.
    check(crowd(mutant_bucket(1, Slip::None), AT_ONCE, bucket_of_one));
    check(crowd(mutant_bucket(2, Slip::None), WEIGHTS, bucket_of_two));
    check(crowd(mutant_window(1, Slip::None), AT_ONCE, window_of_one));
    check(crowd(mutant_window(2, Slip::None), WEIGHTS, window_of_two));
    check(crowd(mutant_window(1, Slip::None), ROUNDS, window_of_one));
    check(room_for_all(mutant_window(2, Slip::None), &[&[(1_000, 1)], &[(1_000, 1)]]));
}

#[test]
fn mutants_that_claim_in_two_steps_exceed_the_bound() {
    // The run: two threads see the last token, or the last place.
    refute("more than its bound", crowd(mutant_bucket(1, Slip::ClaimInTwoSteps), AT_ONCE, bucket_of_one));
    refute("more than its bound", crowd(mutant_window(1, Slip::ClaimInTwoSteps), AT_ONCE, window_of_one));
}

#[test]
fn mutant_that_saves_while_idle_exceeds_the_bound() {
    // The run: any.
    refute("more than its bound", crowd(mutant_bucket(1, Slip::IdleCredit), AT_ONCE, bucket_of_one));
}

#[test]
fn mutants_that_name_a_time_too_early_refuse_again() {
    // The run: any.
    refute("at the time that was named", crowd(mutant_bucket(1, Slip::NamesTooEarly), AT_ONCE, bucket_of_one));
    refute("at the time that was named", crowd(mutant_window(1, Slip::NamesTooEarly), AT_ONCE, window_of_one));
}

#[test]
fn mutant_that_gives_away_what_is_not_stamped_exceeds_the_bound() {
    // The run: one thread claims the only cell, the other sees its stamp of the round before.
    refute("more than its bound", crowd(mutant_window(1, Slip::UnstampedIsFree), AT_ONCE, window_of_one));
}

#[test]
fn mutant_that_looks_at_the_last_cell_exceeds_the_bound() {
    // The run: the clock that is ahead stamps the first cell, the other one the second.
    refute("more than its bound", crowd(mutant_window(2, Slip::LooksAtTheLast), WEIGHTS, window_of_two));
}

#[test]
fn mutants_that_do_not_see_that_they_were_overtaken_refuse_although_there_is_room() {
    // The run: the cell that the head pointed to is claimed and stamped between the two looks.
    const BOTH: &[Asks] = &[&[(1_000, 1)], &[(1_000, 1)]];
    refute("although there was room", room_for_all(mutant_window(2, Slip::NoSecondLook), BOTH));
    refute("although there was room", room_for_all(mutant_window(2, Slip::RelaxedCells), BOTH));
}

#[test]
fn mutant_with_a_head_without_ordering_exceeds_the_bound() {
    // The run: the head is of the third round, the cell still shows the first one, which looks like the third.
    refute("more than its bound", crowd(mutant_window(1, Slip::RelaxedHead), ROUNDS, window_of_one));
}
