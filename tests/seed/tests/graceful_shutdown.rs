//! Snippet "Graceful Shutdown".

use a3s_lane::{Command, EventEmitter, LaneError, QueueManagerBuilder, Result};
use async_trait::async_trait;
use seed_snippets::{printed, println};
use std::sync::atomic::{AtomicUsize, Ordering};

static DONE: AtomicUsize = AtomicUsize::new(0);

struct Work;

#[async_trait]
impl Command for Work {
    async fn execute(&self) -> Result<serde_json::Value> {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Ok(serde_json::json!(DONE.fetch_add(1, Ordering::SeqCst)))
    }

    fn command_type(&self) -> &str {
        "work"
    }
}

#[tokio::test]
#[allow(unused_imports)] // The snippet names `QueueManager` and does not use it.
async fn drain_waits_for_every_accepted_command_and_shutdown_refuses_new_ones() -> anyhow::Result<()> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100)).with_default_lanes().build().await?;
    manager.start().await?;
    let mut accepted = Vec::new();
    for _ in 0..8 {
        // Two at a time: most of them wait when the shutdown begins.
        accepted.push(manager.submit("prompt", Box::new(Work)).await?);
    }

    // ---- snippet
    use a3s_lane::QueueManager;
    use std::time::Duration;

    // Initiate shutdown (stop accepting new commands)
    manager.shutdown().await;

    // Wait for pending commands to complete (with 30s timeout)
    manager.drain(Duration::from_secs(30)).await?;

    println!("All commands completed, safe to exit");
    // ---- end

    assert_eq!(printed(), ["All commands completed, safe to exit"]);
    assert_eq!(DONE.load(Ordering::SeqCst), 8);
    assert!(manager.is_shutting_down());
    assert!(matches!(manager.submit("prompt", Box::new(Work)).await, Err(LaneError::ShutdownInProgress)));
    for rx in accepted {
        rx.await??;
    }
    Ok(())
}
