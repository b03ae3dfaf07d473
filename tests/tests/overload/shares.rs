//! More comes than ClickHouse takes: the tenant that sends it is held to its share of what is drained, and one that
//! sends less than its share does not notice.

use super::load::{Ended, Load};
use super::{all_arrived, books_agree};
use sluice_tests::proxy::{Act, EVENTS_INSERT, Rule};
use sluice_tests::{Deployment, Hop, Part, Plan, Shape, eventually, now_ms};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long each piece of an insert's body (up to 64 KiB) is held up: at most some 6 MB/s are drained.
const SLOW: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two requests of the modest tenant.
const PAUSE: Duration = Duration::from_millis(50);
/// Of its requests, those that are sent while the greedy tenant is held back.
const MODEST: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_greedy_tenant_is_held_to_its_share_of_the_drain_and_a_modest_one_is_never_refused() {
    let extra = "log: {max_bytes: 1GiB}\n";
    let plan = Plan::new(Shape::ThreeProcesses)
        .proxied(Hop::ToClickHouse)
        .extra(extra);
    let deployment = Arc::new(plan.start().await);
    let greedy = Arc::new(Load::new(deployment.tenant(0)));
    assert_eq!(greedy.send().await, Ended::Acked);
    let proxy = deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on(EVENTS_INSERT, Act::Delay(SLOW)));

    let done = Arc::new(AtomicBool::new(false));
    let modest = tokio::spawn(modest(Arc::clone(&deployment), Arc::clone(&done)));
    let fill = greedy.run();
    let level = async |name, labels| deployment.metric(Part::Normalizer, name, labels).await;
    eventually(
        "the drain is shared out, and the greedy tenant held to its share",
        PATIENCE,
        async || {
            let shed = level("sluice_shed_total", "reason=\"drain_share\"").await;
            let in_force = level("sluice_grant_in_force", "").await;
            (shed > 0.0 && in_force == 1.0 && greedy.refused() > 20).then_some(())
        },
    )
    .await;
    for _ in 0..MODEST {
        tokio::time::sleep(PAUSE).await;
    }
    done.store(true, Ordering::Relaxed);
    let taken = modest.await.expect("each request of the modest tenant is taken");
    assert!(taken >= MODEST / 2, "{taken}");
    greedy.stop(fill).await;

    deployment.proxy(Hop::ToClickHouse).pass();
    all_arrived(&deployment, &greedy).await;
    books_agree(&deployment, &greedy).await;
}

/// Sends a little, again and again; how many requests were taken: all.
async fn modest(deployment: Arc<Deployment>, done: Arc<AtomicBool>) -> usize {
    let client = deployment.tenant(1);
    let mut taken = 0;
    while !done.load(Ordering::Relaxed) {
        let event = format!(
            r#"{{"event_id":"modest-{taken}","timestamp":{},"service":"x"}}"#,
            now_ms()
        );
        let answer = client.post("/v1/events/events", event).await.expect("an answer");
        assert_eq!(answer.status, 202, "after {taken}: {}", answer.text());
        taken += 1;
        tokio::time::sleep(PAUSE).await;
    }
    taken
}
