//! Torture: rounds of seeded faults under load, for as long as it is told, until a promise is broken.
//!
//! - [`draw`]: what a round does, from its seed alone.
//! - [`round`]: does it, to processes and through proxies, and asks the oracle.
//! - [`letters`]: has dead letters tried again meanwhile.
//! - [`figures`]: what was done, and what became of the events.
//!
//! The same seed draws the same rounds. What a machine makes of them in time is its own: a replay does the same
//! things in the same order, not at the same microsecond.

pub mod draw;
pub mod figures;
pub mod letters;
pub mod round;

use crate::oracle::verdict::Verdict;
use draw::Draw;
use figures::Figures;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::time::{Duration, Instant};

/// One round in so many has a fault that outlasts the time-outs.
const LONG_EVERY: u64 = 15;

/// How long, and what.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub time: Duration,
    pub seed: u64,
    /// The first round, from 1.
    pub first: u64,
    /// The log is a Kafka topic, and its broker has faults too.
    pub kafka: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub figures: Figures,
    /// What was broken; the rounds ended there.
    pub breach: Option<String>,
    pub took: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures)?;
        match &self.breach {
            Some(breach) => write!(f, "BROKEN: {breach}"),
            None => write!(f, "every promise was kept, {:.0} s", self.took.as_secs_f64()),
        }
    }
}

/// Plays rounds until the time is over, one at least, or a promise is broken. `say` gets a line a round.
pub async fn run(options: Options, mut say: impl FnMut(&str)) -> Outcome {
    let begun = Instant::now();
    let mut outcome = Outcome::default();
    for number in options.first.. {
        let mut draw = Draw::of(seed_of(options.seed, number));
        if number.is_multiple_of(LONG_EVERY) {
            draw = draw.long();
        }
        let mut replay = format!("SEED={} ROUND={number} make torture SECS=1", options.seed);
        if options.kafka {
            draw = draw.with_kafka();
            replay.insert_str(0, "LOG=kafka ");
        }
        match caught(round::play(&draw)).await {
            Ok((figures, mut verdict)) => {
                verdict.replay.clone_from(&replay);
                say(&line(number, &figures));
                outcome.breach = breach(&figures, &verdict);
                outcome.figures.add(figures);
            }
            Err(panic) => {
                outcome.breach = Some(format!("round {number} ended with {panic}\nagain: {replay}"))
            }
        }
        if outcome.breach.is_some() || begun.elapsed() > options.time {
            break;
        }
    }
    outcome.took = begun.elapsed();
    outcome
}

/// Far apart, so that rounds of neighbouring seeds have nothing in common.
fn seed_of(seed: u64, round: u64) -> u64 {
    seed.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn breach(figures: &Figures, verdict: &Verdict) -> Option<String> {
    if !verdict.is_clean() {
        return Some(verdict.to_string());
    }
    let late = figures.late.first()?;
    Some(format!("{late}\nagain: {}", verdict.replay))
}

fn line(number: u64, figures: &Figures) -> String {
    let tally = &figures.tally;
    format!(
        "round {number}: {} kills, {} stops, {} restarts, {} network faults, {} tables away, {} full disks, \
         {} dead letters ({} retried); acked {} refused {} unknown {} stored {} lost {} doubled {}; ready again after {:.1} s at most",
        figures.killed(),
        figures.stops,
        figures.restarts,
        figures.network,
        figures.tables,
        figures.full.values().sum::<u64>(),
        figures.letters,
        figures.retried,
        tally.acked,
        tally.refused,
        tally.unknown,
        tally.stored,
        tally.lost,
        tally.doubled,
        figures.slowest_ready.as_secs_f64(),
    )
}

/// What a round gives, or the words of its panic.
async fn caught<T>(round: impl Future<Output = T>) -> Result<T, String> {
    let mut round = Box::pin(round);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| round.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Poll::Ready(Err(text.unwrap_or_default()))
            }
        }
    })
    .await
}
