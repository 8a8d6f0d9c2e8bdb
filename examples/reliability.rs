//! Reliability: timeouts, retries, dead letters that are run again, limits to rate and size, a stop that loses nothing.
//!
//! ```text
//! cargo run --example reliability
//! ```
//!
//! Every part checks what it shows, and the program fails if it is not so.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use async_trait::async_trait;
use corelane::{
    Command, CommandContext, DeadLetter, EventEmitter, LaneConfig, LaneError, QueueManager, QueueManagerBuilder,
    RateLimitConfig, Result, RetryPolicy, Stop, SubmitOptions, sleep,
};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let retries = RetryPolicy::fixed(3, Duration::from_millis(20));
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("quick", LaneConfig::new(1, 2).with_timeout(Duration::from_millis(50)), 1)
        .with_lane("flaky", LaneConfig::new(1, 2).with_retry_policy(retries), 2)
        .with_lane("limited", LaneConfig::new(1, 4).with_rate_limit(RateLimitConfig::per_second(20).with_burst(1)), 3)
        .with_lane("small", LaneConfig::new(1, 1).with_capacity(2), 4)
        .with_dlq(100)
        .build()
        .await?;
    manager.start().await?;

    give_up_what_takes_too_long(&manager).await?;
    try_again_what_fails(&manager).await?;
    keep_and_repeat_what_failed_for_good(&manager).await?;
    keep_to_a_rate(&manager).await?;
    refuse_what_does_not_fit(&manager).await?;
    stop_in_phases(manager).await
}

/// Calls a service that fails as often as it is told to, and then for as long as it is down.
struct Call {
    failures: AtomicU32,
    service_is_up: Arc<AtomicBool>,
}

impl Call {
    fn boxed(failures: u32, service_is_up: &Arc<AtomicBool>) -> Box<dyn Command> {
        Box::new(Self { failures: AtomicU32::new(failures), service_is_up: Arc::clone(service_is_up) })
    }
}

#[async_trait]
impl Command for Call {
    async fn execute(&self) -> Result<serde_json::Value> {
        let attempt = CommandContext::current().map_or(0, |context| context.attempt);
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails || !self.service_is_up.load(Ordering::Relaxed) {
            return Err(LaneError::CommandError(format!("the service did not answer (attempt {attempt})")));
        }
        Ok(json!({ "attempt": attempt }))
    }

    fn command_type(&self) -> &str {
        "call"
    }

    fn payload(&self) -> Option<serde_json::Value> {
        Some(json!({ "service": "example" }))
    }
}

async fn give_up_what_takes_too_long(manager: &QueueManager) -> anyhow::Result<()> {
    let ticket = manager.submit_fn("quick", "slow", || async {
        sleep(Duration::from_secs(3600)).await;
        Ok(())
    })?;
    let result = ticket.await?;
    ensure!(matches!(result, Err(LaneError::Timeout(limit)) if limit == Duration::from_millis(50)), "{result:?}");
    println!("timeout: given up after 50 ms, as its lane says");
    Ok(())
}

async fn try_again_what_fails(manager: &QueueManager) -> anyhow::Result<()> {
    let up = Arc::new(AtomicBool::new(true));
    let value = manager.submit("flaky", Call::boxed(2, &up)).await?.await??;
    ensure!(value == json!({ "attempt": 3 }), "{value}");
    println!("retries: two attempts failed, the third one gave {value}");
    Ok(())
}

async fn keep_and_repeat_what_failed_for_good(manager: &QueueManager) -> anyhow::Result<()> {
    let up = Arc::new(AtomicBool::new(false));
    let result = manager.submit("flaky", Call::boxed(0, &up)).await?.await?;
    ensure!(matches!(result, Err(LaneError::CommandError(_))), "{result:?}");
    let letters = manager.dlq().expect("built with one");
    let [letter] = letters.filter(|letter| letter.command_type == "call").try_into().map_err(unexpected)?;
    ensure!(letter.attempts == 4 && letter.errors.len() == 4 && letter.payload.is_some(), "{letter:?}");
    println!("dead letter: {} after {} attempts: {}", letter.command_type, letter.attempts, letter.error);

    up.store(true, Ordering::Relaxed);
    let report = manager.requeue_dead_letters(|letter| letter.command_type == "call");
    ensure!(report.requeued == 1 && report.refused.is_empty(), "{report:?}");
    manager.drain(Duration::from_secs(10)).await?;
    // What is left is the command that took too long before.
    ensure!(letters.len().await == 1, "the service is up, and the command failed again");
    println!("requeued: the service is back, and the command has run");
    Ok(())
}

fn unexpected(letters: Vec<DeadLetter>) -> anyhow::Error {
    anyhow::anyhow!("one dead letter was expected: {letters:?}")
}

async fn keep_to_a_rate(manager: &QueueManager) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    let tickets: Vec<_> =
        (0..5).map(|_| manager.submit_fn("limited", "call", || async { Ok(()) })).collect::<Result<_>>()?;
    for ticket in tickets {
        ticket.await??;
    }
    // The first at once, then one every 50 ms.
    let took = begun.elapsed();
    ensure!(took >= Duration::from_millis(200), "five starts at 20 a second took {took:?}");
    println!("rate limit: five starts at 20 a second took {took:.0?}");
    Ok(())
}

async fn refuse_what_does_not_fit(manager: &QueueManager) -> anyhow::Result<()> {
    manager.pause("small")?;
    let lane = manager.lane("small").expect("built with it");
    let job = || Call::boxed(0, &Arc::new(AtomicBool::new(true)));
    let waiting = [lane.try_submit(job())?, lane.try_submit(job())?];
    let Err(refused) = lane.try_submit(job()) else { anyhow::bail!("the lane took more than it has room for") };
    ensure!(matches!(refused.error, LaneError::LaneFull { .. }), "{}", refused.error);
    println!("bounded: {} - and the command is back: {}", refused.error, refused.command.command_type());
    manager.resume("small")?;
    for ticket in waiting {
        ticket.await??;
    }
    Ok(())
}

async fn stop_in_phases(manager: QueueManager) -> anyhow::Result<()> {
    let quick = manager.submit_fn("small", "quick", || async { Ok("done") })?;
    quick.await??;
    let endless = manager.submit_fn("small", "endless", std::future::pending::<Result<()>>)?;
    let up = Arc::new(AtomicBool::new(true));
    let later = SubmitOptions::new().delay(Duration::from_secs(3600)).tag("report");
    let delayed = manager.submit_with("small", Call::boxed(0, &up), later).await?;

    let report = manager.stop(Stop::drain(Duration::from_millis(100)).then_cancel(Duration::from_secs(5))).await;
    ensure!(report.is_complete() && report.cancelled == 2, "{report:?}");
    ensure!(matches!(endless.await?, Err(LaneError::Cancelled { started: true })), "the endless one had started");
    ensure!(matches!(delayed.await?, Err(LaneError::Cancelled { started: false })), "the delayed one never starts");
    let given_back: Vec<_> = report.given_back.iter().map(|letter| (&*letter.command_type, &letter.tags)).collect();
    println!("stopped: {} cancelled, given back to be kept elsewhere: {given_back:?}", report.cancelled);
    ensure!(report.given_back.len() == 1, "{report:?}");
    Ok(())
}
