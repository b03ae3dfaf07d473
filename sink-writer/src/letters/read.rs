//! Statements over the table of dead letters. Whatever stands in one is a number, or a name or id of
//! letters that need no escaping: their types let nothing else in.

use crate::client::{Client, ServerError};
use crate::ddl::DEAD_LETTERS;
use serde_json::Value;
use sluice_common::ids::{LogId, Name};
use sluice_common::letters::{Content, Letter, LetterFilter, LetterId};
use std::fmt::Write as _;
use tokio::time::Instant;

/// Characters of a message that a list tells.
const LISTED_MESSAGE_CHARS: usize = 160;
/// Sequential reads: a letter that was just deleted on another replica is not told.
const SETTINGS: &str = "SETTINGS select_sequential_consistency = 1";

/// Heads of the newest letters.
pub(super) async fn list(
    client: &Client,
    filter: &LetterFilter,
    limit: u32,
    deadline: Instant,
) -> Result<Vec<Letter>, ServerError> {
    let tail = format!(
        "{} ORDER BY ingested_at DESC, _src_o DESC LIMIT {limit}",
        bounds(filter)
    );
    letters(
        client,
        &format!("substringUTF8(message, 1, {LISTED_MESSAGE_CHARS})"),
        &tail,
        deadline,
    )
    .await
}

/// Heads of some letters.
pub(super) async fn heads(
    client: &Client,
    ids: &[LetterId],
    deadline: Instant,
) -> Result<Vec<Letter>, ServerError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    letters(client, "''", &among(ids), deadline).await
}

/// One letter, whole.
pub(super) async fn show(
    client: &Client,
    id: LetterId,
    deadline: Instant,
) -> Result<Option<Letter>, ServerError> {
    let columns = "message, request_id, event_index, payload";
    let found = letters(client, columns, &among(&[id]), deadline).await?;
    Ok(found.into_iter().next())
}

/// Deletes letters, and waits until they are gone.
pub(super) async fn delete(client: &Client, ids: &[LetterId], deadline: Instant) -> Result<(), ServerError> {
    if ids.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "DELETE FROM `{}`.`{DEAD_LETTERS}` WHERE {}",
        client.database(),
        among(ids)
    );
    client.has_room(deadline).await?;
    client.command(&sql, deadline).await
}

/// Those of some letters whose rows `table` has.
pub(super) async fn stored(
    client: &Client,
    table: &Name,
    ids: &[LetterId],
    deadline: Instant,
) -> Result<Vec<LetterId>, ServerError> {
    let sql = format!(
        "SELECT DISTINCT _src_l, _src_p, _src_o FROM `{}`.`{table}` WHERE {} {SETTINGS}",
        client.database(),
        among(ids)
    );
    let rows = client.rows(&sql, deadline).await?;
    let ids = rows.iter().map(|row| id_of(row));
    ids.collect::<Option<_>>().ok_or_else(odd)
}

/// The provenance of some letters as a condition.
pub(super) fn among(ids: &[LetterId]) -> String {
    let id = |id: &LetterId| format!("({},{},{})", id.log.0, id.partition, id.source_o);
    let list: Vec<String> = ids.iter().map(id).collect();
    // The bounds are for the index over `_src_o`.
    let lowest = ids.iter().map(|id| id.source_o).min().unwrap_or_default();
    let highest = ids.iter().map(|id| id.source_o).max().unwrap_or_default();
    format!(
        "_src_o BETWEEN {lowest} AND {highest} AND (_src_l, _src_p, _src_o) IN ({})",
        list.join(",")
    )
}

fn bounds(filter: &LetterFilter) -> String {
    let mut sql = "1".to_owned();
    let names = [
        ("tenant", filter.tenant.as_ref().map(|tenant| tenant.as_str())),
        ("dataset", filter.dataset.as_ref().map(Name::as_str)),
        ("code", filter.reason.as_ref().map(Name::as_str)),
        ("stage", filter.stage.as_ref().map(Name::as_str)),
    ];
    for (column, name) in names {
        if let Some(name) = name {
            let _ = write!(sql, " AND {column} = '{name}'");
        }
    }
    for (sign, ms) in [(">=", filter.since_ms), ("<", filter.until_ms)] {
        if let Some(ms) = ms {
            let ms = i64::try_from(ms).unwrap_or(i64::MAX);
            let _ = write!(sql, " AND ingested_at {sign} fromUnixTimestamp64Milli({ms})");
        }
    }
    sql
}

async fn letters(
    client: &Client,
    columns: &str,
    tail: &str,
    deadline: Instant,
) -> Result<Vec<Letter>, ServerError> {
    let sql = format!(
        "SELECT _src_l, _src_p, _src_o, toUnixTimestamp64Milli(ingested_at), tenant, dataset, stage, code, field, \
         {columns} FROM `{}`.`{DEAD_LETTERS}` WHERE {tail} {SETTINGS}",
        client.database()
    );
    let rows = client.rows(&sql, deadline).await?;
    let letters = rows.iter().map(|row| letter(row));
    letters.collect::<Option<_>>().ok_or_else(odd)
}

fn odd() -> ServerError {
    ServerError::Uncertain("the answer is not what was asked".into())
}

fn id_of(row: &[Value]) -> Option<LetterId> {
    Some(LetterId {
        log: LogId(row.first()?.as_u64()?),
        partition: u16::try_from(row.get(1)?.as_u64()?).ok()?,
        source_o: row.get(2)?.as_u64()?,
    })
}

fn letter(row: &[Value]) -> Option<Letter> {
    let text = |at: usize| Some(row.get(at)?.as_str()?.to_owned());
    let content = || {
        Some(Content {
            request_id: text(10)?,
            event_index: row.get(11)?.as_u64().and_then(|index| u32::try_from(index).ok()),
            payload: text(12)?,
        })
    };
    Some(Letter {
        id: id_of(row)?,
        time_ms: u64::try_from(row.get(3)?.as_i64()?).unwrap_or(0),
        tenant: text(4)?,
        dataset: text(5)?,
        stage: text(6)?,
        code: text(7)?,
        field: text(8)?,
        message: text(9)?,
        content: content(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use sluice_common::ids::TenantId;

    #[test]
    fn a_filter_is_written_with_nothing_that_could_be_sql() {
        assert_eq!(bounds(&LetterFilter::default()), "1");
        let filter = LetterFilter {
            tenant: Some(TenantId::new("acme").expect("valid")),
            dataset: Some(Name::new("events").expect("valid")),
            reason: Some(Name::new("clickhouse_469").expect("valid")),
            stage: None,
            since_ms: Some(5),
            until_ms: Some(u64::MAX),
        };
        assert_eq!(
            bounds(&filter),
            "1 AND tenant = 'acme' AND dataset = 'events' AND code = 'clickhouse_469' \
             AND ingested_at >= fromUnixTimestamp64Milli(5) \
             AND ingested_at < fromUnixTimestamp64Milli(9223372036854775807)"
        );
        for bad in ["x' OR '1'='1", "a\\", "a b", ""] {
            let filter = json!({"reason": bad});
            serde_json::from_value::<LetterFilter>(filter).expect_err(bad);
        }
    }

    #[test]
    fn a_letter_is_read_with_its_content_only_where_that_was_asked_for() {
        let head = json!([
            1,
            0,
            65_536,
            1_795_231_830_123_i64,
            "a",
            "d",
            "insert",
            "c",
            "",
            "m"
        ]);
        let row = head.as_array().expect("a row");
        assert!(letter(row).expect("a letter").content.is_none());
        let more = [json!("00"), Value::Null, json!("{}")];
        let row: Vec<Value> = row.iter().cloned().chain(more).collect();
        let content = letter(&row).expect("a letter").content.expect("content");
        assert_eq!((content.event_index, content.payload.as_str()), (None, "{}"));
        assert!(letter(&row[..9]).is_none());
    }
}
