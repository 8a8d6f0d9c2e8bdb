//! Snippet "Event Subscription".

use a3s_lane::{JsonCommand, QueueManagerBuilder};
use seed_snippets::{printed, println};
use std::time::Duration;

#[tokio::test]
async fn subscribers_hear_of_each_step_of_a_command() -> anyhow::Result<()> {
    // ---- snippet
    use a3s_lane::EventEmitter;

    let emitter = EventEmitter::new(100);

    // Subscribe to all events
    let mut receiver = emitter.subscribe();

    // Subscribe with filter
    let mut filtered = emitter.subscribe_filtered(|e| e.key.starts_with("queue."));

    // In another task
    tokio::spawn(async move {
        while let Ok(event) = receiver.recv().await {
            println!("Event: {} at {}", event.key, event.timestamp);
        }
    });
    // ---- end

    let steps = ["queue.command.submitted", "queue.command.started", "queue.command.completed"];
    emitter.emit(a3s_lane::LaneEvent::empty("mine"));
    let manager = QueueManagerBuilder::new(emitter).with_default_lanes().build().await?;
    manager.start().await?;
    let rx = manager.submit("query", Box::new(JsonCommand::new("echo", serde_json::json!(1)))).await?;
    assert_eq!(rx.await??, 1);

    for step in steps {
        let event = tokio::time::timeout(Duration::from_secs(10), filtered.recv()).await?.expect("the queue is there");
        assert_eq!(event.key, step);
    }
    // The spawned task runs when it gets its turn; the filter did not apply to it.
    let all_printed = async {
        while printed().len() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_printed).await?;
    for (line, key) in printed().iter().zip(["mine"].iter().chain(&steps)) {
        assert!(line.starts_with(&format!("Event: {key} at 2")) && line.ends_with(" UTC"), "{line:?}");
    }
    Ok(())
}
