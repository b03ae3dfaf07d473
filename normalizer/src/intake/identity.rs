//! Identity (R3): what makes two events the same, as a 128-bit keyed hash.
//!
//! # What is hashed (frozen: the hashes of the last window lie in the log and in dedup's state)
//! ```text
//! u8  kind: 1 key, 2 Idempotency-Key, 3 request
//! u8  length of the tenant | tenant | u8 length of the dataset | dataset
//! key:              for each field of the dedup key, its value
//! Idempotency-Key:  u8 length | key | u32 index as sent
//! request:          u128 request id | u32 index as sent
//! ```
//! A value is a tag and its bytes, little endian: 0 null; 1 string, u32 length; 2 bool, u8; 3 whole
//! number, i128; 4 float, the f64's bits with -0 as 0; 5 time, i128 nanoseconds since 1970; 6 map,
//! u32 entries and their strings in key order, or strings and values; 7 decimal, u8 digits behind the
//! point, i256, without zeros at its end; 8 date, i32 days since 1970; 9 UUID, 16 bytes as written;
//! 10 address, 16 bytes of IPv6, an IPv4 one as `::ffff:a.b.c.d`; 11 array, u32 elements and their
//! values. Enums, fixed strings (without zeros at their end) and JSON (compact) are strings. Integers of
//! all widths, times of all precisions, decimals of all sizes and addresses hash alike, so that a column
//! may be widened without its events becoming new ones.
//!
//! # Which hash
//! SipHash-2-4 with 128 bits of output, keyed with the first half of the log's secret. The tenant is
//! in what is hashed, so a tenant could at worst collide with itself; keyed and cryptographic, the hash
//! does not even let it search for that. It takes about 30 ns for a UUID.
//!
//! # Fingerprints
//! An event identified by an `Idempotency-Key` carries 32 bits of a SipHash-1-3 over its converted
//! values (field name and value, nulls left out), keyed with the secret's second half. So the same
//! content in another formatting, or with its members in another order, is the same event, and an
//! added nullable field changes nothing.

use super::column::Column;
use super::schema::Schema;
use bytes::Bytes;
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher24};
use sluice_common::books::DEAD_LETTERS;
use sluice_common::ids::{self, Name, RequestId, TenantId};
use sluice_common::record::{Holds, Identity, RecordMeta};
use std::hash::Hasher;

/// What all records of a tenant, dataset schema and kind of identity share.
#[derive(Debug)]
pub struct RecordTemplate {
    /// JSON of [`RecordMeta`].
    pub meta: Bytes,
    pub tenant: TenantId,
    pub identity: Identity,
    /// Dedup window in ms.
    pub window_ms: u64,
    /// Key of hashes that never leave the process.
    pub(super) inner_key: [u8; 16],
    /// Has taken in kind, tenant and dataset.
    prefix: SipHasher24,
}

impl RecordTemplate {
    /// Makes the template.
    pub(super) fn new(schema: &Schema, tenant: &TenantId, identity: Identity, secret: &[u8; 32]) -> Self {
        let meta = RecordMeta {
            tenant: tenant.clone(),
            dataset: schema.name().clone(),
            table: schema.table().clone(),
            schema_version: schema.version(),
            identity,
            window_ms: schema.window_ms(identity),
            holds: Holds::Events,
        };
        Self::of(&meta, secret)
    }

    /// The template of copies of rejected rows: rows of `dead_letters` that have no identity.
    pub(super) fn for_copies(
        schema: &Schema,
        tenant: &TenantId,
        secret: &[u8; 32],
    ) -> Result<Self, ids::BadName> {
        let meta = RecordMeta {
            tenant: tenant.clone(),
            dataset: schema.name().clone(),
            table: Name::new(DEAD_LETTERS)?,
            schema_version: schema.version(),
            identity: Identity::Request,
            window_ms: 0,
            holds: Holds::RejectedCopies,
        };
        Ok(Self::of(&meta, secret))
    }

    fn of(meta: &RecordMeta, secret: &[u8; 32]) -> Self {
        let identity = meta.identity;
        let (outer, inner) = halves(secret);
        let mut prefix = SipHasher24::new_with_key(&outer);
        prefix.write(&[kind(identity)]);
        for name in [meta.tenant.as_str(), meta.dataset.as_str()] {
            prefix.write(&[name.len() as u8]);
            prefix.write(name.as_bytes());
        }
        Self {
            meta: serde_json::to_vec(meta)
                .expect("names and numbers have a JSON form")
                .into(),
            tenant: meta.tenant.clone(),
            identity,
            window_ms: meta.window_ms,
            inner_key: inner,
            prefix,
        }
    }
}

fn halves(secret: &[u8; 32]) -> ([u8; 16], [u8; 16]) {
    let (mut outer, mut inner) = ([0; 16], [0; 16]);
    outer.copy_from_slice(&secret[..16]);
    inner.copy_from_slice(&secret[16..]);
    (outer, inner)
}

fn kind(identity: Identity) -> u8 {
    match identity {
        Identity::Key => 1,
        Identity::IdempotencyKey => 2,
        Identity::Request => 3,
    }
}

/// Hashes the rows of one request.
pub struct RowHasher {
    /// Has taken in what all rows of the request share.
    shared: SipHasher24,
    identity: Identity,
    content: SipHasher13,
    scratch: Vec<u8>,
}

impl RowHasher {
    /// Begins a request. An `Idempotency-Key` is hashed only where it is the identity.
    #[must_use]
    pub fn new(template: &RecordTemplate, request: RequestId, idempotency_key: Option<&str>) -> Self {
        let mut shared = template.prefix;
        match template.identity {
            Identity::Key => {}
            Identity::IdempotencyKey => {
                let key = idempotency_key.unwrap_or_default().as_bytes();
                shared.write(&[u8::try_from(key.len()).unwrap_or(u8::MAX)]);
                shared.write(key);
            }
            Identity::Request => shared.write(&request.0.to_le_bytes()),
        }
        Self {
            shared,
            identity: template.identity,
            content: SipHasher13::new_with_key(&template.inner_key),
            scratch: Vec::new(),
        }
    }

    /// The identity of the row that was just written as `row`; `index` is its place as sent.
    pub fn key(&mut self, schema: &Schema, columns: &[Column], row: usize, index: u32) -> u128 {
        let mut hasher = self.shared;
        match self.identity {
            Identity::Key => {
                self.scratch.clear();
                for slot in &schema.key {
                    columns[usize::from(*slot)].write_hashed(row, &mut self.scratch);
                }
                hasher.write(&self.scratch);
            }
            Identity::IdempotencyKey | Identity::Request => hasher.write(&index.to_le_bytes()),
        }
        hasher.finish128().as_u128()
    }

    /// The content of the row, where the identity asks for it.
    pub fn fingerprint(&mut self, schema: &Schema, columns: &[Column], row: usize) -> Option<u32> {
        if self.identity != Identity::IdempotencyKey {
            return None;
        }
        self.scratch.clear();
        for (field, column) in schema.fields.iter().zip(columns) {
            let start = self.scratch.len();
            self.scratch.extend_from_slice(field.name.as_str().as_bytes());
            let value = self.scratch.len();
            column.write_hashed(row, &mut self.scratch);
            if self.scratch[value] == 0 {
                self.scratch.truncate(start);
            }
        }
        Some(self.content.hash(&self.scratch) as u32)
    }
}
