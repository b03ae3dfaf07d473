//! `ingestctl status`: one picture of the pipeline, tenant by tenant.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use crate::picture::collect::read;
use crate::picture::text::{bar, bytes, count, duration, maybe};
use crate::picture::{Count, Level, ServiceState, Snapshot, State};
use crate::remote::AdminArgs;
use clap::Args;
use sluice_common::clock::SystemClock;
use sluice_common::process::Failure;
use std::fmt::Write as _;
use std::time::Duration;

/// Shows one picture of a running Sluice.
///
/// Services and whether they are ready, the log's backlog and the queues against their bounds, what each
/// tenant sends, how fresh stored events are, inserts, errors, sheds, dead letters. Rates are over one
/// second, for which it watches. What needs your attention comes first, and makes the exit code 2; it is 1
/// where no listener answers.
///
/// Examples:
///
///   ingestctl status
///
///   ingestctl status --output json | jq '.attention, .log'
///
///   ingestctl status --admin http://127.0.0.1:9464,http://127.0.0.1:9465,http://127.0.0.1:9466
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What rates are over.
pub const INTERVAL: Duration = Duration::from_secs(1);
const BAR: usize = 24;
/// Tenants listed as text; JSON has all.
const MAX_TENANTS: usize = 30;

impl StatusArgs {
    /// Looks twice, prints the picture.
    ///
    /// # Errors
    /// An address that is none, or a stdout that cannot be written.
    pub async fn run(&self) -> Result<Exit, Failure> {
        let remote = self.admin.remote()?;
        let before = read(&remote, &SystemClock).await;
        let picture = if Snapshot::of(&before, None).is_reached() {
            tokio::time::sleep(INTERVAL).await;
            Snapshot::of(&read(&remote, &SystemClock).await, Some(&before))
        } else {
            Snapshot::of(&before, None)
        };
        self.output.print(&picture, || text(&picture))?;
        if !picture.is_reached() {
            return Err(nobody(remote.addresses()));
        }
        Ok(if picture.attention.is_empty() {
            Exit::Good
        } else {
            Exit::Attention
        })
    }
}

/// No listener answers.
#[must_use]
pub fn nobody(addresses: &[String]) -> Failure {
    Failure::new(format!(
        "Sluice does not answer at {}: start it, or name its admin listeners with --admin URL,URL",
        addresses.join(", ")
    ))
}

/// The picture as text.
#[must_use]
pub fn text(picture: &Snapshot) -> String {
    let mut out = String::new();
    for sentence in &picture.attention {
        out += &format!("ATTENTION  {sentence}\n");
    }
    for one in &picture.services {
        out += &service(one);
    }
    if picture.is_reached() {
        out += &levels(picture);
        out += &flow(picture);
        out += &tenants(picture);
    }
    out
}

fn service(one: &ServiceState) -> String {
    let state = match one.state {
        State::Ready => "ready",
        State::NotReady => "NOT READY",
        State::Unreachable => "NOT REACHED",
    };
    let mut line = format!("{state:<10} {}", one.address);
    if !one.roles.is_empty() {
        let _ = write!(line, "  {}", one.roles.join(" + "));
    }
    if let Some(version) = &one.version {
        let _ = write!(line, "  {version}");
    }
    if let Some(uptime) = one.uptime_s {
        let _ = write!(line, "  up {}", duration(uptime));
    }
    if let Some(memory) = one.memory_bytes {
        let _ = write!(line, "  {}", bytes(memory));
    }
    if let Some(cpu) = one.cpu {
        let _ = write!(line, "  {cpu:.2} cores");
    }
    line + "\n"
}

fn levels(picture: &Snapshot) -> String {
    let mut out = String::from("\nBACKLOG AND QUEUES\n");
    let age = format!(
        "oldest {}, {} on disk",
        duration(picture.log_age_s),
        bytes(picture.log_disk_bytes)
    );
    out += &level("not yet stored", &picture.log, &age);
    for queue in &picture.queues {
        out += &level(&format!("queue {}", queue.name), queue, "");
    }
    out += &level(
        "dedup state",
        &picture.dedup,
        &format!("{} keys", count(picture.dedup_keys)),
    );
    out
}

fn level(name: &str, level: &Level, more: &str) -> String {
    let ratio = level.ratio();
    let of = format!("{} of {}", bytes(level.bytes), bytes(level.limit_bytes));
    let line = format!(
        "  {name:<15} {} {:>4.0} %  {of:<24} {more}",
        bar(ratio, BAR),
        ratio * 100.0
    );
    line.trim_end().to_owned() + "\n"
}

fn flow(picture: &Snapshot) -> String {
    let flow = &picture.flow;
    let mut out = String::from("\nFLOW, A SECOND\n");
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<15} {text}");
    };
    line(
        "edge",
        format!(
            "{} requests, {} events taken, {} rejected, {}",
            count(flow.requests),
            count(flow.accepted),
            count(flow.rejected),
            bytes(flow.bytes)
        ),
    );
    let inserts = format!("{:.1} inserts, {} rows", flow.inserts, count(flow.inserted_rows));
    line(
        "ClickHouse",
        format!(
            "{inserts}, {} stored, {} repeats dropped",
            count(flow.stored),
            count(flow.duplicates)
        ),
    );
    line(
        "answer",
        format!(
            "p50 {}, p95 {}",
            maybe(picture.ack.p50_s),
            maybe(picture.ack.p95_s)
        ),
    );
    line(
        "queryable after",
        format!(
            "p50 {}, p95 {}",
            maybe(picture.freshness.p50_s),
            maybe(picture.freshness.p95_s)
        ),
    );
    out += "\nSINCE THE START\n";
    for (name, counts) in [
        ("shed", &picture.shed),
        ("errors", &picture.errors),
        ("dead letters", &picture.dead_letters),
        ("alarms", &picture.alarms),
    ] {
        let _ = writeln!(out, "  {name:<15} {}", counted(counts));
    }
    out
}

/// The kinds that were seen, the most first.
#[must_use]
pub fn counted(counts: &[Count]) -> String {
    let mut seen: Vec<&Count> = counts.iter().filter(|one| one.total > 0.0).collect();
    seen.sort_by(|a, b| b.total.total_cmp(&a.total));
    if seen.is_empty() {
        return "none".into();
    }
    let texts = seen
        .iter()
        .map(|one| format!("{} {}", one.what, count(one.total)));
    texts.collect::<Vec<_>>().join(", ")
}

fn tenants(picture: &Snapshot) -> String {
    if picture.tenants.is_empty() {
        return "\nNo tenant has sent anything yet.\n".into();
    }
    let mut table = TextTable::new(&["TENANT", ">EVENTS/S", ">BYTES/S", ">ACCEPTED", ">REJECTED"]);
    for one in picture.tenants.iter().take(MAX_TENANTS) {
        table.row([
            one.tenant.clone(),
            count(one.events_per_s),
            bytes(one.bytes_per_s),
            format!("{:.0}", one.accepted),
            format!("{:.0}", one.rejected),
        ]);
    }
    let more = picture.tenants.len().saturating_sub(MAX_TENANTS);
    let rest = if more > 0 {
        format!("… and {more} more\n")
    } else {
        String::new()
    };
    format!("\n{table}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::recorded;

    #[test]
    fn the_picture_shows_every_part() {
        let (before, after) = recorded();
        let text = text(&Snapshot::of(&after, Some(&before)));
        for part in [
            "ready",
            "not yet stored",
            "queue edge",
            "queue sink",
            "dedup state",
            "inserts",
            "TENANT",
            "p95",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
