//! Moments as people write and read them.

use crate::clock::UnixMs;
use crate::config::Period;
use jiff::Timestamp;

/// Reads a time back from now, like `1h`, or a moment, like `2026-11-21T03:00:00Z`.
///
/// # Errors
/// A sentence about what it is not, to be put behind the name of what was given.
pub fn parse(text: &str, now_ms: UnixMs) -> Result<UnixMs, String> {
    if let Ok(period) = text.parse::<Period>() {
        return Ok(now_ms.saturating_sub(period.ms()));
    }
    let moment = text.parse::<Timestamp>().ok();
    let moment = moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok());
    moment.ok_or_else(|| {
        format!("{text:?} is neither a time back from now (1h) nor a moment (2026-11-21T03:00:00Z)")
    })
}

/// `2026-11-21T03:00:00.123Z`; the number where no calendar has it.
#[must_use]
pub fn text(ms: UnixMs) -> String {
    let time = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| ms.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_back_from_now_or_rfc_3339() {
        let now = 1_795_231_830_000;
        assert_eq!(parse("1h", now), Ok(now - 3_600_000));
        assert_eq!(parse("2026-11-21T03:30:00Z", now), Ok(1_795_231_800_000));
        assert_eq!(text(1_795_231_800_123), "2026-11-21T03:30:00.123Z");
        assert_eq!(text(u64::MAX), u64::MAX.to_string());
        for bad in ["", "yesterday", "2026-11-21", "-1h", "1969-12-31T00:00:00Z"] {
            parse(bad, now).expect_err(bad);
        }
    }
}
