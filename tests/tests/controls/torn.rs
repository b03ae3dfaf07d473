//! A ClickHouse that dies by SIGKILL between its two steps of an insert, made by a tracer: the token is written to the
//! table's deduplication log, and the part's directory is not renamed yet, so that its rows are nowhere.

use super::{DEADLINE, Stand};
use sluice_common::failpoint::Safety;
use sluice_tests::eventually;
use sluice_tests::oracle::{drained, verdict::Verdict};
use std::fs::File;
use std::process::{Child, Command, Stdio};

/// A range sends rows and books at once, and the first of both to be renamed dies: so often it is hardly ever the books.
const KILLS: usize = 3;
const RENAMES: &str = "rename,renameat,renameat2";

/// The verdict, and how many tokens were given up.
pub async fn scenario(off: &[Safety]) -> (Verdict, f64) {
    let mut stand = Stand::start(off).await;
    for kill in 0..KILLS {
        drained(&stand.deployment).await;
        // Merges rename too, and lose nothing by it.
        stand.run("SYSTEM STOP MERGES").await;
        let mut tracer = traced(&stand, kill).await;
        stand.send().await;
        let ended = async || tracer.try_wait().expect("a child");
        eventually("a ClickHouse killed in a rename", DEADLINE, ended).await;
        let back = async || stand.deployment.clickhouse().query("SELECT 1").await.ok();
        eventually("ClickHouse back", DEADLINE, back).await;
    }
    stand.verdict_and_bumps().await
}

/// Has ClickHouse killed as it is about to rename anything: the kernel never does.
async fn traced(stand: &Stand, kill: usize) -> Child {
    let pid = stand.deployment.clickhouse_pid().expect("it runs");
    let told = stand.deployment.path().join(format!("strace-{kill}"));
    let tracer = Command::new("strace")
        .args(["--follow-forks", "--attach", &pid.as_raw_nonzero().to_string()])
        .args(["-e", &format!("trace={RENAMES}")])
        .args(["-e", &format!("inject={RENAMES}:signal=SIGKILL")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&told).expect("a file"))
        .spawn()
        .expect("strace is installed by `make setup`");
    let attached = async || {
        let said = std::fs::read_to_string(&told).ok()?;
        said.contains("attached").then_some(())
    };
    eventually("a tracer that is attached", DEADLINE, attached).await;
    tracer
}
