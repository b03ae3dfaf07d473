//! Reading the log for a replay: which records are meant, and what was touched.

use crate::log::{Partition, ReadError};
use crate::runtime::{Instant, sleep};
use sluice_common::gentle::gently;
use sluice_common::ids::{Name, Offset, TenantId};
use sluice_common::limits::{LOG_READ_BYTES, RETRY_BACKOFF_MIN};
use sluice_common::record::{Holds, Record};
use sluice_common::replay::Touched;
use std::sync::Arc;
use std::time::Duration;

/// Which records of a span are replayed: those with events of this tenant and dataset.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub tenant: Option<TenantId>,
    pub dataset: Option<Name>,
}

impl Wanted {
    /// Whether a record is.
    #[must_use]
    pub fn has(&self, record: &Record) -> bool {
        let meta = &record.meta;
        record.rows() > 0
            && meta.holds == Holds::Events
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == meta.tenant)
            && self
                .dataset
                .as_ref()
                .is_none_or(|dataset| *dataset == meta.dataset)
    }
}

/// Counts a record.
pub fn touch(touched: &mut Touched, record: &Record) {
    let (events, place, meta) = (u64::from(record.rows()), record.place, &record.meta);
    touched.first = touched.first.or(Some(place.offset));
    touched.last = Some(place.offset);
    touched.records += 1;
    touched.events += events;
    touched.bytes += record.frame().len() as u64;
    touched.first_append_ms = touched.first_append_ms.or(Some(place.append_ms));
    touched.last_append_ms = Some(place.append_ms);
    *touched.tenants.entry(meta.tenant.clone()).or_default() += events;
    *touched.datasets.entry(meta.dataset.clone()).or_default() += events;
    *touched.tables.entry(meta.table.clone()).or_default() += events;
}

/// How long brokers that give nothing are waited for: who asks for a plan waits too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Some records from `at` on; brokers that give nothing are waited for, for a while.
async fn read(log: &Arc<dyn Partition>, at: Offset) -> Result<Vec<Record>, ReadError> {
    let begun = Instant::now();
    loop {
        let reads = Arc::clone(log);
        let read = gently(move || reads.read(at, LOG_READ_BYTES)).await;
        match read.unwrap_or_else(|undone| Err(ReadError::Unavailable(undone.to_string()))) {
            Err(ReadError::Unavailable(_)) if begun.elapsed() < PATIENCE => {
                sleep(RETRY_BACKOFF_MIN * 5).await;
            }
            read => return read,
        }
    }
}

/// Hands records `[from, to)` to `each` in order until it returns `false`. They are read on a thread that leaves the
/// processor to the live path.
///
/// # Errors
/// The log's.
pub async fn walk(
    log: &Arc<dyn Partition>,
    (from, to): (Offset, Offset),
    mut each: impl FnMut(Record) -> bool,
) -> Result<(), ReadError> {
    let mut at = from;
    while at < to {
        let records = read(log, at).await?;
        for record in records {
            let offset = record.place.offset;
            if offset >= to || !each(record) {
                return Ok(());
            }
            at = offset + 1;
        }
    }
    Ok(())
}
