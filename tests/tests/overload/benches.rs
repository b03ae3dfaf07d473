//! The benches of overload in short forms. The verdict of each is its exit code; the bounds that are figures of a
//! machine are wide open, because other tests run beside them.

use serde_json::Value;
use sluice_tests::service;
use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::process::Command;

/// Where a bench keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Disk,
    /// For one that is about sharing, and not about a disk that stands still for seconds now and then.
    Memory,
    Nowhere,
}

/// What it prints, once it has ended well.
async fn bench(args: &str, place: Place) -> String {
    let memory = Path::new("/dev/shm");
    let dir = if place == Place::Memory && memory.is_dir() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    };
    let dir = dir.expect("a directory");
    let mut command = Command::new(service::executable("sluice-bench"));
    command
        .args(args.split(' '))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if place != Place::Nowhere {
        command.arg("--dir").arg(dir.path());
    }
    if let Ok(ingestctl::clickhouse::Engine::Library(library)) = service::places().locate() {
        command.env(ingestctl::clickhouse::LIBRARY_VARIABLE, library);
    }
    let output = command.output().await.expect("it ran");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{told}");
    assert!(
        output.status.success(),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    told
}

/// How much could be offered, how much of the peak was served, and how soon nothing was refused any more are left
/// open: the peak is measured in one moment, and the rest in others. What is not: each request has an answer, a 503 says when to come again, memory stays within its budget,
/// the log drains, each acknowledged event is there once.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_can_be_taken_is_answered_within_the_memory_budget_and_drains() {
    let args = "overload --peak-seconds 6 --seconds 8 --after-seconds 4 --clients 400 --offered 0 --goodput 0 \
                --refusals 60 --drain 240 --output json";
    let told = bench(args, Place::Disk).await;
    let report: Value = serde_json::from_str(&told).expect("JSON");
    assert!(report["storming"]["answers"]["503"].as_u64() > Some(0), "{told}");
}

/// It fails where anything of a quiet tenant is refused; how much slower they get is left open.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_tenant_at_fifty_times_its_quota_nothing_of_quiet_ones_is_refused() {
    let told = bench(
        "neighbour --seconds 4 --rounds 1 --ratio 100 --output json",
        Place::Memory,
    )
    .await;
    let report: Value = serde_json::from_str(&told).expect("JSON");
    assert!(report["noisy"]["over_quota"].as_f64() > Some(0.0), "{told}");
    assert_eq!(report["tenants"].as_array().map(Vec::len), Some(7), "{told}");
}

/// It fails where a refusal had the disk write anything, or costs more than it may: ten times the goal here.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_writes_nothing_to_the_disk_and_costs_little() {
    bench("refusal --requests 4000 --most-us 1000", Place::Nowhere).await;
}
