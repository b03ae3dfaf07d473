//! How the memory for bodies is shared out.
//!
//! Half of it is guaranteed: each tenant has of it what its weight is of all tenants' weights, and nobody else
//! can take that, used or not. The other half is lent: whoever needs more than its guarantee borrows there, first come,
//! each at most [`Bounds::borrow`]. So a tenant can always have its guarantee, and never more than it and the borrow.
//!
//! When tenants or weights change, what is held stays held and is counted under the new guarantees; until enough of it
//! is given back, the bound on all comes before a guarantee. Pure: no locks, no clocks.

use sluice_common::ids::TenantId;
use std::collections::HashMap;

/// The bounds, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Shared out by weight.
    pub guaranteed: usize,
    /// Lent to whoever needs more.
    pub lent: usize,
    /// Of it, at most so much to one tenant.
    pub borrow: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    guarantee: usize,
    held: usize,
}

impl Account {
    fn borrowed(self) -> usize {
        self.held.saturating_sub(self.guarantee)
    }
}

/// Why bytes could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// The tenant has its guarantee and all that it may borrow.
    Tenant,
    /// Beyond the tenant's guarantee, nothing is left to be lent.
    All,
}

/// Who holds how much.
#[derive(Debug)]
pub struct Shares {
    bounds: Bounds,
    accounts: HashMap<TenantId, Account>,
    held: usize,
    borrowed: usize,
}

impl Shares {
    /// Nothing is held.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            accounts: HashMap::new(),
            held: 0,
            borrowed: 0,
        }
    }

    /// Shares out anew: `weights` are all tenants there are.
    pub fn share_out(&mut self, weights: &[(TenantId, u32)]) {
        let all: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        for account in self.accounts.values_mut() {
            account.guarantee = 0;
        }
        for (tenant, weight) in weights {
            let share = self.bounds.guaranteed as u128 * u128::from(*weight) / u128::from(all.max(1));
            let account = self.accounts.entry(tenant.clone()).or_default();
            account.guarantee = usize::try_from(share).unwrap_or(self.bounds.guaranteed);
        }
        self.accounts
            .retain(|_, account| account.held > 0 || account.guarantee > 0);
        self.borrowed = self.accounts.values().map(|account| account.borrowed()).sum();
    }

    /// Takes `bytes` for `tenant`, or nothing.
    ///
    /// # Errors
    /// [`Short`].
    pub fn take(&mut self, tenant: &TenantId, bytes: usize) -> Result<(), Short> {
        let before = self.accounts.get(tenant).copied().unwrap_or_default();
        let after = Account {
            held: before.held.saturating_add(bytes),
            ..before
        };
        let more = after.borrowed() - before.borrowed();
        if more > 0 && after.borrowed() > self.bounds.borrow {
            return Err(Short::Tenant);
        }
        let over_lent = more > 0 && self.borrowed + more > self.bounds.lent;
        if over_lent || self.held.saturating_add(bytes) > self.limit() {
            return Err(Short::All);
        }
        self.held += bytes;
        self.borrowed += more;
        self.accounts.insert(tenant.clone(), after);
        Ok(())
    }

    /// Gives back `bytes` that `tenant` took.
    pub fn give_back(&mut self, tenant: &TenantId, bytes: usize) {
        let Some(account) = self.accounts.get_mut(tenant) else {
            return;
        };
        let before = account.borrowed();
        account.held = account.held.saturating_sub(bytes);
        self.borrowed -= before - account.borrowed();
        self.held = self.held.saturating_sub(bytes);
        if account.held == 0 && account.guarantee == 0 {
            self.accounts.remove(tenant);
        }
    }

    /// What all tenants hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// What all tenants may hold.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.bounds.guaranteed + self.bounds.lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        guaranteed: 1_000,
        lent: 1_000,
        borrow: 700,
    };

    fn tenant(n: usize) -> TenantId {
        TenantId::new(&format!("t{n}")).unwrap()
    }

    fn shared(weights: &[u32]) -> Shares {
        let mut shares = Shares::new(BOUNDS);
        let weights: Vec<_> = (0..).map(tenant).zip(weights.iter().copied()).collect();
        shares.share_out(&weights);
        shares
    }

    #[test]
    fn a_guarantee_is_by_weight_and_whoever_needs_more_borrows_up_to_its_cap() {
        let mut shares = shared(&[1, 3]);
        assert_eq!(shares.take(&tenant(0), 951), Err(Short::Tenant));
        assert_eq!(
            shares.take(&tenant(0), 950),
            Ok(()),
            "250 of its own and 700 lent"
        );
        assert_eq!(
            shares.take(&tenant(1), 1_051),
            Err(Short::All),
            "300 are left to lend"
        );
        assert_eq!(shares.take(&tenant(1), 1_050), Ok(()));
        assert_eq!((shares.held(), shares.limit()), (2_000, 2_000));
        shares.give_back(&tenant(0), 950);
        assert_eq!(shares.take(&tenant(1), 400), Ok(()));
    }

    #[test]
    fn a_stranger_or_a_tenant_that_left_has_no_guarantee_and_what_it_holds_is_counted() {
        let mut shares = shared(&[1, 1]);
        shares.take(&tenant(0), 500).unwrap();
        shares.share_out(&[(tenant(1), 1)]);
        assert_eq!(shares.borrowed, 500, "its guarantee is gone");
        assert_eq!(shares.take(&tenant(0), 201), Err(Short::Tenant));
        shares.give_back(&tenant(0), 500);
        assert_eq!((shares.held(), shares.borrowed, shares.accounts.len()), (0, 0, 1));
    }

    proptest! {
        #[test]
        fn whatever_others_do_a_tenant_can_have_its_guarantee_and_never_more_than_its_most(
            weights in proptest::collection::vec(1u32..=1_000, 1..8),
            steps in proptest::collection::vec((0usize..8, 1usize..900, any::<bool>()), 0..200)
        ) {
            let mut shares = shared(&weights);
            let count = weights.len();
            let mut held = vec![0usize; count];
            let all: u32 = weights.iter().sum();
            let guarantee = |n: usize| 1_000 * weights[n] as usize / all as usize;
            for (n, bytes, take) in steps {
                let n = n % count;
                if take {
                    if shares.take(&tenant(n), bytes).is_ok() {
                        held[n] += bytes;
                    }
                } else {
                    let bytes = bytes.min(held[n]);
                    shares.give_back(&tenant(n), bytes);
                    held[n] -= bytes;
                }
                prop_assert_eq!(shares.held(), held.iter().sum::<usize>());
                prop_assert!(shares.held() <= shares.limit());
                for (n, held) in held.iter().enumerate() {
                    prop_assert!(*held <= guarantee(n) + BOUNDS.borrow);
                    let left = guarantee(n).saturating_sub(*held);
                    prop_assert_eq!(shares.take(&tenant(n), left), Ok(()), "its guarantee is its own");
                    shares.give_back(&tenant(n), left);
                }
            }
        }
    }
}
