//! Requests that are rejected whole leave marks in the log, so that the books know of them: so many a second (R20).

use futures_util::future::join_all;
use sluice_common::clock::ManualClock;
use sluice_common::config::{Loaded, Weight};
use sluice_common::ids::{RequestId, TenantId};
use sluice_common::limits::REJECT_MARKS_PER_SECOND;
use sluice_common::metrics::Metrics;
use sluice_common::shutdown::Stop;
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeReply, IntakeRequest};
use sluice_common::wire::sink::{SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use sluice_normalizer::start::{Environment, Running};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

const CONFIG: &str = "datasets: [{name: events, fields: [{name: a, type: int64}]}]\n";
const NOW_MS: u64 = 1_795_231_830_000;

/// Nobody to write to: the log takes what it is given all the same.
fn away() -> Seam<SinkRequest> {
    BoxCloneSyncService::new(tower::service_fn(|_: SinkRequest| async {
        let reason = "not here".to_owned();
        Ok::<_, Infallible>(SinkReply::Failed { reason })
    }))
}

fn rejected(request: u64) -> IntakeRequest {
    IntakeRequest {
        tenant: TenantId::new("acme").expect("valid"),
        weight: Weight::default(),
        dataset: "events".into(),
        request: RequestId(request.into()),
        idempotency_key: None,
        format: BodyFormat::Json,
        body: r#"[{"a":"x"},{"a":"y"}]"#.into(),
        timeout: Duration::from_secs(60),
        trace: TraceContext::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_requests_leave_so_many_marks_a_second_and_what_is_over_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = Loaded::parse(CONFIG, Path::new("test.yaml"), dir.path()).unwrap();
    let metrics = Metrics::new("normalizer", &loaded.config).unwrap();
    let environment = Environment {
        sink: away(),
        metrics: metrics.clone(),
        clock: Arc::new(ManualClock::at(NOW_MS)),
        stop: Stop::new(),
        accept_window_loss: false,
    };
    let running = Running::start(&loaded, environment).unwrap();
    let asked = (0..REJECT_MARKS_PER_SECOND + 50).map(|n| running.intake.clone().oneshot(rejected(n)));
    for reply in join_all(asked).await {
        let Ok(IntakeReply::Rows(rows)) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((rows.accepted, rows.rejected), (0, 2));
    }
    let unbooked = "sluice_ledger_unbooked_events_total 100\n";
    assert!(
        metrics.render().contains(unbooked),
        "two rows of each of 50 requests"
    );
}
