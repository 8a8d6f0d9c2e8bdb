//! Prometheus: a queue under load, and an endpoint that is scraped.
//!
//! ```text
//! cargo run --example prometheus --features prometheus                    # http://127.0.0.1:9464/metrics, until Ctrl-C
//! cargo run --example prometheus --features prometheus -- 127.0.0.1:9999  # elsewhere
//! cargo run --example prometheus --features prometheus -- --check         # some seconds, scrapes itself, and checks that
//! ```
//!
//! `deploy/` has a dashboard and rules for what it exports. The load has something of everything that they show: failures,
//! retries, dead letters, timeouts, panics, a lane that is full, and one that is held to a rate.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use corelane::{
    Command, CommandContext, EventEmitter, Executor, LaneConfig, LaneError, Overflow, PrometheusExporter, QueueManager,
    QueueManagerBuilder, QueueMetrics, RateLimitConfig, Result, RetryPolicy, Stop, sleep,
};

fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1);
    let check = argument.as_deref() == Some("--check");
    let metrics = QueueMetrics::local().with_command_types(10);
    let exporter = PrometheusExporter::new(metrics.clone());
    let endpoint = match argument.as_deref() {
        Some("--check") => exporter.serve("127.0.0.1:0")?,
        Some(address) => exporter.serve(address)?,
        None => exporter.serve_default()?,
    };
    println!("http://{}/metrics", endpoint.local_addr());

    Executor::global().block_on(async {
        let manager = queue(metrics).await?;
        let ticks = if check { 300 } else { u64::MAX };
        put_under_load(&manager, ticks).await;
        if check {
            check_exposition(&scrape(endpoint.local_addr())?)?;
        }
        let report = manager.stop(Stop::drain(Duration::from_secs(10))).await;
        ensure!(report.is_complete(), "{report:?}");
        Ok(())
    })
}

/// What is measured: three lanes.
pub async fn queue(metrics: QueueMetrics) -> anyhow::Result<QueueManager> {
    let api = LaneConfig::new(1, 4)
        .with_timeout(Duration::from_millis(40))
        .with_retry_policy(RetryPolicy::fixed(2, Duration::from_millis(20)));
    // Gets more than it is allowed to do, and drops what has waited longest.
    let limited = LaneConfig::new(1, 2)
        .with_rate_limit(RateLimitConfig::per_second(20).with_burst(1))
        .with_capacity(8)
        .with_overflow(Overflow::DropOldest);
    // Gets four times what it can do, and refuses the rest: also where a tick takes longer.
    let batch = LaneConfig::new(1, 1).with_capacity(4);
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("api", api, 0)
        .with_lane("limited", limited, 1)
        .with_lane("batch", batch, 2)
        .with_dlq(100)
        .with_metrics(metrics)
        .build()
        .await?;
    manager.start().await?;
    Ok(manager)
}

/// Submits for so many ticks of 10 ms.
pub async fn put_under_load(manager: &QueueManager, ticks: u64) {
    for tick in 0..ticks {
        // Nobody waits for the results: the metrics tell.
        let _ = manager.submit("api", Work::boxed(tick)).await;
        if tick % 3 == 0 {
            let _ = manager.submit("limited", Box::new(Work::Takes(1))).await;
        }
        if tick % 5 == 0 {
            let _ = manager.submit("batch", Box::new(Work::Takes(200))).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

enum Work {
    /// So many milliseconds.
    Takes(u64),
    FailsOnce,
    FailsAlways,
    Panics,
    Hangs,
}

impl Work {
    fn boxed(tick: u64) -> Box<dyn Command> {
        Box::new(match tick % 20 {
            3 | 13 => Self::FailsOnce,
            7 => Self::FailsAlways,
            11 => Self::Panics,
            17 => Self::Hangs,
            quick => Self::Takes(quick % 4),
        })
    }
}

#[async_trait]
impl Command for Work {
    async fn execute(&self) -> Result<serde_json::Value> {
        let attempt = CommandContext::current().map_or(0, |context| context.attempt);
        match self {
            Self::Takes(millis) => sleep(Duration::from_millis(*millis)).await,
            Self::FailsOnce if attempt > 1 => {}
            Self::FailsOnce | Self::FailsAlways => return Err(LaneError::CommandError("the service is down".into())),
            Self::Panics => panic!("a bug"),
            Self::Hangs => sleep(Duration::from_secs(3600)).await,
        }
        Ok(serde_json::Value::Null)
    }

    fn command_type(&self) -> &str {
        match self {
            Self::Takes(_) => "takes",
            Self::FailsOnce => "fails_once",
            Self::FailsAlways => "fails_always",
            Self::Panics => "panics",
            Self::Hangs => "hangs",
        }
    }
}

/// As Prometheus does it.
fn scrape(address: std::net::SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    Ok(body.to_owned())
}

fn check_exposition(text: &str) -> anyhow::Result<()> {
    for series in [
        r#"a3s_lane_commands_finished_total{lane="api",outcome="ok"}"#,
        r#"a3s_lane_commands_finished_total{lane="api",outcome="error"}"#,
        r#"a3s_lane_commands_finished_total{lane="api",outcome="panic"}"#,
        r#"a3s_lane_commands_finished_total{lane="api",outcome="timeout"}"#,
        r#"a3s_lane_commands_finished_total{lane="limited",outcome="shed"}"#,
        r#"a3s_lane_commands_rejected_total{lane="batch",reason="full"}"#,
        r#"a3s_lane_command_retries_total{lane="api"}"#,
        r#"a3s_lane_commands_dead_lettered_total{lane="api",reason="failed"}"#,
        r#"a3s_lane_dlq_size{lane="api"}"#,
        r#"a3s_lane_queue_depth{lane="batch"}"#,
        r#"a3s_lane_command_duration_seconds_count{lane="api"}"#,
        r#"a3s_lane_command_wait_seconds_count{lane="api"}"#,
        r#"a3s_lane_rate_limit_throttled_seconds_total{lane="limited"}"#,
    ] {
        let value = text.lines().find_map(|line| line.strip_prefix(series)).with_context(|| format!("no {series}"))?;
        let value: f64 = value.trim().parse()?;
        println!("{series} {value}");
        ensure!(value > 0.0, "{series} is {value}");
    }
    Ok(())
}
