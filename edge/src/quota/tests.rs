//! What a request is charged, by a clock that stands still until it is stepped.

use super::clock::{SharedUptime, Stepped, Uptime as _};
use super::*;
use crate::respond::Refusal;
use proptest::prelude::*;
use sluice_common::metrics::Metrics;

/// The quotas of a tenant `acme`, from their YAML.
pub fn tenant(yaml: &str) -> Arc<TenantQuotas> {
    Fixture::new(yaml).quotas
}

struct Fixture {
    clock: Arc<Stepped>,
    quotas: Arc<TenantQuotas>,
}

fn quota(yaml: &str) -> Quota {
    serde_saphyr::from_str(yaml).unwrap()
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

impl Fixture {
    fn new(yaml: &str) -> Self {
        let clock = Arc::<Stepped>::default();
        let shared: SharedUptime = Arc::<Stepped>::clone(&clock);
        let report = Report::by(shared, Metrics::detached());
        let quotas = TenantQuotas::new((&acme(), &quota(yaml)), Share::default(), None, &report);
        Self { clock, quotas }
    }

    fn change(&mut self, yaml: &str, share: u8) {
        let (quota, share) = (quota(yaml), Share::percent(share).unwrap());
        let old = Some(&self.quotas);
        self.quotas = TenantQuotas::new((&acme(), &quota), share, old, &self.quotas.report);
    }

    /// One request through all steps.
    fn request(&self, dataset: &str, known: bool, bytes: u64, events: u64) -> Result<Charge, Over> {
        let mut charge = self.quotas.enter(dataset, known.then_some(bytes))?;
        let mut so_far = 0;
        while so_far < bytes {
            so_far = (so_far + 20_000).min(bytes);
            charge.body_so_far(so_far)?;
        }
        charge.body_ended(bytes)?;
        if charge.counts_events() {
            charge.events(events)?;
        }
        Ok(charge)
    }

    fn left(&self) -> Vec<u64> {
        let all = self
            .quotas
            .own
            .iter()
            .chain(self.quotas.datasets.values().flatten());
        all.map(|policy| policy.bucket.left(self.clock.now())).collect()
    }
}

/// The policy, the status and the least wait of a refusal.
fn told(refused: Result<Charge, Over>) -> (&'static str, u16, u64) {
    let over = refused.expect_err("over");
    let policy = over.policy;
    let refusal = Refusal::from(over);
    (
        policy,
        refusal.status().as_u16(),
        refusal.least_wait().as_millis() as u64,
    )
}

#[test]
fn a_request_is_charged_once_and_what_it_does_not_say_is_not_limited() {
    let all = Fixture::new("{events_per_second: 100, bytes_per_second: 1MiB, requests_per_second: 10}");
    for known in [true, false] {
        let before = all.left();
        all.request("events", known, 300_000, 30).unwrap();
        let spent: Vec<u64> = before
            .iter()
            .zip(all.left())
            .map(|(before, now)| before - now)
            .collect();
        assert_eq!(spent, [30, 300_000, 1]);
    }
    let none = Fixture::new("{}");
    let charge = none.request("events", false, 1 << 40, 1 << 40).unwrap();
    assert!(!charge.counts_events() && charge.headers(None).is_empty());
}

#[test]
fn a_refusal_names_its_limit_gives_all_back_and_its_wait_is_true() {
    let one =
        Fixture::new("{events_per_second: 10, bytes_per_second: 1000, requests_per_second: 5, burst: 10s}");
    one.request("events", true, 9_000, 95).unwrap();
    let before = one.left();
    // 5 events are left and 1,000 bytes.
    assert_eq!(
        told(one.request("events", true, 3_000, 5)),
        ("tenant-bytes", 429, 9_500),
        "events are not known yet"
    );
    assert_eq!(
        told(one.request("events", false, 500, 25)),
        ("tenant-events", 429, 2_000)
    );
    assert_eq!(
        told(one.request("events", true, 500, 101)),
        ("tenant-events", 413, 1_000)
    );
    assert_eq!(
        told(one.request("events", true, 10_001, 1)),
        ("tenant-bytes", 413, 1_000)
    );
    assert_eq!(
        told(one.request("events", false, 10_001, 1)),
        ("tenant-bytes", 413, 1_000)
    );
    assert_eq!(one.left(), before);
    one.clock.advance(Duration::from_millis(2_000));
    one.request("events", false, 500, 25).unwrap();
    // Nothing is left of the events: refused by the head alone, until all is there.
    assert_eq!(
        told(one.quotas.enter("events", None)),
        ("tenant-events", 429, 10_000)
    );
}

#[test]
fn a_dataset_s_limits_hold_besides_the_tenant_s() {
    let two =
        Fixture::new("{events_per_second: 100, burst: 1s, datasets: {clicks: {events_per_second: 10}}}");
    two.request("clicks", true, 5, 10).unwrap();
    assert_eq!(told(two.request("clicks", true, 5, 1)).0, "dataset-events");
    assert_eq!(
        told(two.request("clicks", true, 5, 11)).1,
        429,
        "an empty one refuses by the head"
    );
    two.request("orders", true, 5, 90).unwrap();
    assert_eq!(told(two.request("orders", true, 5, 1)).0, "tenant-events");
    assert_eq!(two.left(), [0, 0]);
}

#[test]
fn requests_at_once_are_those_that_are_not_answered() {
    let few = Fixture::new("{concurrent_requests: 2}");
    let first = few.request("events", true, 1, 1).unwrap();
    let mut second = few.request("events", true, 1, 1).unwrap();
    assert_eq!(
        told(few.request("events", true, 1, 1)),
        ("tenant-concurrency", 429, 1_000)
    );
    drop(first);
    let third = few.request("events", true, 1, 1).unwrap();
    assert!(
        few.request("events", true, 1, 1).is_err(),
        "what waits for its answer counts"
    );
    second.answered();
    assert!(few.request("events", true, 1, 1).is_ok());
    drop((second, third));
}

#[test]
fn a_charge_that_is_dropped_is_given_back_while_it_waits_and_not_once_it_was_passed_on() {
    let one = Fixture::new("{events_per_second: 10, burst: 1s}");
    let mut charge = one.request("events", true, 5, 8).unwrap();
    charge.waits();
    assert_eq!(one.left(), [2]);
    drop(charge);
    assert_eq!(one.left(), [10], "its client went away");
    let mut charge = one.request("events", true, 5, 8).unwrap();
    charge.waits();
    charge.passed_on();
    drop(charge);
    assert_eq!(one.left(), [2], "it may have been taken");
}

#[test]
fn a_dry_run_counts_what_it_would_refuse_and_takes_it() {
    let dry = Fixture::new("{events_per_second: 10, concurrent_requests: 1, burst: 1s, dry_run: true}");
    let taken = dry.request("events", true, 5, 8).unwrap();
    dry.request("events", true, 5, 1_000).unwrap();
    assert_eq!(dry.left(), [2], "what would be refused is not charged");
    drop(taken);
    dry.request("events", false, 5, 3).unwrap();
    dry.request("events", false, 5, 11).unwrap();
    assert_eq!(dry.left(), [2]);
    dry.request("events", false, 5, 2).unwrap();
    assert_eq!(dry.quotas.said.lock().1, 2, "said once, then counted");
}

#[test]
fn a_change_keeps_what_is_left_and_a_share_is_a_part_of_every_limit() {
    let mut one = Fixture::new("{events_per_second: 10, concurrent_requests: 3, burst: 10s}");
    one.request("events", true, 5, 50).unwrap();
    let same = Arc::clone(&one.quotas);
    one.change("{events_per_second: 10, concurrent_requests: 3, burst: 10s}", 100);
    assert!(
        Arc::ptr_eq(&same, &one.quotas),
        "what does not change is not touched"
    );
    one.change(
        "{events_per_second: 100, concurrent_requests: 3, burst: 10s}",
        100,
    );
    assert_eq!(one.left(), [500]);
    one.change("{events_per_second: 100, concurrent_requests: 3, burst: 10s}", 50);
    assert_eq!((one.left(), one.quotas.at_once), (vec![250], Some(1)));
    one.change("{bytes_per_second: 100}", 50);
    assert_eq!(one.left(), [100]);
}

#[test]
fn the_headers_say_what_holds_and_what_is_left() {
    let one = Fixture::new(
        "{events_per_second: 10, bytes_per_second: 1KiB, concurrent_requests: 3, burst: 10s, datasets: {a: {requests_per_second: 1}}}",
    );
    let charge = one.request("a", true, 24, 15).unwrap();
    let headers = charge.headers(None);
    let text = |at: usize| headers[at].1.to_str().unwrap();
    assert_eq!(
        text(0),
        "\"tenant-events\";q=100;qu=\"events\";w=10, \"tenant-bytes\";q=10240;qu=\"content-bytes\";w=10, \
         \"dataset-requests\";q=10;qu=\"requests\";w=10, \"tenant-concurrency\";q=3;qu=\"concurrent-requests\""
    );
    assert_eq!(
        text(1),
        "\"tenant-events\";r=85;t=2, \"tenant-bytes\";r=10216;t=1, \"dataset-requests\";r=9;t=1, \
         \"tenant-concurrency\";r=2"
    );
    assert_eq!(
        (headers[0].0.as_str(), headers[1].0.as_str()),
        ("ratelimit-policy", "ratelimit")
    );
}

proptest! {
    #[test]
    fn whoever_waits_as_it_is_told_and_is_alone_is_taken(
        before in prop::collection::vec((1..40_000u64, 1..150u64, any::<bool>(), 0..800u64), 0..12),
        bytes in 1..200_000u64, events in 1..200u64, known: bool,
    ) {
        let one = Fixture::new("{events_per_second: 100, bytes_per_second: 100kB, requests_per_second: 3, datasets: {events: {events_per_second: 99}}}");
        for (bytes, events, known, ms) in before {
            drop(one.request("events", known, bytes, events));
            one.clock.advance(Duration::from_millis(ms));
        }
        let left = one.left();
        if let Err(over) = one.request("events", known, bytes, events) {
            let refusal = Refusal::from(over);
            prop_assert_eq!(one.left(), left, "a refusal costs nothing");
            let possible = events <= 198;
            if refusal.status().as_u16() == 429 {
                one.clock.advance(refusal.least_wait());
                let again = one.request("events", known, bytes, events);
                // What was empty by the head alone may turn out to be larger than a burst.
                prop_assert_eq!(again.is_ok(), possible);
            } else {
                prop_assert!(!possible);
            }
        }
    }
}
