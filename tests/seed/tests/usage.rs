//! What the snippets rely on without showing it.

use a3s_lane::{Command, EventEmitter, JsonCommand, LaneError, QueueManager, QueueManagerBuilder};
use std::sync::Arc;

async fn manager() -> anyhow::Result<QueueManager> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100)).with_default_lanes().build().await?;
    manager.start().await?;
    Ok(manager)
}

fn echo(value: u64) -> Box<dyn Command> {
    Box::new(JsonCommand::new("echo", serde_json::json!(value)))
}

#[tokio::test]
async fn submit_can_be_awaited_inside_a_spawned_task() -> anyhow::Result<()> {
    let manager = Arc::new(manager().await?);
    // `tokio::spawn` demands a future that is `Send`, across both awaits. That of a3s-lane 0.2.1 was not.
    let submitters: Vec<_> = (0..16)
        .map(|value| {
            let manager = Arc::clone(&manager);
            tokio::spawn(async move { anyhow::Ok(manager.submit("query", echo(value)).await?.await??) })
        })
        .collect();
    for (value, submitter) in submitters.into_iter().enumerate() {
        assert_eq!(submitter.await??, value);
    }
    Ok(())
}

#[tokio::test]
async fn the_receiver_is_unpin() -> anyhow::Result<()> {
    fn unpin<T: Unpin + Send>(value: T) -> T {
        value
    }
    let manager = manager().await?;
    let mut rx = unpin(manager.submit("query", echo(7)).await?);
    // By reference, as in a `select!`.
    let result = tokio::select! {
        result = &mut rx => result,
        () = tokio::time::sleep(std::time::Duration::from_secs(10)) => panic!("no result"),
    };
    assert_eq!(result??, 7);
    Ok(())
}

/// Both errors of `rx.await??` must convert into `anyhow::Error`.
async fn ask(manager: &QueueManager, lane: &str) -> anyhow::Result<serde_json::Value> {
    let rx = manager.submit(lane, echo(1)).await?;
    Ok(rx.await??)
}

#[tokio::test]
async fn errors_pass_through_anyhow_and_can_be_recovered() -> anyhow::Result<()> {
    let manager = manager().await?;
    assert_eq!(ask(&manager, "query").await?, 1);
    let error = ask(&manager, "nowhere").await.expect_err("there is no such lane");
    assert!(matches!(error.downcast_ref(), Some(LaneError::LaneNotFound(lane)) if lane == "nowhere"), "{error:?}");
    Ok(())
}
