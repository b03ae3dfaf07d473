//! What a request is charged at the edge.

use super::{EVENTS, Round};
use sluice_common::config::{Loaded, Share};
use sluice_edge::quota::{Report, TenantQuotas};
use std::hint::black_box;
use std::path::Path;

/// Requests of a round.
pub const REQUESTS: usize = 100;
const BODY_BYTES: u64 = 256 * EVENTS as u64;
const YAML: &str = "tenants: [{id: bench, keys: [], quota: {events_per_second: 1000000000, bytes_per_second: 2GiB, \
                    requests_per_second: 1000000, burst: 1s, concurrent_requests: 64}}]\n";

/// From head to answer, with every limit set and none reached.
pub fn charged(_rounds: usize) -> Round {
    let loaded = Loaded::parse(YAML, Path::new("bench.yaml"), Path::new("."));
    let config = loaded
        .unwrap_or_else(|error| panic!("the bench's config: {error}"))
        .config;
    let tenant = &config.tenants[0];
    let report = Report::quiet();
    let quotas = TenantQuotas::new((&tenant.id, &tenant.quota), Share::default(), None, &report);
    Box::new(move || {
        for _ in 0..REQUESTS {
            let mut charge = quotas
                .enter("events", Some(BODY_BYTES))
                .unwrap_or_else(|over| panic!("within its quota: {over:?}"));
            charge.body_ended(BODY_BYTES).expect("within its quota");
            assert!(charge.counts_events());
            charge.events(1).expect("within its quota");
            charge.passed_on();
            charge.answered();
            black_box(&charge);
            // Nothing runs out, however fast rounds come.
            charge.give_back();
        }
    })
}
