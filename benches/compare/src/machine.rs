//! What the numbers were taken on, and how busy it was. Linux only: elsewhere the fields are empty.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub memory_gib: f64,
    /// The file system of the place for temporary files, where stores are.
    #[serde(default)]
    pub stores_on: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Machine {
    pub fn this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
        Self {
            cpu: model.split(':').next_back().unwrap_or_default().trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            memory_gib: (meminfo("MemTotal:") as f64 / (1 << 30) as f64 * 10.0).round() / 10.0,
            stores_on: file_system(&std::env::temp_dir(), &read("/proc/mounts")),
        }
    }
}

/// Of that path, by what is mounted: the deepest place above it, and of those the last.
fn file_system(path: &Path, mounts: &str) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (Path::new(fields.next()?), fields.next()?);
        path.starts_with(at).then(|| (at.components().count(), kind))
    });
    mounts.max_by_key(|&(depth, _)| depth).map_or_else(String::new, |(_, kind)| kind.to_owned())
}

/// Bytes that can be had without swapping.
pub fn available_memory() -> u64 {
    meminfo("MemAvailable:")
}

fn meminfo(name: &str) -> u64 {
    let meminfo = read("/proc/meminfo");
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

pub fn load() -> [f64; 3] {
    let mut load = [0.0; 3];
    for (slot, value) in load.iter_mut().zip(read("/proc/loadavg").split(' ')) {
        *slot = value.parse().unwrap_or(0.0);
    }
    load
}

/// The commit of the checkout that this was built from, with `+` if tracked files differ from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    // What this instrument writes itself does not change what is measured.
    let generated =
        [":/", ":!/BENCHMARKS.md", ":!/README.md", ":!/benches/compare/charts", ":!/benches/compare/results.json"];
    let changed = git(&[&["status", "--porcelain", "--untracked-files=no", "--"], &generated[..]].concat());
    match changed {
        Some(changed) if changed.is_empty() => commit,
        _ => commit + "+",
    }
}

/// Of all threads of this process.
#[derive(Clone, Copy)]
pub struct Threads {
    pub count: usize,
    /// How often they have gone to sleep of their own accord: each is followed by a wake-up.
    pub sleeps: u64,
    /// Nanoseconds on a CPU.
    pub cpu_ns: u64,
}

impl Threads {
    pub fn now() -> Self {
        let mut all = Self { count: 0, sleeps: 0, cpu_ns: 0 };
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        // The thread that reads this is not counted: it sleeps between two looks.
        let own = fs::read_link("/proc/thread-self").ok();
        for task in tasks.filter(|task| own.as_ref().is_none_or(|own| own.file_name() != Some(&task.file_name()))) {
            let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            all.count += 1;
            all.sleeps += number(status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")));
            all.cpu_ns += number(schedstat.split(' ').next());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_is_that_of_the_deepest_mount() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /nowhere tmpfs rw 0 0\n/dev/b /nowhere/deep xfs rw 0 0\n";
        let of = |path: &str| file_system(Path::new(path), mounts);
        assert_eq!([of("/home/x"), of("/nowhere"), of("/nowhere/deep/er")], ["ext4", "tmpfs", "xfs"]);
        assert_eq!(file_system(Path::new("/x"), ""), "");
    }
}
