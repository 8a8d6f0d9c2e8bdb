//! Commands that use tokio, on corelane's workers.

use std::time::Duration;

use corelane::{EventEmitter, Executor, LaneConfig, LaneError, QueueManager, QueueManagerBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{block_on, executor};

async fn manager_here(executor: &Executor) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(10)).with_executor(executor.clone());
    let manager = builder.with_lane("io", LaneConfig::new(1, 16), 2).build().await.unwrap();
    manager.start().await.unwrap();
    manager
}

async fn tokio_round_trip() -> corelane::Result<String> {
    let other = |error: std::io::Error| LaneError::Other(error.to_string());
    tokio::time::sleep(Duration::from_millis(2)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(other)?;
    let address = listener.local_addr().map_err(other)?;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"hello from tokio").await
    });
    let mut text = String::new();
    TcpStream::connect(address).await.map_err(other)?.read_to_string(&mut text).await.map_err(other)?;
    server.await.map_err(|error| LaneError::Other(error.to_string()))?.map_err(other)?;
    let on_worker = std::thread::current().name().is_some_and(|name| name.starts_with("corelane-"));
    assert!(on_worker, "polled on {:?}", std::thread::current());
    Ok(text)
}

#[test]
fn a_command_uses_tokio_timers_and_sockets_of_the_runtime_current_at_build() {
    for workers in [1, 2, 4] {
        let executor = executor(workers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let manager = manager_here(&executor).await;
            let ticket = manager.submit_fn("io", "round trip", tokio_round_trip).unwrap();
            assert_eq!(ticket.await.unwrap().unwrap(), "hello from tokio");
        });
    }
}

#[test]
fn a_queue_built_outside_of_a_runtime_gets_one() {
    let executor = executor(2);
    let manager = block_on(manager_here(&executor));
    let ticket = manager.submit_fn("io", "round trip", tokio_round_trip).unwrap();
    assert_eq!(block_on(ticket).unwrap().unwrap(), "hello from tokio");
}

#[test]
fn managers_of_different_runtimes_share_an_executor_and_one_runtimes_end_hurts_only_its_own() {
    let executor = executor(2);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (one, two) = (runtime(), runtime());
    let first = one.block_on(manager_here(&executor));
    let second = two.block_on(manager_here(&executor));
    let run =
        |manager: &QueueManager| block_on(manager.submit_fn("io", "round trip", tokio_round_trip).unwrap()).unwrap();
    assert!(run(&first).is_ok() && run(&second).is_ok());
    one.shutdown_timeout(Duration::from_secs(5));
    assert!(run(&first).is_err(), "its runtime has ended");
    assert_eq!(run(&second).unwrap(), "hello from tokio");
    // What does not need tokio still works.
    assert_eq!(block_on(first.submit_fn("io", "plain", || async { Ok(1) }).unwrap()).unwrap().unwrap(), 1);
}

#[tokio::test]
async fn submitting_and_awaiting_work_inside_tokio_tasks() {
    let manager = std::sync::Arc::new(manager_here(Executor::global()).await);
    let submitter = std::sync::Arc::clone(&manager);
    let value = tokio::spawn(async move {
        let command = corelane::JsonCommand::new("echo", serde_json::json!("from a tokio task"));
        anyhow::Ok(submitter.submit("io", Box::new(command)).await?.await??)
    });
    assert_eq!(value.await.unwrap().unwrap(), "from a tokio task");
    manager.shutdown().await;
    manager.drain(Duration::from_secs(30)).await.unwrap();
}

#[test]
fn what_a_cancelled_command_holds_is_dropped_in_its_runtime() {
    struct SpawnsWhenDropped(std::sync::mpsc::Sender<bool>);
    impl Drop for SpawnsWhenDropped {
        fn drop(&mut self) {
            let _ = self.0.send(tokio::runtime::Handle::try_current().is_ok());
        }
    }
    let executor = executor(2);
    let manager = block_on(manager_here(&executor));
    let (sender, dropped) = std::sync::mpsc::channel();
    let (started, starts) = std::sync::mpsc::channel();
    let holds = move || async move {
        let _guard = SpawnsWhenDropped(sender);
        let _ = started.send(());
        Ok(std::future::pending::<()>().await)
    };
    let mut ticket = manager.submit_fn("io", "holds", holds).unwrap();
    starts.recv().unwrap();
    assert!(ticket.cancel());
    assert!(dropped.recv().unwrap(), "dropped outside of its runtime");
}

#[test]
fn each_poll_is_in_the_runtime_of_its_own_queue_and_tasks_are_in_none() {
    let executor = executor(1);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (one, two) = (runtime(), runtime());
    let first = one.block_on(manager_here(&executor));
    let second = two.block_on(manager_here(&executor));
    let current = || tokio::runtime::Handle::try_current().ok().map(|handle| handle.id());
    let of = |manager: &QueueManager| {
        let polls = move || async move {
            let before = current();
            corelane::yield_now().await;
            Ok((before, current()))
        };
        manager.submit_fn("io", "current", polls).unwrap()
    };
    // On one worker, in turns, each yielding to the next: it changes the runtime at every poll.
    for _ in 0..3 {
        let (a, b) = (of(&first), of(&second));
        let task = executor.spawn(2, async move {
            let before = current();
            corelane::yield_now().await;
            (before, current())
        });
        let c = of(&first);
        let expected = [one.handle().id(), two.handle().id(), one.handle().id()].map(Some);
        for (ticket, runtime) in [a, b, c].into_iter().zip(expected) {
            assert_eq!(block_on(ticket).unwrap().unwrap(), (runtime, runtime));
        }
        assert_eq!(block_on(task).unwrap(), (None, None));
    }
}
