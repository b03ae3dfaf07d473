//! Bytes into columns, and columns into records.

use super::{EVENTS, Round};
use crate::body::Body;
use bytes::Bytes;
use sluice_common::config::{Dataset, Loaded, Weight};
use sluice_common::ids::{RequestId, TenantId};
use sluice_common::record::RecordContent;
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeRequest};
use sluice_normalizer::intake::{Intake, Parsed, Pending, build_records};
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

/// 2026-11-21T03:30:30Z.
pub const NOW_MS: u64 = 1_795_231_830_000;

/// The datasets of the default config.
fn datasets() -> Vec<Dataset> {
    let loaded = Loaded::read(None, Path::new("."));
    loaded
        .unwrap_or_else(|error| panic!("the default config: {error}"))
        .config
        .datasets
}

fn intake() -> Intake {
    Intake::new(&datasets(), [7; 32]).unwrap_or_else(|problems| panic!("the default config: {problems:?}"))
}

/// So many requests of distinct events.
fn requests(how_many: usize) -> Vec<IntakeRequest> {
    let mut body = Body::render(0, 0, EVENTS, NOW_MS);
    let tenant = TenantId::new("bench").expect("valid");
    let request = |number| {
        let held = body.renew();
        let bytes = Bytes::copy_from_slice(&held);
        body.give_back(held);
        IntakeRequest {
            tenant: tenant.clone(),
            weight: Weight::default(),
            dataset: "events".into(),
            request: RequestId(number as u128),
            idempotency_key: None,
            format: BodyFormat::Ndjson,
            body: bytes,
            timeout: Duration::from_secs(1),
            trace: TraceContext::default(),
        }
    };
    (0..how_many).map(request).collect()
}

fn parse(intake: &Intake, request: &IntakeRequest) -> Parsed {
    let parsed = intake.parse(request, NOW_MS, &mut |_| true);
    let parsed = parsed.expect("the sample is sound");
    assert_eq!(parsed.answer.rejected, 0, "{:?}", parsed.answer);
    parsed
}

/// JSON into checked, converted and hashed columns.
pub fn parsed(rounds: usize) -> Round {
    let intake = intake();
    // Parsers keep their buffers: the first request is not like the others.
    let mut requests = requests(rounds + 1).into_iter();
    requests.next().map(|first| parse(&intake, &first));
    Box::new(move || {
        let request = requests.next().expect("one a round");
        black_box(parse(&intake, &request));
    })
}

/// Columns into records: Arrow IPC with LZ4.
pub fn encoded(rounds: usize) -> Round {
    let mut pendings = pendings(rounds).into_iter();
    Box::new(move || {
        let pending = pendings.next().expect("one a round");
        black_box(build_records(pending).expect("sound columns"));
    })
}

fn pendings(rounds: usize) -> Vec<Vec<Pending>> {
    let intake = intake();
    let requests = requests(rounds);
    requests
        .iter()
        .map(|request| parse(&intake, request).pending)
        .collect()
}

/// What goes into the log: a record a request.
pub fn records(how_many: usize) -> Vec<RecordContent> {
    let records = pendings(how_many).into_iter().map(|pending| {
        let mut records = build_records(pending).expect("sound columns");
        assert_eq!(records.len(), 1, "a request of the sample is one record");
        records.remove(0).0
    });
    records.collect()
}
