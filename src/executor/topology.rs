//! CPUs: how many workers to run, and where.

use std::sync::Once;

/// Workers to run unless told otherwise: one for each CPU.
pub(crate) fn default_workers() -> usize {
    available_cpus().clamp(1, super::park::MAX_WORKERS)
}

/// The CPUs of the process's affinity mask, less what a cgroup quota takes away.
pub(crate) fn available_cpus() -> usize {
    num_cpus::get()
}

/// The CPU for each of `workers`: none where there are more workers than CPUs (two on one CPU would fight), where a quota
/// allows less than the mask (a pinned worker could not move to a CPU with time left, and every container would pile onto
/// the first ones), or where the mask can not be read.
pub(crate) fn plan(workers: usize) -> Vec<Option<core_affinity::CoreId>> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if workers > allowed.len() || num_cpus::get() < allowed.len() {
        return vec![None; workers];
    }
    allowed.into_iter().map(Some).take(workers).collect()
}

/// Pins the calling thread. Where the system refuses, the worker runs unpinned and the process is told once.
pub(crate) fn pin(core: core_affinity::CoreId) {
    static WARNED: Once = Once::new();
    if !core_affinity::set_for_current(core) {
        WARNED.call_once(|| {
            tracing::warn!(cpu = core.id, "pinning a worker was refused; workers run unpinned");
        });
    }
}
