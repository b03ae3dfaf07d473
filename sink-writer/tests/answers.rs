//! What a sink-writer makes of a ClickHouse that answers strangely: row 9 of `docs/reliability.md`, time-outs and refusals.

mod support;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{TimestampMillisecondType, UInt16Type, UInt64Type};
use arrow_ipc::reader::StreamReader;
use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::json;
use sluice_common::fates::Fate;
use sluice_common::limits::MAX_BLOCK_BYTES;
use sluice_common::wire::sink::{Horizon, SinkReply, SinkRequest, Steps, SubKey, SubTask, Verdict};
use sluice_sink_writer::admit::Budget;
use sluice_sink_writer::{ServerError, SinkWriter};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::{APPEND_MS, LOG, PARTITION, ask, call, events, name, record, rows, write};
use tower::ServiceExt;

/// How an insert is answered.
#[derive(Debug, Clone, Copy)]
enum Insert {
    Clean,
    /// After a moment, so that several are under way at once.
    SlowlyClean,
    /// 200 with `X-ClickHouse-Exception-Code`.
    HeaderBehind200,
    /// 200 whose body tells of an exception.
    TextBehind200,
    Status(u16, &'static str),
    Hang,
}

/// What a verification finds.
#[derive(Debug, Clone, Copy)]
enum There {
    Nothing,
    Some(u64),
    /// What the insert said that it holds.
    All,
    Error,
}

#[derive(Debug)]
struct Fake {
    insert: Mutex<Insert>,
    there: There,
    /// Inserts under way, and most of them at once.
    under_way: AtomicUsize,
    most: AtomicUsize,
    /// Rows of the range, with their sums, as the test knows them.
    all: (u64, u64, u64),
    seen: Mutex<Vec<Seen>>,
    /// Of all tables.
    engine: Mutex<&'static str>,
    /// Every table goes away once it was found.
    goes_away: AtomicBool,
    /// The last question for rows past an offset.
    horizon: Mutex<String>,
}

/// One insert as it came in.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    query: String,
    length: Option<String>,
    chunked: bool,
    body: Bytes,
}

impl Fake {
    async fn start(insert: Insert, there: There) -> (SinkWriter, Arc<Self>) {
        // One record at offset 5 with two rows.
        let (first, second) = (5u64 << 16, (5u64 << 16) + 1);
        let all = (
            2,
            first + second,
            first
                .wrapping_mul(first)
                .wrapping_add(second.wrapping_mul(second)),
        );
        let fake = Arc::new(Self {
            insert: Mutex::new(insert),
            there,
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            all,
            seen: Mutex::default(),
            engine: Mutex::new("MergeTree"),
            goes_away: AtomicBool::new(false),
            horizon: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = server.clone();
                let serve = service_fn(move |request| {
                    let fake = fake.clone();
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve),
                );
            }
        });
        (support::writer(&url, "telemetry", &[events()]), fake)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        if query.contains("INSERT") {
            let header = |name: &str| {
                head.headers
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned)
            };
            let chunked = header("transfer-encoding").is_some();
            let length = header("content-length");
            self.seen.lock().push(Seen {
                query,
                length,
                chunked,
                body: body.clone(),
            });
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let answer = self.inserted().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            return answer;
        }
        let sql = String::from_utf8_lossy(&body).into_owned();
        let row = if sql.contains("system.tables") {
            json!([
                *self.engine.lock(),
                "non_replicated_deduplication_window = 10000",
                "",
                "uuid",
                "UTC"
            ])
        } else if sql.contains("system.columns") {
            let gone = self.goes_away.load(Ordering::SeqCst);
            return answered(200, &if gone { String::new() } else { columns() });
        } else if sql.contains("max(_src_o)") {
            *self.horizon.lock() = sql;
            json!([1, 99])
        } else {
            return self.verified();
        };
        answered(200, &format!("{row}\n"))
    }

    async fn inserted(&self) -> Response<Full<bytes::Bytes>> {
        let insert = *self.insert.lock();
        match insert {
            Insert::Clean => answered(200, ""),
            Insert::SlowlyClean => {
                tokio::time::sleep(Duration::from_millis(30)).await;
                answered(200, "")
            }
            Insert::HeaderBehind200 => {
                let mut answer = answered(200, "Code: 241. DB::Exception: Memory limit exceeded. (X)");
                answer
                    .headers_mut()
                    .insert("X-ClickHouse-Exception-Code", 241.into());
                answer
            }
            Insert::TextBehind200 => answered(
                200,
                "Code: 241. DB::Exception: Memory limit exceeded. (X) (version 26.7 (official build))\n",
            ),
            Insert::Status(status, text) => answered(status, text),
            Insert::Hang => std::future::pending().await,
        }
    }

    fn verified(&self) -> Response<Full<bytes::Bytes>> {
        let (rows, o, o2) = match self.there {
            There::Nothing => (0, 0, 0),
            There::Some(rows) => (rows, 1, 1),
            There::All => self.all,
            There::Error => return answered(500, "Code: 241. DB::Exception: Memory limit exceeded. (X)"),
        };
        answered(200, &format!("{}\n", json!(["uuid", rows, o, o2])))
    }
}

fn answered(status: u16, text: &str) -> Response<Full<bytes::Bytes>> {
    let body = Full::new(bytes::Bytes::copy_from_slice(text.as_bytes()));
    Response::builder().status(status).body(body).expect("a response")
}

fn columns() -> String {
    let columns = [
        ("tenant", "LowCardinality(String)"),
        ("event_id", "String"),
        ("timestamp", "DateTime64(3, 'UTC')"),
        ("service", "LowCardinality(String)"),
        ("status", "Nullable(UInt16)"),
        ("attributes", "Map(String, String)"),
        ("_src_l", "UInt64"),
        ("_src_p", "UInt16"),
        ("_src_o", "UInt64"),
        ("ingested_at", "DateTime64(3, 'UTC')"),
    ];
    columns
        .iter()
        .map(|(name, kind)| format!("{}\n", json!([name, kind, ""])))
        .collect()
}

fn range() -> Vec<sluice_common::wire::sink::RangeRecord> {
    vec![record(
        5,
        "events",
        rows(&[1_795_231_830_000, 1_795_231_830_001]),
        &[],
    )]
}

async fn verdict(insert: Insert, there: There, steps: Steps) -> Verdict {
    let (writer, _) = Fake::start(insert, there).await;
    let mut reports = write(&writer, call((5, 6), steps, None, range())).await;
    assert_eq!(reports.len(), 1);
    reports.remove(0).verdict
}

async fn many(writer: &SinkWriter, calls: usize) -> Vec<Verdict> {
    let one = || async {
        let mut reports = write(writer, call((5, 6), Steps::FIRST, None, range())).await;
        reports.remove(0).verdict
    };
    futures_util::future::join_all((0..calls).map(|_| one())).await
}

#[tokio::test]
async fn a_storm_of_overloads_takes_concurrency_to_one_and_it_comes_back() {
    let (writer, fake) = Fake::start(Insert::SlowlyClean, There::Nothing).await;
    assert!(
        many(&writer, 40)
            .await
            .iter()
            .all(|verdict| *verdict == Verdict::Done)
    );
    let before = fake.most.load(Ordering::SeqCst);
    assert!(before >= 4, "{before}");
    for storm in [
        TOO_MANY_PARTS,
        Insert::Status(500, "Code: 241. DB::Exception: Memory limit exceeded. (X)"),
        Insert::Status(500, "Code: 242. DB::Exception: Table is in readonly mode. (X)"),
        Insert::Status(500, "Code: 159. DB::Exception: Timeout exceeded. (X)"),
        Insert::Status(503, "Service Unavailable"),
    ] {
        *fake.insert.lock() = storm;
        for _ in 0..6 {
            let verdicts = many(&writer, 4).await;
            assert!(
                verdicts.iter().all(|one| matches!(one, Verdict::Unknown { .. })),
                "{verdicts:?}"
            );
        }
        assert_eq!(writer.slots(), 1, "{storm:?}");
        // One probe at a time, whatever is asked for.
        fake.most.store(0, Ordering::SeqCst);
        many(&writer, 10).await;
        assert_eq!(fake.most.load(Ordering::SeqCst), 1, "{storm:?}");
        *fake.insert.lock() = Insert::SlowlyClean;
        for _ in 0..8 {
            assert!(
                many(&writer, 20)
                    .await
                    .iter()
                    .all(|verdict| *verdict == Verdict::Done)
            );
        }
        assert!(writer.slots() >= 4, "{} after {storm:?}", writer.slots());
    }
}

#[tokio::test]
async fn a_call_that_waited_past_its_deadline_for_a_slot_sends_no_byte() {
    let (writer, fake) = Fake::start(Insert::Hang, There::Nothing).await;
    let held: Vec<_> = (0..writer.slots())
        .map(|_| {
            let writer = writer.clone();
            tokio::spawn(async move { write(&writer, call((5, 6), Steps::FIRST, None, range())).await })
        })
        .collect();
    while fake.under_way.load(Ordering::SeqCst) < held.len() {
        tokio::task::yield_now().await;
    }
    let mut late = call((5, 6), Steps::FIRST, None, range());
    late.timeout = Duration::from_millis(300);
    let reports = write(&writer, late).await;
    assert!(
        matches!(reports[0].verdict, Verdict::Unsent { .. }),
        "{reports:?}"
    );
    assert_eq!(fake.seen.lock().len(), held.len(), "nothing more was sent");
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

const TOO_MANY_PARTS: Insert =
    Insert::Status(500, "Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS)");

#[tokio::test]
async fn a_clean_first_attempt_is_done_and_framed_by_its_length() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Error).await;
    let reports = write(&writer, call((5, 6), Steps::FIRST, None, range())).await;
    assert_eq!(reports[0].verdict, Verdict::Done);
    assert_eq!((reports[0].rows, reports[0].sum_o, reports[0].sum_o2), fake.all);
    let seen = fake.seen.lock().clone();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].chunked);
    assert_eq!(seen[0].length, Some(seen[0].body.len().to_string()));
    for setting in [
        "async_insert=0",
        "max_partitions_per_insert_block=1",
        "wait_end_of_query=1",
    ] {
        let mut settings = seen[0].query.split('&');
        assert!(
            settings.any(|one| one == setting),
            "{setting} in {}",
            seen[0].query
        );
    }
}

/// Each decides whether an insert is one block, whether its token counts, or whether its answer says what became of
/// it; another one on a retry doubles rows.
const SETTINGS: [(&str, &str); 15] = [
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("replace_running_query", "0"),
    ("wait_end_of_query", "1"),
    ("max_partitions_per_insert_block", "1"),
    ("throw_on_max_partitions_per_insert_block", "1"),
    ("max_insert_block_size", "1000000"),
    ("min_insert_block_size_rows", "1000000"),
    ("min_insert_block_size_bytes", ""),
    ("max_insert_threads", "1"),
    ("input_format_parallel_parsing", "0"),
    ("input_format_null_as_default", "1"),
    ("input_format_try_infer_dates", "0"),
    ("input_format_try_infer_datetimes", "0"),
    ("input_format_json_read_bools_as_numbers", "0"),
];

#[tokio::test]
async fn every_attempt_carries_each_setting_once_and_the_call_s_time_out() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    let task = |generation| {
        let sub = SubKey::whole(name("events"), "all");
        Some(vec![SubTask { sub, generation }])
    };
    let attempts = [
        (Insert::Clean, Steps::FIRST, None),
        (Insert::Clean, Steps::FIRST_VERIFIED, None),
        (TOO_MANY_PARTS, Steps::AGAIN, None),
        (Insert::HeaderBehind200, Steps::AGAIN, task(0)),
        (Insert::Clean, Steps::AGAIN, task(1)),
    ];
    for (insert, steps, tasks) in attempts {
        *fake.insert.lock() = insert;
        write(&writer, call((5, 6), steps, tasks, range())).await;
    }
    let seen = fake.seen.lock().clone();
    assert_eq!(seen.len(), 5);
    for one in &seen {
        let all = |name: &str| -> Vec<String> {
            let pairs = one.query.split('&').filter_map(|pair| pair.split_once('='));
            let of = pairs.filter(|pair| pair.0 == name);
            of.map(|pair| pair.1.to_owned()).collect()
        };
        for (name, value) in SETTINGS {
            let found = all(name);
            assert_eq!(found.len(), 1, "{name} in {}", one.query);
            assert!(value.is_empty() || found[0] == value, "{name} in {}", one.query);
        }
        let number = |name: &str| all(name)[0].parse::<u64>().expect("a number");
        assert!(number("min_insert_block_size_bytes") >= MAX_BLOCK_BYTES as u64);
        assert!(
            (1..=call((5, 6), Steps::FIRST, None, range()).timeout.as_secs())
                .contains(&number("max_execution_time"))
        );
        assert!(number("max_query_size") > 1_024);
    }
}

#[tokio::test]
async fn a_block_carries_provenance_and_append_time_of_its_records_and_nothing_else_decides_its_bytes() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    for _ in 0..2 {
        write(&writer, call((5, 6), Steps::FIRST, None, range())).await;
    }
    let seen = fake.seen.lock().clone();
    assert_eq!(seen[0].body, seen[1].body);
    let mut stream = StreamReader::try_new(seen[0].body.clone().reader(), None).expect("Arrow");
    let batch = stream.next().expect("a batch").expect("whole");
    let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
    let numbers = |name: &str| column(name).as_primitive::<UInt64Type>().values().to_vec();
    assert_eq!(numbers("_src_l"), [LOG.0; 2]);
    assert_eq!(numbers("_src_o"), [5 << 16, (5 << 16) + 1]);
    assert_eq!(
        column("_src_p").as_primitive::<UInt16Type>().values(),
        &[PARTITION; 2]
    );
    let at = i64::try_from(APPEND_MS).expect("small");
    let times = column("ingested_at");
    assert_eq!(
        times.as_primitive::<TimestampMillisecondType>().values(),
        &[at; 2]
    );
}

#[tokio::test]
async fn all_attempts_carry_the_same_token_and_query_id_until_the_generation_is_bumped() {
    let (writer, fake) = Fake::start(TOO_MANY_PARTS, There::Nothing).await;
    let task = |generation| {
        let sub = SubKey::whole(name("events"), "all");
        Some(vec![SubTask { sub, generation }])
    };
    for tasks in [None, task(0), task(1)] {
        write(&writer, call((5, 6), Steps::AGAIN, tasks, range())).await;
    }
    let value = |seen: &Seen, key: &str| {
        let pairs: Vec<&str> = seen
            .query
            .split('&')
            .filter(|pair| pair.starts_with(key))
            .collect();
        assert_eq!(pairs.len(), 1, "{key} once in {}", seen.query);
        pairs[0].to_owned()
    };
    let seen = fake.seen.lock().clone();
    let tokens: Vec<_> = seen
        .iter()
        .map(|one| value(one, "insert_deduplication_token="))
        .collect();
    let ids: Vec<_> = seen.iter().map(|one| value(one, "query_id=")).collect();
    assert_eq!((tokens.len(), &tokens[0]), (3, &tokens[1]));
    assert_ne!(tokens[1], tokens[2]);
    assert!(tokens[2].ends_with("%231"), "{}", tokens[2]);
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[tokio::test]
async fn whatever_hides_behind_a_200_is_not_done() {
    for insert in [Insert::HeaderBehind200, Insert::TextBehind200] {
        let first = verdict(insert, There::All, Steps::FIRST).await;
        assert!(matches!(first, Verdict::Unknown { .. }), "{insert:?}: {first:?}");
        let none = verdict(insert, There::Nothing, Steps::FIRST_VERIFIED).await;
        assert!(
            matches!(none, Verdict::Refused { code: 241, .. } | Verdict::Unknown { .. }),
            "{insert:?}: {none:?}"
        );
        assert_eq!(
            verdict(insert, There::All, Steps::FIRST_VERIFIED).await,
            Verdict::Done,
            "{insert:?}"
        );
    }
}

#[tokio::test]
async fn an_error_after_the_commit_is_proven_done() {
    let proxy = Insert::Status(500, "upstream went away");
    assert_eq!(
        verdict(proxy, There::All, Steps::FIRST_VERIFIED).await,
        Verdict::Done
    );
    assert_eq!(
        verdict(TOO_MANY_PARTS, There::All, Steps::FIRST_VERIFIED).await,
        Verdict::Done
    );
    let unknown = verdict(proxy, There::Nothing, Steps::FIRST_VERIFIED).await;
    assert!(
        matches!(unknown, Verdict::Unknown { .. }),
        "it may still arrive: {unknown:?}"
    );
}

#[tokio::test]
async fn a_refusal_counts_only_where_none_there_is_verified() {
    let steps = Steps::FIRST_VERIFIED;
    assert!(matches!(
        verdict(TOO_MANY_PARTS, There::Nothing, steps).await,
        Verdict::Refused { code: 252, .. }
    ));
    assert_eq!(
        verdict(TOO_MANY_PARTS, There::Some(1), steps).await,
        Verdict::Between { found: 1 }
    );
    assert!(matches!(
        verdict(TOO_MANY_PARTS, There::Error, steps).await,
        Verdict::Unknown { .. }
    ));
    assert!(matches!(
        verdict(TOO_MANY_PARTS, There::Nothing, Steps::FIRST).await,
        Verdict::Unknown { .. }
    ));
}

#[tokio::test]
async fn an_insert_that_failed_is_not_sent_again_by_itself() {
    for insert in [
        TOO_MANY_PARTS,
        Insert::Status(503, "Service Unavailable"),
        Insert::TextBehind200,
    ] {
        let (writer, fake) = Fake::start(insert, There::Nothing).await;
        write(&writer, call((5, 6), Steps::FIRST_VERIFIED, None, range())).await;
        assert_eq!(fake.seen.lock().len(), 1, "{insert:?}");
    }
}

#[tokio::test]
async fn none_there_on_a_replica_that_may_lag_behind_gives_up_no_token() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    *fake.engine.lock() = "ReplicatedMergeTree";
    let reports = write(&writer, call((5, 6), Steps::AGAIN, None, range())).await;
    assert!(
        matches!(reports[0].verdict, Verdict::Unknown { .. }),
        "{reports:?}"
    );
}

#[tokio::test]
async fn a_query_that_still_runs_is_evidence_of_nothing() {
    let running = Insert::Status(
        500,
        "Code: 216. DB::Exception: Query with id = x is already running. (X)",
    );
    let none = verdict(running, There::Nothing, Steps::FIRST_VERIFIED).await;
    assert!(matches!(none, Verdict::Unknown { .. }), "{none:?}");
    assert_eq!(
        verdict(running, There::All, Steps::FIRST_VERIFIED).await,
        Verdict::Done
    );
}

#[tokio::test]
async fn an_insert_answered_clean_with_none_there_is_poisoned() {
    assert_eq!(
        verdict(Insert::Clean, There::Nothing, Steps::AGAIN).await,
        Verdict::CleanButNone
    );
}

#[tokio::test]
async fn what_is_all_there_or_partly_there_is_not_sent_again() {
    let only_verify = Steps {
        verify_first: true,
        insert: false,
        verify_after: false,
    };
    for (there, steps, expected) in [
        (There::All, Steps::AGAIN, Verdict::Done),
        (There::Some(1), Steps::AGAIN, Verdict::Between { found: 1 }),
        (There::Nothing, only_verify, Verdict::NoneThere),
    ] {
        let (writer, fake) = Fake::start(Insert::Clean, there).await;
        let reports = write(&writer, call((5, 6), steps, None, range())).await;
        assert_eq!(reports[0].verdict, expected);
        assert!(fake.seen.lock().is_empty(), "{there:?}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_unknown_at_the_deadline() {
    let (writer, fake) = Fake::start(Insert::Hang, There::All).await;
    let mut asked = call((5, 6), Steps::FIRST, None, range());
    asked.timeout = Duration::from_millis(400);
    let reports = tokio::time::timeout(Duration::from_secs(10), write(&writer, asked)).await;
    let reports = reports.expect("the deadline is kept");
    assert!(matches!(reports[0].verdict, Verdict::Unknown { .. }));
    assert_eq!(fake.seen.lock().len(), 1);
}

#[tokio::test]
async fn a_call_past_its_deadline_sends_nothing() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    write(&writer, call((5, 6), Steps::AGAIN, None, range())).await;
    let before = fake.seen.lock().len();
    let mut asked = call((5, 6), Steps::FIRST, None, range());
    asked.timeout = Duration::ZERO;
    let reports = write(&writer, asked).await;
    assert!(matches!(reports[0].verdict, Verdict::Unknown { .. }));
    assert_eq!(fake.seen.lock().len(), before);
}

#[tokio::test]
async fn a_server_that_is_not_reached_was_sent_nothing() {
    let writer = support::writer("http://127.0.0.1:1", "telemetry", &[events()]);
    let reports = write(&writer, call((5, 6), Steps::FIRST, None, range())).await;
    assert_eq!(
        reports[0].sub.part, "20261121",
        "named by the config's partitions"
    );
    assert!(matches!(reports[0].verdict, Verdict::Unsent { .. }));
    let created = writer.create_missing(Duration::from_secs(5)).await;
    let created = created.map_err(|at| at.error);
    assert!(matches!(created, Err(ServerError::Unreached(_))), "{created:?}");
}

#[tokio::test]
async fn over_its_byte_budget_it_begins_nothing() {
    let (writer, fake) = Fake::start(Insert::Hang, There::Nothing).await;
    let writer = writer.with_budget(Budget::new(1_000));
    let mut held = call((5, 6), Steps::FIRST, None, range());
    held.timeout = Duration::from_secs(30);
    let first = tokio::spawn({
        let writer = writer.clone();
        async move { ask(&writer, held).await }
    });
    let sent = async {
        while fake.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), sent)
        .await
        .expect("the first call is under way");
    let second = ask(&writer, call((5, 6), Steps::FIRST, None, range())).await;
    assert!(matches!(second, SinkReply::Busy { .. }), "{second:?}");
    first.abort();
    assert!(first.await.is_err());
    assert_eq!(writer.held_bytes(), 0);
}

#[tokio::test]
async fn rows_that_were_dropped_or_conflict_are_not_sent_to_their_table() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    let times = [1_795_231_830_000; 3];
    let records = vec![
        record(
            5,
            "events",
            rows(&times),
            &[Fate::Drop, Fate::Keep, Fate::Conflict],
        ),
        record(6, "events", rows(&times), &[Fate::Drop, Fate::Drop, Fate::Drop]),
    ];
    let reports = write(&writer, call((5, 7), Steps::FIRST, None, records)).await;
    let counted: Vec<_> = reports
        .iter()
        .map(|one| (one.sub.table.as_str(), one.rows, one.sum_o))
        .collect();
    assert_eq!(
        counted,
        [("dead_letters", 1, (5 << 16) + 2), ("events", 1, (5 << 16) + 1)]
    );
    assert_eq!(fake.seen.lock().len(), 2);
}

#[tokio::test]
async fn a_table_that_goes_away_while_it_is_described_is_missing_and_not_one_without_columns() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    fake.goes_away.store(true, Ordering::SeqCst);
    for steps in [Steps::FIRST, Steps::AGAIN] {
        let reports = write(&writer, call((5, 6), steps, None, range())).await;
        let verdict = &reports[0].verdict;
        let missing =
            matches!(verdict, Verdict::Refused { message, .. } if message.contains("does not exist"));
        assert!(missing, "{verdict:?}");
    }
    assert!(fake.seen.lock().is_empty(), "nothing is sent to it");
    fake.goes_away.store(false, Ordering::SeqCst);
    let reports = write(&writer, call((5, 6), Steps::FIRST, None, range())).await;
    assert_eq!(reports[0].verdict, Verdict::Done);
}

#[tokio::test]
async fn a_task_for_rows_that_are_not_in_the_range_is_reported_as_unknown() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    let sub = SubKey::whole(name("events"), "20261121");
    let tasks = Some(vec![SubTask {
        sub: sub.clone(),
        generation: 0,
    }]);
    let reports = write(&writer, call((5, 6), Steps::AGAIN, tasks, range())).await;
    assert_eq!((reports.len(), &reports[0].sub, reports[0].rows), (1, &sub, 0));
    assert!(matches!(reports[0].verdict, Verdict::Unknown { .. }));
    assert!(fake.seen.lock().is_empty());
}

#[tokio::test]
async fn records_that_do_not_belong_to_the_range_are_refused_whole() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    let outside = ask(&writer, call((6, 7), Steps::FIRST, None, range())).await;
    assert!(matches!(outside, SinkReply::Failed { .. }), "{outside:?}");
    let mut other_log = call((5, 6), Steps::FIRST, None, range());
    other_log.log.0 += 1;
    assert!(matches!(ask(&writer, other_log).await, SinkReply::Failed { .. }));
    assert!(fake.seen.lock().is_empty());
}

#[tokio::test]
async fn the_horizon_tells_the_highest_row_past_an_offset() {
    let (writer, fake) = Fake::start(Insert::Clean, There::Nothing).await;
    let asked = Horizon {
        log: LOG,
        partition: PARTITION,
        server: None,
        from_o: 9,
        tables: vec![name("events")],
        timeout: Duration::from_secs(5),
    };
    let answer = writer.oneshot(SinkRequest::Horizon(asked)).await;
    let found = ["events", "dead_letters", "ledger"]
        .map(|table| (name(table), 99))
        .to_vec();
    let Ok(SinkReply::Horizon(told)) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((told.found, told.not_asked), (found, Vec::new()));
    let rows = format!(
        "WHERE _src_l = {} AND _src_p = {PARTITION} AND _src_o >= 9 ",
        LOG.0
    );
    let sql = fake.horizon.lock().clone();
    assert!(sql.contains(&rows), "{sql}");
    assert_eq!(told.asked.len(), 1);
}
