//! What of a sub-batch is there (R14): one aggregate over its provenance and partition.

use crate::block::SubBatch;
use crate::client::{Client, ServerError};
use crate::insert::Origin;
use crate::tables::Table;
use serde_json::Value;
use sluice_common::books::Entry;
use sluice_common::settle::{Found, Sums};
use sluice_common::wire::sink::Piece;
use tokio::time::Instant;

/// Counts the rows of `sub` in `table`, on the server that described it.
pub async fn verify(
    client: &Client,
    origin: Origin,
    sub: &SubBatch,
    table: &Table,
    deadline: Instant,
) -> Found {
    if !table.verifiable {
        return Found::Unknown("its rows cannot be verified: the table is stored to at least once".into());
    }
    let sql = statement(client, origin, sub);
    match client.rows(&sql, deadline).await {
        Ok(rows) => judge(rows.first().map_or(&[], Vec::as_slice), sub, &table.server),
        Err(ServerError::Definite { code, message }) => {
            Found::Unknown(format!("verification: {code}: {message}"))
        }
        Err(ServerError::Unreached(reason) | ServerError::Uncertain(reason)) => {
            Found::Unknown(format!("verification: {reason}"))
        }
    }
}

fn statement(client: &Client, origin: Origin, sub: &SubBatch) -> String {
    // Offsets have at most 48 bits, and partition ids only what `place` writes: digits or `all`.
    let (from, to) = (origin.range.a << 16, origin.range.b << 16);
    let among = || {
        let list: Vec<String> = sub.among.iter().map(u64::to_string).collect();
        format!(" AND _src_o IN ({})", list.join(","))
    };
    let piece = match sub.key.piece {
        Piece::Whole => String::new(),
        Piece::Rows { .. } => format!(" AND _src_o BETWEEN {} AND {}", sub.first_o, sub.last_o),
        Piece::Quarantined => among(),
        Piece::Entry(entry @ (Entry::Unparked | Entry::Retried)) => {
            format!(" AND entry = '{}'{}", entry.label(), among())
        }
        Piece::Entry(entry @ (Entry::Range | Entry::Quarantined | Entry::Parked)) => {
            format!(" AND entry = '{}'", entry.label())
        }
    };
    format!(
        "SELECT toString(serverUUID()), count(), sum(_src_o), sum(_src_o * _src_o) FROM `{}`.`{}` \
         WHERE _src_l = {} AND _src_p = {} AND _src_o >= {from} AND _src_o < {to} AND _partition_id = '{}'{piece} \
         SETTINGS select_sequential_consistency = 1",
        client.database(),
        sub.key.table,
        origin.log.0,
        origin.partition,
        sub.key.part
    )
}

fn judge(row: &[Value], sub: &SubBatch, server: &str) -> Found {
    let number = |at: usize| row.get(at).and_then(Value::as_u64);
    let (Some(rows), Some(sum_o), Some(sum_o2)) = (number(1), number(2), number(3)) else {
        return Found::Unknown("verification: the answer is not what was asked".into());
    };
    if row.first().and_then(Value::as_str) != Some(server) {
        return Found::Unknown(
            "verification: another server answered than the one that was written to".into(),
        );
    }
    let asked = Sums {
        rows: sub.rows,
        sum_o: sub.sum_o,
        sum_o2: sub.sum_o2,
    };
    Found::of(Sums { rows, sum_o, sum_o2 }, asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Content;
    use crate::client::Target;
    use crate::tables::DescribeError;
    use serde_json::json;
    use sluice_common::config::Period;
    use sluice_common::ids::{LogId, Name};
    use sluice_common::wire::sink::{Range, SubKey};

    fn sub() -> SubBatch {
        let key = SubKey::whole(Name::new("t").expect("valid"), "all");
        let content = Content::Hidden(DescribeError::Missing(String::new()));
        SubBatch {
            key,
            rows: 2,
            sum_o: 5,
            sum_o2: 13,
            first_o: 2,
            last_o: 3,
            among: Vec::new(),
            checksum: 0,
            content,
            left_out: Vec::new(),
        }
    }

    #[test]
    fn what_is_counted_is_of_one_log_partition_range_and_part() {
        let target = Target {
            name: "one".into(),
            url: "http://127.0.0.1:1".into(),
            database: Name::new("db").expect("valid"),
            user: None,
            password: None,
            tls: None,
            letters_ttl: Period::hours(1),
        };
        let origin = Origin {
            log: LogId(7),
            partition: 3,
            range: Range { a: 2, b: 4 },
        };
        let asked = statement(&Client::new(&target), origin, &sub());
        let all = "FROM `db`.`t` WHERE _src_l = 7 AND _src_p = 3 AND _src_o >= 131072 AND _src_o < 262144 \
                   AND _partition_id = 'all' SETTINGS select_sequential_consistency = 1";
        assert!(asked.ends_with(all), "{asked}");
    }

    #[test]
    fn only_the_same_count_and_sums_on_the_same_server_are_all() {
        let found = |row: Value| judge(row.as_array().expect("a row"), &sub(), "u");
        assert_eq!(found(json!(["u", 2, 5, 13])), Found::All);
        assert_eq!(found(json!(["u", 0, 0, 0])), Found::None);
        assert_eq!(found(json!(["u", 1, 2, 4])), Found::Some { rows: 1 });
        assert_eq!(found(json!(["u", 2, 5, 17])), Found::Some { rows: 2 });
        assert!(matches!(found(json!(["other", 2, 5, 13])), Found::Unknown(_)));
        assert!(matches!(found(json!([])), Found::Unknown(_)));
    }
}
