//! Large events of one tenant from some clients, and what became of each.

use sluice_tests::payload::Bulk;
use sluice_tests::{Client, now_ms};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const EVENTS: usize = 16;
const EVENT_BYTES: usize = 50_000;
const CLIENTS: u64 = 4;
/// Of the refused requests, those that are sent again at the end.
const RETRIED: usize = 100;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Acked,
    Refused,
    Unknown,
}

/// Requests of distinct events, and what became of each.
pub struct Load {
    client: Client,
    bulk: Bulk,
    next: AtomicU64,
    ends: std::sync::Mutex<Vec<(u64, Ended)>>,
    stopped: AtomicBool,
}

impl Load {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            bulk: Bulk::new(),
            next: AtomicU64::new(0),
            ends: std::sync::Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Sends new requests until it is stopped, pausing after a refusal far shorter than it is told to.
    pub fn run(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let client = || {
            let load = Arc::clone(self);
            tokio::spawn(async move {
                while !load.stopped.load(Ordering::Relaxed) {
                    if load.send().await != Ended::Acked {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        };
        (0..CLIENTS).map(|_| client()).collect()
    }

    pub async fn stop(&self, clients: Vec<tokio::task::JoinHandle<()>>) {
        self.stopped.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("every answer was as it must be");
        }
    }

    /// Sends one new request and notes its end.
    pub async fn send(&self) -> Ended {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ended = self.exchange(number).await;
        self.ends.lock().expect("not poisoned").push((number, ended));
        ended
    }

    async fn exchange(&self, number: u64) -> Ended {
        let event = |id: u64| self.bulk.event(&id.to_string(), now_ms(), EVENT_BYTES);
        let body: String = events_of(number).map(event).collect();
        let Ok(answer) = self.client.post("/v1/events/events", body).await else {
            return Ended::Unknown;
        };
        if answer.status == 202 {
            return Ended::Acked;
        }
        assert_eq!(answer.status, 503, "{}", answer.text());
        let wait: u64 = answer.header("retry-after").parse().expect("whole seconds");
        assert!((1..=60).contains(&wait), "{wait}");
        match answer.header("sluice-outcome") {
            "refused" => Ended::Refused,
            "unknown" => Ended::Unknown,
            other => panic!("Sluice-Outcome: {other:?}"),
        }
    }

    /// Sends refused requests again until they are taken: as many as were surely not enough to fill anything.
    pub async fn retry_refused(&self) {
        let ends = std::mem::take(&mut *self.ends.lock().expect("not poisoned"));
        let mut again = RETRIED;
        for (number, mut ended) in ends {
            let retried = ended == Ended::Refused && again > 0;
            again -= usize::from(retried);
            while retried && ended == Ended::Refused {
                ended = self.exchange(number).await;
            }
            self.ends.lock().expect("not poisoned").push((number, ended));
        }
    }

    pub fn events(&self, wanted: Ended) -> BTreeSet<u64> {
        let ends = self.ends.lock().expect("not poisoned");
        let numbers = ends.iter().filter(|(_, ended)| *ended == wanted);
        numbers.flat_map(|(number, _)| events_of(*number)).collect()
    }

    pub fn count(&self, wanted: Ended) -> usize {
        let ends = self.ends.lock().expect("not poisoned");
        ends.iter().filter(|(_, ended)| *ended == wanted).count()
    }

    pub fn refused(&self) -> usize {
        self.count(Ended::Refused)
    }

    pub fn acked_bytes(&self) -> u64 {
        (self.count(Ended::Acked) * EVENTS * EVENT_BYTES) as u64
    }
}

fn events_of(number: u64) -> std::ops::Range<u64> {
    let events = EVENTS as u64;
    number * events..(number + 1) * events
}
