//! Models of the protocols without locks: loom runs each under every interleaving, and every stale value that the memory
//! model allows, up to a bound on preemptions. One file per protocol.
//!
//! ```text
//! RUSTFLAGS="--cfg corelane_loom" cargo test --release --lib loom_tests
//! ```
//!
//! is the quick run; `LOOM_MAX_PREEMPTIONS=3` before it makes the deep one. The types under test are those that ship. A
//! model whose promise holds however the protocol is mutilated proves nothing, so each has mutants: the same model with
//! one step left out, of which loom must find the failing run.
//!
//! What loom leaves out: `SeqCst` accesses count as `AcqRel` (fences do count); a weak compare-exchange never fails for
//! nothing; a fence takes effect together with the access before it; reads see at most the seven newest values. Reading
//! a word with a read-modify-write is only sound if it is written with nothing else.
//!
//! Words outside the protocol under test (who runs, what ended) are std atomics where they only help a model to end:
//! loom does not see those, and so explores no interleavings on their account.

mod cell;
mod gate;
mod keys;
mod life;
mod lift;
mod nested;
mod park;
mod pool;
mod rate;
mod ready;
mod ring;
mod shown;
mod shutdown;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Runs a model under all interleavings of at most `LOOM_MAX_PREEMPTIONS` preemptions (2 unless set).
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = loom.preemption_bound.or(Some(2));
    loom.check(model);
}

/// Demands that loom finds a run of a mutant that fails with `expected`.
fn refute(expected: &str, mutant: impl Fn() + Send + Sync + 'static) {
    let found = quietly(|| catch_unwind(AssertUnwindSafe(|| check(mutant))));
    let Err(payload) = found else { panic!("no run of the mutant fails: the model does not see the step left out") };
    let message = crate::executor::panic_message(payload.as_ref());
    assert!(message.contains(expected), "the mutant fails, but not with {expected:?}: {message}");
}

/// Keeps this thread's panics, which are hoped for, out of the output. Loom runs a model on the thread that asked for it.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let value = f();
    QUIET.set(false);
    value
}
