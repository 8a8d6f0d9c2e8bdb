//! A cheap clock for measurements: nanoseconds, for differences of times and for the order of events.
//!
//! Where the system keeps time by the processor's time stamp counter, so do stamps, without the way through the system's
//! clock: 11 instead of 29 ns (AMD EPYC, 2026-11-25). That the system trusts the counter says that it runs at one rate and is the same on all
//! CPUs. Its rate is measured once, over 50 ms; until then, and elsewhere, stamps come from the system's clock. Never for a
//! decision when to run something: the rate is within some millionths of the true one, and is not corrected later.

#![allow(unsafe_code)]

use super::ORIGIN;

/// Nanoseconds since the process first asked for a time.
#[inline]
pub(crate) fn stamp() -> u64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    if let Some(stamp) = tsc::stamp() {
        return stamp;
    }
    system()
}

fn system() -> u64 {
    u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod tsc {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    /// How long the rate is measured, in nanoseconds.
    const MEASURED: u64 = 50_000_000;

    /// What is known of the counter. In one place, and found by one address: stamps are taken several times for each command.
    struct Rate {
        /// Nanoseconds per 2^32 ticks; 0 while that is not known.
        nanos: AtomicU64,
        /// What is to be taken off the nanoseconds of the counter. Not changed once the rate is set.
        offset: AtomicU64,
        /// A time by both clocks: ticks and nanoseconds. Of the beginning of the measurement.
        began: [AtomicU64; 2],
        state: AtomicU8,
    }

    static RATE: Rate = Rate {
        nanos: AtomicU64::new(0),
        offset: AtomicU64::new(0),
        began: [const { AtomicU64::new(0) }; 2],
        state: AtomicU8::new(NEW),
    };

    const NEW: u8 = 0;
    /// Somebody writes the two words.
    const BUSY: u8 = 1;
    const MEASURING: u8 = 2;
    /// Measured, or not to be used.
    const DONE: u8 = 3;

    fn ticks() -> u64 {
        // SAFETY: reads a counter, which every x86-64 processor has. Where user code may not read it, Linux does not keep
        // time by it either (`is_trusted`), and this is not called.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn nanos(ticks: u64, rate: u64) -> u64 {
        ((u128::from(ticks) * u128::from(rate)) >> 32) as u64
    }

    #[inline]
    pub(super) fn stamp() -> Option<u64> {
        // ORDERING: acquire, so that the offset is that of the rate.
        let rate = RATE.nanos.load(Ordering::Acquire);
        if rate == 0 {
            return measure();
        }
        // Another CPU's counter may be a little behind that of the measurement: not by the 50 ms that it took.
        Some(nanos(ticks(), rate).wrapping_sub(RATE.offset.load(Ordering::Relaxed)))
    }

    /// Takes the measurement a step further, if this is the one to do so. None: the system's clock is to be asked.
    #[cold]
    fn measure() -> Option<u64> {
        let state = RATE.state.load(Ordering::Acquire);
        match state {
            NEW | MEASURING => {}
            _ => return None,
        }
        let [began_ticks, began_nanos] = RATE.began.each_ref();
        if state == MEASURING && super::system().saturating_sub(began_nanos.load(Ordering::Relaxed)) < MEASURED {
            return None;
        }
        RATE.state.compare_exchange(state, BUSY, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if state == NEW && !is_trusted() {
            RATE.state.store(DONE, Ordering::Release);
            return None;
        }
        let (now_ticks, now_nanos) = both();
        if state == NEW {
            began_ticks.store(now_ticks, Ordering::Relaxed);
            began_nanos.store(now_nanos, Ordering::Relaxed);
            RATE.state.store(MEASURING, Ordering::Release);
            return None;
        }
        let ticks = u128::from(now_ticks.saturating_sub(began_ticks.load(Ordering::Relaxed)));
        let passed = u128::from(now_nanos.saturating_sub(began_nanos.load(Ordering::Relaxed)));
        let rate = (passed << 32).checked_div(ticks).and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0);
        RATE.offset.store(nanos(now_ticks, rate).wrapping_sub(now_nanos), Ordering::Relaxed);
        RATE.nanos.store(rate, Ordering::Release);
        RATE.state.store(DONE, Ordering::Release);
        None
    }

    /// One time by both clocks: of several tries the one that took the shortest.
    fn both() -> (u64, u64) {
        let tries = (0..8).map(|_| {
            let before = ticks();
            let nanos = super::system();
            let after = ticks();
            (after.saturating_sub(before), before + after.saturating_sub(before) / 2, nanos)
        });
        tries.min().map_or((0, 0), |(_, ticks, nanos)| (ticks, nanos))
    }

    /// Whether the system keeps time by the counter.
    fn is_trusted() -> bool {
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        std::fs::read_to_string(source).is_ok_and(|source| source.trim() == "tsc")
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn stamps_go_as_the_systems_clock_does() {
        let began = system();
        let mut last = stamp();
        // Over the end of the measurement, if that is still to come.
        while system() - began < 120_000_000 {
            let (before, now, after) = (system(), stamp(), system());
            assert!(now >= last, "{now} after {last}");
            // 100 us cover an interrupted measurement of the rate.
            assert!(now + 100_000 >= before && now <= after + 100_000, "{before} {now} {after}");
            last = now;
        }
    }
}
