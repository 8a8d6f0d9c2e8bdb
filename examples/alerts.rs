//! Alerts: a lane that stalls and recovers, and who hears of it.
//!
//! ```text
//! cargo run --example alerts
//! ```
//!
//! Two commands wait for a server that does not answer, and take all that the lane may run: the others wait. A rule notices
//! that nothing goes on, another one that a command has been running for long. Then the server answers. Fails if anything of
//! that is not told, or told twice.
#![allow(clippy::print_stdout)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use corelane::{
    AlertLevel, AlertManager, AlertRule, AlertSink, AlertStatus, EventEmitter, Executor, LaneConfig, Notification,
    QueueManagerBuilder, QueueMetrics, SinkError, sleep, timeout,
};
use futures::channel::oneshot;
use futures::future::{FutureExt, Shared};

/// As those of the feature `alert-sinks`, but to the terminal.
struct Terminal;

impl AlertSink for Terminal {
    fn name(&self) -> &str {
        "terminal"
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        let Notification { status, rule, alert, .. } = notification;
        match status {
            AlertStatus::Firing => println!("  {:9} {rule}: {}", alert.level.to_string(), alert.message),
            AlertStatus::Resolved => println!("  resolved  {rule}: was {}", alert.level),
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    Executor::global().block_on(stall_and_recover())
}

async fn stall_and_recover() -> anyhow::Result<()> {
    let seconds = Duration::from_secs_f64;
    // Real lanes want longer times: see `AlertRule::recommended`.
    let rules = [
        AlertRule::no_progress(seconds(0.5)).with_critical(seconds(1.5)).with_keep_firing_for(seconds(0.5)),
        AlertRule::oldest_active_age(seconds(1.0)).with_keep_firing_for(seconds(0.5)),
    ];
    let alerts = Arc::new(AlertManager::new().with_rules(rules)?.with_sink(Arc::new(Terminal)));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    alerts.add_notification_callback(move |notification| {
        let Notification { status, rule, alert, .. } = notification;
        tell.lock().expect("nobody panics").push((*status, rule.clone(), alert.level));
    });

    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_metrics(QueueMetrics::local().with_interval(seconds(0.1)))
        .with_alerts(Arc::clone(&alerts))
        .with_lane("web", LaneConfig::new(1, 2), 0)
        .build()
        .await?;
    manager.start().await?;

    println!("the server hangs");
    let (answer, answered) = oneshot::channel::<()>();
    let answered: Shared<_> = answered.shared();
    let mut tickets = Vec::new();
    for _ in 0..10 {
        let answered = answered.clone();
        tickets.push(manager.submit_fn("web", "fetch", move || async move {
            let _ = answered.await;
            Ok(())
        })?);
    }
    sleep(seconds(2.5)).await;
    println!("{} alerts fire", alerts.active().len());
    ensure!(alerts.active().len() == 2, "{:?}", alerts.active());

    println!("the server answers");
    drop(answer);
    for ticket in tickets {
        ticket.await??;
    }
    let resolved = async {
        while !alerts.active().is_empty() {
            sleep(seconds(0.1)).await;
        }
    };
    ensure!(timeout(seconds(10.0), resolved).await.is_ok(), "not resolved: {:?}", alerts.active());
    ensure!(alerts.shutdown(seconds(10.0)).await, "not all was delivered: {:?}", alerts.delivery_stats());

    let told = told.lock().expect("nobody panics").clone();
    let of = |rule: &str| -> Vec<_> {
        let of_rule = told.iter().filter(|(_, own, _)| own == rule);
        of_rule.map(|(status, _, level)| (*status, *level)).collect()
    };
    let (firing, resolved) = (AlertStatus::Firing, AlertStatus::Resolved);
    let (warning, critical) = (AlertLevel::Warning, AlertLevel::Critical);
    ensure!(of("no_progress") == [(firing, warning), (firing, critical), (resolved, critical)], "{told:?}");
    ensure!(of("oldest_active_age") == [(firing, warning), (resolved, warning)], "{told:?}");
    println!("{} notifications, each told once", told.len());
    Ok(())
}
