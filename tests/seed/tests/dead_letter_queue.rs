//! Snippet "Dead Letter Queue": what fails for good is kept, and can be looked at.

use std::sync::Arc;
use std::time::Duration;

use a3s_lane::{Command, Lane, LaneConfig, LaneError};
use async_trait::async_trait;
use seed_snippets::println;

struct Fails;

#[async_trait]
impl Command for Fails {
    async fn execute(&self) -> a3s_lane::Result<serde_json::Value> {
        Err(LaneError::CommandError("no such page".into()))
    }

    fn command_type(&self) -> &str {
        "fetch"
    }
}

#[tokio::test]
async fn failed_commands_are_listed_with_type_and_error() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::{CommandQueue, EventEmitter, DeadLetterQueue};

    let emitter = EventEmitter::new(100);
    let dlq = DeadLetterQueue::new(1000); // Max 1000 dead letters

    // Create queue with DLQ
    let queue = CommandQueue::with_dlq(emitter, dlq.clone());
    // ---- end

    let queue = Arc::new(queue);
    queue.register_lane(Arc::new(Lane::new("web", LaneConfig::new(1, 1), 0))).await?;
    queue.clone().start_scheduler().await;
    assert!(queue.submit("web", Box::new(Fails)).await?.await?.is_err());
    queue.drain(Duration::from_secs(10)).await?;

    // ---- snippet
    // Later: inspect failed commands
    let dead_letters = dlq.list().await;
    for letter in dead_letters {
        println!("Failed: {} - {}", letter.command_type, letter.error);
    }
    // ---- end

    assert_eq!(seed_snippets::printed(), ["Failed: fetch - command execution error: no such page"]);
    Ok(())
}

#[tokio::test]
async fn a_size_is_accepted_in_place_of_a_queue_as_the_published_source_has_it() {
    let queue = a3s_lane::CommandQueue::with_dlq(a3s_lane::EventEmitter::new(10), 5);
    assert_eq!(queue.dlq().unwrap().capacity(), 5);
}
