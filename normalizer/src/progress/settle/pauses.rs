//! What a settling is told besides reports: calls that came to nothing, tables that went elsewhere.

use super::{Proof, Settling};
use crate::progress::plan::Next;
use sluice_common::ids::Name;
use sluice_common::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use std::time::Duration;

impl Settling {
    /// These tables are durable elsewhere; the proofs are of the rows, and of those of the books, that are
    /// left.
    pub fn set_aside<'a>(&mut self, tables: impl Iterator<Item = &'a Name>, (proof, books): (Proof, Proof)) {
        (self.proof, self.books) = (proof, books);
        if proof.rows == 0 && books.rows == 0 {
            self.subs.get_or_insert_default();
        }
        for table in tables {
            self.marks.forget(table);
            self.troubles.remove(table);
            self.strayed.remove(table);
            if let Some(subs) = &mut self.subs {
                subs.retain(|key, _| key.table != *table);
            }
        }
    }

    /// They could not be set aside: the range waits with them.
    pub fn not_set_aside(&mut self, reason: String) {
        let wait = self.wait(reason, true);
        self.then.push_back(wait);
    }

    /// The call never began: the sink-writer had no room. The attempt does not count.
    pub fn busy(&mut self, retry_after: Duration) {
        self.attempt -= 1;
        let delay = retry_after.clamp(RETRY_BACKOFF_MIN, RETRY_BACKOFF_MAX);
        self.then.push_back(Next::Wait {
            delay,
            reason: "the sink-writer is full".into(),
            alarm: false,
        });
    }

    /// The call had no answer that can be used: what it did is unknown.
    pub fn failed(&mut self, reason: String) {
        self.fresh = false;
        self.touched = true;
        self.failures += 1;
        self.troubles.clear();
        let wait = self.wait(reason, false);
        self.then.push_back(wait);
    }

    /// The call never began: the server could not be asked what has to be known first.
    pub fn not_begun(&mut self, reason: String) {
        self.attempt -= 1;
        self.failures += 1;
        let wait = self.wait(reason, false);
        self.then.push_back(wait);
    }

    pub(super) fn wait(&self, reason: String, alarm: bool) -> Next {
        let delay = RETRY_BACKOFF_MIN.saturating_mul(1 << (self.failures.saturating_sub(1)).min(10));
        // A minute of trouble is something that a person should know of.
        Next::Wait {
            delay: delay.min(RETRY_BACKOFF_MAX),
            reason,
            alarm: alarm || self.failures >= 10,
        }
    }
}
