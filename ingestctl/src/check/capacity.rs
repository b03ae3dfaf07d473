//! Whether what the config allows fits into the memory and disk that it gives.

use super::finding::Findings;
use rustix::fs::statvfs;
use sluice_common::config::Loaded;
use sluice_common::limits::{LOG_RESERVE_MAX, LOG_RESERVE_MIN};
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
    let tenants = loaded.config.tenants.len().max(1) as u64;
    let keys = dedup.keys_per_tenant.0.saturating_mul(tenants);
    let need = keys.saturating_mul(DEDUP_BYTES_A_KEY);
    if need > dedup.max_bytes.0 {
        findings.degraded(
            "dedup",
            format!(
                "{tenants} tenants x dedup.keys_per_tenant x {DEDUP_BYTES_A_KEY} B is up to {} GiB, over dedup.max_bytes: \
                 lower keys_per_tenant to what you expect within the window",
                need >> 30
            ),
        );
    }
    let covered = dedup.memory.0.saturating_mul(10) / FILTER_BYTES_TEN_KEYS;
    findings.good(
        "dedup",
        format!(
            "dedup.memory keeps the filters of about {} M keys at hand; keys beyond them make decisions slower, not wrong",
            covered / 1_000_000
        ),
    );
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
        assert!(found("dedup: {keys_per_tenant: 100G}").contains("lower keys_per_tenant"));
        assert!(found("log: {max_bytes: 1000TiB}").contains("lower log.max_bytes"));
    }
}
