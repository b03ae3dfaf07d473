//! The sink-writer against a real ClickHouse: what it splits, stores, proves and refuses.

#[path = "../../sink-writer/tests/support/mod.rs"]
mod support;

use arrow_array::builder::{ListBuilder, UInt16Builder, UInt32Builder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Int64Array, ListArray, StringArray,
    TimestampMillisecondArray, UInt16Array, UInt32Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field};
use ingestctl::clickhouse::ClickHouse;
use sluice_common::books::{Entry, LedgerRow};
use sluice_common::classify::{Class, TIME_OUT_OF_RANGE};
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::{Dataset, PartitionBy};
use sluice_common::fates::Fate;
use sluice_common::ids::TenantId;
use sluice_common::wire::sink::{
    Horizon, Piece, RangeRecord, RefusedRows, SinkCall, SinkReply, SinkRequest, Steps, SubKey, SubReport,
    SubTask, Verdict,
};
use sluice_sink_writer::SinkWriter;
use sluice_sink_writer::report::TableState;
use sluice_tests::Client;
use sluice_tests::service::clickhouse;
use std::sync::Arc;
use std::time::Duration;
use support::{APPEND_MS, Columns, LOG, PARTITION, call, events, name, record, rows, write, writer};
use tempfile::TempDir;
use tower::ServiceExt as _;

const T: i64 = APPEND_MS as i64;
const DAY: i64 = 86_400_000;
const VERIFY_ONLY: Steps = Steps {
    verify_first: true,
    insert: false,
    verify_after: false,
};

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
        writer
            .create_missing(Duration::from_secs(20))
            .await
            .expect("created");
        Self {
            server,
            writer,
            _dir: dir,
        }
    }

    /// ClickHouse's answer.
    async fn ask(&self, sql: &str) -> String {
        Client::new(self.server.url()).query(sql).await.expect(sql)
    }

    async fn write(&self, range: (u64, u64), steps: Steps, records: Vec<RangeRecord>) -> Vec<SubReport> {
        write(&self.writer, call(range, steps, None, records)).await
    }
}

/// The default dataset without its TTL: the rows' times stand still, and the calendar does not.
fn lasting() -> Dataset {
    Dataset {
        ttl: None,
        ..events()
    }
}

fn named(reports: &[SubReport]) -> Vec<(String, u64, &Verdict)> {
    let name = |report: &SubReport| format!("{}/{}", report.sub.table, report.sub.part);
    reports
        .iter()
        .map(|one| (name(one), one.rows, &one.verdict))
        .collect()
}

/// Two records over two days, with a repeat, a conflict and a row before 1970.
fn two_days() -> Vec<RangeRecord> {
    let fates = [Fate::Keep, Fate::Keep, Fate::Drop, Fate::Conflict];
    vec![
        record(10, "events", rows(&[T, T - DAY, T, T]), &fates),
        record(11, "events", rows(&[T, T - DAY, -5]), &[]),
    ]
}

#[tokio::test]
async fn a_range_is_split_by_table_and_partition_written_once_and_proven() {
    let engine = Engine::start(&[lasting()]).await;
    for steps in [Steps::FIRST, Steps::AGAIN, Steps::FIRST_VERIFIED, VERIFY_ONLY] {
        let mut reports = engine.write((10, 12), steps, two_days()).await;
        let unplaced = reports.pop().expect("the row that no partition can hold");
        assert_eq!((unplaced.sub.part.as_str(), unplaced.rows), ("unplaced", 1));
        let class = Class::Quarantine;
        assert!(
            matches!(&unplaced.verdict, Verdict::Refused { code: TIME_OUT_OF_RANGE, class: of, .. } if *of == class),
            "{unplaced:?}"
        );
        let expected = [
            ("dead_letters/202611".to_owned(), 1, &Verdict::Done),
            ("events/20261120".to_owned(), 2, &Verdict::Done),
            ("events/20261121".to_owned(), 2, &Verdict::Done),
        ];
        assert_eq!(named(&reports), expected, "{steps:?}");
    }
    assert_eq!(engine.ask("SELECT count() FROM s.events").await, "4");
    let dead = "SELECT code, message != '', payload != '' FROM s.dead_letters ORDER BY code FORMAT TSV";
    let dead = engine.ask(dead).await;
    assert!(dead.contains("idempotency_conflict\t1\t1"), "{dead}");
    assert_eq!(dead.lines().count(), 1);
    let clock: SharedClock = Arc::new(SystemClock);
    let mut reports = engine.writer.describe_all(&clock, Duration::from_secs(5)).await;
    let report = reports.remove(0);
    let good = |one: &sluice_sink_writer::report::TableReport| matches!(one.state, TableState::Good);
    assert!(report.tables.iter().all(good), "{:?}", report.tables);
}

/// Corrections may have the provenance of the range's own row; each kind is a sub-batch of its own.
#[tokio::test]
async fn rows_of_the_books_are_written_once_a_kind_and_proven() {
    let engine = Engine::start(&[lasting()]).await;
    let tenant = TenantId::new("acme").expect("valid");
    let row = |entry, received, stored, parked| LedgerRow {
        received,
        stored,
        parked,
        ..LedgerRow::new(entry, tenant.clone(), name("events"), APPEND_MS, 10 << 16)
    };
    let ledger = vec![row(Entry::Range, 4, 4, 0), row(Entry::Parked, 0, -4, 4)];
    for steps in [Steps::FIRST, Steps::AGAIN, VERIFY_ONLY] {
        let asked = SinkCall {
            ledger: ledger.clone(),
            ..call((10, 12), steps, None, Vec::new())
        };
        let reports = write(&engine.writer, asked).await;
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert!(
            reports.iter().all(|one| one.verdict == Verdict::Done),
            "{reports:?}"
        );
    }
    let books = "SELECT tenant, sum(received), sum(stored), sum(parked), count() FROM s.ledger GROUP BY tenant FORMAT TSV";
    assert_eq!(engine.ask(books).await, "acme\t4\t0\t4\t2");
}

/// As after a crash of the server between its dedup record and the part: the token is there, the rows are not.
#[tokio::test]
async fn a_token_that_outlived_its_rows_is_told_apart_and_a_new_generation_stores_them() {
    let engine = Engine::start(&[lasting()]).await;
    engine.write((10, 12), Steps::FIRST, two_days()).await;
    engine
        .ask("ALTER TABLE s.events DELETE WHERE toDate(timestamp) = '2026-11-20' SETTINGS mutations_sync = 2")
        .await;
    engine
        .ask("ALTER TABLE s.events DELETE WHERE _src_o = 655360 SETTINGS mutations_sync = 2")
        .await;
    let found = engine.write((10, 12), VERIFY_ONLY, two_days()).await;
    assert_eq!(found[1].verdict, Verdict::NoneThere);
    assert_eq!(found[2].verdict, Verdict::Between { found: 1 });
    let poisoned = engine.write((10, 12), Steps::AGAIN, two_days()).await;
    assert_eq!(poisoned[1].verdict, Verdict::CleanButNone);
    assert_eq!(
        poisoned[2].verdict,
        Verdict::Between { found: 1 },
        "nothing was sent"
    );
    let bumped = SubTask {
        sub: poisoned[1].sub.clone(),
        generation: 1,
    };
    let again = call((10, 12), Steps::AGAIN, Some(vec![bumped]), two_days());
    let reports = write(&engine.writer, again).await;
    assert_eq!(
        named(&reports),
        [("events/20261120".to_owned(), 2, &Verdict::Done)]
    );
    assert_eq!(engine.ask("SELECT count() FROM s.events").await, "3");
}

/// A walk's nodes and the letters of refused rows, each with a token and a proof of its own.
#[tokio::test]
async fn pieces_of_a_sub_batch_and_letters_of_its_refused_rows_are_written_once_and_proven() {
    let engine = Engine::start(&[lasting()]).await;
    let times: Vec<i64> = (0..10).map(|n| T + n).collect();
    let records = || {
        vec![
            record(10, "events", rows(&times[..6]), &[]),
            record(11, "events", rows(&times[6..]), &[]),
        ]
    };
    let task = |from, to| SubTask {
        sub: SubKey {
            piece: Piece::Rows { from, to },
            ..SubKey::whole(name("events"), "20261121")
        },
        generation: 0,
    };
    // Over the edge of the records, and the last rows; row 5 is left out.
    let tasks = vec![task(0, 5), task(6, 8), task(8, 10)];
    for steps in [Steps::AGAIN, Steps::AGAIN, VERIFY_ONLY] {
        let asked = call((10, 12), steps, Some(tasks.clone()), records());
        let reports = write(&engine.writer, asked).await;
        let rows: Vec<u64> = reports.iter().map(|one| one.rows).collect();
        assert_eq!(rows, [5, 2, 2]);
        assert!(
            reports.iter().all(|one| one.verdict == Verdict::Done),
            "{reports:?}"
        );
    }
    assert_eq!(
        engine
            .ask("SELECT count(), uniqExact(_src_o) FROM s.events FORMAT TSV")
            .await,
        "9\t9"
    );
    let dropped = [Fate::Drop; 6];
    let letter = || SinkCall {
        quarantined: vec![RefusedRows {
            code: "clickhouse_469".into(),
            message: "no".into(),
            rows: vec![(10 << 16) + 5],
        }],
        ..call(
            (10, 12),
            Steps::AGAIN,
            None,
            vec![record(10, "events", rows(&times[..6]), &dropped)],
        )
    };
    for _ in 0..2 {
        let reports = write(&engine.writer, letter()).await;
        assert_eq!(
            named(&reports),
            [("dead_letters/202611".to_owned(), 1, &Verdict::Done)]
        );
        assert_eq!(reports[0].sub.piece, Piece::Quarantined);
    }
    let told = "SELECT _src_o - 655360, stage, code, message, JSONExtractString(payload, 'event_id') FROM s.dead_letters FORMAT TSV";
    assert_eq!(engine.ask(told).await, "5\tinsert\tclickhouse_469\tno\tid-5");
}

#[tokio::test]
async fn the_horizon_finds_rows_at_or_past_an_offset_in_each_table_and_the_dead_letters() {
    let engine = Engine::start(&[lasting()]).await;
    engine.write((10, 12), Steps::FIRST, two_days()).await;
    for (from, found) in [(10, vec![name("events"), name("dead_letters")]), (12, Vec::new())] {
        let horizon = Horizon {
            log: LOG,
            partition: PARTITION,
            server: None,
            from_o: from << 16,
            tables: vec![name("events"), name("gone")],
            timeout: Duration::from_secs(5),
        };
        let answer = engine.writer.clone().oneshot(SinkRequest::Horizon(horizon)).await;
        let Ok(SinkReply::Horizon(told)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(
            told.found.into_iter().map(|(table, _)| table).collect::<Vec<_>>(),
            found
        );
    }
}

#[tokio::test]
async fn partitions_are_computed_as_the_server_does() {
    let keys = [
        "none",
        "toDate(timestamp)",
        "toMonday(timestamp)",
        "toYYYYMM(timestamp)",
        "toStartOfHour(timestamp)",
    ];
    let datasets: Vec<Dataset> = (0..keys.len())
        .map(|n| Dataset {
            table: Some(name(&format!("by{n}"))),
            partition_by: PartitionBy::parse(keys[n]).expect("known"),
            ..lasting()
        })
        .collect();
    let engine = Engine::start(&datasets).await;
    // The first Monday, the leap day of 2000 to the millisecond, a year's end, the last seconds of DateTime.
    let times = [
        4 * DAY,
        951_782_399_999,
        951_782_400_000,
        T,
        T + 1,
        1_893_455_999_999,
        1_893_456_000_000,
        4_107_542_399_000,
        4_294_967_295_000,
    ];
    for (n, key) in keys.iter().enumerate() {
        let (offset, table) = (n as u64, format!("by{n}"));
        let records = vec![record(offset, &table, rows(&times), &[])];
        let reports = engine
            .write((offset, offset + 1), Steps::FIRST_VERIFIED, records)
            .await;
        assert!(
            reports.iter().all(|one| one.verdict == Verdict::Done),
            "{key}: {reports:?}"
        );
        let mut ours: Vec<String> = reports
            .iter()
            .map(|one| format!("{}\t{}", one.sub.part, one.rows))
            .collect();
        ours.sort();
        let sql = format!("SELECT _partition_id, count() FROM s.{table} GROUP BY 1 ORDER BY 1 FORMAT TSV");
        assert_eq!(engine.ask(&sql).await, ours.join("\n"), "{key}");
    }
}

#[tokio::test]
async fn a_table_that_changes_is_refused_where_it_cannot_hold_the_rows_and_adapted_to_where_it_can() {
    let engine = Engine::start(&[lasting()]).await;
    let records = |offset| vec![record(offset, "events", rows(&[T, T - DAY]), &[])];
    engine.ask("DROP TABLE s.events SYNC").await;
    let gone = engine.write((1, 2), Steps::FIRST, records(1)).await;
    assert_eq!(gone.len(), 2, "named by the configured partitions");
    assert!(
        gone.iter()
            .all(|one| matches!(one.verdict, Verdict::Refused { code: 60, .. })),
        "{gone:?}"
    );

    let provenance = "_src_l UInt64, _src_p UInt16, _src_o UInt64";
    engine
        .ask(&format!(
            "CREATE TABLE s.events (event_id String, timestamp DateTime64(3, 'UTC'), status UInt8, {provenance}) \
             ENGINE = MergeTree ORDER BY tuple()"
        ))
        .await;
    let narrow = engine.write((1, 2), Steps::AGAIN, records(1)).await;
    assert!(
        matches!(&narrow[0].verdict, Verdict::Refused { code: 53, message, .. } if message.contains("status")),
        "{narrow:?}"
    );

    engine
        .ask("ALTER TABLE s.events MODIFY COLUMN status Nullable(Int64), ADD COLUMN more String DEFAULT 'x'")
        .await;
    let wide = engine.write((1, 2), Steps::AGAIN, records(1)).await;
    assert_eq!(named(&wide), [("events/all".to_owned(), 2, &Verdict::Done)]);

    // Dropped while its description is remembered: the server says no, and the next attempt knows.
    engine.ask("ALTER TABLE s.events DROP COLUMN status").await;
    engine.write((2, 3), Steps::AGAIN, records(2)).await;
    let without = engine.write((2, 3), Steps::AGAIN, records(2)).await;
    assert_eq!(without[0].verdict, Verdict::Done, "{without:?}");
    assert_eq!(engine.ask("SELECT count() FROM s.events").await, "4");
}

/// Nothing can be verified there; the token still stands between an attempt and its repeat.
#[tokio::test]
async fn a_table_without_provenance_is_guarded_by_its_token_window_alone() {
    let engine = Engine::start(&[]).await;
    let ddl = "CREATE TABLE s.plain (event_id String) ENGINE = MergeTree ORDER BY tuple()";
    engine
        .ask(&format!(
            "{ddl} SETTINGS non_replicated_deduplication_window = 100"
        ))
        .await;
    for steps in [Steps::FIRST, Steps::AGAIN] {
        let records = vec![record(3, "plain", rows(&[T, T - DAY]), &[])];
        let reports = engine.write((3, 4), steps, records).await;
        assert_eq!(reports[0].verdict, Verdict::Done);
    }
    assert_eq!(engine.ask("SELECT count() FROM s.plain").await, "2");
}

#[tokio::test]
async fn schema_versions_of_one_range_meet_in_one_block() {
    let engine = Engine::start(&[]).await;
    engine
        .ask(
            "CREATE TABLE s.v (a UInt32, s LowCardinality(String), t DateTime64(6, 'UTC'), n Int64 DEFAULT 9, \
             _src_l UInt64, _src_p UInt16, _src_o UInt64) ENGINE = MergeTree ORDER BY tuple() \
             SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let one: Columns = vec![
        ("a", Arc::new(UInt16Array::from(vec![1, 2]))),
        ("s", Arc::new(StringArray::from(vec!["x", "y"]))),
    ];
    let dictionary: DictionaryArray<Int32Type> = vec![Some("z"), None].into_iter().collect();
    let dictionary: ArrayRef = Arc::new(dictionary);
    let times = TimestampMillisecondArray::from(vec![T, T]).with_timezone("UTC");
    let two: Columns = vec![
        ("a", Arc::new(UInt32Array::from(vec![70_000, 4]))),
        ("s", dictionary),
        ("n", Arc::new(Int64Array::from(vec![5, 6]))),
        ("t", Arc::new(times)),
    ];
    let records = vec![
        record(1, "v", one, &[]),
        record(2, "v", two, &[Fate::Keep, Fate::Drop]),
    ];
    let reports = engine.write((1, 3), Steps::FIRST_VERIFIED, records).await;
    assert_eq!(reports[0].verdict, Verdict::Done, "{reports:?}");
    let sql = "SELECT a, s, toUnixTimestamp64Milli(t), n FROM s.v ORDER BY _src_o FORMAT TSV";
    let expected = format!("1\tx\t0\t9\n2\ty\t0\t9\n70000\tz\t{T}\t5");
    assert_eq!(engine.ask(sql).await, expected);
    let parts = "SELECT count() FROM system.parts WHERE database = 's' AND table = 'v' AND active";
    assert_eq!(engine.ask(parts).await, "1");
}

/// A dataset's strings became UUIDs, and its decimals wider, while rows of both were in the log.
#[tokio::test]
async fn new_types_meet_those_that_stood_for_them() {
    let engine = Engine::start(&[]).await;
    engine
        .ask(
            "CREATE TABLE s.m (u UUID, l Array(Nullable(UUID)), d Decimal(40, 3), a Array(UInt32), \
             _src_l UInt64, _src_p UInt16, _src_o UInt64) ENGINE = MergeTree ORDER BY tuple() \
             SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let id: [u8; 16] = std::array::from_fn(|at| u8::try_from(at * 17).expect("a byte"));
    let text = "00112233-4455-6677-8899-aabbccddeeff";
    let decimals = |value: i128, precision, scale| {
        let array = Decimal128Array::from(vec![value]).with_precision_and_scale(precision, scale);
        Arc::new(array.expect("it fits")) as ArrayRef
    };
    let mut narrow = ListBuilder::new(UInt16Builder::new());
    narrow.append_value([Some(1), Some(2)]);
    let mut wide = ListBuilder::new(UInt32Builder::new());
    wide.append_value([Some(70_000)]);
    let ids = || FixedSizeBinaryArray::try_from_iter([id].into_iter()).expect("16 bytes");
    let offsets = OffsetBuffer::from_lengths([1]);
    let item = Arc::new(Field::new("item", DataType::FixedSizeBinary(16), true));
    let list = ListArray::new(item, offsets, Arc::new(ids()), None);
    let one: Columns = vec![
        ("u", Arc::new(StringArray::from(vec![text]))),
        ("d", decimals(-150, 5, 2)),
        ("a", not_null(&narrow.finish())),
    ];
    let two: Columns = vec![
        ("u", Arc::new(ids())),
        ("l", Arc::new(list)),
        ("d", decimals(1_234, 38, 3)),
        ("a", not_null(&wide.finish())),
    ];
    let records = vec![record(1, "m", one, &[]), record(2, "m", two, &[])];
    let reports = engine.write((1, 3), Steps::FIRST_VERIFIED, records).await;
    assert_eq!(reports[0].verdict, Verdict::Done, "{reports:?}");
    let sql = "SELECT u, l, d, a FROM s.m ORDER BY _src_o FORMAT TSV";
    let expected = format!("{text}\t[]\t-1.5\t[1,2]\n{text}\t['{text}']\t1.234\t[70000]");
    assert_eq!(engine.ask(sql).await, expected);

    // Text that is no UUID would be NULL there, without a word: nothing is sent.
    engine
        .ask(
            "CREATE TABLE s.nulls (u Nullable(UUID), _src_l UInt64, _src_p UInt16, _src_o UInt64) \
             ENGINE = MergeTree ORDER BY tuple() SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let columns: Columns = vec![("u", Arc::new(StringArray::from(vec!["no uuid"])))];
    let records = vec![record(3, "nulls", columns, &[])];
    let reports = engine.write((3, 4), Steps::FIRST, records).await;
    assert!(
        matches!(&reports[0].verdict, Verdict::Refused { code: 53, message, .. } if message.contains("Nullable(UUID)")),
        "{reports:?}"
    );
}

/// The same list, whose elements are never null.
fn not_null(list: &ListArray) -> ArrayRef {
    let item = Arc::new(Field::new("item", list.value_type(), false));
    Arc::new(ListArray::new(
        item,
        list.offsets().clone(),
        list.values().clone(),
        None,
    ))
}

#[tokio::test]
async fn rows_whose_view_fails_are_proven_stored_and_not_sent_again() {
    let engine = Engine::start(&[lasting()]).await;
    engine
        .ask("CREATE TABLE s.m (x UInt8) ENGINE = MergeTree ORDER BY x")
        .await;
    engine
        .ask("CREATE MATERIALIZED VIEW s.mv TO s.m AS SELECT toUInt8(concat('x', event_id)) AS x FROM s.events")
        .await;
    let records = || vec![record(1, "events", rows(&[T]), &[])];
    let first = engine.write((1, 2), Steps::FIRST, records()).await;
    assert!(matches!(first[0].verdict, Verdict::Unknown { .. }), "{first:?}");
    let again = engine.write((1, 2), Steps::AGAIN, records()).await;
    assert_eq!(again[0].verdict, Verdict::Done);
    assert_eq!(engine.ask("SELECT count() FROM s.events").await, "1");
}

#[tokio::test]
async fn the_largest_block_is_one_part() {
    let engine = Engine::start(&[lasting()]).await;
    let times: Vec<i64> = (0..5_000).map(|n| T + n).collect();
    let records: Vec<RangeRecord> = (0..100).map(|o| record(o, "events", rows(&times), &[])).collect();
    for steps in [Steps::FIRST_VERIFIED, VERIFY_ONLY] {
        let reports = engine.write((0, 100), steps, records.clone()).await;
        assert_eq!(
            named(&reports),
            [("events/20261121".to_owned(), 500_000, &Verdict::Done)]
        );
    }
    let active = "SELECT count(), sum(rows) FROM system.parts WHERE table = 'events' AND active FORMAT TSV";
    assert_eq!(engine.ask(active).await, "1\t500000");
}
