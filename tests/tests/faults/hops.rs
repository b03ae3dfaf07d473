//! Each hop between two processes delayed, cut, half-closed, black-holed and held under load.

use super::trial::Trial;
use sluice_tests::proxy::{Act, Ending, Rule, Way};
use sluice_tests::{Hop, Plan, Shape};
use std::time::Duration;

/// How long each trouble lasts.
const TROUBLE: Duration = Duration::from_millis(1_500);
/// Between two.
const PEACE: Duration = Duration::from_millis(500);

fn troubles() -> [Act; 10] {
    let cut = |way, after, ending| Act::Cut { way, after, ending };
    [
        Act::Delay(Duration::from_millis(40)),
        cut(Way::There, 0, Ending::Reset),
        cut(Way::There, 10_000, Ending::Close),
        cut(Way::Back, 0, Ending::Close),
        cut(Way::Back, 100, Ending::Reset),
        Act::BlackHole,
        Act::HalfClose(Way::There),
        Act::HalfClose(Way::Back),
        Act::HoldRequest,
        Act::HoldAnswer,
    ]
}

async fn suffer(hop: Hop) {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses).proxied(hop)).await;
    let load = trial.oracle.load(&trial.deployment);
    for (n, act) in troubles().into_iter().enumerate() {
        tokio::time::sleep(PEACE).await;
        let proxy = trial.deployment.proxy(hop);
        proxy.set(Rule::all(act));
        tokio::time::sleep(TROUBLE).await;
        if n % 2 == 1 {
            // What was held never arrives.
            proxy.cut(Ending::Reset);
        }
        proxy.pass();
    }
    assert!(
        trial.deployment.proxy(hop).caught() >= 10,
        "connections were caught"
    );
    load.stop().await;
    trial.verdict().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_between_edge_and_normalizer_loses_and_doubles_nothing() {
    suffer(Hop::EdgeToNormalizer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_between_normalizer_and_sink_writer_loses_and_doubles_nothing() {
    suffer(Hop::NormalizerToSinkWriter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_between_sink_writer_and_clickhouse_loses_and_doubles_nothing() {
    suffer(Hop::ToClickHouse).await;
}
