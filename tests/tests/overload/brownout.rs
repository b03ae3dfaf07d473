//! A ClickHouse that says that it has too much to do: it is given less at once, calls are made again within the
//! budget of retries and no more, and when it is well again all is there once.
//!
//! What says so is a proxy before a real server: it refuses inserts with 252, 241, 242 and 159 in turn.

use super::MIB;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri};
use hyper_util::client::legacy::{Client as Pool, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use ingestctl::clickhouse::{ClickHouse, Options};
use sluice_common::limits::{
    CLICKHOUSE_SLOTS_MIN, DEDUP_BUCKET_BYTES, DEDUP_BUCKETS, RETRIES_AT_ONCE, RETRY_FLOOR, RETRY_PER_SUCCESS,
};
use sluice_tests::oracle::{Oracle, seed};
use sluice_tests::service::{executable, places};
use sluice_tests::{Deployment, Part, Shape, eventually, long_form};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const CODES: [u32; 4] = [252, 241, 242, 159];
const PATIENCE: Duration = Duration::from_secs(60);
/// For how many seconds each insert is refused twice: long enough that calls which came again without a budget would
/// be far more than it allows. `SLUICE_STORM_S=180` is the long form, in which all are refused for as long before.
const STORM: &str = "STORM_S";
const FLAPPING_S: u64 = 25;

/// Which inserts are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// All of them.
    Overloaded,
    /// Of each, so many attempts.
    Refuses(u32),
}

/// The proxy's side of it.
struct Front {
    to: String,
    pool: Pool<HttpConnector, Body>,
    seen: Mutex<Seen>,
}

struct Seen {
    mood: Mood,
    /// Attempts of each insert, by its query id: all attempts have the same (R12).
    attempts: HashMap<String, u32>,
    refused: u32,
    taken: u32,
}

impl Front {
    /// A proxy before whatever listens at `to`.
    fn start(listener: TcpListener, to: String) -> Arc<Self> {
        let front = Arc::new(Self {
            to,
            pool: Pool::builder(TokioExecutor::new()).build_http(),
            seen: Mutex::new(Seen {
                mood: Mood::Well,
                attempts: HashMap::new(),
                refused: 0,
                taken: 0,
            }),
        });
        let app = Router::new().fallback(pass).with_state(Arc::clone(&front));
        tokio::spawn(async move { axum::serve(listener, app).await });
        front
    }

    fn feels(&self, mood: Mood) {
        self.seen.lock().expect("not poisoned").mood = mood;
    }

    fn counts(&self) -> (u32, u32) {
        let seen = self.seen.lock().expect("not poisoned");
        (seen.taken, seen.refused)
    }

    /// The code with which this insert is refused, if it is.
    fn refusal(&self, query: &str) -> Option<u32> {
        if !query.contains("INSERT+INTO") {
            return None;
        }
        let id = query.split('&').find(|part| part.starts_with("query_id="));
        let mut seen = self.seen.lock().expect("not poisoned");
        let mood = seen.mood;
        let attempts = seen
            .attempts
            .entry(id.unwrap_or_default().to_owned())
            .or_default();
        *attempts += 1;
        let refuses = match mood {
            Mood::Well => false,
            Mood::Overloaded => true,
            Mood::Refuses(first) => *attempts <= first,
        };
        if refuses {
            seen.refused += 1;
            return Some(CODES[seen.refused as usize % CODES.len()]);
        }
        seen.taken += 1;
        None
    }
}

async fn pass(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    if let Some(code) = front.refusal(&path) {
        // All of the body is read first, as ClickHouse does where it may.
        axum::body::to_bytes(body, 64 * MIB as usize).await.ok();
        let text = format!("Code: {code}. DB::Exception: too much to do");
        let headers = [("x-clickhouse-exception-code", code.to_string())];
        return (StatusCode::INTERNAL_SERVER_ERROR, headers, text).into_response();
    }
    head.uri = format!("{}{path}", front.to).parse::<Uri>().expect("a URI");
    match front.pool.request(Request::from_parts(head, body)).await {
        Ok(answer) => answer.map(Body::new),
        Err(_) => (StatusCode::BAD_GATEWAY, Bytes::new()).into_response(),
    }
}

/// A Sluice whose ClickHouse has the proxy before it.
async fn start(dir: &std::path::Path) -> (Deployment, ClickHouse, Arc<Front>) {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let extra = format!("clickhouse: {{url: \"http://127.0.0.1:{port}\"}}\n");
    let deployment = Deployment::start_with(Shape::AllInOne, &extra).await;
    let url = deployment.clickhouse().base().to_owned();
    let options = Options {
        data_dir: dir.to_owned(),
        port: url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("a port"),
        engine: places().locate().expect("an engine"),
        launcher: Some(executable("ingestctl")),
    };
    let server = ClickHouse::start(options).await.expect("it starts");
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .expect("its port is free still");
    let front = Front::start(listener, url);
    (deployment, server, front)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_clickhouse_is_given_less_retries_stay_within_their_budget_and_no_row_is_lost_or_doubled()
 {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (deployment, server, front) = start(dir.path()).await;
    let mut oracle = Oracle::new(&deployment, seed("brown-out"));
    if long_form(STORM, 0) > 0 {
        // A backlog of millions of events: their keys stay in memory until they are stored, in the active bucket and in
        // those that wait to be sealed.
        oracle.memory_budget += (DEDUP_BUCKETS * DEDUP_BUCKET_BYTES) as u64;
    }
    let begun = Instant::now();
    let load = oracle.load(&deployment);
    let slots = async || deployment.metric(Part::Up, "sluice_insert_slots", "").await;
    let retries = async || deployment.metric(Part::Up, "sluice_retries_total", "").await;
    eventually("inserts", PATIENCE, async || {
        (front.counts().0 >= 4).then_some(())
    })
    .await;
    let healthy = slots().await;
    assert!(healthy > CLICKHOUSE_SLOTS_MIN, "{healthy}");
    assert!(retries().await < 1.0);

    // Everything is refused: what it is given at once falls to the least there is.
    front.feels(Mood::Overloaded);
    eventually("the fewest slots", PATIENCE, async || {
        (slots().await <= CLICKHOUSE_SLOTS_MIN).then_some(())
    })
    .await;
    let storm = begun + Duration::from_secs(long_form(STORM, 0));
    tokio::time::sleep(storm.saturating_duration_since(Instant::now())).await;
    assert!(slots().await <= CLICKHOUSE_SLOTS_MIN);
    let errors = deployment.metric(Part::Up, "sluice_clickhouse_errors_total", "class=\"retry\"");
    assert!(errors.await > 1.0);
    assert_eq!(
        deployment
            .admin(Part::Edge)
            .get("/readyz")
            .await
            .expect("an answer")
            .status,
        200
    );

    // Each insert is refused twice: whoever came again at once each time would come far too often.
    front.feels(Mood::Refuses(2));
    tokio::time::sleep(Duration::from_secs(long_form(STORM, FLAPPING_S))).await;
    let (taken, refused) = front.counts();
    let (made, passed) = (retries().await, begun.elapsed());
    let budget =
        RETRIES_AT_ONCE + passed.div_duration_f64(RETRY_FLOOR) + RETRY_PER_SUCCESS * f64::from(taken) + 1.0;
    println!("{made} retries of {budget:.1}, {taken} inserts taken, {refused} refused, in {passed:?}");
    assert!(made > RETRIES_AT_ONCE, "the budget was not needed: {made}");
    assert!(made <= budget, "{made} retries, the budget is {budget}");

    // It is well again.
    front.feels(Mood::Well);
    eventually("more slots", PATIENCE, async || {
        (slots().await > CLICKHOUSE_SLOTS_MIN).then_some(())
    })
    .await;
    load.stop().await;
    oracle.drained_verdict(&deployment).await.assert_clean();
    server.stop(Duration::from_secs(10)).await;
}
