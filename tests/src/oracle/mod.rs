//! The oracle: it sends events, writes down what it was told of each, and holds the tables to it.
//!
//! - [`books`]: the books of a drained Sluice, held against its tables and against what was sent.
//! - [`copies`]: records that a log in Kafka has more than once.
//! - [`ledger`]: event → sent, acknowledged, refused, unknown; on disk and synced, so that it knows what it was
//!   promised even where its own process dies.
//! - [`request`]: one request and what its answer means to a client.
//! - [`load`]: concurrent writers of several tenants that repeat, overlap, give up and disconnect.
//! - [`verdict`]: the promise, checked against the rows; what it says is meant for people.

pub mod books;
pub mod copies;
pub mod ledger;
pub mod load;
pub mod request;
pub mod verdict;

use crate::{Deployment, Part, eventually, within};
use copies::LogTopic;
use ledger::Ledger;
use load::{Load, Style};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use request::{Batch, DATASETS, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use verdict::{Row, Verdict};

/// From the end of the load to an empty backlog.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// What any of our processes may hold under the oracle's load, in bytes.
const MEMORY_BUDGET: u64 = 600 << 20;
/// Acknowledged events that are dead letters, as the oracle reads them: by what is in their payload.
const LETTERS: &str = "SELECT tenant, JSONExtractString(payload, 'event_id') AS id, \
    JSONExtractString(payload, 'attributes', 'oracle_tenant') AS whose, \
    intDiv(JSONExtractUInt(payload, 'size_bytes'), 1024) AS number, toString(dataset) AS dataset, 1 AS letter \
    FROM telemetry.dead_letters WHERE stage != 'intake'";
/// The oracle's datasets: the default one, one with other partitions and another batch, and one whose events have no key.
pub const CONFIG: &str = "datasets:
- &events {name: events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}}
- {name: more_events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toYYYYMM(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 500ms, max_rows: 5000}}
- {name: keyless_events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   batch: {max_age: 300ms}}
";
/// The variable that replays a seed.
const SEED_VARIABLE: &str = "SLUICE_SEED";

/// The seed of this run: [`SEED_VARIABLE`], or a new one. It is printed either way.
#[must_use]
pub fn seed(what: &str) -> u64 {
    let given = std::env::var(SEED_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("{what}: {SEED_VARIABLE}={seed}");
    seed
}

/// Variables that make a test longer: it draws more then.
const LONG_FORMS: [&str; 10] = [
    "SLUICE_KILL_ROUNDS",
    "SLUICE_SWEEP",
    "SLUICE_STANDSTILL_S",
    "SLUICE_STORM_S",
    "SLUICE_LEAVERS",
    "SLUICE_OUTAGE_S",
    "SLUICE_SEEDS",
    "SLUICE_POWER_SEEDS",
    "SLUICE_BROKER_KILLS",
    "SLUICE_REBALANCES",
];

/// A test's thread has the test's name.
fn replay(seed: u64) -> String {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let long: String = LONG_FORMS
        .iter()
        .filter_map(|name| Some(format!("{name}={} ", std::env::var(name).ok()?)))
        .collect();
    format!("{SEED_VARIABLE}={seed} {long}make test T={test}")
}

/// Rows of a table that its ClickHouse refuses for their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub table: &'static str,
    /// Of so many events, the first [`REFUSED`] by their number: neighbours, so that finding them is one walk.
    pub of: u64,
}

impl Refusal {
    /// The statement that has them refused; it may be made again.
    #[must_use]
    pub fn begins(self) -> String {
        let Self { table, of } = self;
        format!(
            "ALTER TABLE telemetry.{table} ADD CONSTRAINT IF NOT EXISTS few \
             CHECK intDiv(ifNull(size_bytes, 0), 1024) % {of} >= {REFUSED}"
        )
    }

    /// The statement that has them taken again.
    #[must_use]
    pub fn ends(self) -> String {
        format!(
            "ALTER TABLE telemetry.{} DROP CONSTRAINT IF EXISTS few",
            self.table
        )
    }
}

/// Events that are refused one after the other.
const REFUSED: u64 = 6;

/// The witness of one deployment.
#[derive(Debug)]
pub struct Oracle {
    pub seed: u64,
    pub ledger: Arc<Ledger>,
    /// Highest resident memory seen of each part, in bytes.
    peaks: BTreeMap<String, u64>,
    loads: u64,
    /// How much its writers send.
    pub style: Style,
    /// What any of our processes may hold, in bytes; a load of millions of events has more keys to be held.
    pub memory_budget: u64,
    /// What was refused for a while: a dead letter of anything else is a breach.
    pub refusal: Option<Refusal>,
    /// The log's topic in Kafka, where answers of its brokers are lost: there alone may it have copies.
    pub log_topic: Option<LogTopic>,
    /// The command that runs the same again.
    pub replay: String,
}

impl Oracle {
    /// One with an empty ledger.
    ///
    /// # Panics
    /// Where the ledger cannot be created.
    #[must_use]
    pub fn new(deployment: &Deployment, seed: u64) -> Self {
        let ledger = Ledger::create(&deployment.path().join("ledger")).expect("a ledger");
        Self {
            seed,
            ledger: Arc::new(ledger),
            peaks: BTreeMap::new(),
            loads: 0,
            style: Style::default(),
            memory_budget: MEMORY_BUDGET,
            refusal: None,
            log_topic: None,
            replay: replay(seed),
        }
    }

    /// Starts writers; they run until they are stopped.
    pub fn load(&mut self, deployment: &Deployment) -> Load {
        self.loads += 1;
        let seed = self.seed.wrapping_add(self.loads << 32);
        Load::start(deployment, &self.ledger, seed, &self.style)
    }

    /// Sends one new event of the first tenant; whether it was acknowledged.
    ///
    /// # Panics
    /// Where the ledger cannot be written.
    pub async fn probe(&self, deployment: &Deployment) -> bool {
        self.send(deployment, 0, 1).await.1 == Outcome::Acked
    }

    /// Sends one request of so many new events once.
    ///
    /// # Panics
    /// Where the ledger cannot be written.
    pub async fn send(&self, deployment: &Deployment, tenant: usize, count: usize) -> (Batch, Outcome) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let batch = Batch::new(tenant, self.ledger.new_events(count), &mut rng);
        let outcome = self.attempt(deployment, &batch).await;
        (batch, outcome)
    }

    /// The same with so many incompressible bytes in each event.
    ///
    /// # Panics
    /// Where the ledger cannot be written.
    pub async fn send_padded(
        &self,
        deployment: &Deployment,
        tenant: usize,
        (count, bytes): (usize, usize),
    ) -> (Batch, Outcome) {
        let events = self.ledger.new_events(count);
        let mut rng = StdRng::seed_from_u64(self.seed ^ events[0]);
        let batch = Batch::padded(tenant, events, bytes, &mut rng);
        let outcome = self.attempt(deployment, &batch).await;
        (batch, outcome)
    }

    /// Sends a request once more.
    ///
    /// # Panics
    /// Where the ledger cannot be written.
    pub async fn attempt(&self, deployment: &Deployment, batch: &Batch) -> Outcome {
        let client = deployment.tenant(batch.tenant);
        request::attempt(&client, &self.ledger, batch).await.0
    }

    /// Notes the memory of every process; call it before one is ended.
    pub fn weigh(&mut self, deployment: &Deployment) {
        for part in Part::OURS {
            if let Some(service) = deployment.service(part) {
                let peak = self.peaks.entry(format!("{part:?}")).or_default();
                *peak = (*peak).max(service.memory().1);
            }
        }
    }

    /// Waits until everything in the log is stored, then checks every promise.
    ///
    /// # Panics
    /// Where it does not drain in time, or ClickHouse cannot be read.
    pub async fn drained_verdict(&mut self, deployment: &Deployment) -> Verdict {
        drained(deployment).await;
        self.verdict(deployment).await
    }

    /// Checks every promise against what is stored now.
    ///
    /// # Panics
    /// Where ClickHouse cannot be read.
    pub async fn verdict(&mut self, deployment: &Deployment) -> Verdict {
        self.weigh(deployment);
        let tenants: Vec<String> = deployment.tenants.iter().map(|one| one.id.clone()).collect();
        let rows = self.rows(deployment).await;
        let mut verdict = self
            .ledger
            .with_fates(|fates| verdict::judge(&tenants, fates, rows));
        verdict.complaints.extend(self.books(deployment, &tenants).await);
        verdict.complaints.extend(self.ledger.surprises());
        verdict.complaints.extend(panics(deployment));
        let fat = self.peaks.iter().filter(|(_, peak)| **peak > self.memory_budget);
        verdict.complaints.extend(fat.map(|(part, peak)| {
            format!(
                "{part} held {} MiB, its budget is {}",
                peak >> 20,
                self.memory_budget >> 20
            )
        }));
        verdict.replay.clone_from(&self.replay);
        verdict.last_words = deployment.last_words();
        verdict
    }

    /// What is stored, one line an identity, whichever table it is in; the payload is compared on the server.
    async fn rows(&self, deployment: &Deployment) -> Vec<Row> {
        let tables = DATASETS.iter().take(self.style.datasets);
        let parts = tables
            .map(|table| {
                format!(
                    "SELECT tenant, event_id AS id, attributes['oracle_tenant'] AS whose, \
                     intDiv(ifNull(size_bytes, 0), 1024) AS number, '{table}' AS dataset, 0 AS letter \
                     FROM telemetry.{table}"
                )
            })
            .chain([LETTERS.to_owned()]);
        let parts: Vec<String> = parts.collect();
        let refused = self.refusal.map_or_else(
            || "0".to_owned(),
            |refusal| {
                format!(
                    "dataset = '{}' AND number % {} < {REFUSED}",
                    refusal.table, refusal.of
                )
            },
        );
        // An event in another dataset's table is mangled.
        let place = format!("indexOf({DATASETS:?}, dataset) - 1").replace('"', "'");
        let sql = format!(
            "SELECT tenant, id, count(), sum(letter), countIf(letter AND NOT ({refused})), countIf(whose != tenant), \
             countIf(id != concat('e', toString(number)) OR bitShiftRight(number, 40) != {place}) \
             FROM ({}) GROUP BY tenant, id FORMAT TSV",
            parts.join(" UNION ALL ")
        );
        let text = eventually("an answer of ClickHouse", DRAIN_DEADLINE, async || {
            deployment.clickhouse().query(&sql).await.ok()
        });
        text.await.lines().map(Row::parse).collect()
    }

    /// What is wrong with the books: in themselves, against the tables, and against what was sent.
    async fn books(&self, deployment: &Deployment, tenants: &[String]) -> Vec<String> {
        let clickhouse = deployment.clickhouse();
        let tables = DATASETS.iter().take(self.style.datasets);
        let tables: Vec<(&str, &str)> = tables.map(|name| (*name, *name)).collect();
        let read = eventually("the books", DRAIN_DEADLINE, async || {
            let accounts = books::accounts(&clickhouse, &tables).await.ok()?;
            let complaints = books::complaints(&clickhouse, &accounts).await.ok()?;
            Some((accounts, complaints))
        });
        let (accounts, mut complaints) = read.await;
        let received = books::received(&accounts);
        let log = self.log_topic.as_ref();
        let copies = tokio::task::block_in_place(|| log.map(LogTopic::copies).unwrap_or_default());
        for (place, tenant) in tenants.iter().enumerate() {
            let (least, most) = self.ledger.appended(place);
            let copies = copies.get(tenant).copied().unwrap_or_default();
            let received = received.get(tenant.as_str()).copied().unwrap_or_default();
            if !(least..=most).contains(&received.unsigned_abs().saturating_sub(copies)) {
                complaints.push(format!(
                    "{tenant}: the books say {received} events received, {copies} of them of copies in the log; {least} \
                     were acknowledged, {most} sent and not refused"
                ));
            }
        }
        complaints
    }

    /// The highest resident memory of any process so far, in MiB.
    #[must_use]
    pub fn peak_mib(&self) -> u64 {
        self.peaks.values().max().copied().unwrap_or_default() >> 20
    }
}

/// Waits until nothing is in the log that is not settled, and no rows wait elsewhere for their table.
///
/// # Panics
/// Where that takes too long.
pub async fn drained(deployment: &Deployment) {
    for part in deployment.normalizers() {
        let normalizer = deployment.admin(part);
        let done = within(DRAIN_DEADLINE, async || {
            let told = normalizer.get("/metrics").await;
            let told = told.map_err(|error| format!("{part:?}: {error}"))?;
            let names = ["sluice_log_backlog_bytes", "sluice_unsettled"];
            let levels = names.map(|name| told.level(name, ""));
            // Exported once a table was set aside.
            let parked = told.level("sluice_parked_units", "").unwrap_or_default();
            if levels == [Some(0.0); 2] && parked == 0.0 {
                Ok(())
            } else {
                Err(format!("{part:?}: {names:?} {levels:?}, {parked} parked units"))
            }
        })
        .await;
        if let Err(reason) = done {
            let words = deployment.last_words();
            panic!("no empty backlog within {DRAIN_DEADLINE:?}: {reason}\n{words}");
        }
    }
}

fn panics(deployment: &Deployment) -> Vec<String> {
    let lines = Part::OURS.into_iter().flat_map(|part| {
        let text = std::fs::read_to_string(deployment.log_file(part)).unwrap_or_default();
        let lines: Vec<String> = text
            .lines()
            .filter(|line| line.contains("panicked"))
            .map(|line| format!("{part:?} panicked: {line}"))
            .collect();
        lines
    });
    lines.collect()
}
