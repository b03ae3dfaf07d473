//! The real ClickHouse as a child of ours: it starts, keeps its data, and never outlives its parent.

#![expect(clippy::unwrap_used, reason = "test code: a failed step is a failed test")]

use std::fs::TryLockError;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use ingestctl::clickhouse::{ClickHouse, Engine, Options, Places, StartError, VERB};

const PATIENCE: Duration = Duration::from_secs(20);
/// Names the folder for [`a_parent_that_is_killed`] when it is run as a process of its own.
const PARENT_FOLDER: &str = "SLUICE_TEST_PARENT_FOLDER";

fn engine() -> Engine {
    Places::of_this_process()
        .and_above(env!("CARGO_MANIFEST_DIR"))
        .locate()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        port: 0,
        engine: engine(),
        launcher: Some(PathBuf::from(env!("CARGO_BIN_EXE_ingestctl"))),
    }
}

async fn try_query(url: &str, sql: &str) -> Option<String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = hyper::Request::post(url)
        .body(Full::from(sql.to_owned()))
        .unwrap();
    let answer = client.request(request).await.ok()?;
    let good = answer.status().is_success();
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap().trim_end().to_owned();
    assert!(good, "{sql}: {text}");
    Some(text)
}

async fn query(clickhouse: &ClickHouse, sql: &str) -> String {
    try_query(&clickhouse.url(), sql)
        .await
        .expect("ClickHouse is reachable")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lock of a folder is free exactly when no ClickHouse runs on it.
fn is_free(data_dir: &Path) -> bool {
    let file = std::fs::File::open(data_dir.join("clickhouse/clickhouse.pid")).unwrap();
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

fn kill_9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn it_answers_queries_in_utc_on_loopback_and_keeps_data_over_a_stop_and_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start(options(folder.path())).await.unwrap();
    assert_eq!(query(&clickhouse, "SELECT timezone()").await, "UTC");
    assert_eq!(query(&clickhouse, "SELECT currentUser()").await, "default");
    assert_eq!(query(&clickhouse, "SELECT count() FROM system.server_settings WHERE name LIKE 'tcp_port%' AND value NOT IN ('', '0')").await, "0");
    let kept_free = "SELECT keep_free_space FROM system.disks WHERE name = 'default'";
    assert_eq!(query(&clickhouse, kept_free).await, (64 << 20).to_string());
    query(&clickhouse, "CREATE DATABASE d").await;
    query(
        &clickhouse,
        "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a",
    )
    .await;
    query(&clickhouse, "INSERT INTO d.t SELECT number FROM numbers(1000)").await;
    assert!(clickhouse.stop(PATIENCE).await, "SIGTERM is enough");
    assert!(is_free(folder.path()));

    let again = ClickHouse::start(options(folder.path())).await.unwrap();
    assert_eq!(
        query(&again, "SELECT count(), sum(a) FROM d.t").await,
        "1000\t499500"
    );
    let pid = again.pid().unwrap();
    drop(again);
    assert!(is_free(folder.path()), "dropped is killed, pid {pid}");
}

#[tokio::test]
async fn one_that_is_killed_comes_back_on_its_port_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start(options(folder.path())).await.unwrap();
    let (url, pid) = (clickhouse.url(), clickhouse.pid().unwrap());
    query(&clickhouse, "CREATE DATABASE d").await;
    query(
        &clickhouse,
        "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a",
    )
    .await;
    query(&clickhouse, "INSERT INTO d.t VALUES (7)").await;
    kill_9(pid);
    until("it was started again", async || clickhouse.restarts() == 1).await;
    until("it answers again", async || {
        try_query(&url, "SELECT 1").await.is_some()
    })
    .await;
    assert_eq!(query(&clickhouse, "SELECT a FROM d.t").await, "7");
    assert_ne!(clickhouse.pid(), Some(pid));
    assert!(clickhouse.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = ClickHouse::start(Options {
        port,
        ..options(folder.path())
    })
    .await
    .unwrap_err();
    assert!(matches!(error, StartError::PortTaken(taken) if taken == port));
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn a_library_that_cannot_be_loaded_is_an_error_with_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("libchdb.so");
    std::fs::write(&broken, "no library").unwrap();
    let options = Options {
        engine: Engine::Library(broken),
        ..options(folder.path())
    };
    let error = ClickHouse::start(options).await.unwrap_err().to_string();
    assert!(error.contains("make setup"), "{error}");
    assert!(is_free(folder.path()));
}

/// A child of nobody's keeper, as a crash of the kernel's promise would leave it.
fn leave_one_behind(data_dir: &Path) -> (Child, u16) {
    let folder = data_dir.join("clickhouse").canonicalize().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestctl"));
    command
        .arg(VERB)
        .arg("--folder")
        .arg(folder)
        .args(["--http-port", &port.to_string()]);
    command.args(["--parent", &std::process::id().to_string()]);
    match engine() {
        Engine::Library(lib) => command.arg("--lib").arg(lib),
        Engine::Server(binary) => command.arg("--server").arg(binary),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    (command.spawn().unwrap(), port)
}

// One thread for all: a child spawned here dies with the thread that forked it.
#[tokio::test(flavor = "current_thread")]
async fn a_leftover_on_the_same_folder_is_stopped_first() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        ClickHouse::start(options(folder.path()))
            .await
            .unwrap()
            .stop(PATIENCE)
            .await
    );
    let (mut leftover, port) = leave_one_behind(folder.path());
    let url = format!("http://127.0.0.1:{port}");
    until("the leftover answers", async || {
        try_query(&url, "SELECT 1").await.is_some()
    })
    .await;
    assert!(!is_free(folder.path()));

    let clickhouse = ClickHouse::start(options(folder.path())).await.unwrap();
    assert_eq!(leftover.wait().unwrap().code(), Some(0), "it shut down by itself");
    assert_eq!(query(&clickhouse, "SELECT 1").await, "1");
    assert!(clickhouse.stop(PATIENCE).await);
}

#[tokio::test]
async fn it_dies_with_a_parent_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "a_parent_that_is_killed"])
        .env(PARENT_FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let url = lines.find_map(|line| line.unwrap().split_once("url=").map(|(_, url)| url.to_owned()));
    assert_eq!(
        try_query(&url.expect("the parent started it"), "SELECT 1")
            .await
            .as_deref(),
        Some("1")
    );
    assert!(!is_free(folder.path()));

    parent.kill().unwrap();
    parent.wait().unwrap();
    until("ClickHouse is gone too", async || is_free(folder.path())).await;
}

#[tokio::test]
#[ignore = "the process that `it_dies_with_a_parent_that_is_killed` starts and kills"]
async fn a_parent_that_is_killed() {
    let Some(folder) = std::env::var_os(PARENT_FOLDER) else {
        return;
    };
    let clickhouse = ClickHouse::start(options(Path::new(&folder))).await.unwrap();
    println!("url={}", clickhouse.url());
    std::future::pending::<()>().await;
}

#[test]
fn a_child_whose_parent_is_gone_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ingestctl"))
        .args([
            VERB,
            "--http-port",
            "1",
            "--parent",
            "1",
            "--lib",
            "/nowhere",
            "--folder",
        ])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is gone"));
}

/// Stands in for `clickhouse server`, to see how it is called; the engine itself is tested above.
#[tokio::test]
async fn a_binary_is_run_as_a_server_on_the_written_configuration_without_our_environment() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("clickhouse-stand-in");
    std::fs::write(&binary, "#!/bin/sh\necho \"called with $*\"\nenv\nexit 3\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options {
        engine: Engine::Server(binary),
        ..options(folder.path())
    };
    let error = ClickHouse::start(options).await.unwrap_err().to_string();
    let config = folder
        .path()
        .canonicalize()
        .unwrap()
        .join("clickhouse/config.xml");
    assert!(
        error.contains(&format!("called with server --config-file={}", config.display())),
        "{error}"
    );
    assert!(
        error.contains("CLICKHOUSE_WATCHDOG_ENABLE=0") && error.contains("exit status: 3"),
        "{error}"
    );
    assert!(!error.contains("CARGO"), "{error}");
}
