//! `GET /admin/v1/ledger`: the books as they stand now, what is in flight included.
//!
//! One committed offset is taken first, of each partition that is worked on here. ClickHouse is asked for the sums of
//! all rows of the books but those of this log at or past it; the log is read from it on. So each event is seen on one side
//! only, whatever is settled meanwhile. What is past the offset is not decided yet: its rows are in
//! flight, its rejected ones are rejected.
//!
//! A committed range whose rows of the books are set aside counts as in flight, and whatever of them is in
//! ClickHouse by now counts nothing: both by one look at what is set aside.

use crate::log::ReadError;
use crate::owned::{Owned, Work};
use crate::parked::shelf::Shelf;
use axum::extract::{RawQuery, State};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;
use sluice_common::admin::Refused;
use sluice_common::books::{BooksLine, BooksQuery, DEAD_LETTERS, LEDGER, MINUTE_MS, SettledPart};
use sluice_common::clock::SharedClock;
use sluice_common::config::Period;
use sluice_common::ids::{LogId, Name, Offset, TenantId, source_o};
use sluice_common::limits::{BOOKS_READ_BYTES, LOG_READ_BYTES, MAX_BOOKS_LINES};
use sluice_common::record::{Holds, Record};
use sluice_common::wire::sink::{Range, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

/// How long ClickHouse may take for the sums.
const SUMS_DEADLINE: Duration = Duration::from_secs(5);
const DEFAULT_SINCE: Period = Period::hours(1);

/// What the route stands on.
pub struct Ledger {
    pub log: LogId,
    /// How many partitions the log has.
    pub partitions: u16,
    pub owned: Owned,
    pub sink: Seam<SinkRequest>,
    pub clock: SharedClock,
    /// One question at a time: each may read [`BOOKS_READ_BYTES`].
    pub gate: Semaphore,
}

/// The route's answer.
#[derive(Debug, Serialize)]
struct Told {
    /// Newest minute first.
    lines: Vec<BooksLine>,
    /// What is not in the lines, each a sentence; empty where they are complete.
    notes: Vec<String>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    since: Period,
    tenant: Option<TenantId>,
}

type Lines = BTreeMap<(TenantId, Name, u64), BooksLine>;

impl Ledger {
    /// The route.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/admin/v1/ledger", get(answer))
            .with_state(Arc::new(self))
    }

    async fn tell(&self, asked: Asked) -> Result<Told, Refused> {
        let minute_s = MINUTE_MS / 1_000;
        let since_s = self.clock.now_ms().saturating_sub(asked.since.ms()) / 1_000 / minute_s * minute_s;
        let parts: Vec<Part> = self.owned.all().into_iter().map(Part::of).collect();
        let query = BooksQuery {
            log: self.log,
            settled: parts.iter().map(Part::settled).collect(),
            since_s,
            tenant: asked.tenant.clone(),
            limit: u32::try_from(MAX_BOOKS_LINES).unwrap_or(u32::MAX),
            timeout: SUMS_DEADLINE,
        };
        let (sums, silent) = self.sums(query).await?;
        let not_asked = |reason: String| {
            format!("the books of a ClickHouse that does not answer are in no line: {reason}")
        };
        let mut notes: Vec<String> = silent.into_iter().map(not_asked).collect();
        if sums.len() == MAX_BOOKS_LINES {
            notes.push(format!(
                "only the newest {MAX_BOOKS_LINES} lines are told: ask with a shorter `since` or for one tenant"
            ));
        }
        let mut lines: Lines = sums.into_iter().map(|line| (key(&line), line)).collect();
        let is_asked = |line: &&BooksLine| {
            line.minute_s >= since_s && asked.tenant.as_ref().is_none_or(|tenant| *tenant == line.tenant)
        };
        for line in parts.iter().flat_map(|part| &part.aside.lines).filter(is_asked) {
            let fresh = BooksLine::new(line.tenant.clone(), line.dataset.clone(), line.minute_s);
            lines.entry(key(line)).or_insert(fresh).add(line);
        }
        tokio::task::block_in_place(|| {
            parts
                .iter()
                .try_for_each(|part| part.add_in_flight(&mut lines, (since_s, &asked), &mut notes))
        })?;
        if parts.len() < usize::from(self.partitions) {
            let (here, all) = (parts.len(), self.partitions);
            notes.push(format!(
                "this normalizer works on {here} of the log's {all} partitions: what is in flight in the others is in no line"
            ));
        }
        let mut lines: Vec<BooksLine> = lines.into_values().collect();
        // Stable: within a minute they stay in order of tenant and dataset.
        lines.sort_by_key(|line| std::cmp::Reverse(line.minute_s));
        Ok(Told { lines, notes })
    }

    async fn sums(&self, query: BooksQuery) -> Result<(Vec<BooksLine>, Vec<String>), Refused> {
        let answer = self.sink.clone().oneshot(SinkRequest::Books(query)).await;
        let reason = match answer {
            Ok(SinkReply::Books(lines, silent)) => return Ok((lines, silent)),
            Ok(other) => other.not_an_answer(),
            Err(never) => match never {},
        };
        let detail =
            format!("the books cannot be read from ClickHouse now: {reason}; ask again once it is there");
        Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "books_unreadable",
            detail,
        ))
    }
}

/// One partition as it stands.
struct Part {
    work: Work,
    committed: Offset,
    aside: Aside,
}

impl Part {
    fn of(work: Work) -> Self {
        let committed = work.committed();
        // In this order: what is set aside is on the shelf before its range is committed.
        let aside = Aside::of(&work.shelf, committed);
        Self {
            work,
            committed,
            aside,
        }
    }

    fn settled(&self) -> SettledPart {
        SettledPart {
            partition: self.work.log.number(),
            below_o: source_o(self.committed, 0),
            without: self.aside.without.clone(),
        }
    }

    /// Adds what the log holds past what is committed.
    fn add_in_flight(
        &self,
        lines: &mut Lines,
        (since_s, asked): (u64, &Asked),
        notes: &mut Vec<String>,
    ) -> Result<(), Refused> {
        let unreadable = |error: ReadError| {
            let detail = format!("what is in flight cannot be read from the log: {error}");
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "books_unreadable", detail)
        };
        let end = self.work.log.end().map_err(unreadable)?;
        let (mut at, mut bytes) = (self.committed, 0);
        // The pump's own place in the log is left alone.
        let log = self.work.log.beside();
        while at < end {
            let records = log.read(at, LOG_READ_BYTES).map_err(unreadable)?;
            for record in records.iter().filter(|record| record.place.offset < end) {
                at = record.place.offset + 1;
                bytes += record.frame().len();
                let wanted = asked
                    .tenant
                    .as_ref()
                    .is_none_or(|tenant| *tenant == record.meta.tenant);
                if wanted && record.place.append_ms / 1_000 >= since_s {
                    add(lines, record);
                }
            }
            if bytes >= BOOKS_READ_BYTES || lines.len() >= 2 * MAX_BOOKS_LINES {
                let left = end - at;
                notes.push(format!(
                    "of the backlog {left} records were not read: their events are in no line yet"
                ));
                break;
            }
        }
        Ok(())
    }
}

/// What our own tables are to say of committed ranges, and cannot yet.
struct Aside {
    /// Ranges whose rows of the books are set aside. Some of them may be there already: none is counted.
    without: Vec<Range>,
    lines: Vec<BooksLine>,
}

impl Aside {
    fn of(shelf: &Shelf, committed: Offset) -> Self {
        let units = shelf.units();
        let below = || units.iter().filter(|(id, _)| id.b <= committed);
        let of = |table: &'static str| below().filter(move |(id, _)| id.table.as_str() == table);
        let mut without: Vec<Range> = Vec::new();
        let booked: BTreeSet<Offset> = of(LEDGER).map(|(id, _)| id.a).collect();
        for (id, _) in of(LEDGER) {
            match without.last_mut() {
                Some(last) if last.b == id.a => last.b = id.b,
                Some(_) | None => without.push(id.range()),
            }
        }
        let letters = of(DEAD_LETTERS).filter(|(id, _)| !booked.contains(&id.a));
        let lines = of(LEDGER)
            .chain(letters)
            .flat_map(|(_, unit)| unit.in_flight.clone());
        Self {
            lines: lines.collect(),
            without,
        }
    }
}

fn key(line: &BooksLine) -> (TenantId, Name, u64) {
    (line.tenant.clone(), line.dataset.clone(), line.minute_s)
}

fn add(lines: &mut Lines, record: &Record) {
    if record.meta.holds == Holds::RejectedCopies {
        return;
    }
    let meta = &record.meta;
    let minute_s = record.place.append_ms / MINUTE_MS * (MINUTE_MS / 1_000);
    let fresh = BooksLine::new(meta.tenant.clone(), meta.dataset.clone(), minute_s);
    let line = lines.entry(key(&fresh)).or_insert(fresh);
    for span in record.spans() {
        line.received += i64::from(span.rows) + i64::from(span.rejected);
        line.in_flight += i64::from(span.rows);
        line.rejected += i64::from(span.rejected);
    }
}

async fn answer(State(ledger): State<Arc<Ledger>>, RawQuery(query): RawQuery) -> Result<Json<Told>, Refused> {
    let asked = parse(query.as_deref().unwrap_or_default())
        .map_err(|detail| Refused::new(StatusCode::BAD_REQUEST, "bad_admin_request", detail))?;
    let _turn = ledger.gate.acquire().await.map_err(|_| {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "books_unreadable",
            "the normalizer is stopping",
        )
    })?;
    ledger.tell(asked).await.map(Json)
}

/// `since=1h&tenant=acme`, both optional.
fn parse(query: &str) -> Result<Asked, String> {
    let mut asked = Asked {
        since: DEFAULT_SINCE,
        tenant: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("since", text)) => {
                let since = text.parse::<Period>();
                asked.since = since.map_err(|error| format!("`since` {text:?}: {error}"))?;
            }
            Some(("tenant", text)) => {
                asked.tenant = Some(TenantId::new(text).map_err(|error| format!("`tenant`: {error}"))?);
            }
            Some(_) | None => return Err("the books are asked for with `since` and `tenant` only".into()),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_a_time_and_a_tenant_and_nothing_else() {
        let hour = Asked {
            since: Period::hours(1),
            tenant: None,
        };
        assert_eq!(parse(""), Ok(hour));
        let asked = parse("since=30d&tenant=acme").expect("a question");
        assert_eq!(
            (asked.since, asked.tenant.expect("named").as_str()),
            (Period::hours(720), "acme")
        );
        for bad in ["since=yesterday", "tenant=%27", "limit=5", "since"] {
            parse(bad).expect_err(bad);
        }
    }
}
