//! Storing the row of a dead letter after all (R15).
//!
//! Three steps, each proven before the next: the row is in its table; the books say so; the letter is
//! gone. Cut short anywhere and asked for again, what is there is seen by its provenance and left as it
//! is. An insert that a killed process left under way cannot double the row: the next has its query id,
//! which the server refuses while the first lives, and its token, which makes it nothing afterwards.
//! A token that was spent without its row (R14) is given up for one other, never for a third.

use super::read;
use crate::client::{Client, InsertRequest, ServerError, seconds_left};
use crate::dead_letters::CUT_MARK;
use crate::insert::block_settings;
use crate::tables::{Table, Tables};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sluice_common::books::{Entry, LEDGER, MINUTE_MS};
use sluice_common::classify::{Class, TIME_OUT_OF_RANGE, classify, letter_code};
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::Name;
use sluice_common::letters::{INTAKE, Letter, LetterId, LetterTask, Outcome, Settled};
use std::sync::Arc;
use tokio::time::Instant;

/// Tokens that one row may spend.
const GENERATIONS: u32 = 2;
/// Room beyond the statement that ClickHouse may parse.
const QUERY_SLACK_BYTES: usize = 1_024;

/// Why a letter is not settled: it stays.
enum Stays {
    Refused { code: String, message: String },
    Unknown(String),
}

impl Stays {
    fn refused(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self::Refused { code, message }
    }
}

/// Where a row goes.
struct Place {
    table: Arc<Table>,
    /// What tells the row from others of its provenance; begins with ` AND`, or is empty.
    and: String,
    /// Begins its tokens.
    token: String,
}

/// One order to store rows.
pub(super) struct Retry<'a> {
    pub client: &'a Client,
    pub tables: &'a Tables,
    pub deadline: Instant,
}

impl Retry<'_> {
    /// Settles letters one after the other; those whose rows are stored and booked are deleted together.
    pub async fn all(&self, tasks: Vec<LetterTask>) -> Vec<Settled> {
        let mut settled = Vec::with_capacity(tasks.len());
        for task in tasks {
            settled.push(match self.one(&task).await {
                Ok(outcome) => Settled::plain(task.id, outcome),
                Err(Stays::Refused { code, message }) => Settled::refused(task.id, code, message),
                Err(Stays::Unknown(reason)) => Settled::unknown(task.id, reason),
            });
        }
        let done = |one: &&Settled| matches!(one.outcome, Outcome::Stored | Outcome::WasThere);
        let done: Vec<LetterId> = settled.iter().filter(done).map(|one| one.id).collect();
        let deleted = read::delete(self.client, &done, self.deadline).await;
        let told = failpoint::hit(Point::LetterDeleted);
        let told = told.map_err(|error| ServerError::Uncertain(error.to_string()));
        if let Err(error) = deleted.and(told) {
            for one in settled.iter_mut().filter(|one| done.contains(&one.id)) {
                let message = format!("its row is stored and booked, and the letter is still there: {error}");
                *one = Settled::unknown(one.id, message);
            }
        }
        settled
    }

    async fn one(&self, task: &LetterTask) -> Result<Outcome, Stays> {
        let letter = read::show(self.client, task.id, self.deadline).await;
        let Some(letter) = letter.map_err(|error| unsaid(&error))? else {
            return Ok(Outcome::Gone);
        };
        let name = task.table.as_ref().filter(|_| letter.stage != INTAKE);
        let name = name.ok_or_else(|| Stays::refused("no_row", "no row of a table stands behind it"))?;
        let place = Place {
            table: self.table(name).await?,
            and: String::new(),
            token: format!("dlq/{}", letter.id),
        };
        let body = row(&letter, &place.table)?;
        let outcome = self.put(&place, letter.id, &body).await?;
        pass(Point::LetterStored)?;
        self.book(&letter).await?;
        pass(Point::LetterBooked)?;
        Ok(outcome)
    }

    /// The row of the books: dead-lettered → stored.
    async fn book(&self, letter: &Letter) -> Result<(), Stays> {
        let name = Name::new(LEDGER).map_err(|error| Stays::Unknown(error.to_string()))?;
        let place = Place {
            table: self.table(&name).await?,
            and: format!(" AND entry = '{}'", Entry::Retried.label()),
            token: format!("dlq-books/{}", letter.id),
        };
        let booked = self.put(&place, letter.id, &entry(letter)?).await;
        booked.map(|_| ()).map_err(|why| match why {
            // The row is there by now: this is no refusal of it.
            Stays::Refused { code, message } => Stays::Unknown(format!(
                "its row is stored, and the books are not written: {code}: {message}"
            )),
            unknown @ Stays::Unknown(_) => unknown,
        })
    }

    async fn table(&self, name: &Name) -> Result<Arc<Table>, Stays> {
        let table = self.tables.get(name, self.deadline).await;
        let table = table.map_err(|error| Stays::Unknown(format!("table {name}: {error}")))?;
        if table.verifiable {
            return Ok(table);
        }
        let message = format!(
            "rows of table {name} cannot be verified, so a retry could double it: give the table its provenance \
             columns and a MergeTree engine"
        );
        Err(Stays::refused("not_verifiable", message))
    }

    /// Sees to it that the row is there, once.
    async fn put(&self, place: &Place, id: LetterId, body: &str) -> Result<Outcome, Stays> {
        if self.is_there(place, id).await? {
            return Ok(Outcome::WasThere);
        }
        for generation in 0..GENERATIONS {
            let sent = self
                .client
                .insert(self.insert(place, body, generation), self.deadline)
                .await;
            if self.is_there(place, id).await? {
                return Ok(Outcome::Stored);
            }
            match sent {
                // Answered clean and none there: the token is spent. On a replica it may only lag.
                Ok(()) if place.table.bump_safe => {}
                Ok(()) => return Err(Stays::Unknown("the row is not to be seen yet".into())),
                Err(error) => {
                    self.tables.forget(&place.table.name);
                    return Err(unsaid(&error));
                }
            }
        }
        let message = "ClickHouse takes the row and does not show it: a row policy on our user, or a TTL that the \
                       row is past";
        Err(Stays::refused("vanished", message))
    }

    async fn is_there(&self, place: &Place, id: LetterId) -> Result<bool, Stays> {
        let sql = format!(
            "SELECT toString(serverUUID()), count() FROM `{}`.`{}` WHERE {}{} SETTINGS select_sequential_consistency = 1",
            self.client.database(),
            place.table.name,
            read::among(&[id]),
            place.and
        );
        let unknown = |error: ServerError| Stays::Unknown(format!("verification: {error}"));
        let rows = self.client.rows(&sql, self.deadline).await.map_err(unknown)?;
        let row = rows.first();
        let server = row.and_then(|row| row.first()).and_then(Value::as_str);
        let count = row.and_then(|row| row.get(1)).and_then(Value::as_u64);
        match (server, count) {
            (Some(server), Some(count)) if server == place.table.server => Ok(count > 0),
            (_, _) => {
                self.tables.forget(&place.table.name);
                Err(Stays::Unknown(
                    "verification: another server answered than the one that described the table".into(),
                ))
            }
        }
    }

    fn insert(&self, place: &Place, body: &str, generation: u32) -> InsertRequest {
        let sql = format!(
            "INSERT INTO `{}`.`{}` FORMAT JSONEachRow",
            self.client.database(),
            place.table.name
        );
        let mut settings = block_settings();
        settings.extend([
            (
                "insert_deduplication_token",
                format!("{}#{generation}", place.token),
            ),
            ("query_id", format!("sluice-{}", place.token.replace('/', "-"))),
            ("max_query_size", (sql.len() + QUERY_SLACK_BYTES).to_string()),
            ("max_execution_time", seconds_left(self.deadline)),
            // Payloads have times as clients may send them, and nothing is dropped from one.
            ("date_time_input_format", "best_effort".to_owned()),
            ("input_format_skip_unknown_fields", "0".to_owned()),
        ]);
        InsertRequest {
            sql,
            settings,
            body: body.to_owned().into(),
        }
    }
}

/// A point between two steps.
fn pass(point: Point) -> Result<(), Stays> {
    failpoint::hit(point).map_err(|error| Stays::Unknown(error.to_string()))
}

/// What an error of ClickHouse says of the row.
fn unsaid(error: &ServerError) -> Stays {
    match error {
        ServerError::Definite { code, message } => match classify(*code) {
            Class::Quarantine | Class::Alarm => Stays::refused(&format!("clickhouse_{code}"), message),
            Class::Retry => Stays::Unknown(error.to_string()),
        },
        ServerError::Unreached(_) | ServerError::Uncertain(_) => Stays::Unknown(error.to_string()),
    }
}

/// The row: the payload as it is, so that no digit changes, behind what Sluice adds to each row.
fn row(letter: &Letter, table: &Table) -> Result<String, Stays> {
    if letter.code == letter_code(TIME_OUT_OF_RANGE) {
        let message = "no partition of the table can hold its time, and ClickHouse would store another one";
        return Err(Stays::refused(&letter.code, message));
    }
    let payload = letter
        .content
        .as_ref()
        .map_or("", |content| content.payload.trim());
    if payload.ends_with(CUT_MARK) {
        let message = "its payload was cut when it was set aside: the whole event is not there any more";
        return Err(Stays::refused("payload_cut", message));
    }
    let members = serde_json::from_str::<Map<String, Value>>(payload);
    let members = members.map_err(|_| Stays::refused("not_an_event", "its payload is no JSON object"))?;
    let mut own = provenance(letter.id);
    own.insert("tenant".into(), json!(letter.tenant));
    own.insert("ingested_at".into(), json!(time(letter.time_ms)?));
    if let Some(name) = own.keys().find(|name| members.contains_key(*name)) {
        let message = format!("its payload has the member {name}, which is Sluice's own");
        return Err(Stays::refused("not_an_event", message));
    }
    own.retain(|name, _| table.column(name).is_some());
    let own = Value::Object(own).to_string();
    let (open, rest) = (own.trim_end_matches('}'), &payload[1..]);
    let comma = if members.is_empty() { "" } else { "," };
    Ok(format!("{open}{comma}{rest}\n"))
}

/// The row of the books that moves the letter's event from dead-lettered to stored.
fn entry(letter: &Letter) -> Result<String, Stays> {
    let minute_ms = letter.time_ms / MINUTE_MS * MINUTE_MS;
    let mut row = provenance(letter.id);
    row.extend([
        ("tenant".to_owned(), json!(letter.tenant)),
        ("dataset".to_owned(), json!(letter.dataset)),
        ("minute".to_owned(), json!(time(minute_ms)?)),
        ("entry".to_owned(), json!(Entry::Retried.label())),
        ("stored".to_owned(), json!(1)),
        ("dead_lettered".to_owned(), json!(-1)),
        ("ingested_at".to_owned(), json!(time(minute_ms)?)),
    ]);
    Ok(format!("{}\n", Value::Object(row)))
}

fn provenance(id: LetterId) -> Map<String, Value> {
    let pair = |name: &str, value: Value| (name.to_owned(), value);
    [
        pair("_src_l", json!(id.log.0)),
        pair("_src_p", json!(id.partition)),
        pair("_src_o", json!(id.source_o)),
    ]
    .into_iter()
    .collect()
}

/// RFC 3339.
fn time(ms: u64) -> Result<String, Stays> {
    let time = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let time = time.ok_or_else(|| Stays::refused("not_an_event", "its append time is out of range"))?;
    Ok(time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Placement;
    use sluice_common::config::PartitionBy;
    use sluice_common::ids::LogId;
    use sluice_common::letters::Content;

    fn letter(code: &str, payload: &str) -> Letter {
        Letter {
            id: LetterId {
                log: LogId(7),
                partition: 0,
                source_o: 65_537,
            },
            time_ms: 1_795_231_830_123,
            tenant: "acme".into(),
            dataset: "sales".into(),
            stage: "insert".into(),
            code: code.into(),
            message: String::new(),
            field: String::new(),
            content: Some(Content {
                request_id: String::new(),
                event_index: None,
                payload: payload.into(),
            }),
        }
    }

    fn of(payload: &str) -> Result<String, String> {
        let columns = ["tenant", "ingested_at", "_src_l", "_src_p", "_src_o"];
        let table = Table::for_tests(&columns, Placement::configured(&PartitionBy::None));
        row(&letter("clickhouse_469", payload), &table).map_err(|why| match why {
            Stays::Refused { code, .. } => code,
            Stays::Unknown(reason) => reason,
        })
    }

    #[test]
    fn a_row_is_its_payload_to_the_last_digit_and_what_sluice_adds() {
        let row = of(r#"{"ratio":0.10000000000000000555,"n":18446744073709551615}"#).expect("a row");
        let sent = r#""ratio":0.10000000000000000555,"n":18446744073709551615}"#;
        assert!(row.trim_end().ends_with(sent), "{row}");
        let value: Value = serde_json::from_str(&row).expect("json");
        assert_eq!(value["tenant"], "acme");
        assert_eq!(value["ingested_at"], "2026-11-21T03:30:30.123Z");
        assert_eq!(
            (value["_src_l"].as_u64(), value["_src_o"].as_u64()),
            (Some(7), Some(65_537))
        );
        let empty = of("{}").expect("a row");
        assert_eq!(
            serde_json::from_str::<Value>(&empty).expect("json")["tenant"],
            "acme"
        );
    }

    #[test]
    fn what_is_not_a_whole_event_is_refused() {
        let cut = format!("{{\"a\":\"x{CUT_MARK}");
        for (payload, code) in [
            (cut.as_str(), "payload_cut"),
            ("[1]", "not_an_event"),
            ("base64:/wA=", "not_an_event"),
            (r#"{"tenant":"other"}"#, "not_an_event"),
            (r#"{"a":1} {"b":2}"#, "not_an_event"),
        ] {
            assert_eq!(of(payload), Err(code.to_owned()), "{payload}");
        }
    }

    #[test]
    fn the_books_move_one_event_of_the_minute_of_its_append() {
        let Ok(row) = entry(&letter("clickhouse_469", "{}")) else {
            panic!("an entry")
        };
        let row: Value = serde_json::from_str(&row).expect("json");
        assert_eq!(row["minute"], "2026-11-21T03:30:00Z");
        assert_eq!(
            (row["stored"].as_i64(), row["dead_lettered"].as_i64()),
            (Some(1), Some(-1))
        );
    }
}
