use corelane::*;
use std::time::Duration;
fn block_on<F: std::future::Future>(f: F) -> F::Output {
    futures::executor::block_on(f)
}
#[test]
fn smoke() {
    for w in [1, 2, 4] {
        let ex = Executor::builder().workers(w).pin(false).build().unwrap();
        block_on(async {
            let m = QueueManagerBuilder::new(EventEmitter::new(10))
                .with_executor(ex.clone())
                .with_default_lanes()
                .build()
                .await
                .unwrap();
            let early = m.submit("prompt", Box::new(JsonCommand::new("t", serde_json::json!(1)))).await.unwrap();
            m.start().await.unwrap();
            let mut v = vec![early];
            for i in 0..50000 {
                v.push(
                    m.submit(
                        ["system", "query", "skill", "prompt"][i % 4],
                        Box::new(JsonCommand::new("t", serde_json::json!(1))),
                    )
                    .await
                    .unwrap(),
                );
            }
            for t in v {
                assert_eq!(t.await.unwrap().unwrap(), 1);
            }
            let t = m
                .submit_fn("query", "panic", || async {
                    if true {
                        panic!("x")
                    };
                    Ok(1)
                })
                .unwrap();
            assert!(matches!(t.await.unwrap(), Err(LaneError::Panicked(_))));
            let st = m.stats().await.unwrap();
            assert_eq!((st.total_pending, st.total_active), (0, 0));
            m.shutdown().await;
            println!("{:?}", m.drain(Duration::from_secs(5)).await.unwrap());
        });
    }
}
