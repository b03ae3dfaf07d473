//! What a client's connections say, and what is done for one that has lost all of its brokers.
//!
//! # Design note
//! Brokers may tell a client of no broker at all: those of a whole cluster do, for a moment, after it stood still. librdkafka
//! forgets whatever broker an answer does not name, and where it forgets them all it may never ask or connect again
//! (confluentinc/librdkafka, issue 5301; seen with 2.12): a seat in the group, a producer, a reader would be of no use until
//! a restart. So a client that says that all brokers are down, or whose questions are not answered, is given those of the
//! config again, a few times. Where it knows them that changes nothing. One that asks nothing, as a seat does, says nothing
//! of it either: its statistics do, which name each broker that it knows.

use crate::native::add_brokers;
use crate::told;
use parking_lot::Mutex;
use rdkafka::admin::AdminClient;
use rdkafka::bindings::rd_kafka_t;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use std::ffi::CString;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long what a connection said explains why nothing gets through.
const SAID_FOR: Duration = Duration::from_secs(60);
/// Longest part of that which is told.
const MAX_SAID_CHARS: usize = 300;
/// From the first sign of trouble, and from each try, to the next: what is being forgotten is not added. By the last for as
/// long as there are signs: librdkafka remembers each try.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
];

/// What connections said last: a message that timed out says nothing of why.
#[derive(Debug, Default)]
pub struct LastWords {
    said: Mutex<Option<(Instant, String)>>,
    brokers: Brokers,
}

/// Those of the config, for a client that may have lost all of its own.
#[derive(Debug, Default)]
struct Brokers {
    /// The client whose words these are; null before it is known. It is used while somebody has the client only.
    client: AtomicPtr<rd_kafka_t>,
    servers: Mutex<CString>,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Debug)]
struct Trouble {
    tries: usize,
    /// Whether there was a sign of it since the last try.
    lasts: bool,
    next: Instant,
}

impl LastWords {
    /// librdkafka's sentence, with what the connections said before.
    pub fn why(&self, error: &KafkaError) -> String {
        if is_silence(error) {
            self.brokers.are_missed();
        }
        self.look_after();
        let said = self.said.lock().clone();
        match said.filter(|(at, _)| at.elapsed() < SAID_FOR) {
            Some((_, said)) => format!("{}; before that: {said}", told(error)),
            None => told(error),
        }
    }

    /// Whether the client knows any broker. Those are none that stand for the group's coordinator, or for none yet.
    pub fn heard(&self, statistics: &Statistics) {
        let is_real = |source: &str| matches!(source, "configured" | "learned");
        if !statistics.brokers.values().any(|broker| is_real(&broker.source)) {
            self.brokers.are_missed();
        }
        self.look_after();
    }

    /// Gives the client its brokers again, if it is time to. For whoever polls it, again and again.
    pub fn look_after(&self) {
        self.brokers.look_after();
    }

    pub(crate) fn know<C: ClientContext>(&self, client: &rdkafka::client::Client<C>, servers: &str) {
        *self.brokers.servers.lock() = CString::new(servers).unwrap_or_default();
        self.brokers.client.store(client.native_ptr(), Ordering::Release);
    }
}

/// Whether nobody answered.
fn is_silence(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::MessageTimedOut
        )
    )
}

impl Brokers {
    fn are_missed(&self) {
        let mut trouble = self.trouble.lock();
        let trouble = trouble.get_or_insert_with(|| Trouble {
            tries: 0,
            lasts: false,
            next: Instant::now() + PAUSES[0],
        });
        trouble.lasts = true;
    }

    fn look_after(&self) {
        let mut guard = self.trouble.lock();
        let (now, client) = (Instant::now(), self.client.load(Ordering::Acquire));
        let Some(trouble) = guard.as_mut().filter(|trouble| trouble.next <= now) else {
            return;
        };
        trouble.tries += 1;
        match PAUSES.get(trouble.tries).or(PAUSES.last()) {
            Some(pause) if trouble.lasts || trouble.tries < PAUSES.len() => {
                (trouble.lasts, trouble.next) = (false, now + *pause);
            }
            Some(_) | None => *guard = None,
        }
        drop(guard);
        if !client.is_null() {
            add_brokers(client, &self.servers.lock());
        }
    }
}

impl ClientContext for LastWords {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::debug!(fac, "kafka: {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::trace!(fac, "kafka: {text}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Whoever waits is told of what becomes of it, and says it once.
        tracing::debug!(%error, reason, "kafka");
        let is_vague = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if is_vague {
            self.brokers.are_missed();
        }
        let mut said = self.said.lock();
        if !is_vague || said.is_none() {
            let reason = reason.chars().take(MAX_SAID_CHARS).collect();
            *said = Some((Instant::now(), reason));
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.heard(&statistics);
    }
}

impl ConsumerContext for LastWords {}

/// A context that keeps its client's words.
pub trait Speaks: ClientContext {
    fn words(&self) -> &LastWords;
}

impl Speaks for LastWords {
    fn words(&self) -> &LastWords {
        self
    }
}

/// A client of some kind.
pub trait Client<C: ClientContext> {
    fn base(&self) -> &rdkafka::client::Client<C>;
}

impl<C: ConsumerContext> Client<C> for BaseConsumer<C> {
    fn base(&self) -> &rdkafka::client::Client<C> {
        Consumer::client(self)
    }
}

impl<C: ProducerContext> Client<C> for ThreadedProducer<C> {
    fn base(&self) -> &rdkafka::client::Client<C> {
        Producer::client(self)
    }
}

impl<C: ClientContext> Client<C> for AdminClient<C> {
    fn base(&self) -> &rdkafka::client::Client<C> {
        self.inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Target, made, watched};
    use rdkafka::ClientConfig;
    use sluice_common::config::Kafka;
    use std::io::{self, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread::JoinHandle;

    const API_VERSIONS: u16 = 18;
    const METADATA: u16 = 3;
    const LEADER_NOT_AVAILABLE: u16 = 5;
    const UNSUPPORTED_VERSION: u16 = 35;

    /// A broker that tells of itself, or of no broker at all.
    struct Broker {
        port: u16,
        tells: Arc<AtomicBool>,
        /// How often it told of itself.
        told: Arc<AtomicUsize>,
        over: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl Broker {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let (tells, over) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
            let told = Arc::<AtomicUsize>::default();
            let (does_tell, count, done) = (Arc::clone(&tells), Arc::clone(&told), Arc::clone(&over));
            let thread = std::thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let (tells, told) = (Arc::clone(&does_tell), Arc::clone(&count));
                    std::thread::spawn(move || serve(connection, port, (&tells, &told)));
                }
            });
            let thread = Some(thread);
            Self {
                port,
                tells,
                told,
                over,
                thread,
            }
        }

        /// A client of it.
        fn client(&self, config: impl FnOnce(&mut ClientConfig)) -> BaseConsumer<LastWords> {
            let mut of_its_own = self.target().client();
            // librdkafka's own way out helps now and then.
            of_its_own.set("metadata.recovery.strategy", "none");
            config(&mut of_its_own);
            made(&of_its_own, LastWords::default()).unwrap()
        }

        fn target(&self) -> Target {
            let brokers = vec![format!("127.0.0.1:{}", self.port)];
            Target {
                kafka: Kafka {
                    brokers,
                    ..Kafka::default()
                },
                login: None,
                files: Vec::new(),
            }
        }
    }

    impl Drop for Broker {
        fn drop(&mut self) {
            self.over.store(true, Ordering::Relaxed);
            // It waits for a connection.
            TcpStream::connect(("127.0.0.1", self.port)).ok();
            self.thread.take().map(JoinHandle::join);
        }
    }

    /// Answers until the client goes.
    fn serve(
        mut connection: TcpStream,
        port: u16,
        (tells, told): (&AtomicBool, &AtomicUsize),
    ) -> io::Result<()> {
        loop {
            let mut size = [0; 4];
            connection.read_exact(&mut size)?;
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            connection.read_exact(&mut request)?;
            let number = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
            let mut answer = request[4..8].to_vec();
            answer.extend(match (number(0), number(2)) {
                (API_VERSIONS, version) => versions(if version == 0 { 0 } else { UNSUPPORTED_VERSION }),
                (METADATA, 1) => {
                    let tells = tells.load(Ordering::Relaxed);
                    told.fetch_add(usize::from(tells), Ordering::Relaxed);
                    metadata(port, tells)
                }
                other => panic!("asked for {other:?}"),
            });
            let size = u32::try_from(answer.len()).unwrap();
            connection.write_all(&size.to_be_bytes())?;
            connection.write_all(&answer)?;
        }
    }

    /// What it can do, in version 0 of that answer.
    fn versions(error: u16) -> Vec<u8> {
        let mut answer = [error.to_be_bytes(), [0; 2], [0, 2]].concat();
        for (api, newest) in [(API_VERSIONS, 0_u16), (METADATA, 1)] {
            answer.extend([api.to_be_bytes(), [0; 2], newest.to_be_bytes()].concat());
        }
        answer
    }

    /// Itself or nobody, in version 1 of that answer.
    fn metadata(port: u16, tells: bool) -> Vec<u8> {
        let mut answer = u32::from(tells).to_be_bytes().to_vec();
        if tells {
            let (host, no_rack) = (b"127.0.0.1", u16::MAX.to_be_bytes());
            answer.extend(1_u32.to_be_bytes());
            answer.extend(u16::try_from(host.len()).unwrap().to_be_bytes());
            answer.extend(host);
            answer.extend(u32::from(port).to_be_bytes());
            answer.extend(no_rack);
        }
        let controller = if tells { 1 } else { u32::MAX };
        answer.extend(controller.to_be_bytes());
        // One topic, whose leader is not known: librdkafka asks again where there is nothing at all.
        answer.extend(1_u32.to_be_bytes());
        answer.extend(LEADER_NOT_AVAILABLE.to_be_bytes());
        answer.extend(*b"\0\x05topic\0");
        answer.extend(0_u32.to_be_bytes());
        answer
    }

    #[test]
    fn a_client_that_was_told_of_no_broker_finds_them_again() {
        let broker = Broker::start();
        let client = broker.client(|_| ());
        let until = Instant::now() + Duration::from_secs(40);
        let answers = || {
            client.poll(Duration::ZERO);
            let told = client.fetch_metadata(None, Duration::from_millis(500));
            assert!(Instant::now() < until, "{told:?}");
            told.map_err(|error| client.context().why(&error)).is_ok()
        };
        while !answers() {}
        broker.tells.store(false, Ordering::Relaxed);
        while !answers() {}
        broker.tells.store(true, Ordering::Relaxed);
        while !answers() {}
    }

    #[test]
    fn a_client_that_asks_nothing_and_was_told_of_no_broker_finds_them_again() {
        let broker = Broker::start();
        let client = broker.client(watched);
        let told = || broker.told.load(Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(40);
        let ask = || client.fetch_metadata(None, Duration::from_millis(500));
        while ask().is_err() {
            assert!(Instant::now() < until, "it does not begin");
        }
        broker.tells.store(false, Ordering::Relaxed);
        while ask().is_ok_and(|told| !told.brokers().is_empty()) {
            assert!(Instant::now() < until, "it is not told of no broker");
        }
        broker.tells.store(true, Ordering::Relaxed);
        let before = told();
        while told() == before {
            client.poll(Duration::from_millis(50));
            assert!(Instant::now() < until, "it never asks again");
        }
    }
}
