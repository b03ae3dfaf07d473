//! A harness that cannot fail shows nothing: each safety is switched off in turn, and the oracle has to find
//! what is broken then. Each scenario is run with all safeties first, and has to be clean.
//!
//! | safety | scenario | what the oracle must find |
//! |---|---|---|
//! | `verify` | ClickHouse knows a token and has lost its rows (fault 3) | lost |
//! | `verify` | ClickHouse is killed between a token's record and the part (fault 3, in [`torn`]) | lost |
//! | `dedup` | a request is sent twice | doubled |
//! | `lock` | a second process on the same log (a table in [`two`]) | lost |
//! | `unlink_last` | a SIGKILL while a unit that was set aside is deleted | lost |
//! | `bump` | a held request under a new token, released after a restart (fault 30) | doubled |
//! | `intent` | a SIGKILL between the insert and its commit, with more in the log at the next start | the start refuses (`horizon`, R19); with that off too, and `verify`: doubled |
//!
//! That an acknowledgement waits for the sync is shown where power is lost: in the log's own tests.

mod held;
mod torn;
mod two;

use held::Held;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sluice_common::failpoint::{Point, Safety};
use sluice_tests::failpoints::{Action, Case, Failpoints, park_soon};
use sluice_tests::oracle::request::{self, Batch, Outcome};
use sluice_tests::oracle::verdict::{Tally, Verdict};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::path::Path;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Deployments that run at once.
static TURNS: Semaphore = Semaphore::const_new(2);
const DEADLINE: Duration = Duration::from_secs(30);

/// A deployment in which some safeties are off.
struct Stand {
    deployment: Deployment,
    oracle: Oracle,
    points: Failpoints,
}

impl Stand {
    async fn start(off: &[Safety]) -> Self {
        Self::start_prepared(off, |_| {}).await
    }

    async fn start_prepared(off: &[Safety], prepare: impl FnOnce(&Path)) -> Self {
        let mut points = None;
        let set_up = |dir: &Path| {
            let made = Failpoints::below(dir);
            made.switch_off(off);
            points = Some(made);
            prepare(dir);
        };
        let deployment = Deployment::start_prepared(1, Shape::ThreeProcesses, "", set_up).await;
        let seed = oracle::seed(&format!("without {off:?}"));
        Self {
            oracle: Oracle::new(&deployment, seed),
            deployment,
            points: points.expect("made before the start"),
        }
    }

    /// Sends one event, which is acknowledged.
    async fn send(&self) {
        assert!(
            self.oracle.probe(&self.deployment).await,
            "{}",
            self.deployment.last_words()
        );
    }

    async fn run(&self, sql: &str) {
        self.deployment.clickhouse().query(sql).await.expect(sql);
    }

    async fn bring_up(&mut self, part: Part) {
        self.deployment.bring_up(part).await.expect("ready");
    }

    /// Has the normalizer or the sink-writer killed at a point's first hit from now on, caused by `cause`.
    async fn killed_at(&mut self, point: Point, part: Part, cause: impl AsyncFnOnce(&Self)) {
        let case = Case {
            point,
            action: Action::Kill,
            nth: 1,
        };
        self.points.arm(case);
        cause(self).await;
        self.points.fired(case, DEADLINE).await;
        let deployment = &mut self.deployment;
        eventually("a killed process", DEADLINE, async || deployment.ended(part)).await;
    }

    async fn verdict(&mut self) -> Verdict {
        let verdict = self.oracle.drained_verdict(&self.deployment).await;
        println!("{verdict}");
        verdict
    }

    /// The same, and how many tokens were given up.
    async fn verdict_and_bumps(&mut self) -> (Verdict, f64) {
        let verdict = self.verdict().await;
        let bumps = "sluice_token_generation_bumps_total";
        (verdict, self.deployment.metric(Part::Normalizer, bumps, "").await)
    }
}

/// With it a token without rows is given up; without it they are lost.
fn verification_is_needed((with, bumps): (Verdict, f64), (without, none): (Verdict, f64)) {
    assert!(
        bumps >= 1.0 && none == 0.0,
        "{bumps} tokens given up, without verification {none}"
    );
    is_needed(&with, &without, |total| total.lost);
}

/// Clean with all safeties; without this one the oracle finds what `breach` counts.
fn is_needed(with: &Verdict, without: &Verdict, breach: impl Fn(&Tally) -> u64) {
    with.assert_clean();
    assert!(!without.is_clean(), "nobody noticed: {without}");
    assert!(
        breach(&without.total()) > 0,
        "something else was noticed: {without}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_verification_rows_that_clickhouse_lost_are_found_lost() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let scenario = async |off: &[Safety]| {
        let mut stand = Stand::start(off).await;
        stand
            .points
            .lose_rows_of_a_token(&mut stand.deployment, &stand.oracle)
            .await;
        stand.bring_up(Part::SinkWriter).await;
        stand.verdict_and_bumps().await
    };
    verification_is_needed(scenario(&[]).await, scenario(&[Safety::Verify]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_killed_between_its_record_and_the_part_loses_nothing_but_without_verification() {
    let _turn = TURNS.acquire().await.expect("never closed");
    verification_is_needed(torn::scenario(&[]).await, torn::scenario(&[Safety::Verify]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_dedup_what_is_sent_twice_is_found_doubled() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let scenario = async |off: &[Safety]| {
        let mut stand = Stand::start(off).await;
        let mut rng = StdRng::seed_from_u64(stand.oracle.seed);
        let batch = Batch::new(0, stand.oracle.ledger.new_events(20), &mut rng);
        for _ in 0..2 {
            let client = stand.deployment.tenant(0);
            let (outcome, _) = request::attempt(&client, &stand.oracle.ledger, &batch).await;
            assert_eq!(outcome, Outcome::Acked);
        }
        stand.verdict().await
    };
    let (with, without) = (scenario(&[]).await, scenario(&[Safety::Dedup]).await);
    is_needed(&with, &without, |total| total.doubled);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_lock_of_the_log_what_a_second_process_writes_over_is_found_lost() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let (with, without) = (two::scenario(&[]).await, two::scenario(&[Safety::Lock]).await);
    is_needed(&with, &without, |total| total.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_deletion_last_a_kill_in_it_is_found_to_lose_rows() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let scenario = async |off: &[Safety]| {
        let mut stand = Stand::start_prepared(off, park_soon).await;
        stand
            .run("RENAME TABLE telemetry.events TO telemetry.events_away")
            .await;
        stand.send().await;
        let killed = stand.killed_at(Point::UnitRemoved, Part::Normalizer, async |stand| {
            eventually("rows set aside", DEADLINE, async || {
                stand
                    .points
                    .hits()
                    .contains_key(&Point::UnitWritten)
                    .then_some(())
            })
            .await;
            stand
                .run("RENAME TABLE telemetry.events_away TO telemetry.events")
                .await;
        });
        killed.await;
        stand.bring_up(Part::Normalizer).await;
        stand.verdict().await
    };
    let (with, without) = (scenario(&[]).await, scenario(&[Safety::UnlinkLast]).await);
    is_needed(&with, &without, |total| total.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_durable_generation_a_request_that_was_held_is_found_to_double_rows() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let (with, without) = (held_request(&[]).await, held_request(&[Safety::Bump]).await);
    is_needed(&with, &without, |total| total.doubled);
}

/// A token is given up, and the request under its successor is held; everything is killed. ClickHouse, which
/// never syncs its records of tokens, has lost that of the first. After the restart the request is let go.
async fn held_request(off: &[Safety]) -> Verdict {
    let held = Held::start("%231").await;
    let mut stand =
        Stand::start_prepared(off, |dir| held.put_before_clickhouse(&dir.join("sluice.yaml"))).await;
    stand
        .points
        .lose_rows_of_a_token(&mut stand.deployment, &stand.oracle)
        .await;
    held.hold();
    stand.bring_up(Part::SinkWriter).await;
    // Rows and books: both tables have lost theirs.
    held.holds(2, DEADLINE).await;
    for part in [Part::Normalizer, Part::SinkWriter] {
        stand.deployment.kill(part);
    }
    held.let_pass();
    for table in ["events", "ledger"] {
        for window in [0, 10_000] {
            let setting = format!("non_replicated_deduplication_window = {window}");
            stand
                .run(&format!("ALTER TABLE telemetry.{table} MODIFY SETTING {setting}"))
                .await;
        }
    }
    for part in [Part::SinkWriter, Part::Normalizer] {
        stand.bring_up(part).await;
    }
    stand.verdict().await.assert_clean();
    held.release(DEADLINE).await;
    stand.verdict().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_declared_intent_a_start_refuses_and_without_its_checks_rows_are_found_doubled() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let with = cut_again(&[]).await.expect("it goes on");
    let refused = cut_again(&[Safety::Intent])
        .await
        .expect_err("rows past what is declared are seen");
    assert!(refused.contains("progress went backwards"), "{refused}");
    // Its own verification would keep such a range from being committed.
    let without = [Safety::Intent, Safety::Horizon, Safety::Verify];
    let without = cut_again(&without).await.expect("nothing stops it");
    is_needed(&with, &without, |total| total.doubled);
}

/// Killed between an insert and its commit; at the next start the log has more, so that a range that is not
/// declared is cut otherwise. The last words of a normalizer that refuses to go on.
async fn cut_again(off: &[Safety]) -> Result<Verdict, String> {
    let mut stand = Stand::start(off).await;
    stand
        .killed_at(Point::CallAnswered, Part::Normalizer, async |stand| {
            stand.send().await
        })
        .await;
    stand.deployment.kill(Part::SinkWriter);
    stand.bring_up(Part::Normalizer).await;
    stand.send().await;
    stand.bring_up(Part::SinkWriter).await;
    let count = |stand: &Stand| stand.points.hits().get(&Point::CommitTold).copied().unwrap_or(0);
    let before = count(&stand);
    let goes_on = eventually("a commit, or the end", DEADLINE, async || {
        if stand.deployment.ended(Part::Normalizer).is_some() {
            return Some(false);
        }
        (count(&stand) > before).then_some(true)
    });
    if goes_on.await {
        Ok(stand.verdict().await)
    } else {
        Err(sluice_tests::service::tail(
            &stand.deployment.log_file(Part::Normalizer),
        ))
    }
}
