//! What the figures were measured on.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Facts that a reader needs to judge figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    /// The type of the file system that the data is on.
    pub file_system: String,
    pub profile: String,
}

impl Machine {
    /// Of this machine; what it does not tell is empty.
    #[must_use]
    pub fn here(dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = value_of(&read("/proc/cpuinfo"), "model name");
        let memory_kib: f64 = value_of(&read("/proc/meminfo"), "MemTotal")
            .split(' ')
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or_default();
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&read("/proc/mounts"), dir),
            profile: if cfg!(debug_assertions) {
                "with debug assertions".into()
            } else {
                "release".into()
            },
        }
    }
}

fn value_of(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim());
    value.unwrap_or_default().to_owned()
}

/// The type of the mount that `dir` is on: the one with the longest path.
fn file_system(mounts: &str, dir: &Path) -> String {
    let Ok(dir) = dir.canonicalize() else {
        return String::new();
    };
    let found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        dir.starts_with(at).then_some((at.len(), kind))
    });
    found.max().map(|(_, kind)| kind.to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_is_nearest_tells_the_file_system() {
        let mounts = "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/")), "ext4");
        assert_eq!(file_system(mounts, Path::new("/proc/self")), "proc");
        assert_eq!(
            value_of("model name\t: A CPU @ 2 GHz\n", "model name"),
            "A CPU @ 2 GHz"
        );
    }
}
