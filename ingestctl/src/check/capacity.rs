//! Whether what the config allows fits into the memory and disk that it gives.

use super::finding::Findings;
use rustix::fs::statvfs;
use sluice_common::config::{Config, Loaded, Tenant};
use sluice_common::limits::{LOG_RESERVE_MAX, LOG_RESERVE_MIN};
use std::fmt;
use std::path::{Path, PathBuf};

/// Upper estimate of what one remembered key costs on disk, filter included.
const DEDUP_BYTES_A_KEY: u64 = 40;
/// Filter bytes of ten keys: 1.13 a key is measured, and buckets are not all full.
const FILTER_BYTES_TEN_KEYS: u64 = 12;

/// R9: windows times quotas against what dedup may take; the log against its volume.
pub fn look(loaded: &Loaded, findings: &mut Findings) {
    dedup(loaded, findings);
    log(loaded, findings);
}

fn dedup(loaded: &Loaded, findings: &mut Findings) {
    let dedup = &loaded.config.dedup;
    let need = Need::of(&loaded.config);
    let (keys, bytes) = (need.keys(), need.keys().saturating_mul(DEDUP_BYTES_A_KEY));
    if bytes > dedup.max_bytes.0 {
        findings.degraded(
            "dedup",
            format!(
                "{need} may bring {} keys within the window, x {DEDUP_BYTES_A_KEY} B a key {} GiB, over dedup.max_bytes, \
                 {} GiB: once it is full, storing waits. Raise dedup.max_bytes, lower keys_per_tenant to at most {}, set \
                 lower quotas, or shorten the window",
                told(keys),
                gib(bytes),
                gib(dedup.max_bytes.0),
                told(need.cap_that_fits(dedup.max_bytes.0 / DEDUP_BYTES_A_KEY)),
            ),
        );
    }
    filters(dedup.memory.0, &need, findings);
}

/// Filters that are not in memory make decisions slower, not wrong. Where nobody has a quota nothing is known of how
/// many there will be.
fn filters(memory: u64, need: &Need, findings: &mut Findings) {
    let covered = memory.saturating_mul(10) / FILTER_BYTES_TEN_KEYS;
    findings.good(
        "dedup",
        format!(
            "dedup.memory keeps the filters of about {} keys at hand; keys beyond them make decisions slower, not wrong",
            told(covered)
        ),
    );
    let by_quota = need.by_quota();
    let bytes = by_quota.saturating_mul(FILTER_BYTES_TEN_KEYS) / 10;
    if bytes > memory {
        findings.degraded(
            "dedup",
            format!(
                "the quotas let {} keys come within the window ({}), and their filters take {} MiB, over dedup.memory, {} \
                 MiB: decisions beyond them read the disk, about ten times slower. Raise dedup.memory, or lower the \
                 quotas",
                told(by_quota),
                hours(need.window_ms),
                bytes >> 20,
                memory >> 20,
            ),
        );
    }
}

/// What all tenants together may bring within the widest window.
struct Need {
    window_ms: u64,
    keys_per_tenant: u64,
    /// What each tenant's quota lets through; None: it has none of events.
    quotas: Vec<Option<u64>>,
}

impl Need {
    fn of(config: &Config) -> Self {
        let window_ms = config.max_window_ms();
        let quota = |tenant: &Tenant| {
            // Of its datasets alone it would say too little: those that are not named have no limit.
            let rate = tenant.quota.events_per_second.filter(|_| !tenant.quota.dry_run)?;
            let events =
                u128::from(rate.0) * u128::from(window_ms.saturating_add(tenant.quota.burst.ms())) / 1_000;
            Some(u64::try_from(events).unwrap_or(u64::MAX))
        };
        Self {
            window_ms,
            keys_per_tenant: config.dedup.keys_per_tenant.0,
            quotas: config.tenants.iter().map(quota).collect(),
        }
    }

    fn keys(&self) -> u64 {
        self.keys_where(self.keys_per_tenant)
    }

    /// The same with another `dedup.keys_per_tenant`.
    fn keys_where(&self, cap: u64) -> u64 {
        let each = self.quotas.iter().map(|quota| quota.unwrap_or(cap).min(cap));
        // Without a tenant in the config those of the tenants file come: one at least.
        let all = each.fold(0, u64::saturating_add);
        if self.quotas.is_empty() { cap } else { all }
    }

    fn by_quota(&self) -> u64 {
        let each = self
            .quotas
            .iter()
            .flatten()
            .map(|quota| (*quota).min(self.keys_per_tenant));
        each.fold(0, u64::saturating_add)
    }

    /// The highest `dedup.keys_per_tenant` with which all tenants bring at most `keys`.
    fn cap_that_fits(&self, keys: u64) -> u64 {
        let (mut least, mut most) = (0, keys);
        while least < most {
            let cap = least + (most - least).div_ceil(2);
            if self.keys_where(cap) <= keys {
                least = cap;
            } else {
                most = cap - 1;
            }
        }
        least
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limited = self.quotas.iter().flatten().count();
        let free = self.quotas.len().max(1) - limited;
        let (window, cap) = (hours(self.window_ms), told(self.keys_per_tenant));
        match (limited, free) {
            (0, free) => write!(
                f,
                "{free} tenants without a quota of events x dedup.keys_per_tenant, {cap},"
            ),
            (limited, 0) => write!(
                f,
                "{limited} tenants' events_per_second x the widest window, {window},"
            ),
            (limited, free) => write!(
                f,
                "{limited} tenants' events_per_second x the widest window, {window}, and {free} tenants without a quota of \
                 events x dedup.keys_per_tenant, {cap},"
            ),
        }
    }
}

/// A number as people read it.
fn told(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{} k", number / 1_000),
        _ => format!("{} M", number / 1_000_000),
    }
}

/// With one decimal.
fn gib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 30;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn hours(ms: u64) -> String {
    match ms / 60_000 {
        minutes @ 0..120 => format!("{minutes} min"),
        minutes => format!("{} h", minutes / 60),
    }
}

fn log(loaded: &Loaded, findings: &mut Findings) {
    let (log, dir) = (&loaded.config.log, existing(&loaded.log_dir()));
    let Ok(volume) = statvfs(&dir) else {
        return findings.degraded(
            "log",
            format!("the volume of {} cannot be looked at", dir.display()),
        );
    };
    let size = volume.f_blocks.saturating_mul(volume.f_frsize);
    let reserve = log
        .reserve
        .map_or((size / 20).clamp(LOG_RESERVE_MIN, LOG_RESERVE_MAX), |reserve| {
            reserve.0
        });
    let need = log.max_bytes.0.saturating_add(reserve);
    if need > size {
        findings.degraded(
            "log",
            format!(
                "log.max_bytes and its reserve are {} GiB, and the volume of {} has {} GiB: it fills before the limit \
                 counts; lower log.max_bytes, or give the log a larger volume",
                need >> 30,
                dir.display(),
                size >> 30
            ),
        );
    }
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    if free < need {
        findings.good(
            "log",
            format!(
                "{} GiB are free on the volume of {} now: stored records may be deleted before log.retain is over",
                free >> 30,
                dir.display()
            ),
        );
    }
    let window = loaded.config.max_window_ms();
    if log.retain.ms() < window {
        findings.good(
            "log",
            format!(
                "log.retain is shorter than the widest dedup window ({} h): a lost dedup state could not be rebuilt from \
                 the log",
                window / 3_600_000
            ),
        );
    }
}

/// The directory, or the nearest one above it that is there.
fn existing(dir: &Path) -> PathBuf {
    let found = dir.ancestors().find(|dir| dir.is_dir());
    found
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    fn found(yaml: &str) -> String {
        let loaded = Loaded::parse(yaml, Path::new("x"), Path::new("/")).expect("valid");
        let mut findings = Findings::default();
        look(&loaded, &mut findings);
        let degraded = findings.all().iter().filter(|one| one.level == Level::Degraded);
        degraded.map(|one| one.message.clone()).collect()
    }

    #[test]
    fn quotas_and_limits_that_do_not_fit_are_told() {
        assert_eq!(
            found("dedup: {keys_per_tenant: 1M}\nlog: {max_bytes: 256MiB}"),
            ""
        );
        let far = found("dedup: {keys_per_tenant: 100G}");
        assert!(far.contains("lower keys_per_tenant to at most 2684 M"), "{far}");
        assert!(found("log: {max_bytes: 1000TiB}").contains("lower log.max_bytes"));
    }

    fn tenants(quotas: &[&str]) -> String {
        let one = |(n, quota): (usize, &&str)| {
            format!("- {{id: t{n}, keys: [{{sha256: {n:064x}}}], quota: {{{quota}}}}}\n")
        };
        let tenants: String = quotas.iter().enumerate().map(one).collect();
        let day = "datasets:\n- {name: a, fields: [{name: x, type: string, required: true}], dedup: {key: [x], window: 24h}}\n";
        format!("log: {{max_bytes: 256MiB}}\ntenants:\n{tenants}{day}")
    }

    #[test]
    fn quotas_times_the_window_are_held_against_the_disk_and_the_memory_of_dedup() {
        let dedup = "dedup: {max_bytes: 10GiB, memory: 256MiB, keys_per_tenant: 200M}\n";
        let told = |quotas: &[&str]| found(&(dedup.to_owned() + &tenants(quotas)));
        // 500 a second are 43 M keys a day: 1.7 GB of state, 52 MB of filters.
        assert_eq!(told(&["events_per_second: 500"; 2]), "");
        let memory = told(&["events_per_second: 1500"; 2]);
        assert!(
            memory.contains("let 259 M keys come within the window (24 h)"),
            "{memory}"
        );
        assert!(memory.contains("296 MiB, over dedup.memory, 256 MiB"), "{memory}");
        assert!(!memory.contains("dedup.max_bytes"), "{memory}");
        let disk = told(&["events_per_second: 1500"; 4]);
        assert!(
            disk.contains("4 tenants' events_per_second x the widest window, 24 h, may bring 518 M keys"),
            "{disk}"
        );
        assert!(
            disk.contains("x 40 B a key 19.3 GiB, over dedup.max_bytes, 10.0 GiB"),
            "{disk}"
        );
        assert!(disk.contains("lower keys_per_tenant to at most 67 M"), "{disk}");
        // Where there is no quota, or it is only counted, the cap counts.
        let mixed = told(&[
            "events_per_second: 500",
            "",
            "events_per_second: 500, dry_run: true",
        ]);
        assert!(
            mixed.contains("2 tenants without a quota of events x dedup.keys_per_tenant, 200 M"),
            "{mixed}"
        );
        assert!(mixed.contains("443 M keys"), "{mixed}");
    }
}
