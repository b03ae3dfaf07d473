//! Replay beside a live load: how fast, whether the shadow equals the live table, and what those who send notice.
//!
//! Before and during are of one run, in turn, several times: the same load for some seconds alone, then as long as a
//! replay of everything takes.

use crate::Output;
use crate::admin::Admin;
use crate::freshness::Probe;
use crate::latency::Latency;
use crate::load::{Load, Target, send};
use crate::neighbour::report::median;
use crate::system::{Shape, System, Tenant};
use clap::Args;
use ingestctl::remote::{AdminArgs, Remote};
use serde::Serialize;
use serde_json::{Value, json};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::process::Failure;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const FILL: Duration = Duration::from_secs(10);
const FILL_CONNECTIONS: u32 = 8;
const CONNECTIONS: u32 = 8;
/// Longer than any phase: a load is ended once its replay is.
const ASK_EVERY: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// Events that are replayed, about.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(10_000..))]
    events: u32,
    /// Events a second that flow in meanwhile.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
    rate: u32,
    /// Events of a request.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events_per_request: u32,
    /// Of the load alone, in each round.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The replay's cap, events a second; without it the default.
    #[arg(long)]
    cap: Option<u64>,
    /// Fails where p99 of acknowledgements, or p95 of freshness, is so many times that of before.
    #[arg(long, default_value_t = 1.2)]
    ratio: f64,
    /// Fails where the median of the replays is slower, in events a second.
    #[arg(long, default_value_t = 200_000.0)]
    speed: f64,
    #[arg(long, value_enum, default_value = "all-in-one")]
    shape: Shape,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// What senders and readers saw in all rounds of one kind.
#[derive(Default)]
struct Seen {
    ack: Latency,
    freshness: Latency,
    refused: u64,
    events: u64,
}

impl Seen {
    fn figures(&self) -> Figures {
        let of = |latency: &Latency, percent| latency.percentile_ms(percent).unwrap_or_default();
        Figures {
            events: self.events,
            refused: self.refused,
            ack_p50_ms: of(&self.ack, 50),
            ack_p99_ms: of(&self.ack, 99),
            freshness_samples: self.freshness.count(),
            freshness_p50_ms: of(&self.freshness, 50),
            freshness_p95_ms: of(&self.freshness, 95),
        }
    }
}

#[derive(Debug, Serialize)]
struct Figures {
    events: u64,
    refused: u64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    freshness_samples: u64,
    freshness_p50_ms: f64,
    freshness_p95_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    shape: String,
    replayed: u64,
    /// Events a second of each replay, from its order to its end.
    speeds: Vec<f64>,
    before: Figures,
    during: Figures,
    ack_p99_ratio: f64,
    freshness_p95_ratio: f64,
    /// Live rows, and rows of the shadow, of the records that were replayed.
    live: u64,
    shadow: u64,
    /// Whether each row is on both sides, with the same content.
    equal: bool,
}

/// One system, and how it is asked.
struct Bench<'a> {
    args: &'a ReplayArgs,
    system: &'a System,
    remote: Remote,
    key: String,
    /// Runs so far: each load has events of its own.
    run: Cell<u32>,
}

impl ReplayArgs {
    /// Measures, prints, and holds the figures to what they must be.
    ///
    /// # Errors
    /// What did not start, or was not as it must be.
    pub async fn run(self) -> Result<(), Failure> {
        let tenant = Tenant::free("bench");
        let system = System::start(Some(self.shape), std::slice::from_ref(&tenant), &self.dir).await?;
        let admin = AdminArgs {
            admin: system.admin.clone(),
            admin_token_file: None,
        };
        let bench = Bench {
            args: &self,
            system: &system,
            remote: admin.remote()?,
            key: tenant.key(),
            run: Cell::new(0),
        };
        let outcome = bench.measure().await;
        system.stop().await;
        let report = outcome?;
        match self.output {
            Output::Table => print!("{}", report.table()),
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        let complaints = report.complaints(self.ratio, self.speed);
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::new(complaints.join("; ")))
    }
}

impl Bench<'_> {
    async fn measure(&self) -> Result<Report, Failure> {
        let fill = f64::from(self.args.events) / FILL.as_secs_f64();
        eprintln!("  {} events to replay", self.args.events);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        let load = self.load((1_000, FILL_CONNECTIONS), fill.ceil() as u32, FILL);
        send(load, &self.target(), Rc::default()).await?;
        self.drained().await?;
        let plan = self.plan(json!("latest")).await?;
        let end = plan["spans"][0]["to"].clone();
        let (mut before, mut during, mut speeds) = (Seen::default(), Seen::default(), Vec::new());
        let mut last = None;
        for round in 0..self.args.rounds {
            eprintln!("  round {} of {}", round + 1, self.args.rounds);
            self.beside(&mut before, async || {
                sleep(Duration::from_secs(self.args.seconds)).await;
                Ok(())
            })
            .await?;
            let plan = self.plan(json!({ "offset": end })).await?;
            let begun = Instant::now();
            self.beside(&mut during, async || {
                let replayed = self.replay(&plan).await?;
                let events = plan["partitions"][0]["events"].as_f64().unwrap_or_default();
                speeds.push(events / begun.elapsed().as_secs_f64());
                if let Some(former) = last.replace(replayed) {
                    self.discard(&former).await?;
                }
                Ok(())
            })
            .await?;
        }
        self.drained().await?;
        let (live, shadow, equal) = self.diff(&last.unwrap_or_default()).await?;
        let (before, during) = (before.figures(), during.figures());
        Ok(Report {
            shape: format!("{:?}", self.args.shape),
            replayed: plan["partitions"][0]["events"].as_u64().unwrap_or_default(),
            speeds,
            ack_p99_ratio: during.ack_p99_ms / before.ack_p99_ms,
            freshness_p95_ratio: during.freshness_p95_ms / before.freshness_p95_ms,
            before,
            during,
            live,
            shadow,
            equal,
        })
    }

    /// What the load and the probes see while `work` goes on.
    async fn beside(
        &self,
        seen: &mut Seen,
        work: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let over = Rc::new(Cell::new(false));
        let probe = Probe {
            edge: self.edge(),
            key: self.key.clone(),
            clickhouse: self.system.clickhouse(),
            run: self.next_run(),
            now_ms: SystemClock.now_ms(),
        };
        let probe = tokio::task::spawn_local(probe.run(Rc::clone(&over)));
        let (until, target) = (Rc::clone(&over), self.target());
        let size = (self.args.events_per_request as usize, CONNECTIONS);
        let loads = self.load(size, self.args.rate, Duration::from_secs(1));
        let next = self.run.get();
        let load = tokio::task::spawn_local(async move {
            let (mut all, mut run) = (Seen::default(), next);
            // Second by second, so that it ends when the work does.
            while !until.get() {
                let ledger = send(Load { run, ..loads }, &target, Rc::default()).await?;
                all.ack.merge(&ledger.latency);
                all.refused += ledger.refused;
                all.events += ledger.events();
                run += 1;
            }
            Ok::<_, Failure>((all, run))
        });
        let worked = work().await;
        over.set(true);
        let (all, run) = load.await??;
        self.run.set(run);
        seen.ack.merge(&all.ack);
        seen.refused += all.refused;
        seen.events += all.events;
        seen.freshness.merge(&probe.await??);
        worked
    }

    fn load(&self, (events_per_request, connections): (usize, u32), rate: u32, time: Duration) -> Load {
        Load {
            run: self.next_run(),
            rate: Some(rate),
            ..Load::new((events_per_request, connections), time)
        }
    }

    fn next_run(&self) -> u32 {
        self.run.replace(self.run.get() + 1)
    }

    fn edge(&self) -> String {
        self.system.edge.clone().unwrap_or_default()
    }

    fn target(&self) -> [Target; 1] {
        [Target::events(self.edge(), self.key.clone())]
    }

    async fn drained(&self) -> Result<(), Failure> {
        let (admin, until) = (Admin::new(&self.system.admin), Instant::now() + DEADLINE);
        while admin.backlog_bytes().await? > 0.0 {
            if Instant::now() > until {
                return Err(Failure::new("the log does not get empty"));
            }
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    async fn plan(&self, to: Value) -> Result<Value, Failure> {
        let ask = json!({"from": "earliest", "to": to});
        Ok(self.remote.post("/admin/v1/replay/plan", &ask).await?)
    }

    /// Runs a plan to its end; its id.
    async fn replay(&self, plan: &Value) -> Result<String, Failure> {
        let mut order = json!({"plan": plan["id"], "who": "sluice-bench"});
        if let Some(cap) = self.args.cap {
            order["events_per_second"] = json!(cap);
        }
        let told = self.remote.post("/admin/v1/replay", &order).await?;
        let id = told["id"].as_str().unwrap_or_default().to_owned();
        self.until(&id, |told| told["phase"] == "done").await?;
        Ok(id)
    }

    async fn until(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let until = Instant::now() + DEADLINE;
        loop {
            let told = self.remote.get(&format!("/admin/v1/replay/{id}")).await?;
            if is_so(&told) {
                return Ok(told);
            }
            if told["phase"] == "failed" || Instant::now() > until {
                return Err(Failure::new(format!("replay {id}: {told}")));
            }
            sleep(ASK_EVERY).await;
        }
    }

    async fn discard(&self, id: &str) -> Result<(), Failure> {
        self.remote
            .post(&format!("/admin/v1/replay/{id}/discard"), &json!({}))
            .await?;
        Ok(())
    }

    async fn diff(&self, id: &str) -> Result<(u64, u64, bool), Failure> {
        self.remote
            .post(&format!("/admin/v1/replay/{id}/diff"), &json!({}))
            .await?;
        let told = self.until(id, |told| told["comparing"] == false).await?;
        let empty = Vec::new();
        let lines = told["diff"][0]["lines"].as_array().unwrap_or(&empty);
        let sum = |name: &str| lines.iter().filter_map(|line| line[name].as_u64()).sum();
        let off = ["only_live", "only_shadow", "differing", "doubled"].map(|name| -> u64 { sum(name) });
        let same = lines.iter().all(|line| line["live_sum"] == line["shadow_sum"]);
        Ok((
            sum("live"),
            sum("shadow"),
            same && off == [0; 4] && !lines.is_empty(),
        ))
    }
}

impl Report {
    fn slowest(&self) -> f64 {
        self.speeds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn typical(&self) -> f64 {
        median(self.speeds.clone())
    }

    fn complaints(&self, ratio: f64, speed: f64) -> Vec<String> {
        let mut complaints = Vec::new();
        if !self.equal || self.live != self.replayed {
            complaints.push(format!(
                "{} events, {} live rows and {} of the shadow are not the same",
                self.replayed, self.live, self.shadow
            ));
        }
        if self.during.refused > 0 {
            complaints.push(format!(
                "{} requests were refused beside a replay",
                self.during.refused
            ));
        }
        if self.typical() < speed {
            complaints.push(format!(
                "a replay of {:.0} events/s, under {speed}",
                self.typical()
            ));
        }
        for (what, found) in [
            ("ack p99", self.ack_p99_ratio),
            ("freshness p95", self.freshness_p95_ratio),
        ] {
            if found > ratio {
                complaints.push(format!("{what} is {found:.2} times that of before, over {ratio}"));
            }
        }
        complaints
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{} events replayed, {}: median {:.0}, slowest {:.0} events/s of {} replays; {} live rows, {} of the shadow, {}\n",
            self.replayed,
            self.shape,
            self.typical(),
            self.slowest(),
            self.speeds.len(),
            self.live,
            self.shadow,
            if self.equal {
                "equal by count and sums"
            } else {
                "NOT equal"
            },
        );
        for (name, one) in [("before", &self.before), ("during", &self.during)] {
            text += &format!(
                "{name}: {} events, ack p50 {:.1} p99 {:.1} ms, freshness p50 {:.0} p95 {:.0} ms ({} probes)\n",
                one.events,
                one.ack_p50_ms,
                one.ack_p99_ms,
                one.freshness_p50_ms,
                one.freshness_p95_ms,
                one.freshness_samples,
            );
        }
        text + &format!(
            "times before: ack p99 {:.2}, freshness p95 {:.2}\n",
            self.ack_p99_ratio, self.freshness_p95_ratio
        )
    }
}
