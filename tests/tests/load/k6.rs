//! One run of a script of `loadtest/`: k6 itself, what it says, and what became of each request.

use serde_json::Value;
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// k6's exit code where a threshold failed.
pub const THRESHOLDS_FAILED: i32 = 99;
const DEADLINE: Duration = Duration::from_secs(120);
const STORED_DEADLINE: Duration = Duration::from_secs(60);

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// k6, where `make setup` puts it; `SLUICE_K6` names another.
pub fn executable() -> PathBuf {
    let path = std::env::var_os("SLUICE_K6").map_or_else(|| root().join(".local/k6/k6"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    path
}

/// The settings of a script, as the environment of its process.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// A k6 at work.
pub struct Running {
    child: Child,
    dir: TempDir,
    script: &'static str,
}

/// A k6 that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    /// What it printed.
    pub text: String,
    /// `SUMMARY`, the same as JSON.
    pub report: Value,
    /// What became of each request.
    pub ends: Ends,
}

/// Requests by how they ended, with the events of each. One that was refused and then taken is in both.
#[derive(Debug, Default)]
pub struct Ends {
    pub acked: BTreeMap<String, u64>,
    pub refused: BTreeSet<String>,
    /// Requests, each as often as it was refused.
    pub refusals: usize,
    /// Times that a request was over a quota.
    pub overs: usize,
    /// Ended in any other way.
    pub others: BTreeSet<String>,
}

impl Ends {
    /// Reads what the scripts print with `RECORD`: the end, the request's id, its events.
    fn read(path: &Path) -> Self {
        let mut ends = Self::default();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[ended, id, events] = words.as_slice() else {
                continue;
            };
            let Ok(events) = events.parse() else { continue };
            match ended {
                "acked" => drop(ends.acked.insert(id.to_owned(), events)),
                "refused" => {
                    ends.refused.insert(id.to_owned());
                    ends.refusals += 1;
                }
                "over" => ends.overs += 1,
                "4xx" | "unknown" | "unanswered" | "wrong" => drop(ends.others.insert(id.to_owned())),
                _ => {}
            }
        }
        ends
    }

    /// Events acknowledged.
    pub fn events(&self) -> u64 {
        self.acked.values().sum()
    }
}

impl Running {
    /// Starts `script` with `settings` against `base`.
    pub fn start(script: &'static str, base: &str, settings: Settings<'_>) -> Self {
        let dir = TempDir::new().expect("a directory");
        let child = Command::new(executable())
            .args([
                "run",
                "--quiet",
                "--no-usage-report",
                "--address",
                "",
                "--log-format",
                "raw",
            ])
            .arg("--console-output")
            .arg(dir.path().join("record"))
            .arg(root().join("loadtest").join(format!("{script}.js")))
            .envs([("RECORD", "1"), ("BASE_URL", base)])
            .env("SUMMARY", dir.path().join("summary.json"))
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("k6 starts");
        Self { child, dir, script }
    }

    /// What has become of its requests so far.
    pub fn ends(&self) -> Ends {
        Ends::read(&self.dir.path().join("record"))
    }

    /// Waits until it has ended.
    pub async fn ended(self) -> Ran {
        let output = tokio::time::timeout(DEADLINE, self.child.wait_with_output()).await;
        let Output {
            status,
            stdout,
            stderr,
        } = output
            .unwrap_or_else(|_| panic!("{} did not end within {DEADLINE:?}", self.script))
            .expect("an exit code");
        let said = std::fs::read_to_string(self.dir.path().join("summary.json")).unwrap_or_default();
        Ran {
            code: status.code(),
            text: String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr),
            report: serde_json::from_str(&said).unwrap_or_default(),
            ends: Ends::read(&self.dir.path().join("record")),
        }
    }
}

impl Ran {
    /// Asserts that it passed, and that its summary says what was recorded.
    pub fn expect_passed(&self, deployment: &Deployment) {
        println!("{}", self.text);
        assert_eq!(self.code, Some(0), "{}\n{}", self.text, deployment.last_words());
        assert_eq!(self.report["passed"], true);
        assert!(self.text.contains("all thresholds passed"));
        let all = &self.report["rows"]["all"];
        for (column, recorded) in [
            ("503 refused", self.ends.refusals),
            ("429", self.ends.overs),
            ("wrong", 0),
            ("no answer", 0),
        ] {
            assert_eq!(all[column], recorded, "{column}");
        }
        assert!(all["2xx"].as_u64() >= Some(self.ends.acked.len() as u64), "{all}");
        assert!(!self.ends.acked.is_empty() && self.ends.others.is_empty());
    }

    /// The names of the thresholds that failed.
    pub fn failed(&self) -> Vec<&str> {
        let thresholds = self.report["thresholds"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let failed = thresholds.iter().filter(|one| one["ok"] == false);
        failed.filter_map(|one| one["metric"].as_str()).collect()
    }
}

/// `settings` with those that name the deployment's keys and admin listeners.
pub fn start(script: &'static str, deployment: &Deployment, settings: Settings<'_>) -> Running {
    let keys: Vec<&str> = deployment
        .tenants
        .iter()
        .map(|tenant| tenant.key.as_str())
        .collect();
    let keys = keys.join(",");
    let parts = match deployment.shape {
        Shape::AllInOne => vec![Part::Edge],
        Shape::ThreeProcesses => vec![Part::Edge, Part::Normalizer, Part::SinkWriter],
    };
    let admin: Vec<String> = parts
        .into_iter()
        .map(|part| deployment.admin(part).base().to_owned())
        .collect();
    let admin = admin.join(",");
    let mut all = vec![("KEYS", keys.as_str()), ("ADMIN_URL", admin.as_str())];
    all.extend_from_slice(settings);
    Running::start(script, &format!("http://{}", deployment.edge_address()), &all)
}

/// Rows and distinct ids by request.
type Stored = BTreeMap<String, (u64, u64)>;

/// Asserts that the table holds just the events that were acknowledged in `runs`, each once.
pub async fn expect_stored(deployment: &Deployment, runs: &[&Ran]) {
    let ends = runs.iter().flat_map(|ran| &ran.ends.acked);
    let acked: BTreeMap<String, u64> = ends.map(|(id, events)| (id.clone(), *events)).collect();
    let wanted: u64 = acked.values().sum();
    let sql = "SELECT splitByChar('.', event_id)[2] AS request, count(), uniqExact(event_id) FROM telemetry.events \
               GROUP BY request FORMAT TSV";
    let part = match deployment.shape {
        Shape::AllInOne => Part::Up,
        Shape::ThreeProcesses => Part::Normalizer,
    };
    let stored = eventually("all that was acknowledged", STORED_DEADLINE, async || {
        if deployment.metric(part, "sluice_log_backlog_bytes", "").await > 0.0 {
            return None;
        }
        let text = deployment.clickhouse().query(sql).await.ok()?;
        let stored: Stored = text.lines().map(row).collect();
        (stored.values().map(|(rows, _)| rows).sum::<u64>() >= wanted).then_some(stored)
    })
    .await;
    assert_eq!(differences(&acked, &stored), Vec::<String>::new());
}

/// What is lost, doubled, or there without having been acknowledged.
fn differences(acked: &BTreeMap<String, u64>, stored: &Stored) -> Vec<String> {
    let missing_or_doubled = acked.iter().filter_map(|(id, events)| {
        let (rows, ids) = stored.get(id).copied().unwrap_or_default();
        ((rows, ids) != (*events, *events))
            .then(|| format!("{id}: {events} acknowledged, {rows} rows of {ids} events"))
    });
    let others = stored.keys().filter(|id| !acked.contains_key(*id));
    missing_or_doubled
        .chain(others.map(|id| format!("{id}: never acknowledged")))
        .collect()
}

#[test]
fn a_lost_a_doubled_and_a_never_acknowledged_event_are_each_found() {
    let acked = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
    let stored = |a, b: Option<(u64, u64)>| -> Stored {
        let all = [("a", Some(a)), ("b", b)];
        all.into_iter()
            .filter_map(|(id, rows)| Some((id.to_owned(), rows?)))
            .collect()
    };
    let found = |stored: Stored| differences(&acked, &stored).len();
    assert_eq!(found(stored((3, 3), Some((2, 2)))), 0);
    assert_eq!(found(stored((3, 3), None)), 1);
    assert_eq!(found(stored((2, 2), Some((2, 2)))), 1);
    assert_eq!(found(stored((4, 3), Some((2, 2)))), 1);
    let mut more = stored((3, 3), Some((2, 2)));
    more.insert("c".to_owned(), (1, 1));
    assert_eq!(found(more), 1);
}

fn row(line: &str) -> (String, (u64, u64)) {
    let cells: Vec<&str> = line.split('\t').collect();
    let number = |at: usize| cells[at].parse().expect("a number");
    (cells[0].to_owned(), (number(1), number(2)))
}
