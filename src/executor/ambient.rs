//! What surrounds polls that need another runtime's context. A worker stays in it from poll to poll: to enter and to leave
//! writes counts that all workers share.

use std::any::Any;

use super::worker::Local;

/// A context that polls happen in; see `adapters`.
pub(crate) trait Ambient: Send + Sync {
    /// Whether `entered`, which some ambient's [`enter`](Ambient::enter) gave, is this one's context.
    fn is(&self, entered: &dyn Any) -> bool;

    /// Enters the context on this thread, until what this gives is dropped. What was entered later is left earlier.
    fn enter(&self) -> Box<dyn Any>;
}

/// Calls `code` within the context. A worker stays there afterwards: until it polls something that belongs elsewhere, or sleeps.
/// So not from within the code of another context, on a worker: that would go on in this one.
pub(crate) fn within<T>(ambient: Option<&dyn Ambient>, code: impl FnOnce() -> T) -> T {
    let stays = Local::with_any(|local| local.map(|local| local.stay_within(ambient)).is_some());
    let _entered = if stays { None } else { ambient.map(Ambient::enter) };
    code()
}
