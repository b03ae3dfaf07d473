//! `docs/performance.md`, made anew: every goal with its figure on this machine, in one run beside ClickHouse fed
//! directly, and plots.
//!
//! Everything is measured in turn, round after round, so that a machine that gets slower meanwhile is slower for all; the
//! middle of the rounds is shown. What was measured is kept as JSON beside the page, which can be written again from it.

mod goals;
mod machine;
mod measure;
mod page;
mod plot;
mod storm;

use clap::Args;
use measure::Measured;
use sluice_common::process::Failure;
use std::path::PathBuf;

/// What was measured, beside the page.
const KEPT: &str = "performance.json";

#[derive(Debug, Clone, Args)]
pub struct PerformanceArgs {
    /// How long the main load is held; others take a sixth of it.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(6..=3_600))]
    seconds: u64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long the same events are sent again and again, to see whether memory stays flat.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(6..=36_000))]
    repeat_seconds: u64,
    /// Where the page goes; plots go to a folder of its name beside it.
    #[arg(long, default_value = "docs/performance.md")]
    page: PathBuf,
    /// Measures nothing: writes the page from what was measured before.
    #[arg(long)]
    again: bool,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

impl PerformanceArgs {
    /// Measures and writes.
    ///
    /// # Errors
    /// What did not start or was not stored, or a page that cannot be written.
    pub async fn run(self) -> Result<(), Failure> {
        let folder = self.page.with_extension("");
        std::fs::create_dir_all(&folder)?;
        let kept = folder.join(KEPT);
        let measured: Measured = if self.again {
            serde_json::from_slice(&std::fs::read(&kept)?)?
        } else {
            let measured = measure::all(&self).await?;
            std::fs::write(&kept, serde_json::to_string_pretty(&measured)? + "\n")?;
            measured
        };
        for (name, picture) in page::pictures(&measured) {
            std::fs::write(folder.join(format!("{name}.svg")), picture.svg()?)?;
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        std::fs::write(&self.page, page::text(&measured, &name))?;
        eprintln!("{} is written", self.page.display());
        Ok(())
    }
}
