//! Row 8: an insert's body cut anywhere leaves all of its rows or none.

#[path = "../../../sink-writer/tests/support/mod.rs"]
mod support;

use ingestctl::clickhouse::ClickHouse;
use sluice_common::config::Dataset;
use sluice_common::wire::sink::{Steps, Verdict};
use sluice_sink_writer::SinkWriter;
use sluice_tests::proxy::{Act, Ending, Proxy, Rule, Way};
use sluice_tests::service::clickhouse;
use sluice_tests::{Client, eventually};
use std::time::Duration;
use support::{APPEND_MS, call, events, record, rows, write, writer};
use tempfile::TempDir;

const ROWS: u64 = 3_000;
/// A ClickHouse that ended comes back within it.
const PATIENCE: Duration = Duration::from_secs(30);
const MARKER: &str = "INSERT+INTO";
const VERIFY_ONLY: Steps = Steps {
    verify_first: true,
    insert: false,
    verify_after: false,
};

/// A sink-writer that reaches ClickHouse through a proxy.
struct Cutter {
    server: ClickHouse,
    proxy: Proxy,
    writer: SinkWriter,
    _dir: TempDir,
}

impl Cutter {
    async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let server = clickhouse(dir.path(), 0).await;
        let proxy = Proxy::start(server.port()).await;
        let lasting = Dataset {
            ttl: None,
            ..events()
        };
        let writer = writer(&format!("http://127.0.0.1:{}", proxy.port()), "s", &[lasting]);
        let patience = Duration::from_secs(20);
        writer.create_missing(patience).await.expect("created");
        Self {
            server,
            proxy,
            writer,
            _dir: dir,
        }
    }

    /// Writes the one record of an offset; all of the same length.
    async fn write(&self, offset: u64, steps: Steps) -> Verdict {
        let times: Vec<i64> = (0..ROWS).map(|n| (APPEND_MS + n) as i64).collect();
        let records = vec![record(offset, "events", rows(&times), &[])];
        let mut reports = write(&self.writer, call((offset, offset + 1), steps, None, records)).await;
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports.remove(0).verdict
    }

    /// Asked until it is told: some cuts end ClickHouse itself, which is started again.
    async fn stored(&self, offset: u64) -> u64 {
        let sql = format!("SELECT count() FROM s.events WHERE bitShiftRight(_src_o, 16) = {offset}");
        let client = Client::new(self.server.url());
        eventually("a count", PATIENCE, async || {
            client.query(&sql).await.ok()?.parse().ok()
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_cut_at_any_sixteenth_or_edge_stores_all_of_its_rows_or_none() {
    let cutter = Cutter::start().await;
    // The first one describes the table.
    assert_eq!(cutter.write(100, Steps::FIRST).await, Verdict::Done);
    let before = cutter.proxy.bytes(Way::There);
    assert_eq!(cutter.write(101, Steps::FIRST).await, Verdict::Done);
    let length = cutter.proxy.bytes(Way::There) - before;
    assert!(length > 16_000, "{length}");
    let sixteenths = (0..16).map(|n| length * n / 16);
    // The head and its end, a block's edge at the end of the stream, the last byte but one and the last.
    let edges = [
        1,
        200,
        2_000,
        length - 40,
        length - 24,
        length - 17,
        length - 16,
        length - 14,
    ];
    let mut none = 0;
    for (offset, after) in (200..).zip(sixteenths.chain(edges)) {
        let ending = [Ending::Close, Ending::Reset][(offset % 2) as usize];
        let way = Way::There;
        cutter
            .proxy
            .set(Rule::on(MARKER, Act::Cut { way, after, ending }).times(1));
        let first = cutter.write(offset, Steps::FIRST).await;
        let stored = cutter.stored(offset).await;
        assert!(
            stored == 0 || stored == ROWS,
            "{stored} of {ROWS} rows, cut after {after} of {length}"
        );
        assert!(
            matches!(first, Verdict::Unknown { .. }) || stored == ROWS,
            "cut after {after} of {length}: {first:?}"
        );
        none += u64::from(stored == 0);
        // A connection on which nothing was left to cut would be cut at the next request.
        cutter.proxy.cut(Ending::Close);
        cutter.proxy.pass();
        for (steps, expected) in [(VERIFY_ONLY, stored == ROWS), (Steps::AGAIN, true)] {
            eventually("a verdict", PATIENCE, async || {
                let verdict = cutter.write(offset, steps).await;
                let known = !matches!(verdict, Verdict::Unknown { .. });
                assert!(!known || (verdict == Verdict::Done) == expected, "{verdict:?}");
                known.then_some(())
            })
            .await;
        }
        assert_eq!(cutter.stored(offset).await, ROWS);
    }
    assert!(none >= 20, "only {none} of 24 were cut");
    println!(
        "{none} of 24 were cut; ClickHouse was started again {} times",
        cutter.server.restarts()
    );
}
