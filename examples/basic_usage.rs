//! The basics: the six default lanes, commands and their results, statistics, shutting down.
//!
//! ```text
//! cargo run --example basic_usage
//! ```
#![allow(clippy::print_stdout)]

use std::time::Duration;

use async_trait::async_trait;
use corelane::{Command, EventEmitter, LaneError, QueueManager, QueueManagerBuilder, Result, lane_ids, sleep};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Events are kept for subscribers that are behind: up to 100.
    let manager = QueueManagerBuilder::new(EventEmitter::new(100)).with_default_lanes().build().await?;
    manager.start().await?;

    await_a_result(&manager).await?;
    handle_a_failure(&manager).await?;
    look_at_the_statistics(&manager).await?;
    shut_down(&manager).await
}

/// Counts the words of a text, as if that took a while.
struct CountWords {
    text: String,
}

impl CountWords {
    fn boxed(text: &str) -> Box<dyn Command> {
        Box::new(Self { text: text.to_owned() })
    }
}

#[async_trait]
impl Command for CountWords {
    async fn execute(&self) -> Result<serde_json::Value> {
        sleep(Duration::from_millis(20)).await;
        match self.text.split_whitespace().count() {
            0 => Err(LaneError::CommandError("there is no word in this text".to_owned())),
            words => Ok(serde_json::json!({ "text": self.text, "words": words })),
        }
    }

    fn command_type(&self) -> &str {
        "count_words"
    }
}

async fn await_a_result(manager: &QueueManager) -> anyhow::Result<()> {
    let ticket = manager.submit(lane_ids::QUERY, CountWords::boxed("the quick brown fox")).await?;
    // The outer result says whether there is an answer at all, the inner one is the command's own.
    let result = ticket.await??;
    println!("result: {result}");
    Ok(())
}

async fn handle_a_failure(manager: &QueueManager) -> anyhow::Result<()> {
    match manager.submit(lane_ids::QUERY, CountWords::boxed("  ")).await?.await? {
        Ok(result) => println!("result: {result}"),
        Err(LaneError::CommandError(why)) => println!("the command failed: {why}"),
        Err(error) => println!("the command has no result: {error}"),
    }
    match manager.submit("qeury", CountWords::boxed("lost")).await {
        Ok(_ticket) => println!("accepted"),
        Err(error) => println!("not accepted: {error}"),
    }
    Ok(())
}

async fn look_at_the_statistics(manager: &QueueManager) -> anyhow::Result<()> {
    let texts = ["one", "one two", "one two three", "four", "five six", "seven"];
    let mut tickets = Vec::new();
    for text in texts {
        tickets.push(manager.submit(lane_ids::PROMPT, CountWords::boxed(text)).await?);
    }

    let stats = manager.stats().await?;
    println!("in all lanes: {} pending, {} active", stats.total_pending, stats.total_active);
    let prompt = stats.lanes[lane_ids::PROMPT];
    println!("in lane prompt: {} pending, {} active, at most {}", prompt.pending, prompt.active, prompt.max);

    for ticket in tickets {
        println!("result: {}", ticket.await??);
    }
    Ok(())
}

async fn shut_down(manager: &QueueManager) -> anyhow::Result<()> {
    let last = manager.submit(lane_ids::SKILL, CountWords::boxed("accepted before the end")).await?;
    manager.shutdown().await;
    if let Err(error) = manager.submit(lane_ids::SKILL, CountWords::boxed("too late")).await {
        println!("not accepted: {error}");
    }

    // What was accepted runs to its end.
    let report = manager.drain(Duration::from_secs(30)).await?;
    println!("drained {} command", report.outstanding);
    println!("result: {}", last.await??);
    Ok(())
}
