//! The generator: connections that post one body after another and remember what was acknowledged.

use crate::body::Body;
use crate::latency::Latency;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::process::Failure;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Waits after an answer that is no acknowledgement; the same body is sent again then.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long one request is tried.
const RETRY_DEADLINE: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Path and query.
    pub path: String,
    /// The API key; absent for ClickHouse itself.
    pub key: Option<String>,
}

impl Target {
    /// The default dataset's events, at an edge.
    #[must_use]
    pub fn events(edge: impl Into<String>, key: String) -> Self {
        Self {
            address: edge.into(),
            path: "/v1/events/events".into(),
            key: Some(key),
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub run: u32,
    pub events_per_request: usize,
    pub connections: u32,
    pub time: Duration,
    /// Events per second over all connections; absent, each sends as soon as it is answered.
    pub rate: Option<u32>,
    /// Around when the events happened.
    pub now_ms: u64,
    /// So many requests of a connection differ; then the same come again, and are repeats.
    pub distinct: Option<u64>,
    /// Whether a reader asks for events of its own meanwhile, for freshness: it takes ClickHouse a share of a core.
    pub probed: bool,
    /// Whose they are: connections are these tenants' in turn.
    pub tenants: u32,
}

impl Load {
    /// So many events a request, over so many connections; as many as are taken.
    #[must_use]
    pub fn new((events_per_request, connections): (usize, u32), time: Duration) -> Self {
        Self {
            run: 0,
            events_per_request,
            connections,
            time,
            rate: None,
            now_ms: SystemClock.now_ms(),
            distinct: None,
            probed: true,
            tenants: 1,
        }
    }

    /// The events of each connection that are to be stored: those acknowledged, without repeats.
    #[must_use]
    pub fn stored(&self, ledger: &Ledger) -> Vec<u64> {
        let distinct = self
            .distinct
            .map_or(u64::MAX, |requests| requests * self.events_per_request as u64);
        ledger
            .acknowledged
            .iter()
            .map(|events| distinct.min(*events))
            .collect()
    }
}

/// What was acknowledged. Ids are contiguous in each connection, so the counts are the ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Events by connection.
    pub acknowledged: Vec<u64>,
    /// Request to answer; with a rate, from the moment it was due.
    pub latency: Latency,
    /// Answers that were no acknowledgement; each was tried again.
    pub refused: u64,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Ledger {
    /// Events acknowledged in all.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.acknowledged.iter().sum()
    }
}

/// Sends until the time is over and each connection has its last answer; connections go to the targets in turn.
/// `acknowledged` is moved on as answers come.
///
/// # Errors
/// Where a request is not acknowledged within a minute of attempts.
pub async fn send(load: Load, targets: &[Target], acknowledged: Rc<Cell<u64>>) -> Result<Ledger, Failure> {
    let mut senders = Vec::new();
    for (number, target) in (0..load.connections).zip(targets.iter().cycle()) {
        senders.push(Sender {
            body: Body::render(load.run, number, load.events_per_request, load.now_ms),
            connection: None,
            target: target.clone(),
            latency: Latency::default(),
            refused: 0,
        });
    }
    let begun = Instant::now();
    let tasks: Vec<_> = senders
        .into_iter()
        .enumerate()
        .map(|(number, sender)| {
            tokio::task::spawn_local(sender.run(load, begun, number, Rc::clone(&acknowledged)))
        })
        .collect();
    let mut ledger = Ledger::default();
    for task in tasks {
        let (events, sender) = task.await??;
        ledger.acknowledged.push(events);
        ledger.latency.merge(&sender.latency);
        ledger.refused += sender.refused;
    }
    ledger.took = begun.elapsed();
    Ok(ledger)
}

struct Sender {
    body: Body,
    connection: Option<SendRequest<Full<Bytes>>>,
    target: Target,
    latency: Latency,
    refused: u64,
}

impl Sender {
    async fn run(
        mut self,
        load: Load,
        begun: Instant,
        number: usize,
        acknowledged: Rc<Cell<u64>>,
    ) -> Result<(u64, Self), Failure> {
        let between = load.rate.map(|rate| {
            let requests = f64::from(rate.max(1)) / self.body.events() as f64;
            Duration::from_secs_f64(f64::from(load.connections) / requests)
        });
        // Connections take turns instead of all sending at once.
        let offset = between.map(|between| between.mul_f64(number as f64 / f64::from(load.connections)));
        let mut due = begun + offset.unwrap_or_default();
        let (mut events, mut requests) = (0, 0);
        while due.max(Instant::now()) < begun + load.time {
            match between {
                Some(between) => {
                    sleep_until(due).await;
                    let since = due;
                    due += between;
                    self.acknowledge(since).await?;
                }
                None => self.acknowledge(Instant::now()).await?,
            }
            events += self.body.events();
            requests += 1;
            if load.distinct.is_some_and(|distinct| requests % distinct == 0) {
                self.body.begin_again();
            }
            acknowledged.set(acknowledged.get() + self.body.events());
        }
        Ok((events, self))
    }

    /// Sends the next body until it is acknowledged.
    async fn acknowledge(&mut self, since: Instant) -> Result<(), Failure> {
        let body = self.body.renew();
        let until = Instant::now() + RETRY_DEADLINE;
        let mut since = since;
        while let Err(why) = self.attempt(body.clone()).await {
            if Instant::now() >= until {
                return Err(Failure::new(format!("not acknowledged in a minute: {why}")));
            }
            self.refused += 1;
            sleep(RETRY_PAUSE).await;
            since = Instant::now();
        }
        self.latency.record(since.elapsed());
        self.body.give_back(body);
        Ok(())
    }

    async fn attempt(&mut self, body: Bytes) -> Result<(), String> {
        let exchange = timeout(RETRY_DEADLINE, self.exchange(body)).await;
        let (status, answer) = match exchange.map_err(|_| "no answer".to_owned()).flatten() {
            Ok(answer) => answer,
            Err(error) => {
                self.connection = None;
                return Err(error);
            }
        };
        if self.is_acknowledged(status, &answer) {
            return Ok(());
        }
        Err(format!("{status}: {}", String::from_utf8_lossy(&answer)))
    }

    /// ClickHouse answers 200 without a word, the edge 202 with the number of accepted events.
    fn is_acknowledged(&self, status: StatusCode, answer: &[u8]) -> bool {
        if self.target.key.is_none() {
            return status == StatusCode::OK;
        }
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        status == StatusCode::ACCEPTED && answer["accepted"].as_u64() == Some(self.body.events())
    }

    async fn exchange(&mut self, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.target.address).await?,
        };
        let mut request = Request::post(&self.target.path)
            .header(header::HOST, &self.target.address)
            .header(header::CONTENT_TYPE, "application/x-ndjson");
        if let Some(key) = &self.target.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        connection.ready().await.map_err(|error| error.to_string())?;
        let response = connection.send_request(request).await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let answer = answer.map_err(|error| error.to_string())?.to_bytes();
        self.connection = Some(connection);
        Ok((status, answer))
    }
}

async fn connect(address: &str) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::task::spawn_local(async move {
        // An error reaches the sender too.
        connection.await.ok();
    });
    Ok(sender)
}
