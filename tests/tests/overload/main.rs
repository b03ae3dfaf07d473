//! More than can be stored, or taken.
//!
//! - Here: ClickHouse stopped under load. The backlog grows on disk up to the tenant's share of the log, then it is
//!   refused with nothing taken, and memory stays flat, while others find room; when ClickHouse is back, all that was
//!   acknowledged is there once, and the books balance.
//! - [`chain`]: how a full sink-writer is felt from hop to hop up to the client, and back.
//! - [`brownout`]: a ClickHouse that says that it has too much to do.
//! - [`shares`]: a slow one, and what of its drain each tenant gets.
//! - [`benches`]: the benches of overload, in short.

mod benches;
mod brownout;
mod chain;
mod load;
mod shares;

use load::{EVENTS, Ended, Load};
use rustix::process::{Signal, kill_process};
use sluice_tests::oracle::books;
use sluice_tests::service::Service;
use sluice_tests::{Deployment, Part, Shape, eventually, finally, long_form, now_ms};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1024 * 1024;
/// `log.max_bytes`, of which one tenant alone may fill 16/17.
const WATERMARK: u64 = 768 * MIB;
/// Refusals to be seen before ClickHouse comes back.
const REFUSALS: usize = 60;
/// What a process may hold. The normalizer: 64 MiB of the log's tail, two ranges of up to 64 MiB, the
/// sub-batch of the one under way twice (columns and body), four requests of 0.8 MB: some 350 MiB; the rest is what the
/// allocator keeps between threads, up to 130 MiB beside other tests. It is below what is sent (723 MiB), so a
/// backlog kept in memory would be seen.
const MEMORY: u64 = 600 * MIB;
/// How much more a process may hold at the end than at a third of the fill: half of what is sent in between.
const GROWTH: u64 = 230 * MIB;
/// What the system grants a process of writable memory of its own: the budget, and room for stacks of threads and for
/// what an allocator takes and does not touch. jemalloc keeps the addresses of what it has given back to the system: seen
/// all in one are 558 MiB while the log fills, of which 306 are resident, and over 800 while it drains. A backlog in memory
/// would take 723 more than what is seen while the log fills.
const CAP: u64 = MEMORY + 600 * MIB;
/// Less than one range, than four requests, than a thread's stack, than a backtrace: what is refused first is not always
/// the same.
const FAR_TOO_LITTLE: [u64; 4] = [0, MIB / 8, MIB, 4 * MIB];

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_stopped_under_load_fills_the_log_but_for_others_room_all_in_one() {
    overload(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_stopped_under_load_fills_the_log_but_for_others_room_over_three_processes() {
    overload(Shape::ThreeProcesses).await;
}

/// The cap of the tests above is a real one, and whatever is refused for it, the process ends: one that stood still
/// would not be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_may_hold_far_too_little_memory_ends() {
    for more in FAR_TOO_LITTLE {
        let mut deployment = Deployment::start(Shape::ThreeProcesses).await;
        let normalizer = deployment.service(Part::Normalizer).expect("it runs");
        normalizer.cap(normalizer.writable() + more);
        let load = Arc::new(Load::new(deployment.tenant(0)));
        let fill = load.run();
        let status = finally("an allocation is refused", Duration::from_secs(60), async || {
            deployment
                .ended(Part::Normalizer)
                .ok_or_else(|| format!("{more} bytes more were enough: {}", deployment.last_words()))
        })
        .await;
        load.stop(fill).await;
        assert!(!status.success(), "{status}");
        let log = std::fs::read_to_string(deployment.log_file(Part::Normalizer)).expect("a log");
        let why = ["memory allocation of", "panicked"];
        assert!(why.iter().any(|word| log.contains(word)), "{log}");
    }
}

async fn overload(shape: Shape) {
    let extra = format!("log: {{max_bytes: {}MiB}}\n", WATERMARK / MIB);
    let mut deployment = Deployment::start_with(shape, &extra).await;
    for (_, service) in services(&deployment) {
        service.cap(CAP);
    }
    let load = Arc::new(Load::new(deployment.tenant(0)));
    assert_eq!(load.send().await, Ended::Acked);
    stop_clickhouse(&mut deployment).await;
    let stopped = Instant::now();

    // Below the watermark an outage is none of the clients' business.
    for _ in 0..20 {
        assert_eq!(load.send().await, Ended::Acked, "{}", deployment.last_words());
    }
    assert_eq!(readyz(&deployment).await, 200);

    let fill = load.run();
    let third = eventually("a third is filled", Duration::from_secs(60), async || {
        let memory = memory(&deployment);
        (load.acked_bytes() > WATERMARK / 3).then_some(memory)
    })
    .await;
    let full = eventually(
        "the tenant's share is full",
        Duration::from_secs(120),
        async || {
            let memory = memory(&deployment);
            (load.refused() >= REFUSALS && room_share(&deployment).await > 0.0).then_some(memory)
        },
    )
    .await;
    println!("resident and writable at a third of the fill {third:?}, refusing {full:?} (MiB)");
    for (before, after) in third.iter().zip(&full) {
        assert!(after.1 * MIB < MEMORY, "{full:?}");
        assert!(after.1 < before.1 + GROWTH / MIB, "{third:?} {full:?}");
    }
    // It is this tenant that is refused, and nobody else.
    assert_eq!(readyz(&deployment).await, 200);
    assert!(
        deployment
            .metric(Part::Normalizer, "sluice_grant_in_force", "")
            .await
            > 1.0
    );
    others_are_taken(&deployment).await;
    let acked = load.acked_bytes();
    assert!(
        acked > WATERMARK / 10 * 9 && acked < WATERMARK / 10 * 11,
        "{acked}"
    );
    while stopped.elapsed() < Duration::from_secs(long_form("OUTAGE_S", 0)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("resident and writable at its end {:?} (MiB)", memory(&deployment));
    assert!(load.acked_bytes() < acked + acked / 50, "taken while it was full");
    load.stop(fill).await;
    println!(
        "{shape:?}: away for {:.1} s, {} requests taken of {EVENTS} events each, {} refused",
        stopped.elapsed().as_secs_f64(),
        load.count(Ended::Acked),
        load.count(Ended::Refused)
    );

    // It takes events again once something is stored, and all that was acknowledged arrives.
    start_clickhouse(&mut deployment).await;
    eventually("there is room again", Duration::from_secs(60), async || {
        (load.send().await == Ended::Acked).then_some(())
    })
    .await;
    assert_eq!(readyz(&deployment).await, 200);
    all_arrived(&deployment, &load).await;
    load.retry_refused().await;
    all_arrived(&deployment, &load).await;
    books_agree(&deployment, &load).await;
}

/// Requests that were refused because the tenant's share of the log's room is full. (Before it is known that nothing is
/// drained any more, some may be for its share of the drain.)
async fn room_share(deployment: &Deployment) -> f64 {
    let labels = "reason=\"room_share\"";
    deployment
        .metric(Part::Normalizer, "sluice_shed_total", labels)
        .await
}

async fn others_are_taken(deployment: &Deployment) {
    for _ in 0..10 {
        let event = format!(
            r#"{{"event_id":"other-{}","timestamp":{},"service":"x"}}"#,
            rand::random::<u64>(),
            now_ms()
        );
        let answer = deployment.tenant(1).post("/v1/events/events", event).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

/// By tenant, dataset and minute the books balance, say what the tables hold, and count each event that was taken.
async fn books_agree(deployment: &Deployment, load: &Load) {
    let clickhouse = deployment.clickhouse();
    let taken = (load.count(Ended::Acked) * EVENTS) as i64;
    let unknown = (load.count(Ended::Unknown) * EVENTS) as i64;
    finally("books that agree", Duration::from_secs(60), async || {
        let accounts = books::accounts(&clickhouse, &[("events", "events")]).await?;
        let complaints = books::complaints(&clickhouse, &accounts).await?;
        let received = books::received(&accounts).get("t0").copied().unwrap_or_default();
        let counted = (taken..=taken + unknown).contains(&received);
        if complaints.is_empty() && counted {
            return Ok(());
        }
        Err(format!(
            "{received} received, {taken} taken, {unknown} unknown; {}",
            complaints.join("; ")
        ))
    })
    .await;
}

/// What is acknowledged is there once; what was refused is not; what is unknown may be, once.
async fn all_arrived(deployment: &Deployment, load: &Load) {
    let ids = "SELECT event_id FROM telemetry.events WHERE tenant = 't0' FORMAT TSV";
    let rows = eventually(
        "all that was acknowledged",
        Duration::from_secs(120),
        async || {
            let rows = deployment.clickhouse().query(ids).await.ok()?;
            let rows: Vec<u64> = rows.lines().map(|id| id.parse().expect("a number")).collect();
            let distinct: BTreeSet<u64> = rows.iter().copied().collect();
            load.events(Ended::Acked).is_subset(&distinct).then_some(rows)
        },
    )
    .await;
    let distinct: BTreeSet<u64> = rows.iter().copied().collect();
    assert_eq!(distinct.len(), rows.len(), "rows are doubled");
    assert!(
        distinct.is_disjoint(&load.events(Ended::Refused)),
        "what was refused is there"
    );
    let mut known = load.events(Ended::Acked);
    known.extend(load.events(Ended::Unknown));
    assert!(distinct.is_subset(&known));
}

async fn stop_clickhouse(deployment: &mut Deployment) {
    match deployment.shape {
        Shape::AllInOne => signal(deployment, Signal::STOP),
        Shape::ThreeProcesses => deployment.stop_clickhouse().await,
    }
}

async fn start_clickhouse(deployment: &mut Deployment) {
    match deployment.shape {
        Shape::AllInOne => signal(deployment, Signal::CONT),
        Shape::ThreeProcesses => deployment.bring_up(Part::ClickHouse).await.expect("ready"),
    }
}

fn signal(deployment: &Deployment, signal: Signal) {
    let pid = deployment.clickhouse_pid().expect("it runs");
    kill_process(pid, signal).expect("it runs");
}

async fn readyz(deployment: &Deployment) -> u16 {
    let answer = deployment.admin(Part::Edge).get("/readyz").await;
    answer.expect("an answer").status.as_u16()
}

fn services(deployment: &Deployment) -> impl Iterator<Item = (Part, &Service)> {
    let service = |part| Some((part, deployment.service(part)?));
    Part::OURS.into_iter().filter_map(service)
}

/// Resident and writable MiB of each of our processes.
fn memory(deployment: &Deployment) -> Vec<(Part, u64, u64)> {
    let each = services(deployment);
    each.map(|(part, service)| (part, service.memory().0 / MIB, service.writable() / MIB))
        .collect()
}
