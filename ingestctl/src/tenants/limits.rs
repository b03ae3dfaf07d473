//! A quota on the command line.

use clap::Args;
use serde_json::{Map, Value, json};
use sluice_common::config::{ByteSize, Count, Period, Quota, Weight};
use sluice_common::ids::Name;
use sluice_common::process::Failure;

/// A limit, or `none`: the limit that was there is taken away.
#[derive(Debug, Clone, Copy)]
struct Limit<T>(Option<T>);

/// Rates, of the tenant or of one dataset.
#[derive(Debug, Args)]
pub(super) struct RateArgs {
    /// Events a second: lines, or elements of an array; or `none`. As 50000 or 50k.
    #[arg(long, value_name = "N", value_parser = limit::<Count>)]
    events_per_second: Option<Limit<Count>>,
    /// Bytes a second, of bodies after decompression; or `none`. As 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = limit::<ByteSize>)]
    bytes_per_second: Option<Limit<ByteSize>>,
    /// Requests a second; or `none`.
    #[arg(long, value_name = "N", value_parser = limit::<Count>)]
    requests_per_second: Option<Limit<Count>>,
}

/// What holds for a tenant as a whole.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    #[command(flatten)]
    pub rates: RateArgs,
    /// What may come at once, as the time in which the rates give it: 1s to 1h. Without this 2s.
    #[arg(long, value_name = "TIME", value_parser = super::period)]
    burst: Option<Period>,
    /// Requests at once; or `none`.
    #[arg(long, value_name = "N", value_parser = limit::<Count>)]
    concurrent_requests: Option<Limit<Count>>,
    /// What is over is counted and logged, and taken all the same; `--dry-run false` ends it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    dry_run: Option<bool>,
    /// Its part of what is short, beside the weights of others: 1 to 1,000.
    #[arg(long, value_name = "N", value_parser = weight)]
    pub weight: Option<Weight>,
}

impl RateArgs {
    fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                members.insert(name.to_owned(), value);
            }
        };
        set(
            "events_per_second",
            self.events_per_second.map(|limit| json!(limit.0)),
        );
        set(
            "bytes_per_second",
            self.bytes_per_second.map(|limit| json!(limit.0)),
        );
        set(
            "requests_per_second",
            self.requests_per_second.map(|limit| json!(limit.0)),
        );
        members
    }
}

impl LimitArgs {
    /// What is to be changed of a quota (RFC 7396): of the tenant, or the rates of one of its datasets.
    pub fn patch(&self, dataset: Option<&Name>) -> Map<String, Value> {
        let mut members = self.rates.members();
        if let Some(dataset) = dataset {
            let rates = Value::Object(members);
            members = Map::from_iter([("datasets".to_owned(), json!({dataset.as_str(): rates}))]);
        }
        if let Some(limit) = self.concurrent_requests {
            members.insert("concurrent_requests".into(), json!(limit.0));
        }
        if let Some(burst) = self.burst {
            members.insert("burst".into(), json!(burst));
        }
        if let Some(dry_run) = self.dry_run {
            members.insert("dry_run".into(), json!(dry_run));
        }
        members
    }

    /// Whether nothing was said.
    pub fn names_nothing(&self) -> bool {
        self.patch(None).is_empty() && self.weight.is_none()
    }

    /// The quota of a tenant that has none yet.
    pub fn quota(&self) -> Result<Quota, Failure> {
        let mut members = self.patch(None);
        members.retain(|_, value| !value.is_null());
        let quota: Quota = serde_json::from_value(Value::Object(members))?;
        let problems = quota.problems();
        if problems.is_empty() {
            return Ok(quota);
        }
        Err(Failure::new(problems.join("; ")))
    }
}

fn limit<T: std::str::FromStr<Err = String>>(text: &str) -> Result<Limit<T>, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse().map(|value| Limit(Some(value)))
}

fn weight(text: &str) -> Result<Weight, String> {
    let weight = text.parse().ok().and_then(Weight::new);
    weight.ok_or_else(|| format!("{text:?} is no weight: it is 1 to {}", Weight::MAX))
}

/// A quota in one line, for a table.
pub(super) fn in_words(quota: &Value) -> String {
    let mut words = rates_in_words(quota);
    if let Some(most) = text(&quota["concurrent_requests"]) {
        words.push(format!("{most} at once"));
    }
    for (name, rates) in quota["datasets"].as_object().into_iter().flatten() {
        words.push(format!("{name}: {}", rates_in_words(rates).join(" + ")));
    }
    if words.is_empty() {
        return "not limited".into();
    }
    if let Some(burst) = text(&quota["burst"]) {
        words.push(format!("burst {burst}"));
    }
    if quota["dry_run"] == true {
        words.push("dry run".into());
    }
    words.join(", ")
}

fn rates_in_words(rates: &Value) -> Vec<String> {
    let told = |(key, unit): (&str, &str)| Some(format!("{}{unit}/s", text(&rates[key])?));
    let keys = [
        ("events_per_second", " events"),
        ("bytes_per_second", ""),
        ("requests_per_second", " requests"),
    ];
    keys.into_iter().filter_map(told).collect()
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
