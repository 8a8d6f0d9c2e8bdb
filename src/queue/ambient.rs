//! What surrounds a poll of a command, for commands that need another runtime's context.

/// Runs a poll inside some context; see `adapters`.
pub(crate) trait Ambient: Send + Sync {
    /// Calls `poll` once, within the context.
    fn surround(&self, poll: &mut dyn FnMut());
}
