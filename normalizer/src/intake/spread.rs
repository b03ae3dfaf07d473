//! Which partition takes which event (R4): always the same one for the same identity, whoever asks.
//!
//! A tenant's events lie in some of the partitions, so that one that stands still hurts only the tenants that have it.
//! Events with a key of their own go where their key's hash says; those that are known by their request go where the
//! request does, all together. What is computed here is frozen with the log: events of the last window lie where it put
//! them.

use super::Pending;
use arrow_array::{RecordBatch, UInt32Array};
use arrow_schema::ArrowError;
use sluice_common::ids::{RequestId, TenantId};
use sluice_common::record::{Identity, RequestSpan};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// How events are spread over a log's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    partitions: u16,
    of_a_tenant: u16,
}

impl Spread {
    /// Of a log with one partition.
    pub const ONE: Self = Self {
        partitions: 1,
        of_a_tenant: 1,
    };

    /// Over so many partitions, of which each tenant uses so many.
    #[must_use]
    pub fn new(partitions: u16, of_a_tenant: u16) -> Self {
        let partitions = partitions.max(1);
        Self {
            partitions,
            of_a_tenant: of_a_tenant.clamp(1, partitions),
        }
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partitions(self) -> u16 {
        self.partitions
    }

    /// The partitions that a tenant's events lie in.
    pub fn of_tenant(self, tenant: &TenantId) -> impl Iterator<Item = u16> + use<> {
        let first = self.first(tenant);
        (0..self.of_a_tenant).map(move |next| {
            let place = (u32::from(first) + u32::from(next)) % u32::from(self.partitions);
            u16::try_from(place).unwrap_or_default()
        })
    }

    fn first(self, tenant: &TenantId) -> u16 {
        let place = xxh3_64(tenant.as_str().as_bytes()) % u64::from(self.partitions);
        u16::try_from(place).unwrap_or_default()
    }

    /// A place among a tenant's partitions, which begin with `first`.
    fn place(self, first: u16, hash: u64) -> u16 {
        let (all, some) = (u64::from(self.partitions), u64::from(self.of_a_tenant));
        let place = (u64::from(first) + hash % some) % all;
        u16::try_from(place).unwrap_or_default()
    }

    /// The partition of an event with this hash of its key. Dedup tells keys apart by all of it; this takes the half that
    /// it does not look at first.
    fn of_key(self, first: u16, key: u128) -> u16 {
        self.place(first, (key >> 64) as u64)
    }

    fn of_request(self, tenant: &TenantId, request: RequestId, idempotency_key: Option<&str>) -> u16 {
        let hash = match idempotency_key {
            Some(key) => xxh3_64(key.as_bytes()),
            None => xxh3_64(&request.0.to_le_bytes()),
        };
        self.place(self.first(tenant), hash)
    }

    /// Gives each row of a request to its partition. What counts the request whole stays with its first rows.
    ///
    /// # Errors
    /// Where Arrow refuses columns; none is expected.
    pub fn over(
        self,
        pending: Vec<Pending>,
        idempotency_key: Option<&str>,
    ) -> Result<Vec<Pending>, ArrowError> {
        if self.partitions == 1 {
            return Ok(pending);
        }
        let mut spread = Vec::with_capacity(pending.len());
        for mut one in pending {
            let template = Arc::clone(&one.template);
            let tenant = &template.tenant;
            let has_key = template.identity == Identity::Key && !one.keys.is_empty();
            if has_key && self.of_a_tenant > 1 {
                self.by_key(one, &mut spread)?;
                continue;
            }
            let key = idempotency_key.filter(|_| template.identity == Identity::IdempotencyKey);
            one.partition = match one.keys.first() {
                Some(first) if has_key => self.of_key(self.first(tenant), *first),
                Some(_) | None => self.of_request(tenant, one.span.request, key),
            };
            spread.push(one);
        }
        Ok(spread)
    }

    fn by_key(self, mut one: Pending, spread: &mut Vec<Pending>) -> Result<(), ArrowError> {
        let template = Arc::clone(&one.template);
        let first = self.first(&template.tenant);
        let mut rows: Vec<(u16, Vec<u32>)> = Vec::new();
        for (row, key) in (0..).zip(&one.keys) {
            let place = self.of_key(first, *key);
            match rows.iter_mut().find(|(partition, _)| *partition == place) {
                Some((_, rows)) => rows.push(row),
                None => rows.push((place, vec![row])),
            }
        }
        if let [(only, _)] = rows[..] {
            one.partition = only;
            spread.push(one);
            return Ok(());
        }
        // All columns are taken once, and each partition has a stretch of them.
        let order: Vec<u32> = rows.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
        let batch = arrow_select::take::take_record_batch(&one.batch, &UInt32Array::from(order))?;
        let (mut taken, mut rejected) = (one.span.taken, one.span.rejected);
        let mut from = 0;
        for (partition, rows) in rows {
            let span = RequestSpan {
                rows: u32::try_from(rows.len()).unwrap_or(u32::MAX),
                taken: std::mem::take(&mut taken),
                rejected: std::mem::take(&mut rejected),
                ..one.span
            };
            let stretch = batch.slice(from, rows.len());
            from += rows.len();
            spread.push(some_rows(&one, partition, span, (&rows, stretch)));
        }
        Ok(())
    }
}

/// Some rows of a pending, in their order.
fn some_rows(
    one: &Pending,
    partition: u16,
    span: RequestSpan,
    (rows, batch): (&[u32], RecordBatch),
) -> Pending {
    let at = |row: &u32| *row as usize;
    let prints = rows
        .iter()
        .filter_map(|row| one.fingerprints.get(at(row)).copied());
    Pending {
        partition,
        template: Arc::clone(&one.template),
        batch,
        is_part: true,
        keys: rows.iter().map(|row| one.keys[at(row)]).collect(),
        fingerprints: prints.collect(),
        span,
        bytes: one.bytes * rows.len() / one.keys.len().max(1),
    }
}
