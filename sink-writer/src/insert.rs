//! One insert (R12): its statement, its token, its query id and its settings, the same on every attempt.
//!
//! Facts (ClickHouse 26.7, measured): one Arrow batch of 500,000 rows and 61 MB is one part under every
//! block setting tried; a block that spans two partitions is refused whole with code 252 under
//! `max_partitions_per_insert_block=1`; an unknown column is code 16 and an unknown table code 60, with
//! nothing stored; a second insert under a living `query_id` is code 216 once the first has sent so much
//! that its query began, and is let in before that (there the token decides); a body shorter than its
//! `Content-Length` stores nothing, even where only the end-of-stream marker is missing; `wait_end_of_query=1` makes errors come with a status instead of behind a 200.

use crate::block::SubBatch;
use crate::client::{InsertRequest, seconds_left};
use bytes::Bytes;
use sluice_common::books::Entry;
use sluice_common::gentle::NICE;
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::{MAX_BLOCK_ROWS, MAX_SENT_BLOCK_BYTES};
use sluice_common::wire::sink::{Piece, Range};
use tokio::time::Instant;

/// Room beyond the statement that ClickHouse may parse: the body is never taken for SQL.
const QUERY_SLACK_BYTES: usize = 1_024;

/// The range that a sub-batch belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub log: LogId,
    pub partition: u16,
    pub range: Range,
}

impl Origin {
    fn path(&self, sub: &SubBatch) -> String {
        let Range { a, b } = self.range;
        let (key, first) = (&sub.key, sub.first_o);
        let path = format!(
            "{}/{}/{a}-{b}/{}/{}",
            self.log, self.partition, key.table, key.part
        );
        match key.piece {
            Piece::Whole => path,
            Piece::Rows { from, to } => format!("{path}/{from}-{to}"),
            Piece::Quarantined => format!("{path}/quarantined-{first}"),
            // Tables that were set aside settle alone, several of one range: their first rows differ.
            Piece::Entry(entry @ (Entry::Unparked | Entry::Retried)) => {
                format!("{path}/{}-{first}", entry.label())
            }
            Piece::Entry(entry @ (Entry::Range | Entry::Quarantined | Entry::Parked)) => {
                format!("{path}/{}", entry.label())
            }
        }
    }

    /// `insert_deduplication_token`.
    #[must_use]
    pub fn token(&self, sub: &SubBatch, generation: u32) -> String {
        format!("{}/{:016x}#{generation}", self.path(sub), sub.checksum)
    }

    /// One id for all attempts and generations: the server refuses a second while one lives.
    #[must_use]
    pub fn query_id(&self, sub: &SubBatch) -> String {
        format!("sluice-{}", self.path(sub).replace('/', "-"))
    }
}

/// The insert of one sub-batch.
#[must_use]
pub fn request(
    database: &Name,
    origin: Origin,
    sub: &SubBatch,
    generation: u32,
    (columns, body, deadline): (&[String], Bytes, Instant),
) -> InsertRequest {
    let columns: Vec<String> = columns.iter().map(|name| format!("`{name}`")).collect();
    let sql = format!(
        "INSERT INTO `{database}`.`{}` ({}) FORMAT ArrowStream",
        sub.key.table,
        columns.join(", ")
    );
    let mut settings = block_settings();
    settings.extend([
        ("insert_deduplication_token", origin.token(sub, generation)),
        ("query_id", origin.query_id(sub)),
        ("max_query_size", (sql.len() + QUERY_SLACK_BYTES).to_string()),
        ("max_execution_time", seconds_left(deadline)),
    ]);
    InsertRequest { sql, settings, body }
}

/// Has the server's threads leave the processor to others; nothing where it is not allowed to (CAP_SYS_NICE).
pub(crate) fn gentle() -> [(&'static str, String); 1] {
    [("os_thread_priority", NICE.to_string())]
}

pub(crate) fn block_settings() -> Vec<(&'static str, String)> {
    let on = || "1".to_owned();
    let off = || "0".to_owned();
    vec![
        ("async_insert", off()),
        ("insert_deduplicate", on()),
        ("replace_running_query", off()),
        ("wait_end_of_query", on()),
        ("max_partitions_per_insert_block", on()),
        ("throw_on_max_partitions_per_insert_block", on()),
        // Nothing below these bounds is cut or flushed early: one insert is one block.
        ("max_insert_block_size", (2 * MAX_BLOCK_ROWS).to_string()),
        ("min_insert_block_size_rows", (2 * MAX_BLOCK_ROWS).to_string()),
        ("min_insert_block_size_bytes", MAX_SENT_BLOCK_BYTES.to_string()),
        ("max_insert_threads", on()),
        ("input_format_parallel_parsing", off()),
        ("input_format_null_as_default", on()),
        // Of a JSON column's values: texts that look like times stay texts, and `true` is no number.
        ("input_format_try_infer_dates", off()),
        ("input_format_try_infer_datetimes", off()),
        ("input_format_json_read_bools_as_numbers", off()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Content;
    use crate::tables::DescribeError;
    use sluice_common::wire::sink::SubKey;

    #[test]
    fn equal_ranges_of_two_logs_have_tokens_and_query_ids_of_their_own() {
        let sub = SubBatch {
            key: SubKey::whole(Name::new("t").expect("valid"), "all"),
            rows: 1,
            sum_o: 0,
            sum_o2: 0,
            first_o: 0,
            last_o: 0,
            among: Vec::new(),
            checksum: 5,
            content: Content::Hidden(DescribeError::Missing(String::new())),
            left_out: Vec::new(),
        };
        let origin = |log, partition| Origin {
            log: LogId(log),
            partition,
            range: Range { a: 1, b: 2 },
        };
        let token = |log, partition| origin(log, partition).token(&sub, 0);
        assert_eq!(token(1, 0), token(1, 0));
        assert_ne!(token(1, 0), token(2, 0));
        assert_ne!(token(1, 0), token(1, 1));
        assert_ne!(origin(1, 0).query_id(&sub), origin(2, 0).query_id(&sub));
    }
}
