//! What a round does, drawn from its seed and from nothing else.

use crate::oracle::load::Style;
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
/// How long something lasts in a long round: past the time-out of a call, and of an insert.
const LONG: Duration = Duration::from_secs(70);
/// What still passes before a connection is cut, in bytes.
const CUT_BYTES: Range<u64> = 0..60_000;
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
    /// A dataset's table is renamed away, and back after so long.
    Table {
        dataset: usize,
        time: Duration,
    },
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

/// A round before it begins.
#[derive(Debug, Clone)]
pub struct Draw {
    pub seed: u64,
    pub shape: Shape,
    /// A proxy on each hop; else the all-in-one has a ClickHouse of its own.
    pub proxied: bool,
    /// Segments and buckets are small: they roll, seal and merge within the round.
    pub small_files: bool,
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
        let shape = if rng.random_bool(0.4) {
            Shape::AllInOne
        } else {
            Shape::ThreeProcesses
        };
        let proxied = shape == Shape::ThreeProcesses || rng.random_bool(0.5);
        let style = Style {
            writers: rng.random_range(2..=6),
            max_events: [20, 500, 3_000][rng.random_range(0..3)],
            pause_ms: 5..[15, 40, 150][rng.random_range(0..3)],
            datasets: rng.random_range(1..=2),
        };
        let tenants = rng.random_range(2..=5);
        let small_files = rng.random_bool(0.7);
        let count = rng.random_range(FAULTS);
        let faults = (0..count).map(|_| (ms(&mut rng, PAUSE_MS), fault(shape, proxied, &style, &mut rng)));
        let faults = faults.collect();
        Self {
            seed,
            shape,
            proxied,
            small_files,
            tenants,
            style,
            faults,
        }
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
                part: part(self.shape, &mut rng),
                time: LONG,
            }
        };
        self.faults.push((Duration::ZERO, fault));
        self
    }
}

fn ms(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

fn part(shape: Shape, rng: &mut StdRng) -> Part {
    let parts: &[Part] = match shape {
        Shape::AllInOne => &[Part::Up, Part::Up, Part::ClickHouse],
        Shape::ThreeProcesses => &[Part::Edge, Part::Normalizer, Part::SinkWriter, Part::ClickHouse],
    };
    *parts.choose(rng).expect("there are some")
}

fn fault(shape: Shape, proxied: bool, style: &Style, rng: &mut StdRng) -> Fault {
    let part = part(shape, rng);
    match rng.random_range(0..100) {
        0..55 => Fault::Kill {
            part,
            outage: ms(rng, OUTAGE_MS),
        },
        55..63 => Fault::Stop {
            part,
            time: ms(rng, STOP_MS),
        },
        63..72 => Fault::Restart { part },
        72..80 => Fault::Table {
            dataset: rng.random_range(0..style.datasets),
            time: ms(rng, TABLE_MS),
        },
        _ if proxied => Fault::Network(network(shape, rng)),
        _ => Fault::Kill {
            part: Part::ClickHouse,
            outage: Duration::ZERO,
        },
    }
}

fn network(shape: Shape, rng: &mut StdRng) -> Network {
    let hop = match shape {
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
        kills: rng.random_bool(0.3).then(|| part(shape, rng)),
    }
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
