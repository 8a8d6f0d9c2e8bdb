//! The tokio shim: commands may use tokio's timers, sockets and clients while corelane's workers poll them.
//!
//! A runtime belongs to a queue, not to a worker: each poll happens within the runtime that was current when the queue was
//! made, so queues made in different runtimes share an executor, and the end of one runtime is felt by its own queues only.
//! A queue made outside of any runtime gets one that the process shares, with one thread, started by its first command.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use self_cell::self_cell;
use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};

use crate::executor::Ambient;

/// The tokio context for a queue made here and now.
pub(crate) fn ambient() -> Arc<dyn Ambient> {
    Arc::new(TokioContext { handle: Handle::try_current().ok() })
}

struct TokioContext {
    /// None outside of a runtime: use the shared one.
    handle: Option<Handle>,
}

self_cell! {
    /// A runtime that was entered.
    struct Entered {
        owner: Handle,
        #[covariant]
        dependent: EnterGuard,
    }
}

impl TokioContext {
    fn handle(&self) -> Option<&Handle> {
        self.handle.as_ref().or_else(|| shared_runtime())
    }
}

impl Ambient for TokioContext {
    fn is(&self, entered: &dyn Any) -> bool {
        match (entered.downcast_ref::<Entered>(), self.handle()) {
            (Some(entered), Some(handle)) => entered.borrow_owner().id() == handle.id(),
            (entered, handle) => entered.is_none() && handle.is_none(),
        }
    }

    fn enter(&self) -> Box<dyn Any> {
        match self.handle() {
            Some(handle) => Box::new(Entered::new(handle.clone(), Handle::enter)),
            None => Box::new(()),
        }
    }
}

/// The process's own runtime; none if the system refuses its thread, which the command then hears from tokio.
fn shared_runtime() -> Option<&'static Handle> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let built = Builder::new_multi_thread().worker_threads(1).thread_name("corelane-tokio").enable_all().build();
        built.inspect_err(|error| tracing::error!(%error, "no tokio runtime for commands")).ok()
    });
    runtime.as_ref().map(Runtime::handle)
}
