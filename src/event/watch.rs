//! Wakes those who wait for frequent events: one thread for the process, which sleeps while nothing happens.
//!
//! A worker that tells a frequent event wakes nobody: it writes its log and goes on. The thread looks once per [`LOOK`] whether
//! those who wait have seen everything. When there was nothing for [`QUIET`] looks, it asks to be called, by a bit in each
//! emitter's word of interest, and parks, so that an idle process sleeps. Who tells something looks at that bit afterwards, and
//! calls.
//!
//! **No wake-up is lost**, though the teller has no fence between its record (1) and its look at the bit (2). The thread sets the
//! bit (3), looks for [`GRACE`] times more (4), with a millisecond before each, and only then parks. If (2) misses (3), then
//! (2) came before (3) was to be seen, or at the same time; and (1) is before (2) in the teller's program, thus at most as far
//! behind (2) as its processor's store buffer takes, which is less than a microsecond, and nothing if it was interrupted. So the
//! first (4), a millisecond after (3), sees (1). What remains is a processor that keeps a store to itself for three
//! milliseconds, while it runs: the memory model allows that, no processor does it.
//!
//! Who begins to wait while the thread is parked calls it, unless the emitter has the bit.
//!
//! The thread ends when nobody is subscribed to anything, and is started again for the next one who waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::hub::Hub;

/// How often the thread looks.
const LOOK: Duration = Duration::from_millis(1);
/// Looks in vain before it asks to be called.
const QUIET: u32 = 100;
/// Looks more before it parks.
const GRACE: u32 = 3;

struct State {
    hubs: Vec<Weak<Hub>>,
    running: bool,
    parked: bool,
    called: bool,
}

static STATE: Mutex<State> = Mutex::new(State { hubs: Vec::new(), running: false, parked: false, called: false });
static CALLED: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees to it that who waits there is woken. False if there can be no thread that does.
pub(super) fn attend(hub: &Arc<Hub>) -> bool {
    let mut state = state();
    if !hub.attended.swap(true, Ordering::SeqCst) {
        state.hubs.push(Arc::downgrade(hub));
    }
    if !state.running {
        let thread = std::thread::Builder::new().name("corelane-events".to_owned());
        state.running = thread.spawn(run).is_ok();
        return state.running;
    }
    if state.parked && !hub.asks_to_be_called() {
        state.called = true;
        CALLED.notify_one();
    }
    true
}

/// Something has been told.
pub(super) fn call() {
    let mut state = state();
    state.called = true;
    CALLED.notify_one();
}

fn run() {
    let mut quiet = 0;
    loop {
        let hubs = hubs();
        // All of them, not up to the first that has some.
        let news = hubs.iter().filter(|hub| hub.wake_for_news()).count() > 0;
        quiet = if news { 0 } else { quiet + 1 };
        if quiet >= QUIET {
            let asking = hubs.iter().filter(|hub| hub.anybody_waits() && !hub.asks_to_be_called());
            // The grace begins again for those who ask only now.
            if asking.map(|hub| hub.ask_to_be_called()).count() > 0 {
                quiet = QUIET;
            }
        }
        let mut state = state();
        if quiet >= QUIET && state.hubs.is_empty() {
            state.running = false;
            return;
        }
        // Who begins to wait before this is parked does not call: it is seen here, or has come with a hub more.
        let all_ask = || hubs.iter().all(|hub| !hub.anybody_waits() || hub.asks_to_be_called());
        let parks = !state.called && quiet > QUIET + GRACE && state.hubs.len() == hubs.len() && all_ask();
        state.parked = parks;
        drop(state);
        // The thread keeps nothing while it sleeps, and drops nothing under the lock.
        drop(hubs);
        quiet = if sleep(parks) { 0 } else { quiet };
    }
}

/// Until the next look, or until it is called. Whether it was.
fn sleep(parks: bool) -> bool {
    let mut state = state();
    if parks {
        while !state.called {
            state = CALLED.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
    } else if !state.called {
        state = CALLED.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
    std::mem::take(&mut state.called)
}

/// Those that somebody is subscribed to.
fn hubs() -> Vec<Arc<Hub>> {
    let (mut kept, mut unattended) = (Vec::new(), Vec::new());
    let mut state = state();
    state.hubs.retain(|hub| match hub.upgrade() {
        Some(hub) if hub.has_seats() => {
            kept.push(hub);
            true
        }
        Some(hub) => {
            hub.attended.store(false, Ordering::SeqCst);
            unattended.push(hub);
            false
        }
        None => false,
    });
    drop(state);
    kept
}
