//! Timeouts, nearly all of which are cancelled before they fire.

use std::future::pending;
use std::time::Duration;

use super::tasks::{Job, timed_on_a_worker, with_timers};
use crate::cast::Cast;
use crate::measure::{Contender, Workload};
use crate::runtimes::Runtime;

/// Each task awaits things that are soon there, under timeouts that never fire, except for one in the middle.
#[derive(Clone)]
pub struct Timeouts {
    pub tasks: u64,
    /// One after the other, of each task.
    pub each: u64,
}

const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(1);

impl Workload for Timeouts {
    fn name(&self) -> String {
        "timers/cancelled".to_owned()
    }

    fn what(&self) -> String {
        format!(
            "a timeout of an hour around a yield, which the contender must arm and cancel; {} tasks, {} timeouts in each, one \
             of which is of 1 ms and fires. async-executor has no timers",
            self.tasks, self.each
        )
    }

    fn contenders(&self, cast: &Cast) -> Vec<Contender> {
        with_timers(cast, self)
    }
}

impl Job for Timeouts {
    fn operations(&self) -> u64 {
        self.tasks * self.each
    }

    fn run<R: Runtime>(&self, on: &R) -> Duration {
        let (inner, Self { tasks, each }) = (on.clone(), self.clone());
        timed_on_a_worker(on, async move {
            let spawn = |_| {
                inner.spawn(async move {
                    let mut fired = 0;
                    for i in 0..each {
                        let ended = if i == each / 2 {
                            R::timeout(SOON, pending::<()>()).expect("it has timers").await
                        } else {
                            R::timeout(NEVER, R::yield_now()).expect("it has timers").await
                        };
                        fired += u64::from(ended.is_none());
                    }
                    fired
                })
            };
            let spawned: Vec<_> = (0..tasks).map(spawn).collect();
            let mut fired = 0;
            for task in spawned {
                fired += task.await;
            }
            assert_eq!(fired, tasks);
        })
    }
}
