//! One request of the oracle, and what its answer means to a client.

use super::ledger::Ledger;
use crate::client::{Answer, Client};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use rand::Rng;
use rand::distr::{Alphanumeric, SampleString as _};
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;
use tokio::task::block_in_place;

/// What a client may conclude (CONTRACT.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 202: each event is one row, or will be.
    Acked,
    /// 4xx, or 503 with `Sluice-Outcome: refused`: nothing of it was taken.
    Refused,
    /// Anything else: it may be stored, once.
    Unknown,
}

impl Outcome {
    /// Its word in the ledger's file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    Array,
    GzipLines,
}

/// The datasets that events may be of, each with its table; most deployments have the first alone. Those of the last have
/// no key: their requests do (`Idempotency-Key`), and are sent again byte by byte.
pub const DATASETS: [&str; 3] = ["events", "more_events", "keyless_events"];
const KEYLESS: usize = 2;
/// An event's number tells its dataset from this bit on.
const DATASET_BIT: u32 = 40;

/// These numbers as events of another dataset.
#[must_use]
pub fn of_dataset(dataset: usize, events: Vec<u64>) -> Vec<u64> {
    let dataset = (dataset as u64) << DATASET_BIT;
    events.into_iter().map(|event| event | dataset).collect()
}

/// The dataset of an event.
#[must_use]
pub fn dataset_of(event: u64) -> usize {
    (event >> DATASET_BIT) as usize
}

/// Whether an event may come in two requests, or twice in one, and is one event all the same.
#[must_use]
pub fn has_key(dataset: usize) -> bool {
    dataset != KEYLESS
}

/// A request that can be sent again, byte by byte.
#[derive(Debug, Clone)]
pub struct Batch {
    pub tenant: usize,
    /// The numbers of its events, each once, all of one dataset.
    pub events: Vec<u64>,
    /// Events in its body: a number may come more than once.
    pub in_body: usize,
    /// Header names and values.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Batch {
    /// A request of these events in a random form; some of them may be in it twice.
    pub fn new(tenant: usize, events: Vec<u64>, rng: &mut impl Rng) -> Self {
        let form = [Form::Lines, Form::Array, Form::GzipLines][rng.random_range(0..3)];
        let mut order = events.clone();
        let has_key = events.first().is_none_or(|event| has_key(dataset_of(*event)));
        if rng.random_bool(0.1) && has_key {
            order.extend(events.iter().filter(|_| rng.random_bool(0.2)));
        }
        let now = crate::now_ms();
        let lines: Vec<String> = order.iter().map(|event| line(tenant, *event, now)).collect();
        let (mut headers, body) = write(form, &lines);
        if !has_key {
            headers.push(("idempotency-key", Alphanumeric.sample_string(rng, 24)));
        }
        Self {
            tenant,
            events,
            in_body: order.len(),
            headers,
            body,
        }
    }

    /// A request of lines that no compressor makes smaller, each with so many bytes more.
    pub fn padded(tenant: usize, events: Vec<u64>, bytes: usize, rng: &mut impl Rng) -> Self {
        let now = crate::now_ms();
        let lines: Vec<String> = events
            .iter()
            .map(|event| {
                let padding = format!(",\"padding\":\"{}\"}}", Alphanumeric.sample_string(rng, bytes));
                let line = line(tenant, *event, now);
                line.strip_suffix('}').expect("an object").to_owned() + &padding
            })
            .collect();
        let (headers, body) = write(Form::Lines, &lines);
        Self {
            tenant,
            in_body: events.len(),
            events,
            headers,
            body,
        }
    }

    /// What `answer` says of it, and what is wrong with that answer, if anything is.
    #[must_use]
    pub fn read(&self, answer: &Result<Answer, String>) -> (Outcome, Option<String>) {
        let Ok(answer) = answer else {
            return (Outcome::Unknown, None);
        };
        let said = || {
            format!(
                "{} {}: {}",
                answer.status,
                answer.header("sluice-outcome"),
                answer.text()
            )
        };
        let told = (answer.status, answer.header("sluice-outcome"));
        match told {
            (StatusCode::ACCEPTED, _) => {
                let body = answer.json();
                let whole = body["accepted"] == self.in_body && body["rejected"] == 0;
                (
                    Outcome::Acked,
                    (!whole).then(|| format!("not every event was taken: {}", said())),
                )
            }
            (StatusCode::SERVICE_UNAVAILABLE, "refused") => (Outcome::Refused, (!waits(answer)).then(said)),
            (StatusCode::SERVICE_UNAVAILABLE, "unknown") => (Outcome::Unknown, (!waits(answer)).then(said)),
            (StatusCode::TOO_MANY_REQUESTS, _) => (Outcome::Refused, dishonest(answer).then(said)),
            (status, _) if status.is_client_error() => (
                Outcome::Refused,
                Some(format!("a good request was refused: {}", said())),
            ),
            _ => (
                Outcome::Unknown,
                Some(format!("no client should see this: {}", said())),
            ),
        }
    }
}

/// Whether a 429 is anything but a quota's that says when to come again.
fn dishonest(answer: &Answer) -> bool {
    !waits(answer) || answer.json()["code"] != "quota_exceeded" || answer.header("ratelimit").is_empty()
}

/// Whether it says when to come again.
fn waits(answer: &Answer) -> bool {
    let seconds = answer.header("retry-after").parse::<u64>();
    seconds.is_ok_and(|seconds| seconds >= 1)
}

/// How long a 429 asks to wait.
fn wait_of(answer: &Result<Answer, String>) -> Duration {
    let over = answer
        .as_ref()
        .ok()
        .filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS);
    let seconds = over.and_then(|answer| answer.header("retry-after").parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Sends `batch` once and notes it in `ledger`, before and after; what became of it, and how long a 429 asks to wait. Needs a runtime of several threads.
///
/// # Panics
/// Where the ledger cannot be written.
pub async fn attempt(client: &Client, ledger: &Ledger, batch: &Batch) -> (Outcome, Duration) {
    let mut client = client.clone();
    for (name, value) in &batch.headers {
        client = client.with(name, value);
    }
    let attempt =
        block_in_place(|| ledger.sent(batch.tenant, &batch.events, batch.in_body)).expect("a ledger");
    let dataset = batch.events.first().map_or(0, |event| dataset_of(*event));
    let path = format!("/v1/events/{}", DATASETS[dataset]);
    let answer = client.post(&path, batch.body.clone()).await;
    let (outcome, surprise) = batch.read(&answer);
    if let Some(surprise) = surprise {
        ledger.surprise(surprise);
    }
    block_in_place(|| ledger.ended(attempt, batch.tenant, &batch.events, outcome)).expect("a ledger");
    (outcome, wait_of(&answer))
}

/// The event, with its tenant and number a second time in its payload.
fn line(tenant: usize, event: u64, now_ms: u64) -> String {
    let body = json!({
        "event_id": format!("e{event}"), "timestamp": now_ms, "service": "oracle",
        "size_kib": event, "oracle_tenant": format!("t{tenant}"),
    });
    body.to_string()
}

fn write(form: Form, lines: &[String]) -> (Vec<(&'static str, String)>, Bytes) {
    let ndjson = ("content-type", "application/x-ndjson".to_owned());
    match form {
        Form::Lines => (vec![ndjson], lines.join("\n").into()),
        Form::Array => {
            let headers = vec![("content-type", "application/json".to_owned())];
            (headers, format!("[{}]", lines.join(",")).into())
        }
        Form::GzipLines => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder
                .write_all(lines.join("\n").as_bytes())
                .expect("a Vec takes everything");
            let packed = encoder.finish().expect("a Vec takes everything");
            (
                vec![ndjson, ("content-encoding", "gzip".to_owned())],
                packed.into(),
            )
        }
    }
}
