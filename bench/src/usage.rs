//! What processes use, from `/proc`: CPU time of a process and of all below it, and their peak memory.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// `/proc` counts in hundredths of a second on every Linux (USER_HZ).
const MS_PER_TICK: u64 = 10;

/// Use so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time, ended and waited-for children included.
    pub cpu: Duration,
    /// The sum of the processes' own peaks.
    pub peak_rss_bytes: u64,
}

/// Of `root` and its descendants; zeros where it is gone.
#[must_use]
pub fn of_tree(root: u32) -> Usage {
    let stats: HashMap<u32, Stat> = pids().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let below = stats.iter().filter(|(pid, _)| is_below(**pid, root, &stats));
    below.fold(Usage::default(), |sum, (pid, stat)| Usage {
        cpu: sum.cpu + stat.cpu + stat.children,
        peak_rss_bytes: sum.peak_rss_bytes + bytes(*pid, "VmHWM:"),
    })
}

/// Of this process, without its children.
#[must_use]
pub fn of_self() -> Usage {
    let pid = std::process::id();
    Usage {
        cpu: stat(pid).map(|stat| stat.cpu).unwrap_or_default(),
        peak_rss_bytes: bytes(pid, "VmHWM:"),
    }
}

/// Bytes that one process holds now, without its children: cheap enough to be asked while something is measured.
#[must_use]
pub fn rss_of(pid: u32) -> u64 {
    bytes(pid, "VmRSS:")
}

struct Stat {
    parent: u32,
    cpu: Duration,
    children: Duration,
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_below(mut pid: u32, root: u32, stats: &HashMap<u32, Stat>) -> bool {
    loop {
        if pid == root {
            return true;
        }
        match stats.get(&pid) {
            Some(stat) if stat.parent != pid => pid = stat.parent,
            Some(_) | None => return false,
        }
    }
}

/// proc_pid_stat(5): the name in parentheses may hold anything, so fields are counted behind it.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let time = |ticks: u64| Duration::from_millis(ticks * MS_PER_TICK);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        cpu: time(ticks(11)? + ticks(12)?),
        children: time(ticks(13)? + ticks(14)?),
    })
}

fn bytes(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_counts_with_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let (alone, both) = (of_self(), of_tree(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(alone.peak_rss_bytes > 0 && both.peak_rss_bytes > alone.peak_rss_bytes);
        assert!(rss_of(std::process::id()) > 0);
        assert_eq!(of_tree(child.id()), Usage::default());
    }
}
