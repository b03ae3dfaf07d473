//! How many events a body holds, without a schema and without parsing it. It counts what the normalizer will take
//! for events: lines that are not blank, the elements of an array, or one object. What is broken is counted too.

use memchr::{memchr, memchr2};
use sluice_common::wire::intake::BodyFormat;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The events of a body.
#[must_use]
pub fn events(format: BodyFormat, body: &[u8]) -> u64 {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let rest = skip_space(body);
    match (format, rest.split_first()) {
        (BodyFormat::Json | BodyFormat::Auto, Some((b'[', inside))) => elements(inside),
        (BodyFormat::Json, _) => 1,
        // No client sends messages.
        (BodyFormat::Ndjson | BodyFormat::Auto | BodyFormat::Messages, _) => lines(rest),
    }
}

fn skip_space(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_space(*byte));
    start.map_or(&[], |start| &bytes[start..])
}

/// JSON's white space.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn lines(mut rest: &[u8]) -> u64 {
    let mut count = 0;
    loop {
        rest = skip_space(rest);
        if rest.is_empty() {
            return count;
        }
        count += 1;
        rest = memchr(b'\n', rest).map_or(&[], |end| &rest[end..]);
    }
}

/// One more than the commas of the array's own level, unless nothing is in it.
fn elements(inside: &[u8]) -> u64 {
    if skip_space(inside).first() == Some(&b']') {
        return 0;
    }
    let (mut count, mut depth, mut at) = (1, 0u64, 0);
    while let Some(byte) = inside.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(inside, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => count += 1,
            _ => {}
        }
    }
    count
}

/// Past the quote that ends the string whose first byte is at `at`, or past all.
fn string_end(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn events_are_counted_as_they_will_be_read() {
        use BodyFormat::{Auto, Json, Ndjson};
        for (format, body, expected) in [
            (Ndjson, "", 0),
            (Ndjson, " \r\n\t\n", 0),
            (Ndjson, "{}\n{}", 2),
            (Ndjson, "{}\r\n\r\n  {}\n\n", 2),
            (Ndjson, "not json\n[1,2]\n", 2),
            (Ndjson, "\u{feff}{}\n", 1),
            (Auto, "{}\n{}\n{}", 3),
            (Auto, " [1, 2]", 2),
            (Json, "{\"a\":\n1}", 1),
            (Json, "[]", 0),
            (Json, "\u{feff} [ ] ", 0),
            (Json, "[{}]", 1),
            (Json, r#"[{"a":[1,2],"b":"x,]\"],"},{},"\\",[[],[]]]"#, 4),
            (Json, "[1,2", 2),
            (Json, "[\"open", 1),
            (Json, "[\"open\\", 1),
        ] {
            assert_eq!(events(format, body.as_bytes()), expected, "{format:?} {body:?}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\"\\\\,\\[\\]{}\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map("[\\PC\"\\\\,\\]}]{0,6}", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_array_and_its_lines_have_as_many_events_as_elements(
            list in prop::collection::vec(value(), 0..20), pretty: bool, blank in 0..3usize,
        ) {
            let text = if pretty { serde_json::to_string_pretty(&list) } else { serde_json::to_string(&list) }.unwrap();
            prop_assert_eq!(events(BodyFormat::Json, text.as_bytes()), list.len() as u64);
            prop_assert_eq!(events(BodyFormat::Auto, text.as_bytes()), list.len() as u64);
            let lines: Vec<String> = list.iter().map(Value::to_string).collect();
            let text = lines.join(&format!("\n{}", " \r\n".repeat(blank)));
            prop_assert_eq!(events(BodyFormat::Ndjson, text.as_bytes()), list.len() as u64);
        }

        #[test]
        fn no_body_is_counted_beyond_its_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in [BodyFormat::Json, BodyFormat::Ndjson, BodyFormat::Auto] {
                let _ = events(format, &body);
            }
            prop_assert!(events(BodyFormat::Ndjson, &body) <= body.len() as u64);
        }
    }
}
