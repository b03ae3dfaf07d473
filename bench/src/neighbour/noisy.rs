//! The noisy tenant: it sends many times its quota, whatever it is answered, on a thread of its own.

use super::schedule::{Schedule, Side};
use crate::body::Body;
use crate::client::Client;
use crate::cores::Cores;
use serde::Serialize;
use sluice_common::process::Failure;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

const CONNECTIONS: u32 = 32;
/// A sender that is so late leaves out what it should have sent meanwhile; the figure of what was offered tells.
const LATE: Duration = Duration::from_secs(1);

/// What it sends.
#[derive(Debug, Clone)]
pub struct Flood {
    pub address: String,
    pub key: String,
    pub events_per_request: usize,
    pub events_per_second: f64,
    pub now_ms: u64,
    pub schedule: Schedule,
}

/// What became of its events while it was beside the others.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Noise {
    pub offered: u64,
    pub accepted: u64,
    /// 429.
    pub over_quota: u64,
    /// 503.
    pub refused: u64,
    /// Another answer, or none.
    pub other: u64,
    /// What went to the listener that does nothing, meanwhile being away.
    pub offered_elsewhere: u64,
}

impl Noise {
    fn add(&mut self, other: &Self) {
        self.offered += other.offered;
        self.accepted += other.accepted;
        self.over_quota += other.over_quota;
        self.refused += other.refused;
        self.other += other.other;
        self.offered_elsewhere += other.offered_elsewhere;
    }
}

impl Flood {
    /// Sends until the schedule is over.
    ///
    /// # Errors
    /// Where the thread or its listener cannot be made.
    pub fn run(self, cores: &Cores) -> Result<Noise, Failure> {
        cores.to_generators()?;
        crate::on_one_thread(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let away = listener.local_addr()?.to_string();
            tokio::task::spawn_local(answer_all(listener));
            let senders = (0..CONNECTIONS).map(|number| {
                let sender = Sender {
                    body: Body::render(0, number, self.events_per_request, self.now_ms),
                    client: Client::new(&self.address, &self.key),
                    noise: Noise::default(),
                };
                tokio::task::spawn_local(sender.run(self.clone(), away.clone(), number))
            });
            let mut noise = Noise::default();
            for sender in senders.collect::<Vec<_>>() {
                noise.add(&sender.await?);
            }
            Ok(noise)
        })
    }
}

struct Sender {
    body: Body,
    client: Client,
    noise: Noise,
}

impl Sender {
    async fn run(mut self, flood: Flood, away: String, number: u32) -> Noise {
        let requests = flood.events_per_second / flood.events_per_request as f64;
        let between = Duration::from_secs_f64(f64::from(CONNECTIONS) / requests);
        let mut due = flood.schedule.begun + between.mul_f64(f64::from(number) / f64::from(CONNECTIONS));
        loop {
            sleep_until(due).await;
            let Some(moment) = flood.schedule.at(Instant::now()) else {
                return self.noise;
            };
            let place = match moment.side {
                Side::Alone => &away,
                Side::Together => &flood.address,
            };
            self.client.turn_to(place);
            self.send(moment.side, moment.counts).await;
            due = (due + between).max(Instant::now() - LATE);
        }
    }

    async fn send(&mut self, side: Side, counts: bool) {
        let (body, events) = (self.body.renew(), self.body.events());
        let answer = self.client.post(body.clone()).await;
        self.body.give_back(body);
        if !counts {
            return;
        }
        let noise = &mut self.noise;
        match side {
            Side::Alone => noise.offered_elsewhere += events,
            Side::Together => {
                noise.offered += events;
                match answer.map(|answer| answer.status) {
                    Ok(202) => noise.accepted += events,
                    Ok(429) => noise.over_quota += events,
                    Ok(503) => noise.refused += events,
                    Ok(_) | Err(_) => noise.other += events,
                }
            }
        }
    }
}

/// Refuses all that comes, and reads no more of it than it must.
async fn answer_all(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move {
            // A client that went away is none of its business.
            refuse(stream).await.ok();
        });
    }
}

async fn refuse(stream: TcpStream) -> Result<(), Failure> {
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.trim_end().parse::<usize>()?;
        } else if line.trim_end().is_empty() {
            while length > 0 {
                let here = stream.fill_buf().await?.len().min(length);
                if here == 0 {
                    return Ok(());
                }
                stream.consume(here);
                length -= here;
            }
            stream
                .write_all(b"HTTP/1.1 429 x\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")
                .await?;
        }
    }
}
