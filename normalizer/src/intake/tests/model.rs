//! Against a second reader: `serde_json` and a naive conversion, row by row.

use super::*;
use crate::intake::build_records;
use arrow_ipc::reader::StreamReader;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sluice_common::packed::unpack;

const FIELDS: &str = "{name: s, type: nullable(string)}, {name: l, type: nullable(low_cardinality(string))}, \
    {name: b, type: nullable(bool)}, {name: i8, type: nullable(int8)}, {name: i16, type: nullable(int16)}, \
    {name: i32, type: nullable(int32)}, {name: i64, type: nullable(int64)}, {name: u8, type: nullable(uint8)}, \
    {name: u16, type: nullable(uint16)}, {name: u32, type: nullable(uint32)}, {name: u64, type: nullable(uint64)}, \
    {name: f32, type: nullable(float32)}, {name: f64, type: nullable(float64)}, \
    {name: t, type: nullable(datetime64(6)), epoch: us}, {name: dec, type: \"nullable(decimal(12,3))\"}, \
    {name: day, type: nullable(date)}, {name: uuid, type: nullable(uuid)}, {name: ip, type: nullable(ipv6)}, \
    {name: enum, type: \"nullable(enum(a,'b c'))\"}, {name: fix, type: nullable(fixed_string(4))}, \
    {name: list, type: array(nullable(int16))}, {name: map, type: \"map(string,uint8)\"}, {name: json, type: json}, \
    {name: m, type: \"map(string,string)\"}";
const NAMES: [&str; 23] = [
    "s", "l", "b", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f32", "f64", "t", "dec", "day",
    "uuid", "ip", "enum", "fix", "list", "map", "json",
];

/// The column's text of a value, or that it must be rejected.
fn model(field: &str, value: &Value) -> Result<Option<String>, ()> {
    if value.is_null() {
        return Ok(nothing(field));
    }
    let text = match field {
        "dec" => decimal(value)?,
        "day" => {
            let text = value.as_str().filter(|text| text.len() == 10).ok_or(())?;
            let date = jiff::civil::Date::strptime("%Y-%m-%d", text).map_err(|_| ())?;
            let days = (date - jiff::civil::date(1970, 1, 1)).get_days();
            (0..=65_535).contains(&days).then(|| days.to_string()).ok_or(())?
        }
        "uuid" => {
            let text = value.as_str().ok_or(())?.to_lowercase();
            let digits = text.replace('-', "");
            let forms = [digits.clone(), hyphenated(&digits)];
            let is_hex = digits.len() == 32 && digits.bytes().all(|c| c.is_ascii_hexdigit());
            (is_hex && forms.contains(&text)).then_some(digits).ok_or(())?
        }
        "ip" => {
            let address: std::net::IpAddr = value.as_str().ok_or(())?.parse().map_err(|_| ())?;
            match address {
                std::net::IpAddr::V4(address) => format!("::ffff:{address}"),
                std::net::IpAddr::V6(address) => address.to_string(),
            }
        }
        "enum" => {
            let text = value.as_str().ok_or(())?;
            ["a", "b c"].contains(&text).then(|| text.to_owned()).ok_or(())?
        }
        "fix" => {
            let text = value.as_str().ok_or(())?.trim_end_matches('\0');
            (text.len() <= 4).then(|| text.to_owned()).ok_or(())?
        }
        "list" => list(value)?,
        "map" => map(value)?,
        "json" => value.as_object().map(|_| value.to_string()).ok_or(())?,
        "s" | "l" => value.as_str().ok_or(())?.to_owned(),
        "b" => value.as_bool().ok_or(())?.to_string(),
        "f32" => {
            let number = value.as_f64().ok_or(())? as f32;
            number.is_finite().then(|| format!("{number:?}")).ok_or(())?
        }
        "f64" => format!("{:?}", value.as_f64().ok_or(())?),
        "t" => {
            let whole = value
                .as_i64()
                .map(i128::from)
                .or_else(|| whole_float(value))
                .ok_or(())?;
            let seconds = whole.div_euclid(1_000_000);
            (-2_208_988_800..=10_413_791_999)
                .contains(&seconds)
                .then(|| whole.to_string())
                .ok_or(())?
        }
        _ => integer(field, value)?.to_string(),
    };
    Ok(Some(text))
}

fn list(value: &Value) -> Result<String, ()> {
    let items = value.as_array().ok_or(())?.iter();
    let items = items.map(|item| {
        if item.is_null() {
            return Ok("null".to_owned());
        }
        integer("i16", item).map(|number| number.to_string())
    });
    Ok(format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(",")))
}

fn map(value: &Value) -> Result<String, ()> {
    let entries = value.as_object().ok_or(())?.iter();
    let entries = entries
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| Ok(format!("{key}={}", integer("u8", value)?)));
    Ok(entries.collect::<Result<Vec<_>, ()>>()?.join(";"))
}

/// What is stored where nothing, or null, was sent.
fn nothing(field: &str) -> Option<String> {
    match field {
        "list" => Some("[]".to_owned()),
        "map" => Some(String::new()),
        "json" => Some("{}".to_owned()),
        _ => None,
    }
}

fn hyphenated(digits: &str) -> String {
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default().to_owned();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, digits.len().max(20)),
    ]
    .join("-")
}

/// Thousandths, of at most 12 digits: the number is written out in full, then cut at its point.
fn decimal(value: &Value) -> Result<String, ()> {
    let written = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            let text = format!("{}", number.as_f64().ok_or(())?);
            let digits = text.replace(['-', '.'], "");
            let digits = digits.trim_start_matches('0').trim_end_matches('0');
            (digits.len() <= 15).then_some(text).ok_or(())?
        }
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return Err(()),
    };
    let magnitude = written.strip_prefix('-').unwrap_or(&written);
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let fraction = fraction.to_owned() + "000";
    if !is_digits(whole)
        || !is_digits(&fraction)
        || magnitude.ends_with('.')
        || fraction[3..].contains(|c| c != '0')
    {
        return Err(());
    }
    let thousandths = format!("{whole}{}", &fraction[..3]);
    let thousandths = thousandths.trim_start_matches('0');
    match (thousandths.len(), written.len() > magnitude.len()) {
        (0, _) => Ok("0".to_owned()),
        (13.., _) => Err(()),
        (_, true) => Ok(format!("-{thousandths}")),
        (_, false) => Ok(thousandths.to_owned()),
    }
}

fn whole_float(value: &Value) -> Option<i128> {
    let number = value.as_f64().filter(|_| value.is_f64())?;
    (number.fract() == 0.0 && number.abs() < 1e30).then_some(number as i128)
}

fn integer(field: &str, value: &Value) -> Result<i128, ()> {
    let bits: u32 = field[1..].parse().map_err(|_| ())?;
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit() || c == b'-');
    let whole = match value {
        Value::String(text) if bits == 64 && digits(text) => text.parse().map_err(|_| ())?,
        Value::Number(number) if number.is_u64() => number.as_u64().map(i128::from).ok_or(())?,
        Value::Number(number) if number.is_i64() => number.as_i64().map(i128::from).ok_or(())?,
        Value::Number(_) => whole_float(value).ok_or(())?,
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            return Err(());
        }
    };
    let (low, high) = match &field[..1] {
        "i" => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        _ => (0, (1i128 << bits) - 1),
    };
    (low..=high).contains(&whole).then_some(whole).ok_or(())
}

fn model_map(value: Option<&Value>) -> Result<String, ()> {
    let entries = match value {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(value) => value.as_object().ok_or(())?,
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap_or_default()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    };
    let entries = entries.iter().filter(|(_, value)| !value.is_null());
    Ok(entries
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect::<Vec<_>>()
        .join(";"))
}

fn model_row(event: &Map<String, Value>) -> Result<Vec<Option<String>>, ()> {
    let mut row = Vec::new();
    for name in NAMES {
        row.push(
            event
                .get(name)
                .map_or(Ok(nothing(name)), |value| model(name, value))?,
        );
    }
    row.push(Some(model_map(event.get("m"))?));
    Ok(row)
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_filter_map("JSON has no such number", |number| serde_json::Number::from_f64(
            number
        )
        .map(Value::Number)),
        (-100i32..100).prop_map(|number| json!(f64::from(number) / 2.0)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => number(),
        2 => "\\PC{0,12}".prop_map(Value::from),
        1 => "[\"\\\\\u{0}-\u{1f}/\u{7f}é\u{1F600}]{0,8}".prop_map(Value::from),
        1 => any::<i64>().prop_map(|number| Value::from(number.to_string())),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!({})),
        1 => Just(json!([1])),
        1 => Just(json!([null, 70_000])),
        1 => Just(json!({"a": 1, "b": 256})),
        1 => "-?[0-9]{0,10}[.]?[0-9]{0,5}".prop_map(Value::from),
        1 => "[0-9]{4}-[0-9]{2}-[0-9]{2}".prop_map(Value::from),
        1 => "[0-9a-fA-F]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}".prop_map(Value::from),
        1 => "[0-9a-f:.]{0,12}".prop_map(Value::from),
    ]
}

fn fitting(name: &'static str) -> BoxedStrategy<Value> {
    match name {
        "s" | "l" => "\\PC{0,12}".prop_map(Value::from).boxed(),
        "b" => any::<bool>().prop_map(Value::from).boxed(),
        "f32" | "f64" => number().boxed(),
        "dec" => prop_oneof![
            (-999_999_999_999i64..=999_999_999_999).prop_map(|n| Value::from(format!(
                "{}.{:03}",
                n / 1_000,
                n.abs() % 1_000
            ))),
            (-1_000_000i64..1_000_000).prop_map(|n| json!(n as f64 / 1_000.0)),
            (-9_999_999i64..9_999_999).prop_map(Value::from),
        ]
        .boxed(),
        "day" => (0..65_536i64)
            .prop_map(|days| {
                let day = jiff::civil::date(1970, 1, 1) + jiff::Span::new().days(days);
                Value::from(day.to_string())
            })
            .boxed(),
        "uuid" => any::<u128>()
            .prop_map(|bits| Value::from(hyphenated(&format!("{bits:032x}"))))
            .boxed(),
        "ip" => any::<u128>()
            .prop_map(|bits| Value::from(std::net::Ipv6Addr::from(bits).to_string()))
            .boxed(),
        "enum" => prop_oneof![Just(json!("a")), Just(json!("b c"))].boxed(),
        "fix" => "[a-z\u{0}]{0,4}".prop_map(Value::from).boxed(),
        "list" => prop::collection::vec(
            prop_oneof![any::<i16>().prop_map(Value::from), Just(Value::Null)],
            0..5,
        )
        .prop_map(Value::from)
        .boxed(),
        "map" => prop::collection::btree_map("[a-z]{1,2}", any::<u8>().prop_map(Value::from), 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
            .boxed(),
        "json" => prop::collection::btree_map(
            "[a-z]{1,2}",
            prop_oneof![Just(json!([1, null])), Just(json!({"k": true}))],
            0..4,
        )
        .prop_map(|map| Value::Object(map.into_iter().collect()))
        .boxed(),
        "t" => (0..2_000_000_000_000_000i64).prop_map(Value::from).boxed(),
        _ => (0..128i64).prop_map(Value::from).boxed(),
    }
}

/// Mostly members that fit, one in ten of any kind.
fn event() -> impl Strategy<Value = Map<String, Value>> {
    let member = |name: &'static str| {
        let value = prop_oneof![20 => fitting(name), 1 => value(), 4 => Just(Value::Null)];
        prop::option::of(value).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let members: Vec<_> = NAMES.into_iter().map(member).collect();
    let map = prop::option::of(prop::collection::btree_map("[a-z]{1,3}", value(), 0..6));
    (members, map).prop_map(|(members, map)| {
        let map = map.map(|map| ("m".to_owned(), Value::Object(map.into_iter().collect())));
        members.into_iter().chain([map]).flatten().collect()
    })
}

proptest! {
    #[test]
    fn events_become_the_rows_that_a_naive_reader_makes(events in prop::collection::vec(event(), 1..30)) {
        let intake = fields(FIELDS);
        let body: Vec<_> = events.iter().map(|event| Value::Object(event.clone()).to_string()).collect();
        let parsed = lines(&intake, body.join("\n"));
        let expected: Vec<_> = events.iter().map(model_row).collect();
        let good: Vec<_> = expected.iter().filter_map(|row| row.clone().ok()).collect();
        let bad: Vec<_> = (0u32..).zip(&expected).filter(|(_, row)| row.is_err()).map(|(at, _)| at).collect();
        let rejected: Vec<_> = parsed.answer.errors.iter().map(|error| error.index).collect();
        prop_assert_eq!(rejected, bad, "{:?}", parsed.answer.errors);
        let records = build_records(parsed.pending).expect("records");
        let mut rows = Vec::new();
        for (content, _) in &records {
            let stream = unpack(content.body.clone()).expect("a sound body");
            let reader = StreamReader::try_new(&stream[..], None).expect("a stream");
            reader.for_each(|batch| rows.extend(table(&batch.expect("readable"))));
        }
        prop_assert_eq!(rows, good);
    }

    #[test]
    fn any_single_value_ends_as_the_naive_reader_says(name in prop::sample::select(&NAMES), value in value()) {
        let intake = fields(FIELDS);
        let parsed = lines(&intake, json!({ name: value }).to_string());
        let expected = model(name, &value);
        let at = NAMES.iter().position(|other| *other == name).expect("known");
        let found = parsed.pending.first().map(|pending| table(&pending.batch)[0][at].clone());
        if name != "t" || !value.is_string() {
            prop_assert_eq!(found, expected.ok());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(mut body in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:0-9a-z\\\\ \n.eE+-]{0,80}") {
        let intake = default_intake();
        for format in [BodyFormat::Json, BodyFormat::Ndjson, BodyFormat::Auto] {
            let _ = parse(&intake, format, text.clone());
            let _ = parse(&intake, format, body.clone());
        }
        body.splice(0..0, b"[".iter().copied());
        let _ = parse(&intake, BodyFormat::Json, body);
    }

    #[test]
    fn taken_and_refused_are_those_of_another_json_reader(text in "(\\{|\\[)[\\[\\]{}\",:0-9a ]{0,12}(\\}|\\])") {
        let intake = default_intake();
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        let taken = parse(&intake, BodyFormat::Json, text.clone()).is_ok();
        prop_assert_eq!(taken, is_json, "{}", text);
    }
}
