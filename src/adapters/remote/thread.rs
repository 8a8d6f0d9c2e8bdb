//! The thread of a backend: it does all the I/O, on a runtime of its own. Workers hand it futures, and wait without blocking.

use std::future::Future;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::executor::discard_panic;

/// Ends when this is dropped, or by [`Thread::end`]: what it is doing then is dropped.
#[derive(Debug)]
pub(crate) struct Thread {
    runtime: Handle,
    /// Dropped, the thread ends.
    stay: Mutex<Option<oneshot::Sender<()>>>,
}

/// The thread has ended, or what it was to do has panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

impl Thread {
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stay, ended) = oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // An error is as good: the other side is gone.
            let _ = runtime.block_on(ended);
            // Not waiting for what blocks: resolving a name, for one.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, stay: Mutex::new(Some(stay)) })
    }

    /// Has the thread do this. Goes on if it is not waited for any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Gone> {
        joined(self.runtime.spawn(work)).await
    }

    /// As [`Thread::run`]; given up if it is not waited for any more.
    pub(crate) async fn run_while_awaited<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Gone> {
        struct Aborts<T>(JoinHandle<T>);
        impl<T> Drop for Aborts<T> {
            fn drop(&mut self) {
                self.0.abort();
            }
        }
        let mut task = Aborts(self.runtime.spawn(work));
        joined(&mut task.0).await
    }

    /// Has the thread do this, beside everything else, for as long as it lives.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// The thread ends soon.
    pub(crate) fn end(&self) {
        drop(self.stay.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

async fn joined<T>(task: impl Future<Output = Result<T, tokio::task::JoinError>>) -> Result<T, Gone> {
    task.await.map_err(|error| {
        if let Ok(panic) = error.try_into_panic() {
            discard_panic(panic);
        }
        Gone
    })
}
