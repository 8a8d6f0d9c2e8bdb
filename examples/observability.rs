//! Observability: what a queue tells of itself while it works, without being asked by its commands.
//!
//! ```text
//! cargo run --release --example observability
//! ```
//!
//! A lane gets more than it can do at once. Its events, its metrics, its alerts and a monitor each say so in their way, and
//! must agree with what the program did; otherwise it fails.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use corelane::{
    Alert, AlertLevel, AlertManager, EventEmitter, EventPayload, Executor, LaneConfig, LaneError, LatencyAlertConfig,
    MonitorConfig, QueueManagerBuilder, QueueMetrics, QueueMonitor, Result, TypedCommand, events, metric_names, sleep,
    timeout,
};

/// Longer than everything here takes.
const HANG: Duration = Duration::from_secs(30);
/// Times of commands in milliseconds: two at a time, so that the others wait.
const TIMES: [u64; 12] = [40, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 600];
/// Commands that fail at once.
const FAIL: u64 = 3;

/// Asks a server that takes its time; 0 is one that refuses.
struct Request(u64);

impl TypedCommand for Request {
    type Output = u64;

    async fn execute(&self) -> Result<u64> {
        if self.0 == 0 {
            return Err(LaneError::CommandError("refused".into()));
        }
        sleep(Duration::from_millis(self.0)).await;
        Ok(self.0)
    }

    fn command_type(&self) -> &str {
        "request"
    }
}

fn main() -> anyhow::Result<()> {
    Executor::global().block_on(observe())
}

async fn observe() -> anyhow::Result<()> {
    // Collected ten times as often as by default: this lasts a second or two.
    let metrics = QueueMetrics::local().with_interval(Duration::from_millis(100)).with_command_types(10);
    let alerts = Arc::new(AlertManager::with_queue_depth_alerts(5, 10));
    alerts.set_latency_config(LatencyAlertConfig::new(100.0, 500.0)).await;
    let heard = Arc::new(Mutex::new(Vec::<Alert>::new()));
    let hear = Arc::clone(&heard);
    alerts
        .add_callback(move |alert| {
            println!("  alert: {:8} {}", alert.level.to_string(), alert.message);
            hear.lock().expect("nobody panics").push(alert);
        })
        .await;

    let manager = QueueManagerBuilder::new(EventEmitter::new(1000))
        .with_metrics(metrics.clone())
        .with_alerts(Arc::clone(&alerts))
        .with_lane("api", LaneConfig::new(1, 2), 0)
        .build()
        .await?;
    let mut seen = manager.subscribe_filtered(|event| event.key.starts_with("queue.command."));
    let config = MonitorConfig {
        interval: Duration::from_millis(100),
        pending_warning_threshold: 10,
        active_warning_threshold: 2,
    };
    let monitor = Arc::new(QueueMonitor::with_config(manager.queue(), config));
    Arc::clone(&monitor).start().await;

    println!("{} requests, two at a time", TIMES.len() as u64 + FAIL);
    // Not started yet: all of them wait, and the monitor and the alerts see that.
    let mut tickets = Vec::new();
    for time in TIMES.into_iter().chain((0..FAIL).map(|_| 0)) {
        tickets.push(manager.submit_typed("api", Request(time))?);
    }
    let submitted = tickets.len() as u64;
    let stats = monitor.stats().await;
    ensure!((stats.total_pending as u64, stats.total_active) == (submitted, 0), "{stats:?}");
    timeout(HANG, async {
        while !alerts.active().iter().any(|active| active.alert.level == AlertLevel::Critical) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .context("no alert of the depth")?;

    manager.start().await?;
    let (mut done, mut failed) = (0, 0);
    for ticket in tickets {
        match ticket.await? {
            Ok(_) => done += 1,
            Err(_) => failed += 1,
        }
    }
    ensure!((done, failed) == (TIMES.len() as u64, FAIL), "{done} done, {failed} failed");

    println!("\nevents");
    let mut keys = BTreeMap::<String, u64>::new();
    while keys.get(events::QUEUE_COMMAND_COMPLETED) != Some(&done)
        || keys.get(events::QUEUE_COMMAND_FAILED) != Some(&failed)
    {
        let event = timeout(HANG, seen.recv()).await.context("an event is missing")?.context("no more events")?;
        let EventPayload::Map(fields) = &event.payload else { anyhow::bail!("without fields: {event:?}") };
        ensure!(fields["lane_id"] == "api", "{event:?}");
        *keys.entry(event.key.to_string()).or_default() += 1;
    }
    for (key, number) in &keys {
        println!("  {key:26} {number}");
    }
    for key in [events::QUEUE_COMMAND_SUBMITTED, events::QUEUE_COMMAND_STARTED] {
        ensure!(keys[key] == submitted, "{key}: {}", keys[key]);
    }

    println!("\nmetrics, by name");
    let snapshot = metrics.snapshot().await;
    for (name, expected) in [
        (metric_names::COMMANDS_SUBMITTED, submitted),
        (metric_names::COMMANDS_COMPLETED, done),
        (metric_names::COMMANDS_FAILED, failed),
    ] {
        // Of all lanes, and of this one, which is all there is.
        for name in [name.to_owned(), format!("{name}.api")] {
            let found = snapshot.counters.get(&name).copied();
            println!("  {name:30} {}", found.unwrap_or_default());
            ensure!(found == Some(expected), "{name}: {found:?}, not {expected}");
        }
    }
    let latency = snapshot.histograms.get(metric_names::COMMAND_LATENCY).context("no latencies")?;
    println!(
        "  {:30} {}: p50 {:.0}, p90 {:.0}, p99 {:.0}, mean {:.0}",
        metric_names::COMMAND_LATENCY,
        latency.count,
        latency.percentiles.p50,
        latency.percentiles.p90,
        latency.percentiles.p99,
        latency.mean
    );
    ensure!(latency.percentiles.p99 >= 0.95 * TIMES[TIMES.len() - 1] as f64, "{latency:?}");

    println!("\nmetrics, typed");
    let reading = metrics.collect();
    let lane = reading.lane("api").context("no lane")?;
    println!(
        "  submitted {}, ok {}, error {}; p50 of waits {:?}",
        lane.submitted,
        lane.finished.ok,
        lane.finished.error,
        lane.wait.quantile(0.5).unwrap_or_default()
    );
    ensure!((lane.submitted, lane.finished.ok, lane.finished.error) == (submitted, done, failed), "{lane:?}");
    ensure!((lane.pending, lane.active, lane.run.count()) == (0, 0, submitted), "{lane:?}");
    let of_type = lane.command_types.iter().find(|of_type| &*of_type.command_type == "request");
    ensure!(of_type.is_some_and(|of_type| of_type.finished == lane.finished), "{:?}", lane.command_types);

    println!("\nalerts");
    // By hand: what does not come from the queue.
    alerts.check_latency("api", 50.0).await;
    alerts.check_latency("api", 700.0).await;
    ensure!(alerts.shutdown(HANG).await, "not all was delivered: {:?}", alerts.delivery_stats());
    let heard = heard.lock().expect("nobody panics").clone();
    println!("  {} in all", heard.len());
    for what in ["queue depth", "latency"] {
        let is_about = |alert: &&Alert| alert.lane_id == "api" && alert.message.contains(what);
        let worst = heard.iter().filter(is_about).map(|alert| alert.level).max();
        ensure!(worst == Some(AlertLevel::Critical), "{what}: {heard:?}");
    }

    monitor.stop();
    manager.shutdown().await;
    manager.drain(HANG).await?;
    let stats = monitor.stats().await;
    ensure!((stats.total_pending, stats.total_active) == (0, 0), "{stats:?}");
    println!("\nall of them agree");
    Ok(())
}
