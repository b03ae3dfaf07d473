//! The directory through which a test has processes fail: see `sluice_common::failpoint`.

use crate::oracle::{self, Oracle};
use crate::{Deployment, Part, eventually};
use sluice_common::failpoint::{Bound, Point, Safety};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const INSERT_DEADLINE: Duration = Duration::from_secs(30);

/// So that seconds of load roll segments, and seal and merge buckets.
pub const SMALL_FILES: [(Bound, u64); 2] = [(Bound::SegmentBytes, 128 << 10), (Bound::RotateMs, 500)];

/// Whether every case of a sweep is to be run: `SLUICE_SWEEP=full`.
#[must_use]
pub fn is_full() -> bool {
    std::env::var("SLUICE_SWEEP").is_ok_and(|how| how == "full")
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Kill,
    Error,
    /// In ms.
    Delay(u64),
}

/// One thing that is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub point: Point,
    pub action: Action,
    /// Hits of the point from now on, this one included.
    pub nth: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.point.name();
        match self.action {
            Action::Kill => write!(f, "{name} kill {}", self.nth),
            Action::Error => write!(f, "{name} error {}", self.nth),
            Action::Delay(ms) => write!(f, "{name} {ms} {}", self.nth),
        }
    }
}

/// Has a table in trouble set aside after a second, in the config of three processes below `deployment`'s directory.
///
/// # Panics
/// Where there is no such config.
pub fn park_soon(deployment: &Path) {
    let path = deployment.join("sluice.yaml");
    let text = std::fs::read_to_string(&path).expect("a config");
    let soon = text.replacen("clickhouse: {url:", "clickhouse: {park_after: 1s, url:", 1);
    assert_ne!(text, soon, "a ClickHouse beside three processes");
    std::fs::write(path, soon).expect("written");
}

/// The directory of one deployment.
#[derive(Debug)]
pub struct Failpoints {
    dir: PathBuf,
    armed: u64,
}

impl Failpoints {
    /// Makes the directory below `deployment`'s own: heeded by what is started from now on.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn below(deployment: &Path) -> Self {
        let dir = deployment.join("failpoints");
        std::fs::create_dir_all(&dir).expect("a directory");
        Self { dir, armed: 0 }
    }

    /// Makes bounds smaller in what is started from now on.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn shrink(&self, bounds: &[(Bound, u64)]) {
        let line = |(bound, value): &(Bound, u64)| format!("{} {value}\n", bound.name());
        self.write("sizes", &bounds.iter().map(line).collect::<String>());
    }

    /// Switches safeties off in what is started from now on; those that are not named are on.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn switch_off(&self, safeties: &[Safety]) {
        let lines = safeties.iter().map(|one| format!("{}\n", one.name()));
        self.write("off", &lines.collect::<String>());
    }

    /// Puts a case in force; one that was and did not happen is forgotten.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn arm(&mut self, case: Case) {
        self.armed += 1;
        let line = format!("{} {case}\n", self.armed);
        std::fs::remove_file(self.dir.join("fired")).ok();
        // Whole or not at all: processes read it at any moment.
        self.write("plan.new", &line);
        std::fs::rename(self.dir.join("plan.new"), self.dir.join("plan")).expect("renamed");
    }

    /// Whether the case in force has happened.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        self.dir.join("fired").exists()
    }

    /// Waits until it has.
    ///
    /// # Panics
    /// Where it has not by the deadline: the point was never hit so often.
    pub async fn fired(&self, case: Case, deadline: Duration) {
        let what = format!("hit {case}");
        eventually(&what, deadline, async || self.has_fired().then_some(())).await;
    }

    /// Takes back a case that is not to happen any more.
    pub fn disarm(&self) {
        // It may have happened just now.
        std::fs::remove_file(self.dir.join("plan")).ok();
    }

    /// Has ClickHouse know the token of one event's insert, and of its row of the books, and have lost the rows: as
    /// after its crash between the two. The sink-writer is dead then, and nobody knows of the answer.
    ///
    /// # Panics
    /// Where any of it cannot be done.
    pub async fn lose_rows_of_a_token(&mut self, deployment: &mut Deployment, oracle: &Oracle) {
        oracle::drained(deployment).await;
        let clickhouse = deployment.clickhouse();
        let end = "SELECT max(_src_o) FROM telemetry.ledger";
        let end = clickhouse.query(end).await.expect("an end");
        // The second answer: rows and books are both there.
        let case = Case {
            point: Point::InsertAnswered,
            action: Action::Kill,
            nth: 2,
        };
        self.arm(case);
        let acked = oracle.probe(deployment).await;
        assert!(acked, "the log needs no sink-writer: {}", deployment.last_words());
        self.fired(case, INSERT_DEADLINE).await;
        let dead = async || deployment.ended(Part::SinkWriter);
        eventually("the sink-writer's end", INSERT_DEADLINE, dead).await;
        for table in ["events", "ledger"] {
            let old = if end == "0" {
                String::new()
            } else {
                format!(" AND _src_o > {end}")
            };
            let sql =
                format!("ALTER TABLE telemetry.{table} DELETE WHERE true{old} SETTINGS mutations_sync = 2");
            clickhouse.query(&sql).await.expect("deleted");
        }
    }

    /// Forgets all hits so far.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn forget_hits(&self) {
        self.write("hits", "");
    }

    /// Hits so far, by point.
    ///
    /// # Panics
    /// Where a process has written a point that does not exist.
    #[must_use]
    pub fn hits(&self) -> BTreeMap<Point, u64> {
        let text = std::fs::read_to_string(self.dir.join("hits")).unwrap_or_default();
        let mut hits = BTreeMap::new();
        for name in text.lines() {
            let point = Point::named(name).unwrap_or_else(|| panic!("{name} is no point"));
            *hits.entry(point).or_default() += 1;
        }
        hits
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).expect("written");
    }
}
