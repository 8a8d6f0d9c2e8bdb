//! What an emitter, its threads' logs and its subscribers share.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use chrono::{DateTime, TimeDelta, Utc};

use super::emitter::Frequent;
use super::kind::EVERY_KIND;
use super::lane_event::LaneEvent;
use super::log::{Log, Told, UNMEASURED, What, address};
use super::transition::{CommandInfo, Transition};
use super::writers;
use crate::clock::{Clock, stamp, wall_now};
use crate::sync::OwnLine;

/// In the interest word: who tells something calls whoever wakes subscribers.
pub(super) const CALL: u32 = 1 << 31;

/// In the emitter's number: events go the slow way, since somebody conflates.
const SLOW: u64 = 1 << 63;

/// Names of lanes that are kept for frequent events. Events of further lanes are told in full.
const LANES: usize = 4096;

const _: () = assert!(EVERY_KIND & CALL == 0);

pub(super) struct Hub {
    /// Never given again.
    pub(super) number: u64,
    hot: OwnLine<Hot>,
    /// Events that a subscriber is promised, of each thread.
    pub(super) capacity: usize,
    /// Records that a log keeps: as many, or more if they are recorded.
    kept: AtomicUsize,
    /// Set if time is virtual.
    clock: OnceLock<VirtualTime>,
    logs: Mutex<Vec<Arc<Log>>>,
    log_count: AtomicUsize,
    lanes: Mutex<HashMap<u64, Arc<str>>>,
    seats: Mutex<Seats>,
    /// Seats that wait.
    waiting: AtomicUsize,
    /// Whether the thread that wakes has been told of this hub.
    pub(super) attended: AtomicBool,
    /// Whether every event wakes at once.
    immediate: AtomicBool,
    closed: AtomicBool,
    dropped: AtomicU64,
}

/// What whoever tells something reads, and hardly anybody writes.
struct Hot {
    /// A bit for each kind that somebody wants, and [`CALL`].
    interest: AtomicU32,
    /// The emitter's number, and [`SLOW`].
    key: AtomicU64,
}

struct VirtualTime {
    clock: Clock,
    /// The wall clock when virtual time began.
    began: DateTime<Utc>,
}

#[derive(Default)]
struct Seats {
    list: Vec<Arc<Seat>>,
    recording: bool,
}

/// A subscriber, as those see it who tell.
pub(super) struct Seat {
    pub(super) interest: u32,
    pub(super) conflates: bool,
    waker: AtomicWaker,
    waits: AtomicBool,
    /// The sum of the logs' heads that it has seen.
    seen: AtomicU64,
}

impl Seat {
    pub(super) fn new(interest: u32, conflates: bool) -> Self {
        let (waker, waits, seen) = (AtomicWaker::new(), AtomicBool::new(false), AtomicU64::new(0));
        Self { interest, conflates, waker, waits, seen }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(super) fn new(capacity: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            number,
            hot: OwnLine(Hot { interest: AtomicU32::new(0), key: AtomicU64::new(number) }),
            capacity,
            kept: AtomicUsize::new(capacity),
            clock: OnceLock::new(),
            logs: Mutex::default(),
            log_count: AtomicUsize::new(0),
            lanes: Mutex::default(),
            seats: Mutex::default(),
            waiting: AtomicUsize::new(0),
            attended: AtomicBool::new(false),
            immediate: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn interest(&self) -> &AtomicU32 {
        &self.hot.interest
    }

    /// What a log that may be written at once has as its key.
    #[inline]
    pub(super) fn key(&self) -> u64 {
        self.hot.key.load(Ordering::Relaxed)
    }

    // ---- time

    /// Events happen in this clock's time. If it is a virtual one, every event wakes at once: a simulation waits for nothing.
    pub(super) fn runs_on(&self, clock: &Clock) {
        if matches!(clock, Clock::Virtual(_)) {
            let _ = self.clock.set(VirtualTime { clock: clock.clone(), began: wall_now() });
            self.wake_at_once();
        }
    }

    pub(super) fn stamp(&self) -> u64 {
        self.clock.get().map_or_else(stamp, |time| time.clock.stamp())
    }

    /// Up to which stamp a reader may give records that it sees after this. In virtual time there is one thread.
    pub(super) fn horizon(&self) -> u64 {
        if self.clock.get().is_some() { u64::MAX } else { stamp() }
    }

    /// A stamp and the wall clock at it.
    pub(super) fn both_clocks(&self) -> (u64, DateTime<Utc>) {
        self.clock.get().map_or_else(|| (stamp(), wall_now()), |time| (0, time.began))
    }

    // ---- logs

    /// A log for this thread to write.
    pub(super) fn log(&self) -> Arc<Log> {
        let mut logs = lock(&self.logs);
        let kept = self.kept.load(Ordering::Relaxed);
        if let Some(log) = logs.iter().find(|log| log.kept >= kept as u64 && log.claim()) {
            return Arc::clone(log);
        }
        let log = Arc::new(Log::new(self.number, kept));
        log.claim();
        logs.push(Arc::clone(&log));
        // ORDERING: release, so that who has seen a record of it, or an effect of one, finds it. See `merge`.
        self.log_count.store(logs.len(), Ordering::Release);
        log
    }

    /// Adds the logs that `known` lacks.
    pub(super) fn add_logs(&self, known: usize, mut add: impl FnMut(Arc<Log>)) {
        if self.log_count.load(Ordering::Acquire) > known {
            lock(&self.logs)[known..].iter().cloned().for_each(&mut add);
        }
    }

    pub(super) fn logs(&self) -> Vec<Arc<Log>> {
        lock(&self.logs).clone()
    }

    /// As [`Hub::logs`], for a thread that may be in the middle of anything.
    pub(super) fn logs_at_once(&self) -> Option<Vec<Arc<Log>>> {
        self.logs.try_lock().ok().map(|logs| logs.clone())
    }

    /// The name that stands at an address which a record has.
    pub(super) fn lane(&self, address: u64) -> Option<Arc<str>> {
        lock(&self.lanes).get(&address).cloned()
    }

    pub(super) fn lanes_at_once(&self) -> Option<HashMap<u64, Arc<str>>> {
        self.lanes.try_lock().ok().map(|lanes| lanes.clone())
    }

    /// Keeps the name, so that its address stays its own. False if there is no room.
    fn keep_lane(&self, lane: &Arc<str>) -> bool {
        let mut lanes = lock(&self.lanes);
        let known = lanes.contains_key(&address(lane));
        if !known && lanes.len() < LANES {
            lanes.insert(address(lane), Arc::clone(lane));
            return true;
        }
        known
    }

    // ---- telling

    /// Tells a frequent event where the quick way is closed.
    #[cold]
    pub(super) fn tell_frequent(&self, frequent: &Frequent<'_>) {
        let keeps = self.key() & SLOW != 0;
        let lane_kept = self.keep_lane(frequent.lane);
        writers::with_own(self, |log| {
            if keeps {
                log.keep_newest();
            }
            if lane_kept {
                log.knows(frequent.lane);
                if log.push_frequent(frequent) {
                    return;
                }
            }
            let command = CommandInfo::new(frequent.lane, frequent.id, frequent.command_type);
            let what = What::Transition(frequent.kind.transition(command));
            log.push_told(frequent.kind.kind(), frequent.stamp, Told { what, nanos: frequent.nanos });
        });
    }

    /// Tells anything, and wakes who waits.
    #[cold]
    pub(super) fn tell(&self, what: What, nanos: u64) {
        let kind = match &what {
            What::Transition(transition) => transition.kind(),
            What::Custom(_) => super::kind::EventKind::Custom,
        };
        if self.interest().load(Ordering::Relaxed) & kind.bit() == 0 {
            return;
        }
        let keeps = self.key() & SLOW != 0;
        writers::with_own(self, |log| {
            if keeps {
                log.keep_newest();
            }
            log.push_told(kind, self.stamp(), Told { what, nanos });
        });
        self.wake_who_waits();
    }

    pub(super) fn tell_transition(&self, transition: Transition, nanos: u64) {
        self.tell(What::Transition(transition), nanos);
    }

    pub(super) fn tell_custom(&self, event: LaneEvent) {
        self.tell(What::Custom(event), UNMEASURED);
    }

    /// What a frequent event does that finds [`CALL`].
    #[cold]
    pub(super) fn called(&self) {
        if self.immediate.load(Ordering::Relaxed) {
            self.wake_who_waits();
        } else if self.interest().fetch_and(!CALL, Ordering::Relaxed) & CALL != 0 {
            super::watch::call();
        }
    }

    // ---- subscribers

    pub(super) fn sit(&self, seat: &Arc<Seat>) {
        let mut seats = lock(&self.seats);
        seats.list.push(Arc::clone(seat));
        self.update(&seats);
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        let mut seats = lock(&self.seats);
        seats.list.retain(|other| !Arc::ptr_eq(other, seat));
        self.stops_waiting(seat);
        self.update(&seats);
    }

    /// Keeps the last `records` events of each thread, whether or not anybody has subscribed.
    pub(super) fn record(&self, records: usize) {
        self.kept.fetch_max(records, Ordering::Relaxed);
        let mut seats = lock(&self.seats);
        seats.recording = true;
        self.update(&seats);
    }

    fn update(&self, seats: &Seats) {
        let wanted = seats.list.iter().fold(0, |wanted, seat| wanted | seat.interest);
        let wanted = if seats.recording { EVERY_KIND } else { wanted };
        let interest = self.interest();
        // Never without a bit that somebody wants: bits that are new first.
        interest.fetch_or(wanted, Ordering::SeqCst);
        interest.fetch_and(wanted | CALL, Ordering::SeqCst);
        let slow = if seats.list.iter().any(|seat| seat.conflates) { SLOW } else { 0 };
        if self.hot.key.swap(self.number | slow, Ordering::SeqCst) & SLOW > slow {
            self.logs().iter().for_each(|log| log.forget_newest());
        }
    }

    pub(super) fn has_seats(&self) -> bool {
        !lock(&self.seats).list.is_empty()
    }

    pub(super) fn count_dropped(&self, events: u64) {
        self.dropped.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    // ---- waiting and waking

    /// Has `seat` woken when there is more than it has seen. Whoever calls this looks once more.
    pub(super) fn waits(self: &Arc<Self>, seat: &Seat, waker: &Waker, seen: u64) {
        seat.waker.register(waker);
        seat.seen.store(seen, Ordering::Relaxed);
        if !seat.waits.swap(true, Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        }
        if !self.immediate.load(Ordering::Relaxed) && !super::watch::attend(self) {
            self.wake_at_once();
        }
        // ORDERING: we say that we wait, fence, and look; who tells something at once writes it, fences, and looks who waits.
        // One of the two sees the other. Frequent events: `watch`.
        fence(Ordering::SeqCst);
    }

    pub(super) fn stops_waiting(&self, seat: &Seat) -> bool {
        let waited = seat.waits.swap(false, Ordering::SeqCst);
        if waited {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        waited
    }

    pub(super) fn anybody_waits(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    fn wake_who_waits(&self) {
        // ORDERING: see `waits`.
        fence(Ordering::SeqCst);
        if self.anybody_waits() {
            self.wake(|_| true);
        }
    }

    /// Wakes those who wait and have not seen everything. Whether there were any.
    pub(super) fn wake_for_news(&self) -> bool {
        if !self.anybody_waits() {
            return false;
        }
        let heads = self.heads();
        self.wake(|seat| seat.seen.load(Ordering::Relaxed) != heads)
    }

    /// The sum of the logs' heads: as long as nothing is told, it stays.
    pub(super) fn heads(&self) -> u64 {
        lock(&self.logs).iter().fold(0, |sum, log| sum.wrapping_add(log.head()))
    }

    fn wake(&self, which: impl Fn(&Seat) -> bool) -> bool {
        let seats = lock(&self.seats);
        let waits = |seat: &&Arc<Seat>| seat.waits.load(Ordering::SeqCst) && which(seat);
        let woken = seats.list.iter().filter(waits).filter(|seat| self.stops_waiting(seat));
        let wakers: Vec<Waker> = woken.filter_map(|seat| seat.waker.take()).collect();
        drop(seats);
        let any = !wakers.is_empty();
        for waker in wakers {
            // Others' code, which must stop neither whoever tells nor the thread that wakes.
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!("a subscriber's waker panicked");
            }
        }
        any
    }

    pub(super) fn wake_at_once(&self) {
        self.immediate.store(true, Ordering::SeqCst);
        self.ask_to_be_called();
    }

    pub(super) fn ask_to_be_called(&self) {
        self.interest().fetch_or(CALL, Ordering::SeqCst);
    }

    pub(super) fn asks_to_be_called(&self) -> bool {
        self.interest().load(Ordering::SeqCst) & CALL != 0
    }

    /// There will be no more events.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        lock(&self.logs).iter().for_each(|log| log.closed.store(true, Ordering::Relaxed));
        self.wake_who_waits();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// The wall clock at a stamp, given the wall clock at another one.
pub(super) fn wall_at(stamp: u64, (now, wall): (u64, DateTime<Utc>)) -> DateTime<Utc> {
    let (ahead, behind) = (stamp.saturating_sub(now), now.saturating_sub(stamp));
    let delta = |nanos| TimeDelta::from_std(Duration::from_nanos(nanos)).unwrap_or_default();
    wall.checked_add_signed(delta(ahead) - delta(behind)).unwrap_or(wall)
}
