//! `tenant=&dataset=&reason=&stage=&since=&until=&limit=`: which letters are listed.

use sluice_common::clock::UnixMs;
use sluice_common::ids::{Name, TenantId};
use sluice_common::letters::LetterFilter;
use sluice_common::limits::MAX_LETTERS_LISTED;
use sluice_common::moment;

const DEFAULT_LIMIT: u32 = 100;

/// Reads the question; every part is optional.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(query: &str, now_ms: UnixMs) -> Result<(LetterFilter, u32), String> {
    let (mut filter, mut limit) = (LetterFilter::default(), DEFAULT_LIMIT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "tenant" => {
                filter.tenant = Some(TenantId::new(text).map_err(|error| format!("`tenant`: {error}"))?)
            }
            "dataset" => filter.dataset = Some(name(key, text)?),
            "reason" => filter.reason = Some(name(key, text)?),
            "stage" => filter.stage = Some(name(key, text)?),
            "since" => filter.since_ms = Some(time(key, text, now_ms)?),
            "until" => filter.until_ms = Some(time(key, text, now_ms)?),
            "limit" => limit = most(text)?,
            _ => {
                return Err(
                    "dead letters are asked for with `tenant`, `dataset`, `reason`, `stage`, `since`, `until` and \
                     `limit` only"
                        .into(),
                );
            }
        }
    }
    Ok((filter, limit))
}

fn name(key: &str, text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| format!("`{key}`: {error}"))
}

fn time(key: &str, text: &str, now_ms: UnixMs) -> Result<UnixMs, String> {
    moment::parse(text, now_ms).map_err(|error| format!("`{key}` {error}"))
}

fn most(text: &str) -> Result<u32, String> {
    let limit = text.parse::<u32>().ok();
    let limit = limit.filter(|limit| (1..=MAX_LETTERS_LISTED).contains(&(*limit as usize)));
    limit.ok_or_else(|| format!("`limit` is 1 to {MAX_LETTERS_LISTED}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_names_times_and_a_bound_and_nothing_else() {
        let now = 1_795_231_830_000;
        assert_eq!(parse("", now), Ok((LetterFilter::default(), 100)));
        let (filter, limit) = parse(
            "tenant=acme&dataset=sales&reason=clickhouse_469&since=1h&until=2026-11-21T03:30:00Z&limit=5",
            now,
        )
        .expect("a question");
        assert_eq!(filter.tenant.expect("a tenant").as_str(), "acme");
        assert_eq!(filter.reason.expect("a reason").as_str(), "clickhouse_469");
        assert_eq!(
            (filter.since_ms, filter.until_ms),
            (Some(now - 3_600_000), Some(1_795_231_800_000))
        );
        assert_eq!(limit, 5);
        for bad in [
            "tenant=a'b",
            "reason=x'%20OR%201",
            "dataset=",
            "since=yesterday",
            "limit=0",
            "limit=10001",
            "order=asc",
            "tenant",
        ] {
            parse(bad, now).expect_err(bad);
        }
    }
}
