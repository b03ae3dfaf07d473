//! Two normalizers on one data directory, each with an edge of its own.
//!
//! | | the first | the second | the log |
//! |---|---|---|---|
//! | 1 | runs | starts, and finds the log's end | empty |
//! | 2 | appends one event, acknowledged | | the first's |
//! | 3 | | appends one event where it takes the end to be, acknowledged | the second's, over the first's |
//! | 4 | both are killed, and one starts | | |

use super::Stand;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sluice_common::failpoint::Safety;
use sluice_tests::oracle::request::{self, Batch, Outcome};
use sluice_tests::oracle::verdict::Verdict;
use sluice_tests::service::Service;
use sluice_tests::{Client, Deployment, Part, ports};
use std::path::PathBuf;

pub async fn scenario(off: &[Safety]) -> Verdict {
    let mut stand = Stand::start(off).await;
    // What is stored cannot be lost.
    stand.deployment.kill(Part::SinkWriter);
    let (config, edge) = second_config(&stand.deployment);
    let second = start("sluice-normalizer", &stand.deployment, &config).await;
    let locked = !off.contains(&Safety::Lock);
    assert_eq!(second.is_err(), locked, "{second:?}");
    stand.send().await;
    if let Ok(second) = second {
        let second_edge = start("sluice-edge", &stand.deployment, &config)
            .await
            .expect("ready");
        let client =
            Client::new(format!("http://127.0.0.1:{edge}")).with_key(&stand.deployment.tenants[0].key);
        let mut rng = StdRng::seed_from_u64(stand.oracle.seed);
        let batch = Batch::new(0, stand.oracle.ledger.new_events(1), &mut rng);
        let (outcome, _) = request::attempt(&client, &stand.oracle.ledger, &batch).await;
        assert_eq!(outcome, Outcome::Acked);
        second_edge.kill();
        second.kill();
    }
    stand.deployment.kill(Part::Normalizer);
    stand.bring_up(Part::SinkWriter).await;
    stand.bring_up(Part::Normalizer).await;
    stand.verdict().await
}

/// The deployment's config with ports of their own for a second edge and normalizer; the edge's.
fn second_config(deployment: &Deployment) -> (PathBuf, u16) {
    let text = std::fs::read_to_string(deployment.config()).expect("a config");
    let free = ports::free::<4>();
    let port_of = |url: String| url.rsplit(':').next().expect("a port").to_owned();
    let (_, listens) = text
        .split_once("normalizer: {listen: \"127.0.0.1:")
        .expect("a normalizer");
    let (normalizer, _) = listens.split_once('"').expect("a port");
    let taken = [
        port_of(deployment.edge_address()),
        port_of(deployment.admin_url(Part::Edge)),
        normalizer.to_owned(),
        port_of(deployment.admin_url(Part::Normalizer)),
    ];
    let mut second = text.clone();
    for (taken, free) in taken.iter().zip(&free) {
        second = second.replace(&format!("127.0.0.1:{taken}\""), &format!("127.0.0.1:{free}\""));
    }
    let path = deployment.path().join("second.yaml");
    std::fs::write(&path, second).expect("written");
    (path, free[0])
}

async fn start(
    name: &'static str,
    deployment: &Deployment,
    config: &std::path::Path,
) -> Result<Service, String> {
    let args = [
        "--config".to_owned(),
        config.display().to_string(),
        "--data-dir".to_owned(),
        deployment.data().display().to_string(),
    ];
    let log = deployment.path().join("second.log");
    let started = tokio::task::spawn_blocking(move || Service::start(name, &args, &log)).await;
    started.unwrap_or_else(|panic| Err(panic.to_string()))
}
