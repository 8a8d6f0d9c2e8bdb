//! What the children's commands do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corelane::{CommandContext, DurableCommand, LaneError, Result, sleep};
use serde::{Deserialize, Serialize};

use crate::report::{Event, report};

/// Which process this is, of those with its store.
pub(crate) static PROCESS: AtomicU64 = AtomicU64::new(0);

#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) act: Act,
    pub(crate) micros: u64,
}

/// How it ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Act {
    Succeed,
    /// The first attempts fail.
    FailFirst(u32),
    /// It fails in processes before this one.
    FailBefore(u64),
    /// One attempt in four fails, whichever.
    FailSometimes,
    Fail,
    Panic,
}

impl DurableCommand for Job {
    const TYPE: &'static str = "job";
    type Output = String;

    async fn execute(&self) -> Result<String> {
        let context = CommandContext::current().expect("a command runs in its context");
        let process = PROCESS.load(Ordering::Relaxed);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let token = format!("{process}.{count}");
        let mut run = Run { job: self, id: context.id.to_string(), ended: false };
        let (name, id) = (self.name.clone(), run.id.clone());
        report(&Event::Started { name, id, attempt: context.attempt, token: token.clone() });
        if self.micros > 0 {
            sleep(Duration::from_micros(self.micros)).await;
        }
        let good = match self.act {
            Act::Succeed => true,
            Act::FailFirst(attempts) => context.attempt > attempts,
            Act::FailBefore(other) => process >= other,
            Act::FailSometimes => count % 4 != process % 4,
            Act::Fail | Act::Panic => false,
        };
        run.end(good);
        assert!(!matches!(self.act, Act::Panic), "wanted");
        good.then_some(token).ok_or_else(|| LaneError::CommandError("wanted".into()))
    }
}

/// An attempt, which says how it ends.
struct Run<'a> {
    job: &'a Job,
    id: String,
    ended: bool,
}

impl Run<'_> {
    fn end(&mut self, good: bool) {
        self.ended = true;
        report(&Event::Ended { name: self.job.name.clone(), id: self.id.clone(), good });
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if !self.ended {
            report(&Event::Left { name: self.job.name.clone(), id: self.id.clone() });
        }
    }
}
