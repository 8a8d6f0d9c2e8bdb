//! The contenders that run futures, behind one trait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Runs futures on threads of its own. A handle: clones share the threads, which live as long as the process.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Gives a task's output. Must be detached or awaited: some contenders cancel a task when its handle is dropped.
    type Join<T: Send + 'static>: Future<Output = T> + Send + 'static;

    fn spawn<F>(&self, future: F) -> Self::Join<F::Output>
    where
        F: Future<Output: Send> + Send + 'static;

    fn detach<T: Send + 'static>(join: Self::Join<T>);

    /// Awaits the future, or gives it up after that long. `None` where the contender has no timers.
    fn timeout<F>(after: Duration, future: F) -> Option<impl Future<Output = Option<F::Output>> + Send>
    where
        F: Future<Output: Send> + Send;

    /// Lets other tasks run, in the way that the contender offers for it.
    fn yield_now() -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
pub struct Corelane(pub corelane::Executor);

impl Corelane {
    /// A bulk priority, as that of the default lanes below `control`.
    const PRIORITY: u8 = 2;

    pub fn start(workers: usize, pin: bool) -> Self {
        Self(corelane::Executor::builder().workers(workers).pin(pin).build().expect("threads can be started"))
    }
}

/// Of a runtime whose handles give a `Result`: the value.
pub struct Unwrap<J>(J);

impl<J: Future<Output = Result<T, E>> + Unpin, T, E: std::fmt::Debug> Future for Unwrap<J> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.expect("the task does not panic"))
    }
}

impl Runtime for Corelane {
    type Join<T: Send + 'static> = Unwrap<corelane::Task<T>>;

    fn spawn<F>(&self, future: F) -> Self::Join<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Unwrap(self.0.spawn(Self::PRIORITY, future))
    }

    fn detach<T: Send + 'static>(join: Self::Join<T>) {
        join.0.detach();
    }

    fn timeout<F>(after: Duration, future: F) -> Option<impl Future<Output = Option<F::Output>> + Send>
    where
        F: Future<Output: Send> + Send,
    {
        Some(async move { corelane::timeout(after, future).await.ok() })
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        corelane::yield_now()
    }
}

#[derive(Clone)]
pub struct Tokio(pub tokio::runtime::Handle);

impl Tokio {
    pub fn start(workers: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let runtime: &'static _ = Box::leak(Box::new(runtime.expect("threads can be started")));
        Self(runtime.handle().clone())
    }
}

impl Runtime for Tokio {
    type Join<T: Send + 'static> = Unwrap<tokio::task::JoinHandle<T>>;

    fn spawn<F>(&self, future: F) -> Self::Join<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Unwrap(self.0.spawn(future))
    }

    fn detach<T: Send + 'static>(join: Self::Join<T>) {
        drop(join);
    }

    fn timeout<F>(after: Duration, future: F) -> Option<impl Future<Output = Option<F::Output>> + Send>
    where
        F: Future<Output: Send> + Send,
    {
        Some(async move { tokio::time::timeout(after, future).await.ok() })
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        tokio::task::yield_now()
    }
}

/// async-executor's `Executor`, which can be dropped and therefore keeps a list of its tasks.
#[derive(Clone)]
pub struct Smol(Arc<async_executor::Executor<'static>>);

impl Smol {
    pub fn start(workers: usize) -> Self {
        let executor = Arc::new(async_executor::Executor::new());
        for _ in 0..workers {
            let executor = Arc::clone(&executor);
            std::thread::spawn(move || {
                futures_lite::future::block_on(executor.run(std::future::pending::<()>()));
            });
        }
        Self(executor)
    }
}

impl Runtime for Smol {
    type Join<T: Send + 'static> = async_executor::Task<T>;

    fn spawn<F>(&self, future: F) -> Self::Join<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.spawn(future)
    }

    fn detach<T: Send + 'static>(join: Self::Join<T>) {
        join.detach();
    }

    fn timeout<F>(_: Duration, _: F) -> Option<impl Future<Output = Option<F::Output>> + Send>
    where
        F: Future<Output: Send> + Send,
    {
        None::<std::future::Ready<_>>
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        futures_lite::future::yield_now()
    }
}

/// async-executor's `StaticExecutor` (feature `static`), which is never dropped.
#[derive(Clone)]
pub struct SmolStatic(&'static async_executor::StaticExecutor);

impl SmolStatic {
    pub fn start(workers: usize) -> Self {
        let executor: &'static _ = Box::leak(Box::new(async_executor::StaticExecutor::new()));
        for _ in 0..workers {
            std::thread::spawn(move || {
                futures_lite::future::block_on(executor.run(std::future::pending::<()>()));
            });
        }
        Self(executor)
    }
}

impl Runtime for SmolStatic {
    type Join<T: Send + 'static> = async_executor::Task<T>;

    fn spawn<F>(&self, future: F) -> Self::Join<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.spawn(future)
    }

    fn detach<T: Send + 'static>(join: Self::Join<T>) {
        join.detach();
    }

    fn timeout<F>(_: Duration, _: F) -> Option<impl Future<Output = Option<F::Output>> + Send>
    where
        F: Future<Output: Send> + Send,
    {
        None::<std::future::Ready<_>>
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        futures_lite::future::yield_now()
    }
}
