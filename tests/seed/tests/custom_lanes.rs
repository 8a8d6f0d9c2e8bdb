//! Snippet "Custom Lanes".

use a3s_lane::JsonCommand;

#[tokio::test]
async fn custom_lanes_have_the_limits_they_were_given_and_run_commands() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{QueueManagerBuilder, EventEmitter, LaneConfig};

    let emitter = EventEmitter::new(100);
    let manager = QueueManagerBuilder::new(emitter)
        .with_lane("high-priority", LaneConfig::new(1, 4), 0)
        .with_lane("normal", LaneConfig::new(1, 8), 1)
        .with_lane("background", LaneConfig::new(1, 2), 2)
        .build()
        .await?;
    // ---- end

    manager.start().await?;
    let stats = manager.stats().await?;
    assert_eq!(stats.lanes.len(), 3);
    for (id, max, priority) in [("high-priority", 4, 0), ("normal", 8, 1), ("background", 2, 2)] {
        assert_eq!((stats.lanes[id].min, stats.lanes[id].max), (1, max), "{id}");
        assert_eq!(manager.lane(id).expect(id).priority().await, priority, "{id}");
        let command = JsonCommand::new("echo", serde_json::json!({ "lane": id }));
        let rx = manager.submit(id, Box::new(command)).await?;
        assert_eq!(rx.await??, serde_json::json!({ "lane": id }));
    }
    Ok(())
}
