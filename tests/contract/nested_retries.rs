//! Nested submission where the awaited command comes into its line more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{LaneConfig, LaneError, Result, RetryPolicy, SubmitOptions, TypedCommand};

use crate::support::{block_on, manager, on_workers};

/// Fails as often as it is told to.
struct Flaky(Arc<AtomicUsize>);

impl TypedCommand for Flaky {
    type Output = &'static str;

    async fn execute(&self) -> Result<&'static str> {
        let fails = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails { Err(LaneError::CommandError("not yet".into())) } else { Ok("done") }
    }

    fn command_type(&self) -> &str {
        "flaky"
    }
}

#[test]
fn an_awaited_command_that_is_retried_or_delayed_gets_its_turn_at_max_one() {
    on_workers(|executor| {
        let policy = RetryPolicy::fixed(5, Duration::from_millis(1));
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1).with_retry_policy(policy), 3)]);
        let lane = manager.lane("one").unwrap();
        for delay in [None, Some(Duration::from_millis(1))] {
            let child_lane = lane.clone();
            let parent = lane.submit_fn("parent", move || async move {
                let options = delay.map_or_else(SubmitOptions::new, |delay| SubmitOptions::new().delay(delay));
                let child = child_lane.submit_typed_with(Flaky(Arc::new(AtomicUsize::new(3))), options)?;
                child.await.map_err(|error| LaneError::Other(error.to_string()))?
            });
            assert_eq!(block_on(parent.unwrap()).unwrap().unwrap(), "done");
        }
        let stats = block_on(manager.stats()).unwrap();
        assert_eq!((stats.total_pending, stats.total_active), (0, 0));
    });
}

/// The ticket is from outside: the command that awaits it did not submit it.
#[test]
fn a_command_from_outside_that_is_retried_gets_its_turn_when_it_is_awaited_at_max_one() {
    on_workers(|executor| {
        let policy = RetryPolicy::fixed(5, Duration::from_millis(1));
        let manager = manager(executor, &[("one", LaneConfig::new(1, 1).with_retry_policy(policy), 3)]);
        let lane = manager.lane("one").unwrap();
        for _ in 0..50 {
            let child = lane.submit_typed(Flaky(Arc::new(AtomicUsize::new(2)))).unwrap();
            let parent = lane.submit_fn("parent", move || async move {
                child.await.map_err(|error| LaneError::Other(error.to_string()))?
            });
            assert_eq!(block_on(parent.unwrap()).unwrap().unwrap(), "done");
        }
    });
}
