//! Which rows of a record a call is about, and each as its message: an event, or a dead letter.

use super::message::{self, Message};
use crate::dead_letters::Letter;
use crate::route::{self, Refusals};
use arrow_array::RecordBatch;
use sluice_common::fates::Fate;
use sluice_common::ids::source_o;
use sluice_common::record::{Holds, Record};
use sluice_common::wire::publish::{Content, PublishOrder};
use sluice_common::wire::sink::RangeRecord;

/// Payload of a dead letter in its topic; its row has more.
const MAX_LETTER_PAYLOAD_BYTES: usize = 256 * 1_024;

/// What an order asks for.
pub enum Asked<'a> {
    Events,
    Letters(Refusals<'a>),
}

impl<'a> Asked<'a> {
    /// That of an order.
    pub fn of(content: &'a Content) -> Self {
        match content {
            Content::Events => Self::Events,
            Content::Letters(refused) => Self::Letters(route::refusals(refused)),
        }
    }

    /// How many rows of a record go out.
    pub fn count(&self, one: &RangeRecord) -> u64 {
        match self {
            Self::Events => u64::from(one.fates.kept()),
            Self::Letters(_) => self.rows(one).count() as u64,
        }
    }

    /// Which they are, in log order.
    pub fn rows<'b>(&'b self, one: &'b RangeRecord) -> impl Iterator<Item = u32> + 'b {
        (0..one.record.rows()).filter(|row| self.goes(one, *row))
    }

    fn goes(&self, one: &RangeRecord, row: u32) -> bool {
        let fate = u16::try_from(row).map_or(Fate::Drop, |row| one.fates.of(row));
        let place = one.record.place;
        match self {
            Self::Events => fate == Fate::Keep,
            Self::Letters(refused) => match one.record.meta.holds {
                Holds::RejectedCopies => fate == Fate::Keep,
                Holds::Events => fate == Fate::Conflict || refused.contains_key(&source_o(place.offset, row)),
            },
        }
    }

    /// One of these rows; a dead letter's payload is cut to `most` bytes.
    pub fn message(
        &self,
        order: &PublishOrder,
        record: &Record,
        (batch, row): (&RecordBatch, u32),
        most: usize,
    ) -> Message {
        let Self::Letters(refused) = self else {
            return message::of(order, record, batch, row);
        };
        let partition = order.partition;
        let letter = match (
            record.meta.holds,
            refused.get(&source_o(record.place.offset, row)),
        ) {
            (Holds::RejectedCopies, _) => Letter::rejected(record, partition, batch, row),
            (Holds::Events, Some(why)) => Letter::refused(record, partition, batch, row, *why),
            (Holds::Events, None) => Letter::conflict(record, partition, batch, row),
        };
        message::carrying(order, record, (batch, row), letter.json(most))
    }

    /// The longest payload: a dead letter's leaves room for its being escaped within a broker's default of 1 MB, since
    /// a broker that refuses one would hold up all behind it.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Events => usize::MAX,
            Self::Letters(_) => MAX_LETTER_PAYLOAD_BYTES,
        }
    }

    /// The bytes that are left to a payload where `message` is larger than one may be: none where nothing can be cut.
    pub fn shorter(&self, message: &Message, most: usize) -> Option<usize> {
        match self {
            Self::Events => None,
            Self::Letters(_) => (most > 0).then(|| most.min(message.payload.len()) / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray, UInt32Array};
    use bytes::Bytes;
    use serde_json::{Value, json};
    use sluice_common::fates::Fates;
    use sluice_common::ids::{LogId, Name, RequestId, TenantId};
    use sluice_common::record::{Identity, Placement, RecordContent, RecordMeta, RequestSpan};
    use sluice_common::wire::sink::{Range, RefusedRows};
    use std::sync::Arc;

    fn decided(holds: Holds, rows: &[Fate]) -> RangeRecord {
        let meta = RecordMeta {
            tenant: TenantId::new("acme").expect("valid"),
            dataset: Name::new("sales").expect("valid"),
            table: Name::new("sales").expect("valid"),
            schema_version: 1,
            identity: Identity::Key,
            window_ms: 1_000,
            holds,
        };
        let mut fates = Fates::new();
        rows.iter().for_each(|fate| fates.push(*fate));
        let span = RequestSpan {
            request: RequestId(1),
            first_row: 0,
            rows: fates.rows(),
            taken: fates.rows(),
            rejected: 0,
            trace_id: 0,
            span_id: 0,
        };
        let content = RecordContent {
            meta: serde_json::to_vec(&meta).expect("json").into(),
            spans: vec![span],
            keys: (0..u128::from(fates.rows())).collect(),
            fingerprints: Vec::new(),
            column_bytes: 0,
            body: Bytes::new(),
        };
        let place = Placement {
            log: LogId(0xab),
            offset: 7,
            append_ms: 1_795_231_830_123,
            durable_below: 7,
        };
        let mut frame = Vec::new();
        content.write(place, &mut frame);
        let record = Record::read(&frame.into()).expect("a record");
        RangeRecord { record, fates }
    }

    fn order(refused: Vec<RefusedRows>) -> PublishOrder {
        PublishOrder {
            log: LogId(0xab),
            partition: 0,
            range: Range { a: 5, b: 9 },
            content: Content::Letters(refused),
            topic: "dead".into(),
            key: vec![Name::new("tenant").expect("valid")],
            skip: 0,
            most: u64::MAX,
            waited: false,
        }
    }

    fn value(message: &Message) -> Value {
        serde_json::from_str(&message.payload).expect("JSON")
    }

    #[test]
    fn conflicts_and_refused_rows_of_a_record_are_its_dead_letters_and_only_their_payload_is_cut() {
        let one = decided(
            Holds::Events,
            &[Fate::Drop, Fate::Conflict, Fate::Drop, Fate::Drop],
        );
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![10, 11, 12, 13]));
        let notes: ArrayRef = Arc::new(StringArray::from(vec!["long".repeat(50); 4]));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("note", notes)]).expect("columns");
        let order = order(vec![RefusedRows {
            code: "clickhouse_469".into(),
            message: "violated".into(),
            rows: vec![source_o(7, 3)],
        }]);
        let asked = Asked::of(&order.content);
        assert_eq!(asked.rows(&one).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(asked.count(&one), 2);
        let message = |row, most| asked.message(&order, &one.record, (&batch, row), most);
        let whole = message(3, usize::MAX);
        let o = source_o(7, 3);
        assert_eq!(whole.key.as_deref(), Some("acme"));
        assert_eq!(whole.headers[4..], [o.to_string(), "5-9".to_owned()]);
        let payload = json!({"n": 13, "note": "long".repeat(50)}).to_string();
        assert_eq!(
            value(&whole),
            json!({
                "id": format!("00000000000000ab-0-{o}"), "tenant": "acme", "dataset": "sales", "stage": "insert",
                "code": "clickhouse_469", "message": "violated", "field": "", "payload": payload,
                "request_id": RequestId(1).to_string(), "ingested_at": "2026-11-21T03:30:30.123Z",
            })
        );
        let conflict = value(&message(1, usize::MAX));
        assert_eq!(
            (&conflict["stage"], &conflict["code"]),
            (&json!("dedup"), &json!("idempotency_conflict"))
        );
        let cut = value(&message(3, 40));
        let payload = cut["payload"].as_str().expect("text");
        assert!(payload.len() <= 40 && payload.ends_with("… (cut)"), "{payload}");
        assert_eq!(cut["message"], "violated");
    }

    #[test]
    fn a_letter_that_does_not_fit_is_cut_until_nothing_is_left_and_an_event_never() {
        let one = decided(Holds::Events, &[Fate::Conflict]);
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![10]));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).expect("columns");
        let order = order(Vec::new());
        let asked = Asked::of(&order.content);
        let (mut most, mut tries) = (usize::MAX, 0);
        loop {
            let message = asked.message(&order, &one.record, (&batch, 0), most);
            let Some(less) = asked.shorter(&message, most) else {
                break;
            };
            assert!(less < most);
            (most, tries) = (less, tries + 1);
        }
        assert!(most == 0 && tries < 12, "{tries}");
        let message = asked.message(&order, &one.record, (&batch, 0), usize::MAX);
        assert_eq!(Asked::Events.shorter(&message, usize::MAX), None);
    }

    #[test]
    fn copies_of_rejected_rows_are_told_as_they_were_sent() {
        let one = decided(Holds::RejectedCopies, &[Fate::Keep]);
        let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let index: ArrayRef = Arc::new(UInt32Array::from(vec![4]));
        let columns = [
            ("code", text("wrong_type")),
            ("field", text("n")),
            ("message", text("not a number")),
            ("payload", text("{\"n\":\"x\"}")),
            ("event_index", index),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns");
        let order = order(Vec::new());
        let asked = Asked::of(&order.content);
        assert_eq!(asked.rows(&one).collect::<Vec<_>>(), [0]);
        let told = value(&asked.message(&order, &one.record, (&batch, 0), usize::MAX));
        assert_eq!(
            (&told["stage"], &told["event_index"]),
            (&json!("intake"), &json!(4))
        );
        assert_eq!(
            (&told["field"], &told["payload"]),
            (&json!("n"), &json!("{\"n\":\"x\"}"))
        );
    }
}
