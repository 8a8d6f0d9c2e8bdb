//! A lane's settings, made ready for use, and how they are changed while it runs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::LaneCore;
use crate::error::{ConfigErrors, Result};
use crate::limit::rate::RateLimiter;
use crate::policy::boost::PriorityBooster;
use crate::policy::retry::RetryPolicy;
use crate::queue::config::LaneConfig;

/// A lane's settings, made ready for use.
pub(in crate::queue) struct Settings {
    pub(in crate::queue) config: LaneConfig,
    pub(in crate::queue) limiter: Option<RateLimiter>,
    pub(in crate::queue) booster: Option<PriorityBooster>,
    /// Commands need the rarely needed part: see `Extra`.
    pub(in crate::queue) uncommon: bool,
}

impl Settings {
    pub(in crate::queue) fn new(config: LaneConfig) -> Self {
        let own = config.rate_limit.as_ref().filter(|limit| !limit.is_unlimited());
        let limiter = match &config.rate_limiter {
            Some(shared) => Some(shared.clone()),
            // What is not usable was refused before.
            None => own.and_then(|limit| RateLimiter::new(limit).ok()),
        };
        let booster = config.priority_boost.enabled.then(|| PriorityBooster::new(config.priority_boost.clone()));
        let uncommon = booster.is_some()
            || !config.retry_policy.is_none()
            || config.queue_timeout.is_some()
            || config.total_timeout.is_some()
            || config.drain_timeout.is_some()
            || config.max_pending_bytes.is_some()
            || config.explain;
        Self { config, limiter, booster, uncommon }
    }

    /// As [`Settings::new`]; equal ones without a state of their own (a limiter, a budget) are kept once. Most lanes are like others, and there may be ten
    /// thousand queues.
    pub(super) fn shared(config: LaneConfig) -> Arc<Self> {
        /// Kinds of lanes that a process is expected to have at most.
        const KINDS: usize = 64;
        static KEPT: Mutex<Vec<Weak<Settings>>> = Mutex::new(Vec::new());
        let settings = Self::new(config);
        if !settings.is_plain() || settings.config.retry_policy != RetryPolicy::none() {
            return Arc::new(settings);
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let equal = kept.iter().filter_map(Weak::upgrade).find(|other| other.config == settings.config);
        equal.unwrap_or_else(|| {
            let settings = Arc::new(settings);
            kept.retain(|other| other.strong_count() > 0);
            if kept.len() < KINDS {
                kept.push(Arc::downgrade(&settings));
            }
            settings
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        let config = &self.config;
        !self.uncommon
            && self.limiter.is_none()
            && config.capacity.is_none()
            && config.default_timeout.is_none()
            && config.pressure_threshold.is_none()
    }
}

impl LaneCore {
    /// Changes the settings, all or nothing.
    pub(in crate::queue) fn update(&self, change: impl FnOnce(&mut LaneConfig)) -> Result<()> {
        // Nothing panics under this lock but what `change` does, before anything has changed.
        let one_at_a_time = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.settings.load_full();
        let mut config = before.config.clone();
        change(&mut config);
        let mut errors = ConfigErrors::default();
        let has_store = self.context().map(|context| context.store.is_some());
        crate::queue::config::check_lane(&self.id, &config, self.priority, has_store, &mut errors);
        let pooled = self.context().is_some_and(|context| context.pool.is_some());
        if pooled && config.min_concurrency != before.config.min_concurrency {
            errors.push(
                format!("lanes[{:?}].min_concurrency", self.id),
                config.min_concurrency,
                "leave it as it is: under with_max_in_flight it is held back for the lane when the queue is built",
            );
        }
        errors.into_result()?;
        let limit_stays =
            config.rate_limit == before.config.rate_limit && config.rate_limiter == before.config.rate_limiter;
        let mut settings = Settings::new(config);
        if limit_stays {
            settings.limiter.clone_from(&before.limiter);
        }
        let (min, max) = (settings.config.min_concurrency, settings.config.max_concurrency);
        let plain = self.context().is_some_and(|context| context.allows_plain(&settings));
        self.settings.store(Arc::new(settings));
        self.plain.store(plain, Ordering::Relaxed);
        self.gate.set_max(max);
        // What follows may wake others.
        drop(one_at_a_time);
        if let Some(context) = self.context() {
            context.executor.shared().floor(self.priority, min > 0);
        }
        if !limit_stays {
            // The timer of the old limit may still come: it pumps once more.
            self.end_throttled();
            self.gate.unthrottle();
        }
        if let Some(store) = self.context().and_then(|context| context.store.as_ref()) {
            // It may stop with the store now, or not any more.
            store.hold_lanes();
        }
        self.room.notify(usize::MAX);
        for key in self.keys.list_all(|| self.per_key()) {
            self.list_key(&key);
        }
        self.pump();
        self.note_settings();
        Ok(())
    }
}
