//! The sink-writer's half of a replay against a real ClickHouse: what it tells of tables, and what it does
//! beside and with them.

#[path = "../../sink-writer/tests/support/mod.rs"]
mod support;

use ingestctl::clickhouse::ClickHouse;
use sluice_common::books::{Entry, LedgerRow};
use sluice_common::config::Dataset;
use sluice_common::fates::Fate;
use sluice_common::ids::TenantId;
use sluice_common::replay::{
    DiffLine, Facts, KeptRows, PartCover, ReplayCall, ReplayId, SinkAsk, SinkTold, Span, TableDiff,
};
use sluice_common::wire::sink::{RangeRecord, SinkCall, SinkReply, SinkRequest, Steps, Verdict};
use sluice_sink_writer::SinkWriter;
use sluice_tests::Client;
use sluice_tests::service::clickhouse;
use std::time::Duration;
use support::{APPEND_MS, LOG, PARTITION, call, events, name, record, rows, write, writer};
use tempfile::TempDir;
use tower::ServiceExt as _;

const T: i64 = APPEND_MS as i64;
const DAY: i64 = 86_400_000;
const HOUR_S: u64 = APPEND_MS / 3_600_000 * 3_600;
const SHADOW: &str = "s.events_shadow_r00000007";
const BEFORE: &str = "s.events_before_r00000007";

/// A ClickHouse with the tables of `datasets` in database `s`.
struct Engine {
    server: ClickHouse,
    writer: SinkWriter,
    _dir: TempDir,
}

impl Engine {
    async fn start(datasets: &[Dataset]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let server = clickhouse(dir.path(), 0).await;
        let writer = writer(&server.url(), "s", datasets);
        let made = writer.create_missing(Duration::from_secs(20)).await;
        made.expect("created");
        Self {
            server,
            writer,
            _dir: dir,
        }
    }

    /// ClickHouse's answer.
    async fn sql(&self, sql: &str) -> String {
        Client::new(self.server.url()).query(sql).await.expect(sql)
    }

    async fn ask(&self, ask: SinkAsk) -> Result<SinkTold, String> {
        let call = ReplayCall {
            id: ReplayId(7),
            log: LOG,
            partition: PARTITION,
            server: None,
            ask,
            timeout: Duration::from_secs(20),
        };
        let reply = self.writer.clone().oneshot(SinkRequest::Replay(call)).await;
        let reply = reply.unwrap_or_else(|never| match never {});
        if let SinkReply::Failed { reason } = reply {
            return Err(reason);
        }
        let SinkReply::Replay(told) = reply else {
            panic!("another answer: {reply:?}")
        };
        Ok(told)
    }

    async fn done(&self, ask: SinkAsk) {
        assert_eq!(self.ask(ask).await, Ok(SinkTold::Done));
    }

    async fn refused(&self, ask: SinkAsk, because: &str) {
        let reason = self.ask(ask).await.expect_err(because);
        assert!(reason.contains(because), "{reason}");
    }

    async fn kept(&self, ask: SinkAsk) -> Vec<KeptRows> {
        let SinkTold::Kept(kept) = self.ask(ask).await.expect("kept") else {
            panic!("another answer")
        };
        kept
    }

    /// Of records, or, without any, of whole partitions.
    async fn compared(&self, table: &str, whole: bool) -> TableDiff {
        let ask = SinkAsk::Compare {
            table: name(table),
            tenant: None,
            spans: if whole {
                Vec::new()
            } else {
                vec![records(0, 1_000)]
            },
        };
        let SinkTold::Compared(diff) = self.ask(ask).await.expect("compared") else {
            panic!("another answer")
        };
        diff
    }

    async fn covers(&self, table: &str) -> Vec<PartCover> {
        let told = self.ask(SinkAsk::Covers { table: name(table) }).await;
        let SinkTold::Covers(covers) = told.expect("covers") else {
            panic!("another answer")
        };
        covers
    }

    async fn prepare(&self, table: &str) {
        self.done(SinkAsk::Prepare {
            tables: vec![name(table)],
        })
        .await;
    }

    /// Writes into the live table, or into the shadow.
    async fn write(&self, range: (u64, u64), records: Vec<RangeRecord>, shadow: bool) -> Vec<Verdict> {
        let mut asked = call(range, Steps::AGAIN, None, records);
        if shadow {
            let other = SHADOW.trim_start_matches("s.");
            asked.instead.insert(name("events"), name(other));
        }
        let reports = write(&self.writer, asked).await;
        reports.into_iter().map(|report| report.verdict).collect()
    }
}

/// The default dataset without its TTL: the rows' times stand still, and the calendar does not.
fn lasting() -> Dataset {
    Dataset {
        ttl: None,
        ..events()
    }
}

fn fill(table: &str) -> SinkAsk {
    SinkAsk::Fill { table: name(table) }
}

fn save(table: &str, part: &str) -> SinkAsk {
    SinkAsk::Save {
        table: name(table),
        part: part.into(),
    }
}

/// As both sides are now.
async fn swap(engine: &Engine, table: &str, part: &str) -> SinkAsk {
    let rows = async |table: String| {
        let sql = format!(
            "SELECT sum(rows) FROM system.parts WHERE active AND database = 's' AND table = '{table}' AND partition_id = '{}' FORMAT TSV",
            part.replace(['\\', '\''], "")
        );
        engine.sql(&sql).await.parse().expect("a number")
    };
    SinkAsk::Swap {
        table: name(table),
        part: part.into(),
        live: rows(table.to_owned()).await,
        shadow: rows(format!("{table}_shadow_r00000007")).await,
    }
}

fn kept(offset: u64, last: u16, rows: &[u16]) -> KeptRows {
    KeptRows {
        offset,
        last,
        rows: rows.to_vec(),
    }
}

/// Two records with their books: of the live rows two are doubled by hand, and one row is refused by ClickHouse.
async fn write_a_range_with_its_books(engine: &Engine) {
    let tenant = TenantId::new("acme").expect("valid");
    let book = LedgerRow {
        received: 7,
        stored: 5,
        duplicate: 1,
        dead_lettered: 1,
        ..LedgerRow::new(Entry::Range, tenant, name("events"), APPEND_MS, 10 << 16)
    };
    let records = || {
        let fates = [Fate::Keep, Fate::Drop, Fate::Keep, Fate::Conflict];
        vec![
            record(10, "events", rows(&[T, T, T, T]), &fates),
            record(11, "events", rows(&[T, T - DAY, -5]), &[]),
        ]
    };
    let asked = SinkCall {
        ledger: vec![book],
        ..call((10, 12), Steps::FIRST, None, records())
    };
    write(&engine.writer, asked).await;
    engine
        .sql("INSERT INTO s.events SELECT * FROM s.events WHERE bitAnd(_src_o, 65535) = 0")
        .await;
    engine
        .sql(&format!(
            "INSERT INTO s.dead_letters (stage, ingested_at, _src_l, _src_p, _src_o) \
             VALUES ('insert', now(), {0}, 3, {1}), ('intake', now(), {0}, 3, {1})",
            LOG.0,
            (11 << 16) + 2
        ))
        .await;
}

fn records(from: u64, to: u64) -> Span {
    Span {
        partition: PARTITION,
        from,
        to,
    }
}

#[tokio::test]
async fn books_and_rows_and_letters_are_told_as_they_are() {
    let engine = Engine::start(&[lasting()]).await;
    write_a_range_with_its_books(&engine).await;
    let table = || name("events");
    let minute = APPEND_MS / 60_000 * 60;
    let facts = |since_s, until_s, (from, below)| SinkAsk::Facts {
        table: table(),
        datasets: vec![name("events")],
        since_s,
        until_s,
        from,
        below,
    };
    let told = engine.ask(facts(minute, minute + 60, (10, 12))).await;
    let expected = Facts {
        live: Some(4),
        stored: 5,
        duplicate: 1,
        dead_lettered: 1,
        parked: 0,
        shared: false,
        servers: 1,
    };
    assert_eq!(told, Ok(SinkTold::Facts(expected)));
    let later = engine.ask(facts(0, u64::MAX, (11, 12))).await;
    let Ok(SinkTold::Facts(later)) = later else {
        panic!("no facts")
    };
    assert_eq!(later.live, Some(2), "of record 11 alone");
    for (since, until, records) in [
        (minute + 60, u64::MAX, (0, 12)),
        (0, minute, (0, 12)),
        (0, u64::MAX, (0, 10)),
    ] {
        let Ok(SinkTold::Facts(facts)) = engine.ask(facts(since, until, records)).await else {
            panic!("no facts")
        };
        assert_eq!((facts.live, facts.stored), (Some(0), 0));
    }
    let rows = |from, to| SinkAsk::Kept {
        table: table(),
        from,
        to,
    };
    assert_eq!(
        engine.kept(rows(0, 1 << 48)).await,
        [kept(10, 2, &[0, 2]), kept(11, 1, &[])]
    );
    assert_eq!(engine.kept(rows(11, 12)).await, [kept(11, 1, &[])]);
    assert!(engine.kept(rows(12, 99)).await.is_empty());
    let letters = SinkAsk::Letters { from: 0, to: 99 };
    // That of the row whose identity was taken, and that of the one which was refused.
    assert_eq!(engine.kept(letters).await, [kept(10, 3, &[3]), kept(11, 2, &[2])]);
    engine.sql("DROP TABLE s.events SYNC").await;
    engine.refused(rows(0, 99), "table events does not exist").await;
    let Ok(SinkTold::Facts(gone)) = engine.ask(facts(0, u64::MAX, (0, 99))).await else {
        panic!("no facts")
    };
    assert_eq!((gone.live, gone.stored), (Some(0), 5));
}

const ALL_TYPES: &str = "(tenant LowCardinality(String), ts DateTime64(3, 'UTC'), n Nullable(Int64), \
    m Map(LowCardinality(String), Nullable(String)), j JSON(max_dynamic_paths = 1), a Array(Nullable(Int32)), lc LowCardinality(Nullable(String)), \
    d Decimal(38, 10), w Decimal(76, 3), f Float64, u UUID, i4 IPv4, i6 IPv6, en Enum8('a' = 1), b Bool, d32 Date32, \
    fs FixedString(3), ma Map(LowCardinality(String), Array(Int32)), `it's ``odd``` UInt8, t Tuple(x UInt8, y Nullable(String)), \
    up String MATERIALIZED upper(tenant), al String ALIAS tenant, ep String EPHEMERAL, \
    ingested_at DateTime64(3, 'UTC'), _src_l UInt64, _src_p UInt16, _src_o UInt64) \
    ENGINE = MergeTree PARTITION BY toDate(ts) ORDER BY (tenant, ts)";

/// Rows of `ALL_TYPES`: number `o` in record 0, with `n` and a JSON as said.
fn row_of_all(o: u64, n: &str, json: &str) -> String {
    format!(
        "('acme', toDateTime64({seconds}, 3, 'UTC'), {n}, map('k', NULL), '{json}', [1, NULL], NULL, 1.5, -2.25, 0.1, \
         toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0'), '1.2.3.4', '::1', 'a', true, '1950-01-01', 'abc', map('x', [1, 2]), 7, \
         (1, NULL), toDateTime64({seconds}, 3, 'UTC'), {log}, 3, {o})",
        seconds = APPEND_MS / 1_000,
        log = LOG.0
    )
}

fn insert_all(table: &str, rows: &[String]) -> String {
    format!(
        "INSERT INTO s.{table} (tenant, ts, n, m, j, a, lc, d, w, f, u, i4, i6, en, b, d32, fs, ma, `it's ``odd```, t, \
         ingested_at, _src_l, _src_p, _src_o) VALUES {}",
        rows.join(", ")
    )
}

async fn all_three_are_the_same(engine: &Engine) {
    for whole in [false, true] {
        let diff = engine.compared("all_types", whole).await;
        let [line] = diff.lines.as_slice() else {
            panic!("{diff:?}")
        };
        assert!(line.is_equal(), "{line:?}");
        assert_eq!(
            (line.hour_s, line.tenant.as_str(), line.live),
            (HOUR_S, "acme", 3)
        );
        assert!(diff.examples.is_empty() && diff.omitted == 0);
    }
}

/// The JSON values are held apart by the parts of each table in another way, and are the same all the same.
#[tokio::test]
async fn rows_of_every_type_are_compared_and_each_that_is_not_the_same_is_found() {
    let engine = Engine::start(&[lasting()]).await;
    engine.sql(&format!("CREATE TABLE s.all_types {ALL_TYPES}")).await;
    engine.prepare("all_types").await;
    let shadow = "all_types_shadow_r00000007";
    let (long, short) = (r#"{"a": 1, "b": {"c": "x"}}"#, r#"{"b": {"c": "y"}}"#);
    let same = [
        row_of_all(0, "NULL", long),
        row_of_all(1, "1", short),
        row_of_all(2, "2", short),
    ];
    engine.sql(&insert_all("all_types", &same)).await;
    engine.sql(&insert_all(shadow, &same[1..])).await;
    engine.sql(&insert_all(shadow, &same[..1])).await;
    engine.sql(&format!("OPTIMIZE TABLE s.{shadow} FINAL")).await;
    all_three_are_the_same(&engine).await;
    let live = [
        row_of_all(3, "3", short),
        row_of_all(4, "NULL", short),
        row_of_all(6, "6", short),
    ];
    engine.sql(&insert_all("all_types", &live)).await;
    let other = [
        row_of_all(4, "0", short),
        row_of_all(5, "5", short),
        row_of_all(6, "6", short),
    ];
    engine.sql(&insert_all(shadow, &other)).await;
    engine.sql(&insert_all(shadow, &other[2..])).await;
    let diff = engine.compared("all_types", false).await;
    let line = DiffLine {
        live_sum: String::new(),
        shadow_sum: String::new(),
        ..diff.lines[0].clone()
    };
    let expected = DiffLine {
        hour_s: HOUR_S,
        tenant: "acme".into(),
        live: 6,
        shadow: 7,
        only_live: 1,
        only_shadow: 1,
        differing: 1,
        doubled: 1,
        ..DiffLine::default()
    };
    assert_eq!(line, expected);
    assert_ne!(diff.lines[0].live_sum, diff.lines[0].shadow_sum);
    let mut examples: Vec<_> = diff
        .examples
        .iter()
        .map(|row| (row.source_o, row.what.as_str()))
        .collect();
    examples.sort_unstable();
    let expected = [
        (3, "only_live"),
        (4, "differing"),
        (5, "only_shadow"),
        (6, "doubled"),
    ];
    assert_eq!(examples, expected);
}

#[tokio::test]
async fn lines_are_by_hour_and_tenant_and_those_that_differ_are_told_first() {
    let engine = Engine::start(&[lasting()]).await;
    engine.prepare("events").await;
    let rows = |table: &str, tenants: u32| {
        format!(
            "INSERT INTO {table} (tenant, event_id, timestamp, service, ingested_at, _src_l, _src_p, _src_o) \
             SELECT concat('t', toString(number % {tenants})), 'x', fromUnixTimestamp64Milli({T}), 'api', \
             fromUnixTimestamp64Milli({T} + intDiv(number, {tenants}) * 3600000), {}, 3, number FROM numbers({tenants} * 2)",
            LOG.0
        )
    };
    engine.sql(&rows("s.events", 1_200)).await;
    engine.sql(&rows(SHADOW, 1_200)).await;
    engine
        .sql(&format!(
            "ALTER TABLE {SHADOW} DELETE WHERE _src_o = 2399 SETTINGS mutations_sync = 2"
        ))
        .await;
    let diff = engine.compared("events", false).await;
    assert_eq!((diff.lines.len(), diff.omitted), (2_000, 400));
    let unlike: Vec<_> = diff.lines.iter().filter(|line| !line.is_equal()).collect();
    assert_eq!(unlike.len(), 1);
    assert_eq!(
        (unlike[0].hour_s, unlike[0].tenant.as_str(), unlike[0].only_live),
        (HOUR_S + 3_600, "t1199", 1)
    );
    let order: Vec<_> = diff
        .lines
        .iter()
        .map(|line| (line.hour_s, &line.tenant))
        .collect();
    assert!(order.is_sorted());
    let of_one = SinkAsk::Compare {
        table: name("events"),
        tenant: Some(TenantId::new("t5").expect("valid")),
        spans: vec![records(0, 1)],
    };
    let Ok(SinkTold::Compared(diff)) = engine.ask(of_one).await else {
        panic!("not compared")
    };
    assert!(
        diff.lines.len() == 2
            && diff
                .lines
                .iter()
                .all(|line| line.tenant == "t5" && line.is_equal())
    );
}

/// Live: records 1 to 4 on one day and 5 on another; the shadow has 1 and 2.
#[tokio::test]
async fn live_rows_that_the_shadow_lacks_are_seen_and_copied_once() {
    let engine = Engine::start(&[lasting()]).await;
    engine.prepare("events").await;
    let one = |offset: u64, time: i64| record(offset, "events", rows(&[time, time]), &[]);
    let live: Vec<_> = (1..5)
        .map(|offset| one(offset, T))
        .chain([one(5, T - DAY)])
        .collect();
    engine.write((1, 6), live, false).await;
    engine.write((1, 3), vec![one(1, T), one(2, T)], true).await;
    let cover = |uncovered| PartCover {
        part: "20261121".into(),
        shadow: 8 - uncovered,
        live: 8,
        uncovered,
        ..PartCover::default()
    };
    assert_eq!(engine.covers("events").await, [cover(4)]);
    assert_eq!(engine.ask(fill("events")).await, Ok(SinkTold::Filled(4)));
    assert_eq!(engine.covers("events").await, [cover(0)]);
    assert_eq!(engine.ask(fill("events")).await, Ok(SinkTold::Filled(0)));
    // As if a copy had been cut short: what is missing comes again, though it was inserted before.
    let cut = format!("ALTER TABLE {SHADOW} DELETE WHERE _src_o >= 262144 SETTINGS mutations_sync = 2");
    engine.sql(&cut).await;
    assert_eq!(engine.ask(fill("events")).await, Ok(SinkTold::Filled(2)));
    assert_eq!(engine.covers("events").await, [cover(0)]);
    let whole = engine.compared("events", true).await;
    assert!(whole.lines.iter().all(DiffLine::is_equal), "{whole:?}");
    // A row in a partition that the shadow does not have; rows without provenance, which are not copied.
    engine
        .sql("INSERT INTO s.events SELECT * REPLACE (toDateTime64('2026-11-10', 3, 'UTC') AS timestamp) FROM s.events WHERE _src_o = 65536")
        .await;
    let elsewhere = PartCover {
        elsewhere: 1,
        ..cover(0)
    };
    assert_eq!(engine.covers("events").await, std::slice::from_ref(&elsewhere));
    engine
        .sql(&format!(
            "INSERT INTO s.events (timestamp) SELECT fromUnixTimestamp64Milli({T}) FROM numbers(3)"
        ))
        .await;
    let unknown = PartCover {
        live: 11,
        uncovered: 3,
        ..elsewhere
    };
    assert_eq!(engine.covers("events").await, [unknown]);
    engine
        .refused(fill("events"), "several rows of one provenance")
        .await;
    assert_eq!(engine.sql(&format!("SELECT count() FROM {SHADOW}")).await, "8");
    engine
        .sql(&format!(
            "INSERT INTO {SHADOW} SELECT * FROM {SHADOW} WHERE _src_o = 65536"
        ))
        .await;
    assert_eq!(engine.covers("events").await[0].doubled, 1);
    engine.refused(fill("events"), "more than once").await;
}

#[tokio::test]
async fn a_partition_is_kept_and_replaced_and_no_swap_comes_after_the_fence() {
    let engine = Engine::start(&[lasting()]).await;
    engine.prepare("events").await;
    let one = |offset: u64, time: i64| record(offset, "events", rows(&[time]), &[]);
    engine
        .write((1, 4), vec![one(1, T), one(2, T), one(3, T - DAY)], false)
        .await;
    engine.write((1, 3), vec![one(1, T), one(2, T)], true).await;
    engine
        .sql("ALTER TABLE s.events DELETE WHERE _src_o = 65536 SETTINGS mutations_sync = 2")
        .await;
    let part = "20261121";
    engine
        .refused(
            swap(&engine, "events", "20261120").await,
            "no rows in partition 20261120",
        )
        .await;
    for bad in ["'", "", "x y"] {
        engine
            .refused(swap(&engine, "events", bad).await, "no id of a partition")
            .await;
        engine.refused(save("events", bad), "no id of a partition").await;
    }
    let offsets = async |table: &str| {
        engine
            .sql(&format!("SELECT groupArray(bitShiftRight(_src_o, 16)) FROM (SELECT _src_o FROM {table} ORDER BY _src_o)"))
            .await
    };
    for _ in 0..2 {
        engine.done(save("events", part)).await;
        assert_eq!(offsets(BEFORE).await, "[2]");
    }
    for _ in 0..2 {
        engine.done(swap(&engine, "events", part).await).await;
        assert_eq!(offsets("s.events").await, "[1,2,3]");
        // What was there before the swap stays what was there before.
        engine.done(save("events", part)).await;
        assert_eq!(offsets(BEFORE).await, "[2]");
    }
    // The tokens of replaced rows are there still: an insert that was held up does not come again.
    engine
        .write((1, 4), vec![one(1, T), one(2, T), one(3, T - DAY)], false)
        .await;
    write(
        &engine.writer,
        call(
            (1, 4),
            Steps::FIRST,
            None,
            vec![one(1, T), one(2, T), one(3, T - DAY)],
        ),
    )
    .await;
    assert_eq!(offsets("s.events").await, "[1,2,3]");
    let tables = || vec![name("events")];
    for _ in 0..2 {
        engine.done(SinkAsk::Fence { tables: tables() }).await;
    }
    engine
        .refused(swap(&engine, "events", part).await, "was dropped")
        .await;
    assert_eq!(
        (offsets("s.events").await, offsets(BEFORE).await),
        ("[1,2,3]".into(), "[2]".into())
    );
    for _ in 0..2 {
        engine.done(SinkAsk::Drop { tables: tables() }).await;
    }
    let left =
        "SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = 's' ORDER BY name)";
    assert_eq!(engine.sql(left).await, "['dead_letters','events','ledger']");
    assert_eq!(offsets("s.events").await, "[1,2,3]");
}

/// Also: a live partition that is empty has nothing to be kept, and comes back from the shadow.
#[tokio::test]
async fn tables_without_partitions_and_with_a_ttl_are_replaced_too() {
    let dataset = Dataset {
        partition_by: sluice_common::config::PartitionBy::None,
        ..events()
    };
    let engine = Engine::start(&[dataset]).await;
    engine.prepare("events").await;
    let shadow = engine
        .sql(&format!("SHOW CREATE TABLE {SHADOW} FORMAT TSVRaw"))
        .await;
    for part in [
        "TTL toDateTime(timestamp) + toIntervalSecond(",
        "non_replicated_deduplication_window = 10000",
        "INDEX _src_o_range _src_o TYPE minmax",
        "CODEC(Delta(8), ZSTD(1))",
    ] {
        assert!(shadow.contains(part), "{part} is not in {shadow}");
    }
    let now = engine.sql("SELECT toUnixTimestamp64Milli(now64(3))").await;
    let now: i64 = now.parse().expect("a time");
    let records = || vec![record(1, "events", rows(&[now, now]), &[])];
    engine.write((1, 2), records(), true).await;
    engine.done(save("events", "all")).await;
    engine.done(swap(&engine, "events", "all").await).await;
    assert_eq!(engine.sql("SELECT count() FROM s.events").await, "2");
    assert_eq!(engine.sql(&format!("SELECT count() FROM {BEFORE}")).await, "0");
    engine.sql("ALTER TABLE s.events ADD COLUMN extra UInt8").await;
    engine
        .refused(swap(&engine, "events", "all").await, "differ in columns (extra)")
        .await;
    engine.refused(fill("events"), "differ in columns (extra)").await;
    engine
        .refused(
            SinkAsk::Prepare {
                tables: vec![name("events")],
            },
            "differ in columns (extra)",
        )
        .await;
    engine.sql("ALTER TABLE s.events DROP COLUMN extra").await;
    engine.sql("ALTER TABLE s.events DROP INDEX _src_o_range").await;
    engine
        .refused(swap(&engine, "events", "all").await, "are not alike any more")
        .await;
}

#[tokio::test]
async fn shadows_are_made_of_what_is_there_or_configured_and_of_nothing_that_loses_rows() {
    let engine = Engine::start(&[lasting()]).await;
    let narrow =
        "(event_id String, timestamp DateTime64(3, 'UTC'), _src_l UInt64, _src_p UInt16, _src_o UInt64)";
    engine
        .sql(&format!(
            "CREATE TABLE s.narrow {narrow} ENGINE = MergeTree ORDER BY event_id"
        ))
        .await;
    engine
        .sql(&format!(
            "CREATE TABLE s.replacing {narrow} ENGINE = ReplacingMergeTree ORDER BY event_id"
        ))
        .await;
    engine
        .sql("CREATE TABLE s.bare (event_id String) ENGINE = MergeTree ORDER BY event_id")
        .await;
    let prepare = |names: &[&str]| SinkAsk::Prepare {
        tables: names.iter().map(|text| name(text)).collect(),
    };
    for _ in 0..2 {
        engine.done(prepare(&["narrow", "events"])).await;
    }
    for bad in ["replacing", "bare"] {
        engine
            .refused(prepare(&["dead_letters", bad]), "cannot be replayed")
            .await;
    }
    engine.refused(prepare(&["unknown"]), "create it first").await;
    let made = "SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = 's' AND name LIKE '%shadow%' ORDER BY name)";
    let expected = "['events_shadow_r00000007','narrow_shadow_r00000007']";
    assert_eq!(
        engine.sql(made).await,
        expected,
        "all are looked at before one is made"
    );
    let kept = SinkAsk::Kept {
        table: name("bare"),
        from: 0,
        to: 9,
    };
    engine.refused(kept, "cannot be replayed").await;
    let facts = SinkAsk::Facts {
        table: name("narrow"),
        datasets: vec![name("events")],
        since_s: 0,
        until_s: 60,
        from: 0,
        below: 9,
    };
    let Ok(SinkTold::Facts(facts)) = engine.ask(facts).await else {
        panic!("no facts")
    };
    assert_eq!(facts.live, None, "without append times");
    let narrow_row = format!("SELECT 'x', fromUnixTimestamp64Milli({T}), {}, 3, 1", LOG.0);
    engine.sql(&format!("INSERT INTO s.narrow {narrow_row}")).await;
    engine
        .sql(&format!("INSERT INTO s.narrow_shadow_r00000007 {narrow_row}"))
        .await;
    let diff = engine.compared("narrow", true).await;
    assert!(diff.lines.len() == 1 && diff.lines[0].is_equal(), "{diff:?}");
    assert_eq!((diff.lines[0].hour_s, diff.lines[0].tenant.as_str()), (0, ""));
    engine.sql("DROP TABLE s.events SYNC").await;
    engine.sql(&format!("DROP TABLE {SHADOW} SYNC")).await;
    engine.done(prepare(&["events"])).await;
    let shadow = engine
        .sql(&format!("SHOW CREATE TABLE {SHADOW} FORMAT TSVRaw"))
        .await;
    assert!(shadow.contains("PARTITION BY toDate(timestamp)"), "{shadow}");
}

/// Of one range, live and replayed: two tables, two tokens, and each proven where it was written.
#[tokio::test]
async fn rows_that_go_to_a_shadow_are_stored_and_proven_there_and_only_there() {
    let engine = Engine::start(&[lasting()]).await;
    engine.prepare("events").await;
    let records = || vec![record(1, "events", rows(&[T, T]), &[])];
    let counts = async || {
        let sql = format!("SELECT (SELECT count() FROM s.events), (SELECT count() FROM {SHADOW}) FORMAT TSV");
        engine.sql(&sql).await
    };
    assert_eq!(engine.write((1, 2), records(), false).await, [Verdict::Done]);
    assert_eq!(counts().await, "2\t0");
    for _ in 0..2 {
        assert_eq!(engine.write((1, 2), records(), true).await, [Verdict::Done]);
        assert_eq!(counts().await, "2\t2");
    }
    engine.sql("TRUNCATE TABLE s.events").await;
    assert_eq!(engine.write((1, 2), records(), true).await, [Verdict::Done]);
    assert_eq!(counts().await, "0\t2");
}
