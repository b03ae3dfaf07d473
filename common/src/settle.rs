//! One sub-batch's steps at one ClickHouse, from what the pump asked to one verdict (R13, R14).
//!
//! What is concluded from which answer is here and nowhere else. Who asks is an [`Attempt`]: the sink-writer asks
//! a ClickHouse, the simulation of a whole partition a model of one. So what the simulation shows is shown of the
//! code that runs.

use crate::classify::{Class, QUERY_WITH_SAME_ID_IS_RUNNING, classify};
use crate::wire::sink::{Steps, Verdict};
use std::future::Future;

/// Some rows by their provenance: how many, and the wrapping sums of `_src_o` and of its square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub rows: u64,
    pub sum_o: u64,
    pub sum_o2: u64,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    All,
    None,
    Some {
        rows: u64,
    },
    /// Nothing can be said.
    Unknown(String),
}

/// What became of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// Answered, and no error in the answer.
    Clean,
    /// ClickHouse said so itself. It may have stored the rows all the same (a materialized view that fails).
    Refused { code: u32, message: String },
    /// Not a byte of it was sent.
    Unreached(String),
    /// Network, time-out, or an answer that is not ClickHouse's.
    Uncertain(String),
}

/// What a table's kind lets be concluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// Its rows can be counted by their provenance.
    pub verifiable: bool,
    /// That none are there is certain: no replica lags behind.
    pub bump_safe: bool,
}

/// One attempt at one sub-batch, at the server that the call names.
pub trait Attempt: Sync {
    /// Counts what of the sub-batch is there.
    fn verify(&self) -> impl Future<Output = Found> + Send;
    /// Sends the insert, once.
    fn insert(&self) -> impl Future<Output = Sent> + Send;
    /// Whether the call's deadline has not passed.
    fn is_in_time(&self) -> bool;
}

impl Found {
    /// All labels.
    pub const LABELS: [&'static str; 4] = ["all", "none", "between", "unknown"];

    /// Of what was counted, where `asked` is what was sent: equal numbers of other rows are not those.
    #[must_use]
    pub fn of(counted: Sums, asked: Sums) -> Self {
        match counted.rows {
            0 => Self::None,
            _ if counted == asked => Self::All,
            rows => Self::Some { rows },
        }
    }

    /// The label of `sluice_verify_total`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::None => "none",
            Self::Some { .. } => "between",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The verdict where nothing but the count is known.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::All => Verdict::Done,
            Self::None => Verdict::NoneThere,
            Self::Some { rows } => Verdict::Between { found: rows },
            Self::Unknown(reason) => Verdict::Unknown { reason },
        }
    }
}

/// Verify first, if asked; then insert, if asked and none is there; then the insert's answer.
pub async fn settle(steps: Steps, evidence: Evidence, attempt: &impl Attempt) -> Verdict {
    // Where nothing can be verified, the token alone stands between a repeat and a second row.
    if steps.verify_first && evidence.verifiable {
        match attempt.verify().await {
            Found::None => {}
            found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => return found.verdict(),
        }
    }
    if !steps.insert {
        return if steps.verify_first && evidence.verifiable {
            Verdict::NoneThere
        } else {
            unknown("its rows cannot be verified, and no insert was asked for")
        };
    }
    let sent = attempt.insert().await;
    let verifies = steps.verify_after && evidence.verifiable;
    after(sent, verifies.then_some(attempt), evidence.bump_safe).await
}

/// From the insert's answer to the verdict; `verifier` where it is to be verified.
async fn after(sent: Sent, verifier: Option<&impl Attempt>, bump_safe: bool) -> Verdict {
    match (sent, verifier) {
        // answered clean → done, where that is enough
        (Sent::Clean, None) => Verdict::Done,
        // answered clean → poisoned, only where none there is certain
        (Sent::Clean, Some(attempt)) => match attempt.verify().await {
            Found::None if bump_safe => Verdict::CleanButNone,
            Found::None => unknown("none there yet, on a replica that may lag behind"),
            found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => found.verdict(),
        },
        // still running under the same id → evidence of nothing
        (
            Sent::Refused {
                code: QUERY_WITH_SAME_ID_IS_RUNNING,
                ..
            },
            verifier,
        ) => proven(verifier, "an earlier attempt still runs on the server".into()).await,
        // refused → refused, only where none there is verified
        (Sent::Refused { code, message }, None) => unknown(&format!("code {code}: {message}")),
        (Sent::Refused { code, message }, Some(attempt)) => {
            let class = classify(code);
            refused(attempt.verify().await, (code, message, class))
        }
        // not sent → nothing new is known
        (Sent::Unreached(reason), _) => Verdict::Unsent {
            reason: format!("the server cannot be reached: {reason}"),
        },
        // no answer → done where all are there, else nobody knows: it may still arrive
        (Sent::Uncertain(reason), verifier) => proven(verifier, reason).await,
    }
}

/// The verdict on rows that were refused: an earlier attempt may have landed all the same.
#[must_use]
pub fn refused(found: Found, (code, message, class): (u32, String, Class)) -> Verdict {
    match found {
        Found::None => Verdict::Refused { code, message, class },
        found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => found.verdict(),
    }
}

/// Done, if there is time to verify and all are there; else nobody knows.
async fn proven(verifier: Option<&impl Attempt>, reason: String) -> Verdict {
    match verifier {
        Some(attempt) if attempt.is_in_time() && attempt.verify().await == Found::All => Verdict::Done,
        Some(_) | None => Verdict::Unknown { reason },
    }
}

fn unknown(reason: &str) -> Verdict {
    Verdict::Unknown {
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Answers by its script, and remembers what it was asked.
    struct Script {
        found: [Found; 2],
        sent: Sent,
        in_time: bool,
        asked: Mutex<Vec<&'static str>>,
    }

    impl Attempt for Script {
        async fn verify(&self) -> Found {
            let mut asked = self.asked.lock();
            let before = asked.iter().filter(|one| **one == "verify").count();
            asked.push("verify");
            self.found[before].clone()
        }

        async fn insert(&self) -> Sent {
            self.asked.lock().push("insert");
            self.sent.clone()
        }

        fn is_in_time(&self) -> bool {
            self.in_time
        }
    }

    const RETRY: u32 = 252;
    const QUARANTINE: u32 = 469;

    fn founds() -> [Found; 4] {
        [
            Found::All,
            Found::None,
            Found::Some { rows: 1 },
            Found::Unknown("x".into()),
        ]
    }

    fn sents() -> Vec<Sent> {
        let refused = |code| Sent::Refused {
            code,
            message: String::new(),
        };
        let mut all = [QUERY_WITH_SAME_ID_IS_RUNNING, RETRY, QUARANTINE, 60]
            .map(refused)
            .to_vec();
        all.extend([
            Sent::Clean,
            Sent::Unreached("x".into()),
            Sent::Uncertain("x".into()),
        ]);
        all
    }

    /// All that can be asked for, be answered and be so.
    fn all_cases() -> Vec<(Steps, Evidence, Script)> {
        let mut cases = Vec::new();
        for bits in 0..64 {
            let is = |bit: u32| bits >> bit & 1 == 1;
            let steps = Steps {
                verify_first: is(0),
                insert: is(1),
                verify_after: is(2),
            };
            let evidence = Evidence {
                verifiable: is(3),
                bump_safe: is(4),
            };
            for (first, second) in founds()
                .iter()
                .flat_map(|one| founds().map(|two| (one.clone(), two)))
            {
                cases.extend(sents().into_iter().map(|sent| {
                    let script = Script {
                        found: [first.clone(), second.clone()],
                        sent,
                        in_time: is(5),
                        asked: Mutex::default(),
                    };
                    (steps, evidence, script)
                }));
            }
        }
        cases
    }

    /// What is known once a case has been worked.
    struct Known {
        sent: Option<Sent>,
        /// What was counted last; whether after the insert.
        counted: Option<(Found, bool)>,
    }

    fn known(script: &Script) -> Known {
        let asked = script.asked.lock();
        let counts = asked.iter().filter(|one| **one == "verify").count();
        let last = asked.last().is_some_and(|one| *one == "verify");
        let sent = asked.contains(&"insert").then(|| script.sent.clone());
        Known {
            counted: counts
                .checked_sub(1)
                .map(|at| (script.found[at].clone(), last && sent.is_some())),
            sent,
        }
    }

    /// R14, each verdict by itself: what must be known where it is given.
    fn is_justified(verdict: &Verdict, known: &Known, steps: Steps, evidence: Evidence) -> bool {
        let after = |found: &Found| known.counted.as_ref() == Some(&(found.clone(), true));
        let counted = |found: &Found| known.counted.as_ref().is_some_and(|one| one.0 == *found);
        let trusts = !(steps.verify_after && evidence.verifiable);
        match verdict {
            Verdict::Done => counted(&Found::All) || (known.sent == Some(Sent::Clean) && trusts),
            Verdict::CleanButNone => {
                known.sent == Some(Sent::Clean) && after(&Found::None) && evidence.bump_safe
            }
            Verdict::NoneThere => known.sent.is_none() && counted(&Found::None),
            Verdict::Between { found } => counted(&Found::Some { rows: *found }),
            Verdict::Refused { code, class, .. } => {
                let said = matches!(&known.sent, Some(Sent::Refused { code: said, .. }) if said == code);
                said && *code != QUERY_WITH_SAME_ID_IS_RUNNING
                    && *class == classify(*code)
                    && after(&Found::None)
            }
            Verdict::Unsent { .. } => matches!(known.sent, Some(Sent::Unreached(_))),
            Verdict::Unknown { .. } => known.sent != Some(Sent::Clean) || !trusts,
        }
    }

    #[tokio::test]
    async fn every_verdict_is_what_the_answers_prove_and_no_more() {
        let cases = all_cases();
        for (steps, evidence, script) in &cases {
            let verdict = settle(*steps, *evidence, script).await;
            let asked = script.asked.lock().clone();
            let case = format!(
                "{steps:?} {evidence:?} {:?} {:?}: {asked:?}",
                script.sent, script.found
            );
            assert!(
                is_justified(&verdict, &known(script), *steps, *evidence),
                "{verdict:?} of {case}"
            );
            let inserts = asked.iter().filter(|one| **one == "insert").count();
            assert!(inserts <= usize::from(steps.insert), "{case}");
            if steps.verify_first && evidence.verifiable {
                assert_eq!(asked[0], "verify", "{case}");
                assert!(inserts == 0 || script.found[0] == Found::None, "{case}");
            }
            if !evidence.verifiable {
                assert!(!asked.contains(&"verify"), "{case}");
            }
        }
        assert_eq!(cases.len(), 64 * 16 * 7);
    }

    #[tokio::test]
    async fn a_proof_that_is_there_is_taken() {
        for (steps, evidence, script) in all_cases() {
            let verdict = settle(steps, evidence, &script).await;
            let Known { counted, .. } = known(&script);
            if counted.is_some_and(|(found, _)| found == Found::All) {
                assert_eq!(verdict, Verdict::Done, "{steps:?} {:?}", script.sent);
            }
        }
    }

    #[test]
    fn only_the_same_count_and_sums_are_all() {
        let sums = |rows, sum_o, sum_o2| Sums { rows, sum_o, sum_o2 };
        let of = |counted| Found::of(counted, sums(2, 5, 13));
        assert_eq!(of(sums(2, 5, 13)), Found::All);
        assert_eq!(of(sums(0, 0, 0)), Found::None);
        assert_eq!(of(sums(1, 2, 4)), Found::Some { rows: 1 });
        assert_eq!(of(sums(2, 5, 17)), Found::Some { rows: 2 });
        assert_eq!(of(sums(3, 5, 13)), Found::Some { rows: 3 });
    }
}
