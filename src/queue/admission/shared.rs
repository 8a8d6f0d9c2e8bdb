//! The limit that the lanes of a queue share: how it is divided, and who is told when some of it comes back.

use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;

use super::LaneCore;
use crate::error::ConfigErrors;
use crate::limit::pool::{POOL_LANES, Pool};
use crate::queue::lane::Lane;

/// The limit that the lanes of a queue share.
pub(in crate::queue) struct SharedPool {
    limit: usize,
    /// Set when the limit is divided.
    pool: OnceLock<Arc<Pool>>,
    /// By their place: the best first.
    lanes: ArcSwap<Vec<Weak<LaneCore>>>,
}

impl SharedPool {
    pub(in crate::queue) fn new(limit: usize) -> Self {
        Self { limit, pool: OnceLock::new(), lanes: ArcSwap::default() }
    }

    /// Divides the limit: each lane has its minimum to itself, and the rest is for all, the best first.
    pub(in crate::queue) fn divide(&self, lanes: &[Lane], errors: &mut ConfigErrors) {
        let reserved: usize = lanes.iter().map(|lane| lane.core().settings.load().config.min_concurrency).sum();
        if reserved > self.limit {
            let hint = format!("use at least {reserved}, which is what the lanes' min_concurrency adds up to");
            errors.push("max_in_flight", self.limit, hint);
        }
        if lanes.len() > POOL_LANES {
            errors.push("max_in_flight", lanes.len(), format!("at most {POOL_LANES} lanes can share a limit"));
        }
        if errors.problems().is_empty() {
            let mut cores: Vec<_> = lanes.iter().map(|lane| Arc::clone(lane.core())).collect();
            cores.sort_by_key(|core| core.priority);
            let pool = self.pool.get_or_init(|| Arc::new(Pool::new(self.limit - reserved)));
            for (place, core) in (0u32..).zip(&cores) {
                core.gate.join(Arc::clone(pool), place, core.settings.load().config.min_concurrency);
            }
            self.lanes.store(Arc::new(cores.iter().map(Arc::downgrade).collect()));
        }
    }

    /// Pumps the lanes that want what was put back.
    pub(super) fn pump(&self) {
        while let Some(lane) = self.pool.get().and_then(|pool| pool.next()) {
            if let Some(lane) = self.lanes.load().get(lane as usize).and_then(Weak::upgrade) {
                lane.pump_own();
            }
        }
    }
}
