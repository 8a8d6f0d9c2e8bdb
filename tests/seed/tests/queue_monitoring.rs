//! Snippet "Queue Monitoring".

use a3s_lane::{EventEmitter, JsonCommand, QueueManagerBuilder};
use seed_snippets::{printed, println};

#[tokio::test]
async fn the_monitor_gives_the_totals_of_the_queue() -> anyhow::Result<()> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100)).with_default_lanes().build().await?;
    // Not started yet, so these wait.
    let mut waiting = Vec::new();
    for lane in ["query", "query", "prompt"] {
        waiting.push(manager.submit(lane, Box::new(JsonCommand::new("echo", serde_json::json!(1)))).await?);
    }

    // ---- snippet
    use a3s_lane::{QueueMonitor, MonitorConfig};
    use std::time::Duration;
    use std::sync::Arc;

    let config = MonitorConfig {
        interval: Duration::from_secs(5),
        pending_warning_threshold: 50,
        active_warning_threshold: 25,
    };

    let monitor = Arc::new(QueueMonitor::with_config(
        manager.queue(),
        config,
    ));

    // Start monitoring (runs in background)
    monitor.clone().start().await;

    // Get current stats
    let stats = monitor.stats().await;
    println!("Pending: {}, Active: {}", stats.total_pending, stats.total_active);
    // ---- end

    assert_eq!(printed(), ["Pending: 3, Active: 0"]);
    assert_eq!(stats.lanes["query"].pending, 2);
    assert_eq!(stats.lanes["prompt"].pending, 1);

    manager.start().await?;
    for rx in waiting {
        assert_eq!(rx.await??, 1);
    }
    let stats = monitor.stats().await;
    assert_eq!((stats.total_pending, stats.total_active), (0, 0));
    monitor.stop();
    Ok(())
}
