//! Backpressure from hop to hop, over three processes, each step seen in the metric that the runbook
//! (docs/operations.md) names for it: ClickHouse hangs → the sink-writer's calls hold all that they may, and it answers
//! busy → the range waits and the backlog grows → the normalizer refuses → the edge's gate shuts and its queue is cut
//! → the client is told 503 and when to come again. Then all of it backwards.

#[path = "../../../sink-writer/tests/support/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod support;

use super::load::{Ended, Load};
use super::{MIB, all_arrived, books_agree, signal};
use rustix::process::Signal;
use sluice_common::limits::SINK_CALL_BYTES;
use sluice_common::secret::Secret;
use sluice_common::wire::sink::{SinkReply, SinkRequest, Steps};
use sluice_common::wire::transport::{PeerClient, Seam};
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

/// The least that `log.max_bytes` may be.
const MAX_BYTES: u64 = 256 * MIB;
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the other normalizer's call stays where it is.
const CALL: Duration = Duration::from_secs(120);

/// A look at one metric of one process.
struct Gauge<'a>(&'a Deployment, Part, &'static str, &'static str);

impl Gauge<'_> {
    async fn read(&self) -> f64 {
        self.0.metric(self.1, self.2, self.3).await
    }

    /// Waits until it is over `least`.
    async fn exceeds(&self, least: f64) {
        let what = format!("{}{{{}}} over {least}", self.2, self.3);
        eventually(&what, PATIENCE, async || {
            (self.read().await > least).then_some(())
        })
        .await;
    }

    /// Waits until it is at most `most`.
    async fn falls_to(&self, most: f64) {
        let what = format!("{}{{{}}} at most {most}", self.2, self.3);
        eventually(&what, PATIENCE, async || {
            (self.read().await <= most).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sink_writer_is_felt_hop_by_hop_up_to_the_client_and_each_step_shows_in_its_metric() {
    let extra = format!("log: {{max_bytes: {MAX_BYTES}}}\n");
    let deployment = Deployment::start_with(Shape::ThreeProcesses, &extra).await;
    let gauge = |part, name, label| Gauge(&deployment, part, name, label);
    let load = Arc::new(Load::new(deployment.tenant(0)));
    assert_eq!(load.send().await, Ended::Acked);
    gauge(Part::Normalizer, "sluice_log_backlog_bytes", "")
        .falls_to(0.0)
        .await;

    // ClickHouse hangs, and a call of another normalizer holds all that the sink-writer's calls may.
    signal(&deployment, Signal::STOP);
    let other = tokio::spawn(other_normalizer(&deployment).oneshot(large_call()));
    let held = gauge(Part::SinkWriter, "sluice_queue_bytes", "queue=\"sink\"");
    held.exceeds(SINK_CALL_BYTES as f64 - 1.0).await;
    let busy = gauge(Part::SinkWriter, "sluice_shed_total", "reason=\"budget\"");
    let busy_before = busy.read().await;
    let fill = load.run();
    busy.exceeds(busy_before + 2.0).await;

    // The range waits; what comes in stays in the log, up to the tenant's share of its room.
    gauge(Part::Normalizer, "sluice_unsettled", "").exceeds(0.5).await;
    let backlog = gauge(Part::Normalizer, "sluice_log_backlog_bytes", "");
    backlog.exceeds(MAX_BYTES as f64 / 2.0).await;
    gauge(Part::Normalizer, "sluice_grant_in_force", "")
        .exceeds(1.5)
        .await;
    gauge(Part::Normalizer, "sluice_shed_total", "reason=\"room_share\"")
        .exceeds(0.0)
        .await;
    assert!(backlog.read().await > MAX_BYTES as f64 * 0.8);
    assert!(backlog.read().await <= MAX_BYTES as f64);

    // The edge waits for its tenant, then refuses: first what waited too long, then all at its gate.
    gauge(Part::Edge, "sluice_shed_total", "reason=\"queue_")
        .exceeds(0.0)
        .await;
    gauge(Part::Edge, "sluice_shed_total", "reason=\"gate\"")
        .exceeds(0.0)
        .await;
    // Told when to come again, as each refusal is held to.
    eventually("a refusal", PATIENCE, async || {
        (load.send().await == Ended::Refused).then_some(())
    })
    .await;
    load.stop(fill).await;

    // And back.
    signal(&deployment, Signal::CONT);
    let reply = other.await.expect("no panic").expect("never fails");
    assert!(matches!(reply, SinkReply::Wrote(_)), "{reply:?}");
    held.falls_to(SINK_CALL_BYTES as f64 / 2.0).await;
    backlog.falls_to(MAX_BYTES as f64 / 4.0).await;
    gauge(Part::Normalizer, "sluice_grant_in_force", "")
        .falls_to(0.0)
        .await;
    gauge(Part::Normalizer, "sluice_unsettled", "")
        .falls_to(0.0)
        .await;
    eventually("requests are taken", PATIENCE, async || {
        (load.send().await == Ended::Acked).then_some(())
    })
    .await;
    load.retry_refused().await;
    all_arrived(&deployment, &load).await;
    books_agree(&deployment, &load).await;
}

/// A seam to the sink-writer, as any other normalizer has it.
fn other_normalizer(deployment: &Deployment) -> Seam<SinkRequest> {
    let token = std::fs::read_to_string(deployment.data().join("internal.token")).expect("a token");
    let peers = [deployment.sink_url()];
    PeerClient::new(&peers, Some(Secret::new(token.trim())), None).seam()
}

/// A call that says to hold more than all calls may, and asks only whether its rows are there.
fn large_call() -> SinkRequest {
    let bytes = u32::try_from(SINK_CALL_BYTES).expect("under 4 GiB");
    let rows = support::rows(&[support::APPEND_MS as i64]);
    let record = support::record_that_holds(10, "events", rows, &[], Some(bytes));
    let steps = Steps {
        verify_first: true,
        insert: false,
        verify_after: false,
    };
    let mut call = support::call((10, 11), steps, None, vec![record]);
    call.timeout = CALL;
    SinkRequest::Write(call)
}
