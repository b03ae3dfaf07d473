//! What a round does, drawn from its seed and from nothing else.

use crate::oracle::Refusal;
use crate::oracle::load::Style;
use crate::oracle::request::DATASETS;
use crate::proxy::{Act, Ending, Rule, Way};
use crate::{Hop, Part, Shape};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::ops::Range;
use std::time::Duration;

/// Faults of one round.
const FAULTS: Range<usize> = 12..24;
/// From one fault to the next, in ms.
const PAUSE_MS: Range<u64> = 50..700;
/// From a kill to the restart, in ms.
const OUTAGE_MS: Range<u64> = 0..300;
/// How long a process stands still, in ms.
const STOP_MS: Range<u64> = 100..2_500;
/// How long the network is out of order, in ms.
const NETWORK_MS: Range<u64> = 100..2_500;
/// How long a dataset's table is away, in ms: some are set aside meanwhile.
const TABLE_MS: Range<u64> = 100..4_000;
/// How long a volume has no room, in ms.
const FULL_MS: Range<u64> = 100..2_500;
/// What is left of a volume that is full, in bytes: less than a segment, and more than the log keeps for others.
const SPARES: [u64; 4] = [0, 64 << 10, 1 << 20, 9 << 20];
/// How long something lasts in a long round: past the time-out of a call, and of an insert.
const LONG: Duration = Duration::from_secs(70);
/// Faults of the broker in a round with a log in Kafka, and how long it is away, in ms.
const BROKER_FAULTS: Range<usize> = 2..6;
const BROKER_MS: Range<u64> = 0..3_000;
/// Draws what a log in Kafka adds to a round, so that the rest of it is as with the log on disk.
const KAFKA_SEED: u64 = 0x6b61_666b_6100;
/// What still passes before a connection is cut, in bytes.
const CUT_BYTES: Range<u64> = 0..60_000;
/// Largest requests, and of how many events some are refused beside them: of most ranges fewer than make it the table
/// that is at fault.
const SIZES: [(usize, u64); 3] = [(20, 150), (500, 2_000), (3_000, 10_000)];
/// How long a process has been recovering when it is killed again, in ms, and how often at most.
const RECOVERY_MS: Range<u64> = 0..400;
const RECOVERIES: Range<usize> = 1..4;
/// How inserts are announced.
const INSERTS: &str = "INSERT+INTO";
/// What a proxy says in ClickHouse's place, though the rows are stored.
const ANSWERS: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nX-ClickHouse-Exception-Code: 241\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 33\r\nConnection: close\r\n\r\nCode: 241. DB::Exception: Memory.",
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nboom",
];

/// Something bad.
#[derive(Debug, Clone)]
pub enum Fault {
    /// SIGKILL; back after so long.
    Kill {
        part: Part,
        outage: Duration,
        /// Killed again, each time so long after it was started: while it recovers.
        again: Vec<Duration>,
    },
    /// SIGKILL of every process at once, ClickHouse included; back after so long.
    KillAll {
        outage: Duration,
    },
    /// SIGSTOP, and SIGCONT after so long.
    Stop {
        part: Part,
        time: Duration,
    },
    /// SIGTERM; back at once.
    Restart {
        part: Part,
    },
    Network(Network),
    /// A dataset's table is taken away, and brought back after so long.
    Table {
        dataset: usize,
        time: Duration,
    },
    Full(Full),
    /// The broker of a log in Kafka is killed, and back after so long; or it stands still for so long.
    Broker {
        time: Duration,
        stands: bool,
    },
    /// A constraint is put on a table: ClickHouse refuses some rows from now on.
    Refuse(Refusal),
    /// It is lifted: from now on most of the dead letters are tried again, whatever else happens.
    Lift(Refusal),
}

impl Fault {
    /// The one process that it strikes.
    fn part(&mut self) -> Option<&mut Part> {
        match self {
            Self::Kill { part, .. } | Self::Stop { part, .. } | Self::Restart { part } => Some(part),
            Self::Network(network) => network.kills.as_mut(),
            Self::Full(full) => full.kills.as_mut(),
            Self::KillAll { .. }
            | Self::Table { .. }
            | Self::Broker { .. }
            | Self::Refuse(_)
            | Self::Lift(_) => None,
        }
    }
}

/// A proxy out of order for a while.
#[derive(Debug, Clone)]
pub struct Network {
    pub hop: Hop,
    pub rule: Rule,
    pub time: Duration,
    /// In the middle of it clients are cut off, and what they sent is kept.
    pub leaves_clients: bool,
    /// At its end, what was held is lost rather than delivered.
    pub loses: bool,
    /// Killed in the middle of it.
    pub kills: Option<Part>,
}

/// Whose directory is a volume that can be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// That of Sluice: the log, the dedup state, progress, what is set aside; in one process ClickHouse's too.
    Data,
    /// That of the ClickHouse beside it.
    ClickHouse,
}

/// A volume without room for a while.
#[derive(Debug, Clone)]
pub struct Full {
    pub disk: Disk,
    /// What is left of it, in bytes.
    pub spare: u64,
    pub time: Duration,
    /// Killed in the middle of it, and back once there is room.
    pub kills: Option<Part>,
}

/// A round before it begins.
#[derive(Debug, Clone)]
pub struct Draw {
    pub seed: u64,
    pub shape: Shape,
    /// A proxy on each hop; else the all-in-one has a ClickHouse of its own.
    pub proxied: bool,
    /// Two edges and two sink-writers; with a log in Kafka two normalizers as well.
    pub twins: bool,
    /// The log is a Kafka topic.
    pub kafka: bool,
    /// Segments and buckets are small: they roll, seal and merge within the round.
    pub small_files: bool,
    pub disk: Option<Disk>,
    pub tenants: usize,
    pub style: Style,
    /// Each with the pause before it.
    pub faults: Vec<(Duration, Fault)>,
}

impl Draw {
    /// The round of `seed`.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        let shape = if rng.random_bool(0.4) {
            Shape::AllInOne
        } else {
            Shape::ThreeProcesses
        };
        let three = shape == Shape::ThreeProcesses;
        let proxied = three || rng.random_bool(0.5);
        let (max_events, of) = SIZES[rng.random_range(0..SIZES.len())];
        let style = Style {
            writers: rng.random_range(2..=6),
            max_events,
            pause_ms: 5..[15, 40, 150][rng.random_range(0..3)],
            datasets: rng.random_range(1..=DATASETS.len()),
        };
        let mut draw = Self {
            seed,
            shape,
            proxied,
            twins: three && rng.random_bool(0.4),
            kafka: false,
            small_files: rng.random_bool(0.7),
            disk: disk(proxied, rng),
            tenants: rng.random_range(2..=5),
            style,
            faults: Vec::new(),
        };
        let count = rng.random_range(FAULTS);
        draw.faults = (0..count).map(|_| (ms(rng, PAUSE_MS), draw.fault(rng))).collect();
        if rng.random_bool(0.6) {
            draw.refuse(of, rng);
        }
        draw
    }

    /// The same with a log in Kafka, whose broker has its faults among the others.
    #[must_use]
    pub fn with_kafka(mut self) -> Self {
        let mut rng = StdRng::seed_from_u64(self.seed ^ KAFKA_SEED);
        let rng = &mut rng;
        self.kafka = true;
        if self.twins {
            let second = |part: &mut Part| {
                if *part == Part::Normalizer && rng.random() {
                    *part = Part::SecondNormalizer;
                }
            };
            self.faults
                .iter_mut()
                .filter_map(|(_, fault)| fault.part())
                .for_each(second);
        }
        for _ in 0..rng.random_range(BROKER_FAULTS) {
            let at = rng.random_range(0..=self.faults.len());
            let fault = Fault::Broker {
                time: ms(rng, BROKER_MS),
                stands: rng.random_bool(0.2),
            };
            self.faults.insert(at, (ms(rng, PAUSE_MS), fault));
        }
        self
    }

    /// The same with a fault at its end that outlasts the time-outs: something stands still, or answers are held.
    #[must_use]
    pub fn long(mut self) -> Self {
        let mut rng = StdRng::seed_from_u64(!self.seed);
        let fault = if self.proxied && rng.random() {
            Fault::Network(Network {
                hop: Hop::ToClickHouse,
                rule: Rule::on(INSERTS, Act::HoldAnswer),
                time: LONG,
                leaves_clients: false,
                loses: rng.random(),
                kills: None,
            })
        } else {
            Fault::Stop {
                part: self.part(&mut rng),
                time: LONG,
            }
        };
        self.faults.push((Duration::ZERO, fault));
        self
    }

    /// Puts a constraint on a table in the first quarter of the faults, and lifts it in the third: much is refused,
    /// and letters are tried again in the last.
    fn refuse(&mut self, of: u64, rng: &mut StdRng) {
        let quarter = self.faults.len() / 4;
        let refusal = Refusal {
            table: DATASETS[rng.random_range(0..self.style.datasets)],
            of,
        };
        let from = rng.random_range(0..quarter);
        let to = rng.random_range(quarter * 2..quarter * 3);
        // The later one first: the other moves it.
        self.faults.insert(to, (ms(rng, PAUSE_MS), Fault::Lift(refusal)));
        self.faults
            .insert(from, (ms(rng, PAUSE_MS), Fault::Refuse(refusal)));
    }

    fn part(&self, rng: &mut StdRng) -> Part {
        let parts: &[Part] = match self.shape {
            Shape::AllInOne => &[Part::Up, Part::Up, Part::ClickHouse],
            Shape::ThreeProcesses if self.twins => &[
                Part::Edge,
                Part::SecondEdge,
                Part::Normalizer,
                Part::SinkWriter,
                Part::SecondSinkWriter,
                Part::ClickHouse,
            ],
            Shape::ThreeProcesses => &[Part::Edge, Part::Normalizer, Part::SinkWriter, Part::ClickHouse],
        };
        *parts.choose(rng).expect("there are some")
    }

    fn fault(&self, rng: &mut StdRng) -> Fault {
        let part = self.part(rng);
        match (rng.random_range(0..100), self.disk) {
            (0..5, _) => Fault::KillAll {
                outage: ms(rng, OUTAGE_MS),
            },
            (5..50, _) => Fault::Kill {
                part,
                outage: ms(rng, OUTAGE_MS),
                again: recoveries(part, rng),
            },
            (50..57, _) => Fault::Stop {
                part,
                time: ms(rng, STOP_MS),
            },
            (57..66, _) => Fault::Restart { part },
            (66..73, _) => Fault::Table {
                dataset: rng.random_range(0..self.style.datasets),
                time: ms(rng, TABLE_MS),
            },
            (73..84, Some(disk)) => Fault::Full(Full {
                disk,
                spare: SPARES[rng.random_range(0..SPARES.len())],
                time: ms(rng, FULL_MS),
                kills: rng.random_bool(0.3).then_some(part),
            }),
            _ if self.proxied => Fault::Network(self.network(rng)),
            _ => Fault::Kill {
                part: Part::ClickHouse,
                outage: Duration::ZERO,
                again: Vec::new(),
            },
        }
    }

    fn network(&self, rng: &mut StdRng) -> Network {
        let hop = match self.shape {
            Shape::AllInOne => Hop::ToClickHouse,
            Shape::ThreeProcesses => [
                Hop::EdgeToNormalizer,
                Hop::NormalizerToSinkWriter,
                Hop::ToClickHouse,
            ][rng.random_range(0..3)],
        };
        let act = act(hop, rng);
        // On the inner hops many calls share one connection, and their heads are packed.
        let marked = hop == Hop::ToClickHouse && (matches!(act, Act::Answer(_)) || rng.random_bool(0.7));
        Network {
            hop,
            rule: if marked {
                Rule::on(INSERTS, act)
            } else {
                Rule::all(act)
            },
            time: ms(rng, NETWORK_MS),
            leaves_clients: rng.random_bool(0.3),
            loses: rng.random_bool(0.5),
            kills: rng.random_bool(0.3).then(|| self.part(rng)),
        }
    }
}

/// Of most rounds one volume can be filled.
fn disk(has_server: bool, rng: &mut StdRng) -> Option<Disk> {
    match rng.random_range(0..10) {
        0..4 => Some(Disk::Data),
        4..7 if has_server => Some(Disk::ClickHouse),
        _ => None,
    }
}

/// When a part is killed again in its recovery: one kill of three is followed by such. ClickHouse is started again by who
/// keeps it.
fn recoveries(part: Part, rng: &mut StdRng) -> Vec<Duration> {
    if part == Part::ClickHouse || rng.random_range(0..3) > 0 {
        return Vec::new();
    }
    let times = rng.random_range(RECOVERIES);
    (0..times).map(|_| ms(rng, RECOVERY_MS)).collect()
}

fn ms(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

fn act(hop: Hop, rng: &mut StdRng) -> Act {
    let way = [Way::There, Way::Back][rng.random_range(0..2)];
    let ending = [Ending::Close, Ending::Reset][rng.random_range(0..2)];
    let kinds = if hop == Hop::ToClickHouse { 7 } else { 6 };
    match rng.random_range(0..kinds) {
        0 => Act::Delay(Duration::from_millis(rng.random_range(1..60))),
        1 => Act::Cut {
            way,
            after: rng.random_range(CUT_BYTES),
            ending,
        },
        2 => Act::BlackHole,
        3 => Act::HalfClose(way),
        4 => Act::HoldRequest,
        5 => Act::HoldAnswer,
        _ => Act::Answer(Bytes::from_static(ANSWERS[rng.random_range(0..3)].as_bytes())),
    }
}
