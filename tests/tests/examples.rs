//! The examples of `docs/examples`, as they are: their events are sent, and what is rejected and what is
//! stored is what their files say.

use serde_json::{Map, Value};
use sluice_tests::{Deployment, Shape};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples")
}

fn read(example: &Path, name: &str) -> String {
    let path = example.join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each line's place in the file, its dataset (the example's name where it names none) and its event.
fn events(example: &Path) -> BTreeMap<String, Vec<(usize, Value)>> {
    let name = example
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let mut datasets: BTreeMap<String, Vec<(usize, Value)>> = BTreeMap::new();
    for (at, line) in read(example, "events.ndjson").lines().enumerate() {
        let mut event: Map<String, Value> = serde_json::from_str(line).expect("an event");
        let dataset = event.remove("dataset");
        let dataset = dataset.map_or_else(
            || name.to_owned(),
            |dataset| dataset.as_str().expect("text").to_owned(),
        );
        datasets
            .entry(dataset)
            .or_default()
            .push((at, Value::Object(event)));
    }
    datasets
}

/// Sends an example's events and lists what was rejected: place, field, code.
async fn send(deployment: &Deployment, example: &Path) -> String {
    let mut rejected = Vec::new();
    for (dataset, events) in events(example) {
        let body = Value::from(events.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>());
        let path = format!("/v1/events/{dataset}");
        let answer = deployment.tenant(0).post(&path, body.to_string()).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 202, "{dataset}: {}", answer.text());
        for error in answer.json()["errors"].as_array().expect("errors") {
            let index = usize::try_from(error["index"].as_u64().expect("a number")).expect("small");
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            rejected.push((events[index].0, text("field"), text("code")));
        }
    }
    rejected.sort();
    let line = |(at, field, code): (usize, String, String)| format!("{at}\t{field}\t{code}\n");
    rejected.into_iter().map(line).collect()
}

async fn holds(example: &Path) {
    let deployment = Deployment::start_with(Shape::AllInOne, &read(example, "sluice.yaml")).await;
    let place = example.display();
    assert_eq!(
        send(&deployment, example).await,
        read(example, "rejected.tsv"),
        "{place}"
    );
    let (sql, expected) = (read(example, "rows.sql"), read(example, "rows.tsv"));
    let sql = format!("{} FORMAT TSV", sql.trim());
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let found = deployment.clickhouse().query(&sql).await;
        if found.as_deref() == Ok(expected.trim_end_matches('\n')) {
            return;
        }
        assert!(
            Instant::now() < until,
            "{place}: {found:?}, not {expected:?}\n{}",
            deployment.last_words()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_its_files_say() {
    let entries = std::fs::read_dir(folder()).expect("the examples");
    let examples: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        holds(&example).await;
    }
}
