//! Fairness behind the log. The log is a queue in which the first comes first, so who may join it decides
//! who is served: once its backlog is late, each tenant gets its weighted share of what is drained.
//!
//! | the log | a tenant may |
//! |---|---|
//! | in time, and less than half full | send what it likes |
//! | with a queue that stands, or half full, and drained | send its share of what is drained, so much of it that the queue is kept short |
//! | late or half full, and nothing is drained | fill its share of the room that is left |
//!
//! A queue stands where ranges are full long before their turn comes ([`Meter`]): ClickHouse takes less than is sent. A
//! range that is not full takes all that there is, however long the one before it took; so slow inserts alone are no
//! queue, and what they take is not taken for what could be.
//!
//! Shares are max-min fair by weight ([`level`]): what one does not use goes to those who want more. All is
//! counted in bytes of the log and in rows, whichever is short first. Nothing that is in the log is
//! reordered.

pub mod drain;
pub mod level;
pub mod shares;
mod tenant;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;
use shares::{Committed, Refused, Shares};
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::config::Weight;
use sluice_common::ids::{Offset, RequestId, TenantId};
use sluice_common::metrics::{Gauge, Metrics};
use std::collections::HashMap;
use std::ops::{Add, Mul};
use std::sync::Arc;

/// Bytes of the log and rows, or as much of each a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    pub bytes: f64,
    pub rows: f64,
}

impl Load {
    /// Of one record.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a record is small")]
    pub fn of(bytes: usize, rows: usize) -> Self {
        let (bytes, rows) = (bytes as f64, rows as f64);
        Self { bytes, rows }
    }

    fn at_least_zero(self) -> Self {
        Self {
            bytes: self.bytes.max(0.0),
            rows: self.rows.max(0.0),
        }
    }
}

impl Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            rows: self.rows + other.rows,
        }
    }
}

impl Mul<f64> for Load {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            bytes: self.bytes * factor,
            rows: self.rows * factor,
        }
    }
}

/// The log as it stands.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub now: UnixMs,
    /// What is not committed, what waits for the writer included.
    pub backlog_bytes: u64,
    pub limit_bytes: u64,
    /// Append time of the oldest record that is not committed.
    pub oldest_ms: Option<UnixMs>,
}

/// Which share is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Of what is drained.
    Drain,
    /// Of the log's room.
    Room,
}

impl Why {
    /// The label of `sluice_shed_total`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Drain => "drain_share",
            Self::Room => "room_share",
        }
    }
}

/// The shares of one log. Cloning shares them.
#[derive(Clone)]
pub struct Grant(Arc<Inner>);

struct Inner {
    shares: Mutex<Shares>,
    clock: SharedClock,
    limit_bytes: u64,
    /// What is below was written before this process began, and counted for nobody. None: others write and commit
    /// too, so that what each tenant has in the log is not known here.
    begun_at: Option<Offset>,
}

/// A request under way. Dropping it gives back what was reserved for it.
pub struct Taken {
    grant: Grant,
    tenant: TenantId,
    body: usize,
    reserved: Option<Load>,
    appended: bool,
}

impl Taken {
    /// Its rows are in the log.
    pub fn appended(mut self) {
        self.appended = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved {
            let appended = self.appended.then_some(self.body);
            self.grant.0.shares.lock().done(&self.tenant, reserved, appended);
        }
    }
}

impl Grant {
    /// Of a log that takes `limit_bytes` and ends at `begun_at`; none where it is shared.
    #[must_use]
    pub fn new(clock: SharedClock, limit_bytes: u64, begun_at: Option<Offset>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let seed = RequestId::random().0 as u64;
        Self(Arc::new(Inner {
            shares: Mutex::new(Shares::new(seed, begun_at.is_none())),
            clock,
            limit_bytes,
            begun_at,
        }))
    }

    /// From which age on the backlog is late.
    pub fn set_late(&self, ms: u64) {
        self.0.shares.lock().set_late(ms);
    }

    /// The log as it stands now.
    #[must_use]
    pub fn view(&self, backlog_bytes: u64, oldest_ms: Option<UnixMs>) -> View {
        View {
            now: self.0.clock.now_ms(),
            backlog_bytes,
            limit_bytes: self.0.limit_bytes,
            oldest_ms,
        }
    }

    /// Whether the tenant may send a body of so many bytes now.
    ///
    /// # Errors
    /// [`Refused`], with the time after which it may.
    pub fn ask(
        &self,
        (tenant, weight): (&TenantId, Weight),
        body: usize,
        view: View,
    ) -> Result<Taken, Refused> {
        let reserved = self.0.shares.lock().ask((tenant, weight), body, view)?;
        Ok(Taken {
            grant: self.clone(),
            tenant: tenant.clone(),
            body,
            reserved,
            appended: false,
        })
    }

    /// These records of the tenant's are in the log.
    pub fn wrote(&self, tenant: &TenantId, load: Load) {
        if self.0.begun_at.is_some() {
            self.0.shares.lock().wrote(tenant, load);
        }
    }

    /// Whether tenants are held to shares.
    #[must_use]
    pub fn is_shut(&self, view: View) -> bool {
        let mut shares = self.0.shares.lock();
        shares.turn(view);
        shares.is_shut()
    }

    /// For the pump of a partition.
    #[must_use]
    pub fn meter(&self, partition: u16) -> Meter {
        Meter {
            grant: self.clone(),
            partition,
            last_ms: None,
        }
    }

    /// Has itself shown; `look` tells of the log: bytes that are not committed, and the oldest append time.
    pub fn show(
        &self,
        metrics: &Metrics,
        look: impl Fn() -> (u64, Option<UnixMs>) + Clone + Send + Sync + 'static,
    ) {
        let here = self.clone();
        let state = move || {
            let (backlog, oldest) = look();
            let view = here.view(backlog, oldest);
            let mut shares = here.0.shares.lock();
            shares.turn(view);
            (shares.in_force(), shares.is_stalled(), shares.drained(view))
        };
        let (one, two, three) = (state.clone(), state.clone(), state);
        metrics.watch(Gauge::GrantInForce, &[], move || match one() {
            (None, ..) => 0.0,
            (Some(_), false, _) => 1.0,
            (Some(_), true, _) => 2.0,
        });
        metrics.watch(Gauge::GrantBytes, &[], move || {
            two().0.map_or(0.0, |load| load.bytes)
        });
        metrics.watch(Gauge::DrainBytes, &[], move || three().2.bytes);
    }
}

/// What the pump of one partition tells of what it commits.
pub struct Meter {
    grant: Grant,
    partition: u16,
    /// When its last range was committed.
    last_ms: Option<UnixMs>,
}

impl Drop for Meter {
    /// The partition is another's now, or none's.
    fn drop(&mut self) {
        self.grant.0.shares.lock().left(self.partition);
    }
}

impl Meter {
    /// From which age on the backlog is late.
    pub fn set_late(&self, ms: u64) {
        self.grant.0.shares.lock().set_late(ms);
    }

    /// A range was committed, `full` or not: its records, each with its offset and append time, in order.
    pub fn committed<'a>(
        &mut self,
        records: impl Iterator<Item = (Offset, UnixMs, &'a TenantId, Load)>,
        full: bool,
    ) {
        let inner = &self.grant.0;
        let (mut all, mut of, mut ends) = (Load::default(), HashMap::<TenantId, Load>::new(), None);
        for (offset, append_ms, tenant, load) in records {
            let (oldest, _) = ends.unwrap_or((append_ms, append_ms));
            ends = Some((oldest, append_ms));
            all = all + load;
            if inner.begun_at.is_some_and(|begun_at| offset >= begun_at) {
                let known = of.entry(tenant.clone()).or_default();
                *known = *known + load;
            }
        }
        let now = inner.clock.now_ms();
        let before = self.last_ms.replace(now);
        let Some(ends) = ends else { return };
        let range = Committed::after(before, self.partition, ends, full);
        inner.shares.lock().committed(all, &of, range, now);
    }
}
