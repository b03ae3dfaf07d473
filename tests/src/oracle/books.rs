//! The books held against the tables, after a drain: by tenant, dataset and minute they balance, they
//! say as much as is stored, and each of their rows is there once.

use crate::Client;
use std::collections::BTreeMap;

/// Complaints told at most.
const MAX_COMPLAINTS: usize = 10;

/// What the books say of one tenant, dataset and minute, and what the tables do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub tenant: String,
    pub dataset: String,
    pub minute: u64,
    pub received: i64,
    pub stored: i64,
    pub duplicate: i64,
    pub dead_lettered: i64,
    pub rejected: i64,
    pub parked: i64,
    /// Rows of the dataset's table.
    pub rows: i64,
    /// Its acknowledged dead letters.
    pub letters: i64,
}

impl Account {
    fn parse(line: &str) -> Self {
        let mut cells = line.split('\t');
        let mut text = || cells.next().expect("eleven cells").to_owned();
        let (tenant, dataset) = (text(), text());
        let minute = text().parse().expect("seconds");
        let mut count = || text().parse().expect("a count");
        Self {
            tenant,
            dataset,
            minute,
            received: count(),
            stored: count(),
            duplicate: count(),
            dead_lettered: count(),
            rejected: count(),
            parked: count(),
            rows: count(),
            letters: count(),
        }
    }

    fn complaint(&self) -> Option<String> {
        let outcomes = self.stored + self.duplicate + self.dead_lettered + self.rejected + self.parked;
        let what = if self.received != outcomes {
            "the books do not balance"
        } else if self.stored != self.rows {
            "the books say another number of stored rows than the table has"
        } else if self.dead_lettered != self.letters {
            "the books say another number of dead letters than there are"
        } else if self.parked != 0 {
            "rows are still parked"
        } else {
            return None;
        };
        Some(format!("{what}: {self:?}"))
    }
}

/// All accounts of a drained Sluice whose datasets have these tables, by name.
///
/// # Errors
/// Where ClickHouse cannot be read.
pub async fn accounts(clickhouse: &Client, datasets: &[(&str, &str)]) -> Result<Vec<Account>, String> {
    let minute = "toStartOfMinute(toDateTime(ingested_at, 'UTC'))";
    let zeros = "toInt64(0), toInt64(0), toInt64(0), toInt64(0), toInt64(0), toInt64(0)";
    let mut parts = vec![
        "SELECT tenant, dataset, minute AS m, received AS a, stored AS b, duplicate AS c, dead_lettered AS d, \
         rejected AS e, parked AS f, toInt64(0) AS g, toInt64(0) AS h FROM telemetry.ledger"
            .to_owned(),
        format!(
            "SELECT tenant, dataset, {minute}, {zeros}, toInt64(0), toInt64(1) FROM telemetry.dead_letters \
             WHERE stage != 'intake'"
        ),
    ];
    parts.extend(datasets.iter().map(|(dataset, table)| {
        format!(
            "SELECT tenant, '{dataset}', {minute}, {zeros}, toInt64(1), toInt64(0) FROM telemetry.{table}"
        )
    }));
    let sql = format!(
        "SELECT tenant, dataset, toUnixTimestamp(m), sum(a), sum(b), sum(c), sum(d), sum(e), sum(f), sum(g), sum(h) \
         FROM ({}) GROUP BY tenant, dataset, m ORDER BY tenant, dataset, m FORMAT TSV",
        parts.join(" UNION ALL ")
    );
    Ok(clickhouse
        .query(&sql)
        .await?
        .lines()
        .map(Account::parse)
        .collect())
}

/// What is wrong with the books of a drained Sluice; nothing where all is well.
///
/// # Errors
/// Where ClickHouse cannot be read.
pub async fn complaints(clickhouse: &Client, accounts: &[Account]) -> Result<Vec<String>, String> {
    let twice = "SELECT count() FROM (SELECT 1 FROM telemetry.ledger GROUP BY _src_l, _src_p, _src_o, entry \
                 HAVING count() > 1)";
    let twice = clickhouse.query(twice).await?;
    let mut found: Vec<String> = accounts.iter().filter_map(Account::complaint).collect();
    found.truncate(MAX_COMPLAINTS);
    if twice.trim() != "0" {
        found.push(format!(
            "{} rows of the books are there more than once",
            twice.trim()
        ));
    }
    Ok(found)
}

/// Events received, by tenant.
#[must_use]
pub fn received(accounts: &[Account]) -> BTreeMap<&str, i64> {
    let mut sums = BTreeMap::new();
    for account in accounts {
        *sums.entry(account.tenant.as_str()).or_default() += account.received;
    }
    sums
}
