use corelane::*;
use std::time::Duration;
#[test]
fn smoke() {
    for w in [1, 2, 4] {
        let ex = Executor::builder().workers(w).pin(false).build().unwrap();
        let ts: Vec<_> = (0..10000u64)
            .map(|i| {
                ex.spawn((i % 64) as u8, async move {
                    if i % 3 == 0 {
                        yield_now().await
                    };
                    i
                })
            })
            .collect();
        let sum = ex.block_on(async {
            let mut s = 0;
            for t in ts {
                s += t.await.unwrap();
            }
            s
        });
        assert_eq!(sum, 9999 * 10000 / 2);
        ex.block_on(ex.spawn(0, async { sleep(Duration::from_millis(20)).await })).unwrap();
        let t = ex.spawn(3, async { panic!("boo") });
        assert!(matches!(ex.block_on(t), Err(TaskError::Panicked(_))));
        let r = futures_lite_block(ex.shutdown(Duration::from_secs(1)));
        eprintln!("{r:?} {:?}", ex.worker_stats());
    }
}
fn futures_lite_block<F: std::future::Future>(f: F) -> F::Output {
    futures::executor::block_on(f)
}
