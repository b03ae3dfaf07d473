//! ClickHouse stopped under load: the backlog grows on disk up to the tenant's share of the log, then it is
//! refused with nothing taken, and memory stays flat, while others find room; when ClickHouse is back, all that
//! was acknowledged is there once.

use rustix::process::{Signal, kill_process};
use sluice_tests::payload::Bulk;
use sluice_tests::{Client, Deployment, Part, Shape, eventually, now_ms};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
/// `log.max_bytes`, of which one tenant alone may fill 16/17.
const WATERMARK: u64 = 512 * MIB;
const EVENTS: usize = 16;
const EVENT_BYTES: usize = 50_000;
const CLIENTS: u64 = 4;
/// Refusals to be seen before ClickHouse comes back.
const REFUSALS: usize = 60;
/// What a process may hold. The normalizer: 64 MiB of the log's tail, two ranges of up to 64 MiB, the
/// sub-batch of the one under way twice (columns and body), four requests of 0.8 MB; the rest is code and the
/// allocator's. It is below what is sent, so a backlog kept in memory would be seen.
const MEMORY: u64 = 420 * MIB;
/// How much more a process may hold at the end than at a third of the fill.
const GROWTH: u64 = 96 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_stopped_under_load_fills_the_log_but_for_others_room_all_in_one() {
    overload(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_stopped_under_load_fills_the_log_but_for_others_room_over_three_processes() {
    overload(Shape::ThreeProcesses).await;
}

async fn overload(shape: Shape) {
    let extra = format!("log: {{max_bytes: {}MiB}}\n", WATERMARK / MIB);
    let mut deployment = Deployment::start_with(shape, &extra).await;
    let load = Arc::new(Load::new(deployment.tenant(0)));
    assert_eq!(load.send().await, Ended::Acked);
    stop_clickhouse(&mut deployment).await;

    // Below the watermark an outage is none of the clients' business.
    for _ in 0..20 {
        assert_eq!(load.send().await, Ended::Acked, "{}", deployment.last_words());
    }
    assert_eq!(readyz(&deployment).await, 200);

    let fill = load.run();
    let third = eventually("a third is filled", Duration::from_secs(60), async || {
        let memory = memory(&deployment);
        (load.acked_bytes() > WATERMARK / 3).then_some(memory)
    })
    .await;
    let full = eventually(
        "the tenant's share is full",
        Duration::from_secs(90),
        async || {
            let memory = memory(&deployment);
            (load.refused() >= REFUSALS).then_some(memory)
        },
    )
    .await;
    println!("RSS at a third of the fill {third:?}, refusing {full:?} (MiB)");
    for (before, after) in third.iter().zip(&full) {
        assert!(after.1 * MIB < MEMORY, "{full:?}");
        assert!(after.1 < before.1 + GROWTH / MIB, "{third:?} {full:?}");
    }
    // It is this tenant that is refused, and nobody else.
    assert_eq!(readyz(&deployment).await, 200);
    let room_share = deployment
        .metric(Part::Normalizer, "sluice_shed_total", "reason=\"room_share\"")
        .await;
    assert!(room_share > 0.0);
    assert!(
        deployment
            .metric(Part::Normalizer, "sluice_grant_in_force", "")
            .await
            > 1.0
    );
    for _ in 0..10 {
        let event = format!(
            r#"{{"event_id":"other-{}","timestamp":{},"service":"x"}}"#,
            rand::random::<u64>(),
            now_ms()
        );
        let answer = deployment
            .tenant(1)
            .post("/v1/events/events", event)
            .await
            .expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let acked = load.acked_bytes();
    assert!(
        acked > WATERMARK / 10 * 9 && acked < WATERMARK / 10 * 11,
        "{acked}"
    );
    load.stop(fill).await;

    // It takes events again once something is stored, and all that was acknowledged arrives.
    start_clickhouse(&mut deployment).await;
    eventually("there is room again", Duration::from_secs(60), async || {
        (load.send().await == Ended::Acked).then_some(())
    })
    .await;
    assert_eq!(readyz(&deployment).await, 200);
    all_arrived(&deployment, &load).await;
    load.retry_refused().await;
    all_arrived(&deployment, &load).await;
}

/// What is acknowledged is there once; what was refused is not; what is unknown may be, once.
async fn all_arrived(deployment: &Deployment, load: &Load) {
    let ids = "SELECT event_id FROM telemetry.events WHERE tenant = 't0' FORMAT TSV";
    let rows = eventually("all that was acknowledged", Duration::from_secs(60), async || {
        let rows = deployment.clickhouse().query(ids).await.ok()?;
        let rows: Vec<u64> = rows.lines().map(|id| id.parse().expect("a number")).collect();
        let distinct: BTreeSet<u64> = rows.iter().copied().collect();
        load.events(Ended::Acked).is_subset(&distinct).then_some(rows)
    })
    .await;
    let distinct: BTreeSet<u64> = rows.iter().copied().collect();
    assert_eq!(distinct.len(), rows.len(), "rows are doubled");
    assert!(
        distinct.is_disjoint(&load.events(Ended::Refused)),
        "what was refused is there"
    );
    let mut known = load.events(Ended::Acked);
    known.extend(load.events(Ended::Unknown));
    assert!(distinct.is_subset(&known));
}

async fn stop_clickhouse(deployment: &mut Deployment) {
    match deployment.shape {
        Shape::AllInOne => signal(deployment, Signal::STOP),
        Shape::ThreeProcesses => deployment.stop_clickhouse().await,
    }
}

async fn start_clickhouse(deployment: &mut Deployment) {
    match deployment.shape {
        Shape::AllInOne => signal(deployment, Signal::CONT),
        Shape::ThreeProcesses => deployment.bring_up(Part::ClickHouse).await.expect("ready"),
    }
}

fn signal(deployment: &Deployment, signal: Signal) {
    let pid = deployment.clickhouse_pid().expect("it runs");
    kill_process(pid, signal).expect("it runs");
}

async fn readyz(deployment: &Deployment) -> u16 {
    let answer = deployment.admin(Part::Edge).get("/readyz").await;
    answer.expect("an answer").status.as_u16()
}

/// Resident MiB of each of our processes.
fn memory(deployment: &Deployment) -> Vec<(Part, u64)> {
    let parts = [Part::Up, Part::Edge, Part::Normalizer, Part::SinkWriter];
    let service = |part| Some((part, deployment.service(part)?.memory().0 / MIB));
    parts.into_iter().filter_map(service).collect()
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Acked,
    Refused,
    Unknown,
}

/// Requests of distinct events, and what became of each.
struct Load {
    client: Client,
    bulk: Bulk,
    next: AtomicU64,
    ends: std::sync::Mutex<Vec<(u64, Ended)>>,
    stopped: AtomicBool,
}

impl Load {
    fn new(client: Client) -> Self {
        Self {
            client,
            bulk: Bulk::new(),
            next: AtomicU64::new(0),
            ends: std::sync::Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Sends new requests until it is stopped, pausing after a refusal far shorter than it is told to.
    fn run(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let client = || {
            let load = Arc::clone(self);
            tokio::spawn(async move {
                while !load.stopped.load(Ordering::Relaxed) {
                    if load.send().await != Ended::Acked {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        };
        (0..CLIENTS).map(|_| client()).collect()
    }

    async fn stop(&self, clients: Vec<tokio::task::JoinHandle<()>>) {
        self.stopped.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("every answer was as it must be");
        }
    }

    /// Sends one new request and notes its end.
    async fn send(&self) -> Ended {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ended = self.exchange(number).await;
        self.ends.lock().expect("not poisoned").push((number, ended));
        ended
    }

    async fn exchange(&self, number: u64) -> Ended {
        let event = |id: u64| self.bulk.event(&id.to_string(), now_ms(), EVENT_BYTES);
        let body: String = events_of(number).map(event).collect();
        let Ok(answer) = self.client.post("/v1/events/events", body).await else {
            return Ended::Unknown;
        };
        if answer.status == 202 {
            return Ended::Acked;
        }
        assert_eq!(answer.status, 503, "{}", answer.text());
        let wait: u64 = answer.header("retry-after").parse().expect("whole seconds");
        assert!((1..=60).contains(&wait), "{wait}");
        match answer.header("sluice-outcome") {
            "refused" => Ended::Refused,
            "unknown" => Ended::Unknown,
            other => panic!("Sluice-Outcome: {other:?}"),
        }
    }

    /// Sends every refused request again until it is taken.
    async fn retry_refused(&self) {
        let ends = std::mem::take(&mut *self.ends.lock().expect("not poisoned"));
        for (number, mut ended) in ends {
            while ended == Ended::Refused {
                ended = self.exchange(number).await;
            }
            self.ends.lock().expect("not poisoned").push((number, ended));
        }
    }

    fn events(&self, wanted: Ended) -> BTreeSet<u64> {
        let ends = self.ends.lock().expect("not poisoned");
        let numbers = ends.iter().filter(|(_, ended)| *ended == wanted);
        numbers.flat_map(|(number, _)| events_of(*number)).collect()
    }

    fn count(&self, wanted: Ended) -> usize {
        let ends = self.ends.lock().expect("not poisoned");
        ends.iter().filter(|(_, ended)| *ended == wanted).count()
    }

    fn refused(&self) -> usize {
        self.count(Ended::Refused)
    }

    fn acked_bytes(&self) -> u64 {
        (self.count(Ended::Acked) * EVENTS * EVENT_BYTES) as u64
    }
}

fn events_of(number: u64) -> std::ops::Range<u64> {
    let events = EVENTS as u64;
    number * events..(number + 1) * events
}
