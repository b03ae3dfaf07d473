//! Faults 1, 5 and 27 of the list: SIGKILL at random moments under load, and SIGTERM under load.
//! Whatever is killed, each acknowledged event is one row, and nothing else is.
//!
//! `SLUICE_KILL_ROUNDS` sets the rounds of each target, `SLUICE_SEED` replays the choices of a run.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Shape, eventually, long_form};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Deployments that run at once: more would starve each other, and say nothing of restart times.
static TURNS: Semaphore = Semaphore::const_new(2);
const ROUNDS: u64 = 30;
const CLICKHOUSE_ROUNDS: u64 = 50;
/// Between two drains with their checks.
const ROUNDS_PER_CHECK: u64 = 10;
/// From one restart to the next kill, in ms.
const LIFE_MS: std::ops::Range<u64> = 100..900;
/// From a kill to the restart, in ms.
const OUTAGE_MS: std::ops::Range<u64> = 0..150;
/// From the restart to the first acknowledged event.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// Each part is asked to end so often.
const TERMINATIONS: u32 = 2;

const SERVICES: [Part; 3] = [Part::Edge, Part::Normalizer, Part::SinkWriter];

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_the_all_in_one_lose_and_double_nothing() {
    kill_rounds(Shape::AllInOne, Part::Up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_the_edge_lose_and_double_nothing() {
    kill_rounds(Shape::ThreeProcesses, Part::Edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_the_normalizer_lose_and_double_nothing() {
    kill_rounds(Shape::ThreeProcesses, Part::Normalizer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_the_sink_writer_lose_and_double_nothing() {
    kill_rounds(Shape::ThreeProcesses, Part::SinkWriter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_clickhouse_lose_and_double_nothing() {
    kill_rounds(Shape::ThreeProcesses, Part::ClickHouse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_rounds_of_clickhouse_under_the_all_in_one_lose_and_double_nothing() {
    kill_rounds(Shape::AllInOne, Part::ClickHouse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_instead_of_a_kill_ends_the_all_in_one_with_0_and_loses_nothing() {
    terminations(Shape::AllInOne, &[Part::Up]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_instead_of_a_kill_ends_each_service_with_0_and_loses_nothing() {
    terminations(Shape::ThreeProcesses, &SERVICES).await;
}

async fn kill_rounds(shape: Shape, victim: Part) {
    let _turn = TURNS.acquire().await.expect("never closed");
    let usual = if victim == Part::ClickHouse {
        CLICKHOUSE_ROUNDS
    } else {
        ROUNDS
    };
    let rounds = long_form("KILL_ROUNDS", usual);
    let mut trial = Trial::start(shape, &format!("kill rounds of {victim:?}, {shape:?}")).await;
    let mut done = 0;
    while done < rounds {
        let load = trial.oracle.load(&trial.deployment);
        for _ in 0..ROUNDS_PER_CHECK.min(rounds - done) {
            trial.random_wait(LIFE_MS).await;
            trial.note_before_the_end(victim).await;
            trial.kill_and_restart(victim).await;
            done += 1;
        }
        load.stop().await;
        trial.check().await;
    }
    trial.sum_up(rounds).await;
}

async fn terminations(shape: Shape, parts: &[Part]) {
    let _turn = TURNS.acquire().await.expect("never closed");
    let mut trial = Trial::start(shape, &format!("SIGTERM, {shape:?}")).await;
    let load = trial.oracle.load(&trial.deployment);
    for part in parts.repeat(TERMINATIONS as usize) {
        trial.random_wait(LIFE_MS).await;
        trial.note_before_the_end(part).await;
        let well = tokio::task::block_in_place(|| trial.deployment.terminate(part));
        assert!(
            well,
            "{part:?} did not exit with 0: {}",
            trial.deployment.last_words()
        );
        let begun = Instant::now();
        trial.deployment.bring_up(part).await.expect("ready");
        trial.until_ready(part, begun).await;
    }
    load.stop().await;
    trial.check().await;
    let ended = TERMINATIONS * u32::try_from(parts.len()).expect("few");
    trial.sum_up(ended.into()).await;
}

/// One deployment with its witness.
struct Trial {
    name: String,
    deployment: Deployment,
    oracle: Oracle,
    rng: StdRng,
    /// The longest way from a restart to readiness.
    slowest: Duration,
    /// Generation bumps, and sub-batches counted on the server, in the lives that are over.
    bumps: f64,
    verified: f64,
    /// Acknowledged events at the last check.
    acked: u64,
    begun: Instant,
}

impl Trial {
    async fn start(shape: Shape, name: &str) -> Self {
        let seed = oracle::seed(name);
        let deployment = Deployment::start(shape).await;
        let oracle = Oracle::new(&deployment, seed);
        Self {
            name: name.to_owned(),
            deployment,
            oracle,
            rng: StdRng::seed_from_u64(seed),
            slowest: Duration::ZERO,
            bumps: 0.0,
            verified: 0.0,
            acked: 0,
            begun: Instant::now(),
        }
    }

    async fn random_wait(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(ms))).await;
    }

    /// Keeps what is gone with the process.
    async fn note_before_the_end(&mut self, part: Part) {
        self.oracle.weigh(&self.deployment);
        if matches!(part, Part::Up | Part::Normalizer) {
            self.bumps += self.living_bumps().await;
        }
        if matches!(part, Part::Up | Part::SinkWriter) {
            self.verified += self.living_verifications().await;
        }
    }

    async fn living_bumps(&self) -> f64 {
        let name = "sluice_token_generation_bumps_total";
        self.deployment.metric(Part::Normalizer, name, "").await
    }

    async fn living_verifications(&self) -> f64 {
        let name = "sluice_verify_total";
        self.deployment.metric(Part::SinkWriter, name, "").await
    }

    async fn kill_and_restart(&mut self, victim: Part) {
        let before = self.deployment.clickhouse_pid();
        self.deployment.kill(victim);
        let ours = victim != Part::ClickHouse;
        if ours {
            self.random_wait(OUTAGE_MS).await;
        }
        let begun = Instant::now();
        if ours {
            self.deployment.bring_up(victim).await.expect("ready");
        } else if self.deployment.shape == Shape::ThreeProcesses {
            self.deployment.stop_clickhouse().await;
            self.deployment.bring_up(victim).await.expect("ready");
        } else {
            eventually("another ClickHouse", READY_DEADLINE, async || {
                let now = self.deployment.clickhouse_pid();
                (now.is_some() && now != before).then_some(())
            })
            .await;
        }
        self.until_ready(victim, begun).await;
    }

    /// Waits until an event is acknowledged and ClickHouse answers.
    async fn until_ready(&mut self, part: Part, begun: Instant) {
        let what = format!("{part:?} ready again");
        eventually(&what, READY_DEADLINE, async || {
            self.deployment.clickhouse().query("SELECT 1").await.ok()?;
            let acked = self.oracle.probe(&self.deployment).await;
            acked.then_some(())
        })
        .await;
        let took = begun.elapsed();
        self.slowest = self.slowest.max(took);
        assert!(took < READY_DEADLINE, "{what} after {took:?}");
    }

    async fn check(&mut self) {
        let verdict = self.oracle.drained_verdict(&self.deployment).await;
        println!("{}: {verdict}", self.name);
        verdict.assert_clean();
        let acked = verdict.total().acked;
        assert!(
            acked > self.acked,
            "the load acknowledged nothing since the last check"
        );
        self.acked = acked;
    }

    async fn sum_up(&mut self, rounds: u64) {
        let total = self.oracle.verdict(&self.deployment).await.total();
        let bumps = self.bumps + self.living_bumps().await;
        let verified = self.verified + self.living_verifications().await;
        println!(
            "{}: {rounds} rounds in {:.0} s, acked {}, refused {}, unknown {} ({} of them stored), lost {}, doubled {}; \
             ready again after {:.1} s at most, {verified} verifications, {bumps} generation bumps, {} MiB at most",
            self.name,
            self.begun.elapsed().as_secs_f64(),
            total.acked,
            total.refused,
            total.unknown,
            total.unknown_stored,
            total.lost,
            total.doubled,
            self.slowest.as_secs_f64(),
            self.oracle.peak_mib(),
        );
    }
}

/// The oracle must be able to fail: here somebody tampers with the tables.
#[tokio::test(flavor = "multi_thread")]
async fn an_oracle_of_kill_rounds_reports_exactly_what_was_tampered_with() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let mut trial = Trial::start(Shape::AllInOne, "tampering").await;
    let load = trial.oracle.load(&trial.deployment);
    eventually("some events", Duration::from_secs(20), async || {
        let acked = |fates: &std::collections::HashMap<_, oracle::ledger::Fate>| {
            fates.values().filter(|fate| fate.acked).count()
        };
        (trial.oracle.ledger.with_fates(acked) > 2_000).then_some(())
    })
    .await;
    load.stop().await;
    trial.check().await;
    tamper(&mut trial).await;
    let verdict = trial.oracle.verdict(&trial.deployment).await;
    let total = verdict.total();
    println!("{verdict}");
    assert_eq!(total.lost, 3, "{verdict}");
    assert_eq!(total.doubled, 1, "{verdict}");
    assert_eq!(total.never_sent, 1, "{verdict}");
    assert_eq!(total.refused_stored, 1, "{verdict}");
    assert_eq!(total.strayed, 1, "{verdict}");
    assert!(!verdict.is_clean());
}

/// Takes 3 acknowledged rows away, doubles one, and puts in one that nobody sent and one that was refused and is
/// another tenant's.
async fn tamper(trial: &mut Trial) {
    let mut acked: Vec<(usize, u64)> = trial.oracle.ledger.with_fates(|fates| {
        let acked = fates.iter().filter(|(_, fate)| fate.acked);
        acked.map(|(identity, _)| *identity).collect()
    });
    acked.sort_unstable();
    let place = |at: usize| format!("tenant = 't{}' AND event_id = 'e{}'", acked[at].0, acked[at].1);
    let gone = [place(0), place(1), place(2)].join(") OR (");
    let (tenant, events) = (acked[3].0, trial.oracle.ledger.new_events(2));
    let other = (tenant + 1) % trial.deployment.tenants.len();
    let attempt = trial
        .oracle
        .ledger
        .sent(other, &events[1..], 1)
        .expect("a ledger");
    let refused = oracle::request::Outcome::Refused;
    trial
        .oracle
        .ledger
        .ended(attempt, other, &events[1..], refused)
        .expect("a ledger");
    let copy = |columns: &str| {
        // The inner query keeps WHERE from seeing the replaced columns.
        format!(
            "INSERT INTO telemetry.events SELECT * {columns} FROM (SELECT * FROM telemetry.events WHERE {} LIMIT 1) \
             SETTINGS insert_deduplicate = 0",
            place(3)
        )
    };
    let statements = [
        format!("ALTER TABLE telemetry.events DELETE WHERE ({gone}) SETTINGS mutations_sync = 2"),
        copy(&format!(
            "REPLACE ('e{0}' AS event_id, {0} * 1024 AS size_bytes)",
            events[0]
        )),
        copy(&format!(
            "REPLACE ('t{other}' AS tenant, 'e{0}' AS event_id, {0} * 1024 AS size_bytes)",
            events[1]
        )),
        copy(""),
    ];
    for statement in statements {
        trial
            .deployment
            .clickhouse()
            .query(&statement)
            .await
            .expect("tampered");
    }
}
