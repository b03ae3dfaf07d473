//! One deployment with its witness and its failpoints, and what every case has in common.

use super::{ends, part};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sluice_tests::failpoints::{Action, Case, Failpoints, SMALL_FILES};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// From the arming to the hit.
const FIRED_DEADLINE: Duration = Duration::from_secs(60);
/// From the restart to the first acknowledged event.
const READY_DEADLINE: Duration = Duration::from_secs(10);
const END_DEADLINE: Duration = Duration::from_secs(20);
const TENANTS: usize = 3;
const KILL: i32 = 9;

pub struct Trial {
    name: String,
    pub deployment: Deployment,
    pub oracle: Oracle,
    pub points: Failpoints,
    pub rng: StdRng,
    cases: u32,
    kills: u32,
    slowest: Duration,
    begun: Instant,
}

impl Trial {
    pub async fn start(shape: Shape, name: &str, extra: &str) -> Self {
        Self::start_prepared(shape, name, extra, |_| {}).await
    }

    /// The same; `more` is done to the deployment's directory before anything starts.
    pub async fn start_prepared(shape: Shape, name: &str, extra: &str, more: impl FnOnce(&Path)) -> Self {
        let seed = oracle::seed(name);
        let mut points = None;
        let prepare = |dir: &Path| {
            let made = Failpoints::below(dir);
            made.shrink(&SMALL_FILES);
            points = Some(made);
            more(dir);
        };
        let deployment = Deployment::start_prepared(TENANTS, shape, extra, prepare).await;
        Self {
            name: name.to_owned(),
            oracle: Oracle::new(&deployment, seed),
            deployment,
            points: points.expect("made before the start"),
            rng: StdRng::seed_from_u64(seed),
            cases: 0,
            kills: 0,
            slowest: Duration::ZERO,
            begun: Instant::now(),
        }
    }

    /// The process that holds the point of `case`.
    pub fn part_of(&self, case: Case) -> Part {
        match self.deployment.shape {
            Shape::AllInOne => Part::Up,
            Shape::ThreeProcesses => part(case.point),
        }
    }

    /// Waits until `case` has happened, and until all is well again.
    pub async fn survives(&mut self, case: Case) {
        self.points.fired(case, FIRED_DEADLINE).await;
        self.comes_back(case).await;
    }

    /// Waits until `case` has ended its process, where it does.
    pub async fn ended(&mut self, case: Case) {
        let part = self.part_of(case);
        let kills = case.action == Action::Kill;
        let ends = kills || (case.action == Action::Error && ends(case.point));
        // It may have ended before it was ready.
        if ends && self.deployment.service(part).is_some() {
            let what = format!("{part:?} ended at {case}");
            let deployment = &mut self.deployment;
            let status = eventually(&what, END_DEADLINE, async || deployment.ended(part)).await;
            assert!(!status.success(), "{part:?} ended with 0 at {case}");
            assert_eq!(
                status.signal() == Some(KILL),
                kills,
                "{part:?} at {case}: {status}"
            );
        }
    }

    /// `case` has happened: a process that it ended is started again, and is ready in time.
    pub async fn comes_back(&mut self, case: Case) {
        let part = self.part_of(case);
        self.ended(case).await;
        let begun = Instant::now();
        if self.deployment.service(part).is_none() {
            let back = self.deployment.bring_up(part).await;
            back.unwrap_or_else(|words| panic!("{part:?} does not come back after {case}: {words}"));
        }
        self.until_ready(case, begun).await;
        self.cases += 1;
        self.kills += u32::from(case.action == Action::Kill);
    }

    async fn until_ready(&mut self, case: Case, begun: Instant) {
        let what = format!("ready again after {case}");
        let (deployment, oracle) = (&self.deployment, &self.oracle);
        eventually(&what, READY_DEADLINE, async || {
            deployment.clickhouse().query("SELECT 1").await.ok()?;
            oracle.probe(deployment).await.then_some(())
        })
        .await;
        let took = begun.elapsed();
        assert!(took < READY_DEADLINE, "{what} after {took:?}");
        self.slowest = self.slowest.max(took);
    }

    /// Kills a process that no case has ended, and starts it again.
    pub async fn restart(&mut self, part: Part) {
        self.deployment.kill(part);
        let back = self.deployment.bring_up(part).await;
        assert!(back.is_ok() || self.points.has_fired(), "{back:?}");
    }

    /// Everything is stored, and every promise kept.
    pub async fn check(&mut self, after: &str) {
        let verdict = self.oracle.drained_verdict(&self.deployment).await;
        assert!(verdict.is_clean(), "{}, after {after}: {verdict}", self.name);
    }

    pub async fn sum_up(&mut self) {
        let total = self.oracle.verdict(&self.deployment).await.total();
        println!(
            "{}: {} cases ({} SIGKILLs) in {:.0} s, acked {}, refused {}, unknown {} ({} of them stored), lost {}, \
             doubled {}; ready again after {:.1} s at most",
            self.name,
            self.cases,
            self.kills,
            self.begun.elapsed().as_secs_f64(),
            total.acked,
            total.refused,
            total.unknown,
            total.unknown_stored,
            total.lost,
            total.doubled,
            self.slowest.as_secs_f64(),
        );
    }
}
