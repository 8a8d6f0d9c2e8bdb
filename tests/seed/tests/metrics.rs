//! Snippets "Metrics Collection" and "Custom Metrics Backend", and what the tables and the published source say of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_lane::{
    metric_names, EventEmitter, HistogramPercentiles, JsonCommand, LaneConfig, LocalMetrics, MetricsBackend,
    QueueManagerBuilder, QueueMetrics,
};
use seed_snippets::{printed, println};

#[tokio::test]
async fn what_is_recorded_by_hand_is_in_the_snapshot() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{QueueManagerBuilder, EventEmitter, QueueMetrics, LaneConfig};

    let emitter = EventEmitter::new(100);

    // Create local metrics collector
    let metrics = QueueMetrics::local();

    // Build queue manager with metrics
    let manager = QueueManagerBuilder::new(emitter)
        .with_metrics(metrics.clone())
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .build()
        .await?;

    // Record metrics manually (or integrate into command execution)
    metrics.record_submit("api").await;
    metrics.record_complete("api", 150.0).await; // 150ms latency

    // Get metrics snapshot
    let snapshot = metrics.snapshot().await;
    println!("Commands submitted: {:?}", snapshot.counters.get("lane.commands.submitted"));

    // Get latency histogram stats
    if let Some(stats) = snapshot.histograms.get("lane.command.latency_ms") {
        println!("Latency p50: {}ms, p99: {}ms", stats.percentiles.p50, stats.percentiles.p99);
    }
    // ---- end

    assert_eq!(printed(), ["Commands submitted: Some(1)", "Latency p50: 150ms, p99: 150ms"]);
    assert!(manager.metrics().is_some());
    Ok(())
}

/// What the backend below was told.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[tokio::test]
async fn a_custom_backend_is_told_of_what_the_queue_does() -> anyhow::Result<()> {
    macro_rules! told {
        ($($arg:tt)*) => { TOLD.lock().unwrap().push(format!($($arg)*)) };
    }

    // ---- snippet
    use a3s_lane::{MetricsBackend, HistogramStats, MetricsSnapshot};
    use async_trait::async_trait;

    struct PrometheusMetrics {
        // Your Prometheus client
    }

    #[async_trait]
    impl MetricsBackend for PrometheusMetrics {
        async fn increment_counter(&self, name: &str, value: u64) {
            // Push to Prometheus
            told!("{name} += {value}"); // not in the snippet
        }

        async fn set_gauge(&self, name: &str, value: f64) {
            // Push to Prometheus
            told!("{name} = {value}"); // not in the snippet
        }

        async fn record_histogram(&self, name: &str, value: f64) {
            // Push to Prometheus
            told!("{name} has {}", value >= 0.0); // not in the snippet
        }

        // Implement other methods...
        // ---- end
        async fn get_counter(&self, _: &str) -> Option<u64> {
            None
        }
        async fn get_gauge(&self, _: &str) -> Option<f64> {
            None
        }
        async fn get_histogram_stats(&self, _: &str) -> Option<HistogramStats> {
            None
        }
        async fn reset(&self) {}
        async fn snapshot(&self) -> MetricsSnapshot {
            MetricsSnapshot::default()
        }
    }

    let metrics = QueueMetrics::new(Arc::new(PrometheusMetrics {}));
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_metrics(metrics.clone())
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .build()
        .await?;
    manager.start().await?;
    for _ in 0..3 {
        manager.submit("api", Box::new(JsonCommand::new("echo", serde_json::json!(1)))).await?.await??;
    }
    manager.drain(Duration::from_secs(10)).await?;
    // Pushes what has come up to now.
    metrics.snapshot().await;

    let told = TOLD.lock().unwrap().clone();
    let sum = |name: &str| -> u64 {
        let increments = told.iter().filter_map(|told| told.strip_prefix(name)?.strip_prefix(" += "));
        increments.map(|increment| increment.parse::<u64>().unwrap()).sum()
    };
    for name in ["lane.commands.submitted", "lane.commands.completed"] {
        assert_eq!((sum(name), sum(&format!("{name}.api"))), (3, 3), "{name}: {told:?}");
    }
    for name in ["lane.command.latency_ms.api", "lane.command.wait_time_ms.api"] {
        assert_eq!(told.iter().filter(|told| **told == format!("{name} has true")).count(), 3, "{name}: {told:?}");
    }
    assert!(told.iter().any(|told| told == "lane.queue.depth.api = 0"), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn the_methods_of_the_table_record_under_the_names_of_the_published_source() {
    let metrics = QueueMetrics::local();
    metrics.record_submit("api").await;
    metrics.record_complete("api", 150.0).await;
    metrics.record_failure("api").await;
    metrics.record_timeout("api").await;
    metrics.record_retry("api").await;
    metrics.record_dead_letter("api").await;
    metrics.set_queue_depth("api", 7).await;
    metrics.set_active_commands("api", 3).await;
    metrics.record_wait_time("api", 12.5).await;

    let snapshot = metrics.clone().snapshot().await;
    let counters = [
        (metric_names::COMMANDS_SUBMITTED, "lane.commands.submitted"),
        (metric_names::COMMANDS_COMPLETED, "lane.commands.completed"),
        (metric_names::COMMANDS_FAILED, "lane.commands.failed"),
        (metric_names::COMMANDS_TIMEOUT, "lane.commands.timeout"),
        (metric_names::COMMANDS_RETRIED, "lane.commands.retried"),
        (metric_names::COMMANDS_DEAD_LETTERED, "lane.commands.dead_lettered"),
    ];
    assert_eq!(snapshot.counters.len(), 2 * counters.len());
    for (constant, name) in counters {
        assert_eq!(constant, name);
        assert_eq!((snapshot.counters[name], snapshot.counters[&format!("{name}.api")]), (1, 1), "{name}");
    }
    // As in the published source, these are set for the lane only.
    assert_eq!(snapshot.gauges.len(), 2);
    assert_eq!(snapshot.gauges[&format!("{}.api", metric_names::QUEUE_DEPTH)], 7.0);
    assert_eq!(snapshot.gauges[&format!("{}.api", metric_names::QUEUE_ACTIVE)], 3.0);
    for (name, value) in [(metric_names::COMMAND_LATENCY, 150.0), (metric_names::COMMAND_WAIT_TIME, 12.5)] {
        for name in [name.to_owned(), format!("{name}.api")] {
            let stats = &snapshot.histograms[&name];
            assert_eq!((stats.count, stats.sum, stats.mean), (1, value, value), "{name}");
            assert_eq!((stats.min, stats.max), (value, value), "{name}");
            let all = HistogramPercentiles { p50: value, p90: value, p95: value, p99: value };
            assert_eq!(stats.percentiles, all, "{name}");
        }
    }
    assert_eq!(metric_names::COMMAND_LATENCY, "lane.command.latency_ms");
    assert_eq!(metric_names::COMMAND_WAIT_TIME, "lane.command.wait_time_ms");

    metrics.reset().await;
    let snapshot = metrics.snapshot().await;
    assert!(snapshot.counters.is_empty() && snapshot.gauges.is_empty() && snapshot.histograms.is_empty());
}

#[tokio::test]
async fn a_backend_can_be_asked_for_single_metrics() {
    let local = Arc::new(LocalMetrics::new());
    let metrics = QueueMetrics::new(local.clone());
    metrics.record_complete("api", 10.0).await;
    metrics.backend().set_gauge("mine", 1.5).await;
    assert_eq!(local.get_counter("lane.commands.completed").await, Some(1));
    assert_eq!(local.get_gauge("mine").await, Some(1.5));
    assert_eq!(local.get_histogram_stats("lane.command.latency_ms").await.unwrap().count, 1);
    assert_eq!(local.get_counter("unknown").await, None);
}

#[tokio::test]
async fn a_queue_records_its_commands_itself() -> anyhow::Result<()> {
    let metrics = QueueMetrics::local();
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_metrics(metrics.clone())
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .build()
        .await?;
    manager.start().await?;
    manager.submit("api", Box::new(JsonCommand::new("echo", serde_json::json!(1)))).await?.await??;
    let snapshot = metrics.snapshot().await;
    assert_eq!(snapshot.counters["lane.commands.submitted"], 1);
    assert_eq!(snapshot.counters["lane.commands.completed.api"], 1);
    assert_eq!(snapshot.histograms["lane.command.latency_ms"].count, 1);
    assert_eq!(snapshot.gauges["lane.queue.depth"], 0.0);
    Ok(())
}
