//! What a ClickHouse error code calls for (R15), as one pure function.

use serde::{Deserialize, Serialize};

/// What to do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// The rows are at fault: find them by halving, and set them aside.
    Quarantine,
    /// The server is busy, full or away: the same again, later.
    Retry,
    /// The table or the account is at fault, or nobody knows: tell the operator, retry slowly, drop nothing.
    Alarm,
}

impl Class {
    /// The label of `sluice_clickhouse_errors_total`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Quarantine => "quarantine",
            Self::Retry => "retry",
            Self::Alarm => "alarm",
        }
    }
}

/// Our own code, in a refusal of rows that no partition can hold; ClickHouse was not asked.
pub const TIME_OUT_OF_RANGE: u32 = 0;
/// Codes of refused rows, ours included: all that a dead letter's `code` can tell.
pub const QUARANTINE_CODES: [u32; 6] = [TIME_OUT_OF_RANGE, 6, 27, 53, 117, 469];
/// The query of this id still runs: a second was refused. Evidence of nothing (R14).
pub const QUERY_WITH_SAME_ID_IS_RUNNING: u32 = 216;
/// Schema errors: our description of the table is out of date.
const STALE_DESCRIPTION: [u32; 8] = [10, 16, 36, 44, 47, 53, 60, 81];

/// Sorts a ClickHouse error code. Every code that is not listed is an alarm.
#[must_use]
pub fn classify(code: u32) -> Class {
    match code {
        // Cannot parse text; cannot parse input; type mismatch; incorrect data; violated constraint.
        6 | 27 | 53 | 117 | 469 => Class::Quarantine,
        // Time-outs, too many queries, sockets, memory, disk and parts, read-only, Keeper.
        159
        | 160
        | 202
        | 209
        | 210
        | QUERY_WITH_SAME_ID_IS_RUNNING
        | 241
        | 242
        | 243
        | 252
        | 319
        | 999
        | 1001 => Class::Retry,
        _ => Class::Alarm,
    }
}

/// The column `code` of a dead letter whose row was refused with this code.
#[must_use]
pub fn letter_code(code: u32) -> String {
    match code {
        TIME_OUT_OF_RANGE => "time_out_of_range".into(),
        code => format!("clickhouse_{code}"),
    }
}

/// Whether a code says that the table is not what we think it is.
#[must_use]
pub fn is_stale_description(code: u32) -> bool {
    STALE_DESCRIPTION.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_as_the_design_lists_them() {
        assert!(
            [6, 27, 53, 117, 469]
                .iter()
                .all(|code| classify(*code) == Class::Quarantine)
        );
        let retry = [159, 160, 202, 209, 210, 216, 241, 242, 243, 252, 319, 999, 1001];
        assert!(retry.iter().all(|code| classify(*code) == Class::Retry));
        assert!(
            [16, 47, 60, 81, 516, 0, u32::MAX]
                .iter()
                .all(|code| classify(*code) == Class::Alarm)
        );
    }
}
