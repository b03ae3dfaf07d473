//! Handing a request to the normalizer: it waits for its turn, is passed on, and is answered.
//!
//! While it waits it is its client's: nothing was passed on, and a client that goes away takes it along, its memory and
//! what its tenant was charged included. Passed on,
//! it is carried by a task of its own, which a client's going away does not end (R4): what was begun is finished, and
//! its bytes stay charged until then. It is tried again only where it is certain that nothing was appended: after
//! "busy", and after "unknown dataset" where this edge's config has the dataset. Then the normalizer has yet to take
//! the config that the edge took a moment ago.

use crate::admission::{BodyPermit, Shed, TenantAdmission};
use crate::auth::Tenants;
use crate::health::Health;
use crate::queue::{FairQueue, Ticket, Turn};
use crate::quota::Charge;
use http::StatusCode;
use sluice_common::error::Problem;
use sluice_common::failpoint::{self, Point};
use sluice_common::limits::EDGE_FORWARD_DEADLINE;
use sluice_common::wire::intake::{BusyScope, IntakeReply, IntakeRequest};
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::Instrument as _;

/// The way to the normalizers.
#[derive(Clone)]
pub struct Forwarder {
    seams: Arc<[Seam<IntakeRequest>]>,
    queue: Arc<FairQueue>,
    health: Arc<Health>,
    tenants: Arc<Tenants>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder")
            .field("under_way", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

/// What a request holds: memory, a place among its tenant's requests, and what the tenant was charged. The charge is
/// given back when this is dropped, but where the request was passed on and may have been taken, or was at fault.
#[derive(Debug)]
pub struct Held {
    pub permit: BodyPermit,
    pub charge: Charge,
}

impl Held {
    /// Its request was answered: lets go of all but the charge.
    #[must_use]
    pub fn answered(self) -> Charge {
        let Self { permit, mut charge } = self;
        drop(permit);
        charge.answered();
        charge
    }
}

/// Least wait before a busy normalizer is asked again.
const LEAST_WAIT: Duration = Duration::from_millis(20);
/// How long a request waits for the normalizer to know a dataset that this edge knows: each looks at the
/// config file every second.
const CONFIG_DEADLINE: Duration = Duration::from_secs(3);
/// Between two looks whether it does.
const CONFIG_WAIT: Duration = Duration::from_millis(100);
/// Beyond the call's own deadline, which ends first where all is well.
const GRACE: Duration = Duration::from_secs(1);

impl Forwarder {
    /// A way that leads to `seams`, each a normalizer, through `queue`, which is made for as many.
    #[must_use]
    pub fn new(
        seams: Vec<Seam<IntakeRequest>>,
        queue: Arc<FairQueue>,
        health: Arc<Health>,
        tenants: Arc<Tenants>,
    ) -> Self {
        Self {
            seams: seams.into(),
            queue,
            health,
            tenants,
            tasks: TaskTracker::new(),
        }
    }

    /// The normalizer's answer, and what was held until there was one. Without an answer in time it is held on, and
    /// not given back here.
    ///
    /// # Errors
    /// [`Shed`]: the request never had its turn, or the normalizer was busy for as long as it may wait.
    pub async fn forward(
        &self,
        request: IntakeRequest,
        tenant: Arc<TenantAdmission>,
        mut held: Held,
    ) -> Result<(IntakeReply, Option<Held>), Shed> {
        held.charge.waits();
        let (begun, mut moves) = (Instant::now(), 1);
        let mut ticket = Ticket::new(&request.tenant, request.weight, request.body.len(), begun);
        loop {
            let turn = self.queue.turn(&ticket).await?;
            let passed = self.pass_on(turn, request.clone(), Arc::clone(&tenant), held);
            let (reply, another);
            (reply, another, held) = match passed.await {
                Ok(answered) => answered,
                Err(lost) => return Ok((lost, None)),
            };
            let now = Instant::now();
            match &reply {
                IntakeReply::Busy { retry_after_ms, .. } => {
                    if ticket.is_over(now) {
                        return Err(Shed::queue_deadline(Duration::from_millis(*retry_after_ms)));
                    }
                    ticket.again();
                }
                IntakeReply::Refused(problem) if self.is_ahead(problem, &request) => {
                    held.charge.waits();
                    if now >= begun + CONFIG_DEADLINE {
                        return Ok((not_yet_known(), Some(held)));
                    }
                    sleep(CONFIG_WAIT).await;
                    ticket.renew(Instant::now());
                }
                // Nobody was there, which may have taken long to find out, and another one may be.
                IntakeReply::Unreached { .. } if another && moves < self.seams.len() => {
                    moves += 1;
                    ticket.renew(now);
                    ticket.again();
                }
                IntakeReply::Rows(_)
                | IntakeReply::Refused(_)
                | IntakeReply::Unavailable { .. }
                | IntakeReply::Unreached { .. } => {
                    return Ok((reply, Some(held)));
                }
            }
        }
    }

    /// Passes it on in a task of its own. The answer, and whether another normalizer may take what this one could not.
    ///
    /// # Errors
    /// What a client is told where there was no answer; the task keeps what is held.
    async fn pass_on(
        &self,
        turn: Turn,
        request: IntakeRequest,
        tenant: Arc<TenantAdmission>,
        mut held: Held,
    ) -> Result<(IntakeReply, bool, Held), IntakeReply> {
        let this = self.clone();
        held.charge.passed_on();
        let task = async move {
            let (reply, another) = this.carry(turn, request, &tenant).await;
            if was_refused(&reply) {
                held.charge.waits();
            }
            (reply, another, held)
        };
        let task = self.tasks.spawn(task.in_current_span());
        let wait = EDGE_FORWARD_DEADLINE + GRACE;
        match timeout(wait, task).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(panic)) => {
                tracing::error!(%panic, "handing on a request failed inside: report this line");
                Err(unknown("the request failed inside the edge".into()))
            }
            Err(_) => Err(unknown(format!("no answer within {} s", wait.as_secs()))),
        }
    }

    /// One try, and what is learnt from it.
    async fn carry(
        &self,
        turn: Turn,
        request: IntakeRequest,
        tenant: &TenantAdmission,
    ) -> (IntakeReply, bool) {
        let random = request.request.0;
        let reply = self.exchange(turn.normalizer(), request).await;
        let now = Instant::now();
        let mut another = false;
        match &reply {
            IntakeReply::Rows(_) => {
                tenant.gate.open();
                turn.done();
            }
            IntakeReply::Refused(_) => {
                tenant.gate.open();
                turn.answered(true);
            }
            IntakeReply::Busy {
                scope,
                retry_after_ms,
                ..
            } => {
                let hint = spread(Duration::from_millis(*retry_after_ms).max(LEAST_WAIT), random);
                if *scope == BusyScope::Tenant {
                    tenant.gate.busy(now, hint);
                }
                turn.busy(*scope, hint, now);
            }
            IntakeReply::Unavailable { unknown: true, .. } => turn.lost(),
            IntakeReply::Unavailable { unknown: false, .. } => turn.answered(false),
            IntakeReply::Unreached { .. } => another = turn.absent(now),
        }
        // What goes to another one is nothing that anybody is told.
        if !another {
            self.health.saw(&reply, now);
        }
        (reply, another)
    }

    async fn exchange(&self, normalizer: usize, request: IntakeRequest) -> IntakeReply {
        if let Err(error) = failpoint::hit(Point::EdgeForward) {
            return IntakeReply::Unavailable {
                unknown: false,
                reason: error.to_string(),
                retry_after_ms: 1_000,
            };
        }
        let reply = match self.seams[normalizer].clone().oneshot(request).await {
            Ok(reply) => reply,
            Err(never) => match never {},
        };
        match failpoint::hit(Point::EdgeAnswered) {
            Ok(()) => reply,
            Err(error) => unknown(error.to_string()),
        }
    }

    /// Whether the normalizer refuses a dataset that this edge's config has.
    fn is_ahead(&self, problem: &Problem, request: &IntakeRequest) -> bool {
        problem.code == "unknown_dataset" && self.tenants.dataset_exists(&request.dataset)
    }

    /// Waits until no request is under way. Requests may still come meanwhile.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Whether nothing of the request was taken though nothing is wrong with it: it will come again.
fn was_refused(reply: &IntakeReply) -> bool {
    match reply {
        IntakeReply::Busy { .. } => true,
        IntakeReply::Unavailable { unknown, .. } => !unknown,
        IntakeReply::Unreached { .. } => true,
        IntakeReply::Refused(problem) => {
            let status = problem.status();
            status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
        }
        IntakeReply::Rows(_) => false,
    }
}

fn unknown(reason: String) -> IntakeReply {
    IntakeReply::Unavailable {
        unknown: true,
        reason,
        retry_after_ms: 1_000,
    }
}

/// The two read different configs: a client that tries again is answered once they agree.
fn not_yet_known() -> IntakeReply {
    IntakeReply::Busy {
        scope: BusyScope::Tenant,
        reason: "the dataset is new, and not all services have taken the config that has it".into(),
        retry_after_ms: 1_000,
    }
}

/// Up to a quarter more, so that the queue does not come back at once; the request's random id says
/// how much.
fn spread(wait: Duration, random: u128) -> Duration {
    let part = u32::try_from(random >> 64 & 0xff).unwrap_or_default();
    wait + wait / 4 * part / 256
}
