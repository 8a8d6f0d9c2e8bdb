//! Snippets "Queue Depth Alerts" and "Latency Alerts".

use a3s_lane::AlertLevel;
use seed_snippets::{printed, println};
use std::sync::Mutex;
use std::time::Duration;

#[tokio::test]
async fn depths_that_reach_a_threshold_are_told() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{QueueManagerBuilder, EventEmitter, AlertManager, LaneConfig};
    use std::sync::Arc;

    let emitter = EventEmitter::new(100);

    // Create alert manager with queue depth thresholds
    let alerts = Arc::new(AlertManager::with_queue_depth_alerts(
        100,  // Warning threshold
        200,  // Critical threshold
    ));

    // Add alert callback
    alerts.add_callback(|alert| {
        println!("[{}] {}: {}",
            match alert.level {
                AlertLevel::Warning => "WARN",
                AlertLevel::Critical => "CRIT",
                _ => "INFO",
            },
            alert.lane_id,
            alert.message
        );
    }).await;

    // Build queue manager with alerts
    let manager = QueueManagerBuilder::new(emitter)
        .with_alerts(alerts.clone())
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .build()
        .await?;

    // Check queue depth (triggers alerts if thresholds exceeded)
    alerts.check_queue_depth("api", 150).await; // Triggers warning
    alerts.check_queue_depth("api", 250).await; // Triggers critical
    // ---- end

    let expected = [
        "[WARN] api: lane api: queue depth 150 (warning from 100)",
        "[CRIT] api: lane api: queue depth 250 (critical from 200)",
    ];
    assert_eq!(printed(), expected);
    assert!(manager.alerts().is_some_and(|own| Arc::ptr_eq(own, &alerts)));
    Ok(())
}

#[tokio::test]
async fn latencies_that_reach_a_threshold_are_told() {
    // ---- snippet
    use a3s_lane::{AlertManager, LatencyAlertConfig};

    // Create alert manager with latency thresholds
    let alerts = AlertManager::with_latency_alerts(
        100.0,  // Warning threshold (ms)
        500.0,  // Critical threshold (ms)
    );
    // ---- end

    assert_eq!(alerts.latency_config().await, LatencyAlertConfig::new(100.0, 500.0));
    let levels = std::sync::Arc::new(Mutex::new(Vec::new()));
    let heard = levels.clone();
    alerts.add_callback(move |alert| heard.lock().unwrap().push(alert.level)).await;

    // ---- snippet
    // Check latency after command execution
    alerts.check_latency("api", 250.0).await; // Triggers warning
    alerts.check_latency("api", 600.0).await; // Triggers critical
    // ---- end

    assert_eq!(*levels.lock().unwrap(), [AlertLevel::Warning, AlertLevel::Critical]);
}

/// As the tests of a3s-lane do.
#[tokio::test]
async fn a_callback_may_use_the_runtime_that_it_was_added_in() {
    let alerts = a3s_lane::AlertManager::with_queue_depth_alerts(100, 200);
    let (told, mut hears) = tokio::sync::mpsc::channel(1);
    alerts
        .add_callback(move |alert| {
            let told = told.clone();
            tokio::spawn(async move { told.send(alert.level).await });
        })
        .await;
    alerts.check_queue_depth("query", 150).await;
    let level = tokio::time::timeout(Duration::from_secs(60), hears.recv()).await;
    assert_eq!(level, Ok(Some(AlertLevel::Warning)));
}
