//! What a refused request costs the edge: CPU of its process, and bytes that it wrote.
//!
//! An edge of its own, without anything behind it but a normalizer in this process that is always busy. A few
//! connections that are kept send small requests, one after the other, all refused in one way: over a quota,
//! without a key, at the gate.

use crate::system::{beside, free_ports};
use crate::usage;
use clap::Args;
use ingestctl::demo;
use serde::Serialize;
use sluice_common::process::Failure;
use sluice_common::serve::{Bounds, Door, listen, serve};
use sluice_common::shutdown::Stop;
use sluice_common::wire::intake::{BusyScope, IntakeReply, IntakeRequest};
use sluice_common::wire::transport::{Seam, receive};
use std::convert::Infallible;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const LIMITED: &str = "slc_limited_00000000000000000000000000000000";
const FREE: &str = "slc_free_00000000000000000000000000000000";
const READY_DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct RefusalArgs {
    /// Refusals of each kind.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..))]
    requests: u32,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    connections: u32,
    /// Fails where a refusal costs more, in µs of CPU.
    #[arg(long, default_value_t = 100.0)]
    most_us: f64,
}

/// One way of being refused.
struct Kind {
    name: &'static str,
    key: &'static str,
    status: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "429, over a quota that is empty",
        key: LIMITED,
        status: "429",
    },
    Kind {
        name: "401, an unknown key",
        key: "slc_nobody_0",
        status: "401",
    },
    Kind {
        name: "503, the gate is shut",
        key: FREE,
        status: "503",
    },
];

/// What one kind cost.
#[derive(Debug, Serialize)]
struct Cost {
    refusals: u32,
    cpu_us: f64,
    written_bytes: u64,
}

impl RefusalArgs {
    /// Measures each kind, prints a line for each, and holds them to what they may cost.
    ///
    /// # Errors
    /// What did not start, was not refused, cost too much, or had the disk write anything.
    pub async fn run(self) -> Result<(), Failure> {
        let dir = tempfile::tempdir()?;
        let [port, admin, inner] = free_ports()?;
        busy_normalizer(inner).await?;
        let edge = start_edge(dir.path(), [port, admin, inner]).await?;
        let pid = edge.id().ok_or_else(|| Failure::new("the edge is gone"))?;
        let address = format!("127.0.0.1:{port}");
        let mut complaints = Vec::new();
        for kind in &KINDS {
            // The first ones spend the bucket, and shut the gate.
            measure(&address, kind, pid, self.connections, 200).await?;
            let cost = measure(&address, kind, pid, self.connections, self.requests).await?;
            println!(
                "{:<32} {:>8} refusals  {:>6.1} µs of CPU each  {} bytes written",
                kind.name, cost.refusals, cost.cpu_us, cost.written_bytes
            );
            if cost.cpu_us > self.most_us {
                complaints.push(format!("{}: over {} µs of CPU", kind.name, self.most_us));
            }
            if cost.written_bytes > 0 {
                complaints.push(format!("{}: {} bytes written", kind.name, cost.written_bytes));
            }
        }
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::new(complaints.join("; ")))
    }
}

/// Says "busy" to everybody.
async fn busy_normalizer(port: u16) -> Result<(), Failure> {
    let seam: Seam<IntakeRequest> = Seam::<IntakeRequest>::new(tower::service_fn(|_: IntakeRequest| async {
        Ok::<_, Infallible>(IntakeReply::Busy {
            scope: BusyScope::All,
            reason: "always busy".into(),
            retry_after_ms: 1_000,
        })
    }));
    let listener = listen(&format!("127.0.0.1:{port}")).await?;
    let door = Door { listener, tls: None };
    tokio::spawn(serve(door, receive(seam, None), Bounds::INNER, Stop::new()));
    Ok(())
}

async fn start_edge(dir: &Path, [port, admin, inner]: [u16; 3]) -> Result<Child, Failure> {
    // One request a second: nearly all that is sent here is over it.
    let config = format!(
        "edge: {{listen: [\"127.0.0.1:{port}\"], admin: \"127.0.0.1:{admin}\", normalizer: [\"http://127.0.0.1:{inner}\"]}}\n\
         tenants:\n  - {{id: limited, keys: [{{sha256: \"{}\"}}], quota: {{requests_per_second: 1, burst: 1s}}}}\n  \
         - {{id: free, keys: [{{sha256: \"{}\"}}]}}\n",
        demo::hash(LIMITED),
        demo::hash(FREE)
    );
    let path = dir.join("sluice.yaml");
    std::fs::write(&path, config)?;
    let mut child = Command::new(beside("sluice-edge")?)
        .arg("--json")
        .arg("--config")
        .arg(&path)
        .arg("--data-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("edge.log"))?)
        .kill_on_drop(true)
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        timeout(READY_DEADLINE, stdout.read_line(&mut line)).await??;
    }
    if line.is_empty() {
        let words = std::fs::read_to_string(dir.join("edge.log"))?;
        return Err(Failure::new(format!("the edge did not get ready: {words}")));
    }
    Ok(child)
}

async fn measure(
    address: &str,
    kind: &Kind,
    pid: u32,
    connections: u32,
    requests: u32,
) -> Result<Cost, Failure> {
    let before = (usage::of_tree(pid).cpu, written(pid)?);
    let each = requests.div_ceil(connections);
    let clients =
        (0..connections).map(|_| tokio::task::spawn_local(client(address.to_owned(), kind.key, each)));
    let clients: Vec<_> = clients.collect();
    let (mut refused, mut others) = (0, Vec::new());
    for client in clients {
        for status in client.await?? {
            if status == kind.status {
                refused += 1;
            } else {
                others.push(status);
            }
        }
    }
    // A token a second, and what the gate lets through to look, are no refusals of this kind.
    if others.len() as f64 > 0.02 * f64::from(requests) + 20.0 {
        return Err(Failure::new(format!(
            "{}: {} of {requests} were answered otherwise, as {:?}",
            kind.name,
            others.len(),
            others.first()
        )));
    }
    let cpu = usage::of_tree(pid).cpu.saturating_sub(before.0);
    Ok(Cost {
        refusals: refused,
        cpu_us: cpu.as_secs_f64() * 1e6 / f64::from(refused.max(1)),
        written_bytes: written(pid)? - before.1,
    })
}

/// Bytes that the process had the disk write.
fn written(pid: u32) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    let bytes = line.and_then(|bytes| bytes.trim().parse().ok());
    bytes.ok_or_else(|| Failure::new("/proc says nothing of bytes written"))
}

/// Sends so many requests, one after the other, on connections that are kept; the statuses.
async fn client(address: String, key: &'static str, requests: u32) -> Result<Vec<String>, Failure> {
    // A body that is no gzip: the one that is let in is charged for it, and goes no further.
    let packed = if key == LIMITED {
        "content-encoding: gzip\r\n"
    } else {
        ""
    };
    let request = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n{packed}content-length: 14\r\n\r\n{{\"a\":\"123456\"}}"
    );
    let mut stream = BufReader::new(TcpStream::connect(&address).await?);
    let mut statuses = Vec::new();
    for _ in 0..requests {
        stream.get_mut().write_all(request.as_bytes()).await?;
        let (status, keep) = timeout(ANSWER_DEADLINE, answer(&mut stream)).await??;
        statuses.push(status);
        if !keep {
            stream = BufReader::new(TcpStream::connect(&address).await?);
        }
    }
    Ok(statuses)
}

/// The status of one answer, and whether the connection goes on.
async fn answer(stream: &mut BufReader<TcpStream>) -> Result<(String, bool), Failure> {
    let (mut status, mut length, mut keep) = (String::new(), 0, true);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(Failure::new("the edge ended a connection without an answer"));
        }
        let line = line.trim_end().to_ascii_lowercase();
        if status.is_empty() {
            status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        } else if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.parse()?;
        } else if line == "connection: close" {
            keep = false;
        } else if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((status, keep))
}
