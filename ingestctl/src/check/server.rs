//! What `check` finds at ClickHouse: the server, its clock, and each table.

use super::finding::Findings;
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::{Dataset, Loaded};
use sluice_common::metrics::Metrics;
use sluice_common::servers::name_of;
use sluice_sink_writer::report::{ServerReport, TableReport, TableState};
use sluice_sink_writer::survey::{Survey, Ttl};
use sluice_sink_writer::{SinkWriter, Target};
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);
/// Clocks further apart than this make freshness and age bounds wrong.
const MAX_SKEW_MS: u64 = 2_000;
/// How long rows may wait in the log and still have to be there when they are inserted: a weekend.
const BACKLOG_S: u64 = 48 * 3_600;

/// Asks the ClickHouse at `url`, and those that stand in for it.
pub async fn look(loaded: &Loaded, url: &str, production: bool, findings: &mut Findings) {
    let clock: SharedClock = Arc::new(SystemClock);
    let targets = match Target::all(loaded, (name_of(url), url)) {
        Ok(targets) => targets,
        Err(error) => return findings.unusable("clickhouse.ca", error.to_string()),
    };
    let several = targets.len() > 1;
    let sink = SinkWriter::new(&targets, &loaded.config.datasets, &Metrics::detached());
    let reports = sink.describe_all(&clock, DEADLINE).await;
    let reached = reports.iter().any(|report| report.server.is_ok());
    let mut there = Vec::with_capacity(reports.len());
    for (target, report) in targets.iter().zip(reports) {
        let at = if several {
            format!(" at {}", target.name)
        } else {
            String::new()
        };
        there.push(report.server.is_ok().then(|| at.clone()));
        server((&target.url, &at), report, reached, findings);
    }
    if several {
        failover(&targets, findings);
    }
    for dataset in &loaded.config.datasets {
        let found = sink.survey(dataset, DEADLINE).await;
        for (at, found) in there.iter().zip(found) {
            let Some(at) = at else { continue };
            let what = format!("table {}{at}", dataset.table());
            match found {
                Ok(None) => {}
                Ok(Some(found)) => survey(&what, &found, dataset, production, findings),
                Err(error) => findings.degraded(&what, format!("it could not be looked at closer: {error}")),
            }
        }
    }
}

/// One server and its tables. While another is `reached`, one that is away is no reason not to start.
fn server((url, at): (&str, &str), report: ServerReport, reached: bool, findings: &mut Findings) {
    match report.server {
        Err(error) if reached => {
            let message =
                format!("{url}: {error}; another takes what comes, and nothing is known of the tables here");
            return findings.degraded("clickhouse", message);
        }
        Err(error) => return findings.unusable("clickhouse", format!("{url}: {error}")),
        Ok(facts) => {
            findings.good("clickhouse", format!("{url}: version {}", facts.version));
            let skew = facts.clock_skew_ms;
            if skew.unsigned_abs() > MAX_SKEW_MS {
                findings.degraded(
                    &format!("clock{at}"),
                    format!("its clock is {skew} ms from ours: set both by NTP"),
                );
            }
        }
    }
    report
        .tables
        .into_iter()
        .for_each(|table| state(table, at, findings));
}

/// What several servers promise, and what not.
fn failover(targets: &[Target], findings: &mut Findings) {
    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    findings.good(
        "failover",
        format!(
            "{}: new rows go to the first that answers. Each row is exactly once on the server that took it, and on no other:              a query over all of them is yours to make. What was under way to a server that goes away waits for that server.              Replicas of one table are at-least-once until that is tested",
            names.join(", ")
        ),
    );
}

fn state(table: TableReport, at: &str, findings: &mut Findings) {
    let what = format!("table {}{at}", table.table);
    match table.state {
        TableState::Good => findings.good(&what, "exactly once"),
        TableState::Missing => findings.good(&what, "not there yet: it is created at start"),
        TableState::Degraded(notes) => findings.degraded(&what, notes.join("; ")),
        TableState::Unusable(reasons) => findings.unusable(&what, reasons.join("; ")),
        TableState::Unreachable(error) => findings.unusable(&what, error.to_string()),
    }
}

fn survey(what: &str, found: &Survey, dataset: &Dataset, production: bool, findings: &mut Findings) {
    if !found.insert_time_views.is_empty() {
        findings.degraded(
            what,
            format!(
                "materialized views run at each insert into it, and may see a block twice: {}; use refreshable ones",
                found.insert_time_views.join(", ")
            ),
        );
    }
    if found.replicated {
        findings.degraded(
            what,
            "it is replicated: at-least-once until that is tested; a token that was lost is never given up there",
        );
    }
    if production && !found.synced && !found.replicated {
        findings.degraded(
            what,
            "ClickHouse does not sync inserts into it: a loss of power there may lose stored rows; ALTER TABLE … MODIFY \
             SETTING fsync_after_insert = 1, or replicate",
        );
    }
    let Some(time) = &dataset.time else { return };
    let least = (time.max_past.ms() / 1_000).saturating_add(BACKLOG_S);
    match &found.ttl {
        Ttl::None => {}
        Ttl::After(seconds) if u64::try_from(*seconds).unwrap_or(0) < least => findings.degraded(
            what,
            format!(
                "its TTL is {} h, and rows may be {} h old (time.max_past and two days of backlog) when they are inserted: \
                 ClickHouse may drop them before they are read, and a doubt about them is not settled; lengthen the TTL, or \
                 shorten time.max_past",
                seconds / 3_600,
                least / 3_600
            ),
        ),
        Ttl::After(_) => {}
        Ttl::Other(expression) => findings.good(
            what,
            format!("its TTL {expression:?} is not a span after {}: see that it is longer than {} h", time.field, least / 3_600),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use std::path::Path;

    fn told(found: &Survey, production: bool) -> Vec<(Level, String)> {
        let loaded = Loaded::read(None, Path::new("/nowhere")).expect("the default config");
        let mut findings = Findings::default();
        survey(
            "table events",
            found,
            &loaded.config.datasets[0],
            production,
            &mut findings,
        );
        findings
            .all()
            .iter()
            .map(|one| (one.level, one.message.clone()))
            .collect()
    }

    #[test]
    fn what_weakens_the_promise_is_told() {
        assert_eq!(told(&Survey::default(), false), []);
        let weak = Survey {
            insert_time_views: vec!["telemetry.v".into()],
            replicated: true,
            ttl: Ttl::After(8 * 24 * 3_600),
            synced: false,
        };
        let told_weak = told(&weak, true);
        for part in [
            "telemetry.v",
            "replicated",
            "its TTL is 192 h, and rows may be 216 h old",
        ] {
            assert!(
                told_weak
                    .iter()
                    .any(|(level, text)| *level == Level::Degraded && text.contains(part)),
                "{part}"
            );
        }
        assert_eq!(
            told(
                &Survey {
                    ttl: Ttl::After(30 * 24 * 3_600),
                    ..Survey::default()
                },
                false
            ),
            []
        );
        assert!(told(&Survey::default(), true)[0].1.contains("fsync_after_insert"));
    }
}
