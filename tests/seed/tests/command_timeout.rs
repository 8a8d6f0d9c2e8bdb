//! Snippet "Command Timeout".

use a3s_lane::{Command, LaneError, QueueManager, Result};
use async_trait::async_trait;
use std::time::{Duration, Instant};

/// Sleeps, by tokio's clock.
struct Slow(Duration);

#[async_trait]
impl Command for Slow {
    async fn execute(&self) -> Result<serde_json::Value> {
        tokio::time::sleep(self.0).await;
        Ok(serde_json::json!("done"))
    }

    fn command_type(&self) -> &str {
        "slow"
    }
}

async fn run(manager: &QueueManager, command: Slow) -> anyhow::Result<Result<serde_json::Value>> {
    manager.start().await?;
    Ok(manager.submit("api", Box::new(command)).await?.await?)
}

#[tokio::test]
async fn a_command_within_its_time_is_not_disturbed() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{LaneConfig, QueueManagerBuilder, EventEmitter};
    use std::time::Duration;

    let emitter = EventEmitter::new(100);

    // Configure lane with 30-second timeout
    let config = LaneConfig::new(1, 5)
        .with_timeout(Duration::from_secs(30));

    let manager = QueueManagerBuilder::new(emitter)
        .with_lane("api", config, 0)
        .build()
        .await?;
    // ---- end

    assert_eq!(run(&manager, Slow(Duration::from_millis(20))).await??, "done");
    Ok(())
}

#[tokio::test]
async fn a_command_that_takes_too_long_ends_with_the_timeout_error() -> anyhow::Result<()> {
    use a3s_lane::{LaneConfig, QueueManagerBuilder, EventEmitter};

    // As above, but nobody waits 30 seconds for a test.
    let limit = Duration::from_millis(200);
    let config = LaneConfig::new(1, 5)
        .with_timeout(limit);
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("api", config, 0)
        .build()
        .await?;

    let begun = Instant::now();
    let result = run(&manager, Slow(Duration::from_secs(60))).await?;
    assert!(matches!(result, Err(LaneError::Timeout(after)) if after == limit), "{result:?}");
    assert!(begun.elapsed() >= limit);

    // Its slot is free again.
    assert_eq!(run(&manager, Slow(Duration::ZERO)).await??, "done");
    let stats = manager.stats().await?;
    assert_eq!((stats.total_pending, stats.total_active), (0, 0));
    Ok(())
}
