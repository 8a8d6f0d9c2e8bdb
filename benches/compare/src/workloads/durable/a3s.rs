//! Both versions of a3s-lane with the store that comes with them.
//!
//! It keeps all commands in memory and rewrites one JSON file at each change, without `fsync`, in place; its queue ignores
//! what goes wrong there. Commands are stored with an empty payload, so that they can not be made again.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{EnterGuard, Runtime};

use super::payload;
use super::store::{Setting, Store};
use crate::workloads::seed::CONCURRENT;

/// Writes the file as its store does, with so many commands.
pub fn write_file(folder: &Path, commands: u64) {
    let records: Vec<_> = (0..commands)
        .map(|number| a3s_lane_05::StoredCommand {
            id: format!("00000000-0000-4000-8000-{number:012}"),
            command_type: "work".to_owned(),
            lane_id: "lane".to_owned(),
            payload: serde_json::json!({}),
            retry_count: 0,
            created_at: chrono::Utc::now(),
            last_attempt_at: None,
        })
        .collect();
    let file = BufWriter::new(File::create(folder.join("commands.json")).expect("the folder can hold a file"));
    serde_json::to_writer_pretty(file, &records).expect("it can be written");
}

pub fn runtime(workers: usize) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("threads can be started")
}

struct Work(serde_json::Value);

macro_rules! store {
    ($store:ident, $a3s:ident) => {
        pub struct $store {
            runtime: Runtime,
            storage: Arc<$a3s::LocalStorage>,
            manager: $a3s::QueueManager,
            started: bool,
        }

        #[async_trait]
        impl $a3s::Command for Work {
            async fn execute(&self) -> $a3s::Result<serde_json::Value> {
                Ok(self.0["number"].clone())
            }

            fn command_type(&self) -> &str {
                "work"
            }
        }

        impl Store for $store {
            fn open(setting: &Setting<'_>) -> Self {
                let runtime = runtime(setting.workers);
                write_file(setting.folder, setting.stored);
                let (storage, manager) = runtime.block_on(async {
                    let storage = $a3s::LocalStorage::new(setting.folder.to_owned()).await;
                    let storage = Arc::new(storage.expect("the folder can hold a store"));
                    let builder = $a3s::QueueManagerBuilder::new($a3s::EventEmitter::new(100))
                        .with_storage(Arc::clone(&storage) as Arc<dyn $a3s::Storage>)
                        .with_lane("lane", $a3s::LaneConfig::new(1, CONCURRENT), 2);
                    let manager = builder.build().await.expect("the configuration is usable");
                    if setting.started {
                        manager.start().await.expect("a new queue can be started");
                    }
                    (storage, manager)
                });
                Self { runtime, storage, manager, started: setting.started }
            }

            fn enter(&self) -> Option<EnterGuard<'_>> {
                Some(self.runtime.enter())
            }

            async fn submit(&self, number: u64) {
                let command = Box::new(Work(payload(number)));
                drop(self.manager.submit("lane", command).await.expect("the queue is open"));
            }

            async fn live(&self, number: u64) {
                let command = Box::new(Work(payload(number)));
                let result = self.manager.submit("lane", command).await.expect("the queue is open");
                assert_eq!(result.await.expect("it settles").expect("it succeeds"), number);
            }

            async fn flush(&self) {
                // An end is written before its result is given.
            }

            fn close(self, left: u64) -> Option<u64> {
                self.runtime.block_on(async {
                    if self.started {
                        self.manager.shutdown().await;
                        _ = self.manager.drain(Duration::from_secs(60)).await.expect("all commands have settled");
                    }
                    let commands = $a3s::Storage::load_commands(&*self.storage).await.expect("it can be read");
                    assert_eq!(commands.len() as u64, left, "all is stored");
                });
                None
            }
        }
    };
}

store!(A3s05, a3s_lane_05);
store!(A3s02, a3s_lane_02);
