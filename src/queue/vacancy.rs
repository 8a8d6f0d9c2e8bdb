//! Tells who brings commands from outside that a lane has a permit again: a worker pool claims no more than can start.

use std::sync::atomic::{AtomicBool, Ordering, fence};

use event_listener::{Event, EventListener};

/// Of all lanes of a queue.
#[derive(Debug)]
pub(crate) struct Vacancy {
    /// Somebody listens. Whoever gives a permit back reads it, and nothing more as long as nobody does.
    wanted: AtomicBool,
    given: Event,
}

impl Vacancy {
    pub(super) const fn new() -> Self {
        Self { wanted: AtomicBool::new(false), given: Event::new() }
    }

    /// Ends when a permit comes back from now on: listened before the lanes are looked at, none is missed that matters.
    pub(crate) fn listen(&self) -> EventListener {
        let listener = self.given.listen();
        self.wanted.store(true, Ordering::Relaxed);
        // ORDERING: who gives a permit back does so by a read-modify-write that is followed by a fence, and then looks here. So it
        // sees that somebody listens, or who listens sees the permit. Nothing depends on it but time: who listens also looks by
        // itself, every 10 ms.
        fence(Ordering::SeqCst);
        listener
    }

    /// A permit has come back. The first one of many tells: who listens takes all that there is.
    #[inline]
    pub(super) fn tell(&self) {
        if self.wanted.load(Ordering::Relaxed) {
            self.tell_all();
        }
    }

    /// Apart, so that the way of those that nobody listens to is short.
    #[cold]
    fn tell_all(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.given.notify(usize::MAX);
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use std::time::Duration;

    use event_listener::Listener as _;
    use futures::channel::oneshot;
    use futures_lite::future::block_on;

    use crate::{EventEmitter, Executor, LaneConfig, QueueManagerBuilder};

    #[test]
    fn who_listens_is_told_when_a_permit_comes_back() {
        let executor = Executor::builder().workers(1).pin(false).build().expect("one worker");
        let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor);
        let manager = block_on(builder.with_lane("narrow", LaneConfig::new(0, 1), 2).build()).expect("it can be built");
        block_on(manager.start()).expect("it can be started");
        let lane = manager.lane("narrow").expect("it is there");
        for _ in 0..100 {
            let (finish, finished) = oneshot::channel::<()>();
            let ticket = lane.submit_fn("hold", move || async move { Ok(finished.await.is_ok()) }).expect("it is open");
            let listener = manager.queue().vacancy().listen();
            assert_eq!(lane.free_permits(), 0);
            finish.send(()).expect("it waits");
            assert!(listener.wait_timeout(Duration::from_secs(60)).is_some(), "nobody told that it has a permit");
            assert_eq!(lane.free_permits(), 1);
            assert!(block_on(ticket).expect("it settles").expect("it succeeds"));
        }
    }
}
