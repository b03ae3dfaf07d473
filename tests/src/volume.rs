//! A volume of a size of its own, to be filled.

use crate::client::Client;
use crate::eventually;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::task::block_in_place;

/// What is left at first of a volume that ClickHouse writes to: half of what the embedded one keeps free, so that it
/// begins nothing more, though it removes old parts meanwhile, and can end what it has begun.
const TO_END: u64 = 32 << 20;
/// Until it has: the parts of inserts and merges under way.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// How many bytes it has reserved for them.
const UNDER_WAY: &str = "SELECT (SELECT sum(value) FROM system.metrics WHERE metric = 'DiskSpaceReservedForMerge') \
    + (SELECT count() FROM system.merges)";

/// Written at once by the ballast.
static PIECE: [u8; 64 << 10] = [7; 64 << 10];

/// A tmpfs mounted on a directory; dropping it unmounts it.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    /// Mounts one of so many bytes on `path`, which is made.
    ///
    /// # Panics
    /// Where this process may not mount: these tests need root, or `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn mount(path: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(path).expect("made");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .output()
            .expect("mount runs");
        assert!(
            output.status.success(),
            "a volume of its own cannot be mounted (run the tests as root, or with CAP_SYS_ADMIN): {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self {
            path: path.to_owned(),
        }
    }

    /// Takes all the room but `spare` bytes of it.
    ///
    /// # Panics
    /// Where the file cannot be made.
    #[must_use]
    pub fn fill(&self, spare: u64) -> Ballast {
        let ballast = Ballast(self.path.join("ballast"));
        self.take(&ballast, spare);
        ballast
    }

    /// Never below `spare`, not even for a moment.
    fn take(&self, ballast: &Ballast, spare: u64) {
        let file = File::options().create(true).append(true).open(&ballast.0);
        let mut file = file.expect("opened");
        loop {
            let room = self.free().saturating_sub(spare).min(PIECE.len() as u64) as usize;
            if room == 0 || file.write_all(&PIECE[..room]).is_err() {
                return;
            }
        }
    }

    /// The same of a volume that `clickhouse` writes to, with nothing of it half written at that moment.
    ///
    /// The embedded ClickHouse 26.7 does not look at whether its writes succeed: parts that are written at that moment
    /// are empty, and a merged one takes the place of rows that were stored, whoever had stored them. That is where the
    /// promise ends (docs/promise.md), and no test can hold Sluice to more.
    ///
    /// # Panics
    /// Where ClickHouse does not answer, or does not end what it has begun.
    pub async fn fill_around(&self, clickhouse: &Client, spare: u64) -> Ballast {
        let told =
            |sql: &'static str| eventually(sql, END_DEADLINE, async move || clickhouse.query(sql).await.ok());
        told("SYSTEM STOP MERGES").await;
        let ballast = block_in_place(|| self.fill(TO_END));
        eventually("nothing half written", END_DEADLINE, async || {
            let bytes = clickhouse.query(UNDER_WAY).await.ok()?;
            (bytes.trim() == "0").then_some(())
        })
        .await;
        block_in_place(|| self.take(&ballast, spare));
        told("SYSTEM START MERGES").await;
        ballast
    }

    /// Bytes that may still be written.
    ///
    /// # Panics
    /// Never for a mounted one.
    #[must_use]
    pub fn free(&self) -> u64 {
        let told = rustix::fs::statvfs(&self.path).expect("it is mounted");
        told.f_bavail * told.f_frsize
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: whoever still uses it keeps it until then.
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}

/// What fills a volume. Dropping it gives the room back.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}
