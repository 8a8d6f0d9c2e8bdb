//! Snippet "Retry Policies": a command of the lane is tried again until it succeeds, as often as the policy allows.

#![allow(unused_variables)] // the snippet gives two policies one name

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use a3s_lane::Command;
use async_trait::async_trait;

struct Flaky {
    failures: u32,
    attempts: Arc<AtomicU32>,
}

#[async_trait]
impl Command for Flaky {
    async fn execute(&self) -> a3s_lane::Result<serde_json::Value> {
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        if attempt <= self.failures {
            return Err(a3s_lane::LaneError::CommandError(format!("attempt {attempt}")));
        }
        Ok(serde_json::json!(attempt))
    }

    fn command_type(&self) -> &str {
        "flaky"
    }
}

#[tokio::test]
async fn a_lane_takes_the_retry_policy_of_the_snippet() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{LaneConfig, RetryPolicy, QueueManagerBuilder, EventEmitter};
    use std::time::Duration;

    let emitter = EventEmitter::new(100);

    // Exponential backoff: 3 retries with 100ms initial delay, 2x multiplier
    let retry_policy = RetryPolicy::exponential(3);

    // Or fixed delay: 5 retries with 1 second delay
    let retry_policy = RetryPolicy::fixed(5, Duration::from_secs(1));

    let config = LaneConfig::new(1, 5)
        .with_retry_policy(retry_policy);

    let manager = QueueManagerBuilder::new(emitter)
        .with_lane("external-api", config, 0)
        .build()
        .await?;
    // ---- end

    let policy = manager.lane("external-api").unwrap().config().retry_policy;
    assert_eq!((policy.max_retries, policy.initial_delay), (5, Duration::from_secs(1)));
    Ok(())
}

#[tokio::test]
async fn a_command_that_fails_is_tried_again() -> anyhow::Result<()> {
    use a3s_lane::{LaneConfig, RetryPolicy, QueueManagerBuilder, EventEmitter};

    let config = LaneConfig::new(1, 5)
        .with_retry_policy(RetryPolicy::exponential(3));
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("external-api", config, 0)
        .build()
        .await?;
    manager.start().await?;
    for (failures, succeeds) in [(2, true), (4, false)] {
        let attempts = Arc::new(AtomicU32::new(0));
        let command = Flaky { failures, attempts: Arc::clone(&attempts) };
        let result = manager.submit("external-api", Box::new(command)).await?.await?;
        assert_eq!(result.is_ok(), succeeds, "{result:?}");
        assert_eq!(attempts.load(Ordering::SeqCst), if succeeds { failures + 1 } else { 4 });
    }
    Ok(())
}
