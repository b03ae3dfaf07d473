//! Starts that would lose or double events refuse, with exit code 1 and a message that says what to do.

use serde_json::json;
use sluice_tests::service::executable;
use sluice_tests::{Deployment, Part, Shape, eventually, now_ms};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Of a segment of the log, before its first record.
const SEGMENT_HEADER_BYTES: usize = 64;

/// A Sluice that has stored one event and was stopped.
async fn stopped() -> Deployment {
    let mut deployment = with_an_event().await;
    assert!(deployment.terminate(Part::Up), "{}", deployment.last_words());
    deployment
}

async fn with_an_event() -> Deployment {
    let deployment = Deployment::start(Shape::AllInOne).await;
    let event = json!({"event_id": "one", "timestamp": now_ms(), "service": "s"}).to_string();
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", event)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202);
    eventually("the row", Duration::from_secs(10), async || {
        let rows = deployment
            .clickhouse()
            .query("SELECT count() FROM telemetry.events")
            .await;
        (rows.as_deref() == Ok("1")).then_some(())
    })
    .await;
    deployment
}

/// `ingestctl up` on the deployment's data must end with 1; its words.
fn refused(deployment: &Deployment) -> String {
    // One that does not refuse would run for ever; `timeout` makes that exit code 124.
    let output = Command::new("timeout")
        .arg("20")
        .arg(executable("ingestctl"))
        .arg("up")
        .arg("--config")
        .arg(deployment.config())
        .arg("--data-dir")
        .arg(deployment.data())
        // Nobody answers there: the refusal must not need ClickHouse.
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--clickhouse-url",
            "http://127.0.0.1:9",
        ])
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    words
}

fn assert_says(words: &str, parts: &[&str]) {
    let last = words.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{words}");
    for part in parts {
        assert!(last.contains(part), "{part} is not in: {last}");
    }
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path)
        .or_else(|_| std::fs::remove_file(path))
        .expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_up_on_a_data_directory_in_use_refuses_and_the_first_goes_on() {
    let deployment = with_an_event().await;
    assert_says(&refused(&deployment), &["another `ingestctl up`", "--data-dir"]);
    let ready = deployment
        .admin(Part::Up)
        .get("/readyz")
        .await
        .expect("an answer");
    assert_eq!(ready.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_progress_file_refuses() {
    let deployment = stopped().await;
    remove(&deployment.data().join("progress"));
    assert_says(&refused(&deployment), &["progress is missing", "Restore it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_another_log_refuses() {
    let (deployment, other) = tokio::join!(stopped(), stopped());
    let progress = |one: &Deployment| one.data().join("progress");
    std::fs::copy(progress(&other), progress(&deployment)).expect("copied");
    assert_says(
        &refused(&deployment),
        &["belongs to log", "restore log, progress and dedup together"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_log_with_its_progress_kept_refuses() {
    let deployment = stopped().await;
    remove(&deployment.data().join("log"));
    assert_says(
        &refused(&deployment),
        &["acknowledged records are missing", "restore", "together"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_durable_record_refuses_and_flipped_back_it_goes_on() {
    let mut deployment = stopped().await;
    let log = std::fs::read_dir(deployment.data().join("log")).expect("a log");
    let segment = log
        .map(|file| file.expect("a file").path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"00000000000000000000."))
        })
        .expect("the first segment");
    let flip = || {
        let mut bytes = std::fs::read(&segment).expect("read");
        // In the first record, behind its head.
        bytes[SEGMENT_HEADER_BYTES + 100] ^= 4;
        std::fs::write(&segment, bytes).expect("written");
    };
    flip();
    let words = refused(&deployment);
    assert_says(&words, &["the log is damaged", "restore this file from a copy"]);
    flip();
    deployment.bring_up(Part::Up).await.expect("ready");
    let rows = deployment
        .clickhouse()
        .query("SELECT count() FROM telemetry.events")
        .await;
    assert_eq!(rows.as_deref(), Ok("1"));
}

/// Progress from before an event, restored under a log that has stored it: going on would store it twice.
#[tokio::test(flavor = "multi_thread")]
async fn progress_that_went_backwards_stops_the_partition() {
    let mut deployment = stopped().await;
    let progress = deployment.data().join("progress");
    let old = std::fs::read(&progress).expect("read");
    deployment.bring_up(Part::Up).await.expect("ready");
    let event = json!({"event_id": "two", "timestamp": now_ms(), "service": "s"}).to_string();
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", event)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202);
    eventually("the second row", Duration::from_secs(10), async || {
        let rows = deployment
            .clickhouse()
            .query("SELECT count() FROM telemetry.events")
            .await;
        (rows.as_deref() == Ok("2")).then_some(())
    })
    .await;
    assert!(deployment.terminate(Part::Up));
    std::fs::write(&progress, old).expect("written");
    // It needs ClickHouse to find out, so it may get ready before it ends.
    let words = match deployment.bring_up(Part::Up).await {
        Err(words) => words,
        Ok(()) => {
            eventually("its end", Duration::from_secs(20), async || {
                let words = deployment.last_words();
                words.contains("error: ").then_some(words)
            })
            .await
        }
    };
    assert!(words.contains("progress went backwards"), "{words}");
}
