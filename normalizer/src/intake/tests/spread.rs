//! Partitions: each event goes to one, always the same, and nothing of its request is lost or counted twice.

use super::*;
use crate::intake::Spread;
use crate::intake::encode::build_records;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Events with these ids, and a broken line.
fn parsed(intake: &Intake, ids: &[u32], change: impl FnOnce(&mut IntakeRequest)) -> Parsed {
    let events = ids.iter().map(|id| {
        let more = format!(r#","host":"h{}","attributes":{{"n":"{id}"}}"#, id % 5);
        event(&id.to_string(), &more)
    });
    let body = events.chain(["{".to_owned()]).collect::<Vec<_>>().join("\n");
    let mut request = request(BodyFormat::Ndjson, body);
    change(&mut request);
    parse_request(intake, &request).unwrap_or_else(|problem| panic!("{problem:?}"))
}

/// Each row's key and values.
fn keyed(pending: &[Pending]) -> BTreeMap<(u128, Vec<Option<String>>), usize> {
    let mut rows = BTreeMap::new();
    for one in pending {
        for (key, row) in one.keys.iter().zip(table(&one.batch)) {
            *rows.entry((*key, row)).or_default() += 1;
        }
    }
    rows
}

fn places(pending: &[Pending]) -> BTreeMap<u128, u16> {
    let keys = pending
        .iter()
        .flat_map(|one| one.keys.iter().map(|key| (*key, one.partition)));
    keys.collect()
}

proptest! {
    #[test]
    fn a_key_s_rows_go_to_one_partition_of_the_tenant_s_and_the_request_is_counted_once(
        ids in prop::collection::vec(0u32..500, 1..200), partitions in 1u16..20, some in 1u16..20
    ) {
        let (intake, spread) = (default_intake(), Spread::new(partitions, some));
        let whole = parsed(&intake, &ids, |_| ());
        let over = spread.over(whole.pending.clone(), None).expect("spread");
        prop_assert_eq!(keyed(&over), keyed(&whole.pending));
        for one in &over {
            prop_assert!(one.partition < partitions);
            prop_assert_eq!(one.span.rows as usize, one.keys.len());
        }
        let used: BTreeSet<u16> = over.iter().map(|one| one.partition).collect();
        prop_assert!(used.len() <= usize::from(some.min(partitions)));
        let sum = |of: fn(&Pending) -> u32| over.iter().map(of).sum::<u32>() as usize;
        prop_assert_eq!(sum(|one| one.span.taken), ids.len());
        prop_assert_eq!(sum(|one| one.span.rejected), 1);
        // Another request with the same keys, in another order: each goes where it went.
        let mut again = ids.clone();
        again.reverse();
        let again = parsed(&intake, &again, |request| request.request = RequestId(8));
        let again = spread.over(again.pending, None).expect("spread");
        prop_assert_eq!(places(&again), places(&over));
        // No record has rows of two partitions.
        let built = build_records(over.clone()).expect("records");
        for (_, members) in built {
            let of: BTreeSet<u16> = members.iter().map(|at| over[*at].partition).collect();
            prop_assert_eq!(of.len(), 1);
        }
    }
}

#[test]
fn events_that_are_known_by_their_request_go_whole_where_it_goes() {
    let intake = fields(
        "{name: event_id, type: string}, {name: timestamp, type: string}, {name: service, type: string}, \
         {name: host, type: string}, {name: attributes, type: 'map(string, string)'}",
    );
    let spread = Spread::new(16, 16);
    let ids: Vec<u32> = (0..50).collect();
    let of = |key: Option<&str>, request: u128| {
        let parsed = parsed(&intake, &ids, |asked| {
            asked.idempotency_key = key.map(str::to_owned);
            asked.request = RequestId(request);
        });
        let over = spread.over(parsed.pending, key).expect("spread");
        let used: BTreeSet<u16> = over.iter().map(|one| one.partition).collect();
        assert_eq!(used.len(), 1, "{key:?}");
        used.into_iter().next().expect("one")
    };
    // A client's retry has the same Idempotency-Key, and another request id.
    for key in ["a", "b", "c"] {
        assert_eq!(of(Some(key), 1), of(Some(key), 2));
    }
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let spread_by_key: BTreeSet<u16> = keys.iter().map(|key| of(Some(key), 1)).collect();
    let spread_by_request: BTreeSet<u16> = (0..8).map(|request| of(None, request)).collect();
    assert!(spread_by_key.len() > 2 && spread_by_request.len() > 2);
}

#[test]
fn where_events_lie_is_frozen() {
    let intake = default_intake();
    let whole = parsed(&intake, &[1, 2, 3, 4, 5, 6, 7, 8], |_| ());
    let over = Spread::new(12, 4).over(whole.pending, None).expect("spread");
    let mut lie: Vec<(String, u16)> = over
        .iter()
        .flat_map(|one| {
            table(&one.batch)
                .into_iter()
                .map(|row| (row[0].clone().unwrap_or_default(), one.partition))
        })
        .collect();
    lie.sort();
    let lie: Vec<u16> = lie.into_iter().map(|(_, partition)| partition).collect();
    assert_eq!(lie, [2, 2, 1, 1, 4, 2, 1, 4]);
}
