//! Two edges before one normalizer and two sink-writers behind it, restarted one after the other under load. (The
//! embedded log has one normalizer.)

use crate::trial::Trial;
use sluice_tests::service::Service;
use sluice_tests::{Deployment, Part, Plan, Shape};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::block_in_place;

const TURNS: u32 = 3;
/// What flows between two restarts.
const PAUSE: Duration = Duration::from_millis(700);

/// A second process of a part.
struct Twin {
    program: &'static str,
    service: Service,
    args: Vec<String>,
    log: PathBuf,
}

impl Twin {
    fn start(deployment: &Deployment, program: &'static str, config: &str) -> Self {
        let at = |ending: &str| deployment.path().join(format!("second-{program}.{ending}"));
        std::fs::write(at("yaml"), config).expect("written");
        let args = [
            "--config".to_owned(),
            at("yaml").display().to_string(),
            "--data-dir".to_owned(),
            deployment.data().display().to_string(),
        ];
        let log = at("log");
        let service = block_in_place(|| Service::start(program, &args, &log)).expect("ready");
        Self {
            program,
            service,
            args: args.to_vec(),
            log,
        }
    }

    fn restarted(self) -> Self {
        let ended = block_in_place(|| self.service.terminate());
        assert!(ended.success(), "{}: {ended}", self.program);
        let service = block_in_place(|| Service::start(self.program, &self.args, &self.log)).expect("ready");
        Self { service, ..self }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_edges_and_two_sink_writers_restarted_in_turn_under_load_lose_and_double_nothing() {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses)).await;
    let ports = free_ports();
    let config = std::fs::read_to_string(trial.deployment.config()).expect("a config");
    let first = trial.deployment.sink_url();
    let both = config.replace(
        &format!("sink_writer: [\"{first}\"]"),
        &format!("sink_writer: [\"{first}\", \"http://127.0.0.1:{}\"]", ports[2]),
    );
    assert_ne!(both, config);
    std::fs::write(trial.deployment.config(), both).expect("written");
    let mut sink_writer = Twin::start(
        &trial.deployment,
        "sluice-sink-writer",
        &moved(&config, "sink_writer", ports[2], ports[3]),
    );
    restart(&mut trial, Part::Normalizer).await;
    let mut edge = Twin::start(
        &trial.deployment,
        "sluice-edge",
        &moved(&config, "edge", ports[0], ports[1]),
    );
    trial.deployment.add_edge(ports[0]);

    // Two loads: the tenants of one are at the other edge in the other.
    let loads = [
        trial.oracle.load(&trial.deployment),
        trial.oracle.load(&trial.deployment),
    ];
    for _ in 0..TURNS {
        for part in [Part::Edge, Part::SinkWriter] {
            tokio::time::sleep(PAUSE).await;
            restart(&mut trial, part).await;
        }
        edge = edge.restarted();
        tokio::time::sleep(PAUSE).await;
        sink_writer = sink_writer.restarted();
    }
    restart(&mut trial, Part::Normalizer).await;
    for load in loads {
        load.stop().await;
    }
    trial.verdict().await;
}

async fn restart(trial: &mut Trial, part: Part) {
    let well = block_in_place(|| trial.deployment.terminate(part));
    assert!(well, "{part:?}: {}", trial.deployment.last_words());
    trial.deployment.bring_up(part).await.expect("ready");
}

/// The same config with a part's listeners elsewhere.
fn moved(config: &str, part: &str, listen: u16, admin: u16) -> String {
    let listen = match part {
        "edge" => format!("[\"127.0.0.1:{listen}\"]"),
        _ => format!("\"127.0.0.1:{listen}\""),
    };
    let lines = config.lines().map(|line| {
        let Some(keys) = line.strip_prefix(&format!("{part}: {{")) else {
            return line.to_owned();
        };
        let (_, rest) = keys.split_once(", admin: ").expect("an admin listener");
        let rest = rest.split_once('"').and_then(|(_, rest)| rest.split_once('"'));
        let (_, rest) = rest.expect("an address");
        format!("{part}: {{listen: {listen}, admin: \"127.0.0.1:{admin}\"{rest}")
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn free_ports() -> [u16; 4] {
    let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}
