//! Many managers on one executor.

use corelane::{EventEmitter, Executor, LaneConfig, QueueManager, QueueManagerBuilder};

use crate::support::{block_on, eventually, executor, manager, on_workers};

fn threads_of_this_process() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

#[test]
fn ten_thousand_idle_managers_cost_no_thread_and_no_wake_up() {
    let executor = executor(2);
    // Other tests run beside this one, so only a great difference means something.
    let before = threads_of_this_process();
    let managers: Vec<QueueManager> = (0..10_000)
        .map(|_| {
            let builder = QueueManagerBuilder::new(EventEmitter::new(100)).with_executor(executor.clone());
            let manager = block_on(builder.with_default_lanes().build()).unwrap();
            block_on(manager.start()).unwrap();
            manager
        })
        .collect();
    if let (Some(before), Some(now)) = (before, threads_of_this_process()) {
        assert!(now < before + 1000, "{before} threads became {now}");
    }
    let parks = |executor: &Executor| executor.worker_stats().iter().map(|worker| worker.parks).sum::<u64>();
    let parked = parks(&executor);
    // Real time, since the absence of wake-ups is what is tested.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(parks(&executor), parked);
    // Each of them works.
    for (i, manager) in managers.iter().enumerate().step_by(997) {
        let ticket = manager.submit_fn("prompt", "t", move || async move { Ok(i) }).unwrap();
        assert_eq!(block_on(ticket).unwrap().unwrap(), i);
    }
}

#[test]
fn managers_without_an_executor_of_their_own_share_the_global_one() {
    let build = || {
        let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_lane("a", LaneConfig::default(), 0);
        block_on(builder.build()).unwrap()
    };
    let (one, two) = (build(), build());
    block_on(one.start()).unwrap();
    block_on(two.start()).unwrap();
    let name = |manager: &QueueManager| {
        let thread = || async { Ok(std::thread::current().name().map(str::to_owned)) };
        block_on(manager.submit_fn("a", "thread", thread).unwrap()).unwrap().unwrap().unwrap()
    };
    assert!(name(&one).starts_with("corelane-") && name(&two).starts_with("corelane-"));
    assert_eq!(one.queue().executor().workers(), Executor::global().workers());
}

#[test]
fn a_command_may_submit_to_another_lane_and_await_it() {
    on_workers(|executor| {
        let outer = std::sync::Arc::new(manager(
            executor,
            &[("outer", LaneConfig::new(1, 1), 5), ("inner", LaneConfig::new(1, 1), 3)],
        ));
        let inner = std::sync::Arc::clone(&outer);
        let nested = move || async move {
            let ticket = inner.submit_fn("inner", "inner", || async { Ok(20) })?;
            Ok(ticket.await.map_err(|error| corelane::LaneError::Other(error.to_string()))?? + 1)
        };
        assert_eq!(block_on(outer.submit_fn("outer", "outer", nested).unwrap()).unwrap().unwrap(), 21);
    });
}

#[test]
fn an_executor_that_was_dropped_is_freed_with_its_threads() {
    let Some(before) = threads_of_this_process() else { return };
    for _ in 0..50 {
        let executor = executor(4);
        let manager = manager(&executor, &[("a", LaneConfig::default(), 0)]);
        assert_eq!(block_on(manager.submit_fn("a", "t", || async { Ok(1) }).unwrap()).unwrap().unwrap(), 1);
    }
    eventually("threads ended", || threads_of_this_process().is_none_or(|now| now < before + 100));
}
