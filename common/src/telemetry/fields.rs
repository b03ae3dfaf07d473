//! The fields of a span as JSON, for log lines: written as they come.
//!
//! Every request has spans whose fields are known one after the other, and few have a log line. The formatter of
//! `tracing-subscriber` reads back and writes anew all that it has of a span whenever a field is added, which was a tenth
//! of what a request of one event cost.

use std::fmt::{self, Debug};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, FormattedFields};

/// Formats a span's fields as one JSON object.
#[derive(Debug)]
pub(super) struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut members = Members {
            writer,
            any: false,
            told: Ok(()),
        };
        members.writer.write_char('{')?;
        fields.record(&mut members);
        members.told?;
        members.writer.write_char('}')
    }

    /// A field that is told twice is there twice: who reads it takes the last.
    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let any = current.fields != "{}";
        // Apart: where a value cannot be written, what was there stays as it is.
        let mut more = String::new();
        let mut members = Members {
            writer: Writer::new(&mut more),
            any,
            told: Ok(()),
        };
        fields.record(&mut members);
        members.told?;
        current.fields.pop();
        current.fields.push_str(&more);
        current.fields.push('}');
        Ok(())
    }
}

struct Members<'writer> {
    writer: Writer<'writer>,
    /// Whether there is one before.
    any: bool,
    told: fmt::Result,
}

impl Members<'_> {
    fn tell(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let comma = if std::mem::replace(&mut self.any, true) {
            ","
        } else {
            ""
        };
        // A name is a path of identifiers: nothing in it needs an escape.
        let told = write!(self.writer, "{comma}\"{}\":{value}", field.name());
        self.told = self.told.and(told);
    }
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.tell(field, format_args!("{number}")),
            None => self.tell(field, format_args!("null")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.tell(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.tell(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.tell(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.tell(field, format_args!("{}", serde_json::Value::from(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use std::io;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_told_of_a_span_sooner_or_later_is_in_its_lines() {
        let lines = Lines::default();
        let to = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .fmt_fields(JsonFields)
            .with_writer(move || to.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let empty = tracing::field::Empty;
            let span = tracing::info_span!(
                "all",
                tenant = empty,
                part = empty,
                ratio = 0.5,
                none = f64::NAN,
                is = true
            );
            span.record("tenant", "a \"quoted\"\nname \u{1}");
            span.record("part", 7);
            span.record("part", -8);
            span.in_scope(|| tracing::info_span!("bare").in_scope(|| tracing::info!("said")));
            let late = tracing::info_span!("late", path = empty);
            late.record("path", tracing::field::debug("x\\y"));
            late.in_scope(|| tracing::info!("said"));
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let spans: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["spans"].take())
            .collect();
        let all = json!({"name": "all", "tenant": "a \"quoted\"\nname \u{1}", "part": -8, "ratio": 0.5, "none": null, "is": true});
        assert_eq!(
            spans,
            [
                json!([all, {"name": "bare"}]),
                json!([{"name": "late", "path": "\"x\\\\y\""}]),
            ]
        );
    }
}
