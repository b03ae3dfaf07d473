//! `sluice-bench overload`, in a process of its own: it keeps its threads to some of the processors.

use crate::overload::Memory;
use serde::{Deserialize, Serialize};
use sluice_common::process::Failure;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// What it is shown for; whether that is as it must be is for the page.
const SHOW_ALL: [&str; 8] = [
    "--offered",
    "0",
    "--goodput",
    "0",
    "--refusals",
    "3600",
    "--drain",
    "3600",
];
/// Beside its phases: its start, and the log that becomes empty.
const AROUND: Duration = Duration::from_secs(900);

/// What the page tells of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storm {
    /// Events acknowledged a second without it.
    pub peak: f64,
    pub times: f64,
    pub goodput_of_peak: f64,
    pub memory: Vec<Memory>,
    pub memory_budget_mib: f64,
}

/// Three times what can be taken, for so many seconds.
///
/// # Errors
/// Where it failed, or was not understood.
pub async fn measured(seconds: u64, dir: &Path) -> Result<Storm, Failure> {
    eprintln!("overload");
    let asked = ["--seconds", "--peak-seconds"];
    let output = Command::new(std::env::current_exe()?)
        .args(["overload", "--output", "json"])
        .args(SHOW_ALL)
        .args(
            asked
                .iter()
                .flat_map(|name| [(*name).to_owned(), seconds.to_string()]),
        )
        .arg("--dir")
        .arg(dir)
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = timeout(AROUND + Duration::from_secs(seconds * 2), output).await??;
    if !output.status.success() {
        return Err(Failure::new(format!("the overload: {}", output.status)));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
