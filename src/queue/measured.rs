//! What a queue says to who measures it: the numbers of the present, which are not counted but looked at.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Wake;

use super::command_queue::QueueCore;
use crate::clock::Clock;
use crate::metrics::{LanePresent, Present, Since, Source, Ticks, WorkerReading};

/// Has the queue measured, if it has metrics.
pub(super) fn begin(queue: &Arc<QueueCore>) {
    let Some(metrics) = &queue.context.metrics else { return };
    let source: Weak<dyn Source> = Arc::downgrade(queue) as Weak<dyn Source>;
    let clock = queue.context.executor.clock();
    metrics.add_source(source, clock);
    if matches!(clock, Clock::Virtual(_)) {
        Tick { queue: Arc::downgrade(queue), ticks: metrics.downgrade() }.set();
    }
}

/// Has readings made in virtual time, once per interval: a timer that sets itself again.
struct Tick {
    queue: Weak<QueueCore>,
    ticks: Ticks,
}

impl Tick {
    fn set(self) {
        let Some(queue) = self.queue.upgrade() else { return };
        let Some(metrics) = &queue.context.metrics else { return };
        let shared = queue.context.executor.shared();
        let at = shared.clock.now().plus(metrics.interval());
        shared.set_timer(at, Arc::new(self).into());
    }
}

impl Wake for Tick {
    fn wake(self: Arc<Self>) {
        // A timer's waker is woken once, by who has it alone.
        if let Some(tick) = Arc::into_inner(self)
            && tick.ticks.tick()
        {
            tick.set();
        }
    }
}

impl Source for QueueCore {
    fn read(&self, into: &mut Present) {
        let executor = &self.context.executor;
        let shared = executor.shared();
        let key = std::ptr::from_ref(shared) as usize;
        into.workers.entry(key).or_insert_with(|| {
            let workers = executor.worker_stats().into_iter().map(|stats| WorkerReading {
                busy: stats.busy,
                polls: stats.polls,
                steals: stats.steals,
                parks: stats.parks,
                stuck: stats.stuck,
                ..WorkerReading::default()
            });
            workers.collect()
        });
        into.events_dropped.insert(self.context.events.number(), self.context.events.dropped());
        let lanes = self.lanes.all();
        // Of each lane, since when the attempt runs that began first.
        let mut active: HashMap<u32, u64> = lanes.iter().map(|lane| (lane.core().owner(), u64::MAX)).collect();
        shared.look_at_waiting(|meta| {
            let since = Since::from_word(meta.started.load(Ordering::Relaxed));
            if since.is_known()
                && let Some(first) = active.get_mut(&meta.owner)
            {
                *first = since.stamp().min(*first);
            }
        });
        if let Some(letters) = &self.context.dead_letters {
            into.dead_letters.entry(letters.key()).or_insert_with(|| letters.by_lane());
        }
        for lane in lanes {
            let core = lane.core();
            let status = core.status();
            let present = LanePresent {
                lane: Arc::clone(&core.id),
                priority: core.priority,
                pending: status.pending,
                delayed: core.delayed(),
                active: status.active,
                min_concurrency: status.min,
                max_concurrency: status.max,
                paused: core.is_paused(),
                active_since: active.get(&core.owner()).copied().filter(|since| *since != u64::MAX),
            };
            into.lanes.push(present);
        }
    }
}
