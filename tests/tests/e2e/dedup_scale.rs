//! A million distinct events and 200,000 repeats of every kind end in exactly the rows that R7 says:
//! an event is dropped iff an earlier copy, kept or dropped, was appended less than the window before it.

use crate::in_process::InProcess;
use sluice_common::clock::{Clock as _, OffsetClock};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

/// The window of [`InProcess`], in minutes.
const WINDOW: u32 = 60;
const BODY_EVENTS: usize = 4_000;
const CONNECTIONS: usize = 6;
const DISTINCT: u32 = 1_000_000;

/// What R7 says, in minutes of the injected clock.
#[derive(Default)]
struct Model {
    /// Minute of a key's last copy, and its rows.
    keys: HashMap<u32, (u32, u32)>,
    now: u32,
    sent: u64,
}

impl Model {
    fn append(&mut self, key: u32) {
        self.sent += 1;
        let now = self.now;
        let (last, rows) = self.keys.entry(key).or_insert((0, 0));
        if *rows == 0 || now - *last >= WINDOW {
            *rows += 1;
        }
        *last = now;
    }

    fn rows(&self) -> u64 {
        self.keys.values().map(|(_, rows)| u64::from(*rows)).sum()
    }
}

struct Run {
    sluice: InProcess,
    clock: OffsetClock,
    model: Model,
}

impl Run {
    /// Steps the clock.
    fn minutes_pass(&mut self, minutes: u32) {
        self.clock.step(i64::from(minutes) * 60_000);
        self.model.now += minutes;
    }

    /// Sends `keys` over several connections, `BODY_EVENTS` a request; the order among them is free.
    async fn send(&mut self, keys: impl IntoIterator<Item = u32>) {
        let keys: Vec<u32> = keys.into_iter().collect();
        keys.iter().for_each(|key| self.model.append(*key));
        let timestamp = self.clock.now_ms();
        let bodies: Vec<String> = keys
            .chunks(BODY_EVENTS)
            .map(|keys| body(keys, timestamp))
            .collect();
        let bodies = Arc::new(bodies);
        let tasks = (0..CONNECTIONS).map(|connection| {
            let (client, bodies) = (self.sluice.client(), Arc::clone(&bodies));
            tokio::spawn(async move {
                let mut accepted = 0;
                for body in bodies.iter().skip(connection).step_by(CONNECTIONS) {
                    accepted += taken(&client, body).await;
                }
                accepted
            })
        });
        let mut accepted = 0;
        for task in tasks.collect::<Vec<_>>() {
            accepted += task.await.expect("sent");
        }
        assert_eq!(accepted, keys.len() as u64);
    }

    /// Sends the same body from all connections at once.
    async fn send_concurrently(&mut self, keys: Range<u32>) {
        let body = Arc::new(body(&keys.clone().collect::<Vec<_>>(), self.clock.now_ms()));
        let tasks = (0..CONNECTIONS).map(|_| {
            keys.clone().for_each(|key| self.model.append(key));
            let (client, body) = (self.sluice.client(), Arc::clone(&body));
            tokio::spawn(async move { taken(&client, &body).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            assert_eq!(task.await.expect("sent"), keys.len() as u64);
        }
    }

    /// Every key has the rows of the model, and no other key has any.
    async fn check(&self) {
        self.sluice.has_rows(self.model.rows()).await;
        let sql = "SELECT event_id, count() FROM telemetry.events GROUP BY event_id FORMAT TSV";
        let found = self.sluice.ask(sql).await;
        let mut wrong = Vec::new();
        for line in found.lines() {
            let (id, rows) = line.split_once('\t').expect("two columns");
            let key: u32 = id.parse().expect("a number");
            let expected = self.model.keys.get(&key).map(|(_, rows)| *rows);
            if expected != rows.parse().ok() {
                wrong.push((key, rows, expected));
            }
        }
        assert_eq!(wrong.first(), None, "{} keys are wrong", wrong.len());
        assert_eq!(found.lines().count(), self.model.keys.len());
    }
}

fn body(keys: &[u32], timestamp: u64) -> String {
    let mut body = String::with_capacity(keys.len() * 80);
    for key in keys {
        let event = format_args!(r#"{{"event_id":"{key}","timestamp":{timestamp},"service":"scale"}}"#);
        writeln!(body, "{event}").expect("written to memory");
    }
    body
}

/// The accepted events of a request that must be taken.
async fn taken(client: &sluice_tests::Client, body: &str) -> u64 {
    let answer = client
        .post("/v1/events/events", body.to_owned())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["accepted"].as_u64().expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_events_and_200000_repeats_are_exactly_the_rows_that_the_rule_says() {
    let clock = OffsetClock::default();
    let mut run = Run {
        sluice: InProcess::start(Arc::new(clock.clone())).await,
        clock,
        model: Model::default(),
    };
    // 50,000 repeats beside their first copies: one key in fourteen comes twice in one request.
    let twice = (0..700_000u32).flat_map(|key| std::iter::repeat_n(key, 1 + usize::from(key % 14 == 0)));
    run.send(twice).await;
    // 50,000 repeats from several connections at once.
    for block in 0..5 {
        let from = 700_000 + block * 2_000;
        run.send_concurrently(from..from + 2_000).await;
    }
    // 50,000 repeats after a restart, among new ones.
    run.sluice.restart().await;
    run.send(
        (710_000..860_000).flat_map(|key| (key % 3 == 0).then_some(key - 710_000).into_iter().chain([key])),
    )
    .await;
    // Each copy restarts the window: two steps of 40 minutes, and the third copy is still a repeat.
    run.minutes_pass(40);
    run.send((200_000..215_000).chain(860_000..930_000)).await;
    run.minutes_pass(40);
    run.send(200_000..215_000).await;
    // Past the window: 10,000 keys whose last copy is 80 minutes old are new again.
    run.send(300_000..310_000).await;
    // Without its state, dedup reads one window of the log again, and knows the same.
    run.sluice.stop().await;
    std::fs::remove_dir_all(run.sluice.data.join("dedup")).expect("removed");
    run.sluice.bring_up(false).await.expect("started again");
    run.send((300_000..305_000).chain(930_000..DISTINCT)).await;
    // Past every window.
    run.minutes_pass(120);
    run.send(200_000..205_000).await;

    assert_eq!(run.model.keys.len(), DISTINCT as usize);
    assert_eq!(run.model.sent, u64::from(DISTINCT) + 200_000);
    assert_eq!(run.model.rows(), u64::from(DISTINCT) + 15_000);
    run.check().await;
}
