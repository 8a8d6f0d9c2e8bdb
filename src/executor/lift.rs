//! Lifting: tasks on a run queue that can be taken from a better one.
//!
//! A runnable is unique and stands on one queue. A task that may have to be lifted is parked in its own cell instead, and
//! what stands on the run queues are small tasks that lead to it: whichever is polled first takes it out and runs it, the
//! others find nothing and are done. So a task is lifted in O(1), without being searched for. Only lanes that boost pay for
//! this. `loom-tests/lift.rs` tries to break it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::task::{self, Handle, Making, Runnable, Traits};
use super::worker::Local;

/// Puts a new task on a run queue, from where it can be lifted.
pub(crate) fn schedule_liftable(runnable: Runnable) {
    lift(&Handle::park(runnable));
}

/// Puts a parked task on the run queue of its present priority as well.
pub(crate) fn lift(handle: &Handle) {
    let (shared, priority) = (handle.meta().shared, handle.meta().priority());
    let way = Way(handle.clone());
    let (runnable, way) = task::new(
        shared,
        Making { traits: Traits::new(true, handle.meta().home()), ..Making::plain(priority) },
        |_| way,
    );
    way.detach();
    shared.push_new(priority, runnable);
}

/// One way to a parked task.
struct Way(Handle);

impl Future for Way {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let Some(runnable) = self.0.unpark() {
            let shared = self.0.meta().shared;
            Local::with_current(shared, |local| match local {
                Some(local) => local.run(runnable),
                None => runnable.run(),
            });
        }
        Poll::Ready(())
    }
}

impl Drop for Way {
    /// Dropped with its executor: what it leads to is dropped as well.
    fn drop(&mut self) {
        drop(self.0.unpark());
    }
}
