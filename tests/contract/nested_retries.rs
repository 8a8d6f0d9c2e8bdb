//! Nested submission where the awaited command comes into its line more than once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelane::{
    CancelToken, Lane, LaneConfig, LaneError, Result, RetryPolicy, Stop, SubmitOptions, Ticket, TypedCommand,
};
use futures::channel::oneshot;

use crate::support::{HANG, block_on, eventually, manager, on_workers};

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

/// Of an attempt: its token, a command that it has submitted, and what lets that go on.
type Left = (CancelToken, Ticket<()>, oneshot::Sender<()>);

/// Submits a command that waits to be let go, keeps its token, and fails.
struct Leaves {
    lane: Lane,
    left: Arc<Mutex<Option<Left>>>,
}

impl TypedCommand for Leaves {
    type Output = ();

    async fn execute(&self) -> Result<()> {
        let (go, goes) = oneshot::channel();
        let child = self.lane.submit_fn("child", || async { Ok(goes.await.expect("it is let go")) })?;
        let token = CancelToken::current().expect("within a command");
        *self.left.lock().unwrap() = Some((token, child, go));
        Err(LaneError::CommandError("not yet".into()))
    }

    fn command_type(&self) -> &str {
        "leaves"
    }
}

#[test]
fn what_an_attempt_that_returned_has_submitted_goes_on_although_its_command_ends_in_the_backoff() {
    on_workers(|executor| {
        let policy = RetryPolicy::fixed(5, Duration::from_secs(3600));
        let config = LaneConfig::new(1, 2).with_retry_policy(policy);
        let parents = manager(executor, &[("parents", config, 3)]);
        let children = manager(executor, &[("children", LaneConfig::new(1, 2), 3)]);
        let left = Arc::new(Mutex::new(None));
        let parent = Leaves { lane: children.lane("children").unwrap(), left: Arc::clone(&left) };
        let parent = parents.submit_typed("parents", parent).unwrap();
        eventually("the first attempt", || left.lock().unwrap().is_some());
        // It does not end within that: it is in its backoff, or about to be.
        let report = block_on(parents.queue().stop(Stop::drain(Duration::from_millis(20)).then_cancel(HANG)));
        assert_eq!(report.cancelled, 1);
        let ended = block_on(parent).unwrap();
        assert!(matches!(ended, Err(LaneError::Cancelled { started: true })), "{ended:?}");
        let (token, child, go) = left.lock().unwrap().take().expect("it has run once");
        assert!(!token.is_cancelled());
        go.send(()).expect("nobody has given it up");
        block_on(child).unwrap().unwrap();
    });
}
