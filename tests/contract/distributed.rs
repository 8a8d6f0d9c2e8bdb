//! The queue within one process, by the suite that is for all; and what it alone has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use corelane::testing::distributed::{Opening, conformance};
use corelane::{DistributedQueue, LocalDistributedQueue};
use futures::executor::block_on;

/// Queues in memory, found again by their names.
fn open() -> impl Fn(Opening) -> std::future::Ready<corelane::Result<Arc<dyn DistributedQueue>>> {
    let queues: Mutex<HashMap<String, LocalDistributedQueue>> = Mutex::default();
    move |opening| {
        let mut queues = queues.lock().unwrap();
        let queue = queues.entry(opening.namespace).or_insert_with(|| LocalDistributedQueue::new(opening.partitions));
        std::future::ready(Ok(Arc::new(queue.worker())))
    }
}

#[test]
fn the_local_queue_is_a_distributed_queue() {
    let report = block_on(conformance(open()));
    assert!(
        report.left_out == ["corelane::testing::distributed::enqueue::a_payload_over_the_limit_is_refused"],
        "{report:?}"
    );
    assert!(report.run >= 80, "{report:?}");
}
