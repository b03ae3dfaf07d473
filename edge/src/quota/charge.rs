//! What one request is charged, from its head to its answer.

use super::bucket::Receipt;
use super::refusal::{self, Moment, Over};
use super::{CONCURRENCY, CONCURRENCY_REASON, Kind, Policy, TenantQuotas};
use http::{HeaderName, HeaderValue};
use sluice_common::error::Limit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of a body of unknown length are charged when so many more have come.
pub const STEP: u64 = 64 * 1024;

/// A request's charge. Dropped, it stays charged, but while [`Charge::waits`]; [`Charge::give_back`] takes it back.
#[derive(Debug)]
pub struct Charge {
    quotas: Arc<TenantQuotas>,
    policies: Vec<Arc<Policy>>,
    receipts: Vec<(usize, Receipt)>,
    needs: Needs,
    /// Bytes that are charged.
    bytes: u64,
    under_way: Option<UnderWay>,
    /// It would have been refused, but for `dry_run`: nothing more is charged.
    passed_over: bool,
    /// Whether it is given back when it is dropped.
    returns: bool,
}

/// What a request is known to need; None: not known yet.
#[derive(Debug, Clone, Copy, Default)]
struct Needs {
    bytes: Option<u64>,
    events: Option<u64>,
}

impl Needs {
    fn of(self, kind: Kind) -> Option<u64> {
        match kind {
            Kind::Requests => Some(1),
            Kind::Bytes => self.bytes,
            Kind::Events => self.events,
        }
    }
}

/// One of the tenant's requests at once.
#[derive(Debug)]
pub struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl TenantQuotas {
    /// Charges what the head tells. `bytes`: of the whole body, where that is known.
    ///
    /// # Errors
    /// [`Over`]: nothing is charged.
    pub fn enter(self: &Arc<Self>, dataset: &str, bytes: Option<u64>) -> Result<Charge, Over> {
        let before = self.under_way.fetch_add(1, Ordering::AcqRel);
        let mut charge = Charge {
            quotas: Arc::clone(self),
            policies: self.policies(dataset),
            receipts: Vec::new(),
            needs: Needs { bytes, events: None },
            bytes: 0,
            under_way: Some(UnderWay(Arc::clone(&self.under_way))),
            passed_over: false,
            returns: false,
        };
        if let Some(most) = self.at_once.filter(|most| before >= *most) {
            let names = (CONCURRENCY, CONCURRENCY_REASON);
            let over = Over::too_many_at_once(names, most, charge.headers(Some(Duration::ZERO)));
            charge.refuse(over)?;
        }
        charge.take(Kind::Requests, 1)?;
        match bytes {
            Some(all) => {
                charge.take(Kind::Bytes, all)?;
                charge.bytes = all;
            }
            None => charge.look(Kind::Bytes)?,
        }
        charge.look(Kind::Events)?;
        Ok(charge)
    }
}

impl Charge {
    /// So much of the body was unpacked; charges what is new of it once it is worth it.
    ///
    /// # Errors
    /// [`Over`]: all is given back.
    pub fn body_so_far(&mut self, bytes: u64) -> Result<(), Over> {
        if bytes >= self.bytes + STEP || bytes > self.least_burst(Kind::Bytes) {
            return self.grow(bytes);
        }
        Ok(())
    }

    /// The body is whole.
    ///
    /// # Errors
    /// [`Over`]: all is given back.
    pub fn body_ended(&mut self, bytes: u64) -> Result<(), Over> {
        self.needs.bytes = Some(bytes);
        self.grow(bytes)
    }

    /// Whether anybody wants to know how many events there are.
    #[must_use]
    pub fn counts_events(&self) -> bool {
        self.policies.iter().any(|policy| policy.kind == Kind::Events)
    }

    /// Charges the events, once, of a whole body.
    ///
    /// # Errors
    /// [`Over`]: all is given back.
    pub fn events(&mut self, events: u64) -> Result<(), Over> {
        self.needs.events = Some(events);
        self.take(Kind::Events, events)
    }

    /// Takes everything back: the request was refused, and nothing of it was taken.
    pub fn give_back(&mut self) {
        let now = self.quotas.report.now();
        // The oldest first: each that is taken back moves those behind it.
        for (at, receipt) in self.receipts.drain(..) {
            if let Some(policy) = self.policies.get(at) {
                policy.bucket.give_back(&receipt, now);
            }
        }
    }

    /// Its request is whole and nothing of it was taken, or never will be: given back if it is dropped now.
    pub fn waits(&mut self) {
        self.returns = true;
    }

    /// Its request was passed on, and may be taken whatever becomes of its client.
    pub fn passed_on(&mut self) {
        self.returns = false;
    }

    /// Its request is none of those at once any more.
    pub fn answered(&mut self) {
        self.under_way = None;
    }

    /// `RateLimit-Policy` and `RateLimit`, where there are limits; for a client that is told to `wait`.
    #[must_use]
    pub fn headers(&self, wait: Option<Duration>) -> Vec<(HeaderName, HeaderValue)> {
        self.headers_beside(wait, None)
    }

    /// The same with a limit that is kept elsewhere.
    #[must_use]
    pub fn headers_beside(
        &self,
        wait: Option<Duration>,
        beside: Option<&Limit>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let under_way = self.quotas.under_way.load(Ordering::Relaxed);
        let at_once = self.quotas.at_once;
        let moment = Moment {
            now: self.quotas.report.now(),
            burst: self.quotas.quota.burst,
            wait,
            at_once: at_once.map(|most| (most, most.saturating_sub(under_way))),
            beside,
        };
        refusal::headers(&self.policies, moment)
    }

    fn grow(&mut self, bytes: u64) -> Result<(), Over> {
        let more = bytes.saturating_sub(self.bytes);
        if bytes > self.least_burst(Kind::Bytes) {
            return self.exceeds(Kind::Bytes, bytes);
        }
        self.take(Kind::Bytes, more)?;
        self.bytes += more;
        Ok(())
    }

    fn least_burst(&self, kind: Kind) -> u64 {
        let bursts = self.policies.iter().filter(|policy| policy.kind == kind);
        bursts
            .map(|policy| policy.bucket.burst())
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Charges all limits of a kind, or refuses.
    fn take(&mut self, kind: Kind, amount: u64) -> Result<(), Over> {
        if self.passed_over || amount == 0 {
            return Ok(());
        }
        if amount > self.least_burst(kind) {
            return self.exceeds(kind, amount);
        }
        let now = self.quotas.report.now();
        for at in 0..self.policies.len() {
            let policy = &self.policies[at];
            if policy.kind != kind {
                continue;
            }
            match policy.bucket.charge(amount, now) {
                Ok(receipt) => self.receipts.push((at, receipt)),
                Err(_) => return self.lacks(at),
            }
        }
        Ok(())
    }

    /// Refuses where a bucket of a kind is empty.
    fn look(&mut self, kind: Kind) -> Result<(), Over> {
        if self.passed_over {
            return Ok(());
        }
        let now = self.quotas.report.now();
        let is_empty = |policy: &Arc<Policy>| policy.kind == kind && policy.bucket.left(now) == 0;
        let empty = self.policies.iter().position(is_empty);
        empty.map_or(Ok(()), |at| self.lacks(at))
    }

    /// The bucket at `at` has not enough: waiting helps.
    fn lacks(&mut self, at: usize) -> Result<(), Over> {
        self.give_back();
        let now = self.quotas.report.now();
        let waits = self.policies.iter().map(|policy| {
            let needed = self.needs.of(policy.kind).unwrap_or(policy.bucket.burst());
            policy.bucket.wait(needed, now)
        });
        let wait = waits.max().unwrap_or_default();
        let policy = Arc::clone(&self.policies[at]);
        let over = Over::quota(&policy, wait, self.headers(Some(wait)));
        self.refuse(over)
    }

    /// The request is larger than a whole bucket: waiting does not help.
    fn exceeds(&mut self, kind: Kind, amount: u64) -> Result<(), Over> {
        if self.passed_over {
            return Ok(());
        }
        let least = self.policies.iter().filter(|policy| policy.kind == kind);
        let Some(policy) = least.min_by_key(|policy| policy.bucket.burst()).cloned() else {
            return Ok(());
        };
        let over = Over::burst(&policy, amount, self.headers(None));
        self.refuse(over)
    }

    fn refuse(&mut self, over: Over) -> Result<(), Over> {
        self.give_back();
        self.quotas.report.over(&self.quotas, &over);
        if self.quotas.quota.dry_run {
            self.passed_over = true;
            return Ok(());
        }
        Err(over)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.returns {
            self.give_back();
        }
    }
}
