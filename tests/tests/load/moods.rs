//! Each script's own thresholds, seen failing: servers that answer honestly and behave as that script is to notice.

use super::k6::{Ran, Running, Settings, THRESHOLDS_FAILED};
use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const MIB: u128 = 1024 * 1024;

/// What a server does to a request, by the time since the first one.
#[derive(Debug, Clone, Copy)]
enum Mood {
    /// Answers late from then on.
    SlowFrom(Duration),
    /// Refuses the tenant of this key from then on.
    Refuses(&'static str, Duration),
    /// Refuses between each two of these.
    RefusesBetween(&'static [(u64, u64)]),
    /// Holds ever more memory.
    Grows,
}

const SLOW: Duration = Duration::from_millis(250);
/// What it grows by in a second.
const GROWTH_MIB: u128 = 50;

impl Mood {
    fn is_slow(self, since: Duration) -> bool {
        matches!(self, Self::SlowFrom(from) if since > from)
    }

    fn refuses(self, key: &str, since: Duration) -> bool {
        match self {
            Self::Refuses(whose, from) => key.ends_with(whose) && since > from,
            Self::RefusesBetween(times) => {
                let now = u64::try_from(since.as_millis()).expect("a short time");
                times.iter().any(|(from, to)| (*from..*to).contains(&now))
            }
            Self::SlowFrom(_) | Self::Grows => false,
        }
    }

    fn memory(self, since: Duration) -> u128 {
        match self {
            Self::Grows => (100 * 1000 + GROWTH_MIB * since.as_millis()) * MIB / 1000,
            Self::SlowFrom(_) | Self::Refuses(..) | Self::RefusesBetween(_) => 100 * MIB,
        }
    }
}

async fn answer(mood: Mood, since: Duration, (uri, headers, body): (Uri, HeaderMap, String)) -> Response {
    if uri.path() == "/metrics" {
        let memory = mood.memory(since);
        return format!("process_resident_memory_bytes {memory}\nsluice_log_backlog_bytes 0\n")
            .into_response();
    }
    if mood.is_slow(since) {
        tokio::time::sleep(SLOW).await;
    }
    let key = headers
        .get("authorization")
        .map_or("", |key| key.to_str().unwrap_or_default());
    if mood.refuses(key, since) {
        let honest = [("retry-after", "1"), ("sluice-outcome", "refused")];
        return (StatusCode::SERVICE_UNAVAILABLE, honest).into_response();
    }
    let accepted = body.lines().filter(|line| !line.is_empty()).count();
    let told = format!(r#"{{"accepted":{accepted},"rejected":0,"errors":[],"errors_omitted":0}}"#);
    (StatusCode::ACCEPTED, told).into_response()
}

async fn server(mood: Mood) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let first = Arc::new(OnceLock::new());
    let app = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: String| {
        let since = first.get_or_init(Instant::now).elapsed();
        answer(mood, since, (uri, headers, body))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

async fn ran(script: &'static str, mood: Mood, settings: Settings<'_>) -> Ran {
    let base = server(mood).await;
    let own = [("KEYS", "slc_a_0,slc_b_0"), ("ADMIN_URL", base.as_str())];
    let all = [&own[..], settings].concat();
    let ran = Running::start(script, &base, &all).ended().await;
    assert_eq!(ran.code, Some(THRESHOLDS_FAILED), "{script}: {}", ran.text);
    ran
}

fn assert_failed(ran: &Ran, threshold: &str) {
    assert!(
        ran.failed().contains(&threshold),
        "{threshold}: {:?}",
        ran.failed()
    );
    assert!(!ran.failed().contains(&"sluice_acked"), "{:?}", ran.failed());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_script_notices_what_it_is_there_for() {
    let _alone = super::alone().await;
    let few = [("RATE", "10"), ("VUS", "1"), ("P99_MS", "5000"), ("RATIO", "3")];
    let slow_client = [&few[..], &[("DURATION", "6s")]].concat();
    let noisy = [&few[..], &[("DURATION", "4s"), ("NOISY_EVENTS", "10")]].concat();
    let spike = [
        ("RATE", "10"),
        ("VUS", "20"),
        ("FACTOR", "2"),
        ("P99_MS", "100"),
        ("DURATION", "6s"),
    ];
    let soak = [
        ("RATE", "10"),
        ("VUS", "4"),
        ("P99_MS", "5000"),
        ("GROWTH_MIB", "20"),
        ("DURATION", "6s"),
    ];
    let backpressure = [
        ("RATE", "20"),
        ("VUS", "1"),
        ("PAYLOAD", "100"),
        ("AFTER_S", "3"),
        ("DURATION", "8s"),
    ];
    let (slower, neighbour, refused, after, grown, again) = tokio::join!(
        ran(
            "slow-client",
            Mood::SlowFrom(Duration::from_secs(2)),
            &slow_client
        ),
        ran("noisy-neighbour", Mood::SlowFrom(Duration::from_secs(2)), &noisy),
        ran(
            "noisy-neighbour",
            Mood::Refuses("slc_b_0", Duration::from_millis(2_500)),
            &noisy
        ),
        ran("spike", Mood::SlowFrom(Duration::from_secs(4)), &spike),
        ran("soak", Mood::Grows, &soak),
        ran(
            "backpressure",
            Mood::RefusesBetween(&[(500, 1_200), (2_500, 3_200)]),
            &backpressure
        ),
    );
    assert_failed(&slower, "sluice_p99_ratio");
    assert_failed(&neighbour, "sluice_p99_ratio");
    assert_failed(&refused, "sluice_refused{phase:together}");
    assert_failed(&after, "sluice_ack_ms{phase:after}");
    assert_failed(&grown, "sluice_memory_growth_mib");
    assert_failed(&again, "sluice_refusal_periods");
}
