//! A real edge on a socket, before a normalizer that keeps what it was given.

use sha2::{Digest as _, Sha256};
use sluice_common::config::Loaded;
use sluice_common::metrics::Metrics;
use sluice_common::shutdown::Stop;
use sluice_common::wire::intake::{IntakeReply, IntakeRequest, RowsAnswer};
use sluice_common::wire::transport::Seam;
use sluice_edge::{Edge, EdgeServer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// The only key that is let in.
pub const KEY: &str = "slc_acme_secret";
/// An answer that comes at all comes in this time; after it the client says that it has sent everything.
const ANSWER: Duration = Duration::from_millis(30);
/// A connection of which one side is closed is closed by then.
const HANG: Duration = Duration::from_secs(20);

/// The edge and all that reached the normalizer.
pub struct Fixture {
    runtime: Runtime,
    address: SocketAddr,
    seen: Arc<Mutex<Vec<IntakeRequest>>>,
}

impl Fixture {
    /// Starts it.
    pub fn start() -> Self {
        let hash = hex::encode(Sha256::digest(KEY));
        let yaml = format!(
            "tenants: [{{id: acme, keys: [{{sha256: {hash}}}]}}]\n\
             datasets: [{{name: events, fields: [{{name: a, type: string}}]}}]\n"
        );
        let config = Loaded::parse(&yaml, Path::new("fuzz"), Path::new("/nowhere")).expect("a sound config");
        let seen = Arc::<Mutex<Vec<IntakeRequest>>>::default();
        let keep = Arc::clone(&seen);
        let seam: Seam<IntakeRequest> = Seam::new(tower::service_fn(move |request: IntakeRequest| {
            keep.lock().expect("no panic before").push(request);
            let rows = RowsAnswer {
                accepted: 1,
                ..RowsAnswer::default()
            };
            async move { Ok::<_, Infallible>(IntakeReply::Rows(rows)) }
        }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let address = runtime.block_on(async {
            let metrics = Metrics::new("fuzz", &config.config).expect("metrics");
            let edge = Edge::new(&config.config, seam, metrics);
            let server = EdgeServer::bind(edge, &["127.0.0.1:0".into()], None)
                .await
                .expect("a port");
            let address = server.addresses()[0];
            tokio::spawn(server.run(Stop::new()));
            address
        });
        Self {
            runtime,
            address,
            seen,
        }
    }

    /// Sends bytes as one connection's, and returns what came back and what reached the normalizer.
    pub fn send(&self, bytes: &[u8]) -> (Vec<u8>, Vec<IntakeRequest>) {
        self.seen.lock().expect("no panic before").clear();
        let mut answer = Vec::new();
        self.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.address).await.expect("it listens");
            // It may refuse before it has read everything.
            if stream.write_all(bytes).await.is_ok() {
                let ended = tokio::time::timeout(ANSWER, stream.read_to_end(&mut answer)).await;
                if ended.is_err() {
                    stream.shutdown().await.ok();
                }
            }
            let ended = tokio::time::timeout(HANG, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "the connection hangs");
        });
        (
            answer,
            std::mem::take(&mut *self.seen.lock().expect("no panic before")),
        )
    }
}
