//! Snippets "Rate Limiting" and "Priority Boosting": the settings are those that were asked for, and a lane takes them.

#![allow(unused_variables)] // each snippet gives two settings one name

use a3s_lane::{EventEmitter, QueueManagerBuilder};

#[tokio::test]
async fn a_lane_takes_the_rate_limits_of_the_snippet() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{LaneConfig, RateLimitConfig};

    // Limit to 100 commands per second
    let rate_limit = RateLimitConfig::per_second(100);
    let config = LaneConfig::new(1, 10)
        .with_rate_limit(rate_limit);

    // Limit to 1000 commands per minute
    let rate_limit = RateLimitConfig::per_minute(1000);
    let config = LaneConfig::new(1, 10)
        .with_rate_limit(rate_limit);
    // ---- end

    let builder = QueueManagerBuilder::new(EventEmitter::new(10));
    let manager = builder.with_lane("minute", config, 2).build().await?;
    let limit = |lane: &str| manager.lane(lane).unwrap().config().rate_limit.unwrap();
    assert_eq!(limit("minute").max_commands, 1000);
    Ok(())
}

#[tokio::test]
async fn a_lane_takes_the_priority_boosts_of_the_snippet() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{LaneConfig, PriorityBoostConfig};
    use std::time::Duration;

    // Standard boost: priority increases as deadline approaches
    let boost = PriorityBoostConfig::standard(Duration::from_secs(300));
    let config = LaneConfig::new(1, 10)
        .with_priority_boost(boost);

    // Aggressive boost: faster priority escalation
    let boost = PriorityBoostConfig::aggressive(Duration::from_secs(60));
    let config = LaneConfig::new(1, 10)
        .with_priority_boost(boost);
    // ---- end

    let builder = QueueManagerBuilder::new(EventEmitter::new(10));
    let manager = builder.with_lane("aggressive", config, 9).build().await?;
    let boost = |lane: &str| manager.lane(lane).unwrap().config().priority_boost;
    assert_eq!(boost("aggressive").boost_intervals.len(), 4);
    Ok(())
}
