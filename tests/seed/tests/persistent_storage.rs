//! Snippets "Persistent Storage" and "Custom Storage Backend".

use a3s_lane::{Command, Result};
use async_trait::async_trait;
use std::sync::Arc;

/// A command of the seed: it says what it is, and not what it is to do.
struct Plain;

#[async_trait]
impl Command for Plain {
    async fn execute(&self) -> Result<serde_json::Value> {
        Ok(serde_json::json!("done"))
    }

    fn command_type(&self) -> &str {
        "plain"
    }
}

#[tokio::test]
async fn commands_are_stored_can_be_inspected_and_are_not_run_again() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("corelane-seed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::env::set_current_dir(&folder)?;
    let expected = {
        // ---- snippet
        use a3s_lane::{QueueManagerBuilder, EventEmitter, LocalStorage, LaneConfig};
        use std::path::PathBuf;

        let emitter = EventEmitter::new(100);
        let storage_dir = PathBuf::from("./queue_data");
        let storage = Arc::new(LocalStorage::new(storage_dir).await?);

        // Create queue with persistent storage
        let manager = QueueManagerBuilder::new(emitter)
            .with_storage(storage.clone())
            .with_lane("api", LaneConfig::new(1, 5), 0)
            .build()
            .await?;
        // ---- end

        use a3s_lane::Storage;
        let ticket = manager.submit("api", Box::new(Plain)).await?;

        // ---- snippet
        // Commands are automatically persisted to disk
        // On restart, you can inspect stored commands:
        let stored_commands = storage.load_commands().await?;
        for cmd in stored_commands {
            println!("Pending: {} ({})", cmd.command_type, cmd.id);
        }
        // ---- end

        assert_eq!(storage.load_commands().await?.len(), 1);
        ticket.id().to_string()
        // The process ends before it is started.
    };

    use a3s_lane::{EventEmitter, LaneConfig, LocalStorage, ParkReason, QueueManagerBuilder, Storage};
    // What holds the queue of the process before goes with its last command, on a worker.
    let storage = loop {
        match LocalStorage::new(std::path::PathBuf::from("./queue_data")).await {
            Ok(storage) => break Arc::new(storage),
            Err(a3s_lane::LaneError::Storage(a3s_lane::StorageError::StoreLocked { .. })) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    };
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_storage(storage.clone())
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .build()
        .await?;
    manager.start().await?;
    let parked = &manager.recovery().expect("there is a store").parked;
    assert_eq!((parked.len(), parked[0].command.id.clone()), (1, expected));
    assert_eq!(parked[0].reason, ParkReason::NotRecoverable);
    assert_eq!(storage.load_commands().await?.len(), 1, "it stays");
    manager.shutdown().await;
    manager.drain(std::time::Duration::from_secs(30)).await?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

mod custom {
    // ---- snippet
    use a3s_lane::{Storage, StoredCommand, StoredDeadLetter};
    use async_trait::async_trait;
    // ---- end
    use a3s_lane::Result;

    // ---- snippet
    pub struct RedisStorage {
        // Your Redis client
    }

    #[async_trait]
    impl Storage for RedisStorage {
        async fn save_command(&self, command: StoredCommand) -> Result<()> {
            // Store in Redis
            // ---- end
            let _ = command;
            // ---- snippet
            Ok(())
        }

        async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
            // Load from Redis
            Ok(vec![])
        }

        // Implement other methods...
        // ---- end
        async fn remove_command(&self, _id: &str) -> Result<()> {
            Ok(())
        }

        async fn save_dead_letter(&self, _letter: StoredDeadLetter) -> Result<()> {
            Ok(())
        }

        async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
            Ok(vec![])
        }

        async fn clear_dead_letters(&self) -> Result<()> {
            Ok(())
        }

        async fn clear_all(&self) -> Result<()> {
            Ok(())
        }
    }
}

#[tokio::test]
async fn a_store_of_seven_methods_serves_a_queue() -> anyhow::Result<()> {
    use a3s_lane::{EventEmitter, LaneConfig, QueueManagerBuilder};
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_storage(Arc::new(custom::RedisStorage {}))
        .with_lane("api", LaneConfig::new(1, 5), 0)
        .with_dlq(10)
        .build()
        .await?;
    manager.start().await?;
    assert_eq!(manager.submit("api", Box::new(Plain)).await?.await??, "done");
    Ok(())
}
