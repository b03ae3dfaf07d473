//! Records: rows of several requests, joined.

use super::*;
use crate::intake::encode::{EncodeError, build_records, build_within};
use arrow_ipc::reader::StreamReader;
use proptest::prelude::*;
use sluice_common::limits::{MAX_RECORD_BYTES, MAX_RECORD_ROWS, TARGET_RECORD_BYTES};
use sluice_common::packed::unpack;
use sluice_common::record::RecordContent;

type Built = Vec<(RecordContent, Vec<usize>)>;

fn decode(content: &RecordContent) -> RecordBatch {
    let stream = unpack(content.body.clone()).expect("a sound body");
    assert_eq!(
        content.column_bytes as usize,
        stream.len(),
        "what whoever reads it has to hold"
    );
    let mut reader = StreamReader::try_new(&stream[..], None).expect("a stream");
    let batch = reader.next().expect("a batch").expect("readable");
    assert!(reader.next().is_none(), "one batch a record");
    assert_eq!(batch.num_rows(), content.rows());
    batch
}

/// What must hold of the records of any group.
fn check(group: &[Pending], built: &Built) {
    let mut rows: Vec<Vec<_>> = group.iter().map(|_| Vec::new()).collect();
    let mut totals = vec![(0, 0); group.len()];
    for (content, members) in built {
        assert!(content.rows() <= MAX_RECORD_ROWS && content.frame_bytes() <= MAX_RECORD_BYTES);
        assert_eq!(members.len(), content.spans.len());
        let batch = if content.rows() == 0 {
            assert!(content.body.is_empty());
            Vec::new()
        } else {
            table(&decode(content))
        };
        let mut next = 0;
        for (span, member) in content.spans.iter().zip(members) {
            assert_eq!(span.first_row, next);
            next += span.rows;
            let pending = &group[*member];
            assert_eq!(content.meta, pending.template.meta);
            assert_eq!(span.request, pending.span.request);
            let range = span.first_row as usize..next as usize;
            let done = rows[*member].len();
            assert_eq!(
                content.keys[range.clone()],
                pending.keys[done..done + range.len()]
            );
            assert_eq!(content.fingerprints.is_empty(), pending.fingerprints.is_empty());
            totals[*member].0 += span.taken;
            totals[*member].1 += span.rejected;
            rows[*member].extend_from_slice(&batch[range]);
        }
        assert_eq!(next as usize, content.rows());
    }
    for ((pending, rows), totals) in group.iter().zip(&rows).zip(totals) {
        assert_eq!(rows, &table(&pending.batch));
        assert_eq!(totals, (pending.span.taken, pending.span.rejected));
    }
}

fn build(group: &[Pending]) -> Built {
    let built = build_records(group.to_vec()).expect("records");
    check(group, &built);
    built
}

/// `size` bytes that do not compress.
fn noise(seed: u64, size: usize) -> String {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    (0..size)
        .map(|_| char::from(random.random_range(b'#'..=b'Z')))
        .map(|c| if c == '\\' { '!' } else { c })
        .collect()
}

/// A request of so many good events; of none, one that was rejected whole.
fn sample(intake: &Intake, tenant: &str, first: usize, events: usize) -> Vec<Pending> {
    let body: String = (first..first + events)
        .map(|n| {
            event(
                &format!("id-{n}"),
                &format!(",\"host\":\"h{}\",\"status\":{},\"k\":\"{n}\"", n % 7, n % 600),
            ) + "\n"
        })
        .collect();
    let mut request = request(BodyFormat::Ndjson, body);
    request.tenant = TenantId::new(tenant).expect("valid");
    request.request = RequestId(first as u128);
    if events == 0 {
        request.body = "{}\n{}\n".into();
    }
    let parsed = intake.parse(&request, NOW_MS, &mut |_| true).expect("taken");
    assert_eq!(parsed.mark.is_some(), events == 0);
    parsed.pending.into_iter().chain(parsed.mark).collect()
}

#[test]
fn a_request_rejected_whole_leaves_a_mark_that_joins_the_rows_of_others() {
    let intake = default_intake();
    let marks: Vec<_> = (0..3).flat_map(|n| sample(&intake, "acme", n, 0)).collect();
    let alone = build(&marks);
    assert_eq!(
        (alone.len(), alone[0].0.rows(), alone[0].0.spans.len()),
        (1, 0, 3)
    );
    assert!(alone[0].0.frame_bytes() < 500, "{}", alone[0].0.frame_bytes());
    let group = [
        marks,
        sample(&intake, "acme", 9, 4),
        sample(&intake, "beta", 10, 0),
    ]
    .concat();
    let built = build(&group);
    assert_eq!(built.iter().map(|one| one.0.rows()).collect::<Vec<_>>(), [4, 0]);
    assert_eq!(
        built[0]
            .0
            .spans
            .iter()
            .map(|span| span.rejected)
            .collect::<Vec<_>>(),
        [2, 2, 2, 0]
    );
}

#[test]
fn requests_of_one_template_share_a_record_and_others_do_not() {
    let intake = default_intake();
    let group: Vec<_> = (0..30)
        .flat_map(|n| sample(&intake, ["acme", "beta", "core"][n % 3], n * 100, 1 + n % 4))
        .collect();
    let built = build(&group);
    assert_eq!(built.len(), 3);
    assert_eq!(built[1].1, (0..10).map(|n| 3 * n + 1).collect::<Vec<_>>());
    assert_eq!(build(&[]).len(), 0);
}

#[test]
fn a_template_of_a_reloaded_config_that_says_the_same_is_the_same() {
    let group = [
        sample(&default_intake(), "acme", 0, 2),
        sample(&default_intake(), "acme", 5, 2),
    ]
    .concat();
    assert_eq!(build(&group).len(), 1);
}

#[test]
fn a_large_request_is_cut_into_pendings_of_the_target_size() {
    let parsed = sample(&default_intake(), "acme", 0, 20_000);
    assert!(parsed.len() > 3);
    for (at, pending) in parsed.iter().enumerate() {
        assert!(pending.bytes <= TARGET_RECORD_BYTES);
        assert_eq!(pending.span.taken, if at == 0 { 20_000 } else { 0 });
    }
    assert_eq!(
        parsed.iter().map(|pending| pending.keys.len()).sum::<usize>(),
        20_000
    );
    build(&parsed);
}

#[test]
fn rows_that_do_not_compress_keep_every_record_within_its_limit() {
    let intake = default_intake();
    for size in [100, 3_000, 100_000, 400_000, 700_000] {
        let body: String = (0..(3_000_000 / size).min(4_000))
            .map(|n| {
                event(
                    &noise(n as u64, size / 2),
                    &format!(",\"host\":\"{}\"", noise(n as u64 + 9, size / 2)),
                ) + "\n"
            })
            .collect();
        let parsed = lines(&intake, body);
        assert_eq!(parsed.answer.rejected, 0, "{:?}", parsed.answer.errors);
        build(&parsed.pending);
    }
}

#[test]
fn a_row_is_either_too_large_for_intake_or_fits_a_record_alone() {
    let intake = default_intake();
    let mut taken = 0;
    for size in (820_000..900_000).step_by(2_000) {
        let parsed = lines(
            &intake,
            event(
                &noise(1, size / 2),
                &format!(",\"host\":\"{}\"", noise(2, size / 2)),
            ),
        );
        match parsed.pending.len() {
            0 => assert_eq!(parsed.answer.errors[0].code, "event_too_large"),
            _ => taken += build(&parsed.pending).len(),
        }
    }
    assert!(taken > 0 && taken < 40, "{taken}");
}

#[test]
fn a_thousand_columns_leave_room_for_their_largest_row() {
    let names: Vec<_> = (0..1_000)
        .map(|n| format!("{{name: a_long_field_name_{n}, type: nullable(string)}}"))
        .collect();
    let intake = fields(&names.join(","));
    let mut taken = 0;
    for size in (100..900).step_by(20) {
        let members: Vec<_> = (0..1_000)
            .map(|n| format!("\"a_long_field_name_{n}\":\"{}\"", noise(n, size)))
            .collect();
        let parsed = lines(&intake, format!("{{{}}}", members.join(",")));
        taken += parsed.answer.accepted;
        build(&parsed.pending);
    }
    assert!((10..40).contains(&taken), "{taken}");
    let long: Vec<_> = (0..1_000)
        .map(|n| format!("{{name: {:x>60}, type: string}}", format!("_{n}")))
        .collect();
    let yaml = format!("datasets: [{{name: events, fields: [{}]}}]", long.join(","));
    let problems = Intake::new(&config(&yaml).datasets, SECRET).err();
    assert!(problems.is_none_or(|problems| problems[0].contains("fewer or shorter")));
}

#[test]
fn a_record_over_its_limit_is_halved_until_its_parts_fit() {
    let intake = default_intake();
    let group = [
        sample(&intake, "acme", 8_000, 0),
        sample(&intake, "acme", 0, 700),
        sample(&intake, "acme", 8_001, 0),
        sample(&intake, "acme", 9_000, 500),
        sample(&intake, "acme", 8_002, 0),
    ]
    .concat();
    let built = build_within(&group, usize::MAX, 8_000).expect("records");
    check(&group, &built);
    assert!(built.len() > 4 && built.iter().all(|(content, _)| content.frame_bytes() <= 8_000));
    let refused = build_within(&group, usize::MAX, 1_000).expect_err("one row is larger");
    assert!(matches!(refused, EncodeError::RowTooLarge { .. }), "{refused}");
}

#[test]
fn dictionaries_hold_each_string_once_and_none_of_rejected_rows() {
    let intake = default_intake();
    let bad = event("b", ",\"status\":-1").replace("api", "rejected");
    let parsed = lines(
        &intake,
        format!(
            "{}\n{bad}\n{}",
            event("a", ""),
            event("c", "").replace("api", "web")
        ),
    );
    let group = [parsed.pending, sample(&intake, "acme", 0, 3)].concat();
    let built = build(&group);
    let batch = decode(&built[0].0);
    let service = batch.column(2).as_dictionary::<Int32Type>();
    let values: Vec<_> = service.values().as_string::<i32>().iter().flatten().collect();
    assert_eq!(values, ["api", "web"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_group_reads_back_as_it_was(sizes in prop::collection::vec((0usize..3, prop_oneof![Just(0), 1usize..400]), 1..12), limit in 20_000usize..900_000) {
        let intake = default_intake();
        let group: Vec<_> = sizes.iter().enumerate()
            .flat_map(|(n, (tenant, size))| sample(&intake, ["acme", "beta", "core"][*tenant], n * 1_000, *size))
            .collect();
        let built = build_within(&group, limit, limit).expect("records");
        check(&group, &built);
    }
}
