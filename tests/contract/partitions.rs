//! Which partition a command belongs to, and that a queue's commands begin at home.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use corelane::{
    Command, CustomPartitioner, EventEmitter, Executor, HashPartitioner, LaneConfig, LaneError, LocalDistributedQueue,
    PartitionConfig, PartitionId, PartitionStrategy, Partitioner, QueueManager, QueueManagerBuilder,
    RoundRobinPartitioner, SubmitOptions, stable_hash,
};

use crate::support::{Do, block_on, executor};

fn partitioned(executor: &Executor, builder: impl FnOnce(QueueManagerBuilder) -> QueueManagerBuilder) -> QueueManager {
    let base = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor.clone());
    block_on(async {
        let manager = builder(base).with_lane("query", LaneConfig::new(0, 8), 2).build().await.unwrap();
        manager.start().await.unwrap();
        manager
    })
}

#[test]
fn the_hash_of_a_key_is_the_same_in_every_version() {
    // What one version has put into a partition, another one is to find there: these never change.
    let known = [("", 0x2d06_8005_38d3_94c2), ("a", 0xe6c6_32b6_1e96_4e1f), ("user-7", 0xb1de_7a36_4def_053e)];
    for (key, hash) in known {
        assert_eq!(stable_hash(key), hash, "of {key:?}: {:#x}", stable_hash(key));
    }
}

#[test]
fn keys_are_spread_evenly_and_stay_below_the_number_of_partitions() {
    for partitions in [1, 2, 3, 7, 64] {
        let mut counts = vec![0_u32; partitions];
        for key in 0..20_000 {
            counts[HashPartitioner.partition_of(&format!("key-{key}"), partitions)] += 1;
        }
        let mean = 20_000.0 / partitions as f64;
        assert!(counts.iter().all(|count| (f64::from(*count) - mean).abs() < mean * 0.25 + 30.0), "{counts:?}");
    }
}

#[test]
fn the_seeds_configurations_are_there() {
    assert_eq!(PartitionConfig::round_robin(8), PartitionConfig::new(8, PartitionStrategy::RoundRobin));
    assert_eq!(PartitionConfig::hash(8), PartitionConfig::new(8, PartitionStrategy::Hash));
    assert_eq!(PartitionConfig::none(), PartitionConfig::new(1, PartitionStrategy::None));
    assert_eq!(PartitionConfig::default(), PartitionConfig::auto());
    assert!(PartitionConfig::auto().num_partitions >= 1);
    let text = serde_json::to_string(&PartitionConfig::hash(3)).unwrap();
    assert_eq!(serde_json::from_str::<PartitionConfig>(&text).unwrap(), PartitionConfig::hash(3));
}

#[test]
fn partitions_are_taken_in_turns() {
    let partitioner = RoundRobinPartitioner::new();
    let taken: Vec<_> = (0..7).map(|_| partitioner.partition_of("x", 3)).collect();
    assert_eq!(taken, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn a_partitioner_of_the_seeds_one_method_is_enough() {
    struct ByLength;

    #[async_trait]
    impl Partitioner for ByLength {
        async fn partition(&self, command: &dyn Command, num_partitions: usize) -> PartitionId {
            command.command_type().len() % num_partitions
        }
    }

    assert_eq!(ByLength.partition_of("four", 3), 1);
    let config = PartitionConfig::round_robin(3);
    let queue = LocalDistributedQueue::with_partitioner(config, Arc::new(ByLength)).unwrap();
    assert_eq!(queue.partitioner().partition_of("seventy", 3), 1);
}

#[test]
fn wrong_numbers_of_partitions_are_refused_with_a_word() {
    for (config, hint) in [
        (PartitionConfig::hash(0), "use 1 to 4096"),
        (PartitionConfig::round_robin(5000), "use 1 to 4096"),
        (PartitionConfig::new(4, PartitionStrategy::None), "use round_robin(n) or hash(n)"),
    ] {
        let Err(LaneError::ConfigError(errors)) = LocalDistributedQueue::try_new(config.clone()) else {
            panic!("{config:?}")
        };
        assert!(errors.to_string().contains(hint), "{errors}");
        let executor = executor(1);
        let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor).with_partitions(config);
        let Err(LaneError::ConfigError(errors)) = block_on(builder.build()) else { panic!("it is wrong") };
        assert_eq!(errors.problems()[0].path, "partitions.num_partitions");
    }
}

#[test]
fn a_partitioner_gets_keys_and_the_types_of_commands_without() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let own = Arc::clone(&asked);
    let partitioner = CustomPartitioner::new(move |key: &str| {
        own.lock().unwrap().push(key.to_owned());
        99
    });
    let executor = executor(2);
    let manager = partitioned(&executor, |builder| {
        builder.with_partitioner(PartitionConfig::round_robin(2), Arc::new(partitioner))
    });
    let command = || Box::new(Do(|| async { Ok(serde_json::json!(1)) }));
    block_on(async {
        manager.submit("query", command()).await.unwrap().await.unwrap().unwrap();
        for key in [SubmitOptions::new().key("user-7"), SubmitOptions::new().key(12_u64)] {
            manager.submit_with("query", command(), key).await.unwrap().await.unwrap().unwrap();
        }
    });
    assert_eq!(*asked.lock().unwrap(), ["do", "user-7", "12"]);
}

#[test]
fn a_partitioner_that_panics_keeps_no_command_from_running() {
    let executor = executor(2);
    let partitioner = CustomPartitioner::new(|_: &str| panic!("wanted"));
    let manager =
        partitioned(&executor, |builder| builder.with_partitioner(PartitionConfig::hash(2), Arc::new(partitioner)));
    let command = Box::new(Do(|| async { Ok(serde_json::json!(1)) }));
    assert!(block_on(async { manager.submit("query", command).await.unwrap().await.unwrap() }).is_ok());
}

#[test]
fn all_commands_of_a_partitioned_queue_run_whatever_their_homes() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let manager = partitioned(&executor, |builder| builder.with_partitions(PartitionConfig::hash(7)));
        let seen = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
        let tickets: Vec<_> = (0..2000_u64)
            .map(|number| {
                let seen = Arc::clone(&seen);
                let lane = manager.lane("query").unwrap();
                lane.submit_fn_with("count", SubmitOptions::new().key(number % 50), move || async move {
                    *seen.lock().unwrap().entry(number % 50).or_default() += 1;
                    corelane::yield_now().await;
                    Ok(number)
                })
                .unwrap()
            })
            .collect();
        block_on(async {
            for ticket in tickets {
                ticket.await.unwrap().unwrap();
            }
        });
        assert!(seen.lock().unwrap().values().all(|count| *count == 40));
    }
}
