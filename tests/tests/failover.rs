//! Two ClickHouse servers, one of which goes away: rows are exactly once on one of them, and nothing waits
//! longer than it must.

use ingestctl::clickhouse::ClickHouse;
use serde_json::{Value, json};
use sluice_tests::proxy::{Act, Proxy, Rule};
use sluice_tests::service::{clickhouse, executable};
use sluice_tests::{Client, Deployment, Part, Shape, eventually, now_ms, ports};
use std::collections::BTreeSet;
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(90);
const DATASET: &str = "{park_after: 2s}\ndatasets: [{name: sales, fields: [{name: id, type: string, required: true}, \
                       {name: time, type: datetime64(3), required: true, epoch: ms}], dedup: {key: [id]}, \
                       time: {field: time}, partition_by: toDate(time), batch: {max_age: 50ms}}]\n";

struct Pair {
    dir: TempDir,
    ports: [u16; 2],
    running: [Option<ClickHouse>; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            dir: TempDir::new().expect("a directory"),
            ports: ports::free(),
            running: [None, None],
        }
    }

    fn config(&self) -> String {
        Self::config_of(self.ports)
    }

    fn config_of(ports: [u16; 2]) -> String {
        let [first, second] = ports.map(|port| format!("http://127.0.0.1:{port}"));
        let servers = format!("clickhouse: {{url: \"{first}\", failover: [\"{second}\"], ");
        DATASET.replacen('{', &servers, 1)
    }

    async fn start(&mut self, at: usize) {
        self.running[at] = Some(clickhouse(&self.dir.path().join(at.to_string()), self.ports[at]).await);
    }

    /// SIGKILLs one, and sees to it that it stays away.
    async fn kill(&mut self, at: usize) {
        let server = self.running[at].take().expect("it runs");
        let pid = i32::try_from(server.pid().expect("it runs")).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
        server.stop(Duration::from_secs(10)).await;
    }

    fn client(&self, at: usize) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.ports[at]))
    }

    async fn ids(&self, at: usize) -> Vec<u64> {
        let told = self
            .client(at)
            .query("SELECT id FROM telemetry.sales FORMAT TSV")
            .await;
        let told = told.unwrap_or_default();
        told.lines().map(|line| line.parse().expect("a number")).collect()
    }

    /// The same, in order.
    async fn sorted(&self, at: usize) -> Vec<u64> {
        let mut ids = self.ids(at).await;
        ids.sort_unstable();
        ids
    }

    /// Waits until each of these ids is on one of the servers, once.
    async fn hold(&self, ids: &BTreeSet<u64>, deployment: &Deployment) {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let both = [self.ids(0).await, self.ids(1).await].concat();
            let distinct: BTreeSet<u64> = both.iter().copied().collect();
            assert_eq!(both.len(), distinct.len(), "a row is there twice");
            if distinct == *ids {
                return;
            }
            assert!(
                std::time::Instant::now() < until,
                "{} of {} rows are there\n{}",
                distinct.intersection(ids).count(),
                ids.len(),
                deployment.last_words()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A client that sends events, and goes on until it is told to stop; every attempt is repeated until it is
/// acknowledged.
struct Sender {
    stop: Arc<AtomicBool>,
    task: JoinHandle<BTreeSet<u64>>,
}

impl Sender {
    fn start(deployment: &Deployment, first: u64) -> Self {
        let (client, stop) = (deployment.tenant(0), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut taken, mut next) = (BTreeSet::new(), first);
            while !stopped.load(Ordering::Relaxed) {
                let ids: Vec<u64> = (next..next + 20).collect();
                send(&client, &ids).await;
                taken.extend(ids);
                next += 20;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            taken
        });
        Self { stop, task }
    }

    async fn end(self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it ends")
    }
}

async fn send(client: &Client, ids: &[u64]) {
    let event = |id: &u64| json!({"id": id.to_string(), "time": now_ms()});
    let body = Value::from(ids.iter().map(event).collect::<Vec<_>>()).to_string();
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = client.post("/v1/events/sales", body.clone()).await;
        if answer.is_ok_and(|answer| answer.status == 202) {
            return;
        }
        assert!(std::time::Instant::now() < until, "an acknowledgement");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The sums of the books, and whether every server was asked.
struct Sums {
    received: i64,
    stored: i64,
    repeats: i64,
    in_flight: i64,
    complete: bool,
}

async fn sums(deployment: &Deployment) -> Option<Sums> {
    let path = "/admin/v1/ledger?since=1d";
    let told = deployment.admin(Part::Up).get(path).await.ok()?.json();
    let sum = |name: &str| -> Option<i64> {
        let lines = told["lines"].as_array()?;
        lines.iter().map(|line| line[name].as_i64()).sum()
    };
    Some(Sums {
        received: sum("received")?,
        stored: sum("stored")?,
        repeats: sum("duplicate")?,
        in_flight: sum("in_flight")?,
        complete: told["notes"].as_array().is_some_and(Vec::is_empty),
    })
}

async fn balanced(deployment: &Deployment, events: usize) {
    let all = i64::try_from(events).expect("few");
    eventually("books that balance", PATIENCE, async || {
        let sums = sums(deployment).await?;
        let booked = sums.stored == all && sums.received == sums.stored + sums.repeats;
        (sums.complete && booked && sums.in_flight == 0).then_some(())
    })
    .await;
    let imbalance = deployment
        .metric(Part::Up, "sluice_ledger_imbalance_events", "")
        .await;
    assert!(imbalance.abs() < 0.5, "{imbalance}");
}

async fn grows(pair: &Pair, at: usize, deployment: &Deployment) {
    let before = pair.ids(at).await.len();
    let until = std::time::Instant::now() + PATIENCE;
    while pair.ids(at).await.len() < before + 40 {
        assert!(
            std::time::Instant::now() < until,
            "rows go to {at}\n{}",
            deployment.last_words()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_to_the_second_server_while_the_first_is_down_from_the_start() {
    let mut pair = Pair::new();
    pair.start(1).await;
    let deployment = Deployment::start_with(Shape::AllInOne, &pair.config()).await;
    let ids: Vec<u64> = (0..500).collect();
    send(&deployment.tenant(0), &ids).await;
    let ids: BTreeSet<u64> = ids.into_iter().collect();
    pair.hold(&ids, &deployment).await;
    assert_eq!(pair.ids(1).await.len(), 500);
    let told = deployment
        .admin(Part::Up)
        .get("/admin/v1/ledger?since=1d")
        .await
        .expect("an answer");
    let first = format!("127.0.0.1:{}", pair.ports[0]);
    assert!(
        told.text().contains(&first),
        "it says whom it could not ask: {}",
        told.text()
    );
    pair.start(0).await;
    balanced(&deployment, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_costs_a_pause_and_no_row() {
    let mut pair = Pair::new();
    pair.start(0).await;
    pair.start(1).await;
    let deployment = Deployment::start_with(Shape::AllInOne, &pair.config()).await;
    let sender = Sender::start(&deployment, 0);
    grows(&pair, 0, &deployment).await;
    pair.kill(0).await;
    grows(&pair, 1, &deployment).await;
    pair.start(0).await;
    let taken = sender.end().await;
    pair.hold(&taken, &deployment).await;
    balanced(&deployment, taken.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_declared_for_a_server_before_a_crash_is_proven_on_that_server() {
    let mut pair = Pair::new();
    pair.start(0).await;
    pair.start(1).await;
    let mut deployment = Deployment::start_with(Shape::AllInOne, &pair.config()).await;
    let sender = Sender::start(&deployment, 0);
    grows(&pair, 0, &deployment).await;
    deployment.kill(Part::Up);
    pair.kill(0).await;
    deployment.bring_up(Part::Up).await.expect("ready");
    grows(&pair, 1, &deployment).await;
    let taken = sender.end().await;
    pair.start(0).await;
    pair.hold(&taken, &deployment).await;
    balanced(&deployment, taken.len()).await;
}

/// How inserts are announced, in the request's address: into any table, and into the dataset's.
const INSERTS: &str = "INSERT+INTO+%60telemetry%60.";
const ROWS: &str = "INSERT+INTO+%60telemetry%60.%60sales%60";

/// What `ingestctl parked list` shows, and its exit code.
fn parked(deployment: &Deployment) -> (Option<i32>, Value) {
    let admin = deployment.admin_url(Part::Up);
    let mut command = Command::new(executable("ingestctl"));
    command.args(["parked", "list", "--output", "json", "--admin", &admin]);
    let output = command.output().expect("ingestctl runs");
    let told = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), told)
}

/// Waits until the events in doubt are set aside for the server that may have them.
async fn wait_for_their_server(deployment: &Deployment, pair: &Pair, server: &str, doubt: &Range<u64>) {
    eventually("rows that wait for their server", PATIENCE, async || {
        let elsewhere = pair.ids(1).await;
        let gone: Vec<u64> = elsewhere.into_iter().filter(|id| doubt.contains(id)).collect();
        assert!(
            gone.is_empty(),
            "in doubt at one server and sent to another: {gone:?}"
        );
        let (code, told) = parked(deployment);
        let units = told["units"].as_array()?;
        let of_table = units.iter().find(|unit| unit["table"] == "sales")?;
        assert_eq!(code, Some(2), "{told}");
        for unit in units {
            assert_eq!(
                (&unit["server"], &unit["needs_repair"]),
                (&json!(server), &json!(false)),
                "{told}"
            );
        }
        assert_eq!(of_table["rows"], json!(doubt.end - doubt.start), "{told}");
        (of_table["why"] == "server_lost").then_some(())
    })
    .await;
}

/// Twenty events are on the first server, and twenty more may be, when it is lost. Twenty after them go to
/// the other; then the first comes back.
async fn lost_in_doubt((held, inserts): (Act, &'static str), kill_sluice: bool) {
    let (before, doubt, after) = (0..20, 20..40, 40..60);
    let ids = |range: &Range<u64>| range.clone().collect::<Vec<u64>>();
    let mut pair = Pair::new();
    pair.start(0).await;
    pair.start(1).await;
    let mut door = Proxy::start(pair.ports[0]).await;
    let server = format!("127.0.0.1:{}", door.port());
    let config = Pair::config_of([door.port(), pair.ports[1]]);
    let mut deployment = Deployment::start_with(Shape::AllInOne, &config).await;
    send(&deployment.tenant(0), &ids(&before)).await;
    pair.hold(&before.clone().collect(), &deployment).await;

    let there: Range<u64> = if held == Act::HoldAnswer { 0..40 } else { 0..20 };
    door.set(Rule::on(inserts, held));
    send(&deployment.tenant(0), &ids(&doubt)).await;
    // The rows, and what the books say of them.
    let expected = if inserts == INSERTS { 2 } else { 1 };
    eventually("inserts that are held", PATIENCE, async || {
        (door.caught() == expected).then_some(())
    })
    .await;
    pair.hold(&there.clone().collect(), &deployment).await;
    door.shut().await;
    pair.kill(0).await;
    assert_eq!(door.caught(), expected, "each was sent once");

    wait_for_their_server(&deployment, &pair, &server, &doubt).await;
    if kill_sluice {
        deployment.kill(Part::Up);
        deployment.bring_up(Part::Up).await.expect("ready");
        wait_for_their_server(&deployment, &pair, &server, &doubt).await;
    }
    send(&deployment.tenant(0), &ids(&after)).await;
    eventually("rows on the other server", PATIENCE, async || {
        (pair.sorted(1).await == ids(&after)).then_some(())
    })
    .await;
    eventually("books with what waits in flight", PATIENCE, async || {
        let sums = sums(&deployment).await?;
        // Those of the lost server cannot be asked, and it says so.
        let counts = (sums.received, sums.stored, sums.repeats, sums.in_flight);
        (counts == (40, 20, 0, 20) && !sums.complete).then_some(())
    })
    .await;

    pair.start(0).await;
    assert_eq!(pair.sorted(0).await, ids(&there), "what it had");
    door.open().await;
    pair.hold(&(0..60).collect(), &deployment).await;
    eventually("nothing that waits", PATIENCE, async || {
        let (code, told) = parked(&deployment);
        (code == Some(0) && told["units"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(pair.sorted(0).await, ids(&(0..40)));
    assert_eq!(pair.sorted(1).await, ids(&after));
    balanced(&deployment, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_lost_server_has_taken_unheard_wait_for_it_and_are_found_there() {
    lost_in_doubt((Act::HoldAnswer, ROWS), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_never_reached_a_lost_server_wait_for_it_and_go_in_there() {
    lost_in_doubt((Act::HoldRequest, ROWS), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_for_a_lost_server_outlive_a_crash() {
    lost_in_doubt((Act::HoldAnswer, ROWS), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_books_that_never_reached_a_lost_server_wait_for_it_and_go_in_there() {
    lost_in_doubt((Act::HoldRequest, INSERTS), false).await;
}
