//! Copies of rejected rows.

use super::*;
use crate::intake::build_records;
use sluice_common::record::{Holds, RecordMeta};

fn keeping(bytes_per_second: u64) -> Intake {
    let yaml = DEFAULT_YAML.replace(
        "    table: events\n",
        "    table: events\n    keep_rejected: true\n",
    );
    assert!(yaml.contains("keep_rejected"));
    intake(&yaml).with_copy_budget(bytes_per_second)
}

#[test]
fn a_rejected_row_is_kept_as_sent_with_what_the_client_was_told() {
    let bad = event("b", ",\"status\":-1");
    let body = format!("{}\n{bad}\n\u{7}nonsense", event("a", ""));
    let parsed = lines(&keeping(1 << 20), body);
    assert_eq!((parsed.answer.accepted, parsed.answer.rejected), (1, 2));
    assert!(parsed.mark.is_none(), "the request's rows carry its counts");
    let [rows, copies] = parsed.pending.as_slice() else {
        panic!("rows and copies")
    };
    assert_eq!((rows.span.rejected, copies.span.rejected), (2, 0), "counted once");
    let kept = table(&copies.batch);
    let error = &parsed.answer.errors[0];
    let expected = ["out_of_range", "status", &error.message, &bad, "1"].map(|text| Some(text.to_owned()));
    assert_eq!(kept[0], expected);
    assert_eq!(kept[1][0].as_deref(), Some("malformed_json"));
    assert_eq!(kept[1][3].as_deref(), Some("\u{7}nonsense"));
    let built = build_records(parsed.pending.clone()).expect("records");
    let meta: RecordMeta = serde_json::from_slice(&built[1].0.meta).expect("meta");
    assert_eq!(
        (meta.holds, meta.table.as_str(), meta.dataset.as_str()),
        (Holds::RejectedCopies, "dead_letters", "events")
    );
}

#[test]
fn copies_over_the_budget_of_a_tenant_are_counted_and_not_kept() {
    let intake = keeping(3_000);
    let body = "{\"event_id\":5}\n".repeat(200);
    let parsed = lines(&intake, body.clone());
    let kept = parsed.pending[0].keys.len() as u64;
    assert!((5..20).contains(&kept), "{kept}");
    assert_eq!(parsed.copies_dropped, [("budget", 200 - kept), ("request", 0)]);
    assert_eq!((parsed.answer.rejected, parsed.answer.errors_omitted), (200, 100));
    let mark = parsed.mark.expect("rejected whole");
    assert_eq!(mark.span.rejected, 200);
    let mut other = request(BodyFormat::Ndjson, body);
    other.tenant = TenantId::new("beta").expect("valid");
    assert!(
        !intake
            .parse(&other, NOW_MS, &mut |_| true)
            .expect("parsed")
            .pending
            .is_empty(),
        "its own budget"
    );
}

#[test]
fn one_request_keeps_at_most_a_record_of_copies() {
    let body = format!("{{\"event_id\":\"{}\"}}\n", "x".repeat(15_000)).repeat(100);
    let parsed = lines(&keeping(1 << 30), body);
    assert_eq!(parsed.copies_dropped[0].1, 0);
    assert!(parsed.copies_dropped[1].1 > 60);
    assert_eq!(build_records(parsed.pending).expect("records").len(), 1);
}

#[test]
fn a_dataset_that_does_not_ask_for_copies_has_none() {
    let parsed = lines(&default_intake(), "{}\n");
    assert!(parsed.pending.is_empty() && parsed.mark.is_some());
}
