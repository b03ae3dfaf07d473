//! Row 28: starts on data that is not what it was.

use super::trial::Trial;
use sluice_tests::service::executable;
use sluice_tests::{Deployment, Part, Plan, Shape};
use std::path::Path;
use std::process::Command;

async fn start() -> Trial {
    // ClickHouse beside it, so that the data directory is Sluice's alone.
    let trial = Trial::start(Plan::new(Shape::ThreeProcesses)).await;
    trial.acked(0, 10).await;
    trial.until_rows(10).await;
    trial
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

fn stop(deployment: &mut Deployment) {
    let well = tokio::task::block_in_place(|| deployment.terminate(Part::Normalizer));
    assert!(well, "{}", deployment.last_words());
}

/// The normalizer must end; its words.
async fn refused(deployment: &mut Deployment) -> String {
    match deployment.bring_up(Part::Normalizer).await {
        Err(words) => words,
        // What only ClickHouse can tell is found out after the start.
        Ok(()) => {
            sluice_tests::eventually("its end", super::trial::SOON, async || {
                let words = deployment.last_words();
                words.contains("error: ").then_some(words)
            })
            .await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_restored_from_an_older_copy_refuses_to_go_on() {
    let mut trial = start().await;
    stop(&mut trial.deployment);
    let (data, old) = (trial.deployment.data(), trial.deployment.path().join("old"));
    copy(&data, &old);
    trial.deployment.bring_up(Part::Normalizer).await.expect("ready");
    trial.acked(0, 10).await;
    trial.until_rows(20).await;
    stop(&mut trial.deployment);
    std::fs::remove_dir_all(&data).expect("removed");
    copy(&old, &data);
    let words = refused(&mut trial.deployment).await;
    assert!(words.contains("progress went backwards"), "{words}");
    assert_eq!(trial.rows().await, Some(20), "nothing was written over it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_data_directory_is_another_log_whose_rows_are_all_stored() {
    let mut trial = start().await;
    stop(&mut trial.deployment);
    for name in ["log", "progress", "dedup", "parked"] {
        let path = trial.deployment.data().join(name);
        // Not each is there yet.
        std::fs::remove_dir_all(&path)
            .or_else(|_| std::fs::remove_file(&path))
            .ok();
    }
    trial.deployment.bring_up(Part::Normalizer).await.expect("ready");
    trial.acked(0, 10).await;
    trial.until_rows(20).await;
    trial.verdict().await;
}

/// Changes the log's manifest as somebody would who knows its layout: the checksum is right.
fn change_manifest(deployment: &Deployment, change: impl FnOnce(&mut [u8])) {
    let path = deployment.data().join("log/manifest");
    let mut bytes = std::fs::read(&path).expect("a manifest");
    change(&mut bytes);
    let checksum = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, bytes).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hash_secret_under_the_same_log_id_refuses() {
    let mut trial = start().await;
    stop(&mut trial.deployment);
    change_manifest(&trial.deployment, |bytes| bytes[32] ^= 1);
    let words = refused(&mut trial.deployment).await;
    assert!(words.contains("another hash secret"), "{words}");
    assert_eq!(trial.rows().await, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_refuses() {
    let mut trial = start().await;
    stop(&mut trial.deployment);
    change_manifest(&trial.deployment, |bytes| bytes[10] = 2);
    let words = refused(&mut trial.deployment).await;
    assert!(words.contains("2 partitions"), "{words}");
    assert_eq!(trial.rows().await, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_normalizer_on_the_same_data_directory_refuses_and_the_first_goes_on() {
    let mut trial = start().await;
    let text = std::fs::read_to_string(trial.deployment.config()).expect("a config");
    let line = text
        .lines()
        .find(|line| line.starts_with("normalizer:"))
        .expect("a line");
    let elsewhere = "normalizer: {listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", sink_writer: [\"http://127.0.0.1:9\"]}";
    let config = trial.deployment.path().join("second.yaml");
    std::fs::write(&config, text.replace(line, elsewhere)).expect("written");
    let output = Command::new("timeout")
        .arg("20")
        .arg(executable("sluice-normalizer"))
        .arg("--config")
        .arg(&config)
        .arg("--data-dir")
        .arg(trial.deployment.data())
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("in use by process") && words.contains("error: "),
        "{words}"
    );
    trial.acked(1, 10).await;
    trial.verdict().await;
}
