//! A task's parts are dropped once, whoever comes last, and others' code in them does no harm.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use corelane::{Executor, Task, yield_now};

use crate::support::{block_on, eventually, on_workers};

/// Counts what is there.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "dropped more often than made");
    }
}

fn poll_once<T>(task: &mut Task<T>, waker: &Waker) -> bool {
    Pin::new(task).poll(&mut Context::from_waker(waker)).is_ready()
}

/// A task that waits until its waker, which it leaves here, is used.
fn waiting(executor: &Executor) -> (Task<()>, Waker) {
    let place = Arc::new(Mutex::new(None));
    let left = Arc::clone(&place);
    let mut polls = 0;
    let task = executor.spawn(
        0,
        poll_fn(move |cx| {
            polls += 1;
            if polls > 1 {
                return Poll::Ready(());
            }
            *left.lock().unwrap() = Some(cx.waker().clone());
            Poll::Pending
        }),
    );
    eventually("it waits", || place.lock().unwrap().is_some());
    let waker = place.lock().unwrap().take().unwrap();
    (task, waker)
}

#[test]
fn an_awaiter_that_panics_when_it_is_woken_or_dropped_is_contained() {
    #[derive(Default)]
    struct Bomb {
        woken: AtomicUsize,
    }
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::SeqCst);
            panic!("waker on purpose");
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("destructor of a waker on purpose");
            }
        }
    }
    on_workers(|executor| {
        let bomb = Arc::new(Bomb::default());
        let (mut task, waker) = waiting(executor);
        assert!(!poll_once(&mut task, &Waker::from(Arc::clone(&bomb))));
        waker.wake();
        eventually("it is woken", || bomb.woken.load(Ordering::SeqCst) == 1);
        block_on(task).unwrap();
        std::mem::forget(bomb);

        // Dropped with the handle, which is its last place.
        let (mut task, waker) = waiting(executor);
        assert!(!poll_once(&mut task, &Waker::from(Arc::new(Bomb::default()))));
        drop(task);
        waker.wake();
        // The workers are alive.
        let others: Vec<_> = (0..100).map(|i| executor.spawn(0, async move { i })).collect();
        others.into_iter().enumerate().for_each(|(i, task)| assert_eq!(block_on(task).unwrap(), i));
    });
}

#[test]
fn a_handle_takes_its_awaiter_along() {
    struct Awaiter;
    impl Wake for Awaiter {
        fn wake(self: Arc<Self>) {}
    }
    on_workers(|executor| {
        let awaiter = Arc::new(Awaiter);
        let (mut task, waker) = waiting(executor);
        assert!(!poll_once(&mut task, &Waker::from(Arc::clone(&awaiter))));
        drop(task);
        assert_eq!(Arc::strong_count(&awaiter), 1, "the task, which somebody may still wake, keeps it");
        drop(waker);
    });
}

#[test]
fn futures_and_values_are_dropped_once_whoever_comes_last() {
    const TASKS: usize = 3000;
    on_workers(|executor| {
        let there = Arc::new(AtomicUsize::new(0));
        let wakers = Arc::new(Mutex::new(Vec::<Waker>::new()));
        let done = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let wakes = {
                let (wakers, done) = (Arc::clone(&wakers), Arc::clone(&done));
                scope.spawn(move || {
                    while done.load(Ordering::SeqCst) == 0 {
                        let taken = std::mem::take(&mut *wakers.lock().unwrap());
                        for (i, waker) in taken.into_iter().enumerate() {
                            if i % 2 == 0 { waker.wake() } else { waker.wake_by_ref() }
                        }
                        std::thread::yield_now();
                    }
                })
            };
            for i in 0..TASKS {
                let (value, held) = (Arc::clone(&there), Counted::new(&there));
                let wakers = Arc::clone(&wakers);
                let mut task = executor.spawn((i % 3) as u8, async move {
                    let _held = held;
                    let mut polls = 0;
                    poll_fn(|cx| {
                        polls += 1;
                        wakers.lock().unwrap().extend([cx.waker().clone(), cx.waker().clone()]);
                        if polls > i % 4 { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    yield_now().await;
                    Counted::new(&value)
                });
                match i % 7 {
                    0 => drop(block_on(task).unwrap()),
                    1 => drop(task),
                    2 => _ = poll_once(&mut task, Waker::noop()),
                    3 => drop(block_on(task.cancel())),
                    4 => drop(task.cancel()),
                    5 => executor.spawn(0, async move { drop(task.await) }).detach(),
                    _ => executor.spawn(0, async move { drop(task) }).detach(),
                }
            }
            eventually("all are gone", || there.load(Ordering::SeqCst) == 0);
            done.store(1, Ordering::SeqCst);
            wakes.join().unwrap();
        });
        wakers.lock().unwrap().clear();
    });
}
