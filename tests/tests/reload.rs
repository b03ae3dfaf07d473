//! The config changed again and again under load, in both shapes.
//!
//! Config K gives every event `gen: K` and, where K is even, `extra: "vK"`; clients send neither. So each row
//! says which config it was read under, and that must have been in force between its sending and its answer.

use serde_json::Value;
use sluice_tests::{Client, Deployment, Part, Shape, eventually};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const RELOADS: u32 = 200;
const SENDERS: usize = 3;
const EVENTS: usize = 4;
const DEADLINE: Duration = Duration::from_secs(30);

/// What changes with each config: schema, batch, window, tenants' datasets.
fn config(number: u32) -> String {
    let extra = if number.is_multiple_of(2) {
        format!("      - {{name: extra, type: string, default: \"v{number}\"}}\n")
    } else {
        String::new()
    };
    format!(
        "datasets:\n  - name: load\n    fields:\n      - {{name: event_id, type: string, required: true}}\n      \
         - {{name: gen, type: uint32, default: {number}}}\n{extra}    dedup: {{key: [event_id], window: {}h}}\n    \
         batch: {{max_age: {}ms}}\n",
        1 + number % 24,
        50 + number
    )
}

/// Invalid in one of several ways; the number is in what is said of it.
fn broken(number: u32) -> String {
    match number % 4 {
        0 => format!("{}broken_{number}: 1\n", config(number)),
        1 => config(number).replace("type: uint32", &format!("type: broken_{number}")),
        2 => config(number).replace("key: [event_id]", &format!("key: [broken_{number}]")),
        _ => format!("datasets: [\n# broken_{number}\n"),
    }
}

/// One event that was acknowledged, and which configs may have been in force meanwhile.
struct Sent {
    id: String,
    lowest: u32,
    highest: u32,
}

#[derive(Default)]
struct Shared {
    /// In force everywhere.
    confirmed: AtomicU32,
    /// Written to the file.
    written: AtomicU32,
    stop: AtomicBool,
}

async fn send(client: Client, sender: usize, shared: Arc<Shared>) -> Vec<Sent> {
    let mut sent = Vec::new();
    let mut request = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        let ids: Vec<String> = (0..EVENTS).map(|n| format!("{sender}-{request}-{n}")).collect();
        let body: Vec<String> = ids
            .iter()
            .map(|id| format!("{{\"event_id\":\"{id}\"}}"))
            .collect();
        let lowest = shared.confirmed.load(Ordering::SeqCst);
        let answer = client
            .post("/v1/events/load", body.join("\n"))
            .await
            .expect("an answer");
        let highest = shared.written.load(Ordering::SeqCst);
        assert_eq!(answer.status, 202, "no request may fail: {}", answer.text());
        assert_eq!(answer.json()["accepted"], EVENTS, "{}", answer.text());
        sent.extend(ids.into_iter().map(|id| Sent { id, lowest, highest }));
        request += 1;
    }
    sent
}

async fn change(deployment: &Deployment, number: u32, shared: &Shared) {
    if number.is_multiple_of(3) {
        deployment.rewrite(&broken(number));
        for part in deployment.followers() {
            deployment.hang_up(*part);
        }
        for part in deployment.followers() {
            eventually("the broken config is refused", DEADLINE, async || {
                let state = deployment.config_state(*part).await;
                let error = state["last_error"].as_str()?.to_owned();
                assert!(error.contains(".yaml:"), "it names a line: {error}");
                // What is cut off in the middle has no number of its own.
                (number % 4 == 3 || error.contains(&format!("broken_{number}"))).then_some(())
            })
            .await;
        }
        return;
    }
    shared.written.store(number, Ordering::SeqCst);
    deployment.reload(&config(number)).await;
    shared.confirmed.store(number, Ordering::SeqCst);
}

async fn reloads_under_load(shape: Shape) {
    let deployment = Deployment::start_with(shape, &config(0)).await;
    let shared = Arc::new(Shared::default());
    let senders: Vec<_> = (0..SENDERS)
        .map(|n| tokio::spawn(send(deployment.tenant(n), n, Arc::clone(&shared))))
        .collect();
    for number in 1..=RELOADS {
        change(&deployment, number, &shared).await;
    }
    shared.stop.store(true, Ordering::SeqCst);
    let mut sent = Vec::new();
    for sender in senders {
        sent.extend(sender.await.expect("no request failed"));
    }
    check_rows(&deployment, &sent).await;
    check_counts(&deployment).await;
}

async fn check_rows(deployment: &Deployment, sent: &[Sent]) {
    let clickhouse = deployment.clickhouse();
    eventually("all rows are there", DEADLINE, async || {
        let count = clickhouse
            .query("SELECT count() FROM telemetry.load")
            .await
            .ok()?;
        (count == sent.len().to_string()).then_some(())
    })
    .await;
    let rows = clickhouse
        .query("SELECT event_id, gen, extra FROM telemetry.load FORMAT JSONCompactEachRow")
        .await
        .expect("rows");
    let mut found: HashMap<String, (u32, String)> = HashMap::new();
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let text = |at: usize| row[at].as_str().expect("text").to_owned();
        let generation = u32::try_from(row[1].as_u64().expect("a number")).expect("small");
        assert!(
            found.insert(text(0), (generation, text(2))).is_none(),
            "twice: {line}"
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    for one in sent {
        let (generation, extra) = found.get(&one.id).unwrap_or_else(|| panic!("{} is lost", one.id));
        assert!(
            (one.lowest..=one.highest).contains(generation),
            "{}: read under config {generation}, in force were {} to {}",
            one.id,
            one.lowest,
            one.highest
        );
        assert!(
            generation % 3 != 0 || *generation == 0,
            "{generation} was refused"
        );
        let expected = if generation.is_multiple_of(2) {
            format!("v{generation}")
        } else {
            String::new()
        };
        assert_eq!(*extra, expected, "{}: not of one config", one.id);
        seen.insert(*generation);
    }
    assert!(seen.len() > 20, "many configs were in force under load: {seen:?}");
}

async fn check_counts(deployment: &Deployment) {
    let refused = RELOADS / 3;
    for part in deployment.followers() {
        let count = async |outcome: &str| {
            let label = format!("outcome=\"{outcome}\"");
            deployment
                .metric(*part, "sluice_config_reloads_total", &label)
                .await
        };
        assert!(
            (count("applied").await - f64::from(RELOADS - refused)).abs() < 0.5,
            "{part:?}"
        );
        assert!(count("refused").await >= f64::from(refused), "{part:?}");
        assert!(
            deployment
                .metric(*part, "sluice_config_restart_pending", "")
                .await
                < 0.5
        );
    }
    let kept = std::fs::read_dir(deployment.data().join("config-history")).expect("kept");
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().ends_with(".yaml")
    });
    assert_eq!(kept.count(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_reloads_under_load_fail_no_request_and_lose_no_row_in_one_process() {
    reloads_under_load(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_reloads_under_load_fail_no_request_and_lose_no_row_in_three_processes() {
    reloads_under_load(Shape::ThreeProcesses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_the_edge_knows_first_is_never_answered_404() {
    let deployment = Deployment::start_with(Shape::ThreeProcesses, &config(0)).await;
    let named = |name: &str| format!("  - name: {name}\n    fields: [{{name: x, type: string}}]\n");
    let hash = deployment.rewrite(&format!("{}{}", config(0), named("fresh")));
    // The others look by themselves, within a second and a half.
    deployment.hang_up(Part::Edge);
    eventually("the edge has it", DEADLINE, async || {
        (deployment.config_state(Part::Edge).await["sha256"] == hash).then_some(())
    })
    .await;
    let answer = deployment
        .tenant(0)
        .post("/v1/events/fresh", "{\"x\":\"1\"}")
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    eventually("its table was made and written", DEADLINE, async || {
        let rows = deployment
            .clickhouse()
            .query("SELECT x FROM telemetry.fresh")
            .await
            .ok()?;
        (rows == "1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_at_start_only_is_said_to_wait() {
    let deployment = Deployment::start_with(Shape::AllInOne, &config(0)).await;
    deployment
        .reload(&format!("{}dedup: {{memory: 64MiB}}\n", config(0)))
        .await;
    let state = deployment.config_state(Part::Up).await;
    assert_eq!(
        state["restart_pending"],
        serde_json::json!(["dedup.memory"]),
        "{state}"
    );
    assert!(
        deployment
            .metric(Part::Up, "sluice_config_restart_pending", "")
            .await
            > 0.5
    );
    assert!(
        deployment
            .last_words()
            .contains("takes effect at the next start: dedup.memory")
    );
    deployment.reload(&config(0)).await;
    assert!(
        deployment
            .metric(Part::Up, "sluice_config_restart_pending", "")
            .await
            < 0.5
    );
}
