//! The books of a whole test, once all has drained.

use crate::{Client, eventually};
use std::time::Duration;

/// Waits until the books say that `received` events came, and balance for each tenant, dataset and minute with
/// nothing set aside.
///
/// # Panics
/// Where they do not within half a minute.
pub async fn books_balance(clickhouse: &Client, received: u64) {
    let sql = "SELECT sum(r), countIf(r != outcomes OR parked != 0) FROM ( \
               SELECT sum(received) AS r, sum(stored + duplicate + dead_lettered + rejected) AS outcomes, \
               sum(ledger.parked) AS parked FROM telemetry.ledger GROUP BY tenant, dataset, minute) FORMAT TSV";
    let expected = format!("{received}\t0");
    eventually("the books balance", Duration::from_secs(30), async || {
        let told = clickhouse.query(sql).await.ok()?;
        (told == expected).then_some(())
    })
    .await;
}
